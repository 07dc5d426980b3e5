# %% [markdown]
# # 09  The box head: which class, and where exactly?
#
# The RPN (notebooks 06 and 07) said "here are 100 boxes with something in them". RoIAlign (notebook 08) made of each
# box 7 x 7 numbers a channel. Now somebody must say *what* it is, and put the box right. This is the **box head**:
# two fully connected layers, then two sisters, one for the class and one for the box. It is Fast R-CNN, nearly
# unchanged since 2015, and without the mask head it is all that stands between proposals and detections.
#
# Three things about it are asked again and again. Why are there K boxes for one proposal? What are the numbers (10,
# 10, 5, 5)? And where do the ghosts with low scores come from? Each has its section.
#
# **You need:** notebooks [05](05_anchors_iou_and_box_coding.ipynb) (deltas), [06](06_the_rpn.ipynb) (matching,
# sampling, smooth L1), [07](07_proposals_and_nms.ipynb) (NMS) and [08](08_roi_pool_and_roi_align.ipynb). **You will
# be able to:** write the box head, its targets and losses, forward and backward, and the way from its outputs to
# detections. About 90 minutes with the exercises.
#
# ## Where we are
#
# Behind RoIAlign. Two of the five losses are the box head's.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import check_gradients, course, viz
from nprcnn.course.box_head import (check_pick_boxes, check_sample_losses_backward,
                                    check_small_head_backward)
from nprcnn.data import Shapes
from nprcnn.gradcheck import GradientCheckError
from nprcnn.models import box_head, targets
from nprcnn.models.postprocess import filter_detections
from nprcnn.ops.activation import softmax
from nprcnn.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes

course.style()
rng = np.random.default_rng(0)
course.where_we_are("box_head", "losses")

# %% [markdown]
# The letters: R RoIs (100 at test time, a sample of 32 in training), C channels of the pyramid, D numbers in the
# hidden layers, K classes. Class 0 is the background.
#
# | tensor | shape | what it is |
# |---|---|---|
# | `roi_heads.box_features` | (R, C, 7, 7) | input: from RoIAlign |
# | `roi_heads.box_hidden` | (R, D) | after fc6 and fc7 |
# | `roi_heads.class_logits` | (R, K) | one logit a class |
# | `roi_heads.box_deltas` | (R, 4 K) | four deltas *for each class* |
# | `detections.boxes`, `.labels`, `.scores` | [(D, 4)], [(D,)], [(D,)] | what is left in the end |

# %%
source = Shapes.held_out(60)
image, target = source[10]
names = source.class_names
height, width = image.shape[:2]
model = nprcnn.maskrcnn_tiny(weights="shapes")
trace = nprcnn.Trace()
result = model.predict(image, trace=trace)

rois = trace["rpn.proposals"][0]                                      # (R, 4)
for name in ("rpn.proposals", "roi_heads.box_features", "roi_heads.box_hidden", "roi_heads.class_logits",
             "roi_heads.box_deltas", "detections.boxes"):
    value = trace[name]
    print(f"{name:24}", [v.shape for v in value] if isinstance(value, list) else value.shape)
print("classes:", ", ".join(f"{k} {name}" for k, name in enumerate(names)))

# %% [markdown]
# ## 1  Two fully connected layers
#
# They are called fc6 and fc7, after the layers of VGG in whose place they stand. The pyramid's paper (Lin et al.,
# arXiv 1612.03144, section 4.2) attaches "*two hidden 1,024-d fully-connected (fc) layers (each followed by ReLU)*".
# With $x$ the RoI's $49\,C$ numbers in one row:
#
# $$h_6 = \mathrm{relu}(W_6 x + b_6), \quad h_7 = \mathrm{relu}(W_7 h_6 + b_7), \quad
# z = W_c h_7 + b_c, \quad d = W_b h_7 + b_b . \tag{1}$$
#
# One RoI by hand, one output number at a time:

# %%
heads = model.roi_heads
layers = {"fc6": heads.box_head.fc6, "fc7": heads.box_head.fc7, "cls_score": heads.box_predictor.cls_score,
          "bbox_pred": heads.box_predictor.bbox_pred}
parameters = {name: (layer.weight.data, layer.bias.data) for name, layer in layers.items()}

def linear_naive(x, w, b):
    """x (I,), w (O, I), b (O,) -> (O,)."""
    y = np.empty(len(b))
    for o in range(len(b)):
        y[o] = np.sum(w[o] * x) + b[o]
    return y

def box_head_naive(crop):
    """Equation (1): crop (C, 7, 7) -> logits (K,), deltas (4K,)."""
    x = crop.reshape(-1)                                  # channel, row, column: the order of the weights
    h6 = np.maximum(linear_naive(x, *parameters["fc6"]), 0)
    h7 = np.maximum(linear_naive(h6, *parameters["fc7"]), 0)
    return linear_naive(h7, *parameters["cls_score"]), linear_naive(h7, *parameters["bbox_pred"])

largest = 0
for r in (0, 7, 42, 99):
    z, d = box_head_naive(trace["roi_heads.box_features"][r])
    largest = max(largest, np.abs(z - trace["roi_heads.class_logits"][r]).max(),
                  np.abs(d - trace["roi_heads.box_deltas"][r]).max())
