// attention_backward.cu: the gradients of q, k and v, from probabilities that are computed once more from lse.
//   P = e^(q kᵀ / √D - lse);  d_v = (keep ∘ P)ᵀ d_ctx;  d_P = keep ∘ (d_ctx vᵀ);
//   d_S = P ∘ (d_P - rowsum(d_ctx ∘ ctx));  d_q = d_S k / √D;  d_k = d_Sᵀ q / √D
//
// attention_backward_q: d_q, and for the other kernel what belongs to each query: lse in powers of two and
// rowsum(d_ctx ∘ ctx) / keep_scale. Runs first.
// attention_backward_kv: d_k and d_v. Its scores are transposed, keys down and queries across, so that they are left
// operands of its products as they come.
//   qkv, d_qkv [N, 3C] bf16 (q, k, v; head h at columns hD..)   ctx, d_ctx [N, C] bf16   lse [N, H] f32
//   terms [tiles, H, 64, 2] f32: (lse, rowsum) of the queries of each tile of the list
//   partials [tiles, 3C] f32: sums over each tile's rows of d_qkv as stored, for the gradient of the bias; add_partials
//   of rows.cu adds them. The first kernel writes a third of them and of d_qkv, the second the rest
// P and d_S are rounded to bf16 for the products. What all scores share, keep_scale and 1 / √D, is multiplied in when
// the sums are complete. Order of sums: keys or queries ascending; for a bias rows of a warp, the warps of a tile,
// tiles.
// Shared memory: d_q 256 D (1 + STRIPS), d_k and d_v 512 D + 128 D STRIPS + 1,024 bytes: 48 and 49 KB for D = 64. 255
// registers, 2 blocks an SM.
//
// Why two kernels: each sum is owned by one block, for any length. The price is 7 products instead of 5, and
// exponentials and draws twice. One block for a whole (sequence, head) would need them once, with d_q in 4 L D bytes of
// shared memory; but d_S and d_q would go through shared memory: 1,400 clocks an SM for each 64 x 64 scores, where two
// kernels take 1,280 in all (and mma.sync 1,430, or 1,020 for 5 products). Little to win before wgmma, which reads
// operands from shared memory without loading them.
//
// Cost, for N = 65,536 in sequences of L = 512, H = 12, D = 64: 403 M scores.
//   FLOP    14 L D H N = 361 G (10: 258 G)   0.365 ms at 989 TFLOP/s; 0.583 at the 620 that mma.sync reaches on Hopper
//   exp     2 a score                        0.208 ms at 16 a clock and SM, 1.83 GHz
//   bytes   24 C a row, 1.2 GB               0.252 ms at 4.8 TB/s; L2 delivers 2.3 GB, 0.42 ms at 5.5 TB/s
//   shared memory                            0.521 ms at 128 bytes a clock and SM
//   instructions                             27.6 a score, 0.360 ms at 4 a clock and SM; 3.5 are mma
//   dropout                                  20 more a score, 0.624 ms together
// The instruction counts are those of the code for sm_90a. The floor is 0.365 ms, by the tensor cores; of this code
// 0.6 ms, by mma.sync, shared memory and, with dropout, the schedulers alike.
// Expected: 0.9 to 1.1 ms without dropout, 1.0 to 1.3 ms with it (200 to 260 TFLOP/s, counting 10 L D H N): three units
// near their limits at once, with 8 warps an SM to keep them busy.
#include "attention.cuh"

// Turns a product q kᵀ into P, or 0 if dropped, and d_ctx vᵀ into d_S. Left out until the sums are complete: keep_scale
// in P, and keep_scale / √D in d_S. `lse` is in powers of two, `delta` is rowsum(d_ctx ∘ ctx) / keep_scale.
__device__ __forceinline__ void gradient(float& score, float& d_p, float lse, float delta, bool keeps) {
    float p = exp2_fast(fmaf(score, SCALE_LOG2, -lse));
    score = keeps ? p : 0.0f;
    d_p = fmaf(score, d_p, -p * delta);
}

// ---- The sums over columns -------------------------------------------------------------------------------------------

