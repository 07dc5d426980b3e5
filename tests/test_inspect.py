"""What Python prepares for the page of `nprcnn inspect`."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from reference import seeded
from small_models import one_map, small_model, snapshot, tiny_image_model

import nprcnn
from nprcnn.data.shapes import Shapes
from nprcnn.inspect import page, write_page
from nprcnn.inspect.arrays import Arrays, rounded, shrunk, strongest
from nprcnn.inspect.backward import backward
from nprcnn.inspect.forward import forward
from nprcnn.inspect.lineage import sampling_points
from nprcnn.ops.boxes import box_iou, decode_boxes

MODELS = {
    "tiny": lambda: nprcnn.maskrcnn_tiny(weights="shapes"),
    "no masks": lambda: tiny_image_model(masks=False),
    "c4": lambda: one_map("c4"),
    "dc5": lambda: one_map("dc5"),
    "vgg pool": lambda: one_map("vgg pool"),
}


def unpacked(arrays, place):
    """What the page makes of a stored array."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(arrays.text())), np.uint8)
    size = int(np.prod(place["shape"]))
    return place["low"] + place["step"] * data[place["at"]:place["at"] + size].reshape(place["shape"]).astype(float)


def prepared(model, image, target=None):
    trace, arrays = nprcnn.Trace(), Arrays()
    result = model.predict(image, trace=trace)
    return forward(model, image, target, trace, result, arrays), trace, result, arrays


@pytest.fixture(scope="module")
def tiny():
    model = MODELS["tiny"]()
    image, target = Shapes.held_out(21)[20]
    return (model, image, target, *prepared(model, image, target))


def test_arrays_come_back_to_half_a_step():
    rng = np.random.default_rng(0)
    arrays, given = Arrays(), [rng.standard_normal((5, 7)) * 10, np.full((2, 3), 4.5), np.zeros((0, 3)), rng.random((3, 3))]
    places = [arrays.add(a) for a in given[:3]] + [arrays.add(given[3], 0, 1)]
    for place, a in zip(places, given):
        assert place["shape"] == list(a.shape)
        assert np.abs(unpacked(arrays, place) - a).max(initial=0) <= 0.5 * place["step"] * (1 + 1e-9)
    assert places[3]["low"] == 0 and places[3]["step"] == 1 / 255
    assert np.isfinite(unpacked(arrays, arrays.add(np.array([[np.nan, np.inf, -1, 2]])))).all()


def test_numbers_for_json():
    assert rounded(np.float32(1 / 3)) == 0.3333 and rounded(np.array([[123456.0, np.nan]])) == [[123500.0, None]]
    assert rounded((np.int64(7), True, "a")) == [7, True, "a"] and type(rounded(np.int64(7))) is int


def test_shrinking_keeps_the_mean_of_whole_squares():
    x = np.arange(24.0).reshape(1, 4, 6)
    small, factor = shrunk(x, 3)
    assert factor == 2 and small.shape == (1, 2, 3) and small[0, 0, 0] == x[0, :2, :2].mean()
    assert shrunk(x, 6)[1] == 1
    odd, factor = shrunk(np.ones((2, 5, 7)), 4)
    assert factor == 2 and odd.shape == (2, 3, 4) and np.all(odd == 1)
    assert strongest(np.stack([np.zeros((2, 2)), np.eye(2), 3 * np.eye(2)]), 2).tolist() == [2, 1]


