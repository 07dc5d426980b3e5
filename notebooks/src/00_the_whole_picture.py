# %% [markdown]
# # 00  The whole picture
#
# A Mask R-CNN looks at an image and says: here is a cross, here is another one, and these are the pixels of each.
# This notebook leads **one image through the whole network**, with weights that are already trained, and stops at
# every stage to look. Nothing is derived here: that is what the other notebooks do. Here you see what the parts
# are for, and how they fit.
#
# **You need:** NumPy. Derivatives only in section 13. **You will be able to:** say what goes into each stage and
# what comes out, find any number in between by its name, and lead a detection back to the box that it grew from.
# About 60 minutes with the exercises.
#
# ## Where we are
#
# Everywhere. Read this figure from the left. A **ResNet** turns the image into feature maps; the **pyramid** gives
# them five sizes; the **RPN** proposes boxes; **RoIAlign** cuts the features of each box out; the **box head** says
# what is in it and corrects the box; the **mask head** says which pixels. The losses are for training only.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import course, viz
from nprcnn.course.overview import check_roi_levels, check_deltas_to, check_best_class_map
from nprcnn.data import Shapes

course.style()
plt.rcParams["figure.dpi"] = 76                           # many figures: small ones
course.where_we_are()
plt.rcParams["figure.constrained_layout.use"] = False     # viz places its panels itself

# %% [markdown]
# The image is a scene of shapes that nprcnn makes itself. It is *held out*: the network has not seen it in
# training. The **target** is the truth about it: for each object a box (x1, y1, x2, y2 in pixels), a label, and a
# mask with a 1 at each of its pixels.

# %%
source = Shapes.held_out(2000)
image, target = source[1699]
names = source.class_names
height, width = image.shape[:2]

print("classes:", dict(enumerate(names)))
print(f"image   {image.dtype}{image.shape}")
for name in ("boxes", "labels", "masks"):
    print(f"{name:7} {target[name].dtype}{target[name].shape}")
figure, (ax,) = viz.image_panels(1, width, height, side=260)
viz.draw_detections(image // 8 * 8, ax=ax, title="the image")          # in steps of 8: a smaller notebook

# %% [markdown]
# ## 1  Four questions about one image
#
# | question | its name | answer |
# |---|---|---|
# | What is in the image? | classification | a list of classes |
# | Which class has each pixel? | semantic segmentation | a class map (H, W) |
# | Where is each object? | object detection | a box, a class and a score for each object |
# | Which pixels belong to each object? | **instance segmentation** | a mask as well, for each object |
#
# Mask R-CNN answers the last question, and with it the other three. First we run it, once: everything below looks
# at this one run. `result` is its answer. `trace` keeps what happened on the way.

# %%
model = nprcnn.maskrcnn_tiny(weights="shapes")
trace = nprcnn.Trace()
result = model.predict(image, trace=trace)

for name in ("boxes", "labels", "scores", "masks"):
    print(f"{name:7} {getattr(result, name).dtype}{getattr(result, name).shape}")
sure = result.scores > 0.7 * result.scores[0]             # the best comes first
print("surest: ", ", ".join(f"{names[k]} {s:.2f}" for k, s in zip(result.labels[sure], result.scores[sure])))

# %% [markdown]
# `predict` returns everything that it believes with a score above 0.05, so the list has doubtful entries at its
# end. In the figures we draw those that have at least 0.7 times the best score.
#
# Now the four answers, side by side. The upper row is made from the target, the lower row from the result.
# (`faint` is the image in pale colours, so that lines on it can be seen. In the last column each object has a colour
# of its own; in the others each class has one.)

# %%
def pale(image):
    blocks = image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))                # 2 x 2 pixels: the noise goes away
    pale = (255 - (255 - blocks) * 0.4) // 16 * 16 + 15                       # few colours: a smaller notebook
    return np.kron(pale, np.ones((2, 2, 1))).astype(np.uint8)

def class_map(labels, masks):
    """Instances -> the class of each pixel, 0 where there is none. Where masks overlap, the larger label."""
    return (labels[:, None, None] * masks).max(axis=0, initial=0)

def write_at(ax, mask, text):
    y, x = np.nonzero(mask)
    ax.text(x.mean(), y.mean(), text, ha="center", va="center", fontsize=8,
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.75, pad=1))

def four_answers(axes, who, labels, boxes, masks, scores=None):
    present = np.unique(labels)
    blank = np.full_like(faint, 240)
    viz.draw_detections(blank, ax=axes[0], title=f"{who}: classification")
    axes[0].text(4, 4, "\n".join(names[k] for k in present), va="top", fontsize=11)
    regions = [class_map(labels, masks) == k for k in present]
    viz.draw_detections(blank, masks=regions, labels=present, ax=axes[1], title="semantic segmentation")
    viz.draw_detections(faint, boxes, labels, scores, class_names=names, ax=axes[2], title="object detection")
    viz.draw_detections(blank, masks=masks, ax=axes[3], title="instance segmentation")
    for ax, parts, classes in ((axes[1], regions, present), (axes[3], masks, labels)):
        for part, k in zip(parts, classes):
            write_at(ax, part, names[k])

faint = pale(image)
figure, axes = viz.image_panels(8, width, height, columns=4, side=256)
four_answers(axes[:4], "target", target["labels"], target["boxes"], target["masks"])
four_answers(axes[4:], "result", result.labels[sure], result.boxes[sure], result.masks[sure], result.scores[sure])
figure

