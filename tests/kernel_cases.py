"""Every kernel of kernels/cuda on small odd shapes, against the NumPy functions. check_kernels.py runs this file, a process a mode:

    CUDA_ON_CPU_MODE=run python tests/kernel_cases.py results.json float32 float64

The shapes fill no tile and no block, and reach beyond one of them each way; there are few threads, because a sanitizer needs a
thousandfold of a plain run's time for each.
"""

import functools
import json
import sys

import numpy as np

from nprcnn import ops
from nprcnn.kernels.cuda import conv2d as conv
from nprcnn.kernels.cuda import launch, nms, norm_relu, paste, pool, resize, roi_align, roi_pool
from nprcnn.kernels.cuda_on_cpu.loader import KERNEL

# Those of the NumPy functions' own tests (test_roi_align.py, test_conv.py), where they are derived: the same numbers are summed in another
# order. Relative to 1 + |y|.
TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}
CONV_TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-4}
WINOGRAD_TOLERANCE = 3e-4       # it rounds about ten times as much (kernels/cpu/conv_errors.py); the largest difference measured here is 9e-5
EXACT = 0

# N, C, H, W, O, (KH, KW), stride, padding, dilation, groups; for these versions
CONVOLUTIONS = [
    (2, 3, 9, 7, 5, (3, 3), 1, 1, 1, 1, (1, 2, 3)),             # a depth of 27: not for version 4
    (3, 4, 7, 7, 20, (3, 3), 1, 1, 1, 1, (2, 3, 4, 5)),         # 147 pixels: more than one tile; images of 49 make no whole vectors
    (1, 4, 4, 6, 132, (3, 3), 1, 1, 1, 1, (3, 4)),              # 132 channels out: more than one tile; images of 24 do make vectors
    (1, 8, 9, 5, 6, (1, 1), 2, 0, 1, 1, (1, 2, 3, 4, 5)),
    (1, 1, 17, 18, 4, (2, 2), 1, 1, 1, 1, (3, 4, 5)),           # 342 pixels: two blocks share the sum of a weight's gradient
    (1, 4, 8, 7, 6, (3, 2), (2, 1), (2, 0), (1, 2), 1, (1, 2, 3, 4, 5)),
    (1, 4, 6, 5, 6, (3, 2), (1, 2), (0, 1), (2, 1), 2, (1,)),
]


