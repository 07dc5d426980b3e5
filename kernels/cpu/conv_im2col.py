"""Convolution with any kernel, stride, padding, dilation and groups: blocks of im2col, one matrix product each.

    y[o, p] = sum over k of w[o, k] * columns[k, p]         k = (c, i, j): a place in the patch; p = (n, oy, ox): an output pixel
    columns[k, p] = x[n, c, oy * stride + i * dilation - padding, ox * stride + j * dilation - padding], 0 outside

This is the algorithm of nprcnn/ops/conv.py (after Chellapilla, Puri and Simard 2006). What is compiled here is the copying: it goes row
by row of the column matrix, and makes no padded image. Each thread takes blocks (in a gradient, channels). A block is some output rows of one image, or some
whole images if they are small, so that its columns stay in the cache between being written and being multiplied.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import ZERO
from .conv_epilogue import finish
from .conv_scratch import scratch

LEAST_PIXELS = 512       # of a block that is one thread's last: a narrower product is slower for each number of it
COLUMN_BYTES = 8 << 20   # of one block's columns; measured on two x86-64 cores, 4 to 16 MiB are equally fast, 1 MiB takes 1.3 times as long


def conv_im2col(x, w, geo, epilogue):
    """x (N, C, H, W), w (O, C / G, KH, KW) -> y (N, O, OH, OW)."""
    y = np.empty(geo.y_shape, x.dtype)
    out_channels, out_w = geo.y_shape[1], geo.y_shape[3]
    w_rows = _group_rows(w, geo.groups)                                       # (G, O / G, K), K = C / G * KH * KW
    height = len(w_rows) * w_rows.shape[2]

    def convolve_block(image, images, row, rows):
        pixels = images * rows * out_w
        with scratch(x.dtype, height * pixels, out_channels * pixels) as (columns, acc):
            _fill_columns(x, columns.reshape(height, images, rows, out_w), 0, image, row, *geo.kernel, *geo.stride, *geo.padding,
                          *geo.dilation)
            acc = acc.reshape(geo.groups, -1, pixels)
            np.matmul(w_rows, columns.reshape(geo.groups, -1, pixels), out=acc)
            finish(acc.reshape(out_channels, images, rows * out_w), y, image, row * out_w, epilogue)

    images, rows = _block_size(geo)
    if rows == geo.y_shape[2]:
        blocks = [(start, stop - start, 0, rows) for start, stop in workers.shrinking(len(x), images)]
    else:
        pieces = workers.shrinking(geo.y_shape[2], rows, -(-LEAST_PIXELS // out_w))
        blocks = [(image, 1, start, stop - start) for image in range(len(x)) for start, stop in pieces]
    workers.run(convolve_block, blocks, y.size * w[0].size)
    return y


def grad_x_im2col(dy, w, geo):
    """dy (N, O, OH, OW), w (O, C / G, KH, KW) -> dx (N, C, H, W)."""
    dx = np.zeros(geo.x_shape, dy.dtype)
    w_rows = _group_rows(w, geo.groups)
    taps, out_w = geo.kernel[0] * geo.kernel[1], geo.y_shape[3]

    def add_channels(group, start, stop):
        """Channels start .. stop - 1 of a group: patches overlap, and so do blocks, but no two threads add to one channel."""
        w_columns = w_rows[group, :, start * taps:stop * taps].T
        first = group * w.shape[1] + start
        for image, images, row, rows in _blocks(geo):
            with scratch(dy.dtype, len(w_columns) * images * rows * out_w) as (dcolumns,):
                # forward: y = w @ columns, so dcolumns = w.T @ dy
                np.matmul(w_columns, _block(dy, image, images, row, rows, geo.groups)[group],
                          out=dcolumns.reshape(len(w_columns), -1))
                _add_columns(dcolumns.reshape(-1, images, rows, out_w), dx, first, image, row, *geo.kernel, *geo.stride,
                             *geo.padding, *geo.dilation)

    workers.run(add_channels, _channel_parts(geo), dy.size * w[0].size)
    return dx


def grad_w_im2col(dy, x, geo):
    """dy (N, O, OH, OW), x (N, C, H, W) -> dw (O, C / G, KH, KW)."""
    dw = np.zeros(geo.w_shape, x.dtype)
    dw_rows = _group_rows(dw, geo.groups)
    taps, out_w = geo.kernel[0] * geo.kernel[1], geo.y_shape[3]

    def add_channels(group, start, stop):
        first, places = group * geo.w_shape[1] + start, slice(start * taps, stop * taps)
        for image, images, row, rows in _blocks(geo):
            with scratch(x.dtype, (stop - start) * taps * images * rows * out_w) as (columns,):
                columns = columns.reshape(-1, images, rows, out_w)
                _fill_columns(x, columns, first, image, row, *geo.kernel, *geo.stride, *geo.padding, *geo.dilation)
                # forward: y = w @ columns, so dw = dy @ columns.T, summed over the blocks
                dw_rows[group, :, places] += np.matmul(_block(dy, image, images, row, rows, geo.groups)[group],
                                                       columns.reshape(len(columns), -1).T)

    workers.run(add_channels, _channel_parts(geo), dy.size * dw[0].size)
    return dw


def _channel_parts(geo):
    """(group, start, stop): input channels of a group, cut among the threads."""
    return [(group, start, stop) for group in range(geo.groups) for start, stop in
            (workers.parts(geo.w_shape[1]) if geo.groups == 1 else [(0, geo.w_shape[1])])]


# ---- columns ----

@njit(cache=True)
def inside(size, out_size, offset, stride):
    """first, last + 1 of the outputs o for which 0 <= o * stride + offset < size."""
    first = min(max(0, -(offset // stride)), out_size)
    return first, max(first, min(out_size, (size - 1 - offset) // stride + 1))


@njit(nogil=True, cache=True)
def _fill_columns(x, columns, channel, image, row, kh, kw, sh, sw, ph, pw, dh, dw):
    """columns (c * KH * KW, n, rows, OW): of the c channels channel .., output rows row .. of images image .."""
    height, width = x.shape[2], x.shape[3]
    _, images, rows, out_w = columns.shape
    for k in range(len(columns)):
        c, i, j = channel + k // (kh * kw), k // kw % kh, k % kw
        left = j * dw - pw
        first, last = inside(width, out_w, left, sw)
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


@njit(nogil=True, cache=True)
def _add_columns(dcolumns, dx, channel, image, row, kh, kw, sh, sw, ph, pw, dh, dw):
    """The adjoint: add every entry of dcolumns to the pixel that it was copied from."""
    height, width = dx.shape[2], dx.shape[3]
    height_of_columns, images, rows, out_w = dcolumns.shape
    for c in range(height_of_columns // (kh * kw)):
        for i in range(kh):
            for j in range(kw):
                k = (c * kh + i) * kw + j
                left = j * dw - pw
                first, last = inside(width, out_w, left, sw)
                for n in range(images):
                    for r in range(rows):
                        y = (row + r) * sh + i * dh - ph
                        if 0 <= y < height and first < last:
                            to = dx[image + n, channel + c, y, first * sw + left:]
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
    if n == 1:
        rows = min(rows, -(-out_h // len(workers.parts(out_h))))      # each thread has its block
    if rows == out_h:
        return min(-(-n // len(workers.parts(n))), COLUMN_BYTES // (row_bytes * out_h) or 1) or 1, out_h
    return 1, -(-out_h // -(-out_h // rows))


def _block(dy, image, images, row, rows, groups):
    """A block of (N, O, OH, OW) as (G, O / G, n * rows * OW)."""
    return dy[image:image + images, :, row:row + rows].swapaxes(0, 1).reshape(groups, dy.shape[1] // groups, -1)


def _group_rows(w, groups):
    """(O, C / G, KH, KW) -> (G, O / G, C / G * KH * KW)."""
    return w.reshape(groups, w.shape[0] // groups, -1)
