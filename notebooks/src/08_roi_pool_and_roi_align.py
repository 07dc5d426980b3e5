# %% [markdown]
# # 08  RoIPool, RoIAlign and the half pixel
#
# A proposal is a box like (54.1, 67.9, 112.4, 118.2). The box head wants 7 x 7 numbers for each channel, whatever the
# size of the box. And all that we have of the image at this point is a feature map, whose cells are 4 to 32 pixels
# wide. Somebody must cut the box out of the map, and make it 7 x 7.
#
# The first idea is to round: to whole cells, and then to whole bins. That is **RoIPool**, and for saying "a star" it
# is good enough. For saying which *pixels* are the star's it is not. Mask R-CNN's one new layer, **RoIAlign**, does
# the same without rounding. In this notebook we write both, with their backward passes, see half a pixel go missing,
# and find out how far it moves a mask.
#
# **You need:** notebooks [01](01_what_a_backward_pass_is.ipynb) (gather and scatter-add) and
# [07](07_proposals_and_nms.ipynb) (proposals). **You will be able to:** write RoIAlign forward and backward, say what
# `sampling_ratio` and `aligned` mean and when they matter, and find a half-pixel error. About 90 minutes with the
# exercises.
#
# ## Where we are
#
# Between the two stages: features come from the pyramid, boxes from the RPN. What leaves has one size for all RoIs.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import check_gradients, course, viz
from nprcnn.course.roi import check_looked_at, check_point_backward, check_sample_backward
from nprcnn.data import Shapes
from nprcnn.gradcheck import GradientCheckError, check_adjoint
from nprcnn.models.roi_features import RoIFeatures
from nprcnn.ops.activation import sigmoid
from nprcnn.ops.boxes import box_iou
from nprcnn.ops.paste import paste_masks
from nprcnn.ops.roi_align import roi_align, roi_align_backward, roi_align_forward, roi_align_grad
from nprcnn.ops.roi_pool import roi_pool, roi_pool_backward, roi_pool_forward

course.style()
rng = np.random.default_rng(0)
course.where_we_are("roi_align")

# %% [markdown]
# The letters: N images, C channels, (H, W) the size of a feature map, R RoIs.
#
# | tensor | shape | what it is |
# |---|---|---|
# | features | (N, C, H, W) | one level of the pyramid; a cell is `stride` pixels wide |
# | rois | (R, 5) | number of the image, then x1, y1, x2, y2 in pixels *of the image* |
# | `spatial_scale` | | 1 / stride: from pixels to cells |
# | output | (R, C, 7, 7) | for the box head: `roi_heads.box_features` |
# | output | (R, C, 14, 14) | for the mask head: `roi_heads.mask_features` |

# %%
source = Shapes.held_out(60)
image, target = source[2]
names = source.class_names
height, width = image.shape[:2]
model = nprcnn.maskrcnn_tiny(weights="shapes")
trace = nprcnn.Trace()
result = model.predict(image, trace=trace)

star = int((result.boxes[:, 2] - result.boxes[:, 0]).argmax())           # the largest detection
box = result.boxes[star].astype(float)
w, h = box[2:] - box[:2]
print(f"our RoI: a {names[result.labels[star]]},", box.round(1), f"{w:.1f} x {h:.1f} pixels")
for level in range(2, 6):
    x1, y1, x2, y2 = box / 2 ** level
    print(f"P{level}, stride {2 ** level:2}: map {str(trace[f'fpn.p{level}'].shape):16} "
          f"in cells ({x1:5.2f}, {y1:5.2f}, {x2:5.2f}, {y2:5.2f}), {x2 - x1:4.1f} x {y2 - y1:4.1f}")

figure, axes = viz.image_panels(2, width, height, side=256)
viz.draw_detections(image // 8 * 8, result.boxes[[star]], result.labels[[star]], class_names=names, ax=axes[0],
                    title="the scene, and our RoI")
channel = trace["fpn.p3"][0].std(axis=(1, 2)).argmax()
axes[1].imshow(trace["fpn.p3"][0, channel], cmap="viridis", extent=(0, width, height, 0))
axes[1].add_patch(plt.Rectangle(box[:2], w, h, fill=False, edgecolor="white", linewidth=2))
axes[1].set_title(f"P3, channel {channel}: 16 x 16 cells", fontsize=9, loc="left")
figure

# %% [markdown]
# The RoI begins *between* two cells, and it is not 7 or 14 cells wide on any level. All that follows is about these
# two facts.
#
# ## 1  RoIPool: round, and take the maximum
#
# Fast R-CNN (Girshick 2015, arXiv 1504.08083, section 2.1). For one RoI:
#
# 1. divide the coordinates by the stride, and **round** them to whole cells;
# 2. divide the RoI, of $n$ cells, into 7 x 7 bins. Bin $i$ begins at cell $\lfloor i\, n / 7 \rfloor$ and ends before
#    cell $\lceil (i + 1)\, n / 7 \rceil$. **Rounded** again;
# 3. each output is the maximum of its bin.

# %%
def round_half_away(x):
    return np.sign(x) * np.floor(np.abs(x) + 0.5)         # 2.5 -> 3; np.round would say 2

def pool_edges(start, end, bins, length):
    """One axis. start, end in cells -> first cell and one past the last cell of each bin."""
    first, last = int(round_half_away(start)), int(round_half_away(end))
    n = max(last - first + 1, 1)                          # the cell at `end` belongs to the RoI
    starts = [first + int(np.floor(i * n / bins)) for i in range(bins)]
    stops = [first + int(np.ceil((i + 1) * n / bins)) for i in range(bins)]
    return np.clip(starts, 0, length), np.clip(stops, 0, length)

def roi_pool_naive(features, roi, scale, bins):
    """features (C, H, W), roi (x1, y1, x2, y2) in pixels -> (C, bins, bins)."""
    C, H, W = features.shape
    x1, y1, x2, y2 = roi * scale
    top, bottom = pool_edges(y1, y2, bins, H)
    left, right = pool_edges(x1, x2, bins, W)
    y = np.zeros((C, bins, bins))
    for i in range(bins):
        for j in range(bins):
            if bottom[i] > top[i] and right[j] > left[j]:                 # an empty bin stays 0
                y[:, i, j] = features[:, top[i]:bottom[i], left[j]:right[j]].max(axis=(1, 2))
    return y

