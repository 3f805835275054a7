#include "margin_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "ranking_cuda.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One row, as each of its lanes sees it.
template <int kWidth, typename T>
struct MarginRow {
  using C = Compute<T>;
  bool known;
  int64_t other, own;
  C other_logit, own_logit;

  __device__ MarginRow(const LogitRows& rows, int64_t i, int lane) : known(i < rows.B && rows.known(i)) {
    const T* x = known ? rows.row<T>(i) : nullptr;
    // A targeted loss need not look for its class; all rows are alike in that.
    const auto top = rank_together<2, kWidth>(rows.targeted() ? nullptr : x, rows.column_stride, rows.K, lane);
    own = known ? rows.y[i] : -1;
    other = known ? rows.other(i, top) : -1;
    own_logit = known ? static_cast<C>(x[own * rows.column_stride]) : C(NAN);
    other_logit = known ? static_cast<C>(x[other * rows.column_stride]) : C(NAN);
  }
};

// One block per multiprocessor asked for: left to itself ptxas spills a register.
template <int kWidth, typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    forward_kernel(const __grid_constant__ LogitRows rows, Compute<T> kappa, Compute<T>* __restrict__ values) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWidth;
  const int lane = threadIdx.x % kWidth;
  const MarginRow<kWidth, T> row(rows, i, lane);
  if (i < rows.B && lane == 0) values[i] = margin(row.other_logit, row.own_logit, kappa);
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    backward_kernel(const __grid_constant__ LogitRows rows, Compute<T> kappa, const Compute<T>* __restrict__ grad,
                    int64_t grad_stride, T* __restrict__ d_logits) {
  using C = Compute<T>;
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWidth;
  const int lane = threadIdx.x % kWidth;
  const MarginRow<kWidth, T> row(rows, i, lane);
  if (i >= rows.B) return;
  const MarginGradient<C> gradient(row.other, row.own, row.other_logit - row.own_logit, kappa, grad[i * grad_stride]);
  for (int64_t c = lane; c < rows.K; c += kWidth)
    d_logits[i * rows.K + c] = static_cast<T>(row.known ? gradient.at(c) : C(NAN));
}

template <typename T>
void run(const LogitRows& rows, Compute<T> kappa, Tensor& values) {
  const auto stream = current_stream(values.get_device_index());
  auto* v = static_cast<Compute<T>*>(values.mutable_data_ptr());
  if (rows.K <= kFewClasses)
    forward_kernel<8, T><<<row_blocks<8>(rows.B), kRowThreads, 0, stream>>>(rows, kappa, v);
  else
    forward_kernel<32, T><<<row_blocks<32>(rows.B), kRowThreads, 0, stream>>>(rows, kappa, v);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void run_backward(const LogitRows& rows, Compute<T> kappa, const Tensor& grad, Tensor& d_logits) {
  const auto stream = current_stream(d_logits.get_device_index());
  const auto* g = static_cast<const Compute<T>*>(grad.const_data_ptr());
  auto* d = static_cast<T*>(d_logits.mutable_data_ptr());
  const int64_t stride = grad.stride(0);
  if (rows.K <= kFewClasses)
    backward_kernel<8, T><<<row_blocks<8>(rows.B), kRowThreads, 0, stream>>>(rows, kappa, g, stride, d);
  else
    backward_kernel<32, T><<<row_blocks<32>(rows.B), kRowThreads, 0, stream>>>(rows, kappa, g, stride, d);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor margin_loss_cuda(const Tensor& logits, const Tensor& y, std::optional<Tensor> target, double kappa) {
  const LogitRows rows(logits, y, target);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor values = torch::stable::new_empty(logits, {rows.B}, compute_type(logits.scalar_type()));
  if (rows.B == 0) return values;
  THO_DISPATCH_V2(logits.scalar_type(), "margin_loss",
                  AT_WRAP([&] { run<scalar_t>(rows, static_cast<Compute<scalar_t>>(kappa), values); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return values;
}

Tensor margin_loss_backward_cuda(const Tensor& grad, const Tensor& logits, const Tensor& y,
                                 std::optional<Tensor> target, double kappa) {
  const LogitRows rows(logits, y, target);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor d_logits = torch::stable::new_empty(logits, {rows.B, rows.K});
  if (rows.B == 0) return d_logits;
  THO_DISPATCH_V2(logits.scalar_type(), "margin_loss_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(rows, static_cast<Compute<scalar_t>>(kappa), grad, d_logits); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return d_logits;
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) {
  m.impl("margin_loss", TORCH_BOX(&robustfast::margin_loss_cuda));
  m.impl("margin_loss_backward", TORCH_BOX(&robustfast::margin_loss_backward_cuda));
}
