// abi_hopper.h: the C functions behind the wrappers of ptx_hopper.cuh, and the one that makes tensor maps.
#pragma once

#include "abi.h"

extern "C" {

// ---- What kernels call -----------------------------------------------------------------------------------------------
// `barrier` is an Mbarrier, `map` a TensorMap.

void sim_mbarrier_init(void* barrier, u32 count);
void sim_mbarrier_inval(void* barrier);
void sim_mbarrier_arrive(void* barrier);
void sim_mbarrier_expect_tx(void* barrier, u32 bytes);
void sim_mbarrier_wait(void* barrier, u32 parity);
void sim_fence_mbarrier_init();
void sim_fence_proxy_async();
void sim_bar_sync(u32 id, u32 threads);
void sim_bar_arrive(u32 id, u32 threads);

void sim_bulk_load(void* to, const void* from, u32 bytes, void* barrier);
void sim_prefetch_tensormap(const void* map);
void sim_tensor_load(void* to, const void* map, int column, int row, void* barrier);
void sim_tensor_store(const void* map, int column, int row, const void* from);
void sim_bulk_commit();
void sim_bulk_wait(u32 pending, u32 only_read);

u32 sim_elect();
void sim_stmatrix_x4(void* row, SimQuad registers, u32 transposed);
void sim_setmaxnreg(u32 registers, u32 increase);

// `d` is the thread's `count` accumulators; majors are 0 for K, 1 for MN.
void sim_wgmma_shared(float* d, u32 count, u64 a, u64 b, u32 a_major, u32 b_major, u32 scale_d);
void sim_wgmma_registers(float* d, u32 count, SimQuad a, u64 b, u32 b_major, u32 scale_d);
void sim_wgmma_fence();
void sim_wgmma_commit();
void sim_wgmma_wait(u32 pending);
// Puts complete results into accumulators that were named at a wait.
void sim_wgmma_collect(float* d, u32 count);

// ---- What launching programs call ------------------------------------------------------------------------------------

// cuTensorMapEncodeTiled for the simulator: the same parameters, enumerations as their numbers in cuda.h. `map` is 128
// bytes. Two dimensions, no interleaving, element strides of 1. Returns 0, or 1 with what is wrong, by the limits that the
// driver's manual states.
int sim_encode_tensor_map(void* map, u32 data_type, u32 rank, void* address, const u64* dims, const u64* strides, const u32* box,
                          const u32* element_strides, u32 interleave, u32 swizzle, u32 l2_promotion, u32 oob_fill, char* error,
                          size_t error_bytes);

}  // extern "C"
