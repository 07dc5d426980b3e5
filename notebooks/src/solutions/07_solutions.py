# %% [markdown]
# # 07  Proposals and NMS: solutions
#
# Try the exercises of [notebook 07](../07_proposals_and_nms.ipynb) first. Each solution here is followed by its
# check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.proposals import check_anchor_place, check_iou_backward, check_soft_nms
from nprcnn.ops.boxes import box_iou

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: Soft-NMS
#
# The loop of NMS, with another way to treat the neighbours. What is done stays as it is; who comes next depends on
# the scores as they are *now*.

# %%
def soft_nms(boxes, scores, sigma):
    iou = box_iou(boxes, boxes)
    scores, done = scores.copy(), np.zeros(len(scores), bool)
    for _ in range(len(scores)):
        best = np.where(done, -np.inf, scores).argmax()
        done[best] = True
        scores[~done] *= np.exp(-iou[best, ~done] ** 2 / sigma)
    return scores

row = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], float)
print("three in a row:", soft_nms(row, np.array([0.9, 0.8, 0.7]), 0.5).round(2))
check_soft_nms(soft_nms)

# %% [markdown]
# Box 1 would be dropped by NMS at 0.5. Here it lives on with a lower score, and box 2 has overtaken it.
#
# ## Exercise 2: the place of an anchor
#
# Peel off one digit after the other: level, then anchor, then row and column. Each level has its own A, h and w.

# %%
def anchor_place(index, shapes):
    A, h, w = np.array(shapes).T
    starts = np.cumsum(np.concatenate([[0], A * h * w]))
    level = np.searchsorted(starts, index, side="right") - 1
    cell, anchor = np.divmod(index - starts[level], A[level])
    row, column = np.divmod(cell, w[level])
    return level + 2, row, column, anchor

print("the first anchor of P3:", *anchor_place(np.array([3072]), [(3, 32, 32), (3, 16, 16)]))
check_anchor_place(anchor_place)

# %% [markdown]
# ## Exercise 3: the IoU, backward
#
# With $I$ the intersection, $A$ the area of `a` and $U = A + B - I$ the union, IoU $= I / U$. $I$ is there twice:
#
# $$dU = -dy\, \frac{I}{U^2}, \qquad dI = \frac{dy}{U} - dU, \qquad dA = dU .$$
#
# Then `a` has two paths, through the intersection (only where its edge *is* the edge of the intersection) and through
# its own area.

# %%
def iou_forward(a, b):
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    sides = np.maximum(high - low, 0)
    inter = sides[:, 0] * sides[:, 1]
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    union = area_a + area_b - inter
    return inter / union, (a, b, sides, inter, union)

def iou_backward(dy, cache):
    a, b, sides, inter, union = cache
    # forward: iou = inter / union, union = area_a + area_b - inter
    d_union = -dy * inter / union ** 2
    d_inter = dy / union - d_union
    # forward: inter = width * height, and a side that was cut at 0 passes nothing back
    d_sides = d_inter[:, None] * sides[:, ::-1] * (sides > 0)
    # forward: sides = high - low, low = max(a, b), high = min(a, b)
    low_is_of_a = a[:, :2] > b[:, :2]
    high_is_of_a = a[:, 2:] < b[:, 2:]
    da_low, da_high = -d_sides * low_is_of_a, d_sides * high_is_of_a
    # forward: area_a = width * height of a, each the difference of two corners
    d_own = d_union[:, None] * (a[:, 2:] - a[:, :2])[:, ::-1]
    return np.concatenate([da_low - d_own, da_high + d_own], axis=1)

corner, side = rng.uniform(0, 20, (8, 2)), rng.uniform(10, 40, (8, 2))
a = np.concatenate([corner, corner + side], axis=1)
b = a + rng.uniform(-6, 6, a.shape)
row, = check_gradients(iou_forward, iou_backward, (a, b), wrt=[0])
print(f"{row.argument} relative error {row.relative:.0e}")
check_iou_backward(iou_backward)
