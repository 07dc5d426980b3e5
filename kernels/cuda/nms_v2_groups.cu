// NMS, version 2: many classes in one launch, and a walk in steps of 64 boxes.
//
// What changes against version 1: boxes come sorted by group (class or level), then by score. Each group has a mask and a block of its
// own, so 80 classes take as long as the largest. The walk resolves 64 boxes at a time: one thread decides among them, which needs only
// the diagonal word of each; then all threads put out what the kept ones suppress further on. Three barriers for 64 boxes, not for one.
//
// Compiled without fused multiply-add, as version 1.
//
// measured: not yet on a GPU
#define BITS 64
typedef unsigned long long word;

extern "C" __global__ void nms_mask(
        const real* __restrict__ boxes,  // (B, 4) by group, then by descending score
        const int* __restrict__ starts,  // (groups + 1,): group g is boxes starts[g] .. starts[g + 1] - 1
        word* __restrict__ mask,         // (B, words): bit b of word c in row i: box i suppresses number c * 64 + b of its group
        int words, real limit) {
    // grid: (words, words, groups), block: 64 threads
    const int start = starts[blockIdx.z], size = starts[blockIdx.z + 1] - start;
    const int row_block = blockIdx.y, column_block = blockIdx.x, t = threadIdx.x;
    if (column_block < row_block || column_block * BITS >= size) return;
    __shared__ real columns[BITS][4];
    const int count = min(size - column_block * BITS, BITS);
    if (t < count)
        for (int k = 0; k < 4; ++k) columns[t][k] = boxes[(start + column_block * BITS + t) * 4 + k];
    __syncthreads();

    if (row_block * BITS + t >= size) return;
    const int i = start + row_block * BITS + t;
    const real x1 = boxes[i * 4], y1 = boxes[i * 4 + 1], x2 = boxes[i * 4 + 2], y2 = boxes[i * 4 + 3];
    const real area = (x2 - x1) * (y2 - y1);
    word bits = 0;
    for (int b = row_block == column_block ? t + 1 : 0; b < count; ++b) {
        const real* other = columns[b];
        const real width = fmax(fmin(x2, other[2]) - fmax(x1, other[0]), real(0));
        const real height = fmax(fmin(y2, other[3]) - fmax(y1, other[1]), real(0));
        const real inter = width * height;
        const real other_area = (other[2] - other[0]) * (other[3] - other[1]);
        if (inter / (area + other_area - inter) > limit) bits |= 1ULL << b;
    }
    mask[i * words + column_block] = bits;
}

extern "C" __global__ void nms_reduce(
        const word* __restrict__ mask,     // (B, words)
        const int* __restrict__ starts,    // (groups + 1,)
        unsigned char* __restrict__ keep,  // (B,)
        int words) {
    // grid: (groups), block: at least 64 threads
    extern __shared__ word removed[];      // (words,)
    __shared__ word diagonal[BITS], kept;
    const int start = starts[blockIdx.x], size = starts[blockIdx.x + 1] - start, t = threadIdx.x;
    for (int w = t; w < words; w += blockDim.x) removed[w] = 0;
    for (int w = 0; w * BITS < size; ++w) {
        const int count = min(size - w * BITS, BITS), first = start + w * BITS;
        if (t < count) diagonal[t] = mask[(first + t) * words + w];
        __syncthreads();
        if (t == 0) {
            word out = removed[w];
            for (int b = 0; b < count; ++b)
                if (!(out >> b & 1)) out |= diagonal[b];
            kept = ~out;
        }
        __syncthreads();
        if (t < count) keep[first + t] = kept >> t & 1;
        for (int v = w + 1 + t; v * BITS < size; v += blockDim.x) {
            word out = removed[v];
            for (int b = 0; b < count; ++b)
                if (kept >> b & 1) out |= mask[(first + b) * words + v];
            removed[v] = out;
        }
        __syncthreads();  // `kept`, `diagonal` and `removed` are used again
    }
}
