// runtime.h: what the runtime's own files share beyond sim_internal.h.
#pragma once

#include <csignal>
#include <string>

#include "sim_internal.h"

extern "C" {
extern __thread SimDim3 threadIdx __attribute__((tls_model("initial-exec")));
extern __thread SimDim3 blockIdx __attribute__((tls_model("initial-exec")));
extern __thread SimDim3 blockDim __attribute__((tls_model("initial-exec")));
extern __thread SimDim3 gridDim __attribute__((tls_model("initial-exec")));
}

namespace sim {

// ---- scheduler.cpp ---------------------------------------------------------------------------------------------------

extern const char SYNCTHREADS[];

// "1st", "2nd".
std::string ordinal(u32 n);
// What a thread waits at, as the rest of a sentence.
std::string wait_text(const Thread& thread);
// Keeps the first error of a launch.
void record_failure(Thread& thread, const char* text);
// Leaves the current thread for good and goes back to the launch.
[[noreturn]] void abandon_block();

// ---- warp.cpp --------------------------------------------------------------------------------------------------------

// `self` goes where it needs some of `lanes` of its warp: an error if one of them waits for it. `does` is what it did, for
// the text.
void check_wanted(Thread& self, const char* does, u32 lanes);

// ---- memory.cpp ------------------------------------------------------------------------------------------------------

struct Allocation {
    u8* data;
    u64 bytes;
    u8* written;    // per cell
    u32* accesses;  // three arrays of cells, made when first needed
    // The launch that was last to promise to write these bytes, and under which name.
    struct Promise {
        u64 address, bytes;
        std::string kernel, region;
    };
    std::vector<Promise> promises;

    u64 cells() const {
        return (bytes + CELL_BYTES - 1) / CELL_BYTES;
    }
    u64 cell(u64 address) const {
        return (address - reinterpret_cast<u64>(data)) / CELL_BYTES;
    }
    Cells shadow(u64 first_cell) const {
        return {accesses + first_cell, accesses + cells() + first_cell, accesses + 2 * cells() + first_cell};
    }
};

// Finds the allocations of a launch's regions; records an error and returns false if that fails.
bool bind_regions(Machine& m);
// "; layernorm_forward should have written it (y + 512)", or nothing.
std::string promise_text(const Allocation& allocation, u64 address);

// ---- shadow.cpp ------------------------------------------------------------------------------------------------------

// Makes the host thread's shared memory; false if there is no room for it.
bool start_shared_memory(Machine& m);
// For a new block: nothing in it was ever written.
void clear_shared_memory(Machine& m);

// ---- ids.cpp ---------------------------------------------------------------------------------------------------------

// Accesses to global memory are tagged with ids that are never used twice in a process, so that shadows need no clearing.
struct AccessRecord {
    u32 block;
    Tag tag;
};

// Ids from here on are fresh.
u32 next_access_id();
u32 draw_access_id(Thread& self);
// Who drew it; null if nobody did in this launch.
const AccessRecord* find_access(u32 id);
void forget_accesses();

// ---- source.cpp ------------------------------------------------------------------------------------------------------

// A second line for an error: the line of the kernel that `pc`, a return address, belongs to, and those it was inlined
// into; or nothing.
std::string source_text(const void* pc);

// ---- fault.cpp -------------------------------------------------------------------------------------------------------

// While one lives, faults on this host thread stop its launch.
class FaultGuard {
  public:
    FaultGuard();
    ~FaultGuard();

  private:
    stack_t stack_before;
};

}  // namespace sim
