"""Detectron2's conventions. What each plain argument does is tested beside its function; here: that all of them arrive, and two whole
models against an independent implementation of the stages (reference/make_detectron2.py)."""

from pathlib import Path

import numpy as np
import pytest
from reference import seeded
from small_models import fill

import nprcnn
from nprcnn.errors import ConfigError
from nprcnn.models.assemble import assemble
from nprcnn.models.conventions import CONVENTIONS, DETECTRON2, with_conventions
from nprcnn.models.resnet import Bottleneck, ResNet
from nprcnn.models.settings import Settings

REFERENCE = np.load(Path(__file__).parent / "reference" / "detectron2.npz")


# ---- the table arrives ----

class Zeros:
    """A generator that gives zeros."""

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)

    def uniform(self, low, high, shape):
        return np.zeros(shape, np.float32)


SIZES = ((32, 64), (64, 128), (128, 256), (256, 512), (512, 1024))
SMALL = dict(rng=Zeros(), anchor_sizes=SIZES, box_hidden=2, fpn_channels=2, mask_channels=(2,))


def build(**options):
    return nprcnn.maskrcnn_resnet50_fpn(2, **SMALL, **options)


def order(model):
    """The first two anchors: one size and two ratios, or the other way round."""
    w, h = (model.anchor_generator.cells[0][:2] @ [[-1, 0], [0, -1], [1, 0], [0, 1]]).T
    return "size" if abs(w[0] * h[0] / (w[1] * h[1]) - 1) < 0.1 else "ratio"


# What is not simply an attribute of the model: where to find it.
FOUND = {
    "stride_in_1x1": lambda m: (m.backbone.body.layer2[0].conv1.stride, m.backbone.body.layer2[0].conv2.stride) == (2, 1),
    "anchor_rounding": lambda m: bool((m.anchor_generator.cells[0] == m.anchor_generator.cells[0].round()).all()),
    "anchor_order": order,
    "fixed_anchor_strides": lambda m: m.anchor_generator.strides == (4, 8, 16, 32, 64),
    "sampling_ratio": lambda m: m.box_features.sampling_ratio if m.box_features.sampling_ratio == m.mask_features.sampling_ratio else None,
    "aligned": lambda m: m.box_features.aligned and m.mask_features.aligned,
}
TORCHVISION = {**Settings()._asdict(), "stride_in_1x1": False, "anchor_rounding": True, "anchor_order": "ratio",
               "fixed_anchor_strides": False, "sampling_ratio": 2, "aligned": False}


def found(model, name):
    return FOUND[name](model) if name in FOUND else getattr(model, name)


@pytest.fixture(scope="module")
def models():
    return {conventions: build(conventions=conventions) for conventions in CONVENTIONS}


@pytest.mark.parametrize("name", DETECTRON2)
def test_each_convention_arrives_in_the_model(models, name):
    assert TORCHVISION[name] != DETECTRON2[name] or name == "image_std"
    assert found(models["torchvision"], name) == TORCHVISION[name]
    assert found(models["detectron2"], name) == DETECTRON2[name]


def test_each_convention_can_be_overridden_by_name(models):
    """Every other one of the table, then the rest, set to torchvision's value; those not named stay Detectron2's."""
    names = list(DETECTRON2)
    for half in (names[::2], names[1::2]):
        model = build(conventions="detectron2", **{name: TORCHVISION[name] for name in half})
        for name in names:
            assert found(model, name) == (TORCHVISION if name in half else DETECTRON2)[name], name


def test_conventions_change_nothing_else(models):
    """What is not in the table is the same in both: every setting, every name and shape."""
    a, b = models.values()
    assert [(n, x.shape) for n, x in a.state_dict().items()] == [(n, x.shape) for n, x in b.state_dict().items()]
    for name in set(Settings._fields) - set(DETECTRON2):
        assert getattr(a, name) == getattr(b, name), name
    assert {layer.eps for layer in (a.backbone.body.bn1, b.backbone.body.bn1)} == {1e-5}


@pytest.mark.parametrize("conventions, divisible", [("torchvision", 32), ("detectron2", 1)])
def test_without_a_pyramid(conventions, divisible):
    model = nprcnn.maskrcnn_resnet50_c4(2, conventions=conventions, rng=Zeros(), mask_channels=(2,))
    assert model.size_divisible == divisible
    # Detectron2's Base-RCNN-C4, whatever the conventions
    assert (model.rpn_pre_nms_top_n_train, model.rpn_post_nms_top_n_train, model.rpn_pre_nms_top_n_test,
            model.rpn_post_nms_top_n_test) == (12000, 2000, 6000, 1000)
    assert model.anchor_generator.strides == ((16,) if conventions == "detectron2" else None)


@pytest.mark.parametrize("builder", [nprcnn.maskrcnn_tiny, nprcnn.maskrcnn_resnet50_fpn, nprcnn.maskrcnn_resnet50_c4,
                                     nprcnn.maskrcnn_resnet50_dc5, nprcnn.maskrcnn_vgg16])