# %% [markdown]
# ### What can each of them tell apart?
#
# The scene has two objects of one class that touch. We look for such a pair in the target, and ask what is left of
# it in each answer. `pieces` counts the connected regions of a mask.

# %%
def grow(mask):
    """The mask and the pixels next to it."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown

def pieces(mask):
    left, count = mask.copy(), 0
    while left.any():
        piece = np.zeros_like(left)
        piece.flat[left.argmax()] = True                  # any pixel that is left
        while (grown := grow(piece) & left).sum() > piece.sum():
            piece = grown
        left, count = left & ~piece, count + 1
    return count

# %%
labels, masks = target["labels"], target["masks"].astype(bool)
pairs = [(i, j) for i in range(len(labels)) for j in range(i)
         if labels[i] == labels[j] and (grow(masks[i]) & masks[j]).any()]
i, j = pairs[0]
name = names[labels[i]]
print(f"objects {j} and {i} touch, and both are of class {name}")
print(f"classification:         {name!r} is in the list {sum(names[k] == name for k in np.unique(labels))} time")
print(f"semantic segmentation:  the class {name} has {(labels == labels[i]).sum()} objects, "
      f"and {pieces(class_map(labels, masks) == labels[i])} piece in the class map")

inside = np.zeros((2, height, width), bool)
for k, box in enumerate(target["boxes"][[i, j]].astype(int)):
    inside[k, box[1]:box[3], box[0]:box[2]] = True
share = [masks[k][inside[n]].mean() for n, k in enumerate((i, j))]
print(f"object detection:       2 boxes, with {(inside[0] & inside[1]).sum()} pixels in both; "
      f"the objects fill {share[0]:.0%} and {share[1]:.0%} of their boxes")
print(f"instance segmentation:  2 masks, with {(masks[i] & masks[j]).sum()} pixels in both")

# %% [markdown]
# | answer | can tell | cannot tell |
# |---|---|---|
# | class list | that there is a cross | how many, and where |
# | class map | which pixels are cross | two that touch: they are one region |
# | boxes | that there are two, and about where | whose a pixel is: it may lie in two boxes, or in none of the objects |
# | instances | all of these | |
#
# The network gets from boxes to instances by a simple plan: **first find the boxes, then segment inside each
# box.** Inside one box, "which pixels are the object's?" is a question with two answers, object or not.
#
# ## 2  All stages by name
#
# `trace` holds each tensor that the network computed on its way, in order. `trace["fpn.p2"]` is one of them. A
# list (in brackets) has one array for each image of the batch; our batch has one image. `nprcnn.trace.NAMES` says
# what each name means.

# %%
print(trace)

# %% [markdown]
# The letters: a feature map has the shape (N, C, H, W), which is image, channel, row, column. After the RPN there
# are no maps of the whole image any more, but a list of R regions of interest (**RoIs**), and then of D detections.
#
# ## 3  The input batch
#
# The network wants numbers around 0, and one array for all images. So the **transform** divides by 255, subtracts
# a mean and divides by a standard deviation for each colour, resizes the image so that its shorter side has
# `min_size` pixels, and pads with zeros until both sides are multiples of 32.
#
# Our image already has 128 x 128 pixels, so nothing is resized or padded, and we can do the rest by hand. Then two
# images of other sizes in one batch: both become 128 pixels on the shorter side, and the batch is as large as the
# largest height and width need.

# %%
from nprcnn.models.transform import make_batch

x = image.transpose(2, 0, 1) / 255                        # (H, W, 3) -> (3, H, W)
mean, std = (np.array(v)[:, None, None] for v in (model.image_mean, model.image_std))
x = (x - mean) / std

batch = trace["transform.batch"]
print(f"batch {batch.shape}: from {batch.min():.2f} to {batch.max():.2f}, mean {batch.mean():.2f}")
print(f"largest difference to ours {np.abs(batch[0] - x).max():.0e}")

others = [image[:100], image[20:110, 20:80]]
both = make_batch(others, model.min_size, model.max_size)
print("before: ", [o.shape[:2] for o in others])
print("resized:", both.sizes, " batch:", both.tensor.shape)
figure, axes = plt.subplots(1, 2, figsize=(6, 2.8), layout="constrained")
for k, (ax, (h, w)) in enumerate(zip(axes, both.sizes)):
    ax.imshow(both.tensor[k].mean(axis=0), cmap=plt.get_cmap("gray", 4))
    ax.add_patch(plt.Rectangle((-0.5, -0.5), w, h, fill=False, edgecolor=course.BACKWARD, linewidth=2))
    ax.set(title=f"image {k}: {h} x {w}, and padding", xticks=[0, 128, 192], yticks=[0, 128, 192], xlabel="pixel")
axes[0].set_ylabel("pixel");

# %% [markdown]
# ## 4  The backbone: C2 to C5
#
# A ResNet is a stack of convolutions: small filters that slide over a map and make new channels of it (notebook
# 02). Step by step it halves the map and doubles the channels: *less where, more what*. The results of its four
# stages are called C2 to C5. One cell of C5 stands for 32 x 32 pixels of the image.

# %%
print("stage             name              shape (N, C, H, W)     pixels a cell")
for k, stage in enumerate(("stem", "layer1", "layer2", "layer3", "layer4")):
    shape = trace[f"backbone.{stage}"].shape
    cell = width // shape[3]
    print(f"{'stem' if k == 0 else f'C{k + 1}':17} backbone.{stage:8} {str(shape):22} {cell} x {cell}")

def show_channels(stages, labels):
    """Of each stage the channel that varies most, dark to bright."""
    figure, axes = plt.subplots(1, len(stages), figsize=(1.75 * len(stages), 2), layout="constrained")
    for ax, stage, label in zip(axes, stages, labels):
        maps = trace[stage][0]
        channel = maps.std(axis=(1, 2)).argmax()
        ax.imshow(maps[channel], cmap="viridis")
        ax.set(title=f"{label}, channel {channel}", xticks=[], yticks=[])

show_channels([f"backbone.layer{k}" for k in (1, 2, 3, 4)], ["C2", "C3", "C4", "C5"])

# %% [markdown]
# In C2 you still see the outlines of the objects. In C5 you cannot see anything, but each of its cells has as many
# channels as the table says, and hears from a large part of the image (notebook 02, section 4).
#
# ## 5  The pyramid: P2 to P6
#
# C2 knows *where* and C5 knows *what*. The **feature pyramid** (Lin et al. 2016, arXiv 1612.03144) carries what C5
# knows down to the finer levels. A 1x1 convolution gives all levels the same number of channels; then
#
# $$\text{inner}_i = \text{conv}_{1 \times 1}(C_i) + \text{upsample}(\text{inner}_{i+1}), \qquad
# P_i = \text{conv}_{3 \times 3}(\text{inner}_i).$$
#
# P6 is every second cell of P5. With the model's own layers that is quickly done again, for P4 and P6:

# %%
from nprcnn.layers import conv_norm_relu
from nprcnn.ops.resize import resize_nearest

def conv(block, x):
    return conv_norm_relu(*block, x, train=False, relu=False)[0]

fpn, c4, c5 = model.backbone.fpn, trace["backbone.layer3"], trace["backbone.layer4"]
inner5 = conv(fpn.inner_blocks[3], c5)
inner4 = conv(fpn.inner_blocks[2], c4) + resize_nearest(inner5, c4.shape[2:])
p4 = conv(fpn.layer_blocks[2], inner4)

print(f"P4: largest difference {np.abs(p4 - trace['fpn.p4']).max():.0e}")
print("P6 is P5[::2, ::2]:", np.array_equal(trace["fpn.p6"], trace["fpn.p5"][:, :, ::2, ::2]))
for level in ("p2", "p3", "p4", "p5", "p6"):
    print(level.upper(), trace[f"fpn.{level}"].shape)

show_channels([f"fpn.p{k}" for k in (2, 3, 4, 5, 6)], ["P2", "P3", "P4", "P5", "P6"])

# %% [markdown]
# ## 6  Anchors
#
# How can a network with a fixed number of outputs say "there are four boxes, here"? It does not invent boxes. It
# starts from a fixed set that covers the image, the **anchors**, and says for each of them whether it holds an
# object, and how to move it. (Faster R-CNN, Ren et al. 2015, arXiv 1506.01497, section 3.1.1.)
#
# Each cell of each level has three: flat, square and tall. Coarse levels have large ones. The dots are the cells of
# P2, P3 and P4; the boxes are the anchors of the one in the middle of the image. (Those of P5 and P6 are as large
# as the image, and larger.)

# %%
anchors = trace["rpn.anchors"]                            # (T, 4)
counts = []
for level in range(2, 7):
    _, a, h, w = trace[f"rpn.logits.p{level}"].shape
    counts.append(a * h * w)
    box = anchors[sum(counts[:-1]) + 1]                   # the square one of the first cell
    print(f"P{level}: {h:2} x {w:2} cells, {a} anchors each: {a * h * w:4} anchors, "
          f"the square one {box[2] - box[0]:.0f} pixels wide")
print("in all", sum(counts), "=", len(anchors))
starts = np.cumsum([0] + counts)                          # where each level begins in the long list
grey = np.where(masks.any(axis=0), 200, 235).astype(np.uint8)[:, :, None].repeat(3, axis=2)    # objects darker
viz.draw_anchors(grey, np.split(anchors, starts[1:-1])[:3])

# %% [markdown]
# ## 7  The RPN: which anchors, and where exactly?
#
# The **region proposal network** is a small head that runs over each level, with the same weights. For each anchor
# it gives one **objectness** logit $z$, whose sigmoid $1 / (1 + e^{-z})$ is the probability that there is an
# object, and four **deltas**. First the objectness, for each cell that of its best anchor: black is 0, white is 1.
# The orange lines are the outlines of the objects.

# %%
from nprcnn.ops.activation import sigmoid

figure, axes = plt.subplots(1, 4, figsize=(7, 2), layout="constrained")
for level, ax in zip(range(2, 6), axes):
    objectness = sigmoid(trace[f"rpn.logits.p{level}"][0]).max(axis=0)
    ax.imshow(objectness, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    ax.contour(np.arange(width) + 0.5, np.arange(height) + 0.5, masks.any(axis=0), [0.5], colors=course.BACKWARD)
    ax.set(title=f"P{level}, best {objectness.max():.2f}", xticks=[], yticks=[])

# %% [markdown]
# Each level answers for objects about as large as its anchors, and a cell answers for what lies around it. So an
# object lights up near its middle, on the level or two that suit its size.
#
# The deltas $(d_x, d_y, d_w, d_h)$ move an anchor with centre $(x_a, y_a)$, width $w_a$ and height $h_a$:
#
# $$x = x_a + d_x w_a, \qquad y = y_a + d_y h_a, \qquad w = w_a e^{d_w}, \qquad h = h_a e^{d_h}.$$
#
# So deltas are relative to the size of the anchor, and deltas of 0 leave it as it is. We follow the surest
# detection of the result, number 0. `result.anchor` says which anchor it grew from (section 12 comes back to that).

# %%
best = 0                                                  # try another number below len(result.scores)
print(f"detection {best}: {names[result.labels[best]]}, score {result.scores[best]:.2f}")

def move(box, delta):
    """One box (x1, y1, x2, y2), moved by (dx, dy, dw, dh)."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    x, y = x1 + w / 2 + delta[0] * w, y1 + h / 2 + delta[1] * h
    w, h = w * np.exp(delta[2]), h * np.exp(delta[3])
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])

