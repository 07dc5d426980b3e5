# %% [markdown]
# # 03  Normalisation, pooling, residual blocks: a ResNet
#
# The backbone of a Mask R-CNN is a ResNet: some fifty convolutions, one after the other. Notebook 02 made one
# convolution. This notebook adds the four small things without which fifty of them cannot be trained: ReLU, batch
# norm, pooling, and the short cut. Then we put a whole ResNet-50 together from functions that we wrote, and stand
# it beside VGG-16, the backbone of the years before.
#
# **You need:** notebooks [01](01_what_a_backward_pass_is.ipynb) (pairs, the four rules) and
# [02](02_convolution.ipynb) (`conv2d`, shapes, counting). **You will be able to:** write each of the four forward
# and backward, say what the short cut is good for and show it, and count the parameters and multiplications of any
# backbone. About 85 minutes with the exercises.
#
# ## Where we are
#
# In the first stage, and nowhere else. (ReLU and, in newer models, batch norm appear in the heads as well. They
# are the same functions there.)

# %%
import matplotlib.pyplot as plt
import numpy as np

from nprcnn import check_gradients, course
from nprcnn.course.residual import check_halving_backward, check_fold_batch_norm, check_group_norm_backward
from nprcnn.data.shapes import Shapes
from nprcnn.gradcheck import GradientCheckError
from nprcnn.ops.activation import relu_backward, relu_forward, sigmoid
from nprcnn.ops.conv import conv2d, conv2d_backward, conv2d_forward, conv2d_grad_x
from nprcnn.ops.linear import linear_backward, linear_forward
from nprcnn.ops.norm import batch_norm_backward, batch_norm_forward, frozen_batch_norm_forward
from nprcnn.ops.pool import global_avg_pool_backward, global_avg_pool_forward, max_pool2d, max_pool2d_backward

course.style()
rng = np.random.default_rng(0)
course.where_we_are("resnet")

# %% [markdown]
# The operations of this notebook. N images, C channels, planes of H x W pixels.
#
# | operation | forward | input → output | learns |
# |---|---|---|---|
# | ReLU | `max(x, 0)` | any shape, kept | nothing |
# | batch norm | `(x - mean) / std * weight + bias`, a channel at a time | (N, C, H, W), kept | `weight`, `bias` (C,) |
# | max-pool 3x3 / 2 | the largest of each window | (N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉) | nothing |
# | global average | the mean of each plane | (N, C, H, W) → (N, C) | nothing |
# | short cut | `f(x) + x` | (N, C, H, W), kept | nothing |
#
# ## 1  ReLU, and how large the first weights are
#
# Two convolutions without anything in between are one convolution: $A(Bx) = (AB)x$. So each is followed by a
# function that bends, $y = \max(x, 0)$, the **rectified linear unit**. Its slope is 1 or 0, and its backward lets
# pass what was positive. Older networks had the sigmoid. Here are both, and their slopes.

# %%
x = np.linspace(-5, 5, 201)
figure, axes = plt.subplots(1, 2, figsize=(7, 2.3), sharey=True)
for ax, name, y, slope in ((axes[0], "ReLU", np.maximum(x, 0), (x > 0) * 1.0),
                           (axes[1], "sigmoid", sigmoid(x), sigmoid(x) * (1 - sigmoid(x)))):
    ax.plot(x, y, label="y")
    ax.plot(x, slope, "--", label="slope dy/dx")
    ax.set(title=name, xlabel="x", ylim=(-0.1, 2))
    ax.legend()

away = rng.choice([-1.0, 1.0], (4, 6)) * (0.1 + np.abs(rng.standard_normal((4, 6))))      # clear of the kink at 0
(row,) = check_gradients(relu_forward, relu_backward, (away,))
print(f"relu, gradient check: relative error {row.relative:.0e}")
print(f"the sigmoid's slope is at most {slope.max():.2f}; through 20 of them at most {slope.max() ** 20:.0e}")

# %% [markdown]
# That is the trouble with the sigmoid: a gradient that passes twenty of them is multiplied by twenty numbers of at
# most 1/4. ReLU's slope does not shrink anything. What is left is the *weights*: they shrink or grow the signal
# too. How large must they be? Take one output of a layer with $n$ inputs, $y = \sum_j w_j x_j$, with independent
# weights of mean 0 and variance $v$. Then
#
# $$\mathrm{E}[y^2] = n\,v\,\mathrm{E}[x^2] , \tag{1}$$
#
# because the mixed terms vanish. $y$ is as often positive as negative, so ReLU halves the mean square. It stays
# the same from layer to layer if $\tfrac12 n v = 1$, that is
#
# $$v = 2 / n . \tag{2}$$
#
# (He et al., *Delving deep into rectifiers*, arXiv 1502.01852, equation 10.) Backward, the same argument holds
# with the number of *outputs*. We measure the mean square through 30 layers of 256 numbers, forward and backward.

# %%
def through(layers, variance):
    """Mean square of the signal after each layer, and of the gradient before each layer."""
    h, caches, forward, backward = rng.standard_normal((64, 256)), [], [], []
    for _ in range(layers):
        z, linear_cache = linear_forward(h, rng.standard_normal((256, 256)) * np.sqrt(variance))
        h, relu_cache = relu_forward(z)
        caches.append((linear_cache, relu_cache))
        forward.append(np.mean(h ** 2))
    dh = rng.standard_normal(h.shape)
    for linear_cache, relu_cache in reversed(caches):
        dh, _, _ = linear_backward(relu_backward(dh, relu_cache), linear_cache)
        backward.append(np.mean(dh ** 2))
    return forward, backward[::-1]

figure, axes = plt.subplots(1, 2, figsize=(8, 2.7), sharey=True)
for factor in (1, 2, 4):
    forward, backward = through(30, factor / 256)
    for ax, values in zip(axes, (forward, backward)):
        ax.semilogy(range(1, 31), values, label=f"v = {factor} / n")
    print(f"v = {factor} / n: after 30 layers the signal's mean square is {forward[-1]:.0e}, "
          f"before them the gradient's is {backward[0]:.0e}")
axes[0].set(title="forward: the signal", xlabel="layer", ylabel="mean square")
axes[1].set(title="backward: the gradient", xlabel="layer")
axes[1].legend(loc="upper right");

# %% [markdown]
# A factor of 2 a layer is a factor of $2^{30}$ in the end. So the first weights are drawn with variance $2 / n$
# (`kaiming_normal_fan_out` in `nprcnn/layers.py`). But training changes the weights, and then nothing keeps the
# scale where it was. The next layer does.
#
# ## 2  Batch norm: forward
#
# **Batch norm** (Ioffe and Szegedy, arXiv 1502.03167, algorithm 1) sets the scale of each channel anew. Take all
# numbers of one channel in the batch, $M = N \cdot H \cdot W$ of them, and call them $x_1 \dots x_M$:
#
# $$\mu = \frac1M \sum_i x_i, \qquad \sigma^2 = \frac1M \sum_i (x_i - \mu)^2, \qquad
# \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}}, \qquad y_i = \gamma \hat x_i + \beta . \tag{3}$$
#
# $\hat x$ has mean 0 and variance 1. $\gamma$ and $\beta$ (`weight` and `bias`) are learned, and give each channel
# the scale and the place that suits it. A loop over the channels, word for word:

# %%
def batch_norm_naive(x, weight, bias, eps=1e-5):
    """Equation (3): x (N, C, H, W), weight and bias (C,)."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c]                                  # (N, H, W), all of this channel
        mean, var = values.mean(), values.var()           # var: divided by M, "biased"
        y[:, c] = (values - mean) / np.sqrt(var + eps) * weight[c] + bias[c]
    return y

x, weight, bias = rng.standard_normal((4, 3, 5, 7)) * 3 + 1, rng.standard_normal(3), rng.standard_normal(3)
y, _, _ = batch_norm_forward(x, weight, bias, np.zeros(3), np.ones(3))
print(f"largest difference to nprcnn: {np.abs(batch_norm_naive(x, weight, bias) - y).max():.0e}")
assert np.allclose(batch_norm_naive(x, weight, bias), y, atol=1e-12)

# %% [markdown]
# What it does to real numbers: 40 of nprcnn's built-in scenes, and the four filters of one random 7x7 convolution. Each
# row is a channel. What lies to the right of the black line passes a ReLU.

# %%
images = np.stack([image for image, _ in Shapes(40, seed=3)]).transpose(0, 3, 1, 2) / 255      # (40, 3, 128, 128)
w = rng.standard_normal((4, 3, 7, 7)) * np.sqrt(2 / (3 * 49))
z = conv2d(images, w, None, 2, 3)                         # (40, 4, 64, 64)
normed = batch_norm_naive(z, np.ones(4), np.zeros(4))
figure, axes = plt.subplots(4, 2, figsize=(8, 3.6), sharex="col")
for column, (values, title, bins) in enumerate(((z, "after the convolution", np.linspace(-1.5, 2.5, 41)),
                                                (normed, "after batch norm", np.linspace(-4, 4, 41)))):
    axes[0, column].set_title(title)
    axes[3, column].set_xlabel("value")
    for c, ax in enumerate(axes[:, column]):
        often, _ = np.histogram(values[:, c], bins, density=True)
        ax.stairs(often, bins, fill=True, color=course.FORWARD, alpha=0.6)
        ax.axvline(0, color="black", linewidth=1)
        ax.text(0.99, 0.6, f"{np.mean(values[:, c] > 0):.0%} above 0", transform=ax.transAxes, ha="right", fontsize=9)
        ax.set(yticks=[], ylim=(0, 1.1 * often.max()))
        if column == 0:
            ax.set_ylabel(f"channel {c}", rotation=0, ha="right", va="center")
for c in range(4):
    print(f"channel {c}: mean {z[:, c].mean():5.2f}, standard deviation {z[:, c].std():.2f};  after batch norm "
          f"{abs(normed[:, c].mean()):.2f} and {normed[:, c].std():.2f}")

# %% [markdown]
# (The height says how often a value occurs.) Before, means and widths are what the filters happened to make them: a
# ReLU would cut two of the channels away and let the other two pass nearly whole, which bends neither. After, every
# channel has its mean at 0 and the same width, so ReLU cuts where something happens.
#
# ## 3  Batch norm: backward
#
# Every $x_i$ of a channel moves *every* $y_j$ of it, for it is in $\mu$ and in $\sigma$. There are **three paths**
# from $x_i$ to the output: directly, through $\mu$, and through $\sigma$. Write $s = 1 / \sqrt{\sigma^2 +
# \varepsilon}$. From (3), with $\sum_j (x_j - \mu) = 0$,
#
# $$\frac{\partial \mu}{\partial x_i} = \frac1M, \qquad
# \frac{\partial \sigma^2}{\partial x_i} = \frac2M (x_i - \mu), \qquad
# \frac{\partial s}{\partial x_i} = -\tfrac12 s^3 \cdot \frac2M (x_i - \mu) = -\frac{s^2}{M} \hat x_i ,$$
#
# and $\hat x_j = (x_j - \mu)\, s$ gives
#
# $$\frac{\partial \hat x_j}{\partial x_i} = s \Bigl( \underbrace{\delta_{ij}}_{\text{direct}}
# - \underbrace{\tfrac1M}_{\text{through } \mu} - \underbrace{\tfrac1M \hat x_i \hat x_j}_{\text{through } \sigma} \Bigr) .
# \tag{4}$$
#
# The picture: these three matrices for a channel of five numbers, their sum, and the Jacobian as differences of the
# forward pass give it.

# %%
values = np.array([-1.0, 0.0, 1.0, 2.0, 5.0])
M, s = len(values), 1 / np.sqrt(values.var() + 1e-5)
xhat = (values - values.mean()) * s
paths = np.eye(M), -np.ones((M, M)) / M, -np.outer(xhat, xhat) / M

def one_channel(v):
    return batch_norm_naive(v.reshape(1, 1, 1, M), np.ones(1), np.zeros(1)).ravel()

measured = np.stack([(one_channel(values + h) - one_channel(values - h)) / 2e-5 for h in 1e-5 * np.eye(M)], axis=1)
figure, axes = plt.subplots(1, 5, figsize=(10.2, 2.5))
titles = "direct", "through the mean", "through the variance", "s · (sum of the three)", "Jacobian, measured"
for ax, matrix, title in zip(axes, (*paths, s * sum(paths), measured), titles):
    course.show_matrix(ax, matrix, title, "input i", "output j" if title == "direct" else "", limit=1)
print(f"largest difference of the last two: {np.abs(s * sum(paths) - measured).max():.0e}")

# %% [markdown]
# The largest input (the last, 5.0) has the smallest slope for itself: to move it is to widen the whole channel,
# and batch norm divides by the width.
#
# Now multiply with $d\hat x = \gamma\,dy$ (notebook 01: $dx = J^\top d\hat x$). The sums over $j$ are sums over the
# channel, and two of them we need anyway, since $\gamma$ and $\beta$ serve all $M$ numbers (fan-out → sum):
#
# $$d\beta = \sum_j dy_j, \qquad d\gamma = \sum_j dy_j\, \hat x_j, \qquad
# dx_i = \gamma s \Bigl( dy_i - \frac{d\beta}{M} - \hat x_i \frac{d\gamma}{M} \Bigr) . \tag{5}$$
#
# (The paper, section 3, has the same in more steps.)

# %%
def norm_forward(x, weight, bias, eps=1e-5):
    mean, var = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)    # (1, C, 1, 1)
    s = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * s
    return xhat * weight[:, None, None] + bias[:, None, None], (xhat, weight, s)

def norm_backward(dy, cache):
    xhat, weight, s = cache
    M = xhat.size // xhat.shape[1]
    # forward: y = weight * xhat + bias, both used M times
    dbias = dy.sum(axis=(0, 2, 3))                        # (C,)
    dweight = (dy * xhat).sum(axis=(0, 2, 3))             # (C,)
    # forward: xhat = (x - mean) * s; equation (5), its three paths
    dx = dy - (dbias / M)[:, None, None] - xhat * (dweight / M)[:, None, None]
    return weight[:, None, None] * s * dx, dweight, dbias

for row in check_gradients(norm_forward, norm_backward, (x, weight, bias)):
    print(f"{row.argument:30} relative error {row.relative:.0e}")
dy = rng.standard_normal(x.shape)
y, cache, _ = batch_norm_forward(x, weight, bias, np.zeros(3), np.ones(3))
for name, ours, theirs in zip(("dx", "dweight", "dbias"), norm_backward(dy, norm_forward(x, weight, bias)[1]),
                              batch_norm_backward(dy, cache)):
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    print(f"{name:8} largest difference to nprcnn {np.abs(ours - theirs).max():.0e}")

# %% [markdown]
# What does normalising buy? Make the weights of a layer ten times as large. Without batch norm its output grows
# ten times. With batch norm nothing happens to the output, and the gradient that reaches the weights shrinks by
# ten: large weights move slowly, by themselves.

# %%
w = rng.standard_normal((4, 3, 3, 3))
small = images[:4, :, ::8, ::8]                           # (4, 3, 16, 16)
dy = rng.standard_normal((4, 4, 16, 16))
for scale in (1, 10):
    z, conv_cache = conv2d_forward(small, scale * w, None, 1, 1)
    y, norm_cache = norm_forward(z, np.ones(4), np.zeros(4), eps=0)
    _, dw, _ = conv2d_backward(norm_backward(dy, norm_cache)[0], conv_cache)
    print(f"weights x {scale:2}: before batch norm std {z.std():5.2f}, after it {y.std():.2f}, "
          f"gradient at the weights {np.linalg.norm(dw):.3f}")

# %% [markdown]
# ## 4  Training, prediction, and frozen
#
# In training the statistics come from the batch. In prediction there may be only one image, and its result must
# not depend on what else is in the batch. So training also keeps **running statistics**, averages over the batches
# seen so far,
#
# $$\mu_{run} \leftarrow 0.9\,\mu_{run} + 0.1\,\mu, \qquad
# \sigma^2_{run} \leftarrow 0.9\,\sigma^2_{run} + 0.1\,\frac{M}{M-1}\,\sigma^2 ,$$
#
# and prediction uses these. The factor $M / (M - 1)$ is there because the variance *around the batch's own mean*
# is too small on average. We watch both for numbers of mean 3 and variance 4, with batches of only $M = 4$:

# %%
mean, var, history, biased = np.zeros(1), np.ones(1), [], []
for step in range(10_000):
    batch = 3 + 2 * rng.standard_normal((4, 1))           # rows instead of an image: (N, C)
    _, _, (mean, var) = batch_norm_forward(batch, np.ones(1), np.zeros(1), mean, var)
    history.append((mean[0], var[0]))
    biased.append(batch.var())
history = np.array(history)                               # (10000, 2)
figure, ax = plt.subplots(figsize=(7, 2.5))
for k, (name, true) in enumerate((("running mean", 3), ("running variance", 4))):
    ax.plot(history[:300, k], label=name, linewidth=1)
    ax.axhline(true, color="black", linewidth=0.8, linestyle=":", label="true value" if k else None)
ax.set(xlabel="training step", ylabel="value", ylim=(0, 8))
ax.legend(ncols=3)
averages = history[50:].mean(axis=0)
print(f"average from step 50: mean {averages[0]:.2f} (true 3), variance {averages[1]:.2f} (true 4)")
print(f"average of the batches' own variances: {np.mean(biased):.2f}, times 4/3: {np.mean(biased) * 4 / 3:.2f}")

# %% [markdown]
# In training an image's result depends on its neighbours in the batch. How much? We normalise scene 0 together
# with 1, 3, 7 or 15 other scenes, and look at how its numbers move when the *others* change.

# %%
def image_0_with(others):
    y, _, _ = batch_norm_forward(np.concatenate([z0, zs[others]]), np.ones(4), np.zeros(4), np.zeros(4), np.ones(4))
    return y[0]

w = rng.standard_normal((4, 3, 7, 7)) * np.sqrt(2 / (3 * 49))
zs = conv2d(images, w, None, 2, 3)
z0, zs = zs[:1], zs[1:]                                   # (1, 4, 64, 64) and (39, 4, 64, 64)
print("images in the batch   how far a number of image 0 moves with its neighbours (standard deviation)")
for count in (1, 3, 7, 15):
    results = np.stack([image_0_with(rng.permutation(39)[:count]) for _ in range(40)])
    print(f"{count + 1:19}   {results.std(axis=0).mean():.2f}")

# %% [markdown]
# The numbers have standard deviation 1, so this is noise of a good part of the signal, and it shrinks with the
# batch. Detectors train on large images, one or two for each GPU: too few. Therefore Mask R-CNN starts from a
# backbone trained on ImageNet (a million photographs, each with one of 1000 labels) and **freezes** its batch norm:
# running statistics, `weight` and `bias` all become constants. What is left is one scale and one shift a channel,
#
# $$y = x \cdot a + b, \qquad a = \gamma / \sqrt{\sigma^2_{run} + \varepsilon}, \qquad b = \beta - \mu_{run}\,a,
# \qquad dx = dy \cdot a .$$
#
# A model that starts from random numbers, like this course's small one, cannot do that: its running statistics
# are not yet good for anything. It trains its batch norm.

# %%
mean, var = rng.standard_normal(3), rng.random(3) + 0.5
x, weight, bias = rng.standard_normal((2, 3, 5, 7)), rng.standard_normal(3), rng.standard_normal(3)
frozen, _ = frozen_batch_norm_forward(x, weight, bias, mean, var)
predicting, cache, _ = batch_norm_forward(x, weight, bias, mean, var, train=False)
a = weight / np.sqrt(var + 1e-5)
ours = x * a[:, None, None] + (bias - mean * a)[:, None, None]
print(f"frozen, and by hand: {np.abs(frozen - ours).max():.0e};  frozen, and batch norm predicting: "
      f"{np.abs(frozen - predicting).max():.0e}")
dy = rng.standard_normal(x.shape)
print("backward is dy * a:", np.allclose(batch_norm_backward(dy, cache)[0], dy * a[:, None, None]))
assert np.allclose(frozen, ours) and np.allclose(frozen, predicting)

# %% [markdown]
# A scale and a shift after a convolution can even be moved *into* the convolution's weights. That is exercise 1.
#
# ## 5  Pooling
#
# **Max-pooling** keeps the largest number of each window. ResNet has one, 3x3 with stride 2 and padding 1, after
# its first convolution. The padding must never win, so it is $-\infty$ and not 0: with zeros, a border of negative
# numbers would turn into zeros.

# %%
def max_pool_naive(x, k, stride, padding):
    """x (N, C, H, W) -> y (N, C, OH, OW), and the place (row, column) in x that each y came from."""
    N, C, H, W = x.shape
    OH, OW = (H + 2 * padding - k) // stride + 1, (W + 2 * padding - k) // stride + 1
    y, place = np.full((N, C, OH, OW), -np.inf), np.zeros((N, C, OH, OW, 2), int)
    for n, c, h, v in np.ndindex(N, C, OH, OW):
        for row in range(h * stride - padding, h * stride - padding + k):
            for column in range(v * stride - padding, v * stride - padding + k):
                if 0 <= row < H and 0 <= column < W and x[n, c, row, column] > y[n, c, h, v]:
                    y[n, c, h, v], place[n, c, h, v] = x[n, c, row, column], (row, column)
    return y, (x.shape, place)

def max_pool_backward(dy, cache):
    shape, place = cache
    dx = np.zeros(shape)
    for n, c, h, v in np.ndindex(dy.shape):
        row, column = place[n, c, h, v]
        # forward: y = x[row, column]: a gather. Windows overlap, so one pixel may win twice: +=
        dx[n, c, row, column] += dy[n, c, h, v]
    return dx

distinct = 0.1 * rng.permutation(2 * 3 * 7 * 6).reshape(2, 3, 7, 6) - 10       # all different, many negative
y, cache = max_pool_naive(distinct, 3, 2, 1)
library, index = max_pool2d(distinct, 3, 2, 1)            # index: row * W + column
assert np.array_equal(y, library) and np.array_equal(cache[1] @ (6, 1), index)
(row,) = check_gradients(max_pool_naive, max_pool_backward, (distinct, 3, 2, 1))
print(f"{distinct.shape} -> {y.shape}, equal to nprcnn's; gradient check: relative error {row.relative:.0e}")

# %%
plane, ones = distinct[:1, :1], np.ones((1, 1, 4, 3))
plane = plane - np.sort(plane.ravel())[-5]                # four numbers above 0
y, cache = max_pool_naive(plane, 3, 2, 1)
with_zeros = np.pad(plane[0, 0], 1)                       # the mistake: zeros around
wrong = np.array([[with_zeros[2 * h:2 * h + 3, 2 * v:2 * v + 3].max() for v in range(3)] for h in range(4)])
figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.9), width_ratios=[6, 3, 3, 6])
course.show_matrix(axes[0], plane[0, 0], "x  (7, 6)", "column", "row", "{:.1f}")
course.show_matrix(axes[1], y[0, 0], "y  (4, 3)", "column", "", "{:.1f}", limit=2)
course.show_matrix(axes[2], wrong, "y, zeros as padding", "column", "", "{:.1f}", limit=2)
wins = max_pool_backward(ones, cache)
course.show_matrix(axes[3], wins[0, 0], "dx for dy = 1: windows won", "column", "", "{:.0f}")
inside = conv2d_grad_x(ones, np.ones((1, 1, 3, 3)), (1, 1, 7, 6), 2, 1)       # a 1 from every window to all in it
print(f"a pixel lies in {inside.min():.0f} to {inside.max():.0f} windows, and wins {wins.min():.0f} to "
      f"{wins.max():.0f}; {(wins == 0).mean():.0%} of the pixels win none")
print(f"with zeros as padding {(wrong != y).sum()} of {y.size} outputs would be wrong")

# %% [markdown]
# Windows overlap, so a pixel can win more than one. Most pixels win none, and get no gradient at all.
#
# **Global average pooling** is the mean of each plane. A ResNet that classifies has one at its end, to get from
# (N, 2048, 7, 7) to (N, 2048). A detector has not: it wants to know where. Each pixel has the same share of the
# mean, so each gets `dy / (H W)`.

# %%
x = rng.standard_normal((2, 3, 5, 4))
(row,) = check_gradients(global_avg_pool_forward, global_avg_pool_backward, (x,))
print(f"global average {x.shape} -> {global_avg_pool_forward(x)[0].shape}: relative error {row.relative:.0e}")

# %% [markdown]
# ## 6  The short cut
#
# With ReLU, good first weights and batch norm, can we stack as many layers as we like? He et al. (*Deep residual
# learning*, arXiv 1512.03385, figure 1) found: no. A plain network of 56 layers has a larger error than one of 20,
# and on the *training* data too, so it is not that it learned the data by heart. It just does not get there.
#
# Their remedy is to let two layers compute not the new signal, but what is to be *added* to the old one:
#
# $$y = \mathrm{relu}(F(x) + x) . \tag{6}$$
#
# (Equation 1 of the paper, and the ReLU after the sum.) To do nothing is now easy: $F = 0$. And backward: the sum
# gives the same gradient to both (rule 2), $x$ is used twice (rule 1), so with $ds$ the gradient at the sum
#
# $$dx = ds + J_F^\top\, ds . \tag{7}$$
#
# The first term passes $F$ by. We see (6) and (7) at work in a network small enough to train here: the layers are
# linear, the block is the real one.

# %%
def block_forward(x, parameters, shortcut=True):
    """x (R, C) -> relu(F(x) + x), F = linear, norm, relu, linear, norm."""
    w1, g1, b1, w2, g2, b2 = parameters
    zero, one = np.zeros_like(b1), np.ones_like(b1)       # running statistics, not used here
    h, cache1 = linear_forward(x, w1)
    h, cache2, _ = batch_norm_forward(h, g1, b1, zero, one)
    h, cache3 = relu_forward(h)
    h, cache4 = linear_forward(h, w2)
    h, cache5, _ = batch_norm_forward(h, g2, b2, zero, one)
    y, cache6 = relu_forward(h + x if shortcut else h)
    return y, (cache1, cache2, cache3, cache4, cache5, cache6, shortcut)

def block_backward(dy, cache):
    cache1, cache2, cache3, cache4, cache5, cache6, shortcut = cache
    ds = relu_backward(dy, cache6)
    dh, dg2, db2 = batch_norm_backward(ds, cache5)
    dh, dw2, _ = linear_backward(dh, cache4)
    dh = relu_backward(dh, cache3)
    dh, dg1, db1 = batch_norm_backward(dh, cache2)
    dx, dw1, _ = linear_backward(dh, cache1)
    # forward: s = F(x) + x      equation (7)
    return (dx + ds if shortcut else dx), dw1, dg1, db1, dw2, dg2, db2

def block_parameters(width, rng):
    """w1, g1, b1, w2, g2, b2 as they are before training."""
    def weights():
        return rng.standard_normal((width, width)) * np.sqrt(2 / width)
    return [weights(), np.ones(width), np.zeros(width), weights(), np.ones(width), np.zeros(width)]

parameters = block_parameters(4, rng)
rows = check_gradients(lambda x, *p: block_forward(x, p), block_backward, (rng.standard_normal((6, 4)), *parameters))
print("relative errors:", "  ".join(f"{name} {row.relative:.0e}" for name, row in
                                    zip(("dx", "dw1", "dg1", "db1", "dw2", "dg2", "db2"), rows)))

# %% [markdown]
# The task: three spirals in the plane, and which of them is a point on? We train four networks, of 6 and of 40
# layers, with and without the short cut. Everything else is the same: the first weights, the points, the steps.

# %%
def spirals(rng, count):
    """Points (count, 2) on three spirals, and which one each is on."""
    arm, t = rng.integers(0, 3, count), rng.uniform(0.15, 1, count)
    angle = 2 * np.pi * arm / 3 + 5 * t + 0.1 * rng.standard_normal(count)
    return np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1), arm

from nprcnn.ops.losses import softmax_cross_entropy_backward, softmax_cross_entropy_forward

def train(layers, shortcut, steps=250, width=16, rate=0.03):
    """Returns the loss of every step and, at the first step, the gradient's size at the input of each block."""
    rng, points = np.random.default_rng(0), np.random.default_rng(5)
    blocks = [block_parameters(width, rng) for _ in range(layers // 2)]
    ends = [rng.standard_normal((width, 2)), np.zeros(width),
            rng.standard_normal((3, width)) / np.sqrt(width), np.zeros(3)]
    everything = ends + sum(blocks, [])
    velocity, losses = [0.0] * len(everything), []
    for step in range(steps):
        x, labels = spirals(points, 96)
        h, first_cache = linear_forward(x, *ends[:2])
        caches = []
        for block in blocks:
            h, cache = block_forward(h, block, shortcut)
            caches.append(cache)
        logits, last_cache = linear_forward(h, *ends[2:])
        loss, loss_cache = softmax_cross_entropy_forward(logits, labels)
        losses.append(float(loss))

        dh, dw, db = linear_backward(softmax_cross_entropy_backward(1.0, loss_cache), last_cache)
        block_gradients, size = [], []
        for cache in reversed(caches):
            dh, *gradients = block_backward(dh, cache)
            block_gradients = gradients + block_gradients
            size.insert(0, np.linalg.norm(dh))
        if step == 0:
            sizes = size
        _, first_dw, first_db = linear_backward(dh, first_cache)
        for k, g in enumerate([first_dw, first_db, dw, db] + block_gradients):
            velocity[k] = 0.9 * velocity[k] + g           # momentum: earlier gradients count as well
            everything[k] -= rate * velocity[k]           # in place: ends and blocks see it
    return losses, sizes

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.7), width_ratios=[1, 1.4, 1.4])
x, labels = spirals(np.random.default_rng(5), 300)
axes[0].scatter(*x.T, c=np.array([course.FORWARD, course.BACKWARD, course.GREEN])[labels], s=5)
axes[0].set(title="the points, and their classes", xticks=[-1, 0, 1], yticks=[-1, 0, 1], aspect="equal", xlabel="x[:, 0]",
            ylabel="x[:, 1]")
