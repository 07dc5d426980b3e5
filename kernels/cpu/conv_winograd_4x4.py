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
from .conv_product import PANEL, ROWS
from .conv_tiles import CHUNK, SLACK, load_lines, store_lines
from .vectors import collect_4, deal_4, load, store, zeros_like

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
    """w (O, C, 3, 3) -> U (36, O / ROWS, C, ROWS): G g G^T, of the panels of output channels start .. stop - 1. Here a chunk is CHUNK
    input channels."""
    channels = w.shape[1]
    for o in range(start * ROWS, stop * ROWS):
        panel, row = o // ROWS, o % ROWS
        if o >= len(w):
            U[:, panel, :, row] = ZERO
            continue
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
                    to = U[6 * i + j, panel, first:first + size]
                    for c in range(size):
                        to[c, row] = e[j, c]


@njit(cache=True)
def _six(numbers, start, step):
    """Six vectors, `step` numbers apart."""
    return (load(numbers, start), load(numbers, start + step), load(numbers, start + 2 * step),
            load(numbers, start + 3 * step), load(numbers, start + 4 * step), load(numbers, start + 5 * step))


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def inputs(x, V, place_step, panel_step, channel_step, first, tiles, ph, pw, out_h, out_w):
    """x (N, C, H, W) -> V (36, C, T): B^T d B of the tiles first .. first + tiles - 1.

    V : flat, in whichever order: a panel of PANEL tiles is at place * place_step + panel * panel_step + channel * channel_step
    """
    flat = x.reshape(-1)
    length = 4 * CHUNK + SLACK
    lines = np.empty(12 * length, x.dtype)
    b = np.empty(36 * PANEL, x.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        for c in range(x.shape[1]):
            load_lines(x, flat, c, first + chunk, size, 4, 6, ph, pw, out_h, out_w, lines)
            for tile in range(0, size, PANEL):
                for i in range(6):
                    d0, d1, d2, d3 = deal_4(lines, i * length + 4 * tile)
                    d4, d5, _, _ = deal_4(lines, (6 + i) * length + 4 * tile)
                    row = _bt(d0, d1, d2, d3, d4, d5)
                    for k in range(6):
                        store(b, (6 * i + k) * PANEL, row[k])
                to = (chunk + tile) // PANEL * panel_step + c * channel_step
                for k in range(6):
                    column = _bt(*_six(b, k * PANEL, 6 * PANEL))
                    for i in range(6):
                        store(V, to + (6 * i + k) * place_step, column[i])


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def outputs(M, y, first, tiles, scale, shift, residual, has_residual, relu, suspect):
    """M (36, T / PANEL, O, PANEL) -> y (N, O, OH, OW): A^T m A of the tiles first .. first + tiles - 1, through the epilogue.

    suspect (O,): NaN afterwards where a number before the epilogue is not finite, for 0 * inf and 0 * NaN are NaN.
    """
    sums, flat, residual = M.reshape(-1), y.reshape(-1), residual.reshape(-1)
    place_step, panel_step = M[0].size, M[0, 0].size
    length = 4 * CHUNK + SLACK
    lines = np.empty(4 * length, y.dtype)
    b = np.empty(24 * PANEL, y.dtype)
    bad = np.empty(PANEL, y.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        for o in range(y.shape[1]):
            zero_or_nan = zeros_like(y)
            for tile in range(0, size, PANEL):
                start = (chunk + tile) // PANEL * panel_step + o * PANEL
                for k in range(6):
                    column = _at(*_six(sums, start + k * place_step, 6 * place_step))
                    for i in range(4):
                        store(b, (6 * i + k) * PANEL, column[i])
                for i in range(4):
                    row = _at(*_six(b, 6 * i * PANEL, PANEL))
                    for k in range(4):
                        zero_or_nan = zero_or_nan + row[k] * ZERO
                    numbers = collect_4(row)
                    for k in range(4):
                        store(lines, i * length + 4 * tile + k * PANEL, numbers[k])
            store(bad, 0, zero_or_nan)
            for t in range(PANEL):
                suspect[o] += bad[t]
            store_lines(lines, y, flat, o, first + chunk, size, 4, scale[o], shift[o], residual, has_residual, relu)


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def output_gradients(dy, dM, first, tiles):
    """dy (N, O, OH, OW) -> dM (36, O, T): A dy A^T, the transpose of `outputs`, of the tiles first .. first + tiles - 1.

    T is `tiles` rounded up to whole panels; the tiles too many are 0.
    """
    flat, to_flat = dy.reshape(-1), dM.reshape(-1)
    place_step, channel_step = dM[0].size, dM.shape[2]
    length = 4 * CHUNK + SLACK
    lines = np.empty(4 * length, dy.dtype)
    b = np.empty(24 * PANEL, dy.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        for o in range(dy.shape[1]):
            load_lines(dy, flat, o, first + chunk, size, 4, 4, 0, 0, dy.shape[2], dy.shape[3], lines)
            for tile in range(0, size, PANEL):
                for i in range(4):
                    d0, d1, d2, d3 = deal_4(lines, i * length + 4 * tile)
                    row = _a(d0, d1, d2, d3)
                    for k in range(6):
                        store(b, (6 * i + k) * PANEL, row[k])
                to = o * channel_step + chunk + tile
                for k in range(6):
                    column = _a(load(b, k * PANEL), load(b, (6 + k) * PANEL), load(b, (12 + k) * PANEL), load(b, (18 + k) * PANEL))
                    for i in range(6):
                        store(to_flat, to + (6 * i + k) * place_step, column[i])


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
