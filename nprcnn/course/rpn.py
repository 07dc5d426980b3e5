"""Exercises of notebook 06: the RPN."""

import numpy as np

from ..models.targets import BACKGROUND, IGNORED
from ..ops.activation import relu_backward, relu_forward, sigmoid
from ..ops.boxes import box_iou
from ..ops.conv import conv2d_backward, conv2d_forward
from .checks import compare


def check_match_fair(yours):
    """match_fair(iou (G, T), high, low) -> (T,): the matching of section 3, but who chose an anchor gets it."""
    def right(iou, high, low, choose="all", owner="chooser", over=np.greater_equal, under=np.less, middle=IGNORED,
              last=False):
        own, best = iou.argmax(axis=0), iou.max(axis=0)
        matched = np.where(over(best, high), own, np.where(under(best, low), BACKGROUND, middle))
        claim = np.zeros(iou.shape[1])
        for g, row in enumerate(iou):
            chosen = row == row.max() if choose == "all" else np.arange(len(row)) == row.argmax()
            if choose == "none":
                continue
            if not last:
                chosen &= row > claim
            matched[chosen] = g if owner == "chooser" else own[chosen]
            claim[chosen] = row[chosen]
        return matched

    mistakes = [
        (lambda *a: right(*a, owner="own"),
         "an anchor that a target chose still goes to its own best target. Here it belongs to the one that chose "
         "it."),
        (lambda *a: right(*a, choose="none"),
         "rule (i) is missing: each target chooses the anchors with which its IoU is highest."),
        (lambda *a: right(*a, choose="first"),
         "only one anchor of each target is chosen. All that tie for its best IoU are: compare with the maximum, "
         "argmax finds one."),
        (lambda *a: right(*a, last=True),
         "an anchor that two targets chose goes to the last of them. It should go to the one with the higher IoU."),
        (lambda *a: right(*a, middle=BACKGROUND),
         "between low and high an anchor is IGNORED, which is -2, not background."),
        (lambda *a: right(*a, over=np.greater, under=np.less_equal),
         "an IoU exactly at a threshold: positive is IoU >= high, negative is IoU < low."),
        (lambda *a: right(*a, over=np.greater), "rule (ii) includes the threshold: IoU >= high."),
        (lambda *a: right(*a, under=np.less_equal), "an IoU of exactly low is ignored: negative is IoU < low."),
        (lambda *a: (right(*a) >= 0).astype(int) - (right(*a) == BACKGROUND) - 2 * (right(*a) == IGNORED),
         "positives hold a 1. The number of their target is wanted, 0 for the first."),
    ]
    rng = np.random.default_rng(11)
    exact = np.array([[0.7, 0.3, 0.5, 0.1, 0.9, 0.75, 0.0], [0.1, 0.2, 0.2, 0.6, 0.0, 0.2, 0.29]])
    stolen = np.array([[0.8, 0.9, 0.1, 0.2, 0.5, 0.9], [0.6, 0.1, 0.1, 0.3, 0.2, 0.0]])      # target 1 chose anchor 0
    both = np.array([[0.6, 0.2, 0.1, 0.4], [0.5, 0.3, 0.0, 0.4]])                            # both chose anchor 0
    corner, side = rng.uniform(0, 90, (60, 2)), rng.uniform(10, 40, (60, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    cases = [("IoUs at the thresholds", (exact, 0.7, 0.3)),
             ("target 1's anchor fits target 0 better", (stolen, 0.7, 0.3)),
             ("two targets choose one anchor", (both, 0.7, 0.3)),
             ("6 targets, 54 anchors", (box_iou(boxes[:6], boxes[6:]), 0.5, 0.2)),
             ("two anchors that tie", (np.array([[0.6, 0.1, 0.6, 0.4, 0.2]]), 0.7, 0.3))]
    return compare("match_fair", yours, right, cases, ("matched",), mistakes)


def check_focal_backward(yours):
    """focal_backward(dy, (z, t, gamma)) -> dz of the focal loss in notebook 06."""
    def right(dy, cache, product=True, factor=True, second=1, mirror=True, slope=False, normalizer=None, weight=True, sign=True, by=None):
        z, t, gamma = cache
        s = np.where(t == 1, 1, -1)
        p = sigmoid(s * z)                                        # of the true answer
        log_p = -np.logaddexp(0, -s * z)
        dz = (1 - p) ** gamma * ((gamma * (p if factor else 1) * log_p if product else 0) + second * (p - 1))
        if not weight:
            dz = p - 1
        if slope:
            dz = dz / (p * (1 - p))
        dz = dz * s if mirror else dz
        return (dy if sign else 1) * dz / (max(t.sum(), 1) if by is None else by(t))

    mistakes = [
        (lambda dy, c: right(dy, c, product=False),
         "the weight (1 - p)^gamma is taken as a constant. It depends on z too: product rule, the second term is "
         "missing."),
        (lambda dy, c: right(dy, c, factor=False),
         "a factor p is missing in the bracket's first term: the sigmoid's slope p (1 - p) multiplies both terms."),
        (lambda dy, c: right(dy, c, second=-1),
         "the bracket's second term has the wrong sign: f has a minus, and the slope of log p is 1 / p."),
        (lambda dy, c: right(dy, c, weight=False),
         "that is the gradient of the plain cross-entropy: the weight (1 - p)^gamma is missing."),
        (lambda dy, c: right(dy, c, mirror=False),
         "the negatives have the wrong sign: for them p is sigmoid(-z), and a larger z makes it smaller."),
        (lambda dy, c: right(dy, c, slope=True),
         "that is the gradient to the probability. A step is left: p = sigmoid(z) has the slope p (1 - p)."),
        (lambda dy, c: right(dy, c, by=lambda t: t.size),
         "the forward divides by the number of positives, not of all anchors."),
        (lambda dy, c: right(dy, c, by=lambda t: 1),
         "the forward divides by the number of positives, and so must the backward."),
        (lambda dy, c: right(dy, c, sign=False), "dy is missing: what follows the loss may scale it."),
        (lambda dy, c: -right(dy, c), "the sign: a positive whose logit grows has less loss."),
    ]
    rng = np.random.default_rng(12)
    cases = []
    for name, dy, size, gamma, positives in (
            ("12 anchors, gamma 2", 1.7, 2.0, 2.0, 3), ("no positive", 0.8, 2.0, 2.0, 0), ("gamma 0.5", -0.6, 3.0, 0.5, 4),
            ("gamma 0: plain cross-entropy", 1.3, 2.0, 0.0, 5), ("logits of some thousand", 1.0, 3000.0, 2.0, 6)):
        t = (rng.permutation(12) < positives).astype(float)
        cases.append((name, (dy, (size * rng.standard_normal(12), t, gamma))))
    return compare("focal_backward", yours, right, cases, ("dz",), mistakes)


def rpn_level_forward(x, w, wo, wd):
    """One level of the RPN as in exercise 3: x (N, C, h, w) -> (logits (N, h w A), deltas (N, h w A, 4)), cache."""
    a, conv_cache = conv2d_forward(x, w, None, 1, 1)
    hidden, relu_cache = relu_forward(a)
    z, logits_cache = conv2d_forward(hidden, wo)
    d, deltas_cache = conv2d_forward(hidden, wd)
    n, anchors, height, width = z.shape
    logits = z.transpose(0, 2, 3, 1).reshape(n, -1)
    deltas = d.reshape(n, anchors, 4, height, width).transpose(0, 3, 4, 1, 2).reshape(n, -1, 4)
    return (logits, deltas), (conv_cache, relu_cache, logits_cache, deltas_cache, z.shape)


def check_rpn_backward(yours):
    """rpn_backward(dy, cache) -> dx, dw, dwo, dwd of the level in exercise 3 of notebook 06."""
    def right(dy, cache, order="a k", from_z=1, from_d=1, gate=True, z_order="y x a"):
        dlogits, ddeltas = dy
        conv_cache, relu_cache, logits_cache, deltas_cache, (n, a, h, w) = cache
        dz = dlogits.reshape(n, h, w, a).transpose(0, 3, 1, 2) if z_order == "y x a" else dlogits.reshape(n, a, h, w)
        if order == "a k":
            dd = ddeltas.reshape(n, h, w, a, 4).transpose(0, 3, 4, 1, 2)
        elif order == "k a":
            dd = ddeltas.reshape(n, h, w, a, 4).transpose(0, 4, 3, 1, 2)
        else:
            dd = ddeltas.reshape(n, a, 4, h, w)
        dh_z, dwo, _ = conv2d_backward(np.ascontiguousarray(dz), logits_cache)
        dh_d, dwd, _ = conv2d_backward(dd.reshape(n, 4 * a, h, w), deltas_cache)
        dhidden = from_z * dh_z + from_d * dh_d
        dx, dw, _ = conv2d_backward(relu_backward(dhidden, relu_cache) if gate else dhidden, conv_cache)
        return dx, dw, dwo, dwd

    mistakes = [
        (lambda dy, c: right(dy, c, order="k a"),
         "the bug is still there: the deltas come back as channel k * A + a, and the forward had a * 4 + k. Which "
         "two axes are exchanged?"),
        (lambda dy, c: right(dy, c, order="none"),
         "ddeltas is (N, h w A, 4) with the anchor inside the cell: a reshape alone does not bring its axes back, "
         "transpose."),
        (lambda dy, c: right(dy, c, z_order="none"),
         "dlogits is (N, h w A) with the anchor last: a reshape alone does not make (N, A, h, w) of it."),
        (lambda dy, c: right(dy, c, from_d=0),
         "the path through the deltas is missing: hidden feeds both siblings (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, from_z=0),
         "the path through the logits is missing: hidden feeds both siblings (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, gate=False),
         "ReLU's gate is missing between the siblings and the 3x3 convolution."),
    ]
    rng = np.random.default_rng(13)
    cases = []
    for name, n, c, a, h, w in (("one image, 2 x 3 cells", 1, 3, 3, 2, 3),
                                ("two images, 4 x 3 cells, 2 anchors", 2, 4, 2, 4, 3)):
        tensors = [rng.standard_normal(s) for s in ((n, c, h, w), (c, c, 3, 3), (a, c, 1, 1), (4 * a, c, 1, 1))]
        y, cache = rpn_level_forward(*tensors)
        cases.append((name, (tuple(rng.standard_normal(out.shape) for out in y), cache)))
    return compare("rpn_backward", yours, right, cases, ("dx", "dw", "dwo", "dwd"), mistakes)
