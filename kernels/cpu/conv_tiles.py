"""Cutting maps into overlapping tiles and putting tiles together: what both sizes of Winograd tile share.

A tile of m x m outputs is made from (m + 2) x (m + 2) inputs, so neighbouring tiles share two rows or columns. Compiled loops are
fast where they run along memory. So the numbers are rearranged: CHUNK tiles are worked on at once, and

    a[i, k, t]      row i and column k of tile t of the chunk

has tiles in its last axis. B^T d then is a few sums of rows of CHUNK numbers, the same for all t: eight at a time in one AVX2
instruction. A chunk's arrays, 6 * 6 * CHUNK float32 numbers (9 KB) and as many for the result, fit into the 32 KB of the L1 cache.
"""

import numpy as np
from numba import njit

from .checks import ZERO

CHUNK = 64
LONG_RUN = 8   # tiles; in a longer row of tiles the first one, which sees the padding, is loaded on its own


@njit(cache=True)
def load_tiles(x, channel, first, size, m, ph, pw, out_h, out_w, line, a):
    """a[i, k, t] = the inputs of tiles first .. first + size - 1 of one channel, 0 outside the image.

    x : (N, C, H, W), read at [n, channel]
    first : tiles are counted t = (n * TH + ty) * TW + tx
    m : outputs of a tile along each axis; out_h, out_w : of the map that the tiles cover
    ph, pw : rows and columns of zeros above and left of x
    line : scratch, at least m * CHUNK + 2
    a : (m + 2, m + 2, CHUNK), filled for t < size
    """
    tile_rows, tile_columns = (out_h + m - 1) // m, (out_w + m - 1) // m
    height, width = x.shape[2], x.shape[3]
    done = 0
    while done < size:           # a run: neighbouring tiles of one row of tiles
        row, tx = divmod(first + done, tile_columns)
        n, ty = divmod(row, tile_rows)
        run = min(size - done, tile_columns - tx)
        left = m * tx - pw
        if left >= 0:            # as many tiles as lie inside the image: they are read where they are, the others from a padded line
            run = min(run, max(1, (width - left - 2) // m))
        elif run > LONG_RUN:
            run = 1
        count = m * run + 2
        inside = min(max(-left, 0), count)
        behind = max(inside, min(width - left, count))
        for i in range(m + 2):
            y = m * ty + i - ph
            if y < 0 or y >= height:
                a[i, :, done:done + run] = ZERO
                continue
            if left >= 0 and left + count <= width:
                source = x[n, channel, y, left:left + count]
            else:
                source = line[:count]
                source[:] = ZERO
                source[inside:behind] = x[n, channel, y, left + inside:left + behind]
            for k in range(m + 2):
                to = a[i, k, done:done + run]      # a slice, so that its index begins at 0: see conv_im2col._fill_columns
                for t in range(run):
                    to[t] = source[m * t + k]
        done += run


@njit(cache=True)
def load_output_tiles(dy, channel, first, size, m, a):
    """a[i, k, t] = the m x m outputs (here: gradients) of each tile, 0 where a tile sticks out. a : (>= m, >= m, CHUNK)."""
    height, width = dy.shape[2], dy.shape[3]
    tile_rows, tile_columns = (height + m - 1) // m, (width + m - 1) // m
    done = 0
    while done < size:           # a run, as in load_tiles; the last tile of a row, which may stick out, is one by itself
        row, tx = divmod(first + done, tile_columns)
        n, ty = divmod(row, tile_rows)
        run = max(1, min(size - done, width // m - tx))
        inside = min(m, width - m * tx) if run == 1 else m
        for i in range(m):
            y = m * ty + i
            if y >= height:
                a[i, :m, done:done + run] = ZERO
                continue
            source = dy[n, channel, y, m * tx:]
            for k in range(inside):
                to = a[i, k, done:done + run]
                for t in range(run):
                    to[t] = source[m * t + k]
            a[i, inside:m, done:done + run] = ZERO
        done += run


@njit(cache=True, fastmath={"contract"})
def store_tiles(a, y, channel, first, size, m, scale, shift, residual, has_residual, relu, line):
    """Write the m x m outputs of each tile into y (N, O, OH, OW), through the epilogue. The parts that stick out are dropped.

    line : scratch, at least m * CHUNK
    """
    height, width = y.shape[2], y.shape[3]
    tile_rows, tile_columns = (height + m - 1) // m, (width + m - 1) // m
    done = 0
    while done < size:
        row, tx = divmod(first + done, tile_columns)
        n, ty = divmod(row, tile_rows)
        run = min(size - done, tile_columns - tx)
        count = min(m * run, width - m * tx)
        for i in range(min(m, height - m * ty)):
            for k in range(m):
                source = a[i, k, done:done + run]
                for t in range(run):
                    line[m * t + k] = source[t]
            to = y[n, channel, m * ty + i, m * tx:m * tx + count]
            if has_residual:
                add = residual[n, channel, m * ty + i, m * tx:m * tx + count]
                for v in range(count):
                    value = line[v] * scale + shift + add[v]
                    to[v] = ZERO if relu and value < ZERO else value
            else:
                for v in range(count):
                    value = line[v] * scale + shift
                    to[v] = ZERO if relu and value < ZERO else value
        done += run
