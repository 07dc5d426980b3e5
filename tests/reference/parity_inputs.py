"""What make_parity.py and the tests of full-size parity share: photos, weights by name, targets, sampled positions, matching of sets.

Only NumPy and Pillow: the script runs beside torchvision, the tests beside nprcnn.
"""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from . import seeded

NUM_CLASSES = 91

# case: photos, and the builder's settings that are not the defaults. Sizes (height, width) after resizing:
CASES = {
    "coffee": (("coffee",), {}),        # 334 x 440 -> 799 x 1053: the short side comes out one too small
    "astronaut": (("astronaut",), {}),  # 300 x 224 -> 1071 x 800: portrait
    "hopper": (("hopper",), {}),        # 40 x 56 -> 800 x 1120: tiny
    "cat": (("cat",), {}),              # 96 x 400 -> 319 x 1333: panorama, the long side decides
    "batch": (("astronaut", "cat", "hopper"), dict(min_size=320, max_size=533)),  # 428 x 320, 127 x 533, 320 x 448, padded together
}

# The order of the rows in <case>.samples and <case>.stats. From roi_heads.box_features on, rows follow the reference's own order of
# proposals, and from roi_heads.mask_features on that of its detections.
LEVELS = ("p2", "p3", "p4", "p5", "p6")
BEFORE_PROPOSALS = ("transform.batch", "backbone.stem", "backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4",
                    *(f"fpn.{level}" for level in LEVELS), *(f"rpn.logits.{level}" for level in LEVELS),
                    *(f"rpn.deltas.{level}" for level in LEVELS), "rpn.anchors")
BY_PROPOSAL = ("roi_heads.box_features", "roi_heads.box_hidden", "roi_heads.class_logits", "roi_heads.box_deltas")
BY_DETECTION = ("roi_heads.mask_features", "roi_heads.mask_hidden", "roi_heads.mask_logits", "roi_heads.mask_probabilities")
STAGES = BEFORE_PROPOSALS + BY_PROPOSAL + BY_DETECTION
SETS = ("rpn.proposals", "detections.boxes")
SAMPLES = 300


def photo(name):
    """(H, W, 3) uint8 of photos/<name>.png."""
    with Image.open(Path(__file__).parent / "photos" / f"{name}.png") as image:
        return np.array(image.convert("RGB"))


# A plain He-scaled random network answers almost the same everywhere: behind a ReLU all channels have a positive mean, and that one
# common direction outweighs what differs from place to place. Filters that sum to zero do not see it, and the network comes alive.
# The factors even out the levels, so that proposals of all sizes survive, and spread the scores.
GAINS = {"bn3.weight": 0.3, "layer_blocks.1": 1.3, "layer_blocks.2": 2.2, "layer_blocks.3": 4.0, "rpn.head.cls_logits": 1.2,
         "rpn.head.bbox_pred": 0.15, "cls_score": 2.5, "box_predictor.bbox_pred": 0.3, "mask_fcn_logits": 2.0}


def tensor(name, shape):
    """The parameter or buffer of that name in torchvision's state dict, float32."""
    z = seeded.normal(name, *shape)
    if name.endswith("running_var"):
        z = 1 + 0.25 * np.tanh(z)
    elif name.endswith("running_mean"):
        z = 0.1 * z
    elif name.endswith("bias"):
        z = (0.1 if ".bn" in name or "downsample.1" in name else 0.05) * z
    elif len(shape) == 1:  # a norm's weight
        z = 1 + 0.1 * np.tanh(z)
    else:
        z -= z.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        fan_in = shape[0] if "conv5_mask" in name else np.prod(shape[1:])
        z *= np.sqrt((1 if "fpn" in name else 2) / fan_in)
    for part, factor in GAINS.items():
        if part in name and not (name.endswith("bias") and len(shape) == 1):
            z = z * factor
    return z.astype(np.float32)


