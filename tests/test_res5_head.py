"""The C4 models' heads: one layer4 for boxes and masks."""

import numpy as np
import pytest
from reference import seeded
from small_models import VARIANTS, fill, gradient_dots, running_dots

from nprcnn.gradcheck import check_gradients
from nprcnn.models.res5_head import Res5BoxHead, Res5MaskHead
from nprcnn.models.resnet import BasicBlock, Bottleneck, ResNet

POSITIVE = [0, 2, 3]


def heads(norm="batch", block=Bottleneck, blocks=2):
    """Of a ResNet of width 1. Bottleneck: 16 -> 32 channels; BasicBlock: 4 -> 8."""
    rng = np.random.default_rng(0)
    box = fill(Res5BoxHead(rng, ResNet(rng, block, (1, 1, 1), 1, norm), blocks))
    return box, Res5MaskHead(box)


def both(box, mask, x, dhidden, dmaps):
    """hidden, maps and dx, when all RoIs go through the box head and three of them through the mask head."""
    hidden, box_cache = box.forward(x, True)
    maps, mask_cache = mask.forward(x[POSITIVE], True)
    box.zero_grad()
    dx = np.zeros_like(x)
    dx[POSITIVE] = mask.backward(dmaps, mask_cache)
    return hidden, maps, dx + box.backward(dhidden, box_cache)


@pytest.mark.parametrize("norm, name", [("batch", "BatchNorm2d"), ("frozen", "FrozenBatchNorm2d")])
def test_both_branches_are_torchvisions_layer4_and_its_gradients_add_up(norm, name):
    """Measured: 1e-13. With batch norm each branch has the statistics of its own RoIs, and the running ones move twice."""
    box, mask = heads(norm)
    x = seeded.normal("res5", 5, 16, 6, 6)
    hidden, maps, dx = both(box, mask, x, seeded.normal("res5 dhidden", 5, 32), seeded.normal("res5 dmaps", 3, 32, 3, 3))
    for found, what in ((hidden, "hidden"), (maps, "maps"), (dx, "dx"), (gradient_dots(box), "dparameters"),
                        (running_dots(box), "running")):
        np.testing.assert_allclose(found, VARIANTS[f"res5.{name}.{what}"], rtol=1e-9, atol=1e-11, err_msg=what)


def test_the_mask_branch_has_no_parameters_of_its_own():
    box, mask = heads()
    assert mask.parameters() == [] and mask.state_dict() == {}
    assert list(box.state_dict())[0] == "layer4.0.conv1.weight"
    x = seeded.normal("res5", 5, 16, 6, 6)
    alone, _ = mask.forward(x, True)
    box.layer4[0].conv1.weight.data = 2 * box.layer4[0].conv1.weight.data + 1
    assert not np.allclose(mask.forward(x, True)[0], alone)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_gradients(block, norm):
    """Of the input and of every parameter, both branches together."""
    box, mask = heads(norm, block, 1)
    own = box.parameters()

    def forward(x, *values):
        for parameter, value in zip(own, values):
            parameter.data = value
        hidden, box_cache = box.forward(x, True)
        maps, mask_cache = mask.forward(x[POSITIVE], True)
        return (hidden, maps), (box_cache, mask_cache)

    def backward(dy, caches):
        box.zero_grad()
        dx = box.backward(dy[0], caches[0])
        dx[POSITIVE] += mask.backward(dy[1], caches[1])
        return (dx, *(p.grad for p in own))
    channels = 4 * block.expansion
    # 2,000 ReLUs: a step of 1e-5 would cross the kink of some
    check_gradients(forward, backward, (seeded.normal("res5", 5, channels, 6, 6), *(p.data for p in own)), eps=1e-6, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_no_rois(train):
    box, mask = heads("frozen")
    x = np.zeros((0, 16, 6, 6))
    hidden, box_cache = box.forward(x, train)
    maps, mask_cache = mask.forward(x, train)
    assert hidden.shape == (0, 32) and maps.shape == (0, 32, 3, 3)
    if train:
        assert box.backward(hidden, box_cache).shape == mask.backward(maps, mask_cache).shape == x.shape
        assert all(p.grad is not None and not p.grad.any() for p in box.parameters())
    else:
        assert box_cache is None and mask_cache is None
