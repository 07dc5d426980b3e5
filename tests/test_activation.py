import numpy as np
import pytest

from nprcnn import backend
from nprcnn.ops.activation import (relu, relu_backward, relu_forward, relu_grad, sigmoid, sigmoid_backward,
                                   sigmoid_forward, softmax, softmax_backward, softmax_forward)
from reference_values import load_cases, strided

CASES = load_cases("activation.npz")
PAIRS = {"relu": (relu_forward, relu_backward), "sigmoid": (sigmoid_forward, sigmoid_backward),
         "softmax": (softmax_forward, softmax_backward)}


def run(case, change=lambda a: a):
    ref = CASES[case]
    forward, backward = PAIRS[case.split("_")[0]]
    y, cache = forward(change(ref["x"]), **ref["options"])
    return y, backward(change(ref["dy"]), cache)


# A handful of roundings in each value; softmax adds up to 9 numbers between 0 and 1, and so does its backward
@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, change):
    y, dx = run(case, change)
    np.testing.assert_allclose(y, CASES[case]["y"], rtol=4e-15)
    np.testing.assert_allclose(dx, CASES[case]["dx"], rtol=4e-15, atol=4e-15)


@pytest.mark.parametrize("case", ["relu", "sigmoid", "softmax", "softmax_axis1"])
def test_float32_stays_float32(case):
    y, dx = run(case, lambda a: a.astype(np.float32))
    assert y.dtype == dx.dtype == np.float32
    # x is below 10, so rounding it alone changes exp(x) by 10 * 6e-8
    np.testing.assert_allclose(y, CASES[case]["y"], rtol=3e-6)
    np.testing.assert_allclose(dx, CASES[case]["dx"], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 4, 5)])
def test_empty(pair, shape):
    forward, backward = pair
    y, cache = forward(np.empty(shape, np.float32))
    dx = backward(y, cache)
    assert y.shape == dx.shape == shape and y.dtype == dx.dtype == np.float32


def test_relu_at_zero_has_gradient_zero():
    _, cache = relu_forward(np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(relu_backward(np.full(3, 7.0), cache), [0, 0, 7])


@pytest.mark.parametrize("dtype, far", [(np.float64, 1e4), (np.float32, 1e3)])
def test_sigmoid_is_stable(dtype, far):
    """No overflow warning (warnings are errors here), exact ends, no cancellation where it is nearly 0."""
    x = np.array([-far, far, -30, 0], dtype)
    y = sigmoid(x)
    assert (y[:2] == [0, 1]).all() and y[3] == 0.5
    np.testing.assert_allclose(y[2], np.exp(-30.0), rtol=1e-6 if dtype == np.float32 else 1e-12)
    _, cache = sigmoid_forward(x)
    assert np.isfinite(sigmoid_backward(np.ones(4, dtype), cache)).all()


def test_softmax_sums_to_one_and_ignores_a_shift():
    x = np.random.default_rng(0).standard_normal((3, 5, 4))
    for axis in (0, 1, 2, -2):
        y = softmax(x, axis)
        np.testing.assert_allclose(y.sum(axis), 1, rtol=1e-15 * 5)
        # x + 1000 is rounded to 1.1e-13
        np.testing.assert_allclose(softmax(x + 1000, axis), y, rtol=1e-12)


def test_nan_is_not_hidden():
    x = np.array([[1.0, np.nan, -1.0]])
    assert np.isnan(relu(x)[0, 1]) and np.isnan(sigmoid(x)[0, 1]) and np.isnan(softmax(x)).all()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_bad_dy(pair):
    forward, backward = pair
    _, cache = forward(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(3,\)"):
        backward(np.zeros(3), cache)


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_relu_grad_of_every_set(name, dtype, change):
    """Equal to the definition to the last bit: there is nothing to round. At 0, at -0 and where y is NaN it is 0."""
    if name == "numba":
        pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    dy, y = rng.standard_normal((2, 2, 3, 5, 7)).astype(dtype)
    y[0, 0, 0, :4] = 0.0, -0.0, np.nan, np.inf
    dy[1, 2, 4, 6], y[1, 2, 4, 6] = np.inf, 1
    dx = backend.kernel_set(name).relu_grad(change(dy), change(y))
    expected = dy.copy()
    expected[~(y > 0)] = 0
    assert dx.dtype == dtype and (dx[0, 0, 0, :3] == 0).all() and dx[0, 0, 0, 3] == dy[0, 0, 0, 3]
    np.testing.assert_array_equal(dx, expected)
    with pytest.raises(ValueError, match="output's shape"):
        backend.kernel_set(name).relu_grad(dy, y[:1])
