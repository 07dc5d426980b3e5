# %% [markdown]
# # 13  Detections and AP by hand
#
# "Mask AP 37.1": one number that a whole paper hangs on. What is it the average of? This notebook computes it by hand,
# from single detections to the number, until it is the *same* number that COCO's own program gives.
#
# It is a short way with several turns that are easily taken wrong: which detection belongs to which object, what
# counts as a mistake, what does not count at all. Two programs that differ in one of them give numbers that cannot be
# compared.
#
# **You need:** notebook [05](05_anchors_iou_and_box_coding.ipynb) (IoU). **You will be able to:** read a
# precision-recall curve, compute COCO's AP and AR with areas, crowds and limits, and say which changes of a detector AP
# sees and which it does not. About 75 minutes with the exercises.
#
# ## Where we are
#
# Behind the last arrows: the two heads have answered, the detections are there, and we have the targets beside them.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import course, viz
from nprcnn.course.average_precision import check_area_ap, check_mask_iou, check_match_voc
from nprcnn.data import Shapes
from nprcnn.evaluate import METRICS, coco_metrics, evaluate
from nprcnn.ops.boxes import box_area, box_iou

course.style()
rng = np.random.default_rng(0)
course.where_we_are("box_head", "mask_head")
plt.rcParams["figure.constrained_layout.use"] = False     # viz places its panels itself

# %% [markdown]
# The trained model, 40 scenes that it has never seen. D is the number of detections, G of targets (*ground truth*), of
# one image and one class.
#
# | array | shape | |
# |---|---|---|
# | `scores` | (D,) | best first |
# | `iou` | (D, G) | of boxes, or of masks |
# | `match` | (D,) | the target of each detection, −1 for none |
# | `precision`, `recall` | (all D of the class,) | after the best 1, 2, 3, ... detections |
# | interpolated precision | (101,) | at recall 0, .01, ..., 1 |
# | all of them | (10, 101, K) | for 10 IoU thresholds and K classes; AP is their mean |

# %%
source = Shapes.held_out(40)
names = source.class_names
model = nprcnn.maskrcnn_tiny(weights="shapes")
scenes = [source[i] for i in range(40)]
results = [model.predict(image) for image, _ in scenes]
print(f"{len(scenes)} scenes, {sum(len(t['labels']) for _, t in scenes)} targets, "
      f"{sum(len(r.labels) for r in results)} detections with a score above {model.box_score_thresh}")

# %% [markdown]
# ## 1  One scene
#
# AP needs many images, but every step begins with one. The left picture shows the targets, the middle one the
# detections, the right one those that a user would see, with a score of at least 0.5.

# %%
shown = 34
(image, target), result = scenes[shown], results[shown]
height, width = image.shape[:2]
figure, axes = viz.image_panels(3, width, height, side=256)
viz.draw_detections(image, target["boxes"], target["labels"], class_names=names, ax=axes[0], title="targets")
viz.draw_boxes(image, result.boxes, ax=axes[1], title=f"all {len(result.boxes)} detections", width=1.2)
sure = result.scores >= 0.5
viz.draw_detections(image, result.boxes[sure], result.labels[sure], result.scores[sure], class_names=names, ax=axes[2],
                    title="score at least 0.5")
figure

# %% [markdown]
# Many detections with low scores lie on the same objects, as other classes. That is on purpose. A detector for a
# product hides them. A detector that is to be measured shows them: AP asks how well the *scores* tell right from wrong,
# and for that it wants to see both.
#
# ## 2  Which detection is right?
#
# Each class is measured alone. A detection is right if it lies well enough on a target of its class: if their **IoU**
# is at least a threshold. For boxes that is notebook 05's. For masks it is the same with pixels:
#
# $$\mathrm{IoU}(a, b) = \frac{|a \cap b|}{|a \cup b|} . \tag{1}$$

# %%
def mask_iou_naive(found, targets):
    """Equation (1), one pair at a time: (D, H, W), (G, H, W) -> (D, G)."""
    iou = np.zeros((len(found), len(targets)))
    for d, a in enumerate(found.astype(bool)):
        for g, b in enumerate(targets.astype(bool)):
            iou[d, g] = (a & b).sum() / max((a | b).sum(), 1)
    return iou

boxes_iou = box_iou(result.boxes, target["boxes"])
masks_iou = mask_iou_naive(result.masks, target["masks"])
found_names = [f"{names[k]} {s:.2f}" for k, s in zip(result.labels, result.scores)]
figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.4), layout="constrained")
for ax, iou, title in ((axes[0], boxes_iou, "IoU of the boxes"), (axes[1], masks_iou, "IoU of the masks")):
    course.show_matrix(ax, iou, title, "target")
    ax.set(xticks=range(len(target["labels"])), xticklabels=[names[k] for k in target["labels"]],
           yticks=range(len(found_names)), yticklabels=found_names)
    ax.set_aspect("auto")
    ax.tick_params(length=0)
