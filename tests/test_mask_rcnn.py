"""The whole model: torchvision's numbers, every gradient, and what must hold for any input."""

import numpy as np
import pytest
from reference import seeded
from small_models import (REFERENCE, derivative_errors, gradient_dots, small_model, snapshot, tiny_image_model,
                          unit_directions)

import nprcnn
from nprcnn.data.shapes import Shapes
from nprcnn.errors import DataError
from nprcnn.models.decisions import LOSSES, Decisions
from nprcnn.ops.boxes import clip_boxes, decode_boxes

VARIANTS = {"frozen": dict(norm="frozen", head_norm=None), "batch": dict(norm="batch", head_norm="batch")}


def scenes(count, seed=3):
    """images, targets of the built-in scenes, as lists."""
    images, targets = zip(*(Shapes(count, seed)[i] for i in range(count)))
    return list(images), list(targets)


def without_objects(image):
    return {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64),
            "masks": np.zeros((0, *image.shape[:2]), np.uint8)}


def pass_through(model, images, targets, seed=0, decisions=None):
    """Losses and backward from no gradients."""
    model.zero_grad()
    losses, cache = model.losses(images, targets, np.random.default_rng(seed), decisions)
    model.backward(cache)
    return losses, cache


# ---- against torchvision, in float64: one model of two images of different sizes, all weights seeded ----

