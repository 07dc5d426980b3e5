"""Pictures of what one thread of a CUDA kernel reads and writes (kernel_threads.py records it)."""

import numpy as np

from .canvas import PALETTE, TEXT, new_figure
from .kernel_threads import WARP, own, place, samples

ORANGE, BLUE, GREEN, _, DEEP, RED, PINK = PALETTE
LABEL = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
GRAY = 0.75         # the darkest ground: black text must stay readable on it


def _panel(figure, left, bottom, width, height, title):
    from matplotlib.ticker import MaxNLocator
    ax = figure.add_axes((left, bottom, width, height))
    ax.set_title(title, fontsize=TEXT + 1, loc="left")
    ax.tick_params(labelsize=TEXT - 1, length=2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def _ground(ax, values, left, right, top, bottom):
    """A part of a map in light gray, a number in each pixel. Pixel (i, j) is a square around x = j, y = i, as RoIAlign counts."""
    low, high = float(values.min()), float(values.max())
    ax.set_facecolor("#dfe9f2")     # outside the map
    ax.imshow(1 - GRAY * 0.5 * (values - low) / max(high - low, 1e-9), cmap="gray", vmin=0, vmax=1)
    rows, columns = np.indices(values.shape)
    ax.plot(columns.ravel(), rows.ravel(), ".", color="0.45", markersize=3)
    for (i, j), value in np.ndenumerate(values):
        if left <= j <= right and top <= i <= bottom:
            ax.text(j, i - 0.3, f"{value:.2f}".replace("0.", "."), ha="center", va="center", fontsize=TEXT + 1, color="0.2",
                    clip_on=True, zorder=4)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def _square(ax, row, column, **style):
    from matplotlib.patches import Rectangle
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **{"fill": False, "linewidth": 1.5, **style}))


def draw_roi_align(launch, accesses):
    """Three panels: the thread's bin, samples and reads; what its warp reads; where it writes.

    Parameters
    ----------
    launch : kernel_threads.Launch, of roi_align_launch
    accesses : list of Access, from kernel_threads.record

    Returns
    -------
    Figure
    """
    from matplotlib.patches import Rectangle
    found, mine = samples(launch), own(launch, accesses)
    features, y = launch.arrays["features"], launch.arrays["y"]
    r, c, i, j = (int(k) for k in np.unravel_index(launch.number, y.shape))
    _, _, height, width = features.shape
    bins_h, bins_w = y.shape[2:]
    (x1, y1), (bin_w, bin_h) = found.corner, found.bin_sides
    weight, is_read = np.zeros((height, width)), np.zeros((height, width), bool)
    reads = [access for access in mine if access.array == "features"]
    for access, w in zip(reads, (w for four in found.weights for w in four)):
        weight[access.index[2:]] += w
        is_read[access.index[2:]] = True

    figure = new_figure(1180, 640)
    figure.suptitle(f"{launch.kernel}: {launch.title}, lane {place(launch)[3]} of its warp", x=0.03, y=0.975, ha="left", fontsize=TEXT + 5)
    total = next(access.value for access in mine if access.kind == "write")
    gray = "; gray: outside, count as 0" if found.outside else ""
    ax = _panel(figure, 0.03, 0.05, 0.54, 0.80,
                f"channel {c} around bin ({i}, {j}): its samples (crosses{gray}), the {is_read.sum()} pixels\nthat they read and what "
                f"each weighs in the result, {total:.4f}, the sum of weight * value" if reads else
                f"channel {c} around bin ({i}, {j}): its samples (crosses) lie more than a pixel outside\nthe map and count as 0")
    rows, columns = (np.array([access.index[axis] for access in reads] + [middle]) for axis, middle in
                     ((2, y1 + (i + 0.5) * bin_h), (3, x1 + (j + 0.5) * bin_w)))
    row, column = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    side = max(np.ptp(rows), np.ptp(columns)) / 2 + (2 if reads else 4)
    _ground(ax, features[0, c], column - side, column + side, row - side, row + side)
    _bins(ax, found, bins_h, bins_w)
    ax.add_patch(Rectangle((x1 + j * bin_w, y1 + i * bin_h), bin_w, bin_h, facecolor=ORANGE, alpha=0.45))
    for row, column in np.argwhere(is_read):
        _square(ax, row, column, edgecolor=RED, linewidth=2)
        ax.text(column, row + 0.36, f"\u00d7 {weight[row, column]:.3f}".replace("0.", "."), ha="center", va="center", fontsize=TEXT + 2,
                color=RED, weight="bold", bbox=LABEL, zorder=4)
    for k, (px, py) in enumerate(found.points):
        for access in reads[4 * k:4 * k + 4]:
            ax.plot([px, access.index[3]], [py, access.index[2]], color="black", linewidth=0.6)
        ax.plot(px, py, "X", color="black", markersize=9, markeredgecolor="white")
    for px, py in found.outside:
        ax.plot(px, py, "X", color="0.5", markersize=9, markeredgecolor="white")
    count, lanes = np.zeros((height, width)), set()
    for access in accesses:
        if access.array == "features" and access.index[1] == c:
            count[access.index[2:]] += 1
            lanes.add(access.lane)
    ax = _panel(figure, 0.63, 0.47, 0.35, 0.38,
                f"the whole channel: how often its {len(lanes)} of the warp's {WARP} lanes\nread each pixel")
    ax.imshow(np.where(count > 0, 1 - GRAY * count / max(count.max(), 1), 1), cmap="gray", vmin=0, vmax=1)
    for row, column in np.argwhere(count > 0):
        ax.text(column, row, int(count[row, column]), ha="center", va="center", fontsize=TEXT - 1.5,
                color="white" if count[row, column] > 0.6 * count.max() else "black")
    _bins(ax, found, bins_h, bins_w)
    for row, column in np.argwhere(is_read):
        _square(ax, row, column, edgecolor=RED)
    ax.set_xlim(min(-0.5, x1 - 0.5), max(width - 0.5, x1 + bins_w * bin_w + 0.5))
    ax.set_ylim(max(height - 0.5, y1 + bins_h * bin_h + 0.5), min(-0.5, y1 - 0.5))

    ax = _panel(figure, 0.63, 0.05, 0.35, 0.31, f"y[{r}, {c}]: which bin each lane writes")
    ax.imshow(np.ones((bins_h, bins_w)), cmap="gray", vmin=0, vmax=1)
    _grid(ax, bins_h, bins_w)
    for access in accesses:
        if access.kind == "write" and access.index[:2] == (r, c):
            me = access.lane == place(launch)[3]
            _square(ax, *access.index[2:], edgecolor=RED if me else "0.6", facecolor=ORANGE if me else "0.92", fill=True,
                    linewidth=2 if me else 0.7, zorder=3 if me else 2)
            ax.text(access.index[3], access.index[2], str(access.lane), ha="center", va="center", fontsize=TEXT - 1, zorder=4)
    return figure


