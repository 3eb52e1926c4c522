// embedding.cu: word and position embeddings, their LayerNorm and dropout; and back, to the two tables.
//
// embed: x = word[ids] + position[position_ids];  y = keep ∘ ((x - mean) rstd γ + β)
//   word [V, C], position [P, C], y [N, C] bf16    ids, position_ids [N] u32    γ, β [C] f32
//   stats [N, 2] f32: mean, rstd
// One warp per row, in registers. x is not stored: the backward pass adds it up again, to the same bits.
// Bytes: from memory 2 NC written and each row of the tables that occurs read once, at base size at most 149 MB, 31 us; but
// L2 has to hand out 4 NC and take 2 NC, 302 MB. Expected: 55 us, at the 5.5 TB/s that L2 is known to deliver.
//
// embed_backward: d comes in as d_y and goes out as d_x, through dropout and LayerNorm as in layernorm.cu
//   partials [ceil(N / rows of a block), 2, C] f32: sums over each block's rows, for d_γ and d_β; add_norm_partials adds them
//   d [N, C] bf16, the rest as above
// As add_layernorm_backward; a slot of a warp's ring holds the word's row, the position's and d's. Shared memory as there.
// Bytes: 4 NC and the tables, 249 MB or 52 us; through L2 8 NC, 403 MB, 73 us. Expected: 80 us.
//
// sum_pieces: sums of d's rows for the gradient of one table, without atomics. The host has sorted the rows by the table's
//   row (key) that they showed and cut each key's rows into pieces of at most 32. A piece that is all its key has is added
//   to d_table[target]; others leave their sum in slots[slot].
// add_slots: d_table[target] += the sums of the key's pieces
//   d [N, C] bf16    order [N] u32    slots [N / 16, C], d_table [V or P, C] f32
//   piece_count, sum_count: one u32 each, in device memory
//   Key `skip` gets nothing (0xffffffff: there is none): the padding token's row stays as it is.
// A warp per piece, its rows in order, four under way; a block per key of several pieces and 128 columns, every eighth slot
// to a warp, then the warps in order.
// Bytes of a table: 2 NC + 8 C for each key, + 8 C for each slot. At base size, with 10,000 different words: 187 MB, 39 us;
// for the 512 positions 117 MB, 24 us. Expected: 75 %, as most words come once or twice and a warp then waits for one thing
// after another (piece, order, row, gradient).
#include "layernorm.cuh"

constexpr int FORWARD_WARPS = 4;

// Blocks that an SM is to hold, which bounds a thread's registers; left open where rows are too wide for it.
constexpr int FORWARD_BLOCKS = C <= 768 ? 7 : 1;
constexpr int BACKWARD_BLOCKS = C <= 768 ? 3 : 1;

extern "C" __global__ void __launch_bounds__(FORWARD_WARPS * WARP, FORWARD_BLOCKS)
    embed(const u32* __restrict__ ids, const u32* __restrict__ position_ids, const bf16* __restrict__ word,
          const bf16* __restrict__ position, const float* __restrict__ gamma, const float* __restrict__ beta,
          float* __restrict__ stats, bf16* __restrict__ y, Rows rows, Dropout drop, float epsilon) {
    const u32 index = blockIdx.x * FORWARD_WARPS + threadIdx.x / WARP;
    if (index >= rows.count()) return;
    const u32 row = rows.first + index;
    const u64 start = row * static_cast<u64>(C);
    const u32 step = drop.active() ? *drop.step : 0;
    const bf16* of_word = word + ids[row] * static_cast<u64>(C);
    const bf16* of_position = position + position_ids[row] * static_cast<u64>(C);

    // All loads first, so that they are all under way at once.
    Run word_runs[VECTORS], position_runs[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        word_runs[v] = load_run(of_word + column(v));
        position_runs[v] = load_run(of_position + column(v));
    }
    float x[VECTORS][VEC];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float from_position[VEC];
        unpack(x[v], word_runs[v]);
        unpack(from_position, position_runs[v]);
#pragma unroll
        for (int i = 0; i < VEC; i++) x[v][i] += from_position[i];
    }
    Statistics of_row = statistics_of(x, epsilon);
    store_statistics(stats, row, of_row);
    normalise(x, of_row, gamma, beta);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (drop.active()) draw(drop, step, row, v).apply(x[v], drop);
        store_run(y + start + column(v), pack(x[v]));
    }
}

// d_γ, d_β.
constexpr int KINDS = 2;

