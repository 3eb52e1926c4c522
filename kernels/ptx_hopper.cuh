// ptx_hopper.cuh: the PTX instructions of Hopper, each wrapped once: mbarriers, bulk and tensor copies, wgmma.
//
// Words and section titles are those of the PTX manual ("PTX ISA", NVIDIA). Everything needs sm_90; wgmma needs sm_90a and
// exists on no other architecture, so elsewhere these wrappers are left out. sim/ptx_hopper_sim.cuh holds the same
// functions in host C++ and shares the types.
#pragma once

// ---- Types that host and device share --------------------------------------------------------------------------------

// "Tensor-map": an opaque description of a tensor in global memory and of the box that one copy moves. The host fills it
// (cuTensorMapEncodeTiled; sim_encode_tensor_map for the simulator), a kernel takes it as
// `const __grid_constant__ TensorMap map` and passes its address on.
struct alignas(64) TensorMap {
    u64 words[16];
};

// "Mbarrier object": opaque, 8 bytes of shared memory, 8-byte aligned. Touched by mbarrier_* only.
struct alignas(8) Mbarrier {
    u64 opaque;
};

// How 16-byte chunks are spread over the banks: within every 1024, 512 or 256 bytes (by absolute address) the address
// bits that count rows are XORed onto those that count chunks. The values are those of a matrix descriptor.
//   bytes128  bits 4..6 ^= bits 7..9     bytes64  bits 4..5 ^= bits 7..8     bytes32  bit 4 ^= bit 7
enum class Swizzle : u32 { none = 0, bytes128 = 1, bytes64 = 2, bytes32 = 3 };

// Where a byte of an unswizzled tile lies in shared memory; both offsets count from a multiple of 1024.
constexpr __device__ __forceinline__ u32 swizzled(Swizzle swizzle, u32 offset) {
    u32 rows = swizzle == Swizzle::bytes128 ? 0x380u
             : swizzle == Swizzle::bytes64  ? 0x180u
             : swizzle == Swizzle::bytes32  ? 0x080u
                                            : 0u;
    return offset ^ ((offset & rows) >> 3);
}

// "Major-ness" of a matrix in shared memory: which index of A(m, k) or B(k, n) has neighbouring elements. `K` is
// imm-trans 0 (rows of A, columns of B contiguous), `MN` is imm-trans 1.
enum class Major : int { K = 0, MN = 1 };

// scale-d: whether wgmma adds to the accumulators or overwrites them.
enum class ScaleD : u32 { zero = 0, one = 1 };

// "Matrix Descriptor Format" of wgmma, all but the start address (wgmma_descriptor adds that):
//   bits 0..13   start address >> 4
//   bits 16..29  leading dimension byte offset >> 4
//   bits 32..45  stride dimension byte offset >> 4
//   bits 49..51  matrix base offset: 0, which asks that the swizzle's pattern start at a multiple of 1024, 512, 256 bytes
//   bits 62..63  swizzling mode
// For 16-bit elements ("Strides", "Canonical Layouts"), W = the swizzle's width, 128, 64 or 32 bytes:
//   K-major, swizzled    8 rows of W bytes, of which 32 are this k16    leading: unused          stride: next 8 m or n
//   K-major, none        8 rows of 16 bytes: 8 k                        leading: next 8 k        stride: next 8 m or n
//   MN-major, swizzled   8 rows (of k) of W bytes: W/2 m or n           leading: next W/2 m/n    stride: next 8 k
//   MN-major, none       8 rows (of k) of 16 bytes: 8 m or n            leading: next 8 k        stride: next 8 m or n
// "next": bytes from one such group of 8 rows to the one that continues it in that direction.
constexpr __device__ __forceinline__ u64 wgmma_layout(Swizzle swizzle, u32 leading_bytes, u32 stride_bytes) {
    u64 leading = (leading_bytes & 0x3ffffu) >> 4;
    u64 stride = (stride_bytes & 0x3ffffu) >> 4;
    return leading << 16 | stride << 32 | static_cast<u64>(swizzle) << 62;
}

// The descriptor of the matrix that starts at `start`. A K-major swizzled tile is walked along k by moving the start 32
// bytes at a time within its rows of W bytes: the swizzle goes by absolute address, so nothing else changes.
__device__ __forceinline__ u64 wgmma_descriptor(const void* start, u64 layout) {
    return layout | (shared_address(start) & 0x3ffffu) >> 4;
}

#ifndef HANDBERT_SIM  // the simulator's are in sim/ptx_hopper_sim.cuh

#if __CUDA_ARCH__ >= 900

// ---- mbarrier --------------------------------------------------------------------------------------------------------

