"""RoIAlign and its gradient: checks the arguments, chooses a version, launches it. Signatures of nprcnn.ops.roi_align."""

import numpy as np

from ..cpu.checks import check_floating, check_rois
from .launch import THREADS, array_module, blocks_for, contiguous, launch

FORWARD = {1: "roi_align_v1_naive", 2: "roi_align_v2_shared_taps", 3: "roi_align_v3_channels_last"}
BACKWARD = {1: "roi_align_grad_v1_atomics", 2: "roi_align_grad_v2_ordered"}
MAX_SAMPLES = 64          # as in the files of versions 2 and 3
CHANNELS_A_THREAD = 4     # as in version 2 of the gradient
CHANNELS_A_BLOCK = 16
MAX_SHARED = 48 * 1024    # bytes that any GPU gives a block: those asked for at the launch and those that the kernel declares, together


def choose(output_size, sampling_ratio, channels, rois, on_gpu, real):
    """The version for these arguments.

    On a GPU 3, if it takes them and there are RoIs enough to pay for rearranging the features. Run on the CPU, where nothing is gained by
    neighbouring threads that read neighbouring numbers, version 1 is twice as fast as the others.
    """
    samples = max(output_size) * sampling_ratio
    if not on_gpu or sampling_ratio < 1 or samples > MAX_SAMPLES or output_size[0] * output_size[1] > 300:
        return 1
    return 3 if channels >= 32 and rois >= 16 and fits_v3(output_size, real) else 2


def _shared_bytes(output_size, real):
    """What a block of version 3 asks for: 32 channels of a RoI."""
    return 32 * (output_size[0] * output_size[1] | 1) * real.itemsize


def fits_v3(output_size, real):
    """Is there shared memory for that, and for the taps that versions 2 and 3 declare: two places and two weights a sample of either axis?"""
    return _shared_bytes(output_size, real) + 2 * MAX_SAMPLES * (2 * 4 + 2 * real.itemsize) <= MAX_SHARED


def roi_align(features, rois, spatial_scale, output_size, sampling_ratio=2, aligned=False, version=None):
    """RoIAlign of every RoI: features (N, C, H, W), rois (R, 5) -> (R, C, oh, ow). `version`: None chooses.

    The RoIs may be on the CPU where the features are on a GPU: then the checks cost no synchronisation.
    """
    out_h, out_w = check_rois(rois, features.shape, output_size)
    check_floating(features, "features")
    xp, real = array_module(features), features.dtype
    n, channels, height, width = features.shape
    y = xp.empty((len(rois), channels, out_h, out_w), real)
    if y.size == 0:
        return y
    sampling_ratio = int(sampling_ratio)
    version = version or choose((out_h, out_w), sampling_ratio, channels, len(rois), xp is not np, real)
    features, rois = contiguous(features), contiguous(xp.asarray(rois), real)
    tail = (channels, height, width, out_h, out_w, float(spatial_scale), sampling_ratio, int(bool(aligned)))
    if version > 1 and not 1 <= sampling_ratio <= MAX_SAMPLES // max(out_h, out_w):
        raise ValueError(f"version {version} of RoIAlign takes 1 to {MAX_SAMPLES} samples an axis of a RoI, not a sampling_ratio of "
                         f"{sampling_ratio} for {max(out_h, out_w)} bins: use version 1")
    if version == 3 and not fits_v3((out_h, out_w), real):
        raise ValueError(f"version 3 of RoIAlign keeps {_shared_bytes((out_h, out_w), real)} bytes a block for {out_h} x {out_w} bins of {real} "
                         f"beside its taps; {MAX_SHARED} in all do not hold them: use version 2")
    file = FORWARD[version]
    if version == 1:
        launch(file, "roi_align", blocks_for(y.size), THREADS, (features, rois, y, len(rois), *tail), real)
    elif version == 2:
        launch(file, "roi_align", (len(rois), blocks_for(channels, CHANNELS_A_BLOCK)), THREADS,
               (features, rois, y, *tail, CHANNELS_A_BLOCK), real)
    else:
        pixels = height * width
        turned = xp.empty((n, height, width, channels), real)
        launch(file, "to_channels_last", (blocks_for(pixels, 32), blocks_for(channels, 32), n), (32, 8), (features, turned, channels, pixels), real)
        launch(file, "roi_align", (len(rois), blocks_for(channels, 32)), (32, 8), (turned, rois, y, *tail), real,
               shared_mem=_shared_bytes((out_h, out_w), real))
    return y


def roi_align_grad(dy, rois, x_shape, spatial_scale, output_size, sampling_ratio=2, aligned=False, version=None, deterministic=False):
    """Gradient of the features (N, C, H, W) from dy (R, C, oh, ow). deterministic: the version whose bits are the same in every run."""
    out_h, out_w = check_rois(rois, x_shape, output_size)
    if dy.shape != (len(rois), x_shape[1], out_h, out_w):
        raise ValueError(f"dy must have shape {(len(rois), x_shape[1], out_h, out_w)}, got {dy.shape}")
    xp, real = array_module(dy), dy.dtype
    n, channels, height, width = x_shape
    version = version or (2 if deterministic else 1)
    dx = xp.zeros(tuple(x_shape), real)
    if dy.size == 0 or dx.size == 0:
        return dx
    dy, rois = contiguous(dy), contiguous(xp.asarray(rois), real)
    tail = (channels, height, width, out_h, out_w, float(spatial_scale), int(sampling_ratio), int(bool(aligned)))
    if version == 1:
        launch(BACKWARD[1], "roi_align_grad", blocks_for(dy.size), THREADS, (dy, rois, dx, len(rois), *tail), real)
    else:
        image = rois[:, 0].astype(np.int32)
        order = xp.argsort(image, kind="stable")
        starts = xp.searchsorted(image[order], xp.arange(n + 1, dtype=np.int32)).astype(np.int32)
        launch(BACKWARD[2], "roi_align_grad", (blocks_for(height * width), blocks_for(channels, CHANNELS_A_THREAD), n), THREADS,
               (dy, rois, order.astype(np.int32), starts, dx, *tail), real)
    return dx