a = result.anchor[best]
anchor, delta = anchors[a], trace["rpn.deltas"][0, a]
moved = move(anchor, delta)
level = np.searchsorted(starts, a, side="right") + 1
print(f"anchor {a}, on level P{level}: ", anchor)
print("its deltas:                ", delta.round(2))
print("moved:                     ", moved.round(1))

def before_and_after(before, after, texts):
    """Zoomed to two boxes, with the true outlines; dashed: before."""
    figure, (ax,) = viz.image_panels(1, width, height, side=256)
    viz.draw_detections(faint, ax=ax, title=f"{texts[0]} (dashed) -> {texts[1]}")
    ax.contour(np.arange(width) + 0.5, np.arange(height) + 0.5, masks.any(axis=0), [0.5], colors="#808080")
    for box, colour, style in ((before, course.BACKWARD, "--"), (after, course.FORWARD, "-")):
        ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=colour, linestyle=style,
                                   linewidth=2))
    low, high = np.minimum(before, after)[:2], np.maximum(before, after)[2:]
    middle, half = (low + high) / 2, (high - low).max() * 0.65
    ax.set_facecolor("#eeeeee")                           # outside the image
    ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))
    return figure

before_and_after(anchor, moved, ("anchor", "moved by its deltas"))

# %% [markdown]
# ## 8  Proposals
#
# Now there are as many boxes as anchors, most of them useless, and many on the same object. How much two boxes
# overlap is said by their **IoU** (intersection over union): the area of their intersection over that of their
# union, 1 for equal boxes, 0 for boxes that do not meet. The filter:
#
# 1. on each level keep those with the best objectness (here up to 300), move them, and clip them to the image;
# 2. **non-maximum suppression** (NMS), level by level: take the best box, drop all boxes that overlap it with an
#    IoU above 0.7, take the best of what is left, and so on;
# 3. keep the best 100.
#
# The figure shows the 40 boxes with the best objectness before NMS, and the 40 best after it.

