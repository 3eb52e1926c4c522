// matrix.cpp: see matrix.h.

#include "matrix.h"

#include <bit>
#include <cstring>

namespace sim {

static const char READS[] = "wgmma reads";

MatrixPlace decode_descriptor(Thread& self, u64 descriptor, bool k_major, const char* name) {
    static const u32 widths[] = {0, 128, 64, 32};
    MatrixPlace m;
    m.start = static_cast<u32>(descriptor & 0x3fff) << 4;
    m.leading_bytes = static_cast<u32>(descriptor >> 16 & 0x3fff) << 4;
    m.stride_bytes = static_cast<u32>(descriptor >> 32 & 0x3fff) << 4;
    m.swizzle_bytes = widths[descriptor >> 62];
    m.k_major = k_major;
    if (descriptor & ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62))
        fail(self, "wgmma's descriptor of %s, 0x%llx, has bits set that mean nothing", name, descriptor);
    if (descriptor >> 49 & 7)
        fail(self, "wgmma's descriptor of %s has a matrix base offset; only 0 is simulated", name);
    if (m.swizzle_bytes == 0) return m;
    // The rows of the swizzle's pattern are counted by address bits 7 and up; the matrix starts with row 0 of one.
    u32 pattern = m.swizzle_bytes * 8;
    u32 into = m.start % pattern;
    if (into >= m.swizzle_bytes)
        fail(self, "wgmma's descriptor of %s starts %u bytes into the swizzle's pattern of %u bytes, which wants a "
             "matrix base offset", name, into, pattern);
    if (k_major && into + 32 > m.swizzle_bytes)
        fail(self, "wgmma's descriptor of %s starts %u bytes into a row of %u bytes: its 32 bytes would cross the "
             "row's end", name, into, m.swizzle_bytes);
    if (!k_major && into != 0)
        fail(self, "wgmma's descriptor of %s starts %u bytes into a row of an MN-major swizzle", name, into);
    return m;
}

u32 element_address(const MatrixPlace& m, u32 mn, u32 k) {
    u32 offset;
    if (m.swizzle_bytes == 0) {
        // 8x8 core matrices of eight rows of 16 bytes.
        u32 row = m.k_major ? mn % 8 : k % 8, column = m.k_major ? k % 8 : mn % 8;
        offset = row * 16 + column * 2 + mn / 8 * m.stride_bytes + k / 8 * m.leading_bytes;
    } else if (m.k_major) {
        offset = mn % 8 * m.swizzle_bytes + mn / 8 * m.stride_bytes + k * 2;
    } else {
        u32 wide = m.swizzle_bytes / 2;
        offset = mn % wide * 2 + mn / wide * m.leading_bytes + k % 8 * m.swizzle_bytes + k / 8 * m.stride_bytes;
    }
    return swizzle_address(m.swizzle_bytes, m.start + offset);
}

void begin_matrix_read(Thread& self, const MatrixPlace& matrix, u32 first, u32 count, std::vector<Tag>& tags) {
    each_run(matrix, first, count, [&](u32 address, u32, u32) {
        const void* run = sim_shared_pointer(address);
        check_shared_read(self, run, 16, READS);
        check_proxy(self, run, 16, READS);
        append_tags(tags, run, 16);
    });
}

void end_matrix_read(Thread& self, const MatrixPlace& matrix, u32 first, u32 count, const Tag*& tags, float* to) {
    each_run(matrix, first, count, [&](u32 address, u32 mn, u32 k) {
        const void* run = sim_shared_pointer(address);
        check_unchanged(self, tags, run, 16, "wgmma");
        // From here on only who synchronises with this warp after its wait may overwrite.
        check_shared_read(self, run, 16, READS);
        u16 elements[8];
        memcpy(elements, run, 16);
        for (u32 i = 0; i < 8; i++) {
            u32 row = matrix.k_major ? k + i : k, column = (matrix.k_major ? mn : mn + i) - first;
            to[row * count + column] = std::bit_cast<float>(static_cast<u32>(elements[i]) << 16);
        }
    });
}

}  // namespace sim
