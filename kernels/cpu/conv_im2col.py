"""Convolution with any kernel, stride, padding, dilation and groups: blocks of im2col, one matrix product each.

    y[o, p] = sum over k of w[o, k] * columns[k, p]         k = (c, i, j): a place in the patch; p = (n, oy, ox): an output pixel
    columns[k, p] = x[n, c, oy * stride + i * dilation - padding, ox * stride + j * dilation - padding], 0 outside

This is the algorithm of nprcnn/ops/conv.py (after Chellapilla, Puri and Simard 2006). What is compiled here is the copying: it runs in
parallel, one row of the column matrix after the other, and makes no padded image. A block is some output rows of one image, or some
whole images if they are small, so that its columns stay in the cache between being written and being multiplied.
"""

import numpy as np
from numba import njit, prange

from .checks import ZERO
from .conv_epilogue import finish
from .conv_scratch import scratch

COLUMN_BYTES = 8 << 20   # of one block's columns; measured on two x86-64 cores, 4 to 16 MiB are equally fast, 1 MiB takes 1.3 times as long


def conv_im2col(x, w, geo, epilogue):
    """x (N, C, H, W), w (O, C / G, KH, KW) -> y (N, O, OH, OW)."""
    y = np.empty(geo.y_shape, x.dtype)
    out_channels, out_w = geo.y_shape[1], geo.y_shape[3]
    w_rows = _group_rows(w, geo.groups)                                       # (G, O / G, K), K = C / G * KH * KW
    with scratch(x.dtype, _column_count(geo), out_channels * _block_pixels(geo)) as (column_buffer, y_buffer):
        for image, images, row, rows in _blocks(geo):
            columns = _columns(x, column_buffer, image, images, row, rows, geo)        # (G, K, n * rows * OW)
            acc = y_buffer[:out_channels * columns.shape[2]].reshape(geo.groups, -1, columns.shape[2])
            np.matmul(w_rows, columns, out=acc)
            finish(acc.reshape(out_channels, images, rows * out_w), y, image, row * out_w, epilogue)
    return y


def grad_x_im2col(dy, w, geo):
    """dy (N, O, OH, OW), w (O, C / G, KH, KW) -> dx (N, C, H, W)."""
    dx = np.zeros(geo.x_shape, dy.dtype)
    w_columns = _group_rows(w, geo.groups).swapaxes(1, 2)                     # (G, K, O / G)
    with scratch(dy.dtype, _column_count(geo)) as (buffer,):
        for image, images, row, rows in _blocks(geo):
            dcolumns = _carve(buffer, images, rows, geo)
            # forward: y = w @ columns, so dcolumns = w.T @ dy
            np.matmul(w_columns, _block(dy, image, images, row, rows, geo.groups),
                      out=dcolumns.reshape(geo.groups, w_columns.shape[1], -1))
            _add_columns(dcolumns, dx, image, row, *geo.kernel, *geo.stride, *geo.padding, *geo.dilation)
    return dx


def grad_w_im2col(dy, x, geo):
    """dy (N, O, OH, OW), x (N, C, H, W) -> dw (O, C / G, KH, KW)."""
    dw = np.zeros(geo.w_shape, x.dtype)
    dw_rows = _group_rows(dw, geo.groups)
    with scratch(x.dtype, _column_count(geo), dw.size) as (buffer, product):
        product = product.reshape(dw_rows.shape)
        for image, images, row, rows in _blocks(geo):
            columns = _columns(x, buffer, image, images, row, rows, geo)
            # forward: y = w @ columns, so dw = dy @ columns.T, summed over the blocks
            np.matmul(_block(dy, image, images, row, rows, geo.groups), columns.swapaxes(1, 2), out=product)
            dw_rows += product
    return dw


# ---- columns ----

def _columns(x, buffer, image, images, row, rows, geo):
    """The columns of a block, in `buffer`: (G, C / G * KH * KW, n * rows * OW)."""
    columns = _carve(buffer, images, rows, geo)
    _fill_columns(x, columns, image, row, *geo.kernel, *geo.stride, *geo.padding, *geo.dilation)
    return columns.reshape(geo.groups, -1, images * rows * geo.y_shape[3])


def _carve(buffer, images, rows, geo):
    """The beginning of `buffer` as (C * KH * KW, n, rows, OW)."""
    height = geo.x_shape[1] * geo.kernel[0] * geo.kernel[1]
    shape = (height, images, rows, geo.y_shape[3])
    return buffer[:int(np.prod(shape))].reshape(shape)


