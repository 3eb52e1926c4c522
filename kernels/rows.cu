// rows.cu: rows picked out of the packed batch and put back; rows that are not live, cleared; the second half of sums
// over rows.
//
// gather_rows: y[i] = x[picked[i]];  scatter_rows: d_x = 0, and d_x[picked[i]] = d_y[i]
//   x, d_x [N, cols], y, d_y [M or B, cols] bf16, cols a multiple of 8    picked [M or B] u32, never falling
//   `picked` is masked_rows, or first_rows, where an empty sequence has no row of its own and shows the one after it: pick
//   i is void if picked[i + 1] (N after the last) is the same. Its row of y is zero; its row of d_y goes nowhere.
// gather_rows: a warp per pick. Bytes: 4 M cols; at M = 9,830, C = 768 30 MB, 6.3 us at 4.8 TB/s. Expected: 10 us.
// scatter_rows: a block per 32 rows of d_x finds the picks among them by a search over `picked`, so that each row of d_x is
//   written once, by one launch. Bytes: 2 N cols + 2 M cols; 116 MB, 24 us. Expected: 85 % of that bandwidth.
//
// zero_dead_rows: matrix[r] = 0 for the rows r from the live ones to the capacity, before a product that sums over all of
//   them. It is the only kernel that touches such rows.
//   matrix [R, cols] bf16, cols a multiple of 8
// A fixed grid: how many rows there are to clear is not known when it is launched. Bytes: 2 cols for each; where 1 % of
// N = 65,536 rows are not live, C = 768, 1 MB. Expected: the time of a launch, 3 us.
//
// add_partials: into[c] += Σ_p partials[p][c], p < ceil(R / rows_per_partial): what the blocks of another kernel left
// add_norm_partials: the same for a LayerNorm's kernels, whose partials are [P, kinds, cols]: kind 0 to d_gamma,
//   1 to d_beta, 2 to d_bias; the grid's y says how many kinds are wanted
//   partials, into, d_gamma, d_beta, d_bias f32
// A block of 32 warps per 32 columns. Order of sums: every 32nd row to a warp, then the warps, each first to last.
// Bytes: 4 P kinds cols. For add_layernorm_backward at base size P = 1,024: 9.4 MB, mostly still in L2. Expected: 4 us,
// four rounds of eight loads.
#include "common.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr u32 VEC = 8;
constexpr int VECTORS_AT_ONCE = 4;  // of a lane: a row of 1,024 columns at once
using Run = Vec<u32, VEC / 2>;

// ---- Picked rows -----------------------------------------------------------------------------------------------------

// Whether pick i is of a row; see above.
__device__ __forceinline__ bool is_picked(const u32* picked, u32 i, u32 count, u32 tokens) {
    return picked[i] != (i + 1 < count ? picked[i + 1] : tokens);
}

