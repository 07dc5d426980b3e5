"""The machine that runs CUDA kernels on the CPU: what it takes and refuses, what it counts, which planted mistakes it finds."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nprcnn
from nprcnn import backend
from nprcnn.data.shapes import Shapes
from nprcnn.kernels.cuda import conv2d as conv
from nprcnn.kernels.cuda import launch, nms, roi_align
from nprcnn.kernels.cuda_on_cpu import compiler, inspection, kernel_set, loader
from nprcnn.kernels.cuda_on_cpu.inspection import inspect, report, report_lines
from nprcnn.kernels.cuda_on_cpu.loader import LaunchError, Module

try:
    compiler.find()
except compiler.NoCompiler as error:
    pytest.skip(str(error).split("\n")[0], allow_module_level=True)

PLANTED = Path(__file__).with_name("planted.cu")
PLANTED_CODE = f'#line 1 "{PLANTED}"\n{PLANTED.read_text()}'


@pytest.fixture(scope="module")
def planted():
    """Run one kernel of planted.cu; with the inspector, or as a plain program."""
    modules = {}

    def run(name, mode="inspect", blocks=1):
        if mode not in modules:
            modules[mode] = Module(PLANTED_CODE, mode=mode, name="planted")
        x, y = np.arange(250, dtype=np.float32), np.zeros(64, np.float32)
        inspection.watched(modules[mode].get_function(name))((blocks,), (64,), (x, y, np.int32(250)), shared_mem=256)
        return x, y
    return run


# ---- running ----

@pytest.mark.parametrize("order", ["0", "1", "5"])
@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("mode", ["run", "inspect"])
def test_a_correct_kernel(planted, mode, workers, order, monkeypatch):
    monkeypatch.setenv("CUDA_ON_CPU_WORKERS", workers)
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    x, y = planted("correct", mode, blocks=4)
    np.testing.assert_array_equal(x, 2 * np.arange(250))
    np.testing.assert_array_equal(y[:2], [125, 125])


@pytest.mark.parametrize("mode", ["run", "inspect"])
def test_warps(planted, mode):
    x, y = planted("correct_warps", mode)
    np.testing.assert_array_equal(y, [sum(range(32)) + 8] * 32 + [sum(range(32, 64)) + 8] * 32)


def test_the_order_of_threads_can_show_a_race(planted, monkeypatch):
    """Without a tool a missing barrier goes unnoticed as long as thread t - 1 has run before thread t."""
    expected = np.maximum(np.arange(64) - 1, 0)
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "1")        # first: shared memory is still empty
    assert (planted("missing_barrier", "run")[1] != expected).any()
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "0")
    np.testing.assert_array_equal(planted("missing_barrier", "run")[1], expected)


def test_arguments_are_checked():
    module = Module('extern "C" __global__ void k(const float4* x, float* y, int n, float f) { y[0] = x[0].x + n + f; }')
    kernel = module.get_function("k")
    x, y = np.ones(8, np.float32), np.zeros(1, np.float32)
    good = x, y, np.int32(2), np.float32(0.5)
    kernel((1,), (1,), good)
    assert y[0] == 3.5
    read_only = y.copy()
    read_only.flags.writeable = False
    for bad, message in [
            (good[:3], "takes 4 arguments, got 3"),
            ((x.astype(float), *good[1:]), "argument 0: the kernel wants float32, the array is float64"),
            ((x[::2], *good[1:]), "argument 0: the array must be contiguous"),
            ((x[1:5], *good[1:]), "argument 0: the array must begin at a multiple of 16 bytes"),
            ((x, read_only, *good[2:]), "argument 1: the kernel writes into this array, which is read-only"),
            ((x, [0.0], *good[2:]), "argument 1: the kernel wants an array, got list"),
            ((x, y, 2, good[3]), "argument 2: the kernel wants int32, got int"),
            ((x, y, np.int64(2), good[3]), "argument 2: the kernel wants int32, got int64"),
            ((x, y, good[2], np.float64(0.5)), "argument 3: the kernel wants float32, got float64")]:
        with pytest.raises(TypeError) as error:
            kernel((1,), (1,), bad)
        assert message in str(error.value)
    for grid, block, shared in [((0,), (1,), 0), ((1, 70000), (1,), 0), ((1,), (1025,), 0), ((1,), (1, 1, 65), 0), ((1,), (1,), 49153)]:
        with pytest.raises(LaunchError, match="grid|block|shared"):
            kernel(grid, block, good, shared_mem=shared)


# ---- compiling ----

def test_a_mistake_in_a_kernel_is_the_compilers_message_with_the_kernels_line():
    with pytest.raises(compiler.CompileError, match=r"mine\.cu:2:.*nonsense"):
        Module('#line 1 "mine.cu"\nextern "C" __global__ void k(int n) {\n nonsense(n); }')


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    compiler.find.cache_clear()
    try:
        with pytest.raises(compiler.NoCompiler) as error:
            kernel_set.functions()
    finally:
        compiler.find.cache_clear()
    for words in ("apt install g++", "dnf install gcc-c++", "xcode-select --install"):
        assert words in str(error.value)


def test_compiled_kernels_are_kept_and_two_processes_may_compile_at_once(tmp_path):
    code = ("import numpy as np, sys; from nprcnn.kernels.cuda_on_cpu.loader import Module\n"
            "m = Module('extern \"C\" __global__ void k(float* y) { y[0] = 7; }'); y = np.zeros(1, np.float32)\n"
            "m.get_function('k')((1,), (1,), (y,)); print(y[0], m.path)")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) for _ in range(2)]
    results = {process.communicate(timeout=300)[0] for process in both}
    assert len(results) == 1 and results.pop().startswith("7.0 " + str(tmp_path))
    files = sorted(path.name for path in (tmp_path / "nprcnn" / "cuda_on_cpu").iterdir())
    assert len(files) == 2 and files[0].startswith("engine-run-") and files[1].startswith("kernel-")     # nothing left over
    before = [path.stat().st_mtime_ns for path in (tmp_path / "nprcnn" / "cuda_on_cpu").iterdir()]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
    assert before == [path.stat().st_mtime_ns for path in (tmp_path / "nprcnn" / "cuda_on_cpu").iterdir()]


# ---- the inspector: planted mistakes ----

FOUND = {
    "write_past_the_end": "writes 4 bytes 0 bytes after the end of argument x, planted.cu:14, thread 58",
    "read_before_the_start": "reads 4 bytes 4 bytes before the start of argument x, planted.cu:17, thread 0",
    "write_past_shared": "writes 4 bytes",
    "write_past_dynamic_shared": "writes 4 bytes past the end of dynamic shared memory, planted.cu:28, thread 63",
    "missing_barrier": "race in shared memory: thread 1 of block 0 reads what thread 0 of block 0 writes, with no barrier between, planted.cu:34",
    "missing_second_barrier": "race in shared memory: thread 0 of block 0 reads what thread 63 of block 0 writes, with no barrier between, "
                              "planted.cu:43",
    "missing_syncwarp": "race in shared memory",
    "plain_addition_in_a_block": "race in global memory: thread 1 of block 0 reads what thread 0 of block 0 writes, with no barrier between, "
                                 "planted.cu:56",
    "plain_addition_across_blocks": "race in global memory: thread 0 of block 1 reads what thread 0 of block 0 writes",
    "unwritten_shared": "reads shared memory that no thread of the block has written, planted.cu:62, thread 63",
    "unwritten_dynamic_shared": "reads shared memory that no thread of the block has written, planted.cu:66, thread 0",
    "divergent_barrier": "divergent __syncthreads(): some threads wait on line 71, others on line 74",
    "misaligned_vector": "misaligned: reads 16 bytes at an address that is no multiple, planted.cu:78",
    "write_to_a_constant": "writes to the constant argument x, planted.cu:87",
    "shuffle_for_a_barrier": "race in shared memory: thread 30 of block 0 reads what thread 31 of block 0 writes, with no barrier between, planted.cu:122",
    "shuffle_in_two_branches": "divergent warp operation: some threads wait on line 129, others on line 127",
}


@pytest.mark.parametrize("name", FOUND)
def test_the_inspector_finds(planted, name):
    with pytest.raises(LaunchError) as error:
        planted(name, blocks=4)
    assert FOUND[name] in str(error.value)


def test_every_planted_mistake_is_looked_for():
    planted_names = set(loader.KERNEL.findall(PLANTED_CODE)) - {"correct", "correct_warps", "patterns"}
    assert planted_names == set(FOUND) | {"shift_of_an_int"}        # arithmetic: a sanitizer's business, see below


def test_after_an_error_all_goes_on(planted):
    with pytest.raises(LaunchError):
        planted("missing_barrier")
    x, _ = planted("correct", blocks=4)
    np.testing.assert_array_equal(x, 2 * np.arange(250))


# ---- the inspector: counts ----

def test_counts_of_known_patterns():
    module = Module(PLANTED_CODE, mode="inspect", name="planted")
    arrays = np.zeros(32, np.float32), np.zeros(256, np.float32), np.zeros(128, np.float32), np.zeros(32, np.float32)
    with inspect() as launches:
        inspection.watched(module.get_function("patterns"))((1,), (32,), arrays)
    text = PLANTED_CODE.split("\n")
    by_text = {}
    for count in launches[0].lines:
        if count.kind == "read":
            by_text[text[count.line].strip()] = count
    expected = {        # sectors of global memory, passes over shared memory beyond those needed
        "float sum = in_a_row[t];": (4, 0),
        "sum += apart[8 * t];": (32, 0),
        "sum += in_a_row[5];": (1, 0),
        "sum += s[2 * t];": (0, 1),
        "sum += s[32 * t];": (0, 31),
        "sum += s[33 * t];": (0, 0),
        "sum += s[7];": (0, 0),
    }
    for line, (sectors, conflicts) in expected.items():
        count = by_text[line]
        assert (count.accesses, count.lanes, count.size) == (1, 32, 4), line
        assert (count.sectors, count.passes - count.least_passes) == (sectors, conflicts), line
    vector = by_text["sum += vectors[t].x;"]
    assert vector.sectors in (16, 32) and vector.memory == "vectors"
    assert launches[0].a_launch == {"in_a_row": 4, "apart": 32, "vectors": vector.sectors if vector.size == 16 else 16, "y": 4} or vector.size == 4


@pytest.fixture(scope="module")
def counted():
    """One launch of each version of the convolution, RoIAlign and its gradient."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 16, 16, 16), np.float32), rng.standard_normal((64, 16, 3, 3), np.float32)
    corner = rng.uniform(0, 60, (4, 2))
    features, rois = rng.standard_normal((1, 32, 32, 32), np.float32), np.hstack([np.zeros((4, 1)), corner, corner + 60]).astype(np.float32)
    dy = rng.standard_normal((4, 32, 7, 7), np.float32)
    launches = {}
    for version in (1, 2, 3, 4, 5):
        with inspect() as found:
            y = conv.conv2d(x, w, None, 1, 1, version=version)
        launches["conv2d", version] = found[0]
        assert y.shape == (1, 64, 16, 16)
    for version in (1, 2, 3):
        with inspect() as found:
            roi_align.roi_align(features, rois, 0.25, 7, version=version)
        launches["roi_align", version] = found[-1]
    for version in (1, 2):
        with inspect() as found:
            roi_align.roi_align_grad(dy, rois, features.shape, 0.25, 7, version=version)
        launches["roi_align_grad", version] = found[0]
    with inspect() as found:
        nms.nms(rng.uniform(0, 9, (70, 4)).astype(np.float32), rng.random(70, np.float32), 0.5)
    launches["nms", 2] = found[-1]
    return launches


