"""Which model does a state dict belong to? Its names and shapes tell almost everything.

What they do not tell: sizes and ratios of the anchors, image sizes, thresholds, and where a stride is. These come from the builder's
defaults, which are those of the system that wrote the file.
"""

import re
from typing import NamedTuple

from ..errors import WeightsError
from .detectron2 import from_detectron2, is_detectron2
from .report import current_names

# (bottleneck blocks?, blocks a stage) -> depth. The numbers are models.resnet.DEPTHS's; a test compares them.
DEPTHS = {(False, (2, 2, 2, 2)): 18, (False, (3, 4, 6, 3)): 34, (True, (3, 4, 6, 3)): 50, (True, (3, 4, 23, 3)): 101,
          (True, (3, 8, 36, 3)): 152}
VGG16 = [2, 2, 3, 3, 3]
VGG_NAME, RES5 = "backbone.body.features.0.weight", "roi_heads.box_head.layer4"
DO_IT_YOURSELF = "build the model yourself and give it to nprcnn.load_weights"


class Recognised(NamedTuple):
    """A model that a state dict fits: getattr(nprcnn.models.builders, builder)(**arguments). Shows as a sentence."""

    builder: str
    arguments: dict
    about: str

    def __str__(self):
        return self.about


def recognise(state):
    """The model that a state dict belongs to.

    Parameters
    ----------
    state : {name: array}
        Under torchvision's names (old or new) or Detectron2's, as nprcnn.weights.read_weights gives it.

    Returns
    -------
    Recognised

    Raises
    ------
    WeightsError
        It is no Faster or Mask R-CNN that can be built here; the message says what it seems to be.
    """
    detectron2 = is_detectron2(state)
    _refuse_others(state)
    state = from_detectron2(state) if detectron2 else current_names(state)
    shapes = {name: tuple(array.shape) for name, array in state.items()}
    first = VGG_NAME if VGG_NAME in shapes else "backbone.body.conv1.weight"
    for part, name in (("backbone", first), ("region proposal network", "rpn.head.cls_logits.weight"),
                       ("box predictor", "roi_heads.box_predictor.cls_score.weight")):
        if name not in shapes:
            raise WeightsError(f"this is no whole detector: it has no {part} ({name}); {_named(state)}")
    if any(len(shape) == 3 or len(shape) > 4 for shape in shapes.values()):
        raise WeightsError("this is no detector that can be built here: it holds arrays of 3 axes, or of more than 4")

    body = _vgg(shapes) if first == VGG_NAME else _resnet(shapes)
    kind = "c4" if RES5 + ".0.conv1.weight" in shapes else "fpn" if "backbone.fpn.inner_blocks.0.0.weight" in shapes else "single"
    heads = {"num_classes": shapes["roi_heads.box_predictor.cls_score.weight"][0], **_heads(shapes, kind)}
    if detectron2:
        heads["conventions"] = "detectron2"
    builder, arguments = _builder(body, kind, heads)
    _check_anchors(shapes, {"maskrcnn_vgg16": 9, "maskrcnn_tiny": 3 if kind == "fpn" else 12}.get(builder, 3 if kind == "fpn" else 15))

    name = "Faster R-CNN" if heads.get("masks") is False else "Mask R-CNN"
    form = {"fpn": " with FPN", "c4": " in the C4 form", "single": "" if "VGG" in body.text else " in the DC5 form"}[kind]
    notes = [f"{heads['num_classes']} classes with the background"]
    notes += ["the heads of torchvision's v2"] if "box_convs" in heads else []
    notes += ["Detectron2's conventions"] if detectron2 else []
    return Recognised(builder, arguments, f"{name}, {body.text}{form}, {', '.join(notes)}")


class Body(NamedTuple):
    """The backbone. depth: of one of the paper's ResNets, else None. arguments: what a builder needs that is not for this depth."""

    text: str
    depth: int | None
    bottleneck: bool
    batch_norm: bool | None  # None: the file does not tell
    arguments: dict


