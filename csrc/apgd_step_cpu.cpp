#include "apgd_step.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu.h"
#include "l1_box_cpu.h"
#include "layout.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;

// One sample: n entries of the image, the one before it, its centre and the result, which may be one of the first two.
template <typename T>
struct Row {
  const T *x_adv, *x_old, *x;
  T* out;
  int64_t n;
};

template <typename T, typename G>
ROBUSTFAST_CLONES void step_linf(Row<T> row, const G* g, T step_size, T eps, Momentum<T> mix, Bounds<T> bounds) {
  // Entries never meet, also where out is x_old or x_adv: without this gcc finds the two alike and makes no vectors.
#pragma GCC ivdep
  for (int64_t i = 0; i < row.n; ++i)
    row.out[i] =
        apgd_step_linf(row.x_adv[i], row.x_old[i], static_cast<T>(g[i]), row.x[i], step_size, eps, mix, bounds);
}

template <typename T, typename G>
ROBUSTFAST_CLONES void load_gradient(const G* g, T* grad, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grad[i] = zero_nan(static_cast<T>(g[i]));
}

template <typename T>
ROBUSTFAST_CLONES double length(const T* v, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(v[i + j]) * static_cast<double>(v[i + j]);
  for (; i < n; ++i) lanes[i % kLanes] += static_cast<double>(v[i]) * static_cast<double>(v[i]);
  double total = 0;
  for (double lane : lanes) total += lane;
  return std::sqrt(total);
}

template <typename T>
ROBUSTFAST_CLONES void move_l2(Row<T> row, const T* g, T* delta, double scale) {
  if (scale == 0) {
    for (int64_t i = 0; i < row.n; ++i) delta[i] = row.x_adv[i] - row.x[i];
  } else {
    for (int64_t i = 0; i < row.n; ++i) delta[i] = apgd_stepped_delta(row.x_adv[i], g[i], row.x[i], scale);
  }
}

template <typename T>
ROBUSTFAST_CLONES void mix_l2(Row<T> row, T* delta, Projection<Norm::l2> first, Momentum<T> mix, Bounds<T> bounds) {
  for (int64_t i = 0; i < row.n; ++i)
    delta[i] = apgd_mixed_delta(row.x_adv[i], row.x_old[i], row.x[i], delta[i], first, mix, bounds);
}

template <typename T>
ROBUSTFAST_CLONES void finish_l2(Row<T> row, const T* delta, Projection<Norm::l2> second, Bounds<T> bounds) {
  for (int64_t i = 0; i < row.n; ++i) row.out[i] = clamp(row.x[i] + second(delta[i]), bounds.lo, bounds.hi);
}

template <typename T>
void step_l2(Row<T> row, const T* g, T step_size, T eps, Momentum<T> mix, Bounds<T> bounds, T* delta) {
  const double size = length(g, row.n);
  // A zero or infinite gradient has no direction.
  const bool usable = size > 0 && size < std::numeric_limits<double>::infinity();
  move_l2(row, g, delta, usable ? step_size / (size + kApgdTiny) : 0);
  mix_l2(row, delta, apgd_ball(length(delta, row.n), eps), mix, bounds);
  finish_l2(row, delta, apgd_ball(length(delta, row.n), eps), bounds);
}

// Scratch of the l1 step, n values each.
template <typename T>
struct Scratch {
  std::vector<T> grad, delta, size, room;
  Scratch(int64_t n, Norm norm)
      : grad(norm == Norm::linf ? 0 : n),
        delta(norm == Norm::linf ? 0 : n),
        size(norm == Norm::l1 ? n : 0),
        room(norm == Norm::l1 ? n : 0) {}
};

template <typename T>
ROBUSTFAST_CLONES void sizes_of(const T* g, T* sizes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sizes[i] = absolute(g[i]);
}

template <typename T>
ROBUSTFAST_CLONES int64_t count_from(const T* g, int64_t n, T threshold) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += absolute(g[i]) >= threshold && g[i] != T(0);
  return count;
}

template <typename T>
ROBUSTFAST_CLONES void move_l1(Row<T> row, const T* g, T* point, T threshold, double scale) {
  for (int64_t i = 0; i < row.n; ++i) point[i] = apgd_sparse(row.x_adv[i], g[i], threshold, scale);
}

