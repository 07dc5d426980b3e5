// RoIAlign, version 3: the lanes of a warp are 32 channels at one place, and the features are stored so that these lie side by side.
//
// What changes against version 2: the features are first rearranged to (N, H, W, C). All 32 lanes then read at the same pixel, 32
// numbers in a row: 4 sectors, fully used, where before each lane needed a sector of its own for one number. The rearranging costs one
// read and one write of the map, and pays as soon as the RoIs read it more than a few times over. Results are collected in shared
// memory and written in the order of y, again in a row.
//
// measured: not yet on a GPU
#define MAX_SAMPLES 64
#define TILE 32  // channels a block, and the side of the tiles that are turned

// (planes, C, P) -> (planes, P, C), P = H * W. Block (32, 8): a tile goes through shared memory so that reads and writes both are in rows.
extern "C" __global__ void to_channels_last(
        const real* __restrict__ x,  // (N, C, P)
        real* __restrict__ y,        // (N, P, C)
        int C, int P) {
    // grid: (tiles of P, tiles of C, N)
    __shared__ real tile[TILE][TILE + 1];  // + 1: a column then lies in 32 different banks
    const int p0 = blockIdx.x * TILE, c0 = blockIdx.y * TILE;
    x += blockIdx.z * C * P;
    y += blockIdx.z * C * P;
    for (int c = threadIdx.y; c < TILE; c += blockDim.y)
        if (c0 + c < C && p0 + threadIdx.x < P) tile[c][threadIdx.x] = x[(c0 + c) * P + p0 + threadIdx.x];
    __syncthreads();
    for (int p = threadIdx.y; p < TILE; p += blockDim.y)
        if (p0 + p < P && c0 + threadIdx.x < C) y[(p0 + p) * C + c0 + threadIdx.x] = tile[threadIdx.x][p];
}

extern "C" __global__ void roi_align(
        const real* __restrict__ features,  // (N, H, W, C)
        const real* __restrict__ rois,      // (R, 5)
        real* __restrict__ y,               // (R, C, OH, OW)
        int C, int H, int W, int OH, int OW, real spatial_scale, int sampling_ratio, int aligned) {
    // grid: (R, tiles of C); block: (32 channels, some bins)
    __shared__ int low[2][MAX_SAMPLES], high[2][MAX_SAMPLES];
    __shared__ real low_weight[2][MAX_SAMPLES], high_weight[2][MAX_SAMPLES];
    extern __shared__ real result[];  // (32, OH * OW), rows one longer if that makes their length odd: no bank conflicts
    const int r = blockIdx.x, c = blockIdx.y * TILE + threadIdx.x, bins = OH * OW, row = bins | 1;
    const real* roi = rois + r * 5;

    for (int s = threadIdx.y * TILE + threadIdx.x; s < (OW + OH) * sampling_ratio; s += TILE * blockDim.y) {
        const int axis = s < OW * sampling_ratio ? 0 : 1;
        const int sample = axis == 0 ? s : s - OW * sampling_ratio;
        const Axis geometry = make_axis(roi[1 + axis], roi[3 + axis], spatial_scale, axis == 0 ? OW : OH, sampling_ratio, aligned);
        Tap tap = {0, 0, 0};
        const bool inside = make_tap(sample_point(geometry, sample / sampling_ratio, sample % sampling_ratio), axis == 0 ? W : H, tap);
        low[axis][sample] = tap.low;
        high[axis][sample] = tap.high;
        low_weight[axis][sample] = inside ? (1 - tap.fraction) / real(sampling_ratio) : real(0);
        high_weight[axis][sample] = inside ? tap.fraction / real(sampling_ratio) : real(0);
    }
    __syncthreads();

    const real* image = features + int(roi[0]) * H * W * C + c;
    if (c < C) {
        for (int bin = threadIdx.y; bin < bins; bin += blockDim.y) {
            const int i = bin / OW, j = bin % OW;
            real sum = 0;
            for (int sy = i * sampling_ratio; sy < (i + 1) * sampling_ratio; ++sy) {
                const real* row_low = image + low[1][sy] * W * C;
                const real* row_high = image + high[1][sy] * W * C;
                for (int sx = j * sampling_ratio; sx < (j + 1) * sampling_ratio; ++sx) {
                    const int left = low[0][sx] * C, right = high[0][sx] * C;
                    const real above = low_weight[0][sx] * row_low[left] + high_weight[0][sx] * row_low[right];
                    const real below = low_weight[0][sx] * row_high[left] + high_weight[0][sx] * row_high[right];
                    sum += low_weight[1][sy] * above + high_weight[1][sy] * below;
                }
            }
            result[threadIdx.x * row + bin] = sum;
        }
    }
    __syncthreads();

    const int channels = min(TILE, C - int(blockIdx.y) * TILE);
    for (int k = threadIdx.y * TILE + threadIdx.x; k < channels * bins; k += TILE * blockDim.y)
        y[(r * C + blockIdx.y * TILE) * bins + k] = result[k / bins * row + k % bins];
}
