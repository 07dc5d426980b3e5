"""Real sets in each format, where NPRCNN_DATA names the folder that holds them. Its README lists what they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nprcnn.data import check_target, drop_crowds, open_source, split_source
from nprcnn.data.check import check_set

pytestmark = pytest.mark.skipif(not os.environ.get("NPRCNN_DATA"), reason="NPRCNN_DATA does not name a folder of real data sets")
DATA = Path(os.environ.get("NPRCNN_DATA", "."))

# spec, images, objects, crowds among them, classes that occur, faults: numbers from the sets' own README files, where they are there
SETS = [
    ("coco:fruits_nuts/trainval.json", 18, 165, 0, 3, 0),
    ("coco:coco_tiny_160/annotations/instances_train2017.json", 80, 705, 6, None, 0),
    ("coco:coco_tiny_160/annotations/instances_val2017.json", 80, 815, 11, None, 0),
    ("coco:labelme_voc2011_sample/coco", 3, 12, 0, 6, 0),
    ("labels:dsb2018_nuclei", 466, 12331, 0, 1, 0),
    ("masks:dsb2018_nuclei/original_layout_sample", 12, 299, 0, 1, 0),
    ("labelme:labelme_voc2011_sample/labelme_json", 3, 12, 0, 6, 0),
    ("labelme:labelme_voc2011_sample/labelme_apc", 1, 4, 0, 4, 0),
    # the sample's boxes were drawn apart from its masks, without these three: bottle, chair, sofa
    ("voc:labelme_voc2011_sample/voc", 3, 12, 0, 6, 3),
    ("folder:demo_photos/matterport_demo", 29, 0, 0, 0, 0),
]


@pytest.mark.parametrize("spec, images, objects, crowds, classes, faults", SETS)
def test_the_whole_set_is_read(spec, images, objects, crowds, classes, faults):
    kind, path = spec.split(":")
    found = check_set(f"{kind}:{DATA / path}", progress=False)
    assert (found.images, len(found.sizes), len(found.labels), found.crowds, len(found.faults)) == (images, images, objects, crowds, faults)
    assert classes is None or len(set(found.labels.tolist())) == classes
    assert not any(fault.stops for fault in found.faults)


@pytest.mark.parametrize("path", ["fruits_nuts/trainval.json", "coco_tiny_160/annotations/instances_val2017.json"])
def test_coco_masks_and_boxes_are_those_of_pycocotools(path):
    from pycocotools.coco import COCO
    source, truth = open_source(f"coco:{DATA / path}"), COCO(DATA / path)
    for i in range(0, len(source), 4):
        image, target = source[i]
        annotations = truth.imgToAnns[target["image_id"]]
        assert [source.category_ids[label] for label in target["labels"]] == [a["category_id"] for a in annotations]
        assert target["iscrowd"].tolist() == [a["iscrowd"] for a in annotations]
        for box, mask, a in zip(target["boxes"], target["masks"], annotations):
            np.testing.assert_array_equal(mask, truth.annToMask(a))
            x, y, w, h = a["bbox"]
            limit = np.tile(image.shape[1::-1], 2)  # a rounding of float32 is left
            np.testing.assert_allclose(box, np.clip([x, y, x + w, y + h], 0, limit), rtol=1e-6)


def test_labelme_and_its_own_conversion_to_coco_are_the_same_objects():
    labelme = open_source(f"labelme:{DATA}/labelme_voc2011_sample/labelme_json")
    coco = open_source(f"coco:{DATA}/labelme_voc2011_sample/coco")
    files = [Path(coco.name(i)).stem for i in range(len(coco))]
    for i in range(len(labelme)):
        a, b = labelme[i][1], coco[files.index(Path(labelme.name(i)).stem)][1]
        np.testing.assert_array_equal(a["masks"], b["masks"])
        assert [labelme.class_names[k] for k in a["labels"]] == [coco.class_names[k] for k in b["labels"]]


def test_voc_objects_are_those_of_labelme():
    """The sample's PNGs were drawn by LabelMe from the same polygons, outlines included: nearly the same pixels."""
    voc, labelme = (open_source(f"{kind}:{DATA}/labelme_voc2011_sample/{folder}") for kind, folder in (("voc", "voc"), ("labelme", "labelme_json")))
    for i in range(len(voc)):
        a, b = voc[i][1]["masks"].astype(bool), labelme[i][1]["masks"].astype(bool)
        for mask in a:
            iou = max((mask & other).sum() / (mask | other).sum() for other in b)
            assert iou > 0.9  # measured: .934 and above, the least for the small bottle


def test_label_images_are_the_mask_images_packed():
    packed, separate = open_source(f"labels:{DATA}/dsb2018_nuclei"), open_source(f"masks:{DATA}/dsb2018_nuclei/original_layout_sample")
    names = [packed.name(i) for i in range(len(packed))]
    differing = 0
    for i in range(len(separate)):
        if separate.name(i) in names:
            a, b = separate[i][1]["masks"], packed[names.index(separate.name(i))][1]["masks"]
            assert a.shape == b.shape
            differing += np.abs(a.max(axis=0).astype(int) - b.max(axis=0)).sum()
    assert differing == 0


def test_held_out_nuclei_are_a_fixed_choice():
    train, held_out = split_source(open_source(f"labels:{DATA}/dsb2018_nuclei"), 60)
    assert (len(train), len(held_out)) == (406, 60) and not set(train.indices) & set(held_out.indices)
    image, target = held_out[0]
    check_target(image.shape[:2], drop_crowds(target), 2, 0)


def test_coco_without_its_images_still_gives_targets():
    """The published 100 images of val2014: annotations alone."""
    file = DATA / "coco_eval_parity" / "instances_val2014_100.json"
    source = open_source(f"coco:{file}")
    targets = [source.target(i, None) for i in range(len(source))]
    assert sum(len(target["labels"]) for target in targets) == len(json.loads(file.read_text())["annotations"]) == 839
    assert sum(int(target["iscrowd"].sum()) for target in targets) == 9