def test_a_lineage_is_what_the_trace_says(tiny):
    model, image, target, stages, trace, result, arrays = tiny
    assert len(stages["detections"]) == len(result.boxes) == stages["detectionsFound"]
    for i, d in enumerate(stages["detections"]):
        p, a = result.proposal[i], result.anchor[i]
        np.testing.assert_allclose(d["imageBox"], result.boxes[i], rtol=1e-4)
        np.testing.assert_allclose(d["proposal"]["box"], trace["rpn.proposals"][0][p], rtol=1e-4)
        np.testing.assert_allclose(d["anchor"]["box"], trace["rpn.anchors"][a])
        # the deltas lead from box to box (boxes inside of the image, which are not clipped)
        moved = decode_boxes(np.array(d["proposal"]["deltas"]), np.array(d["anchor"]["box"]))
        np.testing.assert_allclose(np.clip(moved, 0, 128), d["proposal"]["box"], atol=0.05)
        moved = decode_boxes(np.array(d["refined"]["deltas"]), np.array(d["proposal"]["box"]), model.bbox_reg_weights)
        np.testing.assert_allclose(np.clip(moved, 0, 128), d["box"], atol=0.05)
        # the cell of the anchor, and its objectness there
        anchor = d["anchor"]
        level = trace[f"rpn.logits.{anchor['level']}"][0]
        assert level.shape[1:] == (anchor["rows"], anchor["columns"])
        assert level[anchor["which"], anchor["row"], anchor["column"]] == pytest.approx(anchor["logit"], rel=1e-3)
        own = unpacked(arrays, stages["objectness"][anchor["key"]])
        assert own[anchor["row"], anchor["column"]] == pytest.approx(anchor["objectness"], abs=0.5 / 255 + 1e-4)
        own_class = next(c for c in d["classes"] if c["label"] == d["label"])
        assert own_class["score"] == pytest.approx(d["score"], abs=1e-4) and d["score"] == pytest.approx(result.scores[i], abs=1e-4)
        assert d["roi"]["level"] == result.level[i]


def test_what_nms_dropped(tiny):
    """Every box that is said to be dropped overlaps the kept one too much, and none of them was kept."""
    model, _, _, stages, trace, _, _ = tiny
    kept = {tuple(box) for box in trace["rpn.proposals"][0].tolist()}
    total = 0
    for d in stages["detections"]:
        box = np.array([d["proposal"]["box"]])
        for other in d["proposal"]["droppedBoxes"]:
            assert box_iou(box, np.array([other]))[0, 0] > model.rpn_nms_thresh - 0.01      # boxes have four digits here
            assert min(np.abs(np.array(other) - k).max() for k in kept) > 1e-3
        assert d["proposal"]["dropped"] >= len(d["proposal"]["droppedBoxes"])
        for other in d["refined"]["droppedBoxes"]:
            assert box_iou(np.array([d["box"]]), np.array([other]))[0, 0] > model.box_nms_thresh - 0.01
        total += d["proposal"]["dropped"]
    # each dropped box overlaps some kept one too much; here almost all kept ones have a detection's proposal among them
    assert total > 0


def test_the_pasted_mask_is_the_detections_mask(tiny):
    _, image, _, stages, _, result, arrays = tiny
    assert stages["masksInPixelsOf"] == [128, 128]
    for i, d in enumerate(stages["detections"]):
        soft = unpacked(arrays, d["pasted"]["data"])
        whole = np.zeros(image.shape[:2])
        whole[d["pasted"]["y"]:d["pasted"]["y"] + soft.shape[0], d["pasted"]["x"]:d["pasted"]["x"] + soft.shape[1]] = soft
        unsure = np.abs(whole - 0.5) <= 0.5 / 255      # the stored value is rounded to a step
        assert np.array_equal((whole >= 0.5)[~unsure], result.masks[i][~unsure])


