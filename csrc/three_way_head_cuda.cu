#include "three_way_head.h"

#include <algorithm>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;

template <typename T, int kWidth>
__device__ const Vector<T, kWidth>& at(const T* p, int64_t i) {
  return *reinterpret_cast<const Vector<T, kWidth>*>(p + i);
}

// One thread for kWidth neighbours of a row; D is a multiple of kWidth. p_r, p_n: [B, D]; hidden: [3, B, D].
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    hidden_kernel(const T* __restrict__ p_r, const T* __restrict__ p_n, const Compute<T>* __restrict__ b1,
                  T* __restrict__ hidden, int64_t total, int64_t D) {
  using C = Compute<T>;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (i >= total) return;
  const auto r = at<T, kWidth>(p_r, i), n = at<T, kWidth>(p_n, i);
  const C* b = b1 + i % D;
  Vector<T, kWidth> o[3];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const Ways<C> v = three_way_hidden(static_cast<C>(r.v[j]), static_cast<C>(n.v[j]), b[j]);
    o[0].v[j] = static_cast<T>(v.s);
    o[1].v[j] = static_cast<T>(v.r);
    o[2].v[j] = static_cast<T>(v.n);
  }
#pragma unroll
  for (int way = 0; way < 3; ++way) *reinterpret_cast<Vector<T, kWidth>*>(hidden + way * total + i) = o[way];
}

// A block covers 32 bytes of columns, a memory sector, so that narrow layers still fill the machine; its other threads
// share out the rows. With the bias, one block sums a column over all rows in a fixed order; without it, blocks also
// divide the rows. One block per multiprocessor asked for: with more, ptxas spills on sm_80.
template <typename T, int kWidth>
constexpr int kAcross = 32 / (sizeof(T) * kWidth);

template <typename T, int kWidth, bool bias>
__global__ void __launch_bounds__(kThreads, 1)
    hidden_backward_kernel(const T* __restrict__ d_hidden, const T* __restrict__ hidden, T* __restrict__ d_r,
                           T* __restrict__ d_n, Compute<T>* __restrict__ d_b1, int64_t B, int64_t D) {
  using C = Compute<T>;
  constexpr int kDown = kThreads / kAcross<T, kWidth>;
  const int across = threadIdx.x % kAcross<T, kWidth>, down = threadIdx.x / kAcross<T, kWidth>;
  const int64_t column = (int64_t(blockIdx.x) * kAcross<T, kWidth> + across) * kWidth, total = B * D;
  double sums[bias ? kWidth : 1] = {};
  if (column < D) {
    for (int64_t row = int64_t(blockIdx.y) * kDown + down; row < B; row += int64_t(gridDim.y) * kDown) {
      const int64_t i = row * D + column;
      Vector<T, kWidth> d[3], h[3], r, n;
#pragma unroll
      for (int way = 0; way < 3; ++way) {
        d[way] = at<T, kWidth>(d_hidden, way * total + i);
        h[way] = at<T, kWidth>(hidden, way * total + i);
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const Ways<C> gradient{static_cast<C>(d[0].v[j]), static_cast<C>(d[1].v[j]), static_cast<C>(d[2].v[j])};
        const Ways<C> unit{static_cast<C>(h[0].v[j]), static_cast<C>(h[1].v[j]), static_cast<C>(h[2].v[j])};
        const ThreeWayGradient<C> g = three_way_hidden_backward(gradient, unit);
        r.v[j] = static_cast<T>(g.r);
        n.v[j] = static_cast<T>(g.n);
        if constexpr (bias) sums[j] += static_cast<double>(g.r) + static_cast<double>(g.n_alone);
      }
      *reinterpret_cast<Vector<T, kWidth>*>(d_r + i) = r;
      *reinterpret_cast<Vector<T, kWidth>*>(d_n + i) = n;
    }
  }
  if constexpr (bias) {
    // Threads of one column lie kAcross apart: first within a warp, then across warps.
    __shared__ double parts[kThreads / 32][kAcross<T, kWidth> * kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      for (int offset = 16; offset >= kAcross<T, kWidth>; offset /= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], offset);
      if (threadIdx.x % 32 < kAcross<T, kWidth>) parts[threadIdx.x / 32][across * kWidth + j] = sums[j];
    }
    __syncthreads();
    const int64_t own = int64_t(blockIdx.x) * kAcross<T, kWidth> * kWidth + threadIdx.x;
    if (threadIdx.x < kAcross<T, kWidth> * kWidth && own < D) {
      double sum = 0;
      for (int warp = 0; warp < kThreads / 32; ++warp) sum += parts[warp][threadIdx.x];
      d_b1[own] = static_cast<C>(sum);
    }
  }
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
constexpr int kVector = 16 / sizeof(T);

