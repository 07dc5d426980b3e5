from pathlib import Path

import numpy as np
import pytest

import nprcnn
from nprcnn.errors import ConfigError, WeightsError
from nprcnn.layers import BatchNorm2d, FrozenBatchNorm2d
from nprcnn.models.builders import TINY

KEYS = Path(__file__).parent / "reference"


def count(model):
    return sum(p.data.size for p in model.parameters())


def keys_of(name):
    """torchvision's state dict without num_batches_tracked: [(name, shape)], in its order."""
    rows = [line.split() for line in (KEYS / f"{name}.keys.txt").read_text().splitlines()]
    return [(row[0], tuple(map(int, row[1:]))) for row in rows]


class Zeros:
    """A generator that gives zeros: the big models' names and shapes do not need their values drawn."""

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)

    def uniform(self, low, high, shape):
        return np.zeros(shape, np.float32)


@pytest.fixture(scope="module")
def maskrcnn50():
    return nprcnn.maskrcnn_resnet50_fpn(rng=Zeros())


def test_maskrcnn_resnet50_is_torchvisions(maskrcnn50):
    assert count(maskrcnn50) == 44_401_393
    assert [(n, a.shape) for n, a in maskrcnn50.state_dict().items()] == keys_of("maskrcnn_resnet50_fpn")
    assert isinstance(maskrcnn50.backbone.body.bn1, FrozenBatchNorm2d)
    assert {a.dtype for a in maskrcnn50.state_dict().values()} == {np.dtype(np.float32)}


def test_batch_norm_makes_53120_parameters_more(maskrcnn50):
    model = nprcnn.maskrcnn_resnet50_fpn(norm="batch", rng=Zeros())
    assert count(model) == 44_454_513
    assert list(model.state_dict()) == list(maskrcnn50.state_dict())
    assert isinstance(model.backbone.body.layer4[2].bn3, BatchNorm2d)


def test_fasterrcnn_resnet50_is_torchvisions_and_the_same_without_masks(maskrcnn50):
    model = nprcnn.fasterrcnn_resnet50_fpn(rng=Zeros())
    assert count(model) == 41_755_286  # as torchvision states for its released weights
    assert [(n, a.shape) for n, a in model.state_dict().items()] == keys_of("fasterrcnn_resnet50_fpn")
    assert type(model) is type(maskrcnn50) and not model.has_masks and maskrcnn50.has_masks


def test_maskrcnn_resnet101_differs_in_the_body_alone(maskrcnn50):
    model = nprcnn.maskrcnn_resnet101_fpn(rng=Zeros())
    assert len(model.backbone.body.layer3) == 23

    def shapes(m):
        return [(n, a.shape) for n, a in m.state_dict().items() if ".body." not in n]
    assert shapes(model) == shapes(maskrcnn50)


def test_torchvisions_defaults(maskrcnn50):
    expected = dict(min_size=800, max_size=1333, rpn_pre_nms_top_n_train=2000, rpn_pre_nms_top_n_test=1000,
                    rpn_post_nms_top_n_train=2000, rpn_post_nms_top_n_test=1000, rpn_nms_thresh=0.7, rpn_fg_iou_thresh=0.7,
                    rpn_bg_iou_thresh=0.3, rpn_batch_size_per_image=256, rpn_positive_fraction=0.5, box_score_thresh=0.05,
                    box_nms_thresh=0.5, box_detections_per_img=100, box_fg_iou_thresh=0.5, box_bg_iou_thresh=0.5,
                    box_batch_size_per_image=512, box_positive_fraction=0.25, image_mean=(0.485, 0.456, 0.406),
                    image_std=(0.229, 0.224, 0.225), canonical_size=224, num_classes=91)
    assert {name: getattr(maskrcnn50, name) for name in expected} == expected
    assert [cell.tolist()[1][2] * 2 for cell in maskrcnn50.anchor_generator.cells] == [32, 64, 128, 256, 512]
    for features, size in ((maskrcnn50.box_features, 7), (maskrcnn50.mask_features, 14)):
        assert (features.output_size, features.sampling_ratio, features.aligned) == (size, 2, False)
        assert features.strides == (4, 8, 16, 32)
    model = nprcnn.maskrcnn_tiny(box_score_thresh=0.3, min_size=96)
    assert (model.box_score_thresh, model.min_size) == (0.3, 96)


