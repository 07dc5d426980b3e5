"""The exercises of notebook 14: Winograd on the CPU."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import winograd

NUMBER = "14"


def direct(d0, d1, d2, d3, g0, g1, g2):
    return d0 * g0 + d1 * g1 + d2 * g2, d1 * g0 + d2 * g1 + d3 * g2


def four_products(d0, d1, d2, d3, g0, g1, g2, half=0.5, last=-1):
    m1, m2 = (d1 + d2) * (half * (g0 + g1 + g2)), (d2 - d1) * (half * (g0 - g1 + g2))
    return (d0 - d2) * g0 + m1 + m2, m1 - m2 + last * ((d1 - d3) * g2)


WRONG = [
    ("two_outputs", direct, "takes six"),
    ("two_outputs", lambda *a: direct(*a[:4], a[6], a[5], a[4]), "turned round"),
    ("two_outputs", lambda *a: four_products(*a, last=1), "wrong sign"),
    ("two_outputs", lambda *a: four_products(*a, half=1), "halves of G"),
    ("two_outputs", lambda *a: (four_products(*a)[0] - 2 * (a[2] - a[1]) * ((a[4] - a[5] + a[6]) / 2), four_products(*a)[1]),
     "third product"),
    ("saving", lambda h, w, m: 9 * m ** 2 / (m + 2) ** 2, "stick out"),
    ("saving", lambda h, w, m: 9 * h * w / ((m + 2) ** 2 * (h // m) * (w // m)), "round the number of tiles up"),
    ("saving", lambda h, w, m: 9 * h * w / (m ** 2 * np.ceil(h / m) * np.ceil(w / m)), "one for each input"),
    ("tiles_backward", lambda dV, BT: BT @ dV @ BT.T, "forward pass again"),
    ("tiles_backward", lambda dV, BT: np.linalg.inv(BT) @ dV @ np.linalg.inv(BT.T), "not go through the inverse"),
    ("tiles_backward", lambda dV, BT: BT.T @ dV, "only one axis"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(winograd)


def test_solutions_pass():
    assert_solutions_pass(winograd, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(winograd, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(winograd, WRONG)
