"""The exercises of notebook 09: the box head."""
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each,
                       solutions_of)

from nprcnn.course import box_head
from nprcnn.gradcheck import check_gradients

NUMBER = "09"


def pick(rois, deltas, labels, weights, use=lambda d, w: d / w, first=lambda k: 4 * k, step=1, exp=np.exp, half=0.5):
    """In loops, unlike the solution."""
    out = []
    for roi, row, k in zip(rois, deltas, labels):
        d = [use(row[first(k) + c * (step if step == 1 else len(row) // 4)], weights[c]) for c in range(4)]
        w, h = roi[2] - roi[0], roi[3] - roi[1]
        x, y = roi[0] + half * w + d[0] * w, roi[1] + half * h + d[1] * h
        w, h = w * exp(d[2]), h * exp(d[3])
        out.append([x - half * w, y - half * h, x + (1 - half) * w, y + (1 - half) * h])
    return np.array(out)


def losses(dy, cache, hot=1, by=len, box_by=len, slices=lambda u, k: k == u, limit=1.0, scale=True):
    dclass, dbox = dy if scale else (1, 1)
    z, d, labels, wanted, beta = cache
    dz, dd = np.zeros_like(z), np.zeros_like(d)
    for r, u in enumerate(labels):
        p = np.exp(z[r]) / np.exp(z[r]).sum()
        for k in range(z.shape[1]):
            dz[r, k] = dclass * (p[k] - hot * (k == u)) / by(labels)
            for c in range(4):
                if u > 0 and slices(u, k):
                    slope = (d[r, 4 * u + c] - wanted[r, c]) / beta
                    dd[r, 4 * k + c] = dbox * min(max(slope, -limit), limit) / box_by(labels)
    return dz, dd


def head(dy, cache, gate=lambda h6, h7: h6 > 0, logits=True, deltas=True, second=True):
    dz, dd = dy
    x, w6, h6, w7, h7, wc, wb = cache
    dh7 = (dz.dot(wc) if logits else 0) + (dd.dot(wb) if deltas else 0)
    da7 = np.where(h7 > 0, dh7, 0) if second else dh7
    da6 = np.where(gate(h6, h7), da7.dot(w7), 0)
    return da6.dot(w6), da6.T.dot(x), da7.T.dot(h6), dz.T.dot(h7), dd.T.dot(h7)


WRONG = [
    ("pick_boxes", lambda *a: pick(*a, use=lambda d, w: d), "weights are not used"),
    ("pick_boxes", lambda *a: pick(*a, use=lambda d, w: d * w), "to decode, divide"),
    ("pick_boxes", lambda *a: pick(*a, first=lambda k: k, step=2), "4 k to 4 k + 3"),
    ("pick_boxes", lambda *a: pick(*a, first=lambda k: 4 * k - 4), "class before"),
    ("pick_boxes", lambda *a: pick(*a, exp=lambda x: 1 + x), "are logarithms"),
    ("pick_boxes", lambda *a: pick(*a, half=0), "corner is moved"),
    ("sample_losses_backward", lambda dy, c: losses(dy, c, hot=0), "that is p alone"),
    ("sample_losses_backward", lambda dy, c: losses(dy, c, by=lambda l: 1, box_by=lambda l: 1), "divides by R"),
    ("sample_losses_backward", lambda dy, c: losses(dy, c, box_by=lambda l: max((l > 0).sum(), 1)),
     "not of the positives"),
    ("sample_losses_backward", lambda dy, c: losses(dy, c, slices=lambda u, k: True), "all classes' deltas"),
    ("sample_losses_backward", lambda dy, c: losses(dy, c, slices=lambda u, k: k == u - 1), "class before"),
    ("sample_losses_backward", lambda dy, c: losses(dy, c, limit=np.inf), "ends at 1 and -1"),
    ("sample_losses_backward", lambda dy, c: losses(dy, c, scale=False), "dclass and dbox are missing"),
    ("small_head_backward", lambda dy, c: head(dy, c, gate=lambda h6, h7: h7 > 0), "bug is still there"),
    ("small_head_backward", lambda dy, c: head(dy, c, gate=lambda h6, h7: True), "fc6's ReLU has no gate"),
    ("small_head_backward", lambda dy, c: head(dy, c, second=False), "fc7's ReLU has no gate"),
    ("small_head_backward", lambda dy, c: head(dy, c, deltas=False), "path through the deltas is missing"),
    ("small_head_backward", lambda dy, c: head(dy, c, logits=False), "path through the logits is missing"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(box_head)


def test_solutions_pass():
    assert_solutions_pass(box_head, NUMBER)


@pytest.mark.parametrize("exercise, right", [("pick_boxes", pick), ("sample_losses_backward", losses),
                                             ("small_head_backward", head)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    assert getattr(box_head, f"check_{exercise}")(right).passed


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(box_head, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(box_head, WRONG)


def test_the_planted_bug_is_seen_by_check_gradients():
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(s) for s in ((6, 9), (5, 9), (5, 5), (3, 5), (12, 5))]
    with pytest.raises(AssertionError) as caught:
        check_gradients(solutions_of(NUMBER)["small_head_forward"],
                        lambda dy, c: head(dy, c, gate=lambda h6, h7: h7 > 0), inputs)
    assert [bool(row.problem) for row in caught.value.rows] == [True, True, False, False, False]
