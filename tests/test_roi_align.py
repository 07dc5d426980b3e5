import math
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nprcnn.ops import roi_align as module
from nprcnn.ops.roi_align import roi_align, roi_align_backward, roi_align_forward, roi_align_grad
from reference_values import assert_adjoint, load_cases, strided

CASES = load_cases("roi_align.npz")
INPUTS, MASK_TARGET = CASES.pop("inputs"), CASES.pop("mask target")
SCALE, SIZE = 0.5, (4, 3)


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case, change, kernels):
    """1e-12: the two sum the same numbers in another order; the largest difference measured is 3e-15."""
    ref = CASES[case]
    features, rois, dy = (change(INPUTS[name]) for name in ("features", "rois", "dy"))
    y, cache = roi_align_forward(features, rois, SCALE, SIZE, **ref["options"], kernels=kernels)
    dx = roi_align_backward(dy, cache, kernels=kernels)
    np.testing.assert_allclose(y, ref["y"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, ref["dx"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(y, kernels.roi_align(features, rois, SCALE, SIZE, **ref["options"]))
    assert y.flags.c_contiguous and dx.flags.c_contiguous


@pytest.mark.parametrize("case", CASES)
def test_float32(case, kernels):
    """1e-5: coordinates of up to 30 are rounded by 2e-6, and the features between them differ by up to 5.

    The largest difference measured is 3e-6.
    """
    ref = CASES[case]
    features, rois, dy = (INPUTS[name].astype(np.float32) for name in ("features", "rois", "dy"))
    y, cache = roi_align_forward(features, rois, SCALE, SIZE, **ref["options"], kernels=kernels)
    dx = roi_align_backward(dy, cache, kernels=kernels)
    assert y.dtype == dx.dtype == np.float32
    np.testing.assert_allclose(y, ref["y"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(dx, ref["dx"], rtol=0, atol=1e-5)


def test_float32_has_no_float64_step():
    start, side = np.array([1.3, 2.7], np.float32), np.array([5.1, 0.2], np.float32)
    for sampling_ratio in (2, -1):
        weights, _, _ = module._interpolation_matrices(start, side, 3, 9, sampling_ratio)
        assert weights.dtype == np.float32
    # float64 RoIs of float32 features are rounded to float32 first, so that the features' dtype decides.
    features, rois = INPUTS["features"].astype(np.float32), INPUTS["rois"] + 1e-9
    y = roi_align(features, rois, np.float64(SCALE), SIZE)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, roi_align(features, rois.astype(np.float32), SCALE, SIZE))


def bilinear(plane, y, x):
    """The value of a plane (C, H, W) between its pixels, with torchvision's rules at the border."""
    _, height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(plane))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y1, x1 = int(y), int(x)
    y2, x2 = min(y1 + 1, height - 1), min(x1 + 1, width - 1)
    above = (1 - (x - x1)) * plane[:, y1, x1] + (x - x1) * plane[:, y1, x2]
    below = (1 - (x - x1)) * plane[:, y2, x1] + (x - x1) * plane[:, y2, x2]
    return (1 - (y - y1)) * above + (y - y1) * below


def naive_roi_align(features, rois, spatial_scale, size, sampling_ratio, aligned):
    """As the paper says it: some samples a bin, each by bilinear interpolation, and their mean."""
    y = np.zeros((len(rois), features.shape[1], *size))
    for r, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (c * spatial_scale - (0.5 if aligned else 0) for c in box)
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = max(w, 1), max(h, 1)
        bin_h, bin_w = h / size[0], w / size[1]
        ny = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
        nx = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
        for i in range(size[0]):
            for j in range(size[1]):
                for iy in range(ny):
                    for ix in range(nx):
                        point = y1 + (i + (iy + 0.5) / ny) * bin_h, x1 + (j + (ix + 0.5) / nx) * bin_w
                        y[r, :, i, j] += bilinear(features[int(image)], *point) / (ny * nx)
    return y


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 5, 0, -1])
def test_equals_the_definition(sampling_ratio, aligned, kernels):
    size = (2, 5)
    y = kernels.roi_align(INPUTS["features"], INPUTS["rois"], 0.25, size, sampling_ratio, aligned)
    naive = naive_roi_align(INPUTS["features"], INPUTS["rois"], 0.25, size, sampling_ratio, aligned)
    np.testing.assert_allclose(y, naive, rtol=0, atol=1e-12)
    assert np.abs(naive).max() > 1


def test_mask_target_equals_torchvision(kernels):
    masks, rois = MASK_TARGET["masks"].astype(float), MASK_TARGET["rois"]
    target = kernels.roi_align(masks, rois, 1.0, 28, sampling_ratio=-1)
    np.testing.assert_allclose(target, MASK_TARGET["y"], rtol=0, atol=1e-12)
    assert ((target > 0.1) & (target < 0.9)).any()      # soft, not thresholded


@settings(max_examples=50, deadline=None)
@given(slope=st.tuples(*[st.floats(-2, 2)] * 2), box=st.tuples(*[st.floats(0.6, 3.4)] * 4),
       ratio=st.sampled_from([-1, 1, 2, 3]), aligned=st.booleans())
def test_a_plane_is_sampled_at_the_bin_centres(slope, box, ratio, aligned, kernels):
    """Interpolation is exact for a plane a y + b x, and the mean of the samples is its value at the centre."""
    x1, y1 = box[0], box[1]
    w, h = 1 + box[2], 1 + box[3]                       # sides of at least 1, all within 0.1..7.8
    yy, xx = np.mgrid[:9, :13]
    features = (slope[0] * yy + slope[1] * xx)[None, None]
    rois = np.array([[0, x1, y1, x1 + w, y1 + h]]) * [1, 2, 2, 2, 2]
    y = kernels.roi_align(features, rois, 0.5, (2, 3), ratio, aligned)
    shift = 0.5 if aligned else 0.0
    centre_y = y1 - shift + h * (np.arange(2) + 0.5) / 2
    centre_x = x1 - shift + w * (np.arange(3) + 0.5) / 3
    expected = slope[0] * centre_y[:, None] + slope[1] * centre_x
    np.testing.assert_allclose(y[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_adjoint(case, kernels):
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(2, 3, 9, 13)), rng.normal(size=INPUTS["dy"].shape)
    y, cache = roi_align_forward(x, INPUTS["rois"], SCALE, SIZE, **CASES[case]["options"], kernels=kernels)
    assert_adjoint(dy, y, roi_align_backward(dy, cache, kernels=kernels), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("images", [2, 0])
def test_no_rois(images, dtype, kernels):
    features = np.ones((images, 3, 9, 13), dtype)
    for sampling_ratio in (2, -1):
        y, cache = roi_align_forward(features, np.zeros((0, 5), dtype), SCALE, 7, sampling_ratio, kernels=kernels)
        dx = roi_align_backward(y, cache, kernels=kernels)
        assert y.shape == (0, 3, 7, 7) and y.dtype == dtype
        assert dx.shape == features.shape and dx.dtype == dtype and not dx.any()


def test_image_without_rois_gets_no_gradient(kernels):
    rois = INPUTS["rois"][INPUTS["rois"][:, 0] == 1]
    dx = kernels.roi_align_grad(np.ones((len(rois), 3, 4, 3)), rois, (2, 3, 9, 13), SCALE, SIZE)
    assert not dx[0].any() and dx[1].any()


def test_a_small_roi_beside_a_large_one_stays_a_small_crop():
    """Adaptive sampling: the loop runs to the largest count, which must not widen the range of the others."""
    start, side = np.array([3.0, 0.0]), np.array([2.0, 100.0])
    weights, first, stop = module._interpolation_matrices(start, side, 2, 100, -1)
    assert (first[0], stop[0]) == (3, 7) and (first[1], stop[1]) == (0, 100)
    assert not weights[0, :, :3].any() and not weights[0, :, 7:].any()


def test_kernel_set_does_the_work():
    calls = []
    kernels = SimpleNamespace(roi_align=lambda *a: calls.append(a) or roi_align(*a),
                              roi_align_grad=lambda *a: calls.append(a) or roi_align_grad(*a))
    features, rois = INPUTS["features"], INPUTS["rois"]
    y, cache = roi_align_forward(features, rois, SCALE, SIZE, 1, True, kernels=kernels)
    dx = roi_align_backward(INPUTS["dy"], cache, kernels=kernels)
    np.testing.assert_allclose(y, CASES["aligned 1"]["y"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, CASES["aligned 1"]["dx"], rtol=0, atol=1e-12)
    assert [len(call) for call in calls] == [6, 7]


FEATURES, ROIS = np.ones((2, 3, 9, 13)), np.array([[1, 2.0, 3.0, 8.0, 9.0]])


@pytest.mark.parametrize("features, rois, size, message", [
    (FEATURES[0], ROIS, 7, r"\(3, 9, 13\)"),
    (FEATURES[:, :, :0], ROIS, 7, r"\(2, 3, 0, 13\)"),
    (FEATURES, ROIS[:, 1:], 7, r"\(1, 4\)"),
    (FEATURES, ROIS[0], 7, r"\(5,\)"),
    (FEATURES, ROIS + [1, 0, 0, 0, 0], 7, r"images 2\.\.2"),
    (FEATURES, ROIS - [2, 0, 0, 0, 0], 7, r"images -1\.\.-1"),
    (FEATURES, ROIS * np.nan, 7, "finite"),
    (FEATURES, ROIS * [1, 1, 1, np.inf, 1], 7, "finite"),
    (FEATURES, ROIS, 0, "output_size"),
    (FEATURES, ROIS, (7, 7, 7), "output_size"),
    (FEATURES.astype(np.uint8), ROIS, 7, "uint8"),
])
def test_bad_arguments(features, rois, size, message, kernels):
    with pytest.raises(ValueError, match=message):
        kernels.roi_align(features, rois, SCALE, size)


@pytest.mark.parametrize("shape", [(1, 3, 7, 6), (2, 3, 7, 7), (1, 2, 7, 7), (3, 7, 7)])
def test_bad_gradient(shape, kernels):
    with pytest.raises(ValueError, match=r"\(1, 3, 7, 7\)"):
        kernels.roi_align_grad(np.ones(shape), ROIS, FEATURES.shape, SCALE, 7)