@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_all_gradients_are_torchvisions(variant):
    model = small_model(**VARIANTS[variant])
    losses, _ = pass_through(model, *seeded.scene())
    expected = REFERENCE[f"model.{variant}.losses"]
    assert list(losses) == list(LOSSES)
    # PyTorch rounds this one to float32, for its labels are float32; the others agree to 1e-14
    assert losses["loss_objectness"] == pytest.approx(expected[0], rel=1.2e-7)
    np.testing.assert_allclose(list(losses.values())[1:], expected[1:], rtol=1e-12)
    # each parameter's gradient in a random direction; measured: 4e-12
    np.testing.assert_allclose(gradient_dots(model), REFERENCE[f"model.{variant}.dparameters"], rtol=1e-9)
    running = [np.sum(a * seeded.normal("direction " + n, *a.shape)) for n, a in model.state_dict().items() if "running" in n]
    np.testing.assert_allclose(running, REFERENCE[f"model.{variant}.running"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_are_torchvisions(variant):
    images, _ = seeded.scene()
    for k, found in enumerate(small_model(**VARIANTS[variant]).predict(images)):
        np.testing.assert_allclose(found.boxes, REFERENCE[f"model.{variant}.boxes.{k}"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.scores, REFERENCE[f"model.{variant}.scores.{k}"], rtol=1e-9)
        np.testing.assert_array_equal(found.labels, REFERENCE[f"model.{variant}.labels.{k}"])
        # the nearest mask value is 3e-5 from the threshold, so no rounding can flip a pixel
        np.testing.assert_array_equal(np.packbits(found.masks), REFERENCE[f"model.{variant}.masks.{k}"])
        assert found.masks.shape == (len(found.boxes), *images[k].shape[:2]) and found.masks.dtype == bool


# ---- against numerical differences, decisions frozen ----

def test_gradients_of_the_whole_tiny_model():
    """maskrcnn_tiny as it is: five losses, batch norm in training mode, two images with other objects each, 20 unit directions
    over all of its one and a half million parameters.

    Measured: 2e-6 at worst for this seed, 1e-5 for two others, 3e-7 in the median. The step matters: a unit direction moves a
    parameter by 1e-10 here, and yet ten times as much already crosses kinks of the millions of ReLUs for one of three seeds
    (2e-4), while a third of it loses digits to rounding (6e-5).
    """
    model = nprcnn.maskrcnn_tiny(rng=np.random.default_rng(0)).astype(np.float64)
    images, targets = scenes(2)
    losses, cache = pass_through(model, images, targets)
    assert list(losses) == list(LOSSES) and all(value > 0.001 for value in losses.values())
    errors = derivative_errors(model, images, targets, cache, unit_directions(model, 20, seed=0), eps=1e-7)
    assert len(errors) == 20 and max(errors) < 1e-4


def test_gradient_of_every_single_parameter():
    """In the sum over all parameters a small one's error can hide: so one direction for each alone. Measured: 1.5e-6."""
    model = tiny_image_model()
    images, targets = seeded.scene()
    _, cache = pass_through(model, images, targets)
    names = [name for name, _ in model.named_parameters()]
    directions = []
    for i, parameter in enumerate(model.parameters()):
        assert parameter.grad is not None and np.isfinite(parameter.grad).all() and parameter.grad.any(), names[i]
        direction = [None] * len(names)
        direction[i] = seeded.normal("check " + names[i], *parameter.data.shape)
        direction[i] /= np.linalg.norm(direction[i])
        directions.append(direction)
    errors = derivative_errors(model, images, targets, cache, directions, eps=1e-6)
    assert not {name: error for name, error in zip(names, errors) if error > 2e-5}


@pytest.mark.parametrize("options", [
    dict(roi_method="pool"), dict(mask_head="mlp"), dict(mask_loss="softmax"), dict(mask_loss="agnostic"),
    dict(masks=False), dict(norm="frozen", head_norm=None), dict(head_norm=None), dict(head_norm="frozen"),
    dict(mask_head="mlp", mask_loss="agnostic"),
], ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()))
def test_gradients_with_each_option(options):
    """Measured at worst: 3e-7."""
    model = tiny_image_model(**options)
    images, targets = seeded.scene()
    losses, cache = pass_through(model, images, targets)
    assert list(losses) == list(LOSSES[:5 if options.get("masks", True) else 4])
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert max(derivative_errors(model, images, targets, cache, unit_directions(model, 4, seed=0), eps=1e-6)) < 1e-5


@pytest.fixture(scope="module")
def unfrozen():
    model = tiny_image_model()
    losses, _ = pass_through(model, *seeded.scene())
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("trainable", range(6))
def test_frozen_stages_get_no_gradient_and_the_others_the_same(unfrozen, trainable):
    model = tiny_image_model(trainable=trainable)
    losses, _ = pass_through(model, *seeded.scene())
    assert losses == unfrozen[0]
    frozen = tuple(f"backbone.body.{stage}." for stage in ("bn1", "conv1", "layer1", "layer2", "layer3", "layer4")[:6 - trainable])
    frozen = frozen if trainable < 5 else ()
    for name, parameter in model.named_parameters():
        assert parameter.trainable == (not name.startswith(frozen)), name
        if name.startswith(frozen):
            assert parameter.grad is None, name
        else:
            assert parameter.grad.tobytes() == unfrozen[1][name].tobytes(), name


def test_gradients_add_up_over_two_passes():
    model = tiny_image_model()
    _, cache = pass_through(model, *seeded.scene())
    once = [p.grad.copy() for p in model.parameters()]
    model.backward(cache)
    for parameter, grad in zip(model.parameters(), once):
        np.testing.assert_allclose(parameter.grad, 2 * grad, rtol=1e-10, atol=1e-14)  # four levels add up in another order


# ---- decisions ----

def same(a, b):
    return all(x.tobytes() == y.tobytes() for field_a, field_b in zip(a, b) for x, y in zip(field_a, field_b))


def test_decisions_come_from_the_generator_and_can_be_fed_back():
    model = small_model(rpn_batch_size_per_image=32, box_batch_size_per_image=12)
    images, targets = seeded.scene()
    losses, cache = model.losses(images, targets, np.random.default_rng(0))
    again, cache_again = model.losses(images, targets, np.random.default_rng(0))
    assert losses == again and same(cache.decisions, cache_again.decisions)
    other, other_cache = model.losses(images, targets, np.random.default_rng(1))
    assert other != losses and not same(cache.decisions, other_cache.decisions)
    for rng in (np.random.default_rng(1), None):
        fed, fed_cache = model.losses(images, targets, rng, decisions=cache.decisions)
        assert fed == losses and fed_cache.decisions is cache.decisions


def test_what_the_decisions_say():
    model = small_model()
    images, targets = seeded.scene()
    trace = nprcnn.Trace()
    _, cache = model.losses(images, targets, np.random.default_rng(0), trace=trace)
    decisions = cache.decisions
    assert all(len(field) == 2 for field in decisions)
    scale = 96 / 60, 102 / 75  # 75 x 70 becomes 102 x 96
    for i, target in enumerate(targets):
        boxes = target["boxes"] * np.array([96 / 70, 102 / 75] * 2 if i else [scale[0]] * 4)
        d = Decisions(*(field[i] for field in decisions))
        added = np.flatnonzero(d.proposal_anchor == -1)
        np.testing.assert_allclose(d.proposals[added], boxes, rtol=1e-6)  # every target box is a RoI, too
        assert d.labels[added].tolist() == target["labels"].tolist()
        assert d.matched[added].tolist() == list(range(len(boxes)))
        # the others lead back to an anchor, whose deltas make the box
        rest = np.flatnonzero(d.proposal_anchor >= 0)
        anchor = d.proposal_anchor[rest]
        made = decode_boxes(trace["rpn.deltas"][i, anchor], trace["rpn.anchors"][anchor])
        np.testing.assert_array_equal(clip_boxes(made, (102, 96) if i else (96, 128)), d.proposals[rest])
        assert (d.labels[d.labels > 0] == target["labels"][d.matched[d.labels > 0]]).all()
        assert set(d.anchor_positive).isdisjoint(d.anchor_negative)
        side = np.sqrt((d.proposals[:, 2] - d.proposals[:, 0]) * (d.proposals[:, 3] - d.proposals[:, 1]))
        np.testing.assert_array_equal(d.levels, np.clip(np.floor(4 + np.log2(side / 56) + 1e-6), 2, 5) - 2)


# ---- images without objects ----

@pytest.mark.parametrize("empty", [(0,), (0, 1)])
@pytest.mark.parametrize("options", [dict(), dict(masks=False), dict(mask_head="mlp"), dict(mask_loss="softmax"),
                                     dict(roi_method="pool"), dict(norm="frozen", head_norm=None)], ids=str)
def test_images_without_objects_train(empty, options):
    model = tiny_image_model(**options)
    images, targets = seeded.scene()
    targets = [without_objects(images[i]) if i in empty else targets[i] for i in range(2)]
    losses, cache = pass_through(model, images, targets)
    assert np.isfinite(list(losses.values())).all()
    assert losses["loss_objectness"] > 0 and losses["loss_classifier"] > 0
    assert all((label == 0).all() for label in (cache.decisions.labels[i] for i in empty))
    if len(empty) == 2:
        assert losses["loss_rpn_box_reg"] == 0 and losses["loss_box_reg"] == 0 and losses.get("loss_mask", 0) == 0
    else:
        assert losses["loss_box_reg"] > 0 and losses.get("loss_mask", 1) > 0
    assert all(np.isfinite(p.grad).all() for p in model.parameters())
    assert max(derivative_errors(model, images, targets, cache, unit_directions(model, 1, seed=0), eps=1e-6)) < 1e-5


def collapse_proposals(model):
    """Make the RPN's boxes a hundredth of a thousandth of a pixel wide: all are dropped."""
    model.rpn.head.bbox_pred.bias.data = np.full_like(model.rpn.head.bbox_pred.bias.data, -100)
    return model


@pytest.mark.parametrize("options", [dict(), dict(mask_head="mlp"), dict(roi_method="pool"), dict(masks=False)], ids=str)
def test_not_a_single_proposal(options):
    model = collapse_proposals(tiny_image_model(**options))
    images, targets = seeded.scene()
    for found in model.predict(images):
        assert len(found.boxes) == 0 and found.proposal.shape == (0,)
    losses, cache = pass_through(model, images, targets)  # the RoIs are the target boxes alone
    assert [len(labels) for labels in cache.decisions.labels] == [3, 3] and np.isfinite(list(losses.values())).all()
    losses, cache = pass_through(model, images, [without_objects(image) for image in images])
    assert losses["loss_classifier"] == 0 and np.isfinite(list(losses.values())).all()
    assert all(np.isfinite(p.grad).all() for p in model.parameters())


# ---- prediction ----

def test_a_detection_leads_back_to_its_anchor():
    model = small_model()
    images, _ = seeded.scene()
    trace = nprcnn.Trace()
    first_anchor = np.cumsum([0] + [3 * np.prod(trace_shape) for trace_shape in ((32, 32), (16, 16), (8, 8), (4, 4), (2, 2))])
    for i, found in enumerate(model.predict(images, trace=trace)):
        size = ((96, 128), (102, 96))[i]
        proposals, anchors = trace["rpn.proposals"][i], trace["rpn.anchors"]
        assert len(anchors) == first_anchor[-1]
        # anchor -> proposal: decode that anchor's delta
        made = clip_boxes(decode_boxes(trace["rpn.deltas"][i, found.anchor], anchors[found.anchor]), size)
        np.testing.assert_array_equal(made, proposals[found.proposal])
        np.testing.assert_array_equal(1 / (1 + np.exp(-trace["rpn.objectness"][i, found.anchor])),
                                      trace["rpn.proposal_scores"][i][found.proposal])
        # proposal -> box: decode the class's delta; the RoIs of both images stand one after the other
        row = found.proposal + (len(trace["rpn.proposals"][0]) if i else 0)
        deltas = trace["roi_heads.box_deltas"].reshape(-1, 4, 4)[row, found.labels]
        boxes = clip_boxes(decode_boxes(deltas, proposals[found.proposal], (10, 10, 5, 5)), size)
        np.testing.assert_array_equal(boxes, trace["detections.boxes"][i])
        ratio = np.array([80 / 128, 60 / 96] * 2 if i == 0 else [70 / 96, 75 / 102] * 2)
        np.testing.assert_allclose(found.boxes, boxes * ratio, rtol=1e-6)  # the ratios are float32
        logits = trace["roi_heads.class_logits"][row]
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(found.scores, share[np.arange(len(row)), found.labels], rtol=1e-12)
        assert (np.diff(found.scores) <= 0).all() and (found.scores > 0.2).all() and (found.labels > 0).all()
        assert found.level.tolist() == trace["roi_heads.levels"][i][found.proposal].tolist()
        assert set(found.level) <= {2, 3, 4, 5} and len(set(found.level)) > 1


def test_box_weights_are_the_same_in_training_and_prediction():
    """The box head's deltas are in units that bbox_reg_weights choose: four times the weights, four times the deltas."""
    plain, scaled = small_model(), small_model(bbox_reg_weights=(40, 40, 20, 20))
    for name in ("weight", "bias"):
        parameter = getattr(scaled.roi_heads.box_predictor.bbox_pred, name)
        parameter.data = 4 * parameter.data
    images, targets = seeded.scene()
    for a, b in zip(plain.predict(images), scaled.predict(images)):
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-12)
    loss, _ = plain.losses(images, targets, np.random.default_rng(0))
    # smooth L1 is convex and 0 at 0: four times as far off costs more than four times as much
    assert scaled.losses(images, targets, np.random.default_rng(0))[0]["loss_box_reg"] > 4 * loss["loss_box_reg"]


def test_a_batch_of_equal_sizes_is_one_image_after_the_other():
    model = small_model(norm="frozen", head_norm=None)
    images = [image[:60, :70] for image in seeded.scene()[0]]
    for together, image in zip(model.predict(images), images):
        alone = model.predict(image)
        assert len(alone.boxes) == 12
        np.testing.assert_allclose(together.boxes, alone.boxes, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-9)
        for field in ("labels", "masks", "proposal", "level", "anchor"):
            np.testing.assert_array_equal(getattr(together, field), getattr(alone, field))


@pytest.mark.parametrize("options", [dict(), dict(mask_head="mlp"), dict(mask_loss="agnostic"), dict(mask_loss="softmax"),
                                     dict(masks=False)], ids=str)
def test_no_detections(options):
    model = tiny_image_model(box_score_thresh=1.0, **options)
    image = seeded.scene()[0][0]
    found = model.predict(image, trace=nprcnn.Trace())
    assert found.boxes.shape == (0, 4) and found.labels.shape == found.scores.shape == found.level.shape == (0,)
    if model.has_masks:
        assert found.masks.shape == (0, 60, 80) and found.masks.dtype == bool
    else:
        assert found.masks is None


@pytest.mark.parametrize("options", [dict(mask_head="mlp"), dict(mask_loss="agnostic"), dict(mask_loss="softmax"),
                                     dict(roi_method="pool"), dict(masks=False)], ids=str)
def test_prediction_with_each_option(options):
    image = seeded.scene()[0][0]
    plain, found = tiny_image_model().predict(image), tiny_image_model(**options).predict(image)
    assert 0 < len(found.boxes) <= 12 and np.isfinite(found.boxes).all()
    assert (found.masks is None) == (options == dict(masks=False))
    if "roi_method" not in options:  # the boxes do not depend on the mask branch
        np.testing.assert_array_equal(found.boxes, plain.boxes)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (1, 300), (33, 31)])
