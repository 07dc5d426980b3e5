"""A whole model on a GPU, and all that can go wrong there, with a double of CuPy (device_double.py) where there is no GPU."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import device_bodies as bodies
import device_double
import numpy as np
import pytest
from small_models import tiny_image_model

import nprcnn
import nprcnn.train
from nprcnn import backend, devices
from nprcnn.data import Shapes
from nprcnn.errors import BackendError
from nprcnn.kernels.cuda_on_cpu import compiler

try:
    compiler.find()
except compiler.NoCompiler as error:
    pytest.skip(str(error).split("\n")[0], allow_module_level=True)


@pytest.fixture
def double(monkeypatch):
    """CuPy's double in its place; what the package remembers of it is forgotten afterwards."""
    monkeypatch.setitem(sys.modules, "cupy", device_double)
    monkeypatch.setattr(backend, "_active_on_gpu", None)
    device_double.reset()
    yield device_double
    device_double.reset()


# ---- the model

@pytest.mark.parametrize("name", bodies.MODELS)
def test_predict_equals_numpy(double, name):
    # (a box's corners differ by some 1e-4 of a pixel; where no corner is rounded that moves the mask's edge, here over one pixel's centre)
    bodies.predict_equals_numpy(bodies.MODELS[name], other_pixels=1e-4 if "Detectron2" in name else 0)


@pytest.mark.parametrize("name", bodies.MODELS)
def test_training_steps_equal_numpy(double, name):
    bodies.steps_equal_numpy(bodies.MODELS[name], steps=2 if name == "pyramid" else 1)


def test_what_crosses(double):
    """Proposals, detections and pasted masks come to the CPU, and of a training step proposals and losses; no feature map does."""
    predicting, training = bodies.copies_of(bodies.MODELS["pyramid"], 2)
    print(f"predict, 2 images:\n{predicting}\na training step, 2 images:\n{training}")       # pytest -rP shows it
    assert {copy.name for copy in predicting} == {"proposals", "detections", "pasted masks"}
    assert {copy.name for copy in training} == {"proposals", "losses", "norms of the gradients"}
    assert (len(predicting), len(training)) == (2 * 8, 2 * 3 + 5 + 1)


def test_the_gpu_is_waited_for_a_few_times_an_image_whatever_the_depth(double):
    """Copies, and lengths that depend on the data: counted by the double."""
    def waits(images, **options):
        model = tiny_image_model(dtype=np.float32, **options).to("cuda")
        double.reset()
        model.predict(bodies.IMAGES[:images])
        predicting = len(double.syncs)
        losses, cache = model.losses(bodies.IMAGES[:images], bodies.TARGETS[:images], np.random.default_rng(0))
        before = len(double.syncs)
        model.backward(cache)
        assert len(double.syncs) == before      # a backward pass never waits
        return predicting, before - predicting
    assert waits(1) == (18, 8)
    assert waits(2) == (36, 16)
    # more feature maps: two convolutions more in the RPN's head on each of 5 levels, two more in the mask head
    assert waits(1, rpn_convs=3, mask_channels=(8,) * 4) == (18, 8)


def test_deterministic_runs_have_the_same_bits(double, monkeypatch):
    """The double's threads in two orders, as no two runs of a GPU are alike."""
    results = {}
    for deterministic in (True, False):
        for order in ("1", "7"):
            monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
            results.setdefault(deterministic, set()).add(bodies.bytes_after_steps(bodies.MODELS["pyramid"], deterministic))
    assert len(results[True]) == 1
    assert len(results[False]) == 2     # or this test could not fail: atomics do depend on the order


def test_a_trace_comes_to_the_cpu_and_changes_nothing(double):
    model, trace = bodies.MODELS["pyramid"]().to("cuda"), nprcnn.Trace()
    found, again = model.predict(bodies.IMAGES[0]), model.predict(bodies.IMAGES[0], trace=trace)
    np.testing.assert_array_equal(found.boxes, again.boxes)
    values = [v for value in trace.values.values() for v in (value if isinstance(value, list) else [value])]
    assert len(trace.values) > 20 and all(isinstance(v, (np.ndarray, np.generic)) for v in values)