def _resnet(shapes):
    prefixes = ["backbone.body.layer1", "backbone.body.layer2", "backbone.body.layer3",
                RES5 if RES5 + ".0.conv1.weight" in shapes else "backbone.body.layer4"]
    blocks = tuple(_length(shapes, prefix) for prefix in prefixes)
    if 0 in blocks:
        raise WeightsError(f"the backbone is no ResNet that can be built here: it has {blocks} blocks in layer1 .. layer4")
    width = shapes["backbone.body.conv1.weight"][0]
    bottleneck = "backbone.body.layer1.0.conv3.weight" in shapes
    conv1, conv2 = (_need(shapes, f"backbone.body.layer1.0.conv{n}.weight") for n in (1, 2))
    if conv1[0] != width or conv2[1:2] != conv1[:1]:
        raise WeightsError("the backbone's convolutions are wider, or in groups (Wide ResNet, ResNeXt); only plain ResNets can be built "
                           "here")
    depth = DEPTHS.get((bottleneck, blocks)) if width == 64 else None
    text = f"ResNet-{depth}" if depth else f"a ResNet of {'-'.join(map(str, blocks))} blocks and {width} channels"
    counted = any(name.endswith("num_batches_tracked") for name in shapes if name.startswith("backbone.body."))
    return Body(text, depth, bottleneck, True if counted else None, {"width": width, "blocks": blocks})


def _vgg(shapes):
    """VGG: features.0, .2, (pool) .5, ...; with norms features.0, .3, (pool) .7, ..."""
    pattern = re.compile(r"backbone\.body\.features\.(\d{1,3})\.weight")
    convs = sorted(int(m[1]) for m in map(pattern.fullmatch, shapes) if m and len(shapes[m[0]]) == 4)
    norm = "backbone.body.features.1.running_var" in shapes
    gaps = [after - before for before, after in zip(convs, convs[1:])]
    stages = [1]
    for gap in gaps:
        if gap > (3 if norm else 2):  # a max-pool lies between
            stages.append(1)
        else:
            stages[-1] += 1
    if stages != VGG16:
        raise WeightsError(f"the backbone is no VGG-16: it has {stages} convolutions in its stages; only VGG-16 and ResNets can be "
                           "built here")
    width = shapes[VGG_NAME][0]
    norms = {"norm": "frozen"} if norm else {}
    if any(name.endswith("num_batches_tracked") for name in shapes if name.startswith("backbone.body.")):
        norms = {"norm": "batch"}
    return Body("VGG-16" if width == 64 else f"a VGG-16 of {width} channels", None, False, None, {"width": width, **norms})


def _heads(shapes, kind):
    """What the names and shapes behind the backbone tell, as arguments of a builder."""
    found = {}
    if kind == "fpn":
        found["fpn_channels"] = shapes["backbone.fpn.inner_blocks.0.0.weight"][0]
    if _length(shapes, "rpn.head.conv") > 1:
        found["rpn_convs"] = _length(shapes, "rpn.head.conv")
    if "roi_heads.box_head.0.0.weight" in shapes:
        count = sum(1 for name in shapes if re.fullmatch(r"roi_heads\.box_head\.\d+\.0\.weight", name))
        found["box_convs"] = tuple(_need(shapes, f"roi_heads.box_head.{i}.0.weight")[0] for i in range(count))
        found["box_hidden"] = _need(shapes, f"roi_heads.box_head.{count + 1}.weight")[0]
    elif kind != "c4":
        found["box_hidden"] = _need(shapes, "roi_heads.box_head.fc6.weight")[0]
    if any(f"{place}.0.1.running_var" in shapes for place in ("backbone.fpn.inner_blocks", "roi_heads.mask_head", "roi_heads.box_head")):
        found["head_norm"] = "batch"
    if "roi_heads.mask_predictor.mask_logits.weight" in shapes:
        return {**found, "mask_head": "mlp"}
    if "roi_heads.mask_predictor.mask_fcn_logits.weight" not in shapes:
        return {**found, "masks": False}
    # C4 has no mask head of its own, only the transposed convolution
    count = _length(shapes, "roi_heads.mask_head")
    convs = tuple(_need(shapes, f"roi_heads.mask_head.{i}.0.weight")[0] for i in range(count))
    found["mask_channels"] = convs or (_need(shapes, "roi_heads.mask_predictor.conv5_mask.weight")[1],)
    if shapes["roi_heads.mask_predictor.mask_fcn_logits.weight"][0] == 1 and shapes["roi_heads.box_predictor.cls_score.weight"][0] > 1:
        found["mask_loss"] = "agnostic"
    return found


