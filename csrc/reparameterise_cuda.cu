#include "reparameterise.h"

#include <algorithm>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cuda.h"

namespace robustfast {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;

// Entries that a thread of the backward takes.
constexpr int kEntries = 4;

template <typename T>
struct Rows {
  const T *mean, *log_variance;
  uint32_t L;
};

// Words L + 4 * quad and the three behind it, of which kShift = L % 4 lie in the next quad.
template <int kShift, typename Draw>
__device__ Words angles(const Draw& draw, uint32_t quad) {
  const Words first = draw(quad);
  if constexpr (kShift == 0) return first;
  const Words next = draw(quad + 1);
  Words out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.v[j] = j + kShift < 4 ? first.v[(j + kShift) % 4] : next.v[(j + kShift) % 4];
  return out;
}

// One block per sample. kVector: L is a multiple of 4 and all rows start at a multiple of 4 values.
template <int kShift, bool kVector, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(Rows<T> rows, PhiloxKey key, const int64_t* __restrict__ index, T* __restrict__ z,
                   T* __restrict__ divergence, T* __restrict__ shift) {
  __shared__ double sums[33];
  const int64_t i = blockIdx.x;
  const auto number = static_cast<uint64_t>(index[i]);
  const auto draw = [&](uint32_t quad) {
    return philox4x32(quad, kNoise, static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), key);
  };
  const T *mean = rows.mean + i * rows.L, *log_variance = rows.log_variance + i * rows.L;
  double twice = 0;
  for (uint32_t quad = threadIdx.x; quad < (rows.L + 3) / 4; quad += blockDim.x) {
    const Words radius = draw(quad), angle = angles<kShift>(draw, rows.L / 4 + quad);
    Vector<T, 4> mu{}, log{}, value, moved;
    if constexpr (kVector) {
      mu = reinterpret_cast<const Vector<T, 4>*>(mean)[quad];
      log = reinterpret_cast<const Vector<T, 4>*>(log_variance)[quad];
    } else {
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        if (4 * quad + j >= rows.L) break;
        mu.v[j] = mean[4 * quad + j];
        log.v[j] = log_variance[4 * quad + j];
      }
    }
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const double noise = sqrt(normal_squared_radius(radius.v[j])) * cosine_of(angle.v[j]);
      const double m = mu.v[j], l = log.v[j], spread = exponent(log.v[j] / 2), step = spread * noise;
      value.v[j] = static_cast<T>(m + step);
      moved.v[j] = static_cast<T>(step);
      if (kVector || 4 * quad + j < rows.L) twice += twice_divergence(m, l, spread);
    }
    const int64_t at = i * rows.L + 4 * quad;
    if constexpr (kVector) {
      *reinterpret_cast<Vector<T, 4>*>(z + at) = value;
      *reinterpret_cast<Vector<T, 4>*>(shift + at) = moved;
    } else {
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        if (4 * quad + j >= rows.L) break;
        z[at + j] = value.v[j];
        shift[at + j] = moved.v[j];
      }
    }
  }
  twice = block_reduce(twice, Add(), 0.0, sums);
  if (threadIdx.x == 0) divergence[i] = static_cast<T>(0.5 * twice);
}

// `across` blocks take the entries of a sample.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(Rows<T> rows, const T* __restrict__ d_z, const T* __restrict__ d_divergence,
                    const T* __restrict__ shift, T* __restrict__ d_mean, T* __restrict__ d_log_variance,
                    uint32_t across) {
  const int64_t i = blockIdx.x / across;
  const T d = d_divergence[i];
#pragma unroll
  for (int k = 0; k < kEntries; ++k) {
    const uint32_t e = (blockIdx.x % across * kEntries + k) * kThreads + threadIdx.x;
    if (e >= rows.L) return;
    const int64_t at = i * rows.L + e;
    const MomentGradient<T> g = moment_gradient(d_z[at], d, rows.mean[at], rows.log_variance[at], shift[at]);
    d_mean[at] = g.mean;
    d_log_variance[at] = g.log_variance;
  }
}

template <typename T>
Rows<T> rows_of(const Tensor& mean, const Tensor& log_variance) {
  return {static_cast<const T*>(mean.const_data_ptr()), static_cast<const T*>(log_variance.const_data_ptr()),
          static_cast<uint32_t>(mean.size(1))};
}

