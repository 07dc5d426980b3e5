// Gradient of RoIAlign, version 2: one thread a pixel, which collects what the RoIs have to give it. The same bits in every run.
//
// What changes against version 1: nobody adds to what is not its own. A thread walks over the RoIs of its image in their order and, for
// those that reach its pixel, sums  Wy[i, pixel row] * Wx[j, pixel column] * dy[r, c, i, j]  over the bins: the transpose of the two
// small matrices in nprcnn/ops/roi_align.py. No atomics, one write a pixel; the price is a look at every RoI from every pixel.
//
// measured: not yet on a GPU
#define CHANNELS 4  // a thread: the weights are computed once for all of them

// The weight of a pixel in a bin: entry (bin, pixel) of Wy or Wx.
__device__ __forceinline__ real weight(Axis axis, int bin, int pixel, int length) {
    real sum = 0;
    for (int s = 0; s < axis.samples; ++s) {
        Tap tap;
        if (!make_tap(sample_point(axis, bin, s), length, tap)) continue;
        if (tap.low == pixel) sum += 1 - tap.fraction;
        if (tap.high == pixel) sum += tap.fraction;
    }
    return sum / real(max(axis.samples, 1));
}

// Can any sample of this axis touch the pixel? Samples lie between the axis's two ends and are drawn to the border from outside.
__device__ __forceinline__ bool reaches(Axis axis, int bins, int pixel, int length) {
    const real end = axis.start + axis.bin_side * real(bins), last = real(length - 1);
    const real first_point = fmin(fmax(fmin(axis.start, end), real(0)), last);
    const real last_point = fmin(fmax(fmax(axis.start, end), real(0)), last);
    return real(pixel) > first_point - real(2) && real(pixel) < last_point + real(2);
}

extern "C" __global__ void roi_align_grad(
        const real* __restrict__ dy,     // (R, C, OH, OW)
        const real* __restrict__ rois,   // (R, 5)
        const int* __restrict__ order,   // (R,) RoIs by image: those of image n are order[starts[n] .. starts[n + 1] - 1]
        const int* __restrict__ starts,  // (N + 1,)
        real* __restrict__ dx,           // (N, C, H, W)
        int C, int H, int W, int OH, int OW, real spatial_scale, int sampling_ratio, int aligned) {
    // grid: (pixels, groups of channels, N)
    const int pixel = thread_number(), c0 = blockIdx.y * CHANNELS, n = blockIdx.z;
    if (pixel >= H * W) return;
    const int row = pixel / W, column = pixel % W;
    real sum[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) sum[c] = 0;

    for (int place = starts[n]; place < starts[n + 1]; ++place) {
        const int r = order[place];
        const real* roi = rois + r * 5;
        const Axis y_axis = make_axis(roi[2], roi[4], spatial_scale, OH, sampling_ratio, aligned);
        if (!reaches(y_axis, OH, row, H)) continue;
        const Axis x_axis = make_axis(roi[1], roi[3], spatial_scale, OW, sampling_ratio, aligned);
        if (!reaches(x_axis, OW, column, W)) continue;
        for (int i = 0; i < OH; ++i) {
            const real wy = weight(y_axis, i, row, H);
            if (wy == 0) continue;
            for (int j = 0; j < OW; ++j) {
                const real w = wy * weight(x_axis, j, column, W);
                if (w == 0) continue;
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c)
                    if (c0 + c < C) sum[c] += w * dy[((r * C + c0 + c) * OH + i) * OW + j];
            }
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c)
        if (c0 + c < C) dx[((n * C + c0 + c) * H + row) * W + column] = sum[c];
}
