# %% [markdown]
# # 06  The RPN: solutions
#
# Try the exercises of [notebook 06](../06_the_rpn.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.rpn import check_focal_backward, check_match_fair, check_rpn_backward
from nprcnn.models.targets import BACKGROUND, IGNORED
from nprcnn.ops.activation import relu_backward, relu_forward
from nprcnn.ops.conv import conv2d_backward, conv2d_forward

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: a fairer matching
#
# First rule (ii) for all anchors. Then each target takes the anchors that it likes best, unless somebody who fits
# better has already taken them. `claim` remembers the IoU of whoever has.

# %%
def match_fair(iou, high, low):
    G, T = iou.shape
    own, best = iou.argmax(axis=0), iou.max(axis=0)
    matched = np.where(best >= high, own, np.where(best < low, BACKGROUND, IGNORED))
    claim = np.zeros(T)
    for g in range(G):
        chosen = (iou[g] == iou[g].max()) & (iou[g] > claim)
        matched[chosen], claim[chosen] = g, iou[g, chosen]
    return matched

print(match_fair(np.array([[0.6, 0.6, 0.1, 0.4], [0.65, 0.2, 0.2, 0.3]]), 0.7, 0.3))
check_match_fair(match_fair)

# %% [markdown]
# This version has a property that the notebook's has not: a target that meets no anchor chooses none, for an IoU of 0
# is not larger than the first `claim`. No image turns all positive.
#
# ## Exercise 2: focal loss, backward
#
# $$\frac{df}{dp} = \gamma (1 - p)^{\gamma - 1} \log p - \frac{(1 - p)^\gamma}{p}, \qquad
# p (1 - p) \frac{df}{dp} = (1 - p)^\gamma \cdot \bigl[\gamma\, p \log p + p - 1\bigr] .$$
#
# With $\gamma = 0$ that is $p - 1$, the cross-entropy's. Inside the sigmoid stands $s z$, so the chain rule adds a factor
# $s$: a negative is a positive with $-z$ in place of $z$.

# %%
def focal_forward(z, t, gamma):
    s = 2 * t - 1
    log_p = -np.logaddexp(0, -s * z)
    loss = np.sum(-(1 - np.exp(log_p)) ** gamma * log_p) / max(t.sum(), 1)
    return loss, (z, t, gamma)

def focal_backward(dy, cache):
    z, t, gamma = cache
    s, P = 2 * t - 1, max(t.sum(), 1)
    log_p = -np.logaddexp(0, -s * z)
    p = np.exp(log_p)
    bracket = gamma * p * log_p + p - 1
    # forward: -(1 - p)^gamma log p, p = sigmoid(s z)
    dz = dy / P * s * (1 - p) ** gamma * bracket
    return dz

z, t = rng.standard_normal(8), (np.arange(8) < 3).astype(float)
row, = check_gradients(focal_forward, focal_backward, (z, t, 2.0), wrt=[0])
print(f"{row.argument} relative error {row.relative:.0e}")
check_focal_backward(focal_backward)

# %% [markdown]
# How much does an easy negative ($p = 0.99$) pull, compared with one that is undecided ($p = 0.5$)?

# %%
sure, undecided = -np.log(99), 0.0
for gamma in (0.0, 2.0):
    dz = focal_backward(1.0, (np.array([sure, undecided]), np.zeros(2), gamma))
    print(f"gamma {gamma:.0f}: {dz[0]:.1e} and {dz[1]:.1e}, that is 1 : {dz[1] / dz[0]:.0f}")

# %% [markdown]
# ## Exercise 3: find the bug
#
# The report says that `wo` is right, and `x`, `w` and `wd` are wrong. `dwo` is made from `dz` alone. The other three
# need `dd`. So look at `dd`: one image, one cell, two anchors, and a 1 at anchor 0, delta 1.

# %%
ddeltas = np.zeros((1, 2, 4))                             # one cell, two anchors
ddeltas[0, 0, 1] = 1
for name, axes in (("buggy ", (0, 4, 3, 1, 2)), ("mended", (0, 3, 4, 1, 2))):
    dd = ddeltas.reshape(1, 1, 1, 2, 4).transpose(axes).reshape(1, 8, 1, 1)
    print(name, "channel", dd[0, :, 0, 0].argmax(), " and should be 0 * 4 + 1 = 1")

# %% [markdown]
# The buggy line puts the delta before the anchor, channel k * A + a. All shapes are right, and so is the sum of all
# gradients: a check with a `dy` of ones would have passed `x` and `w` if the rows of `wd` were alike.

# %%
def rpn_forward(x, w, wo, wd):
    a, conv_cache = conv2d_forward(x, w, None, 1, 1)
    hidden, relu_cache = relu_forward(a)
    z, logits_cache = conv2d_forward(hidden, wo)
    d, deltas_cache = conv2d_forward(hidden, wd)
    N, A, h, w = z.shape
    logits = z.transpose(0, 2, 3, 1).reshape(N, -1)
    deltas = d.reshape(N, A, 4, h, w).transpose(0, 3, 4, 1, 2).reshape(N, -1, 4)
    return (logits, deltas), (conv_cache, relu_cache, logits_cache, deltas_cache, z.shape)

def rpn_backward(dy, cache):
    dlogits, ddeltas = dy
    conv_cache, relu_cache, logits_cache, deltas_cache, (N, A, h, w) = cache
    dz = np.ascontiguousarray(dlogits.reshape(N, h, w, A).transpose(0, 3, 1, 2))
    # forward: (N, A, 4, h, w) -> (N, h, w, A, 4), so back: axis 3 and 4 come before axis 1 and 2
    dd = ddeltas.reshape(N, h, w, A, 4).transpose(0, 3, 4, 1, 2).reshape(N, 4 * A, h, w)
    dhidden, dwo, _ = conv2d_backward(dz, logits_cache)
    dhidden_d, dwd, _ = conv2d_backward(dd, deltas_cache)
    da = relu_backward(dhidden + dhidden_d, relu_cache)
    dx, dw, _ = conv2d_backward(da, conv_cache)
    return dx, dw, dwo, dwd

inputs = [rng.standard_normal(s) for s in ((2, 4, 3, 5), (4, 4, 3, 3), (3, 4, 1, 1), (12, 4, 1, 1))]
for row in check_gradients(rpn_forward, rpn_backward, inputs):
    print(f"{row.argument:28} relative error {row.relative:.0e}")
check_rpn_backward(rpn_backward)
