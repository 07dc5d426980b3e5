"""Non-maximum suppression as CUDA kernels in Python: the twins of the two in kernels/cuda/nms_v1_bitmask.cu.

Whether box i overlaps box j too much does not depend on what is kept, so a grid of threads finds out about all pairs first
(`nms_mask`): 64 answers fit into one number, a word. Then the greedy rule needs only words (`nms_reduce`): one block walks down the
boxes, and for each that is still in, it puts the boxes of its row out. Boxes come sorted by descending score.

What a kernel, a block and a grid are is said in roi_align.py. New here: `cuda.shared.array`, a small memory that the threads of one block
have in common, about as fast as a register, and `cuda.syncthreads()`, a *barrier*: no thread of the block goes on before all have arrived.
A thread that reads what another has written must have a barrier in between.
"""

import numpy as np
from numba import cuda, uint64

from .gpu import ZERO, blocks_for, to_device

BITS = 64       # in a word
MAX_BOXES = 48 * 1024 // 8 * BITS      # the bits of all boxes must fit into shared memory


@cuda.jit(device=True)
def product(a, b):
    """a * b, rounded, whatever comes next.

    The compiler turns `a * b + c` into one instruction that rounds once, and IoUs that tie in NumPy would tie no longer. Such an
    instruction with 0 for c is a plain product, which nothing more can be fused to.
    """
    return cuda.fma(a, b, ZERO)


@cuda.jit
def nms_mask(boxes, mask, limit):
    """Bit b of mask[i, c]: box i, if kept, suppresses box c * 64 + b. Only boxes after i; words left of the diagonal are not written.

    boxes (B, 4) by descending score, mask (B, words) uint64. Grid (words, words), block 64: a block compares 64 boxes with 64.
    """
    row_block, column_block, t = cuda.blockIdx.y, cuda.blockIdx.x, cuda.threadIdx.x
    if column_block < row_block:
        return
    B = boxes.shape[0]
    # Each of the block's threads needs the same 64 boxes: each fetches one, for all
    columns = cuda.shared.array((BITS, 4), boxes.dtype)
    count = min(B - column_block * BITS, BITS)
    if t < count:
        for k in range(4):
            columns[t, k] = boxes[column_block * BITS + t, k]
    cuda.syncthreads()

    i = row_block * BITS + t
    if i >= B:
        return
    x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
    area = product(x2 - x1, y2 - y1)
    bits = uint64(0)
    for b in range(t + 1 if row_block == column_block else 0, count):
        width = max(min(x2, columns[b, 2]) - max(x1, columns[b, 0]), ZERO)
        height = max(min(y2, columns[b, 3]) - max(y1, columns[b, 1]), ZERO)
        inter = product(width, height)
        other_area = product(columns[b, 2] - columns[b, 0], columns[b, 3] - columns[b, 1])
        union = area + other_area - inter
        if union > ZERO and inter / union > limit:
            bits |= uint64(1) << uint64(b)
    mask[i, column_block] = bits


@cuda.jit
def nms_reduce(mask, keep):
    """The walk, by one block. Two barriers a box: everybody must have read `removed` before anybody changes it.

    mask (B, words) uint64, keep (B,) uint8: 1 for a box that stays
    """
    B, words = mask.shape
    removed = cuda.shared.array(0, uint64)      # (words,): a bit a box. 0: the launch says how many bytes
    for w in range(cuda.threadIdx.x, words, cuda.blockDim.x):
        removed[w] = uint64(0)
    cuda.syncthreads()
    for i in range(B):
        stays = ((removed[i // BITS] >> uint64(i % BITS)) & uint64(1)) == 0
        cuda.syncthreads()
        if stays:
            for w in range(i // BITS + cuda.threadIdx.x, words, cuda.blockDim.x):
                removed[w] |= mask[i, w]
        if cuda.threadIdx.x == 0:
            keep[i] = stays
        cuda.syncthreads()


def _largest_not_above(threshold, dtype):
    """`iou > threshold` in double precision, as torchvision compares on a CPU, is `iou > limit` in the dtype."""
    limit = dtype.type(threshold)
    return limit if np.float64(limit) <= np.float64(threshold) else np.nextafter(limit, dtype.type(-np.inf))


def nms(boxes, scores, iou_threshold):
    """Indices (K,) int64 of the boxes (N, 4) that survive, by descending score (N,). Signature of nprcnn.ops.nms."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"NMS needs boxes (N, 4) and scores (N,), got {boxes.shape} and {scores.shape}")
    if len(boxes) > MAX_BOXES:
        raise ValueError(f"NMS of {len(boxes)} boxes; at most {MAX_BOXES} fit into shared memory, a bit each")
    order = np.argsort(-scores, kind="stable")
    if len(order) == 0:
        return order.astype(np.int64)
    words = blocks_for(len(boxes), BITS)
    mask, keep = cuda.device_array((len(boxes), words), np.uint64), cuda.device_array(len(boxes), np.uint8)
    nms_mask[(words, words), BITS](to_device(boxes[order]), mask, _largest_not_above(iou_threshold, boxes.dtype))
    # blocks, threads, stream, bytes of shared memory. A thread a word, while they last: in the simulator each idle one costs time
    nms_reduce[1, min(BITS, words), 0, 8 * words](mask, keep)
    return order[keep.copy_to_host() == 1].astype(np.int64)