def test_to_and_back_and_the_state(double):
    model = bodies.MODELS["pyramid"]()
    state = {name: array.copy() for name, array in model.state_dict().items()}
    assert model.to("cuda") is model
    assert all(isinstance(p.data, double.ndarray) for p in model.parameters())
    on_gpu = model.state_dict()
    assert all(isinstance(array, np.ndarray) for array in on_gpu.values())
    np.testing.assert_equal(on_gpu, state)
    model.load_state_dict({name: array + 1 for name, array in state.items()})
    assert all(isinstance(p.data, double.ndarray) for p in model.parameters())
    model.to("cuda").to("cpu")
    np.testing.assert_equal(model.state_dict(), {name: array + 1 for name, array in state.items()})


class TwoImages:
    """A data source."""

    class_names = ("background", "a", "b", "c")

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return bodies.IMAGES[i], bodies.TARGETS[i]


def test_the_training_loop_on_the_gpu(double):
    histories = []
    with nprcnn.use("numpy"):
        for device in ("cpu", "cuda"):
            model = tiny_image_model(dtype=np.float32).to(device)
            histories.append(nprcnn.train.train(model, TwoImages(), steps=2, batch_size=1, accumulate=2, warmup_steps=0, progress=False))
            assert all(isinstance(p.data, double.ndarray if device == "cuda" else np.ndarray) for p in model.parameters())
    for on_cpu, on_gpu in zip(*histories):
        for name in ("loss", "loss_mask", "grad_norm"):
            np.testing.assert_allclose(on_gpu[name], on_cpu[name], rtol=1e-4)


def test_a_training_on_the_gpu_goes_on_from_its_checkpoint(double, tmp_path):
    from nprcnn.train.checkpoint import read_checkpoint, restore, save_checkpoint
    from nprcnn.train.sgd import SGD
    model = bodies.MODELS["pyramid"]().to("cuda")
    optimizer = SGD(model.parameters())
    for velocity in optimizer.velocity:
        velocity += 1
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, 3, {})
    for where, kind in (("cuda", double.ndarray), ("cpu", np.ndarray)):
        other = tiny_image_model(dtype=np.float32).to(where)
        fresh = SGD(other.parameters())
        restore(read_checkpoint(tmp_path / "c.safetensors"), other, fresh, tmp_path)
        assert all(isinstance(v, kind) for v in fresh.velocity) and all(isinstance(p.data, kind) for p in other.parameters())
        assert all((devices.to_host(v, "") == 1).all() for v in fresh.velocity)


def test_a_training_that_diverges_on_the_gpu_says_where(double):
    from nprcnn.train.gradients import Part
    from nprcnn.train.guards import find_nonfinite
    model = bodies.MODELS["pyramid"]().to("cuda")
    weight = model.roi_heads.box_predictor.cls_score.weight
    weight.data = weight.data * np.float32(1e38)
    part = Part(bodies.IMAGES, bodies.TARGETS, [np.random.default_rng(i) for i in range(2)], ["a", "b"])
    with np.errstate(all="ignore"):
        place, _ = find_nonfinite(model, [part])
    assert place is not None and place.name.startswith(("roi_heads", "losses"))


# ---- choosing

def test_kernels_follow_the_arrays(double):
    on_cpu, on_gpu = np.zeros(1), double.zeros(1)
    with nprcnn.use("numpy"):
        assert backend.active().name == backend.active(on_cpu).name == "numpy" and backend.active(on_gpu).name == "cupy"
        with nprcnn.use("cupy", deterministic=True) as ordered:
            assert backend.active(on_gpu) is ordered and backend.active(on_cpu).name == "numpy"
            assert ordered.roi_align_grad.keywords == {"deterministic": True}
        assert backend.active(on_gpu).roi_align_grad is not ordered.roi_align_grad
    with pytest.raises(BackendError, match="numba-cuda"):
        backend.kernel_set("numba-cuda", deterministic=True)
    assert backend.kernel_set("cuda-on-cpu", deterministic=True).max_pool2d_grad.keywords == {"deterministic": True}
    assert backend.kernel_set("numpy", deterministic=True) is backend.NUMPY


