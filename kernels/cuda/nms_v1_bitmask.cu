// NMS, version 1: first all pairs at once, a bit each; then one walk over the boxes.
//
// Whether box i overlaps box j too much does not depend on what is kept, so a grid of threads finds out about all pairs first: 64
// answers fit into one number, a word. Then the greedy rule needs only words: one block walks down the boxes, and for each that is
// still in, it puts the boxes of its row out.  Boxes come sorted by descending score.
//
// Compiled without fused multiply-add: IoUs that tie must stay ties, as in NumPy.
//
// measured: not yet on a GPU
#define BITS 64
typedef unsigned long long word;

// Row i, word c, bit b: box i, if kept, suppresses box c * 64 + b. Only boxes after i; words left of the diagonal are not written.
extern "C" __global__ void nms_mask(
        const real* __restrict__ boxes,  // (B, 4) by descending score
        word* __restrict__ mask,         // (B, words)
        int B, int words, real limit) {
    // grid: (words, words), block: 64 threads
    const int row_block = blockIdx.y, column_block = blockIdx.x, t = threadIdx.x;
    if (column_block < row_block) return;
    __shared__ real columns[BITS][4];
    const int count = min(B - column_block * BITS, BITS);
    if (t < count)
        for (int k = 0; k < 4; ++k) columns[t][k] = boxes[(column_block * BITS + t) * 4 + k];
    __syncthreads();

    const int i = row_block * BITS + t;
    if (i >= B) return;
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

// The walk, by one block. Two barriers a box: everybody must have read `removed` before anybody changes it.
extern "C" __global__ void nms_reduce(
        const word* __restrict__ mask,      // (B, words)
        unsigned char* __restrict__ keep,   // (B,), 1 for a box that stays
        int B, int words) {
    extern __shared__ word removed[];       // (words,): a bit a box
    for (int w = threadIdx.x; w < words; w += blockDim.x) removed[w] = 0;
    __syncthreads();
    for (int i = 0; i < B; ++i) {
        const bool stays = !(removed[i / BITS] >> (i % BITS) & 1);
        __syncthreads();
        if (stays)
            for (int w = i / BITS + threadIdx.x; w < words; w += blockDim.x) removed[w] |= mask[i * words + w];
        if (threadIdx.x == 0) keep[i] = stays;
        __syncthreads();
    }
}
