"""Exercises of notebook 00: the whole picture."""

import numpy as np

from .checks import compare


def check_roi_levels(yours):
    """roi_levels(boxes (R, 4), size) -> (R,): the pyramid level of each RoI, 2 to 5; side `size` belongs to level 4."""
    def right(boxes, size, side=np.sqrt, to_integer=np.floor, log=np.log2, low=2, high=5):
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return np.clip(to_integer(4 + log(side(area) / size)), low, high).astype(int)

    mistakes = [
        (lambda b, s: right(b, s, low=-np.inf, high=np.inf), "the RoI heads have P2 to P5 only: limit the level with np.clip."),
        (lambda b, s: right(b, s, low=-np.inf), "it can be smaller than 2: limit it on both sides."),
        (lambda b, s: right(b, s, high=np.inf), "it can be larger than 5: limit it on both sides."),
        (lambda b, s: right(b, s, high=6), "P6 is for the RPN alone: the largest level is 5."),
        (lambda b, s: right(b, s, to_integer=np.round), "it goes to the nearest level. The formula rounds down: np.floor."),
        (lambda b, s: right(b, s, to_integer=lambda k: k), "it is not rounded down to a whole level."),
        (lambda b, s: right(b, s, side=lambda area: area), "the square root is missing: sqrt(w h) is a length."),
        (lambda b, s: right(b, s, log=np.log), "np.log is the natural logarithm. Levels differ by a factor of 2: np.log2."),
        (lambda b, s: right(b, s) - 2, "it counts from 0. Here a level has its name: 2 for P2."),
        (lambda b, s: right(np.concatenate([0 * b[:, :2], b[:, 2:]], axis=1), s),
         "a box is (x1, y1, x2, y2): its width is x2 - x1, and not the third number."),
        (lambda b, s: right(b, 112), "size has no effect: it is the side that belongs to level 4, not always 112."),
    ]
    rng = np.random.default_rng(6)
    cases = []
    for name, size in (("the small model, 112", 112.0), ("the paper's model, 224", 224.0)):
        middle, half = rng.uniform(100, 300, (40, 2)), 4 * 2 ** rng.uniform(0, 9, (40, 2))
        cases.append((name, (np.concatenate([middle - half, middle + half], axis=1), size)))
    return compare("roi_levels", yours, right, cases, ("levels",), mistakes)


def check_deltas_to(yours):
    """deltas_to(boxes (n, 4), anchors (n, 4)) -> (n, 4): the deltas that move each anchor onto its box."""
    def parts(boxes, corner):
        sides = boxes[:, 2:] - boxes[:, :2]
        return boxes[:, :2] + (0 if corner else sides / 2), sides

    def right(boxes, anchors, corner=False, unit=lambda sides, anchor: anchor, log=np.log):
        place, sides = parts(boxes, corner)
        anchor_place, anchor_sides = parts(anchors, corner)
        return np.concatenate([(place - anchor_place) / unit(sides, anchor_sides), log(sides / anchor_sides)], axis=1)

    mistakes = [
        (lambda b, a: right(b, a, corner=True), "x and y are the centres of the boxes, not their corners x1 and y1."),
        (lambda b, a: right(b, a, unit=lambda sides, anchor: 1),
         "dx and dy are relative: divide by the width and height of the anchor."),
        (lambda b, a: right(b, a, unit=lambda sides, anchor: sides),
         "dx and dy are divided by the box's size. The anchor's is meant."),
        (lambda b, a: right(b, a, unit=lambda sides, anchor: anchor[:, ::-1]), "dx belongs to the width and dy to the height."),
        (lambda b, a: right(b, a, log=lambda ratio: ratio), "the logarithm is missing: w = w_a exp(dw)."),
        (lambda b, a: right(b, a, log=np.log2), "the inverse of exp is np.log, not np.log2."),
        (lambda b, a: right(b, a, log=lambda ratio: -np.log(ratio)),
         "dw and dh have the wrong sign: a larger box has positive ones."),
        (lambda b, a: right(a, b), "it is the other way round: the anchor is where the way begins."),
        (lambda b, a: right(b, a)[:, [0, 2, 1, 3]], "the order of the four is dx, dy, dw, dh."),
    ]
    rng = np.random.default_rng(7)
    cases = []
    for name, count in (("1 box", 1), ("5 boxes", 5)):
        boxes, anchors = (np.concatenate([p, p + rng.uniform(5, 60, (count, 2))], axis=1)
                          for p in rng.uniform(0, 60, (2, count, 2)))
        cases.append((name, (boxes, anchors)))
    return compare("deltas_to", yours, right, cases, ("deltas",), mistakes)


def check_best_class_map(yours):
    """best_class_map(labels (n,), scores (n,), masks (n, H, W) bool) -> (H, W): the best mask's label at each pixel."""
    def painted(labels, masks, order):
        classes = np.zeros(masks.shape[1:], int)
        for i in order:
            classes[masks[i]] = labels[i]
        return classes

    def right(labels, scores, masks):
        return painted(labels, masks, np.argsort(scores))

    mistakes = [
        (lambda l, s, m: (l[:, None, None] * m).max(axis=0, initial=0), "where masks overlap it takes the larger label."),
        (lambda l, s, m: (l[:, None, None] * m).sum(axis=0),
         "where masks overlap it adds the labels: two classes do not make a third."),
        (lambda l, s, m: painted(l, m, np.argsort(-s)), "the worst score wins: what is painted last covers the others."),
        (lambda l, s, m: painted(l, m, range(len(l))),
         "the last instance of the list wins. The list is in any order: sort by score."),
        (lambda l, s, m: painted(l, m, range(len(l))[::-1]),
         "the first instance of the list wins. The list is in any order: sort by score."),
        (lambda l, s, m: painted(np.arange(1, len(l) + 1), m, np.argsort(s)),
         "it holds numbers of instances. Classes are wanted: labels."),
        (lambda l, s, m: l[(s[:, None, None] * m).argmax(axis=0)] if len(l) else None,
         "pixels of no mask get the label of the first instance, since argmax of zeros is 0. They should be 0."),
    ]
    rng = np.random.default_rng(8)
    masks = np.zeros((4, 12, 15), bool)
    for mask, y, x in zip(masks, (0, 2, 4, 3), (1, 4, 2, 6)):
        mask[y:y + 7, x:x + 8] = True
    cases = [("4 instances that overlap", (np.array([3, 5, 1, 3]), np.array([0.6, 0.9, 0.95, 0.3]), masks)),
             ("10 random masks", (rng.integers(1, 7, 10), rng.permutation(10) / 10, rng.random((10, 8, 9)) < 0.3)),
             ("no instance", (np.zeros(0, int), np.zeros(0), np.zeros((0, 8, 9), bool)))]
    return compare("best_class_map", yours, right, cases, ("map",), mistakes)
