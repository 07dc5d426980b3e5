"""Every stage's tensors, by name.

    trace = nprcnn.Trace()
    model.predict(image, trace=trace)
    trace["rpn.proposals"]                  an array, or a list with one an image
    trace.show("rpn.proposals")             the same as a figure
    trace.stepper()                         all stages, one after the other, in a notebook

`losses` and `backward` take a trace too; the backward pass records gradients under the same names in `trace.grad`.
The arrays are the ones the model computed, not copies (those of a GPU are copied to the CPU), and recording changes no result.
"""

from . import devices

# Every name, and what is there. N images; R RoIs, S of them positive, D detections, of all images one after the other; T anchors of
# all levels; A anchors a cell; K classes. "[...]" is a list with one array an image. Boxes are in pixels of the resized image.
NAMES = {
    "transform.batch": "(N, 3, H, W): the images, normalised, resized, padded with zeros",
    "backbone.stem": "(N, C, H/2, W/2): after the first convolution, norm and ReLU, before the max-pool",
    "backbone.layer1": "(N, C, H/4, W/4): C2",
    "backbone.layer2": "(N, C, H/8, W/8): C3",
    "backbone.layer3": "(N, C, H/16, W/16): C4",
    "backbone.layer4": "(N, C, H/32, W/32): C5. With dilation (DC5) (N, C, H/16, W/16); in the C4 models it is the head, and not here",
    "fpn.p2": "(N, C, H/4, W/4): the finest pyramid level",
    "fpn.p3": "(N, C, H/8, W/8)",
    "fpn.p4": "(N, C, H/16, W/16)",
    "fpn.p5": "(N, C, H/32, W/32)",
    "fpn.p6": "(N, C, H/64, W/64): for the RPN alone",
    **{f"rpn.logits.{level}": "(N, A, h, w): objectness of one level" for level in ("p2", "p3", "p4", "p5", "p6")},
    **{f"rpn.deltas.{level}": "(N, 4 A, h, w): deltas of one level" for level in ("p2", "p3", "p4", "p5", "p6")},
    "rpn.objectness": "(N, T): all levels' logits, ordered by level, y, x, anchor",
    "rpn.deltas": "(N, T, 4): all levels' deltas in that order",
    "rpn.anchors": "(T, 4): all levels' anchors in that order",
    "rpn.proposals_before_nms": "[(P, 4)]: the best anchors of each level, moved by their deltas and clipped",
    "rpn.scores_before_nms": "[(P,)]: their objectness in 0..1",
    "rpn.proposals": "[(P, 4)]: after NMS, best first. In training: the sampled RoIs",
    "rpn.proposal_scores": "[(P,)]: their objectness in 0..1; in prediction only",
    "rpn.proposal_anchors": "[(P,)]: index into rpn.anchors of the anchor behind each of rpn.proposals; -1: an added target box",
    "roi_heads.levels": "[(P,)]: level of the map that each of rpn.proposals is cut from, 2 for P2",
    "roi_heads.box_features": "(R, C, 7, 7): what RoIAlign cuts out for the box head. C4: (R, C, 14, 14)",
    "roi_heads.box_hidden": "(R, C): the box head's last hidden layer",
    "roi_heads.class_logits": "(R, K)",
    "roi_heads.box_deltas": "(R, 4 K)",
    "detections.boxes": "[(D, 4)]: in prediction only, and so the two below",
    "detections.labels": "[(D,)]",
    "detections.scores": "[(D,)]",
    "roi_heads.mask_features": "(D, C, 14, 14): what RoIAlign cuts out for the mask head. In training: S of them, the positive RoIs",
    "roi_heads.mask_hidden": "(D, C, 14, 14): after the mask head's convolutions; (D, C) with mask_head=\"mlp\". C4: (D, C, 7, 7)",
    "roi_heads.mask_logits": "(D, K, 28, 28), or (D, 1, 28, 28) with mask_loss=\"agnostic\". C4: 14 in the place of 28, and so below",
    "roi_heads.mask_probabilities": "(D, 28, 28): of each detection's class; in prediction only",
    "roi_heads.mask_targets": "(S, 28, 28): in training only",
    **{f"losses.{name}": "(): in training only" for name in
       ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")},
}

# Models with one map (C4, DC5, VGG) have no fpn.*, and record rpn.*.single in the place of rpn.*.p2 ...; VGG its five stages in the place of
# backbone.stem and backbone.layer*.
OTHER_NAMES = {
    **{f"backbone.conv{i + 1}": f"(N, C, H/{2 ** i}, W/{2 ** i}): VGG's stage {i + 1}, before its max-pool" for i in range(5)},
    "rpn.logits.single": "(N, A, h, w): objectness on the one map",
    "rpn.deltas.single": "(N, 4 A, h, w): deltas on the one map",
}


class Trace:
    """Names -> arrays (or lists of arrays, one an image), in the order in which the stages ran.

    A second pass writes over the first one's names, so take a new Trace for each. NAMES lists them all.

    What figures need besides: images and sizes, the images and their (h, w) in the network, without padding; class_names; labels, in
    training the classes of the sampled RoIs, an array an image. Each is None until a pass has recorded it.
    """

    def __init__(self):
        self.values = {}
        self.grad = Gradients()
        self.images = self.sizes = self.class_names = self.labels = None

    def __getitem__(self, name):
        if name not in self.values:
            raise KeyError(f"no stage named {name!r}; recorded: {', '.join(self.values) or 'nothing yet'}")
        return self.values[name]

    def show(self, name, image=0, n=16, gradient=False):
        """A matplotlib Figure of one stage: channels for feature maps, boxes over the image, masks, ...

        image: which one of the batch; n: how many channels or masks at most; gradient=True draws trace.grad[name]. KeyError for a name
        that is not recorded; the message says which are close to it.
        """
        from .inspect.figures import figure
        return figure(self, name, image, n, gradient)

    def stepper(self, names=None, image=0, gradient=False, interactive=None):
        """All stages, or those in `names`, one after the other: with buttons where ipywidgets are installed, otherwise a sheet of figures.
        interactive=False gives the sheet in any case, for a notebook that is read without a kernel."""
        from .inspect.stepper import stepper
        return stepper(self, names, image, gradient, interactive)

    def __contains__(self, name):
        return name in self.values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __str__(self):
        width = max(map(len, self.values), default=0)
        lines = [f"{name:<{width}}  {_describe(value)}{'  + gradient' if name in self.grad else ''}"
                 for name, value in self.values.items()]
        return "\n".join(lines)

    __repr__ = __str__


class Gradients(dict):
    """Name -> gradient, of a Trace; says what there is when asked for what there is not."""

    def __missing__(self, name):
        raise KeyError(f"no gradient named {name!r}; recorded by backward: {', '.join(self) or 'nothing yet'}")


def _describe(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_describe(v) for v in value) + "]"
    return f"{value.dtype}{tuple(value.shape)}"


def record(trace, name, value):
    """Called by the models at each stage boundary; trace may be None."""
    if trace is not None:
        trace.values[name] = devices.to_host(value, "trace")


def record_grad(trace, name, value):
    """Called by the models in the backward pass, under the name of the forward stage; trace may be None."""
    if trace is not None:
        trace.grad[name] = devices.to_host(value, "trace")


def record_input(trace, images, sizes, class_names):
    """Called by the models before the first stage; trace may be None."""
    if trace is not None:
        trace.images, trace.sizes, trace.class_names, trace.labels = images, sizes, class_names, None


def record_labels(trace, labels):
    """Called by `losses`: the classes of the sampled RoIs; trace may be None."""
    if trace is not None:
        trace.labels = labels
