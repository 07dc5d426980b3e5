# %% [markdown]
# # 19  Your own data, fine-tuned: solutions
#
# Try the exercises of [notebook 19](../19_your_own_data.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn.course.own_data import check_crop_target, check_flip_target, check_labels_of_ids

# %% [markdown]
# ## Exercise 1: flip all three
#
# The mirror image of the right edge x2 is the new left edge. So the two change places.

# %%
def flip_target(image, boxes, masks):
    width = image.shape[1]
    x1, y1, x2, y2 = boxes.T
    return image[:, ::-1], np.stack([width - x2, y1, width - x1, y2], axis=1), masks[:, :, ::-1]

image = np.zeros((2, 6, 3), np.uint8)
print(flip_target(image, np.array([[1.0, 0, 2.5, 2]]), np.zeros((1, 2, 6), np.uint8))[1])
check_flip_target(flip_target)

# %% [markdown]
# ## Exercise 2: ids with gaps
#
# The place of an id in the sorted list of all ids, counted from 1.

# %%
def labels_of_ids(ids, categories):
    return np.searchsorted(np.sort(categories), ids) + 1

print(labels_of_ids(np.array([3, 12, 7]), np.array([7, 3, 12])))
check_labels_of_ids(labels_of_ids)

# %% [markdown]
# ## Exercise 3: the crop
#
# What was missing: a cut object gets a box around what its mask still shows, and an object without a pixel left goes.

# %%
def box_around(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1

def crop_target(boxes, masks, window):
    left, top, right, bottom = window
    moved = boxes - np.array([left, top, left, top])
    masks = masks[:, top:bottom, left:right]
    boxes = np.clip(moved, 0, [right - left, bottom - top, right - left, bottom - top])
    for i in np.flatnonzero((boxes != moved).any(axis=1) & masks.any(axis=(1, 2))):     # the cut ones
        boxes[i] = box_around(masks[i])
    keep = masks.any(axis=(1, 2))
    return boxes[keep], masks[keep]

angle = np.zeros((1, 6, 6), np.uint8)
angle[0, :, 0] = angle[0, 0] = 1
print(crop_target(np.array([[0.0, 0, 6, 6]]), angle, (0, 2, 6, 6))[0], "without its upper arm it is one column wide")
check_crop_target(crop_target)
