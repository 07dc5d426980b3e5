"""The functions of the kernel set "numba-cuda". Signatures of nprcnn.ops."""

from . import conv2d, gpu, nms, roi_align


def functions():
    """Name of a KernelSet's field -> function. What has no kernel is not in it.

    Raises
    ------
    gpu.NoCuda : there is no GPU and the simulator is off; the message says what to do.
    """
    gpu.check()
    return {
        "conv2d": conv2d.conv2d, "conv2d_grad_x": conv2d.conv2d_grad_x, "conv2d_grad_w": conv2d.conv2d_grad_w,
        "roi_align": roi_align.roi_align, "roi_align_grad": roi_align.roi_align_grad,
        "nms": nms.nms,
    }