def test_copies_are_counted_by_name(double):
    a = double.zeros((3, 2), np.float32)
    with devices.count_copies() as outer:
        devices.to_host(a, "a")
        with devices.count_copies() as inner:
            devices.to_host([a, np.zeros(2), 7, None], "b")
    assert outer == [("a", 24), ("b", 24)] and inner == [("b", 24)]
    assert str(outer).splitlines() == ["a    1 x         24 bytes", "b    1 x         24 bytes", "2 copies from the GPU, 48 bytes"]
    devices.to_host(a, "c")
    assert len(outer) == 2
    host = np.zeros(3)
    assert devices.to_host(host, "d") is host


def test_the_double_refuses_what_cupy_refuses(double):
    a, b = double.zeros(3, np.float32), np.zeros(3, np.float32)
    for wrong in (lambda: np.asarray(a), lambda: a + b, lambda: b + a, lambda: np.concatenate([a, b]), lambda: np.ascontiguousarray(a),
                  lambda: np.add.at(a, [0], 1), lambda: np.unique(a), lambda: np.full(3, 1.0, like=a), lambda: b[a],
                  lambda: double.RawModule(code="").get_function("none")):
        with pytest.raises((TypeError, RuntimeError)):
            wrong()
    assert (a + np.float32(1)).dtype == np.float32 and (np.exp(a) * 2.5).dtype == np.float32
    before = len(double.uploads)
    assert a[b.astype(int)].shape == (3,) and len(double.uploads) == before + 1


def test_the_double_takes_what_a_raw_kernel_takes(double):
    """Python's numbers are 8 bytes to RawKernel, and NumPy's arrays no pointers: launch.py lets neither through, and the double would notice."""
    code = 'extern "C" __global__ void put(float* y, int i, float value) { if (threadIdx.x == 0) y[i] = value; }'
    kernel, y = double.RawModule(code=code, options=("-std=c++17",)).get_function("put"), double.zeros(4, np.float32)
    kernel((1,), (32,), (y, np.int32(2), np.float32(7)))
    assert y.get().tolist() == [0, 0, 7, 0]
    for wrong in ((y, 2, np.float32(7)), (y, np.int32(2), 7.0), (y, np.int32(2), np.float64(7)), (y, np.int64(2), np.float32(7)),
                  (np.zeros(4, np.float32), np.int32(2), np.float32(7)), (y, np.int32(2), "7"), (y, np.int32(2)), (y.get(), np.int32(2), np.float32(7)),
                  (double.zeros(4, np.float64), np.int32(2), np.float32(7))):
        with pytest.raises(TypeError):
            kernel((1,), (32,), wrong)
    with pytest.raises(TypeError):
        kernel([1], (32,), (y, np.int32(2), np.float32(7)))
    with pytest.raises(TypeError):
        double.RawModule(code=code, options=["-std=c++17"])
    with pytest.raises(RuntimeError, match="65535"):
        kernel((1, 70000), (32,), (y, np.int32(2), np.float32(7)))


def test_shared_memory_that_is_asked_for_and_declared_fits_together():
    """A GPU refuses a launch whose 48 KB are exceeded by both together; what is declared is known from NVIDIA's compiler."""
    from nprcnn.kernels.cuda import nms, nvrtc, roi_align
    try:
        library = nvrtc.load()
    except nvrtc.NoNvrtc as error:
        pytest.skip(str(error))
    for name in ("float32", "float64"):
        declared = nvrtc.compile_file(library, roi_align.FORWARD[3], "sm_90", name)[0]["roi_align"].shared
        asked = [roi_align._shared_bytes((1, bins), np.dtype(name)) for bins in range(1, 500) if roi_align.fits_v3((1, bins), np.dtype(name))]
        assert 40 * 1024 < max(asked) + declared <= 48 * 1024
    for version in nms.FILES:
        declared = nvrtc.compile_file(library, nms.FILES[version], "sm_90")[0]["nms_reduce"].shared
        assert 40 * 1024 < nms.MAX_BOXES // 8 + declared <= 48 * 1024


