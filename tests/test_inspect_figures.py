"""trace.show and trace.stepper: a figure for every stage."""

import sys

import numpy as np
import pytest
from reference import seeded
from small_models import one_map, small_model

import nprcnn
from nprcnn.inspect import figures, stepper
from nprcnn.trace import NAMES, record


def passes(model):
    """(trace of a training pass with its gradients, trace of a prediction) on two images of different sizes."""
    images, targets = seeded.scene()
    training, prediction = nprcnn.Trace(), nprcnn.Trace()
    _, cache = model.losses(images, targets, np.random.default_rng(0), trace=training)
    model.backward(cache, training)
    model.predict(images, trace=prediction)
    return training, prediction


@pytest.fixture(scope="module")
def traces():
    return passes(small_model())


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


SAME = tuple(f".p{k}" for k in (3, 4, 5, 6)) + (".layer1", ".layer2", ".layer3")      # drawn by the same lines as p2 and layer4


def test_every_stage_has_a_figure(traces):
    training, prediction = traces
    names = [name for name in NAMES if not name.endswith(SAME)]
    for name in names:
        trace = training if name in training else prediction
        assert pixels(trace.show(name, image=1, n=3)).std() > 3, name      # a white page has 0


def test_gradients_have_figures(traces):
    training, _ = traces
    for name in ("roi_heads.mask_logits", "roi_heads.class_logits", "rpn.deltas", "rpn.logits.p2", "fpn.p2", "losses.loss_mask"):
        assert pixels(training.show(name, n=3, gradient=True)).std() > 3, name


def test_other_models():
    training, prediction = passes(one_map("c4"))
    for name in ("rpn.logits.single", "roi_heads.box_features", "roi_heads.mask_hidden", "roi_heads.mask_logits"):
        training.show(name, n=2)
        training.show(name, n=2, gradient=True)
        prediction.show(name, n=2)


def test_each_image_gets_its_own_rows(traces):
    """The rows of RoI stages, of all images one after the other, split where the lists of boxes say."""
    training, prediction = traces
    for trace, name, lengths in ((prediction, "roi_heads.mask_logits", list(map(len, prediction["detections.boxes"]))),
                                 (prediction, "roi_heads.class_logits", list(map(len, prediction["rpn.proposals"]))),
                                 (training, "roi_heads.box_features", list(map(len, training["rpn.proposals"]))),
                                 (training, "roi_heads.mask_targets", [int((labels > 0).sum()) for labels in training.labels])):
        parts = [figures.rows_of(trace, name, trace[name], i) for i in (0, 1)]
        assert list(map(len, parts)) == lengths and min(lengths) > 0
        assert np.array_equal(np.concatenate(parts), trace[name])


def test_boxes_are_drawn_on_the_image_that_was_given(traces):
    """Boxes of the network's input are scaled to the image: the largest proposal stays inside of it."""
    training, _ = traces
    for i, image in enumerate(training.images):
        boxes = figures.to_image(training, training["rpn.proposals"][i], i)
        height, width = image.shape[:2]
        assert boxes[:, 2].max() <= width * 1.001 and boxes[:, 3].max() <= height * 1.001
        np.testing.assert_allclose(boxes[:, 0] * training.sizes[i][1] / width, training["rpn.proposals"][i][:, 0], rtol=1e-5, atol=1e-4)
    images, _ = seeded.scene()
    assert all(np.array_equal(a, b) for a, b in zip(training.images, images))


def test_a_trace_without_images_shows_the_input():
    trace = nprcnn.Trace()
    record(trace, "transform.batch", np.zeros((1, 3, 32, 32), np.float32))
    (picture,) = figures.pictures(trace)
    np.testing.assert_allclose(picture[0, 0], [0.485, 0.456, 0.406], atol=1e-6)       # 0 is the mean colour
    trace.show("transform.batch")


def test_unknown_names(traces):
    training, prediction = traces
    with pytest.raises(KeyError, match="no stage named 'rpn.proposal'; close to it: rpn.proposals"):
        prediction.show("rpn.proposal")
    with pytest.raises(KeyError, match="close to it: .*fpn.p2"):
        prediction.show("fpn")
    with pytest.raises(KeyError, match="no stage named 'detections.scores' was recorded, although there is one"):
        training.show("detections.scores")
    with pytest.raises(KeyError, match="no stage named 'xyzzy'; recorded: transform.batch, "):
        training.show("xyzzy")
    with pytest.raises(KeyError, match="nothing is recorded yet"):
        nprcnn.Trace().show("fpn.p2")
    with pytest.raises(KeyError, match="no gradient named 'fpn.p2'; nothing is recorded yet: hand the trace to backward"):
        prediction.show("fpn.p2", gradient=True)
    with pytest.raises(KeyError, match="no gradient named 'rpn.anchors' was recorded, although there is one"):
        training.show("rpn.anchors", gradient=True)


def test_the_sheet_is_small_and_complete(traces):
    training, prediction = traces
    sheet = prediction.stepper(interactive=False)
    html = sheet._repr_html_()
    assert html.count("<img") == len(sheet.names) == len(stepper.SHEET) and len(html) < 300_000
    assert repr(sheet).startswith("12 stages: transform.batch")
    assert training.stepper(["fpn.p2", "fpn.p3"], gradient=True, interactive=False)._repr_html_().count('alt="fpn.p') == 2


def test_without_widgets_it_is_the_sheet(traces, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)        # as if it were not installed
    assert isinstance(traces[1].stepper(), stepper.Sheet)


def test_the_buttons_change_the_picture(traces):
    pytest.importorskip("ipywidgets")
    training, prediction = traces
    box = prediction.stepper(["transform.batch", "fpn.p2", "rpn.proposals"])
    (back, forward, stage, play), picture = box.children[0].children, box.children[1]
    seen = [picture.value]
    assert back.disabled and not forward.disabled
    forward.click()
    seen.append(picture.value)
    assert stage.value == play.value == 1 and not back.disabled and not forward.disabled
    play.value = 2
    seen.append(picture.value)
    assert stage.value == 2 and forward.disabled and len(set(seen)) == 3
    forward.click()                                             # at the end nothing happens
    assert stage.value == 2
    back.click()
    assert stage.value == 1 and picture.value == seen[1]
    stage.value = 0
    assert play.value == 0 and picture.value == seen[0]
    names = training.stepper(gradient=True).children[0].children[2].options
    assert len(names) > 20 and names[0][0].startswith("1 of ")
