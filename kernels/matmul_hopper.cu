// matmul_hopper.cu: the products of a linear layer on Hopper: wgmma fed by tensor copies. For sm_90a alone.
//   matmul_hopper_nt_bias            y = x W^T + b
//   matmul_hopper_nt_bias_gelu       pre = x W^T + b; y = gelu(pre), of pre as stored (rounded), as backward sees it
//   matmul_hopper_nn, _nn_add        d_x = d_y W; d_x += d_y W, in f32, rounded once
//   matmul_hopper_nn_gelu_backward   d_pre = (d_y W) gelu'(pre); partials[row tile] = column sums of d_pre as stored, f32
//   matmul_hopper_nn_split           d_y W cut along the outputs into parts
//   matmul_hopper_tn_accumulate      d_W += d_y^T x
//   matmul_hopper_tn_split           d_y^T x cut along the rows into parts
// Operands, what is live, pads, parts and partials are as in matmul.cu, whose sum_splits and add_splits add the parts;
// row tiles have 128 rows here too. In maps a box has 64 columns, 128 bytes, by which it is swizzled:
//   x_map [capacity, inputs], d_y_map [capacity, lead]    nt, nn: boxes of 128 rows    tn: of 64
//   w_map [outputs, inputs]                               nt: boxes of 256 rows        nn: of 64
//
// Plan (matmul_hopper.cuh). A persistent block an SM (384 threads, 216 KB); item i of all goes to block i mod blocks. A
// tile is 128 x 256, its depth walked in stages of 64 (48 KB), a ring of 3. Warpgroup 0 copies; 1 and 2 multiply 64 rows
// each, all sums in registers (128 a thread), and hand a stage back when the wgmma of the next are already under way.
// What comes after the sums must not keep the tensor cores waiting: they are rounded into 64 KB of shared memory, and the
// same threads that wait for the next tile's wgmma anyway take them from there, a piece a stage, apply GELU and store,
// 16 bytes a lane and whole 128-byte rows. What sums are combined with is fetched beforehand in the same way; it is two
// bytes a value too, so it lies where the result will. So between two tiles there is only the rounding.
// Nothing is transposed: wgmma takes an operand whose depth counts the rows in memory (W in nn, both in tn) as it lies.
// Columns first: the blocks that run together share a few row tiles of x and all of W, which stays in L2.
// Where a stage holds rows that are not live, warpgroup 0 copies it thread by thread, with zeros for them: the last row
// tile in nt and nn, the last stage of the depth in tn.
//
// Order of sums. Every value is one chain of wgmma over the depth, or over its part, so bits depend on neither the grid
// nor the number of SMs. Column sums: a thread's two rows, a warp's 16 by a butterfly, a tile's eight warps in order.
//
// Cost: 2 R inputs outputs FLOP; bytes and floors as in matmul.cu (base size, an H200: qkv 0.235 ms, out 0.078, lin1
// 0.313, lin2 0.313; forward, d_x and d_W alike, all by the tensor cores; the encoder's 72 products of a step 16.9 ms).
// Clocks of an SM, from the machine code, two warps to a scheduler: a stage is 1,024 of the tensor cores. Between tiles
// some 700 go by (nn_add, and f32 results, 1,300; nn_gelu_backward, whose column sums are taken there, 2,300), 6 % of a
// tile 768 deep. A stage's piece of GELU, or of its slope, takes some 900 beside wgmma, for 8 of the 12 stages.
// Open is what L2 delivers: 48 KB a stage is 11.6 TB/s at full rate, although the blocks that run together ask for the
// same lines at about the same time. A published kernel with this shape of tile, a ring of 4 and no multicast to clusters
// is said to reach 855 TFLOP/s on an H100 (ThunderKittens, README), in deeper products and without GELU.
// Expected: 600 to 750 TFLOP/s, d_W the most. If it is L2 that holds it back, multicast is next. Not yet run on a GPU.
#include "matmul_hopper.cuh"

