// attention_forward.cu: attention within each sequence of the packed batch, head by head; nothing but ctx and lse
// leaves the chip.
//
// attention_forward: ctx = keep ∘ softmax(q kᵀ / √D) v;  lse = log of the sum of e^(q kᵀ / √D)
//   qkv [N, 3C] bf16 (q, k, v; head h at columns hD..)   ctx [N, C] bf16   lse [N, H] f32
//   tiles: 64 queries each, see attention.cuh; blocks take turns with H jobs a tile, so the grid may be of any size
// Flash attention (Dao, arXiv 2307.08691): the softmax is taken over 16 keys at a time, and what was summed up before
// is scaled when a much larger score appears. Scores, sums and statistics are f32; probabilities are rounded to bf16
// for the second product, but neither for lse nor for the sum that ctx is divided by. Dropped ones are zero there, and
// keep_scale comes with the division: one rounding fewer. Order of sums: keys ascending, whatever the other blocks do.
// Shared memory: 512 D bytes, 32 KB for D = 64. 168 registers, 3 blocks an SM.
//
// Cost, for N = 65,536 in sequences of L = 512, H = 12, D = 64: 403 M scores.
//   FLOP    4 L D H N = 103 G         0.104 ms at 989 TFLOP/s; 0.166 at the 620 that mma.sync reaches on Hopper
//   exp     1 a score                 0.104 ms at 16 a clock and SM, 1.83 GHz
//   bytes   8 C + 4 H a row, 406 MB   0.085 ms; L2 delivers 0.98 GB, each block reading all keys: 0.18 ms at 5.5 TB/s
//   shared memory                     0.130 ms at 128 bytes a clock and SM
//   instructions                      14.0 a score, 0.183 ms at 4 a clock and SM; of them 2 are mma and 0.5 ldmatrix
//   dropout                           9.7 more a score (77 for a draw of Philox-10 and its 8 comparisons): 0.309 ms
//                                     together, and as much on the pipe for logic, which has half the lanes
// The instruction counts are those of the code for sm_90a. So the floor is 0.104 ms, by tensor cores and exponentials
// alike; with this code it is the schedulers that bound it, with dropout by far.
// Expected: 0.33 to 0.40 ms without dropout (260 to 310 TFLOP/s; FlashAttention-2, which is built the same way, is
// published at 282 for this size) and 0.42 to 0.50 ms with it: 12 warps an SM do not keep every slot filled.
// What wgmma would change: operands come from shared memory, which saves 2.5 instructions a score and lifts the limit
// of the tensor cores from 620 to 989 TFLOP/s; the products of one warp group run beside the softmax of another. It
// would not change the exponentials, nor the 11 instructions of softmax and conversion, nor Philox.
#include "attention.cuh"

// The softmax of the warp's rows so far, of the scores q kᵀ. Element [s][r] is row g + 8r of strip s.
struct Softmax {
    // What is subtracted from SCALE_LOG2 x score: that of the largest score, or a little less (see `raise`).
    float shift[STRIPS][2];
    // This lane's part of the sum of 2^(SCALE_LOG2 score - shift).
    float sum[STRIPS][2];
};

// How far scores may exceed the shift before it follows. Probabilities then reach 2^8, which costs neither bf16 nor f32
// any precision, and ctx need not be rescaled for most keys.
constexpr float HEADROOM = 8.0f;

// Raises the shifts where a score is too far above one of them, and scales what was summed up accordingly.
__device__ __forceinline__ void raise(Softmax& softmax, Sums (&ctx)[STRIPS], const Square (&scores)[STRIPS]) {
    float largest[STRIPS][2];
    bool above = false;
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const Square& of = scores[s];
            largest[s][r] = fmaxf(fmaxf(of[0][2 * r], of[0][2 * r + 1]), fmaxf(of[1][2 * r], of[1][2 * r + 1]));
            above |= fmaf(largest[s][r], SCALE_LOG2, -softmax.shift[s][r]) > HEADROOM;
        }
    if (!__any_sync(ALL_LANES, above)) return;
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float shift = fmaxf(softmax.shift[s][r], quad_max(largest[s][r]) * SCALE_LOG2);
            float shrink = exp2_fast(softmax.shift[s][r] - shift);
            softmax.shift[s][r] = shift;
            softmax.sum[s][r] *= shrink;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                ctx[s][n][2 * r] *= shrink;
                ctx[s][n][2 * r + 1] *= shrink;
            }
        }
}

