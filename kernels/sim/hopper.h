// hopper.h: what mbarrier.cpp, bulk.cpp and wgmma.cpp share.
#pragma once

#include <string>

#include "abi_hopper.h"
#include "runtime.h"

namespace sim {

// "shared memory + 64".
std::string shared_text(const void* address);

// An even draw that depends on the launch's seed.
bool coin();

// ---- Tensor maps and copies (bulk.cpp) -------------------------------------------------------------------------------

// What a TensorMap holds here.
struct Map {
    u64 mark;  // MAP_MARK, or it was not made by sim_encode_tensor_map
    u64 address;
    u64 columns, rows;
    u64 row_bytes;  // from one row to the next
    u32 box_columns, box_rows;
    u32 element_bytes;
    u32 swizzle_bytes;  // 0, 32, 64, 128

    u32 box_row_bytes() const {
        return box_columns * element_bytes;
    }
    u32 box_bytes() const {
        return box_rows * box_row_bytes();
    }
};

// Where the byte at `address` of the shared window lies after swizzling rows of `width` bytes (0: no swizzle).
// "Swizzling Modes": chunks of 16 bytes are exchanged within each row; the pattern repeats after 8 groups of 128 bytes,
// 4 or 2 of them.
inline u32 swizzle_address(u32 width, u32 address) {
    u32 rows = width == 0 ? 0 : width / 16 - 1;
    return address ^ (address >> 7 & rows) << 4;
}

// A copy into shared memory that has not landed. A box of `map`, or plain bytes from `from`.
struct Load {
    Thread* issuer;
    u8* to;
    u32 bytes;
    Map map;
    int column, row;
    const u8* from;  // null for a box
};

// Moves the data; `clock` learns of it.
void land(const Load& load, Clock& clock);

// ---- mbarriers (mbarrier.cpp) ----------------------------------------------------------------------------------------

// The load's bytes will be counted on `barrier`.
void count_on(Thread& self, void* barrier, const Load& load);

// ---- Proxies (proxy.cpp) ---------------------------------------------------------------------------------------------

// Shared memory that the async proxy is about to access: whoever wrote it through the generic proxy must have run
// fence.proxy.async since, and `self` must have synchronised with that thread after its fence.
void check_proxy(Thread& self, const void* address, u32 bytes, const char* what);

// The last write to these bytes came through the async proxy.
void note_async_write(const void* address, u32 bytes);

// Tags of the last writes to shared memory, one per cell: taken when hardware begins to read, compared when it is through.
void append_tags(std::vector<Tag>& tags, const void* address, u32 bytes);
// `next` runs through `tags`.
void check_unchanged(Thread& self, const Tag*& next, const void* address, u32 bytes, const char* reader);

}  // namespace sim
