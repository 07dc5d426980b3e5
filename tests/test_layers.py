from functools import partial

import numpy as np
import pytest
from small_models import fill, snapshot

from nprcnn import layers
from nprcnn.errors import WeightsError
from nprcnn.gradcheck import check_gradients
from nprcnn.layers import (BatchNorm2d, Buffer, Conv2d, ConvTranspose2d, FrozenBatchNorm2d, Layer, Linear, Parameter,
                           conv_norm_relu, conv_norm_relu_backward, flatten)
from nprcnn.ops import activation, conv, norm


class Nested(Layer):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.first = Linear(rng, 3, 2)
        self.blocks = [[Conv2d(rng, 2, 3, 3, bias=False), BatchNorm2d(3)], [Conv2d(rng, 3, 1, 1), None]]
        self.absent = None
        self.size = (7, 7)
        self.scale = Parameter(np.ones(1, np.float32))


NESTED_NAMES = ["first.weight", "first.bias", "blocks.0.0.weight", "blocks.0.1.weight", "blocks.0.1.bias",
                "blocks.0.1.running_mean", "blocks.0.1.running_var", "blocks.1.0.weight", "blocks.1.0.bias", "scale"]


def test_names_follow_the_attributes_and_their_order():
    model = Nested()
    assert list(model.state_dict()) == NESTED_NAMES
    assert [name for name, _ in model.named_parameters()] == [n for n in NESTED_NAMES if "running" not in n]
    assert len(model.parameters()) == 8


def test_gradients_add_up_until_zero_grad_and_are_never_shared():
    p = Parameter(np.zeros(2))
    mine = np.array([1.0, 2.0])
    p.add_grad(mine)
    p.add_grad(np.array([10.0, 20.0]))
    assert p.grad.tolist() == [11, 22]
    assert mine.tolist() == [1, 2]  # the first gradient is copied, not kept and written into
    model = Nested()
    for q in model.parameters():
        q.add_grad(np.ones_like(q.data))
    model.zero_grad()
    assert all(q.grad is None for q in model.parameters())


def test_load_state_dict_takes_copies_in_the_models_dtype():
    model, other = Nested(), fill(Nested(), "other ")
    state = other.state_dict()
    state["blocks.0.1.num_batches_tracked"] = np.array(7)  # PyTorch's batch norm has it, FrozenBatchNorm has not
    model.load_state_dict(state)
    for name, array in model.state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[name].astype(np.float32))
    model.astype(np.float64).load_state_dict(state)  # the same dtype as in the file: still copies
    for name, array in model.state_dict().items():
        assert (array == state[name]).all() and not np.shares_memory(array, state[name])


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("blocks.0.1.running_var"), "blocks.0.1.running_var is missing"),
    (lambda s: s.update(extra=np.zeros(1)), "extra is not part of this model"),
    (lambda s: s.update(scale=np.zeros(2)), r"scale has shape \(2,\), the model wants \(1,\)"),
    (lambda s: s.clear(), "and 7 more"),
])
def test_weights_that_do_not_fit_are_named_and_change_nothing(change, message):
    model = Nested()
    state = fill(Nested(), "other ").state_dict()
    change(state)
    before = snapshot(model)
    with pytest.raises(WeightsError, match=message):
        model.load_state_dict(state)
    assert snapshot(model) == before


def test_astype_casts_everything():
    model = Nested()
    model.scale.add_grad(np.ones(1, np.float32))
    assert model.astype(np.float64) is model
    assert {a.dtype for a in model.state_dict().values()} == {np.dtype(np.float64)}
    assert model.scale.grad is None  # it was of the old dtype


# ---- each layer calls its pair with its own parameters, and its backward gives every gradient ----

def through(layer, *parameters, **options):
    """forward and backward for check_gradients, with the layer's parameters as arguments."""
    def forward(x, *values):
        for parameter, value in zip(parameters, values):
            parameter.data = value
        return layer.forward(x, True)

    def backward(dy, cache):
        layer.zero_grad()
        dx = layer.backward(dy, cache, **options)
        return (dx, *(p.grad for p in parameters))
    return forward, backward


def layers_with_input():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 4, 5, 7))
    yield "conv", Conv2d(rng, 4, 6, 3, stride=2, padding=1, groups=2), x
    yield "dilated", Conv2d(rng, 4, 3, 3, dilation=2, bias=False), x
    yield "deconv", ConvTranspose2d(rng, 4, 3, 2, stride=2), x
    yield "linear", Linear(rng, 4, 3), x[:, :, 0, 0]
    yield "batch norm", BatchNorm2d(4), x
    yield "frozen", FrozenBatchNorm2d(4), x


