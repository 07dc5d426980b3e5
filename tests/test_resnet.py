import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE, fill, gradient_dots

from nprcnn.errors import ConfigError
from nprcnn.layers import NORMS
from nprcnn.models.resnet import DEPTHS, STAGES, BasicBlock, Bottleneck, Options, ResNet, resnet
from nprcnn.trace import Trace


class Zeros:
    """A generator of zeros, for counting the parameters of large networks without drawing them."""

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


def small_resnet(norm="batch", trainable=5):
    return fill(ResNet(np.random.default_rng(0), BasicBlock, (1, 2, 1, 1), 4, norm, trainable), "small ")


@pytest.mark.parametrize("block, norm, stride", [(BasicBlock, "BatchNorm2d", 2), (BasicBlock, "FrozenBatchNorm2d", 1),
                                                 (Bottleneck, "BatchNorm2d", 1), (Bottleneck, "FrozenBatchNorm2d", 2)])
def test_blocks_are_torchvisions(block, norm, stride):
    """y, dx, the gradient of each parameter, the running statistics; with and without a downsampling shortcut."""
    channels = 4 if stride == 1 and block is BasicBlock else 6
    width = 4 if block is BasicBlock else 2
    name = f"block.{block.__name__}.{norm}"
    options = Options({"BatchNorm2d": "batch", "FrozenBatchNorm2d": "frozen"}[norm])
    layer = fill(block(np.random.default_rng(0), channels, width, stride, 1, options), name + ".")
    assert (layer.downsample is None) == (channels == width * block.expansion and stride == 1)
    y, cache = layer.forward(seeded.normal(name, 2, channels, 5, 7), True)
    np.testing.assert_allclose(y, REFERENCE[name], rtol=1e-11, atol=1e-13)
    dx = layer.backward(seeded.normal(name + " dy", *y.shape), cache)
    np.testing.assert_allclose(dx, REFERENCE[name + ".dx"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradient_dots(layer, name + "."), REFERENCE[name + ".dparameters"], rtol=1e-10, atol=1e-12)
    running = np.concatenate([a for n, a in layer.state_dict().items() if "running" in n])
    np.testing.assert_allclose(running, REFERENCE[name + ".running"], rtol=1e-12)


def test_version_1_5_has_the_stride_in_the_3x3():
    block = Bottleneck(np.random.default_rng(0), 8, 4, 2, 1, Options("batch"))
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == (1, 2, 1)
    assert block.conv2.weight.data.shape == (4, 4, 3, 3) and block.downsample[0].stride == 2


@pytest.mark.parametrize("depth, parameters", [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160),
                                               (152, 58_143_808)])
def test_depths_have_torchvisions_number_of_parameters(depth, parameters):
    body = resnet(Zeros(), depth, "batch")
    assert sum(p.data.size for p in body.parameters()) == parameters
    assert body.out_channels == [c * DEPTHS[depth][0].expansion for c in (64, 128, 256, 512)]


def test_stages_halve_the_size():
    trace = Trace()
    features, cache = small_resnet().forward(np.random.default_rng(0).standard_normal((2, 3, 64, 96)), False, trace)
    assert cache is None
    assert [f.shape for f in features] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6), (2, 32, 2, 3)]
    assert list(trace) == [f"backbone.{name}" for name in STAGES]
    assert all(trace[f"backbone.layer{k + 1}"] is features[k] for k in range(4))
    assert trace["backbone.stem"].shape == (2, 4, 32, 48)


def test_odd_sizes():
    features, _ = small_resnet().forward(np.zeros((1, 3, 37, 51)), False)
    assert [f.shape[2:] for f in features] == [(10, 13), (5, 7), (3, 4), (2, 2)]  # as PyTorch: ceil(size / 2) at every step


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_the_whole_body(norm):
    """Every parameter with a unit direction of its own, against differences. Measured: 4e-8; a step of 1e-6 meets no kink here."""
    body = small_resnet(norm)
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 48))
    features, cache = body.forward(x, True)
    dfeatures = [np.random.default_rng(k).standard_normal(f.shape) for k, f in enumerate(features)]
    copies = [d.copy() for d in dfeatures]
    assert body.backward(dfeatures, cache) is None
    assert all((d == c).all() for d, c in zip(dfeatures, copies))
    for name, parameter in body.named_parameters():
        data, v = parameter.data, seeded.normal("check " + name, *parameter.data.shape)
        v /= np.linalg.norm(v)
        ends = []
        for step in (1e-6, -1e-6):
            parameter.data = data + step * v
            ends.append(body.forward(x, True)[0])
        parameter.data = data
        numeric = sum(np.sum(d * (a - b)) for d, a, b in zip(dfeatures, *ends)) / 2e-6
        assert np.sum(parameter.grad * v) == pytest.approx(numeric, rel=1e-6), name


@pytest.mark.parametrize("trainable", range(6))
def test_freezing(trainable):
    whole, body = small_resnet(), small_resnet(trainable=trainable)
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32))
    trace = Trace()
    for model in (whole, body):
        features, cache = model.forward(x, True)
        model.backward([np.ones_like(f) for f in features], cache, trace if model is body else None)
    assert [c is None for c in cache] == [k < 5 - trainable for k in range(5)]  # what no backward pass asks for is not kept
    frozen = {"conv1", "bn1"} if trainable < 5 else set()
    frozen |= {f"layer{k}" for k in range(1, 5 - trainable)}
    for (name, p), (_, q) in zip(body.named_parameters(), whole.named_parameters()):
        assert p.trainable == (name.split(".")[0] not in frozen)
        assert p.grad is None if not p.trainable else p.grad.tobytes() == q.grad.tobytes(), name
    assert set(trace.grad) == {f"backbone.{name}" for name in STAGES[5 - trainable:]}
    # frozen stages still follow the batch's statistics, as in torchvision
    assert (body.bn1.running_mean.data != fill(ResNet(np.random.default_rng(0), BasicBlock, (1, 2, 1, 1), 4, "batch"),
                                               "small ").bn1.running_mean.data).all()


@pytest.mark.parametrize("options, message", [
    (dict(depth=20), "no ResNet-20; choose one of: 18, 34, 50, 101, 152"), (dict(depth=18, norm="group"), "norm='group'"),
    (dict(depth=18, trainable_stages=6), "6 trainable"), (dict(depth=18, trainable_stages=-1), "-1 trainable")])
def test_unknown_options(options, message):
    with pytest.raises(ConfigError, match=message):
        resnet(Zeros(), **options)
