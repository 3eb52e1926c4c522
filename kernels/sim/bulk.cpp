// bulk.cpp: tensor maps, bulk copies and tensor copies.
//
// A load's bytes are marked as under way when it is issued; they are written when it lands, which mbarrier.cpp decides. A
// store reads its source when it is waited for, which is as late as hardware may: whatever was overwritten until then is
// an error.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "hopper.h"

namespace sim {

constexpr u64 MAP_MARK = 0x50414d52'4f534e54;

static const char LOADS[] = "a copy to shared memory reads";
static const char LANDS[] = "starts a copy that writes";
static const char STORES[] = "a copy from shared memory writes";
static const char SENDS[] = "starts a copy that reads";

// ---- Making maps -----------------------------------------------------------------------------------------------------

// Bytes of a CUtensorMapDataType; 0 if unknown.
static u32 element_bytes(u32 data_type) {
    static const u32 bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};  // UINT8 .. INT64, FLOAT16, 32, 64, BFLOAT16
    return data_type < std::size(bytes) ? bytes[data_type] : 0;
}

struct Encode {
    u32 rank;
    const u64* dims;
    const u64* strides;
    const u32* element_strides;
    u32 interleave, oob_fill;
};

// What the driver's manual (cuTensorMapEncodeTiled) or this simulator forbids; null if nothing.
static const char* refusal(const Map& map, const Encode& call) {
    if (call.rank != 2) return "only tensors of two dimensions are simulated";
    if (call.interleave != 0) return "interleaved layouts are not simulated";
    if (call.oob_fill != 0) return "elements outside the tensor can only be zero";
    if (map.element_bytes == 0) return "the data type is unknown";
    if (map.address == 0 || map.address % 16 != 0) return "globalAddress must be a multiple of 16";
    if (call.dims[0] == 0 || call.dims[1] == 0 || call.dims[0] > 1ull << 32 || call.dims[1] > 1ull << 32)
        return "globalDim must be 1 to 2^32";
    if (map.row_bytes % 16 != 0 || map.row_bytes >= 1ull << 40) return "globalStrides must be multiples of 16 below 2^40";
    if (map.row_bytes < map.columns * map.element_bytes) return "globalStrides[0] must not be less than a row";
    if (map.box_columns == 0 || map.box_rows == 0 || map.box_columns > 256 || map.box_rows > 256)
        return "boxDim must be 1 to 256";
    if (map.box_row_bytes() % 16 != 0) return "boxDim[0] times the element's size must be a multiple of 16";
    if (call.element_strides[0] != 1 || call.element_strides[1] != 1) return "elementStrides must be 1";
    if (map.swizzle_bytes != 0 && map.box_row_bytes() > map.swizzle_bytes) return "a row of the box must fit the swizzle";
    if (map.swizzle_bytes != 0 && map.box_row_bytes() < map.swizzle_bytes)
        return "a row of the box shorter than the swizzle is not simulated";
    return nullptr;
}

extern "C" int sim_encode_tensor_map(void* map, u32 data_type, u32 rank, void* address, const u64* dims, const u64* strides,
                                     const u32* box, const u32* element_strides, u32 interleave, u32 swizzle, u32, u32 oob_fill,
                                     char* error, size_t error_bytes) {
    static_assert(sizeof(Map) <= 128);
    Encode call = {rank, dims, strides, element_strides, interleave, oob_fill};
    Map made = {};
    const char* wrong = rank != 2 ? "only tensors of two dimensions are simulated" : nullptr;
    if (wrong == nullptr && swizzle > 3) wrong = "the swizzle is unknown";
    if (wrong == nullptr) {
        u32 swizzle_bytes = swizzle == 0 ? 0 : 16u << swizzle;  // NONE, 32B, 64B, 128B
        made = {MAP_MARK, reinterpret_cast<u64>(address), dims[0], dims[1], strides[0],
                box[0],   box[1],                         element_bytes(data_type), swizzle_bytes};
        wrong = refusal(made, call);
    }
    if (wrong != nullptr) {
        snprintf(error, error_bytes, "tensor map: %s", wrong);
        return 1;
    }
    memset(map, 0, 128);
    memcpy(map, &made, sizeof made);
    return 0;
}

