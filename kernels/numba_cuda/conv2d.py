"""Convolution and its gradients as CUDA kernels in Python: the twins of kernels/cuda/conv2d_v1_naive.cu and conv2d_v2_tiles.cu.

Version 1 is the formula, one thread an output number. Every number is fetched from global memory again for every product it takes part
in: two loads for one multiplication.

Version 2 sees the same sums as a matrix product,

    y[o, p] = sum over k of w[o, k] * pixels[k, p]        k = (c, i, j): a tap of a filter;  p = (n, oy, ox): a pixel of the output

where pixels[k, p] is the pixel of x that tap k meets at p. That matrix is never built: `input_pixel` says where its numbers lie. A block
of 16 x 16 threads computes 16 x 16 numbers of y. In each step it fetches a tile of 16 x 16 numbers of either matrix into shared memory, a
number a thread, and uses each number 16 times: global memory is read 16 times less.

What a kernel, a block, a grid and a warp are is said in roi_align.py, shared memory and barriers in nms.py.

Letters: N images, C channels, H x W pixels; O output channels, KH x KW filter, OH x OW output. stride, padding, dilation: (vertical,
horizontal).
"""

import numpy as np
from numba import config, cuda

from .gpu import THREADS, ZERO, blocks_for, to_device

T = 16      # the side of a tile


# Version 1


@cuda.jit
def conv2d_v1(x, w, b, y, stride, padding, dilation, groups):
    """x (N, C, H, W), w (O, C / groups, KH, KW), b (O,), y (N, O, OH, OW). One thread a number of y."""
    k = cuda.grid(1)
    if k >= y.size:
        return
    _, _, H, W = x.shape
    _, group_c, KH, KW = w.shape
    _, O, OH, OW = y.shape
    ox, oy, o, n = k % OW, k // OW % OH, k // OW // OH % O, k // OW // OH // O
    first_c = o // (O // groups) * group_c
    total = b[o]
    for c in range(group_c):
        for i in range(KH):
            iy = oy * stride[0] + i * dilation[0] - padding[0]
            if iy < 0 or iy >= H:
                continue
            for j in range(KW):
                ix = ox * stride[1] + j * dilation[1] - padding[1]
                if ix >= 0 and ix < W:
                    total += w[o, c, i, j] * x[n, first_c + c, iy, ix]
    y[n, o, oy, ox] = total


@cuda.jit
def conv2d_grad_x_v1(dy, w, dx, stride, padding, dilation, groups):
    """dy (N, O, OH, OW), w (O, C / groups, KH, KW), dx (N, C, H, W). One thread a number of dx."""
    k = cuda.grid(1)
    if k >= dx.size:
        return
    _, C, H, W = dx.shape
    _, group_c, KH, KW = w.shape
    _, O, OH, OW = dy.shape
    ix, iy, c, n = k % W, k // W % H, k // W // H % C, k // W // H // C
    group_o = O // groups
    first_o = c // group_c * group_o
    total = ZERO
    for o in range(first_o, first_o + group_o):
        for i in range(KH):
            # forward: iy = oy * stride + i * dilation - padding, so oy = (iy + padding - i * dilation) / stride, if that is whole
            up = iy + padding[0] - i * dilation[0]
            oy = up // stride[0]
            if up < 0 or up % stride[0] != 0 or oy >= OH:
                continue
            for j in range(KW):
                left = ix + padding[1] - j * dilation[1]
                ox = left // stride[1]
                if left < 0 or left % stride[1] != 0 or ox >= OW:
                    continue
                total += w[o, c % group_c, i, j] * dy[n, o, oy, ox]
    dx[n, c, iy, ix] = total


@cuda.jit
def conv2d_grad_w_v1(dy, x, dw, stride, padding, dilation, groups):
    """dy (N, O, OH, OW), x (N, C, H, W), dw (O, C / groups, KH, KW). One thread a number of dw."""
    k = cuda.grid(1)
    if k >= dw.size:
        return
    N, _, H, W = x.shape
    O, group_c, KH, KW = dw.shape
    _, _, OH, OW = dy.shape
    j, i, c, o = k % KW, k // KW % KH, k // KW // KH % group_c, k // KW // KH // group_c
    channel = o // (O // groups) * group_c + c
    total = ZERO
    for n in range(N):
        for oy in range(OH):
            iy = oy * stride[0] + i * dilation[0] - padding[0]
            if iy < 0 or iy >= H:
                continue
            for ox in range(OW):
                ix = ox * stride[1] + j * dilation[1] - padding[1]
                # forward: y[oy, ox] += w[i, j] * x[iy, ix], so dw[i, j] += dy[oy, ox] * x[iy, ix]
                if ix >= 0 and ix < W:
                    total += dy[n, o, oy, ox] * x[n, channel, iy, ix]
    dw[o, c, i, j] = total


# Version 2: tiles in shared memory. Takes no groups.


@cuda.jit(device=True)
def input_pixel(x, p, k, KH, KW, OH, OW, stride, padding, dilation):
    """The pixel of x that tap k = (c, i, j) meets at output pixel p = (n, oy, ox); 0 in the padding."""
    ox, oy, n = p % OW, p // OW % OH, p // OW // OH
    j, i, c = k % KW, k // KW % KH, k // KW // KH
    iy, ix = oy * stride[0] + i * dilation[0] - padding[0], ox * stride[1] + j * dilation[1] - padding[1]
    if iy >= 0 and iy < x.shape[2] and ix >= 0 and ix < x.shape[3]:
        return x[n, c, iy, ix]
    return x.dtype.type(0)


