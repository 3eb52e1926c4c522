// layernorm.cuh: LayerNorm of rows [C] by one warp each, forward and backward, for layernorm.cu and embedding.cu.
//
// Of each row a lane holds VECTORS runs of VEC neighbouring columns, 32 VEC apart, so that what a warp loads at once lies
// in one piece: 16 bytes a lane (8 bf16) where C is a multiple of 256, else 8 or 4.
#pragma once

#include "common.cuh"

constexpr int C = WIDTH;
static_assert(C % 64 == 0 && C <= 3072, "WIDTH must be a multiple of 64, at most 3072");
constexpr int VEC = C % 256 == 0 ? 8 : C % 128 == 0 ? 4 : 2;
constexpr int VECTORS = C / (WARP * VEC);

// The first column of the lane's run v.
__device__ __forceinline__ u32 column(int v) {
    return (v * WARP + threadIdx.x % WARP) * VEC;
}

// A run of bf16 as it is loaded and stored.
using Run = Vec<u32, VEC / 2>;

__device__ __forceinline__ Run load_run(const bf16* from) {
    return *reinterpret_cast<const Run*>(from);
}

__device__ __forceinline__ void store_run(bf16* to, Run run) {
    *reinterpret_cast<Run*>(to) = run;
}

__device__ __forceinline__ void unpack(float (&x)[VEC], Run run) {
#pragma unroll
    for (int i = 0; i < VEC; i += 2) {
        x[i] = low_half(run.at[i / 2]);
        x[i + 1] = high_half(run.at[i / 2]);
    }
}

__device__ __forceinline__ Run pack(const float (&x)[VEC]) {
    Run run;
#pragma unroll
    for (int i = 0; i < VEC; i += 2) run.at[i / 2] = pack_bf16x2(x[i], x[i + 1]);
    return run;
}

// The 16-bit numbers that decide which columns of a run are kept, two to a word. Philox gives those of 8 columns, so lanes
// with shorter runs make the same draw and take their share of it.
struct Draw {
    u32 word[VEC / 2];

    // keep ∘ x. Both halves are compared where they stand in the upper 16 bits, which costs less than taking them out.
    __device__ __forceinline__ void apply(float (&x)[VEC], const Dropout& drop) const {
        const u32 threshold = drop.threshold << 16;
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            u32 bits = i % 2 ? word[i / 2] : word[i / 2] << 16;
            x[i] = bits < threshold ? 0.0f : x[i] * drop.keep_scale;
        }
    }

    // The run with zeros for what is dropped, and the rest not scaled.
    __device__ __forceinline__ Run without_dropped(Run run, const Dropout& drop) const {
        const u32 threshold = drop.threshold << 16;
#pragma unroll
        for (int i = 0; i < VEC / 2; i++) {
            if (word[i] << 16 < threshold) run.at[i] &= 0xffff0000u;
            if (word[i] < threshold) run.at[i] &= 0x0000ffffu;
        }
        return run;
    }
};

__device__ __forceinline__ Draw draw(const Dropout& drop, u32 step, u32 row, int v) {
    Random4 random = philox4x32(column(v) / 8, row, drop.site, step, drop.key0, drop.key1);
    const u32 first = column(v) % 8 / 2;  // its first word; 0 where a run is a draw
    Draw draw;
#pragma unroll
    for (int i = 0; i < VEC / 2; i++) {
        draw.word[i] = random.word[i];
#pragma unroll
        for (int w = VEC / 2; w < 4; w += VEC / 2) draw.word[i] = first == w ? random.word[w + i] : draw.word[i];
    }
    return draw;
}

// ---- Forward ---------------------------------------------------------------------------------------------------------

struct Statistics {
    float mean, rstd;
};

// Two passes, so that the variance never cancels; it is divided by C.
__device__ __forceinline__ Statistics statistics_of(const float (&x)[VECTORS][VEC], float epsilon) {
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int i = 0; i < VEC; i++) sum += x[v][i];
    float mean = warp_sum(sum) * (1.0f / C);
    float squares = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int i = 0; i < VEC; i++) squares = fmaf(x[v][i] - mean, x[v][i] - mean, squares);
    return {mean, rsqrtf(warp_sum(squares) * (1.0f / C) + epsilon)};
}

