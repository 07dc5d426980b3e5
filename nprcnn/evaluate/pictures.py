"""Hits and misses, drawn: what a number like AP is made of."""

import numpy as np

from ..canvas import headline, image_panels, outline, rectangle, show_image
from .entries import compressed

# of Okabe and Ito's palette, which most colour-blind people can tell apart
FOUND, WRONG, MISSED = "#00C08B", "#F0E442", "#D55E00"
COLUMNS, SIDE = 4, 320


def hits(truths, found, kind, iou_threshold=0.5):
    """Which of one image's detections are right, as COCO decides it at one threshold: in the order of their scores each takes the
    free object of its class that it overlaps most, if by at least iou_threshold. Crowds are left out.

    Parameters
    ----------
    truths, found : lists of COCO annotations and results of one image (see entries.py)
    kind : "segm" or "bbox"

    Returns
    -------
    right : (n,) bool, a row a detection
    missed : (m,) bool, a row a truth: nobody took it (False for crowds)
    """
    from pycocotools import mask as rle

    right, free = np.zeros(len(found), bool), np.array([not t.get("iscrowd") for t in truths], bool)
    if not truths or not found:
        return right, free
    field = "segmentation" if kind == "segm" else "bbox"
    ious = rle.iou([f[field] for f in found], [t[field] for t in truths], [0] * len(truths))  # (n, m)
    same = np.array([[f["category_id"] == t["category_id"] for t in truths] for f in found])
    for n in np.argsort([-f["score"] for f in found], kind="stable"):
        candidates = np.where(free & same[n], ious[n], -1.0)
        best = int(candidates.argmax())
        if candidates[best] >= iou_threshold:
            right[n], free[best] = True, False
    return right, free


def draw_hits(source, entries, count=8, score=0.5, indices=None):
    """A Figure of images with what was found (green), found wrongly (yellow) and missed (red): masks' outlines, or boxes.

    Parameters
    ----------
    source, entries, indices : as given to, and returned by, `collect`
    count : int
        So many images, evenly spread over all.
    score : float
        Detections below this are left out. So the counts are those of one point on the precision-recall curve.
    """
    kind = entries.kinds[-1]
    keys = list(entries.sizes)
    keys = [keys[i] for i in sorted(set(np.linspace(0, len(keys) - 1, min(count, len(keys))).round().astype(int)))]
    images = {key: source[(key - 1) if indices is None else indices[key - 1]][0] for key in keys}
    height, width = (max(image.shape[axis] for image in images.values()) for axis in (0, 1))
    figure, panels = image_panels(len(keys), width, height, columns=min(COLUMNS, len(keys)), side=SIDE)
    for ax, key in zip(panels, keys):
        truths = [_ready(t, entries.sizes[key], kind) for t in entries.truths if t["image_id"] == key]
        found = [f for f in entries.found if f["image_id"] == key and f["score"] >= score]
        right, missed = hits(truths, found, kind)
        show_image(ax, images[key], f"{right.sum()} found, {(~right).sum()} wrong, {missed.sum()} missed")
        for entry, color in ([(t, MISSED) for t, is_missed in zip(truths, missed) if is_missed]
                             + [(f, FOUND if is_right else WRONG) for f, is_right in zip(found, right)]):
            _draw(ax, entry, kind, color)
    of = "masks" if kind == "segm" else "boxes"
    headline(figure, f"{of} with a score of at least {score}, IoU of at least .5: green found, yellow wrong, red missed")
    return figure


def _ready(truth, size, kind):
    """A truth whose mask, which may be polygons, is in run lengths."""
    return {**truth, "segmentation": compressed(truth["segmentation"], *size)} if kind == "segm" else truth


def _draw(ax, entry, kind, color):
    from pycocotools import mask as rle
    if kind == "segm":
        outline(ax, rle.decode(entry["segmentation"]).astype(bool), color)
    else:
        x, y, w, h = entry["bbox"]
        rectangle(ax, (x, y, x + w, y + h), color, 1.0)
