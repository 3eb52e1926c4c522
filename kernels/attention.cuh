// attention.cuh: what the forward and the backward pass of attention share: how rows are dealt out, tiles in shared
// memory, products of fragments, dropout bits, results on their way out.
//
// A block has 4 warps and works on one head of one sequence at a time. It owns OWN rows (queries, or keys in the pass for
// d_k and d_v), each warp 16 or 32 of them, and goes through the sequence's other rows in tiles of 64, of which the next one is
// copied while one is worked on. A warp's own rows are the left operand of every product, the tiles in shared memory
// the right one; so what it computes from its scores never leaves its registers, and warps only meet to take turns with
// the tiles. Sequences may be of any length below 2^32 / 3C; empty ones have no tile and no block.
#pragma once

#include "common.cuh"

constexpr int D = HEAD_SIZE;
static_assert(D == 32 || D == 64 || D == 128, "head sizes of 32, 64 and 128");

constexpr int TILE = 64;
constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
// Strips of 16 rows that a warp owns. Two halve what is read from shared memory and from L2 for each product; with D =
// 128 their accumulators would not fit the registers.
constexpr int STRIPS = D <= 64 ? 2 : 1;
constexpr int WARP_ROWS = 16 * STRIPS;
constexpr int OWN = WARPS * WARP_ROWS;
// 16-byte chunks of a row of a tile.
constexpr int CHUNKS = D / 8;
// Elements of a tile, and of the pair of tiles that is loaded at a time.
constexpr int TILE_SIZE = TILE * D;
constexpr int STAGE = 2 * TILE_SIZE;

constexpr float SCALE = D == 32 ? 0.17677669529663687f : D == 64 ? 0.125f : 0.08838834764831845f;  // 1 / √D
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
// e^(SCALE x) = 2^(SCALE_LOG2 x)
constexpr float SCALE_LOG2 = SCALE * LOG2E;

__device__ __forceinline__ float infinity() {
    return __uint_as_float(0x7f800000u);
}

// ---- Who does what ---------------------------------------------------------------------------------------------------

// 64 neighbouring rows of a sequence, as the host lists them. The tiles of a sequence follow one another in the list.
struct alignas(16) Tile {
    u32 start;   // packed row of the sequence's first token
    u32 length;  // of the sequence
    u32 first;   // position of the tile's first row within the sequence
    u32 sequence;
};

struct Job {
    Tile tile;
    u32 index;       // of the tile in the list
    u32 head;
    u32 width;       // C
    u32 rows;        // that the block owns and that exist
    u32 warp_first;  // the first of them that is the warp's
    u32 warp_rows;   // how many of the warp's exist

    // Packed row of the first row that the block owns.
    __device__ __forceinline__ u32 first_row() const {
        return tile.start + tile.first;
    }
};

__device__ __forceinline__ u32 lane_id() {
    return threadIdx.x % WARP;
}

// The same value, which all lanes have already. After the shuffle the compiler knows that, and keeps it and addresses
// made of it in the warp's registers instead of the lanes', of which there are none to spare.
__device__ __forceinline__ u32 of_warp(u32 x) {
    return __shfl_sync(ALL_LANES, x, 0);
}

// The job of this number, unless it has nothing to do.
__device__ __forceinline__ bool find_job(Job& job, const Tile* tiles, u32 number, u32 heads) {
    u32 index = number / heads;
    Tile tile = tiles[index];
    if (tile.first % OWN != 0) return false;
    job.tile = tile;
    job.index = index;
    job.head = of_warp(number - index * heads);
    job.width = heads * D;
    job.rows = min(job.tile.length - job.tile.first, static_cast<u32>(OWN));
    job.warp_first = of_warp(threadIdx.x / WARP) * WARP_ROWS;
    job.warp_rows = job.rows > job.warp_first ? min(job.rows - job.warp_first, static_cast<u32>(WARP_ROWS)) : 0;
    return true;
}

