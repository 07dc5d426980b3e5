# %% [markdown]
# # 07  Proposals and NMS: from 4000 anchors to 100 boxes
#
# The RPN of notebook 06 has an opinion on every anchor. Most say "nothing here". And those that say "object" say it
# in chorus: dozens of boxes on the same object. Between the two stages of a Mask R-CNN there is therefore a filter.
# It has no weights and learns nothing, and yet it decides what the second stage gets to see.
#
# Here we write this filter step by step: decode, top-k, clip, and **non-maximum suppression** (NMS), by hand. Then we
# ask what it costs and what it loses. And because every step keeps *indices*, we can lead a detection back through
# all of it, to the one anchor that it grew from.
#
# **You need:** notebooks [05](05_anchors_iou_and_box_coding.ipynb) (IoU, deltas) and [06](06_the_rpn.ipynb)
# (objectness, the long list of anchors). **You will be able to:** write NMS and say what its threshold does, explain
# why it runs level by level, and answer "where does this detection come from?" with a number. About 60 minutes with
# the exercises.
#
# ## Where we are
#
# On the dotted arrow: the way of the boxes from the RPN to RoIAlign.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import course, viz
from nprcnn.course.proposals import check_anchor_place, check_iou_backward, check_soft_nms
from nprcnn.data import Shapes
from nprcnn.models.rpn import filter_proposals
from nprcnn.ops.activation import sigmoid
from nprcnn.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, remove_small_boxes
from nprcnn.ops.nms import batched_nms, nms

course.style()
rng = np.random.default_rng(0)
course.where_we_are("rpn", "roi_align")
plt.rcParams["figure.constrained_layout.use"] = False     # viz places its panels itself

# %% [markdown]
# One held-out scene, one run of the trained model. T is the number of anchors, Q of boxes before NMS, P of proposals,
# D of detections.
#
# | step | in the trace | shape | what happens |
# |---|---|---|---|
# | 0 | `rpn.objectness`, `rpn.deltas` | (N, T), (N, T, 4) | the RPN's outputs |
# | 1 | | | top-k: the best of each level |
# | 2 | `rpn.proposals_before_nms` | [(Q, 4)] | decoded and clipped |
# | 3 | `rpn.proposals` | [(P, 4)] | after NMS within each level, the best P of the image |
# | 4 | `detections.boxes` | [(D, 4)] | after the second stage |

# %%
source = Shapes.held_out(60)
image, target = source[20]
names = source.class_names
height, width = image.shape[:2]
model = nprcnn.maskrcnn_tiny(weights="shapes")
trace = nprcnn.Trace()
result = model.predict(image, trace=trace)

anchors, logits, deltas = trace["rpn.anchors"], trace["rpn.objectness"][0], trace["rpn.deltas"][0]
shapes = [trace[f"rpn.logits.p{k}"].shape[1:] for k in range(2, 7)]      # (A, h, w) of each level
starts = np.cumsum([0] + [a * h * w for a, h, w in shapes])             # where each level begins in the long list
for name in ("rpn.objectness", "rpn.proposals_before_nms", "rpn.proposals", "detections.boxes"):
    print(f"{name:25} {trace[name][0].shape}")
print("levels begin at", starts[:-1], "of", starts[-1])

def pale(image):
    """The image in few pale colours: lines on it can be seen, and the notebook stays small."""
    blocks = image.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    return np.kron((255 - (255 - blocks) * 0.4) // 16 * 16 + 15, np.ones((2, 2, 1))).astype(np.uint8)

def frame(ax, box, colour, style="-", width=2, label=None):
    """Draw one box (x1, y1, x2, y2)."""
    ax.add_patch(plt.Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=colour,
                               linestyle=style, linewidth=width, label=label))