static Map decode(Thread& self, const void* encoded) {
    Map map;
    memcpy(&map, encoded, sizeof map);
    if (map.mark != MAP_MARK) fail(self, "uses a tensor map that nobody has encoded");
    if (reinterpret_cast<u64>(encoded) % 64 != 0)
        fail(self, "uses a tensor map that is not a multiple of 64 bytes in memory");
    return map;
}

extern "C" void sim_prefetch_tensormap(const void* map) {
    machine->pc = __builtin_return_address(0);
    decode(current_thread(), map);
}

// ---- Walking a box ---------------------------------------------------------------------------------------------------

// The part of one row of a box that lies in the tensor: `bytes` from `global` on; in an unswizzled box from `offset` on.
struct Piece {
    u8* global;
    u32 offset;
    u32 bytes;
};

// Calls visit(piece) for each row that has one.
template <class Visit>
static void each_piece(const Map& map, int column, int row, Visit visit) {
    long long from = std::max<long long>(column, 0);
    long long to = std::min<long long>(static_cast<long long>(column) + map.box_columns, static_cast<long long>(map.columns));
    if (from >= to) return;
    u32 skipped = static_cast<u32>(from - column) * map.element_bytes;
    u32 bytes = static_cast<u32>(to - from) * map.element_bytes;
    for (u32 i = 0; i < map.box_rows; i++) {
        long long y = static_cast<long long>(row) + i;
        if (y < 0 || y >= static_cast<long long>(map.rows)) continue;
        u64 global = map.address + static_cast<u64>(y) * map.row_bytes + static_cast<u64>(from) * map.element_bytes;
        visit(Piece{reinterpret_cast<u8*>(global), i * map.box_row_bytes() + skipped, bytes});
    }
}

// Calls visit(shared, done, n) for the runs of up to 16 bytes that a piece is in shared memory; `done` bytes lie before.
template <class Visit>
static void each_chunk(const Map& map, u8* box, const Piece& piece, Visit visit) {
    u32 start = sim_shared_address(box);
    for (u32 done = 0; done < piece.bytes;) {
        u32 offset = piece.offset + done;
        u32 n = std::min(16 - offset % 16, piece.bytes - done);
        u32 moved = swizzle_address(map.swizzle_bytes, start + offset) - start;
        visit(box + moved, done, n);
        done += n;
    }
}

static void check_box_address(Thread& self, const Map& map, const void* shared, const char* what) {
    u32 address = sim_shared_address(shared);
    u32 pattern = map.swizzle_bytes == 0 ? 128 : map.swizzle_bytes * 8;
    if (address % pattern != 0)
        fail(self, "%s a box at %s, which is not a multiple of %u as a swizzle of %u bytes wants", what,
             shared_text(shared).c_str(), pattern, map.swizzle_bytes);
}

// ---- Loads -----------------------------------------------------------------------------------------------------------

void land(const Load& load, Clock& clock) {
    land_async_write(*load.issuer, load.to, load.bytes, &clock);
    note_async_write(load.to, load.bytes);
    if (load.from != nullptr) {
        memcpy(load.to, load.from, load.bytes);
        return;
    }
    memset(load.to, 0, load.bytes);
    each_piece(load.map, load.column, load.row, [&](const Piece& piece) {
        each_chunk(load.map, load.to, piece, [&](u8* shared, u32 done, u32 n) { memcpy(shared, piece.global + done, n); });
    });
}

static void begin_load(Thread& self, const Load& load, void* barrier) {
    // What ordinary stores left there must be out of the way: the copy's write could come first.
    bool inside = reinterpret_cast<u64>(load.to) - machine->shared + load.bytes <= machine->shared_bytes;
    if (inside) check_proxy(self, load.to, load.bytes, LANDS);
    begin_async_write(self, load.to, load.bytes, LANDS);
    count_on(self, barrier, load);
}

