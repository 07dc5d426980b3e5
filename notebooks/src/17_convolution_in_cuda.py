# %% [markdown]
# # 17  Convolution in CUDA, in five versions
#
# Nearly all the arithmetic of a Mask R-CNN is convolution, and all of its fast versions do the same multiplications
# as the slow one. What differs is how often a number is fetched for them. This notebook follows one layer through
# five kernels: the formula, tiles in shared memory, tiles in registers, vectors and two buffers, tensor cores. A sixth,
# Winograd's, multiplies less often. Then it counts. You need no GPU: nprcnn runs the same CUDA files on your processor and counts what a GPU's memory would
# have to do. You need a C++ compiler (`g++`); without one the cells that run CUDA are skipped.
#
# **You need:** notebooks [02](02_convolution.ipynb) (im2col, and the gradients) and
# [15](15_roi_align_in_cuda.ipynb) (warps, sectors, banks). **You will be able to:** see a convolution as a matrix
# product that is never built, say what a tile saves and where, count loads for a multiplication, and read
# `kernels/cuda/conv2d*`. About 90 minutes with the exercises.
#
# ## Where we are

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import course
from nprcnn.course.cuda import compiler_is_here, counts, cuda_source, numba_source
from nprcnn.course.cuda_conv import check_grad_x_thread, check_place_in_x, check_smallest_pad, draw_fragments, draw_product
from nprcnn.gradcheck import GradientCheckError
from nprcnn.kernels.cuda import conv2d as cuda_conv, launch
from nprcnn.kernels.cuda_on_cpu.inspection import inspect, watched
from nprcnn.kernels.cuda_on_cpu.loader import LaunchError, Module
from nprcnn.ops.conv import conv2d, conv2d_grad_w, conv2d_grad_x

course.style()
rng = np.random.default_rng(0)
compiler = compiler_is_here()
course.where_we_are("resnet", "fpn", "rpn", "mask_head")

# %% [markdown]
# Our layer is a small one of the usual kind: 3x3 filters, stride 1.
#
# | array | shape | here | as a matrix |
# |---|---|---|---|
# | x | (N, C, H, W) | (1, 16, 18, 18), padded already | |
# | w | (O, C, KH, KW) | (128, 16, 3, 3) | A (O, K), K = C · KH · KW = 144 |
# | y | (N, O, OH, OW) | (1, 128, 16, 16) | result (O, P), P = N · OH · OW = 256 |
# | | | | B (K, P), the pixels: never built |
#
# (Padded already, so that no thread ever skips a product: all lanes of a warp then stay in step, and the counts are
# easy to follow. The kernels do padding, stride and dilation themselves; section 2 checks that.)

# %%
N, C, H, W, O = 1, 16, 18, 18, 128
x = rng.standard_normal((N, C, H, W), np.float32)
w = rng.standard_normal((O, C, 3, 3), np.float32) / 12
b = rng.standard_normal(O).astype(np.float32)
truth = conv2d(x, w, b)                                   # NumPy
K, P = C * 9, truth[:, 0].size
products = O * P * K
numbers = x.size + w.size + b.size + truth.size
print(f"y {truth.shape}: {products:,} multiplications")
print(f"{numbers:,} numbers come in or go out, so {products / numbers:.0f} multiplications for each")

# %% [markdown]
# ## 1  A matrix product
#
# The formula (notebook 02), with stride s and padding p:
#
# $$y_{n,o,h,v} = b_o + \sum_{c,i,j} w_{o,c,i,j}\; x_{n,\,c,\,hs+i-p,\,vs+j-p}. \tag{1}$$
#
# Count the taps $(c, i, j)$ with one number $k$, and the output's pixels $(n, h, v)$ with one number $q$:
#
# $$y_{o,q} = b_o + \sum_k A_{o,k}\, B_{k,q}. \tag{2}$$
#
# A is w as it lies in memory, and $B_{k,q}$ is the pixel that tap k of output q meets.
#
# im2col (Chellapilla et al. 2006) builds B, which is KH · KW times as large as x. An **implicit GEMM** (a general
# matrix multiplication; cuDNN: Chetlur et al. 2014, arXiv 1410.0759, section 3) only *works out where* $B_{k,q}$ *lies
# in x*, whenever it needs it. Naive, to step through:

