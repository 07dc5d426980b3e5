"""Max-pooling and its gradient, in parallel over the planes.

For a row of windows: first the maximum of each column, over the window's height and along the memory, then for each window the
maximum of its columns. The maxima of the columns are one short row that stays in the cache.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import plain
from .conv_im2col import inside
from .lock import alone

LAST = np.int32(2 ** 31 - 1)    # of all places


@njit(cache=True)
def _column_maxima(plane, top, bottom, best, where):
    """best (W,): the largest of rows top .. bottom - 1 in each column; where (W,) int32: its place in the plane. Of equals the first."""
    width = plane.shape[1]
    for x in range(width):
        best[x], where[x] = plane[top, x], np.int32(top * width + x)
    for y in range(top + 1, bottom):
        row, start = plane[y], y * width
        for x in range(width):
            won = (row[x] > best[x]) | (row[x] != row[x])  # NaN is not hidden
            best[x] = row[x] if won else best[x]
            where[x] = np.int32(start + x) if won else where[x]


@njit(cache=True)
def _take_larger(best, where, step, values, places):
    """values[v], places[v] = best[step * v], where[step * v] where that is the larger one, or the first in reading order of equals."""
    if step == 2:            # a constant step: wide loads, of which every other number is kept
        for v in range(len(values)):
            value, place = best[2 * v], where[2 * v]
            won = (value > values[v]) | (value != value) | ((value == values[v]) & (place < places[v]))
            values[v] = value if won else values[v]
            places[v] = place if won else places[v]
    else:
        for v in range(len(values)):
            value, place = best[step * v], where[step * v]
            won = (value > values[v]) | (value != value) | ((value == values[v]) & (place < places[v]))
            values[v] = value if won else values[v]
            places[v] = place if won else places[v]


@njit(cache=True, nogil=True)
def _pool_all(start, stop, x, kernel, stride, padding, y, index):
    height, width = x.shape[1:]
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    out_w = y.shape[2]
    best, where = np.empty(width, x.dtype), np.empty(width, np.int32)
    places = np.empty(out_w, np.int32)
    for plane in range(start, stop):
        for oy in range(y.shape[1]):
            top = oy * sh - ph
            _column_maxima(x[plane], max(top, 0), min(top + kh, height), best, where)
            values = y[plane, oy]
            values[:], places[:] = -np.inf, LAST         # any number wins against that
            for j in range(kw):                          # padding takes no part
                first, last = inside(width, out_w, j - pw, sw)
                if first < last:
                    start = first * sw + j - pw
                    # slices, so that their indices begin at 0: see conv_im2col._fill_columns
                    _take_larger(best[start:], where[start:], sw, values[first:last], places[first:last])
            to = index[plane, oy]
            for ox in range(out_w):
                to[ox] = places[ox]


@alone
def max_pool2d(x, kernel, stride=None, padding=0):
    """The largest value of each window: x (N, C, H, W) -> y, index (N, C, OH, OW). See nprcnn.ops.pool.max_pool2d."""
    kernel, stride, padding = _pair(kernel), _pair(kernel if stride is None else stride), _pair(padding)
    out_h, out_w = _output_size(x.shape, kernel, stride, padding)
    n, channels, height, width = x.shape
    y = np.empty((n, channels, out_h, out_w), x.dtype)
    index = np.empty(y.shape, np.int64)
    if y.size:
        flat = (n * channels, out_h, out_w)
        workers.share(_pool_all, n * channels, workers.MOVED * x.size, plain(x).reshape(n * channels, height, width), kernel, stride,
                      padding, y.reshape(flat), index.reshape(flat))
    return y, index


@njit(cache=True, nogil=True)
def _pool_grad_all(start, stop, dy, index, dx):
    for plane in range(start, stop):
        dx[plane] = 0
        # forward: y = x[index]. Windows overlap, so one pixel may have won several times: its gradients add up
        for k in range(dy.shape[1]):
            dx[plane, index[plane, k]] += dy[plane, k]


@alone
def max_pool2d_grad(dy, index, x_shape):
    """Gradient of max_pool2d: dy, index (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    if len(x_shape) != 4 or dy.shape != index.shape or dy.shape[:2] != tuple(x_shape[:2]):
        raise ValueError(f"dy {dy.shape} and index {index.shape} must be alike and fit x_shape {x_shape}")
    if dy.size == 0:
        return np.zeros(x_shape, dy.dtype)
    n, channels, height, width = x_shape
    dx = np.empty((n * channels, height * width), dy.dtype)
    flat = (n * channels, dy.shape[2] * dy.shape[3])
    workers.share(_pool_grad_all, n * channels, workers.MOVED * dx.size, plain(dy).reshape(flat), plain(index).reshape(flat), dx)
    return dx.reshape(x_shape)


def _output_size(x_shape, kernel, stride, padding):
    if len(x_shape) != 4:
        raise ValueError(f"x must be (N, C, H, W), not {x_shape}")
    too_much = any(2 * p > k for p, k in zip(padding, kernel))
    if min(kernel) < 1 or min(stride) < 1 or min(padding) < 0 or too_much:
        raise ValueError(f"kernel {kernel} and stride {stride} must be positive, "
                         f"padding {padding} at most half the kernel and not negative")
    out_h, out_w = ((size + 2 * p - k) // s + 1 for size, p, k, s in zip(x_shape[2:], padding, kernel, stride))
    if out_h < 1 or out_w < 1:
        raise ValueError(f"the window {kernel} is larger than x {x_shape} with padding {padding}")
    return out_h, out_w


def _pair(value):
    return (int(value), int(value)) if isinstance(value, (int, np.integer)) else tuple(int(v) for v in value)
