"""LabelMe json: one file an image (github.com/wkentaro/labelme, labelme/label_file.py and utils/shape.py).

    FOLDER/a.json   {"shapes": [{"label", "points", "shape_type", "group_id", "flags"}], "imagePath", "imageData",
                     "imageHeight", "imageWidth"}

Shapes of one label and one group_id are one object, as in LabelMe's own labelme2coco.py; as there, __ignore__ and _background_ are
left out.
"""

import base64
import io
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np

from ..errors import DataError
from .faults import LIST, SIZE, TEXT, describe, is_number, lacks, refuse
from .files import NOT_CLASSES, read_json, read_numbers, readable_image
from .outlines import ellipse_mask, polygons_mask, unreadable_size
from .regions import RegionSource

CROWD_FLAGS = ("crowd", "iscrowd", "difficult")  # a shape with one of these flags set is not trained on
FLAT = ("point", "points", "line", "linestrip")


class LabelMe(RegionSource):
    """The source "labelme:FOLDER".

    Parameters
    ----------
    path : folder of json files
    report : see FileSource

    Notes
    -----
    Classes are those of FOLDER/classes.txt (a copy of LabelMe's labels.txt will do), or all labels that occur, sorted.
    An image inside the json ("imageData") comes before the file that "imagePath" names, as in LabelMe.
    """

    def __init__(self, path, report=refuse):
        super().__init__(report)
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder; labelme:FOLDER needs one with a json file for each image")
        self.files, self.contents, seen = [], [], {}
        for file in sorted(self.path.glob("*.json")):
            data = read_json(file, report)
            if data is None or lacks(data, {"shapes": LIST, "imagePath": TEXT}, partial(report, file, "")):
                continue
            inside = bool(data.pop("imageData", None))  # large; read again when it is needed
            image = None if inside else self.path / PureWindowsPath(data["imagePath"]).as_posix()
            if image in seen:
                report(file, "imagePath", f"{data['imagePath']!r} is already the image of {seen[image].name}")
            if image:
                seen[image] = file
            shapes = [shape for k, shape in enumerate(data["shapes"])
                      if not lacks(shape, {"label": TEXT, "points": LIST}, partial(report, file, f"shapes[{k}]"))]
            self.files.append(file)
            self.contents.append({**data, "shapes": shapes, "image": image})
        if not self.files:
            report(self.path, "", "has no json files that can be used")
        self.set_classes(self.path, {shape["label"] for data in self.contents for shape in data["shapes"]} - set(NOT_CLASSES))

    def __len__(self):
        return len(self.files)

    def name(self, i):
        return self.files[i].name

    def annotation_files(self):
        return self.files

    def image(self, i):
        """Image i, (H, W, 3) uint8, or None after a report."""
        file = self.contents[i]["image"]
        if file is not None:
            return readable_image(file, self.report)
        data = read_json(self.files[i], self.report)
        return data and embedded_image(data["imageData"], self.files[i], self.report)

    def target(self, i, shape):
        """The objects of image i, whose (height, width) is `shape`; None: as the json states it, without which the target is None."""
        file, data = self.files[i], self.contents[i]
        complain = partial(self.report, file, "")
        if not (data.get("imageHeight") is None and data.get("imageWidth") is None):  # files of early versions have none
            if not lacks(data, {"imageHeight": SIZE, "imageWidth": SIZE}, complain):
                stated = data["imageHeight"], data["imageWidth"]
                if shape is not None and tuple(shape) != stated:
                    complain(f"imageWidth and imageHeight are {stated[1]}x{stated[0]}, the image is {shape[1]}x{shape[0]}")
                shape = shape or (None if unreadable_size(stated, complain) else stated)
        return shape and self.objects(i, file, self._groups(file, data["shapes"], tuple(shape)), tuple(shape))

    def _groups(self, file, shapes, size):
        """(entry, name, mask, crowd) for each object: shapes of one label and group_id are united."""
        groups = {}
        for k, shape in enumerate(shapes):
            if shape["label"] in NOT_CLASSES:
                continue
            entry = f"shapes[{k}] ({shape['label']})"
            mask = shape_mask(shape, size, partial(self.report, file, entry))
            flags = shape.get("flags") or {}
            crowd = isinstance(flags, dict) and any(flags.get(flag) for flag in CROWD_FLAGS)
            group = shape.get("group_id")
            key = k if group is None else (shape["label"], repr(group))
            if key in groups and mask is not None:
                _, _, united, earlier = groups[key]
                mask, crowd, entry = mask if united is None else united | mask, crowd or earlier, groups[key][0]
            if key not in groups or mask is not None:
                groups[key] = entry, shape["label"], mask, crowd
        return groups.values()


def shape_mask(shape, size, complain):
    """The mask of one shape, or None after a complaint.

    Parameters
    ----------
    shape : dict with "points", and "shape_type": polygon (the default), rectangle, oriented_rectangle, circle or mask
    size : (height, width)
    """
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if not all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points):
        complain("the points are not all pairs of numbers")
        return None
    if kind in FLAT:
        complain(f"a {kind} has no area; it is left out", stops=False)
        return None
    if kind in ("rectangle", "circle", "mask") and len(points) != 2 and not (kind == "rectangle" and len(points) == 4):
        complain(f"a {kind} has {len(points)} points; two are needed")
        return None
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    if kind in ("polygon", "rectangle", "oriented_rectangle"):
        return polygons_mask([[v for point in points for v in point]], size, complain)
    if kind == "circle":
        (x, y), edge = points
        radius = float(np.hypot(edge[0] - x, edge[1] - y))
        return ellipse_mask(x, y, radius, radius, 0.0, size, complain)
    if kind == "mask":
        return _bitmap(shape, size, complain)
    complain(f"the shape_type {describe(kind)} is not known")
    return None


def _bitmap(shape, size, complain):
    """A "mask": a PNG inside the json, whose place is points[0]."""
    data = _decoded(shape.get("mask"))
    bitmap = data and read_numbers(io.BytesIO(data), lambda file, entry, problem: None)
    if bitmap is None:
        complain("'mask' is no PNG of one channel in base64")
        return None
    (x, y), _ = shape["points"]
    height, width = bitmap.shape
    if not (0 <= x <= size[1] - width and 0 <= y <= size[0] - height):  # nor NaN
        complain(f"the mask, {width}x{height} at {x}, {y}, leaves the image, which is {size[1]} wide and {size[0]} high")
        return None
    mask, x, y = np.zeros(size, np.uint8), int(x), int(y)
    mask[y:y + height, x:x + width] = bitmap > 0
    return mask


def embedded_image(text, file, report):
    """The image in "imageData", (H, W, 3) uint8, or None after a report."""
    from PIL import Image

    try:
        return np.array(Image.open(io.BytesIO(_decoded(text) or b"")).convert("RGB"))
    except Exception:  # decoders raise a dozen different kinds on broken bytes
        report(file, "imageData", "is no image in base64 that can be decoded")
        return None


def _decoded(text):
    """The bytes of base64, or None."""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        return None
