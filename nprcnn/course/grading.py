"""Which exercises a class has solved, from a folder with a folder a student.

By default the stored outputs count: what the student's own checks said. With run=True each notebook runs again, and checks of our own
are added at its end, so that edited outputs or edited checks change nothing. That runs the students' code on your machine.
"""

import csv
import importlib
import io
import os
import pkgutil
from pathlib import Path

from ..errors import ConfigError, DataError
from .progress import output_text, read_notebook

SKIPPED = ("solutions", ".ipynb_checkpoints")
SECONDS = 300  # a cell


def grade(folder, books, run=False, say=lambda text: None):
    """Rows (student, notebook number, exercise, passed), for every exercise of every notebook that a student handed in.

    Parameters
    ----------
    folder : Path
        Holds a folder a student, with notebooks in it, at any depth.
    books : list of Notebook
        The course: which exercises there are.
    run : bool
        Run the notebooks again. They run in the folder of `books`, where the files are that they read.
    say : function
        Told about each notebook, for it may take a minute.

    Returns
    -------
    list of tuples. A notebook that cannot be read counts as not solved, and `say` hears of it.

    Raises
    ------
    ConfigError
        There are no students' folders.
    """
    students = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in SKIPPED) if folder.is_dir() else []
    if not students:
        raise ConfigError(f"{folder} holds no folders; give a folder with one folder a student, with the notebooks in it")
    shipped, rows = {book.number: book for book in books}, []
    for student in students:
        for number, path in sorted(handed_in(student)):
            if number not in shipped:
                say(f"{path}: the course has no notebook {number}")
                continue
            book = shipped[number]
            try:
                passed = run_checks(path, book) if run else read_notebook(path).passed
            except DataError as error:
                say(str(error))
                passed = set()
            say(f"{student.name}: notebook {number}, {len(passed & set(book.checks))} of {len(book.checks)}")
            rows += [(student.name, number, exercise, exercise in passed) for exercise in book.checks]
    return rows


def handed_in(student):
    """Yield (number, path) of a student's notebooks; of two with the same number the one that was changed last."""
    latest = {}
    for path in student.rglob("*.ipynb"):
        if path.name[:2].isdigit() and not any(part in SKIPPED for part in path.parts) and ".mine" not in path.name:
            other = latest.get(path.name[:2])
            if other is None or path.stat().st_mtime > other.stat().st_mtime:
                latest[path.name[:2]] = path
    return latest.items()


def run_checks(path, book):
    """Run a student's notebook from the top, whatever fails on the way, and then our checks. Returns the set of those that passed."""
    import nbclient
    import nbformat

    read_notebook(path)  # a clear error, if it is none
    notebook, modules = nbformat.read(path, as_version=4), check_modules()
    for exercise, argument in book.checks.items():
        call = f"getattr(__import__('importlib').import_module({modules[exercise]!r}), 'check_{exercise}')({argument})"
        cell = nbformat.v4.new_code_cell(call)
        cell.metadata["exercise"] = exercise
        notebook.cells.append(cell)
    client = nbclient.NotebookClient(notebook, timeout=SECONDS, allow_errors=True, kernel_name="python3",
                                     extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(book.path.parent)}})
    # the nprcnn that grades, installed or not
    ours = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    try:
        client.execute(env={**os.environ, "PYTHONPATH": ours})
    except (nbclient.exceptions.CellTimeoutError, nbclient.exceptions.DeadKernelError) as error:
        raise DataError(f"{path}: {type(error).__name__}; not solved") from error
    return {cell.metadata["exercise"] for cell in notebook.cells if cell.metadata.get("exercise") in book.checks
            and any(output_text(output).startswith(f"{cell.metadata['exercise']}: passed") for output in cell.outputs)}


def check_modules():
    """{exercise: the module that has its check}."""
    from .. import course
    names = [f"{course.__name__}.{module.name}" for module in pkgutil.iter_modules(course.__path__)]
    return {check.removeprefix("check_"): name for name in names for check, value in vars(importlib.import_module(name)).items()
            if check.startswith("check_") and getattr(value, "__module__", "") == name}


def table(rows):
    """A line a student: how many exercises of each notebook are solved, and the sum."""
    numbers = sorted({number for _, number, _, _ in rows})
    students = sorted({student for student, *_ in rows})
    width = max(len(s) for s in [*students, "student"])
    lines = [f"{'student':<{width}}  " + "  ".join(f"{n:>5}" for n in numbers) + "    sum"]
    for student in students:
        own = [row for row in rows if row[0] == student]
        cells = []
        for number in numbers:
            mine = [passed for _, n, _, passed in own if n == number]
            cells.append(f"{sum(mine)}/{len(mine)}" if mine else "-")
        lines.append(f"{student:<{width}}  " + "  ".join(f"{c:>5}" for c in cells) + f"  {sum(row[3] for row in own):>5}")
    return "\n".join(lines)


def as_csv(rows):
    """The rows as CSV, with a header; passed is 1 or 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", "notebook", "exercise", "passed"])
    writer.writerows([*row[:3], int(row[3])] for row in rows)
    return text.getvalue()