def test_each_version_of_the_convolution_asks_for_less(counted):
    one, two, three, four, five = (counted["conv2d", version] for version in (1, 2, 3, 4, 5))
    sectors = [launch.total("sectors") for launch in (one, two, three, four)]
    assert sectors[0] > 4 * sectors[1] and sectors[1] > 1.5 * sectors[2]        # 16 x 16 tiles; 64 x 64 tiles
    accesses = [launch.total("accesses", shared=True) for launch in (two, three, four, five)]
    assert accesses[0] > 1.9 * accesses[1] and accesses[1] > 3 * accesses[2]    # registers; vectors
    # 16 numbers for 64 products, by four; 24 numbers for 512, one by one
    passes = [launch.total("passes", shared=True) for launch in (two, three, four, five)]
    assert accesses[2] > 1.3 * accesses[3] and passes[2] > 3 * passes[3]
    assert one.total("accesses", shared=True) == 0
    for launch_ in (two, three, four, five):
        assert launch_.total("passes", shared=True) == launch_.total("least_passes", shared=True)     # no bank conflicts
    assert sum(one.a_launch.values()) == pytest.approx(sum(two.a_launch.values()), rel=0.01)      # the same arrays in the end


def test_the_gradient_to_the_filters_has_no_bank_conflicts():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((1, 8, 10, 18), np.float32), rng.standard_normal((1, 70, 8, 16), np.float32)
    sectors = {}
    for version in (3, 4, 5):
        with inspect() as found:
            conv.conv2d_grad_w(dy, x, (70, 8, 3, 3), version=version)
        launch_ = next(one for one in found if one.kernel == "conv2d_grad_w")
        sectors[version] = launch_.total("sectors", kinds=("read",))
        if version > 3:
            assert launch_.total("passes", shared=True) == launch_.total("least_passes", shared=True)
    assert sectors[3] > 2 * sectors[4] and sectors[3] > 2 * sectors[5]          # larger tiles, and pixels side by side


