# %% [markdown]
# # 15  RoIAlign in CUDA, one thread at a time
#
# On a GPU, RoIAlign is a function that computes *one number*, started 12 million times. This notebook reads that
# function, follows single threads through it, and then asks why the same arithmetic can be slow or fast: because of
# how 32 neighbouring threads meet the memory. You need no GPU. nprcnn compiles the same CUDA files for your
# processor and counts what a GPU's memory would have to do. You need a C++ compiler (`g++`); without one the cells
# that run CUDA are skipped.
#
# **You need:** notebook [08](08_roi_pool_and_roi_align.ipynb) (RoIAlign). **You will be able to:** read a CUDA kernel,
# say which memory its warps touch, find a race, and explain what versions 2 and 3 of a kernel gain. About 60 minutes
# with the exercises.
#
# ## Where we are

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from nprcnn import course
from nprcnn.course.cuda import check_passes, check_place, check_sectors, compiler_is_here, numba_source
from nprcnn.gradcheck import check_adjoint, check_gradients
from nprcnn.kernels.cuda import launch, roi_align as cuda_roi_align
from nprcnn.kernels.cuda_on_cpu.inspection import inspect, report, watched
from nprcnn.kernels.cuda_on_cpu.loader import LaunchError, Module
from nprcnn.ops.roi_align import roi_align

course.style()
rng = np.random.default_rng(0)
compiler = compiler_is_here()
course.where_we_are("roi_align")

# %% [markdown]
# The arrays are those of notebook 08. N images, C channels, (H, W) the size of the feature map, R RoIs, (OH, OW) bins:
#
# | array | shape | how the kernels see it |
# |---|---|---|
# | features | (N, C, H, W) | one row of numbers; (n, c, y, x) is number ((n C + c) H + y) W + x |
# | the same in version 3 | (N, H, W, C) | the channels of a pixel side by side |
# | rois | (R, 5) | the image's number, then x1, y1, x2, y2 in pixels |
# | y, dy | (R, C, OH, OW) | one thread a number |
#
# What is computed is section 3 of Mask R-CNN (arXiv 1703.06870, "RoIAlign"): a bin of the RoI is the mean of $s \times s$ points, each read
# by bilinear interpolation from four cells $p$ with weights $w_p$ (notebook [08](08_roi_pool_and_roi_align.ipynb), equations 1 and 2),
#
# $$y_{rcij} = \frac{1}{s^2} \sum_{\text{points}} \sum_{p} w_p\, F_{c,p}, \qquad
# \frac{\partial L}{\partial F_{c,p}} = \sum_{r, i, j} \frac{1}{s^2} \sum_{\text{points that read } p} w_p\, dy_{rcij} . \tag{1}$$
#
# The left sum has an owner: one $y_{rcij}$, one thread. The right one has none, for many bins have read the same cell. Section 5 is about that.
#
# ## 1  Threads, blocks, warps
#
# | word | what it is | here |
# |---|---|---|
# | kernel | the function that every thread runs | `roi_align` |
# | thread | one call of it; knows its `threadIdx` and `blockIdx` | one number of y |
# | block | threads that run on one multiprocessor (a GPU has dozens), share fast memory, and can wait for each other | 256 threads |
# | grid | all blocks; in no order | as many as y needs |
# | warp | 32 neighbouring threads of a block, its *lanes*, that do each step together | |
#
# Which number is whose? Threads are counted through the grid, and y (R, C, OH, OW) is counted in the order in which it
# lies in memory: the last index runs fastest,
#
# $$k = ((r\, C + c)\, OH + i)\, OW + j, \qquad k = \text{blockIdx} \cdot \text{blockDim} + \text{threadIdx} . \tag{2}$$
#
# Here is the whole first version, without its opening comment.

# %%
def show(file, first, last):
    lines = (launch.FOLDER / file).read_text().split("\n")
    print("\n".join(f"{n:3}  {line}" for n, line in enumerate(lines, 1) if first <= n <= last))

show("roi_align_v1_naive.cu", 7, 34)

# %% [markdown]
# And here is the same kernel in Python, which Numba compiles for a GPU (`kernels/numba_cuda/roi_align.py`). Lay the two
# side by side; if you do not write C, read this one.

# %%
print(numba_source("roi_align.py", "roi_align_v1"))

# %% [markdown]
# If you know `nprcnn/ops/roi_align.py` or notebook 08, there is little new. Two loops over the samples of one bin,
# and for each sample four pixels. `__global__` says "a kernel", `__restrict__` says that the arrays do not overlap, and
# `real` is `float` (or `double` for gradient checks). No loop over R, C, OH and OW: that is the grid.
#
# The first line of the body is the number of this thread. The last block has more threads than y needs, and the
# second line sends them home. Does it compute the same as NumPy?

