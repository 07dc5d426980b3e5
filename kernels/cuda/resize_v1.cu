// Nearest and bilinear resizing and their gradients, one thread an output number.
//
// Both gradients gather: a thread owns an input pixel and finds the output rows and columns that read it, which are neighbours. So there
// are no atomics, and every run gives the same bits. Memory's speed is the limit, so there is no version 2.
//
// measured: not yet on a GPU

// The input row of output row i: floor(i * (in / out)), in float32 whatever `real` is, as PyTorch chooses it.
__device__ __forceinline__ int nearest(int i, int in, int out) {
    return min(int(float(i) * (float(in) / float(out))), in - 1);
}

// Output row i lies between input rows `low` and `low + 1`; the second one's weight is `weight`.
__device__ __forceinline__ int linear(int i, int in, int out, real& weight) {
    const real point = fmax((real(i) + real(.5)) * (real(in) / real(out)) - real(.5), real(0));
    const int low = min(int(point), in - 1);
    weight = point - real(low);
    return low;
}

// An output row before the first one that reads input row k (or k + 1, in bilinear resizing); the callers walk up from there.
__device__ __forceinline__ int start(int k, int in, int out) {
    return max(int((long long)k * out / in) - 2, 0);
}

// How much of input row k is in output row i: bilinear resizing is y = Ay x Ax^T, and this is an entry of Ay.
__device__ __forceinline__ real share(int k, int low, int in, real weight) {
    real part = low == k ? 1 - weight : real(0);
    if (min(low + 1, in - 1) == k) part += weight;  // at the last row both neighbours are the same
    return part;
}

extern "C" __global__ void resize_nearest(
        const real* __restrict__ x,  // (planes, H, W)
        real* __restrict__ y,        // (planes, OH, OW)
        int planes, int H, int W, int OH, int OW) {
    const int k = thread_number();
    if (k >= planes * OH * OW) return;
    y[k] = x[(k / OW / OH * H + nearest(k / OW % OH, H, OH)) * W + nearest(k % OW, W, OW)];
}

extern "C" __global__ void resize_nearest_grad(
        const real* __restrict__ dy,  // (planes, OH, OW)
        real* __restrict__ dx,        // (planes, H, W)
        int planes, int H, int W, int OH, int OW) {
    const int k = thread_number();
    if (k >= planes * H * W) return;
    const int iy = k / W % H, ix = k % W;
    int top = start(iy, H, OH), left = start(ix, W, OW);
    while (top < OH && nearest(top, H, OH) < iy) ++top;
    while (left < OW && nearest(left, W, OW) < ix) ++left;
    const real* plane = dy + k / W / H * OH * OW;
    real sum = 0;
    // forward: y[oy, ox] = x[nearest(oy), nearest(ox)]
    for (int oy = top; oy < OH && nearest(oy, H, OH) == iy; ++oy)
        for (int ox = left; ox < OW && nearest(ox, W, OW) == ix; ++ox) sum += plane[oy * OW + ox];
    dx[k] = sum;
}

extern "C" __global__ void resize_bilinear(
        const real* __restrict__ x,  // (planes, H, W)
        real* __restrict__ y,        // (planes, OH, OW)
        int planes, int H, int W, int OH, int OW) {
    const int k = thread_number();
    if (k >= planes * OH * OW) return;
    real wy, wx;
    const int y0 = linear(k / OW % OH, H, OH, wy), x0 = linear(k % OW, W, OW, wx);
    const int y1 = min(y0 + 1, H - 1), x1 = min(x0 + 1, W - 1);
    const real* plane = x + k / OW / OH * H * W;
    const real top = plane[y0 * W + x0] + (plane[y0 * W + x1] - plane[y0 * W + x0]) * wx;
    const real bottom = plane[y1 * W + x0] + (plane[y1 * W + x1] - plane[y1 * W + x0]) * wx;
    y[k] = top + (bottom - top) * wy;
}

extern "C" __global__ void resize_bilinear_grad(
        const real* __restrict__ dy,  // (planes, OH, OW)
        real* __restrict__ dx,        // (planes, H, W)
        int planes, int H, int W, int OH, int OW) {
    const int k = thread_number();
    if (k >= planes * H * W) return;
    const int iy = k / W % H, ix = k % W;
    real wy, wx;
    // output rows that read row iy have it as `low` or as `low + 1`
    int top = start(iy - 1, H, OH), left = start(ix - 1, W, OW);
    while (top < OH && linear(top, H, OH, wy) < iy - 1) ++top;
    while (left < OW && linear(left, W, OW, wx) < ix - 1) ++left;
    const real* plane = dy + k / W / H * OH * OW;
    real sum = 0;
    // forward: y = Ay x Ax^T, so dx = Ay^T dy Ax
    for (int oy = top; oy < OH; ++oy) {
        const int y0 = linear(oy, H, OH, wy);
        if (y0 > iy) break;
        real row = 0;
        for (int ox = left; ox < OW; ++ox) {
            const int x0 = linear(ox, W, OW, wx);
            if (x0 > ix) break;
            row += share(ix, x0, W, wx) * plane[oy * OW + ox];
        }
        sum += share(iy, y0, H, wy) * row;
    }
    dx[k] = sum;
}
