"""Two-dimensional convolution, as in Mask R-CNN's backbone, FPN, RPN and mask head, and its backward pass.

Letters: N images, C input channels, H x W input, O output channels, KH x KW kernel, OH x OW output, G groups.

A convolution is a matrix product once every input patch is a column ("im2col"):

    y[o, p] = sum over k of w[o, k] * columns[k, p]
    columns[k, p] = x[n, c, oy * stride + i * dilation - padding, ox * stride + j * dilation - padding]
    where k = (c, i, j) is a place in the patch and p = (n, oy, ox) an output pixel.

The whole column matrix is KH * KW times as large as the input, so it is never built at once: the output is
cut into blocks (a few images, or a few output rows of one image), and each block has its own small matrix.

Backward, from dy: the product's two derivatives, dw = dy @ columns.T and dcolumns = w.T @ dy, and the adjoint
of copying pixels into columns, which adds every column entry back to the pixel it came from ("col2im").
"""

from typing import NamedTuple

import numpy as np

# Bytes of one block's column matrix. Measured in float32 (512 KiB of L2 a core, 32 MiB of L3), forward and
# backward of maps from (8, 128, 8, 8) to (1, 64, 200, 304): 2 to 8 MiB are equally fast within the noise,
# 0.25 MiB takes 1.3 to 2 times as long, 32 MiB up to 1.5 times.
COLUMN_BYTES = 2 << 20


