"""Exercises and figures of notebook 17: convolution in CUDA, in five versions."""

import numpy as np

from ..ops.conv import conv2d_grad_x
from .checks import compare
from .figures import BACKWARD, FORWARD


def draw_product(axes, rows, columns, depth, tile, step, results, title):
    """The matrix product result (rows, columns) = A (rows, depth) B (depth, columns), and the part of block 0.

    tile : (rows, columns) of a block
    step : how much of the depth the block fetches at once
    results : [(row, column)] of one thread
    """
    import matplotlib.pyplot as plt

    def box(x, y, width, height, **look):
        axes.add_patch(plt.Rectangle((x, y), width, height, **look))

    gap = 14
    left, top = -depth - gap, -depth - gap
    pale, dark = dict(facecolor=FORWARD, alpha=0.25, edgecolor="none"), dict(facecolor=FORWARD, edgecolor="none")
    for x, y, width, height in ((left, 0, depth, rows), (0, top, columns, depth), (0, 0, columns, rows)):
        box(x, y, width, height, facecolor="#f2f2f2", edgecolor="#808080", linewidth=0.8)
    box(left, 0, depth, tile[0], **pale)
    box(0, top, tile[1], depth, **pale)
    box(0, 0, tile[1], tile[0], **pale)
    box(left, 0, step, tile[0], **dark)
    box(0, top, tile[1], step, **dark)
    y, x = np.array(results).T
    axes.plot(x + 0.5, y + 0.5, "s", color=BACKWARD, markersize=3 if len(results) < 64 else 1.8, markeredgewidth=0)
    for x, y, text in ((left + depth / 2, rows / 2, f"filters A\n({rows}, {depth})"),
                       (columns * 0.75, top + depth / 2, f"pixels B\n({depth}, {columns})"),
                       (columns * 0.75, rows / 2, f"results\n({rows}, {columns})")):
        axes.text(x, y, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(left - 4, columns + 4), ylim=(rows + 4, top - 4), aspect="equal", title=title)
    axes.axis("off")


