// matmul_hopper.cu: the forward product of a linear layer on Hopper: wgmma fed by tensor copies. For sm_90a alone.
//   matmul_hopper_nt_bias        y = x W^T + b
//   matmul_hopper_nt_bias_gelu   pre = x W^T + b; y = gelu(pre), of pre as stored (rounded), so that backward sees the same
//   x [R, inputs], y, pre [R, lead] bf16    W [outputs, inputs] bf16    b [outputs] f32
// What comes in and out is as in matmul.cu: inputs and lead are multiples of 64, outputs <= lead < outputs + 64, zeros are
// written behind outputs, matrices begin at the launch's first row, rows beyond rows.count() are neither read nor written.
//   x_map: x as [capacity, inputs], boxes of 128 rows x 64    w_map: W, boxes of 256 x 64    both swizzled by 128 bytes
//
// Plan. A persistent block an SM (384 threads, 208 KB); tile i of all goes to block i mod blocks. A tile is 128 x 256, its
// depth walked in stages of 64 (48 KB), a ring of 4. Warpgroup 0 copies; 1 and 2 multiply 64 rows each, all sums in
// registers (128 a thread), and hand a stage back when the wgmma of the next are already under way. The copies run on
// into the next tile while sums are rounded, staged through 2 KB a warp and stored, 16 bytes a lane and whole 128-byte rows.
// Columns first: the blocks that run together share a few row tiles of x and all of W, which stays in L2.
// The last row tile, if it is not whole, is copied by warpgroup 0 thread by thread: a tensor copy would read dead rows.
// Every value is one chain of wgmma over the depth, so bits depend on neither the grid nor the number of SMs.
//
// Cost: 2 R inputs outputs FLOP; bytes and floors as in matmul.cu (base size, an H200: qkv 0.235 ms, out 0.078, lin1 0.313,
// lin2 0.313, all by the tensor cores). A stage is 2^22 FLOP for 48 KB, so at that rate L2 would have to deliver 11.6 TB/s.
// It is not known to pass 5.5 to 7: 470 to 600 TFLOP/s are the most that tiles of this size can have without multicast to a
// cluster, which is the next thing to try. The end of a tile takes the SM some 1,000 clocks to issue, with GELU 9,000,
// against 12,300 for the 12 stages of inputs = 768 at full rate; behind it hide the copies of 4 stages and no more, since
// both warpgroups end together. Expected: 450 to 600 TFLOP/s, for lin1 350 to 450.
// Not yet run on a GPU.
#include "gelu.cuh"

constexpr u32 ROWS = 128;
constexpr u32 COLS = 256;
constexpr u32 DEPTH = 64;  // of a stage: 128 bytes, the swizzle's width
constexpr u32 STAGES = 4;
constexpr u32 WARPGROUP = 128;
constexpr u32 CONSUMERS = 2;  // warpgroups
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr u32 A_BYTES = ROWS * DEPTH * 2;
constexpr u32 B_BYTES = COLS * DEPTH * 2;
constexpr u32 STAGED_BYTES = 16 * 128;  // a warp's rows, 64 columns
constexpr u32 PRODUCERS_BARRIER = 1;

// 128 threads with 40 registers and 256 with 232 make 64,512 of an SM's 65,536.
constexpr int PRODUCER_REGISTERS = 40;
constexpr int CONSUMER_REGISTERS = 232;

struct Shared {
    u8 a[STAGES][A_BYTES];
    u8 b[STAGES][B_BYTES];
    u8 staged[CONSUMERS * WARPGROUP / 32][STAGED_BYTES];
    Mbarrier full[STAGES];
    Mbarrier empty[STAGES];
};

struct Layer {
    const bf16* x;
    const float* bias;
    bf16* pre;
    bf16* y;
    u32 inputs, outputs, lead;
    u32 rows;  // live
};

// Tile number i: all columns of the first rows, then of the next.
struct Place {
    u32 row, col;
};

__device__ __forceinline__ u32 tile_count(const Layer& layer) {
    return ceil_div(layer.rows, ROWS) * ceil_div(layer.lead, COLS);
}

__device__ __forceinline__ Place tile_place(const Layer& layer, u32 i) {
    u32 across = ceil_div(layer.lead, COLS);
    return Place{i / across * ROWS, i % across * COLS};
}

