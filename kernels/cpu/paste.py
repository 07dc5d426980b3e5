"""Pasting masks, in parallel over the masks: each is stretched over the visible part of its box and written there, once.

With a threshold only bits are written: a hundred float masks of a photo fill 400 MB, the bits a quarter of it, and what lies
outside the boxes is never touched.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import HALF, ONE, ZERO, plain
from .lock import alone

PADDING = 1


def _grown_corners(boxes, m):
    """Integer corners (n, 4) of boxes grown in the proportion (m + 2) / m; both ends belong to the box."""
    # The order of these operations decides, by rounding, which integer a corner becomes; it is torchvision's.
    growth = (m + 2 * PADDING) / m
    half_w = (boxes[:, 2] - boxes[:, 0]) * 0.5 * growth
    half_h = (boxes[:, 3] - boxes[:, 1]) * 0.5 * growth
    centre_x = (boxes[:, 2] + boxes[:, 0]) * 0.5
    centre_y = (boxes[:, 3] + boxes[:, 1]) * 0.5
    corners = np.stack((centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h), axis=1)
    return corners.astype(np.int64)


@njit(cache=True, error_model="numpy")
def _source(place, scale, in_length):
    """Where pixel `place` of the stretched mask lies in the mask: lower neighbour, upper neighbour, the upper one's weight.
    place and scale: of the mask's dtype."""
    point = max(scale * (place + HALF) - HALF, ZERO)
    low = min(int(point), in_length - 1)
    return low, min(low + 1, in_length - 1), point - np.floor(point)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _paste(mask, corners, threshold, image):
    """mask (m + 2, m + 2), padded, into image (H, W) of zeros. threshold: a number of the mask's dtype, or None for soft masks."""
    number = mask.dtype.type
    side = len(mask)
    x1, y1, x2, y2 = corners
    left, right = max(x1, 0), min(x2 + 1, image.shape[1])
    top, bottom = max(y1, 0), min(y2 + 1, image.shape[0])
    if left >= right or top >= bottom:
        return  # outside the image, or corners exchanged
    scale_x, scale_y = number(side) / number(x2 - x1 + 1), number(side) / number(y2 - y1 + 1)
    blend = np.empty(side, mask.dtype)
    columns = np.empty((2, right - left), np.int64)
    fractions = np.empty(right - left, mask.dtype)
    for j in range(right - left):
        columns[0, j], columns[1, j], fractions[j] = _source(number(left + j - x1), scale_x, side)
    for y in range(top, bottom):
        low, high, fraction = _source(number(y - y1), scale_y, side)
        for k in range(side):
            blend[k] = (ONE - fraction) * mask[low, k] + fraction * mask[high, k]
        out = image[y, left:right]
        for j in range(right - left):
            value = (ONE - fractions[j]) * blend[columns[0, j]] + fractions[j] * blend[columns[1, j]]
            if threshold is None:
                out[j] = value
            else:
                out[j] = value >= threshold


@njit(cache=True, nogil=True)
def _paste_all(start, stop, masks, corners, threshold, images):
    for i in range(start, stop):
        _paste(masks[i], corners[i], threshold, images[i])


@alone
def paste_masks(masks, boxes, size, threshold=None):
    """Each mask (n, m, m) resized to its box (n, 4) in an empty image -> (n, H, W). See nprcnn.ops.paste.paste_masks."""
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must have shape (n, m, m), got {masks.shape}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must have shape ({len(masks)}, 4), one for each mask, got {boxes.shape}")
    if masks.dtype.kind != "f" or boxes.dtype.kind != "f":
        raise ValueError(f"masks and boxes must be floating point, got {masks.dtype} and {boxes.dtype}")
    if not np.isfinite(boxes).all():
        raise ValueError("boxes must be finite, got NaN or infinity")
    # np.zeros touches no memory: pages come from the system as zeros when they are written to
    images = np.zeros((len(masks), int(size[0]), int(size[1])), masks.dtype if threshold is None else bool)
    if len(masks):
        padded = np.pad(masks, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
        workers.share(_paste_all, len(masks), workers.MOVED * images.size, padded, _grown_corners(boxes, masks.shape[1]),
                      None if threshold is None else masks.dtype.type(threshold), images)
    return images
