"""Pictures of every stage: functions that take arrays and return a matplotlib Figure.

They need no screen. A Figure that is the last value of a notebook cell shows itself; `save(figure, "x.png")`
writes it. `ax=` draws into an axes of your own, so that several pictures stand side by side:

    figure, (left, right) = image_panels(2, width, height)
    draw_detections(image, boxes, ax=left, title="boxes")
    draw_detections(image, masks=masks, ax=right, title="masks")

Boxes are x1, y1, x2, y2 in continuous pixel coordinates: column c of the image covers c to c + 1.
"""

import numpy as np

from .canvas import (PALETTE, TEXT, headline, image_panels, new_figure, outline, rectangle, save, show_image,
                     thin_boxes, title_line, write_labels)
from .data.images import as_image

def draw_detections(image, boxes=None, labels=None, scores=None, masks=None, class_names=None, ax=None, title=None):
    """Boxes, classes, scores and masks over the image. Also draws targets (without scores).

    Parameters
    ----------
    image : (H, W, 3) uint8, or float in 0..1
    boxes : (n, 4), optional
    labels, scores : (n,), optional
        The colour follows the label, or without labels the position.
    masks : (n, H, W) bool or 0/1, optional
    class_names : sequence of str, optional
        class_names[label]; without it the number is written.
    ax : matplotlib Axes, optional
        Draw there instead of in a new figure.
    title : str, optional

    Returns
    -------
    Figure
    """
    height, width = as_image(image).shape[:2]
    if ax is None:
        _, (ax,) = image_panels(1, width, height, titles=title is not None)
    count = max(len(v) if v is not None else 0 for v in (boxes, masks))
    colors = [PALETTE[(int(labels[i]) - 1 if labels is not None else i) % len(PALETTE)] for i in range(count)]
    show_image(ax, image if masks is None else _blend_masks(image, masks, colors), title)
    for i in range(count):
        if masks is not None:
            outline(ax, masks[i], colors[i])
        if boxes is not None:
            rectangle(ax, boxes[i], colors[i], 1.5)
    if boxes is not None and (labels is not None or scores is not None):
        texts = []
        for i in range(count):
            name = "" if labels is None else str(labels[i] if class_names is None else class_names[labels[i]])
            texts.append(f"{name} {scores[i]:.2f}".strip() if scores is not None else name)
        write_labels(ax, boxes, texts, colors)
    return ax.figure


def _blend_masks(image, masks, colors, strength=0.45):
    """The image as float 0..1 with each mask tinted, large ones first."""
    from matplotlib.colors import to_rgb

    blended = image / 255 if image.dtype == np.uint8 else image.astype(float)
    masks = np.asarray(masks).astype(bool)
    for i in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        blended[masks[i]] = (1 - strength) * blended[masks[i]] + strength * np.array(to_rgb(colors[i]))
    return blended


