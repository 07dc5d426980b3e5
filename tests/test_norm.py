import tracemalloc

import numpy as np
import pytest

from nprcnn.ops.norm import (batch_norm_backward, batch_norm_forward, frozen_batch_norm_backward,
                             frozen_batch_norm_forward)
from reference_values import assert_adjoint, load_cases, strided

CASES = load_cases("norm.npz")
VECTORS = ("weight", "bias", "running_mean", "running_var")
# Sums of at most 70 numbers below 30, one of them divided by a standard deviation above .3:
# rounding stays below 70 * 30 * 1.1e-16 / .3 = 8e-13
CLOSE = dict(rtol=1e-12, atol=1e-12)


def check(case, change=lambda a: a, **tolerance):
    """Forward and backward of a stored case, whose arrays go through `change` first, against PyTorch."""
    ref = CASES[case]
    x, dy, *vectors = (change(ref[name]) for name in ("x", "dy", *VECTORS))
    y, cache, (mean, var) = batch_norm_forward(x, *vectors, **ref["options"])
    dx, dweight, dbias = batch_norm_backward(dy, cache)
    results = dict(y=y, new_mean=mean, new_var=var, dx=dx, dweight=dweight, dbias=dbias)
    for name, result in results.items():
        assert result.shape == ref[name].shape and result.dtype == x.dtype, name
        np.testing.assert_allclose(result, ref[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, change):
    check(case, change, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case):
    # float32 rounds 2^29 times more coarsely than float64, for which CLOSE holds with a margin
    check(case, lambda a: a.astype(np.float32), rtol=1e-4, atol=1e-4)


def test_float32_with_a_large_mean():
    """float32 knows the mean and each x to 1e-4, hence y. A variance E[x^2] - E[x]^2 would be off by .1."""
    x = np.random.default_rng(0).standard_normal((4, 3, 20, 30)) + 1000
    zeros, ones = np.zeros(3), np.ones(3)
    exact, _, (_, exact_var) = batch_norm_forward(x, ones, zeros, zeros, ones)
    y, _, (_, var) = batch_norm_forward(*(a.astype(np.float32) for a in (x, ones, zeros, zeros, ones)))
    np.testing.assert_allclose(y, exact, atol=5e-4)
    np.testing.assert_allclose(var, exact_var, rtol=5e-4)


def test_running_statistics_are_returned_not_written():
    ref = CASES["maps_train"]
    vectors = [ref[name].copy() for name in VECTORS]
    _, _, (mean, var) = batch_norm_forward(ref["x"], *vectors)
    for vector, name in zip(vectors, VECTORS):
        np.testing.assert_array_equal(vector, ref[name])
    # The default momentum is .1; the running variance takes the unbiased one, over M - 1
    np.testing.assert_allclose(mean, 0.9 * ref["running_mean"] + 0.1 * ref["x"].mean((0, 2, 3)), **CLOSE)
    np.testing.assert_allclose(var, 0.9 * ref["running_var"] + 0.1 * ref["x"].var((0, 2, 3), ddof=1), **CLOSE)


def test_inference_returns_the_statistics_it_was_given():
    ref = CASES["maps_infer"]
    _, _, (mean, var) = batch_norm_forward(ref["x"], *(ref[name] for name in VECTORS), train=False)
    assert mean is ref["running_mean"] and var is ref["running_var"]


def test_cache_holds_no_array_of_the_size_of_x():
    """x itself excepted: training keeps one array a layer, not two."""
    ref = CASES["maps_train"]
    _, cache, _ = batch_norm_forward(ref["x"], *(ref[name] for name in VECTORS))
    large = [field for field in cache if isinstance(field, np.ndarray) and field.size > 3]
    assert len(large) == 1 and large[0] is ref["x"]


def test_forward_and_backward_make_one_array_of_the_size_of_x():
    x = np.random.default_rng(0).standard_normal((4, 8, 40, 50)).astype(np.float32)
    vectors = [np.ones(8, np.float32) for _ in VECTORS]
    _, cache, _ = batch_norm_forward(x, *vectors)
    for function, arguments in ((batch_norm_forward, (x, *vectors)), (batch_norm_backward, (x, cache))):
        tracemalloc.start()
        result = function(*arguments)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert result[0].nbytes == x.nbytes
        assert peak < 1.5 * x.nbytes  # small vectors and einsum's buffers on top of the one


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (0, 3)])
def test_empty_batch(shape, train):
    vectors = [np.full(3, value, np.float32) for value in (1, 2, 3, 4)]
    y, cache, (mean, var) = batch_norm_forward(np.empty(shape, np.float32), *vectors, train=train)
    assert y.shape == shape and y.dtype == np.float32
    assert (mean == 3).all() and (var == 4).all()
    dx, dweight, dbias = batch_norm_backward(y, cache)
    assert dx.shape == shape
    assert dweight.shape == (3,) and not dweight.any()
    assert dbias.shape == (3,) and not dbias.any()


