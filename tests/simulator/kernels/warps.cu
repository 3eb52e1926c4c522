// What lanes do together, rightly and wrongly.

#include "common.cuh"

// Twelve shuffles of one value; the sixteen of a row are y[16 lane ..].
extern "C" __global__ void shuffles(const u32* x, u32* y) {
    u32 lane = threadIdx.x;
    u32 mine = x[lane];
    u32* row = y + 16 * lane;
    row[0] = __shfl_sync(ALL_LANES, mine, 5);
    row[1] = __shfl_sync(ALL_LANES, mine, static_cast<int>(lane) + 33);
    row[2] = __shfl_sync(ALL_LANES, mine, 11, 8);
    row[3] = __shfl_up_sync(ALL_LANES, mine, 3);
    row[4] = __shfl_up_sync(ALL_LANES, mine, 3, 8);
    row[5] = __shfl_down_sync(ALL_LANES, mine, 3);
    row[6] = __shfl_down_sync(ALL_LANES, mine, 3, 8);
    row[7] = __shfl_xor_sync(ALL_LANES, mine, 21);
    row[8] = __shfl_xor_sync(ALL_LANES, mine, 12, 8);
    u32 third = lane % 3 == 0 ? 0x49249249u : lane % 3 == 1 ? 0x92492492u : 0x24924924u;
    row[9] = __shfl_sync(third, mine, static_cast<int>(lane + 3) % 30);
    row[10] = __ballot_sync(ALL_LANES, mine % 3 == 0);
    row[11] = static_cast<u32>(__any_sync(third, lane == 6));
    row[12] = static_cast<u32>(__all_sync(third, lane % 3 == 0));
    row[13] = __float_as_uint(__shfl_xor_sync(ALL_LANES, __uint_as_float(mine), 1));
    row[14] = __ballot_sync(third, 1);
    row[15] = static_cast<u32>(__shfl_down_sync(ALL_LANES, -static_cast<int>(mine), 16));
}

extern "C" __global__ void shuffle_in_a_branch(u32* y) {
    u32 sum = 0;
    if (threadIdx.x < 16) sum = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
    __syncwarp();
    y[threadIdx.x] = sum;
}

extern "C" __global__ void shuffle_after_exit(u32* y) {
    if (threadIdx.x >= 16) return;
    y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
}

extern "C" __global__ void shuffle_of_half(u32* y) {
    if (threadIdx.x >= 16) return;
    y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, threadIdx.x, 1);
}

extern "C" __global__ void shuffle_without_self(u32* y) {
    y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, threadIdx.x, 1);
}

extern "C" __global__ void shuffle_from_outside(u32* y) {
    if (threadIdx.x >= 16) return;
    y[threadIdx.x] = __shfl_sync(0x0000ffffu, threadIdx.x, 20);
}

extern "C" __global__ void two_shuffles(u32* y) {
    u32 got = threadIdx.x % 2 == 0 ? __shfl_xor_sync(ALL_LANES, 1u, 1) : __shfl_up_sync(ALL_LANES, 1u, 1);
    y[threadIdx.x] = got;
}

extern "C" __global__ void two_masks(u32* y) {
    u32 mask = threadIdx.x < 16 ? ALL_LANES : 0xffff0000u;
    y[threadIdx.x] = __shfl_xor_sync(mask, 1u, 1);
}

extern "C" __global__ void mma_in_a_branch(float* y) {
    float d[4] = {};
    u32 a[4] = {}, b[2] = {};
    if (threadIdx.x != 7) mma_m16n8k16(d, a, b);
    y[threadIdx.x] = d[0];
}

// A block of 48 threads: the last warp has sixteen lanes.
extern "C" __global__ void sum_of_part_of_a_warp(u32* y) {
    y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
}
