"""RoIAlign and its gradient as CUDA kernels in Python: the twins of kernels/cuda/roi_align_v1_naive.cu and
kernels/cuda/roi_align_grad_v1_atomics.cu. nprcnn/ops/roi_align.py explains the operation.

A *kernel* is a function that thousands of *threads* run at the same time, each with a number of its own. It returns nothing; it reads
and writes arrays in the GPU's memory. It is written for one thread: "who am I, which output number is mine, what do I read for it?"

    roi_align_v1[blocks, threads](features, rois, y, ...)

starts `blocks` * `threads` of them. The threads of a *block* run on one multiprocessor and may share memory and wait for each other.
All blocks together are the *grid*; they run in any order, as multiprocessors become free, and must not wait for each other. Within a
block, each 32 threads in a row are a *warp*, and thread number 0 to 31 in it is its *lane*. A warp executes one instruction at a time,
for all its lanes: a loop lasts as long as for the slowest lane, and where lanes branch differently, the warp takes one branch after the
other. What its lanes read in one instruction is fetched in sectors of 32 bytes, 8 float32: 4 sectors if the lanes read side by side, up
to 32 if they do not.

Here thread k computes number k of y. With 7 x 7 bins, threads 0 to 6 have the first row of bins of RoI 0 in channel 0, threads 7 to 13
the second row, and thread 49 begins channel 1. `nprcnn inspect-kernel roi_align --roi 3 --thread 5` shows what one of them does.

Letters: N images, C channels, H x W feature map, R RoIs, OH x OW output bins.
"""

import math

import numpy as np
from numba import cuda

from ..cpu.checks import check_floating, check_rois
from .gpu import HALF, ONE, THREADS, ZERO, blocks_for, to_device

# The geometry, one axis at a time. device=True: functions that kernels call; they run in the calling thread.


@cuda.jit(device=True)
def make_axis(roi, axis, spatial_scale, bins, sampling_ratio, aligned):
    """One axis of one RoI (5,), in feature pixels -> where it starts, a bin's side, samples a bin. axis: 0 for x, 1 for y."""
    real = roi.dtype.type
    low, high = roi[1 + axis], roi[3 + axis]
    shift = HALF if aligned else ZERO
    start = low * spatial_scale - shift
    side = high * spatial_scale - shift - start
    if not aligned:
        side = max(side, real(1))
    bin_side = side / real(bins)
    samples = sampling_ratio if sampling_ratio > 0 else int(math.ceil(bin_side))
    return start, bin_side, samples


@cuda.jit(device=True)
def sample_point(start, bin_side, samples, bin, i):
    """Where sample `i` of bin `bin` lies."""
    return start + np.float32(bin) * bin_side + (np.float32(i) + HALF) * bin_side / np.float32(max(samples, 1))


@cuda.jit(device=True)
def make_tap(point, length):
    """Linear interpolation at a point is (1 - fraction) * f[low] + fraction * f[high] -> inside, low, high, fraction.

    inside: False if the point lies more than a pixel outside the map; such a sample counts as 0.
    """
    inside = point >= -ONE and point <= np.float32(length)
    point = min(max(point, ZERO), np.float32(length - 1))
    low = int(point)
    high = min(low + 1, length - 1)
    return inside, low, high, point - np.float32(low)


@cuda.jit
def roi_align_v1(features, rois, y, spatial_scale, sampling_ratio, aligned):
    """One thread an output number: it walks over the samples of its bin and reads four pixels for each.

    features (N, C, H, W), rois (R, 5): image, x1, y1, x2, y2, y (R, C, OH, OW)
    """
    k = cuda.grid(1)                    # blockIdx.x * blockDim.x + threadIdx.x: the number of this thread in the grid
    if k >= y.size:                     # the last block has threads that nobody needs
        return
    _, C, H, W = features.shape
    _, _, OH, OW = y.shape
    j, i, c, r = k % OW, k // OW % OH, k // OW // OH % C, k // OW // OH // C

    roi = rois[r]
    x_start, x_side, x_samples = make_axis(roi, 0, spatial_scale, OW, sampling_ratio, aligned)
    y_start, y_side, y_samples = make_axis(roi, 1, spatial_scale, OH, sampling_ratio, aligned)
    plane = features[int(roi[0]), c]

    total = ZERO
    for sy in range(y_samples):
        inside, top, bottom, fy = make_tap(sample_point(y_start, y_side, y_samples, i, sy), H)
        if not inside:
            continue
        for sx in range(x_samples):
            inside, left, right, fx = make_tap(sample_point(x_start, x_side, x_samples, j, sx), W)
            if not inside:
                continue
            above = (ONE - fx) * plane[top, left] + fx * plane[top, right]
            below = (ONE - fx) * plane[bottom, left] + fx * plane[bottom, right]
            total += (ONE - fy) * above + fy * below
    y[r, c, i, j] = total / np.float32(max(y_samples * x_samples, 1))