def test_odd_sizes_pass_through(shape):
    model = nprcnn.maskrcnn_tiny()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = model.predict(image)
    assert found.masks.shape[1:] == shape
    assert (found.boxes >= 0).all() and (found.boxes <= np.array([shape[1], shape[0]] * 2) * (1 + 1e-6)).all()
    target = {"boxes": np.float32([[0, 0, shape[1], shape[0]]]), "labels": np.array([2]), "masks": np.ones((1, *shape), np.uint8)}
    losses, _ = pass_through(model, [image], [target])
    assert np.isfinite(list(losses.values())).all()


def test_float_and_uint8_images_are_the_same_image():
    model = tiny_image_model()
    image = seeded.scene()[0][0]
    a, b = model.predict(image), model.predict(image / 255.0)
    np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-12)
    assert a.masks.tobytes() == b.masks.tobytes()


def test_float32_stays_float32():
    model = small_model(dtype=np.float32)
    images, targets = seeded.scene()
    trace = nprcnn.Trace()
    losses, cache = model.losses(images, targets, np.random.default_rng(0), trace=trace)
    model.backward(cache, trace)
    prediction = nprcnn.Trace()
    found = model.predict(images, trace=prediction)
    assert all(type(loss) is np.float32 for loss in losses.values())
    for name, value in [*trace.values.items(), *trace.grad.items(), *prediction.values.items()]:
        for array in value if isinstance(value, list) else [value]:
            assert array.dtype in (np.float32, np.int64), name
    assert all(p.grad.dtype == np.float32 for p in model.parameters())
    assert {a.dtype for a in model.state_dict().values()} == {np.dtype(np.float32)}
    assert found[0].boxes.dtype == found[0].scores.dtype == np.float32 and found[0].labels.dtype == np.int64


