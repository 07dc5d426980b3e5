import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nprcnn import backend
from nprcnn.ops import conv
from nprcnn.ops.conv import conv2d, conv2d_backward, conv2d_forward, conv2d_grad_w, conv2d_grad_x
from reference_values import assert_adjoint, fenced, load_cases, strided

CASES = load_cases("conv.npz")
# Sums of at most 150 products, each below 10: rounding stays below 150 * 10 * 2.2e-16 = 3.3e-13
CLOSE = dict(rtol=1e-12, atol=1e-12)


# Every implementation runs the same tests: the NumPy functions, the compiled ones as they choose their algorithm, and each algorithm
# wherever it can do the work.
IMPLEMENTATIONS = ["numpy", "numba", "winograd 4x4", "winograd 2x2", "direct", "im2col"]


@pytest.fixture(params=IMPLEMENTATIONS)
def kernels(request, monkeypatch):
    return implementation(request.param, monkeypatch)


def implementation(name, monkeypatch):
    if name == "numpy":
        return backend.kernel_set("numpy")
    pytest.importorskip("numba")
    kernels = backend.kernel_set("numba")
    if name != "numba":
        from nprcnn.kernels.cpu import conv as compiled
        choose = compiled._choose

        def can_winograd(geo):
            return (geo.kernel, geo.stride, geo.dilation, geo.groups) == ((3, 3), (1, 1), (1, 1), 1)

        monkeypatch.setattr(compiled, "_choose", lambda geo, dtype: name if not name.startswith("winograd") or can_winograd(geo)
                            else choose(geo, dtype))
    return kernels


def run(case, kernels, change=lambda a: a):
    """y, dx, dw, db of a stored case, whose arrays go through `change` first."""
    ref = {name: value if name == "options" else change(value) for name, value in CASES[case].items()}
    y, cache = conv2d_forward(ref["x"], ref["w"], ref.get("b"), **ref["options"], kernels=kernels)
    return y, *conv2d_backward(ref["dy"], cache, kernels=kernels)


def assert_equals_reference(case, results, **tolerance):
    ref = CASES[case]
    for name, result in zip(("y", "dx", "dw", "db"), results):
        if name in ref:
            assert result.shape == ref[name].shape
            np.testing.assert_allclose(result, ref[name], err_msg=name, **tolerance)
        else:
            assert result is None


