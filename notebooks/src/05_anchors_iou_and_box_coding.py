# %% [markdown]
# # 05  Anchors, IoU and box coding
#
# A convolution has a fixed number of outputs. A scene has any number of objects, anywhere, of any size. This
# notebook is about the trick that brings the two together: lay a fixed set of boxes over the image, the
# **anchors**, measure how well each fits an object (**IoU**), and say by four numbers how to move it there
# (**box coding**). It has no layers and nothing to train; it is the language that the RPN and the box head
# speak.
#
# **You need:** NumPy with broadcasting; notebook [01](01_what_a_backward_pass_is.ipynb) for the gradient
# checks. **You will be able to:** write the anchors of any pyramid, compute IoU, turn boxes into deltas and
# back, and see from a histogram whether a set of anchors suits a set of objects. About 65 minutes with the
# exercises.
#
# ## Where we are
#
# At the entrance of the RPN. The anchors depend on the image's size alone, so they are constants (the dotted
# arrow). IoU and box coding are used once more at the box head.

# %%
import matplotlib.pyplot as plt
import numpy as np

from nprcnn import check_gradients, course
from nprcnn.course.anchors import check_decode_backward, check_iou_matrix, check_make_anchors
from nprcnn.data.shapes import Shapes
from nprcnn.data.targets import check_target
from nprcnn.errors import DataError
from nprcnn.models.anchors import AnchorGenerator, cell_anchors, grid_anchors
from nprcnn.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes
from nprcnn.ops.losses import smooth_l1_backward, smooth_l1_forward

course.style()
rng = np.random.default_rng(0)
course.where_we_are("anchors", "rpn", "box_head")

# %% [markdown]
# The arrays of this notebook. A anchors a cell, T anchors in all, n objects; N images, and for the box head R RoIs
# and K classes:
#
# | array | shape | unit |
# |---|---|---|
# | anchors of one cell | (A, 4) | pixels, about (0, 0) |
# | all anchors | (T, 4) | pixels |
# | boxes of the objects | (n, 4) | pixels |
# | IoU of each object with each anchor | (n, T) | 0 to 1 |
# | deltas: RPN | (N, T, 4) | none |
# | deltas: box head, four a class | (R, 4 K) | none |
#
# ## 1  What a box is
#
# Four numbers (x1, y1, x2, y2). They are **continuous coordinates**: x = 0 is the left edge of the first pixel,
# not its middle, and a pixel of column $c$ covers $c$ to $c + 1$. So the width is x2 − x1, and the last column
# that a box covers whole is x2 − 1. (Older code numbers the pixels and has a +1 in every width. There is none
# here.) From a mask to its box:

# %%
scenes = Shapes(100, seed=4)
image, target = scenes[26]
mask, box = target["masks"][0], target["boxes"][0]
rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
ours = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])      # + 1: the far edge of the last pixel
print("box from the mask:", ours, "  the target's box:", box)
assert np.array_equal(ours, box)

square = np.zeros((8, 8), bool)
square[2:5, 1:7] = True                                   # 3 rows of 6 pixels
x1, y1, x2, y2 = 1, 2, 7, 5
print(f"pixels {square.sum()}, (x2 - x1) (y2 - y1) = {(x2 - x1) * (y2 - y1)}")

# %% [markdown]
# A box without area has no place in training. Its logarithm, which we shall need in section 6, is infinite, and
# one such number makes all weights NaN within a step. When a training on data of one's own gives NaN, look here
# first: were the boxes (x, y, width, height)? nprcnn refuses them before anything is computed:

# %%
wrong = {**target, "boxes": target["boxes"].copy()}
wrong["boxes"][0] = box[0], box[1], 5, 40                 # x, y, width, height
try:
    check_target(image.shape[:2], wrong, num_classes=7, index=0)
except DataError as error:
    print(error)
with np.errstate(divide="ignore"):
    print("deltas to a box of width 0:", encode_boxes(np.array([[8.0, 8, 8, 24]]), np.array([[0.0, 0, 16, 16]])))

# %% [markdown]
# ## 2  The anchors of one cell
#
# Every cell of a feature map gets A boxes about the same centre (Ren et al., *Faster R-CNN*, arXiv 1506.01497,
# section 3.1.1). They are given by sizes $s$ and ratios $r$: all anchors of a size have the same area $s^2$,
# and $r$ is height over width,
#
# $$w h = s^2, \quad h / w = r \qquad\Longrightarrow\qquad w = s / \sqrt r, \quad h = s \sqrt r . \tag{1}$$
#
# Multiply, divide, to see it. The corners are ±w/2, ±h/2, rounded to whole pixels, so areas and ratios are not quite
# exact, as the cell shows. (Of two well-known libraries with
# a Mask R-CNN, torchvision does that, and Detectron2, which followed the authors' own Detectron, does not.)

