"""Figures of the stages in a trace: what `trace.show(name)` returns.

Which picture suits a stage follows from its name: channels side by side for feature maps, boxes over the image, masks, bars.
"""

import difflib

import numpy as np

from .. import viz
from ..canvas import headline, image_panels, new_figure, title_line
from ..models.transform import IMAGENET_MEAN, IMAGENET_STD, resize_boxes
from ..ops.activation import sigmoid, softmax
from ..trace import NAMES, OTHER_NAMES

SHOWN_BOXES = 150
BOX_STAGES = {  # boxes -> their values, if there are any in the trace
    "rpn.proposals_before_nms": "rpn.scores_before_nms", "rpn.proposals": "rpn.proposal_scores", "detections.boxes": "detections.scores",
}


def figure(trace, name, image=0, n=16, gradient=False):
    """A figure of one stage.

    Parameters
    ----------
    trace : Trace
    name : str
        Of the stage, see NAMES in nprcnn/trace.py.
    image : int
        Which image of the batch.
    n : int
        How many channels, masks or RoIs at most.
    gradient : bool
        Draw trace.grad[name]: where the gradient is large.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    KeyError
        Nothing of that name was recorded; the message names those that are close.
    """
    recorded = trace.grad if gradient else trace.values
    if name not in recorded:
        raise KeyError(missing(name, recorded, gradient))
    value = recorded[name]
    title = f"{'gradient of ' if gradient else ''}{name}"
    if name.startswith("losses."):
        return losses(trace, title)
    if gradient:
        return gradient_figure(trace, name, value, image, n, title)
    if name == "transform.batch":
        return viz.draw_detections(pictures(trace)[image], title=f"{title}: {' x '.join(map(str, value.shape[1:]))}")
    if name == "rpn.anchors":
        return viz.draw_anchors(pictures(trace)[image], to_image(trace, value, image), title=title)
    if name in BOX_STAGES:
        return boxes(trace, name, image, title)
    if name == "roi_heads.levels":
        rois = to_image(trace, trace["rpn.proposals"][image], image)
        return viz.draw_rois_by_level(pictures(trace)[image], rois, value[image], title=title)
    if name.startswith("rpn.logits"):
        return objectness(value[image], title)
    if name in ("roi_heads.mask_probabilities", "roi_heads.mask_targets"):
        return masks(rows_of(trace, name, value, image)[:n], title)
    if name == "roi_heads.mask_logits":
        return mask_logits(trace, rows_of(trace, name, value, image), image, n, title)
    if isinstance(value, list):
        return numbers(value[image], title)
    if value.ndim == 4 and name.startswith(("backbone.", "fpn.", "rpn.")):
        return viz.draw_feature_maps(value[image], n, title=f"{title}: {len(value[image])} channels of {value.shape[2]} x {value.shape[3]}")
    if value.ndim == 4:
        return crops(rows_of(trace, name, value, image), n, title)
    return matrix(trace, value[image] if name.startswith("rpn.") else rows_of(trace, name, value, image), name, title)


def missing(name, recorded, gradient=False):
    """What to say when there is no such stage: what it could mean."""
    what = "gradient" if gradient else "stage"
    known = {**NAMES, **OTHER_NAMES}
    if not recorded:
        return f"no {what} named {name!r}; nothing is recorded yet: hand the trace to {'backward' if gradient else 'predict or losses'}"
    if name in known:
        return (f"no {what} named {name!r} was recorded, although there is one ({known[name]}): predict records some, losses others, "
                "backward the gradients")
    close = difflib.get_close_matches(name, recorded, 3, 0.5) + [other for other in recorded if name and name in other]
    if close:
        return f"no {what} named {name!r}; close to it: {', '.join(dict.fromkeys(close))}"
    return f"no {what} named {name!r}; recorded: {', '.join(recorded)}"


# ------------------------------------------------------------------------------------------------------------- images

def pictures(trace):
    """The images of the batch. A trace that another program filled has none: then the network's input is made visible again."""
    if trace.images is not None:
        return trace.images
    std, mean = (np.array(v)[:, None, None] for v in (IMAGENET_STD, IMAGENET_MEAN))
    return [np.clip(x * std + mean, 0, 1).transpose(1, 2, 0) for x in trace["transform.batch"]]


