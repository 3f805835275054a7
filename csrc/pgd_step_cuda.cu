#include "pgd_step.h"

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

constexpr int kMostThreads = 512;  // of step_linf and step_shared

// Each thread has kVectors vectors of kWidth values, all in flight before the first is used. A sample is the work of
// `across` blocks, so that no thread divides; sizes that are one for all make one sample of the whole batch.
template <typename T, typename G, int kWidth, int kVectors>
__global__ void __launch_bounds__(kMostThreads)
    step_linf(const T* x_adv, const G* __restrict__ grad, const T* __restrict__ x, T* out, int64_t n, unsigned across,
              PerSample<T> step_size, PerSample<T> eps, Bounds<T> bounds) {
  using Image = Vector<T, kWidth>;
  using Gradient = Vector<G, kWidth>;
  const unsigned sample = blockIdx.x / across;
  const int64_t start = sample * n, vectors = n / kWidth;
  const auto* from = reinterpret_cast<const Image*>(x_adv + start);
  const auto* along = reinterpret_cast<const Gradient*>(grad + start);
  const auto* around = reinterpret_cast<const Image*>(x + start);
  auto* to = reinterpret_cast<Image*>(out + start);
  const T s = step_size[sample], e = eps[sample];
  const int64_t first = int64_t(blockIdx.x - sample * across) * kVectors * blockDim.x + threadIdx.x;
  Image a[kVectors], c[kVectors];
  Gradient g[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * blockDim.x;
    if (i < vectors) {
      a[v] = from[i];
      g[v] = along[i];
      c[v] = around[i];
    }
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * blockDim.x;
    if (i >= vectors) break;
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      a[v].v[j] = pgd_step_linf(a[v].v[j], static_cast<T>(g[v].v[j]), c[v].v[j], s, e, bounds);
    to[i] = a[v];
  }
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

// What neither registers nor shared memory hold: float64, sizes that no vectors fill, large l1. One block per sample,
// one block per multiprocessor asked for: with more, ptxas spills around float64 divisions. Each pass reads the sample
// again.
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

constexpr int kWidth = 4;  // of vectors of a sample that is held

// A thread's part of a sample in registers: kVectors vectors, those of all threads side by side.
template <typename T, typename G, int kVectors>
struct Registers {
  Vector<T, kWidth> a[kVectors], c[kVectors];  // x_adv, which `move` makes the delta, and x
  Vector<G, kWidth> g[kVectors];
  int vectors;

  __device__ Registers(const T* x_adv, const G* grad, const T* x, int n) : vectors(n / kWidth) {
    each([&](int v, int i) {
      g[v] = reinterpret_cast<const Vector<G, kWidth>*>(grad)[i];
      a[v] = reinterpret_cast<const Vector<T, kWidth>*>(x_adv)[i];
      c[v] = reinterpret_cast<const Vector<T, kWidth>*>(x)[i];
    });
  }

  template <typename Visit>
  __device__ void each(Visit visit) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = threadIdx.x + v * blockDim.x;
      if (i < vectors) visit(v, i);
    }
  }

  template <typename Visit>
  __device__ void gradients(Visit visit) const {
    each([&](int v, int) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) visit(static_cast<T>(g[v].v[j]));
    });
  }

  template <typename Delta>
  __device__ void move(Delta delta) {
    each([&](int v, int) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) a[v].v[j] = delta(a[v].v[j], static_cast<T>(g[v].v[j]), c[v].v[j]);
    });
  }

  template <typename Visit>
  __device__ void deltas(Visit visit) const {
    each([&](int v, int) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) visit(a[v].v[j]);
    });
  }

  template <typename Point>
  __device__ void write(T* out, Point point) const {
    each([&](int v, int i) {
      Vector<T, kWidth> o;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) o.v[j] = point(a[v].v[j], c[v].v[j]);
      reinterpret_cast<Vector<T, kWidth>*>(out)[i] = o;
    });
  }
};

// A block's part of a sample in shared memory, copied there past the registers: the whole of it is in flight at once,
// the gradient first, since its length is what the first sum waits for.
template <typename T, typename G>
struct Shared {
  Vector<T, kWidth>*a, *c;
  Vector<G, kWidth>* g;
  int vectors;

  __device__ Shared(unsigned char* held, int64_t chunk, const T* x_adv, const G* grad, const T* x, int n)
      : a(reinterpret_cast<Vector<T, kWidth>*>(held)),
        c(a + chunk / kWidth),
        g(reinterpret_cast<Vector<G, kWidth>*>(c + chunk / kWidth)),
        vectors(n / kWidth) {
    copy(g, grad, n);
    __pipeline_commit();
    copy(a, x_adv, n);
    copy(c, x, n);
    __pipeline_commit();
  }

  template <typename V>
  __device__ static void copy(void* to, const V* from, int n) {
    constexpr int kBytes = 16, kValues = kBytes / sizeof(V);
    for (int i = threadIdx.x; i < n / kValues; i += blockDim.x)
      __pipeline_memcpy_async(static_cast<char*>(to) + i * kBytes, from + i * kValues, kBytes);
  }

  // Waits for the copies of the gradient or of all: other threads made some of those that this one reads.
  template <int kLeft>
  __device__ static void wait() {
    __pipeline_wait_prior(kLeft);
    __syncthreads();
  }

  template <typename Visit>
  __device__ void gradients(Visit visit) const {
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      const auto part = g[i];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) visit(static_cast<T>(part.v[j]));
    }
  }

  template <typename Delta>
  __device__ void move(Delta delta) {
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      auto d = a[i];
      const auto along = g[i];
      const auto around = c[i];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) d.v[j] = delta(d.v[j], static_cast<T>(along.v[j]), around.v[j]);
      a[i] = d;
    }
  }

  template <typename Visit>
  __device__ void deltas(Visit visit) const {
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      const auto d = a[i];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) visit(d.v[j]);
    }
  }

  template <typename Point>
  __device__ void write(T* out, Point point) const {
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      auto d = a[i];
      const auto around = c[i];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) d.v[j] = point(d.v[j], around.v[j]);
      reinterpret_cast<Vector<T, kWidth>*>(out)[i] = d;
    }
  }
};

template <Norm norm, typename T>
__device__ double measure(T v) {
  return norm == Norm::l2 ? double(v) * double(v) : double(absolute(v));
}

// How the sample that `part` has a part of moves. Reads gradients only.
template <Norm norm, Step step, bool kCluster, typename T, typename Part>
__device__ Move<step, T> direction(const Part& part, SampleSums<kCluster>& sums, Histogram* histogram, T step_size,
                                   int64_t k) {
  Move<step, T> move{step_size, 0, 0};
  if constexpr (step == Step::grad) {
    double total = 0;
    part.gradients([&](T g) { total += measure<norm>(zero_nan(g)); });
    const double size = norm == Norm::l2 ? sqrt(sums.of(total, Add())) : sums.of(total, Add());
    // A zero or infinite gradient has no direction: the sample stays where it is.
    if (size > 0 && size < double(INFINITY)) move.scale = move.step_size / size;
  } else if constexpr (step == Step::topq) {
    double largest = 0;
    part.gradients([&](T g) { largest = Max()(largest, double(absolute(zero_nan(g)))); });
    largest = sums.of(largest, Max());
    if (largest > 0 && largest < double(INFINITY)) {
      const auto sizes = [&](auto visit) {
        part.gradients([&](T g) { visit(__float_as_uint(absolute(zero_nan(g)))); });
      };
      const T threshold = __uint_as_float(kth_largest_size<kCluster>(k, sizes, *histogram));
      double chosen = 0;
      part.gradients([&](T g) { chosen += absolute(zero_nan(g)) >= threshold && zero_nan(g) != T(0); });
      move.threshold = threshold;
      move.scale = move.step_size / sums.of(chosen, Add());
    }
  }
  return move;
}

