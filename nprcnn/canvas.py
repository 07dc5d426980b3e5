"""What the pictures of viz.py are drawn on: figures without a screen, panels for images, marks for any ground.

pyplot and its global state are never touched, so a notebook's own figures and other threads are unaffected.
matplotlib is imported where it is used: `import nprcnn` stays quick.
"""

import io
from pathlib import Path

import numpy as np

from .data.images import as_image, write_whole
from .errors import DataError

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DPI = 100
TEXT = 8  # points
HEAD = 24  # pixels above a panel for its title
GAP = 8


def save(figure, path):
    """Write a figure as PNG: the whole file or none. DataError if the path cannot be written."""
    if Path(path).suffix.lower() != ".png":
        raise DataError(f"{path}: pictures are written as PNG; give a name that ends in .png")
    write_whole(path, lambda file: file.write(_png(figure)))


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _small_png(figure):
    """256 colours, for notebooks: less than half the bytes, and hardly a difference to the eye."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(_png(figure))).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True)
    return buffer.getvalue()


def new_figure(width, height):
    """An empty figure of so many pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white", layout="none")  # we place the axes
    FigureCanvasAgg(figure)
    figure._repr_png_ = lambda: _small_png(figure)  # what a notebook asks for
    return figure


def image_panels(count, width, height, columns=None, titles=True, right=0, side=None):
    """A figure with a grid of axes for images of width x height pixels.

    Small images are enlarged by a whole number, so that every pixel stays a square. `right` leaves a strip of
    so many pixels for a colour bar; `side` is the wanted length of a panel's longer side.

    Returns
    -------
    figure, list of `count` axes, without ticks, in reading order.
    """
    columns = min(count, columns or 4)
    rows = -(-count // columns)
    side = side or {1: 560, 2: 420, 3: 320}.get(columns, 260)
    longest = max(width, height)
    largest = max(side, 1000 // columns)  # room for the pixels of a large image
    scale = side // longest if longest <= side else min(1, largest / longest)
    w, h, head = round(width * scale), round(height * scale), HEAD if titles else 0
    total_w, total_h = columns * (w + GAP) + GAP + right, rows * (h + head + GAP) + GAP
    figure = new_figure(total_w, total_h)
    panels = []
    for k in range(count):
        left, top = GAP + k % columns * (w + GAP), GAP + k // columns * (h + head + GAP) + head
        ax = figure.add_axes((left / total_w, 1 - (top + h) / total_h, w / total_w, h / total_h))
        _bare(ax)
        panels.append(ax)
    return figure, panels


def _bare(ax):
    """No ticks, a hairline around."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color="#999999", linewidth=0.5)


def show_image(ax, image, title=None, view=None):
    """Show an image on an axes; view (x1, y1, x2, y2) may be larger than the image."""
    image = as_image(image)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = view or (0, 0, width, height)
    enlarged = ax.get_window_extent().width >= x2 - x1
    ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest" if enlarged else "antialiased")
    ax.set(xlim=(x1, x2), ylim=(y2, y1))
    _bare(ax)
    title_line(ax, title)


def title_line(ax, text):
    if text:
        ax.set_title(text, fontsize=TEXT + 1, pad=5, loc="left")


def outline(ax, mask, color):
    """The border of a mask, along the edges of its pixels."""
    from matplotlib.collections import LineCollection

    rows, columns = np.flatnonzero(np.any(mask, axis=1)), np.flatnonzero(np.any(mask, axis=0))
    if len(rows) == 0:
        return
    top, left = rows[0], columns[0]
    inside = np.pad(np.asarray(mask)[top:rows[-1] + 1, left:columns[-1] + 1].astype(bool), 1)
    y, x = np.nonzero(inside[1:] != inside[:-1])  # a horizontal edge below padded row y
    level = np.stack([np.stack([x, y], 1), np.stack([x + 1, y], 1)], 1) + [left - 1, top]
    y, x = np.nonzero(inside[:, 1:] != inside[:, :-1])
    upright = np.stack([np.stack([x, y], 1), np.stack([x, y + 1], 1)], 1) + [left, top - 1]
    edges = np.concatenate([level, upright])
    ax.add_collection(LineCollection(edges, colors=color, linewidths=1.2, capstyle="round"), autolim=False)


def rectangle(ax, box, color, width):
    """One box, with a dark rim so that it shows on any ground."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    x1, y1, x2, y2 = (float(v) for v in box)
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width,
                           path_effects=[withStroke(linewidth=width + 1.4, foreground=(0, 0, 0, 0.55))]))


def write_labels(ax, boxes, texts, colors):
    """A text on its box's colour: above the box, or where it hides no other text."""
    from matplotlib.colors import to_rgb

    renderer = ax.figure.canvas.get_renderer()
    frame = ax.get_window_extent(renderer)
    to_data = ax.transData.inverted().transform
    taken = []
    for box, text, color in zip(boxes, texts, colors):
        dark = np.dot(to_rgb(color), (0.299, 0.587, 0.114)) < 0.5
        label = ax.text(0, 0, text, fontsize=TEXT, color="white" if dark else "black", va="bottom", ha="left",
                        clip_on=True, bbox=dict(facecolor=color, edgecolor="none", pad=1.5))
        size = label.get_window_extent(renderer)
        w, h = size.width + 4, size.height + 5
        (left, top), (right, bottom) = ax.transData.transform([box[:2], box[2:]])  # pixels, y upwards
        wanted = ((left, top + 2), (left, top - h), (right - w, bottom), (left, bottom - h), (right, top - h),
                  (right - w, top + 2))
        places = []
        for rank, (x, y) in enumerate(wanted):
            x = min(max(x, frame.x0), max(frame.x1 - w, frame.x0))
            y = min(max(y, frame.y0), max(frame.y1 - h, frame.y0))
            hidden = sum(max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
                         for a, b, c, d in taken)
            places.append((hidden, rank, x, y))
        _, _, x, y = min(places)
        taken.append((x, y, w, h))
        label.set_position(to_data((x + 2, y + 2)))


def thin_boxes(ax, boxes, colors, width):
    from matplotlib.collections import LineCollection

    if len(boxes):
        x1, y1, x2, y2 = np.asarray(boxes, float).T
        corners = np.stack([x1, y1, x2, y1, x2, y2, x1, y2, x1, y1], axis=1).reshape(-1, 5, 2)
        ax.add_collection(LineCollection(corners, colors=colors, linewidths=width), autolim=False)


def headline(figure, title):
    """A title over all panels: the figure grows by a line, and the panels keep their size."""
    if title:
        width, height = figure.bbox.width, figure.bbox.height
        boxes = [ax.get_position() for ax in figure.axes]
        figure.set_size_inches(width / DPI, (height + HEAD) / DPI)
        shrink = height / (height + HEAD)
        for ax, box in zip(figure.axes, boxes):
            ax.set_position((box.x0, box.y0 * shrink, box.width, box.height * shrink))
        figure.text(GAP / width, 1 - GAP / (height + HEAD), title, va="top", fontsize=TEXT + 3, weight="bold")
    return figure