faint = pale(image)
before, after = trace["rpn.proposals_before_nms"][0], trace["rpn.proposals"][0]
figure, axes = viz.image_panels(3, width, height, side=256)
viz.draw_detections(image // 8 * 8, target["boxes"], target["labels"], class_names=names, ax=axes[0], title="targets")
viz.draw_boxes(faint, before[::4], ax=axes[1], title="a quarter of the boxes before NMS", width=0.5)
viz.draw_boxes(faint, after[:30], ax=axes[2], title="the best 30 proposals")
figure

# %% [markdown]
# ## 1  Decode
#
# The deltas $(d_x, d_y, d_w, d_h)$ move an anchor with centre $(x_a, y_a)$ and sides $w_a, h_a$ (R-CNN, arXiv
# 1311.2524, appendix C; notebook 05):
#
# $$x = x_a + d_x w_a, \qquad y = y_a + d_y h_a, \qquad w = w_a e^{d_w}, \qquad h = h_a e^{d_h}. \tag{1}$$
#
# One addition comes from the code of Detectron, not from a paper. $d_w$ and $d_h$ are cut at $\log(1000 / 16)$: a box
# becomes at most 62.5 times as large as its anchor. (An object of 1000 pixels in an anchor of 16.)

# %%
def decode_naive(deltas, anchors, limit=np.log(1000 / 16)):
    """Equation (1), one box at a time: (n, 4), (n, 4) -> (n, 4)."""
    boxes = np.empty_like(deltas)
    for i, ((dx, dy, dw, dh), (x1, y1, x2, y2)) in enumerate(zip(deltas, anchors)):
        wa, ha = x2 - x1, y2 - y1
        x, y = x1 + wa / 2 + dx * wa, y1 + ha / 2 + dy * ha
        w, h = wa * np.exp(min(dw, limit)), ha * np.exp(min(dh, limit))
        boxes[i] = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return boxes

decoded = decode_boxes(deltas, anchors)
print(f"largest difference to nprcnn: {np.abs(decode_naive(deltas, anchors) - decoded).max():.0e} pixels")
print(f"largest dw or dh of the trained RPN here: {deltas[:, 2:].max():.2f}, the limit is {np.log(1000 / 16):.2f}")

wild, anchor = np.array([[0, 0, 200, 0]], np.float32), np.array([[0, 0, 16, 16]], np.float32)
with np.errstate(over="ignore"):
    print("dw = 200, with no limit:", decode_naive(wild, anchor, np.inf)[0])
print("dw = 200, with it:      ", decode_naive(wild, anchor)[0])

# %% [markdown]
# The trained RPN stays far from the limit here. An untrained one that takes a bad step may not, and one infinite box is
# enough to fill a network with NaN. So the limit is a guard for training.
#
# ## 2  The best of each level
#
# NMS compares boxes in pairs, so it is good to have fewer of them. We keep the k with the best logits (here 300; in
# the paper's model 1000, or 2000 in training). But *of each level*, not of all. Why? Count what a common top-k would
# choose:

# %%
k = model.rpn_pre_nms_top_n_test
level_of_anchor = np.searchsorted(starts, np.arange(len(anchors)), side="right") + 1      # 2 for P2
overall = np.argsort(-logits, kind="stable")[:k]
by_level = [start + np.argsort(-logits[start:stop], kind="stable")[:k] for start, stop in zip(starts, starts[1:])]
print("level  anchors   in a common top 300   in the top 300 of each level")
for level, chosen in zip(range(2, 7), by_level):
    print(f"P{level}     {(level_of_anchor == level).sum():5}   {(level_of_anchor[overall] == level).sum():17}   "
          f"{len(chosen):24}")
chosen = np.concatenate(by_level)                         # (Q,) indices into the long list
print("together", len(chosen))

# %% [markdown]
# P2 has 256 times as many cells as P6. In a common list, a few small objects with a crowd of anchors each would leave
# no room for a large one. (Later, *after* NMS has thinned the crowds, the levels do compete for the last 100 places.)
#
# **Sort the logits, not the probabilities.** The sigmoid keeps the order, in mathematics. In float32 it does not:

# %%
for z in (8.0, 12.0, 16.0, 17.0, 20.0):
    print(f"logit {z:4.0f}: sigmoid in float32 {sigmoid(np.array([z], np.float32))[0]:.9f}")
print(f"largest logit in our image: {logits.max():.1f}")

# %% [markdown]
# From about 17 on all are 1, and the order among them is lost. Still, torchvision's NMS sorts by the probabilities,
# and its equals keep the order in which they come. nprcnn does the same, to give the same boxes.
#
# ## 3  Clip, and drop what is empty
#
# Boxes may reach beyond the image. They are cut at its border, and what is then thinner than 0.001 pixels is dropped.
# The order matters: the IoU that NMS looks at is that of the *clipped* boxes.

# %%
boxes = clip_boxes(decoded[chosen], (height, width))      # (Q, 4)
scores = sigmoid(logits[chosen])                          # (Q,)
assert np.array_equal(boxes, trace["rpn.proposals_before_nms"][0])
changed = (boxes != decoded[chosen]).any(axis=1)
print(f"{changed.mean():.0%} of the {len(boxes)} boxes were cut; "
      f"{len(boxes) - len(remove_small_boxes(boxes, 1e-3))} have become empty")

far = encode_boxes(np.array([[140, 20, 180, 60]], np.float32), anchors[:1])        # deltas that lead out of the image
lost = clip_boxes(decode_boxes(far, anchors[:1]), (height, width))
print("a box outside the image:", decode_boxes(far, anchors[:1])[0].round(1), "-> clipped", lost[0].round(1),
      "-> kept:", len(remove_small_boxes(lost, 1e-3)) == 1)

figure, axes = viz.image_panels(2, width, height, side=256)
some = np.flatnonzero(changed)[::9]
for ax, drawn, title in ((axes[0], decoded[chosen], "decoded"), (axes[1], boxes, "clipped")):
    viz.draw_boxes(faint, drawn[some], ax=ax, title=f"{title}: {len(some)} of the boxes that stick out")
    ax.set(xlim=(-45, width + 45), ylim=(height + 45, -45), facecolor="#e4e4e4")
figure

# %% [markdown]
# ## 4  NMS by hand
#
# Now the chorus. **Greedy non-maximum suppression:**
#
# 1. Take the box with the best score. Keep it.
# 2. Drop all boxes whose IoU with it is above a threshold.
# 3. Go on with the best of what is left, until nothing is left.
#
# The RPN of Faster R-CNN uses it with a threshold of 0.7 (arXiv 1506.01497, section 3.3). We take nine boxes of one
# level, look at their IoUs, and watch. In the panels, each is one turn: green is the box that is kept in it, orange
# are those that it drops, grey are those kept before.

# %%
def nms_naive(boxes, scores, threshold, tell=None):
    """(n, 4), (n,) -> indices of the kept boxes, best first. `tell(kept, dropped)` is called at each turn."""
    left = list(np.argsort(-scores, kind="stable"))
    kept = []
    while left:
        best = left.pop(0)
        overlaps = [box_iou(boxes[[best]], boxes[[i]])[0, 0] for i in left]
        dropped = [i for i, overlap in zip(left, overlaps) if overlap > threshold]
        left = [i for i in left if i not in dropped]
        if tell:
            tell(list(kept), best, dropped)
        kept.append(best)
    return np.array(kept, int)

level = level_of_anchor[chosen]                           # (Q,)
near = (box_iou(boxes, target["boxes"][2:4]).max(axis=1) > 0.45) & (level == 3)      # ring and small cross
nine = np.flatnonzero(near)[np.argsort(-scores[near])][:18:2]
nine = rng.permutation(nine)                              # in any order, as NMS may get them
nine_boxes, nine_scores = boxes[nine], scores[nine]

turns = []
kept = nms_naive(nine_boxes, nine_scores, 0.6, lambda *turn: turns.append(turn))
order = np.argsort(-nine_scores)
print("scores, best first:", nine_scores[order].round(2))
print("kept with a threshold of 0.6:", kept, "  with 0.5:", nms_naive(nine_boxes, nine_scores, 0.5))
figure, axes = plt.subplots(1, 1, figsize=(4.3, 4.3), layout="constrained")
iou = box_iou(nine_boxes[order], nine_boxes[order])
course.show_matrix(axes, iou, "IoU of the nine boxes, best score first", "box", "box")
axes.set(xticks=range(9), xticklabels=order, yticks=range(9), yticklabels=order)
axes.tick_params(length=0)

# %%
figure, axes = viz.image_panels(len(turns), width, height, columns=4, side=256)
low, high = nine_boxes[:, :2].min(axis=0) - 4, nine_boxes[:, 2:].max(axis=0) + 4
for turn, (ax, (before, best, dropped)) in enumerate(zip(axes, turns), 1):
    out = ", ".join(map(str, dropped)) or "none"
    viz.draw_detections(faint, ax=ax, title=f"turn {turn}: keep {best}, drop {out}")
    for members, colour, line in ((before, "#606060", 1), (dropped, course.BACKWARD, 1.5), ([best], course.GREEN, 2.5)):
        for i in members:
            x1, y1, x2, y2 = nine_boxes[i]
            frame(ax, nine_boxes[i], colour, width=line)
            x, y = (x1, x2)[i % 2], (y1, y2)[i // 2 % 2]              # a number at one of the four corners
            ax.text(x, y, str(i), color="white", fontsize=8, ha="center", va="center",
                    bbox=dict(facecolor=colour, edgecolor="none", pad=1))
    middle, half = (low + high) / 2, (high - low).max() / 2
    ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half), facecolor="#e4e4e4")