// Moves, projects and writes the part.
template <Norm norm, Step step, bool kCluster, typename T, typename Part>
__device__ void finish(Part& part, SampleSums<kCluster>& sums, const Move<step, T>& move, T eps, int64_t n,
                       Bounds<T> bounds, T* out) {
  double total = 0;
  part.move([&](T a, T g, T c) {
    const T delta = move.delta(a, g, c);
    total += measure<norm>(delta);
    return delta;
  });
  const double radius = eps, size = norm == Norm::l2 ? sqrt(sums.of(total, Add())) : sums.of(total, Add());
  Projection<norm> project{!(size > radius), 0};
  if (!project.inside && norm == Norm::l2) project.shrink = radius / size;
  if (!project.inside && norm == Norm::l1) {
    // Michelot's fixed point: the support only shrinks, so it ends exactly.
    double tau = (size - radius) / n;
    for (double count = n, last = n + 1; count < last;) {
      last = count;
      double inside[2] = {0, 0};
      part.deltas([&](T delta) {
        const double v = absolute(delta);
        if (v > tau) {
          inside[0] += v;
          inside[1] += 1;
        }
      });
      sums.over(inside, Add());
      count = inside[1];
      if (count == 0) break;
      tau = (inside[0] - radius) / count;
    }
    project.shrink = tau;
  }
  part.write(out, [&](T delta, T x) { return clamp(x + project(delta), bounds.lo, bounds.hi); });
}

// The most threads that hold kVectors vectors each: with more, two spill for sm_100.
template <int kVectors>
constexpr int kRegisterThreads = kVectors == 1 ? 1024 : 768;

// One block per sample, which it reads once and writes once.
template <Norm norm, Step step, typename T, typename G, int kVectors>
__global__ void __launch_bounds__(kRegisterThreads<kVectors>, 1)
    step_registers(const T* x_adv, const G* __restrict__ grad, const T* __restrict__ x, T* out, int n,
                   PerSample<T> step_size, PerSample<T> eps, int64_t k, Bounds<T> bounds) {
  __shared__ SumSlots slots;
  Histogram* histogram = nullptr;
  if constexpr (step == Step::topq) {
    __shared__ Histogram counts;
    histogram = &counts;
  }
  const int64_t sample = blockIdx.x, start = sample * n;
  Registers<T, G, kVectors> part(x_adv + start, grad + start, x + start, n);
  SampleSums<false> sums{&slots};
  const auto move = direction<norm, step, false, T>(part, sums, histogram, step_size[sample], k);
  finish<norm>(part, sums, move, eps[sample], n, bounds, out + start);
}

// A cluster of blocks per sample, `chunk` values a block, read once and written once.
template <Norm norm, Step step, typename T, typename G>
__global__ void __launch_bounds__(kMostThreads, 2)
    step_shared(const T* x_adv, const G* __restrict__ grad, const T* __restrict__ x, T* out, int64_t n, int64_t chunk,
                PerSample<T> step_size, PerSample<T> eps, int64_t k, Bounds<T> bounds) {
  extern __shared__ __align__(16) unsigned char held[];
  __shared__ SumSlots slots;
  Histogram* histogram = nullptr;
  if constexpr (step == Step::topq) {
    __shared__ Histogram counts;
    histogram = &counts;
  }
  const Cluster cluster;
  const int64_t sample = blockIdx.x / cluster.size(), from = cluster.rank() * chunk, start = sample * n + from;
  const int64_t count = n - from < chunk ? n - from : chunk;
  Shared<T, G> part(held, chunk, x_adv + start, grad + start, x + start, count < 0 ? 0 : int(count));
  SampleSums<true> sums{&slots};
  if constexpr (step != Step::sign) part.template wait<1>();
  const auto move = direction<norm, step, true, T>(part, sums, histogram, step_size[sample], k);
  part.template wait<0>();
  finish<norm>(part, sums, move, eps[sample], n, bounds, out + start);
  cluster.sync();  // others may still be reading the last sum
}

