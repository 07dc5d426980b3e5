# %% [markdown]
# # 01  What a backward pass is
#
# Training changes the numbers inside a network so that the loss becomes smaller. For that it must know, for every
# number, *how much the loss moves when this number moves*. The **backward pass** finds all of these slopes in one
# sweep.
#
# In most deep learning code a library writes the backward pass. In nprcnn we write it ourselves, by hand, for
# every layer. That is less work than it sounds: one idea (the chain rule), four rules for what branches, and one
# tool that tells us when we are wrong.
#
# **You need:** NumPy and derivatives of one variable. **You will be able to:** write the backward pass of a
# function you have never seen, prove with two forward passes that it is right, and find the line that is wrong
# when it is not. About 90 minutes with the exercises.
#
# ## Where we are
#
# The next figure is a Mask R-CNN. An image goes in at the left, and five losses come out at the right. The blue
# arrows are the forward pass. The orange arrows are the backward pass: they carry gradients, through the same
# parts, the other way. This notebook is about what happens on an orange arrow. The parts themselves come in the
# notebooks after it.
#
# (The dotted arrow carries boxes. They are taken as constants, so no gradient comes back along it.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import check_gradients, course
from nprcnn.course.backward import check_residual_backward, check_pyramid_backward, check_bce_backward
from nprcnn.gradcheck import GradientCheckError, check_adjoint

course.style()
FORWARD, BACKWARD = course.FORWARD, course.BACKWARD      # blue and orange, in every figure
rng = np.random.default_rng(0)

course.where_we_are(backward=True)

# %% [markdown]
# ## 1  One number
#
# Start with a "network" of one weight $w$. It computes $u = w x$, compares $u$ with a target $t$, and its loss is
# the square of the difference:
#
# $$u = w x, \qquad e = u - t, \qquad L = e^2.$$
#
# The chain rule says: the slope of the whole is the product of the slopes of the steps,
#
# $$\frac{dL}{dw} = \frac{dL}{de}\,\frac{de}{du}\,\frac{du}{dw} = 2e \cdot 1 \cdot x.$$
#
# We compute it, and compare it with what a small step really does.

# %%
x, t, w = 1.5, 2.0, 0.4
u = w * x
e = u - t
slope = 2 * e * 1 * x                                     # from the end of the chain to its beginning

def loss_of(w):
    return (w * x - t) ** 2

h = 1e-5
print(f"chain rule                      {slope:.6f}")
print(f"(L(w + h) - L(w - h)) / (2 h)   {(loss_of(w + h) - loss_of(w - h)) / (2 * h):.6f}")

ws = np.linspace(-0.4, 2.8, 100)
figure, axes = plt.subplots(figsize=(5.2, 2.8))
axes.plot(ws, loss_of(ws), label="loss L(w)")
axes.plot(ws[:60], loss_of(w) + slope * (ws[:60] - w), "--", label=f"slope dL/dw = {slope:.2f}")
axes.plot(w, loss_of(w), "o", color="black")
axes.set(xlabel="weight w", ylabel="loss L", ylim=(-0.5, 7))
axes.legend();

# %% [markdown]
# The slope is negative: a larger $w$ makes the loss smaller, so training makes $w$ larger. That is all that
# training does with a slope. The rest of this notebook is about computing slopes when $w$ and $x$ are arrays.
#
# **Notation.** From here on, `dw` means $\partial L / \partial w$: the slope of the *final loss* with respect to
# $w$. It always has **the shape of `w`**. In the same way there are `dx`, `dy`, and so on. $L$ is one number,
# always.
#
# ## 2  The chain rule on arrays
#
# Now let a step take an array $x$ of $n$ numbers to an array $y$ of $m$ numbers. Every input can move every
# output, so there are $m \times n$ slopes. They form the **Jacobian** $J$, of shape $(m, n)$:
#
# $$J_{ij} = \frac{\partial y_i}{\partial x_j}.$$
#
# What follows after $y$ ends in the loss $L$. Suppose somebody tells us $dy_i = \partial L / \partial y_i$, shape
# $(m,)$. Moving $x_j$ moves all the $y_i$, and each of them moves $L$. To first order these effects add:
#
# $$dx_j = \sum_i \frac{\partial L}{\partial y_i}\frac{\partial y_i}{\partial x_j} = \sum_i dy_i\, J_{ij},
# \qquad\text{that is}\qquad dx = J^\top dy .$$
#
# An example: $y = \tanh(A x)$ with $x$ of shape (3,) and $A$ of shape (4, 3).

# %%
A = rng.standard_normal((4, 3))
x = rng.standard_normal(3)
dy = rng.standard_normal(4)                               # pretend that the rest of the network told us this

def f(x):
    return np.tanh(A @ x)

J = np.empty((4, 3))
for j in range(3):                                        # one column for each input:
    step = np.zeros(3)
    step[j] = 1e-5                                        # move it a little, look at all outputs
    J[:, j] = (f(x + step) - f(x - step)) / 2e-5

figure, axes = plt.subplots(1, 3, figsize=(4.8, 2.6), width_ratios=[1, 3, 3])
course.show_matrix(axes[0], dy[:, None], "dy  (4,)", "", "output i")
course.show_matrix(axes[1], J, "J  (4, 3)", "input j", "output i")
course.show_matrix(axes[2], J.T @ dy, "dx = Jᵀ dy  (3,)", "input j", " ")

# %% [markdown]
# Nobody builds $J$ in a real network. The next cell computes what it would take for *one* 3x3 convolution of the
# pyramid, on an image of 800 x 1216 pixels: a feature map of 256 channels and 200 x 304 pixels goes in, and one
# of the same size comes out.
#
# But we never need $J$. We need the product $J^\top dy$, and for each layer there is a short way to compute it.
# Here: $z = A x$, $y = \tanh z$, and $\tanh' = 1 - \tanh^2$, so
#
# $$dz_i = dy_i\,(1 - y_i^2), \qquad dx_j = \sum_i dz_i A_{ij}, \quad\text{or}\quad dx = A^\top dz .$$

