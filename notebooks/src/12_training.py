# %% [markdown]
# # 12  Training, and what goes wrong
#
# Forward, backward, a step; again. The loop of a training is the shortest file of this project, and yet it is where most
# of the hours are lost: the loss falls and nothing is found, or it becomes NaN at step 9, or all is well and the AP is 0.
#
# Here we take the loop apart, derive what a learning rate may be, and then break a training on purpose, in five ways. The
# network is so small, and the task so easy (four scenes by heart), that each training takes seconds. What goes wrong goes
# wrong in the same way in the large ones.
#
# **You need:** notebook [01](01_what_a_backward_pass_is.ipynb); [06](06_the_rpn.ipynb) and [09](09_the_box_head.ipynb) for
# what is sampled. **You will be able to:** write SGD with momentum, decay, warm-up and clipping, read five losses, and know
# where to look first when a training fails. About 75 minutes with the exercises.
#
# ## Where we are
#
# Everywhere, and on the way back.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import course, viz
from nprcnn.course.training import check_clip_together, check_learning_rates, check_sgd_step
from nprcnn.data import Shapes
from nprcnn.data.loader import Loader
from nprcnn.errors import ConfigError
from nprcnn.evaluate import evaluate
from nprcnn.ops.boxes import box_iou, encode_boxes
from nprcnn.train import step_schedule, train
from nprcnn.train.gradients import sampling_rngs

course.style()
course.where_we_are("image", "resnet", "fpn", "rpn", "roi_align", "box_head", "mask_head", "losses", backward=True)
plt.rcParams["figure.constrained_layout.use"] = False     # viz places its panels itself

# %% [markdown]
# One step, in the order in which it happens. N images, T anchors, R sampled RoIs, S of them positive.
#
# | what | shape | remark |
# |---|---|---|
# | a batch | N images, N targets | a new order in every epoch |
# | five losses | five numbers | which anchors and RoIs are asked is *drawn* in every step |
# | `p.grad` of every parameter | as the parameter | the sum over the five losses |
# | the norm of all gradients | one number | if it is too large, all are scaled by one factor |
# | `velocity` | as the parameter | what is left of the earlier gradients |
#
# ## 1  The loop by hand
#
# Four scenes of 64 x 64 pixels. A model of the usual form, with one block a stage and few channels.

# %%
four = Shapes(4, 0, "easy", size=64)
names = four.class_names
SMALL = dict(min_size=64, max_size=64, width=8, blocks=(1, 1, 1, 1), fpn_channels=16, mask_channels=(16,), box_hidden=32,
             box_batch_size_per_image=16, rpn_batch_size_per_image=64, rpn_pre_nms_top_n_train=100,
             rpn_post_nms_top_n_train=50, rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_test=50)
RECIPE = dict(steps=120, batch_size=2, lr=0.005, warmup_steps=15, drops=(0.8,), seed=1)

def new_model(**changes):
    """The small model, always with the same initial weights."""
    return nprcnn.maskrcnn_tiny(rng=np.random.default_rng(0), **{**SMALL, **changes})

images, targets = zip(*(four[i] for i in range(4)))
print(f"{sum(p.data.size for p in new_model().parameters())} parameters")
figure, axes = viz.image_panels(4, 64, 64, columns=4, side=150)
for ax, image, target in zip(axes, images, targets):
    viz.draw_detections(image, target["boxes"], target["labels"], class_names=names, ax=ax)
figure

# %% [markdown]
# **Stochastic gradient descent with momentum** (PyTorch's form, and nprcnn's; Mask R-CNN, section 3.1: momentum 0.9,
# weight decay 0.0001). For each parameter $w$ with gradient $g$, its velocity $v$ and the learning rate $\eta$:
#
# $$v \leftarrow \mu v + (g + \lambda w), \qquad w \leftarrow w - \eta v . \tag{1}$$
#
# Before it, the **gradients are clipped** (Pascanu, Mikolov and Bengio, arXiv 1211.5063, section 3.2): if the norm of all
# of them *together* is above 10, all are multiplied by 10 / norm. Three steps, written out, and then `nprcnn.train.train`:

