#include "affine_relu.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cpu.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;

// Elements between two looks at the bits: whole bytes of the mask, and a tile of float64 stays in the first cache.
constexpr int64_t kTile = 1024;

// n elements of one channel, or, where `varying`, of n channels in turn. Nothing aliases: without saying so, GCC gives
// up on comparing this many pointers and stays scalar.
template <bool varying, bool residual, bool keep_sum, typename T>
ROBUSTFAST_CLONES void forward_run(const T* __restrict__ x, const T* __restrict__ r,
                                   const Compute<T>* __restrict__ scale, const Compute<T>* __restrict__ shift,
                                   T* __restrict__ y, T* __restrict__ sum, int64_t n) {
  using C = Compute<T>;
  const C a = scale[0], b = shift[0];
  for (int64_t i = 0; i < n; ++i) {
    T t = x[i];
    if constexpr (residual) t = static_cast<T>(static_cast<C>(t) + static_cast<C>(r[i]));
    if constexpr (keep_sum) sum[i] = t;
    y[i] = static_cast<T>(affine_relu(static_cast<C>(t), varying ? scale[i] : a, varying ? shift[i] : b));
  }
}

template <bool varying, bool with_sum, typename T>
ROBUSTFAST_CLONES void backward_run(const T* __restrict__ grad_y, const T* __restrict__ grad_sum,
                                    const uint8_t* __restrict__ passed, const Compute<T>* __restrict__ scale,
                                    T* __restrict__ grad_x, int64_t n) {
  using C = Compute<T>;
  const C a = scale[0];
  for (int64_t i = 0; i < n; ++i) {
    C d = affine_relu_backward(static_cast<C>(grad_y[i]), varying ? scale[i] : a, passed[i] != 0);
    if constexpr (with_sum) d += static_cast<C>(grad_sum[i]);
    grad_x[i] = static_cast<T>(d);
  }
}

// The bits of n <= kTile elements.
template <typename T>
ROBUSTFAST_CLONES void pack(const T* __restrict__ y, uint8_t* __restrict__ mask, int64_t n) {
  uint8_t passed[kTile];
  for (int64_t i = 0; i < n; ++i) passed[i] = passes(y[i]);
  std::fill(passed + n, passed + (n + 7) / 8 * 8, uint8_t(0));
  for (int64_t i = 0; i < (n + 7) / 8; ++i) {
    uint64_t eight;
    memcpy(&eight, passed + 8 * i, 8);
    mask[i] = static_cast<uint8_t>(eight * 0x0102040810204080ull >> 56);  // eight bytes of 0 or 1, the first lowest
  }
}

// Bytes that are 0 where a bit is.
ROBUSTFAST_CLONES void unpack(const uint8_t* __restrict__ mask, uint8_t* __restrict__ passed, int64_t n) {
  for (int64_t i = 0; i < (n + 7) / 8; ++i) {
    const uint64_t eight = mask[i] * 0x0101010101010101ull & 0x8040201008040201ull;
    memcpy(passed + 8 * i, &eight, 8);
  }
}

// Calls run(varying, channel, first, n) for the runs that [begin, end) falls into.
template <typename Run>
void for_runs(ChannelOrder order, int64_t begin, int64_t end, const Run& run) {
  const auto walk = [&](auto varying, int64_t length, int64_t channel) {
    int64_t n = std::min(length - begin % length, end - begin);
    for (int64_t first = begin; first < end; first += n, n = std::min(length, end - first)) {
      run(varying, channel, first, n);
      channel = varying || channel + 1 == order.channels ? 0 : channel + 1;
    }
  };
  if (order.inner == 1) return walk(std::true_type(), order.channels, begin % order.channels);
  walk(std::false_type(), order.inner, begin / order.inner % order.channels);
}

// Runs shorter than this are not worth a loop each: tables with a value for each element make one of them. Backward
// mixes bytes into its vectors, which then hold 64 elements.
constexpr int64_t kShort = 16, kShortBackward = 64;

int64_t run_length(ChannelOrder order) { return order.inner == 1 ? order.channels : order.inner; }

// The values of a table [C] for the elements [begin, end).
template <typename C>
void spread(ChannelOrder order, int64_t begin, int64_t end, const C* table, C* values) {
  for_runs(order, begin, end, [&](auto varying, int64_t c, int64_t i, int64_t n) {
    if constexpr (varying.value)
      std::copy_n(table + c, n, values + (i - begin));
    else
      std::fill_n(values + (i - begin), n, table[c]);
  });
}

// Calls run(begin, end) for each tile of `total` elements.
template <typename Run>
void for_tiles(int64_t total, const Run& run) {
  torch::stable::parallel_for(0, (total + kTile - 1) / kTile, kGrain / kTile, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) run(tile * kTile, std::min(total, (tile + 1) * kTile));
  });
}

// A scale of its own where there is none.
template <typename C>
std::vector<C> ones_without(const std::optional<Tensor>& scale, int64_t channels) {
  return std::vector<C>(scale ? 0 : channels, C(1));
}

