"""Feature pyramid network (Lin et al. 2016, arXiv 1612.03144, section 3).

    C5 -1x1-> inner5 -------------------3x3-> P5 -subsample-> P6
                |  nearest, x2
    C4 -1x1--> (+) = inner4 ------------3x3-> P4
                |
    C3 -1x1--> (+) = inner3 ------------3x3-> P3
                |
    C2 -1x1--> (+) = inner2 ------------3x3-> P2

P6 exists for the largest anchors only: the RoI heads do not use it.
"""

import numpy as np

from .. import backend
from ..layers import Layer, conv_block, conv_norm_relu, conv_norm_relu_backward, kaiming_uniform_a1
from ..ops.resize import resize_nearest_backward, resize_nearest_forward
from ..trace import record, record_grad

LEVELS = ("p2", "p3", "p4", "p5", "p6")


class FPN(Layer):
    """in_channels: those of C2 .. C5; out_channels: of every pyramid level (256 in the paper).

    norm: None, "batch" or "frozen", after each convolution. The paper has none; training from random weights wants it
    (He et al. 2018, arXiv 1811.08883), and torchvision's v2 models have it.
    """

    def __init__(self, rng, in_channels, out_channels, norm=None):
        self.inner_blocks = [conv_block(rng, c, out_channels, 1, norm, kaiming_uniform_a1) for c in in_channels]
        self.layer_blocks = [conv_block(rng, out_channels, out_channels, 3, norm, kaiming_uniform_a1) for _ in in_channels]

    def forward(self, features, train, trace=None):
        """[C2 .. C5] -> [P2 .. P6], cache."""
        count = len(features)
        inner, pyramid = [None] * count, [None] * count
        lateral_caches, resize_caches, output_caches = [None] * count, [None] * count, [None] * count
        for i in reversed(range(count)):
            top_down = None
            if i + 1 < count:
                top_down, resize_caches[i] = resize_nearest_forward(inner[i + 1], features[i].shape[2:],
                                                                    kernels=backend.active(inner[i + 1]))
            inner[i], lateral_caches[i] = conv_norm_relu(*self.inner_blocks[i], features[i], train, residual=top_down,
                                                         relu=False)
            pyramid[i], output_caches[i] = conv_norm_relu(*self.layer_blocks[i], inner[i], train, relu=False)
        pyramid.append(np.ascontiguousarray(pyramid[-1][:, :, ::2, ::2], like=pyramid[-1]))  # a 1x1 max-pool of stride 2
        for level, p in zip(LEVELS, pyramid):
            record(trace, f"fpn.{level}", p)
        return pyramid, (lateral_caches, resize_caches, output_caches) if train else None

    def backward(self, dpyramid, cache, trace=None, frozen=0):
        """Gradients of P2 .. P6 -> gradients of C2 .. C5. The lowest `frozen` of these are None: nobody needs them."""
        lateral_caches, resize_caches, output_caches = cache
        count = len(lateral_caches)
        dpyramid = list(dpyramid)
        record_grad(trace, "fpn.p6", dpyramid[count])
        # forward: P6 = P5[::2, ::2], and P5 is used itself as well: slice -> scatter, fan-out -> sum
        dp5 = dpyramid[count - 1].copy()
        dp5[:, :, ::2, ::2] += dpyramid[count]
        dpyramid[count - 1] = dp5
        dfeatures = []
        for i in range(count):
            record_grad(trace, f"fpn.{LEVELS[i]}", dpyramid[i])
            # forward: P_i = conv3x3(inner_i), and inner_i was also resized into inner_(i-1): the gradients add
            dinner, _ = conv_norm_relu_backward(*self.layer_blocks[i], dpyramid[i], output_caches[i])
            if i > 0:
                dinner += dinner_from_below
            # forward: inner_i = conv1x1(C_i) + top_down      the sum gives the same gradient to both
            dfeature, dtop_down = conv_norm_relu_backward(*self.inner_blocks[i], dinner, lateral_caches[i], needs_dx=i >= frozen)
            dfeatures.append(dfeature)
            if i + 1 < count:
                # forward: top_down = resize(inner_(i+1))
                dinner_from_below = resize_nearest_backward(dtop_down, resize_caches[i], kernels=backend.active(dtop_down))
        return dfeatures


class SingleLevelBackbone(Layer):
    """A body whose last map alone is used: image -> [C4] (or [C5]). Fast and Faster R-CNN, before the pyramid."""

    def __init__(self, body):
        self.body = body

    def forward(self, x, train, trace=None):
        """x (N, 3, H, W) -> [last map], cache."""
        features, cache = self.body.forward(x, train, trace)
        return features[-1:], cache

    def backward(self, dfeatures, cache, trace=None):
        """Gradient of the one map, in a list. Returns nothing: the image needs no gradient."""
        # forward: features[-1:]      slice -> nothing arrives at the others
        self.body.backward([None] * (len(self.body.out_channels) - 1) + list(dfeatures), cache, trace)


class BackboneWithFPN(Layer):
    """ResNet and pyramid: image -> [P2 .. P6]."""

    def __init__(self, body, fpn):
        self.body = body
        self.fpn = fpn

    def forward(self, x, train, trace=None):
        """x (N, 3, H, W) -> [P2 .. P6], cache."""
        features, body_cache = self.body.forward(x, train, trace)
        pyramid, fpn_cache = self.fpn.forward(features, train, trace)
        return pyramid, (body_cache, fpn_cache) if train else None

    def backward(self, dpyramid, cache, trace=None):
        """Gradients of P2 .. P6. Returns nothing: the image needs no gradient."""
        body_cache, fpn_cache = cache
        # forward: pyramid = fpn(body(x)); of the body's stages, the stem (which has no map here) is frozen first
        frozen = max(0, self.body.frozen_stages - 1)
        self.body.backward(self.fpn.backward(dpyramid, fpn_cache, trace, frozen), body_cache, trace)
