// matmul.cu: the three products of a linear layer, on tensor cores, with what follows each of them.
//   matmul_nt_bias             y = x W^T + b
//   matmul_nt_bias_gelu        pre = x W^T + b; y = gelu(pre), of pre as stored (rounded), so that backward sees the same
//   matmul_nn, matmul_nn_add   d_x = d_y W; d_x += d_y W, in f32, rounded once
//   matmul_nn_gelu_backward    d_pre = (d_y W) gelu'(pre); partials[row tile] = column sums of d_pre as stored, in f32
//   matmul_nn_split            d_y W cut along the outputs into parts; sum_splits adds them in order to d_x
//   matmul_tn_accumulate       d_W += d_y^T x
//   matmul_tn_split            d_y^T x cut along the rows into parts; add_splits adds them in order to d_W
//   x, d_x [R, inputs], y, pre, d_y [R, lead] bf16    W [outputs, inputs] bf16    b [outputs], d_W [outputs, inputs] f32
//   parts [splits, R, inputs] or [splits, outputs, inputs] f32    partials [ceil(R / ROWS), inputs] f32
// n and t are for the operands as BLAS has them: which of the two lies transposed. `_small` is the same in small tiles.
//
// Shapes. inputs is a multiple of 64; so is lead, and outputs <= lead < outputs + 64. Where outputs is less than lead
// (the vocabulary: 30,522 in rows of 30,528) the forward product writes zeros behind it, the backward ones read them,
// and whoever changes y in between leaves them alone. Matrices begin at the launch's first row: `rows` gives the count
// alone. Rows beyond it are neither read nor written, and row tiles beyond it end at once. b may begin anywhere, all
// else on 16 bytes.
//
// Plan. A block of 128 threads computes 128 x 128 in stages 32 deep (small: 64 x 64, 64 deep), 3 stages in 48 KB, so two
// blocks fit an SM of any architecture, by shared memory and by registers (255 a thread; 128 of them are sums), and
// one's beginning and end hide behind the other's middle. Each warp owns 64 x 64: from shared memory it reads 4 KB for
// 32 mma; were it 64 x 32, as with 256 threads, it would be 3 KB for 16, and shared memory (128 bytes a clock) slower
// than the tensor cores.
// Results go through shared memory, so that global memory sees 16 bytes a thread and whole rows.
// Order of blocks: row tiles in groups of 8, within a group column by column. The blocks that run together then share 8
// tiles of x and each tile of W is read by 8 of them at about the same time; both come from L2.
//
// Order of sums. Every value is one chain of mma over its depth, in both shapes of tile; or over its part, and the parts
// are added first to last. How many parts is decided from (outputs, inputs, capacity) on the host; each takes an equal
// share of the depth (of the live rows for d_W), rounded up to 64. So bits depend on shapes and live counts, never on
// the device.
// Column sums: a thread's rows, then the warp's by a butterfly, then the two halves of the tile, then tiles by
// add_partials.
//
// Cost: 2 R inputs outputs FLOP each. Base size, N = 65,536, an H200 (989 TFLOP/s, 4.8 TB/s), forward:
//                             FLOP   x, W and y   floor by FLOP   by bytes
//   qkv    768 -> 2304       232 G     406 MB       0.235 ms     0.085 ms
//   out    768 -> 768         77 G     203 MB       0.078 ms     0.042 ms
//   lin1   768 -> 3072       309 G     911 MB       0.313 ms     0.190 ms    pre and y
//   lin2  3072 -> 768        309 G     508 MB       0.313 ms     0.106 ms
// d_x and d_W cost the same FLOP again each, and about the same bytes; but d_x of lin2 reads pre and writes d_pre, 911 MB,
// and adding reads d_x too. All are bound by the tensor cores; a step's 72 encoder products take 16.9 ms at the least.
// Expected: not that. Hopper's rate is wgmma's; mma.sync is published to reach 63 % of it (Luo et al., arXiv
// 2402.13499), 620 TFLOP/s. Below that, a clock count of one SM for a stage of 32, which is 2^20 FLOP: mma.sync 407,
// shared memory 384 (256 read, 128 filled), so the two nearly tie; and 64 FLOP for each byte from L2, which would have
// to deliver 9.7 TB/s at that rate and is not known to pass 5.5 to 7: 350 to 450 TFLOP/s. wgmma reads operands from
// shared memory without registers in between, in 128 x 256 tiles, by multicast copies; that is why Hopper has kernels of
// its own and this file is for everyone else.
// On sm_80 to 89 and 120 mma.sync is all there is; there 85 % of the tensor cores' rate is expected.
//
// The vocabulary, a chunk of 512 rows: 24 G FLOP each; logits 956 tiles; d_W 1,434 tiles, which read and write d_W (188
// MB, 0.039 ms, against 0.024 for the FLOP); d_x would be 24 tiles 30,528 deep, hence its split.
#include "matmul.cuh"

