"""The models that are not a ResNet-FPN of the first version: v2, C4, dilated C5 and VGG, small and whole."""

import numpy as np
import pytest
from reference import seeded
from small_models import VARIANTS, derivative_errors, fill, gradient_dots, one_map, running_dots, small_model, unit_directions

import nprcnn
from nprcnn.data.shapes import Shapes
from nprcnn.errors import ConfigError
from nprcnn.layers import Parameter
from nprcnn.models.assemble import PYRAMID_SIZES, SINGLE_SIZES, assemble
from nprcnn.models.decisions import LOSSES
from nprcnn.models.resnet import BasicBlock, Bottleneck, Options, ResNet, make_stage, stage_backward, stage_forward
from nprcnn.train import train

# ---- v2, against torchvision in float64 ----

V2 = dict(rpn_convs=2, box_convs=(8, 10))


def test_small_v2s_losses_and_all_gradients_are_torchvisions():
    """Measured: losses 1e-15, gradients 1e-11. The objectness is rounded to float32 by PyTorch, whose labels are float32."""
    model = small_model(**V2)
    losses, cache = model.losses(*seeded.scene(), np.random.default_rng(0))
    model.backward(cache)
    assert list(losses) == list(LOSSES)
    expected = VARIANTS["v2.losses"]
    assert losses["loss_objectness"] == pytest.approx(expected[0], rel=1.2e-7)
    np.testing.assert_allclose(list(losses.values())[1:], expected[1:], rtol=1e-12)
    np.testing.assert_allclose(gradient_dots(model), VARIANTS["v2.dparameters"], rtol=1e-9)
    np.testing.assert_allclose(running_dots(model), VARIANTS["v2.running"], rtol=1e-10, atol=1e-10)


