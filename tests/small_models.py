"""Small models for the tests: the numbers of reference/seeded.py in them, or random ones."""

import numpy as np
from reference import seeded

from nprcnn.models.builders import build
from nprcnn.models.resnet import BasicBlock, ResNet


def fill(layer, prefix="", dtype=np.float64):
    """Give every parameter and buffer its number from seeded.py, under its name in the state dict. Returns the layer."""
    for name, tensor in layer.named_tensors():
        tensor.data = seeded.tensor(prefix + name, tensor.data.shape).astype(dtype)
    return layer


def small_model(norm="batch", head_norm="batch", dtype=np.float64, trainable=5, **options):
    """The Mask R-CNN of reference/make_models.py: about 20,000 parameters."""
    rng = np.random.default_rng(0)
    body = ResNet(rng, BasicBlock, (1, 1, 1, 1), seeded.WIDTH, norm, trainable)
    settings = dict(anchor_sizes=seeded.ANCHOR_SIZES, canonical_size=seeded.CANONICAL_SIZE, fpn_channels=seeded.FPN_CHANNELS,
                    box_hidden=seeded.HIDDEN, mask_channels=seeded.MASK_CHANNELS, head_norm=head_norm, **seeded.SMALL)
    return fill(build(rng, body, seeded.NUM_CLASSES, **{**settings, **options}), dtype=dtype)


def gradient_dots(layer, prefix=""):
    """<gradient, seeded direction> of every parameter, in the order of named_parameters."""
    return np.array([np.sum(p.grad * seeded.normal("direction " + prefix + name, *p.data.shape))
                     for name, p in layer.named_parameters()])


def snapshot(layer):
    """{name: bytes} of everything in the state dict, to see whether a call changed anything."""
    return {name: array.tobytes() for name, array in layer.state_dict().items()}
