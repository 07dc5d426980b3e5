"""Convolution and its gradients: checks the arguments, chooses a version, launches it. Signatures of nprcnn.ops.conv.

Versions 2 to 4 take no groups; version 4 takes float32, a depth (C * KH * KW) that is a multiple of 4 and filters of at most 32 taps.
"""

import functools

import numpy as np

from .launch import THREADS, array_module, blocks_for, contiguous, launch
from .norm_relu import norm_relu

FILES = {1: "conv2d_v1_naive", 2: "conv2d_v2_tiles", 3: "conv2d_v3_registers", 4: "conv2d_v4_vectors"}
TILE = {2: 16, 3: 64, 4: 128}
BLOCKS_WANTED = 512     # for grad_w: enough for a GPU of some hundred multiprocessors to have work


def geometry(x_shape, w_shape, stride, padding, dilation, groups):
    """All sizes, checked: N, C, H, W, O, KH, KW, OH, OW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w: the order the kernels take."""
    stride, padding, dilation = (tuple(v) if np.ndim(v) else (int(v), int(v)) for v in (stride, padding, dilation))
    if len(x_shape) != 4 or len(w_shape) != 4:
        raise ValueError(f"x must be (N, C, H, W) and w (O, C / groups, KH, KW), not {tuple(x_shape)} and {tuple(w_shape)}")
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1:
        raise ValueError(f"stride {stride}, dilation {dilation} and groups {groups} must be positive and padding {padding} not negative")
    (n, channels, height, width), (out_channels, group_channels, kh, kw) = x_shape, w_shape
    if min(w_shape) < 1 or channels != group_channels * groups or out_channels % groups:
        raise ValueError(f"x {tuple(x_shape)} and w {tuple(w_shape)} do not fit with groups={groups}: w must be (O, C / groups, KH, KW), "
                         "groups dividing O")
    out_h = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(f"the kernel of w {tuple(w_shape)} with dilation {dilation} is larger than x {tuple(x_shape)} with padding {padding}")
    return n, channels, height, width, out_channels, kh, kw, out_h, out_w, *stride, *padding, *dilation


def choose(sizes, groups, real):
    """The version for this convolution, forward or gradient to the data.

    Run on the CPU (one x86-64 core, g++ -O2), version 4 took .8 of version 1's time with 16 channels in and 32 out, and .2 of it with 256
    and 256.
    """
    _, channels, _, _, out_channels, kh, kw, *_ = sizes
    if groups > 1 or out_channels < 32:
        return 1
    return 4 if takes_v4(channels, kh, kw, real) else 3


def takes_v4(channels, kh, kw, real):
    """Does version 4 take filters (., channels, kh, kw) of this dtype?"""
    return real == np.float32 and channels * kh * kw % 4 == 0 and kh * kw <= 32


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, version=None):
    """x (N, C, H, W), w (O, C / groups, KH, KW), b (O,) or None -> y (N, O, OH, OW)."""
    sizes = geometry(x.shape, w.shape, stride, padding, dilation, groups)
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"b must be ({w.shape[0]},), one number an output channel, not {b.shape}")
    xp, real = array_module(x), np.result_type(x, w)
    n, _, _, _, out_channels, _, _, out_h, out_w, *_ = sizes
    y = xp.empty((n, out_channels, out_h, out_w), real)
    if y.size == 0:
        return y
    b = xp.zeros(out_channels, real) if b is None else b
    x, w, b = (contiguous(a, real) for a in (x, w, b))
    version = version or choose(sizes, groups, real)
    if version == 1:
        launch(FILES[1], "conv2d", blocks_for(y.size), THREADS, (x, w, b, y, *sizes, groups), real)
    else:
        _refuse_groups(version, groups)
        if version == 4 and not takes_v4(sizes[1], sizes[5], sizes[6], real):
            raise ValueError(f"version 4 of the convolution takes float32, C * KH * KW a multiple of 4 and at most 32 taps, not w {w.shape} "
                             f"of {real}")
        grid = _grid(version, n * out_h * out_w, out_channels)
        arrays = (x, w, b, tap_table(xp, sizes), y) if version == 4 else (x, w, b, y)
        launch(FILES[version], "conv2d", grid, (16, 16), (*arrays, *sizes), real)
    return y


def conv2d_fused(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, scale=None, shift=None, residual=None, relu=False):
    """relu(conv2d(x, w, b, ...) * scale + shift + residual), what is None left out: the convolution, and one pass over its output.

    scale, shift : (O,); residual : of y's shape (N, O, OH, OW).
    """
    sizes = geometry(x.shape, w.shape, stride, padding, dilation, groups)
    n, out_channels, out_h, out_w = sizes[0], sizes[4], sizes[7], sizes[8]
    for vector, name in ((scale, "scale"), (shift, "shift")):
        if vector is not None and vector.shape != (out_channels,):
            raise ValueError(f"{name} must be ({out_channels},), one number an output channel, not {vector.shape}")
    if residual is not None and residual.shape != (n, out_channels, out_h, out_w):
        raise ValueError(f"residual must have the output's shape {(n, out_channels, out_h, out_w)}, not {residual.shape}")
    y = conv2d(x, w, b, stride, padding, dilation, groups)
    if scale is None and shift is None and residual is None and not relu:
        return y
    xp = array_module(y)
    scale = xp.ones(out_channels, y.dtype) if scale is None else scale
    shift = xp.zeros(out_channels, y.dtype) if shift is None else shift
    return norm_relu(y, scale, shift, residual, relu)


