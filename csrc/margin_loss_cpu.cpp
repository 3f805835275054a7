#include "margin_loss.h"

#include <algorithm>
#include <limits>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "ranking_cpu.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The class held against the label of row i, which a targeted loss need not look for.
template <typename T>
int64_t other_class(const LogitRows& rows, int64_t i) {
  if (rows.targeted()) return rows.target[i];
  return rows.other(i, rank<2>(rows.row<T>(i), rows.column_stride, rows.K));
}

template <typename T>
void run(const LogitRows& rows, Compute<T> kappa, Tensor& values) {
  using C = Compute<T>;
  auto* v = static_cast<C*>(values.mutable_data_ptr());
  for_rows(rows.B, rows.K, [&](int64_t i) {
    const T* x = rows.row<T>(i);
    const auto logit = [&](int64_t c) { return static_cast<C>(x[c * rows.column_stride]); };
    v[i] = rows.known(i) ? margin(logit(other_class<T>(rows, i)), logit(rows.y[i]), kappa)
                         : std::numeric_limits<C>::quiet_NaN();
  });
}

template <typename T>
void run_backward(const LogitRows& rows, Compute<T> kappa, const Tensor& grad, Tensor& d_logits) {
  using C = Compute<T>;
  const auto* g = static_cast<const C*>(grad.const_data_ptr());
  const int64_t stride = grad.stride(0);
  auto* d_all = static_cast<T*>(d_logits.mutable_data_ptr());
  for_rows(rows.B, rows.K, [&](int64_t i) {
    T* d = d_all + i * rows.K;
    if (!rows.known(i)) return void(std::fill_n(d, rows.K, static_cast<T>(std::numeric_limits<C>::quiet_NaN())));
    const T* x = rows.row<T>(i);
    const auto logit = [&](int64_t c) { return static_cast<C>(x[c * rows.column_stride]); };
    const int64_t other = other_class<T>(rows, i), own = rows.y[i];
    const MarginGradient<C> gradient(other, own, logit(other) - logit(own), kappa, g[i * stride]);
    std::fill_n(d, rows.K, T(0));
    for (const int64_t c : {other, own}) d[c] = static_cast<T>(gradient.at(c));
  });
}

Tensor margin_loss_cpu(const Tensor& logits, const Tensor& y, std::optional<Tensor> target, double kappa) {
  const LogitRows rows(logits, y, target);
  Tensor values = torch::stable::new_empty(logits, {rows.B}, compute_type(logits.scalar_type()));
  THO_DISPATCH_V2(logits.scalar_type(), "margin_loss",
                  AT_WRAP([&] { run<scalar_t>(rows, static_cast<Compute<scalar_t>>(kappa), values); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return values;
}

Tensor margin_loss_backward_cpu(const Tensor& grad, const Tensor& logits, const Tensor& y, std::optional<Tensor> target,
                                double kappa) {
  const LogitRows rows(logits, y, target);
  Tensor d_logits = torch::stable::new_empty(logits, {rows.B, rows.K});
  THO_DISPATCH_V2(logits.scalar_type(), "margin_loss_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(rows, static_cast<Compute<scalar_t>>(kappa), grad, d_logits); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return d_logits;
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) {
  m.impl("margin_loss", TORCH_BOX(&robustfast::margin_loss_cpu));
  m.impl("margin_loss_backward", TORCH_BOX(&robustfast::margin_loss_backward_cpu));
}
