# %% [markdown]
# # 18  The same numbers: solutions
#
# Try the exercises of [notebook 18](../18_the_same_numbers.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn.course.parity import check_background_first, check_pair_boxes, check_stage_errors

# %% [markdown]
# ## Exercise 1: equation (1) for all stages
#
# Float64 first: in uint8, 2 - 3 is 255. Then two absolute values and two maxima.

# %%
def stage_errors(a, b):
    errors = []
    for x, y in zip(a, b):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = np.abs(y).max() or 1.0                        # where the reference is all 0
        errors.append(np.abs(x - y).max() / scale)
    return np.array(errors)

check_stage_errors(stage_errors)

# %% [markdown]
# What does this measure miss? A wrong number in a tensor with one huge outlier. Where that is a danger, compare parts:
# channel by channel, or level by level, as `nprcnn.trace` does with the RPN's outputs.
#
# ## Exercise 2: boxes as sets

# %%
def pair_boxes(a, b, distance):
    free = np.ones(len(b), bool)
    pairs = np.full(len(a), -1)
    for i, box in enumerate(a):
        gap = np.abs(b - box).max(axis=1, initial=0)          # (m,)
        gap[~free] = np.inf
        if len(b) and gap.min() <= distance:
            pairs[i] = gap.argmin()
            free[pairs[i]] = False
    return pairs

check_pair_boxes(pair_boxes)

# %% [markdown]
# Taking the nearest, one after the other, is not always the best pairing of all, but boxes that are the same lie a
# thousandth of a pixel apart and different ones many pixels, so there is nothing to gain. (Only boxes that were clipped
# to the image can be equal. `nprcnn.compare.pair_rows` then looks at their scores.)
#
# ## Exercise 3: Detectron2's classes

# %%
def background_first(cls_score, bbox_pred):
    zeros = np.zeros((4, bbox_pred.shape[1]), bbox_pred.dtype)
    return np.roll(cls_score, 1, axis=0), np.concatenate([zeros, bbox_pred])

check_background_first(background_first)

# %% [markdown]
# The zeros are never looked at: in training only positive RoIs have a box loss, in prediction class 0 is dropped first.
#
# ## Exercise 4: your own bug
#
# Some bugs that one image does not show: height and width exchanged, when the image is square; the rounding of the
# resized size, when nothing is resized; padding, when both sides are multiples of 32; the batch dimension, when there
# is one image. So a good reference has several images, not square, of odd sizes, in one batch. The reference of the full
# model has a photo whose short side becomes 799, a portrait, a tiny one and a panorama.
