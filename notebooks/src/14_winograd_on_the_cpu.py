# %% [markdown]
# # 14  Winograd on the CPU: why our convolution beats PyTorch's
#
# Notebook [02](02_convolution.ipynb) made one matrix product of a convolution, and said that the number of
# multiplications stays the same. Here we make it fast. First the known ways: compiled loops, im2col, blocks that fit
# into the cache. They all end at the same ceiling: the rate at which the processor multiplies. Then we go through
# the ceiling, with an algorithm that gets the same result from **a quarter of the multiplications**.
#
# **You need:** notebook 02 (im2col), notebook [01](01_what_a_backward_pass_is.ipynb) for section 9. **You will be
# able to:** say what bounds a layer's speed, derive Winograd's three matrices, say what they cost in accuracy, and
# read `kernels/cpu/conv*.py`. About 90 minutes with the exercises.
#
# ## Where we are
#
# Everything dark in the figure is convolution. The 3x3 convolutions with stride 1 in it, about a third of the
# layers, do three quarters of the multiplications.

# %%
import importlib.util
import time
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import backend, course
from nprcnn.course.winograd import check_saving, check_tiles_backward, check_two_outputs
from nprcnn.gradcheck import check_adjoint
from nprcnn.ops.conv import conv2d, conv2d_grad_w

course.style()
rng = np.random.default_rng(0)
numba_is_here = importlib.util.find_spec("numba") is not None
if not numba_is_here:
    print("Without Numba the cells that time compiled code are skipped. The mathematics is all here.")
course.where_we_are("resnet", "fpn", "rpn", "mask_head")

# %% [markdown]
# ## 1  What there is to compute
#
# The layers of `maskrcnn_resnet50_fpn` for one image of 800 x 1216 with 100 detections, by kind. A layer of
# O filters (C, K, K) on a map of H x W outputs takes O · C · K² · H · W multiplications (with their additions). A
# billion is 10⁹ here.

# %%
def multiplications(c, o, k, h, w, n=1):
    return n * o * c * k * k * h * w

sizes = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]           # strides 4, 8, 16, 32, 64
total = {"3x3, stride 1": 0, "1x1, stride 1": 0, "the others": multiplications(3, 64, 7, 400, 608)}
for stage, (blocks, c) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
    for block in range(blocks):
        size = sizes[stage]
        first, before = block == 0, sizes[stage - 1] if stage and block == 0 else size
        c_in = (64 if stage == 0 else 2 * c) if first else 4 * c
        total["1x1, stride 1"] += multiplications(c_in, c, 1, *before) + multiplications(c, 4 * c, 1, *size)
        total["the others" if first and stage else "3x3, stride 1"] += multiplications(c, c, 3, *size)
        if first:                                                        # the short cut's own 1x1
            total["the others" if stage else "1x1, stride 1"] += multiplications(c_in, 4 * c, 1, *size)
for size, c in zip(sizes, (256, 512, 1024, 2048)):
    total["1x1, stride 1"] += multiplications(c, 256, 1, *size)          # pyramid, lateral
    total["3x3, stride 1"] += multiplications(256, 256, 3, *size)        # pyramid, output
for size in sizes:
    total["3x3, stride 1"] += multiplications(256, 256, 3, *size)        # RPN
    total["1x1, stride 1"] += multiplications(256, 15, 1, *size)
total["3x3, stride 1"] += 4 * multiplications(256, 256, 3, 14, 14, n=100)   # mask head
total["1x1, stride 1"] += multiplications(256, 91, 1, 28, 28, n=100)
for kind, count in total.items():
    print(f"{kind:15} {count / 1e9:6.1f} billion multiplications, {count / sum(total.values()):4.0%}")

# %% [markdown]
# If a layer is worth thinking about, it is a 3x3 with stride 1.
#
# ## 2  A ladder
#
# One such layer, small enough to wait for, in six ways. The rate is what the layer *needs* (two operations for each
# multiplication with its addition) over the time it takes, so that a higher number is a faster layer. The unit is
# GFLOP/s, a billion floating-point operations a second.

# %%
def seconds(function, repeats=4):
    """The shortest of some runs, in seconds: what disturbs a run only ever makes it longer."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)

def python_loops(x, w):
    """x (C, H, W), w (O, C, 3, 3), padding 1 -> y (O, H, W)."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    O, C, H, W = len(w), len(x), x.shape[1] - 2, x.shape[2] - 2
    y = np.zeros((O, H, W), x.dtype)
    for o in range(O):
        for h in range(H):
            for v in range(W):
                total = y.dtype.type(0)
                for c in range(C):
                    for i in range(3):
                        for j in range(3):
                            total += w[o, c, i, j] * x[c, h + i, v + j]
                y[o, h, v] = total
    return y

def whole_im2col(x, w):
    """The same, as one product: columns (C * 9, H * W)."""
    C, H, W = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    columns = np.stack([padded[:, i:i + H, j:j + W] for i in range(3) for j in range(3)], axis=1)
    return (w.reshape(len(w), -1) @ columns.reshape(C * 9, H * W)).reshape(-1, H, W)

C = O = 64
H, W = 96, 128
x, w = rng.standard_normal((C, H, W), np.float32), rng.standard_normal((O, C, 3, 3), np.float32) / 24
truth = conv2d(x[None].astype(np.float64), w.astype(np.float64), None, 1, 1)[0]
operations = 2 * multiplications(C, O, 3, H, W)

