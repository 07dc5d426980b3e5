"""Exercises of notebook 02: convolution."""

import numpy as np

from ..ops.conv import conv2d, conv2d_grad_x
from ..ops.deconv import conv_transpose2d
from .checks import compare


def check_receptive_field(yours):
    """receptive_field([(kernel, stride, dilation), ...]) -> how many input pixels, along one axis, one output sees."""
    def right(layers, strides=True, early=False, dilations=True):
        size, step = 1, 1
        for kernel, stride, dilation in layers:
            size += (kernel - 1) * (dilation if dilations else 1) * step * (stride if early else 1)
            step *= stride if strides else 1
        return size

    def from_the_end(layers):
        size = 1
        for kernel, stride, dilation in layers:
            size = (size - 1) * stride + (kernel - 1) * dilation + 1
        return size

    mistakes = [
        (lambda layers: right(layers, strides=False),
         "the strides have no effect. After a layer of stride s, neighbours are s times as far apart in the image."),
        (lambda layers: right(layers, early=True),
         "a layer's own stride widens the layers after it, not itself: add to the size first, then multiply the step."),
        (lambda layers: right(layers, dilations=False), "the dilation has no effect: k pixels d apart span (k - 1) d + 1."),
        (from_the_end,
         "that rule walks from the last layer to the first. From the first on, keep how far apart neighbours lie."),
        (lambda layers: sum(kernel for kernel, _, _ in layers), "a kernel of k adds k - 1 pixels to the one already there."),
        (lambda layers: right(layers) - 1, "one too few: before any layer, an output sees 1 pixel, itself."),
    ]
    cases = [("one 3x3 of stride 2", ([(3, 2, 1)],)), ("three of 3x3", ([(3, 1, 1)] * 3,)),
             ("ResNet's stem", ([(7, 2, 1), (3, 2, 1)],)), ("dilations 1, 2, 4", ([(3, 1, 1), (3, 1, 2), (3, 1, 4)],)),
             ("strides and a dilation", ([(5, 2, 1), (3, 1, 2), (2, 3, 1), (3, 1, 1)],))]
    return compare("receptive_field", yours, right, cases, ("size",), mistakes)


def check_conv_transpose(yours):
    """conv_transpose(x, w, stride) -> y: x (N, C, H, W), w (C, O, KH, KW), no padding."""
    def right(x, w, stride):
        return conv_transpose2d(x, w, None, stride)

    def overwrite(x, w, stride):
        y = np.zeros_like(right(x, w, stride))
        for i, j in np.ndindex(x.shape[2:]):
            top, left = i * stride, j * stride
            y[:, :, top:top + w.shape[2], left:left + w.shape[3]] = np.einsum("nc,coij->noij", x[:, :, i, j], w)
        return y

    mistakes = [
        (overwrite, "stamps that overlap must add up, and yours overwrite one another: = where += is meant."),
        (lambda x, w, s: right(x, w[:, :, ::-1, ::-1], s), "the filter is turned round. The stamp is the filter as it is."),
        (lambda x, w, s: right(x, w, 1), "the stamps lie 1 pixel apart: that of pixel (h, w) begins at (h stride, w stride)."),
        (lambda x, w, s: right(x, w, s)[:, :, :x.shape[2] * s, :x.shape[3] * s],
         "it is cut off. The last stamp begins at (H - 1) * stride and is KH high."),
        (lambda x, w, s: right(x, w.swapaxes(0, 1), s) if w.shape[0] == w.shape[1] else None,
         "w is (C, O, KH, KW), with the input channels first: the sum over channels runs over its first axis."),
    ]
    rng = np.random.default_rng(4)
    cases = [(name, (rng.standard_normal(x), rng.standard_normal(w), stride)) for name, x, w, stride in (
        ("2x2 filters, stride 2, as in the mask head", (1, 2, 3, 4), (2, 2, 2, 2), 2),
        ("3x3 filters, stride 2", (2, 2, 3, 4), (2, 3, 3, 3), 2),
        ("3x2 filters, stride 1", (1, 3, 4, 2), (3, 1, 3, 2), 1),
        ("2x2 filters, stride 3", (1, 1, 2, 3), (1, 2, 2, 2), 3))]
    return compare("conv_transpose", yours, right, cases, ("y",), mistakes)


def check_grad_x_by_convolution(yours):
    """grad_x_by_convolution(dy, w, x_shape, stride, padding) -> dx of conv2d; w (O, C, K, K), padding < K."""
    def answer(dy, w, x_shape, stride, padding, turn=-1, swap=True, rest=True, pad=None):
        k = w.shape[2]
        sizes = [size + 2 * padding - k + 1 if rest else (n - 1) * stride + 1 for size, n in zip(x_shape[2:], dy.shape[2:])]
        spread = np.zeros((*dy.shape[:2], *sizes))
        spread[:, :, ::stride, ::stride][:, :, :dy.shape[2], :dy.shape[3]] = dy
        w = w[:, :, ::turn, ::turn]
        return conv2d(spread, w.swapaxes(0, 1) if swap else w, None, 1, k - 1 - padding if pad is None else pad)

    def copied(dy, w, x_shape, stride, padding):
        dz = dy.repeat(stride, axis=2).repeat(stride, axis=3)
        dz = dz[:, :, :x_shape[2] + 2 * padding - w.shape[2] + 1, :x_shape[3] + 2 * padding - w.shape[2] + 1]
        return answer(dz, w, x_shape, 1, padding)

    mistakes = [
        (lambda *a: answer(*a, turn=1), "the filters are not turned round: w[:, :, ::-1, ::-1]."),
        (lambda *a: answer(*a, swap=False) if a[1].shape[0] == a[1].shape[1] else None,
         "input and output channels must change places: dy has O channels, dx has C."),
        (lambda *a: answer(*a, pad=a[4]),
         "that is the forward's padding. The way back needs K - 1 - padding, the same for 3x3 with padding 1 only."),
        (lambda *a: answer(*a, rest=False),
         "the last rows or columns are missing: with a stride, the last window may end before the last pixel. Make the "
         "spread-out dy as large as the output would be with stride 1."),
        (copied, "dy is copied to the places in between. No output kept them, so their gradient is 0."),
    ]
    rng = np.random.default_rng(5)
    cases = []
    for name, x_shape, out, k, stride, padding in (
            ("3x3, padding 1, 2 channels to 2", (1, 2, 5, 6), 2, 3, 1, 1),
            ("3x3, no padding, 2 channels to 3", (2, 2, 5, 6), 3, 3, 1, 0),
            ("3x3, stride 2, padding 1, odd size", (1, 2, 7, 5), 3, 3, 2, 1),
            ("3x3, stride 2, padding 1, even size", (1, 2, 8, 6), 2, 3, 2, 1),
            ("5x5, stride 3, padding 2", (1, 1, 12, 11), 2, 5, 3, 2)):
        w = rng.standard_normal((out, x_shape[1], k, k))
        dy = rng.standard_normal(conv2d(np.zeros(x_shape), w, None, stride, padding).shape)
        cases.append((name, (dy, w, x_shape, stride, padding)))
    return compare("grad_x_by_convolution", yours, conv2d_grad_x, cases, ("dx",), mistakes)
