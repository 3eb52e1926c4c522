// stand_in.cpp: a libcuda.so that needs no GPU, for tests: the calls that the backend makes, as the driver API's manual
// describes them. Kernels are those of kernels/, run by the simulator; device memory is the simulator's. It forgives nothing:
// what the manual does not promise to work is refused, with a reason that stand_in_refusal() gives. Here are settings, devices
// and contexts; memory.cpp, streams.cpp and launches.cpp hold the rest.
//
// A stream does nothing until it is waited for, or until an event in it was asked about a few times. So whoever reads what
// was not waited for reads poison, and whoever writes to memory that a copy still needs is found. A call needs a current
// context where its documentation lists CUDA_ERROR_INVALID_CONTEXT among what it returns.
//
// Settings come from the test, by stand_in_set(), or from the environment: STAND_IN="capability=90,lose_device=300". With
// STAND_IN_REPORT=FILE, it writes there at the end what was not given back and what was refused.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "stand_in.h"

namespace stand_in {

Settings settings;
std::set<const Object*> alive;
std::map<u64, Allocation> allocations;
std::map<u64, u64> pinned;
std::set<Stream*> capturing;
Status lost = SUCCESS;
u64 performed;

static std::mutex lock;
static bool initialised;
static std::string refusal;
static size_t refusals;
static Context contexts[2];
static thread_local Context* current;

Status refuse(Status status, const std::string& why) {
    refusal = why;
    refusals++;
    return status;
}

Status lose(Status status, const std::string& why) {
    if (lost == SUCCESS) lost = refuse(status, why);
    return lost;
}

bool lies_within(u64 start, u64 size, u64 address, u64 bytes) {
    return address >= start && address - start <= size && bytes <= size - (address - start);
}

std::string architecture() {
    return "sm_" + std::to_string(settings.capability) + (settings.capability == 90 ? "a" : "");
}

u32 most_shared_bytes() {
    switch (settings.capability) {
        case 80: return 163 << 10;
        case 90:
        case 100: return 227 << 10;
        default: return 99 << 10;
    }
}

Call::Call(const char* name, u32 needs) : name(name), guard(lock), status(SUCCESS), needs(needs), context(current) {
    if (!initialised) {
        status = refuse(NOT_INITIALIZED, text("before cuInit"));
        return;
    }
    for (Stream* stream : (needs & NO_CAPTURE) ? capturing : std::set<Stream*>()) {
        Capture& capture = *stream->capture;
        const bool ours = capture.thread == std::this_thread::get_id() && capture.mode != CAPTURE_RELAXED;
        if (!ours && capture.mode != CAPTURE_GLOBAL) continue;
        capture.valid = false;
        status = refuse(STREAM_CAPTURE_UNSUPPORTED, text("while a stream is captured"));
        return;
    }
    if (needs & CONTEXT) {
        if (context == nullptr) status = refuse(INVALID_CONTEXT, text("without a current context"));
        else if (context->retained == 0) status = refuse(CONTEXT_IS_DESTROYED, text("in a context that was released"));
    }
    if (status == SUCCESS && (needs & ALWAYS) == 0) status = lost;
}

Status Call::check_stream(Stream* stream, Capture** capture) {
    if (stream == nullptr) return refuse(INVALID_HANDLE, text("the default stream, which cannot be captured"));
    if (Status status = check(stream)) return status;
    if (capture != nullptr) *capture = stream->capture;
    if (stream->capture == nullptr) return SUCCESS;
    if (!stream->capture->valid) return refuse(STREAM_CAPTURE_INVALIDATED, text("in a capture that is worth nothing any more"));
    if (capture != nullptr) return SUCCESS;
    stream->capture->valid = false;
    return refuse(STREAM_CAPTURE_UNSUPPORTED, text("of a stream that is captured"));
}

static size_t in_use() {
    size_t count = pinned.size();
    for (const Object* object : alive) count += object->kind != Object::FUNCTION;
    for (auto& [address, allocation] : allocations) count += !allocation.freed;
    for (const Context& context : contexts) count += context.retained;
    return count;
}

static bool set(const std::string& name, i64 value) {
    const std::map<std::string, i64*> all = {
        {"driver_version", &settings.driver_version}, {"devices", &settings.devices},
        {"capability", &settings.capability},         {"multiprocessors", &settings.multiprocessors},
        {"memory", &settings.memory},                 {"polls", &settings.polls},
        {"fail_allocation", &settings.fail_allocation}, {"fail_launch", &settings.fail_launch},
        {"lose_device", &settings.lose_device},
    };
    auto found = all.find(name);
    if (found != all.end()) *found->second = value;
    return found != all.end();
}

// What the environment asks for, and wants to know at the end. Behind all that it tells of, so that this is still there then.
struct Surroundings {
    // "name=value,name=value"
    Surroundings() {
        const char* given = getenv("STAND_IN");
        std::string rest = given != nullptr ? given : "";
        while (!rest.empty()) {
            const std::string setting = rest.substr(0, rest.find(','));
            rest.erase(0, setting.size() + 1);
            const size_t equals = setting.find('=');
            if (equals != std::string::npos && set(setting.substr(0, equals), atoll(setting.c_str() + equals + 1))) continue;
            fprintf(stderr, "STAND_IN: %s\n", setting.c_str());
            abort();
        }
    }

