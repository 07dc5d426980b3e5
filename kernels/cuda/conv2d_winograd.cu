// Convolution by Winograd's minimal filtering, F(4x4, 3x3): 3x3 filters, stride 1, float32; only if asked for.
//
// What changes against version 4: a quarter of the multiplications. A tile of 4 x 4 outputs needs 6 x 6 inputs; the inputs and the filter
// are mixed first, and then 36 products make 16 outputs, where the formula needs 16 * 9 = 144 (Lavin and Gray 2015, arXiv 1509.09308,
// section 4; derived in notebook 14 and at the top of kernels/cpu/conv_winograd_4x4.py):
//
//     Y = A^T [(G g G^T) * (B^T d B)] A          d (6, 6), g (3, 3), Y (4, 4); * number by number
//
// Over C channels the products are summed before A^T. So at each of the 36 places there is a matrix product, and all the work is in them:
//
//     filters     w (O, C, 3, 3)  -> U (36, C, O4)     G g G^T
//     inputs      x (N, C, H, W)  -> V (36, C, T4)     B^T d B, for the T tiles that cover y, counted through all images
//     products    U, V            -> M (36, O, T4)     M[i] = U[i]^T V[i]: 36 matrix products, tiles and registers as in version 4
//     outputs     M               -> y (N, O, OH, OW)  A^T m A + b
//
// O4 and T4 are O and T rounded up to multiples of 4, filled up with zeros: every row then is whole float4 vectors. And as the first two
// kernels write what the third one reads, they write it so that no tile has to be turned on its way into shared memory.
//
// Why 4x4 and not 2x2: F(2x2, 3x3) saves a factor of 2.25 instead of 4, and its V and M are larger, 16 numbers for 4 pixels instead of 36
// for 16. It rounds less; how much less, says kernels/cpu/conv_errors.py. An inf in x becomes NaN in its whole tile.
//
// measured: not yet on a GPU
#define TILE 128  // rows and columns of a block's tile
#define DEPTH 8   // of one step

// ---- the three small matrices: each function multiplies one vector, with the common sums taken once ----

__device__ __forceinline__ void times_g(const float g0, const float g1, const float g2, float (&u)[6]) {  // u = G g
    const float outer = -(g0 + g2) / 6, outer2 = (g0 + 4 * g2) / 24;
    u[0] = g0 / 4;
    u[1] = outer - g1 / 6;
    u[2] = outer + g1 / 6;
    u[3] = outer2 + g1 / 12;
    u[4] = outer2 - g1 / 12;
    u[5] = g2;
}

__device__ __forceinline__ void times_bt(float& d0, float& d1, float& d2, float& d3, float& d4, float& d5) {  // d = B^T d
    const float even = d4 - 4 * d2, odd = d3 - 4 * d1, even2 = d4 - d2, odd2 = 2 * (d3 - d1);
    d0 = 4 * d0 - 5 * d2 + d4;
    d5 = 4 * d1 - 5 * d3 + d5;
    d1 = even + odd;
    d2 = even - odd;
    d3 = even2 + odd2;
    d4 = even2 - odd2;
}

__device__ __forceinline__ void times_at(const float (&m)[6], float (&y)[4]) {  // y = A^T m
    const float sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum + sum2;
    y[1] = difference + 2 * difference2;
    y[2] = sum + 4 * sum2;
    y[3] = difference + 8 * difference2 + m[5];
}

// ---- filters ----
// grid: (ceil(O4 / 256), C), block: 256. A thread an (o, c).
extern "C" __global__ void winograd_filters(const float* __restrict__ w, float* __restrict__ U, int O, int C, int O4) {
    const int o = thread_number(), c = blockIdx.y;
    if (o >= O4) return;
    float rows[3][6], u[6];  // rows[j]: G times column j of g
#pragma unroll
    for (int j = 0; j < 3; ++j) {
        const float* g = w + (o * C + c) * 9 + j;
        if (o < O) times_g(g[0], g[3], g[6], rows[j]);
        else times_g(0, 0, 0, rows[j]);
    }
#pragma unroll
    for (int i = 0; i < 6; ++i) {
        times_g(rows[0][i], rows[1][i], rows[2][i], u);
#pragma unroll
        for (int j = 0; j < 6; ++j) U[((i * 6 + j) * C + c) * O4 + o] = u[j];
    }
}

// ---- inputs ----
// grid: (ceil(T4 / 256), C), block: 256. A thread a tile of a channel; neighbouring threads have neighbouring tiles.
extern "C" __global__ void winograd_inputs(
        const float* __restrict__ x, float* __restrict__ V,
        int C, int H, int W, int pad_h, int pad_w, int TH, int TW, int T, int T4) {
    const int t = thread_number(), c = blockIdx.y;
    if (t >= T4) return;
    const int y0 = t / TW % TH * 4 - pad_h, x0 = t % TW * 4 - pad_w;
    const float* plane = x + (t / TW / TH * C + c) * H * W;
    float d[6][6];
#pragma unroll
    for (int i = 0; i < 6; ++i)
#pragma unroll
        for (int j = 0; j < 6; ++j) {
            const int iy = y0 + i, ix = x0 + j;
            d[i][j] = t < T && iy >= 0 && iy < H && ix >= 0 && ix < W ? plane[iy * W + ix] : 0;
        }
#pragma unroll
    for (int j = 0; j < 6; ++j) times_bt(d[0][j], d[1][j], d[2][j], d[3][j], d[4][j], d[5][j]);
#pragma unroll
    for (int i = 0; i < 6; ++i) {
        times_bt(d[i][0], d[i][1], d[i][2], d[i][3], d[i][4], d[i][5]);
#pragma unroll
        for (int j = 0; j < 6; ++j) V[((i * 6 + j) * C + c) * T4 + t] = d[i][j];
    }
}

