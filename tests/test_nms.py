from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nprcnn.ops import nms as module
from nprcnn.ops.boxes import box_iou
from nprcnn.ops.nms import batched_nms, nms
from reference_values import load_cases, strided

CASES = load_cases("nms.npz")
INPUTS = CASES.pop("inputs")
BOXES, SCORES, DISTINCT, GROUPS = (INPUTS[name] for name in ("boxes", "scores", "distinct_scores", "groups"))


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case, change, kernels):
    """Boxes of whole numbers: equal scores, equal and empty boxes, IoUs of exactly 1/2 and 0.3 (float32: above)."""
    threshold = CASES[case]["options"]["iou_threshold"]
    for dtype in (np.float64, np.float32):
        kept = kernels.nms(change(BOXES.astype(dtype)), change(SCORES.astype(dtype)), threshold)
        np.testing.assert_array_equal(kept, CASES[case][f"kept{8 * np.dtype(dtype).itemsize}"])
        assert kept.dtype == np.int64
    kept = batched_nms(change(BOXES), change(DISTINCT), GROUPS, threshold, kernels=kernels)
    np.testing.assert_array_equal(kept, CASES[case]["batched"])
    assert kept.dtype == np.int64


@pytest.mark.parametrize("block", [1, 2, 7, 149, 150, 1000])
@pytest.mark.parametrize("case", CASES)
def test_the_size_of_a_block_does_not_matter(case, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    kept = nms(BOXES, SCORES, **CASES[case]["options"])
    np.testing.assert_array_equal(kept, CASES[case]["kept64"])


def random_boxes(seed, n):
    """Crowded boxes, and scores without ties."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, size=(n, 2))
    return np.hstack([corner, corner + rng.uniform(0, 20, size=(n, 2))]), rng.permutation(n) / max(n, 1)


SEEDS, SIZES, THRESHOLDS = st.integers(0, 2**32 - 1), st.integers(0, 300), st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, n=SIZES, threshold=THRESHOLDS)
def test_what_is_kept_and_what_is_dropped(seed, n, threshold, kernels):
    boxes, scores = random_boxes(seed, n)
    scores = np.round(scores, 1)                # ties
    kept = kernels.nms(boxes, scores, threshold)
    iou = box_iou(boxes, boxes)
    among_kept = iou[np.ix_(kept, kept)] - np.eye(len(kept)) * 2
    assert (among_kept <= threshold).all()
    for dropped in np.setdiff1d(np.arange(n), kept):
        by = kept[iou[kept, dropped] > threshold]
        assert ((scores[by] > scores[dropped]) | ((scores[by] == scores[dropped]) & (by < dropped))).any()
    assert (np.diff(scores[kept]) <= 0).all()
    tied = np.diff(scores[kept]) == 0
    assert (np.diff(kept)[tied] > 0).all()      # equal scores keep the input's order


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, n=SIZES, threshold=THRESHOLDS)
def test_order_of_the_input_does_not_matter(seed, n, threshold, kernels):
    boxes, scores = random_boxes(seed, n)
    order = np.random.default_rng(seed + 1).permutation(n)
    shuffled = kernels.nms(boxes[order], scores[order], threshold)
    np.testing.assert_array_equal(order[shuffled], kernels.nms(boxes, scores, threshold))


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, n=SIZES, threshold=THRESHOLDS)
def test_groups_do_not_meet(seed, n, threshold, kernels):
    boxes, scores = random_boxes(seed, n)
    scores = np.round(scores, 1)
    groups = np.random.default_rng(seed + 2).integers(-1, 3, size=n)
    kept = batched_nms(boxes, scores, groups, threshold, kernels=kernels)
    for group in (-1, 0, 1, 2):
        members = np.flatnonzero(groups == group)
        alone = members[kernels.nms(boxes[members], scores[members], threshold)]
        np.testing.assert_array_equal(kept[groups[kept] == group], alone)
    assert (np.diff(scores[kept]) <= 0).all() and (np.diff(kept)[np.diff(scores[kept]) == 0] > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_at_the_threshold_stays(dtype, kernels):
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], dtype)
    scores = np.array([0.9, 0.8], dtype)
    assert box_iou(boxes, boxes)[0, 1] == 0.5
    np.testing.assert_array_equal(kernels.nms(boxes, scores, 0.5), [0, 1])
    np.testing.assert_array_equal(kernels.nms(boxes, scores, np.nextafter(0.5, 0)), [0])


def test_equal_boxes_and_equal_scores(kernels):
    boxes = np.tile([[1.0, 2, 5, 9]], (4, 1))
    np.testing.assert_array_equal(kernels.nms(boxes, np.ones(4), 0.5), [0])
    np.testing.assert_array_equal(kernels.nms(boxes, np.ones(4), 1.0), [0, 1, 2, 3])
    np.testing.assert_array_equal(kernels.nms(boxes, np.array([1.0, 3, 2, 3]), 0.5), [1])


def test_boxes_without_area_are_all_kept(kernels):
    boxes = np.tile([[1.0, 2, 1, 9]], (3, 1))
    np.testing.assert_array_equal(kernels.nms(boxes, np.array([1.0, 3, 2]), 0.0), [1, 2, 0])


def test_a_suppressed_box_suppresses_nothing(kernels):
    """b overlaps a and c, a and c do not overlap: greedy keeps a and c."""
    a, b, c = [0.0, 0, 10, 10], [4.0, 0, 14, 10], [8.0, 0, 18, 10]
    np.testing.assert_array_equal(kernels.nms(np.array([c, b, a]), np.array([1.0, 2, 3]), 0.3), [2, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_boxes(dtype, kernels):
    none = np.zeros((0, 4), dtype), np.zeros(0, dtype)
    for kept in (kernels.nms(*none, 0.5), batched_nms(*none, np.zeros(0, int), 0.5, kernels=kernels)):
        assert kept.shape == (0,) and kept.dtype == np.int64


def test_kernel_set_does_the_work():
    calls = []
    kernels = SimpleNamespace(nms=lambda *a: calls.append(a) or nms(*a))
    case = CASES["threshold 0.50"]
    np.testing.assert_array_equal(batched_nms(BOXES, DISTINCT, GROUPS, 0.5, kernels=kernels), case["batched"])
    assert len(calls) == len(np.unique(GROUPS))


@pytest.mark.parametrize("boxes, scores, message", [
    (np.ones((3, 5)), np.ones(3), r"\(3, 5\)"),
    (np.ones(4), np.ones(1), r"\(4,\)"),
    (np.ones((3, 4)), np.ones(2), r"\(2,\)"),
    (np.ones((3, 4)), np.ones((3, 1)), r"\(3, 1\)"),
])
def test_bad_shapes(boxes, scores, message, kernels):
    with pytest.raises(ValueError, match=message):
        kernels.nms(boxes, scores, 0.5)
    with pytest.raises(ValueError, match=message):
        batched_nms(boxes, scores, np.zeros(scores.shape, int), 0.5, kernels=kernels)


def test_bad_groups():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        batched_nms(np.ones((3, 4)), np.ones(3), np.zeros(2, int), 0.5)