figure

# %% [markdown]
# Two things to see. A dropped box drops nobody: it is out. And only the *order* of the scores matters, not their
# values. Let us make the first one sharp. Three boxes in a row, each overlapping the next:

# %%
row = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], float)
print("IoU:", box_iou(row, row)[0, 1].round(2), box_iou(row, row)[1, 2].round(2), "between neighbours,",
      box_iou(row, row)[0, 2].round(2), "between the outer two")
for scores_of_row in ([0.9, 0.8, 0.7], [0.8, 0.9, 0.7]):
    print(f"scores {scores_of_row}: kept {nms_naive(row, np.array(scores_of_row), 0.5)}")

# %% [markdown]
# In the first case box 0 drops box 1, and so box 2 lives. In the second box 1 is the best and drops both. A tiny
# change of a score can thus change which boxes and how many come out. (Keep this in mind when two systems give
# different detections for the same weights.)
#
# ### Against the library
#
# Ours asks for one IoU at a time. `nprcnn.ops.nms` computes them in blocks of 128 boxes against all that remain. They
# must agree on every index, ties included.

# %%
for n, threshold in ((0, 0.5), (1, 0.5), (40, 0.3), (300, 0.7)):
    corner, side = rng.uniform(0, 60, (n, 2)), rng.uniform(8, 40, (n, 2))
    b, s = np.concatenate([corner, corner + side], axis=1), rng.integers(0, 20, n) / 20         # many ties
    ours, theirs = nms_naive(b, s, threshold), nms(b, s, threshold)
    assert np.array_equal(ours, theirs)
    print(f"{n:3} boxes, threshold {threshold}: {len(ours):3} kept, the same indices")

