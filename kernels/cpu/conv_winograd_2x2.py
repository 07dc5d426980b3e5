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
from .conv_product import PANEL, ROWS
from .conv_tiles import CHUNK, find_runs, find_tiles, load_filters, load_tiles, near_an_end, store_filters, store_lines
from .vectors import LANES, collect_2, load, store, zeros_like

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
    return y0, y0 + y1, y0 - y1, ZERO - y1


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


@njit(cache=True)
def _four(numbers, start, step):
    """Four vectors, `step` numbers apart."""
    return (load(numbers, start), load(numbers, start + step), load(numbers, start + 2 * step), load(numbers, start + 3 * step))


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def filters(w, U, start, stop):
    """w (O, C, 3, 3) -> U (16, O / ROWS, C, ROWS): G g G^T, of the panels of output channels start .. stop - 1. Here the lanes are input
    channels."""
    channels, flat, to_flat = w.shape[1], w.reshape(-1), U.reshape(-1)
    place_step, panel_step = U[0].size, U[0, 0].size
    g, b, e = np.empty(9 * LANES, w.dtype), np.empty(12 * LANES, w.dtype), np.zeros(ROWS * 16 * LANES, w.dtype)
    for panel in range(start, stop):
        for first in range(0, channels, LANES):
            count = min(LANES, channels - first)
            for r in range(ROWS):
                o, of_row = panel * ROWS + r, r * 16 * LANES
                if o >= len(w):
                    e[of_row:of_row + 16 * LANES] = ZERO
                    continue
                load_filters(flat, 9 * (o * channels + first), count, g)
                for j in range(3):
                    column = _g(load(g, j * LANES), load(g, (3 + j) * LANES), load(g, (6 + j) * LANES))
                    for i in range(4):
                        store(b, (3 * i + j) * LANES, column[i])
                for i in range(4):
                    row = _g(load(b, 3 * i * LANES), load(b, (3 * i + 1) * LANES), load(b, (3 * i + 2) * LANES))
                    for j in range(4):
                        store(e, of_row + (4 * i + j) * LANES, row[j])
            store_filters(e, 16, count, to_flat, panel * panel_step + first * ROWS, place_step)


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def inputs(x, V, place_step, panel_step, channel_step, first, tiles, ph, pw, out_h, out_w):
    """x (N, C, H, W) -> V (16, C, T): B^T d B of the tiles first .. first + tiles - 1.

    V : flat, in whichever order: a panel of PANEL tiles is at place * place_step + panel * panel_step + channel * channel_step
    """
    flat, plane = x.reshape(-1), x.shape[2] * x.shape[3]
    d = np.empty(16 * PANEL, x.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        places, masks = find_tiles(first + chunk, size, x.shape, out_h, out_w, 2, 4, ph, pw)
        for c in range(x.shape[1]):
            careful = near_an_end(flat, places, c * plane)
            for panel in range(-(-size // PANEL)):
                load_tiles(flat, places, masks, panel, 4, c * plane, (c + 1) * plane, careful, d)
                for i in range(4):
                    row = _bt(*_four(d, 4 * i * PANEL, PANEL))
                    for k in range(4):
                        store(d, (4 * i + k) * PANEL, row[k])
                to = (chunk // PANEL + panel) * panel_step + c * channel_step
                for k in range(4):
                    column = _bt(*_four(d, k * PANEL, 4 * PANEL))
                    for i in range(4):
                        store(V, to + (4 * i + k) * place_step, column[i])


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def outputs(M, y, first, tiles, scale, shift, residual, has_residual, relu, suspect):
    """M (16, T / PANEL, O, PANEL) -> y (N, O, OH, OW): A^T m A of the tiles first .. first + tiles - 1, through the epilogue.

    suspect (O,): NaN afterwards where a number before the epilogue is not finite, for 0 * inf and 0 * NaN are NaN.
    """
    sums, flat, residual = M.reshape(-1), y.reshape(-1), residual.reshape(-1)
    place_step, panel_step = M[0].size, M[0, 0].size
    length = 2 * CHUNK
    lines = np.empty(2 * length, y.dtype)
    runs = np.empty((CHUNK, 4), np.int64)
    b = np.empty(8 * PANEL, y.dtype)
    bad = np.empty(PANEL, y.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        count = find_runs(first + chunk, size, -(-y.shape[2] // 2), -(-y.shape[3] // 2), runs)
        for o in range(y.shape[1]):
            zero_or_nan = zeros_like(y)
            for tile in range(0, size, PANEL):
                start = (chunk + tile) // PANEL * panel_step + o * PANEL
                for k in range(4):
                    column = _at(*_four(sums, start + k * place_step, 4 * place_step))
                    for i in range(2):
                        store(b, (4 * i + k) * PANEL, column[i])
                for i in range(2):
                    row = _at(*_four(b, 4 * i * PANEL, PANEL))
                    for k in range(2):
                        zero_or_nan = zero_or_nan + row[k] * ZERO
                    numbers = collect_2(row)
                    for k in range(2):
                        store(lines, i * length + 2 * tile + k * PANEL, numbers[k])
            store(bad, 0, zero_or_nan)
            for t in range(PANEL):
                suspect[o] += bad[t]
            store_lines(lines, y, flat, o, runs, count, 2, scale[o], shift[o], residual, has_residual, relu)


@njit(nogil=True, fastmath=FASTMATH, cache=True)
def output_gradients(dy, dM, first, tiles):
    """dy (N, O, OH, OW) -> dM (16, O, T): A dy A^T, the transpose of `outputs`, of the tiles first .. first + tiles - 1.

    T is `tiles` rounded up to whole panels; the tiles too many are 0.
    """
    flat, to_flat, plane = dy.reshape(-1), dM.reshape(-1), dy.shape[2] * dy.shape[3]
    place_step, channel_step = dM[0].size, dM.shape[2]
    d = np.empty(4 * PANEL, dy.dtype)
    b = np.empty(8 * PANEL, dy.dtype)
    for chunk in range(0, tiles, CHUNK):
        size = min(CHUNK, tiles - chunk)
        places, masks = find_tiles(first + chunk, size, dy.shape, dy.shape[2], dy.shape[3], 2, 2, 0, 0)
        for o in range(dy.shape[1]):
            careful = near_an_end(flat, places, o * plane)
            for panel in range(-(-size // PANEL)):
                load_tiles(flat, places, masks, panel, 2, o * plane, (o + 1) * plane, careful, d)
                for i in range(2):
                    row = _a(load(d, 2 * i * PANEL), load(d, (2 * i + 1) * PANEL))
                    for k in range(4):
                        store(b, (4 * i + k) * PANEL, row[k])
                to = o * channel_step + chunk + panel * PANEL
                for k in range(4):
                    column = _a(load(b, k * PANEL), load(b, (4 + k) * PANEL))
                    for i in range(4):
                        store(to_flat, to + (4 * i + k) * place_step, column[i])


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
