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
from small_models import fill

import nprcnn
from nprcnn import backend
from nprcnn.cli import main
from nprcnn.data.coco_names import COCO_91
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


def test_predict_writes_beside_what_is_there(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene_found.png").write_bytes(b"mine")
    for name in ("scene_found-2.png", "scene_found-3.png"):
        assert main(["predict", str(scene)]) == 0
        assert f"wrote {name}" in capsys.readouterr().out and read_image(name).ndim == 3
    assert (tmp_path / "scene_found.png").read_bytes() == b"mine"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_predict_with_a_file_of_another_model(scene, tmp_path, monkeypatch, capsys, suffix):
    """The release of torchvision in small: ResNet-18, narrow heads, 91 classes. The legacy .pth is written by torch, if it is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nprcnn.weights.files.check_sha256", lambda path: None)  # only the release itself has its hash
    model = fill(nprcnn.maskrcnn_resnet_fpn(18, fpn_channels=8, box_hidden=16, mask_channels=(8,)), "", np.float32)
    file = tmp_path / f"maskrcnn_resnet50_fpn_coco-bf2d0c1e{suffix}"
    if suffix == ".pth":
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(a) for name, a in model.state_dict().items()}, file, _use_new_zipfile_serialization=False)
    else:
        nprcnn.save_weights(model, file)
    save_image(scene, read_image(scene)[60:70])  # a strip, which is not enlarged to 800 x 800
    assert main(["predict", str(scene), "--weights", file.name, "--score", "0.02"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Mask R-CNN, ResNet-18 with FPN, 91 classes") and "eps is now 0 in the model's 20 FrozenBatchNorm" in printed
    found = re.findall(r"^(\D+?) +0\.\d{3}   box ", printed, re.M)
    assert found and set(found) <= set(COCO_91) - {"background"} and (tmp_path / "scene_found.png").exists()


def test_predict_without_masks(scene, tmp_path, capsys):
    model = fill(nprcnn.maskrcnn_tiny(masks=False, width=4, fpn_channels=8, box_hidden=16), "", np.float32)
    nprcnn.save_weights(model, tmp_path / "boxes.npz")
    assert main(["predict", str(scene), "--weights", str(tmp_path / "boxes.npz"), "--out", str(tmp_path / "x.png")]) == 0
    assert "Faster R-CNN" in capsys.readouterr().out and (tmp_path / "x.png").exists()


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
    (["predict", "SCENE", "--weights", "FOLDER"], "folder.png is a folder; give the file of weights in it"),
    (["predict", "SCENE", "--weights", "CLASSIFIER"], "classifier.npz: this is a ResNet that classifies whole images"),
    (["evaluate", "shapes", "--weights", "CLASSIFIER"], "classifier.npz: this is a ResNet that classifies whole images"),
    (["compare", "shapes"], "give a second file to compare with, or --save"),
    (["compare", "shapes", "absent.npz"], "absent.npz: there is no such file"),
    (["compare", "absent.npz", "shapes"], "absent.npz: there is no such file"),
    (["compare", "shapes", "OTHER"], "other.npz: the weights do not fit the model"),
    (["compare", "CLASSIFIER", "OTHER"], "classifier.npz: this is a ResNet that classifies whole images"),
    (["compare", "shapes", "shapes", "--tolerance", "nan"], "--tolerance nan: a number of at least 0"),
    (["compare", "shapes", "shapes", "--set", "min_size"], "--set min_size: give NAME=VALUE"),
    (["compare", "shapes", "shapes", "--set", "colour=blue"], "was recognised as: Mask R-CNN.*colour"),
    (["compare", "shapes", "shapes", "--model", "resnet"], "no such builder"),
    (["compare", "shapes", "--save", "stages.txt"], "stages are written as .npz"),
    (["compare", "shapes", "shapes", "--image", "absent.png"], "absent.png is not there"),
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
    np.savez(tmp_path / "classifier.npz", **{"layer1.0.conv1.weight": np.zeros(3), "fc.weight": np.zeros(3)})
    names = {"SCENE": scene, "TRUNCATED": tmp_path / "truncated.png", "FINISHED": tmp_path / "finished",
             "FOLDER.png": tmp_path / "folder.png", "FOLDER": tmp_path / "folder.png",
             "OTHER": tmp_path / "other.npz", "CLASSIFIER": tmp_path / "classifier.npz"}
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main([str(names.get(a, a)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_every_command_has_help_with_an_example(capsys):
    for command in ("demo", "train", "evaluate", "predict", "compare", "gradcheck"):
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


def in_a_process(arguments, **options):
    """python -m nprcnn, from the folder that the package lies in."""
    return subprocess.run([sys.executable, "-m", "nprcnn", *arguments], cwd=Path(nprcnn.__file__).parent.parent, text=True,
                          stderr=subprocess.PIPE, **options)


def test_python_m_nprcnn():
    run = in_a_process(["evaluate", "--help"], stdout=subprocess.PIPE)
    assert run.returncode == 0 and "usage: nprcnn evaluate" in run.stdout
    assert in_a_process(["predict", "absent.png"]).returncode == 2


def test_a_reader_that_leaves_early():
    """nprcnn gradcheck | head: the pipe has no reader any more when the table is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    run = in_a_process(["compare", "shapes", "shapes"], stdout=writer)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, "")
