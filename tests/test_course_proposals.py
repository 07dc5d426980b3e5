"""The exercises of notebook 07: proposals and NMS."""
import math

import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import proposals
from nprcnn.ops.boxes import box_iou

NUMBER = "07"


def soften(boxes, scores, sigma, factor=lambda iou, sigma: math.exp(-iou ** 2 / sigma), all_others=False, resort=True):
    """One number at a time, unlike the solution."""
    iou, new, left = box_iou(boxes, boxes), list(scores), list(range(len(scores)))
    while left:
        best = max(left, key=lambda i: new[i] if resort else scores[i])
        left.remove(best)
        for i in range(len(new)):
            if i != best and (all_others or i in left):
                new[i] *= factor(iou[best, i], sigma)
    return np.array(new)


def places(index, shapes, wide=lambda a, h, w: w, count=lambda a, h, w: a, at_start=0, swap=False, outer=False):
    found = []
    for i in index:
        level = 0
        while i >= np.prod(shapes[level]) + at_start:
            i -= np.prod(shapes[level])
            level += 1
        a, h, w = shapes[level]
        cell, anchor = (i % (h * w), i // (h * w)) if outer else (i // count(a, h, w), i % count(a, h, w))
        row, column = divmod(cell, wide(a, h, w))
        found.append((level + 2, column, row, anchor) if swap else (level + 2, row, column, anchor))
    return tuple(np.array(found).T)


def iou_slopes(dy, cache, union=1, own=1, chosen=True, meet=True, minus=-1, turned=False):
    """One pair and one corner at a time, unlike the solution."""
    a, b, _, inter, union_area = cache
    out = np.zeros_like(a)
    for n in range(len(a)):
        sides = [min(a[n, k + 2], b[n, k + 2]) - max(a[n, k], b[n, k]) for k in (0, 1)]
        by_inter = 1 / union_area[n] + union * inter[n] / union_area[n] ** 2
        by_area = -own * inter[n] / union_area[n] ** 2
        for k in (0, 1):
            step = by_inter * max(sides[1 - k], 0) * (sides[k] > 0 or not meet)
            height = a[n, 3 - k] - a[n, 1 - k]
            out[n, k] = minus * step * ((a[n, k] > b[n, k]) != turned or not chosen) - by_area * height
            out[n, k + 2] = step * ((a[n, k + 2] < b[n, k + 2]) != turned or not chosen) + by_area * height
    return out * np.reshape(dy, (-1, 1))


WRONG = [
    ("soft_nms", lambda b, s, g: soften(b, s, g, resort=False), "the order of the first scores"),
    ("soft_nms", lambda b, s, g: soften(b, s, g, all_others=True), "Their score is final"),
    ("soft_nms", lambda b, s, g: soften(b, s, g, lambda iou, g: 1 - iou), "the linear form"),
    ("soft_nms", lambda b, s, g: soften(b, s, g, lambda iou, g: math.exp(-iou / g)), "not squared"),
    ("soft_nms", lambda b, s, g: soften(b, s, g, lambda iou, g: float(iou <= 0.5)), "neighbours are dropped"),
    ("soft_nms", lambda b, s, g: np.sort(soften(b, s, g))[::-1], "in the order of the input"),
    ("anchor_place", lambda i, s: places(i, s, wide=lambda a, h, w: h), "divided by the height"),
    ("anchor_place", lambda i, s: places(i, s, wide=lambda *_: s[0][2]), "its own width"),
    ("anchor_place", lambda i, s: places(i, s, swap=True), "row and column are exchanged"),
    ("anchor_place", lambda i, s: places(i, s, outer=True), "all cells of anchor 0 first"),
    ("anchor_place", lambda i, s: places(i, s, count=lambda *_: 3), "A is not always 3"),
    ("anchor_place", lambda i, s: (places(i, s)[0] - 2, *places(i, s)[1:]), "counted from 0"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, union=0, own=0), "taken as a constant"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, union=0), "makes the union smaller"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, own=0), "a's own area is missing"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, chosen=False), "the one that was chosen"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, turned=True), "turned round"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, union=-1, own=-1), "needs a minus"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, meet=False), "do not meet get a gradient"),
    ("iou_backward", lambda dy, c: iou_slopes(dy, c, minus=1), "comes to low with a minus"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(proposals)


def test_solutions_pass():
    assert_solutions_pass(proposals, NUMBER)


@pytest.mark.parametrize("exercise, right", [("soft_nms", soften), ("anchor_place", places),
                                             ("iou_backward", iou_slopes)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    assert getattr(proposals, f"check_{exercise}")(right).passed


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(proposals, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(proposals, WRONG)
