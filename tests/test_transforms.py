import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nprcnn.data import Shapes, check_target, drop_crowds
from nprcnn.data import transforms as T
from nprcnn.errors import ConfigError

FEW = settings(max_examples=40, deadline=None)


@st.composite
def examples(draw, holes=True):
    """An image of random pixels and up to four objects: rectangles, some with a hole, and boxes tight around them."""
    height, width = draw(st.integers(4, 40)), draw(st.integers(4, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 20)))
    n = draw(st.integers(0, 4))
    masks = np.zeros((n, height, width), np.uint8)
    for mask in masks:
        (y1, y2), (x1, x2) = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in (height, width))
        mask[y1:y2, x1:x2] = 1
        if holes and rng.random() < 0.5 and min(y2 - y1, x2 - x1) > 2:
            mask[y1 + 1:y2 - 1, x1 + 1:x2 - 1] = 0
    target = {"boxes": boxes_of(masks), "labels": rng.integers(1, 5, n), "masks": masks, "image_id": 7}
    if draw(st.booleans()):
        target["iscrowd"] = rng.integers(0, 2, n)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), target


def boxes_of(masks):
    return np.array([T.box_of_mask(mask) for mask in masks], np.float32).reshape(-1, 4)


def frozen(image, target):
    """The same, read-only: whoever writes to it gets an error."""
    image = image.copy()
    target = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in target.items()}
    for array in (image, *target.values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return image, target


def assert_same(a, b):
    assert a[0].dtype == b[0].dtype and np.array_equal(a[0], b[0])
    assert a[1].keys() == b[1].keys()
    for key in a[1]:
        assert np.array_equal(a[1][key], b[1][key]), key


def aligned(image, target):
    """Every array has a row an object, masks have the image's size, and the types are those of a source."""
    n = len(target["labels"])
    assert target["boxes"].shape == (n, 4) and target["boxes"].dtype == np.float32 and target["labels"].dtype == np.int64
    assert target["image_id"] == 7 and image.dtype == np.uint8 and image.ndim == 3
    assert len(target.get("iscrowd", target["labels"])) == n
    if "masks" in target:
        assert target["masks"].shape == (n, *image.shape[:2]) and target["masks"].dtype == np.uint8
        assert target["masks"].flags.c_contiguous
    check_target(image.shape[:2], drop_crowds(target), 5, 0, needs_masks=False)


EXACT = [T.flip_horizontal, T.flip_vertical, *(lambda i, t, k=k: T.quarter_turn(i, t, k) for k in (1, 2, 3, -1))]
INVERSE = [T.flip_horizontal, T.flip_vertical, *(lambda i, t, k=k: T.quarter_turn(i, t, -k) for k in (1, 2, 3, -1))]


@pytest.mark.parametrize("move, back", list(zip(EXACT, INVERSE)), ids=["flip", "flip_vertical", "turn", "turn 2", "turn 3", "turn -1"])
@FEW
@given(example=examples())
def test_flips_and_turns(move, back, example):
    """There and back is the identity, and the moved box is the box of the moved mask, exactly: the corners are whole numbers."""
    image, target = move(*frozen(*example))
    aligned(image, target)
    assert np.array_equal(target["boxes"], boxes_of(target["masks"]))
    assert np.array_equal(target["labels"], example[1]["labels"])
    assert not np.shares_memory(image, example[0])
    assert_same(back(image, target), example)
    without = {k: v for k, v in example[1].items() if k != "masks"}
    assert np.array_equal(move(example[0], without)[1]["boxes"], target["boxes"]) and "masks" not in move(example[0], without)[1]


@pytest.mark.parametrize("move, place", [
    (lambda i, t: T.flip_horizontal(i, t), (2, 6)), (lambda i, t: T.flip_vertical(i, t), (5, 3)),
    (lambda i, t: T.quarter_turn(i, t), (6, 2)),  # counter-clockwise: what was near the top, left of the middle, is low on the left
    (lambda i, t: T.quarter_turn(i, t, 2), (5, 6)), (lambda i, t: T.quarter_turn(i, t, 3), (3, 5)),
    (lambda i, t: T.crop(i, t, (2, 1, 7, 8)), (1, 1)), (lambda i, t: T.pad(i, t, (12, 12)), (2, 3)),
    (lambda i, t: T.crop_or_pad(i, t, (6, 14), (1.0, 0.5)), (0, 3))])
def test_a_marked_pixel_goes_where_it_should(move, place):
    image = np.zeros((8, 10, 3), np.uint8)
    image[2, 3] = 1, 2, 3
    mask = (image[None, :, :, 0] > 0).astype(np.uint8)
    image, target = move(*frozen(image, {"boxes": boxes_of(mask), "labels": np.array([1]), "masks": mask, "image_id": 7}))
    assert image[place].tolist() == [1, 2, 3]
    assert np.argwhere(target["masks"][0]).tolist() == [list(place)]
    y, x = place
    assert target["boxes"].tolist() == [[x, y, x + 1, y + 1]]


@FEW
@given(example=examples(), times=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_resize_by_whole_factors_is_exact(example, times):
    """Every pixel of a mask becomes a block, and a box goes with it; and back again to the same masks."""
    (image, target), (down, right) = example, times
    height, width = image.shape[:2]
    large, moved = T.resize(*frozen(image, target), (height * down, width * right))
    aligned(large, moved)
    assert np.array_equal(moved["masks"], target["masks"].repeat(down, axis=1).repeat(right, axis=2))
    assert np.array_equal(moved["boxes"], boxes_of(moved["masks"]))
    again = T.resize(large, moved, (height, width))[1]
    assert np.array_equal(again["masks"], target["masks"]) and np.allclose(again["boxes"], target["boxes"], rtol=1e-6)


@FEW
@given(example=examples(holes=False), size=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_resize_to_any_size(example, size):
    """The scaled box and the box of the scaled mask part by less than a pixel: the mask's edges are rounded to whole pixels, by at most
    half a pixel; float32 adds 1e-5."""
    image, target = T.resize(*frozen(*example), size)
    aligned(image, target)
    assert image.shape == (*size, 3) and target["masks"].any(axis=(1, 2)).all()
    assert np.abs(target["boxes"] - boxes_of(target["masks"])).max(initial=0) <= 0.5 + 1e-5


def test_resize_moves_the_picture_with_the_masks():
    """The centres of 30 discs, as pictures and as masks, are on average where the scaling puts them, to .08 of a pixel (measured: images
    .002, masks .04). A mask that took the source pixel under its corner would be off by .14 or more."""
    y, x = np.mgrid[:60, :80]
    rng = np.random.default_rng(0)
    errors = {}
    for row, column in rng.uniform(20, 40, (30, 2)):
        disc = ((y + 0.5 - row) ** 2 + (x + 0.5 - column) ** 2 < 144).astype(np.uint8)
        image = np.repeat(disc[:, :, None] * 200, 3, axis=2)
        target = {"boxes": boxes_of(disc[None]), "labels": np.array([1]), "masks": disc[None]}
        for size in ((43, 58), (31, 42), (77, 103)):
            small, moved = T.resize(*frozen(image, target), size)
            expected = centre(disc) * [size[0] / 60, size[1] / 80]
            for kind, got in (("image", small[:, :, 0]), ("mask", moved["masks"][0])):
                errors.setdefault((size, kind), []).append(centre(got) - expected)
    for case, values in errors.items():
        assert np.abs(np.mean(values, axis=0)).max() < 0.08, case


def centre(weight):
    weight = weight.astype(float)
    return np.array([(w * (np.arange(len(w)) + 0.5)).sum() / w.sum() for w in (weight.sum(axis=1), weight.sum(axis=0))])


def test_what_becomes_too_small_is_dropped():
    masks = np.zeros((2, 40, 40), np.uint8)
    masks[0, 4, 4] = masks[1, 10:30, 10:30] = 1
    target = {"boxes": boxes_of(masks), "labels": np.array([1, 2]), "masks": masks, "iscrowd": np.array([0, 1]), "image_id": 7}
    image, moved = T.resize(np.zeros((40, 40, 3), np.uint8), target, (10, 10))
    aligned(image, moved)
    assert moved["labels"].tolist() == [2] and moved["iscrowd"].tolist() == [1] and len(target["labels"]) == 2


@FEW
@given(example=examples(), data=st.data())
def test_crop(example, data):
    image, target = example
    (top, bottom), (left, right) = (sorted(data.draw(st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True)))
                                    for side in image.shape[:2])
    cut, moved = T.crop(*frozen(image, target), (left, top, right, bottom))
    aligned(cut, moved)
    assert np.array_equal(cut, image[top:bottom, left:right])
    seen = target["masks"][:, top:bottom, left:right]
    keep = seen.any(axis=(1, 2))
    assert np.array_equal(moved["masks"], seen[keep]) and np.array_equal(moved["labels"], target["labels"][keep])
    assert np.array_equal(moved["boxes"], boxes_of(moved["masks"]))  # they were tight before
    without = T.crop(image, {k: v for k, v in target.items() if k != "masks"}, (left, top, right, bottom))[1]
    whole = np.clip(target["boxes"] - [left, top] * 2, 0, [right - left, bottom - top] * 2)
    area = (whole[:, 2:] - whole[:, :2]).prod(axis=1) > 0
    assert np.array_equal(without["boxes"], whole[area]) and "masks" not in without


def test_a_box_that_is_not_cut_keeps_its_fractions():
    masks = np.zeros((2, 30, 30), np.uint8)
    masks[0, 10:20, 10:20] = masks[1, 0:30, 14:28] = 1
    boxes = np.array([[9.75, 9.5, 20.25, 20.5], [13.5, 0, 28.5, 30]], np.float32)
    target = {"boxes": boxes, "labels": np.array([1, 2]), "masks": masks}
    moved = T.crop(np.zeros((30, 30, 3), np.uint8), target, (5, 5, 25, 25))[1]
    assert moved["boxes"].tolist() == [[4.75, 4.5, 15.25, 15.5], [9, 0, 20, 20]]


@pytest.mark.parametrize("size", [(12, 20), (40, 20), (12, 50), (40, 50), (30, 30)])
def test_crop_or_pad_gives_the_size_and_reaches_both_ends(size):
    image = np.arange(30 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(30, 30, 3)
    target = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "masks": np.zeros((0, 30, 30), np.uint8),
              "image_id": 7}
    height, width = (min(30, side) for side in size)
    for at, part in (((0, 0), image[:height, :width]), ((1 - 1e-9, 1), image[30 - height:, 30 - width:])):
        moved, changed = T.crop_or_pad(*frozen(image, target), size, at)
        aligned(moved, changed)
        assert moved.shape == (*size, 3) and np.array_equal(moved[:height, :width], part)
        assert (moved[height:] == T.FILL).all() and (moved[:, width:] == T.FILL).all()
    tops = {int(T.crop_or_pad(image, target, (28, 30), (u, 0))[0][0, 0, 0]) for u in np.linspace(0, 1, 31)}
    assert len(tops) == 3  # rows 0, 1 and 2


def equal(ours, theirs):
    """Are two (image, target) the same to the bit, with the same types and keys?"""
    (image, target), (image_b, target_b) = ours, theirs
    np.testing.assert_array_equal(image, image_b)
    assert target.keys() == target_b.keys() and image.dtype == image_b.dtype
    for key, value in target.items():
        np.testing.assert_array_equal(value, target_b[key])
        assert getattr(value, "dtype", None) == getattr(target_b[key], "dtype", None), key
    return True


@FEW
@given(examples(), st.data())
def test_resize_and_crop_is_resize_and_then_crop(example, data):
    """To the bit: every pixel of the window takes the same source pixels with the same weights."""
    image, target = frozen(*example)
    size = tuple(data.draw(st.integers(1, 90)) for _ in range(2))
    top, left = (data.draw(st.integers(0, side - 1)) for side in size)
    bottom, right = data.draw(st.integers(top + 1, size[0])), data.draw(st.integers(left + 1, size[1]))
    if data.draw(st.booleans()):
        target.pop("masks")
    window = left, top, right, bottom
    assert equal(T.resize_and_crop(image, target, size, window), T.crop(*T.resize(image, target, size), window))
    crop_size, at = tuple(data.draw(st.integers(1, 60)) for _ in range(2)), (data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1)))
    assert equal(T.resize_and_fit(image, target, size, crop_size, at), T.crop_or_pad(*T.resize(image, target, size), crop_size, at))


