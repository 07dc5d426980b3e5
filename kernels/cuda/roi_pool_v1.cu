// RoIPool and its gradient, one thread an output number. What RoIAlign replaced; kept for the comparison of the two.
//
// measured: not yet on a GPU

__device__ __forceinline__ real round_half_away(real x) {
    const real whole = trunc(x);
    return fabs(x - whole) >= real(.5) ? whole + (x > 0 ? real(1) : real(-1)) : whole;
}

// First pixel of a bin and the one after its last, along one axis; an empty bin has first >= stop.
__device__ __forceinline__ void bin_edges(real low, real high, real spatial_scale, int bin, int bins, int length, int& first, int& stop) {
    const real begin = round_half_away(low * spatial_scale), end = round_half_away(high * spatial_scale);
    const real bin_side = fmax(end - begin + 1, real(1)) / real(bins);
    first = int(fmin(fmax(floor(real(bin) * bin_side) + begin, real(0)), real(length)));
    stop = int(fmin(fmax(ceil(real(bin + 1) * bin_side) + begin, real(0)), real(length)));
}

extern "C" __global__ void roi_pool(
        const real* __restrict__ features,  // (N, C, H, W)
        const real* __restrict__ rois,      // (R, 5)
        real* __restrict__ y,               // (R, C, OH, OW); 0 in an empty bin
        long long* __restrict__ index,      // (R, C, OH, OW): iy * W + ix of the maximum, the first of equal ones; -1 in an empty bin
        int R, int C, int H, int W, int OH, int OW, real spatial_scale) {
    const int k = thread_number();
    if (k >= R * C * OH * OW) return;
    const real* roi = rois + k / OW / OH / C * 5;
    const real* plane = features + (int(roi[0]) * C + k / OW / OH % C) * H * W;
    int top, bottom, left, right;
    bin_edges(roi[2], roi[4], spatial_scale, k / OW % OH, OH, H, top, bottom);
    bin_edges(roi[1], roi[3], spatial_scale, k % OW, OW, W, left, right);
    int best = -1;
    real largest = 0;
    for (int iy = top; iy < bottom; ++iy)
        for (int ix = left; ix < right; ++ix) {
            const real value = plane[iy * W + ix];
            // (a NaN wins, so that it is not hidden: it differs from itself)
            if (best < 0 || value > largest || (value != value && largest == largest)) {
                largest = value;
                best = iy * W + ix;
            }
        }
    y[k] = largest;
    index[k] = best;
}

// Bins and RoIs overlap, so a pixel may have won several: atomic additions.
extern "C" __global__ void roi_pool_grad(
        const real* __restrict__ dy,          // (R, C, OH, OW)
        const long long* __restrict__ index,  // (R, C, OH, OW)
        const real* __restrict__ rois,        // (R, 5)
        real* __restrict__ dx,                // (N, C, H, W), zeros at first
        int R, int C, int HW, int bins) {
    const int k = thread_number();
    if (k >= R * C * bins) return;
    // forward: y[k] = x[index[k]]
    if (index[k] >= 0) atomicAdd(&dx[(int(rois[k / bins / C * 5]) * C + k / bins % C) * HW + int(index[k])], dy[k]);
}

// The same bits in every run: one thread a channel adds in the order of the RoIs. Slow, for checking.
extern "C" __global__ void roi_pool_grad_ordered(
        const real* __restrict__ dy, const long long* __restrict__ index, const real* __restrict__ rois, real* __restrict__ dx, int R, int C,
        int HW, int bins) {
    const int c = thread_number();
    if (c >= C) return;
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < bins; ++i) {
            const int k = (r * C + c) * bins + i;
            if (index[k] >= 0) dx[(int(rois[r * 5]) * C + c) * HW + int(index[k])] += dy[k];
        }
}
