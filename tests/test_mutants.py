"""Does the gradient checker notice? At least five wrong versions of every backward pass, each of which it must catch.

A mutant is the real source of an ops module with one piece of text replaced: the module is compiled again under the same
name, and its backward pass is checked against the true forward pass on the inputs of nprcnn.pairs. The text must occur
exactly once in the named function, so that the mutants keep up with the code; when it does not, write the mutant anew.

Only a number that the checker finds wrong counts as caught: a crash or a wrong shape would be noticed without it. No mutant
may be equivalent (nothing could catch it, and the test fails), and no two may be the same error in other words.
"""
import inspect
import types
from typing import NamedTuple

import pytest

from nprcnn.gradcheck import GradientCheckError, check_gradients
from nprcnn.pairs import PAIRS, bind


class Mutant(NamedTuple):
    what: str           # what is wrong
    function: str       # where, in the module of the pair
    old: str
    new: str


MUTANTS = {
    "conv2d": [
        Mutant("sign of dx", "conv2d_grad_x",
               "np.matmul(w_columns,", "-np.matmul(w_columns,"),
        Mutant("overlapping windows overwrite", "_add_col2im",
               "dpatch[:, :, ys, xs] +=", "dpatch[:, :, ys, xs] ="),
        Mutant("overlapping blocks of rows overwrite", "_add_col2im",
               "dpixels += dpatch", "dpixels[...] = dpatch"),
        Mutant("last place of the kernel left out of dx", "_add_col2im",
               "in _taps(height, geo):", "in list(_taps(height, geo))[:-1]:"),
        Mutant("kernel rows and columns swapped in dx", "_add_col2im",
               "+= dcolumns[:, i, j]", "+= dcolumns[:, j, i]"),
        Mutant("top padding not cut off", "_inside_padding",
               "inside.start - top:inside.stop - top", "0:inside.stop - inside.start"),
        Mutant("left padding not cut off", "_inside_padding",
               "left = geo.padding[1]", "left = 0"),
        Mutant("stride 1: the filters not turned round", "conv2d_grad_x",
               "_turn_round(w, groups)", "_turn_round(w, groups)[:, :, ::-1, ::-1]"),
        Mutant("stride 1: only the columns of the filters turned round", "_turn_round",
               "[..., ::-1, ::-1]", "[..., ::-1]"),
        Mutant("dw of the last block only", "conv2d_grad_w",
               "dw_rows +=", "dw_rows[...] ="),
        Mutant("dw a mean over the batch", "conv2d_backward",
               "dw = grad_w(dy, x, w.shape, *options)", "dw = grad_w(dy, x, w.shape, *options) / max(len(x), 1)"),
        Mutant("db of the first image only", "conv2d_backward",
               "dy.sum(axis=(0, 2, 3))", "dy[:1].sum(axis=(0, 2, 3))"),
        Mutant("db without the last row", "conv2d_backward",
               "dy.sum(axis=(0, 2, 3))", "dy[:, :, :-1].sum(axis=(0, 2, 3))"),
    ],
    "conv_transpose2d": [
        Mutant("sign of dx", "conv_transpose2d_backward",
               "dx = conv2d(", "dx = -conv2d("),
        Mutant("kernel turned over", "conv_transpose2d_backward",
               "conv2d(dy, w, None,", "conv2d(dy, w[:, :, ::-1, ::-1], None,"),
        Mutant("dw a mean over the batch", "conv_transpose2d_backward",
               "dw = grad_w(x, dy, w.shape, stride, padding)",
               "dw = grad_w(x, dy, w.shape, stride, padding) / max(len(x), 1)"),
        Mutant("dw of the first image only", "conv_transpose2d_backward",
               "grad_w(x, dy,", "grad_w(x[:1], dy[:1],"),
        Mutant("db without the last column", "conv_transpose2d_backward",
               "dy.sum(axis=(0, 2, 3))", "dy[..., :-1].sum(axis=(0, 2, 3))"),
        Mutant("db a mean", "conv_transpose2d_backward",
               "dy.sum(axis=(0, 2, 3))", "dy.mean(axis=(0, 2, 3))"),
    ],
    "linear": [
        Mutant("sign of dx", "linear_backward", "dx = dy @ w", "dx = -dy @ w"),
        Mutant("the last output left out of dx", "linear_backward", "dx = dy @ w", "dx = dy[:, :-1] @ w[:-1]"),
        Mutant("dw a mean over the rows", "linear_backward", "dw = dy.T @ x", "dw = dy.T @ x / len(x)"),
        Mutant("the first row left out of dw", "linear_backward", "dw = dy.T @ x", "dw = dy[1:].T @ x[1:]"),
        Mutant("db a mean over the rows", "linear_backward", "dy.sum(axis=0)", "dy.mean(axis=0)"),
        Mutant("db of the first row only", "linear_backward", "dy.sum(axis=0)", "dy[0]"),
    ],
    "batch_norm": [
        Mutant("mean and variance taken for constants", "batch_norm_backward",
               "if not train or x.size == 0:", "if True:"),
        Mutant("the batch's statistics in inference", "batch_norm_backward",
               "if not train or x.size == 0:", "if x.size == 0:"),
        Mutant("sign of the mean's term", "batch_norm_backward",
               "dx -= (dbias / count)", "dx += (dbias / count)"),
        Mutant("the mean's term missing", "batch_norm_backward",
               "dx -= (dbias / count)", "dx -= (0 * dbias)"),
        Mutant("sign of the variance's term", "batch_norm_backward",
               "inv_std / -count)", "inv_std / count)"),
        Mutant("the variance's term without one of its two factors inv_std", "batch_norm_backward",
               "dx *= (dweight * inv_std / -count)", "dx *= (dweight / -count)"),
        Mutant("M counts images and not pixels", "batch_norm_backward",
               "count = x.size // x.shape[1]", "count = x.shape[0]"),
        Mutant("M - 1, the unbiased variance", "batch_norm_backward",
               "count = x.size // x.shape[1]", "count = x.size // x.shape[1] - 1"),
        Mutant("dx without the weight", "batch_norm_backward",
               "dx *= (weight * inv_std)", "dx *= inv_std"),
        Mutant("inference: dx without inv_std", "batch_norm_backward",
               "planes * (weight * inv_std)", "planes * weight"),
        Mutant("dweight without inv_std", "batch_norm_backward",
               "_channel_dot(planes, centred) * inv_std", "_channel_dot(planes, centred)"),
        Mutant("dweight of x that is not centred", "batch_norm_backward",
               "_channel_dot(planes, centred)", "_channel_dot(planes, _planes(x))"),
        Mutant("dbias of the first image only", "batch_norm_backward",
               "dbias = _channel_sum(planes)", "dbias = _channel_sum(planes[:1])"),
    ],
    "conv2d_fused": [
        Mutant("no mask", "conv2d_fused_backward", "dy if y is None else mask(dy, y)", "dy"),
        Mutant("dx with the plain filters", "conv2d_fused_backward", "w if scale is None else w * scale[:, None, None, None]", "w"),
        Mutant("dw without the scale", "conv2d_fused_backward", "dw *= scale[:, None, None, None]", "pass"),
        Mutant("dw divided by the scale", "conv2d_fused_backward", "dw *= scale", "dw /= scale"),
        Mutant("db without the scale", "conv2d_fused_backward", "db * scale if", "db if"),
        Mutant("db of dy", "conv2d_fused_backward", "ds.sum(axis=(0, 2, 3)) if", "dy.sum(axis=(0, 2, 3)) if"),
        Mutant("the residual gets dy", "conv2d_fused_backward", "ds if has_residual", "dy if has_residual"),
        Mutant("dw of dy", "conv2d_fused_backward", "grad_w(ds,", "grad_w(dy,"),
        Mutant("dx of dy", "conv2d_fused_backward", "grad_x(ds,", "grad_x(dy,"),
    ],
    "frozen_batch_norm": [
        Mutant("sign", "frozen_batch_norm_backward", "(_planes(dy)", "(-_planes(dy)"),
        Mutant("divided by the scale", "frozen_batch_norm_backward", "_planes(dy) *", "_planes(dy) /"),
        Mutant("the scale of another channel", "frozen_batch_norm_backward",
               "cache.scale[:, None]", "cache.scale[::-1, None]"),
        Mutant("one scale for all channels", "frozen_batch_norm_backward", "cache.scale[:, None]", "cache.scale.mean()"),
        Mutant("the scale's sign lost", "frozen_batch_norm_backward", "cache.scale[:, None]", "abs(cache.scale)[:, None]"),
        Mutant("the statistics taken for this batch's", "frozen_batch_norm_backward",
               "(_planes(dy) *", "((_planes(dy) - _planes(dy).mean(axis=(0, 2), keepdims=True)) *"),
    ],
    "relu": [
        Mutant("sign", "relu_grad", "dy * (", "-dy * ("),
        Mutant("no mask", "relu_grad", "(y > 0)", "(y >= 0)"),
        Mutant("the mask turned over", "relu_grad", "(y > 0)", "(y <= 0)"),
        Mutant("another threshold", "relu_grad", "(y > 0)", "(y > 1)"),
        Mutant("the value for the mask", "relu_grad", "(y > 0)", "y"),
        Mutant("the mask of dy", "relu_grad", "(y > 0)", "(dy > 0)"),
    ],
    "sigmoid": [
        Mutant("sign", "sigmoid_backward", "dy * cache.y *", "-dy * cache.y *"),
        Mutant("1 + y", "sigmoid_backward", "(1 - cache.y)", "(1 + cache.y)"),
        Mutant("without y", "sigmoid_backward", "dy * cache.y *", "dy *"),
        Mutant("without 1 - y", "sigmoid_backward", " * (1 - cache.y)", ""),
        Mutant("tanh's derivative", "sigmoid_backward", "dy * cache.y * (1 - cache.y)", "dy * (1 - cache.y * cache.y)"),
    ],
    "softmax": [
        Mutant("sign of the second term", "softmax_backward", "dx -= y *", "dx += y *"),
        Mutant("no second term", "softmax_backward", "dx -= y *", "dx -= 0 *"),
        Mutant("the second term without y", "softmax_backward", "dx -= y *", "dx -="),
        Mutant("a mean for the sum", "softmax_backward", "dx.sum(", "dx.mean("),
        Mutant("the sum of dy without y", "softmax_backward", "dx.sum(", "dy.sum("),
        Mutant("always the last axis", "softmax_backward", "dx.sum(axis=axis", "dx.sum(axis=-1"),
        Mutant("the sum over all rows", "softmax_backward", "dx.sum(axis=axis, keepdims=True)", "dx.sum()"),
    ],
    "max_pool2d": [
        Mutant("overlapping windows overwrite", "max_pool2d_grad",
               "np.add.at(dx, (index + plane).reshape(-1), dy.reshape(-1))",
               "dx[(index + plane).reshape(-1)] = dy.reshape(-1)"),
        Mutant("sign", "max_pool2d_grad", ", dy.reshape(-1))", ", -dy.reshape(-1))"),
        Mutant("one pixel too early", "max_pool2d_grad", "(index + plane)", "(index + plane - 1)"),
        Mutant("every image adds to the first", "max_pool2d_grad",
               "np.arange(n * channels, like=index)", "(np.arange(n * channels, like=index) % channels)"),
        Mutant("every channel adds to the first", "max_pool2d_grad",
               "np.arange(n * channels, like=index)", "(np.arange(n * channels, like=index) // channels * channels)"),
        Mutant("rows for columns in the plane's size", "max_pool2d_grad",
               "(height * width)", "(height * height)"),
        Mutant("the last row of windows left out", "max_pool2d_grad",
               "(index + plane).reshape(-1), dy.reshape(-1)",
               "(index + plane)[:, :, :-1].reshape(-1), dy[:, :, :-1].reshape(-1)"),
    ],
    "global_avg_pool": [
        Mutant("sign", "global_avg_pool_backward", "(dy / (", "(-dy / ("),
        Mutant("not divided", "global_avg_pool_backward", "dy / (height * width)", "dy"),
        Mutant("divided by the rows only", "global_avg_pool_backward", "(height * width)", "height"),
        Mutant("one pixel short", "global_avg_pool_backward", "(height * width)", "(height * width - 1)"),
        Mutant("divided by the batch too", "global_avg_pool_backward", "(height * width)", "(n * height * width)"),
    ],
    "resize_nearest": [
        Mutant("sign", "_multiply_transposed", "np.matmul(ay.T,", "-np.matmul(ay.T,"),
        Mutant("a mean over the copies in a column", "_multiply_transposed",
               "np.matmul(ay.T, np.matmul(dy, ax))",
               "np.matmul((ay / ay.sum(axis=0).clip(1)).T, np.matmul(dy, ax))"),
        Mutant("copies overwrite: the last row's counts", "_multiply_transposed",
               "np.matmul(ay.T,", "np.matmul(np.where(np.diff(ay, axis=0, append=0) < 0, ay, 0).T,"),
        Mutant("the last output row left out", "_multiply_transposed",
               "np.matmul(ay.T, np.matmul(dy, ax))", "np.matmul(ay[:-1].T, np.matmul(dy[:, :, :-1], ax))"),
        Mutant("half a pixel off", "_nearest", "* scale)", "* scale + np.float32(0.5))"),
        Mutant("corners aligned", "_nearest",
               "np.float32(n_in) / np.float32(n_out)", "np.float32(n_in - 1) / np.float32(n_out - 1)"),
        Mutant("one pixel short at the border", "_nearest", "n_in - 1)", "n_in - 2)"),
    ],
    "resize_bilinear": [
        Mutant("sign", "_multiply_transposed", "np.matmul(ay.T,", "-np.matmul(ay.T,"),
        Mutant("the second neighbour overwrites the first at the border", "_linear_matrix",
               "matrix[rows, high] +=", "matrix[rows, high] ="),
        Mutant("the second neighbour left out", "_linear_matrix",
               "matrix[rows, high] += weight", "matrix[rows, high] += 0"),
        Mutant("weight for 1 - weight", "_linear_matrix",
               "= 1 - weight", "= weight"),
        Mutant("the second neighbour one pixel short at the border", "_linear",
               "np.minimum(low + 1, n_in - 1)", "np.minimum(low + 1, max(n_in - 2, 0))"),
        Mutant("corners at integers, half a pixel off", "_linear",
               "+ half) * scale - half", ") * scale"),
        Mutant("not clamped at the first pixel", "_linear",
               "np.maximum((", "np.add(("),
    ],
    "roi_align": [
        Mutant("overlapping RoIs overwrite", "roi_align_grad", "dplane[rows, cols] +=", "dplane[rows, cols] ="),
        Mutant("every image into the first", "roi_align_grad", "dx[image] =", "dx[0] ="),
        Mutant("sign", "roi_align_grad", "dcolumns = wx", "dcolumns = -wx"),
        Mutant("the second neighbour left out", "_interpolation_matrices", "+= fraction * share", "+= 0 * share"),
        Mutant("low and high swapped", "_interpolation_matrices", "+= (1 - fraction) * share", "+= fraction * share"),
        Mutant("one pixel short at the border", "_interpolation_matrices",
               "np.minimum(low + 1, length - 1)", "np.minimum(low + 1, length - 2)"),
        Mutant("samples past the last pixel dropped", "_interpolation_matrices",
               "(point <= length)", "(point <= length - 1)"),
        Mutant("samples before the first pixel dropped", "_interpolation_matrices",
               "(point >= -1)", "(point >= 0)"),
        Mutant("samples outside kept", "_interpolation_matrices",
               "(point <= length)", "(point <= np.inf)"),
        Mutant("a sum over the samples", "_interpolation_matrices", "& (i < count)) / divisor", "& (i < count)) / 1"),
        Mutant("samples that a small RoI does not have", "_interpolation_matrices", "(i < count)", "(i < count + 1)"),
        Mutant("sampled at the corner of each part", "_interpolation_matrices", "(i + 0.5) *", "i *"),
        Mutant("aligned: no shift", "_roi_matrices", "(0.5 if aligned else 0.0)", "0.0"),
        Mutant("not aligned: no least side", "_roi_matrices", "np.maximum(side, 1)", "np.maximum(side, 0)"),
    ],
    "roi_pool": [
        Mutant("overlapping bins overwrite", "roi_pool_grad",
               "np.add.at(dx, place[found], dy[found])", "dx[place[found]] = dy[found]"),
        Mutant("sign", "roi_pool_grad", "dy[found])", "-dy[found])"),
        Mutant("empty bins have a gradient", "roi_pool_grad", "index >= 0", "index >= -1"),
        Mutant("the first pixel left out", "roi_pool_grad", "index >= 0", "index > 0"),
        Mutant("every image into the first", "roi_pool_grad", "[:, None] * channels", "[:, None] * 0"),
        Mutant("every channel into the first", "roi_pool_grad", "+ np.arange(channels)", "+ 0 * np.arange(channels)"),
        Mutant("rows for columns in the plane's size", "roi_pool_grad",
               "* (height * width) + index", "* (height * height) + index"),
        Mutant("one pixel too early", "roi_pool_grad", "(height * width) + index", "(height * width) + index - 1"),
    ],
    "softmax_cross_entropy": [
        Mutant("sign of the true class", "softmax_cross_entropy_backward", "-= 1", "+= 1"),
        Mutant("no true class", "softmax_cross_entropy_backward", "-= 1", "-= 0"),
        Mutant("the class before", "softmax_cross_entropy_backward", "cache.labels] -=", "cache.labels - 1] -="),
        Mutant("softmax over the rows", "softmax_cross_entropy_backward", "axis=1", "axis=0"),
        Mutant("no normalizer", "softmax_cross_entropy_backward", "float(dy) / cache.normalizer", "float(dy)"),
        Mutant("always the mean", "softmax_cross_entropy_backward", "/ cache.normalizer", "/ len(cache.labels)"),
        Mutant("dy forgotten", "softmax_cross_entropy_backward", "float(dy) / cache.normalizer", "1 / cache.normalizer"),
    ],
    "bce_with_logits": [
        Mutant("sign", "bce_with_logits_backward", "(sigmoid(", "(-sigmoid("),
        Mutant("sign of the targets", "bce_with_logits_backward", "- cache.targets", "+ cache.targets"),
        Mutant("targets made hard", "bce_with_logits_backward", "- cache.targets", "- (cache.targets > 0.5)"),
        Mutant("logits for probabilities", "bce_with_logits_backward", "sigmoid(cache.logits)", "cache.logits"),
        Mutant("the sigmoid's slope once more", "bce_with_logits_backward",
               "- cache.targets)", "- cache.targets) * sigmoid(cache.logits) * sigmoid(-cache.logits)"),
        Mutant("no normalizer", "bce_with_logits_backward", "float(dy) / cache.normalizer", "float(dy)"),
        Mutant("always the mean", "bce_with_logits_backward", "/ cache.normalizer", "/ cache.logits.size"),
        Mutant("dy forgotten", "bce_with_logits_backward", "float(dy) / cache.normalizer", "1 / cache.normalizer"),
    ],
    "smooth_l1": [
        Mutant("sign", "smooth_l1_backward", "cache.pred - cache.target", "cache.target - cache.pred"),
        Mutant("a parabola everywhere", "smooth_l1_backward",
               "np.clip(difference / cache.beta, -1, 1)", "difference / cache.beta"),
        Mutant("not divided by beta", "smooth_l1_backward", "difference / cache.beta, -1", "difference, -1"),
        Mutant("no negative side", "smooth_l1_backward", "-1, 1)", "0, 1)"),
        Mutant("L1 everywhere", "smooth_l1_backward", "if cache.beta == 0 else", "if True else"),
        Mutant("beta 0 has no slope", "smooth_l1_backward", "np.sign(difference) if", "0 * difference if"),
        Mutant("no normalizer", "smooth_l1_backward", "float(dy) / cache.normalizer", "float(dy)"),
        Mutant("dy forgotten", "smooth_l1_backward", "float(dy) / cache.normalizer", "1 / cache.normalizer"),
    ],
}


