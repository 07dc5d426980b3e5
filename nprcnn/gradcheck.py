"""Is a hand-written backward pass right? Ask the forward pass.

A backward pass claims to know how much every input matters to L(x) = <dy, f(x)>, the outputs weighted by dy.
`check_gradients` draws a random dy and a random unit direction v, and walks along the line x + t v, where the
slope of L is known twice:

    backward says    <grad, v>
    forward says     (L(x + eps v) - L(x - eps v)) / (2 eps)        the central difference, wrong by about eps^2

One direction sees every element: v has no zeros, so an error anywhere in the gradient changes <grad, v>. By how much
is chance: an error d stays hidden where <d, v> happens to be below the tolerance, as when one wrong element meets a
v that is small there. So there are two directions: it would have to happen twice. And dy must be random: with dy = 1
(L = the sum of y) every error that sums to zero stays hidden.

    check_gradients(relu_forward, relu_backward, (x,))    # raises GradientCheckError, or returns a row an argument
"""
import inspect
from typing import NamedTuple

import numpy as np

CAUSES = """The usual causes: a sign; a factor of the forward that the backward has not (1 / N, a scale); a sum over
the batch or a broadcast axis left out, or taken as a mean; a second path from the input to the output forgotten
(fan-out: the gradients add up); overlapping windows that overwrite where they should add; an off-by-one at the
border. A ratio that is a simple number (-1, 2, 1 / N) names the factor. Otherwise go down to one channel and few
pixels."""


class GradientError(NamedTuple):
    """One comparison: an argument, in the direction in which backward and forward differ most."""
    position: int       # of the argument among the inputs
    argument: str       # "argument 0 'x' (2, 3, 7, 5)"
    analytic: float     # <grad, v>, from the backward pass
    numeric: float      # the central difference, from the forward pass
    relative: float     # |analytic - numeric| / max(|analytic|, |numeric|, atol / rtol)
    problem: str        # "" when the two agree; else "wrong", "kink", "too small" or "not finite"


class GradientCheckError(AssertionError):
    """A backward pass that does not fit its forward pass. `rows` has the comparisons that were made."""

    def __init__(self, message, rows=()):
        super().__init__(message)
        self.rows = list(rows)