# %% [markdown]
# What does it cost? In the worst case nothing overlaps and all n (n − 1) / 2 pairs are compared; in the best case the
# first box drops all others. We count. The figure then shows what the threshold does to our Q boxes (taken within each
# level, as the next section explains).

# %%
def comparisons(boxes, scores, threshold):
    """How many IoUs `nms_naive` computes."""
    left, counts = [len(boxes)], []

    def tell(kept, best, dropped):
        counts.append(left[0] - 1)                        # the best against all that are left
        left[0] -= 1 + len(dropped)

    nms_naive(boxes, scores, threshold, tell)
    return sum(counts)

apart = np.arange(100)[:, None] * 20 + np.array([0.0, 0, 10, 10])
some = np.flatnonzero(level == 3)[:100]
for name, b in (("far apart", apart), ("all the same", apart[:1].repeat(100, axis=0)), ("the best of our P3", boxes[some])):
    print(f"100 boxes, {name:18}: {comparisons(b, scores[some], 0.7):4} IoUs; all pairs would be {100 * 99 // 2}")

thresholds = np.arange(0.1, 1.0, 0.05)
left_over = [len(batched_nms(boxes, scores, level, t)) for t in thresholds]
figure, ax = plt.subplots(figsize=(5.6, 2.4), layout="constrained")
ax.plot(thresholds, left_over, "o-", markersize=4)
ax.axhline(len(boxes), color="#808080", linestyle=":")
ax.text(0.1, len(boxes) * 0.97, f"before NMS: {len(boxes)}", va="top", color="#606060")
ax.axvline(0.7, color=course.BACKWARD, linewidth=1)
ax.text(0.69, 20, "the RPN's 0.7", color=course.BACKWARD, ha="right")
ax.set(xlabel="IoU threshold", ylabel="boxes that survive", ylim=0);

# %% [markdown]
# ## 5  By level, and by class
#
# The RPN runs NMS *within each level*, and the second stage *within each class*: a cross must not drop the ring that
# it overlaps. `batched_nms` takes a group for each box. Ours is a loop over groups, and at the end one sort by score.

# %%
def nms_by_group(boxes, scores, groups, threshold):
    kept = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        kept += list(members[nms_naive(boxes[members], scores[members], threshold)])       # back to our own indices
    kept = np.sort(np.array(kept, int))
    return kept[np.argsort(-scores[kept], kind="stable")]

threshold = model.rpn_nms_thresh
kept = nms_by_group(boxes, scores, level, threshold)
assert np.array_equal(kept, batched_nms(boxes, scores, level, threshold))
common = nms(boxes, scores, threshold)
print(f"threshold {threshold}: {len(boxes)} boxes -> {len(kept)} by level, {len(common)} if all levels are one group")

# %% [markdown]
# **A trick, and its price.** Many systems run a single NMS for all groups: they first shift the boxes of group $g$ by
# $g$ times something larger than any coordinate, so that boxes of different groups cannot overlap. But float32 has 24
# bits. The further a box is shifted, the fewer are left for its place:

# %%
corner, side = rng.uniform(0, 1000, (2000, 2)), rng.uniform(10, 60, (2000, 2))
a = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
b = a + rng.uniform(-5, 5, a.shape).astype(np.float32)    # a neighbour for each

def iou_of_pairs(a, b):
    return np.concatenate([box_iou(p[None], q[None])[0] for p, q in zip(a, b)])

exact = iou_of_pairs(a, b)
for group in (0, 1, 10, 90):
    shift = np.float32(group * 1334)
    error = np.abs(iou_of_pairs(a + shift, b + shift) - exact)
    print(f"group {group:2}: shifted by {shift:8.0f}, coordinates are up to {np.spacing((a + shift).max()):.0e} apart, "
          f"largest error of an IoU {error.max():.0e}")

