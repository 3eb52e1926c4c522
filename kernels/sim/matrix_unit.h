// matrix_unit.h: how the matrix unit rounds.
//
// NVIDIA does not say. Measured on the hardware and modelled to the bit (Khattak and Mikaitis, "Accurate Models of NVIDIA
// Tensor Cores", arXiv 2512.07004; Xie et al., "MMA-Sim", arXiv 2511.10909): so many products of bf16, 8 on sm_80 and 16 on
// sm_90, and what was there before are aligned to the largest of them, cut to 24 or 25 bits behind the point, added, and the
// sum is cut to f32. So errors do not cancel as those of rounding do: a sum over many rows comes out too near to zero.
//
// Here the terms are not cut before they are added, which is the smaller part of the error.
#pragma once

#include <bit>
#include <cmath>

#include "sim_internal.h"

namespace sim {

// f32, the excess bits dropped.
inline float cut(double sum) {
    float nearest = static_cast<float>(sum);
    bool away = std::fabs(static_cast<double>(nearest)) > std::fabs(sum);
    return std::bit_cast<float>(std::bit_cast<u32>(nearest) - away);
}

}  // namespace sim
