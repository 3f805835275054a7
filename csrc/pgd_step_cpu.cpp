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

// Sum over i of term(i), in float64, in kLanes interleaved partial sums. Inlined, so that it is vectorised for the
// instruction set of the clone that calls it.
template <typename Term>
__attribute__((always_inline)) inline double sum(int64_t n, const Term& term) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
  for (; i < n; ++i) lanes[i % kLanes] += term(i);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

#define ROBUSTFAST_TERM [=](int64_t i) __attribute__((always_inline))

template <typename T>
ROBUSTFAST_CLONES double length_l2(const T* v, int64_t n) {
  return std::sqrt(sum(n, ROBUSTFAST_TERM { return double(v[i]) * double(v[i]); }));
}

template <typename T>
ROBUSTFAST_CLONES double length_l1(const T* v, int64_t n) {
  return sum(n, ROBUSTFAST_TERM { return std::fabs(double(v[i])); });
}

template <typename T>
ROBUSTFAST_CLONES double length_linf(const T* v, int64_t n) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kLanes] = std::max(lanes[i % kLanes], absolute(v[i]));
  return *std::max_element(lanes, lanes + kLanes);
}

template <typename T>
double length(const T* v, int64_t n, Norm norm) {
  return norm == Norm::l2 ? length_l2(v, n) : norm == Norm::l1 ? length_l1(v, n) : length_linf(v, n);
}

// tau with sum(max(|delta| - tau, 0)) = eps, by Michelot's fixed point: the support only shrinks, so it ends exactly.
template <typename T>
ROBUSTFAST_CLONES double l1_threshold(const T* delta, int64_t n, double length, double eps) {
  double tau = (length - eps) / n;
  for (double count = n, last = n + 1; count < last;) {
    last = count;
    const double inside =
        sum(n, ROBUSTFAST_TERM { return std::fabs(double(delta[i])) > tau ? std::fabs(double(delta[i])) : 0; });
    count = sum(n, ROBUSTFAST_TERM { return std::fabs(double(delta[i])) > tau ? 1.0 : 0.0; });
    if (count == 0) break;
    tau = (inside - eps) / count;
  }
  return tau;
}

template <typename T>
ROBUSTFAST_CLONES T kth_largest(const T* v, int64_t n, int64_t k, T* scratch) {
  for (int64_t i = 0; i < n; ++i) scratch[i] = absolute(v[i]);
  std::nth_element(scratch, scratch + (k - 1), scratch + n, std::greater<T>());
  return scratch[k - 1];
}

template <typename T>
ROBUSTFAST_CLONES double count_from(const T* v, int64_t n, T threshold) {
  return sum(n, ROBUSTFAST_TERM { return absolute(v[i]) >= threshold && v[i] != 0 ? 1.0 : 0.0; });
}

template <typename T, Step step>
ROBUSTFAST_CLONES void move_sample(const T* x_adv, const T* g, const T* x, T* delta, int64_t n, Move<step, T> move) {
  for (int64_t i = 0; i < n; ++i) delta[i] = move.delta(x_adv[i], g[i], x[i]);
}

template <typename T, Norm norm>
ROBUSTFAST_CLONES void project_sample(const T* delta, const T* x, T* out, int64_t n, T eps, Projection<norm> project,
                                      Bounds<T> bounds) {
  for (int64_t i = 0; i < n; ++i) {
    const T inside = norm == Norm::linf ? clamp(delta[i], -eps, eps) : project(delta[i]);
    out[i] = clamp(x[i] + inside, bounds.lo, bounds.hi);
  }
}

template <typename T, typename G>
ROBUSTFAST_CLONES void load_gradient(const G* g, T* grad, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grad[i] = zero_nan(static_cast<T>(g[i]));
}

// One sample; `delta` is scratch of n values, and so is `g` afterwards.
template <typename T, Norm norm, Step step>
void step_sample(const T* x_adv, T* g, const T* x, T* out, int64_t n, T step_size, T eps, int64_t k, Bounds<T> bounds,
                 T* delta) {
  Move<step, T> move{step_size, 0, 0};
  if constexpr (step != Step::sign) {
    const double size = step == Step::topq ? length_linf(g, n) : length(g, n, norm);
    // A zero or infinite gradient has no direction: the sample stays where it is.
    if (size > 0 && size < std::numeric_limits<double>::infinity()) {
      if (step == Step::topq) move.threshold = kth_largest(g, n, k, delta);
      move.scale = step_size / (step == Step::topq ? count_from(g, n, move.threshold) : size);
    }
  }
  move_sample(x_adv, g, x, delta, n, move);
  Projection<norm> project{true, 0};
  if constexpr (norm != Norm::linf) {
    const double size = length(delta, n, norm);
    project.inside = !(size > eps);
    if (!project.inside) project.shrink = norm == Norm::l2 ? eps / size : l1_threshold(delta, n, size, eps);
  }
  project_sample(delta, x, out, n, eps, project, bounds);
}

template <typename T>
auto step_sample_for(Norm norm, Step step) {
  return norm == Norm::linf ? step_sample<T, Norm::linf, Step::grad>
         : norm == Norm::l2
             ? (step == Step::sign ? step_sample<T, Norm::l2, Step::sign> : step_sample<T, Norm::l2, Step::grad>)
         : step == Step::sign ? step_sample<T, Norm::l1, Step::sign>
         : step == Step::grad ? step_sample<T, Norm::l1, Step::grad>
                              : step_sample<T, Norm::l1, Step::topq>;
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
  const bool signs = norm == Norm::linf && step == Step::sign;
  if (signs && steps.single && radii.single) {
    torch::stable::parallel_for(0, out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      step_linf(a + begin, g + begin, c + begin, o + begin, end - begin, steps[0], radii[0], bounds);
    });
    return;
  }
  const int64_t n = out.numel() / out.size(0);
  const auto step_one = step_sample_for<T>(norm, step);
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    std::vector<T> gradient(signs ? 0 : n), delta(signs ? 0 : n);
    for (int64_t i = begin, at = begin * n; i < end; ++i, at += n) {
      if (signs) {
        step_linf(a + at, g + at, c + at, o + at, n, steps[i], radii[i], bounds);
        continue;
      }
      load_gradient(g + at, gradient.data(), n);
      step_one(a + at, gradient.data(), c + at, o + at, n, steps[i], radii[i], k, bounds, delta.data());
    }
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
    // THO_DISPATCH_V2 leaks commas outside parentheses, so its body is a single call. A gradient that was laid out anew
    // has the dtype of the images.
    THO_DISPATCH_V2(x.scalar_type(), "pgd_step", AT_WRAP([&] {
                      using image_t = scalar_t;
                      THO_DISPATCH_V2(g.scalar_type(), "pgd_step", AT_WRAP([&] { typed(image_t(), scalar_t()); }),
                                      AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("pgd_step", TORCH_BOX(&robustfast::pgd_step_cpu)); }
