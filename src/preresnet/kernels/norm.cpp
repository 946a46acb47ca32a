// Batch norm with its ReLU, forward and backward, and the addition that forms the statistics of the norm behind it.
//
// Each pass reads and writes every map once, at the speed of memory.

#include "maps.h"

namespace {

// Sums of v - pivot and of its square, v = value(index) as a vector or scalar(index) alone.
template <class Map, class Value, class Scalar>
INLINE void reduce(const Map& map, int thread, int threads, const typename Map::N* pivots, double* sums, Value value,
                   Scalar scalar) {
    using N = typename Map::N;
    constexpr int K = Map::kColumns;
    constexpr long w = kWidth<N>;
    const long row = map.row;  // in a register: a store through a pointer might change the field
    blocks(map, thread, threads, false, [=](long column, long start, long stop) __attribute__((always_inline)) {
        Vec<N> pivot[K], a[K] = {}, b[K] = {};
        for (int k = 0; k < K; ++k) pivot[k] = load(pivots + column + k * w);
        for (long r = start; r < stop; ++r)
            for (int k = 0; k < K; ++k) {
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

template <class Map>
void moments(const Sums<Map>& sums, const typename Map::N* pivots, long positions, long c, int threads, double* out) {
    double offset = sums.total(0, c, threads) / positions;
    double var = sums.total(1, c, threads) / positions - offset * offset;
    out[0] = pivots[c] + offset;
    out[1] = var < 0 ? 0 : var;
}

// BN as x * scale + shift, repeated along a row.
template <class N> struct Affine {
    std::vector<N> scale, shift;

    template <class Map>
    Affine(const Map& map, const N* weight, const N* bias, const N* mean, const N* inv_std) {
        std::vector<N> one(map.channels), other(map.channels);
        for (long c = 0; c < map.channels; ++c) {
            one[c] = weight[c] * inv_std[c];
            other[c] = bias[c] - mean[c] * one[c];
        }
        scale = repeated(one, map.group);
        shift = repeated(other, map.group);
    }
};

template <class T, bool Relu, class Map>
void apply_share(const Map& map, int thread, int threads, const Affine<typename Map::N>& affine, const T* x, T* y) {
    using N = typename Map::N;
    constexpr int K = Map::kColumns;
    constexpr long w = kWidth<N>;
    const long row = map.row;
    const N *scales = affine.scale.data(), *shifts = affine.shift.data();
    blocks(map, thread, threads, true, [=](long column, long start, long stop) __attribute__((always_inline)) {
        Vec<N> scale[K], shift[K];
        for (int k = 0; k < K; ++k) {
            scale[k] = load(scales + column + k * w);
            shift[k] = load(shifts + column + k * w);
        }
        for (long r = start; r < stop; ++r)
            for (int k = 0; k < K; ++k) {
                long at = r * row + column + k * w;
                Vec<N> v = load(x + at) * scale[k] + shift[k];
                store(y + at, Relu ? positive(v) : v);
            }
    });
    if (thread == 0)
        for (long p = map.tail(); p < map.positions; ++p)
            for (long c = 0; c < map.channels; ++c) {
                long at = p * map.channels + c;
                N v = get(x + at) * affine.scale[c] + affine.shift[c];
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
    Layout<T, kLight> map(positions, channels);
    Sums sums(map, threads);
    std::vector<N> first(channels);
    for (long c = 0; c < channels; ++c) first[c] = get(x + c);
    std::vector<N> pivots = given ? first : repeated(first, map.group);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        if (!given)
            reduce(
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
        Affine<N> affine(map, weight, bias, mean, inv_std);
        apply_share<T, Relu>(map, thread, team, affine, x, y);
    }
}

template <class T, bool Relu>
void apply(const T* x, T* y, long positions, long channels, const typename Of<T>::Number* weight,
           const typename Of<T>::Number* bias, const typename Of<T>::Number* mean,
           const typename Of<T>::Number* inv_std, int threads) {
    using N = typename Of<T>::Number;
    Layout<T, kLight> map(positions, channels);
    Affine<N> affine(map, weight, bias, mean, inv_std);
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
    constexpr int K = kHeavy;
    constexpr long w = kWidth<N>;
    Layout<T, K> map(positions, channels);
    Sums sums(map, threads);
    const Affine<N> affine(map, weight, bias, mean, inv_std);
    std::vector<N> centre = repeated(std::vector<N>(mean, mean + channels), map.group);
    std::vector<N> slope(map.row), level(map.row);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        double* own = sums.of(thread);
        const long row = map.row;
        const N *scales = affine.scale.data(), *shifts = affine.shift.data();
        const N *centres = centre.data(), *slopes = slope.data(), *levels = level.data();
        blocks(map, thread, team, false, [=](long column, long start, long stop) __attribute__((always_inline)) {
            Vec<N> scale[K], shift[K], middle[K], a[K] = {}, b[K] = {};
            for (int k = 0; k < K; ++k) {
                scale[k] = load(scales + column + k * w);
                shift[k] = load(shifts + column + k * w);
                middle[k] = load(centres + column + k * w);
            }
            for (long r = start; r < stop; ++r)
                for (int k = 0; k < K; ++k) {
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
                    if (Relu && !(v * affine.scale[c] + affine.shift[c] > 0)) g = 0;
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
        blocks(map, thread, team, true, [=](long column, long start, long stop) __attribute__((always_inline)) {
            Vec<N> scale[K], shift[K], steep[K], high[K];
            for (int k = 0; k < K; ++k) {
                scale[k] = load(scales + column + k * w);
                shift[k] = load(shifts + column + k * w);
                steep[k] = load(slopes + column + k * w);
                high[k] = load(levels + column + k * w);
            }
            for (long r = start; r < stop; ++r)
                for (int k = 0; k < K; ++k) {
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
                    if (Relu && !(v * affine.scale[c] + affine.shift[c] > 0)) g = 0;
                    N d = g * affine.scale[c] + (v * slope[c] + level[c]);
                    put(d_x + at, Other ? d + get(other + at) : d);
                }
    }
}

// y = a + b, and mean and variance of y as it is stored.
template <class T>
void add(const T* a, const T* b, T* y, long positions, long channels, typename Of<T>::Number* out, int threads) {
    using N = typename Of<T>::Number;
    Layout<T, kLight> map(positions, channels);
    Sums sums(map, threads);
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
        reduce(
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
    }

FOR_TYPE(bf16, float, bfloat16)
FOR_TYPE(float, float, float32)
FOR_TYPE(double, double, float64)
