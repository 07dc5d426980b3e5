"""Exercises of notebook 03: normalisation, pooling, residual blocks."""

import numpy as np

from ..ops.activation import relu_backward, relu_forward
from ..ops.conv import conv2d_backward, conv2d_forward
from .checks import compare


def check_fold_batch_norm(yours):
    """fold_batch_norm(w (O, C, K, K), b, weight, bias, mean, var (O,), eps) -> w2, b2 of one convolution that does both."""
    def right(w, b, weight, bias, mean, var, eps, root=np.sqrt):
        a = weight / root(var + eps)
        return w * a[:, None, None, None], bias + (b - mean) * a

    def scales_inputs(w, b, weight, bias, mean, var, eps):
        if w.shape[0] != w.shape[1]:
            return None, None
        return w * (weight / np.sqrt(var + eps))[:, None, None], None

    mistakes = [
        (lambda w, b, g, beta, m, v, eps: right(w, b, g, beta, m, v, 0), "eps is missing: it is added to the variance."),
        (lambda w, b, g, beta, m, v, eps: right(w, b, g, beta, m, (np.sqrt(v) + eps) ** 2, 0),
         "eps is added to the variance, inside the root: sqrt(var + eps)."),
        (lambda *a: right(*a, root=lambda v: v), "divide by the standard deviation: the square root is missing."),
        (lambda w, b, g, beta, m, v, eps: right(w, b, np.ones_like(g), beta, m, v, eps),
         "batch norm's own weight is missing: a = weight / sqrt(var + eps)."),
        (scales_inputs, "the scale lies along the wrong axis: w is (O, C, K, K), and each of the O filters has its own a."),
        (lambda w, b, g, beta, m, v, eps: (None, right(w, 0, g, beta, m, v, eps)[1]), "the convolution's bias b has gone."),
        (lambda w, b, g, beta, m, v, eps: (None, b + right(w, 0, g, beta, m, v, eps)[1]),
         "b is not scaled: it is part of what batch norm gets, so it is multiplied by a, too."),
        (lambda w, b, g, beta, m, v, eps: (None, right(w, b, g, 0, m, v, eps)[1]), "batch norm's own bias is missing."),
        (lambda w, b, g, beta, m, v, eps: (None, beta + (b - m)), "mean and b must be multiplied by a as well."),
        (lambda w, b, g, beta, m, v, eps: (None, right(w, b, g, beta, -m, v, eps)[1]), "the mean is subtracted, not added."),
    ]
    rng = np.random.default_rng(9)
    cases = []
    for name, shape, eps in (("4 filters on 4 channels", (4, 4, 3, 3), 1e-5), ("3 filters on 2 channels", (3, 2, 1, 1), 0.1)):
        b, weight, bias, mean = rng.standard_normal((4, shape[0]))
        cases.append((name, (rng.standard_normal(shape), b, weight, bias, mean, rng.uniform(0.01, 3, shape[0]), eps)))
    return compare("fold_batch_norm", yours, right, cases, ("w2", "b2"), mistakes)


