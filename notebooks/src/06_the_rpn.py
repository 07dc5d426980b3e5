# %% [markdown]
# # 06  The RPN: which anchors hold an object?
#
# Notebook 05 laid thousands of boxes over the image, the anchors. Now a small network must say two things about each
# of them: *is there an object?* and *how should the box move to fit it?* This is the **region proposal network**
# (RPN). The network itself is three convolutions. What needs thought is the question it is trained on: what is the
# right answer for an anchor that covers half an object? And what do you do when 4000 anchors say "no" and five say
# "yes"?
#
# **You need:** notebooks [01](01_what_a_backward_pass_is.ipynb) (pairs, the four rules), [02](02_convolution.ipynb)
# (1x1 and 3x3) and [05](05_anchors_iou_and_box_coding.ipynb) (anchors, IoU, deltas). **You will be able to:** write
# the RPN's head, targets and losses, forward and backward, and say what each of its thresholds is for. About 75
# minutes with the exercises.
#
# ## Where we are
#
# The RPN reads all five levels of the pyramid. It has two of the five losses. Its boxes (the dotted arrow) are the
# subject of notebook 07.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import check_gradients, course, viz
from nprcnn.course.rpn import check_focal_backward, check_match_fair, check_rpn_backward
from nprcnn.data import Shapes
from nprcnn.gradcheck import GradientCheckError
from nprcnn.models import rpn, targets
from nprcnn.ops.activation import relu_backward, relu_forward, sigmoid
from nprcnn.ops.boxes import box_iou, decode_boxes, encode_boxes
from nprcnn.ops.conv import conv2d_backward, conv2d_forward

course.style()
LEVELS = ("p2", "p3", "p4", "p5", "p6")
rng = np.random.default_rng(0)
course.where_we_are("rpn", "losses")

# %% [markdown]
# We work on one training scene, with the weights that come with nprcnn. The letters: N images, C channels of the
# pyramid, A anchors in a cell, T anchors in all, G target boxes.
#
# | tensor | shape | what it is |
# |---|---|---|
# | `fpn.p2` ... `fpn.p6` | (N, C, h, w) | input: one map a level |
# | `rpn.logits.p2` ... | (N, A, h, w) | objectness, one logit an anchor |
# | `rpn.deltas.p2` ... | (N, 4 A, h, w) | how to move it, four numbers an anchor |
# | `rpn.objectness`, `rpn.deltas` | (N, T), (N, T, 4) | the same, all levels in one long list |
# | `rpn.anchors` | (T, 4) | x1, y1, x2, y2 in pixels, in the order of that list |
# | IoU | (G, T) | of each target with each anchor |

# %%
source = Shapes(500, seed=0)
image, target = source[16]
height, width = image.shape[:2]
model = nprcnn.maskrcnn_tiny(weights="shapes")
trace = nprcnn.Trace()
model.predict(image, trace=trace)

anchors = trace["rpn.anchors"]
shapes = [trace[f"rpn.logits.{level}"].shape for level in LEVELS]      # (N, A, h, w) of each level
starts = np.cumsum([0] + [a * h * w for _, a, h, w in shapes])         # where each level begins in the long list
for level, shape, start in zip(LEVELS, shapes, starts):
    side = np.sqrt(np.prod(anchors[start + 1, 2:] - anchors[start + 1, :2]))
    print(f"{level}: features {str(trace[f'fpn.{level}'].shape):16} logits {str(shape):15} "
          f"deltas {str(trace[f'rpn.deltas.{level}'].shape):16} anchors {start:4} to {start + np.prod(shape) - 1:4}, "
          f"side {side:.0f}")

# %% [markdown]
# ## 1  The head
#
# Faster R-CNN (Ren et al. 2015, arXiv 1506.01497, section 3.1) describes it so: *slide a small network over the
# feature map*. At each cell it looks at a window of 3 x 3 cells, makes one vector of it, and from this vector two
# sibling layers make the A logits and the 4 A deltas. As formulas, for the features $f$ around one cell:
#
# $$h = \mathrm{relu}(W_3 f + b_3), \qquad z = W_o h + b_o, \qquad d = W_d h + b_d . \tag{1}$$
#
# We do it for one cell by hand, then for random cells of all levels, with the same weights.

# %%
head = model.rpn.head
w3, b3 = head.conv[0][0].weight.data, head.conv[0][0].bias.data      # (C, C, 3, 3), (C,)
wo, bo = head.cls_logits.weight.data[:, :, 0, 0], head.cls_logits.bias.data      # (A, C), (A,)
wd, bd = head.bbox_pred.weight.data[:, :, 0, 0], head.bbox_pred.bias.data        # (4A, C), (4A,)

def head_at(features, y, x):
    """Equation (1) for one cell: features (C, h, w) -> logits (A,), deltas (4A,)."""
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)))
    window = padded[:, y:y + 3, x:x + 3]                             # (C, 3, 3), the cell in the middle
    hidden = np.empty(len(b3))
    for o in range(len(b3)):
        hidden[o] = max(np.sum(w3[o] * window) + b3[o], 0)
    return wo @ hidden + bo, wd @ hidden + bd

largest = 0
for level, (_, _, h, w) in zip(LEVELS, shapes):
    for y, x in zip(rng.integers(h, size=4), rng.integers(w, size=4)):
        z, d = head_at(trace[f"fpn.{level}"][0], y, x)
        largest = max(largest, np.abs(z - trace[f"rpn.logits.{level}"][0, :, y, x]).max(),
                      np.abs(d - trace[f"rpn.deltas.{level}"][0, :, y, x]).max())
assert largest < 1e-4                                                # float32 sums of 432 products
print(f"4 random cells of each level: largest difference to the trace {largest:.0e}")