// x = (x - mean) rstd γ + β
__device__ __forceinline__ void normalise(float (&x)[VECTORS][VEC], Statistics stats, const float* __restrict__ gamma,
                                          const float* __restrict__ beta) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float g[VEC], b[VEC];
        load(g, gamma + column(v));
        load(b, beta + column(v));
#pragma unroll
        for (int i = 0; i < VEC; i++) x[v][i] = fmaf((x[v][i] - stats.mean) * stats.rstd, g[i], b[i]);
    }
}

__device__ __forceinline__ void store_statistics(float* stats, u32 row, Statistics of_row) {
    float both[2] = {of_row.mean, of_row.rstd};
    if (threadIdx.x % WARP == 0) store(stats + 2 * static_cast<u64>(row), both);
}

// ---- Backward --------------------------------------------------------------------------------------------------------

// Warps of a block of a backward kernel: as many as 48 KB of shared memory have room for.
constexpr int BACKWARD_WARPS = C <= 896 ? 4 : C <= 1728 ? 2 : 1;
constexpr int BACKWARD_THREADS = BACKWARD_WARPS * WARP;

// Rows of a warp, and of its block; a block leaves a row of partial sums. The number is fixed, so that the order of sums
// depends on the width alone. More rows would leave SMs idle in small batches (64 a block are 154 blocks at M = 9,830);
// fewer cost traffic: of 64, a block's partials are 12 bytes a column, 2 to 3 % of the 384 to 512 that its rows move, and
// are read again.
constexpr int ROWS_A_WARP = 16;
constexpr int BACKWARD_ROWS = ROWS_A_WARP * BACKWARD_WARPS;
static_assert(ROWS_A_WARP <= WARP, "a warp loads what it needs to know of its rows, a lane for each");

// Which rows a block works on. Warp w takes rows w, w + BACKWARD_WARPS, ...: `of_warp` of them.
struct BlockRows {
    u32 first, of_block, of_warp;

    __device__ __forceinline__ explicit BlockRows(const Rows& rows) {
        const u32 count = rows.count(), begin = blockIdx.x * BACKWARD_ROWS, warp = threadIdx.x / WARP;
        first = rows.first + begin + warp;
        of_block = begin < count ? min(count - begin, static_cast<u32>(BACKWARD_ROWS)) : 0;
        of_warp = of_block > warp ? ceil_div(of_block - warp, BACKWARD_WARPS) : 0;
    }

    // The matrix's row of the warp's row `index`.
    __device__ __forceinline__ u32 row(u32 index) const {
        return first + index * BACKWARD_WARPS;
    }
};

// The statistics that lane `index` holds.
__device__ __forceinline__ Statistics of_lane(const float (&stats)[2], u32 index) {
    return {__shfl_sync(ALL_LANES, stats[0], index), __shfl_sync(ALL_LANES, stats[1], index)};
}

// A warp's rows on their way through shared memory: the slots of a ring, filled by asynchronous copies STAGES - 1 rows
// ahead, so that memory is busy while the warp computes and no registers are tied up. A slot holds a row of each source.
template <int SOURCES, int STAGES>
struct RowRing {
    bf16* slots;

    // The warp's share of the block's rings, which begin at `shared`.
    __device__ __forceinline__ explicit RowRing(float* shared)
        : slots(reinterpret_cast<bf16*>(shared) + threadIdx.x / WARP * (STAGES * SOURCES * C)) {}

    __device__ __forceinline__ bf16* row(u32 index, int source) const {
        return slots + (index % STAGES * SOURCES + source) * C;
    }

    // Copies of what row `index` of the warp reads from `source`. Each lane copies 16 bytes at a time.
    __device__ __forceinline__ void fetch(u32 index, int source, const bf16* from) const {
        bf16* to = row(index, source);
#pragma unroll
        for (u32 at = threadIdx.x % WARP * 8; at < C; at += WARP * 8) cp_async_16(to + at, from + at);
    }

