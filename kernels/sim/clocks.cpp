// clocks.cpp: which accesses happen before which, within a block.
//
// Time is one counter per block; a thread takes a new time at each synchronisation. After __syncthreads everything before
// it is known to everybody, which is one number, the floor. What threads know beyond the floor, through __syncwarp and
// the barriers of Hopper, they keep as a vector over the block's threads.

#include <algorithm>

#include "sim_internal.h"

namespace sim {

void Clock::open(u32 warp) {
    if (warps >> warp & 1u) return;
    std::fill_n(at + warp * WARP, WARP, 0u);
    warps |= 1u << warp;
}

void Clock::join(u32 thread, u32 time) {
    open(thread / WARP);
    at[thread] = std::max(at[thread], time);
}

void Clock::join(const Clock& other) {
    for (u32 warp = 0; other.warps >> warp != 0; warp++) {
        if ((other.warps >> warp & 1u) == 0) continue;
        open(warp);
        u32* mine = at + warp * WARP;
        const u32* theirs = other.at + warp * WARP;
        for (u32 i = 0; i < WARP; i++) mine[i] = std::max(mine[i], theirs[i]);
        if (warp == MAX_THREADS / WARP - 1) break;
    }
}

// What `self` knows beyond the floor; forgotten at each __syncthreads.
static Clock& known(Thread& self) {
    if (self.known_since != machine->floor_tag) {
        self.known.warps = 0;
        self.known_since = machine->floor_tag;
    }
    return self.known;
}

static u32 next_time(Thread& self) {
    if (machine->time == MAX_TIME) fail(self, "synchronises more often than the simulator can count in one block");
    return ++machine->time;
}

static void move_to(Thread& self, u32 time) {
    self.tag = time << 10 | self.index;
    self.access_id = 0;
}

void advance(Thread& self) {
    move_to(self, next_time(self));
}

void release(Thread& self, Clock& into) {
    into.join(known(self));
    into.join(self.index, time_of(self.tag));
    advance(self);
}

void acquire(Thread& self, const Clock& from) {
    known(self).join(from);
}

void synchronise(Thread* const* threads, u32 count) {
    Clock& all = machine->scratch;
    all.warps = 0;
    for (u32 i = 0; i < count; i++) {
        all.join(known(*threads[i]));
        all.join(threads[i]->index, time_of(threads[i]->tag));
    }
    u32 time = next_time(*threads[0]);
    for (u32 i = 0; i < count; i++) {
        known(*threads[i]).join(all);
        move_to(*threads[i], time);
    }
}

void synchronise_block() {
    Machine& m = *machine;
    u32 time = next_time(*m.current);
    m.syncthreads_times.push_back(time);
    m.floor_tag = time << 10;
    for (Thread* thread : m.threads) {
        move_to(*thread, time);
        thread->barriers++;
    }
}

bool ordered(Thread& self, Tag tag) {
    if (tag < machine->floor_tag) return true;
    if (tag & ASYNC) return false;
    return thread_of(tag) == self.index || known(self).knows(tag);
}

}  // namespace sim
