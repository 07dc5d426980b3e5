"""Exercises of notebook 01: what a backward pass is."""

import numpy as np

from ..ops.activation import sigmoid
from .checks import compare


def check_residual_backward(yours):
    """y = x + relu(z), z = x @ w.T + b: residual_backward(dy, (x, w, z)) -> dx, dw, db."""
    def right(dy, cache, gate=lambda x, z: z > 0, skip=1):
        x, w, z = cache
        dz = dy * gate(x, z)
        return skip * dy + dz @ w, dz.T @ x, dz.sum(axis=0)

    mistakes = [
        (lambda dy, c: (right(dy, c, skip=0)[0], None, None),
         "dx lacks the short cut. x reaches y by two paths, so two gradients add up (fan-out -> sum)."),
        (lambda dy, c: (dy, None, None), "dx has the short cut only. x also enters the layer: add what comes back through w."),
        (lambda dy, c: right(dy, c, lambda x, z: 1), "ReLU's gate is missing: where z <= 0, nothing passes back."),
        (lambda dy, c: right(dy, c, lambda x, z: x > 0), "the gate looks at x, but ReLU was applied to z."),
        (lambda dy, c: right(dy, c, lambda x, z: x + np.maximum(z, 0) > 0),
         "the gate looks at y. For a bare ReLU that would do, but here y is x + relu(z): its sign is not that of z."),
        (lambda dy, c: (dy + (dy * (c[2] > 0)) @ c[1].T, None, None),
         "w is transposed in dx. z[r, o] = sum over i of x[r, i] w[o, i], so the sum for dx[r, i] runs over o."),
        (lambda dy, c: (None, right(dy, c)[1].T, None), "dw is transposed: dw[o, i] belongs to w[o, i]."),
    ]
    rng = np.random.default_rng(1)
    cases = []
    for rows, width in ((5, 4), (1, 3)):
        x, w, b, dy = (rng.standard_normal(shape) for shape in ((rows, width), (width, width), width, (rows, width)))
        cases.append((f"{rows} rows of {width}", (dy, (x, w, x @ w.T + b))))
    return compare("residual_backward", yours, right, cases, ("dx", "dw", "db"), mistakes)


def check_pyramid_backward(yours):
    """pyramid_backward(dy, (c5, w, index)) -> dc4, dc5, dw of the one-dimensional pyramid in notebook 01."""
    def right(dy, cache, spread=np.add.at, p5=1, p6=1):
        c5, w, index = cache
        dp4, dp5, dp6 = np.split(dy, [len(index), len(index) + c5.shape[2]], axis=2)
        dinner = p5 * dp5
        dinner[:, :, ::2] += p6 * dp6
        spread(dinner, (slice(None), slice(None), index), dp4)
        return dp4, w.T @ dinner, np.einsum("ncl,ndl->cd", dinner, c5)

    def add_once(a, place, values):
        a[place] += values

    def every_second(a, place, values):
        a += values[:, :, ::2]

    mistakes = [
        (lambda dy, c: right(dy, c, spread=add_once),
         "the bug is still there: of two gradients that go to the same place one is lost. Which line has an index that "
         "repeats, and what does NumPy do with `a[index] += values` then?"),
        (lambda dy, c: right(dy, c, np.ndarray.__setitem__),
         "dinner is overwritten where the upsampling's gradient should be added to what is there."),
        (lambda dy, c: right(dy, c, lambda *nothing: None), "the path through the upsampling is missing."),
        (lambda dy, c: right(dy, c, every_second),
         "each entry of inner was copied to two places of p4, and only the gradient of the first comes back."),
        (lambda dy, c: right(dy, c, p6=0), "the path through p6 is missing (slice -> scatter-add)."),
        (lambda dy, c: right(dy, c, p5=np.arange(c[0].shape[2]) % 2),
         "p6's gradient replaces p5's at every second place. inner went to both, so they add up (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, p5=0), "the path through p5 is missing: inner is itself a part of y."),
    ]
    rng = np.random.default_rng(2)
    cases = []
    for length, half, quarter in ((6, 3, 2), (7, 4, 2)):
        c5, w, dy = (rng.standard_normal(s) for s in ((2, 4, half), (3, 4), (2, 3, length + half + quarter)))
        cases.append((f"c4 has length {length}", (dy, (c5, w, np.arange(length) // 2))))
    return compare("pyramid_backward", yours, right, cases, ("dc4", "dc5", "dw"), mistakes)


def check_bce_backward(yours):
    """bce_backward(dy, (z, t)) -> dz of the mean binary cross-entropy between sigmoid(z) and t."""
    def answer(f):
        return lambda dy, cache: f(dy, sigmoid(cache[0]), *cache)

    right = answer(lambda dy, p, z, t: dy * (p - t) / z.size)
    mistakes = [(answer(f), text) for f, text in (
        (lambda dy, p, z, t: dy * (p - t), "the forward takes a mean, so each element has a share of 1 / z.size."),
        (lambda dy, p, z, t: dy * (p - t) / len(z), "the mean is over all elements, z.size, and not over the rows, len(z)."),
        (lambda dy, p, z, t: (p - t) / z.size, "dy is missing: what follows the loss may scale it."),
        (lambda dy, p, z, t: dy * (t - p) / z.size, "the sign: a logit that is too high (p > t) raises the loss."),
        (lambda dy, p, z, t: dy * (p - t) / (p * (1 - p)) / z.size,
         "that is the gradient to the probability p. A step is left: p = sigmoid(z), whose slope is p (1 - p)."),
        (lambda dy, p, z, t: dy * (p - t) * p * (1 - p) / z.size,
         "the slope p (1 - p) is there once too often: it cancels with that of the logarithms."),
        (lambda dy, p, z, t: dy * (z - t) / z.size, "z is a logit: compare the probability sigmoid(z) with t."),
    )]
    rng = np.random.default_rng(3)
    cases = [(name, (dy, (size * rng.standard_normal((3, 4)), rng.uniform(0, 1, (3, 4)))))
             for name, dy, size in (("3 x 4 logits", 1.7, 2.0), ("logits of some thousand", -0.6, 4000.0))]
    return compare("bce_backward", yours, right, cases, ("dz",), mistakes)
