// Convolution, version 2: tiles in shared memory.
//
// What changes against version 1: the sums are seen as a matrix product (conv2d.cuh), and a block of 16 x 16 threads computes a tile of
// 16 x 16 results. In each step it fetches a 16 x 16 tile of A and one of B into shared memory, a number a thread, and each number is
// then used 16 times. Global memory is read 16 times less; now shared memory is the limit, with two loads for one multiplication.
//
// measured: not yet on a GPU
#define T 16

template <class Product>
__device__ __forceinline__ void multiply(const Product& product, real (*a)[T], real (*b)[T]) {
    const int row = blockIdx.y * T + threadIdx.y, column = blockIdx.x * T + threadIdx.x;
    const int rows = product.rows(), columns = product.columns();
    int first, stop;
    my_part(product.depth(), T, first, stop);
    real sum = 0;
    for (int k = first; k < stop; k += T) {
        // threadIdx.x runs along the rows of both matrices, so that a warp's loads lie side by side
        a[threadIdx.y][threadIdx.x] = row < rows && k + threadIdx.x < stop ? product.A(row, k + threadIdx.x) : real(0);
        b[threadIdx.y][threadIdx.x] = column < columns && k + threadIdx.y < stop ? product.B(k + threadIdx.y, column) : real(0);
        __syncthreads();  // the tiles are there
        for (int i = 0; i < T; ++i) sum += a[threadIdx.y][i] * b[i][threadIdx.x];
        __syncthreads();  // nobody needs them any more
    }
    if (row < rows && column < columns) product.store(row, column, sum);
}

// grid: (ceil(columns / 16), ceil(rows / 16), parts of the depth), block: (16, 16)
extern "C" __global__ void conv2d(
        const real* __restrict__ x, const real* __restrict__ w, const real* __restrict__ b, real* __restrict__ y, CONV_SHAPE_PARAMETERS) {
    __shared__ real tile_a[T][T], tile_b[T][T];
    multiply(Forward{x, w, b, y, CONV_SHAPE}, tile_a, tile_b);
}

extern "C" __global__ void conv2d_grad_x(
        const real* __restrict__ dy, const real* __restrict__ w, real* __restrict__ dx, CONV_SHAPE_PARAMETERS) {
    __shared__ real tile_a[T][T], tile_b[T][T];
    multiply(GradX{dy, w, dx, CONV_SHAPE}, tile_a, tile_b);
}

extern "C" __global__ void conv2d_grad_w(
        const real* __restrict__ dy, const real* __restrict__ x, real* __restrict__ parts, CONV_SHAPE_PARAMETERS) {
    __shared__ real tile_a[T][T], tile_b[T][T];
    multiply(GradW{dy, x, parts, CONV_SHAPE}, tile_a, tile_b);
}
