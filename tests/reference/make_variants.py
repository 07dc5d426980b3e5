"""Writes variants.npz and the lists of keys of the v2 models from torchvision (made with 0.29.2, torch 2.15, on the CPU): the parts of the
models that are not ResNet-50-FPN's first version, and a small v2 model as a whole.

    python make_variants.py            needs torch and torchvision; the tests need neither

Inputs come from seeded.py. Everything is float64.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models import detection, resnet, vgg
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

import seeded
from in_torch import fill, gradient_dots, running_dots, scene, t

HERE = Path(__file__).parent
out = {}


def lines_of(state):
    return [f"{name} {' '.join(map(str, value.shape))}" for name, value in state.items() if not name.endswith("num_batches_tracked")]


# ---- names, shapes and numbers of parameters of the big models; of the many depths a checksum of the list ----
for builder in ("maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2"):
    model = getattr(detection, builder)(weights=None, weights_backbone=None)
    (HERE / f"{builder}.keys.txt").write_text("\n".join(lines_of(model.state_dict())) + "\n")
    out[f"{builder}.parameters"] = np.array(sum(p.numel() for p in model.parameters()))
    print(builder, out[f"{builder}.parameters"])
for depth in (18, 34, 50, 101, 152):
    model = resnet_fpn_backbone(backbone_name=f"resnet{depth}", weights=None, norm_layer=nn.BatchNorm2d)
    text = "\n".join(lines_of(model.state_dict()))
    out[f"resnet{depth}_fpn.keys"] = np.array([zlib.crc32(text.encode()), sum(p.numel() for p in model.parameters())])
model = torchvision.models.vgg16()
text = "\n".join(line for line in lines_of(model.state_dict()) if line.startswith("features."))
out["vgg16.keys"] = np.array([zlib.crc32(text.encode()), sum(p.numel() for p in model.features.parameters())])
print("vgg16 features", out["vgg16.keys"][1])

# ---- v2's box head ----
for norm in (None, nn.BatchNorm2d):
    name = f"conv_box_head.{norm.__name__ if norm else None}"
    head = fill(detection.faster_rcnn.FastRCNNConvFCHead((3, 5, 5), [4, 6], [7], norm), "head.")
    x = t(seeded.normal("conv box head", 6, 3, 5, 5), True)
    y = head(x)
    (y * t(seeded.normal("conv box head dy", *y.shape))).sum().backward()
    out[name], out[name + ".dx"], out[name + ".dparameters"] = y.detach().numpy(), x.grad.numpy(), gradient_dots(head, "head.")
    out[name + ".running"] = running_dots(head, "head.")


# ---- a small v2 model as a whole: what differs from make_models.py's is said here alone ----

class Body(nn.Module):
    """torchvision's ResNet of basic blocks, one a stage, with a narrower stem than its class allows."""

    def __init__(self, norm):
        super().__init__()
        width = seeded.WIDTH
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        channels = width
        for i in range(4):
            out_channels, stride = width * 2 ** i, 1 if i == 0 else 2
            down = None
            if stride == 2:
                down = nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False), norm(out_channels))
            setattr(self, f"layer{i + 1}", nn.Sequential(resnet.BasicBlock(channels, out_channels, stride, down, norm_layer=norm)))
            channels = out_channels


generator = AnchorGenerator(seeded.ANCHOR_SIZES, ((0.5, 1.0, 2.0),) * 5)
norm, width, c, names = nn.BatchNorm2d, seeded.WIDTH, seeded.FPN_CHANNELS, ["0", "1", "2", "3"]
model = detection.MaskRCNN(
    BackboneWithFPN(Body(norm), {f"layer{k + 1}": str(k) for k in range(4)}, [width * 2 ** k for k in range(4)], c, norm_layer=norm),
    rpn_anchor_generator=generator, rpn_head=detection.rpn.RPNHead(c, 3, conv_depth=2),
    box_roi_pool=MultiScaleRoIAlign(names, 7, 2, canonical_scale=seeded.CANONICAL_SIZE),
    mask_roi_pool=MultiScaleRoIAlign(names, 14, 2, canonical_scale=seeded.CANONICAL_SIZE),
    box_head=detection.faster_rcnn.FastRCNNConvFCHead((c, 7, 7), [8, 10], [seeded.HIDDEN], norm),
    box_predictor=detection.faster_rcnn.FastRCNNPredictor(seeded.HIDDEN, seeded.NUM_CLASSES),
    mask_head=detection.mask_rcnn.MaskRCNNHeads(c, seeded.MASK_CHANNELS, 1, norm),
    mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(seeded.MASK_CHANNELS[-1], seeded.MASK_CHANNELS[-1], seeded.NUM_CLASSES),
    **seeded.SMALL)
# Ties for the best anchor are equalities to the last bit, so they depend on the precision: float32, as in every real training.
model.rpn.box_similarity = lambda a, b: torchvision.ops.box_iou(a.float(), b.float())
fill(model).eval()
inputs, wanted = scene()
with torch.no_grad():
    detections = model(inputs)
