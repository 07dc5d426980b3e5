"""What LabelMe and VIA have in common: named regions, each a mask, and boxes that follow from the masks."""

import numpy as np

from .files import class_list
from .interface import FileSource
from .outlines import mask_box
from .targets import make_target


class RegionSource(FileSource):
    """Base of sources whose objects are named regions drawn by hand.

    A subclass calls `set_classes` once, and `objects` for each target. Boxes are tight around the masks, x2 = last column + 1.
    """

    def set_classes(self, folder, found):
        """class_names from classes.txt in the folder, or all names in `found`, sorted."""
        self.class_names = class_list(folder, self.report) or ("background", *sorted(found))

    def objects(self, i, file, regions, shape):
        """The target of image i.

        Parameters
        ----------
        file : the file to name in messages
        regions : iterable of (entry, name, mask, crowd)
            entry for messages; mask (H, W), or None where none could be made, which is reported already.
        shape : (height, width)
        """
        boxes, labels, masks, crowds = [], [], [], []
        for entry, name, mask, crowd in regions:
            if name not in self.class_names[1:]:
                self.report(file, entry, f"is of the class {name!r}, which classes.txt does not name")
            elif mask is not None:
                box = mask_box(mask)
                if box is None:
                    self.report(file, entry, "the mask is empty: no pixel's centre lies inside; the object is left out", stops=False)
                    continue
                boxes.append(box)
                labels.append(self.class_names.index(name))
                masks.append(mask)
                crowds.append(int(crowd))
        masks = np.array(masks, np.uint8).reshape(-1, *shape)
        return make_target(boxes, labels, masks, i, crowds)
