// ptx.cuh: every PTX instruction that the kernels use, each wrapped once.
//
// Each wrapper names its instruction and says what it does in the words of the PTX manual ("PTX ISA", NVIDIA; section
// titles are given). sim/ptx_sim.cuh holds the same functions in host C++, so a kernel that goes through them runs on a
// CPU unchanged. Kernels contain no inline assembly of their own.
#pragma once

#ifdef HANDBERT_SIM
#include "sim/ptx_sim.cuh"
#else

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// The block's dynamic shared memory as `type* name`. One per kernel; 1024-byte aligned, as swizzled tensor copies want.
#define SHARED_MEMORY(type, name)                                      \
    extern __shared__ __align__(1024) unsigned char handbert_shared[]; \
    type* name = reinterpret_cast<type*>(handbert_shared)

// Address of shared memory in the 32-bit shared window, as PTX operands want it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// ---- Numbers ---------------------------------------------------------------------------------------------------------

// cvt.rn.bf16x2.f32: two f32 to two bf16, to nearest even; `low` in bits 0..15. NaN becomes 0x7fff.
__device__ __forceinline__ u32 pack_bf16x2(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// cvt.rn.f16x2.f32: two f32 to two f16, to nearest even; `low` in bits 0..15.
__device__ __forceinline__ u32 pack_f16x2(float low, float high) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// cvt.f32.f16 of both halves; exact.
__device__ __forceinline__ void unpack_f16x2(float& low, float& high, u32 packed) {
    asm("{\n"
        ".reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.f32.f16 %0, low;\n"
        "cvt.f32.f16 %1, high;\n"
        "}"
        : "=f"(low), "=f"(high)
        : "r"(packed));
}

// ex2.approx.ftz.f32: 2^x, relative error below 2^-22; 2^-inf = 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- Warp: fragments and tensor cores --------------------------------------------------------------------------------

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: four 8x8 matrices of 16-bit elements. Lanes 8i..8i+8 give the addresses of
// matrix i's rows (16 bytes each, 16-byte aligned); lane l gets, of each matrix, elements 2(l % 4) and 2(l % 4) + 1 of row
// l / 4. All 32 lanes take part.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// ldmatrix with .trans: each 8x8 matrix is transposed on the way, so lane l gets elements 2(l % 4), 2(l % 4) + 1 of column
// l / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: d += a b, with a [16, 16], b [16, 8] (given by columns), d [16, 8].
// Lane l holds, with g = l / 4 and t = 2(l % 4):
//   a[0] = a(g, t..t+1)   a[1] = a(g+8, t..)   a[2] = a(g, t+8..)   a[3] = a(g+8, t+8..)
//   b[0] = b(t..t+1, g)   b[1] = b(t+8.., g)
//   d[0..2] = d(g, t..t+1)   d[2..4] = d(g+8, t..t+1)
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Asynchronous copies, sm_80 --------------------------------------------------------------------------------------

// cp.async.cg.shared.global: copies 16 bytes past L1, of which the first `bytes` (0..16) come from `from` and the rest are
// zero. With 0 nothing is read, but `from` must still be a valid pointer. Both ends 16-byte aligned. The data is there only
// after cp_async_wait, and for other threads after a barrier too.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, u32 bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}

// cp.async.commit_group: closes the group of this thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: waits until at most `pending` of this thread's newest groups are still under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#include "ptx_hopper.cuh"

#endif  // HANDBERT_SIM
