"""COCO result files: written, read back, and measured, against pycocotools used directly."""

import contextlib
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nprcnn.data import Subset, open_source
from nprcnn.data.images import save_image
from nprcnn.errors import DataError
from nprcnn.evaluate import coco_metrics, collect
from nprcnn.evaluate.results import read_results, read_truth, write_results

IDS = [7, 18, 90]  # of the categories: with gaps
SIZES = [(60, 80), (70, 50), (64, 64), (90, 120)]
IMAGE_IDS = [42, 9, 1000, 5]  # not in the order of the file


def ellipse(height, width, x, y, rx, ry):
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 <= 1).astype(np.uint8)


def make_set(folder, seed=0, area=True):
    """truth.json, bbox.json and segm.json in `folder`: polygons, run lengths of both kinds, crowds; the finds are the truths moved by a
    few pixels, with some missed, doubled and wrong. Returns the paths."""
    rng = np.random.default_rng(seed)
    images, annotations, boxes, masks = [], [], [], []
    for image_id, (height, width) in zip(IMAGE_IDS, SIZES):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        for n in range(6):
            x, y = rng.uniform(15, width - 15), rng.uniform(15, height - 15)
            rx, ry, category = rng.uniform(5, 30), rng.uniform(5, 30), IDS[rng.integers(3)]
            mask = ellipse(height, width, x, y, rx, ry)
            packed = rle.encode(np.asfortranarray(mask))
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            polygon = np.stack([np.clip(x + rx * np.cos(angle), 0, width), np.clip(y + ry * np.sin(angle), 0, height)], axis=1)
            crowd = int(n == 4)
            if n == 5:
                segmentation = {"size": [height, width], "counts": packed["counts"].decode()}
            elif crowd:
                edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0))  # where a run begins that is not the first one
                segmentation = {"size": [height, width], "counts": np.diff([0, *edges, mask.size]).tolist()}
            else:
                segmentation = [polygon.round(2).ravel().tolist()]
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": crowd,
                          "bbox": [round(float(v), 2) for v in rle.toBbox(packed)], "segmentation": segmentation}
            if area:
                annotation["area"] = float(rle.area(packed)) * (1.3 if n == 1 else 1)  # not the mask's own: it is the file that counts
            annotations.append(annotation)
            for _ in range(rng.integers(0, 3)):
                found = ellipse(height, width, *(np.array([x, y, rx, ry]) + rng.normal(0, 2, 4)).clip(4))
                found = rle.encode(np.asfortranarray(found))
                row = {"image_id": image_id, "category_id": category if rng.random() < 0.8 else 7, "score": round(float(rng.random()), 3)}
                boxes.append({**row, "bbox": (rle.toBbox(found) + rng.uniform(0, 1, 4)).round(2).tolist()})
                masks.append({**row, "segmentation": {"size": [height, width], "counts": found["counts"].decode()}})
    truth = {"images": images, "annotations": annotations, "categories": [{"id": i, "name": f"kind {i}"} for i in (90, 7, 18)]}
    paths = [folder / "truth.json", folder / "bbox.json", folder / "segm.json"]
    for path, content in zip(paths, (truth, boxes, masks)):
        path.write_text(json.dumps(content))
    return paths