# %%
y = f(x)
dz = dy * (1 - y * y)                                     # (4,)
dx = A.T @ dz                                             # (3,)
print("J.T @ dy       ", J.T @ dy)
print("the short way  ", dx)

n = 256 * 200 * 304                                       # numbers in that feature map
print(f"\nfor the convolution, in float32:   dx {4 * n / 1e6:.0f} MB,   J {4 * n ** 2 / 1e12:.0f} TB")

# %% [markdown]
# > **A backward pass** is a function that takes `dy` and returns $J^\top dy$, without building $J$.
#
# `dy` comes from the layer behind, `dx` goes to the layer in front, and so on up to the image. We go backwards
# because only the end of the chain is one number: there, at the loss, $dL = 1$ starts the sweep.
#
# ## 3  Pairs, and what to keep
#
# To compute `dx` we needed `y`, a number from the forward pass. So in nprcnn every operation is a **pair**:
#
# ```
# y, cache = f_forward(x, ...)        # the cache holds what the backward will need
# dx       = f_backward(dy, cache)
# ```
#
# A chain of pairs runs forward in order and backward in reverse order. Each backward gets the cache of its own
# forward.
#
# | step | forward | shapes | backward | shapes |
# |---|---|---|---|---|
# | 1 | `z = A @ x` | (4, 3), (3,) → (4,) | `dA = outer(dz, x)`, `dx = A.T @ dz` | (4,) → (4, 3), (3,) |
# | 2 | `y = tanh(z)` | (4,) → (4,) | `dz = dy * (1 - y * y)` | (4,) → (4,) |
#
# Is it right? `check_gradients` runs a pair and compares its backward with differences of its forward, in
# float64. It raises an error when they disagree, and returns one row for each argument when they agree. Section 6
# shows how it works; until then it is our referee. (`complaint` is for later, when we show it things that are
# wrong.)

# %%
def tanh_forward(x):
    y = np.tanh(x)
    return y, y                                           # y, and the cache

def tanh_backward(dy, cache):
    y = cache
    # forward: y = tanh(x), whose derivative is 1 - tanh(x)^2
    return dy * (1 - y * y)

def matvec_forward(A, x):
    return A @ x, (A, x)

def matvec_backward(dy, cache):
    A, x = cache
    # forward: y[i] = sum over j of A[i, j] x[j],
    # so dA[i, j] = dy[i] x[j]   and   dx[j] = sum over i of dy[i] A[i, j]
    return np.outer(dy, x), A.T @ dy

# %%
def chain_forward(A, x):
    z, cache1 = matvec_forward(A, x)
    y, cache2 = tanh_forward(z)
    return y, (cache1, cache2)

def chain_backward(dy, caches):
    cache1, cache2 = caches
    dz = tanh_backward(dy, cache2)                        # the last step first
    return matvec_backward(dz, cache1)

def referee(name, forward, backward, inputs):
    for row in check_gradients(forward, backward, inputs):
        print(f"{name:12} {row.argument:27} backward {row.analytic:+.8f}  forward {row.numeric:+.8f}  "
              f"error {row.relative:.0e}")

def complaint(forward, backward, inputs):
    """What check_gradients says about a pair that is wrong."""
    try:
        check_gradients(forward, backward, inputs)
    except GradientCheckError as error:
        return error
    raise AssertionError("it passed, which is a surprise here")

referee("chain", chain_forward, chain_backward, (A, x))

# %% [markdown]
# **Why is the cache returned, and not kept inside the layer?** Because one layer may run several times before
# anybody goes backward. The head of the region proposal network runs on five pyramid levels with the same
# weights. Here is a layer that keeps its cache on `self`, run twice:

# %%
class KeepsItsCache:
    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dy):
        return dy * (1 - self.y ** 2)

layer = KeepsItsCache()
x1, x2 = np.array([0.1, 0.2]), np.array([1.5, -2.0])
layer.forward(x1)
layer.forward(x2)                                         # overwrites what the first run kept
_, cache = tanh_forward(x1)
print("gradient of run 1, cache on self  ", layer.backward(np.ones(2)).round(3))
print("gradient of run 1, cache returned ", tanh_backward(np.ones(2), cache).round(3))

# %% [markdown]
# ## 4  Four rules for what branches
#
# A chain is easy. Networks branch: ResNet adds a short cut, the pyramid adds levels, the RPN joins five levels,
# and the second stage picks some RoIs from many. Four rules cover all of it.

# %%
def strip(axes, x, ys, label, colour="#eeeeee"):
    for y in ys:
        axes.add_patch(plt.Rectangle((x - 0.16, y - 0.16), 0.32, 0.32, facecolor=colour, edgecolor="#606060"))
    axes.text(x, max(ys) + 0.3, label, ha="center", fontsize=9)

def link(axes, a, b):
    """Forward arrow from (x, y) a to b, and the gradient's arrow back, a little below it."""
    for (x0, y0), (x1, y1), colour, dy in ((a, b, FORWARD, 0.05), (b, a, BACKWARD, -0.05)):
        axes.annotate("", (x1, y1 + dy), (x0, y0 + dy),
                      arrowprops=dict(arrowstyle="-|>", color=colour, shrinkA=10, shrinkB=10))

figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.5))
drawings = [
    ("1  fan-out → sum", [("x", 0, [1]), ("a", 1, [1.6]), ("b", 1, [0.4])],
     [(1, 1.6), (1, 0.4)], "dx = da + db"),
    ("2  add → the same to both", [("a", 0, [1.6]), ("b", 0, [0.4]), ("y", 1, [1])],
     [(1.6, 1), (0.4, 1)], "da = dy,  db = dy"),
    ("3  gather → scatter-add", [("x", 0, [0.2, 0.8, 1.4, 2]), ("y", 1, [0.5, 1.1, 1.7])],
     [(2, 1.7), (0.8, 1.1), (0.8, 0.5)], "dx[2] = dy[1] + dy[2]"),
    ("4  concatenate → split", [("a", 0, [1.6, 2]), ("b", 0, [0.2, 0.6]), ("y", 1, [0.5, 0.9, 1.3, 1.7])],
     [(2, 1.7), (1.6, 1.3), (0.6, 0.9), (0.2, 0.5)], "da = dy[:2],  db = dy[2:]"),
]
for ax, (title, strips, links, formula) in zip(axes, drawings):
    for label, place, ys in strips:
        strip(ax, place, ys, label)
    for y0, y1 in links:
        link(ax, (0, y0), (1, y1))
    ax.set(title=title, xlim=(-0.4, 1.4), ylim=(-0.45, 2.6))
    ax.text(0.5, -0.3, formula, ha="center", fontsize=9)
    ax.axis("off")

# %% [markdown]
# ### Rule 1: fan-out → sum
#
# $x$ is used twice: $a = f(x)$ and $b = g(x)$. Moving $x$ moves the loss along both paths, and small effects add:
#
# $$\frac{\partial L}{\partial x} = \frac{\partial L}{\partial a}\frac{\partial a}{\partial x}
# + \frac{\partial L}{\partial b}\frac{\partial b}{\partial x} .$$
#
# **Broadcasting is a fan-out in disguise.** In `y = x + b` with $x$ of shape (5, 3) and $b$ of shape (3,), each
# $b_o$ is used in 5 rows. So $db_o$ is a sum over those rows. The same holds for a weight that serves every image
# of a batch, or a filter that serves every pixel: *used many times forward, summed many times backward.*

# %%
def fan_out_forward(x):
    return (np.tanh(x), x ** 2), x                        # two outputs, a and b

def fan_out_backward(dy, cache):
    x, (da, db) = cache, dy
    return da * (1 - np.tanh(x) ** 2) + db * 2 * x        # both paths

referee("fan-out", fan_out_forward, fan_out_backward, (rng.standard_normal((2, 5)),))

def bias_forward(x, b):
    return x + b, None                                    # (5, 3) + (3,)

def bias_backward(dy, cache):
    return dy, dy.sum(axis=0)                             # (5, 3) and (3,)

x, b = rng.standard_normal((5, 3)), rng.standard_normal(3)
referee("broadcast", bias_forward, bias_backward, (x, b))

# %% [markdown]
# ### Rule 2: add → the same gradient to both
#
# $y = a + b$ has $\partial y / \partial a = 1$ and $\partial y / \partial b = 1$. So $da = dy$ and $db = dy$.
# Nothing to compute! Through the short cut of a ResNet the gradient passes unchanged.
#
# It has one trap: `da` and `db` are then *the same array*. If anybody changes one of them in place, the other
# changes too.

# %%
def add_forward(a, b):
    return a + b, None

def add_backward(dy, cache):
    return dy, dy

referee("add", add_forward, add_backward, (rng.standard_normal((2, 3)), rng.standard_normal((2, 3))))

dy = np.ones(3)
da, db = add_backward(dy, None)
da *= 10                                                  # branch a scales its gradient, in place ...
print("db is", db, " and should be [1. 1. 1.]")

def double_backward(dy, cache):                           # for y = 2 x
    dy *= 2
    return dy

error = complaint(lambda x: (2 * x, None), double_backward, (np.ones(3),))
print("check_gradients says:", str(error).split(", which")[0])

# %% [markdown]
# Hence a rule of the house: **never write into `dy`**, nor into any other argument. `dy = dy * 2` makes a new
# array and is safe.
#
# ### Rule 3: gather or slice → scatter-add
#
# $y = x[\text{index}]$ picks entries: $y_k = x_{\text{index}_k}$. As a matrix, $y = P x$, where row $k$ of $P$
# has a single 1, in column $\text{index}_k$. So $dx = P^\top dy$: every $dy_k$ goes back to the place that $y_k$
# came from,
#
# $$dx_i = \sum_{k\,:\ \text{index}_k = i} dy_k .$$
#
# What was never picked gets 0. What was picked twice gets **two** gradients, added. That is rule 1 again.
#
# In NumPy the natural line is wrong, and silently so. `dx[index] += dy` reads all old values first, adds, and
# then writes them back. Where an index repeats, the last one wins. `np.add.at` adds one after another. (A slice
# such as `x[::2]` is a gather in which no index repeats, so there `dx[::2] += dy` is fine.)

# %%
index = np.array([0, 2, 2, 4])
P = np.zeros((4, 5))
P[np.arange(4), index] = 1
dy = np.array([1.0, 2.0, 3.0, 4.0])
figure, axes = plt.subplots(1, 3, figsize=(5.8, 2.3), width_ratios=[1, 5, 5])
course.show_matrix(axes[0], dy[:, None], "dy  (4,)", "", "k", "{:.0f}")
course.show_matrix(axes[1], P, "P  (4, 5),  index = [0 2 2 4]", "i", "k", "{:.0f}")
course.show_matrix(axes[2], P.T @ dy, "dx = Pᵀ dy  (5,)", "i", " ", "{:.0f}")

# %%
dx = np.zeros(5)
dx[index] += dy
print("dx[index] += dy          ", dx)
dx = np.zeros(5)
np.add.at(dx, index, dy)
print("np.add.at(dx, index, dy) ", dx)

def gather_forward(x):
    return x[index], x.shape

def gather_backward(dy, shape):
    dx = np.zeros(shape)
    np.add.at(dx, index, dy)
    return dx

def slice_forward(x):
    return x[::2], x.shape

def slice_backward(dy, shape):
    dx = np.zeros(shape)
    dx[::2] += dy
    return dx

referee("gather", gather_forward, gather_backward, (rng.standard_normal((5, 3)),))
referee("slice", slice_forward, slice_backward, (rng.standard_normal((5, 3)),))

