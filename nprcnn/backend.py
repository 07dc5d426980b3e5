"""Which functions do the heavy work.

A KernelSet lists the hot functions as plain fields, all with the signatures of the NumPy references in nprcnn.ops. The layers hand
the active set to each pair (`conv2d_forward(..., kernels=backend.active())`); a cache never depends on the set, so a forward under one
set may be followed by a backward under another.

"numpy" is the references themselves. "numba" is compiled for this processor (kernels/cpu) and is the default where Numba is installed;
it is built when it is first asked for, because importing Numba alone takes longer than all of nprcnn.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

from . import allocator, devices, threads
from .errors import BackendError
from .ops.activation import relu_grad
from .ops.boxes import box_iou
from .ops.conv import conv2d, conv2d_fused, conv2d_grad_w, conv2d_grad_x
from .ops.momentum import momentum_step
from .ops.nms import nms
from .ops.paste import paste_masks
from .ops.pool import max_pool2d, max_pool2d_grad
from .ops.resize import resize_bilinear, resize_bilinear_grad, resize_nearest, resize_nearest_grad
from .ops.roi_align import roi_align, roi_align_grad
from .ops.roi_pool import roi_pool, roi_pool_grad


class KernelSet(NamedTuple):
    """The functions that may be replaced by faster ones of the same signature (see nprcnn.ops for each)."""

    name: str
    conv2d: Callable
    conv2d_grad_x: Callable
    conv2d_grad_w: Callable
    conv2d_fused: Callable
    relu_grad: Callable
    max_pool2d: Callable
    max_pool2d_grad: Callable
    resize_bilinear: Callable
    resize_bilinear_grad: Callable
    resize_nearest: Callable
    resize_nearest_grad: Callable
    roi_align: Callable
    roi_align_grad: Callable
    roi_pool: Callable
    roi_pool_grad: Callable
    nms: Callable
    box_iou: Callable
    paste_masks: Callable
    momentum_step: Callable
    batched_nms: Callable | None = None     # of all groups at once; None: `nms`, group by group
    conv_transpose2d: Callable | None = None     # None: `conv2d_grad_x`, then bias and ReLU


NUMPY = KernelSet(
    name="numpy",
    conv2d=conv2d, conv2d_grad_x=conv2d_grad_x, conv2d_grad_w=conv2d_grad_w,
    conv2d_fused=conv2d_fused, relu_grad=relu_grad,
    max_pool2d=max_pool2d, max_pool2d_grad=max_pool2d_grad,
    resize_bilinear=resize_bilinear, resize_bilinear_grad=resize_bilinear_grad,
    resize_nearest=resize_nearest, resize_nearest_grad=resize_nearest_grad,
    roi_align=roi_align, roi_align_grad=roi_align_grad,
    roi_pool=roi_pool, roi_pool_grad=roi_pool_grad,
    nms=nms, box_iou=box_iou, paste_masks=paste_masks, momentum_step=momentum_step,
)

KERNEL_SETS = {"numpy": NUMPY, "numba": None, "cuda-on-cpu": None, "numba-cuda": None, "cupy": None}  # None: built when it is asked for

_active = None  # until somebody asks: an import must not fail because of an environment variable
_active_on_gpu = None


def active(array=None):
    """The KernelSet that the layers use now, on the machine where the array is: kernels follow the arrays.

    For NumPy's arrays (and None) at first the one that NPRCNN_KERNELS names, or else "numba" where Numba is installed and "numpy" where
    it is not. For CuPy's, which lie on a GPU, "cupy".

    Raises
    ------
    BackendError
        NPRCNN_KERNELS names a set that is not there, or one that needs what is not installed.
    """
    if array is not None and devices.is_on_gpu(array):
        if _active_on_gpu is None:
            use("cupy")
        return _active_on_gpu
    if _active is None:
        named = os.environ.get("NPRCNN_KERNELS")
        if named == "cupy":     # of the GPU: the CPU needs another one
            use(named)
        use(named if named and named != "cupy" else "numba" if importlib.util.find_spec("numba") else "numpy")
    return _active


def kernel_set(name, deterministic=False, tf32=False, winograd=False):
    """The KernelSet of this name, one of KERNEL_SETS. BackendError: there is none, or it needs what is not installed.

    deterministic, tf32, winograd: see use.
    """
    if name not in KERNEL_SETS:
        raise BackendError(f"there is no set of kernels named {name!r}; choose one of: {', '.join(KERNEL_SETS)}")
    if name == "cupy":      # not kept: whether there is a GPU is looked at each time
        return _cupy_set(deterministic, tf32, winograd)
    if tf32 or winograd:
        raise BackendError(f'tf32 and winograd are choices of the kernels "cupy", not of "{name}"')
    if deterministic and name == "cuda-on-cpu":
        return _cuda_on_cpu_set(deterministic)
    if deterministic and name == "numba-cuda":
        raise BackendError('the kernels "numba-cuda" add in whatever order their threads come; for the same bits in every run choose '
                           '"cupy" or "cuda-on-cpu"')
    if KERNEL_SETS[name] is None:
        KERNEL_SETS[name] = {"numba": _numba_set, "cuda-on-cpu": _cuda_on_cpu_set, "numba-cuda": _numba_cuda_set}[name]()
    return KERNEL_SETS[name]


def _numba_set():
    if importlib.util.find_spec("numba") is None:
        raise BackendError('the kernels "numba" need Numba, which is not installed: pip install numba, '
                           'or choose the NumPy references with NPRCNN_KERNELS=numpy')
    import numba
    try:
        from .kernels.cpu import roi_align
    except RuntimeError as error:  # Numba found no folder for its cache: neither the package's own nor the user's can be written to
        if "cannot cache" not in str(error):
            raise
        numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="nprcnn-")
    from .kernels.cpu import activation, boxes, conv, conv_transpose, momentum, nms, paste, pool, resize, roi_align, roi_pool
    threads.start_kernels()
    allocator.keep_freed_memory()
    cache = Path(roi_align._align_all.stats.cache_path)
    if not any(cache.glob("roi_align._align_all-*.nbi")):
        # measured on an x86-64 core: 30 s for what a prediction needs, as much for the first training step
        print("nprcnn: compiling the kernels, once after an install: the first prediction or training step takes half a minute longer",
              file=sys.stderr)
    return KernelSet(
        name="numba",
        conv2d=conv.conv2d, conv2d_grad_x=conv.conv2d_grad_x, conv2d_grad_w=conv.conv2d_grad_w,
        conv2d_fused=conv.conv2d_fused, relu_grad=activation.relu_grad,
        max_pool2d=pool.max_pool2d, max_pool2d_grad=pool.max_pool2d_grad,
        resize_bilinear=resize.resize_bilinear, resize_bilinear_grad=resize.resize_bilinear_grad,
        resize_nearest=resize.resize_nearest, resize_nearest_grad=resize.resize_nearest_grad,
        roi_align=roi_align.roi_align, roi_align_grad=roi_align.roi_align_grad,
        roi_pool=roi_pool.roi_pool, roi_pool_grad=roi_pool.roi_pool_grad,
        nms=nms.nms, box_iou=boxes.box_iou, paste_masks=paste.paste_masks, momentum_step=momentum.momentum_step,
        conv_transpose2d=conv_transpose.conv_transpose2d,
    )


def _cuda_on_cpu_set(deterministic=False):
    """The CUDA kernels, compiled for the CPU: slow, and each thread can be stepped through. What has no kernel is NumPy's."""
    from .kernels.cuda_on_cpu import compiler, kernel_set
    try:
        return NUMPY._replace(name="cuda-on-cpu", **kernel_set.functions(deterministic))
    except compiler.NoCompiler as error:
        raise BackendError(str(error)) from None


