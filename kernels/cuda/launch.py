"""Compiles and launches the kernels, with one code for both machines: where the arrays are CuPy's, cupy.RawModule compiles and a GPU
runs; where they are NumPy's, the host's C++ compiler does and the CPU runs (kernels/cuda_on_cpu).

    y = xp.empty(...)
    launch("roi_align_v1_naive", "roi_align", blocks_for(y.size), 256, (features, rois, y, 7, 0.25), real=features.dtype)
"""

import functools
import math
from pathlib import Path

import numpy as np

from .gpu import array_module

FOLDER = Path(__file__).resolve().parent
THREADS = 256                       # a block, where nothing speaks for another number
HEADERS = {"roi_align": ["roi_align.cuh"], "conv2d": ["conv2d.cuh"]}      # beside common.cuh, by the beginning of a file's name
MAX_GRID = (2**31 - 1, 65535, 65535)
REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
# IoUs, box corners and sampling points must round as NumPy rounds them, so in these files no multiply-add may be fused into one
EXACT = ("nms", "paste", "resize", "roi_pool")


def source(file):
    """The whole text of a .cu file, with its headers in front. `#line` lets compilers and debuggers name the file and its lines."""
    headers = ["common.cuh", *(h for begin, names in HEADERS.items() if file.startswith(begin) for h in names)]
    if file.startswith("conv2d_v1"):
        headers = headers[:1]
    names = [*headers, f"{file}.cu"]
    return "".join(f'#line 1 "{FOLDER / name}"\n{(FOLDER / name).read_text(encoding="utf-8")}\n' for name in names)


def options(file, real):
    """What the compiler of a GPU needs to know; the CPU's takes the macros (-D) alone."""
    return ("-std=c++17", f"-Dreal={REAL[np.dtype(real)]}", *(["--fmad=false"] if file.startswith(EXACT) else []))


@functools.cache
def _gpu_kernel(cupy, file, function, real):
    module = cupy.RawModule(code=source(file), options=options(file, real))
    return module.get_function(function)


@functools.cache
def _cpu_kernel(file, function, real, mode):
    from ..cuda_on_cpu.loader import Module
    return Module(source(file), options(file, real), mode, name=file).get_function(function)


def kernel(file, function, real, xp):
    """The compiled kernel `function` of FILE.cu for numbers of dtype `real`; compiled once a process."""
    real = np.dtype(real)
    if real not in REAL:
        raise TypeError(f"{function}: the kernels work in float32 or float64, not {real}")
    if xp is not np:
        return _gpu_kernel(xp, file, function, real)
    from ..cuda_on_cpu import inspection
    return inspection.watched(_cpu_kernel(file, function, real, inspection.mode()))


def launch(file, function, grid, block, args, real, shared_mem=0):
    """Run a kernel on the machine where its arrays are.

    Parameters
    ----------
    file : str, name of a .cu file of this folder, without its ending
    function : str, the kernel's name
    grid, block : int or tuple of up to three
    args : arrays, Python ints and floats, in the kernel's order
        An int becomes an int32, a float the dtype `real`: a bare Python number would reach the GPU as 8 bytes, whatever the kernel takes.
    real : dtype that the kernel is compiled for
    shared_mem : int, bytes of dynamic shared memory

    Raises
    ------
    TypeError : an array that is not contiguous, or on the other machine; a dtype without a kernel
    ValueError : an array of 2^31 elements or more, a number that is no int32, a grid that no GPU takes
    """
    grid, block = _triple(grid), _triple(block)
    if min(grid) < 1 or any(n > limit for n, limit in zip(grid, MAX_GRID)):
        raise ValueError(f"{function}: a grid of {grid} blocks; each side must be at least 1 and at most {MAX_GRID}")
    if min(block) < 1 or math.prod(block) > 1024:
        raise ValueError(f"{function}: a block of {block} threads; at most 1024 in all")
    modules = {array_module(a) for a in args if hasattr(a, "dtype") and not isinstance(a, np.generic)}
    if len(modules) != 1:
        raise TypeError(f"{function}: the arrays must all be on the GPU or all on the CPU")
    ready = [_ready(function, i, arg, np.dtype(real)) for i, arg in enumerate(args)]
    kernel(file, function, real, modules.pop())(grid, block, tuple(ready), shared_mem=shared_mem)


def _ready(function, i, arg, real):
    """One argument as the kernel takes it."""
    where = f"{function}, argument {i}"
    if isinstance(arg, (bool, int, np.integer)):
        if not -2**31 <= arg < 2**31:
            raise ValueError(f"{where}: {arg} does not fit into 32 bits")
        return np.int32(arg)
    if isinstance(arg, (float, np.floating)):
        return real.type(arg)
    if arg.size >= 2**31:
        raise ValueError(f"{where}: an array of shape {arg.shape} has {arg.size} elements; the kernels count to 2^31 - 1")
    if not arg.flags.c_contiguous:
        raise TypeError(f"{where}: the array must be contiguous")
    return arg


def contiguous(array, dtype=None):
    """The array itself if it is contiguous (and of that dtype), else a copy that is."""
    return array_module(array).ascontiguousarray(array, dtype)


def blocks_for(threads, block=THREADS):
    """How many blocks give at least so many threads."""
    return max(1, -(-threads // block))


def _triple(size):
    size = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    return tuple(int(n) for n in size) + (1,) * (3 - len(size))
