"""What a training starts from: a model, weights from elsewhere, and the parts that stay as they are."""

import json

from .. import devices
from ..data.coco_names import COCO_81, COCO_91, say_nothing, some
from ..errors import ConfigError, WeightsError
from ..weights import load_backbone, read_weights
from ..weights.detectron2 import from_detectron2, is_detectron2
from ..weights.files import load_state, stated_class_names
from ..weights.report import current_names, frozen_norms
from .checkpoint import VELOCITY, class_names_of_checkpoint

# What has a row a class, or four (a box), or one a pixel of its mask: rows are taken over by the names of the classes.
BY_CLASS = ("roi_heads.box_predictor.cls_score.", "roi_heads.box_predictor.bbox_pred.", "roi_heads.mask_predictor.mask_fcn_logits.",
            "roi_heads.mask_predictor.mask_logits.")
CLASS_BIAS = "roi_heads.box_predictor.cls_score.bias"  # of the shape (classes,)
MASKS = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")  # which Faster R-CNN has not
PARTS = {"backbone": ("backbone.",), "fpn": ("backbone.fpn.",), "rpn": ("rpn.",), "mask_head": MASKS,
         "box_head": ("roi_heads.box_head.", "roi_heads.box_predictor.")}


def model_metadata(config):
    """{"model": builder and arguments in JSON}: written beside weights, it says which model they are of, with all its settings."""
    return {"model": json.dumps(config["model"])}


def start_from(model, path):
    """Load the weights of a whole detector, or those of a backbone alone.

    The last layers have a row a class. Rows of classes that the file and the model both have, by their names, are taken over; the others
    keep their initial values. If there is no such class, that of the background does, too: it was trained against rows that are gone.
    Where the file or the model has no names, rows are taken over by number if there are as many, else not at all. A file of 91 or 81
    classes without names is taken for COCO's.

    The mask branch keeps its initial values if the file is of Faster R-CNN. A checkpoint of another training will do, too.

    Returns
    -------
    list of sentences: what was loaded and what was not

    Raises
    ------
    WeightsError
        The file cannot be read, or is of another model.
    """
    state = {name: a for name, a in read_weights(path).items() if not name.startswith(VELOCITY)}
    state = from_detectron2(state) if is_detectron2(state) else current_names(state)
    if "rpn.head.cls_logits.weight" not in state:
        loaded = load_backbone(model, path)
        return [f"{path}: a backbone; {len(loaded)} tensors loaded, the other layers keep their initial values"]
    rows, class_note = match_rows(class_names_in(path, state), state.get(CLASS_BIAS), model)
    by_class = {} if rows is None else take_rows(model, state, rows)
    report = load_state(model, {**state, **by_class}, path, strict=False)
    problems = [f"{name} has shape {theirs}, the model wants {own}" for name, theirs, own in report.shapes if not name.startswith(BY_CLASS)]
    problems += [f"{name} is missing" for name in report.missing if not name.startswith(MASKS)]
    problems += [f"{name} is left over" for name in report.left_over if not name.startswith(MASKS)]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(f"{path}: the weights are those of another model: {'; '.join(problems[:3])}{more}. Choose --model, and --set, "
                           "as they were.")
    loaded = len(report.matched) - (0 if rows else len(by_class))
    notes = [f"{path}: {loaded} tensors loaded", *report.notes, *([class_note] if class_note else [])]
    if report.shapes:
        notes.append(f"these have other classes, and keep their initial values: {', '.join(name for name, *_ in report.shapes)}")
    if report.missing:
        notes.append(f"the file has no mask branch: {len(report.missing)} tensors keep their initial values")
    return notes


def class_names_in(path, state):
    """The class names of a file of weights, the background first; COCO's for 91 and 81 classes without names; None if it has none."""
    names = stated_class_names(path) or class_names_of_checkpoint(path)
    count = len(state[CLASS_BIAS]) if CLASS_BIAS in state else None
    if names is None:
        return {len(COCO_91): COCO_91, len(COCO_81): COCO_81}.get(count)
    if len(names) != count:
        raise WeightsError(f"{path}: its metadata names {len(names)} classes, its layers have {count}; the file is damaged")
    return None if say_nothing(names) else names


def match_rows(theirs, class_bias, model):
    """Which row of the file each class of the model gets.

    Parameters
    ----------
    theirs : tuple of class names of the file, or None
    class_bias : (K,) of the file, or None if it has no box head
    model : MaskRCNN

    Returns
    -------
    {row of the model: row of the file}, or None: as they are, by number
    A sentence about it, or None where there is nothing to say
    """
    own = model.class_names and tuple(model.class_names)
    if class_bias is None or theirs == own:
        return None, None
    if theirs is None or own is None or say_nothing(own):
        if len(class_bias) != model.num_classes:
            return None, None  # report.shapes tells
        who = "the file" if theirs is None else "the model"
        return None, f"{who} has no names of classes: their rows are taken over by number"
    place = {name: k for k, name in enumerate(theirs) if k > 0 and theirs.count(name) == 1}
    rows = {k: place[name] for k, name in enumerate(own) if k > 0 and name in place}
    fresh = [name for name in own[1:] if name not in place]
    if not rows:
        return {}, (f"none of the model's classes ({some(own[1:])}) is in the file ({some(theirs[1:])}): the layers that have a row "
                    "a class keep their initial values")
    note = f"rows of these classes are taken over by their names: {some([own[k] for k in rows], 8)}"
    return {0: 0, **rows}, note + (f"; these begin anew: {some(fresh, 8)}" if fresh else "")


def take_rows(model, state, rows):
    """{name: array} of the layers with rows for classes: the model's initial values, and those rows of the file in them.

    A layer of another form (one mask for all classes) is left out.
    """
    own_state, result = model.state_dict(), {}
    for name, array in state.items():
        own = own_state.get(name)
        if own is None or not name.startswith(BY_CLASS) or (name.startswith(MASKS) and model.mask_loss == "agnostic"):
            continue
        theirs = array.reshape(len(state[CLASS_BIAS]), -1) if len(array) % len(state[CLASS_BIAS]) == 0 else None
        own = devices.to_host(own, name)
        mixed = own.reshape(model.num_classes, -1).copy()
        if theirs is not None and theirs.shape[1] == mixed.shape[1]:
            mixed[list(rows.keys())] = theirs[list(rows.values())]
            result[name] = mixed.reshape(own.shape)
    return result


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
