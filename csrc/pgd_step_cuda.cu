#include "pgd_step.h"

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

// A step size or radius: a number read on the host, or device memory holding one or one per sample.
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

template <typename T, typename G, int kWidth>
__global__ void __launch_bounds__(256)
    step_linf(const T* x_adv, const G* __restrict__ g, const T* __restrict__ x, T* out, int64_t vectors, int64_t n,
              PerSample<T> step_size, PerSample<T> eps, Bounds<T> bounds) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= vectors) return;
  const auto a = reinterpret_cast<const Vector<T, kWidth>*>(x_adv)[i];
  const auto d = reinterpret_cast<const Vector<G, kWidth>*>(g)[i];
  const auto c = reinterpret_cast<const Vector<T, kWidth>*>(x)[i];
  const int64_t sample = i * kWidth / n;  // a vector never spans two samples: n % kWidth == 0
  const T s = step_size[sample], e = eps[sample];
  Vector<T, kWidth> o;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) o.v[j] = pgd_step_linf(a.v[j], static_cast<T>(d.v[j]), c.v[j], s, e, bounds);
  reinterpret_cast<Vector<T, kWidth>*>(out)[i] = o;
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

// One block per sample, one block per multiprocessor asked for: with more, ptxas spills around float64 divisions.
// Each pass reads the sample again; at CIFAR size it stays in the L1 cache.
template <Norm norm, Step step, typename T, typename G>
__global__ void __launch_bounds__(256, 1)
    step_sample(const T* x_adv, const G* __restrict__ grad, const T* __restrict__ x, T* out, int64_t n,
                PerSample<T> step_size, PerSample<T> eps, int64_t k, Bounds<T> bounds) {
  __shared__ double sums[33];
  __shared__ int counts[33];
  const int64_t sample = blockIdx.x;
  const T radius = eps[sample];
  x_adv += sample * n;
  grad += sample * n;
  x += sample * n;
  out += sample * n;
  const auto each = [&](auto term) {
    double total = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) total += term(i);
    return block_reduce(total, Add(), 0.0, sums);
  };
  const auto gradient = [&](int64_t i) { return zero_nan(static_cast<T>(grad[i])); };

  Move<step, T> move{step_size[sample], 0, 0};
  if constexpr (step != Step::sign) {
    double size = 0;
    if constexpr (step == Step::topq || norm == Norm::linf) {
      for (int64_t i = threadIdx.x; i < n; i += blockDim.x) size = Max()(size, double(absolute(gradient(i))));
      size = block_reduce(size, Max(), 0.0, sums);
    } else if constexpr (norm == Norm::l2) {
      size = sqrt(each([&](int64_t i) { return double(gradient(i)) * double(gradient(i)); }));
    } else {
      size = each([&](int64_t i) { return double(absolute(gradient(i))); });
    }
    // A zero or infinite gradient has no direction: the sample stays where it is.
    if (size > 0 && size < double(INFINITY)) {
      if constexpr (step == Step::topq) {
        const T t = move.threshold = kth_largest<T>(grad, n, k, counts);
        size = each([&](int64_t i) { return absolute(gradient(i)) >= t && gradient(i) != T(0) ? 1.0 : 0.0; });
      }
      move.scale = move.step_size / size;
    }
  }

  const auto delta = [&](int64_t i) { return move.delta(x_adv[i], static_cast<T>(grad[i]), x[i]); };
  if constexpr (norm == Norm::linf) {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
      out[i] = clamp(x[i] + clamp(delta(i), -radius, radius), bounds.lo, bounds.hi);
    return;
  }
  const double size = norm == Norm::l2 ? sqrt(each([&](int64_t i) { return double(delta(i)) * double(delta(i)); }))
                                       : each([&](int64_t i) { return double(absolute(delta(i))); });
  Projection<norm> project{!(size > double(radius)), 0};
  if (!project.inside && norm == Norm::l2) project.shrink = double(radius) / size;
  if (!project.inside && norm == Norm::l1) {
    // Michelot's fixed point: the support only shrinks, so it ends exactly.
    double tau = (size - double(radius)) / n;
    for (double count = n, last = n + 1; count < last;) {
      last = count;
      const double inside = each([&](int64_t i) {
        const double v = absolute(delta(i));
        return v > tau ? v : 0.0;
      });
      count = each([&](int64_t i) { return double(absolute(delta(i))) > tau ? 1.0 : 0.0; });
      if (count == 0) break;
      tau = (inside - double(radius)) / count;
    }
    project.shrink = tau;
  }
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) out[i] = clamp(x[i] + project(delta(i)), bounds.lo, bounds.hi);
}

