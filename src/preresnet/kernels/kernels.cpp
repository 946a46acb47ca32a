// How are the passes of a batch norm, its ReLU, an addition and a gate done on a CPU, each at the speed of memory?
//
// A feature map in channels_last memory is `positions` times `channels` values. It is read as rows of L values, L a
// multiple of `channels` and of four vectors, so that inner loops are long however few the channels are. Rows go in
// blocks that fit the first-level cache; inside a block, four vectors of columns stay in registers. Sums are formed of
// x - pivot, the pivot being the channel's first value, so that a mean far above the deviation does not cancel; in
// float32 within a block and in float64 beyond.
//
// Written with the compiler's vector extensions, so this is AVX-512, AVX2 or NEON according to -march. For AVX-512 three
// things are said by name, because GCC 12 finds twice the instructions for them.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include <omp.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr long kBlockBytes = 32 * 1024;  // of one map: two or three of them share a first-level cache
constexpr int kColumns = 4;              // vectors side by side

struct bf16 {
    uint16_t bits;
};

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
    typedef float V __attribute__((vector_size(64)));
    typedef int32_t Bits __attribute__((vector_size(64)));
};
template <> struct Vectors<double> {
    typedef double V __attribute__((vector_size(64)));
    typedef int64_t Bits __attribute__((vector_size(64)));
};

template <class N> using Vec = typename Vectors<N>::V;
template <class N> constexpr long kWidth = 64 / sizeof(N);

typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

