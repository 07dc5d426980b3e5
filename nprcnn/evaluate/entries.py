"""What COCO's metrics are computed from: the objects that there are and those that a model finds, as entries of COCO's format."""

from typing import NamedTuple

import numpy as np

from ..data.coco import Coco
from ..data.coco_names import class_names
from ..data.faults import is_number
from ..data.interface import Subset
from .classes import match_classes


class Entries(NamedTuple):
    """truths and found: lists of COCO annotations and results, whose category_id is the label in the source's class_names, and whose
    image_id is a key of the next two. sizes: {key: (height, width)}. image_ids: {key: the data set's own image id}. with_masks: False
    if the model or the source has none."""

    truths: list
    found: list
    sizes: dict
    image_ids: dict
    with_masks: bool

    @property
    def kinds(self):
        """What can be measured: ("bbox", "segm") or ("bbox",)."""
        return ("bbox", "segm") if self.with_masks else ("bbox",)


def collect(model, source, indices=None, progress=True, share=(0, 1)):
    """Run the model over images of the source.

    Parameters
    ----------
    model, source, indices, progress : see evaluate
    share : (rank, ranks)
        Of the images only every ranks-th, from number `rank` on: the parts of all ranks make up the whole (see join).

    Returns
    -------
    Entries
    """
    from tqdm import tqdm

    rank, ranks = share
    # the key is the position, not the index, which may repeat: COCO would take that for one image
    places = list(enumerate(range(len(source)) if indices is None else indices, 1))[rank::ranks]
    label_of, _ = match_classes(names_of(model), source.class_names)
    entries = Entries([], [], {}, {}, True)
    with_masks = True
    for key, i in tqdm(places, desc="evaluate", unit="image", disable=not progress):
        image, target = source[i]
        result = model.predict(image)
        with_masks = with_masks and result.masks is not None and target.get("masks") is not None
        entries.sizes[key] = image.shape[:2]
        entries.image_ids[key] = target.get("image_id", i)
        entries.truths.extend(truth_entries(source, i, key, target))
        labels = label_of[result.labels]
        entries.found.extend(entry for entry in to_entries(key, result.boxes, labels, result.masks, result.scores)
                             if entry["category_id"] > 0)
    return entries._replace(with_masks=with_masks)


def names_of(model):
    """The model's class names; COCO's or "class 1", ... by their number if it has none; None of a model that says nothing about them."""
    names, count = getattr(model, "class_names", None), getattr(model, "num_classes", None)
    return class_names(count) if names is None and count else names


def join(parts):
    """One Entries from those of all ranks."""
    whole = Entries([], [], {}, {}, all(part.with_masks for part in parts))
    for part in parts:
        whole.truths.extend(part.truths)
        whole.found.extend(part.found)
        whole.sizes.update(part.sizes)
        whole.image_ids.update(part.image_ids)
    return whole


def truth_entries(source, i, key, target):
    """The COCO annotations of image i. Of a COCO file its own, whose "area" decides what is small; of other sources from the target,
    which of a COCO file is not looked at."""
    source, i = origin(source, i)
    if isinstance(source, Coco):
        return [_with_area({**annotation, "image_id": key, "category_id": label}, source.images[i])
                for _, annotation, label in source.rows[i]]
    return to_entries(key, target["boxes"], target["labels"], target.get("masks"), crowds=target.get("iscrowd"))


def origin(source, i):
    """The source, and the index in it, that image i of a Subset is from."""
    while isinstance(source, Subset):
        source, i = source.source, source.indices[i]
    return source, i


def _with_area(annotation, image):
    """A COCO annotation with the keys that the metric needs and that other programs sometimes leave out."""
    annotation = {"iscrowd": 0, **annotation}
    area = annotation.get("area")
    if not (is_number(area) and area >= 0):
        from pycocotools import mask as rle
        outline = annotation.get("segmentation")
        annotation["area"] = (float(rle.area(compressed(outline, image["height"], image["width"]))) if outline
                              else annotation["bbox"][2] * annotation["bbox"][3])
    return annotation


def compressed(outline, height, width):
    """COCO's polygons, or its run lengths of either kind, as compressed run lengths."""
    from pycocotools import mask as rle
    if isinstance(outline, list):
        return rle.merge(rle.frPyObjects(outline, height, width))
    return outline if isinstance(outline["counts"], (str, bytes)) else rle.frPyObjects(outline, height, width)


def to_entries(key, boxes, labels, masks, scores=None, crowds=None):
    """COCO annotations (scores None) or results for one image; boxes become x, y, width, height."""
    from pycocotools import mask as rle

    entries = []
    for n, (box, label) in enumerate(zip(boxes, labels)):
        x1, y1, x2, y2 = (float(v) for v in box)
        entry = {"image_id": key, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1],
                 "area": (x2 - x1) * (y2 - y1), "iscrowd": 0 if crowds is None else int(crowds[n])}
        if masks is not None:
            entry["segmentation"] = rle.encode(np.asfortranarray(masks[n], np.uint8))
            entry["area"] = float(rle.area(entry["segmentation"]))
        if scores is not None:
            entry["score"] = float(scores[n])
        entries.append(entry)
    return entries
