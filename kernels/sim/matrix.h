// matrix.h: the matrices of wgmma in shared memory, as descriptors say they lie.
#pragma once

#include "hopper.h"

namespace sim {

constexpr u32 K16 = 16;

// "Matrix Descriptor Format", decoded, of a matrix of `mn` (m or n) by k.
struct MatrixPlace {
    u32 start;
    u32 leading_bytes, stride_bytes;
    u32 swizzle_bytes;
    bool k_major;
};

// Decodes; an error where the descriptor asks for what the manual does not define. `name` is "A" or "B".
MatrixPlace decode_descriptor(Thread& self, u64 descriptor, bool k_major, const char* name);

// Element (mn, k), an address of the shared window. "Canonical Layouts".
u32 element_address(const MatrixPlace& matrix, u32 mn, u32 k);

// The runs of 16 bytes that elements (first .. first + count, 0..16) are made of, `count` a multiple of 8.
template <class Visit>
void each_run(const MatrixPlace& matrix, u32 first, u32 count, Visit visit) {
    if (matrix.k_major) {
        for (u32 mn = first; mn < first + count; mn++) {
            for (u32 k = 0; k < K16; k += 8) visit(element_address(matrix, mn, k), mn, k);
        }
    } else {
        for (u32 k = 0; k < K16; k++) {
            for (u32 mn = first; mn < first + count; mn += 8) visit(element_address(matrix, mn, k), mn, k);
        }
    }
}

// Checks that `self` may let wgmma read rows first .. first + count, and notes the tags of their writers.
void begin_matrix_read(Thread& self, const MatrixPlace& matrix, u32 first, u32 count, std::vector<Tag>& tags);
// Checks that nobody has written there since, and reads: to[k][mn - first], rows of `count`.
void end_matrix_read(Thread& self, const MatrixPlace& matrix, u32 first, u32 count, const Tag*& tags, float* to);

}  // namespace sim
