from types import SimpleNamespace

import numpy as np
import pytest

from nprcnn.data import Shapes
from nprcnn.data.coco_names import COCO_81, COCO_91
from nprcnn.errors import ConfigError, DataError
from nprcnn.evaluate import METRICS, coco_metrics, collect, evaluate, format_metrics, join, measure
from nprcnn.evaluate.classes import match_classes
from nprcnn.evaluate.curves import draw_precision_recall
from nprcnn.evaluate.metrics import Measured, class_ap

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
    assert lines[1].split() + lines[4].split() == list(METRICS)
    assert lines[2].split()[:4] == ["boxes", "1.000", "1.000", "1.000"] and lines[3].split()[0] == "masks"
    assert lines[5].split()[:2] == ["boxes", "1.000"] and lines[6].split()[-3:] == ["1.000", "1.000", "-"]
    assert lines[-1].split() == ["c", "0", "-", "-"]
    assert len({len(line) for line in lines[1:7]}) == 1 and len({len(line) for line in lines[8:]}) == 1


# ---- crowds

def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    inside = [52, 52, 62, 62]
    found = [entries([inside, A], [1, 1], [.9, .8], bool)]
    target = entries([A, B], [1, 1])
    assert run([target], found)["segm"]["AP"] == pytest.approx(0.5 * 51 / 101, abs=1e-12)  # a false alarm, and then one of two
    result = run([{**target, "iscrowd": np.array([0, 1])}], found)
    assert result["segm"]["AP"] == result["bbox"]["AP"] == ONE
    assert (result["objects"], result["crowds"], result["per_class"]["a"]["objects"]) == (1, 1, 1)
    assert format_metrics(result).startswith("1 images, 1 objects and 1 crowds\n")


# ---- classes

@pytest.mark.parametrize("theirs, own, expected, notes", [
    (("background", "a", "b"), ("background", "a", "b"), [0, 1, 2], 0),
    (None, ("background", "a", "b"), [0, 1, 2], 0),
    (("background", "class 1", "class 2"), ("background", "a", "b"), [0, 1, 2], 0),
    (("background", "x", "y"), ("background", "a", "b"), [0, 1, 2], 1),
    (("background", "b", "x", "a"), ("background", "a", "b"), [0, 2, 0, 1], 1),
    (("background", "b"), ("background", "a", "b", "c"), [0, 2], 2),
    (("background", "background", "a"), ("background", "a"), [0, 0, 1], 1)])
def test_classes_are_matched_by_name(theirs, own, expected, notes):
    label_of, said = match_classes(theirs, own)
    assert label_of.tolist() == expected and len(said) == notes


def test_cocos_91_labels_become_its_80_categories():
    label_of, notes = match_classes(COCO_91, COCO_81)
    assert [COCO_81[k] for k in label_of[label_of > 0]] == list(COCO_81[1:]) and (label_of > 0).sum() == 80
    assert notes == ["of the model's classes, 80 are in the data set"]
    some = ("background", "person", "zebra", "toothbrush")
    assert match_classes(COCO_91, some)[0][[1, 24, 90]].tolist() == [1, 2, 3] and match_classes(COCO_91, some)[0].sum() == 6


def test_classes_that_have_nothing_in_common():
    with pytest.raises(ConfigError, match="the model has the classes a, b, c, the data set x: none in common"):
        match_classes(NAMES, ("background", "x"))
    found = SimpleNamespace(class_names=None, num_classes=7)
    with pytest.raises(ConfigError, match="the model has the classes class 1, class 2, class 3, class 4, class 5 and 1 more"):
        evaluate(found, Listed([entries([A], [1])], []), progress=False)


def test_labels_of_the_model_become_those_of_the_source():
    both = Listed([entries([A, B], [1, 2])], [entries([A, B, FAR], [3, 1, 2], [.9, .8, .95], bool)])
    model = SimpleNamespace(class_names=("background", "b", "unknown", "a"), predict=both.predict)
    result = evaluate(model, both, progress=False)
    assert result["segm"]["AP"] == ONE  # FAR, of a class that the source has not, does not count