# %%
def one_cell(sizes, ratios):
    """(A, 4): the corners about (0, 0); ratios outside, sizes inside."""
    anchors = []
    for r in ratios:
        for s in sizes:
            w, h = s / np.sqrt(r), s * np.sqrt(r)
            anchors.append([-w / 2, -h / 2, w / 2, h / 2])
    return np.round(np.array(anchors))                    # half to even: 0.5 -> 0, 1.5 -> 2

ratios = (0.5, 1.0, 2.0)
print("size 32:", *one_cell([32], ratios).astype(int))
for sizes in ((32,), (128, 256, 512)):
    assert np.array_equal(one_cell(sizes, ratios), cell_anchors(sizes, ratios))
for anchor in one_cell([32], ratios):
    w, h = anchor[2:] - anchor[:2]
    print(f"w {w:2.0f}  h {h:2.0f}   area {w * h:4.0f} (32 x 32 = 1024)   h / w {h / w:.2f}")

# %% [markdown]
# Two sets are in use. Faster R-CNN reads one map of stride 16 and gives each cell nine anchors, three sizes
# with three ratios. The pyramid gives each level *one* size, and each cell three.

# %%
def outline(ax, box, colour, **style):
    ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=colour, **style))

palette = (course.FORWARD, course.BACKWARD, course.GREEN, course.PINK, course.YELLOW)
figure, axes = plt.subplots(1, 2, figsize=(10, 3))
for ax, sets, title in ((axes[0], [("size 128", [128]), ("size 256", [256]), ("size 512", [512])],
                         "Faster R-CNN: 9 anchors a cell, one level"),
                        (axes[1], [(f"P{k}: size {2 ** (k + 3)}", [2 ** (k + 3)]) for k in range(2, 7)],
                         "pyramid: 3 anchors a cell, five levels")):
    for colour, (label, sizes) in zip(palette, sets):
        for anchor in one_cell(sizes, ratios):
            outline(ax, anchor + np.array([608, 400, 608, 400]), colour, linewidth=1.3)
        ax.plot([], [], color=colour, label=label)
    outline(ax, np.array([0, 0, 1216, 800]), "black", linewidth=1)
    ax.set(title=title, xlim=(-10, 1226), ylim=(810, -10), aspect="equal", xlabel="x (pixel)",
           xticks=[0, 608, 1216], yticks=[0, 400, 800])
    ax.spines[:].set_visible(False)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
axes[0].set_ylabel("y (pixel)");

# %% [markdown]
# ## 3  The grid
#
# The anchors of a cell are shifted to every cell: row $i$ and column $j$ of a level with stride $s$ gives the
# centre $(j s, i s)$, the *corner* of the cell and not its middle. The order is row, column, anchor. That is
# the order in which the RPN's outputs will be flattened, so it must be kept.

# %%
def grid_naive(cell, rows, columns, stride_y, stride_x):
    anchors = []
    for i in range(rows):
        for j in range(columns):
            for x1, y1, x2, y2 in cell:
                x, y = j * stride_x, i * stride_y
                anchors.append([x1 + x, y1 + y, x2 + x, y2 + y])
    return np.array(anchors)

cell = one_cell([32], ratios)
assert np.array_equal(grid_naive(cell, 5, 7, 4, 4), grid_anchors(cell, (5, 7), (4, 4)))

height, width = 800, 1216
shapes = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
generator = AnchorGenerator()                             # the pyramid's: sizes 32, 64, 128, 256, 512
anchors = generator((height, width), shapes)
print("level   cells        size   stride (y, x)   anchors   cross the image's border")
for level, ((h, w), boxes) in enumerate(zip(shapes, anchors), 2):
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    stride = centres[w * 3, 1] - centres[0, 1], centres[3, 0] - centres[0, 0]
    outside = np.any((boxes < 0) | (boxes > (width, height, width, height)), axis=1).mean()
    print(f"P{level}      {h:3} x {w:3}   {2 ** (level + 3):6}   {stride[0]:6.0f}, {stride[1]:2.0f}    {len(boxes):9,}   "
          f"{outside:.0%}")
total = sum(map(len, anchors))
print(f"T = {total:,} anchors; one map of stride 16 with nine a cell has {50 * 76 * 9:,}")