@pytest.mark.parametrize("layer, x", [pytest.param(layer, x, id=name) for name, layer, x in layers_with_input()])
def test_layer_gradients(layer, x):
    fill(layer, "layer ")
    parameters = layer.parameters()
    rows = check_gradients(*through(layer, *parameters), (x, *(p.data for p in parameters)))
    assert len(rows) == 1 + len(parameters)


@pytest.mark.parametrize("layer, x", [pytest.param(layer, x, id=name) for name, layer, x in layers_with_input()])
def test_no_cache_without_training_and_no_change_of_state(layer, x):
    fill(layer, "layer ")
    before = snapshot(layer)
    y, cache = layer.forward(x, False)
    assert cache is None
    assert snapshot(layer) == before
    if not isinstance(layer, BatchNorm2d):
        np.testing.assert_array_equal(y, layer.forward(x, True)[0])


def test_a_layer_may_run_twice_before_its_backward():
    layer = fill(Linear(np.random.default_rng(0), 3, 2), "twice ")
    x1, x2, dy1, dy2 = (np.random.default_rng(k).standard_normal((4, n)) for k, n in enumerate((3, 3, 2, 2)))
    (_, cache1), (_, cache2) = layer.forward(x1, True), layer.forward(x2, True)
    np.testing.assert_allclose(layer.backward(dy2, cache2), dy2 @ layer.weight.data, rtol=1e-14)
    np.testing.assert_allclose(layer.backward(dy1, cache1), dy1 @ layer.weight.data, rtol=1e-14)
    np.testing.assert_allclose(layer.weight.grad, dy1.T @ x1 + dy2.T @ x2, rtol=1e-13)


def test_conv_without_dx():
    layer = Conv2d(np.random.default_rng(0), 2, 3, 3)
    y, cache = layer.forward(np.ones((1, 2, 4, 4), np.float32), True)
    assert layer.backward(np.ones_like(y), cache, needs_dx=False) is None
    assert layer.weight.grad.shape == layer.weight.data.shape