sizes = {name: w.size + b.size for name, w, b in (("3x3", w3, b3), ("logits", wo, bo), ("deltas", wd, bd))}
print("parameters:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
print(f"one head for all levels: {sum(sizes.values()):,}, a head for each level: {5 * sum(sizes.values()):,}")

# %% [markdown]
# The two siblings are linear layers that run at every cell, which is what a 1x1 convolution is. And **one** head
# serves all five levels (the pyramid's paper, arXiv 1612.03144, section 4.1). It can, because deltas are relative:
# "twice as wide as this anchor" means the same on every level.
#
# One difference to the paper: objectness here is *one* logit an anchor with a sigmoid. The paper has two with a
# softmax, and says in a footnote that one would do.
#
# ## 2  One long list
#
# The losses do not care about levels. So the maps are put into one list: level by level, then row, column, anchor.
# The catch is the order *inside* the channels. Channel `a * 4 + k` is delta `k` of anchor `a`. Loops first:

# %%
def flatten_naive(logits, deltas):
    """Maps of one image, a list a level: (A, h, w) and (4A, h, w) -> (T,), (T, 4)."""
    z, d = [], []
    for level_logits, level_deltas in zip(logits, deltas):
        a, h, w = level_logits.shape
        for y in range(h):
            for x in range(w):
                for anchor in range(a):
                    z.append(level_logits[anchor, y, x])
                    d.append(level_deltas[anchor * 4:anchor * 4 + 4, y, x])
    return np.array(z), np.array(d)

z, d = flatten_naive([trace[f"rpn.logits.{level}"][0] for level in LEVELS],
                     [trace[f"rpn.deltas.{level}"][0] for level in LEVELS])
assert np.array_equal(z, trace["rpn.objectness"][0]) and np.array_equal(d, trace["rpn.deltas"][0])
print("as in the trace:", z.shape, d.shape)

# %% [markdown]
# Without loops it is a `reshape` and a `transpose`. Get the order wrong, and nothing complains: every shape is right.
# We try two ways on P2 and look at what the boxes of the ten surest anchors are worth.

# %%
maps, count = trace["rpn.deltas.p2"], starts[1]
_, A, h, w = shapes[0]
right = maps.reshape(1, A, 4, h, w).transpose(0, 3, 4, 1, 2).reshape(-1, 4)
wrong = maps.reshape(1, 4, A, h, w).transpose(0, 3, 4, 2, 1).reshape(-1, 4)       # channel = k * A + a
best = np.argsort(-z[:count])[:10]
for name, some in (("a * 4 + k", right), ("k * A + a", wrong)):
    iou = box_iou(target["boxes"], decode_boxes(some, anchors[:count])[best])
    print(f"channel {name}: shape {some.shape}, the ten surest boxes have IoU {iou.max(axis=0).mean():.2f} "
          "with the nearest object, on average")
assert np.array_equal(right, d[:count])

# %% [markdown]
# Now look at the logits. A row for each shape of anchor, a column for each level; white is objectness 1, black 0. The
# lines are the true boxes.

# %%
def frame(ax, box, colour, style="-", width=2, label=None):
    """Draw one box (x1, y1, x2, y2)."""
    ax.add_patch(plt.Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=colour,
                               linestyle=style, linewidth=width, label=label))

