"""Every forward/backward pair of nprcnn.ops with the inputs it is checked on: plain data, run by `nprcnn gradcheck`.

The sizes are small, not square and odd on purpose: a swapped height and width, or a last row that no window
reaches, shows only there. Each pair also has a case whose arrays are views with gaps of NaN between the numbers
(what ignores the strides becomes NaN), and one with nothing in it. Inputs keep clear of kinks by construction:
see `_away_from_zero`, `_distinct`, `_apart`.

A layer of your own joins in five lines:

    mine = Pair("mine", mine_forward, mine_backward, [Case("odd size", _normal((2, 3, 5, 7)))])
    print(format_table(run_pairs([mine])))
"""
from functools import partial
from typing import Callable, NamedTuple, Optional

import numpy as np

from .gradcheck import GradientCheckError, check_adjoint, check_gradients
from .ops.activation import (relu_backward, relu_forward, sigmoid_backward, sigmoid_forward, softmax_backward,
                             softmax_forward)
from .ops.conv import conv2d_backward, conv2d_forward
from .ops.conv_fused import conv2d_fused_backward, conv2d_fused_forward
from .ops.deconv import conv_transpose2d_backward, conv_transpose2d_forward
from .ops.linear import linear_backward, linear_forward
from .ops.losses import (bce_with_logits_backward, bce_with_logits_forward, smooth_l1_backward, smooth_l1_forward,
                         softmax_cross_entropy_backward, softmax_cross_entropy_forward)
from .ops.norm import (batch_norm_backward, batch_norm_forward, frozen_batch_norm_backward,
                       frozen_batch_norm_forward)
from .ops.pool import global_avg_pool_backward, global_avg_pool_forward, max_pool2d_backward, max_pool2d_forward
from .ops.resize import (resize_bilinear_backward, resize_bilinear_forward, resize_nearest_backward,
                         resize_nearest_forward)
from .ops.roi_align import roi_align_backward, roi_align_forward
from .ops.roi_pool import roi_pool_backward, roi_pool_forward


class Case(NamedTuple):
    """One set of inputs: make_inputs(rng) -> tuple of arguments; the options are forward's further arguments."""
    name: str
    make_inputs: Callable
    options: dict = {}
    strided: bool = False          # the inputs and dy become views with gaps


class Pair(NamedTuple):
    """One operation. `linear`: positions of the arguments in which it is linear or affine, for the adjoint test."""
    name: str
    forward: Callable
    backward: Callable
    cases: list
    linear: tuple = ()
    kernels: bool = False          # forward and backward take `kernels`


class Row(NamedTuple):
    """One line of the table."""
    pair: str
    case: str
    argument: str
    relative: float                # see gradcheck.GradientError
    adjoint: Optional[float]       # relative error of the adjoint test; None where the pair is not linear
    passed: bool
    problem: str                   # what the checker says when it has not passed


# ---- inputs ----

def _normal(*shapes):
    """Arrays of normal numbers; a shape that is None gives None (no bias)."""
    return lambda rng: tuple(None if shape is None else rng.standard_normal(shape) for shape in shapes)


def _convolution_with_residual(x, w, b, residual):
    """As _normal, but the residual is at least 3 from 0, and the convolution with its small filters less: no sum is near ReLU's kink."""
    def make(rng):
        x_, w_, b_ = _normal(x, w, b)(rng)
        return x_, 0.05 * w_, 0.1 * b_, rng.choice([-1.0, 1.0], residual) * (3 + rng.random(residual))
    return make


def _scaled(factor, shape):
    return lambda rng: (factor * rng.standard_normal(shape),)


def _away_from_zero(shape):
    """At least .1 from 0, for ReLU."""
    return lambda rng: (rng.choice([-1.0, 1.0], shape) * (0.1 + np.abs(rng.standard_normal(shape))),)


def _distinct(shape, shift=0.0):
    """All numbers .01 apart, in random order about `shift`, so that no maximum is a tie."""
    return lambda rng: (0.01 * (rng.permutation(int(np.prod(shape))).reshape(shape) - 0.5 * np.prod(shape)) + shift,)