def measure(name, function, repeats=7):
    error = np.abs(function() - truth).max() / np.abs(truth).max()
    assert error < 1e-4
    t = seconds(function, repeats)
    rates[name] = operations / t / 1e9
    print(f"{name:24} {t * 1e3:8.1f} ms  {rates[name]:7.2f} GFLOP/s   largest error {error:.0e}")

rates = {}
few = python_loops(x[:2, :12, :12], w[:2, :2])            # 2592 multiplications are enough for Python
t = seconds(lambda: python_loops(x[:2, :12, :12], w[:2, :2]), 3)
rates["loops in Python"] = 2 * multiplications(2, 2, 3, 12, 12) / t / 1e9
print(f"{'loops in Python':24} {operations / rates['loops in Python'] / 1e9:8.0f} s (from a part)"
      f"  {rates['loops in Python']:.4f} GFLOP/s")

# %% [markdown]
# Numba compiles loops over arrays. It does not know `np.pad`, so the padding moves out; the rest is the same text.

# %%
if numba_is_here:
    import numba

    @numba.njit
    def compiled_loops(x, w, y):
        """x (C, H + 2, W + 2), already padded -> y (O, H, W)."""
        for o in range(y.shape[0]):
            for h in range(y.shape[1]):
                for v in range(y.shape[2]):
                    total = y[o, h, v]
                    for c in range(x.shape[0]):
                        for i in range(3):
                            for j in range(3):
                                total += w[o, c, i, j] * x[c, h + i, v + j]
                    y[o, h, v] = total
        return y

    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    measure("loops, compiled", lambda: compiled_loops(padded, w, np.zeros((O, H, W), np.float32)), 2)
measure("im2col, whole", lambda: whole_im2col(x, w))
measure("im2col, nprcnn.ops", lambda: conv2d(x[None], w, None, 1, 1)[0])
if numba_is_here:
    kernels = backend.kernel_set("numba")
    from nprcnn.kernels.cpu import conv as compiled
    from nprcnn.kernels.cpu.conv_epilogue import make_epilogue
    from nprcnn.kernels.cpu.conv_geometry import geometry

    def run(algorithm, x, w):
        """One of the compiled algorithms by its name; x (N, C, H, W), 3x3, padding 1."""
        geo = geometry(x.shape, w.shape, 1, 1)
        return compiled.convolve(algorithm, x, w, geo, make_epilogue(geo, x.dtype))

    measure("im2col, compiled", lambda: run("im2col", x[None], w)[0])
    measure("Winograd, compiled", lambda: run("winograd 4x4", x[None], w)[0])

# %%
square = rng.standard_normal((1500, 1500), np.float32)
peak = 2 * 1500 ** 3 / seconds(lambda: square @ square, 12) / 1e9
names = list(rates)[::-1]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.5), sharey=True)
for ax in axes:
    ax.barh(names, [rates[name] for name in names], color=[course.BACKWARD if "Wino" in n else course.FORWARD for n in names])
    ax.axvline(peak, color="black", linestyle="--")
    ax.set(xlabel="GFLOP/s of direct convolution", ylim=(-1.3, len(names) - 0.4))
for row, name in enumerate(names):
    axes[0].text(1e5, row, f"{rates[name]:.3g}", va="center", ha="right", fontsize=8)         # right of the dashed line
axes[0].set(xscale="log", xlim=(1e-4, 1.5e5), title="each mark is ten times as fast")
axes[1].set(xlim=0, title="the same, not logarithmic")
axes[1].text(peak, -0.85, "a large matrix product ", ha="right", va="center", fontsize=9);

# %% [markdown]
# Compiled loops are hundreds of times as fast as Python's. im2col gains again, because a matrix product
# uses each number it loads many times, eight in one instruction. The dashed line is the rate of a large
# matrix product on the machine that ran this notebook: no algorithm that *does all the multiplications* gets past
# it. (Your bars will differ, with your processor and with what else it is doing.)
#
# ## 3  Blocks: memory is slower than arithmetic
#
# A processor core with AVX2 (instructions for eight float32 at once) does up to 32 operations in a clock tick: two
# instructions, eight numbers each, multiply and add. A number from the L1 cache takes about 4 ticks to arrive, from L2
# about 14, from L3 about 50, from memory some 200 to 300. So what counts is how often a number is used once it is
# there.
#
# im2col writes nine copies of the map. For 256 channels of 200 x 304 that is 560 MB, where input and output have 62 each.
# In blocks, some rows' columns are made, multiplied, and overwritten by the next. How large should a block be?

