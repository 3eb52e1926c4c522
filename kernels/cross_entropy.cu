// cross_entropy.cu: loss over the vocabulary, from logits made a chunk of rows at a time; the most probable tokens.
//   vocab_loss           loss[i] = lse(x[i]) - x[i, target]; hit[i] = whether the target's logit is the first largest
//   vocab_cross_entropy  the same, and x[i] = (softmax(x[i]) - onehot) loss_scale, in place
//   vocab_bias_gradient  d_bias += sum over rows of that gradient
//   vocab_tally          tally += sums of loss and hit over all M rows
//   top_k                the k largest logits of each row, as probabilities; of equals, the first
//     x [R, S] bf16: one chunk of R <= 512 rows; S = V rounded up to a multiple of 64, and what lies in between takes
//     no part and is 0 in the gradient    targets [R] u32    loss [R] f32    hit [R] u32    d_bias [V] f32    VOCAB = V
//     top_k: logits [R, V] f32, ids [R, k] u32, probabilities [R, k] f32
//
// Plan. One block of 512 threads a row; each thread keeps 64 of its logits, as they are stored, in 32 registers, so
// that a row of up to 32,768 logits is read once and written once. (Shared memory could hold it too, but would carry it
// in once and out three times; and on sm_86 one row would fill an SM.) What lies beyond 32,768 is read again for the
// sum and for the gradient. Two passes over the registers, maximum then sum, so that no exponential is ever rescaled.
// Two blocks an SM, held to 64 registers: while one waits for its row the other takes exponentials. Sums in f32: a
// thread's own in order, a butterfly in the warp, the warps in order; over rows in f64.
//
// Cost at base size (V = 30,522, M = 9,830), for each chunk of 512 rows, 31.3 MB: read once, written once, and read
// once more for the bias: 94 MB; 31 M exponentials. The chunk was just written by the matmul that made it, fits the 50
// MB of an H200's L2, and is dead after the two products that follow: HBM sees next to nothing of it. Floor, if L2
// gives 5.5 TB/s: 11 us for loss and gradient, 6 us for the bias; the exponentials alone, 16 a cycle and SM: 8 us.
// Expected: 14 us and 8 us, for an SM's two blocks overlap exponentials and copies, but 512 rows are 1.94 waves of 264
// blocks. Over 20 chunks 0.4 ms of a step. The three products of a chunk, 72 GFLOP, have a floor of 73 us.
//
// top_k is for a handful of rows (fill-mask): its logits are f32, so that close ones keep their order. It reads them
// twice, 122 KB a row, from L2; a chosen logit costs its thread one more look at 60 others. For k = 5 some 10 us.
#include "common.cuh"

constexpr u32 V = VOCAB;
constexpr u32 STRIDE = (V + 63) / 64 * 64;
constexpr u32 THREADS = 512;
constexpr u32 WARPS = THREADS / WARP;

// ---- A row, spread over a block -------------------------------------------------------------------------------------

// Eight neighbouring logits as they are stored, the first in the lowest bits.
using Packed = Vec<u32, 4>;

constexpr u32 STEP = 8 * THREADS;                  // columns that the block takes at once
constexpr u32 SHARE = (STRIDE + STEP - 1) / STEP;  // vectors of a thread
constexpr u32 KEPT = SHARE < 8 ? SHARE : 8;        // of them, those in registers
constexpr u32 NOTHING = 0xff80u;                   // -inf: the largest of no row, and e^-inf adds 0
constexpr u32 TWO_NOTHINGS = NOTHING << 16 | NOTHING;

__device__ __forceinline__ u32 column_of(u32 i) {
    return i * STEP + 8 * threadIdx.x;
}

// The thread's vector i; -inf from column V on.
__device__ __forceinline__ Packed read_logits(const bf16* x, u32 i) {
    u32 column = column_of(i);
    Packed logits{{TWO_NOTHINGS, TWO_NOTHINGS, TWO_NOTHINGS, TWO_NOTHINGS}};
    if (column < V) logits = *reinterpret_cast<const Packed*>(x + column);
    if ((i + 1) * STEP > V) {  // only the last vectors can lie across the end
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (column + 2 * j >= V) logits.at[j] = (logits.at[j] & 0xffff0000u) | NOTHING;
            if (column + 2 * j + 1 >= V) logits.at[j] = (logits.at[j] & 0xffffu) | NOTHING << 16;
        }
    }
    return logits;
}

