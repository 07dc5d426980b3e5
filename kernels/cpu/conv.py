"""Convolution for the CPU: which algorithm for which shape. The functions have the signatures of nprcnn/ops/conv.py.

    "pointwise"       conv_pointwise.py   1x1, stride 1, no padding: one matrix product, no copy
    "winograd 4x4"    conv_winograd.py    3x3, stride 1: a quarter of the products of im2col
    "winograd 2x2"    conv_winograd.py    the same with 4 / 9 of the products: for small maps, and where less rounding is wanted
    "direct"          conv_direct.py      groups of one input channel ("depthwise")
    "im2col"          conv_im2col.py      all others: strides, dilations, the 7x7 stem

choose_algorithm says which one a layer gets and holds the reasons. Each algorithm ends in the same epilogue (conv_epilogue.py).
A kernel here is a Python function that walks over blocks; in a block, compiled loops rearrange numbers, and a matrix product does the
multiplying: NumPy's (BLAS), or in Winograd's forward pass one of our own (conv_product.py). The blocks are shared out among threads
(workers.py).
"""

import numpy as np

from .checks import check_floating, plain
from .conv_direct import conv_direct
from .conv_epilogue import make_epilogue
from .conv_geometry import check_like_output, check_vector, geometry, turned_round
from .conv_im2col import conv_im2col, grad_w_im2col, grad_x_im2col
from .conv_pointwise import conv_pointwise, grad_w_pointwise, grad_x_pointwise
from .conv_winograd import TILE_2X2, TILE_4X4, conv_winograd, grad_w_winograd, tile_count
from .lock import one_at_a_time

ALGORITHMS = ("pointwise", "winograd 4x4", "winograd 2x2", "direct", "im2col")

# Outputs of a Winograd tile along each axis. The largest error of 4 is 10 to 45 times that of im2col, up to 2.3e-5 of the largest
# feature; that of 2 at most 3 times (conv_errors.py has the table), and it takes 1.2 times as long or more. With 4 the
# boxes, scores and masks of the whole network stay within torchvision's own rounding (tests/test_parity_predict.py). Where a network asks
# for more, set this to 2.
WINOGRAD_TILE = 4

# Measured, float32, one core of an x86-64 with AVX2, CPU time:
LEAST_CHANNELS = 32      # in and out: with 32 and 64 tiles, Winograd 0.31 ms, im2col 0.44; with 16, 0.18 and 0.20
LEAST_TILES_4X4 = 32     # of 4x4 outputs: with 256 channels and 16 tiles, 4x4 4.4 ms, 2x2 3.4, im2col 4.4; with 64 tiles 7.7, 9.8, 16.5
LEAST_TILES_2X2 = 12     # of 4x4 outputs, too: with 4 tiles 3.5, 1.7 and 1.3 ms
LEAST_CHANNELS_2X2 = 128


def choose_algorithm(x_shape, w_shape, stride=1, padding=0, dilation=1, groups=1, dtype=np.float32):
    """The algorithm that conv2d uses for these arguments, one of ALGORITHMS. Gradients take the one of their forward pass.

    float64 never gets Winograd, though all of it works in float64 too: gradients are checked in float64, on small arrays, and compiling
    the transforms once more would take longer than all of the checks.

    Raises
    ------
    ValueError
        Shapes that do not fit; see nprcnn.ops.conv.conv2d.
    """
    return _choose(geometry(x_shape, w_shape, stride, padding, dilation, groups), dtype)


def _choose(geo, dtype):
    inputs, outputs = geo.w_shape[1], geo.w_shape[0] // geo.groups            # channels of a group
    if geo.kernel == (1, 1) and geo.stride == (1, 1) and geo.padding == (0, 0):
        return "pointwise"
    if geo.groups > 1 and inputs == 1:
        return "direct"        # one input channel a group: 0.35 to 0.7 of im2col's time; with two it already takes longer
    if geo.kernel == (3, 3) and geo.stride == (1, 1) and geo.dilation == (1, 1) and geo.groups == 1 and dtype == np.float32:
        # A tile's transform is paid once a channel and used for all channels on the other side: it takes channels to pay off.
        # A filter's transform is paid once and used for all tiles: it takes tiles, and with few of them the 2x2 pays off first,
        # for it has 16 products to prepare where the 4x4 has 36.
        tiles = tile_count(geo, 4)
        if min(inputs, outputs) >= LEAST_CHANNELS and tiles >= LEAST_TILES_4X4:
            return "winograd 4x4" if WINOGRAD_TILE == 4 else "winograd 2x2"
        if min(inputs, outputs) >= LEAST_CHANNELS_2X2 and tiles >= LEAST_TILES_2X2:
            return "winograd 2x2"
    return "im2col"


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """x (N, C, H, W), w (O, C / G, KH, KW), b (O,) or None -> y (N, O, OH, OW). See nprcnn.ops.conv.conv2d."""
    return conv2d_fused(x, w, b, stride, padding, dilation, groups)


