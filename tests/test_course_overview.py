"""The exercises of notebook 00: the whole picture."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import overview

NUMBER = "00"


def levels(boxes, size, round=np.floor, low=2, high=5):
    side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return np.clip(round(4 + np.log2(side / size)), low, high).astype(int)


def deltas(boxes, anchors, centre=0.5, log=np.log, relative=True):
    (wh, wh_a), (xy, xy_a) = (b[:, 2:] - b[:, :2] for b in (boxes, anchors)), (b[:, :2] for b in (boxes, anchors))
    d = xy + centre * wh - xy_a - centre * wh_a
    return np.hstack([d / wh_a if relative else d, log(wh / wh_a)])


def paint(labels, masks, order):
    y = np.zeros(masks.shape[1:], int)
    for i in order:
        y[masks[i]] = labels[i]
    return y


WRONG = [
    ("roi_levels", lambda b, s: levels(b, s, low=-9, high=99), "P2 to P5 only"),
    ("roi_levels", lambda b, s: levels(b, s, low=-9), "smaller than 2"),
    ("roi_levels", lambda b, s: levels(b, s, high=99), "larger than 5"),
    ("roi_levels", lambda b, s: levels(b, s, high=6), "P6 is for the RPN alone"),
    ("roi_levels", lambda b, s: levels(b, s, round=np.round), "The formula rounds down"),
    ("roi_levels", lambda b, s: levels(b, s) - 2, "counts from 0"),
    ("roi_levels", lambda b, s: levels(b, 112), "size has no effect"),
    ("deltas_to", lambda b, a: deltas(b, a, centre=0), "centres of the boxes"),
    ("deltas_to", lambda b, a: deltas(b, a, relative=False), "dx and dy are relative"),
    ("deltas_to", lambda b, a: deltas(b, a, log=lambda r: r), "logarithm is missing"),
    ("deltas_to", lambda b, a: deltas(a, b), "the other way round"),
    ("best_class_map", lambda l, s, m: (l[:, None, None] * m).max(axis=0, initial=0), "takes the larger label"),
    ("best_class_map", lambda l, s, m: paint(l, m, np.argsort(-s)), "worst score wins"),
    ("best_class_map", lambda l, s, m: paint(l, m, range(len(l))), "last instance of the list"),
    ("best_class_map", lambda l, s, m: paint(l, m, range(len(l))[::-1]), "first instance of the list"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(overview)


def test_solutions_pass():
    assert_solutions_pass(overview, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(overview, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(overview, WRONG)
