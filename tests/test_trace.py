import numpy as np
import pytest
from reference import seeded
from small_models import one_map, small_model

import nprcnn
from nprcnn.trace import NAMES, OTHER_NAMES, record, record_grad

# Names without a gradient, and why.
NO_GRADIENT = {
    "transform.batch",              # the images are given
    "rpn.anchors",                  # constants
    "rpn.proposals_before_nms",     # the gradient stops at the proposals
    "rpn.scores_before_nms",
    "rpn.proposals",
    "rpn.proposal_anchors",         # integers
    "roi_heads.levels",
    "roi_heads.mask_targets",       # what the masks should be
}
PREDICTION_ONLY = {"rpn.proposal_scores", "detections.boxes", "detections.labels", "detections.scores",
                   "roi_heads.mask_probabilities"}
TRAINING_ONLY = {"roi_heads.mask_targets"} | {name for name in NAMES if name.startswith("losses.")}


def arrays(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]


@pytest.fixture(scope="module")
def traced():
    """model, trace of losses and backward, trace of predict, on two images of different sizes."""
    model = small_model()
    images, targets = seeded.scene()
    training, prediction = nprcnn.Trace(), nprcnn.Trace()
    _, cache = model.losses(images, targets, np.random.default_rng(0), trace=training)
    model.backward(cache, training)
    model.predict(images, trace=prediction)
    return model, training, prediction


def test_a_trace_reads_like_a_dict_and_prints_shapes():
    trace = nprcnn.Trace()
    record(trace, "a", np.zeros((2, 3), np.float32))
    record(trace, "b.c", [np.zeros(4), np.zeros((0, 4), np.int64)])
    record_grad(trace, "a", np.ones((2, 3), np.float32))
    record(None, "a", np.zeros(1))
    record_grad(None, "a", np.zeros(1))
    assert list(trace) == ["a", "b.c"] and len(trace) == 2 and "a" in trace and "c" not in trace
    assert trace["a"].shape == (2, 3)
    assert str(trace) == "a    float32(2, 3)  + gradient\nb.c  [float64(4,), int64(0, 4)]"
    with pytest.raises(KeyError, match="no stage named 'c'; recorded: a, b.c"):
        trace["c"]


def test_every_name_is_documented_and_every_documented_name_is_recorded(traced):
    _, training, prediction = traced
    assert set(training) == set(NAMES) - PREDICTION_ONLY
    assert set(prediction) == set(NAMES) - TRAINING_ONLY
    for trace in (training, prediction):
        for name in trace:
            assert (type(trace[name]) is list) == NAMES[name].startswith("["), name


def test_every_name_but_a_few_has_a_gradient_of_its_own_shape(traced):
    _, training, prediction = traced
    assert set(training.grad) == set(training) - NO_GRADIENT
    for name, gradient in training.grad.items():
        assert gradient.shape == training[name].shape and gradient.dtype == training[name].dtype, name
        assert np.isfinite(gradient).all(), name
        assert np.any(gradient) or name == "rpn.deltas.p6", name  # no object is of the size of P6's anchors
    assert prediction.grad == {}


ONE_MAP = {  # models without a pyramid: the stages of their backbones
    "c4": ["backbone.stem", "backbone.layer1", "backbone.layer2", "backbone.layer3"],
    "dc5": ["backbone.stem", "backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4"],
    "vgg align": [f"backbone.conv{i}" for i in range(1, 6)],
}


