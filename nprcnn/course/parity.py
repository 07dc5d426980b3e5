"""Exercises of notebook 18: the same numbers."""

import numpy as np

from .checks import compare


def check_stage_errors(yours):
    """stage_errors(a, b) -> (len(b),): max|a - b| / max|b| of each pair of arrays in two lists; where b is all 0, max|a|."""
    def right(a, b, difference=lambda x, y: np.abs(x - y), scale=lambda x, y: np.abs(y).max(), dtype=np.float64, combine=np.max):
        errors = []
        for x, y in zip(a, b):
            x, y = (np.asarray(v).astype(dtype or v.dtype) for v in (x, y))
            largest = scale(x, y)
            errors.append(combine(difference(x, y)) / (1.0 if np.all(largest == 0) else largest))
        return np.array(errors, np.float64)

    def each_alone(a, b):
        return np.array([np.max(np.abs(x.astype(float) - y) / np.abs(y.astype(float))) for x, y in zip(a, b)])

    def means(a, b):
        return np.array([np.abs(x.astype(float) - y).mean() / (np.abs(y.astype(float)).mean() or 1.0) for x, y in zip(a, b)])

    mistakes = [
        (means, "it divides one mean by another. One wrong number among a million hides in a mean: take the maximum, above and below."),
        (lambda a, b: right(a, b, difference=lambda x, y: x - y),
         "the sign of the difference: without np.abs a value that is too small counts as a negative error, and is never the largest."),
        (lambda a, b: right(a, b, scale=lambda x, y: y.max()),
         "the sign of b: its largest number can be small while its smallest is -100. Take the largest of np.abs(b)."),
        (lambda a, b: right(a, b, difference=lambda x, y: x - y, scale=lambda x, y: y.max()),
         "both signs: np.abs is missing in the difference and in the scale."),
        (lambda a, b: right(a, b, scale=lambda x, y: np.abs(x).max()),
         "it divides by the largest number of a. b is the reference: a may be the wrong one."),
        (lambda a, b: right(a, b, combine=np.mean),
         "it takes the mean. One wrong number among a million hides in a mean: the maximum is wanted."),
        (each_alone,
         "it divides each difference by its own number. A number near 0 then makes a huge error of harmless rounding: divide "
         "by the largest number of the array."),
        (lambda a, b: right(a, b, dtype=None), "unsigned integers: in uint8, 2 - 3 is 255. Convert to float64 first."),
        (lambda a, b: right(a, b, scale=lambda x, y: 1.0),
         "it is not divided by max|b|: an error of 1 is much in a score and little in a coordinate of 1000."),
    ]
    rng = np.random.default_rng(18)
    b = [rng.standard_normal(shape) for shape in ((3, 4), (2, 3, 5), (40,))]
    noisy = [x + 1e-3 * rng.standard_normal(x.shape) for x in b]
    low = [np.array([[1.0, -100.0], [2.0, 0.5]]), np.array([-3.0, 1e-9])]
    cases = [("three stages with a little noise", (noisy, b)),
             ("large negative numbers, and one near 0", ([x - 0.25 for x in low], low)),
             ("a stage that is all 0", ([np.array([0.0, -0.5]), np.array([1.0])], [np.zeros(2), np.array([1.0])])),
             ("masks of type uint8", ([np.array([[2, 7]], np.uint8)], [np.array([[3, 5]], np.uint8)])),
             ("float32 against float64", ([x.astype(np.float32) for x in b], b))]
    return compare("stage_errors", yours, right, cases, ("errors",), mistakes)


