// warp_hopper.cpp: what else the lanes of a warp do together on Hopper: elect.sync, stmatrix, setmaxnreg.

#include <cstring>
#include <memory>

#include "hopper.h"

namespace sim {


// ---- elect.sync ------------------------------------------------------------------------------------------------------

// Which lane is elected is not documented, only that it is the same every time. Here the seed decides.
extern "C" u32 sim_elect() {
    machine->pc = __builtin_return_address(0);
    static const char name[] = "elect.sync";
    Thread& self = current_thread();
    meet(self, name, ALL_LANES, nullptr, [](Thread&, u32) {});
    u64 mixed = machine->launch->seed * 0x9e3779b97f4a7c15u;
    return self.index % WARP == mixed >> 59;
}

// ---- stmatrix --------------------------------------------------------------------------------------------------------

struct StoreArguments {
    u8* row;
    SimQuad registers;
};

// Lane l's register i is two neighbours of row l / 4 of matrix i, or of its transpose; lanes 8i to 8i + 7 say where the
// matrix's rows go.
template <bool transposed>
static void finish_stmatrix(Thread& self, u32) {
    for (u32 i = 0; i < 4; i++) {
        u16 matrix[8][8];
        for (u32 number = 0; number < WARP; number++) {
            u32 pair = static_cast<StoreArguments*>(lane_thread(self, number).posted)->registers.at[i];
            u32 row = number / 4, column = number % 4 * 2;
            for (u32 j = 0; j < 2; j++) {
                u16 element = static_cast<u16>(pair >> 16 * j);
                if (transposed)
                    matrix[column + j][row] = element;
                else
                    matrix[row][column + j] = element;
            }
        }
        for (u32 row = 0; row < 8; row++) {
            memcpy(static_cast<StoreArguments*>(lane_thread(self, 8 * i + row).posted)->row, matrix[row], 16);
        }
    }
}

extern "C" void sim_stmatrix_x4(void* row, SimQuad registers, u32 transposed) {
    machine->pc = __builtin_return_address(0);
    static const char* const names[] = {"stmatrix", "stmatrix.trans"};
    Thread& self = current_thread();
    check_aligned(self, row, 16, 16, "stmatrix writes");
    check_shared_write(self, row, 16, "stmatrix writes");
    StoreArguments arguments = {static_cast<u8*>(row), registers};
    meet(self, names[transposed], ALL_LANES, &arguments, transposed ? finish_stmatrix<true> : finish_stmatrix<false>);
}

// ---- setmaxnreg ------------------------------------------------------------------------------------------------------

constexpr u32 WARPGROUP = 4;  // warps
constexpr u32 REGISTERS = 64 * 1024;  // of an SM

static std::vector<std::vector<u32>>& asked() {
    static thread_local auto all = std::make_unique<std::vector<std::vector<u32>>>();
    return *all;
}

extern "C" void sim_setmaxnreg(u32 registers, u32 increase) {
    machine->pc = __builtin_return_address(0);
    static const char* const names[] = {"setmaxnreg.dec", "setmaxnreg.inc"};
    Thread& self = current_thread();
    if (registers < 24 || registers > 256 || registers % 8 != 0)
        fail(self, "%s to %u registers; 24 to 256 in steps of 8 are allowed", names[increase], registers);
    meet(self, names[increase], ALL_LANES, &registers, [](Thread& last, u32) {
        asked()[last.index / WARP].push_back(*static_cast<u32*>(last.posted));
    });
}

static void start_block() {
    asked().assign(machine->warps.size(), {});
}

// Every warp of a warpgroup runs the same setmaxnreg, and what all hold in the end fits an SM, or an increase would wait
// for ever.
static void end_block() {
    u32 total = 0;
    bool all_asked = true;
    for (u32 i = 0; i < machine->warps.size(); i++) {
        const std::vector<u32>& mine = asked()[i];
        u32 first = i / WARPGROUP * WARPGROUP;
        if (mine != asked()[first])
            fail(*machine->threads[i * WARP], "this warp has not run the same setmaxnreg as the first of its "
                 "warpgroup, which holds thread %s", place_text(*machine->threads[first * WARP]));
        all_asked = all_asked && !mine.empty();
        if (!mine.empty()) total += mine.back() * WARP;
    }
    if (all_asked && total > REGISTERS)
        fail(*machine->threads[0], "the block's warps ask for %u registers by setmaxnreg; an SM has %u", total,
             REGISTERS);
}

static const bool registered = (on_block_start(start_block), on_block_end(end_block), true);

}  // namespace sim
