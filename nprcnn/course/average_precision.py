"""Exercises of notebook 13: detections and AP by hand."""

import numpy as np

from .checks import compare


def check_mask_iou(yours):
    """mask_iou(found (D, H, W) bool, targets (G, H, W) uint8, crowd (G,) bool) -> (D, G), COCO's IoU."""
    def right(found, targets, crowd, below=lambda a, b, inter, crowd: np.where(crowd, a, a + b - inter),
              inside=lambda inter: inter):
        a, b = (masks.reshape(len(masks), -1).astype(float) for masks in (found, targets))
        inter = inside(a @ b.T)
        union = below(a.sum(axis=1)[:, None], b.sum(axis=1)[None], inter, crowd[None])
        return inter / np.maximum(union, 1)      # a union is 0 only where the intersection is

    def union(a, b, inter, crowd):
        return a + b - inter

    mistakes = [
        (lambda f, t, c: right(f, t, c, union),
         "the crowds are treated like single objects. For a crowd, divide by the area of the detection."),
        (lambda f, t, c: right(f, t, c, lambda a, b, inter, crowd: np.where(crowd, b, a + b - inter)),
         "for a crowd you divide by the area of the crowd. Divide by that of the detection: how much of it lies in the crowd?"),
        (lambda f, t, c: right(f, t, c, lambda a, b, inter, crowd: a + 0 * b),
         "every target is treated as a crowd."),
        (lambda f, t, c: right(f, t, c, inside=lambda inter: inter % 256),
         "an intersection is counted modulo 256: a product of uint8 matrices stays uint8. Turn the masks to float first."),
        (lambda f, t, c: right(f, t, c, inside=lambda inter: (inter > 0) * 1.0),
         "an intersection is 0 or 1: a product of bool matrices stays bool. Turn the masks to float first."),
        (lambda f, t, c: right(f, t, c, lambda a, b, inter, crowd: np.where(crowd, a, a + b)),
         "the union counts the common pixels twice: area + area - intersection."),
        (lambda f, t, c: right(f, t, c, lambda a, b, inter, crowd: np.where(crowd, a, (a + b) / 2)),
         "that is Dice's coefficient, 2 I / (A + B), not the IoU."),
    ]
    rows, columns = np.mgrid[:40, :40]

    def discs(places):
        return np.stack([(rows - y) ** 2 + (columns - x) ** 2 < r * r for y, x, r in places])

    found, targets = discs([(14, 14, 12), (20, 22, 11), (30, 8, 5)]), discs([(15, 16, 12), (22, 22, 16)]).astype(np.uint8)
    nothing = np.zeros((1, 40, 40), bool)
    cases = [("no crowd", (found, targets, np.zeros(2, bool))),
             ("the second target is a crowd", (found, targets, np.array([False, True]))),
             ("an empty mask", (np.concatenate([found, nothing]), targets, np.array([True, False])))]
    return compare("mask_iou", yours, right, cases, ("iou",), mistakes)


