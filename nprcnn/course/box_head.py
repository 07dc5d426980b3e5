"""Exercises of notebook 09: the box head."""

import numpy as np

from ..ops.activation import softmax
from .checks import compare


def check_pick_boxes(yours):
    """pick_boxes(rois (R, 4), deltas (R, 4K), labels (R,), weights) -> (R, 4): each RoI's box of its class."""
    def right(rois, deltas, labels, weights, divide=True, class_first=True, shift=0, exp=np.exp, corner=False,
              side=None):
        count = len(rois)
        d = deltas.reshape(count, -1, 4) if class_first else deltas.reshape(count, 4, -1).transpose(0, 2, 1)
        d = d[np.arange(count), labels - shift]
        d = d / weights if divide is True else d * weights if divide == "times" else d
        sides = rois[:, 2:] - rois[:, :2]
        centres = rois[:, :2] + (0 if corner else sides / 2) + d[:, :2] * (sides if side is None else side)
        new = sides * exp(d[:, 2:])
        low = centres if corner else centres - new / 2
        return np.concatenate([low, low + new], axis=1)

    def centre_and_sides(*a):
        low, high = np.split(right(*a), 2, axis=1)
        return np.concatenate([(low + high) / 2, high - low], axis=1)

    mistakes = [
        (lambda *a: right(*a, divide=False), "the weights are not used: divide the deltas by them first."),
        (lambda *a: right(*a, divide="times"),
         "the deltas are multiplied by the weights. That is encoding; to decode, divide."),
        (lambda r, d, l, w: right(r, d, l, np.array([10.0, 10, 5, 5])),
         "the weights are always (10, 10, 5, 5) with you. Use those that are given."),
        (lambda *a: right(*a, class_first=False),
         "numbers k, K + k, 2 K + k, ... are taken. Class k has the four neighbours 4 k to 4 k + 3: reshape to "
         "(R, K, 4)."),
        (lambda *a: right(*a, shift=1),
         "it is the class before: the background is class 0 and has four deltas of its own."),
        (lambda *a: right(*a, exp=lambda x: 1 + x), "dw and dh are logarithms: the side is multiplied by exp(dw)."),
        (lambda *a: right(*a, corner=True),
         "the corner is moved. dx and dy move the centre, and the sides grow about it."),
        (lambda *a: right(*a) - np.tile((a[0][:, 2:] - a[0][:, :2]) / 2, 2),
         "dx and dy move the centre, and x1 and y1 are taken for it. The centre is x1 + w / 2."),
        (centre_and_sides, "it is centre, width and height. Corners are wanted: x - w / 2, ..., x + w / 2."),
        (lambda *a: right(*a, side=1), "dx and dy are relative: times the width and height of the RoI."),
    ]
    rng = np.random.default_rng(41)
    cases = []
    for name, count, classes, weights in (("6 RoIs, 5 classes, weights (10, 10, 5, 5)", 6, 5, (10.0, 10.0, 5.0, 5.0)),
                                          ("weights (2, 3, 4, 5)", 4, 3, (2.0, 3.0, 4.0, 5.0)),
                                          ("one RoI", 1, 7, (1.0, 1.0, 1.0, 1.0))):
        corner, side = rng.uniform(0, 80, (count, 2)), rng.uniform(10, 60, (count, 2))
        rois, deltas = np.concatenate([corner, corner + side], axis=1), rng.standard_normal((count, 4 * classes))
        cases.append((name, (rois, deltas, rng.integers(1, classes, count), np.array(weights))))
    return compare("pick_boxes", yours, right, cases, ("boxes",), mistakes)