ends = {}
for layers, style in ((6, "--"), (40, "-")):
    for shortcut, ax in ((False, axes[1]), (True, axes[2])):
        losses, sizes = train(layers, shortcut)
        smooth = np.convolve(losses, np.ones(10) / 10, "valid")
        ax.plot(np.arange(10, 251), smooth, style, label=f"{layers} layers",
                color=course.BACKWARD if layers == 40 else course.FORWARD)
        ends[layers, shortcut] = np.mean(losses[-30:]), sizes
for ax, title in zip(axes[1:], ("plain", "with short cuts")):
    ax.set(title=title, xlabel="training step", ylabel="training loss" if title == "plain" else "", ylim=(0, 1.3))
    ax.legend()
for (layers, shortcut), (loss, sizes) in ends.items():
    print(f"{layers:2} layers, {'with short cuts' if shortcut else 'plain':15}  last losses {loss:.3f}   "
          f"gradient at step 0: at the first block / at the last {sizes[0] / sizes[-1]:9.1f}")

# %% [markdown]
# The paper's figure 1 in small. Plain, the deeper network is the worse one, although it could do all that the
# shallow one does. With short cuts, depth does no harm. The last column has one of the reasons: without the short
# cut the gradient is a product of forty layers' Jacobians and its size runs away; with it, the gradient of every
# block is the one behind it, plus a correction.
#
# ## 7  Two kinds of blocks
#
# The real blocks have convolutions. ResNet-18 and -34 use the **basic** block, the deeper ones the **bottleneck**
# (the paper's figure 5): a 1x1 makes fewer channels, the 3x3 works on these, a 1x1 makes more again. Where a
# block changes the shape, $x$ cannot be added as it is, and the short cut has a 1x1 convolution of its own
# (`downsample`).

