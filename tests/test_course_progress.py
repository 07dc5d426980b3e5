"""What `nprcnn course` reads off the notebooks."""

from pathlib import Path

import pytest
from course_files import write_notebook

from nprcnn.course import progress
from nprcnn.course.grading import check_modules
from nprcnn.errors import ConfigError, DataError

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def test_a_notebook_tells_what_is_solved(tmp_path):
    path = write_notebook(tmp_path / "07_x.ipynb", exercises=[
        ("soft_nms", "soft_nms", "soft_nms: passed, all 3 cases."),
        ("place", "place, 3", "place: not right yet (case: a).\n  it passed: no"),
        ("looked_at", "looked_at", "looked_at: not solved yet. Fill in the function, then run this cell again.")])
    book = progress.read_notebook(path)
    assert (book.number, book.title, book.about, book.minutes) == ("07", "A title: and more", "say what it is", 75)
    assert book.checks == {"soft_nms": "soft_nms", "place": "place, 3", "looked_at": "looked_at"} and book.passed == {"soft_nms"}
    # what passed in a cell of one's own, and is no exercise, does not count
    assert progress.read_notebook(write_notebook(path, exercises=[("place", "place", "other: passed, all 3 cases.")])).passed == set()


def test_other_checks_are_no_exercises(tmp_path):
    """A line check_...(...) in a cell need not be an exercise: the gradient checker, a check of one's own."""
    path = write_notebook(tmp_path / "07_x.ipynb", exercises=[("gradients", "f, g, (x,)", ""), ("mine", "x", "mine: passed, all 3 cases."),
                                                              ("soft_nms", "soft_nms", "")])
    book = progress.read_notebook(path)
    assert list(book.checks) == ["soft_nms"] and book.passed == set()


def test_every_exercise_is_asked_in_one_notebook():
    asked = [name for book in progress.course(NOTEBOOKS) for name in book.checks]
    assert sorted(asked) == sorted(set(asked)) and set(asked) <= progress.exercises() == set(check_modules())


def test_the_shipped_notebooks_have_what_the_list_shows():
    books = progress.course(NOTEBOOKS)
    assert [book.number for book in books] == [path.name[:2] for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]
    for book in books:
        assert book.title and book.about and book.minutes and len(book.checks) >= 2, book.path
        assert book.passed == set(), book.path                      # stubs are stored, not solutions
    text = progress.overview(books)
    assert "0 of " in text and all(book.number in text for book in books) and max(map(len, text.splitlines())) <= 100


def test_done_and_not_done_in_the_list(tmp_path):
    books = []
    for k, output in enumerate(["", "place: passed, all 1 cases."]):
        books.append(progress.read_notebook(write_notebook(tmp_path / f"0{k}_x.ipynb", f"0{k}", [("place", "place", output)], "")))
    lines = progress.overview(books).splitlines()
    assert lines[0].endswith("0 of 1") and lines[2].endswith("done") and lines[-1].startswith("1 of 2 exercises solved")


def test_where_the_notebooks_are(tmp_path, monkeypatch):
    assert progress.notebooks_folder() == NOTEBOOKS                 # beside the package
    monkeypatch.chdir(tmp_path)
    assert progress.notebooks_folder() == NOTEBOOKS
    write_notebook(tmp_path / "notebooks" / "00_x.ipynb")
    assert progress.notebooks_folder() == tmp_path / "notebooks"    # a copy of one's own comes first
    with pytest.raises(ConfigError, match="holds no notebooks of the course"):
        progress.notebooks_folder(tmp_path)


def test_an_installed_wheel_has_no_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "__file__", str(tmp_path / "site-packages" / "nprcnn" / "course" / "progress.py"))
    with pytest.raises(ConfigError, match="come with nprcnn's repository"):
        progress.notebooks_folder()


def test_finding_one(tmp_path):
    write_notebook(tmp_path / "07_x.ipynb")
    assert progress.find(tmp_path, "7") == progress.find(tmp_path, "07")
    with pytest.raises(ConfigError, match="no notebook 8; there are 07"):
        progress.find(tmp_path, "8")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": [{}]}', '{"cells": 3}',
                                     '{"cells": [{"cell_type": "code", "source": 3, "outputs": []}]}'])
def test_what_is_no_notebook(tmp_path, content):
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(DataError, match="is not a notebook that can be read"):
        progress.read_notebook(tmp_path / "x.ipynb")


def test_starting_over_keeps_the_old_one(tmp_path):
    pytest.importorskip("jupytext")
    path = write_notebook(tmp_path / "07_x.ipynb", exercises=[("place", "place", "place: passed, all 1 cases.")])
    source = tmp_path / "07_x.py"
    source.write_text("# %% [markdown]\n# # 07  A title\n\n# %%\ncheck_place(place)\n")
    before = path.read_text()
    for name in ("07_x.mine.ipynb", "07_x.mine-2.ipynb"):
        assert progress.start_over(progress.read_notebook(path), source).name == name
        assert progress.read_notebook(path).passed == set() and list(progress.read_notebook(path).checks) == ["place"]
    assert (tmp_path / "07_x.mine.ipynb").read_text() == before
    assert [book.path.name for book in progress.course(tmp_path)] == ["07_x.ipynb"]
    with pytest.raises(ConfigError, match="text form"):
        progress.start_over(progress.read_notebook(path), tmp_path / "absent.py")