# %%
model = new_model()
parameters = [p for p in model.parameters() if p.trainable]
velocity = [np.zeros_like(p.data) for p in parameters]
loader, by_hand = Loader(four, 2, 1), []
for step in range(3):
    batch_images, batch_targets, indices = loader.batch(step)            # a function of the seed and the step alone
    rngs = sampling_rngs(1, step, indices)                               # one generator an image: it draws the sampled anchors and RoIs
    losses, cache = model.losses(list(batch_images), list(batch_targets), rngs)
    model.zero_grad()
    model.backward(cache)
    norm = float(np.sqrt(sum((p.grad.astype(float) ** 2).sum() for p in parameters if p.grad is not None)))
    factor, rate = min(1.0, 10 / norm), 0.005 * min(1, (step + 1) / 15)
    for k, p in enumerate(parameters):
        if p.grad is not None:
            velocity[k] = 0.9 * velocity[k] + (factor * p.grad + 1e-4 * p.data)        # equation (1)
            p.data = p.data - rate * velocity[k]
    by_hand.append(sum(float(loss) for loss in losses.values()))
    print(f"step {step}: loss {by_hand[-1]:.4f}, norm of the gradient {norm:.2f}, learning rate {rate:.5f}")

history = train(new_model(), four, progress=False, **{**RECIPE, "steps": 3})
assert np.allclose(by_hand, [row["loss"] for row in history], rtol=1e-4)  # float32, three steps
print("nprcnn.train:", [round(row["loss"], 4) for row in history])

# %% [markdown]
# ## 2  How large may the learning rate be?
#
# Take the simplest loss there is, a valley: $f(x, y) = (a x^2 + b y^2) / 2$, flat along $x$ ($a = 1$) and steep along $y$
# ($b = 20$). Each coordinate goes its own way. Without momentum
#
# $$y_{t+1} = y_t - \eta\, b\, y_t = (1 - \eta b)\, y_t, \tag{2}$$
#
# which shrinks only if $|1 - \eta b| < 1$, that is $\eta < 2 / b$. So **the steepest direction limits the rate**, and the
# flattest one decides how long it takes.

# %%
a, b = 1.0, 20.0

def descend(lr, momentum, steps=30):
    """The way (steps + 1, 2) through the valley, equation (1) without decay."""
    w, v = np.array([-9.0, 1.2]), np.zeros(2)
    way = [w]
    for _ in range(steps):
        v = momentum * v + np.array([a, b]) * w
        w = w - lr * v
        way.append(w)
    return np.array(way)

x, y = np.meshgrid(np.linspace(-10, 4, 80), np.linspace(-2.2, 2.2, 60))
figure, axes = plt.subplots(2, 2, figsize=(8.4, 4), sharex=True, sharey=True, layout="constrained")
for ax, (lr, momentum) in zip(axes.flat, ((0.01, 0), (0.09, 0), (0.102, 0), (0.03, 0.9))):
    way = descend(lr, momentum)
    ax.contour(x, y, (a * x ** 2 + b * y ** 2) / 2, levels=[0.5, 2, 6, 14, 28, 45], colors="#c0c0c0", linewidths=0.8)
    ax.plot(*way.T, ".-", markersize=4, linewidth=1, color=course.BACKWARD if lr > 2 / b else course.FORWARD)
    ax.set(xlim=(-10, 4), ylim=(-2.2, 2.2),
           title=f"rate {lr}, momentum {momentum}: loss after 30 steps {(np.array([a, b]) * way[-1] ** 2).sum() / 2:.1g}")
for ax in axes[1]:
    ax.set_xlabel("x, flat")
for ax in axes[:, 0]:
    ax.set_ylabel("y, steep")

# %% [markdown]
# Too small: it creeps. Just below the limit of 2 / 20 = 0.1: it jumps from side to side and arrives. Above it: it
# climbs out, faster and faster. With momentum the jumps cancel and what points along the valley adds up.
#
# With momentum one step maps $(y_t, y_{t-1})$ to $(y_{t+1}, y_t)$: put $v_t = (y_{t-1} - y_t) / \eta$ into equation (1),
#
# $$y_{t+1} = (1 + \mu - \eta b)\, y_t - \mu\, y_{t-1} . \tag{3}$$
#
# That shrinks if both eigenvalues of the 2 x 2 matrix are below 1 in size, which gives $\eta < 2 (1 + \mu) / b$. (Polyak
# 1964. We look at the eigenvalues.)