# %%
from nprcnn.models.rpn import filter_proposals
from nprcnn.ops.boxes import box_iou

before, proposals = trace["rpn.proposals_before_nms"][0], trace["rpn.proposals"][0]
objectness = trace["rpn.proposal_scores"][0]
again, _, proposal_anchor, *_ = filter_proposals(
    trace["rpn.objectness"][0], trace["rpn.deltas"][0], np.split(anchors, starts[1:-1]), (height, width),
    model.rpn_pre_nms_top_n_test, model.rpn_post_nms_top_n_test, model.rpn_nms_thresh)
proposal_level = np.searchsorted(starts, proposal_anchor, side="right") + 1
same_level = proposal_level[:, None] == proposal_level

print(f"{len(anchors)} anchors -> {len(before)} before NMS -> {len(proposals)} proposals")
print("the filter, run again, gives the same boxes:", np.array_equal(again, proposals))
overlap = box_iou(proposals, proposals) * same_level - np.eye(len(proposals))
print(f"largest IoU of two proposals of one level: {overlap.max():.3f}")
close = box_iou(before, proposals[:1])[:, 0] > 0.7
print(f"{close.sum()} boxes had an IoU above 0.7 with proposal 0, itself included")

figure, axes = viz.image_panels(2, width, height, side=256)
top = np.argsort(-trace["rpn.scores_before_nms"][0])[:40]
viz.draw_boxes(faint, before[top], ax=axes[0], title="the best 40 before NMS")
viz.draw_boxes(faint, proposals[:40], ax=axes[1], title="the best 40 after NMS")

# %% [markdown]
# The proposals are the input of the second stage. From here on they are called RoIs. To the second stage they are
# constants: no gradient goes back through their coordinates, nor through NMS.
#
# ## 9  Which level for which RoI?
#
# A small RoI should be read from a fine level, a large one from a coarse level, whatever level its anchor came
# from. The pyramid's rule (arXiv 1612.03144, equation 1) for an RoI of width $w$ and height $h$:
#
# $$k = \left\lfloor 4 + \log_2 \frac{\sqrt{w h}}{112} \right\rfloor, \qquad \text{but at least 2 and at most 5.}$$
#
# (112 pixels because our images are small. The paper has 224, and images of 800.) So twice the side is one level up.
# By hand for the RoI of our detection, then for all of them, and for the objects of 100 scenes:

# %%
r = result.proposal[best]
roi, levels = proposals[r], trace["roi_heads.levels"][0]
w, h = roi[2] - roi[0], roi[3] - roi[1]
k = 4 + np.log2(np.sqrt(w * h) / model.canonical_size)
print(f"RoI {r}: {w:.1f} x {h:.1f} pixels, side {np.sqrt(w * h):.1f}")
print(f"4 + log2({np.sqrt(w * h):.1f} / {model.canonical_size}) = {k:.2f}, so level {np.clip(np.floor(k), 2, 5):.0f}")
print(f"in the trace: {levels[r]},  in the result: {result.level[best]}")
assert levels[r] == result.level[best] == np.clip(np.floor(k), 2, 5)

