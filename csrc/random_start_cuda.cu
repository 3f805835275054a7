#include "random_start.h"

#include <algorithm>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "box.h"
#include "cuda.h"
#include "layout.h"

namespace robustfast {
namespace {

constexpr int kThreads = 256;

// What a launch does to each sample. A radius is a number read on the host, or device memory with one or one per
// sample.
template <typename T>
struct Task {
  const T* x;
  T* out;
  uint32_t n;
  Planes planes;
  PhiloxKey key;
  const int64_t* index;
  const T* radii;
  T radius;
  int64_t radius_stride;
  Bounds<T> bounds;

  __device__ T eps(int64_t sample) const { return radii ? radii[sample * radius_stride] : radius; }

  __device__ Words words(int64_t sample, Purpose purpose, uint32_t quad) const {
    const auto number = static_cast<uint64_t>(index ? index[sample] : sample);
    return philox4x32(quad, static_cast<uint32_t>(purpose), static_cast<uint32_t>(number),
                      static_cast<uint32_t>(number >> 32), key);
  }

  __host__ __device__ uint32_t quads() const { return (n + 3) / 4; }

  // No quad spans two planes.
  __device__ bool whole() const { return planes.size % 4 == 0; }

  // The t-th quad to draw: in channels-last memory neighbouring threads write neighbouring channels.
  __device__ uint32_t quad(uint32_t t) const {
    return planes.count > 1 && whole() ? t % planes.count * (planes.size / 4) + t / planes.count : t;
  }

  template <bool kVector>
  __device__ void add(int64_t sample, uint32_t quad, const T (&delta)[4]) const {
    const T* from = x + sample * n;
    T* to = out + sample * n;
    if constexpr (kVector) {
      auto v = reinterpret_cast<const Vector<T, 4>*>(from)[quad];
#pragma unroll
      for (int j = 0; j < 4; ++j) v.v[j] = clamp(v.v[j] + delta[j], bounds.lo, bounds.hi);
      reinterpret_cast<Vector<T, 4>*>(to)[quad] = v;
    } else {
      const uint32_t first = planes.offset(4 * quad);
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        if (4 * quad + j >= n) break;
        const uint32_t at = whole() ? first + j * planes.count : planes.offset(4 * quad + j);
        to[at] = clamp(from[at] + delta[j], bounds.lo, bounds.hi);
      }
    }
  }
};

// A block is a few samples by as many of their quads as fit; `across` blocks take the quads of a sample.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads) start_pixel(Task<T> task, int64_t batch, uint32_t across) {
  const uint32_t t = blockIdx.x % across * blockDim.x + threadIdx.x;
  const int64_t i = int64_t(blockIdx.x / across) * blockDim.y + threadIdx.y;
  if (t >= task.quads() || i >= batch) return;
  const uint32_t quad = task.quad(t);
  const Words words = task.words(i, Purpose::pixel, quad);
  const T eps = task.eps(i);
  T delta[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) delta[j] = unit_pixel<T>(words.v[j]) * eps;
  task.template add<kVector>(i, quad, delta);
}

template <Law law>
__device__ void direction(const Words& words, double (&g)[4]) {
  if constexpr (law == Law::l2) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const double radius = sqrt(squared_radius(words.v[j]));
      unit_circle(words.v[j + 1], g[j], g[j + 1]);
      g[j] *= radius;
      g[j + 1] *= radius;
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) g[j] = laplace(words.v[j]);
  }
}

// At least four blocks a multiprocessor: aiming at more, ptxas spills for sm_100.
// One block per sample, which draws its directions twice: for their length, then scaled. At CIFAR size that is three
// quads a thread each time, and cheaper than a pass through memory.
template <Law law, typename T, bool kVector>
__global__ void __launch_bounds__(kThreads, 4) start_ball(Task<T> task) {
  __shared__ double sums[33];
  const int64_t i = blockIdx.x;
  double sum = 0, g[4];
  for (uint32_t quad = threadIdx.x; quad < task.quads(); quad += blockDim.x) {
    direction<law>(task.words(i, Purpose::direction, quad), g);
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
      if (4 * quad + j < task.n) sum += law == Law::l2 ? g[j] * g[j] : fabs(g[j]);
  }
  sum = block_reduce(sum, Add(), 0.0, sums);
  const double scale = ball_scale(law, task.eps(i), sum, task.words(i, Purpose::radius, 0).v[0]);
  for (uint32_t t = threadIdx.x; t < task.quads(); t += blockDim.x) {
    const uint32_t quad = task.quad(t);
    direction<law>(task.words(i, Purpose::direction, quad), g);
    T delta[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) delta[j] = static_cast<T>(g[j] * scale);
    task.template add<kVector>(i, quad, delta);
  }
}

template <typename T>
void launch(const Tensor& x, const Tensor& eps, Law law, int64_t seed, const int64_t* index, Bounds<T> bounds,
            Planes planes, Tensor& out) {
  const int64_t batch = out.size(0);
  const auto* radii = static_cast<const T*>(eps.const_data_ptr());
  const bool host = eps.is_cpu();
  const Task<T> task{static_cast<const T*>(x.const_data_ptr()),
                     static_cast<T*>(out.mutable_data_ptr()),
                     static_cast<uint32_t>(out.numel() / batch),
                     planes,
                     PhiloxKey(seed),
                     index,
                     host ? nullptr : radii,
                     host ? *radii : T(0),
                     eps.dim(),
                     bounds};
  const auto stream = current_stream(out.get_device_index());
  const bool vectors = planes.count == 1 && task.n % 4 == 0 && aligned<T, 4>(task.x) && aligned<T, 4>(task.out);
  if (law == Law::pixel) {
    unsigned width = 1;
    while (width < task.quads() && width < kThreads) width *= 2;
    const dim3 block(width, kThreads / width);
    const uint32_t across = (task.quads() + width - 1) / width;
    const auto blocks = unsigned(across * ((batch + block.y - 1) / block.y));
    (vectors ? start_pixel<T, true> : start_pixel<T, false>)<<<blocks, block, 0, stream>>>(task, batch, across);
  } else {
    const auto kernel = law == Law::l2 ? (vectors ? start_ball<Law::l2, T, true> : start_ball<Law::l2, T, false>)
                                       : (vectors ? start_ball<Law::l1, T, true> : start_ball<Law::l1, T, false>);
    const auto threads = std::min<uint32_t>(kThreads, (task.quads() + 31) / 32 * 32);
    kernel<<<unsigned(batch), threads, 0, stream>>>(task);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void random_start_cuda(const Tensor& x, const Tensor& eps, int64_t law, int64_t seed,
                       const std::optional<Tensor>& index, double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  const auto start = [&](Tensor& dense) {
    const Tensor images = in_layout_of(x, dense), radii = torch::stable::contiguous(eps);
    const Tensor indices = index ? torch::stable::contiguous(*index) : x;
    const auto* numbers = index ? static_cast<const int64_t*>(indices.const_data_ptr()) : nullptr;
    const Planes planes = planes_of(dense);
    THO_DISPATCH_V2(x.scalar_type(), "random_start", AT_WRAP([&] {
                      launch<scalar_t>(images, radii, static_cast<Law>(law), seed, numbers,
                                       {static_cast<scalar_t>(lo), static_cast<scalar_t>(hi)}, planes, dense);
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  };
  if (planes_of(out).count) return start(out);
  Tensor buffer = torch::stable::contiguous(out);
  start(buffer);
  torch::stable::copy_(out, buffer);
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) { m.impl("random_start", TORCH_BOX(&robustfast::random_start_cuda)); }