# %%
def shrinks_by(lr, momentum):
    """The largest eigenvalue, in size: the factor of one step in the end."""
    step = np.array([[1 + momentum - lr * b, -momentum], [1, 0]])
    return np.abs(np.linalg.eigvals(step)).max()

lrs = np.linspace(0.001, 0.22, 440)
figure, ax = plt.subplots(figsize=(5.8, 2.5), layout="constrained")
for momentum, colour in ((0.0, course.FORWARD), (0.9, course.GREEN)):
    factors = np.array([shrinks_by(lr, momentum) for lr in lrs])
    limit = lrs[factors >= 1][0]
    ax.plot(lrs, factors, color=colour, label=f"momentum {momentum}")
    print(f"momentum {momentum}: grows from {limit:.3f} on; 2 (1 + momentum) / b = {2 * (1 + momentum) / b:.3f}")
    assert abs(limit - 2 * (1 + momentum) / b) < 2 * (lrs[1] - lrs[0])    # the grid's steps
ax.axhline(1, color="#808080", linestyle=":")
ax.set(xlabel="learning rate", ylabel="factor of a step", ylim=(0, 1.5), title="the steep direction, b = 20")
ax.legend();

# %% [markdown]
# A network is no such valley. But near each point it looks like one, with as many directions as weights and unknown
# steepness. And it is steepest at the beginning, while the weights are still random.
#
# ## 3  Warm-up and drops
#
# So a training begins with a small rate, which rises linearly (**warm-up**: Goyal et al., arXiv 1706.02677, section
# 2.2). And it ends with small ones: the batches are random, and with a large rate the weights keep trembling. The paper
# trains 160k steps and divides the rate by 10 at 120k (section 3.1).

# %%
def rate_naive(step, base, total, warmup, drops):
    rate = base
    for drop in drops:
        if step >= drop * total:
            rate /= 10
    if step < warmup:
        rate *= (step + 1) / warmup
    return rate

schedule = step_schedule(0.005, 120, 15, (0.8,))
ours = [rate_naive(step, 0.005, 120, 15, (0.8,)) for step in range(120)]
assert np.allclose(ours, [schedule(step) for step in range(120)], rtol=1e-12)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.2), layout="constrained")
axes[0].plot(ours, ".", markersize=3)
axes[0].set(title="our short trainings", xlabel="step", ylabel="learning rate")
paper = step_schedule(0.02, 160_000, 500, (0.75,))
steps = np.unique(np.concatenate([np.arange(0, 1000, 10), np.arange(0, 160_000, 500)]))
axes[1].plot(steps / 1000, [paper(step) for step in steps])
axes[1].set(title="the paper's, with a warm-up of 500 steps", xlabel="thousand steps", ylabel="learning rate");

# %% [markdown]
# ## 4  By heart
#
# The first test of every new training: *can it learn a handful of images by heart?* It takes seconds, and if it fails,
# days on the whole data set would fail too. We measure AP50 on the four scenes themselves. (That says nothing about new
# scenes, and is not meant to.)

# %%
runs = {}

def run(name, source=four, changes=None, **recipe):
    """Train the small model; keep its losses, and its AP50 on the four scenes."""
    m, rows, note = new_model(**(changes or {})), [], ""
    start = time.perf_counter()
    with np.errstate(all="ignore"):                       # we break things on purpose
        try:
            train(m, source, progress=False, on_step=lambda step, row: rows.append(row), **{**RECIPE, **recipe})
        except ConfigError as error:
            note = str(error)
    ap = None if note else evaluate(m, four, progress=False)
    runs[name] = {"model": m, "rows": rows, "note": note,
                  "box": ap and ap["bbox"]["AP50"], "mask": ap and ap["segm"]["AP50"]}
    found = note if note else (f"last loss {rows[-1]['loss']:.2f}, AP50 of boxes {runs[name]['box']:.2f}, "
                               f"of masks {runs[name]['mask']:.2f}")
    print(f"{name}: {len(rows)} steps in {time.perf_counter() - start:.0f} s; {found}")

