"""`nprcnn bench --device cuda`, tried on the double of CuPy (device_double.py) where there is no GPU. No time is asserted."""

import functools
import json
import math
import sys
from types import SimpleNamespace

import device_bodies as bodies
import device_double
import numpy as np
import pytest

from nprcnn import backend, cli, maskrcnn_resnet50_fpn
from nprcnn.bench import systems
from nprcnn.bench.cuda import clock as clocks
from nprcnn.bench.cuda import device, format_report, is_good, models, operations, run
from nprcnn.bench.cuda.rivals import Torch
from nprcnn.errors import BackendError, ConfigError
from nprcnn.kernels.cuda import conv2d as conv
from nprcnn.kernels.cuda_on_cpu import compiler

try:
    compiler.find()
except compiler.NoCompiler as error:
    pytest.skip(str(error).split("\n")[0], allow_module_level=True)

TINY = operations.Layer("tiny", 2, 8, 9, 7, 36, 3, 1)
PEAKS = {"gbyte_s": 100.0, "tflop_s": 1.0, "tflop_s_tf32": 8.0}
OPERATIONS = {
    **{kind: lambda up, rival, kind=kind: operations.convolution(up, rival, TINY, kind) for kind in ("conv2d", "conv2d_grad_x",
                                                                                                     "conv2d_grad_w")},
    "roi_align": lambda up, rival: operations.roi_align_forward(up, rival, (1, 5, 20, 30), 6, 3),
    "roi_align_grad": lambda up, rival: operations.roi_align_backward(up, rival, (1, 5, 20, 30), 6, 3),
    "nms": lambda up, rival: operations.nms_one_group(up, rival, 70),
    "batched_nms": lambda up, rival: operations.nms_of_classes(up, rival, 70, 3),
    "max_pool2d": lambda up, rival: operations.max_pool(up, rival, (1, 2, 10, 12)),
    "norm_relu": lambda up, rival: operations.norm_and_relu(up, rival, (1, 3, 5, 4)),
    "resize_nearest": lambda up, rival: operations.resizing(up, rival, "resize_nearest", (1, 2, 5, 4), (10, 8)),
    "resize_bilinear": lambda up, rival: operations.resizing(up, rival, "resize_bilinear", (1, 2, 5, 4), (11, 7)),
    "paste_masks": lambda up, rival: operations.pasting(up, rival, 3, (40, 400)),
    "roi_pool": lambda up, rival: operations.roi_pooling(up, rival, (1, 3, 20, 30), 5, 3),
}


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", device_double)
    monkeypatch.setattr(backend, "_active_on_gpu", None)
    device_double.reset()
    yield device_double
    device_double.reset()


def quick(cupy):
    return clocks.Clock(cupy, seconds=0, least=1, head_start=4)


class NumPyRival(SimpleNamespace):
    """Plays rivals.Torch with results of its own; torch's own are tried where it is installed."""

    device, results = "cpu", [np.zeros(1)]

    def precision(self, tf32):
        self.asked = [*getattr(self, "asked", []), tf32]
        return clocks.tf32_products(device_double, tf32)

    def numpy(self, result):
        return result


