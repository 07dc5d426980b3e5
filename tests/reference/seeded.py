"""Numbers that are the same in make_models.py and in the tests, on every machine: so the files store answers, not inputs.

Only NumPy: the script runs beside torchvision, the tests beside nprcnn. RandomState's stream is frozen, default_rng's is not.
"""

import zlib

import numpy as np


def normal(name, *shape):
    """Standard normal float64 numbers that the name decides."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def uniform(name, low, high, *shape):
    """Uniform float64 numbers that the name decides."""
    return np.random.RandomState(zlib.crc32(name.encode())).uniform(low, high, shape)


def boxes(name, count, height, width, smallest=2.0):
    """Random boxes (count, 4) float64 inside an image, sides at least `smallest`."""
    u = uniform(name, 0, 1, count, 4)
    w = smallest + u[:, 2] ** 2 * (width - smallest)
    h = smallest + u[:, 3] ** 2 * (height - smallest)
    x, y = u[:, 0] * (width - w), u[:, 1] * (height - h)
    return np.stack([x, y, x + w, y + h], axis=1)


def tensor(name, shape):
    """A parameter or buffer of a small network: of a size that keeps activations near 1, and nothing zero."""
    z = normal(name, *shape)
    if name.endswith("running_var"):
        return 0.5 + np.abs(z)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * z
    if z.ndim == 1:  # a norm's weight
        return 1 + 0.2 * z
    scale = np.sqrt((1 if "fpn" in name else 2) / np.prod(shape[1:]))
    if "bbox_pred" in name:
        scale *= 0.3
    return scale * z


# A Mask R-CNN that is small enough to check everything on, and two images of different sizes with different objects.
# The sampling sizes are so large that every anchor and every RoI is sampled, so nothing depends on a random generator.
NUM_CLASSES = 4
SMALL = dict(
    min_size=96, max_size=160, box_score_thresh=0.2, box_detections_per_img=12,
    rpn_pre_nms_top_n_train=80, rpn_post_nms_top_n_train=40, rpn_pre_nms_top_n_test=60, rpn_post_nms_top_n_test=30,
    rpn_batch_size_per_image=100_000, box_batch_size_per_image=100_000,
)
WIDTH, FPN_CHANNELS, HIDDEN, MASK_CHANNELS = 8, 12, 16, (12, 12)
ANCHOR_SIZES = ((16,), (32,), (64,), (128,), (256,))
CANONICAL_SIZE = 56


def scene():
    """images [(60, 80, 3), (75, 70, 3)] uint8 and their targets (boxes float32, labels int64, masks uint8)."""
    images, targets = [], []
    for k, (h, w, labels, corners) in enumerate([
            (60, 80, [1, 3, 2], [[8, 10, 40, 44], [44, 5, 75, 30], [60, 44, 70, 55]]),
            (75, 70, [2, 1, 3], [[1, 2, 68, 74], [30, 6, 62, 38], [50, 45, 68, 70]])]):
        image = uniform(f"image {k}", 0, 120, h, w, 3)
        y, x = np.mgrid[:h, :w] + 0.5
        masks = []
        for n, (label, (x1, y1, x2, y2)) in enumerate(zip(labels, corners)):
            distance = ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2
            masks.append(distance <= 1)
            image[masks[-1]] += 40 * label * uniform(f"colour {k} {n}", 0.3, 1, 3)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        targets.append({"boxes": np.array(corners, np.float32), "labels": np.array(labels, np.int64),
                        "masks": np.array(masks, np.uint8)})
    return images, targets


# The small models with Detectron2's conventions: every anchor and every RoI is sampled here, too.
D2_WIDTH = 4
D2_PIXELS = 300  # conv1 is divided by this: pixels are hundreds here, not ones
DETECTRON2 = {**SMALL, "rpn_batch_size_per_image": 10_000}