# %%
def draw_block(axes, title, steps, channels):
    """steps: texts from top to bottom; channels: what flows between them."""
    last = 1 - len(steps)
    for k, text in enumerate(steps):
        axes.text(0, -k, text, ha="center", va="center", fontsize=9,
                  bbox=dict(boxstyle="round,pad=0.35", facecolor="#eeeeee", edgecolor="#808080"))
    arrow = dict(arrowstyle="-|>", shrinkA=0, shrinkB=0)
    for k, text in enumerate(channels):
        axes.annotate("", (0, -k + 0.24), (0, -k + 0.78), arrowprops=dict(color=course.FORWARD, **arrow))
        axes.text(-0.07, -k + 0.52, text, fontsize=8, va="center", ha="right", color=course.FORWARD)
    axes.plot([0, 1, 1], [0.6, 0.6, last], color=course.BACKWARD, linewidth=1.3)
    axes.annotate("", (0.3, last), (1, last), arrowprops=dict(color=course.BACKWARD, **arrow))
    axes.text(1.06, last / 2 + 0.3, "short cut", color=course.BACKWARD, fontsize=9, va="center")
    axes.text(0, 0.95, title, ha="center", fontsize=10)
    axes.set(xlim=(-1, 1.8), ylim=(-4.0, 1.1))
    axes.axis("off")

