"""Exercises of notebook 05: anchors, IoU and box coding."""

import numpy as np

from ..ops.boxes import box_iou
from .checks import compare

LIMIT = np.log(1000 / 16)


def check_make_anchors(yours):
    """make_anchors(size, ratios, rows, columns, stride) -> (rows * columns * A, 4), ordered row, column, anchor."""
    def right(size, ratios, rows, columns, stride, *, invert=False, area=True, round=np.round, half=0.0, order="yxa",
              swap=False):
        ratios = 1 / np.asarray(ratios) if invert else np.asarray(ratios)
        w, h = (size / np.sqrt(ratios), size * np.sqrt(ratios)) if area else (size + 0 * ratios, size * ratios)
        cell = round(np.stack([-w, -h, w, h], axis=1) / 2)
        i, j = np.meshgrid(np.arange(rows) + half, np.arange(columns) + half, indexing="ij")
        shifts = np.stack([i, j, i, j] if swap else [j, i, j, i], axis=2) * stride
        anchors = shifts[:, :, None] + cell
        return anchors.transpose([*("yxa".index(axis) for axis in order), 3]).reshape(-1, 4)

    mistakes = [
        (lambda *a: right(*a, invert=True), "flat and tall are exchanged. The ratio is height / width: w = s / sqrt(r)."),
        (lambda size, ratios, *a: right(size, np.square(ratios), *a),
         "the square root is missing: w = s / sqrt(r), h = s sqrt(r). Now h / w is the ratio squared."),
        (lambda *a: right(*a, area=False), "the areas differ. Both sides change with the ratio: w = s / sqrt(r), h = s sqrt(r)."),
        (lambda *a: right(*a, round=lambda corners: corners), "the corners of the cell's anchors are not rounded."),
        (lambda *a: right(*a, half=0.5),
         "the centres are in the middle of the cells. Here they are at the corners: (j stride, i stride)."),
        (lambda *a: right(*a, order="xya"), "the columns are the outer loop. The order is row, column, anchor."),
        (lambda *a: right(*a, order="ayx"), "the anchors are the outer loop. The order is row, column, anchor."),
        (lambda *a: right(*a, swap=True), "x and y of the shifts are exchanged: x goes with the column j, y with the row i."),
        (lambda size, ratios, rows, columns, stride: right(size, ratios, rows, columns, 1), "the stride has no effect."),
    ]
    cases = [("size 32, stride 4", (32, (0.5, 1.0, 2.0), 3, 5, 4)), ("size 100, stride 16", (100, (0.3, 3.0), 4, 2, 16)),
             ("one cell", (16, (0.5, 1.0, 2.0), 1, 1, 8))]
    return compare("make_anchors", yours, right, cases, ("anchors",), mistakes)


def check_iou_matrix(yours):
    """iou_matrix(a (Na, 4), b (Nb, 4)) -> (Na, Nb)."""
    def answer(a, b, one=0.0, clamp=lambda w, h: np.maximum(w, 0) * np.maximum(h, 0), union=lambda aa, ab, i: aa + ab - i):
        low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
        w, h = np.moveaxis(high - low + one, 2, 0)
        areas = [np.prod(x[:, 2:] - x[:, :2] + one, axis=1) for x in (a, b)]
        inter = clamp(w, h)
        return inter / union(areas[0][:, None], areas[1][None, :], inter)

    mistakes = [
        (lambda a, b: answer(a, b, clamp=lambda w, h: w * h),
         "boxes that do not meet get an IoU. Their intersection has a negative width or height: cut it off at 0."),
        (lambda a, b: answer(a, b, clamp=lambda w, h: np.maximum(w * h, 0)),
         "boxes that miss each other along x *and* y get an IoU: two negative lengths have a positive product. Cut off each "
         "before multiplying."),
        (lambda a, b: answer(a, b, union=lambda aa, ab, i: aa + ab),
         "the intersection is in both areas, so the sum of the areas counts it twice: subtract it once."),
        (lambda a, b: answer(a, b, union=lambda aa, ab, i: np.minimum(aa, ab)),
         "it divides by the smaller area. The union is meant."),
        (lambda a, b: answer(a, b, union=lambda aa, ab, i: aa), "it divides by the area of a alone. The union is meant."),
        (lambda a, b: answer(a, b, one=1.0), "the widths have a + 1. With continuous coordinates there is none."),
        (lambda a, b: answer(a, b).T, "it is transposed: a row for each box of a."),
    ]
    rng = np.random.default_rng(14)

    def boxes(count, spread):
        corner = rng.uniform(0, spread, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], axis=1)

    cases = [("boxes that meet", (boxes(3, 4), boxes(4, 4))), ("some that do not", (boxes(6, 120), boxes(7, 120))),
             ("one against itself", (np.array([[2.0, 3, 9, 8]]),) * 2)]
    return compare("iou_matrix", yours, box_iou, cases, ("iou",), mistakes)


