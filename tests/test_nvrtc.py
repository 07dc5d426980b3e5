"""Every .cu file, compiled to machine code by NVIDIA's own compiler. Needs no GPU, but `pip install nvidia-cuda-nvrtc`."""

import pytest

from nprcnn.kernels.cuda import launch, nvrtc

try:
    LIBRARY = nvrtc.load()
except nvrtc.NoNvrtc as error:
    pytest.skip(str(error), allow_module_level=True)


FLOAT32_ALONE = {"conv2d_v4_vectors", "conv2d_v5_tensor_cores", "conv2d_winograd"}


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("file", nvrtc.files())
def test_float32(file, architecture):
    """No register is spilled to memory, and no arithmetic is silently in float64."""
    if architecture not in nvrtc.architectures(file):
        with pytest.raises(RuntimeError, match="requires .target sm_80"):
            nvrtc.compile_file(LIBRARY, file, architecture)
        return
    usage, ptx = nvrtc.compile_file(LIBRARY, file, architecture)
    assert usage and all(u.spills == 0 for u in usage.values()), usage
    assert ".f64" not in ptx
    # two blocks of 256 threads fit on a multiprocessor, of 65536 registers
    assert all(u.registers <= 128 and u.shared <= 48 * 1024 for u in usage.values()), usage


@pytest.mark.parametrize("file", nvrtc.files())
def test_float64(file):
    usage, ptx = nvrtc.compile_file(LIBRARY, file, "sm_90", "float64")
    assert usage
    # what works in `real` does so in float64
    assert ".f64" in ptx or file in FLOAT32_ALONE


def test_kernels_that_must_not_fuse_do_not():
    """A fused multiply-add rounds once where NumPy rounds twice, and IoUs that tie would no longer."""
    for file in nvrtc.files():
        _, ptx = nvrtc.compile_file(LIBRARY, file, "sm_90")
        has_fused = "fma.rn.f32" in ptx
        # max-pooling has no products; version 5 of the convolution has those of its tensor cores alone
        assert has_fused == (not file.startswith((*launch.EXACT, "max_pool2d", "conv2d_v5"))), file


def test_version_5_of_the_convolution_is_made_of_tensor_core_instructions():
    """As many as its loops say: in both kernels two halves of 8 of a step's depth, 4 x 4 small matrices each; each number is rounded once."""
    _, ptx = nvrtc.compile_file(LIBRARY, "conv2d_v5_tensor_cores", "sm_80")
    assert ptx.count("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") == 2 * 2 * 4 * 4
    assert ptx.count("cvt.rna.tf32.f32") == 2 * 2 * 16      # before each loop and in it: 8 numbers of A, 8 of B


def test_a_mistake_is_an_error():
    with pytest.raises(RuntimeError, match="invalid"):
        nvrtc.compile_file(LIBRARY, "norm_relu_v1", "sm_1")


def test_the_log_is_read():
    log = ("ptxas info    : Compiling entry function 'k' for 'sm_90'\nptxas info    : Function properties for k\n"
           "    16 bytes stack frame, 8 bytes spill stores, 24 bytes spill loads\nptxas info    : Used 128 registers, 1 barriers, 512 bytes smem\n")
    assert nvrtc.usage_of(log) == {"k": (128, 512, 32)}
