# %% [markdown]
# # 09  The box head: solutions
#
# Try the exercises of [notebook 09](../09_the_box_head.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.box_head import (check_pick_boxes, check_sample_losses_backward,
                                    check_small_head_backward)
from nprcnn.ops.activation import softmax

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: pick the boxes
#
# Pick first, then decode: with 91 classes, decoding all boxes would be 91 times the work. x and y (and w and h) are
# done at once, because sides and centres are (R, 2).

# %%
def pick_boxes(rois, deltas, labels, weights):
    R = len(rois)
    d = deltas.reshape(R, -1, 4)[np.arange(R), labels] / weights          # (R, 4)
    sides = rois[:, 2:] - rois[:, :2]
    centres = rois[:, :2] + sides / 2 + d[:, :2] * sides
    half = sides * np.exp(d[:, 2:]) / 2
    return np.concatenate([centres - half, centres + half], axis=1)

deltas = np.zeros((1, 12))
deltas[0, 4] = 10                                         # class 1: dx of 10, divided by the weight 10
for label in (1, 2):
    print(f"class {label}:", pick_boxes(np.array([[0.0, 0, 20, 40]]), deltas, np.array([label]), (10, 10, 5, 5)))
check_pick_boxes(pick_boxes)

# %% [markdown]
# ## Exercise 2: the losses, backward, without loops
#
# Two index arrays side by side, `(np.arange(R), labels)`, name R places, one in each row. `softmax` returned a new
# array, so writing into it is allowed.

# %%
def sample_losses_forward(z, d, labels, wanted, beta):
    R, K = z.shape
    class_loss = -np.log(softmax(z, axis=1)[np.arange(R), labels]).sum() / R
    positive = np.flatnonzero(labels > 0)
    e = np.abs(d.reshape(R, K, 4)[positive, labels[positive]] - wanted[positive])
    box_loss = np.where(e < beta, e * e / (2 * beta), e - beta / 2).sum() / R
    return (class_loss, box_loss), (z, d, labels, wanted, beta)

def sample_losses_backward(dy, cache):
    dclass, dbox = dy
    z, d, labels, wanted, beta = cache
    R, K = z.shape
    # forward: sum of -log softmax(z)[r, u] / R
    dz = softmax(z, axis=1)
    dz[np.arange(R), labels] -= 1
    # forward: sum of smooth(d[r, u] - wanted) over the positives / R      gather -> scatter
    positive = np.flatnonzero(labels > 0)
    u = labels[positive]
    dd = np.zeros((R, K, 4))
    dd[positive, u] = np.clip((d.reshape(R, K, 4)[positive, u] - wanted[positive]) / beta, -1, 1)
    return dclass * dz / R, dbox * dd.reshape(R, 4 * K) / R

labels = np.array([0, 2, 1, 0, 3])
inputs = rng.standard_normal((5, 4)), rng.standard_normal((5, 16)), labels, rng.standard_normal((5, 4)), 1 / 9
for row in check_gradients(sample_losses_forward, sample_losses_backward, inputs, wrt=[0, 1]):
    print(f"{row.argument:24} relative error {row.relative:.0e}")
check_sample_losses_backward(sample_losses_backward)

# %% [markdown]
# ## Exercise 3: find the bug
#
# dw7, dwc and dwb are right, dx and dw6 are wrong. dw7 is made from da7 and h6, so da7 is right. What dx and dw6 have
# in common is da6. Its gate must be fc6's own: where h6 is positive. In the buggy line it is h7's, an array of the
# same shape. With a network that has different sizes in its layers NumPy would have complained.

# %%
def small_head_forward(x, w6, w7, wc, wb):
    h6 = np.maximum(x @ w6.T, 0)
    h7 = np.maximum(h6 @ w7.T, 0)
    return (h7 @ wc.T, h7 @ wb.T), (x, w6, h6, w7, h7, wc, wb)

def small_head_backward(dy, cache):
    dz, dd = dy
    x, w6, h6, w7, h7, wc, wb = cache
    dh7 = dz @ wc + dd @ wb
    da7 = dh7 * (h7 > 0)
    dh6 = da7 @ w7
    # forward: h6 = relu(a6), so the gate is h6's
    da6 = dh6 * (h6 > 0)
    return da6 @ w6, da6.T @ x, da7.T @ h6, dz.T @ h7, dd.T @ h7

inputs = [rng.standard_normal(s) for s in ((6, 9), (5, 9), (5, 5), (3, 5), (12, 5))]
for row in check_gradients(small_head_forward, small_head_backward, inputs):
    print(f"{row.argument:24} relative error {row.relative:.0e}")
check_small_head_backward(small_head_backward)