template <typename T>
void run(const Tensor& mean, const Tensor& log_variance, int64_t seed, const Tensor& index, Tensor& z,
         Tensor& divergence, Tensor& shift) {
  const Rows<T> rows = rows_of<T>(mean, log_variance);
  auto* values = static_cast<T*>(z.mutable_data_ptr());
  auto* moved = static_cast<T*>(shift.mutable_data_ptr());
  const bool vectors =
      aligned<T, 4>(rows.mean) && aligned<T, 4>(rows.log_variance) && aligned<T, 4>(values) && aligned<T, 4>(moved);
  const auto kernel = rows.L % 4 == 0   ? (vectors ? forward_kernel<0, true, T> : forward_kernel<0, false, T>)
                      : rows.L % 4 == 1 ? forward_kernel<1, false, T>
                      : rows.L % 4 == 2 ? forward_kernel<2, false, T>
                                        : forward_kernel<3, false, T>;
  const uint32_t quads = (rows.L + 3) / 4;
  const auto threads = std::clamp<uint32_t>((quads + 31) / 32 * 32, 32, kThreads);
  kernel<<<unsigned(mean.size(0)), threads, 0, current_stream(z.get_device_index())>>>(
      rows, PhiloxKey(seed), static_cast<const int64_t*>(index.const_data_ptr()), values,
      static_cast<T*>(divergence.mutable_data_ptr()), moved);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void run_backward(const Tensor& grad_z, const Tensor& grad_divergence, const Tensor& mean, const Tensor& log_variance,
                  const Tensor& shift, Tensor& d_mean, Tensor& d_log_variance) {
  const Rows<T> rows = rows_of<T>(mean, log_variance);
  const uint32_t across = (rows.L + kThreads * kEntries - 1) / (kThreads * kEntries);
  backward_kernel<<<unsigned(mean.size(0) * across), kThreads, 0, current_stream(d_mean.get_device_index())>>>(
      rows, static_cast<const T*>(grad_z.const_data_ptr()), static_cast<const T*>(grad_divergence.const_data_ptr()),
      static_cast<const T*>(shift.const_data_ptr()), static_cast<T*>(d_mean.mutable_data_ptr()),
      static_cast<T*>(d_log_variance.mutable_data_ptr()), across);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor, Tensor> reparameterise_cuda(const Tensor& mean, const Tensor& log_variance, int64_t seed,
                                                       const Tensor& index) {
  torch::stable::accelerator::DeviceGuard guard(mean.get_device_index());
  const int64_t B = mean.size(0), L = mean.size(1);
  Tensor z = torch::stable::new_empty(mean, {B, L}), divergence = torch::stable::new_empty(mean, {B});
  Tensor shift = torch::stable::new_empty(mean, {B, L});
  if (B == 0) return {z, divergence, shift};
  const Tensor mu = torch::stable::contiguous(mean), log = torch::stable::contiguous(log_variance);
  const Tensor numbers = torch::stable::contiguous(index);
  THO_DISPATCH_V2(mean.scalar_type(), "reparameterise",
                  AT_WRAP([&] { run<scalar_t>(mu, log, seed, numbers, z, divergence, shift); }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {z, divergence, shift};
}

std::tuple<Tensor, Tensor> reparameterise_backward_cuda(const Tensor& grad_z, const Tensor& grad_divergence,
                                                        const Tensor& mean, const Tensor& log_variance,
                                                        const Tensor& shift) {
  torch::stable::accelerator::DeviceGuard guard(mean.get_device_index());
  const int64_t B = mean.size(0), L = mean.size(1);
  Tensor d_mean = torch::stable::new_empty(mean, {B, L}), d_log_variance = torch::stable::new_empty(mean, {B, L});
  if (B == 0 || L == 0) return {d_mean, d_log_variance};
  const Tensor g = torch::stable::contiguous(grad_z), rows = torch::stable::contiguous(grad_divergence);
  const Tensor mu = torch::stable::contiguous(mean), log = torch::stable::contiguous(log_variance);
  const Tensor moved = torch::stable::contiguous(shift);
  THO_DISPATCH_V2(mean.scalar_type(), "reparameterise_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(g, rows, mu, log, moved, d_mean, d_log_variance); }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {d_mean, d_log_variance};
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) {
  m.impl("reparameterise", TORCH_BOX(&robustfast::reparameterise_cuda));
  m.impl("reparameterise_backward", TORCH_BOX(&robustfast::reparameterise_backward_cuda));
}
