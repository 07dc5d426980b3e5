// roi_align.cuh: the geometry of RoIAlign, one axis at a time (nprcnn/ops/roi_align.py explains it).

// One axis of one RoI on the feature map.
struct Axis {
    real start, bin_side;  // in feature pixels
    int samples;           // a bin
};

__device__ __forceinline__ Axis make_axis(real low, real high, real spatial_scale, int bins, int sampling_ratio, int aligned) {
    const real shift = aligned ? real(0.5) : real(0);
    Axis axis;
    axis.start = low * spatial_scale - shift;
    real side = high * spatial_scale - shift - axis.start;
    if (!aligned) side = fmax(side, real(1));
    axis.bin_side = side / real(bins);
    axis.samples = sampling_ratio > 0 ? sampling_ratio : int(ceil(axis.bin_side));
    return axis;
}

// Where sample `i` of bin `bin` lies.
__device__ __forceinline__ real sample_point(Axis axis, int bin, int i) {
    return axis.start + real(bin) * axis.bin_side + (real(i) + real(0.5)) * axis.bin_side / real(max(axis.samples, 1));
}

// Linear interpolation at a point: (1 - fraction) * f[low] + fraction * f[high].
struct Tap {
    int low, high;
    real fraction;
};

// False if the point lies more than a pixel outside the map: such a sample counts as 0.
__device__ __forceinline__ bool make_tap(real point, int length, Tap& tap) {
    if (!(point >= real(-1) && point <= real(length))) return false;
    point = fmin(fmax(point, real(0)), real(length - 1));
    tap.low = int(point);
    tap.high = min(tap.low + 1, length - 1);
    tap.fraction = point - real(tap.low);
    return true;
}