using Ring = RowRing<3, 2>;
enum Source { WORD, POSITION, D };

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, BACKWARD_BLOCKS)
    embed_backward(bf16* d, const u32* __restrict__ ids, const u32* __restrict__ position_ids,
                   const bf16* __restrict__ word, const bf16* __restrict__ position, const float* __restrict__ stats,
                   const float* __restrict__ gamma, float* __restrict__ partials, Rows rows, Dropout drop) {
    SHARED_MEMORY(float, shared);
    const BlockRows block(rows);
    if (block.of_block == 0) return;
    const u32 lane = threadIdx.x % WARP;
    u32 id_of_lane = 0, position_of_lane = 0;
    float stats_of_lane[2] = {};
    if (lane < block.of_warp) {
        id_of_lane = ids[block.row(lane)];
        position_of_lane = position_ids[block.row(lane)];
        load(stats_of_lane, stats + 2 * static_cast<u64>(block.row(lane)));
    }
    const Ring ring(shared + C);
    auto fetch = [&](u32 index) {
        u32 id = __shfl_sync(ALL_LANES, id_of_lane, index % WARP);
        u32 at = __shfl_sync(ALL_LANES, position_of_lane, index % WARP);
        if (index < block.of_warp) {
            ring.fetch(index, WORD, word + id * static_cast<u64>(C));
            ring.fetch(index, POSITION, position + at * static_cast<u64>(C));
            ring.fetch(index, D, d + block.row(index) * static_cast<u64>(C));
        }
        cp_async_commit();
    };
    fetch(0);
    // What is dropped of d becomes zero in the ring; the factor of what is kept goes into γ and the sums instead.
    const float keep_scale = drop.active() ? drop.keep_scale : 1.0f;
    const SharedGamma shared_gamma = {shared};
    shared_gamma.fill(gamma, keep_scale);
    __syncthreads();

    float sums[KINDS][VECTORS][VEC] = {};
    const u32 step = drop.active() ? *drop.step : 0;
    for (u32 index = 0; index < block.of_warp; index++) {
        ring.wait();
        fetch(index + 1);
        if (drop.active()) {
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                bf16* run = ring.row(index, D) + column(v);
                store_run(run, draw(drop, step, block.row(index), v).without_dropped(load_run(run), drop));
            }
        }
        auto values = [&](int v, float(&kept)[VEC], float(&x)[VEC]) {
            float from_position[VEC];
            unpack(kept, load_run(ring.row(index, D) + column(v)));
            unpack(x, load_run(ring.row(index, WORD) + column(v)));
            unpack(from_position, load_run(ring.row(index, POSITION) + column(v)));
#pragma unroll
            for (int i = 0; i < VEC; i++) x[i] += from_position[i];
        };
        auto take = [&](int v, float(&d_x)[VEC]) {
            store_run(d + block.row(index) * static_cast<u64>(C) + column(v), pack(d_x));
        };
        layernorm_backward(sums[0], sums[1], shared_gamma, of_lane(stats_of_lane, index), values, take);
    }
#pragma unroll
    for (int kind = 0; kind < KINDS; kind++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int i = 0; i < VEC; i++) sums[kind][v][i] *= keep_scale;
    store_partials(partials, sums, shared + C);
}

// ---- Gradients of the tables -----------------------------------------------------------------------------------------

constexpr u32 NONE = 0xffffffffu;

// The most rows in a piece; the same as in src/backend/cuda/batch.rs.
constexpr u32 PIECE = 32;
static_assert(PIECE <= WARP, "a warp loads the numbers of its piece's rows, a lane for each");

// Tables of gradients are f32: 4 columns of them are 16 bytes, and make a lane's run here.
constexpr int TABLE_VEC = C % 128 == 0 ? 4 : 2;
constexpr int TABLE_VECTORS = C / (WARP * TABLE_VEC);
using TableRun = Vec<u32, TABLE_VEC / 2>;

// Rows order[first .. first + count] showed table row `target`.
struct alignas(16) Piece {
    u32 first, count, target, slot;
};

// The pieces of table row `target` left their sums in slots[first_slot .. first_slot + slots].
struct alignas(16) Sum {
    u32 target, first_slot, slots, unused;
};

__device__ __forceinline__ u32 table_column(int v) {
    return (v * WARP + threadIdx.x % WARP) * TABLE_VEC;
}

