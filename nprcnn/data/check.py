"""The check of a whole data set: everything is read once, every fault is collected, and what there is is counted.

COCO's sizes of objects (Lin et al. 2014): small below 32^2 pixels, large from 96^2 on.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from ..errors import NprcnnError
from .faults import Faults
from .interface import FileSource, Subset
from .sources import open_source
from .targets import check_target, drop_crowds


class Findings(NamedTuple):
    """What `check_set` returns."""

    class_names: tuple
    images: int
    sizes: list  # (height, width) of every image that could be read
    counts: list  # objects of every image whose target could be read
    labels: np.ndarray  # (objects,)
    areas: np.ndarray  # (objects,) in pixels: of the mask, or of the box where there is none
    crowds: int
    faults: list  # of Fault


def check_set(spec, look=None, progress=True):
    """Read a whole set and collect what is wrong with it.

    Parameters
    ----------
    spec : str
        As for open_source.
    look : callable(i, source, image, target, faults), optional
        Called after each image; image and target are None where they could not be read, faults are those of this image.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    Findings

    Raises
    ------
    ConfigError, DataError
        There is no such set at all: the kind or the path is wrong.
    """
    from tqdm import tqdm

    faults = Faults()
    source = open_source(spec, report=faults.report)
    if len(source) == 0 and not faults:
        faults.report(spec, "", "holds no images")
    sizes, counts, labels, areas, crowds = [], [], [], [], 0
    for i in tqdm(range(len(source)), desc="check", unit="image", disable=not progress):
        before = len(faults)
        image, target = read(source, i, faults)
        if image is not None:
            sizes.append(image.shape[:2])
        if target is not None and "boxes" in target:
            counts.append(len(target["labels"]))
            labels.append(target["labels"])
            areas.append(object_areas(target))
            crowds += int(np.sum(target.get("iscrowd", 0)))
        if look is not None:
            look(i, source, image, target, faults[before:])
    labels, areas = (np.concatenate(parts) if parts else np.zeros(0, int) for parts in (labels, areas))
    return Findings(source.class_names, len(source), sizes, counts, labels, areas, crowds, list(faults))


def read(source, i, faults):
    """Image i and its target, or None for each that cannot be read or used; what is wrong goes into `faults`."""
    if isinstance(source, Subset):
        return read(source.source, source.indices[i], faults)
    before = len(faults)
    if isinstance(source, FileSource):
        image = source.image(i)
        target = source.target(i, None if image is None else image.shape[:2])
    else:
        try:
            image, target = source[i]
        except Exception as error:  # a class of the user's may raise anything
            what = str(error) if isinstance(error, NprcnnError) else f"reading it raised {type(error).__name__}: {error}"
            faults.report(source.name(i), "", what)
            return None, None
    if len(faults) == before and "boxes" in target:  # what no reader has found
        try:
            check_target(image.shape[:2], drop_crowds(target), len(source.class_names), i, needs_masks="masks" in target)
        except NprcnnError as error:
            faults.report(source.name(i), "", str(error))
            return image, None
    return image, target


def object_areas(target):
    """The area of each object in pixels, (n,): of its mask, or of its box where the set has no masks."""
    if "masks" in target:
        return target["masks"].sum(axis=(1, 2), dtype=np.int64)
    return (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(axis=1)


def summary(findings):
    """The findings as a dict for a JSON file. Lengths are in pixels; the side of an object is the root of its area."""
    f = findings
    sides = np.sqrt(f.areas)
    per_class = np.bincount(f.labels, minlength=len(f.class_names))
    return {
        "images": f.images, "unreadable": f.images - len(f.sizes), "images_without_objects": f.counts.count(0),
        "objects": len(f.labels), "crowds": f.crowds,
        "image_sizes": {f"{w}x{h}": n for (h, w), n in Counter(f.sizes).most_common()},
        "objects_an_image": _range(f.counts), "object_sides": _range(sides),
        "small": int((f.areas < 32 ** 2).sum()), "large": int((f.areas >= 96 ** 2).sum()),
        "classes": {name: int(n) for name, n in zip(f.class_names[1:], per_class[1:])},
        "faults": [fault._asdict() for fault in f.faults],
    }


def _range(values):
    """Smallest, median and largest, or None of nothing."""
    return [round(float(v), 1) for v in (np.min(values), np.median(values), np.max(values))] if len(values) else None


def format_findings(findings):
    """The findings as text: what there is, and every fault, one a line."""
    s = summary(findings)
    sizes = list(s["image_sizes"].items())
    unreadable = f" ({s['unreadable']} cannot be read)" if s["unreadable"] else ""
    lines = [f"images: {s['images']}{unreadable}, objects: {s['objects']}, classes: {len(s['classes'])}"]
    if sizes:
        lines.append("image sizes: " + ", ".join(f"{size} ({n})" for size, n in sizes[:4])
                     + (f" and {len(sizes) - 4} more" if len(sizes) > 4 else ""))
    if s["objects"]:
        medium = s["objects"] - s["small"] - s["large"]
        low, middle, high = s["objects_an_image"]
        lines.append(f"objects an image: {low:.0f} to {high:.0f}, median {middle:.0f}; images without any: {s['images_without_objects']}; "
                     f"crowds: {s['crowds']}")
        low, middle, high = s["object_sides"]
        lines.append(f"sides of objects (root of the area): {low:.0f} to {high:.0f} pixels, median {middle:.0f}; "
                     f"{s['small']} small (below 32), {medium} medium, {s['large']} large (from 96)")
        width = max(map(len, s["classes"]))
        lines += ["", f"{'class':<{width}}  objects"]
        lines += [f"{name:<{width}}  {n:>7}" for name, n in s["classes"].items() if n]
        absent = [name for name, n in s["classes"].items() if not n]
        lines += [f"none of: {', '.join(absent)}"] * bool(absent)
    stopping = sum(fault.stops for fault in findings.faults)
    lines += ["", f"faults: {len(findings.faults)}" + (f", of which {stopping} stop a training (marked !)" if findings.faults else "")]
    return "\n".join(lines + [f"{'!' if fault.stops else ' '} {fault}" for fault in findings.faults])