def draw_boxes(image, boxes, values=None, levels=None, ax=None, title=None, width=0.8):
    """Many boxes, thin: anchors, proposals.

    Parameters
    ----------
    image : (H, W, 3)
    boxes : (n, 4)
    values : (n,), optional
        A number a box, such as its objectness: the colour, with a colour bar; the largest lie on top.
    levels : (n,) int, optional
        Instead of values: the pyramid level (2 for P2), a colour each, with a legend.
    ax, title : as in draw_detections
    width : float
        Of the lines, in points.

    Returns
    -------
    Figure
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    boxes = np.asarray(boxes)
    own = ax is None
    if own:
        height, wide = image.shape[:2]
        _, (ax,) = image_panels(1, wide, height, titles=title is not None, right=70 if values is not None else 0)
    show_image(ax, image, title)
    colors = np.full(len(boxes), PALETTE[0])
    if values is not None:
        order = np.argsort(values, kind="stable")
        boxes, values = boxes[order], np.asarray(values)[order]
        low, high = (float(values[0]), float(values[-1])) if len(values) else (0.0, 1.0)
        scale = ScalarMappable(Normalize(low, high if high > low else low + 1e-6), "plasma")
        colors = scale.to_rgba(values)
        if own:
            frame = ax.get_position()
            pixel = 1 / ax.figure.bbox.width
            bar = ax.figure.add_axes((frame.x1 + 10 * pixel, frame.y0, 14 * pixel, frame.height))
            ax.figure.colorbar(scale, cax=bar).ax.tick_params(labelsize=TEXT)
    elif levels is not None:
        colors = np.array(PALETTE)[(np.asarray(levels) - 2) % len(PALETTE)]
        for level in np.unique(levels):
            ax.plot([], [], color=PALETTE[(level - 2) % len(PALETTE)], label=f"P{level}", linewidth=2)
        if len(boxes):
            ax.legend(fontsize=TEXT, loc="upper right", framealpha=0.85)
    thin_boxes(ax, boxes, colors, width)
    return ax.figure


def draw_anchors(image, anchors, point=None, title=None):
    """The anchors of one cell of each level, and the grid of all cells' centres; a panel a level.

    Parameters
    ----------
    image : (H, W, 3)
    anchors : (N, 4), or a list with one such array a level
        In pixels of the image, ordered by level, y, x, anchor, as trace["rpn.anchors"].
    point : (x, y), optional
        Shows the cell nearest to it; the middle of the image by default.
    title : str, optional

    Returns
    -------
    Figure
    """
    height, width = image.shape[:2]
    levels = anchors if isinstance(anchors, (list, tuple)) else _split_levels(anchors)
    x, y = point if point is not None else (width / 2, height / 2)
    chosen, centres = [], []
    for boxes in levels:
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        nearest = np.square(middle - (x, y)).sum(axis=1).argmin()
        chosen.append(boxes[np.isclose(middle, middle[nearest], atol=0.1).all(axis=1)])
        centres.append(np.unique(np.round(middle, 3), axis=0))
    corners = np.concatenate(chosen)
    margin = 0.5 * max(height, width)  # anchors leave the image; show how far, up to a half
    low = np.maximum(np.minimum(corners[:, :2].min(axis=0) - 2, 0), -margin)
    high = np.maximum(corners[:, 2:].max(axis=0) + 2, (width, height))
    high = np.minimum(high, (width + margin, height + margin))
    figure, panels = image_panels(len(levels), *(high - low), columns=2 if len(levels) in (2, 4) else 3)
    for k, (ax, boxes, dots) in enumerate(zip(panels, chosen, centres)):
        rows, columns = len(np.unique(dots[:, 1])), len(np.unique(dots[:, 0]))
        text = f"P{k + 2}: {rows} x {columns} cells of {len(boxes)} anchors"
        show_image(ax, image, text, view=(*low, *high))
        ax.set_facecolor("#e8e8e8")
        ax.scatter(*dots.T, s=min(6, 1200 / len(dots)), color="black", edgecolor="white", linewidth=0.3)
        for box, color in zip(boxes, PALETTE * len(boxes)):
            rectangle(ax, box, color, 1.5)
    return headline(figure, title)


def _split_levels(anchors):
    """A new level begins where the centres jump back up to the first row."""
    y = (anchors[:, 1] + anchors[:, 3]) / 2
    return np.split(anchors, np.flatnonzero(np.diff(y) < -0.1) + 1)


def draw_rois_by_level(image, rois, levels, title=None):
    """RoIs (n, 4) or (n, 5), a panel for each pyramid level of `levels` (n,) that occurs (2 for P2)."""
    rois, levels = np.asarray(rois)[:, -4:], np.asarray(levels)
    height, width = image.shape[:2]
    present = np.unique(levels)
    figure, panels = image_panels(max(len(present), 1), width, height, columns=2 if len(present) in (2, 4) else None)
    show_image(panels[0], image, None if len(present) else "no RoIs")
    for ax, level in zip(panels, present):
        mine = rois[levels == level]
        show_image(ax, image, f"P{level}: {len(mine)} RoIs")
        thin_boxes(ax, mine, PALETTE[(level - 2) % len(PALETTE)], 0.8)
    return headline(figure, title)


def draw_feature_maps(maps, n=16, title=None):
    """The n channels of maps (C, h, w) that vary most, each from its smallest value (dark) to its largest."""
    maps = np.asarray(maps)
    order = np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:n]
    columns = int(np.ceil(np.sqrt(len(order))))
    height, width = maps.shape[1:]
    figure, panels = image_panels(len(order), width, height, columns=columns, side=max(600 // columns, 100))
    for ax, channel in zip(panels, order):
        ax.imshow(maps[channel], cmap="viridis", interpolation="nearest", aspect="auto")
        title_line(ax, f"channel {channel}")
    return headline(figure, title)


def draw_mask_logits(logits, titles=None, n=16, title=None):
    """Mask logits (N, m, m), the first n. Orange is object, purple is not; the line is logit 0, probability 1/2."""
    logits = np.asarray(logits)[:n]
    if len(logits) == 0:
        figure, (ax,) = image_panels(1, 280, 120)
        ax.text(0.5, 0.5, "no masks", ha="center", va="center", transform=ax.transAxes, fontsize=TEXT + 2)
        return headline(figure, title)
    columns = min(len(logits), 4)
    height, width = logits.shape[1:]
    limit = max(float(np.abs(logits).max()), 1e-6)
    figure, panels = image_panels(len(logits), width, height, columns=columns, right=64, side=170)
    for i, (ax, values) in enumerate(zip(panels, logits)):
        drawn = ax.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
        if values.min() < 0 < values.max():
            ax.contour(values, levels=[0], colors="black", linewidths=1)
        title_line(ax, titles[i] if titles is not None else f"mask {i}")
    frame, wide = panels[columns - 1].get_position(), figure.bbox.width
    bar = figure.add_axes((frame.x1 + 10 / wide, frame.y0, 12 / wide, frame.height))
    figure.colorbar(drawn, cax=bar).ax.tick_params(labelsize=TEXT)
    return headline(figure, title)


def draw_losses(history, window=20, title=None):
    """The losses of a training: the list of dicts that `train` returns. Lines are means over `window` steps."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(680, 400)
    ax = figure.add_axes((0.09, 0.13, 0.68, 0.78))
    names = [name for name in (history[0] if history else ()) if name.startswith("loss")]
    colors = [color for color in PALETTE if color != "#F0E442"] * len(names)  # no yellow on white
    ends = []
    for name, color in zip(names, colors):
        values = np.array([row[name] for row in history], float)
        steps = min(window, len(values))
        smooth = np.convolve(values, np.full(steps, 1 / steps), "valid")
        total = name == "loss"
        color = "black" if total else color
        ax.plot(np.arange(steps, len(values) + 1), smooth, color=color, linewidth=2 if total else 1.5)
        ends.append((smooth[-1], "total" if total else name.removeprefix("loss_"), color))
    if ends and min(end[0] for end in ends) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("step", fontsize=TEXT + 1)
    ax.set_ylabel("loss", fontsize=TEXT + 1)
    ax.tick_params(labelsize=TEXT)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    below = -np.inf
    for value, name, color in sorted(ends):  # names at the ends of their lines, pushed up where they would touch
        below = max(ax.transData.transform((1, value))[1], below + 17)
        y = ax.transAxes.inverted().transform((0, below))[1]
        ax.plot([1.01, 1.04], [y, y], color=color, linewidth=3, transform=ax.transAxes, clip_on=False)
        ax.text(1.05, y, f"{name} {value:.3f}", fontsize=TEXT + 1, va="center", transform=ax.transAxes)
    title_line(ax, title or f"losses (mean of {window} steps)")
    return figure
