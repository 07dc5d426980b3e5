# %% [markdown]
# # 11  Five losses, one backward pass
#
# All the parts are there: backbone, pyramid, RPN, RoIAlign, two heads, and a backward pass for each. Training a Mask
# R-CNN means to compute five numbers and send *one* gradient back through all of it. In this notebook we do that, by
# hand, with the model's own pieces, and watch the gradient on its way: how large it is at every stage, which loss it
# comes from, where it stops, and whether the whole thing is right.
#
# There is nothing new to derive. What is new is how the pieces meet: in the pyramid, where the gradients of both
# stages add up. That the first and the second stage are trained *together* comes from this addition, and from nothing
# else.
#
# **You need:** notebooks [01](01_what_a_backward_pass_is.ipynb) (the four rules) to [10](10_the_mask_head.ipynb).
# **You will be able to:** write the backward pass of a whole detector, say which loss teaches which layer, and check
# a model of a million and a half parameters with one number. About 75 minutes with the exercises.
#
# ## Where we are
#
# Everywhere, and on the way back (orange). The dotted arrow has no way back: section 5.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import check_gradients, course
from nprcnn.course.whole import check_rules_backward, check_shares, check_two_level_backward, draw_gradients
from nprcnn.data import Shapes
from nprcnn.gradcheck import GradientCheckError
from nprcnn.models import box_head, fpn, mask_head, mask_rcnn, resnet, rpn
from nprcnn.models.decisions import LOSSES
from nprcnn.ops.boxes import clip_boxes, decode_boxes
from nprcnn.ops.conv import conv2d_backward, conv2d_forward
from nprcnn.trace import Trace, record_grad

course.style()
rng = np.random.default_rng(0)
course.where_we_are("losses", backward=True)

# %% [markdown]
# ## 1  Five numbers
#
# One training scene, the shipped weights, in float64 so that we can check things. The total is the plain sum
#
# $$L = L_{objectness} + L_{rpn\,box} + L_{class} + L_{box} + L_{mask} , \tag{1}$$
#
# the last three being equation $L = L_{cls} + L_{box} + L_{mask}$ of Mask R-CNN (arXiv 1703.06870, section 3), the
# first two the RPN's (Faster R-CNN, arXiv 1506.01497, equation 1).
#
# | loss | of | over | mean over |
# |---|---|---|---|
# | `loss_objectness` | is there an object? | sampled anchors | sampled anchors |
# | `loss_rpn_box_reg` | deltas of the anchors | positive anchors | sampled anchors |
# | `loss_classifier` | which class? | sampled RoIs | sampled RoIs |
# | `loss_box_reg` | deltas of the RoIs | positive RoIs | sampled RoIs |
# | `loss_mask` | which pixels? | positive RoIs | their pixels |

# %%
source = Shapes(500, seed=0)
image, target = source[64]
model = nprcnn.maskrcnn_tiny(weights="shapes").astype(np.float64)
trace = Trace()
losses, cache = model.losses([image], [target], np.random.default_rng(0), trace=trace)
decisions = cache.decisions                               # which anchors and RoIs were drawn, matched, ...: section 5
for name, value in losses.items():
    print(f"{name:17} {value:.4f}")
print(f"{'sum':17} {sum(losses.values()):.4f}")
roi_labels = decisions.labels[0]
print(f"sampled: {len(decisions.anchor_positive[0])} + {len(decisions.anchor_negative[0])} anchors, "
      f"{np.count_nonzero(roi_labels)} + {np.count_nonzero(roi_labels == 0)} RoIs (positive + negative)")

fresh = nprcnn.maskrcnn_tiny().astype(np.float64)         # random weights
random_trace = Trace()
first, _ = fresh.losses([image], [target], np.random.default_rng(0), trace=random_trace)
print("with random weights:", ", ".join(f"{name.removeprefix('loss_')} {value:.2f}" for name, value in first.items()))
print(f"  and the mask logits have a mean size of {np.abs(random_trace['roi_heads.mask_logits']).mean():.1f}")

