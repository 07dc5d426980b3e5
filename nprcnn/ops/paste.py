"""Pasting: an object's small mask, stretched over its box, in the place of the image. No gradient."""

import math

import numpy as np

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


def _stretch(out_length, first, stop, in_length, dtype):
    """Rows first..stop-1 of the (out_length, in_length) matrix of bilinear resizing, corners not aligned."""
    scale = np.array(in_length, dtype=dtype) / np.array(out_length, dtype=dtype)
    source = np.maximum(scale * (np.arange(first, stop).astype(dtype) + 0.5) - 0.5, 0)
    low = np.minimum(np.floor(source).astype(np.intp), in_length - 1)
    high = np.minimum(low + 1, in_length - 1)
    fraction = source - low.astype(dtype)
    rows = np.arange(stop - first)
    weights = np.zeros((stop - first, in_length), dtype=dtype)
    weights[rows, low] = 1 - fraction
    weights[rows, high] += fraction
    return weights


def paste_masks(masks, boxes, size, threshold=None):
    """Each mask resized to its box and pasted into an empty image.

    The mask gets a border of one zero pixel and the box grows in proportion about its centre, so that the
    mask's edge can fade to zero. The box is then cut to integers, and the mask is stretched bilinearly over
    x1..x2 and y1..y2, the last pixel included.

    Parameters
    ----------
    masks : (n, m, m) float array, probabilities
    boxes : (n, 4) array, pixels of the image
    size : (H, W) of the image
    threshold : float, optional
        Return binary masks, `soft mask >= threshold`; above 0.

    Returns
    -------
    (n, H, W) array of the masks' dtype: soft masks; or of bool, with a threshold. What lies outside the image
    is cut off.

    References
    ----------
    torchvision's paste_masks_in_image, and Detectron before it.
    """
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must have shape (n, m, m), got {masks.shape}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must have shape ({len(masks)}, 4), one for each mask, got {boxes.shape}")
    if masks.dtype.kind != "f" or boxes.dtype.kind != "f":
        raise ValueError(f"masks and boxes must be floating point, got {masks.dtype} and {boxes.dtype}")
    if not np.isfinite(boxes).all():
        raise ValueError("boxes must be finite, got NaN or infinity")
    height, width = int(size[0]), int(size[1])
    m = masks.shape[1]
    padded = np.pad(masks, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))

    corners = _grown_corners(boxes, m)
    image_masks = np.zeros((len(masks), height, width), dtype=masks.dtype if threshold is None else bool)
    for mask, (x1, y1, x2, y2), image_mask in zip(padded, corners.tolist(), image_masks):
        left, right = max(x1, 0), min(x2 + 1, width)
        top, bottom = max(y1, 0), min(y2 + 1, height)
        if left >= right or top >= bottom:
            continue                # outside the image, or corners exchanged
        # Only the visible rows and columns of the stretched mask are computed, however large the box.
        rows = _stretch(y2 - y1 + 1, top - y1, bottom - y1, m + 2 * PADDING, masks.dtype)
        cols = _stretch(x2 - x1 + 1, left - x1, right - x1, m + 2 * PADDING, masks.dtype)
        soft = rows @ mask @ cols.T
        image_mask[top:bottom, left:right] = soft if threshold is None else soft >= threshold
    return image_masks


def paste_masks_continuous(masks, boxes, size, threshold=None):
    """Each mask stretched over its box, whose corners stay where they are between the pixels.

    A pixel's centre is looked up in the mask: at (y + .5 - y1) / (y2 - y1) of its height, bilinearly, with zeros around the mask. No
    corner is rounded to an integer, so that a box of 10.4 pixels gets 10.4 pixels.

    Parameters and result are those of paste_masks. A box without area gives an empty mask.

    References
    ----------
    Detectron2's paste_masks_in_image (grid_sample, align_corners False).
    """
    height, width = int(size[0]), int(size[1])
    image_masks = np.zeros((len(masks), height, width), dtype=masks.dtype if threshold is None else bool)
    for mask, (x1, y1, x2, y2), image_mask in zip(masks, boxes.tolist(), image_masks):
        if x2 <= x1 or y2 <= y1:
            continue
        m = mask.shape[0]
        # outside these pixels every weight is zero: the mask fades out within half of a mask pixel beyond the box
        left, right = (min(max(v, 0), width) for v in (math.floor(x1 - (x2 - x1) / m) - 1, math.ceil(x2 + (x2 - x1) / m) + 1))
        top, bottom = (min(max(v, 0), height) for v in (math.floor(y1 - (y2 - y1) / m) - 1, math.ceil(y2 + (y2 - y1) / m) + 1))
        rows = _look_up((np.arange(top, bottom, dtype=masks.dtype) + 0.5 - y1) / (y2 - y1) * m - 0.5, m)
        cols = _look_up((np.arange(left, right, dtype=masks.dtype) + 0.5 - x1) / (x2 - x1) * m - 0.5, m)
        soft = rows @ mask @ cols.T
        image_mask[top:bottom, left:right] = soft if threshold is None else soft >= threshold
    return image_masks


def _look_up(positions, m):
    """Matrix (positions, m) of bilinear reading at these positions, in mask pixels from the first one's centre; zeros around."""
    distance = np.abs(positions[:, None] - np.arange(m, dtype=positions.dtype))
    return np.maximum(1 - distance, 0)
