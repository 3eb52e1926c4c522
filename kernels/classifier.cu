// classifier.cu: the classifier head's own ops, on [B, C] and [B, K], and products with few outputs.
//   relu_dropout            y = keep (.) relu(x)
//   relu_dropout_backward   d = keep (.) [x > 0] (.) d, in place;  d_bias += sum over rows of d
//   narrow_linear           y = x W' + b, in f32
//   narrow_linear_d_x       d_x = d_y W;  narrow_linear_d_x_add  d_x += d_y W
//   narrow_linear_d_weight  d_W += d_y' x
//   class_cross_entropy     q = (1 - smoothing) onehot + smoothing / K;
//                           tally += weight (lse - sum of q logits), weights, labels and hits;
//                           d_logits = (softmax - q) weight loss_scale;  d_bias += sum over rows of d_logits
//     x, y, d, d_x [B, C] bf16, C a multiple of 64    W [K, C] bf16    b, d_bias, d_W f32    logits, and y and d_y of a
//     narrow product, [B, K] f32    labels [B] i32 (a label that is no class, as -1, counts nothing)    weights [B] f32
//     All sizes at run time. K below 64, but for top_k, where narrow_linear has V outputs.
//
// Plan. Elementwise: a thread takes 8 columns of a row, 16 bytes and one draw of dropout. Sums over rows: a block takes
// a strip of 64 columns and all rows, so there are no partials and no second stage; with d_W, four outputs at a time.
// narrow_linear: a warp takes 4 rows and 4 outputs, lanes side by side along C; each value loaded serves four products.
// (Tensor cores would be idle for most of any tile at K = 2; and top_k wants its logits in f32.) class_cross_entropy:
// one block, a thread a row, so that loss and bias need no second launch. All in f32, the tally in f64, in an order
// that depends on B alone.
//
// Cost at base size (N = 65,536 tokens are some B = 220 sequences; C = 768, K = 2): 0.34 MB for each [B, C] and 0.7
// MFLOP for each product: well below a microsecond of memory or arithmetic, from L2. What counts is the latency of a
// launch, 2 to 4 us, so each op is one launch, with few dependent steps. In prediction (B = 4,096) relu_dropout moves
// 12.6 MB: 2.6 us at 4.8 TB/s, and less, for L2 holds it. For top_k of up to 4 rows narrow_linear reads W, 46.9 MB,
// once: floor 10 us, expected 13, for 24 warps an SM keep some 40 KB of loads under way.
#include "common.cuh"

// ---- ReLU and dropout -----------------------------------------------------------------------------------------------

constexpr u32 RELU_THREADS = 256;

// x = keep (.) x, where x holds columns 8 block .. 8 block + 8 of `row`.
__device__ __forceinline__ void drop8(float (&x)[8], const Dropout& drop, u32 step, u32 row, u32 block) {
    if (!drop.active()) return;
    u32 kept = drop.kept8(step, row, block);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= kept >> i & 1 ? drop.keep_scale : 0.0f;
}

// One thread for 8 columns of a row, 256 of these a block.
extern "C" __global__ void __launch_bounds__(RELU_THREADS)
    relu_dropout(const bf16* __restrict__ x, u32 width, Rows rows, Dropout drop, bf16* __restrict__ y) {
    u32 vector = blockIdx.x * RELU_THREADS + threadIdx.x, row = vector / (width / 8), block = vector % (width / 8);
    if (row >= rows.count()) return;
    size_t at = static_cast<size_t>(row) * width + 8 * block;
    float values[8];
    load(values, x + at);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = values[i] < 0.0f ? 0.0f : values[i];  // a NaN comes through
    drop8(values, drop, *drop.step, rows.first + row, block);
    store(y + at, values);
}

// One block a strip of 64 columns. The sums are of d before it is rounded.
extern "C" __global__ void __launch_bounds__(STRIP_THREADS)
    relu_dropout_backward(const bf16* __restrict__ x, u32 width, Rows rows, Dropout drop, bf16* __restrict__ d,
                          float* __restrict__ d_bias) {
    SHARED_MEMORY(float, shared);
    u32 first = blockIdx.x * STRIP_COLUMNS, column = first + strip_column();
    u32 count = rows.count(), step = *drop.step;
    float sum[8] = {};
#pragma unroll 2
    for (u32 row = strip_row(); row < count; row += STRIP_ROWS) {
        size_t at = static_cast<size_t>(row) * width + column;
        float before[8], values[8];
        load(before, x + at);
        load(values, d + at);
        drop8(values, drop, step, rows.first + row, column / 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            values[i] = before[i] > 0.0f ? values[i] : 0.0f;
            sum[i] += values[i];
        }
        store(d + at, values);
    }
    add_strip(sum, shared, d_bias + first, STRIP_COLUMNS);
}

