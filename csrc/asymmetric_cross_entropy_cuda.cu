#include "asymmetric_cross_entropy.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cuda.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Lanes that share one sample: 8 for up to 16 classes, so that CIFAR-10 does not idle two thirds of a warp.
constexpr int kFewClasses = 16;

__device__ inline float exponential(float v) { return expf(v); }
__device__ inline double exponential(double v) { return exp(v); }
__device__ inline float logarithm(float v) { return logf(v); }
__device__ inline double logarithm(double v) { return log(v); }

template <int kLanes, typename T, typename Combine>
__device__ T lanes_reduce(T value, Combine combine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(~0u, value, offset, kLanes));
  return value;
}

template <typename C>
struct Softmax {
  C max, sum;  // exp(x - max) sums up to `sum`
};

// All lanes of a warp must come here; `x` is null for a sample that none looks at.
template <int kLanes, typename T>
__device__ Softmax<Compute<T>> softmax(const T* x, int64_t stride, int64_t n, int lane) {
  using C = Compute<T>;
  C max = -INFINITY, sum = 0;
  if (x)
    for (int64_t c = lane; c < n; c += kLanes) max = Max()(static_cast<C>(x[c * stride]), max);
  max = lanes_reduce<kLanes>(max, Max());
  if (x)
    for (int64_t c = lane; c < n; c += kLanes) sum += exponential(static_cast<C>(x[c * stride]) - max);
  return {max, lanes_reduce<kLanes>(sum, Add())};
}

// One block per term, so that a term sums in one order; one block per multiprocessor asked for, else ptxas spills
// around float64 divisions. Where the logits lie travels in the launch: nothing to copy, and a graph can capture it.
template <int kLanes, typename T>
__global__ void __launch_bounds__(512, 1)
    forward_kernel(const __grid_constant__ Terms terms, Compute<T>* __restrict__ values) {
  using C = Compute<T>;
  __shared__ double shared[33];
  const Term& term = terms.term[blockIdx.x];
  const int lane = threadIdx.x % kLanes;
  double total = 0;
  for (int64_t start = 0; start < terms.B; start += blockDim.x / kLanes) {
    const int64_t i = start + threadIdx.x / kLanes;
    const Target target = i < terms.B ? terms.target(term.rule, i) : Target{0, false};
    const T* x = target.keep ? static_cast<const T*>(term.logits) + i * term.stride[0] : nullptr;
    const auto s = softmax<kLanes>(x, term.stride[1], terms.C, lane);
    if (!x || lane) continue;
    const C own = terms.inside(target.label) ? static_cast<C>(x[target.label * term.stride[1]]) : C(NAN);
    total += (s.max - own) + logarithm(s.sum);
  }
  total = block_reduce(total, Add(), 0.0, shared);
  if (threadIdx.x == 0) values[blockIdx.x] = static_cast<C>(total / terms.B);
}

template <int kLanes, typename T>
__global__ void __launch_bounds__(256, 1)
    backward_kernel(const __grid_constant__ Terms terms, const Compute<T>* __restrict__ grad, int64_t grad_stride,
                    T* __restrict__ d_logits) {
  using C = Compute<T>;
  const int64_t j = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const bool here = j < terms.count * terms.B;
  const int64_t t = here ? j / terms.B : 0, i = j % terms.B;
  const Term& term = terms.term[t];
  const Target target = here ? terms.target(term.rule, i) : Target{0, false};
  const T* x = target.keep ? static_cast<const T*>(term.logits) + i * term.stride[0] : nullptr;
  const auto s = softmax<kLanes>(x, term.stride[1], terms.C, lane);
  if (!here) return;
  T* d = d_logits + j * terms.C;
  if (!x) {
    for (int64_t c = lane; c < terms.C; c += kLanes) d[c] = T(0);
    return;
  }
  const C scale = terms.inside(target.label) ? grad[t * grad_stride] / static_cast<C>(terms.B) : C(NAN);
  for (int64_t c = lane; c < terms.C; c += kLanes) {
    const C p = exponential(static_cast<C>(x[c * term.stride[1]]) - s.max) / s.sum;
    d[c] = static_cast<T>((p - C(c == target.label)) * scale);
  }
}

template <typename T>
void run(const Terms& terms, Tensor& values) {
  const auto kernel = terms.C <= kFewClasses ? forward_kernel<8, T> : forward_kernel<32, T>;
  kernel<<<terms.count, 512, 0, current_stream(values.get_device_index())>>>(
      terms, static_cast<Compute<T>*>(values.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void run_backward(const Terms& terms, const Tensor& grad, Tensor& d_logits) {
  const bool few = terms.C <= kFewClasses;
  const auto kernel = few ? backward_kernel<8, T> : backward_kernel<32, T>;
  const int64_t samples = 256 / (few ? 8 : 32);
  const unsigned blocks = unsigned((terms.count * terms.B + samples - 1) / samples);
  kernel<<<blocks, 256, 0, current_stream(d_logits.get_device_index())>>>(
      terms, static_cast<const Compute<T>*>(grad.const_data_ptr()), grad.stride(0),
      static_cast<T*>(d_logits.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor asymmetric_cross_entropy_cuda(std::vector<Tensor> logits, const Tensor& y, std::optional<Tensor> yhat_s,
                                     std::optional<Tensor> yhat_n, std::vector<int64_t> rules) {
  const Terms terms(logits, y, yhat_s, yhat_n, rules);
  const Tensor& first = logits[0];
  torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  Tensor values = torch::stable::new_empty(first, {terms.count}, compute_type(first.scalar_type()));
  THO_DISPATCH_V2(first.scalar_type(), "asymmetric_cross_entropy", AT_WRAP([&] { run<scalar_t>(terms, values); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return values;
}

Tensor asymmetric_cross_entropy_backward_cuda(const Tensor& grad, std::vector<Tensor> logits, const Tensor& y,
                                              std::optional<Tensor> yhat_s, std::optional<Tensor> yhat_n,
                                              std::vector<int64_t> rules) {
  const Terms terms(logits, y, yhat_s, yhat_n, rules);
  const Tensor& first = logits[0];
  torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  Tensor d_logits = torch::stable::new_empty(first, {terms.count, terms.B, terms.C});
  THO_DISPATCH_V2(first.scalar_type(), "asymmetric_cross_entropy_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(terms, grad, d_logits); }), AT_EXPAND(AT_FLOATING_TYPES),
                  ScalarType::Half, ScalarType::BFloat16);
  return d_logits;
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) {
  m.impl("asymmetric_cross_entropy", TORCH_BOX(&robustfast::asymmetric_cross_entropy_cuda));
  m.impl("asymmetric_cross_entropy_backward", TORCH_BOX(&robustfast::asymmetric_cross_entropy_backward_cuda));
}