template <typename T>
void run(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& scale,
         const Tensor& shift, ChannelOrder order, Tensor& y, Tensor& sum, Tensor& mask) {
  using C = Compute<T>;
  const std::vector<C> ones = ones_without<C>(scale, order.channels);
  const auto* a = scale ? data_or_null<C>(scale) : ones.data();
  const auto* b = static_cast<const C*>(shift.const_data_ptr());
  const auto* values = static_cast<const T*>(x.const_data_ptr());
  const auto* r = data_or_null<T>(residual);
  auto* out = static_cast<T*>(y.mutable_data_ptr());
  auto* t = sum.numel() ? static_cast<T*>(sum.mutable_data_ptr()) : nullptr;
  auto* bits = mask.numel() ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr;
  for_tiles(order.total, [&](int64_t begin, int64_t end) {
    const auto forward = [&](auto varying, const C* scales, const C* shifts, int64_t i, int64_t n) {
      constexpr bool v = decltype(varying)::value;
      const auto run = r == nullptr   ? forward_run<v, false, false, T>
                       : t == nullptr ? forward_run<v, true, false, T>
                                      : forward_run<v, true, true, T>;
      run(values + i, r ? r + i : nullptr, scales, shifts, out + i, t ? t + i : nullptr, n);
    };
    if (run_length(order) < kShort) {
      C scales[kTile], shifts[kTile];
      spread(order, begin, end, a, scales);
      spread(order, begin, end, b, shifts);
      forward(std::true_type(), scales, shifts, begin, end - begin);
    } else {
      for_runs(order, begin, end,
               [&](auto varying, int64_t c, int64_t i, int64_t n) { forward(varying, a + c, b + c, i, n); });
    }
    if (bits) pack(out + begin, bits + begin / 8, end - begin);
  });
}

template <typename T>
void run_backward(const Tensor& grad_y, const std::optional<Tensor>& grad_sum, const Tensor& mask,
                  const std::optional<Tensor>& scale, ChannelOrder order, Tensor& grad_x) {
  using C = Compute<T>;
  const std::vector<C> ones = ones_without<C>(scale, order.channels);
  const auto* a = scale ? data_or_null<C>(scale) : ones.data();
  const auto* g = static_cast<const T*>(grad_y.const_data_ptr());
  const auto* s = data_or_null<T>(grad_sum);
  const auto* bits = static_cast<const uint8_t*>(mask.const_data_ptr());
  auto* out = static_cast<T*>(grad_x.mutable_data_ptr());
  for_tiles(order.total, [&](int64_t begin, int64_t end) {
    uint8_t passed[kTile];
    unpack(bits + begin / 8, passed, end - begin);
    const auto backward = [&](auto varying, const C* scales, int64_t i, int64_t n) {
      constexpr bool v = decltype(varying)::value;
      const auto run = s == nullptr ? backward_run<v, false, T> : backward_run<v, true, T>;
      run(g + i, s ? s + i : nullptr, passed + (i - begin), scales, out + i, n);
    };
    if (run_length(order) < kShortBackward) {
      C scales[kTile];
      spread(order, begin, end, a, scales);
      backward(std::true_type(), scales, begin, end - begin);
    } else {
      for_runs(order, begin, end,
               [&](auto varying, int64_t c, int64_t i, int64_t n) { backward(varying, a + c, i, n); });
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> affine_relu_cpu(const Tensor& x, const std::optional<Tensor>& residual,
                                                   const std::optional<Tensor>& scale, const Tensor& shift,
                                                   bool keep_sum, bool keep_bits) {
  const bool last = is_channels_last(x);
  const Tensor values = in_order(x, last), b = torch::stable::contiguous(shift);
  const std::optional<Tensor> r = in_order(residual, last), a = in_order(scale, false);
  Tensor y = torch::stable::empty_like(values);
  Tensor sum = keep_sum ? torch::stable::empty_like(values) : torch::stable::new_empty(x, {0});
  Tensor mask = torch::stable::new_empty(x, {keep_bits ? (x.numel() + 7) / 8 : 0}, ScalarType::Byte);
  if (x.numel() == 0) return {y, sum, mask};
  const ChannelOrder order = order_of(values, last);
  THO_DISPATCH_V2(x.scalar_type(), "affine_relu", AT_WRAP([&] { run<scalar_t>(values, r, a, b, order, y, sum, mask); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return {y, sum, mask};
}

Tensor affine_relu_backward_cpu(const Tensor& grad_y, const std::optional<Tensor>& grad_sum, const Tensor& mask,
                                const std::optional<Tensor>& scale, bool channels_last) {
  const Tensor g = in_order(grad_y, channels_last), bits = torch::stable::contiguous(mask);
  const std::optional<Tensor> s = in_order(grad_sum, channels_last), a = in_order(scale, false);
  Tensor grad_x = torch::stable::empty_like(g);
  if (g.numel() == 0) return grad_x;
  const ChannelOrder order = order_of(g, channels_last);
  THO_DISPATCH_V2(g.scalar_type(), "affine_relu_backward",
                  AT_WRAP([&] { run_backward<scalar_t>(g, s, bits, a, order, grad_x); }), AT_EXPAND(AT_FLOATING_TYPES),
                  ScalarType::Half, ScalarType::BFloat16);
  return grad_x;
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) {
  m.impl("affine_relu", TORCH_BOX(&robustfast::affine_relu_cpu));
  m.impl("affine_relu_backward", TORCH_BOX(&robustfast::affine_relu_backward_cpu));
}