// ---- products ----
// grid: (ceil(T4 / 128), ceil(O / 128), 36), block: (16, 16)
extern "C" __global__ void __launch_bounds__(256, 2) winograd_products(
        const float4* __restrict__ U,  // (36, C, O4 / 4) vectors
        const float4* __restrict__ V,  // (36, C, T4 / 4) vectors
        float4* __restrict__ M,        // (36, O, T4 / 4) vectors
        int O, int C, int O4, int T4) {
    __shared__ __align__(16) float tile_u[2][DEPTH][TILE], tile_v[2][DEPTH][TILE];
    const int t = threadIdx.y * 16 + threadIdx.x, place = blockIdx.z;
    // In each step this thread fetches one vector of either matrix: row `k` of the step, vector number `at` of the tile
    const int k = t / 32, at = t % 32, row = blockIdx.y * TILE / 4 + at, column = blockIdx.x * TILE / 4 + at;
    float4 next_u, next_v;
    auto fetch = [&](int k0) {
        const int line = place * C + k0 + k;
        const bool inside = k0 + k < C;
        next_u = inside && row < O4 / 4 ? U[line * (O4 / 4) + row] : make_float4(0, 0, 0, 0);
        next_v = inside && column < T4 / 4 ? V[line * (T4 / 4) + column] : make_float4(0, 0, 0, 0);
    };
    auto put = [&](int buffer) {
        *(float4*)&tile_u[buffer][k][4 * at] = next_u;
        *(float4*)&tile_v[buffer][k][4 * at] = next_v;
    };

    float sum[8][8] = {};  // rows and columns of a thread: 4 * threadIdx + 0..3, and the same 64 further on
    int buffer = 0;
    fetch(0);
    put(buffer);
    __syncthreads();
    for (int k0 = 0; k0 < C; k0 += DEPTH) {
        const bool more = k0 + DEPTH < C;
        if (more) fetch(k0 + DEPTH);  // on its way while we multiply
#pragma unroll
        for (int step = 0; step < DEPTH; ++step) {
            const float *line_u = tile_u[buffer][step], *line_v = tile_v[buffer][step];
            const float4 u0 = *(const float4*)&line_u[threadIdx.y * 4], u1 = *(const float4*)&line_u[threadIdx.y * 4 + 64];
            const float4 v0 = *(const float4*)&line_v[threadIdx.x * 4], v1 = *(const float4*)&line_v[threadIdx.x * 4 + 64];
            const float from_u[8] = {u0.x, u0.y, u0.z, u0.w, u1.x, u1.y, u1.z, u1.w};
            const float from_v[8] = {v0.x, v0.y, v0.z, v0.w, v1.x, v1.y, v1.z, v1.w};
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[i][j] += from_u[i] * from_v[j];
        }
        buffer ^= 1;
        if (more) put(buffer);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int o = blockIdx.y * TILE + threadIdx.y * 4 + i % 4 + i / 4 * 64;
        if (o >= O) continue;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int to = blockIdx.x * TILE / 4 + threadIdx.x + 16 * j;
            if (to < T4 / 4)
                M[(place * O + o) * (T4 / 4) + to] = make_float4(sum[i][4 * j], sum[i][4 * j + 1], sum[i][4 * j + 2], sum[i][4 * j + 3]);
        }
    }
}

// ---- outputs ----
// grid: (ceil(T / 256), O), block: 256. A thread a tile of an output channel.
extern "C" __global__ void winograd_outputs(
        const float* __restrict__ M, const float* __restrict__ b, float* __restrict__ y,
        int O, int OH, int OW, int TH, int TW, int T, int T4) {
    const int t = thread_number(), o = blockIdx.y;
    if (t >= T) return;
    float columns[6][4];  // columns[j]: A^T times column j of m
#pragma unroll
    for (int j = 0; j < 6; ++j) {
        float m[6];
#pragma unroll
        for (int i = 0; i < 6; ++i) m[i] = M[((i * 6 + j) * O + o) * T4 + t];
        times_at(m, columns[j]);
    }
    const int y0 = t / TW % TH * 4, x0 = t % TW * 4;
    float* plane = y + (t / TW / TH * O + o) * OH * OW;
    const float bias = b[o];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (y0 + i >= OH) break;
        const float m[6] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]};
        float row[4];
        times_at(m, row);
        float* to = plane + (y0 + i) * OW + x0;
        if (OW % 4 == 0) *(float4*)to = make_float4(row[0] + bias, row[1] + bias, row[2] + bias, row[3] + bias);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (OW % 4 && x0 + j < OW) to[j] = row[j] + bias;
    }
}
