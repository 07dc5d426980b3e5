// Max-pooling and its gradient, one thread an output number.
//
// Neighbouring threads read overlapping windows, which the cache serves; memory's speed is the limit, so there is no version 2.
//
// measured: not yet on a GPU
extern "C" __global__ void max_pool2d(
        const real* __restrict__ x,      // (planes, H, W)
        real* __restrict__ y,            // (planes, OH, OW)
        long long* __restrict__ index,   // (planes, OH, OW): iy * W + ix of the maximum; of equal values the first
        int planes, int H, int W, int OH, int OW, int KH, int KW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const int k = thread_number();
    if (k >= planes * OH * OW) return;
    const int y0 = k / OW % OH * stride_h - pad_h, x0 = k % OW * stride_w - pad_w;
    const real* plane = x + k / OW / OH * H * W;
    const int top = max(y0, 0), left = max(x0, 0);  // padding takes no part
    int best = top * W + left;
    real largest = plane[best];
    for (int iy = top; iy < min(y0 + KH, H); ++iy)
        for (int ix = left; ix < min(x0 + KW, W); ++ix)
            // (a NaN wins, so that it is not hidden: it differs from itself)
            if (plane[iy * W + ix] > largest || plane[iy * W + ix] != plane[iy * W + ix]) {
                largest = plane[iy * W + ix];
                best = iy * W + ix;
            }
    y[k] = largest;
    index[k] = best;
}

// Windows overlap, so a pixel may have won several: atomic additions.
extern "C" __global__ void max_pool2d_grad(
        const real* __restrict__ dy,          // (planes, OH, OW)
        const long long* __restrict__ index,  // (planes, OH, OW)
        real* __restrict__ dx,                // (planes, H, W), zeros at first
        int planes, int HW, int OHW) {
    const int k = thread_number();
    // forward: y[k] = x[index[k]]
    if (k < planes * OHW) atomicAdd(&dx[k / OHW * HW + int(index[k])], dy[k]);
}

// The same bits in every run: one thread a plane adds in the order of the outputs. Slow, for checking.
extern "C" __global__ void max_pool2d_grad_ordered(
        const real* __restrict__ dy, const long long* __restrict__ index, real* __restrict__ dx, int planes, int HW, int OHW) {
    const int plane = thread_number();
    if (plane >= planes) return;
    for (int k = plane * OHW; k < (plane + 1) * OHW; ++k) dx[plane * HW + int(index[k])] += dy[k];
}
