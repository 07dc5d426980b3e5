# %% [markdown]
# # 18  The same numbers
#
# You have stepped through every stage of a Mask R-CNN. Is it *the* Mask R-CNN, the one that people use? There is a
# hard way to answer: give this program and another one the same weights and the same image, and compare every tensor
# on the way. Not "the boxes look alike", but the same numbers.
#
# Here the other program is torchvision. Its tensors are stored in a file beside this notebook, so nothing has to be
# installed. On the way you learn a craft that is useful far beyond this course: how to find the one wrong line in a
# network of forty stages, in a minute. And you meet a case where two correct programs *cannot* agree.
#
# **You need:** notebooks [00](00_the_whole_picture.ipynb) (the stages) and [01](01_what_a_backward_pass_is.ipynb)
# (gradients). **You will be able to:** compare two networks stage by stage, tell rounding from a bug, find a planted
# difference with `nprcnn compare`, and say when float32 is the wrong witness. About 75 minutes with the exercises.
#
# ## Where we are
#
# Everywhere: each box of the figure is compared.

# %%
import time
import zlib

import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import backend, course
from nprcnn.compare import compare_traces, differing_parameters, explain, first_difference, format_rows
from nprcnn.course.parity import check_background_first, check_pair_boxes, check_stage_errors
from nprcnn.data.shapes import Shapes
from nprcnn.models.resnet import Bottleneck
from nprcnn.ops.conv import conv2d, conv2d_backward, conv2d_forward, conv2d_grad_x
from nprcnn.ops.norm import batch_norm_backward, batch_norm_forward
from nprcnn.stage_files import load_stages

nprcnn.use("numpy")                                       # the reference functions: one way of adding up, everywhere
course.style()
course.where_we_are("image", "resnet", "fpn", "rpn", "roi_align", "box_head", "mask_head", "losses")

# %% [markdown]
# ## 1  Four reasons to differ
#
# Two programs with the same architecture give different numbers. There are only four possible reasons:
#
# | reason | example | how it shows |
# |---|---|---|
# | other **weights** | one tensor was not loaded | one stage jumps, and all behind it |
# | another **convention** | BGR instead of RGB, anchors moved by half a cell | the same |
# | a **bug** | a swapped height and width | the same |
# | **rounding** | sums added up in another order | nothing jumps; it grows slowly from 1e-16 or 1e-7 |
#
# The first three look alike, and that is good: one tool finds them all. The fourth must be told apart from them, and
# for this we have two kinds of numbers. A float64 has 53 bits, so one operation is wrong by at most 1.1e-16 of its
# result. A float32 has 24 bits, 6e-8. **Rounding errors shrink by nine digits when you go from float32 to float64.
# Bugs stay.**

# %%
for kind in (np.float32, np.float64):
    total = kind(0)
    for _ in range(1000):
        total += kind(0.1)
    print(f"{kind.__name__}: half a unit in the last place of 1 is {np.finfo(kind).eps / 2:.1e};  "
          f"a thousand times 0.1 is 100 {float(total) - 100:+.1e}")
terms = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
print("1000 float32 numbers, first to last and last to first: they differ by",
      f"{abs(float(np.cumsum(terms)[-1]) - float(np.cumsum(terms[::-1])[-1])):.1e}")

# %% [markdown]
# Addition of floating-point numbers is not associative: the order of a sum changes its last digits. No two programs
# add up a convolution in the same order (blocks, vector units, threads), so *equal to the last bit* is not to be had.
# We measure a distance instead. For a tensor $a$ and the reference $b$:
#
# $$ \mathrm{error} = \frac{\max |a - b|}{\max |b|} \tag{1} $$
#
# The maximum, because one wrong number in a million must not hide in a mean. Divided by the largest number of the
# *whole* tensor: next to a large number, a small one is the sum of large terms that cancel, and its last digits mean
# nothing.
#
# ## 2  The same weights, without a file
#
# To compare, both programs need the same weights. A file of 178 MB is no good for a notebook. But a test does not need
# *trained* weights: any will do, as long as they are the same, and as long as no stage becomes dull (all zeros, no
# boxes). So we draw them, and the **name** of each tensor is the seed: `crc32("rpn.head.cls_logits.weight")`. Whoever
# knows the names knows the numbers. NumPy has promised never to change `RandomState`'s stream, so they are the same
# on every machine and in ten years.

