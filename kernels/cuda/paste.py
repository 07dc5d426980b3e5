"""Pasting masks into the image. Signature of nprcnn.ops.paste."""

import numpy as np

from .launch import THREADS, array_module, blocks_for, contiguous, launch


def _grown_corners(boxes, m):
    """Integer corners (n, 4) of boxes grown in the proportion (m + 2) / m; both ends belong to the box."""
    xp = array_module(boxes)
    growth = (m + 2) / m
    half_w = (boxes[:, 2] - boxes[:, 0]) * 0.5 * growth
    half_h = (boxes[:, 3] - boxes[:, 1]) * 0.5 * growth
    centre_x = (boxes[:, 2] + boxes[:, 0]) * 0.5
    centre_y = (boxes[:, 3] + boxes[:, 1]) * 0.5
    return xp.stack((centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h), axis=1).astype(np.int64)


def paste_masks(masks, boxes, size, threshold=None):
    """masks (n, m, m) probabilities, boxes (n, 4), size (H, W) -> (n, H, W) of the masks' dtype; bool, `>= threshold`, with a threshold.

    The boxes may be on the CPU where the masks are on a GPU: then the check costs no synchronisation.
    """
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must have shape (n, m, m), got {masks.shape}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must have shape ({len(masks)}, 4), one for each mask, got {boxes.shape}")
    if masks.dtype.kind != "f" or boxes.dtype.kind != "f":
        raise ValueError(f"masks and boxes must be floating point, got {masks.dtype} and {boxes.dtype}")
    xp = array_module(masks)
    if not np.isfinite(boxes).all():
        raise ValueError("boxes must be finite, got NaN or infinity")
    height, width = int(size[0]), int(size[1])
    n, m = masks.shape[:2]
    image_masks = xp.empty((n, height, width), masks.dtype)
    for first in range(0, n, 65535):         # the grid's limit
        part = slice(first, first + 65535)
        if image_masks[part].size:
            corners = contiguous(xp.asarray(_grown_corners(boxes[part], m)))
            launch("paste_v1", "paste_masks", (blocks_for(height * width), len(masks[part])), THREADS,
                   (contiguous(masks[part]), corners, image_masks[part], len(masks[part]), m, height, width), masks.dtype)
    return image_masks if threshold is None else image_masks >= threshold
