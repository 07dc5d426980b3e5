// common.cuh: what all kernels share. launch.py puts it in front of each .cu file, and after it the operation's own .cuh if there is
// one; the files themselves include nothing.
//
// Letters: N images, C channels, H x W pixels; O output channels, KH x KW filter, OH x OW output; R RoIs, B boxes.
// Arrays are contiguous, the last index runs fastest. Indices are 32 bits: launch.py refuses arrays of 2^31 elements or more.
#ifndef real
#define real float  // -Dreal=double makes the same kernel for float64, which checks gradients
#endif

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The number of this thread in a grid of one dimension.
__device__ __forceinline__ int thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }
