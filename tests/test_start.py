"""What a training starts from: frozen parts, weights of other models. The rest is in test_cli_train.py."""

import numpy as np
import pytest
from reference import seeded
from small_models import one_map, snapshot, tiny_image_model

import nprcnn
from nprcnn.data.coco_names import COCO_91
from nprcnn.errors import ConfigError, WeightsError
from nprcnn.models.assemble import assemble
from nprcnn.train.checkpoint import save_checkpoint
from nprcnn.train.sgd import SGD
from nprcnn.train.start import freeze, norm_eps, start_from


def frozen_names(model):
    return {name for name, p in model.named_parameters() if not p.trainable}


def expected(model, *prefixes):
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("names, prefixes, stages", [
    ([], ("nothing",), 0), (["stem"], ("backbone.body.conv1", "backbone.body.bn1"), 1),
    (["layer1", "stem"], ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"), 2),
    (["layer2"], ("backbone.body.layer2",), 0),
    (["stem", "layer2"], ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer2"), 1),
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


ROWS = {"roi_heads.box_predictor.cls_score": 1, "roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1}


def by_class(model):
    """{layer and class: its rows, weights and biases} of a model of the three layers that have rows for classes."""
    state, found = model.state_dict(), {}
    for layer, rows in ROWS.items():
        for kind in ("weight", "bias"):
            for k, part in enumerate(np.split(state[f"{layer}.{kind}"], model.num_classes)):
                assert len(part) == rows
                found[layer, kind, k] = part.copy()
    return found


CATS = ("background", "cat", "dog", "hen", "cow")


def named_model(names, plus=0.0, **options):
    """A small model, whose numbers lie `plus` above its initial ones."""
    body = tiny_image_model().backbone.body
    model = assemble(np.random.default_rng(3), body, len(names or CATS), class_names=names, box_hidden=seeded.HIDDEN,
                     fpn_channels=seeded.FPN_CHANNELS, anchor_sizes=seeded.ANCHOR_SIZES, mask_channels=seeded.MASK_CHANNELS, **options)
    for p in model.parameters():
        p.data = (p.data + plus).astype(np.float32)
    return model


@pytest.mark.parametrize("own, taken, fresh", [
    (("background", "cow", "hen", "dog", "cat"), {0: 0, 1: 4, 2: 3, 3: 2, 4: 1}, ""),          # the same in another order
    (("background", "cat", "fox", "hen", "cow"), {0: 0, 1: 1, 3: 3, 4: 4}, "; these begin anew: fox"),   # as many
    (("background", "fox", "dog"), {0: 0, 2: 2}, "; these begin anew: fox"),                    # fewer
    (("background", "emu", "fox", "hen", "ox", "yak", "cat"), {0: 0, 3: 3, 6: 1}, "emu, fox, ox, yak")])
def test_classes_are_taken_over_by_name(tmp_path, own, taken, fresh):
    theirs = named_model(CATS, 1)
    nprcnn.save_weights(theirs, tmp_path / "a.safetensors")
    model = named_model(own)
    before, source = by_class(model), by_class(theirs)
    notes = start_from(model, tmp_path / "a.safetensors")
    assert "rows of these classes are taken over by their names: " in notes[-1] and notes[-1].endswith(fresh)
    for (layer, kind, k), rows in by_class(model).items():
        want = source[layer, kind, taken[k]] if k in taken else before[layer, kind, k]
        assert (rows == want).all(), (layer, kind, k)
    assert model.class_names == own
    name = "roi_heads.box_head.fc6.weight"
    assert (model.state_dict()[name] == theirs.state_dict()[name]).all()


def test_no_class_in_common(tmp_path):
    """As many classes, but others: nothing is taken over, not even the background, whose row was trained against rows that are gone."""
    theirs, model = named_model(CATS, 1), named_model(("background", "moon", "star", "key", "cup"))
    nprcnn.save_weights(theirs, tmp_path / "a.safetensors")
    before = by_class(model)
    notes = start_from(model, tmp_path / "a.safetensors")
    assert "none of the model's classes (moon, star, key, cup) is in the file (cat, dog, hen, cow)" in notes[-1]
    assert all((rows == before[key]).all() for key, rows in by_class(model).items())
    assert notes[0].endswith(f"{len(model.state_dict()) - 6} tensors loaded")


@pytest.mark.parametrize("theirs, own, kind, who", [
    (CATS, ("background", "moon", "star", "key", "cup"), "npz", "the file"), (CATS, None, "safetensors", "the model"),
    (("background", "class 1", "class 2", "class 3", "class 4"), CATS, "safetensors", "the file")])
def test_without_names_by_number(tmp_path, theirs, own, kind, who):
    theirs, model = named_model(theirs, 1), named_model(own)
    nprcnn.save_weights(theirs, tmp_path / f"a.{kind}")
    notes = start_from(model, tmp_path / f"a.{kind}")
    assert notes[-1] == f"{who} has no names of classes: their rows are taken over by number"
    source = by_class(theirs)
    assert all((rows == source[key]).all() for key, rows in by_class(model).items())


def test_the_same_classes_need_no_word(tmp_path):
    theirs, model = named_model(CATS, 1), named_model(CATS)
    nprcnn.save_weights(theirs, tmp_path / "a.safetensors")
    assert len(start_from(model, tmp_path / "a.safetensors")) == 1
    assert snapshot(model) == snapshot(theirs)


def test_cocos_classes_are_known_without_names(tmp_path):
    """A released file says no names; its 91 rows are COCO's. Row 18 is the dog; "N/A", ten rows, is no class."""
    theirs = named_model(COCO_91, 1)
    nprcnn.save_weights(theirs, tmp_path / "coco.npz")
    model = named_model(("background", "N/A", "dog"))
    before, source = by_class(model), by_class(theirs)
    assert "by their names: dog; these begin anew: N/A" in start_from(model, tmp_path / "coco.npz")[-1]
    for (layer, kind, k), rows in by_class(model).items():
        assert (rows == (before[layer, kind, 1] if k == 1 else source[layer, kind, {0: 0, 2: 18}[k]])).all()


def test_one_mask_for_all_classes_is_taken_whole(tmp_path):
    """The mask layers of a class-agnostic model have no rows for classes, though 784 = 28 x 28 is a multiple of 7."""
    names = ("background", "a", "b", "c", "d", "e", "f")
    for options in (dict(mask_loss="agnostic"), dict(mask_loss="agnostic", mask_head="mlp")):
        theirs, model = named_model(names, 1, **options), named_model((names[0], *names[:0:-1]), **options)
        nprcnn.save_weights(theirs, tmp_path / "a.safetensors")
        start_from(model, tmp_path / "a.safetensors")
        a, b = theirs.state_dict(), model.state_dict()
        mask = [name for name in a if name.startswith("roi_heads.mask_predictor.")]
        assert mask and all((a[name] == b[name]).all() for name in mask)
        assert (a["roi_heads.box_predictor.cls_score.bias"][1:] == b["roi_heads.box_predictor.cls_score.bias"][:0:-1]).all()


def test_names_that_do_not_fit_the_rows(tmp_path):
    nprcnn.save_weights(named_model(CATS), tmp_path / "a.safetensors", {"class_names": '["background", "cat"]'})
    with pytest.raises(WeightsError, match="a.safetensors: its metadata names 2 classes, its layers have 5; the file is damaged"):
        start_from(named_model(CATS), tmp_path / "a.safetensors")


def test_a_checkpoint_tells_its_classes_too(tmp_path):
    theirs, model = named_model(CATS, 1), named_model(("background", "cow", "fox", "yak", "emu"))
    config = {"model": {"builder": "tiny", "arguments": {"class_names": CATS}}}
    save_checkpoint(tmp_path / "checkpoint.safetensors", theirs, SGD(theirs.parameters()), 3, {"config": config})
    source = by_class(theirs)
    assert "by their names: cow; these begin anew: fox, yak, emu" in start_from(model, tmp_path / "checkpoint.safetensors")[-1]
    assert all((rows == source[(*key[:2], 4)]).all() for key, rows in by_class(model).items() if key[2] == 1)