def _builder(body, kind, heads):
    """The builder's name and its arguments."""
    if "VGG" in body.text:
        return "maskrcnn_vgg16", {**heads, **body.arguments}
    if body.depth is None:
        if body.bottleneck:
            raise WeightsError(f"the backbone is {body.text}, no ResNet of the paper; {DO_IT_YOURSELF}")
        return "maskrcnn_tiny", {**heads, **body.arguments, **({} if kind == "fpn" else {"kind": kind})}
    if body.batch_norm and "box_convs" not in heads:
        heads = {**heads, "norm": "batch"}
    if kind == "c4":
        return "maskrcnn_resnet_c4", {"depth": body.depth, **heads}
    if kind == "single":
        if body.depth != 50:
            raise WeightsError(f"DC5 with {body.text} cannot be built here, only with ResNet-50; {DO_IT_YOURSELF}")
        return "maskrcnn_resnet50_dc5", heads
    v2 = heads.get("box_convs") == (256,) * 4 and heads.get("rpn_convs") == 2 and heads.get("head_norm") == "batch"
    if body.depth == 50 and v2:
        return f"{'faster' if heads.get('masks') is False else 'mask'}rcnn_resnet50_fpn_v2", heads
    if body.depth == 50:
        return "fasterrcnn_resnet50_fpn" if heads.get("masks") is False else "maskrcnn_resnet50_fpn", heads
    return "maskrcnn_resnet_fpn", {"depth": body.depth, **heads}


def _need(shapes, name):
    if name not in shapes:
        raise WeightsError(f"this is no whole detector: {name} is missing")
    return shapes[name]


def _check_anchors(shapes, usual):
    count = shapes["rpn.head.cls_logits.weight"][0]
    if count != usual:
        raise WeightsError(f"the region proposal network has {count} anchors a cell where {usual} are usual, and the file does not tell "
                           f"their sizes; {DO_IT_YOURSELF}")


def _length(shapes, prefix):
    """How many entries a list of layers has: 1 + the largest number after the prefix."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,3})\.")
    return 1 + max((int(m[1]) for m in map(pattern.match, shapes) if m), default=-1)


# ---- what else it may be: (a name that only such files have, what it is, what to do) ----

CLASSIFIER = "It finds no objects; give a detector's file. (To train a detector that begins with it: nprcnn.load_backbone)"
OTHERS = (
    (r"layer1\.0\.conv1\.weight", "a ResNet that classifies whole images, without a detector", CLASSIFIER),
    (r"features\.0\.(0\.)?weight", "a network that classifies whole images (VGG, MobileNet or the like), without a detector", CLASSIFIER),
    (r"conv1_w|stem\.conv1\.weight", "a ResNet of ImageNet from Detectron2's model zoo, without a detector",
     "It finds no objects; give a detector's file, a model_final_....pkl"),
    (r"(roi_heads\.)?keypoint_head\..*|roi_heads\.keypoint_.*", "a Keypoint R-CNN", "Only Faster and Mask R-CNN can be built here"),
    (r"head\.(classification_head|cls_subnet|cls_score)\..*", "a one-stage detector (RetinaNet, FCOS or the like)",
     "Only Faster and Mask R-CNN can be built here"),
    (r"transformer\..*|(detr|model)\.transformer\..*", "a transformer (DETR or the like)", "Only Faster and Mask R-CNN can be built here"),
    (r"roi_heads\.box_(head|predictor)\.[0-2]\.(fc1|cls_score)\..*", "a Cascade R-CNN", "Only Faster and Mask R-CNN can be built here"),
    (r"sem_seg_head\..*", "a panoptic model", f"For its half that finds instances, {DO_IT_YOURSELF} with strict=False"),
    (r"rpn_head\.rpn_conv\..*", "a detector of MMDetection, whose names are not known here",
     "Rename them to torchvision's, or take torchvision's or Detectron2's file"),
    (r"backbone\.body\.0\..*", "a detector with another backbone (MobileNet or the like)", "Only ResNets and VGG-16 can be built here"),
)


def _refuse_others(state):
    for pattern, what, advice in OTHERS:
        pattern = re.compile(pattern)
        if any(pattern.fullmatch(name) for name in state):
            raise WeightsError(f"this is {what}. {advice}")


def _named(state):
    names = list(state)[:3]
    return f"its {len(state)} arrays begin with {', '.join(names)}" if names else "it is empty"
