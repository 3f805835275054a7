// The largest logits of a sample and their classes, found in one pass, and the rows of a loss over logits: shared by
// the losses that rank, on CPU and CUDA. robustfast/reference/ranking.py is the definition.
#pragma once
#include <cstdint>
#include <optional>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/macros/Macros.h>

namespace robustfast {

// Whether v is the larger logit; NaN is larger than any number.
template <typename C>
C10_HOST_DEVICE inline bool above(C v, C w) {
  return v > w || (v != v && w == w);
}

// The kCount largest of what was inserted, largest first; of equals the one inserted first.
template <int kCount, typename C>
struct Ranking {
  C value[kCount];
  int64_t place[kCount];  // -1: nothing yet

  C10_HOST_DEVICE Ranking() {
    for (int r = 0; r < kCount; ++r) {
      value[r] = 0;
      place[r] = -1;
    }
  }

  C10_HOST_DEVICE bool enters(C v) const { return place[kCount - 1] < 0 || above(v, value[kCount - 1]); }

  C10_HOST_DEVICE void insert(C v, int64_t at) {
    if (!enters(v)) return;
    value[kCount - 1] = v;
    place[kCount - 1] = at;
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int r = kCount - 1; r > 0; --r) {
      if (place[r - 1] >= 0 && !above(value[r], value[r - 1])) return;
      const C w = value[r];
      const int64_t p = place[r];
      value[r] = value[r - 1];
      place[r] = place[r - 1];
      value[r - 1] = w;
      place[r - 1] = p;
    }
  }
};

// Labels, int64 [B], any stride; none where there is no tensor.
struct ClassLabels {
  const int64_t* data = nullptr;
  int64_t stride = 0;

  explicit ClassLabels(const std::optional<torch::stable::Tensor>& t) {
    if (!t) return;
    data = static_cast<const int64_t*>(t->const_data_ptr());
    stride = t->stride(0);
  }
  C10_HOST_DEVICE int64_t operator[](int64_t i) const { return data[i * stride]; }
};

// Logits [B, K] as they lie, with the label of each row and, where an attack wants one, the target.
struct LogitRows {
  const void* logits;
  int64_t row_stride, column_stride, B, K;
  ClassLabels y, target;

  LogitRows(const torch::stable::Tensor& logits, const torch::stable::Tensor& y,
            const std::optional<torch::stable::Tensor>& target)
      : logits(logits.const_data_ptr()),
        row_stride(logits.stride(0)),
        column_stride(logits.stride(1)),
        B(logits.size(0)),
        K(logits.size(1)),
        y(y),
        target(target) {}

  template <typename T>
  C10_HOST_DEVICE const T* row(int64_t i) const {
    return static_cast<const T*>(logits) + i * row_stride;
  }
  C10_HOST_DEVICE bool targeted() const { return target.data != nullptr; }
  C10_HOST_DEVICE bool inside(int64_t label) const { return label >= 0 && label < K; }
  // Whether the labels of row i are classes.
  C10_HOST_DEVICE bool known(int64_t i) const { return inside(y[i]) && (!targeted() || inside(target[i])); }
  // The class that row i's label is held against: the target, or the largest other one.
  template <int kCount, typename C>
  C10_HOST_DEVICE int64_t other(int64_t i, const Ranking<kCount, C>& top) const {
    return targeted() ? target[i] : top.place[0] == y[i] ? top.place[1] : top.place[0];
  }
};

}  // namespace robustfast
