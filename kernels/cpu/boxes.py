"""IoU of all pairs of boxes, in one pass instead of NumPy's dozen over the whole matrix.

The RPN finds ties for the best anchor by exact equality, so each operation is rounded by itself, in nprcnn.ops.boxes' order: no
fast math here, for a fused multiply-add would round once where the reference rounds twice.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import ONE, ZERO, check_floating
from .lock import alone

BLOCK = 4096  # boxes of b that are compared with all of a: enough work for a thread, little enough for its cache


@njit(cache=True, error_model="numpy")
def _iou(x1, y1, x2, y2, area, other_x1, other_y1, other_x2, other_y2, other_area):
    width = min(x2, other_x2) - max(x1, other_x1)
    height = min(y2, other_y2) - max(y1, other_y1)
    inter = max(width, ZERO) * max(height, ZERO)
    union = area + other_area - inter
    # Two boxes without any area have IoU 0
    return inter / (union if union != ZERO else ONE)


@njit(cache=True, nogil=True, error_model="numpy")
def _iou_all(first, last, a, b_x1, b_y1, b_x2, b_y2, block, iou):
    """The columns first .. last - 1 of iou."""
    for start in range(first, last, block):
        stop = min(start + block, last)
        for i in range(len(a)):
            x1, y1, x2, y2 = a[i, 0], a[i, 1], a[i, 2], a[i, 3]
            area = (x2 - x1) * (y2 - y1)
            for j in range(start, stop):
                other_area = (b_x2[j] - b_x1[j]) * (b_y2[j] - b_y1[j])
                iou[i, j] = _iou(x1, y1, x2, y2, area, b_x1[j], b_y1[j], b_x2[j], b_y2[j], other_area)


@alone
def box_iou(a, b):
    """Intersection over union: a (Na, 4), b (Nb, 4) -> (Na, Nb). See nprcnn.ops.boxes.box_iou."""
    for boxes, name in ((a, "a"), (b, "b")):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must have shape (N, 4), got {boxes.shape}")
        check_floating(boxes, name)
    dtype = np.result_type(a, b)
    iou = np.empty((len(a), len(b)), dtype)
    if iou.size:
        workers.share(_iou_all, len(b), workers.MOVED * iou.size, np.array(a, dtype, order="C"), *np.array(b.T, dtype, order="C"), BLOCK,
                      iou)
    return iou