def backward_of(pair, mutant=None):
    """The backward pass of a fresh copy of the pair's module, with the mutant's text in it."""
    module = inspect.getmodule(pair.backward)
    source = inspect.getsource(module)
    if mutant is not None:
        function = inspect.getsource(getattr(module, mutant.function))
        assert source.count(function) == 1
        assert function.count(mutant.old) == 1, (
            f"{mutant.old!r} is {function.count(mutant.old)} times in {module.__name__}.{mutant.function}, not once: "
            "the code has changed, write this mutant anew")
        source = source.replace(function, function.replace(mutant.old, mutant.new))
    copy = types.ModuleType(module.__name__)
    copy.__package__ = module.__package__
    exec(compile(source, f"<{pair.name}: {mutant and mutant.what}>", "exec"), copy.__dict__)
    return getattr(copy, pair.backward.__name__)


def complaints(pair, backward):
    """What the checker says about the backward pass, case by case; "" where it finds nothing."""
    for case in pair.cases:
        try:
            check_gradients(*bind(pair._replace(backward=backward), case))
            yield ""
        except GradientCheckError as error:
            yield str(error)
        except (ArithmeticError, IndexError, ValueError) as error:      # crashes do not count as caught
            yield f"crash: {error}"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_unchanged_copy_passes(pair):
    """So that what catches a mutant is its one change, and not the way it is made."""
    backward = backward_of(pair)
    assert backward is not pair.backward and not any(complaints(pair, backward))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")          # some mutants divide by the 0 images of the empty cases