// The ring, as both sides walk it: stage and turn of step after step, across tiles.
struct Ring {
    u32 stage = 0;
    u32 parity = 0;  // of the turn: 0, 1, 0, ...

    __device__ __forceinline__ void next() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

// ---- Copying ---------------------------------------------------------------------------------------------------------

// Rows of x that are live, 64 of its columns, each thread one row; zeros below. Swizzled as a tensor copy would.
__device__ __forceinline__ void copy_live_rows(u8* to, const Layer& layer, u32 row, u32 depth) {
    bool live = row + threadIdx.x < layer.rows;
    const bf16* from = layer.x + static_cast<u64>(live ? row + threadIdx.x : 0) * layer.inputs + depth;
#pragma unroll
    for (u32 chunk = 0; chunk < 8; chunk++) {
        u32 offset = swizzled(Swizzle::bytes128, threadIdx.x * 128 + chunk * 16);
        cp_async_16(to + offset, from + chunk * 8, live ? 16 : 0);
    }
    cp_async_commit();
    cp_async_wait<0>();
    fence_proxy_async();
}

__device__ __forceinline__ void produce(Shared* shared, const TensorMap* x_map, const TensorMap* w_map,
                                        const Layer& layer) {
    Ring ring;
    bool leads = threadIdx.x == 0;
    u32 tiles = tile_count(layer);
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        Place place = tile_place(layer, tile);
        bool whole = layer.rows - place.row >= ROWS;
        // The other threads have run ahead; a wait by parity is only good from where the leader is.
        if (!whole) bar_sync(PRODUCERS_BARRIER, WARPGROUP);
        for (u32 depth = 0; depth < layer.inputs; depth += DEPTH, ring.next()) {
            if (whole && !leads) continue;
            Mbarrier* full = &shared->full[ring.stage];
            mbarrier_wait(&shared->empty[ring.stage], ring.parity ^ 1);
            if (leads) {
                mbarrier_expect_tx(full, B_BYTES + (whole ? A_BYTES : 0));
                cp_async_bulk_tensor_2d_load(shared->b[ring.stage], w_map, static_cast<int>(depth),
                                             static_cast<int>(place.col), full);
            }
            if (whole) {
                cp_async_bulk_tensor_2d_load(shared->a[ring.stage], x_map, static_cast<int>(depth),
                                             static_cast<int>(place.row), full);
            } else {
                copy_live_rows(shared->a[ring.stage], layer, place.row, depth);
                bar_sync(PRODUCERS_BARRIER, WARPGROUP);
            }
            if (leads) mbarrier_arrive(full);
        }
    }
}

// ---- Multiplying -----------------------------------------------------------------------------------------------------

constexpr u64 LAYOUT = wgmma_layout(Swizzle::bytes128, 16, 1024);

// Sums of one tile: 64 x 256 for this warpgroup.
__device__ __forceinline__ void multiply(float (&d)[COLS / 2], Shared* shared, Ring& ring, u32 group, u32 inputs) {
    bool signals = threadIdx.x % 32 == 0;
    u32 before = 0;
    for (u32 depth = 0; depth < inputs; depth += DEPTH, ring.next()) {
        mbarrier_wait(&shared->full[ring.stage], ring.parity);
        const u8* a = shared->a[ring.stage] + group * 64 * 128;
        const u8* b = shared->b[ring.stage];
        wgmma_fence(d);
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; k++) {
            u64 a_at = wgmma_descriptor(a + 32 * k, LAYOUT), b_at = wgmma_descriptor(b + 32 * k, LAYOUT);
            wgmma_mma_async<Major::K, Major::K>(d, a_at, b_at, depth + k > 0 ? ScaleD::one : ScaleD::zero);
        }
        wgmma_commit();
        // With this stage under way, the one before is through.
        wgmma_wait<1>();
        if (depth > 0 && signals) mbarrier_arrive(&shared->empty[before]);
        before = ring.stage;
    }
    wgmma_wait<0>(d);
    if (signals) mbarrier_arrive(&shared->empty[before]);
}

// ---- Storing ---------------------------------------------------------------------------------------------------------

