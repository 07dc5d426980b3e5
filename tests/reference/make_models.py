"""Writes models.npz and the two lists of keys from torchvision (made with 0.29.2, torch 2.15, on the CPU).

    python make_models.py            needs torch and torchvision; the tests need neither

Inputs come from seeded.py. Everything is float64 unless the name says otherwise.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import detection, resnet
from torchvision.models.detection import _utils, roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

import seeded

HERE = Path(__file__).parent
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
out = {}


def t(array, grad=False):
    return torch.tensor(np.asarray(array), requires_grad=grad)


def fill(module, prefix=""):
    """Give every parameter and buffer its number from seeded.py, under the state dict's name."""
    state = {name: value if name.endswith("num_batches_tracked") else t(seeded.tensor(prefix + name, tuple(value.shape)))
             for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module.double()


def gradient_dots(module, prefix=""):
    """<gradient, seeded direction> of every parameter, in the order of named_parameters."""
    return np.array([float((p.grad * t(seeded.normal("direction " + prefix + name, *p.shape))).sum())
                     for name, p in module.named_parameters()])


# ---- transform ----
sizes = [(h, w, 800, 1333) for h, w in
         ((334, 500), (335, 500), (337, 480), (369, 640), (480, 640), (427, 640), (640, 427), (800, 2143), (800, 2154),
          (2154, 800), (2143, 700), (600, 1000), (1, 1), (100, 1200), (1333, 800), (46, 77), (500, 335), (799, 1331))]
sizes += [(h, w, 128, 256) for h, w in ((3, 200), (128, 128), (61, 97), (97, 61), (255, 129))]
sizes += [(int(h), int(w), int(m), int(m * 1.6)) for h, w, m in seeded.uniform("sizes", 20, 400, 60, 3)]
transform = GeneralizedRCNNTransform(800, 1333, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
result = []
for h, w, small, large in sizes:
    transform.min_size, transform.max_size = (small,), large
    image, _ = transform.resize(torch.zeros(1, h, w, dtype=torch.float32))
    result.append((h, w, small, large, *image.shape[1:]))
out["transform.sizes"] = np.array(result, np.int32)

images = [np.floor(seeded.uniform(f"transform {k}", 0, 256, *s, 3)).astype(np.uint8) for k, s in enumerate(((13, 21), (17, 11)))]
masks = [(seeded.uniform(f"transform mask {k}", 0, 1, 2, *image.shape[:2]) > 0.5).astype(np.uint8) for k, image in enumerate(images)]
transform.min_size, transform.max_size = (16,), 24
batch, targets = transform([t(image.transpose(2, 0, 1) / 255.0) for image in images],
                           [{"boxes": t(seeded.boxes(f"transform boxes {k}", 2, *image.shape[:2])), "masks": t(masks[k])}
                            for k, image in enumerate(images)])
out["transform.batch"] = batch.tensors.numpy()
for k, target in enumerate(targets):
    out[f"transform.boxes.{k}"] = target["boxes"].numpy()
    out[f"transform.masks.{k}"] = target["masks"].numpy()

# ---- matching; IoU in steps of 1/8, so that there are ties ----
iou = np.round(seeded.uniform("iou", 0, 1, 5, 60) ** 2 * 8) / 8
iou[3] *= 0.25                                   # a target that no box fits well
iou[4] = 0                                       # one that meets no box at all
for name, rows in (("five", iou), ("four", iou[:4])):
    out[f"match.{name}.rpn"] = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)(t(rows)).numpy()
    out[f"match.{name}.box"] = _utils.Matcher(0.5, 0.5)(t(rows)).numpy()

# ---- RoI levels, float32 and float64 ----
side = np.concatenate([np.array([7, 28, 56, 112, 224, 448, 896, 2000.0]), np.exp(seeded.uniform("sides", 2, 7, 80))])
side = np.concatenate([side, np.nextafter(np.float32(side), np.float32(0))])
corner = np.zeros_like(side)
squares = np.stack([corner, corner, side, side], axis=1)
for dtype in (np.float32, np.float64):
    out[f"levels.{np.dtype(dtype).name}"] = LevelMapper(2, 5)([t(squares.astype(dtype))]).numpy()
    out[f"levels56.{np.dtype(dtype).name}"] = LevelMapper(2, 5, canonical_scale=56)([t(squares.astype(dtype))]).numpy()

# ---- anchors of five levels ----
generator = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
shapes = [(25, 38), (13, 19), (7, 10), (4, 5), (2, 3)]          # strides that are not powers of 2, too
anchors = generator(ImageList(torch.zeros(1, 3, 104, 152), [(100, 150)]), [torch.zeros(1, 1, *s, dtype=torch.float32) for s in shapes])[0]
assert (anchors == anchors.round()).all()
out["anchors"] = anchors.numpy().astype(np.int16)

# ---- proposals ----
grids = [(8, 10), (4, 5), (2, 3), (1, 2), (1, 1)]
small_generator = AnchorGenerator(seeded.ANCHOR_SIZES, ((0.5, 1.0, 2.0),) * 5)
region = rpn.RegionProposalNetwork(small_generator, nn.Identity(), 0.7, 0.3, 256, 0.5, dict(training=60, testing=60),
                                   dict(training=40, testing=40), 0.7)
image_list = ImageList(torch.zeros(2, 3, 64, 80), [(60, 77), (64, 50)])
level_anchors = small_generator(image_list, [torch.zeros(2, 1, *g) for g in grids])
counts = [3 * h * w for h, w in grids]
logits = t(3 * seeded.normal("rpn logits", 2, sum(counts)))
deltas = t(0.5 * seeded.normal("rpn deltas", 2, sum(counts), 4))
deltas[:, ::17, 2:] -= 40                        # some boxes collapse
decoded = region.box_coder.decode(deltas.reshape(-1, 4), level_anchors).view(2, -1, 4)
found = region.filter_proposals(decoded, logits.reshape(-1, 1), image_list.image_sizes, counts)
for k in range(2):
    out[f"proposals.boxes.{k}"], out[f"proposals.scores.{k}"] = found[0][k].numpy(), found[1][k].numpy()

# ---- the RPN's losses: everything is sampled ----
region.fg_bg_sampler = _utils.BalancedPositiveNegativeSampler(100_000, 0.5)
logits, deltas = t(logits.numpy(), True), t(deltas.numpy().clip(-2, 2), True)
gt = [{"boxes": t(seeded.boxes(f"rpn targets {k}", 3, 60, 50, 9.0))} for k in range(2)]
labels, matched = region.assign_targets_to_anchors(level_anchors, gt)
objectness, box = region.compute_loss(logits.reshape(-1, 1), deltas.reshape(-1, 4), labels, region.box_coder.encode(matched, level_anchors))
(2 * objectness + 3 * box).backward()
out["rpn_loss"] = np.array([objectness.item(), box.item()])
out["rpn_loss.labels"] = torch.stack(labels).numpy().astype(np.int8)
out["rpn_loss.dlogits"] = logits.grad.numpy()
out["rpn_loss.ddeltas.dot"] = np.array([(deltas.grad * t(seeded.normal("rpn ddeltas", *deltas.shape))).sum().item()])

# ---- the box head's losses ----
logits, deltas = t(seeded.normal("box logits", 12, 5), True), t(0.5 * seeded.normal("box deltas", 12, 20), True)
rois, gt_boxes = seeded.boxes("box rois", 12, 60, 80, 6.0), seeded.boxes("box targets", 12, 60, 80, 6.0)
labels = np.array([0, 1, 4, 0, 2, 2, 0, 3, 0, 1, 0, 0])
coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
classifier, box = roi_heads.fastrcnn_loss(logits, deltas, [t(labels)], [coder.encode_single(t(gt_boxes), t(rois))])
(2 * classifier + 3 * box).backward()
out["box_loss"] = np.array([classifier.item(), box.item()])
out["box_loss.dlogits"], out["box_loss.ddeltas"] = logits.grad.numpy(), deltas.grad.numpy()

# ---- detections ----
heads = roi_heads.RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 15)
logits, deltas = 2 * seeded.normal("detect logits", 40, 4), 2 * seeded.normal("detect deltas", 40, 16)
deltas[::9] -= 30                                # some boxes collapse
rois = seeded.boxes("detect rois", 40, 60, 80, 6.0)
found = heads.postprocess_detections(t(logits), t(deltas), [t(rois[:25]), t(rois[25:])], [(55, 80), (60, 72)])
for k in range(2):
    for name, value in zip(("boxes", "scores", "labels"), found):
        out[f"detections.{name}.{k}"] = value[k].numpy()

