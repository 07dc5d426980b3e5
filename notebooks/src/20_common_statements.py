# %% [markdown]
# # 20  Twelve statements about Mask R-CNN
#
# In lectures, posts and exam answers the same sentences about Mask R-CNN return. Some are true. Some were true of an
# older system. Some are wrong and sound right. You have a model, its weights and all its tensors: you need not believe
# any of them. Here each is tested in a cell.
#
# **You need:** notebook [00](00_the_whole_picture.ipynb); the others help. **You will be able to:** take a sentence
# about a network apart into something that can be computed, and do it. About 60 minutes with the quiz.
#
# | | the statement |
# |---|---|
# | 1 | "The backbone is typically VGG-16." |
# | 2 | "Faster R-CNN classifies with an SVM." |
# | 3 | "RoIAlign gives out several boxes." |
# | 4 | "The mask branch consists of two CNNs." |
# | 5 | "Mask R-CNN runs at 5 frames a second, Faster R-CNN at 5 to 20." |
# | 6 | "With sigmoid masks the classes do not compete." |
# | 7 | "Mask R-CNN is Faster R-CNN with a mask branch, and nothing else." |
# | 8 | "The mask branch works in parallel with the box branch." |
# | 9 | "It is trained end to end, so the losses of the heads improve the RPN's boxes." |
# | 10 | "A high score means a good mask." |
# | 11 | "The image must have a fixed size, because of the fully connected layers." |
# | 12 | "The mask has the resolution of the image." |
#
# **Guess first.** Write "true", "half" or "false" for each, before you read on. The last section compares.

# %%
my_guess = {1: ..., 2: ..., 3: ..., 4: ..., 5: ..., 6: ..., 7: ..., 8: ..., 9: ..., 10: ..., 11: ..., 12: ...}

# %% [markdown]
# ## Where we are
#
# Everywhere.

# %%
import importlib.metadata
import os
import platform
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import nprcnn
import nprcnn.kernels
from nprcnn import backend, course, viz
from nprcnn.course.statements import check_components, check_new_statements, check_not_region_based
from nprcnn.data import Shapes
from nprcnn.evaluate import evaluate
from nprcnn.models.mask_head import mask_probabilities
from nprcnn.models.targets import mask_targets
from nprcnn.models.vgg import VGG
from nprcnn.ops.activation import relu, softmax
from nprcnn.ops.boxes import box_iou
from nprcnn.ops.conv import conv2d
from nprcnn.ops.deconv import conv_transpose2d
from nprcnn.ops.paste import paste_masks, paste_masks_continuous
from nprcnn.ops.roi_align import roi_align

course.style()
rng = np.random.default_rng(0)
course.where_we_are("image", "resnet", "fpn", "rpn", "roi_align", "box_head", "mask_head", "losses")
plt.rcParams["figure.constrained_layout.use"] = False     # viz places its panels itself

# %% [markdown]
# What we test on: the trained small model, one pass of prediction and one of training. P is the number of proposals, D of
# detections, S of positive RoIs in training, K of classes with the background.
#
# | in the trace | prediction | training |
# |---|---|---|
# | `roi_heads.box_features` | (P, C, 7, 7) | (all sampled RoIs, C, 7, 7) |
# | `roi_heads.class_logits` | (P, K) | (all sampled RoIs, K) |
# | `roi_heads.mask_features` | (D, C, 14, 14) | (S, C, 14, 14) |
# | `roi_heads.mask_logits` | (D, K, 28, 28) | (S, K, 28, 28) |

# %%
source = Shapes.held_out(60)
names = source.class_names
image, target = source[20]
model = nprcnn.maskrcnn_tiny(weights="shapes")
state = model.state_dict()
trace = nprcnn.Trace()
result = model.predict(image, trace=trace)

student, training = nprcnn.maskrcnn_tiny(weights="shapes"), nprcnn.Trace()
losses, cache = student.losses([image], [target], np.random.default_rng(0), trace=training)
student.backward(cache, training)
for name in ("roi_heads.box_features", "roi_heads.class_logits", "roi_heads.mask_features", "roi_heads.mask_logits"):
    print(f"{name:25} prediction {str(trace[name].shape):18} training {training[name].shape}")

verdicts = {}

def verdict(number, answer, because):
    """Write a verdict down, for the table at the end."""
    verdicts[number] = answer, because
    print(f"--> {answer.upper()}: {because}")

# %% [markdown]
# ## 1  "The backbone is typically VGG-16."
#
# Where it comes from: Fast R-CNN and Faster R-CNN were published with VGG-16 (arXiv 1504.08083, section 4.1 there;
# 1506.01497, section 3). Mask R-CNN's section 3, "Network Architecture", says: ResNet and ResNeXt, of 50 or 101 layers,
# with C4 or a feature pyramid. Which of nprcnn's ready-made models, which have torchvision's names where it has them, are
# built on what? And why did everybody change? We count multiplications. For that we hand the models kernels that only
# count and answer zeros: a KernelSet with two functions replaced.

