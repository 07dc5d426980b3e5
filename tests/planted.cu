// Kernels with a mistake planted in each, and one without: what the inspector and the sanitizers must find (test_cuda_on_cpu.py).
// x has 250 elements, y 64; n is 250; blocks of 64 threads.

extern "C" __global__ void correct(float* x, float* y, int n) {
    __shared__ float s[64];
    const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    s[t] = i < n ? x[i] : 0;
    __syncthreads();
    if (i < n) x[i] = 2 * s[t] + 0 * s[63 - t];
    if (i < n) atomicAdd(&y[t % 2], 1.0f);
}
extern "C" __global__ void write_past_the_end(float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = 1;
}
extern "C" __global__ void read_before_the_start(float* x, float* y, int n) {
    y[threadIdx.x] = x[int(threadIdx.x) - 1];
}
extern "C" __global__ void write_past_shared(float* x, float* y, int n) {
    __shared__ float s[64];
    s[threadIdx.x] = 0;
    __syncthreads();
    float* next = s + threadIdx.x;
    next[4096] = x[threadIdx.x];
}
extern "C" __global__ void write_past_dynamic_shared(float* x, float* y, int n) {
    extern __shared__ float d[];
    d[threadIdx.x + 1] = x[threadIdx.x];
}
extern "C" __global__ void missing_barrier(float* x, float* y, int n) {
    __shared__ float s[64];
    const int t = threadIdx.x;
    s[t] = x[t];
    y[t] = t ? s[t - 1] : 0;
}
extern "C" __global__ void missing_second_barrier(float* x, float* y, int n) {
    __shared__ float s[64];
    const int t = threadIdx.x;
    float sum = 0;
    for (int round = 0; round < 3; ++round) {
        s[t] = x[round * 64 + t];
        __syncthreads();
        sum += s[63 - t];
    }
    y[t] = sum;
}
extern "C" __global__ void missing_syncwarp(float* x, float* y, int n) {
    __shared__ float s[64];
    const int t = threadIdx.x;
    s[t] = x[t];
    __syncthreads();
    for (int d = 16; d > 0; d /= 2)
        if (t < d) s[t] += s[t + d];
    if (t == 0) y[0] = s[0];
}
extern "C" __global__ void plain_addition_in_a_block(float* x, float* y, int n) { y[0] += x[threadIdx.x]; }
extern "C" __global__ void plain_addition_across_blocks(float* x, float* y, int n) { if (threadIdx.x == 0) y[0] += x[blockIdx.x]; }
extern "C" __global__ void unwritten_shared(float* x, float* y, int n) {
    __shared__ float s[64];
    if (threadIdx.x < 32) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void unwritten_dynamic_shared(float* x, float* y, int n) {
    extern __shared__ float d[];
    y[threadIdx.x] = d[threadIdx.x];
}
extern "C" __global__ void divergent_barrier(float* x, float* y, int n) {
    if (threadIdx.x < 32) {
        y[threadIdx.x] = 1;
        __syncthreads();
    } else {
        y[threadIdx.x] = 2;
        __syncthreads();
    }
}
extern "C" __global__ void misaligned_vector(float* x, float* y, int n) {
    const float4 v = *(const float4*)(x + 4 * threadIdx.x % 200 + 1);
    y[threadIdx.x] = v.x;
}
extern "C" __global__ void shift_of_an_int(float* x, float* y, int n) {
    unsigned long long bits = 0;
    for (int j = 0; j < n - 210; ++j) bits |= 1 << j;
    y[threadIdx.x] = bits > 5;
}
extern "C" __global__ void write_to_a_constant(const float* x, float* y, int n) {
    ((float*)x)[threadIdx.x] = 1;
    y[threadIdx.x] = 1;
}
// Not wrong: lanes of one warp, brought together by __syncwarp(); a ballot, shuffles
extern "C" __global__ void correct_warps(float* x, float* y, int n) {
    __shared__ float s[64];
    const int t = threadIdx.x;
    s[t] = x[t];
    __syncwarp();
    float sum = s[t ^ 1];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    y[t] = sum + __popc(__ballot_sync(0xffffffffu, t % 4 == 0));
}
// Counting: one sector, 32 sectors, 2-way and 32-way bank conflicts, a broadcast
extern "C" __global__ void patterns(const float* in_a_row, const float* apart, const float4* vectors, float* y) {
    __shared__ float s[32 * 33];
    const int t = threadIdx.x;
    for (int i = 0; i < 33; ++i) s[i * 32 + t] = 0;
    __syncthreads();
    float sum = in_a_row[t];
    sum += apart[8 * t];
    sum += vectors[t].x;
    sum += in_a_row[5];
    sum += s[2 * t];
    sum += s[32 * t];
    sum += s[33 * t];
    sum += s[7];
    y[t] = sum;
}
// A shuffle brings the lanes together, but says nothing about what they have written; so does the instruction of the tensor cores
extern "C" __global__ void shuffle_for_a_barrier(float* x, float* y, int n) {
    __shared__ float s[64];
    const int t = threadIdx.x;
    s[t] = x[t];
    const float next = __shfl_down_sync(0xffffffffu, x[t], 1);
    y[t] = next + s[t ^ 1];
}
extern "C" __global__ void shuffle_in_two_branches(float* x, float* y, int n) {
    const int t = threadIdx.x;
    if (t % 2)
        y[t] = __shfl_xor_sync(0xffffffffu, x[t], 1);
    else
        y[t] = 2 * __shfl_xor_sync(0xffffffffu, x[t], 1);
}
