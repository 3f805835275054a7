// What APGD decides for one sample between two steps, shared by CPU and CUDA. robustfast/reference/apgd_track.py is the
// definition.
#pragma once
#include <cstdint>
#include <optional>
#include <type_traits>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "layout.h"

namespace robustfast {

// Numbers of any floating type, read as double: every one of them is one, and comparisons stay what they are. The type
// is looked up with each read, which is one for each sample or logit, and not for each pixel.
struct Floats {
  void* data;
  torch::headeronly::ScalarType type;
  int64_t stride;

  C10_HOST_DEVICE double get(int64_t i) const {
    using torch::headeronly::ScalarType;
    if (type == ScalarType::Float) return static_cast<const float*>(data)[i * stride];
    if (type == ScalarType::Double) return static_cast<const double*>(data)[i * stride];
    if (type == ScalarType::Half)
      return static_cast<float>(static_cast<const torch::headeronly::Half*>(data)[i * stride]);
    return static_cast<float>(static_cast<const torch::headeronly::BFloat16*>(data)[i * stride]);
  }
  // Only float32 and float64 are written.
  C10_HOST_DEVICE void set(int64_t i, double value) const {
    if (type == torch::headeronly::ScalarType::Float)
      static_cast<float*>(data)[i * stride] = static_cast<float>(value);
    else
      static_cast<double*>(data)[i * stride] = value;
  }
};

template <typename V>
struct Values {
  V* data;
  int64_t stride;
  C10_HOST_DEVICE V& operator[](int64_t i) const { return data[i * stride]; }
};

// The rules of one call.
struct ApgdRules {
  double rho;
  bool descend, targeted, l1;

  C10_HOST_DEVICE bool above(double a, double b) const { return descend ? a < b : a > b; }
  // Any number is better than a nan, and a nan is never better.
  C10_HOST_DEVICE bool better(double loss, double best) const {
    return loss == loss && !(descend ? loss >= best : loss <= best);
  }
  // In float32, as the authors' code compares.
  C10_HOST_DEVICE bool too_long(int64_t increases, int64_t window, bool reduced, double checked, double best) const {
    const bool few = static_cast<float>(increases) <= static_cast<float>(static_cast<double>(window) * rho);
    return few || (!reduced && (descend ? checked <= best : checked >= best));
  }
};

// The numbers of all samples, those of the l1 check only where there is one.
template <typename T>
struct ApgdState {
  Floats loss, loss_best, loss_last, loss_checked;
  Values<const int64_t> y;
  Values<bool> fooled, reduced;
  Values<int64_t> increases, moved;
  Values<T> step_size, sparsity;
};

// Which rows of images are copied for one sample before any check.
struct ApgdCopies {
  bool to_fooled, to_best;
};

// m < 0.95 of before, exactly.
C10_HOST_DEVICE inline bool apgd_fewer(int64_t m, int64_t before) { return 20 * m < 19 * before; }

// The share of n entries that an l1 step moves next. In float32 whatever the images are; the quotients of floats are
// rounded from double, to the same results.
C10_HOST_DEVICE inline float apgd_share(int64_t m, int64_t n) {
  const float part = static_cast<float>(static_cast<double>(static_cast<float>(m)) / static_cast<float>(n));
  return static_cast<float>(static_cast<double>(part) / 1.5);
}

// The l1 check: step size after it, in the direction of ascent.
template <typename T>
C10_HOST_DEVICE inline T apgd_l1_step(T step_size, T eps, bool fewer) {
  const T shrunk = step_size / T(1.5), least = eps / T(10);
  const T raised = shrunk < least ? least : shrunk;
  return fewer ? eps : raised > eps ? eps : raised;
}

// Losses and flags of sample i, of which `now` tells whether it is fooled; the rows to copy before any check.
template <typename T>
C10_HOST_DEVICE inline ApgdCopies apgd_take_in(const ApgdState<T>& s, const ApgdRules& rules, int64_t i, bool now) {
  const double loss = s.loss.get(i), best = s.loss_best.get(i);
  const bool better = rules.better(loss, best);
  if (now) s.fooled[i] = true;
  if (better) s.loss_best.set(i, loss);
  s.increases[i] += rules.above(loss, s.loss_last.get(i));
  s.loss_last.set(i, loss);
  return {now, better};
}

// The check of sample i: step size, share and counts; returns whether it starts anew from its best image. `m` counts
// the entries in which that differs from x, under l1.
template <typename T>
C10_HOST_DEVICE inline bool apgd_check(const ApgdState<T>& s, const ApgdRules& rules, int64_t i, int64_t window, T eps,
                                       int64_t m, int64_t n) {
  bool restart;
  if (rules.l1) {
    restart = apgd_fewer(m, s.moved[i]);
    const T sign = rules.descend ? T(-1) : T(1);
    s.step_size[i] = sign * apgd_l1_step(sign * s.step_size[i], eps, restart);
    s.sparsity[i] = static_cast<T>(apgd_share(m, n));
    s.moved[i] = m;
  } else {
    const double best = s.loss_best.get(i);
    restart = rules.too_long(s.increases[i], window, s.reduced[i], s.loss_checked.get(i), best);
    if (restart) s.step_size[i] = s.step_size[i] / T(2);
    s.reduced[i] = restart;
    s.loss_checked.set(i, best);
  }
  s.increases[i] = 0;
  return restart;
}

// Each source has its own: torch's tensors are hidden from other libraries, and what holds one must be too.
namespace {

// An image tensor as a kernel works on it: itself, or a copy in another layout that goes back into it at the end.
class Laid {
 public:
  Laid(const Tensor& t, const Tensor& like) : original_(t), dense_(in_layout_of(t, like)) {}
  explicit Laid(const Tensor& t) : original_(t), dense_(is_dense_batch(t) ? t : torch::stable::contiguous(t)) {}
  const Tensor& tensor() const { return dense_; }
  template <typename T>
  T* data() const {
    return static_cast<T*>(dense_.mutable_data_ptr());
  }
  void give_back() {
    if (dense_.const_data_ptr() != original_.const_data_ptr()) torch::stable::copy_(original_, dense_);
  }

 private:
  Tensor original_, dense_;
};

}  // namespace

// Only to be read.
inline Floats floats(const Tensor& t) { return {const_cast<void*>(t.const_data_ptr()), t.scalar_type(), t.stride(0)}; }

inline Floats floats_to_write(const Tensor& t) { return {t.mutable_data_ptr(), t.scalar_type(), t.stride(0)}; }

template <typename V>
Values<V> values(const Tensor& t) {
  if constexpr (std::is_const_v<V>)
    return {static_cast<V*>(t.const_data_ptr()), t.stride(0)};
  else
    return {static_cast<V*>(t.mutable_data_ptr()), t.stride(0)};
}

}  // namespace robustfast
