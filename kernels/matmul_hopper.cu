// matmul_hopper.cu: the products of a linear layer on Hopper: wgmma fed by tensor copies. For sm_90a alone.
//   matmul_hopper_nt_bias             y = x W^T + b
//   matmul_hopper_nt_bias_gelu        pre = x W^T + b; y = gelu(pre), of pre as stored (rounded), so that backward sees the same
//   matmul_hopper_nn, _nn_add         d_x = d_y W; d_x += d_y W, in f32, rounded once
//   matmul_hopper_nn_gelu_backward    d_pre = (d_y W) gelu'(pre); partials[row tile] = column sums of d_pre as stored, in f32
//   matmul_hopper_nn_split            d_y W cut along the outputs into parts
//   matmul_hopper_tn_accumulate       d_W += d_y^T x
//   matmul_hopper_tn_split            d_y^T x cut along the rows into parts
// Operands, what is live, pads, parts and partials are as in matmul.cu, whose sum_splits and add_splits add the parts; a row
// tile has 128 rows here too. In maps a box has 64 columns, 128 bytes, by which it is swizzled:
//   x_map [capacity, inputs] and d_y_map [capacity, lead]    nt, nn: boxes of 128 rows    tn: of 64
//   w_map [outputs, inputs]                                  nt: boxes of 256 rows        nn: of 64
//
// Plan (matmul_hopper.cuh). A persistent block an SM (384 threads, 216 KB); item i of all goes to block i mod blocks. A tile
// is 128 x 256, its depth walked in stages of 64 (48 KB), a ring of 4. Warpgroup 0 copies; 1 and 2 multiply 64 rows each,
// all sums in registers (128 a thread), and hand a stage back when the wgmma of the next are already under way. The copies
// run on into the next tile while sums are rounded, staged through 2 KB a warp and stored, 16 bytes a lane and whole
// 128-byte rows. What is added to, or the GELU's argument, comes the same way, the next 64 columns ahead of their use.
// Nothing is transposed: wgmma takes an operand whose depth counts the rows in memory (W in nn, both in tn) as it lies.
// Columns first: the blocks that run together share a few row tiles of x and all of W, which stays in L2.
// Where a stage holds rows that are not live, warpgroup 0 copies it thread by thread, with zeros for them: the last row tile
// in nt and nn, the last stage of the depth in tn.
//
// Order of sums. Every value is one chain of wgmma over the depth, or over its part, so bits depend on neither the grid nor
// the number of SMs. Column sums: a thread's two rows, the warp's 16 by a butterfly, the tile's eight warps in order.
//
// Cost: 2 R inputs outputs FLOP; bytes and floors as in matmul.cu (base size, an H200: qkv 0.235 ms, out 0.078, lin1 0.313,
// lin2 0.313, forward, d_x and d_W alike, all by the tensor cores; an encoder's 72 products 16.9). Clocks of one SM for a tile
// 768 deep: 12,300 of tensor cores; the end of a tile, whose instructions two warps to a scheduler issue, 2,000 to 2,700,
// with GELU 8,600, with its backward 9,800 (counted in the machine code). Behind the end hide the copies of 4 stages and no
// multiplication, since both warpgroups end together. So 80 to 85 % of the tensor cores' time at best, 55 to 60 % with GELU;
// d_x of lin1 and d_W, which are deeper, 95 %. Whether L2 delivers is open: 48 KB a stage are 11.6 TB/s at full rate, of which
// the blocks that run together ask for the same lines at about the same time. A published kernel of this same plan and
// shape of tile, without multicast, is said to reach 855 TFLOP/s on an H100 (ThunderKittens, README), so it can be had.
// Expected: 650 to 750 TFLOP/s, with GELU 450 to 550. Not yet run on a GPU.
#include "matmul_hopper.cuh"

// ---- What becomes of the sums: bf16 ----------------------------------------------------------------------------------

// What a warp loads and stores at a time: 16 rows x 64 columns of a matrix, 16 bytes a lane and whole 128-byte rows. It is
// turned into mma's fragments, and out of them, in `staged`.
struct Patch {
    u8* staged;
    u32 row, col;
    u32 rows;  // of the matrix: live
    u32 lead;

