import tracemalloc
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nprcnn.ops import conv
from nprcnn.ops.conv import conv2d, conv2d_backward, conv2d_forward, conv2d_grad_w, conv2d_grad_x
from reference_values import assert_adjoint, load_cases, strided

CASES = load_cases("conv.npz")
# Sums of at most 150 products, each below 10: rounding stays below 150 * 10 * 2.2e-16 = 3.3e-13
CLOSE = dict(rtol=1e-12, atol=1e-12)


def run(case, change=lambda a: a):
    """y, dx, dw, db of a stored case, whose arrays go through `change` first."""
    ref = {name: value if name == "options" else change(value) for name, value in CASES[case].items()}
    y, cache = conv2d_forward(ref["x"], ref["w"], ref.get("b"), **ref["options"])
    return y, *conv2d_backward(ref["dy"], cache)


def assert_equals_reference(case, results, **tolerance):
    ref = CASES[case]
    for name, result in zip(("y", "dx", "dw", "db"), results):
        if name in ref:
            assert result.shape == ref[name].shape
            np.testing.assert_allclose(result, ref[name], err_msg=name, **tolerance)
        else:
            assert result is None


@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case):
    assert_equals_reference(case, run(case), **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_non_contiguous_input(case):
    assert_equals_reference(case, run(case, strided), **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case):
    results = run(case, lambda a: a.astype(np.float32))
    assert all(result is None or result.dtype == np.float32 for result in results)
    # float32 rounds 2^29 times more coarsely than float64, for which CLOSE holds with a margin
    assert_equals_reference(case, results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("column_bytes, kind", [(1, "one row"), (1500, "some rows"), (8000, "two images")])
def test_blocks_give_the_same_result(monkeypatch, column_bytes, kind):
    monkeypatch.setattr(conv, "COLUMN_BYTES", column_bytes)
    kinds = []
    for case, ref in CASES.items():
        geo = conv._geometry(ref["x"].shape, ref["w"].shape, **ref["options"])
        n, _, out_h, _ = geo.y_shape
        covered = np.zeros((n, out_h), int)
        for images, rows in conv._blocks(geo, itemsize=8):
            covered[images, rows] += 1
            images, rows = images.stop - images.start, rows.stop - rows.start
            kinds.append("two images" if images == 2 else "one row" if rows == 1 else
                         "some rows" if rows < out_h else "one image")
        assert (covered == 1).all()
        assert_equals_reference(case, run(case), **CLOSE)
    assert kinds.count(kind) >= 5


def naive(x, w, b, stride, padding, dilation, groups):
    """The definition: one output number at a time."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    o, per_group, kh, kw = w.shape
    out_h, out_w = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.empty((len(x), o, out_h, out_w))
    for n, k, oy, ox in np.ndindex(*y.shape):
        first, top, left = k // (o // groups) * per_group, oy * sh, ox * sw
        patch = x[n, first:first + per_group, top:top + kh * dh:dh, left:left + kw * dw:dw]
        y[n, k, oy, ox] = (patch * w[k]).sum() + b[k]
    return y


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(n=st.integers(0, 3), channels=pairs(1, 3), groups=st.integers(1, 3), more=pairs(0, 6),
       kernel=pairs(1, 4), stride=pairs(1, 3), padding=pairs(0, 4), dilation=pairs(1, 2),
       column_bytes=st.sampled_from([1, 1000, 1 << 20]))
def test_equals_the_definition(n, channels, groups, more, kernel, stride, padding, dilation, column_bytes):
    """y against a loop; dx and dw by the adjoint test, as conv2d is linear in x and in w."""
    rng = np.random.default_rng(0)
    height, width = (max(1, d * (k - 1) + 1 - 2 * p) + m
                     for d, k, p, m in zip(dilation, kernel, padding, more))
    x = rng.standard_normal((n, groups * channels[0], height, width))
    w = rng.standard_normal((groups * channels[1], channels[0], *kernel))
    b = rng.standard_normal(len(w))
    options = (stride, padding, dilation, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "COLUMN_BYTES", column_bytes)
        y = conv2d(x, w, b, *options)
        np.testing.assert_allclose(y, naive(x, w, b, *options), **CLOSE)
        if n:
            dy, ax = rng.standard_normal(y.shape), conv2d(x, w, None, *options)
            assert_adjoint(dy, ax, conv2d_grad_x(dy, w, x.shape, *options), x)
            assert_adjoint(dy, ax, conv2d_grad_w(dy, x, w.shape, *options), w)


def test_options_as_one_int():
    ref = CASES["dilated"]
    y = conv2d(ref["x"], ref["w"], ref["b"], padding=2, dilation=2)
    np.testing.assert_allclose(y, ref["y"], **CLOSE)


def test_empty_batch():
    w, b = np.ones((4, 3, 3, 3), np.float32), np.ones(4, np.float32)
    y, cache = conv2d_forward(np.empty((0, 3, 7, 5), np.float32), w, b, stride=2, padding=1)
    assert y.shape == (0, 4, 4, 3) and y.dtype == np.float32
    dx, dw, db = conv2d_backward(y, cache)
    assert dx.shape == (0, 3, 7, 5)
    assert dw.shape == w.shape and not dw.any()
    assert db.shape == b.shape and not db.any()


def test_dx_only_if_needed():
    ref = CASES["3x3"]
    _, cache = conv2d_forward(ref["x"], ref["w"], ref["b"], **ref["options"])
    dx, dw, db = conv2d_backward(ref["dy"], cache, needs_dx=False)
    assert dx is None
    np.testing.assert_allclose(dw, ref["dw"], **CLOSE)
    np.testing.assert_allclose(db, ref["db"], **CLOSE)


def test_kernels_do_the_work():
    ref = CASES["3x3"]
    kernels = SimpleNamespace(conv2d=lambda *a: 2 * conv2d(*a),
                              conv2d_grad_x=lambda *a: 3 * conv2d_grad_x(*a),
                              conv2d_grad_w=lambda *a: 5 * conv2d_grad_w(*a))
    y, cache = conv2d_forward(ref["x"], ref["w"], ref["b"], **ref["options"], kernels=kernels)
    dx, dw, _ = conv2d_backward(ref["dy"], cache, kernels=kernels)
    np.testing.assert_allclose(y, 2 * ref["y"], **CLOSE)
    np.testing.assert_allclose(dx, 3 * ref["dx"], **CLOSE)
    np.testing.assert_allclose(dw, 5 * ref["dw"], **CLOSE)


def test_cache_holds_the_arguments_themselves():
    ref = CASES["3x3"]
    _, cache = conv2d_forward(ref["x"], ref["w"], ref["b"], **ref["options"])
    arrays = [field for field in cache if isinstance(field, np.ndarray)]
    assert len(arrays) == 2 and arrays[0] is ref["x"] and arrays[1] is ref["w"]


@pytest.mark.parametrize("stride", [1, 2])
def test_memory_is_bounded(stride):
    """Scratch is at most twice COLUMN_BYTES: columns, the pixels they come from, one block of the output.

    None of them grows with the map, if one row's columns fit. Here the input is 1.9 COLUMN_BYTES, enough
    for the whole to stay below 3 * (input + output). For 256 channels of 200 x 304, where one row's columns
    take 1.3 COLUMN_BYTES, the whole was measured at 1.06 * (input + output); all columns would be 9 inputs.
    """
    x, w = np.ones((1, 64, 100, 152), np.float32), np.ones((64, 64, 3, 3), np.float32)
    dy = conv2d(x, w, None, stride, 1)
    for function, *arguments in ((conv2d, x, w, None), (conv2d_grad_x, dy, w, x.shape),
                                 (conv2d_grad_w, dy, x, w.shape)):
        tracemalloc.start()
        result = function(*arguments, stride, 1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - result.nbytes <= 2 * conv.COLUMN_BYTES, function.__name__
        assert x.nbytes + dy.nbytes + peak < 3 * (x.nbytes + dy.nbytes), function.__name__


X, W, B = np.zeros((2, 4, 5, 6)), np.zeros((6, 4, 3, 3)), np.zeros(6)


@pytest.mark.parametrize("arguments, named", [
    ((X[0], W), r"\(4, 5, 6\)"),
    ((X, W[0]), r"\(4, 3, 3\)"),
    ((X[:, :3], W), r"\(2, 3, 5, 6\).*\(6, 4, 3, 3\)"),
    ((X, W, B, 1, 0, 1, 2), r"groups=2"),
    ((X, W[:5, :2], B[:5], 1, 0, 1, 2), r"\(5, 2, 3, 3\).*groups=2"),
    ((X, W[:0]), r"\(0, 4, 3, 3\)"),
    ((X, W, B[:5]), r"\(6,\).*\(5,\)"),
    ((X, W, B[:, None]), r"\(6, 1\)"),
    ((X, W, B, 0), r"stride \(0, 0\)"),
    ((X, W, B, 1, -1), r"padding \(-1, -1\)"),
    ((X, W, B, 1, 0, 0), r"dilation \(0, 0\)"),
    ((X, W, B, 1, 0, 3), r"larger than x \(2, 4, 5, 6\)"),
])
def test_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        conv2d_forward(*arguments)


def test_bad_dy():
    dy = np.zeros((2, 6, 3, 3))
    with pytest.raises(ValueError, match=r"\(2, 6, 3, 4\), not \(2, 6, 3, 3\)"):
        conv2d_grad_x(dy, W, X.shape)
    with pytest.raises(ValueError, match=r"\(2, 6, 3, 4\), not \(2, 6, 3, 3\)"):
        conv2d_grad_w(dy, X, W.shape)
