import zlib
from pathlib import Path

import numpy as np
import pytest
from small_models import VARIANTS

import nprcnn
from nprcnn.errors import ConfigError, WeightsError
from nprcnn.layers import BatchNorm2d, FrozenBatchNorm2d
from nprcnn.models.builders import TINY
from nprcnn.models.resnet import Bottleneck

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


@pytest.mark.parametrize("builder, parameters", [("maskrcnn_resnet50_fpn_v2", 46_359_409), ("fasterrcnn_resnet50_fpn_v2", 43_712_278)])
def test_v2_is_torchvisions(builder, parameters):
    model = getattr(nprcnn, builder)(rng=Zeros())
    assert count(model) == parameters == VARIANTS[f"{builder}.parameters"]
    assert [(n, a.shape) for n, a in model.state_dict().items()] == keys_of(builder)
    heads = model.roi_heads
    for norm in (model.backbone.body.bn1, model.backbone.fpn.inner_blocks[0][1], heads.box_head.blocks[3][1]):
        assert isinstance(norm, BatchNorm2d)
    assert model.rpn.head.conv[1][1] is None  # no norm in the RPN
    assert model.has_masks == builder.startswith("mask") and (not model.has_masks or isinstance(heads.mask_head.blocks[0][1], BatchNorm2d))


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_with_fpn_is_torchvisions(depth):
    backbone = nprcnn.maskrcnn_resnet_fpn(depth, norm="batch", rng=Zeros()).backbone
    text = "\n".join(" ".join([name, *map(str, array.shape)]) for name, array in backbone.state_dict().items())
    assert [zlib.crc32(text.encode()), count(backbone)] == VARIANTS[f"resnet{depth}_fpn.keys"].tolist()


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


# ---- models with one map, full width: numbers of parameters as the layers of Detectron2's configurations give them, by hand ----

def conv(i, o, k, bias=True):
    return i * o * k * k + bias * o


def linear(i, o):
    return i * o + o


def rpn(channels, anchors):
    return conv(channels, channels, 3) + conv(channels, anchors, 1) + conv(channels, 4 * anchors, 1)


def predictors(hidden, channels, classes):
    """Class, boxes; transposed convolution and last layer of the masks. (Detectron2 has no boxes and no mask for the background.)"""
    return linear(hidden, classes) + linear(hidden, 4 * classes) + conv(channels, 256, 2) + conv(256, classes, 1)


def body(layer3):
    """Convolutions of a ResNet of bottlenecks, frozen norms having no parameters: stem; of each stage the blocks, and the shortcut."""
    total, channels = conv(3, 64, 7, False), 64
    for width, blocks in ((64, 3), (128, 4), (256, layer3), (512, 3)):
        total += conv(channels, 4 * width, 1, False)
        for _ in range(blocks):
            total += conv(channels, width, 1, False) + conv(width, width, 3, False) + conv(width, 4 * width, 1, False)
            channels = 4 * width
    return total


MASK_HEAD = 3 * conv(256, 256, 3)  # and the first, whose input differs
K = 3
FULL_WIDTH = {
    # layer4 is in the head: the sum is the same
    "maskrcnn_resnet50_c4": body(6) + rpn(1024, 15) + predictors(2048, 2048, K),
    "maskrcnn_resnet101_c4": body(23) + rpn(1024, 15) + predictors(2048, 2048, K),
    "maskrcnn_resnet50_dc5": body(6) + rpn(2048, 15) + linear(2048 * 49, 1024) + linear(1024, 1024) + conv(2048, 256, 3) + MASK_HEAD
    + predictors(1024, 256, K),
    "maskrcnn_vgg16": 14_714_688 + rpn(512, 9) + linear(512 * 49, 4096) + linear(4096, 4096) + conv(512, 256, 3) + MASK_HEAD
    + predictors(4096, 256, K),
}


@pytest.mark.parametrize("builder", FULL_WIDTH)
def test_full_width_models_with_one_map(builder):
    assert body(6) == 23_508_032 - 53_120  # test_resnet: torchvision's, with the norms' weights and biases
    model = getattr(nprcnn, builder)(K, rng=Zeros(), min_size=64, rpn_post_nms_top_n_test=3, box_detections_per_img=2)
    assert count(model) == FULL_WIDTH[builder]
    found = model.predict(np.full((60, 80, 3), 100, np.uint8))
    # weights of zero: all classes are equally likely, and the boxes are anchors
    assert found.boxes.shape == (2, 4) and found.masks.shape == (2, 60, 80) and found.scores == pytest.approx(1 / 3)
    assert found.level.tolist() == [4, 4]


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


@pytest.mark.parametrize("kind", ["fpn", "c4", "single"])
def test_norm_eps_and_stride_reach_every_block(kind):
    model = nprcnn.maskrcnn_tiny(kind=kind, block=Bottleneck, blocks=(1, 2, 1, 1), width=2, norm="frozen", norm_eps=1e-3, stride_in_1x1=True)
    blocks = [b for name in ("layer1", "layer2", "layer3", "layer4") for b in getattr(model.backbone.body, name, [])]
    if kind == "c4":
        blocks += model.roi_heads.box_head.layer4
    norms = [model.backbone.body.bn1] + [n for b in blocks for n in (b.bn1, b.bn2, b.bn3, *([b.downsample[1]] if b.downsample else []))]
    assert len(blocks) == 5 and {norm.eps for norm in norms} == {1e-3}
    last = 1 if kind == "single" else 2  # layer4 is dilated
    assert [(b.conv1.stride, b.conv2.stride) for b in blocks] == [(1, 1), (2, 1), (1, 1), (2, 1), (last, 1)]
    # what eps does: y = (x - mean) / sqrt(var + eps)
    norm, x = model.backbone.body.bn1, np.ones((1, 2, 1, 1), np.float32)
    norm.running_var.data = np.float32([0, 1])
    np.testing.assert_allclose(norm.forward(x, False)[0].ravel(), [1 / np.sqrt(1e-3), 1 / np.sqrt(1.001)], rtol=1e-6)


def test_frozen_stages():
    model = nprcnn.maskrcnn_tiny(trainable_backbone_layers=3)
    frozen = {name for name, p in model.named_parameters() if not p.trainable}
    assert frozen == {name for name, _ in model.named_parameters()
                      if name.startswith(("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"))}
