"""Writes notebooks/same_numbers.npz, what notebook 18 compares with, from torchvision (made with 0.29.2, torch 2.15, on the CPU).

    python make_same_numbers.py            needs torch and torchvision; the notebook needs neither

A narrow Mask R-CNN whose weights are drawn by name, on one built-in scene.

    <stage>, <stage>.0                  float64: every stage under its name in nprcnn.trace.NAMES (.0: of a list with an entry an image)
    float32.stages, float32.errors      names; max|a - b| / max|b|, a torchvision in float32, b the above
    itself.batch, itself.frozen         (parameters,), |a - b| / |b| of each gradient of torchvision's ResNet-50 in float32, a by oneDNN's
                                        convolutions, b by PyTorch's own; batch norm in training mode, or with its first statistics
    itself.batch.gates, .frozen.gates   (2,): ReLU outputs that are 0 in one of the two and not in the other; of how many
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import detection, resnet, resnet50
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
from reference.make_parity import Recorder, levels_of, match_sets  # noqa: E402
from reference import parity_inputs  # noqa: E402
from nprcnn.data.shapes import Shapes  # noqa: E402  (needs NumPy alone)

torch.set_num_threads(1)

# As in the notebook
WIDTH, CHANNELS, HIDDEN, CLASSES = 6, 8, 16, 4
SETTINGS = dict(min_size=64, max_size=96, rpn_pre_nms_top_n_test=60, rpn_post_nms_top_n_test=20, box_score_thresh=0.05,
                box_detections_per_img=5)
SIZES, CANONICAL = ((12,), (24,), (48,), (96,), (192,)), 40
# evens out the levels, so that RoIs of all sizes survive, and spreads the scores
GAINS = {"layer_blocks.1": 1.8, "layer_blocks.2": 4.0, "layer_blocks.3": 7.0, "cls_score": 1.5}


def draw(name, shape):
    """The float32 tensor of this name: the same on every machine, for RandomState's stream is frozen."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif name.endswith(("running_mean", "bias")):
        z = 0.1 * z
    elif z.ndim == 1:
        z = 1 + 0.2 * z
    else:
        z = z - z.mean(axis=tuple(range(1, z.ndim)), keepdims=True)  # such filters keep the network alive, see parity_inputs.GAINS
        z = z * next((gain for part, gain in GAINS.items() if part in name), 1.0) * np.sqrt(2 / np.prod(shape[1:]))
    return z.astype(np.float32)


def scene():
    return Shapes(1, seed=18, size=(48, 64))[0][0]


class Body(nn.Module):
    """torchvision's ResNet with one basic block a stage and a narrower stem than its class allows."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False), FrozenBatchNorm2d(WIDTH)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        channels = WIDTH
        for i in range(4):
            out, stride = WIDTH * 2 ** i, 1 if i == 0 else 2
            down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), FrozenBatchNorm2d(out)) if stride == 2 else None
            block = resnet.BasicBlock(channels, out, stride, down, norm_layer=FrozenBatchNorm2d)
            setattr(self, f"layer{i + 1}", nn.Sequential(block))
            channels = out


def build(dtype):
    backbone = BackboneWithFPN(Body(), {f"layer{k + 1}": str(k) for k in range(4)}, [WIDTH * 2 ** k for k in range(4)], CHANNELS)
    names = ["0", "1", "2", "3"]
    model = detection.MaskRCNN(
        backbone, rpn_anchor_generator=AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2, canonical_scale=CANONICAL),
        mask_roi_pool=MultiScaleRoIAlign(names, 14, 2, canonical_scale=CANONICAL),
        box_head=detection.faster_rcnn.TwoMLPHead(CHANNELS * 49, HIDDEN),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(HIDDEN, CLASSES),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(CHANNELS, (CHANNELS, CHANNELS), 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES), **SETTINGS)
    model.load_state_dict({name: torch.tensor(draw(name, tuple(value.shape))) for name, value in model.state_dict().items()})
    return model.to(dtype).eval()


def stages(dtype):
    model = build(dtype)
    recorder = Recorder(model)
    with torch.no_grad():
        model([torch.tensor(scene().transpose(2, 0, 1).copy()).to(dtype) / 255])
    return recorder.stages


def narrow():
    b, a = stages(torch.float64), stages(torch.float32)
    rois = np.bincount(levels_of(224 / CANONICAL * b["rpn.proposals"][0]), minlength=4)
    labels = b["detections.labels"][0]
    print("RoIs by level", rois, "labels", labels, "scores", b["detections.scores"][0])
    if len(labels) < 4 or len(set(labels)) < 2 or (rois > 0).sum() < 3:
        sys.exit("the reference is not alive; choose other gains or another scene")
    by_proposal, proposals, proposal_scores = match_sets(a, b, "rpn.proposal_scores")
    by_detection, boxes, scores = match_sets(a, b, "detections.scores", "detections.labels")
    errors = {"rpn.proposals": proposals / np.abs(b["rpn.proposals"][0]).max(), "rpn.proposal_scores": proposal_scores,
              "detections.boxes": boxes / np.abs(b["detections.boxes"][0]).max(), "detections.scores": scores}
    for name in parity_inputs.STAGES:
        x = a[name]
        x = x[by_proposal] if name in parity_inputs.BY_PROPOSAL else x[by_detection] if name in parity_inputs.BY_DETECTION else x
        errors[name] = np.abs(x - b[name]).max() / np.abs(b[name]).max()
    for name, error in errors.items():
        print(f"{name:<30} {error:.1e}")
    out = {"float32.stages": np.array([zlib.crc32(name.encode()) for name in errors]), "float32.errors": np.array(list(errors.values()))}
    for name, value in b.items():
        out.update({f"{name}.{k}": v for k, v in enumerate(value)} if isinstance(value, list) else {name: value})
    return out


def itself(train):
    """ResNet-50 by two convolution algorithms: |a - b| / |b| of each parameter's gradient; gates that differ, and all gates."""
    gradients, gates = [], []
    for onednn in (True, False):
        torch.manual_seed(0)
        model = resnet50()
        model.fc = nn.Identity()
        model.train(train)
        passed = []
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda module, args, out: passed.append((out > 0).numpy().copy()))
        x, dy = torch.randn(2, 3, 128, 128), torch.randn(2, 2048)
        with torch.backends.mkldnn.flags(enabled=onednn):
            model(x).backward(dy)
        gradients.append([p.grad.double() for p in model.parameters()])
        gates.append(passed)
    errors = np.array([((a - b).norm() / b.norm()).item() for a, b in zip(*gradients)])
    flipped = np.array([sum((a != b).sum() for a, b in zip(*gates)), sum(a.size for a in gates[0])])
    kind = "batch" if train else "frozen"
    print(f"ResNet-50 against itself, {kind}: median {np.median(errors):.1e}, worst {errors.max():.1e}, gates {flipped}")
    return {f"itself.{kind}": errors, f"itself.{kind}.gates": flipped}


if __name__ == "__main__":
    out = {**narrow(), **itself(True), **itself(False)}
    path = HERE.parent.parent / "notebooks" / "same_numbers.npz"
    np.savez_compressed(path, **out)
    print(path.name, path.stat().st_size, "bytes")
