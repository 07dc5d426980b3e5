// conv2d.cuh: a convolution and its two gradients as matrix products, for versions 2 and later.
//
//     result[m, n] = sum over k of A[m, k] * B[k, n]
//
//                  m            n                   k              A                B
//     forward      o            pixel of y          (c, i, j)      w                pixels of x
//     grad_x       c            pixel of x          (o, i, j)      w                pixels of dy
//     grad_w       o            (c, i, j)           pixel of y     dy               pixels of x
//
// The matrices of pixels are never built: B[k, n] says where the number lies ("implicit GEMM"). "Pixel" counts through all images.
// Not here: groups.

struct ConvShape {
    int N, C, H, W, O, KH, KW, OH, OW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
};
// The last parameters of every kernel, and how it collects them.
#define CONV_SHAPE_PARAMETERS                                                    \
    int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW,           \
    int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w
#define CONV_SHAPE {N, C, H, W, O, KH, KW, OH, OW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w}

// The pixel of x that tap (i, j) of output pixel `p` = (image, oy, ox) meets, in channel c; 0 in the padding.
__device__ __forceinline__ real input_pixel(const real* x, const ConvShape& s, int p, int c, int i, int j) {
    const int ox = p % s.OW, oy = p / s.OW % s.OH, n = p / s.OW / s.OH;
    const int iy = oy * s.stride_h + i * s.dil_h - s.pad_h, ix = ox * s.stride_w + j * s.dil_w - s.pad_w;
    return iy >= 0 && iy < s.H && ix >= 0 && ix < s.W ? x[((n * s.C + c) * s.H + iy) * s.W + ix] : real(0);
}

// Channel o of output pixel p.
__device__ __forceinline__ int output_index(const ConvShape& s, int o, int p) {
    return (p / (s.OH * s.OW) * s.O + o) * s.OH * s.OW + p % (s.OH * s.OW);
}

// For versions 4 and 5, which find out about the padding once for all taps.
// Where the patch of output pixel p begins in x, and which of its taps (i, j) lie in the image, a bit each. No pixel: none.
struct Patch {
    int corner;
    unsigned inside;
};
__device__ __forceinline__ Patch patch_of(int p, const ConvShape& s) {
    const int y0 = p / s.OW % s.OH * s.stride_h - s.pad_h, x0 = p % s.OW * s.stride_w - s.pad_w;
    unsigned inside = 0;
    for (int i = 0; i < s.KH; ++i)
        for (int j = 0; j < s.KW; ++j) {
            const int iy = y0 + i * s.dil_h, ix = x0 + j * s.dil_w;
            if (p < s.N * s.OH * s.OW && iy >= 0 && iy < s.H && ix >= 0 && ix < s.W) inside |= 1u << (i * s.KW + j);
        }
    return {p / s.OW / s.OH * s.C * s.H * s.W + y0 * s.W + x0, inside};
}

// The three products. rows, columns, depth: the ranges of m, n and k.
struct Forward {
    const real *x, *w, *b;
    real* y;
    ConvShape s;
    __device__ int rows() const { return s.O; }
    __device__ int columns() const { return s.N * s.OH * s.OW; }
    __device__ int depth() const { return s.C * s.KH * s.KW; }
    __device__ real A(int m, int k) const { return w[m * depth() + k]; }
    __device__ real B(int k, int n) const { return input_pixel(x, s, n, k / s.KW / s.KH, k / s.KW % s.KH, k % s.KW); }
    __device__ void store(int m, int n, real sum) const { y[output_index(s, m, n)] = sum + b[m]; }
};

struct GradX {
    const real *dy, *w;
    real* dx;
    ConvShape s;
    __device__ int rows() const { return s.C; }
    __device__ int columns() const { return s.N * s.H * s.W; }
    __device__ int depth() const { return s.O * s.KH * s.KW; }
    __device__ real A(int m, int k) const {
        const int taps = s.KH * s.KW;
        return w[(k / taps * s.C + m) * taps + k % taps];
    }
    __device__ real B(int k, int n) const {
        const int j = k % s.KW, i = k / s.KW % s.KH, o = k / s.KW / s.KH;
        const int ix = n % s.W, iy = n / s.W % s.H, image = n / s.W / s.H;
        // forward: iy = oy * stride + i * dil - pad
        const int up = iy + s.pad_h - i * s.dil_h, left = ix + s.pad_w - j * s.dil_w;
        const int oy = up / s.stride_h, ox = left / s.stride_w;
        const bool met = up >= 0 && left >= 0 && oy * s.stride_h == up && ox * s.stride_w == left && oy < s.OH && ox < s.OW;
        return met ? dy[((image * s.O + o) * s.OH + oy) * s.OW + ox] : real(0);
    }
    __device__ void store(int m, int n, real sum) const { dx[((n / (s.H * s.W)) * s.C + m) * s.H * s.W + n % (s.H * s.W)] = sum; }
};

// The sum over all pixels is long and the result small, so blocks share a sum: block z of the grid takes a part of it and writes to
// parts[z]; sum_parts adds them up, always in the same order.
struct GradW {
    const real *dy, *x;
    real* parts;  // (gridDim.z, O, C, KH, KW)
    ConvShape s;
    __device__ int rows() const { return s.O; }
    __device__ int columns() const { return s.C * s.KH * s.KW; }
    __device__ int depth() const { return s.N * s.OH * s.OW; }
    __device__ real A(int m, int k) const { return dy[output_index(s, m, k)]; }
    __device__ real B(int k, int n) const { return input_pixel(x, s, k, n / s.KW / s.KH, n / s.KW % s.KH, n % s.KW); }
    __device__ void store(int m, int n, real sum) const { parts[(blockIdx.z * s.O + m) * columns() + n] = sum; }
};

// The part of 0 .. depth - 1 that block z works on: a multiple of `step`, but for the end.
__device__ __forceinline__ void my_part(int depth, int step, int& first, int& stop) {
    const int part = ceil_div(ceil_div(depth, step), gridDim.z) * step;
    first = min(depth, int(blockIdx.z) * part);
    stop = min(depth, first + part);
}

// (parts, count) -> (count,)
extern "C" __global__ void sum_parts(const real* __restrict__ values, real* __restrict__ sums, int parts, int count) {
    const int k = thread_number();
    if (k >= count) return;
    real sum = 0;
    for (int part = 0; part < parts; ++part) sum += values[part * count + k];
    sums[k] = sum;
}
