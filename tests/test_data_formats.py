"""Each format is read to the pixel: tiny sets whose objects are known."""

import json
import pickle

import numpy as np
import pytest
import tiny_sets
from tiny_sets import BLOCK, MAKE, H, W, block_mask

from nprcnn.data import check_target, drop_crowds, open_source
from nprcnn.data.check import check_set
from nprcnn.data.images import read_image
from nprcnn.data.label_images import split_numbers
from nprcnn.data.outlines import ellipse_mask

OTHER = (20, 10, 36, 25)


@pytest.fixture(params=[kind for kind in MAKE if kind != "folder"])
def kind(request):
    return request.param


def test_sound_sets_are_sound_and_fit_for_training(kind, tmp_path):
    spec = MAKE[kind](tmp_path)
    assert check_set(spec, progress=False).faults == []
    source = open_source(spec)
    assert len(source) == 2
    for i, (image, target) in enumerate(source):
        assert image.shape == (H, W, 3) and image.dtype == np.uint8
        n = len(target["labels"])
        assert n > 0 and target["boxes"].shape == (n, 4) and target["boxes"].dtype == np.float32
        assert target["labels"].dtype == np.int64 and target["masks"].shape == (n, H, W) and target["masks"].dtype == np.uint8
        assert type(target["image_id"]) is int
        check_target((H, W), drop_crowds(target), len(source.class_names), i)
        assert any(mask.tobytes() == block_mask().tobytes() for mask in target["masks"])
        assert any(np.array_equal(box, BLOCK) for box in target["boxes"])
    with pytest.raises(IndexError):
        source[2]
    with pytest.raises(IndexError):
        source[-1]


def test_a_source_can_be_sent_to_worker_processes(kind, tmp_path):
    source = open_source(MAKE[kind](tmp_path))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.class_names == source.class_names
    np.testing.assert_equal(copy[1], source[1])


def test_coco(tmp_path):
    source = open_source(tiny_sets.coco(tmp_path))
    assert source.class_names == ("background", "fig", "nut") and source.category_ids == (None, 4, 9)
    assert [source.name(i) for i in range(2)] == ["a.png", "b.png"]
    image, a = source[0]
    np.testing.assert_array_equal(image, read_image(tmp_path / "images" / "a.png"))
    assert a["image_id"] == 11 and a["labels"].tolist() == [2, 1] and a["iscrowd"].tolist() == [0, 0]
    np.testing.assert_array_equal(a["boxes"], [BLOCK, OTHER])
    np.testing.assert_array_equal(a["masks"], [block_mask(), block_mask(OTHER)])
    b = source[1][1]
    assert b["image_id"] == 7 and b["labels"].tolist() == [1, 2] and b["iscrowd"].tolist() == [1, 0]
    np.testing.assert_array_equal(b["masks"], [block_mask(), block_mask((20, 10, 36, 15)) | block_mask((20, 15, 30, 25))])
    np.testing.assert_array_equal(drop_crowds(b)["boxes"], [OTHER])


def changed_coco(tmp_path, change):
    spec = tiny_sets.coco(tmp_path)
    data = json.loads((tmp_path / "set.json").read_text())
    change(data)
    tiny_sets.write_json(tmp_path / "set.json", data)
    return open_source(spec)


def test_coco_boxes_are_the_annotations_own_clipped_as_in_torchvision(tmp_path):
    def change(data):
        data["annotations"][0]["bbox"] = [-3, 4.5, 12, 99]
        data["annotations"][1]["bbox"] = [20, 10, 0, 15]
    target = changed_coco(tmp_path, change)[0][1]
    np.testing.assert_array_equal(target["boxes"], [[0, 4.5, 9, 30]])  # the one without a width is left out
    assert target["labels"].tolist() == [2]


def test_coco_without_segmentations_has_boxes_only(tmp_path):
    target = changed_coco(tmp_path, lambda data: [a.pop("segmentation") for a in data["annotations"]])[0][1]
    assert "masks" not in target
    np.testing.assert_array_equal(target["boxes"], [BLOCK, OTHER])


def test_coco_image_without_annotations(tmp_path):
    target = changed_coco(tmp_path, lambda data: data["annotations"].clear())[0][1]
    assert target["boxes"].shape == (0, 4) and "masks" not in target
    target = changed_coco(tmp_path, lambda data: data["annotations"].__delitem__(slice(2)))[0][1]
    assert target["masks"].shape == (0, H, W) and target["labels"].shape == (0,)


def test_coco_background_without_objects_is_no_class(tmp_path):
    source = changed_coco(tmp_path, lambda data: data["categories"].append({"id": 0, "name": "_background_"}))
    assert source.category_ids == (None, 4, 9)


@pytest.mark.parametrize("folder", ["train", "images", "images/train"])
def test_coco_finds_its_images_beside_the_annotations(folder, tmp_path):
    tiny_sets.coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "set.json").rename(tmp_path / "annotations" / "instances_train.json")
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / "moved").rename(tmp_path / folder)
    assert open_source(f"coco:{tmp_path}")[0][0].shape == (H, W, 3)


