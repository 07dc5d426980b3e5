"""Convolution straight from the definition, for groups of one input channel, of which no matrix product worth its name can be made.

With as many groups as channels ("depthwise"), im2col makes a product of one row: every column entry is written, read once, and thrown
away. Here each tap of a filter adds a shifted row of x, times one weight, to a row of y: both rows stay in the L1 cache.

    y[n, o, oy, :] += w[o, c, i, j] * x[n, c, oy * stride + i * dilation - padding, j * dilation - padding :: stride]
"""

import numpy as np
from numba import njit

from . import workers
from .checks import ZERO
from .conv_epilogue import FASTMATH
from .conv_im2col import inside


def conv_direct(x, w, geo, epilogue):
    """x (N, C, H, W), w (O, C / G, KH, KW) -> y (N, O, OH, OW)."""
    y = np.zeros(geo.y_shape, x.dtype)
    options = (*geo.stride, *geo.padding, *geo.dilation, geo.groups, epilogue.scale, epilogue.shift, epilogue.residual,
               epilogue.has_residual, epilogue.relu)
    planes = workers.parts(geo.y_shape[0] * geo.y_shape[1])
    workers.run(_convolve, [(*part, x, w, y, *options) for part in planes], y.size * w[0].size)
    return y


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _convolve(start, stop, x, w, y, sh, sw, ph, pw, dh, dw, groups, scale, shift, residual, has_residual, relu):
    height, width = x.shape[2], x.shape[3]
    _, out_channels, out_h, out_w = y.shape
    per_group, kh, kw = w.shape[1:]
    for plane in range(start, stop):     # a plane: one channel of one image of y
        n, o = plane // out_channels, plane % out_channels
        first_channel = o // (out_channels // groups) * per_group
        for oy in range(out_h):
            row = y[n, o, oy]
            for c in range(per_group):
                for i in range(kh):
                    iy = oy * sh + i * dh - ph
                    if iy < 0 or iy >= height:
                        continue
                    source = x[n, first_channel + c, iy]
                    for j in range(kw):
                        left = j * dw - pw
                        first, last = inside(width, out_w, left, sw)
                        weight = w[o, c, i, j]
                        if first == last:
                            continue
                        to, seen = row[first:last], source[first * sw + left:]    # slices: see conv_im2col._fill_columns
                        if sw == 1:
                            for v in range(last - first):
                                to[v] += weight * seen[v]
                        else:
                            for v in range(last - first):
                                to[v] += weight * seen[v * sw]
            if has_residual:
                add = residual[n, o, oy]
                for v in range(out_w):
                    value = row[v] * scale[o] + shift[o] + add[v]
                    row[v] = ZERO if relu and value < ZERO else value
            else:
                for v in range(out_w):
                    value = row[v] * scale[o] + shift[o]
                    row[v] = ZERO if relu and value < ZERO else value