# %% [markdown]
# ### Rule 4: concatenate → split
#
# $y = [a, b]$ puts two arrays side by side. Each entry of $y$ is a copy of one entry of $a$ or $b$, so its
# gradient goes there: cut `dy` where the forward glued.

# %%
def concatenate_forward(a, b):
    return np.concatenate([a, b], axis=1), a.shape[1]     # (2, 3), (2, 4) -> (2, 7)

def concatenate_backward(dy, width):
    return dy[:, :width], dy[:, width:]                   # (2, 3), (2, 4)

a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 4))
referee("concatenate", concatenate_forward, concatenate_backward, (a, b))

# %% [markdown]
# Read the four rules once more, from right to left: the backward of copying is adding, the backward of adding is
# copying; the backward of taking apart is putting together. Where you will meet them in Mask R-CNN:
#
# | rule | forward | backward |
# |---|---|---|
# | 1 | a block's input goes to the convolutions and to the short cut; one RPN head serves five levels | sum |
# | 2 | short cut + branch; lateral + top-down in the pyramid; the five losses | the same gradient to both |
# | 3 | upsampling, max-pool winners, sampled RoIs, the mask channel of the true class | scatter-add |
# | 4 | the RPN's outputs of all levels; images of a batch | split |
#
# ## 5  A two-layer network, by hand
#
# Now a network with everything that a classifier has. Letters: R rows (examples), I inputs, H hidden units, K
# classes.
#
# | step | forward | shape | backward | shape |
# |---|---|---|---|---|
# | 1 | `z = x @ w1.T + b1` | (R, H) | `dw1 = dz.T @ x`, `db1 = dz.sum(0)` | (H, I), (H,) |
# | 2 | `h = max(z, 0)` | (R, H) | `dz = dh * (z > 0)` | (R, H) |
# | 3 | `s = h @ w2.T + b2` | (R, K) | `dh = ds @ w2`, `dw2 = ds.T @ h`, `db2 = ds.sum(0)` | (R, H), (K, H), (K,) |
# | 4 | `p = softmax(s)`, `L = mean(-log p[r, label r])` | (R, K), one number | `ds = (p - onehot) / R` | (R, K) |
#
# **Linear.** $y_{ro} = \sum_i x_{ri} w_{oi} + b_o$. For $dw_{oi}$, ask where $w_{oi}$ is used: in $y_{ro}$ for
# every row $r$, with factor $x_{ri}$. So $dw_{oi} = \sum_r dy_{ro} x_{ri}$, which is `dy.T @ x`. In the same way
# $dx_{ri} = \sum_o dy_{ro} w_{oi}$.
#
# **Softmax and cross-entropy.** With $p_k = e^{s_k} / \sum_j e^{s_j}$ one row's loss is
# $-\log p_c = -s_c + \log \sum_j e^{s_j}$ for the true class $c$. Its slope is
#
# $$\frac{\partial(-\log p_c)}{\partial s_k} = -[k = c] + \frac{e^{s_k}}{\sum_j e^{s_j}} = p_k - [k = c] .$$
#
# The probability we gave, minus the one we should have given. The mean over rows adds the $1/R$.

# %%
def net_forward(x, w1, b1, w2, b2, labels):
    z = x @ w1.T + b1                                     # (R, H)
    h = np.maximum(z, 0)                                  # (R, H)
    s = h @ w2.T + b2                                     # (R, K)
    exp = np.exp(s)
    p = exp / exp.sum(axis=1, keepdims=True)              # (R, K), rows sum to 1
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).mean()
    return loss, (x, w1, z, h, w2, p, labels)

def net_backward(dloss, cache):
    x, w1, z, h, w2, p, labels = cache
    rows = np.arange(len(labels))
    # forward: loss = mean(-log p[r, label r]), so ds = (p - onehot) / R
    ds = p.copy()
    ds[rows, labels] -= 1
    ds *= dloss / len(labels)
    # forward: s = h w2' + b2
    dh, dw2, db2 = ds @ w2, ds.T @ h, ds.sum(axis=0)
    # forward: h = max(z, 0)
    dz = dh * (z > 0)
    # forward: z = x w1' + b1
    dx, dw1, db1 = dz @ w1, dz.T @ x, dz.sum(axis=0)
    return dx, dw1, db1, dw2, db2

R, I, H, K = 6, 4, 5, 3
arguments = [rng.standard_normal(shape) for shape in ((R, I), (H, I), H, (K, H), K)]
labels = rng.integers(0, K, R)
referee("network", net_forward, net_backward, (*arguments, labels))

# %% [markdown]
# Five gradients, all right to ten digits or so. Now let us use them. A toy with three classes that no straight
# line can separate (the spiral of the CS231n notes, "Putting it together: minimal neural network case study"),
# and plain gradient descent:

# %%
turn, arm = np.linspace(0, 4, 100), np.arange(3)
angle = (turn[None] + arm[:, None] * 2 * np.pi / 3 + 0.15 * rng.standard_normal((3, 100))).ravel()
radius = np.tile(np.linspace(0.05, 1, 100), 3)
points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)       # (300, 2)
classes = np.repeat(arm, 100)                                                     # (300,)

width = 64
weights = [rng.standard_normal((width, 2)), np.zeros(width), rng.standard_normal((3, width)) / 8, np.zeros(3)]
curve = []
for step in range(1500):
    loss, cache = net_forward(points, *weights, classes)
    _, *gradients = net_backward(1.0, cache)
    weights = [w - 0.5 * dw for w, dw in zip(weights, gradients)]                 # a step against the slope
    curve.append(loss)

right = (net_forward(points, *weights, classes)[1][5].argmax(axis=1) == classes).mean()
print(f"loss {curve[0]:.2f} -> {curve[-1]:.3f},  {100 * right:.0f} % of the points right")