// l2 in two phases, where neither registers nor shared memory hold a sample. First the sums that its step needs, of
// each part [3]: of a sign step |delta|^2; of a gradient step |d|^2, <d, g> and |g|^2 with d = x_adv - x, since |d + s
// g|^2 = |d|^2 + 2 s <d, g> + s^2 |g|^2 needs no second pass when s is known.
template <Step step, typename T, typename G, int kWidth>
__global__ void __launch_bounds__(256)
    sum_parts(const T* __restrict__ x_adv, const G* __restrict__ grad, const T* __restrict__ x,
              double* __restrict__ sums, int64_t n, unsigned parts, int passes, PerSample<T> step_size) {
  __shared__ SumSlots slots;
  const unsigned sample = blockIdx.x / parts;
  const int64_t start = sample * n, vectors = n / kWidth;
  const int64_t first = int64_t(blockIdx.x - sample * parts) * passes * blockDim.x + threadIdx.x;
  const Move<step, T> move{step_size[sample], 0, 0};
  double lengths[2] = {0, 0}, mixed = 0;
#pragma unroll 2
  for (int p = 0; p < passes; ++p) {
    const int64_t i = first + int64_t(p) * blockDim.x;
    if (i >= vectors) break;
    const auto a = reinterpret_cast<const Vector<T, kWidth>*>(x_adv + start)[i];
    const auto g = reinterpret_cast<const Vector<G, kWidth>*>(grad + start)[i];
    const auto c = reinterpret_cast<const Vector<T, kWidth>*>(x + start)[i];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if constexpr (step == Step::sign) {
        lengths[0] += measure<Norm::l2>(move.delta(a.v[j], static_cast<T>(g.v[j]), c.v[j]));
      } else {
        const double d = a.v[j] - c.v[j], along = zero_nan(static_cast<T>(g.v[j]));
        lengths[0] += d * d;
        lengths[1] += along * along;
        mixed += d * along;
      }
    }
  }
  SampleSums<false> total{&slots};
  total.over(lengths, Add());
  if constexpr (step == Step::grad) mixed = total.of(mixed, Add());
  if (threadIdx.x == 0) {
    double* to = sums + 3 * int64_t(blockIdx.x);
    to[0] = lengths[0];
    to[1] = mixed;
    to[2] = lengths[1];
  }
}

// Then each block adds up the sums of its sample, moves, projects and writes. The last samples first: of those a cache
// may still hold the most. x_adv may be `out`.
template <Step step, typename T, typename G, int kWidth>
__global__ void __launch_bounds__(256)
    apply_sums(const T* x_adv, const G* __restrict__ grad, const T* __restrict__ x, T* out,
               const double* __restrict__ sums, int64_t n, unsigned samples, unsigned across, unsigned parts,
               int passes, PerSample<T> step_size, PerSample<T> eps, Bounds<T> bounds) {
  __shared__ SumSlots slots;
  const unsigned back = blockIdx.x / across, sample = samples - 1 - back;
  const int64_t start = sample * n, vectors = n / kWidth;
  const int64_t first = int64_t(blockIdx.x - back * across) * passes * blockDim.x + threadIdx.x;
  double lengths[2] = {0, 0}, mixed = 0;
  for (unsigned part = threadIdx.x; part < parts; part += blockDim.x) {
    const double* from = sums + 3 * (int64_t(sample) * parts + part);
    lengths[0] += from[0];
    mixed += from[1];
    lengths[1] += from[2];
  }
  SampleSums<false> total{&slots};
  total.over(lengths, Add());
  Move<step, T> move{step_size[sample], 0, 0};
  if constexpr (step == Step::grad) {
    mixed = total.of(mixed, Add());
    // A zero or infinite gradient has no direction: the sample stays where it is.
    if (lengths[1] > 0 && lengths[1] < double(INFINITY)) {
      const double size = sqrt(lengths[1]), moved = move.step_size;
      move.scale = moved / size;
      lengths[0] += 2 * move.scale * mixed + moved * moved;
    }
  }
  const double radius = eps[sample], size = sqrt(lengths[0] > 0 ? lengths[0] : 0);
  Projection<Norm::l2> project{!(size > radius), 0};
  if (!project.inside) project.shrink = radius / size;
#pragma unroll 2
  for (int p = 0; p < passes; ++p) {
    const int64_t i = first + int64_t(p) * blockDim.x;
    if (i >= vectors) break;
    auto a = reinterpret_cast<const Vector<T, kWidth>*>(x_adv + start)[i];
    const auto g = reinterpret_cast<const Vector<G, kWidth>*>(grad + start)[i];
    const auto c = reinterpret_cast<const Vector<T, kWidth>*>(x + start)[i];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const T delta = move.delta(a.v[j], static_cast<T>(g.v[j]), c.v[j]);
      a.v[j] = clamp(c.v[j] + project(delta), bounds.lo, bounds.hi);
    }
    reinterpret_cast<Vector<T, kWidth>*>(out + start)[i] = a;
  }
}

