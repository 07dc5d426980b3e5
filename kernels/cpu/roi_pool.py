"""RoIPool and its gradient: the maximum of each bin (nprcnn/ops/roi_pool.py says which pixels are in a bin).

The edges of all bins are found once a RoI. The loops go as in roi_align.py: plane by plane, there RoI by RoI, and in the gradient
a thread owns a plane.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import check_floating, check_rois, plain, rois_by_image
from .lock import alone



def _round_half_away(x):
    whole = np.trunc(x)
    return whole + np.sign(x) * (np.abs(x - whole) >= 0.5)


def _bin_edges(first, last, bins, length, dtype):
    """First and one-past-last pixel of every bin along one axis, (R, bins) int64 arrays; empty: start >= stop."""
    side = np.maximum(last - first + 1, 1)[:, None]
    bin_side = side / np.array(bins, dtype=dtype)
    index = np.arange(bins + 1, dtype=dtype)
    starts = np.floor(index[:-1] * bin_side) + first[:, None]
    stops = np.ceil(index[1:] * bin_side) + first[:, None]
    return np.clip(starts, 0, length).astype(np.int64), np.clip(stops, 0, length).astype(np.int64)


@njit(cache=True)
def _largest(plane, top, bottom, left, right):
    """The largest value of a window that is not empty, and its place; of equals the first, in reading order."""
    best, place = plane[top, left], top * plane.shape[1] + left
    for i in range(top, bottom):
        for j in range(left, right):
            if plane[i, j] > best or (plane[i, j] != plane[i, j] and best == best):  # NaN is not hidden
                best, place = plane[i, j], i * plane.shape[1] + j
    return best, place


@njit(cache=True, nogil=True)
def _pool_all(start, stop, features, image, order, y_start, y_stop, x_start, x_stop, y, index):
    rois, _, out_h, out_w = y.shape
    for task in range(start, stop):
        c, r = task // rois, order[task % rois]
        plane = features[image[r], c]
        for i in range(out_h):
            for j in range(out_w):
                top, bottom, left, right = y_start[r, i], y_stop[r, i], x_start[r, j], x_stop[r, j]
                if top < bottom and left < right:
                    y[r, c, i, j], index[r, c, i, j] = _largest(plane, top, bottom, left, right)
                else:
                    y[r, c, i, j], index[r, c, i, j] = 0, -1


@alone
def roi_pool(features, rois, spatial_scale, output_size):
    """RoIPool of every RoI: features (N, C, H, W), rois (R, 5) -> y (R, C, oh, ow), index (R, C, oh, ow). See nprcnn.ops.roi_pool."""
    out_h, out_w = check_rois(rois, features.shape, output_size)
    check_floating(features, "features")
    boxes = _round_half_away(rois[:, 1:].astype(features.dtype) * float(spatial_scale))
    x_edges = _bin_edges(boxes[:, 0], boxes[:, 2], out_w, features.shape[3], features.dtype)
    y_edges = _bin_edges(boxes[:, 1], boxes[:, 3], out_h, features.shape[2], features.dtype)
    y = np.empty((len(rois), features.shape[1], out_h, out_w), features.dtype)
    index = np.empty(y.shape, np.int64)
    if y.size:
        order, _ = rois_by_image(rois, len(features))
        workers.share(_pool_all, len(y) * y.shape[1], workers.MOVED * y.size, plain(features), rois[:, 0].astype(np.int64), order,
                      *y_edges, *x_edges, y, index)
    return y, index


@njit(cache=True, nogil=True)
def _pool_grad_all(start, stop, dy, index, order, starts, dx):
    channels = dx.shape[1]
    bins = dy.shape[2]
    for plane in range(start, stop):
        n, c = plane // channels, plane % channels
        dx[n, c] = 0
        for r in order[starts[n]:starts[n + 1]]:
            for b in range(bins):
                # forward: y = x[index], so dx[index] += dy
                place = index[r, c, b]
                if place >= 0:
                    dx[n, c, place] += dy[r, c, b]


@alone
def roi_pool_grad(dy, index, rois, x_shape):
    """Gradient of the features (N, C, H, W): each dy (R, C, oh, ow) goes to the pixel where the maximum was found."""
    n, channels, height, width = x_shape
    if dy.shape != index.shape or dy.shape[:2] != (len(rois), channels):
        raise ValueError(f"dy and index must both have shape ({len(rois)}, {channels}, oh, ow), got {dy.shape} "
                         f"and {index.shape}")
    if dy.size == 0:
        return np.zeros(x_shape, dy.dtype)
    dx = np.empty((n, channels, height * width), dy.dtype)
    flat = (len(rois), channels, dy.shape[2] * dy.shape[3])
    workers.share(_pool_grad_all, n * channels, workers.MOVED * (dy.size + dx.size), plain(dy).reshape(flat), plain(index).reshape(flat),
                  *rois_by_image(rois, n), dx)
    return dx.reshape(x_shape)
