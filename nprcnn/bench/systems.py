"""The systems that are compared: each has a name, `predict()` and `train_step()`, and some can say which stage took how long.

Those that are not nprcnn are imported where they are used; whoever has them installed gets the comparison.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from .stopwatch import Stopwatch, roi_head_places
from .subject import CLASSES, scene, seeded_state

TRAINABLE = 3  # stages of the backbone: torchvision's choice for fine-tuning


class Nprcnn:
    """This project. model: a MaskRCNN; images: list of images."""

    name = "nprcnn"

    def __init__(self, model, image, target):
        from ..train.sgd import SGD
        self.model, self.image, self.target = model, image, target
        self.sgd = SGD(model.parameters())

    def predict(self):
        return self.model.predict(self.image)

    def places(self, method="forward"):
        """What the stopwatch watches; method: "forward" or "backward"."""
        from ..models import postprocess, rpn, transform
        model = self.model
        places = [("backbone", model.backbone.body, method), ("RPN head", model.rpn.head, method), ("proposals", model.rpn, method),
                  ("RoIAlign", model.box_features, method), *roi_head_places(model.roi_heads, method)]
        if hasattr(model.backbone, "fpn"):
            places.append(("FPN", model.backbone.fpn, method))
        if model.has_masks:
            places.append(("RoIAlign", model.mask_features, method))
        if method == "forward":
            places += [("transform", transform, "make_batch"), ("proposals", rpn, "filter_proposals"),
                       ("proposals", model, "anchor_generator"), ("detections", postprocess, "filter_detections"),
                       ("paste", model, "_detections")]
        return places

    def predict_by_stage(self):
        """The detections, and seconds by stage."""
        stopwatch = Stopwatch()
        with stopwatch.watch(self.places()):
            found = self.predict()
        return found, stopwatch.seconds

    def train_step(self, stopwatch):
        """One step: forward, backward, SGD with a learning rate so small that the next one does the same work."""
        self.model.zero_grad()
        losses, cache = stopwatch.watched("forward", self.model.losses)([self.image], [self.target], np.random.default_rng(0))
        stopwatch.watched("backward", self.model.backward)(cache)
        stopwatch.watched("SGD", self.sgd.step)(1e-9)
        return {name: float(loss) for name, loss in losses.items()}


class Torchvision:
    """torchvision's model on the CPU."""

    name = "torchvision"

    def __init__(self, threads, image, target, masks=True, **settings):
        import torch
        from torchvision.models.detection import FasterRCNN, MaskRCNN
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
        from torchvision.ops.misc import FrozenBatchNorm2d
        torch.set_num_threads(threads)
        self.torch = torch
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d,
                                       trainable_layers=TRAINABLE)
        self.model = (MaskRCNN if masks else FasterRCNN)(backbone, CLASSES, **settings).eval()
        state = seeded_state({name: tuple(t.shape) for name, t in self.model.state_dict().items()})
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        self.image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
        self.target = {name: torch.from_numpy(array) for name, array in target.items()}
        self.sgd = None

    def predict(self):
        with self.torch.inference_mode():
            found = self.model([self.image])[0]
            if "masks" in found:
                found["masks"] = found["masks"][:, 0] >= 0.5  # as nprcnn's are
        return found

    def places(self):
        model = self.model
        places = [("transform", model.transform, "forward"), ("backbone", model.backbone.body, "forward"),
                  ("FPN", model.backbone.fpn, "forward"), ("RPN head", model.rpn.head, "forward"), ("proposals", model.rpn, "forward"),
                  ("RoIAlign", model.roi_heads.box_roi_pool, "forward"), ("detections", model.roi_heads, "postprocess_detections"),
                  ("paste", model.transform, "postprocess"), *roi_head_places(model.roi_heads)]
        if getattr(model.roi_heads, "mask_roi_pool", None) is not None:
            places.append(("RoIAlign", model.roi_heads.mask_roi_pool, "forward"))
        return places

    def predict_by_stage(self):
        stopwatch = Stopwatch()
        with stopwatch.watch(self.places()):
            found = self.predict()
        return found, stopwatch.seconds

    def train_step(self, stopwatch):
        self.model.train()
        if self.sgd is None:
            self.sgd = self.torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=1e-9, momentum=0.9,
                                            weight_decay=1e-4)
        self.sgd.zero_grad()
        losses = stopwatch.watched("forward", self.model)([self.image], [self.target])
        stopwatch.watched("backward", sum(losses.values()).backward)()
        stopwatch.watched("SGD", self.sgd.step)()
        self.model.eval()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def export(self, path, pastes=True):
        """Write the model as ONNX, by torchvision's documented way (tracing, opset 11 or later). pastes=False: the masks stay 28 x 28."""
        import warnings
        from torchvision.models.detection import transform
        paste = transform.paste_masks_in_image
        try:
            if not pastes:
                transform.paste_masks_in_image = lambda masks, boxes, image_shape: masks
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.torch.onnx.export(self.model, ([self.image],), str(path), opset_version=17, dynamo=False, input_names=["image"])
        finally:
            transform.paste_masks_in_image = paste


class OnnxRuntime:
    """ONNX Runtime on a file of `Torchvision.export`."""

    name, pastes = "onnxruntime", True

    def __init__(self, path, threads, image):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.feed = {self.session.get_inputs()[0].name: _as_input(image)}

    def predict(self):
        return self.session.run(None, self.feed)


class OpenVino:
    """OpenVINO on a file of `Torchvision.export` without the pasting, whose loop it cannot convert (2026.4); torchvision pastes for it."""

    name, pastes = "openvino", False

    def __init__(self, path, threads, image):
        import openvino
        core = openvino.Core()
        self.compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_NUM_THREADS": threads})
        self.input, self.size = _as_input(image), image.shape[:2]

    def predict(self):
        outputs = [np.array(output) for output in self.compiled([self.input]).values()]
        if len(outputs) == 4:  # boxes, labels, scores, masks (D, 1, 28, 28)
            import torch
            from torchvision.models.detection.roi_heads import paste_masks_in_image
            outputs[3] = paste_masks_in_image(torch.from_numpy(outputs[3]), torch.from_numpy(outputs[0]), self.size).numpy() >= 0.5
        return outputs


NAMES = ("nprcnn", "torchvision", "onnxruntime", "openvino")


def build(name, threads, masks=True, onnx_folder=None, **settings):
    """One system with the seeded model and scene. settings: of the model (min_size, ...).

    Raises
    ------
    ConfigError
        It is not installed, or cannot run the model.
    """
    image, target = scene()
    if name == "nprcnn":
        from ..models import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
        builder = maskrcnn_resnet50_fpn if masks else fasterrcnn_resnet50_fpn
        model = builder(CLASSES, trainable_backbone_layers=TRAINABLE, **settings)
        model.load_state_dict(seeded_state({key: array.shape for key, array in model.state_dict().items()}))
        return Nprcnn(model, image, target)
    needed = ("torchvision",) if name == "torchvision" else ("torchvision", "onnx", name)
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{name} is left out: {package} is not installed")
    if name == "torchvision":
        return Torchvision(threads, image, target, masks, **settings)
    system = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[name]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(onnx_folder or folder) / f"{'mask' if masks else 'faster'}_rcnn_{'whole' if system.pastes else 'no_paste'}.onnx"
            if not path.exists():
                Torchvision(threads, image, target, masks, **settings).export(path, system.pastes)
            return system(path, threads, image)
    except Exception as error:  # whatever an exporter or another runtime may raise: the comparison goes on without it
        raise ConfigError(f"{name} is left out: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _as_input(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
