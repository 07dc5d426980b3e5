"""Planted faults: each, in an otherwise sound set, is found alone, with its file and its entry; and a training stops there or goes on as told."""

import json
import re
import shutil

import numpy as np
import pytest
from tiny_sets import MAKE, H, W, block_mask, write_image, write_json, write_numbers

from nprcnn.data import check_target, drop_crowds, open_source
from nprcnn.data.check import check_set
from nprcnn.errors import DataError

NAN, FAR = float("nan"), 1e12


def edit(file, *path_and_change):
    """Plants a change in a JSON file: edit("set.json", "annotations", 0, "bbox", new), or a function of the old value as the last."""
    *path, key, new = path_and_change

    def plant(folder):
        data = json.loads((folder / file).read_text())
        place = data
        for step in path:
            place = place[step]
        if new is REMOVED:
            del place[key]
        else:
            place[key] = new(place[key]) if callable(new) else new
        write_json(folder / file, data)
    return plant


def text(file, old, new):
    def plant(folder):
        before = (folder / file).read_text()
        assert old in before
        (folder / file).write_text(before.replace(old, new, 1))
    return plant


def remove(file):
    return lambda folder: shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()


def truncate(file):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:200])


def numbers(file, array):
    return lambda folder: write_numbers(folder / file, array)


def resized(file, size=(W + 2, H), mode="RGB"):
    return lambda folder: write_image(folder / file, size, mode)


def twice(k, **changes):
    """The list with a changed copy of its k-th entry at the end."""
    return lambda entries: [*entries, {**entries[k], **changes}]


def ann(k, key, new):
    return edit("set.json", "annotations", k, key, new)


def shape(k, key, new):
    return edit("a.json", "shapes", k, key, new)


def region(key, new, k=0):
    return edit("via.json", "_via_img_metadata", "a.png123", "regions", k, "shape_attributes", key, new)


def in_turn(*done):
    """Several plants in one lambda: the arguments are done from left to right."""


REMOVED = object()
A, STOPS, GOES_ON = "annotations[0] (id 1)", True, False

