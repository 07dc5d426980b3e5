# %% [markdown]
# # 03  A ResNet: solutions
#
# Try the exercises of [notebook 03](../03_residual_networks.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.residual import check_fold_batch_norm, check_group_norm_backward, check_halving_backward
from nprcnn.ops.activation import relu_backward, relu_forward
from nprcnn.ops.conv import conv2d, conv2d_backward, conv2d_forward
from nprcnn.ops.norm import frozen_batch_norm_forward

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: fold a batch norm into a convolution
#
# Frozen batch norm is $y = z\,a + (\beta - \mu a)$ with $a = \gamma / \sqrt{\sigma^2 + \varepsilon}$, and $z =
# \mathrm{conv}(x, w) + b$. Insert one into the other:
#
# $$y = \mathrm{conv}(x, w)\,a + b\,a + \beta - \mu a = \mathrm{conv}(x, w\,a) + \bigl(\beta + (b - \mu)\,a\bigr) .$$

# %%
def fold_batch_norm(w, b, weight, bias, mean, var, eps):
    a = weight / np.sqrt(var + eps)                       # (O,), one for each filter
    return w * a[:, None, None, None], bias + (b - mean) * a

x, w = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((4, 3, 3, 3))
b, weight, bias, mean = rng.standard_normal((4, 4))
var = rng.uniform(0.5, 2, 4)
two_steps, _ = frozen_batch_norm_forward(conv2d(x, w, b), weight, bias, mean, var)
one_step = conv2d(x, *fold_batch_norm(w, b, weight, bias, mean, var, 1e-5))
print(f"largest difference {np.abs(two_steps - one_step).max():.0e}")
check_fold_batch_norm(fold_batch_norm)

# %% [markdown]
# ## Exercise 2: find the bug
#
# The report: `x` and `wd` are wrong, `w1` and `w2` are right. So the branch with the two 3x3 is fine, and with it
# the first four lines. What is left is the short cut. It gets `dy`; but forward it goes through the last ReLU, like
# the other branch: `y = relu(z2 + shortcut)`. At the sum both get the same gradient (rule 2), and it is the one
# *behind* the gate. The name `dz2` hid that. Here it is `ds`.

# %%
def halving_forward(x, w1, w2, wd):
    z1, cache1 = conv2d_forward(x, w1, None, 2, 1)
    h, gate1 = relu_forward(z1)
    z2, cache2 = conv2d_forward(h, w2, None, 1, 1)
    shortcut, down = conv2d_forward(x, wd, None, 2, 0)
    y, gate2 = relu_forward(z2 + shortcut)
    return y, (cache1, gate1, cache2, gate2, down)

def halving_backward(dy, cache):
    cache1, gate1, cache2, gate2, down = cache
    # forward: y = relu(s), s = z2 + shortcut
    ds = relu_backward(dy, gate2)
    dh, dw2, _ = conv2d_backward(ds, cache2)
    dx, dw1, _ = conv2d_backward(relu_backward(dh, gate1), cache1)
    dshortcut, dwd, _ = conv2d_backward(ds, down)
    return dx + dshortcut, dw1, dw2, dwd

inputs = [rng.standard_normal(s) for s in ((2, 3, 7, 6), (4, 3, 3, 3), (4, 4, 3, 3), (4, 3, 1, 1))]
for row in check_gradients(halving_forward, halving_backward, inputs):
    print(f"{row.argument:28} relative error {row.relative:.0e}")
check_halving_backward(halving_backward)

# %% [markdown]
# ## Exercise 3: group norm
#
# From the end: `dxhat = dy * weight`, and from there equation (4) row by row: minus the mean, minus `xhat` times the mean
# of `dxhat * xhat`, all times `s`. In batch norm the weight is the same for all numbers that share a mean, so it can
# stand in front. Here it cannot.

# %%
def group_norm_forward(x, weight, bias, groups, eps=1e-5):
    N, C, H, W = x.shape
    g = x.reshape(N, groups, -1)
    s = 1 / np.sqrt(g.var(axis=2, keepdims=True) + eps)
    xhat = ((g - g.mean(axis=2, keepdims=True)) * s).reshape(x.shape)
    return xhat * weight[:, None, None] + bias[:, None, None], (xhat, weight, s, groups)

def group_norm_backward(dy, cache):
    xhat, weight, s, groups = cache
    N, C, H, W = dy.shape
    # forward: y = xhat * weight + bias, with a weight and a bias for all images and pixels of a channel
    dbias = dy.sum(axis=(0, 2, 3))
    dweight = (dy * xhat).sum(axis=(0, 2, 3))
    dxhat = dy * weight[:, None, None]
    # forward: xhat = (g - mean) * s, row by row; equation (4), its three paths
    d, h = dxhat.reshape(N, groups, -1), xhat.reshape(N, groups, -1)
    dg = s * (d - d.mean(axis=2, keepdims=True) - h * (d * h).mean(axis=2, keepdims=True))
    return dg.reshape(dy.shape), dweight, dbias

inputs = (rng.standard_normal((2, 6, 3, 4)), rng.standard_normal(6), rng.standard_normal(6), 3)
for row in check_gradients(group_norm_forward, group_norm_backward, inputs):
    print(f"{row.argument:28} relative error {row.relative:.0e}")
check_group_norm_backward(group_norm_backward)