// to = from, or zero if `from` is null; by one warp.
__device__ __forceinline__ void copy_row(bf16* to, const bf16* from, u32 cols) {
    for (u32 first = threadIdx.x % WARP * VEC; first < cols; first += VECTORS_AT_ONCE * WARP * VEC) {
        Run runs[VECTORS_AT_ONCE] = {};
#pragma unroll
        for (int v = 0; v < VECTORS_AT_ONCE; v++) {
            u32 c = first + v * WARP * VEC;
            if (from && c < cols) runs[v] = *reinterpret_cast<const Run*>(from + c);
        }
#pragma unroll
        for (int v = 0; v < VECTORS_AT_ONCE; v++) {
            u32 c = first + v * WARP * VEC;
            if (c < cols) *reinterpret_cast<Run*>(to + c) = runs[v];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows(const bf16* __restrict__ x, const u32* __restrict__ picked, bf16* __restrict__ y, u32 cols, Rows picks,
                Rows tokens) {
    const u32 i = blockIdx.x * WARPS + threadIdx.x / WARP, count = picks.count();
    if (i >= count) return;
    const bool any = is_picked(picked, i, count, *tokens.live);
    copy_row(y + i * static_cast<u64>(cols), any ? x + picked[i] * static_cast<u64>(cols) : nullptr, cols);
}

constexpr u32 SCATTER_ROWS = 32;
constexpr u32 NONE = 0xffffffffu;

// The first i with picked[i] >= row, or count; by one warp, which tries 32 places at a time.
__device__ __forceinline__ u32 lower_bound(const u32* picked, u32 count, u32 row) {
    u32 begin = 0, end = count;  // it is one of begin ..= end
    while (begin < end) {
        const u32 stride = ceil_div(end - begin, WARP), guess = begin + threadIdx.x % WARP * stride;
        const u32 below = __popc(__ballot_sync(ALL_LANES, guess < end && picked[guess] < row));
        if (below == 0) return begin;
        end = min(end, begin + below * stride);
        begin += (below - 1) * stride + 1;
    }
    return begin;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    scatter_rows(const bf16* __restrict__ d_y, const u32* __restrict__ picked, bf16* __restrict__ d_x, u32 cols,
                 Rows picks, Rows tokens) {
    SHARED_MEMORY(u32, pick_of);
    const u32 first = blockIdx.x * SCATTER_ROWS, all = tokens.count(), count = picks.count();
    if (first >= all) return;
    const u32 here = min(all - first, SCATTER_ROWS);
    if (threadIdx.x < WARP) {
        pick_of[threadIdx.x] = NONE;
        __syncwarp();
        for (u32 i = lower_bound(picked, count, first) + threadIdx.x; i < count && picked[i] < first + here; i += WARP)
            if (is_picked(picked, i, count, all)) pick_of[picked[i] - first] = i;
    }
    __syncthreads();
    for (u32 r = threadIdx.x / WARP; r < here; r += WARPS) {
        const u32 pick = pick_of[r];
        copy_row(d_x + (first + r) * static_cast<u64>(cols), pick == NONE ? nullptr : d_y + pick * static_cast<u64>(cols),
                 cols);
    }
}

// ---- Rows that are not live ------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) zero_dead_rows(bf16* __restrict__ matrix, u32 cols, Rows rows) {
    const u64 runs_of_row = cols / VEC, end = rows.capacity * runs_of_row, stride = gridDim.x * THREADS;
    for (u64 i = rows.count() * runs_of_row + blockIdx.x * THREADS + threadIdx.x; i < end; i += stride)
        reinterpret_cast<Run*>(matrix)[i] = Run{};
}

// ---- Sums over rows --------------------------------------------------------------------------------------------------

constexpr int SUM_WARPS = 32;
constexpr u32 PARTIALS_AT_ONCE = 8;
constexpr int SUM_THREADS = SUM_WARPS * WARP;

// into[c] += partials[0][c] + partials[1][c] + ... of `count` rows, `stride` apart, for the block's 32 columns c < cols.
// The sum is added at once: `into` may hold the gradients of earlier batches, far larger than one partial.
__device__ __forceinline__ void add_columns(const float* __restrict__ partials, float* __restrict__ into, u32 stride,
                                            u32 cols, u32 count, float* shared) {
    const u32 c = blockIdx.x * WARP + threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float sum = 0.0f;
    for (u32 first = warp; first < count && c < cols; first += PARTIALS_AT_ONCE * SUM_WARPS) {
        float x[PARTIALS_AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < PARTIALS_AT_ONCE; i++) {
            const u32 p = first + i * SUM_WARPS;
            x[i] = p < count ? partials[p * static_cast<u64>(stride) + c] : 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < PARTIALS_AT_ONCE; i++) sum += x[i];
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || c >= cols || count == 0) return;
#pragma unroll
    for (int other = 1; other < SUM_WARPS; other++) sum += shared[other * WARP + threadIdx.x];
    into[c] += sum;
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    add_partials(const float* __restrict__ partials, float* __restrict__ into, u32 cols, Rows rows, u32 rows_per_partial) {
    SHARED_MEMORY(float, shared);
    add_columns(partials, into, cols, cols, ceil_div(rows.count(), rows_per_partial), shared);
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    add_norm_partials(const float* __restrict__ partials, float* __restrict__ d_gamma, float* __restrict__ d_beta,
                      float* __restrict__ d_bias, u32 cols, u32 kinds, Rows rows, u32 rows_per_partial) {
    SHARED_MEMORY(float, shared);
    const u32 kind = blockIdx.y;
    float* into = kind == 0 ? d_gamma : kind == 1 ? d_beta : d_bias;
    add_columns(partials + kind * cols, into, kinds * cols, cols, ceil_div(rows.count(), rows_per_partial), shared);
}