# %%
GAINS = {"layer_blocks.1": 1.8, "layer_blocks.2": 4.0, "layer_blocks.3": 7.0, "cls_score": 1.5}

def draw(name, shape):
    """The float32 tensor of this name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif name.endswith(("running_mean", "bias")):
        z = 0.1 * z
    elif z.ndim == 1:                                     # the weight of a norm
        z = 1 + 0.2 * z
    else:
        z = z - z.mean(axis=tuple(range(1, z.ndim)), keepdims=True)
        z = z * next((gain for part, gain in GAINS.items() if part in name), 1.0) * np.sqrt(2 / np.prod(shape[1:]))
    return z.astype(np.float32)

print(draw("rpn.head.cls_logits.bias", (3,)), " the same on your machine")

# %% [markdown]
# Two of these lines are there to keep the network *alive*. Each filter sums to zero: behind a ReLU all channels have a
# positive mean, and a random filter would see little else. And `GAINS` makes the coarse levels speak up, so that RoIs
# of several sizes survive NMS. A reference with no detections would prove nothing about the mask head.
#
# The model is a narrow one: a ResNet of one block a stage, 6 to 48 channels, a pyramid of 8. The names of its tensors
# are torchvision's, so torchvision's model of the same shape draws the same weights.

# %%
SETTINGS = dict(
    num_classes=4, width=6, blocks=(1, 1, 1, 1), norm="frozen", fpn_channels=8, box_hidden=16, mask_channels=(8, 8),
    anchor_sizes=((12,), (24,), (48,), (96,), (192,)), canonical_size=40, min_size=64, max_size=96,
    rpn_pre_nms_top_n_test=60, rpn_post_nms_top_n_test=20, box_score_thresh=0.05, box_detections_per_img=5)

def build(dtype=np.float64):
    model = nprcnn.maskrcnn_tiny(**SETTINGS).astype(dtype)
    model.load_state_dict({name: draw(name, tensor.shape) for name, tensor in model.state_dict().items()})
    return model

model = build()
state = model.state_dict()
print(f"{len(state)} tensors, {sum(tensor.size for tensor in state.values()):,} numbers. Some of them:")
for name in list(state)[::14]:
    print(f"  {name:48} {state[name].shape}")

# %% [markdown]
# ## 3  The other program's tensors
#
# `same_numbers.npz` was written by a script that uses torchvision 0.29
# ([tests/reference/make_same_numbers.py](../tests/reference/make_same_numbers.py)). It builds torchvision's Mask R-CNN
# in this shape, loads the weights by name, attaches a hook to every stage (a function that PyTorch calls with the stage's
# output), and runs one of our built-in scenes through
# it, in float64. The stages are stored under the names of `nprcnn.trace`.

# %%
theirs = load_stages("same_numbers.npz")
image = Shapes(1, seed=18, size=(48, 64))[0][0]           # built in, and the same on every machine
for name in ("transform.batch", "backbone.stem", "fpn.p2", "rpn.logits.p2", "rpn.anchors", "rpn.proposals",
             "roi_heads.box_features", "roi_heads.class_logits", "detections.boxes", "roi_heads.mask_logits"):
    value = theirs[name]
    print(f"{name:24} {[v.shape for v in value] if isinstance(value, list) else value.shape}")
print(f"... {len(theirs)} stages in all")

# %% [markdown]
# ## 4  Stage by stage
#
# Now ours, in float64, with a trace. First the very beginning: the image is normalised, resized from 48 x 64 to 64 x 85
# and padded to 64 x 96.

# %%
ours = nprcnn.Trace()
result = model.predict(image, trace=ours)

def error(a, b):
    """Equation (1)."""
    return np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()

def beside(name, channel, title):
    """One channel of a stage: ours, theirs, and the difference in units of 1e-16."""
    a, b = ours[name][0, channel], theirs[name][0, channel]
    limit = np.abs(b).max()
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.1))
    for ax, values, text in zip(axes, (a, b), ("nprcnn", "torchvision")):
        ax.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit)
        ax.set(title=f"{title}: {text}", xticks=[], yticks=[])
    units = (a - b) / 1e-16
    shown = axes[2].imshow(units, cmap="PuOr_r", vmin=-max(np.abs(units).max(), 1), vmax=max(np.abs(units).max(), 1))
    axes[2].set(title="difference / 1e-16", xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes[2], shrink=0.9)

beside("transform.batch", 0, "red channel")
print(f"error {error(ours['transform.batch'], theirs['transform.batch']):.0e}")

# %% [markdown]
# The eye sees no difference, and the third picture shows why: it is a few units of 1e-16, here up, there down, and
# larger where the numbers themselves are large. That is what rounding looks like. A bug has another pattern: a border, a
# stripe, all of one sign. It is worth looking at differences as pictures.
#
# Next the backbone: stem, then C2 to C5. Every convolution is a sum of up to a few hundred products.

# %%
for name in ("backbone.stem", "backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4"):
    print(f"{name:18} {str(ours[name].shape):17} error {error(ours[name], theirs[name]):.0e}")
    assert error(ours[name], theirs[name]) < 1e-9
beside("backbone.layer1", 4, "C2, channel 4")

# %% [markdown]
# The pyramid and the RPN's head: five levels each.

# %%
print("level   pyramid    RPN logits  RPN deltas")
for level in ("p2", "p3", "p4", "p5", "p6"):
    errors = [error(ours[f"{part}.{level}"], theirs[f"{part}.{level}"]) for part in ("fpn", "rpn.logits", "rpn.deltas")]
    print(f"{level}      " + "     ".join(f"{e:.0e}" for e in errors))
    assert max(errors) < 1e-9

# %% [markdown]
# Then the anchors. They are not computed from the image, only from its size, and torchvision rounds them to whole
# pixels. Here *equal* means equal:

# %%
print("anchors:", ours["rpn.anchors"].shape, " all equal:", np.array_equal(ours["rpn.anchors"], theirs["rpn.anchors"]))
print("of the first cell:", *ours["rpn.anchors"][:3].astype(int).tolist())

# %% [markdown]
# ## 5  Decisions
#
# Up to here every stage is a *smooth* function of the one before: a small error makes a small error. Now the network
# decides. Top-k keeps or drops a box, NMS keeps or drops a box, and sorting puts one before the other. A decision can
# turn on the last bit: when two scores differ by 1e-8, float32 may swap them. Then **every row of every later tensor is
# in another place**, and a comparison row by row cries murder where nothing happened.
#
# Let us provoke it. We take our own proposals, swap two of them (with all that belongs to them), and compare.

# %%
order = np.arange(20)
order[[3, 4]] = order[[4, 3]]
print("the box head's features, row by row:  error",
      f"{error(ours['roi_heads.box_features'][order], theirs['roi_heads.box_features']):.1f}")
swapped = {name: [ours[name][0][order]] if isinstance(ours[name], list) else ours[name][order]
           for name in ("rpn.proposals", "rpn.proposal_scores", "roi_heads.box_features", "roi_heads.class_logits")}
print(format_rows(compare_traces(swapped, theirs)))

# %% [markdown]
# `compare_traces` treats boxes as **sets**. Each box of $a$ is paired with the box of $b$ that is the same up to the
# tolerance, and from there on rows are compared in pairs. If a box has no partner, the sets differ, the stage *parts*,
# and later stages are compared on the boxes that both have. (Exercise 2 is this pairing.)
#
# Here is the whole table, in float64, with a tolerance of 1e-9:

# %%
rows = compare_traces(ours, theirs, tolerance=1e-9)
print(format_rows(rows))
assert first_difference(rows) is None

# %% [markdown]
# 35 stages, from the pixels to the masks, and not one error above 1e-13. **What you stepped through in this course is
# the real thing.**
#
# (You may ask whether the narrow model proves much. The project's tests do the same with the full ResNet-50 model, 91
# classes, on photos, and with all gradients: `tests/reference/make_parity.py`.)
#
# ## 6  The same in float32
#
# In practice nobody predicts in float64. How far apart may two *correct* programs be in float32? There is a fair way to
# set the limit: **ask the reference how far it is from itself.** The file also holds how far torchvision in float32 is
# from torchvision in float64.

# %%
single = nprcnn.Trace()
build(np.float32).predict(image, trace=single)
rows32 = compare_traces(single, theirs)
archive = np.load("same_numbers.npz")
theirs32 = dict(zip(archive["float32.stages"].tolist(), archive["float32.errors"]))     # crc32 of the name -> error
names = [row.name for row in rows32 if row.error > 0 and zlib.crc32(row.name.encode()) in theirs32]

by_name = {row.name: row.error for row in rows}
by_name32 = {row.name: row.error for row in rows32}
figure, ax = plt.subplots(figsize=(9, 4.2))
place = np.arange(len(names))
ax.semilogy(place, [by_name32[name] for name in names], "o", label="nprcnn in float32")
ax.semilogy(place, [theirs32[zlib.crc32(name.encode())] for name in names], "x", label="torchvision in float32")
ax.semilogy(place, [max(by_name[name], 1e-17) for name in names], "s", color=course.GREEN, label="nprcnn in float64")
ax.axhline(1e-4, color="black", linewidth=0.8, linestyle=":")
ax.text(len(names) - 0.5, 1.3e-4, "the default tolerance", ha="right", va="bottom", fontsize=8)
ax.set(ylabel="error to torchvision in float64", ylim=(1e-17, 2e-3), title="two orders of adding up, two precisions")
ax.set_xticks(place, names, rotation=90, fontsize=7)
ax.legend(ncols=3, loc="center", bbox_to_anchor=(0.5, 0.42));

# %% [markdown]
# Blue and orange lie together: in float32 we are as far from the truth as torchvision is. (In the last stages ours are a
# few times larger. The masks are cut from the final boxes, whose last digits were rounded otherwise.) Green lies nine
# digits below: nothing but rounding is left. A float32 error of 1e-5 *might* hide a small bug. The green dots say that it does
# not. That is the whole method: **compare in float64 to find bugs, and in float32 to see what users will see.**
#
# ## 7  Find the difference
#
# Now we break things, one at a time, as they break in real life, and look where the numbers part.

# %%
def shift_anchors(model):                                 # centre of the cell instead of its corner
    model.anchor_generator.cells = [cell + 2 for cell in model.anchor_generator.cells]

def scale_one_tensor(model):                              # one tensor is slightly wrong
    model.backbone.body.layer3[0].conv2.weight.data *= 1.01

def half_pixel(model):                                    # RoIAlign's other convention
    model.box_features.aligned = model.mask_features.aligned = True

def wrong_flatten(model):                                 # (H, W, C) before the fully connected layer, not (C, H, W)
    weight = model.roi_heads.box_head.fc6.weight
    weight.data = weight.data.reshape(16, 8, 7, 7).transpose(0, 2, 3, 1).reshape(16, -1)

def background_last(model):                               # Detectron2's order of classes
    for tensor in (model.roi_heads.box_predictor.cls_score.weight, model.roi_heads.box_predictor.cls_score.bias):
        tensor.data = np.roll(tensor.data, -1, axis=0)

def bgr(model):
    model.channel_order = "bgr"

def other_eps(model):                                     # TensorFlow's default in batch norm
    for norm in (model.backbone.body.bn1, *(block[0].bn1 for block in (model.backbone.body.layer1,
                                                                       model.backbone.body.layer2))):
        norm.eps = 1e-3

def other_nms(model):
    model.rpn_nms_thresh = 0.5                            # 0.7 is right

BUGS = [bgr, other_eps, scale_one_tensor, shift_anchors, other_nms, half_pixel, wrong_flatten, background_last]

# %% [markdown]
# For each bug one run and one comparison. Bright is rounding, dark is wrong. The first column where a row gets dark is
# where to look.

# %%
fingerprints = {}
for bug in BUGS:
    broken = build()
    bug(broken)
    trace = nprcnn.Trace()
    broken.predict(image, trace=trace)
    fingerprints[bug.__name__] = compare_traces(trace, theirs, tolerance=1e-9)

stages = [row.name for row in rows if not row.name.startswith("detections.l")]
table = np.array([[np.nan if "no box" in row.note else min(row.error, 10) for row in found if row.name in stages]
                  for found in fingerprints.values()])
figure, ax = plt.subplots(figsize=(9, 4.4))
ax.set_facecolor("#bbbbbb")
shown = ax.imshow(np.log10(table + 1e-17), cmap="magma_r", vmin=-16, vmax=0, aspect="auto")
for k, found in enumerate(fingerprints.values()):
    ax.plot(stages.index(first_difference(found).name), k, "o", color="white", markeredgecolor="black")
ax.set_xticks(range(len(stages)), stages, rotation=90, fontsize=7)
ax.set_yticks(range(len(BUGS)), [name.replace("_", " ") for name in fingerprints])
ax.spines[:].set_visible(False)
figure.colorbar(shown, ax=ax, label="log10 of the error", shrink=0.8)
ax.set_title("eight bugs and where they begin (dot); grey: no box in common, nothing to compare");

# %% [markdown]
# Every bug has its own beginning. What comes behind it is wrong as well, or cannot be compared, because there are other
# boxes. That is why the **first** difference counts. Look at a few rows:
#
# - *shift anchors*: the RPN's outputs are right, the anchors are not. Without the stages one would have searched the
#   RPN's weights.
# - *half pixel* and *wrong flatten* both damage the boxes. One begins at `box_features`, the other one stage later, at
#   `box_hidden`. So the first is RoIAlign, and the second is the layer behind it.
# - *other nms* keeps other boxes. But on those that both have, all later numbers are right: the heads are innocent.
# - *background last* leaves all of the first stage intact, and every box as well, until the class is read off.
#
# ### A mystery
#
# `compare` also reads the two state dicts. In the next cell somebody has changed something in a model. Who was it?

# %%
suspect = build()
secret = list(suspect.state_dict())[zlib.crc32(b"mystery") % len(suspect.state_dict())]
dict(suspect.named_tensors())[secret].data *= 1.001

trace = nprcnn.Trace()
suspect.predict(image, trace=trace)
found = compare_traces(trace, theirs, tolerance=1e-9)
print(explain(found, suspect, model))

# %% [markdown]
# On the command line it is one line, for two files of weights, or for one file and stored stages. `--save` writes
# such stages, and any program can write them: an .npz with the names of `nprcnn.trace.NAMES`.
#
# ```
# nprcnn compare mine.safetensors theirs.pth --image photo.jpg
# nprcnn compare mine.safetensors --save stages.npz
# nprcnn compare mine.safetensors stages.npz --dtype float64
# ```
#
# **When no parameter differs** and the stages still part, it is a setting or the code. The usual suspects, in the order
# of the stages: channel order, mean and scale of the image; how the size is rounded; `eps` of the norms (two of
# torchvision's files want 0); the stride in the 1x1 or the 3x3 convolution; anchors; RoIAlign's half pixel; the order
# of the classes; the pasting of the masks. Detectron2 has *all* of these otherwise: `conventions="detectron2"`.
#
# ## 8  Where two correct programs cannot agree
#
# So much for predictions. Training is another matter: there is a case in which torchvision in float32 does not even
# agree with *itself*. The file holds this experiment, too: the gradients of torchvision's ResNet-50, once with oneDNN's
# convolutions and once with PyTorch's own. Same weights, same image, same float32.

# %%
for kind in ("batch", "frozen"):
    e = archive[f"itself.{kind}"]
    flipped, total = archive[f"itself.{kind}.gates"]
    print(f"{kind:6} norm: |a - b| / |b| of a gradient: median {np.median(e):.0e}, worst {e.max():.0e};  "
          f"ReLU gates that differ: {flipped} of {total:,}")

# %% [markdown]
# With batch norm in training mode the two gradients differ by **percents**. Neither is wrong. If your own gradient
# differs from torchvision's by 4 %, what do you know? Nothing. So we must understand where this comes from.
#
# ### Two algorithms for one convolution
#
# We need a second convolution that is just as right. Nothing easier: $\sum_c w_c x_c$ is the same sum when the channels
# are turned round, and only the order of adding up changes.

# %%
def conv2d_reversed(x, w, b=None, *rest, **knobs):
    """conv2d, which adds up the input channels from the last to the first."""
    return conv2d(np.ascontiguousarray(x[:, ::-1]), np.ascontiguousarray(w[:, ::-1]), b, *rest, **knobs)

def conv2d_grad_x_reversed(dy, w, *rest, **knobs):
    """conv2d_grad_x sums over the output channels: from the last to the first."""
    return conv2d_grad_x(np.ascontiguousarray(dy[:, ::-1]), np.ascontiguousarray(w[::-1]), *rest, **knobs)

rng = np.random.default_rng(0)
x, w = rng.standard_normal((2, 16, 8, 8)), rng.standard_normal((16, 16, 3, 3)) * np.sqrt(2 / 144)
for dtype in (np.float32, np.float64):
    a, b = (f(x.astype(dtype), w.astype(dtype), None, 1, 1) for f in (conv2d_reversed, conv2d))
    print(f"one convolution in {dtype.__name__}: error {error(a, b):.0e}")

# %% [markdown]
# One layer: harmless. Now a chain of forty-eight: convolution, batch norm, ReLU, again and again. `run` goes forward
# and backward through it and keeps three things of every layer: the output, the gradient of the filters, and the
# **gates**, that is, which numbers passed the ReLU.

# %%
def run(depth, dtype, reverse):
    """Forward and backward through `depth` layers. Returns outputs, filter gradients and gates, a list each."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 2, 16, 8, 8)).astype(dtype)
    weights = [(rng.standard_normal((16, 16, 3, 3)) * np.sqrt(2 / 144)).astype(dtype) for _ in range(depth)]
    one, zero = np.ones(16, dtype), np.zeros(16, dtype)
    order = slice(None, None, -1 if reverse else 1)
    caches, outputs, gates, gradients = [], [], [], []
    for w in weights:
        z, conv_cache = conv2d_forward(np.ascontiguousarray(x[:, order]), np.ascontiguousarray(w[:, order]), None, 1, 1)
        n, norm_cache, _ = batch_norm_forward(z, one, zero, zero, one, train=True)
        x = np.maximum(n, 0)
        outputs.append(x)
        gates.append(n > 0)
        caches.append((conv_cache, norm_cache))
    for (conv_cache, norm_cache), gate in zip(reversed(caches), reversed(gates)):
        dz, _, _ = batch_norm_backward(dy * gate, norm_cache)
        dy, dw, _ = conv2d_backward(dz, conv_cache)
        dy, dw = dy[:, order], dw[:, order]
        gradients.append(dw)
    return outputs, gradients[::-1], gates