// do_one(i, logits) for each of the thread's vectors, in order.
template <class F>
__device__ __forceinline__ void for_each(const Packed (&kept)[KEPT], const bf16* x, F do_one) {
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) do_one(i, kept[i]);
    for (u32 i = KEPT; i < SHARE; i++) do_one(i, read_logits(x, i));
}

constexpr float LOG2_E = 1.4426950408889634f;

// e^(x - highest). The difference first: it is exact where it matters, near the maximum.
__device__ __forceinline__ float exp_below(float x, float highest) {
    return exp2_fast((x - highest) * LOG2_E);
}

// Each pass takes words apart in its own way. Were it the same way, the compiler would keep 64 floats from one pass to
// the next rather than the 32 words they came from, and spill. The sum takes low_half and high_half; the gradient:
__device__ __forceinline__ float low_half_again(u32 pair) {
    return __uint_as_float(__byte_perm(pair, 0, 0x1044));
}

__device__ __forceinline__ float high_half_again(u32 pair) {
    return __uint_as_float(__byte_perm(pair, 0, 0x3244));
}

// The maximum leaves the other half in place, as bits too low to change which is the largest; `high_half` of the result
// takes them off. (-inf with bits behind it is a NaN, which fmaxf passes over.)
__device__ __forceinline__ float larger(float highest, u32 pair) {
    return fmaxf(highest, fmaxf(__uint_as_float(pair), __uint_as_float(__byte_perm(pair, 0, 0x1032))));
}

// ---- Loss and gradient ----------------------------------------------------------------------------------------------

// What a row comes to, the same bits for every thread.
struct RowSums {
    float highest;
    float total;  // sum of e^(x - highest)
    bool hit;     // the target is the first column to reach `highest`
};

// `shared` [WARPS].
__device__ __forceinline__ float highest_of_row(const Packed (&kept)[KEPT], const bf16* x, float* shared) {
    float highest = __uint_as_float(NOTHING << 16);
    for_each(kept, x, [&](u32, const Packed& logits) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) highest = larger(highest, logits.at[j]);
    });
    highest = warp_max(high_half(__float_as_uint(highest)));
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = highest;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < WARPS; i++) highest = fmaxf(highest, shared[i]);
    return highest;
}

// Whether one of the thread's columns before `target` is as high as `highest`.
__device__ __forceinline__ bool reached_before(const Packed (&kept)[KEPT], const bf16* x, u32 target, float highest) {
    u32 bits = __float_as_uint(highest);
    u32 twice = bits | bits >> 16, mask = highest == 0.0f ? 0x7fff7fffu : 0xffffffffu;  // -0 is 0
    bool found = false;
    for_each(kept, x, [&](u32 i, const Packed& logits) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 column = column_of(i) + 2 * j, differs = (logits.at[j] ^ twice) & mask;
            found |= (differs & 0x0000ffffu) == 0 && column < target;
            found |= (differs & 0xffff0000u) == 0 && column + 1 < target;
        }
    });
    return found;
}

// `shared` [3 WARPS]; `logit` is the target's.
__device__ __forceinline__ RowSums sum_row(const Packed (&kept)[KEPT], const bf16* x, u32 target, float logit,
                                           float* shared) {
    float highest = highest_of_row(kept, x, shared), total = 0.0f;
    for_each(kept, x, [&](u32, const Packed& logits) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            total += exp_below(low_half(logits.at[j]), highest);
            total += exp_below(high_half(logits.at[j]), highest);
        }
    });
    // Only where the target's logit is the largest does it matter whether another is as large and comes first.
    bool hit = logit == highest, earlier = hit && reached_before(kept, x, target, highest);
    total = warp_sum(total);
    earlier = __any_sync(ALL_LANES, earlier);
    float *totals = shared + WARPS, *ties = shared + 2 * WARPS;
    if (threadIdx.x % WARP == 0) {
        totals[threadIdx.x / WARP] = total;
        ties[threadIdx.x / WARP] = earlier ? 1.0f : 0.0f;
    }
    __syncthreads();
    RowSums row{highest, 0.0f, hit};