def test_labels(tmp_path):
    target = open_source(tiny_sets.labels(tmp_path))[0][1]
    np.testing.assert_array_equal(target["boxes"], [[30, 20, 38, 25], BLOCK])  # by number: 2, 300
    np.testing.assert_array_equal(target["masks"][1], block_mask())
    assert target["labels"].tolist() == [1, 1] and "iscrowd" not in target


def test_split_numbers_is_a_comparison_with_each_number():
    numbers = np.random.RandomState(0).randint(0, 9, (23, 17)) * 1000
    numbers[3:9, 2:7] = 60000
    ids, boxes, masks = split_numbers(numbers)
    assert ids.tolist() == [*range(1000, 9000, 1000), 60000]
    for k, number in enumerate(ids):
        np.testing.assert_array_equal(masks[k], numbers == number)
        y, x = np.nonzero(numbers == number)
        np.testing.assert_array_equal(boxes[k], [x.min(), y.min(), x.max() + 1, y.max() + 1])
    ids, boxes, masks = split_numbers(np.zeros((4, 5), np.uint16))
    assert boxes.shape == (0, 4) and masks.shape == (0, 4, 5)


def test_label_images_of_8_bits_and_with_a_palette(tmp_path):
    from PIL import Image
    tiny_sets.labels(tmp_path)
    palette = Image.fromarray(block_mask() * 3).convert("P")  # the index is what counts, not the colour
    palette.putdata((block_mask() * 7).ravel())
    palette.save(tmp_path / "labels" / "a.png")
    tiny_sets.write_numbers(tmp_path / "labels" / "b.png", block_mask() * 9)
    source = open_source(f"labels:{tmp_path}")
    np.testing.assert_array_equal(source[0][1]["masks"], [block_mask()])
    np.testing.assert_array_equal(source[1][1]["masks"], [block_mask()])


def test_one_class_can_have_a_name(tmp_path):
    (tmp_path / "classes.txt").write_text("nucleus\n")
    assert open_source(tiny_sets.labels(tmp_path)).class_names == ("background", "nucleus")


def test_masks(tmp_path):
    target = open_source(tiny_sets.masks(tmp_path))[0][1]
    np.testing.assert_array_equal(target["boxes"], [BLOCK, OTHER])
    np.testing.assert_array_equal(target["masks"], [block_mask(), block_mask(OTHER)])


def test_voc(tmp_path):
    source = open_source(tiny_sets.voc(tmp_path))
    assert source.class_names[8] == "cat" and len(source.class_names) == 21
    target = source[0][1]
    np.testing.assert_array_equal(target["boxes"], [BLOCK, OTHER])
    np.testing.assert_array_equal(target["masks"], [block_mask(), block_mask(OTHER)])  # without void
    assert target["labels"].tolist() == [12, 8] and target["iscrowd"].tolist() == [0, 1]


def test_voc_numbers_need_not_follow_the_order_of_the_xml(tmp_path):
    tiny_sets.voc(tmp_path)
    numbers = np.zeros((H, W), np.uint8)
    numbers[block_mask() > 0], numbers[block_mask(OTHER) > 0] = 9, 3
    tiny_sets.write_numbers(tmp_path / "SegmentationObject" / "a.png", numbers)
    target = open_source(f"voc:{tmp_path}")[0][1]
    assert target["labels"].tolist() == [8, 12] and target["boxes"][1].tolist() == list(BLOCK)


def test_voc_with_boxes_only_a_split_and_classes_of_its_own(tmp_path):
    import shutil
    tiny_sets.voc(tmp_path)
    shutil.rmtree(tmp_path / "SegmentationObject")
    for name in "ab":
        file = tmp_path / "Annotations" / f"{name}.xml"
        file.write_text(file.read_text().replace("<name>cat", "<name>zebra"))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    source = open_source(f"voc:{tmp_path},split=val")
    assert len(source) == 1 and source.name(0) == "b.jpg" and source.class_names == ("background", "dog", "zebra")
    target = source[0][1]
    assert "masks" not in target and target["labels"].tolist() == [1, 2] and target["iscrowd"].tolist() == [0, 1]
    np.testing.assert_array_equal(target["boxes"], [BLOCK, OTHER])


def test_labelme(tmp_path):
    source = open_source(tiny_sets.labelme(tmp_path))
    assert source.class_names == ("background", "fig", "nut")
    target = source[0][1]
    assert target["labels"].tolist() == [2, 1, 2, 1]
    np.testing.assert_array_equal(target["masks"][0], block_mask())
    np.testing.assert_array_equal(target["masks"][1], block_mask((20, 10, 30, 20)) | block_mask((30, 20, 36, 25)))  # one group
    np.testing.assert_array_equal(target["masks"][3], block_mask((1, 20, 9, 28)))
    np.testing.assert_array_equal(target["boxes"], [BLOCK, OTHER, [26, 2, 34, 10], [1, 20, 9, 28]])
    assert source[1][0].max() == 0  # the image that is in the json
    tiny_sets.write_json(tmp_path / "b.json", {**json.loads((tmp_path / "b.json").read_text()), "shapes": [
        {"label": "nut", "points": [[1, 1], [9, 9]], "shape_type": "rectangle", "flags": {"crowd": True}}]})
    assert open_source(f"labelme:{tmp_path}")[1][1]["iscrowd"].tolist() == [1]


