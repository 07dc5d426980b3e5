"""Stages beside stages: a planted difference is found where it was planted."""

import numpy as np
import pytest
from reference import seeded
from small_models import small_model

import nprcnn
from nprcnn.cli import main
from nprcnn.compare import (FED_BY, ROWS, compare_traces, differing_parameters, explain, first_difference, format_rows, pair_rows,
                            relative_error)
from nprcnn.errors import DataError
from nprcnn.stage_files import holds_stages, load_stages, save_stages
from nprcnn.trace import NAMES, OTHER_NAMES

IMAGES = seeded.scene()[0]


def traced(model, images=IMAGES[0], dtype=np.float64):
    trace = nprcnn.Trace()
    model.astype(dtype).predict(images, trace=trace)
    return trace


@pytest.fixture(scope="module")
def trace():
    return traced(small_model())


# ---- planted differences: every group of parameters, at the stage that it feeds ----

PLACES = [
    ("backbone.body.conv1.weight", "backbone.stem"), ("backbone.body.bn1.running_var", "backbone.stem"),
    ("backbone.body.layer1.0.conv1.weight", "backbone.layer1"), ("backbone.body.layer2.0.downsample.0.weight", "backbone.layer2"),
    ("backbone.body.layer3.0.bn2.bias", "backbone.layer3"), ("backbone.body.layer4.0.conv2.weight", "backbone.layer4"),
    ("backbone.fpn.inner_blocks.3.0.weight", "fpn.p2"),  # the coarsest level goes down into all others, and P2 is recorded first
    ("backbone.fpn.layer_blocks.0.0.weight", "fpn.p2"), ("backbone.fpn.layer_blocks.2.1.bias", "fpn.p4"),
    ("backbone.fpn.layer_blocks.3.0.weight", "fpn.p5"),
    ("rpn.head.conv.0.0.weight", "rpn.logits.p2"), ("rpn.head.cls_logits.bias", "rpn.logits.p2"),
    ("rpn.head.bbox_pred.weight", "rpn.deltas.p2"),
    ("roi_heads.box_head.fc6.weight", "roi_heads.box_hidden"), ("roi_heads.box_head.fc7.bias", "roi_heads.box_hidden"),
    ("roi_heads.box_predictor.cls_score.weight", "roi_heads.class_logits"),
    ("roi_heads.box_predictor.bbox_pred.bias", "roi_heads.box_deltas"),
    ("roi_heads.mask_head.1.0.weight", "roi_heads.mask_hidden"),
    ("roi_heads.mask_predictor.conv5_mask.weight", "roi_heads.mask_logits"),
    ("roi_heads.mask_predictor.mask_fcn_logits.bias", "roi_heads.mask_logits"),
]


@pytest.mark.parametrize("parameter, stage", PLACES)
def test_a_planted_difference_is_found_at_its_stage(trace, parameter, stage):
    """One tensor is 1.1 times what it should be, in the model that is looked at."""
    reference, model = small_model(), small_model()
    tensor = dict(model.named_tensors())[parameter]
    tensor.data = tensor.data * 1.1
    rows = compare_traces(traced(model), trace)
    assert [row.name for row in rows] == list(trace)
    first = first_difference(rows)
    assert first.name == stage and first.error > 1e-4
    assert all(row.error == 0 for row in rows[:rows.index(first)])  # the same program on the same numbers
    (found, error), = differing_parameters(model.state_dict(), reference.state_dict(), stage)
    assert found == parameter and error == pytest.approx(0.1)
    text = explain(rows, model, reference)
    assert f"part at {stage}" in text and f"{parameter} differs" in text and "1.0e-01" in text
    marked, = (line for line in format_rows(rows).splitlines() if "here they part" in line)
    assert marked.startswith(stage + " ")


@pytest.mark.parametrize("setting, value, stage", [
    ("image_mean", (0.4, 0.456, 0.406), "transform.batch"), ("min_size", 80, "transform.batch"),
    ("rpn_nms_thresh", 0.5, "rpn.proposals"), ("rpn_pre_nms_top_n_test", 50, "rpn.proposals_before_nms"),
    ("canonical_size", 100, "roi_heads.levels"), ("box_nms_thresh", 0.1, "detections.boxes"),
])
def test_a_planted_setting_is_found_at_its_stage(trace, setting, value, stage):
    reference, model = small_model(), small_model()
    setattr(model, setting, value)
    rows = compare_traces(traced(model), trace)
    assert first_difference(rows).name == stage
    assert "No parameter that feeds it differs" in explain(rows, model, reference)