def test_every_mutant_is_caught(pair):
    mutants = MUTANTS[pair.name]
    assert len(mutants) >= 5
    seen = {}
    for mutant in mutants:
        said = complaints(pair, backward_of(pair, mutant))
        caught = next((text for text in said if text.startswith("The gradient is wrong")), None)
        assert caught, f"not caught: {mutant.what} ({mutant.old!r} -> {mutant.new!r} in {mutant.function})"
        # The text has the numbers in it. Where it is the same, two mutants may still differ on another case.
        twin = seen.setdefault(caught, mutant)
        if twin is not mutant:
            one, other = (list(complaints(pair, backward_of(pair, m))) for m in (mutant, twin))
            assert one != other, f"{mutant.what!r} and {twin.what!r} are the same error"


def test_no_mutant_is_left_over():
    assert set(MUTANTS) == {pair.name for pair in PAIRS}


def test_a_lost_text_is_noticed():
    """The guard that keeps the mutants in step with the code."""
    pair = PAIRS[0]
    for old in ("no such text", "w"):
        with pytest.raises(AssertionError, match="write this mutant anew"):
            backward_of(pair, Mutant("lost", "conv2d_backward", old, ""))


def test_an_equivalent_mutant_is_not_counted():
    """2 * dy / 2 is the same function: the checker has nothing to say, so it would fail test_every_mutant_is_caught."""
    pair = next(pair for pair in PAIRS if pair.name == "relu")
    assert not any(complaints(pair, backward_of(pair, Mutant("none", "relu_grad", "dy * (", "2 * dy / 2 * ("))))