template <typename T>
void run(const Tensor& p_r, const Tensor& p_n, const Tensor& b1, Tensor& hidden) {
  const auto* r = static_cast<const T*>(p_r.const_data_ptr());
  const auto* n = static_cast<const T*>(p_n.const_data_ptr());
  const auto* b = static_cast<const Compute<T>*>(b1.const_data_ptr());
  auto* h = static_cast<T*>(hidden.mutable_data_ptr());
  constexpr int kWidth = kVector<T>;
  const int64_t total = p_r.numel(), D = p_r.size(1);
  const bool vectors = D % kWidth == 0 && aligned<T, kWidth>(r) && aligned<T, kWidth>(n) && aligned<T, kWidth>(h);
  const auto kernel = vectors ? hidden_kernel<T, kWidth> : hidden_kernel<T, 1>;
  const unsigned blocks = unsigned(divide_up(total, kThreads * (vectors ? kWidth : 1)));
  kernel<<<blocks, kThreads, 0, current_stream(hidden.get_device_index())>>>(r, n, b, h, total, D);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, bool bias>
void run_backward(const Tensor& d_hidden, const Tensor& hidden, Tensor& d_r, Tensor& d_n, Tensor& d_b1) {
  const auto* d = static_cast<const T*>(d_hidden.const_data_ptr());
  const auto* h = static_cast<const T*>(hidden.const_data_ptr());
  auto* r = static_cast<T*>(d_r.mutable_data_ptr());
  auto* n = static_cast<T*>(d_n.mutable_data_ptr());
  auto* b = static_cast<Compute<T>*>(d_b1.mutable_data_ptr());
  constexpr int kWidth = kVector<T>, kColumns = 32 / sizeof(T);
  const int64_t B = d_r.size(0), D = d_r.size(1);
  const bool vectors = D % kWidth == 0 && aligned<T, kWidth>(d) && aligned<T, kWidth>(h) && aligned<T, kWidth>(r) &&
                       aligned<T, kWidth>(n);
  const auto kernel = vectors ? hidden_backward_kernel<T, kWidth, bias> : hidden_backward_kernel<T, 1, bias>;
  const int64_t down = kThreads / (vectors ? kAcross<T, kWidth> : kAcross<T, 1>);
  const dim3 blocks(unsigned(divide_up(D, kColumns)),
                    bias ? 1u : unsigned(std::min<int64_t>(divide_up(B, down), 65535)));
  kernel<<<blocks, kThreads, 0, current_stream(d_r.get_device_index())>>>(d, h, r, n, b, B, D);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor three_way_head_cuda(const Tensor& p_r, const Tensor& p_n, const Tensor& b1) {
  torch::stable::accelerator::DeviceGuard guard(p_r.get_device_index());
  Tensor hidden = torch::stable::new_empty(p_r, {3 * p_r.size(0), p_r.size(1)});
  if (hidden.numel() == 0) return hidden;
  const Tensor r = torch::stable::contiguous(p_r), n = torch::stable::contiguous(p_n),
               b = torch::stable::contiguous(b1);
  THO_DISPATCH_V2(p_r.scalar_type(), "three_way_head", AT_WRAP([&] { run<scalar_t>(r, n, b, hidden); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return hidden;
}

std::tuple<Tensor, Tensor, Tensor> three_way_head_backward_cuda(const Tensor& d_hidden, const Tensor& hidden,
                                                                bool bias) {
  torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  const int64_t B = hidden.size(0) / 3, D = hidden.size(1);
  Tensor d_r = torch::stable::new_empty(hidden, {B, D}), d_n = torch::stable::new_empty(hidden, {B, D});
  Tensor d_b1 = torch::stable::new_empty(hidden, {bias ? D : 0}, compute_type(hidden.scalar_type()));
  if (D == 0 || (B == 0 && !bias)) return {d_r, d_n, d_b1};
  const Tensor d = torch::stable::contiguous(d_hidden), h = torch::stable::contiguous(hidden);
  const auto typed = [&](auto value) {
    using T = decltype(value);
    bias ? run_backward<T, true>(d, h, d_r, d_n, d_b1) : run_backward<T, false>(d, h, d_r, d_n, d_b1);
  };
  THO_DISPATCH_V2(hidden.scalar_type(), "three_way_head_backward", AT_WRAP([&] { typed(scalar_t()); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return {d_r, d_n, d_b1};
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) {
  m.impl("three_way_head", TORCH_BOX(&robustfast::three_way_head_cuda));
  m.impl("three_way_head_backward", TORCH_BOX(&robustfast::three_way_head_backward_cuda));
}