axes[0].set_ylabel("detection, best score first");

# %% [markdown]
# Many of these rows hold a large number, and in most of them it is not worth anything: the class is another one.
#
# What if two detections lie on the same target? Only one of them can be right, or else a detector could say everything
# three times. COCO's rule is **greedy**: the detections come one after the other, best score first. Each takes the
# target with the largest IoU among those that are *still free*, if it reaches the threshold. Who takes one is right (a
# *true positive*, TP), who does not is wrong (a *false positive*, FP). Targets that are left are missed (*false
# negatives*, FN).

# %%
def match_naive(iou, threshold, tell=None):
    """iou (D, G), best score first -> (D,): the target of each detection, or -1."""
    taken = np.zeros(iou.shape[1], bool)
    match = np.full(len(iou), -1)
    for d in range(len(iou)):
        best = threshold
        for g in range(iou.shape[1]):
            if not taken[g] and iou[d, g] >= best:
                best, match[d] = iou[d, g], g
        if match[d] >= 0:
            taken[match[d]] = True
        if tell:
            tell(d, match[d], taken.copy())
    return match

def step_through(shown, k):
    """Print each step of the matching of one class in one scene, boxes at 0.5."""
    found, (_, there) = results[shown], scenes[shown]
    mine, theirs = np.flatnonzero(found.labels == k), np.flatnonzero(there["labels"] == k)
    iou = box_iou(found.boxes[mine], there["boxes"][theirs])
    print(f"scene {shown}, class {names[k]}: {len(mine)} detections, {len(theirs)} target(s)")
    match_naive(iou, 0.5, lambda d, g, taken: print(
        f"  score {found.scores[mine[d]]:.2f}, IoU {iou[d].round(2)}: "
        + (f"TP, takes target {g}" if g >= 0 else "FP, nothing is left for it") + f"; taken {taken}"))

step_through(34, names.index("square"))
step_through(30, names.index("star"))

# %% [markdown]
# In scene 30 the second star has an IoU above 0.5 and is wrong all the same: its target has gone to a better score. Back
# to scene 34, all classes: green is TP and orange FP, for two thresholds.

# %%
def match_scene(result, iou, threshold):
    """(D,) the target of each detection, all classes of one image."""
    match = np.full(len(result.labels), -1)
    for k in range(1, len(names)):
        d, g = np.flatnonzero(result.labels == k), np.flatnonzero(target["labels"] == k)
        inside = match_naive(iou[np.ix_(d, g)], threshold)
        match[d[inside >= 0]] = g[inside[inside >= 0]]
    return match

pale = (255 - (255 - image.astype(float)) * 0.35).astype(np.uint8) // 8 * 8
figure, axes = viz.image_panels(2, width, height, side=300)
for ax, threshold in zip(axes, (0.5, 0.92)):
    match = match_scene(result, boxes_iou, threshold)
    missed = np.setdiff1d(np.arange(len(target["labels"])), match)
    viz.draw_detections(pale, ax=ax,
                        title=f"IoU {threshold}: {(match >= 0).sum()} TP, {(match < 0).sum()} FP, {len(missed)} FN")
    for wanted, colour, line in ((False, course.BACKWARD, 1), (True, course.GREEN, 2.5)):
        for box in result.boxes[(match >= 0) == wanted]:
            ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=colour, linewidth=line))
figure

# %% [markdown]
# ### Greedy is not best
#
# A detection takes what is best for *it*. That can cost another one its only chance:

# %%
two = np.array([[0.8, 0.7],                               # the surer detection fits both targets
                [0.6, 0.1]])                              # the other one fits only the first
print("greedy:", match_naive(two, 0.5), "  the other way round both would be right:", two[[0, 1], [1, 0]])

# %% [markdown]
# One could search for the assignment with the most hits. COCO does not. The rule is part of the measure: whoever
# assigns otherwise measures something else. (VOC's rule is again another one: exercise 2.)
#
# ## 3  Precision and recall
#
# Now all images together, still one class. Put all its detections in one list, best score first. After the first $n$
# of the list:
#
# $$\mathrm{precision}_n = \frac{\mathrm{TP}_n}{n}, \qquad \mathrm{recall}_n = \frac{\mathrm{TP}_n}{\text{all targets of the class}} . \tag{2}$$
#
# Precision is the share of what was *said* that is right. Recall is the share of what was *there* that was found. We
# take the masks of the stars at an IoU of 0.75, a hard case. First we collect what is needed of each image.

# %%
def one_image(result, target, k):
    """What AP needs of one image and one class, the detections best first."""
    d = np.flatnonzero(result.labels == k)
    d, g = d[np.argsort(-result.scores[d], kind="stable")], np.flatnonzero(target["labels"] == k)
    boxes, target_boxes = result.boxes[d].astype(float), target["boxes"][g].astype(float)
    return {"scores": result.scores[d],
            "box": box_iou(boxes, target_boxes), "mask": mask_iou_naive(result.masks[d], target["masks"][g]),
            "box_area": box_area(boxes), "mask_area": result.masks[d].sum(axis=(1, 2)),
            "target_area": target["masks"][g].sum(axis=(1, 2))}

