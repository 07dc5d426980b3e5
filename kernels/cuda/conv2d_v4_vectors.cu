// Convolution, version 4: vector loads and double buffering. float32, depth (C * KH * KW) a multiple of 4,
// at most 32 taps (KH * KW); version 3 does the rest.
//
// What changes against version 3:
//  - 8 x 8 results a thread: 16 numbers from shared memory for 64 multiplications, and they come as four float4, four loads.
//  - Where each k of the depth lies in the input is read from a table that the host makes once, and which taps are in the padding is
//    found out before the loop: no divisions and few comparisons in it.
//  - Two buffers: while a tile is multiplied, the next one is already on its way from global memory, first into registers, then into
//    the other buffer. One barrier a step, not two.
//  - The gradient to the filters is below. For it the two tables change their parts: a thread has the same taps in every step, and reads
//    where the step's pixels lie.
// The gradient to the data is the forward kernel with turned filters (conv2d.py).
//
// measured: not yet on a GPU
#define TILE 128  // rows and columns of a block's tile
#define DEPTH 8   // of one step
#define PAD 4     // to rows of both tiles: the four numbers that a thread puts below one another then lie in different banks

// 8 x 8 products of one step. Rows and columns of a thread: 4 * threadIdx + 0..3, and the same 64 further on.
__device__ __forceinline__ void multiply_step(const float (*a)[TILE + PAD], const float (*b)[TILE + PAD], float (&sum)[8][8]) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        const float4 a0 = *(const float4*)&a[k][threadIdx.y * 4], a1 = *(const float4*)&a[k][threadIdx.y * 4 + 64];
        const float4 b0 = *(const float4*)&b[k][threadIdx.x * 4], b1 = *(const float4*)&b[k][threadIdx.x * 4 + 64];
        const float from_a[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
        const float from_b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
        for (int u = 0; u < 8; ++u)
#pragma unroll
            for (int v = 0; v < 8; ++v) sum[u][v] += from_a[u] * from_b[v];
    }
}

// The row or column, 0..127, of number 0..7 of a thread.
__device__ __forceinline__ int place(int thread, int u) { return thread * 4 + u % 4 + u / 4 * 64; }

// grid: (ceil(N * OH * OW / 128), ceil(O / 128)), block: (16, 16)
extern "C" __global__ void __launch_bounds__(256, 2) conv2d(
        const float* __restrict__ x,     // (N, C, H, W)
        const float4* __restrict__ w,    // (O, C * KH * KW / 4) vectors
        const float* __restrict__ b,     // (O,)
        const int2* __restrict__ table,  // (C * KH * KW): (c * H * W + i * dil_h * W + j * dil_w, i * KW + j)
        float* __restrict__ y,           // (N, O, OH, OW)
        CONV_SHAPE_PARAMETERS) {
    __shared__ __align__(16) float tile_a[2][DEPTH][TILE + PAD], tile_b[2][DEPTH][TILE + PAD];
    const int t = threadIdx.y * 16 + threadIdx.x, depth = C * KH * KW, pixels = N * OH * OW;

    // What this thread fetches in each step. Of A: the four k from a_k on, in row a_row. Of B: column b_column, four rows 2 apart.
    const int a_row = t / 2, a_k = t % 2 * 4, b_column = t % TILE, b_k = t / TILE;
    const int o = blockIdx.y * TILE + a_row, p = blockIdx.x * TILE + b_column;
    // Its column of B is one output pixel, so all about the padding is known before the loop
    const Patch patch = patch_of(p, CONV_SHAPE);

    float4 next_a;
    float next_b[4];
    auto fetch = [&](int k0) {
        next_a = o < O && k0 + a_k < depth ? w[(o * depth + k0 + a_k) / 4] : make_float4(0, 0, 0, 0);
#pragma unroll
        for (int u = 0; u < 4; ++u) {
            const int k = k0 + b_k + 2 * u;
            next_b[u] = 0;
            if (k < depth) {
                const int2 tap = table[k];
                if (patch.inside >> tap.y & 1) next_b[u] = x[patch.corner + tap.x];
            }
        }
    };
    auto put = [&](int buffer) {
        tile_a[buffer][a_k][a_row] = next_a.x;
        tile_a[buffer][a_k + 1][a_row] = next_a.y;
        tile_a[buffer][a_k + 2][a_row] = next_a.z;
        tile_a[buffer][a_k + 3][a_row] = next_a.w;
#pragma unroll
        for (int u = 0; u < 4; ++u) tile_b[buffer][b_k + 2 * u][b_column] = next_b[u];
    };

    float sum[8][8] = {};
    int buffer = 0;
    fetch(0);
    put(buffer);
    __syncthreads();
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        const bool more = k0 + DEPTH < depth;
        if (more) fetch(k0 + DEPTH);  // on its way while we multiply
        multiply_step(tile_a[buffer], tile_b[buffer], sum);
        buffer ^= 1;
        if (more) put(buffer);        // nobody reads this one: all have passed the barrier below since it was multiplied
        __syncthreads();
    }

    // Four columns that lie side by side are one vector of y, if images are made of whole vectors
    const int image_size = OH * OW;
    const bool whole = image_size % 4 == 0;