def check_gradients(forward, backward, inputs, *, wrt=None, eps=1e-5, rtol=1e-6, atol=1e-9, seed=0, directions=2):
    """Compare a backward pass with central differences of its forward pass, in float64.

    Parameters
    ----------
    forward : `forward(*inputs) -> (y, cache)`, anything after these is ignored; y is an array or a tuple of arrays.
    backward : `backward(dy, cache) -> gradient`, or a tuple of gradients in the order of the inputs that have one;
        dy is like y. A gradient that is None is passed over.
    inputs : sequence of whatever forward takes; the floating-point arrays among it must be float64.
    wrt : positions in `inputs` of the gradients. None: the floating-point arrays, as many as there are gradients.
    eps : step of the central difference.
    rtol, atol : a row passes when |analytic - numeric| <= max(rtol * max(|analytic|, |numeric|), atol), which is
        the same as `relative <= rtol`. Where atol alone would pass a gradient that is wrong by a thousandth (both
        numbers below 1000 atol, and not both exactly 0), the row is refused as too small.
    seed, directions : of the random numbers; how many directions are tried for each argument.
        The time goes with it: four calls of forward a direction.

    Returns
    -------
    list of GradientError, one for each argument: the worst of its directions. One that crosses a kink, or in which the
    gradient is too small to be judged, proves nothing, and counts only where all do.

    Raises
    ------
    GradientCheckError
        when a number or a shape is wrong, when forward or backward writes into an array that is not its own, or
        when there is a kink or a jump within eps of the inputs, where a difference proves nothing.
    TypeError
        for inputs in float32.
    """
    inputs = list(inputs)
    for i, x in enumerate(inputs):
        if _is_float(x) and x.dtype != np.float64:
            raise TypeError(f"input {i} is {x.dtype}: gradients are checked in float64, x.astype(np.float64), "
                            "because the rounding of anything shorter drowns the differences that are compared")
    # Not default_rng(seed): inputs drawn with the same seed would be dy itself, where batch norm's gradient vanishes.
    rng = np.random.default_rng([seed, ord("v")])
    seen = _remember("the inputs", inputs)
    y, cache = forward(*inputs)[:2]
    _check_unchanged("forward", seen)
    outputs = _as_list(y)
    dtypes = [str(np.asarray(out).dtype) for out in outputs]
    if set(dtypes) != {"float64"}:
        raise GradientCheckError(f"forward turned float64 into {dtypes}: look for a buffer of a fixed dtype")
    dy = [rng.standard_normal(np.shape(out)) for out in outputs]
    seen += _remember("the cache", cache) + _remember("dy", dy)
    gradients = _as_list(backward(tuple(dy) if isinstance(y, (tuple, list)) else dy[0], cache))
    _check_unchanged("backward", seen)

    rows = []
    for i, gradient in _positions(gradients, inputs, wrt):
        x, name = inputs[i], _describe(forward, i, inputs[i])
        gradient = np.asarray(gradient)
        if gradient.shape != x.shape or gradient.dtype != np.float64:
            raise GradientCheckError(
                f"{name}: its gradient has shape {gradient.shape} and dtype {gradient.dtype}, but must have those of "
                "the argument. Is a sum over the batch or a broadcast axis missing?", rows)

        def along(t, i=i, x=x):
            return _as_list(forward(*inputs[:i], x + t * v, *inputs[i + 1:])[0])

        tried = []
        for _ in range(directions):
            v = rng.standard_normal(x.shape)
            v /= np.linalg.norm(v) if x.size else 1.0
            numeric, kink = _central_difference(along, outputs, dy, eps)
            tried.append(_compare(i, name, float(np.sum(gradient * v)), numeric, kink, rtol, atol))
        rows.append(_worst(tried))
    if any(row.problem for row in rows):
        raise GradientCheckError("\n\n".join(_explain(row, rtol, eps) for row in rows if row.problem), rows)
    return rows


def check_adjoint(linear, adjoint, x, dy, rtol=1e-12):
    """Check that `adjoint` is the transpose of the linear function `linear`: <dy, A x> = <A' dy, x>.

    x and dy are arrays. Without a step only rounding is left: the tolerance is 1e-12 where differences allow 1e-6.
    Returns the relative error |left - right| / max(|left|, |right|); above rtol it raises GradientCheckError.
    """
    left, right = float(np.sum(dy * linear(x))), float(np.sum(adjoint(dy) * x))
    error = 0.0 if left == right else abs(left - right) / max(abs(left), abs(right))
    if not error <= rtol:
        raise GradientCheckError(
            f"Not the adjoint: <dy, A x> = {left:.15g}, <A' dy, x> = {right:.15g}, relative error {error:.1e} "
            f"(allowed {rtol:.0e}). Is A linear, without a bias? If so:\n{CAUSES}")
    return error


def _central_difference(along, here, dy, eps):
    """The slope of <dy, f> on the line, and how large a kink there seems to be: about 0 for a smooth f.

    A kink near x makes the slopes of the steps eps and eps / 2 disagree. One at x itself does not, but there the
    slopes to the right and to the left differ: by eps f'' for a smooth f, which halves with the step, while the gap
    of a kink stays.
    """
    def weigh(*terms):     # differences first, then the sum over the elements, whose rounding would drown them
        return float(sum(np.sum(d * sum(c * out[k] for c, out in terms)) for k, d in enumerate(dy)))

    def slope_and_gap(step):
        right, left = along(step), along(-step)
        return weigh((1, right), (-1, left)) / (2 * step), weigh((1, right), (-2, here), (1, left)) / step

    (slope, gap), (slope_half, gap_half) = slope_and_gap(eps), slope_and_gap(eps / 2)
    return slope, max(abs(slope - slope_half), abs(gap - 2 * gap_half))


