// Accesses that should not be, and their twins that may.

#include "common.cuh"

// Doubles `rows` rows of 64.
extern "C" __global__ void double_rows(const float* __restrict__ x, float* __restrict__ y, u32 rows) {
    for (u32 row = 0; row < rows; row++) {
        float pair[2];
        load(pair, x + 64 * row + 2 * threadIdx.x);
        pair[0] *= 2.0f;
        pair[1] *= 2.0f;
        store(y + 64 * row + 2 * threadIdx.x, pair);
    }
}

extern "C" __global__ void before_the_start(const float* x, float* y) {
    y[threadIdx.x] = x[static_cast<int>(threadIdx.x) - 4];
}

extern "C" __global__ void null_pointer(const float* x, float* y, const float* bias) {
    y[threadIdx.x] = x[threadIdx.x] + bias[threadIdx.x];
}

extern "C" __global__ void write_input(const float* x, float* y) {
    const_cast<float*>(x)[threadIdx.x] = 1.0f;
    y[threadIdx.x] = 1.0f;
}

// The float that begins at x + halves.
extern "C" __global__ void load_at(const bf16* x, float* y, u32 halves) {
    y[0] = *reinterpret_cast<const float*>(x + halves);
}

// Eight values from x + first on, sixteen bytes at once.
extern "C" __global__ void load_eight(const bf16* x, float* y, u32 first) {
    float v[8];
    load(v, x + first + 8 * threadIdx.x);
    for (int i = 0; i < 8; i++) y[8 * threadIdx.x + i] = v[i];
}

// All of y but `missing`.
extern "C" __global__ void leave_one_out(float* y, u32 missing) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i != missing) y[i] = 1.0f;
}

extern "C" __global__ void add_one(const float* x, float* y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i] + 1.0f;
}

// Reads its own word of shared memory, which thread `missing` did not write.
extern "C" __global__ void shared_left_out(u32* y, u32 missing) {
    SHARED_MEMORY(u32, a);
    if (threadIdx.x != missing) a[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x];
}

// What one block left in shared memory is not there for the next.
extern "C" __global__ void shared_of_another_block(u32* y) {
    SHARED_MEMORY(u32, a);
    if (blockIdx.x == 0) a[threadIdx.x] = 1;
    y[blockIdx.x * blockDim.x + threadIdx.x] = a[threadIdx.x];
}

extern "C" __global__ void past_shared(u32* y, u32 words) {
    SHARED_MEMORY(u32, a);
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) a[i] = i;
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x];
}

__attribute__((noinline)) u32 deeper(u32 n, volatile u32* above) {
    volatile u32 here[64];
    here[n % 64] = *above + 1;
    return n == 0 ? here[0] : deeper(n - 1, here + n % 64) + here[n % 64];
}

extern "C" __global__ void recurse(u32* y, u32 depth) {
    volatile u32 bottom = 0;
    y[threadIdx.x] = deeper(depth, &bottom);
}

extern "C" __global__ void large_frame(u32* y) {
    volatile u32 local[50000];
    local[y[0]] = 1;
    local[threadIdx.x] = 2;
    y[threadIdx.x] = local[threadIdx.x];
}

constexpr u32 HALF = 32;

extern "C" __global__ void __launch_bounds__(2 * HALF, 1) at_most_64(u32* y) {
    y[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void divide(const u32* x, u32* y) {
    y[threadIdx.x] = 12 / x[threadIdx.x];
}