print("RoIs by level:", {f"P{k}": int((levels == k).sum()) for k in np.unique(levels)})
objects_of = np.concatenate([source[i][1]["boxes"] for i in range(100)])
object_sides = np.sqrt((objects_of[:, 2] - objects_of[:, 0]) * (objects_of[:, 3] - objects_of[:, 1]))
print(f"{len(object_sides)} true objects: sides of {object_sides.min():.0f} to {object_sides.max():.0f} pixels, "
      f"{np.mean(object_sides < model.canonical_size / 2):.0%} of them read from P2")
sides = np.sqrt((proposals[:, 2] - proposals[:, 0]) * (proposals[:, 3] - proposals[:, 1]))
figure, ax = plt.subplots(figsize=(6.4, 2.3), layout="constrained")
ax.step([8, 56, 112, 224, 512], [2, 2, 3, 4, 5], color="#808080", label="the rule")
ax.plot(sides, levels, "o", markersize=4, alpha=0.4, label=f"our {len(levels)} RoIs")
ax.plot(sides[r], levels[r], "o", color=course.BACKWARD, label=f"RoI {r}")
ax.set(xscale="log", xlabel="side of the RoI, sqrt(w h), in pixels", xticks=[8, 16, 28, 56, 112, 224, 512],
       yticks=range(2, 6), yticklabels=["P2", "P3", "P4", "P5"], ylabel="level")
ax.xaxis.set_major_formatter("{x:.0f}")
ax.minorticks_off()
ax.legend();

# %% [markdown]
# ## 10  RoIAlign: every RoI the same size
#
# The heads are ordinary layers, which need inputs of one size. **RoIAlign** (He et al. 2017, arXiv 1703.06870,
# section 3) lays a grid of 7 x 7 bins over the RoI, *on the feature map*. In each bin it reads 2 x 2 points, between
# the cells if need be (bilinear interpolation), and takes their mean. Nothing is rounded, so a mask can be placed
# to the pixel later on.
#
# The mask head gets its own crop, 14 x 14. At prediction it is made for the *final* box, not for the RoI. The figure
# shows two of the channels: the map with the RoI, and both crops.

# %%
from nprcnn.ops.roi_align import roi_align

def crop(box, size):
    """Image 0, one box (4,) -> (C, size, size), from the level that the box belongs to."""
    side = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    level = int(np.clip(np.floor(4 + np.log2(side / model.canonical_size)), 2, 5))
    rois = np.concatenate([[0], box])[None].astype(np.float32)
    return roi_align(trace[f"fpn.p{level}"], rois, 1 / 2 ** level, size)[0]

box = trace["detections.boxes"][0][best]
small, large = trace["roi_heads.box_features"][r], trace["roi_heads.mask_features"][best]
for name, ours, theirs in (("box_features", crop(roi, 7), small), ("mask_features", crop(box, 14), large)):
    print(f"{name:13} {str(trace[f'roi_heads.{name}'].shape):17} largest difference {np.abs(ours - theirs).max():.0e}")

maps = trace[f"fpn.p{levels[r]}"][0]
figure, axes = plt.subplots(2, 3, figsize=(5.2, 3.7), layout="constrained")
for (left, middle, right), c in zip(axes, np.argsort(-small.std(axis=(1, 2)))):
    left.imshow(maps[c], cmap="viridis")
    corner, size = roi[:2] / 2 ** levels[r], (roi[2:] - roi[:2]) / 2 ** levels[r]
    left.add_patch(plt.Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=2))
    left.set(title=f"P{levels[r]}, channel {c}")
    middle.imshow(small[c], cmap="viridis")
    middle.set(title="7 x 7")
    right.imshow(large[c], cmap="viridis")
    right.set(title="14 x 14")
for ax in axes.ravel():
    ax.set(xticks=[], yticks=[])

# %% [markdown]
# ## 11  The box head
#
# Two linear layers turn the 7 x 7 crop into one vector for each RoI. From it come K class logits (class 0 is
# "background": no object) and, for each class, four deltas. A softmax ($e^z$ of each logit, divided by their sum) makes
# the logits into **class scores**, which sum to 1.

# %%
from nprcnn.ops.activation import softmax

scores = softmax(trace["roi_heads.class_logits"], axis=1)            # (R, K)
k = result.labels[best]
figure, ax = plt.subplots(figsize=(5.4, 2.2), layout="constrained")
ax.barh(names, scores[r], color=[course.BACKWARD if c == k else course.FORWARD for c in range(len(names))])
for row, score in enumerate(scores[r]):
    ax.text(score, row, f" {score:.3f}", va="center", fontsize=9)
ax.set(xlabel="score", xlim=(0, 1.1), ylim=(6.6, -0.6), title=f"class scores of RoI {r}")
print(f"sum {scores[r].sum():.3f};  the detection has label {k}, score {result.scores[best]:.3f}")

# %% [markdown]
# **Box refinement.** The deltas move the RoI just as the RPN's deltas moved the anchor. Which of the K sets of
# deltas? That of the class. They are stored 10 times (position) and 5 times (size) as large, so that the loss hears
# small errors; we divide first.
#
# **Two filters.** Each RoI could be a detection of each class. The score must be above 0.05, and NMS, class by class,
# with an IoU of 0.5, removes the doubles.

