# %% [markdown]
# # 02  Convolution
#
# Most of the work in a Mask R-CNN is one operation: slide a small filter over an image, and at each place take a
# weighted sum. This notebook writes it three times. First with loops, to see what it *is*. Then as one matrix
# product, to make it fast. Then backwards, in two ways, and we check both.
#
# **You need:** notebook [01](01_what_a_backward_pass_is.ipynb) (pairs, the four rules, `check_gradients`). **You
# will be able to:** say the output shape of any convolution, write its forward and backward pass, and estimate
# what a layer costs in memory and multiplications. About 80 minutes with the exercises.
#
# ## Where we are
#
# The dark parts of the figure are made of convolutions: the ResNet, the pyramid, the RPN, and the mask head. What
# is left (the box head, RoIAlign, the losses) is not. We count at the end which part of the work that is.

# %%
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import check_gradients, course
from nprcnn.course.convolution import check_receptive_field, check_conv_transpose, check_grad_x_by_convolution
from nprcnn.data.shapes import Shapes
from nprcnn.gradcheck import check_adjoint
from nprcnn.ops.conv import conv2d, conv2d_backward, conv2d_forward, conv2d_grad_x
from nprcnn.ops.deconv import conv_transpose2d_backward, conv_transpose2d_forward

course.style()
rng = np.random.default_rng(0)
course.where_we_are("resnet", "fpn", "rpn", "mask_head")

# %% [markdown]
# ## 1  A filter on an image
#
# Take a grey image $x$ of shape (H, W) and a filter $w$ of shape (KH, KW). Lay the filter on the image with its
# corner at row $h$ and column $v$, multiply what lies on top of each other, and add up. That is one output pixel:
#
# $$y_{h v} = \sum_{i = 0}^{KH - 1} \sum_{j = 0}^{KW - 1} w_{ij}\; x_{h + i,\; v + j} . \tag{1}$$
#
# The filter must fit inside, so $y$ has shape (H − KH + 1, W − KW + 1). We try four filters on one of nprcnn's
# built-in scenes.

# %%
def correlate(x, w):
    """x (H, W), w (KH, KW) -> y (H - KH + 1, W - KW + 1), equation (1)."""
    kh, kw = w.shape
    y = np.empty((x.shape[0] - kh + 1, x.shape[1] - kw + 1))
    for h in range(y.shape[0]):
        for v in range(y.shape[1]):
            y[h, v] = np.sum(w * x[h:h + kh, v:v + kw])
    return y

image = Shapes(15, seed=2)[14][0]                         # (128, 128, 3) uint8
grey = image.mean(axis=2) / 255                           # (128, 128), 0 to 1
filters = {
    "left to right": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
    "top to bottom": np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
    "centre - around": np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
    "7x7, each 1/49": np.ones((7, 7)) / 49,
}

# %%
figure, axes = plt.subplots(2, 5, figsize=(9, 3.7), height_ratios=[1, 2])
axes[0, 0].axis("off")
axes[1, 0].imshow(grey, cmap="gray", vmin=0, vmax=1)
axes[1, 0].set(title="x  (128, 128)", xlabel="column", ylabel="row", xticks=[0, 127], yticks=[0, 127])
for k, (name, w) in enumerate(filters.items(), 1):
    course.show_matrix(axes[0, k], w, name, text="{:.0f}" if len(w) == 3 else "")
    y = correlate(grey, w)
    if w.min() < 0:
        limit = 0.6 * np.abs(y).max()
        axes[1, k].imshow(y, cmap="PuOr_r", vmin=-limit, vmax=limit)
    else:
        axes[1, k].imshow(y, cmap="gray", vmin=0, vmax=1)
    axes[1, k].set(title=f"y  {y.shape}", xlabel="column", xticks=[0, y.shape[1] - 1], yticks=[])

# %% [markdown]
# The same nine numbers are used at every place. Orange is positive, purple negative. The first filter answers
# where the image gets brighter from left to right, and says nothing on plain ground or along horizontal edges.
# The second is the first one turned.
#
# In a network nobody chooses these numbers: training does. But the two ideas in the picture are fixed. Each
# output sees only a small patch (*local receptive fields*), and all outputs use the same filter (*shared
# weights*): LeCun et al., *Gradient-based learning applied to document recognition* (1998), section II-A. What
# they buy is computed next: shift the input, and the output shifts along.
#
# **A word on the word.** In mathematics, *convolution* turns the filter round first. Equation (1) does not, so
# strictly it is a *cross-correlation*. Deep learning calls it convolution all the same, and so do we. The turned
# filter comes back in section 6.

# %%
w = filters["left to right"]
shifted = np.roll(grey, (5, 9), axis=(0, 1))              # 5 rows down, 9 columns to the right
same = np.allclose(correlate(shifted, w)[5:, 9:], correlate(grey, w)[:-5, :-9])
print("shift, then filter = filter, then shift:", same)

line, taps = np.array([0.0, 0, 1, 0, 0, 0]), np.array([1.0, 2, 3])
print("np.correlate:", np.correlate(line, taps, "valid"), "  equation (1) in one dimension")
print("np.convolve: ", np.convolve(line, taps, "valid"), "  turns the filter round first")