line = np.linspace(-1.2, 1.2, 160)
grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)                  # (25600, 2)
guess = net_forward(grid, *weights, np.zeros(len(grid), int))[1][5].argmax(axis=1).reshape(160, 160)
colours = [course.FORWARD, course.YELLOW, course.PINK]
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.1), width_ratios=[1.2, 1])
axes[0].plot(curve)
axes[0].set(xlabel="step", ylabel="loss", yscale="log", title="training")
axes[1].contourf(line, line, guess, levels=[-0.5, 0.5, 1.5, 2.5], colors=colours, alpha=0.3)
for k, marker in enumerate("o^s"):
    axes[1].plot(*points[classes == k].T, marker, color=colours[k], markersize=3)
axes[1].set(xlabel="x[:, 0]", ylabel="x[:, 1]", title="what the network says", aspect="equal");

# %% [markdown]
# The gradients that we wrote by hand train a network. Everything else in this course is the same, with larger
# layers.
#
# ## 6  How differences check a gradient
#
# The forward pass is short, so we trust it. It also knows the slope: move an input, see what happens. For one
# function of one variable there are two ways, and Taylor's series says how wrong they are:
#
# $$\frac{f(x + \varepsilon) - f(x)}{\varepsilon} = f' + \frac{\varepsilon}{2} f'' + \dots \qquad
# \frac{f(x + \varepsilon) - f(x - \varepsilon)}{2 \varepsilon} = f' + \frac{\varepsilon^2}{6} f''' + \dots$$
#
# The second, the **central difference**, costs the same and its error falls with the square. So take
# $\varepsilon$ tiny? No: a computer rounds $f$ to about $u |f|$, where $u \approx 10^{-16}$ in float64 and
# $10^{-7}$ in float32. The difference inherits that error, divided by $\varepsilon$. Small steps drown in
# rounding, large steps bend. We measure both.

# %%
rng = np.random.default_rng(9)
A = rng.standard_normal((40, 30))
x, dy, v = rng.standard_normal(30), rng.standard_normal(40), rng.standard_normal(30)
v /= np.linalg.norm(v)
exact = (A.T @ (dy * (1 - np.tanh(A @ x) ** 2))) @ v      # slope of L = <dy, tanh(A x)> in direction v

def errors(central, dtype):
    def L(t):
        return np.sum(dy.astype(dtype) * np.tanh(A.astype(dtype) @ (x + t * v).astype(dtype)))
    back = -1 if central else 0
    slopes = [(L(eps) - L(back * eps)) / ((1 - back) * eps) for eps in steps]
    return np.abs(np.array(slopes, float) - exact) / abs(exact)

steps = 10.0 ** np.arange(-13, 0.01, 0.25)
curves = {"one-sided, float64": errors(False, np.float64),
          "central, float32": errors(True, np.float32),
          "central, float64": errors(True, np.float64)}

figure, axes = plt.subplots(figsize=(6.4, 3.6))
for (name, error), colour, marker in zip(curves.items(), (course.YELLOW, course.PINK, FORWARD), "sd."):
    axes.loglog(steps, error, marker, markersize=4, color=colour, label=name)
axes.loglog(steps[24:], 0.3 * steps[24:] ** 2, "--", color="#606060", linewidth=1)
axes.loglog(steps[:42], 1e-15 / steps[:42], ":", color="#606060", linewidth=1)
axes.text(2e-3, 3e-9, "bending: ε²", color="#606060")
axes.text(2e-13, 1e-8, "rounding: u / ε", color="#606060")
axes.axvline(1e-5, color="#c0c0c0", linewidth=1)
axes.set(xlabel="step ε", ylabel="relative error of the slope", ylim=(1e-13, 1e4),
         yticks=10.0 ** np.arange(-12, 1, 4))
axes.legend(loc="upper center", ncols=3, fontsize=8, columnspacing=1)
for name, error in curves.items():
    best = error.argmin()
    print(f"{name:20} best step {steps[best]:.0e}, error there {error[best]:.0e};   at 1e-05: {error[32]:.0e}")

# %% [markdown]
# Three V shapes. The bottom of the V lies where bending and rounding are equal: $\varepsilon \approx u^{1/3}$ for
# the central difference, about $10^{-5}$ in float64. There it gives ten digits. In float32 even the best step
# leaves no more than four or five: **gradients are checked in float64.** nprcnn uses $\varepsilon = 10^{-5}$ (the
# grey line) and allows a relative error of $10^{-6}$. (Numerical Recipes, section 5.7, derives the best step.)
#
# ### One direction instead of every element
#
# The output is an array, but a slope belongs to one number. So we make one:
# $L = \langle dy, f(x) \rangle = \sum_i dy_i f(x)_i$, with a random `dy`. Its gradient is what the backward
# returns for that `dy`. Moving one element at a time needs two forward passes for each element. Moving **all
# elements at once**, along a random direction $v$, needs two in all:
#
# $$\langle \text{grad}, v\rangle \quad\text{should equal}\quad \frac{L(x + \varepsilon v) - L(x - \varepsilon v)}{2\varepsilon} .$$
#
# Does one direction see an error in a single element? We spoil one of 10 000 by one percent:

# %%
n = 10_000
x = rng.standard_normal(n)

def spoiled_backward(dy, cache):
    dx = tanh_backward(dy, cache)
    dx[n // 2] *= 1.01
    return dx

row = complaint(tanh_forward, spoiled_backward, (x,)).rows[0]
print(f"caught: relative error {row.relative:.0e}, allowed 1e-06")
print(f"forward passes for the slope: 2, and not {2 * n}")

# %% [markdown]
# An error can still lie at right angles to $v$, or nearly so, by chance. So `check_gradients` tries two directions, and
# its row reports the worse of them.
#
# ### Why never `sum()`
#
# A tempting choice is $dy = 1$ everywhere, that is, `L = y.sum()`. Here is a function for which this checks
# nothing: it standardises each row, $y = (x - m) / \sigma$, as batch norm does. And here is a backward with a
# typical mistake: it takes $\sigma$ for a constant and forgets that $\sigma$ depends on $x$ too. The right one
# has a third term.

# %%
def standardise_forward(x):
    m, sigma = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True)
    y = (x - m) / sigma                                   # (R, C)
    return y, (y, sigma)

