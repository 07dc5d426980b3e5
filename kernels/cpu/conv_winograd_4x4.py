"""The transforms of F(4x4, 3x3): 36 products for 16 outputs, 2.25 an output instead of 9.

Where they come from (Lavin and Gray, arXiv 1509.09308, section 4.3; Winograd 1980). Four outputs of a filter g with three taps, as a
polynomial product read backwards: multiplying polynomials of degree 3 and 2 gives degree 5, which six values determine. So evaluate
both at the points 0, 1, -1, 2, -2 and infinity, multiply value by value, and interpolate. G evaluates the filter, A the other factor,
and B interpolates (the transpose of the whole turns the polynomial product into the sliding filter):

          | 4  0 -5  0  1  0 |          |  1/4    0     0  |
          | 0 -4 -4  1  1  0 |          | -1/6  -1/6  -1/6 |           | 1  1  1  1  1  0 |
    B^T = | 0  4 -4 -1  1  0 |     G =  | -1/6   1/6  -1/6 |     A^T = | 0  1 -1  2 -2  0 |
          | 0 -2 -1  2  1  0 |          | 1/24  1/12   1/6 |           | 0  1  1  4  4  0 |
          | 0  2 -1 -2  1  0 |          | 1/24 -1/12   1/6 |           | 0  1 -1  8 -8  1 |
          | 0  4  0 -5  0  1 |          |   0     0     1  |

The price is rounding: entries like 8 and 5 make large numbers that must cancel. Measured: kernels/cpu/conv_errors.py.
Below, each 1-d function is one matrix times a vector, with the common sums taken once. The loops use them on columns, then on rows.
"""

import numpy as np
from numba import njit

from .checks import ZERO
from .conv_tiles import CHUNK, load_output_tiles, load_tiles, store_tiles

FASTMATH = {"contract"}  # fuse a product with a sum, nothing else
# Exact in float32, so that they serve both: float32 * float64 is float64, but float32 * the integer 4 would be float64 as well.
TWO, FOUR, FIVE, SIX, EIGHT, TWELVE = (np.float32(k) for k in (2, 4, 5, 6, 8, 12))


@njit(fastmath=FASTMATH, cache=True)
def _bt(d0, d1, d2, d3, d4, d5):
    """B^T d"""
    even, odd = d4 - FOUR * d2, d3 - FOUR * d1
    even2, odd2 = d4 - d2, TWO * (d3 - d1)
    return FOUR * d0 - FIVE * d2 + d4, even + odd, even - odd, even2 + odd2, even2 - odd2, FOUR * d1 - FIVE * d3 + d5


@njit(fastmath=FASTMATH, cache=True)
def _at(m0, m1, m2, m3, m4, m5):
    """A^T m"""
    sum1, difference1, sum2, difference2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + sum1 + sum2, difference1 + TWO * difference2, sum1 + FOUR * sum2, difference1 + EIGHT * difference2 + m5


@njit(fastmath=FASTMATH, cache=True)
def _a(y0, y1, y2, y3):
    """A y"""
    even, odd = y0 + y2, y1 + y3
    even2, odd2 = y0 + FOUR * y2, TWO * y1 + EIGHT * y3
    return y0, even + odd, even - odd, even2 + odd2, even2 - odd2, y3


@njit(fastmath=FASTMATH, cache=True)
def _g(g0, g1, g2):
    """G g. Divisions, for 1/6 is no float32 number: so float64 stays exact to its own rounding."""
    outer, outer2 = (g0 + g2) / -SIX, (g0 + FOUR * g2) / (TWO * TWELVE)
    return g0 / FOUR, outer - g1 / SIX, outer + g1 / SIX, outer2 + g1 / TWELVE, outer2 - g1 / TWELVE, g2