def conv2d_fused(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, scale=None, shift=None, residual=None, relu=False):
    """y = relu(conv2d(x, w, b) * scale + shift + residual) without a pass over y for each step. See nprcnn.ops.conv.conv2d_fused."""
    geo = geometry(x.shape, w.shape, stride, padding, dilation, groups)
    check_vector(b, "b", geo.y_shape[1])
    check_vector(scale, "scale", geo.y_shape[1])
    check_vector(shift, "shift", geo.y_shape[1])
    check_like_output(residual, "residual", geo)
    dtype = _common_dtype(x, w, x=x, w=w)
    epilogue = make_epilogue(geo, dtype, b, scale, shift, residual, relu)
    return convolve(_choose(geo, dtype), plain(x, dtype), plain(w, dtype), geo, epilogue)


def conv2d_grad_x(dy, w, x_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient of conv2d to its input: dy (N, O, OH, OW) -> dx, of `x_shape` (N, C, H, W)."""
    geo = geometry(x_shape, w.shape, stride, padding, dilation, groups)
    check_like_output(dy, "dy", geo)
    dtype = _common_dtype(dy, w, dy=dy, w=w)
    dy, w = plain(dy, dtype), plain(w, dtype)
    if 0 in geo.x_shape:
        return np.zeros(geo.x_shape, dtype)
    if geo.kernel == (1, 1) and geo.stride == (1, 1) and geo.padding == (0, 0):
        with one_at_a_time:
            return grad_x_pointwise(dy, w, geo, make_epilogue(geo, dtype))
    reach = tuple(d * (k - 1) for d, k in zip(geo.dilation, geo.kernel))
    if geo.stride == (1, 1) and all(p <= r for p, r in zip(geo.padding, reach)):
        # forward: y[q] = sum over i of w[i] x[q + i - padding], so dx[p] = sum over i of w[i] dy[p - i + padding]
        w = plain(turned_round(w, groups))
        back = geometry(dy.shape, w.shape, 1, tuple(r - p for r, p in zip(reach, geo.padding)), geo.dilation, groups)
        return convolve(_choose(back, dtype), dy, w, back, make_epilogue(back, dtype))
    with one_at_a_time:
        return grad_x_im2col(dy, w, geo)


def conv2d_grad_w(dy, x, w_shape, stride=1, padding=0, dilation=1, groups=1):
    """Gradient of conv2d to its filters: dy (N, O, OH, OW), x (N, C, H, W) -> dw, of `w_shape`."""
    geo = geometry(x.shape, w_shape, stride, padding, dilation, groups)
    check_like_output(dy, "dy", geo)
    dtype = _common_dtype(dy, x, dy=dy, x=x)
    return gradient_to_filters(_choose(geo, dtype), plain(dy, dtype), plain(x, dtype), geo)


def convolve(algorithm, x, w, geo, epilogue):
    """conv2d by the algorithm of that name; x and w are C-ordered and of one dtype."""
    if 0 in geo.y_shape:
        return np.empty(geo.y_shape, x.dtype)
    with one_at_a_time:
        if algorithm == "pointwise":
            return conv_pointwise(x, w, geo, epilogue)
        if algorithm == "direct":
            return conv_direct(x, w, geo, epilogue)
        y = None
        if algorithm.startswith("winograd"):
            y = conv_winograd(x, w, geo, epilogue, TILE_4X4 if algorithm == "winograd 4x4" else TILE_2X2)
        # Winograd gives up where a number is not finite: see its file
        return conv_im2col(x, w, geo, epilogue) if y is None else y


def gradient_to_filters(algorithm, dy, x, geo):
    """conv2d_grad_w by the algorithm of that name; "direct" has none of its own."""
    if 0 in geo.y_shape:
        return np.zeros(geo.w_shape, x.dtype)
    with one_at_a_time:
        if algorithm == "pointwise":
            return grad_w_pointwise(dy, x, geo)
        dw = None
        if algorithm.startswith("winograd"):
            dw = grad_w_winograd(dy, x, geo, TILE_4X4 if algorithm == "winograd 4x4" else TILE_2X2)
        return grad_w_im2col(dy, x, geo) if dw is None else dw


def _common_dtype(a, b, **named):
    """The dtype of the result: float32 or float64. ValueError: not floating point."""
    for name, array in named.items():
        check_floating(array, name)
    dtype = np.result_type(a, b)
    return dtype if dtype == np.float64 else np.dtype(np.float32)
