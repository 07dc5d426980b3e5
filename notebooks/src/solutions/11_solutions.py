# %% [markdown]
# # 11  Five losses, one backward pass: solutions
#
# Try the exercises of [notebook 11](../11_five_losses_one_backward_pass.ipynb) first. Each solution here is followed
# by its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.whole import check_rules_backward, check_shares, check_two_level_backward
from nprcnn.ops.conv import conv2d_backward, conv2d_forward

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: all four rules
#
# From the last line to the first. `np.add.at` adds one pick after another, so a column that was picked three times
# gets three gradients.

# %%
def rules_forward(p, q, w, index):
    s = p + q
    a = s[:, index]
    b = s * w
    return np.concatenate([a, b], axis=1), (s, w, index)

def rules_backward(dy, cache):
    s, w, index = cache
    # forward: y = concatenate([a, b])      concatenate -> split
    da, db = dy[:, :len(index)], dy[:, len(index):]
    # forward: b = s * w, and w served every column
    ds, dw = db * w, np.sum(db * s, axis=1, keepdims=True)
    # forward: a = s[:, index]      gather -> scatter-add; s fed a and b: fan-out -> sum
    np.add.at(ds, (slice(None), index), da)
    # forward: s = p + q      add -> the same gradient to both
    return ds, ds, dw

inputs = [rng.standard_normal(s) for s in ((2, 4), (2, 4), (2, 1))] + [np.array([1, 3, 1])]
for row in check_gradients(rules_forward, rules_backward, inputs, wrt=[0, 1, 2]):
    print(f"{row.argument:24} relative error {row.relative:.0e}")
check_rules_backward(rules_backward)

# %% [markdown]
# ## Exercise 2: shares, without loops
#
# Two gradients that nearly cancel: together they are small, and the shares are large, one of them negative.

# %%
def shares(gradients):
    flat = gradients.reshape(len(gradients), -1)
    total = flat.sum(axis=0)
    size = total @ total
    return flat @ total / size if size > 0 else np.zeros(len(flat))

two = np.array([[1.0, 0.0], [-0.8, 0.1]])
print("shares", shares(two).round(2), "  norms", np.linalg.norm(two, axis=1).round(2))
check_shares(shares)

# %% [markdown]
# ## Exercise 3: find the bug
#
# dw4 and dc4 are right, so di4 is; dw is right, so dp5 and dp4 are. What dc5 and dw5 have and the others have not is
# di5, and in it the way back through `up`. Forward, each pixel of i5 was copied to 2 x 2 places. Four copies, four
# gradients, one sum. The buggy line took the upper left one and forgot three.

# %%
def up(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)

def two_level_forward(c4, c5, w4, w5, w):
    i5, cache5 = conv2d_forward(c5, w5)
    l4, cache4 = conv2d_forward(c4, w4)
    i4 = l4 + up(i5)
    p5, out5 = conv2d_forward(i5, w, None, 1, 1)
    p4, out4 = conv2d_forward(i4, w, None, 1, 1)
    p6 = p5[:, :, ::2, ::2]
    return (p4, p5, p6), (cache4, cache5, out4, out5)

def two_level_backward(dy, cache):
    dp4, dp5, dp6 = dy
    cache4, cache5, out4, out5 = cache
    dp5 = dp5.copy()
    dp5[:, :, ::2, ::2] += dp6
    di4, dw_4, _ = conv2d_backward(dp4, out4)
    di5, dw_5, _ = conv2d_backward(dp5, out5)
    # forward: i4 = l4 + up(i5), four copies of each pixel: fan-out -> sum
    n, c, h, w = di5.shape
    di5 = di5 + di4.reshape(n, c, h, 2, w, 2).sum(axis=(3, 5))
    dc4, dw4, _ = conv2d_backward(di4, cache4)
    dc5, dw5, _ = conv2d_backward(di5, cache5)
    return dc4, dc5, dw4, dw5, dw_4 + dw_5

inputs = [rng.standard_normal(s) for s in ((1, 2, 4, 6), (1, 3, 2, 3), (4, 2, 1, 1), (4, 3, 1, 1), (4, 4, 3, 3))]
for row in check_gradients(two_level_forward, two_level_backward, inputs):
    print(f"{row.argument:28} relative error {row.relative:.0e}")
check_two_level_backward(two_level_backward)