# %%
def pixel(x, k, q, out_h, out_w, kernel=3):
    """B[k, q] of x (N, C, H, W), without padding, stride 1."""
    c, i, j = k // kernel**2, k // kernel % kernel, k % kernel
    n, h, v = q // (out_h * out_w), q // out_w % out_h, q % out_w
    return x[n, c, h + i, v + j]

A = w.reshape(O, K)
B = np.array([[pixel(x, k, q, 16, 16) for q in range(P)] for k in range(K)])       # only here, to look at it
y = A @ B + b[:, None]                                                              # (O, P)
assert np.abs(y.reshape(truth.shape) - truth).max() < 1e-5
print(f"B {B.shape}: {B.size / x.size:.1f} times the numbers of x. A @ B + b is what nprcnn computes")

# %% [markdown]
# ## 2  Version 1: the formula
#
# One thread a number of y. Its loops are the sum of equation (1).

# %%
print(cuda_source("conv2d_v1_naive.cu", "// grid: one thread a number of y"))

# %% [markdown]
# The same in Python, compiled for a GPU by Numba (`kernels/numba_cuda/conv2d.py`), for those who do not write C:

# %%
print(numba_source("conv2d.py", "conv2d_v1"))

# %% [markdown]
# The first four versions against NumPy, on our layer, and then on one with stride, padding, dilation and more images.
# Sums of 144 products in float32 come out a little different when they are added in another order.

# %%
if compiler:
    for version in (1, 2, 3, 4):
        y = cuda_conv.conv2d(x, w, b, version=version)
        error = np.abs(y - truth).max()
        odd = [rng.standard_normal(shape, np.float32) for shape in ((2, 4, 13, 11), (6, 4, 3, 3))]
        other = np.abs(cuda_conv.conv2d(*odd, None, 2, 2, 2, version=version) - conv2d(*odd, None, 2, 2, 2)).max()
        assert max(error, other) < 1e-4
        print(f"version {version}: largest difference {error:.0e}, with stride 2, padding 2, dilation 2: {other:.0e}")

# %% [markdown]
# Who reads what? On the left, the pixels of channel 0 that thread 100 reads; on the right, what the 32 lanes of its
# warp read in *one* load, and in grey the sectors of 32 bytes that the memory moves for it.

# %%
def watch(version):
    """The launch of a version, with each access of its block 0."""
    with inspect(trace_block=0) as launches:
        cuda_conv.conv2d(x, w, b, version=version)
    return launches[0]

