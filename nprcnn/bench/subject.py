"""What is timed: a seeded model, an image and its objects, the same for every system."""

import zlib

import numpy as np

SOURCE = (480, 730)  # of the image file; it is resized by 5/3 to 800 x 1216
CLASSES = 91
OBJECTS = 6


def seeded_state(shapes):
    """{name: float32 array} for {name: shape}: numbers that only the name decides.

    Of a size that keeps activations near 1 through fifty layers, so that no system meets denormals or overflow, and with class scores
    of which some hundreds pass the threshold .05: the detector finds its full 100 objects.
    """
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name, shape):
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.2 * np.abs(z)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * z
    if len(shape) == 1:  # a norm's weight; small at the end of a residual block, or each block would double the variance
        return (0.3 if ".bn3." in name else 1) * (1 + 0.1 * z)
    scale = np.sqrt((1 if "fpn" in name else 2) / np.prod(shape[1:]))
    return z * np.float32(scale * (0.2 if "bbox_pred" in name else 1))


def scene(size=SOURCE, seed=0):
    """image (H, W, 3) uint8, and a target of six elliptic objects (boxes, labels, masks)."""
    rng = np.random.RandomState(seed)
    height, width = size
    coarse = rng.uniform(0, 255, (height // 32 + 1, width // 32 + 1, 3))
    image = np.kron(coarse, np.ones((32, 32, 1)))[:height, :width] * 0.8 + rng.uniform(0, 50, (height, width, 3))
    y, x = np.mgrid[:height, :width] + 0.5
    boxes, masks = [], []
    for _ in range(OBJECTS):
        h, w = rng.uniform(0.15, 0.5, 2) * size
        top, left = rng.uniform(0, 1, 2) * (height - h, width - w)
        boxes.append([left, top, left + w, top + h])
        masks.append(((x - left - w / 2) / (w / 2)) ** 2 + ((y - top - h / 2) / (h / 2)) ** 2 <= 1)
        image[masks[-1]] = 0.5 * image[masks[-1]] + rng.uniform(0, 100, 3)
    target = {"boxes": np.array(boxes, np.float32), "labels": rng.randint(1, CLASSES, OBJECTS).astype(np.int64),
              "masks": np.array(masks, np.uint8)}
    return np.clip(image, 0, 255).astype(np.uint8), target