# %% [markdown]
# ## 2  The whole layer
#
# A layer has more of everything. Letters, here and in `nprcnn/ops/conv.py`:
#
# | letter | meaning | | array | shape |
# |---|---|---|---|---|
# | N | images | | input `x` | (N, C, H, W) |
# | C, O | input and output channels | | filters `w` | (O, C, KH, KW) |
# | H, W | input rows and columns | | bias `b` | (O,) |
# | OH, OW | output rows and columns | | output `y` | (N, O, OH, OW) |
#
# Each of the O filters looks at **all** C input channels at once, so a filter has shape (C, KH, KW), and each
# filter makes one output channel. Two more knobs: the **stride** $s$ moves the filter by $s$ pixels at a time,
# and the **padding** $p$ adds a border of $p$ zeros around the image, so that the filter may stick out:
#
# $$y_{n o h v} = b_o + \sum_{c, i, j} w_{o c i j}\; x_{n,\; c,\; s h + i - p,\; s v + j - p} \tag{2}$$
#
# where $x$ is 0 outside the image. Seven loops, nothing else:

# %%
def conv_naive(x, w, b, stride=1, padding=0):
    """Equation (2), word for word."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    (N, C, H, W), (O, _, KH, KW) = x.shape, w.shape
    OH, OW = (H - KH) // stride + 1, (W - KW) // stride + 1
    y = np.zeros((N, O, OH, OW))
    for n in range(N):
        for o in range(O):
            for h in range(OH):
                for v in range(OW):
                    total = b[o]
                    for c in range(C):
                        for i in range(KH):
                            for j in range(KW):
                                total += w[o, c, i, j] * x[n, c, stride * h + i, stride * v + j]
                    y[n, o, h, v] = total
    return y

x, w, b = rng.standard_normal((2, 3, 9, 7)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
for stride, padding in ((1, 0), (1, 1), (2, 1)):
    y = conv_naive(x, w, b, stride, padding)
    error = np.abs(y - conv2d(x, w, b, stride, padding)).max()
    assert error < 1e-12
    print(f"stride {stride}, padding {padding}: x {x.shape} -> y {y.shape},"
          f"  largest difference to nprcnn {error:.0e}")

# %% [markdown]
# ## 3  Shapes
#
# How large is the output? Look at one axis. With padding the input has $H + 2p$ rows. The filter covers $K$ of
# them, or with a **dilation** $d$ (its taps lie $d$ pixels apart) $d(K - 1) + 1$. Its first place is row 0. It
# moves in steps of $s$ as long as it fits:
#
# $$OH = \left\lfloor \frac{H + 2p - d(K - 1) - 1}{s} \right\rfloor + 1 . \tag{3}$$
#
# (Dumoulin and Visin, *A guide to convolution arithmetic for deep learning*, arXiv 1603.07285, relationship 6,
# for $d = 1$.) The next figure shows one axis of 8 pixels, and a filter of 3. Each row is one output, and the dark
# squares are the pixels that it sees. Light grey is padding.

# %%
def out_size(size, kernel, stride=1, padding=0, dilation=1):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

settings = [(3, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (3, 1, 2, 2)]
figure, axes = plt.subplots(1, 5, figsize=(9, 2.2), sharey=True)
for ax, (k, s, p, d) in zip(axes, settings):
    rows = out_size(8, k, s, p, d)
    seen = np.ones((rows, 8 + 2 * p))
    seen[:, :p] = seen[:, 8 + p:] = 0.8                   # the padding
    for row in range(rows):
        seen[row, row * s:row * s + d * (k - 1) + 1:d] -= 0.65
    ax.imshow(seen, cmap="gray", vmin=0, vmax=1, extent=(-p - 0.5, 7.5 + p, rows - 0.5, -0.5))
    ax.set(title=f"padding {p}, dilation {d}" if d > 1 else f"stride {s}, padding {p}", xlabel="input pixel",
           xticks=[0, 7], yticks=range(8), xlim=(-2.6, 9.6), ylim=(7.6, -0.6))
    ax.spines[:].set_visible(False)
axes[0].set_ylabel("output pixel");

# %% [markdown]
# Read off: 3x3 with padding 1 keeps the size ("same" padding). Stride 2 with padding 1 halves it, rounded up. In
# the fourth picture the last input pixel (7) is never seen at all: the filter would not fit any more. Such a
# pixel gets gradient 0. Remember this for exercise 3.
#
# **Groups.** With `groups=G` the channels are cut into G parts that do not see one another. Filters then have
# shape (O, C/G, KH, KW), and there are G times fewer weights and multiplications. (ResNeXt uses 32 groups. With G
# = C each channel has its own filter, "depthwise".)
#
# Now some real layers, for an image of 800 x 1216. *7x7 / 2* is short for a 7x7 filter with stride 2. (A *bottleneck* is
# a block of ResNet-50: 1x1, 3x3, 1x1; notebook 03.) A multiplication with its addition counts as one.

# %%
layers = [
    ("ResNet's stem, 7x7 / 2", (3, 800, 1216), 64, 7, dict(stride=2, padding=3), 1),
    ("bottleneck, 1x1", (256, 200, 304), 64, 1, {}, 1),
    ("bottleneck, 3x3", (64, 200, 304), 64, 3, dict(padding=1), 1),
    ("bottleneck, 3x3 / 2", (128, 200, 304), 128, 3, dict(stride=2, padding=1), 1),
    ("pyramid, lateral, 1x1", (2048, 25, 38), 256, 1, {}, 1),
    ("pyramid, output, 3x3", (256, 200, 304), 256, 3, dict(padding=1), 1),
    ("mask head, 3x3, one RoI", (256, 14, 14), 256, 3, dict(padding=1), 1),
    ("3x3, dilation 2", (256, 50, 76), 256, 3, dict(padding=2, dilation=2), 1),
    ("3x3, 32 groups", (256, 50, 76), 256, 3, dict(padding=1), 32),
]
print(f"{'layer':25} {'input':16} {'filters':17} {'output':16} {'weights':>9} {'mult.':>9}")
for name, (c, rows, cols), o, k, knobs, groups in layers:
    shape = (o, out_size(rows, k, **knobs), out_size(cols, k, **knobs))
    weights = o * c // groups * k * k
    print(f"{name:25} {str((c, rows, cols)):16} {str((o, c // groups, k, k)):17} {str(shape):16} "
          f"{weights:9,} {weights * shape[1] * shape[2] / 1e6:7,.0f} M")

for _ in range(50):                                       # formula against library, random settings
    size, k, s, p, d = (int(rng.integers(*r)) for r in ((9, 20), (1, 5), (1, 4), (0, 3), (1, 3)))
    y = conv2d(np.zeros((1, 1, size, size)), np.zeros((1, 1, k, k)), None, s, p, d)
    assert y.shape[2] == out_size(size, k, s, p, d)

# %% [markdown]
# Look at the last column: the 3x3 of the pyramid costs over 35 000 million multiplications, sixteen times the 3x3
# of the bottleneck of the same size, because both its input and its output have four times the channels. The
# weights are *few* and are used often: at 60 800 places each.
#
# ## 4  How far does an output see?
#
# One 3x3 sees 3 pixels along each axis. Two of them see 5, because each of the 3 pixels that the second one sees
# was itself made from 3. A stride widens everything behind it: after a stride of 2, a step of one pixel is a step
# of two in the image. The patch of the image that an output depends on is its **receptive field**.
#
# We need no formula to find it. Notebook 01 gave us the tool: the gradient tells which inputs matter. Put a 1 at
# one output pixel, go *backward*, and look where the gradient is not 0. One axis is enough, and positive filters,
# so that nothing cancels:

# %%
def measure(layers, size=1025):
    """layers of (kernel, stride) -> how many input pixels the middle output sees, along one axis."""
    shapes = [(1, 1, 1, size)]
    for kernel, stride in layers:
        shapes.append((1, 1, 1, out_size(shapes[-1][3], kernel, stride, kernel // 2)))
    dy = np.zeros(shapes[-1])
    dy[..., shapes[-1][3] // 2] = 1
    for (kernel, stride), shape in zip(reversed(layers), reversed(shapes[:-1])):
        dy = conv2d_grad_x(dy, np.ones((1, 1, 1, kernel)), shape, (1, stride), (0, kernel // 2))
    return int(np.count_nonzero(dy))

print("one, two, three 3x3:          ", [measure([(3, 1)] * n) for n in (1, 2, 3)])
print("the same, the first stride 2: ", [measure([(3, 2)] + [(3, 1)] * n) for n in (0, 1, 2)])

resnet = [(7, 2), (3, 2)]                                 # stem and max-pool
for stage, blocks in enumerate((3, 4, 6, 3)):
    for block in range(blocks):
        resnet += [(1, 1), (3, 2 if stage > 0 and block == 0 else 1), (1, 1)]
    print(f"ResNet-50, C{stage + 2}: {measure(resnet):4} pixels")

# %% [markdown]
# So one number of C5 depends on 427 x 427 pixels. But not on all of them equally: the middle can be reached along
# many paths, the border along few. Here are the gradients behind 1, 3 and 10 layers of 3x3, with all weights 1/9.
# The square is the receptive field.

# %%
figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.4), width_ratios=[1, 1, 1, 1.3])
w = np.full((1, 1, 3, 3), 1 / 9)
for ax, count in zip(axes, (1, 3, 10)):
    dy = np.zeros((1, 1, 25, 25))
    dy[0, 0, 12, 12] = 1
    for _ in range(count):
        dy = conv2d_grad_x(dy, w, dy.shape, 1, 1)
    ax.imshow(dy[0, 0], cmap="cividis")
    corner, side = 11.5 - count, 2 * count + 1
    ax.add_patch(plt.Rectangle((corner, corner), side, side, fill=False, edgecolor="white"))
    ax.set(title=f"3x3, {count} times" if count > 1 else "3x3, once", xlabel="column", xticks=[0, 24], yticks=[0, 24])
axes[0].set_ylabel("row")
axes[3].plot(np.arange(-12, 13), dy[0, 0, 12] / dy.max(), ".-")
axes[3].axvspan(-10.5, 10.5, color="#eeeeee")
axes[3].set(title="10 times, middle row", xlabel="distance in pixels", ylabel="gradient / largest");

# %% [markdown]
# After ten layers the gradient is a bell: the output *can* see 21 pixels (grey), but hears mostly the middle
# ones. The **effective** receptive field is smaller than the theoretical one (Luo et al., arXiv 1701.04128,
# section 2).
#
# ## 5  im2col: one matrix product
#
# Loops over pixels are slow in Python. Equation (2) is a sum over $(c, i, j)$ of products. A sum of products is
# what a matrix product is made of. So write **every patch as a column**:
#
# - row $k = (c, i, j)$: a place in the patch, C · KH · KW of them;
# - column $q = (n, h, v)$: an output pixel, N · OH · OW of them;
# - entry: the input pixel that tap $k$ meets when the filter stands at $q$.
#
# Then with the filters as rows of a matrix (O, C · KH · KW),
#
# $$y_{o q} = b_o + \sum_k w_{o k}\; \text{columns}_{k q} . \tag{4}$$
#
# Chellapilla, Puri and Simard (*High performance convolutional neural networks for document processing*, 2006)
# called it unrolling. The picture: an image of 4 x 5 pixels, numbered, and a 3x3 filter, which has 2 x 3 places.

# %%
numbered = np.arange(20).reshape(4, 5)
places = [(h, v) for h in range(2) for v in range(3)]
columns = np.stack([numbered[h:h + 3, v:v + 3].ravel() for h, v in places], axis=1)       # (9, 6)
figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.4), width_ratios=[1, 1.1])
for ax, table in zip(axes, (numbered, columns)):
    ax.imshow(table, cmap="cividis", alpha=0.55)
    for (row, column), value in np.ndenumerate(table):
        ax.text(column, row, value, ha="center", va="center", fontsize=9)
mark = dict(fill=False, edgecolor=course.BACKWARD, linewidth=3)
axes[0].add_patch(plt.Rectangle((0.5, 0.5), 3, 3, **mark))
axes[1].add_patch(plt.Rectangle((places.index((1, 1)) - 0.5, -0.5), 1, 9, **mark))
axes[0].set(title="the image, its pixels numbered", xlabel="column", ylabel="row",
            xticks=range(5), yticks=range(4))
axes[1].set(title="the column matrix  (9, 6)", xlabel="output pixel q = (h, v)", ylabel="tap k = (i, j)",
            aspect=0.6, xticks=range(6), xticklabels=[f"{h},{v}" for h, v in places],
            yticks=range(9), yticklabels=[f"{i},{j}" for i in range(3) for j in range(3)]);

# %% [markdown]
# The orange patch is the orange column. Look along a *row* instead: tap (0, 0) meets the pixels 0 1 2 5 6 7. That
# is a slice of the image, the same shape as the output. So the matrix can be filled with KH · KW slices, and no
# loop over pixels. With a stride the slice takes steps.

# %%
def im2col(x, KH, KW, stride=1, padding=0):
    """x (N, C, H, W) -> columns (C * KH * KW, N * OH * OW)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    N, C, H, W = x.shape
    OH, OW = (H - KH) // stride + 1, (W - KW) // stride + 1
    columns = np.empty((C, KH, KW, N, OH, OW), x.dtype)
    for i in range(KH):
        for j in range(KW):
            slice_ = x[:, :, i:i + stride * (OH - 1) + 1:stride, j:j + stride * (OW - 1) + 1:stride]
            columns[:, i, j] = slice_.swapaxes(0, 1)      # (C, N, OH, OW)
    return columns.reshape(C * KH * KW, N * OH * OW), (OH, OW)

