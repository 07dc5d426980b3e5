"""The backward pass of a convolution whose output gradient is zero at all but a few pixels.

The RPN answers at 240,000 anchors of an image, and its loss looks at 256 of them: no gradient comes from any other pixel, and a product
with zero need not be made. As in conv.py, an output pixel p sees one column: the patch of x that the kernel lies on, zeros where it lies
on padding.

    y[o, p] = sum over k of w[o, k] columns[k, p]       k = (c, i, j): a place in the patch

conv.py makes the columns of all pixels. Here they are made of P pixels only, and all else stays as it is. Groups are left out.
"""

import numpy as np


def live_pixels(*maps):
    """The pixels at which a number of any channel of any of the maps (N, C, H, W) is not zero: image, row, column, (P,) ints each."""
    return np.nonzero(np.any([(m != 0).any(axis=1) for m in maps], axis=0))


def values_at(x, pixels):
    """The numbers of a map (N, C, H, W) at P pixels: (C, P)."""
    image, row, column = pixels
    return np.ascontiguousarray(x[image, :, row, column].T)


def conv2d_backward_at(dy, cache, pixels):
    """Gradients of conv2d, where only P pixels of the output have one.

    Parameters
    ----------
    dy : (O, P)
        The gradient at those pixels.
    cache : Conv2dCache or Conv2dFusedCache
        Of the whole map, with groups = 1. If there was a ReLU, its gradient has been taken.
    pixels : image, row, column, (P,) ints each
        No pixel twice.

    Returns
    -------
    dcolumns : (C * KH * KW, P)
        Of a 1x1 convolution the gradient of x at those pixels; otherwise see add_columns.
    dw : (O, C, KH, KW)
    db : (O,), or None if there was no bias
    """
    w_rows = cache.w.reshape(len(cache.w), -1)
    # forward: y = w @ columns + b, so dcolumns = w.T @ dy, dw = dy @ columns.T, and db = the sum of dy over the pixels
    dcolumns = w_rows.T @ dy
    dw = (dy @ _columns(pixels, cache).T).reshape(cache.w.shape)
    return dcolumns, dw, dy.sum(axis=1) if cache.has_bias else None


def _columns(pixels, cache):
    """(C * KH * KW, P): what each pixel sees of x."""
    n, channels, height, width = cache.x.shape
    taps = cache.w.shape[2] * cache.w.shape[3]
    columns = np.zeros((channels, taps, len(pixels[0])), cache.x.dtype)
    planes = cache.x.reshape(n, channels, height * width)
    for tap, image, inside, place in _places(pixels, cache):
        columns[:, tap, inside] = planes[image][:, place]
    return columns.reshape(channels * taps, len(pixels[0]))


def add_columns(dcolumns, pixels, cache):
    """The gradient of x, (N, C, H, W): each column's gradient is added where the column was taken from. Zero elsewhere."""
    n, channels, height, width = cache.x.shape
    dcolumns = dcolumns.reshape(channels, cache.w.shape[2] * cache.w.shape[3], dcolumns.shape[1])
    dx = np.zeros((n, channels, height * width), dcolumns.dtype)
    for tap, image, inside, place in _places(pixels, cache):
        # forward: columns[:, tap] = planes[:, place]; patches overlap, so +=, but of one tap no place comes twice
        dx[image][:, place] += dcolumns[:, tap, inside]
    return dx.reshape(cache.x.shape)


def _places(pixels, cache):
    """For each place in the kernel and each image: (tap, image, the pixels that see a pixel of x there, its index y * W + x)."""
    image, row, column = pixels
    (kh, kw), (height, width) = cache.w.shape[2:], cache.x.shape[2:]
    for tap in range(kh * kw):
        y = row * cache.stride[0] + tap // kw * cache.dilation[0] - cache.padding[0]
        x = column * cache.stride[1] + tap % kw * cache.dilation[1] - cache.padding[1]
        on_map = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        for n in np.unique(image):
            inside = np.flatnonzero(on_map & (image == n))
            yield tap, n, inside, y[inside] * width + x[inside]
