"""From images of any size to one padded batch, and boxes back again (torchvision's GeneralizedRCNNTransform)."""

import math
from typing import NamedTuple

import numpy as np

from .. import backend

RESIZES = ("float", "pil")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Batch(NamedTuple):
    """tensor (N, 3, H, W): normalised, resized, padded with zeros. sizes, original_sizes: [(h, w)] an image, unpadded."""

    tensor: np.ndarray
    sizes: list
    original_sizes: list


def resized_size(height, width, min_size, max_size, resize="float"):
    """The size (h, w) after resizing, in pixels: the short side becomes min_size, unless the long one would exceed max_size.

    resize="float" rounds down, as torchvision does: a short side can come out as 799 for min_size 800. "pil" rounds to the nearest,
    as Detectron2 does. Never 0: torchvision fails there.
    """
    if resize == "pil":
        # ResizeShortestEdge, in the order of its roundings: the short side is min_size exactly, unless the long one is too long
        scale = min_size / min(height, width)
        new_height, new_width = (min_size, scale * width) if height < width else (scale * height, min_size)
        if max(new_height, new_width) > max_size:
            scale = max_size / max(new_height, new_width)
            new_height, new_width = new_height * scale, new_width * scale
        return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def make_batch(images, min_size, max_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, size_divisible=32, dtype=np.float32,
               channel_order="rgb", pixel_range=1.0, resize="float", like=None):
    """Normalise, resize and pad.

    Parameters
    ----------
    images : list of (H, W, 3) arrays
        uint8 (0..255) or float (0..1), RGB.
    min_size, max_size : int
        Pixels, see resized_size.
    mean, std : three floats
        Of the channels, in the order and the range of the next two.
    size_divisible : int
        The batch's sides are multiples of it, so that every pyramid level has whole cells.
    channel_order : "rgb" or "bgr"
        What the network is fed with. Weights that descend from Caffe want BGR.
    pixel_range : float
        The value of white: 1, or 255 for weights that descend from Caffe.
    resize : "float" or "pil"
        "float": normalise, then resize bilinearly (torchvision). "pil": resize the uint8 image as Pillow does, which averages over
        all source pixels when it shrinks and rounds to whole numbers, then normalise (Detectron2).
    like : array, optional
        The batch is made where it is: on a GPU, if it is CuPy's.

    Returns
    -------
    Batch
    """
    mean, std = (np.asarray(v, dtype, like=like)[:, None, None] for v in (mean, std))
    resized, original_sizes = [], []
    for image in images:
        size = resized_size(*image.shape[:2], min_size, max_size, resize)
        original_sizes.append(image.shape[:2])
        if resize == "pil" and image.dtype == np.uint8 and size != image.shape[:2]:
            image = _resize_as_pillow(image, size)
        x = np.asarray(image, like=like).transpose(2, 0, 1).astype(dtype, order="C")
        white = 255 if image.dtype == np.uint8 else 1
        if white != pixel_range:
            x /= dtype(white / pixel_range)
        if channel_order == "bgr":
            x = x[::-1]
        x -= mean
        x /= std
        if size != x.shape[1:]:
            x = backend.active(x).resize_bilinear(x[None], size)[0]
        resized.append(x)
    sizes = [x.shape[1:] for x in resized]
    height, width = (math.ceil(max(side) / size_divisible) * size_divisible for side in zip(*sizes))
    tensor = np.zeros((len(images), 3, height, width), dtype, like=like)
    for i, x in enumerate(resized):
        tensor[i, :, :x.shape[1], :x.shape[2]] = x
    return Batch(tensor, sizes, original_sizes)


def _resize_as_pillow(image, size):
    from PIL import Image
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_boxes(boxes, from_size, to_size):
    """Scale boxes (n, 4) by the actual ratio of each axis (which rounding makes differ slightly). Sizes are (h, w).

    The ratios are float32 whatever the boxes are: torchvision's convention.
    """
    ratio_h = np.float32(to_size[0]) / np.float32(from_size[0])
    ratio_w = np.float32(to_size[1]) / np.float32(from_size[1])
    return boxes * np.array([ratio_w, ratio_h, ratio_w, ratio_h], boxes.dtype)


def resize_target(target, from_size, to_size, dtype=np.float32, resize="float"):
    """The target of the resized image, as a new dict: boxes (G, 4) in `dtype`, scaled; labels (G,) int64; masks (G, h, w) uint8, if
    there are any, resized to the nearest pixel. Sizes are (h, w).

    resize="float": each mask pixel takes the source pixel under its top-left corner (torchvision, PyTorch's "nearest"). "pil": the one
    under its centre (Pillow's NEAREST, Detectron2).
    """
    resized = {"boxes": resize_boxes(np.asarray(target["boxes"], dtype).reshape(-1, 4), from_size, to_size),
               "labels": np.asarray(target["labels"], np.int64)}
    if target.get("masks") is not None:
        masks = np.asarray(target["masks"], np.uint8).reshape(-1, *from_size)
        if from_size != to_size and resize == "pil":
            rows, columns = (np.floor((np.arange(new) + 0.5) * (old / new)).astype(np.intp) for old, new in zip(from_size, to_size))
            masks = masks[:, rows[:, None], columns]
        elif from_size != to_size:
            masks = backend.active().resize_nearest(masks[:, None], to_size)[:, 0]
        resized["masks"] = masks
    return resized
