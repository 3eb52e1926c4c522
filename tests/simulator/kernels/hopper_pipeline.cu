// A ring of tensor copies feeding wgmma, as it should be and with one fault at a time.
// pipeline: y = A B, one block: A [64, 64 tiles], B [64, 64 tiles] both by rows of k, y [64, 64] bf16, every map with a
// swizzle of 128 bytes and boxes of 64 x 64. Warps 0..3 multiply, warp 4 copies.
#include "common.cuh"

// What is left out or done wrong. tests/simulator/hopper/pipeline.rs has the same list.
enum class Fault : u32 {
    none,
    no_init,               // barriers never initialised
    no_init_fence,         // the copy engine may not know the barriers
    no_expect_tx,          // copies that no phase waits for
    expect_too_much,       // a phase waits for bytes that never come
    no_full_wait,          // tiles read before they have landed
    wrong_parity,          // waits for the phase before
    no_empty_wait,         // tiles overwritten while they are read
    early_release,         // tiles given back before wgmma is through with them
    too_few_arrivals,      // one consumer thread forgets to give a tile back
    too_many_arrivals,     // every lane arrives where one was counted
    no_wgmma_fence,        // accumulators written, then used by wgmma without a fence
    no_wgmma_wait,         // accumulators read while wgmma runs
    warp_missing,          // three warps of the four run wgmma
    no_proxy_fence,        // a copy of shared memory that was written by ordinary stores
    no_store_barrier,      // a copy that does not wait for the other threads' stores
    no_store_wait,         // the kernel ends while a copy reads shared memory
    source_overwritten,    // shared memory overwritten before the copy has read it
    named_barrier_count,   // threads that disagree how many a barrier waits for
    barrier_overwritten,   // an mbarrier's memory used for something else
    map_misaligned,        // a swizzled box that does not start at a multiple of 1024 bytes
};

constexpr u32 STAGES = 2;
constexpr u32 CONSUMERS = 128;
constexpr u32 TILE = 64 * 128;  // bytes of a box
constexpr u64 LAYOUT = wgmma_layout(Swizzle::bytes128, 16, 1024);

struct Shared {
    u8 a[STAGES][TILE];
    u8 b[STAGES][TILE];
    u8 y[TILE];
    Mbarrier full[STAGES];
    Mbarrier empty[STAGES];
};

__device__ void produce(Shared* shared, const TensorMap* a, const TensorMap* b, u32 tiles, Fault fault) {
    for (u32 i = 0; i < tiles; i++) {
        u32 stage = i % STAGES, turn = i / STAGES;
        if (fault != Fault::no_empty_wait) mbarrier_wait(&shared->empty[stage], (turn & 1) ^ 1);
        Mbarrier* full = &shared->full[stage];
        if (fault == Fault::no_expect_tx) {
            mbarrier_arrive(full);
        } else {
            mbarrier_arrive_expect_tx(full, 2 * TILE + (fault == Fault::expect_too_much ? 16 : 0));
        }
        int column = static_cast<int>(64 * i);
        u32 off = fault == Fault::map_misaligned ? 128 : 0;
        cp_async_bulk_tensor_2d_load(shared->a[stage] + off, a, column, 0, full);
        cp_async_bulk_tensor_2d_load(shared->b[stage], b, column, 0, full);
    }
}

__device__ void consume(float (&d)[32], Shared* shared, u32 tiles, Fault fault) {
#pragma unroll
    for (int i = 0; i < 32; i++) d[i] = 0.0f;
    for (u32 i = 0; i < tiles; i++) {
        u32 stage = i % STAGES, turn = i / STAGES;
        u32 parity = (turn & 1) ^ (fault == Fault::wrong_parity ? 1 : 0);
        if (fault != Fault::no_full_wait) mbarrier_wait(&shared->full[stage], parity);
        if (fault == Fault::too_many_arrivals) mbarrier_arrive(&shared->full[stage]);
        if (fault != Fault::no_wgmma_fence) wgmma_fence(d);
        if (fault != Fault::warp_missing || threadIdx.x >= 32) {
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                wgmma_mma_async<Major::K, Major::K>(d, wgmma_descriptor(shared->a[stage] + 32 * k, LAYOUT),
                                                    wgmma_descriptor(shared->b[stage] + 32 * k, LAYOUT), ScaleD::one);
            }
        }
        wgmma_commit();
        bool forgets = fault == Fault::too_few_arrivals && threadIdx.x == 77;
        if (fault == Fault::early_release) mbarrier_arrive(&shared->empty[stage]);
        if (fault != Fault::no_wgmma_wait) wgmma_wait<0>(d);
        if (fault != Fault::early_release && !forgets) mbarrier_arrive(&shared->empty[stage]);
    }
}

