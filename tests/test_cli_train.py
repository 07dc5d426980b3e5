"""nprcnn train: on annotated images, from weights, with frozen parts, stopped and resumed."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from small_models import fill, snapshot

import nprcnn
from nprcnn.cli import main
from nprcnn.data.images import read_image, save_image
from nprcnn.data.shapes import Shapes
from nprcnn.pretrained import build_model, load_model
from nprcnn.train.checkpoint import read_checkpoint
from nprcnn.train.log import read_log

SMALL = ["--set", "width=4", "--set", "blocks=(1,1,1,1)", "--set", "fpn_channels=8", "--set", "mask_channels=(8,)", "--set", "box_hidden=16",
         "--set", "min_size=64", "--set", "rpn_pre_nms_top_n_test=20", "--set", "rpn_post_nms_top_n_test=5"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Eight images with one label image each, as `labels:FOLDER` takes them."""
    folder = tmp_path_factory.mktemp("cells")
    (folder / "images").mkdir(), (folder / "labels").mkdir()
    scenes = Shapes(8, 1, "easy", size=64)
    for i in range(8):
        image, target = scenes[i]
        save_image(folder / "images" / f"cell{i}.png", image)
        owner = sum((k + 1) * mask.astype(np.uint16) for k, mask in enumerate(target["masks"]))
        Image.fromarray(owner).save(folder / "labels" / f"cell{i}.png")
    return folder


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Drawing them takes longer than these trainings; one test looks at them."""
    if "annotated" not in request.node.name:
        monkeypatch.setattr("nprcnn.train.folder.draw_curves", lambda *args: None)


def train(labels, out, *more, model=SMALL):
    data = [] if "--data" in more else ["--data", f"labels:{labels}"]
    return main(["train", *data, "--out", str(out), "--steps", "4", "--warmup", "1", *model, *map(str, more)])


def test_train_on_annotated_images(labels, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(labels, out, "--held-out", 2, "--validate-every", 2, "--save-every", 2, "--augment", "flip=0.5", "brightness=0.2") == 0
    printed = capsys.readouterr().out
    assert "6 images to train on, 2 to measure on; object; 2 images a step" in printed and "mask AP" in printed
    assert {p.name for p in out.iterdir()} == {"history.jsonl", "curves.png", "checkpoint.safetensors", "checkpoint-previous.safetensors",
                                               "best.safetensors", "weights.safetensors"}
    rows = read_log(out / "history.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2, 3] and [row["step"] for row in rows if "validation" in row] == [1, 3]
    assert read_image(out / "curves.png").shape == (460, 1000, 3)
    config = read_checkpoint(out / "checkpoint.safetensors").about["config"]
    assert config["training"]["augment"]["brightness"] == 0.2 and config["model"]["arguments"]["num_classes"] == 2


def test_weights_say_which_model_they_are_of(labels, tmp_path):
    """With all settings: an input of another size, anchors and thresholds are not seen in the shapes of weights."""
    assert train(labels, tmp_path / "run", "--set", "box_score_thresh=0.3", "--set", "anchor_sizes=((8,),(16,),(32,),(64,),(128,))") == 0
    model, report = load_model(tmp_path / "run" / "weights.safetensors")
    assert (model.min_size, model.box_score_thresh, model.class_names) == (64, 0.3, ("background", "object"))
    assert np.ptp(model.anchor_generator.cells[0][1][[0, 2]]) == 8 and "maskrcnn_tiny, 2 classes" in report.notes[0]


@pytest.mark.parametrize("text", ["[]", "x", '{"builder": "absent", "arguments": {}}', '{"builder": "tiny", "arguments": {"weights": "shapes"}}',
                                  '{"builder": "tiny", "arguments": 3}', '{"builder": ["tiny"], "arguments": {}}'])
def test_weights_that_say_nonsense(tmp_path, text):
    from nprcnn.errors import WeightsError
    nprcnn.save_weights(nprcnn.maskrcnn_tiny(2, width=4), tmp_path / "w.safetensors", {"model": text})
    with pytest.raises(WeightsError, match="what its metadata says of its model cannot be understood"):
        load_model(tmp_path / "w.safetensors")


def test_stopped_and_resumed_is_the_same(labels, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "run"
    options = ["--held-out", 2, "--validate-every", 2, "--save-every", 1, "--augment"]
    assert train(labels, whole, *options) == 0
    from nprcnn.train.log import Log
    append = Log.append

    def stop(self, row):
        append(self, row)
        if row["step"] == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(Log, "append", stop)
    assert train(labels, out, *options) == 130
    monkeypatch.setattr(Log, "append", append)
    assert train(labels, out, *options) == 2 and "--resume" in capsys.readouterr().err
    assert train(labels, out, *options, "--resume") == 0
    assert "going on after step 2 of 4" in capsys.readouterr().out
    a, b = (read_checkpoint(folder / "checkpoint.safetensors") for folder in (whole, out))
    assert a.about == b.about and all(a.weights[n].tobytes() == b.weights[n].tobytes() for n in a.weights)
    assert all(a.velocity[n].tobytes() == b.velocity[n].tobytes() for n in a.velocity)
    one, two = ([{k: v for k, v in row.items() if k != "seconds"} for row in read_log(f / "history.jsonl")] for f in (whole, out))
    assert one == two


def test_resume_on_a_data_set_that_has_changed(labels, tmp_path, capsys):
    assert train(labels, tmp_path / "run") == 0
    assert train(labels, tmp_path / "run", "--resume", "--held-out", 1) == 2
    assert "the data set has changed since the training began: data.fingerprint was" in capsys.readouterr().err


def weights_of(out):
    from safetensors.numpy import load_file
    return load_file(out / "weights.safetensors")


def test_fine_tuning_from_a_whole_model_with_other_classes(labels, tmp_path, capsys):
    """Heads with a row a class begin anew, and it says which; frozen parts stay to the last bit."""
    options = dict(width=4, blocks=(1, 1, 1, 1), fpn_channels=8, mask_channels=(8,), box_hidden=16, norm="frozen")
    other = fill(nprcnn.maskrcnn_tiny(5, **options), dtype=np.float32)
    nprcnn.save_weights(other, tmp_path / "other.npz")
    frozen = ["--set", "norm=frozen"]
    assert train(labels, tmp_path / "run", "--weights", tmp_path / "other.npz", "--freeze", "stem,layer1", "rpn", *frozen) == 0
    printed = capsys.readouterr().out
    assert re.search(r"other classes, and keep their initial values: roi_heads.box_predictor.cls_score.weight, .*mask_fcn_logits.bias", printed)
    before, after = other.state_dict(), weights_of(tmp_path / "run")
    same = {name for name in after if after[name].shape == before[name].shape and (after[name] == before[name]).all()}
    parameters = {name for name, _ in other.named_parameters()}
    stay = ("backbone.body.conv1.", "backbone.body.layer1.", "rpn.")
    assert {name for name in parameters if name.startswith(stay)} == same & parameters


def test_fine_tuning_from_a_backbone(labels, tmp_path, capsys):
    state = {n.removeprefix("backbone.body."): a for n, a in fill(build_model("tiny", dict(width=4, blocks=(1, 1, 1, 1), norm="frozen")),
                                                                  dtype=np.float32).state_dict().items() if "body" in n}
    np.savez(tmp_path / "imagenet.npz", **state, **{"fc.weight": np.ones((10, 32), np.float32)})
    assert train(labels, tmp_path / "run", "--weights", tmp_path / "imagenet.npz", "--freeze", "backbone", "--set", "norm=frozen", "--set",
                 "norm_eps=1e-3") == 0
    assert "a backbone; " in capsys.readouterr().out
    after = weights_of(tmp_path / "run")
    assert all((after["backbone.body." + n] == a).all() for n, a in state.items())


def test_a_training_of_ours_as_the_beginning_of_another(labels, tmp_path, capsys):
    assert train(labels, tmp_path / "a") == 0
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        assert train(labels, tmp_path / name, "--weights", tmp_path / "a" / name) == 0
        assert "initial values" not in capsys.readouterr().out
    a, b = weights_of(tmp_path / "weights.safetensors"), weights_of(tmp_path / "checkpoint.safetensors")
    assert all(a[n].tobytes() == b[n].tobytes() for n in a)


def test_accumulating_is_a_larger_batch(labels, tmp_path):
    """float32 and frozen norms: to rounding. Measured: 3e-8 after two steps, in which weights move by more than 1e-3."""
    frozen = ["--set", "norm=frozen", "--steps", 2, "--warmup", 0]
    assert train(labels, tmp_path / "a", "--batch-size", 4, *frozen) == 0
    assert train(labels, tmp_path / "b", "--batch-size", 1, "--accumulate", 4, *frozen) == 0
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    arguments = read_checkpoint(tmp_path / "a" / "checkpoint.safetensors").about["config"]["model"]["arguments"]
    start = build_model("tiny", arguments, np.random.default_rng(0)).state_dict()
    assert max(np.abs(a[n] - b[n]).max() for n in a) < 1e-5
    assert max(np.abs(a[n] - start[n]).max() for n in a) > 1e-3


def test_an_image_that_cannot_be_read_is_named(labels, tmp_path, capsys):
    import shutil
    folder = tmp_path / "cells"
    shutil.copytree(labels, folder)
    file = folder / "images" / "cell3.png"
    file.write_bytes(file.read_bytes()[:60])
    assert train(folder, tmp_path / "run") == 2
    assert "cell3.png" in capsys.readouterr().err


def test_divergence_and_its_replay(labels, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(labels, out, "--lr", 1e30, "--warmup", 0, "--set", "norm=frozen") == 2
    error = capsys.readouterr().err
    assert "the training diverged: at step" in error and ".png" in error and f"nprcnn train --replay {out / 'replay.npz'}" in error
    assert main(["train", "--replay", str(out / "replay.npz")]) == 0
    printed = capsys.readouterr().out
    assert "forward" in printed and "losses.loss_mask" in printed and "NOT FINITE" in printed


@pytest.mark.parametrize("more, message", [
    (["--freeze", "stomach"], "no part 'stomach' to freeze; the parts are stem, layer1"),
    (["--model", "resnet51"], "there is no model 'resnet51'; choose one of: "),
    (["--set", "colour=blue"], "the model tiny has no setting 'colour'"),
    (["--weights", "absent.npz"], "absent.npz: there is no such file"),
    (["--weights", "OTHER"], "the weights are those of another model: .* Choose --model, and --set"),
    (["--held-out", "100"], "100 images cannot be held out of 8"),
    (["--held-out", "2", "--val", "shapes:2"], "either --held-out or --val"),
    (["--val", "shapes:2"], "--val has the classes circle, .*, --data has object"),
    (["--batch-size", "9"], "a batch of 9 from a data set of 8"),
    (["--augment", "twirl=1"], "--augment twirl: there is no such change; choose from flip"),
    (["--augment", "flip=2"], "flip=2 is outside 0..1"),
    (["--warmup", "4"], "a warm-up shorter than 4 steps"),
    (["--data", "films:x"], "films:x.* is no data set"),
])
def test_bad_input_is_one_sentence(labels, tmp_path, capsys, more, message):
    nprcnn.save_weights(nprcnn.maskrcnn_tiny(width=8), tmp_path / "other.npz")
    assert train(labels, tmp_path / "run", *(str(tmp_path / "other.npz") if a == "OTHER" else a for a in more)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    (["train", "--data", "shapes:4"], "--out DIR is missing"), (["train", "--out", "x"], "--data KIND:PATH is missing"),
    (["train", "shapes", "--data", "shapes:4", "--out", "x"], "either the recipe")])
def test_what_is_missing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_recipe_can_be_resumed(tmp_path, monkeypatch):
    """A recipe of two steps that was stopped in the second one goes on after the first, and ends as if it had not been stopped."""
    monkeypatch.setattr("nprcnn.recipes.HELD_OUT", 2)
    monkeypatch.setattr("nprcnn.recipes.SAVE_EVERY", 1)
    arguments, real, calls = ["train", "shapes", "--steps", "2", "--out"], Shapes.__getitem__, []
    assert main([*arguments, str(tmp_path / "whole")]) == 0

    def stop(self, i):
        calls.append(i)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return real(self, i)
    monkeypatch.setattr(Shapes, "__getitem__", stop)
    assert main([*arguments, str(tmp_path / "run")]) == 130
    monkeypatch.setattr(Shapes, "__getitem__", real)
    assert main([*arguments, str(tmp_path / "run"), "--resume"]) == 0
    models = [nprcnn.maskrcnn_tiny(weights=tmp_path / name / "tiny_shapes.safetensors") for name in ("whole", "run")]
    assert snapshot(models[0]) == snapshot(models[1]) and (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--data", "shapes:0"], "shapes:0 holds no images"),
    (["--data", "shapes:4", "--val", "shapes:0"], "shapes:0 holds no images"),
    (["--data", "shapes:4", "--held-out", "4"], "--held-out 4: shapes:4 holds no more images, so none is left to train on"),
    (["--data", "shapes:4", "--weight-decay", "-1"], "--weight-decay -1.0: a number of at least 0 is needed"),
    (["--data", "shapes:4", "--weight-decay", "nan"], "--weight-decay nan"),
    (["--data", "shapes:4", "--schedule", "step", "--drops", "0.5", "3"], "--drops 0.5 3.0: parts of the whole training"),
    (["--data", "shapes:4", "--augment", "flip"], "--augment flip: give NAME=VALUE, such as flip=0.5"),
    (["--data", "shapes:4", "--augment", "flip=abc"], "augmentation: flip=abc is no number; one in 0..1 is needed"),
    (["--data", "shapes:4", "--augment", "crop=5"], "augmentation: crop=5; give a height and a width"),
    (["--data", "shapes:4", "--augment", "crop=(64.5,64)"], "give a height and a width"),
    (["--data", "shapes:4", "--augment", "scale=(a,2)"], "give the smallest and the largest factor"),
    (["--data", "shapes:4", "--augment", "quarter_turns=5"], "quarter_turns=5; True or False is needed"),
    (["--data", "shapes:4", "--set", "num_classes=3"], "7 classes with the background: .* leave num_classes and class_names out"),
    (["--data", "shapes:4", "--set", "class_names=(1,2)"], "the data set has 7 classes"),
    (["--data", "shapes:4", "--set", "min_size=abc"], "the setting min_size='abc': an integer of at least 1"),
    (["--data", "shapes:4", "--set", "max_size=0"], "the setting max_size=0: an integer of at least 1"),
    (["--data", "shapes:4", "--set", "masks=maybe"], "the setting masks='maybe': True or False is needed"),
    (["--data", "shapes:4", "--set", "nope=1"], "the model tiny has no setting 'nope'"),
    (["--replay", "absent.npz"], "absent.npz: there is no such file; a training that diverges leaves a replay.npz in its folder"),
    (["--data", "shapes:4", "--out", "file/run"], "--out file/run cannot be made: .*file is a file"),
    (["--data", "python:file.py"], "file.py: line 1: the class cannot be made, SyntaxError"),
])
def test_what_cannot_be_is_said_before_the_training(arguments, message, tmp_path, capsys, monkeypatch):
    """And no folder is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "file.py").write_text("def (")
    assert main(["train", "--out", "run", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"file", "file.py"}
