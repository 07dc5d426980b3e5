"""Max-pooling and global average pooling, and their backward passes."""

from typing import NamedTuple

import numpy as np


class MaxPool2dCache(NamedTuple):
    index: np.ndarray
    x_shape: tuple


class GlobalAvgPoolCache(NamedTuple):
    x_shape: tuple


def max_pool2d(x, kernel, stride=None, padding=0):
    """The largest value of each window; the convention of torch.nn.functional.max_pool2d.

    Parameters
    ----------
    x : (N, C, H, W)
    kernel, stride, padding : int or (vertical, horizontal) pair, in pixels
        stride None: the kernel. Windows may overlap. Padding never wins; it is at most half the kernel.

    Returns
    -------
    y : (N, C, OH, OW), OH = (H + 2 * padding - KH) // stride + 1
    index : (N, C, OH, OW) int64
        Where y came from: the place iy * W + ix in the input's plane. Of equal values the first wins, in
        reading order.

    Raises
    ------
    ValueError
        Not four dimensions, too much padding, or a window larger than the padded input.
    """
    (kh, kw), (sh, sw), (ph, pw) = _pair(kernel), _pair(kernel if stride is None else stride), _pair(padding)
    out_h, out_w = _output_size(x.shape, (kh, kw), (sh, sw), (ph, pw))
    n, channels, height, width = x.shape
    y = np.full((n, channels, out_h, out_w), -np.inf, x.dtype, like=x)
    tap = np.zeros(y.shape, np.int16, like=x)  # the winner's place in its window, i * KW + j
    for i in range(kh):
        rows, ys = _meeting(out_h, sh, i - ph, height)
        for j in range(kw):
            columns, xs = _meeting(out_w, sw, j - pw, width)
            # The windows whose place (i, j) lies in the image, and the pixels there: padding takes no part
            best, candidate = y[:, :, rows, columns], x[:, :, ys, xs]
            # A later winner has the larger place, so a maximum puts it in (far faster than a masked copy)
            won = (candidate > best) * np.int16(i * kw + j)
            np.maximum(tap[:, :, rows, columns], won, out=tap[:, :, rows, columns])
            np.maximum(best, candidate, out=best)
    # From the place in the window to the place in the plane. The clips matter only for a window of nothing
    # but -inf, where no candidate won: they choose its first pixel.
    place_y, place_x = np.divmod(np.arange(kh * kw, like=x), kw)
    index = np.maximum(place_y[tap] + (np.arange(out_h, like=x) * sh - ph)[:, None], 0)
    index *= width
    index += np.maximum(place_x[tap] + (np.arange(out_w, like=x) * sw - pw), 0)
    return y, index


def max_pool2d_grad(dy, index, x_shape):
    """Gradient of max_pool2d: dy, index (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    if len(x_shape) != 4 or dy.shape != index.shape or dy.shape[:2] != tuple(x_shape[:2]):
        raise ValueError(f"dy {dy.shape} and index {index.shape} must be alike and fit x_shape {x_shape}")
    n, channels, height, width = x_shape
    dx = np.zeros(n * channels * height * width, dy.dtype, like=dy)
    plane = np.arange(n * channels, like=index).reshape(n, channels, 1, 1) * (height * width)
    # forward: y = x[index]. Windows overlap, so one pixel may have won several times: its gradients add up
    np.add.at(dx, (index + plane).reshape(-1), dy.reshape(-1))
    return dx.reshape(x_shape)


def max_pool2d_forward(x, kernel, stride=None, padding=0, kernels=None):
    """max_pool2d's y, and the cache for its backward pass. `kernels`: the KernelSet (None: this file)."""
    pool = max_pool2d if kernels is None else kernels.max_pool2d
    y, index = pool(x, kernel, stride, padding)
    return y, MaxPool2dCache(index, x.shape)


def max_pool2d_backward(dy, cache, kernels=None):
    """Gradient of max_pool2d: dy (N, C, OH, OW) -> dx (N, C, H, W)."""
    grad = max_pool2d_grad if kernels is None else kernels.max_pool2d_grad
    return grad(dy, cache.index, cache.x_shape)


def global_avg_pool_forward(x):
    """Mean of every plane: x (N, C, H, W) -> y (N, C), cache."""
    if x.ndim != 4 or x.shape[2] * x.shape[3] == 0:
        raise ValueError(f"x must be (N, C, H, W) with at least one pixel a plane, not {x.shape}")
    return x.mean(axis=(2, 3)), GlobalAvgPoolCache(x.shape)


def global_avg_pool_backward(dy, cache):
    """Gradient of global_avg_pool: dy (N, C) -> dx (N, C, H, W)."""
    n, channels, height, width = cache.x_shape
    if dy.shape != (n, channels):
        raise ValueError(f"dy must be {(n, channels)}, not {dy.shape}")
    # forward: y = sum(x) / (H * W), so every pixel gets the same share
    dx = np.empty(cache.x_shape, dy.dtype, like=dy)
    dx[...] = (dy / (height * width))[:, :, None, None]
    return dx


def _meeting(out_size, stride, offset, size):
    """The outputs o with 0 <= o * stride + offset < size, and those inputs: a slice each."""
    first = max(0, -(offset // stride))  # the ceiling of -offset / stride
    last = min(out_size - 1, (size - 1 - offset) // stride)
    count = max(0, last - first + 1)
    start = first * stride + offset
    return slice(first, first + count), slice(start, start + max(0, (count - 1) * stride + 1), stride)


def _output_size(x_shape, kernel, stride, padding):
    if len(x_shape) != 4:
        raise ValueError(f"x must be (N, C, H, W), not {x_shape}")
    too_much = any(2 * p > k for p, k in zip(padding, kernel))
    if min(kernel) < 1 or min(stride) < 1 or min(padding) < 0 or too_much:
        raise ValueError(f"kernel {kernel} and stride {stride} must be positive, "
                         f"padding {padding} at most half the kernel and not negative")
    out_h, out_w = ((size + 2 * p - k) // s + 1
                    for size, p, k, s in zip(x_shape[2:], padding, kernel, stride))
    if out_h < 1 or out_w < 1:
        raise ValueError(f"the window {kernel} is larger than x {x_shape} with padding {padding}")
    return out_h, out_w


def _pair(value):
    return (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
