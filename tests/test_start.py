"""What a training starts from: frozen parts, weights of other models. The rest is in test_cli_train.py."""

import numpy as np
import pytest
from reference import seeded
from small_models import one_map, snapshot, tiny_image_model

import nprcnn
from nprcnn.errors import ConfigError, WeightsError
from nprcnn.train.start import freeze, norm_eps, start_from


def frozen_names(model):
    return {name for name, p in model.named_parameters() if not p.trainable}


def expected(model, *prefixes):
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("names, prefixes, stages", [
    ([], ("nothing",), 0), (["stem"], ("backbone.body.conv1", "backbone.body.bn1"), 1),
    (["layer1", "stem"], ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"), 2),
    (["layer2"], ("backbone.body.layer2",), 0), (["stem", "layer2"], ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer2"), 1),
    (["backbone"], ("backbone.",), 5), (["fpn", "rpn"], ("backbone.fpn.", "rpn."), 0),
    (["box_head", "mask_head"], ("roi_heads.",), 0)])
def test_parts(names, prefixes, stages):
    model = tiny_image_model()
    freeze(model, names)
    assert frozen_names(model) == expected(model, *prefixes) and model.backbone.body.frozen_stages == stages


def test_no_gradient_is_computed_below():
    model = tiny_image_model()
    freeze(model, ["stem", "layer1"])
    images, targets = seeded.scene()
    _, cache = model.losses(images, targets, np.random.default_rng(0))
    model.backward(cache)
    assert {n for n, p in model.named_parameters() if p.grad is None} == frozen_names(model)


def test_vgg_and_c4():
    model = one_map("vgg plain")
    freeze(model, ["conv1", "conv2", "conv4"])
    body = model.backbone.body
    assert [stage[0][0].weight.trainable for stage in body.stages] == [False, False, True, False, True] and body.frozen_stages == 2
    model = one_map("c4")
    freeze(model, ["stem", "layer1"])
    assert frozen_names(model) == expected(model, "backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")
    with pytest.raises(ConfigError, match="no part 'layer4' to freeze; the parts are stem, layer1, layer2, layer3, backbone"):
        freeze(model, ["layer4"])


def test_from_faster_rcnn(tmp_path):
    """The mask branch is new; everything else is the file's."""
    nprcnn.save_weights(tiny_image_model(masks=False, dtype=np.float32), tmp_path / "boxes.npz")
    model = tiny_image_model(dtype=np.float32)
    for p in model.parameters():
        p.data = p.data + 1
    before = {n: a.copy() for n, a in model.state_dict().items()}
    notes = start_from(model, tmp_path / "boxes.npz")
    assert "the file has no mask branch: " in notes[-1]
    for name, array in model.state_dict().items():
        assert (array == before[name]).all() == (name.startswith("roi_heads.mask") or "running" in name), name


def test_another_models_weights(tmp_path):
    nprcnn.save_weights(tiny_image_model(fpn_channels=4), tmp_path / "other.npz")
    with pytest.raises(WeightsError, match="other.npz: the weights are those of another model: .* has shape .* Choose --model"):
        start_from(tiny_image_model(), tmp_path / "other.npz")


def test_eps_0_of_a_release_is_remembered(monkeypatch, tmp_path):
    model = tiny_image_model(norm="frozen", dtype=np.float32)
    assert norm_eps(model) == {}
    monkeypatch.setattr("nprcnn.weights.files.EPS_0", ("release",))
    nprcnn.save_weights(model, tmp_path / "release.safetensors")
    before = snapshot(model)
    assert any("eps is now 0" in note for note in start_from(model, tmp_path / "release.safetensors"))
    assert norm_eps(model) == {"norm_eps": 0.0} and snapshot(model) == before