@cuda.jit
def conv2d_v2(x, w, b, y, stride, padding, dilation):
    """x (N, C, H, W), w (O, C, KH, KW), b (O,), y (N, O, OH, OW). Grid (ceil(N * OH * OW / 16), ceil(O / 16)), block (16, 16)."""
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * T + ty, cuda.blockIdx.x * T + tx
    O, C, KH, KW = w.shape
    N, _, OH, OW = y.shape
    columns, depth = N * OH * OW, C * KH * KW
    tile_w = cuda.shared.array((T, T), x.dtype)
    tile_x = cuda.shared.array((T, T), x.dtype)

    total = ZERO
    for first in range(0, depth, T):
        # threadIdx.x runs along the rows of both matrices, so that a warp's loads lie side by side
        k = first + tx
        tile_w[ty, tx] = w[row, k // KW // KH, k // KW % KH, k % KW] if row < O and k < depth else ZERO
        k = first + ty
        tile_x[ty, tx] = input_pixel(x, column, k, KH, KW, OH, OW, stride, padding, dilation) if column < columns and k < depth else ZERO
        cuda.syncthreads()      # the tiles are there
        for i in range(T):
            total += tile_w[ty, i] * tile_x[i, tx]
        cuda.syncthreads()      # nobody needs them any more
    if row < O and column < columns:
        y[column // OW // OH, row, column // OW % OH, column % OW] = total + b[row]


# What runs on the CPU: check, copy to the GPU, launch, copy back. The signatures are those of nprcnn.ops.conv.


def check(x_shape, w_shape, stride, padding, dilation, groups):
    """stride, padding and dilation as pairs, and (OH, OW). ValueError: what does not fit."""
    stride, padding, dilation = (tuple(int(n) for n in v) if np.ndim(v) else (int(v), int(v)) for v in (stride, padding, dilation))
    if len(x_shape) != 4 or len(w_shape) != 4:
        raise ValueError(f"x must be (N, C, H, W) and w (O, C / groups, KH, KW), not {tuple(x_shape)} and {tuple(w_shape)}")
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1:
        raise ValueError(f"stride {stride}, dilation {dilation} and groups {groups} must be positive and padding {padding} not negative")
    if min(w_shape) < 1 or x_shape[1] != w_shape[1] * groups or w_shape[0] % groups:
        raise ValueError(f"x {tuple(x_shape)} and w {tuple(w_shape)} do not fit with groups={groups}: w must be (O, C / groups, KH, KW), "
                         "groups dividing O")
    size = tuple((length + 2 * p - d * (k - 1) - 1) // s + 1
                 for length, k, s, p, d in zip(x_shape[2:], w_shape[2:], stride, padding, dilation))
    if min(size) < 1:
        raise ValueError(f"the kernel of w {tuple(w_shape)} with dilation {dilation} is larger than x {tuple(x_shape)} with padding {padding}")
    return stride, padding, dilation, size


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, version=None):
    """x (N, C, H, W), w (O, C / groups, KH, KW), b (O,) or None -> y (N, O, OH, OW).

    version: 1, 2 or None, which takes 2 where it can; in the simulator 1, because 256 Python threads wait long at a barrier.
    """
    stride, padding, dilation, size = check(x.shape, w.shape, stride, padding, dilation, groups)
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"b must be ({w.shape[0]},), one number an output channel, not {b.shape}")
    version = version or (1 if groups > 1 or config.ENABLE_CUDASIM else 2)
    if version == 2 and groups > 1:
        raise ValueError(f"version 2 of the convolution takes no groups, got {groups}: use version 1")
    real = np.result_type(x, w)
    shape = len(x), len(w), *size
    if len(x) == 0:
        return np.empty(shape, real)
    y = cuda.device_array(shape, real)
    x, w, b = to_device(x, real), to_device(w, real), to_device(np.zeros(len(w)) if b is None else b, real)
    if version == 1:
        conv2d_v1[blocks_for(y.size), THREADS](x, w, b, y, stride, padding, dilation, groups)
    else:
        grid = blocks_for(shape[0] * size[0] * size[1], T), blocks_for(shape[1], T)
        conv2d_v2[grid, (T, T)](x, w, b, y, stride, padding, dilation)
    return y.copy_to_host()


def conv2d_grad_x(dy, w, x_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient to the input: dy (N, O, OH, OW) -> dx, of `x_shape`."""
    stride, padding, dilation, size = check(x_shape, w.shape, stride, padding, dilation, groups)
    _check_dy(dy, (x_shape[0], w.shape[0], *size))
    real = np.result_type(dy, w)
    if 0 in x_shape:
        return np.empty(tuple(x_shape), real)
    dx = cuda.device_array(tuple(x_shape), real)
    conv2d_grad_x_v1[blocks_for(dx.size), THREADS](to_device(dy, real), to_device(w, real), dx, stride, padding, dilation, groups)
    return dx.copy_to_host()


def conv2d_grad_w(dy, x, w_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient to the filters: dy (N, O, OH, OW), x (N, C, H, W) -> dw, of `w_shape`."""
    stride, padding, dilation, size = check(x.shape, w_shape, stride, padding, dilation, groups)
    _check_dy(dy, (x.shape[0], w_shape[0], *size))
    real = np.result_type(dy, x)
    if len(x) == 0:
        return np.zeros(tuple(w_shape), real)
    dw = cuda.device_array(tuple(w_shape), real)
    conv2d_grad_w_v1[blocks_for(dw.size), THREADS](to_device(dy, real), to_device(x, real), dw, stride, padding, dilation, groups)
    return dw.copy_to_host()


def _check_dy(dy, wanted):
    if dy.shape != wanted:
        raise ValueError(f"dy must have the output's shape {wanted}, not {dy.shape}")
