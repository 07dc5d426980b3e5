"""Exercises of notebook 07: proposals and NMS."""

import numpy as np

from ..ops.boxes import box_iou
from .checks import compare


def check_soft_nms(yours):
    """soft_nms(boxes (n, 4), scores (n,), sigma) -> (n,): the scores after Gaussian Soft-NMS."""
    def right(boxes, scores, sigma, decay=lambda iou, sigma: np.exp(-iou * iou / sigma), resort=True, spare=True,
              itself=False):
        iou, scores, done = box_iou(boxes, boxes), scores.copy(), np.zeros(len(scores), bool)
        first = scores.copy()
        for _ in scores:
            best = np.where(done, -np.inf, scores if resort else first).argmax()
            done[best] = True
            lowered = ~done if spare else np.arange(len(scores)) != best
            if itself:
                lowered[best] = True
            scores[lowered] *= decay(iou[best, lowered], sigma)
        return scores

    mistakes = [
        (lambda b, s, sigma: right(b, s, sigma, resort=False),
         "the boxes are taken in the order of the first scores. The next one is the best by the scores as they "
         "are now."),
        (lambda b, s, sigma: right(b, s, sigma, spare=False),
         "boxes that are done are lowered too. Their score is final: only those not done are multiplied."),
        (lambda b, s, sigma: right(b, s, sigma, spare=False, itself=True),
         "every turn lowers all scores, that of the box just taken included. Only boxes not done are multiplied."),
        (lambda b, s, sigma: right(b, s, sigma, itself=True),
         "the box just taken lowers itself, for its IoU with itself is 1. Mark it as done first."),
        (lambda b, s, sigma: right(b, s, sigma, decay=lambda iou, sigma: 1 - iou),
         "that is the linear form, 1 - IoU. The Gaussian one is exp(-IoU^2 / sigma)."),
        (lambda b, s, sigma: right(b, s, sigma, decay=lambda iou, sigma: np.exp(-iou / sigma)),
         "the IoU is not squared in the exponent."),
        (lambda b, s, sigma: right(b, s, sigma, decay=lambda iou, sigma: np.exp(-iou * iou)),
         "sigma has no effect: divide the exponent by it."),
        (lambda b, s, sigma: right(b, s, sigma, decay=lambda iou, sigma: np.exp(-iou * iou / (2 * sigma * sigma))),
         "the exponent is IoU^2 / sigma, as in the paper, and not that of a normal distribution."),
        (lambda b, s, sigma: right(b, s, sigma, decay=lambda iou, sigma: (iou <= 0.5) * 1.0),
         "neighbours are dropped. Here nothing is dropped: scores are lowered by a factor."),
        (lambda b, s, sigma: np.sort(right(b, s, sigma))[::-1] if len(s) > 1 else None,
         "the scores are sorted. Return them in the order of the input: the i-th belongs to boxes[i]."),
    ]
    rng = np.random.default_rng(21)
    row = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [3, 0, 13, 10], [6, 0, 16, 10.0]])
    cases = [("three in a row and one apart", (row, np.array([0.9, 0.3, 0.8, 0.75]), 0.5))]
    for name, count, sigma in (("12 boxes, sigma 0.5", 12, 0.5), ("30 boxes, sigma 0.2", 30, 0.2)):
        corner, side = rng.uniform(0, 25, (count, 2)), rng.uniform(10, 30, (count, 2))
        scores = rng.permutation(count) / count + 0.02
        cases.append((name, (np.concatenate([corner, corner + side], axis=1), scores, sigma)))
    return compare("soft_nms", yours, right, cases, ("scores",), mistakes)


