// fault.cpp: a fault inside a kernel (stack overflow, a jump to nowhere, integer division by zero) becomes an error of its
// launch instead of the end of the process.

#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <mutex>

#include "runtime.h"

namespace sim {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t HANDLER_STACK = 64 * 1024;

static std::mutex lock;
static u32 guards = 0;  // handlers are installed while there are any
static struct sigaction before[4];

static void restore(int signal) {
    for (int i = 0; i < 4; i++) {
        if (SIGNALS[i] == signal) sigaction(signal, &before[i], nullptr);
    }
}

// Where the fault was; one further, as return addresses are.
static const void* fault_pc([[maybe_unused]] void* context) {
#if defined(__linux__) && defined(__x86_64__)
    return reinterpret_cast<const void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] + 1);
#elif defined(__linux__) && defined(__aarch64__)
    return reinterpret_cast<const void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc + 1);
#else
    return nullptr;
#endif
}

static void on_fault(int signal, siginfo_t* info, void* context) {
    Machine* m = machine;
    if (m == nullptr || m->stack_low == 0) {
        // Not ours. The instruction faults again, and whoever was there before us sees it.
        restore(signal);
        return;
    }
    Thread& thread = *m->current;
    m->pc = fault_pc(context);
    char text[128];
    if (in_guard_page(thread.stack_low, info->si_addr))
        snprintf(text, sizeof text, "overflows its stack of %zu KiB", STACK_BYTES / 1024);
    else if (signal == SIGFPE)
        snprintf(text, sizeof text, "divides an integer by zero");
    else if (signal == SIGILL)
        snprintf(text, sizeof text, "comes to an illegal instruction, as compilers leave where no path may lead");
    else
        snprintf(text, sizeof text, "faults at address %p", info->si_addr);
    record_failure(thread, text);
    // SA_NODEFER: the signal is not blocked now, so leaving the handler's stack behind is all there is to leaving it.
    abandon_block();
}

FaultGuard::FaultGuard() {
    static thread_local auto memory = std::make_unique<char[]>(HANDLER_STACK);
    stack_t ours = {};
    ours.ss_sp = memory.get();
    ours.ss_size = HANDLER_STACK;
    sigaltstack(&ours, &stack_before);
    std::lock_guard<std::mutex> guard(lock);
    if (guards++ > 0) return;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &before[i]);
}

FaultGuard::~FaultGuard() {
    sigaltstack(&stack_before, nullptr);
    std::lock_guard<std::mutex> guard(lock);
    if (--guards > 0) return;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &before[i], nullptr);
}

}  // namespace sim
