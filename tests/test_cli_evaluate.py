import json
import re

import numpy as np
import pytest
from small_models import fill
from test_evaluate_results import IMAGE_IDS, SIZES, direct, make_set

import nprcnn
from nprcnn.cli import main
from nprcnn.data import Shapes
from nprcnn.data.images import read_image, save_image
from nprcnn.evaluate import METRICS, evaluate


def test_the_built_in_scenes(tmp_path, capsys):
    file, plot, folder = tmp_path / "ap.json", tmp_path / "pr.png", tmp_path / "results"
    assert main(["evaluate", "shapes", "--weights", "shapes", "--count", "6", "--json", str(file), "--plot", str(plot),
                 "--results", str(folder)]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads(file.read_text())
    assert metrics == evaluate(nprcnn.maskrcnn_tiny(weights="shapes"), Shapes.held_out(6), progress=False)
    for kind, title in (("bbox", "boxes"), ("segm", "masks")):
        shown = re.findall(rf"^{title} +(.*)$", printed, re.M)
        assert " ".join(shown).split() == [f"{v:.3f}" if v >= 0 else "-" for v in metrics[kind].values()] and len(metrics[kind]) == 12
        rows = json.loads((folder / f"{kind}_results.json").read_text())
        assert {row["image_id"] for row in rows} == set(range(6))
        assert f"wrote {folder / f'{kind}_results.json'}" in printed
    assert read_image(plot).shape[2] == 3 and f"wrote {plot}" in printed


def test_the_files_that_were_written_give_the_same_numbers(tmp_path, capsys):
    """To .002: coordinates are rounded to hundredths of a pixel, scores to five decimals. Measured: 0."""
    truth = tmp_path / "truth.json"
    source = Shapes.held_out(4)
    annotations, images = [], []
    for i in range(4):
        image, target = source[i]
        save_image(tmp_path / f"scene{i}.png", image)
        images.append({"id": 10 + i, "file_name": f"scene{i}.png", "height": 128, "width": 128})
        for box, label, mask in zip(target["boxes"].tolist(), target["labels"].tolist(), target["masks"]):
            runs = np.diff([0, *np.flatnonzero(np.diff(mask.T.ravel(), prepend=0)), mask.size]).tolist()
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + i, "category_id": 5 * label, "iscrowd": 0,
                                "area": int(mask.sum()), "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                                "segmentation": {"size": [128, 128], "counts": runs}})
    categories = [{"id": 5 * k, "name": name} for k, name in enumerate(Shapes.class_names) if k]
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    assert main(["evaluate", "--data", f"coco:{truth}", "--weights", "shapes", "--results", str(tmp_path),
                 "--json", str(tmp_path / "a.json")]) == 0
    files = [str(tmp_path / f"{kind}_results.json") for kind in ("bbox", "segm")]
    assert main(["evaluate", "--data", f"coco:{truth}", "--results-in", *files, "--json", str(tmp_path / "b.json")]) == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    for kind, file in zip(("bbox", "segm"), files):
        assert first[kind]["AP"] > 0.3
        assert list(second[kind].values()) == direct(truth, file, kind)
        assert list(first[kind].values()) == pytest.approx(list(second[kind].values()), abs=0.002)
    scenes = evaluate(nprcnn.maskrcnn_tiny(weights="shapes"), source, progress=False)
    assert first["segm"] == scenes["segm"] and first["bbox"] == scenes["bbox"]


def test_a_model_of_91_classes_on_a_part_of_coco(tmp_path, capsys):
    truth, _, _ = make_set(tmp_path)
    content = json.loads(truth.read_text())
    for category, name in zip(content["categories"], ("toothbrush", "train", "dog")):  # ids 90, 7, 18: COCO's own
        category["name"] = name
    truth.write_text(json.dumps(content))
    for (height, width), image_id in zip(SIZES, IMAGE_IDS):
        save_image(tmp_path / f"{image_id}.png", np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    model = fill(nprcnn.maskrcnn_tiny(num_classes=91, width=4, fpn_channels=8, box_hidden=16, mask_channels=(8,)), "", np.float32)
    nprcnn.save_weights(model, tmp_path / "model.safetensors")
    assert main(["evaluate", "--data", f"coco:{truth}", "--weights", str(tmp_path / "model.safetensors"), "--set", "box_score_thresh=0.0",
                 "--count", "2", "--results", str(tmp_path), "--json", str(tmp_path / "ap.json")]) == 0
    assert "of the model's classes, 3 are in the data set" in capsys.readouterr().out
    rows = json.loads((tmp_path / "bbox_results.json").read_text())
    assert rows and {row["category_id"] for row in rows} <= {7, 18, 90} and {row["image_id"] for row in rows} <= {42, 9}
    metrics = json.loads((tmp_path / "ap.json").read_text())
    assert metrics["images"] == 2 and list(metrics["per_class"]) == ["train", "dog", "toothbrush"]
    assert list(metrics["bbox"]) == list(METRICS)


def test_result_files(tmp_path, capsys):
    truth, bbox, segm = make_set(tmp_path)
    assert main(["evaluate", "--data", f"coco:{truth}", "--results-in", str(segm), "--plot", str(tmp_path / "pr.png")]) == 0
    printed = capsys.readouterr().out
    assert "boxes" not in printed and f"{direct(truth, segm, 'segm')[0]:.3f}" in printed and (tmp_path / "pr.png").exists()


@pytest.mark.parametrize("arguments, message", [
    ([], "give either `shapes`, .* or --data"),
    (["shapes", "--data", "shapes:3"], "give either `shapes`"),
    (["--data", "TRUTH"], "--weights FILE is missing; or measure result files"),
    (["--data", "shapes:3", "--difficulty", "easy", "--weights", "shapes"], "--difficulty is of the built-in scenes"),
    (["--data", "TRUTH", "--results-in", "BBOX", "--weights", "shapes"], "--results-in measures files; --weights is for a model"),
    (["--data", "TRUTH", "--results-in", "BBOX", "--results", "x"], "--results is for a model"),
    (["--data", "TRUTH", "--results-in", "TRUTH.json"], "truth.json holds dict .*; a result file is a list"),
    (["--data", "TRUTH", "--results-in", "absent.json"], "absent.json: cannot be read"),
    (["--data", "TRUTH", "--results-in", "BBOX", "BBOX"], "bbox.json holds boxes, as .*bbox.json does"),
    (["--data", "TRUTH", "--results-in", "NAN"], "nan.json: entry 0: has the score nan"),
    (["--data", "coco:absent.json", "--results-in", "BBOX"], "absent.json is not there"),
    (["--data", "cats:x", "--weights", "shapes"], "'cats:x' is no data set"),
    (["--data", "TRUTH", "--weights", "shapes"], "the model has the classes circle, .* none in common"),
    (["shapes", "--count", "1", "--plot", "x.jpg"], "give a name that ends in .png"),
    (["shapes", "--count", "1", "--plot", "absent/x.png"], "there is no folder absent"),
    (["shapes", "--count", "1", "--json", "absent/x.json"], "there is no folder absent"),
    (["shapes", "--count", "1", "--results", "BBOX"], "bbox.json is a file; give a folder"),
    (["shapes", "--count", "1", "--results", "bbox.json/x"], "--results bbox.json/x cannot be made: .*bbox.json is a file"),
    (["--data", "shapes:0", "--weights", "shapes"], "shapes:0 holds no images"),
    (["--data", "folder:.", "--weights", "shapes"], "folder:. holds no images"),
    (["shapes", "--count", "1", "--set", "min_size=abc"], "the setting min_size='abc': an integer of at least 1 is needed"),
    (["shapes", "--count", "1", "--set", "box_nms_thresh=-1"], "the setting box_nms_thresh=-1: a number of at least 0 is needed"),
    (["shapes", "--count", "1", "--set", "mask_target_binary=2"], "the setting mask_target_binary=2: True or False is needed"),
    (["shapes", "--count", "1", "--set", "colour=3"], "was recognised as: .*colour"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    truth, bbox, _ = make_set(tmp_path)
    (tmp_path / "nan.json").write_text(json.dumps([{**json.loads(bbox.read_text())[0], "score": float("nan")}]))
    monkeypatch.chdir(tmp_path)
    names = {"TRUTH": f"coco:{truth}", "TRUTH.json": truth, "BBOX": bbox, "NAN": tmp_path / "nan.json"}
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["evaluate", *(str(names.get(a, a)) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_no_permission_is_said_before_the_work(tmp_path, capsys, monkeypatch):
    """Root may write anywhere: the system's answer is another one here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nprcnn.cli.common.os.access", lambda place, mode: False)
    monkeypatch.setattr("nprcnn.cli.evaluate.from_model", lambda args: pytest.fail("the work had begun"))
    for option, value in (("--json", "a.json"), ("--results", "deep/results")):
        assert main(["evaluate", "shapes", option, value]) == 2
        assert re.search(f"{value} cannot be written: there is no permission to write to .*; give another place", capsys.readouterr().err)
    (tmp_path / "a.json").write_text("")
    assert main(["evaluate", "shapes", "--json", "a.json"]) == 2 and "permission to write to a.json" in capsys.readouterr().err
