"""Writes the .npz files that the tests of RoIAlign, RoIPool, losses, boxes, NMS and paste compare with.

Every value comes from PyTorch or torchvision; nothing of nprcnn is imported. Run from anywhere, with an
environment that has them (the files were written with torch 2.15.0 and torchvision 0.29.2 on a CPU):

    python tests/reference/make_ops_b.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import expand_boxes, paste_masks_in_image
from torchvision.ops.boxes import _batched_nms_vanilla

HERE = Path(__file__).parent

# On feature maps of 9 x 13 at scale 1/2, that is an image of 18 x 26. The comment says what each is for.
ROIS = [
    [0, 3.3, 2.1, 17.9, 14.2],      # inside
    [1, 0.7, 5.2, 8.1, 16.6],       # inside, the other image
    [1, 9.0, 4.0, 9.02, 4.03],      # tiny
    [0, 7.5, 7.5, 7.5, 7.5],        # no size
    [0, 12.0, 9.0, 6.0, 4.0],       # corners exchanged
    [1, -37.0, -25.0, 61.0, 44.0],  # much larger than the map
    [0, 0.0, 0.0, 26.0, 18.0],      # the whole map
    [0, -30.0, -20.0, -8.0, -6.0],  # outside, top left
    [1, 40.0, 30.0, 60.0, 50.0],    # outside, bottom right
    [1, -4.9, 3.0, 6.2, 12.0],      # over the left border
    [0, 14.1, 8.3, 31.7, 23.9],     # over the right and the bottom border
    [0, -4.0, -4.0, 8.0, 12.0],     # 3 x 4 bins of side 2: one sample a bin lies at exactly -1
    [1, 16.0, 4.0, 28.0, 20.0],     # and here at exactly W = 13 and H = 9
    [0, 25.0, 17.0, 25.9, 17.9],    # in the last pixel
    [1, 1.0, 2.0, 3.0, 5.0],        # halves after scaling: 0.5, 1, 1.5, 2.5
    [0, -5.0, -3.0, 7.0, 9.0],      # halves below zero
]


def save(name, cases):
    """NAME.npz with an array CASE/NAME for each {case: {name: array}}; "options" are keyword arguments, as JSON."""
    arrays = {}
    for case, values in cases.items():
        for key, value in values.items():
            arrays[f"{case}/{key}"] = np.asarray(json.dumps(value) if key == "options" else value)
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


def bits(dtype):
    return str(dtype).removeprefix("torch.float")


def make_roi_align(rng):
    features, rois = rng.normal(size=(2, 3, 9, 13)), np.array(ROIS)
    dy = rng.normal(size=(len(rois), 3, 4, 3))
    cases = {"inputs": {"features": features, "rois": rois, "dy": dy}}
    for aligned in (False, True):
        for sampling_ratio in (2, 1, 3, -1):
            x = torch.tensor(features, requires_grad=True)
            y = torchvision.ops.roi_align(x, torch.tensor(rois), (4, 3), 0.5, sampling_ratio, aligned)
            y.backward(torch.tensor(dy))
            cases[f"{'aligned' if aligned else 'plain'} {sampling_ratio}"] = {
                "options": {"sampling_ratio": sampling_ratio, "aligned": aligned},
                "y": y.detach().numpy(), "dx": x.grad.numpy()}

    # A mask target: a binary mask, resampled over the box of its object at scale 1, with a sample a pixel or more.
    yy, xx = np.mgrid[:40, :50]
    masks = np.stack([(yy - 18) ** 2 / 130 + (xx - 21) ** 2 / 300 < 1, (yy + 2 * xx) % 23 < 9])[:, None]
    rois = np.array([[0, 2.5, 5.1, 41.2, 31.3], [1, 0, 0, 50, 40], [1, 20.25, 11.5, 23.5, 13.75]])
    target = torchvision.ops.roi_align(torch.tensor(masks.astype(float)), torch.tensor(rois), (28, 28), 1.0)
    cases["mask target"] = {"masks": masks.astype(np.uint8), "rois": rois, "y": target.numpy()}
    save("roi_align", cases)


def make_roi_pool(rng):
    rois, cases = np.array(ROIS), {}
    for name, features in (("distinct", rng.normal(size=(2, 3, 9, 13))),
                           ("ties", rng.randint(-3, 2, size=(2, 3, 9, 13)).astype(float))):
        x = torch.tensor(features, requires_grad=True)
        y, index = torch.ops.torchvision.roi_pool(x, torch.tensor(rois), 0.5, 4, 3)
        dy = rng.normal(size=tuple(y.shape))
        y.backward(torch.tensor(dy))
        cases[name] = {"features": features, "rois": rois, "dy": dy,
                       "y": y.detach().numpy(), "index": index.numpy(), "dx": x.grad.numpy()}
    save("roi_pool", cases)


def make_boxes(rng):
    corner = rng.uniform(-10, 80, size=(23, 2))
    a = np.concatenate([corner, corner + rng.uniform(1, 50, size=(23, 2))], axis=1)
    corner = rng.randint(0, 6, size=(19, 2)).astype(float)      # coarse: equal, touching and nested boxes
    b = np.concatenate([corner, corner + rng.randint(1, 5, size=(19, 2))], axis=1) * 8.1
    size, min_size = (60, 70), 8.1 * 2
    cases = {"inputs": {"a": a, "b": b, "size": size, "min_size": min_size}}
    for dtype in (torch.float64, torch.float32):
        ta, tb = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)
        cases[f"float{bits(dtype)}"] = {
            "area": torchvision.ops.box_area(ta).numpy(), "iou": torchvision.ops.box_iou(ta, tb).numpy(),
            "clipped": torchvision.ops.clip_boxes_to_image(ta, size).numpy(),
            "large": torchvision.ops.remove_small_boxes(tb, min_size).numpy()}
    for name, weights in (("rpn", (1.0, 1.0, 1.0, 1.0)), ("head", (10.0, 10.0, 5.0, 5.0))):
        coder = BoxCoder(weights)
        # Three classes, the last with steps that the clamp of dw and dh stops.
        deltas = rng.normal(size=(19, 3, 4)) * np.array([1, 1, 20])[:, None]
        decoded = coder.decode(torch.tensor(deltas).reshape(19, 12), [torch.tensor(b)])
        cases[name] = {"options": {"weights": weights}, "deltas": deltas, "decoded": decoded.numpy(),
                       "encoded": coder.encode_single(torch.tensor(a[:19]), torch.tensor(b)).numpy()}
    save("boxes", cases)


def make_nms(rng):
    n = 150
    corner = rng.randint(0, 12, size=(n, 2)).astype(float)
    # Integers: IoUs that are equal, that are exactly a threshold, and boxes without area.
    boxes = np.concatenate([corner, corner + rng.randint(0, 9, size=(n, 2))], axis=1)
    scores, distinct = rng.randint(0, 40, size=n) / 40, rng.permutation(n) / n
    groups = rng.randint(0, 5, size=n)
    cases = {"inputs": {"boxes": boxes, "scores": scores, "distinct_scores": distinct, "groups": groups}}
    for threshold in (0.0, 0.3, 1 / 3, 0.5, 0.7, 1.0):
        case = cases[f"threshold {threshold:.2f}"] = {"options": {"iou_threshold": threshold}}
        for dtype in (torch.float64, torch.float32):
            tensors = torch.tensor(boxes, dtype=dtype), torch.tensor(scores, dtype=dtype)
            case[f"kept{bits(dtype)}"] = torchvision.ops.nms(*tensors, threshold).numpy()
        # torchvision's last sort is not stable: compared with scores that do not tie.
        case["batched"] = _batched_nms_vanilla(torch.tensor(boxes), torch.tensor(distinct), torch.tensor(groups),
                                               threshold).numpy()
    save("nms", cases)


def make_losses(rng):
    def case(loss, x, **inputs):
        loss.backward()
        return {**inputs, "loss": loss.item(), "dx": x.grad.numpy()}

    logits, labels = rng.normal(size=(11, 5)) * 3, rng.randint(0, 5, size=11)
    logits[3], logits[4] = [1000, -1000, 0, 999, 5], [-1e4, -1e4, -1e4, -1e4, -1e4 + 1]
    x = torch.tensor(logits, requires_grad=True)
    cases = {"softmax": case(F.cross_entropy(x, torch.tensor(labels)), x, logits=logits, labels=labels)}

    logits, targets = rng.normal(size=(3, 4, 5)) * 4, rng.uniform(size=(3, 4, 5))
    targets[0] = targets[0] > 0.5
    logits[1, 0] = [1000, -1000, 40, -40, 0]
    x = torch.tensor(logits, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, torch.tensor(targets))
    cases["bce"] = case(loss, x, logits=logits, targets=targets)

    target = rng.normal(size=(7, 4))
    pred = target + rng.normal(size=(7, 4)) * 0.3
    target[0], pred[0] = 0, [1.0, -1.0, 0.0, 0.25]      # |d| = beta exactly for beta 1, and d = 0
    for beta in (0.0, 1 / 9, 1.0):
        x = torch.tensor(pred, requires_grad=True)
        loss = F.smooth_l1_loss(x, torch.tensor(target), beta=beta, reduction="sum")
        cases[f"smooth_l1 {beta:.2f}"] = case(loss, x, pred=pred, target=target, options={"beta": beta})
    save("losses", cases)


def make_paste(rng):
    size = (23, 31)
    boxes = np.array([
        [3.2, 4.7, 17.9, 15.1],         # inside
        [5.0, 5.0, 5.3, 5.2],           # less than a pixel
        [8.0, 3.0, 8.0, 20.0],          # no width
        [-6.4, -3.1, 9.8, 7.7],         # over the top left corner
        [20.5, 12.25, 44.0, 30.75],     # over the bottom right corner
        [-40.0, -30.0, 80.0, 66.0],     # the image lies within it
        [0.0, 0.0, 31.0, 23.0],         # the image
    ])
    cases = {}
    for m in (7, 28):
        masks = np.round(rng.uniform(size=(len(boxes), m, m)), 6)
        pasted = paste_masks_in_image(torch.tensor(masks)[:, None], torch.tensor(boxes), size)[:, 0]
        cases[f"m {m}"] = {"masks": masks, "boxes": boxes, "size": size, "pasted": pasted.numpy()}

    # Boxes that grow to whole numbers but for rounding, which then decides where they are cut.
    grown = rng.randint(-50, 700, size=(120, 2))
    grown = np.concatenate([grown, grown + rng.randint(1, 300, size=(120, 2))], axis=1)
    centre, half = (grown[:, 2:] + grown[:, :2]) / 2, (grown[:, 2:] - grown[:, :2]) / 2
    edges = np.concatenate([centre - half * (28 / 30), centre + half * (28 / 30)], axis=1)
    cases["edges"] = {"boxes": edges}
    for dtype in (torch.float64, torch.float32):
        corners = expand_boxes(torch.tensor(edges, dtype=dtype), 30 / 28).to(torch.int64)
        cases["edges"][f"corners{bits(dtype)}"] = corners.numpy()
    save("paste", cases)


if __name__ == "__main__":
    for seed, make in enumerate((make_roi_align, make_roi_pool, make_boxes, make_nms, make_losses, make_paste)):
        make(np.random.RandomState(seed))
