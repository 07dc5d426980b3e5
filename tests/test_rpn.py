import numpy as np
import pytest
from reference import seeded
from small_models import REFERENCE, fill

from nprcnn.gradcheck import check_gradients
from nprcnn.models.anchors import AnchorGenerator
from nprcnn.models.rpn import RPN, RPNHead, filter_proposals, rpn_losses, rpn_losses_backward, top_k
from nprcnn.models.targets import anchor_targets
from nprcnn.ops.boxes import clip_boxes, decode_boxes

GRIDS = [(8, 10), (4, 5), (2, 3), (1, 2), (1, 1)]
COUNT = sum(3 * h * w for h, w in GRIDS)
SIZES = [(60, 77), (64, 50)]


def small_anchors():
    return AnchorGenerator(seeded.ANCHOR_SIZES)((64, 80), GRIDS)


def outputs():
    logits, deltas = 3 * seeded.normal("rpn logits", 2, COUNT), 0.5 * seeded.normal("rpn deltas", 2, COUNT, 4)
    deltas[:, ::17, 2:] -= 40  # some boxes collapse
    return logits, deltas


def test_anchors_of_five_levels_are_torchvisions():
    anchors = AnchorGenerator()((104, 152), [(25, 38), (13, 19), (7, 10), (4, 5), (2, 3)])
    np.testing.assert_array_equal(np.concatenate(anchors), REFERENCE["anchors"])
    assert anchors[0].dtype == np.float32


# ---- proposals ----