def forgetful_backward(dy, cache):
    y, sigma = cache
    return (dy - dy.mean(axis=1, keepdims=True)) / sigma  # the path through sigma is missing

x, v = rng.standard_normal((3, 8)), rng.standard_normal((3, 8))
y, cache = standardise_forward(x)
for name, dy in (("dy = 1 (sum)", np.ones_like(y)), ("random dy", rng.standard_normal(y.shape))):
    difference = standardise_forward(x + 1e-5 * v)[0] - standardise_forward(x - 1e-5 * v)[0]
    backward, forward = np.sum(forgetful_backward(dy, cache) * v), np.sum(dy * difference) / 2e-5
    print(f"{name:14} forgetful backward {backward:8.5f}   forward {abs(forward):8.5f}")

def standardise_backward(dy, cache):
    y, sigma = cache
    # forward: y = (x - m) / sigma; x moves y directly, through m and through sigma: three paths
    return (dy - dy.mean(axis=1, keepdims=True) - y * (dy * y).mean(axis=1, keepdims=True)) / sigma

referee("standardise", standardise_forward, standardise_backward, (x,))

# %% [markdown]
# With `sum()` both say 0: the rows of $y$ always sum to 0, so $L$ never moves, and the forgotten term vanishes as
# well. The random `dy` sees the mistake at once. (The last line is the right backward, with all three paths.)
#
# ### The adjoint test
#
# Many layers are linear: $y = A x$ for some matrix that nobody writes down (a convolution, a resize, RoIAlign,
# all four rules). Then the backward is $A^\top$, and for *any* $x$ and $dy$
#
# $$\langle dy,\, A x \rangle = \langle A^\top dy,\, x \rangle ,$$
#
# because both are $\sum_{ij} dy_i A_{ij} x_j$. There is no $\varepsilon$ here, so only rounding is left: the two
# sides agree to about 15 digits, not 10. We give the test our gather, once right and once with the silent `+=`:

# %%
x, dy = rng.standard_normal(5), rng.standard_normal(4)
error = check_adjoint(lambda x: gather_forward(x)[0], lambda dy: gather_backward(dy, (5,)), x, dy)
print(f"np.add.at: relative error {error:.0e}")

def careless(dy):
    dx = np.zeros(5)
    dx[index] += dy
    return dx

try:
    check_adjoint(lambda x: gather_forward(x)[0], careless, x, dy)
except GradientCheckError as error:
    print("dx[index] += dy:", str(error).split(", relative")[0])

# %% [markdown]
# ## 7  Kinks
#
# The `max(z, 0)` of section 5, which is called **ReLU**, has no slope at 0. If an input lies within $\varepsilon$ of
# this kink, the central difference straddles it and returns something between 0 and 1, although the backward is
# right. The check fails without a bug.

# %%
t = np.linspace(-2, 2, 200)
figure, axes = plt.subplots(figsize=(5.2, 2.6))
axes.plot(t, np.maximum(t, 0), label="ReLU")
place = 0.4
ends = np.array([place - 1, place + 1])
secant = np.maximum(ends, 0)
axes.plot(ends, secant, "o--", label=f"central difference: slope {np.diff(secant)[0] / 2:.2f}")
axes.plot(place, place, "o", color="black")
axes.annotate("x: slope 1", (place, place), (0.75, 0.25))
axes.set(xlabel="x / ε", ylabel="y / ε")
axes.legend();

# %% [markdown]
# `check_gradients` notices: it also takes the slope with half the step. For a smooth function the two agree, at a
# kink they do not. The next cell puts one of three inputs 4e-7 from the kink.
#
# Max-pooling has the same trouble when the two largest values of a window are closer than $\varepsilon$: the
# winner changes on the way. So we choose inputs that **keep clear of kinks by construction**: ReLU's at least 0.1
# from 0, and for max-pooling shuffled numbers that are all different, 0.01 apart. Random normal numbers would do
# *most* of the time, which is worse than never: a test that fails now and then teaches people to ignore it.

# %%
def relu_forward(x):
    return np.maximum(x, 0), x > 0

def relu_backward(dy, positive):
    return dy * positive                                  # at 0 itself we take slope 0

error = complaint(relu_forward, relu_backward, (np.array([0.7, 4e-7, -0.9]),))
print(str(error).split("\n")[0])

away_from_zero = rng.choice([-1.0, 1.0], (4, 6)) * (0.1 + np.abs(rng.standard_normal((4, 6))))
referee("relu", relu_forward, relu_backward, (away_from_zero,))
distinct = 0.01 * np.random.default_rng(1).permutation(35).reshape(5, 7)
print(f"smallest gap between two values: {np.diff(np.sort(distinct.ravel())).min():.2f}")

# %% [markdown]
# ## 8  Hunting a bug
#
# Max-pooling slides a window over a plane and keeps the largest value. It is a gather with an index found on the
# way, so its backward is a scatter-add (rule 3). Here is one, for a single plane (H, W). Somewhere it is wrong.

# %%
def pool_forward(x, k, stride):
    oh, ow = (x.shape[0] - k) // stride + 1, (x.shape[1] - k) // stride + 1
    y, winners = np.empty((oh, ow)), np.empty((oh, ow, 2), int)
    for i in range(oh):
        for j in range(ow):
            window = x[i * stride:i * stride + k, j * stride:j * stride + k]
            a, b = np.unravel_index(window.argmax(), (k, k))
            y[i, j], winners[i, j] = window[a, b], (i * stride + a, j * stride + b)
    return y, (x.shape, winners)

def pool_backward(dy, cache):
    shape, winners = cache
    dx = np.zeros(shape)
    for i, j in np.ndindex(dy.shape):
        a, b = winners[i, j]
        dx[a, b] = dy[i, j]
    return dx

referee("2x2 / 2", lambda x: pool_forward(x, 2, 2), pool_backward, (distinct,))

