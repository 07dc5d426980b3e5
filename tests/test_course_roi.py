"""The exercises of notebook 08: RoIPool, RoIAlign and the half pixel."""
import math

import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each,
                       solutions_of)

from nprcnn.course import roi
from nprcnn.gradcheck import check_gradients

NUMBER = "08"


def cells(boxes, stride, first=lambda x: math.floor(x + 0.5), last=lambda x: math.floor(x + 0.5), end=1):
    """One number at a time, unlike the solution."""
    return np.array([[stride * first(x1 / stride), stride * first(y1 / stride),
                      stride * (last(x2 / stride) + end), stride * (last(y2 / stride) + end)] for x1, y1, x2, y2 in boxes])


def slopes(dy, cache, weigh=True, swap=False):
    """The slope of a line through two reads: exact, for F is linear along each axis within a cell."""
    F, ys, xs = cache

    def read(y0, x0, v, u):
        return np.array([1 - v, v]) @ F[y0:y0 + 2, x0:x0 + 2] @ np.array([1 - u, u])

    out = []
    for y, x in zip(ys, xs):
        y0, x0 = int(y), int(x)
        v, u = (x - x0, y - y0) if swap else (y - y0, x - x0)
        if not weigh:
            v = u = 0
        out.append((read(y0, x0, 1, u) - read(y0, x0, 0, u), read(y0, x0, v, 1) - read(y0, x0, v, 0)))
    return tuple(dy * np.array(out).T)


def scatter(dy, cache, exchange=False, add=True, weights=lambda v: (1 - v, v)):
    (c, h, w), ys, xs = cache
    dF = np.zeros((c, h, w))
    for (i, y), (j, x) in ((a, b) for a in enumerate(ys) for b in enumerate(xs)):
        for a, b in np.ndindex(2, 2):
            weight = weights(y - int(y))[a] * weights(x - int(x))[b]
            if exchange and a != b:
                weight = weights(y - int(y))[b] * weights(x - int(x))[a]
            place = (slice(None), min(int(y) + a, h - 1), min(int(x) + b, w - 1))
            dF[place] = weight * dy[:, i, j] + (dF[place] if add else 0)
    return dF


WRONG = [
    ("looked_at", lambda b, s: cells(b, s, end=0), "the last cell is missing"),
    ("looked_at", lambda b, s: cells(b, s, np.round, np.round), "rounded to the even number"),
    ("looked_at", lambda b, s: cells(b, s, math.floor, math.floor), "it rounds down, and so takes every cell"),
    ("looked_at", lambda b, s: cells(b, s, math.floor, math.ceil, 0), "every cell that the RoI touches"),
    ("looked_at", lambda b, s: cells(b, s) / s, "it is in cells"),
    ("looked_at", lambda b, s: b, "nothing is rounded"),
    ("point_backward", lambda dy, c: slopes(dy, c)[::-1], "the two are exchanged"),
    ("point_backward", lambda dy, c: slopes(dy, c, swap=True), "those of the other axis"),
    ("point_backward", lambda dy, c: slopes(dy, c, weigh=False), "one line of cells only"),
    ("point_backward", lambda dy, c: slopes(1, c), "dy is missing"),
    ("sample_backward", lambda dy, c: scatter(dy, c, exchange=True), "bug is still there"),
    ("sample_backward", lambda dy, c: scatter(dy, c, add=False), "overwrite one another"),
    ("sample_backward", lambda dy, c: scatter(dy, c, weights=lambda v: (1, 0)), "gets its share"),
    ("sample_backward", lambda dy, c: scatter(dy, c, weights=lambda v: (0.5, 0.5)), "a quarter each"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(roi)


def test_solutions_pass():
    assert_solutions_pass(roi, NUMBER)


@pytest.mark.parametrize("exercise, right", [("looked_at", cells), ("point_backward", slopes), ("sample_backward", scatter)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    assert getattr(roi, f"check_{exercise}")(right).passed


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(roi, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(roi, WRONG)


def test_the_planted_bug_is_seen_by_check_gradients_and_not_by_the_sum():
    forward = solutions_of(NUMBER)["sample_forward"]
    inputs = np.random.default_rng(0).standard_normal((2, 5, 6)), np.array([0.3, 1.9, 2.4]), np.array([0.25, 2.5, 4.8])
    y, cache = forward(*inputs)
    dF = scatter(np.ones_like(y), cache, exchange=True)
    assert dF.sum() == pytest.approx(y.size, rel=1e-12)
    with pytest.raises(AssertionError) as caught:
        check_gradients(forward, lambda dy, c: scatter(dy, c, exchange=True), inputs, wrt=[0])
    assert [row.problem for row in caught.value.rows] == ["wrong"]