# ---- mask targets and mask loss ----
masks = (seeded.uniform("gt masks", 0, 1, 3, 40, 50) > 0.4).astype(np.uint8)
rois = seeded.boxes("mask rois", 6, 40, 50, 1.0)
rois[0] = (0, 0, 50, 40)
rois[1, 2:] = rois[1, :2] + 0.5                  # smaller than a pixel
matched = np.array([0, 1, 2, 2, 0, 1])
gt_labels = np.array([2, 1, 3])
logits = t(seeded.normal("mask logits", 6, 4, 14, 14), True)
loss = roi_heads.maskrcnn_loss(logits, [t(rois)], [t(masks)], [t(gt_labels)], [t(matched)])
loss.backward()
out["mask_targets"] = roi_heads.project_masks_on_boxes(t(masks), t(rois), t(matched), 14).numpy()
out["mask_loss"] = np.array([loss.item()])
out["mask_loss.dlogits"] = logits.grad.numpy()[np.arange(6), gt_labels[matched]]
rest = logits.grad.clone()
rest[np.arange(6), gt_labels[matched]] = 0
assert not rest.any()

# ---- blocks of the ResNet: y, dx, and the gradient of each parameter in a seeded direction ----
for block, norm, stride in ((resnet.BasicBlock, nn.BatchNorm2d, 2), (resnet.BasicBlock, FrozenBatchNorm2d, 1),
                            (resnet.Bottleneck, nn.BatchNorm2d, 1), (resnet.Bottleneck, FrozenBatchNorm2d, 2)):
    channels = 4 if stride == 1 and block is resnet.BasicBlock else 6
    width = 4 if block is resnet.BasicBlock else 2
    name = f"block.{block.__name__}.{norm.__name__}"
    down = None
    if stride == 2 or channels != width * block.expansion:
        down = nn.Sequential(nn.Conv2d(channels, width * block.expansion, 1, stride, bias=False), norm(width * block.expansion))
    module = fill(block(channels, width, stride, down, norm_layer=norm), name + ".")
    x = t(seeded.normal(name, 2, channels, 5, 7), True)
    y = module(x)
    (y * t(seeded.normal(name + " dy", *y.shape))).sum().backward()
    out[name], out[name + ".dx"] = y.detach().numpy(), x.grad.numpy()
    out[name + ".dparameters"] = gradient_dots(module, name + ".")
    out[name + ".running"] = np.concatenate([b.numpy() for n, b in module.named_buffers() if "running" in n])