def fragments():
    """{"A": (16, 8), "B": (8, 8), "sum": (16, 8)}: for each place (lane, register) of mma.m16n8k8 in TF32; with that as last axis."""
    owners = {"A": np.empty((16, 8, 2), int), "B": np.empty((8, 8, 2), int), "sum": np.empty((16, 8, 2), int)}
    for lane in range(32):
        g, q = lane // 4, lane % 4
        for register in range(4):
            owners["A"][g + register % 2 * 8, q + register // 2 * 4] = lane, register
            owners["sum"][g + register // 2 * 8, 2 * q + register % 2] = lane, register
        for register in range(2):
            owners["B"][q + register * 4, g] = lane, register
    return owners


def draw_fragments(axes, lane):
    """Which lane of a warp holds which number of A (16, 8), B (8, 8) and their product; what `lane` holds is outlined: its registers."""
    import matplotlib.pyplot as plt
    colours = plt.get_cmap("Pastel1")
    for (name, owner), (left, top) in zip(fragments().items(), ((-10, 0), (0, -10), (0, 0))):
        for (row, column), (who, register) in ((place, owner[place]) for place in np.ndindex(owner.shape[:2])):
            mine = who == lane
            axes.add_patch(plt.Rectangle((left + column, top + row), 1, 1, facecolor=colours(who // 4), edgecolor="white", linewidth=0.8))
            axes.text(left + column + 0.5, top + row + 0.5, f"[{register}]" if mine else str(who), ha="center", va="center", fontsize=8,
                      fontweight="bold" if mine else None)
        for row, column in np.argwhere(owner[..., 0] == lane):
            axes.add_patch(plt.Rectangle((left + column, top + row), 1, 1, fill=False, edgecolor="black", linewidth=1.5, zorder=3))
        height, width = owner.shape[:2]
        axes.text(left + width / 2, top - 0.3, f"{name} ({height}, {width}), in {name.lower()}[ ]", ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(-10.5, 8.5), ylim=(16.5, -11.5), aspect="equal")
    axes.axis("off")


def check_place_in_x(yours):
    """place_in_x(k, p, C, H, W, KH, KW, OH, OW, stride, padding) -> the place of B[k, p] in x, an int.

    Counted flat in x (N, C, H, W); -1 in the padding.
    """
    def right(k, p, C, H, W, KH, KW, OH, OW, stride, padding,
              channel_first=True, image=True, shift=-1, step=True, guard=2, size=True, across=True):
        c, i, j = (k // (KH * KW), k // KW % KH, k % KW) if channel_first else (k % C, k // C // KW, k // C % KW)
        if not size:
            OH, OW = H, W
        n, oy, ox = p // (OH * OW), p // OW % OH, p % OW
        iy, ix = (out * (stride if step else 1) + tap + shift * padding for out, tap in ((oy, i), (ox, j)))
        if guard and not 0 <= iy < H or guard > 1 and not 0 <= ix < W:
            return -1
        return ((n * image * C + c) * H + iy) * W + ix if across else ((n * C + c) * W + iy) * H + ix

    mistakes = [
        (lambda *a: right(*a, channel_first=False),
         "k counts (c, i, j) as w (O, C, KH, KW) lies in memory: j runs fastest, c slowest."),
        (lambda *a: right(*a, image=False),
         "the image is missing: p counts through all images, OH * OW pixels each."),
        (lambda *a: right(*a, shift=0),
         "the padding is missing: tap 0 of output 0 meets the pixel `padding` before the first one."),
        (lambda *a: right(*a, shift=1),
         "the padding's sign: tap 0 of output 0 meets the pixel `padding` *before* the first one."),
        (lambda *a: right(*a, step=False),
         "the stride is missing: neighbouring outputs are `stride` pixels of x apart."),
        (lambda *a: right(*a, guard=0),
         "in the padding there is no pixel: return -1 there, else a neighbouring row is read."),
        (lambda *a: right(*a, guard=1),
         "rows are tested, columns are not: left of column 0 lies the end of the row before."),
        (lambda *a: right(*a, across=False), "a row of x has W numbers, and an image has H rows: H and W have changed places."),
        (lambda *a: right(*a, size=False), "p counts pixels of the output, OW in a row, not of the input."),
    ]
    cases = []
    for name, shape in (("3x3, padding 1", (3, 5, 6, 3, 3, 5, 6, 1, 1)), ("1x1, 4 channels", (4, 3, 5, 1, 1, 3, 5, 1, 0)),
                        ("3x2, stride 2, padding 1", (2, 7, 6, 3, 2, 4, 4, 2, 1))):
        depth, pixels = shape[0] * shape[3] * shape[4], shape[5] * shape[6]
        middle = depth // 2, pixels // 2
        cases += [(f"{name}: k = {k}, p = {p}", (k, p, *shape)) for k, p in
                  (middle, (depth - 1, pixels // 2), (middle[0], pixels + middle[1]), (0, 0), (depth - 1, pixels - 1),
                   (0, shape[6]), (middle[0], 2 * pixels - 1))]
    return compare("place_in_x", yours, right, cases, ("index",), mistakes)


def check_smallest_pad(yours):
    """smallest_pad(depth, width) -> the pad with which 32 lanes that write a[t % depth][t // depth] need one pass."""
    def one_pass(depth, width, pad):
        lanes = np.arange(32)
        return len(np.unique((lanes % depth * (width + pad) + lanes // depth) % 32)) == 32

    def right(depth, width):
        return next(pad for pad in range(64) if one_pass(depth, width, pad))

    mistakes = [
        (lambda depth, width: 0,
         "with no padding, are all 32 banks different? Write down the bank of each lane: word % 32."),
        (lambda depth, width: 1,
         "1 suits a column of 32 lanes. Here a column is shorter, and its neighbour column comes with it."),
        (lambda depth, width: 32 // depth,
         "that is right for rows that begin in bank 0. These rows may be apart by another number already."),
        (lambda depth, width: right(depth, width) + width, "that is the whole row. The pad alone is asked for."),
        (lambda depth, width: depth,
         "that is how many lanes go down a column. They must not meet, but neither with the lanes of the next "
         "column."),
        (lambda depth, width: -width % 32, "this makes every row begin in the same bank: the worst that can be."),
    ]
    cases = [(f"depth {depth}, rows of {width}", (depth, width)) for depth, width in
             ((16, 64), (32, 32), (8, 128), (16, 66), (4, 48), (32, 33), (8, 100), (16, 80))]
    return compare("smallest_pad", yours, right, cases, ("pad",), mistakes)


def check_grad_x_thread(yours):
    """grad_x_thread(c, iy, ix, dy (O, OH, OW), w (O, C, KH, KW), stride, padding) -> dx[c, iy, ix]."""
    def answer(c, iy, ix, dy, w, stride, padding, whole=(1, 1), inside=(True, True), turn=1, swap=False, shift=1, late=False):
        total = 0.0
        if late:
            whole = 0, 0
        for o in range(len(dy)):
            for i in range(w.shape[2]):
                up = iy + shift * padding - i
                if inside[0] and up < 0 or whole[0] and up % stride or up // stride >= dy.shape[1]:
                    continue
                for j in range(w.shape[3]):
                    left = ix + shift * padding - j
                    if inside[1] and left < 0 or whole[1] and left % stride or left // stride >= dy.shape[2]:
                        continue
                    if late and (up // stride % stride or left // stride % stride):
                        continue
                    total += w[:, :, ::turn, ::turn][(c, o) if swap else (o, c)][i, j] * dy[o, up // stride, left // stride]
        return total

    def right(c, iy, ix, dy, w, stride, padding, size):
        return conv2d_grad_x(dy[None], w, (1, w.shape[1], *size), stride, padding)[0, c, iy, ix]

    def without_size(function):
        return lambda *a: function(*a[:-1])

    wrong = [
        (dict(whole=(0, 0)),
         "with stride 1 it is right. With stride 2, which rows of x does output row oy meet? Then turn the question "
         "round."),
        (dict(whole=(1, 0)), "rows are right now, columns are not: they have the same stride."),
        (dict(whole=(0, 1)), "columns are right now, rows are not: they have the same stride."),
        (dict(late=True), "oy and ox are rounded already, and any number of them is a true one. Test up and left, before the quotient."),
        (dict(inside=(False, False)),
         "up or left below 0 is not tested: an index of -1 reads the last row, in Python; in CUDA what lies before "
         "the array."),
        (dict(inside=(True, False)),
         "left below 0 is not tested: an index of -1 reads the last column, in Python; in CUDA what lies before the "
         "row."),
        (dict(turn=-1),
         "the filter is turned round. In this form oy is worked out from iy and i, and tap i stays tap i."),
        (dict(shift=0),
         "the padding is missing: forward iy = oy stride + i - padding, so oy stride = iy + padding - i."),
    ]
    mistakes = [(without_size(lambda *a, change=change: answer(*a, **change)), text) for change, text in wrong]
    mistakes.append((lambda c, iy, ix, dy, w, stride, padding, size:
                     answer(c, iy, ix, dy, w, stride, padding, swap=True) if w.shape[0] == w.shape[1] else None,
                     "w is (O, C, KH, KW): output channel first."))
    rng = np.random.default_rng(50)
    cases = []
    for name, size, out, stride, padding, places in (
            ("stride 1, padding 1", (5, 6), (5, 6), 1, 1, ((0, 0, 0), (1, 2, 3), (1, 4, 5))),
            ("stride 2, padding 1", (7, 8), (4, 4), 2, 1, ((0, 2, 2), (1, 3, 4), (0, 4, 3), (1, 0, 0), (0, 6, 7))),
            ("stride 2, no padding", (7, 9), (3, 4), 2, 0, ((1, 0, 1), (0, 6, 8), (1, 3, 3)))):
        dy, w = rng.standard_normal((2, *out)), rng.standard_normal((2, 2, 3, 3))
        cases += [(f"{name}, dx[{c}, {iy}, {ix}]", (c, iy, ix, dy, w, stride, padding, size)) for c, iy, ix in places]
    return compare("grad_x_thread", without_size(yours), right, cases, ("dx",), mistakes)
