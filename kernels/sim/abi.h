// abi.h: the C functions between compiled kernels, the simulator's runtime, and the programs that launch kernels.
#pragma once

#include <cstddef>
#include <cstdint>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// CUDA's dim3 and uint3.
struct SimDim3 {
    u32 x, y, z;
};

// Fragments travel by value: a fragment whose address were taken would be memory to the compiler, and each access to it
// a call into the checks.
struct SimPair {
    u32 at[2];
};
struct SimQuad {
    u32 at[4];
};
struct SimFloat4 {
    float at[4];
};

// ---- What kernels call -----------------------------------------------------------------------------------------------

enum SimShuffle : u32 { SIM_SHUFFLE_INDEX, SIM_SHUFFLE_UP, SIM_SHUFFLE_DOWN, SIM_SHUFFLE_XOR };
enum SimVote : u32 { SIM_VOTE_BALLOT, SIM_VOTE_ANY, SIM_VOTE_ALL };

extern "C" {

void* sim_shared_memory();
u32 sim_shared_address(const void* pointer);
// The pointer that sim_shared_address turned into `address`.
void* sim_shared_pointer(u32 address);

void sim_syncthreads();
void sim_syncwarp(u32 mask);
u32 sim_shuffle(SimShuffle how, u32 mask, u32 value, u32 lane, u32 width);
u32 sim_vote(SimVote how, u32 mask, u32 predicate);

SimQuad sim_ldmatrix_x4(const void* row, u32 transposed);
SimFloat4 sim_mma_m16n8k16(SimFloat4 d, SimQuad a, SimPair b);

void sim_cp_async_16(void* to, const void* from, u32 bytes);
void sim_cp_async_commit();
void sim_cp_async_wait(u32 pending);

// ---- What launching programs call ------------------------------------------------------------------------------------

enum SimAccess : u32 {
    SIM_READ = 1,
    SIM_WRITE = 2,   // marked as never written before the launch
    SIM_UPDATE = 3,  // read and written
};

// A stretch of memory a launch may touch.
struct SimRegion {
    u64 address;
    u64 bytes;
    u32 access;        // a SimAccess
    const char* name;  // for error texts; may be null
};

// What a kernel takes, in bytes for each parameter.
constexpr u32 SIM_MOST_PARAMETERS = 31;
struct SimParameters {
    u32 count;
    u32 bytes[SIM_MOST_PARAMETERS];
};

struct SimLaunch {
    const char* kernel;
    void (*entry)(void** args);
    u32 grid[3];
    u32 block[3];
    u32 most_threads;  // of a block, as the kernel's __launch_bounds__ say; 0 where it has none
    u32 shared_bytes;
    u64 seed;  // decides the order of blocks and threads, and nothing else does
    void** args;  // each aligned as its type wants
    const SimRegion* regions;
    u32 region_count;
};

// Fresh memory, 256-byte aligned, never written as far as the checks know. Null when there is none.
void* sim_alloc(u64 bytes);
void sim_free(void* address);

// The host wrote here. Returns 0, or 1 when it is not inside one allocation.
int sim_host_written(u64 address, u64 bytes);

// What lies here is good for nothing: it counts as never written, and `kernel` was to write it, as part of `region`. Returns
// 0, or 1 when it is not inside one allocation.
int sim_host_promised(u64 address, u64 bytes, const char* kernel, const char* region);

// Whether all of it has been written. Returns 0, or 1 with the first bad byte's address and a text that says who should
// have written it.
int sim_check_written(u64 address, u64 bytes, u64* first_bad, char* error, size_t error_bytes);

// Runs all blocks. Returns 0, or 1 with the text of what stopped it.
int sim_launch(const SimLaunch* launch, char* error, size_t error_bytes);

}  // extern "C"
