# %% [markdown]
# # 05  Anchors, IoU and deltas: solutions
#
# Try the exercises of [notebook 05](../05_anchors_iou_and_box_coding.ipynb) first. Each solution here is
# followed by its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.anchors import check_decode_backward, check_iou_matrix, check_make_anchors
from nprcnn.ops.boxes import box_iou

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: all anchors of a level
#
# The (A, 4) anchors of a cell plus the (rows, columns, 1, 4) shifts: broadcasting makes all combinations, in
# the order row, column, anchor.

# %%
def make_anchors(size, ratios, rows, columns, stride):
    ratios = np.asarray(ratios)
    w, h = size / np.sqrt(ratios), size * np.sqrt(ratios)                  # (A,)
    cell = np.round(np.stack([-w, -h, w, h], axis=1) / 2)                  # (A, 4)
    i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    shifts = np.stack([j, i, j, i], axis=2) * stride                       # (rows, columns, 4)
    return (shifts[:, :, None] + cell).reshape(-1, 4)

check_make_anchors(make_anchors)

# %% [markdown]
# ## Exercise 2: IoU of all pairs, without a loop
#
# Every coordinate of `a` against every one of `b`. Cut off the negative lengths one axis at a time.

# %%
def iou_matrix(a, b):
    width = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    height = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)                   # (Na, Nb)
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    return inter / (area_a[:, None] + area_b[None, :] - inter)

corners = rng.uniform(0, 60, (7, 2))
boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (7, 2))], axis=1)
print(f"largest difference to nprcnn {np.abs(iou_matrix(boxes, boxes) - box_iou(boxes, boxes)).max():.0e}")
check_iou_matrix(iou_matrix)

# %% [markdown]
# ## Exercise 3: find two bugs
#
# With (0.1, -0.2, 0.3, 0.7) the columns of $d_x$ and $d_y$ come out wrong, too large by $e^{0.3}$ and $e^{0.7}$. Forward
# is $x = x_a + d_x w_a$: the slope is the **anchor's** width, and the buggy line took the box's.
#
# With that mended ordinary deltas pass. But a part of the forward has left no trace: `np.minimum(dw, LIMIT)`. Where
# $d_w$ is above the limit it does not move the box, so its gradient is 0. Deltas beyond the limit show it (none close to
# it: there is a kink).

# %%
LIMIT = np.log(1000 / 16)

def decode_forward(deltas, anchors):
    xa, ya = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    wa, ha = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    dx, dy, dw, dh = deltas.T
    x, y = xa + dx * wa, ya + dy * ha
    w, h = wa * np.exp(np.minimum(dw, LIMIT)), ha * np.exp(np.minimum(dh, LIMIT))
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    return boxes, (deltas, wa, ha, w, h)

def decode_backward(dboxes, cache):
    deltas, wa, ha, w, h = cache
    dx1, dy1, dx2, dy2 = dboxes.T
    dx, dy = dx1 + dx2, dy1 + dy2
    dw, dh = (dx2 - dx1) / 2, (dy2 - dy1) / 2
    # forward: x = xa + dx * wa, w = wa * exp(min(dw, LIMIT))
    open_w, open_h = deltas[:, 2] < LIMIT, deltas[:, 3] < LIMIT
    return np.stack([dx * wa, dy * ha, dw * w * open_w, dh * h * open_h], axis=1)

deltas = rng.standard_normal((6, 4))
(row,) = check_gradients(decode_forward, decode_backward, (deltas, boxes[:6]))
print(f"ordinary deltas:    relative error {row.relative:.0e}")
deltas[1, 2], deltas[4, 3] = 6.0, 5.0
(row,) = check_gradients(decode_forward, decode_backward, (deltas, boxes[:6]))
print(f"beyond the limit:   relative error {row.relative:.0e}")
check_decode_backward(decode_backward)
