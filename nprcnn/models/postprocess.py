"""From the heads' outputs to detections (torchvision's RoIHeads.postprocess_detections). Every filter keeps indices."""

from typing import NamedTuple

import numpy as np

from .. import backend, devices
from ..ops.activation import softmax
from ..ops.boxes import clip_boxes, decode_boxes, remove_small_boxes
from ..ops.nms import batched_nms
from .box_head import BOX_WEIGHTS


class Detections(NamedTuple):
    """What `predict` finds in one image, best score first.

    boxes (D, 4) float, x1 y1 x2 y2 in pixels of the image; labels (D,) int; scores (D,) in 0..1; masks (D, H, W) bool, or None without
    a mask branch. Each detection's way through the network: proposal (D,) indexes trace["rpn.proposals"] of this
    image; level (D,) is the level of the map that its box was read from, log2 of its
    stride (2 for P2); anchor (D,) indexes trace["rpn.anchors"].
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None
    proposal: np.ndarray
    level: np.ndarray
    anchor: np.ndarray


def filter_detections(logits, deltas, proposals, image_size, score_thresh, nms_thresh, max_detections,
                      box_weights=BOX_WEIGHTS, min_size=1e-2):
    """One image's RoIs -> its detections. What was computed on a GPU is filtered there, and the detections come to the CPU.

    Parameters
    ----------
    logits, deltas, proposals : (R, K), (R, 4 K), (R, 4)
        Proposals in pixels of the resized image, on the CPU.
    image_size : (h, w)
        Of the resized image: boxes are clipped to it.
    score_thresh, nms_thresh, max_detections
        Keep scores above the first, suppress within a class above the second (an IoU), then keep so many of the best.
    box_weights : four floats
        See decode_boxes.
    min_size : float
        Pixels; boxes with a shorter side are dropped.

    Returns
    -------
    boxes (D, 4), labels (D,), scores (D,), proposal (D,): the index of the RoI behind each detection.
    """
    count, num_classes = logits.shape
    scores = softmax(logits, axis=1)
    proposals = np.asarray(proposals, like=deltas)
    boxes = decode_boxes(deltas.reshape(count, num_classes, 4), proposals[:, None], box_weights)
    boxes = clip_boxes(boxes, image_size)

    proposal, label = np.nonzero(scores[:, 1:] > score_thresh)  # class 0 is background
    label = label + 1
    boxes, scores = boxes[proposal, label], scores[proposal, label]
    large = remove_small_boxes(boxes, min_size)
    keep = large[batched_nms(boxes[large], scores[large], label[large], nms_thresh, kernels=backend.active(boxes))]
    keep = keep[:max_detections]
    return tuple(devices.to_host([boxes[keep], label[keep], scores[keep], proposal[keep]], "detections"))
