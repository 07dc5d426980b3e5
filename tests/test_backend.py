import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import seeded
from small_models import small_model

import nprcnn
from nprcnn import backend
from nprcnn.errors import BackendError
from nprcnn.train import SGD

ROOT = Path(__file__).parent.parent


def test_use_switches_and_the_context_switches_back(monkeypatch):
    monkeypatch.setitem(backend.KERNEL_SETS, "other", backend.NUMPY._replace(name="other"))
    before = backend.active()
    with nprcnn.use("numpy") as inside:
        assert inside is backend.NUMPY and backend.active() is backend.NUMPY
        with nprcnn.use("other"):
            assert backend.active().name == "other"
        assert backend.active() is backend.NUMPY
    assert backend.active() is before
    with pytest.raises(ZeroDivisionError):
        with nprcnn.use("other"):
            1 / 0
    assert backend.active() is before
    nprcnn.use("other")
    assert backend.active().name == "other"
    nprcnn.use(before.name)


def test_unknown_kernels_are_named():
    before = backend.active()
    with pytest.raises(BackendError, match="'abacus'; choose one of: numpy"):
        nprcnn.use("abacus")
    assert backend.active() is before


def in_a_process(code, **environment):
    """Run Python code in a fresh process; returns stdout, stderr and the exit code."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    return run.stdout.strip(), run.stderr.strip(), run.returncode


NAME_OF_ACTIVE = "import nprcnn.backend as b; print(b.active().name)"
WITHOUT_NUMBA = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n, *a: None if n == 'numba' else find(n, *a); "


def test_environment_variable():
    assert in_a_process(NAME_OF_ACTIVE, NPRCNN_KERNELS="numpy") == ("numpy", "", 0)
    _, error, code = in_a_process(NAME_OF_ACTIVE, NPRCNN_KERNELS="abacus")
    assert code == 1 and "there is no set of kernels named 'abacus'" in error


def test_numba_is_the_default_where_it_is_installed():
    pytest.importorskip("numba")
    name, _, code = in_a_process(NAME_OF_ACTIVE, NPRCNN_KERNELS="")
    assert (name, code) == ("numba", 0)


def test_without_numba():
    """The references take over; asking for Numba's kernels says what to install."""
    assert in_a_process(WITHOUT_NUMBA + NAME_OF_ACTIVE, NPRCNN_KERNELS="") == ("numpy", "", 0)
    _, error, code = in_a_process(WITHOUT_NUMBA + NAME_OF_ACTIVE, NPRCNN_KERNELS="numba")
    assert code == 1 and "BackendError" in error and "pip install numba" in error


BUILD_AND_ALIGN = """
import numpy as np, nprcnn.backend as b
k = b.kernel_set("numba")
k.roi_align(np.ones((1, 1, 4, 4), "f"), np.array([[0, 0, 0, 3, 3]], "f"), 1.0, 2)
print(k.name)
"""


def test_compiled_code_is_cached_and_the_first_run_says_that_it_compiles(tmp_path):
    pytest.importorskip("numba")
    name, error, code = in_a_process(BUILD_AND_ALIGN, NUMBA_CACHE_DIR=str(tmp_path))
    assert code == 0 and error.startswith("nprcnn: compiling the kernels") and error.count("\n") == 0, error
    assert any(tmp_path.rglob("*.nbc"))
    assert in_a_process(BUILD_AND_ALIGN, NUMBA_CACHE_DIR=str(tmp_path)) == (name, "", 0)


MAY_BE_MISSING = {"batched_nms", "conv_transpose2d"}     # `nms` and `conv2d_grad_x` take their places


def test_the_sets_are_complete():
    for name, missing in (("numpy", MAY_BE_MISSING), ("numba", {"batched_nms"})):
        functions = backend.kernel_set(name)._asdict()
        assert {field for field, function in functions.items() if function is None} == missing
        assert all(callable(functions[field]) for field in functions.keys() - missing - {"name"}), name