def test_small_v2s_detections_are_torchvisions():
    images, _ = seeded.scene()
    for k, found in enumerate(small_model(**V2).predict(images)):
        np.testing.assert_allclose(found.boxes, VARIANTS[f"v2.boxes.{k}"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.scores, VARIANTS[f"v2.scores.{k}"], rtol=1e-9)
        np.testing.assert_array_equal(found.labels, VARIANTS[f"v2.labels.{k}"])
        # the nearest mask value is 3e-5 from the threshold, so no rounding can flip a pixel
        np.testing.assert_array_equal(np.packbits(found.masks), VARIANTS[f"v2.masks.{k}"])


# ---- one map of stride 16 ----

KINDS = ("c4", "c4 bottleneck", "c4 frozen", "dc5", "vgg align", "vgg pool", "vgg plain")


def pass_through(model, trace=None, seed=0):
    model.zero_grad()
    images, targets = seeded.scene()
    losses, cache = model.losses(images, targets, np.random.default_rng(seed), trace=trace)
    model.backward(cache, trace)
    return losses, cache


@pytest.mark.parametrize("name", KINDS + ("v2",))
def test_gradients_of_the_whole_model(name):
    """Against numerical differences, decisions frozen: four directions over all parameters together, and every parameter of the heads and
    the last stage alone. Measured at worst: 6e-7."""
    model = one_map(name) if name != "v2" else small_model(min_size=64, max_size=96, rpn_batch_size_per_image=64,
                                                          rpn_post_nms_top_n_train=12, box_batch_size_per_image=16, **V2)
    losses, cache = pass_through(model)
    assert list(losses) == list(LOSSES) and all(value > 1e-3 for value in losses.values())
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    directions = list(unit_directions(model, 4, seed=0))
    names = [n for n, _ in model.named_parameters()]
    for i, parameter in enumerate(model.parameters()):
        if names[i].startswith(("rpn", "roi_heads", "backbone.body.layer4")) and parameter.data.ndim > 1:
            alone = [None] * len(names)
            alone[i] = seeded.normal("check " + names[i], *parameter.data.shape)
            alone[i] /= np.linalg.norm(alone[i])
            directions.append(alone)
    assert len(directions) > 10
    assert max(derivative_errors(model, *seeded.scene(), cache, directions, eps=1e-6)) < 1e-5


@pytest.mark.parametrize("options", [dict(mask_head="mlp"), dict(mask_loss="softmax"), dict(mask_loss="agnostic"), dict(masks=False),
                                     dict(aligned=True, sampling_ratio=0), dict(box_convs=(4,)), dict(rpn_convs=2)], ids=str)
def test_options_of_a_model_with_one_map(options):
    model = one_map("dc5", **options)
    losses, cache = pass_through(model)
    assert list(losses) == list(LOSSES[:5 if model.has_masks else 4])
    # of seed 0's directions one has almost no slope with the softmax, and the differences are rounding
    assert max(derivative_errors(model, *seeded.scene(), cache, unit_directions(model, 2, seed=1), eps=1e-6)) < 1e-5


@pytest.mark.parametrize("name", ["c4", "dc5", "vgg align"])
@pytest.mark.parametrize("trainable", [0, 2, 3])
def test_frozen_stages_get_no_gradient_and_the_others_the_same(name, trainable):
    whole, model = one_map(name), one_map(name, trainable)
    losses, _ = pass_through(whole)
    assert pass_through(model)[0] == losses
    stages = [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]
    if name.startswith("vgg"):  # convolution and norm of each stage; ReLU and max-pool count too
        stages = [(f"features.{4 * i}.", f"features.{4 * i + 1}.") for i in range(5)]
    frozen = tuple("backbone.body." + prefix for stage in stages[:5 - trainable] for prefix in stage)
    for (n, p), q in zip(model.named_parameters(), whole.parameters()):
        assert p.trainable == (not n.startswith(frozen)), n
        if n.startswith(frozen):
            assert p.grad is None, n
        else:
            assert p.grad.tobytes() == q.grad.tobytes(), n
    # the C4 models' layer4 is in the head: it always trains, and its parameters come once
    names = [n for n, _ in model.named_parameters()]
    assert len(names) == len(set(names)) and len({id(p) for p in model.parameters()}) == len(names)
    assert any("roi_heads.box_head.layer4" in n for n in names) == (name == "c4")


@pytest.mark.parametrize("name", KINDS)
def test_prediction(name):
    model = one_map(name)
    images, _ = seeded.scene()
    trace = nprcnn.Trace()
    some = 0
    for image, found in zip(images, model.predict(images, trace=trace)):
        assert found.masks.shape == (len(found.boxes), *image.shape[:2]) and found.masks.dtype == bool
        assert np.isfinite(found.boxes).all() and set(found.level) <= {4}
        some += len(found.boxes)
    assert some > 0
    assert trace["roi_heads.mask_logits"].shape[2:] == ((14, 14) if name.startswith("c4") else (28, 28))
    assert trace["roi_heads.box_features"].shape[2:] == ((14, 14) if name.startswith("c4") else (7, 7))
    assert len(trace["rpn.anchors"]) == 9 * 6 * 6  # 96 x 96 pixels, stride 16


@pytest.mark.parametrize("name", KINDS)
def test_float32_stays_float32_and_no_objects_pass(name):
    model = one_map(name, dtype=np.float32)
    images, targets = seeded.scene()
    none = [{"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64),
             "masks": np.zeros((0, *image.shape[:2]), np.uint8)} for image in images]
    for wanted in (targets, none):  # without objects the mask branch has no RoI, of which C4's batch norm could take statistics
        losses, cache = model.losses(images, wanted, np.random.default_rng(0))
        model.backward(cache)
        assert all(type(v) is np.float32 and np.isfinite(v) for v in losses.values())
        assert (losses["loss_mask"] == 0) == (wanted is none)
    assert all(p.grad.dtype == np.float32 and np.isfinite(p.grad).all() for p in model.parameters())
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in model.state_dict().values())


def test_no_detections():
    for name in KINDS:
        found = one_map(name, box_score_thresh=1.0).predict(seeded.scene()[0][0])
        assert found.boxes.shape == (0, 4) and found.masks.shape == (0, 60, 80)


# ---- the dilated stage ----

def test_dilated_layer4_is_torchs():
    """torchvision's bottlenecks, both dilated, on 7 x 9 pixels. Measured: 1e-14."""
    stage = make_stage(np.random.default_rng(0), Bottleneck, 2, 8, 4, 1, 2, Options("batch"))
    parameters = {}
    for i, block in enumerate(stage):
        fill(block, f"dilated.{i}.")
        parameters.update({f"dilated.{i}.{name}": p for name, p in block.named_parameters()})
    y, caches = stage_forward(stage, seeded.normal("dilated", 2, 8, 7, 9), True)
    np.testing.assert_allclose(y, VARIANTS["dilated"], rtol=1e-10, atol=1e-12)
    dx = stage_backward(stage, seeded.normal("dilated dy", *y.shape), caches)
    np.testing.assert_allclose(dx, VARIANTS["dilated.dx"], rtol=1e-9, atol=1e-11)
    dots = [np.sum(p.grad * seeded.normal("direction " + name, *p.data.shape)) for name, p in parameters.items()]
    np.testing.assert_allclose(dots, VARIANTS["dilated.dparameters"], rtol=1e-9)
    body = ResNet(np.random.default_rng(0), Bottleneck, (1, 1, 1, 2), 2, dilate_layer4=True)
    assert [(b.conv1.stride, b.conv2.stride, b.conv2.dilation, b.conv2.padding) for b in body.layer4] == [(1, 1, 2, 2)] * 2
    features, _ = body.forward(np.zeros((1, 3, 64, 96), np.float32), False)
    assert [f.shape[2:] for f in features] == [(16, 24), (8, 12), (4, 6), (4, 6)]