template <class N> INLINE Vec<N> load(const N* from) {
    Vec<N> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

INLINE Vec<float> widened(U16 half) {
#ifdef __AVX512F__
    return (Vec<float>)((U32)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#else
    return (Vec<float>)(__builtin_convertvector(half, U32) << 16);
#endif
}

INLINE Vec<float> load(const bf16* from) {
    U16 half;
    std::memcpy(&half, from, sizeof half);
    return widened(half);
}

// Both return what is then in memory.
template <class N> INLINE Vec<N> store(N* to, Vec<N> v) {
    std::memcpy(to, &v, sizeof v);
    return v;
}

INLINE Vec<float> store(bf16* to, Vec<float> v) {
#ifdef __AVX512BF16__
    U16 half = (U16)_mm512_cvtneps_pbh((__m512)v);
#else
    U32 bits = (U32)v;
    U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    U32 quiet = (bits >> 16) | 0x40u;                            // a NaN stays one
    U16 half = __builtin_convertvector((U32)(v == v) ? rounded : quiet, U16);
#endif
    std::memcpy(to, &half, sizeof half);
    return widened(half);
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
    uint32_t rounded = value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u;
    to->bits = (uint16_t)rounded;
}

// A NaN stays one.
template <class V> INLINE V positive(V v) {
#ifdef __AVX512F__
    if constexpr (std::is_same_v<V, Vec<float>>) return (V)_mm512_max_ps(__m512{}, (__m512)v);
#endif
    return v < 0 ? V{} : v;
}

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
    Vec<N> t = -v;
    t = t < -limit ? zero - limit : t;
    t = t > limit ? zero + limit : t;
    Vec<N> shifted = t * N(1.4426950408889634) + shift, n = shifted - shift;
    Vec<N> r = t - n * high - n * low, sum = zero + factors[terms];
#pragma GCC unroll 16
    for (int k = terms - 1; k >= 0; --k) sum = sum * r + factors[k];
    Bits power = ((Bits)shifted << mantissa) + (Bits)(zero + N(1));
    return N(1) / (N(1) + sum * (Vec<N>)power);
}

template <class N> INLINE N sigmoid_of(N v) { return 1 / (1 + std::exp(-v)); }

// How a map is cut into rows, blocks and one thread's share.
template <class T> struct Layout {
    long channels, positions, row, group, rows, block;

    Layout(long positions_, long channels_) : channels(channels_), positions(positions_) {
        row = std::lcm(channels, kColumns * kWidth<typename Of<T>::Number>);
        group = row / channels;
        rows = positions / group;
        block = std::max(8L, kBlockBytes / (row * (long)sizeof(T)));
    }
    long first(int thread, int threads) const { return rows * thread / threads; }
    long tail() const { return rows * group; }  // first position that no whole row holds
};

template <class N> std::vector<N> repeated(const std::vector<N>& vector, long times) {
    std::vector<N> out;
    out.reserve(vector.size() * times);
    for (long i = 0; i < times; ++i) out.insert(out.end(), vector.begin(), vector.end());
    return out;
}

// Two sums for each position of a row, of all threads.
template <class T> class Sums {
  public:
    Sums(const Layout<T>& map, int threads) : map_(map), of_(2 * map.row * threads, 0.0) {}
    double* of(int thread) { return of_.data() + 2 * map_.row * thread; }
    double total(int which, long channel, int threads) const {
        double sum = 0;
        for (long i = which * map_.row; i < 2 * map_.row * threads; i += 2 * map_.row)
            for (long j = channel; j < map_.row; j += map_.channels) sum += of_[i + j];
        return sum;
    }

  private:
    const Layout<T>& map_;
    std::vector<double> of_;
};

// Runs `body(column, first row, last row)` over a thread's rows, block by block; backwards where the last rows of a
// pass before are those still in the cache.
template <class T, class F> INLINE void blocks(const Layout<T>& map, long begin, long end, bool backwards, F body) {
    constexpr long step = kColumns * kWidth<typename Of<T>::Number>;
    long count = (end - begin + map.block - 1) / map.block;
    for (long i = 0; i < count; ++i) {
        long start = begin + (backwards ? count - 1 - i : i) * map.block;
        long stop = std::min(end, start + map.block);
        for (long column = 0; column < map.row; column += step) body(column, start, stop);
    }
}

template <class N> INLINE void flush(const Vec<N>* a, const Vec<N>* b, double* into, long row) {
    for (int k = 0; k < kColumns; ++k)
        for (int i = 0; i < kWidth<N>; ++i) {
            into[k * kWidth<N> + i] += a[k][i];
            into[row + k * kWidth<N> + i] += b[k][i];
        }
}

// Sums of v - pivot and of its square, v = value(index) as a vector or scalar(index) alone.
template <class T, class Value, class Scalar>
INLINE void reduce(const Layout<T>& map, int thread, int threads, const typename Of<T>::Number* pivots, double* sums,
                   Value value, Scalar scalar) {
    using N = typename Of<T>::Number;
    constexpr long w = kWidth<N>;
    const long row = map.row;  // in a register: a store through a pointer might change the field
    blocks(map, map.first(thread, threads), map.first(thread + 1, threads), false,
           [=](long column, long start, long stop) __attribute__((always_inline)) {
               Vec<N> pivot[kColumns], a[kColumns] = {}, b[kColumns] = {};
               for (int k = 0; k < kColumns; ++k) pivot[k] = load(pivots + column + k * w);
               for (long r = start; r < stop; ++r)
                   for (int k = 0; k < kColumns; ++k) {
                       Vec<N> v = value(r * row + column + k * w) - pivot[k];
                       a[k] += v;
                       b[k] += v * v;
                   }
               flush<N>(a, b, sums + column, row);
           });
    if (thread == 0)
        for (long p = map.tail(); p < map.positions; ++p)
            for (long c = 0; c < map.channels; ++c) {
                N v = scalar(p * map.channels + c) - pivots[c];
                sums[c] += v;
                sums[map.row + c] += (double)v * v;
            }
}

template <class T>
void moments(const Sums<T>& sums, const typename Of<T>::Number* pivots, long positions, long c, int threads,
             double* out) {
    double offset = sums.total(0, c, threads) / positions;
    double var = sums.total(1, c, threads) / positions - offset * offset;
    out[0] = pivots[c] + offset;
    out[1] = var < 0 ? 0 : var;
}

template <class T> struct Affine {
    using N = typename Of<T>::Number;
    std::vector<N> scale, shift;

    // BN as x * scale + shift, repeated along a row.
    Affine(const Layout<T>& map, const N* weight, const N* bias, const N* mean, const N* inv_std) {
        std::vector<N> one(map.channels), other(map.channels);
        for (long c = 0; c < map.channels; ++c) {
            one[c] = weight[c] * inv_std[c];
            other[c] = bias[c] - mean[c] * one[c];
        }
        scale = repeated(one, map.group);
        shift = repeated(other, map.group);
    }
};

template <class T, bool Relu>
void apply_share(const Layout<T>& map, int thread, int threads, const Affine<T>& affine, const T* x, T* y) {
    using N = typename Of<T>::Number;
    constexpr long w = kWidth<N>;
    const long row = map.row;
    const N *scales = affine.scale.data(), *shifts = affine.shift.data();
    blocks(map, map.first(thread, threads), map.first(thread + 1, threads), true,
           [=](long column, long start, long stop) __attribute__((always_inline)) {
               Vec<N> scale[kColumns], shift[kColumns];
               for (int k = 0; k < kColumns; ++k) {
                   scale[k] = load(scales + column + k * w);
                   shift[k] = load(shifts + column + k * w);
               }
               for (long r = start; r < stop; ++r)
                   for (int k = 0; k < kColumns; ++k) {
                       long at = r * row + column + k * w;
                       Vec<N> v = load(x + at) * scale[k] + shift[k];
                       store(y + at, Relu ? positive(v) : v);
                   }
           });
    if (thread == 0)
        for (long p = map.tail(); p < map.positions; ++p)
            for (long c = 0; c < map.channels; ++c) {
                long at = p * map.channels + c;
                N v = std::fma(get(x + at), affine.scale[c], affine.shift[c]);
                put(y + at, Relu ? (v < 0 ? N(0) : v) : v);
            }
}

template <class T, bool Relu>
void normalise(const T* x, T* y, long positions, long channels, const typename Of<T>::Number* weight,
               const typename Of<T>::Number* bias, const typename Of<T>::Number* given,
               typename Of<T>::Number* mean, typename Of<T>::Number* inv_std,
               typename Of<T>::Number* running_mean, typename Of<T>::Number* running_var, double momentum, double eps,
               int threads) {
    using N = typename Of<T>::Number;
    Layout<T> map(positions, channels);
    Sums<T> sums(map, threads);
    std::vector<N> first(channels);
    for (long c = 0; c < channels; ++c) first[c] = get(x + c);
    std::vector<N> pivots = given ? first : repeated(first, map.group);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        if (!given)
            reduce<T>(
                map, thread, team, pivots.data(), sums.of(thread), [x](long at) { return load(x + at); },
                [x](long at) { return get(x + at); });
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < channels; ++c) {
            double found[2];
            if (given) {
                found[0] = given[c];
                found[1] = given[channels + c];
            } else {
                moments(sums, pivots.data(), positions, c, team, found);
            }
            mean[c] = found[0];
            inv_std[c] = 1 / std::sqrt(found[1] + eps);
            double unbiased = found[1] * ((double)positions / (positions - 1));
            running_mean[c] += momentum * (found[0] - running_mean[c]);
            running_var[c] += momentum * (unbiased - running_var[c]);
        }
        Affine<T> affine(map, weight, bias, mean, inv_std);
        apply_share<T, Relu>(map, thread, team, affine, x, y);
    }
}

