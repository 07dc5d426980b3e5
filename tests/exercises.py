"""What the tests of every exercise ask: stubs are not solved, solutions pass, wrong answers get what explains them.

A topic's test file lists its exercises and, for each, typical wrong answers with what the check must say to them:

    EXERCISES = exercises_of(overview)
    SOLUTIONS = solutions_of("00")
    WRONG = [("roi_levels", function, "P2 to P5 only"), ...]
"""
import functools
import runpy
from pathlib import Path

import matplotlib

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "src" / "solutions"


def not_written(*args):
    raise NotImplementedError


STUBS = (lambda *args: None, lambda *args: ..., not_written, lambda *args: (None, None, None))


@functools.cache
def solutions_of(number):
    """What the solutions of notebook `number` ("03") define; running them also runs the checks they contain."""
    matplotlib.use("agg")
    (path,) = SOLUTIONS.glob(f"{number}_*.py")
    return runpy.run_path(str(path))


def exercises_of(topic):
    """The names X of all check_X that a module of nprcnn.course defines itself."""
    return sorted(name.removeprefix("check_") for name, value in vars(topic).items()
                  if name.startswith("check_") and getattr(value, "__module__", "") == topic.__name__)


def check(topic, exercise, function):
    return getattr(topic, f"check_{exercise}")(function)


def assert_stubs_are_not_solved(topic):
    for exercise in exercises_of(topic):
        for stub in STUBS:
            result = check(topic, exercise, stub)
            assert not result.passed and not result and result.exercise == exercise
            assert repr(result) == result.text and "not solved yet" in result.text, result.text


def assert_solutions_pass(topic, number):
    for exercise in exercises_of(topic):
        result = check(topic, exercise, solutions_of(number)[exercise])
        assert result.passed and result and "passed" in result.text, result.text


def assert_explained(topic, exercise, wrong, expected):
    result = check(topic, exercise, wrong)
    assert not result.passed
    assert "Why, perhaps:" in result.text and expected in result.text, result.text


def assert_three_mistakes_each(topic, wrong_answers):
    """`wrong_answers`: a list of (exercise, function, expected text)."""
    for exercise in exercises_of(topic):
        texts = {check(topic, exercise, wrong).text for name, wrong, _ in wrong_answers if name == exercise}
        assert len(texts) >= 3, f"{exercise}: {len(texts)} different messages"