# %%
if numba_is_here:
    from nprcnn.kernels.cpu import conv_im2col
    x_block, w_block = rng.standard_normal((1, 128, 100, 152), np.float32), rng.standard_normal((128, 128, 3, 3), np.float32)
    work = 2 * multiplications(128, 128, 3, 100, 152)
    block_sizes, was = [1 / 16, 1 / 4, 1, 4, 16, 64], conv_im2col.COLUMN_BYTES
    speed = []
    for megabytes in block_sizes:
        conv_im2col.COLUMN_BYTES = int(megabytes * 2 ** 20)
        speed.append(work / seconds(lambda: run("im2col", x_block, w_block), 4) / 1e9)
    conv_im2col.COLUMN_BYTES = was
    figure, axes = plt.subplots(figsize=(5, 2.4))
    axes.plot(block_sizes, speed, "o-")
    axes.axvline(was / 2 ** 20, color="#808080", linestyle=":")
    axes.text(was / 2 ** 20, 2, " nprcnn's choice", fontsize=9)
    axes.set(xscale="log", xlabel="columns of one block, MB", ylabel="GFLOP/s", ylim=(0, 1.15 * max(speed)),
             xticks=block_sizes, xticklabels=["1/16", "1/4", "1", "4", "16", "64"])
    axes.minorticks_off()

# %% [markdown]
# Small blocks lose: a thin product loads all the filters for little work. To the right the curve is nearly flat: here
# blocks save memory, 8 MB instead of 560, more than they save time. Why is writing and reading all those columns not
# slower? That is the next question.
#
# ## 4  The roofline
#
# Two things can hold a layer up: the arithmetic, and the memory. Let a layer do $F$ operations and move $Q$ bytes to
# and from memory. The machine does at most $P$ operations and moves at most $B$ bytes a second. Then
#
# $$\text{rate} \le \min\left(P,\; B \cdot \frac{F}{Q}\right) . \tag{1}$$
#
# $F / Q$ is the layer's **arithmetic intensity**, in operations a byte. Plotted against it, the bound is a roof: a
# slope, where memory decides, and a ceiling, where arithmetic does (Williams, Waterman and Patterson, *Roofline*,
# 2009). We measured $P$ above. For $B$ we copy a large array. The least that a layer can move is its input, its
# filters and its output, once.

# %%
source, target = np.ones(1 << 25, np.float32), np.zeros(1 << 25, np.float32)
bandwidth = 2 * source.nbytes / seconds(lambda: np.copyto(target, source), 7) / 1e9          # read and write
layers = [                                                # name, c, o, k, (h, w), n
    ("1x1, 256 to 12, RPN", 256, 12, 1, (200, 304), 1),
    ("1x1, 64 to 256", 64, 256, 1, (200, 304), 1),
    ("1x1, 1024 to 256", 1024, 256, 1, (50, 76), 1),
    ("3x3, 64 to 64", 64, 64, 3, (200, 304), 1),
    ("3x3, 256 to 256, P3", 256, 256, 3, (100, 152), 1),
    ("3x3, 256, 100 RoIs", 256, 256, 3, (14, 14), 100),
]
figure, axes = plt.subplots(figsize=(8, 3.8))
intensity = np.geomspace(0.3, 3000, 200)
axes.plot(intensity, np.minimum(peak, bandwidth * intensity), color="black")
axes.text(0.33, peak * 1.12, f"arithmetic: {peak:.0f} GFLOP/s", fontsize=9)
axes.text(1.1, bandwidth * 0.6, f"memory: {bandwidth:.0f} GB/s", fontsize=9)
print(f"{'layer':22} {'operations':>11} {'bytes':>9} {'operations a byte':>18} {'the roof':>9} {'measured':>9}")
for mark, (name, c, o, k, (h, v), n) in zip("sod^v*", layers):
    F, Q = 2 * multiplications(c, o, k, h, v, n), 4 * (n * (c + o) * h * v + o * c * k * k)
    roof, measured = min(peak, bandwidth * F / Q), np.nan
    if numba_is_here:
        x, w = rng.standard_normal((n, c, h, v), np.float32), rng.standard_normal((o, c, k, k), np.float32)
        measured = F / seconds(lambda: kernels.conv2d(x, w, None, 1, k // 2), 4) / 1e9
    print(f"{name:22} {F / 1e9:9.1f} G {Q / 1e6:6.0f} MB {F / Q:18.0f} {roof:9.0f} {measured:9.0f}")
    axes.plot([F / Q] * 2, [roof, measured], color="#a0a0a0", linewidth=1)
    axes.plot(F / Q, measured, mark, color=course.BACKWARD if k == 3 else course.FORWARD, markersize=8, label=name, linestyle="none")
axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, operations a byte", ylabel="GFLOP/s", xlim=(0.3, 3000),
         ylim=(5, 5 * peak))
axes.legend(loc="lower right", fontsize=8);

# %% [markdown]
# The black line is the roof. Every 3x3 stands far to the right, under its flat part: **arithmetic** holds it up, not
# memory. Even all 560 MB of columns, written and read, leave 60 operations a byte, right of the edge: that is why whole
# im2col was not slower. (With many cores, which share one memory, the edge moves to the right.)
#
# The blue marks, nprcnn's 1x1, stay below the roof, as they must. The orange ones stand **above** it. Nothing is wrong
# with the roof: it holds for whoever does all the multiplications. No cache trick would have got there. What was
# left was to do fewer.
#
# ## 5  Two outputs from four products
#
# One axis first. A filter of three taps at two neighbouring places, inputs $d_0 \dots d_3$:
#
# $$y_0 = d_0 g_0 + d_1 g_1 + d_2 g_2, \qquad y_1 = d_1 g_0 + d_2 g_1 + d_3 g_2 . \tag{2}$$
#
# Six products. Now take these four instead (Winograd 1980; Lavin and Gray, arXiv 1509.09308, equation 5):
#
# $$\begin{aligned}
# m_0 &= (d_0 - d_2)\, g_0 & m_1 &= (d_1 + d_2)\, \tfrac{1}{2}(g_0 + g_1 + g_2) \\
# m_3 &= (d_1 - d_3)\, g_2 & m_2 &= (d_2 - d_1)\, \tfrac{1}{2}(g_0 - g_1 + g_2)
# \end{aligned}$$
#
# $$y_0 = m_0 + m_1 + m_2, \qquad y_1 = m_1 - m_2 - m_3 .$$
#
# Multiply out $m_1 + m_2$: it is $d_1 g_1 + d_2 (g_0 + g_2)$, and $m_0$ turns the $d_2 g_0$ into $d_0 g_0$. There are
# more additions, but the sums of $g$ are made once a filter and used at every place of the map. This is called
# F(2, 3): two outputs, three taps. As matrices, with $*$ entry by entry:
#
# $$y = A^T\left[(G g) * (B^T d)\right] \tag{3}$$

# %%
BT = np.array([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])       # (4, 4): mixes the inputs
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])             # (4, 3): mixes the taps
AT = np.array([[1.0, 1, 1, 0], [0, 1, -1, -1]])                                     # (2, 4): collects the products