def conv_im2col(x, w, b, stride=1, padding=0):
    N, (O, C, KH, KW) = len(x), w.shape
    columns, (OH, OW) = im2col(x, KH, KW, stride, padding)
    y = w.reshape(O, -1) @ columns + b[:, None]           # (O, C KH KW) @ (C KH KW, N OH OW)
    return y.reshape(O, N, OH, OW).swapaxes(0, 1)

x, w, b = rng.standard_normal((2, 3, 9, 7)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
for stride, padding in ((1, 0), (1, 1), (2, 1)):
    y = conv_im2col(x, w, b, stride, padding)
    naive, library = conv_naive(x, w, b, stride, padding), conv2d(x, w, b, stride, padding)
    assert np.allclose(y, naive, atol=1e-12) and np.allclose(y, library, atol=1e-12)
    print(f"stride {stride}, padding {padding}:  to the loops {np.abs(y - naive).max():.0e},"
          f"  to nprcnn {np.abs(y - library).max():.0e}")

# %% [markdown]
# How much faster? The number of multiplications is exactly the same. What changes is who runs the loop: Python,
# or a compiled matrix product (GEMM) that works on several numbers at once and keeps them in the processor's
# cache. A small layer, so that we can wait for the loops:

# %%
def seconds(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)

def about(number):
    number = float(f"{number:.1g}")                       # one digit: timings are not more exact than that
    return f"{number:,.0f}" if number >= 1 else f"{number:g}"

x = rng.standard_normal((1, 16, 28, 28)).astype(np.float32)
w, b = rng.standard_normal((16, 16, 3, 3)).astype(np.float32), np.zeros(16, np.float32)
multiplications = 16 * 16 * 9 * 26 * 26
t_naive = 26 * seconds(lambda: conv_naive(x[:, :, :3], w, b), 10)          # one of the 26 output rows, times 26
t_im2col = seconds(lambda: conv_im2col(x, w, b), 50)
t_nprcnn = seconds(lambda: conv2d(x, w, b), 50)
for name, t in (("seven loops", t_naive), ("im2col", t_im2col), ("nprcnn", t_nprcnn)):
    print(f"{name:12} {about(t_naive / t):>6} x as fast as the loops, "
          f"{about(multiplications / t / 1e6):>6} million multiplications a second")

# %% [markdown]
# ## 6  Backward
#
# Given `dy` (N, O, OH, OW) we want `dx`, `dw` and `db`, in the shapes of `x`, `w` and `b`. Equation (4) is a
# linear layer, and notebook 01 did linear layers. Let `dy` also stand for its matrix form, (O, N · OH · OW):
#
# - `db`: the bias is added at every pixel of every image. Fan-out → sum: $db_o = \sum_q dy_{oq}$.
# - `dw`: $w_{ok}$ meets $\text{columns}_{kq}$ at every $q$. So $dw_{ok} = \sum_q dy_{oq}\,\text{columns}_{kq}$,
#   or `dy @ columns.T`.
# - `dcolumns`: in the same way `w.T @ dy`.
# - `dx`: `im2col` only *copies* pixels. It is a gather in which most pixels are picked several times. Rule 3:
#   gather → **scatter-add**. Every entry of `dcolumns` goes back to the pixel it was copied from, and is added
#   there. This is called **col2im**.

# %%
def col2im(dcolumns, x_shape, KH, KW, stride=1, padding=0):
    """The adjoint of im2col: dcolumns (C * KH * KW, N * OH * OW) -> dx (N, C, H, W)."""
    N, C, H, W = x_shape
    H, W = H + 2 * padding, W + 2 * padding
    OH, OW = (H - KH) // stride + 1, (W - KW) // stride + 1
    dcolumns = dcolumns.reshape(C, KH, KW, N, OH, OW)
    dx = np.zeros((N, C, H, W), dcolumns.dtype)
    for i in range(KH):
        for j in range(KW):
            # forward: columns[:, i, j] = slice_ of x; the slices of different taps overlap, so +=
            slice_ = dx[:, :, i:i + stride * (OH - 1) + 1:stride, j:j + stride * (OW - 1) + 1:stride]
            slice_ += dcolumns[:, i, j].swapaxes(0, 1)    # a view: this adds into dx
    # forward: a border was added, so it is cut off
    return dx[:, :, padding:H - padding, padding:W - padding]

def conv_forward(x, w, b, stride=1, padding=0):
    return conv_im2col(x, w, b, stride, padding), (x, w, stride, padding)

def conv_backward(dy, cache):
    x, w, stride, padding = cache
    O, C, KH, KW = w.shape
    columns, _ = im2col(x, KH, KW, stride, padding)       # made again: cheaper than keeping it, see section 8
    dy = dy.swapaxes(0, 1).reshape(O, -1)                 # (O, N OH OW)
    # forward: y = w @ columns + b
    dw = (dy @ columns.T).reshape(w.shape)
    db = dy.sum(axis=1)
    dx = col2im(w.reshape(O, -1).T @ dy, x.shape, KH, KW, stride, padding)
    return dx, dw, db

# %%
x, w, b = rng.standard_normal((2, 3, 9, 7)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
for stride, padding in ((1, 0), (1, 1), (2, 1)):
    rows = check_gradients(conv_forward, conv_backward, (x, w, b, stride, padding))
    print(f"stride {stride}, padding {padding}, relative errors:  "
          + "  ".join(f"{name} {row.relative:.0e}" for name, row in zip(("dx", "dw", "db"), rows)))
    y, cache = conv_forward(x, w, b, stride, padding)
    dy = rng.standard_normal(y.shape)
    theirs = conv2d_backward(dy, conv2d_forward(x, w, b, stride, padding)[1])
    for ours, library in zip(conv_backward(dy, cache), theirs):
        np.testing.assert_allclose(ours, library, atol=1e-12)
print("the same as nprcnn's, to 1e-12")
columns, _ = im2col(x, 3, 3, 2, 1)
error = check_adjoint(lambda x: im2col(x, 3, 3, 2, 1)[0], lambda d: col2im(d, x.shape, 3, 3, 2, 1), x,
                      rng.standard_normal(columns.shape))
print(f"col2im is the adjoint of im2col: relative error {error:.0e}")

# %% [markdown]
# How often is a pixel used? `col2im` of a matrix of ones counts it. In a plain 3x3 each pixel inside is used nine
# times and gets nine gradients. With stride 2 the counts differ from pixel to pixel.

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.7))
for ax, (k, s, p) in zip(axes, ((3, 1, 0), (3, 1, 1), (3, 2, 1))):
    count = np.ones((k * k, out_size(7, k, s, p) ** 2))
    uses = col2im(count, (1, 1, 7, 7), k, k, s, p)[0, 0]
    course.show_matrix(ax, uses, f"3x3, stride {s}, padding {p}", "column", "row", "{:.0f}")

