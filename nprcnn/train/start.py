"""What a training starts from: a model, weights from elsewhere, and the parts that stay as they are."""

import json

from ..errors import ConfigError, WeightsError
from ..weights import load_backbone, read_weights
from ..weights.detectron2 import from_detectron2, is_detectron2
from ..weights.files import load_state
from ..weights.report import current_names, frozen_norms
from .checkpoint import VELOCITY

# What has a row a class: of another set of classes these layers learn from the beginning.
BY_CLASS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")
MASKS = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")  # which Faster R-CNN has not
PARTS = {"backbone": ("backbone.",), "fpn": ("backbone.fpn.",), "rpn": ("rpn.",), "mask_head": MASKS,
         "box_head": ("roi_heads.box_head.", "roi_heads.box_predictor.")}


def model_metadata(config):
    """{"model": builder and arguments in JSON}: written beside weights, it says which model they are of, with all its settings."""
    return {"model": json.dumps(config["model"])}


def start_from(model, path):
    """Load the weights of a whole detector, or those of a backbone alone.

    Of a detector with other classes, the layers that have a row a class keep their initial values; and the mask branch, if the file is
    of Faster R-CNN. A checkpoint of another training will do, too.

    Returns
    -------
    list of sentences: what was loaded and what was not

    Raises
    ------
    WeightsError
        The file cannot be read, or is of another model.
    """
    state = {name: a for name, a in read_weights(path).items() if not name.startswith(VELOCITY)}
    names = from_detectron2(state) if is_detectron2(state) else current_names(state)
    if "rpn.head.cls_logits.weight" not in names:
        loaded = load_backbone(model, path)
        return [f"{path}: a backbone; {len(loaded)} tensors loaded, the other layers keep their initial values"]
    report = load_state(model, state, path, strict=False)
    problems = [f"{name} has shape {theirs}, the model wants {own}" for name, theirs, own in report.shapes if not name.startswith(BY_CLASS)]
    problems += [f"{name} is missing" for name in report.missing if not name.startswith(MASKS)]
    problems += [f"{name} is left over" for name in report.left_over if not name.startswith(MASKS)]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(f"{path}: the weights are those of another model: {'; '.join(problems[:3])}{more}. Choose --model, and --set, "
                           "as they were.")
    notes = [f"{path}: {len(report.matched)} tensors loaded", *report.notes]
    if report.shapes:
        notes.append(f"these have other classes, and keep their initial values: {', '.join(name for name, *_ in report.shapes)}")
    if report.missing:
        notes.append(f"the file has no mask branch: {len(report.missing)} tensors keep their initial values")
    return notes


def norm_eps(model):
    """{"norm_eps": 0.0} where loading set the eps of FrozenBatchNorm (see nprcnn.weights.load_weights), else {}: a state has no eps."""
    return {"norm_eps": 0.0} if any(norm.eps == 0 for norm in frozen_norms(model)) else {}


def freeze(model, names):
    """Let parts of the model stay as they are.

    names: "stem", "layer1", ... (of VGG "conv1", ...), "fpn", "rpn", "box_head", "mask_head", "backbone" (with its pyramid). The lowest
    stages of the backbone in a row cost no backward pass; for others gradients are computed and thrown away. Batch norm in a frozen part
    still uses each batch's statistics and moves its running ones, as in torchvision; FrozenBatchNorm has constants.

    ConfigError for another name.
    """
    body = model.backbone.body
    stages = list(body.stages) if isinstance(body.stages[0], str) else [f"conv{i + 1}" for i in range(len(body.stages))]
    for name in names:
        if name not in stages and name not in PARTS:
            raise ConfigError(f"there is no part {name!r} to freeze; the parts are {', '.join([*stages, *PARTS])}")
    chosen = [stage in names or "backbone" in names for stage in stages]
    body.freeze((chosen + [False]).index(False))
    for stage, is_chosen in zip(stages, chosen):
        for parameter in _stage_parameters(body, stage) if is_chosen else ():
            parameter.trainable = False
    prefixes = tuple(prefix for name in names for prefix in PARTS.get(name, ()))
    for name, parameter in model.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.trainable = False


def _stage_parameters(body, stage):
    if isinstance(body.stages[0], str):
        prefixes = ("conv1.", "bn1.") if stage == "stem" else (stage + ".",)
        return [p for name, p in body.named_parameters() if name.startswith(prefixes)]
    return [p for block in body.stages[int(stage[4:]) - 1] for layer in block if layer for p in layer.parameters()]