assert largest < 1e-4                                     # float32 sums of 2352 products
print(f"4 RoIs: largest difference to the trace {largest:.0e}")

# %% [markdown]
# Unlike a convolution, a fully connected layer knows *where* in the RoI a number comes from: it has a weight of its
# own for each place. That is good for "the left edge is at one third", and it costs parameters.

# %%
everything = sum(p.data.size for p in model.parameters())
print(f"{'layer':10} {'weight':>12} {'parameters':>11}   of the whole model")
for name, (w, b) in parameters.items():
    print(f"{name:10} {str(w.shape):>12} {w.size + b.size:11,}   {(w.size + b.size) / everything:.1%}")
large = {"fc6": 256 * 49 * 1024 + 1024, "fc7": 1024 * 1024 + 1024}
print(f"with 256 channels and 1024 hidden units, the paper's size: fc6 {large['fc6']:,}, fc7 {large['fc7']:,}")

w6 = parameters["fc6"][0].reshape(-1, 48, 7, 7)           # the row of a hidden unit is a 7 x 7 map a channel
strength = np.sqrt(np.square(w6).sum(axis=(0, 1)))
figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.9))
drawn = axes[0].imshow(strength, cmap="viridis")
axes[0].set(title="norm of fc6's weights at each place", xticks=range(7), yticks=range(7), xlabel="column",
            ylabel="row")
figure.colorbar(drawn, ax=axes[0], shrink=0.85)
unit, channel = np.unravel_index(np.abs(w6).sum(axis=(2, 3)).argmax(), w6.shape[:2])
limit = np.abs(w6[unit, channel]).max()
drawn = axes[1].imshow(w6[unit, channel], cmap="PuOr_r", vmin=-limit, vmax=limit)
axes[1].set(title=f"one hidden unit ({unit}), one channel ({channel})", xticks=range(7), yticks=range(7),
            xlabel="column")
figure.colorbar(drawn, ax=axes[1], shrink=0.85);

# %% [markdown]
# fc6 alone is most of the head, and about a fifth of this model. It pays most attention to the border of the RoI (the
# left picture), which is where one sees whether the box fits. Its rows are templates of 7 x 7, so fc6 *is* a
# convolution with a 7 x 7 filter without padding, which fits in exactly one place.
#
# ## 2  Softmax over the classes
#
# The K logits of a RoI become probabilities that sum to 1:
#
# $$p_k = \frac{e^{z_k}}{\sum_j e^{z_j}} . \tag{2}$$
#
# So the classes **compete**, and "nothing" (class 0) is one of them. The RPN's sigmoid asked a yes-no question, here
# the question is "which one".

# %%
def softmax_naive(z):
    """(K,) -> (K,). Minus the maximum: the same result, and no overflow."""
    e = np.array([np.exp(v - max(z)) for v in z])
    return e / sum(e)

logits = trace["roi_heads.class_logits"].astype(float)                # float64 from here on
scores = softmax(logits, axis=1)                                      # (R, K)
ours = np.array([softmax_naive(z) for z in logits])
assert np.abs(ours - scores).max() < 1e-14
print(f"{len(scores)} RoIs: largest difference to nprcnn's softmax {np.abs(ours - scores).max():.0e}")
for name, change in (("all logits of a RoI", np.ones(7)), ("the background's logit alone", np.eye(7)[0])):
    moved = np.abs(softmax(logits + 5 * change, axis=1) - scores).max()
    print(f"5 added to {name}: the probabilities move by up to {moved:.2g}")

# %%
def frame(ax, box, colour, style="-", width=1.6, label=None):
    """Draw one box (x1, y1, x2, y2)."""
    ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=colour, linestyle=style,
                               linewidth=width, label=label))

