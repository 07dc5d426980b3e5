"""What the README shows works as it is written there."""

import re
from pathlib import Path

import pytest

import nprcnn
from nprcnn.cli import parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_one_after_the_other(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "rpn.proposals" in capsys.readouterr().out


def test_commands_exist():
    commands = set(re.findall(r"(?:^|`)nprcnn ([a-z-]+)\b", README, re.M))
    assert len(commands) >= 10
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            parser().parse_args([command, "--help"])
        assert stop.value.code == 0


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"`(nprcnn/[\w/]+(?:\.py)?|notebooks/?|tests/?)`", README):
        assert (ROOT / path).exists(), path
    for name in ("backend.py", "layers.py", "trace.py", "gradcheck.py", "pairs.py", "recipes.py"):
        assert name in README and (Path(nprcnn.__file__).parent / name).exists()
