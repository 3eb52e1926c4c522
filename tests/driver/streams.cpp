// streams.cpp: what streams do when they are waited for: copies, fills and frees in the simulator's memory, launches of its
// kernels.
#include <algorithm>
#include <cstring>

#include "stand_in.h"

namespace stand_in {

constexpr u8 POISON = 0xDB;

u64 checksum(const u8* bytes, u64 count) {
    u64 sum = 14695981039346656037ull;
    for (u64 i = 0; i < count; i++) sum = (sum ^ bytes[i]) * 1099511628211ull;
    return sum;
}

// ---- Into a stream ---------------------------------------------------------------------------------------------------

static Status on_device(const Call& call, u64 address, u64 bytes, const Stream& stream) {
    auto found = around(allocations, address);
    if (found == allocations.end() || !lies_within(found->first, found->second.bytes, address, bytes))
        return refuse(INVALID_VALUE, call.text(std::to_string(bytes) + " bytes that are not within an allocation"));
    if (found->second.freed) return refuse(INVALID_VALUE, call.text("memory that was freed"));
    if (found->second.stream != &stream)
        return refuse(INVALID_VALUE, call.text("memory of another stream, which nothing orders this one with"));
    return SUCCESS;
}

Status check_operation(const Call& call, const Operation& operation, const Stream& stream) {
    const bool to_device = operation.to != 0, from_device = operation.from != 0;
    if (operation.what == Operation::LAUNCH) {
        if (alive.count(operation.function) == 0)
            return refuse(INVALID_HANDLE, call.text("a function whose module was unloaded"));
        return SUCCESS;
    }
    if (operation.bytes == 0) return refuse(INVALID_VALUE, call.text("of no bytes"));
    if (to_device)
        if (Status status = on_device(call, operation.to, operation.bytes, stream)) return status;
    if (from_device)
        if (Status status = on_device(call, operation.from, operation.bytes, stream)) return status;
    const u64 to = operation.to, from = operation.from, bytes = operation.bytes;
    if (to_device && from_device && to < from + bytes && from < to + bytes)
        return refuse(INVALID_VALUE, call.text("from and to overlap"));
    return SUCCESS;
}

void put(Stream& stream, Operation operation) {
    if (stream.capture != nullptr) {
        stream.capture->operations.push_back(std::move(operation));
        return;
    }
    if (operation.what == Operation::FROM_HOST && operation.staged.empty())
        operation.checksum = checksum(operation.host, operation.bytes);
    // Whoever looks before the copy has been waited for sees this.
    if (operation.what == Operation::TO_HOST) memset(operation.host, POISON, operation.bytes);
    stream.queue.push_back(std::move(operation));
    stream.put++;
}

// ---- Out of a stream -------------------------------------------------------------------------------------------------

static void read_device(u64 address, u64 bytes, void* to, const char* what) {
    u64 bad;
    char error[8192];
    if (sim_check_written(address, bytes, &bad, error, sizeof error) != 0)
        lose(ILLEGAL_ADDRESS, std::string(what) + ": " + error);
    else
        memcpy(to, reinterpret_cast<const void*>(address), bytes);
}

static void write_device(u64 address, u64 bytes, const void* from) {
    if (sim_host_written(address, bytes) != 0)
        lose(ILLEGAL_ADDRESS, "memory that is not there any more");
    else
        memcpy(reinterpret_cast<void*>(address), from, bytes);
}

// The allocations that arguments point into: each 8 bytes of one that are an address. A kernel may do what it likes in them.
static std::vector<SimRegion> regions_of(const Operation& launch, std::deque<std::string>& names) {
    std::map<u64, std::string> found;
    for (size_t i = 0; i < launch.args.size(); i++) {
        for (u32 at = 0; at + 8 <= launch.function->parameters->bytes[i]; at += 8) {
            u64 word;
            memcpy(&word, launch.args[i].bytes + at, sizeof word);
            auto allocation = around(allocations, word);
            if (allocation == allocations.end() || !lies_within(allocation->first, allocation->second.bytes, word, 1)) continue;
            std::string& name = found[allocation->first];
            name += (name.empty() ? "the memory of argument " : ", ") + std::to_string(i);
        }
    }
    std::vector<SimRegion> regions;
    for (auto& [address, name] : found) {
        names.push_back(name);
        regions.push_back({address, allocations[address].bytes, SIM_UPDATE, names.back().c_str()});
    }
    return regions;
}

static void launch(Operation& operation) {
    static u64 seed;
    const Function& function = *operation.function;
    std::deque<std::string> names;
    const std::vector<SimRegion> regions = regions_of(operation, names);
    std::vector<void*> args;
    for (Held& held : operation.args) args.push_back(held.bytes);
    SimLaunch described = {};
    described.kernel = function.name.c_str();
    described.entry = function.entry;
    std::copy_n(operation.grid, 3, described.grid);
    std::copy_n(operation.block, 3, described.block);
    described.most_threads = function.most_threads;
    described.shared_bytes = operation.shared_bytes;
    described.seed = ++seed;
    described.args = args.data();
    described.regions = regions.data();
    described.region_count = static_cast<u32>(regions.size());
    char error[8192];
    if (sim_launch(&described, error, sizeof error) != 0) lose(ILLEGAL_ADDRESS, error);
}

static void perform_one(Operation& operation) {
    const u64 bytes = operation.bytes;
    std::vector<u8> between;
    switch (operation.what) {
        case Operation::LAUNCH: launch(operation); break;
        case Operation::FILL:
            between.assign(bytes, operation.value);
            write_device(operation.to, bytes, between.data());
            break;
        case Operation::COPY:
            between.resize(bytes);
            read_device(operation.from, bytes, between.data(), "a copy on the device");
            if (lost == SUCCESS) write_device(operation.to, bytes, between.data());
            break;
        case Operation::FROM_HOST:
            if (!operation.staged.empty())
                write_device(operation.to, bytes, operation.staged.data());
            else if (checksum(operation.host, bytes) != operation.checksum)
                lose(LAUNCH_FAILED, "page-locked memory was written while a copy from it was under way");
            else
                write_device(operation.to, bytes, operation.host);
            break;
        case Operation::TO_HOST:
            if (std::any_of(operation.host, operation.host + bytes, [](u8 byte) { return byte != POISON; }))
                lose(LAUNCH_FAILED, "page-locked memory was written while a copy to it was under way");
            else
                read_device(operation.from, bytes, operation.host, "a copy to the host");
            break;
        case Operation::FREE: break;
    }
}

void perform(Stream& stream, u64 number) {
    while (stream.done < number && !stream.queue.empty()) {
        Operation operation = std::move(stream.queue.front());
        stream.queue.pop_front();
        stream.done++;
        performed++;
        if (lost == SUCCESS && settings.lose_device-- == 0) lose(ILLEGAL_ADDRESS, "the test wants the device lost");
        if (lost == SUCCESS) perform_one(operation);
        if (operation.what != Operation::FREE) continue;
        sim_free(reinterpret_cast<void*>(operation.to));
        allocations.erase(operation.to);
    }
    // What was freed goes back to whom the pool has it from ("CU_MEMPOOL_ATTR_RELEASE_THRESHOLD", which is 0 at first).
    stream.context->reserved = stream.context->used;
}

}  // namespace stand_in

