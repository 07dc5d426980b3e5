import numpy as np
import pytest

from nprcnn.ops.linear import linear_backward, linear_forward
from reference_values import assert_adjoint, load_cases, strided

CASES = load_cases("linear.npz")


def check(case, change=lambda a: a, **tolerance):
    """Forward and backward of a stored case, whose arrays go through `change` first, against PyTorch."""
    ref = CASES[case]
    x, w, b, dy = (change(ref[name]) if name in ref else None for name in ("x", "w", "b", "dy"))
    y, cache = linear_forward(x, w, b)
    results = dict(zip(("y", "dx", "dw", "db"), (y, *linear_backward(dy, cache))))
    assert (results["db"] is None) == (b is None)
    for name in ("y", "dx", "dw") + ("db",) * (b is not None):
        assert results[name].shape == ref[name].shape and results[name].dtype == x.dtype, name
        np.testing.assert_allclose(results[name], ref[name], err_msg=name, **tolerance)


# Sums of at most 8 numbers below 10: float64 rounds them by less than 8 * 10 * 1.1e-16 = 9e-15
@pytest.mark.parametrize("change", [np.array, strided])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, change):
    check(case, change, rtol=1e-14, atol=1e-14)


# ... and float32 by less than 8 * 10 * 6e-8 = 5e-6
@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case):
    check(case, lambda a: a.astype(np.float32), rtol=5e-6, atol=5e-6)


def test_adjoint():
    ref = CASES["bias"]
    y, cache = linear_forward(ref["x"], ref["w"])
    dx, dw, _ = linear_backward(ref["dy"], cache)
    assert_adjoint(ref["dy"], y, dx, ref["x"])
    assert_adjoint(ref["dy"], y, dw, ref["w"])


def test_no_rois():
    w, b = np.ones((3, 7), np.float32), np.ones(3, np.float32)
    y, cache = linear_forward(np.empty((0, 7), np.float32), w, b)
    assert y.shape == (0, 3) and y.dtype == np.float32
    dx, dw, db = linear_backward(y, cache)
    assert dx.shape == (0, 7)
    assert dw.shape == (3, 7) and not dw.any()
    assert db.shape == (3,) and not db.any()


@pytest.mark.parametrize("x, w, b, named", [
    ((5, 7, 1), (3, 7), (3,), r"\(5, 7, 1\)"),
    ((5, 6), (3, 7), (3,), r"\(5, 6\) and \(3, 7\)"),
    ((5, 7), (7,), (3,), r"\(7,\)"),
    ((5, 7), (3, 7), (7,), r"\(3,\).*\(7,\)"),
    ((5, 7), (3, 7), (5, 3), r"\(3,\).*\(5, 3\)"),
])
def test_bad_arguments(x, w, b, named):
    with pytest.raises(ValueError, match=named):
        linear_forward(np.zeros(x), np.zeros(w), np.zeros(b))


def test_bad_dy():
    _, cache = linear_forward(np.zeros((5, 7)), np.zeros((3, 7)))
    with pytest.raises(ValueError, match=r"\(5, 3\), not \(5, 7\)"):
        linear_backward(np.zeros((5, 7)), cache)
