"""Cutting maps into overlapping tiles and putting tiles together: what both sizes of Winograd tile share.

A tile of m x m outputs is made from (m + 2) x (m + 2) inputs, so neighbouring tiles share two rows or columns. The transforms work on
PANEL tiles at once, one in each lane of a vector (vectors.py): vector (i, k) has row i and column k of PANEL tiles.

Along a row of the map column k of the next tile is m numbers on. To read every m-th number wherever the panel's tiles lie, be it
in the middle of a row of tiles or, in a map of 14 x 14, in four rows of them, the rows of CHUNK tiles are first copied one behind the
other into lines, with zeros for what is outside:

    lines[i]       the columns 0 .. m - 1 of row i of every tile, tile after tile
    lines[n + i]   the columns m .. 2m - 1, of which the first two belong to the tile                       n = m + 2
"""

from numba import njit

from .checks import ZERO
from .conv_product import PANEL
from .vectors import LANES, keep_lanes, load, number, relu, set_number, store, zeros_like

CHUNK = 64   # tiles, a whole number of panels; their lines fit into the L1 cache
SLACK = LANES   # numbers behind a line that vectors may write over


@njit(cache=True)
def copy_row(x, start, left, width, count, lines, to):
    """lines[to + j] = the number at column left + j of a row of x, or 0 outside of 0 .. width - 1, for j < count. Up to SLACK numbers
    behind are written over, too.

    x, lines : flat; column 0 is x[start]
    """
    if left >= 0 and left + count + LANES <= width:
        for j in range(0, count, LANES):
            store(lines, to + j, load(x, start + left + j))
        return
    for j in range(left, left + count, LANES):
        if 0 <= start + j and start + j + LANES <= len(x):
            store(lines, to + j - left, keep_lanes(load(x, start + j), -j, width - j))
        else:                   # at the ends of the array
            for column in range(j, j + LANES):
                set_number(lines, to + column - left, number(x, start + column) if 0 <= column < width else ZERO)


@njit(cache=True)
def load_lines(x, flat, channel, first, size, m, rows, ph, pw, out_h, out_w, lines):
    """The tiles first .. first + size - 1 of one channel as lines; zeros behind them, up to the next whole panel.

    x : (N, C, H, W), and flat, the same in one dimension
    first : tiles are counted t = (n * TH + ty) * TW + tx
    m : outputs of a tile along each axis; out_h, out_w : of the map that the tiles cover
    rows : of x that a tile sees. m + 2: lines[m + 2 + i] are made, too. m: x is the map that the tiles cover.
    ph, pw : rows and columns of zeros above and left of x
    lines : flat, rows or 2 * rows lines of m * CHUNK + SLACK numbers
    """
    tile_rows, tile_columns = (out_h + m - 1) // m, (out_w + m - 1) // m
    _, channels, height, width = x.shape
    length = m * CHUNK + SLACK
    done = 0
    while done < size:           # a run: neighbouring tiles of one row of tiles
        row, tx = divmod(first + done, tile_columns)
        n, ty = divmod(row, tile_rows)
        run = min(size - done, tile_columns - tx)
        for i in range(rows):
            y, to = m * ty + i - ph, length * i + m * done
            inside = width if 0 <= y < height else 0      # else: a row of zeros
            start = ((n * channels + channel) * height + y) * width
            copy_row(flat, start, m * tx - pw, inside, m * run, lines, to)
            if rows > m:
                copy_row(flat, start, m * tx - pw + m, inside, m * run, lines, to + rows * length)
        done += run
    zeros = zeros_like(lines)
    for line in range(2 * rows if rows > m else rows):
        for j in range(m * size, -(-size // PANEL) * PANEL * m, LANES):
            store(lines, line * length + j, zeros)


@njit(cache=True, fastmath={"contract"})
def store_lines(lines, y, flat, channel, first, size, m, scale, shift, residual, has_residual, with_relu):
    """Write the m x m outputs of each tile into y (N, O, OH, OW), through the epilogue. The parts that stick out are dropped.

    lines : m lines of m * CHUNK + SLACK numbers, flat: row i of the outputs, tile after tile
    flat, residual : y and the residual in one dimension
    """
    _, channels, height, width = y.shape
    tile_rows, tile_columns = (height + m - 1) // m, (width + m - 1) // m
    length = m * CHUNK + SLACK
    done = 0
    while done < size:
        row, tx = divmod(first + done, tile_columns)
        n, ty = divmod(row, tile_rows)
        run = min(size - done, tile_columns - tx)
        count = min(m * run, width - m * tx)
        for i in range(min(m, height - m * ty)):
            source = length * i + m * done
            to = ((n * channels + channel) * height + m * ty + i) * width + m * tx
            finish_run(lines, source, flat, to, count, scale, shift, residual, has_residual, with_relu)
        done += run


@njit(cache=True, fastmath={"contract"})
def finish_run(sums, source, y, to, count, scale, shift, residual, has_residual, with_relu):
    """y[to + j] = relu(sums[source + j] * scale + shift + residual[to + j]) for j < count; all arrays flat."""
    shifts = zeros_like(y) + shift
    j = 0
    while j < count:
        if count >= LANES:       # the last vector ends with the run: some numbers are computed twice, none beyond is touched
            j = min(j, count - LANES)
            value = load(sums, source + j) * scale + shifts
            if has_residual:
                value = value + load(residual, to + j)
            store(y, to + j, relu(value) if with_relu else value)
            j += LANES
        else:
            one = number(sums, source + j) * scale + shift
            if has_residual:
                one = one + number(residual, to + j)
            set_number(y, to + j, ZERO if with_relu and one < ZERO else one)
            j += 1
