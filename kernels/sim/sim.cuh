// sim.cuh: what a .cu file sees in place of CUDA's builtins when a host compiler builds it for the simulator.
#pragma once

#include <bit>
#include <type_traits>
#include <utility>

#include <math.h>

#include "abi.h"

#define __device__
#define __grid_constant__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Not inlined into the entry point below, which is not instrumented.
#define __global__ __attribute__((noinline))

// ---- Places ----------------------------------------------------------------------------------------------------------

using uint3 = SimDim3;
using dim3 = SimDim3;

// Set by the runtime at each switch between threads. Constant as far as one thread can see, and so not instrumented.
extern "C" {
extern __thread const SimDim3 threadIdx __attribute__((tls_model("initial-exec")));
extern __thread const SimDim3 blockIdx __attribute__((tls_model("initial-exec")));
extern __thread const SimDim3 blockDim __attribute__((tls_model("initial-exec")));
extern __thread const SimDim3 gridDim __attribute__((tls_model("initial-exec")));
}

constexpr int warpSize = 32;

// ---- Vectors ---------------------------------------------------------------------------------------------------------

struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

__forceinline__ uint2 make_uint2(u32 x, u32 y) {
    return {x, y};
}
__forceinline__ uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) {
    return {x, y, z, w};
}
__forceinline__ int2 make_int2(int x, int y) {
    return {x, y};
}
__forceinline__ int4 make_int4(int x, int y, int z, int w) {
    return {x, y, z, w};
}
__forceinline__ float2 make_float2(float x, float y) {
    return {x, y};
}
__forceinline__ float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

// ---- Synchronisation, shuffles, votes --------------------------------------------------------------------------------

__forceinline__ void __syncthreads() {
    sim_syncthreads();
}
__forceinline__ void __syncwarp(u32 mask = 0xffffffffu) {
    sim_syncwarp(mask);
}

namespace sim {

template <class T>
__forceinline__ T shuffle(SimShuffle how, u32 mask, T value, u32 lane, int width) {
    static_assert(sizeof(T) == 4, "the simulator shuffles values of 32 bits");
    return std::bit_cast<T>(sim_shuffle(how, mask, std::bit_cast<u32>(value), lane, static_cast<u32>(width)));
}

}  // namespace sim

template <class T>
__forceinline__ T __shfl_sync(u32 mask, T value, int lane, int width = 32) {
    return sim::shuffle(SIM_SHUFFLE_INDEX, mask, value, static_cast<u32>(lane), width);
}
template <class T>
__forceinline__ T __shfl_up_sync(u32 mask, T value, u32 distance, int width = 32) {
    return sim::shuffle(SIM_SHUFFLE_UP, mask, value, distance, width);
}
template <class T>
__forceinline__ T __shfl_down_sync(u32 mask, T value, u32 distance, int width = 32) {
    return sim::shuffle(SIM_SHUFFLE_DOWN, mask, value, distance, width);
}
template <class T>
__forceinline__ T __shfl_xor_sync(u32 mask, T value, int lanes, int width = 32) {
    return sim::shuffle(SIM_SHUFFLE_XOR, mask, value, static_cast<u32>(lanes), width);
}

__forceinline__ u32 __ballot_sync(u32 mask, int predicate) {
    return sim_vote(SIM_VOTE_BALLOT, mask, predicate != 0);
}
__forceinline__ int __any_sync(u32 mask, int predicate) {
    return static_cast<int>(sim_vote(SIM_VOTE_ANY, mask, predicate != 0));
}
__forceinline__ int __all_sync(u32 mask, int predicate) {
    return static_cast<int>(sim_vote(SIM_VOTE_ALL, mask, predicate != 0));
}

// ---- Arithmetic ------------------------------------------------------------------------------------------------------

__forceinline__ u32 __float_as_uint(float x) {
    return std::bit_cast<u32>(x);
}
__forceinline__ float __uint_as_float(u32 x) {
    return std::bit_cast<float>(x);
}
__forceinline__ int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
__forceinline__ float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}

// The rest of CUDA's f32 functions are the C library's: fmaf, fmaxf, fminf, fabsf, sqrtf, expf, exp2f, logf, log2f, erff,
// rintf and so on.
__forceinline__ float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
__forceinline__ float __expf(float x) {
    return expf(x);
}
__forceinline__ float __logf(float x) {
    return logf(x);
}
__forceinline__ float __fdividef(float x, float y) {
    return x / y;
}
__forceinline__ float __frcp_rn(float x) {
    return 1.0f / x;
}

