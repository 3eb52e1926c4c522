// launches.cpp: modules, functions and launches; captures, graphs and their launches; tensor maps.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "stand_in.h"

using namespace stand_in;

// ---- Modules ---------------------------------------------------------------------------------------------------------

// What a cubin is to the stand-in: this, the bytes of the text, their checksum, and the text: an architecture and the file of
// a module of the simulator, each on a line of its own.
struct Image {
    char magic[16];
    u64 bytes;
    u64 checksum;
    char text[];
};

EXPORT i32 cuModuleLoadData(Module** module, const void* data) {
    Call call("cuModuleLoadData", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    Image image;
    if (data == nullptr) return refuse(INVALID_VALUE, call.text("a null pointer"));
    memcpy(&image, data, sizeof image);
    if (memcmp(image.magic, "stand-in's cubin", sizeof image.magic) != 0)
        return refuse(INVALID_IMAGE, call.text("not an image"));
    const char* start = static_cast<const char*>(data) + sizeof image;
    if (checksum(reinterpret_cast<const u8*>(start), image.bytes) != image.checksum)
        return refuse(INVALID_IMAGE, call.text("a damaged image"));
    const std::string text(start, image.bytes);
    const size_t line = text.find('\n');
    const std::string made_for = text.substr(0, line), file = text.substr(line + 1, text.size() - line - 2);
    if (made_for != architecture()) return refuse(NO_BINARY_FOR_GPU, call.text("made for " + made_for));
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return refuse(INVALID_IMAGE, call.text(dlerror()));
    *module = make<Module>(call.context);
    (*module)->library = library;
    return SUCCESS;
}

// Whether launches of its functions are still to be made.
static bool is_running(const Module& module) {
    for (const Object* object : alive) {
        if (object->kind != Object::STREAM) continue;
        for (const Operation& operation : static_cast<const Stream*>(object)->queue) {
            if (operation.function != nullptr && operation.function->module == &module) return true;
        }
    }
    return false;
}

EXPORT i32 cuModuleUnload(Module* module) {
    Call call("cuModuleUnload", CONTEXT | NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    if (Status status = call.check(module)) return status;
    // The manual does not say that it waits.
    if (lost == SUCCESS && is_running(*module)) return refuse(ILLEGAL_STATE, call.text("a kernel of it is still to run"));
    for (Object* function : module->functions) alive.erase(function);
    alive.erase(module);
    if (lost == SUCCESS) dlclose(module->library);
    return lost;
}

EXPORT i32 cuModuleGetFunction(Function** function, Module* module, const char* name) {
    Call call("cuModuleGetFunction", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check(module)) return status;
    auto symbol = [&](const char* prefix) { return dlsym(module->library, (std::string(prefix) + name).c_str()); };
    void* entry = symbol("sim_entry_");
    if (entry == nullptr) return refuse(NOT_FOUND, call.text(name));
    auto* bounds = static_cast<const u32*>(symbol("sim_bounds_"));
    *function = make<Function>(call.context);
    module->functions.push_back(*function);
    (*function)->module = module;
    (*function)->name = name;
    (*function)->entry = reinterpret_cast<void (*)(void**)>(entry);
    (*function)->parameters = static_cast<const SimParameters*>(symbol("sim_parameters_"));
    (*function)->most_threads = bounds != nullptr ? *bounds : 0;
    return SUCCESS;
}

EXPORT i32 cuFuncSetAttribute(Function* function, i32 attribute, i32 value) {
    Call call("cuFuncSetAttribute", CONTEXT | NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check(function)) return status;
    if (attribute != FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        return refuse(INVALID_VALUE, call.text("attribute " + std::to_string(attribute)));
    if (value < 0 || static_cast<u32>(value) > most_shared_bytes())
        return refuse(INVALID_VALUE, call.text("more shared memory than a block may have"));
    function->most_shared = static_cast<u32>(value);
    return SUCCESS;
}

// ---- Launches --------------------------------------------------------------------------------------------------------

static Status check_shape(const Call& call, const Function& function, const Operation& launch) {
    const u32 *grid = launch.grid, *block = launch.block;
    if (grid[0] == 0 || grid[0] > 0x7fffffff || grid[1] == 0 || grid[1] > 65535 || grid[2] == 0 || grid[2] > 65535)
        return refuse(INVALID_VALUE, call.text("the grid"));
    if (block[0] == 0 || block[0] > 1024 || block[1] == 0 || block[1] > 1024 || block[2] == 0 || block[2] > 64)
        return refuse(INVALID_VALUE, call.text("the block"));
    const u32 threads = block[0] * block[1] * block[2];
    if (threads > 1024) return refuse(INVALID_VALUE, call.text("the block"));
    if (function.most_threads != 0 && threads > function.most_threads)
        return refuse(LAUNCH_OUT_OF_RESOURCES, call.text("more threads than the kernel's launch bounds"));
    if (launch.shared_bytes > function.most_shared)
        return refuse(INVALID_VALUE, call.text("more shared memory than was asked for"));
    return SUCCESS;
}

EXPORT i32 cuLaunchKernel(Function* function, u32 grid_x, u32 grid_y, u32 grid_z, u32 block_x, u32 block_y, u32 block_z,
                          u32 shared_bytes, Stream* stream, void** params, void** extra) {
    Call call("cuLaunchKernel", CONTEXT);
    if (call.status) return call.status;
    if (Status status = call.check(function)) return status;
    Capture* capture;
    if (Status status = call.check_stream(stream, &capture)) return status;
    const SimParameters& parameters = *function->parameters;
    if (extra != nullptr || (params == nullptr && parameters.count > 0))
        return refuse(INVALID_VALUE, call.text("no parameters"));
    Operation launch = {Operation::LAUNCH};
    launch.function = function;
    launch.shared_bytes = shared_bytes;
    const u32 grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
    std::copy_n(grid, 3, launch.grid);
    std::copy_n(block, 3, launch.block);
    if (Status status = check_shape(call, *function, launch)) return status;
    if (settings.fail_launch-- == 0) return refuse(LAUNCH_OUT_OF_RESOURCES, call.text("the test wants it to fail"));
    for (u32 i = 0; i < parameters.count; i++) {
        Held held = {};
        if (params[i] == nullptr || parameters.bytes[i] > sizeof held)
            return refuse(INVALID_VALUE, call.text("a parameter"));
        memcpy(held.bytes, params[i], parameters.bytes[i]);
        launch.args.push_back(held);
    }
    put(*stream, std::move(launch));
    return SUCCESS;
}

// ---- Captures and graphs ---------------------------------------------------------------------------------------------

EXPORT i32 cuStreamBeginCapture_v2(Stream* stream, i32 mode) {
    Call call("cuStreamBeginCapture_v2", NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check_stream(stream, nullptr)) return status;
    if (mode < CAPTURE_GLOBAL || mode > CAPTURE_RELAXED) return refuse(INVALID_VALUE, call.text("mode"));
    stream->capture = new Capture{static_cast<CaptureMode>(mode), std::this_thread::get_id(), true, {}};
    capturing.insert(stream);
    return SUCCESS;
}

EXPORT i32 cuStreamEndCapture(Stream* stream, Graph** graph) {
    Call call("cuStreamEndCapture", ALWAYS);
    if (call.status) return call.status;
    *graph = nullptr;
    if (Status status = call.check(stream)) return status;
    if (stream->capture == nullptr) return refuse(ILLEGAL_STATE, call.text("of a stream that is not captured"));
    const Capture capture = *stream->capture;
    if (capture.mode != CAPTURE_RELAXED && capture.thread != std::this_thread::get_id())
        return refuse(STREAM_CAPTURE_WRONG_THREAD, call.text("by another thread than began it"));
    capturing.erase(stream);
    delete stream->capture;
    stream->capture = nullptr;
    if (lost != SUCCESS) return lost;
    if (!capture.valid) return refuse(STREAM_CAPTURE_INVALIDATED, call.text("of a capture that is worth nothing any more"));
    *graph = make<Graph>(stream->context);
    (*graph)->operations = capture.operations;
    return SUCCESS;
}

EXPORT i32 cuGraphInstantiateWithFlags(Executable** executable, Graph* graph, u64 flags) {
    Call call("cuGraphInstantiateWithFlags", NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check(graph)) return status;
    if (flags != 0) return refuse(INVALID_VALUE, call.text("flags"));
    *executable = make<Executable>(graph->context);
    (*executable)->operations = graph->operations;
    return SUCCESS;
}

EXPORT i32 cuGraphDestroy(Graph* graph) {
    Call call("cuGraphDestroy", NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    if (Status status = call.check(graph)) return status;
    alive.erase(graph);
    return lost;
}

EXPORT i32 cuGraphExecDestroy(Executable* executable) {
    Call call("cuGraphExecDestroy", NO_CAPTURE | ALWAYS);
    if (call.status) return call.status;
    if (Status status = call.check(executable)) return status;
    // "If the executable graph is in-flight, it will not be terminated, but rather freed asynchronously on completion."
    if (executable->context->retained == 0) return refuse(CONTEXT_IS_DESTROYED, call.text("of a context that was released"));
    alive.erase(executable);
    return lost;
}

EXPORT i32 cuGraphLaunch(Executable* executable, Stream* stream) {
    Call call("cuGraphLaunch", NO_CAPTURE);
    if (call.status) return call.status;
    if (Status status = call.check(executable)) return status;
    if (Status status = call.check_stream(stream, nullptr)) return status;
    for (const Operation& operation : executable->operations)
        if (Status status = check_operation(call, operation, *stream)) return status;
    if (settings.fail_launch-- == 0) return refuse(LAUNCH_OUT_OF_RESOURCES, call.text("the test wants it to fail"));
    for (const Operation& operation : executable->operations) put(*stream, operation);
    return SUCCESS;
}

// ---- Tensor maps -----------------------------------------------------------------------------------------------------

EXPORT i32 cuTensorMapEncodeTiled(void* map, i32 type, u32 rank, void* address, const u64* sizes, const u64* strides,
                                  const u32* box, const u32* steps, i32 interleave, i32 swizzle, i32 promotion, i32 fill) {
    Call call("cuTensorMapEncodeTiled", NOTHING);
    if (call.status) return call.status;
    if (settings.capability < 90) return refuse(NOT_SUPPORTED, call.text("before compute capability 9.0"));
    if (map == nullptr || reinterpret_cast<u64>(map) % 64 != 0)
        return refuse(INVALID_VALUE, call.text("the map is not 64-byte aligned"));
    auto found = around(allocations, reinterpret_cast<u64>(address));
    if (rank == 2 && (found == allocations.end() || found->second.freed ||
                      !lies_within(found->first, found->second.bytes, reinterpret_cast<u64>(address), sizes[1] * strides[0])))
        return refuse(INVALID_VALUE, call.text("a matrix that is not within an allocation"));
    char error[1024];
    auto number = [](i32 value) { return static_cast<u32>(value); };
    if (promotion < 0 || promotion > 3) return refuse(INVALID_VALUE, call.text("the promotion"));
    if (sim_encode_tensor_map(map, number(type), rank, address, sizes, strides, box, steps, number(interleave), number(swizzle),
                              number(promotion), number(fill), error, sizeof error) != 0)
        return refuse(INVALID_VALUE, error);
    return SUCCESS;
}
