#include "dlr_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "ranking_cuda.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// All lanes of a warp must come here; a row without labels that are classes gives nan.
template <bool kTargeted, int kWidth, typename T>
__device__ LogitsRatio<kTargeted, Compute<T>> ratio_of(const LogitRows& rows, int64_t i, int lane, bool known) {
  using C = Compute<T>;
  using Ratio = LogitsRatio<kTargeted, C>;
  const T* x = known ? rows.row<T>(i) : nullptr;
  const auto top = rank_together<Ratio::kRanked, kWidth>(x, rows.column_stride, rows.K, lane);
  if (!known) return Ratio(-1, -1, C(NAN), C(NAN), top);
  const int64_t other = rows.other(i, top), own = rows.y[i];
  const auto logit = [&](int64_t c) { return static_cast<C>(x[c * rows.column_stride]); };
  return Ratio(other, own, logit(other), logit(own), top);
}

// One block per multiprocessor asked for: with more, ptxas spills around float64 divisions.
template <bool kTargeted, int kWidth, typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    forward_kernel(const __grid_constant__ LogitRows rows, Compute<T>* __restrict__ values) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWidth;
  const int lane = threadIdx.x % kWidth;
  const auto ratio = ratio_of<kTargeted, kWidth, T>(rows, i, lane, i < rows.B && rows.known(i));
  if (i < rows.B && lane == 0) values[i] = ratio.value();
}

template <bool kTargeted, int kWidth, typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    backward_kernel(const __grid_constant__ LogitRows rows, const Compute<T>* __restrict__ grad, int64_t grad_stride,
                    T* __restrict__ d_logits) {
  using C = Compute<T>;
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWidth;
  const int lane = threadIdx.x % kWidth;
  const bool known = i < rows.B && rows.known(i);
  const auto ratio = ratio_of<kTargeted, kWidth, T>(rows, i, lane, known);
  if (i >= rows.B) return;
  const C g = grad[i * grad_stride];
  for (int64_t c = lane; c < rows.K; c += kWidth)
    d_logits[i * rows.K + c] = static_cast<T>(known ? ratio.gradient(c, g) : C(NAN));
}

template <bool kTargeted, int kWidth, typename T>
void forward_as(const LogitRows& rows, Tensor& values) {
  forward_kernel<kTargeted, kWidth, T>
      <<<row_blocks<kWidth>(rows.B), kRowThreads, 0, current_stream(values.get_device_index())>>>(
          rows, static_cast<Compute<T>*>(values.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <bool kTargeted, int kWidth, typename T>
void backward_as(const LogitRows& rows, const Tensor& grad, Tensor& d_logits) {
  backward_kernel<kTargeted, kWidth, T>
      <<<row_blocks<kWidth>(rows.B), kRowThreads, 0, current_stream(d_logits.get_device_index())>>>(
          rows, static_cast<const Compute<T>*>(grad.const_data_ptr()), grad.stride(0),
          static_cast<T*>(d_logits.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void run(const LogitRows& rows, Tensor& values) {
  const auto as = rows.K <= kFewClasses ? (rows.targeted() ? forward_as<true, 8, T> : forward_as<false, 8, T>)
                                        : (rows.targeted() ? forward_as<true, 32, T> : forward_as<false, 32, T>);
  as(rows, values);
}

template <typename T>
void run_backward(const LogitRows& rows, const Tensor& grad, Tensor& d_logits) {
  const auto as = rows.K <= kFewClasses ? (rows.targeted() ? backward_as<true, 8, T> : backward_as<false, 8, T>)
                                        : (rows.targeted() ? backward_as<true, 32, T> : backward_as<false, 32, T>);
  as(rows, grad, d_logits);
}

Tensor dlr_loss_cuda(const Tensor& logits, const Tensor& y, std::optional<Tensor> target) {
  const LogitRows rows(logits, y, target);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor values = torch::stable::new_empty(logits, {rows.B}, compute_type(logits.scalar_type()));
  if (rows.B == 0) return values;
  THO_DISPATCH_V2(logits.scalar_type(), "dlr_loss", AT_WRAP([&] { run<scalar_t>(rows, values); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return values;
}

Tensor dlr_loss_backward_cuda(const Tensor& grad, const Tensor& logits, const Tensor& y, std::optional<Tensor> target) {
  const LogitRows rows(logits, y, target);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor d_logits = torch::stable::new_empty(logits, {rows.B, rows.K});
  if (rows.B == 0) return d_logits;
  THO_DISPATCH_V2(logits.scalar_type(), "dlr_loss_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(rows, grad, d_logits); }), AT_EXPAND(AT_FLOATING_TYPES),
                  ScalarType::Half, ScalarType::BFloat16);
  return d_logits;
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) {
  m.impl("dlr_loss", TORCH_BOX(&robustfast::dlr_loss_cuda));
  m.impl("dlr_loss_backward", TORCH_BOX(&robustfast::dlr_loss_backward_cuda));
}
