// ldmatrix and mma.sync alone, so that what a lane gets can be compared with the manual.

#include "common.cuh"

// Four 8x8 matrices of 16-bit elements, one after another in x; y[lane][register].
template <bool transposed>
__device__ __forceinline__ void load_matrices(const u16* x, u32* y) {
    SHARED_MEMORY(u16, matrices);
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 256; i += 32) matrices[i] = x[i];
    __syncwarp();
    u32 r[4];
    if (transposed)
        ldmatrix_x4_trans(r, matrices + 8 * lane);
    else
        ldmatrix_x4(r, matrices + 8 * lane);
    for (u32 i = 0; i < 4; i++) y[4 * lane + i] = r[i];
}

extern "C" __global__ void load_four(const u16* x, u32* y) {
    load_matrices<false>(x, y);
}

extern "C" __global__ void load_four_transposed(const u16* x, u32* y) {
    load_matrices<true>(x, y);
}

extern "C" __global__ void load_misaligned(const u16* x, u32* y) {
    SHARED_MEMORY(u16, matrices);
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 256; i += 32) matrices[i] = x[i];
    __syncwarp();
    u32 r[4];
    ldmatrix_x4(r, matrices + 7 * lane);
    y[lane] = r[0] + r[1] + r[2] + r[3];
}

// Fragments as they lie in registers: a[lane][4], b[lane][2], d[lane][4].
extern "C" __global__ void multiply(const u32* a, const u32* b, float* d) {
    u32 lane = threadIdx.x;
    u32 x[4], y[2];
    float sum[4];
    for (u32 i = 0; i < 4; i++) x[i] = a[4 * lane + i];
    for (u32 i = 0; i < 2; i++) y[i] = b[2 * lane + i];
    for (u32 i = 0; i < 4; i++) sum[i] = d[4 * lane + i];
    mma_m16n8k16(sum, x, y);
    for (u32 i = 0; i < 4; i++) d[4 * lane + i] = sum[i];
}

// pack_bf16x2 and exp2_fast of each value, pack_f16x2 and back.
extern "C" __global__ void numbers(const float* x, u32* packed, float* power, u32* halves, float* back) {
    u32 t = threadIdx.x;
    packed[t] = pack_bf16x2(x[t], -x[t]);
    power[t] = exp2_fast(x[t]);
    halves[t] = pack_f16x2(x[t], -x[t]);
    unpack_f16x2(back[2 * t], back[2 * t + 1], halves[t]);
}
