"""The exercises of notebook 19: your own data."""
import matplotlib
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import own_data

NUMBER = "19"


def flip(image, boxes, masks, edge=0, swap=True, image_axis=1, mask_axis=2, wide=1):
    """One number at a time, unlike the solution."""
    width = image.shape[wide] - edge
    out = [[width - (b[2] if swap else b[0]), b[1], width - (b[0] if swap else b[2]), b[3]] for b in boxes.tolist()]
    return np.flip(image, image_axis), np.array(out).reshape(-1, 4), np.flip(masks, mask_axis)


def labels(ids, categories, first=1, key=sorted):
    order = list(key(categories.tolist()))
    return np.array([order.index(i) + first for i in ids.tolist()], int)


def crop(boxes, masks, window, cut="tight", shift=True, empty=False, end=1):
    """An object at a time."""
    left, top, right, bottom = window
    kept = []
    for box, mask in zip(boxes.tolist(), masks):
        part = mask[top:bottom, left:right]
        if not part.sum() and not empty:
            continue
        x1, y1, x2, y2 = (v - o for v, o in zip(box, (left, top, left, top) if shift else (0, 0, 0, 0)))
        inside = x1 >= 0 and y1 >= 0 and x2 <= right - left and y2 <= bottom - top
        if cut == "edge" or cut == "tight" and not inside and not part.sum():
            x1, x2 = (min(max(x, 0), right - left) for x in (x1, x2))
            y1, y2 = (min(max(y, 0), bottom - top) for y in (y1, y2))
        elif cut == "all" or cut == "tight" and not inside:
            y, x = part.nonzero()
            x1, y1, x2, y2 = x.min(), y.min(), x.max() + end, y.max() + end
        kept.append(([x1, y1, x2, y2], part))
    return (np.array([b for b, _ in kept], float).reshape(-1, 4),
            np.array([m for _, m in kept], np.uint8).reshape(-1, bottom - top, right - left))


WRONG = [
    ("flip_target", lambda i, b, m: (i[:, ::-1], b, m[:, :, ::-1]), "as it was"),
    ("flip_target", lambda i, b, m: flip(i, b, m, edge=1), "not at W - 1"),
    ("flip_target", lambda i, b, m: flip(i, b, m, swap=False), "so that x1 < x2 stays"),
    ("flip_target", lambda i, b, m: flip(i, b, m, mask_axis=0), "whose order stays"),
    ("flip_target", lambda i, b, m: flip(i, b, m, image_axis=0, mask_axis=1), "top and bottom are exchanged"),
    ("flip_target", lambda i, b, m: flip(i, b, m, wide=0), "the height stands where the width"),
    ("labels_of_ids", lambda ids, c: labels(ids, c, first=0), "The first class is 1"),
    ("labels_of_ids", lambda ids, c: ids, "the ids themselves"),
    ("labels_of_ids", lambda ids, c: labels(ids, c, key=list), "the order in the file"),
    ("labels_of_ids", lambda ids, c: labels(ids, np.array(sorted(set(ids.tolist())), int)), "occur among the objects"),
    ("labels_of_ids", lambda ids, c: ids - min(c.tolist()) + 1, "gaps are still there"),
    ("crop_target", lambda *a: crop(*a, cut="no"), "are not cut"),
    ("crop_target", lambda *a: crop(*a, cut="edge"), "as if every object filled its box"),
    ("crop_target", lambda *a: crop(*a, cut="edge", shift=False), "stay where they were"),
    ("crop_target", lambda *a: crop(*a, cut="all"), "wholly inside got a new box"),
    ("crop_target", lambda *a: crop(*a, end=0), "one too small"),
    ("crop_target", lambda *a: crop(*a, empty=True), "still there"),
    ("crop_target", lambda b, m, w: (crop(b, m, w)[0], m), "the masks are not cut"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(own_data)


def test_solutions_pass():
    assert_solutions_pass(own_data, NUMBER)


@pytest.mark.parametrize("exercise, right", [("flip_target", flip), ("labels_of_ids", labels), ("crop_target", crop)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    result = getattr(own_data, f"check_{exercise}")(right)
    assert result.passed, result.text


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(own_data, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(own_data, WRONG)


def test_references_are_the_library():
    """What passes the checks agrees with nprcnn.data.transforms."""
    from exercises import solutions_of

    from nprcnn.data import Shapes
    from nprcnn.data.transforms import crop as library_crop
    from nprcnn.data.transforms import flip_horizontal
    solved = solutions_of(NUMBER)
    for image, target in Shapes(4, 3):
        flipped, moved = flip_horizontal(image, target)
        for a, b in zip(solved["flip_target"](image, target["boxes"], target["masks"]), (flipped, moved["boxes"], moved["masks"])):
            assert np.array_equal(a, b)
        window = 20, 10, 100, 70
        _, cut = library_crop(image, target, window)
        for a, b in zip(solved["crop_target"](target["boxes"], target["masks"], window), (cut["boxes"], cut["masks"])):
            assert np.array_equal(a, b)


def test_the_way_is_drawn_with_every_part():
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    own_data.draw_way()
    figure = plt.gcf()
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {text for _, _, text in own_data.WAY.values()} <= texts
    plt.close(figure)