d, g = rng.standard_normal(4), rng.standard_normal(3)
y = AT @ ((G @ g) * (BT @ d))
print("from four products:", y, "  directly:", np.correlate(d, g, "valid"))
assert np.allclose(y, np.correlate(d, g, "valid"))

figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.2), width_ratios=[4, 3, 4])
for ax, matrix, title, xlabel, ylabel in ((axes[0], BT, "$B^T$", "input d", "product"), (axes[1], G, "G", "tap g", "product"),
                                          (axes[2], AT, "$A^T$", "product", "output y")):
    course.show_matrix(ax, matrix, title, xlabel, ylabel, "{:.3g}")

# %% [markdown]
# ## 6  Where the matrices come from
#
# They are not found by luck. A product of two polynomials is a convolution of their coefficients:
#
# $$(a_0 + a_1 z)(g_0 + g_1 z + g_2 z^2) = s_0 + s_1 z + s_2 z^2 + s_3 z^3, \qquad s_k = \sum_i a_i g_{k - i} .$$
#
# The result has degree 3, so its values at **four** points determine it. And the value at a point is *one* product: the
# value of the first factor there times the value of the second. So: evaluate both factors at four points, take four
# products, and interpolate. (This is how long numbers are multiplied fast: Toom and Cook.) As points take 0, 1, −1, and
# "infinity", which means the highest coefficient. At $z = 1$, for example, the product is $(a_0 + a_1)(g_0 + g_1 + g_2)$:
# the sum of $g$ in $m_1$ above, but for its ½.
#
# - evaluating the filter: a matrix, **G** up to a factor a row;
# - evaluating the other factor: a matrix **A**;
# - interpolating: the inverse of the matrix that evaluates a polynomial of degree 3; with the factors, **B**.
#
# So $s = B\,[(G g) * (A a)]$. This makes many $s$ from few $a$: a stamp that adds up. We want a sliding filter, few $y$
# from many $d$. For fixed $g$ that is the transposed matrix, as notebook 02 found for the transposed
# convolution. $B\, \mathrm{diag}(Gg)\, A$ transposed is $A^T \mathrm{diag}(Gg)\, B^T$, and that is equation (3).
#
# In exact fractions, for any number of outputs and any points:

# %%
def winograd_matrices(m, points, r=3):
    """B^T (n, n), G (n, r), A^T (m, n) of F(m, r), n = m + r - 1; points: n - 1 numbers, infinity is added."""
    n = m + r - 1
    points = [Fraction(p) for p in points]
    evaluate = lambda count: [[p ** k for k in range(count)] for p in points] + [[Fraction(k == count - 1) for k in range(count)]]
    A, G, whole = evaluate(m), evaluate(r), evaluate(n)
    B = inverse(whole)                                    # interpolation
    for i, p in enumerate(points):                        # move the fractions out of B, into G, which is used least often
        scale = np.prod([p - q for q in points if q != p])
        G[i] = [v / scale for v in G[i]]
        for row in B:
            row[i] *= scale
    return tuple(np.array(M, dtype=float) for M in (list(zip(*B)), G, list(zip(*A))))

def inverse(matrix):
    """Gauss and Jordan, in fractions."""
    n = len(matrix)
    rows = [list(row) + [Fraction(i == k) for k in range(n)] for i, row in enumerate(matrix)]
    for i in range(n):
        pivot = next(k for k in range(i, n) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for k in range(n):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i])]
    return [row[n:] for row in rows]

matrices = {2: winograd_matrices(2, (0, 1, -1)), 4: winograd_matrices(4, (0, 1, -1, 2, -2)),
            6: winograd_matrices(6, (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2)))}
