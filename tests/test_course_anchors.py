"""The exercises of notebook 05: anchors, IoU and box coding."""
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved,
                       assert_three_mistakes_each, solutions_of)

from nprcnn.course import anchors
from nprcnn.gradcheck import check_gradients

NUMBER = "05"


def make(size, ratios, rows, columns, stride, ratio=lambda r: r, round=np.round, middle=0, columns_first=False, swap=False):
    boxes = []
    cells = [(i, j) for i in range(rows) for j in range(columns)]
    if columns_first:
        cells = [(i, j) for j in range(columns) for i in range(rows)]
    for i, j in cells:
        for r in ratios:
            w, h = size / np.sqrt(ratio(r)), size * np.sqrt(ratio(r))
            x, y = ((i, j) if swap else (j, i)) + np.array([middle, middle]) / 2
            boxes.append(round(np.array([-w, -h, w, h]) / 2) + np.array([x, y, x, y]) * stride)
    return np.array(boxes)


def iou(a, b, clamp=True, product=False, twice=False, one=0):
    w = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0]) + one
    h = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1]) + one
    inter = np.maximum(w, 0) * np.maximum(h, 0) if clamp else np.maximum(w * h, 0) if product else w * h
    area_a, area_b = ((x[:, 2] - x[:, 0] + one) * (x[:, 3] - x[:, 1] + one) for x in (a, b))
    return inter / (area_a[:, None] + area_b - (0 if twice else inter))


def decode(dboxes, cache, anchor=True, limit=True, half=2):
    deltas, wa, ha, w, h = cache
    dx1, dy1, dx2, dy2 = dboxes.T
    gates = (deltas[:, 2:] < np.log(1000 / 16)) if limit else np.ones((len(deltas), 2))
    return np.stack([(dx1 + dx2) * (wa if anchor else w), (dy1 + dy2) * (ha if anchor else h),
                     (dx2 - dx1) / half * w * gates[:, 0], (dy2 - dy1) / half * h * gates[:, 1]], axis=1)


WRONG = [
    ("make_anchors", lambda *a: make(*a, ratio=lambda r: 1 / r), "flat and tall are exchanged"),
    ("make_anchors", lambda *a: make(*a, round=lambda c: c), "are not rounded"),
    ("make_anchors", lambda *a: make(*a, middle=1), "in the middle of the cells"),
    ("make_anchors", lambda *a: make(*a, columns_first=True), "columns are the outer loop"),
    ("make_anchors", lambda *a: make(*a, swap=True), "x and y of the shifts are exchanged"),
    ("iou_matrix", lambda a, b: iou(a, b, clamp=False), "boxes that do not meet"),
    ("iou_matrix", lambda a, b: iou(a, b, clamp=False, product=True), "two negative lengths"),
    ("iou_matrix", lambda a, b: iou(a, b, twice=True), "counts it twice"),
    ("iou_matrix", lambda a, b: iou(a, b, one=1), "have a + 1"),
    ("decode_backward", lambda d, c: decode(d, c, anchor=False, limit=False), "the first bug is still there"),
    ("decode_backward", lambda d, c: decode(d, c, limit=False), "the second bug is still there"),
    ("decode_backward", lambda d, c: np.hstack([decode(d, c)[:, :3], decode(d, c, limit=False)[:, 3:]]), "as well as d_w"),
    ("decode_backward", lambda d, c: decode(d, c, half=1), "twice too large"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(anchors)


def test_solutions_pass():
    assert_solutions_pass(anchors, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(anchors, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(anchors, WRONG)


def test_the_planted_bugs_are_seen_by_check_gradients():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 50, (6, 2)), rng.uniform(60, 90, (6, 2))], axis=1)
    forward = solutions_of(NUMBER)["decode_forward"]
    deltas = rng.standard_normal((6, 4))
    with pytest.raises(AssertionError):
        check_gradients(forward, lambda d, c: decode(d, c, anchor=False, limit=False), (deltas, boxes))
    check_gradients(forward, lambda d, c: decode(d, c, limit=False), (deltas, boxes))       # the second one hides
    deltas[2, 3] = 6.0
    with pytest.raises(AssertionError):
        check_gradients(forward, lambda d, c: decode(d, c, limit=False), (deltas, boxes))