def test_one_load_of_version_1_by_hand(counted):
    """64 outputs a pixel, 256 pixels, 16 channels, 9 taps; a tap in the padding loads nothing."""
    inside = 16 * 16 * 9 - 4 * 16 * 3 + 4               # pairs of pixel and tap within a 16 x 16 image
    reads = [line for line in counted["conv2d", 1].lines if line.kind == "read" and line.memory in "xw"]
    assert {line.memory: line.lanes for line in reads} == {"x": 64 * 16 * inside, "w": 64 * 16 * inside}
    (write,) = [line for line in counted["conv2d", 1].lines if line.kind == "write"]
    assert (write.memory, write.lanes, write.accesses, write.sectors) == ("y", 64 * 256, 512, 2048)


def test_versions_of_roi_align(counted):
    one, three = counted["roi_align", 1], counted["roi_align", 3]

    def sectors_per_read(launch_):
        reads = [line for line in launch_.lines if line.memory == "features"]
        return sum(line.sectors for line in reads) / sum(line.accesses for line in reads)

    assert sectors_per_read(three) == 4 and sectors_per_read(one) > 8
    assert counted["roi_align_grad", 1].total("lanes", kinds=("atomic",)) > 0
    assert counted["roi_align_grad", 2].total("lanes", kinds=("atomic",)) == 0


