// hooks.cpp: what -fsanitize=thread makes a compiler put before each load and store of a kernel. Nothing of the real
// ThreadSanitizer is linked; these are our own.

#include "checks.h"

namespace sim {

// Accesses to the thread's own stack, which is where locals live whose address was taken, are its own business.
static inline bool own_stack(u64 address) {
    return address - machine->stack_low < STACK_BYTES;
}

template <u32 bytes, bool write>
__attribute__((always_inline)) static inline void aligned_access(const void* pointer, const void* pc) {
    u64 address = reinterpret_cast<u64>(pointer);
    if (machine == nullptr || own_stack(address)) return;
    Thread& self = current_thread();
    machine->pc = pc;
    const char* what = write ? "writes" : "reads";
    if (__builtin_expect(address % bytes != 0, 0)) check_aligned(self, pointer, bytes, bytes, what);
    check_any<write>(self, {address, bytes, what}, bytes > 1);
}

// Where the type's own alignment is below its size, the compiler says so; only the parts must be aligned then.
static void any_access(const void* pointer, u64 bytes, bool write, const void* pc) {
    u64 address = reinterpret_cast<u64>(pointer);
    if (machine == nullptr || bytes == 0 || own_stack(address)) return;
    machine->pc = pc;
    if (write)
        check_write(current_thread(), pointer, static_cast<u32>(bytes));
    else
        check_read(current_thread(), pointer, static_cast<u32>(bytes));
}

extern "C" {

#define HOOK(name, bytes, write)                                           \
    void name(const void* pointer) {                                       \
        aligned_access<bytes, write>(pointer, __builtin_return_address(0)); \
    }
#define LOOSE_HOOK(name, bytes, write)                                   \
    void name(const void* pointer) {                                     \
        any_access(pointer, bytes, write, __builtin_return_address(0));  \
    }
#define HOOKS(bytes)                                       \
    HOOK(__tsan_read##bytes, bytes, false)                 \
    HOOK(__tsan_write##bytes, bytes, true)                 \
    HOOK(__tsan_volatile_read##bytes, bytes, false)        \
    HOOK(__tsan_volatile_write##bytes, bytes, true)        \
    LOOSE_HOOK(__tsan_unaligned_read##bytes, bytes, false) \
    LOOSE_HOOK(__tsan_unaligned_write##bytes, bytes, true)

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

// clang's, for a load and a store of the same place.
#define READ_WRITE(name, bytes)                                          \
    void name(const void* pointer) {                                     \
        any_access(pointer, bytes, false, __builtin_return_address(0));  \
        any_access(pointer, bytes, true, __builtin_return_address(0));   \
    }
#define READ_WRITES(bytes)                      \
    READ_WRITE(__tsan_read_write##bytes, bytes) \
    READ_WRITE(__tsan_unaligned_read_write##bytes, bytes)

READ_WRITES(1)
READ_WRITES(2)
READ_WRITES(4)
READ_WRITES(8)
READ_WRITES(16)

void __tsan_read_range(const void* pointer, size_t bytes) {
    any_access(pointer, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(const void* pointer, size_t bytes) {
    any_access(pointer, bytes, true, __builtin_return_address(0));
}

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    any_access(from, bytes, false, __builtin_return_address(0));
    any_access(to, bytes, true, __builtin_return_address(0));
    return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    any_access(from, bytes, false, __builtin_return_address(0));
    any_access(to, bytes, true, __builtin_return_address(0));
    return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    any_access(to, bytes, true, __builtin_return_address(0));
    return memset(to, value, bytes);
}

void __tsan_init() {}
void __tsan_func_entry(const void*) {}
void __tsan_func_exit() {}
void __tsan_ignore_thread_begin() {}
void __tsan_ignore_thread_end() {}

}  // extern "C"

}  // namespace sim
