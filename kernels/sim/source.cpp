// source.cpp: which line of a kernel an error belongs to, by binutils' addr2line where it is installed.

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace sim {

// Files whose lines are the simulator's own, or the library's, and not the kernel's.
static bool is_ours(const char* path) {
    for (const char* ours : {"/sim.cuh", "/ptx_sim.cuh", "/ptx_hopper_sim.cuh", "/usr/", "??"}) {
        if (strstr(path, ours) != nullptr) return true;
    }
    return false;
}

std::string source_text(const void* pc) {
    Dl_info library;
    if (pc == nullptr || dladdr(pc, &library) == 0 || strchr(library.dli_fname, '\'') != nullptr) return "";
    // One before: a return address belongs to the instruction after the call.
    u64 offset = reinterpret_cast<u64>(pc) - reinterpret_cast<u64>(library.dli_fbase) - 1;
    char hexadecimal[32];
    snprintf(hexadecimal, sizeof hexadecimal, "0x%llx", offset);
    std::string command = "addr2line -i -e '" + std::string(library.dli_fname) + "' " + hexadecimal + " 2>/dev/null";
    FILE* output = popen(command.c_str(), "r");
    if (output == nullptr) return "";
    std::string text;
    char line[4096];
    while (fgets(line, sizeof line, output) != nullptr) {
        if (is_ours(line)) continue;
        const char* name = strrchr(line, '/');
        name = name != nullptr ? name + 1 : line;
        text += (text.empty() ? "\n  at " : ", called at ") + std::string(name, strcspn(name, " \n"));
    }
    pclose(output);
    return text;
}

}  // namespace sim