// Which of the consuming warps this is; each has 16 rows of a tile.
__device__ __forceinline__ u32 consumer_warp() {
    return threadIdx.x / WARP - WARPGROUP / WARP;
}

// ---- What becomes of the sums: bf16 ----------------------------------------------------------------------------------

// A warp's part of a tile, 16 x 256, lies in shared memory as four patches of 64 columns. Lanes load and store chunks of 16
// bytes there and in memory, whole 128-byte rows; a piece is half a patch, two chunks a lane.
struct Patches {
    static constexpr u32 PIECES = 2 * PATCHES;

    u8* staged;

    // Row, of the warp's 16, of this lane's chunk i of a piece; its column, of the warp's 256.
    __device__ static __forceinline__ u32 row(u32 piece, u32 i) {
        return piece % 2 * 8 + i * 4 + threadIdx.x % WARP / 8;
    }

    __device__ static __forceinline__ u32 col(u32 piece) {
        return piece / 2 * BOX_COLS + threadIdx.x % 8 * 8;
    }

    __device__ __forceinline__ Chunk* chunk(u32 piece, u32 i) const {
        u32 offset = swizzled(Swizzle::bytes128, row(piece, i) * BOX_ROW_BYTES + threadIdx.x % 8 * 16);
        return reinterpret_cast<Chunk*>(staged + piece / 2 * PATCH_BYTES + offset);
    }

    // The row of fragment j, columns 16j to 16j + 15 of a patch, that this lane names to ldmatrix and stmatrix.
    __device__ __forceinline__ u8* fragment_row(u32 patch, u32 j) const {
        u32 lane = threadIdx.x % WARP, offset = lane % 16 * BOX_ROW_BYTES + 32 * j + lane / 16 * 16;
        return staged + patch * PATCH_BYTES + swizzled(Swizzle::bytes128, offset);
    }
};

// Rounds sums to bf16, with what the finish says. An item's results stay in shared memory and leave it, GELU and all, while
// the next item is multiplied; what its sums are combined with comes there in the same way, while it is multiplied itself:
// for Add what was there before, for GeluBackward the GELU's slope, as f16 (2^-12 of it off at most, where rounding the
// product to bf16 takes 2^-9).
template <Finish finish_as>
struct ToBf16 {
    static constexpr u32 PIECES = Patches::PIECES;
    static constexpr bool READS = reads_before(finish_as);
    static constexpr bool HAS_BIAS = finish_as == Finish::Bias || finish_as == Finish::BiasGelu;
    static constexpr u32 NONE = 0xffffffffu;

    Shared* shared;
    const Target& to;
    u32 rows;  // live
    Patches patches;
    u32 row, col;                         // where this warp's part of the item begins
    u32 ready_row = NONE, ready_col = 0;  // and of the item that lies in shared memory
    Chunk ahead[2] = {};                  // of the next piece of what is read
    float biases[COLS / WARP] = {};       // on their way to shared memory

    __device__ __forceinline__ ToBf16(Shared* shared, const Target& to, u32 rows) : shared(shared), to(to), rows(rows) {
        patches.staged = shared->staged[threadIdx.x < WARPGROUP ? 0 : consumer_warp()][0];
    }

    __device__ __forceinline__ void begin(const Item& item) {
        row = item.row + 16 * consumer_warp();
        col = item.col;
        if constexpr (READS) load(0);
        if constexpr (HAS_BIAS) {
#pragma unroll
            for (u32 i = 0; i < COLS / WARP; i++) {
                u32 c = col + i * WARP + threadIdx.x % WARP;
                biases[i] = c < to.biases ? to.bias[c] : 0.0f;
            }
        }
    }

