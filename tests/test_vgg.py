import zlib

import numpy as np
import pytest
from reference import seeded
from small_models import VARIANTS, fill, gradient_dots, running_dots

from nprcnn.errors import ConfigError
from nprcnn.gradcheck import check_gradients
from nprcnn.models.vgg import STAGES, VGG, VGG16
from nprcnn.trace import Trace


class Zeros:
    """A generator of zeros, for names and shapes."""

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


def narrow(norm=None, trainable=5, convs=VGG16):
    return fill(VGG(np.random.default_rng(0), convs, 4, norm, trainable))


def passed(body, x, dlast, dthird=None):
    features, caches = body.forward(x, True)
    body.zero_grad()
    body.backward([None, None, dthird, None, dlast], caches)
    return features


@pytest.mark.parametrize("norm", [None, "batch"])
def test_maps_and_gradients_are_torchvisions(norm):
    """All five stages on an image of odd sides; the gradient comes to two of them. Measured: 1e-13."""
    body = narrow(norm)
    features = passed(body, seeded.normal("vgg", 2, 3, 37, 50), seeded.normal("vgg dy", 2, 32, 2, 3),
                      seeded.normal("vgg dy 2", 2, 16, 9, 12))
    assert [f.shape for f in features] == [(2, c, 37 >> i, 50 >> i) for i, c in enumerate(body.out_channels)]
    for i, found in enumerate(features):
        expected = VARIANTS[f"vgg.{norm}.{i}"]
        np.testing.assert_allclose(found if i > 1 else found[:, :, ::5, ::5], expected, rtol=1e-10, atol=1e-12)
        assert 0.2 < (expected > 0).mean() < 0.8
    np.testing.assert_allclose(gradient_dots(body), VARIANTS[f"vgg.{norm}.dparameters"], rtol=1e-9)
    np.testing.assert_allclose(running_dots(body), VARIANTS[f"vgg.{norm}.running"], rtol=1e-10)


def test_names_shapes_and_number_of_parameters_are_torchvisions():
    body = VGG(Zeros())
    text = "\n".join(" ".join([name, *map(str, array.shape)]) for name, array in body.state_dict().items())
    count = sum(p.data.size for p in body.parameters())
    assert [zlib.crc32(text.encode()), count] == VARIANTS["vgg16.keys"].tolist() and count == 14_714_688
    assert body.out_channels == [64, 128, 256, 512, 512]
    # with batch norm: features.0 is a convolution (its bias would be taken away again), .1 its norm, .2 the ReLU
    names = list(VGG(Zeros(), width=4, norm="batch").state_dict())
    assert names[:2] == ["features.0.weight", "features.1.weight"] and names[5] == "features.3.weight"


@pytest.mark.parametrize("norm", [None, "batch", "frozen"])
def test_gradients(norm):
    """Of every parameter; the image has none."""
    body = narrow(norm, convs=(1, 1, 2, 1, 1))
    own = body.parameters()
    x = seeded.normal("vgg", 2, 3, 33, 32)

    def forward(*values):
        for parameter, value in zip(own, values):
            parameter.data = value
        features, caches = body.forward(x, True)
        return (features[2], features[4]), caches

    def backward(dy, caches):
        body.zero_grad()
        body.backward([None, None, dy[0], None, dy[1]], caches)
        return tuple(p.grad for p in own)
    # 40,000 ReLUs and max-pools: a step of 1e-5 would cross the kink of some
    check_gradients(forward, backward, tuple(p.data for p in own), eps=1e-7, rtol=1e-5)


@pytest.mark.parametrize("trainable", range(6))
def test_frozen_stages_get_no_gradient_and_the_others_the_same(trainable):
    x, dy = seeded.normal("vgg", 2, 3, 37, 50), seeded.normal("vgg dy", 2, 32, 2, 3)
    whole, body = narrow(), narrow(trainable=trainable)
    passed(whole, x, dy), passed(body, x, dy)
    first = [0, 2, 4, 7, 10, 13][5 - trainable]  # convolutions that are frozen
    for i, ((name, p), (_, q)) in enumerate(zip(whole.named_parameters(), body.named_parameters())):
        assert q.trainable == (i >= 2 * first), name
        if q.trainable:
            assert q.grad.tobytes() == p.grad.tobytes(), name
        else:
            assert q.grad is None, name


def test_trace():
    body, trace = narrow(), Trace()
    features, caches = body.forward(seeded.normal("vgg", 2, 3, 37, 50), True, trace)
    body.backward([None] * 4 + [np.ones_like(features[4])], caches, trace)
    assert list(trace) == [f"backbone.{stage}" for stage in STAGES]
    assert all(trace[name] is f and trace.grad[name].shape == f.shape for name, f in zip(trace, features))
    assert body.forward(seeded.normal("vgg", 2, 3, 37, 50), False)[1] is None


@pytest.mark.parametrize("arguments, message", [
    (dict(norm="group"), "norm='group' is not one of None, batch, frozen"), (dict(convs=(2, 2, 3)), "five stages conv1 .. conv5"),
    (dict(trainable_stages=6), "6 trainable")])
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        VGG(Zeros(), **{"width": 2, **arguments})