// Saves the warp's rows of a tile, and leaves the sums of their columns in `sums` [D].
__device__ __forceinline__ void save_and_sum(bf16* to, u32 stride, const bf16* own, u32 live, float* sums) {
    float total[8] = {};
    save_rows(to, stride, own, live, [&](const Vec<bf16, 8>& values) {
#pragma unroll
        for (int i = 0; i < 8; i++) total[i] += to_float(values.at[i]);
    });
    // Lanes CHUNKS apart have the same columns.
#pragma unroll
    for (int distance = CHUNKS; distance < WARP; distance *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++) total[i] += __shfl_xor_sync(ALL_LANES, total[i], distance);
    if (lane_id() < CHUNKS) store(sums + lane_id() * 8, total);
}

// The sums of each 64 rows that exist, from those of their warps. `part`: 0 = q, 1 = k, 2 = v.
__device__ __forceinline__ void write_partials(float* partials, const float* sums, const Job& job, u32 part) {
    constexpr int WARPS_A_TILE = TILE / WARP_ROWS;
    static_assert(STRIPS * D <= THREADS, "a thread for each column of each tile");
    u32 tile = threadIdx.x / D, column = threadIdx.x % D;
    if (tile >= STRIPS || job.tile.first + tile * TILE >= job.tile.length) return;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS_A_TILE; w++) sum += sums[(tile * WARPS_A_TILE + w) * D + column];
    u64 row = job.index + tile;
    partials[(row * 3 + part) * job.width + job.head * D + column] = sum;
}

// ---- d_q -------------------------------------------------------------------------------------------------------------

// Of the lane's rows: lse in powers of two, and delta. Rows that do not exist get an lse that makes their probabilities
// zero.
struct RowTerms {
    float lse[STRIPS][2];
    float delta[STRIPS][2];
};

__device__ __forceinline__ float row_product(const bf16* a, const bf16* b) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        u32 column = (4 * i + lane_id() % 4) * 8;
        float x[8], y[8];
        load(x, a + column);
        load(y, b + column);
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(x[j], y[j], sum);
    }
    return sum;
}

// Computes the terms, and writes them for the other pass, where a tile's lie together.
__device__ __forceinline__ void load_terms(RowTerms& terms, const Job& job, u32 heads, const bf16* ctx,
                                           const bf16* d_ctx, const float* lse, float keep_rate, float* of_tiles) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            u32 row = job.warp_first + 16 * s + 8 * r + lane_id() / 4;
            bool exists = row < job.rows;
            u64 at = static_cast<u64>(job.first_row() + row) * heads + job.head;
            float product = quad_sum(exists ? row_product(ctx + at * D, d_ctx + at * D) : 0.0f);
            terms.delta[s][r] = product * keep_rate;
            terms.lse[s][r] = exists ? lse[at] * LOG2E : infinity();
            bool tile_exists = row / TILE * TILE < job.rows;
            u64 to = (static_cast<u64>(job.index + row / TILE) * heads + job.head) * TILE + row % TILE;
            if (tile_exists && lane_id() % 4 == 0) store(of_tiles + to * 2, {terms.lse[s][r], terms.delta[s][r]});
        }
}

