"""The kernels compiled without a GPU, to PTX, the assembly language of NVIDIA's GPUs. Needs `pip install "numba-cuda[cu12]"`.

    python -m nprcnn.kernels.numba_cuda.ptx                     a row a kernel
    python -m nprcnn.kernels.numba_cuda.ptx roi_align_v1        the PTX of one

Only a process without the simulator can: there Numba has no compiler.
"""

import re
import sys
from importlib.util import find_spec
from types import SimpleNamespace

from numba import boolean, config, cuda, float32, float64, int64, types, uint8, uint64

from . import conv2d, nms, roi_align


class NoCompiler(RuntimeError):
    """Numba finds no compiler for CUDA."""


def signatures(real):
    """Every kernel's name -> the kernel, and the types that it is launched with. real: float32 or float64 of numba."""
    def array(dtype, ndim):
        return types.Array(dtype, ndim, "C")
    pair = types.UniTuple(int64, 2)
    maps, vector = array(real, 4), array(real, 1)
    align = maps, array(real, 2), maps, real, int64, boolean
    conv = maps, maps, maps, pair, pair, pair, int64
    forward = maps, maps, vector, maps, pair, pair, pair
    return {
        "roi_align_v1": (roi_align.roi_align_v1, align),
        "roi_align_grad_v1": (roi_align.roi_align_grad_v1, align),
        "nms_mask": (nms.nms_mask, (array(real, 2), array(uint64, 2), real)),
        "nms_reduce": (nms.nms_reduce, (array(uint64, 2), array(uint8, 1))),
        "conv2d_v1": (conv2d.conv2d_v1, (*forward, int64)),
        "conv2d_grad_x_v1": (conv2d.conv2d_grad_x_v1, conv),
        "conv2d_grad_w_v1": (conv2d.conv2d_grad_w_v1, conv),
        "conv2d_v2": (conv2d.conv2d_v2, forward),
    }


def compile_kernel(name, real=float32, capability=(7, 5)):
    """The PTX of one kernel, a str. capability: of the GPU, (7, 5) for a T4.

    Raises
    ------
    NoCompiler : the message says what to install.
    """
    check()
    kernel, arguments = signatures(real)[name]
    from numba.cuda import dispatcher
    # Numba compiles the functions that a kernel calls for the GPU that is there; here is none, so we say which
    there = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        return cuda.compile_ptx(kernel.py_func, arguments, cc=capability)[0]
    finally:
        dispatcher.get_current_device = there


def check():
    """NoCompiler, if there is none; the message says what to do."""
    if config.ENABLE_CUDASIM:
        raise NoCompiler("Numba's simulator is on, which has no compiler: unset NUMBA_ENABLE_CUDASIM")
    if find_spec("numba_cuda"):     # Numba's own CUDA compiler is no longer kept: that of Numba 0.68 refuses max(a, b)
        try:
            cuda.compile_ptx(_nothing, (), cc=(7, 5))
            return
        except Exception:           # whatever a missing library makes of it: in a kernel that does nothing no mistake is ours
            pass
    raise NoCompiler('Numba finds no compiler for CUDA: pip install "numba-cuda[cu12]"')


def _nothing():
    pass


def count(ptx, pattern):
    """How many instructions match the regular expression, registers and parameters not counted."""
    code = [line for line in ptx.splitlines() if not line.strip().startswith((".", "//"))]
    return sum(bool(re.search(pattern, line)) for line in code)


def main(names):
    if names:
        print("\n".join(compile_kernel(name) for name in names))
        return
    print(f"{'kernel':20} {'dtype':8} global loads, stores, atomics; shared loads, stores; float32 and float64 arithmetic")
    for real in (float32, float64):
        for name in signatures(real):
            ptx = compile_kernel(name, real)
            numbers = [count(ptx, p) for p in (r"ld\.global", r"st\.global", r"(atom|red)\.", r"ld\.shared", r"st\.shared",
                                               r"(add|sub|mul|fma|div)[.\w]*\.f32", r"(add|sub|mul|fma|div)[.\w]*\.f64")]
            print(f"{name:20} {real!s:8} " + " ".join(f"{n:6}" for n in numbers))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except NoCompiler as error:
        sys.exit(str(error))