records = {k: [one_image(r, t, k) for r, (_, t) in zip(results, scenes)] for k in range(1, len(names))}

def ranked(images, kind, threshold):
    """All detections of a class -> scores (D,), correct (D,), best first, and the number of targets."""
    scores = np.concatenate([r["scores"] for r in images])
    correct = np.concatenate([match_naive(r[kind], threshold) >= 0 for r in images])
    order = np.argsort(-scores, kind="stable")
    return scores[order], correct[order], sum(r[kind].shape[1] for r in images)

star = names.index("star")
scores, correct, count = ranked(records[star], "mask", 0.75)
hits = np.cumsum(correct)
precision, recall = hits / np.arange(1, len(hits) + 1), hits / count
print(f"{count} stars in all, {len(scores)} detections\n  n  score  right  TP  precision  recall")
for n in [*range(6), *range(18, 24), len(scores) - 1]:
    print(f"{n + 1:3}  {scores[n]:.3f}  "
          f"{'TP' if correct[n] else 'FP':5}  {hits[n]:2}  {precision[n]:9.3f}  {recall[n]:6.3f}")

# %% [markdown]
# Down the list recall can only rise, and precision goes up and down. Drawn against each other:

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.9), layout="constrained")
place = np.arange(1, len(scores) + 1)
axes[0].plot(place, precision, label="precision")
axes[0].plot(place, recall, label="recall")
axes[0].plot(place, scores, color="#909090", linestyle=":", label="score")
axes[0].set(xlabel="detections of the list, best first", ylabel="share, or score", ylim=(0, 1.02), title="stars, masks at IoU 0.75")
axes[0].legend()
axes[1].plot(recall, precision, color="#b0b0b0")
for right, colour, label in ((True, course.GREEN, "right"), (False, course.BACKWARD, "wrong")):
    axes[1].plot(recall[correct == right], precision[correct == right], "o", color=colour, markersize=4, label=label)
axes[1].set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05), title="precision against recall")
axes[1].legend();

# %% [markdown]
# Each right one goes one step to the right, each wrong one goes straight down. The threshold on the score, which a user
# would choose, is only a place on this curve. AP wants to judge all places at once.
#
# ## 4  From the curve to a number
#
# **Average precision** is the area under the curve, after one repair. The teeth say that with *more* detections
# precision gets better. A user who could choose would never stop in a gap. So the precision at a recall becomes the
# best that can be had at this recall *or beyond*:
#
# $$p_{\mathrm{interp}}(r) = \max_{\tilde r \ge r} p(\tilde r), \qquad
# \mathrm{AP} = \frac{1}{101} \sum_{r \in \{0,\, 0.01,\, \ldots,\, 1\}} p_{\mathrm{interp}}(r) . \tag{3}$$
#
# The interpolation is PASCAL VOC's (Everingham et al., *The PASCAL Visual Object Classes challenge*, 2010, section
# 4.2), which took 11 points, later the exact area (exercise 3). COCO takes 101. Recall that is never reached has precision 0.

# %%
RECALLS = np.linspace(0, 1, 101)

def interpolate(correct, count):
    """correct (D,) best first -> (101,): equation (3)'s precision at each of RECALLS."""
    hits = np.cumsum(correct)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / count
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]            # the largest from here to the right
    first = np.searchsorted(recall, RECALLS, side="left")                 # the first detection that reaches each recall
    return np.append(best_beyond, 0)[first]

def interpolate_naive(correct, count):
    """Equation (3) word for word."""
    points = []
    for r in RECALLS:
        reached = [hits / n for n, hits in enumerate(np.cumsum(correct), 1) if hits / count >= r]
        points.append(max(reached, default=0))
    return np.array(points)

points = interpolate(correct, count)
assert np.allclose(points, interpolate_naive(correct, count), rtol=0, atol=1e-15)
eleven = points[::10].mean()
exact = np.maximum.accumulate(precision[::-1])[::-1][correct].sum() / count
print(f"AP of the stars' masks at IoU 0.75: 101 points {points.mean():.4f}, 11 points {eleven:.4f}, exact area {exact:.4f}")
figure, ax = plt.subplots(figsize=(5.6, 3), layout="constrained")
ax.fill_between(RECALLS, points, step="mid", color=course.FORWARD, alpha=0.15)
ax.plot(recall, precision, color="#808080", linewidth=1, label="as it is")
ax.plot(RECALLS, points, ".", markersize=3.5, color=course.FORWARD, label="interpolated, 101 points")
ax.plot(RECALLS[::10], points[::10], "s", markersize=5, markerfacecolor="none", color=course.BACKWARD, label="11 points")
ax.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.02), ylim=(0, 1.05))
ax.legend(loc="lower left");