def test_batch_norm_follows_the_statistics_of_the_batch():
    layer = fill(BatchNorm2d(3), "bn ")
    mean, var = layer.running_mean.data, layer.running_var.data
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)) * 3 + 1
    y, _ = layer.forward(x, True)
    # biased variance to normalise, unbiased one into the running average, momentum .1
    np.testing.assert_allclose(layer.running_mean.data, 0.9 * mean + 0.1 * x.mean((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(layer.running_var.data, 0.9 * var + 0.1 * x.var((0, 2, 3), ddof=1), rtol=1e-14)
    np.testing.assert_allclose(y.var((0, 2, 3)), layer.weight.data ** 2 * x.var((0, 2, 3)) / (x.var((0, 2, 3)) + 1e-5), rtol=1e-12)
    state = layer.running_mean.data.copy(), layer.running_var.data.copy()
    y, _ = layer.forward(x, False)
    expected = norm.batch_norm_forward(x, layer.weight.data, layer.bias.data, *state, train=False)[0]
    np.testing.assert_array_equal(y, expected)


def test_frozen_norm_has_nothing_to_train():
    layer = FrozenBatchNorm2d(3)
    assert layer.parameters() == []
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert all(isinstance(t, Buffer) for _, t in layer.named_tensors())


# ---- initial values: float32, from the caller's generator, with the spread that the docstrings promise ----

def test_initial_spread():
    # For n values of a normal distribution the relative error of the standard deviation is 1 / sqrt(2 n): here n = 65536, so
    # .3 %; for the uniform one it is smaller. 1 % is more than three times that.
    shape = (64, 1024) + (1, 1)
    for init, std in ((layers.kaiming_normal_fan_out, np.sqrt(2 / 64)), (layers.normal_001, 0.01),
                      (layers.kaiming_uniform_a1, np.sqrt(1 / 1024)), (layers.uniform_fan_in, 1 / np.sqrt(3 * 1024))):
        values = init(np.random.default_rng(0), shape)
        assert values.dtype == np.float32 and values.shape == shape
        assert values.std() == pytest.approx(std, rel=0.01)
        assert abs(values.mean()) < 0.02 * std
    assert np.abs(layers.uniform_fan_in(np.random.default_rng(0), (9, 16))).max() <= 1 / 4
    assert np.abs(layers.kaiming_uniform_a1(np.random.default_rng(0), (9, 3, 1, 1))).max() <= 1


def test_fan_counts_the_kernel():
    a, b = (layers.kaiming_normal_fan_out(np.random.default_rng(0), s) for s in ((4, 9, 1, 1), (4, 1, 3, 3)))
    np.testing.assert_allclose(a.ravel(), 3 * b.ravel(), rtol=1e-6)


# ---- conv, norm, sum, ReLU in one place ----

@pytest.mark.parametrize("norm_layer", [None, BatchNorm2d(3), FrozenBatchNorm2d(3)], ids=["none", "batch", "frozen"])
@pytest.mark.parametrize("train", [False, True])
def test_conv_norm_relu_is_the_composition(norm_layer, train):
    conv_layer = fill(Conv2d(np.random.default_rng(0), 2, 3, 3, stride=2, padding=1), "conv ")
    norm_layer = norm_layer and fill(norm_layer, "norm ")
    x, residual = np.random.default_rng(1).standard_normal((2, 2, 5, 7)), np.random.default_rng(2).standard_normal((2, 3, 3, 4))
    c = conv.conv2d(x, conv_layer.weight.data, conv_layer.bias.data, 2, 1)
    n = c if norm_layer is None else norm_layer.forward(c, train)[0]
    fill(norm_layer, "norm ") if norm_layer else None
    y, cache = conv_norm_relu(conv_layer, norm_layer, x, train, residual=residual)
    # one call does it all, and may round otherwise: a few units of 1e-16. Only batch norm in training takes the steps themselves
    is_steps = train and isinstance(norm_layer, BatchNorm2d)
    check = np.testing.assert_array_equal if is_steps else partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-14)
    check(y, activation.relu(n + residual))
    assert (cache is None) == (not train)
    assert (y == 0).any() and (y > 0).any()
    plain, _ = conv_norm_relu(conv_layer, norm_layer and fill(norm_layer, "norm "), x, train, relu=False)
    check(plain, n)


@pytest.mark.parametrize("norm_layer", [None, BatchNorm2d(3), FrozenBatchNorm2d(3)], ids=["none", "batch", "frozen"])
@pytest.mark.parametrize("relu", [False, True])
def test_conv_norm_relu_gradients(norm_layer, relu):
    conv_layer = fill(Conv2d(np.random.default_rng(0), 2, 3, 3, stride=2, padding=1), "conv ")
    norm_layer = norm_layer and fill(norm_layer, "norm ")
    own = conv_layer.parameters() + (norm_layer.parameters() if norm_layer else [])

    def forward(x, residual, *values):
        for parameter, value in zip(own, values):
            parameter.data = value
        return conv_norm_relu(conv_layer, norm_layer, x, True, residual, relu)

    def backward(dy, cache):
        conv_layer.zero_grad()
        if norm_layer:
            norm_layer.zero_grad()
        dx, dresidual = conv_norm_relu_backward(conv_layer, norm_layer, dy, cache)
        # a bias before batch norm moves nothing: its gradient is rounding, which check_gradients refuses to judge
        return (dx, dresidual, *(None if p is conv_layer.bias and isinstance(norm_layer, BatchNorm2d) else p.grad for p in own))

    x = np.random.default_rng(1).standard_normal((2, 2, 5, 7))
    # a residual of +-10 keeps the sum clear of the ReLU's kink
    residual = 10 * np.random.default_rng(2).choice([-1.0, 1.0], (2, 3, 3, 4))
    check_gradients(forward, backward, (x, residual, *(p.data for p in own)))


def test_conv_block_leaves_the_bias_to_its_norm():
    rng = np.random.default_rng(0)
    conv_layer, norm_layer = layers.conv_block(rng, 2, 3, 3, "batch")
    assert conv_layer.bias is None and conv_layer.padding == 1 and isinstance(norm_layer, BatchNorm2d)
    conv_layer, norm_layer = layers.conv_block(rng, 2, 3, 1)
    assert conv_layer.bias is not None and conv_layer.padding == 0 and norm_layer is None


def test_flatten_without_rows():
    assert flatten(np.zeros((0, 3, 2, 2))).shape == (0, 12)
    assert flatten(np.arange(24).reshape(2, 3, 2, 2))[1].tolist() == list(range(12, 24))