# %% [markdown]
# ### The same `dx`, as a convolution
#
# With stride 1 there is a second way. Ask which outputs saw pixel $r$ (one axis, one channel). From (2), output
# $h$ sees pixel $r = h + i - p$ through tap $i$. So pixel $r$ hears from $h = r - i + p$:
#
# $$dx_r = \sum_i w_i\; dy_{r - i + p} .$$
#
# Compare it with (2): there the index of $x$ *grows* with $i$, here the index of $dy$ *falls*. Put
# $i' = K - 1 - i$, that is, turn the filter round:
#
# $$dx_r = \sum_{i'} w_{K - 1 - i'}\; dy_{r + i' - (K - 1 - p)} . \tag{5}$$
#
# That is (2) again: **a convolution of dy with the filter turned round and padding K − 1 − p.** Input and output
# channels change places, since `dy` has O channels and `dx` has C. A picture of what happens to one single pixel:

# %%
w = np.arange(1.0, 10).reshape(1, 1, 3, 3)
dot = np.zeros((1, 1, 7, 7))
dot[0, 0, 3, 3] = 1
figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.6), width_ratios=[3, 7, 7])
course.show_matrix(axes[0], w[0, 0], "filter w", text="{:.0f}")
y, dx = conv2d(dot, w, padding=1), conv2d_grad_x(dot, w, dot.shape, padding=1)
course.show_matrix(axes[1], y[0, 0], "forward: y, if x is one dot", "column", "row", "{:.0f}")
course.show_matrix(axes[2], dx[0, 0], "backward: dx, if dy is one dot", "column", "row", "{:.0f}")

