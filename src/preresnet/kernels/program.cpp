// A few images through folded residual units in one call: a list of steps, run by threads that meet between two of them.
//
// For one image, the work of a convolution of these networks lasts microseconds, and so does every call into a library.
// Each step is a 1x1 or 3x3 convolution with everything that follows it up to the next: bias, ReLU, addition of the
// shortcut, what comes after the addition, and the pre-activation of the next unit as a second result.
//
// Maps are channels last, with a border of zeros one pixel wide, so that no tap asks where it is; channels are padded to
// a multiple of 16. A block of positions times a group of output channels stays in registers. Sums are float32; where the
// processor multiplies pairs of bfloat16, what convolutions read and their weights may be bfloat16, at twice the speed.

#include <omp.h>

#include "vectors.h"

namespace {

typedef Vec<float> V32;
constexpr long kLanes = kWidth<float>;
constexpr int kSums = kManyRegisters ? 16 : 8;             // registers of sums: as many as hide an addition's latency
constexpr long kWidestGroup = kManyRegisters ? 64 : 16;    // channels

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
    long group;                                      // channels
    long relu, after_relu, next_relu;                // directly behind the convolution; behind scale and next_scale
    long half, half_plus, half_out, half_activated;  // which are bfloat16: in with weight, and the other maps
};

// sum + two products: of a pair of input channels, the same for all lanes, with their weights.
#ifdef __AVX512BF16__
constexpr bool kHasHalf = true;

INLINE V32 add_products(V32 sum, V32 weights, const bf16* pair) {
    int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return (V32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(both));
}
#else
constexpr bool kHasHalf = false;

INLINE V32 add_products(V32 sum, V32, const bf16*) { return sum; }
#endif

INLINE V32 add_products(V32 sum, V32 weights, const float* value) { return sum + weights * *value; }

// Vector of channels at a place of a map of either type.
INLINE V32 read(const void* map, long at, bool half) {
    return half ? load((const bf16*)map + at) : load((const float*)map + at);
}

INLINE void write(void* map, long at, bool half, V32 v) {
    half ? store((bf16*)map + at, v) : store((float*)map + at, v);
}

INLINE V32 affine(V32 v, const float* scale, const float* shift, long channel, bool relu) {
    if (scale != nullptr) v = v * load(scale + channel) + load(shift + channel);
    return relu ? positive(v) : v;
}

// P positions of one row, V vectors of channels. T is the type of the input: one value of it, or a pair of bfloat16, meets
// a vector of weights.
template <class T, int P, int V> INLINE void block(const Step& s, long image, long row, long column, long group) {
    constexpr long kTogether = sizeof(float) / sizeof(T);
    const T* in = (const T*)s.in + image * s.in_image + row * s.stride * s.in_row + column * s.stride * s.in_pixel;
    const long first = group * V * kLanes, step = s.stride * s.in_pixel, reach = s.kernel / 2;
    const long turns = (s.in_channels + kTogether - 1) / kTogether;
    const float* weight = (const float*)s.weight + first * s.kernel * s.kernel * turns;
    V32 sum[P][V];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[p][v] = load(s.bias + first + v * kLanes);
    for (long y = -reach; y <= reach; ++y)
        for (long x = -reach; x <= reach; ++x) {
            const T* tap = in + y * s.in_row + x * s.in_pixel;
            for (long c = 0; c < turns; ++c, weight += V * kLanes) {
                V32 w[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) w[v] = load(weight + v * kLanes);
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
            const long channel = first + v * kLanes;
            V32 value = s.relu ? positive(sum[p][v]) : sum[p][v];
            if (s.plus != nullptr && channel < s.plus_channels)
                value += read(s.plus,
                              image * s.plus_image + row * s.plus_stride * s.plus_row +
                                  (column + p) * s.plus_stride * s.plus_channels + channel,
                              s.half_plus);
            value = affine(value, s.scale, s.shift, channel, s.after_relu);
            const long at = out + p * s.channels + v * kLanes;
            if (s.out != nullptr) write(s.out, at, s.half_out, value);
            if (s.activated != nullptr)
                write(s.activated, at, s.half_activated, affine(value, s.next_scale, s.next_shift, channel, s.next_relu));
        }
}

// From a column to the end of its row, in blocks of P positions and then of fewer.
template <class T, int P, int V> INLINE void run_row(const Step& s, long image, long row, long column, long group) {
    for (; column + P <= s.width; column += P) block<T, P, V>(s, image, row, column, group);
    if constexpr (P > 1) run_row<T, P / 2, V>(s, image, row, column, group);
}

template <class T, int V> void run_rows(const Step& s, long thread, long team) {
    const long groups = s.channels / s.group, items = s.images * s.height * groups;
    for (long item = items * thread / team; item < items * (thread + 1) / team; ++item) {
        const long line = item / groups;
        run_row<T, kSums / V, V>(s, line / s.height, line % s.height, 0, item % groups);
    }
}

template <class T> void run_step(const Step& s, long thread, long team) {
    constexpr int V = 16 / kLanes;  // vectors of the narrowest group
    if constexpr (kWidestGroup >= 64)
        if (s.group == 64) return run_rows<T, 4 * V>(s, thread, team);
    if constexpr (kWidestGroup >= 32)
        if (s.group == 32) return run_rows<T, 2 * V>(s, thread, team);
    run_rows<T, V>(s, thread, team);
}

}  // namespace

// Whether maps may be bfloat16, and how many channels a group may have: 16, or also 32 and 64.
extern "C" int has_half() { return kHasHalf; }
extern "C" long widest_group() { return kWidestGroup; }

extern "C" void run(const Step* steps, long count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const long thread = omp_get_thread_num(), team = omp_get_num_threads();
        for (long number = 0; number < count; ++number) {
            const Step& s = steps[number];
            s.half ? run_step<bf16>(s, thread, team) : run_step<float>(s, thread, team);
#pragma omp barrier
        }
    }
}
