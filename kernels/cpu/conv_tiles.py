"""Cutting maps into overlapping tiles and putting tiles together: what both sizes of Winograd tile share.

A tile of m x m outputs is made from (m + 2) x (m + 2) inputs, so neighbouring tiles share two rows or columns. The transforms work on
PANEL tiles at once, one in each lane of a vector (vectors.py): vector (i, k) has row i and column k of PANEL tiles.

Reading. Where a tile's rows lie in a channel, and which of their numbers are outside of the map, is the same in all channels. find_tiles
looks it up once for CHUNK tiles; load_tiles reads them in one channel after the other.

Writing. The outputs of neighbouring tiles are neighbours in y, so they are put one behind the other into lines, line i with row i of every
tile, and written in runs, as long as a row of the map or as short as 14 numbers in a RoI of 14 x 14.
"""

import numpy as np
from numba import njit

from .checks import ONE, ZERO
from .conv_product import PANEL, ROWS
from .vectors import HALF, LANES, collect_4, gather, keep_where, load, load_half, number, prefetch, relu, set_number, store

CHUNK = 64   # tiles, a whole number of panels; what is looked up for them fits into the L1 cache


# ---- reading maps ----

@njit(cache=True)
def find_tiles(first, size, x_shape, out_h, out_w, m, rows, ph, pw):
    """The tiles first .. first + size - 1, in x (N, C, H, W), rounded up to whole panels; the tiles too many are 0.

    first : tiles are counted t = (n * TH + ty) * TW + tx
    out_h, out_w : of the map that the tiles cover, m x m numbers each
    rows : (and columns) of x that a tile sees
    ph, pw : rows and columns of zeros above and left of x

    Returns
    -------
    places : (panels * rows * PANEL,) where the rows of each tile begin in channel 0 of x, flat; PANEL tiles are side by side
    masks : (panels * rows * rows * PANEL,) float32, 1 where a number of a tile is inside of x, else 0
    """
    n, channels, height, width = x_shape
    tile_rows, tile_columns = -(-out_h // m), -(-out_w // m)
    panels = -(-size // PANEL)
    places = np.zeros((panels, rows, PANEL), np.int64)
    masks = np.zeros((panels, rows, rows, PANEL), np.float32)
    for t in range(size):
        row, tx = divmod(first + t, tile_columns)
        n, ty = divmod(row, tile_rows)
        for i in range(rows):
            y, left = m * ty + i - ph, m * tx - pw
            # a row outside is read as its neighbour inside, and nothing of it is kept
            places[t // PANEL, i, t % PANEL] = (n * channels * height + min(max(y, 0), height - 1)) * width + left
            for k in range(rows):
                if 0 <= y < height and 0 <= left + k < width:
                    masks[t // PANEL, i, k, t % PANEL] = ONE
    return places.reshape(-1), masks.reshape(-1)


@njit(cache=True)
def near_an_end(x, places, shift):
    """Whether load_tiles might read before the beginning of x or behind its end."""
    return places.min() + shift < 0 or places.max() + shift + HALF > len(x)


@njit(cache=True, inline="always")
def load_tiles(x, places, masks, panel, rows, shift, next_shift, careful, d):
    """d[i, k] = row i, column k of PANEL tiles: rows x rows vectors, flat.

    x : flat
    places, masks, panel : see find_tiles, and which panel of them
    rows : at most 6
    shift : where this channel begins, and the one that is read next
    careful : see near_an_end
    """
    first, kept = panel * rows * PANEL, panel * rows * rows * PANEL
    # The processor foresees what is read in order. It does not foresee jumps from channel to channel, so it is told.
    for j in range(0, rows * PANEL, 4):
        prefetch(x, places[first + j] + next_shift)
    if careful:
        for i in range(rows):
            for k in range(rows):
                for lane in range(PANEL):
                    j = (i * rows + k) * PANEL + lane
                    place = places[first + i * PANEL + lane] + shift + k
                    set_number(d, j, number(x, place) if masks[kept + j] != ZERO else ZERO)
    else:
        for i in range(rows):
            columns = gather(x, places, first + i * PANEL, shift)
            j = i * rows * PANEL
            store(d, j, keep_where(columns[0], masks, kept + j))
            store(d, j + PANEL, keep_where(columns[1], masks, kept + j + PANEL))
            if rows > 2:
                store(d, j + 2 * PANEL, keep_where(columns[2], masks, kept + j + 2 * PANEL))
                store(d, j + 3 * PANEL, keep_where(columns[3], masks, kept + j + 3 * PANEL))
            if rows > 4:
                store(d, j + 4 * PANEL, keep_where(columns[4], masks, kept + j + 4 * PANEL))
                store(d, j + 5 * PANEL, keep_where(columns[5], masks, kept + j + 5 * PANEL))


# ---- filters: the lanes are input channels ----

@njit(cache=True)
def load_filters(w, at, channels, g):
    """g[i, j] = row i, column j of the filters of LANES input channels, the first of them at `at`: 3 x 3 vectors, flat.

    w : flat, filters of nine numbers; of fewer `channels` the last one is repeated
    """
    places = np.empty(LANES, np.int64)
    for lane in range(LANES):
        places[lane] = 9 * min(lane, channels - 1)
    first, last = gather(w, places, 0, at), gather(w, places, 0, at + 1)      # HALF, eight, of the nine numbers
    store(g, 0, first[0])
    store(g, PANEL, first[1])
    store(g, 2 * PANEL, first[2])
    store(g, 3 * PANEL, first[3])
    store(g, 4 * PANEL, first[4])
    store(g, 5 * PANEL, first[5])
    store(g, 6 * PANEL, first[6])
    store(g, 7 * PANEL, first[7])
    store(g, 8 * PANEL, last[7])


@njit(cache=True)
def store_filters(e, places, count, U, to, step):
    """Write the transformed filters of ROWS output channels into U, where the ROWS numbers of an input channel lie side by side.

    e : (ROWS, places, LANES), flat; of the LANES input channels, `count`
    U : flat; those of the first place begin at `to`, the others' `step` numbers on
    """
    tail = np.empty(ROWS * LANES, e.dtype)
    row = places * LANES
    for place in range(places):
        at = place * LANES
        numbers = collect_4((load(e, at), load(e, row + at), load(e, 2 * row + at), load(e, 3 * row + at)))      # ROWS, 4
        if count == LANES:
            for k in range(ROWS):
                store(U, to + place * step + k * LANES, numbers[k])
        else:
            for k in range(ROWS):
                store(tail, k * LANES, numbers[k])
            for k in range(count * ROWS):
                set_number(U, to + place * step + k, number(tail, k))


# ---- writing maps ----

@njit(cache=True)
def find_runs(first, size, tile_rows, tile_columns, runs):
    """Cut the tiles first .. first + size - 1 into runs, neighbours in one row of tiles. Returns how many there are.

    runs : (CHUNK, 4) int64, written over: image, row of tiles, column of tiles, and how many tiles
    """
    count = done = 0
    while done < size:
        row, column = divmod(first + done, tile_columns)
        length = min(size - done, tile_columns - column)
        runs[count, 0], runs[count, 1], runs[count, 2], runs[count, 3] = row // tile_rows, row % tile_rows, column, length
        count += 1
        done += length
    return count


@njit(cache=True, fastmath={"contract"})
def store_lines(lines, y, flat, channel, runs, count, m, scale, shift, residual, has_residual, with_relu):
    """Write the m x m outputs of each tile into y (N, O, OH, OW), through the epilogue. The parts that stick out are dropped.

    lines : m lines of m * CHUNK numbers, flat: row i of the outputs, tile after tile
    runs, count : see find_runs
    flat, residual : y and the residual in one dimension
    """
    _, channels, height, width = y.shape
    length = m * CHUNK
    done = 0
    for run in range(count):
        left, size = m * runs[run, 2], m * runs[run, 3]
        for i in range(min(m, height - m * runs[run, 1])):
            to = ((runs[run, 0] * channels + channel) * height + m * runs[run, 1] + i) * width + left
            finish_run(lines, length * i + done, flat, to, min(size, width - left), scale, shift, residual, has_residual, with_relu)
        done += size


@njit(cache=True, fastmath={"contract"}, inline="always")
def finish_run(sums, source, y, to, count, scale, shift, residual, has_residual, with_relu):
    """y[to + j] = relu(sums[source + j] * scale + shift + residual[to + j]) for j < count; all arrays flat.

    The last vector ends with the run: some numbers are computed twice, none beyond is touched.
    """
    if count >= LANES:
        for j in range(0, count, LANES):
            j = min(j, count - LANES)
            value = load(sums, source + j) * scale + shift
            if has_residual:
                value = value + load(residual, to + j)
            store(y, to + j, relu(value) if with_relu else value)
    elif count >= HALF:
        for j in (0, count - HALF):
            half = load_half(sums, source + j) * scale + shift
            if has_residual:
                half = half + load_half(residual, to + j)
            store(y, to + j, relu(half) if with_relu else half)
    else:
        for j in range(count):
            one = number(sums, source + j) * scale + shift
            if has_residual:
                one = one + number(residual, to + j)
            set_number(y, to + j, ZERO if with_relu and one < ZERO else one)