# %% [markdown]
# The three rules differ in the second or third digit. So "AP" without the rule says little.
#
# ## 5  How exact? Ten thresholds
#
# At an IoU of 0.5 a mask may be quite wrong and still count. VOC left it there. COCO takes ten thresholds, 0.50, 0.55,
# ..., 0.95, and the mean over all of them. AP50 and AP75 are single ones. (Mask R-CNN, section 4: "AP (averaged over
# IoU thresholds), AP50, AP75"; in its tables with *mask* IoU.)

# %%
IOUS = np.linspace(0.5, 0.95, 10)

def ap(images, kind, threshold):
    _, correct, count = ranked(images, kind, threshold)
    return interpolate(correct, count).mean()

ap_of = {kind: np.array([[ap(records[k], kind, t) for k in records] for t in IOUS]) for kind in ("box", "mask")}   # (10, K)
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3), layout="constrained")
for threshold, shade in zip((0.5, 0.7, 0.75, 0.8, 0.85, 0.9), np.linspace(0.25, 1, 6)):
    _, right, n = ranked(records[star], "mask", threshold)
    axes[0].plot(RECALLS, interpolate(right, n), color=plt.get_cmap("Blues")(shade), label=f"IoU {threshold}")
axes[0].set(xlabel="recall", ylabel="precision, interpolated", title="stars, masks", ylim=(0, 1.05))
axes[0].legend(fontsize=8)
for kind, colour in (("box", course.FORWARD), ("mask", course.BACKWARD)):
    axes[1].plot(IOUS, ap_of[kind].mean(axis=1), "o-", color=colour, markersize=4,
                 label="boxes" if kind == "box" else "masks")
    axes[1].axhline(ap_of[kind].mean(), color=colour, linestyle=":")
    axes[1].text(0.5, ap_of[kind].mean() - 0.01, f"AP {ap_of[kind].mean():.3f}", color=colour, va="top", fontsize=9)
axes[1].set(xlabel="IoU threshold", ylabel="AP of six classes", title="mean over the classes", ylim=(0, 1.05))
axes[1].legend(loc="lower left");

# %% [markdown]
# The dotted lines are the numbers that a paper would print. Both curves begin at nearly the same height: nearly all
# objects are found. What makes the difference is how *exact* they are found, and there the masks fall earlier.
#
# Which classes?

# %%
print("class      targets  box AP  mask AP")
for k, box_ap, mask_ap in zip(records, ap_of["box"].mean(axis=0), ap_of["mask"].mean(axis=0)):
    print(f"{names[k]:9} {sum(r['box'].shape[1] for r in records[k]):8}  {box_ap:6.3f}  {mask_ap:7.3f}")

# %% [markdown]
# The classes have different numbers of targets and count the same: the mean over classes is a mean of means. In a data
# set with a rare class, a handful of objects can move the whole number.
#
# ## 6  The same number as COCO's program
#
# Everything so far was ours. `nprcnn.evaluate` hands detections and targets to **pycocotools**, the program that COCO
# itself measures with. It runs the model again, matches, ranks and interpolates, in its own way.

# %%
official = evaluate(model, source, progress=False)
for kind, theirs in (("box", "bbox"), ("mask", "segm")):
    for label, ours in (("AP", ap_of[kind].mean()), ("AP50", ap_of[kind][0].mean()), ("AP75", ap_of[kind][5].mean())):
        other = official[theirs][label]
        assert abs(ours - other) < 1e-12                  # sums of 6060 numbers of size 1, rounded to 1e-16 each
        print(f"{kind:4} {label:4}  ours {ours:.12f}  pycocotools {other:.12f}")

# %% [markdown]
# Twelve digits. Look into `pycocotools/cocoeval.py` now, and you will find each of our lines: `evaluateImg` is
# `match_naive`, `accumulate` is `interpolate`. But it has more of them. What are they for?
#
# ## 7  What does not count: areas
#
# AP_small, AP_medium and AP_large are for targets with less than 32², up to 96², and more pixels. It sounds easy:
# leave out the others. But a detector that finds a large object has done nothing wrong, and must not be punished
# in AP_small. So targets outside of the range are not left out. They are **ignored**:
#
# 1. They are not counted in recall.
# 2. A detection that takes an ignored target is ignored too: neither TP nor FP.
# 3. A detection prefers a target that counts, if it reaches the threshold, to an ignored one, even if that fits better.
# 4. A detection that takes nothing, and whose own area is outside of the range, is ignored as well.