@pytest.mark.parametrize("kind", ["tiny", "small", "detectron2", "c4"])
def test_the_points_are_where_roi_align_reads(kind):
    """The mean of bilinear readings at the points is the crop."""
    if kind == "tiny":
        model, image = MODELS["tiny"](), Shapes.held_out(1)[0][0]
    else:
        image = seeded.scene()[0][0]
        model = one_map("c4") if kind == "c4" else small_model()
    if kind == "detectron2":
        for features in (model.box_features, model.mask_features):
            features.aligned, features.sampling_ratio = True, 0
    stages, trace, result, arrays = prepared(model, image)
    assert stages["detections"]
    for i, d in enumerate(stages["detections"][:5]):
        crop = d["roi"]
        values = trace[crop["map"]][0].astype(float)
        points = sampling_points(trace["rpn.proposals"][0][result.proposal[i]].astype(float), crop["stride"], model.box_features)
        read = bilinear(values, points["ys"], points["xs"])
        bins = crop["size"]
        mean = read.reshape(len(values), bins, len(points["ys"]) // bins, bins, len(points["xs"]) // bins).mean(axis=(2, 4))
        np.testing.assert_allclose(mean, trace["roi_heads.box_features"][result.proposal[i]], atol=1e-5 * np.abs(values).max())
        np.testing.assert_allclose(crop["xs"], points["xs"], rtol=2e-4, atol=1e-6)


def bilinear(values, ys, xs):
    """(C, H, W) at the points ys x xs: 0 more than a cell outside, the border's value within that cell."""
    def weights(points, length):
        inside = (points >= -1) & (points <= length)
        at = np.clip(points, 0, length - 1)
        return np.maximum(1 - np.abs(at[:, None] - np.arange(length)), 0) * inside[:, None]
    return np.einsum("ih,chw,jw->cij", weights(ys, values.shape[1]), values, weights(xs, values.shape[2]))


@pytest.mark.parametrize("kind", ["no masks", "c4", "dc5", "vgg pool"])
def test_pages_of_other_models(kind):
    images, targets = seeded.scene()
    target = {key: value for key, value in targets[0].items() if kind != "no masks" or key != "masks"}
    stages = stages_of(page(MODELS[kind](), images[0], target))
    assert stages["detections"] and stages["backward"]["stages"]
    assert stages["hasMasks"] == (kind != "no masks") == ("mask" in stages["detections"][0])
    assert ("xs" in stages["detections"][0]["roi"]) == (kind != "vgg pool")


def test_the_gradients_are_those_of_a_training_pass(tiny):
    model, image, target, *_ = tiny
    before, arrays = snapshot(model), Arrays()
    found = backward(model, image, target, np.random.default_rng(0), arrays)
    assert snapshot(model) == before                                    # batch norm's running statistics stay
    assert all(p.grad is None or not np.any(p.grad) for p in model.parameters())
    twin, trace = MODELS["tiny"](), nprcnn.Trace()
    losses, cache = twin.losses([image], [target], np.random.default_rng(0), trace=trace)
    twin.backward(cache, trace)
    assert list(found["losses"]) == list(losses)
    for name, value in losses.items():
        assert found["losses"][name] == pytest.approx(float(value), rel=1e-3)
    assert [s["name"] for s in found["stages"]] == [name for name in trace.grad if not name.startswith("losses.")]
    for s in found["stages"]:
        gradient = trace.grad[s["name"]].astype(float)
        assert s["norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
        if s.get("kind") == "map":
            drawn = unpacked(arrays, s["gradient"])
            np.testing.assert_allclose(drawn, np.abs(gradient[0]).sum(axis=0), atol=s["gradient"]["step"])
    # a mask's gradient is (probability - target) / (number of numbers)
    one = found["masks"][0]
    difference = unpacked(arrays, one["mask"]) - unpacked(arrays, one["target"])
    factor = found["positive"] * difference.size
    np.testing.assert_allclose(unpacked(arrays, one["gradient"]) * factor, difference, atol=0.02)


def stages_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1].replace("<\\/", "</"))


def test_the_page_is_one_file_that_needs_nothing(tiny, tmp_path):
    model, image, target, *_ = tiny
    size = write_page(tmp_path / "report.html", model, image, target, title="</script><b>@ARRAYS@ & co", about="</script>")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert size == len(text.encode()) < 3e6
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)[a-z]+:|https?://""", text)
    assert "default-src 'none'" in text and text.count("</script>") == 3 and "<b>" not in text.split("<main>")[0]
    assert not re.search("@(STYLE|SCRIPT|STAGES)@", text)
    assert stages_of(text)["title"] == "</script><b>@ARRAYS@ & co"


def test_a_page_says_what_it_leaves_out():
    model = nprcnn.maskrcnn_tiny(weights="shapes", box_score_thresh=1e-4, box_nms_thresh=0.95)
    image = np.kron(Shapes.held_out(1)[0][0], np.ones((8, 8, 1), np.uint8))      # 1024 x 1024
    stages = stages_of(page(model, image))
    assert len(stages["detections"]) == 40 < stages["detectionsFound"] and stages["image"]["shown"] == [640, 640]
    notes = " ".join(stages["notes"])
    assert f"Of {stages['detectionsFound']} detections the best 40" in notes and "smaller copy" in notes and "no gradients" in notes


def test_nothing_found():
    model = nprcnn.maskrcnn_tiny(weights="shapes", box_score_thresh=0.999999)
    stages = stages_of(page(model, np.full((90, 128, 3), 0.5, np.float32)))
    assert stages["detections"] == [] and stages["maps"] and stages["backward"] is None
