# %% [markdown]
# # 16  NMS as bits
#
# Non-maximum suppression walks down a list: whether a box stays depends on all that came before it. That looks like
# the opposite of what a GPU is good at. This notebook takes the walk apart into a large part that needs no order,
# and a small part that does, packs 64 answers into one number, and follows the threads that do it. You need no GPU:
# nprcnn runs the same CUDA files on your processor and counts what a GPU's memory would have to do. You need a C++
# compiler (`g++`); without one the cells that run CUDA are skipped.
#
# **You need:** notebooks [07](07_proposals_and_nms.ipynb) (NMS) and [15](15_roi_align_in_cuda.ipynb) (threads,
# warps, sectors, banks). **You will be able to:** find the parallel part of a sequential rule, work with words of
# bits, place the barriers of a kernel and say why each is there, and read `kernels/cuda/nms_*.cu`. About 60 minutes
# with the exercises.
#
# ## Where we are

# %%
import matplotlib.pyplot as plt
import numpy as np

import nprcnn
from nprcnn import course
from nprcnn.course.cuda import compiler_is_here, counts, cuda_source, numba_source
from nprcnn.course.cuda_nms import WALK, draw_block, draw_words, walk_with_barriers
from nprcnn.course.cuda_nms import check_barriers, check_put_out_by, check_settle
from nprcnn.data import Shapes
from nprcnn.kernels.cuda import launch, nms as cuda_nms
from nprcnn.kernels.cuda_on_cpu.inspection import inspect, report_lines, watched
from nprcnn.kernels.cuda_on_cpu.loader import LaunchError, Module
from nprcnn.ops.boxes import box_iou
from nprcnn.ops.nms import batched_nms, nms

course.style()
rng = np.random.default_rng(0)
compiler = compiler_is_here()
course.where_we_are("rpn", "roi_align")

# %% [markdown]
# On the dotted arrow, between the RPN and RoIAlign, and once more behind the box head. B is the number of boxes
# that come in.
#
# | array | shape | what it is |
# |---|---|---|
# | `boxes` | (B, 4) | sorted by descending score |
# | `mask` | (B, words) of 64 bits | row i: the boxes that box i puts out, if it is kept; words = B / 64, rounded up |
# | `removed` | (words,) | during the walk: a bit for each box that is out |
# | `keep` | (B,) bytes | 1 for a box that stays |
#
# Our boxes are real ones: what the RPN of the trained tiny model says about one scene, before NMS. Five levels of
# the pyramid; the first 300 boxes are P2's.

# %%
model, trace = nprcnn.maskrcnn_tiny(weights="shapes"), nprcnn.Trace()
model.predict(Shapes.held_out(60)[20][0], trace=trace)
all_boxes, all_scores = trace["rpn.proposals_before_nms"][0], trace["rpn.scores_before_nms"][0]
levels = np.repeat(np.arange(2, 7), [min(300, np.prod(trace[f"rpn.logits.p{k}"].shape[1:])) for k in range(2, 7)])   # (B,)
threshold = 0.7
order = np.argsort(-all_scores[:300], kind="stable")
boxes, scores = np.ascontiguousarray(all_boxes[:300][order]), all_scores[:300][order]      # P2, by descending score
print("all levels:", all_boxes.shape, " of which P2:", boxes.shape)
print("kept of P2:", len(nms(boxes, scores, threshold)))

# %% [markdown]
# ## 1  What needs an order, and what does not
#
# Let the boxes be sorted by descending score, and let $O_{ij}$ say that boxes i and j overlap by more than the
# threshold. Greedy NMS is then one equation, to be read from the first box to the last:
#
# $$\mathrm{keep}_j = \text{not any } i < j \text{ with } \mathrm{keep}_i \text{ and } O_{ij}. \tag{1}$$
#
# $\mathrm{keep}$ stands on both sides, and that is the order. But $O$ does not depend on $\mathrm{keep}$. So all of
# $O$ can be found first, every pair at the same time; what remains for the walk needs no arithmetic. The idea came
# with Faster R-CNN: `nms_kernel.cu` of the authors' code (py-faster-rcnn, 2015); torchvision still works so. In
# Python:

# %%
def nms_in_two_parts(boxes, threshold):
    """Equation (1): boxes (B, 4) by descending score -> keep (B,) bool."""
    overlaps = box_iou(boxes, boxes) > threshold          # (B, B): all pairs, in no order
    keep = np.ones(len(boxes), bool)
    for i in range(len(boxes)):                           # the walk, in order
        if keep[i]:
            keep[i + 1:] &= ~overlaps[i, i + 1:]
    return keep, overlaps

keep, overlaps = nms_in_two_parts(boxes, np.float64(threshold))
assert np.array_equal(np.flatnonzero(keep), nms(boxes, scores, threshold))
B = len(boxes)
pairs = B * (B - 1) // 2
print(f"pairs i < j: {pairs:,} IoUs. The walk: {B} steps, {keep.sum()} of which look at a row")
print(f"of these pairs, {np.triu(overlaps, 1).sum() / pairs:.1%} overlap too much")

# %% [markdown]
# **The price.** nprcnn's NumPy function drops boxes as it goes, and compares fewer pairs. More arithmetic, less
# waiting: a common bargain on a GPU. And $O$ must be stored between the two parts.

# %%
for count, where in ((1000, "one level of the paper's model at test time"), (12000, "one image of a C4 model in training")):
    sizes = {"IoUs, float32": 4 * count**2, "yes or no, a byte each": count**2, "a bit each": count * -(-count // 64) * 8}
    print(f"B = {count}, {where}: ", ",  ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))

# %% [markdown]
# ## 2  64 answers in one number
#
# A number of 64 bits, a **word**, holds 64 answers. What is needed of bits:
#
# | in C and in Python | what it does |
# |---|---|
# | `1 << b` | the number whose only bit is bit b |
# | <code>word &#124;= 1 &lt;&lt; b</code> | sets bit b |
# | `word >> b & 1` | reads bit b |
# | <code>out &#124;= word</code> | everything that is set in one of the two: 64 boxes put out at once |
# | `~word` | every bit turned round |
#
# Box j is bit j % 64 of word j // 64. Here are the words of the first boxes, with 8 bits in a word, for printing.
# Bit 0 is printed first.

# %%
def mask_of(overlaps, bits=64):
    """overlaps (B, B) -> rows of ints: bit b of word c in row i says that box i, if kept, puts out box c * bits + b."""
    count = len(overlaps)
    mask = []
    for i in range(count):                                # in CUDA: a thread
        row = []
        for c in range(-(-count // bits)):                # in CUDA: a block
            word = 0
            for b in range(bits):
                j = c * bits + b
                if i < j < count and overlaps[i, j]:
                    word |= 1 << b
            row.append(word)
        mask.append(row)
    return mask

def text(word, bits=8):
    return "".join(".#"[word >> b & 1] for b in range(bits))

for i, row in enumerate(mask_of(overlaps[:24, :24], 8)[:16]):
    print(f"box {i:2}   {'  '.join(text(word) for word in row)}   as numbers {row}")

# %% [markdown]
# The walk (1) with words. It looks at one bit, and then puts out a whole row, 64 boxes with each `|=` or `|`:

# %%
def walk_aloud(mask, bits, steps):
    """The walk of equation (1), printed for the first `steps` boxes."""
    removed = [0] * len(mask[0])
    for i, row in enumerate(mask[:steps]):
        stays = not removed[i // bits] >> (i % bits) & 1
        if stays:
            removed = [a | b for a, b in zip(removed, row)]
        print(f"box {i:2} {'stays' if stays else 'is out':6}   removed:", "  ".join(text(word, bits) for word in removed))

walk_aloud(mask_of(overlaps[:24, :24], 8), 8, 8)

# %% [markdown]
# Here is the whole matrix of P2 with words of 64. Black: a pair that overlaps too much. Grey: words left of the
# diagonal, which nobody needs, because only boxes *after* i can be put out by i.

# %%
figure, axes = plt.subplots(figsize=(5, 5))
draw_words(axes, overlaps, 64, f"{B} boxes: {-(-B // 64)} words a row")

# %% [markdown]
# ## 3  The kernels
#
# One thread makes one word: row i, word c. A **block** of 64 threads makes the 64 words of a square of 64 x 64
# pairs. Its threads all need the same 64 column boxes, so each fetches one of them, into shared memory, for all.

# %%
print(cuda_source("nms_v1_bitmask.cu", "// Row i, word c"))

# %% [markdown]
# `ULL` makes the 1 a number of 64 bits; section 6 shows what happens without it. The division is not needed for the
# comparison (inter > limit · union would do), but it rounds as NumPy does: a box whose IoU lies within a rounding
# error of the threshold must not stay on one machine and go on another. For the same reason this file is compiled
# without fused multiply-add (one instruction for a · b + c, which rounds once where two instructions round twice).
#
# The walk is one block. All its threads walk together; each has every 64th word of `removed`.

# %%
print(cuda_source("nms_v1_bitmask.cu", "// The walk"))

# %% [markdown]
# The same two in Python, compiled for a GPU by Numba (`kernels/numba_cuda/nms.py`): line by line what you have just
# read, for those who do not write C. (`product` is the multiplication that is not fused.)

# %%
print(numba_source("nms.py", "nms_mask"))
print("\n")
print(numba_source("nms.py", "nms_reduce"))

# %% [markdown]
# Do they keep what NumPy keeps? NMS is compared exactly: one box more or less is wrong.

# %%
if compiler:
    for version in (1, 2):
        kept = cuda_nms.nms(all_boxes, all_scores, threshold, version=version)
        assert np.array_equal(kept, nms(all_boxes, all_scores, threshold))
        print(f"version {version}: {len(kept)} of {len(all_boxes)} boxes, the same as NumPy's, in the same order")

# %% [markdown]
# ## 4  Which thread touches what
#
# P2 has 300 boxes, 5 words a row, a grid of 5 x 5 blocks. We watch one block, row block 1 and column block 3, and
# in it thread 20. `boxes` has four numbers a box, so element // 4 is a box.

# %%
if compiler:
    with inspect(trace_block=1 * 5 + 3) as launches:
        cuda_nms.nms(boxes, scores, threshold, version=1)
    seen = [access for access in launches[0].trace if access.thread == 20]
    fetched, own = (sorted({a.index // 4 for a in seen if a.memory == "boxes" and a.line == line})
                    for line in sorted({a.line for a in seen if a.memory == "boxes"}))
    (written,) = {divmod(a.index, 5) for a in seen if a.memory == "mask"}
    shared = [a for a in seen if a.memory == "shared" and a.kind == "read"]
    print(f"thread 20 fetches box {fetched} for all, reads box {own} for itself, reads shared memory {len(shared)} times")
    print(f"and writes one word: row {written[0]}, word {written[1]}")

figure, axes = plt.subplots(figsize=(5.6, 5))
draw_words(axes, overlaps, 64, "blue: the pairs of one block; orange: thread 20's")
draw_block(axes, 1, 3, 64, 20)
arrow = dict(arrowstyle="->")
axes.annotate("column 212: the box that it fetches for all", (212, 127), (10, 240), fontsize=9, arrowprops=arrow)
axes.annotate("row 84: its own box", (191, 84), (10, 165), fontsize=9, arrowprops=arrow);

# %% [markdown]
# 256 numbers, 64 boxes of four, come from shared memory, and eight from global memory. Without shared memory each
# thread would fetch all 64 boxes from there. (Compilers may read a number twice, or once for two uses: another
# compiler may show another count.)
#
# ## 5  Three versions, counted
#
# For comparison, a version 0: the first thing that one would write. One thread a pair, one byte an answer, no
# shared memory. In the table, an access is one instruction of a warp; *asked* is what its threads read and wrote,
# *moved* whole sectors of 32 bytes.

# %%
VERSION_0 = """
__device__ bool overlap(const real* a, const real* b, real limit) {
    const real width = fmax(fmin(a[2], b[2]) - fmax(a[0], b[0]), real(0));
    const real height = fmax(fmin(a[3], b[3]) - fmax(a[1], b[1]), real(0));
    const real inter = width * height;
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter) > limit;
}
extern "C" __global__ void nms_pairs(const real* boxes, unsigned char* hits, int B, real limit) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x, i = k / B, j = k % B;
    if (k < B * B) hits[k] = j > i && overlap(boxes + 4 * i, boxes + 4 * j, limit);
}
extern "C" __global__ void nms_walk(const unsigned char* hits, unsigned char* keep, int B) {
    for (int j = threadIdx.x; j < B; j += blockDim.x) keep[j] = 1;
    __syncthreads();
    for (int i = 0; i < B; ++i) {
        if (keep[i])
            for (int j = i + 1 + threadIdx.x; j < B; j += blockDim.x)
                if (hits[i * B + j]) keep[j] = 0;
        __syncthreads();
    }
}"""
limit = np.float32(threshold)
if compiler:
    module = Module(VERSION_0, ["-Dreal=float"], mode="inspect")
    B, order = len(all_boxes), np.argsort(-all_scores, kind="stable")
    by_score = np.ascontiguousarray(all_boxes[order])                           # all five levels, as if they were one
    hits, keep = np.empty((B, B), np.uint8), np.empty(B, np.uint8)
    with inspect() as launches:
        watched(module.get_function("nms_pairs"))((-(-B * B // 256),), (256,), (by_score, hits, np.int32(B), limit))
        watched(module.get_function("nms_walk"))((1,), (64,), (hits, keep, np.int32(B)))
    assert np.array_equal(order[keep == 1], nms(all_boxes, all_scores, threshold))
    for version in (1, 2):
        with inspect() as found:
            cuda_nms.nms(all_boxes, all_scores, threshold, version=version)
        launches += found
    names = [f"v{k // 2} {one.kernel}" for k, one in enumerate(launches)]
    print(counts(launches, names))

# %% [markdown]
# From version 0 to 1 it is the **pairs** that gain: one store of a word in place of 64 stores of a byte, and boxes
# from shared memory. From 1 to 2 little changes there. Version 2 is about the **walk**, and about waiting, which
# these columns do not show.
#
# At a barrier all threads of a block wait for the slowest. Version 1 has two for each box. Version 2 takes 64 boxes
# at a time. Which of these 64 stay depends only on `removed` and on the 64 words of their own square on the
# diagonal; one thread settles that with a few operations on bits. Then all threads take over the rows of those that
# stay.
#
# (Why has version 0 one barrier a box, and version 1 two? In step i, version 0 reads the byte of box i and changes
# bytes of later boxes. In version 1 these are bits of the *same word*: somebody may still be reading it. Packing
# has its price.)

# %%
print(cuda_source("nms_v2_groups.cu", 'extern "C" __global__ void nms_reduce'))

# %% [markdown]
# The second gain is in `starts` and `blockIdx`: groups. The levels of the pyramid, or 80 classes, are independent
# walks, so each gets a block of its own, in *one* launch (one start of a kernel from the host). To count barriers, we
# patch a counter into the kernels' text: nothing forbids that.

# %%
def count_barriers(file, arguments, words):
    """Run the walk of a file with a counter at each barrier; arguments: before `words` and after `mask`."""
    head, tail = launch.source(file).split("void nms_reduce(")
    tail = tail.replace("__syncthreads();", "if (threadIdx.x == 0) barriers[blockIdx.x]++; __syncthreads();")
    counted = Module(head + "void nms_reduce(int* barriers, " + tail, ["-Dreal=float"]).get_function("nms_reduce")
    barriers = np.zeros(1, np.int32)
    counted((1,), (64,), (barriers, mask, *arguments, np.int32(words)), shared_mem=8 * words)
    return int(barriers[0])

if compiler:
    B, words = len(by_score), -(-len(by_score) // 64)
    mask, keep = np.zeros((B, words), np.uint64), np.empty(B, np.uint8)
    make_mask = Module(launch.source("nms_v1_bitmask"), ["-Dreal=float"]).get_function("nms_mask")
    make_mask((words, words), (64,), (by_score, mask, np.int32(B), np.int32(words), limit))
    barriers = [1 + B, count_barriers("nms_v1_bitmask", (keep, np.int32(B)), words),      # version 0: see its text
                count_barriers("nms_v2_groups", (np.array([0, B], np.int32), keep), words)]
    with inspect() as one_by_one:                                               # NMS within each level
        for level in range(2, 7):
            cuda_nms.nms(all_boxes[levels == level], all_scores[levels == level], threshold, version=1)
    with inspect() as together:
        kept = cuda_nms.batched_nms(all_boxes, all_scores, levels, threshold)
    assert np.array_equal(kept, batched_nms(all_boxes, all_scores, levels, threshold))

# %%
if compiler:
    moved = [sum(one.total("sectors") for one in launches[2 * v:2 * v + 2]) * 32 / 2**10 for v in range(3)]
    stored = [hits.nbytes / 2**10, mask.nbytes / 2**10, mask.nbytes / 2**10]
    print("version   pairs stored KB   sectors moved KB   barriers of a walk   launches for 5 levels")
    for version, row in enumerate(zip(stored, moved, barriers, (2 * 5, len(one_by_one), len(together)))):
        print("   {}      {:12,.0f}   {:16,.0f}   {:18,}   {:12}".format(version, *row))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.3))
    titles = "pairs stored, KB", "sectors moved, KB", "barriers of a walk"
    for panel, values, title in zip(axes, (stored, moved, barriers), titles):
        panel.bar(["v0", "v1", "v2"], values, color=course.FORWARD)
        panel.bar_label(panel.containers[0], fmt="{:,.0f}", fontsize=8)
        panel.set(title=title, yscale="log", ylim=(min(values) / 3, max(values) * 4))

# %% [markdown]
# The axes are logarithmic. What these counts mean in time on a GPU: **not measured**. Each file's first lines will
# say so when it is.
#
# ### Conflicts, and a version of our own
#
# The table of section 5 has bank conflicts in `nms_mask`. Where do they come from? Line by line:

# %%
if compiler:
    mask_v1 = launches[2]
    print("\n".join(line for line in report_lines(mask_v1).split("\n") if "memory" in line or "shared" in line))

# %% [markdown]
# **Writing:** thread t writes `columns[t][k]`, so lanes are 4 words apart, and words 4 apart meet in 8 banks of 32:
# 4 passes for one. **Reading:** in most blocks all lanes read the same box, a broadcast. In those on the diagonal
# each thread begins at its own t + 1, so again the lanes are 4 words apart. The cure is to turn the tile:
# `columns[4][64]`, with neighbouring boxes in neighbouring words. Let us try.

# %%
if compiler:
    own = launch.source("nms_v1_bitmask")
    for old, new in (("columns[BITS][4]", "columns[4][BITS]"), ("columns[t][k] =", "columns[k][t] ="),
                     ("const real* other = columns[b];",
                      "const real other[4] = {columns[0][b], columns[1][b], columns[2][b], columns[3][b]};")):
        assert old in own
        own = own.replace(old, new)
    turned = np.zeros_like(mask)
    with inspect() as found:
        watched(Module(own, ["-Dreal=float"], mode="inspect").get_function("nms_mask"))(
            (words, words), (64,), (by_score, turned, np.int32(B), np.int32(words), limit))
    assert np.array_equal(turned, mask)
    for name, one in (("the file", mask_v1), ("turned", found[0])):
        passes, least = (one.total(field, shared=True) for field in ("passes", "least_passes"))
        print(f"{name:9} {least:,} accesses of shared memory in {passes:,} passes")

# %% [markdown]
# The same bits with no conflict. This is how a version 3 begins.
#
# ## 6  Planted bugs
#
# ### A bad shift
#
# `bits |= 1 << b` in place of `1ULL << b`. It compiles, and no access goes astray, so the inspector has nothing to
# say: it sees memory, not arithmetic. What finds it is the comparison with a reference, *bit by bit*:

# %%
if compiler:
    source = launch.source("nms_v1_bitmask")
    assert "1ULL << b" in source
    planted = Module(source.replace("1ULL << b", "1 << b"), ["-Dreal=float"], mode="inspect")
    kernel = watched(planted.get_function("nms_mask"))
    P2, words = np.int32(300), np.int32(5)
    right, wrong = np.zeros((300, 5), np.uint64), np.zeros((300, 5), np.uint64)
    make_mask((5, 5), (64,), (boxes, right, P2, words, limit))
    kernel((5, 5), (64,), (boxes, wrong, P2, words, limit))                     # no complaint
    worked_on = np.arange(5) >= np.arange(300)[:, None] // 64                   # words right of the diagonal
    print(f"wrong words: {np.count_nonzero(right != wrong)} of {worked_on.sum()}")
    few = np.zeros((31, 1), np.uint64), np.zeros((31, 1), np.uint64)
    make_mask((1, 1), (64,), (boxes, few[0], np.int32(31), np.int32(1), limit))
    kernel((1, 1), (64,), (boxes, few[1], np.int32(31), np.int32(1), limit))
    print(f"the first 31 boxes alone: {np.count_nonzero(few[0] != few[1])} wrong words of {len(few[0])}")
    differ = np.array([[word >> b & 1 for b in range(64)] for word in (right ^ wrong).ravel().tolist()])    # (words, 64)
    figure, axes = plt.subplots(figsize=(8, 1.8))
    axes.bar(range(64), differ.sum(axis=0), color=course.BACKWARD)
    axes.set(xlabel="bit", ylabel="words where\nit is wrong", xticks=range(0, 65, 8))

# %% [markdown]
# No bit is safe. Why: `1` is an int of 32 bits. Shifting it by 31 gives the smallest int, and made a word of 64
# bits, a negative number brings its sign along: bits 31 to 63 are all set. Shifting it by 32 or more has no meaning
# in C++; this processor takes b % 32, and so a hit in the second half sets a bit in the first. A GPU may do another
# thing. And with 31 boxes all is well: **test with sizes beyond one word, and not a multiple of it.**
#
# ### A missing barrier
#
# `nms_reduce` of version 2 has three barriers in its loop. We take out one at a time, run the kernel as it is, and
# then watched.

# %%
if compiler:
    head, tail = launch.source("nms_v2_groups").split("void nms_reduce(")
    pieces, starts = tail.split("__syncthreads();"), np.array([0, 300], np.int32)
    for k in range(1, len(pieces)):
        before, after = "__syncthreads();".join(pieces[:k]), "__syncthreads();".join(pieces[k:])
        broken = head + "void nms_reduce(" + before + after
        keep = np.empty(300, np.uint8)
        kernel = Module(broken, ["-Dreal=float"]).get_function("nms_reduce")
        kernel((1,), (64,), (right, starts, keep, words), shared_mem=40)
        same = np.array_equal(np.flatnonzero(keep), nms(boxes, scores, threshold))
        print(f"without barrier {k}: {keep.sum()} boxes kept, {'right' if same else 'wrong'}")
        try:
            kernel = watched(Module(broken, ["-Dreal=float"], mode="inspect").get_function("nms_reduce"))
            kernel((1,), (64,), (right, starts, keep, words), shared_mem=40)
            print("    the inspector: nothing")
        except LaunchError as problem:
            print("    the inspector:", str(problem).split(": ", 1)[1])

# %% [markdown]
# A barrier that can be missing without harm is the other side of the matter. Exercise 3 asks you to work out which
# barriers this walk needs, and why.
#
# ## 7  No gradient
#
# There is no backward pass here, and no gradient check. `keep` is a choice: move the boxes a little, and nothing
# changes, or a box jumps in or out.

# %%
first = nms(boxes, scores, threshold)
for size in (1e-4, 1e-2, 1.0):
    moved_boxes = [boxes + rng.uniform(-size, size, boxes.shape).astype(np.float32) for _ in range(20)]
    changed = sum(not np.array_equal(nms(some, scores, threshold), first) for some in moved_boxes)
    print(f"boxes moved by up to {size:g} pixels: in {changed} of 20 tries others are kept")

# %% [markdown]
# The derivative is 0 almost everywhere and does not exist at the jumps. So the boxes that are kept go on as
# constants (notebook 07, last section), and the kernels have no twin.
#
# ## Exercises
#
# Solutions are in `solutions/16_solutions.ipynb`. The first two are in Python, with ints, which have as many bits
# as you like.
#
# ### Exercise 1: who put it out?
#
# The question that one asks of a box that is missing. `mask[i][c]` are words of `bits` bits, as `mask_of` makes
# them, and `keep[i]` is 1 for a box that stays. Return the box that put out box j: the first one in the list that
# did. If nobody did, return -1.
#
# <details><summary>Hint 1</summary>Row i says whom box i puts out. You have a column: one bit in each of the rows above j.</details>
# <details><summary>Hint 2</summary>Box j is bit j % bits of word j // bits.</details>
# <details><summary>Hint 3</summary>A box that is out itself puts out nobody: test keep[i].</details>

# %%
def put_out_by(j, mask, keep, bits):
    ...                                                   # your code; return an int

check_put_out_by(put_out_by)

# %% [markdown]
# ### Exercise 2: settle one word
#
# The step of version 2 that one thread does alone. `removed` is the word of some boxes in a row, with a bit for
# each that boxes before them have put out. `diagonal[b]` is the word of box b among them: whom of *these* boxes it
# puts out. Return the word of those that stay: bit b is 1 if box b does. There are len(diagonal) boxes; all bits
# beyond them are 0.
#
# <details><summary>Hint 1</summary>Go through the boxes in order, with a word of all that are out so far.</details>
# <details><summary>Hint 2</summary>A box that is not out yet stays, and puts out those of its diagonal word.</details>
# <details><summary>Hint 3</summary>In Python ~out is a negative number. Set the bits of the boxes that stay one by one instead.</details>

# %%
def settle(removed, diagonal):
    ...                                                   # your code; return an int

check_settle(settle)

# %% [markdown]
# ### Exercise 3: the fewest barriers
#
# Here is the walk of version 2 for one group, with all its barriers taken out.

# %%
print("\n".join(f"{n:2}  {line}" for n, line in enumerate(WALK.split("\n"), 1)))

# %% [markdown]
# After which lines must a `__syncthreads();` stand? Find the fewest that are enough, for any order in which the
# warps run. After lines 9 to 13 none can stand: that is thread 0's own branch. Four places are worth a thought: **after
# line 5, 8, 14 and 18** (the last is the end of the loop). Who writes, and who reads what others have written:
#
# | variable | is written by | is read by |
# |---|---|---|
# | `removed[v]` | line 5: thread v % 64; line 18: each turn another | thread 0 in line 10; line 18, before it writes |
# | `diagonal[t]` | thread t: line 8 | thread 0 in line 12 |
# | `kept` | thread 0: line 13 | all threads in lines 15 and 18 |
#
# Between a write and another thread's read must stand a barrier, on *every* way from one to the other: also on the way
# from the end of the loop back to its beginning. And also between a read and the next write, which would come too
# early. One barrier may serve several variables. `try_barriers` runs the kernel with barriers of your choice, under the
# inspector. Predict first, then try.
#
# <details><summary>Hint 1</summary>Row by row, without the loop: which of the four places lies between line 8 and line 12? Which between 13 and 15?</details>
# <details><summary>Hint 2</summary>With these two in place, go round the loop: from line 18 to lines 10 and 18 of the next turn. Do you pass one of them?</details>
# <details><summary>Hint 3</summary>And what is overwritten: line 8 of the next turn overwrites diagonal, line 13 overwrites kept. Is there a barrier between the last read (line 12; line 18) and that?</details>

# %%
def try_barriers(lines):
    """What the inspector says to the kernel with a barrier after each of these lines."""
    count = 300
    keep = np.empty(count, np.uint8)
    kernel = watched(Module(walk_with_barriers(lines), mode="inspect").get_function("walk"))
    try:
        kernel((1,), (64,), (right, keep, np.int32(count), np.int32(5)), shared_mem=40)
    except LaunchError as problem:
        return str(problem)
    return f"no race, {keep.sum()} boxes kept"

if compiler:
    print(try_barriers([14]))

# %%
def barriers():
    ...                                                   # your answer; return the numbers of lines

check_barriers(barriers)

# %% [markdown]
# ## Summary
#
# - Equation (1) splits: the overlaps of all pairs need no order and get a thread each; the walk needs one, but no
#   arithmetic.
# - 64 answers in a word: an eighth of the bytes of a byte each, and 64 boxes put out by one `|=`.
# - What a block's threads all need, they fetch once, into shared memory. How it lies there decides about conflicts.
# - A walk in steps of 64 has three barriers for 64 boxes, where the simple one has two for each. Groups go into one
#   launch.
# - A barrier belongs between a write and another thread's read, and nowhere else. The inspector finds one that is
#   missing; a shift that is wrong it does not see, a comparison beyond one word does.
#
# **Read next.** In this course: [17 Convolution in four versions](17_convolution_in_cuda.ipynb). In the code:
# `kernels/cuda/nms.py`, which sorts, launches and checks. Elsewhere: `lib/nms/nms_kernel.cu` of py-faster-rcnn;
# `nms_kernel.cu` of torchvision.
