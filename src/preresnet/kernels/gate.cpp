// A gate on the shortcut and, where it has one, on the residual branch, forward and backward, each in one pass.

#include "maps.h"

namespace {

// y = (1 - g) shortcut + g residual, or + residual where the gate is on the shortcut alone; g = sigmoid(logit + bias).
template <class T, bool Both>
void gate(const T* logit, const T* shortcut, const T* residual, T* y, long positions, long channels,
          const typename Of<T>::Number* bias, int threads) {
    using N = typename Of<T>::Number;
    constexpr int K = kHeavy;
    constexpr long w = kWidth<N>;
    const Layout<T, K> map(positions, channels);
    const std::vector<N> biases = repeated(std::vector<N>(bias, bias + channels), map.group);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        const long row = map.row;
        const N* all = biases.data();
        blocks(map, thread, team, false,
               [=](long column, long start, long stop) __attribute__((always_inline)) {
                   Vec<N> b[K];
                   for (int k = 0; k < K; ++k) b[k] = load(all + column + k * w);
                   for (long r = start; r < stop; ++r)
                       for (int k = 0; k < K; ++k) {
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
    constexpr int K = kHeavy;
    constexpr long w = kWidth<N>;
    const Layout<T, K> map(positions, channels);
    Sums sums(map, threads);
    const std::vector<N> biases = repeated(std::vector<N>(bias, bias + channels), map.group);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        double* own = sums.of(thread);
        const long row = map.row;
        const N* all = biases.data();
        blocks(map, thread, team, false,
               [=](long column, long start, long stop) __attribute__((always_inline)) {
                   Vec<N> b[K], sum[K] = {}, none[K] = {};
                   for (int k = 0; k < K; ++k) b[k] = load(all + column + k * w);
                   for (long r = start; r < stop; ++r)
                       for (int k = 0; k < K; ++k) {
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
