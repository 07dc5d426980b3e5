"""Which model a file belongs to, Detectron2's names, and a model from a file alone."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from reference import seeded

import nprcnn
from nprcnn.data.coco_names import COCO_81, COCO_91, class_names
from nprcnn.data.shapes import CLASS_NAMES
from nprcnn.errors import ConfigError, WeightsError
from nprcnn.models import builders
from nprcnn.models.resnet import DEPTHS, Bottleneck
from nprcnn.pretrained import NoNumbers, load_model
from nprcnn.weights import recognise as module
from nprcnn.weights.detectron2 import from_detectron2, is_detectron2
from nprcnn.weights.recognise import recognise

REFERENCE = Path(__file__).parent / "reference"
NARROW = dict(fpn_channels=8, box_hidden=16, mask_channels=(8, 8))  # of a pyramid's heads
MANY = 10 ** 9


def empty(builder, **arguments):
    """The state of a model, all zeros: a large one takes no time."""
    return getattr(builders, builder)(rng=NoNumbers(MANY), **arguments).state_dict()


def shapes(state):
    return {name: tuple(array.shape) for name, array in state.items()}


def drawn(state):
    """Every tensor from its name alone (reference/seeded.py), float32."""
    return {name: seeded.tensor(name, array.shape).astype(np.float32) for name, array in state.items()}


def write(state, path):
    from safetensors.numpy import save_file
    save_file(state, path)
    return path


# ---- every builder is recognised from its own state ----

@pytest.mark.parametrize("builder, arguments, about", [
    ("maskrcnn_resnet_fpn", {"depth": 18, **NARROW}, "Mask R-CNN, ResNet-18 with FPN, 91 classes"),
    ("maskrcnn_resnet_fpn", {"depth": 34, "num_classes": 5, "masks": False}, "Faster R-CNN, ResNet-34 with FPN, 5 classes"),
    ("maskrcnn_resnet50_fpn", {}, "Mask R-CNN, ResNet-50 with FPN"),
    ("fasterrcnn_resnet50_fpn", {"num_classes": 21}, "Faster R-CNN, ResNet-50 with FPN, 21 classes"),
    ("maskrcnn_resnet50_fpn_v2", {}, "Mask R-CNN, ResNet-50 with FPN, 91 classes with the background, the heads of torchvision's v2"),
    ("fasterrcnn_resnet50_fpn_v2", {}, "Faster R-CNN, ResNet-50 with FPN"),
    ("maskrcnn_resnet101_fpn", NARROW, "Mask R-CNN, ResNet-101 with FPN"),
    ("maskrcnn_resnet_fpn", {"depth": 152, **NARROW}, "ResNet-152 with FPN"),
    ("maskrcnn_resnet_fpn", {"depth": 18, "head_norm": "batch", "mask_loss": "agnostic", **NARROW}, "ResNet-18"),
    ("maskrcnn_resnet50_c4", {}, "Mask R-CNN, ResNet-50 in the C4 form"),
    ("maskrcnn_resnet101_c4", {"masks": False, "num_classes": 2}, "Faster R-CNN, ResNet-101 in the C4 form, 2 classes"),
    ("maskrcnn_resnet50_dc5", {"box_hidden": 16}, "Mask R-CNN, ResNet-50 in the DC5 form"),
    ("maskrcnn_vgg16", {"box_hidden": 16}, "Mask R-CNN, VGG-16, 91"),
    ("maskrcnn_vgg16", {"width": 8, "norm": "batch", "masks": False, "box_hidden": 16}, "Faster R-CNN, a VGG-16 of 8 channels"),
    ("maskrcnn_tiny", {}, "Mask R-CNN, a ResNet of 2-2-2-2 blocks and 20 channels with FPN, 7 classes"),
    ("maskrcnn_tiny", {"width": 4, "blocks": (1, 2, 1, 1), "mask_head": "mlp", "box_hidden": 9, "masks": True}, "1-2-1-1 blocks"),
    ("maskrcnn_tiny", {"kind": "c4", "width": 4}, "in the C4 form"),
    ("maskrcnn_tiny", {"kind": "single", "width": 4, "head_norm": "batch"}, "in the DC5 form"),
])
def test_every_builder_is_recognised(builder, arguments, about):
    state = empty(builder, **arguments)
    found = recognise(state)
    assert about in str(found)
    assert shapes(empty(found.builder, **found.arguments)) == shapes(state)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2",
                                  "fasterrcnn_resnet50_fpn_v2"])
def test_torchvision_s_own_keys_are_recognised(name):
    lines = (REFERENCE / f"{name}.keys.txt").read_text().splitlines()
    state = {key: np.broadcast_to(np.float32(0), [int(n) for n in shape]) for key, *shape in map(str.split, lines)}
    found = recognise(state)
    assert found.builder == name and "norm" not in found.arguments and shapes(empty(name, **found.arguments)) == shapes(state)
    counted = {**state, "backbone.body.bn1.num_batches_tracked": np.array(3)}  # trainable batch norm counts its batches
    assert recognise(counted).arguments.get("norm") == (None if "v2" in name else "batch")  # v2 has it anyway


def test_the_depths_are_those_of_the_models():
    assert module.DEPTHS == {(block is Bottleneck, blocks): depth for depth, (block, blocks) in DEPTHS.items()}


SMALL = empty("maskrcnn_resnet_fpn", depth=18, **NARROW)
BODY = {name.removeprefix("backbone.body."): array for name, array in SMALL.items() if name.startswith("backbone.body.")}
ZERO = np.zeros(3, np.float32)


@pytest.mark.parametrize("state, message", [
    ({**BODY, "fc.weight": ZERO}, "a ResNet that classifies whole images, without a detector. It finds no objects; give a detector's"),
    ({"features.0.weight": ZERO, "classifier.0.weight": ZERO}, "classifies whole images .VGG"),
    ({"conv1_w": ZERO, "res2_0_branch2a_w": ZERO}, "a ResNet of ImageNet from Detectron2's model zoo"),
    ({**SMALL, "roi_heads.keypoint_head.0.weight": ZERO}, "a Keypoint R-CNN"),
    ({"backbone.body.conv1.weight": ZERO, "head.classification_head.conv.0.weight": ZERO}, "a one-stage detector"),
    ({"transformer.encoder.layers.0.linear1.weight": ZERO}, "a transformer"),
    ({"backbone.layer1.weight": ZERO, "rpn_head.rpn_conv.weight": ZERO}, "a detector of MMDetection"),
    ({"backbone.body.0.0.weight": ZERO, "rpn.head.cls_logits.weight": ZERO}, "another backbone .MobileNet"),
    ({name: a for name, a in SMALL.items() if name.startswith("backbone.")}, "it has no region proposal network"),
    ({name: a for name, a in SMALL.items() if not name.startswith("roi_heads.box_pred")}, "it has no box predictor"),
    ({"something": ZERO}, "it has no backbone .*its 1 arrays begin with something"),
    ({}, "it is empty"),
    ({**SMALL, "rpn.head.cls_logits.weight": np.zeros((9, 8, 1, 1))}, "9 anchors a cell where 3 are usual"),
    ({**SMALL, "backbone.body.layer1.0.conv2.weight": np.zeros((64, 2, 3, 3))}, "in groups"),
    ({name: a for name, a in SMALL.items() if ".fc6." not in name}, "roi_heads.box_head.fc6.weight is missing"),
    ({**SMALL, "extra": np.zeros((1, 2, 3))}, "arrays of 3 axes"),
])
def test_what_is_no_detector_is_refused_by_its_name(state, message):
    with pytest.raises(WeightsError, match=message) as caught:
        recognise(state)
    assert "\n" not in str(caught.value)


# ---- Detectron2 ----

def detectron2_state(form, fg=80, masks=True):
    """Names and shapes of Detectron2's R50 models, written down from its code (modeling/backbone/resnet.py, fpn.py, proposal_generator/
    rpn.py, roi_heads/*.py); the numbers tell their row: array[k] == k + 1/2, so that a moved row is seen."""
    found = {}

    def add(name, *shape):
        rows = np.arange(shape[0], dtype=np.float32) + 0.5
        found[name] = np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape)

    def layer(name, *shape):
        add(f"{name}.weight", *shape)
        add(f"{name}.bias", shape[0])

    def conv(name, out, into, size):
        add(f"{name}.weight", out, into, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.norm.{part}", out)

    bottom = "backbone.bottom_up." if form == "fpn" else "backbone."
    conv(f"{bottom}stem.conv1", 64, 3, 7)
    channels = 64
    for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3)):
        width = 64 * 2 ** (stage - 2)
        place = "roi_heads.res5" if form == "c4" and stage == 5 else f"{bottom}res{stage}"
        for block in range(blocks):
            if block == 0:
                conv(f"{place}.{block}.shortcut", 4 * width, channels, 1)
            conv(f"{place}.{block}.conv1", width, channels, 1)
            conv(f"{place}.{block}.conv2", width, width, 3)
            conv(f"{place}.{block}.conv3", 4 * width, width, 1)
            channels = 4 * width
    if form == "fpn":
        for level in (2, 3, 4, 5):
            layer(f"backbone.fpn_lateral{level}", 256, 64 * 2 ** level, 1, 1)
            layer(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    feature, anchors = {"fpn": (256, 3), "c4": (1024, 15), "dc5": (2048, 15)}[form]
    layer("proposal_generator.rpn_head.conv", feature, feature, 3, 3)
    layer("proposal_generator.rpn_head.objectness_logits", anchors, feature, 1, 1)
    layer("proposal_generator.rpn_head.anchor_deltas", 4 * anchors, feature, 1, 1)
    found["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((anchors, 4), np.float32)
    hidden = 2048
    if form != "c4":
        hidden = 1024
        layer("roi_heads.box_head.fc1", 1024, feature * 49)
        layer("roi_heads.box_head.fc2", 1024, 1024)
    layer("roi_heads.box_predictor.cls_score", fg + 1, hidden)
    layer("roi_heads.box_predictor.bbox_pred", 4 * fg, hidden)
    if masks:
        into = 2048 if form == "c4" else feature
        for k in range(0 if form == "c4" else 4):
            layer(f"roi_heads.mask_head.mask_fcn{k + 1}", 256, into, 3, 3)
            into = 256
        add("roi_heads.mask_head.deconv.weight", into, 256, 2, 2)
        add("roi_heads.mask_head.deconv.bias", 256)
        layer("roi_heads.mask_head.predictor", fg, 256, 1, 1)
    return found


@pytest.mark.parametrize("form, builder", [("fpn", "maskrcnn_resnet50_fpn"), ("c4", "maskrcnn_resnet_c4"),
                                           ("dc5", "maskrcnn_resnet50_dc5")])
@pytest.mark.parametrize("masks", [True, False])
def test_every_name_of_detectron2_has_its_place(form, builder, masks):
    theirs = detectron2_state(form, masks=masks)
    assert is_detectron2(theirs) and not is_detectron2(SMALL)
    found = recognise(theirs)
    if form == "fpn" and not masks:
        builder = "fasterrcnn_resnet50_fpn"
    assert found.builder == builder and found.arguments["conventions"] == "detectron2" and found.arguments["num_classes"] == 81
    ours = from_detectron2(theirs)
    assert shapes(ours) == shapes(empty(found.builder, **found.arguments))  # no name is left over and none is missing


def test_detectron2_s_classes_get_their_places():
    ours = from_detectron2(detectron2_state("fpn"))

    def rows(name):
        for end in ("weight", "bias"):
            array = ours[f"roi_heads.{name}.{end}"]
            assert (array == array.reshape(len(array), -1)[:, :1].reshape(-1, *[1] * (array.ndim - 1))).all()
            yield array.reshape(len(array), -1)[:, 0].tolist()

    for found in rows("box_predictor.cls_score"):
        assert found == [80.5] + [k + 0.5 for k in range(80)]  # the background was the last one
    for found in rows("box_predictor.bbox_pred"):
        assert found == [0] * 4 + [k + 0.5 for k in range(320)]
    for found in rows("mask_predictor.mask_fcn_logits"):
        assert found == [0] + [k + 0.5 for k in range(80)]
    agnostic = {**detectron2_state("fpn"), "roi_heads.mask_head.predictor.weight": np.ones((1, 256, 1, 1)),
                "roi_heads.mask_head.predictor.bias": np.ones(1)}
    assert len(from_detectron2(agnostic)["roi_heads.mask_predictor.mask_fcn_logits.bias"]) == 1
    assert recognise(agnostic).arguments["mask_loss"] == "agnostic"
    with pytest.raises(WeightsError, match="4 outputs where 80 classes need 320"):
        from_detectron2({**detectron2_state("fpn"), "roi_heads.box_predictor.bbox_pred.weight": np.ones((4, 1024))})
    with pytest.raises(WeightsError, match="backbone.body.conv1.weight is in the file under two"):
        from_detectron2({"backbone.stem.conv1.weight": ZERO, "backbone.bottom_up.stem.conv1.weight": ZERO})


def test_a_file_of_detectron2_computes_what_the_same_numbers_do_here(tmp_path):
    """A narrow model's numbers, written under Detectron2's names by the table above read backwards, come back bit for bit."""
    model = builders.maskrcnn_resnet_fpn(18, 5, conventions="detectron2", min_size=64, max_size=80, **NARROW)
    model.load_state_dict(drawn(model.state_dict()))
    for name in ("box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"):  # Detectron2 has no such rows
        for tensor in (t for n, t in model.named_tensors() if name in n):
            tensor.data[:4 if "bbox" in name else 1] = 0
    theirs = {}
    for name, array in model.state_dict().items():
        name = re.sub(r"backbone\.body\.(conv1|bn1)", r"backbone.bottom_up.stem.\1", name)
        name = re.sub(r"backbone\.body\.layer(\d)", lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
        name = re.sub(r"fpn\.inner_blocks\.(\d)\.0", lambda m: f"fpn_lateral{int(m[1]) + 2}", name)
        name = re.sub(r"fpn\.layer_blocks\.(\d)\.0", lambda m: f"fpn_output{int(m[1]) + 2}", name)
        for ours, other in (("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"), ("box_head.fc6", "box_head.fc1"),
                            ("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"), ("box_head.fc7", "box_head.fc2"),
                            ("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"), ("mask_head.0.0", "mask_head.mask_fcn1"),
                            ("mask_head.1.0", "mask_head.mask_fcn2"), ("mask_predictor.conv5_mask", "mask_head.deconv"),
                            ("mask_predictor.mask_fcn_logits", "mask_head.predictor")):
            name = name.replace(ours, other)
        if "cls_score" in name:
            array = np.concatenate([array[1:], array[:1]])
        elif "box_predictor.bbox_pred" in name:
            array = array[4:]
        elif "mask_head.predictor" in name:
            array = array[1:]
        theirs[name] = array
    (tmp_path / "model_final_000000.pkl").write_bytes(pickle.dumps({"model": theirs, "__author__": "a test"}, 2))
    loaded, report = load_model(tmp_path / "model_final_000000.pkl", min_size=64, max_size=80)
    assert report.complete and "Detectron2's conventions" in report.notes[0]
    assert {n: a.tobytes() for n, a in loaded.state_dict().items()} == {n: a.tobytes() for n, a in model.state_dict().items()}
    image = seeded.scene()[0][0]
    for mine, theirs in zip(loaded.predict(image), model.predict(image)):
        np.testing.assert_array_equal(mine, theirs)
    nprcnn.load_weights(model, tmp_path / "model_final_000000.pkl")  # into a model that is there


# ---- a model from a file alone ----

@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A ResNet-18 with narrow heads and five classes."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    return write(drawn(empty("maskrcnn_resnet_fpn", depth=18, num_classes=5, **NARROW)), path)


def test_a_model_from_a_file(small_file, tmp_path):
    model, report = load_model(small_file, min_size=64, max_size=80)
    assert report.complete and report.notes == ["Mask R-CNN, ResNet-18 with FPN, 5 classes with the background"]
    reference = builders.maskrcnn_resnet_fpn(18, 5, weights=small_file, min_size=64, max_size=80, **NARROW)
    for mine, theirs in zip(model.predict(seeded.scene()[0][0]), reference.predict(seeded.scene()[0][0])):
        np.testing.assert_array_equal(mine, theirs)
    assert model.class_names == ("background", "class 1", "class 2", "class 3", "class 4")
    with pytest.raises(ConfigError, match="small.safetensors was recognised as: Mask R-CNN, ResNet-18.*colour"):
        load_model(small_file, colour="blue")
    with pytest.raises(WeightsError, match="classifier.safetensors: this is a ResNet that classifies"):
        load_model(write({**drawn(BODY), "fc.weight": np.ones((1000, 512), np.float32)}, tmp_path / "classifier.safetensors"))


def test_the_layers_named_by_a_file_must_be_in_it(tmp_path):
    """Shapes that speak of a model of gigabytes, in a file of a few: refused before the memory is taken."""
    state = {name: a for name, a in drawn(empty("maskrcnn_tiny", width=4, box_hidden=8, fpn_channels=4)).items() if "fc6" not in name}
    state["roi_heads.box_head.fc6.weight"] = np.zeros((10 ** 6, 1), np.float32)
    with pytest.raises(WeightsError, match="w.safetensors: the file holds much less than the model"):
        load_model(write(state, tmp_path / "w.safetensors"))


def test_the_release_sets_eps_and_has_coco_s_names(tmp_path, monkeypatch):
    """A file of 91 classes under the name of torchvision's first release (whose SHA-256 it has not)."""
    monkeypatch.setattr("nprcnn.weights.files.check_sha256", lambda path: None)
    state = drawn(empty("maskrcnn_resnet_fpn", depth=18, **NARROW))
    path = write(state, tmp_path / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.safetensors")
    model, report = load_model(path)
    assert model.class_names == COCO_91 and model.backbone.body.bn1.eps == 0 and "eps is now 0" in report.notes[1]
    path = write(drawn(empty("maskrcnn_resnet_fpn", depth=18, num_classes=81, **NARROW)), tmp_path / "w.safetensors")
    model, report = load_model(path)
    assert model.class_names == COCO_81 and model.backbone.body.bn1.eps == 1e-5 and len(report.notes) == 1


# ---- names of classes ----

def test_coco_s_names():
    assert len(COCO_91) == 91 and len(COCO_81) == 81 and len(set(COCO_81)) == 81
    assert [k for k, name in enumerate(COCO_91) if name == "N/A"] == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert (COCO_91[1], COCO_91[13], COCO_91[90]) == ("person", "stop sign", "toothbrush") == (COCO_81[1], COCO_81[12], COCO_81[80])
    assert class_names(91) is COCO_91 and class_names(81) is COCO_81 and class_names(3) == ("background", "class 1", "class 2")


def test_names_of_classes_travel_with_the_file(tmp_path):
    assert nprcnn.maskrcnn_tiny(weights="shapes").class_names == CLASS_NAMES == load_model("shapes")[0].class_names
    names = ("background", "cat", "dog")
    settings = dict(num_classes=3, width=4, fpn_channels=4, box_hidden=4, mask_channels=(4,))
    nprcnn.save_weights(nprcnn.maskrcnn_tiny(class_names=names, **settings), tmp_path / "w.safetensors", {"seed": "1"})
    assert load_model(tmp_path / "w.safetensors")[0].class_names == names
    own = nprcnn.maskrcnn_tiny(class_names=("background", "a", "b"), **settings)
    nprcnn.load_weights(own, tmp_path / "w.safetensors")
    assert own.class_names == ("background", "a", "b")  # the model's own stay


@pytest.mark.parametrize("text", ["[", "[1, 2, 3]", '["a", "b\\u001b[2J", "c"]', "[" * 100_000, "7"])
def test_broken_names_of_classes(tmp_path, text):
    from safetensors.numpy import save_file
    model = nprcnn.maskrcnn_tiny(3, width=4, fpn_channels=4, box_hidden=4, mask_channels=(4,))
    save_file(drawn(model.state_dict()), tmp_path / "w.safetensors", {"class_names": text})
    before = {n: a.tobytes() for n, a in model.state_dict().items()}
    with pytest.raises(WeightsError, match="w.safetensors: the names of the classes in its metadata are broken"):
        nprcnn.load_weights(model, tmp_path / "w.safetensors")
    assert {n: a.tobytes() for n, a in model.state_dict().items()} == before