def test_unknown_names(builder):
    with pytest.raises(ConfigError, match="conventions='caffe' is not one of torchvision, detectron2"):
        builder(conventions="caffe")


@pytest.mark.parametrize("name, value", [("channel_order", "gbr"), ("resize", "nearest"), ("rpn_nms_on", "boxes"), ("paste", "none"),
                                         ("rpn_loss_normalizer", "all"), ("anchor_order", "area")])
def test_unknown_choices(name, value):
    with pytest.raises(ConfigError, match=f"{name}='{value}' is not one of"):
        nprcnn.maskrcnn_tiny(**{name: value})


def test_the_table_is_not_written_into():
    before = dict(DETECTRON2)
    settings = with_conventions("detectron2", {"aligned": False, "min_size": 3})
    assert settings == {**before, "aligned": False, "min_size": 3} and DETECTRON2 == before
    build(conventions="detectron2")
    assert DETECTRON2 == before and CONVENTIONS["torchvision"] == {}


# ---- two whole models, in float64, against the stages written anew in PyTorch ----

def whole_model(kind):
    rng = np.random.default_rng(0)
    blocks = (1, 1, 1) if kind == "c4" else (1, 1, 1, 1)
    settings = with_conventions("detectron2", seeded.DETECTRON2, pyramid=kind == "fpn")
    body = ResNet(rng, Bottleneck, blocks, seeded.D2_WIDTH, stride_in_1x1=settings.pop("stride_in_1x1"))
    sizes = (sum(seeded.ANCHOR_SIZES[:4], ()),) if kind == "c4" else seeded.ANCHOR_SIZES
    model = fill(assemble(rng, body, seeded.NUM_CLASSES, kind=kind, anchor_sizes=sizes, canonical_size=seeded.CANONICAL_SIZE,
                          fpn_channels=seeded.FPN_CHANNELS, box_hidden=seeded.HIDDEN, mask_channels=seeded.MASK_CHANNELS,
                          res5_blocks=1, **settings))
    model.backbone.body.conv1.weight.data /= seeded.D2_PIXELS
    return model


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_losses_and_all_gradients(kind):
    """Measured: losses 1e-15, gradients 1e-12."""
    model = whole_model(kind)
    losses, cache = model.losses(*seeded.scene(), np.random.default_rng(0))
    model.backward(cache)
    np.testing.assert_allclose(list(losses.values()), REFERENCE[f"{kind}.losses"], rtol=1e-9)
    dots = [np.sum(p.grad * seeded.normal("direction " + name, *p.data.shape)) for name, p in sorted(model.named_parameters())]
    np.testing.assert_allclose(dots, REFERENCE[f"{kind}.dparameters"], rtol=1e-9)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_detections(kind):
    images, _ = seeded.scene()
    for k, found in enumerate(whole_model(kind).predict(images)):
        assert len(found.boxes) == 12
        np.testing.assert_allclose(found.boxes, REFERENCE[f"{kind}.boxes.{k}"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.scores, REFERENCE[f"{kind}.scores.{k}"], rtol=1e-9)
        np.testing.assert_array_equal(found.labels, REFERENCE[f"{kind}.labels.{k}"])
        # the nearest mask value is 2e-5 from the threshold, so no rounding can flip a pixel
        np.testing.assert_array_equal(np.packbits(found.masks), REFERENCE[f"{kind}.masks.{k}"])


# What acts on ties, on empty boxes or on more than 1000 proposals alone, and what is in the layers: each has a test of its own.
ELSEWHERE = {"image_std", "rpn_min_size", "box_min_size", "rpn_post_nms_top_n_train", "rpn_nms_on", "level_eps", "level_eps_in_log",
             "anchor_order", "stride_in_1x1"}


def outcome(model):
    """Numbers in which every convention shows: the losses, and what is detected with what masks."""
    losses, _ = model.losses(*seeded.scene(), np.random.default_rng(0))
    found = model.predict(seeded.scene()[0])
    return [*losses.values(), *(np.sum(f.boxes) for f in found), *(np.sum(f.masks) for f in found)]


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_each_convention_shows_in_the_whole_model(kind):
    """So that the agreement above means something: with any one of them as torchvision has it, other numbers come out."""
    expected = outcome(whole_model(kind))
    unseen = []
    for name in sorted(set(DETECTRON2) - ELSEWHERE):
        model = whole_model(kind)
        if name == "anchor_rounding":
            model.anchor_generator.cells = [cell.round() for cell in model.anchor_generator.cells]
        elif name == "fixed_anchor_strides":
            model.anchor_generator.strides = None
        elif name in FOUND:
            setattr(model.box_features, name, TORCHVISION[name]), setattr(model.mask_features, name, TORCHVISION[name])
        else:
            setattr(model, name, TORCHVISION[name])
        if np.allclose(outcome(model), expected, rtol=1e-7, atol=0):
            unseen.append(name)
    # the pyramid model pads to 128 x 128, where the strides are whole without being fixed
    assert unseen == (["fixed_anchor_strides"] if kind == "fpn" else [])