// Does the jobs of the block: number blockIdx.x and each gridDim.x after it, of a job for each head of each tile, heads
// fastest. So the longest sequences start first, and blocks that run at the same time read the same rows of qkv. A job
// that owns two tiles takes a tile with an even number and the one that follows it; the others have nothing to do.
template <class Work>
__device__ __forceinline__ void each_job(const Tile* tiles, const u32* tile_count, u32 heads, Work work) {
    u32 number = blockIdx.x;
    while (number < *tile_count * heads) {
        Job job;
        if (find_job(job, tiles, number, heads)) {
            work(job);
            // The next job writes where others may still read for this one.
            __syncthreads();
            // The same as before, worked out again: meanwhile there was no register for it.
            number = job.index * heads + job.head;
        }
        number += gridDim.x;
    }
}

// ---- Tiles in shared memory ------------------------------------------------------------------------------------------

// Where a chunk of a row lies in a tile, in elements. Chunks change places within their row such that the same chunk of
// eight neighbouring rows, which is what ldmatrix reads at once, lies in eight different groups of four banks. A row of
// D = 32 fills half of the banks, so there two rows at a time share a pattern.
__device__ __forceinline__ u32 chunk_at(u32 row, u32 chunk) {
    u32 pattern = D == 32 ? row / 2 % 4 : row % 8;
    return (row * CHUNKS + (chunk ^ pattern)) * 8;
}

// Starts to copy `rows` rows of a head's columns to a tile, from row `first` of the sequence that begins at `sequence`.
// Rows that the sequence does not have become zero and are not read.
template <int rows>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* sequence, u32 first, u32 length, u32 stride) {
    constexpr int STEP = THREADS / CHUNKS;
    static_assert(rows % STEP == 0 && STEP % 8 == 0, "every thread keeps to one place within the pattern of chunks");
    const u32 in_tile = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    to += chunk_at(in_tile, chunk);
    u32 row = first + in_tile;
    u32 offset = row * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < rows / STEP; i++) {
        bool exists = row < length;
        cp_async_16(to + i * STEP * D, sequence + (exists ? offset : 0), exists ? 16 : 0);
        row += STEP;
        offset += STEP * stride;
    }
}

// Starts to copy a tile's keys and values to its stage, one behind the other. `sequence` is the sequence's first query
// of the head; its keys and values lie job.width and 2 job.width further.
__device__ __forceinline__ void copy_keys(bf16* shared, const bf16* sequence, const Job& job, u32 first) {
    bf16* stage = shared + first / TILE % 2 * STAGE;
    copy_rows<TILE>(stage, sequence + job.width, first, job.tile.length, 3 * job.width);
    copy_rows<TILE>(stage + TILE_SIZE, sequence + 2 * job.width, first, job.tile.length, 3 * job.width);
    cp_async_commit();
}

// ---- Fragments -------------------------------------------------------------------------------------------------------

// A lane's part of 16 rows x D, as left operands.
using Strip = u32[D / 16][4];
// A lane's part of 16 rows x D sums. Element [n][2r + c] is row g + 8r, column 8n + t + c of the strip, with g = lane /
// 4 and t = 2(lane % 4).
using Sums = float[D / 8][4];
// Likewise of 16 rows x 16 columns.
using Square = float[2][4];

// Where a row's chunk of ldmatrix lies for columns 16k..16k + 16, `half` of them. Written such that what differs
// between one k and another is a constant, as far as it can be.
__device__ __forceinline__ const bf16* matrix_row(const bf16* rows, u32 row, int k, u32 half) {
    return rows + chunk_at(row, half ^ (2 * k % 8)) + 2 * k / 8 * 64;
}

// The four 8 x 8 matrices of 16 x 16 come in the order in which the operand wants its registers: two below each other
// first, then the two to their right...
__device__ __forceinline__ const bf16* column_first(const bf16* rows, int k) {
    return matrix_row(rows, lane_id() % 16, k, lane_id() / 16);
}

// ... or two side by side first.
__device__ __forceinline__ const bf16* row_first(const bf16* rows, int k) {
    return matrix_row(rows, lane_id() % 8 + lane_id() / 16 * 8, k, lane_id() / 8 % 2);
}

// 16 columns (number `k` of them) of one of the warp's strips. `own` is the first of the warp's rows in a tile.
__device__ __forceinline__ void load_strip(u32 (&fragment)[4], const bf16* own, int s, int k) {
    ldmatrix_x4(fragment, column_first(own + 16 * s * D, k));
}

