import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nprcnn.data.shapes import COSINE, DIFFICULTIES, HELD_OUT_SEED, MIN_VISIBLE, Shapes, mask_boxes
from nprcnn.errors import ConfigError

REFERENCE = Path(__file__).parent / "reference"

# Changing one of these changes the targets of every stated result: say so, and make the contact sheets anew.
HASHES = {
    "easy": "a2a71d730f1050d9cf680fafa6ededa172866d6b10e34abd09917f98c51046fc",
    "full": "0aa02a899c9711b4ab46653cf12e4a1d1964e1fcba8fa225345b578fccfcd0dd",
}


def digest(source):
    h = hashlib.sha256()
    for image, target in (source[i] for i in range(len(source))):
        for array, dtype in ((image, "|u1"), (target["masks"], "|u1"), (target["labels"], "<i8"), (target["boxes"], "<f4")):
            h.update(np.ascontiguousarray(array.astype(dtype)).tobytes())
    return h.hexdigest()


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_first_scenes_are_the_same_on_every_machine(difficulty):
    assert digest(Shapes(20, seed=0, difficulty=difficulty)) == HASHES[difficulty]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_contact_sheet_is_unchanged(difficulty):
    spec = importlib.util.spec_from_file_location("make_shapes_contact", REFERENCE / "make_shapes_contact.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    with Image.open(REFERENCE / f"shapes_contact_{difficulty}.png") as stored:
        np.testing.assert_array_equal(maker.contact_sheet(difficulty), np.asarray(stored))


def test_no_cosine_lies_near_a_rounding_tie():
    # libraries differ by about 1e-16 relative; 1e-3 of a unit in the table is far more
    exact = np.cos(np.deg2rad(np.arange(360))) * 4096
    assert np.abs(exact - COSINE).max() < 0.5 - 1e-3


def test_a_scene_depends_on_nothing_but_seed_difficulty_and_index():
    source = Shapes(50, seed=3)
    forward = [source[i] for i in (0, 7, 31)]
    np.random.seed(1)  # the global state plays no part
    again = Shapes(1000, seed=3)
    for i, (image, target) in zip((31, 7, 0), reversed(forward)):
        other_image, other = again[np.int64(i)]
        np.testing.assert_array_equal(image, other_image)
        for key in ("boxes", "labels", "masks"):
            np.testing.assert_array_equal(target[key], other[key])
        assert target["image_id"] == other["image_id"] == i
    state = np.random.get_state()[1].copy()
    source[0]
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_seeds_difficulties_and_held_out_scenes_are_all_different():
    def scenes(source):
        return {source[i][0].tobytes() for i in range(len(source))}

    kinds = [scenes(Shapes(15, seed)) for seed in (0, 1, HELD_OUT_SEED - 1)] + [scenes(Shapes.held_out(15))]
    assert len(set.union(*kinds)) == 60
    easy = Shapes(1, 0, "easy", size=128)[0][0]
    assert not np.array_equal(easy, Shapes(1, 0, "full")[0][0])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_targets_fit_the_contract(difficulty):
    source = Shapes.held_out(150, difficulty)
    recipe = DIFFICULTIES[difficulty]
    counts, labels = [], []
    for i in range(len(source)):
        image, target = source[i]
        boxes, masks = target["boxes"], target["masks"]
        height, width = source.size
        assert image.shape == (height, width, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        assert boxes.dtype == np.float32 and boxes.shape == (len(masks), 4)
        assert masks.dtype == np.uint8 and masks.shape[1:] == (height, width) and masks.max() == 1
        assert target["labels"].dtype == np.int64 and target["labels"].shape == (len(masks),)
        assert masks.sum(axis=0).max() == 1, "masks hold visible pixels only, so no two overlap"
        assert masks.sum(axis=(1, 2)).min() >= MIN_VISIBLE
        for box, mask in zip(boxes, masks):
            rows, columns = np.nonzero(mask)
            assert tuple(box) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        counts.append(len(masks))
        labels.extend(target["labels"])
    low, high = recipe["objects"]
    assert set(counts) == set(range(low, high + 1))
    share = np.bincount(labels, minlength=7) / len(labels)
    assert share[list(recipe["classes"])].min() > 0.6 / len(recipe["classes"]), "no class is rare"
    assert share.sum() == pytest.approx(share[list(recipe["classes"])].sum()), "no class that does not belong"


def test_easy_objects_do_not_touch_and_full_ones_cover_each_other():
    def grown(mask):
        padded = np.pad(mask, 1)
        return sum(padded[dy:dy + mask.shape[0], dx:dx + mask.shape[1]] for dy in range(3) for dx in range(3)) > 0

    def touching(source):
        masks = [source[i][1]["masks"] for i in range(len(source))]
        return sum(bool((grown(m[0]) & (m[1:].sum(axis=0) > 0)).any()) for m in masks if len(m) > 1)

    assert touching(Shapes(60, 0, "easy")) == 0
    assert touching(Shapes(60, 0, "full")) > 10


def test_objects_differ_from_the_ground_in_colour():
    # the mean colours inside and in the ring around the mask; noise averages out
    source = Shapes(40, 5, "easy")
    for i in range(len(source)):
        image, target = source[i]
        ground = image[target["masks"].sum(axis=0) == 0].astype(float).mean(axis=0)
        for mask in target["masks"]:
            assert np.abs(image[mask == 1].astype(float).mean(axis=0) - ground).max() > 20


@pytest.mark.parametrize("size", [64, (97, 130), (32, 200), 256])
def test_other_sizes(size):
    source = Shapes(12, 0, "full", size)
    for i in range(12):
        image, target = source[i]
        assert image.shape[:2] == tuple(np.broadcast_to(size, 2)) == target["masks"].shape[1:]
        assert len(target["boxes"]) >= 1


def test_mask_boxes_by_hand():
    masks = np.zeros((2, 5, 7), np.uint8)
    masks[0, 1, 2] = 1
    masks[1, 0:5, 3:7] = 1
    np.testing.assert_array_equal(mask_boxes(masks), [[2, 1, 3, 2], [3, 0, 7, 5]])


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match="hard.*easy, full"):
        Shapes(1, 0, "hard")
    with pytest.raises(ConfigError, match="held_out"):
        Shapes(1, HELD_OUT_SEED)
    with pytest.raises(ConfigError, match="seed -1"):
        Shapes(1, -1)
    with pytest.raises(ConfigError, match="-3"):
        Shapes(-3, 0)
    with pytest.raises(ConfigError, match="size 16"):
        Shapes(1, 0, size=16)
    with pytest.raises(IndexError, match="scene 5 of 5"):
        Shapes(5, 0)[5]
    assert len(list(Shapes(3, 0))) == 3, "iteration ends"