def test_inputs_are_not_written_into():
    model = tiny_image_model()
    images, targets = seeded.scene()
    before = [a.tobytes() for a in images], [{k: v.tobytes() for k, v in t.items()} for t in targets]
    pass_through(model, images, targets)
    model.predict(images)
    assert before == ([a.tobytes() for a in images], [{k: v.tobytes() for k, v in t.items()} for t in targets])


# ---- bad input: one error that names the thing, and nothing has changed ----

@pytest.fixture(scope="module")
def victim():
    return tiny_image_model(dtype=np.float32)


def with_target(**changes):
    def change(images, targets):
        targets[1] = {**targets[1], **changes}
        return images, [{k: v for k, v in t.items() if v is not None} for t in targets]
    return change


def with_image(image):
    return lambda images, targets: ([images[0], image], targets)


BOX = np.float32([[1, 2, 68, 74], [30, 6, 62, 38], [50, 45, 68, 70]])
BAD_IMAGES = {
    "NaN": (np.full((75, 70, 3), np.nan, np.float32), "image 1 holds nan"),
    "infinity": (np.full((75, 70, 3), np.inf), "image 1 holds inf"),
    "zero size": (np.zeros((0, 70, 3), np.uint8), "image 1 has the shape"),
    "grey": (np.zeros((75, 70), np.uint8), "image 1 has the shape"),
    "integers": (np.zeros((75, 70, 3), np.int32), "image 1 is of type int32"),
    "0..255 as float": (np.full((75, 70, 3), 200.0), "divide it by 255"),
    "a list": ([[0]], "image 1 is a list"),
}
BAD_TARGETS = {
    "degenerate": (with_target(boxes=BOX[:, [0, 1, 0, 3]]), "target 1: box 0 .* no area"),
    "upside down": (with_target(boxes=BOX[:, [0, 3, 2, 1]]), "target 1: box 0 .* no area"),
    "a millionth of a pixel": (with_target(boxes=np.array([[50, 10, 50.000001, 20]] * 3)), "target 1: a box is so small"),
    "NaN box": (with_target(boxes=BOX * np.float32(np.nan)), "target 1: box 0"),
    "outside": (with_target(boxes=BOX + 3), "leaves the image"),
    "box shape": (with_target(boxes=BOX[:, :3]), r"shape \(3, 3\)"),
    "label 0": (with_target(labels=np.array([1, 0, 2])), "target 1: label 1 is 0"),
    "label too large": (with_target(labels=np.array([1, 2, 4])), "target 1: label 2 is 4"),
    "label count": (with_target(labels=np.array([1, 2])), "labels have the shape"),
    "no masks": (with_target(masks=None), "target 1 has no 'masks'"),
    "no boxes": (with_target(boxes=None), "target 1 has no 'boxes'"),
    "mask size": (with_target(masks=np.zeros((3, 70, 75), np.uint8)), "masks have the shape"),
    "mask values": (with_target(masks=np.full((3, 75, 70), 255, np.uint8)), "mask 0 holds the value 255"),
    "too few targets": (lambda images, targets: (images, targets[:1]), "2 images and 1 targets"),
    "no images": (lambda images, targets: ([], []), "list of images is empty"),
    **{name: (with_image(image), message) for name, (image, message) in BAD_IMAGES.items()},
}


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_bad_training_input_is_named_and_changes_nothing(victim, name):
    change, message = BAD_TARGETS[name]
    before, rng = snapshot(victim), np.random.default_rng(0)
    with pytest.raises(DataError, match=message):
        victim.losses(*change(*seeded.scene()), rng)
    assert snapshot(victim) == before
    assert all(p.grad is None for p in victim.parameters())
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_to_predict_are_named(victim, name):
    image, message = BAD_IMAGES[name]
    before = snapshot(victim)
    with pytest.raises(DataError, match=message):
        victim.predict([seeded.scene()[0][0], image])
    with pytest.raises(DataError, match="list of images is empty"):
        victim.predict([])
    assert snapshot(victim) == before


def test_faster_rcnn_needs_no_masks():
    model = tiny_image_model(masks=False)
    images, targets = with_target(masks=None)(*seeded.scene())
    losses, _ = pass_through(model, images, targets)
    assert list(losses) == list(LOSSES[:4]) and not model.has_masks
    no_masks = [{**target, "masks": None} for target in targets]
    assert model.losses(images, no_masks, np.random.default_rng(0))[0] == losses


def test_min_size_train_is_the_size_in_losses_and_not_in_predict():
    image, target = Shapes(1, 0, size=(64, 96))[0]
    model = nprcnn.maskrcnn_tiny(width=4, fpn_channels=8, min_size=96, min_size_train=64)
    seen, trained = nprcnn.Trace(), nprcnn.Trace()
    model.predict(image, trace=seen)
    model.losses([image], [target], np.random.default_rng(0), trace=trained)
    assert seen["transform.batch"].shape == (1, 3, 96, 160) and trained["transform.batch"].shape == (1, 3, 64, 96)