def test_labelme_takes_its_classes_in_the_order_of_a_list(tmp_path):
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\nnut\nfig\nplum\n")
    source = open_source(tiny_sets.labelme(tmp_path))
    assert source.class_names == ("background", "nut", "fig", "plum") and source[0][1]["labels"].tolist() == [1, 2, 1, 2]


def test_via(tmp_path):
    source = open_source(tiny_sets.via(tmp_path))
    assert source.class_names == ("background", "fig", "nut")
    a, b = source[0][1], source[1][1]
    np.testing.assert_array_equal(a["masks"][:2], [block_mask(), block_mask(OTHER)])
    np.testing.assert_array_equal(a["boxes"], [BLOCK, OTHER, [26, 2, 34, 10]])
    np.testing.assert_array_equal(b["masks"][0], block_mask())
    np.testing.assert_array_equal(b["masks"][1], ellipse_mask(28, 18, 9, 4, 0.5, (H, W), None))
    assert a["labels"].tolist() == [2, 1, 1] and b["labels"].tolist() == [2, 1]


def test_via_finds_the_attribute_that_is_the_class(tmp_path):
    from nprcnn.errors import ConfigError
    spec, file = tiny_sets.via(tmp_path), tmp_path / "via.json"
    file.write_text(file.read_text().replace('"class"', '"fruit"'))
    assert open_source(spec).class_names == ("background", "fig", "nut")  # the only one there is
    data = json.loads(file.read_text())["_via_img_metadata"]  # an export: without the project around it
    data["b.png123"]["regions"]["0"]["region_attributes"] = {"fruit": {"nut": True, "fig": False}, "ripe": "no"}  # check boxes
    tiny_sets.write_json(file, data)
    with pytest.raises(ConfigError, match="fruit, ripe.*attribute=fruit"):
        open_source(spec)
    assert open_source(spec + ",attribute=fruit")[1][1]["labels"].tolist() == [2, 1]
    for image in data.values():
        for region in (image["regions"].values() if isinstance(image["regions"], dict) else image["regions"]):
            region["region_attributes"] = {}
    tiny_sets.write_json(file, data)
    assert open_source(spec).class_names == ("background", "object")


def test_a_folder_of_images(tmp_path):
    source = open_source(tiny_sets.folder(tmp_path))
    assert check_set(f"folder:{tmp_path}", progress=False).faults == []
    image, target = source[1]
    assert len(source) == 2 and source.name(1) == "b.jpg" and image.shape == (H, W, 3) and target == {"image_id": 1}


def test_an_ellipse_has_its_area_and_turns_clockwise():
    mask = ellipse_mask(50, 40, 30, 10, 0, (80, 100), None)
    assert abs(mask.sum() - np.pi * 300) < np.pi * 300 * 0.02
    turned = ellipse_mask(50, 40, 30, 10, np.pi / 4, (80, 100), None)
    assert turned[40 + 15, 50 + 15] and not turned[40 - 15, 50 + 15]  # to the lower right, y down


def test_pairs_of_boxes_are_one_to_one_the_best_first():
    from nprcnn.data.voc import pair_up
    a, shifted, b = (0, 0, 10, 10), (1, 0, 11, 10), (30, 0, 40, 10)
    assert pair_up(np.array([shifted, a, b], float), [a, b]) == [None, 0, 1]
    assert pair_up(np.array([a], float), [(6, 0, 16, 10)]) == [None]  # IoU 4 / 16
    assert pair_up(np.zeros((0, 4)), [a]) == [] and pair_up(np.array([a], float), []) == [None]


def test_less_than_a_pixel_outside_is_no_fault(tmp_path):
    changed_coco(tmp_path, lambda data: data["annotations"][0].update(bbox=[-0.9, 4, 12, 8], segmentation=[[-0.9, 4, 11, 4, 11, 12]]))
    assert check_set(f"coco:{tmp_path / 'set.json'}", progress=False).faults == []
    changed_coco(tmp_path, lambda data: data["annotations"][0].update(bbox=[-1.1, 4, 12, 8]))
    assert len(check_set(f"coco:{tmp_path / 'set.json'}", progress=False).faults) == 1


def test_negative_numbers_are_no_objects(tmp_path):
    tiny_sets.labels(tmp_path)
    (tmp_path / "labels" / "a.png").unlink()
    tiny_sets.write_numbers(tmp_path / "labels" / "a.tif", -block_mask().astype(np.int32))
    (fault,) = check_set(f"labels:{tmp_path}", progress=False).faults
    assert "holds the number -1" in fault.problem
