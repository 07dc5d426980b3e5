"""Tiny sound data sets, one for each format, written into a folder of the test's. Two images, 40 wide and 30 high."""

import base64
import io
import json

import numpy as np
from PIL import Image

W, H = 40, 30
BLOCK = (5, 4, 15, 12)  # x1, y1, x2, y2 of an object that is a rectangle of whole pixels


def write_image(path, size=(W, H), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_numbers(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)


def block_mask(box=BLOCK, shape=(H, W)):
    mask = np.zeros(shape, np.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    return mask


def outline(box=BLOCK):
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def runs(mask):
    """Uncompressed run lengths, down the columns."""
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def coco(folder):
    """Ids with gaps, polygons, both kinds of run lengths, a crowd."""
    from pycocotools import mask as rle

    other = (20, 10, 36, 25)
    compressed = rle.encode(np.asfortranarray(block_mask(other)))

    def annotation(number, image, category, box, segmentation, crowd=0):
        x1, y1, x2, y2 = box
        return {"id": number, "image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1), "iscrowd": crowd, "segmentation": segmentation}

    for name in ("a.png", "b.png"):
        write_image(folder / "images" / name)
    write_json(folder / "set.json", {
        "images": [{"id": 11, "file_name": "a.png", "width": W, "height": H}, {"id": 7, "file_name": "b.png", "width": W, "height": H}],
        "categories": [{"id": 9, "name": "nut"}, {"id": 4, "name": "fig"}],
        "annotations": [
            annotation(1, 11, 9, BLOCK, [outline()]),
            annotation(5, 11, 4, other, {"size": [H, W], "counts": compressed["counts"].decode()}),
            annotation(6, 7, 4, BLOCK, runs(block_mask()), crowd=1),
            annotation(8, 7, 9, other, [outline((20, 10, 36, 15)), outline((20, 15, 30, 25))]),
        ]})
    return f"coco:{folder / 'set.json'}"


def labels(folder):
    numbers = np.zeros((H, W), np.uint16)
    numbers[block_mask() > 0] = 300
    numbers[20:25, 30:38] = 2
    for name in ("a", "b"):
        write_image(folder / "images" / f"{name}.png")
        write_numbers(folder / "labels" / f"{name}.png", numbers)
    return f"labels:{folder}"


def masks(folder):
    for name in ("a", "b"):
        write_image(folder / name / "images" / f"{name}.png")
        write_numbers(folder / name / "masks" / "1.png", block_mask() * 255)
        write_numbers(folder / name / "masks" / "2.png", block_mask((20, 10, 36, 25)) * 255)
    return f"masks:{folder}"


XML = """<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>6</xmin><ymin>5</ymin><xmax>15</xmax><ymax>12</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>36</xmax><ymax>25</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>
</annotation>"""


def voc(folder):
    numbers, classes = np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)
    numbers[9:27, 19:38] = classes[9:27, 19:38] = 255  # void around the second
    for number, label, box in ((1, 12, BLOCK), (2, 8, (20, 10, 36, 25))):  # 12 dog, 8 cat
        numbers[block_mask(box) > 0], classes[block_mask(box) > 0] = number, label
    for name in ("a", "b"):
        write_image(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(XML.format(name=name))
        write_numbers(folder / "SegmentationObject" / f"{name}.png", numbers)
        write_numbers(folder / "SegmentationClass" / f"{name}.png", classes)
    return f"voc:{folder}"


def png_base64(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def labelme(folder):
    """The first image lies beside its json, the second in it."""
    def shape(label, points, kind="polygon", group=None, **more):
        return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}, **more}

    pairs = np.reshape(outline(), (4, 2)).tolist()
    write_image(folder / "a.png")
    write_json(folder / "a.json", {"version": "4.0.0", "imagePath": "a.png", "imageData": None, "imageHeight": H, "imageWidth": W, "shapes": [
        shape("nut", pairs), shape("fig", [[20, 10], [30, 20]], "rectangle", group=0), shape("fig", [[30, 20], [36, 25]], "rectangle", group=0),
        shape("__ignore__", pairs), shape("nut", [[30, 6], [34, 6]], "circle"),
        shape("fig", [[1, 20], [8, 27]], "mask", mask=png_base64(np.full((8, 8), True)))]})
    write_json(folder / "b.json", {"version": "4.0.0", "imagePath": "b.json", "imageData": png_base64(np.zeros((H, W, 3), np.uint8)),
                                   "imageHeight": H, "imageWidth": W, "shapes": [shape("nut", pairs)]})
    return f"labelme:{folder}"


def via(folder):
    """Regions as a list and as a dict."""
    def region(cls, **shape):
        return {"shape_attributes": shape, "region_attributes": {"class": cls}}

    polygon = {"name": "polygon", "all_points_x": outline()[::2], "all_points_y": outline()[1::2]}
    for name in ("a.png", "b.png"):
        write_image(folder / name)
    write_json(folder / "via.json", {"_via_settings": {}, "_via_img_metadata": {
        "a.png123": {"filename": "a.png", "size": 123, "file_attributes": {}, "regions": [
            region("nut", **polygon), region("fig", name="rect", x=20, y=10, width=16, height=15),
            region("fig", name="circle", cx=30, cy=6, r=4)]},
        "b.png123": {"filename": "b.png", "size": 123, "file_attributes": {}, "regions": {
            "0": region("nut", **polygon), "1": region("fig", name="ellipse", cx=28, cy=18, rx=9, ry=4, theta=0.5)}}}})
    return f"via:{folder / 'via.json'}"


def folder(folder):
    for name in ("a.png", "b.jpg"):
        write_image(folder / name)
    return f"folder:{folder}"


MAKE = {"coco": coco, "labels": labels, "masks": masks, "voc": voc, "labelme": labelme, "via": via, "folder": folder}