@njit(fastmath=FASTMATH, cache=True)
def _gt(u0, u1, u2, u3, u4, u5):
    """G^T u"""
    sum1, sum2 = u1 + u2, u3 + u4
    return (u0 / FOUR - sum1 / SIX + sum2 / (TWO * TWELVE), (u2 - u1) / SIX + (u3 - u4) / TWELVE,
            sum2 / SIX - sum1 / SIX + u5)


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def filters(w, U, start, stop):
    """w (O, C, 3, 3) -> U (36, O, C): G g G^T, of the output channels start .. stop - 1. Here a chunk is CHUNK input channels."""
    channels = w.shape[1]
    for o in range(start, stop):
        a = np.zeros((3, 3, CHUNK), w.dtype)
        b = np.empty((6, 3, CHUNK), w.dtype)
        e = np.empty((6, CHUNK), w.dtype)
        for first in range(0, channels, CHUNK):
            size = min(CHUNK, channels - first)
            source = w[o, first:first + size]      # a slice, so that its index begins at 0: see conv_im2col._fill_columns
            for c in range(size):
                for i in range(3):
                    for j in range(3):
                        a[i, j, c] = source[c, i, j]
            for j in range(3):
                for c in range(CHUNK):
                    b[0, j, c], b[1, j, c], b[2, j, c], b[3, j, c], b[4, j, c], b[5, j, c] = _g(a[0, j, c], a[1, j, c], a[2, j, c])
            for i in range(6):
                for c in range(CHUNK):
                    e[0, c], e[1, c], e[2, c], e[3, c], e[4, c], e[5, c] = _g(b[i, 0, c], b[i, 1, c], b[i, 2, c])
                for j in range(6):
                    to = U[6 * i + j, o, first:first + size]
                    for c in range(size):
                        to[c] = e[j, c]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def inputs(x, V, first, ph, pw, out_h, out_w):
    """x (N, C, H, W) -> V (36, C, T): B^T d B of the tiles first .. first + T - 1."""
    tiles = V.shape[2]
    for c in range(x.shape[1]):
        a = np.zeros((6, 6, CHUNK), x.dtype)      # zeros: the last chunk is not full, and leftovers there could be slow denormals
        b = np.empty((6, 6, CHUNK), x.dtype)
        line = np.empty(4 * CHUNK + 2, x.dtype)
        for start in range(0, tiles, CHUNK):
            size = min(CHUNK, tiles - start)
            load_tiles(x, c, first + start, size, 4, ph, pw, out_h, out_w, line, a)
            for k in range(6):
                for t in range(CHUNK):
                    b[0, k, t], b[1, k, t], b[2, k, t], b[3, k, t], b[4, k, t], b[5, k, t] = _bt(
                        a[0, k, t], a[1, k, t], a[2, k, t], a[3, k, t], a[4, k, t], a[5, k, t])
            for i in range(6):
                for t in range(CHUNK):
                    a[i, 0, t], a[i, 1, t], a[i, 2, t], a[i, 3, t], a[i, 4, t], a[i, 5, t] = _bt(
                        b[i, 0, t], b[i, 1, t], b[i, 2, t], b[i, 3, t], b[i, 4, t], b[i, 5, t])
            for i in range(6):
                for k in range(6):
                    to = V[6 * i + k, c, start:start + size]
                    for t in range(size):
                        to[t] = a[i, k, t]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def outputs(M, y, first, scale, shift, residual, has_residual, relu, suspect):
    """M (36, O, T) -> y (N, O, OH, OW): A^T m A of the tiles first .. first + T - 1, through the epilogue.

    suspect (O,): NaN afterwards where a number before the epilogue is not finite, for 0 * inf and 0 * NaN are NaN.
    """
    tiles = M.shape[2]
    for o in range(y.shape[1]):
        a = np.zeros((6, 6, CHUNK), y.dtype)
        b = np.empty((4, 6, CHUNK), y.dtype)
        bad = np.zeros(CHUNK, y.dtype)
        line = np.empty(4 * CHUNK, y.dtype)
        for start in range(0, tiles, CHUNK):
            size = min(CHUNK, tiles - start)
            for i in range(6):
                for k in range(6):
                    source = M[6 * i + k, o, start:start + size]
                    for t in range(size):
                        a[i, k, t] = source[t]
            for k in range(6):
                for t in range(CHUNK):
                    b[0, k, t], b[1, k, t], b[2, k, t], b[3, k, t] = _at(
                        a[0, k, t], a[1, k, t], a[2, k, t], a[3, k, t], a[4, k, t], a[5, k, t])
            for i in range(4):
                for t in range(CHUNK):
                    y0, y1, y2, y3 = _at(b[i, 0, t], b[i, 1, t], b[i, 2, t], b[i, 3, t], b[i, 4, t], b[i, 5, t])
                    bad[t] += ZERO * y0 + ZERO * y1 + ZERO * y2 + ZERO * y3
                    a[i, 0, t], a[i, 1, t], a[i, 2, t], a[i, 3, t] = y0, y1, y2, y3
            store_tiles(a, y, o, first + start, size, 4, scale[o], shift[o], residual, has_residual, relu, line)
        for t in range(CHUNK):
            suspect[o] += bad[t]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def output_gradients(dy, dM, first):
    """dy (N, O, OH, OW) -> dM (36, O, T): A dy A^T, the transpose of `outputs`."""
    tiles = dM.shape[2]
    for o in range(dy.shape[1]):
        a = np.zeros((4, 4, CHUNK), dy.dtype)
        b = np.empty((6, 4, CHUNK), dy.dtype)
        e = np.empty((6, CHUNK), dy.dtype)
        for start in range(0, tiles, CHUNK):
            size = min(CHUNK, tiles - start)
            load_output_tiles(dy, o, first + start, size, 4, a)
            for k in range(4):
                for t in range(CHUNK):
                    b[0, k, t], b[1, k, t], b[2, k, t], b[3, k, t], b[4, k, t], b[5, k, t] = _a(
                        a[0, k, t], a[1, k, t], a[2, k, t], a[3, k, t])
            for i in range(6):
                for t in range(CHUNK):
                    e[0, t], e[1, t], e[2, t], e[3, t], e[4, t], e[5, t] = _a(b[i, 0, t], b[i, 1, t], b[i, 2, t], b[i, 3, t])
                for k in range(6):
                    to = dM[6 * i + k, o, start:start + size]
                    for t in range(size):
                        to[t] = e[k, t]


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def filter_gradients(dU, dw, start, stop):
    """dU (36, O, C) -> dw (O, C, 3, 3): G^T dU G, the transpose of `filters`, of the output channels start .. stop - 1."""
    channels = dw.shape[1]
    for o in range(start, stop):
        a = np.zeros((6, CHUNK), dw.dtype)
        b = np.empty((6, 3, CHUNK), dw.dtype)
        e = np.empty((3, CHUNK), dw.dtype)
        for first in range(0, channels, CHUNK):
            size = min(CHUNK, channels - first)
            for i in range(6):
                for k in range(6):
                    source = dU[6 * i + k, o, first:first + size]
                    for c in range(size):
                        a[k, c] = source[c]
                for c in range(CHUNK):
                    b[i, 0, c], b[i, 1, c], b[i, 2, c] = _gt(a[0, c], a[1, c], a[2, c], a[3, c], a[4, c], a[5, c])
            for j in range(3):
                for c in range(CHUNK):
                    e[0, c], e[1, c], e[2, c] = _gt(b[0, j, c], b[1, j, c], b[2, j, c], b[3, j, c], b[4, j, c], b[5, j, c])
                for i in range(3):
                    to = dw[o, first:first + size]
                    for c in range(size):
                        to[c, i, j] = e[i, c]
