#include "reparameterise.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cpu.h"
#include "philox_cpu.h"

namespace robustfast {
namespace {

using torch::stable::Tensor;

// The first words of a sample's stream, in order; `words` holds whole tiles.
ROBUSTFAST_CLONES void draw_words(Stream stream, int64_t count, uint32_t* words) {
  for (int64_t begin = 0; begin < count; begin += kTile) {
    uint32_t quads[4][kWide];
    stream.draw(kNoise, begin / 4, quads);
    for (int j = 0; j < kWide; ++j)
      for (int k = 0; k < 4; ++k) words[begin + 4 * j + k] = quads[k][j];
  }
}

// n <= kTile normal draws. Loops of their own: GCC cannot vectorise one with a square root beside the rest.
ROBUSTFAST_CLONES void draw_noise(const uint32_t* __restrict__ radii, const uint32_t* __restrict__ angles,
                                  double* __restrict__ noise, int64_t n) {
  for (int64_t i = 0; i < n; ++i) noise[i] = normal_squared_radius(radii[i]);
  for (int64_t i = 0; i < n; ++i) noise[i] = sqrt(noise[i]);
  for (int64_t i = 0; i < n; ++i) noise[i] *= cosine_of(angles[i]);
}

// n <= kTile entries of a row; returns what they add to twice the divergence.
template <typename T>
ROBUSTFAST_CLONES double forward_tile(const T* __restrict__ mean, const T* __restrict__ log_variance,
                                      const double* __restrict__ noise, T* __restrict__ z, T* __restrict__ shift,
                                      int64_t n) {
  T spreads[kTile];
  double terms[kTile + kLanes];
  for (int64_t i = 0; i < n; ++i) spreads[i] = exponent(log_variance[i] / 2);
  for (int64_t i = 0; i < n; ++i) {
    const double mu = mean[i], spread = spreads[i], moved = spread * noise[i];
    z[i] = static_cast<T>(mu + moved);
    shift[i] = static_cast<T>(moved);
    terms[i] = twice_divergence(mu, log_variance[i], spread);
  }
  std::fill_n(terms + n, kLanes, 0.0);
  double lanes[kLanes] = {};
  for (int64_t i = 0; i < n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += terms[i + j];
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

template <typename T>
ROBUSTFAST_CLONES void backward_row(const T* __restrict__ d_z, T d_divergence, const T* __restrict__ mean,
                                    const T* __restrict__ log_variance, const T* __restrict__ shift,
                                    T* __restrict__ d_mean, T* __restrict__ d_log_variance, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const MomentGradient<T> d = moment_gradient(d_z[i], d_divergence, mean[i], log_variance[i], shift[i]);
    d_mean[i] = d.mean;
    d_log_variance[i] = d.log_variance;
  }
}

template <typename T>
void run(const Tensor& mean, const Tensor& log_variance, int64_t seed, const Tensor& index, Tensor& z,
         Tensor& divergence, Tensor& shift) {
  const auto* mu = static_cast<const T*>(mean.const_data_ptr());
  const auto* log = static_cast<const T*>(log_variance.const_data_ptr());
  const auto* numbers = static_cast<const int64_t*>(index.const_data_ptr());
  auto* values = static_cast<T*>(z.mutable_data_ptr());
  auto* rows = static_cast<T*>(divergence.mutable_data_ptr());
  auto* moved = static_cast<T*>(shift.mutable_data_ptr());
  const int64_t L = mean.size(1);
  torch::stable::parallel_for(0, mean.size(0), std::max<int64_t>(1, kGrain / (8 * std::max<int64_t>(1, L))),
                              [&](int64_t begin, int64_t end) {
                                // Radii, then angles.
                                std::vector<uint32_t> words((2 * L + kTile - 1) / kTile * kTile);
                                double noise[kTile];
                                for (int64_t i = begin; i < end; ++i) {
                                  draw_words({PhiloxKey(seed), static_cast<uint64_t>(numbers[i])}, 2 * L, words.data());
                                  double twice = 0;
                                  for (int64_t first = 0; first < L; first += kTile) {
                                    const int64_t at = i * L + first, n = std::min(kTile, L - first);
                                    draw_noise(words.data() + first, words.data() + L + first, noise, n);
                                    twice += forward_tile(mu + at, log + at, noise, values + at, moved + at, n);
                                  }
                                  rows[i] = static_cast<T>(0.5 * twice);
                                }
                              });
}

template <typename T>
void run_backward(const Tensor& grad_z, const Tensor& grad_divergence, const Tensor& mean, const Tensor& log_variance,
                  const Tensor& shift, Tensor& d_mean, Tensor& d_log_variance) {
  const auto* g = static_cast<const T*>(grad_z.const_data_ptr());
  const auto* rows = static_cast<const T*>(grad_divergence.const_data_ptr());
  const auto* mu = static_cast<const T*>(mean.const_data_ptr());
  const auto* log = static_cast<const T*>(log_variance.const_data_ptr());
  const auto* moved = static_cast<const T*>(shift.const_data_ptr());
  auto* d_mu = static_cast<T*>(d_mean.mutable_data_ptr());
  auto* d_log = static_cast<T*>(d_log_variance.mutable_data_ptr());
  const int64_t L = mean.size(1);
  torch::stable::parallel_for(
      0, mean.size(0), std::max<int64_t>(1, kGrain / (2 * std::max<int64_t>(1, L))), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t at = i * L;
          backward_row(g + at, rows[i], mu + at, log + at, moved + at, d_mu + at, d_log + at, L);
        }
      });
}

std::tuple<Tensor, Tensor, Tensor> reparameterise_cpu(const Tensor& mean, const Tensor& log_variance, int64_t seed,
                                                      const Tensor& index) {
  const Tensor mu = torch::stable::contiguous(mean), log = torch::stable::contiguous(log_variance);
  const Tensor numbers = torch::stable::contiguous(index);
  const int64_t B = mean.size(0), L = mean.size(1);
  Tensor z = torch::stable::new_empty(mean, {B, L}), divergence = torch::stable::new_empty(mean, {B});
  Tensor shift = torch::stable::new_empty(mean, {B, L});
  THO_DISPATCH_V2(mean.scalar_type(), "reparameterise",
                  AT_WRAP([&] { run<scalar_t>(mu, log, seed, numbers, z, divergence, shift); }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {z, divergence, shift};
}

std::tuple<Tensor, Tensor> reparameterise_backward_cpu(const Tensor& grad_z, const Tensor& grad_divergence,
                                                       const Tensor& mean, const Tensor& log_variance,
                                                       const Tensor& shift) {
  const Tensor g = torch::stable::contiguous(grad_z), rows = torch::stable::contiguous(grad_divergence);
  const Tensor mu = torch::stable::contiguous(mean), log = torch::stable::contiguous(log_variance);
  const Tensor moved = torch::stable::contiguous(shift);
  const int64_t B = mean.size(0), L = mean.size(1);
  Tensor d_mean = torch::stable::new_empty(mean, {B, L}), d_log_variance = torch::stable::new_empty(mean, {B, L});
  THO_DISPATCH_V2(mean.scalar_type(), "reparameterise_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(g, rows, mu, log, moved, d_mean, d_log_variance); }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {d_mean, d_log_variance};
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) {
  m.impl("reparameterise", TORCH_BOX(&robustfast::reparameterise_cpu));
  m.impl("reparameterise_backward", TORCH_BOX(&robustfast::reparameterise_backward_cpu));
}