template <typename T, typename G>
struct Arguments {
  const T* x_adv;
  const G* grad;
  const T* x;
  T* out;
  int64_t batch, n;
  PerSample<T> step_size, eps;
  int64_t k;
  Bounds<T> bounds;
  cudaStream_t stream;
  const Tensor& like;  // of the device that the tensors are on

  template <int kWidth>
  bool fills() const {
    return n % kWidth == 0 && aligned<T, kWidth>(x_adv) && aligned<G, kWidth>(grad) && aligned<T, kWidth>(x) &&
           aligned<T, kWidth>(out);
  }
};

template <int kWidth, int kVectors, typename T, typename G>
void launch_linf(const Arguments<T, G>& t, int64_t most = 256) {
  const int64_t vectors = (t.n + kWidth - 1) / kWidth, warps = (vectors + 31) / 32;
  const int threads = int(std::min(std::min<int64_t>(most, kMostThreads), 32 * warps));
  const int64_t each = int64_t(kWidth) * kVectors * threads, across = (t.n + each - 1) / each;
  step_linf<T, G, kWidth, kVectors><<<unsigned(t.batch * across), threads, 0, t.stream>>>(
      t.x_adv, t.grad, t.x, t.out, t.n, unsigned(across), t.step_size, t.eps, t.bounds);
}

template <typename T, typename G>
void linf(Arguments<T, G> t) {
  if (t.step_size.stride == 0 && t.eps.stride == 0) {
    t.n *= t.batch;
    t.batch = 1;
  }
  // 16 bytes of the gradient or of the images, whichever has the smaller type.
  constexpr int kWidth = 16 / int(std::min(sizeof(T), sizeof(G)));
  if (!t.template fills<kWidth>()) return launch_linf<1, 1>(t);
  if constexpr (sizeof(T) == 8) {
    launch_linf<kWidth, 1>(t);
  } else {
    // Where blocks are few, more of them hide more than more loads a thread.
    const bool large = t.batch * t.n >= launch_setting("pgd_step_linf_large", 4194304);
    const int64_t threads =
        large ? launch_setting("pgd_step_linf_large_threads", 256) : launch_setting("pgd_step_linf_small_threads", 256);
    const int64_t vectors =
        large ? launch_setting("pgd_step_linf_large_vectors", 2) : launch_setting("pgd_step_linf_small_vectors", 1);
    vectors == 4   ? launch_linf<kWidth, 4>(t, threads)
    : vectors == 2 ? launch_linf<kWidth, 2>(t, threads)
                   : launch_linf<kWidth, 1>(t, threads);
  }
}

// One block per sample that reads it again for each sum.
template <Norm norm, Step step, typename T, typename G>
void reread(const Arguments<T, G>& t) {
  const int threads = int(std::min<int64_t>(256, (t.n + 31) / 32 * 32));
  step_sample<norm, step, T, G><<<unsigned(t.batch), threads, 0, t.stream>>>(t.x_adv, t.grad, t.x, t.out, t.n,
                                                                             t.step_size, t.eps, t.k, t.bounds);
}

// The sums of the parts need memory between the launches: 24 bytes for each 16384 values.
template <int kWidth, Step step, typename T, typename G>
void split(const Arguments<T, G>& t) {
  constexpr int kThreads = 256;
  const int passes = int(launch_setting("pgd_step_split_sum_passes", 16));
  const int written = int(launch_setting("pgd_step_split_write_passes", 4));
  const auto blocks = [&](int64_t each) { return (t.n / kWidth + each * kThreads - 1) / (each * kThreads); };
  const int64_t parts = blocks(passes), across = blocks(written);
  const Tensor buffer = torch::stable::new_empty(t.like, {t.batch * parts * 3}, ScalarType::Double);
  auto* sums = static_cast<double*>(buffer.mutable_data_ptr());
  sum_parts<step, T, G, kWidth><<<unsigned(t.batch * parts), kThreads, 0, t.stream>>>(
      t.x_adv, t.grad, t.x, sums, t.n, unsigned(parts), passes, t.step_size);
  apply_sums<step, T, G, kWidth><<<unsigned(t.batch * across), kThreads, 0, t.stream>>>(
      t.x_adv, t.grad, t.x, t.out, sums, t.n, unsigned(t.batch), unsigned(across), unsigned(parts), written,
      t.step_size, t.eps, t.bounds);
}

