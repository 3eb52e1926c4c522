// products.cuh: what matmul.cu and matmul_hopper.cu share: parts of a depth, and what becomes of a product's sums.
#pragma once

#include "gelu.cuh"

// ---- Which part of the depth -----------------------------------------------------------------------------------------

// Parts of a depth that was split: all of `share`, but for the last.
struct Split {
    static constexpr u32 MULTIPLE = 64;  // of it every share is one, so that it is whole stages of either file's products

    u32 share;  // 0 if there is no depth
    u32 used;   // parts that have anything

    __device__ static __forceinline__ Split of(u32 depth, u32 splits) {
        u32 share = ceil_div(ceil_div(depth, MULTIPLE), splits) * MULTIPLE;
        return Split{share, share > 0 ? ceil_div(depth, share) : 0};
    }
};

// ---- What becomes of the sums: bf16 ----------------------------------------------------------------------------------

enum class Finish { Write, Bias, BiasGelu, Add, GeluBackward };

// Whether it needs what lies where the result goes, or beside it.
constexpr __device__ __forceinline__ bool reads_before(Finish finish) {
    return finish == Finish::Add || finish == Finish::GeluBackward;
}

// Where a bf16 result goes. What is not needed is null.
struct Target {
    bf16* y;
    u32 lead;            // from row to row, in `y`, `pre` and `before`
    bf16* pre;           // BiasGelu: written
    const bf16* before;  // Add: the old y. GeluBackward: the pre-activation
    const float* bias;   // Bias, BiasGelu
    u32 biases;          // how many there are; columns beyond have none
    float* partials;     // GeluBackward: column sums of each row of tiles [row tiles, lead]
};

// Eight bf16 as they lie in memory.
using Chunk = Vec<u32, 4>;

// The biases of two columns that lie side by side.
struct alignas(8) BiasPair {
    float low = 0.0f, high = 0.0f;

    template <Finish finish>
    __device__ static __forceinline__ BiasPair of(const Target& to, u32 col) {
        BiasPair bias;
        if constexpr (finish == Finish::Bias || finish == Finish::BiasGelu) {
            if (col < to.biases) bias.low = to.bias[col];
            if (col + 1 < to.biases) bias.high = to.bias[col + 1];
        }
        return bias;
    }
};

// Two sums that lie side by side, rounded; `before` is their pair of what the finish needs.
template <Finish finish>
__device__ __forceinline__ u32 finish_pair(float low, float high, const BiasPair& bias, u32 before) {
    low += bias.low;
    high += bias.high;
    if constexpr (finish == Finish::Add) {
        low += low_half(before);
        high += high_half(before);
    }
    if constexpr (finish == Finish::GeluBackward) {
        low *= gelu_slope(low_half(before));
        high *= gelu_slope(high_half(before));
    }
    return pack_bf16x2(low, high);
}

__device__ __forceinline__ u32 gelu_pair(u32 pre) {
    return pack_bf16x2(gelu(low_half(pre)), gelu(high_half(pre)));
}

// Adds the lane's `low` and `high` over the eight lanes that hold other rows of the same two columns.
__device__ __forceinline__ void sum_over_rows(float& low, float& high) {
#pragma unroll
    for (u32 distance = 4; distance < WARP; distance *= 2) {
        low += __shfl_xor_sync(ALL_LANES, low, distance);
        high += __shfl_xor_sync(ALL_LANES, high, distance);
    }
}

// ---- What becomes of the sums: f32 -----------------------------------------------------------------------------------

enum class Store { Write, Add };

// Row and column that a lane begins with in `store_rows_of_sums`, within the 16 rows.
__device__ __forceinline__ u32 sums_row() {
    u32 lane = threadIdx.x % WARP;
    return lane / 4 + lane % 2 * 8;
}

__device__ __forceinline__ u32 sums_col() {
    return threadIdx.x % WARP % 4 / 2 * 4;
}

// Stores 16 rows x 8 n columns of a warp straight from registers; `sum(j, i)` is value i of mma's fragment of columns 8j
// to 8j + 7. `to` is the lane's own first place, `exists(j)` whether its four columns from 8j on do. Neighbouring lanes
// hold two columns each of the same two rows; they trade, so that the even one has four columns of the upper row and the
// odd one four of the lower. A row of a warp's store is then a 32-byte sector.
template <Store how, u32 n, class Sum, class Exists>
__device__ __forceinline__ void store_rows_of_sums(float* to, Sum sum, Exists exists) {
    bool odd = threadIdx.x % 2 != 0;
    // All of a row's old values are asked for before the first is waited for.
    float values[n][4];
#pragma unroll
    for (u32 j = 0; j < n; j++) {
        if (how == Store::Add && exists(j)) {
            load(values[j], to + j * 8);
        } else {
            values[j][0] = values[j][1] = values[j][2] = values[j][3] = 0.0f;
        }
    }
#pragma unroll
    for (u32 j = 0; j < n; j++) {
        float first = __shfl_xor_sync(ALL_LANES, odd ? sum(j, 0) : sum(j, 2), 1);
        float second = __shfl_xor_sync(ALL_LANES, odd ? sum(j, 1) : sum(j, 3), 1);
        values[j][0] += odd ? first : sum(j, 0);
        values[j][1] += odd ? second : sum(j, 1);
        values[j][2] += odd ? sum(j, 2) : first;
        values[j][3] += odd ? sum(j, 3) : second;
        if (exists(j)) store(to + j * 8, values[j]);
    }
}