def differ(found, expected):
    """The largest |found - expected| / (1 + |expected|); infinity if shapes or dtypes differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    error = np.abs(found.astype(float) - expected) / (1 + np.abs(expected.astype(float)))
    return float(np.nan_to_num(error, nan=np.inf).max(initial=0))


class Cases:
    """Runs a function and the NumPy function on the same arguments, and keeps what was launched and how far the results are apart."""

    def __init__(self, real):
        self.real, self.rng, self.rows = np.dtype(real), np.random.default_rng(0), []

    def numbers(self, *shape):
        return self.rng.standard_normal(shape).astype(self.real)

    def boxes(self, count, side):
        corner = self.rng.uniform(-side / 4, side, (count, 2))
        return np.hstack([corner, corner + self.rng.uniform(0, side, (count, 2))]).astype(self.real)

    def compare(self, what, compute, expected, tolerance):
        """`expected`: an array or several, as `compute()` returns."""
        launched.clear()
        print(what, flush=True)
        found = compute()
        found, expected = (value if isinstance(value, tuple) else (value,) for value in (found, expected))
        error = max(map(differ, found, expected))
        self.rows.append({"what": what, "real": self.real.name, "kernels": sorted({(home(*key), key[1]) for key in launched}),
                          "error": error, "good": error <= tolerance})


def roi_align_cases(cases):
    features = cases.numbers(2, 37, 5, 9)            # 37 channels: more than a tile of 32 and two blocks of 16
    rois = np.hstack([[[0], [1], [1], [0]], cases.boxes(4, 20)]).astype(cases.real)
    rois[2, 3:] = rois[2, 1:3] + (0.5, 1)            # smaller than a pixel of the map
    rois[3, 1:] = -90, -90, -60, -60                 # outside
    tolerance = TOLERANCE[cases.real]
    for size, ratio, aligned in (((4, 3), 2, False), ((2, 3), 3, True), ((3, 2), -1, False), ((2, 2), 0, True)):
        expected = ops.roi_align.roi_align(features, rois, 0.5, size, ratio, aligned)
        dy = cases.numbers(*expected.shape)
        dx = ops.roi_align.roi_align_grad(dy, rois, features.shape, 0.5, size, ratio, aligned)
        for version in (1, 2, 3) if ratio > 0 else (1,):
            cases.compare(f"roi_align {size} {ratio} {aligned} v{version}",
                          lambda: roi_align.roi_align(features, rois, 0.5, size, ratio, aligned, version=version), expected, tolerance)
        for version in (1, 2):
            cases.compare(f"roi_align_grad {size} {ratio} {aligned} v{version}", lambda: roi_align.roi_align_grad(
                dy[:, :5], rois, (2, 5, 5, 9), 0.5, size, ratio, aligned, version=version), dx[:, :5], tolerance)


def nms_cases(cases):
    for count in (1, 64, 150):
        boxes, scores = cases.boxes(count, 30), np.round(cases.rng.random(count), 2).astype(cases.real)
        groups = cases.rng.integers(-1, 3, count)
        for version in (1, 2):
            cases.compare(f"nms of {count} v{version}", lambda: nms.nms(boxes, scores, 0.4, version=version), ops.nms.nms(boxes, scores, 0.4), EXACT)
        cases.compare(f"batched_nms of {count}", lambda: nms.batched_nms(boxes, scores, groups, 0.4),
                      ops.nms.batched_nms(boxes, scores, groups, 0.4), EXACT)


def conv_cases(cases):
    tolerance = CONV_TOLERANCE[cases.real]
    for n, channels, height, width, out_channels, kernel, *options, versions in CONVOLUTIONS:
        groups = options[-1]
        x, w, b = cases.numbers(n, channels, height, width), cases.numbers(out_channels, channels // groups, *kernel), cases.numbers(out_channels)
        y = ops.conv.conv2d(x, w, b, *options)
        dy = cases.numbers(*y.shape)
        dx, dw = ops.conv.conv2d_grad_x(dy, w, x.shape, *options), ops.conv.conv2d_grad_w(dy, x, w.shape, *options)
        shape = f"{x.shape} {w.shape} {options}"
        for version in versions:
            # what is right for TF32 is what comes of the rounded numbers; with a stride version 5 leaves dx to version 3, in float32
            nearest = conv.round_to_tf32 if version == 5 and cases.real == np.float32 else lambda array: array
            if version < 4 or conv.takes_v4(channels, *kernel, cases.real):
                cases.compare(f"conv2d {shape} v{version}", lambda: conv.conv2d(x, w, b, *options, version=version),
                              y if version < 5 else ops.conv.conv2d(nearest(x), nearest(w), b, *options), tolerance)
            cases.compare(f"conv2d_grad_x {shape} v{version}", lambda: conv.conv2d_grad_x(dy, w, x.shape, *options, version=version),
                          dx if version < 5 or options[0] != 1 else ops.conv.conv2d_grad_x(nearest(dy), nearest(w), x.shape, *options), tolerance)
            cases.compare(f"conv2d_grad_w {shape} v{version}", lambda: conv.conv2d_grad_w(dy, x, w.shape, *options, version=version),
                          dw if version < 5 else ops.conv.conv2d_grad_w(nearest(dy), nearest(x), w.shape, *options), tolerance)


def winograd_cases(cases):
    if cases.real != np.float32:
        return
    # whole tiles and vectors; neither; more channels than a step takes, and more tiles than a block
    for (n, channels, height, width), out_channels, padding in (((1, 4, 8, 8), 8, 1), ((3, 3, 7, 9), 5, (2, 0)), ((2, 9, 26, 45), 6, 0)):
        x, w, b = cases.numbers(n, channels, height, width), cases.numbers(out_channels, channels, 3, 3), cases.numbers(out_channels)
        y = ops.conv.conv2d(x, w, b, 1, padding)
        dy = cases.numbers(*y.shape)
        cases.compare(f"winograd {x.shape} {w.shape} {padding}", lambda: conv.conv2d(x, w, b, 1, padding, version="winograd"), y,
                      WINOGRAD_TOLERANCE)
        cases.compare(f"winograd, dx {x.shape} {w.shape} {padding}",
                      lambda: conv.conv2d_grad_x(dy, w, x.shape, 1, padding, version="winograd"),
                      ops.conv.conv2d_grad_x(dy, w, x.shape, 1, padding), WINOGRAD_TOLERANCE)


def pool_cases(cases):
    for shape, options in (((2, 3, 9, 7), (3, 2, 1)), ((1, 2, 5, 11), ((2, 3), (1, 2), (0, 1)))):
        x = np.round(cases.numbers(*shape), 1)       # rounded: with ties
        y, index = ops.pool.max_pool2d(x, *options)
        cases.compare(f"max_pool2d {shape} {options}", lambda: pool.max_pool2d(x, *options), (y, index), EXACT)
        dy = cases.numbers(*y.shape)
        for ordered in (False, True):
            cases.compare(f"max_pool2d_grad {shape} {options} {'ordered' if ordered else 'atomic'}",
                          lambda: pool.max_pool2d_grad(dy, index, shape, ordered), ops.pool.max_pool2d_grad(dy, index, shape), TOLERANCE[cases.real])


def roi_pool_cases(cases):
    features = np.round(cases.numbers(2, 5, 9, 13), 1)
    rois = np.hstack([[[0], [1], [1], [0]], cases.boxes(4, 20)]).astype(cases.real)
    rois[3, 1:] = -90, -90, -60, -60                 # outside: empty bins
    y, index = ops.roi_pool.roi_pool(features, rois, 0.5, (4, 3))
    cases.compare("roi_pool", lambda: roi_pool.roi_pool(features, rois, 0.5, (4, 3)), (y, index), EXACT)
    dy = cases.numbers(*y.shape)
    for ordered in (False, True):
        cases.compare(f"roi_pool_grad {'ordered' if ordered else 'atomic'}",
                      lambda: roi_pool.roi_pool_grad(dy, index, rois, features.shape, ordered),
                      ops.roi_pool.roi_pool_grad(dy, index, rois, features.shape), TOLERANCE[cases.real])


def resize_cases(cases):
    for shape, size in (((2, 3, 5, 7), (11, 13)), ((1, 2, 11, 13), (5, 7)), ((1, 2, 1, 6), (3, 17))):
        x, dy = cases.numbers(*shape), cases.numbers(*shape[:2], *size)
        for name, tolerance in (("nearest", EXACT), ("bilinear", TOLERANCE[cases.real])):
            for argument, function, other in ((x, f"resize_{name}", size), (dy, f"resize_{name}_grad", shape)):
                cases.compare(f"{function} {shape} {size}", lambda: getattr(resize, function)(argument, other),
                              getattr(ops.resize, function)(argument, other), TOLERANCE[cases.real] if "grad" in function else tolerance)


def other_cases(cases):
    masks, boxes = cases.rng.random((3, 7, 7)).astype(cases.real), cases.boxes(3, 12)
    cases.compare("paste_masks", lambda: paste.paste_masks(masks, boxes, (13, 11)), ops.paste.paste_masks(masks, boxes, (13, 11)),
                  TOLERANCE[cases.real])
    x, residual = cases.numbers(2, 5, 6, 7), cases.numbers(2, 5, 6, 7)
    scale, shift = cases.numbers(5), cases.numbers(5)
    y = x * scale[:, None, None] + shift[:, None, None]
    cases.compare("norm", lambda: norm_relu.norm_relu(x, scale, shift, relu=False), y, TOLERANCE[cases.real])
    cases.compare("norm_relu with a residual", lambda: norm_relu.norm_relu(x, scale, shift, residual), np.maximum(y + residual, 0),
                  TOLERANCE[cases.real])


def all_kernels():
    """{file: its kernels}: every .cu file, and every header that has kernels."""
    found = {path.name: KERNEL.findall(path.read_text(encoding="utf-8")) for path in launch.FOLDER.glob("*.cu*")}
    return {name: found[name] for name in sorted(found) if found[name]}


def home(file, kernel):
    """The file that the kernel's text is in: FILE.cu, or a header."""
    kernels = all_kernels()
    return next(name for name in (f"{file}.cu", *kernels) if kernel in kernels.get(name, ()))


launched = set()


def main(path, *reals):
    original = launch.kernel

    @functools.wraps(original)
    def kernel(file, function, real, xp):
        launched.add((file, function))
        return original(file, function, real, xp)

    launch.kernel = kernel
    rows = []
    for real in reals:
        cases = Cases(real)
        for group in (roi_align_cases, nms_cases, conv_cases, winograd_cases, pool_cases, roi_pool_cases, resize_cases, other_cases):
            group(cases)
        rows += cases.rows
    with open(path, "w") as file:
        json.dump(rows, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