def smooth(values, width=8):
    return np.convolve(values, np.full(width, 1 / width), "valid")

def curve(name, key="loss"):
    return smooth([row[key] for row in runs[name]["rows"]])

run("rate 0.005")

# %%
figure, ax = plt.subplots(figsize=(6.6, 3), layout="constrained")
for key, colour in zip(("loss", "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"),
                       ("black", course.FORWARD, course.BACKWARD, course.GREEN, course.PINK, course.YELLOW)):
    ax.plot(np.arange(8, 121), curve("rate 0.005", key), color=colour,
            label="sum" if key == "loss" else key.removeprefix("loss_"))
ax.set(xlabel="step", ylabel="loss, mean of 8 steps", ylim=0)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5));

# %%
before, after = new_model().predict(list(images)), runs["rate 0.005"]["model"].predict(list(images))
figure, axes = viz.image_panels(8, 64, 64, columns=4, side=150)
for column, image in enumerate(images):
    for row, found in enumerate((before[column], after[column])):
        shown = found.scores >= 0.5
        viz.draw_detections(image, found.boxes[shown], masks=found.masks[shown], ax=axes[4 * row + column],
                            title=("untrained", "after 120 steps")[row] if column == 0 else None)
figure

# %% [markdown]
# By heart, and no more. On 30 scenes that it has never seen:

# %%
new = evaluate(runs["rate 0.005"]["model"], Shapes.held_out(30, "easy", size=64), progress=False)
print(f"AP50 of the boxes: {runs['rate 0.005']['box']:.2f} on the four scenes, {new['bbox']['AP50']:.2f} on new ones")

# %% [markdown]
# Back to the curves. Each loss has its own life. The class loss falls first: most RoIs are background, and "nothing here" is quickly
# learnt. The objectness follows, for most anchors are background, too. The box head's box loss *rises* at last: the more of its RoIs are
# near an object, the more boxes it is asked to place.
# And the four scenes are not known quite by heart: there are doubles, and the pictures show scores from 0.5 on only.
#
# ## 5  The learning rate
#
# Too small, right, too large.

# %%
run("rate 0.0005", lr=0.0005)
run("rate 0.5", lr=0.5)
rates = ["rate 0.0005", "rate 0.005", "rate 0.5"]
shades = dict(zip(rates, ("#3182bd", "black", course.BACKWARD)))

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 2.9), layout="constrained", width_ratios=(2, 1))
for name in rates:
    axes[0].plot(np.arange(8, 121), curve(name), color=shades[name], label=name)
axes[0].set(xlabel="step", ylabel="sum of the losses, mean of 8 steps", yscale="log")
axes[0].legend()
bars = axes[1].barh(rates, [runs[name]["box"] for name in rates], color=[shades[name] for name in rates])
axes[1].bar_label(bars, fmt=" %.2f")
axes[1].set(xlabel="AP50 of the boxes", xlim=(0, 1.25), xticks=[0, 0.5, 1])
axes[1].invert_yaxis()

# %% [markdown]
# Compare the two pictures. Judged by the sum of the losses alone, one would choose wrongly. How can that be? **The
# losses are not asked the same questions.** Which RoIs are sampled depends on what the RPN proposes. A network that
# proposes nothing near the objects is asked about background only, and background is easy. So we ask all three the *same*
# questions: the decisions of the run with 0.005 (anchors, RoIs, matches), frozen, given to each.

# %%
_, cache = runs["rate 0.005"]["model"].losses(list(images), list(targets), np.random.default_rng(0))
questions = cache.decisions
print("                own questions       the same questions    spread of the   hidden units that are")
print("             positive RoIs    loss        loss             class logits      0 for all RoIs")
for name in rates:
    m = runs[name]["model"]
    own, own_cache = m.losses(list(images), list(targets), np.random.default_rng(0))
    same, _ = m.losses(list(images), list(targets), None, questions)
    t = nprcnn.Trace()
    m.predict(list(images), trace=t)
    positive = int((np.concatenate(own_cache.decisions.labels) > 0).sum())
    dead = (t["roi_heads.box_hidden"] == 0).all(axis=0).mean()
    print(f"{name:12} {positive:8} {sum(map(float, own.values())):15.2f} {sum(map(float, same.values())):11.2f} "
          f"{t['roi_heads.class_logits'].std(axis=0).max():19.3f} {dead:18.0%}")

