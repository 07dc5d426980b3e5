"""1x1 convolution with stride 1 and no padding: a matrix product, and the input is its own column matrix.

    y[n] = w @ x[n]          (O, C) @ (C, H * W)

Nothing is copied to get there: x[n] lies in memory as that matrix already. What is left to gain is the output. The product runs over
blocks of pixels, small enough that the epilogue (bias, norm, shortcut, ReLU) finds the block in the cache.
G groups: G products, (O / G, C / G) @ (C / G, H * W).
"""

import numpy as np

from .conv_epilogue import finish
from .conv_scratch import scratch

BLOCK_BYTES = 4 << 20    # of one block of the output
LEAST_PIXELS = 512       # a narrower product is slower for each number of it


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
    for image in range(len(x)):
        # forward: y[n] = w @ x[n], so dw = the sum over n of dy[n] @ x[n].T
        dw += np.matmul(dy[image].reshape(groups, -1, pixels), x[image].reshape(groups, -1, pixels).swapaxes(1, 2))
    return dw.reshape(geo.w_shape)


def product(x, w, y, epilogue):
    """y[n] = epilogue(w @ x[n]): x (N, C, ...), w (G, O / G, C / G), y (N, O, ...), block by block."""
    n, out_channels, groups = len(x), y.shape[1], len(w)
    pixels = y.shape[2] * y.shape[3]
    x, flat = x.reshape(n, groups, -1, pixels), y.reshape(n, groups, -1, pixels)
    if epilogue.is_identity:
        np.matmul(w, x, out=flat)
        return
    width = max(LEAST_PIXELS, BLOCK_BYTES // (out_channels * y.itemsize))
    images = max(1, width // pixels)
    width = min(width, pixels)
    with scratch(y.dtype, out_channels * images * width) as (buffer,):
        for image in range(0, n, images):
            count = min(images, n - image)
            for pixel in range(0, pixels, width):
                size = min(width, pixels - pixel)
                acc = buffer[:out_channels * count * size].reshape(groups, -1, count, size)
                # acc is (G, O / G, n, P), so that the epilogue walks over channels; the product of each image goes straight there
                np.matmul(w, x[image:image + count, :, :, pixel:pixel + size], out=acc.transpose(2, 0, 1, 3))
                finish(acc.reshape(out_channels, count, size), y, image, pixel, epilogue)