def _compare(position, name, analytic, numeric, kink, rtol, atol):
    size, error = max(abs(analytic), abs(numeric)), abs(analytic - numeric)
    tolerance = max(rtol * size, atol)
    problem = ""
    if not np.isfinite(analytic + numeric):
        problem = "not finite"
    elif not kink <= tolerance:
        problem = "kink"
    elif error > tolerance:
        problem = "wrong"
    elif 0 < size < 1000 * atol:
        problem = "too small"
    relative = error / max(size, atol / rtol) if error else 0.0
    return GradientError(position, name, analytic, numeric, relative, problem)


def _worst(rows):
    """Of the rows of one argument that prove something, or of all, the worst."""
    proofs = [row for row in rows if row.problem not in ("kink", "too small")]
    return max(proofs or rows, key=lambda row: (row.problem != "", row.relative))


def _explain(row, rtol, eps):
    numbers = (f"{row.argument}\n    backward   <grad, v>          = {row.analytic: .12e}\n"
               f"    forward    central difference = {row.numeric: .12e}\n"
               f"    relative error {row.relative:.1e} (allowed {rtol:.0e})")
    if row.problem == "kink":
        return (f"A kink or a jump lies within {eps:.0e} of the inputs, so this proves nothing: {numbers}\n"
                "Move the inputs away from it (ReLU: at least .1 from 0; max-pool: distinct values with gaps;\n"
                "nothing random inside forward). If the function is smooth and only steep there, take a smaller eps.")
    if row.problem == "too small":
        return (f"The gradient is too small to be judged: {numbers}\nThe absolute tolerance would pass a wrong one "
                "too. Make the outputs larger (a smaller normalizer),\nor pass a smaller atol.")
    if row.problem == "not finite":
        return f"The gradient is not finite: {numbers}\nLook for a division by 0, a log(0), an exp that overflows."
    ratio = f", backward / forward = {row.analytic / row.numeric:.6g}" if row.numeric else ""
    return f"The gradient is wrong: {numbers}{ratio}\n{CAUSES}"


def _positions(gradients, inputs, wrt):
    """Pairs (position of the input, its gradient), without the gradients that are None."""
    if wrt is None:
        wrt = [i for i, x in enumerate(inputs) if _is_float(x)]
        while len(gradients) > len(wrt) and gradients[-1] is None:      # no bias, so no gradient of it
            gradients = gradients[:-1]
        wrt = wrt[:len(gradients)]
    if len(gradients) != len(wrt) or all(gradient is None for gradient in gradients):
        raise GradientCheckError(
            f"backward returned {len(gradients)} gradients for {len(wrt)} inputs: return one for each input that "
            "has one, in their order, and name their positions with wrt=")
    return [(i, gradient) for i, gradient in zip(wrt, gradients) if gradient is not None]


def _remember(name, thing):
    """(name, array, copy) for every array in a nest of tuples, lists and dicts."""
    if isinstance(thing, np.ndarray):
        return [(name, thing, thing.copy())]
    items = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (tuple, list)) else ()
    return [entry for item in items for entry in _remember(name, item)]


def _check_unchanged(culprit, seen):
    for name, array, before in seen:
        if array.tobytes() != before.tobytes():
            raise GradientCheckError(f"{culprit} writes into {name} (an array of shape {array.shape}), which others "
                                     "may still use. Write `a = a * b` for `a *= b`, or copy first.")


def _as_list(y):
    return list(y) if isinstance(y, (tuple, list)) else [y]


def _is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _describe(forward, i, x):
    """"argument 0 'x' (2, 3)"; without the name where forward has none for it."""
    try:
        parameter = list(inspect.signature(forward).parameters.values())[i]
        name = "" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else f" {parameter.name!r}"
    except (TypeError, ValueError, IndexError):
        name = ""
    return f"argument {i}{name} {x.shape}"
