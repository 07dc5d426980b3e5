"""The backward half of a page: one training pass on the image and its target, and the gradient at every stage."""

import copy

import numpy as np

from ..ops.activation import sigmoid, softmax
from ..trace import NAMES, OTHER_NAMES, Trace
from .arrays import rounded, shrunk

SIDE = 128        # cells of a map of gradients; longer ones are averaged
ROWS, COLUMNS = 48, 160   # of a matrix of gradients, such as those of a hidden layer: one row an RoI
MASKS = 12        # positive RoIs whose masks are shown
CLASS_ROWS, CLASSES = 14, 12
ROIS = 200


def backward(model, image, target, rng, arrays):
    """The dict of the backward half. The model stays as it is: a training step would move batch norm's running statistics, so a copy
    takes it.

    Parameters
    ----------
    model, image, target : as for MaskRCNN.losses
    rng : numpy.random.Generator
        Draws the samples of anchors and RoIs.
    arrays : Arrays

    Returns
    -------
    dict, as JSON takes it; "stages" are in the order in which the gradient reaches them.
    """
    model = copy.deepcopy(model)
    trace = Trace()
    losses, cache = model.losses([image], [target], rng, trace=trace)
    model.backward(cache, trace)
    decisions = cache.decisions
    stages = [stage(name, trace, arrays) for name in trace.grad if not name.startswith("losses.")]
    proposals, labels = decisions.proposals[0], decisions.labels[0]
    # what reaches an RoI: the norm over both heads' outputs
    reaching = np.sqrt(np.square(trace.grad["roi_heads.class_logits"]).sum(axis=1)
                       + np.square(trace.grad["roi_heads.box_deltas"]).sum(axis=1))
    most = np.argsort(-reaching, kind="stable")[:ROIS]
    return {
        "losses": {name: rounded(float(value)) for name, value in losses.items()},
        "anchorSamples": [len(decisions.anchor_positive[0]), len(decisions.anchor_negative[0])],
        "rois": [{"box": rounded(proposals[r]), "label": int(labels[r]), "gradient": rounded(reaching[r])} for r in most],
        "roiCount": len(labels), "positive": int((labels > 0).sum()),
        "stages": stages, "classes": class_rows(trace, labels, most, arrays),
        "masks": masks(trace, labels, arrays) if model.has_masks else [],
        "parameters": rounded(float(np.sqrt(sum(np.square(p.grad, dtype=np.float64).sum() for p in model.parameters())))),
    }


def stage(name, trace, arrays):
    """One stage: the gradient's norm, and where in it the gradient is: a map (rows, columns), channels summed up."""
    values, gradient = trace[name], trace.grad[name]
    row = {"name": name, "about": {**NAMES, **OTHER_NAMES}.get(name, ""), "shape": list(gradient.shape),
           "norm": rounded(float(np.linalg.norm(gradient.ravel().astype(np.float64)))),
           "largest": rounded(float(np.abs(gradient).max(initial=0))),
           "share": rounded(float((gradient != 0).mean()) if gradient.size else 0.0)}
    if name in ("rpn.objectness", "rpn.deltas") or gradient.size == 0:
        return row  # the same numbers in one long row; the levels show them as maps
    if gradient.ndim == 4:
        # a map of the image; of RoIs the mean over all of them
        both = [np.abs(x).sum(axis=1) for x in (gradient, values)]
        both = [x.mean(axis=0) for x in both]
        row["kind"] = "map" if gradient.shape[0] == 1 and name.startswith(("backbone.", "fpn.", "rpn.")) else "crop"
        both = [shrunk(x, SIDE)[0] for x in both]
    else:
        row["kind"] = "matrix"
        rows = np.argsort(-np.abs(gradient).sum(axis=1), kind="stable")[:ROWS]
        columns = np.argsort(-np.abs(gradient).sum(axis=0), kind="stable")[:COLUMNS]
        both = [np.abs(x[rows][:, np.sort(columns)]) for x in (gradient, values)]
    row["gradient"], row["value"] = arrays.add(both[0], 0), arrays.add(both[1], 0)
    return row


def class_rows(trace, labels, rois, arrays):
    """softmax minus one-hot, for the RoIs that get most: what the class loss sends back, before it is divided by their number."""
    rois = rois[:CLASS_ROWS]
    probability = softmax(trace["roi_heads.class_logits"][rois], axis=1)
    wrong = probability.copy()
    wrong[np.arange(len(rois)), labels[rois]] -= 1
    shown = np.argsort(-np.abs(wrong).sum(axis=0), kind="stable")[:CLASSES]
    shown.sort()
    return {"labels": labels[rois].tolist(), "shown": shown.tolist(), "data": arrays.add(wrong[:, shown], -1, 1)}


def masks(trace, labels, arrays):
    """For the first positive RoIs: the mask as it is, as it should be, and the difference, which is the gradient up to a factor."""
    positive = labels[labels > 0]
    gradient, targets = trace.grad["roi_heads.mask_logits"], trace["roi_heads.mask_targets"]
    rows = []
    for i in range(min(len(positive), MASKS)):
        channel = positive[i] if gradient.shape[1] > 1 else 0
        logits = trace["roi_heads.mask_logits"][i]
        own = sigmoid(logits[channel])
        largest = float(np.abs(gradient[i, channel]).max())
        rows.append({"label": int(positive[i]), "mask": arrays.add(own, 0, 1), "target": arrays.add(targets[i], 0, 1),
                     "gradient": arrays.add(gradient[i, channel], -largest, largest), "largest": rounded(largest)})
    return rows