def distance(a, b):
    """|a - b| / |b|, lengths of the whole arrays."""
    return np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(b.astype(np.float64))

DEPTH = 48
chains = {dtype: [run(DEPTH, dtype, reverse) for reverse in (True, False)] for dtype in (np.float32, np.float64)}
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for dtype, colour in ((np.float32, course.FORWARD), (np.float64, course.GREEN)):
    (out_a, grad_a, gates_a), (out_b, grad_b, gates_b) = chains[dtype]
    forward = [distance(a, b) for a, b in zip(out_a, out_b)]
    axes[0].semilogy(range(1, DEPTH + 1), forward, color=colour, label=dtype.__name__)
    axes[1].semilogy(range(1, DEPTH + 1), [distance(a, b) for a, b in zip(grad_a, grad_b)], color=colour, label=dtype.__name__)
    flips = sum(int((a != b).sum()) for a, b in zip(gates_a, gates_b))
    growth = (forward[-1] / forward[3]) ** (1 / (DEPTH - 4))
    print(f"{dtype.__name__}: forward error {forward[0]:.0e} after 1 layer, {forward[-1]:.0e} after {DEPTH}: times {growth:.2f} a layer;  "
          f"gates that differ: {flips} of {sum(g.size for g in gates_a):,}")
axes[0].set(title="forward: the outputs", xlabel="layer", ylabel="|a - b| / |b|")
axes[1].set(title="backward: the filters' gradients", xlabel="layer")
axes[0].legend(loc="center right");