__device__ __forceinline__ void gradients(Square& scores, Square& d_p, const float (&lse)[2], const float (&delta)[2],
                                          u32 kept) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            gradient(scores[n][i], d_p[n][i], lse[i / 2], delta[i / 2], query_keeps(kept, n, i / 2, i % 2));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_q(const bf16* __restrict__ qkv, const bf16* __restrict__ ctx, const bf16* __restrict__ d_ctx,
                         const float* __restrict__ lse, const Tile* __restrict__ tiles,
                         const u32* __restrict__ tile_count, u32 heads, Dropout drop, float* __restrict__ terms,
                         bf16* __restrict__ d_qkv, float* __restrict__ partials) {
    SHARED_MEMORY(bf16, shared);
    each_job(tiles, tile_count, heads, [&](const Job& job) {
        const u32 length = job.tile.length, stride = 3 * job.width;
        const bf16* sequence = qkv + static_cast<u64>(job.tile.start) * stride + job.head * D;
        const bf16* d_sequence = d_ctx + static_cast<u64>(job.tile.start) * job.width + job.head * D;

        // 1  The rows of q and d_ctx, by way of the second stage and what lies behind it.
        bf16* own_rows = shared + STAGE;
        copy_rows<OWN>(own_rows, sequence, job.tile.first, length, stride);
        copy_rows<OWN>(own_rows + OWN * D, d_sequence, job.tile.first, length, job.width);
        copy_keys(shared, sequence, job, 0);
        RowTerms own;
        load_terms(own, job, heads, ctx, d_ctx, lse, 1.0f / drop.keep_scale, terms);
        cp_async_wait<0>();
        __syncthreads();
        Strip q[STRIPS], d_out[STRIPS];
        load_strips(q, own_rows + job.warp_first * D);
        load_strips(d_out, own_rows + (OWN + job.warp_first) * D);
        Sums d_q[STRIPS];
        clear(d_q);

        for (u32 tile = 0; tile < length; tile += TILE) {
            // The tile has landed, and nobody reads the other stage any more.
            cp_async_wait<0>();
            __syncthreads();
            if (tile + TILE < length) copy_keys(shared, sequence, job, tile + TILE);
            if (job.warp_rows == 0) continue;
            const bf16* k = shared + tile / TILE % 2 * STAGE;
            const u32 live = min(length - tile, static_cast<u32>(TILE));
            u32 kept[STRIPS];
            draw_kept(kept, drop, job, tile);
#pragma unroll 1
            for (u32 first = 0; first < live; first += 16, k += 16 * D) {
                // 2  scores = q kᵀ, d_p = d_ctx vᵀ
                Square scores[STRIPS], d_p[STRIPS];
                multiply_rows(scores, q, k);
                multiply_rows(d_p, d_out, k + TILE_SIZE);
                if (first + 16 > live) mask_keys(scores, live - first);
                // 3  d_q += d_S k
                u32 weights[STRIPS][4];
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
                    gradients(scores[s], d_p[s], own.lse[s], own.delta[s], kept[s]);
                    kept[s] = next_part_of_queries(kept[s]);
                    as_weights(weights[s], d_p[s]);
                }
                multiply_columns(d_q, weights, k);
            }
        }

        // 4  The sums become rows of d_q, by way of the first stage; the second holds the sums of columns.
        __syncthreads();
        float factor[STRIPS][2];
        fill(factor, drop.keep_scale * SCALE);
        float* sums = reinterpret_cast<float*>(shared + STAGE);
        float* warp_sums = sums + threadIdx.x / WARP * D;
        bf16* out = d_qkv + static_cast<u64>(job.first_row() + job.warp_first) * stride + job.head * D;
        put_rows(shared + job.warp_first * D, d_q, factor);
        save_and_sum(out, stride, shared + job.warp_first * D, job.warp_rows, warp_sums);
        __syncthreads();
        write_partials(partials, sums, job, 0);
    });
}

// ---- d_k and d_v -----------------------------------------------------------------------------------------------------

// The same for transposed scores; `term` is that of the lane's first column.
__device__ __forceinline__ void transposed_gradients(Square& scores, Square& d_p, const float* term, u32 kept) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float of[4];
        load(of, term + 16 * n);