# %% [markdown]
# Three details that are easily missed:
#
# - The stride is *computed*, image // map. P6 has 13 rows for 800 pixels: stride 61 and not 64. It differs by
#   rows alone, because 1216 // 19 is 64.
# - Centres at the cells' corners mean that the grid sits half a stride too far up and left.
# - Anchors may cross the border. (Faster R-CNN ignored those in training; torchvision and nprcnn use them.)
#
# The next figure shows the last two, for the course's small images: the centres of P3, P4 and P5, and their
# anchors.

# %%
small_sizes = ((16,), (32,), (64,), (128,), (256,))
small_shapes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
small = AnchorGenerator(small_sizes)((128, 128), small_shapes)
figure, axes = plt.subplots(1, 3, figsize=(8.4, 3))
for ax, level in zip(axes, (3, 4, 5)):
    boxes = small[level - 2]
    squares = boxes[1::3]
    centres = (squares[:, :2] + squares[:, 2:]) / 2
    middle = len(squares) // 2 + small_shapes[level - 2][1] // 2
    for square in squares:
        outline(ax, square, "#cccccc", linewidth=0.5)
    outline(ax, np.array([0, 0, 128, 128]), "black", linewidth=1.4)
    for anchor, colour in zip(boxes[3 * middle:3 * middle + 3], palette):
        outline(ax, anchor, colour, linewidth=1.6)
    ax.plot(*centres.T, ".", color="black", markersize=3)
    ax.set(title=f"P{level}: centres {centres.min():.0f} to {centres.max():.0f}", xlim=(-70, 190), ylim=(190, -70),
           aspect="equal", xlabel="x (pixel)", xticks=[0, 128], yticks=[0, 128] if level == 3 else [])
    ax.spines[:].set_visible(False)
axes[0].set_ylabel("y (pixel)");

# %% [markdown]
# (Black: the image. Grey: all square anchors. In colour: the three of one cell. The square one on P5 is as
# large as the image, and hides its border.)
#
# ## 4  IoU
#
# How well does an anchor fit an object? **Intersection over union**: the area that both cover, divided by the
# area that at least one covers. The intersection of two boxes is a box. Along x it begins at the larger of the
# two x1 and ends at the smaller of the two x2; if that is a negative length, there is no intersection.
#
# $$\mathrm{IoU}(a, b) = \frac{|a \cap b|}{|a \cup b|} = \frac{I}{A_a + A_b - I}, \qquad
# I = \max(0,\, \min x_2 - \max x_1) \cdot \max(0,\, \min y_2 - \max y_1) . \tag{2}$$

