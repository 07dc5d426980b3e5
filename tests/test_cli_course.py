import json
import subprocess
import sys

import pytest
from course_files import write_notebook

from nprcnn.cli import course as command
from nprcnn.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "07_x.ipynb", exercises=[("soft_nms", "soft_nms", "soft_nms: passed, all 3 cases.")])
    return tmp_path


def test_the_list(folder, capsys):
    assert main(["course", "--json", "list.json"]) == 0
    printed = capsys.readouterr().out
    assert "07  A title: and more" in printed and "done" in printed and "1 of 1 exercises solved" in printed
    assert json.loads((folder / "list.json").read_text()) == [
        {"notebook": "07", "title": "A title: and more", "minutes": 75, "exercises": ["soft_nms"], "passed": ["soft_nms"]}]


def test_open_starts_jupyter_on_the_notebook(folder, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    monkeypatch.setattr(subprocess, "call", lambda arguments: called.append(arguments) or 0)
    assert main(["course", "open", "7"]) == 0
    assert called == [[sys.executable, "-m", "jupyterlab", str(folder / "notebooks" / "07_x.ipynb")]]


def test_reset(folder, capsys):
    pytest.importorskip("jupytext")
    (folder / "notebooks" / "src").mkdir()
    (folder / "notebooks" / "src" / "07_x.py").write_text("# %% [markdown]\n# # 07  A title\n\n# %%\ncheck_soft_nms(soft_nms)\n")
    assert main(["course", "reset", "07"]) == 0
    assert "yours is 07_x.mine.ipynb" in capsys.readouterr().out
    assert main(["course"]) == 0 and "0 of 1 exercises" in capsys.readouterr().out


def test_grade(folder, capsys):
    write_notebook(folder / "class" / "ada" / "07_x.ipynb", exercises=[("soft_nms", "soft_nms", "soft_nms: passed, all 3 cases.")])
    assert main(["course", "grade", "class", "--csv", "g.csv", "--json", "g.json"]) == 0
    assert "ada" in capsys.readouterr().out
    assert (folder / "g.csv").read_text() == "student,notebook,exercise,passed\nada,07,soft_nms,1\n"
    assert json.loads((folder / "g.json").read_text()) == [{"student": "ada", "notebook": "07", "exercise": "soft_nms", "passed": True}]


@pytest.mark.parametrize("arguments, message", [
    (["open"], "needs the number of a notebook"),
    (["open", "99"], "no notebook 99; there are 07"),
    (["open", "07"], "jupyterlab is not installed"),
    (["reset", "07"], "jupytext is not installed"),
    (["grade"], "needs a folder"),
    (["grade", "absent"], "holds no folders"),
    (["grade", "empty"], "no notebook of the course"),
    (["grade", "empty", "--run"], "nbclient is not installed"),
    (["list", "07"], "nothing follows list"),
    (["--notebooks", "empty"], "holds no notebooks"),
    (["--json", "absent/x.json"], "there is no folder absent"),
])
def test_mistakes_are_one_sentence(folder, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    (folder / "empty" / "student").mkdir(parents=True)
    assert main(["course", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
