"""COCO instances json: polygons, both kinds of run lengths, crowds, gaps in the category ids (Lin et al. 2014, arXiv 1405.0312).

Format: cocodataset.org/#format-data. What an object becomes follows torchvision's references/detection/coco_utils.py: the box is the
annotation's own (not recomputed from the mask), clipped to the image; an object without area is left out; an empty mask stays.
Unlike there, crowds are kept, with iscrowd 1, for evaluation; training drops them.
"""

from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from .faults import INTEGER, LIST, SIZE, TEXT, describe, is_integer, is_number, lacks, refuse
from .files import NOT_CLASSES, read_json, readable_image
from .interface import FileSource
from .outlines import outline_mask, unreadable_size, usable_box, usable_polygons, usable_rle
from .targets import make_target


class Coco(FileSource):
    """The source "coco:FILE.json", also "coco:FOLDER" with one json in it or in its annotations/.

    Parameters
    ----------
    path : file, or folder
    images : folder of the images, optional
        By default the first of these where the first image is: the json's folder, images/ in it, and, for NAME.json or
        instances_NAME.json, NAME/, images/ and images/NAME/ beside the json's folder, NAME/ in it.
    report : see FileSource

    Notes
    -----
    Categories become the labels 1 to K - 1 by ascending id; `category_ids[label]` is the id. The file is read once, on opening.
    Where no annotation has a segmentation, targets have no masks.
    """

    def __init__(self, path, images=None, report=refuse):
        super().__init__(report)
        self.path = annotation_file(Path(path))
        self.images, self.rows, self.has_masks = [], [], False  # an entry of the json for each; its annotations
        self._ids = (None,)
        data = read_json(self.path, report)
        if data is None or lacks(data, {"images": LIST, "annotations": LIST, "categories": LIST}, partial(report, self.path, "")):
            return
        labels = self._read_categories(data)
        self._read_images(data["images"])
        self._read_annotations(data["annotations"], labels)
        self.folder = Path(images) if images else image_folder(self.path, self.images)

    def _read_categories(self, data):
        """Sets class_names and category_ids; returns {category id: label}."""
        used = {a["category_id"] for a in data["annotations"] if isinstance(a, dict) and is_integer(a.get("category_id"))}
        names = {}
        for k, category in enumerate(data["categories"]):
            entry = f"categories[{k}]"
            if lacks(category, {"id": INTEGER, "name": TEXT}, partial(self.report, self.path, entry)):
                continue
            number, name = category["id"], category["name"]
            if number in names:
                self.report(self.path, entry, f"the id {number} is already that of {names[number]!r}")
            elif name in names.values():
                self.report(self.path, entry, f"the name {name!r} is already that of another category")
            elif name.lower() in NOT_CLASSES and number not in used:
                continue  # some tools list the background, too
            else:
                names[number] = name
        self._ids = (None, *sorted(names))
        self.class_names = ("background", *(names[number] for number in self._ids[1:]))
        return {number: label for label, number in enumerate(self._ids) if label}

    def _read_images(self, entries):
        ids, files = set(), {}
        for k, image in enumerate(entries):
            complain = partial(self.report, self.path, f"images[{k}]")
            if lacks(image, {"id": INTEGER, "file_name": TEXT, "height": SIZE, "width": SIZE}, complain):
                continue
            if unreadable_size((image["height"], image["width"]), complain):
                continue
            if image["id"] in ids:
                complain(f"the id {image['id']} is that of an earlier image, too")
                continue
            if image["file_name"] in files:
                complain(f"the file {image['file_name']!r} is already that of image {files[image['file_name']]}")
            ids.add(image["id"])
            files[image["file_name"]] = image["id"]
            self.images.append(image)

    def _read_annotations(self, entries, labels):
        """Fills rows: for each image a list of (entry's name for messages, annotation, label)."""
        self.rows = [[] for _ in self.images]
        place = {image["id"]: i for i, image in enumerate(self.images)}
        self.has_masks = any(isinstance(a, dict) and a.get("segmentation") for a in entries)
        needed = {"id": INTEGER, "image_id": INTEGER, "category_id": INTEGER, "bbox": FOUR_NUMBERS}
        if self.has_masks:
            needed["segmentation"] = SEGMENTATION
        ids = set()
        for k, a in enumerate(entries):
            entry = f"annotations[{k}]" + (f" (id {a['id']})" if isinstance(a, dict) and "id" in a else "")
            complain = partial(self.report, self.path, entry)
            if lacks(a, needed, complain):
                continue
            if a["id"] in ids:
                complain("an earlier annotation has the same id")
            ids.add(a["id"])
            if a["image_id"] not in place:
                complain(f"is of the image {a['image_id']}, which is not in the list of images")
            elif a["category_id"] not in labels:
                complain(f"is of the category {a['category_id']}, which is not in the list of categories")
            elif a.get("iscrowd", 0) not in (0, 1):
                complain(f"'iscrowd' is {describe(a['iscrowd'])}; 0 or 1 is needed")
            else:
                self.rows[place[a["image_id"]]].append((entry, a, labels[a["category_id"]]))

    def __len__(self):
        return len(self.images)

    @property
    def category_ids(self):
        return self._ids

    def name(self, i):
        return self.images[i]["file_name"]

    def annotation_files(self):
        return [self.path]

    def image(self, i):
        """Image i, (H, W, 3) uint8, or None after a report."""
        return readable_image(self.folder / self.images[i]["file_name"], self.report, f"; where the images lie elsewhere, write "
                              f"coco:{self.path.name},images=FOLDER")

    def target(self, i, shape):
        """The objects of image i, whose (height, width) is `shape`; None: as the json states it. image_id is the json's."""
        image = self.images[i]
        stated = image["height"], image["width"]
        if shape is not None and tuple(shape) != stated:
            self.report(self.folder / image["file_name"], f"image {image['id']}",
                        f"is {shape[1]}x{shape[0]}, {self.path.name} says {stated[1]}x{stated[0]}")
            return None  # which of its objects are right cannot be said
        boxes, labels, masks, crowds = [], [], [], []
        for a, label, box, outline, complain in self.usable(i):
            if self.has_masks:
                mask = outline_mask(outline, stated)
                if not mask.any():
                    complain("the mask is empty; the object stays, with its box", stops=False)
                masks.append(mask)
            boxes.append(box)
            labels.append(label)
            crowds.append(a.get("iscrowd", 0))
        masks = np.array(masks, np.uint8).reshape(-1, *stated) if self.has_masks else None
        return make_target(boxes, labels, masks, image["id"], crowds)

    def usable(self, i):
        """Yield the objects of image i that can be used: (annotation, label, box, outline, where to report on it). Reports the others.

        No mask is drawn or decoded; outline: see nprcnn.data.outlines.outline_mask.
        """
        stated = self.images[i]["height"], self.images[i]["width"]
        for entry, a, label in self.rows[i]:
            complain = partial(self.report, self.path, entry)
            x, y, w, h = np.array(a["bbox"], np.float32)
            box, outline = usable_box((x, y, x + w, y + h), stated, complain), None
            if box is not None and self.has_masks:
                outline = a["segmentation"]
                outline = (usable_rle if isinstance(outline, dict) else usable_polygons)(outline, stated, complain)
            if box is not None and (outline is not None or not self.has_masks):
                yield a, label, box, outline, complain


FOUR_NUMBERS = lambda v: isinstance(v, list) and len(v) == 4 and all(map(is_number, v)), "a list of four numbers"  # noqa: E731
SEGMENTATION = lambda v: isinstance(v, (list, dict)) and len(v) > 0, "a list of polygons, or run lengths,"  # noqa: E731


def annotation_file(path):
    """The path itself, or the one json of a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} is not there; coco:FILE.json needs a file of annotations")
    found = sorted(path.glob("*.json")) or sorted(path.glob("annotations/*.json"))
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
        raise DataError(f"{path} is a folder with {len(found)} json files ({names}); give the path of one")
    return found[0]


def image_folder(path, images):
    """Where the images of the annotation file `path` lie; its own folder if the first of them is nowhere."""
    name = path.stem.removeprefix("instances_")
    here, above = path.parent, path.parent.parent
    if images:
        for folder in (here, here / "images", above / name, above / "images", above / "images" / name, here / name):
            if (folder / images[0]["file_name"]).exists():
                return folder
    return here
