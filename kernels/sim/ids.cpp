// ids.cpp: names for accesses to global memory. An id stands for (launch, block, thread, time) and is drawn once per
// thread and time, from one counter for the process, so that shadows need no clearing between launches.

#include <algorithm>
#include <atomic>
#include <memory>

#include "runtime.h"

namespace sim {

constexpr u32 CHUNK = 4096;

struct Chunk {
    u32 first;
    std::unique_ptr<AccessRecord[]> records;
};

// Ids are handed to host threads in chunks.
static std::atomic<u64> fresh{1};

static thread_local struct {
    std::vector<Chunk> chunks;  // of this launch, ascending
    u32 next, end;
} ids;

void forget_accesses() {
    if (ids.chunks.size() > 1) ids.chunks.erase(ids.chunks.begin(), ids.chunks.end() - 1);
}

u32 next_access_id() {
    return ids.next < ids.end ? ids.next : static_cast<u32>(std::min<u64>(fresh.load(), 0xffffffffu));
}

u32 draw_access_id(Thread& self) {
    if (ids.next == ids.end) {
        u64 first = fresh.fetch_add(CHUNK);
        if (first + CHUNK > 0xffffffffu) fail(self, "the simulator is out of access ids; start a fresh process");
        ids.chunks.push_back({static_cast<u32>(first), std::make_unique_for_overwrite<AccessRecord[]>(CHUNK)});
        ids.next = static_cast<u32>(first);
        ids.end = ids.next + CHUNK;
    }
    const Chunk& chunk = ids.chunks.back();
    chunk.records[ids.next - chunk.first] = {machine->block_number, self.tag};
    return self.access_id = ids.next++;
}

const AccessRecord* find_access(u32 id) {
    if (id < machine->first_id) return nullptr;
    auto after = std::upper_bound(ids.chunks.begin(), ids.chunks.end(), id, [](u32 x, const Chunk& chunk) { return x < chunk.first; });
    if (after == ids.chunks.begin()) return nullptr;
    const Chunk& chunk = *(after - 1);
    return id - chunk.first < CHUNK ? &chunk.records[id - chunk.first] : nullptr;
}

}  // namespace sim
