// y = A B, one block, tensor copies into wgmma: y [64, N] f32, 64 of k.
// Compiled once per SWIZZLE (a Swizzle's number), A_MAJOR, B_MAJOR (a Major's number) and N.
//   A: A_MAJOR 0: [64, 64] by rows of k    1: [64, 64] by rows of m (its transpose)
//   B: B_MAJOR 0: [N, 64] by rows of k     1: [64, N] by rows of n
// A tile is copied as boxes as wide as the swizzle; the descriptors follow from that.
#include "common.cuh"

constexpr int K = 64;
constexpr Swizzle SWIZZLED = static_cast<Swizzle>(SWIZZLE);
constexpr u32 WIDE = SWIZZLE == 1 ? 128 : SWIZZLE == 2 ? 64 : SWIZZLE == 3 ? 32 : 16;  // bytes of a box's row

// A matrix of `mn` by K as boxes in shared memory.
template <Major major, u32 mn>
struct Boxes {
    static constexpr u32 rows = major == Major::K ? mn : K;   // of one box
    static constexpr u32 count = (major == Major::K ? K : mn) * 2 / WIDE;
    static constexpr u32 box = rows * WIDE;
    static constexpr u32 bytes = count * box;

    static constexpr __device__ u64 layout() {
        bool plain = SWIZZLED == Swizzle::none;
        if (major == Major::K) return wgmma_layout(SWIZZLED, plain ? box : 16, 8 * WIDE);
        return plain ? wgmma_layout(SWIZZLED, 8 * WIDE, box) : wgmma_layout(SWIZZLED, box, 8 * WIDE);
    }

    // Where k16 number s starts.
    static __device__ u32 start(u32 s) {
        if (major == Major::MN) return s * 16 * WIDE;
        return WIDE == 16 ? s * 2 * box : s * 32 / WIDE * box + s * 32 % WIDE;
    }

    static __device__ void load(u8* to, const TensorMap* map, Mbarrier* landed) {
        for (u32 i = 0; i < count; i++) {
            cp_async_bulk_tensor_2d_load(to + i * box, map, static_cast<int>(i * WIDE / 2), 0, landed);
        }
    }
};

extern "C" __global__ void __launch_bounds__(128)
    product(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* __restrict__ y) {
    constexpr Major a_major = static_cast<Major>(A_MAJOR), b_major = static_cast<Major>(B_MAJOR);
    using A = Boxes<a_major, 64>;
    using B = Boxes<b_major, N>;
    SHARED_MEMORY(u8, a_tile);
    u8* b_tile = a_tile + A::bytes;
    Mbarrier* landed = reinterpret_cast<Mbarrier*>(b_tile + B::bytes);
    if (threadIdx.x == 0) {
        mbarrier_init(landed, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(landed, A::bytes + B::bytes);
        A::load(a_tile, &a, landed);
        B::load(b_tile, &b, landed);
    }
    __syncthreads();
    mbarrier_wait(landed, 0);
    float d[N / 2];
    wgmma_fence();
#pragma unroll
    for (u32 s = 0; s < K / 16; s++) {
        u64 a_at = wgmma_descriptor(a_tile + A::start(s), A::layout());
        u64 b_at = wgmma_descriptor(b_tile + B::start(s), B::layout());
        wgmma_mma_async<a_major, b_major>(d, a_at, b_at, s == 0 ? ScaleD::zero : ScaleD::one);
    }
    wgmma_commit();
    wgmma_wait<0>(d);
    u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    u32 column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < N / 2; i++) y[(row + 8 * (i / 2 % 2)) * N + column + 8 * (i / 4) + i % 2] = d[i];
}