def check_halving_backward(yours):
    """halving_backward(dy, cache) -> dx, dw1, dw2, dwd of notebook 03's block with a short cut of stride 2."""
    def forward(x, w1, w2, wd):
        z1, cache1 = conv2d_forward(x, w1, None, 2, 1)
        h, gate1 = relu_forward(z1)
        z2, cache2 = conv2d_forward(h, w2, None, 1, 1)
        shortcut, down = conv2d_forward(x, wd, None, 2, 0)
        y, gate2 = relu_forward(z2 + shortcut)
        return y, (cache1, gate1, cache2, gate2, down)

    def right(dy, cache, branch=True, short=True, inner=True, keep=1):
        cache1, gate1, cache2, gate2, down = cache
        ds = relu_backward(dy, gate2)
        dh, dw2, _ = conv2d_backward(ds if branch else dy, cache2)
        dx, dw1, _ = conv2d_backward(relu_backward(dh, gate1) if inner else dh, cache1)
        dshortcut, dwd, _ = conv2d_backward(ds if short else dy, down)
        return dx + keep * dshortcut, dw1, dw2, dwd

    mistakes = [
        (lambda dy, c: right(dy, c, short=False),
         "the bug is still there: the short cut gets dy. The last ReLU stands behind the sum, so both branches get what "
         "it lets pass."),
        (lambda dy, c: right(dy, c, branch=False), "the branch with the two 3x3 gets dy, past the last ReLU."),
        (lambda dy, c: right(dy, c, branch=False, short=False), "the last ReLU is missing: both branches get dy."),
        (lambda dy, c: right(dy, c, inner=False), "the ReLU between the two 3x3 is missing."),
        (lambda dy, c: (right(dy, c, keep=0)[0], None, None, None),
         "dx lacks the short cut: x is used twice, so two gradients add up (fan-out -> sum)."),
    ]
    rng = np.random.default_rng(10)
    cases = []
    for name, (n, c, h, w), out in (("7 x 6 pixels", (2, 3, 7, 6), 4), ("8 x 8 pixels", (1, 2, 8, 8), 3)):
        shapes = (n, c, h, w), (out, c, 3, 3), (out, out, 3, 3), (out, c, 1, 1)
        y, cache = forward(*(rng.standard_normal(shape) for shape in shapes))
        cases.append((name, (rng.standard_normal(y.shape), cache)))
    return compare("halving_backward", yours, right, cases, ("dx", "dw1", "dw2", "dwd"), mistakes)


def check_group_norm_backward(yours):
    """group_norm_backward(dy, (xhat, weight, s, groups)) -> dx, dweight, dbias; s (N, groups, 1): 1 / standard deviation."""
    def right(dy, cache, inside=True, mean=1, var=1, scale=True, axis=2):
        xhat, weight, s, groups = cache
        weight = weight[:, None, None]
        grouped = len(dy), groups, -1
        d, h = (dy * weight if inside else dy).reshape(grouped), xhat.reshape(grouped)
        dx = d - mean * d.mean(axis=axis, keepdims=True) - var * h * (d * h).mean(axis=axis, keepdims=True)
        dx = (s * dx if scale else dx).reshape(dy.shape)
        return dx if inside else dx * weight, (dy * xhat).sum(axis=(0, 2, 3)), dy.sum(axis=(0, 2, 3))

    def only_dx(**change):
        return lambda dy, cache: (right(dy, cache, **change)[0], None, None)

    mistakes = [
        (only_dx(inside=False),
         "the weight stands in front of the bracket, as in batch norm. Here a group has several weights, so the means are "
         "those of dxhat = dy * weight."),
        (only_dx(mean=0, var=0), "the mean and the variance depend on x, too: two paths are missing in dx."),
        (only_dx(var=0), "the path through the variance is missing in dx."),
        (only_dx(mean=0), "the path through the mean is missing in dx."),
        (lambda dy, c: (right(dy, c, mean=(n := dy[0].size // c[3]), var=n)[0], None, None),
         "sums stand where means should: divide by M, the numbers of a group, as (5) does."),
        (only_dx(scale=False), "dx lacks the factor s = 1 / standard deviation."),
        (only_dx(axis=(1, 2)), "the means run over all groups of an image. Each row of (N, G, M) has its own: axis=2."),
        (only_dx(axis=(0, 2)), "the means run over the images as well. Group norm's statistics belong to one image."),
        (lambda dy, c: (None, dy.sum(axis=(0, 2, 3)), None), "dweight lacks xhat: y = xhat * weight + bias."),
        (lambda dy, c: (None, (dy * c[0]).sum(axis=(2, 3)), dy.sum(axis=(2, 3))),
         "weight and bias serve all images: sum over axis 0 as well."),
    ]
    rng = np.random.default_rng(11)
    cases = []
    for name, shape, groups in (("4 channels in 2 groups", (2, 4, 3, 5), 2), ("6 channels in 3 groups", (3, 6, 2, 3), 3)):
        x, dy, weight = rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(shape[1])
        g = x.reshape(shape[0], groups, -1)
        s = 1 / np.sqrt(g.var(axis=2, keepdims=True) + 1e-5)
        cases.append((name, (dy, (((g - g.mean(axis=2, keepdims=True)) * s).reshape(shape), weight, s, groups))))
    return compare("group_norm_backward", yours, right, cases, ("dx", "dweight", "dbias"), mistakes)