    // Waits until the oldest row fetched is there, for all lanes. It also lets the slot of the row before be filled
    // again: every lane has come past its last look at it.
    __device__ __forceinline__ void wait() const {
        cp_async_wait<STAGES - 2>();
        __syncwarp();
    }
};

// γ in shared memory. A lane with a run of 8 reads 4 values at a time; 32 bytes from lane to lane they would meet in the
// same banks, two by two. So the first halves of all runs are stored side by side, and the second halves behind them.
struct SharedGamma {
    float* at;
    static constexpr int PART = VEC < 4 ? VEC : 4;

    __device__ __forceinline__ void fill(const float* gamma, float scale = 1.0f) const {
        for (u32 c = threadIdx.x; c < C; c += blockDim.x) {
            u32 run = c / VEC, part = c % VEC / PART;
            at[(part * (C / VEC) + run) * PART + c % PART] = gamma[c] * scale;
        }
    }

    __device__ __forceinline__ void get(float (&gamma)[VEC], int v) const {
        u32 run = column(v) / VEC;
#pragma unroll
        for (int part = 0; part < VEC / PART; part++) {
            float values[PART];
            load(values, at + (part * (C / VEC) + run) * PART);
#pragma unroll
            for (int i = 0; i < PART; i++) gamma[part * PART + i] = values[i];
        }
    }
};

// One row: with x̂ = (x - mean) rstd and g = d ∘ γ, d_x = rstd (g - mean(g) - x̂ mean(g ∘ x̂)); d_gamma += d ∘ x̂,
// d_beta += d, column by column. `values(v, d, x)` gives what the lane's run v holds, twice; `take(v, d_x)` gets the
// result.
template <class Values, class Take>
__device__ __forceinline__ void layernorm_backward(float (&d_gamma)[VECTORS][VEC], float (&d_beta)[VECTORS][VEC],
                                                   const SharedGamma& gamma, Statistics stats, Values values, Take take) {
    const float shift = -stats.mean * stats.rstd;  // x̂ = x rstd + shift
    float sum_g = 0.0f, sum_gx = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float d[VEC], x[VEC], weight[VEC];
        values(v, d, x);
        gamma.get(weight, v);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            float normed = fmaf(x[i], stats.rstd, shift), g = d[i] * weight[i];
            d_gamma[v][i] = fmaf(d[i], normed, d_gamma[v][i]);
            d_beta[v][i] += d[i];
            sum_g += g;
            sum_gx = fmaf(g, normed, sum_gx);
        }
    }
    // Makes the compiler read the row again for the second pass: kept from the first, it would take 72 registers.
    __syncwarp();
    const float mean_g = warp_sum(sum_g) * (1.0f / C), mean_gx = warp_sum(sum_gx) * (1.0f / C);
    const float slope = -stats.rstd * mean_gx, offset = -mean_g - shift * mean_gx;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float d[VEC], x[VEC], weight[VEC];
        values(v, d, x);
        gamma.get(weight, v);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            // g - mean(g) - x̂ mean(g ∘ x̂)
            d[i] = stats.rstd * fmaf(d[i], weight[i], fmaf(x[i], slope, offset));
        }
        take(v, d);
    }
}

// Adds the warps' sums over their rows, first warp to last, and stores the block's row of partial sums, [KINDS, C].
// `shared` has room for the sums of all warps; the rings may lie there.
template <int KINDS>
__device__ __forceinline__ void store_partials(float* partials, const float (&sums)[KINDS][VECTORS][VEC], float* shared) {
    __syncthreads();  // every warp is done with its ring
#pragma unroll
    for (int kind = 0; kind < KINDS; kind++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++) store(shared + (threadIdx.x / WARP * KINDS + kind) * C + column(v), sums[kind][v]);
    __syncthreads();
    for (u32 c = threadIdx.x; c < KINDS * C; c += BACKWARD_THREADS) {
        float sum = shared[c];
#pragma unroll
        for (int warp = 1; warp < BACKWARD_WARPS; warp++) sum += shared[warp * KINDS * C + c];
        partials[blockIdx.x * static_cast<u64>(KINDS * C) + c] = sum;
    }
}
