// Kernels that show how Hopper's instructions lay data out, for comparison with the PTX manual's tables.
#include "common.cuh"

__device__ void to_shared(u32* shared, const u32* image, u32 bytes) {
    for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) shared[i] = image[i];
}

__device__ void to_global(u32* image, const u32* shared, u32 bytes) {
    for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) image[i] = shared[i];
}

// image = shared memory after one tensor copy of the box at (column, row).
extern "C" __global__ void __launch_bounds__(128)
    box_in(const __grid_constant__ TensorMap map, u32 column, u32 row, u32 bytes, u32* __restrict__ image) {
    SHARED_MEMORY(u32, shared);
    Mbarrier* landed = reinterpret_cast<Mbarrier*>(shared + bytes / 4);
    if (threadIdx.x == 0) {
        prefetch_tensormap(&map);
        mbarrier_init(landed, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(landed, bytes);
        cp_async_bulk_tensor_2d_load(shared, &map, static_cast<int>(column), static_cast<int>(row), landed);
    }
    __syncthreads();
    mbarrier_wait(landed, 0);
    to_global(image, shared, bytes);
    __syncthreads();
    if (threadIdx.x == 0) mbarrier_inval(landed);
}

// The box at (column, row) = shared memory, which holds `image`.
extern "C" __global__ void __launch_bounds__(128)
    box_out(const __grid_constant__ TensorMap map, u32 column, u32 row, u32 bytes, const u32* __restrict__ image) {
    SHARED_MEMORY(u32, shared);
    to_shared(shared, image, bytes);
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        cp_async_bulk_tensor_2d_store(&map, static_cast<int>(column), static_cast<int>(row), shared);
        cp_async_bulk_commit();
        cp_async_bulk_wait<0>();
    }
}

// image = from, by way of one plain bulk copy.
extern "C" __global__ void __launch_bounds__(128)
    bulk_in(const u32* __restrict__ from, u32 bytes, u32* __restrict__ image) {
    SHARED_MEMORY(u32, shared);
    Mbarrier* landed = reinterpret_cast<Mbarrier*>(shared + bytes / 4);
    if (threadIdx.x == 0) {
        mbarrier_init(landed, 1);
        fence_mbarrier_init();
        cp_async_bulk_load(shared, from, bytes, landed);
        mbarrier_expect_tx(landed, bytes);
        mbarrier_arrive(landed);
    }
    __syncthreads();
    mbarrier_wait(landed, 0);
    to_global(image, shared, bytes);
}

// image = four 8x8 matrices one after the other, as stmatrix stores fragments[lane][4].
extern "C" __global__ void __launch_bounds__(32)
    store_matrices(const u32* __restrict__ fragments, u32* __restrict__ image) {
    SHARED_MEMORY(u32, shared);
    u32 r[4];
    for (int i = 0; i < 4; i++) r[i] = fragments[4 * threadIdx.x + i];
    stmatrix_x4(shared + 4 * threadIdx.x, r);
    __syncthreads();
    to_global(image, shared, 512);
}

extern "C" __global__ void __launch_bounds__(32)
    store_matrices_trans(const u32* __restrict__ fragments, u32* __restrict__ image) {
    SHARED_MEMORY(u32, shared);
    u32 r[4];
    for (int i = 0; i < 4; i++) r[i] = fragments[4 * threadIdx.x + i];
    stmatrix_x4_trans(shared + 4 * threadIdx.x, r);
    __syncthreads();
    to_global(image, shared, 512);
}

// Which lane elect.sync picks: elected[lane] = 1 or 0.
extern "C" __global__ void __launch_bounds__(32) elect(u32* __restrict__ elected) {
    elected[threadIdx.x] = elect_sync();
}

// A and B as images of shared memory. layouts[0] and [1] are the fixed parts of the two descriptors; from one k16 to the
// next their starts move by a_step and b_step bytes.
struct Images {
    const u32* a;
    const u32* b;
    const u64* layouts;
    u32 a_bytes, b_bytes;
    u32 a_step, b_step;
    u32 steps;
};