# %% [markdown]
# Two things happen.
#
# **Rounding grows like compound interest.** On the left both lines rise with the same slope, about a fifth more with
# every layer. Batch norm takes away what all pixels of a channel have in common (the mean) and blows up the rest to
# size 1. What is left are the differences between pixels, and the rounding error is one of them. After 48 layers it is
# about ten thousand times as large.
#
# **Then gates flip.** When a number in front of a ReLU is closer to 0 than the error, its sign is a matter of chance.
# Forward, that is harmless: 0 and 1e-4 are nearly the same. Backward it is not: the gate is 0 or 1, and a whole
# gradient passes or does not. In float32 a handful of gates among a hundred thousand flip, and the gradients of *all*
# layers before them differ by percents. In float64 the error is nine digits smaller, and no number is that close to 0.
# So on the right the two lines are more than ten digits apart.
#
# ### In the detector
#
# The same in a whole Mask R-CNN with the blocks of ResNet-50 (narrow, random weights, one training step on two scenes).
# `backend.KERNEL_SETS` lets us swap the convolution under the model's feet. All decisions are taken from one run
# (`decisions=`), so anchors and RoIs are the same for all.

# %%
backend.KERNEL_SETS["reversed"] = backend.NUMPY._replace(name="reversed", conv2d=conv2d_reversed,
                                                         conv2d_grad_x=conv2d_grad_x_reversed)