# %%
def iou_naive(a, b):
    """IoU of two boxes, equation (2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area_a + area_b - inter)

def random_boxes(count, rng=rng):
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 60, (count, 2))], axis=1)

a, b = random_boxes(30), random_boxes(40)
loops = np.array([[iou_naive(p, q) for q in b] for p in a])
print(f"{loops.shape}, from {loops.min():.2f} to {loops.max():.2f}; largest difference to nprcnn "
      f"{np.abs(loops - box_iou(a, b)).max():.0e}")
np.testing.assert_allclose(loops, box_iou(a, b), atol=1e-12)

# %%
still = np.array([0.0, 0, 60, 60])
others = [(30, 30, 90, 90), (30, 0, 90, 60), (15, 15, 45, 45), (20, 0, 80, 60), (10, 0, 70, 60), (4, -4, 64, 56)]
figure, axes = plt.subplots(1, 6, figsize=(9.6, 1.9))
for ax, other in zip(axes, np.array(others, float)):
    low, high = np.maximum(still[:2], other[:2]), np.minimum(still[2:], other[2:])
    ax.add_patch(plt.Rectangle(low, *(high - low), color="#dddddd"))
    outline(ax, still, course.FORWARD, linewidth=2)
    outline(ax, other, course.BACKWARD, linewidth=2)
    ax.set(title=f"IoU {iou_naive(still, other):.2f}", xlim=(-8, 94), ylim=(94, -8), aspect="equal")
    ax.axis("off")

# %% [markdown]
# IoU is strict. Shift a square by a third of its side and half of the IoU is gone. The curves say how far an
# anchor may be off for the thresholds that the next notebook uses (0.7: the anchor counts as an object; below
# 0.3: as background).

# %%
shift = np.linspace(0, 1, 101)
def shifted(dx, dy):
    return box_iou(np.array([[0.0, 0, 1, 1]]), np.stack([dx, dy, dx + 1, dy + 1], axis=1))[0]

scale = np.linspace(0.3, 3, 109)
scaled = box_iou(np.array([[-0.5, -0.5, 0.5, 0.5]]), np.stack([-scale, -scale, scale, scale], axis=1) / 2)[0]
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8), sharey=True)
axes[0].plot(shift, shifted(shift, 0 * shift), label="along x")
axes[0].plot(shift, shifted(shift, shift), label="along x and y")
axes[1].plot(scale, scaled, label="width and height, same centre")
for ax in axes:
    for threshold in (0.3, 0.7):
        ax.axhline(threshold, color="black", linewidth=0.8, linestyle=":")
    ax.legend()
axes[0].set(xlabel="shift / side", ylabel="IoU", yticks=[0, 0.3, 0.5, 0.7, 1])
axes[1].set(xlabel="size / size of the other", xscale="log", xticks=[0.5, 1, 2], xticklabels=["1/2", "1", "2"])
axes[1].minorticks_off()
for name, curve in (("along x", shifted(shift, 0 * shift)), ("along x and y", shifted(shift, shift))):
    print(f"IoU of at least 0.7 allows a shift {name} of {shift[curve >= 0.7].max():.2f} of the side")
print(f"and a factor in size of {scale[scaled >= 0.7].min():.2f} to {scale[scaled >= 0.7].max():.2f}")
for side in (16, 32, 128):
    four = np.array([4 / side])
    print(f"4 pixels along x and y: a box {side:3} pixels wide has IoU {shifted(four, four)[0]:.2f}")

# %% [markdown]
# So IoU does not ask how large a box is, only how the two compare; and four pixels matter to a small object
# much more than to a large one. That is why small objects need a fine grid: P2's centres are 4 pixels apart,
# its anchors 32.
#
# **A detail of rounding.** The RPN also gives each object the anchors that have the *best* IoU with it, however
# low. Several anchors can share the best, to the last bit, so it compares floating-point numbers for equality.
# That makes the last bits a part of the result. nprcnn computes (2) as torchvision does: in float32, as `inter
# / ((area_a + area_b) - inter)`. What would another order do?

# %%
def iou_in_other_order(a, b):
    """Mathematically the same: inter / (area_a + (area_b - inter))."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    return inter / (area_a[:, None] + (area_b - inter))

everything = np.concatenate(small)                        # (T, 4) float32
objects = np.concatenate([target["boxes"] for _, target in scenes]) * np.float32(0.963)      # resized: not whole pixels
theirs, other = box_iou(objects, everything), iou_in_other_order(objects, everything)
print(f"{np.mean(theirs != other):.1%} of the IoUs differ in the last bits, by at most {np.abs(theirs - other).max():.0e}")
best, best_other = (iou == iou.max(axis=1, keepdims=True) for iou in (theirs, other))
print(f"objects with more than one best anchor: {(best.sum(axis=1) > 1).sum()} of {len(objects)}")
print(f"objects whose best anchors are others in the other order: {(best != best_other).any(axis=1).sum()}")

# %% [markdown]
# Ties are common: an object between four equal anchors has four best ones. The other order changes last bits
# here and there. In these scenes it changes no best anchor, since anchors that tie mostly have the same areas;
# but who wants to compare numbers with another system's, bit by bit, had better compute them in its order.
#
# ## 5  Do the anchors fit the objects?
#
# Before anything is trained we can ask, for every object, for the best IoU that *any* anchor has with it. If
# that is low, the network has to move a bad anchor a long way, or gets no positive anchor at all. We compare
# three sets, for scenes of 128 pixels: the small model's (sizes 16 to 256 on five levels), the same sizes all
# on one map of stride 16, and the large model's (32 to 512), which people forget to change.

# %%
objects = np.concatenate([target["boxes"] for _, target in scenes])
sides = np.sqrt(np.prod(objects[:, 2:] - objects[:, :2], axis=1))
sets = {"sizes 16 to 256": np.concatenate(AnchorGenerator(small_sizes)((128, 128), small_shapes)),
        "one map of stride 16": AnchorGenerator(((16, 32, 64, 128, 256),))((128, 128), [(8, 8)])[0],
        "sizes 32 to 512": np.concatenate(AnchorGenerator()((128, 128), small_shapes))}