# %% [markdown]
# With the same questions the middle one is clearly the best. The last columns tell what has become of the network
# with the largest rate. How much do the class logits of different RoIs differ? Not at all: its answers do not depend on the
# image any more. Some wild steps (the peak in the picture) have driven ReLUs to where they are 0 for every input, and from
# there no gradient leads back.
#
# ## 6  Without warm-up, without clipping
#
# Rate 0.1, once with both and once without either.

# %%
run("0.1, both", lr=0.1, steps=60)
run("0.1, neither", lr=0.1, warmup_steps=0, max_grad_norm=1e9)

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 2.9), layout="constrained")
for name, colour in (("0.1, both", course.GREEN), ("0.1, neither", course.BACKWARD)):
    for ax, key in zip(axes, ("loss", "grad_norm")):
        values = np.array([row[key] for row in runs[name]["rows"]])[:40]
        ax.plot(values, color=colour, label=name)
        if runs[name]["note"]:
            last = np.flatnonzero(np.isfinite(values))[-1]
            ax.plot(last, values[last], "x", color=colour, markersize=9, markeredgewidth=2.5)
axes[0].set(yscale="log", xlabel="step", ylabel="sum of the losses", title="the cross: the last finite one")
axes[1].set(yscale="log", xlabel="step", ylabel="norm of the gradient", title="before clipping, the first 40 steps")
axes[1].axhline(10, color="#808080", linestyle=":")
axes[0].legend();

# %% [markdown]
# Without either, it is over after a few steps: a large step makes larger gradients, those a larger step. `train` stops at
# the first loss or norm that is not finite and says so, in one sentence, because one step later every weight would be NaN.
# With both there is no NaN, and no success: the rate is too large all the same, as the AP50 says. Warm-up and clipping help over a steep beginning and a
# rare wild batch. They do not make a wrong rate right, and can turn a loud failure into a silent one.
#
# ## 7  Anchors that do not fit
#
# This mistake can be found *before* the training, in a second. The sizes are those of the five levels. For the targets of 40 scenes of the
# same kind: how well does the best anchor fit each, how many anchors will be told to find one, and how far would they have to move (the
# largest of the four deltas of notebook [05](05_anchors_iou_and_box_coding.ipynb), section 6, without its sign)?

# %%
SIZES = {"16, 32, ...": 16, "a quarter": 4, "16 times": 256}

def anchors_of(smallest):
    return {"anchor_sizes": tuple((smallest * 2 ** k,) for k in range(5))}

many = Shapes(40, 5, "easy", size=64)
true_boxes = [many[i][1]["boxes"] for i in range(40)]
sides = np.sqrt(np.concatenate([(box[:, 2:] - box[:, :2]).prod(axis=1) for box in true_boxes]))
count = len(sides)
print(f"{count} targets, their sides: {sides.min():.0f} to {sides.max():.0f} pixels")
print("anchors       best IoU     with an      positive anchors   largest delta that")
print("              a target   IoU of 0.7         a target       a positive one needs")
for name, smallest in SIZES.items():
    t = nprcnn.Trace()
    new_model(**anchors_of(smallest)).predict(images[0], trace=t)
    best, positives, deltas = [], 0, []
    for boxes in true_boxes:
        iou = box_iou(boxes, t["rpn.anchors"])
        best.append(iou.max(axis=1))
        positive = np.flatnonzero(((iou >= 0.7) | (iou == iou.max(axis=1, keepdims=True))).any(axis=0))
        positives += len(positive)
        deltas.append(np.abs(encode_boxes(boxes[iou[:, positive].argmax(axis=0)], t["rpn.anchors"][positive])).max(axis=1))
    best = np.concatenate(best)
    print(f"{name:12} {best.mean():9.2f} {(best >= 0.7).mean():12.0%} {positives / count:17.1f} {np.concatenate(deltas).mean():20.2f}")