using Large = Shape<128, 128, 32>;
using Small = Shape<64, 64, 64>;

// Blocks that an SM holds at least, by their registers: 255 and 128 a thread.
constexpr u32 LARGE_BLOCKS = 2;
constexpr u32 SMALL_BLOCKS = 4;

constexpr u32 SUM_THREADS = 256;

__device__ __forceinline__ bf16* block_memory() {
    SHARED_MEMORY(bf16, shared);
    return shared;
}

// ---- Which tile ------------------------------------------------------------------------------------------------------

// Rows of tiles that are walked together, column by column.
constexpr u32 GROUP = 8;

// The tile of this block, in a result of `rows` x `cols` whose grid was made for `capacity` rows.
template <class S>
__device__ __forceinline__ Tile this_tile(u32 capacity, u32 rows, u32 cols) {
    u32 down = ceil_div(capacity, S::ROWS), across = ceil_div(cols, S::COLS);
    u32 group = blockIdx.x / (GROUP * across), within = blockIdx.x % (GROUP * across);
    u32 height = min(GROUP, down - group * GROUP);
    u32 row = (group * GROUP + within % height) * S::ROWS, col = within / height * S::COLS;
    return Tile{row, col, row < rows ? min(S::ROWS, rows - row) : 0, min(S::COLS, cols - col)};
}

// ---- y = x W^T + b ---------------------------------------------------------------------------------------------------