@cuda.jit
def roi_align_grad_v1(dy, rois, dx, spatial_scale, sampling_ratio, aligned):
    """One thread a number of dy, which adds its share to the pixels that the forward kernel's thread has read.

    RoIs overlap, and so do their samples: several threads add to one pixel at the same time. `dplane[top, left] += ...` would read,
    add and write; two threads that read before either writes lose one of the sums. An *atomic* addition cannot be interrupted. Their
    order differs from run to run, and with it the last bits of dx.

    dy (R, C, OH, OW), rois (R, 5), dx (N, C, H, W), zeros at first
    """
    k = cuda.grid(1)
    if k >= dy.size:
        return
    _, C, H, W = dx.shape
    _, _, OH, OW = dy.shape
    j, i, c, r = k % OW, k // OW % OH, k // OW // OH % C, k // OW // OH // C

    roi = rois[r]
    x_start, x_side, x_samples = make_axis(roi, 0, spatial_scale, OW, sampling_ratio, aligned)
    y_start, y_side, y_samples = make_axis(roi, 1, spatial_scale, OH, sampling_ratio, aligned)
    dplane = dx[int(roi[0]), c]

    # forward: y = total / samples, so each sample gets this share
    share = dy[r, c, i, j] / np.float32(max(y_samples * x_samples, 1))
    for sy in range(y_samples):
        inside, top, bottom, fy = make_tap(sample_point(y_start, y_side, y_samples, i, sy), H)
        if not inside:
            continue
        for sx in range(x_samples):
            inside, left, right, fx = make_tap(sample_point(x_start, x_side, x_samples, j, sx), W)
            if not inside:
                continue
            # forward: total += (1 - fy) * ((1 - fx) * plane[top, left] + fx * plane[top, right]) + fy * (...)
            cuda.atomic.add(dplane, (top, left), share * (ONE - fy) * (ONE - fx))
            cuda.atomic.add(dplane, (top, right), share * (ONE - fy) * fx)
            cuda.atomic.add(dplane, (bottom, left), share * fy * (ONE - fx))
            cuda.atomic.add(dplane, (bottom, right), share * fy * fx)


# What runs on the CPU: check, copy to the GPU, launch, copy back. The signatures are those of nprcnn.ops.roi_align.


def roi_align(features, rois, spatial_scale, output_size, sampling_ratio=2, aligned=False):
    """RoIAlign of every RoI: features (N, C, H, W), rois (R, 5) -> (R, C, oh, ow)."""
    out_h, out_w = check_rois(rois, features.shape, output_size)
    check_floating(features, "features")
    real = features.dtype.type
    shape = len(rois), features.shape[1], out_h, out_w
    if math.prod(shape) == 0:
        return np.empty(shape, real)
    y = cuda.device_array(shape, real)
    features, rois = to_device(features), to_device(rois, real)
    roi_align_v1[blocks_for(y.size), THREADS](features, rois, y, real(spatial_scale), int(sampling_ratio), bool(aligned))
    return y.copy_to_host()


def roi_align_grad(dy, rois, x_shape, spatial_scale, output_size, sampling_ratio=2, aligned=False):
    """Gradient of the features (N, C, H, W) from dy (R, C, oh, ow)."""
    out_h, out_w = check_rois(rois, x_shape, output_size)
    wanted = len(rois), x_shape[1], out_h, out_w
    if dy.shape != wanted:
        raise ValueError(f"dy must have shape {wanted}, got {dy.shape}")
    real = dy.dtype.type
    dx = np.zeros(tuple(x_shape), real)
    if dy.size == 0:
        return dx
    dy, rois, dx = to_device(dy), to_device(rois, real), to_device(dx)
    roi_align_grad_v1[blocks_for(dy.size), THREADS](dy, rois, dx, real(spatial_scale), int(sampling_ratio), bool(aligned))
    return dx.copy_to_host()
