"""Augmentation: changes of a picture that move its boxes and masks along.

Each function takes an image (H, W, 3) uint8 and its target and returns new ones; what it is given is never written to. In a target
every array has a row an object: "boxes" (n, 4), "labels" (n,), and where the source has them "masks" (n, H, W) and "iscrowd" (n,).
Anything else in it, such as "image_id", is carried along.

Column c of the image covers the continuous coordinates c to c + 1, so a box that ends at the right edge has x2 = W.
"""

import math
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError

FILL = (124, 116, 104)  # ImageNet's mean colour: near 0 once it is normalised, like the padding of a batch
LUMA = (0.299, 0.587, 0.114)  # of R, G, B: how bright the eye finds them (ITU-R BT.601)


# ---- what moves pixels: exact

def flip_horizontal(image, target):
    """Left becomes right. Boxes are mirrored exactly: x1, x2 = W - x2, W - x1."""
    x1, y1, x2, y2 = target["boxes"].T
    width = image.shape[1]
    boxes = np.stack([width - x2, y1, width - x1, y2], axis=1)
    return image[:, ::-1].copy(), _moved(target, boxes, lambda masks: masks[:, :, ::-1])


def flip_vertical(image, target):
    """Top becomes bottom. Boxes are mirrored exactly: y1, y2 = H - y2, H - y1."""
    x1, y1, x2, y2 = target["boxes"].T
    height = image.shape[0]
    boxes = np.stack([x1, height - y2, x2, height - y1], axis=1)
    return image[::-1].copy(), _moved(target, boxes, lambda masks: masks[:, ::-1])


def quarter_turn(image, target, turns=1):
    """Turn by `turns` times 90 degrees, counter-clockwise. For pictures without an up and down, such as those of a microscope."""
    boxes, width = target["boxes"], image.shape[1]
    height = image.shape[0]
    for _ in range(turns % 4):  # the right edge becomes the top: (x, y) -> (y, W - x)
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
        width, height = height, width
    return np.rot90(image, turns).copy(), _moved(target, boxes, lambda masks: np.rot90(masks, turns, axes=(1, 2)))


def _moved(target, boxes, move_masks):
    moved = {**target, "boxes": boxes}
    if target.get("masks") is not None:
        moved["masks"] = move_masks(target["masks"]).copy()
    return moved


# ---- what loses pixels: objects may go

def resize(image, target, size):
    """Resize to `size` (h, w).

    The image: Pillow's bilinear filter, which averages over all source pixels when it shrinks. Masks: each pixel takes the source
    pixel under its centre. Boxes are scaled, not recomputed from the masks, so that they keep their fractions of a pixel. An object
    whose mask has no pixel left is dropped.
    """
    if tuple(size) == image.shape[:2]:
        return image, target
    image, resized = _resized(image, target, size, (0, 0, size[1], size[0]))
    return image, _drop_gone(resized)


def _resized(image, target, size, window):
    """The pixels of `window` (x1, y1, x2, y2) of what `resize` makes of image and masks, and no others; all boxes, in the whole."""
    (height, width), (new_height, new_width) = image.shape[:2], size
    left, top, right, bottom = window
    ratio = np.array([new_width / width, new_height / height] * 2, np.float32)
    limit = np.array([new_width, new_height] * 2, np.float32)  # rounding must not push a box over the edge
    resized = {**target, "boxes": np.minimum(target["boxes"] * ratio, limit)}
    if target.get("masks") is not None:
        rows, columns = (np.floor((np.arange(new) + 0.5) * (old / new)).astype(np.intp)
                         for old, new in ((height, new_height), (width, new_width)))
        resized["masks"] = target["masks"].take(rows[top:bottom], axis=1).take(columns[left:right], axis=2)
    return _resized_image(image, size, window), resized


