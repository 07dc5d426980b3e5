"""The transforms of F(2x2, 3x3): 16 products for 4 outputs, 4 an output instead of 9.

Lavin and Gray, arXiv 1509.09308, section 4.1. As in conv_winograd_4x4.py, with four points: 0, 1, -1 and infinity.

          | 1  0 -1  0 |         |  1    0    0  |
    B^T = | 0  1  1  0 |     G = | 1/2  1/2  1/2 |     A^T = | 1  1  1  0 |
          | 0 -1  1  0 |         | 1/2 -1/2  1/2 |           | 0  1 -1 -1 |
          | 0  1  0 -1 |         |  0    0    1  |

No entry is larger than 1, so little cancels: in float32 its error is close to that of direct convolution (conv_errors.py measures both).
"""

import numpy as np
from numba import njit

from .checks import HALF, ZERO
from .conv_tiles import CHUNK, load_output_tiles, load_tiles, store_tiles

FASTMATH = {"contract"}  # fuse a product with a sum, nothing else


@njit(fastmath=FASTMATH, cache=True)
def _bt(d0, d1, d2, d3):
    """B^T d"""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


@njit(fastmath=FASTMATH, cache=True)
def _at(m0, m1, m2, m3):
    """A^T m"""
    return m0 + m1 + m2, m1 - m2 - m3


@njit(fastmath=FASTMATH, cache=True)
def _a(y0, y1):
    """A y"""
    return y0, y0 + y1, y0 - y1, -y1


@njit(fastmath=FASTMATH, cache=True)
def _g(g0, g1, g2):
    """G g"""
    outer, inner = HALF * (g0 + g2), HALF * g1
    return g0, outer + inner, outer - inner, g2


