"""Frozen batch norm, residual and ReLU in one launch."""

import numpy as np

from .launch import THREADS, array_module, blocks_for, contiguous, launch


def norm_relu(x, scale, shift, residual=None, relu=True):
    """y = max(x * scale + shift + residual, 0).

    Parameters
    ----------
    x : (N, C, H, W)
    scale, shift : (C,); scale = weight / sqrt(running_var + eps), shift = bias - running_mean * scale
    residual : (N, C, H, W) or None
    relu : bool, False leaves out the maximum

    Returns
    -------
    (N, C, H, W)
    """
    if x.ndim != 4 or scale.shape != x.shape[1:2] or shift.shape != x.shape[1:2] or (residual is not None and residual.shape != x.shape):
        raise ValueError(f"x must be (N, C, H, W), scale and shift (C,), residual like x; got {x.shape}, {scale.shape}, {shift.shape}, "
                         f"{None if residual is None else residual.shape}")
    xp, real = array_module(x), x.dtype
    y = xp.empty(x.shape, real)
    if y.size:
        other = xp.zeros(1, real) if residual is None else contiguous(residual, real)
        launch("norm_relu_v1", "norm_relu", blocks_for(y.size), THREADS,
               (contiguous(x), contiguous(scale, real), contiguous(shift, real), other, y, y.size, x.shape[1], int(np.prod(x.shape[2:])),
                int(residual is not None), int(relu)), real)
    return y