# %% [markdown]
# With random weights the objectness loss is log 2 = 0.69 and the class loss about log 7 = 1.95: every answer is as
# likely as any other. The mask loss is far above log 2, because its random logits are large: about half of them are
# wrong, and each is sure of itself. In the trained model the second stage pays most, because its questions are finer.
#
# ## 2  One backward pass, by hand
#
# `MaskRCNN.backward` is short. Here it is with our own words, and with one thing added: a factor for each loss, so
# that we can switch losses on and off. It uses the model's pieces, `mask_loss_backward` and so on, which notebooks 04
# to 10 wrote by hand. This is the way, from the last stage to the first. A gradient has the shape of its stage.
#
# | gradient of | shape | comes from |
# |---|---|---|
# | the five losses | () | the factors: 1 |
# | `roi_heads.mask_logits` | (S, K, 28, 28) | `loss_mask` |
# | `roi_heads.mask_features` | (S, C, 14, 14) | the mask head, backwards |
# | `roi_heads.class_logits`, `.box_deltas` | (R, K), (R, 4 K) | `loss_classifier`, `loss_box_reg` |
# | `roi_heads.box_features` | (R, C, 7, 7) | the box head, backwards |
# | `rpn.objectness`, `rpn.deltas` | (N, T), (N, T, 4) | `loss_objectness`, `loss_rpn_box_reg` |
# | `fpn.p2` ... `fpn.p6` | (N, C, h, w) | all three: here they meet |
# | `backbone.layer4` ... `backbone.layer1` | (N, C, h, w) | the pyramid, and the stage above |
#
# N images, R sampled RoIs, S positive ones, T anchors, K classes, C channels.

# %%
def backward(factors, trace=None, drop=()):
    """Gradient of the sum of factors[name] * loss, added to the parameters. Returns the parts that meet at P2 .. P6.

    drop: parts ("rpn", "box", "mask") that are forgotten where they meet, to see what that does.
    """
    f = {name: np.float64(factors.get(name, 0)) for name in LOSSES}
    heads, parts = model.roi_heads, {}

    # the mask branch, from the last to the first:   P2..P5 -> RoIAlign -> mask head -> predictor -> loss_mask
    dlogits = mask_head.mask_loss_backward(f["loss_mask"], cache.mask_loss)
    roi_cache, head_cache, predictor_cache = cache.mask
    dx = heads.mask_head.backward(heads.mask_predictor.backward(dlogits, predictor_cache), head_cache)
    parts["mask"] = model.mask_features.backward(dx, roi_cache)

    # the box branch:   P2..P5 -> RoIAlign -> box head -> predictor -> loss_classifier, loss_box_reg
    dlogits, ddeltas = box_head.box_losses_backward(f["loss_classifier"], f["loss_box_reg"], cache.box_loss)
    roi_cache, head_cache, predictor_cache = cache.box
    dx = heads.box_head.backward(heads.box_predictor.backward(dlogits, ddeltas, predictor_cache), head_cache)
    parts["box"] = model.box_features.backward(dx, roi_cache)

    # the RPN:   P2..P6 -> head -> loss_objectness, loss_rpn_box_reg
    dlogits, ddeltas = rpn.rpn_losses_backward(f["loss_objectness"], f["loss_rpn_box_reg"], cache.rpn_loss)
    backbone_cache, rpn_cache = cache.first_stage
    parts["rpn"] = model.rpn.backward(dlogits, ddeltas, rpn_cache)

    # P2..P5 fed all three: fan-out -> sum. P6 fed the RPN alone.
    dpyramid = [np.zeros_like(g) for g in parts["rpn"]]
    for name, part in parts.items():
        if name not in drop:
            for i, g in enumerate(part):
                dpyramid[i] = dpyramid[i] + g
    model.backbone.backward(dpyramid, backbone_cache, trace)
    return parts

def gradient_of():
    """All parameters' gradients as one long vector, zeros where nothing arrived."""
    return np.concatenate([(np.zeros_like(p.data) if p.grad is None else p.grad).ravel() for p in model.parameters()])

model.zero_grad()
model.backward(cache, trace)                              # the library's
theirs = gradient_of()
model.zero_grad()
parts = backward(dict.fromkeys(LOSSES, 1))                # ours
ours = gradient_of()
print(f"{len(ours):,} parameters: largest difference to nprcnn {np.abs(ours - theirs).max():.0e}, "
      f"the largest gradient is {np.abs(theirs).max():.1e}")
assert np.array_equal(ours, theirs) or np.abs(ours - theirs).max() < 1e-15

# %% [markdown]
# A backward pass is linear in what comes from above: $g(L_1 + L_2) = g(L_1) + g(L_2)$. So we may run it once for each
# loss alone, and the five gradients must add up to the whole. We keep all five, with the gradients on the way.