def positions(name, size, count=SAMPLES):
    """Where a flattened tensor of that size is looked at: (min(size, count),) ascending indices that the name decides."""
    if size <= count:
        return np.arange(size)
    return np.sort(np.random.RandomState(zlib.crc32(name.encode())).randint(0, size, count))


def sample(name, tensor, dtype=np.float64):
    """(SAMPLES,): the tensor at its positions; NaN where it has fewer."""
    values = np.full(SAMPLES, np.nan, dtype)
    chosen = positions(name, tensor.size)
    values[:len(chosen)] = tensor.reshape(-1)[chosen]
    return values


def pair_up(found, wanted, found_labels=None, wanted_labels=None):
    """Which of `found` is each of `wanted`: boxes (n, 4) and (m, 4), labels (n,) and (m,).

    Returns
    -------
    order : (m,) index into found: found[order] stands beside wanted
    distance : (m,) largest difference of the four coordinates. It is infinite where no box of the same label is left, so that
        sets of another size never agree.
    """
    distance = np.abs(found[None].astype(np.float64) - wanted[:, None]).max(axis=2) if len(found) else np.zeros((len(wanted), 0))
    if found_labels is not None:
        distance[wanted_labels[:, None] != found_labels[None]] = np.inf
    order, apart, taken = np.zeros(len(wanted), np.int64), np.full(len(wanted), np.inf), np.zeros(len(found), bool)
    for i in range(len(wanted)):
        row = np.where(taken, np.inf, distance[i])
        if len(row) and np.isfinite(row.min()):
            order[i], apart[i] = row.argmin(), row.min()
            taken[order[i]] = True
    if len(found) != len(wanted):
        apart[:] = np.inf
    return order, apart


# ---- training ----

TRAINING_PHOTOS = ("astronaut", "cat")
TRAINING = dict(min_size=224, max_size=360, rpn_batch_size_per_image=10**6, box_batch_size_per_image=10**6,
                rpn_pre_nms_top_n_train=400, rpn_post_nms_top_n_train=200)
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
GRADIENT_SAMPLES = 60


def training_batch():
    """images [(300, 224, 3), (96, 400, 3)] uint8 and their targets: ellipses over parts of the photos."""
    corners = {"astronaut": ([[40, 12, 190, 145], [2, 150, 196, 298], [75, 95, 130, 180]], [1, 60, 33]),
               "cat": ([[118, 22, 190, 88], [272, 46, 328, 94], [4, 2, 345, 95], [200, 5, 215, 25]], [5, 5, 17, 90])}
    images, targets = [], []
    for name in TRAINING_PHOTOS:
        image = photo(name)
        boxes, labels = corners[name]
        y, x = np.mgrid[:image.shape[0], :image.shape[1]] + 0.5
        masks = [((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
                 for x1, y1, x2, y2 in boxes]
        images.append(image)
        targets.append({"boxes": np.array(boxes, np.float32), "labels": np.array(labels, np.int64), "masks": np.array(masks, np.uint8)})
    return images, targets


def signs(name, size):
    """(size,) float64 of -1 and 1 that the name decides. <signs, d>^2 is |d|^2 on average, as for normal numbers, and they are quick."""
    bits = np.frombuffer(np.random.RandomState(zlib.crc32(name.encode())).bytes(-(-size // 8)), np.uint8)
    return 2.0 * np.unpackbits(bits)[:size] - 1


def summary(name, tensor):
    """What is kept of a gradient or a buffer: its norm, its sums under two random choices of signs, and up to GRADIENT_SAMPLES numbers.

    Returns (3 + GRADIENT_SAMPLES,) float64, filled up with NaN.
    """
    values = np.full(3 + GRADIENT_SAMPLES, np.nan)
    flat = tensor.reshape(-1).astype(np.float64)
    values[0] = np.linalg.norm(flat)
    for k in (1, 2):
        values[k] = flat @ signs(f"projection {k} {name}", flat.size)
    chosen = positions("gradient " + name, flat.size, GRADIENT_SAMPLES)
    values[3:3 + len(chosen)] = flat[chosen]
    return values