def _numba_cuda_set():
    """CUDA kernels written in Python, on a GPU or in Numba's simulator. What has no kernel is NumPy's."""
    if importlib.util.find_spec("numba") is None:
        raise BackendError('the kernels "numba-cuda" need Numba, which is not installed: pip install numba')
    from .kernels.numba_cuda import gpu, kernel_set
    try:
        return NUMPY._replace(name="numba-cuda", **kernel_set.functions())
    except gpu.NoCuda as error:
        raise BackendError(str(error)) from None


def _cupy_set(deterministic, tf32, winograd):
    """The CUDA kernels on a GPU. What has no kernel is NumPy's, which hands CuPy's arrays on to CuPy."""
    cupy = devices.cupy()
    from .kernels.cuda import conv2d, kernel_set
    try:
        if tf32:
            conv2d.check_tensor_cores(cupy)
    except conv2d.NoTensorCores as error:
        raise BackendError(str(error)) from None
    return NUMPY._replace(name="cupy", **kernel_set.functions(deterministic, tf32, winograd))


class use:
    """Choose the kernels: `nprcnn.use("numpy")` from here on, or `with nprcnn.use("numpy"):` for one block.

    Parameters
    ----------
    name : str
        One of KERNEL_SETS. The environment variable NPRCNN_KERNELS names the one that a process starts with. "cupy" is chosen for arrays on
        a GPU, the others for those of the CPU.
    deterministic : bool
        Of "cupy" and "cuda-on-cpu": gradients that several threads add to are summed in a fixed order instead of by atomics: slower, and
        the same bits in every run. "numpy" and "numba" have the same bits anyway.
    tf32 : bool
        Of "cupy", on a GPU with tensor cores for it: convolutions round their factors to TF32, 10 bits behind the point: faster, and no
        longer equal to float32's. (Linear layers are CuPy's products: for them set CUPY_TF32=1.)
    winograd : bool
        Of "cupy": 3x3 convolutions with stride 1 by Winograd's algorithm: in float32, with larger rounding errors.

    Raises
    ------
    BackendError
        There is no set of that name, or it needs what is not installed.
    """

    def __init__(self, name, deterministic=False, tf32=False, winograd=False):
        global _active, _active_on_gpu
        self.chosen = kernel_set(name, deterministic, tf32, winograd)
        self.previous = _active, _active_on_gpu
        if name == "cupy":
            _active_on_gpu = self.chosen
        else:
            _active = self.chosen

    def __enter__(self):
        return self.chosen

    def __exit__(self, *exception):
        global _active, _active_on_gpu
        _active, _active_on_gpu = self.previous
