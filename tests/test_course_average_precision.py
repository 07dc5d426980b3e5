"""The exercises of notebook 13: detections and AP by hand."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import average_precision

NUMBER = "13"


def iou_of_sets(found, targets, crowd, below=lambda a, b, crowd: len(a) if crowd else len(a | b), inside=len):
    """Sets of pixels, one pair at a time, unlike the solution."""
    def pixels(mask):
        return set(np.flatnonzero(mask).tolist())

    out = np.zeros((len(found), len(targets)))
    for d, g in np.ndindex(out.shape):
        a, b = pixels(found[d]), pixels(targets[g])
        out[d, g] = inside(a & b) / below(a, b, crowd[g]) if a & b else 0
    return out


def voc(iou, difficult, threshold, free_only=False, again=0, hard=-1, more=False, first=False):
    answer, taken = [], []
    for row in iou.tolist():
        candidates = [(value, -g) for g, value in enumerate(row) if not (free_only and g in taken)]
        best, g = max(candidates, default=(-1, 0))
        if best < threshold or (more and best == threshold):
            answer.append(0)
        elif difficult[-g]:
            answer.append(0 if first and -g in taken else hard)
            taken.append(-g if first else 99)
        else:
            answer.append(again if -g in taken else 1)
            taken.append(-g)
    return np.array(answer)


def area(scores, correct, count, key=lambda pair: -pair[0], interpolate=True):
    ranked = sorted(zip(scores, correct), key=key)
    hits, curve = 0, []
    for rank, (_, hit) in enumerate(ranked, 1):
        hits += hit
        curve.append((hit, hits / rank))
    heights = [max(p for _, p in curve[k:]) if interpolate else curve[k][1] for k in range(len(curve)) if curve[k][0]]
    return sum(heights) / count


def eleven(scores, correct, count, points=11):
    ranked = [hit for _, hit in sorted(zip(scores, correct), key=lambda pair: -pair[0])]
    hits = np.cumsum(ranked)
    return np.mean([max([h / (k + 1) for k, h in enumerate(hits) if h / count >= r], default=0)
                    for r in np.linspace(0, 1, points)])


WRONG = [
    ("mask_iou", lambda f, t, c: iou_of_sets(f, t, c & False), "treated like single objects"),
    ("mask_iou", lambda f, t, c: iou_of_sets(f, t, c, lambda a, b, crowd: len(b) if crowd else len(a | b)),
     "the area of the crowd"),
    ("mask_iou", lambda f, t, c: iou_of_sets(f, t, c | True), "every target is treated as a crowd"),
    ("mask_iou", lambda f, t, c: iou_of_sets(
        f, t, c, lambda a, b, crowd: len(a) if crowd else len(a) + len(b) - len(a & b) % 256,
        lambda pixels: len(pixels) % 256), "modulo 256"),
    ("mask_iou", lambda f, t, c: iou_of_sets(f, t, c, lambda a, b, crowd: len(a) if crowd else len(a) + len(b)),
     "counts the common pixels twice"),
    ("match_voc", lambda *a: voc(*a, free_only=True), "COCO's rule"),
    ("match_voc", lambda *a: voc(*a, again=1), "more than once"),
    ("match_voc", lambda *a: voc(*a, again=-1), "is left out"),
    ("match_voc", lambda *a: voc(*a, hard=1), "counts as a hit"),
    ("match_voc", lambda *a: voc(*a, hard=0), "counts as wrong"),
    ("match_voc", lambda *a: voc(*a, more=True), "is enough"),
    ("match_voc", lambda *a: voc(*a, first=True), "first detection of a difficult"),
    ("area_ap", lambda *a: area(*a, interpolate=False), "not interpolated"),
    ("area_ap", lambda *a: area(*a, key=lambda pair: 0), "not sorted by score"),
    ("area_ap", lambda s, c, n: area(s, c, max(c.sum(), 1)), "missed ones included"),
    ("area_ap", lambda s, c, n: area(s, c, len(s)), "not by the number of detections"),
    ("area_ap", eleven, "11 points"),
    ("area_ap", lambda *a: eleven(*a, points=101), "101 points"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(average_precision)


def test_solutions_pass():
    assert_solutions_pass(average_precision, NUMBER)


@pytest.mark.parametrize("exercise, right", [("mask_iou", iou_of_sets), ("match_voc", voc), ("area_ap", area)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    result = getattr(average_precision, f"check_{exercise}")(right)
    assert result.passed, result.text


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(average_precision, exercise, wrong, expected)


def test_an_empty_mask_is_explained():
    def divides(found, targets, crowd):
        a, b = (masks.reshape(len(masks), -1).astype(float) for masks in (found, targets))
        return a @ b.T / np.where(crowd, a.sum(1)[:, None], a.sum(1)[:, None] + b.sum(1) - a @ b.T)
    text = average_precision.check_mask_iou(divides).text
    assert "case: an empty mask" in text and "a division by 0" in text


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(average_precision, WRONG)
