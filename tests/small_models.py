"""Small models for the tests: the numbers of reference/seeded.py in them, or random ones."""

from pathlib import Path

import numpy as np
from reference import seeded

from nprcnn.models.assemble import assemble
from nprcnn.models.resnet import BasicBlock, Bottleneck, ResNet
from nprcnn.models.vgg import VGG


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
    return fill(assemble(rng, body, seeded.NUM_CLASSES, **{**settings, **options}), dtype=dtype)


def gradient_dots(layer, prefix=""):
    """<gradient, seeded direction> of every parameter, in the order of named_parameters."""
    return np.array([np.sum(p.grad * seeded.normal("direction " + prefix + name, *p.data.shape))
                     for name, p in layer.named_parameters()])


def snapshot(layer):
    """{name: bytes} of everything in the state dict, to see whether a call changed anything."""
    return {name: array.tobytes() for name, array in layer.state_dict().items()}


def running_dots(layer, prefix=""):
    """The same of the running statistics."""
    return np.array([np.sum(a * seeded.normal("direction " + prefix + name, *a.shape))
                     for name, a in layer.state_dict().items() if "running" in name])


REFERENCE = np.load(Path(__file__).parent / "reference" / "models.npz")
VARIANTS = np.load(Path(__file__).parent / "reference" / "variants.npz")


def tiny_image_model(**options):
    """The small model for images a quarter as large, with few RoIs: what many forward passes are needed on."""
    settings = dict(min_size=64, max_size=96, rpn_batch_size_per_image=64, rpn_post_nms_top_n_train=12, box_batch_size_per_image=16)
    return small_model(**{**settings, **options})


ONE_MAP = dict(anchor_sizes=((16, 32, 64),), box_hidden=seeded.HIDDEN, mask_channels=seeded.MASK_CHANNELS, min_size=64, max_size=96,
               rpn_batch_size_per_image=64, rpn_pre_nms_top_n_train=80, rpn_post_nms_top_n_train=12, box_batch_size_per_image=16,
               rpn_pre_nms_top_n_test=60, rpn_post_nms_top_n_test=30, box_score_thresh=0.2, box_detections_per_img=12)


def one_map(name, trainable=5, dtype=np.float64, **options):
    """A small model without a pyramid, with seeded weights: "c4", "c4 bottleneck", "c4 frozen", "dc5", "vgg align", "vgg pool", "vgg plain"."""
    rng = np.random.default_rng(0)
    kind = "single"
    if name.startswith("c4"):
        kind = "c4"
        body = ResNet(rng, Bottleneck if "bottleneck" in name else BasicBlock, (1, 1, 1), 4,
                      "frozen" if "frozen" in name else "batch", trainable)
        options = {"res5_blocks": 1, **options}
    elif name.startswith("dc5"):
        body = ResNet(rng, BasicBlock, (1, 1, 1, 1), 4, "batch", trainable, dilate_layer4=True)
    else:
        body = VGG(rng, (1, 1, 1, 1, 1), 4, None if "plain" in name else "batch", trainable)
        options = {"roi_method": "pool" if "pool" in name else "align", **options}
    return fill(assemble(rng, body, seeded.NUM_CLASSES, kind=kind, **{**ONE_MAP, **options}), dtype=dtype)


def derivative_errors(model, images, targets, cache, directions, eps):
    """Relative errors of <gradient, v> against central differences of the summed losses, decisions frozen.

    directions: lists with one array a parameter, or None where the parameter stays. The gradients are the parameters' own.
    """
    parameters = model.parameters()
    here = [p.data for p in parameters]

    def losses_at(step, direction):
        for p, data, v in zip(parameters, here, direction):
            p.data = data if v is None else data + step * v
        losses, _ = model.losses(images, targets, None, cache.decisions)
        return np.array(list(losses.values()))

    errors = []
    for direction in directions:
        analytic = sum(np.sum(p.grad * v) for p, v in zip(parameters, direction) if v is not None)
        # loss by loss before the sum, so that a large loss does not round away a small one's change
        numeric = np.sum(losses_at(eps, direction) - losses_at(-eps, direction)) / (2 * eps)
        errors.append(abs(analytic - numeric) / max(abs(analytic), abs(numeric)))
    for p, data in zip(parameters, here):
        p.data = data
    return errors


def unit_directions(model, count, seed):
    """Random directions over all parameters together, each of length 1."""
    rng = np.random.default_rng([seed, ord("v")])
    for _ in range(count):
        direction = [rng.standard_normal(p.data.shape) for p in model.parameters()]
        length = np.sqrt(sum(np.sum(v * v) for v in direction))
        yield [v / length for v in direction]