# %% [markdown]
# An IoU within that error of the threshold can fall to the other side. nprcnn loops over the groups instead. That is
# exact, and each NMS is smaller.
#
# ## 6  The whole filter
#
# All steps in a row, on indices. The model's own filter must give the same boxes, scores *and anchors*.

# %%
def proposals_of(logits, deltas, anchors, starts, size, before=300, after=100, threshold=0.7):
    """-> boxes (P, 4), scores (P,), anchor (P,): the index of the anchor behind each proposal."""
    chosen = np.concatenate([start + np.argsort(-logits[start:stop], kind="stable")[:before]
                             for start, stop in zip(starts, starts[1:])])
    level = np.searchsorted(starts, chosen, side="right")
    boxes = clip_boxes(decode_boxes(deltas[chosen], anchors[chosen]), size)
    scores = sigmoid(logits[chosen])
    large = remove_small_boxes(boxes, 1e-3)                               # indices into chosen
    kept = large[nms_by_group(boxes[large], scores[large], level[large], threshold)][:after]
    return boxes[kept], scores[kept], chosen[kept]

proposals, proposal_scores, proposal_anchor = proposals_of(logits, deltas, anchors, starts, (height, width))
theirs = filter_proposals(logits, deltas, np.split(anchors, starts[1:-1]), (height, width), 300, 100, 0.7)
for ours, other in zip((proposals, proposal_scores, proposal_anchor), theirs):
    assert np.array_equal(ours, other)
assert np.array_equal(proposals, trace["rpn.proposals"][0])
print(f"{len(anchors)} anchors -> {len(chosen)} -> {len(kept)} after NMS -> {len(proposals)} proposals: the model's")

# %% [markdown]
# ## 7  Is it any good?
#
# What is a good list of proposals? One that is short and misses nothing. **Recall**: the share of the targets that
# have a box with an IoU of at least 0.7 in the list, or, to be strict, 0.85. We measure it for the best 1, 2, 4, ...
# boxes of 30 held-out scenes, without NMS and with three thresholds.

# %%
def recall_curve(before_nms, threshold, sizes, needed):
    """Share of targets with a box of IoU `needed` among the best boxes, for each size of the list."""
    hits = []
    for (b, s, g), (_, t) in zip(before_nms, scenes):
        kept = np.argsort(-s, kind="stable") if threshold is None else batched_nms(b, s, g, threshold)
        overlap = box_iou(b[kept], t["boxes"]) >= needed
        hits.append([overlap[:size].any(axis=0) for size in sizes])
    return np.concatenate(hits, axis=1).mean(axis=1)

scenes = [source[i] for i in range(30)]
t = nprcnn.Trace()
model.predict([scene for scene, _ in scenes], trace=t)
before_nms = []
for z, d in zip(t["rpn.objectness"], t["rpn.deltas"]):
    top = np.concatenate([start + np.argsort(-z[start:stop])[:300] for start, stop in zip(starts, starts[1:])])
    before_nms.append((clip_boxes(decode_boxes(d[top], anchors[top]), (height, width)), sigmoid(z[top]),
                       level_of_anchor[top]))

sizes = [1, 2, 4, 8, 16, 32, 64, 100, 200]
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.9), sharey=True, layout="constrained")
for ax, needed in zip(axes, (0.7, 0.85)):
    print(f"IoU {needed}, lists of", sizes)
    for threshold, style in ((None, ":"), (0.9, "-."), (0.7, "-"), (0.3, "--")):
        recall = recall_curve(before_nms, threshold, sizes, needed)
        name = "no NMS" if threshold is None else f"NMS {threshold}"
        ax.plot(sizes, recall, style, marker="o", markersize=3.5, label=name)
        print(f"  {name:7}", "  ".join(f"{r:.2f}" for r in recall))
    ax.set(xscale="log", xlabel="boxes of the list, best first", title=f"IoU at least {needed}", ylim=(0, 1.02),
           xticks=sizes, xticklabels=sizes)
    ax.minorticks_off()
axes[0].set_ylabel("recall")
axes[1].legend(loc="lower right", ncols=2);

# %% [markdown]
# On the left NMS does what it is for: with doubles out of the way, the best 4 or 8 boxes find more objects. (In these
# easy scenes even a list with doubles has found all of them after 16.)
#
# On the right it also takes something. Where a *well-placed* box is wanted, all lists with NMS at 0.7 or below end
# lower than the list without. NMS keeps the box with the best **score** of each crowd, and that need not be the box
# that lies best. A higher threshold keeps more of the crowd, and a longer list. The RPN's 0.7 is a high one: the
# second stage places the boxes better, and drops more of them, with 0.5.
#
# **What NMS cannot do.** If two *objects* overlap more than the threshold, their good boxes cannot both survive. How
# often do the true boxes of our scenes do that? (Within one class matters for the second stage, whose threshold is
# 0.5.)

