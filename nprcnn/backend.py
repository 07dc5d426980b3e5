"""Which functions do the heavy work.

A KernelSet lists the hot functions as plain fields, all with the signatures of the NumPy references in nprcnn.ops. The layers hand
the active set to each pair (`conv2d_forward(..., kernels=backend.active())`); a cache never depends on the set, so a forward under one
set may be followed by a backward under another.
"""

import os
from typing import Callable, NamedTuple

from .errors import BackendError
from .ops.boxes import box_iou
from .ops.conv import conv2d, conv2d_grad_w, conv2d_grad_x
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


NUMPY = KernelSet(
    name="numpy",
    conv2d=conv2d, conv2d_grad_x=conv2d_grad_x, conv2d_grad_w=conv2d_grad_w,
    max_pool2d=max_pool2d, max_pool2d_grad=max_pool2d_grad,
    resize_bilinear=resize_bilinear, resize_bilinear_grad=resize_bilinear_grad,
    resize_nearest=resize_nearest, resize_nearest_grad=resize_nearest_grad,
    roi_align=roi_align, roi_align_grad=roi_align_grad,
    roi_pool=roi_pool, roi_pool_grad=roi_pool_grad,
    nms=nms, box_iou=box_iou, paste_masks=paste_masks,
)

KERNEL_SETS = {"numpy": NUMPY}

_active = None  # until somebody asks: an import must not fail because of an environment variable


def active():
    """The KernelSet that the layers use now; at first the one that NPRCNN_KERNELS names, or "numpy".

    Raises
    ------
    BackendError
        NPRCNN_KERNELS names a set that is not there.
    """
    if _active is None:
        use(os.environ.get("NPRCNN_KERNELS") or "numpy")
    return _active


class use:
    """Choose the kernels: `nprcnn.use("numpy")` from here on, or `with nprcnn.use("numpy"):` for one block.

    Parameters
    ----------
    name : str
        One of KERNEL_SETS. The environment variable NPRCNN_KERNELS names the one that a process starts with.

    Raises
    ------
    BackendError
        There is no set of that name.
    """

    def __init__(self, name):
        global _active
        if name not in KERNEL_SETS:
            raise BackendError(f"there is no set of kernels named {name!r}; choose one of: {', '.join(KERNEL_SETS)}")
        self.previous = _active
        _active = KERNEL_SETS[name]

    def __enter__(self):
        return _active

    def __exit__(self, *exception):
        global _active
        _active = self.previous
