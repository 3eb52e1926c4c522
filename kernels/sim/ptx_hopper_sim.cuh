// ptx_hopper_sim.cuh: the wrappers of ptx_hopper.cuh in host C++. What they do is in mbarrier.cpp, proxy.cpp, bulk.cpp,
// matrix.cpp, wgmma.cpp and warp_hopper.cpp, each of which says what it checks.
//
// Not simulated: clusters (there is one block to each); a mbarrier_try_wait that gives up (it sleeps until the phase is
// complete, so it never answers false); registers changing hands by setmaxnreg (only that all warps of a warpgroup say the
// same and that the numbers fit); the time between a bulk store's reading and its writing; launches that overlap
// (griddepcontrol does nothing, each launch ends before the next).
#pragma once

#include "../ptx_hopper.cuh"
#include "abi_hopper.h"

// ---- mbarrier --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, u32 count) {
    sim_mbarrier_init(barrier, count);
}
__device__ __forceinline__ void mbarrier_inval(Mbarrier* barrier) {
    sim_mbarrier_inval(barrier);
}
__device__ __forceinline__ void fence_mbarrier_init() {
    sim_fence_mbarrier_init();
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
    sim_mbarrier_arrive(barrier);
}
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier* barrier, u32 bytes) {
    sim_mbarrier_expect_tx(barrier, bytes);
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier* barrier, u32 bytes) {
    sim_mbarrier_expect_tx(barrier, bytes);
    sim_mbarrier_arrive(barrier);
}
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier* barrier, u32 parity) {
    sim_mbarrier_wait(barrier, parity);
    return true;
}
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, u32 parity) {
    sim_mbarrier_wait(barrier, parity);
}

// ---- Proxies and named barriers --------------------------------------------------------------------------------------

__device__ __forceinline__ void fence_proxy_async() {
    sim_fence_proxy_async();
}
__device__ __forceinline__ void bar_sync(u32 id, u32 threads) {
    sim_bar_sync(id, threads);
}
__device__ __forceinline__ void bar_arrive(u32 id, u32 threads) {
    sim_bar_arrive(id, threads);
}
__device__ __forceinline__ bool elect_sync() {
    return sim_elect() != 0;
}

// ---- Bulk copies -----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void cp_async_bulk_load(void* to, const void* from, u32 bytes, Mbarrier* barrier) {
    sim_bulk_load(to, from, bytes, barrier);
}
__device__ __forceinline__ void prefetch_tensormap(const TensorMap* map) {
    sim_prefetch_tensormap(map);
}
__device__ __forceinline__ void cp_async_bulk_tensor_2d_load(void* to, const TensorMap* map, int column, int row,
                                                             Mbarrier* barrier) {
    sim_tensor_load(to, map, column, row, barrier);
}
__device__ __forceinline__ void cp_async_bulk_tensor_2d_store(const TensorMap* map, int column, int row, const void* from) {
    sim_tensor_store(map, column, row, from);
}
__device__ __forceinline__ void cp_async_bulk_commit() {
    sim_bulk_commit();
}
template <int pending>
__device__ __forceinline__ void cp_async_bulk_wait() {
    sim_bulk_wait(pending, 0);
}
template <int pending>
__device__ __forceinline__ void cp_async_bulk_wait_read() {
    sim_bulk_wait(pending, 1);
}

// ---- Fragments and dependent launches --------------------------------------------------------------------------------

__device__ __forceinline__ void stmatrix_x4(void* row, const u32 (&r)[4]) {
    sim_stmatrix_x4(row, {{r[0], r[1], r[2], r[3]}}, 0);
}
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const u32 (&r)[4]) {
    sim_stmatrix_x4(row, {{r[0], r[1], r[2], r[3]}}, 1);
}
__device__ __forceinline__ void griddepcontrol_launch_dependents() {}
__device__ __forceinline__ void griddepcontrol_wait() {}

// ---- Warpgroups: setmaxnreg and wgmma --------------------------------------------------------------------------------

template <int registers>
__device__ __forceinline__ void setmaxnreg_dec() {
    sim_setmaxnreg(registers, 0);
}
template <int registers>
__device__ __forceinline__ void setmaxnreg_inc() {
    sim_setmaxnreg(registers, 1);
}
template <int... r>
__device__ __forceinline__ void wgmma_fence([[maybe_unused]] float (&... d)[r]) {
    sim_wgmma_fence();
}
__device__ __forceinline__ void wgmma_commit() {
    sim_wgmma_commit();
}
template <int pending, int... r>
__device__ __forceinline__ void wgmma_wait(float (&... d)[r]) {
    sim_wgmma_wait(pending);
    (sim_wgmma_collect(d, r), ...);
}
template <Major a_major, Major b_major, int r>
__device__ __forceinline__ void wgmma_mma_async(float (&d)[r], u64 a, u64 b, ScaleD scale_d) {
    static_assert(r == 32 || r == 64 || r == 96 || r == 128, "N is 64, 128, 192 or 256");
    sim_wgmma_shared(d, r, a, b, static_cast<u32>(a_major), static_cast<u32>(b_major), static_cast<u32>(scale_d));
}
template <Major b_major, int r>
__device__ __forceinline__ void wgmma_mma_async(float (&d)[r], const u32 (&a)[4], u64 b, ScaleD scale_d) {
    static_assert(r == 32 || r == 64 || r == 96 || r == 128, "N is 64, 128, 192 or 256");
    sim_wgmma_registers(d, r, {{a[0], a[1], a[2], a[3]}}, b, static_cast<u32>(b_major), static_cast<u32>(scale_d));
}
