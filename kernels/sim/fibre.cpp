// fibre.cpp: see fibre.h.

#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>

namespace sim {

constexpr size_t GUARD_BYTES = 16 * 1024;
constexpr size_t STRIDE = STACK_BYTES + GUARD_BYTES;

#if defined(__x86_64__) && !defined(SIM_UCONTEXT)

// Saves what the System V ABI lets a callee keep, and takes up where `to` left off.
extern "C" void sim_switch_stack(void** from, void* to);
asm(R"(
.text
.type sim_switch_stack, @function
sim_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size sim_switch_stack, . - sim_switch_stack
)");

void make_context(Context& context, char*, char* stack_high, void (*entry)()) {
    // Six registers, the entry as return address, and one word so that the entry sees the alignment of a call.
    auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_high) & ~uintptr_t{15});
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.stack_pointer = top;
}

void switch_context(Context& from, Context& to) {
    sim_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#elif defined(__aarch64__) && !defined(SIM_UCONTEXT)

extern "C" void sim_switch_stack(void** from, void* to);
asm(R"(
.text
.type sim_switch_stack, %function
sim_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size sim_switch_stack, . - sim_switch_stack
)");

void make_context(Context& context, char*, char* stack_high, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_high) & ~uintptr_t{15}) - 20;
    for (int i = 0; i < 20; i++) top[i] = nullptr;
    top[11] = reinterpret_cast<void*>(entry);  // x30: where `ret` goes
    context.stack_pointer = top;
}

void switch_context(Context& from, Context& to) {
    sim_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#else

void make_context(Context& context, char* stack_low, char* stack_high, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack_low;
    context.state.uc_stack.ss_size = static_cast<size_t>(stack_high - stack_low);
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

void switch_context(Context& from, Context& to) {
    swapcontext(&from.state, &to.state);
}

#endif

char* StackPool::stack(size_t index) {
    if (index >= CHUNK * CHUNKS) return nullptr;
    char*& chunk = chunks[index / CHUNK];
    if (chunk == nullptr) {
        void* fresh = mmap(nullptr, CHUNK * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (fresh == MAP_FAILED) return nullptr;
        chunk = static_cast<char*>(fresh);
        for (size_t i = 0; i < CHUNK; i++) mprotect(chunk + i * STRIDE, GUARD_BYTES, PROT_NONE);
    }
    return chunk + index % CHUNK * STRIDE + GUARD_BYTES;
}

StackPool::~StackPool() {
    for (char* chunk : chunks) {
        if (chunk != nullptr) munmap(chunk, CHUNK * STRIDE);
    }
}

bool in_guard_page(const char* stack_low, const void* address) {
    const auto* at = static_cast<const char*>(address);
    return at >= stack_low - GUARD_BYTES && at < stack_low;
}

}  // namespace sim
