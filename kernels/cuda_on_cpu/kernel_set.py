"""The functions of the kernel set "cuda-on-cpu": the kernels of kernels/cuda, run on the CPU. Signatures of nprcnn.ops.

They are there to be read, stepped through and counted, not to be fast.
"""

from ..cuda import conv2d, nms, paste, pool, roi_align
from . import compiler


def functions():
    """Name of a KernelSet's field -> function. What has no kernel is not in it.

    Raises
    ------
    compiler.NoCompiler : there is no C++ compiler; the message says what to install.
    """
    compiler.find()
    return {
        "conv2d": conv2d.conv2d, "conv2d_grad_x": conv2d.conv2d_grad_x, "conv2d_grad_w": conv2d.conv2d_grad_w,
        "conv2d_fused": conv2d.conv2d_fused,
        "max_pool2d": pool.max_pool2d, "max_pool2d_grad": pool.max_pool2d_grad,
        "roi_align": roi_align.roi_align, "roi_align_grad": roi_align.roi_align_grad,
        "nms": nms.nms, "paste_masks": paste.paste_masks,
    }