def test_reports_are_tables(counted):
    table = report(list(counted.values()), [f"{name} v{version}" for name, version in counted])
    rows = table.split("\n")
    assert len(rows) == 2 + len(counted) and all("v" in row[:28] for row in rows[2:])
    assert f"{counted['conv2d', 1].total('sectors'):,}" in rows[2]
    lines = report_lines(counted["conv2d", 4])
    assert "conv2d_v4_vectors.cu:" in lines and "table" in lines


def test_the_trace_of_a_block_is_what_its_threads_did():
    features, rois = np.zeros((1, 1, 8, 8), np.float32), np.array([[0, 1, 1, 5, 5]], np.float32)
    with inspect(trace_block=0) as launches:
        roi_align.roi_align(features, rois, 1.0, 2, sampling_ratio=1, version=1)
    of_thread_3 = [access for access in launches[0].trace if access.thread == 3 and access.memory in ("features", "y")]
    # bin (1, 1) of a 2 x 2 grid over 1..5: its only sample lies at (4, 4), exactly on a pixel
    assert [(access.memory, access.kind, access.index) for access in of_thread_3] == [
        ("features", "read", 36), ("features", "read", 37), ("features", "read", 44), ("features", "read", 45), ("y", "write", 3)]
    assert {access.file for access in of_thread_3} == {"roi_align_v1_naive.cu"} and all(access.line for access in of_thread_3)