best_iou = box_iou(target["boxes"].astype(float), rois.astype(float)).max(axis=0)      # of each RoI with an object
unsure = np.abs(scores[:, 0] - 0.5).argmin()                          # the RoI between object and background
two = np.sort(scores[:, 1:], axis=1)[:, -2].argmax()                  # the one whose second class is the strongest
shown = [int(result.proposal[0]), int(two), int(unsure), int(scores[:, 0].argmax())]
titles = ("a sure one", "two classes", "object or not?", "background")
figure, axes = plt.subplots(2, 4, figsize=(8.4, 4.3), height_ratios=[1, 1])
for column, (r, title) in enumerate(zip(shown, titles)):
    ax = axes[0, column]
    ax.imshow(image // 8 * 8)
    frame(ax, rois[r], "black", width=3)
    frame(ax, rois[r], "white", width=1.5)
    ax.set(title=f"RoI {r}: {title}", xticks=[], yticks=[])
    axes[1, column].barh(range(7), scores[r], color=["#808080"] + [course.FORWARD] * 6)
    axes[1, column].set(xlim=(0, 1), ylim=(6.6, -0.6), yticks=range(7), yticklabels=names if column == 0 else [],
                        xlabel="probability", xticks=[0, 0.5, 1], xticklabels=["0", "1/2", "1"])
for r in shown:
    print(f"RoI {r:2}: IoU with the nearest object {best_iou[r]:.2f}, "
          + ", ".join(f"{names[k]} {scores[r, k]:.2f}" for k in np.argsort(-scores[r])[:3]))

# %% [markdown]
# (This is not how R-CNN did it: there a support vector machine for each class came *after* the network. Fast R-CNN,
# section 5.4 of its paper, found the softmax slightly better, and since then everything is trained at once.)
#
# ## 3  A box for every class
#
# The other sister gives four deltas *for each class*: 4 K numbers, and numbers $4k$ to $4k + 3$ belong to class $k$.
# Which of them count is decided by the class: in training the true one, at test time every class that has a
# sufficient score. The background has four numbers too, which nobody ever looks at.
#
# The deltas are those of notebook 05, but *scaled*: the head's output is divided by the weights
# $(w_x, w_y, w_w, w_h) = (10, 10, 5, 5)$ before it moves the RoI with centre $(x_r, y_r)$ and sides $w_r, h_r$.
#
# $$x = x_r + \frac{d_x}{w_x} w_r, \qquad w = w_r \exp \frac{d_w}{w_w}, \qquad\text{the same for } y, h . \tag{3}$$

# %%
WEIGHTS = box_head.BOX_WEIGHTS

def decode_naive(d, roi, k):
    """Equation (3): deltas (4K,) of one RoI (4,) -> the box of class k (4,)."""
    wr, hr = roi[2] - roi[0], roi[3] - roi[1]
    dx, dy, dw, dh = (d[4 * k + c] / WEIGHTS[c] for c in range(4))
    x, y = (roi[0] + roi[2]) / 2 + dx * wr, (roi[1] + roi[3]) / 2 + dy * hr
    w, h = wr * np.exp(dw), hr * np.exp(dh)
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])

deltas = trace["roi_heads.box_deltas"].astype(float)                  # (R, 4K)
R, K = scores.shape
ours = np.array([[decode_naive(deltas[r], rois[r].astype(float), k) for k in range(K)] for r in range(R)])
boxes = decode_boxes(deltas.reshape(R, K, 4), rois[:, None].astype(float), WEIGHTS)      # (R, K, 4)
print(f"{boxes.shape}: largest difference to nprcnn {np.abs(ours - boxes).max():.0e} pixels")
assert np.abs(ours - boxes).max() < 1e-9

# %%
colours = ("#808080", *(viz.PALETTE[i] for i in (0, 4, 2, 6, 5, 1)))
# for each object: the RoI that the detection came from, if it began with the smallest overlap
worst = min(range(4), key=lambda d: best_iou[result.proposal[d]])
r, label = int(result.proposal[worst]), int(result.labels[worst])
truth = target["boxes"][box_iou(result.boxes[[worst]], target["boxes"])[0].argmax()].astype(float)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.9))
for ax, ks, title in ((axes[0], [label], f"RoI {r}: the box of its class, {names[label]}"),
                      (axes[1], range(1, K), "the boxes of all classes")):
    ax.imshow(255 - (255 - image // 8 * 8) // 2)
    frame(ax, rois[r], "black", ":", label="RoI")
    for k in ks:
        frame(ax, boxes[r, k], colours[k], label=names[k])
    middle, half = (truth[:2] + truth[2:]) / 2, (truth[2:] - truth[:2]).max() * 0.95
    ax.set(title=title, xticks=[], yticks=[], xlim=(middle[0] - half, middle[0] + half),
           ylim=(min(middle[1] + half, height), middle[1] - half))
    ax.spines[:].set_visible(False)
axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)
print(f"IoU with the true box: RoI {box_iou(rois[[r]].astype(float), truth[None])[0, 0]:.2f},",
      ", ".join(f"{names[k]} {box_iou(boxes[r, [k]], truth[None])[0, 0]:.2f}" for k in range(K)))

# %% [markdown]
# The box of the right class fits, and so may those of other classes, more or less: they have learned from RoIs of
# *their* class only. A model may do with one box for all classes ("class-agnostic"); Mask R-CNN has one a class.
#
# **Why 10 and 5?** Smooth L1 and the initial weights know nothing of units: it is best if the numbers to be learned
# are about 1. How large are they? We collect what positive RoIs *should* answer, over 40 training scenes.

# %%
train_source = Shapes(500, seed=0)
wanted, from_anchors = [], []
for i in range(0, 40, 8):
    scenes = [train_source[i + j] for j in range(8)]
    t = nprcnn.Trace()
    model.predict([scene for scene, _ in scenes], trace=t)
    for proposals, (_, scene_target) in zip(t["rpn.proposals"], scenes):
        iou = box_iou(scene_target["boxes"], proposals)
        matched = targets.match(iou, 0.5, 0.5)
        positive = matched >= 0
        wanted.append(encode_boxes(scene_target["boxes"][matched[positive]].astype(float), proposals[positive]))
        anchors = t["rpn.anchors"].astype(float)
        matched = targets.match(box_iou(scene_target["boxes"], t["rpn.anchors"]), 0.7, 0.3, keep_best=True)
        positive = matched >= 0
        from_anchors.append(encode_boxes(scene_target["boxes"][matched[positive]].astype(float), anchors[positive]))
wanted = np.concatenate(wanted)
print(f"{len(wanted)} positive RoIs: standard deviation of the deltas", wanted.std(axis=0).round(3))
print("times (10, 10, 5, 5):                              ", (wanted * WEIGHTS).std(axis=0).round(2))
print("what the RPN's positive anchors should answer:     ", np.concatenate(from_anchors).std(axis=0).round(3))
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharey=True)
for ax, values, title in ((axes[0], wanted, "as they are"), (axes[1], wanted * WEIGHTS, "times (10, 10, 5, 5)")):
    for c, name in ((0, "dx"), (2, "dw")):
        ax.hist(values[:, c], bins=np.linspace(-3, 3, 61), histtype="step", linewidth=1.6, label=name)
    ax.set(title=title, xlabel="delta that leads to the target")