source = Shapes(2, seed=0)
images, targets = zip(*(source[k] for k in range(2)))

def gradients(norm, dtype, kernels, decisions=None):
    model = nprcnn.maskrcnn_tiny(norm=norm, block=Bottleneck, blocks=(3, 4, 6, 3), width=8,
                                 rng=np.random.default_rng(0)).astype(dtype)
    with nprcnn.use(kernels):
        losses, cache = model.losses(images, targets, np.random.default_rng(0), decisions)
        model.backward(cache)
    return {name: p.grad for name, p in model.named_parameters()}, losses, cache.decisions

start = time.perf_counter()
apart = {}
for norm in ("batch", "frozen"):
    decisions = gradients(norm, np.float64, "numpy")[2]
    for dtype in (np.float32, np.float64):
        (a, losses_a, _), (b, losses_b, _) = (gradients(norm, dtype, kernels, decisions) for kernels in ("reversed", "numpy"))
        apart[norm, dtype] = np.array([distance(a[name], b[name]) for name in a])
        loss = max(abs(losses_a[name] - losses_b[name]) / losses_b[name] for name in losses_b)
        print(f"{norm:6} {dtype.__name__}:  losses differ by at most {loss:.0e},  gradients: median {np.median(apart[norm, dtype]):.0e}, "
              f"worst {apart[norm, dtype].max():.0e}")
