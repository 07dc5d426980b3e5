"""Two-dimensional convolution, as in Mask R-CNN's backbone, FPN, RPN and mask head, and its backward pass.

Letters: N images, C input channels, H x W input, O output channels, KH x KW kernel, OH x OW output, G groups.

A convolution is a matrix product once every input patch is a column ("im2col"):

    y[o, p] = sum over k of w[o, k] * columns[k, p]        k = (c, i, j), a place in the patch;  p = (n, oy, ox), an output pixel
    columns[(c, i, j), (n, oy, ox)] = x[n, c, oy * stride + i * dilation - padding, ox * stride + j * dilation - padding]

The whole column matrix is KH * KW times as large as the input, so it is never built at once: the output is cut into
blocks (a few images, or a few output rows of one image), and each block has its own small matrix.

Backward, from dy: the product's two derivatives, dw = dy @ columns.T and dcolumns = w.T @ dy, and the adjoint of copying
pixels into columns, which adds every column entry back to the pixel it came from ("col2im").
"""

from typing import NamedTuple

import numpy as np

# Bytes of one block's column matrix. Measured with float32 on two cores with 512 KiB of L2 cache each: 1 to 4 MiB are equally
# fast (within 5 %), from (8, 128, 4, 4) to (2, 256, 50, 76); 0.25 MiB is up to 1.6 times slower and 32 MiB up to 1.1 times.
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
    _check_bias(b, w.shape[0])
    y = np.empty(geo.y_shape, np.result_type(x, w), like=x)
    w_rows = _group_rows(w, groups)
    for images, rows in _blocks(geo, y.itemsize):
        y_block = np.matmul(w_rows, _im2col(x, images, rows, geo))
        if b is not None:
            y_block += b.reshape(groups, -1, 1)
        _set_block(y, images, rows, y_block)
    return y


