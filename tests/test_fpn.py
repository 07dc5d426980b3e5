import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE, fill, gradient_dots

from nprcnn.gradcheck import check_gradients
from nprcnn.models.fpn import FPN, LEVELS
from nprcnn.trace import Trace

CHANNELS, SIZES = (3, 4, 5, 6), ((7, 9), (4, 5), (2, 3), (1, 2))  # odd: the upsampling is not simply by two


def pyramid_layer(norm):
    return fill(FPN(np.random.default_rng(0), CHANNELS, 4, norm), "fpn.")


def features():
    return [seeded.normal(f"fpn {k}", 2, c, *s) for k, (c, s) in enumerate(zip(CHANNELS, SIZES))]


@pytest.mark.parametrize("norm, name", [(None, "fpn.None"), ("batch", "fpn.BatchNorm2d")])
def test_levels_and_gradients_are_torchvisions(norm, name):
    fpn = pyramid_layer(norm)
    pyramid, cache = fpn.forward(features(), True)
    assert len(pyramid) == 5
    for k, p in enumerate(pyramid):
        np.testing.assert_allclose(p, REFERENCE[f"{name}.p{k + 2}"], rtol=1e-11, atol=1e-12)
    dpyramid = [seeded.normal(f"fpn dy {k}", *p.shape) for k, p in enumerate(pyramid)]
    copies = [d.copy() for d in dpyramid]
    for k, d in enumerate(fpn.backward(dpyramid, cache)):
        np.testing.assert_allclose(d, REFERENCE[f"{name}.dc{k + 2}"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(gradient_dots(fpn, "fpn."), REFERENCE[f"{name}.dparameters"], rtol=1e-9, atol=1e-10)
    assert all((d == c).all() for d, c in zip(dpyramid, copies))


@pytest.mark.parametrize("norm", [None, "batch", "frozen"])
def test_gradients(norm):
    fpn = pyramid_layer(norm)
    own = fpn.parameters()

    def forward(*values):
        for parameter, value in zip(own, values[4:]):
            parameter.data = value
        pyramid, cache = fpn.forward(values[:4], True)
        return tuple(pyramid), cache

    def backward(dy, cache):
        fpn.zero_grad()
        return (*fpn.backward(dy, cache), *(p.grad for p in own))
    check_gradients(forward, backward, (*features(), *(p.data for p in own)))


def test_gradients_that_nobody_needs_are_left_out():
    fpn = pyramid_layer(None)
    pyramid, cache = fpn.forward(features(), True)
    dpyramid = [seeded.normal(f"fpn dy {k}", *p.shape) for k, p in enumerate(pyramid)]
    whole, weights = fpn.backward(dpyramid, cache), [p.grad for p in fpn.parameters()]
    fpn.zero_grad()
    none, none_too, *others = fpn.backward(dpyramid, cache, frozen=2)
    assert none is None and none_too is None
    assert all((a == b).all() for a, b in zip(others, whole[2:], strict=True))
    assert all((a == p.grad).all() for a, p in zip(weights, fpn.parameters(), strict=True))


def test_p6_is_every_second_pixel_of_p5():
    pyramid, cache = pyramid_layer(None).forward([seeded.normal(f"x{k}", 1, c, 2 ** (4 - k) + 1, 2 ** (4 - k))
                                                  for k, c in enumerate(CHANNELS)], False)
    assert cache is None
    np.testing.assert_array_equal(pyramid[4], pyramid[3][:, :, ::2, ::2])
    assert [p.shape[2:] for p in pyramid] == [(17, 16), (9, 8), (5, 4), (3, 2), (2, 1)]
    assert pyramid[4].flags.c_contiguous


def test_trace_of_both_directions():
    fpn, trace = pyramid_layer(None), Trace()
    pyramid, cache = fpn.forward(features(), True, trace)
    dpyramid = [np.ones_like(p) for p in pyramid]
    fpn.backward(dpyramid, cache, trace)
    assert list(trace) == [f"fpn.{level}" for level in LEVELS]
    assert set(trace.grad) == set(trace)
    # P5 feeds P6 too, so its gradient is the sum of both
    expected = np.ones((2, 4, 1, 2))
    expected[:, :, ::2, ::2] += 1
    np.testing.assert_array_equal(trace.grad["fpn.p5"], expected)
    np.testing.assert_array_equal(trace.grad["fpn.p6"], 1)
