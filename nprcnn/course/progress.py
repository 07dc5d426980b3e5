"""Which notebooks there are, and which of their exercises are solved.

The record of what is solved is the notebook itself: a check that has passed says so in its cell's output, which Jupyter stores with the
notebook. So there is no second file that could disagree, a copy carries its state along, and a teacher grades what was handed in.
"""

import functools
import json
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError, DataError

CHECK = re.compile(r"^check_(\w+)\((.*)\)\s*;?\s*(?:#.*)?$", re.MULTILINE)
DEFINED = re.compile(r"^def check_(\w+)\(", re.MULTILINE)
PASSED = re.compile(r"^(\w+): passed", re.MULTILINE)


class Notebook(NamedTuple):
    """One notebook of the course.

    number "07"; title; about, what one will be able to; minutes for a student, None if it does not say; checks {exercise: what its check
    is called with}, in order; passed, the set of exercises whose check has passed, as last saved.
    """

    path: Path
    number: str
    title: str
    about: str
    minutes: int | None
    checks: dict
    passed: set


def notebooks_folder(given=None):
    """Where the notebooks are: `given`, else the current folder or its folder notebooks, else beside the package.

    Raises
    ------
    ConfigError
        They are nowhere: an installed wheel has the package alone.
    """
    source_tree = Path(__file__).parents[2] / "notebooks"
    for folder in [Path(given)] if given else [Path.cwd(), Path.cwd() / "notebooks", source_tree]:
        if any(folder.glob("[0-9][0-9]_*.ipynb")):
            return folder
    if given:
        raise ConfigError(f"{given} holds no notebooks of the course (files such as 00_the_whole_picture.ipynb)")
    raise ConfigError("the notebooks are not here: they come with nprcnn's repository, not with the installed "
                      "package. Get the folder notebooks from there and run this beside it, or give --notebooks FOLDER")


def course(folder):
    """The notebooks of a folder, by number, without those that start_over has put aside."""
    return [read_notebook(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if ".mine" not in path.name]


def find(folder, number):
    """The notebook with a number ("7" or "07"). ConfigError if there is none."""
    books = course(folder)
    for book in books:
        if book.number == number.zfill(2):
            return book
    raise ConfigError(f"there is no notebook {number}; there are {', '.join(book.number for book in books)}")


def read_notebook(path):
    """Read one notebook file. DataError if it is none."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        text = "\n".join(text_of(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        checks = {name: argument for cell in code for name, argument in CHECK.findall(text_of(cell["source"])) if name in exercises()}
        passed = {name for cell in code for output in cell["outputs"] for name in PASSED.findall(output_text(output))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a notebook that can be read ({type(error).__name__}: {error})") from error
    heading = re.search(r"^# (\d\d)\s+(.*)$", text, re.MULTILINE)
    number, title = heading.groups() if heading else (Path(path).name[:2], Path(path).stem)
    text = " ".join(text.split())
    about = re.search(r"\*\*You will be able to:\*\* (.*?)\.(?: |$)", text)
    minutes = re.search(r"About (\d+) minutes", text)
    return Notebook(Path(path), number, title.strip(), about[1] if about else "", int(minutes[1]) if minutes else None, checks,
                    passed & set(checks))


@functools.cache
def exercises():
    """The names of all exercises that the course has a check for. A line with check_gradients(...) or a check of one's own is none."""
    files = Path(__file__).parent.glob("*.py")
    return {name for path in files for name in DEFINED.findall(path.read_text(encoding="utf-8"))}


def text_of(source):
    """A cell's or an output's text, which may be stored as lines."""
    return source if isinstance(source, str) else "".join(source)


def output_text(output):
    return text_of(output.get("text", "")) + text_of(output.get("data", {}).get("text/plain", ""))


def overview(books, width=100):
    """The list that `nprcnn course` prints."""
    lines = []
    for book in books:
        state = f"{len(book.passed)} of {len(book.checks)}" if len(book.passed) < len(book.checks) else "done"
        time = f"{book.minutes} min" if book.minutes else ""
        lines.append(f"{book.number}  {textwrap.shorten(book.title, width - 26):<{width - 26}}  {time:>7}  {state:>8}")
        lines += textwrap.wrap(book.about, width, initial_indent="    ", subsequent_indent="    ")
    solved, there = sum(len(b.passed) for b in books), sum(len(b.checks) for b in books)
    return "\n".join([*lines, "", f"{solved} of {there} exercises solved, as the notebooks were last saved; "
                      f"about {sum(b.minutes or 0 for b in books) / 60:.0f} hours in all"])


def start_over(book, source):
    """Write the notebook anew from its text form `source`, without outputs; the old file stays beside it.

    Returns the old file's new name. ConfigError if there is no text form.
    """
    import jupytext

    if not source.is_file():
        raise ConfigError(f"{source} is not there: a notebook is started over from its text form; with git, git restore {book.path} "
                          "does it")
    fresh = jupytext.read(source, fmt="py:percent")
    fresh.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    kept, k = book.path.with_suffix(".mine.ipynb"), 2
    while kept.exists():
        kept, k = book.path.with_suffix(f".mine-{k}.ipynb"), k + 1
    book.path.rename(kept)
    jupytext.write(fresh, book.path, fmt="ipynb")
    return kept
