"""The three losses of Mask R-CNN: softmax cross-entropy, binary cross-entropy with logits, smooth L1.

Each forward is sum(elements) / normalizer, a 0-d scalar of the first argument's dtype, and 0 if there are no
elements: an image without objects has no positives, and its loss must be 0 and not NaN. Each backward takes the
gradient of that scalar and returns the gradient of the first argument; labels and targets get none.

Letters: R RoIs or anchors, K classes with the background.
"""

from typing import NamedTuple

import numpy as np

from nprcnn.ops.activation import sigmoid, softmax


class SoftmaxCrossEntropyCache(NamedTuple):
    logits: np.ndarray
    labels: np.ndarray
    normalizer: float


class BCEWithLogitsCache(NamedTuple):
    logits: np.ndarray
    targets: np.ndarray
    normalizer: float


class SmoothL1Cache(NamedTuple):
    pred: np.ndarray
    target: np.ndarray
    beta: float
    normalizer: float


def _normalizer(given, default, size):
    """The divisor as a Python float, which leaves float32 arrays float32; 1 for an empty sum."""
    if size == 0:
        return 1.0
    normalizer = float(default if given is None else given)
    if not normalizer > 0:
        raise ValueError(f"normalizer must be positive, got {given}")
    return normalizer


def _check_floating(name, x):
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def _check_same_shape(name, a, b):
    if a.shape != b.shape:
        raise ValueError(f"{name} needs two arrays of one shape, got {a.shape} and {b.shape}")


def softmax_cross_entropy_forward(logits, labels, normalizer=None):
    """-log of the softmax probability of the true class, summed over rows and divided by `normalizer`.

    Parameters
    ----------
    logits : (R, K) array
    labels : (R,) integer array in 0..K-1
    normalizer : float; None: R, so that the loss is the mean

    Returns
    -------
    loss : scalar
    cache : SoftmaxCrossEntropyCache

    References
    ----------
    L_cls of Fast R-CNN (arXiv 1504.08083), section 2.3.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"softmax_cross_entropy needs logits (R, K) and labels (R,), got {logits.shape} and "
                         f"{labels.shape}")
    _check_floating("logits", logits)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.size and not (0 <= labels.min() and labels.max() < logits.shape[1]):
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, got {labels.min()}..{labels.max()}")
    cache = SoftmaxCrossEntropyCache(logits, labels, _normalizer(normalizer, len(logits), len(logits)))
    if len(logits) == 0:
        return logits.dtype.type(0), cache
    shifted = logits - logits.max(axis=1, keepdims=True)  # softmax stays the same, and exp cannot overflow
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    loss = (log_sum - shifted[np.arange(len(labels)), labels]).sum() / cache.normalizer
    return loss, cache


def softmax_cross_entropy_backward(dy, cache):
    """Gradient of the logits, (R, K)."""
    # forward: loss = sum_r (log sum_k exp z[r, k] - z[r, label of r]) / normalizer,
    # so dz[r, k] = (softmax(z[r])[k] - (1 if k is the label of r else 0)) / normalizer
    dlogits = softmax(cache.logits, axis=1)
    dlogits[np.arange(len(cache.labels)), cache.labels] -= 1
    dlogits *= float(dy) / cache.normalizer
    return dlogits


def bce_with_logits_forward(logits, targets, normalizer=None):
    """Binary cross-entropy between sigmoid(logits) and targets, summed and divided by `normalizer`.

    Parameters
    ----------
    logits : array of any shape
    targets : array of that shape, in [0, 1]: soft targets are allowed
    normalizer : float; None: the number of elements, so that the loss is the mean

    Returns
    -------
    loss : scalar
    cache : BCEWithLogitsCache

    References
    ----------
    L_mask of Mask R-CNN (arXiv 1703.06870), section 3; the RPN's objectness loss with one logit an anchor.
    """
    _check_same_shape("bce_with_logits", logits, targets)
    _check_floating("logits", logits)
    targets = targets.astype(logits.dtype, copy=False)
    cache = BCEWithLogitsCache(logits, targets, _normalizer(normalizer, logits.size, logits.size))
    # -t log s(x) - (1 - t) log(1 - s(x)) = max(x, 0) - t x + log(1 + exp(-|x|)), whose exp cannot overflow
    elements = np.maximum(logits, 0) - targets * logits + np.log1p(np.exp(-np.abs(logits)))
    return elements.sum() / cache.normalizer, cache


def bce_with_logits_backward(dy, cache):
    """Gradient of the logits, of their shape."""
    # forward: loss = sum(-t log s(x) - (1 - t) log(1 - s(x))) / normalizer, so dx = (s(x) - t) / normalizer
    return (sigmoid(cache.logits) - cache.targets) * (float(dy) / cache.normalizer)


def smooth_l1_forward(pred, target, beta, normalizer=None):
    """Smooth L1 of d = pred - target: .5 d^2 / beta where |d| < beta, |d| - .5 beta elsewhere.

    Summed and divided by `normalizer`.

    Parameters
    ----------
    pred : array of any shape
    target : array of that shape
    beta : float >= 0, where the parabola meets the line; 0 is the L1 loss
    normalizer : float; None: 1, so that the loss is the sum

    Returns
    -------
    loss : scalar
    cache : SmoothL1Cache

    References
    ----------
    Fast R-CNN (arXiv 1504.08083), equation 3, which has beta = 1; torchvision's beta is 1/9, Detectron2's 0.
    """
    _check_same_shape("smooth_l1", pred, target)
    _check_floating("pred", pred)
    beta = float(beta)
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    target = target.astype(pred.dtype, copy=False)
    cache = SmoothL1Cache(pred, target, beta, _normalizer(normalizer, 1, pred.size))
    distance = np.abs(pred - target)
    elements = distance - 0.5 * beta
    if beta > 0:
        elements = np.where(distance < beta, 0.5 * distance * distance / beta, elements)
    return elements.sum() / cache.normalizer, cache


def smooth_l1_backward(dy, cache):
    """Gradient of the predictions, of their shape."""
    difference = cache.pred - cache.target
    # forward: .5 d^2 / beta below beta, |d| - .5 beta above, so the slope is d / beta below and sign(d) above:
    # both at once, d / beta clipped to -1..1
    slope = np.sign(difference) if cache.beta == 0 else np.clip(difference / cache.beta, -1, 1)
    return slope * (float(dy) / cache.normalizer)