@functools.cache
def row_of(name):
    """Without a rival; made once, for the double's tensor cores are slow."""
    return run.time_operation(device_double, quick(device_double), OPERATIONS[name](device_double.asarray, None), None, True, PEAKS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_timed_in_every_version(double, name):
    row = row_of(name)
    assert set(row["versions"]) | set(row["refused"]) == set(OPERATIONS[name](double.asarray, None).versions) and row["rival"] == {}
    assert not any(version["wrong"] for version in row["versions"].values()), row
    for version in row["versions"].values():
        assert 0 < version["gpu_ms"] < 1e5 and 0 < version["call_ms"] < 1e5 and 0 < version["share"] < math.inf and version["kernels"]
        assert version["count"] == 1 and version["limit"] in ("memory", "arithmetic")
    json.dumps(row)


def test_all_versions_of_the_convolution_are_there(double):
    row = row_of("conv2d")
    assert not row["refused"] and len(row["versions"]) == len(conv.FILES)
    assert row["versions"]["5"]["precision"] == "tf32" and row["versions"]["4"]["precision"] == "float32"
    for kind in ("conv2d_grad_x", "conv2d_grad_w"):
        kernels = [tuple(version["kernels"]) for version in row_of(kind)["versions"].values()]
        assert len(set(kernels)) == len(kernels) >= 3       # a version that falls back to another one's kernels is not there again
    twice = OPERATIONS["max_pool2d"](double.asarray, None)
    twice = twice._replace(versions={"1": twice.versions["1"], "2": twice.versions["1"]})
    row = run.time_operation(double, quick(double), twice, None, True, PEAKS)
    assert list(row["versions"]) == ["1"] and row["refused"] == {"2": "runs the kernels of version 1"}


def test_the_layers_are_the_largest_of_the_model(monkeypatch):
    """Shapes as they come by when the backbone runs, with convolutions that compute nothing."""
    seen = {}

    def look(x, w, b=None, stride=1, padding=0, *more):
        stride = stride if np.ndim(stride) == 0 else stride[0]
        layer = operations.Layer("", *x.shape, len(w), w.shape[2], stride)
        assert w.shape == layer.w_shape and padding in (layer.padding, (layer.padding,) * 2)
        seen[layer] = layer.gflop
        return np.zeros(layer.y_shape, np.float32)
    nothing = backend.NUMPY._replace(conv2d=look, conv2d_fused=look, max_pool2d=lambda x, *args: (x[:, :, ::2, ::2], None),
                                     resize_nearest=lambda x, size: np.zeros((*x.shape[:2], *size), x.dtype))
    monkeypatch.setitem(backend.KERNEL_SETS, "nothing", nothing)
    model = maskrcnn_resnet50_fpn(91)
    with backend.use("nothing"):
        model.backbone.forward(np.zeros((1, 3, 800, 1216), np.float32), train=False)
    largest = sorted(seen.values(), reverse=True)
    chosen = {layer._replace(name="") for layer in operations.LAYERS}
    assert len(chosen) == 10 and chosen <= set(seen)
    assert sorted((layer.gflop for layer in chosen), reverse=True) == largest[:10]


def test_a_wrong_kernel_is_noticed(double):
    good = OPERATIONS["norm_relu"](double.asarray, None)
    rival = NumPyRival()
    for change, wrong in ((0, False), (0.1, True), (np.nan, True)):
        expected = good.versions["1"]().get() + np.float32(change)
        row = run.time_operation(double, quick(double), good._replace(rival=lambda: [expected]), rival, True, PEAKS)
        assert row["versions"]["1"]["wrong"] is wrong
    assert list(row["rival"]) == ["float32"] and not any(rival.asked)
    # another number of boxes
    nms = OPERATIONS["nms"](double.asarray, None)
    row = run.time_operation(double, quick(double), nms._replace(rival=lambda: [np.zeros(2, np.int64)]), rival, True, PEAKS)
    assert row["versions"]["1"]["wrong"] and row["versions"]["1"]["differs"] == math.inf
    # the convolution is timed in both precisions
    layer = OPERATIONS["conv2d"](double.asarray, None)
    layer = layer._replace(versions={"1": layer.versions["1"]}, rival=lambda: [layer.versions["1"]().get()])
    row = run.time_operation(double, quick(double), layer, rival, True, PEAKS)
    assert list(row["rival"]) == ["float32", "tf32"] and rival.asked[-2:] == [False, True] and not row["versions"]["1"]["wrong"]


def test_shares():
    memory = run._share(SimpleNamespace(gbyte=1.0, gflop=1.0), 20.0, PEAKS, False)       # 50 GB/s of 100; .05 TFLOP/s of 1
    assert (memory["limit"], memory["share"], memory["gbyte_s"], memory["tflop_s"]) == ("memory", 0.5, 50.0, 0.05)
    for tf32, share in ((False, 0.5), (True, 0.0625)):
        found = run._share(SimpleNamespace(gbyte=0.01, gflop=1000.0), 2000.0, PEAKS, tf32)
        assert (found["limit"], found["share"]) == ("arithmetic", share)
    assert run._share(SimpleNamespace(gbyte=1.0, gflop=None), 20.0, PEAKS, False)["tflop_s"] is None


def test_the_clock_is_ahead_of_the_gpu_and_synchronisations_are_counted(double):
    clock, calls = clocks.Clock(double, seconds=0, least=3, head_start=4), []
    timing = clock.time(lambda: calls.append(1))
    assert timing.count == 3 and len(calls) == 3 + 2 * 3
    array = double.zeros(3, np.float32)
    with clocks.count_synchronisations(double) as waits:
        array.get()
        double.nonzero(array)
        bool(array[:1])
    array.get()
    assert len(waits) == 3
    with clocks.tf32_products(double, True):
        assert double._core._routines_linalg.get_compute_type(np.float32) == 7
    assert double._core._routines_linalg.get_compute_type(np.float32) == 1


def test_a_stage_waits_for_the_gpu():
    events = []
    stopwatch = clocks.WaitingStopwatch(lambda: events.append("wait"))
    assert stopwatch.watched("a", lambda: events.append("work") or 7)() == 7
    assert events == ["wait", "work", "wait"] and set(stopwatch.seconds) == {"a"}


def test_what_the_numbers_depend_on(double, monkeypatch):
    found = device.describe(double)
    assert found["device"] == "a double" and found["driver_cuda"] == "12.8" and found["compute_capability"] == "90"
    assert found["gbyte_s_by_attributes"] == 16.0 and found["tflop_s_by_attributes"] == pytest.approx(0.512)
    monkeypatch.setitem(double.ATTRIBUTES, "ClockRate", 0)       # newer drivers tell no clock
    assert device.describe(double)["tflop_s_by_attributes"] is None
    peaks = device.measure_peaks(double, quick(double), True, 4096, 16)
    assert set(peaks) == {"gbyte_s", "tflop_s", "tflop_s_tf32"} and min(peaks.values()) > 0


# ---- the whole model

@pytest.fixture
def tiny_models(monkeypatch):
    def build(threads):
        return systems.Nprcnn(bodies.MODELS["pyramid"]().to("cuda"), bodies.IMAGES[0], bodies.TARGETS[0])
    monkeypatch.setattr(models, "build_ours", build)
    monkeypatch.setattr(run, "Clock", quick)
    monkeypatch.setattr(run, "measure_peaks", functools.partial(device.measure_peaks, copied=4096, side=16))
    monkeypatch.setattr(run, "makers", lambda: {name: OPERATIONS[name] for name in ("nms", "max_pool2d")})
    monkeypatch.setattr(run, "has_tf32", lambda description: False)     # the double plays tensor cores too slowly for a model
    monkeypatch.setattr(models, "MODES", {name: models.MODES[name] for name in ("float32", "tf32")})


def no_torch(*args):
    raise ConfigError("torch and torchvision are left out: torch is not installed")


def test_the_command_with_a_gpu(double, tiny_models, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "Torch", no_torch)
    assert cli.main(["bench", "--device", "cuda", "--rounds", "1", "--json", str(tmp_path / "b.json")]) == 0
    text, result = capsys.readouterr().out, json.loads((tmp_path / "b.json").read_text())
    assert result["errors"] == {} and result["left_out"] == {"torch": "torch and torchvision are left out: torch is not installed"}
    assert {row["name"] for row in result["kernels"]} == {"nms", "max_pool2d"} and result["device"]["device"] == "a double"
    assert set(result["models"]) == {"float32"} and "tflop_s_tf32" not in result["peaks"]
    for found in result["models"].values():
        ours = found["systems"]["nprcnn"]
        assert set(ours) == {"predict", "stages", "train", "train_parts", "gpu_memory_bytes"} and ours["predict"]["median"] > 0
        assert set(ours["train_parts"]) == {"forward", "backward", "SGD"}
        assert found["synchronisations"] == {"predict": 18, "train": found["synchronisations"]["train"]}
        assert found["copies"]["predict"][-1].startswith("8 copies from the GPU")
    for word in ("a double", "rival / this", "the whole model in float32", "waits for the GPU 18 times", "torch is not installed"):
        assert word in text, word
    assert cli.main(["bench", "--device", "cuda", "--only", "nms"]) == 0
    assert "max_pool2d" not in capsys.readouterr().out


def test_what_fails_is_written_down_and_the_rest_goes_on(double, tiny_models, monkeypatch, capsys):
    def broken(up, rival):
        raise double.OutOfMemoryError("Out of memory allocating 7 bytes")
    monkeypatch.setattr(run, "Torch", no_torch)
    monkeypatch.setattr(run, "makers", lambda: {"broken": broken, "nms": OPERATIONS["nms"]})
    monkeypatch.setattr(models, "build_ours", broken)
    assert cli.main(["bench", "--device", "cuda"]) == 1
    text = capsys.readouterr().out
    assert "broken: OutOfMemoryError: Out of memory allocating 7 bytes" in text and "70 boxes" in text


def test_the_modes_of_the_model_choose_the_convolutions(double):
    """float32 is what a model does by itself; the others are asked for."""
    chosen = {}
    for mode, choices in models.MODES.items():
        with backend.use("cupy", **choices) as kernels:
            assert backend.active(double.zeros(1)) is kernels
            chosen[mode] = [getattr(kernels, name) for name in ("conv2d", "conv2d_fused", "conv2d_grad_x", "conv2d_grad_w")]
    assert chosen["float32"] == [conv.conv2d, conv.conv2d_fused, conv.conv2d_grad_x, conv.conv2d_grad_w]
    assert [f.keywords for f in chosen["tf32"]] == [{"tf32": True}] * 4
    *rounded, grad_w = chosen["float32, Winograd"]
    assert [f.keywords for f in rounded] == [{"winograd": True}] * 3 and grad_w is conv.conv2d_grad_w
    with pytest.raises(BackendError, match="not of \"numpy\""):
        backend.use("numpy", tf32=True)


def test_tf32_needs_tensor_cores(double, monkeypatch):
    monkeypatch.setattr(double.Device, "compute_capability", "75")
    with pytest.raises(BackendError, match="this GPU has 7.5"):
        backend.use("cupy", tf32=True)
    row = run.time_operation(double, quick(double), convolution_v5(double), None, False, PEAKS)
    assert row["versions"] == {} and "this GPU has 7.5" in row["refused"]["5"]


def convolution_v5(double):
    operation = OPERATIONS["conv2d"](double.asarray, None)
    return operation._replace(versions={"5": operation.versions["5"]})


@pytest.mark.parametrize("arguments", [["--device", "cuda", "--sweep"], ["--device", "cuda", "--kernels", "numpy"], ["--only", "nms"]])
def test_arguments_of_the_other_device(double, arguments, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cli.main(["bench", "--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("nprcnn bench: computing on a GPU needs CuPy") and captured.err.count("\n") == 1 and not captured.out


def test_agreement():
    mine = SimpleNamespace(boxes=np.array([[0, 0, 9, 9], [0, 0, 9, 9.5], [5, 5, 7, 7]], np.float32), labels=np.array([1, 2, 1]),
                           scores=np.array([0.9, 0.8, 0.7], np.float32))

    def theirs(boxes, labels):
        scores = np.linspace(0.9, 0.7, len(labels), dtype=np.float32)
        return {name: SimpleNamespace(numpy=lambda a=a: np.asarray(a)) for name, a in (("boxes", boxes), ("labels", labels),
                                                                                       ("scores", scores))}
    same = models.agreement(mine, theirs(mine.boxes[[1, 0, 2]] + 0.01, [2, 1, 1]))       # two that nearly tie have changed places
    assert same["equal"] and same["same"] == 3 and same["largest_box_difference"] == pytest.approx(0.01, abs=1e-5)
    assert not models.agreement(mine, theirs(mine.boxes + 1, mine.labels))["equal"]
    assert not models.agreement(mine, theirs(mine.boxes[:2], mine.labels[:2]))["equal"]
    assert not models.agreement(mine, theirs(mine.boxes, [1, 2, 3]))["equal"]


def test_is_good():
    row = {"versions": {"1": {"wrong": False}}}
    assert is_good({"errors": {}, "kernels": [row]})
    assert not is_good({"errors": {"nms": "x"}, "kernels": [row]})
    assert not is_good({"errors": {}, "kernels": [row, {"versions": {"1": {"wrong": True}}}]})
    for equal in (True, False):
        assert is_good({"errors": {}, "models": {"float32": {"agreement": {"equal": equal}}}}) is equal
        assert is_good({"errors": {}, "models": {"tf32": {"agreement": {"equal": equal}}}})


@pytest.mark.parametrize("name", OPERATIONS)
def test_torch_does_the_same(double, name):
    """Where torch and torchvision are installed: their calls, on the CPU."""
    pytest.importorskip("torchvision")
    rival = Torch("cpu")
    row = run.time_operation(double, quick(double), OPERATIONS[name](double.asarray, rival), rival, True, PEAKS)
    assert "float32" in row["rival"] and row["versions"] and not any(version["wrong"] for version in row["versions"].values()), row
