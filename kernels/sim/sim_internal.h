// sim_internal.h: what the files of the runtime share. Kernels see abi.h only.
//
// How to add a wrapper that needs the runtime (an instruction that blocks, orders, or touches shared memory):
//   1. Declare an extern "C" function in a header of its own, take fragments and results by value (abi.h says why), and
//      call it from the wrapper's twin in ptx_*_sim.cuh. Twins are compiled with the kernel and instrumented, so anything
//      that touches memory on behalf of hardware belongs into a .cpp beside this file. All .cpp files here make up the runtime.
//   2. In it, `Thread& self = current_thread()`. Check memory with check_read / check_write (they never return on an
//      error), then touch it.
//   3. To block: fill something in that the thread to wake you will find, call `block(self, "mbarrier wait", detail)`;
//      it returns after another thread called `wake(self)`. When nobody can run, the launch stops and the text of every
//      thread that blocks is reported, so the text is a full phrase. All threads of a block are `machine->threads[i]`.
//   4. To order memory: `release(self, clock)` lets the clock know all that self has done and known so far, and
//      `acquire(self, clock)` lets self know all that the clock knows. A barrier object holds a Clock. Where
//      threads meet and all know all, `synchronise(threads, count)`.
//   5. Something that is done by hardware after the instruction (a tensor copy that lands later): mark the bytes with
//      `begin_async_write` when it is issued (this checks for races as of now, and any access to them from here on is an error), and
//      `land_async_write` when it lands, just before the data is copied. The landing counts as a write of the issuing thread,
//      at a new time that nobody knows but `clock`; who acquires `clock` may read the data. The issuing thread itself is
//      always allowed to read it after the landing.
//   6. Errors: `fail(thread, "format", ...)`. It does not return, nor does it run destructors on the thread's stack.
//   State that lives per block (barrier objects) goes into an object that `on_block_start` is told about.
#pragma once

#include <cstdarg>
#include <string>
#include <vector>

#include "abi.h"
#include "fibre.h"

namespace sim {

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 MAX_THREADS = 1024;
constexpr u32 MAX_SHARED_BYTES = 227 * 1024;

// ---- Happens-before (clocks.cpp) -------------------------------------------------------------------------------------

// A tag says which thread, and when by the block's count of synchronisations: time << 10 | thread. Zero: never.
// Tags of one thread grow. The top bit marks bytes whose asynchronous copy is under way.
using Tag = u32;
constexpr Tag ASYNC = 1u << 31;
constexpr u32 MAX_TIME = (1u << 21) - 1;

inline u32 thread_of(Tag tag) {
    return tag & 1023u;
}
inline u32 time_of(Tag tag) {
    return (tag & ~ASYNC) >> 10;
}

// For each thread of the block, up to which time its accesses are known. Warps whose bit is not set: none known beyond
// the last __syncthreads.
struct Clock {
    u32 warps = 0;
    u32 at[MAX_THREADS];

    // Makes room for the threads of `warp`.
    void open(u32 warp);
    void join(const Clock& other);
    void join(u32 thread, u32 time);
    bool knows(Tag tag) const {
        u32 thread = thread_of(tag);
        return (warps >> thread / WARP & 1u) != 0 && time_of(tag) <= at[thread];
    }
};

// ---- Threads and blocks (scheduler.cpp) ------------------------------------------------------------------------------

enum class State : u8 { Runnable, Blocked, Exited };

struct AsyncCopy {
    u8* to;
    const u8* from;
    u32 bytes;
};

struct Thread {
    Context context;
    char* stack_low;
    SimDim3 place;
    u32 index;       // place in the block, x fastest
    State state;
    Tag tag;         // of accesses made now
    u32 access_id;   // the same for global memory; 0: not drawn yet
    u32 barriers;    // how many __syncthreads it has passed
    const char* waits_at;  // a phrase; while Blocked
    u64 waits_detail;      // printed after it in hexadecimal unless 0
    void* posted;          // arguments of the collective it waits at
    const void* pc;        // where in the kernel it is, while others run
    Clock known;
    u32 known_since;  // `known` counts only if this is the block's floor
    std::vector<AsyncCopy> copies;    // not yet landed, oldest first
    std::vector<u32> groups;          // committed groups: how many copies each holds
};

// A warp-wide operation that waits for lanes.
struct Collective {
    const char* name;
    u32 mask;
    u32 arrived;
};

struct Warp {
    u32 exited;          // lanes, as bits
    u32 at_syncthreads;  // the same
    u32 count;
    Collective pending[WARP];
};

constexpr u32 CELL_BYTES = 2;

// The shadow of memory, one entry per two bytes: who wrote last, and the last two who read (checks.h).
struct Cells {
    u32* writer;
    u32* reader;
    u32* earlier_reader;
};

// Global memory that the launch may touch, and its shadow (memory.cpp).
struct Region {
    u64 address, bytes;
    u32 access;
    bool tracked;  // some region over these bytes is written, so races are possible
    const char* name;
    struct Allocation* allocation;
};

// Everything about the launch that runs on this host thread.
struct Machine {
    // Hot: read by each checked access.
    Thread* current;
    u64 stack_low;
    u64 shared;        // address of shared memory
    Tag floor_tag;     // tags below this are known to all threads: they lie before the last __syncthreads
    u32 shared_bytes;
    Cells shared_shadow;
    u32 first_id;      // access ids from here on may belong to this launch

