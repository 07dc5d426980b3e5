import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import nprcnn
from nprcnn import backend, threads
from nprcnn.errors import ConfigError

needs_two = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def restored():
    before = nprcnn.get_num_threads()
    yield
    nprcnn.set_num_threads(before)


@needs_two
def test_one_number_for_both(restored):
    pytest.importorskip("numba")
    backend.kernel_set("numba")
    from nprcnn.kernels.cpu import workers
    for n in (1, 2, 1):
        nprcnn.set_num_threads(n)
        assert nprcnn.get_num_threads() == n and blas_threads() == {n}
        assert workers.get_num_threads() == n


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", 10**6])
def test_what_is_no_number_of_threads(n):
    before = nprcnn.get_num_threads()
    with pytest.raises(ConfigError, match="an integer from 1 to"):
        nprcnn.set_num_threads(n)
    assert nprcnn.get_num_threads() == before


def test_usable_cores():
    assert 1 <= threads.usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("variable", threads.VARIABLES)
def test_the_environment_decides_for_both(variable):
    """Set after NumPy has started its own threads, so that only nprcnn can have passed it on."""
    pytest.importorskip("numba")
    code = (f"import os, numpy; os.environ['{variable}'] = '1'; import nprcnn; from nprcnn import backend; "
            "backend.kernel_set('numba'); import threadpoolctl; from nprcnn.kernels.cpu import workers; "
            "print(nprcnn.get_num_threads(), workers.get_num_threads(), *(i['num_threads'] for i in threadpoolctl.threadpool_info()))")
    environment = {k: v for k, v in os.environ.items() if k not in threads.VARIABLES}
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) == {"1"}


@needs_two
def test_threads_do_not_change_the_result(restored):
    """Every thread owns its part of the result, and inside a part the order of the sums is fixed: equal to the last bit."""
    pytest.importorskip("numba")
    kernels, rng = backend.kernel_set("numba"), np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 24, 31), np.float32)
    corners = rng.uniform(0, 20, (40, 2)).astype(np.float32)
    rois = np.hstack([rng.integers(0, 2, (40, 1)), corners, corners + rng.uniform(2, 30, (40, 2))]).astype(np.float32)
    results = []
    for n in (1, 2):
        nprcnn.set_num_threads(n)
        y = kernels.roi_align(x, rois, 0.5, 7)
        pooled, index = kernels.roi_pool(x, rois, 0.5, 7)
        small, places = kernels.max_pool2d(x, 3, 2, 1)
        results.append([
            y, kernels.roi_align_grad(y, rois, x.shape, 0.5, 7), pooled, index, kernels.roi_pool_grad(pooled, index, rois, x.shape),
            small, places, kernels.max_pool2d_grad(small, places, x.shape),
            kernels.resize_nearest(x, (48, 62)), kernels.resize_nearest_grad(x, (2, 5, 12, 15)),
            kernels.resize_bilinear(x, (48, 62)), kernels.resize_bilinear_grad(x, (2, 5, 12, 15)),
            kernels.box_iou(rois[:, 1:], rois[:, 1:]), kernels.paste_masks(y[:, 0], rois[:, 1:], (60, 60)),
        ])
    for one, two in zip(*results):
        np.testing.assert_array_equal(one, two)