extern "C" void sim_bulk_load(void* to, const void* from, u32 bytes, void* barrier) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    if (bytes == 0 || bytes % 16 != 0) fail(self, "cp.async.bulk of %u bytes; a multiple of 16 is wanted", bytes);
    check_aligned(self, to, bytes, 16, LANDS);
    check_aligned(self, from, bytes, 16, LOADS);
    check_global_read(self, from, bytes, LOADS);
    begin_load(self, {&self, static_cast<u8*>(to), bytes, {}, 0, 0, static_cast<const u8*>(from)}, barrier);
}

extern "C" void sim_tensor_load(void* to, const void* encoded, int column, int row, void* barrier) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    Map map = decode(self, encoded);
    check_box_address(self, map, to, "copies");
    each_piece(map, column, row, [&](const Piece& piece) { check_global_read(self, piece.global, piece.bytes, LOADS); });
    begin_load(self, {&self, static_cast<u8*>(to), map.box_bytes(), map, column, row, nullptr}, barrier);
}

// ---- Stores ----------------------------------------------------------------------------------------------------------

struct Store {
    u8* from;
    Map map;
    int column, row;
    std::vector<Tag> tags;  // of the source's writers when it was issued
};

struct StoreGroups {
    std::vector<Store> open;
    std::vector<std::vector<Store>> committed;  // oldest first
};

static std::vector<StoreGroups>& stores() {
    static thread_local auto all = std::make_unique<std::vector<StoreGroups>>();
    return *all;
}

extern "C" void sim_tensor_store(const void* encoded, int column, int row, const void* from) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    Map map = decode(self, encoded);
    check_box_address(self, map, from, "copies");
    Store store = {static_cast<u8*>(const_cast<void*>(from)), map, column, row, {}};
    each_piece(map, column, row, [&](const Piece& piece) {
        each_chunk(map, store.from, piece, [&](u8* shared, u32, u32 n) {
            check_shared_read(self, shared, n, SENDS);
            check_proxy(self, shared, n, SENDS);
            append_tags(store.tags, shared, n);
        });
    });
    stores()[self.index].open.push_back(std::move(store));
}

static void finish(Thread& self, const Store& store) {
    const Tag* next = store.tags.data();
    each_piece(store.map, store.column, store.row, [&](const Piece& piece) {
        check_global_write(self, piece.global, piece.bytes, STORES);
        each_chunk(store.map, store.from, piece, [&](u8* shared, u32 done, u32 n) {
            check_unchanged(self, next, shared, n, "a copy from shared memory");
            // From here on only who synchronises with this thread after its wait may overwrite.
            check_shared_read(self, shared, n, SENDS);
            memcpy(piece.global + done, shared, n);
        });
    });
}

extern "C" void sim_bulk_commit() {
    machine->pc = __builtin_return_address(0);
    StoreGroups& mine = stores()[current_thread().index];
    mine.committed.push_back(std::move(mine.open));
    mine.open.clear();
}

// Reading and writing end together here, so that `only_read` makes no difference.
extern "C" void sim_bulk_wait(u32 pending, u32) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    auto& groups = stores()[self.index].committed;
    if (groups.size() <= pending) return;
    auto end = groups.end() - pending;
    for (auto group = groups.begin(); group != end; ++group) {
        for (const Store& store : *group) finish(self, store);
    }
    groups.erase(groups.begin(), end);
}

static void start_block() {
    if (stores().size() < machine->thread_count) stores().resize(machine->thread_count);
    for (StoreGroups& groups : stores()) {
        groups.open.clear();
        groups.committed.clear();
    }
}

static void end_block() {
    for (Thread* thread : machine->threads) {
        const StoreGroups& groups = stores()[thread->index];
        const Store* store = groups.open.empty() ? nullptr : &groups.open[0];
        for (const auto& group : groups.committed) {
            if (!group.empty()) store = &group[0];
        }
        if (store == nullptr) continue;
        fail(*thread, "the block ends while a copy by this thread from %s is under way: nobody has waited for it%s",
             shared_text(store->from).c_str(), groups.open.empty() ? "" : ", nor committed its group");
    }
}

static const bool registered = (on_block_start(start_block), on_block_end(end_block), true);

}  // namespace sim
