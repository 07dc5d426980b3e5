"""A step that is not finite changes nothing, and says where it began."""

import numpy as np
import pytest
from small_models import one_map, snapshot
from tiny_training import Source, tiny_model, tiny_run

from nprcnn import layers
from nprcnn.errors import ConfigError, WeightsError
from nprcnn.models.decisions import LOSSES
from nprcnn.train import train
from nprcnn.train.checkpoint import read_checkpoint
from nprcnn.train.gradients import image_name
from nprcnn.train.guards import load_replay


class Photos(Source):
    def name(self, i):
        return f"photo{i}.png"


def diverged(model, **options):
    """Train until it stops: the message."""
    with pytest.raises(ConfigError) as stop:
        train(model, Photos(), **{**dict(steps=3, batch_size=2, lr=0.02, progress=False), **options})
    return str(stop.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite(value, monkeypatch):
    """Nothing is changed, and the message has loss, step, rate and advice, even if a second look finds nothing."""
    model = tiny_model()
    before, real, calls = snapshot(model), model.losses, []

    def losses(*args, **options):
        found, cache = real(*args, **options)
        calls.append(1)
        return ({**found, "loss_mask": np.float32(value)}, cache) if len(calls) == 1 else (found, cache)
    monkeypatch.setattr(model, "losses", losses)
    text = diverged(model)
    assert text.startswith(f"the training diverged: at step 0 loss_mask is {value};")
    assert text.endswith("the weights are as they were before the step; lower the learning rate (lr=0.0002) or warm up longer")
    assert snapshot(model) == before and all(p.grad is None for p in model.parameters())


def test_the_first_stage_and_the_image_are_named(monkeypatch):
    """The pyramid's first output convolution spoils the second image of its batch, whenever that is used: every later stage is not finite."""
    model = tiny_model(norm="frozen", head_norm="frozen")
    conv, forward = model.backbone.fpn.layer_blocks[0][0], layers.conv2d_fused_forward

    def spoiling_forward(x, w, *args, **kwargs):
        y, cache = forward(x, w, *args, **kwargs)
        if w is conv.weight.data:
            y[1:, 0, 0, 0] = np.nan
        return y, cache
    monkeypatch.setattr(layers, "conv2d_fused_forward", spoiling_forward)
    text = diverged(model)
    names = [image_name(Photos(), i) for i in order_of_step(0)]
    assert "are in stage fpn.p2 (" in text and f"numbers are not finite), of {names[1]}; the weights" in text


def order_of_step(step):
    from nprcnn.data.loader import Loader
    return Loader(Photos(), 2, 0).indices(step)


def test_one_image_is_named_where_batch_norm_has_spread_it(monkeypatch):
    """After a norm with the batch's statistics all images are NaN: each alone tells whose fault it was."""
    model = tiny_model()
    bad, spoiled = order_of_step(1)[1], []
    image, _ = Photos()[bad]
    losses, conv, forward = model.losses, model.backbone.body.conv1, model.backbone.body.conv1.forward

    def looking_losses(images, *args, **options):
        spoiled[:] = [i.shape == image.shape and (i == image).all() for i in images]
        return losses(images, *args, **options)

    def spoiling_forward(x, train):
        y, cache = forward(x, train)
        y[np.array(spoiled)] = np.inf
        return y, cache
    monkeypatch.setattr(model, "losses", looking_losses)
    monkeypatch.setattr(conv, "forward", spoiling_forward)
    text = diverged(model)
    assert "at step" in text and "in stage backbone.stem (" in text and f"not finite), of photo{bad}.png; the weights" in text


def test_a_gradient_that_is_not_finite(monkeypatch):
    """The losses are finite. The first bad gradient in the order of the backward pass is named, and the image of that RoI."""
    model = tiny_model(norm="frozen", head_norm="frozen")
    before = snapshot(model)
    predictor, real = model.roi_heads.box_predictor, model.roi_heads.box_predictor.backward

    def backward(*args):
        dh = real(*args).copy()
        dh[-1, 0] = np.nan  # the last RoI is one of the last image
        return dh
    monkeypatch.setattr(predictor, "backward", backward)
    text = diverged(model)
    assert "at step 0 the norm of the gradient is nan; the first numbers that are not finite are in gradient of roi_heads.box_hidden (1 of" in text
    assert f"of {image_name(Photos(), order_of_step(0)[1])}; the weights" in text
    assert snapshot(model) == before


def test_a_gradient_of_a_weight(monkeypatch):
    model = tiny_model(norm="frozen", head_norm="frozen")
    layer = model.roi_heads.mask_predictor.mask_fcn_logits
    real = layer.backward

    def backward(*args):
        dx = real(*args)
        layer.bias.grad[1] = np.inf
        return dx
    monkeypatch.setattr(layer, "backward", backward)
    assert "gradient of weight roi_heads.mask_predictor.mask_fcn_logits.bias (1 of 4 numbers" in diverged(model)


def test_a_weight_that_is_not_finite_from_the_start():
    model = tiny_model(norm="frozen", head_norm="frozen")
    model.rpn.head.cls_logits.weight.data[0, 0] = np.nan
    assert "in weight rpn.head.cls_logits.weight (1 of" in diverged(model)


def test_the_part_is_found_where_gradients_are_accumulated(monkeypatch):
    model = tiny_model(norm="frozen", head_norm="frozen")
    real, seen = model.losses, []

    def losses(images, *args, **options):
        found, cache = real(images, *args, **options)
        seen.append(1)
        if len(seen) in (2, 4):  # the second part, and again in the search
            options["trace"] is None or options["trace"].values.update({"losses.loss_box_reg": np.float32(np.nan)})
            found = {**found, "loss_box_reg": np.float32(np.nan)}
        return found, cache
    monkeypatch.setattr(model, "losses", lambda images, targets, rng, decisions=None, trace=None: losses(images, targets, rng, decisions,
                                                                                                      trace=trace))
    second = [image_name(Photos(), i) for i in order_of_step(0)][1]
    from nprcnn.data.loader import Loader
    assert Loader(Photos(), 2, 0).indices(0) == order_of_step(0)
    assert f"stage losses.loss_box_reg (1 of 1 numbers are not finite), of {second}" in diverged(model, batch_size=1, accumulate=2)


def test_a_rate_that_is_far_too_large():
    """No planted fault: the weights grow until a number overflows, and no warning of NumPy's is needed to say so."""
    model = tiny_model(norm="frozen", head_norm="frozen")
    text = diverged(model, steps=60, lr=1e6, warmup_steps=0, max_grad_norm=1e30)
    assert "diverged: at step" in text and "lower the learning rate (lr=1e+06)" in text
    assert all(np.isfinite(a).all() for a in model.state_dict().values())


@pytest.mark.parametrize("name", ["c4", "vgg align"])
def test_other_models(name):
    model = one_map(name, dtype=np.float32)
    text = diverged(model, steps=60, lr=1e6, warmup_steps=0, max_grad_norm=1e30)
    assert "the first numbers that are not finite are in" in text or "squares are too large" in text


# ---- replay

def failing_run(out, monkeypatch):
    """A training whose RPN goes wrong in step 3: the message."""
    model = tiny_model(norm="frozen", head_norm="frozen")
    real, calls = model.losses, []

    def losses(*args, **options):
        calls.append(1)
        if len(calls) >= 4:
            weight = model.rpn.head.cls_logits.weight
            weight.data = np.full_like(weight.data, 3e38)
        return real(*args, **options)
    monkeypatch.setattr(model, "losses", losses)
    with pytest.raises(ConfigError) as stop:
        tiny_run(out, model=model, source=Photos())
    return str(stop.value)


def test_a_run_leaves_a_replay(tmp_path, monkeypatch):
    text = failing_run(tmp_path, monkeypatch)
    assert text.endswith(f"See it again, stage by stage: nprcnn train --replay {tmp_path / 'replay.npz'}")
    part, decisions, about = load_replay(tmp_path / "replay.npz")
    assert about["step"] == 3 and about["names"] == [f"photo{i}.png" for i in order_of_step(3)] and about["checkpoint"] == "failed.safetensors"
    assert len(part.images) == len(part.targets) == 2 and part.images[0].dtype == np.uint8
    source = Photos()
    for i, image, target in zip(order_of_step(3), part.images, part.targets):
        np.testing.assert_array_equal(image, source[i][0])
        for key in ("boxes", "labels", "masks"):
            np.testing.assert_array_equal(target[key], source[i][1][key])
    assert decisions is not None and len(decisions.labels) == 2
    assert read_checkpoint(tmp_path / "failed.safetensors").step == 3
    assert read_checkpoint(tmp_path / "checkpoint.safetensors").step == 2  # of before: a training can go on from there


def test_a_replay_shows_every_stage(tmp_path, monkeypatch):
    from nprcnn.train import replay
    failing_run(tmp_path, monkeypatch)
    monkeypatch.setattr(replay, "build_model", lambda builder, arguments: tiny_model(norm="frozen", head_norm="frozen"))
    text = replay.replay(tmp_path / "replay.npz")
    lines = {line.split()[0]: line for line in text.split("\nbackward")[0].splitlines() if line.startswith("  ")}
    assert "photo" in text and all(f"losses.{name}" in lines for name in LOSSES)
    assert "NOT FINITE" not in lines["backbone.layer4"] and "NOT FINITE" in lines["rpn.logits.p2"]
    model, trace, about = replay.replay_trace(tmp_path / "replay.npz")
    assert about["step"] == 3 and "fpn.p3" in trace and "rpn.objectness" in trace.grad


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken"])
def test_a_replay_file_that_is_broken(tmp_path, content):
    (tmp_path / "replay.npz").write_bytes(content)
    with pytest.raises(WeightsError, match="not a whole replay file"):
        load_replay(tmp_path / "replay.npz")
