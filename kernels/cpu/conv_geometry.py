"""The sizes of one convolution, checked once for all algorithms. The messages are those of nprcnn.ops.conv.

Letters, as there: N images, C input channels, H x W input, O output channels, KH x KW kernel, OH x OW output, G groups.
"""

from functools import lru_cache
from typing import NamedTuple


class Geometry(NamedTuple):
    """All sizes of one convolution; every pair is (vertical, horizontal)."""

    x_shape: tuple
    w_shape: tuple
    y_shape: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int

    @property
    def kernel(self):
        return self.w_shape[2:]


def geometry(x_shape, w_shape, stride=1, padding=0, dilation=1, groups=1):
    """Check that all fits and return the sizes. ValueError: it does not; the message names the shapes."""
    return _checked(tuple(x_shape), tuple(w_shape), _pair(stride), _pair(padding), _pair(dilation), groups)


@lru_cache(maxsize=1024)      # a network asks for the same sizes in every step, and the checks of a small layer took a tenth of its time
def _checked(x_shape, w_shape, stride, padding, dilation, groups):
    if len(x_shape) != 4 or len(w_shape) != 4:
        raise ValueError(f"x must be (N, C, H, W) and w (O, C / groups, KH, KW), not {x_shape} and {w_shape}")
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or groups < 1:
        raise ValueError(f"stride {stride}, dilation {dilation} and groups {groups} must be positive and "
                         f"padding {padding} not negative")
    n, channels, height, width = x_shape
    out_channels, group_channels, kh, kw = w_shape
    if min(w_shape) < 1 or channels != group_channels * groups or out_channels % groups:
        raise ValueError(f"x {x_shape} and w {w_shape} do not fit with groups={groups}: "
                         "w must be (O, C / groups, KH, KW), groups dividing O")
    out_h = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(f"the kernel of w {w_shape} with dilation {dilation} is larger than x {x_shape} "
                         f"with padding {padding}")
    y_shape = (n, out_channels, out_h, out_w)
    return Geometry(x_shape, w_shape, y_shape, stride, padding, dilation, int(groups))


def check_vector(v, name, out_channels):
    """ValueError unless v is None or (O,)."""
    if v is not None and v.shape != (out_channels,):
        raise ValueError(f"{name} must be ({out_channels},), one number an output channel, not {v.shape}")


def check_like_output(a, name, geo):
    """ValueError unless a is None or has the output's shape."""
    if a is not None and a.shape != geo.y_shape:
        raise ValueError(f"{name} must have the output's shape {geo.y_shape}, not {a.shape}")


def turned_round(w, groups):
    """(O, C / G, KH, KW) -> (C, O / G, KH, KW): the filters by input channel, each rotated by half a turn.

    With these, conv2d of dy is the gradient to x, if the stride is 1 (nprcnn.ops.conv.conv2d_grad_x has the derivation).
    """
    by_group = w.reshape(groups, -1, *w.shape[1:])[..., ::-1, ::-1]
    return by_group.swapaxes(1, 2).reshape(groups * w.shape[1], -1, *w.shape[2:])


def _pair(value):
    """An int or a (vertical, horizontal) pair -> the pair, of Python ints."""
    if isinstance(value, (tuple, list)):
        return tuple(map(int, value))
    return int(value), int(value)
