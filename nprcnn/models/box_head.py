"""The box head: for every RoI its class, and a correction of its box for every class (Fast R-CNN, arXiv 1504.08083).

    RoI features (7x7) -> fc6 -> ReLU -> fc7 -> ReLU -> cls_score   K logits, background first
                                                     -> bbox_pred   4 deltas for each of the K classes
"""

import numpy as np

from ..layers import Layer, Linear, conv_block, conv_norm_relu, conv_norm_relu_backward, flatten, named_tensors, relu_after
from ..ops.activation import relu_backward
from ..ops.boxes import encode_boxes
from ..ops.losses import (smooth_l1_backward, smooth_l1_forward, softmax_cross_entropy_backward,
                          softmax_cross_entropy_forward)

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SMOOTH_L1_BETA = 1 / 9


class BoxHead(Layer):
    """Two fully connected layers on the flattened RoI features (FPN, section 4.2)."""

    def __init__(self, rng, in_features, hidden):
        self.fc6 = Linear(rng, in_features, hidden)
        self.fc7 = Linear(rng, hidden, hidden)

    def forward(self, x, train):
        """(R, C, 7, 7) -> (R, hidden), cache."""
        h, cache6 = self.fc6.forward(flatten(x), train)
        h, relu6 = relu_after(h, train)
        h, cache7 = self.fc7.forward(h, train)
        h, relu7 = relu_after(h, train)
        return h, (x.shape, cache6, relu6, cache7, relu7) if train else None

    def backward(self, dh, cache):
        """(R, hidden) -> (R, C, 7, 7)."""
        shape, cache6, relu6, cache7, relu7 = cache
        # forward: h = relu(fc7(h6))
        dh = self.fc7.backward(relu_backward(dh, relu7), cache7)
        # forward: h6 = relu(fc6(flatten(x)))
        dh = self.fc6.backward(relu_backward(dh, relu6), cache6)
        return dh.reshape(shape)


class ConvBoxHead(Layer):
    """3x3 convolutions, then one fully connected layer: torchvision's v2 (FastRCNNConvFCHead).

    channels: of each convolution; hidden: of the last layer; norm: as in FPN.
    """

    def __init__(self, rng, in_channels, size, channels, hidden, norm=None):
        ins = (in_channels,) + tuple(channels[:-1])
        self.blocks = [conv_block(rng, i, o, 3, norm) for i, o in zip(ins, channels)]
        self.fc = Linear(rng, channels[-1] * size * size, hidden)

    def named_tensors(self, prefix=""):
        """torchvision's head is a plain sequence of blocks, a flattening (which has no tensors) and the layer: 0 .. 3, 5."""
        for index, block in enumerate(self.blocks):
            yield from named_tensors(block, f"{prefix}{index}")
        yield from named_tensors(self.fc, f"{prefix}{len(self.blocks) + 1}")

    def forward(self, x, train):
        """(R, C, 7, 7) -> (R, hidden), cache."""
        caches = []
        for block in self.blocks:
            x, cache = conv_norm_relu(*block, x, train)
            caches.append(cache)
        h, fc_cache = self.fc.forward(flatten(x), train)
        h, relu_cache = relu_after(h, train)
        return h, (caches, x.shape, fc_cache, relu_cache) if train else None

    def backward(self, dh, cache):
        """(R, hidden) -> (R, C, 7, 7)."""
        caches, shape, fc_cache, relu_cache = cache
        # forward: h = relu(fc(flatten(x)))
        dx = self.fc.backward(relu_backward(dh, relu_cache), fc_cache).reshape(shape)
        # forward: x = relu(norm(conv(x))), once a block      backward: the blocks from the last to the first
        for block, block_cache in zip(reversed(self.blocks), reversed(caches)):
            dx, _ = conv_norm_relu_backward(*block, dx, block_cache)
        return dx


class BoxPredictor(Layer):
    """(R, hidden) -> class logits (R, K) and box deltas (R, 4 K)."""

    def __init__(self, rng, hidden, num_classes):
        self.cls_score = Linear(rng, hidden, num_classes)
        self.bbox_pred = Linear(rng, hidden, num_classes * 4)

    def forward(self, h, train):
        """(R, hidden) -> logits (R, K), deltas (R, 4 K), cache."""
        logits, logits_cache = self.cls_score.forward(h, train)
        deltas, deltas_cache = self.bbox_pred.forward(h, train)
        return logits, deltas, (logits_cache, deltas_cache) if train else None

    def backward(self, dlogits, ddeltas, cache):
        """dlogits (R, K), ddeltas (R, 4 K) -> dh (R, hidden)."""
        logits_cache, deltas_cache = cache
        # forward: logits = cls_score(h), deltas = bbox_pred(h)      h feeds both: fan-out, so the gradients add
        return self.cls_score.backward(dlogits, logits_cache) + self.bbox_pred.backward(ddeltas, deltas_cache)


def box_losses(logits, deltas, rois, labels, target_boxes, box_weights=BOX_WEIGHTS, beta=SMOOTH_L1_BETA):
    """Class and box loss of the sampled RoIs (Fast R-CNN, equation 1).

    Parameters
    ----------
    logits, deltas : (R, K), (R, 4 K)
    rois, labels, target_boxes : (R, 4), (R,), (R, 4)
        In pixels of the resized image; int; each RoI's target box. Label 0 is background: its target box is not looked at.
    box_weights : four floats
        See encode_boxes.
    beta : float
        Of smooth L1; 0 is L1 (Detectron2).

    Returns
    -------
    class loss : mean cross-entropy over all RoIs
    box loss : sum of smooth L1 over the positives, on the deltas of the true class, / R
    cache
    """
    class_loss, class_cache = softmax_cross_entropy_forward(logits, labels)
    positive = np.flatnonzero(labels > 0)
    deltas = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    targets = np.asarray(encode_boxes(target_boxes[positive], rois[positive], box_weights), like=deltas)
    chosen = (positive, labels[positive])
    box_loss, box_cache = smooth_l1_forward(deltas[chosen], targets, beta, max(len(labels), 1))
    return class_loss, box_loss, (deltas.shape, chosen, class_cache, box_cache)


def box_losses_backward(dclass_loss, dbox_loss, cache):
    """Gradients of the logits (R, K) and the deltas (R, 4 K)."""
    shape, chosen, class_cache, box_cache = cache
    dlogits = softmax_cross_entropy_backward(dclass_loss, class_cache)
    ddeltas = np.zeros(shape, dlogits.dtype, like=dlogits)
    # forward: chosen deltas = deltas[positive, true class], every index once      gather -> scatter
    ddeltas[chosen] = smooth_l1_backward(dbox_loss, box_cache)
    return dlogits, ddeltas.reshape(shape[0], shape[1] * 4)
