// layernorm.cu: dropout, residual and LayerNorm in one pass over the rows, and back.
//
// add_layernorm: sum = residual + keep ∘ branch, rounded to bf16;  y = (sum - mean) rstd γ + β, row by row
//   branch, sum, y [R, C] bf16    residual [R, C] bf16, or null    γ, β [C] f32    stats [R, 2] f32: mean, rstd
// Statistics are those of the sum as it is stored, since that is what the backward pass reads.
// One warp per row, the row in registers from its load to its store.
// Bytes: 8 RC, or 6 RC without a residual. At N = 65,536, C = 768: 403 MB, 84 us at 4.8 TB/s.
// Expected: 85 to 90 % of that bandwidth. 28 warps an SM have 3 KB each under way, and 36 KB would cover a microsecond of
// latency. With dropout some 620 instructions a row keep the schedulers busy for 44 us at 1.75 GHz, hidden behind memory.
//
// add_layernorm_backward: d comes in as d_y and goes out as d_sum; d_branch = keep ∘ d_sum, if wanted (null: not)
//   with x̂ = (sum - mean) rstd and g = d_y ∘ γ:  d_sum = rstd (g - mean(g) - x̂ mean(g ∘ x̂))
//   partials [ceil(R / rows of a block), 3, C] f32: sums over each block's rows (64) of d_y ∘ x̂ (for d_γ), d_y
//   (d_β) and keep ∘ d_sum, unrounded (the bias of the linear layer that made the branch); add_norm_partials of rows.cu
//   adds them to the gradients
//   d, sum, d_branch [R, C] bf16    stats [R, 2], γ [C] f32
// Four warps a block, a row at a time each; rows come two ahead by asynchronous copies, since the 72 registers of column
// sums (C = 768) leave too few warps to hide memory by their number.
// Order of sums: a warp's 16 rows, every fourth of the block's; the four warps; the blocks.
// Shared memory: 52 C bytes (C <= 896), of which 48 C are the rings and, later, the sums of the four warps.
// Bytes: 8 RC, or 6 RC without d_branch, and 0.19 RC of partials written. At base size 412 or 312 MB: 86 or 65 us.
// Expected: 85 %. 12 warps an SM have 6 KB each under way. With dropout 750 instructions a row are 53 us of the schedulers.
//
// Tuned for C = 768. Wider rows have fewer warps a block, see layernorm.cuh; above 1,024 columns the column sums spill,
// which is right but slow. The most is 3,072.
#include "layernorm.cuh"

constexpr int FORWARD_WARPS = 4;

// Blocks that an SM is to hold, which bounds a thread's registers; left open where rows are too wide for it.
constexpr int FORWARD_BLOCKS = C <= 768 ? 7 : 1;
constexpr int BACKWARD_BLOCKS = C <= 768 ? 3 : 1;

extern "C" __global__ void __launch_bounds__(FORWARD_WARPS * WARP, FORWARD_BLOCKS)
    add_layernorm(const bf16* __restrict__ branch, const bf16* __restrict__ residual, const float* __restrict__ gamma,
                  const float* __restrict__ beta, bf16* __restrict__ sum, float* __restrict__ stats, bf16* __restrict__ y,
                  Rows rows, Dropout drop, float epsilon) {
    const u32 index = blockIdx.x * FORWARD_WARPS + threadIdx.x / WARP;
    if (index >= rows.count()) return;
    const u32 row = rows.first + index;
    const u64 start = row * static_cast<u64>(C);

    // All loads first, so that they are all under way at once.
    const u32 step = drop.active() ? *drop.step : 0;
    Run of_branch[VECTORS], of_residual[VECTORS] = {};
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        of_branch[v] = load_run(branch + start + column(v));
        if (residual) of_residual[v] = load_run(residual + start + column(v));
    }
    float x[VECTORS][VEC];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float from_branch[VEC], from_residual[VEC];
        unpack(from_branch, of_branch[v]);
        unpack(from_residual, of_residual[v]);
        if (drop.active()) draw(drop, step, row, v).apply(from_branch, drop);
#pragma unroll
        for (int i = 0; i < VEC; i++) x[v][i] = from_branch[i] + from_residual[i];
        Run rounded = pack(x[v]);
        store_run(sum + start + column(v), rounded);
        unpack(x[v], rounded);
    }
    Statistics of_row = statistics_of(x, epsilon);
    store_statistics(stats, row, of_row);
    normalise(x, of_row, gamma, beta);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) store_run(y + start + column(v), pack(x[v]));
}

// d_γ, d_β, d_bias.
constexpr int KINDS = 3;

using Ring = RowRing<2, 3>;
enum Source { D, SUM };

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, BACKWARD_BLOCKS)
    add_layernorm_backward(bf16* d, const bf16* __restrict__ sum, const float* __restrict__ stats,
                           const float* __restrict__ gamma, bf16* __restrict__ d_branch, float* __restrict__ partials,
                           Rows rows, Dropout drop) {
    SHARED_MEMORY(float, shared);
    const BlockRows block(rows);
    if (block.of_block == 0) return;
    const Ring ring(shared + C);
    auto fetch = [&](u32 index) {
        if (index < block.of_warp) {
            ring.fetch(index, D, d + block.row(index) * static_cast<u64>(C));
            ring.fetch(index, SUM, sum + block.row(index) * static_cast<u64>(C));
        }
        cp_async_commit();
    };
    fetch(0);
    fetch(1);
    const SharedGamma shared_gamma = {shared};
    shared_gamma.fill(gamma);
    const u32 lane = threadIdx.x % WARP;
    float stats_of_lane[2] = {};
    if (lane < block.of_warp) load(stats_of_lane, stats + 2 * static_cast<u64>(block.row(lane)));
    __syncthreads();

    float sums[KINDS][VECTORS][VEC] = {};
    const u32 step = drop.active() ? *drop.step : 0;
    for (u32 index = 0; index < block.of_warp; index++) {
        ring.wait();
        fetch(index + 2);
        auto values = [&](int v, float(&d_y)[VEC], float(&x)[VEC]) {
            unpack(d_y, load_run(ring.row(index, D) + column(v)));
            unpack(x, load_run(ring.row(index, SUM) + column(v)));
        };
        auto take = [&](int v, float(&d_sum)[VEC]) {
            u64 at = block.row(index) * static_cast<u64>(C) + column(v);
            store_run(d + at, pack(d_sum));
            if (drop.active()) draw(drop, step, block.row(index), v).apply(d_sum, drop);
#pragma unroll
            for (int i = 0; i < VEC; i++) sums[2][v][i] += d_sum[i];
            if (d_branch) store_run(d_branch + at, pack(d_sum));
        };
        layernorm_backward(sums[0], sums[1], shared_gamma, of_lane(stats_of_lane, index), values, take);
    }
    store_partials(partials, sums, shared + C);
}