figure, axes = plt.subplots(1, 3, figsize=(9.4, 2.7), sharey=True)
for ax, (name, boxes) in zip(axes, sets.items()):
    best = box_iou(objects, boxes).max(axis=1)
    ax.scatter(sides, best, s=6, alpha=0.6)
    ax.axhline(0.7, color="black", linewidth=0.8, linestyle=":")
    ax.set(title=name, xlabel="sqrt(w h) of the object (pixel)", ylim=(0, 1.02), xticks=[16, 32, 48, 64])
    print(f"{name:20} best IoU: mean {best.mean():.2f}, at least 0.7: {np.mean(best >= 0.7):4.0%}, "
          f"below 0.5: {np.mean(best < 0.5):4.0%} of the objects")
axes[0].set_ylabel("best IoU of any anchor");

# %% [markdown]
# On the left, the cloud has its tops where an object is as large as an anchor (32, 64), and valleys between two
# sizes. In the middle, the same anchors lie 16 pixels apart, and small objects fall between them. On the right
# the sizes are wrong: there is nothing smaller than 32, so the small objects have no anchor that fits. This
# plot takes a minute and needs no training. Make it for your own data first.
#
# ## 6  Box coding
#
# The best anchor is not the object. The network shall also say how to *move* it. Which four numbers should it
# put out? R-CNN's answer (Girshick et al., arXiv 1311.2524, appendix C, equations 6 to 9), unchanged since:
# with centres $(x, y)$, widths and heights of the box and the anchor (index $a$),
#
# $$d_x = \frac{x - x_a}{w_a}, \qquad d_y = \frac{y - y_a}{h_a}, \qquad d_w = \log \frac{w}{w_a}, \qquad
# d_h = \log \frac{h}{h_a}, \tag{3}$$
#
# and solved for the box
#
# $$x = x_a + d_x w_a, \qquad y = y_a + d_y h_a, \qquad w = w_a e^{d_w}, \qquad h = h_a e^{d_h} . \tag{4}$$

# %%
def centre_and_size(boxes):
    x1, y1, x2, y2 = boxes.T
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1

def encode(boxes, anchors):
    """Equation (3): boxes, anchors (R, 4) -> deltas (R, 4)."""
    (x, y, w, h), (xa, ya, wa, ha) = centre_and_size(boxes), centre_and_size(anchors)
    return np.stack([(x - xa) / wa, (y - ya) / ha, np.log(w / wa), np.log(h / ha)], axis=1)

def decode(deltas, anchors):
    """Equation (4): deltas, anchors (R, 4) -> boxes (R, 4)."""
    (dx, dy, dw, dh), (xa, ya, wa, ha) = deltas.T, centre_and_size(anchors)
    x, y, w, h = xa + dx * wa, ya + dy * ha, wa * np.exp(dw), ha * np.exp(dh)
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)

boxes, some_anchors = random_boxes(50), random_boxes(50)
deltas = encode(boxes, some_anchors)
print(f"there and back: {np.abs(decode(deltas, some_anchors) - boxes).max():.0e} pixels")
print(f"differences to nprcnn: encode {np.abs(deltas - encode_boxes(boxes, some_anchors)).max():.0e}, "
      f"decode {np.abs(decode(deltas, some_anchors) - decode_boxes(deltas, some_anchors)).max():.0e}")
print("deltas of 0 leave the anchor as it is:", np.allclose(decode(np.zeros((50, 4)), some_anchors), some_anchors))
np.testing.assert_allclose(deltas, encode_boxes(boxes, some_anchors), atol=1e-12)

# %% [markdown]
# Why these? Because a convolution sees neither where it is nor how large a cell is. What it puts out must mean
# the same for every anchor. Four properties, each in a line:

# %%
moved = encode(boxes + np.array([500, 300, 500, 300]), some_anchors + np.array([500, 300, 500, 300]))
print("shift both: the deltas stay          ", np.allclose(moved, deltas))
print("enlarge both 8 times: the deltas stay", np.allclose(encode(8 * boxes, 8 * some_anchors), deltas))
anchor = np.array([[0.0, 0, 16, 16]])
double, half = decode(np.array([[0, 0, np.log(2), 0]]), anchor), decode(np.array([[0, 0, -np.log(2), 0]]), anchor)
print("twice as wide and half as wide:      ", double[0, 2] - double[0, 0], "and", half[0, 2] - half[0, 0],
      f"pixels for d_w = ±{np.log(2):.2f}")
wild = decode(3 * rng.standard_normal((1000, 4)), anchor)
print("any deltas give a positive width:    ", bool((wild[:, 2] > wild[:, 0]).all()))

# %% [markdown]
# Do they have the same range on all levels? We take all pairs of an object and an anchor with an IoU of at
# least 0.5, and draw how often each offset of the centres occurs, in pixels, and then each delta.

