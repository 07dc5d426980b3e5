"""Small notebooks for the tests of the course's commands."""

import json


def write_notebook(path, number="07", exercises=(("f", "f", ""),), text="About 75 minutes with the exercises.", code=""):
    """exercises: (name, argument of its check, stored output)."""
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": [
        f"# {number}  A title: and more\n", "\n", "Words. **You need:** nothing. **You will\n", f"be able to:** say what it is. {text}\n"]}]
    sources = [(code, "")] if code else []
    sources += [(f"check_{name}({argument})", output) for name, argument, output in exercises]
    for k, (source, output) in enumerate(sources):
        cells.append({"cell_type": "code", "id": f"c{k}", "metadata": {}, "execution_count": None, "source": source, "outputs": [
            {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": [output]}}] if output else []})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
                                "nbformat": 4, "nbformat_minor": 5}))
    return path


def read_cells(path):
    """The cells of a stored notebook as dicts, read without Jupyter's packages: lists of lines joined, as nbformat does."""
    def joined(value):
        return "".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else value

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = joined(cell["source"])
        for output in cell.get("outputs", ()):
            for holder, keys in ((output, ("text",)), (output.get("data", {}), output.get("data", ()))):
                holder.update({key: joined(holder[key]) for key in keys if key in holder})
    return cells
