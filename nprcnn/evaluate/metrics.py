"""From COCO entries to COCO's numbers: pycocotools computes them, here are the way there, their names and their table."""

import contextlib
import io
from typing import NamedTuple

import numpy as np

from ..errors import DataError

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
           "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


class Measured(NamedTuple):
    """What pycocotools computes for boxes or for masks. An undefined number is -1.

    stats: the twelve numbers of METRICS. precision: (10 IoU thresholds .50 to .95, 101 recalls 0 to 1, K - 1 classes), of objects of all
    sizes and 100 detections an image.
    """

    stats: tuple
    precision: np.ndarray


def coco_metrics(truths, found, sizes, class_names, kinds=("bbox", "segm")):
    """The dict that `evaluate` returns, from COCO annotations, results and {image id: (height, width)}.

    The category_id of an entry is a label, 1 to len(class_names) - 1. See evaluate for the dict, and DataError as in `measure`.
    """
    return summarise(measure(truths, found, sizes, class_names, kinds), truths, sizes, class_names)


def measure(truths, found, sizes, class_names, kinds=("bbox", "segm")):
    """{"bbox": Measured, "segm": Measured} of the same arguments. DataError if there is no image. Run lengths must fit their image:
    on others pycocotools does not end."""
    from pycocotools.cocoeval import COCOeval

    if not sizes:
        raise DataError("there is no image to evaluate on; the source or the list of indices is empty")
    truth = _coco(truths, sizes, class_names)
    measured = {}
    for kind in kinds:
        if kind == "bbox":  # a detection's size class follows the thing that is measured
            detections = [{**entry, "area": entry["bbox"][2] * entry["bbox"][3]} for entry in found if "bbox" in entry]
        else:
            detections = [entry for entry in found if "segmentation" in entry]
        run = COCOeval(truth, _coco(detections, sizes, class_names), kind)
        with contextlib.redirect_stdout(io.StringIO()):
            run.evaluate()
            run.accumulate()
            run.summarize()
        measured[kind] = Measured(tuple(float(v) for v in run.stats), run.eval["precision"][:, :, :, 0, -1])
    return measured


def summarise(measured, truths, sizes, class_names):
    """The dict that `evaluate` returns, from what `measure` returns."""
    crowds = sum(truth.get("iscrowd", 0) for truth in truths)
    counts = np.bincount([t["category_id"] for t in truths if not t.get("iscrowd", 0)], minlength=len(class_names))
    per_class = {name: {"objects": int(n)} for name, n in zip(class_names[1:], counts[1:])}
    for kind, result in measured.items():
        for name, ap in zip(class_names[1:], class_ap(result.precision)):
            per_class[name][kind] = ap
    return {**{kind: dict(zip(METRICS, result.stats)) for kind, result in measured.items()},
            "per_class": per_class, "images": len(sizes), "objects": len(truths) - crowds, "crowds": crowds}


def class_ap(precision):
    """The AP of each class, a list of floats; -1 for a class without objects. precision: see Measured."""
    return [float(p[p > -1].mean()) if (p > -1).any() else -1.0 for p in np.moveaxis(precision, 2, 0)]


def _coco(entries, sizes, class_names):
    """A pycocotools COCO object made in memory, no file in between."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": [{"id": i, "height": int(h), "width": int(w)} for i, (h, w) in sizes.items()],
                    "categories": [{"id": k, "name": name} for k, name in enumerate(class_names) if k > 0],
                    "annotations": [{**entry, "id": n} for n, entry in enumerate(entries, 1)]}  # pycocotools takes an id 0 for none
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def format_metrics(metrics):
    """The result of `evaluate` as a table of text: all twelve numbers, and AP a class."""
    def number(value):
        return "    -" if value is None or value < 0 else f"{value:5.3f}"

    kinds = [kind for kind in ("bbox", "segm") if kind in metrics]
    title = {"bbox": "boxes", "segm": "masks"}
    crowds = f" and {metrics['crowds']} crowds" if metrics.get("crowds") else ""
    lines = [f"{metrics['images']} images, {metrics['objects']} objects{crowds}"]
    for names in (METRICS[:6], METRICS[6:]):
        lines.append("       " + "".join(f"{name:>11}" for name in names))
        lines += [f"{title[kind]:<7}" + "".join(f"{number(metrics[kind][name]):>11}" for name in names) for kind in kinds]
    width = max([len(name) for name in metrics["per_class"]] + [5])
    lines += ["", f"{'class':<{width}}  objects" + "".join(f"{title[kind] + ' AP':>10}" for kind in kinds)]
    for name, row in metrics["per_class"].items():
        lines.append(f"{name:<{width}}  {row['objects']:>7}" + "".join(f"{number(row[kind]):>10}" for kind in kinds))
    return "\n".join(lines)
