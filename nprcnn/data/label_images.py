"""One label image an image: pixel value k is object k, 0 is the background. What CellProfiler, Cellpose and StarDist read and write.

    FOLDER/images/a.png   FOLDER/labels/a.png   8 or 16 bits, grey (or a palette, whose index is the number)

All objects are of one class: "object", or the one name in FOLDER/classes.txt.
"""

from pathlib import Path

import numpy as np

from ..errors import DataError
from .faults import refuse
from .files import class_list, images_in, read_numbers, readable_image
from .interface import FileSource
from .targets import make_target


class LabelImages(FileSource):
    """The source "labels:FOLDER". Boxes are tight around the masks, x2 = last column + 1.

    Parameters
    ----------
    path : folder with images/ and labels/
    report : see FileSource
    """

    def __init__(self, path, report=refuse):
        super().__init__(report)
        self.path = Path(path)
        for part in ("images", "labels"):
            if not (self.path / part).is_dir():
                raise DataError(f"{self.path} has no folder {part!r}; labels:FOLDER needs FOLDER/images and FOLDER/labels")
        self.class_names = class_list(self.path, report) or ("background", "object")
        if len(self.class_names) != 2:
            report(self.path / "classes.txt", "", f"names {len(self.class_names) - 1} classes; label images know only one")
        self.files = images_in(self.path / "images", report)
        self.labels = {file.stem: file for file in images_in(self.path / "labels", report)}
        known = {file.stem for file in self.files}
        for stem, file in self.labels.items():
            if stem not in known:
                report(file, "", "there is no image of this name in images/; it is left out", stops=False)

    def __len__(self):
        return len(self.files)

    def name(self, i):
        return self.files[i].name

    def annotation_files(self):
        return [self.labels[file.stem] for file in self.files if file.stem in self.labels]

    def image(self, i):
        """Image i, (H, W, 3) uint8, or None after a report."""
        return readable_image(self.files[i], self.report)

    def target(self, i, shape):
        """The objects of image i, whose (height, width) is `shape`; None: that of the label image."""
        file = self.labels.get(self.files[i].stem)
        if file is None:
            self.report(self.files[i], "", f"has no label image {self.files[i].stem}.png in labels/")
            return None
        numbers = read_numbers(file, self.report)
        if numbers is None:
            return None
        if shape is not None and numbers.shape != tuple(shape):
            self.report(file, "", f"is {numbers.shape[1]}x{numbers.shape[0]}, its image {shape[1]}x{shape[0]}")
            return None
        ids, boxes, masks = split_numbers(numbers)
        return make_target(boxes, np.ones(len(ids), np.int64), masks, i)


def split_numbers(numbers):
    """The objects of a label image.

    Parameters
    ----------
    numbers : (H, W) integers, 0 the background

    Returns
    -------
    ids (n,) ascending, boxes (n, 4) float32, masks (n, H, W) uint8

    Notes
    -----
    One sort of the pixels that are not background gives every object's box; a mask is then a comparison inside its box alone,
    where comparing all pixels with every number would take a pass over the image for each object (measured: 0.6 ms against 8
    for 38 nuclei on 256 x 256 pixels, 15 against 110 for 68 on 603 x 1272).
    """
    y, x = np.nonzero(numbers)
    value = numbers[y, x]
    order = np.argsort(value, kind="stable")
    y, x, value = y[order], x[order], value[order]
    start = np.flatnonzero(np.diff(value, prepend=0))  # values are above 0, so the first pixel begins an object, too
    ids = value[start]
    masks = np.zeros((len(ids), *numbers.shape), np.uint8)
    if len(ids) == 0:
        return ids, np.zeros((0, 4), np.float32), masks
    boxes = np.stack([np.minimum.reduceat(x, start), np.minimum.reduceat(y, start),
                      np.maximum.reduceat(x, start) + 1, np.maximum.reduceat(y, start) + 1], axis=1)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        masks[k, y1:y2, x1:x2] = numbers[y1:y2, x1:x2] == ids[k]
    return ids, boxes.astype(np.float32), masks
