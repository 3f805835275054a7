#include "asymmetric_cross_entropy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cpu.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Logits whose exponentials are taken together: they stay in the L1 cache.
constexpr int64_t kBlock = 2048;

void check_labels(const Terms& terms) {
  for (int t = 0; t < terms.count; ++t) {
    for (int64_t i = 0; i < terms.B; ++i) {
      const Target target = terms.target(terms.term[t].rule, i);
      if (!target.keep || terms.inside(target.label)) continue;
      // STD_TORCH_CHECK would put this file's path before a message that a user reads.
      const auto number = [](int64_t n) { return std::to_string(n); };
      throw std::runtime_error("asymmetric_cross_entropy: label " + number(target.label) + ", expected 0 to " +
                               number(terms.C - 1) + " for " + number(terms.C) + " classes");
    }
  }
}

// exp(x) for x <= 0, NaN for NaN, 0 below the smallest normal number: Cephes' expf, within 0.99 ulp of all of them. The
// compiler makes vectors of it, of libm's none: 0.3 ns each instead of 3 ns with AVX-512.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const float shifted = x * 1.44269504088896341f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  const float scale =
      std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127) << 23);
  return x < -87.33654f ? 0.0f : p * scale;
}

inline double exp_nonpositive(double x) { return std::exp(x); }

template <typename C>
ROBUSTFAST_CLONES void exp_nonpositive(C* v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = exp_nonpositive(v[i]);
}

// Combines partial results pairwise: 4 dependent steps instead of 16.
template <typename C, typename Combine>
inline C fold(C (&lanes)[kLanes], const Combine& combine) {
  for (int width = kLanes / 2; width; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] = combine(lanes[j], lanes[j + width]);
  return lanes[0];
}

template <typename C>
ROBUSTFAST_CLONES double sum(const C* v, int64_t n) {
  double total = 0;
  int64_t i = 0;
  if (n >= kLanes) {
    double lanes[kLanes] = {};
    for (; i + kLanes <= n; i += kLanes)
      for (int j = 0; j < kLanes; ++j) lanes[j] += v[i + j];
    total = fold(lanes, [](double a, double b) { return a + b; });
  }
  for (; i < n; ++i) total += v[i];
  return total;
}

// A float's bits such that they order as the floats do; twice gives the bits again. The compiler makes vectors of a
// maximum of integers, of floats not, for the sake of NaN: which may get lost here, but not in the sum of exponentials.
inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max()); }
inline int64_t ordered(int64_t bits) { return bits ^ ((bits >> 63) & std::numeric_limits<int64_t>::max()); }

// One sample's logits, less their maximum, into `row`.
template <typename T>
ROBUSTFAST_CLONES void shifted_logits(const T* x, int64_t stride, int64_t n, Compute<T>* row) {
  using C = Compute<T>;
  using Bits = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  if (stride == 1) {  // a loop of its own: the compiler makes vectors of it
    for (int64_t c = 0; c < n; ++c) row[c] = static_cast<C>(x[c]);
  } else {
    for (int64_t c = 0; c < n; ++c) row[c] = static_cast<C>(x[c * stride]);
  }
  Bits max = std::numeric_limits<Bits>::min();
  for (int64_t c = 0; c < n; ++c) max = std::max(max, ordered(std::bit_cast<Bits>(row[c])));
  const C peak = std::bit_cast<C>(ordered(max));
  for (int64_t c = 0; c < n; ++c) row[c] -= peak;
}

// A sample that a term keeps: its place term * B + i, its label, and that label's logit less the maximum.
template <typename C>
struct Kept {
  int64_t place, label;
  C own;
};

// Calls kept(sample, exponentials of its logits, their sum) for the samples in places [begin, end) that a term keeps,
// left(place) for the others. Exponentials are taken of many samples at once, so that few classes still fill a vector.
template <typename T, typename OnKept, typename OnLeft>
void for_samples(const Terms& terms, int64_t begin, int64_t end, const OnKept& kept, const OnLeft& left) {
  using C = Compute<T>;
  const int64_t block = std::max<int64_t>(1, kBlock / terms.C);
  std::vector<C> rows(block * terms.C);
  std::vector<Kept<C>> samples(block);
  for (int64_t start = begin; start < end; start += block) {
    int64_t count = 0;
    for (int64_t place = start; place < std::min(end, start + block); ++place) {
      const Term& term = terms.term[place / terms.B];
      const int64_t i = place % terms.B;
      const Target target = terms.target(term.rule, i);
      if (!target.keep) {
        left(place);
        continue;
      }
      C* row = rows.data() + count * terms.C;
      shifted_logits(static_cast<const T*>(term.logits) + i * term.stride[0], term.stride[1], terms.C, row);
      samples[count++] = {place, target.label, row[target.label]};
    }
    exp_nonpositive(rows.data(), count * terms.C);
    for (int64_t k = 0; k < count; ++k) {
      C* row = rows.data() + k * terms.C;
      kept(samples[k], row, static_cast<C>(sum(row, terms.C)));
    }
  }
}