def test_tiny_is_small_and_settings_win_over_its_own():
    model = nprcnn.maskrcnn_tiny()
    # at most 8 MB of weights are shipped
    assert sum(a.nbytes for a in model.state_dict().values()) < 8e6
    assert model.num_classes == 7 and isinstance(model.backbone.body.bn1, BatchNorm2d)
    assert {name: getattr(model, name) for name in TINY if hasattr(model, name)}.items() <= TINY.items()
    assert nprcnn.maskrcnn_tiny(num_classes=3).state_dict()["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3
    wide = nprcnn.maskrcnn_tiny(width=32, blocks=(2, 1, 1, 1), norm="frozen", fpn_channels=8)
    assert wide.backbone.body.conv1.weight.data.shape[0] == 32 and len(wide.backbone.body.layer1) == 2
    assert isinstance(wide.backbone.body.bn1, FrozenBatchNorm2d)
    assert wide.backbone.fpn.inner_blocks[0][0].weight.data.shape == (8, 32, 1, 1)


def test_initial_values_come_from_the_generator():
    a, b, c = (nprcnn.maskrcnn_tiny(rng=np.random.default_rng(seed)).state_dict() for seed in (1, 1, 2))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert all(a[name].tobytes() != c[name].tobytes() for name in a if name.endswith("weight") and a[name].ndim > 1)
    default = nprcnn.maskrcnn_tiny().state_dict()
    assert default["backbone.body.conv1.weight"].tobytes() == nprcnn.maskrcnn_tiny(
        rng=np.random.default_rng(0)).state_dict()["backbone.body.conv1.weight"].tobytes()


@pytest.mark.parametrize("mask_head", ["fcn", "mlp"])
@pytest.mark.parametrize("mask_loss, masks", [("sigmoid", 7), ("softmax", 7), ("agnostic", 1)])
def test_mask_options_decide_the_last_layer(mask_head, mask_loss, masks):
    state = nprcnn.maskrcnn_tiny(mask_head=mask_head, mask_loss=mask_loss, mask_channels=(5, 6), box_hidden=8).state_dict()
    if mask_head == "fcn":
        assert state["roi_heads.mask_predictor.mask_fcn_logits.weight"].shape == (masks, 6, 1, 1)
    else:
        assert state["roi_heads.mask_predictor.mask_logits.weight"].shape == (masks * 28 * 28, 8)


@pytest.mark.parametrize("options, message", [
    (dict(roi_method="warp"), "roi_method='warp' is not one of align, pool"),
    (dict(mask_head="conv"), "mask_head='conv'"), (dict(mask_loss="dice"), "mask_loss='dice'"),
    (dict(norm="group"), "norm='group'"), (dict(head_norm="group"), "head_norm='group'"),
    (dict(blocks=(1, 1)), "one number for each of the four stages"),
    (dict(num_classes=1), "num_classes=1"), (dict(trainable_backbone_layers=6), "6 trainable")])
def test_unknown_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        nprcnn.maskrcnn_tiny(**options)


def test_unknown_weights_and_misspelt_settings():
    with pytest.raises(WeightsError, match="shapez: there is no such file.*shapes"):
        nprcnn.maskrcnn_tiny(weights="shapez")
    with pytest.raises(TypeError, match="box_score_tresh"):
        nprcnn.maskrcnn_tiny(box_score_tresh=0.5)


def test_frozen_stages():
    model = nprcnn.maskrcnn_tiny(trainable_backbone_layers=3)
    frozen = {name for name, p in model.named_parameters() if not p.trainable}
    assert frozen == {name for name, _ in model.named_parameters()
                      if name.startswith(("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"))}