// ---- Products with few outputs --------------------------------------------------------------------------------------

constexpr u32 NARROW_THREADS = 256;
constexpr u32 SIDE = 4;  // rows, and outputs, that a warp takes at once

// One warp for 4 rows and 4 outputs, outputs first; 8 warps a block.
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    narrow_linear(const bf16* __restrict__ x, const bf16* __restrict__ weight, const float* __restrict__ bias,
                  u32 width, u32 outputs, Rows rows, float* __restrict__ y) {
    u32 tile = (blockIdx.x * NARROW_THREADS + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    u32 tiles = ceil_div(outputs, SIDE), count = rows.count();
    u32 first_row = tile / tiles * SIDE, first = tile % tiles * SIDE;
    if (first_row >= count) return;
    float sum[SIDE][SIDE] = {};
    for (u32 column = 8 * lane; column < width; column += 8 * WARP) {
        float from[SIDE][8] = {};
#pragma unroll
        for (u32 i = 0; i < SIDE; i++)
            if (first_row + i < count) load(from[i], x + static_cast<size_t>(first_row + i) * width + column);
#pragma unroll
        for (u32 k = 0; k < SIDE; k++) {
            float w[8] = {};
            if (first + k < outputs) load(w, weight + static_cast<size_t>(first + k) * width + column);
#pragma unroll
            for (u32 i = 0; i < SIDE; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sum[i][k] = fmaf(from[i][j], w[j], sum[i][k]);
        }
    }
    // Every lane gets every sum; lane 4 i + k keeps that of row i and output k.
    float mine = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SIDE; i++) {
        if (first_row + i >= count) break;
#pragma unroll
        for (u32 k = 0; k < SIDE; k++) {
            float total = warp_sum(sum[i][k]);
            if (lane == SIDE * i + k) mine = total;
        }
    }
    u32 row = first_row + lane / SIDE, output = first + lane % SIDE;
    if (lane < SIDE * SIDE && row < count && output < outputs) {
        y[static_cast<size_t>(row) * outputs + output] = mine + bias[output];
    }
}

enum class Into { Write, Add };

template <Into into>
__device__ __forceinline__ void input_gradient(const float* d_y, const bf16* weight, u32 width, u32 outputs,
                                               const Rows& rows, bf16* d_x) {
    u32 vector = blockIdx.x * NARROW_THREADS + threadIdx.x;
    u32 row = vector / (width / 8), column = vector % (width / 8) * 8;
    if (row >= rows.count()) return;
    bf16* to = d_x + static_cast<size_t>(row) * width + column;
    d_y += static_cast<size_t>(row) * outputs;
    float sum[8] = {};
#pragma unroll 4
    for (u32 k = 0; k < outputs; k++) {
        float w[8];
        load(w, weight + static_cast<size_t>(k) * width + column);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] = fmaf(d_y[k], w[j], sum[j]);
    }
    if constexpr (into == Into::Add) {
        float before[8];
        load(before, to);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += before[j];
    }
    store(to, sum);
}

// One thread for 8 columns of a row, 256 of these a block.
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    narrow_linear_d_x(const float* __restrict__ d_y, const bf16* __restrict__ weight, u32 width, u32 outputs,
                      Rows rows, bf16* __restrict__ d_x) {
    input_gradient<Into::Write>(d_y, weight, width, outputs, rows, d_x);
}

extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    narrow_linear_d_x_add(const float* __restrict__ d_y, const bf16* __restrict__ weight, u32 width, u32 outputs,
                          Rows rows, bf16* __restrict__ d_x) {
    input_gradient<Into::Add>(d_y, weight, width, outputs, rows, d_x);
}

// One block for a strip of 64 columns (x) and 4 outputs (y) of d_W.
extern "C" __global__ void __launch_bounds__(STRIP_THREADS)
    narrow_linear_d_weight(const float* __restrict__ d_y, const bf16* __restrict__ x, u32 width, u32 outputs,
                           Rows rows, float* __restrict__ d_weight) {
    SHARED_MEMORY(float, shared);
    u32 first = blockIdx.x * STRIP_COLUMNS, column = first + strip_column(), count = rows.count();
    u32 first_output = blockIdx.y * SIDE;
    float sum[SIDE][8] = {};
#pragma unroll 2
    for (u32 row = strip_row(); row < count; row += STRIP_ROWS) {
        float from[8];
        load(from, x + static_cast<size_t>(row) * width + column);
#pragma unroll
        for (u32 k = 0; k < SIDE; k++) {
            u32 output = first_output + k;
            float d = output < outputs ? d_y[static_cast<size_t>(row) * outputs + output] : 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) sum[k][j] = fmaf(d, from[j], sum[k][j]);
        }
    }
