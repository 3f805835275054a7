#include "apgd_step.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda.h"
#include "layout.h"
#include "sample_sums.h"

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

// One vector a thread. A sample is the work of `across` blocks, so that no thread divides; sizes that are one for all
// make one sample of the whole batch.
template <typename T, typename G, int kWidth>
__global__ void __launch_bounds__(256) step_linf(Images<T> images, const G* __restrict__ grad, int64_t n,
                                                 unsigned across, Sizes<T> sizes, Bounds<T> bounds) {
  const unsigned sample = blockIdx.x / across;
  const int64_t i = int64_t(blockIdx.x - sample * across) * blockDim.x + threadIdx.x;
  if (i >= n / kWidth) return;
  using Wide = Vector<T, kWidth>;
  const Images<T> row = images.at(sample * n);
  const Wide a = reinterpret_cast<const Wide*>(row.x_adv)[i], p = reinterpret_cast<const Wide*>(row.x_old)[i];
  const auto g = reinterpret_cast<const Vector<G, kWidth>*>(grad + sample * n)[i];
  const Wide c = reinterpret_cast<const Wide*>(row.x)[i];
  const T step_size = sizes.step_size[sample], eps = sizes.eps[sample];
  const Momentum<T> mix(sizes.momentum[sample]);
  Wide o;
#pragma unroll
  for (int j = 0; j < kWidth; ++j)
    o.v[j] = apgd_step_linf(a.v[j], p.v[j], static_cast<T>(g.v[j]), c.v[j], step_size, eps, mix, bounds);
  reinterpret_cast<Wide*>(row.out)[i] = o;
}

// Samples that registers do not hold. One block per sample, one block per multiprocessor asked for: with more, ptxas
// spills around float64 divisions. Each pass reads the sample again.
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

// Threads of a block that holds a sample: with more, l1 spills.
constexpr int kHeldL2 = 1024, kHeldL1 = 768, kHeldWidth = 4;

// A thread's vector of a sample, of those that registers hold: `here` where the thread has one, else zeros, which stay
// where they are and count for nothing.
template <typename T, typename G>
struct Part {
  Vector<T, kHeldWidth> a{}, p{}, c{};
  Vector<T, kHeldWidth> g{};  // without nan
  bool here;

  __device__ Part(const Images<T>& row, const G* grad, int n) : here(int(threadIdx.x) < n / kHeldWidth) {
    if (!here) return;
    using Wide = const Vector<T, kHeldWidth>*;
    const auto along = reinterpret_cast<const Vector<G, kHeldWidth>*>(grad)[threadIdx.x];
    a = reinterpret_cast<Wide>(row.x_adv)[threadIdx.x];
    p = reinterpret_cast<Wide>(row.x_old)[threadIdx.x];
    c = reinterpret_cast<Wide>(row.x)[threadIdx.x];
#pragma unroll
    for (int j = 0; j < kHeldWidth; ++j) g.v[j] = zero_nan(static_cast<T>(along.v[j]));
  }

  template <typename Entry>
  __device__ void write(const Images<T>& row, Entry entry) const {
    Vector<T, kHeldWidth> o;
#pragma unroll
    for (int j = 0; j < kHeldWidth; ++j) o.v[j] = entry(j);
    if (here) reinterpret_cast<Vector<T, kHeldWidth>*>(row.out)[threadIdx.x] = o;
  }
};

// l2, read once and written once.
template <typename T, typename G>
__global__ void __launch_bounds__(kHeldL2, 1)
    held_l2(Images<T> images, const G* __restrict__ grad, int n, Sizes<T> sizes, Bounds<T> bounds) {
  __shared__ SumSlots slots;
  SampleSums<false> sums{&slots};
  const int64_t sample = blockIdx.x;
  const Images<T> row = images.at(sample * n);
  const Part<T, G> part(row, grad + sample * n, n);
  const double eps = sizes.eps[sample];
  const Momentum<T> mix(sizes.momentum[sample]);
  const auto length = [&](const Vector<T, kHeldWidth>& entries) {
    double total = 0;
#pragma unroll
    for (int j = 0; j < kHeldWidth; ++j) total += double(entries.v[j]) * double(entries.v[j]);
    return sqrt(sums.of(total, Add()));
  };
  const double size = length(part.g);
  // A zero or infinite gradient has no direction.
  const double scale = size > 0 && size < double(INFINITY) ? sizes.step_size[sample] / (size + kApgdTiny) : 0.0;
  Vector<T, kHeldWidth> delta;
#pragma unroll
  for (int j = 0; j < kHeldWidth; ++j)
    delta.v[j] =
        scale == 0 ? part.a.v[j] - part.c.v[j] : apgd_stepped_delta(part.a.v[j], part.g.v[j], part.c.v[j], scale);
  const Projection<Norm::l2> first = apgd_ball(length(delta), eps);
#pragma unroll
  for (int j = 0; j < kHeldWidth; ++j)
    if (part.here) delta.v[j] = apgd_mixed_delta(part.a.v[j], part.p.v[j], part.c.v[j], delta.v[j], first, mix, bounds);
  const Projection<Norm::l2> second = apgd_ball(length(delta), eps);
  part.write(row, [&](int j) { return clamp(part.c.v[j] + second(delta.v[j]), bounds.lo, bounds.hi); });
}