# ---- what is assembled ----

def test_kinds_decide_anchors_strides_and_sizes():
    rng = np.random.default_rng(0)
    for kind, blocks, sizes, strides in (("fpn", (1, 1, 1, 1), PYRAMID_SIZES, (4, 8, 16, 32)),
                                         ("single", (1, 1, 1, 1), SINGLE_SIZES, (16,)), ("c4", (1, 1, 1), SINGLE_SIZES, (16,))):
        body = ResNet(rng, BasicBlock, blocks, 2, dilate_layer4=kind == "single")
        model = assemble(rng, body, 3, kind=kind, fpn_channels=4, box_hidden=4, mask_channels=(4,), fixed_anchor_strides=True,
                         res5_blocks=1)
        assert [len(cell) for cell in model.anchor_generator.cells] == [3 * len(level) for level in sizes]
        assert model.box_features.strides == strides and model.anchor_generator.strides == (strides if kind != "fpn" else strides + (64,))
        assert (model.box_features.output_size, model.mask_features.output_size) == ((14, 14) if kind == "c4" else (7, 14))


@pytest.mark.parametrize("options, message", [
    (dict(kind="pyramid"), "kind='pyramid' is not one of fpn, single, c4"),
    (dict(kind="fpn", blocks=(1, 1, 1)), "four stages; this body has 3"),
    (dict(kind="fpn", anchor_order="area"), "anchor_order='area'"), (dict(num_classes=1), "num_classes=1")])
def test_what_does_not_go_together(options, message):
    options = {"num_classes": 3, "blocks": (1, 1, 1, 1), **options}
    body = ResNet(np.random.default_rng(0), BasicBlock, options.pop("blocks"), 2)
    with pytest.raises(ConfigError, match=message):
        assemble(np.random.default_rng(0), body, fpn_channels=4, box_hidden=4, mask_channels=(4,), **options)


def test_all_tensors_of_a_c4_model_are_found_by_name_and_casting():
    model = one_map("c4", dtype=np.float32).astype(np.float64)
    assert {t.data.dtype for _, t in model.named_tensors()} == {np.dtype(np.float64)}
    assert sum(isinstance(t, Parameter) for _, t in model.named_tensors()) == len(model.parameters())


# ---- each learns ----

def narrow(name, seed=0):
    """For images of 64 pixels."""
    settings = dict(min_size=64, anchor_sizes=((12, 24, 48),), mask_channels=(12, 12), box_batch_size_per_image=16,
                    rpn_pre_nms_top_n_train=100, rpn_post_nms_top_n_train=40, rng=np.random.default_rng(seed))
    if name.startswith("vgg"):
        return nprcnn.maskrcnn_vgg16(7, width=6, blocks=(1, 1, 2, 2, 2), norm="batch", box_hidden=48, max_size=96,
                                     box_positive_fraction=0.5, rpn_batch_size_per_image=64, roi_method=name.removeprefix("vgg "),
                                     **settings)
    return nprcnn.maskrcnn_tiny(kind=name, width=8, blocks=(1, 1, 1, 1), box_hidden=48, rpn_batch_size_per_image=64, **settings)


@pytest.mark.parametrize("name", ["c4", "single", "vgg align", "vgg pool"])
def test_a_short_training_makes_the_losses_fall(name):
    """60 steps of three easy scenes. The last ten steps' losses over the first five's, measured at worst for this and two other seeds:
    sum .56, objectness .20, class .43, mask .91. (The box loss need not fall: more and more RoIs are positive.)"""
    history = train(narrow(name), Shapes(180, 0, "easy"), steps=60, batch_size=3, lr=0.02, warmup_steps=5, drops=(0.9,), progress=False)
    for loss, share in (("loss", 0.75), ("loss_objectness", 0.5), ("loss_classifier", 0.7), ("loss_mask", 0.97)):
        first, last = (np.mean([row[loss] for row in rows]) for rows in (history[:5], history[-10:]))
        assert last < share * first, loss