cell = anchors[:3, 2:] - anchors[:3, :2]                             # width, height of the three in a cell
names = [f"{wide:.0f} x {high:.0f}" for wide, high in cell]
figure, axes = plt.subplots(3, 4, figsize=(6.6, 5.2))
for column, level in enumerate(LEVELS[:4]):
    for row, ax in enumerate(axes[:, column]):
        objectness = sigmoid(trace[f"rpn.logits.{level}"][0, row])
        ax.imshow(objectness, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        for box in target["boxes"]:
            frame(ax, box, course.BACKWARD, width=0.8)
        ax.set(xticks=[], yticks=[])
        if row == 0:
            ax.set_title(f"{level.upper()}: {objectness.shape[0]} x {objectness.shape[1]} cells")
        if column == 0:
            ax.set_ylabel(("flat", "square", "tall")[row])
print("anchors of P2, width x height:", ", ".join(names), "  and twice as large on each next level")

# %% [markdown]
# ## 3  What is the right answer? Matching
#
# There is no label on an anchor. There are only G true boxes. Faster R-CNN (section 3.1.2) gives the labels by the
# IoU $o_{gt}$ of target $g$ and anchor $t$. An anchor is
#
# - **positive** (i) if it has the highest IoU with some target, or (ii) if its IoU with any target is at least 0.7;
# - **negative** if its IoU with *every* target is below 0.3, and it is not positive by (i);
# - otherwise **ignored**: it teaches nothing.
#
# A positive anchor also needs to know *which* target it should move to: the one with which it has its own highest
# IoU. In loops:

# %%
BACKGROUND, IGNORED = targets.BACKGROUND, targets.IGNORED             # -1, -2

def match_naive(iou, high, low):
    """(G, T) -> (T,): the number of the target, or BACKGROUND, or IGNORED."""
    G, T = iou.shape
    matched = np.empty(T, int)
    for t in range(T):
        g = 0                                                         # this anchor's own best target
        for other in range(1, G):
            if iou[other, t] > iou[g, t]:
                g = other
        if iou[g, t] >= high:
            matched[t] = g                                            # rule (ii)
        elif iou[g, t] < low:
            matched[t] = BACKGROUND
        else:
            matched[t] = IGNORED
        for other in range(G):
            if iou[other, t] == iou[other].max():                     # rule (i): nobody fits `other` better
                matched[t] = g
    return matched

iou = box_iou(target["boxes"], anchors)                               # (G, T), float32
matched = match_naive(iou, 0.7, 0.3)
assert np.array_equal(matched, targets.match(iou, 0.7, 0.3, keep_best=True))
print(f"{iou.shape[0]} targets, {iou.shape[1]} anchors")
for name, some in (("positive", matched >= 0), ("ignored", matched == IGNORED), ("negative", matched == BACKGROUND)):
    best = iou.max(axis=0)[some]
    print(f"{name:9} {some.sum():5}   best IoU from {best.min():.2f} to {best.max():.2f}")

# %%
def pale(image):
    """The image in few pale colours: lines on it can be seen, and the notebook stays small."""
    blocks = image.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    return np.kron((255 - (255 - blocks) * 0.4) // 16 * 16 + 15, np.ones((2, 2, 1))).astype(np.uint8)

faint = pale(image)
figure, axes = viz.image_panels(4, width, height, side=256)
viz.draw_detections(faint, target["boxes"], ax=axes[0], title=f"{len(iou)} targets")
viz.draw_boxes(faint, anchors[matched >= 0], ax=axes[1], title=f"{(matched >= 0).sum()} positive anchors", width=1.2)
viz.draw_boxes(faint, anchors[matched == IGNORED], ax=axes[2], title=f"{(matched == IGNORED).sum()} ignored")
some = rng.permutation(np.flatnonzero(matched == BACKGROUND))[:80]
viz.draw_boxes(faint, anchors[some], ax=axes[3], title=f"80 of {(matched == BACKGROUND).sum()} negative")
figure

# %% [markdown]
# **Why rule (i)?** The table says that some positives have an IoU far below 0.7. Without rule (i) their targets would
# have no anchor at all. How often does that happen? We look at the best anchor of each target in 200 scenes.

# %%
best_iou = np.concatenate([box_iou(source[i][1]["boxes"], anchors).max(axis=1) for i in range(200)])
below = (best_iou < 0.7).mean()
figure, ax = plt.subplots(figsize=(6, 2.4))
ax.hist(best_iou, bins=np.arange(0.3, 1.001, 0.025), color=course.FORWARD)
ax.axvline(0.7, color=course.BACKWARD)
ax.text(0.705, ax.get_ylim()[1] * 0.9, "rule (ii): 0.7", color=course.BACKWARD)
ax.set(xlabel="IoU of a target with its best anchor", ylabel="targets", xlim=(0.4, 1))
print(f"{len(best_iou)} targets: {below:.0%} have no anchor with IoU 0.7, the worst is at {best_iou.min():.2f}")

# %% [markdown]
# So for most targets rule (i) is the only thing that teaches the network to find them.
#
# **Two details** that bite whoever writes this for the first time.
#
# *Ties.* Anchors lie on a grid and targets often have whole-number corners, so several anchors can have exactly the
# same best IoU. All of them become positive. The test is exact equality, so the IoU must be computed the same way
# everywhere: in float32, in the order given in notebook 05.
#
# *Whose target?* An anchor that is the best one for target $g$ may fit another target $g'$ even better. It is then
# trained to move to $g'$, its own best, not to $g$ which chose it. We look for such anchors.

# %%
ties, found = [], []
for i in range(200):
    boxes = source[i][1]["boxes"]
    overlaps = box_iou(boxes, anchors)
    m = targets.match(overlaps, 0.7, 0.3, keep_best=True)
    is_best = overlaps == overlaps.max(axis=1, keepdims=True)         # (G, T)
    ties += list(is_best.sum(axis=1))
    found += [(i, g, t) for g, t in np.argwhere(is_best) if m[t] != g]
print("targets by the number of anchors that tie for the best:",
      {int(k): ties.count(k) for k in np.unique(ties)})
print("anchors that were chosen by one target and serve another:", len(found), "in scenes",
      [i for i, _, _ in found])

i, g, t = found[0]
boxes = source[i][1]["boxes"]
other = box_iou(boxes, anchors[[t]])[:, 0].argmax()
print(f"scene {i}: anchor {t} is the best one for target {g} (IoU {box_iou(boxes, anchors)[g, t]:.2f}), "
      f"but has IoU {box_iou(boxes, anchors)[other, t]:.2f} with target {other}")
figure, (ax,) = viz.image_panels(1, width, height, side=256)
viz.draw_detections(pale(source[i][0]), ax=ax, title="chosen by one, trained for the other")
for box, colour, style, name in ((boxes[g], course.FORWARD, "-", f"target {g}"),
                                 (boxes[other], course.GREEN, "-", f"target {other}"),
                                 (anchors[t], course.BACKWARD, "--", f"anchor {t}")):
    frame(ax, box, colour, style, label=name)
corners = np.concatenate([boxes[[g, other]], anchors[[t]]]) + [-14, -22, 14, 6]
ax.set(xlim=(corners[:, 0].min(), corners[:, 2].max()), ylim=(corners[:, 3].max(), corners[:, 1].min()))
ax.legend(fontsize=8, frameon=True, loc="upper left")
figure

# %% [markdown]
# Rule (i) has a trap. What if a target meets no anchor? Then its best IoU is 0, and *every* anchor with IoU 0 ties
# for it. In an image with such a box the RPN would learn that everything is an object. And an image without any
# target must be all negative:

# %%
outside = np.array([[900, 900, 950, 950]], np.float32)                # a target that no anchor touches
for name, boxes in (("a target that no anchor meets", outside), ("no target", outside[:0])):
    m = targets.match(box_iou(boxes, anchors), 0.7, 0.3, keep_best=True)
    print(f"{name}: {(m >= 0).sum()} positive, {(m == BACKGROUND).sum()} negative")

# %% [markdown]
# (torchvision does the same. Such a box is an error in the data, as is one of area 0: check your targets before you
# train.)
#
# ## 4  Sampling
#
# How many of each kind are there? And what happens if we simply train on all of them?

# %%
kinds = []
for i in range(50):
    m = targets.match(box_iou(source[i][1]["boxes"], anchors), 0.7, 0.3, keep_best=True)
    kinds.append([(m >= 0).sum(), (m == IGNORED).sum(), (m == BACKGROUND).sum()])
mean = np.mean(kinds, axis=0)
for name, number in zip(("positive", "ignored", "negative"), mean):
    print(f"{name:9} {number:7.1f} an image, {number / len(anchors):6.2%}")

# %% [markdown]
# There are hundreds of negatives for one positive. In a mean over all of them the positives would hardly be heard.
# Section 3.1.3 of the paper therefore draws a **sample** for each image: 256 anchors, at most half of them positive,
# and negatives fill up the rest. (Our small model draws 128.)

# %%
def sample_naive(matched, size, positive_fraction, rng):
    """Indices of the positive and of the negative anchors in the sample."""
    positive = [t for t in range(len(matched)) if matched[t] >= 0]
    negative = [t for t in range(len(matched)) if matched[t] == BACKGROUND]
    wanted = min(len(positive), int(size * positive_fraction))
    positive = rng.permutation(positive)[:wanted]
    negative = rng.permutation(negative)[:size - wanted]
    return np.sort(positive), np.sort(negative)

size, fraction = model.rpn_batch_size_per_image, model.rpn_positive_fraction
positive, negative = sample_naive(matched, size, fraction, np.random.default_rng(5))
theirs = targets.sample(matched, size, fraction, np.random.default_rng(5))
assert np.array_equal(positive, theirs[0]) and np.array_equal(negative, theirs[1])
print(f"sample of {size}: {len(positive)} positive, {len(negative)} negative")

p = 0.5                                                               # what an untrained head says about every anchor
for name, yes, no in (("all anchors", mean[0], mean[2]), ("the sample", mean[0], size - mean[0])):
    push_up, push_down = yes * (1 - p), no * p                        # sums of |p - label|
    print(f"{name:12} the positives are {yes / (yes + no):.1%} of the loss; "
          f"pull down : pull up = {push_down / push_up:.0f} : 1")

# %% [markdown]
# A sample is drawn anew at each step, so over time all negatives take part. It is still far from balanced: there are
# rarely as many positives as would be allowed. The second stage does its own sampling, with better balance (notebook
# 09). Another way out is a loss that turns the easy negatives down (focal loss, arXiv 1708.02002).
#
# ## 5  The two losses
#
# Equation (1) of Faster R-CNN, with $p_i$ the objectness of sampled anchor $i$, $p_i^*$ its label (1 or 0), $d_i$ its
# deltas and $d_i^*$ the deltas that lead to its target:
#
# $$L = \frac{1}{N_{cls}} \sum_i L_{cls}(p_i, p_i^*) \;+\;
# \lambda\, \frac{1}{N_{reg}} \sum_i p_i^*\, L_{reg}(d_i, d_i^*) . \tag{2}$$
#
# $L_{cls}$ is the binary cross-entropy, $-\log p$ or $-\log(1 - p)$. $L_{reg}$ is **smooth L1** on each of the four
# deltas (Fast R-CNN, arXiv 1504.08083, equation 3, there with $\beta = 1$):
#
# $$\mathrm{smooth}(e) = \begin{cases} e^2 / (2 \beta) & |e| < \beta \\ |e| - \beta / 2 & \text{else.} \end{cases} \tag{3}$$
#
# Near 0 it is a parabola, so that the slope fades as the error does. Far away it is a line, so that one bad box does
# not drown the rest.

# %%
def smooth_l1(e, beta):
    return np.where(np.abs(e) < beta, e * e / (2 * beta), np.abs(e) - beta / 2)

e = np.linspace(-1.5, 1.5, 301)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for beta, style in ((1, "-"), (1 / 9, "--")):
    axes[0].plot(e, smooth_l1(e, beta), style, label=f"smooth L1, beta {beta:.2g}")
    axes[1].plot(e, np.clip(e / beta, -1, 1), style, label=f"beta {beta:.2g}")
axes[0].plot(e, e * e / 2, ":", label="e² / 2")
axes[1].plot(e, e, ":", label="e² / 2")
axes[0].set(xlabel="error e of a delta", ylabel="loss")
axes[1].set(xlabel="error e of a delta", ylabel="slope", ylim=(-1.6, 1.6))
axes[0].legend(fontsize=8)
axes[1].legend(fontsize=8)
wanted = encode_boxes(target["boxes"][matched[positive]], anchors[positive])
print("deltas that the positives of our scene need, largest of each:", np.abs(wanted).max(axis=0).round(2))

# %% [markdown]
# The last line says why $\beta = 1$ would be too large here: nearly all errors of deltas would be on the parabola,
# where the slope is small. Detectron and torchvision took 1/9.
#
# **Which N?** The paper divides the first sum by $N_{cls}$ = 256 and the second by the number of cells, $N_{reg}$
# about 2400, and then multiplies by $\lambda = 10$. Today's systems divide *both* by the number of sampled anchors of
# the batch, and need no $\lambda$. That is nearly the same:

# %%
print(f"weight of one positive anchor's box loss, paper:  10 / 2400 = 1 / {2400 / 10:.0f}")
print("the same, with both sums over the sample:         1 / 256")

# %% [markdown]
# Note what (2) does *not* do: it does not divide the box loss by the number of positives. With few positives the box
# loss is small, and each positive box weighs the same in every image.
#
# Here are both losses in loops, for our sample, against the library.

# %%
def rpn_loss_naive(z, d, positive, negative, wanted):
    """z (T,), d (T, 4), wanted (P, 4): the deltas that the positives need -> two losses."""
    count = len(positive) + len(negative)
    objectness, box = 0.0, 0.0
    for t in positive:
        objectness += -np.log(sigmoid(z[t]))
    for t in negative:
        objectness += -np.log(1 - sigmoid(z[t]))
    for t, want in zip(positive, wanted):
        for k in range(4):
            box += smooth_l1(d[t, k] - want[k], 1 / 9)
    return objectness / count, box / count

def library_losses(z, d):
    """The library's, for this one image; T anchors -> two losses, cache."""
    return rpn.rpn_losses(z[None], d[None], anchors.astype(z.dtype), [target["boxes"].astype(z.dtype)], [positive],
                          [negative], [matched[positive]])

z, d = trace["rpn.objectness"][0].astype(float), trace["rpn.deltas"][0].astype(float)      # float64 from here on
wanted = encode_boxes(target["boxes"][matched[positive]].astype(float), anchors[positive].astype(float))
ours, theirs = rpn_loss_naive(z, d, positive, negative, wanted), library_losses(z, d)
for name, a, b in zip(("objectness", "box"), ours, theirs):
    print(f"{name:10} loss {a:.6f}, difference to nprcnn {abs(a - b):.0e}")
    assert abs(a - b) < 1e-12
print(f"an untrained head pays log 2 = {np.log(2):.3f} for objectness")

# %% [markdown]
# ## 6  Backward
#
# From the end to the front.
#
# **The losses.** For the binary cross-entropy notebook 01 found $p - p^*$ (exercise 3 there). For smooth L1, the
# slope of (3) is $e / \beta$ where $|e| < \beta$ and $\pm 1$ elsewhere, which is $e / \beta$ cut off at $\pm 1$. With
# M sampled anchors:
#
# $$dz_i = \frac{p_i - p_i^*}{M}, \qquad
# dd_{ik} = \frac{\mathrm{clip}(e_{ik} / \beta,\, -1,\, 1)}{M}\ \text{ for positives.} \tag{4}$$
#
# Picking the sample was a gather. So (4) is scattered into arrays of zeros: **all other anchors get exactly 0.**

# %%
def rpn_loss_backward(z, d, positive, negative, wanted):
    """Gradients of the sum of the two losses: dz (T,), dd (T, 4)."""
    count = len(positive) + len(negative)
    dz, dd = np.zeros_like(z), np.zeros_like(d)
    # forward: mean of -log p over positives and -log(1 - p) over negatives
    dz[positive] = (sigmoid(z[positive]) - 1) / count
    dz[negative] = sigmoid(z[negative]) / count
    # forward: sum of smooth(d - wanted) over positives / count
    dd[positive] = np.clip((d[positive] - wanted) / (1 / 9), -1, 1) / count
    return dz, dd

def referee(forward, backward, inputs):
    for row in check_gradients(forward, backward, inputs):
        print(f"{row.argument:28} backward {row.analytic:+.5e}  forward {row.numeric:+.5e}  error {row.relative:.0e}")

def losses_forward(z, d):
    return sum(library_losses(z, d)[:2]), (z, d)

def losses_backward(dy, cache):
    return tuple(dy * g for g in rpn_loss_backward(*cache, positive, negative, wanted))

untrained = rng.standard_normal(z.shape), 0.3 * rng.standard_normal(d.shape)      # large losses, large gradients
referee(losses_forward, losses_backward, untrained)
dz, dd = rpn_loss_backward(z, d, positive, negative, wanted)
theirs = rpn.rpn_losses_backward(1.0, 1.0, library_losses(z, d)[2])
print("largest differences to nprcnn:", np.abs(dz - theirs[0][0]).max(), np.abs(dd - theirs[1][0]).max())
print(f"logits with a gradient: {np.count_nonzero(dz)} of {dz.size}, "
      f"anchors whose deltas have one: {np.count_nonzero(dd.any(axis=1))} of {len(dd)}")

# %% [markdown]
# The next figure shows the gradient of the objectness loss where the RPN sees it: on the maps, for the sum of the
# three anchors of each cell. Above with the trained head, below with an untrained one (all logits 0). Purple cells
# should say "object" more, orange ones less; most cells are silent at this step.

# %%
def unflatten(dz):
    """(T,) -> one map (A, h, w) a level: section 2, backwards."""
    return [dz[start:start + a * h * w].reshape(h, w, a).transpose(2, 0, 1)
            for start, (_, a, h, w) in zip(starts, shapes)]

figure, axes = plt.subplots(2, 4, figsize=(7.4, 3.9))
for row, (name, logits) in enumerate((("trained", z), ("untrained", 0 * z))):
    gradient, _ = rpn_loss_backward(logits, d, positive, negative, wanted)
    maps = [m.sum(axis=0) for m in unflatten(gradient)][:4]
    limit = max(np.abs(m).max() for m in maps)
    for ax, level, m in zip(axes[row], LEVELS, maps):
        drawn = ax.imshow(m, cmap="PuOr_r", vmin=-limit, vmax=limit, extent=(0, width, height, 0))
        for box in target["boxes"]:
            frame(ax, box, "#808080", width=0.7)
        ax.set(xticks=[], yticks=[], title=level.upper() if row == 0 else "")
    axes[row, 0].set_ylabel(name)
    figure.colorbar(drawn, ax=axes[row], shrink=0.8, label="dz")

# %% [markdown]
# **The head.** The vector $h$ of equation (1) feeds both siblings. Fan-out → sum:
#
# $$dh = W_o^\top dz + W_d^\top dd . \tag{5}$$
#
# And the same weights are used on five levels. Fan-out again: **their gradients are the sum over the levels.** That
# is why each level keeps its own cache. A small head, on two levels of different sizes:

# %%
def head_forward(p2, p3, w3, wo, wd):
    """Two levels (N, C, h, w) -> logits and deltas of both, four maps."""
    outputs, caches = [], []
    for p in (p2, p3):
        a, conv_cache = conv2d_forward(p, w3, None, 1, 1)
        h, relu_cache = relu_forward(a)
        z, logits_cache = conv2d_forward(h, wo)
        d, deltas_cache = conv2d_forward(h, wd)
        outputs += [z, d]
        caches.append((conv_cache, relu_cache, logits_cache, deltas_cache))
    return tuple(outputs), caches

def head_backward(dy, caches):
    dw3, dwo, dwd, dpyramid = 0, 0, 0, []
    for dz, dd, (conv_cache, relu_cache, logits_cache, deltas_cache) in zip(dy[::2], dy[1::2], caches):
        # forward: z = wo h, d = wd h      fan-out: both gradients of h add
        dh_z, dwo_level, _ = conv2d_backward(dz, logits_cache)
        dh_d, dwd_level, _ = conv2d_backward(dd, deltas_cache)
        da = relu_backward(dh_z + dh_d, relu_cache)
        dp, dw3_level, _ = conv2d_backward(da, conv_cache)
        # the same weights on every level: fan-out, so their gradients add
        dw3, dwo, dwd = dw3 + dw3_level, dwo + dwo_level, dwd + dwd_level
        dpyramid.append(dp)
    return *dpyramid, dw3, dwo, dwd

inputs = [rng.standard_normal(s) for s in ((2, 4, 6, 5), (2, 4, 3, 3), (4, 4, 3, 3), (3, 4, 1, 1), (12, 4, 1, 1))]
referee(head_forward, head_backward, inputs)

# %% [markdown]
# Now the real model. `losses` and `backward` with a trace give us its gradients at every stage. We feed it *our*
# sample (its `decisions`), and compare: `dz` and `dd` with (4), and the gradient of the logits' weights with the sum
# over five levels.

# %%
student = nprcnn.maskrcnn_tiny(weights="shapes")
training = nprcnn.Trace()
losses, cache = student.losses([image], [target], np.random.default_rng(5), trace=training)
student.zero_grad()
student.backward(cache, training)

positive, negative = cache.decisions.anchor_positive[0], cache.decisions.anchor_negative[0]
z_train, d_train = training["rpn.objectness"][0], training["rpn.deltas"][0]
wanted_train = encode_boxes(target["boxes"][cache.decisions.anchor_matched[0]], anchors[positive])
by_hand = rpn_loss_backward(z_train, d_train, positive, negative, wanted_train)
for name, ours, stage in zip(("dz", "dd"), by_hand, ("rpn.objectness", "rpn.deltas")):
    print(f"{name}: largest difference to the model {np.abs(ours - training.grad[stage][0]).max():.0e}")

total = 0
for level in LEVELS:
    (conv, norm), features = student.rpn.head.conv[0], training[f"fpn.{level}"]
    hidden = np.maximum(conv.forward(features, False)[0], 0)                             # (1, C, h, w)
    level_gradient = np.einsum("nahw,nchw->ac", training.grad[f"rpn.logits.{level}"], hidden)
    total = total + level_gradient
    print(f"  {level}: gradient of the logits' weights, norm {np.linalg.norm(level_gradient):.1e}")
theirs = student.rpn.head.cls_logits.weight.grad[:, :, 0, 0]
print(f"sum of the five, norm {np.linalg.norm(total):.1e}, "
      f"largest difference to the model {np.abs(total - theirs).max():.0e}")
assert np.abs(total - theirs).max() < 1e-6

# %% [markdown]
# Nearly all pixels of those maps have a gradient of exactly 0, and a product with 0 need not be made. On large images nprcnn's
# backward pass therefore visits the pixels of sampled anchors alone: `RPNHead._backward_at`, with `nprcnn/ops/conv_at.py`.
#
# ## 7  Does it learn?
#
# Everything is in place, so let us train: a **new** head, with random weights, on the features of the trained
# pyramid, which we do not change. Six scenes, plain gradient descent. We watch the two losses, and a number that
# matters more: of the targets of 20 *held-out* scenes, how many have an IoU of at least 0.5 with one of the ten
# surest boxes of their image?

# %%
def pyramid_of(scenes):
    """Features of the trained model for a list of scenes, [P2 .. P6]."""
    t = nprcnn.Trace()
    model.predict([image for image, _ in scenes], trace=t)
    return [t[f"fpn.{level}"] for level in LEVELS]

def recall_at_10(net):
    logits, deltas, _ = net.forward(held_out_pyramid, False)
    hits = []
    for z, d, (_, t) in zip(logits, deltas, held_out):
        best = np.argsort(-z)[:10]
        hits += list(box_iou(t["boxes"], decode_boxes(d[best], anchors[best])).max(axis=1) >= 0.5)
    return np.mean(hits)

held_out, scenes = [Shapes.held_out(20)[i] for i in range(20)], [source[i] for i in range(100, 106)]
held_out_pyramid, pyramid = pyramid_of(held_out), pyramid_of(scenes)
target_boxes = [t["boxes"] for _, t in scenes]

# %%
net = rpn.RPN(rpn.RPNHead(np.random.default_rng(1), channels=48, anchors=3))
draw = np.random.default_rng(2)
history, recalls = [], {0: recall_at_10(net)}
for step in range(1, 121):
    logits, deltas, head_cache = net.forward(pyramid, True)
    drawn = [targets.anchor_targets(anchors, boxes, draw, 0.7, 0.3, 128, 0.5) for boxes in target_boxes]
    objectness, box, loss_cache = rpn.rpn_losses(logits, deltas, anchors, target_boxes, *zip(*drawn))
    net.zero_grad()
    net.backward(*rpn.rpn_losses_backward(np.float32(1), np.float32(1), loss_cache), head_cache)
    for parameter in net.parameters():
        parameter.data = parameter.data - np.float32(0.1) * parameter.grad
    history.append((objectness, box))
    if step in (15, 30, 60, 90, 120):
        recalls[step] = recall_at_10(net)

figure, axes = plt.subplots(1, 2, figsize=(8.2, 2.6))
for values, name in zip(np.array(history).T, ("objectness", "box")):
    axes[0].plot(np.arange(1, len(values) + 1), values, linewidth=0.9, label=name)
axes[0].axhline(np.log(2), color="#808080", linestyle=":", linewidth=1)
axes[0].text(len(history), np.log(2) * 0.9, "log 2", ha="right", va="top", color="#606060")
axes[0].set(xlabel="step", ylabel="loss", yscale="log")
axes[0].legend()
axes[1].plot(list(recalls), list(recalls.values()), "o-")
axes[1].axhline(recall_at_10(model.rpn), color=course.GREEN, linestyle="--", label="the shipped head")
axes[1].set(xlabel="step", ylabel="recall of the best 10", ylim=(0, 1.02))
axes[1].legend(loc="lower right")
print("recall of the ten surest boxes, held-out scenes:", {step: round(float(r), 2) for step, r in recalls.items()})

# %% [markdown]
# The new head starts at log 2, learns within some dozen steps that most anchors are nothing, and then, more slowly,
# which ones are something. The shipped head (dashed) was trained with everything else, for 10 000 steps.
#
# ## Exercises
#
# Solutions are in `solutions/06_solutions.ipynb`.
#
# ### Exercise 1: a fairer matching
#
# Section 3 showed an anchor that one target chose and another one got. Write a matching without this: an anchor
# chosen by rule (i) belongs to **the target that chose it**. If several targets chose the same anchor, it goes to the
# one with the highest IoU. All else as before: an anchor that nobody chose goes to its own best target if that IoU is
# at least `high`, is BACKGROUND below `low`, and IGNORED in between. `iou` is (G, T), with G of at least 1.
#
# The plan: rule (ii) for all anchors at once; then one target after the other takes what it has chosen. The array
# `claim` remembers for each anchor the IoU of whoever has chosen it so far. For the small `iou` in the stub the answer is
# `[1, 0, -1, -2]`: both targets choose anchor 0, and target 1 fits it better; target 0 still has anchor 1, which ties
# with it in its row; nobody chose the other two.
#
# <details><summary>Hint 1</summary>Rule (ii): two np.where, one inside the other. Its three answers are own, BACKGROUND and IGNORED.</details>
# <details><summary>Hint 2</summary>Target g chooses all anchors that tie for its best IoU: iou[g] == iou[g].max(). That is (T,) bool.</details>
# <details><summary>Hint 3</summary>It takes only those where iou[g] > claim: combine both conditions with &. Then matched[chosen] = g, and claim[chosen] = iou[g, chosen].</details>

# %%
def match_fair(iou, high, low):
    G, T = iou.shape
    own, best = iou.argmax(axis=0), iou.max(axis=0)       # (T,): each anchor's best target, and the IoU with it
    matched = ...                                         # (T,) int: rule (ii)
    claim = np.zeros(T)
    for g in range(G):
        chosen = ...                                      # (T,) bool: target g chose them, and has the higher claim
        ...                                               # they are g's now
    return matched

# match_fair(np.array([[0.6, 0.6, 0.1, 0.4], [0.65, 0.2, 0.2, 0.3]]), 0.7, 0.3)      # try it: [1, 0, -1, -2]
check_match_fair(match_fair)

# %% [markdown]
# ### Exercise 2: focal loss, backward
#
# Instead of drawing a sample, one can train on all anchors and turn the easy ones down (Lin et al. 2017, arXiv
# 1708.02002, equation 4). With $p$ the probability of the *true* answer:
#
# $$L = \frac{1}{P} \sum_i f(p_i), \qquad f(p) = -(1 - p)^\gamma \log p, \qquad p_i = \sigma(s_i z_i), \qquad
# s_i = \pm 1,$$
#
# $s$ is 1 for a positive and −1 for a negative, and $P$ is the number of positives (1 if there is none). The forward is
# given. For the backward, take three steps on paper:
#
# 1. $df/dp$: the product rule, two terms.
# 2. $\sigma$ has the slope $p (1 - p)$. Multiply. All $1 / p$ cancel, and $(1 - p)^\gamma$ stands before everything:
#    $p (1 - p)\, df/dp = (1 - p)^\gamma \cdot [\dots]$. Find the **bracket**. (Without $1 / p$ it survives logits of
#    some thousand, where $p$ is 0.)
# 3. What is left from there to $z$: inside $\sigma$ stands $s z$; and the sum is divided by $P$ and scaled by `dy`.
#
# <details><summary>Hint 1</summary>Step 1: the derivative of (1 − p)^γ is −γ (1 − p)^(γ − 1). So df/dp = γ (1 − p)^(γ − 1) log p − (1 − p)^γ / p.</details>
# <details><summary>Hint 2</summary>Step 2: times p (1 − p) the first term becomes (1 − p)^γ · γ p log p, and the second −(1 − p)^γ · (1 − p).</details>
# <details><summary>Hint 3</summary>Test the bracket with γ = 0: that is the plain cross-entropy, and (4) says p − 1 for a positive. Step 3: a factor s for the chain rule. For a negative that turns the sign.</details>

# %%
def focal_forward(z, t, gamma):
    """z (T,) logits, t (T,) labels 0.0 or 1.0 -> loss, cache."""
    s = 2 * t - 1                                         # 1 for positives, -1 for negatives
    log_p = -np.logaddexp(0, -s * z)                      # log of the true answer's probability
    loss = np.sum(-(1 - np.exp(log_p)) ** gamma * log_p) / max(t.sum(), 1)
    return loss, (z, t, gamma)

def focal_backward(dy, cache):
    z, t, gamma = cache                                   # (T,), (T,), a number; dy is a number
    s, P = 2 * t - 1, max(t.sum(), 1)
    log_p = -np.logaddexp(0, -s * z)                      # (T,), finite for every z
    p = np.exp(log_p)
    bracket = ...                                         # (T,): step 2, of gamma, p and log_p
    dz = ...                                              # (T,): (1 - p) ** gamma * bracket, and step 3
    return dz

check_focal_backward(focal_backward)

# %% [markdown]
# ### Exercise 3: find the bug
#
# One level of the RPN, with the flattening of section 2. Its backward is **wrong in one line**. The report tells
# which gradients are wrong. Find the line, and mend it in the cell after it.
#
# <details><summary>Hint 1</summary>Three gradients are wrong and one is right. What do the three have in common that the one does not use?</details>
# <details><summary>Hint 2</summary>Take one image, one cell, C = 1, and a ddeltas with a single 1, at anchor 0, delta 1. Which row of dwd is not 0? Which should it be?</details>
# <details><summary>Hint 3</summary>Write down the axes after each step: after reshape they are (N, h, w, A, 4). Into which order must they go so that the channel is a * 4 + k?</details>

# %%
def rpn_forward(x, w, wo, wd):
    """x (N, C, h, w), w (C, C, 3, 3), wo (A, C, 1, 1), wd (4A, C, 1, 1) -> (N, h w A), (N, h w A, 4)."""
    a, conv_cache = conv2d_forward(x, w, None, 1, 1)
    hidden, relu_cache = relu_forward(a)
    z, logits_cache = conv2d_forward(hidden, wo)
    d, deltas_cache = conv2d_forward(hidden, wd)
    N, A, h, w = z.shape
    logits = z.transpose(0, 2, 3, 1).reshape(N, -1)
    deltas = d.reshape(N, A, 4, h, w).transpose(0, 3, 4, 1, 2).reshape(N, -1, 4)
    return (logits, deltas), (conv_cache, relu_cache, logits_cache, deltas_cache, z.shape)

def buggy_backward(dy, cache):
    dlogits, ddeltas = dy
    conv_cache, relu_cache, logits_cache, deltas_cache, (N, A, h, w) = cache
    dz = np.ascontiguousarray(dlogits.reshape(N, h, w, A).transpose(0, 3, 1, 2))
    dd = ddeltas.reshape(N, h, w, A, 4).transpose(0, 4, 3, 1, 2).reshape(N, 4 * A, h, w)
    dhidden, dwo, _ = conv2d_backward(dz, logits_cache)
    dhidden_d, dwd, _ = conv2d_backward(dd, deltas_cache)
    da = relu_backward(dhidden + dhidden_d, relu_cache)   # fan-out -> sum
    dx, dw, _ = conv2d_backward(da, conv_cache)
    return dx, dw, dwo, dwd

rng = np.random.default_rng(1)
inputs = [rng.standard_normal(s) for s in ((2, 4, 3, 5), (4, 4, 3, 3), (3, 4, 1, 1), (12, 4, 1, 1))]
try:
    check_gradients(rpn_forward, buggy_backward, inputs)
except GradientCheckError as error:
    for row in error.rows:
        print(f"{row.argument:28} relative error {row.relative:.0e}   {row.problem or 'right'}")

# %%
def rpn_backward(dy, cache):
    dlogits, ddeltas = dy
    conv_cache, relu_cache, logits_cache, deltas_cache, (N, A, h, w) = cache
    ...                                                   # the mended backward; return dx, dw, dwo, dwd

check_rpn_backward(rpn_backward)

# %% [markdown]
# ## Summary
#
# - The RPN is a 3x3 convolution with ReLU and two 1x1 siblings, one head for all levels. Channel `a * 4 + k` is delta
#   k of anchor a.
# - An anchor is positive if its IoU with a target is at least 0.7, or if no anchor fits some target better; negative
#   below 0.3; ignored in between. It moves to its own best target.
# - Most targets have no anchor at 0.7: without rule (i) they would be missed.
# - Of a few thousand anchors a handful is positive. A sample of 256 (128 here) keeps the others from shouting them
#   down.
# - Objectness: binary cross-entropy. Boxes: smooth L1 of the positives' deltas. Both sums over the number sampled.
# - Backward: $(p - p^*) / M$ and clip$(e / \beta) / M$ at the sampled anchors, exactly 0 elsewhere; the siblings'
#   gradients add up, and so do the levels' gradients of the weights.
#
# **Read next.** In this course: [07 Proposals and NMS](07_proposals_and_nms.ipynb). In the code:
# `nprcnn/models/rpn.py` and `nprcnn/models/targets.py`, which you can now read from top to bottom. Elsewhere: Ren,
# He, Girshick and Sun, *Faster R-CNN*, arXiv 1506.01497, section 3; Lin et al., *Focal loss for dense object
# detection*, arXiv 1708.02002, section 3.