# %%
counted = 0

def pretend(x, w, b=None, stride=1, padding=0, dilation=1, *rest):
    """A convolution that counts its multiplications and answers zeros."""
    global counted
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in
            zip(x.shape[2:], w.shape[2:], *(np.broadcast_to(v, 2) for v in (stride, padding, dilation)))]
    counted += len(x) * len(w) * size[0] * size[1] * w[0].size
    return np.zeros((len(x), len(w), *size), np.float32)

def pretend_deconv(dy, w, x_shape, *rest):
    global counted
    counted += dy.size * w[0].size
    return np.zeros(x_shape, np.float32)

backend.KERNEL_SETS["counting"] = backend.NUMPY._replace(
    name="counting", conv2d=pretend, conv2d_fused=pretend, conv2d_grad_x=pretend_deconv)

def billions(function, *args):
    """What a call of function(*args) costs, in billions of multiplications, and what it returns."""
    global counted
    counted = 0
    with nprcnn.use("counting"):
        y = function(*args)
    return counted / 1e9, y

small = np.zeros((1, 3, 128, 192), np.float32)
scale = 800 * 1216 / (128 * 192)                          # cost grows with the area
r50 = nprcnn.maskrcnn_resnet50_fpn()
vgg_cost, _ = billions(VGG(rng).forward, small, False)
r50_cost, _ = billions(r50.backbone.body.forward, small, False)
built_on = {name: "VGG-16" if "vgg" in name else "ResNet" for name in dir(nprcnn) if "rcnn_" in name and "tiny" not in name}
print(", ".join(sorted(built_on)))
print(f"an image of 800 x 1216: VGG-16 {vgg_cost * scale:.0f} billion multiplications, ResNet-50 {r50_cost * scale:.0f}")
others = sum(kind == "ResNet" for kind in built_on.values())
verdict(1, "false", f"{others} of the {len(built_on)} models are built on a ResNet; "
                    f"VGG-16 costs {vgg_cost / r50_cost:.1f} times as much as ResNet-50")

# %% [markdown]
# It is a habit, not a necessity: `nprcnn.maskrcnn_vgg16()` exists and trains. No head asks where its features come from.
# Notebook [03](03_residual_networks.ipynb) sets the two side by side.
#
# ## 2  "Faster R-CNN classifies with an SVM."
#
# R-CNN did (arXiv 1311.2524, section 2.3: one linear SVM a class, trained on stored features after the network). Fast
# R-CNN replaced them by a softmax layer, trained with everything else; its section 5.4 asks "Do SVMs outperform softmax?"
# and finds they do not. Faster R-CNN kept that head. Our Faster R-CNN is the same model without masks. We compute its
# scores by hand: a matrix product, and a softmax.

# %%
faster = nprcnn.maskrcnn_tiny(masks=False)
faster.load_state_dict({name: value for name, value in state.items() if "mask" not in name})
faster_trace = nprcnn.Trace()
faster_result = faster.predict(image, trace=faster_trace)

hidden = faster_trace["roi_heads.box_hidden"]             # (P, 128)
w, b = (state[f"roi_heads.box_predictor.cls_score.{part}"] for part in ("weight", "bias"))
probability = softmax(hidden @ w.T + b)                   # (P, K)
by_hand = probability[faster_result.proposal, faster_result.labels]
assert np.allclose(by_hand, faster_result.scores, rtol=0, atol=1e-6)      # float32, numbers up to 1
print("scores by hand:", by_hand[:4].round(4), " the model's:", faster_result.scores[:4].round(4))
print("each RoI's probabilities sum to", probability.sum(axis=1).min().round(6), "..", probability.sum(axis=1).max().round(6))
print("the gradient of the box head's losses, on its way back into the network:")
for name in ("roi_heads.class_logits", "roi_heads.box_hidden", "roi_heads.box_features"):
    print(f"  {name:24} norm {np.linalg.norm(training.grad[name]):.4f}")
verdict(2, "false", "a matrix product and a softmax give its scores, and cross-entropy trains them with all the rest")

# %% [markdown]
# An SVM has a margin and no probabilities that sum to 1, and it was trained when the network was finished: no gradient
# came back from it.
#
# ## 3  "RoIAlign gives out several boxes."
#
# Boxes go in. What comes out?

# %%
level = trace["roi_heads.levels"][0]                      # (P,): the pyramid level of each RoI
rois = trace["rpn.proposals"][0]                          # (P, 4)
before = rois.copy()
for r in range(5):
    one = np.array([[0, *rois[r]]], np.float32)           # image 0, x1, y1, x2, y2
    alone = roi_align(trace[f"fpn.p{level[r]}"], one, 1 / 2 ** level[r], 7)
    assert np.allclose(alone[0], trace["roi_heads.box_features"][r], rtol=1e-4, atol=1e-4)
    print(f"RoI {r}: box {rois[r].round(0)}, P{level[r]} -> features {alone[0].shape}, the model's row {r}")