template <class T, bool Relu>
void apply(const T* x, T* y, long positions, long channels, const typename Of<T>::Number* weight,
           const typename Of<T>::Number* bias, const typename Of<T>::Number* mean,
           const typename Of<T>::Number* inv_std, int threads) {
    Layout<T> map(positions, channels);
    Affine<T> affine(map, weight, bias, mean, inv_std);
#pragma omp parallel num_threads(threads)
    apply_share<T, Relu>(map, omp_get_thread_num(), omp_get_num_threads(), affine, x, y);
}

// With g the gradient behind the ReLU, N values a channel and x^ = (x - mean) / std:
//     d bias = sum g,  d weight = sum g x^,  d x = scale (g - d bias / N - x^ d weight / N) + other
// which is g * scale + x * slope + level with two vectors.
template <class T, bool Relu, bool Other>
void differentiate(const T* x, const T* grad, const T* other, T* d_x, long positions, long channels,
                   const typename Of<T>::Number* weight, const typename Of<T>::Number* bias,
                   const typename Of<T>::Number* mean, const typename Of<T>::Number* inv_std,
                   typename Of<T>::Number* d_weight, typename Of<T>::Number* d_bias, int threads) {
    using N = typename Of<T>::Number;
    constexpr long w = kWidth<N>;
    Layout<T> map(positions, channels);
    Sums<T> sums(map, threads);
    const Affine<T> affine(map, weight, bias, mean, inv_std);
    std::vector<N> centre = repeated(std::vector<N>(mean, mean + channels), map.group);
    std::vector<N> slope(map.row), level(map.row);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        long begin = map.first(thread, team), end = map.first(thread + 1, team);
        double* own = sums.of(thread);
        const long row = map.row;
        const N *scales = affine.scale.data(), *shifts = affine.shift.data();
        const N *centres = centre.data(), *slopes = slope.data(), *levels = level.data();
        blocks(map, begin, end, false, [=](long column, long start, long stop) __attribute__((always_inline)) {
            Vec<N> scale[kColumns], shift[kColumns], middle[kColumns], a[kColumns] = {}, b[kColumns] = {};
            for (int k = 0; k < kColumns; ++k) {
                scale[k] = load(scales + column + k * w);
                shift[k] = load(shifts + column + k * w);
                middle[k] = load(centres + column + k * w);
            }
            for (long r = start; r < stop; ++r)
                for (int k = 0; k < kColumns; ++k) {
                    long at = r * row + column + k * w;
                    Vec<N> v = load(x + at), g = load(grad + at);
                    if (Relu) g = v * scale[k] + shift[k] > 0 ? g : Vec<N>{};
                    a[k] += g;
                    b[k] += g * (v - middle[k]);
                }
            flush<N>(a, b, own + column, row);
        });
        if (thread == 0)
            for (long p = map.tail(); p < positions; ++p)
                for (long c = 0; c < channels; ++c) {
                    N v = get(x + p * channels + c), g = get(grad + p * channels + c);
                    if (Relu && !(std::fma(v, affine.scale[c], affine.shift[c]) > 0)) g = 0;
                    own[c] += g;
                    own[map.row + c] += (double)g * (v - mean[c]);
                }
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < channels; ++c) {
            double of_bias = sums.total(0, c, team), of_weight = sums.total(1, c, team) * inv_std[c];
            d_bias[c] = of_bias;
            d_weight[c] = of_weight;
            double factor = (double)weight[c] * inv_std[c] / positions;
            double s = -factor * inv_std[c] * of_weight, l = -factor * of_bias - s * mean[c];
            for (long i = c; i < map.row; i += channels) {
                slope[i] = s;
                level[i] = l;
            }
        }
        blocks(map, begin, end, true, [=](long column, long start, long stop) __attribute__((always_inline)) {
            Vec<N> scale[kColumns], shift[kColumns], steep[kColumns], high[kColumns];
            for (int k = 0; k < kColumns; ++k) {
                scale[k] = load(scales + column + k * w);
                shift[k] = load(shifts + column + k * w);
                steep[k] = load(slopes + column + k * w);
                high[k] = load(levels + column + k * w);
            }
            for (long r = start; r < stop; ++r)
                for (int k = 0; k < kColumns; ++k) {
                    long at = r * row + column + k * w;
                    Vec<N> v = load(x + at), g = load(grad + at);
                    if (Relu) g = v * scale[k] + shift[k] > 0 ? g : Vec<N>{};
                    Vec<N> d = g * scale[k] + (v * steep[k] + high[k]);
                    store(d_x + at, Other ? d + load(other + at) : d);
                }
        });
        if (thread == 0)
            for (long p = map.tail(); p < positions; ++p)
                for (long c = 0; c < channels; ++c) {
                    long at = p * channels + c;
                    N v = get(x + at), g = get(grad + at);
                    if (Relu && !(std::fma(v, affine.scale[c], affine.shift[c]) > 0)) g = 0;
                    N d = std::fma(g, affine.scale[c], std::fma(v, slope[c], level[c]));
                    put(d_x + at, Other ? d + get(other + at) : d);
                }
    }
}

