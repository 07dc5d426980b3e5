"""COCO's metrics for boxes and masks, computed by pycocotools on sources of any kind.

AP is the mean over IoU thresholds .50 to .95 of the area under the precision-recall curve, then over classes; at most
100 detections an image count.

    entries.py    runs the model over a source, and collects what it finds as COCO entries
    classes.py    which of the source's classes each of the model's is
    metrics.py    from the entries to the numbers, and their table
    results.py    COCO's result files
    curves.py     the picture of precision and recall
    pictures.py   images with what was found, found wrongly and missed
"""

from .entries import Entries, collect, join
from .metrics import METRICS, coco_metrics, format_metrics, measure, summarise


def evaluate(model, source, progress=True, indices=None):
    """Run a model over a data source and measure it as COCO does.

    Parameters
    ----------
    model : object
        `model.predict(image)` returns boxes (N, 4), labels (N,), scores (N,), masks (N, H, W) bool or None. Its `class_names`, if it
        has any, need not be those of the source (see classes.match_classes).
    source : data source
        `len(source)`, `source.class_names` and `source[i] -> (image, target)`. Targets may have "iscrowd": what is found in a crowd is
        neither right nor wrong.
    progress : bool
        Show a bar on stderr.
    indices : sequence of int, optional
        Which images; all by default.

    Returns
    -------
    dict
        "bbox" and "segm": {"AP", "AP50", "AP75", ...} floats in 0..1, the twelve names in METRICS; "segm" is missing
        where the model makes no masks or the source has none. "per_class": {class name: {"bbox": AP, "segm": AP,
        "objects": count}}. "images", "objects" and "crowds": counts. A number that is undefined, because there is no object
        of that kind, is -1, as in COCO. Small is below 32^2 pixels, large above 96^2.
    """
    entries = collect(model, source, indices, progress)
    return coco_metrics(entries.truths, entries.found, entries.sizes, source.class_names, entries.kinds)
