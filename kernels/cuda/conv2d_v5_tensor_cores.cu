// Convolution, version 5: tensor cores. TF32, from sm_80 on (A100, RTX 30); for the same layers as version 4, and only if asked for.
//
// What changes against version 4: a warp multiplies a 16 x 8 by an 8 x 8 matrix with one instruction, `mma`, 1024 multiplications at
// once. The price is accuracy: both matrices are rounded to TF32, which has float32's range but 10 bits of its 23 behind the point, an
// error of up to 2^-11 (5e-4) in each number. Sums stay float32.
//  - The 32 lanes of a warp hold the three small matrices together, each lane a few numbers of each: its fragments (below).
//  - A block has 2 x 4 warps, a warp 64 x 32 results: 4 x 4 small matrices. 24 numbers from shared memory for 512 multiplications.
//  - Both tiles keep k in the row, so that four numbers of global memory go there as one float4, and rows are padded to 20 numbers: the
//    8 rows x 4 columns that a warp loads at once for a fragment then lie in 32 different banks.
//  - Numbers are rounded once, on their way into shared memory.
// Tables, padding bits and the two buffers are those of version 4, and so are the ways to the two gradients.
//
// measured: not yet on a GPU
#define TILE 128  // rows and columns of a block's tile
#define DEPTH 16  // of one step
#define PAD 4     // to rows of both tiles

// The nearest TF32 number, of two equally near the one further from 0: the lower 13 of float32's bits become 0.
__device__ __forceinline__ float to_tf32(float value) {
#ifdef CUDA_ON_CPU
    const unsigned bits = __float_as_uint(value);
    const bool finite = (bits >> 23 & 255) != 255;
    return finite ? __uint_as_float((bits + 0x1000) & ~0x1fffu) : value;
#else
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return __uint_as_float(bits);
#endif
}

__device__ __forceinline__ float4 to_tf32(float4 v) { return make_float4(to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w)); }

// sum += A B, by a whole warp: A (16, 8), B (8, 8), sum (16, 8). What lane 4 g + q of the warp holds:
//
//     a[0], a[1], a[2], a[3] = A[g, q], A[g + 8, q], A[g, q + 4], A[g + 8, q + 4]
//     b[0], b[1] = B[q, g], B[q + 4, g]
//     sum[0], ..., sum[3] = sum[g, 2 q], sum[g, 2 q + 1], sum[g + 8, 2 q], sum[g + 8, 2 q + 1]
//
// A GPU has one instruction for it. The CPU plays it: each lane shows its numbers of A and B to the others, and adds up its four sums. The
// products of two TF32 numbers are exact in float32; in what order a GPU adds them, and how it rounds these sums, NVIDIA does not say.
#ifdef CUDA_ON_CPU
struct Fragments {
    float a[4], b[2];
};
CUDA_ON_CPU_UNSEEN __noinline__ void mma(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
    const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    Fragments of[32];
    engine_gather(&mine, sizeof mine, of, __LINE__);
    const int g = engine_lane() / 4, q = engine_lane() % 4;
    for (int k = 0; k < 8; ++k) {
        const float above = of[4 * g + k % 4].a[k / 4 * 2], below = of[4 * g + k % 4].a[k / 4 * 2 + 1];      // A[g, k], A[g + 8, k]
        const float left = of[4 * (2 * q) + k % 4].b[k / 4], right = of[4 * (2 * q + 1) + k % 4].b[k / 4];   // B[k, 2 q], B[k, 2 q + 1]
        sum[0] += above * left;
        sum[1] += above * right;
        sum[2] += below * left;
        sum[3] += below * right;
    }
}
#else
__device__ __forceinline__ void mma(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
    // volatile: all lanes must come here together, so the compiler must not move it behind a condition
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
                   "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#endif

// Where in the block's tile this lane's results lie: those of matrix (u, v) of its warp in rows row + 16 u and row + 16 u + 8, columns
// column + 8 v and the one after it.
struct Place {
    int g, q, first_row, first_column;  // lane 4 g + q; the tile of its warp
    __device__ int row() const { return first_row + g; }
    __device__ int column() const { return first_column + 2 * q; }
};
__device__ __forceinline__ Place place_of(int t) { return {t % 32 / 4, t % 4, t / 128 * 64, t / 32 % 4 * 32}; }

// The products of one step: a warp's 64 x 32 results. Rows of `b` are columns of B.
__device__ __forceinline__ void multiply_step(
        const float (*a)[DEPTH + PAD], const float (*b)[DEPTH + PAD], const Place& at, float (&sum)[4][4][4]) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        float from_b[4][2];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            const float* column = &b[at.first_column + 8 * v + at.g][k + at.q];
            from_b[v][0] = column[0];
            from_b[v][1] = column[4];
        }