# %%
deltas = trace["roi_heads.box_deltas"][r].reshape(len(names), 4)     # (K, 4)
delta = deltas[k] / model.bbox_reg_weights
refined = move(roi, delta)
print("RoI      ", roi.round(1))
print("deltas   ", delta.round(3))
print("refined  ", refined.round(1))
print("detection", result.boxes[best].round(1), " (clipped to the image)")
clipped = np.clip(refined, 0, [width, height, width, height])
assert np.allclose(clipped, result.boxes[best], atol=1e-3)

found = (scores[:, 1:] > model.box_score_thresh).sum()
print(f"\n{len(scores)} RoIs x {len(names) - 1} classes -> {found} with a score above {model.box_score_thresh} "
      f"-> {len(result.scores)} after NMS, {sure.sum()} of them drawn")
before_and_after(roi, refined, ("RoI", "refined"))

# %% [markdown]
# ## 12  The mask head, and the end
#
# From the 14 x 14 crop the mask head makes 28 x 28 logits **for each class**. It does not ask which class it is:
# the box head has said so, and only that class's mask is used. (So classes do not compete for pixels: arXiv
# 1703.06870, section 3. Class 0 has a mask, too, which nobody looks at.) Here are the masks of the two
# classes that the box head found most likely. Orange is object; the line is logit 0, which is probability 1/2.

# %%
logits = trace["roi_heads.mask_logits"][best]             # (K, 28, 28)
likely = 1 + np.argsort(-scores[r, 1:])[:2]
viz.draw_mask_logits(logits[likely], [f"{names[c]}{'  <- used' if c == k else ''}" for c in likely])

# %% [markdown]
# (Both may draw much the same shape. In training a class's mask hears from objects of that class alone, so nobody
# has told it what to draw for the others.)
#
# A sigmoid makes probabilities of the logits. Then the small mask is **pasted**: stretched over its box, in an empty
# image, and cut at 1/2.

# %%
from nprcnn.ops.paste import paste_masks

probability = sigmoid(logits[k])                          # (28, 28)
pasted = paste_masks(probability[None], result.boxes[best][None], (height, width))[0]
print("28 x 28 probabilities as in the trace:", np.allclose(probability, trace["roi_heads.mask_probabilities"][best]))
print("cut mask as in the result:            ", np.array_equal(pasted > 0.5, result.masks[best]))

figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.3), layout="constrained")
pictures = (probability, pasted, pasted > 0.5)
texts = ("probabilities (28, 28)", f"pasted {pasted.shape}", "cut at 1/2")
for ax, picture, text in zip(axes, pictures, texts):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    ax.set(title=text, xticks=[], yticks=[])
axes[1].add_patch(plt.Rectangle(result.boxes[best][:2] - 0.5, *(result.boxes[best][2:] - result.boxes[best][:2]),
                                fill=False, edgecolor=course.BACKWARD, linewidth=1.5));

# %% [markdown]
# That is the whole network.
#
# ### One detection, led back
#
# Every filter on the way keeps indices. So we can ask a detection where it comes from: `result.proposal` is its
# row in `rpn.proposals`, `result.level` the level its features were read from, `result.anchor` its row in
# `rpn.anchors`. On the left are all detections, on the right the way of ours.

# %%
p, a = result.proposal[best], result.anchor[best]
steps = {"anchor": anchors[a], "proposal": proposals[p], "detection": result.boxes[best]}
ious = box_iou(result.boxes[best][None], target["boxes"])[0]
truth = ious.argmax()
assert proposal_anchor[p] == a                            # the filter of section 8 agrees

print(f"detection {best}: a {names[k]}, score {result.scores[best]:.3f}")
print(f"  <- RoI {p}, objectness {objectness[p]:.3f}, read from P{result.level[best]}")
print(f"  <- anchor {a}, the anchor number {(a - starts[level - 2]) % 3} of its cell on P{level}")
for name, box in steps.items():
    print(f"  IoU of the {name:9} with the true box: {box_iou(box[None], target['boxes'][[truth]])[0, 0]:.2f}")
print(f"the truth: a {names[labels[truth]]}")

figure, (left, ax) = viz.image_panels(2, width, height, side=256)
viz.draw_detections(faint, result.boxes[sure], result.labels[sure], result.scores[sure], result.masks[sure],
                    class_names=names, ax=left, title="final detections")
viz.draw_detections(faint, ax=ax, title=f"the way to detection {best}")
colours = (course.BACKWARD, course.PINK, course.FORWARD, course.GREEN)
steps["truth"] = target["boxes"][truth]
for (name, box), colour, style in zip(steps.items(), colours, ("--", "-.", "-", ":")):
    ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=colour, linestyle=style,
                               linewidth=2, label=name))
ax.legend(fontsize=8, frameon=True, loc="best")
figure

# %% [markdown]
# ## 13  Where the weights come from: five losses
#
# In training the network gets images with their targets. Five losses say how wrong it is:
#
# | loss | of | computed on | what it compares |
# |---|---|---|---|
# | `loss_objectness` | RPN | a sample of anchors | object or not: binary cross-entropy |
# | `loss_rpn_box_reg` | RPN | those that are objects | deltas with the deltas to the true box: smooth L1 |
# | `loss_classifier` | box head | a sample of RoIs | class scores with the true class: cross-entropy |
# | `loss_box_reg` | box head | those that are objects | deltas of the true class: smooth L1 |
# | `loss_mask` | mask head | those that are objects | mask of the true class, pixel by pixel: binary cross-entropy |
#
# A cross-entropy is $-\log$ of the probability that the right answer got (notebook 01). Smooth L1 is the size of
# the error, with the kink at 0 rounded off (notebook 05). What training makes small is the sum of all five. Here
# they are for one training scene, with random weights and with the trained ones. (`loss_box_reg` can be *larger*
# with trained weights: the RPN then finds more RoIs that hold an object, and only they count. Even asking for the
# losses changes a model, whose batch norm (notebook 03) keeps running averages, so we take new ones here.)

