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

from .checks import HALF, ZERO
from .conv_product import PANEL, ROWS
from .conv_tiles import CHUNK, find_runs, find_tiles, load_filters, load_tiles, near_an_end, store_filters, store_lines
from .vectors import LANES, collect_4, load, prefetch, store, zeros_like

FASTMATH = {"contract"}  # fuse a product with a sum, nothing else
# Exact in float32, so that they serve both: float32 * float64 is float64, but float32 * the integer 4 would be float64 as well.
TWO, FOUR, FIVE, SIX, EIGHT, TWELVE, QUARTER = (np.float32(k) for k in (2, 4, 5, 6, 8, 12, .25))


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
def _g(g0, g1, g2, sixth):
    """G g. sixth : 1/6 in the dtype of g, for no float32 number is close enough to it for float64"""
    outer, inner = sixth * (g0 + g2), sixth * g1
    outer2, inner2 = sixth * QUARTER * (g0 + FOUR * g2), sixth * HALF * g1
    return QUARTER * g0, ZERO - (outer + inner), inner - outer, outer2 + inner2, outer2 - inner2, g2


@njit(fastmath=FASTMATH, cache=True)
def _gt(u0, u1, u2, u3, u4, u5):
    """G^T u"""
    sum1, sum2 = u1 + u2, u3 + u4
    return (u0 / FOUR - sum1 / SIX + sum2 / (TWO * TWELVE), (u2 - u1) / SIX + (u3 - u4) / TWELVE,
            sum2 / SIX - sum1 / SIX + u5)


@njit(cache=True)
def _six(numbers, start, step):
    """Six vectors, `step` numbers apart."""
    return (load(numbers, start), load(numbers, start + step), load(numbers, start + 2 * step),
            load(numbers, start + 3 * step), load(numbers, start + 4 * step), load(numbers, start + 5 * step))


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def filters(w, U, start, stop):
    """w (O, C, 3, 3) -> U (36, O / ROWS, C, ROWS): G g G^T, of the panels of output channels start .. stop - 1. Here the lanes are input
    channels."""
    channels, flat, to_flat = w.shape[1], w.reshape(-1), U.reshape(-1)
    place_step, panel_step = U[0].size, U[0, 0].size
    sixth = w.dtype.type(1) / SIX
    g, b, e = np.empty(9 * LANES, w.dtype), np.empty(18 * LANES, w.dtype), np.zeros(ROWS * 36 * LANES, w.dtype)
    for panel in range(start, stop):
        for first in range(0, channels, LANES):
            count = min(LANES, channels - first)
            for r in range(ROWS):
                o, of_row = panel * ROWS + r, r * 36 * LANES
                if o >= len(w):
                    e[of_row:of_row + 36 * LANES] = ZERO
                    continue
                load_filters(flat, 9 * (o * channels + first), count, g)
                for j in range(3):
                    column = _g(load(g, j * LANES), load(g, (3 + j) * LANES), load(g, (6 + j) * LANES), sixth)
                    for i in range(6):
                        store(b, (3 * i + j) * LANES, column[i])
                for i in range(6):
                    row = _g(load(b, 3 * i * LANES), load(b, (3 * i + 1) * LANES), load(b, (3 * i + 2) * LANES), sixth)
                    for j in range(6):
                        store(e, of_row + (6 * i + j) * LANES, row[j])
            store_filters(e, 36, count, to_flat, panel * panel_step + first * ROWS, place_step)


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def inputs(x, V, place_step, panel_step, channel_step, first, tiles, ph, pw, out_h, out_w):
    """x (N, C, H, W) -> V (36, C, T): B^T d B of the tiles first .. first + tiles - 1.

    V : flat, in whichever order: a panel of PANEL tiles is at place * place_step + panel * panel_step + channel * channel_step
    """
    flat, plane = x.reshape(-1), x.shape[2] * x.shape[3]
    d = np.empty(36 * PANEL, x.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        places, masks = find_tiles(first + chunk, size, x.shape, out_h, out_w, 4, 6, ph, pw)
        for c in range(x.shape[1]):
            careful = near_an_end(flat, places, c * plane)
            for panel in range(-(-size // PANEL)):
                load_tiles(flat, places, masks, panel, 6, c * plane, (c + 1) * plane, careful, d)
                for i in range(6):
                    row = _bt(*_six(d, 6 * i * PANEL, PANEL))
                    for k in range(6):
                        store(d, (6 * i + k) * PANEL, row[k])
                to = (chunk // PANEL + panel) * panel_step + c * channel_step
                for k in range(6):
                    column = _bt(*_six(d, k * PANEL, 6 * PANEL))
                    for i in range(6):
                        store(V, to + (6 * i + k) * place_step, column[i])


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def outputs(M, y, first, tiles, scale, shift, residual, has_residual, relu, suspect):
    """M (36, T / PANEL, O, PANEL) -> y (N, O, OH, OW): A^T m A of the tiles first .. first + tiles - 1, through the epilogue.

    suspect (O,): NaN afterwards where a number before the epilogue is not finite, for 0 * inf and 0 * NaN are NaN.
    """
    sums, flat, residual = M.reshape(-1), y.reshape(-1), residual.reshape(-1)
    place_step, panel_step = M[0].size, M[0, 0].size
    length = 4 * CHUNK
    lines = np.empty(4 * length, y.dtype)
    runs = np.empty((CHUNK, 4), np.int64)
    b = np.empty(24 * PANEL, y.dtype)
    bad = np.empty(PANEL, y.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        count = find_runs(first + chunk, size, -(-y.shape[2] // 4), -(-y.shape[3] // 4), runs)
        for o in range(y.shape[1]):
            zero_or_nan = zeros_like(y)
            for tile in range(0, size, PANEL):
                start = (chunk + tile) // PANEL * panel_step + o * PANEL
                for place in range(36):
                    prefetch(sums, start + PANEL + place * place_step)
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
            store_lines(lines, y, flat, o, runs, count, 4, scale[o], shift[o], residual, has_residual, relu)


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def output_gradients(dy, dM, first, tiles):
    """dy (N, O, OH, OW) -> dM (36, O, T): A dy A^T, the transpose of `outputs`, of the tiles first .. first + tiles - 1.

    T is `tiles` rounded up to whole panels; the tiles too many are 0.
    """
    flat, to_flat, plane = dy.reshape(-1), dM.reshape(-1), dy.shape[2] * dy.shape[3]
    place_step, channel_step = dM[0].size, dM.shape[2]
    d = np.empty(16 * PANEL, dy.dtype)
    b = np.empty(24 * PANEL, dy.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        places, masks = find_tiles(first + chunk, size, dy.shape, dy.shape[2], dy.shape[3], 4, 4, 0, 0)
        for o in range(dy.shape[1]):
            careful = near_an_end(flat, places, o * plane)
            for panel in range(-(-size // PANEL)):
                load_tiles(flat, places, masks, panel, 4, o * plane, (o + 1) * plane, careful, d)
                for i in range(4):
                    j = 4 * i * PANEL
                    row = _a(load(d, j), load(d, j + PANEL), load(d, j + 2 * PANEL), load(d, j + 3 * PANEL))
                    for k in range(6):
                        store(b, (6 * i + k) * PANEL, row[k])
                to = o * channel_step + chunk + panel * PANEL
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
