#include "three_way_head.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows of D values. Nothing aliases: without saying so, GCC gives up on comparing this many pointers and stays scalar.
template <typename T>
ROBUSTFAST_CLONES void hidden_row(const T* __restrict__ p_r, const T* __restrict__ p_n,
                                  const Compute<T>* __restrict__ b1, T* __restrict__ s, T* __restrict__ r,
                                  T* __restrict__ n, int64_t D) {
  using C = Compute<T>;
  for (int64_t i = 0; i < D; ++i) {
    const Ways<C> v = three_way_hidden(static_cast<C>(p_r[i]), static_cast<C>(p_n[i]), b1[i]);
    s[i] = static_cast<T>(v.s);
    r[i] = static_cast<T>(v.r);
    n[i] = static_cast<T>(v.n);
  }
}

// Rows of `width` values of the gradients d_* and the hidden units h_* of three ways. `share` receives what the sample
// adds to the bias gradient: adding it up right here, in float64, would keep GCC from making vectors.
template <bool bias, typename T>
ROBUSTFAST_CLONES void hidden_row_backward(const T* __restrict__ d_s, const T* __restrict__ d_r,
                                           const T* __restrict__ d_n, const T* __restrict__ h_s,
                                           const T* __restrict__ h_r, const T* __restrict__ h_n, T* __restrict__ d_p_r,
                                           T* __restrict__ d_p_n, Compute<T>* __restrict__ share, int64_t width) {
  using C = Compute<T>;
  for (int64_t i = 0; i < width; ++i) {
    const Ways<C> d{static_cast<C>(d_s[i]), static_cast<C>(d_r[i]), static_cast<C>(d_n[i])};
    const Ways<C> h{static_cast<C>(h_s[i]), static_cast<C>(h_r[i]), static_cast<C>(h_n[i])};
    const ThreeWayGradient<C> g = three_way_hidden_backward(d, h);
    d_p_r[i] = static_cast<T>(g.r);
    d_p_n[i] = static_cast<T>(g.n);
    if constexpr (bias) {
      share[i] = g.r;
      share[width + i] = g.n_alone;
    }
  }
}

template <typename C>
ROBUSTFAST_CLONES void add_share(const C* share, double* sums, int64_t width) {
  for (int64_t i = 0; i < width; ++i) sums[i] += static_cast<double>(share[i]) + static_cast<double>(share[width + i]);
}

// The three ways of row `i` of a stack of them, from column `first` on.
template <typename T>
Ways<T*> ways_of(T* stack, int64_t i, int64_t B, int64_t D, int64_t first = 0) {
  T* row = stack + i * D + first;
  return {row, row + B * D, row + 2 * B * D};
}

template <typename T>
void run(const Tensor& p_r, const Tensor& p_n, const Tensor& b1, Tensor& hidden) {
  const auto* r = static_cast<const T*>(p_r.const_data_ptr());
  const auto* n = static_cast<const T*>(p_n.const_data_ptr());
  const auto* b = static_cast<const Compute<T>*>(b1.const_data_ptr());
  auto* h = static_cast<T*>(hidden.mutable_data_ptr());
  const int64_t B = p_r.size(0), D = p_r.size(1);
  torch::stable::parallel_for(0, B, std::max<int64_t>(1, kGrain / D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Ways<T*> out = ways_of(h, i, B, D);
      hidden_row<T>(r + i * D, n + i * D, b, out.s, out.r, out.n, D);
    }
  });
}

template <typename T>
void run_backward(const Tensor& d_hidden, const Tensor& hidden, Tensor& d_r, Tensor& d_n, Tensor& d_b1) {
  const auto* d = static_cast<const T*>(d_hidden.const_data_ptr());
  const auto* h = static_cast<const T*>(hidden.const_data_ptr());
  auto* r = static_cast<T*>(d_r.mutable_data_ptr());
  auto* n = static_cast<T*>(d_n.mutable_data_ptr());
  auto* b = static_cast<Compute<T>*>(d_b1.mutable_data_ptr());
  const int64_t B = d_r.size(0), D = d_r.size(1);
  const bool bias = d_b1.numel() > 0;
  // Threads share out columns, so that each bias sums over the samples in one order whatever their number.
  const int64_t grain = std::max<int64_t>(64, kGrain / std::max<int64_t>(1, B));
  torch::stable::parallel_for(0, D, grain, [&](int64_t begin, int64_t end) {
    const int64_t width = end - begin;
    std::vector<double> sums(bias ? width : 0);
    std::vector<Compute<T>> share(bias ? 2 * width : 0);
    for (int64_t i = 0; i < B; ++i) {
      const auto g = ways_of(d, i, B, D, begin), v = ways_of(h, i, B, D, begin);
      const auto row = bias ? hidden_row_backward<true, T> : hidden_row_backward<false, T>;
      row(g.s, g.r, g.n, v.s, v.r, v.n, r + i * D + begin, n + i * D + begin, share.data(), width);
      if (bias) add_share(share.data(), sums.data(), width);
    }
    std::copy(sums.begin(), sums.end(), b + (bias ? begin : 0));
  });
}

Tensor three_way_head_cpu(const Tensor& p_r, const Tensor& p_n, const Tensor& b1) {
  Tensor hidden = torch::stable::new_empty(p_r, {3 * p_r.size(0), p_r.size(1)});
  if (hidden.numel() == 0) return hidden;
  const Tensor r = torch::stable::contiguous(p_r), n = torch::stable::contiguous(p_n),
               b = torch::stable::contiguous(b1);
  THO_DISPATCH_V2(p_r.scalar_type(), "three_way_head", AT_WRAP([&] { run<scalar_t>(r, n, b, hidden); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return hidden;
}

std::tuple<Tensor, Tensor, Tensor> three_way_head_backward_cpu(const Tensor& d_hidden, const Tensor& hidden,
                                                               bool bias) {
  const int64_t B = hidden.size(0) / 3, D = hidden.size(1);
  Tensor d_r = torch::stable::new_empty(hidden, {B, D}), d_n = torch::stable::new_empty(hidden, {B, D});
  Tensor d_b1 = torch::stable::new_empty(hidden, {bias ? D : 0}, compute_type(hidden.scalar_type()));
  const Tensor d = torch::stable::contiguous(d_hidden), h = torch::stable::contiguous(hidden);
  THO_DISPATCH_V2(hidden.scalar_type(), "three_way_head_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(d, h, d_r, d_n, d_b1); }), AT_EXPAND(AT_FLOATING_TYPES),
                  ScalarType::Half, ScalarType::BFloat16);
  return {d_r, d_n, d_b1};
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) {
  m.impl("three_way_head", TORCH_BOX(&robustfast::three_way_head_cpu));
  m.impl("three_way_head_backward", TORCH_BOX(&robustfast::three_way_head_backward_cpu));
}