    // Row, of four chunks i, of this lane's; its column is that of chunk lane % 8.
    __device__ __forceinline__ u32 chunk_row(u32 i) const {
        return 4 * i + threadIdx.x % WARP / 8;
    }

    __device__ __forceinline__ Chunk* staged_chunk(u32 i) const {
        u32 offset = chunk_row(i) * BOX_ROW_BYTES + threadIdx.x % 8 * 16;
        return reinterpret_cast<Chunk*>(staged + swizzled(Swizzle::bytes128, offset));
    }

    __device__ __forceinline__ u64 chunk_at(u32 i) const {
        return static_cast<u64>(row + chunk_row(i)) * lead + col + threadIdx.x % 8 * 8;
    }

    // The row of fragment j, columns 16j to 16j + 15, that this lane names to ldmatrix and stmatrix.
    __device__ __forceinline__ u8* fragment_row(u32 j) const {
        u32 lane = threadIdx.x % WARP;
        return staged + swizzled(Swizzle::bytes128, lane % 16 * BOX_ROW_BYTES + 32 * j + lane / 16 * 16);
    }

    // This lane's chunks of a matrix; zeros where rows are not live.
    __device__ __forceinline__ void load(Chunk (&chunks)[4], const bf16* from) const {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            chunks[i] = Chunk{};
            if (row + chunk_row(i) < rows) chunks[i] = *reinterpret_cast<const Chunk*>(from + chunk_at(i));
        }
    }

    // Chunks to pairs of columns, in wgmma's order.
    __device__ __forceinline__ void unpack(u32 (&packed)[16], const Chunk (&chunks)[4]) const {
        __syncwarp();  // the staged rows before are read
#pragma unroll
        for (u32 i = 0; i < 4; i++) *staged_chunk(i) = chunks[i];
        __syncwarp();
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 four[4];
            ldmatrix_x4(four, fragment_row(j));
#pragma unroll
            for (u32 i = 0; i < 4; i++) packed[4 * j + i] = four[i];
        }
    }

    __device__ __forceinline__ void store(bf16* to, const u32 (&packed)[16]) const {
        __syncwarp();  // the staged rows before are read
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 four[4] = {packed[4 * j], packed[4 * j + 1], packed[4 * j + 2], packed[4 * j + 3]};
            stmatrix_x4(fragment_row(j), four);
        }
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (row + chunk_row(i) < rows) *reinterpret_cast<Chunk*>(to + chunk_at(i)) = *staged_chunk(i);
        }
    }
};

// A warp's sums, 16 x 256, rounded and stored at `patch` and to its right. `column_sums` [COLS]: of the values as stored.
template <Finish finish>
__device__ __forceinline__ void store_bf16(const float (&d)[COLS / 2], const Target& to, Patch patch, float* column_sums) {
    u32 lane = threadIdx.x % WARP, pair = lane % 4 * 2;
    Chunk before[4];
    if constexpr (reads_before(finish)) patch.load(before, to.before);
#pragma unroll
    for (u32 part = 0; part < COLS / BOX_COLS; part++, patch.col += BOX_COLS) {
        if (patch.col >= to.lead) break;
        u32 packed[16] = {};
        if constexpr (reads_before(finish)) {
            patch.unpack(packed, before);
            // The next columns are on their way while these are worked on.
            Patch next = patch;
            next.col += BOX_COLS;
            if (part + 1 < COLS / BOX_COLS && next.col < to.lead) next.load(before, to.before);
        }
#pragma unroll
        for (u32 j = 0; j < BOX_COLS / 8; j++) {
            const float* four = &d[32 * part + 4 * j];
            u32 &upper = packed[2 * j], &lower = packed[2 * j + 1];
            BiasPair bias = BiasPair::of<finish>(to, patch.col + 8 * j + pair);
            upper = finish_pair<finish>(four[0], four[1], bias, upper);
            lower = finish_pair<finish>(four[2], four[3], bias, lower);
            if constexpr (finish == Finish::GeluBackward) {
                float sums[2] = {low_half(upper) + low_half(lower), high_half(upper) + high_half(lower)};
                sum_over_rows(sums[0], sums[1]);
                if (lane < 4) store(column_sums + BOX_COLS * part + 8 * j + pair, sums);
            }
        }
        patch.store(finish == Finish::BiasGelu ? to.pre : to.y, packed);
        if constexpr (finish == Finish::BiasGelu) {
#pragma unroll
            for (u32 i = 0; i < 16; i++) packed[i] = gelu_pair(packed[i]);
            patch.store(to.y, packed);
        }
    }
}

