# %% [markdown]
# # 01  What a backward pass is: solutions
#
# Try the exercises of [notebook 01](../01_what_a_backward_pass_is.ipynb) first. Each solution here is followed by
# its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.backward import check_residual_backward, check_pyramid_backward, check_bce_backward
from nprcnn.ops.activation import sigmoid

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: a residual block
#
# Name the steps: $z = x W^\top + b$, then $r = \mathrm{relu}(z)$, then $y = x + r$. Go back one at a time.
#
# - $y = x + r$: rule 2, so $dr = dy$, and $dy$ also goes straight to $x$.
# - $r = \mathrm{relu}(z)$: the gate, $dz = dr$ where $z > 0$.
# - $z = x W^\top + b$: the linear layer, $dz\,W$ to $x$, $dz^\top x$ to $W$, the sum over rows to $b$.
# - $x$ was used twice: rule 1, so its two gradients add up.

# %%
def residual_forward(x, w, b):
    z = x @ w.T + b                                       # (R, C)
    return x + np.maximum(z, 0), (x, w, z)

def residual_backward(dy, cache):
    x, w, z = cache                                       # (R, C), (C, C), (R, C)
    dz = dy * (z > 0)
    dx = dy + dz @ w                                      # the short cut, and the way through the layer
    dw = dz.T @ x
    db = dz.sum(axis=0)
    return dx, dw, db

check_residual_backward(residual_backward)

# %% [markdown]
# The gate must ask for `z > 0`, the input of ReLU. nprcnn's own `relu_backward` asks for `y > 0`, which is the
# same for a bare ReLU, but here $y$ is the sum. `check_gradients` agrees:

# %%
inputs = [rng.standard_normal(shape) for shape in ((5, 4), (4, 4), 4)]
for row in check_gradients(residual_forward, residual_backward, inputs):
    print(f"{row.argument:22} relative error {row.relative:.0e}")

# %% [markdown]
# ## Exercise 2: find the bug
#
# The report says that `c4` is right, `c5` and `w` are wrong. Both of these are computed from `dinner`, with one
# line each. Either both lines are wrong, or `dinner` is. With a dy of 1, 10, 100, ... every number shows which
# paths arrived. Here L4 = 4, L5 = 2, so y has 4 + 2 + 1 entries:

# %%
def pyramid_forward(c4, c5, w):
    inner = w @ c5                                        # (N, C, L5)
    index = np.arange(c4.shape[2]) // 2                   # (L4,)
    p4 = c4 + inner[:, :, index]                          # (N, C, L4)
    p6 = inner[:, :, ::2]                                 # (N, C, L6)
    return np.concatenate([p4, inner, p6], axis=2), (c5, w, index)

dy = 10.0 ** np.arange(7).reshape(1, 1, 7)
dp4, dp5, dp6 = np.split(dy, [4, 6], axis=2)
index = np.arange(4) // 2
dinner = dp5.copy()
dinner[:, :, ::2] += dp6
dinner[:, :, index] += dp4
print("index ", index)
print("dinner", dinner[0, 0].astype(int), " and should be [1010011  101100]")

# %% [markdown]
# The 1 and the 100 are missing: of the two gradients that go to one place, only the last arrives. `index` repeats
# (0 0 1 1), so `dinner[:, :, index] += ...` is the trap of rule 3. `np.add.at` is the way out:

# %%
def pyramid_backward(dy, cache):
    c5, w, index = cache
    l4, l5 = len(index), c5.shape[2]
    dp4, dp5, dp6 = np.split(dy, [l4, l4 + l5], axis=2)   # concatenate -> split
    dc4, dup = dp4, dp4                                   # add -> the same gradient to both
    dinner = dp5.copy()                                   # fan-out -> sum: the output itself,
    dinner[:, :, ::2] += dp6                              # the slice,
    np.add.at(dinner, (slice(None), slice(None), index), dup)     # and the upsampling, whose index repeats
    dc5 = w.T @ dinner                                    # (N, D, L5)
    dw = np.einsum("ncl,ndl->cd", dinner, c5)             # (C, D)
    return dc4, dc5, dw

inputs = [rng.standard_normal(shape) for shape in ((2, 3, 6), (2, 4, 3), (3, 4))]
for row in check_gradients(pyramid_forward, pyramid_backward, inputs):
    print(f"{row.argument:22} relative error {row.relative:.0e}")
check_pyramid_backward(pyramid_backward)

# %% [markdown]
# ## Exercise 3: the loss of the mask branch
#
# One element. First to the probability, then to the logit:
#
# $$\frac{dL}{dp} = -\frac{t}{p} + \frac{1 - t}{1 - p} = \frac{p - t}{p\,(1 - p)}, \qquad
# \frac{dp}{dz} = p\,(1 - p), \qquad \frac{dL}{dz} = p - t .$$
#
# The dangerous factors cancel. The mean over all elements gives a factor 1 / `z.size`, and `dy` scales it all.

# %%
def bce_forward(z, t):
    elements = np.maximum(z, 0) - t * z + np.log1p(np.exp(-np.abs(z)))
    return elements.mean(), (z, t)

def bce_backward(dy, cache):
    z, t = cache
    # forward: mean of -t log p - (1 - t) log(1 - p), p = sigmoid(z)
    return dy * (sigmoid(z) - t) / z.size

inputs = rng.standard_normal((3, 4)), rng.uniform(size=(3, 4))
row, = check_gradients(bce_forward, bce_backward, inputs, wrt=[0])
print(f"{row.argument:22} relative error {row.relative:.0e}")
check_bce_backward(bce_backward)