# %%
features = rng.standard_normal((1, 64, 50, 76), np.float32)          # P3 of an image of 400 x 608, 64 channels of it
corner = rng.uniform(0, 1, (8, 2)) * [350, 180]
rois = np.hstack([np.zeros((8, 1)), corner, corner + rng.uniform(60, 200, (8, 2))]).astype(np.float32)   # (8, 5), pixels
if compiler:
    y = cuda_roi_align.roi_align(features, rois, 1 / 8, 7, version=1)             # compiled when first called
    error = np.abs(y - roi_align(features, rois, 1 / 8, 7)).max()
    assert error < 1e-5
    print(f"y {y.shape}: {y.size:,} threads. Largest difference to NumPy: {error:.0e}")

# %% [markdown]
# ## 2  One thread
#
# `inspect()` runs kernels so that every load and store is seen. `trace_block=0` keeps each access of the first block:
# who, in which line, which element.

# %%
if compiler:
    with inspect(trace_block=0) as launches:
        cuda_roi_align.roi_align(features, rois, 1 / 8, 7, version=1)
    trace = launches[0].trace
    of_thread_24 = [access for access in trace if access.thread == 24]
    for access in of_thread_24:
        print(f"{access.file}:{access.line}  {access.kind:5} {access.memory}[{access.index}]")

# %% [markdown]
# Thread 24 is bin (3, 3) of RoI 0 and channel 0: 24 = 3 · 7 + 3, the middle of the 7 x 7. It reads the RoI's four
# numbers and its image, then 2 x 2 samples of four pixels each, and writes one number. The orange frame is the RoI. In
# it, on the left, the pixels that the thread reads; on the right, those of its whole warp *in one step*: the 32 lanes
# at the first load of their first sample.

# %%
if compiler:
    def pixels(accesses):
        """(rows, columns) of what was read of channel 0."""
        return np.divmod(np.array([access.index for access in accesses if access.memory == "features"]), 76)

    first_load = [next(a for a in trace if a.thread == t and a.memory == "features") for t in range(32)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for panel, accesses, title in ((axes[0], of_thread_24, "thread 24: all its reads"), (axes[1], first_load, "a warp: its 32 lanes, one load")):
        rows, columns = pixels(accesses)
        for row, sector in {(r, c) for r, c in zip(rows, (rows * 76 + columns) // 8)}:     # a sector is 8 floats, all the map's rows in a row
            panel.add_patch(plt.Rectangle((sector * 8 - row * 76 - 0.5, row - 0.5), 8, 1, facecolor="#dddddd", edgecolor="white"))
        panel.plot(columns, rows, "s", color=course.FORWARD, markersize=4)
        x1, y1, x2, y2 = rois[0, 1:] / 8
        panel.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=course.BACKWARD))
        panel.set(title=title, xlabel="column of the feature map", xlim=(x1 - 9, x2 + 9), ylim=(y2 + 2, y1 - 2))
    axes[0].set(ylabel="row of the feature map")
    touched = {access.index // 8 for access in first_load}
    print(f"one load of the warp: 32 numbers, 128 bytes; sectors touched: {len(touched)}, {32 * len(touched)} bytes")

# %% [markdown]
# Blue is what is read, grey what the memory *moves*. Global memory moves **sectors** of 32 bytes, 8 floats. The 32
# lanes of a warp are served together: if their numbers lie side by side, 4 sectors are enough. Here the lanes are
# neighbouring bins, some pixels apart, and most of what is moved is not asked for. The arithmetic of RoIAlign is
# small, so these sectors are its price.
#
# ## 3  Three versions
#
# **Version 2** notes that all channels of a RoI have the same samples. A block takes one RoI, computes the samples'
# places and weights once, into `__shared__` memory, and waits at `__syncthreads()` until all of them are there.
# That saves arithmetic.
#
# **Version 3** goes for the sectors. First it turns the features into (N, H, W, C). Then the lanes of a warp are 32
# *channels* at one pixel: 32 numbers in a row.

# %%
if compiler:
    launches, names = [], []
    for version in (1, 2, 3):
        with inspect() as found:
            result = cuda_roi_align.roi_align(features, rois, 1 / 8, 7, version=version)
        assert np.abs(result - y).max() < 1e-5
        launches += found
        names += [f"v{version}  {one.kernel}" for one in found]
    print(report(launches, names))

# %%
if compiler:
    def reads_of_features(one):
        lines = [line for line in one.lines if line.memory == "features"]
        return sum(line.sectors for line in lines) / sum(line.accesses for line in lines)

    last = {name[:2]: one for name, one in zip(names, launches)}                     # for version 3 the second of its launches
    moved = [sum(one.total("sectors") for name, one in zip(names, launches) if name[:2] == version) * 32 / 2**20 for version in last]
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.4))
    axes[0].bar(list(last), [reads_of_features(one) for one in last.values()], color=course.FORWARD)
    axes[0].axhline(4, color="black", linestyle=":")
    axes[0].text(2, 4.4, "32 floats side by side", ha="center", fontsize=8)
    axes[0].set(title="a load of the features by a warp", xlabel="version", ylabel="sectors")
    axes[1].bar(list(last), moved, color=course.YELLOW)
    axes[1].set(title="all loads and stores, turning included", xlabel="version", ylabel="MB moved")
    print("sectors a load:", {name: round(reads_of_features(one), 1) for name, one in last.items()})

