// matmul_hopper.cuh: a persistent product for sm_90a: wgmma, fed by tensor copies. For matmul_hopper.cu.
//   d [ROWS, COLS] f32 = a [ROWS, depth] b [depth, COLS], item after item of what there is to do
// From the outside in: a block takes every gridDim-th item, a tile of the result over all or a part of the depth. Its first
// warpgroup copies stages of both operands into a ring and runs ahead, into the next item too; the other two multiply, 64
// rows of the tile each, and hand their sums, in registers, to the tail that `run` was given. While they wait for wgmma
// they do what the tail has left to do.
#pragma once

#include "products.cuh"

constexpr u32 ROWS = 128;
constexpr u32 COLS = 256;
constexpr u32 DEPTH = 64;
constexpr u32 STAGES = 3;
constexpr u32 WARPGROUP = 128;
constexpr u32 CONSUMERS = 2;  // warpgroups
constexpr u32 GROUP_ROWS = ROWS / CONSUMERS;
constexpr u32 CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP;
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr u32 BOX_COLS = 64;  // 128 bytes, the swizzle's width
constexpr u32 BOX_ROW_BYTES = BOX_COLS * 2;
constexpr u32 PATCH_BYTES = 16 * BOX_ROW_BYTES;  // a warp's rows, 64 columns
constexpr u32 PATCHES = COLS / BOX_COLS;         // side by side, a warp's part of a tile

// Named barriers.
constexpr u32 PRODUCERS_BARRIER = 1;
constexpr u32 CONSUMERS_BARRIER = 2;

// 128 threads with 56 registers and 256 with 224 make 64,512 of an SM's 65,536.
constexpr int PRODUCER_REGISTERS = 56;
constexpr int CONSUMER_REGISTERS = 224;

struct Shared {
    u8 a[STAGES][ROWS * DEPTH * 2];
    u8 b[STAGES][COLS * DEPTH * 2];
    u8 staged[CONSUMER_WARPS][PATCHES][PATCH_BYTES];
    float columns[CONSUMER_WARPS][COLS];  // biases, or column sums
    Mbarrier full[STAGES];
    Mbarrier empty[STAGES];
};

// ---- What there is to do ---------------------------------------------------------------------------------------------

// A tile of the result, and the stretch of the depth to sum over.
struct Item {
    u32 row, col;
    u32 first, end;  // of the depth
    u32 part;        // which, where the depth is split
};

// All tiles of a result [rows, cols], over each part of the depth. Tiles are numbered along the columns first, part after
// part, so that what runs together shares a few tiles of a and all of b.
struct Work {
    u32 rows, cols, depth;
    u32 share;  // of the depth for each part but the last: all of it, or a multiple of DEPTH

    __device__ __forceinline__ u32 tiles() const {
        return ceil_div(rows, ROWS) * ceil_div(cols, COLS);
    }

    __device__ __forceinline__ u32 items() const {
        return share > 0 ? tiles() * ceil_div(depth, share) : 0;
    }

    __device__ __forceinline__ Item item(u32 i) const {
        u32 across = ceil_div(cols, COLS), tile = i % tiles(), part = i / tiles();
        return Item{tile / across * ROWS, tile % across * COLS, part * share, min((part + 1) * share, depth), part};
    }
};

// ---- Operands --------------------------------------------------------------------------------------------------------

// What an operand is: activations or their gradients, of whose rows some are live, or a weight.
enum class Of { Tokens, Weight };

// An operand, OUTER x DEPTH of it a stage; its outer index counts the result's rows (a) or columns (b). How it lies:
//   Major::K    memory has a row for each outer index: one box of OUTER rows
//   Major::MN   memory has a row for each step of the depth: boxes of DEPTH rows, each 64 outer indices
template <Of of, Major major, u32 OUTER>
struct Operand {
    static constexpr Major MAJOR = major;
    static constexpr bool DEEP_ROWS = major == Major::MN;
    static constexpr u32 BYTES = OUTER * DEPTH * 2;
    static constexpr u32 BOX_ROWS = DEEP_ROWS ? DEPTH : OUTER;
    static constexpr u32 BOX_BYTES = BOX_ROWS * BOX_ROW_BYTES;
    static constexpr u32 BOXES = BYTES / BOX_BYTES;

