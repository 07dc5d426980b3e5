"""COCO's metrics for boxes and masks, computed by pycocotools on sources of any kind.

AP is the mean over IoU thresholds .50 to .95 of the area under the precision-recall curve, then over classes; at most
100 detections an image count. Here are only the way into COCO's format and the names of its twelve numbers.
"""

import contextlib
import io

import numpy as np

from .errors import DataError

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
           "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


def evaluate(model, source, progress=True, indices=None):
    """Run a model over a data source and measure it as COCO does.

    Parameters
    ----------
    model : object
        `model.predict(image)` returns boxes (N, 4), labels (N,), scores (N,), masks (N, H, W) bool or None.
    source : data source
        `len(source)`, `source.class_names` and `source[i] -> (image, target)`.
    progress : bool
        Show a bar on stderr.
    indices : sequence of int, optional
        Which images; all by default.

    Returns
    -------
    dict
        "bbox" and "segm": {"AP", "AP50", "AP75", ...} floats in 0..1, the twelve names in METRICS; "segm" is missing
        where the model makes no masks or the source has none. "per_class": {class name: {"bbox": AP, "segm": AP,
        "objects": count}}. "images" and "objects": counts. A number that is undefined, because there is no object
        of that kind, is -1, as in COCO. Small is below 32^2 pixels, large above 96^2.
    """
    from tqdm import tqdm

    indices = range(len(source)) if indices is None else indices
    truths, found, sizes = [], [], {}
    with_masks = True
    for i in tqdm(indices, desc="evaluate", unit="image", disable=not progress):
        image, target = source[i]
        result = model.predict(image)
        with_masks = with_masks and result.masks is not None and target.get("masks") is not None
        key = len(sizes) + 1  # not the index, which may repeat: COCO would take it for one image
        sizes[key] = image.shape[:2]
        truths += _entries(key, target["boxes"], target["labels"], target.get("masks"))
        found += _entries(key, result.boxes, result.labels, result.masks, result.scores)
    return coco_metrics(truths, found, sizes, source.class_names, ("bbox", "segm") if with_masks else ("bbox",))


def _entries(key, boxes, labels, masks, scores=None):
    """COCO annotations (scores None) or results for one image; boxes become x, y, width, height."""
    from pycocotools import mask as rle

    entries = []
    for n, (box, label) in enumerate(zip(boxes, labels)):
        x1, y1, x2, y2 = (float(v) for v in box)
        entry = {"image_id": key, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1],
                 "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        if masks is not None:
            entry["segmentation"] = rle.encode(np.asfortranarray(masks[n], np.uint8))
            entry["area"] = float(rle.area(entry["segmentation"]))
        if scores is not None:
            entry["score"] = float(scores[n])
        entries.append(entry)
    return entries


def coco_metrics(truths, found, sizes, class_names, kinds=("bbox", "segm")):
    """The dict that `evaluate` returns, from COCO annotations, results and {image id: (height, width)}."""
    from pycocotools.cocoeval import COCOeval

    if not sizes:
        raise DataError("there is no image to evaluate on; the source or the list of indices is empty")
    truth = _coco(truths, sizes, class_names)
    counts = np.bincount([t["category_id"] for t in truths], minlength=len(class_names))
    metrics = {kind: {} for kind in kinds}
    per_class = {name: {"objects": int(n)} for name, n in zip(class_names[1:], counts[1:])}
    for kind in kinds:
        if kind == "bbox":  # a detection's size class follows the thing that is measured
            detections = [{**entry, "area": entry["bbox"][2] * entry["bbox"][3]} for entry in found]
        else:
            detections = found
        run = COCOeval(truth, _coco(detections, sizes, class_names), kind)
        with contextlib.redirect_stdout(io.StringIO()):
            run.evaluate()
            run.accumulate()
            run.summarize()
        metrics[kind] = {name: float(v) for name, v in zip(METRICS, run.stats)}
        for k, name in enumerate(class_names[1:]):
            precision = run.eval["precision"][:, :, k, 0, -1]  # (thresholds, recalls) of all sizes, 100 detections
            defined = precision[precision > -1]
            per_class[name][kind] = float(defined.mean()) if defined.size else -1.0
    return {**metrics, "per_class": per_class, "images": len(sizes), "objects": len(truths)}


def _coco(entries, sizes, class_names):
    """A pycocotools COCO object made in memory, no file in between."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": [{"id": i, "height": int(h), "width": int(w)} for i, (h, w) in sizes.items()],
                    "categories": [{"id": k, "name": name} for k, name in enumerate(class_names) if k > 0],
                    "annotations": [{"id": n, **entry} for n, entry in enumerate(entries, 1)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def format_metrics(metrics):
    """The result of `evaluate` as a table of text."""
    def number(value):
        return "    -" if value is None or value < 0 else f"{value:5.3f}"

    kinds = [kind for kind in ("bbox", "segm") if kind in metrics]
    title = {"bbox": "boxes", "segm": "masks"}
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
    lines = [f"{metrics['images']} images, {metrics['objects']} objects",
             "       " + "".join(f"{name:>11}" for name in names)]
    lines += [f"{title[kind]:<7}" + "".join(f"{number(metrics[kind][name]):>11}" for name in names) for kind in kinds]
    width = max([len(name) for name in metrics["per_class"]] + [5])
    lines += ["", f"{'class':<{width}}  objects" + "".join(f"{title[kind] + ' AP':>10}" for kind in kinds)]
    for name, row in metrics["per_class"].items():
        lines.append(f"{name:<{width}}  {row['objects']:>7}" + "".join(f"{number(row[kind]):>10}" for kind in kinds))
    return "\n".join(lines)
