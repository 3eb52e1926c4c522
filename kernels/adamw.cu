// adamw.cu: over the flat buffers: the gradients' norm and AdamW.
//   grad_squares  partial[p] = sum of g^2 over elements 16,384 p .. 16,384 (p + 1)
//   grad_norm     tally.grad_norm = sqrt(sum of partial)
//   adamw         g = clip g;  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2;
//                 w -= rate (m / (sqrt(v) root + epsilon)) + decay w;  compute = w, rounded
//     w, g, m, v [flat] f32    compute [flat] bf16    partial [P] f64    groups [flat / 64] u8: of these 64 elements,
//     how many are updated (the first 0 to 64), plus 128 where they decay
//
// Plan. grad_squares: a block for 16,384 elements, whatever the device; sixteen squares are added in f32, these sums in
// f64 (so a gradient above 1.8e19 counts as infinite). grad_norm: one block. adamw: a thread takes 4 neighbouring
// elements twice, 1,024 apart, so that eight loads of 16 bytes are under way before the first is needed; a byte of
// `groups` serves 16 threads. Each thread works out clip for itself; a loss or a norm beyond its limit, which no number
// that is not finite is within, leaves everything as it was. Spans begin at multiples of 64, and beyond a span's end
// nothing is read or written.
//
// Cost at base size (67.0 M parameters): adamw reads 16 and writes 14 bytes of each, and 1 byte for every 64: 2.01 GB;
// floor 419 us at 4.8 TB/s. Some 40 instructions an element, division and root among them, take 90 us of an H200's
// issue slots, beside that. grad_squares reads 0.27 GB: floor 56 us. Nothing is used twice and nothing would fit in L2.
// Expected: 85 % of memory's speed, 490 and 65 us: a stream half of reads and half of writes loses some time wherever
// the memory turns around.
#include "common.cuh"

constexpr u32 THREADS = 256;

// ---- Norm -----------------------------------------------------------------------------------------------------------

constexpr u32 SQUARES = 16384;  // elements of a block
constexpr u32 AT_ONCE = 8;      // vectors of 4 that a thread loads together
constexpr u32 STEP_SQUARES = AT_ONCE * 4 * THREADS;

// One block for 16,384 elements.
extern "C" __global__ void __launch_bounds__(THREADS)
    grad_squares(const float* __restrict__ g, u32 len, double* __restrict__ partial) {
    SHARED_MEMORY(double, shared);
    u32 first = blockIdx.x * SQUARES, rest = min(len - first, SQUARES);
    g += first;
    double sum[1] = {};
    if (rest == SQUARES) {
        for (u32 done = 0; done < SQUARES; done += STEP_SQUARES) {
            float x[AT_ONCE][4];
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i++) load(x[i], g + done + 4 * (i * THREADS + threadIdx.x));
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i += 4) {
                float squares = 0.0f;
#pragma unroll
                for (u32 j = 0; j < 16; j++) squares = fmaf(x[i + j / 4][j % 4], x[i + j / 4][j % 4], squares);
                sum[0] += static_cast<double>(squares);
            }
        }
    } else {
        // The last block: element by element.
        for (u32 at = threadIdx.x; at < rest; at += THREADS) {
            double x = static_cast<double>(g[at]);
            sum[0] += x * x;
        }
    }
    block_sum<THREADS>(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
}

constexpr u32 NORM_THREADS = 1024;

// One block.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    grad_norm(const double* __restrict__ partial, u32 partials, Tally* __restrict__ tally) {
    SHARED_MEMORY(double, shared);
    double sum[1] = {};
    for (u32 i = threadIdx.x; i < partials; i += NORM_THREADS) sum[0] += partial[i];
    block_sum<NORM_THREADS>(sum, shared);
    if (threadIdx.x == 0) tally->grad_norm = sqrt(sum[0]);
}

// ---- AdamW ----------------------------------------------------------------------------------------------------------

// What is the same for all values of a step, worked out in f64 on the host; the same as `Step` in ops/adamw.rs.
struct Step {
    float decay;     // learning rate x weight decay. Not 1 - it, which would round the same way at every step
    float max_norm;  // 0 = no clipping
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float rate;  // learning rate / (1 - beta1^t)
    float root;  // 1 / sqrt(1 - beta2^t)
    float epsilon;
    float loss_limit;  // per unit of weight
    float norm_limit;
};

__device__ __forceinline__ void update(float& w, float g, float& m, float& v, const Step& step, float clip,
                                       float decay) {
    g *= clip;
    m = fmaf(step.one_minus_beta1, g - m, m);  // as PyTorch does it: exact where g = m
    v = fmaf(step.one_minus_beta2, g * g, step.beta2 * v);
    float denominator = fmaf(sqrtf(v), step.root, step.epsilon);
    w -= fmaf(step.rate, m / denominator, w * decay);
}

// The span that ends within these four elements: one by one, and not beyond its end.
__device__ __forceinline__ void update_some(float* w, bf16* compute, const float* g, float* m, float* v, u32 count,
                                            const Step& step, float clip, float decay) {
#pragma unroll 1
    for (u32 i = 0; i < count; i++) {
        float here = w[i], first = m[i], second = v[i];
        update(here, g[i], first, second, step, clip, decay);
        w[i] = here;
        m[i] = first;
        v[i] = second;
        compute[i] = to_bf16(here);
    }
}

constexpr u32 TWICE = 2;
constexpr u32 APART = 4 * THREADS;

// One block for 2,048 elements.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(float* __restrict__ w, bf16* __restrict__ compute, const float* __restrict__ g, float* __restrict__ m,
          float* __restrict__ v, const u8* __restrict__ groups, u32 group_count, const Step* __restrict__ step_at,
          const Tally* __restrict__ tally) {
    Step step = *step_at;
    float norm = static_cast<float>(tally->grad_norm);
    bool allowed = norm <= step.norm_limit && tally->loss <= static_cast<double>(step.loss_limit) * tally->weight;

    u32 first = blockIdx.x * TWICE * APART + 4 * threadIdx.x;
    u32 count[TWICE];
    float decay[TWICE], ws[TWICE][4], gs[TWICE][4], ms[TWICE][4], vs[TWICE][4];
#pragma unroll
    for (u32 i = 0; i < TWICE; i++) {
        u32 at = first + i * APART;
        u32 group = at / 64 < group_count ? groups[at / 64] : 0, live = group & 127, within = at % 64;
        count[i] = live > within ? min(live - within, 4u) : 0u;
        decay[i] = group >> 7 ? step.decay : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < TWICE; i++) {
        u32 at = first + i * APART;
        if (count[i] == 4) {
            load(ws[i], w + at);
            load(gs[i], g + at);
            load(ms[i], m + at);
            load(vs[i], v + at);
        }
    }
    if (!allowed) return;  // after the loads, which need not wait for it
    float clip = step.max_norm > 0.0f ? fminf(step.max_norm / (norm + 1e-6f), 1.0f) : 1.0f;
#pragma unroll
    for (u32 i = 0; i < TWICE; i++) {
        u32 at = first + i * APART;
        if (count[i] == 4) {
#pragma unroll
            for (int j = 0; j < 4; j++) update(ws[i][j], gs[i][j], ms[i][j], vs[i][j], step, clip, decay[i]);
            store(w + at, ws[i]);
            store(m + at, ms[i]);
            store(v + at, vs[i]);
            store(compute + at, ws[i]);
        } else {
            update_some(w + at, compute + at, g + at, m + at, v + at, count[i], step, clip, decay[i]);
        }
    }
}