# %% [markdown]
# The columns of the table: *asked* is what threads read and wrote, *moved* whole sectors. *differs in a block* is how
# much of that is different memory for each block: what would be left if each multiprocessor's cache were perfect.
# *in all* is what would be left if the GPU's were. Real caches lie between. What this table cannot tell is time.
# No version of these kernels has been measured on a GPU yet; each file's first lines say so.
#
# Turning the features costs a read and a write of the whole map. With 8 RoIs that is a good part of what it saves;
# a network has 1000.
#
# ## 4  Shared memory, and a race
#
# What if somebody forgets the `__syncthreads()`? We take it out of version 2 and run it: as it is, and watched.

# %%
if compiler:
    broken = launch.source("roi_align_v2_shared_taps").replace("__syncthreads();", "", 1)
    arguments = (features, rois, np.empty_like(y), *map(np.int32, (64, 50, 76, 7, 7)), np.float32(1 / 8), *map(np.int32, (2, 0, 16)))
    Module(broken, ["-Dreal=float"]).get_function("roi_align")((8, 4), (256,), arguments)
    print(f"without the barrier: largest error {np.abs(arguments[2] - y).max():.1f}")

    kernel = watched(Module(broken, ["-Dreal=float"], mode="inspect").get_function("roi_align"))
    try:
        kernel((8, 4), (256,), arguments)
    except LaunchError as problem:
        print("the inspector:\n   ", str(problem).replace(": ", ":\n    ", 1))

# %% [markdown]
# Thread 0 went on before the others had written their taps. On this machine, threads of a block run one after another, so the result
# is plainly wrong; on a GPU it may be right a thousand times, and then not. That is why a tool that watches is worth
# more than a test that passes.
#
# Shared memory has its own rule. It consists of 32 **banks**, each 4 bytes wide; word w lies in bank w mod 32. A warp is
# served in one pass if its lanes want different banks, or the same word. Otherwise it takes as many passes as the
# busiest bank has different words: a *bank conflict*. Version 3 turns tiles of 32 x 32 through shared memory: it writes
# rows and reads columns. All 32 words of a column of such a tile lie in *one* bank. A tile 33 words wide, with one
# column that nobody uses, cures it.

# %%
show("roi_align_v3_channels_last.cu", 13, 27)

