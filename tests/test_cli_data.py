import json

import pytest
import tiny_sets
from test_data_faults import A, ann, remove

from nprcnn.cli import main
from nprcnn.data.images import read_image


def test_a_sound_set_is_counted_and_drawn(tmp_path, capsys):
    out, file = tmp_path / "sheet.png", tmp_path / "found.json"
    (tmp_path / "set").mkdir()
    spec = tiny_sets.coco(tmp_path / "set")
    assert main(["data", "check", spec, "--out", str(out), "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "images: 2, objects: 4, classes: 2" in printed and "crowds: 1" in printed and "faults: 0" in printed and f"wrote {out}" in printed
    assert "40x30 (2)" in printed and "\nnut        2\n" in printed
    assert read_image(out).shape[1] > 2 * 300  # two panels
    found = json.loads(file.read_text())
    assert found["classes"] == {"fig": 2, "nut": 2} and found["faults"] == [] and found["images"] == 2
    # sides of the masks: 80, 240, 80 and 180 pixels
    assert found["object_sides"] == pytest.approx([80 ** 0.5, (80 ** 0.5 + 180 ** 0.5) / 2, 240 ** 0.5], abs=0.06) and found["small"] == 4


def test_faults_are_listed_and_the_exit_code_says_so(tmp_path, capsys):
    spec = tiny_sets.coco(tmp_path)
    ann(0, "bbox", [5, 4, -10, 8])(tmp_path)
    ann(3, "bbox", [35, 4, 10, 8])(tmp_path)
    remove("images/b.png")(tmp_path)
    file = tmp_path / "found.json"
    assert main(["data", "check", spec, "--json", str(file), "--out", str(tmp_path / "sheet.png")]) == 1
    printed = capsys.readouterr().out
    assert "images: 2 (1 cannot be read)" in printed and "faults: 3, of which 2 stop a training" in printed
    assert f"! {tmp_path / 'set.json'}: {A}: the box" in printed and f"  {tmp_path / 'set.json'}: annotations[3] (id 8): the box" in printed
    assert f"! {tmp_path / 'images' / 'b.png'}: is not there" in printed
    faults = json.loads(file.read_text())["faults"]
    assert {(fault["entry"], fault["stops"]) for fault in faults} == {(A, True), ("annotations[3] (id 8)", False), ("", True)}
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("arguments, says", [
    (["cocoa:x"], "KIND is one of coco, voc"),
    (["labels:/nowhere"], "has no folder 'images'"),
    (["shapes:3", "--out", "sheet.jpg"], "ends in .png"),
    (["shapes:3", "--json", "nowhere/x.json"], "no folder nowhere"),
])
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.startswith("nprcnn data: ")


@pytest.mark.parametrize("kind", ["labels", "folder", "labelme", "voc"])
def test_a_sheet_of_every_kind(kind, tmp_path):
    (tmp_path / "set").mkdir()
    assert main(["data", "check", tiny_sets.MAKE[kind](tmp_path / "set"), "--out", str(tmp_path / "sheet.png"), "--count", "1"]) == 0
    assert read_image(tmp_path / "sheet.png").shape[1] < 400  # one panel


def test_thumbnails_move_boxes_and_masks_with_the_image():
    import numpy as np
    from nprcnn.contact_sheet import SIDE, spread, thumbnail
    image, mask = np.zeros((300, 4 * SIDE, 3), np.uint8), np.zeros((1, 300, 4 * SIDE), np.uint8)
    image[100:200, 400:800] = 255
    mask[0, 100:200, 400:800] = 1
    small = thumbnail(image, {"boxes": np.array([[400, 100, 800, 200]], np.float32), "labels": np.array([1]), "masks": mask}, "x")
    assert small.image.shape == (75, SIDE, 3)
    np.testing.assert_array_equal(small.target["boxes"], [[100, 25, 200, 50]])
    np.testing.assert_array_equal(small.target["masks"][0] > 0, small.image[..., 0] > 127)
    assert spread(10, 4) == [0, 3, 6, 9] and spread(2, 9) == [0, 1] and spread(0, 4) == []
