#include "pgd_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu.h"
#include "layout.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;

template <typename T, typename G>
ROBUSTFAST_CLONES void step_linf(const T* x_adv, const G* g, const T* x, T* out, int64_t n, T step_size, T eps,
                                 Bounds<T> bounds) {
  for (int64_t i = 0; i < n; ++i) out[i] = pgd_step_linf(x_adv[i], static_cast<T>(g[i]), x[i], step_size, eps, bounds);
}

// Sum over i of term(i), in float64, in kLanes interleaved partial sums.
template <typename Term>
inline double sum(int64_t n, const Term& term) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
  for (; i < n; ++i) lanes[i % kLanes] += term(i);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

template <typename T>
ROBUSTFAST_CLONES double length(const T* v, int64_t n, Norm norm) {
  if (norm == Norm::l2) return std::sqrt(sum(n, [v](int64_t i) { return double(v[i]) * double(v[i]); }));
  if (norm == Norm::l1) return sum(n, [v](int64_t i) { return std::fabs(double(v[i])); });
  T peak = 0;
  for (int64_t i = 0; i < n; ++i) peak = std::max(peak, absolute(v[i]));
  return peak;
}

// tau with sum(max(|delta| - tau, 0)) = eps, by Michelot's fixed point: the support only shrinks, so it ends exactly.
template <typename T>
ROBUSTFAST_CLONES double l1_threshold(const T* delta, int64_t n, double length, double eps) {
  double tau = (length - eps) / n;
  for (double count = n, last = n + 1; count < last;) {
    last = count;
    const double inside =
        sum(n, [=](int64_t i) { return std::fabs(double(delta[i])) > tau ? std::fabs(double(delta[i])) : 0; });
    count = sum(n, [=](int64_t i) { return std::fabs(double(delta[i])) > tau ? 1.0 : 0.0; });
    if (count == 0) break;
    tau = (inside - eps) / count;
  }
  return tau;
}

// One sample; `grad` and `delta` are scratch of n values.
template <typename T, typename G>
ROBUSTFAST_CLONES void step_sample(const T* x_adv, const G* g, const T* x, T* out, int64_t n, T step_size, T eps,
                                   Norm norm, Step step, int64_t k, Bounds<T> bounds, T* grad, T* delta) {
  for (int64_t i = 0; i < n; ++i) grad[i] = zero_nan(static_cast<T>(g[i]));
  Move<T> move{step, step_size, 0, 0};
  if (step != Step::sign) {
    const double peak = length(grad, n, Norm::linf);
    const bool usable = peak > 0 && peak < std::numeric_limits<double>::infinity();
    if (usable && step == Step::topq) {
      for (int64_t i = 0; i < n; ++i) delta[i] = absolute(grad[i]);
      std::nth_element(delta, delta + (k - 1), delta + n, std::greater<T>());
      move.threshold = delta[k - 1];
      move.scale = step_size / sum(n, [&](int64_t i) { return absolute(grad[i]) >= move.threshold && grad[i] != 0; });
    } else if (usable) {
      move.scale = step_size / length(grad, n, norm);
    }
  }
  for (int64_t i = 0; i < n; ++i) delta[i] = move.delta(x_adv[i], grad[i], x[i]);
  if (norm == Norm::linf) {
    for (int64_t i = 0; i < n; ++i) out[i] = clamp(x[i] + clamp(delta[i], -eps, eps), bounds.lo, bounds.hi);
    return;
  }
  const double size = length(delta, n, norm);
  Projection project{norm, !(size > eps), 0};
  if (!project.inside) project.shrink = norm == Norm::l2 ? eps / size : l1_threshold(delta, n, size, eps);
  for (int64_t i = 0; i < n; ++i) out[i] = clamp(x[i] + project(delta[i]), bounds.lo, bounds.hi);
}

// A step size or radius: one for all samples or one each.
template <typename T>
struct PerSample {
  const T* data;
  bool single;
  explicit PerSample(const Tensor& t) : data(static_cast<const T*>(t.const_data_ptr())), single(t.dim() == 0) {}
  T operator[](int64_t i) const { return data[single ? 0 : i]; }
};

template <typename T, typename G>
void run(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const Tensor& step_size, const Tensor& eps,
         Norm norm, Step step, int64_t k, Bounds<T> bounds, Tensor& out) {
  const auto* a = static_cast<const T*>(x_adv.const_data_ptr());
  const auto* g = static_cast<const G*>(grad.const_data_ptr());
  const auto* c = static_cast<const T*>(x.const_data_ptr());
  auto* o = static_cast<T*>(out.mutable_data_ptr());
  const PerSample<T> steps(step_size), radii(eps);
  if (norm == Norm::linf && step == Step::sign && steps.single && radii.single) {
    torch::stable::parallel_for(0, out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      step_linf(a + begin, g + begin, c + begin, o + begin, end - begin, steps[0], radii[0], bounds);
    });
    return;
  }
  const int64_t n = out.numel() / out.size(0);
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(2 * n);
    for (int64_t i = begin; i < end; ++i)
      step_sample(a + i * n, g + i * n, c + i * n, o + i * n, n, steps[i], radii[i], norm, step, k, bounds,
                  scratch.data(), scratch.data() + n);
  });
}

void pgd_step_cpu(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const Tensor& step_size, const Tensor& eps,
                  int64_t norm, int64_t step, int64_t k, double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  write_dense(out, [&](Tensor& dense) {
    const Tensor a = in_layout_of(x_adv, dense), g = in_layout_of(grad, dense), c = in_layout_of(x, dense);
    const Tensor steps = torch::stable::contiguous(step_size), radii = torch::stable::contiguous(eps);
    const auto typed = [&](auto image, auto gradient) {
      using T = decltype(image);
      using G = decltype(gradient);
      run<T, G>(a, g, c, steps, radii, static_cast<Norm>(norm), static_cast<Step>(step), k,
                {static_cast<T>(lo), static_cast<T>(hi)}, dense);
    };
    // THO_DISPATCH_V2 leaks commas outside parentheses, so its body is a single call.
    THO_DISPATCH_V2(x.scalar_type(), "pgd_step", AT_WRAP([&] {
                      using image_t = scalar_t;
                      THO_DISPATCH_V2(grad.scalar_type(), "pgd_step", AT_WRAP([&] { typed(image_t(), scalar_t()); }),
                                      AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("pgd_step", TORCH_BOX(&robustfast::pgd_step_cpu)); }