# %% [markdown]
# Forward, a dot leaves the filter *turned round*. Backward, a dot in `dy` leaves the filter *as it is*: a stamp.
# Every output pixel stamps the filter onto the patch it came from, as strongly as its gradient says, and stamps
# add up.
#
# `dw` is a convolution, too: $dw_i = \sum_h dy_h\, x_{h + i - p}$ slides `dy` over `x`. Its "filter" is as large
# as the output, and images and channels change roles. We check both.

# %%
x, w = rng.standard_normal((2, 3, 9, 7)), rng.standard_normal((4, 3, 3, 3))
for padding in (0, 1, 2):
    y, cache = conv_forward(x, w, np.zeros(4), 1, padding)
    dy = rng.standard_normal(y.shape)
    dx, dw, _ = conv_backward(dy, cache)
    turned = w[:, :, ::-1, ::-1].swapaxes(0, 1)           # (C, O, KH, KW)
    dx_2 = conv2d(dy, turned, padding=2 - padding)
    dw_2 = conv2d(x.swapaxes(0, 1), dy.swapaxes(0, 1), padding=padding).swapaxes(0, 1)
    assert np.allclose(dx, dx_2, atol=1e-12) and np.allclose(dw, dw_2, atol=1e-12)
    print(f"padding {padding}, largest differences:  dx {np.abs(dx - dx_2).max():.0e}"
          f"  dw {np.abs(dw - dw_2).max():.0e}")

