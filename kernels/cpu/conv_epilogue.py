"""The last step of every convolution here: y = relu(acc * scale + shift + residual), while acc is still in the cache.

After a convolution a network normalises, adds the shortcut, and takes the ReLU. Each as a pass of its own reads and writes the whole map
again; for 256 channels of 200 x 304 that is 124 MB a pass, through a memory that moves some 10 to 20 GB/s. Done on the block that the
convolution has just computed, all of it costs one pass, and that one writes y for the first time anyway.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .checks import ZERO, plain

# What the compiler may change in the arithmetic: fuse a product with a sum, no more. "fast" would let it assume that there is no NaN.
FASTMATH = {"contract"}


class Epilogue(NamedTuple):
    """What happens to the sums. Arrays are C-ordered and of the output's dtype."""

    scale: np.ndarray        # (O,)
    shift: np.ndarray        # (O,)
    residual: np.ndarray     # (N, O, OH, OW); empty if there is none
    has_residual: bool
    relu: bool
    is_identity: bool        # nothing happens: the sums may be written where y is


def make_epilogue(geo, dtype, b=None, scale=None, shift=None, residual=None, relu=False):
    """The arguments of conv2d_fused in one scale and one shift: (acc + b) * scale + shift = acc * scale + (b * scale + shift)."""
    is_identity = b is None and scale is None and shift is None and residual is None and not relu
    out_channels = geo.y_shape[1]
    scale = np.ones(out_channels, dtype) if scale is None else plain(scale, dtype)
    shift = np.zeros(out_channels, dtype) if shift is None else shift
    shift = plain(shift if b is None else b * scale + shift, dtype)
    has_residual = residual is not None
    residual = plain(residual, dtype) if has_residual else np.empty((0, 0, 0, 0), dtype)
    return Epilogue(scale, shift, residual, has_residual, bool(relu), is_identity)


def finish(acc, y, image, pixel, epilogue):
    """Write a block of sums into y.

    acc : (O, n, P), P pixels of each of n images, in a scratch buffer
    y : (N, O, OH, OW); the block is its images image .. image + n - 1 and there its pixels pixel .. pixel + P - 1, counted row by row
    """
    flat = (*y.shape[:2], y.shape[2] * y.shape[3])
    residual = epilogue.residual.reshape(flat if epilogue.has_residual else (0, 0, 0))
    _finish(acc, y.reshape(flat), image, pixel, epilogue.scale, epilogue.shift, residual, epilogue.has_residual, epilogue.relu)


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _finish(acc, y, image, pixel, scale, shift, residual, has_residual, relu):
    channels, images, pixels = acc.shape
    for o in range(channels):
        for n in range(images):
            row, sums = y[image + n, o, pixel:pixel + pixels], acc[o, n]
            if has_residual:
                add = residual[image + n, o, pixel:pixel + pixels]
                for p in range(pixels):
                    v = sums[p] * scale[o] + shift[o] + add[p]
                    row[p] = ZERO if relu and v < ZERO else v
            else:
                for p in range(pixels):
                    v = sums[p] * scale[o] + shift[o]
                    row[p] = ZERO if relu and v < ZERO else v


def finish_in_place(y, image, images, pixel, pixels, epilogue):
    """As `finish`, of sums that are in y already: of its images image .., there the pixels pixel .., counted row by row."""
    flat = (*y.shape[:2], y.shape[2] * y.shape[3])
    residual = epilogue.residual.reshape(flat if epilogue.has_residual else (0, 0, 0))
    _finish_in_place(y.reshape(flat), image, images, pixel, pixels, epilogue.scale, epilogue.shift, residual, epilogue.has_residual,
                     epilogue.relu)


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _finish_in_place(y, image, images, pixel, pixels, scale, shift, residual, has_residual, relu):
    for n in range(image, image + images):
        for o in range(y.shape[1]):
            row = y[n, o, pixel:pixel + pixels]      # a slice, so that its index begins at 0: see conv_im2col._fill_columns
            if has_residual:
                add = residual[n, o, pixel:pixel + pixels]
                for p in range(pixels):
                    v = row[p] * scale[o] + shift[o] + add[p]
                    row[p] = ZERO if relu and v < ZERO else v
            else:
                for p in range(pixels):
                    v = row[p] * scale[o] + shift[o]
                    row[p] = ZERO if relu and v < ZERO else v