#pragma unroll
        for (int u = 0; u < 4; ++u) {
            const float* above = &a[at.first_row + 16 * u + at.g][k + at.q];
            const float* below = &a[at.first_row + 16 * u + at.g + 8][k + at.q];
            const float from_a[4] = {above[0], below[0], above[4], below[4]};
#pragma unroll
            for (int v = 0; v < 4; ++v) mma(sum[u][v], from_a, from_b[v]);
        }
    }
}

// grid: (ceil(N * OH * OW / 128), ceil(O / 128)), block: (16, 16)
extern "C" __global__ void __launch_bounds__(256, 2) conv2d(
        const float* __restrict__ x,     // (N, C, H, W)
        const float4* __restrict__ w,    // (O, C * KH * KW / 4) vectors
        const float* __restrict__ b,     // (O,)
        const int2* __restrict__ table,  // (C * KH * KW): (c * H * W + i * dil_h * W + j * dil_w, i * KW + j)
        float* __restrict__ y,           // (N, O, OH, OW)
        CONV_SHAPE_PARAMETERS) {
    __shared__ __align__(16) float tile_a[2][TILE][DEPTH + PAD], tile_b[2][TILE][DEPTH + PAD];
    const int t = threadIdx.y * 16 + threadIdx.x, depth = C * KH * KW, pixels = N * OH * OW;

    // What this thread fetches in each step. Of A: four k from a_k on, in rows a_row and a_row + 64: a warp has whole sectors of 8 rows,
    // and the 8 lanes that write together write to 8 of them. Of B: eight k from b_k on, in column b_column.
    const int a_row = t % 8 + t / 32 * 8, a_k = t / 8 % 4 * 4, b_column = t % TILE, b_k = t / TILE * 8;
    const int o = blockIdx.y * TILE + a_row, p = blockIdx.x * TILE + b_column;
    const Patch patch = patch_of(p, CONV_SHAPE);

    float4 next_a[2];
    float next_b[8];
    auto fetch = [&](int k0) {
#pragma unroll
        for (int u = 0; u < 2; ++u)
            next_a[u] = o + 64 * u < O && k0 + a_k < depth ? w[((o + 64 * u) * depth + k0 + a_k) / 4] : make_float4(0, 0, 0, 0);
#pragma unroll
        for (int u = 0; u < 8; ++u) {
            const int k = k0 + b_k + u;
            next_b[u] = 0;
            if (k < depth) {
                const int2 tap = table[k];
                if (patch.inside >> tap.y & 1) next_b[u] = x[patch.corner + tap.x];
            }
        }
    };
    auto put = [&](int buffer) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
            *(float4*)&tile_a[buffer][a_row + 64 * u][a_k] = to_tf32(next_a[u]);
            const float4 four = make_float4(next_b[4 * u], next_b[4 * u + 1], next_b[4 * u + 2], next_b[4 * u + 3]);
            *(float4*)&tile_b[buffer][b_column][b_k + 4 * u] = to_tf32(four);
        }
    };

    const Place at = place_of(t);
    float sum[4][4][4] = {};
    int buffer = 0;
    fetch(0);
    put(buffer);
    __syncthreads();
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        const bool more = k0 + DEPTH < depth;
        if (more) fetch(k0 + DEPTH);  // on its way while we multiply
        multiply_step(tile_a[buffer], tile_b[buffer], at, sum);
        buffer ^= 1;
        if (more) put(buffer);
        __syncthreads();
    }

    // A lane's results come as pairs that lie side by side: one float2, if images are made of whole pairs
    const int image_size = OH * OW;
    const bool whole = image_size % 2 == 0;