# %% [markdown]
# nprcnn takes the convolution for `dx` where the stride is 1, and col2im elsewhere (`conv2d_grad_x` in
# `nprcnn/ops/conv.py`). In exercise 3 you make the convolution work for any stride.
#
# ## 7  The transposed convolution
#
# For fixed filters a convolution is linear in $x$: $y = A x$ with some large matrix $A$. Its `dx` is $A^\top dy$.
# Now use $A^\top$ as a *forward* pass. It takes a small map and makes a large one: every input pixel stamps the
# filter, $s$ pixels apart. This is the **transposed convolution**, often called deconvolution (though it undoes
# nothing). Mask R-CNN's mask head uses one, 2x2 with stride 2, to get from 14 x 14 to 28 x 28 (He et al. 2017,
# figure 4).
#
# Its size is (3) solved for $H$: $(OH - 1)\,s + K - 2p$. And there is nothing new to write: its forward is
# `conv2d_grad_x`, its backward is `conv2d`.

# %%
x, w = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((3, 2, 3, 3))    # w (C, O, KH, KW)
dy = rng.standard_normal((2, 2, 11, 9))                                        # 11 = (5 - 1) * 2 + 3

def transposed(x):
    return conv_transpose2d_forward(x, w, None, 2)[0]

error = check_adjoint(transposed, lambda dy: conv2d(dy, w, None, 2), x, dy)
print(f"the adjoint of conv2d: relative error {error:.0e}")
b = rng.standard_normal(2)
for row in check_gradients(conv_transpose2d_forward, conv_transpose2d_backward, (x, w, b, 2)):
    print(f"{row.argument:27} relative error {row.relative:.0e}")
x, w = np.zeros((1, 256, 14, 14), np.float32), np.zeros((256, 256, 2, 2), np.float32)
print("mask head:", x.shape, "->", transposed(x).shape)

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.6))
for ax, (k, s) in zip(axes, ((2, 2), (3, 2), (4, 2))):
    ones, _ = conv_transpose2d_forward(np.ones((1, 1, 4, 4)), np.ones((1, 1, k, k)), None, s)
    course.show_matrix(ax, ones[0, 0], f"{k}x{k} filter, stride {s}", "column", "row", "{:.0f}")

# %% [markdown]
# How many stamps land on each pixel, for a 4 x 4 input. With 2x2 and stride 2 the stamps tile the output: each
# pixel gets exactly one. With 3x3 they overlap unevenly, and an even input makes a checkerboard (Odena, Dumoulin
# and Olah, *Deconvolution and checkerboard artifacts*, Distill 2016). With 4x4 the overlap is even, but for the
# border. Mask R-CNN's choice is the first.
#
# ## 8  What the column matrix costs
#
# im2col has a price: with stride 1 the column matrix has KH · KW times as many numbers as the input. In
# megabytes, for one image of 800 x 1216 in float32:

# %%
names, small, large = [], [], []
for name, (c, rows, cols), o, k, knobs, groups in layers[:7]:
    oh, ow = out_size(rows, k, **knobs), out_size(cols, k, **knobs)
    names.append(name)
    small.append(4 * (c * rows * cols + o * oh * ow) / 1e6)       # float32 has 4 bytes
    large.append(4 * c * k * k * oh * ow / 1e6)
figure, axes = plt.subplots(figsize=(7.6, 2.8))
axes.barh(np.arange(7) - 0.2, small, 0.4, label="input + output")
axes.barh(np.arange(7) + 0.2, large, 0.4, label="column matrix")
for row, pair in enumerate(zip(small, large)):
    for value, shift in zip(pair, (-0.2, 0.2)):
        axes.text(value + 5, row + shift, f"{value:.3g}", va="center", fontsize=8)
axes.set(yticks=range(7), yticklabels=names, xlabel="MB", ylim=(6.6, -0.6))
axes.legend();

# %% [markdown]
# 560 MB for a single layer of the pyramid, and training would have to hold it for a while. Two remedies, both in
# `nprcnn/ops/conv.py`:
#
# 1. **The cache does not hold the columns.** It refers to `x`, which exists anyway, and the backward makes the
#    columns again.
# 2. **Blocks.** Nobody needs the whole matrix at once. Columns are output pixels, so we may take a few output
#    rows, build their columns, multiply, write the result, and use the same memory for the next rows. A 1x1 with
#    stride 1 needs no columns at all: `x` is its own column matrix.
#
# Small blocks can also stay in the processor's cache between being written and being multiplied. We measure the
# memory that both versions ask for, on that layer with a quarter of the channels:

# %%
def peak(function):
    """Megabytes that the function had allocated at most, its result included."""
    tracemalloc.start()
    function()
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used / 1e6

x = rng.standard_normal((1, 64, 200, 304), np.float32)
w, b = rng.standard_normal((64, 64, 3, 3), np.float32), np.zeros(64, np.float32)
print(f"x {x.nbytes / 1e6:.0f} MB, y {x.nbytes / 1e6:.0f} MB")
for name, conv in (("im2col, whole", conv_im2col), ("nprcnn, in blocks", conv2d)):
    memory, t = peak(lambda: conv(x, w, b, 1, 1)), seconds(lambda: conv(x, w, b, 1, 1), 7)
    print(f"{name:18} peak {memory:4.0f} MB,  about {about(1000 * t)} ms")