for m, (bt, g_matrix, at) in matrices.items():
    d, g = rng.standard_normal(m + 2), rng.standard_normal(3)
    assert np.allclose(at @ ((g_matrix @ g) * (bt @ d)), np.correlate(d, g, "valid"))
    print(f"F({m}, 3): {m + 2} products instead of {3 * m}, largest entries "
          f"B {np.abs(bt).max():.4g}, G {np.abs(g_matrix).max():.4g}, A {np.abs(at).max():.4g}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(8.6, 2.7), width_ratios=[6, 3, 6])
for ax, matrix, title, xlabel, ylabel in zip(axes, matrices[4], ("F(4, 3): $B^T$", "G", "$A^T$"), ("input d", "tap g", "product"),
                                             ("product", "product", "output y")):
    course.show_matrix(ax, matrix, title, xlabel, ylabel, "{:.2g}")

# %% [markdown]
# These are the matrices at the top of `kernels/cpu/conv_winograd_4x4.py`.
#
# ## 7  Two axes, and channels
#
# In two dimensions, use (3) along the rows and along the columns. A tile of $m \times m$ outputs needs
# $(m + 2) \times (m + 2)$ inputs:
#
# $$Y = A^T\left[(G g G^T) * (B^T d B)\right] A . \tag{4}$$
#
# For $m = 4$: 36 products for 16 outputs. Directly it is 16 · 9 = 144. **A quarter.** Neighbouring tiles overlap by
# two rows or columns of inputs; their outputs lie side by side:

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
m = 4
for ax, size, side, shift, title in ((axes[0], 10, m + 2, 0, "inputs (with padding): 6 x 6, overlapping"),
                                     (axes[1], 8, m, 0, "outputs: 4 x 4, side by side")):
    for (ty, tx), colour in zip(np.ndindex(2, 2), (course.FORWARD, course.BACKWARD, course.GREEN, course.PINK)):
        ax.add_patch(plt.Rectangle((tx * m, ty * m), side, side, facecolor=colour, alpha=0.35, edgecolor="black"))
    for k in range(size + 1):
        ax.plot([0, size], [k, k], [k, k], [0, size], color="white", linewidth=0.8)
    ax.set(title=title, xlim=(-0.2, 10.2), ylim=(10.2, -0.2), aspect="equal", xticks=[], yticks=[], xlabel="column", ylabel="row")
    ax.spines[:].set_visible(False)

# %% [markdown]
# With channels, $Y_o = \sum_c A^T[\ldots]A$, and $A^T$ is linear: sum the products over $c$ first, and transform once.
# At each of the 36 places $p$ of a tile that sum is an entry of a matrix product:
#
# $$M_{p\,o\,t} = \sum_c U_{p\,o\,c}\; V_{p\,c\,t}, \qquad U = G g G^T, \quad V = B^T d B . \tag{5}$$
#
# | array | what | shape | F(4x4, 3x3), 256 channels, 200 x 304 |
# |---|---|---|---|
# | U | filters | (36, O, C) | 9 MB |
# | V | inputs | (36, C, T) | 3800 tiles: 140 MB |
# | M | products | (36, O, T) | 140 MB |
# | y | outputs | (O, H, W) | 62 MB |
#
# All of it, in NumPy:

# %%
def conv_winograd(x, w, m):
    """x (N, C, H, W), w (O, C, 3, 3), stride 1, padding 1 -> y (N, O, H, W), by F(m x m, 3x3)."""
    bt, g, at = (matrix.astype(x.dtype) for matrix in matrices[m])
    (N, C, H, W), O, n = x.shape, len(w), m + 2
    TH, TW = -(-H // m), -(-W // m)                       # tiles; the last ones may stick out
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1 + TH * m - H), (1, 1 + TW * m - W)))
    U = np.einsum("ia,ocab,jb->ijoc", g, w, g).reshape(n * n, O, C)
    tiles = np.lib.stride_tricks.sliding_window_view(padded, (n, n), axis=(2, 3))[:, :, ::m, ::m]
    tiles = tiles.reshape(N, C, TH * TW, n, n)            # overlapping, as in the figure
    V = np.einsum("ia,nctab,jb->ijcnt", bt, tiles, bt, optimize=True).reshape(n * n, C, -1)
    M = U @ V                                             # equation (5): n * n matrix products
    Y = np.einsum("ai,ijot,bj->otab", at, M.reshape(n, n, O, -1), at, optimize=True)      # (O, T, m, m)
    Y = Y.reshape(O, N, TH, TW, m, m).transpose(1, 0, 2, 4, 3, 5)
    return Y.reshape(N, O, TH * m, TW * m)[:, :, :H, :W]

x, w = rng.standard_normal((2, 5, 13, 18)), rng.standard_normal((3, 5, 3, 3))
want = conv2d(x, w, None, 1, 1)
for m in matrices:
    error = np.abs(conv_winograd(x, w, m) - want).max()
    assert error < 1e-11
    print(f"F({m}x{m}, 3x3): {(m + 2) ** 2} products for {m * m} outputs, {9 * m * m / (m + 2) ** 2:.2f} times fewer, "
          f"largest difference to nprcnn.ops {error:.0e}")

# %% [markdown]
# In float64 all three are exact, to rounding. And the saving grows with the tile. Why not take F(6x6), or F(20x20)?
#
# ## 8  The price: rounding
#
# Look at the entries of $B$ and $A$ again: they grow with the tile, as powers of the points. So $V$ and $M$ hold numbers
# much larger than $y$, which must cancel, and float32 keeps 24 bits of each. How much is lost? Random inputs, a ReLU
# before (as in the network), 64 channels, float32 against float64:

# %%
x = np.maximum(rng.standard_normal((1, 64, 36, 36)), 0).astype(np.float32)
w = (rng.standard_normal((32, 64, 3, 3)) / 24).astype(np.float32)
want = conv2d(x.astype(np.float64), w.astype(np.float64), None, 1, 1)
matrices[8] = winograd_matrices(8, (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), 4, -4))
matrices[10] = winograd_matrices(10, (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), 4, -4, Fraction(1, 4), Fraction(-1, 4)))
errors = {"im2col": conv2d(x, w, None, 1, 1) - want} | {f"F({m}x{m})": conv_winograd(x, w, m) - want for m in matrices}
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8))
largest = np.abs(want).max()
colours = ["#808080", course.GREEN, course.BACKWARD, course.PINK, course.YELLOW, course.FORWARD]
axes[0].bar(list(errors), [np.abs(e).max() / largest for e in errors.values()], color=colours)
axes[0].set(yscale="log", ylabel="largest error / largest y", title="float32 against float64")
axes[0].tick_params(axis="x", labelsize=8)
saved = {"im2col": 1.0} | {f"F({m}x{m})": 9 * m * m / (m + 2) ** 2 for m in matrices}
for (name, e), colour in zip(errors.items(), colours):
    axes[1].plot(saved[name], np.abs(e).max() / largest, "o", color=colour)
    axes[1].annotate(name, (saved[name], np.abs(e).max() / largest), xytext=(-5, 5 if name != "F(8x8)" else -12),
                     textcoords="offset points", fontsize=8, ha="right")
axes[0].set_ylim(1e-7, 1e-2)
axes[1].set(yscale="log", xlabel="times fewer products", title="accuracy against speed", xlim=(0, 7), ylim=(1e-7, 1e-2));
for name, e in errors.items():
    print(f"{name:9} {np.abs(e).max() / largest:.1e} of the largest output")

# %% [markdown]
# F(2x2) rounds about as much as im2col; F(4x4) about ten times as much (up to 2.3e-5 of the largest output with more
# channels: `python -m nprcnn.kernels.cpu.conv_errors` prints the table). The points of F(6x6) include ½ and −½, which are
# kind; but with F(8x8) one needs 4 and −4, and float32 is at its end. Each step also gains less: nine times fewer is the
# most there is.
#
# nprcnn takes **F(4x4)**: 1e-5 of the largest feature is far below what moves a box. F(6x6) would save another fifth on
# large maps, nothing on a RoI of 14 x 14 (exercise 2), and prepare 64 numbers a filter where F(4x4) prepares 36. For maps
# of few tiles, and for whoever sets `WINOGRAD_TILE = 2`, nprcnn takes F(2x2).
#
# Random numbers are kind. What if one pixel is a thousand times as large as the others? A direct convolution rounds
# *relative to what an output sees*. Winograd mixes the tile, so a large number spoils outputs that never see it:

# %%
x = rng.standard_normal((1, 16, 16, 16)).astype(np.float32)
x[0, :, 6, 6] *= 1000
w = (rng.standard_normal((8, 16, 3, 3)) / 12).astype(np.float32)
want = conv2d(x.astype(np.float64), w.astype(np.float64), None, 1, 1)
pictures = {"log10 of |y|": np.abs(want), "error of im2col": np.abs(conv2d(x, w, None, 1, 1) - want),
            "error of F(2x2)": np.abs(conv_winograd(x, w, 2) - want), "error of F(4x4)": np.abs(conv_winograd(x, w, 4) - want)}
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for ax, (title, values) in zip(axes, pictures.items()):
    picture = ax.imshow(np.log10(values[0].max(axis=0) + 1e-9), cmap="cividis", vmin=-7 if "error" in title else 0,
                        vmax=-2 if "error" in title else 4)
    ax.set(title=title, xticks=[], yticks=[])
    figure.colorbar(picture, ax=ax, shrink=0.7, label="log10" if "error" in title else "")

# %% [markdown]
# The bright 3 x 3 in the first picture is what sees the large pixel. In the last, a whole tile of 4 x 4 outputs has its
# rounding error: every tile that has the pixel among its 6 x 6 inputs. In the extreme, an infinite pixel makes NaN of
# a whole tile, for inf − inf is NaN. nprcnn's kernel looks for that and convolves again, by im2col: NaN and
# infinity then stand exactly where convolution puts them.
#
# ## 9  Backward, for free
#
# Three linear steps around a product, so by notebook 01 each goes back through its transpose:
#
# - `dx` is a convolution of `dy` with the filters turned round (notebook 02, equation 5): the same kernel, forward.
# - `dw`: forward is $Y = A^T M A$, $M = U V$ at each place, $U = G g G^T$. Backward, from `dY`:
#
# $$dM = A\, dY A^T, \qquad dU_{p\,o\,c} = \sum_t dM_{p\,o\,t}\, V_{p\,c\,t}, \qquad dg = G^T dU\, G . \tag{6}$$
#
# Again 36 products a tile: the gradient to the filters costs a quarter, too.