# %%
alone, traces, meeting = {}, {}, {}
for name in LOSSES:
    model.zero_grad()
    traces[name] = Trace()
    meeting[name] = backward({name: 1}, traces[name])
    alone[name] = gradient_of()
difference = np.abs(sum(alone.values()) - theirs).max()
print(f"sum of the five gradients: largest difference to the gradient of the sum {difference:.0e}")
assert difference < 1e-12

PARTS = {"backbone": "backbone.body", "pyramid": "backbone.fpn", "RPN": "rpn", "box head": "roi_heads.box",
         "mask head": "roi_heads.mask"}
sizes = [(n, p.data.size) for n, p in model.named_parameters()]
ends = np.cumsum([0] + [size for _, size in sizes])
where = {part: np.concatenate([np.arange(a, b) for (name, _), a, b in zip(sizes, ends, ends[1:])
                               if name.startswith(prefix)]) for part, prefix in PARTS.items()}
table = np.array([[np.linalg.norm(alone[name][where[part]]) for name in LOSSES] for part in PARTS])
SHORT = ["objectness", "RPN box", "class", "box", "mask"]
print(f"{'norm of the gradient':22}" + "".join(f"{name:>12}" for name in SHORT))
for part, row in zip(PARTS, table):
    texts = [f"{value:.1e}" if value else "0" for value in row]
    print(f"{part + f' ({len(where[part]):,})':22}" + "".join(f"{text:>12}" for text in texts))

# %% [markdown]
# The zeros are exact. Each head is taught by its own losses only; backbone and pyramid by all five. The RPN's
# parameters get nothing from the second stage. They are not even reached.
#
# ## 3  The way back, drawn
#
# `model.backward(cache, trace)` recorded the gradient of every stage, under the name of the stage. Here are their
# norms, each at its place in the network: darker is larger, on a logarithmic scale.

# %%
same = [trace.grad[stage].shape == trace[stage].shape for stage in trace.grad]
print(f"{len(same)} stages have a gradient, all of the shape of the stage: {all(same)}")
print("without one:", ", ".join(stage for stage in trace if stage not in trace.grad))
draw_gradients(trace.grad)

# %% [markdown]
# Two things are worth a second look.
#
# - **P2 has most of it**, and the further up, the less: our objects are small, so their RoIs and positive anchors are
#   on P2 and P3 (notebook 00: the level of an RoI is chosen by its size).
# - **C5 has more than half of what C2 has, although P5 has next to nothing.** From where? The pyramid's top-down path
#   (dotted): P2 is made of C2 *and* the enlarged sum above it, and so on up to C5. To prove it we send back one level's
#   gradient at a time, with all others set to 0.

# %%
counts = np.bincount(decisions.levels[0], minlength=4)
print("RoIs on P2 .. P5:", counts)
whole = [trace.grad[f"fpn.p{k}"] for k in range(2, 7)]
backbone_cache = cache.first_stage[0]
for name, keep in (("all levels", range(5)), ("P2 alone", [0]), ("P3 alone", [1]), ("P4, P5, P6", [2, 3, 4])):
    t = Trace()
    # P5's recorded gradient has P6's share in it already, so P6 itself goes in as 0
    model.backbone.backward([g if i in keep and i < 4 else 0 * g for i, g in enumerate(whole)], backbone_cache, t)
    norms = [np.linalg.norm(t.grad[f"backbone.layer{k}"]) for k in range(1, 5)]
    print(f"{name:11} norm at C2 .. C5:", ", ".join(f"{norm:.1e}" for norm in norms))

# %% [markdown]
# So the deepest layers learn from the finest level. It is what the pyramid was built for, seen from behind: forward
# it carries meaning down to P2, and backward P2's wishes up to C5.
#
# A gradient is an array like any other, and can be looked at. `trace.stepper(gradient=True)` steps through all of them with buttons, where
# ipywidgets are installed. Here are six on a sheet, which needs no buttons, from the last stage to the first:

# %%
trace.stepper(["roi_heads.mask_logits", "roi_heads.box_features", "rpn.logits.p2", "fpn.p2", "backbone.layer4", "backbone.layer1"],
              gradient=True, interactive=False)

# %% [markdown]
# ## 4  Which loss contributes what?
#
# The same for each loss alone. First where the gradient is: its norm in each cell of P2.

