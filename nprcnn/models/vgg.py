"""VGG-16 (Simonyan and Zisserman 2014, arXiv 1409.1556, table 1, column D): the backbone of Fast and Faster R-CNN.

    image -> 2 convs (64), pool -> 2 (128), pool -> 3 (256), pool -> 3 (512), pool -> 3 (512): conv5_3, 1/16

Thirteen 3x3 convolutions with ReLU and nothing else. The last max-pool is left out: RoIPool takes its place.
"""

from .. import backend
from ..errors import ConfigError
from ..layers import NORMS, Layer, conv_block, conv_norm_relu, conv_norm_relu_backward
from ..ops.pool import max_pool2d_backward, max_pool2d_forward
from ..trace import record, record_grad

VGG16 = (2, 2, 3, 3, 3)  # convolutions of each stage
STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")


class VGG(Layer):
    """The backbone's body.

    Parameters
    ----------
    rng : numpy.random.Generator
    convs : five ints
        Convolutions in each stage (VGG16).
    width : int
        Channels of the first stage; each later one doubles it, up to eight times. 64 in the paper.
    norm : None, "batch" or "frozen"
        After each convolution. The paper has none; from random weights 13 layers hardly train without.
    trainable_stages : int
        How many of the five STAGES train, counted from the top. Fast R-CNN (section 4.5) trains the upper three.

    Raises
    ------
    ConfigError
        Another norm, another number of trainable stages, or not five numbers of convolutions.
    """

    def __init__(self, rng, convs=VGG16, width=64, norm=None, trainable_stages=5):
        if norm not in (None, *NORMS):
            raise ConfigError(f"norm={norm!r} is not one of None, {', '.join(NORMS)}")
        if trainable_stages not in range(6):
            raise ConfigError(f"{trainable_stages} trainable backbone layers: the backbone has 0 to 5 to train")
        if len(convs) != 5:
            raise ConfigError(f"blocks={tuple(convs)}: one number for each of the five stages conv1 .. conv5 is needed")
        # torchvision counts every layer, those without parameters too, so that conv2_1 is features.5: conv, ReLU, conv, ReLU, pool
        self.features = []
        self.stages = []
        self.out_channels = [width * min(2 ** i, 8) for i in range(5)]
        channels = 3
        for count, out in zip(convs, self.out_channels):
            stage = []
            for _ in range(count):
                block = conv_block(rng, channels, out, 3, norm)
                stage.append(block)
                self.features += [layer for layer in block if layer is not None] + [None]  # None: the ReLU
                channels = out
            self.features.append(None)  # the max-pool
            self.stages.append(stage)
        self.freeze(5 - trainable_stages)

    def named_tensors(self, prefix=""):
        """torchvision's names: features.0.weight, ... `stages` holds the same layers, for the reader."""
        for index, layer in enumerate(self.features):
            if layer is not None:
                yield from layer.named_tensors(f"{prefix}features.{index}.")

    def freeze(self, stages):
        """Let the lowest `stages` of STAGES be constants: no gradient is computed for them."""
        self.frozen_stages = stages
        for i, stage in enumerate(self.stages):
            for conv, norm in stage:
                for parameter in conv.parameters() + (norm.parameters() if norm else []):
                    parameter.trainable = i >= stages

    def forward(self, x, train, trace=None):
        """x (N, 3, H, W) -> the five stages' maps at 1/1, 1/2, 1/4, 1/8 and 1/16, cache."""
        features, caches = [], []
        for i, (name, stage) in enumerate(zip(STAGES, self.stages)):
            pool_cache = None
            if i > 0:
                x, pool_cache = max_pool2d_forward(x, 2, 2, 0, kernels=backend.active(x))
            block_caches = []
            for block in stage:
                x, cache = conv_norm_relu(*block, x, train)
                block_caches.append(cache)
            record(trace, f"backbone.{name}", x)
            features.append(x)
            caches.append((pool_cache, block_caches))
        return features, caches if train else None

    def backward(self, dfeatures, caches, trace=None):
        """dfeatures: the gradients of the five maps; None where nobody used the map, but for the last. Returns nothing."""
        dx = 0
        for i in reversed(range(5)):
            if self.frozen_stages > i:
                return
            # a stage's map feeds what is above and the next stage: fan-out, so the gradients add
            if dfeatures[i] is not None:
                dx += dfeatures[i]
            record_grad(trace, f"backbone.{STAGES[i]}", dx)
            pool_cache, block_caches = caches[i]
            for j in reversed(range(len(self.stages[i]))):
                dx, _ = conv_norm_relu_backward(*self.stages[i][j], dx, block_caches[j], needs_dx=i > self.frozen_stages or j > 0)
            if i > self.frozen_stages:
                dx = max_pool2d_backward(dx, pool_cache, kernels=backend.active(dx))
