"""Transposed convolution ("deconvolution"), which doubles the mask head's features in size, and its backward.

It is the adjoint of conv2d: every input pixel adds w, times its value, to a KH x KW patch of the output. So
each of its three functions is one of conv2d's: forward is conv2d's gradient to its input, and the gradient to
the input is conv2d.
"""

from typing import NamedTuple

import numpy as np

from nprcnn.ops import conv


class ConvTranspose2dCache(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    has_bias: bool
    stride: tuple
    padding: tuple


def conv_transpose2d(x, w, b=None, stride=1, padding=0, relu=False, kernels=None):
    """Transposed convolution of features, the convention of torch.nn.functional.conv_transpose2d; with relu=True, the ReLU of it.

    Parameters
    ----------
    x : (N, C, H, W)
    w : (C, O, KH, KW): input channels first, unlike conv2d's
    b : (O,) or None
    stride, padding : int or (vertical, horizontal) pair; the padding is cut off the output's border
    kernels : KernelSet whose `conv_transpose2d`, or else `conv2d_grad_x`, does the work; None: conv.py

    Returns
    -------
    y : (N, O, OH, OW), OH = (H - 1) * stride - 2 * padding + KH

    Raises
    ------
    ValueError
        Shapes that do not fit each other, or an output that the padding leaves empty.
    """
    stride, padding = conv._pair(stride), conv._pair(padding)
    y_shape = output_shape(x.shape, w.shape, b, stride, padding)
    if getattr(kernels, "conv_transpose2d", None) is not None:
        return kernels.conv_transpose2d(x, w, b, stride, padding, relu)
    grad_x = conv.conv2d_grad_x if kernels is None else kernels.conv2d_grad_x
    y = grad_x(x, w, y_shape, stride, padding)
    if b is not None:
        y += b[:, None, None]
    return np.maximum(y, 0, out=y) if relu else y


def conv_transpose2d_forward(x, w, b=None, stride=1, padding=0, kernels=None):
    """conv_transpose2d, and the cache for its backward pass."""
    y = conv_transpose2d(x, w, b, stride, padding, kernels=kernels)
    return y, ConvTranspose2dCache(x, w, b is not None, conv._pair(stride), conv._pair(padding))


def conv_transpose2d_backward(dy, cache, kernels=None):
    """Gradients: dy (N, O, OH, OW) -> dx (N, C, H, W), dw (C, O, KH, KW), db (O,) or None."""
    conv2d = conv.conv2d if kernels is None else kernels.conv2d
    grad_w = conv.conv2d_grad_w if kernels is None else kernels.conv2d_grad_w
    x, w, has_bias, stride, padding = cache
    if dy.shape != output_shape(x.shape, w.shape, None, stride, padding):
        raise ValueError(f"dy {dy.shape} is not the shape of the output for x {x.shape} and w {w.shape}")
    # forward: y = A.T x, where A is conv2d with the filters w, so dx = A dy
    dx = conv2d(dy, w, None, stride, padding)
    # forward: <dy, y> = <dy, A.T x> = <A dy, x>: dw is that of conv2d with input dy and output gradient x
    dw = grad_w(x, dy, w.shape, stride, padding)
    # forward: y = ... + b, the same b at every pixel of every image
    db = dy.sum(axis=(0, 2, 3)) if has_bias else None
    return dx, dw, db


def output_shape(x_shape, w_shape, b, stride, padding):
    """Check that all fits and return (N, O, OH, OW)."""
    if len(x_shape) != 4 or len(w_shape) != 4 or x_shape[1] != w_shape[0]:
        raise ValueError(f"x must be (N, C, H, W) and w (C, O, KH, KW), not {x_shape} and {w_shape}")
    if b is not None and b.shape != (w_shape[1],):
        raise ValueError(f"b must be ({w_shape[1]},), one number an output channel, not {b.shape}")
    out_h, out_w = ((size - 1) * s - 2 * p + k
                    for size, s, p, k in zip(x_shape[2:], stride, padding, w_shape[2:]))
    if out_h < 1 or out_w < 1:
        raise ValueError(f"padding {padding} leaves no output for x {x_shape} and w {w_shape}")
    return x_shape[0], w_shape[1], out_h, out_w