// y = a + b, and mean and variance of y as it is stored.
template <class T>
void add(const T* a, const T* b, T* y, long positions, long channels, typename Of<T>::Number* out, int threads) {
    using N = typename Of<T>::Number;
    Layout<T> map(positions, channels);
    Sums<T> sums(map, threads);
    std::vector<N> first(channels);
    for (long c = 0; c < channels; ++c) {
        T stored;
        put(&stored, get(a + c) + get(b + c));
        first[c] = get(&stored);
    }
    std::vector<N> pivots = repeated(first, map.group);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        reduce<T>(
            map, thread, team, pivots.data(), sums.of(thread),
            [=](long at) { return store(y + at, load(a + at) + load(b + at)); },
            [=](long at) {
                put(y + at, get(a + at) + get(b + at));
                return get(y + at);
            });
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < channels; ++c) {
            double found[2];
            moments(sums, pivots.data(), positions, c, team, found);
            out[c] = found[0];
            out[channels + c] = found[1];
        }
    }
}

// y = (1 - g) shortcut + g residual, or + residual where the gate is on the shortcut alone; g = sigmoid(logit + bias).
template <class T, bool Both>
void gate(const T* logit, const T* shortcut, const T* residual, T* y, long positions, long channels,
          const typename Of<T>::Number* bias, int threads) {
    using N = typename Of<T>::Number;
    constexpr long w = kWidth<N>;
    const Layout<T> map(positions, channels);
    const std::vector<N> biases = repeated(std::vector<N>(bias, bias + channels), map.group);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        const long row = map.row;
        const N* all = biases.data();
        blocks(map, map.first(thread, team), map.first(thread + 1, team), false,
               [=](long column, long start, long stop) __attribute__((always_inline)) {
                   Vec<N> b[kColumns];
                   for (int k = 0; k < kColumns; ++k) b[k] = load(all + column + k * w);
                   for (long r = start; r < stop; ++r)
                       for (int k = 0; k < kColumns; ++k) {
                           long at = r * row + column + k * w;
                           Vec<N> g = sigmoid<N>(load(logit + at) + b[k]), f = load(residual + at);
                           store(y + at, (N(1) - g) * load(shortcut + at) + (Both ? g * f : f));
                       }
               });
        if (thread == 0)
            for (long p = map.tail(); p < positions; ++p)
                for (long c = 0; c < channels; ++c) {
                    long at = p * channels + c;
                    N g = sigmoid_of(get(logit + at) + bias[c]), f = get(residual + at);
                    put(y + at, (1 - g) * get(shortcut + at) + (Both ? g * f : f));
                }
    }
}