def _resized_image(image, size, window):
    """Pillow resizes every row, rounds to whole numbers, and then every column. So do we, for the pixels of the window: equal to the bit.

    (Its argument `box` would cut, too, but at fractions of a pixel in float32, and some values come out 1 off.)
    """
    from PIL import Image
    (height, width), (new_height, new_width) = image.shape[:2], size
    left, top, right, bottom = window
    scale = height / new_height
    reach = max(scale, 1) + 1  # pixels: half the filter's width, and one for rounding
    first, last = max(math.floor((top + 0.5) * scale - reach), 0), min(math.ceil((bottom - 0.5) * scale + reach), height)
    rows = Image.fromarray(np.ascontiguousarray(image[first:last]))
    rows = np.array(rows.resize((new_width, last - first), Image.Resampling.BILINEAR))[:, left:right]
    columns = np.zeros((height, right - left, 3), np.uint8)  # as high as the image, so that the filter lies as in the whole
    columns[first:last] = rows
    return np.array(Image.fromarray(columns).resize((right - left, new_height), Image.Resampling.BILINEAR))[top:bottom]


def resize_and_crop(image, target, size, window):
    """crop(*resize(image, target, size), window), without the work for what the crop takes away."""
    if tuple(size) == image.shape[:2]:
        return crop(image, target, window)
    image, target = _resized(image, target, size, window)
    x1, y1, x2, y2 = target["boxes"].T
    return image, _cut(select(target, (x2 > x1) & (y2 > y1)), window)


def crop(image, target, window):
    """Keep the pixels of `window` (x1, y1, x2, y2), integers inside the image.

    An object wholly inside keeps its box. That of an object that is cut becomes tight around what its mask still shows; without
    masks it is cut like the image. An object of which nothing is left is dropped.
    """
    left, top, right, bottom = window
    if target.get("masks") is not None:
        target = {**target, "masks": target["masks"][:, top:bottom, left:right].copy()}
    return image[top:bottom, left:right].copy(), _cut(target, window)


def _cut(target, window):
    """The boxes as `crop` has them. `target`: boxes in the whole image, masks of the window."""
    left, top, right, bottom = window
    size = np.array([right - left, bottom - top] * 2, np.float32)
    moved = target["boxes"] - np.array([left, top] * 2, np.float32)
    boxes = np.clip(moved, 0, size)
    masks = target.get("masks")
    if masks is not None:
        for i in np.flatnonzero((boxes != moved).any(axis=1) & masks.any(axis=(1, 2))):
            boxes[i] = box_of_mask(masks[i])
    return _drop_gone({**target, "boxes": boxes})


def pad(image, target, size, fill=FILL):
    """Add `fill` (R, G, B) below and to the right, up to `size` (h, w). Boxes stay as they are."""
    (height, width), (new_height, new_width) = image.shape[:2], size
    padded = np.full((new_height, new_width, 3), fill, image.dtype)
    padded[:height, :width] = image
    target = dict(target)
    if target.get("masks") is not None:
        masks = np.zeros((len(target["masks"]), new_height, new_width), target["masks"].dtype)
        masks[:, :height, :width] = target["masks"]
        target["masks"] = masks
    return padded, target


def crop_or_pad(image, target, size, at=(0.5, 0.5)):
    """The image in `size` (h, w), whatever it had: what is longer is cropped, what is shorter is padded.

    at : (y, x), in 0..1
        Where the crop lies in the room there is: (0, 0) top left, (1, 1) bottom right.
    """
    return resize_and_fit(image, target, image.shape[:2], size, at)


def resize_and_fit(image, target, resized, size, at=(0.5, 0.5)):
    """crop_or_pad(*resize(image, target, resized), size, at), without the work for what is cropped away."""
    (height, width), (new_height, new_width) = resized, size
    room_y, room_x = max(height - new_height, 0), max(width - new_width, 0)
    top, left = min(int(at[0] * (room_y + 1)), room_y), min(int(at[1] * (room_x + 1)), room_x)
    if room_y or room_x:
        window = left, top, min(left + new_width, width), min(top + new_height, height)
        image, target = resize_and_crop(image, target, resized, window)
    else:
        image, target = resize(image, target, resized)
    if image.shape[:2] != (new_height, new_width):
        image, target = pad(image, target, size)
    return image, target


def _drop_gone(target):
    """Without the objects whose box has no area or whose mask has no pixel."""
    x1, y1, x2, y2 = target["boxes"].T
    keep = (x2 > x1) & (y2 > y1)
    if target.get("masks") is not None:
        keep &= target["masks"].any(axis=(1, 2))
    return select(target, keep)


def select(target, keep):
    """The target with the objects of `keep` (n,) bool only."""
    if keep.all():
        return target
    return {key: value[keep] if isinstance(value, np.ndarray) else value for key, value in target.items()}


