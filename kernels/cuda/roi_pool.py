"""RoIPool and its gradient. Signatures of nprcnn.ops.roi_pool."""

import numpy as np

from ..cpu.checks import check_floating, check_rois
from .launch import THREADS, array_module, blocks_for, contiguous, launch

FILE = "roi_pool_v1"


def roi_pool(features, rois, spatial_scale, output_size):
    """RoIPool of every RoI: features (N, C, H, W), rois (R, 5) -> y (R, C, oh, ow), index of the same shape (int64).

    The RoIs may be on the CPU where the features are on a GPU.
    """
    out_h, out_w = check_rois(rois, features.shape, output_size)
    check_floating(features, "features")
    xp, real = array_module(features), features.dtype
    _, channels, height, width = features.shape
    y = xp.empty((len(rois), channels, out_h, out_w), real)
    index = xp.empty(y.shape, np.int64)
    if y.size:
        launch(FILE, "roi_pool", blocks_for(y.size), THREADS,
               (contiguous(features), contiguous(xp.asarray(rois), real), y, index, len(rois), channels, height, width, out_h, out_w,
                float(spatial_scale)), real)
    return y, index


def roi_pool_grad(dy, index, rois, x_shape, deterministic=False):
    """Gradient of the features (N, C, H, W) from dy, index (R, C, oh, ow). deterministic: the same bits in every run."""
    n, channels, height, width = x_shape
    if dy.shape != index.shape or dy.shape[:2] != (len(rois), channels):
        raise ValueError(f"dy and index must both have shape ({len(rois)}, {channels}, oh, ow), got {dy.shape} and {index.shape}")
    xp = array_module(dy)
    dx = xp.zeros(tuple(x_shape), dy.dtype)
    if dy.size:
        function, threads = ("roi_pool_grad_ordered", channels) if deterministic else ("roi_pool_grad", dy.size)
        launch(FILE, function, blocks_for(threads), THREADS,
               (contiguous(dy), contiguous(index, np.int64), contiguous(xp.asarray(rois), dy.dtype), dx, len(rois), channels, height * width,
                dy.shape[2] * dy.shape[3]), dy.dtype)
    return dx