# %%
train_image, train_target = Shapes(10, seed=0)[6]
table, objects = {}, []
for name, weights in (("random", None), ("trained", "shapes")):
    student = nprcnn.maskrcnn_tiny(weights=weights)
    training = nprcnn.Trace()
    table[name], cache = student.losses([train_image], [train_target], np.random.default_rng(0), trace=training)
    objects.append((cache.decisions.labels[0] > 0).sum())

print(f"{'':18} {'random':>8} {'trained':>8}")
for loss in table["trained"]:
    print(f"{loss:18} {table['random'][loss]:8.3f} {table['trained'][loss]:8.3f}")
print(f"{'sum':18} {sum(table['random'].values()):8.3f} {sum(table['trained'].values()):8.3f}")
print(f"{'RoIs with an object':18} {objects[0]:7} {objects[1]:8}\n")
print(f"guessing costs log 2 = {np.log(2):.3f} for a yes or no, log {len(names)} = {np.log(len(names)):.3f} for a class")

# %% [markdown]
# Which anchor should say "object"? One whose IoU with a true box is at least 0.7 (or the best one for that box);
# below 0.3 it should say "no". For RoIs the border is 0.5. There are far too many "no", so a random **sample** is
# taken of both kinds. All these choices are in `cache.decisions`.

# %%
decisions = cache.decisions
train_faint = pale(train_image)
positive, negative = (training["rpn.anchors"][d[0]] for d in (decisions.anchor_positive, decisions.anchor_negative))
rois, roi_labels = decisions.proposals[0], decisions.labels[0]
print(f"anchors: {len(positive)} object, {len(negative)} no object")
print(f"RoIs:    {(roi_labels > 0).sum()} object, {(roi_labels == 0).sum()} background")
figure, axes = viz.image_panels(2, width, height, side=256)
for ax, boxes, text in zip(axes, (positive, rois[roi_labels > 0]), ("anchors: object", "RoIs: object")):
    viz.draw_boxes(train_faint, boxes, ax=ax, title=text)
figure

# %% [markdown]
# ### The gradients
#
# `backward` sends the gradient of the sum of the five losses back through every stage. With a trace it leaves it
# under the same names, in `trace.grad`. At the class logits the gradient is simple: for R RoIs it is (score − 1 for
# the true class, else score) / R. Notebook 01 shows why. Here times R, for the three RoIs where it is largest:

# %%
student.zero_grad()
student.backward(cache, training)

logits, gradient = training["roi_heads.class_logits"], training.grad["roi_heads.class_logits"]
R = len(logits)
by_hand = (softmax(logits, axis=1) - np.eye(len(names))[roi_labels]) / R
print(f"largest difference {np.abs(by_hand - gradient).max():.0e}")
rows = np.argsort(-np.abs(gradient).max(axis=1))[:3]
figure, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
course.show_matrix(ax, R * gradient[rows], "gradient at the class logits, times R", "", "RoI: its true class", "{:.3f}")
ax.set(xticks=range(len(names)), xticklabels=names, yticks=range(3),
       yticklabels=[f"{n}: {names[roi_labels[n]]}" for n in rows])
ax.tick_params(labelsize=8, length=0)
ax.tick_params(axis="x", rotation=40)

# %% [markdown]
# Orange is a logit that the loss wants lower, purple one that it wants higher.
#
# At the mask logits it is probability − target, over the number of pixels: but only in the channel of the true
# class. The other channels get exactly 0.

# %%
n = int((roi_labels > 0).argmax())                        # the first RoI with an object
mask_labels = roi_labels[roi_labels > 0]
c, m = mask_labels[0], training["roi_heads.mask_logits"]
target_mask, dm = training["roi_heads.mask_targets"][0], training.grad["roi_heads.mask_logits"]
others = np.delete(dm[0], c, axis=0)
print(f"true class {names[c]};  gradient in the other channels: {np.abs(others).max()}")
by_hand = (sigmoid(m[0, c]) - target_mask) / (len(m) * 28 * 28)
print(f"largest difference {np.abs(by_hand - dm[0, c]).max():.0e}")

figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.1), layout="constrained")
limit = np.abs(dm[0, c]).max()
for ax, picture, text, cmap, low, high in (
        (axes[0], sigmoid(m[0, c]), "probability", "gray", 0, 1), (axes[1], target_mask, "target", "gray", 0, 1),
        (axes[2], dm[0, c], "gradient", "PuOr_r", -limit, limit)):
    drawn = ax.imshow(picture, cmap=cmap, vmin=low, vmax=high)
    ax.set(title=text, xticks=[], yticks=[])
figure.colorbar(drawn, ax=axes[2]);

# %% [markdown]
# Further down, where do the losses want to change the features? The sum of |gradient| over the channels of
# three stages, bright where it is large:

# %%
stages = [("fpn.p2", "P2"), ("backbone.layer3", "C4"), ("backbone.layer1", "C2")]
figure, axes = plt.subplots(1, 3, figsize=(5.4, 2), layout="constrained")
for ax, (stage, text) in zip(axes, stages):
    size = np.abs(training.grad[stage][0]).sum(axis=0)
    ax.imshow(size, cmap="magma", extent=(0, width, height, 0))
    ax.contour(np.arange(width) + 0.5, np.arange(height) + 0.5, train_target["masks"].any(axis=0), [0.5],
               colors="white", linewidths=0.8)
    ax.set(title=f"{text}, {size.shape[0]} x {size.shape[1]}", xticks=[], yticks=[])