figure, axes = plt.subplots(1, 2, figsize=(7, 3.8))
draw_block(axes[0], "basic block", ["3x3, norm, relu", "3x3, norm", "+  relu"], ["64", "64", "64", "64"])
draw_block(axes[1], "bottleneck", ["1x1, norm, relu", "3x3, norm, relu", "1x1, norm", "+  relu"],
           ["256", "64", "64", "256", "256"])

# %% [markdown]
# The numbers at the arrows are channels; orange is the short cut. Why the bottleneck? Count: a 3x3 on 256 channels
# against the same on 64 with two 1x1 around it.

# %%
def cost(layers, places):
    """layers of (C, O, K): weights, and multiplications at so many output places."""
    weights = sum(c * o * k * k for c, o, k in layers)
    return weights, weights * places

places = 56 * 56
for name, layers in (("basic, 256 channels", [(256, 256, 3)] * 2),
                     ("bottleneck, 256 channels", [(256, 64, 1), (64, 64, 3), (64, 256, 1)]),
                     ("basic, 64 channels", [(64, 64, 3)] * 2)):
    weights, products = cost(layers, places)
    print(f"{name:25} {weights:9,} weights   {products / 1e6:6,.0f} million multiplications on a map of 56 x 56")

# %% [markdown]
# A bottleneck on 256 channels costs no more than a basic block on 64. Here is one, forward and backward, from the
# pairs we have. `stride` goes into the 3x3: the paper has it in the first 1x1, torchvision and nprcnn in the 3x3
# ("version 1.5"), so that no pixel is skipped without having been looked at.

