// cuda_on_cpu.h: the words of CUDA C++ that the kernels use, defined for the host's compiler.
//
// The loader compiles a .cu file as C++ with this header in front. What needs a machine underneath (barriers, warps, shared memory)
// calls engine.cpp. Left out: inline PTX, tensor cores, cp.async, cooperative groups, textures.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>
#include <utility>

#define CUDA_ON_CPU 1

// ---- qualifiers ----
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// A block runs on one OS thread, so one copy an OS thread is one copy a block at a time.
#if defined(CUDA_ON_CPU_INSPECT)
#define __shared__ static __attribute__((section("cuda_shared")))  // together, so that the inspector knows what is shared memory
#elif defined(__SANITIZE_ADDRESS__)
#define __shared__ static                                          // AddressSanitizer guards statics, but not thread-locals
#else
#define __shared__ static __thread
#endif

// ---- built-in types and variables ----
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(16) double2 { double x, y; };
// Moved as one vector, so that they are one access here as they are on a GPU.
#define CUDA_ON_CPU_UNPACK(...) __VA_ARGS__
#define CUDA_ON_CPU_VECTOR(type, element, size, names, parameters, values)           \
    struct alignas(size) type {                                                      \
        typedef element vector __attribute__((vector_size(size)));                   \
        union { struct { element CUDA_ON_CPU_UNPACK names; }; vector all; };         \
        type() {}                                                                    \
        type(CUDA_ON_CPU_UNPACK parameters) : CUDA_ON_CPU_UNPACK values {}           \
        type(const type& other) : all(other.all) {}                                  \
        type& operator=(const type& other) { all = other.all; return *this; }        \
    };
CUDA_ON_CPU_VECTOR(float4, float, 16, (x, y, z, w), (float x, float y, float z, float w), (x(x), y(y), z(z), w(w)))
CUDA_ON_CPU_VECTOR(int4, int, 16, (x, y, z, w), (int x, int y, int z, int w), (x(x), y(y), z(z), w(w)))
CUDA_ON_CPU_VECTOR(float2, float, 8, (x, y), (float x, float y), (x(x), y(y)))
CUDA_ON_CPU_VECTOR(int2, int, 8, (x, y), (int x, int y), (x(x), y(y)))
inline float2 make_float2(float x, float y) { return float2(x, y); }
inline float4 make_float4(float x, float y, float z, float w) { return float4(x, y, z, w); }
inline int2 make_int2(int x, int y) { return int2(x, y); }
inline int4 make_int4(int x, int y, int z, int w) { return int4(x, y, z, w); }

#define CUDA_ON_CPU_INDEX extern __thread __attribute__((tls_model("initial-exec")))
CUDA_ON_CPU_INDEX uint3 threadIdx, blockIdx;
CUDA_ON_CPU_INDEX dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

#define CUDA_ON_CPU_UNSEEN __attribute__((no_sanitize("thread")))  // by the inspector: these accesses are not the kernel's

// ---- what engine.cpp does ----
extern "C" {
void engine_barrier(int line);                                                        // all threads of the block
void engine_warp_barrier(int line);                                                   // all of a warp, and what they wrote
uint64_t engine_exchange(unsigned mask, uint64_t value, unsigned lane, int line);     // all of a warp: give mine, get that lane's
unsigned engine_ballot(unsigned mask, int predicate, int line);
void engine_gather(const void* mine, size_t bytes, void* all, int line);              // show mine, see those of all 32 lanes
unsigned engine_lane();
void* engine_dynamic_shared();
void engine_atomic(void* address, int size);                                          // tells the inspector
const char* engine_run(void (*thread)(void*), void* context, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                       char* shared_begin, char* shared_end);
}

// ---- barriers and warps ----
#define __syncthreads() engine_barrier(__LINE__)
#define __syncwarp() engine_warp_barrier(__LINE__)
#define __shfl_sync(mask, v, lane) cuda_on_cpu::shuffle(mask, v, lane, __LINE__)
#define __shfl_xor_sync(mask, v, d) cuda_on_cpu::shuffle(mask, v, engine_lane() ^ (d), __LINE__)
#define __shfl_down_sync(mask, v, d) \
    cuda_on_cpu::shuffle(mask, v, engine_lane() + (d) < 32 ? engine_lane() + (d) : engine_lane(), __LINE__)
#define __shfl_up_sync(mask, v, d) \
    cuda_on_cpu::shuffle(mask, v, engine_lane() >= (d) ? engine_lane() - (d) : engine_lane(), __LINE__)