def test_the_double_has_nothing_that_cupy_lacks():
    """CuPy's names can be looked at without a GPU."""
    cupy = pytest.importorskip("cupy")
    names = [*device_double.UFUNCS, *device_double.FUNCTIONS, "__version__", "matmul", "asarray", "array", "ascontiguousarray", "empty", "zeros", "ones", "full", "arange",
             "result_type", "argsort", "take", "split", "flatnonzero", "nonzero", "get_array_module", "get_default_memory_pool", "RawModule"]
    assert [name for name in names if not hasattr(cupy, name)] == []
    for name in ("Event", "get_elapsed_time", "Device", "set_allocator"):
        assert hasattr(cupy.cuda, name), name
    for name in ("getDevice", "deviceSynchronize", "getDeviceProperties", "deviceGetAttribute", *(f"cudaDevAttr{a}" for a in device_double.ATTRIBUTES)):
        assert hasattr(cupy.cuda.runtime, name), name
    assert cupy.lib.stride_tricks.as_strided and cupy._core.syncdetect._declare_synchronize
    assert all(hasattr(cupy._core._routines_linalg, name) for name in vars(device_double._core._routines_linalg))
    pool = [name for name in vars(device_double.MemoryPool) if not name.startswith("_")]
    assert [name for name in pool if not hasattr(cupy.cuda.MemoryPool, name)] == []
    public = [name for name in vars(device_double.ndarray) if not name.startswith("_")]
    assert [name for name in public if not hasattr(cupy.ndarray, name)] == []
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError) and issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)


# ---- what can go wrong

def asking(monkeypatch, cupy):
    """Ask for the GPU in every way there is, with `cupy` in the module's place; returns the one message. The CPU still works afterwards."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backend, "_active_on_gpu", None)
    model, messages = tiny_image_model(dtype=np.float32), set()
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    for ask in (lambda: model.to("cuda"), lambda: nprcnn.use("cupy"), lambda: backend.kernel_set("cupy")):
        with pytest.raises(BackendError) as caught:
            ask()
        messages.add(str(caught.value))
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before
    with nprcnn.use("numpy"):
        assert len(model.predict(bodies.IMAGES[0]).boxes)
    assert len(messages) == 1
    message = messages.pop()
    assert "\n" not in message and "Traceback" not in message
    return message


def cupy_with(**changes):
    """The double with another driver."""
    def fails(text):
        def function():
            raise device_double.CUDARuntimeError(text)
        return function
    functions = {name: fails(value) if isinstance(value, str) else (lambda value=value: value) for name, value in changes.items()}
    runtime = SimpleNamespace(**{**vars(device_double.runtime), **functions})
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=device_double.cuda.nvrtc, memory=device_double.cuda.memory))


TOO_OLD = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"


def test_cupy_is_not_installed(monkeypatch):
    message = asking(monkeypatch, None)
    assert "not installed" in message and "nprcnn[cuda13]" in message and "nprcnn[cuda12]" in message


def test_there_is_no_gpu(monkeypatch):
    message = asking(monkeypatch, cupy_with(getDeviceCount="cudaErrorNoDevice: no CUDA-capable device is detected"))
    assert "there is no GPU" in message and "no CUDA-capable device" in message and '"cpu"' in message
    assert "there is no GPU" in asking(monkeypatch, cupy_with(getDeviceCount=0))


def test_there_is_no_driver(monkeypatch):
    """CUDA's error is that of a driver that is too old; its version then is 0. (As CuPy 14.2 does on a machine without one.)"""
    message = asking(monkeypatch, cupy_with(getDeviceCount=TOO_OLD, driverGetVersion=0))
    assert "no NVIDIA driver is installed" in message


def test_the_driver_is_too_old(monkeypatch):
    message = asking(monkeypatch, cupy_with(getDeviceCount=TOO_OLD, driverGetVersion=11040, runtimeGetVersion=13000))
    assert "driver is too old" in message and "11.4" in message and "13.0" in message and "update the driver" in message