# %%
height, width = image.shape[:2]
figure, axes = plt.subplots(2, 3, figsize=(7.6, 5.2))
axes[0, 0].imshow(image // 8 * 8, extent=(0, width, height, 0))
axes[0, 0].set(title="the image", xticks=[], yticks=[])
for ax, name, short in zip(axes.ravel()[1:], LOSSES, SHORT):
    at_p2 = np.linalg.norm(traces[name].grad["fpn.p2"][0], axis=0)       # (32, 32)
    drawn = ax.imshow(at_p2, cmap="magma", extent=(0, width, height, 0))
    for box in target["boxes"]:
        ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor="white", linewidth=0.8))
    ax.set(title=short, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(drawn, ax=ax, shrink=0.8)
    bar.formatter.set_powerlimits((0, 0))

# %% [markdown]
# The RPN's losses speak in a few cells, where sampled anchors are not yet right. The heads' losses speak in the whole
# of each RoI, through RoIAlign; where many RoIs overlap, they add up. Outside the RoIs the second stage is silent.
# All five agree on where the trouble is: the small triangle on top of the large star. (The box loss has a second place,
# the ring that the border of the image cuts off.) The whole ring is hardly heard.
#
# Now the numbers. Norms do not add up: two gradients may point against each other. What does add up is the *share* of
# loss $l$ in the whole, its part along the sum $g = \sum_l g_l$:
#
# $$s_l = \frac{\langle g_l, g \rangle}{\langle g, g \rangle}, \qquad \sum_l s_l = 1 . \tag{2}$$

# %%
def shares_naive(gradients):
    """Equation (2) for a list of arrays of one shape."""
    total = sum(gradients)
    return np.array([np.sum(g * total) / np.sum(total * total) for g in gradients])

stages = ["fpn.p2", "fpn.p3", "fpn.p4", "fpn.p5", "backbone.layer4", "backbone.layer3", "backbone.layer2",
          "backbone.layer1", "backbone.stem"]
names = ["P2", "P3", "P4", "P5", "C5", "C4", "C3", "C2", "stem"]
shares = np.array([shares_naive([traces[name].grad[stage] for name in LOSSES]) for stage in stages])
assert np.abs(shares.sum(axis=1) - 1).max() < 1e-12
figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.2), width_ratios=[1.25, 1])
course.show_matrix(axes[0], shares.T.round(2), "share of each loss", text="{:.2f}", limit=1)
axes[0].set(xticks=range(len(names)), xticklabels=names, xlabel="stage", yticks=range(5), yticklabels=SHORT)
axes[0].tick_params(length=0)
norms = np.array([[np.linalg.norm(traces[name].grad[stage]) for stage in stages] for name in LOSSES])
for row, short in zip(norms, SHORT):
    axes[1].semilogy(range(len(names)), np.where(row > 0, row, np.nan), "o-", markersize=4, linewidth=1, label=short)
axes[1].set(xticks=range(len(names)), xticklabels=names, xlabel="stage", ylabel="norm of the gradient", title="norms")
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
print("stage by stage, the two largest shares:")
for stage_name, row in zip(names, shares):
    order = np.argsort(-row)[:2]
    print(f"  {stage_name:5}", ", ".join(f"{SHORT[i]} {row[i]:.0%}" for i in order))

# %% [markdown]
# The losses' *values* do not say how hard they pull. The box loss is twice as large as the class loss (section 1),
# and yet the class loss has the largest share on P2 and in the whole backbone. P5 hears the RPN alone, for no RoI is
# read from it. And (1) has no weights that would balance the five: a loss with large gradients gets its way.
#
# **Do they agree?** The cosine between the gradients of two losses, in the backbone's parameters, which they share:

# %%
shared = np.array([alone[name][where["backbone"]] for name in LOSSES])
lengths = np.linalg.norm(shared, axis=1)
cosine = shared @ shared.T / np.outer(lengths, lengths)
figure, ax = plt.subplots(figsize=(3.9, 3.4))
course.show_matrix(ax, cosine.round(2), "cosine of two losses' gradients", text="{:.2f}", limit=1)
ax.set(xticks=range(5), yticks=range(5), yticklabels=SHORT)
ax.set_xticklabels(SHORT, rotation=45, ha="right")
ax.tick_params(length=0)

# %% [markdown]
# None of the pairs pulls against each other here: all cosines are positive or about 0. That need not be so (the
# losses of one scene look at the same difficult object). What does it mean for a step? We take one, of all parameters
# against the whole gradient, and compare how each loss changes with what its gradient promised,
# $-\eta\,\langle g_l, g\rangle$.