@njit(cache=True)
def _inside(size, out_size, offset, stride):
    """first, last + 1 of the outputs o for which 0 <= o * stride + offset < size."""
    first = min(max(0, -(offset // stride)), out_size)
    return first, max(first, min(out_size, (size - 1 - offset) // stride + 1))


@njit(parallel=True, cache=True)
def _fill_columns(x, columns, image, row, kh, kw, sh, sw, ph, pw, dh, dw):
    """columns (C * KH * KW, n, rows, OW) of output rows row .. of images image .."""
    height, width = x.shape[2], x.shape[3]
    _, images, rows, out_w = columns.shape
    for k in prange(len(columns)):
        c, i, j = k // (kh * kw), k // kw % kh, k % kw
        left = j * dw - pw
        first, last = _inside(width, out_w, left, sw)
        for n in range(images):
            for r in range(rows):
                y = (row + r) * sh + i * dh - ph
                if y < 0 or y >= height:
                    columns[k, n, r] = ZERO
                    continue
                columns[k, n, r, :first] = ZERO
                columns[k, n, r, last:] = ZERO
                # Slices, so that both indices begin at 0: Numba lets a negative index count from the end, and where the compiler cannot
                # rule one out it tests each, one number at a time.
                if first == last:
                    continue
                to = columns[k, n, r, first:last]
                source = x[image + n, c, y, first * sw + left:]
                if sw == 1:
                    for v in range(last - first):
                        to[v] = source[v]
                elif sw == 2:     # a constant stride: wide loads, too, of which every other number is kept
                    for v in range(last - first):
                        to[v] = source[2 * v]
                else:
                    for v in range(last - first):
                        to[v] = source[sw * v]


@njit(parallel=True, cache=True)
def _add_columns(dcolumns, dx, image, row, kh, kw, sh, sw, ph, pw, dh, dw):
    """The adjoint: add every entry of dcolumns to the pixel that it was copied from. A thread owns a channel: no two meet."""
    height, width = dx.shape[2], dx.shape[3]
    _, images, rows, out_w = dcolumns.shape
    for c in prange(dx.shape[1]):
        for i in range(kh):
            for j in range(kw):
                k = (c * kh + i) * kw + j
                left = j * dw - pw
                first, last = _inside(width, out_w, left, sw)
                for n in range(images):
                    for r in range(rows):
                        y = (row + r) * sh + i * dh - ph
                        if 0 <= y < height and first < last:
                            to = dx[image + n, c, y, first * sw + left:]
                            source = dcolumns[k, n, r, first:last]
                            for v in range(last - first):
                                to[v * sw] += source[v]


# ---- blocks of the output ----

def _blocks(geo):
    """Yield (image, images, row, rows): parts of the output whose columns take at most COLUMN_BYTES, or are one row."""
    n, out_h = geo.y_shape[0], geo.y_shape[2]
    images, rows = _block_size(geo)
    for image in range(0, n, images):
        for row in range(0, out_h, rows):
            yield image, min(images, n - image), row, min(rows, out_h - row)


def _block_size(geo):
    """(images, rows) of a block. Rows are shared out evenly: a thin last block is slow."""
    n, _, out_h, out_w = geo.y_shape
    row_bytes = geo.x_shape[1] * geo.kernel[0] * geo.kernel[1] * out_w * 4
    rows = min(out_h, max(1, COLUMN_BYTES // row_bytes))
    if rows == out_h:
        return min(max(n, 1), COLUMN_BYTES // (row_bytes * out_h) or 1), out_h
    return 1, -(-out_h // -(-out_h // rows))


def _block_pixels(geo):
    images, rows = _block_size(geo)
    return images * rows * geo.y_shape[3]


def _column_count(geo):
    return geo.x_shape[1] * geo.kernel[0] * geo.kernel[1] * _block_pixels(geo)


def _block(dy, image, images, row, rows, groups):
    """A block of (N, O, OH, OW) as (G, O / G, n * rows * OW)."""
    return dy[image:image + images, :, row:row + rows].swapaxes(0, 1).reshape(groups, dy.shape[1] // groups, -1)


def _group_rows(w, groups):
    """(O, C / G, KH, KW) -> (G, O / G, C / G * KH * KW)."""
    return w.reshape(groups, w.shape[0] // groups, -1)
