// stand_in.cpp: a libcublasLt.so that needs no GPU, for tests: the calls that the backend makes, as the cuBLAS manual
// describes them ("Using the cuBLASLt API"). It computes on host memory and forgives nothing: what the manual does not
// promise to work is refused, with a reason that stand_in_refusal() gives.
//
// Numbers are those of cublasLt.h, cublas_api.h and library_types.h, written here once more: the bindings that are tested
// must not be what they are tested against.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using i32 = int32_t;
using i64 = int64_t;
using u64 = uint64_t;

enum Status : i32 { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type : i32 { R_32F = 0, R_16BF = 14 };
constexpr i32 COMPUTE_32F = 68;
constexpr i32 OP_N = 0, OP_T = 1;
constexpr u32 EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4;
constexpr u32 REDUCTION_COMPUTE_TYPE = 2, REDUCTION_OUTPUT_TYPE = 4, REDUCTION_MASK = 7;
constexpr i32 POINTER_MODE_HOST = 0;
enum DescAttribute : i32 {
    DESC_COMPUTE_TYPE = 0,
    DESC_SCALE_TYPE = 1,
    DESC_POINTER_MODE = 2,
    DESC_TRANSA = 3,
    DESC_TRANSB = 4,
    DESC_TRANSC = 5,
    DESC_EPILOGUE = 7,
    DESC_BIAS_POINTER = 8,
    DESC_BIAS_DATA_TYPE = 26,
};
enum PreferenceAttribute : i32 {
    PREF_SEARCH_MODE = 0,
    PREF_MAX_WORKSPACE_BYTES = 1,
    PREF_REDUCTION_SCHEME_MASK = 3,
    PREF_MIN_ALIGNMENT_A_BYTES = 5,
    PREF_MIN_ALIGNMENT_D_BYTES = 8,
};

std::mutex lock;
std::string refusal;
i32 ways = 3;
size_t version = 130100;
void* last_stream;

Status refuse(Status status, const std::string& why) {
    refusal = why;
    return status;
}

// ---- What is kept ----------------------------------------------------------------------------------------------------

// Attributes by number, each as wide as the manual says.
struct Attributes {
    std::map<i32, std::vector<u8>> values;

    template <typename T>
    void start(i32 attribute, T value) {
        auto* bytes = reinterpret_cast<const u8*>(&value);
        values[attribute].assign(bytes, bytes + sizeof value);
    }

    template <typename T>
    T get(i32 attribute) const {
        T value;
        memcpy(&value, values.at(attribute).data(), sizeof value);
        return value;
    }