# %%
if compiler:
    turn = launch.source("roi_align_v3_channels_last")
    turned = np.empty((50 * 76, 64), np.float32)
    for width, code in (("33", turn), ("32", turn.replace("tile[TILE][TILE + 1]", "tile[TILE][TILE]"))):
        kernel = watched(Module(code, ["-Dreal=float"], mode="inspect").get_function("to_channels_last"))
        with inspect() as found:
            kernel((-(-50 * 76 // 32), 2, 1), (32, 8), (features, turned, np.int32(64), np.int32(50 * 76)))
        passes, least = found[0].total("passes", shared=True), found[0].total("least_passes", shared=True)
        print(f"a tile {width} wide: {least:,} accesses of shared memory, {passes:,} passes")
    assert np.array_equal(turned.T.reshape(64, 50, 76), features[0])

# %% [markdown]
# The same numbers come out, and one of the two needs 16 times the passes: writing a row takes 1 and reading a column 32.
#
# ## 5  Backward: who may add?
#
# Backward, each thread has one number of dy, and adds it, weighted, to the pixels that its forward has read. RoIs
# overlap, so several threads add to one pixel. `dx[p] += v` is three steps (read, add, write), and two threads can get
# in between each other: one addition is lost. `atomicAdd` does the three as one. What it does not give is an order,
# and float addition depends on it:

# %%
if compiler:
    dy = rng.standard_normal(y.shape, np.float32)
    gradients = {}
    for version in (1, 2):
        for order in ("0", "1", "2"):                          # threads start forwards, backwards, shuffled
            os.environ["CUDA_ON_CPU_ORDER"] = order
            gradients[version, order] = cuda_roi_align.roi_align_grad(dy, rois, features.shape, 1 / 8, 7, version=version)
        same = all(np.array_equal(gradients[version, "0"], gradients[version, order]) for order in "12")
        print(f"version {version}: the same bits whatever the order of threads: {same}")
    del os.environ["CUDA_ON_CPU_ORDER"]
    print(f"largest difference between orders, version 1: {max(np.abs(gradients[1, '0'] - gradients[1, o]).max() for o in '12'):.0e}")

# %% [markdown]
# Version 2 turns the question round: a thread owns one *pixel*, looks at every RoI in order, and collects. Nobody
# adds to what is not its own. It is the transpose of the two small matrices of notebook 08, read by columns. The
# price is that each pixel must look at each RoI.

# %%
if compiler:
    with inspect() as found:
        for version in (1, 2):
            cuda_roi_align.roi_align_grad(dy, rois, features.shape, 1 / 8, 7, version=version)
    print(report(found, ["v1  atomics", "v2  ordered"]))

# %% [markdown]
# Is it the gradient? The same two files once more, with `real` as double, against central differences, and the adjoint test
# $\langle dy, A F \rangle = \langle A^\top dy, F \rangle$ (notebook [01](01_what_a_backward_pass_is.ipynb)):

# %%
if compiler:
    few = features[:, :2, :20, :30].astype(float), rois[:3].astype(float) * 0.6      # float64, and small
    for version in (1, 2):
        def forward(F):
            return cuda_roi_align.roi_align(F, few[1], 1 / 8, 7, version=1), F.shape

        def backward(d, shape):
            return cuda_roi_align.roi_align_grad(d, few[1], shape, 1 / 8, 7, version=version)

        for row in check_gradients(forward, backward, (few[0],), wrt=[0]):
            print(f"backward version {version}: backward {row.analytic:+.6f}  forward {row.numeric:+.6f}  error {row.relative:.0e}")
        error = check_adjoint(lambda F: forward(F)[0], lambda d: backward(d, few[0].shape), few[0], rng.standard_normal((3, 2, 7, 7)))
        print(f"                    adjoint test: {error:.0e}")

# %% [markdown]
# ## Stop in a thread yourself
#
# `CUDA_ON_CPU_MODE=debug` compiles for a debugger, and then
# `break roi_align_v1_naive.cu:30 if threadIdx.x == 24` stops in thread 24.
# `kernels/cuda_on_cpu/README.md` shows a session.
#
# ## Exercises
#
# Solutions are in `solutions/15_solutions.ipynb`.
#
# ### Exercise 1: whose number?
#
# Thread k computes y[r, c, i, j] of y (R, C, OH, OW). Return r, c, i, j.
#
# <details><summary>Hint 1</summary>How many threads share one r? One r and c?</details>
# <details><summary>Hint 2</summary>j = k % OW. What counts k // OW?</details>

# %%
def place(k, C, OH, OW):
    ...                                                   # your code; return r, c, i, j

check_place(place)

# %% [markdown]
# ### Exercise 2: sectors
#
# `addresses` (lanes,) are the bytes at which the lanes' numbers begin, `size` is how many bytes each reads. How many
# sectors of 32 bytes does the warp touch?
#
# <details><summary>Hint 1</summary>Byte a lies in sector a // 32.</details>
# <details><summary>Hint 2</summary>A number need not lie in one sector. How many different sectors hold a first or a last byte?</details>

# %%
def sectors(addresses, size):
    ...                                                   # your code

check_sectors(sectors)

# %% [markdown]
# ### Exercise 3: bank conflicts
#
# `words` (32,) are the words of shared memory that the lanes want. How many passes does it take?
#
# <details><summary>Hint 1</summary>Lanes that want the same word share it.</details>
# <details><summary>Hint 2</summary>Count, for each bank, the different words that are wanted in it.</details>

# %%
def passes(words):
    ...                                                   # your code

check_passes(passes)

# %% [markdown]
# ## Summary
#
# - A kernel is the body of a loop over outputs; the grid is the loop. Threads find their place from their number.
# - A warp's 32 loads are served together, in sectors of 32 bytes: what neighbouring *threads* read should lie side by
#   side. Version 3 changes the layout so that it does.
# - Shared memory is for what a block needs more than once. Between writing and reading stands a barrier, and words that
#   a warp wants together should lie in different banks.
# - Where outputs meet (backward), either add atomically, in no order, or let each thread own a place and collect.
#
# **Read next.** In this course: [16 NMS as bits](16_nms_as_bits.ipynb). In the code: `kernels/cuda/README.md` lists the files.
# Elsewhere: NVIDIA's *CUDA C++ Programming Guide*, the chapters on memory; He et al., *Mask R-CNN*, arXiv 1703.06870, section 3.