// 16 rows x 64 columns of a warp, from `packed` (pairs of columns, wgmma's order) to `to` at (row, col).
__device__ __forceinline__ void store_rows(bf16* to, const u32 (&packed)[16], u8* staged, const Layer& layer, u32 row,
                                           u32 col) {
    u32 lane = threadIdx.x % 32;
    __syncwarp();  // the staged rows before are read
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const u32 four[4] = {packed[4 * j], packed[4 * j + 1], packed[4 * j + 2], packed[4 * j + 3]};
        stmatrix_x4(staged + swizzled(Swizzle::bytes128, lane % 16 * 128 + 32 * j + lane / 16 * 16), four);
    }
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 r = 4 * i + lane / 8, chunk = lane % 8;
        using Chunk = Vec<u32, 4>;
        if (row + r >= layer.rows) continue;
        Chunk values = *reinterpret_cast<const Chunk*>(staged + swizzled(Swizzle::bytes128, r * 128 + chunk * 16));
        *reinterpret_cast<Chunk*>(to + static_cast<u64>(row + r) * layer.lead + col + chunk * 8) = values;
    }
}

// Two columns of the bias; zero behind the last.
__device__ __forceinline__ float bias_at(const Layer& layer, u32 col) {
    return col < layer.outputs ? layer.bias[col] : 0.0f;
}

template <bool with_gelu>
__device__ __forceinline__ void finish(const float (&d)[COLS / 2], u8* staged, const Layer& layer, u32 row, u32 col) {
    u32 pair = 2 * (threadIdx.x % 4);
#pragma unroll
    for (u32 part = 0; part < COLS / 64; part++) {
        u32 first = col + 64 * part;
        if (first >= layer.lead) break;
        u32 packed[16];
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            const float* four = &d[32 * part + 4 * j];
            float left = bias_at(layer, first + 8 * j + pair), right = bias_at(layer, first + 8 * j + pair + 1);
            packed[2 * j] = pack_bf16x2(four[0] + left, four[1] + right);
            packed[2 * j + 1] = pack_bf16x2(four[2] + left, four[3] + right);
        }
        store_rows(with_gelu ? layer.pre : layer.y, packed, staged, layer, row, first);
        if constexpr (with_gelu) {
#pragma unroll
            for (u32 i = 0; i < 16; i++) packed[i] = pack_bf16x2(gelu(low_half(packed[i])), gelu(high_half(packed[i])));
            store_rows(layer.y, packed, staged, layer, row, first);
        }
    }
}

template <bool with_gelu>
__device__ __forceinline__ void consume(Shared* shared, const Layer& layer) {
    Ring ring;
    u32 group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x % WARPGROUP / 32;
    u8* staged = shared->staged[group * (WARPGROUP / 32) + warp];
    u32 tiles = tile_count(layer);
    float d[COLS / 2];
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        Place place = tile_place(layer, tile);
        multiply(d, shared, ring, group, layer.inputs);
        finish<with_gelu>(d, staged, layer, place.row + 64 * group + 16 * warp, place.col);
    }
}

// ---- Kernels ---------------------------------------------------------------------------------------------------------

template <bool with_gelu>
__device__ __forceinline__ void forward(Shared* shared, const TensorMap* x_map, const TensorMap* w_map,
                                        const Layer& layer) {
    if (threadIdx.x == 0) {
        prefetch_tensormap(x_map);
        prefetch_tensormap(w_map);
        for (u32 i = 0; i < STAGES; i++) {
            mbarrier_init(&shared->full[i], 1);
            mbarrier_init(&shared->empty[i], CONSUMERS * WARPGROUP / 32);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        produce(shared, x_map, w_map, layer);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        consume<with_gelu>(shared, layer);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nt_bias(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                          const bf16* __restrict__ x, const float* __restrict__ bias, bf16* __restrict__ y, u32 inputs,
                          u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    forward<false>(shared, &x_map, &w_map, Layer{x, bias, nullptr, y, inputs, outputs, lead, rows.count()});
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_hopper_nt_bias_gelu(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                               const bf16* __restrict__ x, const float* __restrict__ bias, bf16* __restrict__ pre,
                               bf16* __restrict__ y, u32 inputs, u32 outputs, u32 lead, Rows rows) {
    SHARED_MEMORY(Shared, shared);
    forward<true>(shared, &x_map, &w_map, Layer{x, bias, pre, y, inputs, outputs, lead, rows.count()});
}