# %%
figure, axes = plt.subplots(3, 3, figsize=(9.4, 3.2), sharex="col")
every_delta = []
for row, (level, colour) in enumerate(zip((2, 3, 4), palette)):
    overlap = box_iou(objects, small[level - 2])
    which_object, which_anchor = np.nonzero(overlap >= 0.5)
    pairs = objects[which_object].astype(float), small[level - 2][which_anchor].astype(float)
    d = encode(*pairs)
    every_delta.append(d)
    offset = centre_and_size(pairs[0])[0] - centre_and_size(pairs[1])[0]
    print(f"P{level}: {len(d):6,} pairs; standard deviation of the offset in x {offset.std():4.1f} pixels, "
          f"of d_x {d[:, 0].std():.2f}, of d_w {d[:, 2].std():.2f}")
    for ax, values, edge in zip(axes[row], (offset, d[:, 0], d[:, 2]), (25, 0.6, 0.9)):
        ax.hist(values, bins=np.linspace(-edge, edge, 30), color=colour)
        ax.set(yticks=[])
    axes[row, 0].set_ylabel(f"pairs of P{level}")
for ax, name in zip(axes[2], ("offset in x (pixel)", "$d_x$", "$d_w$")):
    ax.set(xlabel=name)

# %% [markdown]
# In pixels each level has a range of its own, twice as wide on each next one. As deltas all have nearly the same, so one
# small head with the same weights can serve them all.
#
# ## 7  Weights, and a limit
#
# The deltas that are needed are small: see the standard deviations above. A loss that weighs them against a
# cross-entropy of about 1 would hardly notice them. So the box head multiplies them by **weights**, (10, 10, 5,
# 5), and decoding divides by them. Fast R-CNN (arXiv 1504.08083, section 2.3) normalised its targets to unit
# variance, and these round numbers are what became of it. What do they do to ours?

# %%
d = np.concatenate(every_delta)
print("standard deviations:", d.std(axis=0).round(2), "  1 / them:", (1 / d.std(axis=0)).round(1))
print("times (10, 10, 5, 5):", (d * (10, 10, 5, 5)).std(axis=0).round(2))
weights = (10.0, 10, 5, 5)
assert np.allclose(encode_boxes(boxes, some_anchors, weights), deltas * weights)
assert np.allclose(decode_boxes(deltas * weights, some_anchors, weights), boxes)
print("encode_boxes(..., weights) = deltas * weights, and decode_boxes(..., weights) undoes it")

# %% [markdown]
# Somewhat above 1. (The box head's are smaller: its RoIs have been moved once already.) The RPN has no weights.
#
# And a **limit**: an untrained network may say $d_w = 100$, and $e^{100}$ is too much for float32. So before
# the exponential $d_w$ and $d_h$ are cut at $\log(1000 / 16) \approx 4.14$: an anchor of 16 pixels becomes at
# most 1000 wide. After decoding, boxes are **clipped** to the image.

# %%
anchor, wild = np.array([[100, 100, 116, 116]], np.float32), np.array([[0, 0, 100, 100]], np.float32)
with np.errstate(over="ignore"):
    print("without the limit:", decode(wild, anchor)[0])
limited = decode_boxes(wild, anchor)
print("with it:          ", limited[0], f" width {limited[0, 2] - limited[0, 0]:.0f}")
print("clipped to the image of 800 x 1216:", clip_boxes(limited, (800, 1216))[0])

# %% [markdown]
# ## 8  The gradient
#
# What does the network learn from? From the **difference of deltas**: its own, $d$, against those that the
# object needs, $t$ from (3), with the smooth L1 loss (Fast R-CNN, equation 3, here with the bend at $\beta$ =
# 1/9):
#
# $$L = \sum_j \ell(d_j - t_j), \qquad \ell(e) = \begin{cases} e^2 / (2 \beta) & |e| < \beta \\ |e| - \beta / 2 &
# \text{else,}\end{cases} \qquad \frac{d\ell}{de} = \mathrm{clip}(e / \beta, -1, 1) . \tag{5}$$
#
# $t$ depends on the object and the anchor, which are constants. Only $d$ gets a gradient.

# %%
def box_loss_forward(d, boxes, anchors, beta=1 / 9):
    """Smooth L1 between predicted deltas (R, 4) and those that lead to the boxes: a sum."""
    e = d - encode(boxes, anchors)
    small = np.abs(e) < beta
    return np.where(small, e ** 2 / (2 * beta), np.abs(e) - beta / 2).sum(), (e, beta)