    ~Surroundings() {
        const char* file = getenv("STAND_IN_REPORT");
        FILE* to = file != nullptr ? fopen(file, "w") : nullptr;
        if (to == nullptr) return;
        fprintf(to, "in use: %zu\nrefused: %zu\nperformed: %llu\n%s\n", in_use(), refusals, performed, refusal.c_str());
        fclose(to);
    }
};
static Surroundings surroundings;

}  // namespace stand_in

using namespace stand_in;

// ---- For the tests ---------------------------------------------------------------------------------------------------

// As at first: as if the process had begun anew.
EXPORT void stand_in_reset() {
    std::lock_guard<std::mutex> guard(lock);
    settings = Settings();
    for (auto& [address, allocation] : allocations) sim_free(reinterpret_cast<void*>(address));
    for (auto& [address, bytes] : pinned) free(reinterpret_cast<void*>(address));
    alive.clear();
    allocations.clear();
    pinned.clear();
    capturing.clear();
    for (Context& context : contexts) context = {};
    lost = SUCCESS;
    performed = 0;
    initialised = false;
    refusal.clear();
    refusals = 0;
}

EXPORT i32 stand_in_set(const char* name, i64 value) {
    std::lock_guard<std::mutex> guard(lock);
    return set(name, value);
}

// Objects, memory and contexts that have not been given back.
EXPORT size_t stand_in_alive() {
    std::lock_guard<std::mutex> guard(lock);
    return in_use();
}

// Operations that streams have performed.
EXPORT size_t stand_in_performed() {
    std::lock_guard<std::mutex> guard(lock);
    return performed;
}

EXPORT size_t stand_in_refusals() {
    std::lock_guard<std::mutex> guard(lock);
    return refusals;
}

EXPORT const char* stand_in_refusal() {
    return refusal.c_str();
}

// ---- Driver and devices ----------------------------------------------------------------------------------------------

EXPORT i32 cuDriverGetVersion(i32* version) {
    if (version == nullptr) return INVALID_VALUE;
    *version = static_cast<i32>(settings.driver_version);
    return SUCCESS;
}

