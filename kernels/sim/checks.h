// checks.h: the fast paths of the memory checks, inlined into each hook.
//
// Memory has a shadow of three numbers per two bytes: who wrote last, and the last two who read. "Who" is a tag (thread
// and time) in shared memory, which lives for a block, and an access id in global memory. Numbers below a limit (the last
// __syncthreads, the start of the launch) cannot conflict, and neither can the thread's own; anything else is examined by
// shadow.cpp.
#pragma once

#include <cstring>

#include "runtime.h"

namespace sim {

struct Access {
    u64 address;
    u32 bytes;
    const char* what;  // "reads"
};

// Both return if nothing is wrong after all.
template <bool shared>
void examine_read(Thread& self, const Access& access, const Cells& cells, u32 count);
template <bool shared>
void examine_write(Thread& self, const Access& access, const Cells& cells, u32 count);

[[noreturn]] void report_unwritten(Thread& self, const Access& access, const Region& region, const u8* written);
[[noreturn]] void report_past_shared(Thread& self, const Access& access);
// The region that holds the access, or an error. Null for a read of threadIdx and the like, which clang's hooks report too.
Region* find_region(Thread& self, const Access& access, bool write);

template <bool shared>
inline void read_cells(Thread& self, const Access& access, const Cells& cells, u32 count, u32 settled, u32 mine) {
    // In shared memory an entry of 0, never written, wraps to above the limit.
    constexpr u32 shift = shared ? 1 : 0;
    u32 doubtful = 0;
    for (u32 i = 0; i < count; i++) {
        u32 writer = cells.writer[i];
        doubtful |= static_cast<u32>(writer - shift >= settled - shift) & static_cast<u32>(writer != mine);
    }
    if (__builtin_expect(doubtful, 0)) examine_read<shared>(self, access, cells, count);
    for (u32 i = 0; i < count; i++) {
        u32 reader = cells.reader[i];
        // An older read of the same thread tells nothing more.
        bool replace = shared ? thread_of(reader ^ mine) == 0 : reader == mine;
        cells.earlier_reader[i] = replace ? cells.earlier_reader[i] : reader;
        cells.reader[i] = mine;
    }
}

template <bool shared>
inline void write_cells(Thread& self, const Access& access, const Cells& cells, u32 count, u32 settled, u32 mine) {
    u32 doubtful = 0;
    for (u32 i = 0; i < count; i++) {
        u32 writer = cells.writer[i], reader = cells.reader[i], earlier = cells.earlier_reader[i];
        doubtful |= static_cast<u32>(writer >= settled) & static_cast<u32>(writer != mine);
        doubtful |= static_cast<u32>(reader >= settled) & static_cast<u32>(reader != mine);
        doubtful |= static_cast<u32>(earlier >= settled) & static_cast<u32>(earlier != mine);
    }
    if (__builtin_expect(doubtful, 0)) examine_write<shared>(self, access, cells, count);
    for (u32 i = 0; i < count; i++) cells.writer[i] = mine;
}

// How many cells an access touches; a constant where the compiler knows bytes and alignment.
inline u32 cell_count(const Access& access, bool even) {
    if (even) return access.bytes / CELL_BYTES;
    return static_cast<u32>((access.address + access.bytes - 1) / CELL_BYTES - access.address / CELL_BYTES + 1);
}

template <bool write>
inline void check_shared(Thread& self, const Access& access, bool even) {
    Machine& m = *machine;
    u64 offset = access.address - m.shared;
    if (__builtin_expect(offset + access.bytes > m.shared_bytes, 0)) report_past_shared(self, access);
    u64 first = offset / CELL_BYTES;
    Cells cells = {m.shared_shadow.writer + first, m.shared_shadow.reader + first, m.shared_shadow.earlier_reader + first};
    if (write)
        write_cells<true>(self, access, cells, cell_count(access, even), m.floor_tag, self.tag);
    else
        read_cells<true>(self, access, cells, cell_count(access, even), m.floor_tag, self.tag);
}

inline bool holds(const Region& region, const Access& access) {
    u64 offset = access.address - region.address;
    return offset < region.bytes && access.bytes <= region.bytes - offset;
}

inline bool all_written(const u8* written, u32 count) {
    if (count == 8) {
        u64 eight;
        memcpy(&eight, written, 8);
        return eight == 0x0101010101010101u;
    }
    u8 all = 1;
    for (u32 i = 0; i < count; i++) all &= written[i];
    return all != 0;
}

template <bool write>
inline void check_global(Thread& self, const Access& access, bool even) {
    Machine& m = *machine;
    Region* region = write ? m.last_write : m.last_read;
    if (region == nullptr || !holds(*region, access)) {
        region = find_region(self, access, write);
        if (region == nullptr) return;
    }
    const Allocation& allocation = *region->allocation;
    u64 first = allocation.cell(access.address);
    u32 count = cell_count(access, even);
    if (write) {
        u32 mine = self.access_id != 0 ? self.access_id : draw_access_id(self);
        write_cells<false>(self, access, allocation.shadow(first), count, m.first_id, mine);
        memset(allocation.written + first, 1, count);
        return;
    }
    if (__builtin_expect(!all_written(allocation.written + first, count), 0)) report_unwritten(self, access, *region, allocation.written + first);
    if (region->tracked) {
        u32 mine = self.access_id != 0 ? self.access_id : draw_access_id(self);
        read_cells<false>(self, access, allocation.shadow(first), count, m.first_id, mine);
    }
}

// Addresses that mean shared memory, inside the block's or past its end.
constexpr u64 SHARED_WINDOW = 256 * 1024;

template <bool write>
inline void check_any(Thread& self, const Access& access, bool even) {
    if (access.address - machine->shared < SHARED_WINDOW)
        check_shared<write>(self, access, even);
    else
        check_global<write>(self, access, even);
}

}  // namespace sim