# %% [markdown]
# It passes! But that was 2x2 windows with stride 2. ResNet pools 3x3 with stride 2. So, the first lesson of the
# hunt: **check the sizes that you use, odd ones, not square, with overlap.**

# %%
print(complaint(lambda x: pool_forward(x, 3, 2), pool_backward, (distinct,)))

# %% [markdown]
# Read the report. One argument is wrong. The ratio is no simple number, so it is not a forgotten factor: some
# elements are wrong and others are not. Second lesson: **find out which ones.** For a small input we can afford
# the slow way, one element at a time, and look at the pattern.

# %%
y, cache = pool_forward(distinct, 3, 2)
dy = 1 + rng.random(y.shape)
numeric = np.zeros_like(distinct)
for place in np.ndindex(distinct.shape):
    step = np.zeros_like(distinct)
    step[place] = 1e-5
    difference = pool_forward(distinct + step, 3, 2)[0] - pool_forward(distinct - step, 3, 2)[0]
    numeric[place] = np.sum(dy * difference) / 2e-5

wins = np.zeros_like(distinct)
np.add.at(wins, tuple(cache[1].reshape(-1, 2).T), 1)      # an index that repeats
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.2))
course.show_matrix(axes[0], numeric, "from differences", "column", "row", "{:.1f}")
error = pool_backward(dy, cache) - numeric
course.show_matrix(axes[1], error, "backward − differences", "column", "row", "{:.1f}")
course.show_matrix(axes[2], wins, "windows won", "column", "row", "{:.0f}")

# %% [markdown]
# The error sits exactly where a pixel won more than one window. Two windows overlap, both choose the same pixel,
# and its two gradients should add up. The line `dx[a, b] = dy[i, j]` overwrites. It must be `+=`:

# %%
def pool_backward_mended(dy, cache):
    shape, winners = cache
    dx = np.zeros(shape)
    for i, j in np.ndindex(dy.shape):
        a, b = winners[i, j]
        # forward: y[i, j] = x[a, b]; windows overlap, so one pixel may have won several times
        dx[a, b] += dy[i, j]
    return dx

referee("3x3 / 2", lambda x: pool_forward(x, 3, 2), pool_backward_mended, (distinct,))

# %% [markdown]
# **How to hunt, in short.** (1) Which arguments fail? The bug lies in what they share. (2) Is backward / forward
# a simple number? Then it is a factor or a sign. (3) Make it small, compare element by element, look at the
# pattern: the border, every second one, the ones used twice. (4) Still nothing: check each step of the chain as a
# pair of its own.
#
# ## 9  The real ones
#
# nprcnn's own pairs live in `nprcnn.ops`. You can already read three of them: `linear.py`, `activation.py` and
# `losses.py`. We put our network together from them and compare with what we wrote by hand.

# %%
from nprcnn.ops.activation import relu_backward, relu_forward
from nprcnn.ops.linear import linear_backward, linear_forward
from nprcnn.ops.losses import softmax_cross_entropy_backward, softmax_cross_entropy_forward

x, w1, b1, w2, b2 = arguments
z, cache1 = linear_forward(x, w1, b1)                     # (R, H)
h, cache2 = relu_forward(z)                               # (R, H)
s, cache3 = linear_forward(h, w2, b2)                     # (R, K)
loss, cache4 = softmax_cross_entropy_forward(s, labels)

ds = softmax_cross_entropy_backward(1.0, cache4)
dh, dw2, db2 = linear_backward(ds, cache3)
dz = relu_backward(dh, cache2)
dx, dw1, db1 = linear_backward(dz, cache1)

ours, our_cache = net_forward(*arguments, labels)
print(f"loss: difference {abs(loss - ours):.0e}")
names, theirs = ("dx", "dw1", "db1", "dw2", "db2"), (dx, dw1, db1, dw2, db2)
for name, a, b in zip(names, theirs, net_backward(1.0, our_cache)):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    print(f"{name:4} {str(a.shape):7} largest difference {np.abs(a - b).max():.0e}")

print()
x, w, b = rng.standard_normal((5, 4)), rng.standard_normal((3, 4)), rng.standard_normal(3)
referee("linear", linear_forward, linear_backward, (x, w, b))
referee("relu", relu_forward, relu_backward, (away_from_zero,))
referee("loss", softmax_cross_entropy_forward, softmax_cross_entropy_backward, (x, np.array([0, 3, 1, 1, 2])))

# %% [markdown]
# There is one difference, and it is not in the gradient. Ours takes `exp(s)` as it is. The library first
# subtracts the largest logit of each row, which changes no probability and keeps `exp` from overflowing.
#
# On the command line, `nprcnn gradcheck` runs the check on *every* pair of the library. Below is its table for
# two of them: odd sizes, views that are not contiguous, empty arrays.

# %%
big = np.array([[1000.0, 0.0, -1000.0]])
with np.errstate(all="ignore"):
    naive = np.exp(big) / np.exp(big).sum()
print("ours:   ", naive[0], "  the library:", nprcnn.ops.activation.softmax(big)[0])

from nprcnn.pairs import PAIRS, format_table, run_pairs

chosen = [pair for pair in PAIRS if pair.name in ("relu", "softmax_cross_entropy")]
print(format_table(run_pairs(chosen)))

# %% [markdown]
# ## Exercises
#
# Each has a stub and a check. The check never crashes: it says which output is wrong, where, and what is usually
# behind such an error. Hints are folded. Solutions are in `solutions/01_solutions.ipynb`.
#
# ### Exercise 1: a residual block
#
# ResNet's idea in one line: $y = x + \mathrm{relu}(x W^\top + b)$, with $x$ (R, C), $W$ (C, C), $b$ (C,). Write
# its backward. (It is a block of He et al. 2015, arXiv 1512.03385, equation 1, with one layer.)
#
# <details><summary>Hint 1</summary>How many paths lead from x to y? Draw them. Which of the four rules are in the drawing?</details>
# <details><summary>Hint 2</summary>Name the steps: z = x Wᵀ + b, r = relu(z), y = x + r. Go back one at a time: dr, dz, then the linear layer.</details>
# <details><summary>Hint 3</summary>dr = dy (rule 2). dz = dr where z &gt; 0. The linear layer is in the table of section 5. dx has two parts.</details>

