from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nprcnn.ops.pool import (global_avg_pool_backward, global_avg_pool_forward, max_pool2d,
                             max_pool2d_backward, max_pool2d_forward, max_pool2d_grad)
from reference_values import assert_adjoint, load_cases, strided

CASES = load_cases("pool.npz")
AVERAGE = CASES.pop("average")


def check(case, change, kernels):
    """Max-pooling copies, so y is exact; dx adds at most 9 numbers below 5 (float32: 9 * 5 * 6e-8 = 3e-6)."""
    ref = CASES[case]
    x, dy = change(ref["x"]), change(ref["dy"])
    y, index = kernels.max_pool2d(x, **ref["options"])
    np.testing.assert_array_equal(y, ref["y"].astype(x.dtype))
    np.testing.assert_array_equal(index, ref["index"])
    assert y.dtype == x.dtype and index.dtype == np.int64

    y, cache = max_pool2d_forward(x, **ref["options"], kernels=kernels)
    dx = max_pool2d_backward(dy, cache, kernels=kernels)
    np.testing.assert_array_equal(y, ref["y"].astype(x.dtype))
    assert dx.dtype == x.dtype
    np.testing.assert_allclose(dx, ref["dx"], atol=1e-14 if x.dtype == np.float64 else 3e-6)


@pytest.mark.parametrize("change", [lambda a: a, strided, lambda a: a.astype(np.float32)],
                         ids=["contiguous", "strided", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, change, kernels):
    check(case, change, kernels)


def naive(x, kernel, stride, padding):
    """The definition: one window at a time."""
    n, c, height, width = x.shape
    out_h, out_w = ((x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    y, index = np.empty((n, c, out_h, out_w)), np.empty((n, c, out_h, out_w), int)
    for i, k, oy, ox in np.ndindex(*y.shape):
        top, left = oy * stride[0] - padding[0], ox * stride[1] - padding[1]
        window = [(yy, xx) for yy in range(max(top, 0), min(top + kernel[0], height))
                  for xx in range(max(left, 0), min(left + kernel[1], width))]
        best = max(window, key=lambda place: x[i, k, *place])  # max returns the first of equals
        y[i, k, oy, ox], index[i, k, oy, ox] = x[i, k, *best], best[0] * width + best[1]
    return y, index


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(n=st.integers(0, 2), kernel=pairs(1, 4), stride=pairs(1, 3), pad=pairs(0, 2), more=pairs(0, 5),
       values=st.integers(1, 4))
def test_equals_the_definition(n, kernel, stride, pad, more, values, kernels):
    """Few different values, all negative: ties everywhere, and padding would win if it took part."""
    rng = np.random.default_rng(values)
    padding = tuple(min(p, k // 2) for p, k in zip(pad, kernel))
    x = -1.0 - rng.integers(0, values, (n, 2, *(k + m for k, m in zip(kernel, more))))
    y, index = kernels.max_pool2d(x, kernel, stride, padding)
    expected_y, expected_index = naive(x, kernel, stride, padding)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(index, expected_index)
    if n:
        # With the winners fixed, pooling is linear
        dy = rng.standard_normal(y.shape)
        assert_adjoint(dy, y, kernels.max_pool2d_grad(dy, index, x.shape), x)


def test_overlapping_windows_add_their_gradients(kernels):
    """One bright pixel that wins all nine windows it lies in."""
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 2, 2] = 1
    y, index = kernels.max_pool2d(x, 3, 1)
    dy = np.arange(9.0).reshape(1, 1, 3, 3)
    dx = kernels.max_pool2d_grad(dy, index, x.shape)
    assert dx[0, 0, 2, 2] == dy.sum() and np.count_nonzero(dx) == 1


def test_nan_is_not_hidden(kernels):
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 1, 1] = np.nan
    y, _ = kernels.max_pool2d(x, 2)
    np.testing.assert_array_equal(np.isnan(y[0, 0]), [[True, False], [False, False]])


def test_stride_is_the_kernel_by_default(kernels):
    assert kernels.max_pool2d(np.zeros((1, 1, 9, 8)), (3, 2))[0].shape == (1, 1, 3, 4)


def test_empty_batch(kernels):
    y, cache = max_pool2d_forward(np.empty((0, 3, 9, 7), np.float32), 3, 2, 1, kernels=kernels)
    assert y.shape == cache.index.shape == (0, 3, 5, 4) and y.dtype == np.float32
    assert max_pool2d_backward(y, cache, kernels=kernels).shape == (0, 3, 9, 7)


def test_kernels_do_the_work():
    ref = CASES["resnet"]
    kernels = SimpleNamespace(max_pool2d=lambda *a: (2 * max_pool2d(*a)[0], max_pool2d(*a)[1]),
                              max_pool2d_grad=lambda *a: 3 * max_pool2d_grad(*a))
    y, cache = max_pool2d_forward(ref["x"], 3, 2, 1, kernels=kernels)
    np.testing.assert_array_equal(y, 2 * ref["y"])
    dx = max_pool2d_backward(ref["dy"], cache, kernels=kernels)
    np.testing.assert_allclose(dx, 3 * ref["dx"], atol=1e-13)


@pytest.mark.parametrize("shape, options, named", [
    ((3, 9, 7), (3,), r"\(3, 9, 7\)"),
    ((2, 3, 9, 7), (3, 2, 2), r"padding \(2, 2\)"),
    ((2, 3, 9, 7), (3, 0), r"stride \(0, 0\)"),
    ((2, 3, 9, 7), (0,), r"kernel \(0, 0\)"),
    ((2, 3, 9, 7), (3, 1, -1), r"padding \(-1, -1\)"),
    ((2, 3, 2, 7), (3,), r"\(3, 3\) is larger than x \(2, 3, 2, 7\)"),
])
def test_bad_arguments(shape, options, named, kernels):
    with pytest.raises(ValueError, match=named):
        kernels.max_pool2d(np.zeros(shape), *options)


@pytest.mark.parametrize("dy, x_shape", [((2, 3, 4, 3), (2, 3, 9, 7)), ((2, 3, 4, 4), (2, 4, 9, 7)),
                                         ((2, 3, 4, 4), (3, 9, 7))])
def test_bad_dy(dy, x_shape, kernels):
    with pytest.raises(ValueError, match="must be alike and fit x_shape"):
        kernels.max_pool2d_grad(np.zeros(dy), np.zeros((2, 3, 4, 4), int), x_shape)


# ---- global average ----

@pytest.mark.parametrize("change", [lambda a: a, strided, lambda a: a.astype(np.float32)],
                         ids=["contiguous", "strided", "float32"])
def test_average_equals_pytorch(change):
    x, dy = change(AVERAGE["x"]), change(AVERAGE["dy"])
    y, cache = global_avg_pool_forward(x)
    dx = global_avg_pool_backward(dy, cache)
    assert y.dtype == dx.dtype == x.dtype
    # A sum of 35 numbers below 4, divided by 35: rounded by less than 4 * 35 units in the last place
    rounding = 4 * 35 * np.finfo(x.dtype).eps
    np.testing.assert_allclose(y, AVERAGE["y"], atol=rounding)
    np.testing.assert_allclose(dx, AVERAGE["dx"], atol=rounding)
    if x.dtype == np.float64:
        assert_adjoint(dy, y, dx, x)


def test_average_of_an_empty_batch():
    y, cache = global_avg_pool_forward(np.empty((0, 3, 2, 2), np.float32))
    assert y.shape == (0, 3) and y.dtype == np.float32
    assert global_avg_pool_backward(y, cache).shape == (0, 3, 2, 2)


def test_average_bad_arguments():
    for shape in ((2, 3, 4), (2, 3, 0, 4)):
        with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
            global_avg_pool_forward(np.zeros(shape))
    _, cache = global_avg_pool_forward(np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(3, 2\)"):
        global_avg_pool_backward(np.zeros((3, 2)), cache)
