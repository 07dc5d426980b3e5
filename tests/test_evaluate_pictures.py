import numpy as np
import pytest

from nprcnn.cli import main
from nprcnn.data.images import read_image
from nprcnn.data.shapes import Shapes
from nprcnn.evaluate.entries import Entries, to_entries
from nprcnn.evaluate.pictures import FOUND, MISSED, WRONG, draw_hits, hits


def boxes_as_entries(boxes, labels, scores=None, crowds=None):
    return to_entries(1, np.array(boxes, float), labels, None, scores, crowds)


def test_the_best_score_takes_an_object_and_the_next_one_finds_it_taken():
    truths = boxes_as_entries([[0, 0, 10, 10], [20, 0, 30, 10]], [1, 1])
    found = boxes_as_entries([[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 4]], [1, 1, 1], [0.6, 0.9, 0.8])
    right, missed = hits(truths, found, "bbox")
    assert right.tolist() == [False, True, False]   # the first is a duplicate, the third overlaps by .4
    assert missed.tolist() == [False, True]


def test_another_class_is_wrong_and_a_crowd_is_never_missed():
    truths = boxes_as_entries([[0, 0, 10, 10], [40, 0, 60, 20]], [1, 1], crowds=[0, 1])
    right, missed = hits(truths, boxes_as_entries([[0, 0, 10, 10]], [2], [0.9]), "bbox")
    assert right.tolist() == [False] and missed.tolist() == [True, False]


@pytest.mark.parametrize("truths, found", [(0, 2), (2, 0), (0, 0)])
def test_nothing_there_or_nothing_found(truths, found):
    box = [[0, 0, 10, 10], [20, 0, 30, 10]]
    right, missed = hits(boxes_as_entries(box[:truths], [1] * truths), boxes_as_entries(box[:found], [1] * found, [0.9] * found), "bbox")
    assert not right.any() and len(right) == found and missed.all() and len(missed) == truths


def test_the_picture_outlines_each_kind_in_its_colour():
    """One scene whose first object is found, whose others are missed, and one detection where nothing is."""
    source = Shapes.held_out(6)
    i = next(i for i in range(6) if len(source[i][1]["labels"]) > 1)
    image, target = source[i]
    wrong = np.zeros((1, *image.shape[:2]), bool)
    wrong[0, :4, :4] = True
    masks = np.concatenate([target["masks"][:1].astype(bool), wrong])
    boxes = np.concatenate([target["boxes"][:1], [[0, 0, 4, 4]]])
    labels = np.array([target["labels"][0], 1])
    entries = Entries(to_entries(1, target["boxes"], target["labels"], target["masks"]),
                      to_entries(1, boxes, labels, masks, [0.9, 0.8]), {1: image.shape[:2]}, {1: 1}, True)
    figure = draw_hits(source, entries, indices=[i])
    from matplotlib.colors import to_hex
    colors = [to_hex(lines.get_colors()[0]).upper() for lines in figure.axes[0].collections]
    assert colors.count(FOUND) == 1 and colors.count(WRONG) == 1 and colors.count(MISSED) == len(target["labels"]) - 1
    assert figure.axes[0].get_title(loc="left") == f"1 found, 1 wrong, {len(target['labels']) - 1} missed"


def test_evaluate_writes_it(tmp_path, capsys):
    out = tmp_path / "hits.png"
    assert main(["evaluate", "shapes", "--count", "2", "--pictures", str(out)]) == 0
    assert read_image(out).ndim == 3
    assert main(["evaluate", "shapes", "--count", "2", "--pictures", str(tmp_path / "hits.jpg")]) == 2
    assert "ends in .png" in capsys.readouterr().err