using namespace stand_in;

// ---- Streams ---------------------------------------------------------------------------------------------------------

EXPORT i32 cuStreamCreate(Stream** stream, u32 flags) {
    Call call("cuStreamCreate", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    if (stream == nullptr || flags > STREAM_NON_BLOCKING) return refuse(INVALID_VALUE, call.text("flags"));
    *stream = make<Stream>(call.context);
    return SUCCESS;
}

EXPORT i32 cuStreamSynchronize(Stream* stream) {
    Call call("cuStreamSynchronize", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check_stream(stream, nullptr)) return status;
    perform(*stream);
    return lost;
}

EXPORT i32 cuStreamDestroy_v2(Stream* stream) {
    Call call("cuStreamDestroy_v2", CONTEXT | NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    if (Status status = call.check_stream(stream, nullptr)) return status;
    // "The resources associated with hStream will be released automatically once the device has completed all work."
    perform(*stream);
    alive.erase(stream);
    return lost;
}

// ---- Events ----------------------------------------------------------------------------------------------------------

EXPORT i32 cuEventCreate(Event** event, u32 flags) {
    Call call("cuEventCreate", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    if (event == nullptr || (flags & ~(EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING)) != 0)
        return refuse(INVALID_VALUE, call.text("flags"));
    *event = make<Event>(call.context);
    return SUCCESS;
}

EXPORT i32 cuEventRecord(Event* event, Stream* stream) {
    Call call("cuEventRecord", CONTEXT);
    if (call.status) return call.status;
    if (Status status = call.check(event)) return status;
    Capture* capture;
    if (Status status = call.check_stream(stream, &capture)) return status;
    event->captured = capture != nullptr;
    event->stream = stream;
    event->number = stream->put;
    event->polls = settings.polls;
    return SUCCESS;
}

EXPORT i32 cuEventQuery(Event* event) {
    Call call("cuEventQuery", NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check(event)) return status;
    if (event->captured) return refuse(CAPTURED_EVENT, call.text("recorded in a capture"));
    if (event->stream == nullptr || event->stream->done >= event->number) return SUCCESS;
    if (event->polls-- > 0) return NOT_READY;
    perform(*event->stream, event->number);
    return lost;
}

EXPORT i32 cuEventSynchronize(Event* event) {
    Call call("cuEventSynchronize", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check(event)) return status;
    if (event->captured) return refuse(CAPTURED_EVENT, call.text("recorded in a capture"));
    if (event->stream != nullptr) perform(*event->stream, event->number);
    return lost;
}

EXPORT i32 cuEventDestroy_v2(Event* event) {
    Call call("cuEventDestroy_v2", CONTEXT | NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    if (Status status = call.check(event)) return status;
    alive.erase(event);
    return lost;
}
