// async.cpp: shared memory's addresses, and cp.async.
//
// A copy is checked when it is issued, and its bytes are marked as under way: until the issuing thread has waited for the
// copy's group, any access to them is an error. The data moves at the wait.

#include <cstring>

#include "checks.h"

namespace sim {

// The shared window starts here, so that no valid address is 0.
constexpr u32 SHARED_BASE = 1024;

extern "C" void* sim_shared_memory() {
    return reinterpret_cast<void*>(machine->shared);
}

extern "C" u32 sim_shared_address(const void* pointer) {
    u64 offset = reinterpret_cast<u64>(pointer) - machine->shared;
    if (offset > SHARED_WINDOW) fail(current_thread(), "takes the shared address of a pointer that is not into shared memory");
    return static_cast<u32>(offset) + SHARED_BASE;
}

extern "C" void* sim_shared_pointer(u32 address) {
    if (address - SHARED_BASE > SHARED_WINDOW) fail(current_thread(), "uses 0x%x as an address in shared memory, which it is not", address);
    return reinterpret_cast<void*>(machine->shared + address - SHARED_BASE);
}

extern "C" void sim_cp_async_16(void* to, const void* from, u32 bytes) {
    Thread& self = current_thread();
    machine->pc = __builtin_return_address(0);
    if (bytes > 16) fail(self, "cp.async of 16 bytes is asked for %u", bytes);
    check_aligned(self, to, 16, 16, "cp.async writes");
    check_aligned(self, from, 16, 16, "cp.async reads");
    check_global_read(self, from, bytes, "cp.async reads");
    begin_async_write(self, to, 16, "cp.async writes");
    self.copies.push_back({static_cast<u8*>(to), static_cast<const u8*>(from), bytes});
}

extern "C" void sim_cp_async_commit() {
    Thread& self = current_thread();
    u32 grouped = 0;
    for (u32 count : self.groups) grouped += count;
    self.groups.push_back(static_cast<u32>(self.copies.size()) - grouped);
}

extern "C" void sim_cp_async_wait(u32 pending) {
    Thread& self = current_thread();
    if (self.groups.size() <= pending) return;
    size_t landing = self.groups.size() - pending;
    size_t count = 0;
    for (size_t i = 0; i < landing; i++) count += self.groups[i];
    for (size_t i = 0; i < count; i++) {
        const AsyncCopy& copy = self.copies[i];
        land_async_write(self, copy.to, 16, nullptr);
        memset(copy.to, 0, 16);
        memcpy(copy.to, copy.from, copy.bytes);
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<ptrdiff_t>(count));
    self.groups.erase(self.groups.begin(), self.groups.begin() + static_cast<ptrdiff_t>(landing));
}

}  // namespace sim
