"""Grading a class from the notebooks that were handed in."""

import os

import pytest
from course_files import write_notebook

from nprcnn.course import grading
from nprcnn.course.progress import read_notebook
from nprcnn.errors import ConfigError

RIGHT = """import numpy as np
def area_ap(recall, precision):
    return 1
def roi_levels(boxes, canonical=224):
    side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return np.clip(np.floor(4 + np.log2(side / canonical) + 1e-6), 2, 5).astype(int)
"""


@pytest.fixture
def course(tmp_path):
    """The course has notebook 00 with two exercises, and 07 with one."""
    books = [write_notebook(tmp_path / "course" / "00_x.ipynb", "00", [("roi_levels", "roi_levels", ""), ("deltas_to", "deltas_to", "")]),
             write_notebook(tmp_path / "course" / "07_y.ipynb", "07", [("soft_nms", "soft_nms", "")])]
    return [read_notebook(path) for path in books]


def test_stored_outputs_count(tmp_path, course):
    hand_in = tmp_path / "class"
    write_notebook(hand_in / "ada" / "00_x.ipynb", "00", [
        ("roi_levels", "roi_levels", "roi_levels: passed, all 2 cases."), ("deltas_to", "deltas_to", "deltas_to: not")])
    write_notebook(hand_in / "ada" / "deep" / "07_y.ipynb", "07", [("soft_nms", "soft_nms", "soft_nms: passed, all 3 cases.")])
    write_notebook(hand_in / "bob" / "00_mine.ipynb", "00")
    (hand_in / "bob" / "07_y.ipynb").write_text("no notebook")
    write_notebook(hand_in / "bob" / "solutions" / "07_y.ipynb", "07", [("soft_nms", "soft_nms", "soft_nms: passed, all 3 cases.")])
    write_notebook(hand_in / "bob" / "99_z.ipynb", "99")
    said = []
    rows = grading.grade(hand_in, course, say=said.append)
    assert rows == [("ada", "00", "roi_levels", True), ("ada", "00", "deltas_to", False), ("ada", "07", "soft_nms", True),
                    ("bob", "00", "roi_levels", False), ("bob", "00", "deltas_to", False), ("bob", "07", "soft_nms", False)]
    assert any("07_y.ipynb is not a notebook" in text for text in said) and any("no notebook 99" in text for text in said)
    table = grading.table(rows).splitlines()
    assert table[1].split() == ["ada", "1/2", "1/1", "2"] and table[2].split() == ["bob", "0/2", "0/1", "0"]
    assert grading.as_csv(rows).splitlines()[:2] == ["student,notebook,exercise,passed", "ada,00,roi_levels,1"]


def test_of_two_copies_the_later_one_counts(tmp_path, course):
    old = write_notebook(tmp_path / "class" / "ada" / "07_y.ipynb", "07", [("soft_nms", "soft_nms", "soft_nms: passed")])
    new = write_notebook(tmp_path / "class" / "ada" / "again" / "07_y.ipynb", "07", [("soft_nms", "soft_nms", "soft_nms: not")])
    os.utime(old, (1, 1))
    assert grading.grade(tmp_path / "class", course) == [("ada", "07", "soft_nms", False)]
    os.utime(new, (0, 0))
    assert grading.grade(tmp_path / "class", course) == [("ada", "07", "soft_nms", True)]


def test_running_again_sees_through_edited_outputs_and_edited_checks(tmp_path, course):
    pytest.importorskip("nbclient")
    cheat = RIGHT + "def check_deltas_to(f):\n    return 'deltas_to: passed, all 3 cases.'\ndef deltas_to(*a):\n    return 0\n1 / 0\n"
    write_notebook(tmp_path / "class" / "ada" / "00_x.ipynb", "00", code=cheat, exercises=[
        ("roi_levels", "roi_levels", ""), ("deltas_to", "deltas_to", "deltas_to: passed, all 3 cases.")])
    assert [row[3] for row in grading.grade(tmp_path / "class", course)] == [False, True]
    assert [row[3] for row in grading.grade(tmp_path / "class", course, run=True)] == [True, False]


def test_every_exercise_of_the_course_has_a_check():
    found = grading.check_modules()
    assert {"roi_levels", "soft_nms", "pyramid_backward"} <= set(found) and found["soft_nms"] == "nprcnn.course.proposals"


def test_a_folder_without_students(tmp_path, course):
    for folder in (tmp_path / "absent", tmp_path / "course"):
        with pytest.raises(ConfigError, match="holds no folders"):
            grading.grade(folder, course)