# %%
def match_coco(iou, threshold, ignored, crowd):
    """iou (D, G), ignored (G,), crowd (G,) -> (D,) target or -1. With no ignored ones it is match_naive."""
    order = np.argsort(ignored, kind="stable")            # those that count come first: rule 3
    taken, match = np.zeros(iou.shape[1], bool), np.full(len(iou), -1)
    for d in range(len(iou)):
        best = threshold
        for g in order:
            if taken[g] and not crowd[g]:
                continue
            if match[d] >= 0 and not ignored[match[d]] and ignored[g]:
                break                                     # it has one that counts, and only ignored ones follow
            if iou[d, g] >= best:
                best, match[d] = iou[d, g], g
        if match[d] >= 0:
            taken[match[d]] = True
    return match

pair = np.array([[0.6, 0.9]])
no = np.zeros(2, bool)
print("both count:             takes", match_coco(pair, 0.5, no, no)[0])
print("the second is ignored:  takes", match_coco(pair, 0.5, np.array([False, True]), no)[0])
print("  and at 0.75:          takes", match_coco(pair, 0.75, np.array([False, True]), no)[0], "and is ignored with it")

# %% [markdown]
# Area means what is measured: of boxes their area, of masks their pixels. But for the *targets* COCO always takes the
# mask's pixels, for boxes too. (A ring in a box of 40 x 40 may be small.)

# %%
RANGES = {"AP": (0, 1e10), "AP_small": (0, 32 ** 2), "AP_medium": (32 ** 2, 96 ** 2), "AP_large": (96 ** 2, 1e10)}

def ranked_in(images, kind, threshold, low, high, most=100):
    """Like `ranked`, with areas of low to high alone, and at most `most` detections an image."""
    scores, correct, count = [], [], 0
    for r in images:
        ignored = (r["target_area"] < low) | (r["target_area"] > high)
        match = match_coco(r[kind][:most], threshold, ignored, np.zeros(len(ignored), bool))
        area = r[kind + "_area"][:most]
        outside = (match < 0) & ((area < low) | (area > high))            # rule 4
        counts = ~outside & ~np.append(ignored, False)[match]             # match -1 reads the False at the end
        scores.append(r["scores"][:most][counts])
        correct.append(match[counts] >= 0)
        count += (~ignored).sum()
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return np.concatenate(scores)[order], np.concatenate(correct)[order], count

def mean_ap(kind, low, high, records=records):
    """The mean over thresholds and those classes that have a target in the range; -1 if none has."""
    values = []
    for k in records:
        for t in IOUS:
            _, correct, count = ranked_in(records[k], kind, t, low, high)
            if count:
                values.append(interpolate(correct, count).mean())
    return np.mean(values) if values else -1.0

areas = np.concatenate([r["target_area"] for k in records for r in records[k]])
print(f"{(areas == 32 ** 2).sum()} target has exactly 32 x 32 pixels: it is in two ranges, whose ends both belong to them")
print("targets:", {name: int(((areas >= low) & (areas <= high)).sum()) for name, (low, high) in RANGES.items()})
for kind, theirs in (("box", "bbox"), ("mask", "segm")):
    for name, (low, high) in RANGES.items():
        ours = mean_ap(kind, low, high)
        assert abs(ours - official[theirs][name]) < 1e-12
        print(f"{kind:4} {name:9} ours {ours:7.4f}  pycocotools {official[theirs][name]:7.4f}")

# %% [markdown]
# There is no large object in our scenes, and so AP_large has no value: −1 stands for "undefined", and is not a very
# bad detector. What would have happened with targets left out and nothing ignored?

# %%
def left_out(kind, low, high):
    """The wrong way: drop the targets outside of the range, keep all detections."""
    values = []
    for k in records:
        kept = [{**r, kind: r[kind][:, (r["target_area"] >= low) & (r["target_area"] <= high)]} for r in records[k]]
        values += [ap(kept, kind, t) for t in IOUS if sum(r[kind].shape[1] for r in kept)]
    return np.mean(values)

for name in ("AP_small", "AP_medium"):
    print(f"mask {name:9}: ignored {mean_ap('mask', *RANGES[name]):.3f}, left out {left_out('mask', *RANGES[name]):.3f}")

# %% [markdown]
# ## 8  Crowds
#
# Sometimes nobody can say where one object ends: a stand full of people, a heap of apples. COCO then has one
# region for all, marked `iscrowd`. A crowd is ignored like the targets above, with two differences. Any number of
# detections may take it. And since one apple is small in a heap, the IoU would be tiny, and so the question is
# another one: how much of the *detection* lies in the crowd?
#
# $$\mathrm{IoU}_{\mathrm{crowd}}(a, b) = \frac{|a \cap b|}{|a|} . \tag{4}$$
#
# A small world to try it: one target, one crowd, four detections. Once with the mark, once without.

# %%
objects = np.array([[10, 10, 30, 30], [40, 10, 100, 60]], float)          # the second is the crowd
seen = np.array([[11, 11, 31, 31], [42, 12, 60, 30], [70, 30, 95, 55], [20, 70, 40, 90]], float)
sure = np.array([0.8, 0.95, 0.9, 0.7])