class Conv2dCache(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    has_bias: bool
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int


class _Geometry(NamedTuple):
    """All sizes of one convolution, checked."""

    x_shape: tuple
    y_shape: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolve features with filters (a cross-correlation, as everywhere in deep learning).

    Parameters
    ----------
    x : (N, C, H, W)
    w : (O, C / groups, KH, KW)
    b : (O,) or None
    stride, padding, dilation : int or (vertical, horizontal) pair, in pixels; the padding is zeros
    groups : int
        Channels are cut into this many groups that do not see one another.

    Returns
    -------
    y : (N, O, OH, OW), OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1

    Raises
    ------
    ValueError
        Shapes that do not fit each other, or a kernel larger than the padded input.

    The convention is that of torch.nn.functional.conv2d.
    """
    geo = _geometry(x.shape, w.shape, stride, padding, dilation, groups)
    _check_vector(b, "b", w.shape[0])
    y = np.empty(geo.y_shape, np.result_type(x, w), like=x)
    w_rows = _group_rows(w, groups)
    for images, rows in _blocks(geo, y.itemsize):
        y_block = np.matmul(w_rows, _im2col(x, images, rows, geo))
        if b is not None:
            y_block += b.reshape(groups, -1, 1)
        _set_block(y, images, rows, y_block)
    return y


def conv2d_fused(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, scale=None, shift=None, residual=None,
                 relu=False):
    """y = relu(conv2d(x, w, b, ...) * scale + shift + residual): what a network does at inference, in one call.

    A frozen batch norm is a scale and a shift a channel. Here each step is a pass over the map, and what is None
    is left out. Kernels do it all while they write y; this is what they are tested against.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups : as in conv2d
    scale, shift : (O,) or None
    residual : of y's shape (N, O, OH, OW), or None
    relu : bool

    Returns
    -------
    y : (N, O, OH, OW)

    Raises
    ------
    ValueError
        As conv2d, and if scale, shift or residual have other shapes.
    """
    geo = _geometry(x.shape, w.shape, stride, padding, dilation, groups)
    _check_vector(scale, "scale", w.shape[0])
    _check_vector(shift, "shift", w.shape[0])
    if residual is not None and residual.shape != geo.y_shape:
        raise ValueError(f"residual must have the output's shape {geo.y_shape}, not {residual.shape}")
    y = conv2d(x, w, b, stride, padding, dilation, groups)
    if scale is not None:
        y *= scale[:, None, None]
    if shift is not None:
        y += shift[:, None, None]
    if residual is not None:
        y += residual
    return np.maximum(y, 0) if relu else y


def conv2d_grad_x(dy, w, x_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient of conv2d to its input: dy (N, O, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    geo = _geometry(x_shape, w.shape, stride, padding, dilation, groups)
    _check_dy(dy, geo)
    reach = tuple(d * (k - 1) for d, k in zip(geo.dilation, geo.kernel))
    if geo.stride == (1, 1) and all(p <= r for p, r in zip(geo.padding, reach)):
        # forward: y[q] = sum over i of w[i] x[q + i - padding], so
        # dx[p] = sum over i of w[i] dy[p - i + padding]: again a convolution, with the filters turned round.
        # Up to twice as fast as col2im, which adds into memory where im2col only copies.
        rest = tuple(r - p for r, p in zip(reach, geo.padding))
        return conv2d(dy, _turn_round(w, groups), None, 1, rest, dilation, groups)
    dx = np.zeros(geo.x_shape, np.result_type(dy, w), like=dy)
    w_columns = _group_rows(w, groups).swapaxes(1, 2)
    for images, rows in _blocks(geo, dx.itemsize):
        # forward: y = w @ columns, so dcolumns = w.T @ dy
        _add_col2im(dx, np.matmul(w_columns, _get_block(dy, images, rows, groups)), images, rows, geo)
    return dx


def conv2d_grad_w(dy, x, w_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient of conv2d to its filters: dy (N, O, OH, OW), x (N, C, H, W) -> dw, of `w_shape`."""
    geo = _geometry(x.shape, w_shape, stride, padding, dilation, groups)
    _check_dy(dy, geo)
    dw = np.zeros(w_shape, np.result_type(dy, x), like=dy)
    dw_rows = _group_rows(dw, groups)
    for images, rows in _blocks(geo, dw.itemsize):
        # forward: y = w @ columns, so dw = dy @ columns.T, summed over the blocks
        # (the columns have no name here, so that they are freed before the next block's are made)
        dy_block = _get_block(dy, images, rows, groups)
        dw_rows += np.matmul(dy_block, _im2col(x, images, rows, geo).swapaxes(1, 2))
    return dw


def conv2d_forward(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, kernels=None):
    """conv2d, and the cache for its backward pass. `kernels`: the KernelSet to use (None: this file)."""
    conv = conv2d if kernels is None else kernels.conv2d
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    y = conv(x, w, b, stride, padding, dilation, groups)
    return y, Conv2dCache(x, w, b is not None, stride, padding, dilation, groups)


def conv2d_backward(dy, cache, needs_dx=True, kernels=None):
    """Gradients of conv2d.

    Parameters
    ----------
    dy : (N, O, OH, OW)
    cache : Conv2dCache
    needs_dx : bool
        False for a first layer: nobody wants the gradient to the image, and it costs a third of the work.

    Returns
    -------
    dx : (N, C, H, W), or None if not needed
    dw : (O, C / groups, KH, KW)
    db : (O,), or None if there was no bias
    """
    grad_x = conv2d_grad_x if kernels is None else kernels.conv2d_grad_x
    grad_w = conv2d_grad_w if kernels is None else kernels.conv2d_grad_w
    x, w, has_bias, *options = cache
    dx = grad_x(dy, w, x.shape, *options) if needs_dx else None
    dw = grad_w(dy, x, w.shape, *options)
    # forward: y = ... + b, the same b at every pixel of every image, so db sums over them
    db = dy.sum(axis=(0, 2, 3)) if has_bias else None
    return dx, dw, db


# ---- columns ----

def _im2col(x, images, rows, geo):
    """Columns of the slices `images` and `rows` of the output: (G, C / G * KH * KW, n * rows * OW)."""
    if _is_pointwise(geo) and images.stop - images.start == 1:
        # x is its own columns
        return x[images.start, :, rows].reshape(geo.groups, geo.x_shape[1] // geo.groups, -1)
    patch = _padded_rows(x, images, rows, geo)
    n, height, out_w = patch.shape[1], rows.stop - rows.start, geo.y_shape[3]
    columns = np.empty((geo.x_shape[1], *geo.kernel, n, height, out_w), x.dtype, like=x)
    for i, j, ys, xs in _taps(height, geo):
        columns[:, i, j] = patch[:, :, ys, xs]
    return columns.reshape(geo.groups, -1, n * height * out_w)


def _add_col2im(dx, dcolumns, images, rows, geo):
    """The adjoint of _im2col: add every entry of dcolumns to the pixel of dx that _im2col copied it from."""
    n, height, out_w = images.stop - images.start, rows.stop - rows.start, geo.y_shape[3]
    dcolumns = dcolumns.reshape(geo.x_shape[1], *geo.kernel, n, height, out_w)
    top, inside, shape = _patch_extent(images, rows, geo)
    dpixels = dx[images, :, inside].swapaxes(0, 1)
    dpatch = dpixels if dpixels.shape == shape else np.zeros(shape, dx.dtype, like=dx)
    for i, j, ys, xs in _taps(height, geo):
        # forward: columns[:, i, j] = patch[:, :, ys, xs]; patches overlap, so +=
        dpatch[:, :, ys, xs] += dcolumns[:, i, j]
    if dpatch is not dpixels:
        # forward: patch[inside the padding] = pixels; the rows of neighbouring blocks overlap, so += again
        dpixels += dpatch[_inside_padding(top, inside, geo)]


def _padded_rows(x, images, rows, geo):
    """The pixels that a block sees, zeros where it sees padding: (C, n, height, W + 2 * padding)."""
    top, inside, shape = _patch_extent(images, rows, geo)
    pixels = x[images, :, inside].swapaxes(0, 1)
    if pixels.shape == shape:
        return pixels
    patch = np.zeros(shape, x.dtype, like=x)
    patch[_inside_padding(top, inside, geo)] = pixels
    return patch


def _patch_extent(images, rows, geo):
    """The first row that a block sees (negative: padding), the slice of rows inside x, the patch's shape."""
    _, channels, height, width = geo.x_shape
    top = rows.start * geo.stride[0] - geo.padding[0]
    bottom = (rows.stop - 1) * geo.stride[0] - geo.padding[0] + geo.dilation[0] * (geo.kernel[0] - 1) + 1
    start = min(max(top, 0), height)
    inside = slice(start, max(start, min(bottom, height)))
    return top, inside, (channels, images.stop - images.start, bottom - top, width + 2 * geo.padding[1])


def _inside_padding(top, inside, geo):
    """The part of a patch (C, n, height, W + 2 * padding) that is pixels, not padding, as an index."""
    left = geo.padding[1]
    return np.s_[:, :, inside.start - top:inside.stop - top, left:left + geo.x_shape[3]]


def _taps(out_rows, geo):
    """For each place (i, j) in the kernel, the rows and columns of the patch that it meets as it slides."""
    (kh, kw), (sh, sw), (dh, dw), out_w = geo.kernel, geo.stride, geo.dilation, geo.y_shape[3]
    for i in range(kh):
        for j in range(kw):
            y, x = i * dh, j * dw
            yield i, j, slice(y, y + (out_rows - 1) * sh + 1, sh), slice(x, x + (out_w - 1) * sw + 1, sw)


# ---- blocks of the output ----

def _blocks(geo, itemsize):
    """Cut the output into (images, rows) slices, at least a row, whose columns take at most COLUMN_BYTES."""
    n, _, out_h, out_w = geo.y_shape
    row_bytes = geo.x_shape[1] * geo.kernel[0] * geo.kernel[1] * out_w * itemsize
    images = max(1, COLUMN_BYTES // (row_bytes * out_h))
    rows = out_h if row_bytes * out_h <= COLUMN_BYTES else max(1, COLUMN_BYTES // row_bytes)
    for first in range(0, n, images):
        for top in range(0, out_h, rows):
            yield slice(first, min(first + images, n)), slice(top, min(top + rows, out_h))


def _get_block(y, images, rows, groups):
    """(N, O, OH, OW) -> (G, O / G, n * rows * OW), without a copy if it is one image's contiguous rows."""
    return y[images, :, rows].swapaxes(0, 1).reshape(groups, y.shape[1] // groups, -1)


def _set_block(y, images, rows, y_block):
    """y_block (G, O / G, n * rows * OW) into its place in y (N, O, OH, OW)."""
    block = y[images, :, rows].swapaxes(0, 1)
    block[...] = y_block.reshape(block.shape)


def _group_rows(w, groups):
    """(O, C / G, KH, KW) -> (G, O / G, C / G * KH * KW)."""
    return w.reshape(groups, w.shape[0] // groups, -1)


def _turn_round(w, groups):
    """(O, C / G, KH, KW) -> (C, O / G, KH, KW): the filters by input channel, each rotated by half a turn."""
    by_group = w.reshape(groups, -1, *w.shape[1:])[..., ::-1, ::-1]
    return by_group.swapaxes(1, 2).reshape(groups * w.shape[1], -1, *w.shape[2:])


# ---- checks ----

def _pair(value):
    """An int or a (vertical, horizontal) pair -> the pair."""
    return (value, value) if isinstance(value, (int, np.integer)) else tuple(value)


def _is_pointwise(geo):
    return geo.kernel == (1, 1) and geo.stride == (1, 1) and geo.padding == (0, 0)


def _geometry(x_shape, w_shape, stride, padding, dilation, groups):
    """Check that all fits and return the sizes."""
    x_shape, w_shape = tuple(x_shape), tuple(w_shape)
    if len(x_shape) != 4 or len(w_shape) != 4:
        raise ValueError(f"x must be (N, C, H, W) and w (O, C / groups, KH, KW), not {x_shape} and {w_shape}")
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1:
        raise ValueError(f"stride {stride}, dilation {dilation} and groups {groups} must be positive and "
                         f"padding {padding} not negative")
    n, channels, height, width = x_shape
    out_channels, group_channels, kh, kw = w_shape
    if min(w_shape) < 1 or channels != group_channels * groups or out_channels % groups:
        raise ValueError(f"x {x_shape} and w {w_shape} do not fit with groups={groups}: "
                         "w must be (O, C / groups, KH, KW), groups dividing O")
    out_h = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(f"the kernel of w {w_shape} with dilation {dilation} is larger than x {x_shape} "
                         f"with padding {padding}")
    return _Geometry(x_shape, (n, out_channels, out_h, out_w), (kh, kw), stride, padding, dilation, groups)


def _check_vector(v, name, out_channels):
    if v is not None and v.shape != (out_channels,):
        raise ValueError(f"{name} must be ({out_channels},), one number an output channel, not {v.shape}")


def _check_dy(dy, geo):
    if dy.shape != geo.y_shape:
        raise ValueError(f"dy must have the output's shape {geo.y_shape}, not {dy.shape}")
