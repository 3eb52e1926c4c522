// scheduler.cpp: runs the blocks of a launch one after another, and a block's threads as fibres in a seeded random order.

#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>

#include "runtime.h"

extern "C" {
__thread SimDim3 threadIdx __attribute__((tls_model("initial-exec")));
__thread SimDim3 blockIdx __attribute__((tls_model("initial-exec")));
__thread SimDim3 blockDim __attribute__((tls_model("initial-exec")));
__thread SimDim3 gridDim __attribute__((tls_model("initial-exec")));
}

namespace sim {

__thread Machine* machine __attribute__((tls_model("initial-exec"))) = nullptr;

// What other files of the runtime want to be told. Filled while the library is loaded.
struct Callbacks {
    std::vector<void (*)()> block_start, block_end;
    std::vector<bool (*)()> idle;
};

static Callbacks& callbacks() {
    static Callbacks all;
    return all;
}

void on_block_start(void (*callback)()) {
    callbacks().block_start.push_back(callback);
}

void on_block_end(void (*callback)()) {
    callbacks().block_end.push_back(callback);
}

void on_idle(bool (*callback)()) {
    callbacks().idle.push_back(callback);
}

// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), scaled to 0..below.
static u32 draw(u64& state, u32 below) {
    u64 z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return static_cast<u32>((z >> 32) * below >> 32);
}

// ---- Errors ----------------------------------------------------------------------------------------------------------

const char* place_text(const Thread& thread) {
    Machine& m = *machine;
    char* text = m.place_texts[m.next_place_text++ % 4];
    snprintf(text, sizeof m.place_texts[0], "(%u, %u, %u)", thread.place.x, thread.place.y, thread.place.z);
    return text;
}

// What a blocked thread waits at.
std::string wait_text(const Thread& thread) {
    if (thread.state == State::Exited) return "has exited";
    if (thread.state == State::Runnable) return "has not come there yet";
    std::string text = std::string("waits at ") + thread.waits_at;
    if (thread.waits_detail != 0) {
        char detail[32];
        snprintf(detail, sizeof detail, "(0x%llx)", thread.waits_detail);
        text += detail;
    }
    if (thread.waits_at == SYNCTHREADS) text += " (its " + ordinal(thread.barriers + 1) + ")";
    return text;
}

std::string ordinal(u32 n) {
    const char* ending = "th";
    if (n % 100 < 11 || n % 100 > 13) ending = n % 10 == 1 ? "st" : n % 10 == 2 ? "nd" : n % 10 == 3 ? "rd" : "th";
    return std::to_string(n) + ending;
}

void record_failure(Thread& thread, const char* text) {
    Machine& m = *machine;
    if (m.failed) return;
    m.failed = true;
    m.error_pc = &thread == m.current ? m.pc : thread.pc;
    snprintf(m.error, m.error_bytes, "%s: block (%u, %u, %u) thread %s: %s", m.launch->kernel, m.block.x, m.block.y,
             m.block.z, place_text(thread), text);
}

void fail(Thread& thread, const char* format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    record_failure(thread, text);
    abandon_block();
}

void abandon_block() {
    machine->stack_low = 0;
    switch_context(machine->abandoned, machine->scheduler);
    __builtin_unreachable();
}

// Nobody can run and not all have exited: says who waits where, one thread for each place.
[[noreturn]] static void report_deadlock() {
    std::vector<std::pair<std::string, Thread*>> places;
    Thread* subject = nullptr;
    for (Thread* thread : machine->threads) {
        std::string where = wait_text(*thread);
        bool listed = false;
        for (const auto& place : places) listed = listed || place.first == where;
        if (!listed) places.emplace_back(where, thread);
        if (subject == nullptr && thread->state == State::Blocked) subject = thread;
    }
    std::string text = wait_text(*subject);
    const char* before = ", but thread ";
    for (const auto& [where, thread] : places) {
        if (where == wait_text(*subject)) continue;
        text += before + std::string(place_text(*thread)) + " " + where;
        before = ", thread ";
    }
    if (places.size() == 1) text += ", and so does every thread of the block";
    fail(*subject, "%s: nobody can go on", text.c_str());
}

// ---- Switching -------------------------------------------------------------------------------------------------------

// Takes a runnable thread, at random, and makes it the current one.
static Thread& pick_next() {
    Machine& m = *machine;
    size_t count = m.runnable.size();
    u32 pick = draw(m.random, static_cast<u32>(count));
    Thread& next = *m.runnable[pick];
    m.runnable[pick] = m.runnable[count - 1];
    m.runnable.pop_back();
    m.current = &next;
    m.pc = next.pc;
    m.stack_low = reinterpret_cast<u64>(next.stack_low);
    threadIdx = next.place;
    return next;
}

// Lets somebody else run; returns when `self` is picked again.
static void run_next(Thread& self) {
    Machine& m = *machine;
    if (m.exited == m.thread_count) {
        for (auto* callback : callbacks().block_end) callback();
        m.stack_low = 0;
        switch_context(self.context, m.scheduler);
    }
    if (m.runnable.empty()) {
        bool woken = false;
        for (auto* callback : callbacks().idle) woken = callback() || woken;
        if (!woken || m.runnable.empty()) report_deadlock();
    }
    self.pc = m.pc;
    Thread& next = pick_next();
    if (&next != &self) switch_context(self.context, next.context);
}

void block(Thread& self, const char* waits_at, u64 detail) {
    self.state = State::Blocked;
    self.waits_at = waits_at;
    self.waits_detail = detail;
    run_next(self);
}

void wake(Thread& thread) {
    thread.state = State::Runnable;
    machine->runnable.push_back(&thread);
}

// The first frame of each thread.
static void thread_main() {
    machine->launch->entry(machine->launch->args);
    Machine& m = *machine;
    Thread& self = *m.current;
    self.state = State::Exited;
    m.exited++;
    m.warps[self.index / WARP].exited |= 1u << self.index % WARP;
    check_wanted(self, "has exited", ALL_LANES);
    run_next(self);
    __builtin_unreachable();
}

// ---- __syncthreads ---------------------------------------------------------------------------------------------------

const char SYNCTHREADS[] = "__syncthreads";

extern "C" void sim_syncthreads() {
    Machine& m = *machine;
    Thread& self = *m.current;
    m.pc = __builtin_return_address(0);
    if (++m.at_syncthreads < m.thread_count) {
        check_wanted(self, "comes to __syncthreads", ALL_LANES);
        m.warps[self.index / WARP].at_syncthreads |= 1u << self.index % WARP;
        block(self, SYNCTHREADS);
        return;
    }
    m.at_syncthreads = 0;
    for (Warp& warp : m.warps) warp.at_syncthreads = 0;
    synchronise_block();
    for (Thread* thread : m.threads) {
        if (thread != &self) wake(*thread);
    }
}

// ---- A block, a launch -----------------------------------------------------------------------------------------------

// Objects of a host thread that are kept from launch to launch. Not thread_local themselves: variables at a fixed place
// relative to the thread, as `machine` is for speed, leave little room for others in a library loaded at run time.
struct Kept {
    Machine machine{};
    StackPool stacks;
    std::vector<std::unique_ptr<Thread>> threads;
};

static void start_thread(Thread& thread, u32 index, const u32 shape[3]) {
    thread.place = {index % shape[0], index / shape[0] % shape[1], index / shape[0] / shape[1]};
    thread.index = index;
    thread.state = State::Runnable;
    thread.tag = machine->floor_tag | index;
    thread.access_id = 0;
    thread.barriers = 0;
    thread.pc = nullptr;
    thread.known_since = 0;
    thread.copies.clear();
    thread.groups.clear();
    // Tops at different places of a page: else all stacks would fall into the same few sets of the cache.
    make_context(thread.context, thread.stack_low, thread.stack_low + STACK_BYTES - index * 448 % 8192, thread_main);
}

static void run_block(Machine& m, u32 number) {
    const u32* grid = m.launch->grid;
    m.block_number = number;
    m.block = blockIdx = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
    m.time = 1;
    m.floor_tag = m.time << 10;
    m.exited = m.at_syncthreads = 0;
    m.syncthreads_times.clear();
    m.runnable.clear();
    clear_shared_memory(m);
    for (Warp& warp : m.warps) warp.exited = warp.at_syncthreads = warp.count = 0;
    for (u32 i = 0; i < m.thread_count; i++) {
        start_thread(*m.threads[i], i, m.launch->block);
        m.runnable.push_back(m.threads[i]);
    }
    for (auto* callback : callbacks().block_start) callback();
    switch_context(m.scheduler, pick_next().context);
}

// What is wrong with the shape of a launch; null if nothing.
static const char* refusal(const SimLaunch& launch) {
    for (u32 n : launch.grid) {
        if (n == 0) return "a grid dimension is 0";
    }
    if (launch.grid[0] > 0x7fffffffu || launch.grid[1] > 65535 || launch.grid[2] > 65535) return "the grid is too large";
    u64 threads = 1;
    for (u32 n : launch.block) threads *= n;
    if (threads == 0) return "a block dimension is 0";
    if (threads > MAX_THREADS || launch.block[2] > 64) return "a block has more than 1,024 threads, or more than 64 in z";
    if (launch.most_threads != 0 && threads > launch.most_threads) return "a block has more threads than its __launch_bounds__ allow";
    if (launch.shared_bytes > MAX_SHARED_BYTES) return "more than 227 KiB of shared memory";
    return nullptr;
}

static bool make_threads(Kept& kept, u32 count) {
    Machine& m = kept.machine;
    while (kept.threads.size() < count) {
        char* stack = kept.stacks.stack(kept.threads.size());
        if (stack == nullptr) return false;
        kept.threads.push_back(std::make_unique<Thread>());
        kept.threads.back()->stack_low = stack;
    }
    m.threads.clear();
    for (u32 i = 0; i < count; i++) m.threads.push_back(kept.threads[i].get());
    m.thread_count = count;
    m.warps.resize((count + WARP - 1) / WARP);
    return true;
}

static void run_blocks(Machine& m) {
    const SimLaunch& launch = *m.launch;
    blockDim = {launch.block[0], launch.block[1], launch.block[2]};
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    m.random = launch.seed;
    std::vector<u32> order(static_cast<size_t>(launch.grid[0]) * launch.grid[1] * launch.grid[2]);
    std::iota(order.begin(), order.end(), 0u);
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw(m.random, static_cast<u32>(i))]);
    for (u32 number : order) {
        run_block(m, number);
        if (m.failed) break;
    }
}

extern "C" int sim_launch(const SimLaunch* launch, char* error, size_t error_bytes) {
    static thread_local auto kept = std::make_unique<Kept>();
    Machine& m = kept->machine;
    m.launch = launch;
    m.error = error;
    m.error_bytes = error_bytes;
    m.failed = false;
    const char* wrong = refusal(*launch);
    if (wrong == nullptr && !make_threads(*kept, launch->block[0] * launch->block[1] * launch->block[2]))
        wrong = "no memory for the threads' stacks";
    if (wrong == nullptr && !start_shared_memory(m)) wrong = "no memory for shared memory";
    if (wrong != nullptr) {
        snprintf(error, error_bytes, "%s: %s", launch->kernel, wrong);
        return 1;
    }
    if (!bind_regions(m)) return 1;
    FaultGuard guard;
    machine = &m;
    run_blocks(m);
    machine = nullptr;
    if (!m.failed) return 0;
    size_t length = strlen(error);
    snprintf(error + length, error_bytes - length, "%s", source_text(m.error_pc).c_str());
    return 1;
}

}  // namespace sim
