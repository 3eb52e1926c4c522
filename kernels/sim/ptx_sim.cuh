// ptx_sim.cuh: the wrappers of ptx.cuh in host C++, with the meaning the PTX manual gives them. ptx.cuh includes this file
// instead of its own body when HANDBERT_SIM is defined.
#pragma once

#include "sim.cuh"

// The block's dynamic shared memory; 1024-byte aligned.
#define SHARED_MEMORY(type, name) type* name = static_cast<type*>(sim_shared_memory())

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return sim_shared_address(pointer);
}

// ---- Numbers ---------------------------------------------------------------------------------------------------------

namespace sim {

// cvt.rn.bf16.f32: to nearest even; NaN becomes 0x7fff.
__forceinline__ u32 round_to_bf16(float x) {
    u32 bits = std::bit_cast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

// To nearest even: 10 bits of mantissa, from 2^-14 on; below, steps of 2^-24.
inline u32 round_to_f16(float x) {
    u32 sign = __float_as_uint(x) >> 16 & 0x8000u;
    float size = fabsf(x);
    if (!(size <= __uint_as_float(0x7f800000u))) return 0x7fffu;
    if (size >= 65520.0f) return sign | 0x7c00u;
    if (size < 0x1p-14f) return sign | static_cast<u32>(rintf(size * 0x1p24f));
    u32 bits = __float_as_uint(size);
    return sign | ((bits + 0xfffu + (bits >> 13 & 1)) >> 13) - (112u << 10);
}

inline float from_f16(u32 bits) {
    u32 exponent = bits >> 10 & 31, mantissa = bits & 0x3ffu;
    float size = exponent == 0    ? static_cast<float>(mantissa) * 0x1p-24f
                 : exponent == 31 ? __uint_as_float(0x7f800000u | mantissa << 13)
                                  : __uint_as_float((exponent + 112) << 23 | mantissa << 13);
    return bits & 0x8000u ? -size : size;
}

}  // namespace sim

__device__ __forceinline__ u32 pack_f16x2(float low, float high) {
    return sim::round_to_f16(low) | sim::round_to_f16(high) << 16;
}

__device__ __forceinline__ void unpack_f16x2(float& low, float& high, u32 packed) {
    low = sim::from_f16(packed & 0xffffu);
    high = sim::from_f16(packed >> 16);
}

__device__ __forceinline__ u32 pack_bf16x2(float low, float high) {
    return sim::round_to_bf16(low) | sim::round_to_bf16(high) << 16;
}

// ex2.approx.ftz.f32: subnormal inputs and results become zero of the same sign.
__device__ __forceinline__ float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

// ---- Warp: fragments and tensor cores --------------------------------------------------------------------------------

__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
    SimQuad loaded = sim_ldmatrix_x4(row, 0);
    for (int i = 0; i < 4; i++) r[i] = loaded.at[i];
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    SimQuad loaded = sim_ldmatrix_x4(row, 1);
    for (int i = 0; i < 4; i++) r[i] = loaded.at[i];
}

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    SimFloat4 sum = sim_mma_m16n8k16({{d[0], d[1], d[2], d[3]}}, {{a[0], a[1], a[2], a[3]}}, {{b[0], b[1]}});
    for (int i = 0; i < 4; i++) d[i] = sum.at[i];
}

// ---- Asynchronous copies, sm_80 --------------------------------------------------------------------------------------

__device__ __forceinline__ void cp_async_16(void* to, const void* from, u32 bytes = 16) {
    sim_cp_async_16(to, from, bytes);
}

__device__ __forceinline__ void cp_async_commit() {
    sim_cp_async_commit();
}

template <int pending>
__device__ __forceinline__ void cp_async_wait() {
    sim_cp_async_wait(pending);
}

#include "ptx_hopper_sim.cuh"
