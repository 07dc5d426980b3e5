import numpy as np
import pytest

from nprcnn.ops.losses import (bce_with_logits_backward, bce_with_logits_forward, smooth_l1_backward,
                               smooth_l1_forward, softmax_cross_entropy_backward, softmax_cross_entropy_forward)
from reference_values import load_cases, strided

CASES = load_cases("losses.npz")
PAIRS = {"softmax": (softmax_cross_entropy_forward, softmax_cross_entropy_backward, ("logits", "labels")),
         "bce": (bce_with_logits_forward, bce_with_logits_backward, ("logits", "targets")),
         "smooth_l1": (smooth_l1_forward, smooth_l1_backward, ("pred", "target"))}
DEFAULT_NORMALIZER = {"softmax": 11, "bce": 60, "smooth_l1": 1}


def pair_of(case):
    return PAIRS[case.split()[0]]


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, change):
    """Among the logits are 1000, -1000 and a row of -10000. 1e-14: a few roundings of exp, log and the sum."""
    forward, backward, names = pair_of(case)
    first, second = CASES[case][names[0]], CASES[case][names[1]]
    if second.dtype.kind == "f":
        second = change(second)
    loss, cache = forward(change(first), second, **CASES[case]["options"])
    np.testing.assert_allclose(loss, CASES[case]["loss"], rtol=1e-14)
    np.testing.assert_allclose(backward(1.0, cache), CASES[case]["dx"], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(backward(-2.5, cache), -2.5 * CASES[case]["dx"], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    """Inputs rounded to float32 (6e-8) and sums of up to 60 numbers: 2e-6 of the loss; gradients 5e-6."""
    forward, backward, names = pair_of(case)
    first, second = (CASES[case][name] for name in names)
    # The second argument stays float64: the first one's dtype decides.
    loss, cache = forward(first.astype(np.float32), second, **CASES[case]["options"])
    dx = backward(np.float64(1), cache)
    assert loss.dtype == dx.dtype == np.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, CASES[case]["loss"], rtol=2e-6)
    np.testing.assert_allclose(dx, CASES[case]["dx"], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("case", CASES)
def test_normalizer(case):
    forward, backward, names = pair_of(case)
    arguments = [CASES[case][name] for name in names]
    default = DEFAULT_NORMALIZER[case.split()[0]]
    loss, cache = forward(*arguments, normalizer=np.int64(7), **CASES[case]["options"])
    np.testing.assert_allclose(loss, CASES[case]["loss"] * default / 7, rtol=1e-14)
    np.testing.assert_allclose(backward(1.0, cache), CASES[case]["dx"] * default / 7, rtol=1e-13, atol=1e-15)
    for normalizer in (0, -1, np.nan):
        with pytest.raises(ValueError, match="normalizer"):
            forward(*arguments, normalizer=normalizer, **CASES[case]["options"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("normalizer", [None, 0, 256])
@pytest.mark.parametrize("name, shape", [("softmax", (0, 5)), ("bce", (0, 28, 28)), ("smooth_l1", (0, 4))])
def test_nothing_costs_nothing(name, shape, normalizer, dtype):
    forward, backward, _ = PAIRS[name]
    second = np.zeros(0, np.int64) if name == "softmax" else np.zeros(shape, dtype)
    options = {"beta": 1 / 9} if name == "smooth_l1" else {}
    loss, cache = forward(np.zeros(shape, dtype), second, normalizer=normalizer, **options)
    dx = backward(1.0, cache)
    assert loss == 0 and loss.dtype == dx.dtype == dtype and dx.shape == shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_neither_overflow_nor_lose_the_loss(dtype):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        x = np.array([[3e4, -3e4, 0.0]], dtype)
        loss, cache = softmax_cross_entropy_forward(x, np.array([1]))
        assert loss == 6e4
        np.testing.assert_array_equal(softmax_cross_entropy_backward(1.0, cache), [[1, -1, 0]])
        loss, cache = bce_with_logits_forward(x[0], np.array([0, 1, 1], dtype), normalizer=1)
        np.testing.assert_allclose(loss, 6e4 + np.log(2), rtol=1e-7)
        np.testing.assert_array_equal(bce_with_logits_backward(1.0, cache), [1, -1, -0.5])
    # Far on the right side the loss is exp(-x), not 0.
    loss, _ = bce_with_logits_forward(np.array([30], dtype), np.array([1], dtype))
    np.testing.assert_allclose(loss, np.exp(-30), rtol=1e-5)


def test_smooth_l1_where_the_pieces_meet():
    beta = 0.5
    d = np.array([-0.5, 0.5, -0.25, 0.25, 0.0, 2.0])
    elements = [smooth_l1_forward(d[i:i + 1], np.zeros(1), beta)[0] for i in range(len(d))]
    np.testing.assert_array_equal(elements, [0.25, 0.25, 0.0625, 0.0625, 0, 1.75])
    _, cache = smooth_l1_forward(d, np.zeros(6), beta)
    np.testing.assert_array_equal(smooth_l1_backward(1.0, cache), [-1, 1, -0.5, 0.5, 0, 1])


def test_beta_0_is_l1():
    d = np.array([-3.0, 0.0, 0.25])
    loss, cache = smooth_l1_forward(d, np.zeros(3), 0)
    assert loss == 3.25
    np.testing.assert_array_equal(smooth_l1_backward(1.0, cache), [-1, 0, 1])


@pytest.mark.parametrize("forward, arguments, message", [
    (softmax_cross_entropy_forward, (np.zeros(5), np.zeros(5, int)), r"\(5,\)"),
    (softmax_cross_entropy_forward, (np.zeros((4, 5)), np.zeros(3, int)), r"\(4, 5\) and \(3,\)"),
    (softmax_cross_entropy_forward, (np.zeros((1, 5)), np.array([5])), r"0\.\.4, got 5\.\.5"),
    (softmax_cross_entropy_forward, (np.zeros((2, 5)), np.array([-1, 2])), r"got -1\.\.2"),
    (softmax_cross_entropy_forward, (np.zeros((2, 5)), np.array([1.0, 2.0])), "float64"),
    (softmax_cross_entropy_forward, (np.zeros((2, 5), int), np.array([1, 2])), "int64"),
    (bce_with_logits_forward, (np.zeros(3, bool), np.zeros(3)), "bool"),
    (smooth_l1_forward, (np.zeros((2, 4), int), np.zeros((2, 4)), 1.0), "int64"),
    (bce_with_logits_forward, (np.zeros((2, 3)), np.zeros((3, 2))), r"\(2, 3\) and \(3, 2\)"),
    (bce_with_logits_forward, (np.zeros((2, 3)), np.zeros(3)), r"\(2, 3\) and \(3,\)"),
    (smooth_l1_forward, (np.zeros((2, 4)), np.zeros((1, 4)), 1.0), r"\(2, 4\) and \(1, 4\)"),
    (smooth_l1_forward, (np.zeros((2, 4)), np.zeros((2, 4)), -1.0), "beta"),
    (smooth_l1_forward, (np.zeros((2, 4)), np.zeros((2, 4)), np.nan), "beta"),
])
def test_bad_arguments(forward, arguments, message):
    with pytest.raises(ValueError, match=message):
        forward(*arguments)
