import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE, fill

from nprcnn.gradcheck import check_gradients
from nprcnn.models.mask_head import (MASK_LOSSES, MaskHead, MaskHeadMLP, MaskPredictor, MaskPredictorMLP,
                                     mask_loss_backward, mask_loss_forward, mask_probabilities)
from nprcnn.models.targets import mask_targets

LABELS = np.array([2, 1, 3, 3, 2, 1])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loss_inputs(kind):
    logits = seeded.normal("mask logits", 6, 4, 14, 14)
    return (logits[:, :1] if kind == "agnostic" else logits), LABELS, REFERENCE["mask_targets"]


# ---- losses ----

def test_the_papers_loss_and_its_gradient_are_torchvisions():
    logits, labels, targets = loss_inputs("sigmoid")
    loss, cache = mask_loss_forward(logits, labels, targets)
    assert loss == pytest.approx(REFERENCE["mask_loss"][0], rel=1e-13)
    dlogits = mask_loss_backward(1.0, cache)
    own = np.arange(6), LABELS
    np.testing.assert_allclose(dlogits[own], REFERENCE["mask_loss.dlogits"], rtol=1e-12, atol=1e-18)
    dlogits[own] = 0
    assert not dlogits.any()  # the other classes' masks are not looked at


def test_softmax_makes_the_classes_compete_for_each_pixel():
    logits, labels, targets = loss_inputs("softmax")
    loss, _ = mask_loss_forward(logits, labels, targets, "softmax")
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total = 0
    for i, label in enumerate(labels):
        for y in range(14):
            for x in range(14):
                total -= np.log(share[i, label if targets[i, y, x] >= 0.5 else 0, y, x])
    assert loss == pytest.approx(total / targets.size, rel=1e-12)


def test_agnostic_is_one_mask_for_all():
    logits, labels, targets = loss_inputs("agnostic")
    loss, _ = mask_loss_forward(logits, labels, targets, "agnostic")
    p = sigmoid(logits[:, 0])
    assert loss == pytest.approx(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(), rel=1e-12)


@pytest.mark.parametrize("kind", MASK_LOSSES)
def test_loss_gradients(kind):
    logits, labels, targets = loss_inputs(kind)
    # a mean over a thousand pixels: the gradient is small, and so must be the absolute tolerance
    check_gradients(lambda z: mask_loss_forward(z, labels, targets, kind), mask_loss_backward, (logits,), atol=1e-12)


@pytest.mark.parametrize("kind", MASK_LOSSES)
def test_nothing_positive_costs_nothing(kind):
    logits, labels, targets = loss_inputs(kind)
    loss, cache = mask_loss_forward(logits[:0], labels[:0], targets[:0], kind)
    assert loss == 0
    assert mask_loss_backward(1.0, cache).shape == logits[:0].shape
    assert mask_probabilities(logits[:0], labels[:0], kind).shape == (0, 14, 14)


def test_probabilities_are_those_of_the_detected_class():
    logits, labels, _ = loss_inputs("sigmoid")
    own = np.arange(6), labels
    np.testing.assert_allclose(mask_probabilities(logits, labels), sigmoid(logits[own]), rtol=1e-14)
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mask_probabilities(logits, labels, "softmax"), share[own], rtol=1e-13)
    np.testing.assert_allclose(mask_probabilities(logits[:, :1], labels, "agnostic"), sigmoid(logits[:, 0]), rtol=1e-14)


def test_targets_are_soft():
    targets = REFERENCE["mask_targets"]
    assert ((targets > 0) & (targets < 1)).any()
    square = np.zeros((1, 8, 8), np.uint8)
    square[0, 2:6, 2:6] = 1
    exact = mask_targets(square, np.float32([[2, 2, 6, 6]]), np.array([0]), 4)
    assert exact.dtype == np.float32 and exact.shape == (1, 4, 4) and exact.min() == 0.25 and exact.max() == 1


# ---- heads ----

def build(kind, norm=None):
    rng = np.random.default_rng(0)
    if kind == "fcn":
        head, predictor = MaskHead(rng, 3, (4, 5), norm), MaskPredictor(rng, 5, 4, 3)
    else:
        head, predictor = MaskHeadMLP(rng, 3 * 5 * 5, 6), MaskPredictorMLP(rng, 6, 3, 4)
    return fill(head, "head."), fill(predictor, "predictor.")


@pytest.mark.parametrize("kind, norm, size", [("fcn", None, 10), ("fcn", "batch", 10), ("fcn", "frozen", 10), ("mlp", None, 4)])
def test_shapes_and_gradients(kind, norm, size):
    head, predictor = build(kind, norm)
    own = head.parameters() + predictor.parameters()

    def forward(x, *values):
        for parameter, value in zip(own, values):
            parameter.data = value
        h, head_cache = head.forward(x, True)
        logits, predictor_cache = predictor.forward(h, True)
        assert logits.shape == (2, 3, size, size)
        return logits, (head_cache, predictor_cache)

    def backward(dy, cache):
        head.zero_grad(), predictor.zero_grad()
        return (head.backward(predictor.backward(dy, cache[1]), cache[0]), *(p.grad for p in own))
    # ReLUs in a row cannot all be kept from their kinks; the checker refuses a point where one lies within eps
    check_gradients(forward, backward, (seeded.normal("x", 2, 3, 5, 5), *(p.data for p in own)), eps=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["fcn", "mlp"])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_no_rois(kind, norm):
    head, predictor = build(kind, norm)
    before = {name: a.tobytes() for name, a in head.state_dict().items()}
    h, head_cache = head.forward(np.zeros((0, 3, 5, 5)), True)
    logits, cache = predictor.forward(h, True)
    assert logits.shape == ((0, 3, 10, 10) if kind == "fcn" else (0, 3, 4, 4))
    assert head.backward(predictor.backward(logits, cache), head_cache).shape == (0, 3, 5, 5)
    assert all(not p.grad.any() for p in head.parameters() + predictor.parameters())
    assert {name: a.tobytes() for name, a in head.state_dict().items()} == before  # no statistics of nothing


@pytest.mark.parametrize("kind", ["fcn", "mlp"])
def test_no_cache_without_training(kind):
    head, predictor = build(kind)
    h, cache = head.forward(seeded.normal("x", 2, 3, 5, 5), False)
    assert cache is None and predictor.forward(h, False)[1] is None


def test_names_are_those_of_a_sequence():
    head, predictor = build("fcn")
    assert list(head.state_dict()) == ["0.0.weight", "0.0.bias", "1.0.weight", "1.0.bias"]
    assert list(predictor.state_dict()) == ["conv5_mask.weight", "conv5_mask.bias", "mask_fcn_logits.weight",
                                            "mask_fcn_logits.bias"]
    assert predictor.conv5_mask.weight.data.shape == (5, 4, 2, 2)  # (in, out, 2, 2)