// d[thread][r] = A B over images.steps of 16 of k.
template <int r, Major a_major, Major b_major>
__device__ void image_product(u8* a_tile, const Images& images, float* result) {
    u8* b_tile = a_tile + (images.a_bytes + 1023) / 1024 * 1024;
    to_shared(reinterpret_cast<u32*>(a_tile), images.a, images.a_bytes);
    to_shared(reinterpret_cast<u32*>(b_tile), images.b, images.b_bytes);
    fence_proxy_async();
    __syncthreads();
    float d[r];
    wgmma_fence();
    for (u32 s = 0; s < images.steps; s++) {
        u64 a = wgmma_descriptor(a_tile + s * images.a_step, images.layouts[0]);
        u64 b = wgmma_descriptor(b_tile + s * images.b_step, images.layouts[1]);
        wgmma_mma_async<a_major, b_major>(d, a, b, s == 0 ? ScaleD::zero : ScaleD::one);
    }
    wgmma_commit();
    wgmma_wait<0>(d);
#pragma unroll
    for (int i = 0; i < r; i++) result[threadIdx.x * r + i] = d[i];
}

extern "C" __global__ void __launch_bounds__(128) product_n64_k_k(Images images, float* __restrict__ result) {
    SHARED_MEMORY(u8, shared);
    image_product<32, Major::K, Major::K>(shared, images, result);
}

extern "C" __global__ void __launch_bounds__(128) product_n64_k_mn(Images images, float* __restrict__ result) {
    SHARED_MEMORY(u8, shared);
    image_product<32, Major::K, Major::MN>(shared, images, result);
}

extern "C" __global__ void __launch_bounds__(128) product_n64_mn_k(Images images, float* __restrict__ result) {
    SHARED_MEMORY(u8, shared);
    image_product<32, Major::MN, Major::K>(shared, images, result);
}

extern "C" __global__ void __launch_bounds__(128) product_n64_mn_mn(Images images, float* __restrict__ result) {
    SHARED_MEMORY(u8, shared);
    image_product<32, Major::MN, Major::MN>(shared, images, result);
}

extern "C" __global__ void __launch_bounds__(128) product_n128_k_k(Images images, float* __restrict__ result) {
    SHARED_MEMORY(u8, shared);
    image_product<64, Major::K, Major::K>(shared, images, result);
}

extern "C" __global__ void __launch_bounds__(128) product_n192_k_mn(Images images, float* __restrict__ result) {
    SHARED_MEMORY(u8, shared);
    image_product<96, Major::K, Major::MN>(shared, images, result);
}

extern "C" __global__ void __launch_bounds__(128) product_n256_k_k(Images images, float* __restrict__ result) {
    SHARED_MEMORY(u8, shared);
    image_product<128, Major::K, Major::K>(shared, images, result);
}

// d[thread][32] = A B for one k16 with A in registers, fragments[thread][4]; added to what `d` holds.
extern "C" __global__ void __launch_bounds__(128)
    product_from_registers(const u32* __restrict__ fragments, const u32* __restrict__ b,
                           const u64* __restrict__ layouts, u32 b_bytes, float* __restrict__ result) {
    SHARED_MEMORY(u8, b_tile);
    to_shared(reinterpret_cast<u32*>(b_tile), b, b_bytes);
    fence_proxy_async();
    __syncthreads();
    u32 a[4];
    float d[32];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = fragments[4 * threadIdx.x + i];
#pragma unroll
    for (int i = 0; i < 32; i++) d[i] = result[threadIdx.x * 32 + i];
    wgmma_fence(d);
    wgmma_mma_async<Major::K>(d, a, wgmma_descriptor(b_tile, layouts[0]), ScaleD::one);
    wgmma_commit();
    wgmma_wait<0>(d);
#pragma unroll
    for (int i = 0; i < 32; i++) result[threadIdx.x * 32 + i] = d[i];
}

// early = the accumulators of one k16 as they are before the wait, late = after it.
extern "C" __global__ void __launch_bounds__(128)
    read_early(Images images, float* __restrict__ early, float* __restrict__ late) {
    SHARED_MEMORY(u8, shared);
    u8* b_tile = shared + (images.a_bytes + 1023) / 1024 * 1024;
    to_shared(reinterpret_cast<u32*>(shared), images.a, images.a_bytes);
    to_shared(reinterpret_cast<u32*>(b_tile), images.b, images.b_bytes);
    fence_proxy_async();
    __syncthreads();
    float d[32];
    wgmma_fence();
    u64 a = wgmma_descriptor(shared, images.layouts[0]), b = wgmma_descriptor(b_tile, images.layouts[1]);
    wgmma_mma_async<Major::K, Major::K>(d, a, b, ScaleD::zero);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < 32; i++) early[threadIdx.x * 32 + i] = d[i];
    wgmma_wait<0>(d);
#pragma unroll
    for (int i = 0; i < 32; i++) late[threadIdx.x * 32 + i] = d[i];
}