def check_sample_losses_backward(yours):
    """sample_losses_backward((dclass, dbox), (z, d, labels, wanted, beta)) -> dz (R, K), dd (R, 4K)."""
    def right(dy, cache, hot=True, class_by=None, box_by=None, slices="own", background=False, cut=True, scale=True):
        dclass, dbox = dy if scale else (1, 1)
        z, d, labels, wanted, beta = cache
        count, classes = z.shape
        dz = softmax(z, axis=1) - (np.eye(classes)[labels] if hot else 0)
        chosen = np.arange(count) if background else np.flatnonzero(labels > 0)
        e = d.reshape(count, classes, 4)[chosen, labels[chosen]] - wanted[chosen]
        slope = np.clip(e / beta, -1, 1) if cut else e / beta
        dd = np.zeros((count, classes, 4))
        if slices == "own":
            dd[chosen, labels[chosen]] = slope
        elif slices == "all":
            dd[chosen] = slope[:, None]
        else:
            dd[chosen, labels[chosen] - 1] = slope
        return (dclass * dz / (count if class_by is None else class_by(labels)),
                (dbox * dd / (count if box_by is None else box_by(labels))).reshape(count, -1))

    def positives(labels):
        return max(np.count_nonzero(labels), 1)

    mistakes = [
        (lambda dy, c: right(dy, c, hot=False),
         "that is p alone. The true class gets a -1: dz = p - [k = u]."),
        (lambda dy, c: (-right(dy, c)[0], None),
         "the sign of dz: the true class's logit should grow, so its dz is negative."),
        (lambda dy, c: right(dy, c, class_by=lambda l: 1, box_by=lambda l: 1),
         "the forward divides by R, and so must the backward."),
        (lambda dy, c: (None, right(dy, c, box_by=positives)[1]),
         "the box loss is divided by the number of sampled RoIs, not of the positives."),
        (lambda dy, c: (None, right(dy, c, background=True)[1]),
         "RoIs of the background get a box gradient. They have no box: only labels > 0."),
        (lambda dy, c: (None, right(dy, c, slices="all")[1]),
         "all classes' deltas get the gradient. Only the slice of the true class was looked at."),
        (lambda dy, c: (None, right(dy, c, slices="before")[1]),
         "it arrives at the class before: the background has a slice of its own, class 0."),
        (lambda dy, c: (None, right(dy, c, cut=False)[1]),
         "the slope of smooth L1 ends at 1 and -1: np.clip(e / beta, -1, 1)."),
        (lambda dy, c: (None, np.sign(right(dy, c)[1]) * abs(dy[1]) / len(c[2])),
         "the slope is 1 or -1 everywhere. Below beta smooth L1 is a parabola: np.clip(e / beta, -1, 1)."),
        (lambda dy, c: right(dy[::-1], c), "dclass and dbox are exchanged: dclass scales dz, dbox scales dd."),
        (lambda dy, c: right(dy, c, scale=False), "dclass and dbox are missing: what follows a loss may scale it."),
    ]
    rng = np.random.default_rng(42)
    cases = []
    for name, labels, classes, beta, dy in (("6 RoIs, 3 of them positive", [0, 2, 1, 0, 3, 0], 4, 1 / 9, (1.3, 0.7)),
                                            ("no positive", [0, 0, 0], 3, 1 / 9, (0.6, -1.1)),
                                            ("beta 1, two of one class", [2, 2, 0, 1], 3, 1.0, (-0.4, 2.0))):
        count = len(labels)
        cases.append((name, (dy, (rng.standard_normal((count, classes)), rng.standard_normal((count, 4 * classes)),
                                  np.array(labels), rng.standard_normal((count, 4)), beta))))
    return compare("sample_losses_backward", yours, right, cases, ("dz", "dd"), mistakes)


def small_head_forward(x, w6, w7, wc, wb):
    """The head of exercise 3: x (R, I) -> ((R, K), (R, 4K)), cache."""
    h6 = np.maximum(x @ w6.T, 0)
    h7 = np.maximum(h6 @ w7.T, 0)
    return (h7 @ wc.T, h7 @ wb.T), (x, w6, h6, w7, h7, wc, wb)


def check_small_head_backward(yours):
    """small_head_backward((dz, dd), cache) -> dx, dw6, dw7, dwc, dwb of the head in exercise 3 of notebook 09."""
    def right(dy, cache, gate6="h6", gate7=True, both=(1, 1), mean=False, turn7=True, through7=True):
        dz, dd = dy
        x, w6, h6, w7, h7, wc, wb = cache
        dh7 = both[0] * dz @ wc + both[1] * dd @ wb
        da7 = dh7 * (h7 > 0) if gate7 else dh7
        dh6 = da7 @ (w7 if turn7 else w7.T) if through7 else dh7
        da6 = dh6 * ((h6 if gate6 == "h6" else h7) > 0) if gate6 else dh6
        by = len(x) if mean else 1
        return da6 @ w6, da6.T @ x / by, da7.T @ h6 / by, dz.T @ h7 / by, dd.T @ h7 / by

    mistakes = [
        (lambda dy, c: right(dy, c, gate6="h7"),
         "the bug is still there: fc6's ReLU is gated by another layer's output. Where was its own output positive?"),
        (lambda dy, c: right(dy, c, gate6=None), "fc6's ReLU has no gate: its gradient is 0 where h6 is 0."),
        (lambda dy, c: right(dy, c, gate7=False), "fc7's ReLU has no gate: its gradient is 0 where h7 is 0."),
        (lambda dy, c: right(dy, c, both=(1, 0)),
         "the path through the deltas is missing: h7 feeds both sisters (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, both=(0, 1)),
         "the path through the logits is missing: h7 feeds both sisters (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, turn7=False), "w7 is transposed: h7 = h6 w7.T forward, so dh6 = da7 w7 backward."),
        (lambda dy, c: right(dy, c, through7=False), "fc7 is passed by: dh7 is used where dh6 is meant."),
        (lambda dy, c: right(dy, c, mean=True),
         "the weights' gradients are means over the RoIs. They are sums: any mean is in dz and dd already."),
    ]
    rng = np.random.default_rng(43)
    cases = []
    for name, count, inputs, hidden, classes in (("5 RoIs, 4 hidden units", 5, 6, 4, 3),
                                                 ("2 RoIs, 8 hidden units", 2, 4, 8, 2)):
        tensors = [rng.standard_normal(s) for s in ((count, inputs), (hidden, inputs), (hidden, hidden),
                                                    (classes, hidden), (4 * classes, hidden))]
        y, cache = small_head_forward(*tensors)
        cases.append((name, (tuple(rng.standard_normal(out.shape) for out in y), cache)))
    return compare("small_head_backward", yours, right, cases, ("dx", "dw6", "dw7", "dwc", "dwb"), mistakes)
