"""Max-pooling and its gradient. Signatures of nprcnn.ops.pool."""

import numpy as np

from .launch import THREADS, array_module, blocks_for, contiguous, launch

FILE = "max_pool2d_v1"


def max_pool2d(x, kernel, stride=None, padding=0):
    """x (N, C, H, W) -> y (N, C, OH, OW), index of the same shape (int64, iy * W + ix; of equal values the first)."""
    stride = kernel if stride is None else stride
    (kh, kw), (sh, sw), (ph, pw) = (tuple(v) if np.ndim(v) else (int(v), int(v)) for v in (kernel, stride, padding))
    if x.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W), not {x.shape}")
    if min(kh, kw, sh, sw) < 1 or min(ph, pw) < 0 or 2 * ph > kh or 2 * pw > kw:
        raise ValueError(f"kernel {(kh, kw)} and stride {(sh, sw)} must be positive, padding {(ph, pw)} at most half the kernel and not "
                         "negative")
    n, channels, height, width = x.shape
    out_h, out_w = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(f"the window {(kh, kw)} is larger than x {x.shape} with padding {(ph, pw)}")
    xp = array_module(x)
    y = xp.empty((n, channels, out_h, out_w), x.dtype)
    index = xp.empty(y.shape, np.int64)
    if y.size:
        launch(FILE, "max_pool2d", blocks_for(y.size), THREADS,
               (contiguous(x), y, index, n * channels, height, width, out_h, out_w, kh, kw, sh, sw, ph, pw), x.dtype)
    return y, index


def max_pool2d_grad(dy, index, x_shape, deterministic=False):
    """dy, index (N, C, OH, OW) -> dx, of `x_shape` (N, C, H, W). deterministic: the same bits in every run."""
    if len(x_shape) != 4 or dy.shape != index.shape or dy.shape[:2] != tuple(x_shape[:2]):
        raise ValueError(f"dy {dy.shape} and index {index.shape} must be alike and fit x_shape {x_shape}")
    xp = array_module(dy)
    planes = dy.shape[0] * dy.shape[1]
    dx = xp.zeros(tuple(x_shape), dy.dtype)
    if dy.size:
        function, threads = ("max_pool2d_grad_ordered", planes) if deterministic else ("max_pool2d_grad", dy.size)
        launch(FILE, function, blocks_for(threads), THREADS,
               (contiguous(dy), contiguous(index, np.int64), dx, planes, x_shape[2] * x_shape[3], dy.size // planes), dy.dtype)
    return dx
