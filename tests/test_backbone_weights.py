"""load_backbone: a classifier's or another detector's file, seeded weights, narrow models."""

import numpy as np
import pytest
from reference import seeded
from small_models import one_map, snapshot

import nprcnn
from nprcnn.errors import WeightsError
from nprcnn.models.resnet import BasicBlock, ResNet
from nprcnn.models.vgg import VGG
from nprcnn.ops.activation import relu
from nprcnn.ops.conv import conv2d
from nprcnn.weights import load_backbone, save_weights


def seeded_state(layer, name):
    return {n: seeded.tensor(name + n, a.shape) for n, a in layer.state_dict().items()}


def classifier(blocks=(1, 1, 1, 1), width=4):
    """The state dict of a narrow ResNet classifier, as torchvision names it."""
    state = seeded_state(ResNet(np.random.default_rng(0), BasicBlock, blocks, width), "classifier ")
    state.update({f"{n.removesuffix('weight')}num_batches_tracked": np.array(7) for n in state if n.endswith("bn1.weight")})
    return {**state, "fc.weight": np.ones((10, 8 * width)), "fc.bias": np.ones(10)}


def saved(tmp_path, state):
    path = tmp_path / "classifier.npz"
    np.savez(path, **state)
    return path


@pytest.mark.parametrize("name", ["c4", "dc5", "fpn"])
def test_a_resnet_classifier(tmp_path, name):
    state = classifier()
    model = one_map(name) if name != "fpn" else nprcnn.maskrcnn_tiny(width=4, blocks=(1, 1, 1, 1), norm="frozen").astype(np.float64)
    before = {n: a.copy() for n, a in model.state_dict().items()}
    filled = load_backbone(model, saved(tmp_path, state))
    assert filled == [n for n in before if n.startswith(("backbone.body.", "roi_heads.box_head.layer4."))]
    for n, a in model.state_dict().items():
        if n in filled:
            np.testing.assert_array_equal(a, state[n.removeprefix("backbone.body.").removeprefix("roi_heads.box_head.")])
            assert (a != before[n]).any()
        else:
            np.testing.assert_array_equal(a, before[n])


def test_a_vgg_classifier(tmp_path):
    model = one_map("vgg plain")
    state = seeded_state(VGG(np.random.default_rng(0), (1, 1, 1, 1, 1), 4), "classifier ")
    filled = load_backbone(model, saved(tmp_path, {**state, "classifier.0.weight": np.ones((3, 2)), "classifier.6.bias": np.ones(3)}))
    assert filled == ["backbone.body." + n for n in state]
    np.testing.assert_array_equal(model.backbone.body.features[0].weight.data, state["features.0.weight"])


def test_the_biases_before_vggs_batch_norms_are_not_lost(tmp_path):
    """torchvision's vgg16_bn has biases where nprcnn has none."""
    model = one_map("vgg align")
    state = seeded_state(VGG(np.random.default_rng(0), (1, 1, 1, 1, 1), 4, "batch"), "classifier ")
    biases = {f"features.{4 * i}.bias": seeded.normal(f"bias {i}", state[f"features.{4 * i}.weight"].shape[0]) for i in range(5)}
    load_backbone(model, saved(tmp_path, {**state, **biases}))
    x = seeded.normal("image", 1, 3, 16, 16)
    found, _ = model.backbone.body.forward(x, False)
    y = relu(normed(conv2d(x, state["features.0.weight"], biases["features.0.bias"], 1, 1), state, 1))
    np.testing.assert_allclose(found[0], y, rtol=1e-11, atol=1e-12)
    assert found[0].any()


def normed(x, state, index):
    weight, bias, mean, var = (state[f"features.{index}.{n}"][:, None, None] for n in ("weight", "bias", "running_mean", "running_var"))
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def test_another_detectors_backbone(tmp_path):
    """From C4, where the last stage is the head, to DC5, where it is not, and back."""
    source, target = one_map("c4"), one_map("dc5")
    for _, tensor in source.backbone.named_tensors():
        tensor.data = tensor.data + 0.5
    path = tmp_path / "c4.safetensors"
    save_weights(source, path)
    load_backbone(target, path)
    np.testing.assert_array_equal(target.backbone.body.layer4[0].conv1.weight.data, source.roi_heads.box_head.layer4[0].conv1.weight.data)
    again = one_map("c4")
    save_weights(target, path)
    load_backbone(again, path)
    for a, b in zip(again.backbone.state_dict().values(), source.backbone.state_dict().values()):
        np.testing.assert_array_equal(a, b)


def test_half_precision_is_widened(tmp_path):
    state = {n: a.astype(np.float16) if "conv" in n else a.astype(np.float32) for n, a in classifier().items()}
    model = one_map("dc5", dtype=np.float32)
    load_backbone(model, saved(tmp_path, state))
    data = model.backbone.body.conv1.weight.data
    assert data.dtype == np.float32
    np.testing.assert_array_equal(data, state["conv1.weight"].astype(np.float32))


@pytest.mark.parametrize("change, message", [
    (lambda s: {n: a for n, a in s.items() if n != "layer2.0.conv1.weight"}, "layer2.0.conv1.weight is missing"),
    (lambda s: {**s, "layer3.1.conv1.weight": s["layer3.0.conv2.weight"]}, "layer3.1.conv1.weight is left over"),
    (lambda s: {**s, "conv1.weight": s["conv1.weight"][:2]}, r"conv1.weight has shape \(2, 3, 7, 7\), the model wants \(4, 3, 7, 7\)"),
    (lambda s: {"fc.weight": s["fc.weight"]}, "conv1.weight is missing; bn1.weight is missing; .* more"),
])
def test_a_backbone_that_is_another_one(tmp_path, change, message):
    """A deeper one too: its first blocks alone would fit."""
    model = one_map("dc5")
    before = snapshot(model)
    with pytest.raises(WeightsError, match="not the model's.*: .*" + message):
        load_backbone(model, saved(tmp_path, change(classifier())))
    assert snapshot(model) == before


def test_builders_take_weights_backbone_and_freeze_the_lowest_stages(tmp_path):
    model = nprcnn.maskrcnn_vgg16(3, width=2, box_hidden=4, mask_channels=(4,), weights_backbone=saved(
        tmp_path, seeded_state(VGG(np.random.default_rng(0), width=2), "classifier ")))
    np.testing.assert_array_equal(model.backbone.body.features[0].weight.data,
                                  seeded.tensor("classifier features.0.weight", (2, 3, 3, 3)).astype(np.float32))
    assert [stage[0][0].weight.trainable for stage in model.backbone.body.stages] == [False, False, True, True, True]