assert apart["batch", np.float64].max() < 1e-9 and time.perf_counter() - start < 300

# %%
figure, ax = plt.subplots(figsize=(8, 2.6))
bins = np.logspace(-17, 0, 69)
for (norm, dtype), colour in zip(apart, (course.FORWARD, course.GREEN, course.BACKWARD, course.PINK)):
    ax.hist(np.maximum(apart[norm, dtype], 2e-17), bins, color=colour, alpha=0.8, label=f"{norm} norm, {dtype.__name__}")
ax.set(xscale="log", xlabel="|a - b| / |b| of a parameter's gradient", ylabel="parameters",
       title="the same training step, channels added up forwards and backwards")
ax.legend(loc="upper center");

# %% [markdown]
# Read the table as a set of rules for your own work:
#
# - **Batch norm in training mode, float32:** two correct programs differ by about a percent. *Such a comparison can
#   neither prove nor disprove anything.* The losses still agree to five digits: they are a forward quantity.
# - **The same in float64:** twelve digits agree. Here a bug has nowhere to hide. This is how this project's training
#   was compared with torchvision's.
# - **Frozen norm, float32:** here the statistics are constants, and in this model they do not blow up what is left:
#   the gradients agree to six digits. (In torchvision's ResNet-50 above the median was 3e-3, for 3 gates of six million
#   had flipped.)
#
# And does it hurt the training? No. A gradient of one batch is a noisy estimate anyway: two batches differ by far more
# than a percent. It hurts only those who *compare*.
#
# ## Exercises
#
# Solutions are in `solutions/18_solutions.ipynb`.
#
# ### Exercise 1: equation (1) for all stages
#
# `a` and `b` are lists of arrays, of the same shapes in pairs. Return an array with the error of each pair. Where the
# reference is all 0, return max|a| itself. Beware of signs and of integer types.
#
# <details><summary>Hint 1</summary>Convert both to float64 first. What is np.uint8(2) - np.uint8(3)?</details>
# <details><summary>Hint 2</summary>np.abs in two places: in the difference and in the scale.</details>
# <details><summary>Hint 3</summary>scale = np.abs(y).max(); divide by (scale or 1.0).</details>