# %%
def residual_forward(x, w, b):
    z = x @ w.T + b                                       # (R, C)
    return x + np.maximum(z, 0), (x, w, z)

def residual_backward(dy, cache):
    x, w, z = cache                                       # (R, C), (C, C), (R, C)
    ...                                                   # your code; return dx, dw, db

check_residual_backward(residual_backward)

# %% [markdown]
# ### Exercise 2: find the bug
#
# A feature pyramid in one dimension, with all four rules in it. A coarse map `c5` (N, D, L5) gets C channels by a
# matrix $w$ (C, D). The result, `inner`, is upsampled to twice the length and added to the fine map `c4` (N, C,
# L4). It is also an output itself, and every second entry of it is a third output. The backward below is **wrong
# in one line**. Find it, and mend it in the cell after it.
#
# <details><summary>Hint 1</summary>Which gradients does the report call wrong? Which lines do they share?</details>
# <details><summary>Hint 2</summary>Run it with L5 = 2, L4 = 4, N = C = D = 1 and a dy of 1, 10, 100, ... Which of the numbers are missing from dinner?</details>
# <details><summary>Hint 3</summary>Print index. Then read rule 3 again. Here the index stands on the last axis: np.add.at(a, (..., index), values) takes what would stand in the brackets of a[..., index].</details>

# %%
def pyramid_forward(c4, c5, w):
    inner = w @ c5                                        # (N, C, L5)
    index = np.arange(c4.shape[2]) // 2                   # (L4,)  0 0 1 1 2 2 ...: nearest upsampling
    p4 = c4 + inner[:, :, index]                          # (N, C, L4)
    p6 = inner[:, :, ::2]                                 # (N, C, L6)
    return np.concatenate([p4, inner, p6], axis=2), (c5, w, index)

def buggy_backward(dy, cache):
    c5, w, index = cache
    l4, l5 = len(index), c5.shape[2]
    dp4, dp5, dp6 = np.split(dy, [l4, l4 + l5], axis=2)   # concatenate -> split
    dc4, dup = dp4, dp4                                   # add -> the same gradient to both
    dinner = dp5.copy()                                   # fan-out -> sum: the output itself,
    dinner[:, :, ::2] += dp6                              # the slice,
    dinner[:, :, index] += dup                            # and the upsampling
    dc5 = w.T @ dinner                                    # (N, D, L5)
    dw = np.einsum("ncl,ndl->cd", dinner, c5)             # (C, D), summed over images and places
    return dc4, dc5, dw

inputs = [rng.standard_normal(shape) for shape in ((2, 3, 6), (2, 4, 3), (3, 4))]
for row in complaint(pyramid_forward, buggy_backward, inputs).rows:
    print(f"{row.argument:22} relative error {row.relative:.0e}   {row.problem or 'right'}")

# %%
def pyramid_backward(dy, cache):
    c5, w, index = cache
    ...                                                   # the mended backward; return dc4, dc5, dw

check_pyramid_backward(pyramid_backward)

# %% [markdown]
# ### Exercise 3: the loss of the mask branch
#
# Mask R-CNN's mask loss is a binary cross-entropy on every pixel (He et al. 2017, arXiv 1703.06870, section 3).
# With a logit $z$, the probability $p = 1 / (1 + e^{-z})$, and the target $t$ between 0 and 1:
#
# $$L = \mathrm{mean}\bigl(-t \log p - (1 - t) \log (1 - p)\bigr) .$$
#
# Derive $dz$ on paper, then write it. It must also work for logits of some thousand, without a NaN.
#
# <details><summary>Hint 1</summary>Two steps: dL/dp, then dp/dz. What is the derivative of 1 / (1 + exp(-z)), written with p?</details>
# <details><summary>Hint 2</summary>dp/dz = p (1 - p). Multiply it with dL/dp = -t / p + (1 - t) / (1 - p) and simplify before you write code.</details>
# <details><summary>Hint 3</summary>Nearly nothing is left. Then: the mean, and dy. nprcnn.ops.activation.sigmoid does not overflow.</details>

# %%
def bce_forward(z, t):
    elements = np.maximum(z, 0) - t * z + np.log1p(np.exp(-np.abs(z)))    # the same, safe for large z
    return elements.mean(), (z, t)

def bce_backward(dy, cache):
    z, t = cache                                          # both (R, C); dy is one number
    ...                                                   # your code; return dz

check_bce_backward(bce_backward)

# %% [markdown]
# ## Summary
#
# - A backward pass takes `dy`, the gradient of the loss at the output, and returns $J^\top dy$ without building
#   $J$.
# - Forward and backward come in pairs. The forward returns a cache; nothing is kept on the layer.
# - Four rules: fan-out → sum; add → the same gradient to both; gather or slice → scatter-add; concatenate →
#   split.
# - A parameter that is used many times gets the sum of many gradients.
# - Check with a central difference, in float64, step $10^{-5}$, along random directions and with a random
#   `dy`. Never with `sum()`. Linear functions also pass the adjoint test, to 12 digits and more.
# - Keep clear of kinks by construction. Check odd sizes and overlapping windows.
#
# **Read next.** In this course: [02 Convolution](02_convolution.ipynb). Elsewhere: the CS231n notes
# "Backpropagation, Intuitions" and "Learning" (the part on gradient checks); Rumelhart, Hinton and Williams,
# *Learning representations by back-propagating errors*, Nature 323 (1986); Baydin et al., *Automatic
# differentiation in machine learning: a survey*, arXiv 1502.05767, sections 2 and 3. In the code:
# `nprcnn/gradcheck.py`, and any file of `nprcnn/ops`.
