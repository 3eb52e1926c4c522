// shadow.cpp: is this access allowed? In bounds, written before it is read, and in order with what others did. Here is what
// checks.h leaves over: shared memory itself, entries that may conflict, and the texts of what went wrong.

#include "checks.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <memory>

namespace sim {

// ---- Shared memory ---------------------------------------------------------------------------------------------------

constexpr u32 SHARED_CELLS = MAX_SHARED_BYTES / CELL_BYTES;
constexpr int POISON = 0xC5;

// Of one host thread. Fenced, so that running over finds nothing of ours.
struct SharedMemory {
    static constexpr size_t FENCE = 64 * 1024;
    static constexpr size_t BYTES = 256 * 1024;
    u8* mapped = nullptr;
    std::vector<u32> shadow;

    ~SharedMemory() {
        if (mapped != nullptr) munmap(mapped, BYTES + 2 * FENCE);
    }
};

static SharedMemory& shared_memory() {
    static thread_local auto memory = std::make_unique<SharedMemory>();
    return *memory;
}

bool start_shared_memory(Machine& m) {
    SharedMemory& memory = shared_memory();
    if (memory.mapped == nullptr) {
        void* fresh = mmap(nullptr, SharedMemory::BYTES + 2 * SharedMemory::FENCE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fresh == MAP_FAILED) return false;
        memory.mapped = static_cast<u8*>(fresh);
        mprotect(memory.mapped + SharedMemory::FENCE, SharedMemory::BYTES, PROT_READ | PROT_WRITE);
        memory.shadow.resize(3 * SHARED_CELLS);
    }
    m.shared = reinterpret_cast<u64>(memory.mapped) + SharedMemory::FENCE;
    m.shared_bytes = m.launch->shared_bytes;
    m.shared_shadow = {memory.shadow.data(), memory.shadow.data() + SHARED_CELLS, memory.shadow.data() + 2 * SHARED_CELLS};
    return true;
}

void clear_shared_memory(Machine& m) {
    size_t cells = (m.shared_bytes + CELL_BYTES - 1) / CELL_BYTES;
    memset(reinterpret_cast<void*>(m.shared), POISON, m.shared_bytes);
    for (u32* entries : {m.shared_shadow.writer, m.shared_shadow.reader, m.shared_shadow.earlier_reader}) {
        memset(entries, 0, cells * sizeof(u32));
    }
}

// ---- What went wrong -------------------------------------------------------------------------------------------------

// "x + 1536", "shared memory + 16", or the bare address.
static std::string address_text(u64 address) {
    Machine& m = *machine;
    if (address - m.shared < SHARED_WINDOW) return "shared memory + " + std::to_string(address - m.shared);
    for (const Region& region : m.regions) {
        if (address - region.address < region.bytes) return region.name + (" + " + std::to_string(address - region.address));
    }
    char text[32];
    snprintf(text, sizeof text, "0x%llx", address);
    return text;
}

void report_past_shared(Thread& self, const Access& access) {
    fail(self, "%s %u bytes at %s, past its end (%u bytes)", access.what, access.bytes, address_text(access.address).c_str(),
         machine->shared_bytes);
}

void report_unwritten(Thread& self, const Access& access, const Region& region, const u8* written) {
    u64 address = access.address;
    for (; *written != 0; written++) address = (address / CELL_BYTES + 1) * CELL_BYTES;
    fail(self, "%s %u bytes at %s, which nobody has written%s", access.what, access.bytes, address_text(address).c_str(),
         promise_text(*region.allocation, address).c_str());
}

// No region allows the access: which one was probably meant?
[[noreturn]] static void report_outside(Thread& self, const Access& access, bool write) {
    constexpr u64 NEAR = 1 << 30;
    const Region* nearest = nullptr;
    u64 distance = NEAR;
    for (const Region& region : machine->regions) {
        if (holds(region, access) && write)
            fail(self, "%s %u bytes at %s, which this launch may only read", access.what, access.bytes, address_text(access.address).c_str());
        u64 end = region.address + region.bytes;
        u64 away = access.address + access.bytes > end ? access.address + access.bytes - end : region.address - access.address;
        if (away < distance) {
            distance = away;
            nearest = &region;
        }
    }
    if (nearest == nullptr)
        fail(self, "%s %u bytes at 0x%llx, which belongs to no argument of the launch", access.what, access.bytes, access.address);
    if (access.address < nearest->address)
        fail(self, "%s %u bytes at %s - %llu, before its start", access.what, access.bytes, nearest->name, nearest->address - access.address);
    fail(self, "%s %u bytes at %s + %llu, past its end (%llu bytes)", access.what, access.bytes, nearest->name,
         access.address - nearest->address, nearest->bytes);
}

// Whether it is threadIdx or one of its kind.
static bool is_place(u64 address) {
    for (const SimDim3* place : {&threadIdx, &blockIdx, &blockDim, &gridDim}) {
        if (address - reinterpret_cast<u64>(place) < sizeof *place) return true;
    }
    return false;
}

Region* find_region(Thread& self, const Access& access, bool write) {
    Machine& m = *machine;
    for (Region& region : m.regions) {
        if (!holds(region, access) || (write && (region.access & SIM_WRITE) == 0)) continue;
        return (write ? m.last_write : m.last_read) = &region;
    }
    if (!write && is_place(access.address)) return nullptr;
    report_outside(self, access, write);
}

static u32 barriers_before(u32 time) {
    u32 count = 0;
    for (u32 at : machine->syncthreads_times) count += at <= time;
    return count;
}

[[noreturn]] static void report_race(Thread& self, const Access& access, u64 address, Tag other, const char* did) {
    const Thread& thread = *machine->threads[thread_of(other)];
    fail(self, "%s %u bytes at %s, which thread %s %s with no barrier between (it had passed %u __syncthreads by then, this thread %u)",
         access.what, access.bytes, address_text(address).c_str(), place_text(thread), did, barriers_before(time_of(other)),
         self.barriers);
}

[[noreturn]] static void report_async(Thread& self, const Access& access, u64 address, Tag writer) {
    const Thread& thread = *machine->threads[thread_of(writer)];
    fail(self, "%s %u bytes at %s, where an asynchronous copy by thread %s has not been waited for", access.what, access.bytes,
         address_text(address).c_str(), place_text(thread));
}

[[noreturn]] static void report_block_race(Thread& self, const Access& access, u64 address, const AccessRecord& other, const char* did) {
    const u32* grid = machine->launch->grid;
    const Thread& thread = *machine->threads[thread_of(other.tag)];
    fail(self, "%s %u bytes at %s, which block (%u, %u, %u) thread %s %s in the same launch", access.what, access.bytes,
         address_text(address).c_str(), other.block % grid[0], other.block / grid[0] % grid[1], other.block / grid[0] / grid[1],
         place_text(thread), did);
}

// ---- Slow paths: each cell, each entry -------------------------------------------------------------------------------

template <bool shared>
static void examine(Thread& self, const Access& access, u32 cell, u32 other, const char* did) {
    u64 address = cell == 0 ? access.address : (access.address / CELL_BYTES + cell) * CELL_BYTES;
    if (shared) {
        if (other == 0 || ordered(self, other)) return;
        if (other & ASYNC) report_async(self, access, address, other);
        report_race(self, access, address, other, did);
    }
    const AccessRecord* record = find_access(other);
    if (record == nullptr) return;
    if (record->block != machine->block_number) report_block_race(self, access, address, *record, did);
    if (!ordered(self, record->tag)) report_race(self, access, address, record->tag, did);
}

template <bool shared>
void examine_read(Thread& self, const Access& access, const Cells& cells, u32 count) {
    for (u32 i = 0; i < count; i++) {
        if (shared && cells.writer[i] == 0) {
            u64 address = (access.address / CELL_BYTES + i) * CELL_BYTES;
            fail(self, "%s %u bytes at %s, which nobody has written", access.what, access.bytes, address_text(address).c_str());
        }
        examine<shared>(self, access, i, cells.writer[i], "wrote");
    }
}

template <bool shared>
void examine_write(Thread& self, const Access& access, const Cells& cells, u32 count) {
    for (u32 i = 0; i < count; i++) {
        examine<shared>(self, access, i, cells.writer[i], "wrote");
        examine<shared>(self, access, i, cells.reader[i], "read");
        examine<shared>(self, access, i, cells.earlier_reader[i], "read");
    }
}

template void examine_read<true>(Thread&, const Access&, const Cells&, u32);
template void examine_read<false>(Thread&, const Access&, const Cells&, u32);
template void examine_write<true>(Thread&, const Access&, const Cells&, u32);
template void examine_write<false>(Thread&, const Access&, const Cells&, u32);

// ---- For the rest of the runtime -------------------------------------------------------------------------------------

static Access access_of(const void* address, u32 bytes, const char* what) {
    return {reinterpret_cast<u64>(address), bytes, what};
}

void check_read(Thread& self, const void* address, u32 bytes, const char* what) {
    if (bytes > 0) check_any<false>(self, access_of(address, bytes, what), false);
}

void check_write(Thread& self, const void* address, u32 bytes, const char* what) {
    if (bytes > 0) check_any<true>(self, access_of(address, bytes, what), false);
}

static void require_shared(Thread& self, const Access& access) {
    if (access.address - machine->shared < SHARED_WINDOW) return;
    fail(self, "%s %u bytes at %s, which is not shared memory", access.what, access.bytes, address_text(access.address).c_str());
}

void check_shared_read(Thread& self, const void* address, u32 bytes, const char* what) {
    Access access = access_of(address, bytes, what);
    require_shared(self, access);
    check_shared<false>(self, access, false);
}

void check_shared_write(Thread& self, const void* address, u32 bytes, const char* what) {
    Access access = access_of(address, bytes, what);
    require_shared(self, access);
    check_shared<true>(self, access, false);
}

void check_global_read(Thread& self, const void* address, u32 bytes, const char* what) {
    Access access = access_of(address, bytes, what);
    if (access.address - machine->shared < SHARED_WINDOW)
        fail(self, "%s %u bytes at %s, which is not global memory", what, bytes, address_text(access.address).c_str());
    if (bytes > 0) check_global<false>(self, access, false);
}

void check_global_write(Thread& self, const void* address, u32 bytes, const char* what) {
    Access access = access_of(address, bytes, what);
    if (access.address - machine->shared < SHARED_WINDOW)
        fail(self, "%s %u bytes at %s, which is not global memory", what, bytes, address_text(access.address).c_str());
    if (bytes > 0) check_global<true>(self, access, false);
}

void check_aligned(Thread& self, const void* address, u32 bytes, u32 alignment, const char* what) {
    u64 at = reinterpret_cast<u64>(address);
    if (at % alignment != 0) fail(self, "%s %u bytes at %s, which is not a multiple of %u", what, bytes, address_text(at).c_str(), alignment);
}

Tag shared_write_tag(const void* address) {
    return machine->shared_shadow.writer[(reinterpret_cast<u64>(address) - machine->shared) / CELL_BYTES];
}

void begin_async_write(Thread& self, void* address, u32 bytes, const char* what) {
    check_shared_write(self, address, bytes, what);
    Access access = access_of(address, bytes, what);
    u64 first = (access.address - machine->shared) / CELL_BYTES;
    u32 count = cell_count(access, false);
    for (u32 i = 0; i < count; i++) machine->shared_shadow.writer[first + i] = ASYNC | self.index;
}

void land_async_write(Thread& issuer, void* address, u32 bytes, Clock* clock) {
    if (clock != nullptr) {
        advance(issuer);
        clock->join(issuer.index, time_of(issuer.tag));
    }
    Access access = access_of(address, bytes, "");
    u64 first = (access.address - machine->shared) / CELL_BYTES;
    u32 count = cell_count(access, false);
    for (u32 i = 0; i < count; i++) machine->shared_shadow.writer[first + i] = issuer.tag;
    if (clock != nullptr) advance(issuer);
}

}  // namespace sim
