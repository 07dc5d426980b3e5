// RoIAlign, version 2: a block works on one RoI, and its taps are computed once.
//
// What changes against version 1: all channels of a RoI are sampled at the same points, so the block computes the taps of both axes
// first, into shared memory, and its threads only look them up. Less arithmetic; the reads of the features are the same as before.
// Takes a fixed number of samples a bin, as the network does; version 1 does the adaptive kind.
//
// measured: not yet on a GPU
#define MAX_SAMPLES 64  // along one axis of a RoI: 14 bins of 4, for instance

extern "C" __global__ void roi_align(
        const real* __restrict__ features,  // (N, C, H, W)
        const real* __restrict__ rois,      // (R, 5)
        real* __restrict__ y,               // (R, C, OH, OW)
        int C, int H, int W, int OH, int OW, real spatial_scale, int sampling_ratio, int aligned, int channels_a_block) {
    // grid: (R, blocks of channels). Sample s of an axis belongs to bin s / sampling_ratio.
    __shared__ int low[2][MAX_SAMPLES], high[2][MAX_SAMPLES];
    __shared__ real low_weight[2][MAX_SAMPLES], high_weight[2][MAX_SAMPLES];
    const int r = blockIdx.x, first_channel = blockIdx.y * channels_a_block;
    const real* roi = rois + r * 5;

    // The first threads take the samples of x (axis 0), the next those of y (axis 1)
    for (int s = threadIdx.x; s < (OW + OH) * sampling_ratio; s += blockDim.x) {
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

    const int channels = min(channels_a_block, C - first_channel);
    for (int k = threadIdx.x; k < channels * OH * OW; k += blockDim.x) {
        const int j = k % OW, i = k / OW % OH, c = first_channel + k / OW / OH;
        const real* plane = features + (int(roi[0]) * C + c) * H * W;
        real sum = 0;
        for (int sy = i * sampling_ratio; sy < (i + 1) * sampling_ratio; ++sy) {
            const real* row_low = plane + low[1][sy] * W;
            const real* row_high = plane + high[1][sy] * W;
            for (int sx = j * sampling_ratio; sx < (j + 1) * sampling_ratio; ++sx) {
                const int left = low[0][sx], right = high[0][sx];
                const real above = low_weight[0][sx] * row_low[left] + high_weight[0][sx] * row_low[right];
                const real below = low_weight[0][sx] * row_high[left] + high_weight[0][sx] * row_high[right];
                sum += low_weight[1][sy] * above + high_weight[1][sy] * below;
            }
        }
        y[(r * C + first_channel) * OH * OW + k] = sum;
    }
}
