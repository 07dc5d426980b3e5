import copy

import numpy as np
import pytest

from nprcnn.data import Shapes
from nprcnn.data.targets import check_target
from nprcnn.errors import DataError

H, W, CLASSES = 20, 30, 4


def target():
    masks = np.zeros((2, H, W), np.uint8)
    masks[0, 2:10, 1:9] = 1
    masks[1, 5:20, 10:30] = 1
    return {"boxes": np.array([[1, 2, 9, 10], [10, 5, 30, 20]], np.float32), "labels": np.array([1, 3]), "masks": masks}


def changed(**entries):
    return {**target(), **entries}


def with_value(key, index, value, dtype=None):
    result = target()
    result[key] = result[key].astype(dtype or result[key].dtype)
    result[key][index] = value
    return result


def without(key):
    result = target()
    del result[key]
    return result


@pytest.mark.parametrize("good", [
    target(),
    changed(masks=target()["masks"].astype(bool)),
    changed(masks=target()["masks"].astype(np.float32)),
    changed(boxes=target()["boxes"].astype(np.float64), labels=np.array([1, 3], np.int32), image_id=7),
    {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "masks": np.zeros((0, H, W), np.uint8)},
])
def test_good_targets_pass(good):
    assert check_target((H, W), good, CLASSES, 0) is None


def test_masks_may_be_missing_where_none_are_needed():
    check_target((H, W), without("masks"), CLASSES, 0, needs_masks=False)
    with pytest.raises(DataError, match="masks have the shape"):  # but wrong ones are still wrong
        check_target((H, W), changed(masks=np.zeros((1, H, W), np.uint8)), CLASSES, 0, needs_masks=False)


def test_the_built_in_scenes_pass():
    source = Shapes(20, 0)
    for i in range(20):
        image, scene = source[i]
        check_target(image.shape[:2], scene, len(source.class_names), i)


@pytest.mark.parametrize("bad, message", [
    ([1, 2], "is a list"),
    (without("boxes"), "no 'boxes'.*'labels', 'masks'"),
    (without("labels"), "no 'labels'"),
    (without("masks"), "no 'masks'.*without a mask branch"),
    (changed(masks=None), "no 'masks'"),
    ({}, "no 'boxes'.*nothing"),
    (changed(boxes=[[1, 2, 9, 10]]), "boxes are a list"),
    (changed(boxes=np.zeros((2, 5), np.float32)), r"boxes have the shape \(2, 5\)"),
    (changed(boxes=np.zeros(4, np.float32)), r"boxes have the shape \(4,\)"),
    (changed(boxes=np.zeros(0, np.float32)), r"\(0, 4\) for an image with no objects"),
    (changed(boxes=target()["boxes"].astype(int)), "type int64.*astype"),
    (with_value("boxes", (1, 2), np.nan), r"box 1 is \(10, 5, nan, 20\).*finite"),
    (with_value("boxes", (0, 0), -np.inf), "box 0 .*finite"),
    (with_value("boxes", (1, 2), 10), r"box 1 is \(10, 5, 10, 20\).*no area"),
    (with_value("boxes", (1, 3), 4), "box 1 .*no area"),
    (with_value("boxes", (0, 0), -0.5), r"box 0 is \(-0.5, 2, 9, 10\).*leaves the image.*30 wide and 20 high"),
    (with_value("boxes", (0, 1), -1), "box 0 .*leaves the image"),
    (with_value("boxes", (1, 2), 30.5), "box 1 .*leaves the image"),
    (with_value("boxes", (1, 3), 20.5), "box 1 .*leaves the image"),
    (with_value("boxes", (slice(None), 3), 1), r"box 0 .*no area.*1 more like it"),
    (changed(labels=np.array([1])), r"labels have the shape \(1,\); expected \(2,\)"),
    (changed(labels=np.array([[1], [2]])), r"labels have the shape \(2, 1\)"),
    (changed(labels=[1, 2]), "labels are a list"),
    (changed(labels=np.array([1.0, 2.0])), "type float64.*integers"),
    (changed(labels=np.array([True, True])), "type bool"),
    (with_value("labels", 1, 0), "label 1 is 0.*from 1 to 3"),
    (with_value("labels", 0, 4), "label 0 is 4.*4 classes"),
    (with_value("labels", 0, -1), "label 0 is -1"),
    (changed(masks=np.zeros((2, W, H), np.uint8)), r"masks have the shape \(2, 30, 20\); expected \(2, 20, 30\)"),
    (changed(masks=np.zeros((3, H, W), np.uint8)), "masks have the shape"),
    (changed(masks=target()["masks"] * 255), "mask 0 holds the value 255"),
    (with_value("masks", (1, 3, 3), 2), "mask 1 holds the value 2"),
    (with_value("masks", (1, 3, 3), 0.5, np.float32), "mask 1 holds the value 0.5"),
    (with_value("masks", (1, 3, 3), np.nan, np.float32), "mask 1 holds the value nan"),
    (with_value("masks", (1, 3, 3), -1, np.int64), "mask 1 holds the value -1"),
    (changed(masks=target()["masks"].astype(str)), "masks are of type"),
    (changed(masks=[1, 2]), "masks are a list"),
])
def test_bad_targets_are_named_and_left_alone(bad, message):
    before = copy.deepcopy(bad)
    with pytest.raises(DataError, match="(?s)target 5.*" + message):
        check_target((H, W), bad, CLASSES, 5)
    np.testing.assert_equal(bad, before)