# %%
step = 0.001                                              # gradient descent with this learning rate
start = [p.data for p in model.parameters()]
direction = np.split(theirs, ends[1:-1])
for p, g, data in zip(model.parameters(), direction, start):
    p.data = data - step * g.reshape(data.shape)
moved, _ = model.losses([image], [target], None, decisions)
for p, data in zip(model.parameters(), start):
    p.data = data
print(f"after one step of {step} against the whole gradient:")
print(f"{'':12}{'loss':>10}{'change':>12}{'promised':>12}")
for name, short in zip(LOSSES, SHORT):
    promised = -step * np.sum(alone[name] * theirs)       # <its own gradient, the step>
    print(f"{short:12}{losses[name]:10.5f}{moved[name] - losses[name]:+12.1e}{promised:+12.1e}")

# %% [markdown]
# Each loss moves as promised: by the numerator of (2), times the learning rate. So a loss with a negative share would
# be made *worse* by the step, because the others outvote it.
#
# ## 5  Where the gradient stops
#
# Between the stages there is a second path, the dotted arrow: the RPN's deltas move the proposals, and the proposals
# are where RoIAlign looks. So the second stage's losses *do* depend on the RPN's deltas. We add a little to all
# deltas dx (which is what a bias does), and look at the sum of the three losses of the second stage: once with the
# proposals as they were decided, once with proposals that move along.

# %%
bias = model.rpn.head.bbox_pred.bias
anchors, deltas = trace["rpn.anchors"], trace["rpn.deltas"][0]
chosen = decisions.proposal_anchor[0]                     # -1: a true box that was added
from_rpn = chosen >= 0

