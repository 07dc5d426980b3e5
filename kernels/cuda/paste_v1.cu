// Pasting masks: one thread a pixel of the image, for each mask. The rule is that of nprcnn/ops/paste.py (torchvision's): a border of
// one zero pixel, the box grown in proportion and cut to integers, bilinear.
//
// Compiled without fused multiply-add: by rounding, the order of the operations decides which integer a corner becomes.
//
// measured: not yet on a GPU

// Where pixel `out` of out_length lies among in_length.
struct Place {
    int low, high;
    real fraction;
};
__device__ __forceinline__ Place find_place(long long out, long long out_length, int in_length) {
    const real scale = real(in_length) / real(out_length);
    const real source = fmax(scale * (real(out) + real(0.5)) - real(0.5), real(0));
    Place place;
    place.low = min(int(source), in_length - 1);
    place.high = min(place.low + 1, in_length - 1);
    place.fraction = source - real(place.low);
    return place;
}

// The mask with its border of zeros.
__device__ __forceinline__ real padded(const real* mask, int m, int row, int column) {
    return row >= 1 && row <= m && column >= 1 && column <= m ? mask[(row - 1) * m + column - 1] : real(0);
}

extern "C" __global__ void paste_masks(
        const real* __restrict__ masks,           // (n, m, m)
        const long long* __restrict__ corners,    // (n, 4): x1, y1, x2, y2 of the grown boxes; the last pixel belongs to the box
        real* __restrict__ image_masks,           // (n, H, W)
        int n, int m, int H, int W) {
    // grid: (ceil(H * W / threads), n)
    const int pixel = thread_number(), r = blockIdx.y;
    if (pixel >= H * W) return;
    const int row = pixel / W, column = pixel % W;
    const long long x1 = corners[4 * r], y1 = corners[4 * r + 1], x2 = corners[4 * r + 2], y2 = corners[4 * r + 3];
    real value = 0;
    if (column >= x1 && column <= x2 && row >= y1 && row <= y2) {
        const Place py = find_place(row - y1, y2 - y1 + 1, m + 2), px = find_place(column - x1, x2 - x1 + 1, m + 2);
        const real* mask = masks + r * m * m;
        const real above = (1 - px.fraction) * padded(mask, m, py.low, px.low) + px.fraction * padded(mask, m, py.low, px.high);
        const real below = (1 - px.fraction) * padded(mask, m, py.high, px.low) + px.fraction * padded(mask, m, py.high, px.high);
        value = (1 - py.fraction) * above + py.fraction * below;
    }
    image_masks[r * H * W + pixel] = value;
}
