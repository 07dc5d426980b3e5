"""The form of every notebook: where we are, a table, the derivation, what is asserted, gradients checked, exercises with folded hints, a
summary, what to read next; and no output that a reader would stumble over."""

import functools
import re
from pathlib import Path

import pytest
from course_files import read_cells

COURSE = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(COURSE.glob("[0-9][0-9]_*.ipynb"))
# Notebooks about layers that are trained check gradients. The others: 00 looks only, 12 and 19 train, 13 measures, 16 is about NMS, 18
# compares whole gradients with torchvision's, 20 tests sentences.
WITH_GRADIENTS = {"01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "14", "15", "17"}
WITHOUT_EQUATIONS = {"20"}
THEIR_OWN = {"16", "17"}      # about our own kernels: no paper has them


@functools.cache
def cells_of(path):
    """(all cells, the words of the Markdown cells, the code)."""
    cells = read_cells(path)
    return cells, *("\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == kind) for kind in ("markdown", "code"))


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name[:2])


@every_notebook
def test_its_parts_are_there(path):
    number, (cells, words, code) = path.name[:2], cells_of(path)
    assert re.match(rf"# {number}  \S", cells[0]["source"])
    assert "**You need:**" in cells[0]["source"] or number in ("00", "01")
    assert re.search(r"About\s+\d+\s+minutes", cells[0]["source"])
    assert "## Where we are" in words
    assert any("image/png" in output.get("data", ()) for cell in cells[:6] for output in cell.get("outputs", ())), "no picture of the place"
    assert re.search(r"^\|[ :|-]+\|$", words, flags=re.M), "no table"
    assert "$$" in words or number in WITHOUT_EQUATIONS
    assert re.search(r"arXiv|\d{4}\.\d{5}", words) or number in THEIR_OWN
    assert re.search(r"^ *assert ", code, flags=re.M) or "check_gradients" in code
    assert bool(re.search("check_gradients|check_adjoint|referee", code)) or number not in WITH_GRADIENTS
    assert words.index("## Exercises") < words.index("## Summary")
    assert re.search(r"\*\*(Read next|Where to go next)\.\*\*", words[words.index("## Summary"):])


@every_notebook
def test_its_exercises_have_folded_hints_and_a_check(path):
    words, code = cells_of(path)[1:]
    exercises = re.split(r"^### Exercise \d+", words.split("## Summary")[0], flags=re.M)[1:]
    assert len(exercises) >= 3
    assert words.count("<details>") == words.count("</details>") == words.count("<summary>") == words.count("</summary>")
    for text in exercises:
        assert text.count("<details>") >= 2 or "Without a check" in text, text[:60]
    assert len(re.findall(r"^check_\w+\(", code, flags=re.M)) >= 3


@every_notebook
def test_nothing_in_its_outputs_is_in_the_way(path):
    """Executed, no errors, no warnings, no wall of text, no path of the machine that ran it."""
    for cell in cells_of(path)[0]:
        if cell["cell_type"] != "code":
            continue
        printed = ""
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            printed += output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert printed.count("\n") < 80, cell["source"][:60]
        assert max(map(len, printed.split("\n"))) < 320, cell["source"][:60]
        assert not re.search(r"/(home|root|work|Users)/", printed), cell["source"][:60]
        assert "Warning" not in printed
    assert any(cell.get("outputs") for cell in cells_of(path)[0])