axes[0].set_ylabel("positive RoIs")
axes[1].legend();

# %% [markdown]
# The weights are about one over the standard deviation: 10 for a shift, 5 for a scale. (Fast R-CNN normalised the
# targets to mean 0 and variance 1; these round numbers, of Detectron, are what remained.) The RPN has weights of 1.
# Its anchors do not fit better (last line), so that is a habit and not a necessity.
#
# ## 4  What should it answer? Targets
#
# In training the RoIs are matched with the true boxes, as the anchors were, but more simply (Fast R-CNN, section
# 2.3): **IoU of at least 0.5 is positive**, with the class of its target; all else is background. No rule (i),
# nothing is ignored. A sample is drawn: 512 RoIs an image, at most a quarter positive, in Mask R-CNN; 32 and a half
# here. (Fast R-CNN took as background only what has an IoU of 0.1 or more.) And a trick: the true boxes themselves
# are put among the RoIs. Why that?

# %%
def roi_targets_naive(proposals, target_boxes, target_labels):
    """Label (R + G,) and target (R + G,) of each candidate, before the sampling."""
    candidates = list(proposals) + list(target_boxes)     # the trick
    labels, matched = [], []
    for candidate in candidates:
        overlaps = box_iou(target_boxes, candidate[None])[:, 0]
        best = overlaps.argmax()
        labels.append(target_labels[best] if overlaps[best] >= 0.5 else 0)
        matched.append(best if overlaps[best] >= 0.5 else 0)
    return np.array(labels), np.array(matched)

labels_all, matched_all = roi_targets_naive(rois, target["boxes"], target["labels"])
chosen, labels, matched = targets.roi_targets(
    rois, target["boxes"], target["labels"], np.random.default_rng(3), fg_iou=0.5, bg_iou=0.5,
    size=model.box_batch_size_per_image, positive_fraction=model.box_positive_fraction)
assert np.array_equal(labels, labels_all[chosen]) and np.array_equal(matched, matched_all[chosen])
print(f"{len(labels_all)} candidates, {np.count_nonzero(labels_all)} positive; "
      f"sample of {len(labels)}: {np.count_nonzero(labels)} positive")

untrained = nprcnn.maskrcnn_tiny()                        # random weights
for name, net in (("random weights", untrained), ("trained", model)):
    t, missed, positives, objects = nprcnn.Trace(), 0, 0, 0
    scenes = [train_source[i] for i in range(8)]
    net.predict([scene for scene, _ in scenes], trace=t)
    for proposals, (_, scene_target) in zip(t["rpn.proposals"], scenes):
        iou = box_iou(scene_target["boxes"], proposals)
        missed += (iou.max(axis=1) < 0.5).sum()
        positives += (iou.max(axis=0) >= 0.5).sum()
        objects += len(iou)
    print(f"{name:15} proposals with IoU >= 0.5: {positives / 8:.1f} an image; "
          f"objects without any: {missed} of {objects}")

# %% [markdown]
# In the beginning the RPN knows nothing, and no object has a positive RoI to teach the box head with. The true boxes
# fill that gap. Later they are a few among many.
#
# ## 5  The two losses
#
# Equation (1) of Fast R-CNN, for one RoI with true class $u$:
#
# $$L = L_{cls}(p, u) + \lambda\,[u \ge 1]\, L_{loc}(d^u, v), \qquad L_{cls} = -\log p_u , \tag{4}$$
#
# with $v$ the deltas to its target, times the weights, and $L_{loc}$ smooth L1, $\beta = 1/9$. $[u \ge 1]$: the
# background has no box. Both are summed over the RoIs and divided by **the number of all sampled RoIs**, R; not by
# that of the positives. $\lambda = 1$.

# %%
def smooth_l1(e, beta=1 / 9):
    return e * e / (2 * beta) if abs(e) < beta else abs(e) - beta / 2

def box_losses_naive(logits, deltas, rois, labels, target_boxes):
    """Equation (4), mean over the RoIs: class loss, box loss."""
    R = len(labels)
    class_loss = box_loss = 0.0
    for r in range(R):
        u = labels[r]
        class_loss += -np.log(softmax_naive(logits[r])[u])
        if u >= 1:
            v = encode_boxes(target_boxes[r], rois[r], WEIGHTS)
            for c in range(4):
                box_loss += smooth_l1(deltas[r, 4 * u + c] - v[c])
    return class_loss / R, box_loss / R

