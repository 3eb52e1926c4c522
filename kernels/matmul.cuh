// matmul.cuh: one tile of a product on tensor cores, for matmul.cu.
//   sum [ROWS, COLS] f32 += a [ROWS, depth] b [depth, COLS], a and b bf16, either of them lying either way round
// From the outside in: a block of four warps computes a tile; the tile's operands come through shared memory in stages of
// DEPTH, copied while earlier stages are used (cp.async); each warp takes what it needs of them to registers, 16 deep at a
// time (ldmatrix), one step before it multiplies (mma). Then bias, GELU or its backward, and out to memory.
#pragma once

#include "products.cuh"

constexpr u32 THREADS = 128;
constexpr u32 STAGES = 3;

// What a block computes: ROWS x COLS of the result, DEPTH of the inner dimension at a time. Four warps, two by two.
template <u32 rows, u32 cols, u32 depth>
struct Shape {
    static constexpr u32 ROWS = rows, COLS = cols, DEPTH = depth;
    static constexpr u32 WARP_ROWS = rows / 2, WARP_COLS = cols / 2;
    static constexpr u32 M = WARP_ROWS / 16, N = WARP_COLS / 8;  // a warp's products of a step: M x N of m16n8k16
    static constexpr u32 STEPS = depth / 16;
    static_assert(STEPS % 2 == 0, "fragments take turns between two sets of registers");

    __device__ static __forceinline__ u32 warp_row() {
        return threadIdx.x / WARP / 2 * WARP_ROWS;
    }

    __device__ static __forceinline__ u32 warp_col() {
        return threadIdx.x / WARP % 2 * WARP_COLS;
    }
};

// A warp's quarter of the tile, as mma_m16n8k16 lays it out: lane l has, with g = l / 4 and t = 2(l % 4), in [i][j][0..2]
// row 16i + g, columns 8j + t and 8j + t + 1, in [i][j][2..4] the same of row 16i + g + 8.
template <class S>
using Sums = float[S::M][S::N][4];

// ---- Operands --------------------------------------------------------------------------------------------------------

// Offset of 16-byte chunk `chunk` of row `row` in a tile of COLS columns. A row's chunks are turned by its number, so that
// the eight rows whose chunks of one column ldmatrix reads at once lie in eight different groups of four banks.
template <u32 COLS>
__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    static_assert(COLS % 64 == 0 || COLS == 32, "a row is half a line of banks, or whole lines");
    u32 turn = COLS == 32 ? row / 2 % 4 : row % 8;
    return row * COLS + (chunk ^ turn) * 8;
}

// Which index of an operand runs along memory: that of the depth, or the outer one, which the result has too.
enum class Along { Depth, Outer };

// a: its outer index counts the result's rows. b: its columns.
enum class Side { A, B };

// An operand, walked along its depth in tiles of OUTER x DEPTH.
template <Side side, Along along, u32 OUTER, u32 DEPTH>
struct Operand {
    static constexpr bool DEEP_ROWS = along == Along::Outer;       // the depth counts the rows in memory
    static constexpr u32 ROWS = DEEP_ROWS ? DEPTH : OUTER;         // of a tile as it lies in memory
    static constexpr u32 COLS = DEEP_ROWS ? OUTER : DEPTH;
    static constexpr u32 SIZE = ROWS * COLS;

    static constexpr u32 CHUNKS = COLS / 8, ROWS_AT_ONCE = THREADS / CHUNKS;  // of 16 bytes, as threads copy them

    const bf16* matrix;
    const bf16* from;  // this thread's first chunk of the tile to load next
    u32 lead;          // from row to row in memory
    u32 outer;         // so many of OUTER exist, at least one; zeros stand for the rest

    // Begins with the tile at element `first` of the matrix.
    __device__ static __forceinline__ Operand at(const bf16* matrix, u64 first, u32 lead, u32 outer) {
        first += static_cast<u64>(threadIdx.x / CHUNKS) * lead + threadIdx.x % CHUNKS * 8;
        return Operand{matrix, matrix + first, lead, outer};
    }

    // Starts to copy the next tile, of whose depth `depth` exist: at least one, and zeros stand for the rest. Where the
    // depth runs along memory it is not looked at: rows are readable, and zero, up to a multiple of DEPTH.
    __device__ __forceinline__ void load(bf16* tile, u32 depth) {
        u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        u32 rows = DEEP_ROWS ? depth : outer;
        bool inside = !DEEP_ROWS || chunk * 8 < outer;
        bf16* to = tile + swizzled<COLS>(row, chunk);
#pragma unroll
        for (u32 r = 0; r < ROWS; r += ROWS_AT_ONCE) {
            bool exists = inside && row + r < rows;
            cp_async_16(to + r * COLS, exists ? from + static_cast<u64>(r) * lead : matrix, exists ? 16 : 0);
        }
        from += DEEP_ROWS ? static_cast<u64>(DEPTH) * lead : DEPTH;
    }

