"""VGG Image Annotator json: one file a set (Dutta and Zisserman 2019, arXiv 1904.10699; robots.ox.ac.uk/~vgg/software/via).

    {KEY: {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "polygon", ...}, "region_attributes": {"class": "nut"}}]}}

A saved project has this under "_via_img_metadata". Regions are a list in VIA 2, a dict {"0": ...} in VIA 1.
"""

from functools import partial
from pathlib import Path

from ..errors import ConfigError
from .coco import annotation_file
from .faults import NUMBER, TEXT, describe, is_number, lacks, refuse
from .files import read_json, readable_image
from .outlines import ellipse_mask, polygons_mask
from .regions import RegionSource

DICT = lambda v: isinstance(v, dict), "an object in {}"  # noqa: E731
NUMBERS = lambda v: isinstance(v, list) and all(map(is_number, v)), "a list of numbers"  # noqa: E731
USUAL = ("class", "label", "name", "type", "category")


class Via(RegionSource):
    """The source "via:FILE.json", also "via:FOLDER" with one json in it.

    Parameters
    ----------
    path : file, or folder
    images : folder of the images, optional
        The json's own by default.
    attribute : str, optional
        The region attribute that holds the class. By default the only one there is, or else the first of class, label, name, type,
        category. Without any, all regions are of the class "object".
    report : see FileSource
    """

    def __init__(self, path, images=None, attribute=None, report=refuse):
        super().__init__(report)
        self.path = annotation_file(Path(path))
        self.folder = Path(images) if images else self.path.parent
        self.entries = []  # (file name, [(entry for messages, region)])
        data = read_json(self.path, report)
        if isinstance(data, dict):
            data = data.get("_via_img_metadata", data)
        if data is not None and not isinstance(data, dict):
            report(self.path, "", f"is {describe(data)}; an object with a key for each image is needed")
        names = set()
        for key, image in (data if isinstance(data, dict) else {}).items():
            if lacks(image, {"filename": TEXT, "regions": (lambda v: isinstance(v, (list, dict)), "a list or an object")},
                     partial(report, self.path, repr(key))):
                continue
            if image["filename"] in names:
                report(self.path, repr(key), f"the file {image['filename']!r} is already that of another entry")
            names.add(image["filename"])
            self.entries.append((image["filename"], self._regions(key, image["regions"])))
        self.attribute = attribute or self._find_attribute()
        self.set_classes(self.path.parent, {self._class(region) for _, regions in self.entries for _, region in regions} - {""})

    def _regions(self, key, regions):
        pairs = regions.items() if isinstance(regions, dict) else enumerate(regions)
        usable = []
        for k, region in pairs:
            entry = f"{key!r} regions[{k}]"
            if not lacks(region, {"shape_attributes": DICT}, partial(self.report, self.path, entry)):
                usable.append((entry, region))
        return usable

    def _find_attribute(self):
        found = {name for _, regions in self.entries for _, region in regions for name in _attributes(region)}
        if len(found) <= 1:
            return found.pop() if found else None
        for name in USUAL:
            if name in found:
                return name
        raise ConfigError(f"{self.path}: regions have the attributes {', '.join(sorted(found))}; say which is the class, "
                          f"as in via:{self.path.name},attribute={sorted(found)[0]}")

    def _class(self, region):
        """The name of a region's class, "" where it has none."""
        if self.attribute is None:
            return "object"
        value = _attributes(region).get(self.attribute)
        if isinstance(value, dict):  # check boxes: {"nut": true}
            chosen = [name for name, checked in value.items() if checked]
            value = chosen[0] if len(chosen) == 1 else ""
        return value.strip() if isinstance(value, str) else ""

    def __len__(self):
        return len(self.entries)

    def name(self, i):
        return self.entries[i][0]

    def annotation_files(self):
        return [self.path]

    def image(self, i):
        """Image i, (H, W, 3) uint8, or None after a report."""
        return readable_image(self.folder / self.entries[i][0], self.report, f"; where the images lie elsewhere, write "
                              f"via:{self.path.name},images=FOLDER")

    def target(self, i, shape):
        """The objects of image i, whose (height, width) is `shape`; VIA states no size, so without it the target is None."""
        return shape and self.objects(i, self.path, self._masks(i, tuple(shape)), tuple(shape))

    def _masks(self, i, shape):
        for entry, region in self.entries[i][1]:
            complain, name = partial(self.report, self.path, entry), self._class(region)
            if name:
                yield entry, name, region_mask(region["shape_attributes"], shape, complain), False
            else:
                complain(f"has no class: its attribute {self.attribute!r} is not one name")


def _attributes(region):
    attributes = region.get("region_attributes")
    return attributes if isinstance(attributes, dict) else {}


def region_mask(attributes, shape, complain):
    """The mask of a region's "shape_attributes", or None after a complaint. shape is (height, width)."""
    kind = attributes.get("name")
    numbers = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    if kind in ("polygon", "polyline"):
        if lacks(attributes, {"all_points_x": NUMBERS, "all_points_y": NUMBERS}, complain):
            return None
        xs, ys = attributes["all_points_x"], attributes["all_points_y"]
        if len(xs) != len(ys):
            complain(f"has {len(xs)} x and {len(ys)} y")
            return None
        return polygons_mask([[v for point in zip(xs, ys) for v in point]], shape, complain)
    if kind == "point":
        complain("a point has no area; it is left out", stops=False)
        return None
    if not isinstance(kind, str) or kind not in numbers:
        complain(f"the shape {describe(kind)} is not known")
        return None
    if lacks(attributes, dict.fromkeys(numbers[kind], NUMBER), complain):
        return None
    values = [attributes[name] for name in numbers[kind]]
    if kind == "rect":
        x, y, w, h = values
        if w <= 0 or h <= 0:
            complain(f"a rect is {w} wide and {h} high; both must be above 0")
            return None
        return polygons_mask([[x, y, x + w, y, x + w, y + h, x, y + h]], shape, complain)
    x, y, *radii = values
    theta = attributes.get("theta", 0)  # radians; VIA draws with the canvas's ellipse(), y down
    return ellipse_mask(x, y, radii[0], radii[-1], theta if is_number(theta) else 0.0, shape, complain)
