"""The picture of precision and recall."""

import numpy as np

from ..canvas import PALETTE, TEXT, new_figure, title_line
from .metrics import class_ap

COLORS = [color for color in PALETTE if color != "#F0E442"]  # no yellow on white
RECALLS = np.linspace(0, 1, 101)
PANELS = (("IoU .50", slice(0, 1)), ("IoU .75", slice(5, 6)), ("mean over IoU .50 to .95", slice(None)))
WIDTH, HEIGHT, SIDE = 262, 228, 236  # of a panel, and of the legend beside a row, in pixels
LEFT, TOP, BOTTOM = 56, 30, 44


def draw_precision_recall(measured, class_names, title=None):
    """Precision against recall, as COCO interpolates it: at IoU .50, at .75, and the mean over the thresholds .50 to .95.

    A row for boxes and one for masks. Up to six classes: a curve each, and their mean in black. More: the mean, and the three best and
    three worst classes. Legend and titles give the areas below the curves, the APs.

    Parameters
    ----------
    measured : {"bbox": Measured, "segm": Measured}
        See metrics.measure.
    class_names : sequence of str
    title : str, optional

    Returns
    -------
    Figure
    """
    head = 26 if title else 0
    width, height = LEFT + 3 * WIDTH + SIDE, head + len(measured) * (TOP + HEIGHT + BOTTOM)
    figure = new_figure(width, height)
    if title:
        figure.text(12 / width, 1 - 8 / height, title, va="top", fontsize=TEXT + 3, weight="bold")
    for row, (kind, result) in enumerate(measured.items()):
        y = height - head - row * (TOP + HEIGHT + BOTTOM) - TOP - HEIGHT
        chosen, note = _choose(class_ap(result.precision))
        for column, (text, thresholds) in enumerate(PANELS):
            ax = figure.add_axes(((LEFT + column * WIDTH) / width, y / height, (WIDTH - 30) / width, HEIGHT / height))
            curves = result.precision[thresholds]
            for k, color in chosen:
                _curve(ax, curves[:, :, k], class_names[k + 1], color, 1.4)
            defined = (curves > -1).all(axis=(0, 1))
            if defined.sum() > 1:
                _curve(ax, curves[:, :, defined].mean(axis=2), f"mean of {defined.sum()} classes", "black", 2.2)
            mean = f"AP {curves[:, :, defined].mean():.3f}" if defined.any() else "no objects"
            _finish(ax, f"{'boxes' if kind == 'bbox' else 'masks'}, {text}: {mean}", column, note)
    return figure


def _choose(ap):
    """[(class, colour)] to draw, by AP, best first; and a note for the legend."""
    order = [k for k in np.argsort([-v for v in ap], kind="stable") if ap[k] > -1]
    if len(order) <= len(COLORS):
        return [(k, COLORS[k % len(COLORS)]) for k in sorted(order)], "AP"
    return list(zip(order[:3] + order[-3:], COLORS)), "AP: three best, three worst"


def _curve(ax, precision, name, color, width):
    """precision (thresholds, recalls). Drawn as far as there is any, and down to the axis there."""
    ap, line = precision.mean(), precision.mean(axis=0)
    last = min(int((line > 0).sum()) + 1, len(line))
    ax.plot(RECALLS[:last], line[:last], color=color, linewidth=width, label=f"{name} {ap:.3f}")


def _finish(ax, title, column, note):
    ax.set(xlim=(0, 1.01), ylim=(0, 1.02), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    ax.tick_params(labelsize=TEXT, labelleft=column == 0)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("recall", fontsize=TEXT + 1)
    if column == 0:
        ax.set_ylabel("precision", fontsize=TEXT + 1)
    title_line(ax, title)
    if column == len(PANELS) - 1 and ax.lines:  # one legend a row: the names and colours are those of all three, the numbers this panel's
        legend = ax.legend(fontsize=TEXT, loc="upper left", bbox_to_anchor=(1.04, 1.03), frameon=False, title=note, title_fontsize=TEXT,
                           alignment="left")
        legend.get_title().set_color("#555555")
