"""Exercises of notebook 10: the mask head."""

import numpy as np

from ..ops.activation import relu_backward, relu_forward, sigmoid, softmax
from ..ops.conv import conv2d_backward, conv2d_forward
from ..ops.deconv import conv_transpose2d_backward, conv_transpose2d_forward
from ..ops.losses import bce_with_logits_backward, bce_with_logits_forward
from .checks import compare


def check_deconv_2x2(yours):
    """deconv_2x2(x (N, C, H, W), w (C, O, 2, 2), b (O,)) -> (N, O, 2H, 2W): deconvolution with stride 2."""
    def right(x, w, b, order="noiajb", from_="coab", bias=1):
        patches = np.einsum(f"ncij,{from_}->{order}", x, w)
        n, o = patches.shape[:2]
        return patches.reshape(n, o, 2 * x.shape[2], 2 * x.shape[3]) + bias * b[:, None, None]

    mistakes = [
        (lambda x, w, b: right(x, w, b, order="noaibj"),
         "the four patches lie side by side like tiles. They should interleave: row 2 i + a, so a must vary "
         "faster than i."),
        (lambda x, w, b: right(x, w, b, order="noabij"),
         "a and b come before i and j, so each filter entry fills a block of its own. Row 2 i + a: i first, a beside it."),
        (lambda x, w, b: right(x, w, b, order="noijab"),
         "a reshape of axes i, j, a, b mixes rows and columns: put a beside i and b beside j first."),
        (lambda x, w, b: right(x, w, b, from_="coba"),
         "rows and columns of the filter are exchanged: a belongs to the rows."),
        (lambda x, w, b: right(x, w[:, :, ::-1, ::-1], b),
         "the filter is turned around. A stamp is not: w[c, o, 0, 0] is the upper left of the patch."),
        (lambda x, w, b: right(x, w, b, from_="ocab") if w.shape[0] == w.shape[1] else (None,),
         "w's first axis is the *input* channel here, (C, O, 2, 2): unlike conv2d's."),
        (lambda x, w, b: right(x, w, b, bias=0), "the bias is missing."),
    ]
    rng = np.random.default_rng(51)
    cases = [(name, tuple(rng.standard_normal(s) for s in ((n, c, h, w), (c, o, 2, 2), (o,))))
             for name, n, c, o, h, w in (("one image, 2 to 2 channels, 2 x 3", 1, 2, 2, 2, 3),
                                         ("two images, 3 to 4 channels", 2, 3, 4, 3, 2), ("one pixel", 1, 1, 1, 1, 1))]
    return compare("deconv_2x2", yours, right, cases, ("y",), mistakes)


def check_softmax_mask_backward(yours):
    """softmax_mask_backward(dy, (z (S, K, m, m), labels, targets)) -> dz of the mean cross-entropy of all pixels."""
    def right(dy, cache, axis=1, pixel="class", by="pixels", only=False, scale=True):
        z, labels, targets = cache
        classes = np.arange(z.shape[1])[:, None, None]
        own = (classes == labels[:, None, None, None]).astype(float)
        ground = (classes == 0).astype(float)
        share = {"class": targets >= 0.5, "soft": targets, "over": targets > 0.5, "any": targets > 0,
                 "always": np.ones_like(targets)}[pixel][:, None]
        dz = softmax(z, axis=axis) - (share * own + (1 - share) * ground)
        if only:
            dz = dz * own
        return (dy if scale else 1) * dz / {"pixels": targets.size, "rois": len(labels), "none": 1, "all": z.size}[by]

    def sigmoid_loss(dy, cache):
        z, labels, targets = cache
        dz = np.zeros_like(z)
        rows = np.arange(len(labels))
        dz[rows, labels] = sigmoid(z[rows, labels]) - targets
        return dy * dz / targets.size

    mistakes = [
        (sigmoid_loss, "that is the gradient of the sigmoid loss: here all classes take part at every pixel."),
        (lambda dy, c: right(dy, c, only=True),
         "only the map of the RoI's class has a gradient. With a softmax all maps have one, p - [k = u]."),
        (lambda dy, c: right(dy, c, pixel="always"),
         "every pixel is given the RoI's class. Those with a target below 1/2 are background, class 0."),
        (lambda dy, c: right(dy, c, pixel="soft"),
         "the targets are used as they are. The forward rounds them: at least 1/2 is the class, else background."),
        (lambda dy, c: right(dy, c, pixel="over"), "a target of exactly 1/2 is the class: targets >= 0.5."),
        (lambda dy, c: right(dy, c, by="rois"), "the mean is over all pixels, S m m of them, not over the RoIs."),
        (lambda dy, c: right(dy, c, by="all"),
         "the mean is over S m m pixels. The K classes of a pixel are one loss."),
        (lambda dy, c: right(dy, c, by="none"), "the forward takes a mean, and so the backward divides by S m m."),
        (lambda dy, c: right(dy, c, axis=-1), "the softmax is over the classes: axis=1."),
        (lambda dy, c: right(dy, c, scale=False), "dy is missing: what follows the loss may scale it."),
        (lambda dy, c: -right(dy, c),
         "the sign: the logit of the true class should grow, so its gradient is negative."),
    ]
    rng = np.random.default_rng(52)
    cases = []
    for name, dy, s, k, m in (("3 RoIs, 4 classes, 5 x 5", 1.4, 3, 4, 5), ("one RoI, 3 classes", -0.6, 1, 3, 4)):
        targets = rng.integers(0, 5, (s, m, m)) / 4
        cases.append((name, (dy, (rng.standard_normal((s, k, m, m)), rng.integers(1, k, s), targets))))
    return compare("softmax_mask_backward", yours, right, cases, ("dz",), mistakes)


