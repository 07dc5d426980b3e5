"""The mask head: for every RoI a small mask a class (Mask R-CNN, arXiv 1703.06870, section 3 and figure 4, right).

    RoI features (14x14) -> 4 x (3x3 conv, ReLU) -> 2x2 deconv, stride 2, ReLU (28x28) -> 1x1 conv -> K mask logits

The paper's table 2 compares this with two other answers, which are options here: how the classes' masks share a pixel (`mask_loss`:
"sigmoid" a class, "softmax" over the classes, or one "agnostic" mask), and a fully connected head (MaskHeadMLP).
"""

import numpy as np

from ..layers import (Conv2d, ConvTranspose2d, Layer, Linear, conv_block, conv_norm_relu, conv_norm_relu_backward,
                      flatten, named_tensors)
from ..ops.activation import relu_backward, relu_forward, sigmoid, softmax
from ..ops.losses import (bce_with_logits_backward, bce_with_logits_forward, softmax_cross_entropy_backward,
                          softmax_cross_entropy_forward)
from .box_head import BoxHead

MASK_LOSSES = ("sigmoid", "softmax", "agnostic")


class MaskHead(Layer):
    """3x3 convolutions, each with ReLU. `channels`: of each of them (four times 256 in the paper); norm: as in FPN."""

    def __init__(self, rng, in_channels, channels, norm=None):
        ins = (in_channels,) + tuple(channels[:-1])
        self.blocks = [conv_block(rng, i, o, 3, norm) for i, o in zip(ins, channels)]

    def named_tensors(self, prefix=""):
        """torchvision's mask head is a plain sequence: its keys are mask_head.0.0.weight, with no name in between."""
        for index, block in enumerate(self.blocks):
            yield from named_tensors(block, f"{prefix}{index}")

    def forward(self, x, train):
        """(R, C, 14, 14) -> (R, channels[-1], 14, 14), cache."""
        caches = []
        for block in self.blocks:
            x, cache = conv_norm_relu(*block, x, train)
            caches.append(cache)
        return x, caches if train else None

    def backward(self, dx, caches):
        """Gradient of the output -> gradient of the input."""
        # forward: x = relu(norm(conv(x))), once a block      backward: the blocks from the last to the first
        for block, cache in zip(reversed(self.blocks), reversed(caches)):
            dx, _ = conv_norm_relu_backward(*block, dx, cache)
        return dx


class MaskPredictor(Layer):
    """Doubles the resolution, then one logit a pixel and class. (R, C, 14, 14) -> (R, K, 28, 28)."""

    def __init__(self, rng, in_channels, hidden, num_masks):
        self.conv5_mask = ConvTranspose2d(rng, in_channels, hidden, 2, stride=2)
        self.mask_fcn_logits = Conv2d(rng, hidden, num_masks, 1)

    def forward(self, x, train):
        """(R, C, 14, 14) -> (R, K, 28, 28), cache."""
        if not train:
            return self.mask_fcn_logits.forward(self.conv5_mask.forward_fused(x, relu=True), train)
        h, deconv_cache = self.conv5_mask.forward(x, train)
        h, relu_cache = relu_forward(h)
        logits, logits_cache = self.mask_fcn_logits.forward(h, train)
        return logits, (deconv_cache, relu_cache, logits_cache)

    def backward(self, dlogits, cache):
        """(R, K, 28, 28) -> (R, C, 14, 14)."""
        deconv_cache, relu_cache, logits_cache = cache
        # forward: logits = conv1x1(h)
        dh = self.mask_fcn_logits.backward(dlogits, logits_cache)
        # forward: h = relu(deconv(x))
        return self.conv5_mask.backward(relu_backward(dh, relu_cache), deconv_cache)


class MaskHeadMLP(BoxHead):
    """The alternative of table 2e: the box head's two fully connected layers instead of convolutions, so no pixel keeps its place."""


class MaskPredictorMLP(Layer):
    """(R, hidden) -> (R, K, size, size)."""

    def __init__(self, rng, hidden, num_masks, size):
        self.num_masks, self.size = num_masks, size
        self.mask_logits = Linear(rng, hidden, num_masks * size * size)

    def forward(self, h, train):
        logits, cache = self.mask_logits.forward(h, train)
        return logits.reshape(len(h), self.num_masks, self.size, self.size), cache

    def backward(self, dlogits, cache):
        """(R, K, size, size) -> (R, hidden)."""
        # forward: logits = reshape(linear(h))
        return self.mask_logits.backward(flatten(dlogits), cache)


def mask_loss_forward(logits, labels, targets, kind="sigmoid"):
    """The mask loss: every positive RoI learns the mask of its own class.

    Parameters
    ----------
    logits : (S, K, m, m), or (S, 1, m, m) for "agnostic"
    labels : (S,) int, 1 .. K-1
    targets : (S, m, m) in 0..1
    kind : one of MASK_LOSSES
        "sigmoid": mean BCE on the true class's logits; the other classes' are not looked at, so classes do not compete.
        "softmax": each pixel is one of K classes (0 is background); mean cross-entropy. They compete.
        "agnostic": as "sigmoid", with one mask for all classes.

    Returns
    -------
    loss (0 when there are no RoIs), cache
    """
    if kind == "softmax":
        pixels = logits.transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])
        pixel_labels = np.where(targets >= 0.5, labels[:, None, None], 0)
        loss, cache = softmax_cross_entropy_forward(pixels, pixel_labels.ravel())
        return loss, (kind, logits.shape, None, cache)
    channel = labels if kind == "sigmoid" else np.zeros_like(labels)
    chosen = (np.arange(len(labels)), channel)
    loss, cache = bce_with_logits_forward(logits[chosen], np.asarray(targets, like=logits))
    return loss, (kind, logits.shape, chosen, cache)


def mask_loss_backward(dloss, cache):
    """Gradient of the logits, of their shape."""
    kind, shape, chosen, loss_cache = cache
    if kind == "softmax":
        # forward: logits -> pixels (S * m * m, K): transpose, reshape      backward: the same steps in reverse
        dpixels = softmax_cross_entropy_backward(dloss, loss_cache)
        s, k, m, _ = shape
        return np.ascontiguousarray(dpixels.reshape(s, m, m, k).transpose(0, 3, 1, 2), like=dpixels)
    dchosen = bce_with_logits_backward(dloss, loss_cache)
    dlogits = np.zeros(shape, dchosen.dtype, like=dchosen)
    # forward: chosen logits = logits[RoI, true class], every index once      gather -> scatter
    dlogits[chosen] = dchosen
    return dlogits


def mask_probabilities(logits, labels, kind="sigmoid"):
    """The mask of each detection's class: (D, K, m, m), (D,) -> (D, m, m) in 0..1."""
    if kind == "softmax":
        return softmax(logits, axis=1)[np.arange(len(labels)), labels]
    channel = labels if kind == "sigmoid" else np.zeros_like(labels)
    return sigmoid(logits[np.arange(len(labels)), channel])