def test_another_eps_is_named():
    a, b = small_model(norm="frozen"), small_model(norm="frozen")
    a.backbone.body.bn1.eps = 0.1
    rows = compare_traces(traced(a), traced(b))
    assert first_difference(rows).name == "backbone.stem"
    assert "eps is [1e-05, 0.1] in A and [1e-05] in B" in explain(rows, a, b)


def test_anchors_are_compared(trace):
    model = small_model()
    model.anchor_generator.cells[1] = model.anchor_generator.cells[1] + 1
    rows = compare_traces(traced(model), trace)
    assert first_difference(rows).name == "rpn.anchors"


# ---- rounding is no difference ----

@pytest.mark.parametrize("images", [IMAGES[0], IMAGES])
def test_float32_agrees_with_float64(images):
    """Measured: up to 4e-5, and 3e-4 in the probabilities of the masks: this model's features are steep, and its boxes are rounded."""
    rows = compare_traces(traced(small_model(), images, np.float32), traced(small_model(), images), tolerance=1e-3)
    assert first_difference(rows) is None
    assert all(0 <= row.error < 1e-4 for row in rows if row.name != "roi_heads.mask_probabilities")
    assert max(row.error for row in rows) > 1e-8  # they were computed in two precisions
    assert explain(rows).startswith(f"All {len(rows)} stages agree")


# ---- decisions ----

def shuffled(trace, order):
    """The trace of a system that keeps the same proposals in another order."""
    other = dict(trace.values)
    for name in ("rpn.proposals", *ROWS["rpn.proposals"]):
        value = trace[name]
        other[name] = [value[0][order]] if isinstance(value, list) else value[order]
    return other


def test_the_same_boxes_in_another_order_are_the_same(trace):
    order = np.random.default_rng(0).permutation(len(trace["rpn.proposals"][0]))
    rows = compare_traces(shuffled(trace, order), trace)
    assert first_difference(rows) is None and all(row.error == 0 for row in rows)
    notes = {row.name: row.note for row in rows}
    assert notes["rpn.proposals"] == "the same boxes in another order" and notes["roi_heads.class_logits"] == "in the other's order"


def test_after_the_boxes_part_the_common_ones_are_compared(trace):
    count = len(trace["rpn.proposals"][0])
    rows = compare_traces(shuffled(trace, np.arange(count - 3)[::-1]), trace)
    first = first_difference(rows)
    assert first.name == "rpn.proposals" and first.note == "0 boxes only in A, 3 only in B"
    later = {row.name: row for row in rows[rows.index(first) + 1:]}
    for name in ROWS["rpn.proposals"]:
        assert not later[name].parts and later[name].note == f"on the {count - 3} boxes that both have"
    # and a wrong number in a common row is still seen
    other = shuffled(trace, np.arange(count - 3)[::-1])
    other["roi_heads.class_logits"][0, 0] += 1
    row, = (row for row in compare_traces(other, trace) if row.name == "roi_heads.class_logits")
    assert row.parts


def test_no_detections_in_one_of_them(trace):
    model = small_model()
    model.box_score_thresh = 1.0
    rows = compare_traces(traced(model), trace)
    first = first_difference(rows)
    assert first.name == "detections.boxes" and np.isinf(first.error)
    assert f"0 boxes only in A, {len(trace['detections.boxes'][0])} only in B" == first.note
    assert rows[-1].name == "roi_heads.mask_probabilities" and rows[-1].note == "not compared: no box in common"
    both = compare_traces(traced(model), traced(model))
    assert first_difference(both) is None


def test_several_images_whose_boxes_part():
    """Which rows of the joint arrays belong together is not known then, and the table says so."""
    model = small_model()
    model.rpn_nms_thresh = 0.5
    rows = {row.name: row for row in compare_traces(traced(model, IMAGES), traced(small_model(), IMAGES))}
    assert rows["rpn.proposals"].parts and "only in B" in rows["rpn.proposals"].note
    assert "known for one image only" in rows["roi_heads.box_features"].note
    assert not rows["roi_heads.levels"].parts  # a list, with an array an image


def test_pairing():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 20, 20]], float)
    i, j = pair_rows(boxes, boxes[::-1], 0.1)
    assert i.tolist() == [0, 1, 2] and j.tolist() == [1, 2, 0]  # two equal boxes, each paired once
    i, j = pair_rows(boxes + 0.05, boxes[[2, 0]], 0.1)
    assert i.tolist() == [0, 2] and j.tolist() == [1, 0]
    i, j = pair_rows(boxes[:2], boxes[:2], 0.1, np.array([.9, .5]), np.array([.5, .9]))
    assert (i.tolist(), j.tolist()) == ([0, 1], [0, 1])  # where everything is in its place, scores are not looked at
    i, j = pair_rows(boxes, boxes[[0, 2, 1]], 0.1, np.array([.9, .5, .1]), np.array([.5, .1, .9]))
    assert i.tolist() == [0, 1, 2] and j.tolist() == [2, 0, 1]  # of two equal boxes, the one with the nearest score
    assert [len(v) for v in pair_rows(boxes[:0], boxes, 0.1)] == [len(v) for v in pair_rows(boxes, boxes[:0], 0.1)] == [0, 0]


