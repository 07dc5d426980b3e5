"""Non-maximum suppression, of one group of boxes or of many in one launch. Signatures of nprcnn.ops.nms."""

import numpy as np

from .launch import array_module, blocks_for, contiguous, launch

BITS = 64
FILES = {1: "nms_v1_bitmask", 2: "nms_v2_groups"}
# Of a group: the bits of all its boxes must fit into a block's shared memory, 48 KB, beside the 65 words that version 2 declares
MAX_BOXES = (48 * 1024 // 8 - 128) * BITS


def _largest_not_above(threshold, dtype):
    """`iou > threshold` in double precision, as torchvision compares on a CPU, is `iou > limit` in the dtype."""
    limit = dtype.type(threshold)
    return limit if np.float64(limit) <= np.float64(threshold) else np.nextafter(limit, dtype.type(-np.inf))


def _check(boxes, scores):
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"NMS needs boxes (N, 4) and scores (N,), got {boxes.shape} and {scores.shape}")
    if len(boxes) > MAX_BOXES:
        raise ValueError(f"NMS of {len(boxes)} boxes; at most {MAX_BOXES} fit into shared memory, a bit each")


def nms(boxes, scores, iou_threshold, version=2):
    """Indices (K,) int64 of the boxes (N, 4) that survive, by descending score (N,)."""
    _check(boxes, scores)
    xp, real = array_module(boxes), boxes.dtype
    order = xp.argsort(-scores, kind="stable")
    if len(order) == 0:
        return order.astype(np.int64)
    limit = float(_largest_not_above(iou_threshold, real))
    boxes = contiguous(boxes[order])
    if version == 2:
        keep = _groups(boxes, xp.asarray([0, len(boxes)], dtype=np.int32), len(boxes), limit)
    else:
        words = blocks_for(len(boxes), BITS)
        mask, keep = xp.empty((len(boxes), words), np.uint64), xp.empty(len(boxes), np.uint8)
        launch(FILES[1], "nms_mask", (words, words), BITS, (boxes, mask, len(boxes), words, limit), real)
        launch(FILES[1], "nms_reduce", 1, BITS, (mask, keep, len(boxes), words), real, shared_mem=8 * words)
    return order[keep == 1].astype(np.int64)


def batched_nms(boxes, scores, groups, iou_threshold):
    """NMS within each group, all groups in one launch: indices (K,) int64 by descending score; equal scores keep the input's order."""
    _check(boxes, scores)
    if groups.shape != scores.shape:
        raise ValueError(f"batched_nms needs one group for each score, got {groups.shape} and {scores.shape}")
    xp = array_module(boxes)
    if len(boxes) == 0:
        return xp.zeros(0, np.int64)
    by_score = xp.argsort(-scores, kind="stable")
    order = by_score[xp.argsort(groups[by_score], kind="stable")]      # by group, then by score
    sorted_groups = groups[order]
    first = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), sorted_groups[1:] != sorted_groups[:-1]]))
    starts = xp.concatenate([first, xp.asarray([len(boxes)])]).astype(np.int32)
    largest = int((starts[1:] - starts[:-1]).max())
    keep = _groups(contiguous(boxes[order]), starts, largest, float(_largest_not_above(iou_threshold, boxes.dtype)))
    kept = xp.sort(order[keep == 1])
    return kept[xp.argsort(-scores[kept], kind="stable")].astype(np.int64)


def _groups(boxes, starts, largest, limit):
    """Version 2: boxes (B, 4) by group and score, starts (groups + 1,) -> keep (B,) uint8."""
    xp, real = array_module(boxes), boxes.dtype
    words, groups = blocks_for(largest, BITS), len(starts) - 1
    mask, keep = xp.empty((len(boxes), words), np.uint64), xp.empty(len(boxes), np.uint8)
    launch(FILES[2], "nms_mask", (words, words, groups), BITS, (boxes, starts, mask, words, limit), real)
    launch(FILES[2], "nms_reduce", groups, max(BITS, min(512, blocks_for(words, 32) * 32)), (mask, starts, keep, words), real, shared_mem=8 * words)
    return keep