def entry(box, **more):
    x1, y1, x2, y2 = box
    return {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0, **more}

figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.2), layout="constrained", sharey=True)
for ax, marked in zip(axes, (False, True)):
    crowd = np.array([False, marked])
    iou = box_iou(seen, objects)
    corner, end = np.maximum(seen[:, None, :2], objects[None, :, :2]), np.minimum(seen[:, None, 2:], objects[None, :, 2:])
    inter = np.maximum(end - corner, 0).prod(axis=2)
    iou = np.where(crowd, inter / box_area(seen)[:, None], iou)           # equation (4)
    order = np.argsort(-sure)
    match = np.full(4, -1)
    match[order] = match_coco(iou[order], 0.5, crowd, crowd)
    counts = ~np.append(crowd, False)[match]
    right = (match >= 0)[order][counts[order]]
    ours = interpolate(right, (~crowd).sum()).mean()
    truths = [entry(box, iscrowd=int(c)) for box, c in zip(objects, crowd)]
    theirs = coco_metrics(truths, [entry(b, score=s) for b, s in zip(seen, sure)], {1: (100, 110)},
                          ("background", "apple"), ("bbox",))
    assert abs(ours - theirs["bbox"]["AP50"]) < 1e-12
    for box, c in zip(objects, crowd):
        ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), facecolor="#dddddd",
                                   hatch="///" if c else None, edgecolor="#909090"))
    for box, s, m, c in zip(seen, sure, match, counts):
        colour, word = ("#606060", "ignored") if not c else (course.GREEN, "TP") if m >= 0 else (course.BACKWARD, "FP")
        ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=colour, linewidth=2))
        ax.text(*(box[:2] + box[2:]) / 2, f"{s}\n{word}", color=colour, fontsize=8, ha="center", va="center",
                bbox=dict(facecolor="white", edgecolor="none", pad=0.6))
    ax.set(xlim=(0, 110), ylim=(100, 0), aspect="equal", xlabel="x in pixels",
           title=f"the crowd {'marked' if marked else 'not marked'}: AP50 {ours:.3f}")
axes[0].set_ylabel("y in pixels");

# %% [markdown]
# Grey areas are targets, the hatched one is the crowd. Both AP50 are pycocotools', as the assertion says. Without the
# mark the two best detections are wrong and the large region is missed. With the mark they do not count, nor does it.
#
# Crowds are for the evaluation only: most trainings leave them out.
#
# ## 9  How many detections? AR
#
# **Average recall** asks only how many are found: the recall at the end of the list, averaged over the ten thresholds
# and the classes. With at most 1, 10 or 100 detections (AR1, AR10, AR100), it says whether the best few suffice. At most
# so many *of what*? The documentation says: an image. Read the program, or try it: an image with two classes, an object
# of each, both found. If the limit of 1 were for the image, AR1 would be 0.5.

# %%
both = [entry(objects[0]), entry(objects[1], category_id=2)]
answer = coco_metrics(both, [{**e, "score": 0.9} for e in both], {1: (100, 110)}, ("background", "apple", "pear"),
                      ("bbox",))
print("AR1 of the two classes:", answer["bbox"]["AR1"], " so the limit is for each class of an image")

def mean_ar(kind, most):
    values = []
    for k in records:
        for t in IOUS:
            _, correct, count = ranked_in(records[k], kind, t, *RANGES["AP"], most)
            values.append(correct.sum() / count)
    return np.mean(values)

for kind, theirs in (("box", "bbox"), ("mask", "segm")):
    for most in (1, 10, 100):
        ours = mean_ar(kind, most)
        assert abs(ours - official[theirs][f"AR{most}"]) < 1e-12
        print(f"{kind:4} AR{most:<3} ours {ours:.4f}  pycocotools {official[theirs][f'AR{most}']:.4f}")

# %% [markdown]
# The twelve numbers of COCO are now all explained:

# %%
print("       " + "  ".join(f"{name:>9}" for name in METRICS[:6]))
for kind in ("bbox", "segm"):
    print(f"{kind:6} " + "  ".join(f"{official[kind][name]:9.3f}" for name in METRICS[:6]))
print("\n       " + "  ".join(f"{name:>9}" for name in METRICS[6:]))
for kind in ("bbox", "segm"):
    print(f"{kind:6} " + "  ".join(f"{official[kind][name]:9.3f}" for name in METRICS[6:]))

# %% [markdown]
# ## 10  What does AP see?
#
# A measure is understood when we know what moves it. We change the detections in six ways and measure again (masks,
# all classes). Guess first.

# %%
def changed(change):
    """All records, with `change(record)` in the place of each."""
    return {k: [change(r) for r in images] for k, images in records.items()}

