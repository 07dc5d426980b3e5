"""The heads of the C4 models (Mask R-CNN, section 3 and figure 4, left): the last stage of the ResNet runs on every RoI.

    RoI features of C4 (14x14) -> layer4, stride 2 (7x7) -> mean over the pixels -> class logits, box deltas
                                                       \\-> 2x2 deconv, ReLU (14x14) -> 1x1 conv -> K mask logits

One layer4 serves both branches. It is by far the most costly part: nine convolutions for each of the RoIs. The pyramid made
it unnecessary.
"""

from ..layers import Layer
from ..ops.pool import global_avg_pool_backward, global_avg_pool_forward
from .resnet import make_stage, stage_backward, stage_forward


class Res5BoxHead(Layer):
    """layer4 and the mean: (R, C, 14, 14) -> (R, hidden).

    body: the ResNet without layer4 that this is the end of. blocks: how many (3 in ResNet-50).
    """

    def __init__(self, rng, body, blocks):
        width = body.width * 2 ** 3
        self.layer4 = make_stage(rng, body.block, blocks, body.out_channels[-1], width, 2, 1, body.options)
        self.out_channels = width * body.block.expansion

    def forward(self, x, train):
        """(R, C, 14, 14) -> (R, hidden), cache."""
        x, stage_cache = stage_forward(self.layer4, x, train)
        h, pool_cache = global_avg_pool_forward(x)
        return h, (stage_cache, pool_cache) if train else None

    def backward(self, dh, cache):
        """(R, hidden) -> (R, C, 14, 14)."""
        stage_cache, pool_cache = cache
        # forward: h = mean(layer4(x))
        return stage_backward(self.layer4, global_avg_pool_backward(dh, pool_cache), stage_cache)


class Res5MaskHead(Layer):
    """The same layer4 without the mean: (S, C, 14, 14) -> (S, hidden, 7, 7). Its parameters belong to the box head.

    In training it runs on the positive RoIs a second time: the box head's maps could be taken over, but in prediction, where masks are
    read from the final boxes, they cannot.
    """

    def __init__(self, box_head):
        self.box_head = box_head

    def named_tensors(self, prefix=""):
        """None of its own: the optimiser must not see a parameter twice."""
        return iter(())

    def forward(self, x, train):
        """(S, C, 14, 14) -> (S, hidden, 7, 7), cache."""
        return stage_forward(self.box_head.layer4, x, train)

    def backward(self, dy, cache):
        """(S, hidden, 7, 7) -> (S, C, 14, 14). Adds to the gradients that the box branch left: shared weights, so they sum."""
        return stage_backward(self.box_head.layer4, dy, cache)
