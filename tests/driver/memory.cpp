// memory.cpp: device memory, page-locked memory, and what is put into streams to copy between them.
#include <cstdlib>
#include <cstring>

#include "stand_in.h"

using namespace stand_in;

// ---- Memory ----------------------------------------------------------------------------------------------------------

EXPORT i32 cuMemGetInfo_v2(size_t* free, size_t* total) {
    Call call("cuMemGetInfo_v2", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    *total = static_cast<size_t>(settings.memory);
    *free = *total - call.context->reserved;
    return SUCCESS;
}

EXPORT i32 cuMemAllocAsync(u64* address, size_t bytes, Stream* stream) {
    Call call("cuMemAllocAsync", NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check_stream(stream, nullptr)) return status;
    if (address == nullptr || bytes == 0) return refuse(INVALID_VALUE, call.text("of no bytes"));
    Context& context = *stream->context;
    if (settings.fail_allocation-- == 0) return refuse(OUT_OF_MEMORY, call.text("the test wants it to fail"));
    if (bytes > static_cast<u64>(settings.memory) - context.used) return refuse(OUT_OF_MEMORY, call.text("more than there is"));
    void* fresh = sim_alloc(bytes);
    if (fresh == nullptr) return refuse(OUT_OF_MEMORY, call.text("more than the host has"));
    *address = reinterpret_cast<u64>(fresh);
    allocations[*address] = {bytes, stream};
    context.used += bytes;
    if (context.used > context.reserved) context.reserved = context.used;
    return SUCCESS;
}

EXPORT i32 cuMemFreeAsync(u64 address, Stream* stream) {
    Call call("cuMemFreeAsync", NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    if (Status status = call.check_stream(stream, nullptr)) return status;
    auto found = allocations.find(address);
    if (found == allocations.end()) return refuse(INVALID_VALUE, call.text("not an allocation"));
    if (found->second.freed) return refuse(INVALID_VALUE, call.text("freed before"));
    if (found->second.stream != stream) return refuse(INVALID_VALUE, call.text("memory of another stream"));
    found->second.freed = true;
    stream->context->used -= found->second.bytes;
    Operation operation = {Operation::FREE};
    operation.to = address;
    put(*stream, std::move(operation));
    return lost;
}

EXPORT i32 cuMemHostAlloc(void** memory, size_t bytes, u32 flags) {
    Call call("cuMemHostAlloc", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    if (memory == nullptr || bytes == 0 || flags != 0) return refuse(INVALID_VALUE, call.text("of no bytes, or with flags"));
    *memory = malloc(bytes);
    if (*memory == nullptr) return refuse(OUT_OF_MEMORY, call.text("more than the host has"));
    memset(*memory, 0xDA, bytes);
    pinned[reinterpret_cast<u64>(*memory)] = bytes;
    return SUCCESS;
}

// Whether a copy from or to these bytes of the host is still to be made.
static bool is_copied(u64 start, u64 bytes) {
    for (const Object* object : alive) {
        if (object->kind != Object::STREAM) continue;
        for (const Operation& operation : static_cast<const Stream*>(object)->queue) {
            if (operation.host != nullptr && lies_within(start, bytes, reinterpret_cast<u64>(operation.host), 1)) return true;
        }
    }
    return false;
}

EXPORT i32 cuMemFreeHost(void* memory) {
    Call call("cuMemFreeHost", CONTEXT | NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    auto found = pinned.find(reinterpret_cast<u64>(memory));
    if (found == pinned.end()) return refuse(INVALID_VALUE, call.text("not page-locked memory"));
    if (lost == SUCCESS && is_copied(found->first, found->second))
        return refuse(INVALID_VALUE, call.text("a copy from or to it is under way"));
    // Poisoned, and never used again: whoever still looks sees it.
    memset(memory, 0xDF, found->second);
    pinned.erase(found);
    return lost;
}

// ---- Copies ----------------------------------------------------------------------------------------------------------

static i32 put_checked(Call& call, Stream* stream, Operation operation) {
    if (call.status) return call.status;
    Capture* capture;
    if (Status status = call.check_stream(stream, &capture)) return status;
    if (Status status = check_operation(call, operation, *stream)) return status;
    put(*stream, std::move(operation));
    return SUCCESS;
}

EXPORT i32 cuMemsetD8Async(u64 to, u8 value, size_t bytes, Stream* stream) {
    Call call("cuMemsetD8Async", CONTEXT);
    Operation operation = {Operation::FILL, to, 0, bytes, value};
    return put_checked(call, stream, std::move(operation));
}

EXPORT i32 cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream* stream) {
    Call call("cuMemcpyDtoDAsync_v2", CONTEXT);
    return put_checked(call, stream, {Operation::COPY, to, from, bytes});
}

// Whether host memory is page-locked; refused where it is so in part.
static Status look_up_host(const Call& call, const void* memory, u64 bytes, bool& locked) {
    const u64 address = reinterpret_cast<u64>(memory);
    auto found = around(pinned, address);
    locked = found != pinned.end() && lies_within(found->first, found->second, address, 1);
    if (memory == nullptr) return refuse(INVALID_VALUE, call.text("a null pointer"));
    if (locked && !lies_within(found->first, found->second, address, bytes))
        return refuse(INVALID_VALUE, call.text("beyond page-locked memory"));
    return SUCCESS;
}

EXPORT i32 cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, Stream* stream) {
    Call call("cuMemcpyHtoDAsync_v2", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    bool locked;
    if (Status status = look_up_host(call, from, bytes, locked)) return status;
    Operation operation = {Operation::FROM_HOST, to, 0, bytes};
    // What can be paged out is staged before the call returns ("API synchronization behavior").
    auto* host = static_cast<u8*>(const_cast<void*>(from));
    if (locked) operation.host = host;
    else operation.staged.assign(host, host + bytes);
    return put_checked(call, stream, std::move(operation));
}

EXPORT i32 cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, Stream* stream) {
    Call call("cuMemcpyDtoHAsync_v2", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    bool locked;
    if (Status status = look_up_host(call, to, bytes, locked)) return status;
    Operation operation = {Operation::TO_HOST, 0, from, bytes};
    operation.host = static_cast<u8*>(to);
    if (i32 status = put_checked(call, stream, std::move(operation))) return status;
    // To memory that can be paged out, the call returns when the copy has been made (there, too).
    if (!locked) perform(*stream);
    return lost;
}
