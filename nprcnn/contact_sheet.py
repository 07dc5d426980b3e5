"""A contact sheet: many images of a set on one picture, with their boxes, masks and classes."""

from typing import NamedTuple

import numpy as np

from .canvas import PALETTE, image_panels, rectangle, write_labels
from .viz import draw_detections

SIDE = 320  # pixels of a panel's longer side
COLUMNS = 4
MANY = 6  # more objects than this, and their names would cover the picture


class Thumbnail(NamedTuple):
    image: np.ndarray  # (h, w, 3) uint8, h and w at most SIDE
    target: dict  # boxes and masks of that size; or None where the target could not be read
    title: str
    faulty: bool


def thumbnail(image, target, title, faulty=False):
    """An image and its target, no longer than SIDE. Smaller ones stay as they are."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = min(1, SIDE / max(height, width))
    h, w = max(round(height * scale), 1), max(round(width * scale), 1)
    small = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BOX)) if scale < 1 else image
    if target is None or "boxes" not in target:
        return Thumbnail(small, None, title, faulty)
    scaled = {"boxes": target["boxes"] * np.array([w / width, h / height] * 2), "labels": target["labels"]}
    if "masks" in target and target["masks"].shape[1:] == (height, width):
        rows = (np.arange(h) + 0.5) * height // h
        columns = (np.arange(w) + 0.5) * width // w
        scaled["masks"] = target["masks"][:, rows.astype(int)][:, :, columns.astype(int)]
    return Thumbnail(small, scaled, title, faulty)


def spread(count, limit):
    """At most `limit` of `count` indices, evenly spread over all."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, limit)).round()}) if count else []


def contact_sheet(thumbnails, class_names):
    """A Figure with a panel for each Thumbnail, titles of faulty ones in red.

    A colour is a class, or an object where there is one class only. Of many objects only the largest of a class has its name written.
    """
    height = max(t.image.shape[0] for t in thumbnails)
    width = max(t.image.shape[1] for t in thumbnails)
    figure, panels = image_panels(len(thumbnails), width, height, columns=COLUMNS, side=SIDE)
    for ax, t in zip(panels, thumbnails):
        _draw(ax, t, class_names)
        ax.title.set_color("#C00000" if t.faulty else "black")
    return figure


def _draw(ax, t, class_names):
    target = t.target or {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
    boxes, labels = target["boxes"], target["labels"]
    several = len(class_names) > 2
    draw_detections(t.image, labels=labels if several else None, masks=target.get("masks"), ax=ax, title=t.title)
    numbers = labels - 1 if several else np.arange(len(labels))
    colors = [PALETTE[k % len(PALETTE)] for k in numbers]
    for box, color in zip(boxes, colors):
        rectangle(ax, box, color, 1.0)
    if several:
        largest = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")
        named = largest if len(labels) <= MANY else largest[np.unique(labels[largest], return_index=True)[1]]
        write_labels(ax, boxes[named], [class_names[labels[k]] for k in named], [colors[k] for k in named])
