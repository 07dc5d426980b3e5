import math
from types import SimpleNamespace

import numpy as np
import pytest

from nprcnn.ops.roi_pool import roi_pool, roi_pool_backward, roi_pool_forward, roi_pool_grad
from reference_values import assert_adjoint, load_cases, strided

CASES = load_cases("roi_pool.npz")
SCALE, SIZE = 0.5, (4, 3)


@pytest.mark.parametrize("change", [lambda a: a, strided, lambda a: a.astype(np.float32)],
                         ids=["contiguous", "strided", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case, change, kernels):
    """y and index are copies, so they are exact. dx sums a few numbers below 4: 1e-14, in float32 5e-6."""
    ref = CASES[case]
    features, rois, dy = (change(ref[name]) for name in ("features", "rois", "dy"))
    y, cache = roi_pool_forward(features, rois, SCALE, SIZE, kernels=kernels)
    dx = roi_pool_backward(dy, cache, kernels=kernels)
    np.testing.assert_array_equal(y, ref["y"].astype(features.dtype))
    np.testing.assert_array_equal(cache.index, ref["index"])
    np.testing.assert_allclose(dx, ref["dx"], rtol=0, atol=1e-14 if features.dtype == np.float64 else 5e-6)
    assert y.dtype == dx.dtype == features.dtype and cache.index.dtype == np.int64
    assert y.flags.c_contiguous and cache.index.flags.c_contiguous
    assert (cache.index == -1).any() and (cache.index >= 0).any()


def naive_roi_pool(features, rois, spatial_scale, size):
    def half_away(v):
        return int(math.copysign(math.floor(abs(v) + 0.5), v))

    _, channels, height, width = features.shape
    y = np.zeros((len(rois), channels, *size))
    for r, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (half_away(c * spatial_scale) for c in box)
        h, w = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i in range(size[0]):
            for j in range(size[1]):
                rows = range(y1 + i * h // size[0], y1 - (-(i + 1) * h // size[0]))     # floor, ceil
                cols = range(x1 + j * w // size[1], x1 - (-(j + 1) * w // size[1]))
                rows = [k for k in rows if 0 <= k < height]
                cols = [k for k in cols if 0 <= k < width]
                if rows and cols:
                    y[r, :, i, j] = features[int(image)][:, rows][:, :, cols].max(axis=(1, 2))
    return y


@pytest.mark.parametrize("scale, size", [(0.5, (4, 3)), (0.25, (2, 5)), (1.0, (3, 3)), (0.3, (7, 7))])
def test_equals_the_definition(scale, size, kernels):
    ref = CASES["distinct"]
    y, index = kernels.roi_pool(ref["features"], ref["rois"], scale, size)
    np.testing.assert_array_equal(y, naive_roi_pool(ref["features"], ref["rois"], scale, size))
    planes = ref["features"][ref["rois"][:, 0].astype(int)].reshape(*y.shape[:2], -1)
    at_index = np.take_along_axis(planes, np.maximum(index, 0).reshape(planes.shape[:2] + (-1,)), axis=2)
    np.testing.assert_array_equal(np.where(index < 0, 0, at_index.reshape(y.shape)), y)


def test_first_maximum_wins(kernels):
    features = np.zeros((1, 1, 6, 6))
    _, index = kernels.roi_pool(features, np.array([[0, 0, 0, 5, 5.0]]), 1.0, 2)
    np.testing.assert_array_equal(index[0, 0], [[0, 3], [18, 21]])


def test_adjoint_at_fixed_index(kernels):
    """With the places of the maxima fixed the operation is linear."""
    ref = CASES["distinct"]
    y, cache = roi_pool_forward(ref["features"], ref["rois"], SCALE, SIZE, kernels=kernels)
    assert_adjoint(ref["dy"], y, roi_pool_backward(ref["dy"], cache, kernels=kernels), ref["features"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("images", [2, 0])
def test_no_rois(images, dtype, kernels):
    features = np.ones((images, 3, 9, 13), dtype)
    y, cache = roi_pool_forward(features, np.zeros((0, 5), dtype), SCALE, 7, kernels=kernels)
    dx = roi_pool_backward(y, cache, kernels=kernels)
    assert y.shape == cache.index.shape == (0, 3, 7, 7) and y.dtype == dtype
    assert dx.shape == features.shape and dx.dtype == dtype and not dx.any()


def test_kernel_set_does_the_work():
    calls = []
    kernels = SimpleNamespace(roi_pool=lambda *a: calls.append(a) or roi_pool(*a),
                              roi_pool_grad=lambda *a: calls.append(a) or roi_pool_grad(*a))
    ref = CASES["ties"]
    y, cache = roi_pool_forward(ref["features"], ref["rois"], SCALE, SIZE, kernels=kernels)
    dx = roi_pool_backward(ref["dy"], cache, kernels=kernels)
    np.testing.assert_array_equal(y, ref["y"])
    np.testing.assert_allclose(dx, ref["dx"], rtol=0, atol=1e-13)
    assert [len(call) for call in calls] == [4, 4]


FEATURES, ROIS = np.ones((2, 3, 9, 13)), np.array([[1, 2.0, 3.0, 8.0, 9.0]])


@pytest.mark.parametrize("features, rois, size, message", [
    (FEATURES[0], ROIS, 7, r"\(3, 9, 13\)"),
    (FEATURES, ROIS[:, 1:], 7, r"\(1, 4\)"),
    (FEATURES, ROIS + [1, 0, 0, 0, 0], 7, r"images 2\.\.2"),
    (FEATURES, ROIS * np.nan, 7, "finite"),
    (FEATURES, ROIS, (7, 0), "output_size"),
    (FEATURES.astype(np.int32), ROIS, 7, "int32"),
])
def test_bad_arguments(features, rois, size, message, kernels):
    with pytest.raises(ValueError, match=message):
        kernels.roi_pool(features, rois, SCALE, size)


@pytest.mark.parametrize("dy_shape, index_shape", [((1, 3, 7, 7), (1, 3, 7, 6)), ((1, 2, 7, 7), (1, 2, 7, 7)),
                                                   ((2, 3, 7, 7), (2, 3, 7, 7))])
def test_bad_gradient(dy_shape, index_shape, kernels):
    with pytest.raises(ValueError, match=r"\(1, 3, oh, ow\)"):
        kernels.roi_pool_grad(np.ones(dy_shape), np.zeros(index_shape, int), ROIS, FEATURES.shape)
