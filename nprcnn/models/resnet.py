"""ResNet (He et al. 2015, arXiv 1512.03385), version 1.5: a bottleneck's stride is in its 3x3 convolution.

    image -> stem (7x7 / 2, max-pool / 2) -> layer1 (C2, 1/4) -> layer2 (C3, 1/8) -> layer3 (C4, 1/16) -> layer4 (C5, 1/32)

Attribute names are torchvision's, so that its state dicts fit.
"""

from typing import NamedTuple

from .. import backend
from ..errors import ConfigError
from ..layers import NORMS, Conv2d, Layer, conv_norm_relu, conv_norm_relu_backward
from ..ops.pool import max_pool2d_backward, max_pool2d_forward
from ..trace import record, record_grad


class Options(NamedTuple):
    """What is the same in all blocks of a network.

    norm: a key of NORMS; eps: of the norms. stride_in_1x1: a bottleneck's stride is in its first convolution, as in the paper and in
    weights that descend from Caffe, and not in the 3x3 one (version 1.5, torchvision).
    """

    norm: str = "frozen"
    eps: float = 1e-5
    stride_in_1x1: bool = False

    def make_norm(self, channels):
        return NORMS[self.norm](channels, eps=self.eps)


class BasicBlock(Layer):
    """Two 3x3 convolutions and a shortcut: y = relu(f(x) + x). ResNet-18 and -34 (figure 5, left, of the paper)."""

    expansion = 1  # output channels / width

    def __init__(self, rng, in_channels, width, stride, dilation, options):
        self.conv1 = Conv2d(rng, in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = options.make_norm(width)
        self.conv2 = Conv2d(rng, width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = options.make_norm(width)
        self.downsample = _downsample(rng, in_channels, width, stride, options)

    def forward(self, x, train):
        """x (N, C, H, W) -> y (N, width, H / stride, W / stride), cache."""
        h, cache1 = conv_norm_relu(self.conv1, self.bn1, x, train)
        shortcut, cache_down = _shortcut(self.downsample, x, train)
        y, cache2 = conv_norm_relu(self.conv2, self.bn2, h, train, residual=shortcut)
        return y, (cache1, cache2, cache_down) if train else None

    def backward(self, dy, cache, needs_dx=True):
        """Gradient of y -> gradient of x (None if not needed)."""
        cache1, cache2, cache_down = cache
        # forward: y = relu(bn2(conv2(h)) + shortcut)
        dh, dshortcut = conv_norm_relu_backward(self.conv2, self.bn2, dy, cache2)
        # forward: h = relu(bn1(conv1(x)));  x also feeds the shortcut: fan-out, so the two gradients add
        dx, _ = conv_norm_relu_backward(self.conv1, self.bn1, dh, cache1, needs_dx)
        return _add_shortcut_backward(dx, self.downsample, dshortcut, cache_down, needs_dx)


class Bottleneck(Layer):
    """1x1 down, 3x3, 1x1 up to 4 times the width, and a shortcut. ResNet-50 and deeper (figure 5, right)."""

    expansion = 4  # output channels / width

    def __init__(self, rng, in_channels, width, stride, dilation, options):
        stride_1x1, stride_3x3 = (stride, 1) if options.stride_in_1x1 else (1, stride)
        self.conv1 = Conv2d(rng, in_channels, width, 1, stride_1x1, bias=False)
        self.bn1 = options.make_norm(width)
        self.conv2 = Conv2d(rng, width, width, 3, stride_3x3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = options.make_norm(width)
        self.conv3 = Conv2d(rng, width, 4 * width, 1, bias=False)
        self.bn3 = options.make_norm(4 * width)
        self.downsample = _downsample(rng, in_channels, 4 * width, stride, options)

    def forward(self, x, train):
        """x (N, C, H, W) -> y (N, 4 width, H / stride, W / stride), cache."""
        h1, cache1 = conv_norm_relu(self.conv1, self.bn1, x, train)
        h2, cache2 = conv_norm_relu(self.conv2, self.bn2, h1, train)
        shortcut, cache_down = _shortcut(self.downsample, x, train)
        y, cache3 = conv_norm_relu(self.conv3, self.bn3, h2, train, residual=shortcut)
        return y, (cache1, cache2, cache3, cache_down) if train else None

    def backward(self, dy, cache, needs_dx=True):
        """Gradient of y -> gradient of x (None if not needed)."""
        cache1, cache2, cache3, cache_down = cache
        # forward: y = relu(bn3(conv3(h2)) + shortcut)
        dh2, dshortcut = conv_norm_relu_backward(self.conv3, self.bn3, dy, cache3)
        # forward: h2 = relu(bn2(conv2(h1)))
        dh1, _ = conv_norm_relu_backward(self.conv2, self.bn2, dh2, cache2)
        # forward: h1 = relu(bn1(conv1(x)));  x also feeds the shortcut: the two gradients add
        dx, _ = conv_norm_relu_backward(self.conv1, self.bn1, dh1, cache1, needs_dx)
        return _add_shortcut_backward(dx, self.downsample, dshortcut, cache_down, needs_dx)


def _downsample(rng, in_channels, out_channels, stride, options):
    """The shortcut's 1x1 convolution, where the shape changes; None where x itself can be added."""
    if stride == 1 and in_channels == out_channels:
        return None
    return [Conv2d(rng, in_channels, out_channels, 1, stride, bias=False), options.make_norm(out_channels)]


def _shortcut(downsample, x, train):
    if downsample is None:
        return x, None
    return conv_norm_relu(*downsample, x, train, relu=False)


def _add_shortcut_backward(dx, downsample, dy, cache, needs_dx):
    """dx, the gradient of the block's input by way of its convolutions, plus the one by way of the shortcut. Written into dx."""
    if downsample is not None:
        dy, _ = conv_norm_relu_backward(*downsample, dy, cache, needs_dx)
    if not needs_dx:
        return None
    dx += dy
    return dx


# A stage is a list of blocks: the first one changes the shape.

def make_stage(rng, block, count, in_channels, width, stride, dilation, options):
    """`count` blocks; the first has the stride, all have the dilation."""
    stage = [block(rng, in_channels, width, stride, dilation, options)]
    stage += [block(rng, width * block.expansion, width, 1, dilation, options) for _ in range(count - 1)]
    return stage


def stage_forward(stage, x, train):
    """x (N, C, H, W) -> y (N, expansion * width, H / stride, W / stride), cache."""
    caches = []
    for block in stage:
        x, cache = block.forward(x, train)
        caches.append(cache)
    return x, caches if train else None


def stage_backward(stage, dx, caches, needs_dx=True):
    """Gradient of y -> gradient of x (None if not needed): the blocks from the last to the first."""
    for i in reversed(range(len(stage))):
        dx = stage[i].backward(dx, caches[i], needs_dx or i > 0)
    return dx


DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class ResNet(Layer):
    """The backbone's body.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the initial values.
    block : BasicBlock or Bottleneck
    blocks : three or four ints
        Blocks in layer1 .. layer4 (see DEPTHS for those of the paper). Three: there is no layer4; in the C4 models it is the head.
    width : int
        Channels of the stem and width of layer1; each later stage doubles it. 64 in the paper.
    norm : "batch" or "frozen"
    trainable_stages : int
        How many of the five STAGES train, counted from the top (torchvision's trainable_backbone_layers). Below
        them the backward pass stops.
    norm_eps, stride_in_1x1
        See Options.
    dilate_layer4 : bool
        layer4 keeps the size of layer3 and spreads its 3x3 convolutions instead ("dilated C5", DC5).

    Raises
    ------
    ConfigError
        Another norm, another number of trainable stages, or not three or four numbers of blocks.
    """

    def __init__(self, rng, block, blocks, width=64, norm="frozen", trainable_stages=5, norm_eps=1e-5, stride_in_1x1=False,
                 dilate_layer4=False):
        if norm not in NORMS:
            raise ConfigError(f"norm={norm!r} is not one of {', '.join(NORMS)}")
        if trainable_stages not in range(6):
            raise ConfigError(f"{trainable_stages} trainable backbone layers: the backbone has 0 to 5 to train")
        if len(blocks) not in (3, 4):
            raise ConfigError(f"blocks={tuple(blocks)}: one number for each of the four stages layer1 .. layer4 is needed "
                              "(three where layer4 is the head)")
        options = Options(norm, norm_eps, stride_in_1x1)
        self.conv1 = Conv2d(rng, 3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = options.make_norm(width)
        self.stages = STAGES[:1 + len(blocks)]
        channels = width
        for i, (name, count) in enumerate(zip(STAGES[1:], blocks)):
            stride, dilation = (1 if i == 0 else 2), 1
            if name == "layer4" and dilate_layer4:
                stride, dilation = 1, 2
            setattr(self, name, make_stage(rng, block, count, channels, width * 2 ** i, stride, dilation, options))
            channels = width * 2 ** i * block.expansion
        self.block, self.width, self.options = block, width, options
        self.out_channels = [width * 2 ** i * block.expansion for i in range(len(blocks))]
        self.freeze(5 - trainable_stages)

    def freeze(self, stages):
        """Let the lowest `stages` of STAGES be constants: no gradient is computed for them."""
        self.frozen_stages = stages
        frozen = ("conv1.", "bn1.") + STAGES[1:]
        for name, parameter in self.named_parameters():
            parameter.trainable = not name.startswith(frozen[:stages + 1] if stages else ())

    def forward(self, x, train, trace=None):
        """x (N, 3, H, W) -> [C2, C3, C4, C5] (without layer4, up to C4), cache."""
        x, stem_cache = conv_norm_relu(self.conv1, self.bn1, x, train)
        record(trace, "backbone.stem", x)
        x, pool_cache = max_pool2d_forward(x, 3, 2, 1, kernels=backend.active(x))
        features, caches = [], [(stem_cache, pool_cache) if self.frozen_stages == 0 else None]
        for i, name in enumerate(self.stages[1:], start=1):
            x, stage_cache = stage_forward(getattr(self, name), x, train)
            caches.append(stage_cache if i >= self.frozen_stages else None)  # what no backward pass will ask for is not kept
            features.append(x)
            record(trace, f"backbone.{name}", x)
        return features, caches if train else None

    def backward(self, dfeatures, caches, trace=None):
        """dfeatures: the gradients of C2 .. C5 that come from above; None for frozen stages, and where nobody used the map (but the last).

        Returns nothing: the image needs no gradient.
        """
        dx = 0
        for i in reversed(range(1, len(self.stages))):
            if self.frozen_stages > i:
                return
            # C_i feeds what is above and the next stage: fan-out, so the gradients add
            if dfeatures[i - 1] is not None:
                dx += dfeatures[i - 1]
            record_grad(trace, f"backbone.{self.stages[i]}", dx)
            # forward: C_i = the stage's blocks, one after the other
            dx = stage_backward(getattr(self, self.stages[i]), dx, caches[i], needs_dx=self.frozen_stages != i)
        if self.frozen_stages > 0:
            return
        stem_cache, pool_cache = caches[0]
        # forward: x = maxpool(stem), stem = relu(bn1(conv1(image)))
        dx = max_pool2d_backward(dx, pool_cache, kernels=backend.active(dx))
        record_grad(trace, "backbone.stem", dx)
        conv_norm_relu_backward(self.conv1, self.bn1, dx, stem_cache, needs_dx=False)


def resnet(rng, depth, norm="frozen", trainable_stages=5, layer4=True, **options):
    """A ResNet of the paper: depth 18, 34, 50, 101 or 152, with layer4 or without. The other arguments are ResNet's.

    ConfigError for any other depth.
    """
    if depth not in DEPTHS:
        raise ConfigError(f"there is no ResNet-{depth}; choose one of: {', '.join(map(str, DEPTHS))}")
    block, blocks = DEPTHS[depth]
    return ResNet(rng, block, blocks if layer4 else blocks[:3], norm=norm, trainable_stages=trainable_stages, **options)
