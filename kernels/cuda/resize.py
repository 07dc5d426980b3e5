"""Resizing and its gradients. Signatures of nprcnn.ops.resize."""

import numpy as np

from .launch import REAL, THREADS, array_module, blocks_for, contiguous, launch

FILE = "resize_v1"


def resize_nearest(x, size):
    """x (N, C, H, W) of any dtype, size (OH, OW) -> y (N, C, OH, OW)."""
    _check(x.shape, size)
    if x.dtype not in REAL:     # masks: integers have no kernel, and need no gradient
        xp = array_module(x)
        rows, columns = (xp.asarray(_nearest(n_in, n_out)) for n_in, n_out in zip(x.shape[2:], size))
        return xp.take(xp.take(x, columns, axis=3), rows, axis=2)
    return _resize("resize_nearest", x, size)


def resize_nearest_grad(dy, x_shape):
    """dy (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W). The same bits in every run."""
    return _resize_grad("resize_nearest_grad", dy, x_shape)


def resize_bilinear(x, size):
    """x (N, C, H, W) floating, size (OH, OW) -> y (N, C, OH, OW)."""
    _check(x.shape, size)
    if x.dtype.kind != "f":
        raise ValueError(f"bilinear resizing needs floating values, not {x.dtype}")
    return _resize("resize_bilinear", x, size)


def resize_bilinear_grad(dy, x_shape):
    """dy (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W). The same bits in every run."""
    return _resize_grad("resize_bilinear_grad", dy, x_shape)


def _nearest(n_in, n_out):
    """The input index of each output index, in float32 as the kernel computes it: (n_out,) int64."""
    scale = np.float32(n_in) / np.float32(n_out)
    return np.minimum((np.arange(n_out, dtype=np.float32) * scale).astype(np.int64), n_in - 1)


def _resize(function, x, size):
    (n, channels, height, width), (out_h, out_w) = x.shape, size
    y = array_module(x).empty((n, channels, int(out_h), int(out_w)), x.dtype)
    if y.size:
        launch(FILE, function, blocks_for(y.size), THREADS, (contiguous(x), y, n * channels, height, width, out_h, out_w), x.dtype)
    return y


def _resize_grad(function, dy, x_shape):
    if len(dy.shape) != 4:
        raise ValueError(f"dy must be (N, C, OH, OW), not {dy.shape}")
    _check(x_shape, dy.shape[2:])
    if dy.shape[:2] != tuple(x_shape[:2]):
        raise ValueError(f"dy {dy.shape} does not fit x_shape {x_shape}")
    n, channels, height, width = x_shape
    dx = array_module(dy).empty(tuple(x_shape), dy.dtype)
    if dx.size:
        launch(FILE, function, blocks_for(dx.size), THREADS, (contiguous(dy), dx, n * channels, height, width, *dy.shape[2:]), dy.dtype)
    return dx


def _check(shape, size):
    if len(shape) != 4 or min(shape[1:]) < 1:
        raise ValueError(f"x must be (N, C, H, W) with at least one pixel, not {shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), at least one pixel each, not {size}")
