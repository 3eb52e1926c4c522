// mbarrier.cpp: mbarriers and named barriers.
//
// "mbarrier": a phase completes when no arrival is pending and tx-count is 0; the next begins at once. Threads that arrive
// release what they know into the phase, threads that waited for it acquire that. Copies that count on a barrier land as
// late as can be: when all threads wait, or, by the toss of a coin, when somebody begins to wait for them.

#include <cstdio>
#include <cstring>
#include <memory>

#include "hopper.h"

namespace sim {

constexpr u32 MAX_COUNT = (1u << 20) - 1;  // of pending arrivals, and of tx-count in either direction
constexpr u8 OPAQUE = 0xB7;                // an mbarrier's bytes

struct Barrier {
    u8* address;
    Tag made;          // the write of mbarrier.init
    bool engine_knows;  // a fence has shown it to the async proxy
    u32 count, pending;
    long long tx;
    u32 phase;  // the one under way; so many are complete
    Clock arriving, completed;
    std::vector<Thread*> waiting;
    std::vector<Thread*> woken;  // have not run since the last phase completed
    std::vector<Load> loads;     // not landed
    std::vector<Tag> used;       // by thread: when it last touched the barrier
    char wait_text[160];         // what its waiting threads say when nobody can go on
};

static std::vector<std::unique_ptr<Barrier>>& barriers() {
    static thread_local std::vector<std::unique_ptr<Barrier>> all;
    return all;
}

static Barrier* find(const void* address) {
    for (auto& barrier : barriers()) {
        if (barrier->address == address) return barrier.get();
    }
    return nullptr;
}

// The barrier that `self` is about to use, if it may.
static Barrier& use(Thread& self, void* address, const char* what) {
    check_aligned(self, address, 8, 8, what);
    Barrier* barrier = find(address);
    if (barrier == nullptr) {
        sim_shared_address(address);
        fail(self, "%s the mbarrier at %s, which mbarrier_init has not made", what, shared_text(address).c_str());
    }
    Thread& maker = *machine->threads[thread_of(barrier->made)];
    if (!ordered(self, barrier->made))
        fail(self, "%s the mbarrier at %s with no barrier since thread %s made it", what,
             shared_text(address).c_str(), place_text(maker));
    const Tag* writers = machine->shared_shadow.writer + (reinterpret_cast<u64>(address) - machine->shared) / CELL_BYTES;
    for (u32 i = 0; i < 8 / CELL_BYTES; i++) {
        if (writers[i] == barrier->made) continue;
        fail(self, "%s the mbarrier at %s, whose memory thread %s has written to", what, shared_text(address).c_str(),
             place_text(*machine->threads[thread_of(writers[i])]));
    }
    barrier->used[self.index] = self.tag;
    return *barrier;
}

// Completes the phase if it is through.
static void check_phase(Thread& self, Barrier& barrier) {
    if (barrier.pending > 0 || barrier.tx != 0) return;
    if (!barrier.woken.empty())
        fail(self, "completes a second phase of the mbarrier at %s before thread %s, which waited for the first, "
             "has seen that: it could wait for ever", shared_text(barrier.address).c_str(),
             place_text(*barrier.woken[0]));
    std::swap(barrier.completed, barrier.arriving);
    barrier.arriving.warps = 0;
    barrier.phase++;
    barrier.pending = barrier.count;
    for (Thread* thread : barrier.waiting) {
        acquire(*thread, barrier.completed);
        wake(*thread);
    }
    barrier.woken.swap(barrier.waiting);
}

static void add_tx(Thread& self, Barrier& barrier, long long bytes) {
    barrier.tx += bytes;
    if (barrier.tx > static_cast<long long>(MAX_COUNT) || barrier.tx < -static_cast<long long>(MAX_COUNT))
        fail(self, "takes tx-count of the mbarrier at %s to %lld, beyond its range of 2^20 - 1",
             shared_text(barrier.address).c_str(), barrier.tx);
}

// Lands one of the barrier's copies, any of them.
static void land_one(Barrier& barrier) {
    size_t pick = coin() ? 0 : barrier.loads.size() - 1;
    Load load = barrier.loads[pick];
    barrier.loads.erase(barrier.loads.begin() + static_cast<ptrdiff_t>(pick));
    land(load, barrier.arriving);
    add_tx(*load.issuer, barrier, -static_cast<long long>(load.bytes));
    check_phase(*load.issuer, barrier);
}

void count_on(Thread& self, void* address, const Load& load) {
    Barrier& barrier = use(self, address, "starts a copy that counts on");
    if (!barrier.engine_knows)
        fail(self, "starts a copy that counts on the mbarrier at %s, with no fence_mbarrier_init by thread %s since "
             "it made it", shared_text(address).c_str(), place_text(*machine->threads[thread_of(barrier.made)]));
    barrier.loads.push_back(load);
    if (!barrier.waiting.empty() && coin()) land_one(barrier);
}

static void describe_wait(Barrier& barrier) {
    snprintf(barrier.wait_text, sizeof barrier.wait_text,
             "mbarrier_wait for the mbarrier at %s, phase %u of which lacks %u of %u arrivals and %lld bytes",
             shared_text(barrier.address).c_str(), barrier.phase, barrier.pending, barrier.count, barrier.tx);
}

// When nobody can run: lands copies that somebody waits for, until a phase is complete.
static bool land_for_idle() {
    for (auto& barrier : barriers()) {
        while (!barrier->waiting.empty() && !barrier->loads.empty()) land_one(*barrier);
        if (!machine->runnable.empty()) return true;
        describe_wait(*barrier);
    }
    return false;
}

// ---- The instructions ------------------------------------------------------------------------------------------------

extern "C" void sim_mbarrier_init(void* address, u32 count) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    if (count == 0 || count > MAX_COUNT)
        fail(self, "mbarrier_init with a count of %u; 1 to 2^20 - 1 are allowed", count);
    if (find(address) != nullptr) fail(self, "mbarrier_init at %s, where an mbarrier is", shared_text(address).c_str());
    check_aligned(self, address, 8, 8, "mbarrier_init writes");
    check_shared_write(self, address, 8, "mbarrier_init writes");
    memset(address, OPAQUE, 8);
    auto barrier = std::make_unique<Barrier>();
    barrier->address = static_cast<u8*>(address);
    barrier->made = self.tag;
    barrier->count = barrier->pending = count;
    barrier->used.resize(machine->thread_count);
    barriers().push_back(std::move(barrier));
    advance(self);  // so that a later write to its memory has another tag
}

