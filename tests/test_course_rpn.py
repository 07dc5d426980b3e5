"""The exercises of notebook 06: the RPN."""
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each,
                       solutions_of)

from nprcnn.course import rpn
from nprcnn.gradcheck import check_gradients
from nprcnn.ops.activation import relu_backward, sigmoid
from nprcnn.ops.conv import conv2d_backward

NUMBER = "06"


def match(iou, high, low, to=None, choose=True, ties=True, middle=-2, strict=False):
    """In loops over the anchors, unlike the solution."""
    answer = []
    for t in range(iou.shape[1]):
        own = max(range(len(iou)), key=lambda g: iou[g, t])
        best = iou[own, t]
        result = own if (best > high if strict else best >= high) else -1 if best < low else middle
        choosers = [g for g in range(len(iou))
                    if (iou[g, t] == iou[g].max() if ties else t == np.argmax(iou[g]))]
        if choosers and choose:
            result = max(choosers, key=lambda g: iou[g, t]) if to is None else to(own, choosers)
        answer.append(result)
    return np.array(answer)


def focal(dy, cache, product=True, factor=True, second=1, mirror=True, count=lambda t: max(t.sum(), 1)):
    z, t, gamma = cache
    p = sigmoid(np.where(t == 1, z, -z))
    log_p = np.where(t == 1, -np.logaddexp(0, -z), -np.logaddexp(0, z))
    dz = second * (1 - p) ** gamma * (p - 1) + (gamma * (p if factor else 1) * (1 - p) ** gamma * log_p if product else 0)
    return dy * np.where(t == 1, dz, -dz if mirror else dz) / count(t)


def level(dy, cache, axes=(0, 3, 4, 1, 2), both=True, gate=True, flat=False):
    dlogits, ddeltas = dy
    conv_cache, relu_cache, logits_cache, deltas_cache, (n, a, h, w) = cache
    dz = dlogits.reshape(n, a, h, w) if flat else dlogits.reshape(n, h, w, a).transpose(0, 3, 1, 2).copy()
    dd = ddeltas.reshape(n, h, w, a, 4).transpose(axes).reshape(n, 4 * a, h, w)
    dh, dwo, _ = conv2d_backward(dz, logits_cache)
    dh_d, dwd, _ = conv2d_backward(dd, deltas_cache)
    dh = dh + dh_d if both else dh
    dx, dw, _ = conv2d_backward(relu_backward(dh, relu_cache) if gate else dh, conv_cache)
    return dx, dw, dwo, dwd


WRONG = [
    ("match_fair", lambda *a: match(*a, to=lambda own, choosers: own), "its own best target"),
    ("match_fair", lambda *a: match(*a, choose=False), "rule (i) is missing"),
    ("match_fair", lambda *a: match(*a, ties=False), "argmax finds one"),
    ("match_fair", lambda *a: match(*a, to=lambda own, choosers: choosers[-1]), "the last of them"),
    ("match_fair", lambda *a: match(*a, middle=-1), "is IGNORED"),
    ("match_fair", lambda *a: match(*a, strict=True), "includes the threshold"),
    ("match_fair", lambda *a: match(*a) * 0 + match(*a, to=lambda own, choosers: 1), "none of the usual"),
    ("focal_backward", lambda dy, c: focal(dy, c, product=False), "product rule"),
    ("focal_backward", lambda dy, c: focal(dy, c, factor=False), "a factor p is missing"),
    ("focal_backward", lambda dy, c: focal(dy, c, second=-1), "second term has the wrong sign"),
    ("focal_backward", lambda dy, c: focal(dy, c, mirror=False), "negatives have the wrong sign"),
    ("focal_backward", lambda dy, c: focal(dy, c, count=len), "not of all anchors"),
    ("focal_backward", lambda dy, c: focal(dy, c, count=lambda t: t.sum()), "division by 0"),
    ("focal_backward", lambda dy, c: focal(1, c), "dy is missing"),
    ("focal_backward", lambda dy, c: dy * (sigmoid(c[0]) - c[1]) / max(c[1].sum(), 1), "plain cross-entropy"),
    ("focal_backward", lambda dy, c: focal(dy, (c[0], c[1], c[2])) * np.exp(c[0]) / np.exp(c[0]), "overflows"),
    ("rpn_backward", lambda dy, c: level(dy, c, axes=(0, 4, 3, 1, 2)), "bug is still there"),
    ("rpn_backward", lambda dy, c: level(dy, c, flat=True), "anchor last"),
    ("rpn_backward", lambda dy, c: level(dy, c, both=False), "path through the deltas is missing"),
    ("rpn_backward", lambda dy, c: level(dy, c, gate=False), "gate is missing"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(rpn)


def test_solutions_pass():
    assert_solutions_pass(rpn, NUMBER)


@pytest.mark.parametrize("exercise, right", [("match_fair", match), ("focal_backward", focal), ("rpn_backward", level)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    assert getattr(rpn, f"check_{exercise}")(right).passed


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(rpn, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(rpn, WRONG)


def test_the_planted_bug_is_seen_by_check_gradients():
    forward = solutions_of(NUMBER)["rpn_forward"]
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(s) for s in ((2, 4, 3, 5), (4, 4, 3, 3), (3, 4, 1, 1), (12, 4, 1, 1))]
    with pytest.raises(AssertionError) as caught:
        check_gradients(forward, lambda dy, c: level(dy, c, axes=(0, 4, 3, 1, 2)), inputs)
    assert [bool(row.problem) for row in caught.value.rows] == [True, True, False, True]
