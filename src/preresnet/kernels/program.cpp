// How do a few images pass through folded residual units in one call?
//
// For one image, the work of a convolution of these networks lasts microseconds, and so does every call into a library.
// Here a whole sequence of convolutions is one call: a list of steps, run by threads that meet between two of them. Each
// step is a 1x1 or 3x3 convolution with everything that follows it up to the next: bias, ReLU, addition of the shortcut,
// what comes after the addition, and the pre-activation of the next unit as a second result.
//
// Maps are channels last, with a border of zeros one pixel wide, so that no tap asks where it is; channels are padded to
// whole vectors. A block of positions times vectors of output channels stays in registers. Sums are float32; where the
// processor multiplies pairs of bfloat16, what convolutions read and their weights may be bfloat16, at twice the speed.

#include <omp.h>

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

typedef float Vec __attribute__((vector_size(64)));
constexpr long kWidth = 16;

struct Step {
    // The first pixel inside the border of the first image, or null.
    const void* in;
    const void* plus;  // added behind the first ReLU
    void* out;         // null where nobody reads it
    void* activated;   // the next unit's pre-activation of out
    // (groups, taps, in channels, values of a group); of bfloat16 (..., in channels / 2, values of a group, 2). The others
    // one value a channel, or null for none.
    const void* weight;
    const float *bias, *scale, *shift, *next_scale, *next_shift;
    long images, height, width, channels, in_channels;  // of the result; in_channels without padding
    long kernel, stride, in_pixel, in_row, in_image;    // distances in the input, in values
    long plus_stride, plus_channels, plus_row, plus_image;
    long vectors;                                      // of a group
    long relu, after_relu, next_relu;                  // directly behind the convolution; behind scale and next_scale
    long half, half_plus, half_out, half_activated;    // which are bfloat16: in with weight, and the other maps
};

typedef uint16_t Half;

INLINE Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

#ifdef __AVX512BF16__
constexpr bool kHasHalf = true;

INLINE Vec load(const Half* from) {
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}

INLINE void store(Half* to, Vec v) {
    const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to, &half, sizeof half);
}

// sum + two products: of a pair of input channels, the same for all lanes, with their weights.
INLINE Vec add_products(Vec sum, Vec weights, const Half* pair) {
    int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(both));
}
#else
constexpr bool kHasHalf = false;

INLINE Vec load(const Half*) { return Vec{}; }
INLINE void store(Half*, Vec) {}
INLINE Vec add_products(Vec sum, Vec, const Half*) { return sum; }
#endif

INLINE Vec add_products(Vec sum, Vec weights, const float* value) { return sum + weights * *value; }

// Vector of channels at a place of a map of either type.
INLINE Vec read(const void* map, long at, bool half) {
    return half ? load((const Half*)map + at) : load((const float*)map + at);
}

INLINE void write(void* map, long at, bool half, Vec v) { half ? store((Half*)map + at, v) : store((float*)map + at, v); }

INLINE Vec positive(Vec v) { return v < 0 ? Vec{} : v; }

INLINE Vec affine(Vec v, const float* scale, const float* shift, long channel, bool relu) {
    if (scale != nullptr) v = v * load(scale + channel) + load(shift + channel);
    return relu ? positive(v) : v;
}

// P positions of one row, V vectors of channels. T is the type of the input: one value of it, or a pair of bfloat16, meets
// a vector of weights.
template <class T, int P, int V> INLINE void block(const Step& s, long image, long row, long column, long group) {
    constexpr long kTogether = sizeof(float) / sizeof(T);
    const T* in = (const T*)s.in + image * s.in_image + row * s.stride * s.in_row + column * s.stride * s.in_pixel;
    const long first = group * V * kWidth, step = s.stride * s.in_pixel, reach = s.kernel / 2;
    const long turns = (s.in_channels + kTogether - 1) / kTogether;
    const float* weight = (const float*)s.weight + first * s.kernel * s.kernel * turns;
    Vec sum[P][V];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[p][v] = load(s.bias + first + v * kWidth);
    for (long y = -reach; y <= reach; ++y)
        for (long x = -reach; x <= reach; ++x) {
            const T* tap = in + y * s.in_row + x * s.in_pixel;
            for (long c = 0; c < turns; ++c, weight += V * kWidth) {
                Vec w[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) w[v] = load(weight + v * kWidth);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) sum[p][v] = add_products(sum[p][v], w[v], tap + p * step + c * kTogether);
            }
        }
    const long out = image * (s.height + 2) * (s.width + 2) * s.channels +
                     (row * (s.width + 2) + column) * s.channels + first;
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) {
            const long channel = first + v * kWidth;
            Vec value = s.relu ? positive(sum[p][v]) : sum[p][v];
            if (s.plus != nullptr && channel < s.plus_channels)
                value += read(s.plus,
                              image * s.plus_image + row * s.plus_stride * s.plus_row +
                                  (column + p) * s.plus_stride * s.plus_channels + channel,
                              s.half_plus);
            value = affine(value, s.scale, s.shift, channel, s.after_relu);
            const long at = out + p * s.channels + v * kWidth;
            if (s.out != nullptr) write(s.out, at, s.half_out, value);
            if (s.activated != nullptr)
                write(s.activated, at, s.half_activated, affine(value, s.next_scale, s.next_shift, channel, s.next_relu));
        }
}

template <class T, int V> void run_row(const Step& s, long image, long row, long group) {
    constexpr int kMost = V == 1 ? 16 : V == 2 ? 8 : 4;
    long column = 0;
    for (; column + kMost <= s.width; column += kMost) block<T, kMost, V>(s, image, row, column, group);
    if constexpr (kMost > 8)
        for (; column + 8 <= s.width; column += 8) block<T, 8, V>(s, image, row, column, group);
    for (; column + 4 <= s.width; column += 4) block<T, 4, V>(s, image, row, column, group);
    for (; column < s.width; ++column) block<T, 1, V>(s, image, row, column, group);
}

template <class T> void run_rows(const Step& s, long thread, long team) {
    const long groups = s.channels / (s.vectors * kWidth), items = s.images * s.height * groups;
    auto* run = s.vectors == 1 ? run_row<T, 1> : s.vectors == 2 ? run_row<T, 2> : run_row<T, 4>;
    for (long item = items * thread / team; item < items * (thread + 1) / team; ++item) {
        const long line = item / groups;
        run(s, line / s.height, line % s.height, item % groups);
    }
}

}  // namespace

// Whether maps may be bfloat16.
extern "C" int has_half() { return kHasHalf; }

extern "C" void run(const Step* steps, long count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const long thread = omp_get_thread_num(), team = omp_get_num_threads();
        for (long number = 0; number < count; ++number) {
            const Step& s = steps[number];
            s.half ? run_rows<Half>(s, thread, team) : run_rows<float>(s, thread, team);
#pragma omp barrier
        }
    }
}