@pytest.mark.parametrize("k", [0, 1])
def test_proposals_are_torchvisions(k):
    logits, deltas = outputs()
    boxes, scores, anchor, *_ = filter_proposals(logits[k], deltas[k], small_anchors(), SIZES[k], 60, 40, 0.7)
    np.testing.assert_allclose(boxes, REFERENCE[f"proposals.boxes.{k}"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scores, REFERENCE[f"proposals.scores.{k}"], rtol=1e-13)
    assert len(boxes) == 40
    # and each leads back to its anchor
    made = clip_boxes(decode_boxes(deltas[k][anchor], np.concatenate(small_anchors()).astype(float)[anchor]), SIZES[k])
    np.testing.assert_array_equal(made, boxes)
    np.testing.assert_array_equal(scores, 1 / (1 + np.exp(-logits[k][anchor])))


def test_nms_works_within_a_level():
    """The same box at two levels, and twice at one of them."""
    anchors = [np.float32([[0, 0, 9, 9], [0, 0, 9, 9]]), np.float32([[0, 0, 9, 9]])]
    boxes, _, anchor, *_ = filter_proposals(np.float32([1, 2, 0]), np.zeros((3, 4), np.float32), anchors, (20, 20), 10, 10, 0.7)
    assert anchor.tolist() == [1, 2] and boxes.dtype == np.float32


def test_top_n_before_nms_is_a_level_and_after_it_an_image():
    anchors = [np.float32([[i, 0, i + 0.5, 9] for i in range(start, start + 5)]) for start in (0, 5)]
    logits = np.float32([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    _, _, anchor, *_ = filter_proposals(logits, np.zeros((10, 4), np.float32), anchors, (20, 20), 2, 10, 0.7)
    assert anchor.tolist() == [0, 1, 5, 6]
    _, _, anchor, *_ = filter_proposals(logits, np.zeros((10, 4), np.float32), anchors, (20, 20), 2, 3, 0.7)
    assert anchor.tolist() == [0, 1, 5]


def test_saturated_scores_keep_the_order_of_level_then_rank():
    anchors = [np.float32([[0, 0, 5, 5], [10, 0, 15, 5]]), np.float32([[0, 10, 5, 15]])]
    logits = np.float32([40, 50, 60])  # the sigmoid of all three is 1 in float32
    _, scores, anchor, *_ = filter_proposals(logits, np.zeros((3, 4), np.float32), anchors, (20, 20), 10, 10, 0.7)
    assert scores.tolist() == [1, 1, 1] and anchor.tolist() == [1, 0, 2]


def test_too_small_boxes_go_and_none_may_be_left():
    anchors = [np.float32([[0, 0, 5, 5], [30, 0, 35, 5]])]  # the second lies outside: clipped, it has no width
    boxes, _, anchor, *_ = filter_proposals(np.float32([0, 1]), np.zeros((2, 4), np.float32), anchors, (20, 20), 10, 10, 0.7)
    assert anchor.tolist() == [0]
    boxes, scores, anchor, *_ = filter_proposals(np.float32([0, 1]), np.zeros((2, 4), np.float32), anchors, (20, 20), 10, 10, 0.7,
                                                 min_size=9)
    assert boxes.shape == (0, 4) and scores.shape == anchor.shape == (0,)


def test_the_boxes_before_nms_can_be_seen():
    logits, deltas = outputs()
    found = filter_proposals(logits[0], deltas[0], small_anchors(), SIZES[0], 60, 40, 0.7)
    assert found.before_nms.shape == (60 + 60 + 18 + 6 + 3, 4)
    best = found.scores_before_nms.argmax()
    assert found.before_nms[best].tolist() == found.boxes[0].tolist() and found.scores_before_nms[best] == found.scores[0]


def test_low_scores_can_be_left_out():
    logits, deltas = outputs()
    every = filter_proposals(logits[0], deltas[0], small_anchors(), SIZES[0], 60, 40, 0.7)
    some = filter_proposals(logits[0], deltas[0], small_anchors(), SIZES[0], 60, 40, 0.7, score_thresh=every.scores[10])
    assert some.anchor.tolist() == every.anchor[:11].tolist()


def test_nms_on_logits_knows_more_than_on_saturated_scores():
    anchors = [np.float32([[0, 0, 9, 9], [0, 0, 9, 8]])]
    logits = np.float32([50, 60])  # both sigmoids are 1, so "scores" keeps the first, which is the top-k's, too: the better logit
    for nms_on in ("scores", "logits"):
        assert filter_proposals(logits, np.zeros((2, 4), np.float32), anchors, (20, 20), 10, 10, 0.7, nms_on=nms_on).anchor.tolist() == [1]
    # over two levels the top-k does not help: level by level, then by rank
    anchors = [anchors[0][:1], anchors[0][1:]]
    order = [filter_proposals(logits, np.zeros((2, 4), np.float32), anchors, (20, 20), 10, 10, 0.7, nms_on=nms_on).anchor.tolist()
             for nms_on in ("scores", "logits")]
    assert order == [[0, 1], [1, 0]]


# ---- losses ----

def loss_inputs():
    logits, deltas = outputs()
    targets = [seeded.boxes(f"rpn targets {k}", 3, 60, 50, 9.0) for k in range(2)]
    anchors = small_anchors()
    samples = [anchor_targets(np.concatenate(anchors), t, np.random.default_rng(0), 0.7, 0.3, 100_000, 0.5) for t in targets]
    return logits, deltas.clip(-2, 2), np.concatenate(anchors), targets, *(list(x) for x in zip(*samples))


def test_losses_and_gradients_are_torchvisions():
    logits, deltas, anchors, targets, positive, negative, matched = loss_inputs()
    labels = np.full((2, COUNT), -1)
    for k in range(2):
        labels[k, positive[k]], labels[k, negative[k]] = 1, 0
    np.testing.assert_array_equal(labels, REFERENCE["rpn_loss.labels"])
    objectness, box, cache = rpn_losses(logits, deltas, anchors, targets, positive, negative, matched)
    assert objectness == pytest.approx(REFERENCE["rpn_loss"][0], rel=1.2e-7)  # rounded to float32 there
    assert box == pytest.approx(REFERENCE["rpn_loss"][1], rel=1e-12)
    dlogits, ddeltas = rpn_losses_backward(2.0, 3.0, cache)
    np.testing.assert_allclose(dlogits, REFERENCE["rpn_loss.dlogits"], rtol=1e-6, atol=1e-12)
    dot = np.sum(ddeltas * seeded.normal("rpn ddeltas", *ddeltas.shape))
    assert dot == pytest.approx(REFERENCE["rpn_loss.ddeltas.dot"][0], rel=1e-11)


def test_loss_gradients():
    logits, deltas, anchors, targets, positive, negative, matched = loss_inputs()

    def forward(logits, deltas):
        objectness, box, cache = rpn_losses(logits, deltas, anchors, targets, positive, negative, matched)
        return (objectness, box), cache
    check_gradients(forward, lambda dy, cache: rpn_losses_backward(*dy, cache), (logits, deltas))


@pytest.mark.parametrize("with_negatives", [True, False])
def test_losses_without_positives_or_without_anything(with_negatives):
    logits, deltas, anchors, *_ = loss_inputs()
    none = np.zeros(0, np.int64)
    negative = [np.arange(5), none] if with_negatives else [none, none]
    objectness, box, cache = rpn_losses(logits, deltas, anchors, [np.zeros((0, 4))] * 2, [none] * 2, negative, [none] * 2)
    assert box == 0
    expected = np.log1p(np.exp(logits[0, :5])).mean() if with_negatives else 0
    assert objectness == pytest.approx(expected, rel=1e-12)
    dlogits, ddeltas = rpn_losses_backward(1.0, 1.0, cache)
    assert not ddeltas.any() and np.flatnonzero(dlogits).tolist() == (list(range(5)) if with_negatives else [])


# ---- the head ----

class CountingHead:
    """Puts out the place of each number, as image, anchor, row, column (, coordinate), in the digits of a number."""

    def forward(self, x, train):
        n, _, h, w = x.shape
        image, anchor, y, x = np.ogrid[:n, :3, :h, :w]
        logits = image * 1000 + anchor * 100 + y * 10 + x
        deltas = (logits[:, :, None] + np.arange(4).reshape(1, 1, 4, 1, 1) / 10).reshape(n, 12, h, w)
        return logits.astype(float), deltas, None

    def backward(self, dlogits, ddeltas, cache):
        return dlogits, ddeltas


def test_outputs_are_ordered_by_level_y_x_anchor_and_the_backward_undoes_it():
    rpn = RPN(CountingHead())
    pyramid = [np.zeros((2, 1, 3, 4)), np.zeros((2, 1, 2, 2))]
    logits, deltas, cache = rpn.forward(pyramid, True)
    expected = [y * 10 + x + a * 100 for h, w in ((3, 4), (2, 2)) for y in range(h) for x in range(w) for a in range(3)]
    for image in range(2):
        assert logits[image].tolist() == [image * 1000 + e for e in expected]
        np.testing.assert_allclose(deltas[image], logits[image][:, None] + np.arange(4) / 10)
    for (dlogits, ddeltas), x in zip(rpn.backward(logits, deltas, cache), pyramid):
        same_logits, same_deltas, _ = CountingHead().forward(x, True)
        np.testing.assert_array_equal(dlogits, same_logits)
        np.testing.assert_array_equal(ddeltas, same_deltas)


def test_gradients_through_the_head_on_all_levels():
    rpn = RPN(fill(RPNHead(np.random.default_rng(0), 4, 3), "head."))
    own = rpn.parameters()
    rpn.head.conv[0][0].bias.data += np.array([20, -20, 20, 20])  # each channel on one side of its ReLU's kink

    def forward(p2, p3, *values):
        for parameter, value in zip(own, values):
            parameter.data = value
        logits, deltas, cache = rpn.forward([p2, p3], True)
        return (logits, deltas), cache

    def backward(dy, cache):
        rpn.zero_grad()
        return (*rpn.backward(*dy, cache), *(p.grad for p in own))

    inputs = seeded.normal("p2", 2, 4, 5, 3), seeded.normal("p3", 2, 4, 2, 3)
    check_gradients(forward, backward, (*inputs, *(p.data for p in own)))
    assert rpn.forward(inputs, False)[2] is None


@pytest.mark.parametrize("k", [0, 1, 7, 99, 100, 101])
def test_top_k_is_the_stable_sort(k):
    """With many equals, with both infinities, and with NaN, which comes last."""
    rng = np.random.default_rng(0)
    for nans in (0, 20, 100):
        values = rng.integers(0, 12, 100).astype(np.float32)
        values[:4] = np.inf, -np.inf, -0.0, np.inf
        values[rng.permutation(100)[:nans]] = np.nan
        np.testing.assert_array_equal(top_k(values, k), np.argsort(-values, kind="stable")[:k])
    assert top_k(np.empty(0, np.float32), k).shape == (0,)
