import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE, VARIANTS, fill, gradient_dots, running_dots

from nprcnn.gradcheck import check_gradients
from nprcnn.models.box_head import BoxHead, BoxPredictor, ConvBoxHead, box_losses, box_losses_backward

LABELS = np.array([0, 1, 4, 0, 2, 2, 0, 3, 0, 1, 0, 0])


def loss_inputs():
    return (seeded.normal("box logits", 12, 5), 0.5 * seeded.normal("box deltas", 12, 20),
            seeded.boxes("box rois", 12, 60, 80, 6.0), LABELS, seeded.boxes("box targets", 12, 60, 80, 6.0))


def test_losses_and_gradients_are_torchvisions():
    classifier, box, cache = box_losses(*loss_inputs())
    np.testing.assert_allclose([classifier, box], REFERENCE["box_loss"], rtol=1e-13)
    dlogits, ddeltas = box_losses_backward(2.0, 3.0, cache)
    np.testing.assert_allclose(dlogits, REFERENCE["box_loss.dlogits"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ddeltas, REFERENCE["box_loss.ddeltas"], rtol=1e-12, atol=1e-15)


def test_loss_gradients():
    logits, deltas, *rest = loss_inputs()

    def forward(logits, deltas):
        classifier, box, cache = box_losses(logits, deltas, *rest)
        return (classifier, box), cache
    check_gradients(forward, lambda dy, cache: box_losses_backward(*dy, cache), (logits, deltas))


def test_only_the_true_class_of_a_positive_is_corrected():
    logits, deltas, rois, labels, targets = loss_inputs()
    _, box, cache = box_losses(logits, deltas, rois, labels, targets)
    _, ddeltas = box_losses_backward(1.0, 1.0, cache)
    touched = np.argwhere(ddeltas.reshape(12, 5, 4).any(axis=2))
    assert touched.tolist() == [[i, label] for i, label in enumerate(LABELS) if label > 0]
    targets[labels == 0] = np.nan  # the target of a background RoI is not looked at
    assert box_losses(logits, deltas, rois, labels, targets)[1] == box


@pytest.mark.parametrize("count", [0, 3])
def test_losses_of_background_alone_and_of_nothing(count):
    logits, deltas, rois, labels, targets = (a[:count] for a in loss_inputs())
    classifier, box, cache = box_losses(logits, deltas, rois, 0 * labels, targets)
    assert box == 0 and (classifier > 0) == (count > 0)
    dlogits, ddeltas = box_losses_backward(1.0, 1.0, cache)
    assert dlogits.shape == (count, 5) and ddeltas.shape == (count, 20) and not ddeltas.any()


def layers():
    rng = np.random.default_rng(0)
    head = fill(BoxHead(rng, 2 * 3 * 3, 5), "head.")
    # each hidden unit on one side of its ReLU's kink, some on the dead one
    head.fc6.bias.data += 20 * np.array([1, 1, -1, 1, 1])
    head.fc7.bias.data += 200 * np.array([1, -1, 1, 1, 1])
    return head, fill(BoxPredictor(rng, 5, 3), "predictor.")


def test_gradients():
    head, predictor = layers()
    own = head.parameters() + predictor.parameters()

    def forward(x, *values):
        for parameter, value in zip(own, values):
            parameter.data = value
        h, head_cache = head.forward(x, True)
        logits, deltas, predictor_cache = predictor.forward(h, True)
        return (logits, deltas), (head_cache, predictor_cache)

    def backward(dy, cache):
        head.zero_grad(), predictor.zero_grad()
        return (head.backward(predictor.backward(*dy, cache[1]), cache[0]), *(p.grad for p in own))
    # the outputs are hundreds, so their differences are rounded by 1e-13: a larger step
    check_gradients(forward, backward, (seeded.normal("x", 4, 2, 3, 3), *(p.data for p in own)), eps=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_no_rois(train):
    head, predictor = layers()
    h, head_cache = head.forward(np.zeros((0, 2, 3, 3)), train)
    logits, deltas, predictor_cache = predictor.forward(h, train)
    assert h.shape == (0, 5) and logits.shape == (0, 3) and deltas.shape == (0, 12)
    if train:
        assert head.backward(predictor.backward(logits, deltas, predictor_cache), head_cache).shape == (0, 2, 3, 3)
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters() + predictor.parameters())
    else:
        assert head_cache is None and predictor_cache is None


# ---- v2's head ----

def conv_head(norm):
    return fill(ConvBoxHead(np.random.default_rng(0), 3, 5, (4, 6), 7, norm), "head.")


@pytest.mark.parametrize("norm, name", [(None, "None"), ("batch", "BatchNorm2d")])
def test_convolutions_and_one_layer_are_torchvisions_conv_fc_head(norm, name):
    """Measured: 1e-14."""
    head = conv_head(norm)
    h, cache = head.forward(seeded.normal("conv box head", 6, 3, 5, 5), True)
    np.testing.assert_allclose(h, VARIANTS[f"conv_box_head.{name}"], rtol=1e-11, atol=1e-13)
    assert (h == 0).any() and (h > 0).any()
    dx = head.backward(seeded.normal("conv box head dy", *h.shape), cache)
    np.testing.assert_allclose(dx, VARIANTS[f"conv_box_head.{name}.dx"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradient_dots(head, "head."), VARIANTS[f"conv_box_head.{name}.dparameters"], rtol=1e-10)
    np.testing.assert_allclose(running_dots(head, "head."), VARIANTS[f"conv_box_head.{name}.running"], rtol=1e-11)
    assert conv_head(norm).forward(seeded.normal("conv box head", 6, 3, 5, 5), False)[1] is None


@pytest.mark.parametrize("norm", [None, "batch", "frozen"])
def test_gradients_of_the_convolutional_head(norm):
    head = conv_head(norm)
    own = head.parameters()

    def forward(x, *values):
        for parameter, value in zip(own, values):
            parameter.data = value
        return head.forward(x, True)

    def backward(dy, cache):
        head.zero_grad()
        return (head.backward(dy, cache), *(p.grad for p in own))
    x = seeded.normal("conv box head", 6, 3, 5, 5)
    check_gradients(forward, backward, (x, *(p.data for p in own)), eps=1e-6)


@pytest.mark.parametrize("norm", [None, "frozen"])
def test_no_rois_in_the_convolutional_head(norm):
    head = conv_head(norm)
    h, cache = head.forward(np.zeros((0, 3, 5, 5)), True)
    assert h.shape == (0, 7) and head.backward(h, cache).shape == (0, 3, 5, 5)
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
