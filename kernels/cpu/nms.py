"""Non-maximum suppression, one thread: every box that is still in suppresses those after it.

The coordinates are sorted by score and laid out one array a coordinate, so that the inner loop, one box against all later ones,
has no branch and runs on vectors. The IoU is that of boxes.py to the last bit: no multiply-add is fused.
"""

import numpy as np
from numba import njit

from .boxes import _iou


@njit(cache=True, error_model="numpy")
def _suppress(x1, y1, x2, y2, limit, suppressed):
    """suppressed (N,) uint8, 0 at first; sides (N,), best score first."""
    count = len(x1)
    area = (x2 - x1) * (y2 - y1)
    for i in range(count):
        if suppressed[i]:
            continue
        left, top, right, bottom, own_area = x1[i], y1[i], x2[i], y2[i], area[i]
        for j in range(i + 1, count):
            iou = _iou(left, top, right, bottom, own_area, x1[j], y1[j], x2[j], y2[j], area[j])
            suppressed[j] |= np.uint8(iou > limit)


def _largest_not_above(threshold, dtype):
    """The largest number of this dtype that is not above the threshold: `iou > threshold` in double precision, as torchvision
    compares on a CPU (an IoU of float32(0.3) is above 0.3), is `iou > limit` in the dtype."""
    limit = dtype.type(threshold)
    return limit if np.float64(limit) <= np.float64(threshold) else np.nextafter(limit, dtype.type(-np.inf))


def nms(boxes, scores, iou_threshold):
    """Indices (K,) int64 of the boxes (N, 4) that survive, by descending score (N,). See nprcnn.ops.nms."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"NMS needs boxes (N, 4) and scores (N,), got {boxes.shape} and {scores.shape}")
    order = np.argsort(-scores, kind="stable")
    suppressed = np.zeros(len(order), np.uint8)
    if len(order):
        sides = np.ascontiguousarray(boxes[order].T)
        _suppress(*sides, _largest_not_above(iou_threshold, boxes.dtype), suppressed)
    return order[suppressed == 0].astype(np.int64, copy=False)