# ---- the pyramid on odd sizes ----
features = [t(seeded.normal(f"fpn {k}", 2, c, *s), True) for k, (c, s) in
            enumerate(zip((3, 4, 5, 6), ((7, 9), (4, 5), (2, 3), (1, 2))))]
for norm in (None, nn.BatchNorm2d):
    name = f"fpn.{norm.__name__ if norm else None}"
    fpn = fill(FeaturePyramidNetwork([3, 4, 5, 6], 4, LastLevelMaxPool(), norm), "fpn.")
    for x in features:
        x.grad = None
    pyramid = fpn(OrderedDict((str(k), x) for k, x in enumerate(features)))
    sum((p * t(seeded.normal(f"fpn dy {k}", *p.shape))).sum() for k, p in enumerate(pyramid.values())).backward()
    for k, p in enumerate(pyramid.values()):
        out[f"{name}.p{k + 2}"] = p.detach().numpy()
    for k, x in enumerate(features):
        out[f"{name}.dc{k + 2}"] = x.grad.numpy()
    out[f"{name}.dparameters"] = gradient_dots(fpn, "fpn.")

# ---- the whole of a small Mask R-CNN: every loss, every gradient, and what it detects ----


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


def small_model(norm, head_norm):
    width, c = seeded.WIDTH, seeded.FPN_CHANNELS
    backbone = BackboneWithFPN(Body(norm), {f"layer{k + 1}": str(k) for k in range(4)}, [width * 2 ** k for k in range(4)], c,
                               norm_layer=head_norm)
    names = ["0", "1", "2", "3"]
    model = detection.MaskRCNN(
        backbone, rpn_anchor_generator=small_generator,
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2, canonical_scale=seeded.CANONICAL_SIZE),
        mask_roi_pool=MultiScaleRoIAlign(names, 14, 2, canonical_scale=seeded.CANONICAL_SIZE),
        box_head=detection.faster_rcnn.TwoMLPHead(c * 49, seeded.HIDDEN),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(seeded.HIDDEN, seeded.NUM_CLASSES),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(c, seeded.MASK_CHANNELS, 1, head_norm),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(seeded.MASK_CHANNELS[-1], seeded.MASK_CHANNELS[-1], seeded.NUM_CLASSES),
        **seeded.SMALL)
    # Ties for the best anchor are equalities to the last bit, so they depend on the precision: float32, as in every real training.
    model.rpn.box_similarity = lambda a, b: torchvision.ops.box_iou(a.float(), b.float())
    return fill(model)


