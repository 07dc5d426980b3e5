"""Convolution, frozen norm, shortcut and ReLU as one operation with one backward pass.

    y = relu(s),  s = conv2d(x, w, b) * scale + shift + residual

Step by step it is four operations, each of which writes a map and keeps it for its own backward pass. But a frozen norm is a
constant scale and shift a channel, so that the backward pass needs none of the maps in between:

- the ReLU's gradient needs to know where s > 0, and that is where y > 0;
- the scale of a channel multiplies its filter: conv2d(x, w) * scale = conv2d(x, scale * w), and a filter is small.

What is lost is the map before the ReLU: s = conv2d_fused(..., relu=False) makes it again. A norm with the batch's statistics cannot be
folded so: they are known only after the whole map is.
"""

from typing import NamedTuple, Optional

import numpy as np

from .activation import relu_grad
from .conv import _pair, conv2d_fused, conv2d_grad_w, conv2d_grad_x


class Conv2dFusedCache(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    y: Optional[np.ndarray]        # None without ReLU
    scale: Optional[np.ndarray]
    has_bias: bool
    has_residual: bool
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int


def conv2d_fused_forward(x, w, b=None, residual=None, scale=None, shift=None, relu=False, stride=1, padding=0, dilation=1, groups=1,
                         kernels=None):
    """conv2d_fused, and the cache for its backward pass. What has a gradient comes first.

    Arguments are those of nprcnn.ops.conv.conv2d_fused. `kernels`: the KernelSet to use (None: nprcnn.ops).
    """
    fused = conv2d_fused if kernels is None else kernels.conv2d_fused
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    y = fused(x, w, b, stride, padding, dilation, groups, scale, shift, residual, relu)
    return y, Conv2dFusedCache(x, w, y if relu else None, scale, b is not None, residual is not None, stride, padding, dilation,
                               groups)


def conv2d_fused_backward(dy, cache, needs_dx=True, kernels=None):
    """Gradients of conv2d_fused; scale and shift are constants.

    Parameters
    ----------
    dy : (N, O, OH, OW)
    cache : Conv2dFusedCache
    needs_dx : bool
        False for a first layer: nobody wants the gradient to the image.

    Returns
    -------
    dx : (N, C, H, W), or None if not needed
    dw : (O, C / groups, KH, KW)
    db : (O,), or None if there was no bias
    dresidual : (N, O, OH, OW), or None if there was none. It may be dy itself.
    """
    grad_x = conv2d_grad_x if kernels is None else kernels.conv2d_grad_x
    grad_w = conv2d_grad_w if kernels is None else kernels.conv2d_grad_w
    mask = relu_grad if kernels is None else kernels.relu_grad
    x, w, y, scale, has_bias, has_residual, *options = cache
    # forward: y = relu(s)
    ds = dy if y is None else mask(dy, y)
    # forward: s = conv2d(x, w) * scale + ... = conv2d(x, scale * w) + ..., so dx is conv2d's with the scaled filters,
    scaled_w = w if scale is None else w * scale[:, None, None, None]
    dx = grad_x(ds, scaled_w, x.shape, *options) if needs_dx else None
    # ... and dw = scale * d(scaled w)
    dw = grad_w(ds, x, w.shape, *options)
    # forward: s = (conv2d(x, w) + b) * scale + ..., the same b at every pixel of every image
    db = ds.sum(axis=(0, 2, 3)) if has_bias else None
    if scale is not None:
        dw *= scale[:, None, None, None]
        db = db * scale if has_bias else None
    # forward: s = ... + residual
    return dx, dw, db, ds if has_residual else None
