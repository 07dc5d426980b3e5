"""Region proposal network (Faster R-CNN, arXiv 1506.01497, section 3.1): which anchors hold an object, and where exactly.

One small head runs on every pyramid level with the same weights:

    P_i -3x3-> ReLU -1x1-> objectness, one logit an anchor
                    -1x1-> deltas, four an anchor
"""

from typing import NamedTuple

import numpy as np

from .. import backend, devices
from ..layers import Conv2d, Layer, conv_block, conv_norm_relu, conv_norm_relu_backward, normal_001
from ..ops.activation import sigmoid
from ..ops.boxes import clip_boxes, decode_boxes, encode_boxes, remove_small_boxes
from ..ops.conv_at import add_columns, live_pixels, values_at
from ..ops.losses import (bce_with_logits_backward, bce_with_logits_forward, smooth_l1_backward,
                          smooth_l1_forward)
from ..ops.nms import batched_nms
from ..trace import record, record_grad
from .fpn import LEVELS

SMOOTH_L1_BETA = 1 / 9
FEW = 32    # of so many pixels of a map, one has a gradient: then the backward pass visits these alone


class RPNHead(Layer):
    """channels: of the pyramid; anchors: in a cell; convs: how many 3x3 convolutions (1 in the paper, 2 in torchvision's v2)."""

    def __init__(self, rng, channels, anchors, convs=1):
        self.conv = [conv_block(rng, channels, channels, 3, init=normal_001) for _ in range(convs)]
        self.cls_logits = Conv2d(rng, channels, anchors, 1, init=normal_001)
        self.bbox_pred = Conv2d(rng, channels, anchors * 4, 1, init=normal_001)

    def forward(self, x, train):
        """One level: (N, C, H, W) -> logits (N, A, H, W), deltas (N, 4A, H, W), cache."""
        conv_caches = []
        for block in self.conv:
            x, cache = conv_norm_relu(*block, x, train)
            conv_caches.append(cache)
        logits, logits_cache = self.cls_logits.forward(x, train)
        deltas, deltas_cache = self.bbox_pred.forward(x, train)
        return logits, deltas, (conv_caches, logits_cache, deltas_cache) if train else None

    def backward(self, dlogits, ddeltas, cache):
        """Gradients of one level's outputs -> gradient of its input (N, C, H, W)."""
        conv_caches, logits_cache, deltas_cache = cache
        if not devices.is_on_gpu(dlogits):  # to look for what is not zero, the CPU would have to wait for it
            pixels = live_pixels(dlogits, ddeltas)
            if len(pixels[0]) * FEW < dlogits[:, 0].size:
                return self._backward_at(pixels, dlogits, ddeltas, cache)
        # forward: logits = conv1x1(h), deltas = conv1x1(h)      h feeds both: the gradients add
        dx = self.cls_logits.backward(dlogits, logits_cache) + self.bbox_pred.backward(ddeltas, deltas_cache)
        # forward: h = relu(conv3x3(x))
        return self._convs_backward(dx, conv_caches)

    def _convs_backward(self, dx, caches):
        """From the gradient of the last of `caches`' convolutions to that of the head's input."""
        for block, cache in zip(reversed(self.conv[:len(caches)]), reversed(caches)):
            dx, _ = conv_norm_relu_backward(*block, dx, cache)
        return dx

    def _backward_at(self, pixels, dlogits, ddeltas, cache):
        """The same, if dlogits and ddeltas are zero at all but a few pixels: those of the 256 anchors that the loss looks at."""
        conv_caches, logits_cache, deltas_cache = cache
        # forward: logits = conv1x1(h), deltas = conv1x1(h)      h feeds both: the gradients add
        dh = (self.cls_logits.backward_at(values_at(dlogits, pixels), logits_cache, pixels)
              + self.bbox_pred.backward_at(values_at(ddeltas, pixels), deltas_cache, pixels))
        # forward: h = relu(conv3x3(x)), and h > 0 where its argument is
        dh *= values_at(logits_cache.x, pixels) > 0
        dcolumns = self.conv[-1][0].backward_at(dh, conv_caches[-1], pixels)
        # each of these pixels has seen a patch of 3x3: scatter
        return self._convs_backward(add_columns(dcolumns, pixels, conv_caches[-1]), conv_caches[:-1])


