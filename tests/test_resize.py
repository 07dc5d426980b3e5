from types import SimpleNamespace

import numpy as np
import pytest

from nprcnn.ops import resize
from nprcnn.ops.resize import (resize_bilinear, resize_bilinear_backward, resize_bilinear_forward,
                               resize_bilinear_grad, resize_nearest, resize_nearest_backward,
                               resize_nearest_forward, resize_nearest_grad)
from reference_values import assert_adjoint, load_cases, strided

CASES = load_cases("resize.npz")
INDEX_CASES = {case: CASES.pop(case)["chosen"] for case in list(CASES) if case.startswith("index")}
FUNCTIONS = {"nearest": (resize_nearest, resize_nearest_grad),
             "bilinear": (resize_bilinear, resize_bilinear_grad)}


def functions(kernels, name):
    """The plain function and its gradient; name: of a method or of a stored case."""
    name = name.split("_")[0]
    return getattr(kernels, f"resize_{name}"), getattr(kernels, f"resize_{name}_grad")


def check(case, change, tolerance, kernels):
    ref = CASES[case]
    function, grad = functions(kernels, case)
    x, dy = change(ref["x"]), change(ref["dy"])
    y, dx = function(x, ref["y"].shape[2:]), grad(dy, ref["x"].shape)
    assert y.dtype == dx.dtype == x.dtype
    if case.startswith("nearest"):
        np.testing.assert_array_equal(y, ref["y"].astype(x.dtype))
    else:
        np.testing.assert_allclose(y, ref["y"], atol=tolerance)
    np.testing.assert_allclose(dx, ref["dx"], atol=tolerance)


# At most 50 terms below 4 are added, with weights (between 0 and 1) that come from coordinates below 12:
# rounding stays below 50 * 4 * 12 times half the precision (1.1e-16, 6e-8)
@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case, change, kernels):
    check(case, change, 3e-13, kernels)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case, kernels):
    check(case, lambda a: a.astype(np.float32), 1.5e-4, kernels)


@pytest.mark.parametrize("case", INDEX_CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_nearest_takes_the_pixels_that_pytorch_takes_in_float32(case, dtype, kernels):
    """Whatever the dtype: a float64 gradient check then runs the function that float32 training runs."""
    chosen = INDEX_CASES[case]
    _, n_in, n_out = (int(part) if part.isdigit() else part for part in case.split("_"))
    x = np.arange(n_in, dtype=dtype).reshape(1, 1, n_in, 1)
    y = kernels.resize_nearest(x, (n_out, 1))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[0, 0, :, 0], chosen)
    np.testing.assert_array_equal(kernels.resize_nearest(x.swapaxes(2, 3), (1, n_out))[0, 0, 0], chosen)


@pytest.mark.parametrize("case", CASES)
def test_adjoint(case, kernels):
    ref = CASES[case]
    function, grad = functions(kernels, case)
    y, dx = function(ref["x"], ref["y"].shape[2:]), grad(ref["dy"], ref["x"].shape)
    assert_adjoint(ref["dy"], y, dx, ref["x"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pairs_are_the_plain_functions(name):
    function, grad = FUNCTIONS[name]
    forward, backward = getattr(resize, f"resize_{name}_forward"), getattr(resize, f"resize_{name}_backward")
    ref = CASES[f"{name}_odd_level"]
    size = ref["y"].shape[2:]
    y, cache = forward(ref["x"], size)
    np.testing.assert_array_equal(y, function(ref["x"], size))
    np.testing.assert_array_equal(backward(ref["dy"], cache), grad(ref["dy"], ref["x"].shape))

    kernels = SimpleNamespace(**{f"resize_{name}": lambda *a: 2 * function(*a),
                                 f"resize_{name}_grad": lambda *a: 3 * grad(*a)})
    y, cache = forward(ref["x"], size, kernels=kernels)
    np.testing.assert_array_equal(y, 2 * function(ref["x"], size))
    dx = backward(ref["dy"], cache, kernels=kernels)
    np.testing.assert_array_equal(dx, 3 * grad(ref["dy"], ref["x"].shape))


@pytest.mark.parametrize("forward, backward", [(resize_nearest_forward, resize_nearest_backward),
                                               (resize_bilinear_forward, resize_bilinear_backward)])
def test_empty_batch(forward, backward, kernels):
    y, cache = forward(np.empty((0, 3, 4, 5), np.float32), (7, 10), kernels=kernels)
    assert y.shape == (0, 3, 7, 10) and y.dtype == np.float32
    assert backward(y, cache, kernels=kernels).shape == (0, 3, 4, 5)


def test_bilinear_keeps_a_constant_and_a_ramp(kernels):
    """A constant everywhere; a ramp (pixel i holds i + .5) from the first pixel's centre to the last's."""
    x = np.empty((1, 2, 6, 8))
    x[0, 0], x[0, 1] = 3, np.arange(8) + 0.5
    y = kernels.resize_bilinear(x, (9, 24))
    assert (y[0, 0] == 3).all()
    ramp = (np.arange(24) + 0.5) / 3
    np.testing.assert_allclose(y[0, 1], np.broadcast_to(np.clip(ramp, 0.5, 7.5), (9, 24)), rtol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_bad_pixel_spoils_only_its_neighbourhood(name, kernels):
    """A product with the full matrices would spread it: 0 * NaN is NaN."""
    x = np.zeros((1, 1, 8, 8))
    x[0, 0, 3, 4] = np.nan
    spoiled = np.isnan(functions(kernels, name)[0](x, (16, 16))[0, 0])
    assert spoiled[6:8, 8:10].all()
    spoiled[5:9, 7:11] = False
    assert not spoiled.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_arguments(name, kernels):
    function, grad = functions(kernels, name)
    for shape, size, named in (((3, 4, 5), (2, 2), r"\(3, 4, 5\)"),
                               ((2, 3, 0, 5), (2, 2), r"\(2, 3, 0, 5\)"),
                               ((2, 3, 4, 5), (0, 2), r"\(0, 2\)"),
                               ((2, 3, 4, 5), (2, 2, 2), r"\(2, 2, 2\)")):
        with pytest.raises(ValueError, match=named):
            function(np.zeros(shape), size)
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\) does not fit x_shape \(2, 3, 4, 5\)"):
        grad(np.zeros((2, 4, 8, 8)), (2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        grad(np.zeros((3, 8, 8)), (2, 3, 4, 5))


def test_bilinear_of_integers(kernels):
    with pytest.raises(ValueError, match="uint8"):
        kernels.resize_bilinear(np.zeros((1, 1, 4, 4), np.uint8), (8, 8))