# %%
many = Shapes(500, seed=0)
pairs = []
for i in range(500):
    t = many[i][1]
    first, second = np.triu_indices(len(t["labels"]), 1)
    iou = box_iou(t["boxes"], t["boxes"])[first, second]
    pairs += list(zip(iou, t["labels"][first] == t["labels"][second]))
iou, same = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
print(f"{len(iou)} pairs of objects in 500 scenes")
print(f"IoU above 0.7, any classes:    {(iou > 0.7).sum()}")
print(f"IoU above 0.5, the same class: {((iou > 0.5) & same).sum()}")

# %% [markdown]
# Our scenes are made so that each object stays visible, and NMS loses next to nothing. In pictures of crowds it is a
# real loss. **Soft-NMS** (Bodla et al. 2017, arXiv 1704.04503) does not drop the neighbours, it lowers their scores:
# exercise 1.
#
# ## 8  Where does a detection come from?
#
# Each filter above returned indices, not only boxes. Put one behind the other, they lead back. A detection knows its
# row in the proposals (`result.proposal`); `proposal_anchor` knows the anchor; the anchor's number knows level, row,
# column and shape. We do it for the surest four.

# %%
def place(anchor):
    """Number in the long list -> level (2 for P2), row, column, shape (0 flat, 1 square, 2 tall)."""
    level = int(np.searchsorted(starts, anchor, side="right")) - 1
    _, h, w = shapes[level]
    cell, shape = divmod(int(anchor - starts[level]), 3)
    return level + 2, *divmod(cell, w), shape

best = np.argsort(-result.scores)[:4]
print("detection        <- proposal (objectness, level it is read from)   <- anchor: level, row, column, shape")
for i in best:
    p = result.proposal[i]
    a = proposal_anchor[p]
    level_, y, x, shape = place(a)
    assert a == result.anchor[i]
    centre = (anchors[a, :2] + anchors[a, 2:]) / 2
    assert np.allclose(centre, [x * 2 ** level_, y * 2 ** level_], atol=0.5)          # the anchor sits on that cell
    print(f"{i}: {names[result.labels[i]]:8} {result.scores[i]:.2f} "
          f"<- {p:3} ({proposal_scores[p]:.3f}, P{result.level[i]}){'':23} "
          f"<- {a:4}: P{level_}, {y:2}, {x:2}, {('flat', 'square', 'tall')[shape]}")

