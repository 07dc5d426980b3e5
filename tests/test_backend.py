import os
import subprocess
import sys

import numpy as np
import pytest
from reference import seeded
from small_models import small_model

import nprcnn
from nprcnn import backend
from nprcnn.errors import BackendError


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


@pytest.mark.parametrize("name, code", [("numpy", 0), ("abacus", 1)])
def test_environment_variable(name, code):
    run = subprocess.run([sys.executable, "-c", "import nprcnn.backend as b; assert b.active().name == 'numpy'"],
                         env={**os.environ, "NPRCNN_KERNELS": name}, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert code == 0 or "there is no set of kernels named 'abacus'" in run.stderr


class Counting:
    """Wraps every function of the NumPy set and counts its calls."""

    def __init__(self):
        self.calls = dict.fromkeys(backend.KernelSet._fields[1:], 0)
        self.set = backend.KernelSet("counting", *(self._wrap(name) for name in self.calls))

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
        model.predict(images)
    unused = {name for name, count in counting.calls.items() if count == 0}
    # images get no gradient; masks are cut out for training by RoIAlign whatever the model's method
    expected = {"resize_bilinear_grad"} | ({"roi_pool", "roi_pool_grad"} if roi_method == "align" else {"roi_align_grad"})
    assert unused == expected
    twin_losses, twin_cache = twin.losses(images, targets, np.random.default_rng(0))
    with nprcnn.use("counting"):  # a forward under one set, its backward under another
        twin.backward(twin_cache)
    assert twin_losses == losses
    assert all((a.grad == b.grad).all() for a, b in zip(model.parameters(), twin.parameters()))