assert np.array_equal(rois, before)
print(f"{len(rois)} RoIs in, {len(trace['roi_heads.box_features'])} arrays out; the boxes are as they were")
verdict(3, "false", "one box in, one array of features (C, 7, 7) out: it reads features, and makes no box")

# %% [markdown]
# The picture shows one RoI and three channels of what RoIAlign gives out for it.

# %%
r = int(result.proposal[0])
values = trace["roi_heads.box_features"][r]
figure, axes = plt.subplots(1, 4, figsize=(8.6, 2.4), layout="constrained")
axes[0].imshow(image // 8 * 8)
axes[0].add_patch(plt.Rectangle(rois[r, :2], *(rois[r, 2:] - rois[r, :2]), fill=False, edgecolor="white", linewidth=2))
axes[0].set(title="in: one box", xticks=[], yticks=[])
for ax, channel in zip(axes[1:], np.argsort(-values.std(axis=(1, 2)))):
    ax.imshow(values[channel], cmap="viridis")
    ax.set(title=f"out: 7 x 7, channel {channel}", xticks=[], yticks=[])

# %% [markdown]
# Who does make boxes? The RPN (from anchors) and the box head (one a class). Both are layers with weights; RoIAlign has
# none.
#
# ## 4  "The mask branch consists of two CNNs."
#
# Perhaps from figure 4 of the paper, where two heads stand side by side. They are *alternatives*: one for C4, one for a
# pyramid. Each model has one. We walk through it by hand.

# %%
def mask_branch(x):
    """(D, C, 14, 14) -> (D, K, 28, 28), one layer after the other."""
    p = {name.removeprefix("roi_heads."): value for name, value in state.items()}
    for k in range(2):
        x = relu(conv2d(x, p[f"mask_head.{k}.0.weight"], p[f"mask_head.{k}.0.bias"], padding=1))
        print(f"  3x3 convolution, ReLU    {x.shape}")
    x = relu(conv_transpose2d(x, p["mask_predictor.conv5_mask.weight"], p["mask_predictor.conv5_mask.bias"], stride=2))
    print(f"  2x2 deconvolution, ReLU  {x.shape}")
    x = conv2d(x, p["mask_predictor.mask_fcn_logits.weight"], p["mask_predictor.mask_fcn_logits.bias"])
    print(f"  1x1 convolution          {x.shape}")
    return x

print(f"in                         {trace['roi_heads.mask_features'].shape}")
logits = mask_branch(trace["roi_heads.mask_features"])
error = np.abs(logits - trace["roi_heads.mask_logits"]).max() / np.abs(logits).max()
assert error < 1e-5                                       # float32, 432 products a number and four layers
ours, theirs = (sorted(name for name in m.state_dict() if "mask" in name and "weight" in name) for m in (model, r50))
print(f"the model's own logits: relative difference {error:.0e}")
verdict(4, "false", f"one chain of {len(ours)} layers here, of {len(theirs)} in the paper's model; each feeds only the next")

# %% [markdown]
# One small *fully convolutional network*. (With the backbone one could count two CNNs in a row for the whole of
# Mask R-CNN. But that is not what the sentence says.) The paper's has four 3x3 convolutions instead of our two.
#
# ## 5  "Mask R-CNN runs at 5 frames a second, Faster R-CNN at 5 to 20."
#
# All these numbers were printed. Mask R-CNN: 195 ms an image with ResNet-101-FPN on a Tesla M40, that is 5.1 a second
# (section 4.4 of the paper). Faster R-CNN: 5 a second with VGG-16, 17 with the small ZF net, on a K40 (arXiv
# 1506.01497, table 5). Other backbones, other GPUs, other image sizes. What costs the mask branch itself? We count again,
# for ResNet-50-FPN, 1000 proposals and 100 detections as in the paper.

# %%
backbone_cost, (pyramid, _) = billions(r50.backbone.forward, small, False, None)
rpn_cost, _ = billions(r50.rpn.forward, pyramid, False, None)
box_head = r50.roi_heads.box_head.parameters() + r50.roi_heads.box_predictor.parameters()
box_cost = 1000 * sum(p.data.size for p in box_head if p.data.ndim == 2) / 1e9

def masks_of(count):
    x = r50.roi_heads.mask_head.forward(np.zeros((count, 256, 14, 14), np.float32), False)[0]
    return r50.roi_heads.mask_predictor.forward(x, False)

mask_cost = 10 * billions(masks_of, 10)[0]                # each RoI costs the same
costs = {"ResNet-50": r50_cost * scale, "pyramid": (backbone_cost - r50_cost) * scale, "RPN": rpn_cost * scale,
         "box head, 1000 RoIs": box_cost, "mask head, 100 RoIs": mask_cost}
without = sum(costs.values()) - mask_cost
print("billion multiplications:", {name: round(float(value)) for name, value in costs.items()})
figure, ax = plt.subplots(figsize=(8, 1.9), layout="constrained")
for row, parts in enumerate((list(costs)[:-1], list(costs))):
    left = 0
    for name, shade in zip(parts, ("#08519c", "#3182bd", "#6baed6", "#bdd7e7", course.BACKWARD)):
        ax.barh(row, costs[name], left=left, color=shade, edgecolor="white", label=name if row else None)
        left += costs[name]
    ax.text(left, row, f" {left:.0f}", va="center")
ax.set(yticks=[0, 1], yticklabels=["Faster R-CNN", "Mask R-CNN"], xlabel="billion multiplications, image of 800 x 1216",
       xlim=(0, 1.1 * left))
ax.invert_yaxis()
figure.legend(loc="outside lower center", ncols=5, fontsize=8);

# %% [markdown]
# The same backbone, with and without masks: not "5 against 20", but a quarter more. (The paper says: about 20 % on
# typical models, section 3.1.) And what does the speed hang on? Three runs of our small model, measured here; only
# the ratios mean anything.

# %%
def milliseconds(m, picture, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        m.predict(picture)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)

large = np.kron(image, np.ones((2, 2, 1))).astype(np.uint8)
big_input = nprcnn.maskrcnn_tiny(weights="shapes", min_size=256, max_size=512)
timed = {"without masks": milliseconds(faster, image), "with masks": milliseconds(model, image),
         "twice the side": milliseconds(big_input, large)}
for name, value in timed.items():
    print(f"{name:15} {value / timed['without masks']:.1f} times as long as without masks")
verdict(5, "half", f"both were printed, for different backbones and GPUs; with the same backbone masks cost "
                   f"{mask_cost / without:.0%} more work")

# %% [markdown]
# Frames a second belong to a model, an image size *and a machine*. Without all three the number says nothing.
#
# ## 6  "With sigmoid masks the classes do not compete."
#
# For each RoI the mask head gives one map a class, and the loss looks at the map of the true class alone (section 3 of
# the paper). So the gradient in all other maps should be not small, but 0. And at test time, what another class's map says
# should not matter. Beside it a softmax over the classes.

# %%
gradient = training.grad["roi_heads.mask_logits"]         # (S, K, 28, 28)
labels = np.concatenate(cache.decisions.labels)
labels = labels[labels > 0]                               # (S,)
own = np.zeros(gradient.shape[:2], bool)
own[np.arange(len(labels)), labels] = True
print(f"largest gradient in the map of the true class: {np.abs(gradient[own]).max():.1e}, "
      f"in all other maps: {np.abs(gradient[~own]).max()}")

louder = trace["roi_heads.mask_logits"].copy()
rows = np.arange(len(result.labels))
louder[rows, result.labels % 6 + 1] += 8                  # another class raises its voice
change = {}
for kind in ("sigmoid", "softmax"):
    quiet, loud = (mask_probabilities(z, result.labels, kind) for z in (trace["roi_heads.mask_logits"], louder))
    change[kind] = np.abs(loud - quiet).max()
    print(f"{kind}: another class's logits + 8 move the mask by up to {change[kind]:.2f}")
assert change["sigmoid"] == 0 and np.abs(gradient[~own]).max() == 0
verdict(6, "true", "the other classes' maps get a gradient of exactly 0, and change nothing at test time")

# %% [markdown]
# There *is* a competition between classes, in another place: the softmax of the box head. That is the point. One branch
# decides *what*, the other one only *where*. (Notebook [10](10_the_mask_head.ipynb), section 6, trains both kinds.)
#
# ## 7  "Mask R-CNN is Faster R-CNN with a mask branch, and nothing else."
#
# Compare the names of the weights, then the boxes of both models with the same weights. Then do the one thing that the
# sentence leaves out: RoIPool, with which Faster R-CNN was published, in the place of RoIAlign.

# %%
extra = sorted(set(state) - set(faster.state_dict()))
print(f"{len(state)} tensors and {len(faster.state_dict())}; more in Mask R-CNN:", *extra, sep="\n  ")
assert np.array_equal(result.boxes, faster_result.boxes) and np.array_equal(result.scores, faster_result.scores)
print("boxes and scores of both: the same, bit for bit")

pool = nprcnn.maskrcnn_tiny(roi_method="pool")
pool.load_state_dict(state)                               # RoIPool has no weights: all fit
ap = {name: evaluate(m, source, progress=False, indices=range(20)) for name, m in (("RoIAlign", model), ("RoIPool", pool))}
for name, numbers in ap.items():
    print(f"{name:8} on 20 scenes: box AP {numbers['bbox']['AP']:.3f}, mask AP {numbers['segm']['AP']:.3f}")
verdict(7, "half", f"in the weights, yes: {len(extra)} tensors more. But RoIAlign replaced RoIPool, "
                   "and neither has weights that would show it")

# %% [markdown]
# The comparison is unfair to RoIPool, as these weights were trained with RoIAlign. The paper trained both: RoIPool 26.9
# mask AP, RoIAlign 30.3 (table 2c). A difference that has no weights is in no file, and easily forgotten.
#
# ## 8  "The mask branch works in parallel with the box branch."
#
# Figure 1 of the paper draws it so. Look at how many RoIs each branch gets:

# %%
def counts(t):
    return len(t["roi_heads.box_features"]), len(t["roi_heads.mask_features"])

in_training, in_prediction = counts(training), counts(trace)
positive = int((np.concatenate(cache.decisions.labels) > 0).sum())
print(f"training:   box branch {in_training[0]} RoIs, mask branch {in_training[1]} (the {positive} positive ones)")
print(f"prediction: box branch {in_prediction[0]} RoIs, mask branch {in_prediction[1]} (the {len(result.boxes)} detections)")
matched = box_iou(trace["rpn.proposals"][0], target["boxes"]).max(axis=1)
found = box_iou(result.boxes[:4], target["boxes"]).max(axis=1)
mine = trace["rpn.proposals"][0][result.proposal[:4]]
assert in_prediction[1] == len(result.boxes) and in_training[1] == positive
print(f"mean IoU with the targets: the four best detections {found.mean():.2f}, their proposals "
      f"{box_iou(mine, target['boxes']).max(axis=1).mean():.2f}, all proposals {matched.mean():.2f}")
every = 100 * billions(masks_of, 10)[0]
verdict(8, "half", f"in training, yes. In prediction it waits for the final boxes: in the paper's model "
                   f"{every:.0f} billion multiplications become {mask_cost:.0f}, and the boxes are better")

# %% [markdown]
# The paper says so in section 3.1, "Inference": the difference to training "speeds up inference and improves accuracy (due to the use
# of fewer, more accurate RoIs)".
#
# ## 9  "It is trained end to end, so the losses of the heads improve the RPN's boxes."
#
# End to end: one backward pass reaches all weights. But by which ways? A trace knows for every tensor whether it got a
# gradient. And we can ask the losses themselves: does the loss of the heads change when one proposal moves?

# %%
dead_ends = [name for name in training if name not in training.grad]
print("in the forward pass, but without a gradient:", *dead_ends, sep="\n  ")

frozen = nprcnn.maskrcnn_tiny(weights="shapes")

def heads_if_moved(r, pixels):
    """The losses of the heads with the left side of RoI r moved, all decisions as they were."""
    moved = cache.decisions.proposals[0].copy()
    moved[r, 0] += pixels
    answer, _ = frozen.losses([image], [target], None, cache.decisions._replace(proposals=[moved]))
    return sum(float(answer[name]) for name in ("loss_classifier", "loss_box_reg", "loss_mask"))

slopes = {int(r): (heads_if_moved(r, 0.2) - heads_if_moved(r, -0.2)) / 0.4 for r in np.flatnonzero(cache.decisions.labels[0])}
r = max(slopes, key=lambda r: abs(slopes[r]))
print(f"slope of the heads' losses by the left side of RoI {r}: {slopes[r]:+.4f} a pixel; sent back: nothing")
assert "rpn.proposals" in dead_ends and slopes[r] != 0
verdict(9, "half", "all weights are reached, but only through the features: proposals are constants, "
                   "although the slope is not 0")

# %% [markdown]
# So the heads improve the *pyramid*, from which the RPN reads too. What the RPN's own layers learn, they learn from the
# two losses of the RPN. (Faster R-CNN, section 3.2: "approximate joint training". Notebook
# [07](07_proposals_and_nms.ipynb), section 9.)
#
# ## 10  "A high score means a good mask."
#
# Where does the score come from? We ruin the mask head and look at the scores. Then we ask how score and quality go
# together in the real model, for all detections of the right class on 40 scenes.

# %%
ruined = nprcnn.maskrcnn_tiny()
ruined.load_state_dict({name: value * np.float32(0) if "mask_fcn_logits" in name else value for name, value in state.items()})
bad = ruined.predict(image)
print("scores, all masks ruined:", bad.scores[:4].round(3), " before:", result.scores[:4].round(3))
print("pixels of the masks:     ", bad.masks[:4].sum(axis=(1, 2)), " before:", result.masks[:4].sum(axis=(1, 2)))
assert np.array_equal(bad.scores, result.scores)

pairs = []
for i in range(40):
    scene, t = source[i]
    d = model.predict(scene)
    iou = box_iou(d.boxes, t["boxes"])
    for k, g in enumerate(iou.argmax(axis=1)):
        if iou[k, g] >= 0.5 and d.labels[k] == t["labels"][g]:
            a, truth = d.masks[k], t["masks"][g].astype(bool)
            pairs.append((d.scores[k], (a & truth).sum() / (a | truth).sum(), d.labels[k]))
score, quality, kind = np.array(pairs).T
sure = score > 0.95
verdict(10, "false", f"the score is the box head's; above 0.95 the masks' IoU still goes from "
                     f"{quality[sure].min():.2f} to {quality[sure].max():.2f}")

# %%
figure, ax = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
ax.plot(kind[sure] + rng.uniform(-0.25, 0.25, sure.sum()), quality[sure], "o", markersize=4, alpha=0.6)
ax.set(xticks=range(1, 7), xticklabels=names[1:], ylabel="IoU of the mask", ylim=(0.5, 1),
       title=f"the {sure.sum()} detections with a score above 0.95")
ax.grid(axis="y", color="#dddddd", linewidth=0.6)

# %% [markdown]
# All of these scores are nearly 1. The masks are of all kinds, and rings and stars are the worst. The score answers
# "which class?". A mask that judges itself needs another output: *Mask Scoring R-CNN* (Huang et al., arXiv 1903.00241)
# adds a small head that predicts the mask's IoU.
#
# ## 11  "The image must have a fixed size, because of the fully connected layers."
#
# A fully connected layer does have a fixed number of inputs. Which sizes change when the image does, and which do not?

# %%
print("image        batch               P2                 box features")
inputs = []
for size in ((128, 128), (96, 160), (200, 130)):
    scene = Shapes.held_out(1, size=size)[0][0]
    t = nprcnn.Trace()
    model.predict(scene, trace=t)
    inputs.append(t["roi_heads.box_features"].shape[1:])
    print(f"{str(size):12} {str(t['transform.batch'].shape):19} {str(t['fpn.p2'].shape):18} "
          f"{t['roi_heads.box_features'].shape}")
fc6 = state["roi_heads.box_head.fc6.weight"].shape
assert len(set(inputs)) == 1 and np.prod(inputs[0]) == fc6[1]
print(f"the first fully connected layer: {fc6}, and {inputs[0][0]} x 7 x 7 = {np.prod(inputs[0])}")
verdict(11, "false", "convolutions take any size, and RoIAlign makes 7 x 7 of every RoI before the first fully connected layer")

# %% [markdown]
# Images *are* resized, so that objects have sizes the anchors fit, and padded to a multiple of 32, so that a batch fits
# together. Neither needs a fixed size, and the aspect ratio stays. (A classifier such as VGG-16, with its fully connected
# layers on the whole image, does need one. The pooling of SPPnet, and after it RoIPool, ended that for detectors.)
#
# ## 12  "The mask has the resolution of the image."
#
# `result.masks` has, pixel by pixel. But what did the network say? And what is the best that it *could* say? We take true
# masks of objects of many sizes, cut them to 28 x 28 exactly as in training, and paste them back.

# %%
print("the network's:", trace["roi_heads.mask_probabilities"].shape, "  pasted:", result.masks.shape)
side, best = [], {"torchvision": [], "Detectron2": []}
for size, count in ((128, 20), (256, 8), (512, 5), (1000, 3)):
    wide = Shapes.held_out(count, size=size)
    for i in range(count):
        _, t = wide[i]
        truth = t["masks"].astype(bool)
        for values, aligned, paste in zip(best.values(), (False, True), (paste_masks, paste_masks_continuous)):
            small_masks = mask_targets(t["masks"], t["boxes"], np.arange(len(t["boxes"])), 28, aligned)
            back = paste(small_masks, t["boxes"], (size, size), 0.5).astype(bool)
            values += list((back & truth).sum(axis=(1, 2)) / (back | truth).sum(axis=(1, 2)))
        side += list(np.sqrt((t["boxes"][:, 2:] - t["boxes"][:, :2]).prod(axis=1)))
side, best = np.array(side), {name: np.array(values) for name, values in best.items()}
figure, ax = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
for (name, values), mark in zip(best.items(), "o^"):
    ax.plot(side, values, mark, markersize=3.5, alpha=0.6, label=name)
    print(f"{name:11}: mean IoU of sides below 50 pixels {values[side < 50].mean():.3f}, "
          f"above 200 {values[side > 200].mean():.3f}")
ax.axvline(28, color="#808080", linewidth=1)
ax.text(28.5, 0.71, "28 pixels", color="#606060")
ax.set(xscale="log", xlabel="side of the object's box, pixels", ylabel="IoU with the true mask", ylim=(0.7, 1.005),
       xticks=[20, 50, 100, 200, 400], xticklabels=[20, 50, 100, 200, 400])
ax.minorticks_off()
ax.legend(loc="lower right", fontsize=9, title="cut and pasted as in")
lost = 1 - best["Detectron2"][side > 200].mean()
verdict(12, "false", f"it has 28 x 28 numbers, stretched over the box; above 200 pixels even true masks lose {lost:.1%} of IoU")

# %% [markdown]
# Two errors are in the picture. On large objects both lose about the same: that is the 28 x 28. On small ones 28 points are
# plenty, as Detectron2's rules show. What torchvision's lose there is lost by half pixels: in cutting the mask to the box
# (RoIAlign without `aligned`, notebook [08](08_roi_pool_and_roi_align.ipynb), section 5) and in pasting it with a box of
# integers (notebook [10](10_the_mask_head.ipynb), section 8). For fine outlines of large objects, *PointRend* (Kirillov et
# al., arXiv 1912.08193) refines masks where they are unsure.
#
# ## All verdicts
#
# Colours: green true, orange half true, pink false.

# %%
figure, ax = plt.subplots(figsize=(9.6, 4.6), layout="constrained")
ax.axis("off")
short = {1: "VGG-16 backbone", 2: "SVM in Faster R-CNN", 3: "RoIAlign gives boxes", 4: "mask branch: two CNNs",
         5: "5 / 5 to 20 frames a second", 6: "sigmoid: no competition", 7: "Faster R-CNN + masks", 8: "branches in parallel",
         9: "heads improve the RPN's boxes", 10: "score = good mask", 11: "fixed image size", 12: "mask = image resolution"}
face = {"true": course.GREEN, "half": course.YELLOW, "false": course.PINK}
for number, (answer, because) in verdicts.items():
    y = 1 - number / 13
    ax.text(0, y, f"{number}", va="center", ha="right", fontsize=9)
    ax.text(0.02, y, short[number], va="center", fontsize=9)
    ax.text(0.29, y, answer, va="center", ha="center", fontsize=9, bbox=dict(facecolor=face[answer], edgecolor="none", pad=2))
    ax.text(0.33, y, "\n".join(textwrap.wrap(because, 84)), va="center", fontsize=8)
ax.set(xlim=(-0.02, 1), ylim=(0, 1))
answered = {number: guess for number, guess in my_guess.items() if guess is not ...}
good = sum(verdicts[number][0] == guess for number, guess in answered.items())
print(f"you guessed {len(answered)} of {len(verdicts)}" + (f", and {good} of them agree" if answered else ""))

# %% [markdown]
# "Half" is no way out. Each of these sentences becomes true when a few words are added: *in training*, *through the
# features*, *with the same backbone*. They are the words to learn.
#
# ## And two questions that every repository gets
#
# **"It does not install any more."** Old detectors stop installing because they were written against one version of a framework, of a
# compiler and of a CUDA toolkit, and build extensions on your machine, where all three must fit. So what does *this* one need? Its packages
# with the versions that ran here, and all files of its own by their kind:

# %%
NEEDED = {"numpy": "the arrays, and all of the arithmetic", "numba": "the compiled kernels; NPRCNN_KERNELS=numpy does without",
          "threadpoolctl": "how many threads NumPy uses", "pillow": "to read and write images", "matplotlib": "figures",
          "tqdm": "progress", "safetensors": "the files of weights", "pycocotools": "to compare the AP with"}
print(f"Python {platform.python_version()}, {platform.system()}, {platform.machine()}")
for name, what_for in NEEDED.items():
    print(f"  {name:14} {importlib.metadata.version(name):10} {what_for}")

folders = [Path(nprcnn.__file__).parent, *map(Path, nprcnn.kernels.__path__)]
files = {file for folder in folders for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
kinds = [file.suffix for file in files]
print("nprcnn's own files:", {kind: kinds.count(kind) for kind in sorted(set(kinds)) if kind})
built = [file.name for file in files if file.suffix in (".so", ".pyd", ".dylib", ".dll", ".a", ".o")]
assert not built                                          # nothing is compiled when it is installed, and nothing compiled comes along

# %% [markdown]
# All of the needed ones are on the package index as wheels, that is, ready-made. (`pip install --only-binary :all: ...` refuses everything
# else. [TEACHING.md](TEACHING.md) keeps them in a folder, which still installs when the index has moved on.) If an *old* repository does
# not install, its weights may be all that you want of it: `nprcnn inspect` and `load_weights` read the files of torchvision and Detectron2
# without either of them, and notebook [18](18_the_same_numbers.ipynb) compares the numbers.
#
# **"error: command 'gcc' failed", "nvcc not found", "undefined symbol".** These come from *custom operations*: RoIAlign and NMS in C++ or
# CUDA, built while you install and tied to the framework that was there. Here both are NumPy. We take the compilers away, with an empty
# search path, and predict in a new process, also without Numba, which compiles while it runs:

# %%
PROGRAM = """
import nprcnn
from nprcnn.data import Shapes
from nprcnn.errors import BackendError
result = nprcnn.maskrcnn_tiny(weights="shapes").predict(Shapes.held_out(60)[20][0])
print(*result.boxes.ravel().round(2).tolist())
try:
    nprcnn.use("cuda-on-cpu")                             # this one does need a compiler
except BackendError as error:
    print(error)
"""
bare = {name: value for name, value in os.environ.items() if name not in ("PATH", "CXX", "CC")}
bare |= {"PATH": "", "NPRCNN_KERNELS": "numpy", "PYTHONPATH": str(Path(nprcnn.__file__).parents[1])}
answer = subprocess.run([sys.executable, "-c", PROGRAM], env=bare, capture_output=True, text=True, check=True).stdout
boxes, message = answer.split("\n", 1)
there = np.array(boxes.split(), float).reshape(-1, 4)
assert there.shape == result.boxes.shape and np.abs(there - result.boxes).max() < 0.02        # printed with two digits
print(f"without any compiler: {len(there)} detections, the boxes of above to {np.abs(there - result.boxes).max():.3f} pixels")
print("asked for the CUDA files on the CPU, which are compiled:", message.strip(), sep="\n")

# %% [markdown]
# If you do meet such an error elsewhere: it is not about the network. Read the *first* error, not the last; compare the versions of compiler,
# framework and CUDA with those that the repository names; or look whether the framework has the operation itself by now, as torchvision
# has `roi_align` and `nms`.
#
# ## Exercises: a quiz
#
# Solutions are in `solutions/20_solutions.ipynb`.
#
# ### Exercise 1: who is not region-based?
#
# A region-based detector classifies *regions*: it first makes a list of candidate boxes, then looks at the content of
# each. Which of these does **not**: R-CNN, Fast R-CNN, YOLO, Mask R-CNN? Write a set of names.
#
# <details><summary>Hint 1</summary>For each: is there a step between the image and the classes that gives a list of boxes?</details>
# <details><summary>Hint 2</summary>The list may come from a program outside of the network (selective search) or from a part of it (the RPN).</details>

# %%
not_region_based = ...                                    # your answer: {"...", ...}

check_not_region_based(not_region_based)

# %% [markdown]
# ### Exercise 2: which parts has a Mask R-CNN, and what for?
#
# Some of these nine are parts of a Mask R-CNN as the paper describes it with a pyramid, some are not. Give each part the
# letter of what it is for, and each other one `None`. A letter may stay unused.
#
# | | what for |
# |---|---|
# | a | says of every anchor whether there is an object, and where |
# | b | turns the image into feature maps, from fine to coarse |
# | c | gives each of many maps both fine places and much meaning |
# | d | cuts features of one size from a map for each region, without rounding |
# | e | chooses the class of a region, and corrects its box for every class |
# | f | says of 28 x 28 points of a region whether they belong to the object, for every class |
# | g | separates two classes with the widest margin |
# | h | proposes regions by merging similar segments, outside of the network |
#
# <details><summary>Hint 1</summary>The picture at the beginning of this notebook has all parts.</details>
# <details><summary>Hint 2</summary>Statements 2 and 7 name two things that older systems had.</details>
# <details><summary>Hint 3</summary>Three of the nine get None.</details>

# %%
components = {
    "ResNet": ..., "feature pyramid": ..., "RPN": ..., "RoIAlign": ..., "box head": ..., "mask head": ...,
    "SVM": ..., "selective search": ..., "RoIPool": ...,
}

check_components(components)

# %% [markdown]
# ### Exercise 3: five more statements
#
# True or false? You have everything that is needed to *test* each in a cell of your own. Answer with True or False.
#
# - A: "With 91 classes instead of 2, the mask head has about 45 times as many parameters."
# - B: "P6 gets a gradient from the mask loss."
# - C: "Twice the height and width of the image: four times as many anchors."
# - D: "A training image without any object is useless: all losses are 0."
# - E: "If one RoI's class logits all grow by 5, its scores stay as they are."
#
# <details><summary>Hint to A</summary>nprcnn.maskrcnn_tiny(num_classes=...) twice, and the sum of p.data.size over roi_heads.mask_head.parameters() and mask_predictor.</details>
# <details><summary>Hint to B</summary>Which maps are given to mask_features.forward? Look into _mask_branch in nprcnn/models/mask_rcnn.py.</details>
# <details><summary>Hint to C</summary>trace["rpn.anchors"].shape, with min_size=128 and 256.</details>
# <details><summary>Hint to D</summary>model.losses with empty targets: boxes (0, 4), labels (0,), masks (0, H, W).</details>
# <details><summary>Hint to E</summary>softmax(z) and softmax(z + 5).</details>

# %%
new_statements = {"A": ..., "B": ..., "C": ..., "D": ..., "E": ...}

check_new_statements(new_statements)

# %% [markdown]
# ## Summary
#
# - A sentence about a network can be tested: by a shape, a name, a gradient that is 0, a change that changes nothing.
# - R-CNN, Fast, Faster and Mask R-CNN are four systems. Selective search, SVMs, VGG-16 and RoIPool belong to the older.
# - Training and prediction differ: the sampled RoIs, the number of masks, who waits for whom.
# - Speed belongs to a model, a size and a machine. A score belongs to a class, not to a mask.
#
# **Read next.** The papers, in a row, each on what it changed: R-CNN, arXiv 1311.2524; Fast R-CNN, 1504.08083; Faster
# R-CNN, 1506.01497; FPN, 1612.03144; Mask R-CNN, 1703.06870. For the other family: YOLO, arXiv 1506.02640. In this
# course: [13 Detections and AP by hand](13_detections_and_ap.ipynb).