images, targets = seeded.scene()
inputs = [t(image.transpose(2, 0, 1) / 255.0) for image in images]
wanted = [{"boxes": t(x["boxes"].astype(np.float64)), "labels": t(x["labels"]), "masks": t(x["masks"])} for x in targets]
for name, norm, head_norm in (("frozen", FrozenBatchNorm2d, None), ("batch", nn.BatchNorm2d, nn.BatchNorm2d)):
    model = small_model(norm, head_norm).eval()
    with torch.no_grad():
        detections = model(inputs)
    for k, found in enumerate(detections):
        for key in ("boxes", "labels", "scores"):
            out[f"model.{name}.{key}.{k}"] = found[key].numpy()
        out[f"model.{name}.masks.{k}"] = np.packbits(found["masks"][:, 0].numpy() > 0.5)
        print(name, k, len(found["boxes"]), "detections, labels", found["labels"].tolist(), "mask pixels",
              (found["masks"][:, 0] > 0.5).sum((1, 2)).tolist(), "nearest to .5:", (found["masks"] - 0.5).abs().min().item())
    model.train()
    losses = model(inputs, wanted)
    sum(losses.values()).backward()
    print(name, {key: round(value.item(), 6) for key, value in losses.items()})
    out[f"model.{name}.losses"] = np.array([losses[key].item() for key in (
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")])
    out[f"model.{name}.dparameters"] = gradient_dots(model)
    out[f"model.{name}.running"] = np.array([(b * t(seeded.normal("direction " + n, *b.shape))).sum().item()
                                             for n, b in model.named_buffers() if "running" in n])

np.savez_compressed(HERE / "models.npz", **out)
print("models.npz", (HERE / "models.npz").stat().st_size, "bytes")

# ---- names, shapes and numbers of parameters of the big models ----
for builder in ("maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn"):
    model = getattr(detection, builder)(weights=None, weights_backbone=None)
    lines = [f"{name} {' '.join(map(str, value.shape))}" for name, value in model.state_dict().items()
             if not name.endswith("num_batches_tracked")]
    (HERE / f"{builder}.keys.txt").write_text("\n".join(lines) + "\n")
    print(builder, sum(p.numel() for p in model.parameters()))
for depth in (18, 34, 50, 101, 152):
    body = getattr(torchvision.models, f"resnet{depth}")()
    print(f"resnet{depth} without fc:", sum(p.numel() for n, p in body.named_parameters() if not n.startswith("fc.")))
