from types import SimpleNamespace

import numpy as np
import pytest

from nprcnn.data import Shapes
from nprcnn.errors import DataError
from nprcnn.evaluate import METRICS, evaluate, format_metrics

H = W = 100
NAMES = ("background", "a", "b", "c")


ONE = pytest.approx(1, abs=1e-12)  # pycocotools adds an epsilon of 2e-16 to a denominator
HALF = pytest.approx(0.5, abs=1e-12)


def mask_of(box):
    mask = np.zeros((H, W), np.uint8)
    x1, y1, x2, y2 = (int(v) for v in box)
    mask[y1:y2, x1:x2] = 1
    return mask


def entries(boxes, labels, scores=None, dtype=np.uint8):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    masks = np.array([mask_of(b) for b in boxes], dtype).reshape(-1, H, W)
    result = dict(boxes=boxes, labels=np.array(labels, np.int64), masks=masks)
    return result if scores is None else SimpleNamespace(**result, scores=np.array(scores, np.float32))


class Listed:
    """A data source and a model in one: image i is filled with i, and the model looks up what it finds in it."""

    class_names = NAMES

    def __init__(self, targets, detections):
        self.targets, self.detections = targets, detections

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return np.full((H, W, 3), i, np.uint8), self.targets[i]

    def predict(self, image):
        return self.detections[image[0, 0, 0]]


def run(targets, detections, **options):
    both = Listed(targets, detections)
    return evaluate(both, both, progress=False, **options)


NOTHING = entries([], [], [], bool)
A, B, FAR = [10, 10, 40, 40], [50, 50, 90, 80], [2, 60, 30, 95]


def test_what_is_perfect_is_one():
    result = run([entries([A, B], [1, 2])], [entries([A, B], [1, 2], [.9, .8], bool)])
    for kind in ("bbox", "segm"):
        assert [result[kind][name] for name in ("AP", "AP50", "AP75", "AR100")] == [ONE] * 4
        assert [result["per_class"][name][kind] for name in "abc"] == [ONE, ONE, -1]
        assert set(result[kind]) == set(METRICS)
    assert [result["per_class"][name]["objects"] for name in "abc"] == [1, 1, 0]
    assert (result["images"], result["objects"]) == (1, 2)


def test_average_precision_by_hand():
    # right, wrong, right: precision 1 up to recall 1/2 (51 of COCO's 101 recalls), then 2/3
    result = run([entries([A, B], [1, 1])], [entries([A, FAR, B], [1, 1, 1], [.9, .8, .7], bool)])
    expected = (51 + 50 * 2 / 3) / 101
    for kind in ("bbox", "segm"):
        assert result[kind]["AP"] == pytest.approx(expected, abs=1e-12)  # rounding of sums
        assert result["per_class"]["a"][kind] == pytest.approx(expected, abs=1e-12)
        assert result[kind]["AR1"] == 0.5


def test_iou_thresholds_by_hand_and_boxes_apart_from_masks():
    # 30 x 30 against its left 30 x 22: IoU .733, right at .50 .55 .60 .65 .70
    narrow = entries([[10, 10, 32, 40]], [1], [.9], bool)
    result = run([entries([A], [1])], [narrow])
    assert result["bbox"]["AP"] == HALF and result["segm"]["AP"] == HALF
    assert (result["segm"]["AP50"], result["segm"]["AP75"]) == (ONE, 0)
    narrow.boxes = np.array([A], np.float32)
    result = run([entries([A], [1])], [narrow])
    assert result["bbox"]["AP"] == ONE and result["segm"]["AP"] == HALF


def test_a_wrong_class_or_a_second_detection_does_not_count():
    result = run([entries([A], [1])], [entries([A], [2], [.9], bool)])
    assert result["segm"]["AP"] == 0 and result["per_class"]["a"]["segm"] == 0
    twice = run([entries([A, B], [1, 1])], [entries([A, A, B], [1, 1, 1], [.9, .8, .7], bool)])
    assert twice["bbox"]["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_no_detections_and_no_objects():
    result = run([entries([A], [1]), entries([], [])], [NOTHING, NOTHING])
    assert result["bbox"]["AP"] == result["segm"]["AP"] == 0
    result = run([entries([A], [1]), entries([], [])], [entries([A], [1], [.5], bool), NOTHING])
    assert result["segm"]["AP"] == ONE
    # a false alarm with a better score in an image with no objects halves the precision
    result = run([entries([A], [1]), entries([], [])], [entries([A], [1], [.5], bool), entries([B], [1], [.9], bool)])
    assert result["segm"]["AP"] == HALF
    result = run([entries([], [])], [NOTHING])
    assert result["bbox"]["AP"] == -1 and "-" in format_metrics(result)
    with pytest.raises(DataError, match="no image"):
        run([], [])


def test_size_classes():
    result = run([entries([A, [0, 0, 99, 99]], [1, 1])], [entries([A], [1], [.9], bool)])  # 900 and 9801 pixels
    assert [result["segm"][f"AP_{size}"] for size in ("small", "medium", "large")] == [ONE, -1, 0]


def test_indices_choose_images_and_may_repeat():
    targets, found = [entries([A], [1]), entries([B], [2])], [NOTHING, entries([B], [2], [.9], bool)]
    assert run(targets, found)["bbox"]["AP"] == HALF
    assert run(targets, found, indices=[1])["bbox"]["AP"] == ONE
    assert run(targets, found, indices=np.array([1, 1]))["objects"] == 2


def test_a_detector_without_masks():
    found = entries([A], [1], [.9], bool)
    found.masks = None
    target = entries([A], [1])
    result = run([target], [found])
    assert result["bbox"]["AP"] == ONE and "segm" not in result and "segm" not in result["per_class"]["a"]
    del target["masks"]
    assert run([target], [found])["bbox"]["AP"] == ONE
    assert "masks" not in format_metrics(result)


def test_an_oracle_on_the_built_in_scenes_and_a_quiet_stdout(capsys):
    source = Shapes.held_out(6)
    answers = {source[i][0].tobytes(): source[i][1] for i in range(6)}

    class Oracle:
        def predict(self, image):
            target = answers[image.tobytes()]
            return SimpleNamespace(boxes=target["boxes"], labels=target["labels"], masks=target["masks"] == 1,
                                   scores=np.full(len(target["labels"]), 0.9, np.float32))

    result = evaluate(Oracle(), source, progress=True)
    assert (result["bbox"]["AP"], result["segm"]["AP"]) == (ONE, ONE)
    printed = capsys.readouterr()
    assert printed.out == "" and "evaluate" in printed.err
    evaluate(Oracle(), source, progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_table():
    result = run([entries([A, B], [1, 2])], [entries([A, B], [1, 2], [.9, .8], bool)])
    lines = format_metrics(result).splitlines()
    assert lines[0] == "1 images, 2 objects"
    assert lines[2].split()[:4] == ["boxes", "1.000", "1.000", "1.000"] and lines[3].split()[0] == "masks"
    assert lines[-1].split() == ["c", "0", "-", "-"]
    assert len({len(line) for line in lines[1:4]}) == 1 and len({len(line) for line in lines[5:]}) == 1