// Rounds, stores through stmatrix with the swizzle of the map, and copies out.
__device__ void store(const TensorMap* y, Shared* shared, const float (&d)[32], Fault fault) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 row = 16 * warp + lane % 16;  // this lane's address: matrices 0 and 1 are rows 0..8 and 8..16, then 8 columns on
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        u32 r[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) r[i] = pack_bf16x2(d[8 * j + 2 * i], d[8 * j + 2 * i + 1]);
        stmatrix_x4(shared->y + swizzled(Swizzle::bytes128, row * 128 + 32 * j + 16 * (lane / 16)), r);
    }
    if (fault != Fault::no_proxy_fence) fence_proxy_async();
    if (fault != Fault::no_store_barrier) bar_sync(1, CONSUMERS);
    if (threadIdx.x != 0) return;
    cp_async_bulk_tensor_2d_store(y, 0, 0, shared->y);
    cp_async_bulk_commit();
    if (fault == Fault::source_overwritten) shared->y[16] = 1;
    if (fault != Fault::no_store_wait) cp_async_bulk_wait<0>();
}

extern "C" __global__ void __launch_bounds__(160)
    pipeline(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
             const __grid_constant__ TensorMap y, u32 tiles, u32 fault_number) {
    SHARED_MEMORY(Shared, shared);
    Fault fault = static_cast<Fault>(fault_number);
    if (threadIdx.x == 0 && fault != Fault::no_init) {
        for (u32 i = 0; i < STAGES; i++) {
            mbarrier_init(&shared->full[i], 1);
            mbarrier_init(&shared->empty[i], CONSUMERS);
        }
        if (fault != Fault::no_init_fence) fence_mbarrier_init();
    }
    __syncthreads();
    if (fault == Fault::barrier_overwritten && threadIdx.x == 129) shared->full[0].opaque = 0;
    if (threadIdx.x < CONSUMERS) {
        float d[32];
        consume(d, shared, tiles, fault);
        store(&y, shared, d, fault);
        if (fault == Fault::named_barrier_count) bar_sync(2, threadIdx.x < 64 ? 128 : 64);
    } else if (elect_sync()) {
        produce(shared, &a, &b, tiles, fault);
    }
}

// setmaxnreg by a whole warpgroup, or by its first warp alone.
extern "C" __global__ void __launch_bounds__(256, 1) registers(u32 whole, u32* __restrict__ out) {
    if (threadIdx.x < 128) {
        if (whole || threadIdx.x < 32) setmaxnreg_dec<40>();
    } else {
        setmaxnreg_inc<232>();
    }
    out[threadIdx.x] = threadIdx.x;
}

// Two halves of a block hand a value over through a named barrier: bar.arrive by the writers, bar.sync by the readers. With
// `swapped` the readers arrive and the writers wait, which orders nothing for the readers.
extern "C" __global__ void __launch_bounds__(128) hand_over(u32 swapped, u32* __restrict__ out) {
    SHARED_MEMORY(u32, shared);
    bool writes = threadIdx.x < 64;
    if (writes) shared[threadIdx.x] = threadIdx.x;
    if (writes != (swapped != 0)) {
        bar_arrive(3, 128);
    } else {
        bar_sync(3, 128);
    }
    if (!writes) out[threadIdx.x - 64] = shared[127 - threadIdx.x];
}