def to_image(trace, boxes, image):
    """Boxes in pixels of the network's input -> pixels of the picture."""
    if trace.images is None:
        return boxes
    return resize_boxes(np.asarray(boxes, np.float32), trace.sizes[image], trace.images[image].shape[:2])


def rows_of(trace, name, value, image):
    """The rows of one image, where the rows of all images stand one after the other."""
    if not name.startswith("roi_heads.mask"):
        counts = list(map(len, trace["rpn.proposals"]))
    elif trace.labels is not None:
        counts = [int((labels > 0).sum()) for labels in trace.labels]  # in training the positive RoIs
    else:
        counts = list(map(len, trace["detections.boxes"]))
    ends = np.cumsum(counts)
    return value[ends[image] - counts[image]:ends[image]]


# ------------------------------------------------------------------------------------------------------------- stages

def boxes(trace, name, image, title):
    """Boxes over the image, coloured by their value; detections with class and score."""
    picture, found = pictures(trace)[image], to_image(trace, trace[name][image], image)
    scores = BOX_STAGES[name]
    values = trace[scores][image] if scores in trace and len(trace[scores][image]) == len(found) else None
    if name == "detections.boxes":
        return viz.draw_detections(picture, found, trace["detections.labels"][image], values, class_names=trace.class_names,
                                   title=f"{title}: {len(found)}")
    shown = np.arange(len(found)) if values is None else np.argsort(-values, kind="stable")
    shown = shown[:SHOWN_BOXES]
    text = f"{title}: {len(found)} boxes" if len(shown) == len(found) else f"{title}: the best {len(shown)} of {len(found)} boxes"
    return viz.draw_boxes(picture, found[shown], None if values is None else values[shown], title=text)


