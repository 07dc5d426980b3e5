"""What the settings that differ between conventions do in their functions, each alone, against the formula."""

import numpy as np
import pytest
from reference import seeded

from nprcnn.errors import ConfigError
from nprcnn.models.box_head import box_losses, box_losses_backward
from nprcnn.models.postprocess import filter_detections
from nprcnn.models.rpn import filter_proposals, rpn_losses, rpn_losses_backward
from nprcnn.models.settings import Settings
from nprcnn.ops.boxes import encode_boxes

ANCHORS = seeded.boxes("settings anchors", 30, 60, 80, 6.0)


def rpn_inputs():
    """Two images of 30 anchors, of which 7 and 5 are sampled."""
    boxes = [seeded.boxes(f"settings targets {k}", 2, 60, 80, 9.0) for k in range(2)]
    return (seeded.normal("settings logits", 2, 30), seeded.normal("settings deltas", 2, 30, 4), ANCHORS, boxes,
            [np.array([1, 4, 9]), np.array([0])], [np.array([2, 3, 20, 21]), np.array([5, 6, 7, 8])], [np.array([0, 1, 1]), np.array([1])])


def test_rpn_losses_with_beta_0_are_l1():
    logits, deltas, anchors, boxes, positive, negative, matched = rpn_inputs()
    objectness, box, cache = rpn_losses(*rpn_inputs(), beta=0.0)
    off = [deltas[k, p] - encode_boxes(b[m], anchors[p]) for k, (p, b, m) in enumerate(zip(positive, boxes, matched))]
    assert box == pytest.approx(sum(np.abs(d).sum() for d in off) / 12, rel=1e-13)
    _, ddeltas = rpn_losses_backward(1.0, 1.0, cache)
    for k, p in enumerate(positive):
        np.testing.assert_allclose(ddeltas[k, p], np.sign(off[k]) / 12, rtol=1e-13)
    assert np.count_nonzero(ddeltas) == 16
    smooth = rpn_losses(*rpn_inputs())
    assert smooth[0] == objectness and smooth[1] < box


def test_rpn_losses_divided_by_the_anchors_that_were_wanted():
    """Both of them: 12 anchors were found, 512 were wanted."""
    objectness, box, cache = rpn_losses(*rpn_inputs())
    other, other_box, other_cache = rpn_losses(*rpn_inputs(), normalizer=512)
    assert (other, other_box) == (pytest.approx(objectness * 12 / 512, rel=1e-13), pytest.approx(box * 12 / 512, rel=1e-13))
    for a, b in zip(rpn_losses_backward(1.0, 1.0, cache), rpn_losses_backward(1.0, 1.0, other_cache)):
        np.testing.assert_allclose(b, a * 12 / 512, rtol=1e-13)


def test_box_loss_with_beta_0_is_l1_over_all_rois():
    logits, deltas = seeded.normal("settings class", 6, 3), seeded.normal("settings box", 6, 12)
    rois, targets = seeded.boxes("settings rois", 6, 60, 80, 6.0), seeded.boxes("settings box targets", 6, 60, 80, 6.0)
    labels = np.array([0, 2, 1, 0, 0, 2])
    classifier, box, cache = box_losses(logits, deltas, rois, labels, targets, beta=0.0)
    off = [deltas[i].reshape(3, 4)[labels[i]] - encode_boxes(targets[i:i + 1], rois[i:i + 1], (10, 10, 5, 5))[0] for i in (1, 2, 5)]
    assert box == pytest.approx(np.abs(off).sum() / 6, rel=1e-13)
    _, ddeltas = box_losses_backward(1.0, 1.0, cache)
    np.testing.assert_allclose(ddeltas.reshape(6, 3, 4)[[1, 2, 5], [2, 1, 2]], np.sign(off) / 6, rtol=1e-13)
    assert box_losses(logits, deltas, rois, labels, targets)[0] == classifier


def test_nms_on_logits_sorts_what_the_sigmoid_makes_equal():
    """In float32 the sigmoids of 20 and of 30 are both 1: sorted by score, the first of the two level's boxes wins; by logit, the larger.
    (They are in two levels, so that the top-k, which always sorts by logits, cannot put them in order.)"""
    levels = [np.float32([[0, 0, 10, 10], [30, 30, 40, 40]]), np.float32([[50, 50, 60, 60]])]
    logits, deltas = np.float32([20, -1, 30]), np.zeros((3, 4), np.float32)

    def found(nms_on):
        return filter_proposals(logits, deltas, levels, (64, 64), 10, 10, 0.7, nms_on=nms_on)
    assert found("scores").scores[0] == found("scores").scores[1] == 1
    assert found("scores").anchor.tolist() == [0, 2, 1] and found("logits").anchor.tolist() == [2, 0, 1]
    assert found("logits").scores.tolist() == [1, 1, found("scores").scores[2]]  # they are reported as scores either way


@pytest.mark.parametrize("min_size, kept", [(1e-3, [0]), (1e-30, [0, 1]), (0.0, [0, 1, 2])])
def test_smallest_proposal(min_size, kept):
    anchors = [np.array([[5, 5, 25, 25], [5, 5, 5.0005, 25], [5, 5, 5, 30]])]
    found = filter_proposals(np.array([3.0, 2, 1]), np.zeros((3, 4)), anchors, (64, 64), 10, 10, 0.7, min_size=min_size)
    assert found.anchor.tolist() == kept


@pytest.mark.parametrize("min_size, kept", [(1e-2, [0]), (1e-30, [0, 1]), (0.0, [0, 1, 2])])
def test_smallest_detection(min_size, kept):
    rois = np.array([[5, 5, 25, 25], [5, 5, 5.0005, 25], [5, 5, 5, 30]])
    logits = np.array([[0, 3.0], [0, 2], [0, 1]])
    *_, proposal = filter_detections(logits, np.zeros((3, 8)), rois, (64, 64), 0.05, 0.5, 100, min_size=min_size)
    assert proposal.tolist() == kept


@pytest.mark.parametrize("name", ["channel_order", "resize", "rpn_nms_on", "rpn_loss_normalizer", "mask_loss", "paste"])
def test_a_choice_that_there_is_not(name):
    assert Settings().check() == Settings()
    with pytest.raises(ConfigError, match=f"{name}='other' is not one of"):
        Settings(**{name: "other"}).check()