student = nprcnn.maskrcnn_tiny(weights="shapes")
training = nprcnn.Trace()
losses, cache = student.losses([image], [target], np.random.default_rng(3), trace=training)
student.zero_grad()
student.backward(cache, training)
labels, matched = cache.decisions.labels[0], cache.decisions.matched[0]
sample = cache.decisions.proposals[0].astype(float)                   # (R, 4)
z, d = training["roi_heads.class_logits"].astype(float), training["roi_heads.box_deltas"].astype(float)
target_boxes = target["boxes"][matched].astype(float)

ours = box_losses_naive(z, d, sample, labels, target_boxes)
theirs = box_head.box_losses(z, d, sample, labels, target_boxes)
for name, a, b in zip(("loss_classifier", "loss_box_reg"), ours, theirs):
    print(f"{name:16} by hand {a:.6f}, difference to nprcnn {abs(a - b):.0e}, the model said {losses[name]:.6f}")
    assert abs(a - b) < 1e-12
print(f"a head that knows nothing pays log K = {np.log(K):.3f} for the class")

# %% [markdown]
# ## 6  Backward
#
# **Class loss.** With $p = \mathrm{softmax}(z)$, $\partial(-\log p_u) / \partial z_k = p_k - [k = u]$: push the true
# class up, all others down by their probability. **Box loss.** As in the RPN, but scattered into the slice of the
# true class:
#
# $$dz_{rk} = \frac{p_{rk} - [k = u_r]}{R}, \qquad
# dd_{r,\,4u + c} = \frac{\mathrm{clip}(e_{rc} / \beta, -1, 1)}{R}, \quad 0 \text{ elsewhere.} \tag{5}$$

# %%
def losses_forward(z, d):
    """The sum of the two losses, for our sample."""
    class_loss, box_loss, library_cache = box_head.box_losses(z, d, sample, labels, target_boxes)
    return class_loss + box_loss, (z, d)

def losses_backward(dy, cache):
    """Equation (5): dz (R, K), dd (R, 4K)."""
    z, d = cache
    R = len(z)
    dz, dd = softmax(z, axis=1), np.zeros_like(d)
    for r in range(R):
        u = labels[r]
        # forward: -log softmax(z)[u] / R, so dz = (p - [k = u]) / R
        dz[r, u] -= 1
        if u >= 1:
            # forward: smooth(d[4u .. 4u+3] - v) / R; the other slices were not looked at
            e = d[r, 4 * u:4 * u + 4] - encode_boxes(target_boxes[r], sample[r], WEIGHTS)
            dd[r, 4 * u:4 * u + 4] = np.clip(e / (1 / 9), -1, 1)
    return dy * dz / R, dy * dd / R

def referee(forward, backward, inputs):
    for row in check_gradients(forward, backward, inputs):
        print(f"{row.argument:26} backward {row.analytic:+.5e}  forward {row.numeric:+.5e}  error {row.relative:.0e}")

referee(losses_forward, losses_backward, (rng.standard_normal(z.shape), rng.standard_normal(d.shape)))
dz, dd = losses_backward(1.0, (z, d))
for name, ours, stage in (("dz", dz, "roi_heads.class_logits"), ("dd", dd, "roi_heads.box_deltas")):
    difference = np.abs(ours - training.grad[stage]).max()
    print(f"{name}: largest difference to the model's gradient {difference:.0e}")
    assert difference < 1e-6
print(f"rows of dz sum to {np.abs(dz.sum(axis=1)).max():.0e}")

# %% [markdown]
# Here are the two gradients as pictures, of the trained head, and of one that still says 0 to everything. A row is a
# RoI, sorted by class; purple numbers will grow at the next step, orange ones shrink.