#define __ballot_sync(mask, p) engine_ballot(mask, (p) != 0, __LINE__)
#define __any_sync(mask, p) (engine_ballot(mask, (p) != 0, __LINE__) != 0)
#define __all_sync(mask, p) (engine_ballot(mask, (p) != 0, __LINE__) == (mask))

namespace cuda_on_cpu {
template <class T> T shuffle(unsigned mask, T value, unsigned lane, int line) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = engine_exchange(mask, bits, lane, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// ---- atomics: all by compare and swap ----
template <class T, class F> __attribute__((always_inline)) inline T read_modify_write(T* p, F change) {
#ifdef CUDA_ON_CPU_INSPECT
    engine_atomic(p, sizeof(T));
#endif
    T before, after;
    __atomic_load(p, &before, __ATOMIC_RELAXED);
    do after = change(before);
    while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}
}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_ATOMIC(name, expression)                                                      \
    template <class T> __attribute__((always_inline)) inline T name(T* p, std::common_type_t<T> v) { \
        return cuda_on_cpu::read_modify_write(p, [v](T old) { return T(expression); });           \
    }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + v)
CUDA_ON_CPU_ATOMIC(atomicSub, old - v)
CUDA_ON_CPU_ATOMIC(atomicMax, old > v ? old : v)
CUDA_ON_CPU_ATOMIC(atomicMin, old < v ? old : v)
CUDA_ON_CPU_ATOMIC(atomicOr, old | v)
CUDA_ON_CPU_ATOMIC(atomicAnd, old & v)
CUDA_ON_CPU_ATOMIC(atomicExch, v)
template <class T> T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return cuda_on_cpu::read_modify_write(p, [=](T old) { return old == expected ? v : old; });
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// ---- arithmetic ----
template <class T> T __ldg(const T* p) { return *p; }
inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __uint_as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned v; memcpy(&v, &f, 4); return v; }

// ---- from Python to a kernel: the loader writes CUDA_ON_CPU_EXPORT(name) for each one ----
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));  // the linker's names for the section above
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

namespace cuda_on_cpu {
template <class... A> struct Call {  // a kernel and pointers to its arguments
    void (*kernel)(A...);
    void** arguments;
    template <size_t... I> CUDA_ON_CPU_UNSEEN void apply(std::index_sequence<I...>) { kernel(*(std::remove_cv_t<A>*)arguments[I]...); }
    // Called with null once in each OS thread: its copies of __shared__ variables then exist before the first CUDA thread runs
    CUDA_ON_CPU_UNSEEN static void one_thread(void* call) {
        static __thread volatile char first;
        if (call) ((Call*)call)->apply(std::index_sequence_for<A...>());
        else first = 1;
    }
};
template <class... A> const char* launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, size_t shared, void** arguments) {
    Call<A...> call{kernel, arguments};
    return engine_run(Call<A...>::one_thread, &call, grid, block, shared, __start_cuda_shared, __stop_cuda_shared);
}

// A parameter's type for the loader's checks: "i4" an int, "f4" a float; a pointer is "*f4:4", an array of floats at least 4-byte
// aligned, and "+" instead of "*" for const. float4 is an array of its elements: "*f4:16".
template <class T> void describe_scalar(char*& s) {
    if constexpr (std::is_class_v<T>) describe_scalar<decltype(T::x)>(s);
    else s += sprintf(s, "%c%zu", std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 'i' : 'u', sizeof(T));
}
template <class T> void describe(char*& s) {
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_pointer_t<T>;
        *s++ = std::is_const_v<Element> ? '+' : '*';
        describe_scalar<std::remove_cv_t<Element>>(s);
        s += sprintf(s, ":%zu", alignof(Element));
    } else describe_scalar<T>(s);
    *s++ = ',';
}
template <class... A> const char* signature(void (*)(A...)) {
    static char text[1024];
    char* s = text;
    (describe<std::remove_cv_t<A>>(s), ...);
    *s = 0;
    return text;
}
}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_EXPORT(kernel)                                                                                     \
    extern "C" {                                                                                                       \
    const char* launch_##kernel(const unsigned* grid, const unsigned* block, size_t shared, void** arguments) {        \
        return cuda_on_cpu::launch(kernel, grid, block, shared, arguments);                                            \
    }                                                                                                                  \
    const char* signature_##kernel() { return cuda_on_cpu::signature(kernel); }                                        \
    }
// The loader writes this for `extern __shared__ type name[];`
#define CUDA_ON_CPU_DYNAMIC_SHARED(type, name) type* name = (type*)engine_dynamic_shared()
