"""Nearest and bilinear resizing and their gradients, in parallel over the planes.

Which input rows and columns an output row or column meets, and with which weights, is found once by NumPy (as nprcnn.ops.resize
does); the kernels then copy, or blend two rows along the memory and two columns of the result. A gradient's thread owns a plane.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import plain
from .lock import alone


def _nearest(n_in, n_out):
    """The input index of each output index: (n_out,) int64; in float32 whatever the image is (PyTorch's choice)."""
    scale = np.float32(n_in) / np.float32(n_out)
    return np.minimum((np.arange(n_out, dtype=np.float32) * scale).astype(np.int64), n_in - 1)


def _linear(n_in, n_out, dtype):
    """The neighbours of each output's sampling point and the second one's weight: (n_out,) each."""
    number = dtype.type
    scale, half = number(n_in) / number(n_out), number(0.5)
    point = np.maximum((np.arange(n_out, dtype=dtype) + half) * scale - half, 0)
    low = np.minimum(point.astype(np.int64), n_in - 1)
    return low, np.minimum(low + 1, n_in - 1), point - low.astype(dtype)


@njit(cache=True, nogil=True)
def _nearest_all(start, stop, x, ys, xs, y):
    for plane in range(start, stop):
        for i in range(len(ys)):
            row, out = x[plane, ys[i]], y[plane, i]
            if i > 0 and ys[i] == ys[i - 1]:  # the same input row again
                out[:] = y[plane, i - 1]
            else:
                for j in range(len(xs)):
                    out[j] = row[xs[j]]


@alone
def resize_nearest(x, size):
    """Resize by copying pixels: x (N, C, H, W) of any dtype, size (OH, OW) -> (N, C, OH, OW). See nprcnn.ops.resize."""
    _check(x.shape, size)
    (n, channels, height, width), (out_h, out_w) = x.shape, size
    y = np.empty((n * channels, out_h, out_w), x.dtype)
    if y.size:
        workers.share(_nearest_all, n * channels, workers.MOVED * y.size, plain(x).reshape(n * channels, height, width), _nearest(height, out_h), _nearest(width, out_w), y)
    return y.reshape(n, channels, out_h, out_w)


@njit(cache=True, nogil=True)
def _nearest_grad_all(start, stop, dy, ys, xs, dx):
    for plane in range(start, stop):
        dx[plane] = 0
        for i in range(len(ys)):
            # forward: y[i, j] = x[ys[i], xs[j]], so dx[ys[i], xs[j]] += dy[i, j]
            drow, out = dx[plane, ys[i]], dy[plane, i]
            for j in range(len(xs)):
                drow[xs[j]] += out[j]


@alone
def resize_nearest_grad(dy, x_shape):
    """Gradient of resize_nearest: dy (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    _check_grad(dy.shape, x_shape)
    (n, channels, height, width), (out_h, out_w) = x_shape, dy.shape[2:]
    dx = np.empty((n * channels, height, width), dy.dtype)
    if dx.size:
        workers.share(_nearest_grad_all, n * channels, workers.MOVED * dy.size, plain(dy).reshape(n * channels, out_h, out_w), _nearest(height, out_h), _nearest(width, out_w), dx)
    return dx.reshape(x_shape)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _bilinear_all(start, stop, x, y_low, y_high, y_weight, x_low, x_high, x_weight, y):
    for plane in range(start, stop):
        blend = np.empty(x.shape[2], x.dtype)
        for i in range(len(y_low)):
            above, below, weight = x[plane, y_low[i]], x[plane, y_high[i]], y_weight[i]
            for j in range(len(blend)):
                blend[j] = above[j] + weight * (below[j] - above[j])
            out = y[plane, i]
            for j in range(len(out)):
                left, right = blend[x_low[j]], blend[x_high[j]]
                out[j] = left + x_weight[j] * (right - left)


@alone
def resize_bilinear(x, size):
    """Resize by linear interpolation: x (N, C, H, W) floating, size (OH, OW) -> (N, C, OH, OW). See nprcnn.ops.resize."""
    _check(x.shape, size)
    if x.dtype.kind != "f":
        raise ValueError(f"bilinear resizing needs floating values, not {x.dtype}")
    (n, channels, height, width), (out_h, out_w) = x.shape, size
    y = np.empty((n * channels, out_h, out_w), x.dtype)
    if y.size:
        workers.share(_bilinear_all, n * channels, workers.MOVED * y.size, plain(x).reshape(n * channels, height, width), *_linear(height, out_h, x.dtype),
                      *_linear(width, out_w, x.dtype), y)
    return y.reshape(n, channels, out_h, out_w)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _bilinear_grad_all(start, stop, dy, y_low, y_high, y_weight, x_low, x_high, x_weight, dx):
    one = dx.dtype.type(1)
    for plane in range(start, stop):
        dx[plane] = 0
        dblend = np.empty(dx.shape[2], dx.dtype)
        for i in range(len(y_low)):
            # forward: y[i, j] = (1 - w) blend[low] + w blend[high]
            dblend[:] = 0
            for j in range(len(x_low)):
                dblend[x_low[j]] += (one - x_weight[j]) * dy[plane, i, j]
                dblend[x_high[j]] += x_weight[j] * dy[plane, i, j]
            # forward: blend = (1 - w) x[low] + w x[high]; at the last row both are the same, and the two shares add
            dabove, dbelow, weight = dx[plane, y_low[i]], dx[plane, y_high[i]], y_weight[i]
            for j in range(len(dblend)):
                dabove[j] += (one - weight) * dblend[j]
            for j in range(len(dblend)):
                dbelow[j] += weight * dblend[j]


@alone
def resize_bilinear_grad(dy, x_shape):
    """Gradient of resize_bilinear: dy (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    _check_grad(dy.shape, x_shape)
    (n, channels, height, width), (out_h, out_w) = x_shape, dy.shape[2:]
    dx = np.empty((n * channels, height, width), dy.dtype)
    if dx.size:
        workers.share(_bilinear_grad_all, n * channels, workers.MOVED * dy.size, plain(dy).reshape(n * channels, out_h, out_w), *_linear(height, out_h, dy.dtype),
                           *_linear(width, out_w, dy.dtype), dx)
    return dx.reshape(x_shape)


def _check(shape, size):
    if len(shape) != 4 or min(shape[1:]) < 1:
        raise ValueError(f"x must be (N, C, H, W) with at least one pixel, not {shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), at least one pixel each, not {size}")


def _check_grad(dy_shape, x_shape):
    if len(dy_shape) != 4:
        raise ValueError(f"dy must be (N, C, OH, OW), not {dy_shape}")
    _check(x_shape, dy_shape[2:])
    if dy_shape[:2] != tuple(x_shape[:2]):
        raise ValueError(f"dy {dy_shape} does not fit x_shape {x_shape}")