def as_rois(*boxes):
    """Boxes of image 0 -> (R, 5)."""
    return np.concatenate([np.zeros((len(boxes), 1)), np.array(boxes, float)], axis=1)

features = {level: trace[f"fpn.p{level}"].astype(float) for level in range(2, 6)}         # float64 from here on
odd = np.array([-9.0, 100.0, 30.0, 140.0])                               # reaches beyond the image
for name, roi in (("our RoI", box), ("a RoI that sticks out", odd)):
    for level, bins in ((2, 7), (3, 7), (4, 14)):
        ours = roi_pool_naive(features[level][0], roi, 1 / 2 ** level, bins)
        theirs, _ = roi_pool(features[level], as_rois(roi), 1 / 2 ** level, bins)
        assert np.array_equal(ours, theirs[0])
        print(f"{name:22} P{level}, {bins:2} x {bins:2} bins: equal to nprcnn's")

# %%
def frame(ax, box, colour, style="-", width=2, label=None):
    """Draw one box (x1, y1, x2, y2)."""
    ax.add_patch(plt.Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=colour,
                               linestyle=style, linewidth=width, label=label))

def draw_cells(ax, level, roi, title):
    """The map's cells around a RoI, in the image's pixels, with the object's true outline."""
    stride = 2 ** level
    ax.imshow(np.ones((1, 1)), cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    for k in range(0, width + 1, stride):
        ax.axvline(k, color="#999999", linewidth=1)
        ax.axhline(k, color="#999999", linewidth=1)
    ax.contour(np.arange(width) + 0.5, np.arange(height) + 0.5, true_mask, [0.5], colors="black", linewidths=1)
    frame(ax, roi, course.FORWARD, label="RoI")
    middle, half = (roi[:2] + roi[2:]) / 2, (roi[2:] - roi[:2]).max() * 0.85
    ax.set(title=title, xlabel="x in pixels", xlim=(middle[0] - half, middle[0] + half),
           ylim=(middle[1] + half, middle[1] - half))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)