# %%
def grad_w_winograd(dy, x, m):
    """dy (N, O, H, W), x (N, C, H, W) -> dw (O, C, 3, 3); 3x3, stride 1, padding 1."""
    bt, g, at = (matrix.astype(x.dtype) for matrix in matrices[m])
    (N, C, H, W), O, n = x.shape, dy.shape[1], m + 2
    TH, TW = -(-H // m), -(-W // m)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1 + TH * m - H), (1, 1 + TW * m - W)))
    tiles = np.lib.stride_tricks.sliding_window_view(padded, (n, n), axis=(2, 3))[:, :, ::m, ::m].reshape(N, C, -1, n, n)
    V = np.einsum("ia,nctab,jb->ijcnt", bt, tiles, bt, optimize=True).reshape(n * n, C, -1)
    # forward: y = Y without what sticks out, so there dY is 0
    dY = np.pad(dy, ((0, 0), (0, 0), (0, TH * m - H), (0, TW * m - W)))
    dY = dY.reshape(N, O, TH, m, TW, m).transpose(1, 0, 2, 4, 3, 5).reshape(O, -1, m, m)
    # forward: Y = A^T M A
    dM = np.einsum("ai,otab,bj->ijot", at, dY, at, optimize=True).reshape(n * n, O, -1)
    # forward: M = U @ V
    dU = dM @ V.swapaxes(1, 2)
    # forward: U = G g G^T
    return np.einsum("ia,ijoc,jb->ocab", g, dU.reshape(n, n, O, C), g)

x, dy = rng.standard_normal((2, 5, 13, 18)), rng.standard_normal((2, 3, 13, 18))
for m in (2, 4, 6):
    difference = np.abs(grad_w_winograd(dy, x, m) - conv2d_grad_w(dy, x, (3, 5, 3, 3), 1, 1)).max()
    error = check_adjoint(lambda w: conv_winograd(x, w, m), lambda dy: grad_w_winograd(dy, x, m),
                          rng.standard_normal((3, 5, 3, 3)), dy)
    assert difference < 1e-10
    print(f"F({m}x{m}, 3x3): dw differs from nprcnn's by {difference:.0e}; adjoint test: {error:.0e}")

# %% [markdown]
# ## 10  How nprcnn does it
#
# What is between the NumPy version above and a fast one is where the numbers lie:
#
# 1. **Blocks of tiles.** V and M of the whole map would be 280 MB. A block of a few hundred tiles is transformed,
#    multiplied and transformed back before the next one.
# 2. **All images at once.** Tiles are counted through the batch. The mask head's hundred RoIs of 14 x 14 become 1600
#    tiles, and 36 wide products.
# 3. **A tile a lane.** Sixteen tiles are read so that the same number of each lies side by side: then $B^T d B$ is a few
#    sums of vectors. Where a tile's rows lie is looked up once for all channels (`conv_tiles.py`). The transforms write U and V in
#    the very order in which the product reads them (`conv_product.py`), so that nothing is copied in between, as a library's
#    product has to do.
# 4. **The memory is told.** A map's channels lie far apart. While one channel's tiles are transformed, the next one's are asked for
#    (`prefetch`); without that the transform of P2 takes 1.3 to 1.7 times as long.
# 5. **The end is fused.** Bias, batch norm, short cut and ReLU are done while the block is in the cache.
# 6. **The choice.** `choose_algorithm` knows when Winograd does not pay: few channels (the transforms cost as
#    much, and are used less often), few tiles (the filters' transform), strides.

# %%
if numba_is_here:
    cases = [("stem, 7x7 / 2", (1, 3, 800, 1216), (64, 3, 7, 7), 2, 3), ("bottleneck, 1x1", (1, 256, 200, 304), (64, 256, 1, 1), 1, 0),
             ("bottleneck, 3x3", (1, 64, 200, 304), (64, 64, 3, 3), 1, 1), ("short cut, 1x1 / 2", (1, 256, 200, 304), (512, 256, 1, 1), 2, 0),
             ("P2, 3x3", (1, 256, 200, 304), (256, 256, 3, 3), 1, 1), ("P6 in the RPN, 3x3", (1, 256, 13, 19), (256, 256, 3, 3), 1, 1),
             ("mask head, 100 RoIs", (100, 256, 14, 14), (256, 256, 3, 3), 1, 1), ("the demo's stem, 3x3", (8, 3, 128, 128), (16, 3, 3, 3), 1, 1)]
    for name, x_shape, w_shape, stride, padding in cases:
        print(f"{name:22} x {x_shape!s:20} w {w_shape!s:18} {compiled.choose_algorithm(x_shape, w_shape, stride, padding)}")

# %% [markdown]
# Now the whole ladder once more on real layers, nprcnn's compiled kernels against its NumPy functions, and against
# PyTorch if it is installed here:

# %%
torch = None
if importlib.util.find_spec("torch"):
    import torch
results = []
for name, x_shape, w_shape in (("bottleneck, 64", (1, 64, 200, 304), (64, 64, 3, 3)), ("bottleneck, 256", (1, 256, 50, 76), (256, 256, 3, 3)),
                               ("P3, 256", (1, 256, 100, 152), (256, 256, 3, 3)), ("mask head, 20 RoIs", (20, 256, 14, 14), (256, 256, 3, 3))):
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32) / 50
    ways = {"NumPy, im2col": lambda: conv2d(x, w, None, 1, 1)}
    if numba_is_here:
        ways["compiled, Winograd"] = lambda: kernels.conv2d(x, w, None, 1, 1)
    if torch:
        torch.set_num_threads(nprcnn.get_num_threads())
        tx, tw = torch.from_numpy(x), torch.from_numpy(w)
        ways["PyTorch"] = lambda: torch.nn.functional.conv2d(tx, tw, padding=1).numpy()
    expected = ways["NumPy, im2col"]()
    times = {}
    for way, function in ways.items():
        assert np.abs(function() - expected).max() < 1e-4 * np.abs(expected).max()
        times[way] = seconds(function, 3)
    results.append((name, times))
    print(f"{name:20}" + "".join(f"   {way} {t * 1e3:6.1f} ms" for way, t in times.items()))