// sum += rows first .. first + n of those whose numbers the lanes hold, in order; all loads first.
template <int n>
__device__ __forceinline__ void add_rows(float (&sum)[TABLE_VECTORS][TABLE_VEC], const bf16* __restrict__ d,
                                         u32 row_of_lane, u32 first) {
    TableRun runs[n][TABLE_VECTORS];
#pragma unroll
    for (int r = 0; r < n; r++) {
        const bf16* row = d + __shfl_sync(ALL_LANES, row_of_lane, first + r) * static_cast<u64>(C);
#pragma unroll
        for (int v = 0; v < TABLE_VECTORS; v++) runs[r][v] = *reinterpret_cast<const TableRun*>(row + table_column(v));
    }
#pragma unroll
    for (int r = 0; r < n; r++)
#pragma unroll
        for (int v = 0; v < TABLE_VECTORS; v++)
#pragma unroll
            for (int i = 0; i < TABLE_VEC; i += 2) {
                sum[v][i] += low_half(runs[r][v].at[i / 2]);
                sum[v][i + 1] += high_half(runs[r][v].at[i / 2]);
            }
}

constexpr int PIECE_WARPS = 4;

extern "C" __global__ void __launch_bounds__(PIECE_WARPS * WARP)
    sum_pieces(const bf16* __restrict__ d, const u32* __restrict__ order, const Piece* __restrict__ pieces,
               const u32* __restrict__ piece_count, float* __restrict__ slots, float* __restrict__ d_table, u32 skip) {
    const u32 index = blockIdx.x * PIECE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (index >= *piece_count) return;
    const Piece piece = pieces[index];
    if (piece.target == skip) return;
    const u32 row_of_lane = lane < piece.count ? order[piece.first + lane] : 0;
    float sum[TABLE_VECTORS][TABLE_VEC] = {};
    u32 done = 0;
    for (; done + 4 <= piece.count; done += 4) add_rows<4>(sum, d, row_of_lane, done);
    if (piece.count & 2) add_rows<2>(sum, d, row_of_lane, done);
    if (piece.count & 1) add_rows<1>(sum, d, row_of_lane, piece.count - 1);
    float* to = piece.slot == NONE ? d_table + piece.target * static_cast<u64>(C) : slots + piece.slot * static_cast<u64>(C);
    if (piece.slot == NONE) {
        float before[TABLE_VECTORS][TABLE_VEC];
#pragma unroll
        for (int v = 0; v < TABLE_VECTORS; v++) load(before[v], to + table_column(v));
#pragma unroll
        for (int v = 0; v < TABLE_VECTORS; v++)
#pragma unroll
            for (int i = 0; i < TABLE_VEC; i++) sum[v][i] += before[v][i];
    }
#pragma unroll
    for (int v = 0; v < TABLE_VECTORS; v++) store(to + table_column(v), sum[v]);
}

constexpr u32 SUM_WARPS = 8;
constexpr u32 SLOTS_AT_ONCE = 4;
constexpr int SUM_COLUMNS = WARP * TABLE_VEC;  // of a block

extern "C" __global__ void __launch_bounds__(SUM_WARPS * WARP)
    add_slots(const float* __restrict__ slots, const Sum* __restrict__ sums, const u32* __restrict__ sum_count,
              float* __restrict__ d_table, u32 skip) {
    SHARED_MEMORY(float, shared);
    if (blockIdx.x >= *sum_count) return;
    const Sum sum = sums[blockIdx.x];
    if (sum.target == skip) return;
    const u32 warp = threadIdx.x / WARP, of_lane = threadIdx.x % WARP * TABLE_VEC;
    const float* from = slots + sum.first_slot * static_cast<u64>(C) + blockIdx.y * SUM_COLUMNS + of_lane;
    float total[TABLE_VEC] = {};
    for (u32 first = warp; first < sum.slots; first += SLOTS_AT_ONCE * SUM_WARPS) {
        float x[SLOTS_AT_ONCE][TABLE_VEC] = {};  // zero beyond the last slot
#pragma unroll
        for (u32 s = 0; s < SLOTS_AT_ONCE; s++) {
            const u32 slot = first + s * SUM_WARPS;
            if (slot < sum.slots) load(x[s], from + slot * static_cast<u64>(C));
        }
#pragma unroll
        for (u32 s = 0; s < SLOTS_AT_ONCE; s++)
#pragma unroll
            for (int i = 0; i < TABLE_VEC; i++) total[i] += x[s][i];
    }
    store(shared + warp * SUM_COLUMNS + of_lane, total);
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (u32 other = 1; other < SUM_WARPS; other++) {
        float x[TABLE_VEC];
        load(x, shared + other * SUM_COLUMNS + of_lane);
#pragma unroll
        for (int i = 0; i < TABLE_VEC; i++) total[i] += x[i];
    }
    float* to = d_table + sum.target * static_cast<u64>(C) + blockIdx.y * SUM_COLUMNS + of_lane;
    float before[TABLE_VEC];
    load(before, to);
#pragma unroll
    for (int i = 0; i < TABLE_VEC; i++) total[i] += before[i];
    store(to, total);
}