@pytest.mark.parametrize("size", [(731, 977), (200, 311), (520, 696), (37, 1200)])
def test_resize_and_crop_of_a_large_image(size):
    """As above where a pixel's place has many digits: 520x696, up and down, windows of any place."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (520, 696, 3), dtype=np.uint8)
    masks = np.kron(rng.integers(0, 2, (2, 52, 87)), np.ones((1, 10, 8))).astype(np.uint8)
    target = {"boxes": boxes_of(masks), "labels": np.array([1, 2]), "masks": masks}
    whole = T.resize(image, target, size)
    for _ in range(12):
        (top, bottom), (left, right) = (np.sort(rng.choice(side + 1, 2, replace=False)).tolist() for side in size)
        window = left, top, right, bottom
        assert equal(T.resize_and_crop(image, target, size, window), T.crop(*whole, window))


def test_augment_resizes_the_crop_alone(monkeypatch):
    """What is cropped away costs nothing: no array of the size of the whole enlarged image is made."""
    import tracemalloc
    image = np.zeros((256, 256, 3), np.uint8)
    masks = np.zeros((40, 256, 256), np.uint8)
    masks[:, 100:160, 100:160] = 1
    target = {"boxes": boxes_of(masks), "labels": np.ones(40, int), "masks": masks}
    tracemalloc.start()
    T.augment(image, target, T.Augment(flip=0, scale=(4, 4), crop=(64, 64)), np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6  # measured 1.8e6; the masks of the enlarged image alone would be 40 x 1024 x 1024 = 4.2e7


def test_colours_by_hand():
    image = np.array([[[100, 150, 200], [0, 50, 255]]], np.uint8)
    target = {"boxes": np.zeros((0, 4), np.float32)}
    frozen_image = frozen(image, target)[0]
    assert T.brightness(frozen_image, target, 1.2)[0].tolist() == [[[120, 180, 240], [0, 60, 255]]]  # 306 is cut
    grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in image[0].tolist()]
    mean = sum(grey) / 2
    for change, factor, base in ((T.contrast, 0.5, [mean, mean]), (T.saturation, 0.5, grey), (T.saturation, 1.4, grey)):
        expected = np.clip([[b + factor * (v - b) for v in pixel] for pixel, b in zip(image[0].tolist(), base)], 0, 255)
        got, same = change(frozen_image, target, factor)
        assert got.dtype == np.uint8 and np.array_equal(got[0], np.rint(expected)) and same is target
    for change in (T.brightness, T.contrast, T.saturation):
        assert np.array_equal(change(frozen_image, target, 1)[0], image)
    assert len(np.unique(T.saturation(frozen_image, target, 0)[0][0, 0])) == 1
    assert len(np.unique(T.contrast(frozen_image, target, 0)[0])) == 1


ALL = T.Augment(flip=0.5, flip_vertical=0.5, quarter_turns=True, scale=(0.5, 2.0), crop=(90, 110), brightness=0.3, contrast=0.3,
                saturation=0.5)


def test_augment_is_a_function_of_the_generator_and_modifies_nothing():
    image, target = frozen(*Shapes(1, 5)[0])
    first = T.augment(image, target, ALL, np.random.default_rng(3))
    assert_same(first, T.augment(image, target, ALL, np.random.default_rng(3)))
    assert not np.array_equal(first[0], T.augment(image, target, ALL, np.random.default_rng(4))[0])


def test_augmented_targets_can_be_trained_on():
    source = Shapes(40, 2)
    lost = 0
    for i in range(40):
        image, target = T.augment(*source[i], ALL, np.random.default_rng(i))
        assert image.shape == (90, 110, 3)
        check_target(image.shape[:2], target, 7, 0)
        # half a pixel of rounding, and shrinking by up to 2 loses tips of stars less than a pixel wide: measured 1.94
        assert np.abs(target["boxes"] - boxes_of(target["masks"])).max(initial=0) <= 3
        lost += len(source[i][1]["labels"]) - len(target["labels"])
    assert 0 < lost < 80


def test_a_factor_without_a_crop_keeps_the_size():
    image, target = Shapes(1, 0, size=(64, 96))[0]
    for seed in range(6):
        out = T.augment(image, target, T.Augment(scale=(0.5, 2)), np.random.default_rng(seed))
        assert out[0].shape == image.shape
    shapes = {T.augment(image, target, T.Augment(quarter_turns=True, scale=(0.5, 2)), np.random.default_rng(seed))[0].shape
              for seed in range(12)}
    assert shapes == {(64, 96, 3), (96, 64, 3)}


def test_one_setting_leaves_the_others_draws_alone():
    image, target = Shapes(1, 0)[0]
    for seed in range(5):
        plain = T.augment(image, target, T.Augment(flip=0, crop=(64, 64)), np.random.default_rng(seed))
        flipped = T.augment(*T.flip_horizontal(image, target), T.Augment(flip=0, crop=(64, 64)), np.random.default_rng(seed))
        assert_same(T.augment(image, target, T.Augment(flip=1, crop=(64, 64)), np.random.default_rng(seed)), flipped)
        bright = T.augment(image, target, T.Augment(flip=0, crop=(64, 64), brightness=0.3), np.random.default_rng(seed))
        assert np.array_equal(bright[1]["boxes"], plain[1]["boxes"])


def test_draws_are_spread_as_the_settings_say():
    """400 draws: a share of .5 +- .125 is five standard deviations of the binomial, a quarter +- .11 too."""
    image = np.zeros((3, 5, 3), np.uint8)
    image[0, 0] = 255
    target = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    rng = np.random.default_rng(0)
    flips = [T.augment(image, target, T.Augment(), rng)[0][0, 0, 0] == 0 for _ in range(400)]
    assert abs(np.mean(flips) - 0.5) < 0.125
    turns = [T.augment(image, target, T.Augment(flip=0, quarter_turns=True), rng)[0] for _ in range(400)]
    places = [(turn.shape[0], tuple(np.argwhere(turn[:, :, 0])[0])) for turn in turns]
    assert {place: abs(places.count(place) / 400 - 0.25) < 0.11 for place in set(places)} == {
        place: True for place in ((3, (0, 0)), (5, (4, 0)), (3, (2, 4)), (5, (0, 2)))}


def test_factors_are_drawn_evenly_on_a_log_scale(monkeypatch):
    """Of 400 factors between 1/4 and 4 one half is below 1, +- .125: five standard deviations. And they reach both ends."""
    sizes = []
    monkeypatch.setattr(T, "resize_and_fit", lambda image, target, size, *rest: sizes.append(size) or (image, target))
    target = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    rng = np.random.default_rng(0)
    for _ in range(400):
        T.augment(np.zeros((1000, 500, 3), np.uint8), target, T.Augment(scale=(0.25, 4)), rng)
    factor = np.array(sizes) / [1000, 500]
    assert np.abs(factor[:, 0] - factor[:, 1]).max() <= 0.0015  # half a pixel each
    assert abs(np.mean(factor[:, 0] < 1) - 0.5) < 0.125 and 0.25 <= factor.min() < 0.27 and 3.8 < factor.max() <= 4


@pytest.mark.parametrize("wrong", [dict(flip=1.5), dict(brightness=-0.1), dict(scale=(2, 1)), dict(scale=(0, 1)), dict(scale=2),
                                   dict(scale=(1, float("nan"))), dict(crop=(0, 5)), dict(crop=(5,)), dict(crop=(5.5, 5)),
                                   dict(contrast=float("nan"))])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=f"augmentation: {next(iter(wrong))}="):
        T.Augment(**wrong).check()
    assert ALL.check() is ALL