# kind, what is planted, the file that is named, the entry that is named, what the message says, whether a training stops
FAULTS = [
    ("coco", text("set.json", '"images"', '"images'), "set.json", "", "is not JSON", STOPS),
    ("coco", lambda folder: (folder / "set.json").write_bytes(b"\xff\xfe{}"), "set.json", "", "is not JSON", STOPS),
    ("coco", lambda folder: (folder / "set.json").write_text("[" * 100_000), "set.json", "", "is not JSON", STOPS),
    ("coco", edit("set.json", "categories", REMOVED), "set.json", "", "the key 'categories' is missing", STOPS),
    ("coco", lambda folder: write_json(folder / "set.json", [{"image_id": 1, "score": 0.5}]), "set.json", "", "is list .*an object", STOPS),
    ("coco", edit("set.json", "images", {}), "set.json", "", "'images' is dict.*a list is needed", STOPS),
    ("coco", edit("set.json", "categories", twice(0, name="other")), "set.json", "categories[2]", "the id 9 is already that of 'nut'", STOPS),
    ("coco", edit("set.json", "categories", twice(0, id=10)), "set.json", "categories[2]", "the name 'nut' is already", STOPS),
    ("coco", edit("set.json", "images", twice(0, file_name="images/a.png")), "set.json", "images[2]", "the id 11 is that of an earlier", STOPS),
    ("coco", edit("set.json", "images", twice(0, id=12)), "set.json", "images[2]", "'a.png' is already that of image 11", STOPS),
    ("coco", edit("set.json", "images", lambda images: [*images, {**images[0], "id": 12, "file_name": "c.png", "width": "40"}]),
     "set.json", "images[2]", "'width' is str '40'; an integer above 0", STOPS),
    ("coco", edit("set.json", "images", lambda images: [*images, {"id": 12, "width": 9, "height": 9}]), "set.json", "images[2]",
     "the key 'file_name' is missing", STOPS),
    ("coco", resized("images/a.png"), "images/a.png", "image 11", "is 42x30, set.json says 40x30", STOPS),
    ("coco", remove("images/b.png"), "images/b.png", "", "is not there.*images=FOLDER", STOPS),
    ("coco", truncate("images/b.png"), "images/b.png", "", "damaged or truncated", STOPS),
    ("coco", lambda folder: (folder / "images/b.png").write_bytes(b""), "images/b.png", "", "empty", STOPS),
    ("coco", lambda folder: (folder / "images/b.png").write_text("hello"), "images/b.png", "", "not an image", STOPS),
    ("coco", edit("set.json", "annotations", twice(0)), "set.json", "annotations[4] (id 1)", "an earlier annotation has the same id", STOPS),
    ("coco", ann(0, "image_id", 99), "set.json", A, "of the image 99, which is not in the list", STOPS),
    ("coco", ann(0, "category_id", 5), "set.json", A, "of the category 5, which is not in the list", STOPS),
    ("coco", ann(0, "category_id", True), "set.json", A, "'category_id' is bool True", STOPS),
    ("coco", ann(0, "iscrowd", 2), "set.json", A, "'iscrowd' is int 2", STOPS),
    ("coco", ann(0, "id", REMOVED), "set.json", "annotations[0]", "the key 'id' is missing", STOPS),
    ("coco", ann(0, "bbox", REMOVED), "set.json", A, "the key 'bbox' is missing", STOPS),
    ("coco", ann(0, "bbox", [1, 2, 3]), "set.json", A, "four numbers", STOPS),
    ("coco", ann(0, "bbox", [NAN, 4, 10, 8]), "set.json", A, "not finite", STOPS),
    ("coco", ann(0, "bbox", [5, 4, -10, 8]), "set.json", A, "negative width", STOPS),
    ("coco", ann(0, "bbox", [5, 4, 10, 0]), "set.json", A, "no area; the object is left out", GOES_ON),
    ("coco", ann(0, "bbox", [50, 4, 10, 8]), "set.json", A, "outside of the image, which is 40 wide and 30 high", STOPS),
    ("coco", ann(0, "bbox", [35, 4, 10, 8]), "set.json", A, "leaves the image.*clipped", GOES_ON),
    ("coco", ann(0, "segmentation", REMOVED), "set.json", A, "the key 'segmentation' is missing", STOPS),
    ("coco", ann(0, "segmentation", []), "set.json", A, "'segmentation' is list", STOPS),
    ("coco", ann(0, "segmentation", [[5, 4, 15, 4]]), "set.json", A, "2 points; it takes three", STOPS),
    ("coco", ann(0, "segmentation", [[5, 4, 15, 4, 9, 12, 3]]), "set.json", A, "7 numbers.*even", STOPS),
    ("coco", ann(0, "segmentation", [[5, 4, 15, 4, "9", 12]]), "set.json", A, "a polygon is list.*numbers", STOPS),
    ("coco", ann(0, "segmentation", [[5, 4, 15, NAN, 9, 12]]), "set.json", A, "which is not finite", STOPS),
    ("coco", ann(0, "segmentation", [[5, 4, FAR, 4, 9, 12]]), "set.json", A, "far outside", STOPS),
    ("coco", ann(0, "segmentation", [[35, 4, 45, 4, 45, 12, 35, 12]]), "set.json", A, "a polygon leaves.*clipped", GOES_ON),
    ("coco", ann(0, "segmentation", [[5.1, 4, 5.2, 4, 5.2, 4.1]]), "set.json", A, "the mask is empty; the object stays", GOES_ON),
    ("coco", ann(2, "segmentation", {"size": [H, W], "counts": [H * W]}), "set.json", "annotations[2] (id 6)", "the mask is empty", GOES_ON),
    ("coco", ann(2, "segmentation", {"size": [H, W], "counts": [500, 20]}), "set.json", "annotations[2] (id 6)", "cover 520 pixels.*1200", STOPS),
    ("coco", ann(2, "segmentation", {"size": [W, H], "counts": [1100, 100]}), "set.json", "annotations[2] (id 6)", r"\[40, 30\].*\[30, 40\]", STOPS),
    ("coco", ann(2, "segmentation", {"size": [H, W], "counts": [1300, -100]}), "set.json", "annotations[2] (id 6)", "of at least 0", STOPS),
    ("coco", ann(1, "segmentation", {"size": [H, W], "counts": "0123"}), "set.json", "annotations[1] (id 5)", "cover .* pixels", STOPS),
    ("coco", ann(1, "segmentation", {"size": [H, W], "counts": "~\x00"}), "set.json", "annotations[1] (id 5)", "compressed text", STOPS),

    ("labels", remove("labels/a.png"), "images/a.png", "", "no label image a.png", STOPS),
    ("labels", remove("images/a.png"), "labels/a.png", "", "no image of this name", GOES_ON),
    ("labels", numbers("labels/a.png", np.ones((H, W + 1), np.uint16)), "labels/a.png", "", "is 41x30, its image 40x30", STOPS),
    ("labels", resized("labels/a.png", (W, H), "RGB"), "labels/a.png", "", "of the kind RGB; one channel", STOPS),
    ("labels", lambda folder: in_turn(remove("labels/a.png")(folder), numbers("labels/a.tif", np.ones((H, W), np.float32))(folder)),
     "labels/a.tif", "", "of the kind F; one channel of integers", STOPS),
    ("labels", truncate("images/a.png"), "images/a.png", "", "damaged or truncated", STOPS),
    ("labels", lambda folder: (folder / "labels/a.png").write_bytes(b"\x89PNG"), "labels/a.png", "", "cannot be read as an image", STOPS),
    ("labels", resized("images/a.jpg", (W, H)), "images/a.png", "", "same name as a.jpg", STOPS),
    ("labels", lambda folder: (folder / "classes.txt").write_text("a\nb\n"), "classes.txt", "", "names 2 classes", STOPS),

    ("masks", numbers("a/masks/1.png", np.zeros((H, W), np.uint8)), "a/masks/1.png", "", "the mask is empty", STOPS),
    ("masks", numbers("a/masks/2.png", block_mask(shape=(H, W + 1))), "a/masks/2.png", "", "is 41x30, its image 40x30", STOPS),
    ("masks", resized("a/masks/1.png", (W, H), "RGB"), "a/masks/1.png", "", "of the kind RGB", STOPS),
    ("masks", remove("a/images/a.png"), "a/images", "", "holds 0 images; one is needed", STOPS),
    ("masks", resized("a/images/c.png"), "a/images", "", "holds 2 images", STOPS),
    ("masks", remove("a/masks"), "a", "", "has no folder 'masks'", STOPS),

    ("voc", remove("JPEGImages/a.jpg"), "Annotations/a.xml", "", "no image a in JPEGImages", STOPS),
    ("voc", remove("SegmentationObject/a.png"), "SegmentationObject/a.png", "", "cannot be read as an image", STOPS),
    ("voc", lambda folder: in_turn((folder / "ImageSets/Segmentation").mkdir(parents=True),
                                   (folder / "ImageSets/Segmentation/trainval.txt").write_text("a\nc\n")),
     "Annotations/c.xml", "", "is not there", STOPS),
    ("voc", text("Annotations/a.xml", "</annotation>", ""), "Annotations/a.xml", "", "is not XML", STOPS),
    ("voc", text("Annotations/a.xml", "<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'), "Annotations/a.xml", "", "DOCTYPE", STOPS),
    ("voc", text("Annotations/a.xml", "<width>40", "<width>41"), "Annotations/a.xml", "size", "says 41x30, the image is 40x30", STOPS),
    ("voc", text("Annotations/a.xml", "<width>40</width>", ""), "Annotations/a.xml", "size", "has no <width>", STOPS),
    ("voc", text("Annotations/a.xml", "<name>dog</name>", ""), "Annotations/a.xml", "object 1", "has no <name>", STOPS),
    ("voc", text("Annotations/a.xml", "<xmax>15</xmax>", ""), "Annotations/a.xml", "object 1 (dog)", "has no <xmax>", STOPS),
    ("voc", text("Annotations/a.xml", "<xmax>15", "<xmax>wide"), "Annotations/a.xml", "object 1 (dog)", "<xmax> is 'wide'", STOPS),
    ("voc", text("Annotations/a.xml", "<xmax>15", "<xmax>nan"), "Annotations/a.xml", "object 1 (dog)", "not finite", STOPS),
    ("voc", text("Annotations/a.xml", "<xmin>6", "<xmin>26"), "Annotations/a.xml", "object 1 (dog)", "negative width", STOPS),
    ("voc", numbers("SegmentationObject/a.png", np.zeros((H, W + 1), np.uint8)), "SegmentationObject/a.png", "", "41x30", STOPS),
    ("voc", numbers("SegmentationObject/a.png", block_mask((20, 10, 36, 25)) * 2), "Annotations/a.xml", "object 1 (dog)",
     "no object of a.png has its box", GOES_ON),
    ("voc", numbers("SegmentationClass/a.png", block_mask() * 8 + block_mask((20, 10, 36, 25)) * 8), "SegmentationObject/a.png", "object 1",
     "is 'cat' in SegmentationClass, 'dog' in the XML", STOPS),

    ("labelme", text("a.json", '"shapes"', '"shapes'), "a.json", "", "is not JSON", STOPS),
    ("labelme", edit("a.json", "shapes", REMOVED), "a.json", "", "the key 'shapes' is missing", STOPS),
    ("labelme", remove("a.png"), "a.png", "", "is not there", STOPS),
    ("labelme", edit("a.json", "imageWidth", 41), "a.json", "", "41x30, the image is 40x30", STOPS),
    ("labelme", edit("b.json", "imageData", "AAAA"), "b.json", "imageData", "no image in base64", STOPS),
    ("labelme", lambda folder: shutil.copy(folder / "a.json", folder / "c.json"), "c.json", "imagePath", "already the image of a.json", STOPS),
    ("labelme", shape(0, "points", [[1, 2], [3, 4]]), "a.json", "shapes[0] (nut)", "2 points; it takes three", STOPS),
    ("labelme", shape(0, "points", [[1, 2], [3, 4], [5]]), "a.json", "shapes[0] (nut)", "not all pairs", STOPS),
    ("labelme", shape(0, "points", [[1, NAN], [3, 4], [5, 9]]), "a.json", "shapes[0] (nut)", "not finite", STOPS),
    ("labelme", shape(0, "label", REMOVED), "a.json", "shapes[0]", "the key 'label' is missing", STOPS),
    ("labelme", shape(0, "shape_type", "line"), "a.json", "shapes[0] (nut)", "a line has no area", GOES_ON),
    ("labelme", shape(0, "shape_type", "spline"), "a.json", "shapes[0] (nut)", "str 'spline' is not known", STOPS),
    ("labelme", shape(4, "points", [[30, 6], [30, 6]]), "a.json", "shapes[4] (nut)", "radii", STOPS),
    ("labelme", shape(5, "mask", "not a png"), "a.json", "shapes[5] (fig)", "no PNG", STOPS),
    ("labelme", shape(5, "points", [[35, 20], [42, 27]]), "a.json", "shapes[5] (fig)", "leaves the image", STOPS),
    ("labelme", lambda folder: in_turn((folder / "classes.txt").write_text("nut\nfigs\n"), edit("a.json", "shapes", lambda s: s[:3])(folder)),
     "a.json", "shapes[1] (fig)", "class 'fig', which classes.txt does not name", STOPS),

    ("via", text("via.json", '"regions"', '"regions'), "via.json", "", "is not JSON", STOPS),
    ("via", edit("via.json", "_via_img_metadata", "a.png123", "regions", REMOVED), "via.json", "'a.png123'", "'regions' is missing", STOPS),
    ("via", remove("a.png"), "a.png", "", "is not there", STOPS),
    ("via", edit("via.json", "_via_img_metadata", lambda m: {**m, "c": m["a.png123"]}), "via.json", "'c'", "already that of another", STOPS),
    ("via", region("all_points_y", [1, 2, 3]), "via.json", "'a.png123' regions[0]", "4 x and 3 y", STOPS),
    ("via", region("all_points_x", REMOVED), "via.json", "'a.png123' regions[0]", "'all_points_x' is missing", STOPS),
    ("via", region("name", "blob"), "via.json", "'a.png123' regions[0]", "str 'blob' is not known", STOPS),
    ("via", region("width", -5, k=1), "via.json", "'a.png123' regions[1]", "-5 wide", STOPS),
    ("via", region("r", 0, k=2), "via.json", "'a.png123' regions[2]", "radii", STOPS),
    ("via", edit("via.json", "_via_img_metadata", "b.png123", "regions", "1", "region_attributes", "class", " "), "via.json",
     "'b.png123' regions[1]", "has no class", STOPS),

    ("folder", truncate("a.png"), "a.png", "", "damaged or truncated", STOPS),
]


def read_all(spec):
    """What training does with a set: open it, read every image, check what will be learnt from."""
    source = open_source(spec)
    for i, (image, target) in enumerate(source):
        if "boxes" in target:
            check_target(image.shape[:2], drop_crowds(target), len(source.class_names), i)


def test_there_are_enough():
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("kind", MAKE)
def test_sound_sets_have_none(kind, tmp_path):
    spec = MAKE[kind](tmp_path)
    assert check_set(spec, progress=False).faults == []
    read_all(spec)


@pytest.mark.parametrize("kind, plant, file, entry, says, stops", FAULTS,
                         ids=[f"{k}-{kind}-{says[:30]}" for k, (kind, _, _, _, says, _) in enumerate(FAULTS)])
def test_a_planted_fault_is_found(kind, plant, file, entry, says, stops, tmp_path):
    spec = MAKE[kind](tmp_path)
    plant(tmp_path)
    faults = check_set(spec, progress=False).faults
    assert len(faults) == 1, "\n".join(map(str, faults))
    (fault,) = faults
    assert fault.file == str(tmp_path / file) and fault.entry == entry and fault.stops == stops
    assert re.search(says, fault.problem), fault.problem
    if stops:
        with pytest.raises(DataError) as caught:
            read_all(spec)
        assert str(caught.value).startswith(str(fault))  # file, entry and problem, as the check has them
    else:
        read_all(spec)


def test_all_faults_of_a_set_are_found(tmp_path):
    spec = MAKE["coco"](tmp_path)
    ann(0, "bbox", [NAN, 4, 10, 8])(tmp_path)
    ann(1, "category_id", 5)(tmp_path)
    ann(2, "segmentation", [[1, 2]])(tmp_path)
    remove("images/b.png")(tmp_path)
    found = {(fault.file.rsplit("/", 1)[-1], fault.entry) for fault in check_set(spec, progress=False).faults}
    assert found == {("set.json", A), ("set.json", "annotations[1] (id 5)"), ("set.json", "annotations[2] (id 6)"), ("b.png", "")}


def test_an_empty_set_is_a_fault(tmp_path):
    (fault,) = check_set(f"folder:{tmp_path}", progress=False).faults
    assert "no images" in fault.problem


def test_entities_are_not_expanded(tmp_path):
    """A billion laughs: the file is refused at its DOCTYPE, before an entity is seen."""
    spec = MAKE["voc"](tmp_path)
    entities = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10 if k else "ha"}">' for k in range(10))
    for encoding in ("utf-8", "utf-16"):
        document = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation [{entities}]><annotation>&a9;</annotation>'
        (tmp_path / "Annotations" / "a.xml").write_bytes(document.encode(encoding))
        with pytest.raises(DataError, match="a.xml.*DOCTYPE"):
            open_source(spec)