template <typename T, typename G>
void launch(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const Tensor& step_size, const Tensor& eps,
            Norm norm, Step step, int64_t k, Bounds<T> bounds, Tensor& out) {
  const auto* a = static_cast<const T*>(x_adv.const_data_ptr());
  const auto* g = static_cast<const G*>(grad.const_data_ptr());
  const auto* c = static_cast<const T*>(x.const_data_ptr());
  auto* o = static_cast<T*>(out.mutable_data_ptr());
  const PerSample<T> steps(step_size), radii(eps);
  const auto stream = current_stream(out.get_device_index());
  const int64_t batch = out.dim() ? out.size(0) : 1, total = out.numel(), n = total / batch;
  if (norm == Norm::linf && step == Step::sign) {
    constexpr int kThreads = 256, kWidth = 4;
    const auto blocks = [](int64_t count) { return unsigned((count + kThreads - 1) / kThreads); };
    if (n % kWidth == 0 && aligned<T, kWidth>(a) && aligned<G, kWidth>(g) && aligned<T, kWidth>(c) &&
        aligned<T, kWidth>(o))
      step_linf<T, G, kWidth>
          <<<blocks(total / kWidth), kThreads, 0, stream>>>(a, g, c, o, total / kWidth, n, steps, radii, bounds);
    else
      step_linf<T, G, 1><<<blocks(total), kThreads, 0, stream>>>(a, g, c, o, total, n, steps, radii, bounds);
  } else {
    const int threads = int(std::min<int64_t>(256, (n + 31) / 32 * 32));
    const auto kernel =
        norm == Norm::linf ? step_sample<Norm::linf, Step::grad, T, G>
        : norm == Norm::l2
            ? (step == Step::sign ? step_sample<Norm::l2, Step::sign, T, G> : step_sample<Norm::l2, Step::grad, T, G>)
        : step == Step::sign ? step_sample<Norm::l1, Step::sign, T, G>
        : step == Step::grad ? step_sample<Norm::l1, Step::grad, T, G>
                             : step_sample<Norm::l1, Step::topq, T, G>;
    kernel<<<unsigned(batch), threads, 0, stream>>>(a, g, c, o, n, steps, radii, k, bounds);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void pgd_step_cuda(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const Tensor& step_size, const Tensor& eps,
                   int64_t norm, int64_t step, int64_t k, double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  write_dense(out, [&](Tensor& dense) {
    const Tensor a = in_layout_of(x_adv, dense), g = in_layout_of(grad, dense), c = in_layout_of(x, dense);
    const Tensor steps = torch::stable::contiguous(step_size), radii = torch::stable::contiguous(eps);
    const auto typed = [&](auto image, auto gradient) {
      using T = decltype(image);
      using G = decltype(gradient);
      launch<T, G>(a, g, c, steps, radii, static_cast<Norm>(norm), static_cast<Step>(step), k,
                   {static_cast<T>(lo), static_cast<T>(hi)}, dense);
    };
    // THO_DISPATCH_V2 leaks commas outside parentheses, so its body is a single call. A gradient that was laid out anew
    // has the dtype of the images.
    THO_DISPATCH_V2(x.scalar_type(), "pgd_step", AT_WRAP([&] {
                      using image_t = scalar_t;
                      THO_DISPATCH_V2(g.scalar_type(), "pgd_step", AT_WRAP([&] { typed(image_t(), scalar_t()); }),
                                      AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) { m.impl("pgd_step", TORCH_BOX(&robustfast::pgd_step_cuda)); }
