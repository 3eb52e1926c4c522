// common.cuh: what every kernel family shares: bf16, vectors of 16 bytes, live rows, reductions, Philox, dropout.
#pragma once

#include "ptx.cuh"

// ---- bf16 ------------------------------------------------------------------------------------------------------------

// The upper half of an f32. Arithmetic is done in f32; this type only stores.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float to_float(bf16 x) {
    return __uint_as_float(static_cast<u32>(x.bits) << 16);
}

__device__ __forceinline__ float to_float(float x) {
    return x;
}

// To nearest even.
__device__ __forceinline__ bf16 to_bf16(float x) {
    return bf16{static_cast<u16>(pack_bf16x2(x, 0.0f))};
}

// The two halves of a packed pair.
__device__ __forceinline__ float low_half(u32 pair) {
    return __uint_as_float(pair << 16);
}

__device__ __forceinline__ float high_half(u32 pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// n neighbouring values, loaded and stored at once: 16 bytes for bf16 x 8 and float x 4.
template <class T, int n>
struct alignas(n * sizeof(T)) Vec {
    T at[n];
};

template <int n>
__device__ __forceinline__ void load(float (&x)[n], const bf16* from) {
    static_assert(n % 2 == 0, "bf16 are taken apart in pairs");
    Vec<u32, n / 2> packed = *reinterpret_cast<const Vec<u32, n / 2>*>(from);
#pragma unroll
    for (int i = 0; i < n / 2; i++) {
        x[2 * i] = low_half(packed.at[i]);
        x[2 * i + 1] = high_half(packed.at[i]);
    }
}

template <int n>
__device__ __forceinline__ void load(float (&x)[n], const float* from) {
    constexpr int step = n < 4 ? n : 4;
#pragma unroll
    for (int i = 0; i < n; i += step) {
        Vec<float, step> packed = *reinterpret_cast<const Vec<float, step>*>(from + i);
#pragma unroll
        for (int j = 0; j < step; j++) x[i + j] = packed.at[j];
    }
}

template <int n>
__device__ __forceinline__ void store(bf16* to, const float (&x)[n]) {
    static_assert(n % 2 == 0, "bf16 are converted in pairs");
    Vec<u32, n / 2> packed;
#pragma unroll
    for (int i = 0; i < n / 2; i++) packed.at[i] = pack_bf16x2(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<Vec<u32, n / 2>*>(to) = packed;
}

template <int n>
__device__ __forceinline__ void store(float* to, const float (&x)[n]) {
    constexpr int step = n < 4 ? n : 4;
#pragma unroll
    for (int i = 0; i < n; i += step) {
        Vec<float, step> packed;
#pragma unroll
        for (int j = 0; j < step; j++) packed.at[j] = x[i + j];
        *reinterpret_cast<Vec<float, step>*>(to + i) = packed;
    }
}

// ---- Live rows -------------------------------------------------------------------------------------------------------

// Which rows of a matrix a launch works on: those from `first` on, at most `capacity`, as far as they are live. How many
// rows of the whole matrix are live lies in device memory, so that one captured launch serves every batch.
struct Rows {
    const u32* live;
    u32 first;
    u32 capacity;

    // Rows to work on; the launch's row i is the matrix's row first + i.
    __device__ __forceinline__ u32 count() const {
        u32 all = *live;
        u32 rest = all > first ? all - first : 0;
        return rest < capacity ? rest : capacity;
    }
};

__device__ __forceinline__ u32 ceil_div(u32 a, u32 b) {
    return (a + b - 1) / b;
}

// ---- Reductions, in a fixed order ------------------------------------------------------------------------------------

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// Butterfly: every lane gets the sum, and all the same bits.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// ---- Philox4x32-10 ---------------------------------------------------------------------------------------------------

struct Random4 {
    u32 word[4];
};

// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the same as src/philox.rs.
__device__ __forceinline__ Random4 philox4x32(u32 c0, u32 c1, u32 c2, u32 c3, u32 key0, u32 key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 p0 = static_cast<u64>(0xD2511F53u) * c0;
        u64 p1 = static_cast<u64>(0xCD9E8D57u) * c2;
        c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ key0;
        c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ key1;
        c1 = static_cast<u32>(p1);
        c3 = static_cast<u32>(p0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return Random4{{c0, c1, c2, c3}};
}

// ---- Dropout ---------------------------------------------------------------------------------------------------------

// What decides which values are dropped; the same as src/backend/dropout.rs. A draw covers eight neighbouring columns of a
// row, 16 bits each; a value is dropped when its bits are below `threshold`. The step lies in device memory.
struct Dropout {
    const u32* step;
    u32 threshold;  // 65,536 x drop_prob; 0 = no dropout
    u32 site;       // below 65,536: which place of the model; attention adds head << 16
    u32 key0, key1;
    float keep_scale;  // 1 / (1 - drop probability), from the true threshold

    __device__ __forceinline__ bool active() const {
        return threshold > 0;
    }

    // Bit c: whether column 8 block + c of `row` is kept.
    __device__ __forceinline__ u32 kept8(u32 step_now, u32 row, u32 block, u32 head = 0) const {
        Random4 random = philox4x32(block, row, site | head << 16, step_now, key0, key1);
        u32 kept = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            kept |= (random.word[i] & 0xffffu) >= threshold ? 1u << (2 * i) : 0u;
            kept |= random.word[i] >> 16 >= threshold ? 2u << (2 * i) : 0u;
        }
        return kept;
    }
};

// ---- Sums over a block -----------------------------------------------------------------------------------------------

// x[i] = the sum of every thread's x[i], the same bits for all; pairs in a fixed order, in `shared` [n x threads].
template <u32 threads, int n>
__device__ __forceinline__ void block_sum(double (&x)[n], double* shared) {
    static_assert((threads & (threads - 1)) == 0, "halves must be whole");
#pragma unroll
    for (int i = 0; i < n; i++) shared[i * threads + threadIdx.x] = x[i];
    __syncthreads();
#pragma unroll
    for (u32 half = threads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
#pragma unroll
            for (int i = 0; i < n; i++) shared[i * threads + threadIdx.x] += shared[i * threads + threadIdx.x + half];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < n; i++) x[i] = shared[i * threads];
    __syncthreads();  // whatever comes next may use `shared` again
}

// A block of 256 threads walks down a strip of 64 columns, 32 rows at a time: eight threads side by side read the 128
// bytes of a row, 8 columns each, and keep their columns' sums in registers.
constexpr u32 STRIP_THREADS = 256;
constexpr u32 STRIP_COLUMNS = 64;
constexpr u32 STRIP_ROWS = 32;

__device__ __forceinline__ u32 strip_row() {
    return threadIdx.x / 8;
}

__device__ __forceinline__ u32 strip_column() {
    return threadIdx.x % 8 * 8;
}

// into[c] += the strip's sum of column c, for c < columns. The four rows of a warp are added first, then the eight warps
// in order. `shared` [8 x 64], of this sum's own.
__device__ __forceinline__ void add_strip(float (&sum)[8], float* shared, float* into, u32 columns) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 8);
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 16);
    }
    if (threadIdx.x % WARP < 8) store(shared + threadIdx.x / WARP * STRIP_COLUMNS + strip_column(), sum);
    __syncthreads();
    u32 column = threadIdx.x;
    if (column < STRIP_COLUMNS && column < columns) {
        float total = 0.0f;
#pragma unroll
        for (u32 warp = 0; warp < STRIP_THREADS / WARP; warp++) total += shared[warp * STRIP_COLUMNS + column];
        into[column] += total;
    }
}

// ---- Tally -----------------------------------------------------------------------------------------------------------

// Running sums of the loss ops; the same as `Tally` in src/backend/mod.rs.
struct Tally {
    double loss;
    double weight;
    u64 targets;
    u64 correct;
    double grad_norm;
};
