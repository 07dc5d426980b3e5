"""Pascal VOC: a file of XML an image, and SegmentationObject, an image of objects' numbers (Everingham et al. 2010, IJCV 88).

    FOLDER/JPEGImages/a.jpg   FOLDER/Annotations/a.xml
    FOLDER/SegmentationObject/a.png   pixel value k is an object, 0 background, 255 void (outlines, difficult objects)
    FOLDER/SegmentationClass/a.png    the class of each pixel, by position in VOC's list (or in classes.txt)
    FOLDER/ImageSets/Segmentation/train.txt   the names of a part of the set; .../Main/ where there are no masks

Format: the development kit's documentation, host.robots.ox.ac.uk/pascal/VOC. XML counts pixels from 1, both ends included, so a box is
(xmin - 1, ymin - 1, xmax, ymax), as in Detectron2. Difficult objects become crowds: not trained on, and no mistake to find.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError, DataError
from .faults import refuse
from .files import class_list, images_in, read_numbers, readable_image
from .interface import FileSource
from .label_images import split_numbers
from .outlines import unreadable_size, usable_box
from .targets import make_target
from .voc_xml import read_annotation

VOC_CLASSES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
VOID = 255
SAME = 0.5  # an object of the XML and one of the PNG are the same from this IoU on


class Row(NamedTuple):
    box: np.ndarray  # (4,) float32
    label: int
    mask: np.ndarray  # (H, W) uint8, or None in a set without masks
    crowd: int


class Voc(FileSource):
    """The source "voc:FOLDER".

    Parameters
    ----------
    path : folder with JPEGImages and Annotations
    split : str, optional
        A list in ImageSets, such as "train". By default "trainval" where it is there, else all of Annotations.
    report : see FileSource

    Notes
    -----
    Classes are those of FOLDER/classes.txt; without it VOC's twenty if no other name occurs, else all that occur, sorted.
    Where there is SegmentationObject, its objects are the rows. Each is paired with the object of the XML whose box overlaps its own
    most (IoU at least .5), and takes box, class and difficulty from there. One that has no partner takes its class from
    SegmentationClass. Objects of the XML without a mask are left out.
    """

    def __init__(self, path, split=None, report=refuse):
        super().__init__(report)
        self.path = Path(path)
        for part in ("JPEGImages", "Annotations"):
            if not (self.path / part).is_dir():
                raise DataError(f"{self.path} has no folder {part!r}; voc:FOLDER needs FOLDER/JPEGImages and FOLDER/Annotations")
        self.has_masks = (self.path / "SegmentationObject").is_dir()
        files = {file.stem: file for file in images_in(self.path / "JPEGImages", report)}
        self.files, self.contents = [], []  # of the images; what read_annotation gives for each
        for stem in self._names(split):
            content = read_annotation(self._part("Annotations", stem, ".xml"), report)
            if content is None:
                continue
            if stem not in files:
                report(self._part("Annotations", stem, ".xml"), "", f"there is no image {stem} in JPEGImages")
            else:
                self.files.append(files[stem])
                self.contents.append(content)
        found = {thing.name for content in self.contents for thing in content.objects}
        listed = class_list(self.path, report)
        self.class_names = listed or (VOC_CLASSES if found <= set(VOC_CLASSES) else ("background", *sorted(found)))
        self._numbered = listed or self.class_names is VOC_CLASSES  # SegmentationClass can be understood

    def _part(self, part, stem, suffix=".png"):
        return self.path / part / (stem + suffix)

    def _names(self, split):
        """The stems of the images."""
        lists = self.path / "ImageSets" / ("Segmentation" if self.has_masks else "Main")
        file = lists / f"{split or 'trainval'}.txt"
        if split and not file.is_file():
            known = ", ".join(sorted(f.stem for f in lists.glob("*.txt"))) or "none"
            raise ConfigError(f"there is no split {split!r} of {self.path}; {lists} has {known}")
        if file.is_file():
            return sorted(line.split()[0] for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip())
        return sorted(f.stem for f in (self.path / "Annotations").glob("*.xml") if not f.name.startswith("."))

    def __len__(self):
        return len(self.files)

    def name(self, i):
        return self.files[i].name

    def annotation_files(self):
        stems = [file.stem for file in self.files]
        parts = [("Annotations", ".xml")] + [("SegmentationObject", ".png"), ("SegmentationClass", ".png")] * self.has_masks
        return [self._part(part, stem, suffix) for stem in stems for part, suffix in parts]

    def image(self, i):
        """Image i, (H, W, 3) uint8, or None after a report."""
        return readable_image(self.files[i], self.report)

    def target(self, i, shape):
        """The objects of image i, whose (height, width) is `shape`; None: as the XML states it, without which the target is None."""
        stem, stated = self.files[i].stem, self.contents[i].shape
        complain = partial(self.report, self._part("Annotations", stem, ".xml"), "size")
        if shape is None and (stated is None or unreadable_size(stated, complain)):
            return None
        shape = tuple(shape or stated)
        if stated not in (None, shape):
            complain(f"says {stated[1]}x{stated[0]}, the image is {shape[1]}x{shape[0]}")
        things = self._things(i, shape)
        if self.has_masks:
            rows = self._with_masks(i, shape, things)
        else:
            rows = [Row(box, label, None, int(thing.difficult)) for thing, box, label in things]
        masks = np.array([row.mask for row in rows], np.uint8).reshape(-1, *shape) if self.has_masks else None
        return make_target([row.box for row in rows], [row.label for row in rows], masks, i, [row.crowd for row in rows])

    def _things(self, i, shape):
        """The usable objects of the XML: (object, clipped box, label)."""
        things = []
        for thing in self.contents[i].objects:
            complain = partial(self.report, self._part("Annotations", self.files[i].stem, ".xml"), thing.entry)
            if thing.name not in self.class_names[1:]:
                complain(f"is of the class {thing.name!r}, which classes.txt does not name")
                continue
            x1, y1, x2, y2 = thing.corners
            box = usable_box((x1 - 1, y1 - 1, x2, y2), shape, complain)
            if box is not None:
                things.append((thing, box, self.class_names.index(thing.name)))
        return things

    def _with_masks(self, i, shape, things):
        """A Row for each number in SegmentationObject."""
        stem, content = self.files[i].stem, self.contents[i]
        known = content.complete and len(things) == len(content.objects)  # else it is known already why an object has no partner
        file = self._part("SegmentationObject", stem)
        numbers = self._pixels(file, shape)
        if numbers is None:
            return []
        file_of_classes = self._part("SegmentationClass", stem)
        classes = self._pixels(file_of_classes, shape) if self._numbered and file_of_classes.is_file() else None
        ids, boxes, masks = split_numbers(np.where(numbers == VOID, 0, numbers))
        partner = pair_up(boxes, [box for _, box, _ in things])
        for k, (thing, _, _) in enumerate(things):
            if k not in partner and not thing.difficult:  # those may be void
                self.report(self._part("Annotations", stem, ".xml"), thing.entry,
                            f"no object of {file.name} has its box; it is left out", stops=False)
        rows = []
        for number, box, mask, k in zip(ids, boxes, masks, partner):
            complain = partial(self.report, file, f"object {number}")
            label = None if classes is None else int(np.bincount(classes[mask > 0]).argmax())
            if label is not None and not 0 < label < len(self.class_names):
                complain(f"is of the class {label} in SegmentationClass; 1 to {len(self.class_names) - 1} are known")
            elif k is not None:
                thing, box, xml_label = things[k]
                if label not in (None, xml_label):
                    complain(f"is {self.class_names[label]!r} in SegmentationClass, {thing.name!r} in the XML")
                rows.append(Row(box, xml_label, mask, int(thing.difficult)))
            elif label is not None:
                if known:
                    complain("no object of the XML has its box; the class, "
                             f"{self.class_names[label]!r}, is taken from SegmentationClass", stops=False)
                rows.append(Row(box, label, mask, 0))
            else:
                complain("no object of the XML has its box, so the class is not known; it is left out", stops=False)
        return rows

    def _pixels(self, file, shape):
        numbers = read_numbers(file, self.report)
        if numbers is not None and numbers.shape != shape:
            self.report(file, "", f"is {numbers.shape[1]}x{numbers.shape[0]}, its image {shape[1]}x{shape[0]}")
            return None
        return numbers


def pair_up(boxes, others):
    """For each of `boxes` (n, 4) the index of its partner in `others`, or None: the largest IoU first, each at most once.

    Below an IoU of SAME there is no partner.
    """
    partner = [None] * len(boxes)
    if len(boxes) == 0 or len(others) == 0:
        return partner
    a, b = boxes[:, None], np.array(others)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(axis=2)
    iou = shared / ((a[..., 2:] - a[..., :2]).prod(axis=2) + (b[..., 2:] - b[..., :2]).prod(axis=2) - shared)
    while iou.max() >= SAME:
        i, k = np.unravel_index(iou.argmax(), iou.shape)
        partner[i] = int(k)
        iou[i], iou[:, k] = -1, -1
    return partner
