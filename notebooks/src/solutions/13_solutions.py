# %% [markdown]
# # 13  Detections and AP by hand: solutions
#
# Try the exercises of [notebook 13](../13_detections_and_ap.ipynb) first. Each solution here is followed by its
# check.

# %%
import numpy as np

from nprcnn.course.average_precision import check_area_ap, check_mask_iou, check_match_voc

# %% [markdown]
# ## Exercise 1: IoU of masks, with crowds
#
# A mask is a long vector of 0 and 1, and the dot product of two such vectors counts their common pixels. So all
# intersections are one matrix product. In float: a product of uint8 matrices would count modulo 256.

# %%
def mask_iou(found, targets, crowd):
    a = found.reshape(len(found), -1).astype(float)       # (D, HW)
    b = targets.reshape(len(targets), -1).astype(float)   # (G, HW)
    inter = a @ b.T                                       # (D, G)
    area, target_area = a.sum(axis=1)[:, None], b.sum(axis=1)[None]
    below = np.where(crowd, area, area + target_area - inter)
    return inter / np.maximum(below, 1)                   # a count: 0 only where the intersection is 0 too

half = np.zeros((1, 4, 4), bool)
half[0, :2] = True
whole = np.ones((1, 4, 4), np.uint8)
for crowd in (False, True):
    print(f"half of a target, crowd {crowd}:", mask_iou(half, whole, np.array([crowd]))[0, 0])
check_mask_iou(mask_iou)

# %% [markdown]
# ## Exercise 2: VOC's matching
#
# The best target is chosen among *all*, and only then we ask whether it is still free.

# %%
def match_voc(iou, difficult, threshold):
    answer, taken = np.zeros(len(iou), int), np.zeros(iou.shape[1], bool)
    if iou.shape[1] == 0:
        return answer                                     # no target: all are wrong
    for d, g in enumerate(iou.argmax(axis=1)):
        if iou[d, g] >= threshold:
            answer[d] = -1 if difficult[g] else not taken[g]
            taken[g] = True
    return answer

print(match_voc(np.array([[0.9, 0.6], [0.8, 0.7]]), np.array([False, False]), 0.5),
      "the second detection could have had the second target, with 0.7")
check_match_voc(match_voc)

# %% [markdown]
# ## Exercise 3: the exact area
#
# Recall only moves at a hit, and each hit moves it by 1 / count. So the area is a sum of rectangles of that width, one
# a hit, as high as the interpolated precision there.

# %%
def area_ap(scores, correct, count):
    hit = correct[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return precision[hit].sum() / count

print(area_ap(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2), "= (1 + 2/3) / 2")
check_area_ap(area_ap)