def keep(r, d, scores=None):
    """The record with the detections d alone, sorted by score."""
    scores = r["scores"][d] if scores is None else scores
    order = np.argsort(-scores, kind="stable")
    return {**r, "scores": scores[order], **{name: r[name][d][order] for name in ("box", "mask", "box_area", "mask_area")}}

def twice(r, factor):
    d = np.arange(len(r["scores"]))
    return keep(r, np.concatenate([d, d]), np.concatenate([r["scores"], factor * r["scores"]]))

changes = {
    "as it is": lambda r: r,
    "scores cubed": lambda r: {**r, "scores": r["scores"] ** 3},
    "random scores": lambda r: keep(r, np.arange(len(r["scores"])), rng.random(len(r["scores"]))),
    "score above 0.5 only": lambda r: keep(r, np.flatnonzero(r["scores"] > 0.5)),
    "all twice, copy at 0.001 of the score": lambda r: twice(r, 0.001),
    "all twice, copy at 0.999 of the score": lambda r: twice(r, 0.999),
    "every mask beside its object, IoU 0": lambda r: {**r, "mask": 0 * r["mask"]},
}
for name, change in changes.items():
    value = mean_ap("mask", *RANGES["AP"], changed(change))
    print(f"{name:38} AP {value:.3f}")

# %% [markdown]
# - **Only the order of the scores counts.** Cubed, they are the same; random ones ruin it. AP does not ask
#   whether 0.9 means "right in nine of ten cases".
# - **A long tail costs nothing.** Doubles at the end of the list are free. Right behind their originals they are
#   expensive. And a threshold on the score can only lose: the end of the list goes, and recall
#   with it. So a detector is measured with a low one, here 0.05.
#
# And how exact must a box be? Move all of them by some pixels to the right:

# %%
def moved(pixels):
    """AP of the boxes at each of IOUS, all boxes moved to the right."""
    per_threshold = np.zeros((len(IOUS), len(records)))
    for column, k in enumerate(records):
        images = []
        for r, result_, (_, t) in zip(records[k], results, scenes):
            d = np.flatnonzero(result_.labels == k)
            d = d[np.argsort(-result_.scores[d], kind="stable")]
            boxes = result_.boxes[d].astype(float) + np.array([pixels, 0, pixels, 0])
            images.append({**r, "box": box_iou(boxes, t["boxes"][t["labels"] == k].astype(float))})
        per_threshold[:, column] = [ap(images, "box", t) for t in IOUS]
    return per_threshold.mean(axis=1)

steps = [0, 0.5, 1, 2, 3, 4, 6, 8]
after = np.array([moved(step) for step in steps])         # (8, 10)
figure, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
ax.plot(steps, after[:, 0], "o-", markersize=4, label="AP50")
ax.plot(steps, after[:, 5], "o-", markersize=4, label="AP75")
ax.plot(steps, after.mean(axis=1), "o-", markersize=4, color="black", label="AP")
ax.set(xlabel="all boxes moved by ... pixels", ylabel="AP of the boxes", ylim=(0, 1.05))
ax.legend()
print("AP:", dict(zip(steps, after.mean(axis=1).round(3).tolist())))

# %% [markdown]
# A pixel or two, which AP50 hardly sees, cost AP dearly. That is why the half pixel of notebook
# [08](08_roi_pool_and_roi_align.ipynb) was worth a paper.
#
# ### How sure is the number?
#
# We have 40 scenes. Others would give another number. How different? Draw 40 of our scenes *with repetition*, measure,
# and do it 200 times (the bootstrap, Efron 1979). And beside it a common mistake: compute AP for each image alone, and
# take the mean.

# %%
def table(k, t):
    """Of one class and threshold: scores, hits and image of all detections, targets of each image."""
    match = [match_naive(r["mask"], t) >= 0 for r in records[k]]
    image_of = np.repeat(np.arange(len(match)), [len(m) for m in match])
    return (np.concatenate([r["scores"] for r in records[k]]), np.concatenate(match), image_of,
            np.array([r["mask"].shape[1] for r in records[k]]))

tables = [table(k, t) for k in records for t in IOUS[::3]]                # four thresholds are enough for this

def weighted_ap(times):
    """times (40,): how often each scene was drawn."""
    values = []
    for scores, correct, image_of, targets in tables:
        again = np.repeat(np.arange(len(scores)), times[image_of])
        again = again[np.argsort(-scores[again], kind="stable")]
        if targets @ times:
            values.append(interpolate(correct[again], targets @ times).mean())
    return np.mean(values)