# %%
def conv_norm_forward(x, w, weight, bias, stride=1):
    z, conv_cache = conv2d_forward(x, w, None, stride, w.shape[2] // 2)
    y, norm_cache, _ = batch_norm_forward(z, weight, bias, np.zeros_like(bias), np.ones_like(bias))
    return y, (conv_cache, norm_cache)

def conv_norm_backward(dy, cache):
    conv_cache, norm_cache = cache
    dz, dweight, dbias = batch_norm_backward(dy, norm_cache)
    dx, dw, _ = conv2d_backward(dz, conv_cache)
    return dx, [dw, dweight, dbias]

def bottleneck_forward(x, stride, *p):
    """x (N, C, H, W); p: (w, weight, bias) of conv 1, 2, 3 and, if there are twelve, of the short cut."""
    z1, cache1 = conv_norm_forward(x, *p[0:3])
    h1, gate1 = relu_forward(z1)
    z2, cache2 = conv_norm_forward(h1, *p[3:6], stride)
    h2, gate2 = relu_forward(z2)
    z3, cache3 = conv_norm_forward(h2, *p[6:9])
    shortcut, down = conv_norm_forward(x, *p[9:12], stride) if len(p) > 9 else (x, None)
    y, gate3 = relu_forward(z3 + shortcut)
    return y, (cache1, gate1, cache2, gate2, cache3, gate3, down)

def bottleneck_backward(dy, cache):
    cache1, gate1, cache2, gate2, cache3, gate3, down = cache
    ds = relu_backward(dy, gate3)                         # at the sum; the same for both sides
    dh2, g3 = conv_norm_backward(ds, cache3)
    dh1, g2 = conv_norm_backward(relu_backward(dh2, gate2), cache2)
    dx, g1 = conv_norm_backward(relu_backward(dh1, gate1), cache1)
    dshortcut, g4 = conv_norm_backward(ds, down) if down else (ds, [])
    return (dx + dshortcut, *g1, *g2, *g3, *g4)           # x is used twice

# %%
from nprcnn.models.resnet import Bottleneck, ResNet

narrow = ResNet(rng, Bottleneck, (1, 1, 1, 1), width=2, norm="batch").astype(np.float64)
block = narrow.layer2[0]                                  # 8 channels in, width 4, 16 channels out, stride 2
p = [rng.standard_normal(t.data.shape) for t in block.parameters()]        # conv1, bn1, conv2, bn2, conv3, ...
for tensor, value in zip(block.parameters(), p):
    tensor.data = value
x = rng.standard_normal((2, 8, 7, 5))
y, cache = bottleneck_forward(x, 2, *p)
dy = rng.standard_normal(y.shape)
gradients = bottleneck_backward(dy, cache)

theirs, their_cache = block.forward(x, train=True)
dx = block.backward(dy, their_cache)
np.testing.assert_allclose(y, theirs, atol=1e-10)
for ours, library in zip(gradients, [dx] + [t.grad for t in block.parameters()]):
    np.testing.assert_allclose(ours, library, atol=1e-10)
print(f"{x.shape} -> {y.shape}; y, dx and the gradients of {len(p)} parameters are equal to the library's")
rows = check_gradients(bottleneck_forward, bottleneck_backward, (x, 2, *p))
print(f"gradient check of all {len(rows)}: largest relative error {max(row.relative for row in rows):.0e}")

# %% [markdown]
# ## 8  A ResNet
#
# A ResNet is a list of blocks. The **stem** (7x7 / 2, batch norm, ReLU, max-pool / 2) makes a map of a quarter of
# the image's sides. Then come four stages. The first block of stages 2, 3 and 4 has stride 2. The stages' outputs
# are called C2 to C5, after the power of two that a pixel stands for: C2 is 1/4, C5 is 1/32.
#
# | | ResNet-18 | 34 | 50 | 101 | 152 |
# |---|---|---|---|---|---|
# | block | basic | basic | bottleneck | bottleneck | bottleneck |
# | blocks in the stages | 2 2 2 2 | 3 4 6 3 | 3 4 6 3 | 3 4 23 3 | 3 8 36 3 |
# | channels of C2 to C5 | 64 128 256 512 | the same | 256 512 1024 2048 | the same | the same |
#
# (The paper's table 1.) The name counts the layers with weights: the stem, the convolutions in the blocks, and a
# linear layer at the end that a detector leaves out. In the next cell is all of ResNet-50's forward pass, for
# prediction. `state` is a dict of its arrays, with the names that torchvision gave them.

# %%
def resnet_forward(x, state, blocks=(3, 4, 6, 3)):
    """x (N, 3, H, W) -> [C2, C3, C4, C5]."""
    def conv_norm(x, conv, norm, stride=1):
        w = state[f"{conv}.weight"]
        z = conv2d(x, w, None, stride, w.shape[2] // 2)
        names = "weight", "bias", "running_mean", "running_var"
        return frozen_batch_norm_forward(z, *(state[f"{norm}.{name}"] for name in names))[0]

    x = np.maximum(conv_norm(x, "conv1", "bn1", 2), 0)
    x, _ = max_pool2d(x, 3, 2, 1)
    features = []
    for stage, count in enumerate(blocks, 1):
        for k in range(count):
            name, stride = f"layer{stage}.{k}", 2 if stage > 1 and k == 0 else 1
            h = np.maximum(conv_norm(x, f"{name}.conv1", f"{name}.bn1"), 0)
            h = np.maximum(conv_norm(h, f"{name}.conv2", f"{name}.bn2", stride), 0)
            h = conv_norm(h, f"{name}.conv3", f"{name}.bn3")
            if k == 0:                                    # the shape changes: the short cut has weights
                x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = np.maximum(h + x, 0)
        features.append(x)
    return features

# %%
from nprcnn.models.resnet import resnet

network = resnet(rng, 50)
for name, tensor in network.named_tensors():              # numbers as after some training, so that no norm is idle
    if "running_var" in name:
        tensor.data = rng.uniform(0.5, 2, tensor.data.shape).astype(np.float32)
    elif "running_mean" in name or ("bn" in name and "bias" in name):
        tensor.data = 0.1 * rng.standard_normal(tensor.data.shape, np.float32)
    elif "bn3.weight" in name:
        tensor.data = np.full_like(tensor.data, 0.3)
image = rng.standard_normal((1, 3, 96, 64), np.float32)
ours = resnet_forward(image, network.state_dict())
theirs, _ = network.forward(image, train=False)
layers = 1 + sum(name.endswith("weight") and "conv" in name for name in network.state_dict() if "layer" in name) + 1
print(f"layers with weights, the linear one at the end included: {layers}")
for level, (a, b) in enumerate(zip(ours, theirs), 2):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
    print(f"C{level} {str(a.shape):18} largest difference to the library {np.abs(a - b).max() / np.abs(b).max():.0e} "
          "of the largest value")

# %% [markdown]
# That is the network that Mask R-CNN calls its backbone body. Everything else in `nprcnn/models/resnet.py` is the
# backward pass, which walks the same list from its end to its beginning. The shapes that come out, for three sizes of
# image:

# %%
cells = [(level, 2 ** level) for level in range(2, 6)]
print("image            " + "".join(f"C{level} (1/{cell})".ljust(19) for level, cell in cells))
for height, width in ((224, 224), (800, 1216), (128, 128)):
    sizes = [f"{channels} x {height // cell} x {width // cell}" for (_, cell), channels in
             zip(cells, network.out_channels)]
    print(f"{height:4} x {width:4}      " + "".join(size.ljust(19) for size in sizes))
    assert height % 32 == 0 and width % 32 == 0           # else the stages round up

# %% [markdown]
# ## 9  VGG-16 beside it
#
# Fast and Faster R-CNN had **VGG-16** (Simonyan and Zisserman, arXiv 1409.1556, table 1, column D): thirteen 3x3
# convolutions with ReLU, a 2x2 max-pool between the stages, no norm, no short cut. What is the difference in
# numbers? We take nprcnn's models and walk through their convolutions.

# %%
from nprcnn.models.vgg import VGG

def walk_resnet(net, height, width):
    """Yield (stage, convolution, its output's height and width)."""
    def half(size):
        return (size + 1) // 2

    h, w = half(height), half(width)
    yield "stem", net.conv1, h, w
    h, w = half(h), half(w)                               # the max-pool
    for stage in range(1, 5):
        for block in getattr(net, f"layer{stage}"):
            before = h, w
            if block.downsample is not None and stage > 1:
                h, w = half(h), half(w)
            convolutions = [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
            if block.downsample is not None:
                convolutions.append(block.downsample[0])
            for conv in convolutions:                     # a 1x1 before the stride still works on the large map
                small = conv.stride == 2 or conv is not block.conv1
                yield f"C{stage + 1}", conv, *((h, w) if small else before)

def walk_vgg(net, height, width):
    for k, stage in enumerate(net.stages):
        for conv, _ in stage:
            yield f"conv{k + 1}", conv, height >> k, width >> k

def count(walk):
    """{stage: [parameters, multiplications, shape of its map]}; a convolution's bias counts as a parameter."""
    table = {}
    for stage, conv, h, w in walk:
        row = table.setdefault(stage, [0, 0, None])
        row[0] += sum(p.data.size for p in conv.parameters())
        row[1] += conv.weight.data.size * h * w
        row[2] = len(conv.weight.data), h, w
    return table

def totals(table):
    """Parameters and multiplications, in all."""
    return [sum(row[k] for row in table.values()) for k in (0, 1)]

networks = {"VGG-16": (walk_vgg, VGG(rng), [(512 * 49, 4096), (4096, 4096), (4096, 1000)])}
for depth in (18, 50, 101):
    net = resnet(rng, depth)
    networks[f"ResNet-{depth}"] = walk_resnet, net, [(net.out_channels[-1], 1000)]
tables = {}
for name, (walk, net, linear) in networks.items():
    tables[name] = count(walk(net, 224, 224))
    tables[name]["classifier"] = [sum(i * o + o for i, o in linear), sum(i * o for i, o in linear), None]
    parameters, products = totals(tables[name])
    print(f"{name:11} {parameters / 1e6:6.1f} million parameters (norms not counted), "
          f"{products / 1e9:5.2f} billion multiplications for 224 x 224")
paper = totals(count(walk_resnet(resnet(rng, 50, stride_in_1x1=True), 224, 224)))[1]
print(f"ResNet-50 with the stride in the 1x1, as in the paper: {paper / 1e9:.2f} billion")

# %% [markdown]
# The papers say: VGG-16 138 million parameters (table 2 there); ResNet-18 1.8, -50 3.8, -101 7.6 billion
# multiplications (table 1 there). Ours are a little higher where there are bottlenecks, and the last line says why:
# version 1.5.
#
# Now the shapes. In the next figure a box is a stage's output. Its height grows with the side of the map, its
# width with the number of channels (both on a logarithmic scale).

# %%
def draw_shapes(axes, name, table):
    left = 0
    for k, (stage, (_, _, shape)) in enumerate((s, r) for s, r in table.items() if r[2]):
        channels, side, _ = shape
        wide, high = 0.22 * np.log2(channels), 0.25 * np.log2(side)
        axes.add_patch(plt.Rectangle((left, -high / 2), wide, high, facecolor=course.FORWARD, alpha=0.25 + 0.12 * k,
                                     edgecolor="black"))
        axes.text(left + wide / 2, high / 2 + 0.08, stage, ha="center", fontsize=9)
        axes.text(left + wide / 2, -1.2, f"{channels}\n{side} x {side}", ha="center", va="top", fontsize=9)
        left += wide + 0.45
    axes.text(-0.3, -1.2, "channels\nmap", ha="right", va="top", fontsize=9)
    axes.text(-0.3, 0, name, ha="right", va="center", fontsize=11)
    axes.set(xlim=(-1.7, 12), ylim=(-1.9, 1.4), aspect="equal")
    axes.axis("off")

figure, axes = plt.subplots(2, 1, figsize=(9, 4))
for ax, name in zip(axes, ("VGG-16", "ResNet-50")):
    draw_shapes(ax, name, tables[name])

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), sharey=True)
for name, (walk, net, _) in networks.items():
    detector = count(walk(net, 800, 1216))                # what a detector needs: no classifier
    for ax, (table, k, unit) in zip(axes, ((tables[name], 0, 1e6), (tables[name], 1, 1e9), (detector, 1, 1e9))):
        left = 0
        for stage, row in table.items():
            part = list(table).index(stage)
            colour = "#bbbbbb" if stage == "classifier" else plt.get_cmap("Blues")(0.25 + 0.15 * part)
            ax.barh(name, row[k] / unit, left=left, color=colour, edgecolor="white", linewidth=0.5)
            left += row[k] / unit
        ax.text(left, name, f" {left:.3g}", va="center", fontsize=9)
        ax.set_xlim(0, max(ax.get_xlim()[1], 1.2 * left))
axes[0].set(title="parameters", xlabel="million", ylim=(3.6, -0.6))
axes[1].set(title="224 x 224", xlabel="billion multiplications")
axes[2].set(title="800 x 1216, no classifier", xlabel="billion multiplications")
handles = [plt.Rectangle((0, 0), 1, 1, color=plt.get_cmap("Blues")(0.25 + 0.15 * k)) for k in range(5)]
handles.append(plt.Rectangle((0, 0), 1, 1, color="#bbbbbb"))
figure.legend(handles, ["stem / conv1", "C2 / conv2", "C3 / conv3", "C4 / conv4", "C5 / conv5", "classifier"],
              loc="outside lower center", ncols=6, fontsize=9);

# %%
vgg, r50, r101 = tables["VGG-16"], tables["ResNet-50"], tables["ResNet-101"]
total = {name: totals(table) for name, table in tables.items()}
print(f"classifier: {vgg['classifier'][0] / total['VGG-16'][0]:.0%} of VGG's parameters, "
      f"{r50['classifier'][0] / total['ResNet-50'][0]:.0%} of ResNet-50's")
print(f"multiplications, VGG-16 / ResNet-50: {total['VGG-16'][1] / total['ResNet-50'][1]:.1f}")
full = sum(vgg[stage][1] for stage in ("conv1", "conv2")) / total["VGG-16"][1]
print(f"VGG's stages at full and half size: {full:.0%} of its multiplications; "
      f"ResNet-50's stem: {r50['stem'][1] / total['ResNet-50'][1]:.0%}")
print("stages in which ResNet-50 and -101 differ:", [stage for stage in r50 if r50[stage] != r101[stage]])

# %% [markdown]
# Three things to read off. Most of VGG's parameters sit in its classifier, which Fast R-CNN reused as the head of
# each RoI; global average pooling did away with it. ResNet-50 needs a quarter of VGG's multiplications: VGG spends
# a third of them at full and half size, where ResNet has its stem alone, and its 3x3 work on all channels, where a
# bottleneck's work on a quarter of them. And ResNet-101 differs from ResNet-50 in one stage only, C4.
#
# ## Exercises
#
# Solutions are in `solutions/03_solutions.ipynb`.
#
# ### Exercise 1: fold a batch norm into a convolution
#
# For prediction, $y = \mathrm{batchnorm}(\mathrm{conv}(x, w, b))$ can be had from **one** convolution with other
# weights $w'$ and another bias $b'$. Find them. `w` is (O, C, K, K), all the others (O,).
#
# <details><summary>Hint 1</summary>Write the frozen norm of section 4 as z · a + shift, with z = conv(x, w, b). Where does a go?</details>
# <details><summary>Hint 2</summary>A convolution is linear in its filters: conv(x, w) · a = conv(x, w · a), a number a for each filter.</details>
# <details><summary>Hint 3</summary>The conv's own bias b is part of z: it is shifted and scaled like everything else.</details>

# %%
def fold_batch_norm(w, b, weight, bias, mean, var, eps):
    ...                                                   # your code; return w2 (O, C, K, K) and b2 (O,)

check_fold_batch_norm(fold_batch_norm)

# %% [markdown]
# ### Exercise 2: find the bug
#
# A block that halves the map: two 3x3 convolutions, a short cut with a 1x1 of stride 2, and no batch norm, to keep
# it short. The backward is **wrong in one line**. Find it with the gradient check, and mend it in the cell after
# it.
#
# <details><summary>Hint 1</summary>Which gradients are wrong? Which lines do they share, and which do they not share with the right ones?</details>
# <details><summary>Hint 2</summary>Draw the block. Where does the last ReLU stand: in one branch, or behind the sum?</details>
# <details><summary>Hint 3</summary>dz2 is a poor name: it is the gradient at the sum. Who gets the gradient at a sum?</details>

# %%
def halving_forward(x, w1, w2, wd):
    z1, cache1 = conv2d_forward(x, w1, None, 2, 1)
    h, gate1 = relu_forward(z1)
    z2, cache2 = conv2d_forward(h, w2, None, 1, 1)
    shortcut, down = conv2d_forward(x, wd, None, 2, 0)
    y, gate2 = relu_forward(z2 + shortcut)
    return y, (cache1, gate1, cache2, gate2, down)

def buggy_backward(dy, cache):
    cache1, gate1, cache2, gate2, down = cache
    dz2 = relu_backward(dy, gate2)
    dh, dw2, _ = conv2d_backward(dz2, cache2)
    dz1 = relu_backward(dh, gate1)
    dx, dw1, _ = conv2d_backward(dz1, cache1)
    dshortcut, dwd, _ = conv2d_backward(dy, down)
    return dx + dshortcut, dw1, dw2, dwd

inputs = [rng.standard_normal(s) for s in ((2, 3, 7, 6), (4, 3, 3, 3), (4, 4, 3, 3), (4, 3, 1, 1))]
try:
    check_gradients(halving_forward, buggy_backward, inputs)
except GradientCheckError as error:
    for row in error.rows:
        print(f"{row.argument:28} relative error {row.relative:.0e}   {row.problem or 'right'}")

# %%
def halving_backward(dy, cache):
    cache1, gate1, cache2, gate2, down = cache
    ...                                                   # the mended backward; return dx, dw1, dw2, dwd

check_halving_backward(halving_backward)

# %% [markdown]
# ### Exercise 3: group norm
#
# Batch norm needs large batches. **Group norm** (Wu and He, arXiv 1803.08494, equation 7; they trained Mask R-CNN
# with it) takes its statistics inside *one* image, over groups of channels: a row of `g` below, M numbers, has one mean
# and one variance. `weight` and `bias` are still one number a channel. The forward is given, and of the backward all
# but two lines: how `dy` goes back through `y = xhat * weight + bias`, and how `dxhat` goes back through the norm.
#
# The second is equation (4) for each row: multiply it with `dxhat`, as section 3 did. But you cannot take over (5) as it
# is. There the weight stands in front of the bracket. Why can it not stand there now?
#
# <details><summary>Hint 1</summary>dxhat: section 3 wrote it as γ dy. weight[:, None, None] lines the C numbers up with (N, C, H, W).</details>
# <details><summary>Hint 2</summary>A row has several channels, and so several weights: they cannot be taken out of a sum over the row. In batch norm a sum belongs to one channel. So leave them inside, where dxhat has them already.</details>
# <details><summary>Hint 3</summary>(4) times d, for one row: s · (d − the mean of d − h · the mean of d · h). The means run over the M numbers: d.mean(axis=2, keepdims=True) has shape (N, G, 1), like s.</details>

# %%
def group_norm_forward(x, weight, bias, groups, eps=1e-5):
    N, C, H, W = x.shape
    g = x.reshape(N, groups, -1)                          # (N, G, M), M = C/G * H * W
    s = 1 / np.sqrt(g.var(axis=2, keepdims=True) + eps)   # (N, G, 1)
    xhat = ((g - g.mean(axis=2, keepdims=True)) * s).reshape(x.shape)
    return xhat * weight[:, None, None] + bias[:, None, None], (xhat, weight, s, groups)

def group_norm_backward(dy, cache):
    xhat, weight, s, groups = cache                       # (N, C, H, W), (C,), (N, G, 1), G
    N, C, H, W = dy.shape
    # forward: y = xhat * weight + bias, with a weight and a bias for all images and pixels of a channel
    dbias = dy.sum(axis=(0, 2, 3))                        # (C,)
    dweight = (dy * xhat).sum(axis=(0, 2, 3))             # (C,)
    dxhat = ...                                           # (N, C, H, W)
    # forward: xhat = (g - mean) * s, row by row; equation (4), its three paths
    d, h = dxhat.reshape(N, groups, -1), xhat.reshape(N, groups, -1)       # (N, G, M), like g
    dg = ...                                              # (N, G, M)
    return dg.reshape(dy.shape), dweight, dbias

check_group_norm_backward(group_norm_backward)

# %% [markdown]
# ## Summary
#
# - ReLU passes the gradient where its input was positive. With weights of variance $2/n$ signal and gradient keep
#   their size through many layers: equation (2).
# - Batch norm gives each channel mean 0 and variance 1, then a learned scale and shift. Its backward has three
#   paths: equation (5). Prediction uses running statistics; detectors often freeze all of it.
# - Max-pool is a gather, its backward a scatter-add, and its padding must never win.
# - A short cut passes the gradient by the block: $dx = ds + J_F^\top ds$. Plain networks get worse when they get
#   deeper, and residual ones do not.
# - ResNet-50: a stem, then 3, 4, 6 and 3 bottlenecks; C2 to C5 at 1/4 to 1/32 with 256 to 2048 channels.
# - VGG-16 has more parameters and needs more multiplications, and stops at 1/16.
#
# **Read next.** In this course: [04 The feature pyramid](04_the_feature_pyramid.ipynb), which makes one set of
# features of C2 to C5. In the code: `nprcnn/models/resnet.py`, then `nprcnn/ops/norm.py`. Elsewhere: He et al.,
# arXiv 1512.03385, sections 3 and 4.1; Ioffe and Szegedy, arXiv 1502.03167, section 3; Santurkar et al., *How does
# batch normalization help optimization?*, arXiv 1805.11604; He et al., *Identity mappings in deep residual
# networks*, arXiv 1603.05027, section 2.
