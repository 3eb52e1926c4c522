// fibre.h: stacks, and switching between them.
#pragma once

#include <cstddef>

// Defined by hand, it takes the C library's way on any machine.
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(SIM_UCONTEXT)
#define SIM_UCONTEXT
#endif
#ifdef SIM_UCONTEXT
#include <ucontext.h>
#endif

namespace sim {

constexpr size_t STACK_BYTES = 64 * 1024;

// Where a stack of execution left off.
struct Context {
#ifdef SIM_UCONTEXT
    ucontext_t state;
#else
    void* stack_pointer;
#endif
};

// A context that, when switched to, calls `entry` on a fresh stack. `entry` never returns.
void make_context(Context& context, char* stack_low, char* stack_high, void (*entry)());

void switch_context(Context& from, Context& to);

// Stacks of one host thread, each above a guard page, so that overflow is a fault and never damages a neighbour.
class StackPool {
  public:
    ~StackPool();
    // The lowest usable byte of stack `index`; null when there is no memory.
    char* stack(size_t index);

  private:
    static constexpr size_t CHUNK = 32;
    static constexpr size_t CHUNKS = 32;
    char* chunks[CHUNKS] = {};
};

// Whether `address` lies in the guard page below the stack at `stack_low`.
bool in_guard_page(const char* stack_low, const void* address);

}  // namespace sim
