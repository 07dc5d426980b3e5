"""nprcnn course"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError
from .common import check_file, write_json

ACTIONS = ("list", "open", "reset", "grade")


def add(command):
    """Declare the arguments."""
    p = command("course", run, "list the notebooks and what is solved; open one, start one over, or grade a class",
                "nprcnn course open 07")
    p.add_argument("action", nargs="?", choices=ACTIONS, default="list",
                   help="list (what happens without a word); open NN starts Jupyter on a notebook; reset NN gives it back as it was, and "
                   "keeps yours beside it; grade FOLDER counts the solved exercises of a folder with one folder a student")
    p.add_argument("what", nargs="?", metavar="NN or FOLDER", help="the notebook's number, or the folder to grade")
    p.add_argument("--notebooks", type=Path, metavar="FOLDER", help="where the notebooks are (here, in notebooks, or in the source tree)")
    p.add_argument("--run", action="store_true", dest="run_again",
                   help="grade: run the notebooks again with checks of our own, instead of believing the stored outputs; runs the "
                   "students' code on this machine, about a minute a notebook")
    p.add_argument("--json", type=Path, metavar="FILE", help="list, grade: write the result to a file, too")
    p.add_argument("--csv", type=Path, metavar="FILE", help="grade: write a table, too")


def run(args):
    from ..course import progress
    for path in (args.json, args.csv):
        if path:
            check_file(path)
    if args.action != "list" and args.what is None:
        raise ConfigError(f"course {args.action} needs {'a folder' if args.action == 'grade' else 'the number of a notebook'}; "
                          f"see nprcnn course --help")
    if args.action == "list" and args.what is not None:
        raise ConfigError(f"course list {args.what}: nothing follows list; to open a notebook, write course open {args.what}")
    folder = progress.notebooks_folder(args.notebooks)
    if args.action == "grade":
        return grade_class(args, progress.course(folder))
    if args.action == "list":
        books = progress.course(folder)
        print(progress.overview(books))
        print(f"nprcnn course open {books[0].number} opens one; they are in {folder}")
        if args.json:
            write_json(args.json, [{"notebook": b.number, "title": b.title, "minutes": b.minutes, "exercises": list(b.checks),
                                    "passed": [name for name in b.checks if name in b.passed]} for b in books])
        return 0
    book = progress.find(folder, args.what)
    if args.action == "reset":
        needs("jupytext")
        kept = progress.start_over(book, folder / "src" / f"{book.path.stem}.py")
        print(f"{book.path.name} is as it was, without outputs; yours is {kept.name}")
        return 0
    needs("jupyterlab")
    print(f"opening {book.path} (Ctrl-C here ends Jupyter)")
    return subprocess.call([sys.executable, "-m", "jupyterlab", str(book.path)])


def needs(package):
    """ConfigError if a package of the extra [notebooks] is not installed."""
    if find_spec(package) is None:
        raise ConfigError(f"{package} is not installed: pip install jupyterlab ipywidgets nbclient jupytext, or in the source tree "
                          "pip install -e '.[notebooks]'")


def grade_class(args, books):
    """Print who has solved what."""
    from ..course import grading
    from ..data.images import write_whole
    if args.run_again:
        needs("nbclient")
    rows = grading.grade(Path(args.what), books, args.run_again, say=lambda text: print(text, file=sys.stderr))
    if not rows:
        raise ConfigError(f"{args.what}: there is no notebook of the course in its folders")
    print(grading.table(rows))
    if args.json:
        write_json(args.json, [dict(zip(("student", "notebook", "exercise", "passed"), row)) for row in rows])
    if args.csv:
        write_whole(args.csv, lambda file: file.write(grading.as_csv(rows).encode()))
    return 0