# ---- frozen ----

@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", ["maps_infer", "rows_infer"])
def test_frozen_equals_pytorch_in_inference(case, change):
    ref = CASES[case]
    vectors = [change(ref[name]) for name in VECTORS]
    y, cache = frozen_batch_norm_forward(change(ref["x"]), *vectors, eps=ref["options"]["eps"])
    np.testing.assert_allclose(y, ref["y"], **CLOSE)
    np.testing.assert_allclose(frozen_batch_norm_backward(change(ref["dy"]), cache), ref["dx"], **CLOSE)


def test_frozen_without_eps():
    """torchvision's first COCO weights run with eps 0."""
    ones = np.ones(2)
    y, _ = frozen_batch_norm_forward(np.array([[3.0, -6.0]]), ones, 0 * ones, ones, 4 * ones, eps=0)
    np.testing.assert_array_equal(y, [[1.0, -3.5]])


def test_frozen_float32_stays_float32():
    ref = CASES["maps_infer"]
    arguments = [ref[name].astype(np.float32) for name in ("x", *VECTORS)]
    y, cache = frozen_batch_norm_forward(*arguments, eps=1e-3)
    dx = frozen_batch_norm_backward(ref["dy"].astype(np.float32), cache)
    assert y.dtype == dx.dtype == np.float32
    # Four roundings of numbers below 100
    np.testing.assert_allclose(y, ref["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, ref["dx"], rtol=1e-6)


def test_frozen_empty_batch():
    vectors = [np.ones(3, np.float32) for _ in VECTORS]
    y, cache = frozen_batch_norm_forward(np.empty((0, 3, 5, 7), np.float32), *vectors)
    assert y.shape == frozen_batch_norm_backward(y, cache).shape == (0, 3, 5, 7)


@pytest.mark.parametrize("case", ["maps_infer", "rows_infer"])
def test_adjoint(case):
    """With constant statistics and no shift, normalising is linear in x."""
    ref = CASES[case]
    weight, var, zero = ref["weight"], ref["running_var"], np.zeros(3)
    y, cache = frozen_batch_norm_forward(ref["x"], weight, zero, zero, var)
    assert_adjoint(ref["dy"], y, frozen_batch_norm_backward(ref["dy"], cache), ref["x"])
    y, cache, _ = batch_norm_forward(ref["x"], weight, zero, zero, var, train=False)
    dx, dweight, _ = batch_norm_backward(ref["dy"], cache)
    assert_adjoint(ref["dy"], y, dx, ref["x"])
    assert_adjoint(ref["dy"], y, dweight, weight)


# ---- errors ----

@pytest.mark.parametrize("forward", [batch_norm_forward, frozen_batch_norm_forward])
@pytest.mark.parametrize("x, wrong, named", [
    ((2, 3, 4), None, r"\(2, 3, 4\)"),
    ((2, 4, 5, 6), None, r"weight must be \(4,\).*\(3,\)"),
    ((2, 3, 5, 6), 1, r"bias must be \(3,\).*\(3, 1\)"),
    ((2, 3), 3, r"running_var must be \(3,\).*\(3, 1\)"),
])
def test_bad_arguments(forward, x, wrong, named):
    vectors = [np.ones((3, 1) if i == wrong else 3) for i in range(4)]
    with pytest.raises(ValueError, match=named):
        forward(np.zeros(x), *vectors)


def test_one_value_a_channel_has_no_variance():
    with pytest.raises(ValueError, match=r"more than one value.*\(1, 3, 1, 1\)"):
        batch_norm_forward(np.zeros((1, 3, 1, 1)), *(np.ones(3) for _ in VECTORS))


def test_bad_dy():
    vectors = [np.ones(3) for _ in VECTORS]
    _, cache, _ = batch_norm_forward(np.zeros((2, 3, 4, 5)), *vectors)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\), not \(2, 3, 5, 4\)"):
        batch_norm_backward(np.zeros((2, 3, 5, 4)), cache)
    _, cache = frozen_batch_norm_forward(np.zeros((2, 3, 4, 5)), *vectors)
    with pytest.raises(ValueError, match=r"C = 3, not \(2, 4, 4, 5\)"):
        frozen_batch_norm_backward(np.zeros((2, 4, 4, 5)), cache)