    Status set(i32 attribute, const void* from, size_t bytes) {
        auto found = values.find(attribute);
        if (found == values.end()) return refuse(INVALID_VALUE, "no attribute " + std::to_string(attribute));
        if (from == nullptr || bytes != found->second.size()) {
            const std::string name = "attribute " + std::to_string(attribute);
            return refuse(INVALID_VALUE, name + " has not " + std::to_string(bytes) + " bytes");
        }
        memcpy(found->second.data(), from, bytes);
        return SUCCESS;
    }
};

struct Handle {};
struct Operation : Attributes {};
struct Preference : Attributes {};
struct Layout {
    i32 type;
    u64 rows, cols;
    i64 ld;
};

// What is in use. The memory of what was given back is not used again, so that its late uses are seen.
std::set<const void*> alive;

template <typename T>
Status create(T** to, T* fresh) {
    std::lock_guard<std::mutex> guard(lock);
    alive.insert(*to = fresh);
    return SUCCESS;
}

Status destroy(const void* object) {
    std::lock_guard<std::mutex> guard(lock);
    return alive.erase(object) == 1 ? SUCCESS : refuse(INVALID_VALUE, "given back, but not in use");
}

template <typename T>
Status set(T* object, i32 attribute, const void* from, size_t bytes) {
    std::lock_guard<std::mutex> guard(lock);
    if (alive.count(object) == 0) return refuse(INVALID_VALUE, "an attribute of what is not in use");
    return object->set(attribute, from, bytes);
}

// ---- Products --------------------------------------------------------------------------------------------------------

struct Algo {
    u64 data[8];
};
struct Result {
    Algo algo;
    size_t workspace_bytes;
    Status state;
    float waves;
    i32 reserved[4];
};
static_assert(sizeof(Result) == 64 + 8 + 4 + 4 + 16);

// D = alpha op(A) op(B) + beta C, then the bias.
struct Problem {
    u64 m, n, k;
    Layout a, b, d;
    i32 transposed_a, transposed_b;
    u32 epilogue;
    const void* bias;
};

Status in_use(std::initializer_list<const void*> objects) {
    for (const void* object : objects)
        if (alive.count(object) == 0) return refuse(INVALID_VALUE, "something that is not in use");
    return SUCCESS;
}

std::string text(const Layout& layout) {
    char buffer[80];
    snprintf(buffer, sizeof buffer, "[%llu, %llu] ld %lld", (unsigned long long)layout.rows, (unsigned long long)layout.cols,
             (long long)layout.ld);
    return buffer;
}

Status examine(const Operation& op, const Layout& a, const Layout& b, const Layout& c, const Layout& d, Problem& problem) {
    if (op.get<i32>(DESC_COMPUTE_TYPE) != COMPUTE_32F || op.get<i32>(DESC_SCALE_TYPE) != R_32F)
        return refuse(NOT_SUPPORTED, "compute and scale type");
    if (op.get<i32>(DESC_POINTER_MODE) != POINTER_MODE_HOST || op.get<i32>(DESC_TRANSC) != OP_N)
        return refuse(NOT_SUPPORTED, "pointer mode or transposed C");
    if (a.type != R_16BF || b.type != R_16BF || c.type != d.type || (d.type != R_16BF && d.type != R_32F))
        return refuse(NOT_SUPPORTED, "types of the matrices");
    for (const Layout& layout : {a, b, c, d})
        if (layout.rows == 0 || layout.cols == 0 || layout.ld < static_cast<i64>(layout.rows))
            return refuse(INVALID_VALUE, "a layout of " + text(layout));
    const i32 transposed_a = op.get<i32>(DESC_TRANSA), transposed_b = op.get<i32>(DESC_TRANSB);
    problem = {d.rows, d.cols, 0, a, b, d, transposed_a, transposed_b, op.get<u32>(DESC_EPILOGUE), nullptr};
    for (i32 transposed : {problem.transposed_a, problem.transposed_b})
        if (transposed != OP_N && transposed != OP_T) return refuse(INVALID_VALUE, "an operation on a matrix");
    const u64 m = problem.transposed_a ? a.cols : a.rows, depth = problem.transposed_a ? a.rows : a.cols;
    const u64 n = problem.transposed_b ? b.rows : b.cols, other = problem.transposed_b ? b.cols : b.rows;
    if (depth != other || m != d.rows || n != d.cols || c.rows != d.rows || c.cols != d.cols || c.ld != d.ld)
        return refuse(INVALID_VALUE, "sizes: A " + text(a) + ", B " + text(b) + ", C " + text(c) + ", D " + text(d));
    problem.k = depth;
    if (problem.epilogue != EPILOGUE_DEFAULT && problem.epilogue != EPILOGUE_BIAS) return refuse(NOT_SUPPORTED, "epilogue");
    if (problem.epilogue == EPILOGUE_BIAS) {
        const i32 type = op.get<i32>(DESC_BIAS_DATA_TYPE);
        problem.bias = op.get<const void*>(DESC_BIAS_POINTER);
        if (problem.bias == nullptr) return refuse(INVALID_VALUE, "a bias without a pointer");
        if (type != -1 && type != d.type) return refuse(NOT_SUPPORTED, "the bias's type is not D's");
    }
    return SUCCESS;
}

// A way is good for one problem, by whatever pointers.
u64 fingerprint(const Problem& p) {
    u64 hash = 14695981039346656037ull;
    for (u64 value : {p.m, p.n, p.k, u64(p.a.ld), u64(p.b.ld), u64(p.d.ld), u64(p.d.type), u64(p.transposed_a),
                      u64(p.transposed_b), u64(p.epilogue)})
        hash = (hash ^ value) * 1099511628211ull;
    return hash;
}

enum AlgoWord { MAGIC, VERSION, BIAS_ALIGNMENT, WORKSPACE, SCHEME, PROBLEM, ALIGNMENT, CHECK };
constexpr u64 IS_ALGO = 0x7761790a;

u64 checksum(const Algo& algo) {
    u64 sum = 1;
    for (int i = 0; i < CHECK; i++) sum = sum * 31 + algo.data[i];
    return sum;
}

float to_float(u16 bits) {
    u32 wide = u32(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

// To nearest, ties to even.
u16 to_bf16(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float load(const void* matrix, i32 type, u64 at) {
    return type == R_32F ? static_cast<const float*>(matrix)[at] : to_float(static_cast<const u16*>(matrix)[at]);
}

// A sum in one part or two; a part is rounded if the way keeps parts in D's type.
float dot(const Problem& p, u64 scheme, const void* a, const void* b, u64 row, u64 col) {
    float sum = 0;
    const u64 parts = scheme == 0 ? 1 : 2;
    for (u64 part = 0; part < parts; part++) {
        float partial = 0;
        for (u64 k = p.k * part / parts; k < p.k * (part + 1) / parts; k++) {
            const u64 in_a = p.transposed_a ? k + row * p.a.ld : row + k * p.a.ld;
            const u64 in_b = p.transposed_b ? col + k * p.b.ld : k + col * p.b.ld;
            partial += load(a, R_16BF, in_a) * load(b, R_16BF, in_b);
        }
        sum += scheme == REDUCTION_OUTPUT_TYPE ? to_float(to_bf16(partial)) : partial;
    }
    return sum;
}

Status check_algo(const Algo* algo, const Problem& problem) {
    if (algo == nullptr) return refuse(INVALID_VALUE, "no way is given");
    if (algo->data[MAGIC] != IS_ALGO || algo->data[CHECK] != checksum(*algo))
        return refuse(INVALID_VALUE, "a way that was not offered");
    if (algo->data[VERSION] != version) return refuse(INVALID_VALUE, "a way of another version");
    if (algo->data[PROBLEM] != fingerprint(problem)) return refuse(INVALID_VALUE, "a way for another product");
    return SUCCESS;
}

bool is_multiple(const void* pointer, u64 of) {
    return reinterpret_cast<u64>(pointer) % of == 0;
}

u64 alignment_of(const void* pointer) {
    u64 alignment = 256;
    while (!is_multiple(pointer, alignment)) alignment /= 2;
    return alignment;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// ---- For the tests ---------------------------------------------------------------------------------------------------

EXPORT size_t stand_in_alive() {
    std::lock_guard<std::mutex> guard(lock);
    return alive.size();
}

EXPORT const char* stand_in_refusal() {
    return refusal.c_str();
}

EXPORT void stand_in_offers(i32 count) {
    ways = count;
}

EXPORT void stand_in_is(size_t which) {
    version = which;
}

EXPORT void* stand_in_stream() {
    return last_stream;
}

// ---- cublasLt.h ------------------------------------------------------------------------------------------------------

EXPORT size_t cublasLtGetVersion() {
    return version;
}

EXPORT Status cublasLtCreate(Handle** to) {
    return create(to, new Handle);
}

EXPORT Status cublasLtDestroy(Handle* handle) {
    return destroy(handle);
}

EXPORT Status cublasLtMatrixLayoutCreate(Layout** to, i32 type, u64 rows, u64 cols, i64 ld) {
    return create(to, new Layout{type, rows, cols, ld});
}

EXPORT Status cublasLtMatrixLayoutDestroy(Layout* layout) {
    return destroy(layout);
}

EXPORT Status cublasLtMatmulDescCreate(Operation** to, i32 compute_type, i32 scale_type) {
    auto* fresh = new Operation;
    fresh->start(DESC_COMPUTE_TYPE, compute_type);
    fresh->start(DESC_SCALE_TYPE, scale_type);
    fresh->start(DESC_POINTER_MODE, POINTER_MODE_HOST);
    for (i32 transposed : {DESC_TRANSA, DESC_TRANSB, DESC_TRANSC}) fresh->start(transposed, OP_N);
    fresh->start(DESC_EPILOGUE, EPILOGUE_DEFAULT);
    fresh->start(DESC_BIAS_POINTER, static_cast<const void*>(nullptr));
    fresh->start(DESC_BIAS_DATA_TYPE, i32(-1));
    return create(to, fresh);
}

EXPORT Status cublasLtMatmulDescSetAttribute(Operation* operation, i32 attribute, const void* from, size_t bytes) {
    return set(operation, attribute, from, bytes);
}

EXPORT Status cublasLtMatmulDescDestroy(Operation* operation) {
    return destroy(operation);
}

EXPORT Status cublasLtMatmulPreferenceCreate(Preference** to) {
    auto* fresh = new Preference;
    fresh->start(PREF_SEARCH_MODE, u32(0));
    fresh->start(PREF_MAX_WORKSPACE_BYTES, u64(0));
    fresh->start(PREF_REDUCTION_SCHEME_MASK, REDUCTION_MASK);
    for (i32 matrix = PREF_MIN_ALIGNMENT_A_BYTES; matrix <= PREF_MIN_ALIGNMENT_D_BYTES; matrix++) fresh->start(matrix, u32(256));
    return create(to, fresh);
}

EXPORT Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, i32 attribute, const void* from, size_t bytes) {
    return set(preference, attribute, from, bytes);
}

EXPORT Status cublasLtMatmulPreferenceDestroy(Preference* preference) {
    return destroy(preference);
}

// The first way works in all of the workspace, the second one is none, the third does without a workspace.
EXPORT Status cublasLtMatmulAlgoGetHeuristic(Handle* handle, Operation* operation, Layout* a, Layout* b, Layout* c, Layout* d,
                                             Preference* preference, i32 requested, Result* results, i32* count) {
    std::lock_guard<std::mutex> guard(lock);
    Problem problem;
    if (Status status = in_use({handle, operation, a, b, c, d, preference})) return status;
    if (Status status = examine(*operation, *a, *b, *c, *d, problem)) return status;
    if (requested < 1 || results == nullptr || count == nullptr) return refuse(INVALID_VALUE, "no ways are asked for");
    *count = 0;
    if (ways == 0) return refuse(NOT_SUPPORTED, "there is no way");
    u32 alignment = 256;
    for (i32 matrix = PREF_MIN_ALIGNMENT_A_BYTES; matrix <= PREF_MIN_ALIGNMENT_D_BYTES; matrix++)
        alignment = std::min(alignment, preference->get<u32>(matrix));
    if (alignment < 16) return refuse(NOT_SUPPORTED, "tensor cores want 16 bytes of alignment");
    const u32 mask = preference->get<u32>(PREF_REDUCTION_SCHEME_MASK);
    const u64 split = mask & REDUCTION_OUTPUT_TYPE ? REDUCTION_OUTPUT_TYPE : mask & REDUCTION_COMPUTE_TYPE;
    for (; *count < ways && *count < requested; ++*count) {
        Result& result = results[*count];
        memset(&result, 0xab, sizeof result);
        result.state = *count == 1 ? NOT_SUPPORTED : SUCCESS;
        if (*count == 1) continue;
        result.workspace_bytes = *count == 0 ? preference->get<u64>(PREF_MAX_WORKSPACE_BYTES) : 0;
        const u64 scheme = *count == 0 ? split : 0, bias_alignment = alignment_of(problem.bias);
        result.algo = {IS_ALGO, version, bias_alignment, result.workspace_bytes, scheme, fingerprint(problem), alignment, 0};
        result.algo.data[CHECK] = checksum(result.algo);
    }
    return SUCCESS;
}

EXPORT Status cublasLtMatmul(Handle* handle, Operation* operation, const void* alpha, const void* a, Layout* a_layout,
                             const void* b, Layout* b_layout, const void* beta, const void* c, Layout* c_layout, void* d,
                             Layout* d_layout, const Algo* algo, void* workspace, size_t workspace_bytes, void* stream) {
    std::lock_guard<std::mutex> guard(lock);
    Problem problem;
    if (Status status = in_use({handle, operation, a_layout, b_layout, c_layout, d_layout})) return status;
    if (Status status = examine(*operation, *a_layout, *b_layout, *c_layout, *d_layout, problem)) return status;
    if (Status status = check_algo(algo, problem)) return status;
    if (workspace_bytes < algo->data[WORKSPACE]) return refuse(INVALID_VALUE, "too small a workspace");
    if (workspace_bytes > 0 && (workspace == nullptr || !is_multiple(workspace, 256)))
        return refuse(INVALID_VALUE, "a workspace not aligned");
    for (const void* pointer : {alpha, beta, a, b, static_cast<const void*>(d)})
        if (pointer == nullptr) return refuse(INVALID_VALUE, "a null pointer");
    for (const void* pointer : {a, b, c, static_cast<const void*>(d)})
        if (!is_multiple(pointer, algo->data[ALIGNMENT])) return refuse(INVALID_VALUE, "a matrix not aligned as was said");
    if (!is_multiple(problem.bias, algo->data[BIAS_ALIGNMENT]))
        return refuse(INVALID_VALUE, "a bias not aligned as was said");
    const float scale = *static_cast<const float*>(alpha), of_c = *static_cast<const float*>(beta);
    if (of_c != 0 && c != d) return refuse(NOT_SUPPORTED, "C is another matrix than D");
    last_stream = stream;
    if (algo->data[WORKSPACE] > 0) memset(workspace, 0xcd, algo->data[WORKSPACE]);
    const i32 type = problem.d.type;
    for (u64 col = 0; col < problem.n; col++) {
        for (u64 row = 0; row < problem.m; row++) {
            const u64 at = row + col * problem.d.ld;
            float value = scale * dot(problem, algo->data[SCHEME], a, b, row, col);
            if (of_c != 0) value += of_c * load(c, type, at);
            if (problem.bias != nullptr) value += load(problem.bias, type, row);
            if (type == R_32F)
                static_cast<float*>(d)[at] = value;
            else
                static_cast<u16*>(d)[at] = to_bf16(value);
        }
    }
    return SUCCESS;
}
