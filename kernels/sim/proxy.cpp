// proxy.cpp: the generic and the async proxy ("Proxies", "membar / fence"). Ordinary stores go through the generic proxy,
// bulk copies and wgmma through the async proxy; a write through the one is seen through the other only across a
// fence.proxy.async. By the rule checked here each writing thread runs the fence, then synchronises with the reader.

#include <algorithm>
#include <cstring>
#include <memory>

#include "hopper.h"

namespace sim {

constexpr u32 CELLS = MAX_SHARED_BYTES / CELL_BYTES;

struct Proxies {
    // Tags of writes that came through the async proxy, per cell. A cell whose last write has another tag was written by
    // ordinary stores.
    Tag async_writer[CELLS];
    bool any_async = true;
    // Times of each thread's fences, ascending.
    std::vector<u32> fences[MAX_THREADS];
};

static Proxies& proxies() {
    static thread_local auto all = std::make_unique<Proxies>();
    return *all;
}

static void start_block() {
    Proxies& all = proxies();
    if (all.any_async) memset(all.async_writer, 0, sizeof all.async_writer);
    all.any_async = false;
    for (u32 i = 0; i < machine->thread_count; i++) all.fences[i].clear();
}

static const bool registered = (on_block_start(start_block), true);

// The cells of some bytes of shared memory: [first, end).
struct CellRange {
    u32 first, end;
    CellRange(const void* address, u32 bytes) {
        u64 offset = reinterpret_cast<u64>(address) - machine->shared;
        first = static_cast<u32>(offset / CELL_BYTES);
        end = static_cast<u32>((offset + bytes + CELL_BYTES - 1) / CELL_BYTES);
    }
};

static std::string cell_text(u32 cell) {
    return shared_text(reinterpret_cast<u8*>(machine->shared) + static_cast<u64>(cell) * CELL_BYTES);
}

std::string shared_text(const void* address) {
    return "shared memory + " + std::to_string(reinterpret_cast<u64>(address) - machine->shared);
}

bool coin() {
    machine->random = machine->random * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
    return machine->random >> 63 != 0;
}

extern "C" void sim_fence_proxy_async() {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    proxies().fences[self.index].push_back(time_of(self.tag));
    advance(self);
    sim_fence_mbarrier_init();
}

void note_async_write(const void* address, u32 bytes) {
    Proxies& all = proxies();
    CellRange cells(address, bytes);
    memcpy(all.async_writer + cells.first, machine->shared_shadow.writer + cells.first, (cells.end - cells.first) * sizeof(Tag));
    all.any_async = true;
}

void check_proxy(Thread& self, const void* address, u32 bytes, const char* what) {
    const Proxies& all = proxies();
    CellRange cells(address, bytes);
    Tag cleared = 0;
    for (u32 i = cells.first; i < cells.end; i++) {
        Tag tag = machine->shared_shadow.writer[i];
        if (tag == cleared || tag == 0 || tag == all.async_writer[i]) continue;
        Thread& writer = *machine->threads[thread_of(tag)];
        const std::vector<u32>& fences = all.fences[writer.index];
        auto fence = std::lower_bound(fences.begin(), fences.end(), time_of(tag));
        if (fence == fences.end())
            fail(self, "%s %s, which thread %s wrote with ordinary stores and no fence.proxy.async after them", what,
                 cell_text(i).c_str(), place_text(writer));
        if (!ordered(self, *fence << 10 | writer.index))
            fail(self, "%s %s, which thread %s wrote with ordinary stores; its fence.proxy.async is not followed by "
                 "a barrier with this thread", what, cell_text(i).c_str(), place_text(writer));
        cleared = tag;
    }
}

void append_tags(std::vector<Tag>& tags, const void* address, u32 bytes) {
    CellRange cells(address, bytes);
    tags.insert(tags.end(), machine->shared_shadow.writer + cells.first, machine->shared_shadow.writer + cells.end);
}

void check_unchanged(Thread& self, const Tag*& next, const void* address, u32 bytes, const char* reader) {
    CellRange cells(address, bytes);
    for (u32 i = cells.first; i < cells.end; i++) {
        Tag tag = machine->shared_shadow.writer[i];
        if (tag == *next++) continue;
        fail(self, "%s still reads %s, but %sthread %s overwrites it", reader, cell_text(i).c_str(),
             tag & ASYNC ? "a copy by " : "", place_text(*machine->threads[thread_of(tag)]));
    }
}

}  // namespace sim
