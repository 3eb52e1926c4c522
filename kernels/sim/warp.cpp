// warp.cpp: what the lanes of a warp do together: shuffles, votes, __syncwarp, ldmatrix, mma.sync.
//
// Each lane posts its arguments. The last to arrive does the work for all, with `finish`, and lets them run.

#include <bit>
#include <cstdio>
#include <cstring>

#include "matrix_unit.h"
#include "runtime.h"

namespace sim {

// ---- Meeting ---------------------------------------------------------------------------------------------------------

[[noreturn]] static void report_missing(Thread& self, const Collective& here, u32 missing) {
    u32 lane = static_cast<u32>(std::countr_zero(missing));
    u32 index = self.index / WARP * WARP + lane;
    if (index >= machine->thread_count)
        fail(self, "%s with mask 0x%08x names lane %u, which this block's last warp does not have", here.name, here.mask, lane);
    Thread& other = *machine->threads[index];
    fail(self, "%s with mask 0x%08x wants lane %u, but thread %s %s", here.name, here.mask, lane, place_text(other),
         wait_text(other).c_str());
}

void check_wanted(Thread& self, const char* does, u32 lanes) {
    const Warp& warp = machine->warps[self.index / WARP];
    for (u32 i = 0; i < warp.count; i++) {
        const Collective& waiting = warp.pending[i];
        if ((waiting.mask >> self.index % WARP & 1u) == 0 || (waiting.arrived & lanes) == 0) continue;
        Thread& other = lane_thread(self, static_cast<u32>(std::countr_zero(waiting.arrived & lanes)));
        fail(self, "%s, but thread %s waits for it at %s with mask 0x%08x", does, place_text(other), waiting.name, waiting.mask);
    }
}

// Finds the operation that other lanes of `mask` wait at, or opens it.
static Collective& find_collective(Thread& self, Warp& warp, const char* name, u32 mask) {
    u32 lane = self.index % WARP;
    if ((mask >> lane & 1u) == 0) fail(self, "%s with mask 0x%08x, which leaves out the lane that calls it, %u", name, mask, lane);
    for (u32 i = 0; i < warp.count; i++) {
        Collective& waiting = warp.pending[i];
        if (waiting.name == name && waiting.mask == mask) return waiting;
    }
    if (warp.count > 0) {
        char does[96];
        snprintf(does, sizeof does, "comes to %s with mask 0x%08x", name, mask);
        check_wanted(self, does, mask);
    }
    // Lanes that wait for others may still come.
    u32 lanes = machine->thread_count - self.index / WARP * WARP;
    u32 missing = mask & (warp.exited | warp.at_syncthreads | (lanes < WARP ? ~0u << lanes : 0u));
    Collective here = {name, mask, 0};
    if (missing != 0) report_missing(self, here, missing);
    return warp.pending[warp.count++] = here;
}

void meet(Thread& self, const char* name, u32 mask, void* posted, void (*finish)(Thread& last, u32 mask)) {
    Warp& warp = machine->warps[self.index / WARP];
    u32 lane = 1u << self.index % WARP;
    Collective& here = find_collective(self, warp, name, mask);
    here.arrived |= lane;
    self.posted = posted;
    if (here.arrived != mask) {
        block(self, name, mask);
        return;
    }
    finish(self, mask);
    here = warp.pending[--warp.count];
    for (u32 rest = mask & ~lane; rest != 0; rest &= rest - 1) wake(lane_thread(self, static_cast<u32>(std::countr_zero(rest))));
}

// ---- Shuffles and votes ----------------------------------------------------------------------------------------------

struct ShuffleArguments {
    SimShuffle how;
    u32 value, lane, width;
    u32 result;
};

// The lane that `lane` reads, by the manual's table for shfl.sync; its own where the segment ends.
static u32 source_lane(u32 lane, const ShuffleArguments& a) {
    u32 first = lane & ~(a.width - 1);
    u32 last = first + a.width - 1;
    switch (a.how) {
        case SIM_SHUFFLE_INDEX:
            return first | (a.lane & (a.width - 1));
        case SIM_SHUFFLE_UP:
            return a.lane > lane - first ? lane : lane - a.lane;
        case SIM_SHUFFLE_DOWN:
            return a.lane > last - lane ? lane : lane + a.lane;
        default:
            return (lane ^ (a.lane & 31u)) > last ? lane : lane ^ (a.lane & 31u);
    }
}

static void finish_shuffle(Thread& self, u32 mask) {
    for (u32 rest = mask; rest != 0; rest &= rest - 1) {
        u32 lane = static_cast<u32>(std::countr_zero(rest));
        Thread& reader = lane_thread(self, lane);
        auto& mine = *static_cast<ShuffleArguments*>(reader.posted);
        u32 from = source_lane(lane, mine);
        if ((mask >> from & 1u) == 0) fail(reader, "shuffle with mask 0x%08x reads lane %u, which is not in the mask", mask, from);
        mine.result = static_cast<ShuffleArguments*>(lane_thread(self, from).posted)->value;
    }
}

extern "C" u32 sim_shuffle(SimShuffle how, u32 mask, u32 value, u32 lane, u32 width) {
    static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    if (!std::has_single_bit(width) || width > WARP) fail(self, "%s with width %u, which is no power of two up to 32", names[how], width);
    ShuffleArguments arguments = {how, value, lane, width, 0};
    meet(self, names[how], mask, &arguments, finish_shuffle);
    return arguments.result;
}

extern "C" u32 sim_vote(SimVote how, u32 mask, u32 predicate) {
    static const char* const names[] = {"__ballot_sync", "__any_sync", "__all_sync"};
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    u32 ballot = predicate;  // a predicate before the meeting, all of them after
    meet(self, names[how], mask, &ballot, [](Thread& last, u32 lanes) {
        u32 all = 0;
        for (u32 lane = 0; lane < WARP; lane++) {
            if (lanes >> lane & 1u) all |= *static_cast<u32*>(lane_thread(last, lane).posted) << lane;
        }
        for (u32 lane = 0; lane < WARP; lane++) {
            if (lanes >> lane & 1u) *static_cast<u32*>(lane_thread(last, lane).posted) = all;
        }
    });
    return how == SIM_VOTE_BALLOT ? ballot : how == SIM_VOTE_ANY ? ballot != 0 : ballot == mask;
}

extern "C" void sim_syncwarp(u32 mask) {
    static const char name[] = "__syncwarp";
    machine->pc = __builtin_return_address(0);
    meet(current_thread(), name, mask, nullptr, [](Thread& last, u32 lanes) {
        Thread* threads[WARP];
        u32 count = 0;
        for (u32 lane = 0; lane < WARP; lane++) {
            if (lanes >> lane & 1u) threads[count++] = &lane_thread(last, lane);
        }
        synchronise(threads, count);
    });
}

// ---- ldmatrix --------------------------------------------------------------------------------------------------------

struct LoadArguments {
    const u8* row;
    SimQuad result;
};

// Matrix i has its rows at the addresses of lanes 8i to 8i + 7. Lane l gets, as register i, two neighbours of row l / 4 of
// matrix i, or of its transpose.
template <bool transposed>
static void finish_ldmatrix(Thread& self, u32) {
    for (u32 i = 0; i < 4; i++) {
        u16 matrix[8][8];
        for (u32 row = 0; row < 8; row++) {
            memcpy(matrix[row], static_cast<LoadArguments*>(lane_thread(self, 8 * i + row).posted)->row, 16);
        }
        for (u32 lane = 0; lane < WARP; lane++) {
            u32 row = lane / 4, column = lane % 4 * 2;
            u32 low = transposed ? matrix[column][row] : matrix[row][column];
            u32 high = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
            static_cast<LoadArguments*>(lane_thread(self, lane).posted)->result.at[i] = low | high << 16;
        }
    }
}

extern "C" SimQuad sim_ldmatrix_x4(const void* row, u32 transposed) {
    static const char* const names[] = {"ldmatrix", "ldmatrix.trans"};
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    check_aligned(self, row, 16, 16, "ldmatrix reads");
    check_shared_read(self, row, 16, "ldmatrix reads");
    LoadArguments arguments = {static_cast<const u8*>(row), {}};
    meet(self, names[transposed], ALL_LANES, &arguments, transposed ? finish_ldmatrix<true> : finish_ldmatrix<false>);
    return arguments.result;
}

// ---- mma.sync --------------------------------------------------------------------------------------------------------

struct MmaArguments {
    SimFloat4 d;
    SimQuad a;
    SimPair b;
};

// Eight columns, added and multiplied element by element.
using Row = double __attribute__((vector_size(64)));

static float low(u32 pair) {
    return std::bit_cast<float>(pair << 16);
}

static float high(u32 pair) {
    return std::bit_cast<float>(pair & 0xffff0000u);
}

// d += a b, as sm_80 does it: eight products and what was there are added as one sum, which is cut to f32, not rounded.
static void finish_mma(Thread& self, u32) {
    float a[16][16], d[16][8];
    Row b[16];
    for (u32 lane = 0; lane < WARP; lane++) {
        const auto& mine = *static_cast<MmaArguments*>(lane_thread(self, lane).posted);
        u32 g = lane / 4, t = lane % 4 * 2;
        for (u32 i = 0; i < 4; i++) {
            float* pair = &a[g + i % 2 * 8][t + i / 2 * 8];
            pair[0] = low(mine.a.at[i]);
            pair[1] = high(mine.a.at[i]);
        }
        for (u32 i = 0; i < 2; i++) {
            b[t + i * 8][g] = low(mine.b.at[i]);
            b[t + i * 8 + 1][g] = high(mine.b.at[i]);
        }
        for (u32 i = 0; i < 4; i++) d[g + i / 2 * 8][t + i % 2] = mine.d.at[i];
    }
    for (u32 row = 0; row < 16; row++) {
        for (u32 half = 0; half < 16; half += 8) {
            Row sum;
            for (u32 column = 0; column < 8; column++) sum[column] = d[row][column];
            for (u32 k = half; k < half + 8; k++) sum += static_cast<double>(a[row][k]) * b[k];
            for (u32 column = 0; column < 8; column++) d[row][column] = cut(sum[column]);
        }
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        u32 g = lane / 4, t = lane % 4 * 2;
        auto& mine = *static_cast<MmaArguments*>(lane_thread(self, lane).posted);
        for (u32 i = 0; i < 4; i++) mine.d.at[i] = d[g + i / 2 * 8][t + i % 2];
    }
}

extern "C" SimFloat4 sim_mma_m16n8k16(SimFloat4 d, SimQuad a, SimPair b) {
    static const char name[] = "mma.sync";
    machine->pc = __builtin_return_address(0);
    MmaArguments arguments = {d, a, b};
    meet(current_thread(), name, ALL_LANES, &arguments, finish_mma);
    return arguments.d;
}

}  // namespace sim
