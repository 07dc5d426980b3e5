"""Convolution and its gradients: checks the arguments, chooses a version, launches it. Signatures of nprcnn.ops.conv.

Versions 2 and later take no groups; versions 4 and 5 take float32, a depth (C * KH * KW) that is a multiple of 4 and filters of at most
32 taps. Two are never chosen unless they are asked for, because their numbers are further from NumPy's: version 5, which rounds to TF32
(`tf32=True`), and "winograd", for 3x3 filters with stride 1 (`winograd=True`).
"""

import functools

import numpy as np

from .launch import THREADS, array_module, blocks_for, contiguous, launch
from .norm_relu import norm_relu

FILES = {1: "conv2d_v1_naive", 2: "conv2d_v2_tiles", 3: "conv2d_v3_registers", 4: "conv2d_v4_vectors", 5: "conv2d_v5_tensor_cores",
         "winograd": "conv2d_winograd"}
TILE = {2: 16, 3: 64, 4: 128, 5: 128, "winograd": 128}
TENSOR_CORES_FROM = 80  # compute capability 8.0 (sm_80) is the first with TF32
BLOCKS_WANTED = 512     # for grad_w: enough for a GPU of some hundred multiprocessors to have work


class NoTensorCores(RuntimeError):
    """The GPU is too old for TF32; the message says what to do."""


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


def choose(sizes, groups, real, tf32=False, winograd=False):
    """The version for this convolution, forward or gradient to the data; version 5 and "winograd" only where they are allowed.

    Run on the CPU (one x86-64 core, g++ -O2), version 4 took .8 of version 1's time with 16 channels in and 32 out, and .2 of it with 256
    and 256.
    """
    _, channels, _, _, out_channels, kh, kw, *_ = sizes
    if groups > 1 or out_channels < 32:
        return 1
    if tf32 and takes_v4(channels, kh, kw, real):
        return 5
    if winograd and channels >= 32 and takes_winograd(sizes, groups, real):
        return "winograd"
    return 4 if takes_v4(channels, kh, kw, real) else 3


def takes_v4(channels, kh, kw, real):
    """Do versions 4 and 5 take filters (., channels, kh, kw) of this dtype?"""
    return real == np.float32 and channels * kh * kw % 4 == 0 and kh * kw <= 32


def takes_winograd(sizes, groups, real):
    """Does "winograd" take this convolution?"""
    return real == np.float32 and groups == 1 and sizes[5:7] == (3, 3) and sizes[9:11] == (1, 1) and sizes[13:] == (1, 1)


def winograd_share(sizes):
    """Multiplications of "winograd" over those of the formula: 1/4 if 4x4 tiles fill the output, and what the transforms take.

    A figure on paper, for a transform's steps are additions too, and it does not count bytes: V and M (see the file) are written and read
    beside x and y. Nothing of this was measured on a GPU.
    """
    n, channels, _, _, out_channels, _, _, out_h, out_w, *_ = sizes
    tiles = n * -(-out_h // 4) * -(-out_w // 4)
    # B^T d B: 12 times 6 products; A^T m A: 10 times 4
    transforms = 72 * channels * tiles + 40 * out_channels * tiles
    return (36 * out_channels * channels * tiles + transforms) / (9 * out_channels * channels * n * out_h * out_w)


def check_tensor_cores(xp):
    """Nothing if the GPU that xp (cupy) uses has TF32, or if xp is numpy, for the CPU plays tensor cores.

    Raises
    ------
    NoTensorCores
    """
    if xp is np:
        return
    capability = xp.cuda.Device().compute_capability        # such as "75"
    if int(capability) < TENSOR_CORES_FROM:
        raise NoTensorCores(f"version 5 of the convolution (TF32) needs tensor cores of compute capability 8.0 or later (A100, RTX 30 and "
                            f"newer); this GPU has {capability[:-1]}.{capability[-1]}: leave tf32 off, or choose version 4")


def round_to_tf32(array):
    """The TF32 numbers nearest to float32 ones, as float32: 10 bits behind the point; of two equally near the one further from 0."""
    array = np.asarray(array, np.float32)
    rounded = ((array.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xffffe000)).view(np.float32)
    return np.where(np.isfinite(array), rounded, array)


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, version=None, tf32=False, winograd=False):
    """x (N, C, H, W), w (O, C / groups, KH, KW), b (O,) or None -> y (N, O, OH, OW).

    version : one of FILES; None: `choose` does
    tf32, winograd : may it choose version 5, which rounds x and w to TF32, and "winograd"?
    """
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
    version = version or choose(sizes, groups, real, tf32, winograd)
    if version == 1:
        launch(FILES[1], "conv2d", blocks_for(y.size), THREADS, (x, w, b, y, *sizes, groups), real)
    elif version == "winograd":
        if not takes_winograd(sizes, groups, real):
            raise ValueError(f"winograd takes float32, 3x3 filters, stride 1, no dilation and no groups, not w {w.shape} of {real}, stride "
                             f"{sizes[9:11]}, dilation {sizes[13:]}, groups {groups}")
        _launch_winograd(xp, x, w, b, y, sizes)
    else:
        _refuse_groups(version, groups)
        if version >= 4 and not takes_v4(sizes[1], sizes[5], sizes[6], real):
            raise ValueError(f"version {version} of the convolution takes float32, C * KH * KW a multiple of 4 and at most 32 taps, not w "
                             f"{w.shape} of {real}")
        if version == 5:
            check_tensor_cores(xp)
        grid = _grid(version, n * out_h * out_w, out_channels)
        arrays = (x, w, b, tap_table(xp, sizes), y) if version >= 4 else (x, w, b, y)
        launch(FILES[version], "conv2d", grid, (16, 16), (*arrays, *sizes), real)
    return y


