"""Boxes: area, IoU, clipping, filtering, and the coder between boxes and deltas. Nothing here has a gradient.

A box is (x1, y1, x2, y2): continuous coordinates in pixels, x2 - x1 is the width (no +1).
"""

import math

import numpy as np

MAX_LOG_SCALE = math.log(1000.0 / 16)


def _check_boxes(boxes, name, ndim=None):
    if boxes.ndim == 0 or boxes.shape[-1] != 4 or (ndim is not None and boxes.ndim != ndim):
        wanted = "(..., 4)" if ndim is None else "(N, 4)"
        raise ValueError(f"{name} must have shape {wanted}, got {boxes.shape}")
    if boxes.dtype.kind != "f":
        raise ValueError(f"{name} must be floating point, got {boxes.dtype}")


def box_area(boxes):
    """Area of each box.

    Parameters
    ----------
    boxes : (..., 4) array, pixels

    Returns
    -------
    (...) array, square pixels; negative if one side is negative.
    """
    _check_boxes(boxes, "boxes")
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(a, b):
    """Intersection over union of every box of `a` with every box of `b`.

    Parameters
    ----------
    a : (Na, 4) array
    b : (Nb, 4) array

    Returns
    -------
    (Na, Nb) array in [0, 1], of the inputs' dtype. Two boxes without any area have IoU 0.

    Notes
    -----
    The RPN finds ties for the best anchor by exact equality, so the order of the operations is part of the
    result: it is torchvision's, inter / ((area_a + area_b) - inter), each step rounded to the input's dtype.
    """
    _check_boxes(a, "a", ndim=2)
    _check_boxes(b, "b", ndim=2)
    # One (Na, Nb) array a coordinate: reductions over a last axis of length 2 would be several times slower.
    width = np.minimum(a[:, None, 2], b[None, :, 2])
    width -= np.maximum(a[:, None, 0], b[None, :, 0])
    height = np.minimum(a[:, None, 3], b[None, :, 3])
    height -= np.maximum(a[:, None, 1], b[None, :, 1])
    inter = np.maximum(width, 0, out=width)
    inter *= np.maximum(height, 0, out=height)
    union = box_area(a)[:, None] + box_area(b)[None, :]
    union -= inter
    union[union == 0] = 1
    inter /= union
    return inter


def clip_boxes(boxes, size):
    """Boxes cut off at the border of an image.

    Parameters
    ----------
    boxes : (..., 4) array, pixels
    size : (height, width) of the image

    Returns
    -------
    (..., 4) array: x in [0, width], y in [0, height].
    """
    _check_boxes(boxes, "boxes")
    height, width = float(size[0]), float(size[1])
    clipped = np.empty_like(boxes)
    clipped[..., 0::2] = np.clip(boxes[..., 0::2], 0, width)
    clipped[..., 1::2] = np.clip(boxes[..., 1::2], 0, height)
    return clipped


def remove_small_boxes(boxes, min_size):
    """Indices of the boxes whose sides are both at least `min_size`.

    Parameters
    ----------
    boxes : (N, 4) array, pixels
    min_size : float, pixels

    Returns
    -------
    (K,) int64 array of indices, ascending.
    """
    _check_boxes(boxes, "boxes", ndim=2)
    min_size = float(min_size)
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return np.flatnonzero((widths >= min_size) & (heights >= min_size))


def _centre_and_side(boxes):
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height


def encode_boxes(targets, anchors, weights=(1.0, 1.0, 1.0, 1.0)):
    """Deltas (dx, dy, dw, dh) that lead from each anchor to its target box; `decode_boxes` undoes it.

    With (x, y) the centre: dx = wx (x_target - x_anchor) / w_anchor, dw = ww log(w_target / w_anchor), and the
    same for y and h.

    Parameters
    ----------
    targets : (..., 4) array, pixels; every side positive
    anchors : (..., 4) array, pixels, broadcast against `targets`; every side positive
    weights : (wx, wy, ww, wh), (1, 1, 1, 1) in the RPN and (10, 10, 5, 5) in the box head

    Returns
    -------
    (..., 4) array of `targets`' dtype, without unit.

    References
    ----------
    R-CNN (arXiv 1311.2524), appendix C; the weights are torchvision's and Detectron's.
    """
    _check_boxes(targets, "targets")
    _check_boxes(anchors, "anchors")
    wx, wy, ww, wh = (float(weight) for weight in weights)
    target_x, target_y, target_w, target_h = _centre_and_side(targets)
    anchor_x, anchor_y, anchor_w, anchor_h = _centre_and_side(anchors.astype(targets.dtype, copy=False))
    dx = wx * (target_x - anchor_x) / anchor_w
    dy = wy * (target_y - anchor_y) / anchor_h
    dw = ww * np.log(target_w / anchor_w)
    dh = wh * np.log(target_h / anchor_h)
    return np.stack((dx, dy, dw, dh), axis=-1)


def decode_boxes(deltas, anchors, weights=(1.0, 1.0, 1.0, 1.0), max_log_scale=MAX_LOG_SCALE):
    """Boxes that lie at `deltas` from the anchors: the inverse of `encode_boxes`.

    Parameters
    ----------
    deltas : (..., 4) array (dx, dy, dw, dh)
    anchors : (..., 4) array, pixels, broadcast against `deltas`: (R, 1, 4) for one delta a class, (R, K, 4)
    weights : the weights that the deltas were encoded with
    max_log_scale : dw and dh, after division by their weights, are at most this: an untrained network must not
        overflow exp

    Returns
    -------
    (..., 4) array of `deltas`' dtype, pixels, not clipped to the image.
    """
    _check_boxes(deltas, "deltas")
    _check_boxes(anchors, "anchors")
    wx, wy, ww, wh = (float(weight) for weight in weights)
    anchor_x, anchor_y, anchor_w, anchor_h = _centre_and_side(anchors.astype(deltas.dtype, copy=False))
    x = deltas[..., 0] / wx * anchor_w + anchor_x
    y = deltas[..., 1] / wy * anchor_h + anchor_y
    half_w = 0.5 * (np.exp(np.minimum(deltas[..., 2] / ww, max_log_scale)) * anchor_w)
    half_h = 0.5 * (np.exp(np.minimum(deltas[..., 3] / wh, max_log_scale)) * anchor_h)
    return np.stack((x - half_w, y - half_h, x + half_w, y + half_h), axis=-1)