# %%
def stage_errors(a, b):
    ...                                                   # your code

check_stage_errors(stage_errors)

# %% [markdown]
# ### Exercise 2: boxes as sets
#
# `a` (n, 4) and `b` (m, 4) are boxes. For each box of `a`, in order, return the row of the nearest box of `b` that is
# not taken yet and of which no coordinate differs by more than `distance`; -1 if there is none. How far apart two boxes
# are is the largest of the four differences.
#
# <details><summary>Hint 1</summary>gap = np.abs(b - box).max(axis=1) is the distance of one box to all of b. b may be empty.</details>
# <details><summary>Hint 2</summary>Keep a boolean array `free` of length m, and set gap[~free] to infinity.</details>
# <details><summary>Hint 3</summary>j = gap.argmin(); if gap[j] &lt;= distance: it is the partner, and free[j] = False.</details>

# %%
def pair_boxes(a, b, distance):
    ...                                                   # your code

check_pair_boxes(pair_boxes)

# %% [markdown]
# ### Exercise 3: Detectron2's classes
#
# A file of Detectron2 has K classes and the background *behind* them: `cls_score` (K + 1, C), background last.
# `bbox_pred` (4 K, C) has no rows for the background at all. Here the background is class 0 everywhere. Return both
# matrices in our order, with zeros for the background's deltas. (`background_last` above is what happens without.)
#
# <details><summary>Hint 1</summary>Which row of cls_score must be the first? All others move down by one and keep their order.</details>
# <details><summary>Hint 2</summary>np.roll(cls_score, 1, axis=0).</details>
# <details><summary>Hint 3</summary>A class has four deltas, so four rows of zeros go in front of bbox_pred.</details>

