#include "l1_projection.h"

#include <algorithm>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda.h"
#include "layout.h"

namespace robustfast {
namespace {

// One block per sample, one block per multiprocessor asked for: with more, ptxas spills around float64 divisions. Each
// evaluation reads the sample again; at CIFAR size it stays in the L1 cache.
template <typename T>
__global__ void __launch_bounds__(256, 1)
    project_rows(const T* x_adv, const T* __restrict__ x, T* out, int64_t n, const T* __restrict__ eps, T number,
                 int64_t eps_stride, Bounds<T> bounds) {
  __shared__ double sums[33];
  const int64_t sample = blockIdx.x;
  const L1Row<T> row{x_adv + sample * n, x + sample * n, out + sample * n, n};
  double largest = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) largest = Max()(double(row.entry(i, bounds).size), largest);
  largest = block_reduce(largest, Max(), 0.0, sums);
  const auto parts = [&](double tau) {
    L1Parts total{0, 0, 0};
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const L1Parts p = l1_parts(row.entry(i, bounds), tau);
      total.moving += p.moving;
      total.count += p.count;
      total.at_wall += p.at_wall;
    }
    total.moving = block_reduce(total.moving, Add(), 0.0, sums);
    total.count = block_reduce(total.count, Add(), 0.0, sums);
    total.at_wall = block_reduce(total.at_wall, Add(), 0.0, sums);
    return total;
  };
  // Every thread sees the same sums, and goes the same way.
  const double tau = l1_threshold(double(eps ? eps[sample * eps_stride] : number), largest, parts);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) row.project(i, tau, bounds);
}

template <typename T>
void launch(const Tensor& x_adv, const Tensor& x, const Tensor& eps, Bounds<T> bounds, Tensor& out) {
  const int64_t batch = out.size(0), n = out.numel() / batch;
  const int threads = int(std::min<int64_t>(256, (n + 31) / 32 * 32));
  const auto* radius = static_cast<const T*>(eps.const_data_ptr());
  project_rows<T><<<unsigned(batch), threads, 0, current_stream(out.get_device_index())>>>(
      static_cast<const T*>(x_adv.const_data_ptr()), static_cast<const T*>(x.const_data_ptr()),
      static_cast<T*>(out.mutable_data_ptr()), n, eps.is_cpu() ? nullptr : radius, eps.is_cpu() ? *radius : T(0),
      eps.dim(), bounds);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void l1_projection_cuda(const Tensor& x_adv, const Tensor& x, const Tensor& eps, double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  write_dense(out, [&](Tensor& dense) {
    const Tensor a = in_layout_of(x_adv, dense), c = in_layout_of(x, dense), radii = torch::stable::contiguous(eps);
    const auto typed = [&](auto image) {
      using T = decltype(image);
      launch<T>(a, c, radii, {static_cast<T>(lo), static_cast<T>(hi)}, dense);
    };
    THO_DISPATCH_V2(x.scalar_type(), "l1_projection", AT_WRAP([&] { typed(scalar_t()); }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) { m.impl("l1_projection", TORCH_BOX(&robustfast::l1_projection_cuda)); }
