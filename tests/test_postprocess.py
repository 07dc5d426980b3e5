import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE

from nprcnn.models.postprocess import filter_detections
from nprcnn.ops.boxes import clip_boxes, decode_boxes


def outputs():
    logits, deltas = 2 * seeded.normal("detect logits", 40, 4), 2 * seeded.normal("detect deltas", 40, 16)
    deltas[::9] -= 30  # some boxes collapse
    return logits, deltas, seeded.boxes("detect rois", 40, 60, 80, 6.0)


@pytest.mark.parametrize("k, rows, size", [(0, slice(0, 25), (55, 80)), (1, slice(25, 40), (60, 72))])
def test_detections_are_torchvisions(k, rows, size):
    logits, deltas, rois = (a[rows] for a in outputs())
    boxes, labels, scores, proposal = filter_detections(logits, deltas, rois, size, 0.05, 0.5, 15)
    np.testing.assert_allclose(boxes, REFERENCE[f"detections.boxes.{k}"], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(scores, REFERENCE[f"detections.scores.{k}"], rtol=1e-13)
    np.testing.assert_array_equal(labels, REFERENCE[f"detections.labels.{k}"])
    assert len(boxes) == 15
    # and each leads back to its RoI
    made = decode_boxes(deltas.reshape(-1, 4, 4)[proposal, labels], rois[proposal], (10, 10, 5, 5))
    np.testing.assert_array_equal(clip_boxes(made, size), boxes)


def by_hand(logits, **changes):
    """RoIs side by side, no deltas."""
    rois = np.float32([[10 * i, 0, 10 * i + 9, 9] for i in range(len(logits))])
    arguments = {**dict(score_thresh=0.05, nms_thresh=0.5, max_detections=100), **changes}
    deltas = np.zeros((len(logits), 4 * len(logits[0])), np.float32)
    return filter_detections(np.float32(logits), deltas, rois, (20, 100), **arguments)


def test_one_roi_may_be_several_classes_but_never_background():
    boxes, labels, scores, proposal = by_hand([[5, 1, 1.5], [0, 5, 5.5]], score_thresh=0.01)
    assert labels.tolist() == [2, 1, 2, 1] and proposal.tolist() == [1, 1, 0, 0]
    assert boxes.dtype == scores.dtype == np.float32 and labels.dtype == np.int64
    assert by_hand([[5, 1, 1.5], [0, 5, 5.5]], score_thresh=0.3)[1].tolist() == [2, 1]
    assert by_hand([[5, 1, 1.5], [0, 5, 5.5]], score_thresh=0.01, max_detections=1)[1].tolist() == [2]


def test_the_threshold_itself_is_too_low():
    assert len(by_hand([[0, 0]], score_thresh=0.5)[0]) == 0
    assert len(by_hand([[0, 0]], score_thresh=0.4999)[0]) == 1


def test_suppression_within_a_class_only():
    rois = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8.5]])
    logits = np.float32([[0, 6, 0], [0, 5, 0], [0, 0, 5]])
    _, labels, _, proposal = filter_detections(logits, np.zeros((3, 12), np.float32), rois, (20, 20), 0.5, 0.5, 100)
    assert proposal.tolist() == [0, 2] and labels.tolist() == [1, 2]


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_found(count):
    logits, deltas, rois = (a[:count] for a in outputs())
    boxes, labels, scores, proposal = filter_detections(logits, deltas, rois, (60, 80), 1.0, 0.5, 100)
    assert boxes.shape == (0, 4) and labels.shape == scores.shape == proposal.shape == (0,)