def box_loss_backward(dy, cache):
    e, beta = cache
    # forward: equation (5). boxes and anchors are constants: no gradient
    return dy * np.clip(e / beta, -1, 1)

predicted = deltas + 0.2 * rng.standard_normal(deltas.shape)
(row,) = check_gradients(box_loss_forward, box_loss_backward, (predicted, boxes, some_anchors))
loss, cache = box_loss_forward(predicted, boxes, some_anchors)
theirs, their_cache = smooth_l1_forward(predicted, encode_boxes(boxes, some_anchors), 1 / 9)
gradients = box_loss_backward(1.0, cache), smooth_l1_backward(1.0, their_cache)
print(f"gradient check: relative error {row.relative:.0e};  to nprcnn: loss {abs(loss - theirs):.0e}, "
      f"gradient {np.abs(gradients[0] - gradients[1]).max():.0e}")
np.testing.assert_allclose(*gradients, atol=1e-9)
assert np.isclose(loss, theirs)

# %% [markdown]
# Why not learn from the IoU itself, which is what counts in the end? Here are both losses, and their slopes,
# for an anchor that is moved sideways away from its object.

# %%
d_x = np.linspace(-2, 2, 401)
iou_loss = 1 - shifted(d_x, 0 * d_x)
e = np.abs(d_x)
l1 = np.where(e < 1 / 9, e ** 2 / (2 / 9), e - 1 / 18)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.6))
for loss, label in ((l1, "smooth L1 of the deltas"), (iou_loss, "1 − IoU")):
    axes[0].plot(d_x, loss, label=label)
    axes[1].plot(d_x, np.gradient(loss, d_x), label=label)
axes[0].set(xlabel="how far off, in widths", ylabel="loss", ylim=(0, 2.4))
axes[1].set(xlabel="how far off, in widths", ylabel="slope", ylim=(-2.2, 2.2))
axes[0].legend(loc="upper center")
far = np.abs(d_x) > 1.01
print("largest slope of 1 - IoU where the boxes do not meet:", np.abs(np.gradient(iou_loss, d_x)[far]).max())

# %% [markdown]
# Where the boxes do not meet, IoU says 0 whatever one does: no slope, nothing to learn. Smooth L1 pulls with
# the same force from any distance, and more gently close to the goal. (Losses that repair IoU exist:
# Rezatofighi et al., *Generalized intersection over union*, arXiv 1902.09630.)
#
# One more thing about gradients. Decoding (4) *has* a gradient, and in exercise 3 you write it. But nprcnn,
# like torchvision, does not use it: the proposals that come out of the RPN are constants to the second stage.
# The RPN learns from (5) alone.
#
# ## Exercises
#
# Solutions are in `solutions/05_solutions.ipynb`.
#
# ### Exercise 1: all anchors of a level
#
# Write sections 2 and 3 without a loop over cells: one size, A ratios (height / width), a map of `rows` x
# `columns` cells, one stride. Round the corners of the cell's anchors, put the centre of cell (i, j) at (j ·
# stride, i · stride), and return (rows · columns · A, 4) in the order row, column, anchor.
#
# <details><summary>Hint 1</summary>First the (A, 4) anchors about (0, 0), from equation (1) with arrays, rounded. Then a (rows, columns, 4) array of shifts.</details>
# <details><summary>Hint 2</summary>A shift is (x, y, x, y). np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij") gives i and j.</details>
# <details><summary>Hint 3</summary>shifts[:, :, None] + cell has shape (rows, columns, A, 4), already in the right order: reshape(-1, 4).</details>

# %%
def make_anchors(size, ratios, rows, columns, stride):
    ...                                                   # your code; return (rows * columns * A, 4)

check_make_anchors(make_anchors)

# %% [markdown]
# ### Exercise 2: IoU of all pairs, without a loop
#
# `a` is (Na, 4), `b` is (Nb, 4). Return (Na, Nb). All boxes have an area, but they need not meet.
#
# <details><summary>Hint 1</summary>a[:, None, 2] has shape (Na, 1) and b[None, :, 2] has (1, Nb). What does np.minimum make of them?</details>
# <details><summary>Hint 2</summary>Two boxes that miss each other along x and along y have a negative width and a negative height. What is their product?</details>
# <details><summary>Hint 3</summary>np.maximum(width, 0) and np.maximum(height, 0), each for itself, before multiplying.</details>

# %%
def iou_matrix(a, b):
    ...                                                   # your code; return (Na, Nb)

check_iou_matrix(iou_matrix)

