# %% [markdown]
# # 04  The feature pyramid
#
# A ResNet makes four maps of an image: a fine one that has seen little of its surroundings, a coarse one that has
# seen nearly everything, and two in between. A detector wants fine *and* well informed, for objects of all sizes.
# The feature pyramid network (FPN: Lin et al. 2016, arXiv 1612.03144) makes it from what is there, with eight
# convolutions.
#
# **You need:** notebooks [01](01_what_a_backward_pass_is.ipynb) (its rules for what branches: here three of the
# four at once), [02](02_convolution.ipynb), and from [03](03_residual_networks.ipynb) what C2 to C5 are. **You
# will be able to:** write the pyramid forward and backward, say which level hears from which, and answer why
# there is a P6 that only the RPN uses. About 75 minutes with the exercises.
#
# ## Where we are
#
# Between the ResNet and everything else. The pyramid is the last part that sees the image as a whole.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import check_gradients, course
from nprcnn.course.pyramid import check_fast_nearest_backward, check_pyramid_shapes, check_top_down_backward
from nprcnn.data.shapes import Shapes
from nprcnn.gradcheck import GradientCheckError, check_adjoint
from nprcnn.ops.conv import conv2d, conv2d_backward, conv2d_forward
from nprcnn.ops.resize import resize_nearest, resize_nearest_grad

course.style()
rng = np.random.default_rng(0)
course.where_we_are("fpn")

# %% [markdown]
# What goes in and what comes out, for the large model and an image of 800 x 1216:
#
# | level | stride | in: ResNet | out: pyramid | read by |
# |---|---|---|---|---|
# | 2 | 4 | C2 (N, 256, 200, 304) | P2 (N, 256, 200, 304) | RPN, RoI heads |
# | 3 | 8 | C3 (N, 512, 100, 152) | P3 (N, 256, 100, 152) | RPN, RoI heads |
# | 4 | 16 | C4 (N, 1024, 50, 76) | P4 (N, 256, 50, 76) | RPN, RoI heads |
# | 5 | 32 | C5 (N, 2048, 25, 38) | P5 (N, 256, 25, 38) | RPN, RoI heads |
# | 6 | 64 | | P6 (N, 256, 13, 19) | RPN |
#
# ## 1  Large and small objects
#
# How large is an object, in cells of each map? We measure all objects of 100 built-in scenes, and draw the
# smallest and the largest of one scene on the grids of C2 to C5.

# %%
scenes = Shapes(100, seed=4)
targets = [target for _, target in scenes]
boxes = np.concatenate([target["boxes"] for target in targets])
sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
print(f"{len(sides)} objects, sqrt(width * height) from {sides.min():.0f} to {sides.max():.0f} pixels")
for level in range(2, 6):
    cells = sides / 2 ** level
    print(f"C{level}: {cells.min():4.1f} to {cells.max():4.1f} cells;  {np.mean(cells < 2):.0%} of the objects are "
          "less than 2 cells wide")

def spread(target):
    side = np.ptp(target["boxes"].reshape(-1, 2, 2), axis=1).max(axis=1)
    return side.max() / side.min()

image, target = scenes[int(np.argmax([spread(t) for t in targets]))]
pale = (255 - (255 - image) * 0.5) // 16 * 16 / 255
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for level, ax in zip(range(2, 6), axes):
    ax.imshow(pale, extent=(0, 128, 128, 0))
    ax.set(title=f"cells of C{level}: {2 ** level} pixels", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    for line in range(0, 129, 2 ** level):
        ax.axhline(line, color="black", linewidth=0.4, alpha=0.6)
        ax.axvline(line, color="black", linewidth=0.4, alpha=0.6)
    side = target["boxes"][:, 2] - target["boxes"][:, 0]
    for k in (side.argmin(), side.argmax()):
        x1, y1, x2, y2 = target["boxes"][k]
        ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=course.BACKWARD, linewidth=2))

# %% [markdown]
# On C5 a small object is one cell, shared with its neighbours. C2 is fine enough, but its cells have seen little:
# notebook 02, section 4, measured the receptive fields.
#
# What can one do? Four designs (the paper's figure 1). A wide bar is a fine map, and a dark one has gone through
# many layers. From each map that has an orange arrow something is predicted.