# %%
figure, axes = viz.image_panels(8, width, height, columns=4, side=256)
for column, i in enumerate(best):
    p = result.proposal[i]
    a = proposal_anchor[p]
    level_, y, x, shape = place(a)
    objectness = sigmoid(trace[f"rpn.logits.p{level_}"][0, shape])
    ax = axes[column]
    ax.imshow(objectness, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    stride = 2 ** level_
    frame(ax, np.array([x, y, x + 1, y + 1]) * stride, course.BACKWARD)
    ax.set_title(f"{i}: P{level_}, {('flat', 'square', 'tall')[shape]}, cell ({y}, {x})", fontsize=9, loc="left")
    ax = axes[4 + column]
    viz.draw_detections(faint, ax=ax, title=f"a {names[result.labels[i]]}")
    frame(ax, anchors[a], course.BACKWARD, "--", label="anchor")
    frame(ax, proposals[p], course.PINK, "-.", label="proposal")
    frame(ax, result.boxes[i], course.FORWARD, label="detection")
    ax.set(xlim=(0, width), ylim=(height, 0))
axes[4].legend(fontsize=8, frameon=True, loc="lower right")
figure

# %% [markdown]
# Above: the objectness map of the level and shape that won, and the cell. Below: the three boxes. Two things to note:
#
# - The level of the *anchor* and the level that the RoI is *read from* need not be the same. The second is computed
#   from the size of the proposal (notebook 00, section 9).
# - A detection need not come from a proposal with a high objectness. Look at the numbers of the proposals: they are
#   sorted by objectness, best first. Which of the proposals of an object wins is decided by the *class score*.
#
# How does the IoU with the true box grow on the way? Over 30 scenes, for all detections that are right in the end:

# %%
steps = []
for scene, t in scenes:
    trace_ = nprcnn.Trace()
    found = model.predict(scene, trace=trace_)
    for box, label, p, a in zip(found.boxes, found.labels, found.proposal, found.anchor):
        overlap = box_iou(box[None], t["boxes"])[0]
        g = overlap.argmax()
        if overlap[g] >= 0.5 and t["labels"][g] == label:
            three = np.stack([anchors[a], trace_["rpn.proposals"][0][p], box])
            steps.append(box_iou(three, t["boxes"][[g]])[:, 0])
steps = np.array(steps)
kinds = (("anchor", course.BACKWARD), ("proposal", course.PINK), ("detection", course.FORWARD))
print(f"{len(steps)} detections; mean IoU with the true box: "
      + ", ".join(f"{name} {value:.2f}" for (name, _), value in zip(kinds, steps.mean(axis=0))))
figure, ax = plt.subplots(figsize=(5.6, 2.4), layout="constrained")
for k, (name, colour) in enumerate(kinds):
    ax.plot(np.sort(steps[:, k]), np.linspace(0, 1, len(steps)), color=colour, label=name)
ax.set(xlabel="IoU with the true box", ylabel="share of boxes below", xlim=(0, 1), ylim=(0, 1))
ax.legend();

# %% [markdown]
# ## 9  No gradient comes back this way
#
# Sorting, cutting, dropping: the filter chooses. Choices have no slope, so there is nothing to send back for *which*
# boxes were chosen. But the boxes' **coordinates** are smooth functions of the deltas, and they go into the second
# stage. If a proposal moves a little, the losses of the second stage move a little. That slope exists. We measure it,
# by moving one RoI of a training pass, with all decisions frozen:

# %%
student = nprcnn.maskrcnn_tiny(weights="shapes")
train_image, train_target = many[16]
training = nprcnn.Trace()
losses, cache = student.losses([train_image], [train_target], np.random.default_rng(0), trace=training)
student.backward(cache, training)
decisions = cache.decisions
r = int((decisions.labels[0] > 0).argmax())               # the first RoI with an object
second_stage = ("loss_classifier", "loss_box_reg", "loss_mask")

def loss_if_moved(step):
    rois = decisions.proposals[0].copy()
    rois[r, 0] += step                                    # its left side, in pixels
    moved, _ = student.losses([train_image], [train_target], None, decisions._replace(proposals=[rois]))
    return sum(float(moved[name]) for name in second_stage)

for step in (0.05, 0.1, 0.2):
    slope = (loss_if_moved(step) - loss_if_moved(-step)) / (2 * step)
    print(f"slope of the second stage's losses by x1 of RoI {r}, step {step}: {slope:+.5f} a pixel")
print("gradient that backward sends to the proposals:", "none" if "rpn.proposals" not in training.grad else "some")

# %% [markdown]
# (The three differ: in float32 so small a slope has few digits, and RoIAlign interpolates, so the loss has kinks.) The
# slope is not 0, and the backward pass treats it as 0: **proposals are constants to the second stage.** Faster
# R-CNN says so (section 3.2, "approximate joint training": it "ignores the derivative w.r.t. the proposal boxes'
# coordinates"). It works: the RPN learns its boxes from its own loss, and the box head corrects what is left.
#
# Other losses do go through the decoding: those that compare *boxes* by their IoU, instead of deltas. They need the
# backward pass of the IoU (exercise 3) and that of equation (1) (an exercise of notebook 05).
#
# ## Exercises
#
# Solutions are in `solutions/07_solutions.ipynb`.
#
# ### Exercise 1: Soft-NMS
#
# Bodla et al. (arXiv 1704.04503, section 3, the Gaussian form). Take the box with the best score; it is done, its
# score stays. Multiply the scores of all boxes that are *not done* by $e^{-\mathrm{IoU}^2 / \sigma}$, with the IoU to
# the box just taken. Go on with the box that has the best score **now**. Nothing is dropped. Return the final scores,
# in the order of the input.
#
# <details><summary>Hint 1</summary>Work on a copy of the scores, and keep an array done (n,) of bool.</details>
# <details><summary>Hint 2</summary>The best of those not done: np.where(done, -np.inf, scores).argmax().</details>
# <details><summary>Hint 3</summary>n turns. In each: mark the best as done, then scores[~done] *= np.exp(-iou[best, ~done] ** 2 / sigma).</details>

# %%
def soft_nms(boxes, scores, sigma):
    """boxes (n, 4), scores (n,), sigma a number -> the new scores (n,)."""
    iou = box_iou(boxes, boxes)                           # (n, n)
    ...                                                   # your code; return the new scores

check_soft_nms(soft_nms)

# %% [markdown]
# ### Exercise 2: the place of an anchor
#
# `place` of section 8 takes one number, and three anchors a cell. Write it for an array of numbers, any number of
# anchors a cell, and levels of any shape. `shapes` is a list of (A, h, w), P2 first. Return four arrays: level (2 for
# P2), row, column, and the anchor's number in its cell. The order of the long list: level, row, column, anchor.
#
# <details><summary>Hint 1</summary>First the level: np.cumsum gives where each begins, np.searchsorted(starts, index, side="right") − 1 which one it is.</details>
# <details><summary>Hint 2</summary>index − starts[level] is the number within the level. Dividing by A leaves cell and anchor.</details>
# <details><summary>Hint 3</summary>A level may have another width than the next: w = np.array([w for _, _, w in shapes])[level]. Then np.divmod(cell, w).</details>

# %%
def anchor_place(index, shapes):
    """index (n,) int, shapes [(A, h, w), ...] -> level, row, column, anchor: four arrays (n,)."""
    ...                                                   # your code; return level, row, column, anchor

check_anchor_place(anchor_place)

# %% [markdown]
# ### Exercise 3: the IoU, backward
#
# UnitBox (Yu et al. 2016, arXiv 1608.01471) trains boxes with a loss made of their IoU with the target. `a` and `b`
# are (n, 4), compared in pairs: box i of `a` with box i of `b`. The forward is given, and from it the way back to `a`;
# the targets `b` get none. Four lines are left to you, the ones in which something *branches*:
#
# - `inter` is used twice, in `inter / union` and in `union` (fan-out → sum);
# - an edge of the intersection is `a`'s edge or `b`'s. Only where it is `a`'s does it move with `a`: a condition,
#   (n, 2) bool, of the corners of `a` and `b`.
#
# Where boxes do not meet, the IoU is 0 and stays 0 when they move a little. (So such a loss says nothing about a box
# that is far off, which is why GIoU, arXiv 1902.09630, was made.)
#
# <details><summary>Hint 1</summary>iou = inter / union, as a function of union alone: the slope is −inter / union². As a function of inter alone: 1 / union.</details>
# <details><summary>Hint 2</summary>union = area_a + area_b − inter: d_union arrives at inter with a minus. So d_inter = dy / union − d_union.</details>
# <details><summary>Hint 3</summary>low = max(a[:, :2], b[:, :2]) is a's corner where a[:, :2] > b[:, :2]. And high = min(a[:, 2:], b[:, 2:])?</details>

# %%
def iou_forward(a, b):
    """a, b (n, 4) -> (n,)."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])         # corners of the intersection
    sides = np.maximum(high - low, 0)                     # (n, 2): its width and height
    inter = sides[:, 0] * sides[:, 1]
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    union = area_a + area_b - inter
    return inter / union, (a, b, sides, inter, union)

def iou_backward(dy, cache):
    a, b, sides, inter, union = cache                     # (n, 4), (n, 4), (n, 2), (n,), (n,);  dy (n,)
    # forward: iou = inter / union, union = area_a + area_b - inter
    d_union = ...                                         # (n,)
    d_inter = ...                                         # (n,): two paths
    # forward: inter = width * height, and a side that was cut at 0 passes nothing back
    d_sides = d_inter[:, None] * sides[:, ::-1] * (sides > 0)                          # (n, 2)
    # forward: sides = high - low, low = max(a, b), high = min(a, b)
    low_is_of_a = ...                                     # (n, 2) bool
    high_is_of_a = ...                                    # (n, 2) bool
    da_low, da_high = -d_sides * low_is_of_a, d_sides * high_is_of_a                   # through the intersection
    # forward: area_a = width * height of a, each the difference of two corners
    d_own = d_union[:, None] * (a[:, 2:] - a[:, :2])[:, ::-1]                          # (n, 2)
    return np.concatenate([da_low - d_own, da_high + d_own], axis=1)

near = np.array([[10.0, 20, 50, 70], [30, 5, 80, 40]])    # to try it on: two boxes, and the same moved
# nprcnn.check_gradients(iou_forward, iou_backward, (near, near + [4, -3, 6, 2]), wrt=[0])
check_iou_backward(iou_backward)

# %% [markdown]
# ## Summary
#
# - From the RPN to the second stage: top-k of each level, decode, clip, drop the empty, NMS within each level, the
#   best of the image. No weights, no gradient.
# - Greedy NMS keeps the best box, drops what overlaps it too much, and goes on. A dropped box drops nobody. Only the
#   order of the scores counts.
# - Boxes of different groups (levels, classes) do not drop each other. Shifting the groups apart is quick and rounds.
# - NMS makes a short list that misses little. It cannot tell a double from a second object at the same place.
# - Every filter returns indices. Composed, they lead a detection back to its RoI, its level and its anchor.
# - Proposals are constants to the second stage, although the slope exists.
#
# **Read next.** In this course: [08 RoIPool, RoIAlign and the half pixel](08_roi_pool_and_roi_align.ipynb). In the
# code: `filter_proposals` in `nprcnn/models/rpn.py`, `nprcnn/ops/nms.py`. Elsewhere: Faster R-CNN, arXiv 1506.01497,
# sections 3.2 and 3.3; Bodla et al., *Soft-NMS*, arXiv 1704.04503; Hosang, Benenson and Schiele, *Learning
# non-maximum suppression*, arXiv 1705.02950.
