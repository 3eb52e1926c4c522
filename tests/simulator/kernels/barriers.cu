// Kernels that need a barrier, with it and without; one block of some threads, and what several blocks do to one word.

#include "common.cuh"

template <bool barrier>
__device__ __forceinline__ void rotate(const u32* x, u32* y) {
    SHARED_MEMORY(u32, turn);
    u32 t = threadIdx.x;
    turn[t] = x[t];
    if (barrier) __syncthreads();
    y[t] = turn[(t + 1) % blockDim.x];
}

extern "C" __global__ void rotate_with_barrier(const u32* x, u32* y) {
    rotate<true>(x, y);
}

extern "C" __global__ void rotate_without_barrier(const u32* x, u32* y) {
    rotate<false>(x, y);
}

// Adds over a tree: each round reads what the one before wrote, and overwrites what it read.
template <bool before_writing>
__device__ __forceinline__ void rounds(const u32* x, u32* y) {
    SHARED_MEMORY(u32, turn);
    u32 t = threadIdx.x;
    turn[t] = x[t];
    for (u32 round = 0; round < 4; round++) {
        __syncthreads();
        u32 next = turn[(t + 1) % blockDim.x];
        if (before_writing) __syncthreads();
        turn[t] = next + 1;
    }
    y[t] = turn[t];
}

extern "C" __global__ void rounds_with_barrier(const u32* x, u32* y) {
    rounds<true>(x, y);
}

extern "C" __global__ void rounds_without_barrier(const u32* x, u32* y) {
    rounds<false>(x, y);
}

// Neighbouring lanes swap over shared memory.
template <bool barrier>
__device__ __forceinline__ void swap(const u32* x, u32* y) {
    SHARED_MEMORY(u32, turn);
    u32 t = threadIdx.x;
    turn[t] = x[t];
    if (barrier) __syncwarp();
    y[t] = turn[t ^ 1];
}

extern "C" __global__ void swap_with_syncwarp(const u32* x, u32* y) {
    swap<true>(x, y);
}

extern "C" __global__ void swap_without_syncwarp(const u32* x, u32* y) {
    swap<false>(x, y);
}

// A shuffle makes lanes meet, and yet orders no memory.
extern "C" __global__ void swap_with_shuffle(const u32* x, u32* y) {
    SHARED_MEMORY(u32, turn);
    u32 t = threadIdx.x;
    turn[t] = x[t];
    u32 met = __shfl_sync(ALL_LANES, t, 0);
    y[t] = turn[t ^ 1] + met - met;
}

// __syncwarp orders the lanes of one warp, not those of two.
extern "C" __global__ void swap_warps_with_syncwarp(const u32* x, u32* y) {
    SHARED_MEMORY(u32, turn);
    u32 t = threadIdx.x;
    turn[t] = x[t];
    __syncwarp();
    y[t] = turn[t ^ 32];
}

// A warp whose lanes pass on what another warp gave them: order goes through both barriers.
extern "C" __global__ void chain(const u32* x, u32* y) {
    SHARED_MEMORY(u32, turn);
    u32 t = threadIdx.x;
    turn[t] = x[t];
    __syncthreads();
    u32 other = turn[t ^ 32];
    __syncthreads();
    turn[t] = other;
    __syncwarp();
    y[t] = turn[t ^ 1];
}

extern "C" __global__ void divergent_barrier(u32* y) {
    if (threadIdx.x < 40) __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_or_shuffle(u32* y) {
    u32 t = threadIdx.x;
    if (t < 32) {
        __syncthreads();
    } else {
        t = __shfl_xor_sync(ALL_LANES, t, 1);
        __syncthreads();
        __syncthreads();
    }
    y[threadIdx.x] = t;
}

extern "C" __global__ void barrier_in_every_branch(u32* y) {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = 1;
}

// Threads 2i and 2i + 1 write word i.
extern "C" __global__ void two_writers(u32* y) {
    y[threadIdx.x / 2] = 1;
}

extern "C" __global__ void two_writers_in_turn(u32* y) {
    if (threadIdx.x % 2 == 0) y[threadIdx.x / 2] = 1;
    __syncthreads();
    if (threadIdx.x % 2 == 1) y[threadIdx.x / 2] = 2;
}

// Halves of one word are two places.
extern "C" __global__ void two_writers_of_halves(u16* y) {
    y[threadIdx.x] = 1;
}

// Each block writes a word of its own and, with `overlap`, the first of the next.
extern "C" __global__ void blocks_write(u32* y, u32 overlap) {
    if (threadIdx.x < 1 + overlap) y[blockIdx.x + threadIdx.x] = blockIdx.x;
}

// Each block adds to its own word what the next one has in its.
extern "C" __global__ void blocks_read(u32* y) {
    if (threadIdx.x == 3) y[blockIdx.x] += y[blockIdx.x + 1];
}
