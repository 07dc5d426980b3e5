import json
import re

import numpy as np
import pytest

import nprcnn
from nprcnn.cli import main
from nprcnn.data.images import save_image
from nprcnn.data.shapes import Shapes
from small_models import fill


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image("scene.png", Shapes.held_out(1)[0][0])
    return tmp_path


def stages_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1].replace("<\\/", "</"))


def test_a_file(here, capsys):
    assert main(["inspect", "scene.png", "--out", "r.html", "--score", "0.3"]) == 0
    printed = capsys.readouterr().out
    assert "wrote r.html" in printed and "no gradients: an image file has no target" in printed
    stages = stages_of(here / "r.html")
    assert stages["title"] == "scene.png" and stages["score"] == 0.3 and stages["backward"] is None and stages["detections"]


def test_a_scene_has_gradients(here, capsys):
    assert main(["inspect", "shapes:3"]) == 0
    stages = stages_of(here / "report.html")
    assert set(stages["backward"]["losses"]) > {"loss_mask"} and len(stages["targets"]) == len(Shapes.held_out(4)[3][1]["boxes"])
    assert "no gradients" not in capsys.readouterr().out


def test_an_image_of_a_data_set(here):
    assert main(["inspect", "shapes:10,seed=3#4", "--out", "r.html"]) == 0
    boxes = [t["box"] for t in stages_of(here / "r.html")["targets"]]
    np.testing.assert_allclose(boxes, Shapes(10, 3)[4][1]["boxes"])


def test_no_gradients_where_classes_differ(here, capsys):
    model = fill(nprcnn.maskrcnn_tiny(num_classes=3, width=4, fpn_channels=8, box_hidden=16), "", np.float32)
    nprcnn.save_weights(model, "other.npz")
    assert main(["inspect", "shapes:3", "--weights", "other.npz", "--out", "r.html"]) == 0
    assert "no gradients: the data's classes are not the model's" in capsys.readouterr().out
    assert stages_of(here / "r.html")["backward"] is None


@pytest.mark.parametrize("arguments, message", [
    (["absent.png"], "absent.png is not there"),
    (["shapes:x"], "is no number of an image"),
    (["shapes:-1"], "is no number of an image"),
    (["shapes:10#x"], "is no number of an image"),
    (["shapes:10#10"], "has 10 images, counted from 0; there is no number 10"),
    (["nothing:here#1"], "nothing"),
    (["scene.png", "--out", "r.png"], "give a name that ends in .html"),
    (["scene.png", "--out", "absent/r.html"], "there is no folder absent"),
    (["scene.png", "--score", "2"], "scores lie in 0..1"),
    (["scene.png", "--weights", "absent.pth"], "there is no such file"),
])
def test_mistakes_are_one_sentence(here, arguments, message, capsys):
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not (here / "report.html").exists()