template <typename T>
void step_l1(Row<T> row, Scratch<T>& scratch, T step_size, T eps, T sparsity, Bounds<T> bounds) {
  const T* g = scratch.grad.data();
  T* point = scratch.delta.data();
  sizes_of(g, point, row.n);
  const int64_t k = apgd_entries(static_cast<float>(sparsity), row.n);
  std::nth_element(point, point + (k - 1), point + row.n, std::greater<T>());
  const T threshold = point[k - 1], largest_grad = *std::max_element(point, point + k);
  double scale = 0;
  if (largest_grad > 0 && largest_grad < std::numeric_limits<T>::infinity())
    scale = step_size / static_cast<double>(count_from(g, row.n, threshold));
  move_l1(row, g, point, threshold, scale);
  l1_project_row(point, row.x, row.out, row.n, eps, scratch.size.data(), scratch.room.data(), bounds);
}

// A size: one for all samples or one each.
template <typename T>
struct PerSample {
  const T* data;
  bool single;
  explicit PerSample(const Tensor& t) : data(static_cast<const T*>(t.const_data_ptr())), single(t.dim() == 0) {}
  T operator[](int64_t i) const { return data[single ? 0 : i]; }
};

template <typename T, typename G>
void run(const Tensor& x_adv, const Tensor& x_old, const Tensor& grad, const Tensor& x, const Tensor& step_size,
         const Tensor& eps, const Tensor& momentum, const Tensor& sparsity, Norm norm, Bounds<T> bounds, Tensor& out) {
  const auto* g = static_cast<const G*>(grad.const_data_ptr());
  const auto row_at = [a = static_cast<const T*>(x_adv.const_data_ptr()),
                       p = static_cast<const T*>(x_old.const_data_ptr()), c = static_cast<const T*>(x.const_data_ptr()),
                       o = static_cast<T*>(out.mutable_data_ptr())](int64_t at, int64_t n) {
    return Row<T>{a + at, p + at, c + at, o + at, n};
  };
  const PerSample<T> steps(step_size), radii(eps), weights(momentum), shares(sparsity);
  if (norm == Norm::linf && steps.single && radii.single && weights.single) {
    torch::stable::parallel_for(0, out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      step_linf(row_at(begin, end - begin), g + begin, steps[0], radii[0], Momentum<T>(weights[0]), bounds);
    });
    return;
  }
  const int64_t n = out.numel() / out.size(0);
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(n, norm);
    for (int64_t i = begin; i < end; ++i) {
      const Row<T> row = row_at(i * n, n);
      const Momentum<T> mix(weights[i]);
      if (norm == Norm::linf) {
        step_linf(row, g + i * n, steps[i], radii[i], mix, bounds);
        continue;
      }
      load_gradient(g + i * n, scratch.grad.data(), n);
      if (norm == Norm::l2)
        step_l2(row, scratch.grad.data(), steps[i], radii[i], mix, bounds, scratch.delta.data());
      else
        step_l1(row, scratch, steps[i], radii[i], shares[i], bounds);
    }
  });
}

void apgd_step_cpu(const Tensor& x_adv, const Tensor& x_old, const Tensor& grad, const Tensor& x,
                   const Tensor& step_size, const Tensor& eps, const Tensor& momentum, const Tensor& sparsity,
                   int64_t norm, double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  write_dense(out, [&](Tensor& dense) {
    const Tensor a = in_layout_of(x_adv, dense), p = in_layout_of(x_old, dense), g = in_layout_of(grad, dense),
                 c = in_layout_of(x, dense);
    const Tensor steps = torch::stable::contiguous(step_size), radii = torch::stable::contiguous(eps),
                 weights = torch::stable::contiguous(momentum), shares = torch::stable::contiguous(sparsity);
    const auto typed = [&](auto image, auto gradient) {
      using T = decltype(image);
      using G = decltype(gradient);
      run<T, G>(a, p, g, c, steps, radii, weights, shares, static_cast<Norm>(norm),
                {static_cast<T>(lo), static_cast<T>(hi)}, dense);
    };
    // THO_DISPATCH_V2 leaks commas outside parentheses, so its body is a single call. A gradient that was laid out anew
    // has the dtype of the images.
    THO_DISPATCH_V2(x.scalar_type(), "apgd_step", AT_WRAP([&] {
                      using image_t = scalar_t;
                      THO_DISPATCH_V2(g.scalar_type(), "apgd_step", AT_WRAP([&] { typed(image_t(), scalar_t()); }),
                                      AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("apgd_step", TORCH_BOX(&robustfast::apgd_step_cpu)); }