@pytest.mark.parametrize("kind", ONE_MAP)
def test_models_with_one_map_record_the_same_names_but_for_the_pyramid(kind):
    model = one_map(kind)
    images, targets = seeded.scene()
    training, prediction = nprcnn.Trace(), nprcnn.Trace()
    losses, cache = model.losses(images, targets, np.random.default_rng(0), trace=training)
    model.backward(cache, training)
    model.predict(images, trace=prediction)
    of_the_pyramid = {name for name in NAMES if name.startswith(("backbone", "fpn")) or name[-2:] in ("p2", "p3", "p4", "p5", "p6")}
    expected = set(NAMES) - of_the_pyramid | set(ONE_MAP[kind]) | {"rpn.logits.single", "rpn.deltas.single"}
    assert set(training) == expected - PREDICTION_ONLY and set(prediction) == expected - TRAINING_ONLY
    assert expected <= {**NAMES, **OTHER_NAMES}.keys()
    assert set(training.grad) == set(training) - NO_GRADIENT
    for name, gradient in training.grad.items():
        assert gradient.shape == training[name].shape and np.isfinite(gradient).all() and np.any(gradient), name
    # the shapes that the texts name
    height, width = training["transform.batch"].shape[2:]
    if kind == "c4":
        assert training["roi_heads.mask_hidden"].shape[2:] == (7, 7) and training["roi_heads.mask_targets"].shape[1:] == (14, 14)
    if kind == "dc5":
        assert training["backbone.layer4"].shape[2:] == (height // 16, width // 16)
    if kind == "vgg align":
        assert [training[n].shape[2] for n in ONE_MAP[kind]] == [height >> i for i in range(5)]
    # a trace changes nothing
    again, _ = one_map(kind).losses(images, targets, np.random.default_rng(0))
    assert again == losses


def test_printing_a_whole_trace(traced):
    _, training, _ = traced
    lines = str(training).splitlines()
    assert len(lines) == len(training)
    assert any(line.startswith("fpn.p2 ") and line.endswith("float64(2, 12, 32, 32)  + gradient") for line in lines)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tracing_changes_no_bit(dtype):
    images, targets = seeded.scene()
    plain, traced = (small_model(dtype=dtype) for _ in range(2))
    trace = nprcnn.Trace()
    losses, cache = plain.losses(images, targets, np.random.default_rng(0))
    plain.backward(cache)
    traced_losses, traced_cache = traced.losses(images, targets, np.random.default_rng(0), trace=trace)
    traced.backward(traced_cache, trace)
    assert losses == traced_losses
    for a, b in zip(plain.parameters(), traced.parameters()):
        assert a.grad.tobytes() == b.grad.tobytes()
    for a, b in zip(plain.predict(images), traced.predict(images, trace=nprcnn.Trace())):
        for field in a._fields:
            assert getattr(a, field).tobytes() == getattr(b, field).tobytes(), field


def test_the_gradients_are_those_of_the_recorded_tensors(traced):
    """Three stages whose gradient can be told from the next one's by hand."""
    model, trace, _ = traced
    heads = model.roi_heads
    np.testing.assert_allclose(trace.grad["roi_heads.box_hidden"],
                               trace.grad["roi_heads.class_logits"] @ heads.box_predictor.cls_score.weight.data
                               + trace.grad["roi_heads.box_deltas"] @ heads.box_predictor.bbox_pred.weight.data,
                               rtol=1e-10, atol=1e-15)
    logits, targets = trace["roi_heads.mask_logits"], trace["roi_heads.mask_targets"]
    at_targets = trace.grad["roi_heads.mask_logits"]
    chosen = np.abs(at_targets).sum((2, 3)).argmax(1)
    own = logits[np.arange(len(logits)), chosen]
    np.testing.assert_allclose(at_targets[np.arange(len(logits)), chosen], (1 / (1 + np.exp(-own)) - targets) / targets.size,
                               rtol=1e-9, atol=1e-15)
    # the flat deltas and those of the levels are the same numbers in another order
    flat = [trace.grad[f"rpn.deltas.{level}"] for level in ("p2", "p3", "p4", "p5", "p6")]
    assert sum(np.abs(d).sum() for d in flat) == pytest.approx(np.abs(trace.grad["rpn.deltas"]).sum(), rel=1e-12)


def test_a_trace_that_is_used_again_holds_the_last_pass(traced):
    model, *_ = traced
    images, _ = seeded.scene()
    trace = nprcnn.Trace()
    model.predict(images, trace=trace)
    model.predict(images[:1], trace=trace)
    assert all(len(trace[name]) == 1 for name in NAMES if NAMES[name].startswith("[") and name in trace)


def test_a_gradient_that_is_not_there(traced):
    trace = traced[1]
    with pytest.raises(KeyError, match="no gradient named 'fpn.p9'; recorded by backward: losses.loss_objectness, "):
        trace.grad["fpn.p9"]
    with pytest.raises(KeyError, match="nothing yet"):
        nprcnn.Trace().grad["fpn.p2"]
