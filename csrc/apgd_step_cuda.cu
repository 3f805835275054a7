#include "apgd_step.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda.h"
#include "layout.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;

// A size: a number read on the host, or device memory holding one or one per sample.
template <typename T>
struct PerSample {
  const T* data;
  T value;
  int64_t stride;

  explicit PerSample(const Tensor& t)
      : data(t.is_cpu() ? nullptr : static_cast<const T*>(t.const_data_ptr())),
        value(t.is_cpu() ? *static_cast<const T*>(t.const_data_ptr()) : T(0)),
        stride(t.dim()) {}
  __device__ T operator[](int64_t i) const { return data ? data[i * stride] : value; }
};

template <typename T>
struct Sizes {
  PerSample<T> step_size, eps, momentum, sparsity;
};

// Images and result, which may be x_adv or x_old.
template <typename T>
struct Images {
  const T *x_adv, *x_old;
  const T* __restrict__ x;
  T* out;

  __device__ Images at(int64_t i) const { return {x_adv + i, x_old + i, x + i, out + i}; }
};

template <typename T, typename G, int kWidth>
__global__ void __launch_bounds__(256) step_linf(Images<T> images, const G* __restrict__ grad, int64_t vectors,
                                                 int64_t n, Sizes<T> sizes, Bounds<T> bounds) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= vectors) return;
  using Wide = Vector<T, kWidth>;
  const Wide a = reinterpret_cast<const Wide*>(images.x_adv)[i], p = reinterpret_cast<const Wide*>(images.x_old)[i];
  const auto g = reinterpret_cast<const Vector<G, kWidth>*>(grad)[i];
  const Wide c = reinterpret_cast<const Wide*>(images.x)[i];
  const int64_t sample = i * kWidth / n;  // a vector never spans two samples: n % kWidth == 0
  const T step_size = sizes.step_size[sample], eps = sizes.eps[sample];
  const Momentum<T> mix(sizes.momentum[sample]);
  Wide o;
#pragma unroll
  for (int j = 0; j < kWidth; ++j)
    o.v[j] = apgd_step_linf(a.v[j], p.v[j], static_cast<T>(g.v[j]), c.v[j], step_size, eps, mix, bounds);
  reinterpret_cast<Wide*>(images.out)[i] = o;
}

// One block per sample, one block per multiprocessor asked for: with more, ptxas spills around float64 divisions. Each
// pass reads the sample again; at CIFAR size it stays in the L1 cache.
template <typename T, typename G>
__global__ void __launch_bounds__(256, 1)
    step_l2(Images<T> images, const G* __restrict__ grad, int64_t n, Sizes<T> sizes, Bounds<T> bounds) {
  __shared__ double sums[33];
  const int64_t sample = blockIdx.x;
  const Images<T> row = images.at(sample * n);
  grad += sample * n;
  const double eps = sizes.eps[sample];
  const Momentum<T> mix(sizes.momentum[sample]);
  const auto length = [&](auto entry) {
    double total = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) total += double(entry(i)) * double(entry(i));
    return sqrt(block_reduce(total, Add(), 0.0, sums));
  };

  const auto gradient = [&](int64_t i) { return zero_nan(static_cast<T>(grad[i])); };
  const double size = length(gradient);
  // A zero or infinite gradient has no direction.
  const double scale = size > 0 && size < double(INFINITY) ? sizes.step_size[sample] / (size + kApgdTiny) : 0.0;
  const auto stepped = [&](int64_t i) {
    return scale == 0 ? row.x_adv[i] - row.x[i] : apgd_stepped_delta(row.x_adv[i], gradient(i), row.x[i], scale);
  };
  const Projection<Norm::l2> first = apgd_ball(length(stepped), eps);
  const auto mixed = [&](int64_t i) {
    return apgd_mixed_delta(row.x_adv[i], row.x_old[i], row.x[i], stepped(i), first, mix, bounds);
  };
  const Projection<Norm::l2> second = apgd_ball(length(mixed), eps);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
    row.out[i] = clamp(row.x[i] + second(mixed(i)), bounds.lo, bounds.hi);
}

// The k-th largest |g| of a sample, found bit by bit from the top: sizes of floats order like their bit patterns.
template <typename T, typename G>
__device__ T kth_largest(const G* g, int64_t n, int64_t k, int* shared) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, unsigned long long>;
  Bits found = 0;
  for (int bit = sizeof(T) * 8 - 2; bit >= 0; --bit) {
    const Bits candidate = found | (Bits(1) << bit);
    int count = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const T size = absolute(zero_nan(static_cast<T>(g[i])));
      Bits bits;
      memcpy(&bits, &size, sizeof(T));
      count += bits >= candidate;
    }
    if (block_reduce(count, Add(), 0, shared) >= k) found = candidate;
  }
  T value;
  memcpy(&value, &found, sizeof(T));
  return value;
}

