// cp.async: a tile of 4 bytes per thread and stage goes through shared memory; each thread copies 16 bytes for four.

#include "common.cuh"

// Copies x, blockDim.x words a stage, to y, the words of each stage reversed. `pending` groups are left under way while a
// stage is read; `barrier` stands between the wait and the reading of what others copied.
template <int pending, bool commit, bool barrier>
__device__ __forceinline__ void reverse(const u32* x, u32* y, u32 stages) {
    SHARED_MEMORY(u32, ring);
    u32 t = threadIdx.x, words = blockDim.x;
    auto issue = [&](u32 stage) {
        if (stage < stages && t < words / 4) cp_async_16(ring + stage % 2 * words + 4 * t, x + stage * words + 4 * t);
        if (commit) cp_async_commit();
    };
    issue(0);
    for (u32 stage = 0; stage < stages; stage++) {
        issue(stage + 1);
        cp_async_wait<pending>();
        if (barrier) __syncthreads();
        y[stage * words + t] = ring[stage % 2 * words + words - 1 - t];
        __syncthreads();
    }
}

extern "C" __global__ void reverse_right(const u32* x, u32* y, u32 stages) {
    reverse<1, true, true>(x, y, stages);
}

extern "C" __global__ void reverse_waits_for_too_few(const u32* x, u32* y, u32 stages) {
    reverse<2, true, true>(x, y, stages);
}

extern "C" __global__ void reverse_without_commit(const u32* x, u32* y, u32 stages) {
    reverse<0, false, true>(x, y, stages);
}

extern "C" __global__ void reverse_without_barrier(const u32* x, u32* y, u32 stages) {
    reverse<1, true, false>(x, y, stages);
}

// The next stage is asked for before everybody is done with the buffer that it lands in.
extern "C" __global__ void reverse_overwrites(const u32* x, u32* y, u32 stages) {
    SHARED_MEMORY(u32, buffer);
    u32 t = threadIdx.x, words = blockDim.x;
    for (u32 stage = 0; stage < stages; stage++) {
        if (t < words / 4) cp_async_16(buffer + 4 * t, x + stage * words + 4 * t);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        y[stage * words + t] = buffer[words - 1 - t];
    }
}

// `bytes` of each sixteen, and zeros.
extern "C" __global__ void copy_part(const u32* x, u32* y, u32 bytes) {
    SHARED_MEMORY(u32, buffer);
    u32 t = threadIdx.x;
    cp_async_16(buffer + 4 * t, x + 4 * t, bytes);
    cp_async_commit();
    cp_async_wait<0>();
    for (u32 i = 0; i < 4; i++) y[4 * t + i] = buffer[4 * t + i];
}

extern "C" __global__ void copy_misaligned(const u32* x, u32* y) {
    SHARED_MEMORY(u32, buffer);
    cp_async_16(buffer + 4 * threadIdx.x, x + 4 * threadIdx.x + 1);
    cp_async_commit();
    cp_async_wait<0>();
    y[threadIdx.x] = buffer[threadIdx.x * 4];
}

// Copies that nobody reads need no wait.
extern "C" __global__ void copy_unused(const u32* x, u32* y) {
    SHARED_MEMORY(u32, buffer);
    cp_async_16(buffer + 4 * threadIdx.x, x + 4 * threadIdx.x);
    y[threadIdx.x] = 1;
}