for k, found in enumerate(detections):
    for key in ("boxes", "labels", "scores"):
        out[f"v2.{key}.{k}"] = found[key].numpy()
    out[f"v2.masks.{k}"] = np.packbits(found["masks"][:, 0].numpy() >= 0.5)
    print("v2", k, len(found["boxes"]), "detections, mask pixels", (found["masks"][:, 0] > 0.5).sum((1, 2)).tolist(),
          "nearest to .5:", (found["masks"] - 0.5).abs().min().item())
model.train()
losses = model(inputs, wanted)
sum(losses.values()).backward()
print("v2", {key: round(value.item(), 6) for key, value in losses.items()})
out["v2.losses"] = np.array([losses[key].item() for key in (
    "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")])
out["v2.dparameters"], out["v2.running"] = gradient_dots(model), running_dots(model)

# ---- layer4 as the head: on all RoIs, then, with the same weights, on three of them ----
for norm in (nn.BatchNorm2d, FrozenBatchNorm2d):
    name = f"res5.{norm.__name__}"
    down = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), norm(32))
    layer4 = fill(nn.Sequential(resnet.Bottleneck(16, 8, 2, down, norm_layer=norm), resnet.Bottleneck(32, 8, norm_layer=norm)), "layer4.")
    x = t(seeded.normal("res5", 5, 16, 6, 6), True)
    hidden = layer4(x).mean((2, 3))
    maps = layer4(x[[0, 2, 3]])
    ((hidden * t(seeded.normal("res5 dhidden", *hidden.shape))).sum() + (maps * t(seeded.normal("res5 dmaps", *maps.shape))).sum()).backward()
    out[name + ".hidden"], out[name + ".maps"] = hidden.detach().numpy(), maps.detach().numpy()
    out[name + ".dx"], out[name + ".dparameters"] = x.grad.numpy(), gradient_dots(layer4, "layer4.")
    out[name + ".running"] = running_dots(layer4, "layer4.")

# ---- layer4 dilated: torchvision's blocks; all of them dilated, as in Detectron2 (torchvision's own ResNet leaves the first one out) ----
down = nn.Sequential(nn.Conv2d(8, 16, 1, 1, bias=False), nn.BatchNorm2d(16))
layer4 = fill(nn.Sequential(resnet.Bottleneck(8, 4, 1, down, dilation=2), resnet.Bottleneck(16, 4, dilation=2)), "dilated.")
x = t(seeded.normal("dilated", 2, 8, 7, 9), True)
y = layer4(x)
(y * t(seeded.normal("dilated dy", *y.shape))).sum().backward()
out["dilated"], out["dilated.dx"], out["dilated.dparameters"] = y.detach().numpy(), x.grad.numpy(), gradient_dots(layer4, "dilated.")

# ---- VGG-16, narrow ----
plan = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
for norm in (False, True):
    name = f"vgg.{'batch' if norm else None}"
    features = vgg.make_layers(plan, norm)[:-1]
    for layer in features:
        if norm and isinstance(layer, nn.Conv2d):
            layer.bias = None  # batch norm takes it away again; nprcnn's has none
    fill(features, "features.")
    x = t(seeded.normal("vgg", 2, 3, 37, 50))
    maps, y = [], x
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            maps.append(y)
        y = layer(y)
    maps.append(y)
    # the gradient comes to the last map, and to the third as well
    ((y * t(seeded.normal("vgg dy", *y.shape))).sum() + (maps[2] * t(seeded.normal("vgg dy 2", *maps[2].shape))).sum()).backward()
    for k, y in enumerate(maps):
        out[f"{name}.{k}"] = y.detach().numpy() if k > 1 else y.detach().numpy()[:, :, ::5, ::5]
    out[f"{name}.dparameters"], out[f"{name}.running"] = gradient_dots(features, "features."), running_dots(features, "features.")

# ---- pasting, as Detectron2 does: every pixel's centre looked up with grid_sample ----
size, m = (23, 31), 7
boxes = np.concatenate([seeded.boxes("paste continuous", 8, *size, 0.7), np.array(
    [[-4.3, -2.2, 9.4, 12.9], [20.5, 15.25, 40, 30], [3, 4, 10, 11], [0, 0, 31, 23], [5.2, 5.3, 5.4, 5.5], [-9, 2, -3, 8]])])
masks = seeded.uniform("paste continuous masks", 0, 1, len(boxes), m, m)
x1, y1, x2, y2 = (v[:, None] for v in t(boxes).T)
y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
grid = torch.stack([x[:, None, :].expand(-1, *size), y[:, :, None].expand(-1, *size)], dim=3)
out["paste.boxes"], out["paste.size"] = boxes, np.array(size)
out["paste.pasted"] = F.grid_sample(t(masks)[:, None], grid, align_corners=False)[:, 0].numpy()
assert (np.abs(out["paste.pasted"] - 0.5) > 1e-6).all()

np.savez_compressed(HERE / "variants.npz", **out)
print("variants.npz", (HERE / "variants.npz").stat().st_size, "bytes")