class Counting:
    """Wraps every function of the NumPy set and counts its calls."""

    def __init__(self):
        self.calls = {name: 0 for name in backend.KernelSet._fields if name not in MAY_BE_MISSING | {"name"}}
        self.set = backend.KernelSet("counting", **{name: self._wrap(name) for name in self.calls})

    def _wrap(self, name):
        function = getattr(backend.NUMPY, name)

        def counted(*args, **kwargs):
            self.calls[name] += 1
            return function(*args, **kwargs)
        return counted


@pytest.mark.parametrize("roi_method", ["align", "pool"])
def test_the_active_set_does_all_the_heavy_work(monkeypatch, roi_method):
    counting = Counting()
    monkeypatch.setitem(backend.KERNEL_SETS, "counting", counting.set)
    images, targets = seeded.scene()
    model, twin = (small_model(roi_method=roi_method) for _ in range(2))
    with nprcnn.use("counting"):
        losses, cache = model.losses(images, targets, np.random.default_rng(0))
        model.backward(cache)
        SGD(model.parameters()).step(0.1)
        model.predict(images)
    unused = {name for name, count in counting.calls.items() if count == 0}
    # images get no gradient; masks are cut out for training by RoIAlign whatever the model's method
    expected = {"resize_bilinear_grad"} | ({"roi_pool", "roi_pool_grad"} if roi_method == "align" else {"roi_align_grad"})
    assert unused == expected
    with nprcnn.use("numpy"):
        twin_losses, twin_cache = twin.losses(images, targets, np.random.default_rng(0))
    with nprcnn.use("counting"):  # a forward under one set, its backward under another
        twin.backward(twin_cache)
    assert twin_losses == losses
    assert all((a.grad == b.grad).all() for a, b in zip(model.parameters(), twin.parameters()))


@pytest.mark.parametrize("roi_method", ["align", "pool"])
def test_numba_trains_and_predicts_as_the_references_do(roi_method):
    """float64: what the two round differently stays below 1e-9 of the largest value through the whole network."""
    pytest.importorskip("numba")
    images, targets = seeded.scene()
    results = []
    for name in ("numpy", "numba"):
        model = small_model(roi_method=roi_method)
        with nprcnn.use(name):
            losses, cache = model.losses(images, targets, np.random.default_rng(0))
            model.backward(cache)
            results.append((losses, [p.grad for p in model.parameters()], model.predict(images)))
    (losses, gradients, found), (other_losses, other_gradients, other_found) = results
    for name in losses:
        np.testing.assert_allclose(other_losses[name], losses[name], rtol=1e-9, err_msg=name)
    for gradient, other in zip(gradients, other_gradients):
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-9 * max(1, np.abs(gradient).max()))
    for mine, other in zip(found, other_found):
        np.testing.assert_array_equal(other.labels, mine.labels)
        np.testing.assert_array_equal(other.anchor, mine.anchor)
        np.testing.assert_allclose(other.boxes, mine.boxes, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(other.masks, mine.masks)


def test_two_python_threads_may_use_the_compiled_kernels_at_once():
    """In a process of its own, with the threads that it has by default. The number of threads is that of the process, not of the caller."""
    pytest.importorskip("numba")
    code = """
import threading, numpy as np
from nprcnn import backend
kernels = backend.kernel_set("numba")
x = np.random.default_rng(0).standard_normal((1, 32, 40, 40), np.float32)
w = np.random.default_rng(1).standard_normal((32, 32, 3, 3), np.float32)
rois = np.float32([[0, 2, 3, 30, 20]] * 20)
def once():
    y, index = kernels.max_pool2d(x, 3, 2, 1)
    return (y, kernels.max_pool2d_grad(y, index, x.shape), kernels.resize_nearest(x, (80, 80)), kernels.resize_bilinear(x, (50, 30)),
            kernels.roi_align(x, rois, 1.0, 7), kernels.conv2d(x, w, None, 1, 1), kernels.box_iou(rois[:, 1:], rois[:, 1:]))
expected, failures = once(), []
def often():
    for _ in range(30):
        if not all(np.array_equal(a, b) for a, b in zip(once(), expected)):
            failures.append(1)
threads = [threading.Thread(target=often) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print("failures:", len(failures))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "failures: 0"