@pytest.fixture
def broken_cupy(tmp_path, monkeypatch):
    """A package cupy whose import fails."""
    def write(line):
        (tmp_path / "cupy").mkdir()
        (tmp_path / "cupy" / "__init__.py").write_text(line)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.setattr(backend, "_active_on_gpu", None)
    return write


@pytest.mark.parametrize("line, words", [
    ("raise ImportError('libcublas.so.11: cannot open shared object file\\nsee the manual')", ["not the build for this machine", "libcublas.so.11:"]),
    ("import fastrlock_that_is_not_there", ["not all that it needs", "fastrlock_that_is_not_there"]),
])
def test_the_wrong_build_of_cupy(broken_cupy, line, words):
    broken_cupy(line)
    with pytest.raises(BackendError) as caught:
        tiny_image_model().to("cuda")
    assert all(word in str(caught.value) for word in [*words, "nprcnn[cuda13]"]) and "\n" not in str(caught.value)


def test_cupy_without_the_compiler(monkeypatch):
    def missing():
        raise RuntimeError("CuPy failed to load libnvrtc.so.12: OSError")
    cupy = cupy_with()
    cupy.cuda.nvrtc = SimpleNamespace(getVersion=missing)
    message = asking(monkeypatch, cupy)
    assert "NVRTC" in message and "libnvrtc.so.12" in message and "nprcnn[cuda13]" in message


def test_the_memory_is_full(double):
    model = bodies.MODELS["pyramid"]().to("cuda")
    found = model.predict(bodies.IMAGES[0])
    used = double._used
    for share in (0, 20_000, 200_000):        # at the first array, and in the middle
        for call in (lambda: model.predict(bodies.IMAGES[0]),
                     lambda: model.losses(bodies.IMAGES, bodies.TARGETS, np.random.default_rng(0))):
            double.memory_limit = used + share
            with pytest.raises(BackendError, match=r"memory of the GPU is full \(Out of memory allocating .*fewer at once"):
                call()
            double.memory_limit = None
    np.testing.assert_array_equal(model.predict(bodies.IMAGES[0]).boxes, found.boxes)      # the model still works
    losses, cache = model.losses(bodies.IMAGES, bodies.TARGETS, np.random.default_rng(0))
    double.memory_limit = double._used
    with pytest.raises(BackendError, match="memory of the GPU is full"):
        model.backward(cache)
    other = tiny_image_model(dtype=np.float32)
    double.memory_limit = double._used + 10_000     # of its 80,000 bytes
    with pytest.raises(BackendError, match="memory of the GPU is full"):
        other.to("cuda")
    assert all(isinstance(p.data, np.ndarray) for p in other.parameters())


def test_the_command_line_asks_for_a_gpu(double, monkeypatch, tmp_path, capsys):
    """With one, and without: one line, exit code 2."""
    from nprcnn.cli import main
    from nprcnn.data.images import save_image
    save_image(tmp_path / "scene.png", Shapes.held_out(1)[0][0])
    monkeypatch.chdir(tmp_path)
    predict = ["predict", "scene.png", "--device", "cuda"]
    assert not main(predict)
    assert "objects with a score" in capsys.readouterr().out and double.syncs and (tmp_path / "scene_found.png").exists()
    monkeypatch.setitem(sys.modules, "cupy", None)
    for command in (predict, ["train", "--data", "shapes:2", "--out", str(tmp_path / "run"), "--device", "cuda"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "computing on a GPU needs CuPy" in error and "Traceback" not in error and error.count("\n") == 1


def test_there_is_no_such_device():
    with pytest.raises(BackendError, match="'gpu'; choose one of: cpu, cuda"):
        tiny_image_model().to("gpu")


def test_the_environment_may_name_the_set():
    code = "import nprcnn.backend as b; print(b.active().name)"
    run = subprocess.run([sys.executable, "-c", f"import sys; sys.modules['cupy'] = None; {code}"], cwd=Path(__file__).parent.parent,
                         env={"NPRCNN_KERNELS": "cupy"}, capture_output=True, text=True)
    assert run.returncode == 1 and "BackendError" in run.stderr and "not installed" in run.stderr