    const TensorMap* map;
    // Tokens:
    const bf16* matrix;
    u32 lead;  // from row to row, and its columns
    u32 live;  // rows that may be read

    // Whether the stage at (outer, depth) lies in rows that may be read, so that a tensor copy may fetch it.
    __device__ __forceinline__ bool is_whole(u32 outer, u32 depth) const {
        return of == Of::Weight || (DEEP_ROWS ? depth : outer) + BOX_ROWS <= live;
    }

    // Starts the tensor copies of a stage; what they fetch from beyond the matrix is zero.
    __device__ __forceinline__ void copy(u8* to, u32 outer, u32 depth, Mbarrier* full) const {
        int col = static_cast<int>(DEEP_ROWS ? outer : depth), row = static_cast<int>(DEEP_ROWS ? depth : outer);
#pragma unroll
        for (u32 i = 0; i < BOXES; i++)
            cp_async_bulk_tensor_2d_load(to + i * BOX_BYTES, map, col + static_cast<int>(i * BOX_COLS), row, full);
    }

    // Starts the same copies thread by thread, with zeros for the rows that are not live. Eight threads fetch a row of a
    // box, 16 bytes each.
    __device__ __forceinline__ void copy_live_rows(u8* to, u32 outer, u32 depth) const {
        u32 chunk = threadIdx.x % 8, first_row = DEEP_ROWS ? depth : outer;
#pragma unroll 1
        for (u32 i = 0; i < BOXES; i++) {
            u32 col = (DEEP_ROWS ? outer : depth) + i * BOX_COLS;
#pragma unroll 4
            for (u32 r = threadIdx.x / 8; r < BOX_ROWS; r += WARPGROUP / 8) {
                bool live_here = first_row + r < live && col < lead;
                const bf16* from = matrix + (live_here ? static_cast<u64>(first_row + r) * lead + col + chunk * 8 : 0);
                u32 offset = swizzled(Swizzle::bytes128, r * BOX_ROW_BYTES + chunk * 16);
                cp_async_16(to + i * BOX_BYTES + offset, from, live_here ? 16 : 0);
            }
        }
    }

    // Of the first 16 steps of depth; `outer` is a multiple of 64 within the stage.
    __device__ static __forceinline__ u64 descriptor(const u8* stage, u32 outer) {
        constexpr u64 LAYOUT = wgmma_layout(Swizzle::bytes128, DEEP_ROWS ? BOX_BYTES : 16, 8 * BOX_ROW_BYTES);
        return wgmma_descriptor(stage + (DEEP_ROWS ? outer / BOX_COLS * BOX_BYTES : outer * BOX_ROW_BYTES), LAYOUT);
    }

    // From a descriptor to that of the next 16 steps: what its address, of 16 bytes each, grows by.
    static constexpr u32 NEXT = (DEEP_ROWS ? 16 * BOX_ROW_BYTES : 16 * 2) / 16;
};

// ---- The ring --------------------------------------------------------------------------------------------------------

// As both sides walk it: stage and turn of step after step, across items.
struct Ring {
    u32 stage = 0;
    u32 parity = 0;  // of the turn: 0, 1, 0, ...