    __device__ __forceinline__ void load(u32 piece) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 r = row + Patches::row(piece, i), c = col + Patches::col(piece);
            ahead[i] = Chunk{};
            if (r < rows && c < to.lead)
                ahead[i] = *reinterpret_cast<const Chunk*>(to.before + static_cast<u64>(r) * to.lead + c);
        }
    }

    // Stores a piece of the item before.
    __device__ __forceinline__ void store_piece(u32 piece) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 r = ready_row + Patches::row(piece, i), c = ready_col + Patches::col(piece);
            if (ready_row == NONE || r >= rows || c >= to.lead) continue;
            Chunk values = *patches.chunk(piece, i);
            u64 at = static_cast<u64>(r) * to.lead + c;
            if constexpr (finish_as == Finish::BiasGelu) {
                *reinterpret_cast<Chunk*>(to.pre + at) = values;
#pragma unroll
                for (u32 k = 0; k < 4; k++) values.at[k] = gelu_pair(values.at[k]);
            }
            *reinterpret_cast<Chunk*>(to.y + at) = values;
        }
    }

    __device__ __forceinline__ void meanwhile(u32 piece) {
        store_piece(piece);
        if constexpr (READS) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                Chunk values = ahead[i];
                if constexpr (finish_as == Finish::GeluBackward) {
#pragma unroll
                    for (u32 k = 0; k < 4; k++)
                        values.at[k] = pack_f16x2(gelu_slope(low_half(values.at[k])), gelu_slope(high_half(values.at[k])));
                }
                *patches.chunk(piece, i) = values;
            }
            if (piece + 1 < PIECES) load(piece + 1);
        }
        if constexpr (HAS_BIAS) {
            float* columns = shared->columns[consumer_warp()];
#pragma unroll
            for (u32 i = 0; i < COLS / WARP; i++) {
                if (piece == 0) columns[i * WARP + threadIdx.x % WARP] = biases[i];
            }
        }
    }

    __device__ __forceinline__ void finish(const float (&d)[COLS / 2]) {
        u32 pair = threadIdx.x % 4 * 2;
        __syncwarp();  // all pieces are stored, or loaded
#pragma unroll
        for (u32 patch = 0; patch < PATCHES; patch++) {
            if (col + BOX_COLS * patch >= to.lead) break;
#pragma unroll
            for (u32 j = 0; j < BOX_COLS / 16; j++) {
                u32 packed[4] = {};
                if constexpr (READS) ldmatrix_x4(packed, patches.fragment_row(patch, j));
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const float* two = &d[32 * patch + 8 * j + 2 * i];
                    BiasPair bias;
                    if constexpr (HAS_BIAS) {
                        const float* at = &shared->columns[consumer_warp()][BOX_COLS * patch + 16 * j + i / 2 * 8 + pair];
                        bias = *reinterpret_cast<const BiasPair*>(at);
                    }
                    packed[i] = combine(two[0], two[1], bias, packed[i]);
                }
                if constexpr (finish_as == Finish::GeluBackward) {
                    sum_columns(packed[0], packed[1], BOX_COLS * patch + 16 * j);
                    sum_columns(packed[2], packed[3], BOX_COLS * patch + 16 * j + 8);
                }
                stmatrix_x4(patches.fragment_row(patch, j), packed);
            }
        }
        __syncwarp();  // and now it is
        ready_row = row;
        ready_col = col;
        if constexpr (finish_as == Finish::GeluBackward) store_partials();
    }

    __device__ static __forceinline__ u32 combine(float low, float high, const BiasPair& bias, u32 before) {
        if constexpr (finish_as == Finish::GeluBackward) {
            float low_slope, high_slope;
            unpack_f16x2(low_slope, high_slope, before);
            return pack_bf16x2(low * low_slope, high * high_slope);
        } else {
            return finish_pair<finish_as>(low, high, bias, before);
        }
    }

    // Sums of eight columns of the warp's, of pairs of its upper and lower rows, as stored.
    __device__ __forceinline__ void sum_columns(u32 upper, u32 lower, u32 first) const {
        u32 lane = threadIdx.x % WARP;
        float sums[2] = {low_half(upper) + low_half(lower), high_half(upper) + high_half(lower)};
        sum_over_rows(sums[0], sums[1]);
        if (lane < 4) store(shared->columns[consumer_warp()] + first + 2 * lane, sums);
    }

    // Column sums of the tile from those of its warps, top to bottom.
    __device__ __forceinline__ void store_partials() const {
        static_assert(COLS == CONSUMERS * WARPGROUP, "a thread for each column");
        bar_sync(CONSUMERS_BARRIER, CONSUMERS * WARPGROUP);
        u32 own = threadIdx.x - WARPGROUP;
        if (col + own < to.lead) {
            float sum = 0.0f;
#pragma unroll
            for (u32 warp = 0; warp < CONSUMER_WARPS; warp++) sum += shared->columns[warp][own];
            to.partials[static_cast<u64>(row / ROWS) * to.lead + col + own] = sum;
        }
        bar_sync(CONSUMERS_BARRIER, CONSUMERS * WARPGROUP);  // the next item's may be written
    }

    __device__ __forceinline__ void end() const {
#pragma unroll 1
        for (u32 piece = 0; piece < PIECES; piece++) store_piece(piece);
    }
};