// l1, read once and written once.
template <typename T, typename G>
__global__ void __launch_bounds__(kHeldL1, 1)
    held_l1(Images<T> images, const G* __restrict__ grad, int n, Sizes<T> sizes, Bounds<T> bounds) {
  __shared__ SumSlots slots;
  __shared__ Histogram histogram;
  SampleSums<false> sums{&slots};
  const int64_t sample = blockIdx.x;
  const Images<T> row = images.at(sample * n);
  const Part<T, G> part(row, grad + sample * n, n);
  const auto each_size = [&](auto visit) {
    if (part.here)
      for (int j = 0; j < kHeldWidth; ++j) visit(__float_as_uint(absolute(part.g.v[j])));
  };
  const int64_t entries = apgd_entries(static_cast<float>(sizes.sparsity[sample]), n);
  const T threshold = __uint_as_float(kth_largest_size<false>(entries, each_size, histogram));
  double largest = 0, chosen = 0;
#pragma unroll
  for (int j = 0; j < kHeldWidth; ++j) {
    const T size = absolute(part.g.v[j]);
    largest = Max()(largest, double(size));
    chosen += size >= threshold && part.g.v[j] != T(0);
  }
  largest = sums.of(largest, Max());
  chosen = sums.of(chosen, Add());
  // A zero or infinite gradient has no direction.
  const double scale = largest > 0 && largest < double(INFINITY) ? sizes.step_size[sample] / chosen : 0.0;

  Vector<T, kHeldWidth> point;
  L1Entry<T> entry[kHeldWidth];
  double farthest = 0;
#pragma unroll
  for (int j = 0; j < kHeldWidth; ++j) {
    point.v[j] = apgd_sparse(part.a.v[j], part.g.v[j], threshold, scale);
    entry[j] = part.here ? l1_entry(point.v[j], part.c.v[j], bounds) : L1Entry<T>{T(0), T(1)};
    farthest = Max()(double(entry[j].size), farthest);
  }
  farthest = sums.of(farthest, Max());
  const auto parts = [&](double tau) {
    double total[3] = {0, 0, 0};
#pragma unroll
    for (int j = 0; j < kHeldWidth; ++j) {
      const L1Parts one = l1_parts(entry[j], tau);
      total[0] += one.moving;
      total[1] += one.count;
      total[2] += one.at_wall;
    }
    sums.over(total, Add());
    return L1Parts{total[0], total[1], total[2]};
  };
  // Every thread sees the same sums, and goes the same way.
  const double tau = l1_threshold(double(sizes.eps[sample]), farthest, parts);
  part.write(row, [&](int j) { return l1_project(point.v[j], part.c.v[j], tau, bounds); });
}

template <typename T, typename G>
void launch(const Tensor& x_adv, const Tensor& x_old, const Tensor& grad, const Tensor& x, const Sizes<T>& sizes,
            Norm norm, Bounds<T> bounds, Tensor& out) {
  const Images<T> images{static_cast<const T*>(x_adv.const_data_ptr()), static_cast<const T*>(x_old.const_data_ptr()),
                         static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr())};
  const auto* g = static_cast<const G*>(grad.const_data_ptr());
  const auto stream = current_stream(out.get_device_index());
  const int64_t batch = out.dim() ? out.size(0) : 1, n = out.numel() / batch;
  constexpr int kWidth = 4;
  const bool vectors = aligned<T, kWidth>(images.x_adv) && aligned<T, kWidth>(images.x_old) && aligned<G, kWidth>(g) &&
                       aligned<T, kWidth>(images.x) && aligned<T, kWidth>(images.out);
  if (norm == Norm::linf) {
    const bool alike = sizes.step_size.stride == 0 && sizes.eps.stride == 0 && sizes.momentum.stride == 0;
    const int64_t samples = alike ? 1 : batch, size = alike ? batch * n : n;
    const auto run = [&](auto kernel, int64_t width) {
      const int64_t count = size / width, threads = std::min<int64_t>(256, (count + 31) / 32 * 32);
      const int64_t across = (count + threads - 1) / threads;
      kernel<<<unsigned(samples * across), unsigned(threads), 0, stream>>>(images, g, size, unsigned(across), sizes,
                                                                           bounds);
    };
    if (vectors && size % kWidth == 0)
      run(step_linf<T, G, kWidth>, kWidth);
    else
      run(step_linf<T, G, 1>, 1);
  } else {
    if constexpr (sizeof(T) == 4) {
      if (vectors && n % kHeldWidth == 0 && n <= kHeldWidth * (norm == Norm::l2 ? kHeldL2 : kHeldL1)) {
        const auto kernel = norm == Norm::l2 ? held_l2<T, G> : held_l1<T, G>;
        const int threads = int((n / kHeldWidth + 31) / 32 * 32);
        kernel<<<unsigned(batch), threads, 0, stream>>>(images, g, int(n), sizes, bounds);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        return;
      }
    }
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
      if constexpr (sizeof(G) <= sizeof(T))  // the page refuses float64 gradients of float32 images
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