@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, kernels):
    assert_equals_reference(case, run(case, kernels), **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_non_contiguous_input(case, kernels):
    assert_equals_reference(case, run(case, kernels, strided), **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case, kernels):
    results = run(case, kernels, lambda a: a.astype(np.float32))
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
        assert_equals_reference(case, run(case, None), **CLOSE)
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


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(n=st.integers(0, 3), channels=pairs(1, 3), groups=st.integers(1, 3), more=pairs(0, 6),
       kernel=st.one_of(pairs(1, 4), st.just((3, 3))), stride=st.one_of(pairs(1, 3), st.just((1, 1))), padding=pairs(0, 4),
       dilation=st.one_of(pairs(1, 2), st.just((1, 1))), column_bytes=st.sampled_from([1, 1000, 1 << 20]))
def test_equals_the_definition(name, n, channels, groups, more, kernel, stride, padding, dilation, column_bytes):
    """y against a loop; dx and dw by the adjoint test, as conv2d is linear in x and in w. Blocks as small as one row, too."""
    rng = np.random.default_rng(0)
    height, width = (max(1, d * (k - 1) + 1 - 2 * p) + m
                     for d, k, p, m in zip(dilation, kernel, padding, more))
    x = rng.standard_normal((n, groups * channels[0], height, width))
    w = rng.standard_normal((groups * channels[1], channels[0], *kernel))
    b = rng.standard_normal(len(w))
    options = (stride, padding, dilation, groups)
    with pytest.MonkeyPatch.context() as patch:
        kernels = implementation(name, patch)
        patch.setattr(conv, "COLUMN_BYTES", column_bytes)
        if name != "numpy":
            from nprcnn.kernels.cpu import conv_im2col, conv_pointwise, conv_winograd
            patch.setattr(conv_im2col, "COLUMN_BYTES", column_bytes)
            patch.setattr(conv_pointwise, "BLOCK_BYTES", column_bytes)
            patch.setattr(conv_pointwise, "LEAST_PIXELS", 1 + column_bytes // 50)
            patch.setattr(conv_winograd, "GRADIENT_BYTES", column_bytes)
            patch.setattr(conv_winograd, "FORWARD_BYTES", column_bytes)
            patch.setattr(conv_winograd, "LEAST_TILES", 1 + column_bytes // 200)
        y = kernels.conv2d(x, w, b, *options)
        np.testing.assert_allclose(y, naive(x, w, b, *options), **CLOSE)
        scale, shift, residual = rng.standard_normal(len(w)), rng.standard_normal(len(w)), rng.standard_normal(y.shape)
        fused = kernels.conv2d_fused(x, w, b, *options, scale=scale, shift=shift, residual=residual, relu=True)
        np.testing.assert_allclose(fused, np.maximum(y * scale[:, None, None] + shift[:, None, None] + residual, 0), **CLOSE)
        if n:
            dy, ax = rng.standard_normal(y.shape), kernels.conv2d(x, w, None, *options)
            assert_adjoint(dy, ax, kernels.conv2d_grad_x(dy, w, x.shape, *options), x)
            assert_adjoint(dy, ax, kernels.conv2d_grad_w(dy, x, w.shape, *options), w)


# Sizes at which the compiled algorithms do all that they can do: whole chunks of 64 tiles, more than 64 channels, more than one block
LARGE = {"wide": (1, 70, 9, 301), "many small": (37, 34, 14, 14), "one pixel": (3, 33, 1, 1)}


@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_large_maps_in_float32(shape, kernels):
    """Against NumPy in float64. Winograd 4x4 rounds up to 2.3e-5 of the largest number (python -m nprcnn.kernels.cpu.conv_errors)."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(shape), rng.standard_normal((41, shape[1], 3, 3))
    dy = rng.standard_normal((shape[0], 41, *shape[2:]))
    x32, w32, dy32 = (a.astype(np.float32) for a in (x, w, dy))
    for got, want in ((kernels.conv2d(x32, w32, None, 1, 1), conv2d(x, w, None, 1, 1)),
                      (kernels.conv2d_grad_x(dy32, w32, x.shape, 1, 1), conv2d_grad_x(dy, w, x.shape, 1, 1)),
                      (kernels.conv2d_grad_w(dy32, x32, w.shape, 1, 1), conv2d_grad_w(dy, x, w.shape, 1, 1))):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-5 * np.abs(want).max())


@pytest.mark.parametrize("given", ["scale", "shift", "residual", "relu", "b"])
def test_fused_one_at_a_time(given, kernels):
    ref = CASES["3x3"]
    rng = np.random.default_rng(0)
    y = conv2d(ref["x"], ref["w"], None, **ref["options"])
    values = {"scale": rng.standard_normal(4), "shift": rng.standard_normal(4), "b": rng.standard_normal(4),
              "residual": rng.standard_normal(y.shape), "relu": True}
    values["residual"].flags.writeable = False
    column = values[given][:, None, None] if given in ("scale", "shift", "b") else values[given]
    want = {"scale": lambda: y * column, "shift": lambda: y + column, "b": lambda: y + column, "residual": lambda: y + column,
            "relu": lambda: np.maximum(y, 0)}[given]()
    got = kernels.conv2d_fused(ref["x"], ref["w"], **ref["options"], **{given: values[given]})
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
def test_what_is_not_finite_goes_where_convolution_puts_it(bad, kernels):
    """Winograd mixes the inputs of a whole tile: inf - inf there would be NaN at outputs that never see the inf."""
    x, w = np.ones((1, 33, 12, 12), np.float32), np.ones((34, 33, 3, 3), np.float32)
    x[0, 5, 6, 6] = bad
    with np.errstate(all="ignore"):
        y = kernels.conv2d_fused(x, w, padding=1, relu=True)
        dw = kernels.conv2d_grad_w(np.ones((1, 34, 12, 12), np.float32), x, w.shape, padding=1)
    seen = np.zeros((12, 12), bool)
    seen[5:8, 5:8] = True
    clean = conv2d(np.ones((1, 33, 12, 12)), w, padding=1)
    np.testing.assert_allclose(y[0, :, ~seen], clean[0, :, ~seen], rtol=1e-4)
    expected = np.nan if np.isnan(bad) else max(bad, 0)
    np.testing.assert_allclose(y[0, :, seen], np.full((9, 34), expected), rtol=1e-6)     # a few roundings
    channel = np.arange(33) == 5
    assert np.isfinite(dw[:, ~channel]).all()
    np.testing.assert_allclose(dw[:, channel], np.full((34, 1, 3, 3), bad), rtol=1e-6)


def test_the_choice():
    pytest.importorskip("numba")
    from nprcnn.kernels.cpu.conv import choose_algorithm
    for want, x_shape, w_shape, options in (
            ("winograd 4x4", (1, 256, 200, 304), (256, 256, 3, 3), dict(padding=1)),      # P2
            ("winograd 4x4", (100, 256, 14, 14), (256, 256, 3, 3), dict(padding=1)),      # the mask head
            ("winograd 2x2", (1, 256, 13, 19), (256, 256, 3, 3), dict(padding=1)),        # P6: few tiles
            ("im2col", (1, 256, 4, 4), (256, 256, 3, 3), dict(padding=1)),                # hardly any
            ("im2col", (1, 256, 200, 304), (256, 256, 3, 3), dict(padding=1, dtype=np.float64)),
            ("im2col", (1, 256, 50, 76), (256, 256, 3, 3), dict(padding=2, dilation=2)),
            ("im2col", (1, 128, 200, 304), (128, 128, 3, 3), dict(stride=2, padding=1)),
            ("im2col", (1, 3, 800, 1216), (64, 3, 7, 7), dict(stride=2, padding=3)),
            ("im2col", (1, 256, 200, 304), (512, 256, 1, 1), dict(stride=2)),
            ("im2col", (1, 256, 50, 76), (256, 8, 3, 3), dict(padding=1, groups=32)),     # ResNeXt
            ("direct", (1, 256, 50, 76), (256, 1, 3, 3), dict(padding=1, groups=256)),
            ("pointwise", (1, 256, 200, 304), (64, 256, 1, 1), {})):
        assert choose_algorithm(x_shape, w_shape, **options) == want


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by ctypes")
@pytest.mark.parametrize("at_end", [False, True], ids=["at the start", "at the end"])
@pytest.mark.parametrize("shape", [(1, 32, 30, 30), (2, 128, 9, 7), (9, 33, 14, 14)])
@pytest.mark.parametrize("padding", [0, 1])
def test_nothing_outside_of_the_arrays_is_read_or_written(shape, padding, at_end, kernels):
    """Compiled loops with vectors do not check an index. A mistake kills the whole test run, and the last test named is this one."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((shape[1] + 1, shape[1], 3, 3)).astype(np.float32)
    y = kernels.conv2d(x, w, None, 1, padding)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    x_, w_, dy_ = (fenced(a, at_end) for a in (x, w, dy))
    for one, other in ((kernels.conv2d_fused(x, w, None, 1, padding, residual=dy),
                        kernels.conv2d_fused(x_, w_, None, 1, padding, residual=dy_)),
                       (kernels.conv2d_grad_x(dy, w, x.shape, 1, padding), kernels.conv2d_grad_x(dy_, w_, x.shape, 1, padding)),
                       (kernels.conv2d_grad_w(dy, x, w.shape, 1, padding), kernels.conv2d_grad_w(dy_, x_, w.shape, 1, padding))):
        np.testing.assert_array_equal(other, one)


def test_two_threads_do_not_share_scratch(kernels):
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((1, 34, 20, 20 + i)).astype(np.float32) for i in range(4)]
    w = rng.standard_normal((36, 34, 3, 3)).astype(np.float32)
    alone = [kernels.conv2d(x, w, None, 1, 1) for x in xs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda i: kernels.conv2d(xs[i % 4], w, None, 1, 1), range(24)))
    for i, y in enumerate(together):
        np.testing.assert_array_equal(y, alone[i % 4])


def test_outputs_are_never_scratch(kernels):
    x, w = np.ones((1, 34, 20, 20), np.float32), np.ones((36, 34, 3, 3), np.float32)
    y = kernels.conv2d(x, w, None, 1, 1)
    before = y.copy()
    kernels.conv2d(3 * x, w, None, 1, 1)
    np.testing.assert_array_equal(y, before)


def test_options_as_one_int(kernels):
    ref = CASES["dilated"]
    y = kernels.conv2d(ref["x"], ref["w"], ref["b"], padding=2, dilation=2)
    np.testing.assert_allclose(y, ref["y"], **CLOSE)


def test_empty_batch(kernels):
    w, b = np.ones((4, 3, 3, 3), np.float32), np.ones(4, np.float32)
    y, cache = conv2d_forward(np.empty((0, 3, 7, 5), np.float32), w, b, stride=2, padding=1, kernels=kernels)
    assert y.shape == (0, 4, 4, 3) and y.dtype == np.float32
    dx, dw, db = conv2d_backward(y, cache, kernels=kernels)
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
def test_bad_arguments(arguments, named, kernels):
    with pytest.raises(ValueError, match=named):
        conv2d_forward(*arguments, kernels=kernels)


def test_bad_dy(kernels):
    dy = np.zeros((2, 6, 3, 3))
    with pytest.raises(ValueError, match=r"\(2, 6, 3, 4\), not \(2, 6, 3, 3\)"):
        kernels.conv2d_grad_x(dy, W, X.shape)
    with pytest.raises(ValueError, match=r"\(2, 6, 3, 4\), not \(2, 6, 3, 3\)"):
        kernels.conv2d_grad_w(dy, X, W.shape)


@pytest.mark.parametrize("name, value", [("scale", np.ones(5)), ("shift", np.ones((6, 1))), ("residual", np.ones((2, 6, 3, 3)))])
def test_bad_fused_arguments(name, value, kernels):
    with pytest.raises(ValueError, match=f"{name} must .* not .{value.shape[0]}"):
        kernels.conv2d_fused(X, W, **{name: value})