truth = int(box_iou(box[None], target["boxes"].astype(float))[0].argmax())
true_mask = target["masks"][truth].astype(bool)
figure, axes = plt.subplots(1, 3, figsize=(9, 3.5), sharey=True)
for ax, (level, bins) in zip(axes, ((3, 7), (4, 7), (5, 7))):
    stride = 2 ** level
    draw_cells(ax, level, box, f"P{level}: cells of {stride} pixels")
    x1, y1, x2, y2 = box / stride
    left, right = np.multiply(pool_edges(x1, x2, bins, width // stride), stride)              # in pixels
    top, bottom = np.multiply(pool_edges(y1, y2, bins, height // stride), stride)
    for i in range(bins):
        for j in range(bins):
            ax.add_patch(plt.Rectangle((left[j], top[i]), right[j] - left[j], bottom[i] - top[i],
                                       facecolor=course.BACKWARD, alpha=0.08, edgecolor="none"))
    frame(ax, box, course.FORWARD)                        # once more, above the orange
    frame(ax, (left[0], top[0], right[-1], bottom[-1]), course.BACKWARD, "--", label="RoIPool sees")
axes[0].set_ylabel("y in pixels")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2);

# %% [markdown]
# Blue is the box that we asked for, orange what RoIPool looks at. Where the orange is darker, bins overlap: on P4 and
# P5 there are fewer cells than bins, and neighbours share them.
#
# **How far off is it?** Rounding moves an edge by up to half a cell. For a coordinate that may be anywhere, that is a
# quarter of a cell on average. We measure the left edge, for the proposals of 20 scenes:

# %%
t = nprcnn.Trace()
scenes = [source[i] for i in range(20)]
model.predict([scene for scene, _ in scenes], trace=t)
edges = np.concatenate([p[:, 0] for p in t["rpn.proposals"]]).astype(float)
edges = edges[edges > 0]                                  # those cut at the border are at 0 exactly
print("stride   mean move   a quarter   largest move   half a cell   (in pixels)")
for stride in (4, 8, 16, 32):
    move = np.abs(round_half_away(edges / stride) * stride - edges)
    print(f"{stride:6} {move.mean():11.2f} {stride / 4:11.2f} {move.max():14.2f} {stride / 2:13.2f}")

# %% [markdown]
# With a stride of 16, as in the C4 models of the paper, up to 8 pixels. "*These quantizations introduce misalignments
# between the RoI and the extracted features. While this may not impact classification, which is robust to small
# translations, it has a large negative effect on predicting pixel-accurate masks*" (He et al. 2017, arXiv 1703.06870,
# section 3). Section 8 measures that.
#
# ## 2  Reading between the cells
#
# To do without rounding we must be able to read the map at a place like (3.3, 5.8). **Bilinear interpolation**: a
# weighted mean of the four cells around, each the heavier the nearer it is. With $y_0 = \lfloor y \rfloor$ and the
# fraction $v = y - y_0$ (likewise $x_0$ and $u$):
#
# $$F(y, x) = (1 - v)(1 - u)\, F_{y_0, x_0} + (1 - v)\, u\, F_{y_0, x_0 + 1} +
# v (1 - u)\, F_{y_0 + 1, x_0} + v u\, F_{y_0 + 1, x_0 + 1} . \tag{1}$$
#
# At the border somebody has to decide. The rules here are those of torchvision: more than one cell outside it is 0;
# up to one cell outside it is as on the border.

# %%
def bilinear(F, y, x):
    """Equation (1): F (C, H, W), one place in cells -> (C,)."""
    C, H, W = F.shape
    if y < -1 or y > H or x < -1 or x > W:
        return np.zeros(C)
    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
    v, u = y - y0, x - x0
    return ((1 - v) * (1 - u) * F[:, y0, x0] + (1 - v) * u * F[:, y0, x1]
            + v * (1 - u) * F[:, y1, x0] + v * u * F[:, y1, x1])

F = np.array([[1.0, 2, 0, 1], [0, 5, 1, 2], [2, 1, 3, 0], [0, 2, 1, 1]])
places = np.linspace(-2, 5, 141)
values = np.array([[bilinear(F[None], y, x)[0] for x in places] for y in places])
figure, axes = plt.subplots(1, 3, figsize=(8.8, 2.8), width_ratios=[1, 1, 1.25])
course.show_matrix(axes[0], F, "F  (4, 4)", "column", "row", "{:.0f}")
drawn = axes[1].imshow(values, cmap="viridis", extent=(-2, 5, 5, -2))
axes[1].plot(*np.meshgrid(range(4), range(4)), ".", color="white", markersize=4)
axes[1].set(title="F read everywhere", xlabel="x in cells", ylabel="y in cells", xticks=range(-1, 5),
            yticks=range(-1, 5))
for y, style in ((1.0, "-"), (1.5, "--")):
    axes[2].plot(places, [bilinear(F[None], y, x)[0] for x in places], style, label=f"y = {y}")
axes[2].plot(range(4), F[1], "o", color=course.FORWARD, markersize=5)
axes[2].set(title="along a row", xlabel="x in cells", ylabel="F(y, x)")
axes[2].legend()
print("at a cell:", bilinear(F[None], 1, 1), " between two:", bilinear(F[None], 1, 1.5), " in the middle of four:",
      bilinear(F[None], 1.5, 1.5), " outside:", bilinear(F[None], 1, 4.01))

# %% [markdown]
# The surface has no jumps inside, only creases where one goes from cell to cell. In the third picture the value at
# the border holds for one more cell, and then falls to 0.
#
# ## 3  RoIAlign
#
# Mask R-CNN, section 3, "RoIAlign": no rounding of the RoI, none of the bins. In each bin take some regularly placed
# points, read the map there by (1), and take the mean. With a RoI that begins at $y_s$ and is $h$ cells high, in bins
# of $h / 7$ cells, point $i$ of $s$ in bin $o$ lies at
#
# $$y = y_s + \Bigl( o + \frac{i + 1/2}{s} \Bigr) \frac{h}{7}, \qquad i = 0 \ldots s - 1, \tag{2}$$
#
# in the middle of its share. $s$ is the **sampling ratio**: 2 here, so 2 x 2 points a bin. (`aligned` is the matter
# of section 5. Without it, a RoI is made at least 1 cell large.)

# %%
def sample_points(start, side, bins, ratio):
    """Equation (2) for one axis: (bins, ratio) places in cells. ratio 0: as many as there are cells in a bin."""
    s = ratio if ratio > 0 else int(np.ceil(side / bins))
    o, i = np.arange(bins)[:, None], np.arange(s)[None]
    return start + (o + (i + 0.5) / s) * side / bins

def roi_align_naive(F, roi, scale, bins, ratio=2, aligned=False):
    """F (C, H, W), roi (x1, y1, x2, y2) in pixels -> (C, bins, bins)."""
    x1, y1, x2, y2 = roi * scale - (0.5 if aligned else 0)
    w, h = x2 - x1, y2 - y1
    if not aligned:
        w, h = max(w, 1), max(h, 1)
    ys, xs = sample_points(y1, h, bins, ratio), sample_points(x1, w, bins, ratio)
    out = np.zeros((len(F), bins, bins))
    for i in range(bins):
        for j in range(bins):
            out[:, i, j] = np.mean([bilinear(F, y, x) for y in ys[i] for x in xs[j]], axis=0)
    return out

for ratio, aligned in ((2, False), (2, True), (1, False), (0, False), (0, True)):
    worst = 0
    for roi, level, bins in ((box, 3, 7), (odd, 2, 7), (box, 2, 14), (np.array([60.0, 60, 61, 60.5]), 2, 7)):
        ours = roi_align_naive(features[level][0], roi, 1 / 2 ** level, bins, ratio, aligned)
        theirs = roi_align(features[level], as_rois(roi), 1 / 2 ** level, bins, ratio, aligned)[0]
        worst = max(worst, np.abs(ours - theirs).max())
    assert worst < 1e-12
    print(f"sampling ratio {ratio}, aligned {aligned!s:5}: 4 RoIs, largest difference to nprcnn {worst:.0e}")

r = result.proposal[star]
roi, level = trace["rpn.proposals"][0][r].astype(float), int(result.level[star])
ours = roi_align_naive(features[level][0], roi, 1 / 2 ** level, 7)
print(f"the model's own 7 x 7 of our star (RoI {r}, from P{level}): largest difference "
      f"{np.abs(ours - trace['roi_heads.box_features'][r]).max():.0e}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
for ax, level in zip(axes, (3, 4, 5)):
    stride = 2 ** level
    draw_cells(ax, level, box, f"P{level}: 7 x 7 bins, 2 x 2 points each")
    for k in range(8):
        ax.plot(np.full(2, box[0] + k * (box[2] - box[0]) / 7), box[[1, 3]], color=course.FORWARD, linewidth=0.4)
        ax.plot(box[[0, 2]], np.full(2, box[1] + k * (box[3] - box[1]) / 7), color=course.FORWARD, linewidth=0.4)
    xs = sample_points(box[0] / stride, (box[2] - box[0]) / stride, 7, 2).ravel() * stride
    ys = sample_points(box[1] / stride, (box[3] - box[1]) / stride, 7, 2).ravel() * stride
    ax.plot(*np.meshgrid(xs, ys), ".", color=course.GREEN, markersize=3)
axes[0].set_ylabel("y in pixels");

# %% [markdown]
# The grid of bins is now exactly the RoI, whatever the cells are. On P5 many points fall into one cell: their values
# still differ, for they lie at different places between the cells.
#
# ## 4  Slide the box
#
# What does it mean that nothing is rounded? Let the box slide to the right in small steps, and watch one output
# number. The map is a *ramp* whose value is the x of its cell, so the output should simply follow the box.

# %%
ramp = np.tile(np.arange(12.0), (12, 1))[None, None]      # (1, 1, 12, 12), stride 16
steps = np.arange(0, 48, 0.5)
moving = as_rois(*[(40 + s, 40, 104 + s, 104) for s in steps])
pooled, aligned = roi_pool(ramp, moving, 1 / 16, 7)[0], roi_align(ramp, moving, 1 / 16, 7)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.7))
axes[0].plot(steps, pooled[:, 0, 3, 3], color=course.BACKWARD, label="RoIPool")
axes[0].plot(steps, aligned[:, 0, 3, 3], color=course.FORWARD, label="RoIAlign")
axes[0].set(xlabel="box moved by, in pixels", ylabel="output, middle bin", title="the map is a ramp")
axes[0].legend()
channel = features[4][0].std(axis=(1, 2)).argmax()
moving = as_rois(*[box + [s - 24, 0, s - 24, 0] for s in steps])
real_pool, real_align = roi_pool(features[4], moving, 1 / 16, 7)[0], roi_align(features[4], moving, 1 / 16, 7)
axes[1].plot(steps - 24, real_pool[:, channel, 3, 3], color=course.BACKWARD)
axes[1].plot(steps - 24, real_align[:, channel, 3, 3], color=course.FORWARD)
axes[1].set(xlabel="box moved by, in pixels", ylabel="output, middle bin",
            title=f"P4 of our image, channel {channel}")
for name, y in (("RoIPool", pooled), ("RoIAlign", aligned)):
    jumps = np.abs(np.diff(y[:, 0, 3, 3]))
    print(f"{name:8} on the ramp: {np.count_nonzero(jumps > 1e-9):2} of {len(jumps)} steps change the output, "
          f"the largest by {jumps.max():.2f} cells = {16 * jumps.max():.1f} pixels")

# %% [markdown]
# RoIPool stands still and then jumps by a whole cell: 16 pixels. All boxes between two jumps look the same to it, so
# it cannot tell the heads where exactly the box lies.
#
# ## 5  The half pixel
#
# Where *is* a cell? A cell of stride 16 stands for the pixels 0 to 16, so its centre is at 8. But its index is 0, and
# equation (1) treats index 0 as "at 0". If we divide pixels by the stride and read there, we are half a cell off:
#
# $$\text{pixel } x \;\to\; \text{index } \frac{x}{\text{stride}} - \frac{1}{2} . \tag{3}$$
#
# `aligned=True` subtracts this half. Test: a map that holds the true x of each cell's centre. The bins of a box
# should then read the x of *their* centres.

# %%
def centre_error(stride, aligned, box=(37.0, 41.0, 93.0, 90.0), bins=7):
    """Mean of what RoIAlign reads minus the bins' true centres, in pixels."""
    count = 192 // stride
    map_ = np.tile((np.arange(count) + 0.5) * stride, (count, 1))[None, None]
    read = roi_align(map_, as_rois(box), 1 / stride, bins, 2, aligned)[0, 0, 0]
    centres = box[0] + (np.arange(bins) + 0.5) * (box[2] - box[0]) / bins
    return (read - centres).mean()

print("stride   aligned=False   aligned=True   half a cell   (pixels)")
for stride in (4, 8, 16, 32):
    print(f"{stride:6} {centre_error(stride, False):15.2f} {centre_error(stride, True):14.2f} {stride / 2:13.2f}")

figure, ax = plt.subplots(figsize=(7, 1.9))
for k in range(5):
    ax.add_patch(plt.Rectangle((k * 16, 0), 16, 1, facecolor="#eeeeee" if k % 2 else "#dddddd"))
    ax.text(k * 16 + 8, 0.5, f"cell {k}", ha="center", va="center", fontsize=9)
for offset, colour, y, name in ((0, course.BACKWARD, 1.35, "index × 16: aligned=False"),
                                (8, course.GREEN, -0.35, "(index + 1/2) × 16: aligned=True")):
    ax.plot(np.arange(5) * 16 + offset, np.full(5, y), "o", color=colour)
    ax.text(82, y, name, va="center", color=colour, fontsize=9)
    up = 1 if y > 1 else -1
    for k in range(5):
        ax.text(k * 16 + offset, y + 0.3 * up, str(k), ha="center", va="center", fontsize=8)
ax.set(xlim=(-4, 150), ylim=(-0.95, 1.95), yticks=[], xticks=range(0, 81, 16), xlabel="x in pixels, stride 16")
ax.spines[["left", "bottom"]].set_visible(False)
ax.xaxis.set_label_coords(0.29, -0.25)

# %% [markdown]
# So without `aligned`, as in the first implementations and in torchvision to this day, everything is read half a cell
# too far to the right and below: 2 pixels on P2, 16 on P5. Detectron2 turned `aligned` on, and remarks that it makes
# no difference to the results when convolutions follow. How can that be? The shift is *always the same*. A network
# can learn to live with a constant shift. It cannot learn what changes with each box, as RoIPool's rounding does.
#
# It follows that weights belong to a convention. Ours were trained with `aligned=False`. We ask the same model, same
# weights, with each of the three:

# %%
def centre_of(mask):
    """The mean (x, y) of a mask's pixels."""
    return np.array(np.nonzero(mask)).mean(axis=1)[::-1]

def evaluate(mask_features, box_features=None, count=20):
    """Mean IoU of the masks and of the boxes, and the mean shift (dx, dy) of the masks, in pixels."""
    before = model.mask_features, model.box_features
    model.mask_features, model.box_features = mask_features, box_features or before[1]
    rows = []
    for scene, t in scenes[:count]:
        found = model.predict(scene)
        overlap = box_iou(t["boxes"], found.boxes) * (t["labels"][:, None] == found.labels)
        for g in range(len(t["labels"])):
            if len(found.labels) and overlap[g].max() >= 0.5:
                d, true = overlap[g].argmax(), t["masks"][g].astype(bool)
                mask = found.masks[d]
                shift = centre_of(mask) - centre_of(true) if mask.any() else np.zeros(2)
                rows.append([(mask & true).sum() / (mask | true).sum(), overlap[g, d], *shift])
    model.mask_features, model.box_features = before
    return np.mean(rows, axis=0), np.mean(np.hypot(*np.transpose(rows)[2:]))

print(f"{'mask head reads with':22} mask IoU   mean shift (x, y)   mean distance   (pixels)")
kinds = {"RoIAlign": RoIFeatures("align", 14), "RoIAlign, aligned": RoIFeatures("align", 14, aligned=True),
         "RoIPool": RoIFeatures("pool", 14)}
for name, kind in kinds.items():
    (mask_iou, _, dx, dy), distance = evaluate(kind)
    print(f"{name:22} {mask_iou:8.2f}   {dx:+8.2f}, {dy:+5.2f} {distance:15.2f}")

# %% [markdown]
# With `aligned=True` all masks move to the right and down, by more than one and a half pixels (P2's half cell is 2):
# the shift that the weights had learned to undo. With RoIPool the *mean* shift is small, but the distance is half as
# large again as with RoIAlign: each mask is off in a direction of its own. (Do not read this as table 2c of the
# paper. There each network was trained with its own layer; here the weights were trained with the first one. Section
# 8 has a test without any weights.)
#
# ## 6  How many points?
#
# "*We note that the results are not sensitive to the exact sampling locations, or how many points are sampled, as
# long as no quantization is performed*" (section 3 of the paper). We compare different sampling ratios with a very
# fine one, for the proposals of our image, on the level that each is read from, and RoIPool with them.

# %%
proposals, proposal_levels = trace["rpn.proposals"][0].astype(float), trace["roi_heads.levels"][0]
fine, spread = {}, 0
for level in np.unique(proposal_levels):
    mine = as_rois(*proposals[proposal_levels == level])
    fine[level] = mine, roi_align(features[level], mine, 1 / 2 ** level, 7, 16)
    spread = max(spread, fine[level][1].std())

print("relative to the spread of the features:")
for name, ratio in (("1 point a bin", 1), ("2 x 2", 2), ("4 x 4", 4), ("adaptive", 0), ("RoIPool", None)):
    errors = []
    for level, (mine, exact) in fine.items():
        if ratio is None:
            y, _ = roi_pool(features[level], mine, 1 / 2 ** level, 7)
        else:
            y = roi_align(features[level], mine, 1 / 2 ** level, 7, ratio)
        errors.append(np.abs(y - exact).mean())
    print(f"  {name:14} mean |difference to 16 x 16| {np.mean(errors) / spread:.4f}")
sides = np.sqrt((proposals[:, 2] - proposals[:, 0]) * (proposals[:, 3] - proposals[:, 1])) / 2 ** proposal_levels
print(f"RoIs are {np.percentile(sides, 5):.1f} to {np.percentile(sides, 95):.1f} cells wide (5 to 95 %), "
      f"so a bin is {np.percentile(sides, 5) / 7:.1f} to {np.percentile(sides, 95) / 7:.1f} cells")

# %% [markdown]
# A bin is about a cell wide, because the level of an RoI was chosen by its size. So a few points are enough. (The
# adaptive ratio does worse than 2 x 2 here: a bin of less than a cell gets a single point.) In a model with one
# level, a large RoI has bins of many cells. Two points a side would skip some of them, and there the *adaptive*
# ratio, ceil(cells in a bin), makes sense (`sampling_ratio=0` in Detectron2).
#
# ## 7  As two matrix products, and backward
#
# The points of a bin form a grid, and the weight of a point on cell (a, b) in (1) is a product, one factor for y and
# one for x. So all of RoIAlign is
#
# $$Y = W_y\, F\, W_x^\top, \qquad W_y\ (7, H), \quad W_x\ (7, W), \tag{4}$$
#
# for each channel, where row $o$ of $W_y$ is the mean of the interpolation weights of the points of bin $o$. This is
# how `nprcnn/ops/roi_align.py` computes it.

# %%
def axis_weights(start, side, bins, length, ratio=2):
    """(bins, length): row o averages the interpolation weights of the points of bin o."""
    points = sample_points(start, side, bins, ratio)                      # (bins, s)
    weights = np.zeros((bins, length))
    for o in range(bins):
        for p in points[o]:
            if -1 <= p <= length:
                p = min(max(p, 0), length - 1)
                low, fraction = int(p), p - int(p)
                weights[o, low] += (1 - fraction) / len(points[o])
                weights[o, min(low + 1, length - 1)] += fraction / len(points[o])
    return weights

F, stride = features[3], 8
x1, y1, x2, y2 = box / stride
Wy, Wx = axis_weights(y1, y2 - y1, 7, F.shape[2]), axis_weights(x1, x2 - x1, 7, F.shape[3])
Y = Wy @ F[0] @ Wx.T                                                      # (C, 7, 7)
theirs = roi_align(F, as_rois(box), 1 / stride, 7)[0]
print(f"largest difference to nprcnn {np.abs(Y - theirs).max():.0e};  rows of Wy sum to {Wy.sum(axis=1).round(12)}")
figure, axes = plt.subplots(1, 1, figsize=(7.4, 3.4))
title = f"$W_y$ of our RoI on P3, in percent; it spans rows {y1:.2f} to {y2:.2f}"
course.show_matrix(axes, 100 * Wy, title, "row of the map", "bin", "{:.2g}")
axes.set(xticks=range(F.shape[2]), yticks=range(7))
axes.tick_params(length=0)

# %% [markdown]
# **Backward.** (4) is linear in F, so its backward is the transpose:
#
# $$dF = W_y^\top\, dY\, W_x . \tag{5}$$
#
# In words: every output hands its gradient to the cells that its points read, each with the weight with which it was
# read. Cells that were read by many bins, or by many RoIs, get the sum. That is rule 3 of notebook 01, with weights.
# The RoI's coordinates get nothing: they are constants (notebook 07, section 9).
#
# **RoIPool's backward** is the max-pool's: each output sends its gradient to the one cell that was the maximum.

# %%
def referee(name, forward, backward, inputs):
    for row in check_gradients(forward, backward, inputs, wrt=[0]):
        print(f"{name:30} backward {row.analytic:+.6f}  forward {row.numeric:+.6f}  error {row.relative:.0e}")

def align_forward(F, roi, scale):
    x1, y1, x2, y2 = roi * scale
    Wy, Wx = axis_weights(y1, y2 - y1, 7, F.shape[1]), axis_weights(x1, x2 - x1, 7, F.shape[2])
    return Wy @ F @ Wx.T, (Wy, Wx)

def align_backward(dy, cache):
    Wy, Wx = cache
    # forward: Y = Wy F Wx.T, so dF = Wy.T dY Wx
    return Wy.T @ dy @ Wx

def pool_forward(F, roi, scale):
    y = roi_pool_naive(F, roi, scale, 7)
    x1, y1, x2, y2 = roi * scale
    return y, (F, y, pool_edges(y1, y2, 7, F.shape[1]), pool_edges(x1, x2, 7, F.shape[2]))

def pool_backward(dy, cache):
    F, y, (top, bottom), (left, right) = cache
    dF = np.zeros_like(F)
    for c, i, j in np.ndindex(y.shape):
        window = F[c, top[i]:bottom[i], left[j]:right[j]]
        if window.size:
            # forward: y = F at the first place where the window has its maximum; bins overlap, so +=
            a, b = np.unravel_index(window.argmax(), window.shape)
            dF[c, top[i] + a, left[j] + b] += dy[c, i, j]
    return dF

small = rng.permutation(2 * 16 * 16).reshape(2, 16, 16) / 100.0           # distinct values: no ties for the maximum
for name, roi in (("inside", box), ("sticks out", odd)):
    referee(f"RoIAlign by hand, {name}", align_forward, align_backward, (small, roi, 1 / 8))
    referee(f"RoIPool by hand, {name}", pool_forward, pool_backward, (small, roi, 1 / 8))
rois = as_rois(box, odd, box + 3)
referee("nprcnn's RoIAlign, 3 RoIs", roi_align_forward, roi_align_backward, (small[None], rois, 1 / 8, 7))
referee("nprcnn's RoIPool, 3 RoIs", roi_pool_forward, roi_pool_backward, (small[None], rois, 1 / 8, 7))
error = check_adjoint(lambda F: roi_align(F, rois, 1 / 8, 7),
                      lambda dy: roi_align_grad(dy, rois, (1, 2, 16, 16), 1 / 8, 7),
                      small[None], rng.standard_normal((3, 2, 7, 7)))
print(f"nprcnn's RoIAlign is linear, adjoint test: relative error {error:.0e}")

# %% [markdown]
# Where does the gradient go? A `dy` of ones on all 49 outputs of one channel, for our RoI on P3 and P4:

# %%
figure, axes = plt.subplots(1, 4, figsize=(9.4, 2.6))
for k, level in enumerate((3, 4)):
    c = features[level][0].std(axis=(1, 2)).argmax()
    one, shape = features[level][:, c:c + 1], (1, 1, *features[level].shape[2:])
    y, cache = roi_pool_forward(one, as_rois(box), 1 / 2 ** level, 7)
    gradients = (("RoIAlign", roi_align_grad(np.ones((1, 1, 7, 7)), as_rois(box), shape, 1 / 2 ** level, 7)),
                 ("RoIPool", roi_pool_backward(np.ones((1, 1, 7, 7)), cache)))
    for ax, (name, g) in zip(axes[2 * k:], gradients):
        drawn = ax.imshow(g[0, 0], cmap="magma", extent=(0, width, height, 0), vmin=0)
        frame(ax, box, "white", width=1.2)
        ax.set(title=f"{name}, P{level}", xticks=[], yticks=[])
        figure.colorbar(drawn, ax=ax, shrink=0.75)
        print(f"P{level}, {name:8}: {np.count_nonzero(g):3} cells get a gradient, their sum is {g.sum():.0f}")

# %% [markdown]
# The same amount of gradient, 49, arrives. RoIAlign spreads it over all cells of the RoI. RoIPool gives it to the
# winners, and on P3 the others learn nothing from this RoI. (On P4 the bins are smaller than the cells, and every
# cell wins somewhere.) Also look where: both patches reach too far to the right and below, RoIAlign's by the half
# cell of section 5, RoIPool's by its last cell.
#
# ## 8  The mask that moved
#
# Now without any trained weights. Suppose the features were perfect: the map holds, for each cell, the share of the
# cell that the object covers. We cut the RoI out with 28 x 28 bins, paste the result back into the image as the mask
# head's output would be (notebook 10), and compare with the true mask. What is lost is lost by the cell size, and by
# the cutting.
#
# Beside RoIPool and the two kinds of RoIAlign, a fourth way, to see what rounding does all by itself: RoIAlign of the
# *rounded* box. (Table 2c of the paper has such a layer, RoIWarp: it rounds the RoI, then interpolates.)

# %%
def coverage(mask, stride):
    """(H, W) bool -> (1, 1, H / stride, W / stride): the share of each cell that the mask covers."""
    H, W = mask.shape
    return mask.reshape(H // stride, stride, W // stride, stride).mean(axis=(1, 3))[None, None]

def cut_and_paste(mask, box, stride, how):
    """The mask that comes back from a perfect map of that stride."""
    F = coverage(mask, stride)
    if how == "RoIPool":
        small, _ = roi_pool(F, as_rois(box), 1 / stride, 28)
    elif how == "rounded box":
        rounded = round_half_away(box / stride) * stride
        rounded[2:] = np.maximum(rounded[2:], rounded[:2] + stride)
        small = roi_align(F, as_rois(rounded), 1 / stride, 28, 2, True)
    else:
        small = roi_align(F, as_rois(box), 1 / stride, 28, 2, how == "RoIAlign, aligned")
    return paste_masks(small[:, 0], box[None], mask.shape)[0] > 0.5

ways = ("RoIAlign, aligned", "RoIAlign", "rounded box", "RoIPool")
objects = [(t["masks"][g].astype(bool), t["boxes"][g] + rng.uniform(-2, 2, 4))      # a box that is a bit off
           for _, t in scenes for g in range(len(t["labels"]))]
print(f"{len(objects)} objects: IoU with the true mask; mean move (x, y) of its centre; spread of the moves")
for stride in (4, 8, 16):
    print(f"stride {stride}")
    for how in ways:
        ious, moves = [], []
        for mask, b in objects:
            back = cut_and_paste(mask, b, stride, how)
            ious.append((mask & back).sum() / (mask | back).sum())
            if back.any():
                moves.append(centre_of(back) - centre_of(mask))
        (dx, dy), spread = np.mean(moves, axis=0), np.sqrt(np.var(moves, axis=0).sum())
        print(f"  {how:18} IoU {np.mean(ious):.2f}   moved ({dx:+.1f}, {dy:+.1f})   spread {spread:.1f} pixels")

# %%
figure, axes = plt.subplots(2, 4, figsize=(9, 4.9))
for row, stride in enumerate((8, 16)):
    for ax, how in zip(axes[row], ways):
        back = cut_and_paste(true_mask, box, stride, how)
        ax.imshow(coverage(true_mask, stride)[0, 0], cmap="Greys", vmin=0, vmax=1.6, extent=(0, width, height, 0))
        for mask, colour in ((true_mask, course.FORWARD), (back, course.BACKWARD)):
            ax.contour(np.arange(width) + 0.5, np.arange(height) + 0.5, mask, [0.5], colors=colour, linewidths=1.6)
        move = centre_of(back) - centre_of(true_mask)
        iou = (back & true_mask).sum() / (back | true_mask).sum()
        ax.set(title=f"{how}\nIoU {iou:.2f}, moved ({move[0]:+.1f}, {move[1]:+.1f})", xticks=[], yticks=[],
               xlim=(box[0] - 10, box[2] + 10), ylim=(box[3] + 10, box[1] - 10))
        ax.spines[:].set_visible(False)
    axes[row, 0].set_ylabel(f"stride {stride}")
axes[0, 0].plot([], [], color=course.FORWARD, label="true mask")
axes[0, 0].plot([], [], color=course.BACKWARD, label="cut and pasted")
figure.legend(loc="outside lower center", ncols=2);

# %% [markdown]
# There are two kinds of error in the table.
#
# - The **mean move** is nearly the same for all boxes. Without `aligned` it is up and to the left, by a bit less than
#   half a cell: what is read too far to the right appears too far to the left. RoIPool has about the same, because of
#   its extra last cell: it looks at more than the RoI, and squeezes it into the RoI's box. Trained weights can undo
#   this.
# - The **spread** is different for each box, and nobody can undo it. Compare the first and the third line: *rounding
#   the box*, with all else equal, doubles the spread at strides 4 and 8, and costs IoU. (The second line has more
#   spread than the first because a part of the object is moved out of the box, and cut off.)
#
# A perfect map of large cells makes a coarse mask, whatever the layer: with 16 pixels a cell, no line is good.
#
# And in the real network, with its weights? We let the star's box slide, one pixel at a time, and ask the mask head
# for the mask each time. The object does not move, so the pasted mask should stay where it is. (Whole pixels, because
# pasting itself rounds the box to whole pixels.)

# %%
pyramid = [trace[f"fpn.p{k}"] for k in range(2, 6)]
label = int(result.labels[star])

def mask_for(boxes, kind, level):
    """Boxes (R, 4) -> their pasted masks, read from one level, for our star's class."""
    x, _ = kind.forward(pyramid, as_rois(*boxes).astype(np.float32), np.full(len(boxes), level - 2), False)
    h, _ = model.roi_heads.mask_head.forward(x, False)
    z, _ = model.roi_heads.mask_predictor.forward(h, False)
    return paste_masks(sigmoid(z[:, label]), np.array(boxes, np.float32), (height, width)) > 0.5

moves = np.arange(-8, 9)
boxes_moved = [box + [m, 0, m, 0] for m in moves]
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.7), sharey=True)
for ax, level in zip(axes, (2, 3)):
    for name, colour in (("RoIAlign", course.FORWARD), ("RoIPool", course.BACKWARD)):
        x = np.array([centre_of(m)[0] for m in mask_for(boxes_moved, kinds[name], level)])
        ax.plot(moves, x - centre_of(true_mask)[0], ".-", color=colour, label=name)
        print(f"P{level}, {name:8}: the mask's place has a standard deviation of {x.std():.2f} pixels, "
              f"the largest move from one pixel to the next is {np.abs(np.diff(x)).max():.1f}")
    ax.axhline(0, color="#808080", linestyle=":")
    ax.set(xlabel="box moved by, in pixels", title=f"read from P{level}")
axes[0].set_ylabel("mask's centre − true, pixels")
axes[0].legend(fontsize=8);

# %% [markdown]
# With RoIAlign the box may slide over the object, and the mask stays nearly where it is. With RoIPool the mask rides
# along with the box until the rounding jumps, and is thrown back: a saw-tooth, and a larger one where the cells are
# larger.
#
# The paper's own measurement is in its tables 2c and 2d, where each network is trained with its own layer: from
# RoIPool to RoIAlign the mask AP goes from 26.9 to 30.3 with features of stride 16, and from 23.6 to 30.9 with stride
# 32.
#
# ## Exercises
#
# Solutions are in `solutions/08_solutions.ipynb`.
#
# ### Exercise 1: what RoIPool looks at
#
# Section 1 drew the box that RoIPool looks at in orange. Write it as a function: `boxes` (R, 4) in pixels, `stride`
# in pixels. Return boxes (R, 4), in pixels too: for each RoI the area of the whole cells that RoIPool takes, from the
# first to the last one (before it cuts them into bins; do not clip to the image). All coordinates are at least 0.
#
# <details><summary>Hint 1</summary>In cells: the first is round(x1 / stride), the last one is round(x2 / stride). Halves round up.</details>
# <details><summary>Hint 2</summary>np.round rounds halves to the even number: np.round(2.5) is 2. np.floor(x + 0.5) rounds them up.</details>
# <details><summary>Hint 3</summary>The last cell belongs to the RoI. At which pixel does cell k begin, and at which does it end?</details>

# %%
def looked_at(boxes, stride):
    ...                                                   # your code; return boxes (R, 4) in pixels

check_looked_at(looked_at)

# %% [markdown]
# ### Exercise 2: the gradient to the place
#
# RoIAlign sends no gradient to the RoI. But it could: (1) is a smooth function of y and x, except at the creases.
# (Spatial transformers, arXiv 1506.02025, and deformable convolutions, arXiv 1703.06211, do send it.) `F` is (H, W),
# `ys` and `xs` are P places, all inside the map; the output is F read at each, shape (P,). Given `dy` (P,), return
# the gradients of `ys` and `xs`.
#
# <details><summary>Hint 1</summary>Take (1) and differentiate by v. The fraction v moves like y: dv/dy = 1.</details>
# <details><summary>Hint 2</summary>The slope along y is the difference of the two rows, each interpolated along x: (1 − u) (F10 − F00) + u (F11 − F01).</details>
# <details><summary>Hint 3</summary>y0 = np.floor(ys).astype(int); F[y0, x0] with two index arrays picks P numbers at once.</details>

# %%
def read_forward(F, ys, xs):
    y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
    v, u = ys - y0, xs - x0
    y = ((1 - v) * (1 - u) * F[y0, x0] + (1 - v) * u * F[y0, x0 + 1]
         + v * (1 - u) * F[y0 + 1, x0] + v * u * F[y0 + 1, x0 + 1])
    return y, (F, ys, xs)

def point_backward(dy, cache):
    F, ys, xs = cache                                     # (H, W), (P,), (P,)
    ...                                                   # your code; return dys, dxs

check_point_backward(point_backward)

# %% [markdown]
# ### Exercise 3: find the bug
#
# RoIAlign's backward by scattering, without the matrices: read the map at a grid of rows `ys` and columns `xs`, and
# send every gradient back to the four cells. It has **one mistake**. The report is short, so you have to look at the
# numbers. (A hint for hunters: the sum of dF is right.)
#
# <details><summary>Hint 1</summary>Take a map of 2 x 2 and one point. dF should be the four weights of equation (1). Choose v and u such that all four differ.</details>
# <details><summary>Hint 2</summary>With v = u nobody would see it. Which two of the four weights are equal then?</details>
# <details><summary>Hint 3</summary>Which cell was read with the weight v (1 − u), the lower left or the upper right one?</details>

# %%
def corners(ys, xs, H, W):
    """Rows and columns of the four cells around each point of the grid, and the fractions."""
    y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
    return y0, np.minimum(y0 + 1, H - 1), ys - y0, x0, np.minimum(x0 + 1, W - 1), xs - x0

def sample_forward(F, ys, xs):
    """F (C, H, W), ys (P,), xs (Q,) inside the map -> (C, P, Q)."""
    y0, y1, v, x0, x1, u = corners(ys, xs, *F.shape[1:])
    v, u = v[:, None], u[None]
    y = ((1 - v) * (1 - u) * F[:, y0][:, :, x0] + (1 - v) * u * F[:, y0][:, :, x1]
         + v * (1 - u) * F[:, y1][:, :, x0] + v * u * F[:, y1][:, :, x1])
    return y, (F.shape, ys, xs)

def buggy_backward(dy, cache):
    shape, ys, xs = cache
    y0, y1, v, x0, x1, u = corners(ys, xs, *shape[1:])
    dF = np.zeros(shape)
    for i in range(len(ys)):
        for j in range(len(xs)):
            dF[:, y0[i], x0[j]] += (1 - v[i]) * (1 - u[j]) * dy[:, i, j]
            dF[:, y0[i], x1[j]] += v[i] * (1 - u[j]) * dy[:, i, j]
            dF[:, y1[i], x0[j]] += (1 - v[i]) * u[j] * dy[:, i, j]
            dF[:, y1[i], x1[j]] += v[i] * u[j] * dy[:, i, j]
    return dF

F, ys, xs = rng.standard_normal((2, 5, 6)), np.array([0.3, 1.9, 2.4]), np.array([0.25, 2.5, 4.8, 4.9])
dF = buggy_backward(np.ones((2, 3, 4)), sample_forward(F, ys, xs)[1])
print("sum of dy", 2 * 3 * 4, "  sum of dF", dF.sum().round(12))
try:
    check_gradients(sample_forward, buggy_backward, (F, ys, xs), wrt=[0])
except GradientCheckError as error:
    for row in error.rows:
        print(f"{row.argument:20} backward {row.analytic:+.4f}  forward {row.numeric:+.4f}   {row.problem}")

# %%
def sample_backward(dy, cache):
    shape, ys, xs = cache
    y0, y1, v, x0, x1, u = corners(ys, xs, *shape[1:])
    ...                                                   # the mended backward; return dF

check_sample_backward(sample_backward)

# %% [markdown]
# ## Summary
#
# - RoIPool rounds the RoI to cells, rounds the bins to cells, and takes the maximum of each. Its edges are off by up
#   to half a cell, differently for each box.
# - RoIAlign rounds nothing: it reads the map at regular points by bilinear interpolation, and takes the mean in each
#   bin.
# - Its output moves smoothly with the box. RoIPool's stands still and jumps.
# - A cell's centre is at (index + 1/2) · stride. `aligned=True` respects that. Without it everything is read half a
#   cell off, always the same, which a network can learn. Weights belong to the convention they were trained with.
# - As matrices: $Y = W_y F W_x^\top$, backward $dF = W_y^\top dY W_x$. RoIPool's gradient goes to the winners only.
# - A moved RoI is a moved mask. That is why Mask R-CNN needed a new layer where Faster R-CNN did not.
#
# **Read next.** In this course: [09 The box head](09_the_box_head.ipynb). In the code: `nprcnn/ops/roi_align.py` and
# `nprcnn/ops/roi_pool.py`. Elsewhere: He et al., *Mask R-CNN*, arXiv 1703.06870, section 3 and tables 2c and 2d;
# Girshick, *Fast R-CNN*, arXiv 1504.08083, section 2.1; Jiang et al., *Precise RoI pooling* in arXiv 1807.11590,
# section 3.3, which integrates where RoIAlign samples.