#pragma unroll
        for (int i = 0; i < 4; i++)
            gradient(scores[n][i], d_p[n][i], of[i % 2 * 2], of[i % 2 * 2 + 1], key_keeps(kept, n, i / 2, i % 2));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_kv(const bf16* __restrict__ qkv, const bf16* __restrict__ d_ctx, const float* __restrict__ terms,
                          const Tile* __restrict__ tiles, const u32* __restrict__ tile_count, u32 heads, Dropout drop,
                          bf16* __restrict__ d_qkv, float* __restrict__ partials) {
    SHARED_MEMORY(bf16, shared);
    // A job for each block: there is no register left for a turn.
    Job job;
    if (blockIdx.x >= *tile_count * heads || !find_job(job, tiles, blockIdx.x, heads)) return;
    const u32 stride = 3 * job.width;
    const u32 length = job.tile.length;
    // The terms of the two stages' queries. [2, TILE, 2]
    float* stage_terms = reinterpret_cast<float*>(shared + 2 * STAGE + OWN * D);
    const float* sequence_terms = terms + static_cast<u64>(job.index - job.tile.first / TILE) * heads * 2 * TILE;
    // The sequence's first query; keys and values lie job.width and 2 job.width further.
    const bf16* sequence = qkv + static_cast<u64>(job.tile.start) * stride + job.head * D;
    const bf16* d_sequence = d_ctx + static_cast<u64>(job.tile.start) * job.width + job.head * D;

    auto load_tile = [&](u32 first) {
        bf16* stage = shared + first / TILE % 2 * STAGE;
        copy_rows<TILE>(stage, sequence, first, length, stride);
        copy_rows<TILE>(stage + TILE_SIZE, d_sequence, first, length, job.width);
        float* to = stage_terms + first / TILE % 2 * 2 * TILE;
        u32 at = threadIdx.x * 4;
        if (at < 2 * TILE) cp_async_16(to + at, sequence_terms + ((first / TILE * heads + job.head) * 2 * TILE + at));
        cp_async_commit();
    };

    // 1  The rows of k, by way of the second stage, and of v, for which there are no registers left.
    bf16* v = shared + 2 * STAGE;
    copy_rows<OWN>(shared + STAGE, sequence + job.width, job.tile.first, length, stride);
    copy_rows<OWN>(v, sequence + 2 * job.width, job.tile.first, length, stride);
    load_tile(0);
    cp_async_wait<0>();
    __syncthreads();
    Strip k[STRIPS];
    load_strips(k, shared + STAGE + job.warp_first * D);
    Sums d_k[STRIPS], d_v[STRIPS];
    clear(d_k);
    clear(d_v);

    for (u32 tile = 0; tile < length; tile += TILE) {
        // The tile has landed, and nobody reads the other stage any more.
        cp_async_wait<0>();
        __syncthreads();
        if (tile + TILE < length) load_tile(tile + TILE);
        if (job.warp_rows == 0) continue;
        const bf16* q = shared + tile / TILE % 2 * STAGE;
        const float* term = stage_terms + tile / TILE % 2 * 2 * TILE + lane_id() % 4 * 4;
        const u32 live = min(length - tile, static_cast<u32>(TILE));
        // The shuffle hides that the keys are always the same: what Philox makes of them in its first rounds would be
        // kept, in a dozen registers, while the products are computed.
        u32 kept[STRIPS], first_key = of_warp(job.tile.first + job.warp_first), first_query = job.tile.start + tile;
#pragma unroll
        for (int s = 0; s < STRIPS; s++)
            kept[s] = drop.active() ? kept_of_keys(drop, job.head, first_query, first_key + 16 * s) : 0xffffffffu;
#pragma unroll 1
        for (u32 first = 0; first < live; first += 16, q += 16 * D, term += 32) {
            // 2  scores = k qᵀ, d_p = v d_ctxᵀ
            Square scores[STRIPS], d_p[STRIPS];
            multiply_rows(scores, k, q);
            multiply_rows(d_p, v + job.warp_first * D, q + TILE_SIZE);
            // 3  d_v += (keep ∘ P)ᵀ d_ctx, d_k += d_Sᵀ q
            u32 p_weights[STRIPS][4], d_weights[STRIPS][4];
#pragma unroll
            for (int s = 0; s < STRIPS; s++) {
                transposed_gradients(scores[s], d_p[s], term, kept[s]);
                kept[s] = next_part_of_keys(kept[s]);
                as_weights(p_weights[s], scores[s]);
                as_weights(d_weights[s], d_p[s]);
            }
            multiply_columns(d_v, p_weights, q + TILE_SIZE);
            multiply_columns(d_k, d_weights, q);
        }
    }

    // 4  The sums become rows of d_k and d_v, by way of the first stage; the second holds the sums of columns.
    __syncthreads();
    float factor[STRIPS][2];
    float* sums = reinterpret_cast<float*>(shared + STAGE);
    float* warp_sums = sums + threadIdx.x / WARP * D;
    bf16* out = d_qkv + static_cast<u64>(job.first_row() + job.warp_first) * stride + job.width + job.head * D;
    bf16* own_rows = shared + job.warp_first * D;
    fill(factor, drop.keep_scale * SCALE);
    put_rows(own_rows, d_k, factor);
    save_and_sum(out, stride, own_rows, job.warp_rows, warp_sums);
    fill(factor, drop.keep_scale);
    put_rows(own_rows, d_v, factor);
    save_and_sum(out + job.width, stride, own_rows, job.warp_rows, warp_sums + WARPS * D);
    __syncthreads();
    write_partials(partials, sums, job, 1);
    write_partials(partials, sums + WARPS * D, job, 2);
}