# %%
order = np.argsort(labels, kind="stable")
figure, axes = plt.subplots(2, 2, figsize=(8.6, 6.2), width_ratios=[1, 3])
for row, (name, logits_now, deltas_now) in enumerate((("trained", z, d), ("all outputs 0", 0 * z, 0 * d))):
    for ax, g, title in zip(axes[row], losses_backward(1.0, (logits_now, deltas_now)), ("dz", "dd")):
        limit = np.abs(g).max()
        drawn = ax.imshow(g[order], cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
        ax.set(title=f"{title}, {name}", yticks=[])
        figure.colorbar(drawn, ax=ax, shrink=0.8)
    axes[row, 0].set(ylabel="RoIs, background first", xticks=range(K))
    axes[row, 0].set_xticklabels(names, rotation=90, fontsize=8)
    axes[row, 1].set(xticks=np.arange(K) * 4 + 1.5)
    axes[row, 1].set_xticklabels(names, fontsize=8)
    for k in range(1, K):
        axes[row, 1].axvline(4 * k - 0.5, color="#cccccc", linewidth=0.7)
print(f"trained: {np.count_nonzero(dd)} of {dd.size} deltas have a gradient, "
      f"4 for each of the {np.count_nonzero(labels)} positives")

# %% [markdown]
# **The head.** Equation (1) backwards. $h_7$ feeds both sisters: fan-out → sum.
#
# $$dh_7 = W_c^\top dz + W_b^\top dd, \quad da_7 = dh_7\,[h_7 > 0], \quad dh_6 = W_7^\top da_7, \quad
# da_6 = dh_6\,[h_6 > 0], \quad dx = W_6^\top da_6 . \tag{6}$$
#
# A weight's gradient is the outer product of what came in and what comes back, summed over the RoIs:
# $dW_7 = da_7^\top h_6$. We write it with plain matrix products and give it to the referee, in a small size; then the
# real one.

# %%
def head_forward(x, w6, b6, w7, b7, wc, bc, wb, bb):
    """x (R, I) -> (logits (R, K), deltas (R, 4K))."""
    h6 = np.maximum(x @ w6.T + b6, 0)
    h7 = np.maximum(h6 @ w7.T + b7, 0)
    return (h7 @ wc.T + bc, h7 @ wb.T + bb), (x, w6, h6, w7, h7, wc, wb)

def head_backward(dy, cache):
    dz, dd = dy
    x, w6, h6, w7, h7, wc, wb = cache
    # forward: z = h7 wc.T + bc, d = h7 wb.T + bb      h7 feeds both: fan-out -> sum
    dh7 = dz @ wc + dd @ wb
    # forward: h7 = relu(h6 w7.T + b7)
    da7 = dh7 * (h7 > 0)
    dh6 = da7 @ w7
    # forward: h6 = relu(x w6.T + b6)
    da6 = dh6 * (h6 > 0)
    return (da6 @ w6, da6.T @ x, da6.sum(axis=0), da7.T @ h6, da7.sum(axis=0),
            dz.T @ h7, dz.sum(axis=0), dd.T @ h7, dd.sum(axis=0))

shapes = (5, 12), (6, 12), (6,), (4, 6), (4,), (3, 4), (3,), (12, 4), (12,)
referee(head_forward, head_backward, [rng.standard_normal(s) for s in shapes])

# %%
inputs = [training["roi_heads.box_features"].reshape(len(labels), -1)] + [p for pair in (
    (layer.weight.data, layer.bias.data) for layer in (student.roi_heads.box_head.fc6, student.roi_heads.box_head.fc7,
     student.roi_heads.box_predictor.cls_score, student.roi_heads.box_predictor.bbox_pred)) for p in pair]
_, head_cache = head_forward(*(a.astype(float) for a in inputs))
gradients = head_backward((dz, dd), head_cache)
theirs = [training.grad["roi_heads.box_features"].reshape(len(labels), -1)] + [
    p.grad for name, p in student.named_parameters() if "box_head" in name or "box_predictor" in name]
for name, ours, model_gradient in zip(("x", "w6", "b6", "w7", "b7", "wc", "bc", "wb", "bb"), gradients, theirs):
    relative = np.abs(ours - model_gradient).max() / np.abs(ours).max()
    print(f"d{name}: norm {np.linalg.norm(ours):.1e}, largest difference to the model, relative {relative:.0e}")
    assert relative < 1e-4                                # the model computed in float32

# %% [markdown]
# ## 7  From the outputs to detections
#
# After training, R RoIs with K scores and K boxes each have to become a short list. Every pair (RoI, class) is a
# candidate:
#
# 1. decode all boxes, clip them to the image;
# 2. drop the background; keep scores above `box_score_thresh` = 0.05;
# 3. NMS with 0.5, **within each class**;
# 4. the best 100.

# %%
def detections_naive(scores, boxes, image_size, score_thresh, nms_thresh, most):
    """scores (R, K), boxes (R, K, 4) -> [(score, class, RoI, box)], best first, and the count after each step."""
    boxes = clip_boxes(boxes, image_size)
    R, K = scores.shape
    candidates = [(scores[r, k], k, r) for r in range(R) for k in range(1, K) if scores[r, k] > score_thresh]
    kept = []
    for k in range(1, K):
        mine = sorted((c for c in candidates if c[1] == k), reverse=True)
        while mine:
            best = mine.pop(0)
            kept.append(best)
            mine = [c for c in mine if box_iou(boxes[c[2], k][None], boxes[best[2], k][None])[0, 0] <= nms_thresh]
    kept = sorted(kept, reverse=True)[:most]
    return [(s, k, r, boxes[r, k]) for s, k, r in kept], (R * (K - 1), len(candidates), len(kept))

settings = model.box_score_thresh, model.box_nms_thresh, model.box_detections_per_img
found, counts = detections_naive(scores, boxes, (height, width), *settings)
b, l, s, p = filter_detections(logits, deltas, rois.astype(float), (height, width), *settings)
assert np.array_equal([k for _, k, _, _ in found], l) and np.array_equal([r for _, _, r, _ in found], p)
assert np.abs(np.array([box for *_, box in found]) - b).max() < 1e-9
assert np.array_equal(l, result.labels) and np.abs(b - trace["detections.boxes"][0]).max() < 1e-3
print(f"{counts[0]} candidates -> {counts[1]} with a score above {settings[0]} -> {counts[2]} after NMS")
for score, k, r, box in found:
    overlap = box_iou(box[None], target["boxes"].astype(float))[0]
    print(f"  {names[k]:9} {score:.2f}  RoI {r:2}  IoU with the nearest object {overlap.max():.2f}"
          f" (a {names[target['labels'][overlap.argmax()]]})")

# %% [markdown]
# The list ends with **ghosts**: low scores, most of them on objects that are already found. They are second opinions:
# NMS works within a class, so a "square" on top of the circle is not the circle's business. Thresholds decide whether
# we see them. Which one is right?

# %%
listed = [f"{k}: {names[label]} {score:.2f}" for k, (label, score) in enumerate(zip(result.labels, result.scores))]
print("\n".join("   ".join(f"{text:18}" for text in listed[k:k + 4]).rstrip() for k in range(0, len(listed), 4)))
panels, axes = viz.image_panels(3, width, height, side=256)
for ax, threshold in zip(axes, (0.05, 0.3, 0.7)):
    keep = np.flatnonzero(result.scores >= threshold)
    viz.draw_detections(image // 8 * 8, ax=ax, title=f"score at least {threshold}: {len(keep)}")
    colours = [viz.PALETTE[label - 1] for label in result.labels[keep]]
    for box, colour in zip(result.boxes[keep], colours):
        viz.rectangle(ax, box, colour, 1.5)
    viz.write_labels(ax, result.boxes[keep], list(map(str, keep)), colours)
panels

# %%
counted = []                                              # (score, right?) of the detections of 24 scenes
objects = 0
for start in range(0, 24, 8):
    scenes = [source[i] for i in range(start, start + 8)]
    for one, (_, t) in zip(model.predict([scene for scene, _ in scenes]), scenes):
        free = np.ones(len(t["labels"]), bool)
        objects += len(free)
        for box, label, score in zip(one.boxes, one.labels, one.scores):
            iou = box_iou(box[None], t["boxes"])[0] * free * (t["labels"] == label)
            right = iou.max() >= 0.5
            if right:
                free[iou.argmax()] = False
            counted.append((score, right))
score, right = np.array(counted).T
thresholds = np.linspace(0.05, 0.99, 95)
precision = [right[score >= t].mean() for t in thresholds]
recall = [right[score >= t].sum() / objects for t in thresholds]
figure, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(thresholds, recall, label="recall: objects that are found")
ax.plot(thresholds, precision, label="precision: detections that are right")
ax.set(xlabel="score threshold", ylabel="share", ylim=(0, 1.05), xlim=(0, 1))
ax.legend(loc="lower center")
for t in (0.05, 0.3, 0.7):
    above = right[score >= t]
    print(f"score >= {t}: {len(above)} detections of {objects} objects, precision {above.mean():.2f}, "
          f"recall {above.sum() / objects:.2f}")

# %% [markdown]
# From 0.05 to 0.7 the recall stays, and the ghosts go. The metric that models are compared with, AP (notebook 13),
# sorts by score and forgives ghosts with low scores: for it 0.05 is right. To *look at* the result, 0.5 or 0.7 is
# better.
#
# ## 8  What is the second stage good for?
#
# The RPN's boxes were not bad. How much better are the box head's? For each object of the 24 scenes we take the
# detection that fits it best, and the proposal that it came from.

# %%
before, after = [], []
for i in range(24):
    scene, t = source[i]
    tr = nprcnn.Trace()
    one = model.predict(scene, trace=tr)
    iou = box_iou(t["boxes"], one.boxes) * (t["labels"][:, None] == one.labels)
    for g in range(len(iou)):
        if len(one.labels) and iou[g].max() >= 0.5:
            best = iou[g].argmax()
            after.append(iou[g, best])
            before.append(box_iou(t["boxes"][[g]], tr["rpn.proposals"][0][[one.proposal[best]]])[0, 0])
before, after = np.array(before), np.array(after)
figure, ax = plt.subplots(figsize=(3.8, 3.6))
ax.plot([0.4, 1], [0.4, 1], color="#808080", linestyle=":")
ax.plot(before, after, "o", markersize=4)
ax.set(xlabel="IoU of the proposal", ylabel="IoU of the detection", xlim=(0.4, 1.01), ylim=(0.4, 1.01),
       aspect="equal")
better = np.mean(after > before)
print(f"{len(before)} objects: mean IoU {before.mean():.2f} -> {after.mean():.2f}; better for {better:.0%}")

# %% [markdown]
# The head moves nearly every box in the right direction. It could do so again: Cascade R-CNN (arXiv 1712.00726) has
# three box heads in a row.
#
# ## Exercises
#
# Solutions are in `solutions/09_solutions.ipynb`.
#
# ### Exercise 1: pick the boxes
#
# RoIs (R, 4), the head's deltas (R, 4 K), and a class for each RoI, `labels` (R,). Return the boxes (R, 4): of each
# RoI the one of its class, by equation (3), with any `weights`. No loop over the RoIs, and do not call
# `decode_boxes`.
#
# <details><summary>Hint 1</summary>deltas.reshape(R, K, 4) puts the classes on an axis of their own.</details>
# <details><summary>Hint 2</summary>Two index arrays pick one row of each RoI: d[np.arange(R), labels] is (R, 4).</details>
# <details><summary>Hint 3</summary>Divide by the weights before anything else. Then sides = rois[:, 2:] − rois[:, :2], centres = rois[:, :2] + sides / 2, and x and y can be done at once.</details>

# %%
def pick_boxes(rois, deltas, labels, weights):
    R = len(rois)
    ...                                                   # your code; return boxes (R, 4)

check_pick_boxes(pick_boxes)

# %% [markdown]
# ### Exercise 2: the losses, backward, without loops
#
# Equation (5), for any sample. The targets are given already as deltas: `wanted` (R, 4), of which the rows of
# background RoIs mean nothing. `dclass` and `dbox` are the gradients of the two losses, two numbers.
#
# <details><summary>Hint 1</summary>softmax(z, axis=1) makes a new array: you may write into it. Which R of its numbers get a −1?</details>
# <details><summary>Hint 2</summary>positive = np.flatnonzero(labels > 0). In dd, seen as (R, K, 4), the index (positive, labels[positive]) is the slice to fill.</details>
# <details><summary>Hint 3</summary>Both losses were divided by R = len(labels), the box loss too. It is not the number of positives.</details>

# %%
def sample_losses_forward(z, d, labels, wanted, beta):
    """z (R, K), d (R, 4K), labels (R,), wanted (R, 4) -> (class loss, box loss), cache."""
    R, K = z.shape
    class_loss = -np.log(softmax(z, axis=1)[np.arange(R), labels]).sum() / R
    positive = np.flatnonzero(labels > 0)
    e = np.abs(d.reshape(R, K, 4)[positive, labels[positive]] - wanted[positive])
    box_loss = np.where(e < beta, e * e / (2 * beta), e - beta / 2).sum() / R
    return (class_loss, box_loss), (z, d, labels, wanted, beta)

def sample_losses_backward(dy, cache):
    dclass, dbox = dy
    z, d, labels, wanted, beta = cache
    ...                                                   # your code; return dz (R, K), dd (R, 4K)

check_sample_losses_backward(sample_losses_backward)

# %% [markdown]
# ### Exercise 3: find the bug
#
# The head of section 6, without biases. Its backward has **one wrong line**. Read the report: which gradients are
# right, and what does that say about the place?
#
# <details><summary>Hint 1</summary>dw7, dwc and dwb are right, so everything down to da7 is. What is computed after that?</details>
# <details><summary>Hint 2</summary>All hidden layers have the same size here, so shapes do not help. In which of the remaining lines could one array stand for another of the same shape?</details>
# <details><summary>Hint 3</summary>Each ReLU has its own gate: where its own output is positive.</details>

# %%
def small_head_forward(x, w6, w7, wc, wb):
    """x (R, I), w6 (D, I), w7 (D, D), wc (K, D), wb (4K, D) -> (R, K), (R, 4K)."""
    h6 = np.maximum(x @ w6.T, 0)
    h7 = np.maximum(h6 @ w7.T, 0)
    return (h7 @ wc.T, h7 @ wb.T), (x, w6, h6, w7, h7, wc, wb)

def buggy_backward(dy, cache):
    dz, dd = dy
    x, w6, h6, w7, h7, wc, wb = cache
    dh7 = dz @ wc + dd @ wb
    da7 = dh7 * (h7 > 0)
    dh6 = da7 @ w7
    da6 = dh6 * (h7 > 0)
    return da6 @ w6, da6.T @ x, da7.T @ h6, dz.T @ h7, dd.T @ h7

rng = np.random.default_rng(1)
inputs = [rng.standard_normal(s) for s in ((6, 9), (5, 9), (5, 5), (3, 5), (12, 5))]
try:
    check_gradients(small_head_forward, buggy_backward, inputs)
except GradientCheckError as error:
    for row in error.rows:
        print(f"{row.argument:24} relative error {row.relative:.0e}   {row.problem or 'right'}")

# %%
def small_head_backward(dy, cache):
    dz, dd = dy
    x, w6, h6, w7, h7, wc, wb = cache
    ...                                                   # the mended backward; return dx, dw6, dw7, dwc, dwb

check_small_head_backward(small_head_backward)

# %% [markdown]
# ## Summary
#
# - fc6 and fc7 make one vector of a RoI's 7 x 7 crop; two sisters make K logits and 4 K deltas of it.
# - Softmax: the classes, background among them, compete for a RoI.
# - Deltas 4k to 4k + 3 move the box of class k. They are divided by (10, 10, 5, 5), which makes what is to be learned
#   about 1 in size.
# - RoIs with an IoU of 0.5 are positive; the true boxes are put among them, for the first steps.
# - Class loss: mean cross-entropy of all RoIs. Box loss: smooth L1 of the positives, on the true class's slice; both
#   over the number of sampled RoIs.
# - Backward: $(p - [k = u]) / R$, and a scatter of clip$(e / \beta) / R$; the sisters' gradients add up.
# - Detections: every (RoI, class) pair above 0.05, NMS within a class, the best 100. Ghosts are mostly other
#   classes' opinions of objects that are found already.
#
# **Read next.** In this course: [10 The mask head](10_the_mask_head.ipynb). In the code: `nprcnn/models/box_head.py`,
# `nprcnn/models/postprocess.py`, `roi_targets` in `nprcnn/models/targets.py`. Elsewhere: Girshick, *Fast R-CNN*,
# arXiv 1504.08083, sections 2 and 4; Cai and Vasconcelos, *Cascade R-CNN*, arXiv 1712.00726.
