# %% [markdown]
# # 10  The mask head: solutions
#
# Try the exercises of [notebook 10](../10_the_mask_head.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.mask_head import check_branch_backward, check_deconv_2x2, check_softmax_mask_backward
from nprcnn.ops.activation import relu_backward, relu_forward, softmax
from nprcnn.ops.conv import conv2d_backward, conv2d_forward
from nprcnn.ops.deconv import conv_transpose2d_backward, conv_transpose2d_forward
from nprcnn.ops.losses import bce_with_logits_backward, bce_with_logits_forward

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: deconvolution without loops
#
# The output's row is $2i + a$. In an array with the axes i, a side by side, `reshape` numbers them exactly so. The
# same with j and b. This is a 1x1 convolution to 4 O channels, and then a sorting ("pixel shuffle").

# %%
def deconv_2x2(x, w, b):
    N, C, H, W = x.shape
    y = np.einsum("ncij,coab->noiajb", x, w)
    return y.reshape(N, w.shape[1], 2 * H, 2 * W) + b[:, None, None]

print(deconv_2x2(np.array([[[[1.0, 10]]]]), np.array([[[[1.0, 2], [3, 4]]]]), np.zeros(1))[0, 0])
check_deconv_2x2(deconv_2x2)

# %% [markdown]
# ## Exercise 2: the softmax loss, backward
#
# At each pixel it is notebook 09's gradient, $p - [k = u]$, with a class $u$ for each pixel, divided by the number of
# pixels.

# %%
def softmax_mask_forward(z, labels, targets):
    u = np.where(targets >= 0.5, labels[:, None, None], 0)
    log_p = np.log(softmax(z, axis=1))
    loss = -np.take_along_axis(log_p, u[:, None], axis=1).mean()
    return loss, (z, labels, targets)

def softmax_mask_backward(dy, cache):
    z, labels, targets = cache
    u = np.where(targets >= 0.5, labels[:, None, None], 0)               # (S, m, m)
    is_true = u[:, None] == np.arange(z.shape[1])[:, None, None]         # (S, K, m, m)
    # forward: mean over pixels of -log softmax(z)[u]
    return dy * (softmax(z, axis=1) - is_true) / targets.size

inputs = rng.standard_normal((3, 4, 5, 5)), np.array([1, 3, 2]), rng.uniform(size=(3, 5, 5))
row, = check_gradients(softmax_mask_forward, softmax_mask_backward, inputs, wrt=[0])
print(f"{row.argument} relative error {row.relative:.0e}")
check_softmax_mask_backward(softmax_mask_backward)

# %% [markdown]
# ## Exercise 3: find the bug
#
# All three gradients are wrong, so `dz` is. It should have one map for each RoI that is not 0:

# %%
labels, chosen = np.array([2, 1, 4]), np.ones((3, 4, 4))
for name, index in (("buggy ", (slice(None), labels)), ("mended", (np.arange(3), labels))):
    dz = np.zeros((3, 5, 4, 4))
    dz[index] = chosen
    print(name, "maps with a gradient, RoI by RoI:", [np.flatnonzero(m).tolist() for m in dz.any(axis=(2, 3))])

# %% [markdown]
# `z[:, labels]` has the shape (S, S, m, m): for every RoI the maps of all labels. NumPy stretched the (S, m, m) of
# `chosen` over it without a word. With one RoI both are the same, which is why a test with a single RoI passes.

# %%
def branch_forward(x, wd, wl, labels, targets):
    a, deconv_cache = conv_transpose2d_forward(x, wd, None, stride=2)
    h, relu_cache = relu_forward(a)
    z, logits_cache = conv2d_forward(h, wl)
    loss, loss_cache = bce_with_logits_forward(z[np.arange(len(labels)), labels], targets)
    return loss, (deconv_cache, relu_cache, logits_cache, loss_cache, z.shape, labels)

def branch_backward(dy, cache):
    deconv_cache, relu_cache, logits_cache, loss_cache, shape, labels = cache
    dz = np.zeros(shape)
    # forward: chosen = z[np.arange(S), labels]      gather -> scatter, to the same places
    dz[np.arange(len(labels)), labels] = bce_with_logits_backward(dy, loss_cache)
    dh, dwl, _ = conv2d_backward(dz, logits_cache)
    dx, dwd, _ = conv_transpose2d_backward(relu_backward(dh, relu_cache), deconv_cache)
    return dx, dwd, dwl

tensors = [rng.standard_normal(s) for s in ((3, 3, 2, 2), (3, 4, 2, 2), (5, 4, 1, 1))]
inputs = [*tensors, labels, rng.uniform(size=(3, 4, 4))]
for row in check_gradients(branch_forward, branch_backward, inputs, wrt=[0, 1, 2]):
    print(f"{row.argument:28} relative error {row.relative:.0e}")
check_branch_backward(branch_backward)
