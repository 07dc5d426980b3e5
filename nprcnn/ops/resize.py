"""Nearest and bilinear resizing of features (the FPN's top-down path; images), and their backward passes.

Both are separable: y = Ay @ x @ Ax.T for every plane, where each row of Ay and Ax holds a single 1 (nearest)
or two weights (bilinear). Forward takes the rows of x that those meet instead of multiplying by zeros;
backward is the adjoint, dx = Ay.T @ dy @ Ax. The conventions are those of
torch.nn.functional.interpolate(size=..., align_corners=False, antialias=False).
"""

from typing import NamedTuple

import numpy as np


class ResizeCache(NamedTuple):
    x_shape: tuple


def resize_nearest(x, size):
    """Resize by copying pixels: x (N, C, H, W) of any dtype, size (OH, OW) -> y (N, C, OH, OW).

    Output row i is input row floor(i * (H / OH)), in float32 whatever x is, so that all dtypes choose the
    same pixels: PyTorch's "nearest" for float32. (Its float64 differs at a few exact ties: 17 -> 799.)
    ValueError: not four dimensions, or an empty size.
    """
    _check(x.shape, size)
    ys, xs = (_nearest(n_in, n_out, x) for n_in, n_out in zip(x.shape[2:], size))
    return np.take(np.take(x, xs, axis=3), ys, axis=2)


def resize_nearest_grad(dy, x_shape):
    """Gradient of resize_nearest: dy (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    _check_grad(dy.shape, x_shape)
    n_in, n_out = x_shape[2:], dy.shape[2:]
    return _multiply_transposed(dy, *(_nearest_matrix(*sizes, dy) for sizes in zip(n_in, n_out)))


def resize_bilinear(x, size):
    """Resize by linear interpolation: x (N, C, H, W) floating, size (OH, OW) -> y (N, C, OH, OW).

    Pixel centres are at half integers: output row i samples input row (i + .5) * H / OH - .5, clamped to the
    first and last row.
    ValueError: not four dimensions, not floating, or an empty size.
    """
    _check(x.shape, size)
    if x.dtype.kind != "f":
        raise ValueError(f"bilinear resizing needs floating values, not {x.dtype}")
    y = x
    for axis in (3, 2):
        low, high, weight = _linear(x.shape[axis], size[axis - 2], x)
        weight = weight if axis == 3 else weight[:, None]
        # y = (1 - weight) * low + weight * high
        rise = np.take(y, high, axis=axis)
        y = np.take(y, low, axis=axis)
        rise -= y
        rise *= weight
        y += rise
    return y


def resize_bilinear_grad(dy, x_shape):
    """Gradient of resize_bilinear: dy (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    _check_grad(dy.shape, x_shape)
    n_in, n_out = x_shape[2:], dy.shape[2:]
    return _multiply_transposed(dy, *(_linear_matrix(*sizes, dy) for sizes in zip(n_in, n_out)))


def resize_nearest_forward(x, size, kernels=None):
    """resize_nearest, and the cache for its backward pass. `kernels`: the KernelSet (None: this file)."""
    resize = resize_nearest if kernels is None else kernels.resize_nearest
    return resize(x, size), ResizeCache(x.shape)


def resize_nearest_backward(dy, cache, kernels=None):
    """Gradient of resize_nearest: dy (N, C, OH, OW) -> dx (N, C, H, W)."""
    grad = resize_nearest_grad if kernels is None else kernels.resize_nearest_grad
    return grad(dy, cache.x_shape)


def resize_bilinear_forward(x, size, kernels=None):
    """resize_bilinear, and the cache for its backward pass. `kernels`: the KernelSet (None: this file)."""
    resize = resize_bilinear if kernels is None else kernels.resize_bilinear
    return resize(x, size), ResizeCache(x.shape)


def resize_bilinear_backward(dy, cache, kernels=None):
    """Gradient of resize_bilinear: dy (N, C, OH, OW) -> dx (N, C, H, W)."""
    grad = resize_bilinear_grad if kernels is None else kernels.resize_bilinear_grad
    return grad(dy, cache.x_shape)


def _nearest(n_in, n_out, like):
    """The input index of each output index: (n_out,) ints."""
    scale = np.float32(n_in) / np.float32(n_out)
    return np.minimum((np.arange(n_out, dtype=np.float32, like=like) * scale).astype(np.int64), n_in - 1)


def _nearest_matrix(n_in, n_out, like):
    """The choice of pixels as a matrix (n_out, n_in), a single 1 a row."""
    matrix = np.zeros((n_out, n_in), like.dtype, like=like)
    matrix[np.arange(n_out, like=like), _nearest(n_in, n_out, like)] = 1
    return matrix


def _linear(n_in, n_out, like):
    """The neighbours of each output's sampling point and the second one's weight: (n_out,) each."""
    number = like.dtype.type
    scale, half = number(n_in) / number(n_out), number(0.5)
    point = np.maximum((np.arange(n_out, dtype=like.dtype, like=like) + half) * scale - half, 0)
    low = np.minimum(point.astype(np.int64), n_in - 1)
    return low, np.minimum(low + 1, n_in - 1), point - low.astype(like.dtype)


def _linear_matrix(n_in, n_out, like):
    """The interpolation as a matrix (n_out, n_in), two weights a row."""
    low, high, weight = _linear(n_in, n_out, like)
    matrix, rows = np.zeros((n_out, n_in), like.dtype, like=like), np.arange(n_out, like=like)
    matrix[rows, low] = 1 - weight
    matrix[rows, high] += weight  # at the last input row both neighbours are the same
    return matrix


def _multiply_transposed(dy, ay, ax):
    """dy (N, C, OH, OW), Ay (OH, H), Ax (OW, W) -> dx (N, C, H, W)."""
    # forward: y = Ay @ x @ Ax.T, so dx = Ay.T @ dy @ Ax
    return np.matmul(ay.T, np.matmul(dy, ax))


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
