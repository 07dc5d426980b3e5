"""Broken files of any kind are faults, never a crash, and what is read without a fault is fit for training."""

import copy
import json
import random

import numpy as np
import pytest
import tiny_sets
from pycocotools import mask as rle
from tiny_sets import MAKE

from nprcnn.data import check_target, drop_crowds, open_source
from nprcnn.data.check import check_set
from nprcnn.data.outlines import rle_mask
from nprcnn.errors import ConfigError, DataError, NprcnnError

JUNK = (None, True, 0, -1, 3, 1e30, -0.5, float("nan"), float("inf"), 10 ** 400, 2 ** 31 - 1, "", "x", "a.png", "\0", "../x",
        [], [[]], [1, 2], {}, {"a": 1},
        [[1, 2], [3, 4]], [[0.5, 1, 9, 2, 4, 7]], "polygon", "mask", "\ud800")


def places(value, path=()):
    """The path of everything inside a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield (*path, key)
        yield from places(inner, (*path, key))


def damaged(data, rng):
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(places(data)) or [()])
        if not path:
            break
        place = data
        for key in path[:-1]:
            place = place[key]
        if rng.random() < 0.2:
            del place[path[-1]]
        else:
            place[path[-1]] = rng.choice(JUNK)
    return data


def examine(spec):
    """Training and check agree: one stops if the other has found what stops, and what comes through can be trained on."""
    stopped = False
    try:
        source = open_source(spec)
        for i in range(len(source)):
            image, target = source[i]
            check_target(image.shape[:2], drop_crowds(target), len(source.class_names), i, needs_masks="masks" in target)
    except DataError:
        stopped = True
    except ConfigError:
        with pytest.raises(ConfigError):
            check_set(spec, progress=False)
        return None
    faults = check_set(spec, progress=False).faults
    assert stopped == any(fault.stops for fault in faults), faults
    return stopped


@pytest.mark.parametrize("kind, file", [("coco", "set.json"), ("labelme", "a.json"), ("via", "via.json")])
def test_damaged_json(kind, file, tmp_path):
    spec = MAKE[kind](tmp_path)
    sound = json.loads((tmp_path / file).read_text())
    rng, stopped = random.Random(0), 0
    for _ in range(90):
        (tmp_path / file).write_text(json.dumps(damaged(sound, rng)))
        stopped += bool(examine(spec))
    assert 30 < stopped < 90  # the damage is neither always nor never noticed: some of it lands where nothing is read


def test_damaged_xml(tmp_path):
    spec, rng = MAKE["voc"](tmp_path), random.Random(1)
    file = tmp_path / "Annotations" / "a.xml"
    sound, stopped = file.read_text(), 0
    for _ in range(100):
        k = rng.randrange(len(sound))
        file.write_text(sound[:k] + rng.choice(["", "<", ">", "9", "x", "</object>", "<object/>", "&lt;", "-", "nan", "1e400", "é"])
                        + sound[k + rng.randint(0, 6):])
        stopped += bool(examine(spec))
    assert 30 < stopped < 100


@pytest.mark.parametrize("kind, file", [("labels", "labels/a.png"), ("labels", "images/a.png"), ("masks", "a/masks/1.png"),
                                        ("voc", "SegmentationObject/a.png")])
def test_damaged_images(kind, file, tmp_path):
    spec, rng = MAKE[kind](tmp_path), random.Random(2)
    sound, stopped = (tmp_path / file).read_bytes(), 0
    for _ in range(30):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / file).write_bytes(data[:rng.choice([len(data), rng.randrange(len(data))])])
        stopped += bool(examine(spec))
    assert stopped > 10


def test_compressed_run_lengths_are_read_and_damaged_ones_do_no_harm():
    rng = random.Random(3)
    for k in range(300):
        mask = np.random.RandomState(k).rand(29, 400) < rng.choice([0, 0.001, 0.1, 0.5, 1])  # runs of one to three characters
        text = rle.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        np.testing.assert_array_equal(rle_mask({"size": [29, 400], "counts": text}, mask.shape, pytest.fail), mask)
        at, complaints = rng.randrange(len(text)), []
        text = text[:at] + chr(rng.randrange(40, 120)) + text[at + rng.randint(0, 1):]
        damaged = rle_mask({"size": [29, 400], "counts": text}, mask.shape, complaints.append)
        assert (damaged is None) == bool(complaints)


@pytest.mark.parametrize("text", ["", "coco", "coco:", "cocoa:x", "coco:x,split=a", "shapes:many", "shapes:5,seed=x", "shapes:5,held_out=2",
                                  "shapes:5,held_out=9,part=train", "shapes:5,held_out=2,part=both", "voc:x,split=", "labels:/nowhere",
                                  "masks:/nowhere", "coco:/nowhere.json", "via:/nowhere", "labelme:/nowhere", "folder:/nowhere",
                                  "python:/nowhere.py"])
def test_bad_specs_are_one_sentence(text):
    with pytest.raises(NprcnnError) as caught:
        open_source(text)
    assert "\n" not in str(caught.value)


def test_the_tiny_sets_are_what_is_damaged():
    assert set(MAKE) == {"coco", "labels", "masks", "voc", "labelme", "via", "folder"} and tiny_sets.W != tiny_sets.H