    const SimLaunch* launch;
    SimDim3 block;
    u32 block_number;
    u32 thread_count;
    u32 time;
    u64 random;
    std::vector<Thread*> threads;
    std::vector<Thread*> runnable;
    std::vector<Warp> warps;
    u32 exited;
    u32 at_syncthreads;
    std::vector<u32> syncthreads_times;  // the time after each __syncthreads of this block

    std::vector<Region> regions;
    Region *last_read, *last_write;

    Clock scratch;
    char place_texts[4][48];
    u32 next_place_text;

    Context scheduler;
    Context abandoned;  // the stack that an error left; never entered again
    bool failed;
    char* error;
    size_t error_bytes;
    const void* pc;  // where in the kernel the current thread asked for its last access or operation
    const void* error_pc;
};

extern __thread Machine* machine __attribute__((tls_model("initial-exec")));

inline Thread& current_thread() {
    return *machine->current;
}

// Stops the launch with "kernel: block (x, y, z) thread (x, y, z): " and the text.
[[noreturn]] void fail(Thread& thread, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Until `wake`.
void block(Thread& self, const char* waits_at, u64 detail = 0);
void wake(Thread& thread);

// A warp-wide operation: waits until all lanes of `mask` have come here with the same `name` (compared by address) and mask.
// The last one calls `finish`, which finds what each lane posted in lane_thread(last, lane).posted and may write there.
void meet(Thread& self, const char* name, u32 mask, void* posted, void (*finish)(Thread& last, u32 mask));

inline Thread& lane_thread(const Thread& thread, u32 lane) {
    return *machine->threads[thread.index / WARP * WARP + lane];
}

// To be called while the library is loaded. Before each block's threads start; after the last has exited; when nobody
// can run, before that is an error: true if somebody was woken. All may `fail`, except at the start.
void on_block_start(void (*callback)());
void on_block_end(void (*callback)());
void on_idle(bool (*callback)());

// "(x, y, z)" of a thread; good until the fourth next call.
const char* place_text(const Thread& thread);

// ---- Order -----------------------------------------------------------------------------------------------------------

// Later accesses of `self` are told apart from those so far.
void advance(Thread& self);
void release(Thread& self, Clock& into);
void acquire(Thread& self, const Clock& from);
// A barrier: what each of the threads has done and known so far, all of them know.
void synchronise(Thread* const* threads, u32 count);
// The same for the whole block, at no cost to later checks.
void synchronise_block();
// Whether the access with `tag` happens before what `self` does now.
bool ordered(Thread& self, Tag tag);

// ---- Memory checks (shadow.cpp) -------------------------------------------------------------------------------------

// `what` completes the sentence "thread ... <what> 4 bytes at ...": "reads", "ldmatrix reads". Any kind of memory.
void check_read(Thread& self, const void* address, u32 bytes, const char* what = "reads");
void check_write(Thread& self, const void* address, u32 bytes, const char* what = "writes");
// Shared memory and nothing else.
void check_shared_read(Thread& self, const void* address, u32 bytes, const char* what);
void check_shared_write(Thread& self, const void* address, u32 bytes, const char* what);
void check_global_read(Thread& self, const void* address, u32 bytes, const char* what);
void check_global_write(Thread& self, const void* address, u32 bytes, const char* what);
void check_aligned(Thread& self, const void* address, u32 bytes, u32 alignment, const char* what);

// Who wrote a word of shared memory last: 0 for nobody, with ASYNC while a copy is under way.
Tag shared_write_tag(const void* address);

void begin_async_write(Thread& self, void* address, u32 bytes, const char* what);
void land_async_write(Thread& issuer, void* address, u32 bytes, Clock* clock);

}  // namespace sim
