"""The exercises of notebook 18: the same numbers."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import parity

NUMBER = "18"


def errors(a, b, top=lambda x, y: np.abs(x - y).max(), bottom=lambda x, y: np.abs(y).max(), dtype=float):
    pairs = [(np.asarray(x, dtype or x.dtype), np.asarray(y, dtype or y.dtype)) for x, y in zip(a, b)]
    return np.array([float(top(x, y)) / (float(bottom(x, y)) or 1.0) for x, y in pairs])


def pairs(a, b, distance, far=lambda d: d.max(axis=1), reuse=False):
    taken, result = set(), []
    for box in a:
        order = sorted(range(len(b)), key=lambda j: far(np.abs(b - box))[j])
        fitting = [j for j in order if far(np.abs(b - box))[j] <= distance and (reuse or j not in taken)]
        result.append(fitting[0] if fitting else -1)
        taken.add(result[-1])
    return np.array(result, int)


def nearest_at_all(a, b, distance):
    return pairs(a, b, np.inf)


def row_by_row(a, b, distance):
    result = np.full(len(a), -1)
    for i in range(min(len(a), len(b))):
        if np.abs(a[i] - b[i]).max() <= distance:
            result[i] = i
    return result


def first_that_fits(a, b, distance):
    taken, result = set(), []
    for box in a:
        fitting = [j for j in range(len(b)) if j not in taken and np.abs(b[j] - box).max() <= distance]
        result.append(fitting[0] if fitting else -1)
        taken.add(result[-1])
    return np.array(result, int)


def first(scores, boxes, zeros=4):
    return np.vstack([scores[-1:], scores[:-1]]), np.vstack([np.zeros((zeros, boxes.shape[1])), boxes])


WRONG = [
    ("stage_errors", lambda a, b: errors(a, b, top=lambda x, y: (x - y).max()), "the sign of the difference"),
    ("stage_errors", lambda a, b: errors(a, b, bottom=lambda x, y: y.max()), "the sign of b"),
    ("stage_errors", lambda a, b: errors(a, b, bottom=lambda x, y: np.abs(x).max()), "largest number of a"),
    ("stage_errors", lambda a, b: errors(a, b, top=lambda x, y: np.abs(x - y).mean()), "takes the mean"),
    ("stage_errors", lambda a, b: np.array([(np.abs(x.astype(float) - y) / np.abs(y)).max() for x, y in zip(a, b)]), "its own number"),
    ("stage_errors", lambda a, b: errors(a, b, lambda x, y: np.abs(x - y).mean(), lambda x, y: np.abs(y).mean()), "one mean by another"),
    ("stage_errors", lambda a, b: errors(a, b, lambda x, y: (x - y).max(), lambda x, y: y.max()), "np.abs"),
    ("stage_errors", lambda a, b: errors(a, b, dtype=None), "2 - 3 is 255"),
    ("stage_errors", lambda a, b: errors(a, b, bottom=lambda x, y: 1), "not divided by max|b|"),
    ("pair_boxes", lambda a, b, d: pairs(a, b, d, reuse=True), "taken twice"),
    ("pair_boxes", nearest_at_all, "however far away"),
    ("pair_boxes", first_that_fits, "not the nearest of them"),
    ("pair_boxes", row_by_row, "row by row"),
    ("pair_boxes", lambda a, b, d: pairs(a, b, np.nextafter(d, -1)), "<=, not <"),
    ("pair_boxes", lambda a, b, d: pairs(a, b, d, lambda v: v.sum(axis=1)), "are added"),
    ("pair_boxes", lambda a, b, d: pairs(a, b, d, lambda v: v.min(axis=1)), "one coordinate that fits"),
    ("pair_boxes", lambda a, b, d: pairs(a, b, d, lambda v: v[:, :2].max(axis=1)), "upper left corner"),
    ("background_first", lambda s, b: (np.vstack([s[1:], s[:1]]), first(s, b)[1]), "the wrong way"),
    ("background_first", lambda s, b: (s, first(s, b)[1]), "still the last row"),
    ("background_first", lambda s, b: (s[::-1], first(s, b)[1]), "turned round"),
    ("background_first", lambda s, b: (np.vstack([s[-1:], s[1:]]), first(s, b)[1]), "class 0 is lost"),
    ("background_first", lambda s, b: (first(s, b)[0], np.vstack([b, np.zeros((4, b.shape[1]))])), "behind the boxes"),
    ("background_first", lambda s, b: first(s, b, zeros=1), "four deltas"),
    ("background_first", lambda s, b: (first(s, b)[0], np.vstack([b[-4:], b[:-4]])), "as if its last four"),
    ("background_first", lambda s, b: (first(s, b)[0], b), "bbox_pred is unchanged"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(parity)


def test_solutions_pass():
    assert_solutions_pass(parity, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(parity, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(parity, WRONG)
