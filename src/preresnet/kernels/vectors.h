// Vectors of the width that the processor has: loading, storing, bfloat16, and functions of each lane.
//
// Written with the compiler's vector extensions, so that one source is AVX-512, AVX2, SSE4 or NEON according to -march.
// A vector wider than a register would be cut in pieces and spilled: twice as slow as PyTorch. What GCC 12 finds no good
// instruction for is said by name.

#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr bool kManyRegisters = true;  // 32 of them; elsewhere, as far as code may assume, 16
#elif defined(__AVX__)
constexpr int kBytes = 32;
constexpr bool kManyRegisters = false;
#else
constexpr int kBytes = 16;
constexpr bool kManyRegisters = false;
#endif

struct bf16 {
    uint16_t bits;
};

// The type in which a map's values are computed with.
template <class T> struct Of;
template <> struct Of<bf16> {
    using Number = float;
};
template <> struct Of<float> {
    using Number = float;
};
template <> struct Of<double> {
    using Number = double;
};

template <class N> struct Vectors;
template <> struct Vectors<float> {
    typedef float V __attribute__((vector_size(kBytes)));
    typedef int32_t Bits __attribute__((vector_size(kBytes)));
};
template <> struct Vectors<double> {
    typedef double V __attribute__((vector_size(kBytes)));
    typedef int64_t Bits __attribute__((vector_size(kBytes)));
};

template <class N> using Vec = typename Vectors<N>::V;
template <class N> constexpr long kWidth = kBytes / sizeof(N);

typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef uint16_t U16 __attribute__((vector_size(kBytes / 2)));

template <class N> INLINE Vec<N> load(const N* from) {
    Vec<N> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

INLINE Vec<float> load(const bf16* from) {
    U16 half;
    std::memcpy(&half, from, sizeof half);
#if defined(__AVX512F__)
    return (Vec<float>)((U32)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#elif defined(__AVX2__)
    return (Vec<float>)((U32)_mm256_cvtepu16_epi32((__m128i)half) << 16);
#else
    return (Vec<float>)(__builtin_convertvector(half, U32) << 16);
#endif
}

// Both return what is then in memory.
template <class N> INLINE Vec<N> store(N* to, Vec<N> v) {
    std::memcpy(to, &v, sizeof v);
    return v;
}

INLINE Vec<float> store(bf16* to, Vec<float> v) {
#if defined(__AVX512BF16__)
    U16 half = (U16)_mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to, &half, sizeof half);
    return load(to);
#else
    const U32 bits = (U32)v;
    const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    const U32 upper = ((U32)(v == v) ? rounded : bits | 0x400000u) >> 16;  // a NaN stays one
#if defined(__AVX512F__)
    U16 half = (U16)_mm512_cvtepi32_epi16((__m512i)upper);
#elif defined(__AVX2__)
    __m256i pairs = _mm256_packus_epi32((__m256i)upper, (__m256i)upper);
    __m128i half = _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
#elif defined(__SSE4_1__) && !defined(__AVX__)
    __m128i pairs = _mm_packus_epi32((__m128i)upper, (__m128i)upper);
    int64_t half = _mm_cvtsi128_si64(pairs);
#else
    U16 half = __builtin_convertvector(upper, U16);
#endif
    std::memcpy(to, &half, sizeof half);
    return (Vec<float>)(upper << 16);
#endif
}

template <class N> INLINE N get(const N* from) { return *from; }
INLINE float get(const bf16* from) {
    uint32_t bits = (uint32_t)from->bits << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class N> INLINE void put(N* to, N value) { *to = value; }
INLINE void put(bf16* to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to->bits = (uint16_t)((value == value ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u) >> 16);
}

// The larger of two; a NaN in v stays one.
template <class V> INLINE V at_least(V bound, V v) {
    constexpr bool single = sizeof(v[0]) == 4;
#if defined(__AVX512F__)
    if constexpr (single) return (V)_mm512_max_ps((__m512)bound, (__m512)v);
    else return (V)_mm512_max_pd((__m512d)bound, (__m512d)v);
#elif defined(__AVX__)
    if constexpr (single) return (V)_mm256_max_ps((__m256)bound, (__m256)v);
    else return (V)_mm256_max_pd((__m256d)bound, (__m256d)v);
#elif defined(__SSE4_1__)
    if constexpr (single) return (V)_mm_max_ps((__m128)bound, (__m128)v);
    else return (V)_mm_max_pd((__m128d)bound, (__m128d)v);
#else
    return v < bound ? bound : v;
#endif
}

template <class V> INLINE V positive(V v) { return at_least(V{}, v); }

// 1 / (1 + exp(-v)), to some units in the last place. With t = -v = n ln 2 + r, exp(t) is 2^n times a Taylor polynomial
// of r, |r| <= ln 2 / 2, whose first missing term is below the precision. A NaN stays one.
template <class N> INLINE Vec<N> sigmoid(Vec<N> v) {
    using Bits = typename Vectors<N>::Bits;
    constexpr bool single = sizeof(N) == 4;
    constexpr int mantissa = single ? 23 : 52, terms = single ? 7 : 13;
    constexpr N limit = single ? 87 : 708;                              // 2^n stays a normal number
    constexpr N shift = single ? 0x1.8p23 : 0x1.8p52;                   // a sum with it has no digits after the point
    constexpr N high = single ? 0x1.62e4p-1 : 0x1.62e42feep-1;          // of ln 2: so few digits that n * high is exact
    constexpr N low = N(0x1.62e42fefa39ef35793c7673p-1L - (long double)high);
    constexpr auto factors = [] {
        std::array<N, terms + 1> of{1};
        for (int k = 1; k <= terms; ++k) of[k] = of[k - 1] / k;
        return of;
    }();
    const Vec<N> zero{};
    Vec<N> t = at_least(zero - limit, -at_least(zero - limit, v));
    Vec<N> shifted = t * N(1.4426950408889634) + shift, n = shifted - shift;
    Vec<N> r = t - n * high - n * low, sum = zero + factors[terms];
#pragma GCC unroll 16
    for (int k = terms - 1; k >= 0; --k) sum = sum * r + factors[k];
    Bits power = ((Bits)shifted << mantissa) + (Bits)(zero + N(1));
    return N(1) / (N(1) + sum * (Vec<N>)power);
}

template <class N> INLINE N sigmoid_of(N v) { return 1 / (1 + std::exp(-v)); }

}  // namespace