draws = [weighted_ap(np.bincount(rng.integers(40, size=40), minlength=40)) for _ in range(200)]
whole, single = weighted_ap(np.ones(40, int)), [weighted_ap(row) for row in np.eye(40, dtype=int)]
low, high = np.percentile(draws, [2.5, 97.5])
print(f"mask AP at four thresholds: {whole:.3f}; 95 % of the draws lie in {low:.3f} .. {high:.3f}")
print(f"mean of the 40 scenes' own APs: {np.mean(single):.3f}")
figure, ax = plt.subplots(figsize=(5.6, 2.2), layout="constrained")
ax.hist(draws, bins=24, color=course.FORWARD, alpha=0.7)
ax.axvline(whole, color="black", linewidth=2, label="all 40 scenes")
ax.axvline(np.mean(single), color=course.BACKWARD, linewidth=2, label="mean of single images")
ax.axvspan(low, high, color="#000000", alpha=0.07, label="95 % of the draws")
ax.set(xlabel="mask AP (four thresholds)", ylabel="draws")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9);

# %% [markdown]
# Two detectors that differ by much less than the width of that heap cannot be told apart by 40 scenes. And the mean of
# single images is another measure: there every image has its own list, and no score has to hold against those of other
# images.
#
# ## Exercises
#
# Solutions are in `solutions/13_solutions.ipynb`.
#
# ### Exercise 1: IoU of masks, with crowds
#
# Our `mask_iou_naive` has two loops. Write it without, and with crowds: where `crowd[g]`, equation (4). An empty mask
# has an IoU of 0 with everything. `found` is bool and `targets` is uint8, as in the project.
#
# <details><summary>Hint 1</summary>Make each mask a vector: masks.reshape(len(masks), −1). The dot product of two such vectors counts their common pixels.</details>
# <details><summary>Hint 2</summary>All at once it is a matrix product, (D, HW) @ (HW, G). Which dtype has the product of two uint8 matrices?</details>
# <details><summary>Hint 3</summary>np.where(crowd, area, area + target_area − inter), with area of shape (D, 1) and target_area (1, G). Below at least 1.</details>

# %%
def mask_iou(found, targets, crowd):
    """found (D, H, W) bool, targets (G, H, W) uint8, crowd (G,) bool -> (D, G)."""
    ...                                                   # your code; return the IoUs

check_mask_iou(mask_iou)

# %% [markdown]
# ### Exercise 2: VOC's matching
#
# PASCAL VOC matches otherwise. Each detection, best first, looks at the target with the largest IoU, **whether it is
# free or not**. Below the threshold it is wrong (0). If that target is *difficult* (VOC's word for ignored), it does not
# count (−1). If the target has been found before, it is wrong (0). Otherwise it is right (1).
#
# <details><summary>Hint 1</summary>iou.argmax(axis=1) is the target of each detection. It does not depend on the others.</details>
# <details><summary>Hint 2</summary>A loop over the detections, and an array taken (G,) of bool.</details>
# <details><summary>Hint 3</summary>There may be no target at all: then all are wrong, and argmax would raise. Reaching the threshold exactly is enough.</details>

# %%
def match_voc(iou, difficult, threshold):
    """iou (D, G), best score first, difficult (G,) bool -> (D,) int: 1 right, 0 wrong, -1 not counted."""
    ...                                                   # your code; return the answer

check_match_voc(match_voc)

# %% [markdown]
# ### Exercise 3: the exact area
#
# Since 2010 VOC takes the exact area under the interpolated curve. `scores` and `correct` come in any order; `count` is
# the number of targets.
#
# <details><summary>Hint 1</summary>Sort first. Then precision, and its largest value from each place to the right, as in interpolate.</details>
# <details><summary>Hint 2</summary>Recall moves only at a hit. By how much?</details>
# <details><summary>Hint 3</summary>The area is a sum of rectangles, one a hit, 1 / count wide. Missed targets add nothing.</details>

# %%
def area_ap(scores, correct, count):
    """scores (D,), correct (D,) bool, count int -> a number."""
    ...                                                   # your code; return the area

check_area_ap(area_ap)

# %% [markdown]
# ## Summary
#
# - For each class and IoU threshold: match greedily by score, rank the detections of *all* images, follow precision and
#   recall, interpolate, take the mean over 101 recalls. AP is the mean over thresholds and classes.
# - A second detection of the same target is wrong. The rule of matching is part of the measure.
# - Targets outside of an area range, and crowds, are ignored: they count neither as found nor as missed, and what takes
#   them does not count either. A crowd is taken by whatever lies in it.
# - Only the order of the scores counts. Low-scoring doubles are free, a threshold on the score is not. AP sees pixels
#   that AP50 does not.
# - −1 means undefined. A number without its rule, and without a word on its spread, says little.
#
# **Read next.** In this course: [18 The same numbers](18_the_same_numbers.ipynb). In the code: `nprcnn/evaluate/`, and
# `cocoeval.py` of pycocotools. Elsewhere: the COCO paper, arXiv 1405.0312; Hoiem, Chodpathumwan and Dai, *Diagnosing
# error in object detectors* (2012); Bolya et al., *TIDE*, arXiv 2008.08115; Kirillov et al., *Panoptic segmentation*,
# arXiv 1801.00868, for a measure that does without scores.