def second_stage(shift, follow):
    """The second stage's losses, with `shift` added to every dx of the RPN."""
    proposals = decisions.proposals[0].copy()
    if follow:
        shifted = deltas[chosen[from_rpn]] + np.array([shift, 0, 0, 0])
        moved = decode_boxes(shifted, anchors[chosen[from_rpn]].astype(float))
        proposals[from_rpn] = clip_boxes(moved, image.shape[:2])
    before = bias.data
    bias.data = before + shift * np.tile([1, 0, 0, 0], len(before) // 4)
    values, _ = model.losses([image], [target], None, decisions._replace(proposals=[proposals]))
    bias.data = before
    return sum(values[name] for name in LOSSES[2:])

shifts = np.linspace(-0.06, 0.06, 13)
frozen = [second_stage(s, False) for s in shifts]
follows = [second_stage(s, True) for s in shifts]
slope = (second_stage(1e-4, True) - second_stage(-1e-4, True)) / 2e-4
print(f"{from_rpn.sum()} of {len(chosen)} RoIs come from the RPN")
print(f"slope at 0: proposals as decided {(frozen[7] - frozen[5]) / (shifts[7] - shifts[5]):+.4f}, "
      f"proposals that move along {slope:+.4f}")
model.zero_grad()
backward(dict.fromkeys(LOSSES[2:], 1))
silent = bias.grad is None or not bias.grad.any()
print("what backward says about this bias:", "no gradient at all" if silent else bias.grad)
figure, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(shifts, follows, "o-", color=course.BACKWARD, label="proposals move along")
ax.plot(shifts, frozen, "o-", color=course.FORWARD, label="proposals as decided")
ax.set(xlabel="added to every dx of the RPN", ylabel="loss of the second stage")
ax.legend();

# %% [markdown]
# The slope is there, and the backward pass takes it for 0: it treats the proposals as constants. That is a choice,
# not a mistake in the chain rule. Faster R-CNN calls it *approximate joint training*: "*this solution ignores the
# derivative w.r.t. the proposal boxes' coordinates that are also network responses, so is approximate*" (section
# 3.2). RoIAlign *could* pass it on (notebook 08, exercise 2), and NMS and sampling could not. In the same way, all
# else that was decided has no gradient: which anchors and RoIs are sampled, which target each has, which level it is
# read from.
#
# In the code, everything that is constant for the backward pass is in one tuple:

# %%
for field, value in decisions._asdict().items():
    print(f"decisions.{field:16} {value[0].dtype!s:8} {value[0].shape}")

# %% [markdown]
# ## 6  The four rules, found in the code
#
# Notebook 01 had four rules for what branches: fan-out → sum; add → the same gradient to both; gather or slice →
# scatter-add; concatenate → split. Where are they in a Mask R-CNN? The library's backward passes quote the forward
# line as a comment. We let Python look for them.

# %%
RULES = {"fan-out": "1  fan-out -> sum", "gradients add": "1  fan-out -> sum", "same gradient": "2  add -> both",
         "gather -> scatter": "3  gather -> scatter-add", "slice -> scatter": "3  gather -> scatter-add",
         "concatenate,": "4  concatenate -> split"}
found = {}
for module in (mask_rcnn, rpn, box_head, mask_head, fpn, resnet):
    for line in inspect.getsource(module).splitlines():
        comment = line.strip()
        for words, rule in RULES.items():
            if comment.startswith("#") and words in comment:
                text = comment.removeprefix("# ").removeprefix("forward: ").split("      ")[0]
                found.setdefault(rule, {})[text] = module.__name__.split(".")[-1]
for rule in sorted(found):
    print(rule)
    for text, module in found[rule].items():
        print(f"    {module:10} {text[:104]}")

# %% [markdown]
# And now by numbers, each rule at one place in our backward pass:

# %%
p3 = sum(meeting[name][kind][1] for name in LOSSES for kind in ("rpn", "box", "mask"))
difference = np.abs(p3 - trace.grad["fpn.p3"]).max()
print(f"1  fan-out: P3's gradient = RPN's + box head's + mask head's, difference {difference:.0e}")

block = model.backbone.body.layer1[1]                     # y = relu(f(x) + x)
before = block.bn2.weight.data, block.bn2.bias.data
block.bn2.weight.data, block.bn2.bias.data = 0 * before[0], 0 * before[1]      # now f(x) = 0
x = rng.uniform(0.1, 1, (1, 20, 8, 8))
y, block_cache = block.forward(x, True)
dy = rng.standard_normal(y.shape)
difference = np.abs(block.backward(dy, block_cache) - dy).max()
print(f"2  add: a residual block with f = 0 hands dy through, difference {difference:.0e}")
block.bn2.weight.data, block.bn2.bias.data = before

dmasks = trace.grad["roi_heads.mask_logits"]
reached = np.argwhere(dmasks.any(axis=(2, 3)))            # RoI, class
labels = decisions.labels[0][decisions.labels[0] > 0]
print(f"3  gather: of {dmasks.shape[0]} x {dmasks.shape[1]} mask maps {len(reached)} have a gradient, "
      f"those of the true classes: {np.array_equal(reached[:, 1], labels)}")

pieces = [trace.grad[f"rpn.logits.p{k}"].transpose(0, 2, 3, 1).reshape(1, -1) for k in range(2, 7)]
print("4  concatenate: the levels' pieces, put together again, are the long list's gradient:",
      np.array_equal(np.concatenate(pieces, axis=1), trace.grad["rpn.objectness"]))

# %% [markdown]
# ## 7  Is it right? One number for the whole model
#
# Every piece has been checked alone. Is the whole right, with all its junctions? The test is the one from notebook
# 01: take a random direction $v$ in the space of *all* parameters, walk a little to both sides, and compare
#
# $$\langle g, v \rangle \quad\text{with}\quad \frac{L(\theta + \epsilon v) - L(\theta - \epsilon v)}{2 \epsilon} . \tag{3}$$
#
# For this the decisions must be frozen: with others the same parameters have other losses. That is why `losses` takes
# them.

# %%
for seed in (0, 1, 2):
    again, _ = model.losses([image], [target], np.random.default_rng(seed))
    print(f"another draw of the samples, seed {seed}: the five losses sum to {sum(again.values()):.4f}")
again, _ = model.losses([image], [target], None, decisions)
print(f"with the decisions of section 1:          {sum(again.values()):.4f}, "
      f"equal to the last bit: {sum(again.values()) == sum(losses.values())}")

# %% [markdown]
# First part by part, then all together.

# %%
def numeric_slope(v, eps):
    """Central difference of the sum of the losses along v, a long vector like the gradient."""
    parameters = model.parameters()
    here, pieces = [p.data for p in parameters], np.split(v, ends[1:-1])
    values = []
    for sign in (1, -1):
        for p, data, piece in zip(parameters, here, pieces):
            p.data = data + sign * eps * piece.reshape(data.shape)
        values.append(np.array(list(model.losses([image], [target], None, decisions)[0].values())))
    for p, data in zip(parameters, here):
        p.data = data
    return np.sum(values[0] - values[1]) / (2 * eps)      # loss by loss: a large one must not drown a small one

def unit_direction(indices=slice(None)):
    v = np.zeros(len(theirs))
    v[indices] = rng.standard_normal(len(theirs[indices]))
    return v / np.linalg.norm(v)

for part, indices in [*where.items(), ("everything", slice(None))]:
    v = unit_direction(indices)
    analytic, numeric = np.sum(theirs * v), numeric_slope(v, 1e-5)
    error = abs(analytic - numeric) / max(abs(analytic), abs(numeric))
    print(f"{part:11} {len(theirs[indices]):9,} parameters   backward {analytic:+.7e}   forward {numeric:+.7e}   "
          f"error {error:.0e}")
    assert error < 1e-4

# %% [markdown]
# Two forward passes, and a million and a half derivatives are vouched for: the direction has no zeros, so an error in
# any of them moves the left side of (3). (A tiny one can hide in the large sum. That is why the parts were checked
# alone first.) Which $\epsilon$? If it is too large the walk crosses kinks (a ReLU that switches on), and if it is
# too small the difference of two nearly equal numbers is all rounding. And would a mistake really be seen? We forget
# one thing at a time where the gradients meet, and ask again.

# %%
v = unit_direction()
steps = 10.0 ** np.arange(-2, -10, -1)
analytic = np.sum(theirs * v)
errors = [abs(analytic - numeric_slope(v, eps)) / abs(analytic) for eps in steps]
figure, ax = plt.subplots(figsize=(5.6, 2.7))
ax.loglog(steps, errors, "o-", label="the right gradient")
numeric = numeric_slope(v, 1e-5)
for forgotten, colour, line, width in (("rpn", course.GREEN, "-", 5), ("box", course.BACKWARD, "--", 1.8),
                                       ("mask", course.PINK, "-.", 1.8)):
    model.zero_grad()
    backward(dict.fromkeys(LOSSES, 1), drop=(forgotten,))
    wrong = np.sum(gradient_of() * v)
    error = abs(wrong - numeric) / max(abs(wrong), abs(numeric))
    ax.axhline(error, color=colour, linestyle=line, linewidth=width, label=f"{forgotten} forgotten in the sum")
    print(f"the {forgotten}'s part forgotten at the pyramid: error {error:.0e}")
ax.set(xlabel="step ε", ylabel="relative error")
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
print("right gradient:", ", ".join(f"ε {eps:.0e}: {error:.0e}" for eps, error in zip(steps, errors)))

# %% [markdown]
# ## Exercises
#
# Solutions are in `solutions/11_solutions.ipynb`.
#
# ### Exercise 1: all four rules
#
# A small graph that has them all. `p` and `q` are (C, n), `w` is (C, 1), `index` (k,) are column numbers *which may
# repeat*. Write the backward: dp, dq, dw.
#
# <details><summary>Hint 1</summary>Go from the last line to the first. Splitting dy gives da (its first k columns) and db (the other n).</details>
# <details><summary>Hint 2</summary>s feeds a and b: its gradient is a sum of two. One part is db · w. The other one scatters da back to the columns of s.</details>
# <details><summary>Hint 3</summary>ds[:, index] += da forgets repeated columns. np.add.at(ds, (slice(None), index), da) does not. w was broadcast over the columns: sum over axis 1, keepdims=True.</details>

# %%
def rules_forward(p, q, w, index):
    s = p + q                                             # (C, n)
    a = s[:, index]                                       # (C, k)
    b = s * w                                             # (C, n)
    return np.concatenate([a, b], axis=1), (s, w, index)

def rules_backward(dy, cache):
    s, w, index = cache                                   # dy is (C, k + n)
    ...                                                   # your code; return dp, dq, dw

check_rules_backward(rules_backward)

# %% [markdown]
# ### Exercise 2: shares, without loops
#
# Equation (2) for `gradients` (L, ...), one array with any number of axes after the first. Return (L,). If the sum of
# all gradients is exactly 0 nobody has a share: return zeros.
#
# <details><summary>Hint 1</summary>flat = gradients.reshape(L, -1). Its sum over axis 0 is g.</details>
# <details><summary>Hint 2</summary>flat @ g is all L inner products at once.</details>

# %%
def shares(gradients):
    ...                                                   # your code; return (L,)

check_shares(shares)

# %% [markdown]
# ### Exercise 3: find the bug
#
# The heart of the detector in small: two levels of a pyramid with the top-down path, a shared 3x3 convolution `w`,
# and "P6", each second row and column of P5. Backward has **one wrong line**.
#
# <details><summary>Hint 1</summary>dc4, dw4 and dw are right. Which lines does that acquit? What is left for dc5 and dw5?</details>
# <details><summary>Hint 2</summary>up repeats every row and column: each pixel of i5 was copied to four places. Fan-out!</details>
# <details><summary>Hint 3</summary>The gradient of a pixel of i5 is the sum over its 2 x 2 copies. A reshape to (N, C, h, 2, w, 2) puts them on two axes.</details>

# %%
def up(x):
    """(N, C, h, w) -> (N, C, 2h, 2w), nearest neighbour."""
    return x.repeat(2, axis=2).repeat(2, axis=3)

def two_level_forward(c4, c5, w4, w5, w):
    """c4 (N, D, 2h, 2w), c5 (N, E, h, w), w4 (C, D, 1, 1), w5 (C, E, 1, 1), w (C, C, 3, 3) -> (P4, P5, P6)."""
    i5, cache5 = conv2d_forward(c5, w5)
    l4, cache4 = conv2d_forward(c4, w4)
    i4 = l4 + up(i5)
    p5, out5 = conv2d_forward(i5, w, None, 1, 1)
    p4, out4 = conv2d_forward(i4, w, None, 1, 1)
    p6 = p5[:, :, ::2, ::2]
    return (p4, p5, p6), (cache4, cache5, out4, out5)

def buggy_backward(dy, cache):
    dp4, dp5, dp6 = dy
    cache4, cache5, out4, out5 = cache
    dp5 = dp5.copy()
    dp5[:, :, ::2, ::2] += dp6
    di4, dw_4, _ = conv2d_backward(dp4, out4)
    di5, dw_5, _ = conv2d_backward(dp5, out5)
    di5 = di5 + di4[:, :, ::2, ::2]
    dc4, dw4, _ = conv2d_backward(di4, cache4)
    dc5, dw5, _ = conv2d_backward(di5, cache5)
    return dc4, dc5, dw4, dw5, dw_4 + dw_5

rng = np.random.default_rng(1)
inputs = [rng.standard_normal(s) for s in ((1, 2, 4, 6), (1, 3, 2, 3), (4, 2, 1, 1), (4, 3, 1, 1), (4, 4, 3, 3))]
try:
    check_gradients(two_level_forward, buggy_backward, inputs)
except GradientCheckError as error:
    for row in error.rows:
        print(f"{row.argument:28} relative error {row.relative:.0e}   {row.problem or 'right'}")

# %%
def two_level_backward(dy, cache):
    dp4, dp5, dp6 = dy
    cache4, cache5, out4, out5 = cache
    ...                                                   # the mended backward; return dc4, dc5, dw4, dw5, dw

check_two_level_backward(two_level_backward)

# %% [markdown]
# ## Summary
#
# - Five losses, one plain sum, one backward pass: the stages from the last to the first.
# - Each head is taught by its own losses only. Backbone and pyramid are taught by all, and the gradients meet at
#   P2 to P5, where they add.
# - Norms of gradients do not add up, shares do. The value of a loss does not say how hard it pulls.
# - Through the top-down path the finest level teaches the deepest layers.
# - Proposals, matches, samples and levels are constants. The slope through the proposals exists, and is ignored:
#   approximate joint training.
# - The four rules are all that a branching backward needs.
# - One random direction, decisions frozen, float64: the whole model is checked to eight digits.
#
# **Read next.** In this course: [12 Training, and what goes wrong](12_training.ipynb). In the code: `MaskRCNN.losses` and
# `MaskRCNN.backward` in `nprcnn/models/mask_rcnn.py`, which you can now read from top to bottom; `Decisions` in
# `nprcnn/models/decisions.py`. Elsewhere: Ren et al., *Faster R-CNN*, arXiv 1506.01497, section 3.2; Dai, He and Sun,
# *Instance-aware semantic segmentation via multi-task network cascades*, arXiv 1512.04412, which does send a gradient
# into the boxes; Kendall, Gal and Cipolla, *Multi-task learning using uncertainty*, arXiv 1705.07115, for the weights
# of losses.