template <class S, Finish finish>
__device__ __forceinline__ void forward(const bf16* x, const bf16* w, const float* bias, bf16* pre, bf16* y, u32 inputs,
                                        u32 outputs, u32 lead, Rows rows) {
    bf16* shared = block_memory();
    Tile tile = this_tile<S>(rows.capacity, rows.count(), ceil_div(outputs, 64) * 64);
    if (tile.rows == 0) return;
    Sums<S> sum = {};
    using P = Product<S, Along::Depth, Along::Depth>;
    auto a = P::A::at(x, static_cast<u64>(tile.row) * inputs, inputs, tile.rows);
    auto b = P::B::at(w, static_cast<u64>(tile.col) * inputs, inputs, outputs - tile.col);
    P::run(sum, a, b, inputs, shared);
    Target to = {.y = y, .lead = lead, .pre = pre, .bias = bias, .biases = outputs};
    finish_tile<S, finish>(sum, tile, to, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_nt_bias(const bf16* __restrict__ x, const bf16* __restrict__ w, const float* __restrict__ bias,
                   bf16* __restrict__ y, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    forward<Large, Finish::Bias>(x, w, bias, nullptr, y, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, SMALL_BLOCKS)
    matmul_nt_bias_small(const bf16* __restrict__ x, const bf16* __restrict__ w, const float* __restrict__ bias,
                         bf16* __restrict__ y, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    forward<Small, Finish::Bias>(x, w, bias, nullptr, y, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_nt_bias_gelu(const bf16* __restrict__ x, const bf16* __restrict__ w, const float* __restrict__ bias,
                        bf16* __restrict__ pre, bf16* __restrict__ y, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    forward<Large, Finish::BiasGelu>(x, w, bias, pre, y, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, SMALL_BLOCKS)
    matmul_nt_bias_gelu_small(const bf16* __restrict__ x, const bf16* __restrict__ w, const float* __restrict__ bias,
                              bf16* __restrict__ pre, bf16* __restrict__ y, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    forward<Small, Finish::BiasGelu>(x, w, bias, pre, y, inputs, outputs, lead, rows);
}

// ---- d_x = d_y W -----------------------------------------------------------------------------------------------------

template <class S>
__device__ __forceinline__ void multiply_nn(Sums<S>& sum, const Tile& tile, const bf16* d_y, const bf16* w, u32 inputs,
                                            u32 lead, u32 first, u32 depth, bf16* shared) {
    using P = Product<S, Along::Depth, Along::Outer>;
    auto a = P::A::at(d_y, static_cast<u64>(tile.row) * lead + first, lead, tile.rows);
    auto b = P::B::at(w, static_cast<u64>(first) * inputs + tile.col, inputs, tile.cols);
    P::run(sum, a, b, depth, shared);
}

template <class S, Finish finish>
__device__ __forceinline__ void backward(const bf16* d_y, const bf16* w, const bf16* before, bf16* d_x, float* partials,
                                         u32 inputs, u32 outputs, u32 lead, Rows rows) {
    bf16* shared = block_memory();
    Tile tile = this_tile<S>(rows.capacity, rows.count(), inputs);
    if (tile.rows == 0) return;
    Sums<S> sum = {};
    multiply_nn<S>(sum, tile, d_y, w, inputs, lead, 0, outputs, shared);
    Target to = {.y = d_x, .lead = inputs, .before = before, .partials = partials};
    finish_tile<S, finish>(sum, tile, to, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_nn(const bf16* __restrict__ d_y, const bf16* __restrict__ w, bf16* __restrict__ d_x, u32 inputs, u32 outputs,
              u32 lead, Rows rows) {
    backward<Large, Finish::Write>(d_y, w, nullptr, d_x, nullptr, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, SMALL_BLOCKS)
    matmul_nn_small(const bf16* __restrict__ d_y, const bf16* __restrict__ w, bf16* __restrict__ d_x, u32 inputs,
                    u32 outputs, u32 lead, Rows rows) {
    backward<Small, Finish::Write>(d_y, w, nullptr, d_x, nullptr, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_nn_add(const bf16* __restrict__ d_y, const bf16* __restrict__ w, bf16* d_x, u32 inputs, u32 outputs, u32 lead,
                  Rows rows) {
    backward<Large, Finish::Add>(d_y, w, d_x, d_x, nullptr, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, SMALL_BLOCKS)
    matmul_nn_add_small(const bf16* __restrict__ d_y, const bf16* __restrict__ w, bf16* d_x, u32 inputs, u32 outputs,
                        u32 lead, Rows rows) {
    backward<Small, Finish::Add>(d_y, w, d_x, d_x, nullptr, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_nn_gelu_backward(const bf16* __restrict__ d_y, const bf16* __restrict__ w, const bf16* __restrict__ pre,
                            bf16* __restrict__ d_pre, float* __restrict__ partials, u32 inputs, u32 outputs, u32 lead,
                            Rows rows) {
    backward<Large, Finish::GeluBackward>(d_y, w, pre, d_pre, partials, inputs, outputs, lead, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS, SMALL_BLOCKS)
    matmul_nn_gelu_backward_small(const bf16* __restrict__ d_y, const bf16* __restrict__ w, const bf16* __restrict__ pre,
                                  bf16* __restrict__ d_pre, float* __restrict__ partials, u32 inputs, u32 outputs, u32 lead,
                                  Rows rows) {
    backward<Small, Finish::GeluBackward>(d_y, w, pre, d_pre, partials, inputs, outputs, lead, rows);
}

// parts[split] [capacity, inputs] = split's share of the outputs of d_y W
extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_nn_split(const bf16* __restrict__ d_y, const bf16* __restrict__ w, float* __restrict__ parts, u32 inputs,
                    u32 outputs, u32 lead, u32 splits, Rows rows) {
    bf16* shared = block_memory();
    Tile tile = this_tile<Large>(rows.capacity, rows.count(), inputs);
    Split split = Split::of(outputs, splits);
    if (tile.rows == 0 || blockIdx.y >= split.used) return;
    u32 first = blockIdx.y * split.share;
    Sums<Large> sum = {};
    multiply_nn<Large>(sum, tile, d_y, w, inputs, lead, first, min(split.share, outputs - first), shared);
    float* part = parts + static_cast<u64>(blockIdx.y) * rows.capacity * inputs;
    store_sums<Large, Store::Write>(sum, tile, part, inputs);
}

// d_x = sum of the parts that `matmul_nn_split` wrote, in order
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    sum_splits(const float* __restrict__ parts, bf16* __restrict__ d_x, u32 inputs, u32 outputs, u32 splits, Rows rows) {
    u64 at = (static_cast<u64>(blockIdx.x) * SUM_THREADS + threadIdx.x) * 8;
    if (at >= static_cast<u64>(rows.count()) * inputs) return;
    u32 used = Split::of(outputs, splits).used;
    float sum[8] = {};
#pragma unroll 4
    for (u32 split = 0; split < used; split++) {
        float part[8];
        load(part, parts + static_cast<u64>(split) * rows.capacity * inputs + at);
#pragma unroll
        for (u32 i = 0; i < 8; i++) sum[i] += part[i];
    }
    store(d_x + at, sum);
}

// ---- d_W += d_y^T x --------------------------------------------------------------------------------------------------

template <Store how>
__device__ __forceinline__ void weight_gradient(const bf16* d_y, const bf16* x, float* to, u32 inputs, u32 outputs,
                                                u32 lead, u32 first, u32 depth) {
    bf16* shared = block_memory();
    Tile tile = this_tile<Large>(outputs, outputs, inputs);
    Sums<Large> sum = {};
    using P = Product<Large, Along::Outer, Along::Outer>;
    auto a = P::A::at(d_y, static_cast<u64>(first) * lead + tile.row, lead, tile.rows);
    auto b = P::B::at(x, static_cast<u64>(first) * inputs + tile.col, inputs, tile.cols);
    P::run(sum, a, b, depth, shared);
    store_sums<Large, how>(sum, tile, to, inputs);
}

extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_tn_accumulate(const bf16* __restrict__ d_y, const bf16* __restrict__ x, float* __restrict__ d_w, u32 inputs,
                         u32 outputs, u32 lead, Rows rows) {
    if (rows.count() == 0) return;
    weight_gradient<Store::Add>(d_y, x, d_w, inputs, outputs, lead, 0, rows.count());
}

// parts[split] [outputs, inputs] = d_y^T x over split's share of the live rows
extern "C" __global__ void __launch_bounds__(THREADS, LARGE_BLOCKS)
    matmul_tn_split(const bf16* __restrict__ d_y, const bf16* __restrict__ x, float* __restrict__ parts, u32 inputs,
                    u32 outputs, u32 lead, u32 splits, Rows rows) {
    Split split = Split::of(rows.count(), splits);
    if (blockIdx.y >= split.used) return;
    u32 first = blockIdx.y * split.share;
    float* part = parts + static_cast<u64>(blockIdx.y) * outputs * inputs;
    weight_gradient<Store::Write>(d_y, x, part, inputs, outputs, lead, first, min(split.share, rows.count() - first));
}

// d_w += sum of the parts that `matmul_tn_split` wrote, in order
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    add_splits(const float* __restrict__ parts, float* __restrict__ d_w, u32 inputs, u32 outputs, u32 splits, Rows rows) {
    u64 at = (static_cast<u64>(blockIdx.x) * SUM_THREADS + threadIdx.x) * 4;
    u64 size = static_cast<u64>(outputs) * inputs;
    u32 used = Split::of(rows.count(), splits).used;
    if (at >= size || used == 0) return;
    float sum[4] = {};
#pragma unroll 4
    for (u32 split = 0; split < used; split++) {
        float part[4];
        load(part, parts + split * size + at);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] += part[i];
    }
    float total[4];
    load(total, d_w + at);
#pragma unroll
    for (u32 i = 0; i < 4; i++) total[i] += sum[i];
    store(d_w + at, total);
}