class RPN(Layer):
    """The head on all levels, with anchors flattened into one long axis: level, then y, x, anchor. levels: their names in a trace."""

    def __init__(self, head, levels=LEVELS):
        self.head, self.levels = head, levels

    def forward(self, pyramid, train, trace=None):
        """[P2 .. P6] (or one map) -> logits (N, T), deltas (N, T, 4), cache. T: anchors of all levels."""
        logits, deltas, caches, shapes = [], [], [], []
        for level, x in zip(self.levels, pyramid):
            level_logits, level_deltas, cache = self.head.forward(x, train)
            record(trace, f"rpn.logits.{level}", level_logits)
            record(trace, f"rpn.deltas.{level}", level_deltas)
            n, a, h, w = level_logits.shape
            # channel = anchor (* 4 + coordinate), so both become (N, h, w, A, ...) and are then flattened
            logits.append(level_logits.transpose(0, 2, 3, 1).reshape(n, h * w * a))
            deltas.append(level_deltas.reshape(n, a, 4, h, w).transpose(0, 3, 4, 1, 2).reshape(n, h * w * a, 4))
            caches.append(cache)
            shapes.append((n, a, h, w))
        logits, deltas = np.concatenate(logits, axis=1), np.concatenate(deltas, axis=1)
        record(trace, "rpn.objectness", logits)
        record(trace, "rpn.deltas", deltas)
        return logits, deltas, (caches, shapes) if train else None

    def backward(self, dlogits, ddeltas, cache, trace=None):
        """Gradients of the flat outputs -> gradients of [P2 .. P6]."""
        record_grad(trace, "rpn.objectness", dlogits)
        record_grad(trace, "rpn.deltas", ddeltas)
        dpyramid, start = [], 0
        for level, level_cache, (n, a, h, w) in zip(self.levels, *cache):
            # forward: concatenate, reshape, transpose      backward: split, and the same steps in reverse
            stop = start + h * w * a
            dl = np.ascontiguousarray(dlogits[:, start:stop].reshape(n, h, w, a).transpose(0, 3, 1, 2), like=dlogits)
            dd = ddeltas[:, start:stop].reshape(n, h, w, a, 4).transpose(0, 3, 4, 1, 2).reshape(n, a * 4, h, w)
            record_grad(trace, f"rpn.logits.{level}", dl)
            record_grad(trace, f"rpn.deltas.{level}", dd)
            dpyramid.append(self.head.backward(dl, dd, level_cache))
            start = stop
        return dpyramid


class Proposals(NamedTuple):
    """One image's proposals, best first, and what they were chosen from.

    boxes (P, 4), scores (P,) in 0..1; anchor (P,): index of the anchor behind each. before_nms (Q, 4) and scores_before_nms (Q,): the
    best anchors of each level, moved by their deltas and clipped (on a GPU if that is where the RPN ran).
    """

    boxes: np.ndarray
    scores: np.ndarray
    anchor: np.ndarray
    before_nms: np.ndarray
    scores_before_nms: np.ndarray


def filter_proposals(logits, deltas, anchors, image_size, pre_nms_top_n, post_nms_top_n, nms_thresh, min_size=1e-3,
                     score_thresh=0.0, nms_on="scores"):
    """From one image's RPN outputs to its proposals. No gradient: to the second stage they are constants.

    What was computed on a GPU is filtered there, and the proposals come to the CPU.

    Parameters
    ----------
    logits, deltas : (T,), (T, 4) arrays
    anchors : list of (T_l, 4) arrays, one a level
    image_size : (h, w)
        Of the resized image without its padding.
    pre_nms_top_n, post_nms_top_n : int
        Kept a level before, and an image after, non-maximum suppression.
    nms_thresh : float
        Boxes of one level whose IoU is above it are one proposal.
    min_size : float
        Pixels; proposals with a shorter side are dropped.
    score_thresh : float
        Proposals whose objectness, in 0..1, is below it are dropped.
    nms_on : "scores" or "logits"
        What NMS sorts by. The sigmoid in float32 gives many large logits the same score, 1: torchvision sorts these ("scores"),
        Detectron2 the logits.

    Returns
    -------
    Proposals
    """
    starts = np.cumsum([0] + [len(a) for a in anchors])
    chosen, level_of = [], []
    for level, (start, stop) in enumerate(zip(starts, starts[1:])):
        top = top_k(logits[start:stop], pre_nms_top_n) + start
        chosen.append(top)
        level_of.append(np.zeros(len(top), np.int64, like=logits) + level)
    chosen, level_of = np.concatenate(chosen), np.concatenate(level_of)

    all_anchors = np.asarray(np.concatenate(anchors).astype(deltas.dtype), like=deltas)
    boxes = clip_boxes(decode_boxes(deltas[chosen], all_anchors[chosen]), image_size)
    scores = sigmoid(logits[chosen])
    large = remove_small_boxes(boxes, min_size)
    large = large[scores[large] >= score_thresh]
    # NMS within a level: an anchor of another size is another question
    sorted_by = scores if nms_on == "scores" else logits[chosen]
    keep = large[batched_nms(boxes[large], sorted_by[large], level_of[large], nms_thresh, kernels=backend.active(boxes))]
    keep = keep[:post_nms_top_n]
    proposals = devices.to_host([boxes[keep], scores[keep], chosen[keep]], "proposals")
    return Proposals(*proposals, boxes, scores)