# ---- numbers ----

def test_relative_error():
    assert relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert relative_error(np.array([0.5]), np.array([0.0])) == 0.5 and relative_error(np.zeros(0), np.zeros(0)) == 0
    assert np.isnan(relative_error(np.array([np.nan]), np.array([1.0])))


def test_nan_parts(trace):
    other = {**trace.values, "fpn.p3": trace["fpn.p3"] * np.nan}
    assert first_difference(compare_traces(other, trace)).name == "fpn.p3"


def test_shapes_that_differ_part(trace):
    other = {**trace.values, "rpn.anchors": trace["rpn.anchors"][1:]}
    first = first_difference(compare_traces(other, trace))
    assert first.name == "rpn.anchors" and np.isinf(first.error) and "in A" in first.note


def test_integers_are_counted(trace):
    levels = trace["roi_heads.levels"][0].copy()
    levels[:2] += 1
    first = first_difference(compare_traces({**trace.values, "roi_heads.levels": [levels]}, trace))
    assert first.name == "roi_heads.levels" and first.note == f"2 of {len(levels)} integers differ"


def test_nothing_in_common(trace):
    with pytest.raises(DataError, match="no stage in common"):
        compare_traces({"a": np.zeros(3)}, trace)


def test_every_stage_and_parameter_has_its_place(trace):
    stages = {**NAMES, **OTHER_NAMES}
    assert set(FED_BY) <= set(stages) and {name for names in ROWS.values() for name in names} | set(ROWS) <= set(stages)
    for model in (small_model(), nprcnn.maskrcnn_tiny(width=4, kind="c4"), nprcnn.maskrcnn_vgg16(width=8, box_hidden=16)):
        for name in model.state_dict():
            assert any(name.startswith(prefixes) for prefixes in FED_BY.values()), name


# ---- files and the command ----

def test_stages_in_a_file(trace, tmp_path):
    save_stages(trace, tmp_path / "stages.npz")
    assert holds_stages(tmp_path / "stages.npz")
    stages = load_stages(tmp_path / "stages.npz")
    assert set(stages) == set(trace) and isinstance(stages["rpn.proposals"], list)
    rows = compare_traces(trace, stages)
    assert len(rows) == len(trace) and all(row.error == 0 and not row.parts for row in rows)
    np.savez(tmp_path / "weights.npz", **{"backbone.body.conv1.weight": np.zeros(3)})
    assert not holds_stages(tmp_path / "weights.npz") and not holds_stages("shapes")
    with pytest.raises(DataError, match="weights.npz holds no stage of a model"):
        load_stages(tmp_path / "weights.npz")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A narrow model's weights, and the same with one tensor changed."""
    folder = tmp_path_factory.mktemp("compare")
    model = nprcnn.maskrcnn_tiny(width=4, fpn_channels=4, box_hidden=8, mask_channels=(4,))
    nprcnn.save_weights(model, folder / "a.safetensors")
    model.roi_heads.box_head.fc7.weight.data[0] += 1
    nprcnn.save_weights(model, folder / "b.safetensors")
    return folder


def test_a_missing_file_is_named_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "absent.npz", "shapes"]) == 2
    assert capsys.readouterr().err.startswith("nprcnn compare: absent.npz: there is no such file")


def test_the_command(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert main(["compare", "a.safetensors", "a.safetensors", "--dtype", "float64"]) == 0
    assert "stages agree" in capsys.readouterr().out
    assert main(["compare", "a.safetensors", "b.safetensors"]) == 1
    printed = capsys.readouterr().out
    assert "part at roi_heads.box_hidden" in printed and "roi_heads.box_head.fc7.weight differs" in printed
    assert main(["compare", "a.safetensors", "--save", "stages.npz"]) == 0
    assert main(["compare", "a.safetensors", "stages.npz"]) == 0
    assert "stages in a file" in capsys.readouterr().out
    assert main(["compare", "b.safetensors", "stages.npz"]) == 1
    assert main(["compare", "a.safetensors", "stages.npz", "--set", "rpn_nms_thresh=.3"]) == 1
    assert "part at rpn.proposals;" in capsys.readouterr().out
    assert main(["compare", "b.safetensors", "stages.npz", "--tolerance", "1e9"]) == 0
