"""The exercises of notebook 01: what a backward pass is."""
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved,
                       assert_three_mistakes_each, solutions_of)

from nprcnn.course import backward
from nprcnn.gradcheck import check_gradients

NUMBER = "01"


def residual(dy, cache, skip=True, gate=lambda x, z: z > 0):
    x, w, z = cache
    dz = dy * gate(x, z)
    return (dy if skip else 0) + dz @ w, dz.T @ x, dz.sum(axis=0)


def pyramid(dy, cache, upsampling=True, p6=True):
    c5, w, index = cache
    dinner = dy[:, :, len(index):len(index) + c5.shape[2]].copy()
    dinner[:, :, ::2] += dy[:, :, len(index) + c5.shape[2]:] if p6 else 0
    dinner[:, :, index] += dy[:, :, :len(index)] if upsampling else 0        # the bug of the notebook
    return dy[:, :, :len(index)], w.T @ dinner, np.einsum("ncl,ndl->cd", dinner, c5)


def bce(dy, cache):
    z, t = cache
    return 1 / (1 + np.exp(-np.clip(z, -30, 30))) - t


WRONG = [
    ("residual_backward", lambda dy, c: residual(dy, c, skip=False), "lacks the short cut"),
    ("residual_backward", lambda dy, c: residual(dy, c, gate=lambda x, z: 1), "gate is missing"),
    ("residual_backward", lambda dy, c: residual(dy, c, gate=lambda x, z: x > 0), "gate looks at x"),
    ("residual_backward", lambda dy, c: residual(dy, c)[:2] + (dy * (c[2] > 0),), "sum over axis 0 is missing"),
    ("residual_backward", lambda dy, c: residual(dy, c)[:1] + (residual(dy, c)[1].T, residual(dy, c)[2]), "dw is transposed"),
    ("pyramid_backward", pyramid, "index that repeats"),
    ("pyramid_backward", lambda dy, c: pyramid(dy, c, upsampling=False), "path through the upsampling is missing"),
    ("pyramid_backward", lambda dy, c: (pyramid(dy, c)[0], None, None), "return NumPy arrays"),
    ("bce_backward", lambda dy, c: dy * bce(dy, c), "share of 1 / z.size"),
    ("bce_backward", lambda dy, c: bce(dy, c) / c[0].size, "dy is missing"),
    ("bce_backward", lambda dy, c: -dy * bce(dy, c) / c[0].size, "the sign"),
    ("bce_backward", lambda dy, c: dy * (np.exp(c[0]) / (1 + np.exp(c[0])) - c[1]) / c[0].size, "overflows"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(backward)


def test_solutions_pass():
    assert_solutions_pass(backward, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(backward, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(backward, WRONG)


def test_the_bug_of_exercise_2_is_seen_by_check_gradients():
    with pytest.raises(AssertionError) as caught:
        check_gradients(solutions_of(NUMBER)["pyramid_forward"], pyramid,
                        [np.random.default_rng(0).standard_normal(s) for s in ((2, 3, 6), (2, 4, 3), (3, 4))])
    assert [bool(row.problem) for row in caught.value.rows] == [False, True, True]