#pragma unroll
    for (u32 i = 0; i < WARPS; i++) {
        row.total += totals[i];
        row.hit &= ties[i] == 0.0f;
    }
    return row;
}

// x = (softmax - onehot) loss_scale. The -inf beyond column V become the zeros that belong there.
__device__ __forceinline__ void write_gradient(const Packed (&kept)[KEPT], bf16* x, u32 target, float logit,
                                               const RowSums& row, float loss_scale) {
    float factor = loss_scale / row.total;
    for_each(kept, x, [&](u32 i, const Packed& logits) {
        Packed d;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            d.at[j] = pack_bf16x2(exp_below(low_half_again(logits.at[j]), row.highest) * factor,
                                  exp_below(high_half_again(logits.at[j]), row.highest) * factor);
        }
        if (column_of(i) < STRIDE) *reinterpret_cast<Packed*>(x + column_of(i)) = d;
    });
    // The thread that wrote the target's column writes it again: cheaper than to ask at every column.
    if (target / 8 % THREADS == threadIdx.x) {
        x[target] = to_bf16(exp_below(logit, row.highest) * factor - loss_scale);
    }
}

enum class Gradient { None, InPlace };

template <Gradient gradient, class Logit>
__device__ __forceinline__ void one_row(Logit* x, const u32* targets, const float* loss_scale, const Rows& rows,
                                        float* row_loss, u32* row_hit, float* shared) {
    u32 row = blockIdx.x;
    if (row >= rows.count()) return;
    x += static_cast<size_t>(row) * STRIDE;
    Packed kept[KEPT];
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) kept[i] = read_logits(x, i);
    u32 target = targets[row];
    float logit = to_float(x[target]);  // before the barriers: after them it may be a gradient
    float scale = gradient == Gradient::InPlace ? *loss_scale : 0.0f;
    RowSums sums = sum_row(kept, x, target, logit, shared);
    if (threadIdx.x == 0) {
        row_loss[row] = sums.highest - logit + logf(sums.total);
        row_hit[row] = sums.hit ? 1u : 0u;
    }
    if constexpr (gradient == Gradient::InPlace) write_gradient(kept, x, target, logit, sums, scale);
}

// One block a row of the chunk.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    vocab_loss(const bf16* __restrict__ logits, const u32* __restrict__ targets, Rows rows,
               float* __restrict__ row_loss, u32* __restrict__ row_hit) {
    SHARED_MEMORY(float, shared);
    one_row<Gradient::None>(logits, targets, nullptr, rows, row_loss, row_hit, shared);
}

// One block a row of the chunk; the logits become their gradient.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    vocab_cross_entropy(bf16* __restrict__ logits, const u32* __restrict__ targets,
                        const float* __restrict__ loss_scale, Rows rows, float* __restrict__ row_loss,
                        u32* __restrict__ row_hit) {
    SHARED_MEMORY(float, shared);
    one_row<Gradient::InPlace>(logits, targets, loss_scale, rows, row_loss, row_hit, shared);
}

// One block a strip of 64 columns; a thread reads every 32nd row of the chunk, eight of them under way at once.
extern "C" __global__ void __launch_bounds__(STRIP_THREADS)
    vocab_bias_gradient(const bf16* __restrict__ d_logits, Rows rows, float* __restrict__ d_bias) {
    SHARED_MEMORY(float, shared);
    constexpr u32 AT_ONCE = 8;
    u32 first = blockIdx.x * STRIP_COLUMNS, count = rows.count();
    d_logits += first + strip_column();
    float sum[8] = {};
    for (u32 row = strip_row(); row < count; row += AT_ONCE * STRIP_ROWS) {
        Packed d[AT_ONCE] = {};
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
            u32 here = row + i * STRIP_ROWS;
            if (here < count) d[i] = *reinterpret_cast<const Packed*>(d_logits + static_cast<size_t>(here) * STRIDE);
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                sum[2 * j] += low_half(d[i].at[j]);
                sum[2 * j + 1] += high_half(d[i].at[j]);
            }
        }
    }
    add_strip(sum, shared, d_bias + first, V - first);
}