template <Norm norm, Step step, typename T, typename G>
void held(const Arguments<T, G>& t) {
  constexpr int64_t kGrain = 16 / int64_t(sizeof(G));
  const auto room = [](int64_t vectors, int64_t threads, int64_t asked) {
    return std::min(asked, vectors * threads * kWidth);
  };
  const int64_t one = room(1, kRegisterThreads<1>, launch_setting("pgd_step_one_vector_elements", 4096));
  const int64_t two = room(2, kRegisterThreads<2>, launch_setting("pgd_step_two_vectors_elements", 6144));
  const auto in_registers = [&](auto kernel, int64_t vectors) {
    const int64_t threads = (t.n + kWidth * vectors - 1) / (kWidth * vectors);
    kernel<<<unsigned(t.batch), unsigned((threads + 31) / 32 * 32), 0, t.stream>>>(
        t.x_adv, t.grad, t.x, t.out, int(t.n), t.step_size, t.eps, t.k, t.bounds);
  };
  if (t.template fills<kWidth>()) {
    if (t.n <= one) return in_registers(step_registers<norm, step, T, G, 1>, 1);
    if (t.n <= two) return in_registers(step_registers<norm, step, T, G, 2>, 2);
  }
  if (t.template fills<int(kGrain)>()) {
    const auto kernel = step_shared<norm, step, T, G>;
    const int threads = int(std::min<int64_t>(launch_setting("pgd_step_held_threads", 512), kMostThreads));
    const Held plan = hold(kernel, t.n, 2 * sizeof(T) + sizeof(G), kGrain, threads,
                           launch_setting("pgd_step_held_blocks", 16), launch_setting("pgd_step_held_bytes", 0));
    if (plan.blocks)
      return launch_held(kernel, plan, t.batch, threads, t.stream, t.x_adv, t.grad, t.x, t.out, t.n, plan.chunk,
                         t.step_size, t.eps, t.k, t.bounds);
  }
  if constexpr (norm == Norm::l2) {
    // Less stays in a cache while a block reads it again.
    if (t.n >= launch_setting("pgd_step_split_elements", 8192))
      return t.template fills<kWidth>() ? split<kWidth, step>(t) : split<1, step>(t);
  }
  reread<norm, step>(t);
}

template <Norm norm, Step step, typename T, typename G>
void by_sample(const Arguments<T, G>& t) {
  if constexpr (norm == Norm::linf || sizeof(T) == 8)
    reread<norm, step>(t);
  else
    held<norm, step>(t);
}

template <typename T, typename G>
void launch(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const Tensor& step_size, const Tensor& eps,
            Norm norm, Step step, int64_t k, Bounds<T> bounds, Tensor& out) {
  const int64_t batch = out.dim() ? out.size(0) : 1;
  const Arguments<T, G> t{static_cast<const T*>(x_adv.const_data_ptr()),
                          static_cast<const G*>(grad.const_data_ptr()),
                          static_cast<const T*>(x.const_data_ptr()),
                          static_cast<T*>(out.mutable_data_ptr()),
                          batch,
                          out.numel() / batch,
                          PerSample<T>(step_size),
                          PerSample<T>(eps),
                          k,
                          bounds,
                          current_stream(out.get_device_index()),
                          out};
  switch (norm) {
    case Norm::linf:
      step == Step::sign ? linf(t) : by_sample<Norm::linf, Step::grad>(t);
      break;
    case Norm::l2:
      step == Step::sign ? by_sample<Norm::l2, Step::sign>(t) : by_sample<Norm::l2, Step::grad>(t);
      break;
    case Norm::l1:
      switch (step) {
        case Step::sign:
          by_sample<Norm::l1, Step::sign>(t);
          break;
        case Step::grad:
          by_sample<Norm::l1, Step::grad>(t);
          break;
        case Step::topq:
          by_sample<Norm::l1, Step::topq>(t);
          break;
      }
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
      if constexpr (sizeof(G) <= sizeof(T))  // the page refuses float64 gradients of float32 images
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