    __device__ __forceinline__ void next() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

template <class A, class B>
__device__ __forceinline__ void produce(Shared* shared, const A& a, const B& b, const Work& work) {
    Ring ring;
    bool leads = threadIdx.x == 0;
    u32 items = work.items();
    for (u32 i = blockIdx.x; i < items; i += gridDim.x) {
        Item item = work.item(i);
        for (u32 depth = item.first; depth < item.end; depth += DEPTH, ring.next()) {
            bool a_whole = a.is_whole(item.row, depth), b_whole = b.is_whole(item.col, depth);
            bool whole = a_whole && b_whole;
            if (whole && !leads) continue;
            if (!whole) {
                // The others have run ahead to here; a wait by parity is only good from where the leader is.
                __syncwarp();
                bar_sync(PRODUCERS_BARRIER, WARPGROUP);
            }
            Mbarrier* full = &shared->full[ring.stage];
            u8 *a_stage = shared->a[ring.stage], *b_stage = shared->b[ring.stage];
            mbarrier_wait(&shared->empty[ring.stage], ring.parity ^ 1);
            if (leads && (a_whole || b_whole)) {
                mbarrier_expect_tx(full, (a_whole ? A::BYTES : 0) + (b_whole ? B::BYTES : 0));
                if (a_whole) a.copy(a_stage, item.row, depth, full);
                if (b_whole) b.copy(b_stage, item.col, depth, full);
            }
            if (!whole) {
                if (!a_whole) a.copy_live_rows(a_stage, item.row, depth);
                if (!b_whole) b.copy_live_rows(b_stage, item.col, depth);
                cp_async_commit();
                cp_async_wait<0>();
                fence_proxy_async();
                __syncwarp();
                bar_sync(PRODUCERS_BARRIER, WARPGROUP);
            }
            if (leads) mbarrier_arrive(full);
        }
    }
}

// Sums of one item: 64 x 256 for this warpgroup. Calls `meanwhile(i)` for each i below `pieces`, while wgmma run as far as
// there are stages enough.
template <class A, class B, u32 pieces, class Meanwhile>
__device__ __forceinline__ void multiply(float (&d)[COLS / 2], Shared* shared, Ring& ring, u32 group, const Item& item,
                                         Meanwhile meanwhile) {
    bool signals = threadIdx.x % WARP == 0;
    u32 before = 0, piece = 0;
    for (u32 depth = item.first; depth < item.end; depth += DEPTH, ring.next()) {
        mbarrier_wait(&shared->full[ring.stage], ring.parity);
        u64 a = A::descriptor(shared->a[ring.stage], group * GROUP_ROWS), b = B::descriptor(shared->b[ring.stage], 0);
        wgmma_fence(d);
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; k++) {
            ScaleD scale_d = k > 0 || depth > item.first ? ScaleD::one : ScaleD::zero;
            wgmma_mma_async<A::MAJOR, B::MAJOR>(d, a + k * A::NEXT, b + k * B::NEXT, scale_d);
        }
        wgmma_commit();
        // With this stage under way, the one before is through.
        wgmma_wait<1>();
        if (depth > item.first && signals) mbarrier_arrive(&shared->empty[before]);
        before = ring.stage;
        if constexpr (pieces > 0) {
            if (piece < pieces) meanwhile(piece++);
            __syncwarp();  // wgmma wants the warp whole
        }
    }
    if constexpr (pieces > 0) {
#pragma unroll 1
        while (piece < pieces) meanwhile(piece++);
    }
    wgmma_wait<0>(d);
    if (signals) mbarrier_arrive(&shared->empty[before]);
}

// Runs a block's items. `Tail` says what becomes of sums in a consuming thread, each of which has one of its own:
//   tail.begin(item)     before it is multiplied
//   tail.meanwhile(i)    each i below Tail::PIECES, before its sums are complete
//   tail.finish(d)       its sums, as wgmma lays them out
//   tail.end()           after the last
template <class A, class B, class Tail>
__device__ __forceinline__ void run(Shared* shared, const A& a, const B& b, const Work& work, Tail tail) {
    if (threadIdx.x == 0) {
        prefetch_tensormap(a.map);
        prefetch_tensormap(b.map);
        for (u32 i = 0; i < STAGES; i++) {
            mbarrier_init(&shared->full[i], 1);
            mbarrier_init(&shared->empty[i], CONSUMER_WARPS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        produce(shared, a, b, work);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        Ring ring;
        // From one lane, so that the compiler sees that a warp has but one.
        u32 group = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0) - 1;
        float d[COLS / 2];
        u32 items = work.items();
        for (u32 i = blockIdx.x; i < items; i += gridDim.x) {
            Item item = work.item(i);
            tail.begin(item);
            multiply<A, B, Tail::PIECES>(d, shared, ring, group, item, [&](u32 piece) { tail.meanwhile(piece); });
            tail.finish(d);
        }
        tail.end();
    }
}