// Over all samples of all terms; a thread takes no fewer than keep it busy for longer than starting it takes.
template <typename T, typename OnKept, typename OnLeft>
void for_all_samples(const Terms& terms, const OnKept& kept, const OnLeft& left) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (8 * terms.C));
  torch::stable::parallel_for(0, terms.count * terms.B, grain,
                              [&](int64_t begin, int64_t end) { for_samples<T>(terms, begin, end, kept, left); });
}

template <typename T>
void run(const Terms& terms, Tensor& values) {
  using C = Compute<T>;
  std::vector<double> losses(terms.count * terms.B);
  const auto kept = [&](const Kept<C>& sample, const C*, C sum) { losses[sample.place] = std::log(sum) - sample.own; };
  for_all_samples<T>(terms, kept, [](int64_t) {});
  auto* v = static_cast<C*>(values.mutable_data_ptr());
  for (int t = 0; t < terms.count; ++t) {
    double total = 0;
    for (int64_t i = 0; i < terms.B; ++i) total += losses[t * terms.B + i];
    v[t] = static_cast<C>(total / terms.B);
  }
}

template <typename T>
ROBUSTFAST_CLONES void write_gradient(Compute<T>* row, Compute<T> sum, int64_t label, Compute<T> scale, T* out,
                                      int64_t n) {
  for (int64_t c = 0; c < n; ++c) row[c] /= sum;
  row[label] -= 1;
  for (int64_t c = 0; c < n; ++c) out[c] = static_cast<T>(row[c] * scale);
}

template <typename T>
void run_backward(const Terms& terms, const Tensor& grad, Tensor& d_logits) {
  using C = Compute<T>;
  const auto* g = static_cast<const C*>(grad.const_data_ptr());
  const int64_t stride = grad.stride(0);
  auto* d = static_cast<T*>(d_logits.mutable_data_ptr());
  const auto kept = [&](const Kept<C>& sample, C* row, C sum) {
    const C scale = g[sample.place / terms.B * stride] / static_cast<C>(terms.B);
    write_gradient(row, sum, sample.label, scale, d + sample.place * terms.C, terms.C);
  };
  for_all_samples<T>(terms, kept, [&](int64_t place) { std::fill_n(d + place * terms.C, terms.C, T(0)); });
}

Tensor asymmetric_cross_entropy_cpu(std::vector<Tensor> logits, const Tensor& y, std::optional<Tensor> yhat_s,
                                    std::optional<Tensor> yhat_n, std::vector<int64_t> rules) {
  const Terms terms(logits, y, yhat_s, yhat_n, rules);
  check_labels(terms);
  const Tensor& first = logits[0];
  Tensor values = torch::stable::new_empty(first, {terms.count}, compute_type(first.scalar_type()));
  THO_DISPATCH_V2(first.scalar_type(), "asymmetric_cross_entropy", AT_WRAP([&] { run<scalar_t>(terms, values); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return values;
}

Tensor asymmetric_cross_entropy_backward_cpu(const Tensor& grad, std::vector<Tensor> logits, const Tensor& y,
                                             std::optional<Tensor> yhat_s, std::optional<Tensor> yhat_n,
                                             std::vector<int64_t> rules) {
  const Terms terms(logits, y, yhat_s, yhat_n, rules);
  check_labels(terms);
  const Tensor& first = logits[0];
  Tensor d_logits = torch::stable::new_empty(first, {terms.count, terms.B, terms.C});
  THO_DISPATCH_V2(first.scalar_type(), "asymmetric_cross_entropy_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(terms, grad, d_logits); }), AT_EXPAND(AT_FLOATING_TYPES),
                  ScalarType::Half, ScalarType::BFloat16);
  return d_logits;
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) {
  m.impl("asymmetric_cross_entropy", TORCH_BOX(&robustfast::asymmetric_cross_entropy_cpu));
  m.impl("asymmetric_cross_entropy_backward", TORCH_BOX(&robustfast::asymmetric_cross_entropy_backward_cpu));
}
