// RoIAlign, version 1: one thread an output number. It walks over the samples of its bin and reads four pixels for each.
//
// Everything about the RoI is computed again by each of the C * OH * OW threads that share it. Neighbouring threads have neighbouring
// bins, whose pixels lie some columns apart, so that a warp's 32 reads fall into nearly as many sectors of memory.
//
// measured: not yet on a GPU
extern "C" __global__ void roi_align(
        const real* __restrict__ features,  // (N, C, H, W)
        const real* __restrict__ rois,      // (R, 5): image, x1, y1, x2, y2
        real* __restrict__ y,               // (R, C, OH, OW)
        int R, int C, int H, int W, int OH, int OW, real spatial_scale, int sampling_ratio, int aligned) {
    const int k = thread_number();
    if (k >= R * C * OH * OW) return;
    const int j = k % OW, i = k / OW % OH, c = k / OW / OH % C, r = k / OW / OH / C;

    const real* roi = rois + r * 5;
    const Axis x_axis = make_axis(roi[1], roi[3], spatial_scale, OW, sampling_ratio, aligned);
    const Axis y_axis = make_axis(roi[2], roi[4], spatial_scale, OH, sampling_ratio, aligned);
    const real* plane = features + (int(roi[0]) * C + c) * H * W;

    real sum = 0;
    for (int sy = 0; sy < y_axis.samples; ++sy) {
        Tap ty;
        if (!make_tap(sample_point(y_axis, i, sy), H, ty)) continue;
        for (int sx = 0; sx < x_axis.samples; ++sx) {
            Tap tx;
            if (!make_tap(sample_point(x_axis, j, sx), W, tx)) continue;
            const real above = (1 - tx.fraction) * plane[ty.low * W + tx.low] + tx.fraction * plane[ty.low * W + tx.high];
            const real below = (1 - tx.fraction) * plane[ty.high * W + tx.low] + tx.fraction * plane[ty.high * W + tx.high];
            sum += (1 - ty.fraction) * above + ty.fraction * below;
        }
    }
    y[k] = sum / real(max(y_axis.samples * x_axis.samples, 1));
}
