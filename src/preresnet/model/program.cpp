// How do a few images pass through folded residual units in one call?
//
// For one image, the work of a convolution of these networks lasts microseconds, and so does every call into a library.
// Here a whole sequence of convolutions is one call: a list of steps, run by threads that meet between two of them. Each
// step is a 1x1 or 3x3 convolution with everything that follows it up to the next: bias, ReLU, addition of the shortcut,
// what comes after the addition, and the pre-activation of the next unit as a second result.
//
// Maps are float32, channels last, with a border of zeros one pixel wide, so that no tap asks where it is; channels are
// padded to whole vectors. A block of positions times vectors of output channels stays in registers.

#include <omp.h>

#include <cstring>

#define INLINE static inline __attribute__((always_inline))

namespace {

typedef float Vec __attribute__((vector_size(64)));
constexpr long kWidth = 16;

struct Step {
    // The first pixel inside the border of the first image, or null.
    const float* in;
    const float* plus;  // added behind the first ReLU
    float* out;         // null where nobody reads it
    float* activated;   // the next unit's pre-activation of out
    // (groups, taps, in channels, vectors of a group); the others one value a channel, or null for none.
    const float *weight, *bias, *scale, *shift, *next_scale, *next_shift;
    long images, height, width, channels, in_channels;  // of the result; in_channels without padding
    long kernel, stride, in_pixel, in_row, in_image;    // distances in the input, in values
    long plus_stride, plus_channels, plus_row, plus_image;
    long vectors;                                      // of a group
    long relu, after_relu, next_relu;                  // directly behind the convolution; behind scale and next_scale
};

INLINE Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

INLINE Vec positive(Vec v) { return v < 0 ? Vec{} : v; }

INLINE Vec affine(Vec v, const float* scale, const float* shift, long channel, bool relu) {
    if (scale != nullptr) v = v * load(scale + channel) + load(shift + channel);
    return relu ? positive(v) : v;
}

// P positions of one row, V vectors of channels.
template <int P, int V> INLINE void block(const Step& s, long image, long row, long column, long group) {
    const float* in = s.in + image * s.in_image + row * s.stride * s.in_row + column * s.stride * s.in_pixel;
    const long first = group * V * kWidth, step = s.stride * s.in_pixel, reach = s.kernel / 2;
    const float* weight = s.weight + first * s.kernel * s.kernel * s.in_channels;
    Vec sum[P][V];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[p][v] = load(s.bias + first + v * kWidth);
    for (long y = -reach; y <= reach; ++y)
        for (long x = -reach; x <= reach; ++x) {
            const float* tap = in + y * s.in_row + x * s.in_pixel;
            for (long c = 0; c < s.in_channels; ++c, weight += V * kWidth) {
                Vec w[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) w[v] = load(weight + v * kWidth);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) sum[p][v] += w[v] * tap[p * step + c];
            }
        }
    const long out = image * (s.height + 2) * (s.width + 2) * s.channels +
                     (row * (s.width + 2) + column) * s.channels + first;
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) {
            const long channel = first + v * kWidth;
            Vec value = s.relu ? positive(sum[p][v]) : sum[p][v];
            if (s.plus != nullptr && channel < s.plus_channels)
                value += load(s.plus + image * s.plus_image + row * s.plus_stride * s.plus_row +
                              (column + p) * s.plus_stride * s.plus_channels + channel);
            value = affine(value, s.scale, s.shift, channel, s.after_relu);
            const long at = out + p * s.channels + v * kWidth;
            if (s.out != nullptr) store(s.out + at, value);
            if (s.activated != nullptr)
                store(s.activated + at, affine(value, s.next_scale, s.next_shift, channel, s.next_relu));
        }
}

template <int V> void run_row(const Step& s, long image, long row, long group) {
    constexpr int kMost = V == 1 ? 16 : V == 2 ? 8 : 4;
    long column = 0;
    for (; column + kMost <= s.width; column += kMost) block<kMost, V>(s, image, row, column, group);
    if constexpr (kMost > 8)
        for (; column + 8 <= s.width; column += 8) block<8, V>(s, image, row, column, group);
    for (; column + 4 <= s.width; column += 4) block<4, V>(s, image, row, column, group);
    for (; column < s.width; ++column) block<1, V>(s, image, row, column, group);
}

}  // namespace

extern "C" void run(const Step* steps, long count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const long thread = omp_get_thread_num(), team = omp_get_num_threads();
        for (long number = 0; number < count; ++number) {
            const Step& s = steps[number];
            const long groups = s.channels / (s.vectors * kWidth), items = s.images * s.height * groups;
            for (long item = items * thread / team; item < items * (thread + 1) / team; ++item) {
                const long line = item / groups, image = line / s.height, row = line % s.height;
                switch (s.vectors) {
                    case 1: run_row<1>(s, image, row, item % groups); break;
                    case 2: run_row<2>(s, image, row, item % groups); break;
                    default: run_row<4>(s, image, row, item % groups);
                }
            }
#pragma omp barrier
        }
    }
}