# %%
run("anchors a quarter", changes=anchors_of(4))
run("anchors 16 times", changes=anchors_of(256))

# %% [markdown]
# What did the RPN learn? Its **recall**: the share of the targets that one of its 50 proposals covers with an IoU of at least 0.5, and of
# 0.7. On the four scenes, and on the 40 that it has not seen (an RPN knows no classes, and learns faster than the box head).

# %%
def recall(model, scenes):
    """For each target the largest IoU with a proposal."""
    best = []
    for image, target in scenes:
        t = nprcnn.Trace()
        model.predict(image, trace=t)
        best.append(box_iou(target["boxes"], t["rpn.proposals"][0]).max(axis=1, initial=0))
    return np.concatenate(best)

kinds = {"rate 0.005": "black", "anchors a quarter": course.FORWARD, "anchors 16 times": course.BACKWARD}
fits = {name: (recall(runs[name]["model"], zip(images, targets)), recall(runs[name]["model"], [many[i] for i in range(40)]))
        for name in kinds}
print("anchors       by heart: 0.5    0.7    new scenes: 0.5    0.7    box AP50 by heart")
for name, size in zip(kinds, SIZES):
    by_heart, unseen = fits[name]
    print(f"{size:12} {(by_heart >= 0.5).mean():14.0%} {(by_heart >= 0.7).mean():6.0%} {(unseen >= 0.5).mean():18.0%} "
          f"{(unseen >= 0.7).mean():6.0%} {runs[name]['box']:13.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 2.9), layout="constrained")
for (name, colour), size in zip(kinds.items(), SIZES):
    axes[0].plot(np.arange(8, 121), curve(name, "loss_rpn_box_reg"), color=colour, label=f"anchors {size}")
    axes[1].plot(np.sort(fits[name][1])[::-1], np.arange(1, count + 1) / count, color=colour)
axes[0].set(xlabel="step", ylabel="loss_rpn_box_reg, mean of 8 steps", yscale="log")
axes[0].legend(fontsize=8)
axes[1].axvline(0.7, color="#808080", linestyle=":")
axes[1].set(xlabel="IoU with the best proposal, at least", ylabel="share of the targets", title="40 new scenes",
            xlim=(0, 1), ylim=(0, 1.02));

# %% [markdown]
# The program does not complain. Every target still gets its best anchor, however bad (notebook [06](06_the_rpn.ipynb), the rule for ties):
# so there is always something to learn from. What is wrong differs. At a quarter the anchors of the right size belong to coarse levels:
# few lie near a target, and they have far to move. At 16 times every anchor contains every target; all tie, and all are positive. The RPN
# is told that there is an object everywhere, and the box loss starts at hundreds of times the usual. In both cases the proposals for
# new scenes end up roughly in place, and rarely tight: compare the last column for 0.7.
#
# The AP50 of six objects learnt by heart is the worst of these witnesses: the box head moves the boxes once more, and can hide the fault.
# (And another seed gives another one. Try `run("again", changes=anchors_of(4), seed=3)`.) Count anchors before the training, and ask the RPN
# after it.
#
# ## 8  All is well, and the AP is 0
#
# The last one is the most expensive, because nothing shows it: the labels in the file begin elsewhere. COCO's
# ids, for example, go from 1 to 90 with gaps. Our data source, with every label one too high:

# %%
class OffByOne:
    """The four scenes, each label one too high."""

    class_names = names

    def __len__(self):
        return len(four)

    def __getitem__(self, i):
        image, target = four[i]
        return image, {**target, "labels": target["labels"] + 1}

run("labels + 1", source=OffByOne())
m = runs["labels + 1"]["model"]
print("true class -> what the model says (boxes with an IoU of 0.5, scores of 0.3):")
pairs = []
for image, target, found in zip(images, targets, m.predict(list(images))):
    iou = box_iou(found.boxes, target["boxes"])
    for d in np.flatnonzero((iou.max(axis=1) >= 0.5) & (found.scores >= 0.3)):
        pairs.append((int(target["labels"][iou[d].argmax()]), int(found.labels[d])))
for true, said in sorted(set(pairs)):
    print(f"  {names[true]:9} -> {names[said]:9} {pairs.count((true, said))} times")
print("AP50 against its own labels:", round(evaluate(m, OffByOne(), progress=False)["bbox"]["AP50"], 2))

# %% [markdown]
# The losses are close to those of the good run (the next table). Only the table of pairs tells. The remedy is older than networks: draw what
# goes in and what comes out, *with names*, before the long run.
#
# ## 9  All runs
#

# %%
print(f"{'run':18} steps   first loss   last loss   box AP50   mask AP50")
for name, r in runs.items():
    losses = [row["loss"] for row in r["rows"]]
    numbers = "       -           -" if r["note"] else f"{r['box']:8.2f} {r['mask']:11.2f}"
    print(f"{name:18} {len(losses):5} {losses[0]:12.2f} {np.mean(losses[-5:]):11.3g}   {numbers}")

# %% [markdown]
# | what you see | where to look first |
# |---|---|
# | NaN | the norm of the gradient just before; then the rate, the warm-up, boxes without area |
# | the loss is low, nothing is found | the number of positive RoIs; the same questions; do the answers depend on the image? |
# | the loss hardly moves | the rate; are the parameters trainable? |
# | only the RPN's box loss is high | the anchors against the targets' sizes |
# | the losses are fine, AP is 0 | the labels; then the order x1, y1, x2, y2; then resized against original pixels |
# | all is fine on the training images, not on new ones | more images (section 4 had four) |
#
# ## Exercises
#
# Solutions are in `solutions/12_solutions.ipynb`.
#
# ### Exercise 1: one step
#
# Equation (1), for one parameter. Return the new $w$ and the new $v$; write into none of the arguments.
#
# <details><summary>Hint 1</summary>First the velocity, then the weight, with the new velocity.</details>
# <details><summary>Hint 2</summary>v = ... makes a new array; v += ... writes into the argument.</details>

# %%
def sgd_step(w, v, g, lr, momentum, decay):
    """w, v, g of one shape -> the new w, the new v."""
    ...                                                   # your code; return w, v

check_sgd_step(sgd_step)

# %% [markdown]
# ### Exercise 2: the schedule, for many steps at once
#
# `rate_naive` for an array of steps, without a loop over them. `warmup` may be 0, `drops` may be empty.
#
# <details><summary>Hint 1</summary>How many drops lie behind each step? steps[:, None] >= np.array(drops) * total is (n, drops).</details>
# <details><summary>Hint 2</summary>base * 0.1 ** count, times the rise: np.minimum(1, (steps + 1) / warmup).</details>

# %%
def learning_rates(steps, base, total, warmup, drops):
    """steps (n,) int -> (n,)."""
    ...                                                   # your code; return the rates

check_learning_rates(learning_rates)

# %% [markdown]
# ### Exercise 3: clip together
#
# Two gradients of any shapes, one norm. If it is above `most`, scale both by one factor so that it is `most`.
#
# <details><summary>Hint 1</summary>The squares of all numbers of both, added, then the root.</details>
# <details><summary>Hint 2</summary>All gradients may be 0: do not divide by that norm.</details>

# %%
def clip_together(a, b, most):
    """Arrays of any shapes -> both, scaled."""
    ...                                                   # your code; return a, b

check_clip_together(clip_together)

# %% [markdown]
# ## Summary
#
# - A step: draw, five losses, backward, clip, velocity, weights. The steepest direction limits the rate, $\eta < 2 / b$,
#   and $2 (1 + \mu) / b$ with momentum.
# - Warm-up for the steep beginning, drops for the trembling end, clipping against the one wild batch.
# - The sum of the losses is no measure of quality: what is asked depends on the network. Freeze the decisions to compare.
# - Look at anchors and labels before the training. Learn four images by heart before four hundred thousand.
#
# **Read next.** In this course: [13 Detections and AP by hand](13_detections_and_ap.ipynb). In the code:
# `nprcnn/train/loop.py`, `sgd.py`, `schedule.py`. Elsewhere: Goyal et al., *Accurate, large minibatch SGD*, arXiv
# 1706.02677; He, Girshick and Dollár, *Rethinking ImageNet pre-training*, arXiv 1811.08883, on training detectors from
# random weights; Karpathy's notes, *A recipe for training neural networks* (2019).
