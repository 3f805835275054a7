#include "dlr_loss.h"

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

template <bool kTargeted, typename T>
LogitsRatio<kTargeted, Compute<T>> ratio_of(const LogitRows& rows, int64_t i) {
  using C = Compute<T>;
  using Ratio = LogitsRatio<kTargeted, C>;
  const T* x = rows.row<T>(i);
  const auto top = rank<Ratio::kRanked>(x, rows.column_stride, rows.K);
  const int64_t other = rows.other(i, top), own = rows.y[i];
  const auto logit = [&](int64_t c) { return static_cast<C>(x[c * rows.column_stride]); };
  return Ratio(other, own, logit(other), logit(own), top);
}

template <bool kTargeted, typename T>
void run_as(const LogitRows& rows, Tensor& values) {
  using C = Compute<T>;
  auto* v = static_cast<C*>(values.mutable_data_ptr());
  for_rows(rows.B, rows.K, [&](int64_t i) {
    v[i] = rows.known(i) ? ratio_of<kTargeted, T>(rows, i).value() : std::numeric_limits<C>::quiet_NaN();
  });
}

template <typename T>
void run(const LogitRows& rows, Tensor& values) {
  rows.targeted() ? run_as<true, T>(rows, values) : run_as<false, T>(rows, values);
}

template <bool kTargeted, typename T>
void run_backward_as(const LogitRows& rows, const Tensor& grad, Tensor& d_logits) {
  using C = Compute<T>;
  const auto* g = static_cast<const C*>(grad.const_data_ptr());
  const int64_t stride = grad.stride(0);
  auto* d_all = static_cast<T*>(d_logits.mutable_data_ptr());
  for_rows(rows.B, rows.K, [&](int64_t i) {
    T* d = d_all + i * rows.K;
    if (!rows.known(i)) return void(std::fill_n(d, rows.K, static_cast<T>(std::numeric_limits<C>::quiet_NaN())));
    const auto ratio = ratio_of<kTargeted, T>(rows, i);
    std::fill_n(d, rows.K, T(0));
    const auto write = [&](int64_t c) { d[c] = static_cast<T>(ratio.gradient(c, g[i * stride])); };
    write(ratio.other);
    write(ratio.own);
    write(ratio.top.place[0]);
    write(ratio.top.place[2]);
    if constexpr (kTargeted) write(ratio.top.place[3]);
  });
}

template <typename T>
void run_backward(const LogitRows& rows, const Tensor& grad, Tensor& d_logits) {
  rows.targeted() ? run_backward_as<true, T>(rows, grad, d_logits) : run_backward_as<false, T>(rows, grad, d_logits);
}

Tensor dlr_loss_cpu(const Tensor& logits, const Tensor& y, std::optional<Tensor> target) {
  const LogitRows rows(logits, y, target);
  Tensor values = torch::stable::new_empty(logits, {rows.B}, compute_type(logits.scalar_type()));
  THO_DISPATCH_V2(logits.scalar_type(), "dlr_loss", AT_WRAP([&] { run<scalar_t>(rows, values); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return values;
}

Tensor dlr_loss_backward_cpu(const Tensor& grad, const Tensor& logits, const Tensor& y, std::optional<Tensor> target) {
  const LogitRows rows(logits, y, target);
  Tensor d_logits = torch::stable::new_empty(logits, {rows.B, rows.K});
  THO_DISPATCH_V2(logits.scalar_type(), "dlr_loss_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(rows, grad, d_logits); }), AT_EXPAND(AT_FLOATING_TYPES),
                  ScalarType::Half, ScalarType::BFloat16);
  return d_logits;
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) {
  m.impl("dlr_loss", TORCH_BOX(&robustfast::dlr_loss_cpu));
  m.impl("dlr_loss_backward", TORCH_BOX(&robustfast::dlr_loss_backward_cpu));
}