def check_anchor_place(yours):
    """anchor_place(index (n,), shapes [(A, h, w)]) -> level, row, column, anchor, four arrays (n,)."""
    def right(index, shapes, side="right", anchor_last=True, by="w", three=False, first=2, local=True):
        sizes = np.array(shapes)
        starts = np.cumsum([0] + [a * h * w for a, h, w in shapes])
        level = np.searchsorted(starts, index, side=side) - 1
        a, h, w = sizes[level].T
        inside = index - starts[level] if local else index
        if anchor_last:
            cell, anchor = np.divmod(inside, 3 if three else a)
        else:
            anchor, cell = np.divmod(inside, h * w)
        row, column = np.divmod(cell, {"w": w, "h": h, "first": sizes[0, 2]}[by])
        return level + first, row, column, anchor

    mistakes = [
        (lambda i, s: right(i, s, by="h"),
         "the rows are divided by the height. A row has w cells: divmod by the width."),
        (lambda i, s: right(i, s, by="first"),
         "every level has its own width: take w of the level that the anchor is on."),
        (lambda i, s: right(i, s)[:1] + right(i, s)[2:0:-1] + right(i, s)[3:],
         "row and column are exchanged: the row is the slower one."),
        (lambda i, s: right(i, s, anchor_last=False),
         "the order is level, row, column, anchor: the anchor is the fastest. Yours has all cells of anchor 0 "
         "first."),
        (lambda i, s: right(i, s, three=True), "A is not always 3: it is the first number of the level's shape."),
        (lambda i, s: right(i, s, side="left"),
         "the first anchor of a level is counted to the level before: searchsorted with side=\"right\"."),
        (lambda i, s: right(i, s, first=0), "levels are counted from 0. Here the finest has its name: 2 for P2."),
        (lambda i, s: right(i, s, local=False),
         "the start of the level is not subtracted: rows and columns begin anew on each level."),
    ]
    rng = np.random.default_rng(22)
    cases = []
    for name, shapes in (("one level of 4 x 6 cells", [(3, 4, 6)]),
                         ("the levels of the small model", [(3, 2 ** k, 2 ** k) for k in (5, 4, 3, 2, 1)]),
                         ("two levels that are not square, 9 anchors a cell", [(9, 5, 7), (9, 3, 4)])):
        total = sum(a * h * w for a, h, w in shapes)
        ends = np.cumsum([a * h * w for a, h, w in shapes])
        index = np.unique(np.concatenate([rng.integers(0, total, 30), ends - 1, ends[:-1], [0]]))
        cases.append((name, (index, shapes)))
    return compare("anchor_place", yours, right, cases, ("level", "row", "column", "anchor"), mistakes)


def check_iou_backward(yours):
    """iou_backward(dy (n,), (a, b, sides, inter, union)) -> da (n, 4) of the IoU of pairs in notebook 07."""
    def right(dy, cache, union_path=1, area_path=1, inter_path=1, choose=True, meet=True, low_sign=-1, other=True,
              slope=-1, turned=False):
        a, b, sides, inter, union = cache
        d_union = slope * dy * inter / union ** 2
        d_inter = inter_path * (dy / union - union_path * d_union)
        d_sides = d_inter[:, None] * (sides[:, ::-1] if other else sides) * ((sides > 0) if meet else 1)
        low, high = (a[:, :2] > b[:, :2], a[:, 2:] < b[:, 2:]) if choose else (1, 1)
        low, high = (~low, ~high) if turned else (low, high)
        d_own = area_path * d_union[:, None] * (a[:, 2:] - a[:, :2])[:, ::-1]
        return np.concatenate([low_sign * d_sides * low - d_own, d_sides * high + d_own], axis=1)

    mistakes = [
        (lambda dy, c: right(dy, c, union_path=0, area_path=0),
         "the union is taken as a constant. It depends on a in two ways: by a's area and by the intersection."),
        (lambda dy, c: right(dy, c, union_path=0),
         "one path is missing: union = area_a + area_b - inter, so a larger intersection also makes the union smaller."),
        (lambda dy, c: right(dy, c, union_path=-1),
         "union = area_a + area_b - inter: the union's gradient comes to inter with a minus."),
        (lambda dy, c: right(dy, c, area_path=0), "the path through a's own area is missing: it is a part of the union."),
        (lambda dy, c: right(dy, c, area_path=-1), "the sign of the path through a's own area: a larger area makes the IoU smaller."),
        (lambda dy, c: right(dy, c, inter_path=0), "the path through the intersection is missing."),
        (lambda dy, c: right(dy, c, choose=False),
         "the gradient of max and min goes to a only where a is the one that was chosen. Elsewhere the edge is b's."),
        (lambda dy, c: right(dy, c, turned=True),
         "the two conditions are turned round: max takes a's corner where a is larger, min where it is smaller."),
        (lambda dy, c: right(dy, c, slope=1), "a larger union makes the IoU smaller: d_union needs a minus."),
        (lambda dy, c: right(dy, c, meet=False),
         "boxes that do not meet get a gradient. A side that was cut at 0 passes none back: only where sides > 0."),
        (lambda dy, c: right(dy, c, low_sign=1), "sides = high - low: the gradient comes to low with a minus."),
        (lambda dy, c: right(dy, c, other=False), "inter = width * height: the gradient of the width has the height as its factor."),
    ]
    rng = np.random.default_rng(23)
    corner, side = rng.uniform(0, 20, (6, 2)), rng.uniform(10, 40, (6, 2))
    near = np.concatenate([corner, corner + side], axis=1)
    apart = near + np.array([60.0, 3, 60, 3])                     # beside one another: they share rows, not columns
    cases = []
    for name, a, b in (("6 pairs that meet", near, near + rng.uniform(-6, 6, near.shape)),
                       ("inside one another", near, near + [3.0, 2, -2, -3]), ("pairs that do not meet", near, apart)):
        sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
        inter = sides[:, 0] * sides[:, 1]
        area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
        cases.append((name, (rng.standard_normal(6), (a, b, sides, inter, area_a + area_b - inter))))
    return compare("iou_backward", yours, right, cases, ("da",), mistakes)