// mbarrier.init: phase 0, `count` pending arrivals, tx-count 0. Other threads may use it after a barrier, the copy engine
// after fence_mbarrier_init too.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// mbarrier.inval: the memory may be used for something else. Nobody may still wait.
__device__ __forceinline__ void mbarrier_inval(Mbarrier* barrier) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// fence.mbarrier_init.release.cluster: makes this thread's mbarrier_init visible to the async proxy.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// mbarrier.arrive, .release.cta: one pending arrival less. The phase completes when no arrival is pending and tx-count is
// 0; the next begins at once, with `count` pending arrivals again.
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// mbarrier.expect_tx: the phase also waits for `bytes` more bytes of copies (tx-count += bytes).
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier* barrier, u32 bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// mbarrier.arrive.expect_tx: mbarrier_expect_tx, then mbarrier_arrive.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// mbarrier.try_wait.parity, .acquire.cta: whether the phase of this parity (0 for the first, then 1, 0, …) is complete. It
// may be the current phase or the one before, so a fresh barrier answers true for parity 1. May sleep a while.
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier* barrier, u32 parity) {
    u32 complete;
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}"
        : "=r"(complete)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return complete != 0;
}

// mbarrier.try_wait until it is true.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, u32 parity) {
    while (!mbarrier_try_wait(barrier, parity)) {
    }
}

// ---- Proxies and named barriers --------------------------------------------------------------------------------------

