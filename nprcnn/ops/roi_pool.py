"""RoIPool: the maximum of the features in each bin of a RoI, after rounding RoI and bins to whole pixels.

What RoIAlign replaced: the rounding moves a mask by up to half a feature pixel, which is 8 image pixels at
stride 16 (Mask R-CNN, table 2c).

Letters: N images, C channels, H x W feature map, R RoIs, oh x ow output bins.

References: Fast R-CNN (arXiv 1504.08083), section 2.1. The rounding is torchvision's: half away from zero, and
the pixel at x2 belongs to the RoI.
"""

from typing import NamedTuple

import numpy as np

from nprcnn.ops.roi_align import check_rois


class RoIPoolCache(NamedTuple):
    rois: np.ndarray
    index: np.ndarray
    x_shape: tuple


def _round_half_away(x):
    whole = np.trunc(x)
    return whole + np.sign(x) * (np.abs(x - whole) >= 0.5)


def _bin_edges(first, last, bins, length, dtype):
    """First and one-past-last pixel of every bin along one axis, (R, bins) int arrays; empty: start >= stop."""
    side = np.maximum(last - first + 1, 1)[:, None]
    bin_side = side / np.array(bins, dtype=dtype)
    index = np.arange(bins + 1, dtype=dtype)
    starts = np.floor(index[:-1] * bin_side) + first[:, None]
    stops = np.ceil(index[1:] * bin_side) + first[:, None]
    return np.clip(starts, 0, length).astype(np.intp), np.clip(stops, 0, length).astype(np.intp)


def roi_pool(features, rois, spatial_scale, output_size):
    """RoIPool of every RoI.

    Parameters
    ----------
    features : (N, C, H, W) float array
    rois : (R, 5) array: image index in 0..N-1, then x1, y1, x2, y2 in pixels of the image
    spatial_scale : float, feature pixels an image pixel (1/16 for stride 16)
    output_size : int or (oh, ow)

    Returns
    -------
    y : (R, C, oh, ow) array of the features' dtype; an empty bin is 0
    index : (R, C, oh, ow) int64 array, where each maximum was found: iy * W + ix. The first one wins; an empty
        bin has -1.

    Raises
    ------
    ValueError : see `roi_align.check_rois`; features that are not floating point.
    """
    out_h, out_w = check_rois(rois, features.shape, output_size)
    if features.dtype.kind != "f":
        raise ValueError(f"features must be floating point, got {features.dtype}")
    n, channels, height, width = features.shape
    boxes = _round_half_away(rois[:, 1:].astype(features.dtype) * float(spatial_scale))
    x_start, x_stop = _bin_edges(boxes[:, 0], boxes[:, 2], out_w, width, features.dtype)
    y_start, y_stop = _bin_edges(boxes[:, 1], boxes[:, 3], out_h, height, features.dtype)
    empty = (y_stop <= y_start)[:, :, None] | (x_stop <= x_start)[:, None, :]      # (R, oh, ow)

    # Channels last here: pixels are gathered C numbers at a time.
    pixels = np.ascontiguousarray(features.transpose(0, 2, 3, 1)).reshape(n, height * width, channels)
    y = np.zeros((len(rois), out_h, out_w, channels), dtype=features.dtype)
    index = np.full(y.shape, -1, dtype=np.int64)
    bin_y, bin_x = np.arange(out_h)[:, None, None], np.arange(out_w)[:, None]
    for r, image in enumerate(rois[:, 0].astype(np.intp).tolist()):
        if empty[r].all():
            continue
        # Every bin gets the largest bin's shape by repeating its own last row and column, which changes
        # neither the maximum nor the first place where it is found.
        tall, wide = (y_stop[r] - y_start[r]).max(), (x_stop[r] - x_start[r]).max()
        rows = np.minimum(np.arange(tall)[:, None] + y_start[r], np.maximum(y_stop[r] - 1, 0))      # (tall, oh)
        cols = np.minimum(np.arange(wide)[:, None] + x_start[r], np.maximum(x_stop[r] - 1, 0))      # (wide, ow)
        place = (rows[:, None, :, None] * width + cols[None, :, None, :]).reshape(tall * wide, out_h, out_w)
        windows = pixels[image].take(place, axis=0)                            # (tall wide, oh, ow, C)
        largest = windows.max(axis=0)
        first = (windows == largest).argmax(axis=0)
        y[r] = largest
        index[r] = place[first, bin_y, bin_x]
    y[empty], index[empty] = 0, -1
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2)), np.ascontiguousarray(index.transpose(0, 3, 1, 2))


def roi_pool_grad(dy, index, rois, x_shape):
    """Gradient of the features: each dy goes to the pixel where the maximum was found.

    Parameters
    ----------
    dy : (R, C, oh, ow) array
    index : (R, C, oh, ow) int array from `roi_pool`
    rois : (R, 5) array
    x_shape : (N, C, H, W)

    Returns
    -------
    (N, C, H, W) array of dy's dtype.
    """
    n, channels, height, width = x_shape
    if dy.shape != index.shape or dy.shape[:2] != (len(rois), channels):
        raise ValueError(f"dy and index must both have shape ({len(rois)}, {channels}, oh, ow), got {dy.shape} "
                         f"and {index.shape}")
    dx = np.zeros(n * channels * height * width, dtype=dy.dtype)
    plane = rois[:, 0].astype(np.int64)[:, None] * channels + np.arange(channels)      # (R, C)
    place = plane[:, :, None, None] * (height * width) + index
    found = index >= 0
    # forward: y = x[index], so dx[index] += dy; bins and RoIs overlap, and add.at loses no repeated place
    np.add.at(dx, place[found], dy[found])
    return dx.reshape(n, channels, height, width)


def roi_pool_forward(features, rois, spatial_scale, output_size, kernels=None):
    """`roi_pool`, and the cache for its backward. `kernels`: the KernelSet that does the work (None: NumPy).

    Returns
    -------
    y : (R, C, oh, ow) array
    cache : RoIPoolCache
    """
    pool = roi_pool if kernels is None else kernels.roi_pool
    y, index = pool(features, rois, spatial_scale, output_size)
    return y, RoIPoolCache(rois, index, features.shape)


def roi_pool_backward(dy, cache, kernels=None):
    """Gradient of the features, (N, C, H, W); the RoIs get none."""
    grad = roi_pool_grad if kernels is None else kernels.roi_pool_grad
    return grad(dy, cache.index, cache.rois, cache.x_shape)
