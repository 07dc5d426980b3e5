"""Boxes and masks from what annotation files hold: polygons, run lengths, circles, and the checks of each.

`complain(problem, stops=True)` is called where something is wrong: a report (see faults.py) that knows file and entry already.
Masks are (H, W) uint8 of 0 and 1; polygons and run lengths become masks through pycocotools, so that they are COCO's to the pixel.
"""

import numpy as np

from .faults import describe, is_integer, is_number

SLACK = 1.0  # pixels that a box or a point may lie outside without a word: rounding, and the width of an outline
LARGEST = 2 * (1024 ** 3 // 4 // 3)  # pixels: twice PIL.Image.MAX_IMAGE_PIXELS, where it stops in any case


def unreadable_size(shape, complain):
    """True, after complaining, for a stated (height, width) above the largest image that Pillow agrees to decode.

    A set whose images are missing is checked by the sizes that its files state: a mask is as large as they say.
    """
    if shape[0] * shape[1] > LARGEST:
        complain(f"states an image of {shape[1]}x{shape[0]}; none above {LARGEST} pixels is read")
    return shape[0] * shape[1] > LARGEST


def usable_box(box, shape, complain):
    """A box clipped to the image as torchvision's COCO reference does it, or None where it cannot be used.

    Parameters
    ----------
    box : (x1, y1, x2, y2), numbers
    shape : (height, width)
    complain : callable(problem, stops)

    Returns
    -------
    (4,) float32, x2 > x1 and y2 > y1, inside the image; or None
    """
    box = np.array(box, np.float32)
    height, width = shape
    limit = np.array([width, height, width, height], np.float32)
    text = "the box x1, y1, x2, y2 = " + ", ".join(f"{v:.6g}" for v in box)
    x1, y1, x2, y2 = box
    if not np.isfinite(box).all():
        complain(f"{text} is not finite")
    elif x2 < x1 or y2 < y1:
        complain(f"{text} has a negative {'width' if x2 < x1 else 'height'}")
    elif x2 == x1 or y2 == y1:
        complain(f"{text} has no area; the object is left out", stops=False)
    elif x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        complain(f"{text} lies outside of the image, which is {width} wide and {height} high")
    else:
        if (box < -SLACK).any() or (box > limit + SLACK).any():
            complain(f"{text} leaves the image, which is {width} wide and {height} high; it is clipped", stops=False)
        return np.clip(box, 0, limit)
    return None


def outline_mask(outline, shape):
    """The mask of polygons, or of run lengths that are a list, which usable_polygons or usable_rle has passed."""
    from pycocotools import mask as coco
    packed = coco.frPyObjects(outline, *shape)
    return coco.decode(coco.merge(packed) if isinstance(outline, list) else packed)


def polygons_mask(polygons, shape, complain):
    """The mask of an object with one or more polygons, or None where one cannot be used; see usable_polygons."""
    usable = usable_polygons(polygons, shape, complain)
    return None if usable is None else outline_mask(usable, shape)


def usable_polygons(polygons, shape, complain):
    """The polygons themselves, or None, after a complaint, where one cannot be used. Nothing is drawn.

    Parameters
    ----------
    polygons : list of flat lists x1, y1, x2, y2, ... in pixels, three points or more each
    shape : (height, width)
    complain : callable(problem, stops)
    """
    height, width = shape
    if not isinstance(polygons, list) or not polygons:
        complain(f"the polygons are {describe(polygons)}; a list of lists of numbers is needed")
        return None
    for points in polygons:
        if not isinstance(points, list) or not all(map(is_number, points)):
            complain(f"a polygon is {describe(points)}; a list of numbers is needed")
            return None
        if len(points) % 2:
            complain(f"a polygon has {len(points)} numbers; x and y in turn make an even count")
            return None
        if len(points) < 6:
            complain(f"a polygon has {len(points) // 2} points; it takes three to have an area")
            return None
        xy = np.array(points, float).reshape(-1, 2)
        if not np.isfinite(xy).all():
            complain(f"a polygon has the point {tuple(xy[~np.isfinite(xy).all(axis=1)][0].tolist())}, which is not finite")
            return None
        size = np.array([width, height])
        if (xy < -size).any() or (xy > 2 * size).any():  # pycocotools walks along every outline, wherever it leads
            complain(f"a polygon reaches to {xy[np.abs(xy - size / 2).max(axis=1).argmax()].tolist()}, far outside of the image, "
                     f"which is {width} wide and {height} high")
            return None
        if (xy < -SLACK).any() or (xy > size + SLACK).any():
            complain(f"a polygon leaves the image, which is {width} wide and {height} high; it is clipped", stops=False)
    return polygons


def rle_mask(rle, shape, complain):
    """The mask of COCO's run lengths, or None where they cannot be used; see usable_rle."""
    usable = usable_rle(rle, shape, complain)
    return None if usable is None else outline_mask(usable, shape)


def usable_rle(rle, shape, complain):
    """COCO's run lengths with counts as a list, or None, after a complaint, where they cannot be used. Nothing is decoded.

    rle: {"size": [height, width], "counts": ...}; counts are a list of integers, or the text that COCO compresses them to.
    Runs of 0 and 1 in turn, down the columns.
    """
    height, width = shape
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        complain(f"the run lengths are for the size {describe(size)}, the image's is [{height}, {width}]")
        return None
    if isinstance(counts, list) and all(map(is_integer, counts)):
        runs = counts
    elif isinstance(counts, str):
        runs = _uncompressed(counts)
    else:
        runs = None
    if runs is None or min(runs, default=0) < 0:
        complain(f"the run lengths are {describe(counts)}; integers of at least 0, or their compressed text, are needed")
        return None
    if sum(runs) != height * width:
        complain(f"the run lengths cover {sum(runs)} pixels, the image has {height * width}")
        return None
    return {"size": size, "counts": runs}


def _uncompressed(text):
    """The integers of COCO's compressed text (rleFrString in maskApi.c), or None if it is not one.

    Five bits a character, the lowest first, code 48 + bits; 32 says that more follow. From the fourth on, a number
    is the difference to the last but one.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs if shift == 0 else None


def ellipse_mask(x, y, rx, ry, angle, shape, complain):
    """The pixels whose centres lie in an ellipse, (H, W), or None after a complaint.

    Parameters
    ----------
    x, y : centre
    rx, ry : half axes
    angle : radians, clockwise on the screen
    shape : (height, width)
    complain : callable(problem, stops)
    """
    if not np.isfinite([x, y, rx, ry, angle]).all():
        complain(f"an ellipse has the numbers {x}, {y}, {rx}, {ry}, {angle}, which are not all finite")
        return None
    if rx <= 0 or ry <= 0:
        complain(f"an ellipse has the radii {rx} and {ry}; they must be above 0")
        return None
    rows, columns = np.mgrid[:shape[0], :shape[1]] + 0.5
    dx, dy = columns - x, rows - y
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return ((along / rx) ** 2 + (across / ry) ** 2 <= 1).astype(np.uint8)


def mask_box(mask):
    """The tight box of a mask, (x1, y1, x2, y2) with x2 = last column + 1, or None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
