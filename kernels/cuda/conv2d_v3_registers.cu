// Convolution, version 3: each thread computes 4 x 4 results, in registers.
//
// What changes against version 2: a thread loads 4 numbers of A and 4 of B from shared memory and multiplies each with each: 8 loads
// for 16 multiplications, where version 2 needs 32. The tile of a block grows to 64 x 64, so each number fetched from global memory is
// used 64 times.
//
// measured: not yet on a GPU
#define TILE 64   // rows and columns of a block's tile
#define DEPTH 16  // of one step
#define PAD 2     // to rows of `a`: a warp fills 16 rows of two columns, and they then lie in 32 different banks
#define EACH 4    // rows and columns a thread, 16 apart: neighbouring threads have neighbouring columns

template <class Product>
__device__ __forceinline__ void multiply(const Product& product, real (*a)[TILE + PAD], real (*b)[TILE]) {
    const int rows = product.rows(), columns = product.columns(), row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
    const int t = threadIdx.y * 16 + threadIdx.x;
    int first, stop;
    my_part(product.depth(), DEPTH, first, stop);
    real sum[EACH][EACH] = {};
    for (int k0 = first; k0 < stop; k0 += DEPTH) {
        // 256 threads fetch 16 x 64 numbers of each matrix. A is turned: its column k becomes row k of `a`.
        for (int e = t; e < DEPTH * TILE; e += 256) {
            const int k = e % DEPTH, m = e / DEPTH;
            a[k][m] = row0 + m < rows && k0 + k < stop ? product.A(row0 + m, k0 + k) : real(0);
        }
        for (int e = t; e < DEPTH * TILE; e += 256) {
            const int n = e % TILE, k = e / TILE;
            b[k][n] = column0 + n < columns && k0 + k < stop ? product.B(k0 + k, column0 + n) : real(0);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            real from_a[EACH], from_b[EACH];
#pragma unroll
            for (int u = 0; u < EACH; ++u) {
                from_a[u] = a[k][threadIdx.y + 16 * u];
                from_b[u] = b[k][threadIdx.x + 16 * u];
            }
#pragma unroll
            for (int u = 0; u < EACH; ++u)
#pragma unroll
                for (int v = 0; v < EACH; ++v) sum[u][v] += from_a[u] * from_b[v];
        }
        __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < EACH; ++u)
#pragma unroll
        for (int v = 0; v < EACH; ++v) {
            const int row = row0 + threadIdx.y + 16 * u, column = column0 + threadIdx.x + 16 * v;
            if (row < rows && column < columns) product.store(row, column, sum[u][v]);
        }
}

// grid: (ceil(columns / 64), ceil(rows / 64), parts of the depth), block: (16, 16)
extern "C" __global__ void __launch_bounds__(256, 3) conv2d(
        const real* __restrict__ x, const real* __restrict__ w, const real* __restrict__ b, real* __restrict__ y, CONV_SHAPE_PARAMETERS) {
    __shared__ real tile_a[DEPTH][TILE + PAD], tile_b[DEPTH][TILE];
    multiply(Forward{x, w, b, y, CONV_SHAPE}, tile_a, tile_b);
}

extern "C" __global__ void __launch_bounds__(256, 3) conv2d_grad_x(
        const real* __restrict__ dy, const real* __restrict__ w, real* __restrict__ dx, CONV_SHAPE_PARAMETERS) {
    __shared__ real tile_a[DEPTH][TILE + PAD], tile_b[DEPTH][TILE];
    multiply(GradX{dy, w, dx, CONV_SHAPE}, tile_a, tile_b);
}

extern "C" __global__ void __launch_bounds__(256, 3) conv2d_grad_w(
        const real* __restrict__ dy, const real* __restrict__ x, real* __restrict__ parts, CONV_SHAPE_PARAMETERS) {
    __shared__ real tile_a[DEPTH][TILE + PAD], tile_b[DEPTH][TILE];
    multiply(GradW{dy, x, parts, CONV_SHAPE}, tile_a, tile_b);
}