# ---- parts

def test_the_parts_of_all_ranks_make_up_the_whole():
    rng = np.random.default_rng(0)
    targets, found = [], []
    for n in range(7):
        corner = rng.integers(0, 60, (3, 2))
        boxes = np.concatenate([corner, corner + rng.integers(10, 39, (3, 2))], axis=1)
        targets.append({**entries(boxes, [1, 2, 2]), "image_id": 100 - n})
        found.append(entries(boxes + rng.integers(-4, 5, (3, 4)).clip(-boxes, 99 - boxes), [1, 2, 1], [.5, .6, .7], bool))
    both = Listed(targets, found)
    whole = collect(both, both, progress=False)
    order = [0, 3, 3, 5, 6, 1]
    for ranks in (2, 3, 8):
        parts = [collect(both, both, progress=False, share=(rank, ranks)) for rank in range(ranks)]
        joined = join(parts)
        assert (joined.sizes, joined.image_ids) == (whole.sizes, whole.image_ids) and len(joined.found) == 21
        metrics = [coco_metrics(e.truths, e.found, e.sizes, NAMES, e.kinds) for e in (joined, whole)]
        assert metrics[0] == metrics[1] and 0.1 < metrics[0]["segm"]["AP"] < 0.9
        parts = [collect(both, both, order, progress=False, share=(rank, ranks)) for rank in range(ranks)]
        assert coco_metrics(*join(parts)[:3], NAMES) == evaluate(both, both, progress=False, indices=order)
    assert whole.image_ids == {n + 1: 100 - n for n in range(7)}


# ---- curves

def test_precision_and_the_aps_of_classes_are_those_of_the_numbers():
    result = collect(*[Listed([entries([A, B], [1, 1])], [entries([A, FAR, B], [1, 1, 1], [.9, .8, .7], bool)])] * 2, progress=False)
    measured = measure(result.truths, result.found, result.sizes, NAMES)
    precision = measured["segm"].precision
    assert precision.shape == (10, 101, 3) and (precision[:, :, 1:] == -1).all()
    assert precision[0, :, 0] == pytest.approx(np.where(np.arange(101) <= 50, 1, 2 / 3), abs=1e-12)
    assert class_ap(precision) == [pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12), -1, -1]


@pytest.mark.parametrize("classes, lines", [(1, 1), (2, 3), (6, 7), (30, 7)])
def test_the_picture_of_precision_and_recall(classes, lines):
    rng = np.random.default_rng(1)
    height = rng.uniform(0.3, 1, classes)
    recall = np.linspace(0, 1, 101)[None, :, None]
    precision = np.where(recall < 0.9 - 0.05 * np.arange(10)[:, None, None], height, 0)
    measured = {kind: Measured((0,) * 12, precision) for kind in ("bbox", "segm")}
    names = ["background", *(f"class {k}" for k in range(1, classes + 1))]
    figure = draw_precision_recall(measured, names, title="a title")
    assert len(figure.axes) == 6
    for ax, t in zip(figure.axes, (slice(0, 1), slice(5, 6), slice(None)) * 2):
        assert len(ax.lines) == lines and f"AP {precision[t].mean():.3f}" in ax.get_title(loc="left")
        assert ax.get_xlabel() == "recall"
    legend = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    best = int(height.argmax())
    if classes == 30:
        assert legend[0] == f"class {best + 1} {precision[:, :, best].mean():.3f}" and legend[-1].startswith("mean of 30 classes")
    line = figure.axes[0].lines[0]
    assert line.get_ydata().max() == (height.max() if classes == 30 else height[0])


def test_the_picture_of_nothing():
    measured = {"bbox": Measured((-1,) * 12, np.full((10, 101, 2), -1.0))}
    figure = draw_precision_recall(measured, NAMES[:3])
    assert [len(ax.lines) for ax in figure.axes] == [0, 0, 0] and figure.axes[0].get_title(loc="left").endswith("no objects")
