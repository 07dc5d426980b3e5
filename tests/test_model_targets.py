import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE

from nprcnn.models.targets import BACKGROUND, IGNORED, anchor_targets, mask_targets, match, roi_targets, sample
from nprcnn.ops.boxes import box_iou
from nprcnn.ops.roi_align import roi_align


def quantised_iou(rows):
    """Steps of 1/8, so that there are ties; target 3 fits no box well, target 4 meets none."""
    iou = np.round(seeded.uniform("iou", 0, 1, 5, 60) ** 2 * 8) / 8
    iou[3] *= 0.25
    iou[4] = 0
    return iou[:rows]


@pytest.mark.parametrize("name, rows", [("four", 4), ("five", 5)])
def test_matching_is_torchvisions(name, rows):
    iou = quantised_iou(rows)
    np.testing.assert_array_equal(match(iou, 0.5, 0.5), REFERENCE[f"match.{name}.box"])
    np.testing.assert_array_equal(match(iou, 0.7, 0.3, keep_best=True), REFERENCE[f"match.{name}.rpn"])
    # a target that meets no box at all makes every box positive
    assert (match(iou, 0.7, 0.3, keep_best=True) >= 0).all() == (rows == 5)


def test_thresholds_and_ties_by_hand():
    iou = np.array([[0.7, 0.69, 0.3, 0.29, 0.1, 0.0], [0.0, 0.2, 0.0, 0.25, 0.25, 0.0]])
    assert match(iou, 0.7, 0.3).tolist() == [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]
    # boxes 3 and 4 tie for target 1's best; box 3 fits target 0 better, and gets that one
    assert match(iou, 0.7, 0.3, keep_best=True).tolist() == [0, IGNORED, IGNORED, 0, 1, BACKGROUND]
    assert match(np.zeros((0, 3)), 0.7, 0.3, keep_best=True).tolist() == [BACKGROUND] * 3
    assert match(np.zeros((2, 0)), 0.5, 0.5).shape == (0,)


def test_samples_are_disjoint_random_and_of_the_right_size():
    matched = np.array([0] * 30 + [BACKGROUND] * 50 + [IGNORED] * 20)
    positive, negative = sample(matched, 40, 0.5, np.random.default_rng(0))
    assert len(positive) == 20 and len(negative) == 20
    assert (matched[positive] == 0).all() and (matched[negative] == BACKGROUND).all()
    for chosen in (positive, negative):
        assert (np.diff(chosen) > 0).all()  # ascending, so no repeats
    again = sample(matched, 40, 0.5, np.random.default_rng(0))
    other = sample(matched, 40, 0.5, np.random.default_rng(1))
    assert positive.tolist() == again[0].tolist() and negative.tolist() == again[1].tolist()
    assert positive.tolist() != other[0].tolist() and negative.tolist() != other[1].tolist()
    # negatives fill what positives leave; too few of both give fewer
    positive, negative = sample(matched, 70, 0.25, np.random.default_rng(0))
    assert (len(positive), len(negative)) == (17, 50)
    positive, negative = sample(matched[:33], 40, 1.0, np.random.default_rng(0))
    assert (len(positive), len(negative)) == (30, 3)


def test_every_candidate_is_drawn_equally_often():
    matched = np.array([0] * 10 + [BACKGROUND] * 20)
    counts = np.zeros(30)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        for chosen in sample(matched, 10, 0.5, rng):
            counts[chosen] += 1
    # binomial: 1000 +- 22 of 2000 positives, 500 +- 19 of the negatives; five standard deviations
    assert np.abs(counts[:10] - 1000).max() < 110 and np.abs(counts[10:] - 500).max() < 95


def test_anchor_targets():
    anchors = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 4, 10], [30, 30, 34, 34]])
    targets = np.array([[0, 0, 10, 10], [30, 30, 40, 40]])
    positive, negative, matched = anchor_targets(anchors, targets, np.random.default_rng(0), 0.7, 0.3, 256, 0.5)
    assert positive.tolist() == [0, 1, 4] and matched.tolist() == [0, 0, 1]  # 4 has an IoU of .16 only, but the best there is
    assert negative.tolist() == [2]  # 3 lies in between
    positive, negative, matched = anchor_targets(anchors, targets[:0], np.random.default_rng(0), 0.7, 0.3, 256, 0.5)
    assert len(positive) == len(matched) == 0 and negative.tolist() == [0, 1, 2, 3, 4]