# %%
def draw_design(axes, title, maps, arrows, predict):
    """maps: {name: (x, y, width, darkness)}."""
    for x, y, width, dark in maps.values():
        axes.add_patch(plt.Rectangle((x - width / 2, y - 0.13), width, 0.26, edgecolor="black", linewidth=0.8,
                                     facecolor=plt.get_cmap("Blues")(0.1 + 0.75 * dark)))
    for a, b in arrows:
        (xa, ya, wa, _), (xb, yb, wb, _) = maps[a], maps[b]
        if ya == yb:
            start, stop = (xa + wa / 2, ya), (xb - wb / 2, yb)
        else:
            sign = 0.13 if yb > ya else -0.13
            start, stop = (xa, ya + sign), (xb, yb - sign)
        axes.annotate("", stop, start, arrowprops=dict(arrowstyle="-|>", color="black", shrinkA=0, shrinkB=0))
    for name in predict:
        x, y, width, _ = maps[name]
        axes.annotate("", (x + width / 2 + 0.45, y), (x + width / 2, y), arrowprops=dict(
            arrowstyle="-|>", color=course.BACKWARD, shrinkA=0, shrinkB=0, linewidth=1.6))
    axes.set(title=title, xlim=(-0.9, 3.1), ylim=(-0.4, 2.5))
    axes.axis("off")

widths = (1.4, 0.95, 0.55)
figure, axes = plt.subplots(1, 4, figsize=(10.4, 2.3))
each = {k: (0.2, 0.9 * k, widths[k], 0) for k in range(3)}
deep = {f"{k}'": (1.95, 0.9 * k, widths[k] * 0.8, 1) for k in range(3)}
draw_design(axes[0], "(a) an image pyramid", {**each, **deep}, [(k, f"{k}'") for k in range(3)], list(deep))
body = {k: (0.4, 0.9 * k, widths[k], 0.5 * k) for k in range(3)}
draw_design(axes[1], "(b) the last map alone", body, [(0, 1), (1, 2)], [2])
draw_design(axes[2], "(c) all maps of the backbone", body, [(0, 1), (1, 2)], [0, 1, 2])
left = {k: (0, 0.9 * k, widths[k], 0.5 * k) for k in range(3)}
right = {f"P{k}": (1.8, 0.9 * k, widths[k] * 0.8, 1) for k in range(3)}
draw_design(axes[3], "(d) the feature pyramid", {**left, **right},
            [(0, 1), (1, 2), (0, "P0"), (1, "P1"), (2, "P2"), ("P2", "P1"), ("P1", "P0")], list(right))

# %% [markdown]
# (a) runs the whole network on the image in several sizes. (b) is what Faster R-CNN did, and Mask R-CNN's "C4"
# variant does. (c) predicts small objects from maps that have seen little. (d) goes up to the coarse maps and
# comes **down again**, and takes along the fine ones on its way. What would (a) cost, compared with (d)?

# %%
channels, grid = (256, 512, 1024, 2048), ((200, 304), (100, 152), (50, 76), (25, 38))             # C2 to C5
pyramid = sum((256 * c + 256 * 256 * 9) * h * w for c, (h, w) in zip(channels, grid)) / 1e9       # 1x1 and 3x3
resnet = 79.2                                             # ResNet-50, in billions: notebook 03, section 9
sizes = [1, 2, 4, 8]                                      # then C5 has cells of 32, 16, 8, 4 pixels of the image
print(f"(a) the image in {len(sizes)} sizes: {sum(s * s for s in sizes)} times the ResNet, "
      f"{sum(s * s for s in sizes) * resnet:,.0f} billion")
print(f"(d) the ResNet once, and the pyramid: {1 + pyramid / resnet:.2f} times the ResNet, "
      f"{resnet + pyramid:,.0f} billion")

# %% [markdown]
# ## 2  Where and what, measured
#
# Is a cell of P2 really better informed than one of C2? We ask the course's trained model. For each object take
# the cell at its middle, on one map, and from its channels *alone* guess the object's class, with a linear
# classifier (least squares). That is the *what*. For the *where*, guess for every cell from its channels
# whether an object covers it, and take the IoU of guess and truth: the cells that are in both over those that are
# in at least one. First the features, of scenes that the model has not seen:

# %%
model = nprcnn.maskrcnn_tiny(weights="shapes")
held_out, fit_on = Shapes.held_out(150), 110              # fit on the first 110, judge on the others
mean, std = (np.array(v, np.float32)[:, None, None] for v in (model.image_mean, model.image_std))
maps, covered, cells, labels, scene = {}, [], [], [], []
batch = []
for i, (image, target) in enumerate(held_out):
    batch.append((image.transpose(2, 0, 1).astype(np.float32) / 255 - mean) / std)
    covered.append(target["masks"].any(axis=0)[2::4, 2::4])                # at the middle of each cell of C2
    for box, label in zip(target["boxes"], target["labels"]):
        cells.append((int(box[1] + box[3]) // 8, int(box[0] + box[2]) // 8))        # its middle, in cells of C2
        labels.append(label)
        scene.append(i)
    if len(batch) == 25:
        features, _ = model.backbone.body.forward(np.stack(batch), train=False)
        outputs, _ = model.backbone.fpn.forward(features, train=False)
        for name, x in zip(("C2", "C3", "C4", "C5", "P2", "P3", "P4", "P5"), features + outputs[:4]):
            maps.setdefault(name, []).append(x)
        batch = []
covered, cells, labels, scene = np.array(covered), np.array(cells), np.array(labels), np.array(scene)
rows, columns = np.minimum(cells, 31).T
most = np.bincount(labels).max() / len(labels)
print(f"{len(held_out)} scenes, {len(labels)} objects; the most frequent class has {most:.0%} of them")

# %%
def linear_guess(x, y, fit):
    """Least squares with a bias: x (M, C), y (M, K). Fitted where `fit` (M,) is true, returned for the rest."""
    x = (x - x[fit].mean(axis=0)) / (x[fit].std(axis=0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    ridge = 0.03 * fit.sum() * np.eye(x.shape[1])         # a little, against fitting by heart
    return x[~fit] @ np.linalg.solve(x[fit].T @ x[fit] + ridge, x[fit].T @ y[fit])

what, where = {}, {}
for name, parts in maps.items():
    x = resize_nearest(np.concatenate(parts), (32, 32)).transpose(0, 2, 3, 1)       # (150, 32, 32, C)
    x = x.astype(np.float64)
    fit = scene < fit_on
    guess = linear_guess(x[scene, rows, columns], np.eye(7)[labels], fit)
    what[name] = np.mean(guess.argmax(axis=1) == labels[~fit])
    fit = np.repeat(np.arange(150) < fit_on, 32 * 32)
    guess = linear_guess(x.reshape(fit.size, -1), covered.reshape(-1, 1) * 1.0, fit)[:, 0] > 0.5
    truth = covered.reshape(-1)[~fit]
    where[name] = (guess & truth).sum() / (guess | truth).sum()

figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.6))
for ax, values, title in zip(axes, (what, where), ("what: right classes", "where: IoU of object cells")):
    colours = [course.YELLOW if name[0] == "C" else course.FORWARD for name in values]
    ax.bar(list(values), list(values.values()), color=colours)
    for k, value in enumerate(values.values()):
        ax.text(k, value + 0.01, f"{value:.2f}", ha="center", fontsize=9)
    ax.set(title=title, ylim=(0, 0.9), xlabel="map", ylabel="share" if ax is axes[0] else "IoU")
    ax.tick_params(axis="x", length=0)

# %% [markdown]
# One cell of P2 knows more about what it lies on than a cell of any map of the ResNet, and it is as fine as the
# finest of them. The coarse maps do badly in both here: the scenes are small, and to C5 an object is a cell or
# two. (On large images coarse levels are what large objects are read from.)
#
# ## 3  The formula
#
# Three steps (the paper's section 3 and figure 3).
#
# - **Lateral:** a 1x1 convolution gives every $C_i$ the same number of channels, $d$ = 256.
# - **Top-down:** the coarser result is enlarged to the size of the finer one, and added.
# - **Output:** a 3x3 convolution on each sum, "to reduce the aliasing effect of upsampling".
#
# $$\text{inner}_5 = \mathrm{conv}_{1 \times 1}(C_5), \qquad
# \text{inner}_i = \mathrm{conv}_{1 \times 1}(C_i) + \mathrm{up}(\text{inner}_{i + 1}), \qquad
# P_i = \mathrm{conv}_{3 \times 3}(\text{inner}_i). \tag{1}$$
#
# There is no ReLU in it, and no norm (in the paper; torchvision's newer models have one). And $P_6$ is every
# second cell of $P_5$. It is not in the paper's figure: its section 4.1 adds it, for anchors of 512 pixels.

# %%
figure, axes = plt.subplots(figsize=(8, 3.6))
axes.set(xlim=(-0.9, 6.4), ylim=(-0.5, 4.5))
axes.axis("off")
box = dict(boxstyle="round,pad=0.35", facecolor="#eeeeee", edgecolor="#808080")
line = dict(arrowstyle="-|>", color=course.FORWARD, shrinkA=14, shrinkB=14)
for y, level in enumerate((2, 3, 4, 5)):
    for x, text in ((0, f"C{level}"), (2.3, f"inner{level}"), (4.6, f"P{level}")):
        axes.text(x, y, text, ha="center", va="center", bbox=box)
    axes.annotate("", (2.2, y), (0.05, y), arrowprops={**line, "shrinkB": 20})
    axes.annotate("", (4.6, y), (2.4, y), arrowprops={**line, "shrinkA": 20})
    axes.text(1.1, y + 0.09, "1x1", ha="center", fontsize=9)
    axes.text(3.5, y + 0.09, "3x3", ha="center", fontsize=9)
    if level < 5:
        axes.annotate("", (0, y + 1), (0, y), arrowprops={**line, "color": "#808080"})
        axes.annotate("", (2.3, y), (2.3, y + 1), arrowprops=line)
        axes.text(2.4, y + 0.5, "enlarged, +", fontsize=9, va="center")
axes.text(-0.1, 0.5, "ResNet", fontsize=9, ha="right", va="center", color="#606060")
axes.text(4.6, 4, "P6", ha="center", va="center", bbox=box)
axes.annotate("", (4.6, 4), (4.6, 3), arrowprops=line)
axes.text(4.7, 3.5, "every second cell", fontsize=9, va="center");

# %% [markdown]
# ## 4  Enlarging: nearest neighbour
#
# To double a map, copy each cell to a 2 x 2 block. But the finer map need not have exactly twice the rows: 25
# rows come from 13. So the rule is for any two sizes. Row $i$ of OH output rows copies input row
#
# $$r(i) = \lfloor i \cdot H / OH \rfloor , \tag{2}$$
#
# and columns likewise. It is a gather, so the backward is a **scatter-add** (rule 3): each input cell gets the
# sum of the gradients of its copies.

# %%
def nearest_forward(x, size):
    """x (N, C, H, W), size (OH, OW) -> y (N, C, OH, OW), equation (2)."""
    N, C, H, W = x.shape
    y = np.empty((N, C, *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y[:, :, i, j] = x[:, :, i * H // size[0], j * W // size[1]]
    return y, x.shape

def nearest_backward(dy, x_shape):
    H, W = x_shape[2:]
    dx = np.zeros(x_shape)
    for i in range(dy.shape[2]):
        for j in range(dy.shape[3]):
            # forward: y[i, j] = x[r(i), r(j)]; several outputs copy one cell, so +=
            dx[:, :, i * H // dy.shape[2], j * W // dy.shape[3]] += dy[:, :, i, j]
    return dx

for small, large in (((4, 3), (8, 6)), ((4, 3), (7, 5)), ((13, 19), (25, 38))):
    x, dy = rng.standard_normal((2, 3, *small)), rng.standard_normal((2, 3, *large))
    assert np.array_equal(nearest_forward(x, large)[0], resize_nearest(x, large))
    np.testing.assert_allclose(nearest_backward(dy, x.shape), resize_nearest_grad(dy, x.shape), atol=1e-12)
    (row,) = check_gradients(nearest_forward, nearest_backward, (x, large))
    error = check_adjoint(lambda x: nearest_forward(x, large)[0], lambda dy: nearest_backward(dy, x.shape), x, dy)
    print(f"{str(small):8} -> {str(large):8} equal to nprcnn's; gradient check {row.relative:.0e}, "
          f"adjoint test {error:.0e}")

# %%
x = np.arange(1.0, 10).reshape(1, 1, 3, 3)
figure, axes = plt.subplots(1, 4, figsize=(9.4, 2.5), width_ratios=[3, 5, 3, 3])
course.show_matrix(axes[0], x[0, 0], "x  (3, 3)", "column", "row", "{:.0f}")
course.show_matrix(axes[1], nearest_forward(x, (5, 5))[0][0, 0], "enlarged to (5, 5)", "column", "", "{:.0f}")
for ax, size in ((axes[2], 5), (axes[3], 6)):
    dx = nearest_backward(np.ones((1, 1, size, size)), x.shape)
    course.show_matrix(ax, dx[0, 0], f"dx, if dy = 1 on ({size}, {size})", "column", "", "{:.0f}")

# %% [markdown]
# With an exact factor of two every cell has four copies. From 3 to 5 rows one of them has a single copy, and so
# cells are used one, two or four times. (nprcnn computes (2) in float32, as PyTorch does. For the sizes above
# that is the same.)
#
# ## 5  The pyramid, forward
#
# Equation (1), coarse to fine. `state` holds the weights, under torchvision's names: `inner_blocks` are the 1x1,
# `layer_blocks` the 3x3, 0 is level 2.

# %%
def fpn_forward(features, state):
    """[C2, C3, C4, C5] -> [P2, ..., P6], and the inner maps by name."""
    inner, outputs = {}, {}
    for k in (3, 2, 1, 0):
        level = k + 2
        lateral = conv2d(features[k], state[f"inner_blocks.{k}.0.weight"], state[f"inner_blocks.{k}.0.bias"])
        inner[level] = lateral
        if level < 5:
            inner[level] = lateral + resize_nearest(inner[level + 1], lateral.shape[2:])
        outputs[level] = conv2d(inner[level], state[f"layer_blocks.{k}.0.weight"], state[f"layer_blocks.{k}.0.bias"],
                                padding=1)
    return [outputs[level] for level in (2, 3, 4, 5)] + [outputs[5][:, :, ::2, ::2]], inner

image, target = held_out[115]
x = ((image.transpose(2, 0, 1).astype(np.float32) / 255 - mean) / std)[None]
features, _ = model.backbone.body.forward(x, train=False)
ours, inner = fpn_forward(features, model.backbone.fpn.state_dict())
theirs, _ = model.backbone.fpn.forward(features, train=False)
print("level   in               inner            out              largest difference to nprcnn")
for level, a, b in zip(range(2, 7), ours, theirs):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    shapes = (features[level - 2].shape, inner[level].shape, b.shape) if level < 6 else ("", "", b.shape)
    print(f"{level}       " + "".join(f"{str(shape):17}" for shape in shapes)
          + f"{np.abs(a - b).max() / np.abs(b).max():.0e} of the largest value")

# %% [markdown]
# What happens on the way down, for one scene. A pixel of these pictures is how *unlike the rest of its map*
# that cell is: the distance of its vector of channels from the map's typical one (the median). Bright cells
# have something to say.

# %%
def unlike(x):
    """x (1, C, H, W) -> (H, W): the distance of each cell's channels from the map's median."""
    return np.linalg.norm(x[0] - np.median(x[0], axis=(1, 2), keepdims=True), axis=0)

figure, axes = plt.subplots(3, 5, figsize=(9, 5.6))
for column, level in enumerate((5, 4, 3, 2), 1):
    lateral = conv2d(features[level - 2], *(model.backbone.fpn.state_dict()[f"inner_blocks.{level - 2}.0.{n}"]
                                            for n in ("weight", "bias")))
    pictures = (lateral, resize_nearest(inner[level + 1], lateral.shape[2:]) if level < 5 else None, ours[level - 2])
    for ax, picture in zip(axes[:, column], pictures):
        ax.set(xticks=[], yticks=[])
        if picture is None:
            ax.axis("off")
        else:
            ax.imshow(unlike(picture), cmap="cividis", extent=(0, 128, 128, 0))
            ax.contour(np.arange(128) + 0.5, np.arange(128) + 0.5, target["masks"].any(axis=0), [0.5], colors="white",
                       linewidths=0.7)
            ax.spines[:].set_visible(False)
    axes[0, column].set_title(f"level {level}: {lateral.shape[2]} x {lateral.shape[3]}")
axes[0, 0].imshow(image // 16 * 16)
axes[0, 0].set_title("the image")
for row, text in ((1, "from above,\nenlarged"), (2, "output P")):
    axes[row, 0].text(0.95, 0.5, text, transform=axes[row, 0].transAxes, ha="right", va="center")
axes[0, 1].set_ylabel("lateral 1x1 of C")
for ax in axes[:, 0]:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False);

# %% [markdown]
# Read it column by column, from the coarse left to the fine right. Each level adds detail of its own (first
# row) to what comes from above in larger cells (second row); the 3x3 mixes both (third row). P2, at the lower
# right, has outlines that the coarse levels cannot have.
#
# ## 6  The pyramid, backward
#
# Five gradients come in, those of P2 to P6: the RPN reads all of them, the RoI heads four. We go through (1)
# from its end to its beginning. Forward went from coarse to fine, so backward goes from **fine to coarse**.
# Three of the four rules of notebook 01 occur:
#
# | forward | backward | rule |
# |---|---|---|
# | $P_6 = P_5[{::}2, {::}2]$, and $P_5$ is an output itself | $dP_5$ += scatter of $dP_6$ | slice → scatter; fan-out → sum |
# | $P_i = \mathrm{conv}_{3 \times 3}(\text{inner}_i)$ | $d\text{inner}_i = \mathrm{conv}^\top dP_i$ | |
# | $\text{inner}_i$ also goes down to level $i - 1$ | $d\text{inner}_i$ += what comes from there | fan-out → sum |
# | $\text{inner}_i = \text{lateral}_i + \mathrm{up}(\text{inner}_{i+1})$ | both get $d\text{inner}_i$ | add → the same to both |
# | $\mathrm{up}$ copies cells | sum over the copies | gather → scatter-add |
#
# The order matters. $d\text{inner}_i$ must be **complete**, with what comes from below, before it goes on to
# $C_i$ and to level $i + 1$.

# %%
def pyramid_forward(c2, c3, c4, c5, *p):
    """p: (w, b) of the four 1x1, then of the four 3x3, level 2 first -> ((P2, ..., P6), cache)."""
    caches, outputs, above = [None] * 4, [None] * 4, None
    for k in (3, 2, 1, 0):
        inner, lateral_cache = conv2d_forward((c2, c3, c4, c5)[k], *p[2 * k:2 * k + 2])
        if above is not None:
            inner = inner + resize_nearest(above, inner.shape[2:])
        outputs[k], output_cache = conv2d_forward(inner, *p[8 + 2 * k:10 + 2 * k], padding=1)
        caches[k] = lateral_cache, output_cache, inner.shape
        above = inner
    return (*outputs, outputs[3][:, :, ::2, ::2]), caches

def pyramid_backward(dy, caches):
    doutputs, dp6 = list(dy[:4]), dy[4]
    # forward: P6 = P5[::2, ::2], and P5 is an output as well
    doutputs[3] = doutputs[3].copy()
    doutputs[3][:, :, ::2, ::2] += dp6
    dfeatures, dlateral, doutput, from_below = [], [], [], 0
    for k in (0, 1, 2, 3):
        lateral_cache, output_cache, _ = caches[k]
        # forward: P = conv3x3(inner), and inner goes down as well
        dinner, dw, db = conv2d_backward(doutputs[k], output_cache)
        dinner = dinner + from_below
        doutput += [dw, db]
        # forward: inner = conv1x1(C) + up(above)
        dc, dw, db = conv2d_backward(dinner, lateral_cache)
        dfeatures.append(dc)
        dlateral += [dw, db]
        if k < 3:
            from_below = resize_nearest_grad(dinner, caches[k + 1][2])
    return (*dfeatures, *dlateral, *doutput)

# %%
from nprcnn.models.fpn import FPN

fpn = FPN(rng, [2, 3, 4, 5], 3).astype(np.float64)        # channels of C2 to C5; 3 out
state = fpn.state_dict()
p = [state[f"{kind}.{k}.0.{name}"] for kind in ("inner_blocks", "layer_blocks") for k in range(4)
     for name in ("weight", "bias")]
small = [rng.standard_normal(s) for s in ((2, 2, 13, 9), (2, 3, 7, 5), (2, 4, 4, 3), (2, 5, 2, 2))]      # odd sizes
outputs, caches = pyramid_forward(*small, *p)
dy = [rng.standard_normal(o.shape) for o in outputs]
gradients = pyramid_backward(dy, caches)

theirs, their_cache = fpn.forward(small, train=True)
dfeatures = fpn.backward(dy, their_cache)
named = dict(fpn.named_parameters())
dparameters = [named[f"{kind}.{k}.0.{name}"].grad for kind in ("inner_blocks", "layer_blocks") for k in range(4)
               for name in ("weight", "bias")]
for a, b in zip(outputs + gradients, list(theirs) + dfeatures + dparameters):
    np.testing.assert_allclose(a, b, atol=1e-12)
print(f"5 outputs, {len(dfeatures)} gradients of the features and {len(dparameters)} of the weights: equal to nprcnn's")
rows = check_gradients(pyramid_forward, pyramid_backward, (*small, *p))
print("gradient check:", "  ".join(f"dC{k + 2} {row.relative:.0e}" for k, row in enumerate(rows[:4])),
      f"  weights at most {max(row.relative for row in rows[4:]):.0e}")

# %% [markdown]
# ## 7  Who hears from whom?
#
# Give a gradient to one output alone, and see at which $C_i$ something arrives. (The pyramid is linear, so this
# matrix does not depend on the features.)

# %%
arrives = np.zeros((5, 4))
for k in range(5):
    alone = [rng.standard_normal(o.shape) if j == k else np.zeros(o.shape) for j, o in enumerate(outputs)]
    arrives[k] = [np.linalg.norm(d) / np.linalg.norm(alone[k]) for d in pyramid_backward(alone, caches)[:4]]
figure, ax = plt.subplots(figsize=(3.6, 2.9))
course.show_matrix(ax, arrives, "|dC| / |dP|", text="{:.1f}")
ax.set(xticks=range(4), xticklabels=["C2", "C3", "C4", "C5"], xlabel="arrives at",
       yticks=range(5), yticklabels=["P2", "P3", "P4", "P5", "P6"], ylabel="gradient at")
ax.tick_params(length=0)

# %% [markdown]
# A triangle: the gradient of P2 reaches all maps, that of P5 only C5. Read forward: P2 is made of all four
# maps, P5 of C5 alone. So the name is right: information goes **down**. P5 and P6 are no richer than C5.
#
# How far does *one cell* of P2 reach? A gradient of 1 there, all weights positive so that nothing cancels:

# %%
one_features = [np.ones((1, 1, 64 >> k, 64 >> k)) for k in range(4)]
one_p = [np.ones(s) for k in range(4) for s in ((1, 1, 1, 1), (1,))] + [np.ones(s) for k in range(4)
                                                                       for s in ((1, 1, 3, 3), (1,))]
one_outputs, one_caches = pyramid_forward(*one_features, *one_p)
dy = [np.zeros(o.shape) for o in one_outputs]
dy[0][0, 0, 33, 30] = 1
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for k, (ax, d) in enumerate(zip(axes, pyramid_backward(dy, one_caches))):
    ax.imshow(d[0, 0] > 0, cmap="Blues", extent=(0, 256, 256, 0), vmax=1.6)
    ax.plot(30.5 * 4, 33.5 * 4, "o", color=course.BACKWARD, markersize=3)
    rows, columns = np.nonzero(d[0, 0])
    ax.set(title=f"C{k + 2}: {np.ptp(rows) + 1} x {np.ptp(columns) + 1} cells of {4 << k} pixels", xlabel="pixel",
           xlim=(72, 172), ylim=(184, 84), xticks=[80, 120, 160], yticks=[100, 140, 180] if k == 0 else [])
axes[0].set_ylabel("pixel");

# %% [markdown]
# In cells it is 3 x 3 at most; in pixels the patch grows with the level. And each of these cells of C5 has itself
# seen a large part of the image. That is how a cell of P2, 4 pixels wide, comes to know its surroundings.
#
# ## 8  Why P6 is only for the RPN
#
# P6 is P5 with three of four cells left out: there is no number in it that P5 has not. Why make it at all?
#
# The **RPN** slides the same 3x3 over each level, with anchors of one size a level (notebook 05). At a level of
# stride $s$ the 3x3 spans $3s$ pixels.

# %%
print("P6 holds nothing new:", np.array_equal(ours[4], ours[3][:, :, ::2, ::2]), "\n")
print("       level   anchor   the 3x3 sees   anchor / seen")
for level, size in zip(range(2, 7), (32, 64, 128, 256, 512)):
    print(f"       P{level}      {size:4}     {3 * 2 ** level:4} pixels    {size / (3 * 2 ** level):.1f}")
print(f"       512-pixel anchors on P5 instead: {512 / (3 * 32):.1f}")

# %% [markdown]
# With P6 the ratio of anchor to view is the same on all levels. Without it the largest anchors would have to be
# judged from half of that.
#
# The **RoI heads** have no such limit: RoIAlign cuts an RoI of *any* size to 7x7, so a large RoI is just read
# with longer steps. Which level is it read from? The paper's equation (1), for an RoI of $w$ by $h$ pixels:
#
# $$k = \lfloor 4 + \log_2 (\sqrt{w h} / 224) \rfloor , \quad\text{kept within 2 and 5.} \tag{3}$$

# %%
print("             side   level by (3)   read from   cells of it to one of the 7x7 bins")
for side in (20, 56, 100, 112, 200, 224, 440, 448, 800, 1200):
    k = int(np.floor(4 + np.log2(side / 224)))
    level = min(max(k, 2), 5)
    print(f"             {side:4}   {k:8}       P{level}          {side / 2 ** level / 7:.1f}")

# %% [markdown]
# The last column stays between 2 and 4 over the range that the levels are made for, and beyond its upper end it grows
# in proportion to the RoI. RoIAlign can read that: a P6 would just throw cells away. (Small RoIs are the ones that
# suffer. At a side of 20 a bin is less than a cell wide, and there is no P1.)
#
# ## 9  What it costs
#
# For 800 x 1216, by level, with 256 channels:

# %%
lateral = np.array([c * 256 * h * w / 1e9 for c, (h, w) in zip(channels, grid)])
output = np.array([256 * 256 * 9 * h * w / 1e9 for h, w in grid])
figure, ax = plt.subplots(figsize=(6.4, 2.2))
names = ["level 2", "level 3", "level 4", "level 5"]
ax.barh(names, output, label="3x3 output")
ax.barh(names, lateral, left=output, label="1x1 lateral")
ax.set(xlabel="billion multiplications", ylim=(3.6, -0.6))
ax.legend(loc="lower right")
weights = sum(c * 256 + 256 for c in channels) + 4 * (256 * 256 * 9 + 256)
model_fpn = FPN(np.random.default_rng(0), channels, 256)
assert weights == sum(tensor.data.size for tensor in model_fpn.parameters())
print(f"{weights / 1e6:.1f} million parameters; {lateral.sum() + output.sum():.1f} billion multiplications, "
      f"{output[0] / (lateral.sum() + output.sum()):.0%} of them the 3x3 of level 2")

# %% [markdown]
# Nothing in the pyramid is as expensive as making P2 a little smoother. What is it all worth? In the Mask R-CNN
# paper (table 2a) a ResNet-50 gets a mask AP of 30.3 with one level (C4), and 33.6 with the pyramid. (AP, average
# precision, is the usual mark for detectors, from 0 to 100: notebook 13.)
#
# ## Exercises
#
# Solutions are in `solutions/04_solutions.ipynb`.
#
# ### Exercise 1: the shapes of the levels
#
# Write down the rows and columns of P2 to P6 for an image of any size. First the image is padded at the bottom
# and at the right to multiples of 32. P2 to P5 have strides 4 to 32, and P6 is every second row and column of
# P5, beginning with the first. Return five pairs (rows, columns).
#
# <details><summary>Hint 1</summary>The next multiple of 32, in whole numbers: -(-height // 32) * 32.</details>
# <details><summary>Hint 2</summary>After padding, divisions by 4, 8, 16 and 32 have no remainder. P6 is different.</details>
# <details><summary>Hint 3</summary>How long is [0, 1, 2, 3, 4][::2]?</details>

# %%
def pyramid_shapes(height, width):
    ...                                                   # your code; return [(rows, columns)] * 5, P2 first

check_pyramid_shapes(pyramid_shapes)

# %% [markdown]
# ### Exercise 2: the way back through the enlargement, without loops
#
# `nearest_backward` of section 4 loops over all outputs. Write it without a loop over pixels. `dy` is (N, C,
# OH, OW), `x_shape` is (N, C, H, W), and OH need not be a multiple of H.
#
# <details><summary>Hint 1</summary>Rows and columns are independent: first bring OW back to W, then OH back to H.</details>
# <details><summary>Hint 2</summary>For rows: index = np.arange(OH) * H // OH says where each output row came from. Which function adds at indices that repeat?</details>
# <details><summary>Hint 3</summary>np.add.at(dx, (slice(None), slice(None), index), dy) adds row i of dy to row index[i] of dx. Or: forward is a product with a matrix of zeros and ones, and backward with its transpose.</details>

# %%
def fast_nearest_backward(dy, x_shape):
    N, C, H, W = x_shape
    OH, OW = dy.shape[2:]
    ...                                                   # your code; return dx, of x_shape

check_fast_nearest_backward(fast_nearest_backward)

# %% [markdown]
# ### Exercise 3: find the bug
#
# The top-down path alone, with three levels: `inner5 = l5`, `inner4 = l4 + up(inner5)`, `inner3 = l3 +
# up(inner4)`. All three inner maps are outputs. The backward below is **wrong in one place**. Find it, and mend
# it in the cell after it.
#
# <details><summary>Hint 1</summary>Which gradient is wrong, and which are right? Is the wrong one too large or too small?</details>
# <details><summary>Hint 2</summary>Give a gradient to the finest output only. Which of dl3, dl4 and dl5 should then be different from 0? Print them.</details>
# <details><summary>Hint 3</summary>Section 6: the gradient of an inner map must be complete before it goes on.</details>

# %%
def top_down_forward(l3, l4, l5):
    inner5 = l5
    inner4 = l4 + resize_nearest(inner5, l4.shape[2:])
    inner3 = l3 + resize_nearest(inner4, l3.shape[2:])
    return (inner3, inner4, inner5), (l3.shape, l4.shape, l5.shape)

def buggy_backward(dy, shapes):
    dinner3, dinner4, dinner5 = dy
    dl3 = dinner3
    dl4 = dinner4 + resize_nearest_grad(dinner3, shapes[1])
    dl5 = dinner5 + resize_nearest_grad(dinner4, shapes[2])
    return dl3, dl4, dl5

inputs = [rng.standard_normal(s) for s in ((1, 2, 7, 6), (1, 2, 4, 3), (1, 2, 2, 2))]
try:
    check_gradients(top_down_forward, buggy_backward, inputs)
except GradientCheckError as error:
    for row in error.rows:
        print(f"{row.argument:26} relative error {row.relative:.0e}   {row.problem or 'right'}")

# %%
def top_down_backward(dy, shapes):
    dinner3, dinner4, dinner5 = dy
    ...                                                   # the mended backward; return dl3, dl4, dl5

check_top_down_backward(top_down_backward)

# %% [markdown]
# ## Summary
#
# - Objects come in all sizes. The pyramid gives five maps of 256 channels with strides 4 to 64, for seven
#   tenths of the ResNet's cost on top.
# - Lateral 1x1, plus the enlarged coarser level, then a 3x3: equation (1). No ReLU.
# - Enlarging copies cells: equation (2). Its backward adds up the gradients of the copies.
# - Backward goes from fine to coarse, and an inner map's gradient must be complete before it goes on.
# - P2 is made of all of C2 to C5, P5 of C5 alone. One cell of P2 knows more about what lies there than one of
#   any C.
# - P6 is every second cell of P5. The RPN needs it for its largest anchors; the RoI heads do not.
#
# **Read next.** In this course: [05 Anchors, IoU and box coding](05_anchors_iou_and_box_coding.ipynb). In the
# code: `nprcnn/models/fpn.py` and `nprcnn/ops/resize.py`. Elsewhere: Lin et al., arXiv 1612.03144, sections 3
# and 4; Liu et al., *Path aggregation network for instance segmentation*, arXiv 1803.01534, which adds a way up
# again.
