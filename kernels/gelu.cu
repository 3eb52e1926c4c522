// gelu.cu: the erf GELU and its backward pass where no product does them in its epilogue.
//
// gelu_forward: y = gelu(pre)
//   pre, y [R, F] bf16
// A thread takes 8 values of the rows laid end to end.
// Bytes: 4 RF. A block's feed-forward, R = 65,536, F = 3,072: 805 MB, 168 us at 4.8 TB/s. Expected: 85 % of that bandwidth, as a
// value costs some 20 instructions (half of that time).
//
// gelu_backward: d = d ∘ gelu'(pre), in place
//   partials [ceil(R / 64), F] f32: sums over each block's 64 rows of d as it is stored; add_partials of rows.cu adds them
//   to the gradient of the bias of the linear layer that made `pre`
//   pre, d [R, F] bf16
// A block takes 64 rows of up to 256 columns, a thread 8 columns of every eighth row (with 256 columns), four at a time.
// Order of sums: a thread's rows; the threads that share its columns, in order; the blocks.
// Shared memory: 8 KB.
// Bytes: 6 RF, and 0.06 RF of partials written. The masked-language head, R = 9,830, F = 768: 46 MB, 9.6 us at 4.8 TB/s; a
// block's feed-forward, R = 65,536, F = 3,072: 1.22 GB, 254 us.
// Expected: 85 % of that bandwidth in the large. A value costs some 30 instructions, which keep an SM's schedulers busy for
// four fifths of that time (204 us at 1.75 GHz). In the small the launch and the last wave of blocks count too: 15 us.
#include "gelu.cuh"

constexpr int F = WIDTH;
static_assert(F % 64 == 0, "WIDTH must be a multiple of 64");
constexpr int THREADS = 256;
constexpr int VEC = 8;
constexpr int LANES = F % 256 == 0 ? 32 : F % 128 == 0 ? 16 : 8;  // threads side by side, of a row
constexpr int COLUMNS = LANES * VEC;                             // of a block
constexpr int ABREAST = THREADS / LANES;                         // rows that a block looks at at once
constexpr int BLOCK_ROWS = 64;                                   // to a row of partials
constexpr int AT_ONCE = BLOCK_ROWS / ABREAST < 4 ? BLOCK_ROWS / ABREAST : 4;
using Run = Vec<u32, VEC / 2>;

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_backward(const bf16* __restrict__ pre, bf16* __restrict__ d, float* __restrict__ partials, Rows rows) {
    SHARED_MEMORY(float, shared);
    const u32 count = rows.count(), first = blockIdx.y * BLOCK_ROWS;
    if (first >= count) return;
    const u32 end = min(count, first + BLOCK_ROWS);
    const u32 column = blockIdx.x * COLUMNS + threadIdx.x % LANES * VEC;
    auto at = [&](u32 row) { return (rows.first + row) * static_cast<u64>(F) + column; };

    float sums[VEC] = {};
    for (u32 row = first + threadIdx.x / LANES; row < end; row += AT_ONCE * ABREAST) {
        Run of_d[AT_ONCE], of_pre[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (row + i * ABREAST >= end) continue;
            of_d[i] = *reinterpret_cast<const Run*>(d + at(row + i * ABREAST));
            of_pre[i] = *reinterpret_cast<const Run*>(pre + at(row + i * ABREAST));
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (row + i * ABREAST >= end) continue;
            Run result;
#pragma unroll
            for (int c = 0; c < VEC; c += 2) {
                u32 of_d2 = of_d[i].at[c / 2], of_pre2 = of_pre[i].at[c / 2];
                u32 pair = pack_bf16x2(low_half(of_d2) * gelu_slope(low_half(of_pre2)),
                                       high_half(of_d2) * gelu_slope(high_half(of_pre2)));
                sums[c] += low_half(pair);
                sums[c + 1] += high_half(pair);
                result.at[c / 2] = pair;
            }
            *reinterpret_cast<Run*>(d + at(row + i * ABREAST)) = result;
        }
    }
    store(shared + threadIdx.x / LANES * COLUMNS + threadIdx.x % LANES * VEC, sums);
    __syncthreads();
    for (u32 c = threadIdx.x; c < COLUMNS; c += THREADS) {
        float sum = shared[c];
#pragma unroll
        for (int other = 1; other < ABREAST; other++) sum += shared[other * COLUMNS + c];
        partials[blockIdx.y * static_cast<u64>(F) + blockIdx.x * COLUMNS + c] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_forward(const bf16* __restrict__ pre, bf16* __restrict__ y, Rows rows) {
    const u64 begin = static_cast<u64>(rows.first) * F;
    const u64 i = (blockIdx.x * static_cast<u64>(THREADS) + threadIdx.x) * VEC;
    if (i >= static_cast<u64>(rows.count()) * F) return;
    Run values = *reinterpret_cast<const Run*>(pre + begin + i);
#pragma unroll
    for (int c = 0; c < VEC / 2; c++) {
        values.at[c] = pack_bf16x2(gelu(low_half(values.at[c])), gelu(high_half(values.at[c])));
    }
    *reinterpret_cast<Run*>(y + begin + i) = values;
}