def _launch_winograd(xp, x, w, b, y, sizes):
    """The four kernels of conv2d_winograd.cu, with room for what is between them: V and M take 36 / 16 of what x and y take."""
    n, channels, height, width, out_channels, _, _, out_h, out_w, _, _, pad_h, pad_w, *_ = sizes
    tiles_h, tiles_w = -(-out_h // 4), -(-out_w // 4)
    tiles = n * tiles_h * tiles_w
    tiles4, out4 = -(-tiles // 4) * 4, -(-out_channels // 4) * 4         # in whole vectors of four
    file, real = FILES["winograd"], np.dtype(np.float32)
    filters, inputs = xp.empty((36, channels, out4), real), xp.empty((36, channels, tiles4), real)
    products = xp.empty((36, out_channels, tiles4), real)
    launch(file, "winograd_filters", (blocks_for(out4), channels), THREADS, (w, filters, out_channels, channels, out4), real)
    launch(file, "winograd_inputs", (blocks_for(tiles4), channels), THREADS,
           (x, inputs, channels, height, width, pad_h, pad_w, tiles_h, tiles_w, tiles, tiles4), real)
    launch(file, "winograd_products", (*_grid("winograd", tiles4, out_channels), 36), (16, 16),
           (filters, inputs, products, out_channels, channels, out4, tiles4), real)
    launch(file, "winograd_outputs", (blocks_for(tiles), out_channels), THREADS,
           (products, b, y, out_channels, out_h, out_w, tiles_h, tiles_w, tiles, tiles4), real)


def conv2d_fused(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, scale=None, shift=None, residual=None, relu=False,
                 tf32=False, winograd=False):
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
    y = conv2d(x, w, b, stride, padding, dilation, groups, tf32=tf32, winograd=winograd)
    if scale is None and shift is None and residual is None and not relu:
        return y
    xp = array_module(y)
    scale = xp.ones(out_channels, y.dtype) if scale is None else scale
    shift = xp.zeros(out_channels, y.dtype) if shift is None else shift
    return norm_relu(y, scale, shift, residual, relu)


def conv2d_grad_x(dy, w, x_shape, stride=1, padding=0, dilation=1, groups=1, version=None, tf32=False, winograd=False):
    """Gradient to the input: dy (N, O, OH, OW) -> dx, of `x_shape`. version, tf32, winograd: as in conv2d."""
    sizes = geometry(x_shape, w.shape, stride, padding, dilation, groups)
    n, channels, height, width, out_channels, kh, kw, out_h, out_w, *_ = sizes
    _check_dy(dy, sizes)
    xp, real = array_module(dy), np.result_type(dy, w)
    version = version or choose(sizes, groups, real, tf32, winograd)
    if version not in (1, 2, 3):
        rest = _turned_padding(sizes)
        taken = takes_winograd(sizes, groups, real) if version == "winograd" else takes_v4(out_channels, kh, kw, real)
        if rest is None or not taken:
            version = 3
        else:
            # forward: y[q] = sum over i of w[i] x[q + i - padding]: dx is a convolution of dy with the filters turned round
            turned = w.swapaxes(0, 1)[:, :, ::-1, ::-1]
            return conv2d(dy, turned, None, 1, rest, dilation, 1, version=version)
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


def conv2d_grad_w(dy, x, w_shape, stride=1, padding=0, dilation=1, groups=1, version=None, tf32=False):
    """Gradient to the filters: dy (N, O, OH, OW), x (N, C, H, W) -> dw, of `w_shape`. version, tf32: as in conv2d.

    Versions 4 and 5 take float32 and filters of at most 32 taps, any depth. "winograd" has no kernel for it.
    """
    sizes = geometry(x.shape, w_shape, stride, padding, dilation, groups)
    n, channels, _, _, out_channels, kh, kw, out_h, out_w, *_ = sizes
    _check_dy(dy, sizes)
    xp, real = array_module(dy), np.result_type(dy, x)
    dw = xp.zeros(tuple(w_shape), real)
    if dy.size == 0:
        return dw
    dy, x = contiguous(dy, real), contiguous(x, real)
    if version is None:
        # On the CPU version 1 is the fastest here: its inner loop runs along rows of both arrays
        version = 1 if xp is np or groups > 1 or out_channels < 32 else 5 if tf32 else 4
    if version == 1:
        launch(FILES[1], "conv2d_grad_w", blocks_for(dw.size), THREADS, (dy, x, dw, *sizes, groups), real)
        return dw
    _refuse_groups(version, groups)
    if version not in (2, 3) and (version == "winograd" or real != np.float32 or kh * kw > 32):
        version = 3
    arrays = dy, x
    if version >= 4:
        pixels = xp.empty((n * out_h * out_w, 4), np.dtype(np.int32))
        launch(FILES[4], "pixel_table", blocks_for(len(pixels)), THREADS, (pixels, *sizes), real)
        arrays = dy, x, pixels, tap_table(xp, sizes)
    if version == 5:
        check_tensor_cores(xp)
    columns = dw.size // out_channels
    grid = _grid(version, columns, out_channels)
    parts = max(1, min(blocks_for(n * out_h * out_w, 256), BLOCKS_WANTED // (grid[0] * grid[1]), 64))
    sums = xp.empty((parts, *w_shape), real)
    launch(FILES[version], "conv2d_grad_w", (*grid, parts), (16, 16), (*arrays, sums, *sizes), real)
    launch(FILES[version], "sum_parts", blocks_for(dw.size), THREADS, (sums, dw, parts, dw.size), real)
    return dw


def tap_table(xp, sizes):
    """(C * KH * KW, 2) int32 for versions 4 and 5: where tap (c, i, j) lies, counted from a patch's corner, and its number i * KW + j."""
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