def top_k(values, k):
    """Indices of the k largest of values (T,), best first, of equals the first one first: argsort(-values, kind="stable")[:k].

    Without sorting the others: P2 alone has 180,000 anchors, of which 1000 are wanted. (On a GPU the sort takes less time than it takes to
    ask how many candidates there are.)
    """
    if devices.is_on_gpu(values):
        return np.argsort(-values, kind="stable")[:k]
    candidates = np.arange(len(values))
    if len(values) > k > 0:
        kth = np.partition(-values, k - 1)[k - 1]
        if not np.isnan(kth):
            candidates = np.flatnonzero(-values <= kth)
    return candidates[np.argsort(-values[candidates], kind="stable")[:k]]


def rpn_losses(logits, deltas, anchors, target_boxes, positive, negative, matched, beta=SMOOTH_L1_BETA, normalizer=None):
    """Objectness and box loss of the sampled anchors of the whole batch.

    Parameters
    ----------
    logits, deltas : (N, T), (N, T, 4)
    anchors : (T, 4), pixels of the resized image
    target_boxes : list of (G, 4), one an image, pixels of the resized image
    positive, negative, matched : lists, one an image
        Sampled anchors, and the positives' targets (see targets.anchor_targets).
    beta : float
        Of smooth L1; 0 is L1 (Detectron2).
    normalizer : float, optional
        What both sums are divided by. None: the number of sampled anchors (torchvision). Detectron2: anchors wanted a batch, 256 N.

    Returns
    -------
    objectness loss : sum of the binary cross-entropy over all sampled anchors / normalizer
    box loss : sum of smooth L1 over the positives / normalizer
    cache
    """
    image = np.concatenate([np.full(len(p) + len(n), i) for i, (p, n) in enumerate(zip(positive, negative))])
    anchor = np.concatenate([np.concatenate([p, n]) for p, n in zip(positive, negative)])
    is_object = np.concatenate([np.arange(len(p) + len(n)) < len(p) for p, n in zip(positive, negative)])
    sampled = (image, anchor)
    normalizer = max(len(anchor), 1) if normalizer is None else normalizer
    objectness_loss, objectness_cache = bce_with_logits_forward(
        logits[sampled], np.asarray(is_object.astype(logits.dtype), like=logits), normalizer)

    positives = (image[is_object], anchor[is_object])
    box_targets = np.concatenate([
        encode_boxes(boxes[m].astype(deltas.dtype), anchors[p].astype(deltas.dtype))
        for boxes, m, p in zip(target_boxes, matched, positive)])
    box_loss, box_cache = smooth_l1_forward(deltas[positives], np.asarray(box_targets, like=deltas), beta, normalizer)
    return objectness_loss, box_loss, (logits.shape, sampled, positives, objectness_cache, box_cache)


def rpn_losses_backward(dobjectness_loss, dbox_loss, cache):
    """Gradients of the logits (N, T) and the deltas (N, T, 4): zero wherever no anchor was sampled."""
    shape, sampled, positives, objectness_cache, box_cache = cache
    dsampled = bce_with_logits_backward(dobjectness_loss, objectness_cache)
    dlogits = np.zeros(shape, dsampled.dtype, like=dsampled)
    # forward: logits[sampled], every index once      gather -> scatter
    dlogits[sampled] = dsampled
    # forward: deltas[positives], every index once      gather -> scatter
    ddeltas = np.zeros(shape + (4,), dsampled.dtype, like=dsampled)
    ddeltas[positives] = smooth_l1_backward(dbox_loss, box_cache)
    return dlogits, ddeltas