    // Where the row begins that this lane names to ldmatrix, for the 16 x 16 block at (`outer`, depth 0). Of the four 8x8
    // matrices the second lies further out for a and deeper for b, as mma's registers want them.
    __device__ static __forceinline__ u32 lane_offset(u32 outer) {
        u32 lane = threadIdx.x % WARP, second = lane / 8 % 2, third = lane / 16;
        u32 out = side == Side::A ? second : third, deep = side == Side::A ? third : second;
        return DEEP_ROWS ? swizzled<COLS>(deep * 8 + lane % 8, outer / 8 + out)
                         : swizzled<COLS>(outer + out * 8 + lane % 8, deep);
    }

    // The block `block` blocks further out and `step` deeper. Along a row, 16 columns are two chunks; where an addition
    // carries nothing it is an exclusive or, and the order of turn and step does not matter.
    __device__ static __forceinline__ void fragment(u32 (&r)[4], const bf16* tile, u32 lane_offset, u32 block, u32 step) {
        if constexpr (DEEP_ROWS) {
            ldmatrix_x4_trans(r, tile + (lane_offset ^ block * 16) + step * 16 * COLS);
        } else {
            ldmatrix_x4(r, tile + (lane_offset ^ step * 16) + block * 16 * COLS);
        }
    }
};

// ---- The pipelined product -------------------------------------------------------------------------------------------

template <class S, Along a_along, Along b_along>
struct Product {
    using A = Operand<Side::A, a_along, S::ROWS, S::DEPTH>;
    using B = Operand<Side::B, b_along, S::COLS, S::DEPTH>;
    static constexpr u32 STAGE = A::SIZE + B::SIZE;

    // What a warp multiplies in one step.
    struct Fragments {
        u32 a[S::M][4];
        u32 b[S::N][2];

        __device__ __forceinline__ void load(const bf16* stage, u32 a_offset, u32 b_offset, u32 step) {
#pragma unroll
            for (u32 i = 0; i < S::M; i++) A::fragment(a[i], stage, a_offset, i, step);
#pragma unroll
            for (u32 j = 0; j < S::N; j += 2) {
                u32 r[4];
                B::fragment(r, stage + A::SIZE, b_offset, j / 2, step);
                b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
            }
        }

        __device__ __forceinline__ void multiply(Sums<S>& sum) const {
#pragma unroll
            for (u32 i = 0; i < S::M; i++) {
#pragma unroll
                for (u32 j = 0; j < S::N; j++) mma_m16n8k16(sum[i][j], a[i], b[j]);
            }
        }
    };

    // sum += a b. `shared` holds STAGES stages. Each sum is one chain of steps in the order of the depth, whatever the
    // shape of the tile.
    __device__ static __forceinline__ void run(Sums<S>& sum, A a, B b, u32 depth, bf16* shared) {
        u32 tiles = ceil_div(depth, S::DEPTH);
        if (tiles == 0) return;
        u32 a_offset = A::lane_offset(S::warp_row()), b_offset = B::lane_offset(S::warp_col());
        auto stage = [&](u32 tile) { return shared + tile % STAGES * STAGE; };
        auto load = [&](u32 tile) {
            if (tile < tiles) {
                a.load(stage(tile), depth - tile * S::DEPTH);
                b.load(stage(tile) + A::SIZE, depth - tile * S::DEPTH);
            }
            cp_async_commit();  // a group even where nothing is left, so that groups count tiles
        };
        for (u32 tile = 0; tile < STAGES - 1; tile++) load(tile);
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        Fragments turn[2];
        turn[0].load(stage(0), a_offset, b_offset, 0);
        for (u32 tile = 0; tile < tiles; tile++) {
#pragma unroll
            for (u32 step = 0; step < S::STEPS; step++) {
                // The next step's fragments, so that ldmatrix runs beside this step's products.
                if (step + 1 < S::STEPS) {
                    turn[(step + 1) % 2].load(stage(tile), a_offset, b_offset, step + 1);
                } else if (tile + 1 < tiles) {
                    // After this barrier the next tile is there, for all; and all hold the rest of this one in registers,
                    // so that its stage may be copied into.
                    cp_async_wait<STAGES - 2>();
                    __syncthreads();
                    turn[0].load(stage(tile + 1), a_offset, b_offset, 0);
                }
                // Into the stage of the tile before this one, which the barrier of the last turn released.
                if (step == 0) load(tile + STAGES - 1);
                turn[step % 2].multiply(sum);
            }
        }
    }
};

// ---- What becomes of the sums: bf16 ----------------------------------------------------------------------------------