EXPORT i32 cuGetErrorString(i32 status, const char** text) {
    static const std::map<i32, const char*> texts = {
        {SUCCESS, "no error"},
        {INVALID_VALUE, "invalid argument"},
        {OUT_OF_MEMORY, "out of memory"},
        {NOT_INITIALIZED, "initialization error"},
        {INVALID_DEVICE, "invalid device ordinal"},
        {INVALID_IMAGE, "device kernel image is invalid"},
        {INVALID_CONTEXT, "invalid device context"},
        {NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"},
        {INVALID_HANDLE, "invalid resource handle"},
        {ILLEGAL_STATE, "the operation cannot be performed in the present state"},
        {NOT_FOUND, "named symbol not found"},
        {NOT_READY, "device not ready"},
        {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"},
        {CONTEXT_IS_DESTROYED, "context is destroyed"},
        {LAUNCH_FAILED, "unspecified launch failure"},
        {NOT_SUPPORTED, "operation not supported"},
        {STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
        {STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
        {CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"},
        {STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"},
    };
    auto found = texts.find(status);
    *text = found != texts.end() ? found->second : nullptr;
    return found != texts.end() ? SUCCESS : INVALID_VALUE;
}

EXPORT i32 cuInit(u32 flags) {
    std::lock_guard<std::mutex> guard(lock);
    if (flags != 0) return refuse(INVALID_VALUE, "cuInit: flags");
    // Kernels look for the simulator's functions among those that everyone sees.
    Dl_info runtime;
    if (dladdr(reinterpret_cast<void*>(sim_launch), &runtime) == 0 ||
        dlopen(runtime.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL) == nullptr)
        return refuse(NOT_INITIALIZED, "cuInit: no simulator");
    initialised = true;
    return SUCCESS;
}

static Status check_device(const Call& call, i32 device) {
    if (device < 0 || device >= settings.devices) return refuse(INVALID_DEVICE, call.text("no such device"));
    return SUCCESS;
}

EXPORT i32 cuDeviceGet(i32* device, i32 ordinal) {
    Call call("cuDeviceGet", ALWAYS);
    if (call.status) return call.status;
    if (Status status = check_device(call, ordinal)) return status;
    *device = ordinal;
    return SUCCESS;
}

EXPORT i32 cuDeviceGetName(char* name, i32 length, i32 device) {
    Call call("cuDeviceGetName", ALWAYS);
    if (call.status) return call.status;
    if (Status status = check_device(call, device)) return status;
    if (name == nullptr || length < 1) return refuse(INVALID_VALUE, call.text("no room"));
    snprintf(name, static_cast<size_t>(length), "Stand-in GPU %d", device);
    return SUCCESS;
}

EXPORT i32 cuDeviceGetAttribute(i32* value, i32 attribute, i32 device) {
    Call call("cuDeviceGetAttribute", ALWAYS);
    if (call.status) return call.status;
    if (Status status = check_device(call, device)) return status;
    switch (attribute) {
        case MULTIPROCESSOR_COUNT: *value = static_cast<i32>(settings.multiprocessors); break;
        case COMPUTE_CAPABILITY_MAJOR: *value = static_cast<i32>(settings.capability / 10); break;
        case COMPUTE_CAPABILITY_MINOR: *value = static_cast<i32>(settings.capability % 10); break;
        case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = static_cast<i32>(most_shared_bytes()); break;
        case MEMORY_POOLS_SUPPORTED: *value = 1; break;
        default: return refuse(INVALID_VALUE, call.text("attribute " + std::to_string(attribute)));
    }
    return SUCCESS;
}

// ---- Contexts --------------------------------------------------------------------------------------------------------

EXPORT i32 cuDevicePrimaryCtxRetain(Context** context, i32 device) {
    Call call("cuDevicePrimaryCtxRetain", NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = check_device(call, device)) return status;
    *context = &contexts[device];
    contexts[device].retained++;
    return SUCCESS;
}

EXPORT i32 cuDevicePrimaryCtxRelease_v2(i32 device) {
    Call call("cuDevicePrimaryCtxRelease_v2", NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    if (Status status = check_device(call, device)) return status;
    if (contexts[device].retained == 0) return refuse(INVALID_CONTEXT, call.text("not retained"));
    contexts[device].retained--;
    return SUCCESS;
}

EXPORT i32 cuCtxGetCurrent(Context** context) {
    Call call("cuCtxGetCurrent", ALWAYS);
    if (call.status) return call.status;
    *context = current;
    return SUCCESS;
}

EXPORT i32 cuCtxSetCurrent(Context* context) {
    Call call("cuCtxSetCurrent", ALWAYS);
    if (call.status) return call.status;
    const bool known = context == nullptr || context == &contexts[0] || context == &contexts[1];
    if (!known || (context != nullptr && context->retained == 0)) return refuse(INVALID_CONTEXT, call.text("not a context"));
    current = context;
    return SUCCESS;
}
