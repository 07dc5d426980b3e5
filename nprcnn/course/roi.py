"""Exercises of notebook 08: RoIPool, RoIAlign and the half pixel."""

import numpy as np

from .checks import compare


def check_looked_at(yours):
    """looked_at(boxes (R, 4), stride) -> (R, 4): the pixels that RoIPool takes into account."""
    def half_up(x):
        return np.floor(x + 0.5)

    def right(boxes, stride, first=half_up, last=half_up, extra=1, back=True):
        cells = np.concatenate([first(boxes[:, :2] / stride), last(boxes[:, 2:] / stride) + extra], axis=1)
        return cells * stride if back else cells

    mistakes = [
        (lambda b, s: right(b, s, extra=0),
         "the last cell is missing: cell k covers the pixels k stride to (k + 1) stride, and the one at x2 "
         "belongs to the RoI."),
        (lambda b, s: right(b, s, np.round, np.round),
         "a half is rounded to the even number: np.round(2.5) is 2. RoIPool rounds halves up: np.floor(x + 0.5)."),
        (lambda b, s: right(b, s, np.floor, np.floor),
         "it rounds down, and so takes every cell that the RoI touches. RoIPool goes to the nearest, which may "
         "cut a part off."),
        (lambda b, s: right(b, s, np.floor, np.ceil, extra=0),
         "it takes every cell that the RoI touches. RoIPool goes to the nearest, which may cut a part off."),
        (lambda b, s: right(b, s, back=False), "it is in cells. Pixels are wanted: times stride."),
        (lambda b, s: right(b, s, lambda x: x, lambda x: x, extra=0),
         "nothing is rounded: that is what RoIAlign looks at."),
        (lambda b, s: np.concatenate([right(b, s)[:, :2], right(b, s)[:, 2:] - s + 1], axis=1),
         "1 is added in pixels. The last whole cell belongs to the RoI: 1 cell, stride pixels."),
        (lambda b, s: right(b, s) - [0, 0, 1, 1],
         "x2 - 1 is the last pixel. A box ends where that pixel ends: at (k + 1) stride for the last cell k."),
    ]
    rng = np.random.default_rng(31)
    corner, side = rng.uniform(0, 300, (8, 2)), rng.uniform(5, 200, (8, 2))
    some = np.concatenate([corner, corner + side], axis=1)
    cases = [("8 boxes, stride 16", (some, 16)), ("8 boxes, stride 4", (some, 4)),
             ("edges halfway between cells", (np.array([[8.0, 24, 40, 72], [20, 4, 28, 60]]), 16)),
             ("a box inside one cell", (np.array([[33.0, 34, 36, 38]]), 16))]
    return compare("looked_at", yours, right, cases, ("boxes",), mistakes)


def check_point_backward(yours):
    """point_backward(dy (P,), (F (H, W), ys, xs)) -> dys, dxs of bilinear reading."""
    def right(dy, cache, other=True, scale=True, exchange=False):
        F, ys, xs = cache
        y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
        v, u = ys - y0, xs - x0
        a, b, c, d = F[y0, x0], F[y0, x0 + 1], F[y0 + 1, x0], F[y0 + 1, x0 + 1]
        along_y = (1 - u) * (c - a) + u * (d - b) if other else c - a
        along_x = (1 - v) * (b - a) + v * (d - c) if other else b - a
        if exchange:
            along_y, along_x = (1 - v) * (c - a) + v * (d - b), (1 - u) * (b - a) + u * (d - c)
        return (dy * along_y, dy * along_x) if scale else (along_y, along_x)

    mistakes = [
        (lambda dy, c: right(dy, c)[::-1], "the two are exchanged: dys belongs to the rows."),
        (lambda dy, c: right(dy, c, exchange=True),
         "the slope along y is a mean over the two columns, with the weights 1 - u and u. Yours has those of the "
         "other axis."),
        (lambda dy, c: right(dy, c, other=False),
         "the slope is taken along one line of cells only. The place lies between two: their slopes are averaged, "
         "by the fraction."),
        (lambda dy, c: right(dy, c, scale=False), "dy is missing: what follows may scale each output."),
        (lambda dy, c: right(-dy, c), "the sign: along y the lower row counts with plus, the upper one with minus."),
    ]
    rng = np.random.default_rng(32)
    cases = []
    for name, height, width, count in (("5 places in a map of 4 x 6", 4, 6, 5),
                                       ("one place in a map of 2 x 2", 2, 2, 1)):
        ys, xs = (rng.uniform(0.05, size - 1.05, count) for size in (height, width))
        cases.append((name, (rng.standard_normal(count), (rng.standard_normal((height, width)), ys, xs))))
    return compare("point_backward", yours, right, cases, ("dys", "dxs"), mistakes)


def check_sample_backward(yours):
    """sample_backward(dy (C, P, Q), (shape, ys, xs)) -> dF (C, H, W) of the grid of points in notebook 08."""
    def right(dy, cache, exchange=False, add=True, nearest=False, equal=False):
        shape, ys, xs = cache
        dF = np.zeros(shape)
        for i, y in enumerate(ys):
            for j, x in enumerate(xs):
                y0, x0 = int(y), int(x)
                v, u = (y - y0, x - x0) if not nearest else (0.0, 0.0)
                if equal:
                    v = u = 0.5
                if exchange:
                    v, u = u, v
                for row, weight_y in ((y0, 1 - v), (min(y0 + 1, shape[1] - 1), v)):
                    for column, weight_x in ((x0, 1 - u), (min(x0 + 1, shape[2] - 1), u)):
                        value = weight_y * weight_x * dy[:, i, j]
                        dF[:, row, column] = dF[:, row, column] + value if add else value
        return dF

    mistakes = [
        (lambda dy, c: right(dy, c, exchange=True),
         "the bug is still there: two of the four weights sit at the wrong cells. v belongs to the rows: row y1 "
         "has the factor v."),
        (lambda dy, c: right(dy, c, add=False),
         "gradients overwrite one another: a cell is read by several points, so they add up (gather -> "
         "scatter-add)."),
        (lambda dy, c: right(dy, c, nearest=True),
         "all of the gradient goes to the cell (y0, x0). Each of the four gets its share."),
        (lambda dy, c: right(dy, c, equal=True),
         "the four cells get a quarter each. The weights are those with which they were read."),
    ]
    rng = np.random.default_rng(33)
    cases = [(name, (rng.standard_normal((c, len(ys), len(xs))), ((c, h, w), np.array(ys), np.array(xs))))
             for name, c, h, w, ys, xs in (
                 ("one point", 1, 2, 2, [0.3], [0.9]),
                 ("3 x 4 points, some in one cell", 2, 5, 6, [0.3, 1.9, 2.4], [0.25, 2.5, 4.8, 4.9]),
                 ("points on the last row and column", 1, 3, 4, [1.2, 2.0], [0.5, 3.0]))]
    return compare("sample_backward", yours, right, cases, ("dF",), mistakes)
