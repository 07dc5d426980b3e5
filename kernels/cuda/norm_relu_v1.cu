// Frozen batch norm, a residual if there is one, and ReLU, in one pass over the features: each number is read once and written once,
// where three separate operations would read and write it three times. Memory's speed is the limit.
//
// measured: not yet on a GPU
extern "C" __global__ void norm_relu(
        const real* __restrict__ x,         // (N, C, P), P = H * W
        const real* __restrict__ scale,     // (C,): weight / sqrt(running_var + eps)
        const real* __restrict__ shift,     // (C,): bias - running_mean * scale
        const real* __restrict__ residual,  // (N, C, P), or (1,) if has_residual is 0
        real* __restrict__ y,               // (N, C, P)
        int count, int C, int P, int has_residual, int has_relu) {
    const int k = thread_number();
    if (k >= count) return;
    const int c = k / P % C;
    real value = x[k] * scale[c] + shift[c];
    if (has_residual) value += residual[k];
    y[k] = has_relu && value < 0 ? real(0) : value;  // fmax would turn a NaN into 0
}