def branch_forward(x, wd, wl, labels, targets):
    """The end of the mask branch, as in exercise 3: x (S, C, h, w) -> loss, cache."""
    a, deconv_cache = conv_transpose2d_forward(x, wd, None, stride=2)
    h, relu_cache = relu_forward(a)
    z, logits_cache = conv2d_forward(h, wl)
    loss, loss_cache = bce_with_logits_forward(z[np.arange(len(labels)), labels], targets)
    return loss, (deconv_cache, relu_cache, logits_cache, loss_cache, z.shape, labels)


def check_branch_backward(yours):
    """branch_backward(dy, cache) -> dx, dwd, dwl of the branch in exercise 3 of notebook 10."""
    def right(dy, cache, place="own", gate=True):
        deconv_cache, relu_cache, logits_cache, loss_cache, shape, labels = cache
        chosen, dz, rows = bce_with_logits_backward(dy, loss_cache), np.zeros(shape), np.arange(len(labels))
        if place == "own":
            dz[rows, labels] = chosen
        elif place == "labels":
            dz[:, labels] = chosen
        elif place == "all":
            dz[:] = chosen[:, None]
        else:
            dz[rows, labels - 1] = chosen
        dh, dwl, _ = conv2d_backward(dz, logits_cache)
        dx, dwd, _ = conv_transpose2d_backward(relu_backward(dh, relu_cache) if gate else dh, deconv_cache)
        return dx, dwd, dwl

    mistakes = [
        (lambda dy, c: right(dy, c, place="labels"),
         "the bug is still there: dz[:, labels] is, for *every* RoI, the maps of *all* labels. One map of each RoI "
         "is meant: two index arrays, side by side."),
        (lambda dy, c: right(dy, c, place="all"),
         "all maps of a RoI get the gradient. Only the one of its class was looked at."),
        (lambda dy, c: right(dy, c, place="before"), "it arrives at the map before: map 0 is the background's."),
        (lambda dy, c: right(dy, c, gate=False), "ReLU's gate is missing between the two convolutions."),
    ]
    rng = np.random.default_rng(53)
    cases = []
    for name, labels, k in (("one RoI", [2], 4), ("3 RoIs of different classes", [3, 1, 2], 4),
                            ("two of one class", [1, 2, 1], 3)):
        s = len(labels)
        tensors = [rng.standard_normal(shape) for shape in ((s, 3, 2, 2), (3, 4, 2, 2), (k, 4, 1, 1))]
        _, cache = branch_forward(*tensors, np.array(labels), rng.uniform(size=(s, 4, 4)))
        cases.append((name, (rng.uniform(0.5, 2), cache)))
    return compare("branch_backward", yours, right, cases, ("dx", "dwd", "dwl"), mistakes)