__forceinline__ constexpr int min(int a, int b) {
    return b < a ? b : a;
}
__forceinline__ constexpr int max(int a, int b) {
    return a < b ? b : a;
}
__forceinline__ constexpr u32 min(u32 a, u32 b) {
    return b < a ? b : a;
}
__forceinline__ constexpr u32 max(u32 a, u32 b) {
    return a < b ? b : a;
}
// As in CUDA: mixed signs compare as unsigned.
__forceinline__ constexpr u32 min(int a, u32 b) {
    return min(static_cast<u32>(a), b);
}
__forceinline__ constexpr u32 min(u32 a, int b) {
    return min(a, static_cast<u32>(b));
}
__forceinline__ constexpr u32 max(int a, u32 b) {
    return max(static_cast<u32>(a), b);
}
__forceinline__ constexpr u32 max(u32 a, int b) {
    return max(a, static_cast<u32>(b));
}
__forceinline__ constexpr u64 min(u64 a, u64 b) {
    return b < a ? b : a;
}
__forceinline__ constexpr u64 max(u64 a, u64 b) {
    return a < b ? b : a;
}
__forceinline__ float min(float a, float b) {
    return fminf(a, b);
}
__forceinline__ float max(float a, float b) {
    return fmaxf(a, b);
}

__forceinline__ int __popc(u32 x) {
    return std::popcount(x);
}
__forceinline__ int __clz(int x) {
    return std::countl_zero(static_cast<u32>(x));
}
__forceinline__ int __ffs(int x) {
    return x == 0 ? 0 : std::countr_zero(static_cast<u32>(x)) + 1;
}
__forceinline__ u32 __brev(u32 x) {
    u32 reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
__forceinline__ u32 __umulhi(u32 a, u32 b) {
    return static_cast<u32>(static_cast<u64>(a) * b >> 32);
}

// Byte i of the result: the byte of (y, x) that bits 4i..4i+2 of `selector` name; its sign, spread, if bit 4i + 3 is set.
__forceinline__ u32 __byte_perm(u32 x, u32 y, u32 selector) {
    u64 both = static_cast<u64>(y) << 32 | x;
    u32 result = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 byte = static_cast<u32>(both >> 8 * (selector >> 4 * i & 7u)) & 0xffu;
        if (selector >> 4 * i & 8u) byte = byte & 0x80u ? 0xffu : 0u;
        result |= byte << 8 * i;
    }
    return result;
}

// Read-only and streaming accesses are accesses.
template <class T>
__forceinline__ T __ldg(const T* from) {
    return *from;
}
template <class T>
__forceinline__ T __ldcs(const T* from) {
    return *from;
}
template <class T>
__forceinline__ void __stcs(T* to, T value) {
    *to = value;
}

// ---- Entry points ----------------------------------------------------------------------------------------------------

// Written by whoever compiles a kernel, one per kernel: a function that unpacks a launch's arguments, and their sizes.
// The function is not instrumented: it reads the argument list, which is no memory of the launch.
#define SIM_ENTRY(kernel)                                                                                       \
    extern "C" __attribute__((no_sanitize("thread"), visibility("default"))) void sim_entry_##kernel(void** args) { \
        sim::call(kernel, args);                                                                                \
    }                                                                                                           \
    extern "C" __attribute__((visibility("default"))) const SimParameters sim_parameters_##kernel;              \
    const SimParameters sim_parameters_##kernel = sim::parameters(kernel)

// Likewise, for kernels that say how many threads a block may have: what stands in their __launch_bounds__.
#define SIM_BOUNDS(kernel, ...)                                                             \
    extern "C" __attribute__((visibility("default"))) const u32 sim_bounds_##kernel;        \
    const u32 sim_bounds_##kernel = sim::most_threads(__VA_ARGS__)

namespace sim {

constexpr u32 most_threads(u32 threads, u32 = 0) {
    return threads;
}

template <class... Args, size_t... index>
__attribute__((no_sanitize("thread"), always_inline)) inline void call_unpacked(void (*kernel)(Args...), void** args,
                                                                                std::index_sequence<index...>) {
    kernel(*static_cast<std::remove_cv_t<Args>*>(args[index])...);
}

template <class... Args>
__attribute__((no_sanitize("thread"), always_inline)) inline void call(void (*kernel)(Args...), void** args) {
    call_unpacked(kernel, args, std::index_sequence_for<Args...>());
}

template <class... Args>
constexpr SimParameters parameters(void (*)(Args...)) {
    static_assert(sizeof...(Args) <= SIM_MOST_PARAMETERS);
    return {sizeof...(Args), {sizeof(Args)...}};
}

}  // namespace sim