print("no gradient at:", ", ".join(name for name in training if name not in training.grad))

# %% [markdown]
# The names in the last line are constants to the backward pass: what the network reads, or what was decided.
#
# One step of training: each parameter moves a little against its gradient $g$. To first order the sum of the losses
# should fall by step · $\sum g^2$. We ask the network again, with the same decisions. (This also checks the gradient of
# the whole network, roughly: the step is not small enough for more. Notebook 01 shows how it is done exactly.)

# %%
step = 1e-3
square = sum(float(np.square(p.grad).sum()) for p in student.parameters())
for p in student.parameters():
    p.data = p.data - step * p.grad
after, _ = student.losses([train_image], [train_target], None, decisions=decisions)
loss = sum(map(float, table["trained"].values()))
print(f"sum of the losses: {loss:.5f} -> {sum(map(float, after.values())):.5f}")
fell = loss - sum(map(float, after.values()))
print(f"it fell by {fell:.5f}, expected about {step * square:.5f}: {abs(fell / (step * square) - 1):.1%} off")
assert sum(after.values()) < loss

# %% [markdown]
# Thousands of such steps, each with new scenes, made the weights of this notebook. The command is `nprcnn train
# shapes`, its recipe is in `nprcnn/recipes.py`.
#
# ## Exercises
#
# Solutions are in `solutions/00_solutions.ipynb`.
#
# ### Exercise 1: the level of an RoI
#
# Section 9 did it for one RoI. Do it for all at once: `boxes` is (R, 4), and `size` is the side that belongs to
# level 4 (112 for our model). Return R whole numbers from 2 to 5. No loop is needed.
#
# <details><summary>Hint 1</summary>boxes[:, 2] - boxes[:, 0] are all R widths.</details>
# <details><summary>Hint 2</summary>np.log2, np.floor and np.clip work on whole arrays.</details>
# <details><summary>Hint 3</summary>Round down first, then limit: np.clip(np.floor(...), 2, 5).</details>

# %%
def roi_levels(boxes, size):
    ...                                                   # your code; return the levels, shape (R,)

# (roi_levels(proposals, 112) == levels).all()            # try it on the trace
check_roi_levels(roi_levels)

# %% [markdown]
# ### Exercise 2: the deltas that a box needs
#
# `move` of section 7 takes an anchor and deltas, and gives a box. For `loss_rpn_box_reg` the network needs the way
# back: which deltas move *this* anchor onto *that* true box? Solve the four equations of section 7 for the deltas.
# `anchors` and `boxes` are (n, 4); return (n, 4).
#
# <details><summary>Hint 1</summary>First turn both into centre, width and height.</details>
# <details><summary>Hint 2</summary>x = x_a + d_x w_a. What is d_x? And w = w_a exp(d_w): what is d_w?</details>
# <details><summary>Hint 3</summary>np.stack([dx, dy, dw, dh], axis=1) puts four arrays (n,) side by side.</details>

# %%
def deltas_to(boxes, anchors):
    ...                                                   # your code; return the deltas, shape (n, 4)

# move(anchor, deltas_to(target["boxes"][[truth]], anchor[None])[0])     # try it: it should give the true box
check_deltas_to(deltas_to)

# %% [markdown]
# ### Exercise 3: from instances to a class map
#
# `class_map` of section 1 makes a semantic segmentation from instances. But where two masks overlap, it takes the
# larger label, which makes no sense. Take the label of the mask with the **better score**. `labels` is (n,), `scores`
# (n,) in any order, `masks` (n, H, W) bool. Pixels of no mask are 0, and n may be 0.
#
# <details><summary>Hint 1</summary>Begin with a map of zeros, and paint the instances one after the other. Who is seen in the end?</details>
# <details><summary>Hint 2</summary>The last one that was painted. So the best must come last.</details>
# <details><summary>Hint 3</summary>for i in np.argsort(scores): ...</details>

# %%
def best_class_map(labels, scores, masks):
    ...                                                   # your code; return the map, shape (H, W)

check_best_class_map(best_class_map)

# %% [markdown]
# ## Summary
#
# - Instance segmentation gives each object its own mask. A class map joins objects that touch, and boxes do not say
#   whose a pixel is.
# - Stage one: backbone and pyramid make features; the RPN scores and moves anchors; NMS leaves proposals.
# - Stage two: each RoI is read from one level, cut to one size by RoIAlign, classified and refined; for the final
#   boxes a mask of 28 x 28 is made and pasted.
# - A box is moved twice by the same formula: anchor → proposal → detection. The indices lead back.
# - Five losses, summed. The gradient goes back through everything but the decisions and the boxes.
# - `trace[name]` is the tensor of a stage, `trace.grad[name]` its gradient.
#
# **Where to go next.** [01 What a backward pass is](01_what_a_backward_pass_is.ipynb) is about the way back: how each
# of these gradients is computed by hand, and checked. [02 Convolution](02_convolution.ipynb) takes the first stage
# apart. In the code: `nprcnn/models/mask_rcnn.py` is this notebook as a program; read `predict`, then `losses`, then
# `backward`. The paper: He, Gkioxari, Dollár and Girshick, *Mask R-CNN*, arXiv 1703.06870.
