"""The Numba CUDA kernels. They run in a process of their own: the simulator must be chosen before Numba is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
pytest.importorskip("numba")


def python(*arguments, simulator):
    """Run Python with these arguments, as in this process but for the simulator."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": str(int(simulator)),
                   "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=TESTS.parent, capture_output=True, text=True)


def run_kernels(simulator):
    run = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "numba_cuda_kernels.py"), simulator=simulator)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout and int(run.stdout.split(" passed")[0].split()[-1]) >= 45, run.stdout


def test_kernels_in_the_simulator():
    run_kernels(simulator=True)


USE = """
import nprcnn
from nprcnn.errors import BackendError
try:
    nprcnn.use("numba-cuda")
    print("a GPU")
except BackendError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def answer():
    """What asking for the kernels says without the simulator."""
    run = python("-c", USE, simulator=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_kernels_on_a_gpu(answer):
    if answer != "a GPU":
        pytest.skip("no NVIDIA GPU for Numba")
    run_kernels(simulator=False)


def test_neither_simulator_nor_gpu(answer):
    if answer == "a GPU":
        pytest.skip("there is a GPU")
    assert len(answer.splitlines()) == 1
    assert "NUMBA_ENABLE_CUDASIM=1 before Python starts" in answer and 'pip install "numba-cuda[cu12]"' in answer


def test_one_layer_of_a_model_in_the_simulator():
    """The set does the work of a layer, there and back."""
    run = python("-c", """
import numpy as np, nprcnn
from nprcnn.layers import Conv2d
rng = np.random.default_rng(0)
layer = Conv2d(rng, 2, 3, 3, padding=1)
layer.weight.data[...] = rng.standard_normal(layer.weight.data.shape)
x, dy = rng.standard_normal((1, 2, 4, 5)).astype(np.float32), rng.standard_normal((1, 3, 4, 5)).astype(np.float32)
results = {}
for name in ("numpy", "numba-cuda"):
    with nprcnn.use(name):
        layer.weight.grad = None
        y, cache = layer.forward(x, train=True)
        results[name] = y, layer.backward(dy, cache), layer.weight.grad.copy()
for a, b in zip(*results.values()):
    np.testing.assert_allclose(a, b, rtol=0, atol=3e-5)      # sums of up to 27 products, each below 16 and rounded to 2^-24 of it
print("equal")
""", simulator=True)
    assert run.stdout.strip() == "equal", run.stderr
