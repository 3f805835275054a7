// How the lanes of a warp rank a row of logits together.
#pragma once
#include <cstdint>

#include "cuda.h"
#include "precision.h"
#include "ranking.h"

namespace robustfast {

// Lanes that share one row: 8 for up to 16 classes, so that CIFAR-10 does not idle two thirds of a warp.
constexpr int kFewClasses = 16;
constexpr int kRowThreads = 256;

// The ranking of the row at `x`, in every lane of its kWidth; all lanes of a warp must come here. `x` is null for a row
// that none looks at.
template <int kCount, int kWidth, typename T>
__device__ Ranking<kCount, Compute<T>> rank_together(const T* x, int64_t stride, int64_t K, int lane) {
  using C = Compute<T>;
  Ranking<kCount, C> own, top;
  if (x)
    for (int64_t c = lane; c < K; c += kWidth) own.insert(static_cast<C>(x[c * stride]), c);
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    // The largest head of all lanes: of equals that of the lower class, which no two lanes share.
    C value = own.value[0];
    int64_t place = own.place[0];
#pragma unroll
    for (int offset = kWidth / 2; offset > 0; offset /= 2) {
      const C v = __shfl_xor_sync(~0u, value, offset, kWidth);
      const int64_t p = __shfl_xor_sync(~0u, place, offset, kWidth);
      if (p >= 0 && (place < 0 || above(v, value) || (!above(value, v) && p < place))) {
        value = v;
        place = p;
      }
    }
    top.value[r] = value;
    top.place[r] = place;
    if (place >= 0 && place == own.place[0]) {
#pragma unroll
      for (int s = 0; s + 1 < kCount; ++s) {
        own.value[s] = own.value[s + 1];
        own.place[s] = own.place[s + 1];
      }
      own.place[kCount - 1] = -1;
    }
  }
  return top;
}

// Blocks for B rows of kWidth lanes each.
template <int kWidth>
inline unsigned row_blocks(int64_t B) {
  constexpr int64_t rows = kRowThreads / kWidth;
  return unsigned((B + rows - 1) / rows);
}

}  // namespace robustfast
