// How CPU kernels rank a row of logits, and walk rows in parallel.
#pragma once
#include <algorithm>
#include <cstdint>

#include <torch/csrc/stable/ops.h>

#include "cpu.h"
#include "precision.h"
#include "ranking.h"

namespace robustfast {

// Whether any of kLanes values enters below `least`, the last of a full ranking. Written so that NaN enters.
template <typename C>
__attribute__((always_inline)) inline bool any_enters(const C* v, C least) {
  int count = 0;
  for (int j = 0; j < kLanes; ++j) count += !(v[j] <= least);
  return count > 0;
}

template <int kCount, typename T>
ROBUSTFAST_CLONES Ranking<kCount, Compute<T>> rank(const T* x, int64_t stride, int64_t K) {
  using C = Compute<T>;
  Ranking<kCount, C> top;
  int64_t c = 0;
  // Blocks without a candidate, which most are past the first, cost one comparison of vectors.
  for (C block[kLanes]; c + kLanes <= K; c += kLanes) {
    for (int j = 0; j < kLanes; ++j) block[j] = static_cast<C>(x[(c + j) * stride]);
    if (c && !any_enters(block, top.value[kCount - 1])) continue;
    for (int j = 0; j < kLanes; ++j) top.insert(block[j], c + j);
  }
  for (; c < K; ++c) top.insert(static_cast<C>(x[c * stride]), c);
  return top;
}

// Calls row(i) for each of B rows of K logits.
template <typename Row>
void for_rows(int64_t B, int64_t K, const Row& row) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(K, 8));
  torch::stable::parallel_for(0, B, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row(i);
  });
}

}  // namespace robustfast
