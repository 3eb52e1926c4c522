// memory.cpp: allocations, and the regions of them that a launch may touch.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "runtime.h"

namespace sim {

// No access is possible this far on both sides of an allocation, so that running over never lands in another one.
constexpr u64 FENCE = 256 * 1024;

static std::mutex lock;
static std::map<u64, Allocation*>& allocations() {
    static std::map<u64, Allocation*> all;
    return all;
}

// The allocation that holds all of the bytes; null if there is none.
static Allocation* find_allocation(u64 address, u64 bytes) {
    std::lock_guard<std::mutex> guard(lock);
    auto after = allocations().upper_bound(address);
    if (after == allocations().begin()) return nullptr;
    Allocation* found = (--after)->second;
    u64 offset = address - after->first;
    return offset <= found->bytes && bytes <= found->bytes - offset ? found : nullptr;
}

static u64 mapped_bytes(u64 bytes) {
    u64 page = static_cast<u64>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

extern "C" void* sim_alloc(u64 bytes) {
    u64 inside = mapped_bytes(bytes);
    void* mapped = mmap(nullptr, inside + 2 * FENCE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    u8* data = static_cast<u8*>(mapped) + FENCE;
    auto* allocation = new Allocation{data, bytes, nullptr, nullptr, {}};
    allocation->written = static_cast<u8*>(calloc(allocation->cells() + 1, 1));
    if (allocation->written == nullptr || (inside > 0 && mprotect(data, inside, PROT_READ | PROT_WRITE) != 0)) {
        munmap(mapped, inside + 2 * FENCE);
        free(allocation->written);
        delete allocation;
        return nullptr;
    }
    std::lock_guard<std::mutex> guard(lock);
    allocations()[reinterpret_cast<u64>(data)] = allocation;
    return data;
}

extern "C" void sim_free(void* address) {
    Allocation* allocation = nullptr;
    {
        std::lock_guard<std::mutex> guard(lock);
        auto found = allocations().find(reinterpret_cast<u64>(address));
        if (found == allocations().end()) return;
        allocation = found->second;
        allocations().erase(found);
    }
    munmap(allocation->data - FENCE, mapped_bytes(allocation->bytes) + 2 * FENCE);
    free(allocation->written);
    free(allocation->accesses);
    delete allocation;
}

static void mark(Allocation& allocation, u64 address, u64 bytes, bool written) {
    if (bytes == 0) return;
    u64 first = allocation.cell(address);
    u64 last = allocation.cell(address + bytes - 1);
    memset(allocation.written + first, written, last - first + 1);
}

extern "C" int sim_host_written(u64 address, u64 bytes) {
    Allocation* allocation = find_allocation(address, bytes);
    if (allocation == nullptr) return 1;
    mark(*allocation, address, bytes, true);
    return 0;
}

std::string promise_text(const Allocation& allocation, u64 address) {
    for (size_t i = allocation.promises.size(); i-- > 0;) {
        const Allocation::Promise& promise = allocation.promises[i];
        if (address - promise.address >= promise.bytes) continue;
        return "; " + promise.kernel + " was to write it (" + promise.region + " + " + std::to_string(address - promise.address) + ")";
    }
    return "";
}

extern "C" int sim_check_written(u64 address, u64 bytes, u64* first_bad, char* error, size_t error_bytes) {
    Allocation* allocation = find_allocation(address, bytes);
    if (allocation == nullptr) {
        *first_bad = address;
        snprintf(error, error_bytes, "0x%llx and the %llu bytes from there are not inside one allocation", address, bytes);
        return 1;
    }
    if (bytes == 0) return 0;
    u64 first = allocation->cell(address);
    u64 count = allocation->cell(address + bytes - 1) - first + 1;
    const void* found = memchr(allocation->written + first, 0, count);
    if (found == nullptr) return 0;
    u64 cell = static_cast<u64>(static_cast<const u8*>(found) - allocation->written);
    *first_bad = reinterpret_cast<u64>(allocation->data) + cell * CELL_BYTES;
    if (*first_bad < address) *first_bad = address;
    snprintf(error, error_bytes, "byte %llu of %llu was never written%s", *first_bad - address, bytes,
             promise_text(*allocation, *first_bad).c_str());
    return 1;
}

// ---- Regions of a launch ---------------------------------------------------------------------------------------------

static void promise(Allocation& allocation, const Region& region, const char* kernel) {
    constexpr size_t MOST = 64;
    auto& all = allocation.promises;
    std::erase_if(all, [&](const Allocation::Promise& old) {
        return old.address >= region.address && old.address + old.bytes <= region.address + region.bytes;
    });
    if (all.size() == MOST) all.erase(all.begin());
    all.push_back({region.address, region.bytes, kernel, region.name});
}

extern "C" int sim_host_promised(u64 address, u64 bytes, const char* kernel, const char* region) {
    Allocation* allocation = find_allocation(address, bytes);
    if (allocation == nullptr) return 1;
    mark(*allocation, address, bytes, false);
    promise(*allocation, {address, bytes, SIM_WRITE, true, region, allocation}, kernel);
    return 0;
}

static bool overlap(const Region& a, const Region& b) {
    return a.address < b.address + b.bytes && b.address < a.address + a.bytes;
}

bool bind_regions(Machine& m) {
    const SimLaunch& launch = *m.launch;
    m.regions.clear();
    m.last_read = m.last_write = nullptr;
    for (u32 i = 0; i < launch.region_count; i++) {
        const SimRegion& given = launch.regions[i];
        if (given.bytes == 0) continue;
        Allocation* allocation = find_allocation(given.address, given.bytes);
        const char* name = given.name != nullptr ? given.name : "an unnamed argument";
        if (allocation == nullptr || given.access < SIM_READ || given.access > SIM_UPDATE) {
            snprintf(m.error, m.error_bytes, "%s: %s: 0x%llx and the %llu bytes from there are not inside one allocation%s", launch.kernel,
                     name, given.address, given.bytes, allocation != nullptr ? ", or not named read, write or update" : "");
            return false;
        }
        m.regions.push_back({given.address, given.bytes, given.access, (given.access & SIM_WRITE) != 0, name, allocation});
    }
    for (Region& region : m.regions) {
        for (const Region& other : m.regions) {
            if (overlap(region, other) && (other.access & SIM_WRITE)) region.tracked = true;
        }
        Allocation& allocation = *region.allocation;
        if (region.tracked && allocation.accesses == nullptr) {
            allocation.accesses = static_cast<u32*>(calloc(allocation.cells() * 3, sizeof(u32)));
            if (allocation.accesses == nullptr) {
                snprintf(m.error, m.error_bytes, "%s: %s: no memory to check its %llu bytes", launch.kernel, region.name, region.bytes);
                return false;
            }
        }
        if (region.access == SIM_WRITE) {
            mark(allocation, region.address, region.bytes, false);
            promise(allocation, region, launch.kernel);
        }
    }
    m.first_id = next_access_id();
    forget_accesses();
    return true;
}

}  // namespace sim