def check_match_voc(yours):
    """match_voc(iou (D, G), difficult (G,) bool, threshold) -> (D,) int: 1 right, 0 wrong, -1 not counted."""
    def right(iou, difficult, threshold, next_free=False, once=True, if_difficult=-1, enough=np.greater_equal,
              drop_all=False, claim=False):
        answer, taken = np.zeros(len(iou), int), np.zeros(iou.shape[1], bool)
        for d, row in enumerate(iou):
            row = np.where(taken, -1, row) if next_free else row
            if not len(row) or not enough(row.max(), threshold):
                continue
            g = row.argmax()
            if difficult[g]:
                answer[d] = 0 if claim and taken[g] else if_difficult
                taken[g] = claim
            else:
                answer[d] = not (taken[g] and once)
                if drop_all and taken[g]:
                    answer[d] = -1
                taken[g] = True
        return answer

    mistakes = [
        (lambda *a: right(*a, next_free=True),
         "a detection whose target is taken goes on to the next best one. That is COCO's rule; in VOC it is wrong at once."),
        (lambda *a: right(*a, once=False),
         "a target is found more than once. Only the first detection is right, the others are wrong."),
        (lambda *a: right(*a, drop_all=True), "a second detection of the same target is left out. It is wrong: 0."),
        (lambda *a: right(*a, if_difficult=1), "a difficult target counts as a hit. It must not count at all: -1."),
        (lambda *a: right(*a, if_difficult=0),
         "a detection of a difficult target counts as wrong. It must not count at all: -1."),
        (lambda *a: right(*a, claim=True),
         "only the first detection of a difficult target is left out. Any number of them do not count: -1 each."),
        (lambda *a: right(*a, enough=np.greater), "an IoU equal to the threshold is enough: >=, not >."),
        (lambda iou, difficult, t: right(iou, difficult & False, t), "difficult has no effect."),
        (lambda iou, difficult, t: right(iou, difficult, 0.5) if t != 0.5 else None,
         "threshold has no effect: it is not always 0.5."),
    ]
    three = np.array([[0.9, 0.6, 0.0], [0.8, 0.7, 0.1], [0.1, 0.5, 0.3], [0.0, 0.1, 0.9], [0.2, 0.0, 0.6]])
    rng = np.random.default_rng(31)
    cases = [("five detections, three targets, the last one difficult", (three, np.array([False, False, True]), 0.5)),
             ("the same at 0.75", (three, np.array([False, False, True]), 0.75)),
             ("20 detections, 6 targets", (rng.integers(0, 21, (20, 6)) / 20, rng.random(6) < 0.4, 0.7)),
             ("no target", (np.zeros((3, 0)), np.zeros(0, bool), 0.5))]
    return compare("match_voc", yours, right, cases, ("answer",), mistakes)


def check_area_ap(yours):
    """area_ap(scores (D,), correct (D,) bool, count) -> the area under the interpolated precision-recall curve."""
    def right(scores, correct, count, order=lambda s: np.argsort(-s, kind="stable"), fill=True, height=lambda p: p):
        hit = correct[order(scores)]
        precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1] if fill else precision
        return (height(precision) * hit).sum() / count

    def points(scores, correct, count, number=101):
        hit = correct[np.argsort(-scores, kind="stable")]
        precision = np.maximum.accumulate((np.cumsum(hit) / np.arange(1, len(hit) + 1))[::-1])[::-1]
        at = np.searchsorted(np.cumsum(hit) / count, np.linspace(0, 1, number))
        return np.append(precision, 0)[at].mean()

    mistakes = [
        (lambda s, c, n: right(s, c, n, fill=False),
         "the curve is not interpolated: each precision becomes the largest from there to the right."),
        (lambda s, c, n: right(s, c, n, order=lambda s: np.arange(len(s))),
         "the detections are not sorted by score, best first."),
        (lambda s, c, n: right(s, c, n, order=lambda s: np.argsort(s, kind="stable")),
         "the detections are sorted with the worst first."),
        (lambda s, c, n: right(s, c, max(c.sum(), 1)),
         "recall is the share of all `count` targets, missed ones included, and not of the hits."),
        (lambda s, c, n: right(s, c, len(s)),
         "recall is the share of the targets: divide by count, not by the number of detections."),
        (points, "that is COCO's mean over 101 points. Here the area is exact."),
        (lambda s, c, n: points(s, c, n, 11), "that is VOC 2007's mean over 11 points. Here the area is exact."),
    ]
    rng = np.random.default_rng(32)
    cases = [("six detections, five targets",
              (np.array([0.5, 0.9, 0.8, 0.3, 0.7, 0.2]), np.array([True, True, False, True, True, False]), 5))]
    for count in (12, 40):
        scores = rng.permutation(30) / 30
        correct = (rng.random(30) < scores) & (np.arange(30) < 2 * count)
        cases.append((f"30 detections, {count} targets", (scores, correct, count)))
    cases.append(("nothing right", (np.array([0.4, 0.6]), np.array([False, False]), 3)))
    return compare("area_ap", yours, right, cases, ("ap",), mistakes)
