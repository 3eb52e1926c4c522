// wgmma.cpp: wgmma.mma_async and what goes with it.
//
// Each warp of a warpgroup multiplies its 16 rows of A. At issue the operands in shared memory are checked and the
// accumulators become NaNs that name them (a ticket); the product is computed when its group is waited for, from what
// shared memory holds then, unless somebody has written there meanwhile, which is an error. wgmma_wait puts the results
// where it finds the tickets, so accumulators that are read too early, or not named at the wait, are NaN.
//
// wgmma.fence: an error is reported where wgmma uses accumulators that changed since the last wait, or A in registers, and
// the warp ran no fence since that wait. Not checked: accumulators that were only read, and registers written after a fence.

#include <algorithm>
#include <bit>
#include <cstring>
#include <list>
#include <memory>

#include "matrix.h"
#include "matrix_unit.h"

namespace sim {

constexpr u32 WARPGROUP = 4;  // warps
constexpr u32 ROWS = 16;      // of A and D that a warp has
constexpr u32 MOST_COLUMNS = 256;

// ---- State -----------------------------------------------------------------------------------------------------------

// The accumulators of one warp, [16, n].
struct Accumulators {
    u32 ticket;
    u32 n;
    u32 pending;    // operations under way
    u32 collected;  // lanes that have their results, as bits
    std::vector<float> value;
};

// What all warps of a warpgroup must say alike.
struct Operands {
    u32 n;
    bool a_in_registers;
    u64 a, b;
    u32 a_major, b_major, scale_d;

