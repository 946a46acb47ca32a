// Feature maps in channels_last memory: how they are cut into rows, blocks and one thread's share, and summed.
//
// A map is `positions` times `channels` values. It is read as rows of L values, L a multiple of `channels` and of K
// vectors, so that inner loops are long however few the channels are. Rows go in blocks that fit the first-level cache;
// inside a block, K vectors of columns stay in registers. Sums are formed of x - pivot, the pivot being the channel's
// first value, so that a mean far above the deviation does not cancel; in float32 within a block and in float64 beyond.

#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include <omp.h>

#include "vectors.h"

namespace {

constexpr long kBlockBytes = kManyRegisters ? 32 * 1024 : 16 * 1024;  // of one map; two share a first-level cache
constexpr int kLight = 4;                       // vectors side by side where each needs few registers
constexpr int kHeavy = kManyRegisters ? 4 : 2;  // where each needs four or more

template <class T, int K> struct Layout {
    using N = typename Of<T>::Number;
    static constexpr int kColumns = K;
    long channels, positions, row, group, rows, block;

    Layout(long positions_, long channels_) : channels(channels_), positions(positions_) {
        row = std::lcm(channels, K * kWidth<N>);
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
template <class Map> class Sums {
  public:
    Sums(const Map& map, int threads) : map_(map), of_(2 * map.row * threads, 0.0) {}
    double* of(int thread) { return of_.data() + 2 * map_.row * thread; }
    double total(int which, long channel, int threads) const {
        double sum = 0;
        for (long i = which * map_.row; i < 2 * map_.row * threads; i += 2 * map_.row)
            for (long j = channel; j < map_.row; j += map_.channels) sum += of_[i + j];
        return sum;
    }

  private:
    const Map& map_;
    std::vector<double> of_;
};

// Runs `body(column, first row, last row)` over a thread's rows, block by block; backwards where the last rows of a
// pass before are those still in the cache.
template <class Map, class F> INLINE void blocks(const Map& map, int thread, int threads, bool backwards, F body) {
    constexpr long step = Map::kColumns * kWidth<typename Map::N>;
    const long begin = map.first(thread, threads), end = map.first(thread + 1, threads);
    const long count = (end - begin + map.block - 1) / map.block;
    for (long i = 0; i < count; ++i) {
        long start = begin + (backwards ? count - 1 - i : i) * map.block;
        long stop = std::min(end, start + map.block);
        for (long column = 0; column < map.row; column += step) body(column, start, stop);
    }
}

// Adds sums of a block, K vectors of each kind, to those of a thread.
template <class N, int K> INLINE void flush(const Vec<N> (&a)[K], const Vec<N> (&b)[K], double* into, long row) {
    N of_a[K * kWidth<N>], of_b[K * kWidth<N>];
    std::memcpy(of_a, a, sizeof a);
    std::memcpy(of_b, b, sizeof b);
    for (int i = 0; i < K * kWidth<N>; ++i) into[i] += of_a[i];
    for (int i = 0; i < K * kWidth<N>; ++i) into[row + i] += of_b[i];
}

}  // namespace
