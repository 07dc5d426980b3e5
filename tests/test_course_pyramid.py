"""The exercises of notebook 04: the feature pyramid."""
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved,
                       assert_three_mistakes_each, solutions_of)

from nprcnn.course import pyramid
from nprcnn.gradcheck import check_gradients
from nprcnn.ops.resize import resize_nearest, resize_nearest_grad

NUMBER = "04"


def shapes(height, width, up=31, last=1):
    height, width = ((size + up) // 32 * 32 for size in (height, width))
    return [(height // s, width // s) for s in (4, 8, 16, 32)] + [((height // 32 + last) // 2, (width // 32 + last) // 2)]


def scatter(dy, x_shape, add=True, step=None):
    dx = np.zeros(x_shape)
    rows, columns = (np.minimum(np.arange(n) // step, size - 1) if step else np.arange(n) * size // n
                     for n, size in zip(dy.shape[2:], x_shape[2:]))
    place = slice(None), slice(None), rows[:, None], columns
    if add:
        np.add.at(dx, place, dy)
    else:
        dx[place] += dy
    return dx


def average(dy, x_shape):
    dx, count = np.zeros(x_shape), np.zeros(x_shape)
    for i, j in np.ndindex(dy.shape[2:]):
        place = slice(None), slice(None), i * x_shape[2] // dy.shape[2], j * x_shape[3] // dy.shape[3]
        dx[place] += dy[:, :, i, j]
        count[place] += 1
    return dx / count


def two_by_two(dy, x_shape):
    n, c, h, w = x_shape
    return dy.reshape(n, c, h, 2, w, 2).sum(axis=(3, 5))


def top_down(dy, shapes, complete=True, four=True, down=resize_nearest_grad):
    d3, d4, d5 = dy
    total = d4 + down(d3, shapes[1])
    return d3, total if four else d4, d5 + down(total if complete else d4, shapes[2])


WRONG = [
    ("pyramid_shapes", lambda h, w: shapes(h, w, up=0), "cut down to a multiple of 32"),
    ("pyramid_shapes", lambda h, w: shapes(h, w, last=0), "P6 is rounded down"),
    ("pyramid_shapes", lambda h, w: [s[::-1] for s in shapes(h, w)], "Rows come first"),
    ("pyramid_shapes", lambda h, w: shapes(h, w, up=32), "gets no padding"),
    ("pyramid_shapes", lambda h, w: [(h // s, w // s) for s in (4, 8, 16, 32)] + [((h // 32 + 1) // 2, (w // 32 + 1) // 2)],
     "the padding is missing"),
    ("fast_nearest_backward", lambda dy, s: scatter(dy, s, add=False), "an index that repeats"),
    ("fast_nearest_backward", average, "the mean over the copies"),
    ("fast_nearest_backward", lambda dy, s: resize_nearest(dy, s[2:]), "picks one copy"),
    ("fast_nearest_backward", lambda dy, s: scatter(dy, s, step=2), "divides the index by 2"),
    ("top_down_backward", lambda dy, s: top_down(dy, s, complete=False), "the bug is still there"),
    ("top_down_backward", lambda dy, s: top_down(dy, s, four=False), "dl4 lacks what comes back"),
    ("top_down_backward", lambda dy, s: dy, "dl5 lacks what comes back"),
    ("top_down_backward", lambda dy, s: top_down(dy, s, down=lambda d, shape: resize_nearest(d, shape[2:])), "picking cells"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(pyramid)


def test_solutions_pass():
    assert_solutions_pass(pyramid, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(pyramid, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(pyramid, WRONG)


def test_a_reshape_into_blocks_of_two_is_told_where_it_fails():
    text = pyramid.check_fast_nearest_backward(two_by_two).text
    assert "case: (4, 3) to (7, 5)" in text and "reshape" in text       # it passed the case with a factor of 2


def test_the_planted_bug_is_seen_by_check_gradients():
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s) for s in ((1, 2, 7, 6), (1, 2, 4, 3), (1, 2, 2, 2))]
    with pytest.raises(AssertionError) as caught:
        check_gradients(solutions_of(NUMBER)["top_down_forward"], lambda dy, s: top_down(dy, s, complete=False), inputs)
    assert [bool(row.problem) for row in caught.value.rows] == [False, False, True]
