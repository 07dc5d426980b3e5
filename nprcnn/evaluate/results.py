"""COCO's result files: a list of {"image_id", "category_id", "score"} with "bbox" or "segmentation" (cocodataset.org/#format-results)."""

import json
import math
from functools import partial
from pathlib import Path

from ..data.coco import Coco
from ..data.faults import INTEGER, NUMBER, describe, is_number, lacks
from ..data.files import read_json
from ..data.images import write_whole
from ..data.outlines import usable_rle
from ..errors import DataError
from .entries import Entries, compressed, origin, truth_entries

KEYS = {"bbox": "bbox", "segm": "segmentation"}
TITLES = {"bbox": "boxes", "segm": "masks"}
SHAPES = {"bbox": (lambda v: isinstance(v, list) and len(v) == 4 and all(map(is_number, v)), "a list of four numbers"),
          "segm": (lambda v: isinstance(v, dict), "an object with size and counts")}
NAMES = {"bbox": "bbox_results.json", "segm": "segm_results.json"}


def write_results(folder, entries, source):
    """Write what was found as COCO result files, with the data set's own image and category ids.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    entries : Entries
    source : data source
        Its `category_ids`, if it has any, are those by label; else the labels are.

    Returns
    -------
    list of paths : bbox_results.json, and segm_results.json if there are masks

    Coordinates are rounded to hundredths of a pixel, as in COCO's files. Scores keep five decimals: the three of COCO's examples
    would make ties of scores that are none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    category_ids = getattr(source, "category_ids", None) or range(len(source.class_names))
    paths = []
    for kind in entries.kinds:
        rows = []
        for entry in entries.found:
            row = {"image_id": int(entries.image_ids[entry["image_id"]]), "category_id": category_ids[entry["category_id"]]}
            if kind == "bbox":
                row["bbox"] = [round(v, 2) for v in entry["bbox"]]
            else:
                outline = entry["segmentation"]
                row["segmentation"] = {"size": list(outline["size"]), "counts": outline["counts"].decode("ascii")}
            rows.append({**row, "score": round(entry["score"], 5)})
        text = "[" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "]\n"
        paths.append(folder / NAMES[kind])
        write_whole(paths[-1], lambda file: file.write(text.encode()))
    return paths


def read_results(paths, source):
    """The entries of result files and of the data set that they are for. No image of a COCO set is read: the json says it all.

    Parameters
    ----------
    paths : one or two files
        Of boxes, of masks, or of both; what is in them tells which.
    source : data source

    Returns
    -------
    Entries, kinds
        kinds: those of ("bbox", "segm") that there is a file for.

    Raises
    ------
    DataError
        A file is not JSON or no list; an entry is of an image or a category that the data set does not have, has a score that is no
        finite number, or a box or run lengths that cannot be. Names the file and the entry.
    """
    from pycocotools import mask as rle

    truth = read_truth(source)
    category_ids = getattr(source, "category_ids", None) or range(len(source.class_names))
    label_of = {number: label for label, number in enumerate(category_ids) if label > 0}
    kinds = {}
    for path in map(Path, paths):
        rows = read_json(path, _refuse)
        if not isinstance(rows, list):
            raise DataError(f"{path} holds {describe(rows)}; a result file is a list of objects")
        for kind in (held := _kinds(rows, path)):
            if kind in kinds:
                raise DataError(f"{path} holds {TITLES[kind]}, as {kinds[kind]} does; give one file of each kind")
            if kind == "segm" and not truth.with_masks:
                raise DataError(f"{path} holds masks, but the data set has none to compare them with")
            kinds[kind] = path
        for k, row in enumerate(rows):
            _check_row(row, held, truth.sizes, label_of, partial(_refuse, path, f"entry {k}"))
            entry = {"image_id": row["image_id"], "category_id": label_of[row["category_id"]], "score": row["score"], "iscrowd": 0}
            if "bbox" in held:
                entry["bbox"] = row["bbox"]
            if "segm" in held:
                entry["segmentation"] = compressed(row["segmentation"], *row["segmentation"]["size"])
                entry["area"] = float(rle.area(entry["segmentation"]))
            truth.found.append(entry)
    return truth, tuple(kind for kind in KEYS if kind in kinds)


def _kinds(rows, path):
    """What a result file holds: its first entry tells, or of an empty list the file's name."""
    first = rows[0] if rows and isinstance(rows[0], dict) else {"segmentation" if "segm" in path.name else "bbox": None}
    return [kind for kind, key in KEYS.items() if key in first] or ["bbox"]


def read_truth(source):
    """Entries of all objects of a source, with nothing found; the keys are the image ids. DataError as in source[i]."""
    truth = Entries([], [], {}, {}, True)
    with_masks = True
    for n in range(len(source)):
        inner, i = origin(source, n)
        if isinstance(inner, Coco):
            key, size = inner.images[i]["id"], (inner.images[i]["height"], inner.images[i]["width"])
            list(inner.usable(i))  # for its checks: on run lengths that do not fit their image, pycocotools does not end
            target = None  # truth_entries takes what the file says
            with_masks = with_masks and inner.has_masks
        else:
            image, target = source[n]
            key, size = target.get("image_id", n), image.shape[:2]
            with_masks = with_masks and target.get("masks") is not None
        if key in truth.sizes:
            raise DataError(f"two images of the data set have the id {key}: a result could not say which it is for")
        truth.sizes[key], truth.image_ids[key] = size, key
        truth.truths.extend(truth_entries(source, n, key, target))
    return truth._replace(with_masks=with_masks)


def _refuse(path, entry, problem, stops=True):
    raise DataError(": ".join(part for part in (str(path), entry, problem) if part))


def _check_row(row, kinds, sizes, label_of, complain):
    """DataError, through `complain`, unless the entry can be used."""
    lacks(row, {"image_id": INTEGER, "category_id": INTEGER, "score": NUMBER, **{KEYS[kind]: SHAPES[kind] for kind in kinds}}, complain)
    if row["image_id"] not in sizes:
        complain(f"is of the image {row['image_id']}, which the data set does not have")
    if row["category_id"] not in label_of:
        complain(f"is of the category {row['category_id']}, which the data set does not have")
    if not math.isfinite(row["score"]):
        complain(f"has the score {row['score']}; a finite number is needed")
    if "bbox" in kinds and not (all(map(math.isfinite, row["bbox"])) and min(row["bbox"][2:]) >= 0):
        complain(f"has the box x, y, width, height = {row['bbox']}; finite numbers are needed, and sides of at least 0")
    if "segm" in kinds:
        usable_rle(row["segmentation"], sizes[row["image_id"]], complain)
