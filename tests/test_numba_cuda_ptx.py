"""The Numba CUDA kernels, compiled for a GPU. Needs no GPU, but `pip install "numba-cuda[cu12]"`."""

import re

import pytest

pytest.importorskip("numba")
from numba import float32, float64  # noqa: E402

from nprcnn.kernels.numba_cuda import ptx  # noqa: E402

try:
    ptx.compile_kernel("nms_reduce")
except ptx.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)

NAMES = list(ptx.signatures(float32))


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)], ids=["T4", "H100"])
@pytest.mark.parametrize("name", NAMES)
def test_no_float64_in_the_float32_kernels(name, capability):
    code = ptx.compile_kernel(name, float32, capability)
    assert ".visible .entry" in code and f".target sm_{capability[0]}{capability[1]}" in code
    assert ".f64" not in code
    assert ".local" not in code     # arrays or spilled registers that lie in slow memory


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nms_reduce"])
def test_float64_is_seen(name):
    """Or the test above could not fail."""
    assert ".f64" in ptx.compile_kernel(name, float64)


def test_nms_does_not_fuse():
    """A fused multiply-add rounds once where NumPy rounds twice, and IoUs that tie would no longer: products are fma(a, b, 0)."""
    code = ptx.compile_kernel("nms_mask")
    fused = re.findall(r"fma\.rn\.f32\s+[^;]*;", code)
    assert fused and all(line.endswith("0f00000000;") for line in fused)
    # The assembler might still fuse a product that says nothing about its rounding
    assert not re.search(r"mul\.f32", code)
    assert any(not line.endswith("0f00000000;") for line in re.findall(r"fma\.rn\.f32\s+[^;]*;", ptx.compile_kernel("conv2d_v1")))


def test_atomics_and_shared_memory():
    assert ptx.count(ptx.compile_kernel("roi_align_grad_v1"), r"(atom|red)\.") >= 4
    assert ptx.count(ptx.compile_kernel("roi_align_v1"), r"(atom|red)\.") == 0
    assert ptx.count(ptx.compile_kernel("conv2d_v2"), r"bar\.sync|barrier") >= 2
    assert ptx.count(ptx.compile_kernel("conv2d_v2"), r"st\.shared") == 2
