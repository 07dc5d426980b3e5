"""The functions of the kernel set "cupy": all kernels of this folder. Signatures of nprcnn.ops."""

import functools

from . import conv2d, nms, paste, pool, resize, roi_align, roi_pool


def functions(deterministic=False, tf32=False, winograd=False):
    """Name of a KernelSet's field -> function. What has no kernel is not in it.

    deterministic : True swaps the three gradients that add atomically for versions that add in a fixed order: slower, and the same bits in
        every run. The others have one order anyway.
    tf32 : True lets convolutions round their factors to TF32, on tensor cores.
    winograd : True lets 3x3 convolutions take Winograd's algorithm.
    """
    def ordered(gradient):
        return functools.partial(gradient, deterministic=True) if deterministic else gradient

    def allowing(convolution, **choices):
        choices = {name: True for name, chosen in choices.items() if chosen}
        return functools.partial(convolution, **choices) if choices else convolution
    return {
        "conv2d": allowing(conv2d.conv2d, tf32=tf32, winograd=winograd), "conv2d_fused": allowing(conv2d.conv2d_fused, tf32=tf32,
                                                                                                  winograd=winograd),
        "conv2d_grad_x": allowing(conv2d.conv2d_grad_x, tf32=tf32, winograd=winograd),
            "conv2d_grad_w": allowing(conv2d.conv2d_grad_w, tf32=tf32),
        "max_pool2d": pool.max_pool2d, "max_pool2d_grad": ordered(pool.max_pool2d_grad),
        "resize_bilinear": resize.resize_bilinear, "resize_bilinear_grad": resize.resize_bilinear_grad,
        "resize_nearest": resize.resize_nearest, "resize_nearest_grad": resize.resize_nearest_grad,
        "roi_align": roi_align.roi_align, "roi_align_grad": ordered(roi_align.roi_align_grad),
        "roi_pool": roi_pool.roi_pool, "roi_pool_grad": ordered(roi_pool.roi_pool_grad),
        "nms": nms.nms, "batched_nms": nms.batched_nms, "paste_masks": paste.paste_masks,
    }
