import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE

from nprcnn.gradcheck import check_gradients
from nprcnn.models.roi_features import RoIFeatures, as_rois, assign_levels
from nprcnn.ops.roi_align import roi_align
from nprcnn.ops.roi_pool import roi_pool


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("canonical_size, name", [(224, "levels"), (56, "levels56")])
def test_levels_are_torchvisions(dtype, canonical_size, name):
    """On random squares, on those at the border of two levels, and on the next smaller float32 of each."""
    side = np.concatenate([np.array([7, 28, 56, 112, 224, 448, 896, 2000.0]), np.exp(seeded.uniform("sides", 2, 7, 80))])
    side = np.concatenate([side, np.nextafter(np.float32(side), np.float32(0))])
    boxes = np.stack([0 * side, 0 * side, side, side], axis=1).astype(dtype)
    levels = assign_levels(boxes, 4, canonical_size)
    np.testing.assert_array_equal(levels, REFERENCE[f"{name}.{dtype}"])
    assert levels.dtype == np.int64 and set(levels) == {0, 1, 2, 3}


def test_levels_of_odd_boxes():
    boxes = np.float32([[0, 0, 224, 224], [0, 0, 112, 448], [0, 0, 1e5, 1e5], [3, 3, 3, 9], [5, 5, 5, 5]])
    assert assign_levels(boxes, 4).tolist() == [2, 2, 3, 0, 0]  # a box without area belongs to the finest level
    assert assign_levels(boxes, 1).tolist() == [0] * 5
    assert assign_levels(boxes[:0], 4).shape == (0,)


def test_each_epsilon_decides_at_the_border_of_two_levels():
    """Squares whose side is a little less than 112, where the level changes from P2 to P3 (index 0 to 1)."""
    short = np.array([0, 1e-9, 3e-7, 5e-6, 1e-5, 1e-4, 1e-3])  # so much is missing, relatively
    side = 112 * (1 - short)
    boxes = np.stack([0 * side, 0 * side, side, side], axis=1)
    # k = floor(4 + log2(side / 224 + eps_in_log) + eps): log2(1 - d) is -1.44 d, and eps_in_log counts twice at a ratio of 1/2
    assert assign_levels(boxes, 4, eps=0.0).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert assign_levels(boxes, 4, eps=0.0, eps_in_log=1e-8).tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert assign_levels(boxes, 4).tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert assign_levels(boxes, 4, eps=1e-5).tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert assign_levels(boxes, 4, eps=0.0, eps_in_log=1e-5).tolist() == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("eps, eps_in_log", [(1e-6, 0.0), (0.0, 1e-8), (0.0, 0.0)])
def test_exact_borders(eps, eps_in_log):
    """Exactly 112, 224 and 448 pixels belong to the coarser level, with any convention."""
    side = np.array([111.9, 112, 223.9, 224, 447.9, 448])
    boxes = np.stack([0 * side, 0 * side, side, side], axis=1)
    for dtype in (np.float32, np.float64):
        assert assign_levels(boxes.astype(dtype), 4, eps=eps, eps_in_log=eps_in_log).tolist() == [0, 1, 1, 2, 2, 3]


def test_rois_carry_their_image():
    rois = as_rois([np.float32([[1, 2, 3, 4]]), np.zeros((0, 4), np.float32), np.float32([[5, 6, 7, 8], [9, 10, 11, 12]])])
    assert rois.tolist() == [[0, 1, 2, 3, 4], [2, 5, 6, 7, 8], [2, 9, 10, 11, 12]]
    assert rois.dtype == np.float32
    assert as_rois([np.zeros((0, 4))]).shape == (0, 5)


def inputs():
    """Distinct values .1 apart (for RoIPool's maxima), two images, three RoIs on P2, none on P3, two on P4."""
    rng = np.random.default_rng(0)
    pyramid = [0.1 * rng.permutation(2 * 3 * h * w).reshape(2, 3, h, w) for h, w in ((16, 20), (8, 10), (4, 5))]
    rois = np.array([[0, 3.1, 2.2, 40.3, 30.4], [1, 10, 12, 33, 60], [0, 0, 0, 79, 63], [1, 5, 5, 6, 6], [0, 50, 30, 79, 62]])
    return pyramid, rois, np.array([0, 2, 2, 0, 0])


@pytest.mark.parametrize("method", ["align", "pool"])
def test_each_roi_is_read_from_its_level_and_keeps_its_place(method):
    pyramid, rois, levels = inputs()
    y, cache = RoIFeatures(method, 7).forward(pyramid, rois, levels, False)
    assert cache is None and y.shape == (5, 3, 7, 7)
    for i, (roi, level) in enumerate(zip(rois, levels)):
        expected = (roi_align(pyramid[level], roi[None], 1 / (4, 8, 16)[level], 7, 2, False) if method == "align"
                    else roi_pool(pyramid[level], roi[None], 1 / (4, 8, 16)[level], 7)[0])
        np.testing.assert_allclose(y[i], expected[0], rtol=1e-14)  # the active kernels may add in another order


@pytest.mark.parametrize("method", ["align", "pool"])
def test_gradients(method):
    features = RoIFeatures(method, 3)
    pyramid, rois, levels = inputs()
    check_gradients(lambda *p: features.forward(p, rois, levels, True), features.backward, pyramid)


@pytest.mark.parametrize("method", ["align", "pool"])
def test_no_rois(method):
    features = RoIFeatures(method, 3)
    pyramid, rois, levels = inputs()
    y, cache = features.forward(pyramid, rois[:0], levels[:0], True)
    assert y.shape == (0, 3, 3, 3)
    for d, p in zip(features.backward(y, cache), pyramid):
        assert d.shape == p.shape and not d.any()
