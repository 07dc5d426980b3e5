"""Writes detectron2.npz: two small models with Detectron2's conventions, one with a pyramid and one the C4 way, as PyTorch computes them
(torch 2.15, torchvision 0.29.2, Pillow 13.0, on the CPU).

    python make_detectron2.py            needs torch, torchvision and Pillow; the tests need neither of the first two

Detectron2 itself is not used. Each stage is written here anew, after its documentation and sources, of torch's operations, torchvision's
roi_align, nms and FeaturePyramidNetwork, and autograd. Everything is float64 but: the ratios by which boxes are resized, and the IoU
of the anchors, in which ties are found. Background is class 0, as in nprcnn (Detectron2 has it last; that is a matter of the weights).
Weights and images come from seeded.py.
"""

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, batched_nms, nms, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import seeded
from in_torch import fill, t

HERE = Path(__file__).parent
K, S = seeded.NUM_CLASSES, seeded.DETECTRON2
out = {}


# ---- the layers, under nprcnn's names ----

class Bottleneck(nn.Module):
    """The stride is in the first 1x1 convolution."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, stride, bias=False), FrozenBatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), FrozenBatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), FrozenBatchNorm2d(4 * width)
        self.downsample = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), FrozenBatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Body(nn.Module):
    def __init__(self, stages):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, seeded.D2_WIDTH, 7, 2, 3, bias=False), FrozenBatchNorm2d(seeded.D2_WIDTH)
        channels = seeded.D2_WIDTH
        for i in range(stages):
            setattr(self, f"layer{i + 1}", nn.Sequential(Bottleneck(channels, seeded.D2_WIDTH * 2 ** i, 1 if i == 0 else 2)))
            channels = 4 * seeded.D2_WIDTH * 2 ** i
        self.stages, self.channels = stages, channels

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
            maps.append(x)
        return maps


class Detector(nn.Module):
    def __init__(self, c4):
        super().__init__()
        self.c4 = c4
        self.backbone = nn.Module()
        self.backbone.body = Body(3 if c4 else 4)
        c = self.backbone.body.channels if c4 else seeded.FPN_CHANNELS
        if not c4:
            self.backbone.fpn = FeaturePyramidNetwork([4 * seeded.D2_WIDTH * 2 ** i for i in range(4)], c, LastLevelMaxPool())
        sizes = [sum(seeded.ANCHOR_SIZES[:4], ())] if c4 else seeded.ANCHOR_SIZES
        self.strides = [16] if c4 else [4, 8, 16, 32, 64]
        self.cells = [[(-w / 2, -h / 2, w / 2, h / 2) for size in level for ratio in (0.5, 1.0, 2.0)
                       for w in [math.sqrt(size ** 2 / ratio)] for h in [ratio * w]] for level in sizes]
        a = len(self.cells[0])
        self.rpn = nn.Module()
        self.rpn.head = nn.Module()
        self.rpn.head.conv = nn.Sequential(nn.Sequential(nn.Conv2d(c, c, 3, 1, 1)))
        self.rpn.head.cls_logits, self.rpn.head.bbox_pred = nn.Conv2d(c, a, 1), nn.Conv2d(c, 4 * a, 1)
        heads = self.roi_heads = nn.Module()
        heads.box_head = nn.Module()
        if c4:
            heads.box_head.layer4 = nn.Sequential(Bottleneck(c, 8 * seeded.D2_WIDTH, 2))
            hidden = mask_in = 32 * seeded.D2_WIDTH
        else:
            hidden, mask_in = seeded.HIDDEN, seeded.MASK_CHANNELS[-1]
            heads.box_head.fc6, heads.box_head.fc7 = nn.Linear(c * 49, hidden), nn.Linear(hidden, hidden)
        heads.box_predictor = nn.Module()
        heads.box_predictor.cls_score, heads.box_predictor.bbox_pred = nn.Linear(hidden, K), nn.Linear(hidden, 4 * K)
        if not c4:
            ins = (c, *seeded.MASK_CHANNELS)
            heads.mask_head = nn.Sequential(*(nn.Sequential(nn.Conv2d(i, o, 3, 1, 1)) for i, o in zip(ins, seeded.MASK_CHANNELS)))
        heads.mask_predictor = nn.Module()
        m = seeded.MASK_CHANNELS[-1]
        heads.mask_predictor.conv5_mask, heads.mask_predictor.mask_fcn_logits = nn.ConvTranspose2d(mask_in, m, 2, 2), nn.Conv2d(m, K, 1)

    # ---- the stages ----

    def batch(self, images):
        """Pillow resizes the bytes, then BGR minus the mean; padded to a multiple of 32 with a pyramid, to the largest without."""
        arrays = []
        for image in images:
            h, w = shortest_edge(*image.shape[:2])
            pixels = np.asarray(Image.fromarray(image[:, :, ::-1].copy()).resize((w, h), Image.BILINEAR)).astype(np.float64)
            arrays.append((pixels - np.array([103.53, 116.28, 123.675])).transpose(2, 0, 1))
        sizes = [a.shape[1:] for a in arrays]
        divisor = 1 if self.c4 else 32
        height, width = (math.ceil(max(side) / divisor) * divisor for side in zip(*sizes))
        batch = torch.zeros(len(arrays), 3, height, width)
        for x, a in zip(batch, arrays):
            x[:, :a.shape[1], :a.shape[2]] = t(a)
        return batch, sizes

    def first_stage(self, batch):
        maps = self.backbone.body(batch)
        pyramid = maps[-1:] if self.c4 else list(self.backbone.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps))).values())
        logits, deltas, anchors = [], [], []
        for x, cell, stride in zip(pyramid, self.cells, self.strides):
            h = F.relu(self.rpn.head.conv[0][0](x))
            n, _, rows, columns = x.shape
            logits.append(self.rpn.head.cls_logits(h).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.rpn.head.bbox_pred(h).view(n, -1, 4, rows, columns).permute(0, 3, 4, 1, 2).reshape(n, -1, 4))
            y, x = torch.meshgrid(torch.arange(rows) * float(stride), torch.arange(columns) * float(stride), indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
            anchors.append((shifts.float() + torch.tensor(cell, dtype=torch.float32)).reshape(-1, 4).double())
        return pyramid, logits, deltas, anchors

    def proposals(self, logits, deltas, anchors, image, size, before, after):
        """find_top_rpn_proposals of one image; NMS sorts the logits."""
        boxes, scores, level_of = [], [], []
        for level in range(len(anchors)):
            best = torch.argsort(logits[level][image], descending=True, stable=True)[:before]
            scores.append(logits[level][image][best])
            boxes.append(clip(apply_deltas(deltas[level][image][best], anchors[level][best], (1, 1, 1, 1)), size))
            level_of.append(torch.full((len(best),), level))
        boxes, scores, level_of = torch.cat(boxes), torch.cat(scores), torch.cat(level_of)
        large = (boxes[:, 2] - boxes[:, 0] > 0) & (boxes[:, 3] - boxes[:, 1] > 0)
        boxes, scores, level_of = boxes[large], scores[large], level_of[large]
        return boxes[batched_nms(boxes, scores, level_of, 0.7)[:after]].detach()

    def pool(self, pyramid, boxes, size):
        """RoIAlign, aligned, as many samples as the RoI has cells; RoIs keep their order. boxes: one tensor an image."""
        rois = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], dim=1) for i, b in enumerate(boxes)])
        if self.c4:
            return roi_align(pyramid[0], rois, size, 1 / 16, 0, True)
        side = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
        level = torch.floor(4 + torch.log2(side / seeded.CANONICAL_SIZE + 1e-8)).clamp(2, 5) - 2
        result = torch.zeros(len(rois), pyramid[0].shape[1], size, size)
        for i in range(4):
            result[level == i] = roi_align(pyramid[i], rois[level == i], size, 1 / self.strides[i], 0, True)
        return result

    def box_branch(self, pyramid, boxes):
        heads = self.roi_heads
        x = self.pool(pyramid, boxes, 14 if self.c4 else 7)
        h = heads.box_head.layer4(x).mean((2, 3)) if self.c4 else \
            F.relu(heads.box_head.fc7(F.relu(heads.box_head.fc6(x.flatten(1)))))
        return heads.box_predictor.cls_score(h), heads.box_predictor.bbox_pred(h).view(-1, K, 4)

    def mask_branch(self, pyramid, boxes):
        heads = self.roi_heads
        x = self.pool(pyramid, boxes, 14)
        if self.c4:
            x = heads.box_head.layer4(x)
        else:
            for block in heads.mask_head:
                x = F.relu(block(x))
        return heads.mask_predictor.mask_fcn_logits(F.relu(heads.mask_predictor.conv5_mask(x)))

    # ---- training: everything is sampled, so no random numbers ----

    def losses(self, images, targets):
        batch, sizes = self.batch(images)
        pyramid, logits, deltas, anchors = self.first_stage(batch)
        all_logits, all_deltas, all_anchors = torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors)
        objectness = rpn_box = 0
        rois, labels, roi_targets, mask_targets = [], [], [], []
        for i, target in enumerate(targets):
            old, (height, width) = images[i].shape[:2], sizes[i]
            boxes = t(target["boxes"].astype(np.float64)) * ratios(old, sizes[i])
            masks = torch.stack([t(np.asarray(Image.fromarray(mask).resize((width, height), Image.NEAREST))) for mask in target["masks"]])
            # anchors: at least .7, and all that tie for a target's best; negative below .3
            iou = torchvision.ops.box_iou(boxes.float(), all_anchors.float())
            best, which = iou.max(0)
            positive = (best >= 0.7) | (iou == iou.max(1, keepdim=True).values).any(0)
            sampled = positive | (best < 0.3)
            objectness = objectness + F.binary_cross_entropy_with_logits(all_logits[i][sampled], positive[sampled].double(), reduction="sum")
            wanted = get_deltas(all_anchors[positive], boxes[which[positive]], (1, 1, 1, 1))
            rpn_box = rpn_box + (all_deltas[i][positive] - wanted).abs().sum()
            # RoIs, the target boxes among them
            found = torch.cat([self.proposals(logits, deltas, anchors, i, sizes[i], S["rpn_pre_nms_top_n_train"],
                                              S["rpn_post_nms_top_n_train"]), boxes])
            best, which = torchvision.ops.box_iou(boxes, found).max(0)
            label = torch.where(best >= 0.5, t(target["labels"])[which], 0)
            rois.append(found), labels.append(label), roi_targets.append(boxes[which])
            at = torch.cat([which[label > 0, None].double(), found[label > 0]], dim=1)
            mask_targets.append(roi_align(masks[:, None].double(), at, 14 if self.c4 else 28, 1.0, 0, True)[:, 0] >= 0.5)
        normalizer = S["rpn_batch_size_per_image"] * len(images)
        class_logits, box_deltas = self.box_branch(pyramid, rois)
        positive_rois = [r[l > 0] for r, l in zip(rois, labels)]
        rois, labels, roi_targets = torch.cat(rois), torch.cat(labels), torch.cat(roi_targets)
        positive = torch.nonzero(labels > 0)[:, 0]
        wanted = get_deltas(rois[positive], roi_targets[positive], (10, 10, 5, 5))
        box_reg = (box_deltas[positive, labels[positive]] - wanted).abs().sum() / len(labels)
        mask_logits = self.mask_branch(pyramid, positive_rois)
        chosen = mask_logits[torch.arange(len(positive)), labels[positive]]
        print(len(labels), "RoIs,", len(positive), "positive, mask targets", torch.cat(mask_targets).double().mean().item())
        return [objectness / normalizer, rpn_box / normalizer, F.cross_entropy(class_logits, labels), box_reg,
                F.binary_cross_entropy_with_logits(chosen, torch.cat(mask_targets).double())]

    # ---- prediction ----

    @torch.no_grad()
    def predict(self, images):
        batch, sizes = self.batch(images)
        pyramid, logits, deltas, anchors = self.first_stage(batch)
        rois = [self.proposals(logits, deltas, anchors, i, size, S["rpn_pre_nms_top_n_test"], S["rpn_post_nms_top_n_test"])
                for i, size in enumerate(sizes)]
        class_logits, box_deltas = self.box_branch(pyramid, rois)
        scores = F.softmax(class_logits, 1)
        found, start = [], 0
        for r, size in zip(rois, sizes):
            score, boxes = scores[start:start + len(r), 1:], apply_deltas(box_deltas[start:start + len(r)], r[:, None], (10, 10, 5, 5))
            start += len(r)
            row, label = torch.nonzero(score > S["box_score_thresh"]).T
            boxes, score = clip(boxes[row, label + 1], size), score[row, label]
            keep = torch.cat([torch.nonzero(label == k)[:, 0][nms(boxes[label == k], score[label == k], 0.5)] for k in range(K - 1)])
            keep = keep[torch.argsort(score[keep], descending=True)][:S["box_detections_per_img"]]
            found.append((boxes[keep], label[keep] + 1, score[keep]))
        mask_logits = self.mask_branch(pyramid, [f[0] for f in found])
        result, start = [], 0
        for (boxes, labels, scores), size, image in zip(found, sizes, images):
            masks = torch.sigmoid(mask_logits[start:start + len(boxes)][torch.arange(len(boxes)), labels])
            start += len(boxes)
            boxes = boxes * ratios(size, image.shape[:2])
            result.append((boxes, labels, scores, paste(masks, boxes, image.shape[:2])))
        return result


# ---- the formulas ----

def shortest_edge(h, w):
    """ResizeShortestEdge."""
    scale = S["min_size"] / min(h, w)
    new_h, new_w = (S["min_size"], scale * w) if h < w else (scale * h, S["min_size"])
    if max(new_h, new_w) > S["max_size"]:
        scale = S["max_size"] / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return int(new_h + 0.5), int(new_w + 0.5)


def ratios(old, new):
    """float32, as nprcnn's."""
    h, w = (float(np.float32(b) / np.float32(a)) for a, b in zip(old, new))
    return t([w, h, w, h])