# %% [markdown]
# ### Exercise 3: find two bugs
#
# Decoding with the limit of section 7, and a backward that is **wrong in two places**, both in its last line: what
# comes before it is right. `try_columns` takes the deltas of one box and compares the four slopes of
# `buggy_backward` with measured ones (differences of the forward, as in notebook 01). The first bug shows with any
# deltas. The second does not: think of deltas that reveal it, and try them. Then mend the last line in the cell after
# it.
#
# <details><summary>Hint 1</summary>Which columns are wrong? The anchor is 20 wide and 10 high. Do you see the factor between measured and backward?</details>
# <details><summary>Hint 2</summary>The columns of d_x and d_y are wrong. x = x_a + d_x · w_a: by how much does x move with d_x?</details>
# <details><summary>Hint 3</summary>For the second: which function in the forward has left no trace in the backward? When does it do anything? Try (0, 0, 6, 0).</details>
# <details><summary>Hint 4</summary>Above the limit the box does not move with d_w, so the slope is 0: a factor (deltas[:, 2] < LIMIT).</details>

# %%
LIMIT = np.log(1000 / 16)                                 # 4.14

def decode_forward(deltas, anchors):
    (dx, dy, dw, dh), (xa, ya, wa, ha) = deltas.T, centre_and_size(anchors)
    x, y = xa + dx * wa, ya + dy * ha
    w, h = wa * np.exp(np.minimum(dw, LIMIT)), ha * np.exp(np.minimum(dh, LIMIT))
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    return boxes, (deltas, wa, ha, w, h)                  # (R, 4), and four of (R,)

def buggy_backward(dboxes, cache):
    deltas, wa, ha, w, h = cache
    dx1, dy1, dx2, dy2 = dboxes.T
    dx, dy = dx1 + dx2, dy1 + dy2                         # x is in x1 and in x2: fan-out -> sum
    dw, dh = (dx2 - dx1) / 2, (dy2 - dy1) / 2             # w moves x1 to the left and x2 to the right
    return np.stack([dx * w, dy * h, dw * w, dh * h], axis=1)

def try_columns(*deltas, backward=buggy_backward):
    """For one box: the slopes of 1 x1 + 2 y1 + 3 x2 + 5 y2 by each of the four deltas."""
    deltas, anchor, weights = np.array([deltas], float), np.array([[0.0, 0, 20, 10]]), np.array([[1.0, 2, 3, 5]])
    slopes = backward(weights, decode_forward(deltas, anchor)[1])[0]
    for k, (name, slope) in enumerate(zip(("d_x", "d_y", "d_w", "d_h"), slopes)):
        step = 1e-6 * np.eye(4)[[k]]
        up, down = (weights * decode_forward(d, anchor)[0] for d in (deltas + step, deltas - step))
        measured = (up - down).sum() / 2e-6
        print(f"{name}: measured {measured:10.4f}, backward {slope:10.4f}   "
              f"{'right' if abs(measured - slope) < 1e-3 else 'WRONG'}")

try_columns(0.1, -0.2, 0.3, 0.7)

# %%
def decode_backward(dboxes, cache):
    deltas, wa, ha, w, h = cache                          # (R, 4), and four of (R,)
    dx1, dy1, dx2, dy2 = dboxes.T
    dx, dy = dx1 + dx2, dy1 + dy2
    dw, dh = (dx2 - dx1) / 2, (dy2 - dy1) / 2
    return ...                                            # the mended last line: (R, 4)

check_decode_backward(decode_backward)

# %% [markdown]
# ## Summary
#
# - A box is (x1, y1, x2, y2) in continuous coordinates: width x2 − x1, no +1. A box without area makes a NaN.
# - Anchors: the same few shapes at every cell, equation (1), centred on the cell's corner, ordered row, column,
#   anchor.
# - IoU compares two boxes whatever their size, equation (2). 0.7 allows a shift of less than a fifth of the
#   side.
# - The best IoU of any anchor with each object says before training whether the sizes are right.
# - Deltas are relative to the anchor, with a logarithm for the sizes: equations (3) and (4). They mean the same
#   on all levels.
# - The network learns deltas with smooth L1; object and anchor are constants to it, and proposals to what
#   follows.
#
# **Read next.** In this course: [06 The RPN](06_the_rpn.ipynb), which asks of every anchor whether there is an
# object, and which deltas lead to it. In the code: `nprcnn/models/anchors.py` and `nprcnn/ops/boxes.py`.
# Elsewhere: Ren et al., arXiv 1506.01497, section 3.1; Girshick et al., arXiv 1311.2524, appendix C.