__device__ __forceinline__ void load_strips(Strip (&strips)[STRIPS], const bf16* own) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int k = 0; k < D / 16; k++) load_strip(strips[s][k], own, s, k);
}

__device__ __forceinline__ void clear(Square (&products)[STRIPS]) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) products[s][n][i] = 0.0f;
}

// products = own x rowsᵀ, for 16 rows of a tile.
__device__ __forceinline__ void multiply_rows(Square (&products)[STRIPS], const Strip (&own)[STRIPS],
                                              const bf16* rows) {
    clear(products);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 m[4];
        ldmatrix_x4(m, row_first(rows, k));
        u32 left[2] = {m[0], m[1]}, right[2] = {m[2], m[3]};
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            mma_m16n8k16(products[s][0], own[s][k], left);
            mma_m16n8k16(products[s][1], own[s][k], right);
        }
    }
}

// The same with the warp's own rows left in shared memory.
__device__ __forceinline__ void multiply_rows(Square (&products)[STRIPS], const bf16* own, const bf16* rows) {
    clear(products);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 m[4];
        ldmatrix_x4(m, row_first(rows, k));
        u32 left[2] = {m[0], m[1]}, right[2] = {m[2], m[3]};
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            u32 strip[4];
            load_strip(strip, own, s, k);
            mma_m16n8k16(products[s][0], strip, left);
            mma_m16n8k16(products[s][1], strip, right);
        }
    }
}

// sums += weights x rows, for 16 rows of a tile, one for each column of the weights.
__device__ __forceinline__ void multiply_columns(Sums (&sums)[STRIPS], const u32 (&weights)[STRIPS][4],
                                                 const bf16* rows) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 m[4];
        ldmatrix_x4_trans(m, column_first(rows, k));
        u32 left[2] = {m[0], m[1]}, right[2] = {m[2], m[3]};
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            mma_m16n8k16(sums[s][2 * k], weights[s], left);
            mma_m16n8k16(sums[s][2 * k + 1], weights[s], right);
        }
    }
}

// A square as the left operand of the next product: sums and left operands have the same layout but for the rounding.
__device__ __forceinline__ void as_weights(u32 (&weights)[4], const Square& square) {
    weights[0] = pack_bf16x2(square[0][0], square[0][1]);
    weights[1] = pack_bf16x2(square[0][2], square[0][3]);
    weights[2] = pack_bf16x2(square[1][0], square[1][1]);
    weights[3] = pack_bf16x2(square[1][2], square[1][3]);
}

// Scores of columns from `live` on count nothing, where the columns are keys.
__device__ __forceinline__ void mask_keys(Square (&scores)[STRIPS], u32 live) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (8 * n + 2 * (lane_id() % 4) + i % 2 >= live) scores[s][n][i] = -infinity();
}

// One value for each of the lane's rows.
__device__ __forceinline__ void fill(float (&of_rows)[STRIPS][2], float value) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++) of_rows[s][0] = of_rows[s][1] = value;
}

__device__ __forceinline__ void clear(Sums (&sums)[STRIPS]) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[s][n][i] = 0.0f;
}

// The sum over the four lanes that share a row of sums.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// ---- Dropout bits ----------------------------------------------------------------------------------------------------

// A draw says which of 8 neighbouring keys a query keeps. The lanes that need its bits share it: each makes four draws
// of its own, a byte each, and gets the rest from the others, so that none is made twice. What a lane keeps of 16 x 64
// scores is one word. The passes go through the 64 in four parts of 16; `next_part` brings the bits of the next part to
// where those of the first were. The step is read at each use: kept, it would take a register.

// For a strip of queries x 64 keys from position `first_key` on; `query` is the packed row of the lane's row g. The
// four lanes of a row share its draws: lane i draws for the two blocks of part i.
__device__ __forceinline__ u32 kept_of_queries(const Dropout& drop, u32 head, u32 query, u32 first_key) {
    u32 quad_lane = lane_id() % 4, drawn = 0, kept = 0;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            u32 block = first_key / 8 + 2 * quad_lane + n;
            drawn |= drop.kept8(*drop.step, query + 8 * r, block, head) << (8 * (2 * n + r));
        }
