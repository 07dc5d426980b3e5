"""Max-pooling and its gradient, in parallel over the planes.

For a row of windows: first the maximum of each column, over the window's height and along the memory, then for each window the
maximum of its columns. The maxima of the columns are one short row that stays in the cache.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import plain
from .lock import alone


@njit(cache=True)
def _column_maxima(plane, top, bottom, best, where):
    """best (W,): the largest of rows top .. bottom - 1 in each column; where (W,) int32: the row. Of equals the first wins."""
    for x in range(plane.shape[1]):
        best[x], where[x] = plane[top, x], np.int32(top)
    for y in range(top + 1, bottom):
        row, here = plane[y], np.int32(y)
        for x in range(plane.shape[1]):
            won = (row[x] > best[x]) | (row[x] != row[x])  # NaN is not hidden
            best[x] = row[x] if won else best[x]
            where[x] = here if won else where[x]


@njit(cache=True, nogil=True)
def _pool_all(start, stop, x, kernel, stride, padding, y, index):
    height, width = x.shape[1:]
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    for plane in range(start, stop):
        best, where = np.empty(width, x.dtype), np.empty(width, np.int32)
        for oy in range(y.shape[1]):
            top = oy * sh - ph
            _column_maxima(x[plane], max(top, 0), min(top + kh, height), best, where)
            for ox in range(y.shape[2]):
                left = ox * sw - pw
                chosen = max(left, 0)  # padding takes no part
                for j in range(chosen + 1, min(left + kw, width)):
                    # Of equals in two columns the upper one comes first in reading order
                    if best[j] > best[chosen] or best[j] != best[j] or (best[j] == best[chosen] and where[j] < where[chosen]):
                        chosen = j
                y[plane, oy, ox] = best[chosen]
                index[plane, oy, ox] = where[chosen] * width + chosen


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
