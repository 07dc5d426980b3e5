"""Build the notebooks from their text form: src/NN_name.py (jupytext's percent format) -> NN_name.ipynb, executed.

    python notebooks/build.py               all of them
    python notebooks/build.py 01 02         those whose names begin so, with their solutions
    python notebooks/build.py --check       execute without writing; also fails where a stored notebook is not up to date

The text form is what we edit and review. A notebook that raises, warns, or is too large does not get built. Nothing in the
output depends on when it was built: the same outputs give the same file.
"""

import argparse
import base64
import hashlib
import io
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
LIMIT_KB, LIMIT_SECONDS = 300, 60


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NN", help="beginnings of names; all notebooks if none")
    parser.add_argument("--check", action="store_true", help="execute without writing")
    args = parser.parse_args()
    # The notebooks import the package beside them, and draw inline whatever the caller's terminal is set to.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    os.environ.pop("MPLBACKEND", None)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    sources = [s for s in sorted(SOURCES.rglob("*.py")) if not args.names or s.name.startswith(tuple(args.names))]
    if not sources:
        sys.exit(f"no notebook in {SOURCES} begins with {' or '.join(args.names)}")
    failed = [source for source in sources if not build(source, args.check)]
    sys.exit(f"{len(failed)} of {len(sources)} notebooks failed" if failed else 0)


def build(source, check):
    """Execute one notebook and write it, or only check it. True if all is well."""
    target = HERE / source.relative_to(SOURCES).with_suffix(".ipynb")
    notebook = read(source)
    started = time.perf_counter()
    problems = execute(notebook)
    seconds = time.perf_counter() - started
    clean(notebook)
    text = nbformat.writes(notebook)
    kilobytes = len(text.encode()) / 1024
    if kilobytes > LIMIT_KB:
        problems.append(f"it is {kilobytes:.0f} KB with its outputs, more than {LIMIT_KB}")
    if check:
        if not target.exists() or not same_source(notebook, nbformat.read(target, as_version=4)):
            problems.append(f"{target.name} is not what its source says: run notebooks/build.py {source.name[:2]}")
    elif not problems:
        target.parent.mkdir(exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")
    slow = f" (more than {LIMIT_SECONDS} s)" if seconds > LIMIT_SECONDS else ""
    print(f"{target.name:45} {len(notebook.cells):3} cells {seconds:6.1f} s{slow} {kilobytes:5.0f} KB", flush=True)
    for problem in problems:
        print(f"    {problem}", flush=True)
    return not problems


def read(source):
    """The notebook of a text file: no outputs, cell ids that depend on the cell's text alone."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = metadata()
    seen = set()
    for cell in notebook.cells:
        name, count = hashlib.sha256(cell.source.encode()).hexdigest()[:8], 1
        while f"{name}-{count}" in seen:
            count += 1
        seen.add(f"{name}-{count}")
        cell.id = f"{name}-{count}"
    notebook.nbformat_minor = 5      # the first with cell ids
    return notebook


def metadata():
    return {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }


def execute(notebook):
    """Run all cells in a fresh kernel, in this folder; returns what is wrong."""
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", coalesce_streams=True,
                            extra_arguments=["--log-level=ERROR"],
                            resources={"metadata": {"path": str(HERE)}})
    try:
        client.execute()
    except CellExecutionError as error:
        return [str(error)]
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    problems = [f"a cell writes to stderr: {output.text.strip()}" for output in outputs if output.get("name") == "stderr"]
    shown = [output.data.get("text/plain", "") for output in outputs if output.output_type == "execute_result"]
    return problems + [f"a cell shows {text[:60]}: end it with a semicolon" for text in shown
                       if "matplotlib" in text or "Text(" in text]


def clean(notebook):
    """Drop what differs from run to run without meaning anything, and make the pictures small."""
    notebook.metadata = metadata()      # the kernel has put its Python's version there
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            output.pop("transient", None)
            if "image/png" in output.get("data", ()):
                output.data["image/png"] = shrink(output.data["image/png"])


def shrink(png):
    """A base64 PNG with a palette of 256 colours, a third of the size."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    out = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def same_source(a, b):
    return [(c.cell_type, c.source) for c in a.cells] == [(c.cell_type, c.source) for c in b.cells]


if __name__ == "__main__":
    main()