def test_ties_are_found_in_float32_whatever_the_model_computes_in():
    """Two anchors lie left and right of the target, equally far. In float64 the last bits differ: 18 - 10.1 and 20.9 - 13."""
    target = np.array([[10.1, 10, 20.9, 20]])
    anchors = np.array([[8.0, 10, 18, 20], [13, 10, 23, 20]])
    left, right = box_iou(target, anchors)[0]
    assert left != right
    for dtype in (np.float32, np.float64):
        positive, *_ = anchor_targets(anchors.astype(dtype), target.astype(dtype), np.random.default_rng(0), 0.7, 0.3, 9, 1.0)
        assert positive.tolist() == [0, 1]


def test_roi_targets():
    proposals = np.float32([[0, 0, 10, 10], [0, 0, 10, 4], [80, 80, 90, 90], [41, 40, 50, 50]])
    boxes, labels = np.float64([[0, 0, 10, 10], [40, 40, 50, 50]]), np.array([5, 3])
    candidate, found, matched = roi_targets(proposals, boxes, labels, np.random.default_rng(0), 0.5, 0.5, 512, 0.75)
    assert candidate.tolist() == [0, 1, 2, 3, 4, 5]  # the target boxes come last and are candidates, too
    assert found.tolist() == [5, 0, 0, 3, 5, 3]
    assert matched.tolist() == [0, 0, 0, 1, 0, 1]
    # a quarter of 8 may be positive
    candidate, found, _ = roi_targets(proposals, boxes, labels, np.random.default_rng(0), 0.5, 0.5, 8, 0.25)
    assert (found > 0).sum() == 2 and (found == 0).sum() == 2 and (np.diff(candidate) > 0).all()
    # no objects: everything is background
    candidate, found, matched = roi_targets(proposals, boxes[:0], labels[:0], np.random.default_rng(0), 0.5, 0.5, 512, 0.25)
    assert candidate.tolist() == [0, 1, 2, 3] and not found.any() and not matched.any()


def test_mask_targets_are_torchvisions():
    masks = (seeded.uniform("gt masks", 0, 1, 3, 40, 50) > 0.4).astype(np.uint8)
    rois = seeded.boxes("mask rois", 6, 40, 50, 1.0)
    rois[0] = (0, 0, 50, 40)
    rois[1, 2:] = rois[1, :2] + 0.5  # smaller than a pixel
    found = mask_targets(masks, rois, np.array([0, 1, 2, 2, 0, 1]), 14)
    np.testing.assert_allclose(found, REFERENCE["mask_targets"], rtol=1e-12, atol=1e-14)
    assert mask_targets(masks[:0], rois[:0], np.zeros(0, np.int64), 28).shape == (0, 28, 28)


def test_aligned_and_binary_are_apart():
    masks = (seeded.uniform("gt masks", 0, 1, 3, 40, 50) > 0.4).astype(np.uint8)
    rois, matched = seeded.boxes("mask rois", 6, 40, 50, 1.0), np.array([0, 1, 2, 2, 0, 1])
    at = np.concatenate([matched[:, None], rois], axis=1)
    for aligned in (False, True):
        soft = mask_targets(masks, rois, matched, 14, aligned)
        np.testing.assert_allclose(soft, roi_align(masks[:, None].astype(float), at, 1.0, 14, 0, aligned)[:, 0], rtol=1e-12)
        binary = mask_targets(masks, rois, matched, 14, aligned, binary=True)
        np.testing.assert_array_equal(binary, soft >= 0.5)
        assert binary.dtype == soft.dtype and not np.isin(soft, (0, 1)).all()
    assert (mask_targets(masks, rois, matched, 14) != soft).any()


def test_binary_aligned_targets_of_a_half_plane():
    """The mask covers x < 10. Cells of an aligned RoI from 6 to 14 of eight cells are the pixels themselves; without alignment they lie
    half a pixel beside them, and the border cell is half covered: it counts."""
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[:, :, :10] = 1
    roi, zero = np.array([[6.0, 6, 14, 14]]), np.array([0])
    assert mask_targets(mask, roi, zero, 8, aligned=True)[0, 3].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert mask_targets(mask, roi, zero, 8)[0, 3].tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]
    assert mask_targets(mask, roi, zero, 8, binary=True)[0, 3].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
