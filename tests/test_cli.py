import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nprcnn
from nprcnn import backend
from nprcnn.cli import main
from nprcnn.data.images import read_image, save_image
from nprcnn.data.shapes import Shapes


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    save_image(path, Shapes.held_out(1)[0][0])
    return path


def test_predict_writes_a_picture_and_lists_what_it_found(scene, tmp_path, capsys):
    out = tmp_path / "found.png"
    assert main(["predict", str(scene), "--weights", "shapes", "--out", str(out)]) == 0
    assert read_image(out).ndim == 3
    printed = capsys.readouterr().out
    assert "objects with a score of at least 0.5" in printed and str(out) in printed


def test_evaluate_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "ap.json"
    assert main(["evaluate", "shapes", "--count", "4", "--json", str(file)]) == 0
    assert "masks" in capsys.readouterr().out
    metrics = json.loads(file.read_text())
    assert metrics["images"] == 4 and 0 <= metrics["segm"]["AP50"] <= 1


def test_gradcheck_prints_every_pair(capsys):
    assert main(["gradcheck"]) == 0
    printed = capsys.readouterr().out
    for name in ("conv2d", "roi_align", "batch_norm", "softmax_cross_entropy"):
        assert name in printed


def test_train_then_predict_with_the_weights_that_came_out(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("nprcnn.recipes.HELD_OUT", 5)  # the measuring would take most of a minute
    run = tmp_path / "run"
    assert main(["train", "shapes", "--out", str(run), "--seed", "3", "--steps", "2"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["seed"] == 3 and result["recipe"]["steps"] == 2 and "AP50" in result["metrics"]["segm"]
    assert len((run / "history.jsonl").read_text().splitlines()) == 2
    assert main(["predict", str(scene), "--weights", str(run / "tiny_shapes.safetensors"), "--out",
                 str(tmp_path / "x.png")]) == 0


@pytest.mark.parametrize("arguments, message", [
    (["predict", "absent.png", "--out", "x.png"], "absent.png is not there"),
    (["predict", "SCENE", "--out", "x.png", "--weights", "unknown"], "unknown: there is no such file"),
    (["predict", "SCENE", "--out", "x.jpg"], "give a name that ends in .png"),
    (["predict", "SCENE", "--out", "x.png", "--score", "2"], "scores lie in 0..1"),
    (["predict", "TRUNCATED", "--out", "x.png"], "damaged or truncated"),
    (["demo", "--out", "SCENE"], "is a file; give a folder"),
    (["train", "shapes", "--out", "FINISHED"], "already holds a finished training"),
    (["train", "shapes", "--out", "SCENE"], "is a file; give a folder"),
    (["predict", "SCENE", "--out", "FOLDER.png"], "folder.png is a folder; give the name of a file"),
    (["predict", "SCENE", "--out", "absent/x.png"], "there is no folder absent; make it first"),
    (["predict", "SCENE", "--out", "x.png", "--weights", "OTHER"], "do not fit the model: .*has shape"),
    (["evaluate", "shapes", "--json", "absent/x.json"], "there is no folder absent; make it first"),
    (["gradcheck", "--json", "."], "is a folder; give the name of a file"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, scene, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "truncated.png").write_bytes(scene.read_bytes()[:200])
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "result.json").write_text("{}")
    (tmp_path / "folder.png").mkdir()
    nprcnn.save_weights(nprcnn.maskrcnn_tiny(width=4), tmp_path / "other.npz")
    names = {"SCENE": scene, "TRUNCATED": tmp_path / "truncated.png", "FINISHED": tmp_path / "finished",
             "FOLDER.png": tmp_path / "folder.png", "OTHER": tmp_path / "other.npz"}
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main([str(names.get(a, a)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_every_command_has_help_with_an_example(capsys):
    for command in ("demo", "train", "evaluate", "predict", "gradcheck"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"example: nprcnn {command}" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_ends_cleanly(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr("nprcnn.demo.train_demo", interrupted)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert "stopped" in capsys.readouterr().err


def test_ctrl_c_in_the_middle_of_a_training(tmp_path):
    """The same in a process of its own, by the real signal, while NumPy is at work."""
    code = "import signal, sys, nprcnn.cli; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(nprcnn.cli.main())"
    run = subprocess.Popen([sys.executable, "-c", code, "train", "shapes", "--out", str(tmp_path / "run"), "--steps", "500"],
                           stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(Path(nprcnn.__file__).parent.parent)})
    try:
        while not (tmp_path / "run" / "history.jsonl").exists() and run.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        error = run.communicate(timeout=60)[1]
    finally:
        run.kill()
    assert run.returncode == 130 and error.rstrip().endswith("nprcnn train: stopped") and "Traceback" not in error


@pytest.mark.parametrize("arguments", [["evaluate", "shapes", "--count", "0"], ["evaluate", "shapes", "--count", "99999999999"],
                                       ["train", "shapes", "--out", "x", "--steps", "99999999999"], ["demo", "--seed", "-1"]])
def test_numbers_out_of_range(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and f"{arguments[-1]} is outside" in capsys.readouterr().err


def test_unknown_kernels_in_the_environment(scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NPRCNN_KERNELS", "abacus")
    monkeypatch.setattr(backend, "_active", None)
    assert main(["predict", str(scene), "--out", str(tmp_path / "x.png")]) == 2
    assert "no set of kernels named 'abacus'" in capsys.readouterr().err