def centres(boxes):
    w, h = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + w / 2, boxes[..., 1] + h / 2, w, h


def apply_deltas(deltas, boxes, weights):
    x, y, w, h = centres(boxes)
    dx, dy, dw, dh = (deltas[..., i] / weights[i] for i in range(4))
    x, y = dx * w + x, dy * h + y
    w, h = (torch.exp(torch.clamp(d, max=math.log(1000 / 16))) * side for d, side in ((dw, w), (dh, h)))
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)


def get_deltas(boxes, targets, weights):
    (x, y, w, h), (tx, ty, tw, th) = centres(boxes), centres(targets)
    return torch.stack([weights[0] * (tx - x) / w, weights[1] * (ty - y) / h, weights[2] * torch.log(tw / w),
                        weights[3] * torch.log(th / h)], dim=-1)


def clip(boxes, size):
    x, y = boxes[..., 0::2].clamp(0, size[1]), boxes[..., 1::2].clamp(0, size[0])
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def paste(masks, boxes, size):
    """Every pixel's centre looked up in the mask; soft."""
    x1, y1, x2, y2 = (v[:, None] for v in boxes.T)
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, *size), y[:, :, None].expand(-1, *size)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


for name, c4 in (("fpn", False), ("c4", True)):
    images, targets = seeded.scene()
    model = fill(Detector(c4))
    with torch.no_grad():
        model.backbone.body.conv1.weight /= seeded.D2_PIXELS
    for k, (boxes, labels, scores, masks) in enumerate(model.predict(images)):
        for key, value in (("boxes", boxes), ("labels", labels), ("scores", scores)):
            out[f"{name}.{key}.{k}"] = value.numpy()
        out[f"{name}.masks.{k}"] = np.packbits(masks.numpy() >= 0.5)
        print(name, k, len(boxes), "detections, labels", labels.tolist(), "mask pixels", (masks >= 0.5).sum((1, 2)).tolist(),
              "nearest to .5:", (masks - 0.5).abs().min().item(), "scores", scores[[0, -1]].tolist())
        assert len(boxes) > 5 and (masks - 0.5).abs().min() > 1e-5
    assert len(set(np.concatenate([out[f"{name}.labels.{k}"] for k in (0, 1)]))) > 1
    losses = model.losses(images, targets)
    sum(losses).backward()
    print(name, [round(loss.item(), 6) for loss in losses])
    out[f"{name}.losses"] = np.array([loss.item() for loss in losses])
    names = sorted(n for n, _ in model.named_parameters())
    parameters = dict(model.named_parameters())
    out[f"{name}.dparameters"] = np.array([(parameters[n].grad * t(seeded.normal("direction " + n, *parameters[n].shape))).sum().item()
                                           for n in names])

np.savez_compressed(HERE / "detectron2.npz", **out)
print("detectron2.npz", (HERE / "detectron2.npz").stat().st_size, "bytes")