def test_outside_of_an_inspection_nothing_is_watched():
    assert inspection.mode() == "run"
    with inspect() as launches:
        assert inspection.mode() == "inspect"
    assert inspection.mode() == "run" and launches == []


# ---- sanitizers ----

CHILD = """
import sys, numpy as np
from nprcnn.kernels.cuda_on_cpu.loader import Module
name, mode, path = sys.argv[1:]
x, y = np.arange(250, dtype=np.float32), np.zeros(64, np.float32)
module = Module('#line 1 "planted.cu"\\n' + open(path).read(), mode=mode, name="planted")
module.get_function(name)((4,), (64,), (x, y, np.int32(250)), shared_mem=256)
print("ended", int(x[100]))
"""


def sanitized(name, mode):
    """Run a planted kernel in a process of its own, with a sanitizer loaded first; what it prints."""
    path, version = compiler.find()
    libraries = []
    for library in ("libasan.so", "libubsan.so") if mode == "asan" else ("libtsan.so",):
        found = subprocess.run([path, f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"{path} has no {library}")
        libraries.append(found)
    environment = {**os.environ, "LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}
    run = subprocess.run([sys.executable, "-c", CHILD, name, mode, str(PLANTED)], env=environment, capture_output=True, text=True,
                         cwd=Path(__file__).parent.parent, timeout=300)
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize("mode", ["asan", "tsan"])
def test_sanitizers_say_nothing_about_a_correct_kernel(mode):
    code, out, errors = sanitized("correct", mode)
    assert code == 0 and out == "ended 200\n" and "SUMMARY" not in errors and "runtime error" not in errors, errors


@pytest.mark.parametrize("name, mode, message, line", [
    ("write_past_the_end", "asan", "heap-buffer-overflow", "planted.cu:14"),
    ("shift_of_an_int", "asan", "shift exponent 32 is too large", "planted.cu:83"),
    ("missing_barrier", "tsan", "data race", "planted.cu:34"),
])
def test_sanitizers_find(name, mode, message, line):
    code, _, errors = sanitized(name, mode)
    assert code != 0 and message in errors and line in errors, errors


# ---- the kernel set ----

FUNCTIONS = {"conv2d", "conv2d_grad_x", "conv2d_grad_w", "conv2d_fused", "max_pool2d", "max_pool2d_grad", "roi_align", "roi_align_grad", "nms",
             "batched_nms", "resize_bilinear", "resize_bilinear_grad", "resize_nearest", "resize_nearest_grad", "roi_pool", "roi_pool_grad",
             "paste_masks"}
# this image has the right size already, the model has no RoIPool, and its NMS is always one of many groups
NOT_IN_THE_MODEL = {"resize_bilinear", "resize_bilinear_grad", "roi_pool", "roi_pool_grad", "nms"}


def test_kernel_set_has_the_functions_of_the_kernels():
    functions = kernel_set.functions()
    assert set(functions) == FUNCTIONS
    with_fallbacks = backend.NUMPY._replace(name="cuda-on-cpu", **functions)      # all are fields of a KernelSet
    assert with_fallbacks.nms is nms.nms and with_fallbacks.box_iou is backend.NUMPY.box_iou


def test_a_model_predicts_and_learns_with_the_kernels(monkeypatch):
    """A whole network of known weights: the kernels and NumPy find the same objects and the same gradients."""
    calls = set()

    def counting(name, function):
        return lambda *args, **options: calls.add(name) or function(*args, **options)

    functions = {name: counting(name, function) for name, function in kernel_set.functions().items()}
    monkeypatch.setitem(backend.KERNEL_SETS, "cuda-on-cpu", backend.NUMPY._replace(name="cuda-on-cpu", **functions))
    image, target = Shapes.held_out(3)[0]
    results = []
    for kernels in ("numpy", "cuda-on-cpu"):
        model = nprcnn.maskrcnn_tiny(weights="shapes")      # anew: a forward in training moves the running statistics
        with nprcnn.use(kernels):
            found = model.predict(image)
            model.zero_grad()
            losses, cache = model.losses([image], [target], np.random.default_rng(0))
            model.backward(cache)
            results.append((found, losses, {name: p.grad.copy() for name, p in model.named_parameters()}))
    (found, losses, grads), (found2, losses2, grads2) = results
    assert len(found.boxes) > 0 and calls == FUNCTIONS - NOT_IN_THE_MODEL
    np.testing.assert_array_equal(found.labels, found2.labels)
    # float32 through some 30 layers; the largest differences measured: boxes equal, losses 2e-6 and gradients 4e-5 of the largest
    np.testing.assert_allclose(found2.boxes, found.boxes, rtol=0, atol=1e-3)
    for name in losses:
        np.testing.assert_allclose(losses2[name], losses[name], rtol=1e-4)
    for name, grad in grads.items():
        np.testing.assert_allclose(grads2[name], grad, rtol=0, atol=1e-3 * np.abs(grad).max(), err_msg=name)


def test_sources_name_their_lines():
    text = launch.source("conv2d_v4_vectors")
    assert [line.split("/")[-1] for line in text.split("\n") if line.startswith("#line")] == [
        'common.cuh"', 'conv2d.cuh"', 'conv2d_v4_vectors.cu"']


def test_every_version_passes_the_inspector():
    """No access outside, no race, no unwritten shared memory, on sizes that fill no tile and more than one."""
    from nprcnn.kernels.cuda import norm_relu, paste, pool, resize, roi_pool
    rng = np.random.default_rng(1)
    real = functools.partial(rng.standard_normal, dtype=np.float32)
    x, w, dy = real((2, 4, 9, 11)), real((70, 4, 3, 3)), real((2, 70, 5, 6))
    corner = rng.uniform(-3, 9, (70, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 9, (70, 2))]).astype(np.float32)
    rois = np.hstack([rng.integers(0, 2, (70, 1)), boxes]).astype(np.float32)[:5]
    with inspect() as launches:
        conv.conv2d(x, w, None, 1, 1, version="winograd")
        for version in (1, 2, 3, 4, 5):
            conv.conv2d(x, w, None, 2, 1, version=version)
            conv.conv2d_grad_x(dy, w, x.shape, 2, 1, version=version)
            conv.conv2d_grad_w(dy, x, w.shape, 2, 1, version=version)
        for version in (1, 2, 3):
            roi_align.roi_align(x, rois, 1.0, 3, version=version)
        for version in (1, 2):
            roi_align.roi_align_grad(real((5, 4, 3, 3)), rois, x.shape, 1.0, 3, version=version)
            nms.nms(boxes, rng.random(70, np.float32), 0.5, version=version)
        nms.batched_nms(boxes, rng.random(70, np.float32), rng.integers(0, 3, 70), 0.5)
        y, index = pool.max_pool2d(x, 3, 2, 1)
        pooled, place = roi_pool.roi_pool(x, rois, 1.0, 3)
        for deterministic in (False, True):
            pool.max_pool2d_grad(y, index, x.shape, deterministic)
            roi_pool.roi_pool_grad(pooled, place, rois, x.shape, deterministic)
        for size in ((4, 25), (17, 5)):
            resize.resize_nearest_grad(resize.resize_nearest(x, size), x.shape)
            resize.resize_bilinear_grad(resize.resize_bilinear(x, size), x.shape)
        paste.paste_masks(rng.random((3, 5, 5), np.float32), boxes[:3], (12, 10))
        norm_relu.norm_relu(x, real(4), real(4), x)
    used = {line.file for launch_ in launches for line in launch_.lines}
    assert {path.name for path in launch.FOLDER.glob("*.cu")} <= used