#pragma unroll
    for (int from = 0; from < 4; from++) {
        u32 theirs = __shfl_sync(ALL_LANES, drawn, lane_id() - quad_lane + from);
        kept |= (theirs >> (2 * quad_lane) & 0x03030303u) << (2 * from);
    }
    return kept;
}

// For the warp's own rows as queries; all is kept without dropout.
__device__ __forceinline__ void draw_kept(u32 (&kept)[STRIPS], const Dropout& drop, const Job& job, u32 first_key) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++) {
        u32 query = job.first_row() + job.warp_first + 16 * s + lane_id() / 4;
        kept[s] = drop.active() ? kept_of_queries(drop, job.head, query, first_key) : 0xffffffffu;
    }
}

// Whether score [n][2r + c] of the part at hand is kept.
__device__ __forceinline__ bool query_keeps(u32 kept, int n, int r, int c) {
    return kept >> (8 * (2 * n + r) + c) & 1;
}

__device__ __forceinline__ u32 next_part_of_queries(u32 kept) {
    return kept >> 2;
}

// The same for the transposed scores: a strip of keys from position `first_key` on x 64 queries from packed row
// `first_query` on. The eight lanes of a column share its draws: in each part the lane of row g draws for the query of
// column 8n + t + c and half r of the strip, g = 4n + 2c + r.
__device__ __forceinline__ u32 kept_of_keys(const Dropout& drop, u32 head, u32 first_query, u32 first_key) {
    u32 g = lane_id() / 4, quad_lane = lane_id() % 4, drawn = 0, kept = 0;
    u32 query = first_query + 8 * (g / 4) + 2 * quad_lane + g / 2 % 2;
#pragma unroll
    for (int part = 0; part < 4; part++)
        drawn |= drop.kept8(*drop.step, query + 16 * part, first_key / 8 + g % 2, head) << (8 * part);
#pragma unroll
    for (int from = 0; from < 8; from++) {
        u32 theirs = __shfl_sync(ALL_LANES, drawn, 4 * from + quad_lane);
        kept |= (theirs >> g & 0x01010101u) << from;
    }
    return kept;
}

__device__ __forceinline__ bool key_keeps(u32 kept, int n, int r, int c) {
    return kept >> (4 * n + 2 * c + r) & 1;
}

__device__ __forceinline__ u32 next_part_of_keys(u32 kept) {
    return kept >> 8;
}

// ---- Results ---------------------------------------------------------------------------------------------------------

// Puts the warp's sums, each row times its factor, into its rows of a tile.
__device__ __forceinline__ void put_rows(bf16* own, const Sums (&sums)[STRIPS], const float (&factor)[STRIPS][2]) {
    // What the warp put there before has been read.
    __syncwarp();
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            u32 row = 16 * s + 8 * r + lane_id() / 4;
            float by = factor[s][r];
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                u32 pair = pack_bf16x2(sums[s][n][2 * r] * by, sums[s][n][2 * r + 1] * by);
                *reinterpret_cast<u32*>(own + chunk_at(row, n) + lane_id() % 4 * 2) = pair;
            }
        }
    __syncwarp();
}

// Copies the warp's rows of a tile to global memory, 16 bytes of neighbouring lanes side by side, and calls f(values)
// for what it copies; rows from `live` on are left out. A lane keeps to one column of chunks.
template <class F>
__device__ __forceinline__ void save_rows(bf16* to, u32 stride, const bf16* own, u32 live, F f) {
    u32 chunk = lane_id() % CHUNKS;
#pragma unroll
    for (int i = 0; i < WARP_ROWS * CHUNKS / WARP; i++) {
        u32 row = i * (WARP / CHUNKS) + lane_id() / CHUNKS;
        if (row >= live) continue;
        Vec<bf16, 8> values = *reinterpret_cast<const Vec<bf16, 8>*>(own + chunk_at(row, chunk));
        *reinterpret_cast<Vec<bf16, 8>*>(to + row * stride + chunk * 8) = values;
        f(values);
    }
}