#pragma unroll
    for (int u = 0; u < 8; ++u) {
        const int row = blockIdx.y * TILE + place(threadIdx.y, u);
        if (row >= O) continue;
        const float bias = b[row];
#pragma unroll
        for (int v = 0; v < 8; v += 4) {
            const int column = blockIdx.x * TILE + place(threadIdx.x, v);
            float* to = y + (column / image_size * O + row) * image_size + column % image_size;
            if (whole && column < pixels)
                *(float4*)to = make_float4(sum[u][v] + bias, sum[u][v + 1] + bias, sum[u][v + 2] + bias, sum[u][v + 3] + bias);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int c = column + i;
                if (!whole && c < pixels) y[(c / image_size * O + row) * image_size + c % image_size] = sum[u][v + i] + bias;
            }
        }
    }
}

// table[p] for each output pixel p: where its patch begins in x, its taps in the image, and where it lies in channel 0 of dy
extern "C" __global__ void pixel_table(int4* __restrict__ table, CONV_SHAPE_PARAMETERS) {
    const int p = thread_number(), image_size = OH * OW;
    if (p >= N * image_size) return;
    const Patch patch = patch_of(p, CONV_SHAPE);
    table[p] = make_int4(patch.corner, int(patch.inside), p / image_size * O * image_size + p % image_size, 0);
}

// grid: (ceil(C * KH * KW / 128), ceil(O / 128), parts of the pixels), block: (16, 16)
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_grad_w(
        const float* __restrict__ dy,     // (N, O, OH, OW)
        const float* __restrict__ x,      // (N, C, H, W)
        const int4* __restrict__ pixels,  // (N * OH * OW), of pixel_table
        const int2* __restrict__ table,   // (C * KH * KW), as above
        float* __restrict__ parts,        // (gridDim.z, O, C, KH, KW)
        CONV_SHAPE_PARAMETERS) {
    __shared__ __align__(16) float tile_a[2][DEPTH][TILE + PAD], tile_b[2][DEPTH][TILE + PAD];
    const int t = threadIdx.y * 16 + threadIdx.x, columns = C * KH * KW, image_size = OH * OW;
    int begin, stop;
    my_part(N * image_size, DEPTH, begin, stop);

    // What this thread fetches in each step: of one pixel, four numbers of dy and four of x. The eight lanes beside it have the pixels
    // beside it, so what they read lies side by side.
    const int k = t % DEPTH, first = t / DEPTH, o = blockIdx.y * TILE + first;
    int offset[4];          // of its taps, and their numbers, 8 bits each
    unsigned numbers = 0;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
        // beyond the last row or column stands the last one once more: its sums are not stored
        const int2 tap = table[min(int(blockIdx.x) * TILE + first + 32 * u, columns - 1)];
        offset[u] = tap.x;
        numbers |= unsigned(tap.y) << 8 * u;
    }

    float next_a[4], next_b[4];
    auto fetch = [&](int k0) {
        const bool there = k0 + k < stop;
        const int4 pixel = there ? pixels[k0 + k] : make_int4(0, 0, 0, 0);
#pragma unroll
        for (int u = 0; u < 4; ++u) {
            next_a[u] = there ? dy[pixel.z + min(o + 32 * u, O - 1) * image_size] : 0;
            next_b[u] = pixel.y >> (numbers >> 8 * u & 31) & 1 ? x[pixel.x + offset[u]] : 0;
        }
    };
    auto put = [&](int buffer) {
#pragma unroll
        for (int u = 0; u < 4; ++u) {
            tile_a[buffer][k][first + 32 * u] = next_a[u];
            tile_b[buffer][k][first + 32 * u] = next_b[u];
        }
    };

    float sum[8][8] = {};
    int buffer = 0;
    fetch(begin);
    put(buffer);
    __syncthreads();
    for (int k0 = begin; k0 < stop; k0 += DEPTH) {
        const bool more = k0 + DEPTH < stop;
        if (more) fetch(k0 + DEPTH);
        multiply_step(tile_a[buffer], tile_b[buffer], sum);
        buffer ^= 1;
        if (more) put(buffer);
        __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < 8; ++u) {
        const int row = blockIdx.y * TILE + place(threadIdx.y, u);
        if (row >= O) continue;
#pragma unroll
        for (int v = 0; v < 8; ++v) {
            const int column = blockIdx.x * TILE + place(threadIdx.x, v);
            if (column < columns) parts[(blockIdx.z * O + row) * columns + column] = sum[u][v];
        }
    }
}