// The gradients of `gate`; that of a residual without a gate is the gradient itself. With Both:
//     d logit = grad (residual - shortcut) g (1 - g),  d bias = its sum,  d shortcut = grad (1 - g),  d residual = grad g
template <class T, bool Both>
void differentiate_gate(const T* logit, const T* shortcut, const T* residual, const T* grad, T* d_logit, T* d_shortcut,
                        T* d_residual, long positions, long channels, const typename Of<T>::Number* bias,
                        typename Of<T>::Number* d_bias, int threads) {
    using N = typename Of<T>::Number;
    constexpr long w = kWidth<N>;
    const Layout<T> map(positions, channels);
    Sums<T> sums(map, threads);
    const std::vector<N> biases = repeated(std::vector<N>(bias, bias + channels), map.group);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        double* own = sums.of(thread);
        const long row = map.row;
        const N* all = biases.data();
        blocks(map, map.first(thread, team), map.first(thread + 1, team), false,
               [=](long column, long start, long stop) __attribute__((always_inline)) {
                   Vec<N> b[kColumns], sum[kColumns] = {}, none[kColumns] = {};
                   for (int k = 0; k < kColumns; ++k) b[k] = load(all + column + k * w);
                   for (long r = start; r < stop; ++r)
                       for (int k = 0; k < kColumns; ++k) {
                           long at = r * row + column + k * w;
                           Vec<N> g = sigmoid<N>(load(logit + at) + b[k]), d = load(grad + at), h = load(shortcut + at);
                           Vec<N> kept = d * (N(1) - g);
                           Vec<N> d_u = kept * g * (Both ? load(residual + at) - h : -h);
                           sum[k] += d_u;
                           store(d_logit + at, d_u);
                           store(d_shortcut + at, kept);
                           if (Both) store(d_residual + at, d * g);
                       }
                   flush<N>(sum, none, own + column, row);
               });
        if (thread == 0)
            for (long p = map.tail(); p < positions; ++p)
                for (long c = 0; c < channels; ++c) {
                    long at = p * channels + c;
                    N g = sigmoid_of(get(logit + at) + bias[c]), d = get(grad + at), h = get(shortcut + at);
                    N d_u = d * (1 - g) * g * (Both ? get(residual + at) - h : -h);
                    own[c] += d_u;
                    put(d_logit + at, d_u);
                    put(d_shortcut + at, d * (1 - g));
                    if (Both) put(d_residual + at, d * g);
                }
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < channels; ++c) d_bias[c] = sums.total(0, c, team);
    }
}

}  // namespace

