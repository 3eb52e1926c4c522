// gelu.cuh: the erf GELU and its slope, for epilogues of matmul.cu and for gelu.cu.
//   gelu(x) = x Phi(x)    gelu'(x) = Phi(x) + x phi(x)    phi, Phi: density and distribution of the standard normal
//
// Both are given an activation as it is stored, rounded to bf16: the backward pass reads that same value, so its slope is
// the slope of what the forward pass computed.
//
// Phi(-a) = e^(-a^2/2) R(a) for a >= 0, and R (the Mills ratio over sqrt(2 pi)) is smooth: a polynomial over 0..5 does,
// in a variable that runs from -1 to 1, where its coefficients stay small and nothing cancels. The one exponential gives
// phi too, so a value costs one ex2 and some 16 multiply-adds. Beyond 5 the last value of R stands in, where Phi(-a) is
// below 3e-7. On a dense grid both are within 4e-7 of f64, a thousandth of what rounding to bf16 does to them near 1.
#pragma once

#include "common.cuh"

// Phi(-|x|), and the e^(-x^2/2) that it was made of.
struct NormalTail {
    float probability;
    float exponential;
};

__device__ __forceinline__ NormalTail normal_tail(float x) {
    // Weighted minimax fit, made for this file: R to 3e-7 e^(a^2/2) / max(1, a), and to 6e-4 of itself.
    constexpr float R[] = {0.00734018954f,   -0.00197353004f, -0.00558664044f, -0.0134415515f, 0.0213112608f, -0.0213514343f,
                           0.0388583913f,    -0.060742788f,   0.0852238387f,   -0.114009783f,  0.14133361f};
    constexpr float FARTHEST = 5.0f;
    constexpr float HALF_LOG2_E = 0.72134752f;
    float u = fmaf(fminf(fabsf(x), FARTHEST), 2.0f / FARTHEST, -1.0f);
    float ratio = R[0];
#pragma unroll
    for (int i = 1; i < 11; i++) ratio = fmaf(ratio, u, R[i]);
    float exponential = exp2_fast(x * x * -HALF_LOG2_E);
    return NormalTail{exponential * ratio, exponential};
}

__device__ __forceinline__ float gelu(float x) {
    // max(x, 0) - |x| Phi(-|x|), on both sides of 0. An infinity times Phi's 0 would be NaN, so |x| stops short of it; a
    // NaN comes through the exponential.
    return fmaf(-fminf(fabsf(x), 16.0f), normal_tail(x).probability, fmaxf(x, 0.0f));
}

__device__ __forceinline__ float gelu_slope(float x) {
    constexpr float DENSITY_AT_0 = 0.39894228f;  // 1 / sqrt(2 pi)
    NormalTail tail = normal_tail(x);
    float phi = x < 0.0f ? tail.probability : 1.0f - tail.probability;
    return fmaf(fminf(fmaxf(x, -16.0f), 16.0f) * DENSITY_AT_0, tail.exponential, phi);
}