@njit(fastmath=FASTMATH, cache=True)
def _gt(u0, u1, u2, u3):
    """G^T u"""
    outer = HALF * (u1 + u2)
    return u0 + outer, HALF * (u1 - u2), outer + u3


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def filters(w, U, start, stop):
    """w (O, C, 3, 3) -> U (16, O, C): G g G^T, of the output channels start .. stop - 1. Here a chunk is CHUNK input channels."""
    channels = w.shape[1]
    for o in range(start, stop):
        a = np.zeros((3, 3, CHUNK), w.dtype)
        b = np.empty((4, 3, CHUNK), w.dtype)
        e = np.empty((4, CHUNK), w.dtype)
        for first in range(0, channels, CHUNK):
            size = min(CHUNK, channels - first)
            source = w[o, first:first + size]      # a slice, so that its index begins at 0: see conv_im2col._fill_columns
            for c in range(size):
                for i in range(3):
                    for j in range(3):
                        a[i, j, c] = source[c, i, j]
            for j in range(3):
                for c in range(CHUNK):
                    b[0, j, c], b[1, j, c], b[2, j, c], b[3, j, c] = _g(a[0, j, c], a[1, j, c], a[2, j, c])
            for i in range(4):
                for c in range(CHUNK):
                    e[0, c], e[1, c], e[2, c], e[3, c] = _g(b[i, 0, c], b[i, 1, c], b[i, 2, c])
                for j in range(4):
                    to = U[4 * i + j, o, first:first + size]
                    for c in range(size):
                        to[c] = e[j, c]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def inputs(x, V, first, ph, pw, out_h, out_w):
    """x (N, C, H, W) -> V (16, C, T): B^T d B of the tiles first .. first + T - 1."""
    tiles = V.shape[2]
    for c in range(x.shape[1]):
        a = np.zeros((4, 4, CHUNK), x.dtype)      # zeros: the last chunk is not full, and leftovers there could be slow denormals
        b = np.empty((4, 4, CHUNK), x.dtype)
        line = np.empty(2 * CHUNK + 2, x.dtype)
        for start in range(0, tiles, CHUNK):
            size = min(CHUNK, tiles - start)
            load_tiles(x, c, first + start, size, 2, ph, pw, out_h, out_w, line, a)
            for k in range(4):
                for t in range(CHUNK):
                    b[0, k, t], b[1, k, t], b[2, k, t], b[3, k, t] = _bt(a[0, k, t], a[1, k, t], a[2, k, t], a[3, k, t])
            for i in range(4):
                for t in range(CHUNK):
                    a[i, 0, t], a[i, 1, t], a[i, 2, t], a[i, 3, t] = _bt(b[i, 0, t], b[i, 1, t], b[i, 2, t], b[i, 3, t])
            for i in range(4):
                for k in range(4):
                    to = V[4 * i + k, c, start:start + size]
                    for t in range(size):
                        to[t] = a[i, k, t]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def outputs(M, y, first, scale, shift, residual, has_residual, relu, suspect):
    """M (16, O, T) -> y (N, O, OH, OW): A^T m A of the tiles first .. first + T - 1, through the epilogue.

    suspect (O,): NaN afterwards where a number before the epilogue is not finite, for 0 * inf and 0 * NaN are NaN.
    """
    tiles = M.shape[2]
    for o in range(y.shape[1]):
        a = np.zeros((4, 4, CHUNK), y.dtype)
        b = np.empty((2, 4, CHUNK), y.dtype)
        bad = np.zeros(CHUNK, y.dtype)
        line = np.empty(2 * CHUNK, y.dtype)
        for start in range(0, tiles, CHUNK):
            size = min(CHUNK, tiles - start)
            for i in range(4):
                for k in range(4):
                    source = M[4 * i + k, o, start:start + size]
                    for t in range(size):
                        a[i, k, t] = source[t]
            for k in range(4):
                for t in range(CHUNK):
                    b[0, k, t], b[1, k, t] = _at(a[0, k, t], a[1, k, t], a[2, k, t], a[3, k, t])
            for i in range(2):
                for t in range(CHUNK):
                    y0, y1 = _at(b[i, 0, t], b[i, 1, t], b[i, 2, t], b[i, 3, t])
                    bad[t] += ZERO * y0 + ZERO * y1
                    a[i, 0, t], a[i, 1, t] = y0, y1
            store_tiles(a, y, o, first + start, size, 2, scale[o], shift[o], residual, has_residual, relu, line)
        for t in range(CHUNK):
            suspect[o] += bad[t]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def output_gradients(dy, dM, first):
    """dy (N, O, OH, OW) -> dM (16, O, T): A dy A^T, the transpose of `outputs`."""
    tiles = dM.shape[2]
    for o in range(dy.shape[1]):
        a = np.zeros((2, 2, CHUNK), dy.dtype)
        b = np.empty((4, 2, CHUNK), dy.dtype)
        e = np.empty((4, CHUNK), dy.dtype)
        for start in range(0, tiles, CHUNK):
            size = min(CHUNK, tiles - start)
            load_output_tiles(dy, o, first + start, size, 2, a)
            for k in range(2):
                for t in range(CHUNK):
                    b[0, k, t], b[1, k, t], b[2, k, t], b[3, k, t] = _a(a[0, k, t], a[1, k, t])
            for i in range(4):
                for t in range(CHUNK):
                    e[0, t], e[1, t], e[2, t], e[3, t] = _a(b[i, 0, t], b[i, 1, t])
                for k in range(4):
                    to = dM[4 * i + k, o, start:start + size]
                    for t in range(size):
                        to[t] = e[k, t]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def filter_gradients(dU, dw, start, stop):
    """dU (16, O, C) -> dw (O, C, 3, 3): G^T dU G, the transpose of `filters`, of the output channels start .. stop - 1."""
    channels = dw.shape[1]
    for o in range(start, stop):
        a = np.zeros((4, CHUNK), dw.dtype)
        b = np.empty((4, 3, CHUNK), dw.dtype)
        e = np.empty((3, CHUNK), dw.dtype)
        for first in range(0, channels, CHUNK):
            size = min(CHUNK, channels - first)
            for i in range(4):
                for k in range(4):
                    source = dU[4 * i + k, o, first:first + size]
                    for c in range(size):
                        a[k, c] = source[c]
                for c in range(CHUNK):
                    b[i, 0, c], b[i, 1, c], b[i, 2, c] = _gt(a[0, c], a[1, c], a[2, c], a[3, c])
            for j in range(3):
                for c in range(CHUNK):
                    e[0, c], e[1, c], e[2, c] = _gt(b[0, j, c], b[1, j, c], b[2, j, c], b[3, j, c])
                for i in range(3):
                    to = dw[o, first:first + size]
                    for c in range(size):
                        to[c, i, j] = e[i, c]
