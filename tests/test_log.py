import json

import numpy as np
import pytest

from nprcnn.data.images import read_image
from nprcnn.models.decisions import LOSSES
from nprcnn.train.log import Log, draw_curves, read_log, smooth


def row(step):
    return {"step": step, **dict.fromkeys(LOSSES, 1.0 / (step + 1)), "loss": 5.0 / (step + 1), "lr": 0.1}


def validation(step, ap=0.3):
    return {"step": step, "validation": {"bbox": {"AP": ap, "AP50": 0.6}, "segm": {"AP": ap, "AP50": 0.5}}}


def test_lines_are_in_the_file_at_once(tmp_path):
    log = Log(tmp_path / "h.jsonl")
    log.append(row(0))
    assert json.loads((tmp_path / "h.jsonl").read_text()) == row(0) == log.rows[0]
    log.sync(), log.close()


def test_going_on_cuts_later_lines_off(tmp_path):
    path = tmp_path / "h.jsonl"
    whole = [row(0), row(1), validation(1), row(2), validation(2)]
    path.write_text("".join(json.dumps(r) + "\n" for r in whole) + '{"step": 3, "lo')
    log = Log(path, start=2)
    assert log.rows == whole[:3] == read_log(path)
    log.append(row(2))
    log.close()
    assert read_log(path) == [*whole[:3], row(2)] and read_log(path, before=1) == [row(0)]


def test_beginning_anew_empties_it(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text(json.dumps(row(0)) + "\n")
    Log(path).close()
    assert path.read_text() == ""


def test_smooth():
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0, 5.0, 7.0]), 2), [1, 2, 4, 6])
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0]), 9), [1, 2])


WITHOUT_MASKS = [{k: v for k, v in row(0).items() if k != "loss_mask"}, {"step": 0, "validation": {"bbox": {"AP": 0, "AP50": 0}}}]


@pytest.mark.parametrize("rows", [[row(0)], [row(i) for i in range(60)], [row(i) for i in range(4000)],
                                  [row(0), validation(0, -1.0), row(1), validation(1)], WITHOUT_MASKS])
def test_curves(tmp_path, rows):
    """More rows, more ink; no masks and undefined AP (-1) are no trouble."""
    draw_curves(rows, tmp_path / "c.png", "a run")
    picture = read_image(tmp_path / "c.png")
    assert picture.shape == (460, 1000, 3) and (picture < 128).any(axis=2).mean() > 0.005
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_no_rows_no_picture(tmp_path):
    draw_curves([], tmp_path / "c.png")
    assert not list(tmp_path.iterdir())