extern "C" void sim_mbarrier_inval(void* address) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    Barrier& barrier = use(self, address, "invalidates");
    for (const auto& held : {barrier.waiting, barrier.woken}) {
        if (!held.empty())
            fail(self, "invalidates the mbarrier at %s, which thread %s waits for", shared_text(address).c_str(),
                 place_text(*held[0]));
    }
    if (!barrier.loads.empty())
        fail(self, "invalidates the mbarrier at %s, on which a copy by thread %s counts", shared_text(address).c_str(),
             place_text(*barrier.loads[0].issuer));
    for (Tag tag : barrier.used) {
        if (tag != 0 && !ordered(self, tag))
            fail(self, "invalidates the mbarrier at %s with no barrier since thread %s used it",
                 shared_text(address).c_str(), place_text(*machine->threads[thread_of(tag)]));
    }
    std::erase_if(barriers(), [&](const auto& other) { return other.get() == &barrier; });
}

extern "C" void sim_fence_mbarrier_init() {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    for (auto& barrier : barriers()) {
        if (thread_of(barrier->made) == self.index) barrier->engine_knows = true;
    }
}

extern "C" void sim_mbarrier_arrive(void* address) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    Barrier& barrier = use(self, address, "arrives at");
    if (barrier.pending == 0)
        fail(self, "arrives at the mbarrier at %s more often than its count of %u allows in a phase",
             shared_text(address).c_str(), barrier.count);
    release(self, barrier.arriving);
    barrier.pending--;
    check_phase(self, barrier);
}

extern "C" void sim_mbarrier_expect_tx(void* address, u32 bytes) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    Barrier& barrier = use(self, address, "expects bytes at");
    add_tx(self, barrier, bytes);
    check_phase(self, barrier);
}

