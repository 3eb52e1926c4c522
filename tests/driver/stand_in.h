// stand_in.h: what the parts of the stand-in for libcuda share: numbers of cuda.h, objects, and what a call may do. What it
// is and how strict is told in stand_in.cpp.
//
// Numbers are written here once more: the bindings that are tested must not be what they are tested against.
#pragma once

#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "abi_hopper.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace stand_in {

using i32 = int;
using i64 = long long;

enum Status : i32 {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    CONTEXT_IS_DESTROYED = 709,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
};

enum DeviceAttribute : i32 {
    MULTIPROCESSOR_COUNT = 16,
    COMPUTE_CAPABILITY_MAJOR = 75,
    COMPUTE_CAPABILITY_MINOR = 76,
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    MEMORY_POOLS_SUPPORTED = 115,
};

constexpr i32 FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr u32 STREAM_NON_BLOCKING = 1;
constexpr u32 EVENT_BLOCKING_SYNC = 1, EVENT_DISABLE_TIMING = 2;
enum CaptureMode : i32 { CAPTURE_GLOBAL = 0, CAPTURE_THREAD_LOCAL = 1, CAPTURE_RELAXED = 2 };

// ---- Settings: what a test asks for ----------------------------------------------------------------------------------

struct Settings {
    i64 driver_version = 13000;
    i64 devices = 1;
    i64 capability = 80;
    i64 multiprocessors = 3;
    i64 memory = i64(4) << 30;
    // So often an event with work before it is said not to be ready; then it is.
    i64 polls = 2;
    // Each is a number of calls, or of operations performed, from when it is set on; that one fails. Never, if negative.
    i64 fail_allocation = -1;
    i64 fail_launch = -1;
    i64 lose_device = -1;
};
extern Settings settings;

// "sm_80", or "sm_90a" where a device has what its architecture alone has.
std::string architecture();
// Of a block, asked for beforehand ("CUDA C++ Programming Guide", compute capabilities).
u32 most_shared_bytes();
constexpr u32 SHARED_WITHOUT_ASKING = 48 << 10;

// ---- Objects ---------------------------------------------------------------------------------------------------------

// A primary context. There is one of each device, for good; without anyone who retains it, it is not to be used.
struct Context {
    u32 retained = 0;
    // Bytes allocated, and the most of them since the stream was last waited for: what its pool keeps.
    u64 used = 0, reserved = 0;
};

struct Object {
    enum Kind { STREAM, EVENT, MODULE, FUNCTION, GRAPH, EXECUTABLE } kind;
    Context* context;
};

struct Module : Object {
    static constexpr Kind KIND = MODULE;
    void* library;
    std::vector<Object*> functions;
};

struct Function : Object {
    static constexpr Kind KIND = FUNCTION;
    Module* module;
    std::string name;
    void (*entry)(void** args);
    const SimParameters* parameters;
    u32 most_threads;  // 0: as many as there may be
    u32 most_shared = SHARED_WITHOUT_ASKING;
};

// An argument, aligned as any parameter may want.
struct alignas(64) Held {
    u8 bytes[256];
};

// What a stream does when its turn comes, and a graph each time it is launched.
struct Operation {
    enum What { LAUNCH, FILL, COPY, FROM_HOST, TO_HOST, FREE } what;
    u64 to = 0, from = 0, bytes = 0;
    u8 value = 0;
    // Of copies: page-locked memory, or what was staged of memory that is not.
    u8* host = nullptr;
    u64 checksum = 0;
    std::vector<u8> staged;
    // Of launches.
    Function* function = nullptr;
    u32 grid[3] = {}, block[3] = {}, shared_bytes = 0;
    std::vector<Held> args;
};

struct Capture {
    CaptureMode mode;
    std::thread::id thread;
    bool valid = true;
    std::vector<Operation> operations;
};

struct Stream : Object {
    static constexpr Kind KIND = STREAM;
    std::deque<Operation> queue;
    u64 put = 0, done = 0;
    Capture* capture = nullptr;
};

struct Event : Object {
    static constexpr Kind KIND = EVENT;
    Stream* stream = nullptr;
    u64 number = 0;
    i64 polls = 0;
    bool captured = false;
};

struct Graph : Object {
    static constexpr Kind KIND = GRAPH;
    std::vector<Operation> operations;
};

struct Executable : Object {
    static constexpr Kind KIND = EXECUTABLE;
    std::vector<Operation> operations;
};

struct Allocation {
    u64 bytes;
    Stream* stream;
    // Its freeing is in the stream: nothing put there from then on may use it.
    bool freed = false;
};

// What is in use. The memory of objects that were given back is not used again, so that their late uses are seen.
extern std::set<const Object*> alive;
extern std::map<u64, Allocation> allocations;
extern std::map<u64, u64> pinned;
extern std::set<Stream*> capturing;

// The entry of `all` within which an address lies.
template <class T>
typename std::map<u64, T>::iterator around(std::map<u64, T>& all, u64 address) {
    auto after = all.upper_bound(address);
    return after == all.begin() ? all.end() : std::prev(after);
}
bool lies_within(u64 start, u64 size, u64 address, u64 bytes);

// ---- Calls -----------------------------------------------------------------------------------------------------------

// Remembers why, for the test to tell.
Status refuse(Status status, const std::string& why);

// The device is lost, for good: this call, and whatever is called from now on, fails like this ("CUDA_ERROR_ILLEGAL_ADDRESS").
Status lose(Status status, const std::string& why);
extern Status lost;
// Operations of all streams.
extern u64 performed;

// How a call is to be met.
enum Needs : u32 {
    NOTHING = 0,
    // A current context: calls that may return CUDA_ERROR_INVALID_CONTEXT, as their documentation says.
    CONTEXT = 1,
    // Called while this thread captures a stream, it makes the capture worth nothing ("cuThreadExchangeStreamCaptureMode":
    // potentially unsafe calls). Those without are what a capture is made of.
    NO_CAPTURE = 2,
    // Answered even when the device is lost.
    ALWAYS = 4,
};

// One at a time.
struct Call {
    const char* name;
    std::lock_guard<std::mutex> guard;
    Status status;

    Call(const char* name, u32 needs);

    // Refuses an object that is not in use, not of this kind, or not of the current context.
    template <class T>
    Status check(T* object) {
        if (alive.count(object) == 0 || object->kind != T::KIND) return refuse(INVALID_HANDLE, text("not in use"));
        if ((needs & CONTEXT) && object->context != context) return refuse(INVALID_CONTEXT, text("of another context"));
        return SUCCESS;
    }

    // The same for a stream that something is put into. `capture` is where it goes, if the stream is capturing.
    Status check_stream(Stream* stream, Capture** capture);

    std::string text(const std::string& why) const {
        return std::string(name) + ": " + why;
    }

    u32 needs;
    Context* context;
};

template <class T>
T* make(Context* context) {
    T* object = new T{};
    object->kind = T::KIND;
    object->context = context;
    alive.insert(object);
    return object;
}

// ---- Streams ---------------------------------------------------------------------------------------------------------

// Puts an operation at the end of a stream, or into its capture.
void put(Stream& stream, Operation operation);
// Does what is in a stream, up to a number; everything, by default.
void perform(Stream& stream, u64 number = ~u64(0));
// Refuses an operation whose device memory or function is not there, or not for this stream.
Status check_operation(const Call& call, const Operation& operation, const Stream& stream);
u64 checksum(const u8* bytes, u64 count);

}  // namespace stand_in