constexpr u32 TALLY_THREADS = 1024;

// One block: the rows' losses and hits, in f64.
extern "C" __global__ void __launch_bounds__(TALLY_THREADS)
    vocab_tally(const float* __restrict__ row_loss, const u32* __restrict__ row_hit, Rows rows,
                Tally* __restrict__ tally) {
    SHARED_MEMORY(double, shared);
    u32 count = rows.count();
    double sums[2] = {};  // losses, hits: whole numbers up to 2^53 are exact
    for (u32 row = threadIdx.x; row < count; row += TALLY_THREADS) {
        sums[0] += static_cast<double>(row_loss[row]);
        sums[1] += static_cast<double>(row_hit[row]);
    }
    block_sum<TALLY_THREADS>(sums, shared);
    if (threadIdx.x == 0) {
        tally->loss += sums[0];
        tally->weight += static_cast<double>(count);
        tally->targets += count;
        tally->correct += static_cast<u64>(sums[1]);
    }
}

// ---- The most probable tokens ---------------------------------------------------------------------------------------

// A logit on its way to be chosen: bits that sort as f32 does, in a total order, and its column.
struct Candidate {
    u32 key;
    u32 column;

    // Higher; of equals, the one that comes first.
    __device__ __forceinline__ bool before(const Candidate& other) const {
        return key > other.key || (key == other.key && column < other.column);
    }
};

__device__ __forceinline__ u32 sortable(float x) {
    u32 bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unsorted(u32 key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The thread's best among its columns of x that come after `chosen`.
__device__ __forceinline__ Candidate next_best(const float* x, const Candidate& chosen) {
    Candidate best{0, 0xffffffffu};
    for (u32 column = threadIdx.x; column < V; column += THREADS) {
        Candidate here{sortable(x[column]), column};
        if (chosen.before(here) && here.before(best)) best = here;
    }
    return best;
}

// The block's best, for every thread. `shared` [WARPS].
__device__ __forceinline__ Candidate best_of_block(Candidate best, Candidate* shared) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        Candidate other{__shfl_xor_sync(ALL_LANES, best.key, distance),
                        __shfl_xor_sync(ALL_LANES, best.column, distance)};
        if (other.before(best)) best = other;
    }
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = best;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < WARPS; i++)
        if (shared[i].before(best)) best = shared[i];
    __syncthreads();
    return best;
}

// One block a row. Each thread holds its own best; when that is chosen it looks for its next.
extern "C" __global__ void __launch_bounds__(THREADS)
    top_k(const float* __restrict__ logits, u32 k, Rows rows, u32* __restrict__ ids,
          float* __restrict__ probabilities) {
    SHARED_MEMORY(Candidate, shared);
    u32 row = blockIdx.x;
    if (row >= rows.count()) return;
    logits += static_cast<size_t>(row) * V;
    ids += static_cast<size_t>(row) * k;
    probabilities += static_cast<size_t>(row) * k;

    Candidate mine = next_best(logits, Candidate{0xffffffffu, 0});
    Candidate chosen = best_of_block(mine, shared);
    float highest = unsorted(chosen.key), total = 0.0f;
    for (u32 column = threadIdx.x; column < V; column += THREADS) total += exp_below(logits[column], highest);
    total = warp_sum(total);
    float* totals = reinterpret_cast<float*>(shared + WARPS);
    if (threadIdx.x % WARP == 0) totals[threadIdx.x / WARP] = total;
    __syncthreads();
    total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < WARPS; i++) total += totals[i];

    for (u32 rank = 0; rank < k; rank++) {
        if (rank > 0) chosen = best_of_block(mine, shared);
        if (threadIdx.x == 0) {
            ids[rank] = chosen.column;
            probabilities[rank] = exp_below(unsorted(chosen.key), highest) / total;
        }
        if (chosen.column % THREADS == threadIdx.x) mine = next_best(logits, chosen);
    }
}
