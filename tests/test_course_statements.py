"""The quiz of notebook 20: common statements. Answers are sets and dicts here, not functions."""
import ast
import re
from pathlib import Path

import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each, check

from nprcnn.course import statements

NUMBER = "20"
PARTS = {"ResNet": "b", "feature pyramid": "c", "RPN": "a", "RoIAlign": "d", "box head": "e", "mask head": "f",
         "SVM": None, "selective search": None, "RoIPool": None}
ANSWERS = {"A": False, "B": False, "C": True, "D": False, "E": True}

WRONG = [
    ("not_region_based", {"R-CNN"}, "runs its network on each"),
    ("not_region_based", {"Fast R-CNN", "YOLO"}, "RoIPool cuts each"),
    ("not_region_based", {"Mask R-CNN"}, "from its RPN"),
    ("not_region_based", {"SSD"}, "not among the four"),
    ("components", {**PARTS, "SVM": "g"}, "a softmax does the classification"),
    ("components", {**PARTS, "selective search": "h"}, "Here the RPN proposes"),
    ("components", {**PARTS, "RoIPool": "d"}, "It rounds"),
    ("components", {**PARTS, "RPN": "h"}, "It knows no classes"),
    ("components", {**PARTS, "RoIAlign": ...}, "no answer yet to: RoIAlign"),
    ("components", {**PARTS, "ResNet": "c", "feature pyramid": "b"}, "What do fine maps lack?"),
    ("new_statements", {**ANSWERS, "A": True}, "only the last 1x1 convolution"),
    ("new_statements", {**ANSWERS, "B": True}, "P6 is for the RPN alone"),
    ("new_statements", {**ANSWERS, "C": False}, "as many as cells"),
    ("new_statements", {**ANSWERS, "D": True}, "loss_objectness"),
    ("new_statements", {**ANSWERS, "E": False}, "exp(z + 5)"),
    ("new_statements", {**ANSWERS, "E": "true"}, "without quotes"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(statements)
    for exercise, stub in (("not_region_based", ...), ("not_region_based", set()), ("components", dict.fromkeys(PARTS, ...)),
                           ("new_statements", dict.fromkeys(ANSWERS, ...)), ("new_statements", None)):
        result = check(statements, exercise, stub)
        assert not result.passed and "not solved yet" in result.text


def test_solutions_pass():
    assert_solutions_pass(statements, NUMBER)


@pytest.mark.parametrize("answer", ["YOLO", {"yolo"}, ["YOLO"]])
def test_an_answer_may_be_written_in_several_ways(answer):
    assert statements.check_not_region_based(answer).passed


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(statements, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(statements, WRONG)


def test_not_all_wrong_answers_are_given_away_at_once():
    text = statements.check_components(dict.fromkeys(PARTS, "g")).text
    assert "9 of 9 are wrong" in text and "7 more" in text and "It rounds" not in text


def test_the_notebook_lists_all_that_is_needed():
    """Its table of packages is the list that setup.py installs."""
    root = Path(__file__).parents[1]
    (listed,) = re.findall(r"^NEEDED = (\{.*?\})$", (root / "notebooks/src/20_common_statements.py").read_text(encoding="utf-8"), re.M | re.S)
    (required,) = re.findall(r"install_requires=(\[.*?\])", (root / "setup.py").read_text(encoding="utf-8"), re.S)
    assert set(ast.literal_eval(listed)) == {re.match(r"[\w-]+", one)[0] for one in ast.literal_eval(required)}
