"""The exercises of notebook 03: normalisation, pooling, residual blocks."""
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved,
                       assert_three_mistakes_each, solutions_of)

from nprcnn.course import residual
from nprcnn.gradcheck import check_gradients
from nprcnn.ops.activation import relu_backward
from nprcnn.ops.conv import conv2d_backward

NUMBER = "03"


def fold(w, b, weight, bias, mean, var, eps, axis=0):
    a = weight / np.sqrt(var + eps)
    return w * a.reshape([-1 if k == axis else 1 for k in range(4)]), bias + (b - mean) * a


def halving(dy, cache, short=True, last=True, inner=True, keep=True):
    cache1, gate1, cache2, gate2, down = cache
    ds = relu_backward(dy, gate2) if last else dy
    dh, dw2, _ = conv2d_backward(ds, cache2)
    dx, dw1, _ = conv2d_backward(relu_backward(dh, gate1) if inner else dh, cache1)
    dshortcut, dwd, _ = conv2d_backward(ds if short else dy, down)
    return dx + (dshortcut if keep else 0), dw1, dw2, dwd


def group_norm(dy, cache, inside=True, var=1, mean=1, axis=2):
    xhat, weight, s, groups = cache
    factor = weight[:, None, None]
    d = (dy * factor if inside else dy).reshape(len(dy), groups, -1)
    h = xhat.reshape(d.shape)
    dx = (s * (d - mean * d.mean(axis=axis, keepdims=True) - var * h * (d * h).mean(axis=axis, keepdims=True))).reshape(dy.shape)
    return dx if inside else dx * factor, (dy * xhat).sum(axis=(0, 2, 3)), dy.sum(axis=(0, 2, 3))


def swap(answer, position, value):
    return tuple(value if k == position else item for k, item in enumerate(answer))


WRONG = [
    ("fold_batch_norm", lambda *a: fold(*a[:6], 0), "eps is missing"),
    ("fold_batch_norm", lambda *a: fold(*a, axis=1), "along the wrong axis"),
    ("fold_batch_norm", lambda w, b, g, beta, m, v, e: (fold(w, b, g, beta, m, v, e)[0], beta - m * g / np.sqrt(v + e)),
     "bias b has gone"),
    ("fold_batch_norm", lambda w, b, g, beta, m, v, e: (fold(w, b, g, beta, m, v, e)[0], b + beta - m * g / np.sqrt(v + e)),
     "b is not scaled"),
    ("fold_batch_norm", lambda w, b, g, beta, m, v, e: fold(w, b, g, beta, m, v ** 2, 0), "none of the usual"),
    ("halving_backward", lambda dy, c: halving(dy, c, short=False), "the bug is still there"),
    ("halving_backward", lambda dy, c: halving(dy, c, last=False), "the last ReLU is missing"),
    ("halving_backward", lambda dy, c: halving(dy, c, inner=False), "ReLU between the two"),
    ("halving_backward", lambda dy, c: halving(dy, c, keep=False), "dx lacks the short cut"),
    ("group_norm_backward", lambda dy, c: group_norm(dy, c, inside=False), "in front of the bracket"),
    ("group_norm_backward", lambda dy, c: group_norm(dy, c, axis=(1, 2)), "has its own: axis=2"),
    ("group_norm_backward", lambda dy, c: group_norm(dy, c, var=0), "path through the variance"),
    ("group_norm_backward", lambda dy, c: group_norm(dy, c, var=0, mean=0), "two paths are missing"),
    ("group_norm_backward", lambda dy, c: swap(group_norm(dy, c), 1, dy.sum(axis=(0, 2, 3))), "dweight lacks xhat"),
    ("group_norm_backward", lambda dy, c: swap(group_norm(dy, c), 2, dy.sum(axis=(2, 3))), "sum over axis 0"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(residual)


def test_solutions_pass():
    assert_solutions_pass(residual, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(residual, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(residual, WRONG)


def test_the_planted_bug_is_seen_by_check_gradients():
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s) for s in ((2, 3, 7, 6), (4, 3, 3, 3), (4, 4, 3, 3), (4, 3, 1, 1))]
    with pytest.raises(AssertionError) as caught:
        check_gradients(solutions_of(NUMBER)["halving_forward"], lambda dy, c: halving(dy, c, short=False), inputs)
    assert [bool(row.problem) for row in caught.value.rows] == [True, False, False, True]