def check_decode_backward(yours):
    """decode_backward(dboxes (R, 4), (deltas, wa, ha, w, h)) -> ddeltas (R, 4) of notebook 05's decoding."""
    def right(dboxes, cache, place=1, limit=True, half=0.5, centre=1, sign=1):
        deltas, wa, ha, w, h = cache
        dx1, dy1, dx2, dy2 = dboxes.T
        gates = [below if limit in (True, side) else 1 for side, below in zip("wh", (deltas[:, 2:] < LIMIT).T)]
        units = ((w, h), (wa, ha), (1, 1))[place]
        return np.stack([(dx1 + dx2) * units[0] * centre, (dy1 + dy2) * units[1] * centre,
                         sign * (dx2 - dx1) * half * w * gates[0], sign * (dy2 - dy1) * half * h * gates[1]], axis=1)

    mistakes = [
        (lambda d, c: right(d, c, place=0),
         "the first bug is still there: x = x_a + d_x w_a moves with d_x by the *anchor's* width, and not by the box's."),
        (lambda d, c: right(d, c, limit=False),
         "the second bug is still there: above the limit d_w has no effect on the box, so its gradient is 0 there."),
        (lambda d, c: right(d, c, limit="w"), "d_h is cut at the limit as well as d_w: its gradient is 0 beyond it, too."),
        (lambda d, c: right(d, (*c[:3], *(c[k] * np.exp(c[0][:, k + 1]) for k in (1, 2))), limit=False),
         "the limit is missing: beyond it w does not grow any more with d_w, so the gradient of d_w is 0 there."),
        (lambda d, c: right(d, c, place=2), "d_x and d_y lack a factor: x moves by w_a for each d_x."),
        (lambda d, c: right(d, c, half=1.0), "d_w and d_h are twice too large: w moves x1 and x2 by half of it each."),
        (lambda d, c: right(d, c, sign=-1), "d_w and d_h have the wrong sign: a wider box has a smaller x1 and a larger x2."),
        (lambda d, c: right(d, c, centre=0.5), "d_x and d_y are half too small: x moves x1 and x2 by the whole of it."),
    ]
    rng = np.random.default_rng(15)
    cases = []
    for name, large in (("ordinary deltas", False), ("deltas beyond the limit", True)):
        deltas, (wa, ha) = rng.standard_normal((5, 4)), rng.uniform(5, 40, (2, 5))
        if large:
            deltas[1, 2], deltas[3, 3] = 5.0, 7.5
        w, h = wa * np.exp(np.minimum(deltas[:, 2], LIMIT)), ha * np.exp(np.minimum(deltas[:, 3], LIMIT))
        cases.append((name, (rng.standard_normal((5, 4)), (deltas, wa, ha, w, h))))
    return compare("decode_backward", yours, right, cases, ("ddeltas",), mistakes)