def conv2d_grad_x(dy, w, x_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient of conv2d to its input: dy (N, O, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    geo = _geometry(x_shape, w.shape, stride, padding, dilation, groups)
    _check_dy(dy, geo)
    reach = tuple(d * (k - 1) for d, k in zip(geo.dilation, geo.kernel))
    if geo.stride == (1, 1) and all(p <= r for p, r in zip(geo.padding, reach)):
        # forward: y[q] = sum over i of w[i] x[q + i - padding], so dx[p] = sum over i of w[i] dy[p - i + padding]: again a
        # convolution, with the filters turned round. Twice as fast as col2im, because copying is faster than adding.
        return conv2d(dy, _turn_round(w, groups), None, 1, tuple(r - p for r, p in zip(reach, geo.padding)), dilation, groups)
    dx = np.zeros(geo.x_shape, np.result_type(dy, w), like=dy)
    w_columns = _group_rows(w, groups).swapaxes(1, 2)
    for images, rows in _blocks(geo, dx.itemsize):
        # forward: y = w @ columns, so dcolumns = w.T @ dy
        _add_col2im(dx, np.matmul(w_columns, _get_block(dy, images, rows, groups)), images, rows, geo)
    return dx


def conv2d_grad_w(dy, x, w_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient of conv2d to its filters: dy (N, O, OH, OW), x (N, C, H, W) -> dw, of `w_shape` (O, C / groups, KH, KW)."""
    geo = _geometry(x.shape, w_shape, stride, padding, dilation, groups)
    _check_dy(dy, geo)
    dw = np.zeros(w_shape, np.result_type(dy, x), like=dy)
    dw_rows = _group_rows(dw, groups)
    for images, rows in _blocks(geo, dw.itemsize):
        # forward: y = w @ columns, so dw = dy @ columns.T, summed over the blocks
        columns = _im2col(x, images, rows, geo)
        dw_rows += np.matmul(_get_block(dy, images, rows, groups), columns.swapaxes(1, 2))
    return dw


def conv2d_forward(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, kernels=None):
    """conv2d, and the cache for its backward pass. `kernels`: the KernelSet that does the work (None: this file)."""
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
    db = dy.sum(axis=3).sum(axis=(0, 2)) if has_bias else None
    return dx, dw, db


# ---- columns ----

def _im2col(x, images, rows, geo):
    """Columns of the output rows `rows` (a slice) of the images `images`: (G, C / G * KH * KW, n * rows * OW)."""
    if _is_pointwise(geo) and images.stop - images.start == 1:
        return x[images.start, :, rows].reshape(geo.groups, geo.x_shape[1] // geo.groups, -1)  # x is its own columns
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
    top, inside, dpatch_shape = _patch_extent(images, rows, geo)
    dpatch = np.zeros(dpatch_shape, dx.dtype, like=dx)
    for i, j, ys, xs in _taps(height, geo):
        # forward: columns[:, i, j] = patch[:, :, ys, xs]; patches overlap, so +=
        dpatch[:, :, ys, xs] += dcolumns[:, i, j]
    # forward: patch[:, :, inside rows and columns] = x; blocks of rows overlap too, so += again
    left, width = geo.padding[1], geo.x_shape[3]
    first = inside.start - top
    dx[images, :, inside] += dpatch[:, :, first:first + inside.stop - inside.start, left:left + width].swapaxes(0, 1)


def _padded_rows(x, images, rows, geo):
    """The pixels that the output rows `rows` see, zeros where they see padding: (C, n, height, W + 2 * padding)."""
    top, inside, shape = _patch_extent(images, rows, geo)
    pixels = x[images, :, inside].swapaxes(0, 1)
    if pixels.shape == shape:
        return pixels
    patch = np.zeros(shape, x.dtype, like=x)
    left, first = geo.padding[1], inside.start - top
    patch[:, :, first:first + pixels.shape[2], left:left + pixels.shape[3]] = pixels
    return patch


def _patch_extent(images, rows, geo):
    """First row that the output rows see (negative: in the padding), the slice of rows inside x, the patch's shape."""
    _, channels, height, width = geo.x_shape
    top = rows.start * geo.stride[0] - geo.padding[0]
    bottom = (rows.stop - 1) * geo.stride[0] - geo.padding[0] + geo.dilation[0] * (geo.kernel[0] - 1) + 1
    start = min(max(top, 0), height)
    inside = slice(start, max(start, min(bottom, height)))
    return top, inside, (channels, images.stop - images.start, bottom - top, width + 2 * geo.padding[1])


def _taps(out_rows, geo):
    """For each place (i, j) in the kernel, the rows and columns of the patch that it meets while the kernel slides."""
    (kh, kw), (sh, sw), (dh, dw), out_w = geo.kernel, geo.stride, geo.dilation, geo.y_shape[3]
    for i in range(kh):
        for j in range(kw):
            y, x = i * dh, j * dw
            yield i, j, slice(y, y + (out_rows - 1) * sh + 1, sh), slice(x, x + (out_w - 1) * sw + 1, sw)


# ---- blocks of the output ----

def _blocks(geo, itemsize):
    """Cut the output into (images, rows) slices whose column matrices stay below COLUMN_BYTES (but one row at least)."""
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
        raise ValueError(f"x {x_shape} and w {w_shape} do not fit with groups={groups}: w must be (O, C / groups, KH, KW), "
                         "groups dividing O")
    out_h = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(f"the kernel of w {w_shape} with dilation {dilation} is larger than x {x_shape} "
                         f"with padding {padding}")
    return _Geometry(x_shape, (n, out_channels, out_h, out_w), (kh, kw), stride, padding, dilation, groups)


def _check_bias(b, out_channels):
    if b is not None and b.shape != (out_channels,):
        raise ValueError(f"b must be ({out_channels},), one number an output channel, not {b.shape}")


def _check_dy(dy, geo):
    if dy.shape != geo.y_shape:
        raise ValueError(f"dy must have the output's shape {geo.y_shape}, not {dy.shape}")
