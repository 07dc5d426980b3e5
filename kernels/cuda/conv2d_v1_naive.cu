// Convolution, version 1: one thread an output number, the sums as in nprcnn/ops/conv.py's formula. Forward, and the gradients to the
// data and to the weights. Takes any stride, padding, dilation and groups, and float64: the measure for the later versions.
//
// Every number is fetched from global memory again for every product it takes part in: two loads for one multiplication.
//
// measured: not yet on a GPU

// grid: one thread a number of y
extern "C" __global__ void conv2d(
        const real* __restrict__ x,  // (N, C, H, W)
        const real* __restrict__ w,  // (O, C / groups, KH, KW)
        const real* __restrict__ b,  // (O,)
        real* __restrict__ y,        // (N, O, OH, OW)
        int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW,
        int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int groups) {
    const int k = thread_number();
    if (k >= N * O * OH * OW) return;
    const int ox = k % OW, oy = k / OW % OH, o = k / OW / OH % O, n = k / OW / OH / O;
    const int group_c = C / groups, first_c = o / (O / groups) * group_c;
    real sum = b[o];
    for (int c = 0; c < group_c; ++c) {
        const real* plane = x + (n * C + first_c + c) * H * W;
        const real* filter = w + (o * group_c + c) * KH * KW;
        for (int i = 0; i < KH; ++i) {
            const int iy = oy * stride_h + i * dil_h - pad_h;
            if (iy < 0 || iy >= H) continue;
            for (int j = 0; j < KW; ++j) {
                const int ix = ox * stride_w + j * dil_w - pad_w;
                if (ix >= 0 && ix < W) sum += filter[i * KW + j] * plane[iy * W + ix];
            }
        }
    }
    y[k] = sum;
}

// grid: one thread a number of dx
extern "C" __global__ void conv2d_grad_x(
        const real* __restrict__ dy,  // (N, O, OH, OW)
        const real* __restrict__ w,   // (O, C / groups, KH, KW)
        real* __restrict__ dx,        // (N, C, H, W)
        int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW,
        int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int groups) {
    const int k = thread_number();
    if (k >= N * C * H * W) return;
    const int ix = k % W, iy = k / W % H, c = k / W / H % C, n = k / W / H / C;
    const int group_c = C / groups, group_o = O / groups, first_o = c / group_c * group_o;
    real sum = 0;
    for (int o = first_o; o < first_o + group_o; ++o) {
        const real* dplane = dy + (n * O + o) * OH * OW;
        const real* filter = w + (o * group_c + c % group_c) * KH * KW;
        for (int i = 0; i < KH; ++i) {
            // forward: iy = oy * stride + i * dil - pad, so oy = (iy + pad - i * dil) / stride, if that is whole
            const int up = iy + pad_h - i * dil_h, oy = up / stride_h;
            if (up < 0 || up % stride_h != 0 || oy >= OH) continue;
            for (int j = 0; j < KW; ++j) {
                const int left = ix + pad_w - j * dil_w, ox = left / stride_w;
                if (left < 0 || left % stride_w != 0 || ox >= OW) continue;
                sum += filter[i * KW + j] * dplane[oy * OW + ox];
            }
        }
    }
    dx[k] = sum;
}

// grid: one thread a number of dw
extern "C" __global__ void conv2d_grad_w(
        const real* __restrict__ dy,  // (N, O, OH, OW)
        const real* __restrict__ x,   // (N, C, H, W)
        real* __restrict__ dw,        // (O, C / groups, KH, KW)
        int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW,
        int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int groups) {
    const int k = thread_number(), group_c = C / groups;
    if (k >= O * group_c * KH * KW) return;
    const int j = k % KW, i = k / KW % KH, c = k / KW / KH % group_c, o = k / KW / KH / group_c;
    const int channel = o / (O / groups) * group_c + c;
    real sum = 0;
    for (int n = 0; n < N; ++n) {
        const real* dplane = dy + (n * O + o) * OH * OW;
        const real* plane = x + (n * C + channel) * H * W;
        for (int oy = 0; oy < OH; ++oy) {
            const int iy = oy * stride_h + i * dil_h - pad_h;
            if (iy < 0 || iy >= H) continue;
            for (int ox = 0; ox < OW; ++ox) {
                const int ix = ox * stride_w + j * dil_w - pad_w;
                // forward: y[oy, ox] += w[i, j] * x[iy, ix], so dw[i, j] += dy[oy, ox] * x[iy, ix]
                if (ix >= 0 && ix < W) sum += dplane[oy * OW + ox] * plane[iy * W + ix];
            }
        }
    }
    dw[k] = sum;
}
