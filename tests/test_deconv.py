import sys
from types import SimpleNamespace

import numpy as np
import pytest

from nprcnn.ops import conv
from nprcnn.ops.conv import conv2d, conv2d_grad_w, conv2d_grad_x
from nprcnn.ops.deconv import conv_transpose2d, conv_transpose2d_backward, conv_transpose2d_forward
from reference_values import assert_adjoint, fenced, load_cases, strided

CASES = load_cases("deconv.npz")
# Sums of at most 150 products, each below 10: rounding stays below 150 * 10 * 2.2e-16 = 3.3e-13
CLOSE = dict(rtol=1e-12, atol=1e-12)


def check(case, kernels, change=lambda a: a, **tolerance):
    """Forward and backward of a stored case, whose arrays go through `change` first, against PyTorch."""
    ref = CASES[case]
    x, w, b, dy = (change(ref[name]) if name in ref else None for name in ("x", "w", "b", "dy"))
    y, cache = conv_transpose2d_forward(x, w, b, **ref["options"], kernels=kernels)
    results = dict(zip(("y", "dx", "dw", "db"), (y, *conv_transpose2d_backward(dy, cache, kernels=kernels))))
    assert (results["db"] is None) == (b is None)
    for name in ("y", "dx", "dw") + ("db",) * (b is not None):
        assert results[name].shape == ref[name].shape and results[name].dtype == x.dtype, name
        np.testing.assert_allclose(results[name], ref[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, kernels):
    check(case, kernels, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_non_contiguous_input(case, kernels):
    check(case, kernels, strided, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case, kernels):
    # float32 rounds 2^29 times more coarsely than float64, for which CLOSE holds with a margin
    check(case, kernels, lambda a: a.astype(np.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("column_bytes", [1, 400])
def test_blocks_give_the_same_result(monkeypatch, column_bytes):
    """One row a block, and a few rows."""
    monkeypatch.setattr(conv, "COLUMN_BYTES", column_bytes)
    for case in CASES:
        check(case, None, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_adjoint(case, kernels):
    ref = CASES[case]
    y, cache = conv_transpose2d_forward(ref["x"], ref["w"], **ref["options"], kernels=kernels)
    dx, dw, _ = conv_transpose2d_backward(ref["dy"], cache, kernels=kernels)
    assert_adjoint(ref["dy"], y, dx, ref["x"])
    assert_adjoint(ref["dy"], y, dw, ref["w"])


def test_plain_function_and_int_options():
    ref = CASES["3x3_stride2"]
    np.testing.assert_allclose(conv_transpose2d(ref["x"], ref["w"], ref["b"], 2, 1), ref["y"], **CLOSE)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (4, 4), (14, 14), (5, 20)])
@pytest.mark.parametrize("relu", [False, True])
def test_doubling_is_a_sum_for_each_pixel(size, relu, kernels):
    """The mask head's, 2x2 with stride 2: rows shorter and longer than a vector, whole panels and not."""
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((3, 5, *size)), rng.standard_normal((5, 4, 2, 2)), rng.standard_normal(4)
    y = np.einsum("ncrv,coij->norivj", x, w).reshape(3, 4, 2 * size[0], 2 * size[1]) + b[:, None, None]
    y = np.maximum(y, 0) if relu else y
    np.testing.assert_allclose(conv_transpose2d(x, w, b, 2, relu=relu, kernels=kernels), y, **CLOSE)
    x[1, 2, 0, 0] = np.nan
    seen = np.isnan(conv_transpose2d(x, w, None, 2, relu=relu, kernels=kernels))
    assert seen[1, :, :2, :2].all() and seen.sum() == 4 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by ctypes")
@pytest.mark.parametrize("at_end", [False, True], ids=["at the start", "at the end"])
@pytest.mark.parametrize("size", [(1, 3), (7, 9), (14, 14)])
def test_nothing_outside_of_the_arrays_is_read(size, at_end, kernels):
    """As in test_conv.py: compiled loops with vectors do not check an index."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 6, *size), (6, 5, 2, 2), (5,)))
    y = conv_transpose2d(x, w, b, 2, kernels=kernels)
    np.testing.assert_array_equal(conv_transpose2d(*(fenced(a, at_end) for a in (x, w, b)), 2, kernels=kernels), y)


def test_empty_batch(kernels):
    """No positive RoI in the whole batch: the mask head gets nothing."""
    w, b = np.ones((3, 4, 2, 2), np.float32), np.ones(4, np.float32)
    y, cache = conv_transpose2d_forward(np.empty((0, 3, 14, 14), np.float32), w, b, 2, kernels=kernels)
    assert y.shape == (0, 4, 28, 28) and y.dtype == np.float32
    dx, dw, db = conv_transpose2d_backward(y, cache)
    assert dx.shape == (0, 3, 14, 14)
    assert dw.shape == w.shape and not dw.any()
    assert db.shape == b.shape and not db.any()


def test_kernels_do_the_work():
    ref = CASES["3x3"]
    kernels = SimpleNamespace(conv2d=lambda *a: 2 * conv2d(*a),
                              conv2d_grad_x=lambda *a: 3 * conv2d_grad_x(*a),
                              conv2d_grad_w=lambda *a: 5 * conv2d_grad_w(*a))
    y, cache = conv_transpose2d_forward(ref["x"], ref["w"], **ref["options"], kernels=kernels)
    dx, dw, _ = conv_transpose2d_backward(ref["dy"], cache, kernels=kernels)
    np.testing.assert_allclose(y, 3 * ref["y"], **CLOSE)
    np.testing.assert_allclose(dx, 2 * ref["dx"], **CLOSE)
    np.testing.assert_allclose(dw, 5 * ref["dw"], **CLOSE)


X, W = np.zeros((2, 3, 4, 5)), np.zeros((3, 6, 2, 2))


@pytest.mark.parametrize("arguments, named", [
    ((X[0], W), r"\(3, 4, 5\)"),
    ((X, W[0]), r"\(6, 2, 2\)"),
    ((X[:, :2], W), r"\(2, 2, 4, 5\) and \(3, 6, 2, 2\)"),
    ((X, W, np.zeros(3)), r"\(6,\).*\(3,\)"),
    ((X, W, None, 1, 3), r"padding \(3, 3\)"),
    ((X, W, None, 0), r"stride \(0, 0\)"),
])
def test_bad_arguments(arguments, named, kernels):
    with pytest.raises(ValueError, match=named):
        conv_transpose2d_forward(*arguments, kernels=kernels)


def test_bad_dy():
    _, cache = conv_transpose2d_forward(X, W, None, 2)
    with pytest.raises(ValueError, match=r"\(2, 6, 8, 9\)"):
        conv_transpose2d_backward(np.zeros((2, 6, 8, 9)), cache)