def _bins(ax, found, bins_h, bins_w):
    """The RoI and its bins."""
    from matplotlib.patches import Rectangle
    (x1, y1), (bin_w, bin_h) = found.corner, found.bin_sides
    for k in range(1, bins_w):
        ax.plot([x1 + k * bin_w] * 2, [y1, y1 + bins_h * bin_h], color=BLUE, linewidth=0.7)
    for k in range(1, bins_h):
        ax.plot([x1, x1 + bins_w * bin_w], [y1 + k * bin_h] * 2, color=BLUE, linewidth=0.7)
    ax.add_patch(Rectangle((x1, y1), bins_w * bin_w, bins_h * bin_h, fill=False, edgecolor=DEEP, linewidth=2))


def draw_conv2d(launch, accesses):
    """The input's channels, one filter and the output: what the thread reads and writes, and in gray what the rest of its warp does.

    Returns
    -------
    Figure
    """
    mine = own(launch, accesses)
    x, w, y = (launch.arrays[name] for name in ("x", "w", "y"))
    o = next((access.index[0] for access in mine if access.array == "w"), 0)
    figure = new_figure(1180, 700)
    counts = [sum(a.array == name and a.kind == "read" for a in mine) for name in ("x", "w")]
    figure.suptitle(f"{launch.kernel}: {launch.title}, lane {place(launch)[3]} of its warp, reads {counts[0]} numbers of x and "
                    f"{counts[1]} of w\nred: the thread itself; gray: the other threads of its warp", x=0.03, y=0.975, ha="left", fontsize=TEXT + 4)
    channels, written = x.shape[1], sorted({access.index[1] for access in accesses if access.kind == "write"})[:4]
    for c in range(channels):
        ax = _panel(figure, 0.03 + c * 0.98 / channels, 0.50, 0.92 / channels, 0.33, f"x[0, {c}]")
        _numbers(ax, x[0, c])
        _marks(ax, launch, accesses, "x", (0, c))
    for c in range(channels):
        ax = _panel(figure, 0.03 + c * 0.10, 0.12, 0.085, 0.24, f"w[{o}, {c}]")
        _numbers(ax, w[o, c])
        _marks(ax, launch, accesses, "w", (o, c))
    for k, channel in enumerate(written):
        ax = _panel(figure, 0.38 + k * 0.16, 0.06, 0.14, 0.33, f"y[0, {channel}]: lane numbers")
        _numbers(ax, np.zeros(y.shape[2:]), text=False)
        _marks(ax, launch, accesses, "y", (0, channel), lanes=True)
    return figure