#define FOR_TYPE(T, N, SUFFIX)                                                                                         \
    extern "C" void normalise_##SUFFIX(const T* x, T* y, long positions, long channels, const N* weight,               \
                                       const N* bias, const N* given, N* mean, N* inv_std, N* running_mean,            \
                                       N* running_var, double momentum, double eps, int relu, int threads) {           \
        (relu ? normalise<T, true> : normalise<T, false>)(x, y, positions, channels, weight, bias, given, mean,        \
                                                          inv_std, running_mean, running_var, momentum, eps, threads); \
    }                                                                                                                  \
    extern "C" void apply_##SUFFIX(const T* x, T* y, long positions, long channels, const N* weight, const N* bias,    \
                                   const N* mean, const N* inv_std, int relu, int threads) {                           \
        (relu ? apply<T, true> : apply<T, false>)(x, y, positions, channels, weight, bias, mean, inv_std, threads);    \
    }                                                                                                                  \
    extern "C" void differentiate_##SUFFIX(const T* x, const T* grad, const T* other, T* d_x, long positions,          \
                                           long channels, const N* weight, const N* bias, const N* mean,               \
                                           const N* inv_std, N* d_weight, N* d_bias, int relu, int threads) {          \
        auto* run = relu ? (other ? differentiate<T, true, true> : differentiate<T, true, false>)                      \
                         : (other ? differentiate<T, false, true> : differentiate<T, false, false>);                   \
        run(x, grad, other, d_x, positions, channels, weight, bias, mean, inv_std, d_weight, d_bias, threads);         \
    }                                                                                                                  \
    extern "C" void add_##SUFFIX(const T* a, const T* b, T* y, long positions, long channels, N* out, int threads) {   \
        add<T>(a, b, y, positions, channels, out, threads);                                                            \
    }                                                                                                                  \
    extern "C" void gate_##SUFFIX(const T* logit, const T* shortcut, const T* residual, T* y, long positions,          \
                                  long channels, const N* bias, int both, int threads) {                               \
        (both ? gate<T, true> : gate<T, false>)(logit, shortcut, residual, y, positions, channels, bias, threads);     \
    }                                                                                                                  \
    extern "C" void differentiate_gate_##SUFFIX(const T* logit, const T* shortcut, const T* residual, const T* grad,   \
                                                T* d_logit, T* d_shortcut, T* d_residual, long positions,              \
                                                long channels, const N* bias, N* d_bias, int both, int threads) {      \
        (both ? differentiate_gate<T, true> : differentiate_gate<T, false>)(logit, shortcut, residual, grad, d_logit,  \
                                                                            d_shortcut, d_residual, positions,         \
                                                                            channels, bias, d_bias, threads);          \
    }

FOR_TYPE(bf16, float, bfloat16)
FOR_TYPE(float, float, float32)
FOR_TYPE(double, double, float64)