# %% [markdown]
# For the record, all 81 convolutions of `maskrcnn_resnet50_fpn` at 800 x 1216, with bias and ReLU, one thread on an x86-64
# server with AVX2, processor time, PyTorch 2.13 (oneDNN, direct convolution) in the same process in turns. This table is
# from an earlier run; no cell of this notebook computes it, and its times do not compare with those above.
#
# | kind | layers | nprcnn | PyTorch | ratio |
# |---|---|---|---|---|
# | 3x3, stride 1 | 22 | 1.37 s | 3.22 s | 2.3 |
# | 3x3, mask head, 100 RoIs | 4 | 0.49 s | 1.14 s | 2.3 |
# | 1x1, stride 1 | 48 | 1.40 s | 1.59 s | 1.1 |
# | 1x1, stride 2 | 3 | 0.18 s | 0.18 s | 1.0 |
# | 3x3, stride 2 | 3 | 0.23 s | 0.21 s | 0.9 |
# | 7x7 stem | 1 | 0.10 s | 0.07 s | 0.7 |
# | **all** | 81 | **3.8 s** | **6.4 s** | **1.7** |
#
# The gain is where the algorithm is another one. Where both multiply directly, the two are close: a matrix product
# is a matrix product. RoIs of 14 x 14 could gain more: tiles of 4 cover 16 x 16, and exercise 2 counts what that wastes.
#
# ## Exercises
#
# The checks tell you what is wrong; the solutions are in [solutions/14_solutions.ipynb](solutions/14_solutions.ipynb).
#
# ### Exercise 1: two outputs, four products
#
# Write (2) with four products of a mix of inputs and a mix of taps. The check counts: products and quotients with plain
# numbers are free.
#
# <details><summary>Hint 1</summary>The four products stand in section 5.</details>
# <details><summary>Hint 2</summary>m1 = (d1 + d2) * ((g0 + g1 + g2) / 2) is one product: the 2 is a plain number.</details>

# %%
def two_outputs(d0, d1, d2, d3, g0, g1, g2):
    ...                                                   # your code; return y0, y1

check_two_outputs(two_outputs)

# %% [markdown]
# ### Exercise 2: what a map really saves
#
# A whole tile saves $9 m^2 / (m + 2)^2$. But tiles at the lower and right edge stick out. Return the number
# of products of direct convolution over those of F(m x m, 3x3), for a map of `height` x `width` outputs. Which $m$ is
# best for 14 x 14? For 7 x 7?
#
# <details><summary>Hint 1</summary>How many tiles stand along the height? Try 13 and 16 outputs with m = 4.</details>
# <details><summary>Hint 2</summary>-(-a // b) is a / b, rounded up. Every tile costs (m + 2)² products.</details>

# %%
def saving(height, width, m):
    ...                                                   # your code; return a number

check_saving(saving)

# %% [markdown]
# ### Exercise 3: a tile's way back
#
# Forward, $V = B^T d B$ for each tile. Write the backward: `dV` (T, n, n) and `BT` (n, n) give `dd` (T, n, n). (With
# it, and a scatter-add where tiles overlap, `dx` could be made from tiles directly.)
#
# <details><summary>Hint 1</summary>V[i, j] = sum over a, b of BT[i, a] d[a, b] BT[j, b]. With which factor does d[a, b] enter V[i, j]?</details>
# <details><summary>Hint 2</summary>dd[a, b] = sum over i, j of BT[i, a] dV[i, j] BT[j, b]. As matrices?</details>

# %%
def tiles_backward(dV, BT):
    ...                                                   # your code; return dd

check_tiles_backward(tiles_backward)

# %% [markdown]
# ## Summary
#
# - A layer is bounded by arithmetic or by memory; its intensity and the roofline say by which. 3x3 layers: arithmetic.
# - im2col does all the multiplications, so a matrix product's rate is its ceiling.
# - Winograd takes $(m + 2)^2$ products for $m^2$ outputs: evaluate at points, multiply, interpolate. F(4x4, 3x3) takes a
#   quarter.
# - It pays with rounding: about ten times that of im2col for F(4x4), more with many channels, and about im2col's own
#   for F(2x2); and it spreads over a tile.
# - Backward goes through the transposes of the same matrices, at the same saving.
# - The rest is where numbers lie in memory: blocks, a tile a lane, operands in the order in which they are read, a fused end.
#
# **Read next.** In the code: `kernels/README.md`, then `kernels/cpu/conv_winograd.py` and the files it names; `vectors.py` and
# `conv_product.py` are where the arithmetic is.
# Elsewhere: Lavin and Gray, arXiv 1509.09308; Blahut, *Fast Algorithms for Signal Processing*, chapter 5; Barabasz et
# al., arXiv 1803.10986, on points that round less.