def conv2d_grad_x(dy, w, x_shape, stride=1, padding=0, dilation=1, groups=1, version=None):
    """Gradient to the input: dy (N, O, OH, OW) -> dx, of `x_shape`."""
    sizes = geometry(x_shape, w.shape, stride, padding, dilation, groups)
    n, channels, height, width, out_channels, kh, kw, out_h, out_w, *_ = sizes
    _check_dy(dy, sizes)
    xp, real = array_module(dy), np.result_type(dy, w)
    version = version or choose(sizes, groups, real)
    if version == 4:
        rest = _turned_padding(sizes)
        if rest is None or not takes_v4(out_channels, kh, kw, real):
            version = 3
        else:
            # forward: y[q] = sum over i of w[i] x[q + i - padding]: dx is a convolution of dy with the filters turned round
            turned = w.swapaxes(0, 1)[:, :, ::-1, ::-1]
            return conv2d(dy, turned, None, 1, rest, dilation, 1, version=4)
    dx = xp.empty(tuple(x_shape), real)
    if dx.size == 0:
        return dx
    dy, w = contiguous(dy, real), contiguous(w, real)
    if version == 1:
        launch(FILES[1], "conv2d_grad_x", blocks_for(dx.size), THREADS, (dy, w, dx, *sizes, groups), real)
    else:
        _refuse_groups(version, groups)
        launch(FILES[version], "conv2d_grad_x", _grid(version, n * height * width, channels), (16, 16), (dy, w, dx, *sizes), real)
    return dx


def conv2d_grad_w(dy, x, w_shape, stride=1, padding=0, dilation=1, groups=1, version=None):
    """Gradient to the filters: dy (N, O, OH, OW), x (N, C, H, W) -> dw, of `w_shape`."""
    sizes = geometry(x.shape, w_shape, stride, padding, dilation, groups)
    n, _, _, _, out_channels, _, _, out_h, out_w, *_ = sizes
    _check_dy(dy, sizes)
    xp, real = array_module(dy), np.result_type(dy, x)
    dw = xp.zeros(tuple(w_shape), real)
    if dy.size == 0:
        return dw
    dy, x = contiguous(dy, real), contiguous(x, real)
    # On the CPU version 1 is the fastest here: its inner loop runs along rows of both arrays
    version = min(version or (1 if xp is np else choose(sizes, groups, real)), 3)
    if version == 1:
        launch(FILES[1], "conv2d_grad_w", blocks_for(dw.size), THREADS, (dy, x, dw, *sizes, groups), real)
        return dw
    _refuse_groups(version, groups)
    columns = dw.size // out_channels
    grid = _grid(version, columns, out_channels)
    parts = max(1, min(blocks_for(n * out_h * out_w, 256), BLOCKS_WANTED // (grid[0] * grid[1]), 64))
    sums = xp.empty((parts, *w_shape), real)
    launch(FILES[version], "conv2d_grad_w", (*grid, parts), (16, 16), (dy, x, sums, *sizes), real)
    launch(FILES[version], "sum_parts", blocks_for(dw.size), THREADS, (sums, dw, parts, dw.size), real)
    return dw


def tap_table(xp, sizes):
    """(C * KH * KW, 2) int32 for version 4: where tap (c, i, j) lies, counted from a patch's corner, and its number i * KW + j."""
    return _tap_table(xp, sizes[1], sizes[2], sizes[3], sizes[5], sizes[6], sizes[13], sizes[14])


@functools.lru_cache(maxsize=256)
def _tap_table(xp, channels, height, width, kh, kw, dil_h, dil_w):
    c, i, j = (a.reshape(-1) for a in np.mgrid[:channels, :kh, :kw])
    offset = c * height * width + i * dil_h * width + j * dil_w
    return xp.asarray(np.stack((offset, i * kw + j), axis=1).astype(np.int32))


def _turned_padding(sizes):
    """The padding with which dx is a convolution of dy, or None if it is none (a stride, or padding beyond the kernel)."""
    kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w = (*sizes[5:7], *sizes[9:])
    rest = dil_h * (kh - 1) - pad_h, dil_w * (kw - 1) - pad_w
    return rest if stride_h == stride_w == 1 and min(rest) >= 0 else None


def _grid(version, columns, rows):
    return blocks_for(columns, TILE[version]), blocks_for(rows, TILE[version])


def _refuse_groups(version, groups):
    if groups > 1:
        raise ValueError(f"version {version} of the convolution takes no groups, got {groups}: use version 1")


def _check_dy(dy, sizes):
    wanted = sizes[0], sizes[4], sizes[7], sizes[8]
    if dy.shape != wanted:
        raise ValueError(f"dy must have the output's shape {wanted}, not {dy.shape}")