def box_of_mask(mask):
    """x1, y1, x2, y2 (4,) float32, tight around a mask (H, W) with at least one pixel: x2 = last column + 1."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


# ---- colour: a factor of 1 changes nothing, 0 gives black, grey or no colour

def brightness(image, target, factor):
    """Every value times `factor`."""
    return _mix(image, np.float32(0), factor), target


def contrast(image, target, factor):
    """Every value's distance from the picture's mean grey times `factor`."""
    return _mix(image, _grey(image).mean(), factor), target


def saturation(image, target, factor):
    """Every pixel's distance from the grey that is as bright times `factor`."""
    return _mix(image, _grey(image)[:, :, None], factor), target


def _grey(image):
    red, green, blue = (image[:, :, k] * np.float32(LUMA[k]) for k in range(3))
    return red + green + blue


def _mix(image, base, factor):
    """base + factor (image - base), rounded, as uint8."""
    mixed = (image - base) * np.float32(factor) + base
    return np.rint(np.clip(mixed, 0, 255, out=mixed), out=mixed).astype(np.uint8)


# ---- all of them at random

class Augment(NamedTuple):
    """What `augment` may do to an image. The default is a horizontal flip of every second image, as in the paper.

    scale: the factor of the size, drawn evenly on a log scale. The model brings every image to its own min_size, so a factor alone
    would be undone: after scaling, the image is cropped or padded at random to `crop` (h, w), or where that is None to the size it
    had. With `crop` every image comes out in that size.
    brightness, contrast, saturation: 0.2 draws a factor in 0.8 to 1.2.
    """

    flip: float = 0.5           # probability of a flip left to right
    flip_vertical: float = 0.0  # and of one upside down
    quarter_turns: bool = False  # by 0, 90, 180 or 270 degrees
    scale: tuple = (1.0, 1.0)   # smallest and largest factor
    crop: tuple | None = None   # (h, w) in pixels
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def check(self):
        """Returns self; ConfigError for a value that makes no sense."""
        for name in ("flip", "flip_vertical", "brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)):
                raise ConfigError(f"augmentation: {name}={value} is no number; one in 0..1 is needed")
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation: {name}={value} is outside 0..1")
        if self.quarter_turns not in (False, True):
            raise ConfigError(f"augmentation: quarter_turns={self.quarter_turns}; True or False is needed")
        try:
            low, high = map(float, self.scale)
        except (TypeError, ValueError):
            low, high = 0, 0
        if not 0 < low <= high < math.inf:
            raise ConfigError(f"augmentation: scale={self.scale}; give the smallest and the largest factor, such as (0.8, 1.25)")
        if self.crop is not None and not (isinstance(self.crop, (tuple, list)) and len(self.crop) == 2
                                          and all(isinstance(side, int) and side >= 1 for side in self.crop)):
            raise ConfigError(f"augmentation: crop={self.crop}; give a height and a width in pixels")
        return self


def augment(image, target, settings, rng):
    """Change an image at random.

    Parameters
    ----------
    image : (H, W, 3) uint8
    target : dict
        See the top of this file. Neither is modified.
    settings : Augment
    rng : numpy.random.Generator
        Nine numbers are drawn whatever the settings are: to change one of them leaves the other changes as they were.

    Returns
    -------
    image, target
        The target may have lost objects, even all of them.
    """
    u = dict(zip(("flip", "flip_vertical", "turn", "scale", "y", "x", "brightness", "contrast", "saturation"), rng.random(9)))
    if u["flip"] < settings.flip:
        image, target = flip_horizontal(image, target)
    if u["flip_vertical"] < settings.flip_vertical:
        image, target = flip_vertical(image, target)
    turns = int(4 * u["turn"]) if settings.quarter_turns else 0
    if turns:
        image, target = quarter_turn(image, target, turns)
    height, width = image.shape[:2]
    low, high = settings.scale
    factor = low * (high / low) ** u["scale"]
    resized = max(1, round(factor * height)), max(1, round(factor * width))
    image, target = resize_and_fit(image, target, resized, settings.crop or (height, width), (u["y"], u["x"]))
    for change in (brightness, contrast, saturation):
        reach = getattr(settings, change.__name__)
        if reach:
            image, target = change(image, target, 1 - reach + 2 * reach * u[change.__name__])
    return image, target