def _numbers(ax, values, text=True):
    """A grid with a number in each cell."""
    ax.imshow(np.ones(values.shape), cmap="gray", vmin=0, vmax=1)
    _grid(ax, *values.shape)
    for (i, j), value in np.ndenumerate(values):
        if text:
            ax.text(j, i, f"{value:.2g}".replace("0.", "."), ha="center", va="center", fontsize=TEXT - 1.5, color="0.2", zorder=4)


def _grid(ax, rows, columns):
    for k in range(columns + 1):
        ax.axvline(k - 0.5, color="0.85", linewidth=0.7)
    for k in range(rows + 1):
        ax.axhline(k - 0.5, color="0.85", linewidth=0.7)


def _marks(ax, launch, accesses, array, front, lanes=False):
    """Cells of array[front] that the warp reads or writes: gray, the thread's own with a red frame."""
    here = {}       # cell -> the lanes that touch it
    for access in accesses:
        if access.array == array and access.index[:len(front)] == front:
            here.setdefault(access.index[len(front):], []).append(access.lane)
    for (row, column), touched in here.items():
        _square(ax, row, column, fill=True, facecolor="0.85", edgecolor="none", zorder=2)
        if place(launch)[3] in touched:
            _square(ax, row, column, edgecolor=RED, linewidth=2, zorder=5)
        if lanes:
            ax.text(column, row, str(touched[0]), ha="center", va="center", fontsize=TEXT - 1.5, zorder=6)


def draw_nms(launch, accesses):
    """The boxes, with the thread's own and those that it would put out; the mask, with the word that it writes.

    Returns
    -------
    Figure
    """
    from matplotlib.patches import Rectangle
    boxes, i = launch.arrays["boxes"], launch.number
    words = {access.index[0]: access.value for access in accesses if access.kind == "write"}
    bits = [b for b in range(64) if words.get(i, 0) >> b & 1]
    figure = new_figure(1180, 620)
    figure.suptitle(f"{launch.kernel}: {launch.title}, lane {place(launch)[3]} of its warp, compares box {i} with all boxes after it", x=0.03,
                    y=0.975, ha="left", fontsize=TEXT + 5)
    ax = _panel(figure, 0.03, 0.05, 0.45, 0.82, f"box {i} (red) and the {len(bits)} that it would put out (orange); gray: IoU too small;\n"
                "dotted: higher scores, not asked")
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        color = RED if k == i else ORANGE if k in bits else "0.75"
        top = k == i or k in bits
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=2.5 if top else 1,
                               linestyle=":" if k < i else "-", zorder=3 if top else 2))
        if top:
            ax.text(x1 + 1, y1 + 1, str(k), ha="left", va="top", fontsize=TEXT + 1, color=color, weight="bold", zorder=4, bbox=LABEL)
    ax.set_xlim(-2, float(boxes[:, 2].max()) + 2)
    ax.set_ylim(float(boxes[:, 3].max()) + 2, -2)
    ax.set_aspect("equal")
    ax = _panel(figure, 0.54, 0.05, 0.44, 0.82, "the words that its warp writes: a row a box, a column a bit, black for 1;\n"
                "the thread writes the one in the red frame. Light gray: other warps' rows")
    grid = np.ones((len(boxes), 64))
    for row in range(len(boxes)):
        grid[row] = [0.93 if row not in words else 0 if words[row] >> b & 1 else 1 for b in range(64)]
    ax.imshow(grid, cmap="gray", vmin=0, vmax=1, aspect="auto")
    if i in words:
        ax.add_patch(Rectangle((-0.5, i - 0.5), 64, 1, fill=False, edgecolor=RED, linewidth=2))
    return figure
