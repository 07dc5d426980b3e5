# %% [markdown]
# # 20  Twelve statements about Mask R-CNN: solutions
#
# Try the quiz of [notebook 20](../20_common_statements.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

import nprcnn
from nprcnn.course.statements import check_components, check_new_statements, check_not_region_based
from nprcnn.data import Shapes
from nprcnn.ops.activation import softmax

# %% [markdown]
# ## Exercise 1: who is not region-based?
#
# R-CNN and Fast R-CNN take their regions from selective search, Mask R-CNN from its RPN. YOLO divides the image into a
# grid and reads classes and boxes of all cells at once.

# %%
not_region_based = {"YOLO"}

check_not_region_based(not_region_based)

# %% [markdown]
# ## Exercise 2: which parts has a Mask R-CNN, and what for?

# %%
components = {
    "ResNet": "b", "feature pyramid": "c", "RPN": "a", "RoIAlign": "d", "box head": "e", "mask head": "f",
    "SVM": None, "selective search": None, "RoIPool": None,
}

check_components(components)

# %% [markdown]
# ## Exercise 3: five more statements
#
# Each answer is computed.

# %%
def mask_parameters(num_classes):
    heads = nprcnn.maskrcnn_tiny(num_classes).roi_heads
    return sum(p.data.size for p in heads.mask_head.parameters() + heads.mask_predictor.parameters())

a = mask_parameters(91) / mask_parameters(2)
print(f"A: {a:.2f} times as many: only the last 1x1 convolution has an output a class")

model = nprcnn.maskrcnn_tiny(weights="shapes")
image, target = Shapes.held_out(21)[20]
print("B: RoIs are cut from the levels", model.roi_levels, ": P6 is not among them")

anchors = []
for size in (128, 256):
    trace = nprcnn.Trace()
    nprcnn.maskrcnn_tiny(min_size=size).predict(image, trace=trace)
    anchors.append(len(trace["rpn.anchors"]))
print("C:", anchors, anchors[1] / anchors[0])

nothing = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, int), "masks": np.zeros((0, 128, 128), np.uint8)}
losses, _ = model.losses([image], [nothing], np.random.default_rng(0))
print("D:", {name: round(float(value), 3) for name, value in losses.items()})

z = np.random.default_rng(0).standard_normal((1, 7))
print("E: largest change", np.abs(softmax(z + 5) - softmax(z)).max())

# %%
new_statements = {"A": a > 40, "B": 6 in model.roi_levels, "C": anchors[1] == 4 * anchors[0],
                  "D": all(value == 0 for value in losses.values()), "E": np.allclose(softmax(z + 5), softmax(z))}
new_statements = {letter: bool(answer) for letter, answer in new_statements.items()}
print(new_statements)
check_new_statements(new_statements)