def _norm(shape):
    """x, weight, bias, running mean and running variance."""
    def make(rng):
        channels = shape[1]
        return (2.0 + 3.0 * rng.standard_normal(shape), rng.standard_normal(channels), rng.standard_normal(channels),
                rng.standard_normal(channels), rng.uniform(0.5, 2.0, channels))
    return make


def _with_rois(make_features, *rois):
    """Features and RoIs (image, x1, y1, x2, y2)."""
    return lambda rng: (*make_features(rng), np.array(rois, np.float64).reshape(-1, 5))


def _with_labels(rows, classes):
    return lambda rng: (2 * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows))


def _with_soft_targets(shape, factor=2.0):
    return lambda rng: (factor * rng.standard_normal(shape), rng.uniform(0, 1, shape))


def _apart(shape, beta):
    """Prediction and target, with differences of both signs, half of them below .8 beta and half above 1.2 beta."""
    def make(rng):
        target, sign = rng.standard_normal(shape), rng.choice([-1.0, 1.0], shape)
        below, above = rng.uniform(0.1, 0.8, shape), rng.uniform(1.2, 4.0, shape)
        return target + sign * np.where(rng.random(shape) < 0.5, below, above) * (beta or 1.0), target
    return make


def _with_gaps(array):
    """The same numbers in a view of which only every second place is used; the others are NaN."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim == 0:
        return array
    wide = np.full((*array.shape, 2), np.nan)
    wide[..., 0] = array
    return wide[..., 0]


# ---- the pairs ----

# On a map of 9 x 11 at stride 8 (72 x 88 pixels): two that overlap, one over the first corner, one over the last, one
# smaller than a feature pixel, one wholly outside, and the whole map. Image 1 has no RoI in _ONE_IMAGE.
_ROIS = ((0, 6.3, 9.1, 49.7, 58.2), (0, 20.4, 3.3, 61.9, 44.8), (1, -11.7, -9.2, 30.6, 25.3),
         (1, 51.2, 40.7, 97.9, 83.1), (0, 33.3, 21.7, 36.1, 24.9), (1, 150.0, 150.0, 180.0, 170.0),
         (0, 0.0, 0.0, 88.0, 72.0))
_ONE_IMAGE = ((0, 6.3, 9.1, 49.7, 58.2), (0, 20.4, 3.3, 61.9, 44.8))
_MAP = (2, 3, 9, 11)

# Of a frozen norm with four channels
_SCALE, _SHIFT = np.array([0.7, -1.3, 0.4, 1.9]), np.array([0.2, -0.1, 0.3, 0.0])


def _roi_case(name, features, rois, output_size, strided=False, **options):
    options = dict(spatial_scale=1 / 8, output_size=output_size, **options)
    return Case(name, _with_rois(features, *rois), options, strided)


PAIRS = [
    Pair("conv2d", conv2d_forward, conv2d_backward, [
        Case("3x3, stride 2, padding 1", _normal((2, 3, 7, 10), (4, 3, 3, 3), (4,)), dict(stride=2, padding=1)),
        Case("5x2, stride (2, 1), padding (2, 0)", _normal((2, 3, 9, 6), (4, 3, 5, 2), (4,)),
             dict(stride=(2, 1), padding=(2, 0))),
        Case("dilation 2, no bias", _normal((2, 2, 9, 7), (3, 2, 3, 3), None), dict(padding=2, dilation=2)),
        Case("3x2, stride 1, padding (0, 1)", _normal((2, 3, 5, 6), (4, 3, 3, 2), (4,)), dict(padding=(0, 1))),
        Case("2 groups", _normal((2, 4, 5, 7), (6, 2, 3, 3), (6,)), dict(padding=1, groups=2)),
        Case("depthwise, stride 2", _normal((2, 3, 5, 8), (3, 1, 3, 3), (3,)), dict(stride=2, padding=1, groups=3)),
        Case("1x1", _normal((2, 3, 5, 4), (5, 3, 1, 1), (5,))),
        Case("1x1, stride 2", _normal((2, 3, 6, 7), (5, 3, 1, 1), None), dict(stride=2)),
        Case("stride 3, rows left over", _normal((2, 2, 8, 10), (3, 2, 3, 2), (3,)), dict(stride=3)),
        Case("windows wholly in the padding", _normal((2, 2, 3, 4), (3, 2, 3, 3), (3,)), dict(padding=4)),
        Case("large: one image a block", _normal((2, 8, 50, 41), (3, 8, 3, 3), (3,)), dict(padding=1)),
        Case("large: some rows a block", _normal((2, 16, 52, 47), (3, 16, 3, 3), (3,)), dict(padding=1)),
        Case("large, stride 2: some rows a block", _normal((2, 32, 69, 57), (3, 32, 3, 3), None),
             dict(stride=2, padding=1)),
        Case("not contiguous", _normal((2, 4, 7, 5), (4, 2, 3, 3), (4,)),
             dict(stride=2, padding=1, groups=2), strided=True),
        Case("1x1, not contiguous", _normal((1, 3, 5, 4), (5, 3, 1, 1), (5,)), strided=True),
        Case("no images", _normal((0, 3, 7, 5), (4, 3, 3, 3), (4,)), dict(padding=1)),
    ], linear=(0, 1, 2), kernels=True),
    Pair("conv2d_fused", conv2d_fused_forward, conv2d_fused_backward, [
        Case("3x3, scale, shift, residual", _normal((2, 3, 5, 7), (4, 3, 3, 3), (4,), (2, 4, 5, 7)),
             dict(scale=_SCALE, shift=_SHIFT, padding=1)),
        Case("all of it, stride 2", _convolution_with_residual((2, 3, 7, 10), (4, 3, 3, 3), (4,), (2, 4, 4, 5)),
             dict(scale=_SCALE, shift=_SHIFT, relu=True, stride=2, padding=1)),
        Case("1x1, ReLU", _convolution_with_residual((2, 3, 5, 4), (4, 3, 1, 1), (4,), (2, 4, 5, 4)), dict(relu=True)),
        Case("2 groups, no bias, no residual", _normal((2, 4, 5, 7), (4, 2, 3, 3), None, None),
             dict(scale=_SCALE, padding=1, groups=2)),
        Case("not contiguous", _convolution_with_residual((2, 3, 7, 5), (4, 3, 3, 3), (4,), (2, 4, 7, 5)),
             dict(scale=_SCALE, relu=True, padding=1), strided=True),
        Case("no images", _normal((0, 3, 7, 5), (4, 3, 3, 3), (4,), (0, 4, 7, 5)), dict(scale=_SCALE, relu=True, padding=1)),
    ], kernels=True),
    Pair("conv_transpose2d", conv_transpose2d_forward, conv_transpose2d_backward, [
        Case("2x2, stride 2 (the mask head's)", _normal((2, 3, 4, 5), (3, 4, 2, 2), (4,)), dict(stride=2)),
        Case("3x3, stride 2, padding 1: windows overlap", _normal((2, 3, 4, 5), (3, 2, 3, 3), (2,)),
             dict(stride=2, padding=1)),
        Case("3x2, stride (1, 2), no bias", _normal((2, 2, 5, 3), (2, 3, 3, 2), None), dict(stride=(1, 2))),
        Case("2x2, stride 3: gaps", _normal((2, 2, 3, 4), (2, 3, 2, 2), (3,)), dict(stride=3)),
        Case("not contiguous", _normal((2, 3, 3, 5), (3, 4, 3, 3), (4,)), dict(stride=2, padding=1), strided=True),
        Case("no images", _normal((0, 3, 4, 5), (3, 4, 2, 2), (4,)), dict(stride=2)),
    ], linear=(0, 1, 2), kernels=True),
    Pair("linear", linear_forward, linear_backward, [
        Case("5 rows, 7 to 3", _normal((5, 7), (3, 7), (3,))),
        Case("no bias", _normal((4, 3), (6, 3), None)),
        Case("not contiguous", _normal((5, 7), (3, 7), (3,)), strided=True),
        Case("no rows", _normal((0, 7), (3, 7), (3,))),
    ], linear=(0, 1, 2)),
    Pair("batch_norm", batch_norm_forward, batch_norm_backward, [
        Case("training", _norm((2, 3, 5, 7)), dict(train=True)),
        Case("training, (N, C)", _norm((5, 4)), dict(train=True)),
        Case("training, large eps", _norm((2, 3, 3, 2)), dict(train=True, eps=0.7)),
        Case("inference", _norm((2, 3, 5, 7)), dict(train=False)),
        Case("inference, (N, C)", _norm((5, 4)), dict(train=False, eps=0.3)),
        Case("not contiguous", _norm((2, 3, 5, 4)), dict(train=True), strided=True),
        Case("no images", _norm((0, 3, 5, 7)), dict(train=False)),
        Case("no images, training", _norm((0, 3, 5, 7)), dict(train=True)),
    ]),
    Pair("frozen_batch_norm", frozen_batch_norm_forward, frozen_batch_norm_backward, [
        Case("2 images", _norm((2, 3, 5, 7))),
        Case("large eps", _norm((1, 4, 3, 2)), dict(eps=0.3)),
        Case("not contiguous", _norm((2, 3, 5, 4)), strided=True),
        Case("no images", _norm((0, 3, 5, 7))),
    ], linear=(0,)),
    Pair("relu", relu_forward, relu_backward, [
        Case("4 axes", _away_from_zero((2, 3, 5, 7))),
        Case("2 axes", _away_from_zero((5, 3))),
        Case("not contiguous", _away_from_zero((2, 3, 5, 7)), strided=True),
        Case("empty", _away_from_zero((0, 3, 5, 7))),
    ]),
    Pair("sigmoid", sigmoid_forward, sigmoid_backward, [
        Case("4 axes", _normal((2, 3, 5, 7))),
        Case("large numbers", _scaled(30.0, (5, 9))),
        Case("not contiguous", _normal((2, 3, 5, 7)), strided=True),
        Case("empty", _normal((0, 3, 5, 7))),
    ]),
    Pair("softmax", softmax_forward, softmax_backward, [
        Case("last axis", _normal((5, 7))),
        Case("axis 1 of 4", _normal((2, 3, 5, 4)), dict(axis=1)),
        Case("large numbers", lambda rng: (1000 + rng.standard_normal((3, 5)),)),
        Case("not contiguous", _normal((5, 7)), strided=True),
        Case("no rows", _normal((0, 7))),
    ]),
    Pair("max_pool2d", max_pool2d_forward, max_pool2d_backward, [
        Case("3x3, stride 2, padding 1: windows overlap", _distinct((2, 3, 7, 10)),
             dict(kernel=3, stride=2, padding=1)),
        Case("all negative: the padding never wins", _distinct((2, 2, 5, 6), -1),
             dict(kernel=3, stride=2, padding=1)),
        Case("2x2, stride 2, rows left over", _distinct((2, 3, 7, 5)), dict(kernel=2, stride=2)),
        Case("3x2, stride (1, 2), padding (0, 1)", _distinct((2, 2, 6, 7)),
             dict(kernel=(3, 2), stride=(1, 2), padding=(0, 1))),
        Case("3x3, stride 1", _distinct((2, 2, 5, 6)), dict(kernel=3, stride=1)),
        Case("1x1, stride 2 (P6)", _distinct((2, 3, 5, 6)), dict(kernel=1, stride=2)),
        Case("not contiguous", _distinct((2, 3, 7, 5)), dict(kernel=3, stride=2, padding=1), strided=True),
        Case("no images", _distinct((0, 3, 7, 5)), dict(kernel=3, stride=2, padding=1)),
    ], kernels=True),
    Pair("global_avg_pool", global_avg_pool_forward, global_avg_pool_backward, [
        Case("5x7", _normal((2, 3, 5, 7))),
        Case("1x1", _normal((2, 3, 1, 1))),
        Case("not contiguous", _normal((2, 3, 5, 4)), strided=True),
        Case("no images", _normal((0, 3, 5, 7))),
    ], linear=(0,)),
    Pair("resize_nearest", resize_nearest_forward, resize_nearest_backward, [
        Case("doubled", _normal((2, 3, 5, 7)), dict(size=(10, 14))),
        Case("5x7 to 9x13", _normal((2, 3, 5, 7)), dict(size=(9, 13))),
        Case("9x8 to 4x5", _normal((2, 3, 9, 8)), dict(size=(4, 5))),
        Case("not contiguous", _normal((2, 3, 5, 4)), dict(size=(9, 8)), strided=True),
        Case("no images", _normal((0, 3, 5, 7)), dict(size=(9, 13))),
    ], linear=(0,), kernels=True),
    Pair("resize_bilinear", resize_bilinear_forward, resize_bilinear_backward, [
        Case("doubled", _normal((2, 3, 5, 7)), dict(size=(10, 14))),
        Case("5x7 to 9x13", _normal((2, 3, 5, 7)), dict(size=(9, 13))),
        Case("9x8 to 4x5", _normal((2, 3, 9, 8)), dict(size=(4, 5))),
        Case("one pixel to 3x2", _normal((2, 3, 1, 1)), dict(size=(3, 2))),
        Case("not contiguous", _normal((2, 3, 5, 4)), dict(size=(9, 8)), strided=True),
        Case("no images", _normal((0, 3, 5, 7)), dict(size=(9, 13))),
    ], linear=(0,), kernels=True),
    Pair("roi_align", roi_align_forward, roi_align_backward, [
        _roi_case("2x2 samples", _normal(_MAP), _ROIS, (3, 2)),
        _roi_case("2x2 samples, aligned", _normal(_MAP), _ROIS, (2, 3), aligned=True),
        _roi_case("adaptive", _normal(_MAP), _ROIS, 2, sampling_ratio=-1),
        _roi_case("adaptive, aligned", _normal(_MAP), _ROIS, 3, sampling_ratio=0, aligned=True),
        _roi_case("1 sample", _normal(_MAP), _ROIS, 5, sampling_ratio=1),
        _roi_case("an image without RoIs", _normal(_MAP), _ONE_IMAGE, 3),
        _roi_case("not contiguous", _normal(_MAP), _ROIS, (3, 2), strided=True),
        _roi_case("no RoIs", _normal(_MAP), (), 3),
        _roi_case("no images", _normal((0, 3, 9, 11)), (), 3),
    ], linear=(0,), kernels=True),
    Pair("roi_pool", roi_pool_forward, roi_pool_backward, [
        _roi_case("3x2", _distinct(_MAP), _ROIS, (3, 2)),
        _roi_case("7x7: bins overlap", _distinct(_MAP), _ROIS, 7),
        _roi_case("an image without RoIs", _distinct(_MAP), _ONE_IMAGE, 3),
        _roi_case("not contiguous", _distinct(_MAP), _ROIS, (3, 2), strided=True),
        _roi_case("no RoIs", _distinct(_MAP), (), 3),
        _roi_case("no images", _distinct((0, 3, 9, 11)), (), 3),
    ], kernels=True),
    Pair("softmax_cross_entropy", softmax_cross_entropy_forward, softmax_cross_entropy_backward, [
        Case("mean", _with_labels(7, 5)),
        Case("normalizer 3", _with_labels(4, 6), dict(normalizer=3)),
        Case("not contiguous", _with_labels(5, 4), strided=True),
        Case("no rows", _with_labels(0, 5)),
    ]),
    Pair("bce_with_logits", bce_with_logits_forward, bce_with_logits_backward, [
        Case("mean", _with_soft_targets((3, 5, 4))),
        Case("normalizer 4", _with_soft_targets((7,)), dict(normalizer=4)),
        Case("large logits", _with_soft_targets((5, 3), 30.0)),
        Case("not contiguous", _with_soft_targets((3, 5)), strided=True),
        Case("no elements", _with_soft_targets((0, 5))),
    ]),
    Pair("smooth_l1", smooth_l1_forward, smooth_l1_backward, [
        Case("beta 1/9", _apart((6, 4), 1 / 9), dict(beta=1 / 9)),
        Case("beta 1, normalizer 5", _apart((6, 4), 1.0), dict(beta=1.0, normalizer=5)),
        Case("beta 2", _apart((3, 5), 2.0), dict(beta=2.0)),
        Case("beta 0: L1", _apart((6, 4), 0.0), dict(beta=0.0, normalizer=3)),
        Case("not contiguous", _apart((6, 4), 1 / 9), dict(beta=1 / 9), strided=True),
        Case("no elements", _apart((0, 4), 1.0), dict(beta=1.0)),
    ]),
]


# ---- running them ----

def bind(pair, case, kernels=None):
    """forward, backward and inputs of one case, ready for `check_gradients`."""
    inputs = case.make_inputs(np.random.default_rng(0))
    chosen = dict(kernels=kernels) if pair.kernels else {}
    forward, backward = partial(pair.forward, **case.options, **chosen), partial(pair.backward, **chosen)
    if not case.strided:
        return forward, backward, inputs
    return forward, lambda dy, cache: backward(_with_gaps(dy), cache), tuple(_with_gaps(x) for x in inputs)


def adjoint_error(pair, case, position, kernels=None):
    """The adjoint test in the argument at `position`, of which the constant part (a bias, say) is taken off."""
    forward, backward, inputs = bind(pair, case, kernels)
    rng = np.random.default_rng(1)

    def at(v):
        return forward(*inputs[:position], v, *inputs[position + 1:])

    def linear(v):
        return at(v)[0] - at(np.zeros_like(v))[0]

    def adjoint(dy):
        gradients = backward(dy, at(x)[1])
        return gradients[position] if isinstance(gradients, tuple) else gradients

    x = inputs[position]
    return check_adjoint(linear, adjoint, x, rng.standard_normal(np.shape(at(x)[0])))


def check_case(pair, case, kernels=None):
    """Both tests of one case: a Row for each argument that has a gradient."""
    rows = []
    try:
        errors, problem = check_gradients(*bind(pair, case, kernels)), ""
    except GradientCheckError as error:
        errors, problem = error.rows, str(error)
    if problem and not any(error.problem for error in errors):        # a shape, or a write where none is allowed
        rows.append(Row(pair.name, case.name, "", np.nan, None, False, problem))
    for error in errors:
        adjoint, problem_here = None, problem if error.problem else ""
        if error.position in pair.linear:
            try:
                adjoint = adjoint_error(pair, case, error.position, kernels)
            except GradientCheckError as failure:
                adjoint, problem_here = np.nan, problem_here or str(failure)
        rows.append(Row(pair.name, case.name, error.argument, error.relative, adjoint, not problem_here, problem_here))
    return rows


def run_pairs(pairs, kernels=None):
    """The rows of all cases of some pairs."""
    return [row for pair in pairs for case in pair.cases for row in check_case(pair, case, kernels)]


def run_all(kernels=None):
    """The rows of every pair that nprcnn.ops has. `kernels`: the KernelSet to check; None: the NumPy references."""
    return run_pairs(PAIRS, kernels)


def format_table(rows):
    """The rows as text, one line each, and under them what the checker says about those that fail."""
    lines = [("pair", "case", "argument", "relative", "adjoint", "")]
    for row in rows:
        adjoint = "" if row.adjoint is None else f"{row.adjoint:.1e}"
        verdict = "ok" if row.passed else "FAIL"
        lines.append((row.pair, row.case, row.argument, f"{row.relative:.1e}", adjoint, verdict))
    widths = [max(len(line[k]) for line in lines) for k in range(6)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    failed = [row for row in rows if not row.passed]
    text += [f"\n{row.pair}, {row.case}: {row.problem}" for row in failed]
    worst = max((row.relative for row in rows if row.passed), default=0.0)
    text.append(f"\n{len(rows) - len(failed)} of {len(rows)} passed; the largest relative error among them is "
                f"{worst:.1e} (allowed: 1e-06, adjoint 1e-12)")
    return "\n".join(text)