extern "C" void sim_mbarrier_wait(void* address, u32 parity) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    if (parity > 1) fail(self, "waits for parity %u; a phase's parity is 0 or 1", parity);
    Barrier& barrier = use(self, address, "waits for");
    // Copies that count on phases to come may land whenever they like, too.
    while (!barrier.loads.empty() && coin()) land_one(barrier);
    // The phase before the current one has the other parity, and is complete.
    if ((barrier.phase & 1) != parity) {
        acquire(self, barrier.completed);
        return;
    }
    barrier.waiting.push_back(&self);
    describe_wait(barrier);
    block(self, barrier.wait_text);
    std::erase(barrier.woken, &self);
}

// ---- Named barriers --------------------------------------------------------------------------------------------------

struct NamedBarrier {
    u32 threads;  // 0: nobody has come
    u32 came;
    Clock arriving;
    std::vector<Thread*> waiting;
    Thread* first;
};

constexpr u32 NAMED = 16;

static NamedBarrier* named_barriers() {
    static thread_local auto all = std::make_unique<NamedBarrier[]>(NAMED);
    return all.get();
}

static NamedBarrier& come(Thread& self, u32 id, u32 threads, const char* name) {
    if (id == 0 || id >= NAMED) fail(self, "%s of barrier %u; 1 to 15 are there (0 is __syncthreads)", name, id);
    if (threads == 0 || threads % WARP != 0 || threads > machine->thread_count)
        fail(self, "%s of barrier %u for %u threads; a multiple of 32 is wanted, up to the block's %u", name, id,
             threads, machine->thread_count);
    NamedBarrier& barrier = named_barriers()[id];
    if (barrier.threads != 0 && barrier.threads != threads)
        fail(self, "%s of barrier %u for %u threads, where thread %s said %u", name, id, threads,
             place_text(*barrier.first), barrier.threads);
    if (barrier.threads == 0) barrier.first = &self;
    barrier.threads = threads;
    barrier.came++;
    release(self, barrier.arriving);
    return barrier;
}

// All have come: those who wait go on and know what all did.
static void open_barrier(NamedBarrier& barrier) {
    for (Thread* thread : barrier.waiting) {
        acquire(*thread, barrier.arriving);
        if (thread != &current_thread()) wake(*thread);
    }
    barrier.waiting.clear();
    barrier.arriving.warps = 0;
    barrier.threads = barrier.came = 0;
}

extern "C" void sim_bar_sync(u32 id, u32 threads) {
    machine->pc = __builtin_return_address(0);
    static const char WAIT_NAMED[] = "bar_sync of a named barrier to which not all have come: number ";
    Thread& self = current_thread();
    NamedBarrier& barrier = come(self, id, threads, "bar_sync");
    barrier.waiting.push_back(&self);
    if (barrier.came == threads) {
        open_barrier(barrier);
    } else {
        block(self, WAIT_NAMED, id);
    }
}

extern "C" void sim_bar_arrive(u32 id, u32 threads) {
    machine->pc = __builtin_return_address(0);
    Thread& self = current_thread();
    NamedBarrier& barrier = come(self, id, threads, "bar_arrive");
    if (barrier.came == threads) open_barrier(barrier);
}

// ---- A block's start and end -----------------------------------------------------------------------------------------

static void start_block() {
    barriers().clear();
    for (u32 i = 0; i < NAMED; i++) {
        NamedBarrier& barrier = named_barriers()[i];
        barrier.threads = barrier.came = 0;
        barrier.arriving.warps = 0;
        barrier.waiting.clear();
    }
}

static void end_block() {
    for (auto& barrier : barriers()) {
        if (!barrier->loads.empty()) {
            const Load& load = barrier->loads[0];
            fail(*load.issuer, "the block ends while a copy by this thread to %s is under way: nobody has waited "
                 "for it", shared_text(load.to).c_str());
        }
        if (barrier->tx != 0)
            fail(*machine->threads[thread_of(barrier->made)], "the block ends while the mbarrier at %s has a "
                 "tx-count of %lld", shared_text(barrier->address).c_str(), barrier->tx);
    }
}

static const bool registered = (on_block_start(start_block), on_block_end(end_block), on_idle(land_for_idle), true);

}  // namespace sim
