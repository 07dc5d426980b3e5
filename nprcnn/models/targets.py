"""What each anchor and each RoI should answer: matching to the target boxes, and the sample that the losses look at.

Nothing here has a gradient. Sampling takes a numpy.random.Generator.
"""

import numpy as np

from .. import backend

BACKGROUND = -1
IGNORED = -2


def match(iou, high, low, keep_best=False):
    """Assign a target to every box by its IoU (Faster R-CNN, section 3.1.2).

    Parameters
    ----------
    iou : (targets, boxes) array
    high, low : float
        A box whose best IoU is >= high is assigned that target; < low makes it background; in between it is ignored.
    keep_best : bool
        Also assign every box that ties for the best IoU of some target, however low: otherwise a target that no anchor
        fits well would teach nothing. Such a box gets the target that fits *it* best, which may be another one
        (torchvision's convention).

    Returns
    -------
    (boxes,) int64: index of the target, or BACKGROUND, or IGNORED.
    """
    if len(iou) == 0:
        return np.full(iou.shape[1], BACKGROUND)
    best_target = iou.argmax(axis=0)
    best_iou = iou.max(axis=0)
    matched = np.where(best_iou >= high, best_target, np.where(best_iou < low, BACKGROUND, IGNORED))
    if keep_best:
        # Exact equality: several anchors can share the best IoU to the last bit, and all of them are kept.
        ties = (iou == iou.max(axis=1, keepdims=True)).any(axis=0)
        matched[ties] = best_target[ties]
    return matched


def sample(matched, size, positive_fraction, rng):
    """Draw at most size * positive_fraction positives, and negatives to fill up to `size`, at random.

    Returns
    -------
    positive, negative : (P,), (Q,) int64, ascending indices into `matched`.
    """
    positive = np.flatnonzero(matched >= 0)
    negative = np.flatnonzero(matched == BACKGROUND)
    count = min(len(positive), int(size * positive_fraction))
    positive = np.sort(rng.permutation(positive)[:count])
    negative = np.sort(rng.permutation(negative)[:size - count])
    return positive, negative


def anchor_targets(anchors, target_boxes, rng, fg_iou, bg_iou, size, positive_fraction):
    """The sampled anchors of one image: positive (P,), negative (Q,), and the positives' targets (P,)."""
    # float32, whatever the model computes in: the ties above must be the same ones everywhere
    iou = backend.active().box_iou(target_boxes.astype(np.float32), anchors.astype(np.float32))
    matched = match(iou, fg_iou, bg_iou, keep_best=True)
    positive, negative = sample(matched, size, positive_fraction, rng)
    return positive, negative, matched[positive]


def roi_targets(proposals, target_boxes, target_labels, rng, fg_iou, bg_iou, size, positive_fraction):
    """The sampled RoIs of one image.

    The target boxes themselves are candidates too, so that the heads see good boxes while the RPN is still poor.

    Returns
    -------
    candidate : (S,) index into concatenate([proposals, target_boxes])
    labels : (S,) class, 0 for background
    matched : (S,) index of the target, 0 for background
    """
    candidates = np.concatenate([proposals, target_boxes.astype(proposals.dtype)])
    matched = match(backend.active().box_iou(target_boxes.astype(proposals.dtype), candidates), fg_iou, bg_iou)
    positive, negative = sample(matched, size, positive_fraction, rng)
    chosen = np.sort(np.concatenate([positive, negative]))
    labels = np.zeros(len(chosen), np.int64)
    is_positive = matched[chosen] >= 0
    labels[is_positive] = target_labels[matched[chosen[is_positive]]]
    return chosen, labels, np.maximum(matched[chosen], 0)


def mask_targets(masks, rois, matched, size, aligned=False, binary=False):
    """Cut the target masks to the RoIs (Mask R-CNN, section 3: "the intersection between an RoI and its mask").

    Parameters
    ----------
    masks : (targets, H, W) uint8
    rois : (S, 4)
        Boxes in the same pixels as the masks.
    matched : (S,) int
        Each RoI's target.
    size : int
        Side of the mask the head puts out (28).
    aligned : bool
        Of RoIAlign: False is torchvision's convention, True Detectron2's.
    binary : bool
        False: soft at the edges (torchvision). True: 1 where at least half is covered (Detectron2).

    Returns
    -------
    (S, size, size) float in 0..1: RoIAlign of the masks with adaptive sampling.
    """
    rois = np.concatenate([matched[:, None].astype(rois.dtype), rois], axis=1)
    soft = backend.active().roi_align(masks[:, None].astype(rois.dtype), rois, 1.0, size, -1, aligned)[:, 0]
    return (soft >= 0.5).astype(soft.dtype) if binary else soft
