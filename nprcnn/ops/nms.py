"""Non-maximum suppression: of boxes that overlap too much, only the one with the highest score stays.

Nothing here has a gradient.
"""

import numpy as np

from nprcnn.ops.boxes import box_iou

# The boxes whose IoU with all remaining boxes is computed at once. A larger block means fewer NumPy calls, but
# more IoUs of boxes that the block itself suppresses. One (n, n) matrix for 12000 proposals would take 576 MB.
BLOCK = 128


def _check(boxes, scores):
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"NMS needs boxes (N, 4) and scores (N,), got {boxes.shape} and {scores.shape}")


def nms(boxes, scores, iou_threshold):
    """Indices of the boxes that survive greedy suppression.

    Walk through the boxes by descending score; keep a box unless its IoU with one already kept is above the
    threshold.

    Parameters
    ----------
    boxes : (N, 4) array, pixels
    scores : (N,) array
    iou_threshold : float; an IoU of exactly the threshold does not suppress

    Returns
    -------
    (K,) int64 array of indices by descending score; equal scores keep the input's order (as in torchvision).

    Notes
    -----
    By blocks: one IoU matrix (BLOCK, remaining boxes), then a sweep over the block with one `|=` for each box
    kept; whatever is suppressed is out before the next block. Memory is BLOCK x N, and the work is with boxes
    that are kept, but for those that fall within their own block.
    """
    _check(boxes, scores)
    # Compared in double precision, as in torchvision on a CPU: an IoU of float32(0.3) is above 0.3.
    threshold = np.float64(iou_threshold)
    remaining = np.argsort(-scores, kind="stable")
    kept = []
    while len(remaining):
        block = remaining[:BLOCK]
        overlaps = box_iou(boxes[block], boxes[remaining]) > threshold
        suppressed = np.zeros(len(remaining), dtype=bool)
        for i in range(len(block)):
            if not suppressed[i]:
                kept.append(block[i])
                suppressed |= overlaps[i]
        remaining = remaining[BLOCK:][~suppressed[BLOCK:]]
    return np.array(kept, dtype=np.int64)


def batched_nms(boxes, scores, groups, iou_threshold, kernels=None):
    """NMS inside each group: boxes of different classes (or pyramid levels) never suppress each other.

    Parameters
    ----------
    boxes : (N, 4) array, pixels
    scores : (N,) array
    groups : (N,) integer array, the class or level of each box
    iou_threshold : float
    kernels : KernelSet whose `batched_nms`, or else `nms`, does the work; None: the function above

    Returns
    -------
    (K,) int64 array of indices by descending score over all groups; equal scores keep the input's order.

    Notes
    -----
    One NMS a group. torchvision, for few boxes, shifts each group by more than any coordinate and runs a single
    NMS, which rounds the shifted float32 coordinates.
    """
    _check(boxes, scores)
    if groups.shape != scores.shape:
        raise ValueError(f"batched_nms needs one group for each score, got {groups.shape} and {scores.shape}")
    if getattr(kernels, "batched_nms", None) is not None:
        return kernels.batched_nms(boxes, scores, groups, iou_threshold)
    suppress = nms if kernels is None else kernels.nms
    is_kept = np.zeros(len(scores), dtype=bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        is_kept[members[suppress(boxes[members], scores[members], iou_threshold)]] = True
    kept = np.flatnonzero(is_kept)
    return kept[np.argsort(-scores[kept], kind="stable")]