// A block's part of the result. It has no rows if it is not needed.
struct Tile {
    u32 row, col;    // where it begins
    u32 rows, cols;  // how many of the shape's exist

    __device__ __forceinline__ u64 at(u32 lead) const {
        return static_cast<u64>(row) * lead + col;
    }
};

// Turns a warp's sums into bf16 pairs in `staged` [ROWS, COLS], which holds `before` where that is wanted; each lane reads
// and writes words of its own. `column_sums` [2, COLS]: of the values written, for each half of the rows.
template <class S, Finish finish>
__device__ __forceinline__ void stage_sums(const Sums<S>& sum, const Tile& tile, const Target& to, bf16* staged,
                                           float* column_sums) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4 * 2;
    u32 offset = swizzled<S::COLS>(S::warp_row() + g, S::warp_col() / 8) + t;
#pragma unroll
    for (u32 j = 0; j < S::N; j++) {
        u32 col = S::warp_col() + j * 8 + t;
        BiasPair bias = BiasPair::of<finish>(to, tile.col + col);
        float columns[2] = {};
#pragma unroll
        for (u32 i = 0; i < S::M * 2; i++) {
            u32* pair = reinterpret_cast<u32*>(staged + (offset ^ j * 8) + i * 8 * S::COLS);
            u32 before = reads_before(finish) ? *pair : 0;
            *pair = finish_pair<finish>(sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1], bias, before);
            columns[0] += low_half(*pair);
            columns[1] += high_half(*pair);
        }
        if constexpr (finish == Finish::GeluBackward) {
            sum_over_rows(columns[0], columns[1]);
            if (g == 0) store(column_sums + (S::warp_row() > 0 ? S::COLS : 0) + col, columns);
        }
    }
}

// Calls `use(which chunk of the matrix, its values)` for every chunk of the tile that exists.
template <class S, class Use>
__device__ __forceinline__ void each_chunk(const bf16* staged, const Tile& tile, u32 lead, Use use) {
    constexpr u32 CHUNKS = S::COLS / 8, ROWS_AT_ONCE = THREADS / CHUNKS;
    u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    if (chunk * 8 >= tile.cols) return;
#pragma unroll
    for (u32 r = 0; r < S::ROWS; r += ROWS_AT_ONCE) {
        Chunk values = *reinterpret_cast<const Chunk*>(staged + swizzled<S::COLS>(row, chunk) + r * S::COLS);
        if (row + r < tile.rows) use((static_cast<u64>(tile.row + row + r) * lead + tile.col) / 8 + chunk, values);
    }
}

// Through shared memory, where the operands were, so that rows are read and written 16 bytes at a time.
template <class S, Finish finish>
__device__ __forceinline__ void finish_tile(const Sums<S>& sum, const Tile& tile, const Target& to, bf16* shared) {
    float* column_sums = reinterpret_cast<float*>(shared + S::ROWS * S::COLS);
    __syncthreads();  // all have read their operands
    if constexpr (reads_before(finish)) {
        auto before = Operand<Side::A, Along::Outer, S::COLS, S::ROWS>::at(to.before, tile.at(to.lead), to.lead, tile.cols);
        before.load(shared, tile.rows);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
    }
    stage_sums<S, finish>(sum, tile, to, shared, column_sums);
    __syncthreads();
    each_chunk<S>(shared, tile, to.lead, [&](u64 at, const Chunk& values) {
        Chunk* y = reinterpret_cast<Chunk*>(to.y) + at;
        if constexpr (finish == Finish::BiasGelu) {
            reinterpret_cast<Chunk*>(to.pre)[at] = values;
            Chunk activated;
#pragma unroll
            for (u32 i = 0; i < 4; i++) activated.at[i] = gelu_pair(values.at[i]);
            *y = activated;
        } else {
            *y = values;
        }
    });
    if constexpr (finish == Finish::GeluBackward) {
        u32 col = threadIdx.x;
        float* partials = to.partials + static_cast<u64>(tile.row / S::ROWS) * to.lead + tile.col;
        if (col < tile.cols) partials[col] = column_sums[col] + column_sums[S::COLS + col];
    }
}

// ---- What becomes of the sums: f32 -----------------------------------------------------------------------------------

template <class S, Store how>
__device__ __forceinline__ void store_sums(const Sums<S>& sum, const Tile& tile, float* matrix, u32 lead) {
    u32 row = S::warp_row() + sums_row(), col = S::warp_col() + sums_col();
#pragma unroll
    for (u32 i = 0; i < S::M; i++) {
        store_rows_of_sums<how, S::N>(
            matrix + static_cast<u64>(tile.row + row + i * 16) * lead + tile.col + col,
            [&](u32 j, u32 at) { return sum[i][j][at]; },
            [&](u32 j) { return row + i * 16 < tile.rows && col + j * 8 < tile.cols; });
    }
}