    bool operator==(const Operands&) const = default;
};

struct Operation {
    Operands operands;
    float a[K16][ROWS];  // where A is in registers
    std::shared_ptr<Accumulators> d;
    std::vector<Tag> tags;
};

// What a thread's accumulators held when it collected them.
struct Collected {
    const float* d;
    std::vector<float> value;
};

struct WarpState {
    std::vector<Operation> open;
    std::list<std::vector<Operation>> groups;  // oldest first
    std::list<std::shared_ptr<Accumulators>> live;  // not collected by all lanes
    std::vector<Collected> collected[WARP];
    u32 issued = 0, retired = 0;
    u32 next_ticket = 0;
    Thread* reader = nullptr;  // the lane in whose name shared memory is read
    bool fenced = false;  // since the last wait
};

struct WarpgroupState {
    std::vector<Operands> issued;  // by the warp that was first
    std::vector<Thread*> waiting;
};

struct Warpgroups {
    std::vector<WarpState> warps;
    std::vector<WarpgroupState> groups;
    float a[K16 * ROWS], b[K16 * 256];  // operands of the operation at hand
    Clock told;
    bool used = true;  // by this block
};

static Warpgroups& state() {
    static thread_local auto all = std::make_unique<Warpgroups>();
    return *all;
}

static WarpState& warp_state(const Thread& self) {
    state().used = true;
    return state().warps[self.index / WARP];
}

// The lane whose knowledge decides whether wgmma may read: any, the same for as long as wgmma is under way.
static Thread& reading_lane(const Thread& self) {
    WarpState& warp = warp_state(self);
    if (warp.reader != nullptr && warp.issued > warp.retired + 1) return *warp.reader;
    u32 number = 0;
    for (u32 bit = 1; bit < WARP; bit *= 2) number |= coin() ? bit : 0;
    return *(warp.reader = &lane_thread(self, number));
}

static void require_warpgroup(Thread& self, const char* what) {
    u32 last = (self.index / (WARP * WARPGROUP) + 1) * WARP * WARPGROUP;
    if (last > machine->thread_count)
        fail(self, "%s, but its warpgroup is not whole: the block has %u threads", what, machine->thread_count);
}

// ---- Fragments -------------------------------------------------------------------------------------------------------

// "Matrix Fragments for wgmma.mma_async.m64nNk16", Figure "accumulator matrix D": row and column of a lane's d[i].
static u32 d_row(u32 lane, u32 i) {
    return lane / 4 + i / 2 % 2 * 8;
}
static u32 d_column(u32 lane, u32 i) {
    return i / 4 * 8 + lane % 4 * 2 + i % 2;
}

// Figure "matrix A": a[i] holds (row, k) and (row, k + 1).
static void unpack_a(Operation& operation, u32 lane, const SimQuad& a) {
    for (u32 i = 0; i < 4; i++) {
        u32 row = lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8;
        operation.a[k][row] = std::bit_cast<float>(a.at[i] << 16);
        operation.a[k + 1][row] = std::bit_cast<float>(a.at[i] & 0xffff0000u);
    }
}

// ---- Tickets ---------------------------------------------------------------------------------------------------------

// Quiet NaNs with the sign set: a ticket from 1 up in bits 7..21, the register's number below.
constexpr u32 NAN_BITS = 0xffc00000u;
constexpr u32 TICKETS = (1u << 15) - 1;

static float ticket_value(u32 ticket, u32 i) {
    return std::bit_cast<float>(NAN_BITS | ticket << 7 | i);
}

// The accumulators whose ticket `d` bears; null if it bears none that is known.
static std::shared_ptr<Accumulators> find_ticket(Thread& thread, const float* d, u32 count) {
    u32 bits = std::bit_cast<u32>(d[0]);
    if ((bits & NAN_BITS) != NAN_BITS || (bits & 127u) != 0) return nullptr;
    for (const auto& one : warp_state(thread).live) {
        if (one->ticket != (bits >> 7 & TICKETS)) continue;
        for (u32 i = 0; i < count; i++) {
            if (i < one->n / 2 && std::bit_cast<u32>(d[i]) == (bits | i)) continue;
            fail(thread, "touches accumulator %u of a wgmma that has not been waited for", i);
        }
        return one;
    }
    return nullptr;
}

static std::shared_ptr<Accumulators> new_accumulators(WarpState& warp, u32 n) {
    auto made = std::make_shared<Accumulators>();
    made->ticket = warp.next_ticket = warp.next_ticket % TICKETS + 1;
    made->n = n;
    made->value.resize(static_cast<size_t>(ROWS) * n);
    warp.live.push_back(made);
    return made;
}

// ---- Issue -----------------------------------------------------------------------------------------------------------

struct Posted {
    float* d;
    Operands operands;
    SimQuad a;
};

static const Posted& posted(const Thread& self, u32 number) {
    return *static_cast<const Posted*>(lane_thread(self, number).posted);
}

// All lanes of the warp, and all warps of the warpgroup, ask for the same.
static void check_alike(Thread& self, const Operands& operands) {
    for (u32 i = 0; i < WARP; i++) {
        if (posted(self, i).operands == operands) continue;
        fail(lane_thread(self, i), "issues another wgmma than thread %s of its warp", place_text(self));
    }
    WarpgroupState& group = state().groups[self.index / (WARP * WARPGROUP)];
    u32 number = warp_state(self).issued++;
    if (number == group.issued.size()) group.issued.push_back(operands);
    if (!(group.issued[number] == operands))
        fail(self, "issues another wgmma than the other warps of its warpgroup (its number %u)", number + 1);
    for (Thread* thread : group.waiting) wake(*thread);
    group.waiting.clear();
}

static bool as_collected(const WarpState& warp, u32 number, const Posted& mine) {
    for (const Collected& one : warp.collected[number]) {
        if (one.d != mine.d || one.value.size() != mine.operands.n / 2) continue;
        return memcmp(one.value.data(), mine.d, one.value.size() * 4) == 0;
    }
    return false;
}

static void check_fence(Thread& self, const Operands& operands, bool chained) {
    const WarpState& warp = warp_state(self);
    if (warp.fenced) return;
    if (operands.a_in_registers) fail(self, "issues wgmma with A in registers and no wgmma.fence since the last wait");
    if (chained) return;
    for (u32 i = 0; i < WARP; i++) {
        if (!as_collected(warp, i, posted(self, i)))
            fail(lane_thread(self, i), "issues wgmma on accumulators that other instructions have written, with no "
                 "wgmma.fence since");
    }
}

// Finds or makes the accumulators of an operation, and poisons the registers.
static std::shared_ptr<Accumulators> take_accumulators(Thread& self, const Operands& operands) {
    u32 count = operands.n / 2;
    std::shared_ptr<Accumulators> d = find_ticket(lane_thread(self, 0), posted(self, 0).d, count);
    for (u32 i = 1; i < WARP; i++) {
        if (find_ticket(lane_thread(self, i), posted(self, i).d, count) != d)
            fail(lane_thread(self, i), "gives wgmma other accumulators than the rest of its warp");
    }
    check_fence(self, operands, d != nullptr);
    if (d != nullptr && d->n != operands.n)
        fail(self, "issues wgmma of another shape on accumulators that are under way");
    bool adds = operands.scale_d != 0;
    if (d == nullptr || !adds) {
        if (d != nullptr) warp_state(self).live.remove(d);
        bool fresh = d == nullptr;
        d = new_accumulators(warp_state(self), operands.n);
        for (u32 i = 0; fresh && adds && i < WARP; i++) {
            for (u32 j = 0; j < count; j++) d->value[d_row(i, j) * d->n + d_column(i, j)] = posted(self, i).d[j];
        }
    }
    for (u32 i = 0; i < WARP; i++) {
        for (u32 j = 0; j < count; j++) posted(self, i).d[j] = ticket_value(d->ticket, j);
    }
    d->pending++;
    d->collected = 0;
    return d;
}

static void issue(Thread& self, u32) {
    const Operands operands = posted(self, 0).operands;
    check_alike(self, operands);
    Operation operation;
    operation.operands = operands;
    operation.d = take_accumulators(self, operands);
    Thread& reader = reading_lane(self);
    u32 first_row = self.index / WARP % WARPGROUP * ROWS;
    if (operands.a_in_registers) {
        for (u32 i = 0; i < WARP; i++) unpack_a(operation, i, posted(self, i).a);
    } else {
        MatrixPlace a = decode_descriptor(reader, operands.a, operands.a_major == 0, "A");
        begin_matrix_read(reader, a, first_row, ROWS, operation.tags);
    }
    MatrixPlace b = decode_descriptor(reader, operands.b, operands.b_major == 0, "B");
    begin_matrix_read(reader, b, 0, operands.n, operation.tags);
    warp_state(self).open.push_back(std::move(operation));
}

static void start(float* d, const Operands& operands, const SimQuad& a) {
    static const char name[] = "wgmma.mma_async";
    Thread& self = current_thread();
    require_warpgroup(self, "issues wgmma");
    Posted mine = {d, operands, a};
    meet(self, name, ALL_LANES, &mine, issue);
}

extern "C" void sim_wgmma_shared(float* d, u32 count, u64 a, u64 b, u32 a_major, u32 b_major, u32 scale_d) {
    machine->pc = __builtin_return_address(0);
    start(d, {count * 2, false, a, b, a_major, b_major, scale_d}, {});
}

extern "C" void sim_wgmma_registers(float* d, u32 count, SimQuad a, u64 b, u32 b_major, u32 scale_d) {
    machine->pc = __builtin_return_address(0);
    start(d, {count * 2, true, 0, b, 0, b_major, scale_d}, a);
}

extern "C" void sim_wgmma_fence() {
    machine->pc = __builtin_return_address(0);
    static const char name[] = "wgmma.fence";
    meet(current_thread(), name, ALL_LANES, nullptr, [](Thread& self, u32) { warp_state(self).fenced = true; });
}

extern "C" void sim_wgmma_commit() {
    machine->pc = __builtin_return_address(0);
    static const char name[] = "wgmma.commit_group";
    meet(current_thread(), name, ALL_LANES, nullptr, [](Thread& self, u32) {
        WarpState& warp = warp_state(self);
        warp.groups.push_back(std::move(warp.open));
        warp.open.clear();
    });
}

// ---- Completion ------------------------------------------------------------------------------------------------------

// d += a b: sixteen products and what was there are added as one sum, which is cut to f32, not rounded.
static void multiply(const Operation& operation, const float* a, const float* b) {
    Accumulators& d = *operation.d;
    if (operation.operands.scale_d == 0) std::fill(d.value.begin(), d.value.end(), 0.0f);
    double sum[MOST_COLUMNS];
    for (u32 row = 0; row < ROWS; row++) {
        float* to = d.value.data() + static_cast<size_t>(row) * d.n;
        std::copy_n(to, d.n, sum);
        for (u32 k = 0; k < K16; k++) {
            double factor = a[k * ROWS + row];
            const float* from = b + k * d.n;
            for (u32 column = 0; column < d.n; column++) sum[column] += factor * from[column];
        }
        std::transform(sum, sum + d.n, to, cut);
    }
}

static void retire(Thread& self, const Operation& operation) {
    float* a = state().a;
    float* b = state().b;
    const Operands& operands = operation.operands;
    Thread& reader = *warp_state(self).reader;
    const Tag* tags = operation.tags.data();
    if (operands.a_in_registers) {
        memcpy(a, operation.a, sizeof operation.a);
    } else {
        MatrixPlace place = decode_descriptor(reader, operands.a, operands.a_major == 0, "A");
        end_matrix_read(reader, place, self.index / WARP % WARPGROUP * ROWS, ROWS, tags, a);
    }
    end_matrix_read(reader, decode_descriptor(reader, operands.b, operands.b_major == 0, "B"), 0, operands.n, tags, b);
    multiply(operation, a, b);
    operation.d->pending--;
    warp_state(self).retired++;
}

// How many operations of the warp are complete after a wait that leaves `pending` groups.
static u32 retired_after(const WarpState& warp, u32 pending) {
    u32 count = warp.retired;
    size_t left = warp.groups.size();
    for (const auto& group : warp.groups) {
        if (left-- <= pending) break;
        count += static_cast<u32>(group.size());
    }
    return count;
}

// Whether the other warps of the warpgroup have come as far; without them hardware does not begin.
static bool others_have_issued(const Thread& self, u32 count) {
    u32 first = self.index / (WARP * WARPGROUP) * WARPGROUP;
    for (u32 i = 0; i < WARPGROUP; i++) {
        if (state().warps[first + i].issued < count) return false;
    }
    return true;
}

// The reads were the whole warp's: whichever lane hands the memory back, they come before that.
static void tell_warp(Thread& reader) {
    Clock& clock = state().told;
    clock.warps = 0;
    clock.join(reader.index, time_of(reader.tag));
    for (u32 i = 0; i < WARP; i++) acquire(lane_thread(reader, i), clock);
    advance(reader);
}

extern "C" void sim_wgmma_wait(u32 pending) {
    machine->pc = __builtin_return_address(0);
    static const char name[] = "wgmma.wait_group";
    static const char waits[] = "wgmma.wait_group for a wgmma that not all warps of its warpgroup have issued";
    Thread& self = current_thread();
    require_warpgroup(self, "waits for wgmma");
    while (!others_have_issued(self, retired_after(warp_state(self), pending))) {
        state().groups[self.index / (WARP * WARPGROUP)].waiting.push_back(&self);
        block(self, waits);
    }
    meet(self, name, ALL_LANES, &pending, [](Thread& last, u32) {
        WarpState& warp = warp_state(last);
        u32 leave = *static_cast<u32*>(last.posted);
        while (warp.groups.size() > leave) {
            for (const Operation& operation : warp.groups.front()) retire(last, operation);
            warp.groups.pop_front();
        }
        if (warp.reader != nullptr) tell_warp(*warp.reader);
        warp.fenced = false;
    });
}

static void remember(WarpState& warp, u32 number, const float* d, u32 count) {
    for (Collected& one : warp.collected[number]) {
        if (one.d != d) continue;
        one.value.assign(d, d + count);
        return;
    }
    warp.collected[number].push_back({d, std::vector<float>(d, d + count)});
}

extern "C" void sim_wgmma_collect(float* d, u32 count) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    WarpState& warp = warp_state(self);
    std::shared_ptr<Accumulators> from = find_ticket(self, d, count);
    if (from == nullptr) return;
    if (from->pending > 0) fail(self, "names accumulators at a wgmma_wait that leaves them under way");
    u32 number = self.index % WARP;
    for (u32 i = 0; i < count; i++) d[i] = from->value[d_row(number, i) * from->n + d_column(number, i)];
    remember(warp, number, d, count);
    from->collected |= 1u << number;
    if (from->collected == ALL_LANES) warp.live.remove(from);
}

// ---- A block's start and end -----------------------------------------------------------------------------------------

static void start_block() {
    Warpgroups& all = state();
    size_t warps = machine->warps.size() + WARPGROUP;
    if (!all.used && all.warps.size() == warps) return;
    all.used = false;
    all.warps.clear();
    all.warps.resize(warps);
    all.groups.clear();
    all.groups.resize(machine->warps.size() / WARPGROUP + 1);
}

static void end_block() {
    for (u32 i = 0; i < machine->warps.size(); i++) {
        const WarpState& warp = state().warps[i];
        Thread& thread = *machine->threads[i * WARP];
        if (warp.issued != warp.retired)
            fail(thread, "the block ends while wgmma of this warp is under way: it has not waited for it");
        if (!warp.live.empty())
            fail(thread, "the block ends with results of wgmma that no wgmma_wait of this warp has named");
        u32 first = i / WARPGROUP * WARPGROUP;
        if (state().warps[first].issued != warp.issued)
            fail(thread, "this warp has issued %u wgmma, the first of its warpgroup %u", warp.issued,
                 state().warps[first].issued);
    }
}

static const bool registered = (on_block_start(start_block), on_block_end(end_block), true);

}  // namespace sim
