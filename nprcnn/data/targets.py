"""Targets: how they are made, and their check before training: better one clear sentence here than a NaN three stages later."""

import numpy as np

from ..errors import DataError
from .outlines import mask_box


def check_target(image_shape, target, num_classes, index, needs_masks=True):
    """Raise DataError if a training target cannot be used. Nothing is modified.

    Parameters
    ----------
    image_shape : (height, width)
    target : dict
        "boxes" (n, 4) float: x1, y1, x2, y2 in pixels, inside the image, x2 > x1 and y2 > y1. "labels" (n,) integers
        in 1 to num_classes - 1 (0 is the background). "masks" (n, height, width) of 0 and 1, or bool. n may be 0.
        "iscrowd" (n,), if it is there, all 0: a model is not trained on crowds (see drop_crowds).
    num_classes : int
        The background included.
    index : int
        Which target of the batch: the message names it.
    needs_masks : bool
        False: masks may be missing (a detector of boxes).
    """
    where = f"target {index}"
    if not isinstance(target, dict):
        raise DataError(f"{where} is a {type(target).__name__}; expected a dict with boxes, labels and masks")
    for key in ("boxes", "labels") + (("masks",) if needs_masks else ()):
        if target.get(key) is None:
            raise DataError(f"{where} has no {key!r} (it has {', '.join(map(repr, target)) or 'nothing'}); add them"
                            + (", or train a model without a mask branch" if key == "masks" else ""))
    height, width = image_shape
    _check_boxes(target["boxes"], height, width, where)
    count = len(target["boxes"])
    _check_labels(target["labels"], count, num_classes, where)
    if target.get("masks") is not None:
        _check_masks(target["masks"], count, height, width, where)
    if target.get("iscrowd") is not None:
        _check_crowds(target["iscrowd"], count, where)


def _check_boxes(boxes, height, width, where):
    _check_array(boxes, "boxes", where)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: boxes have the shape {boxes.shape}; expected (n, 4), x1 y1 x2 y2 a row "
                        "((0, 4) for an image with no objects)")
    if not np.issubdtype(boxes.dtype, np.floating):
        raise DataError(f"{where}: boxes are of type {boxes.dtype}; expected floats: boxes.astype(np.float32)")
    x1, y1, x2, y2 = boxes.T
    _refuse(~np.isfinite(boxes).all(axis=1), boxes, "box", where, "every number must be finite")
    _refuse((x2 <= x1) | (y2 <= y1), boxes, "box", where,
            "it has no area; a row is x1, y1, x2, y2 with x2 > x1 and y2 > y1 (not x, y, width, height); "
            "drop or mend it")
    _refuse((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height), boxes, "box", where,
            f"it leaves the image, which is {width} wide and {height} high; clip it (nprcnn.ops.boxes.clip_boxes)")


def _check_labels(labels, count, num_classes, where):
    _check_array(labels, "labels", where)
    if labels.shape != (count,):
        raise DataError(f"{where}: labels have the shape {labels.shape}; expected ({count},), one for each box")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels are of type {labels.dtype}; expected integers: labels.astype(np.int64)")
    _refuse((labels < 1) | (labels >= num_classes), labels, "label", where,
            f"the model has {num_classes} classes, so labels go from 1 to {num_classes - 1} (0 is the background)")


def _check_masks(masks, count, height, width, where):
    _check_array(masks, "masks", where)
    if masks.shape != (count, height, width):
        raise DataError(f"{where}: masks have the shape {masks.shape}; expected {(count, height, width)}, one of the "
                        f"image's size for each of the {count} boxes")
    if masks.dtype == bool:
        return
    if masks.dtype.kind not in "uif":
        raise DataError(f"{where}: masks are of type {masks.dtype}; expected uint8 or bool")
    if masks.dtype == np.uint8:  # the usual case, without a temporary array of the masks' size
        wrong = masks.max(axis=(1, 2), initial=0) > 1
    else:
        wrong = ~((masks == 0) | (masks == 1)).all(axis=(1, 2))
    if wrong.any():
        i = int(wrong.argmax())
        value = masks[i][(masks[i] != 0) & (masks[i] != 1)][0]
        raise DataError(f"{where}: mask {i} holds the value {value}; masks are 0 or 1: (masks > 0).astype(np.uint8)")


def _check_crowds(iscrowd, count, where):
    _check_array(iscrowd, "iscrowd", where)
    if iscrowd.shape != (count,):
        raise DataError(f"{where}: iscrowd has the shape {iscrowd.shape}; expected ({count},), one for each box")
    _refuse(iscrowd != 0, iscrowd, "iscrowd", where,
            "a model is not trained on crowds; nprcnn.data.drop_crowds(target) leaves them out")


def _check_array(value, key, where):
    if not isinstance(value, np.ndarray):
        raise DataError(f"{where}: {key} are a {type(value).__name__}; expected an array: np.array({key})")


def _refuse(wrong, rows, name, where, reason):
    """Raise for the first row where `wrong` holds."""
    if wrong.any():
        i = int(wrong.argmax())
        value = "(" + ", ".join(f"{v:.6g}" for v in rows[i]) + ")" if rows.ndim == 2 else rows[i]
        more = f" ({int(wrong.sum()) - 1} more like it)" if wrong.sum() > 1 else ""
        raise DataError(f"{where}: {name} {i} is {value}: {reason}{more}")


def make_target(boxes, labels, masks, image_id, iscrowd=None):
    """A target of the right types.

    Parameters
    ----------
    boxes : (n, 4), or a list of n boxes
    labels : (n,), or a list
    masks : (n, H, W) uint8; None where there are boxes only
    image_id : int
    iscrowd : (n,), or a list; None where the format knows no crowds
    """
    target = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": np.array(labels, np.int64)}
    if masks is not None:
        target["masks"] = masks
    target["image_id"] = image_id
    if iscrowd is not None:
        target["iscrowd"] = np.array(iscrowd, np.int64)
    return target


def target_from_masks(masks, labels, image_id):
    """A target whose boxes are tight around the masks, x2 = last column + 1.

    Parameters
    ----------
    masks : (n, H, W) of 0 and 1, or bool; of an image without objects (0, H, W)
    labels : (n,) integers, 1 to K - 1
    image_id : int

    Raises
    ------
    DataError
        A mask is empty, or there are not as many labels as masks.
    """
    masks = np.asarray(masks).astype(np.uint8)
    if masks.shape == (0,) and not len(labels):
        raise DataError(f"image {image_id} has no objects, and [] does not say how large the image is: give masks of the shape "
                        "(0, height, width), np.zeros((0, *image.shape[:2]), np.uint8)")
    if masks.ndim != 3 or len(labels) != len(masks):
        raise DataError(f"image {image_id}: masks of the shape {masks.shape} and {len(labels)} labels; (n, H, W) and n are needed")
    boxes = [mask_box(mask) for mask in masks]
    if None in boxes:
        raise DataError(f"image {image_id}: mask {boxes.index(None)} is empty; leave the object out")
    return make_target(boxes, labels, masks, image_id)


def drop_crowds(target):
    """The target without crowds (rows with iscrowd 1) and without the key "iscrowd": what a model is trained on.

    A crowd is a region of many objects that nobody told apart (Lin et al. 2014, sec. 4.3): no example of an object, and no background
    either. torchvision and Detectron leave it out in training; COCO's evaluation passes over detections inside it.
    """
    if "iscrowd" not in target:
        return target
    keep = np.asarray(target["iscrowd"]) == 0
    rows = {"boxes", "labels", "masks"}
    return {key: value[keep] if key in rows else value for key, value in target.items() if key != "iscrowd"}