// Column sums of a tile from those of its warps, top to bottom.
__device__ __forceinline__ void store_partials(const Shared* shared, const Target& to, const Item& item) {
    bar_sync(CONSUMERS_BARRIER, CONSUMERS * WARPGROUP);
    u32 col = threadIdx.x - WARPGROUP;
    if (item.col + col < to.lead) {
        float sum = 0.0f;
#pragma unroll
        for (u32 warp = 0; warp < CONSUMER_WARPS; warp++) sum += shared->column_sums[warp][col];
        to.partials[static_cast<u64>(item.row / ROWS) * to.lead + item.col + col] = sum;
    }
    bar_sync(CONSUMERS_BARRIER, CONSUMERS * WARPGROUP);  // the next item's may be written
}

// Which of the consuming warps this is; each has 16 rows of a tile.
__device__ __forceinline__ u32 consumer_warp() {
    return threadIdx.x / WARP - WARPGROUP / WARP;
}

template <Finish finish, class A, class B>
__device__ __forceinline__ void run_to_bf16(Shared* shared, const A& a, const B& b, const Work& work, const Target& to) {
    static_assert(COLS == CONSUMERS * WARPGROUP, "store_partials has a thread for each column");
    run(shared, a, b, work, [&](const float(&d)[COLS / 2], const Item& item) {
        u32 warp = consumer_warp();
        Patch patch{shared->staged[warp], item.row + 16 * warp, item.col, work.rows, to.lead};
        store_bf16<finish>(d, to, patch, shared->column_sums[warp]);
        if constexpr (finish == Finish::GeluBackward) store_partials(shared, to, item);
    });
}

// ---- What becomes of the sums: f32 -----------------------------------------------------------------------------------

// To matrix + part * part_size, [rows, cols].
template <Store how, class A, class B>
__device__ __forceinline__ void run_to_f32(Shared* shared, const A& a, const B& b, const Work& work, float* matrix,
                                           u64 part_size) {
    run(shared, a, b, work, [&](const float(&d)[COLS / 2], const Item& item) {
        u32 row = item.row + 16 * consumer_warp() + sums_row();
        float* to = matrix + item.part * part_size + static_cast<u64>(row) * work.cols + item.col + sums_col();
#pragma unroll
        for (u32 part = 0; part < COLS / BOX_COLS; part++) {
            if (item.col + BOX_COLS * part >= work.cols) break;
            store_rows_of_sums<how, BOX_COLS / 8>(
                to + BOX_COLS * part, [&](u32 j, u32 at) { return d[32 * part + 4 * j + at]; },
                [&](u32) { return row < work.rows; });
        }
    });
}

// ---- y = x W^T + b ---------------------------------------------------------------------------------------------------

template <Finish finish>
__device__ __forceinline__ void forward(Shared* shared, const TensorMap* x_map, const TensorMap* w_map, const bf16* x,
                                        const Target& to, u32 inputs, const Rows& rows) {
    u32 live = rows.count();
    Operand<Of::Tokens, Major::K, ROWS> a{x_map, x, inputs, live};
    Operand<Of::Weight, Major::K, COLS> b{w_map};
    run_to_bf16<finish>(shared, a, b, Work{live, to.lead, inputs, inputs}, to);
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
    run_to_bf16<finish>(shared, a, b, Work{live, inputs, outputs, outputs}, to);
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
    run_to_f32<Store::Write>(shared, a, b, work, parts, static_cast<u64>(rows.capacity) * inputs);
}

// ---- d_W += d_y^T x --------------------------------------------------------------------------------------------------

template <Store how>
__device__ __forceinline__ void weight_gradient(Shared* shared, const Operand<Of::Tokens, Major::MN, ROWS>& d_y,
                                                const Operand<Of::Tokens, Major::MN, COLS>& x, float* to, u32 outputs, u32 share) {
    Work work{outputs, x.lead, x.live, share};
    run_to_f32<how>(shared, d_y, x, work, to, static_cast<u64>(outputs) * x.lead);
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