// ---- What becomes of the sums: f32 -----------------------------------------------------------------------------------

// Stores sums to matrix + part * part_size, [work.rows, work.cols], or adds them.
template <Store how>
struct ToF32 {
    static constexpr u32 PIECES = 0;

    const Work& work;
    float* matrix;
    u64 part_size;
    Item item;

    __device__ __forceinline__ void begin(const Item& next) {
        item = next;
    }

    __device__ __forceinline__ void meanwhile(u32) {}

    __device__ __forceinline__ void finish(const float (&d)[COLS / 2]) const {
        u32 row = item.row + 16 * consumer_warp() + sums_row();
        float* to = matrix + item.part * part_size + static_cast<u64>(row) * work.cols + item.col + sums_col();
#pragma unroll
        for (u32 patch = 0; patch < PATCHES; patch++) {
            if (item.col + BOX_COLS * patch >= work.cols) break;
            store_rows_of_sums<how, BOX_COLS / 8>(
                to + BOX_COLS * patch, [&](u32 j, u32 at) { return d[32 * patch + 4 * j + at]; },
                [&](u32) { return row < work.rows; });
        }
    }

    __device__ __forceinline__ void end() const {}
};

// ---- y = x W^T + b ---------------------------------------------------------------------------------------------------

template <Finish finish>
__device__ __forceinline__ void forward(Shared* shared, const TensorMap* x_map, const TensorMap* w_map, const bf16* x,
                                        const Target& to, u32 inputs, const Rows& rows) {
    u32 live = rows.count();
    Operand<Of::Tokens, Major::K, ROWS> a{x_map, x, inputs, live};
    Operand<Of::Weight, Major::K, COLS> b{w_map};
    run(shared, a, b, Work{live, to.lead, inputs, inputs}, ToBf16<finish>(shared, to, live));
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nt_bias(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                          const bf16* __restrict__ x, const float* __restrict__ bias, bf16* __restrict__ y, u32 inputs,
                          u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    Target to = {.y = y, .lead = lead, .bias = bias, .biases = outputs};
    forward<Finish::Bias>(shared, &x_map, &w_map, x, to, inputs, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nt_bias_gelu(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                               const bf16* __restrict__ x, const float* __restrict__ bias, bf16* __restrict__ pre,
                               bf16* __restrict__ y, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    Target to = {.y = y, .lead = lead, .pre = pre, .bias = bias, .biases = outputs};
    forward<Finish::BiasGelu>(shared, &x_map, &w_map, x, to, inputs, rows);
}

// ---- d_x = d_y W -----------------------------------------------------------------------------------------------------

using OutputGradient = Operand<Of::Tokens, Major::K, ROWS>;
using Weight = Operand<Of::Weight, Major::MN, COLS>;

template <Finish finish>
__device__ __forceinline__ void backward(Shared* shared, const TensorMap* d_y_map, const TensorMap* w_map,
                                         const bf16* d_y, const Target& to, u32 outputs, u32 lead, const Rows& rows) {
    u32 inputs = to.lead, live = rows.count();
    OutputGradient a{d_y_map, d_y, lead, live};
    Weight b{w_map};
    run(shared, a, b, Work{live, inputs, outputs, outputs}, ToBf16<finish>(shared, to, live));
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nn(const __grid_constant__ TensorMap d_y_map, const __grid_constant__ TensorMap w_map,
                     const bf16* __restrict__ d_y, bf16* __restrict__ d_x, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    backward<Finish::Write>(shared, &d_y_map, &w_map, d_y, Target{.y = d_x, .lead = inputs}, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nn_add(const __grid_constant__ TensorMap d_y_map, const __grid_constant__ TensorMap w_map,
                         const bf16* __restrict__ d_y, bf16* d_x, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    Target to = {.y = d_x, .lead = inputs, .before = d_x};
    backward<Finish::Add>(shared, &d_y_map, &w_map, d_y, to, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nn_gelu_backward(const __grid_constant__ TensorMap d_y_map, const __grid_constant__ TensorMap w_map,
                                   const bf16* __restrict__ d_y, const bf16* __restrict__ pre, bf16* __restrict__ d_pre,
                                   float* __restrict__ partials, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    Target to = {.y = d_pre, .lead = inputs, .before = pre, .partials = partials};
    backward<Finish::GeluBackward>(shared, &d_y_map, &w_map, d_y, to, outputs, lead, rows);
}

// parts[split] [capacity, inputs] = split's share of the outputs of d_y W; sum_splits of matmul.cu adds them
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nn_split(const __grid_constant__ TensorMap d_y_map, const __grid_constant__ TensorMap w_map,
                           const bf16* __restrict__ d_y, float* __restrict__ parts, u32 inputs, u32 outputs, u32 lead,
                           u32 splits, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    u32 live = rows.count();
    OutputGradient a{&d_y_map, d_y, lead, live};
    Weight b{&w_map};
    Work work{live, inputs, outputs, Split::of(outputs, splits).share};
    run(shared, a, b, work, ToF32<Store::Write>{work, parts, static_cast<u64>(rows.capacity) * inputs, {}});
}

// ---- d_W += d_y^T x --------------------------------------------------------------------------------------------------

template <Store how>
__device__ __forceinline__ void weight_gradient(Shared* shared, const Operand<Of::Tokens, Major::MN, ROWS>& d_y,
                                                const Operand<Of::Tokens, Major::MN, COLS>& x, float* to, u32 outputs,
                                                u32 share) {
    Work work{outputs, x.lead, x.live, share};
    run(shared, d_y, x, work, ToF32<how>{work, to, static_cast<u64>(outputs) * x.lead, {}});
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_tn_accumulate(const __grid_constant__ TensorMap d_y_map, const __grid_constant__ TensorMap x_map,
                                const bf16* __restrict__ d_y, const bf16* __restrict__ x, float* __restrict__ d_w,
                                u32 inputs, u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    u32 live = rows.count();
    weight_gradient<Store::Add>(shared, {&d_y_map, d_y, lead, live}, {&x_map, x, inputs, live}, d_w, outputs, live);
}

// parts[split] [outputs, inputs] = d_y^T x over split's share of the live rows; add_splits of matmul.cu adds them
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_tn_split(const __grid_constant__ TensorMap d_y_map, const __grid_constant__ TensorMap x_map,
                           const bf16* __restrict__ d_y, const bf16* __restrict__ x, float* __restrict__ parts, u32 inputs,
                           u32 outputs, u32 lead, u32 splits, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    u32 live = rows.count();
    u32 share = Split::of(live, splits).share;
    weight_gradient<Store::Write>(shared, {&d_y_map, d_y, lead, live}, {&x_map, x, inputs, live}, parts, outputs, share);
}
