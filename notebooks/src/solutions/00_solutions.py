# %% [markdown]
# # 00  The whole picture: solutions
#
# Try the exercises of [notebook 00](../00_the_whole_picture.ipynb) first. Each solution here is followed by its
# check.

# %%
import numpy as np

from nprcnn.course.overview import check_roi_levels, check_deltas_to, check_best_class_map
from nprcnn.ops.boxes import decode_boxes

# %% [markdown]
# ## Exercise 1: the level of an RoI
#
# The same line as for one RoI, on whole arrays. First round down, then limit.

# %%
def roi_levels(boxes, size):
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    k = np.floor(4 + np.log2(np.sqrt(w * h) / size))
    return np.clip(k, 2, 5).astype(int)

check_roi_levels(roi_levels)

# %% [markdown]
# (An RoI of exactly 112 pixels should have level 4, and rounding must not make that 3.9999999. nprcnn therefore adds
# $10^{-6}$ before it rounds down, as torchvision does.)
#
# ## Exercise 2: the deltas that a box needs
#
# $d_x = (x - x_a) / w_a$ and $d_w = \log(w / w_a)$, and the same for $y$ and $h$.

# %%
def deltas_to(boxes, anchors):
    def parts(b):
        w, h = b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]
        return b[:, 0] + w / 2, b[:, 1] + h / 2, w, h

    x, y, w, h = parts(boxes)
    xa, ya, wa, ha = parts(anchors)
    return np.stack([(x - xa) / wa, (y - ya) / ha, np.log(w / wa), np.log(h / ha)], axis=1)

boxes, anchors = np.array([[3.0, 4, 23, 54]]), np.array([[0.0, 0, 32, 32]])
print("there and back:", decode_boxes(deltas_to(boxes, anchors), anchors))
check_deltas_to(deltas_to)

# %% [markdown]
# In nprcnn it is `encode_boxes`, and `move` is `decode_boxes` (`nprcnn/ops/boxes.py`).
#
# ## Exercise 3: from instances to a class map
#
# Paint from the worst score to the best. What is painted later covers what was there.

# %%
def best_class_map(labels, scores, masks):
    classes = np.zeros(masks.shape[1:], int)
    for i in np.argsort(scores):
        classes[masks[i]] = labels[i]
    return classes

check_best_class_map(best_class_map)