if compiler:
    seen_by = {1: watch(1)}
    trace = seen_by[1].trace
    of_100 = [a.index for a in trace if a.thread == 100 and a.memory == "x" and a.index < H * W]
    lanes = [next(a.index for a in trace if a.thread == t and a.memory == "x") for t in range(96, 128)]
    filters = {a.index for a in trace if 96 <= a.thread < 128 and a.memory == "w"}
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
    for panel, seen, title in ((axes[0], of_100, "thread 100: channel 0"), (axes[1], lanes, "threads 96 to 127: one load")):
        rows, columns = np.divmod(np.array(seen), W)
        for sector in {index // 8 for index in seen}:
            for index in range(8 * sector, 8 * sector + 8):
                panel.add_patch(plt.Rectangle((index % W - 0.5, index // W - 0.5), 1, 1, facecolor="#dddddd"))
        panel.plot(columns, rows, "s", color=course.FORWARD, markersize=4)
        panel.set(title=title, xlabel="column of x", ylabel="row", aspect="equal",
                  xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))
    print(f"numbers of w that the warp reads: {len(filters)}, for {32 * K} products: all its lanes have the same filter")
    again = sum(a.memory == "x" and a.index == 6 * W + 6 for a in trace)
    print(f"how often block 0 fetches pixel (6, 6) of channel 0, for its one filter: {again} times")

# %% [markdown]
# 32 neighbouring threads have 32 neighbouring pixels, so sectors are well used. The trouble is another: *each*
# product fetches its two numbers again. Nine threads, one for each tap, fetch the same pixel; and all that for each
# of 128 filters.
#
# ## 3  The gradients, in float64
#
# The file has two more kernels of the same kind: a thread a number of dx, and a thread a number of dw. Each quotes
# the forward line that it turns round. Here are their loops.

# %%
print(cuda_source("conv2d_v1_naive.cu", "    for (int o = first_o"))
print(cuda_source("conv2d_v1_naive.cu", "    for (int n = 0; n < N"))

# %% [markdown]
# `real` is a macro: `-Dreal=double` compiles the same text for float64, and then differences can be compared with
# gradients (notebook 01). This is what version 1 stays for: every later one is checked against numbers that have
# passed this.

# %%
def cuda_forward(x, w, b, stride, padding):
    return cuda_conv.conv2d(x, w, b, stride, padding, version=1), (x, w, stride, padding)

def cuda_backward(dy, cache):
    x, w, stride, padding = cache
    dx = cuda_conv.conv2d_grad_x(dy, w, x.shape, stride, padding, version=1)
    dw = cuda_conv.conv2d_grad_w(dy, x, w.shape, stride, padding, version=1)
    return dx, dw, dy.sum(axis=(0, 2, 3))

small = [rng.standard_normal(shape) for shape in ((2, 3, 7, 6), (4, 3, 3, 3), (4,))]         # float64
if compiler:
    for stride, padding in ((1, 1), (2, 1), (3, 0)):
        for row in nprcnn.check_gradients(cuda_forward, cuda_backward, (*small, stride, padding)):
            print(f"stride {stride}, padding {padding}, {row.argument:26} relative error {row.relative:.0e}")

# %%
if compiler:
    dy = rng.standard_normal(truth.shape, np.float32)
    for version in (1, 2, 3, 4):
        dx = cuda_conv.conv2d_grad_x(dy, w, x.shape, version=version)
        dw = cuda_conv.conv2d_grad_w(dy, x, w.shape, version=version)
        errors = np.abs(dx - conv2d_grad_x(dy, w, x.shape)).max(), np.abs(dw - conv2d_grad_w(dy, x, w.shape)).max()
        assert max(errors) < 1e-3
        print(f"version {version}: largest difference of dx {errors[0]:.0e}, of dw {errors[1]:.0e}")

# %% [markdown]
# ## 4  Version 2: tiles
#
# In the product (2), row o of A is needed for all of P columns. If a block computes T x T results, it needs T rows
# of A and T columns of B, and each number of these is good for T results. Shared memory does not hold whole rows,
# so they come in pieces: T x T numbers of either matrix, multiply, the next. In NumPy, with a counter:

# %%
def tiled_product(A, B, T):
    """A (O, K) @ B (K, P), by tiles; also how many numbers were fetched."""
    result, fetched = np.zeros((len(A), B.shape[1]), A.dtype), 0
    for row in range(0, len(A), T):                       # in CUDA: blockIdx.y
        for column in range(0, B.shape[1], T):            # in CUDA: blockIdx.x
            total = 0
            for k in range(0, A.shape[1], T):
                tile_a = A[row:row + T, k:k + T].copy()   # into shared memory, a number a thread
                tile_b = B[k:k + T, column:column + T].copy()
                fetched += tile_a.size + tile_b.size
                total = total + tile_a @ tile_b           # T products a thread
            result[row:row + T, column:column + T] = total
    return result, fetched

for T in (1, 2, 4, 16):
    few = 4 if T <= 4 else O                              # of tiny tiles a few rows are enough to see it
    result, fetched = tiled_product(A[:few], B, T)
    assert np.abs(result - A[:few] @ B).max() < 1e-4
    print(f"tiles of {T:2} x {T:2}: {fetched / (few * P * K):.3f} numbers fetched for a multiplication")

# %% [markdown]
# 2 / T. In CUDA, with `product.A(m, k)` and `product.B(k, n)` for "where it lies" (`conv2d.cuh`):

# %%
print(cuda_source("conv2d_v2_tiles.cu", "template <class Product>"))
print(cuda_source("conv2d.cuh", "// The pixel of x"))

# %% [markdown]
# Two barriers a step: the first, so that nobody multiplies before all have fetched; the second, so that nobody
# fetches before all have multiplied. And beside it the Numba kernel:

# %%
print(numba_source("conv2d.py", "conv2d_v2"))

# %% [markdown]
# ## 5  Version 3: registers
#
# Now every multiplication takes two loads from *shared* memory. The same idea again, one storey up: a thread
# computes 4 x 4 results. For each k it loads 4 numbers of A and 4 of B into registers (the few numbers that a thread
# has for itself, faster than any memory) and multiplies each with each, 8 loads for 16 products. A block's tile
# grows to 64 x 64.

# %%
print(cuda_source("conv2d_v3_registers.cu", "    real sum[EACH][EACH]", "    }"))

# %% [markdown]
# ## 6  Version 4: vectors, a table, two buffers
#
# 8 x 8 results a thread, and three more things. **Vectors:** `float4` loads four numbers with one instruction. **A
# table:** where k lies in x does not depend on the thread, so the host works it out once, instead of a few
# divisions by each thread for each number. Here are its first rows:

# %%
sizes = cuda_conv.geometry(x.shape, w.shape, 1, 0, 1, 1)
print("k  (offset from a patch's corner, tap)")
for k, (offset, tap) in enumerate(cuda_conv.tap_table(np, sizes)[:11].tolist()):
    print(f"{k:2} ({offset}, {tap})")

# %% [markdown]
# The tap's number is for the padding: before the loop, each thread finds out which of its taps lie in the image, a
# bit each (notebook 16), and then a shift tells. **Two buffers:** while one tile is multiplied, the numbers of the
# next are already on their way from global memory, into registers; then they are put into the other buffer. Where
# nobody writes to what others read, one barrier a step is enough.

# %%
print(cuda_source("conv2d_v4_vectors.cu", "    float4 next_a", "    // Four columns"))

# %% [markdown]
# dw is a product of the same kind, with the output's pixels as its depth. There the two tables change their parts: a
# thread has the same four taps in every step, and reads from a table where the step's pixels lie (the second half of
# the file). dx needs no kernel: it is the forward one, with turned filters.
#
# What a block computes (pale blue), what it fetches in one step (dark), and which results are thread 83's (orange,
# taken from the trace):

# %%
if compiler:
    TILES, STEPS = {2: 16, 3: 64, 4: 128}, {2: 16, 3: 16, 4: 8}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9))
    for version, panel in zip((2, 3, 4), axes):
        seen_by[version] = watch(version)
        wide = 4 if version == 4 else 1                   # version 4 writes float4
        written = [a.index for a in seen_by[version].trace if a.thread == 83 and a.memory == "y"]
        results = [divmod(index + i, P) for index in written for i in range(wide)]
        tile, title = (TILES[version],) * 2, f"version {version}: results of a thread: {len(results)}"
        draw_product(panel, O, P, K, tile, STEPS[version], results, title)

# %% [markdown]
# ## 7  Version 5: tensor cores
#
# From compute capability 8.0 on (sm_80: A100, RTX 30 and later) a warp has an instruction for a whole small matrix
# product: $16 \times 8$ times $8 \times 8$, 1024 multiplications. The three matrices lie in the registers of the 32
# lanes, each lane holds a few numbers of each, its **fragments**. Which ones, NVIDIA's manual says (*PTX ISA*, "Matrix
# Fragments for mma.m16n8k8", type .tf32). With lane $= 4g + q$:

# %%
print(cuda_source("conv2d_v5_tensor_cores.cu", "// sum += A B, by a whole warp", "//     sum[0]"))

# %% [markdown]
# In the picture each cell says which lane has it, and the four lanes with the same $g$ have one colour. Outlined: what
# lane 6 holds ($g = 1$, $q = 2$), with the number of its register. Its four sums need two rows of A and two columns of B, so numbers of many other lanes. That is why the warp
# must come to this instruction as a whole.

# %%
figure, axes = plt.subplots(figsize=(6.6, 8.6))
draw_fragments(axes, lane=6)

# %% [markdown]
# In Python, to step through: 32 lanes, each with its registers.

# %%
def mma(sums, a, b):
    """sums (32, 4) += A B; a (32, 4) and b (32, 2): the fragments of 32 lanes."""
    for lane in range(32):                                # a GPU: all at once
        g, q = lane // 4, lane % 4
        for k in range(8):
            above = a[4 * g + k % 4, k // 4 * 2]          # A[g, k], from another lane's registers
            below = a[4 * g + k % 4, k // 4 * 2 + 1]      # A[g + 8, k]
            for j in (0, 1):
                right = b[4 * (2 * q + j) + k % 4, k // 4]               # B[k, 2 q + j]
                sums[lane, j] += above * right
                sums[lane, 2 + j] += below * right

g, q = np.divmod(np.arange(32), 4)
small_a, small_b = rng.integers(-9, 10, (16, 8)), rng.integers(-9, 10, (8, 8))
sums = np.zeros((32, 4), int)
mma(sums, np.stack([small_a[g, q], small_a[g + 8, q], small_a[g, q + 4], small_a[g + 8, q + 4]], axis=1),
    np.stack([small_b[q, g], small_b[q + 4, g]], axis=1))
product = small_a @ small_b
rows, columns = np.stack([g, g, g + 8, g + 8], axis=1), np.stack([2 * q, 2 * q + 1] * 2, axis=1)
assert (sums == product[rows, columns]).all()
print("every lane holds its four numbers of the product")

# %% [markdown]
# In the file there are two functions `mma`: one line of assembler for the GPU, and for the CPU the loop above. The
# kernel around it is version 4's. A block has 8 warps, a warp $64 \times 32$ results, so 4 x 4 small matrices:

# %%
print(cuda_source("conv2d_v5_tensor_cores.cu", "// The products of one step"))

# %% [markdown]
# **The price.** The instruction takes TF32: float32's range, but 10 bits behind the point in place of 23. Each number
# of x and w is rounded to the nearest of these. What comes out is the exact convolution of the *rounded* numbers, as
# far as float32 sums go:

# %%
def largest_error(y, right):
    """Over the largest right value."""
    return np.abs(y - right).max() / np.abs(right).max()

nearest = cuda_conv.round_to_tf32
exact = conv2d(x.astype(float), w.astype(float), b.astype(float))
of_rounded = conv2d(nearest(x).astype(float), nearest(w).astype(float), b.astype(float))
print(f"pi in TF32: {float(nearest(np.float32(np.pi))):.7f}, relative error {abs(float(nearest(np.float32(np.pi))) / np.pi - 1):.0e}; "
      f"at most 2^-11 = {2.0**-11:.0e}")
if compiler:
    y4, y5 = (cuda_conv.conv2d(x, w, b, version=version) for version in (4, 5))
    print(f"version 4: largest error {largest_error(y4, exact):.0e} of the largest number of y")
    print(f"version 5: largest error {largest_error(y5, exact):.0e};")
    print(f"           against the convolution of the rounded numbers {largest_error(y5, of_rounded):.0e}")
    assert largest_error(y5, of_rounded) < 1e-6 < 1e-5 < largest_error(y5, exact) < 2e-3

# %% [markdown]
# A network that was trained in float32 mostly forgives that, but its numbers are no longer those of notebook 18. So
# nprcnn never chooses version 5 by itself; `conv2d(..., version=5)` or `tf32=True` asks for it. (How the hardware
# rounds its sums NVIDIA does not say. Here they are float32's, so a GPU's last bits may differ.)
#
# Results of thread 83 once more, in pairs, 8 rows of 16 in its warp's part of the tile:

# %%
if compiler:
    seen_by[5] = watch(5)
    written = [a.index for a in seen_by[5].trace if a.thread == 83 and a.memory == "y"]
    results = [divmod(index + i, P) for index in written for i in (0, 1)]              # version 5 writes float2
    figure, axes = plt.subplots(figsize=(4.4, 3.9))
    draw_product(axes, O, P, K, (128, 128), 16, results, f"version 5: results of a thread: {len(results)}")

# %% [markdown]
# ## 8  Winograd: fewer multiplications
#
# Everything so far saves fetches. Notebook [14](14_winograd_on_the_cpu.ipynb) saves multiplications: 36 products for 4
# x 4 outputs of a 3x3 filter, in place of 144. On a GPU these are four kernels. Three mix numbers, and a thread has a
# whole tile in its registers; the third of the four is 36 matrix products, with the tiles of version 4. This one mixes
# the inputs:

# %%
print(cuda_source("conv2d_winograd.cu", "// ---- inputs", "}"))

# %% [markdown]
# Neighbouring threads have neighbouring tiles, so the 36 writes of a thread go to 36 places, each side by side with its
# neighbours'. Against version 4, on a layer with more pixels (16 channels, 32 x 64 outputs):

# %%
wide = rng.standard_normal((1, C, 34, 66), np.float32)
wide_sizes = cuda_conv.geometry(wide.shape, w.shape, 1, 0, 1, 1)
of_formula = 32 * 64 * O * K
of_winograd = 36 * O * C * (32 // 4) * (64 // 4)
print(f"multiplications: {of_formula:,} by the formula, {of_winograd:,} between the transforms: {of_winograd / of_formula:.2f}")
print(f"with those of the transforms: {cuda_conv.winograd_share(wide_sizes):.2f}")
if compiler:
    found, watched_by = {}, {}
    for version in (4, "winograd"):
        with inspect() as seen:
            found[version] = cuda_conv.conv2d(wide, w, b, version=version)
        watched_by[version] = list(seen)
    right = conv2d(wide.astype(float), w.astype(float), b.astype(float))
    print(counts(watched_by[4] + watched_by["winograd"], ["v4", *(one.kernel for one in watched_by["winograd"])]))
    print(f"largest error, over the largest number: v4 {largest_error(found[4], right):.0e}, "
          f"Winograd {largest_error(found['winograd'], right):.0e}")
    assert largest_error(found["winograd"], right) < 2e-5

# %% [markdown]
# A quarter of the products, and with them of the loads of shared memory. What it costs: the mixed numbers are written
# to global memory and read again, V and M, and they are 36 for 16. With 16 channels that is more than all the rest;
# with 256, where each number of V is good for 256 filters, the products weigh more. Whether it pays on a GPU has to be
# measured, and has not been: nprcnn takes it only where `winograd=True` asks. And it rounds more, as in notebook 14.
#
# ## 9  Counting
#
# The inspector has seen all launches of our layer. Here they are side by side. An access is one instruction of a warp;
# *asked* is what its threads read and wrote, *moved* whole sectors of 32 bytes.

# %%
if compiler:
    names = ["v1", "v2", "v3", "v4", "v5"]
    launches = [seen_by[version] for version in (1, 2, 3, 4, 5)]
    print(counts(launches, names))

# %%
if compiler:
    def loads(one, shared):
        """Loads of single threads for a multiplication."""
        return one.total("lanes", shared=shared, kinds=("read",)) / products

    moved = [one.total("sectors") * 32 / 2**20 for one in launches]
    passes = [one.total("passes", shared=True) for one in launches]
    print("version   loads for a multiplication: global   shared   MB moved   passes over shared memory")
    for version, one in enumerate(launches, 1):
        row = loads(one, False), loads(one, True), moved[version - 1], passes[version - 1]
        print(f"   {version}   " + "{:33.3f} {:8.3f} {:10.2f} {:20,}".format(*row))
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.8))
    axes[0].bar(names, moved, color=course.FORWARD)
    axes[0].axhline(numbers * 4 / 2**20, color="black", linestyle=":")
    axes[0].set(title="MB of sectors moved\n(dotted: all arrays once)", yscale="log", ylim=(0.1, 100))
    axes[1].bar(names, np.array(passes) / 1000, color=course.GREEN)
    axes[1].set(title="passes over shared memory,\nthousands")
    axes[1].text(0, 8, "none", ha="center", fontsize=8)
    bottom = np.array([loads(one, False) for one in launches])
    top = np.array([loads(one, True) for one in launches])
    axes[2].bar(names, bottom, color=course.FORWARD, label="global")
    axes[2].bar(names, top, bottom=bottom, color=course.GREEN, label="shared")
    axes[2].set(title="loads of a thread\nfor a multiplication")
    axes[2].legend(fontsize=8)

# %% [markdown]
# Version 2 moves the loads from global to shared memory, and does as many as before. Version 3 gets rid of most of
# these. Version 4 loads 16 numbers for 64 products, and four of them with each instruction. Version 5 loads 24 for 512,
# a number at a time: its warp shares what its lanes have loaded.
#
# Is that enough? While its memory delivers a byte, a GPU can do a certain number of operations. A kernel that has
# fewer to do for each byte waits for the memory. The dotted lines are the quotients of two figures from NVIDIA's
# data sheets: T4, 8.1 TFLOP/s in float32 and 320 GB/s; H200, 67 TFLOP/s and 4.8 TB/s, and with its tensor cores in
# TF32 495 TFLOP/s.

# %%
if compiler:
    ratio = [2 * products / (one.total("sectors") * 32) for one in launches]
    figure, axes = plt.subplots(figsize=(5.5, 2.8))
    axes.bar(names, ratio, color=course.FORWARD)
    axes.bar_label(axes.containers[0], fmt="{:.1f}", label_type="center", color="white")
    for name, balance in (("T4", 8.1e12 / 320e9), ("H200", 67e12 / 4.8e12), ("H200, TF32", 495e12 / 4.8e12)):
        axes.axhline(balance, color="black", linestyle=":", linewidth=1)
        axes.text(-0.45, balance * 1.08, f"{name}: {balance:.0f}", fontsize=8)
    axes.set(ylabel="operations for\na byte moved", yscale="log", ylim=(0.1, 250))
    print("two tiles of T x T alone, 2 T T T operations on 8 T T bytes:", {T: T / 4 for T in (1, 16, 64, 128)})

# %% [markdown]
# This counts without caches, which help version 1 most: its warps fetch the same pixels over and over. And our
# layer is small; with more filters and more pixels the borders of the tiles matter less. **Times on a GPU: not
# measured.** The first lines of each file will say them.
#
# ## 10  Two numbers more in a row
#
# Versions 3 and 4 turn A while they write it to shared memory, so a warp writes columns. Each file has a `PAD`, a
# few numbers at the end of every row that nobody uses. What happens with another one?

# %%
def with_pad(version, pad):
    """The passes over shared memory that a file's kernel takes with this PAD."""
    source = launch.source(cuda_conv.FILES[version])
    old = {3: "#define PAD 2 ", 4: "#define PAD 4 "}[version]
    assert old in source
    source, name = source.replace(old, f"#define PAD {pad} "), cuda_conv.FILES[version]
    kernel = Module(source, ["-Dreal=float"], mode="inspect", name=name).get_function("conv2d")
    table = (cuda_conv.tap_table(np, sizes),) if version == 4 else ()
    tile, y = {3: 64, 4: 128}[version], np.empty_like(truth)
    with inspect() as found:
        watched(kernel)((P // tile, O // tile), (16, 16), (x, w, b, *table, y, *map(np.int32, sizes)))
    assert np.abs(y - truth).max() < 1e-4                 # the same numbers, whatever the pad
    return found[0].total("passes", shared=True), found[0].total("least_passes", shared=True)

if compiler:
    for version, pads in ((3, (0, 1, 2)), (4, (0, 4))):
        for pad in pads:
            taken, least = with_pad(version, pad)
            print(f"version {version}, PAD {pad}: {taken:7,} passes, {taken - least:6,} of them for conflicts")
    try:
        with_pad(4, 2)
    except LaunchError as problem:
        print("version 4, PAD 2:", problem)

# %% [markdown]
# In version 4 the rows must also begin at multiples of 16 bytes, or a `float4` cannot be loaded. Exercise 2 asks
# for the rule.
#
# ## 11  A planted bug: the second barrier
#
# "All have fetched" is plain. The barrier *after* the multiplication is the one that gets forgotten. We take it out
# of version 2, and the one in the loop out of version 4.

# %%
if compiler:
    for version, barrier in ((2, 2), (4, 2)):
        pieces = launch.source(cuda_conv.FILES[version]).split("__syncthreads();")
        broken = "__syncthreads();".join(pieces[:barrier]) + "__syncthreads();".join(pieces[barrier:])
        table = (cuda_conv.tap_table(np, sizes),) if version == 4 else ()
        tile, y = cuda_conv.TILE[version], np.empty_like(truth)
        grid, arguments = (P // tile, O // tile), (x, w, b, *table, y, *map(np.int32, sizes))
        print(f"version {version} without its barrier number {barrier}")
        if version == 2:
            Module(broken, ["-Dreal=float"]).get_function("conv2d")(grid, (16, 16), arguments)
            print(f"    run: largest error {np.abs(y - truth).max():.1f}")
        try:
            watched(Module(broken, ["-Dreal=float"], mode="inspect").get_function("conv2d"))(grid, (16, 16), arguments)
        except LaunchError as problem:
            print("    the inspector:", str(problem).split(": ", 1)[1].replace(", conv2d", ",\n        conv2d"))

# %% [markdown]
# In version 2 thread 0 already fetches for the next step while others still multiply. On this machine threads of a
# block run one after another up to a barrier, so the error is large and always there. On a GPU warps are often nearly
# in step, and the result may be right most of the time, which is worse.
#
# ## Exercises
#
# Solutions are in `solutions/17_solutions.ipynb`.
#
# ### Exercise 1: a matrix that is not there
#
# Where does $B_{k,p}$ lie in x (N, C, H, W)? k counts the taps (c, i, j), p the output's pixels (n, oy, ox), each with
# the last one fastest. (p is the q of equation 2, and oy, ox are its h, v.) Return the position in x counted flat,
# ((n · C + c) · H + iy) · W + ix, or −1 if the tap lies in the padding. OH and OW are the output's sizes.
#
# <details><summary>Hint 1</summary>As with thread numbers: first take k and p apart, with quotients and remainders.</details>
# <details><summary>Hint 2</summary>Tap i of output row oy meets row oy · stride + i − padding.</details>
# <details><summary>Hint 3</summary>Test rows and columns, both sides: 0 ≤ iy < H and 0 ≤ ix < W.</details>

# %%
def place_in_x(k, p, C, H, W, KH, KW, OH, OW, stride, padding):
    ...                                                   # your code; return an int

check_place_in_x(place_in_x)

# %% [markdown]
# ### Exercise 2: the smallest pad
#
# Lane t of a warp writes `a[t % depth][t // depth]`. A row of `a` has `width` numbers and `pad` more. What is the
# smallest pad with which the 32 lanes need one pass? (Version 3: depth 16, width 64. Version 4: depth 8, width
# 128.)
#
# <details><summary>Hint 1</summary>Which word does lane t write? Rows are width + pad words apart.</details>
# <details><summary>Hint 2</summary>The bank is word % 32. One pass: 32 different banks.</details>
# <details><summary>Hint 3</summary>Try pad = 0, 1, 2, ... in a loop, with np.arange(32) for the lanes.</details>

# %%
def smallest_pad(depth, width):
    ...                                                   # your code; return an int

check_smallest_pad(smallest_pad)

# %% [markdown]
# ### Exercise 3: a bug on the way back
#
# One thread of the kernel for dx, in Python, with a planted bug. With stride 1 the gradient check is content. With
# stride 2 it is not.

# %%
def grad_x_thread(c, iy, ix, dy, w, stride, padding):
    """dx[c, iy, ix] of one image: dy (O, OH, OW), w (O, C, KH, KW)."""
    O, OH, OW = dy.shape
    total = 0.0
    for o in range(O):
        for i in range(w.shape[2]):
            up = iy + padding - i                         # forward: iy = oy * stride + i - padding
            oy = up // stride
            if up < 0 or oy >= OH:
                continue
            for j in range(w.shape[3]):
                left = ix + padding - j
                ox = left // stride
                if left < 0 or ox >= OW:
                    continue
                total += w[o, c, i, j] * dy[o, oy, ox]
    return total

def forward(x, w, stride, padding):
    return conv2d(x, w, None, stride, padding), (x.shape, w, stride, padding)

def backward(dy, cache):
    (_, C, H, W), w, stride, padding = cache
    dx = [grad_x_thread(*place, dy[0], w, stride, padding) for place in np.ndindex(C, H, W)]
    return np.reshape(dx, (1, C, H, W))

for stride in (1, 2):
    try:
        (row,) = nprcnn.check_gradients(forward, backward, (small[0][:1], small[1], stride, 1), wrt=[0])
        print(f"stride {stride}: relative error {row.relative:.0e}")
    except GradientCheckError as problem:
        print(f"stride {stride}: relative error {problem.rows[0].relative:.0e}: wrong")

# %% [markdown]
# Find it, repair it in the cell above, run that cell, and then this one. (The check stops at the first wrong
# number.)
#
# <details><summary>Hint 1</summary>Take one row, stride 2, 3 taps. Which input rows does output row 1 meet? Then ask it the other way round for input row 2 and each tap.</details>
# <details><summary>Hint 2</summary>// rounds down. For which up is the oy that comes out a true one?</details>
# <details><summary>Hint 3</summary>The CUDA kernel in section 3 has the two conditions that are missing.</details>

# %%
check_grad_x_thread(grad_x_thread)

# %% [markdown]
# ## Summary
#
# - A convolution is a matrix product A · B with B never built: k and p say where its numbers lie in x.
# - All versions multiply as often. What falls is the number of fetches: a tile of T x T fetches 2 / T numbers of
#   global memory for a product; a thread with 8 x 8 results loads 16 numbers of shared memory for 64.
# - A tensor core multiplies small matrices that a warp's lanes hold together. Its numbers have 10 bits behind the point.
# - Winograd's form has a quarter of the multiplications, and pays with memory and rounding.
# - `float4` is one instruction for four numbers, and wants addresses that are multiples of 16 bytes. A pad at the
#   end of each row keeps columns out of one bank.
# - Two buffers let the next tile travel while this one is multiplied, with one barrier a step.
# - Version 1 stays: it takes every shape and float64, and its gradient check is what the others are measured by.
#
# **Read next.** In this course: [14 Winograd on the CPU](14_winograd_on_the_cpu.ipynb), where its three matrices come
# from. In the code: `kernels/cuda/conv2d.py`, which chooses a version for a layer.
# Elsewhere: S. Boehm, *How to Optimize a CUDA Matmul Kernel* (2022), the same ladder for plain matrices; NVIDIA's
# CUTLASS, the ladder's top.