print(f"a block's column matrix: at most {nprcnn.ops.conv.COLUMN_BYTES / 2 ** 20:.0f} MiB")

# %% [markdown]
# ## 9  How many multiplications?
#
# A convolution makes N · O · OH · OW outputs, and each is a sum of C · KH · KW products. We write down all
# convolutions of ResNet-50 (He et al. 2015, arXiv 1512.03385, table 1) and count. The paper gives
# $3.8 \cdot 10^9$ for an image of 224 x 224, so we can check ourselves. One detail matters: the paper puts a
# stage's stride into its first 1x1, and nprcnn, like torchvision, into the 3x3 after it ("v1.5").

# %%
def resnet50(height, width, stride_in_3x3=True):
    """(stage, C, O, K, OH, OW) of every convolution."""
    def half(size):                                       # equation (3) for 7x7 / 2, p 3, and 3x3 / 2, p 1
        return (size + 1) // 2

    h, w = half(height), half(width)
    convolutions, channels = [("stem", 3, 64, 7, h, w)], 64
    h, w = half(h), half(w)                               # max-pool
    for stage, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            before = (h, w)
            if stage > 1 and block == 0:
                h, w = half(h), half(w)
            first = before if stride_in_3x3 else (h, w)
            name = f"layer{stage}"
            convolutions += [(name, channels, inner, 1, *first), (name, inner, inner, 3, h, w),
                             (name, inner, 4 * inner, 1, h, w)]
            if block == 0:                                # the short cut's own 1x1
                convolutions.append((name, channels, 4 * inner, 1, h, w))
            channels = 4 * inner
    return convolutions

def count(convolutions):
    return sum(c * o * k * k * h * w for _, c, o, k, h, w in convolutions)

for where, v15 in (("1x1", False), ("3x3", True)):        # with the classifier, 2048 to 1000
    total = count(resnet50(224, 224, v15)) + 2048 * 1000
    print(f"ResNet-50, 224 x 224, stride in the {where}: {total / 1e9:.2f} billion")

sizes = {name: p.data.size for name, p in nprcnn.maskrcnn_resnet50_fpn().named_parameters()}
in_model = sum(size for name, size in sizes.items()
               if name.startswith("backbone.body.") and ("conv" in name or "downsample.0" in name))
assert in_model == sum(c * o * k * k for _, c, o, k, _, _ in resnet50(224, 224))
print(f"weights of these convolutions, here and in nprcnn's model: {in_model:,}")
print(f"all numbers that training changes in the whole model: {sum(sizes.values()):,}")

# %% [markdown]
# Now the detector, for 800 x 1216. The pyramid: a 1x1 to 256 channels on each of C2 to C5, and a 3x3 on each
# result. The RPN: a 3x3 on each of P2 to P6, then 1x1 to 3 scores and 12 box numbers. The box head: two linear
# layers for each of 1000 proposals. The mask head: four 3x3, the transposed convolution, and a 1x1 to 91 classes,
# for 100 boxes.

# %%
convolutions = resnet50(800, 1216)
levels = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
for size, channels in zip(levels, (256, 512, 1024, 2048)):
    convolutions += [("pyramid", channels, 256, 1, *size), ("pyramid", 256, 256, 3, *size)]
for size in levels:
    convolutions += [("RPN", 256, 256, 3, *size), ("RPN", 256, 15, 1, *size)]
convolutions += [("box head", 256 * 49, 1024, 1, 1, 1000), ("box head", 1024, 1024 + 91 * 5, 1, 1, 1000)]
convolutions += 4 * [("mask head", 256, 256, 3, 14, 14 * 100)]
convolutions += [("mask head", 256, 256, 2, 14, 14 * 100), ("mask head", 256, 91, 1, 28, 28 * 100)]

parts = list(dict.fromkeys(part for part, *_ in convolutions))
billions = np.array([count([c for c in convolutions if c[0] == part]) / 1e9 for part in parts])
figure, axes = plt.subplots(figsize=(7.6, 2.6))
axes.barh(parts, billions, color=[course.YELLOW if part == "box head" else course.FORWARD for part in parts])
for row, value in enumerate(billions):
    axes.text(value + 1, row, f"{value:.1f}", va="center", fontsize=9)
axes.set(xlabel="billion multiplications, forward", ylim=(len(parts) - 0.4, -0.6))
part = dict(zip(parts, billions))
backbone, pyramid, boxes = billions[:parts.index("RPN")].sum(), part["pyramid"], part["box head"]
everything = billions.sum()
in_pyramid = sum(name == "pyramid" for name, *_ in convolutions)
print(f"ResNet: {len(resnet50(800, 1216))} convolutions; pyramid: {in_pyramid}")
print(f"both together: {backbone:.0f} billion, {100 * pyramid / backbone:.0f} % of it the pyramid")
print(f"everything: {everything:.0f} billion, {100 - 100 * boxes / everything:.0f} % of it convolutions (blue)")

# %% [markdown]
# The pyramid has far fewer convolutions than the ResNet, and yet it takes two fifths of their sum: its 3x3 are wide,
# and work on large maps. The backward pass needs one product of the same size for `dx` and one for `dw`, so training
# costs about three times the forward. How long is that? We measure what a matrix product achieves here, which is
# what im2col can at best reach:

# %%
a, c = rng.standard_normal((512, 2304), np.float32), rng.standard_normal((2304, 1024), np.float32)
speed = 512 * 2304 * 1024 / seconds(lambda: a @ c, 10)
print(f"this machine: about {about(speed / 1e9)} billion multiplications a second")
print(f"forward pass of the detector: at least about {about(everything * 1e9 / speed)} s;  "
      f"one training step: at least about {about(3 * everything * 1e9 / speed)} s")

# %% [markdown]
# That is why this course trains a small model, and why it has notebooks on faster kernels later on.
#
# ## Exercises
#
# Solutions are in `solutions/02_solutions.ipynb`.
#
# ### Exercise 1: the receptive field, by a formula
#
# In section 4 we measured it. Now compute it. `layers` is a list of (kernel, stride, dilation), the first layer
# first. Return how many input pixels one output sees along one axis. Try it on ResNet-50 afterwards: section 4
# printed what it should give.
#
# <details><summary>Hint 1</summary>Walk from the image up and keep two numbers: how much an output sees so far, and how far apart two neighbouring outputs lie in the image. Before any layer both are 1.</details>
# <details><summary>Hint 2</summary>A filter has kernel − 1 gaps between its taps. How wide is one gap in pixels of the image?</details>
# <details><summary>Hint 3</summary>A gap is dilation × (distance of neighbours so far). The layer's own stride changes that distance only afterwards.</details>

# %%
def receptive_field(layers):
    for kernel, stride, dilation in layers:
        ...                                               # your code
    return None

# receptive_field([(kernel, stride, 1) for kernel, stride in resnet])    # try it: C5 of ResNet-50
check_receptive_field(receptive_field)

# %% [markdown]
# ### Exercise 2: a transposed convolution, by stamping
#
# Write section 7's transposed convolution without `conv2d_grad_x`: `x` (N, C, H, W), `w` (C, O, KH, KW), no
# padding, no bias. Each input pixel stamps its filters onto the output, `stride` pixels apart. Loops over pixels
# are welcome.
#
# <details><summary>Hint 1</summary>How large is y? The last stamp begins at (H − 1) · stride.</details>
# <details><summary>Hint 2</summary>For one pixel (h, v), x[:, :, h, v] has shape (N, C). Which sum makes of it and w a stamp of shape (N, O, KH, KW)?</details>
# <details><summary>Hint 3</summary>np.einsum("nc,coij->noij", x[:, :, h, v], w). What must happen where stamps overlap?</details>

# %%
def conv_transpose(x, w, stride):
    N, C, H, W = x.shape
    _, O, KH, KW = w.shape
    ...                                                   # your code; return y

check_conv_transpose(conv_transpose)

# %% [markdown]
# ### Exercise 3: dx as a convolution, for any stride
#
# Equation (5) holds for stride 1. But a convolution with stride $s$ is one with stride 1, $z$, of which only every
# $s$-th output is kept: `y = z[:, :, ::s, ::s]`. So there are two steps back: from `dy` to `dz`, by rule 3 of notebook
# 01, and from `dz` to `dx`, by (5). Write both. `w` is (O, C, K, K), and `padding` is smaller than K.
#
# An example, for K = 3, stride 2, padding 1:
#
# | rows of x | rows of z, by (3) with stride 1 | of which y keeps |
# |---|---|---|
# | 5 | 0 1 2 3 4 | 0, 2, 4 |
# | 6 | 0 1 2 3 4 5 | 0, 2, 4 (row 5 is not kept, but z has it) |
#
# <details><summary>Hint 1</summary>An output that y does not keep has no influence, so its gradient is 0. Begin with np.zeros and write dy into a slice of it.</details>
# <details><summary>Hint 2</summary>dz[:, :, ::stride, ::stride] = dy. As z has all its rows, that slice has just the shape of dy.</details>
# <details><summary>Hint 3</summary>Section 6 checks (5) in code, for 3x3 filters and the padding 2 − padding. For K x K it is K − 1 − padding.</details>

# %%
def grad_x_by_convolution(dy, w, x_shape, stride, padding):
    N, C, H, W = x_shape
    O, C, K, K = w.shape
    z_shape = N, O, out_size(H, K, 1, padding), out_size(W, K, 1, padding)
    # forward: y = z[:, :, ::stride, ::stride]
    dz = ...                                              # (N, O, rows and columns of z)
    # forward: z = conv2d(x, w, padding=padding), with stride 1; equation (5)
    turned = ...                                          # (C, O, K, K)
    dx = ...                                              # (N, C, H, W): one call of conv2d
    return dx

check_grad_x_by_convolution(grad_x_by_convolution)

# %% [markdown]
# ## Summary
#
# - A convolution slides shared filters over the image: equation (2). Its output size is equation (3).
# - The receptive field grows with each layer, faster behind a stride. The middle counts most.
# - im2col makes one matrix product of it. The multiplications stay the same; the speed does not.
# - Backward: `db` is a sum, `dw = dy @ columns.T`, and `dx` is col2im of `w.T @ dy`: gather → scatter-add. With
#   stride 1 it is also a convolution with the filters turned round, the channels exchanged, and padding K − 1 −
#   p.
# - The transposed convolution is the adjoint, used as a forward pass: stamps that add up.
# - The column matrix is KH · KW times the input, so nprcnn builds it block by block and never keeps it.
#
# **Read next.** In this course: [03 Normalisation, pooling, residual blocks](03_residual_networks.ipynb). In the code:
# `nprcnn/ops/conv.py`, which you can now read from top to bottom. Elsewhere: Dumoulin and Visin, arXiv 1603.07285
# (chapter 4 on transposed convolutions); the CS231n notes "Convolutional Networks"; Araujo, Norris and Sim, *Computing
# receptive fields of convolutional neural networks*, Distill 2019.
