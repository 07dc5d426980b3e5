"""1x1 convolution with stride 1 and no padding: a matrix product, and the input is its own column matrix.

    y[n] = w @ x[n]          (O, C) @ (C, H * W)

Nothing is copied to get there: x[n] lies in memory as that matrix already, and the product is written where y is. A block of pixels is
small enough that the epilogue (bias, norm, shortcut, ReLU) finds it in the cache.
G groups: G products, (O / G, C / G) @ (C / G, H * W).
"""

import numpy as np

from . import workers
from .conv_epilogue import finish_in_place

BLOCK_BYTES = 4 << 20    # of one block of the output
LEAST_PIXELS = 512       # a narrower product is slower for each number of it ...
LEAST_SHARED = 128       # ... but few pixels are shared out, too
LEAST_CHANNELS = 32      # of a thread's part of dw


def conv_pointwise(x, w, geo, epilogue):
    """x (N, C, H, W), w (O, C / G, 1, 1) -> y (N, O, H, W)."""
    y = np.empty(geo.y_shape, x.dtype)
    product(x, w.reshape(geo.groups, -1, w.shape[1]), y, epilogue)
    return y


def grad_x_pointwise(dy, w, geo, epilogue):
    """dy (N, O, H, W), w (O, C / G, 1, 1) -> dx (N, C, H, W)."""
    dx = np.empty(geo.x_shape, dy.dtype)
    # forward: y[n] = w @ x[n], so dx[n] = w.T @ dy[n]
    product(dy, w.reshape(geo.groups, -1, w.shape[1]).swapaxes(1, 2), dx, epilogue)
    return dx


def grad_w_pointwise(dy, x, geo):
    """dy (N, O, H, W), x (N, C, H, W) -> dw (O, C / G, 1, 1)."""
    groups, pixels = geo.groups, x.shape[2] * x.shape[3]
    dw = np.zeros((groups, geo.w_shape[0] // groups, geo.w_shape[1]), x.dtype)
    dy, x = dy.reshape(len(dy), groups, -1, pixels), x.reshape(len(x), groups, -1, pixels)

    def add_images(rows, columns):
        """A part of dw: no two threads add to one place."""
        for image in range(len(x)):
            # forward: y[n] = w @ x[n], so dw = the sum over n of dy[n] @ x[n].T
            dw[:, rows, columns] += np.matmul(dy[image, :, rows], x[image, :, columns].swapaxes(1, 2))

    if dw.shape[1] >= dw.shape[2]:
        tasks = [(slice(*part), slice(None)) for part in workers.parts(dw.shape[1], LEAST_CHANNELS)]
    else:
        tasks = [(slice(None), slice(*part)) for part in workers.parts(dw.shape[2], LEAST_CHANNELS)]
    workers.run(add_images, tasks, dw.size * pixels * len(x))
    return dw.reshape(geo.w_shape)


def product(x, w, y, epilogue):
    """y[n] = epilogue(w @ x[n]): x (N, C, ...), w (G, O / G, C / G), y (N, O, ...), block by block."""
    n, out_channels, groups = len(x), y.shape[1], len(w)
    pixels = y.shape[2] * y.shape[3]
    x, by_group = x.reshape(n, groups, -1, pixels), y.reshape(n, groups, -1, pixels)

    def multiply(image, pixel, images, width):
        pixel_slice = slice(pixel, pixel + width)
        np.matmul(w, x[image:image + images, :, :, pixel_slice], out=by_group[image:image + images, :, :, pixel_slice])
        if not epilogue.is_identity:
            finish_in_place(y, image, images, pixel, width, epilogue)

    width = max(LEAST_PIXELS, BLOCK_BYTES // (out_channels * y.itemsize))
    if n > 1 and pixels < width:
        tasks = [(start, 0, stop - start, pixels) for start, stop in workers.shrinking(n, width // pixels)]
    else:
        pieces = workers.shrinking(pixels, width, LEAST_PIXELS, LEAST_SHARED)
        tasks = [(image, start, 1, stop - start) for image in range(n) for start, stop in pieces]
    workers.run(multiply, tasks, y.size * w.shape[2])