# %%
def background_first(cls_score, bbox_pred):
    ...                                                   # your code; return cls_score, bbox_pred

check_background_first(background_first)

# %% [markdown]
# ### Exercise 4: your own bug
#
# Without a check. Write a ninth bug for section 7, one that you have made yourself or could make. Predict at which
# stage it begins, then run it. Is there a bug that `compare` cannot find with this image? (A hint: what if the image
# were square, or had exactly the size of `min_size`?)

# %% [markdown]
# ## Summary
#
# - Four reasons for different numbers: weights, conventions, bugs, rounding. Rounding shrinks by nine digits in float64,
#   the others stay.
# - Weights by name make a reference without a file of weights. It must be alive, or it proves nothing.
# - Compare stage by stage; only the first difference counts. Boxes are compared as sets.
# - A fair tolerance: the distance of the reference from itself, float32 to float64.
# - With batch norm in training mode float32 gradients of correct programs differ by percents: rounding grows with every
#   normalisation, and then ReLU gates flip. Compare in float64.
#
# **Read next.** In the code: `nprcnn/compare.py` and `nprcnn/weights/detectron2.py`. Elsewhere: Goldberg, *What every
# computer scientist should know about floating-point arithmetic* (1991); Higham, *Accuracy and stability of numerical
# algorithms*, chapter 4, on sums; Yang et al., *A mean field theory of batch normalization*, arXiv 1902.08129, on
# why gradients grow in such chains.