// fence.proxy.async.shared::cta: this thread's ordinary accesses to shared memory before it come before accesses through
// the async proxy (bulk copies, wgmma) after it. Each thread that wrote runs it, then the barrier, then the copy or wgmma.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// bar.sync: waits until `threads` threads (a multiple of 32) of the block have come to barrier `id`, 1..15 (0 is
// __syncthreads); orders memory among them.
__device__ __forceinline__ void bar_sync(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.arrive: counts among the `threads` of barrier `id` without waiting. Releases, does not acquire.
__device__ __forceinline__ void bar_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// elect.sync: true in one of the warp's 32 lanes, always the same one. All 32 take part.
__device__ __forceinline__ bool elect_sync() {
    u32 elected;
    asm volatile(
        "{\n"
        ".reg .pred elected;\n"
        "elect.sync _|elected, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, elected;\n"
        "}"
        : "=r"(elected));
    return elected != 0;
}

// ---- Bulk copies -----------------------------------------------------------------------------------------------------

// cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes: one thread starts a copy of `bytes` (a multiple of 16;
// both ends 16-byte aligned). When they have landed, as many are taken off the barrier's tx-count.
__device__ __forceinline__ void cp_async_bulk_load(void* to, const void* from, u32 bytes, Mbarrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

// prefetch.tensormap: fetches the descriptor ahead of its first use.
__device__ __forceinline__ void prefetch_tensormap(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// cp.async.bulk.tensor.2d.shared::cluster.global: copies the map's box whose first element is (column, row) to shared
// memory, swizzled as the map says; elements outside the tensor become zero. Always counts the whole box's bytes on the
// barrier. `to` is 128-byte aligned, and a multiple of 1024 where the map swizzles.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_load(void* to, const TensorMap* map, int column, int row,
                                                             Mbarrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(to)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// cp.async.bulk.tensor.2d.global.shared::cta: copies shared memory to the map's box at (column, row); elements outside the
// tensor are not written. Joins this thread's open bulk async-group.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_store(const TensorMap* map, int column, int row,
                                                              const void* from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(column),
                 "r"(row), "r"(shared_address(from))
                 : "memory");
}

// cp.async.bulk.commit_group: closes this thread's bulk async-group.
__device__ __forceinline__ void cp_async_bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// cp.async.bulk.wait_group: until at most `pending` of this thread's newest groups are not complete.
template <int pending>
__device__ __forceinline__ void cp_async_bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

// cp.async.bulk.wait_group.read: until all but `pending` have read their source, which may then be overwritten.
template <int pending>
__device__ __forceinline__ void cp_async_bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// ---- Fragments and dependent launches --------------------------------------------------------------------------------

// stmatrix.sync.aligned.m8n8.x4.shared.b16: ldmatrix backwards. Lane l gives, of each of four 8x8 matrices, elements
// 2(l % 4) and 2(l % 4) + 1 of row l / 4; lanes 8i..8i+8 give the addresses of matrix i's rows (16 bytes, aligned).
__device__ __forceinline__ void stmatrix_x4(void* row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// stmatrix with .trans: lane l gives elements 2(l % 4), 2(l % 4) + 1 of column l / 4.
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// griddepcontrol.launch_dependents: the launch that follows may begin once every block has said so or ended.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// griddepcontrol.wait: until the launches before are complete and their memory is visible.
__device__ __forceinline__ void griddepcontrol_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

#endif  // __CUDA_ARCH__ >= 900

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// ---- Warpgroups: setmaxnreg and wgmma --------------------------------------------------------------------------------
// A warpgroup is four consecutive warps of which the first has a number divisible by 4. All its 128 threads run these.

// setmaxnreg.dec / .inc: gives registers back to the block, or waits until it can take more; `registers` per thread from
// now on (24..256, a multiple of 8). The kernel needs __launch_bounds__(threads, 1).
template <int registers>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// No instruction: keeps the compiler from moving other uses of accumulators across this point.
template <int r>
__device__ __forceinline__ void pin_registers(float (&d)[r]) {
#pragma unroll
    for (int i = 0; i < r; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// wgmma.fence: orders earlier accesses to the registers of the wgmma that follow: `d`, and A where it is in registers.
// Needed before the first wgmma and whenever other instructions touched those registers since.
template <int... r>
__device__ __forceinline__ void wgmma_fence(float (&... d)[r]) {
    (pin_registers(d), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// wgmma.commit_group: closes the group of this warp's wgmma since the last one.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// wgmma.wait_group: until at most `pending` of the newest groups are under way. Only then may the others' accumulators be
// touched, their shared memory overwritten. `d`: the accumulators that are used after this wait; they must be complete.
template <int pending, int... r>
__device__ __forceinline__ void wgmma_wait(float (&... d)[r]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
    (pin_registers(d), ...);
}

// wgmma.mma_async.sync.aligned.m64nNk16.f32.bf16.bf16: d (+)= A(64, 16) B(16, N); N = 64, 128, 192, 256 by the size of d.
// A and B are matrix descriptors of shared memory, or A is in registers. "Matrix Fragments for wgmma.mma_async.m64nNk16":
// with w the warp of the warpgroup, g = lane / 4, t = 2(lane % 4):
//   d[4j .. 4j+2] = D(16w + g, 8j + t .. +1)    d[4j+2 .. 4j+4] = D(16w + g + 8, 8j + t .. +1)
//   a[0] = A(16w + g, t..t+1)   a[1] = A(16w + g + 8, t..)   a[2] = A(16w + g, t + 8..)   a[3] = A(16w + g + 8, t + 8..)
// It returns at once: see wgmma_fence before it, wgmma_commit and wgmma_wait after it.
#define HANDBERT_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HANDBERT_F16(i) HANDBERT_F4(i), HANDBERT_F4(i + 4), HANDBERT_F4(i + 8), HANDBERT_F4(i + 12)
#define HANDBERT_F32(i) HANDBERT_F16(i), HANDBERT_F16(i + 16)
#define HANDBERT_F64(i) HANDBERT_F32(i), HANDBERT_F32(i + 32)
#define HANDBERT_F96(i) HANDBERT_F64(i), HANDBERT_F32(i + 64)
#define HANDBERT_F128(i) HANDBERT_F64(i), HANDBERT_F64(i + 64)
#define HANDBERT_REGISTERS_32                                                                                          \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HANDBERT_REGISTERS_64 HANDBERT_REGISTERS_32 ", "                                                               \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HANDBERT_REGISTERS_96 HANDBERT_REGISTERS_64 ", "                                                               \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                 \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define HANDBERT_REGISTERS_128 HANDBERT_REGISTERS_96 ", "                                                              \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                     \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// Operands after the r = N / 2 accumulators are numbered from r on: o0 = r, o1 = r + 1, ...
#define HANDBERT_WGMMA(n, r, o0, o1, o2, o3, o4, o5, o6)                                                               \
    template <Major a_major, Major b_major>                                                                            \
    __device__ __forceinline__ void wgmma_mma_async(float (&d)[r], u64 a, u64 b, ScaleD scale_d) {                     \
        asm volatile(                                                                                                  \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %" #o2 ", 0;\n"                                                      \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" HANDBERT_REGISTERS_##r "}, %" #o0 ", %" #o1   \
            ", add, 1, 1, %" #o3 ", %" #o4 ";\n}"                                                                      \
            : HANDBERT_F##r(0)                                                                                         \
            : "l"(a), "l"(b), "r"(static_cast<u32>(scale_d)), "n"(static_cast<int>(a_major)),                          \
              "n"(static_cast<int>(b_major)));                                                                         \
    }                                                                                                                  \
    template <Major b_major>                                                                                           \
    __device__ __forceinline__ void wgmma_mma_async(float (&d)[r], const u32 (&a)[4], u64 b, ScaleD scale_d) {         \
        asm volatile(                                                                                                  \
            "{\n.reg .pred add;\nsetp.ne.u32 add, %" #o5 ", 0;\n"                                                      \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" HANDBERT_REGISTERS_##r "}, {%" #o0 ", %" #o1  \
            ", %" #o2 ", %" #o3 "}, %" #o4 ", add, 1, 1, %" #o6 ";\n}"                                                 \
            : HANDBERT_F##r(0)                                                                                         \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<u32>(scale_d)),                      \
              "n"(static_cast<int>(b_major)));                                                                         \
    }

HANDBERT_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
HANDBERT_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
HANDBERT_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
HANDBERT_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef HANDBERT_WGMMA

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

#endif  // HANDBERT_SIM
