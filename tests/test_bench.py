import json
import math

import numpy as np
import pytest
from small_models import small_model

from nprcnn import backend, bench, cli
from nprcnn.bench import memory, systems
from nprcnn.bench.stopwatch import STAGES, Stopwatch
from nprcnn.bench.subject import CLASSES, OBJECTS, scene, seeded_state
from nprcnn.bench.sweep import line
from nprcnn.bench.work import Work
from nprcnn.errors import ConfigError


@pytest.fixture(scope="module")
def tiny():
    image, target = scene((60, 80))
    target["labels"] = target["labels"] % 3 + 1
    return systems.Nprcnn(small_model("frozen", None, np.float32, rpn_batch_size_per_image=32, box_batch_size_per_image=16), image, target)


@pytest.fixture(scope="module")
def result(tiny):
    found = bench.bench([tiny], rounds=1, training=True, memory=False, say=lambda text: None)
    found["sweep"] = bench.sweep(1, (64, 96), (10, 20), (1, 2), tiny, say=lambda text: None)
    return found


def test_every_stage_is_timed_and_the_work_is_counted(result, tiny):
    stages = result["systems"]["nprcnn"]["stages"]
    assert set(stages) == set(STAGES)
    assert all(0 < seconds < math.inf for seconds in stages.values())
    assert set(result["work"]["direct"]) == {"backbone", "FPN", "RPN head", "box head", "mask head"}
    for stage, direct in result["work"]["direct"].items():
        assert direct / 4 <= result["work"]["least"][stage] <= direct
    head = tiny.model.roi_heads
    rois = 30  # rpn_post_nms_top_n_test
    weights = [layer.weight.data.size for layer in (head.box_head.fc6, head.box_head.fc7, head.box_predictor.cls_score,
                                                    head.box_predictor.bbox_pred)]
    assert result["work"]["direct"]["box head"] <= 2 * rois * sum(weights) / 1e9
    assert set(result["train_stages"]["backward"]) == set(STAGES) - {"transform", "detections", "paste"}
    assert set(result["systems"]["nprcnn"]["train_parts"]) == {"forward", "backward", "SGD"}
    assert all(math.isfinite(loss) for loss in result["systems"]["nprcnn"]["losses"].values())


def test_nothing_stays_replaced(result, tiny):
    assert "counting" not in backend.KERNEL_SETS and backend.active().name != "counting"
    assert "forward" not in vars(tiny.model.backbone.body) and "_detections" not in vars(tiny.model)
    assert (tiny.model.min_size, tiny.model.rpn_post_nms_top_n_test) == (96, 30)


def test_the_report_and_the_files(result, tmp_path):
    text = bench.format_report(result)
    for stage in STAGES:
        assert any(row.startswith(stage + " ") for row in text.splitlines()), stage
    assert "GFLOP/s" in text and "cost against pixels" in text and "stages of nprcnn's training step" in text
    assert json.loads(json.dumps(result)) == result
    bench.plot(result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_a_stage_inside_another_is_counted_once(monkeypatch):
    clock = iter([0.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr("nprcnn.bench.stopwatch.time.perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()
    inner = stopwatch.watched("inner", lambda: stopwatch.now)
    assert stopwatch.watched("outer", inner)() == "inner"
    assert stopwatch.seconds == {"inner": 3.0, "outer": 17.0} and stopwatch.now is None


def test_work_of_a_convolution():
    work = Work(Stopwatch())
    conv = work.convolution(backend.NUMPY.conv2d)
    x = np.ones((1, 4, 8, 8), np.float32)
    conv(x, np.ones((6, 4, 3, 3), np.float32), None, 1, 1)      # 8 * 8 * 6 outputs of 36 products
    assert work.direct["other"] == 2 * 8 * 8 * 6 * 36 / 1e9 and work.least["other"] == work.direct["other"] / 4
    conv(x, np.ones((6, 4, 3, 3), np.float32), None, 2, 1)      # stride 2: no Winograd
    assert work.least["other"] == pytest.approx((2 * 8 * 8 * 6 * 36 / 4 + 2 * 4 * 4 * 6 * 36) / 1e9)


def test_the_line_through_a_sweep():
    found = line([1, 2, 3], [3.0, 5.0, 7.0])
    assert found["slope"] == pytest.approx(2) and found["intercept"] == pytest.approx(1)
    assert found["largest_residual"] < 1e-12
    assert line([1, 2, 3], [3.0, 6.0, 7.0])["largest_residual"] == pytest.approx(0.125)  # the line is 4/3 + 2 x


def test_the_scene_and_the_weights_are_the_same_everywhere():
    """Frozen random streams; these numbers are what they are."""
    image, target = scene()
    assert image.shape == (480, 730, 3) and len(target["boxes"]) == OBJECTS == len(target["masks"])
    assert target["labels"].min() >= 1 and target["labels"].max() < CLASSES
    assert (scene()[0] == image).all()
    one = seeded_state({"a.weight": (4, 3, 3, 3)})["a.weight"]
    assert one.dtype == np.float32 and (one == seeded_state({"b.bias": (2,), "a.weight": (4, 3, 3, 3)})["a.weight"]).all()


def test_a_system_that_is_not_installed_is_left_out(monkeypatch, tiny):
    monkeypatch.setattr(systems.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="torchvision is not installed"):
        systems.build("torchvision", 1)
    found = bench.bench([tiny, "openvino"], rounds=1, memory=False, say=lambda text: None)
    assert list(found["systems"]) == ["nprcnn"] and "openvino" in bench.format_report(found)


def test_peak_memory_of_this_process():
    assert 20 < memory.resident_peak_mib() < 1e5


def test_the_command_checks_its_files_first(capsys, tmp_path):
    assert cli.main(["bench", "--json", str(tmp_path)]) == 2
    assert "folder" in capsys.readouterr().err