def heat_panels(maps, names, title, low=None, high=None, cmap="viridis", side=None):
    """Maps (n, h, w) side by side on one scale, with a colour bar."""
    maps = np.asarray(maps)
    if maps.size == 0:
        return empty(f"{title}: none")
    low = float(maps.min()) if low is None else low
    high = max(float(maps.max()) if high is None else high, low + 1e-12)
    columns = min(len(maps), 4)
    picture, panels = image_panels(len(maps), maps.shape[2], maps.shape[1], columns=columns, right=64,
                                   side=side or max(620 // columns, 150))
    for ax, values, name in zip(panels, maps, names):
        drawn = ax.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        title_line(ax, name)
    frame, wide = panels[columns - 1].get_position(), picture.bbox.width
    picture.colorbar(drawn, cax=picture.add_axes((frame.x1 + 10 / wide, frame.y0, 12 / wide, frame.height))).ax.tick_params(labelsize=8)
    return headline(picture, title)


def empty(text):
    """A figure that says that there is nothing."""
    picture = new_figure(max(9 * len(text), 200), 50)
    picture.text(0.02, 0.4, text, fontsize=11)
    return picture


def objectness(logits, title):
    """(A, h, w): a heat map of the probability for each shape of anchor."""
    return heat_panels(sigmoid(logits), [f"anchor shape {k}" for k in range(len(logits))], f"{title}, as probabilities", 0, 1)


def masks(probabilities, title):
    return heat_panels(probabilities, [f"mask {k}" for k in range(len(probabilities))], title, 0, 1, "PuOr_r")


def mask_logits(trace, logits, image, n, title):
    """The mask of each RoI's class: the detected one, in training the true one."""
    labels = trace["detections.labels"][image] if trace.labels is None else trace.labels[image][trace.labels[image] > 0]
    labels = labels[:n]
    names = [trace.class_names[k] if trace.class_names else f"class {k}" for k in labels]
    channels = labels if logits.shape[1] > 1 else np.zeros_like(labels)
    return viz.draw_mask_logits(logits[np.arange(len(labels)), channels], names, n, title=f"{title}, of each RoI's class")


def crops(features, n, title):
    """RoIs (R, C, s, s): for the first n, the mean of |value| over the channels."""
    return heat_panels(np.abs(features[:n]).mean(axis=1), [f"RoI {k}" for k in range(len(features))],
                       f"{title}: mean of |value| over {features.shape[1]} channels")


def matrix(trace, values, name, title, signed=False):
    """A row an RoI. Class logits become probabilities, unless they are gradients (signed)."""
    if name == "roi_heads.class_logits" and not signed:
        values, title = softmax(values, axis=1), f"{title}, as probabilities (softmax)"
    if values.size == 0:
        return empty(f"{title}: none")
    if values.ndim == 1 or name.startswith("rpn."):  # a row an anchor: thousands of them
        return numbers(values, title)
    picture = new_figure(680, 340)
    ax = picture.add_axes((0.09, 0.14, 0.78, 0.74))
    low = min(float(values.min()), 0.0)
    limit = float(np.abs(values).max()) or 1.0
    drawn = ax.imshow(values, aspect="auto", interpolation="nearest", cmap="PuOr_r" if low < 0 else "viridis",
                      vmin=-limit if low < 0 else 0, vmax=limit)
    ax.set_xlabel("column", fontsize=9)
    ax.set_ylabel("RoI", fontsize=9)
    if name == "roi_heads.class_logits" and trace.class_names and len(trace.class_names) <= 12:
        ax.set_xticks(range(len(trace.class_names)), trace.class_names)
        ax.set_xlabel("class", fontsize=9)
    ax.tick_params(labelsize=8)
    picture.colorbar(drawn, cax=picture.add_axes((0.89, 0.14, 0.02, 0.74))).ax.tick_params(labelsize=8)
    title_line(ax, f"{title}: {' x '.join(map(str, values.shape))}")
    return picture


def numbers(values, title):
    """Many numbers: how often which value."""
    values = np.asarray(values).ravel()
    if values.size == 0:
        return empty(f"{title}: none")
    picture = new_figure(560, 280)
    ax = picture.add_axes((0.12, 0.17, 0.84, 0.7))
    ax.hist(values, bins=40, color="#0072B2")
    ax.set_yscale("log")
    ax.set_xlabel("value", fontsize=9)
    ax.set_ylabel("how many", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    title_line(ax, f"{title}: {values.size} numbers, {values.min():.3g} to {values.max():.3g}")
    return picture


def losses(trace, title):
    """All losses of the pass as bars."""
    named = {name.removeprefix("losses.loss_"): float(value) for name, value in trace.values.items() if name.startswith("losses.")}
    picture = new_figure(560, 240)
    ax = picture.add_axes((0.2, 0.2, 0.72, 0.66))
    ax.barh(list(named), list(named.values()), color="#0072B2")
    ax.invert_yaxis()
    for k, value in enumerate(named.values()):
        ax.text(value, k, f" {value:.4f}", va="center", fontsize=9)
    ax.set_xlabel("loss", fontsize=9)
    ax.set_xlim(0, 1.2 * max(named.values(), default=0) or 1)
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    title_line(ax, f"the losses; their sum is {sum(named.values()):.4f}")
    return picture


def gradient_figure(trace, name, gradient, image, n, title):
    """Where |gradient| is large: summed over the channels of a map; for each RoI; or as a matrix."""
    of_map = name.startswith(("backbone.", "fpn.", "rpn."))
    gradient = gradient[image:image + 1] if of_map else rows_of(trace, name, gradient, image)
    title = f"{title}: norm {np.linalg.norm(gradient.ravel()):.3g}"
    if not np.any(gradient):
        return empty(f"{title}, all numbers are 0")
    if gradient.ndim == 4 and of_map:
        return heat_panels(np.abs(gradient).sum(axis=1), ["|gradient|, summed over the channels"], title, 0, None, "Oranges", 420)
    if gradient.ndim == 4:
        size = np.abs(gradient[:n]).sum(axis=1)
        return heat_panels(size, [f"RoI {k}" for k in range(len(size))], f"{title} (|gradient|, all channels)", 0, None, "Oranges")
    return matrix(trace, gradient[0] if of_map else gradient, name, title, signed=True)
