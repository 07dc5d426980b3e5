"""The exercises of notebook 12: training, and what goes wrong."""
import math

import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import training

NUMBER = "12"


def step(w, v, g, lr, momentum, decay, keep=1.0, sign=-1.0, use_new=True, ahead=False, direct=False, inside=False):
    """One number at a time, unlike the solution."""
    new_w, new_v = np.empty_like(w), np.empty_like(v)
    for i in np.ndindex(w.shape):
        slope = g[i] if direct else g[i] + decay * w[i]
        new_v[i] = momentum * v[i] + keep * (lr if inside else 1) * slope
        by = slope + momentum * new_v[i] if ahead else new_v[i] if use_new else v[i]
        new_w[i] = w[i] + sign * (1 if inside else lr) * by - (lr * decay * w[i] if direct else 0)
    return new_w, new_v


def rates(steps, base, total, warmup, drops, early=1, late=0, once=False, relative=True, warm=True):
    out = []
    for s in steps.tolist():
        rate = base
        for drop in drops:
            if s >= drop * (total if relative else 1) + late and not (once and rate < base):
                rate = rate / 10
        out.append(rate * min(1, (s + early) / warmup) if warmup and warm else rate)
    return np.array(out)


def clip(a, b, most, norm=math.hypot, up=False):
    size = norm(*(math.sqrt(sum(x * x for x in g.ravel().tolist())) for g in (a, b)))
    if size > most or (up and size):
        return a / size * most, b / size * most
    return a.copy(), b.copy()


WRONG = [
    ("sgd_step", lambda w, v, g, lr, m, d: step(w, v, g, lr, m, 0), "the weight decay is missing"),
    ("sgd_step", lambda *a: step(*a, use_new=False), "the old velocity"),
    ("sgd_step", lambda *a: step(*a, sign=1.0), "it climbs"),
    ("sgd_step", lambda *a: step(*a, ahead=True), "Nesterov"),
    ("sgd_step", lambda *a: step(*a, direct=True), "the velocity lacks"),
    ("sgd_step", lambda *a: step(*a, inside=True), "inside the velocity"),
    ("sgd_step", lambda w, v, g, lr, m, d: step(w, v, g, lr, m, d, keep=1 - m), "weighted with 1 - momentum"),
    ("learning_rates", lambda *a: rates(*a, early=0), "the rate 0"),
    ("learning_rates", lambda *a: rates(*a, warm=False), "no warm-up"),
    ("learning_rates", lambda *a: rates(*a, late=0.5), "a step late"),
    ("learning_rates", lambda *a: rates(*a, once=True), "drops only once"),
    ("learning_rates", lambda *a: rates(*a, relative=False), "parts of the whole"),
    ("clip_together", lambda a, b, most: (clip(a, 0 * a, most)[0], clip(b, 0 * b, most)[0]), "clipped alone"),
    ("clip_together", lambda a, b, most: tuple(np.minimum(np.maximum(g, -most), most) for g in (a, b)), "one by one"),
    ("clip_together", lambda *a: clip(*a, up=True), "made larger"),
    ("clip_together", lambda *a: clip(*a, norm=lambda p, q: p * p + q * q), "lacks the square root"),
    ("clip_together", lambda *a: clip(*a, norm=lambda p, q: p + q), "the two norms are added"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(training)


def test_solutions_pass():
    assert_solutions_pass(training, NUMBER)


@pytest.mark.parametrize("exercise, right", [("sgd_step", step), ("learning_rates", rates), ("clip_together", clip)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    result = getattr(training, f"check_{exercise}")(right)
    assert result.passed, result.text


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(training, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(training, WRONG)
