// Gradient of RoIAlign, version 1: one thread an output number, which adds its share to the pixels that it has read.
//
// The mirror image of roi_align_v1_naive.cu. RoIs overlap, and so do their samples: several threads add to one pixel at the same time,
// so the additions are atomic. In which order they arrive differs from run to run, and with it the last bits of the sums.
//
// measured: not yet on a GPU
extern "C" __global__ void roi_align_grad(
        const real* __restrict__ dy,    // (R, C, OH, OW)
        const real* __restrict__ rois,  // (R, 5)
        real* __restrict__ dx,          // (N, C, H, W), zeros at first
        int R, int C, int H, int W, int OH, int OW, real spatial_scale, int sampling_ratio, int aligned) {
    const int k = thread_number();
    if (k >= R * C * OH * OW) return;
    const int j = k % OW, i = k / OW % OH, c = k / OW / OH % C, r = k / OW / OH / C;

    const real* roi = rois + r * 5;
    const Axis x_axis = make_axis(roi[1], roi[3], spatial_scale, OW, sampling_ratio, aligned);
    const Axis y_axis = make_axis(roi[2], roi[4], spatial_scale, OH, sampling_ratio, aligned);
    real* dplane = dx + (int(roi[0]) * C + c) * H * W;

    // forward: y[k] = sum / samples, so each sample gets this share
    const real share = dy[k] / real(max(y_axis.samples * x_axis.samples, 1));
    for (int sy = 0; sy < y_axis.samples; ++sy) {
        Tap ty;
        if (!make_tap(sample_point(y_axis, i, sy), H, ty)) continue;
        for (int sx = 0; sx < x_axis.samples; ++sx) {
            Tap tx;
            if (!make_tap(sample_point(x_axis, j, sx), W, tx)) continue;
            // forward: sum += (1 - ty) * ((1 - tx) * plane[low, low] + tx * plane[low, high]) + ty * (...)
            atomicAdd(&dplane[ty.low * W + tx.low], share * (1 - ty.fraction) * (1 - tx.fraction));
            atomicAdd(&dplane[ty.low * W + tx.high], share * (1 - ty.fraction) * tx.fraction);
            atomicAdd(&dplane[ty.high * W + tx.low], share * ty.fraction * (1 - tx.fraction));
            atomicAdd(&dplane[ty.high * W + tx.high], share * ty.fraction * tx.fraction);
        }
    }
}
