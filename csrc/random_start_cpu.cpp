#include "random_start.h"

#include <algorithm>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "box.h"
#include "cpu.h"
#include "layout.h"
#include "philox_cpu.h"

namespace robustfast {
namespace {

// out = clamp(x + value(e - begin)) for the elements begin <= e < end, in logical order.
template <typename T, typename Value>
inline void add(const T* x, T* out, Planes planes, int64_t begin, int64_t end, Bounds<T> bounds, const Value& value) {
  if (planes.count == 1) {
    for (int64_t i = 0; i < end - begin; ++i) out[begin + i] = clamp(x[begin + i] + value(i), bounds.lo, bounds.hi);
    return;
  }
  for (int64_t e = begin; e < end;) {
    const int64_t stop = std::min(end, (e / planes.size + 1) * planes.size);
    for (int64_t at = planes.offset(static_cast<uint32_t>(e)); e < stop; ++e, at += planes.count)
      out[at] = clamp(x[at] + value(e - begin), bounds.lo, bounds.hi);
  }
}

template <typename T>
ROBUSTFAST_CLONES void start_pixel(const T* x, T* out, int64_t n, Planes planes, Stream stream, T eps,
                                   Bounds<T> bounds) {
  for (int64_t begin = 0; begin < n; begin += kTile) {
    uint32_t words[4][kWide];
    T values[kTile];
    stream.draw(static_cast<uint32_t>(Purpose::pixel), begin / 4, words);
    for (int j = 0; j < kWide; ++j)
      for (int k = 0; k < 4; ++k) values[4 * j + k] = unit_pixel<T>(words[k][j]) * eps;
    add(x, out, planes, begin, std::min(n, begin + kTile), bounds, [&](int64_t i) { return values[i]; });
  }
}

// Fills `draws`, whose size is n rounded up to whole tiles, with zeros from n on, and returns the sum of |draws|^p.
template <Law law>
ROBUSTFAST_CLONES double directions(Stream stream, int64_t n, double* draws) {
  for (int64_t begin = 0; begin < n; begin += kTile) {
    uint32_t words[4][kWide];
    double* const tile = draws + begin;
    stream.draw(static_cast<uint32_t>(Purpose::direction), begin / 4, words);
    if constexpr (law == Law::l2) {
      for (int k = 0; k < 4; k += 2) {
        // Three loops: GCC cannot vectorise one with a square root, which may set errno.
        double radius[kWide];
        for (int j = 0; j < kWide; ++j) radius[j] = squared_radius(words[k][j]);
        for (int j = 0; j < kWide; ++j) radius[j] = sqrt(radius[j]);
        for (int j = 0; j < kWide; ++j) {
          double cosine, sine;
          unit_circle(words[k + 1][j], cosine, sine);
          tile[4 * j + k] = radius[j] * cosine;
          tile[4 * j + k + 1] = radius[j] * sine;
        }
      }
    } else {
      for (int k = 0; k < 4; ++k)
        for (int j = 0; j < kWide; ++j) tile[4 * j + k] = laplace(words[k][j]);
    }
  }
  std::fill(draws + n, draws + (n + kTile - 1) / kTile * kTile, 0.0);
  double lanes[kLanes] = {};
  for (int64_t i = 0; i < n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += law == Law::l2 ? draws[i + j] * draws[i + j] : std::fabs(draws[i + j]);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

template <typename T>
ROBUSTFAST_CLONES void add_scaled(const T* x, T* out, int64_t n, Planes planes, const double* draws, double scale,
                                  Bounds<T> bounds) {
  add(x, out, planes, 0, n, bounds, [=](int64_t i) { return static_cast<T>(draws[i] * scale); });
}

template <typename T>
void run(const Tensor& x, const Tensor& eps, Law law, int64_t seed, const int64_t* index, Bounds<T> bounds,
         Planes planes, Tensor& out) {
  const auto* images = static_cast<const T*>(x.const_data_ptr());
  const auto* radii = static_cast<const T*>(eps.const_data_ptr());
  auto* starts = static_cast<T*>(out.mutable_data_ptr());
  const int64_t n = out.numel() / out.size(0), radius_stride = eps.dim();
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    std::vector<double> draws(law == Law::pixel ? 0 : (n + kTile - 1) / kTile * kTile);
    for (int64_t i = begin; i < end; ++i) {
      const Stream stream{PhiloxKey(seed), static_cast<uint64_t>(index ? index[i] : i)};
      const T radius = radii[i * radius_stride];
      if (law == Law::pixel) {
        start_pixel(images + i * n, starts + i * n, n, planes, stream, radius, bounds);
        continue;
      }
      const double sum = (law == Law::l2 ? directions<Law::l2> : directions<Law::l1>)(stream, n, draws.data());
      const Words extra = philox4x32(0, static_cast<uint32_t>(Purpose::radius), static_cast<uint32_t>(stream.index),
                                     static_cast<uint32_t>(stream.index >> 32), stream.key);
      add_scaled(images + i * n, starts + i * n, n, planes, draws.data(), ball_scale(law, radius, sum, extra.v[0]),
                 bounds);
    }
  });
}

void random_start_cpu(const Tensor& x, const Tensor& eps, int64_t law, int64_t seed, const std::optional<Tensor>& index,
                      double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  const auto start = [&](Tensor& dense) {
    const Tensor images = in_layout_of(x, dense), radii = torch::stable::contiguous(eps);
    const Tensor indices = index ? torch::stable::contiguous(*index) : x;
    const auto* numbers = index ? static_cast<const int64_t*>(indices.const_data_ptr()) : nullptr;
    const Planes planes = planes_of(dense);
    THO_DISPATCH_V2(x.scalar_type(), "random_start", AT_WRAP([&] {
                      run<scalar_t>(images, radii, static_cast<Law>(law), seed, numbers,
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

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("random_start", TORCH_BOX(&robustfast::random_start_cpu)); }
