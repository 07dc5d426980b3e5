"""What the checks of the exercises say about any function, whatever the exercise; and that no exercise is untested."""
import json
from pathlib import Path

import numpy as np

from nprcnn.course import checks, progress

COURSE = Path(checks.__file__).parent


def compare(yours, reference=lambda x: x, x=np.arange(1.0, 13).reshape(3, 4)):
    return checks.compare("f", yours, reference, [("a case", (x,))], ("y",)).text


def test_it_reports_shape_error_and_first_bad_index():
    def yours(x):
        y = x.copy()
        y[1, 2] += 0.5
        y[2, 0] -= 2.0
        return y
    text = compare(yours)
    assert "(case: a case)" in text and "shape (3, 4) is right, 2 of 12 numbers are wrong, the first at [1, 2]" in text
    assert "largest error 2 at [2, 0]: yours 7, expected 9" in text
    assert "shape (4, 3), expected (3, 4)" in compare(lambda x: x.T) and "transposed" in compare(lambda x: x.T)
    assert "yours 77, expected 78" in compare(lambda x: 77, lambda x: x.sum())


def test_it_knows_general_patterns():
    assert "the sign is wrong" in compare(lambda x: -x)
    assert "0.25 times" in compare(lambda x: x / 4)
    assert "not finite" in compare(lambda x: x / 0)
    assert "only the border" in compare(lambda x: np.pad(x[1:-1, 1:-1], 1), x=np.ones((5, 6)))
    assert "never arrives" in compare(lambda x: np.where(x == 6, 0, x))
    assert "returns 2 and should return 1" in compare(lambda x: (x, x))


def test_one_number_alone_has_no_pattern_by_chance():
    assert "times" not in compare(lambda x: 77, lambda x: x.sum()) and "by hand" in compare(lambda x: 77, lambda x: x.sum())
    assert "0.5 times" in compare(lambda x: 39, lambda x: x.sum()) and "by hand" in compare(lambda x: 1, lambda x: np.array(0.0))


def test_a_list_of_numbers_is_as_good_as_an_array():
    assert "passed" in compare(lambda x: [1.0, 2.0], lambda x: np.array([1.0, 2.0]))
    assert "shape (3,), expected (2,)" in compare(lambda x: [1.0, 2.0, 3.0], lambda x: np.array([1.0, 2.0]))


def test_it_shows_exceptions_and_writes():
    def raises(x):
        return x @ x

    def writes(x):
        x *= 1.5
        return x / 1.5
    assert "It raises ValueError" in compare(raises) and "in the line   return x @ x" in compare(raises)
    assert "writes into one of its arguments" in compare(writes)


def test_a_stub_that_is_filled_in_in_part_is_told_where():
    def half_done(x):
        first = 2 * x
        second = ...
        return first + second                             # (3, 4)
    text = compare(half_done)
    assert "not solved yet" in text and text.endswith("in the line   return first + second") and "Why" not in text


def test_rounding_passes():
    assert "passed" in compare(lambda x: x * (1 + 1e-14)) and "passed" not in compare(lambda x: x * (1 + 1e-8))


def test_every_topic_has_its_test_file():
    topics = {path.stem for path in COURSE.glob("*.py")} - {"__init__", "checks", "figures"}
    tested = {path.stem.removeprefix("test_course_") for path in Path(__file__).parent.glob("test_course_*.py")}
    assert topics <= tested


def test_no_stub_of_the_notebooks_is_stored_as_solved():
    """Also where only a part is left to the student: what is left must not look like an answer."""
    notebooks = sorted((COURSE.parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    assert notebooks
    for path in notebooks:
        for exercise, output in stored_checks(path):
            assert f"{exercise}: not " in output, (path.name, exercise, output)


def stored_checks(path):
    """(exercise, stored output) of each check cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        for exercise, _ in progress.CHECK.findall(progress.text_of(cell["source"])):
            yield exercise, "".join(progress.output_text(output) for output in cell["outputs"])