template <typename T, typename G>
__global__ void __launch_bounds__(256, 1)
    step_l1(Images<T> images, const G* __restrict__ grad, int64_t n, Sizes<T> sizes, Bounds<T> bounds) {
  __shared__ double sums[33];
  __shared__ int counts[33];
  const int64_t sample = blockIdx.x;
  const Images<T> row = images.at(sample * n);
  grad += sample * n;
  const auto gradient = [&](int64_t i) { return zero_nan(static_cast<T>(grad[i])); };
  const auto largest_of = [&](auto entry) {
    double largest = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) largest = Max()(double(entry(i)), largest);
    return block_reduce(largest, Max(), 0.0, sums);
  };
  const T threshold = kth_largest<T>(grad, n, apgd_entries(static_cast<float>(sizes.sparsity[sample]), n), counts);
  int chosen = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
    chosen += absolute(gradient(i)) >= threshold && gradient(i) != T(0);
  chosen = block_reduce(chosen, Add(), 0, counts);
  const double size = largest_of([&](int64_t i) { return absolute(gradient(i)); });
  // A zero or infinite gradient has no direction.
  const double scale = size > 0 && size < double(INFINITY) ? sizes.step_size[sample] / double(chosen) : 0.0;

  const auto point = [&](int64_t i) { return apgd_sparse(row.x_adv[i], gradient(i), threshold, scale); };
  const auto entry = [&](int64_t i) { return l1_entry(point(i), row.x[i], bounds); };
  const auto parts = [&](double tau) {
    L1Parts total{0, 0, 0};
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const L1Parts p = l1_parts(entry(i), tau);
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
  const double tau =
      l1_threshold(double(sizes.eps[sample]), largest_of([&](int64_t i) { return entry(i).size; }), parts);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) row.out[i] = l1_project(point(i), row.x[i], tau, bounds);
}

template <typename T, typename G>
void launch(const Tensor& x_adv, const Tensor& x_old, const Tensor& grad, const Tensor& x, const Sizes<T>& sizes,
            Norm norm, Bounds<T> bounds, Tensor& out) {
  const Images<T> images{static_cast<const T*>(x_adv.const_data_ptr()), static_cast<const T*>(x_old.const_data_ptr()),
                         static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr())};
  const auto* g = static_cast<const G*>(grad.const_data_ptr());
  const auto stream = current_stream(out.get_device_index());
  const int64_t batch = out.dim() ? out.size(0) : 1, total = out.numel(), n = total / batch;
  if (norm == Norm::linf) {
    constexpr int kThreads = 256, kWidth = 4;
    const auto blocks = [](int64_t count) { return unsigned((count + kThreads - 1) / kThreads); };
    if (n % kWidth == 0 && aligned<T, kWidth>(images.x_adv) && aligned<T, kWidth>(images.x_old) &&
        aligned<G, kWidth>(g) && aligned<T, kWidth>(images.x) && aligned<T, kWidth>(images.out))
      step_linf<T, G, kWidth>
          <<<blocks(total / kWidth), kThreads, 0, stream>>>(images, g, total / kWidth, n, sizes, bounds);
    else
      step_linf<T, G, 1><<<blocks(total), kThreads, 0, stream>>>(images, g, total, n, sizes, bounds);
  } else {
    const int threads = int(std::min<int64_t>(256, (n + 31) / 32 * 32));
    const auto kernel = norm == Norm::l2 ? step_l2<T, G> : step_l1<T, G>;
    kernel<<<unsigned(batch), threads, 0, stream>>>(images, g, n, sizes, bounds);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void apgd_step_cuda(const Tensor& x_adv, const Tensor& x_old, const Tensor& grad, const Tensor& x,
                    const Tensor& step_size, const Tensor& eps, const Tensor& momentum, const Tensor& sparsity,
                    int64_t norm, double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  write_dense(out, [&](Tensor& dense) {
    const Tensor a = in_layout_of(x_adv, dense), p = in_layout_of(x_old, dense), g = in_layout_of(grad, dense),
                 c = in_layout_of(x, dense);
    const Tensor steps = torch::stable::contiguous(step_size), radii = torch::stable::contiguous(eps),
                 weights = torch::stable::contiguous(momentum), shares = torch::stable::contiguous(sparsity);
    const auto typed = [&](auto image, auto gradient) {
      using T = decltype(image);
      using G = decltype(gradient);
      const Sizes<T> sizes{PerSample<T>(steps), PerSample<T>(radii), PerSample<T>(weights), PerSample<T>(shares)};
      launch<T, G>(a, p, g, c, sizes, static_cast<Norm>(norm), {static_cast<T>(lo), static_cast<T>(hi)}, dense);
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

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) { m.impl("apgd_step", TORCH_BOX(&robustfast::apgd_step_cuda)); }
