import numpy as np
import pytest

from nprcnn.data import check_target, drop_crowds, target_from_masks
from nprcnn.errors import DataError


def masks():
    result = np.zeros((3, 8, 9), np.uint8)
    result[0, 1:3, 2:7] = result[1, 0, 0] = result[2, 7, 8] = 1
    return result


def target():
    return {**target_from_masks(masks(), [1, 2, 1], 5), "iscrowd": np.array([0, 1, 0])}


def test_target_from_masks():
    made = target_from_masks(masks().astype(bool), [1, 2, 1], 5)
    np.testing.assert_array_equal(made["boxes"], np.array([[2, 1, 7, 3], [0, 0, 1, 1], [8, 7, 9, 8]], np.float32))
    assert made["labels"].dtype == np.int64 and made["masks"].dtype == np.uint8 and made["image_id"] == 5
    check_target((8, 9), made, 3, 0)
    empty = target_from_masks(np.zeros((0, 8, 9)), [], 5)
    check_target((8, 9), empty, 3, 0)
    with pytest.raises(DataError, match="image 5: mask 1 is empty"):
        target_from_masks(masks() * np.array([1, 0, 1])[:, None, None], [1, 2, 1], 5)
    with pytest.raises(DataError, match=r"image 5 has no objects, and \[\] does not say .*: give masks of the shape \(0, height, width\)"):
        target_from_masks([], [], 5)
    with pytest.raises(DataError, match="2 labels"):
        target_from_masks(masks(), [1, 2], 5)


def test_drop_crowds():
    before = target()
    left = drop_crowds(before)
    assert list(left) == ["boxes", "labels", "masks", "image_id"] and left["labels"].tolist() == [1, 1] and left["image_id"] == 5
    np.testing.assert_array_equal(left["masks"], masks()[[0, 2]])
    np.testing.assert_array_equal(left["boxes"], before["boxes"][[0, 2]])
    np.testing.assert_equal(before, target())  # nothing is modified
    assert drop_crowds(left) is left
    assert drop_crowds({**target(), "iscrowd": np.ones(3, int)})["masks"].shape == (0, 8, 9)


def test_a_model_is_not_trained_on_crowds():
    check_target((8, 9), drop_crowds(target()), 3, 0)
    check_target((8, 9), {**target(), "iscrowd": np.zeros(3, int)}, 3, 0)
    with pytest.raises(DataError, match="target 4: iscrowd 1 is 1.*drop_crowds"):
        check_target((8, 9), target(), 3, 4)
    with pytest.raises(DataError, match=r"iscrowd has the shape \(2,\)"):
        check_target((8, 9), {**target(), "iscrowd": np.zeros(2, int)}, 3, 0)
    with pytest.raises(DataError, match="iscrowd are a list"):
        check_target((8, 9), {**target(), "iscrowd": [0, 0, 0]}, 3, 0)