#pragma unroll
    for (int u = 0; u < 8; ++u) {
        const int row = blockIdx.y * TILE + at.row() + 8 * u;
        if (row >= O) continue;
        const float bias = b[row];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            const int column = blockIdx.x * TILE + at.column() + 8 * v;
            const float first = sum[u / 2][v][u % 2 * 2] + bias, second = sum[u / 2][v][u % 2 * 2 + 1] + bias;
            float* to = y + (column / image_size * O + row) * image_size + column % image_size;
            if (whole && column < pixels) *(float2*)to = make_float2(first, second);
            if (!whole && column < pixels) *to = first;
            if (!whole && column + 1 < pixels) y[((column + 1) / image_size * O + row) * image_size + (column + 1) % image_size] = second;
        }
    }
}

// The table of pixels is version 4's. grid: (ceil(C * KH * KW / 128), ceil(O / 128), parts of the pixels), block: (16, 16)
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_grad_w(
        const float* __restrict__ dy,     // (N, O, OH, OW)
        const float* __restrict__ x,      // (N, C, H, W)
        const int4* __restrict__ pixels,  // (N * OH * OW): where its patch begins in x, its taps in the image, where it lies in dy
        const int2* __restrict__ table,   // (C * KH * KW), as above
        float* __restrict__ parts,        // (gridDim.z, O, C, KH, KW)
        CONV_SHAPE_PARAMETERS) {
    __shared__ __align__(16) float tile_a[2][TILE][DEPTH + PAD], tile_b[2][TILE][DEPTH + PAD];
    const int t = threadIdx.y * 16 + threadIdx.x, columns = C * KH * KW, image_size = OH * OW;
    int begin, stop;
    my_part(N * image_size, DEPTH, begin, stop);

    // What this thread fetches in each step: of pixels k and k + 8, four numbers of dy and four of x. A warp has 8 pixels side by side,
    // and every other row of 8 rows: with rows of 20 numbers these lie in 32 different banks.
    const int k = t % 8, first = t / 64 * 8 + t / 8 % 4 * 2 + t / 32 % 2, o = blockIdx.y * TILE + first;
    int offset[4];          // of its taps, and their numbers, 8 bits each
    unsigned numbers = 0;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
        // beyond the last row or column stands the last one once more: its sums are not stored
        const int2 tap = table[min(int(blockIdx.x) * TILE + first + 32 * u, columns - 1)];
        offset[u] = tap.x;
        numbers |= unsigned(tap.y) << 8 * u;
    }

    float next_a[2][4], next_b[2][4];
    auto fetch = [&](int k0) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int p = k0 + k + 8 * half;
            const int4 pixel = p < stop ? pixels[p] : make_int4(0, 0, 0, 0);
#pragma unroll
            for (int u = 0; u < 4; ++u) {
                next_a[half][u] = p < stop ? dy[pixel.z + min(o + 32 * u, O - 1) * image_size] : 0;
                next_b[half][u] = pixel.y >> (numbers >> 8 * u & 31) & 1 ? x[pixel.x + offset[u]] : 0;
            }
        }
    };
    auto put = [&](int buffer) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int u = 0; u < 4; ++u) {
                tile_a[buffer][first + 32 * u][k + 8 * half] = to_tf32(next_a[half][u]);
                tile_b[buffer][first + 32 * u][k + 8 * half] = to_tf32(next_b[half][u]);
            }
    };

    const Place at = place_of(t);
    float sum[4][4][4] = {};
    int buffer = 0;
    fetch(begin);
    put(buffer);
    __syncthreads();
    for (int k0 = begin; k0 < stop; k0 += DEPTH) {
        const bool more = k0 + DEPTH < stop;
        if (more) fetch(k0 + DEPTH);
        multiply_step(tile_a[buffer], tile_b[buffer], at, sum);
        buffer ^= 1;
        if (more) put(buffer);
        __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < 8; ++u) {
        const int row = blockIdx.y * TILE + at.row() + 8 * u;
        if (row >= O) continue;
#pragma unroll
        for (int v = 0; v < 8; ++v) {
            const int column = blockIdx.x * TILE + at.column() + v / 2 * 8 + v % 2;
            if (column < columns) parts[(blockIdx.z * O + row) * columns + column] = sum[u / 2][v / 2][u % 2 * 2 + v % 2];
        }
    }
}