def direct(truth, results, kind):
    """The twelve numbers, by pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        run = COCOeval(coco, coco.loadRes(str(results)), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(v) for v in run.stats]


def numbers(source, entries, kinds):
    metrics = coco_metrics(entries.truths, entries.found, entries.sizes, source.class_names, kinds)
    return {kind: list(metrics[kind].values()) for kind in kinds}


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_pycocotools(tmp_path, seed):
    truth, bbox, segm = make_set(tmp_path, seed)
    source = open_source(f"coco:{truth}")
    entries, kinds = read_results([segm, bbox], source)
    assert kinds == ("bbox", "segm")
    got = numbers(source, entries, kinds)
    assert got == {"bbox": direct(truth, bbox, "bbox"), "segm": direct(truth, segm, "segm")}
    assert 0.05 < got["bbox"][0] < 0.95 and got["bbox"] != got["segm"]
    for path, kind in ((bbox, "bbox"), (segm, "segm")):
        entries, kinds = read_results([path], source)
        assert kinds == (kind,) and numbers(source, entries, kinds) == {kind: got[kind]}


def test_boxes_and_masks_in_one_file(tmp_path):
    """As Detectron2 writes them. The size of a mask is its own, not that of the box beside it."""
    truth, bbox, segm = make_set(tmp_path)
    rows = [{**s, **b} for s, b in zip(json.loads(segm.read_text()), json.loads(bbox.read_text()))]
    (tmp_path / "both.json").write_text(json.dumps(rows))
    source = open_source(f"coco:{truth}")
    entries, kinds = read_results([tmp_path / "both.json"], source)
    assert numbers(source, entries, kinds) == {"bbox": direct(truth, bbox, "bbox"), "segm": direct(truth, segm, "segm")}
    with pytest.raises(DataError, match="segm.json holds masks, as .*both.json does"):
        read_results([tmp_path / "both.json", segm], source)


def test_a_part_of_a_set(tmp_path):
    truth, bbox, _ = make_set(tmp_path)
    part = Subset(open_source(f"coco:{truth}"), [2, 0])
    rows = [row for row in json.loads(bbox.read_text()) if row["image_id"] in (42, 1000)]
    (tmp_path / "part.json").write_text(json.dumps(rows))
    content = json.loads(truth.read_text())
    content["images"] = [image for image in content["images"] if image["id"] in (42, 1000)]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in (42, 1000)]
    (tmp_path / "small.json").write_text(json.dumps(content))
    entries, kinds = read_results([tmp_path / "part.json"], part)
    assert numbers(part, entries, kinds)["bbox"] == direct(tmp_path / "small.json", tmp_path / "part.json", "bbox")
    with pytest.raises(DataError, match="is of the image 9, which the data set does not have"):
        read_results([bbox], part)


def test_an_area_that_is_missing_is_the_masks(tmp_path):
    truth, _, _ = make_set(tmp_path, area=False)
    (tmp_path / "with").mkdir()
    entries, exact = (read_truth(open_source(f"coco:{path}")) for path in (truth, make_set(tmp_path / "with")[0]))
    ratio = [a["area"] / b["area"] for a, b in zip(entries.truths, exact.truths)]
    # crowds and run lengths are exact, one of six areas was written 1.3 times too large, polygons round otherwise than pixels do
    assert np.allclose(ratio[4::6], 1) and np.allclose(ratio[5::6], 1) and np.allclose(ratio[1::6], 1 / 1.3, rtol=0.03)


class Finder:
    """A model that finds what the result files of make_set hold, in 91-class labels: label k is category k."""

    class_names = tuple(f"kind {k}" if k else "background" for k in range(91))

    def __init__(self, truth, bbox, segm, with_masks=True):
        images = {image["id"]: (image["height"], image["width"]) for image in json.loads(truth.read_text())["images"]}
        self.with_masks, self.answers = with_masks, {}
        rows = list(zip(json.loads(bbox.read_text()), json.loads(segm.read_text())))
        for image_id, (height, width) in images.items():
            mine = [(b, s) for b, s in rows if b["image_id"] == image_id]
            boxes = np.array([[*b["bbox"][:2], b["bbox"][0] + b["bbox"][2], b["bbox"][1] + b["bbox"][3]] for b, _ in mine], np.float32)
            masks = [rle.decode(s["segmentation"]).astype(bool) for _, s in mine]
            self.answers[height, width] = SimpleNamespace(
                boxes=boxes.reshape(-1, 4), labels=np.array([b["category_id"] for b, _ in mine], np.int64),
                scores=np.array([b["score"] for b, _ in mine], np.float32),
                masks=np.array(masks).reshape(-1, height, width) if with_masks else None)

    def predict(self, image):
        return self.answers[image.shape[:2]]


def test_what_a_model_finds_is_written_with_the_ids_of_the_data_set(tmp_path):
    """Boxes as float32 are off by 1e-6 and then rounded to what they were: the files that come out hold what went in."""
    truth, bbox, segm = make_set(tmp_path)
    for (height, width), image_id in zip(SIZES, IMAGE_IDS):
        save_image(tmp_path / f"{image_id}.png", np.zeros((height, width, 3), np.uint8))
    source = open_source(f"coco:{truth}")
    entries = collect(Finder(truth, bbox, segm), source, progress=False)
    paths = write_results(tmp_path / "new" / "folder", entries, source)
    assert [path.name for path in paths] == ["bbox_results.json", "segm_results.json"]
    for path, original in zip(paths, (bbox, segm)):
        rows, expected = json.loads(path.read_text()), json.loads(original.read_text())
        assert len(rows) == len(expected) > 15
        order = {number: n for n, number in enumerate(IMAGE_IDS)}
        assert sorted(rows, key=lambda r: order[r["image_id"]]) == sorted(expected, key=lambda r: order[r["image_id"]])
        assert all(list(row) == list(other) for row, other in zip(rows, [{k: 0 for k in ("image_id", "category_id", "bbox", "score")}] * 3)
                   ) or path == paths[1]
    # measured at once, with the file's own areas, as pycocotools measures the files
    metrics = numbers(source, entries, entries.kinds)
    assert metrics["segm"] == pytest.approx(direct(truth, segm, "segm"), abs=1e-12)
    assert metrics["bbox"] == pytest.approx(direct(truth, bbox, "bbox"), abs=1e-12)


def test_without_masks_there_is_one_file(tmp_path):
    truth, bbox, segm = make_set(tmp_path)
    for (height, width), image_id in zip(SIZES, IMAGE_IDS):
        save_image(tmp_path / f"{image_id}.png", np.zeros((height, width, 3), np.uint8))
    source = open_source(f"coco:{truth}")
    entries = collect(Finder(truth, bbox, segm, with_masks=False), source, progress=False)
    assert entries.kinds == ("bbox",) and len(write_results(tmp_path / "out", entries, source)) == 1


def test_a_source_without_a_json(tmp_path):
    """Shapes: labels are the category ids, the scene's number is the image id, the truth comes from the targets."""
    source = open_source("shapes:5")
    rows = []
    for i in range(5):
        target = source[i][1]
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist()):
            rows.append({"image_id": i, "category_id": label, "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]], "score": 0.5})
    (tmp_path / "found.json").write_text(json.dumps(rows))
    entries, kinds = read_results([tmp_path / "found.json"], source)
    assert numbers(source, entries, kinds)["bbox"][0] == pytest.approx(1, abs=1e-12)


def change(**values):
    return lambda rows: [{**rows[0], **values}, *rows[1:]]


WHOLE = {"size": [60, 80], "counts": [0, 4800]}


@pytest.mark.parametrize("kind, spoil, message", [
    ("bbox", lambda rows: {"results": rows}, "bbox.json holds dict .*; a result file is a list of objects"),
    ("bbox", lambda rows: [*rows, 3], r"bbox.json: entry \d+: is int 3; an object"),
    ("bbox", lambda rows: [{k: v for k, v in rows[0].items() if k != "score"}], "entry 0: the key 'score' is missing"),
    ("bbox", change(score=float("nan")), "entry 0: has the score nan; a finite number"),
    ("bbox", change(score=float("inf")), "entry 0: has the score inf"),
    ("bbox", change(score="high"), "entry 0: 'score' is str 'high'; a number"),
    ("bbox", change(image_id=43), "entry 0: is of the image 43, which the data set does not have"),
    ("bbox", change(category_id=1), "entry 0: is of the category 1, which the data set does not have"),
    ("bbox", change(category_id=0), "entry 0: is of the category 0"),
    ("bbox", change(bbox=[1, 2, 3]), "entry 0: 'bbox' is list .*; a list of four numbers"),
    ("bbox", change(bbox=[1, 2, -3, 4]), "entry 0: has the box x, y, width, height = .*sides of at least 0"),
    ("bbox", change(bbox=[1, float("nan"), 3, 4]), "entry 0: has the box"),
    ("segm", change(image_id=42, segmentation={**WHOLE, "size": [80, 60]}), r"entry 0: the run lengths are for the size list \[80, 60\]"),
    ("segm", change(image_id=42, segmentation={**WHOLE, "counts": [0, 4801]}), "entry 0: the run lengths cover 4801 pixels"),
    ("segm", change(image_id=42, segmentation={**WHOLE, "counts": "not run lengths"}), "entry 0: the run lengths are str"),
    ("segm", change(segmentation=[[1, 2, 3, 4, 5, 6]]), "entry 0: 'segmentation' is list .*; an object with size and counts"),
    ("segm", lambda rows: [{k: v for k, v in row.items() if k != "segmentation"} | {"bbox": [1, 2, 3, 4]} for row in rows],
     "segm.json holds boxes, as .*bbox.json does; give one file of each kind")])
def test_a_file_that_is_wrong_is_one_sentence(tmp_path, kind, spoil, message):
    truth, bbox, segm = make_set(tmp_path)
    path = {"bbox": bbox, "segm": segm}[kind]
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message) as error:
        read_results([bbox, segm], open_source(f"coco:{truth}"))
    assert str(error.value).startswith(str(path)) and "data check" not in str(error.value)


def test_files_that_are_no_json(tmp_path):
    truth, bbox, _ = make_set(tmp_path)
    source = open_source(f"coco:{truth}")
    with pytest.raises(DataError, match="absent.json: cannot be read"):
        read_results([tmp_path / "absent.json"], source)
    bbox.write_text('[{"image_id": 1,')
    with pytest.raises(DataError, match="bbox.json: is not JSON"):
        read_results([bbox], source)


def test_whole_run_lengths_and_empty_lists_will_do(tmp_path):
    truth, bbox, segm = make_set(tmp_path)
    source = open_source(f"coco:{truth}")
    row = json.loads(segm.read_text())[0]
    segm.write_text(json.dumps([{**row, "image_id": 42, "segmentation": WHOLE}]))
    bbox.write_text("[]")
    entries, kinds = read_results([bbox, segm], source)
    assert kinds == ("bbox", "segm") and entries.found[0]["area"] == 4800
    assert numbers(source, entries, kinds)["bbox"][0] == 0


def test_masks_where_the_data_set_has_none(tmp_path):
    truth, bbox, segm = make_set(tmp_path)
    content = json.loads(truth.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    truth.write_text(json.dumps(content))
    source = open_source(f"coco:{truth}")
    assert read_results([bbox], source)[1] == ("bbox",)
    with pytest.raises(DataError, match="segm.json holds masks, but the data set has none"):
        read_results([bbox, segm], source)


@pytest.mark.parametrize("segmentation, message", [
    (["nonsense"], "a polygon is str"), ([[1, 2, 3, 4]], "a polygon has 2 points"),
    ({"size": [60, 80], "counts": [3, 5]}, "the run lengths cover 8 pixels, the image has 4800")])  # pycocotools would not end here
def test_a_truth_that_is_wrong(tmp_path, segmentation, message):
    truth, _, segm = make_set(tmp_path)
    content = json.loads(truth.read_text())
    content["annotations"][2]["segmentation"] = segmentation
    truth.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"truth.json: annotations\[2\] \(id 3\): {message}"):
        read_results([segm], open_source(f"coco:{truth}"))


PARITY = Path(os.environ.get("NPRCNN_DATA", "")) / "coco_eval_parity"
PUBLISHED = {  # cocodataset/cocoapi, results/val2014_fake_eval_res.txt
    "bbox": [.505, .697, .573, .586, .519, .501, .387, .594, .595, .640, .566, .564],
    "segm": [.320, .562, .299, .387, .310, .327, .268, .415, .417, .469, .377, .381]}


@pytest.mark.skipif(not (os.environ.get("NPRCNN_DATA") and PARITY.is_dir()),
                    reason="coco_eval_parity: set NPRCNN_DATA to the folder of real data sets")
def test_cocos_published_numbers():
    source = open_source(f"coco:{PARITY / 'instances_val2014_100.json'}")
    files = [PARITY / f"instances_val2014_fake{kind}100_results.json" for kind in ("bbox", "segm")]
    entries, kinds = read_results(files, source)
    got = numbers(source, entries, kinds)
    assert {kind: [round(v, 3) for v in values] for kind, values in got.items()} == PUBLISHED


def test_measuring_files_decodes_no_mask(tmp_path, monkeypatch):
    """Sizes, runs and points are checked as they are written."""
    truth, boxes, segm = make_set(tmp_path)
    monkeypatch.setattr(rle, "decode", lambda packed: pytest.fail("a mask was decoded"))
    entries, kinds = read_results([boxes, segm], open_source(f"coco:{truth}"))
    assert kinds == ("bbox", "segm") and len(entries.truths) == 24
    coco_metrics(entries.truths, entries.found, entries.sizes, ("background", "a", "b", "c"), kinds)