#pragma unroll
    for (u32 k = 0; k < SIDE; k++) {
        u32 output = first_output + k;
        float* sums = shared + k * (STRIP_THREADS / WARP) * STRIP_COLUMNS;
        float* into = d_weight + static_cast<size_t>(output) * width + first;
        if (output < outputs) add_strip(sum[k], sums, into, STRIP_COLUMNS);
    }
}

// ---- Loss -----------------------------------------------------------------------------------------------------------

constexpr u32 CLASS_THREADS = 256;

// What a row adds to the tally.
struct ClassLoss {
    float loss;
    bool hit;
};

// What is wanted of a row.
struct ClassTarget {
    u32 label;
    float own;    // what q has of the label beyond its share
    float share;  // what it has of every class
    float weight;
};

// The loss of one row with a label; d (if there is one) = (softmax - q) weight loss_scale.
__device__ __forceinline__ ClassLoss class_row(const float* logits, u32 classes, const ClassTarget& target,
                                               float loss_scale, float* d) {
    float highest = __uint_as_float(0xff800000u), total = 0.0f, below = 0.0f;
    u32 best = 0;
#pragma unroll 2
    for (u32 k = 0; k < classes; k++) {
        float x = logits[k];
        if (x > highest) {
            highest = x;
            best = k;
        }
    }
#pragma unroll 2
    for (u32 k = 0; k < classes; k++) {
        float x = logits[k] - highest;
        total += expf(x);
        below -= x;
    }
    if (d) {
#pragma unroll 2
        for (u32 k = 0; k < classes; k++) {
            float probability = expf(logits[k] - highest) / total;
            d[k] = (probability - target.share - (k == target.label ? target.own : 0.0f)) * target.weight * loss_scale;
        }
    }
    // The weights of q come to 1, so `highest` may be taken from every logit.
    float loss = target.own * (highest - logits[target.label]) + target.share * below + logf(total);
    return ClassLoss{target.weight * loss, best == target.label};
}

// d_bias[k] += sum over rows of d[., k]: as many segments of rows as the block has threads for, then these in order.
__device__ __forceinline__ void class_bias(const float* d, u32 count, u32 classes, float* shared, float* d_bias) {
    u32 segments = CLASS_THREADS / classes, length = ceil_div(count, segments);
    u32 segment = threadIdx.x / classes, k = threadIdx.x % classes;
    if (segment < segments) {
        u32 first = segment * length, end = min(first + length, count);
        float sum = 0.0f;
#pragma unroll 4
        for (u32 row = first; row < end; row++) sum += d[static_cast<size_t>(row) * classes + k];
        shared[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= classes) return;
    float total = 0.0f;
#pragma unroll 4
    for (u32 i = 0; i < segments; i++) total += shared[i * classes + k];
    d_bias[k] += total;
}

// One block. Without d_logits (and d_bias) the loss alone.
extern "C" __global__ void __launch_bounds__(CLASS_THREADS)
    class_cross_entropy(const float* __restrict__ logits, u32 classes, const int* __restrict__ labels,
                        const float* __restrict__ weights, float smoothing, const float* __restrict__ loss_scale,
                        Rows rows, Tally* __restrict__ tally, float* __restrict__ d_logits,
                        float* __restrict__ d_bias) {
    SHARED_MEMORY(double, shared);
    u32 count = rows.count();
    float scale = *loss_scale, share = smoothing / static_cast<float>(classes);
    double sums[4] = {};  // losses, weights, targets, hits: whole numbers up to 2^53 are exact
    for (u32 row = threadIdx.x; row < count; row += CLASS_THREADS) {
        const float* x = logits + static_cast<size_t>(row) * classes;
        float* d = d_logits ? d_logits + static_cast<size_t>(row) * classes : nullptr;
        ClassTarget target{static_cast<u32>(labels[row]), 1.0f - smoothing, share, weights[row]};
        if (target.label < classes) {
            ClassLoss here = class_row(x, classes, target, scale, d);
            sums[0] += static_cast<double>(here.loss);
            sums[1] += static_cast<double>(target.weight);
            sums[2] += 1.0;
            sums[3] += here.hit ? 1.0 : 0.0;
        } else if (d) {
#pragma unroll 2
            for (u32 k = 0; k < classes; k++) d[k] = 0.0f;
        }
    }
    block_sum<CLASS_THREADS>(sums, shared);  // its barriers also show d_logits to the whole block
    if (threadIdx.x == 0) {
        tally->loss += sums[0];
        tally->weight += sums[1];
        tally->targets += static_cast<u64>(sums[2]);
        tally->correct += static_cast<u64>(sums[3]);
    }
    if (d_logits) class_bias(d_logits, count, classes, reinterpret_cast<float*>(shared), d_bias);
}