def check_pair_boxes(yours):
    """pair_boxes(a (n, 4), b (m, 4), distance) -> (n,): the row of b that is the same box as each of a, or -1; each at most once."""
    def right(a, b, distance, once=True, gap=lambda d: d.max(axis=1), limit=True, nearest=True):
        free, pairs = np.ones(len(b), bool), np.full(len(a), -1)
        for i, box in enumerate(a):
            apart = gap(np.abs(b - box)) if len(b) else np.zeros(0)
            near = np.flatnonzero(free & ((apart <= distance) | (not limit)))
            if len(near):
                pairs[i] = near[apart[near].argmin()] if nearest else near[0]
                free[pairs[i]] = not once
        return pairs

    def in_place(a, b, distance):
        same = np.abs(a[:len(b)] - b[:len(a)]).max(axis=1) <= distance
        return np.where(np.append(same, np.zeros(len(a) - len(same), bool)), np.arange(len(a)), -1)

    mistakes = [
        (lambda a, b, d: right(a, b, d, once=False),
         "a box of b is taken twice. Two equal boxes of a need two partners: remember which are taken."),
        (lambda a, b, d: right(a, b, d, limit=False),
         "the nearest box is taken however far away it is. Beyond `distance` there is no partner: -1."),
        (lambda a, b, d: right(a, b, d, nearest=False), "the first box within the distance is taken, not the nearest of them."),
        (lambda a, b, d: right(a, b, d) if d else np.full(len(a), -1),
         "a difference of exactly `distance` is allowed: <=, not <."),
        (in_place, "it compares row by row. The same boxes may come in another order."),
        (lambda a, b, d: right(a, b, d, gap=lambda v: v.sum(axis=1)),
         "the four differences are added. The largest of them must not exceed the distance."),
        (lambda a, b, d: right(a, b, d, gap=lambda v: v.min(axis=1)),
         "one coordinate that fits is not enough: all four must. Take the largest of the differences."),
        (lambda a, b, d: right(a, b, d, gap=lambda v: v[:, :2].max(axis=1)), "only the upper left corner is looked at."),
    ]
    rng = np.random.default_rng(19)
    corner = rng.uniform(0, 90, (12, 2))
    b = np.concatenate([corner, corner + rng.uniform(5, 40, (12, 2))], axis=1)
    order = rng.permutation(12)
    twice = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 30, 30]])
    steps = np.array([[0.0, 0, 10, 10], [0.06, 0, 10, 10], [0.12, 0, 10, 10]])
    cases = [("another order", (b[order] + 0.02 * rng.uniform(-1, 1, (12, 4)), b, 0.05)),
             ("two boxes only in a, one only in b", (np.concatenate([b[3:], b[:2] + 7.0]), b[1:], 0.05)),
             ("two equal boxes", (twice[[2, 1, 0]], twice, 0.05)),
             ("the same upper left corner", (np.array([[0.0, 0, 10, 20]]), np.array([[0.0, 0, 30, 40], [0, 0, 10, 20.0]]), 0.05)),
             ("three boxes close together", (steps[[1, 0]] + 0.001, steps, 0.1)),
             ("a distance of 0", (b[order], b, 0.0)),
             ("nothing in b", (b[:2], b[:0], 0.05))]
    return compare("pair_boxes", yours, right, cases, ("pairs",), mistakes)


def check_background_first(yours):
    """background_first(cls_score (K + 1, C), bbox_pred (4 K, C)) -> (K + 1, C), (4 K + 4, C): Detectron2's predictors in our order."""
    def right(scores, boxes, step=1, rows=4, front=True):
        zeros = np.zeros((rows, boxes.shape[1]))
        return np.roll(scores, step, axis=0), np.concatenate([zeros, boxes] if front else [boxes, zeros])

    def interleaved(scores, boxes):
        with_background = np.concatenate([np.zeros((4, 1, boxes.shape[1])), boxes.reshape(4, -1, boxes.shape[1])], axis=1)
        return None, with_background.reshape(-1, boxes.shape[1])

    mistakes = [
        (lambda s, b: (right(s, b, step=-1)[0], None), "cls_score goes the wrong way: the last row, the background's, becomes the first."),
        (lambda s, b: (s, None), "cls_score is unchanged: its background is still the last row."),
        (lambda s, b: (s[::-1], None), "cls_score is turned round: only the background moves, the classes keep their order."),
        (lambda s, b: (np.concatenate([s[-1:], s[1:]]), None), "the background replaces class 0 in cls_score; class 0 is lost."),
        (lambda s, b: (None, right(s, b, front=False)[1]),
         "the zeros stand behind the boxes. The background is class 0 here, so they come first."),
        (lambda s, b: (None, right(s, b, rows=1)[1]), "one row of zeros is too few: a class has four deltas, dx, dy, dw and dh."),
        (lambda s, b: (None, np.roll(b, 4, axis=0)),
         "bbox_pred is rolled, as if its last four rows were the background's. It has none: put zeros there."),
        (lambda s, b: (None, b), "bbox_pred is unchanged: here the background has four rows, too, though nobody looks at them."),
        (interleaved, "bbox_pred is ordered by class, then by coordinate: all four rows of a class stand together."),
    ]
    rng = np.random.default_rng(20)
    cases = [(f"{k} classes", (rng.standard_normal((k + 1, 5)), rng.standard_normal((4 * k, 5)))) for k in (3, 80, 1)]
    return compare("background_first", yours, right, cases, ("cls_score", "bbox_pred"), mistakes)