// Turns a strip's scores into probabilities (times 2^shift) and adds them up; then those that dropout does not keep
// become zero.
__device__ __forceinline__ void probabilities(Square& scores, const float (&shift)[2], float (&sum)[2], u32 kept) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float& p = scores[n][2 * r + c];
                p = exp2_fast(fmaf(p, SCALE_LOG2, -shift[r]));
                sum[r] += p;
                p = query_keeps(kept, n, r, c) ? p : 0.0f;
            }
}

// Writes lse of the warp's rows, and gives what turns the sums into ctx: keep_scale / the sum of the probabilities.
__device__ __forceinline__ void finish(const Softmax& softmax, const Job& job, u32 heads, float keep_scale, float* lse,
                                       float (&factor)[STRIPS][2]) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = quad_sum(softmax.sum[s][r]);
            factor[s][r] = keep_scale / sum;
            u32 row = 16 * s + 8 * r + lane_id() / 4;
            u64 at = static_cast<u64>(job.first_row() + job.warp_first + row) * heads + job.head;
            if (row < job.warp_rows && lane_id() % 4 == 0) lse[at] = softmax.shift[s][r] * LN2 + logf(sum);
        }
}

// Blocks that an SM holds at least, by their registers.
constexpr int BLOCKS = D == 32 ? 4 : 3;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_forward(const bf16* __restrict__ qkv, const Tile* __restrict__ tiles, const u32* __restrict__ tile_count,
                      u32 heads, Dropout drop, float* __restrict__ lse, bf16* __restrict__ ctx) {
    SHARED_MEMORY(bf16, shared);
    each_job(tiles, tile_count, heads, [&](const Job& job) {
        const u32 length = job.tile.length;
        const bf16* sequence = qkv + static_cast<u64>(job.tile.start) * 3 * job.width + job.head * D;

        // 1  The queries, by way of the second stage, which is free until the second tile is asked for.
        copy_rows<OWN>(shared + STAGE, sequence, job.tile.first, length, 3 * job.width);
        copy_keys(shared, sequence, job, 0);
        cp_async_wait<0>();
        __syncthreads();
        Strip q[STRIPS];
        load_strips(q, shared + STAGE + job.warp_first * D);

        Sums sums[STRIPS];
        clear(sums);
        Softmax softmax;
        fill(softmax.shift, -infinity());
        fill(softmax.sum, 0.0f);

        for (u32 tile = 0; tile < length; tile += TILE) {
            // The tile has landed, and nobody reads the other stage any more.
            cp_async_wait<0>();
            __syncthreads();
            if (tile + TILE < length) copy_keys(shared, sequence, job, tile + TILE);
            if (job.warp_rows == 0) continue;
            const bf16* k = shared + tile / TILE % 2 * STAGE;
            const u32 live = min(length - tile, static_cast<u32>(TILE));

            // 2  Dropout's bits. They depend on nothing, so they can be drawn while the tensor cores work for other warps.
            u32 kept[STRIPS];
            draw_kept(kept, drop, job, tile);
            // Not unrolled: there is no register to spare for a second part's addresses.
#pragma unroll 1
            for (u32 first = 0; first < live; first += 16, k += 16 * D) {
                // 3  scores = q kᵀ
                Square scores[STRIPS];
                multiply_rows(scores, q, k);
                if (first + 16 > live) mask_keys(scores, live - first);
                raise(softmax, sums, scores);
                // 4  ctx += (keep ∘ probabilities) v
                u32 weights[STRIPS][4];
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
                    probabilities(scores[s], softmax.shift[s], softmax.sum[s], kept[s]);
                    kept[s] = next_part_of_queries(kept[s]);
                    as_weights(weights[s], scores[s]);
                }
                multiply_columns(sums, weights, k + TILE_SIZE);
            }
        }
        if (job.warp_rows == 0) return;

        // 5  The sums become rows of ctx, by way of the stage that the last tile is not in.
        float factor[STRIPS][2];
        finish(softmax, job, heads, drop.keep_scale, lse, factor);
        bf16* own = shared + ceil_div(length, TILE) % 2 * STAGE + job.warp_first * D;
        put_rows(own, sums, factor);
        bf16* out = ctx + static_cast<u64>(job.first_row() + job.warp_first) * job.width + job.head * D;
        save_rows(out, job.width, own, job.warp_rows, [](const Vec<bf16, 8>&) {});
    });
}
