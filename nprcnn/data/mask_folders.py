"""One mask image an object: the layout of the 2018 Data Science Bowl (kaggle.com/c/data-science-bowl-2018/data).

    FOLDER/a/images/a.png   FOLDER/a/masks/*.png   one object each, grey: not 0 is the object

All objects are of one class: "object", or the one name in FOLDER/classes.txt.
"""

from pathlib import Path

import numpy as np

from ..errors import DataError
from .faults import refuse
from .files import class_list, images_in, read_numbers, readable_image
from .interface import FileSource
from .outlines import mask_box
from .targets import make_target


class MaskFolders(FileSource):
    """The source "masks:FOLDER". Boxes are tight around the masks, x2 = last column + 1.

    Parameters
    ----------
    path : folder with a folder for each image
    report : see FileSource
    """

    def __init__(self, path, report=refuse):
        super().__init__(report)
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder; masks:FOLDER needs FOLDER/NAME/images and FOLDER/NAME/masks")
        self.class_names = class_list(self.path, report) or ("background", "object")
        if len(self.class_names) != 2:
            report(self.path / "classes.txt", "", f"names {len(self.class_names) - 1} classes; masks in folders know only one")
        self.images, self.masks = [], []  # a file; its list of files
        for folder in sorted(self.path.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                self._read_folder(folder)
        if not self.images:
            report(self.path, "", "has no folders NAME with NAME/images and NAME/masks")

    def _read_folder(self, folder):
        for part in ("images", "masks"):
            if not (folder / part).is_dir():
                self.report(folder, "", f"has no folder {part!r}")
                return
        images = images_in(folder / "images", self.report)
        if len(images) != 1:
            self.report(folder / "images", "", f"holds {len(images)} images; one is needed")
            return
        self.images.append(images[0])
        self.masks.append(images_in(folder / "masks", self.report))

    def __len__(self):
        return len(self.images)

    def name(self, i):
        return self.images[i].name

    def annotation_files(self):
        return [file for files in self.masks for file in files]

    def image(self, i):
        """Image i, (H, W, 3) uint8, or None after a report."""
        return readable_image(self.images[i], self.report)

    def target(self, i, shape):
        """The objects of image i, whose (height, width) is `shape`; None: that of its first mask that can be read."""
        boxes, masks = [], []
        for file in self.masks[i]:
            mask = read_numbers(file, self.report)
            if mask is None:
                continue
            shape = tuple(shape or mask.shape)
            if mask.shape != shape:
                self.report(file, "", f"is {mask.shape[1]}x{mask.shape[0]}, its image {shape[1]}x{shape[0]}")
                continue
            box = mask_box(mask)
            if box is None:
                self.report(file, "", "the mask is empty")
                continue
            boxes.append(box)
            masks.append(mask > 0)
        masks = np.array(masks, np.uint8).reshape(-1, *(shape or (0, 0)))
        return make_target(boxes, [1] * len(boxes), masks, i)
