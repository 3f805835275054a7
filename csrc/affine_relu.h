// One element of an affine map, ReLU and residual sum, and where its channel is, shared by CPU and CUDA.
// robustfast/reference/affine_relu.py is the definition.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>

#include "precision.h"

namespace robustfast {

// relu(scale * t + shift) before it is rounded. Written so that NaN passes through, as torch.relu does.
template <typename C>
C10_HOST_DEVICE inline C affine_relu(C t, C scale, C shift) {
  const C v = scale * t + shift;
  return v <= C(0) ? C(0) : v;
}

// Whether y, a rounded result, is not <= 0: it is zero, positive or NaN, so whether a bit beside the sign is set.
template <typename T>
C10_HOST_DEVICE inline bool passes(T y) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  Bits bits;
  memcpy(&bits, &y, sizeof bits);
  return static_cast<Bits>(bits << 1) != 0;
}

// The gradient of x before it is rounded, and before that of t is added.
template <typename C>
C10_HOST_DEVICE inline C affine_relu_backward(C grad_y, C scale, bool passed) {
  return passed ? grad_y * scale : C(0);
}

// Elements in the order of memory: that of number e belongs to channel e / inner % channels.
struct ChannelOrder {
  int64_t total, channels, inner;
};

using torch::stable::Tensor;

// Whether memory runs along the channels first, and not along the last dimension: dense channels-last.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() < 3 || t.is_contiguous()) return false;
  int64_t step = t.size(1);
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    if (t.size(d) > 1 && t.stride(d) != step) return false;
    step *= t.size(d);
  }
  return (t.size(1) == 1 || t.stride(1) == 1) && (t.size(0) == 1 || t.stride(0) == step);
}

// `t` itself where it is dense in channels-last or, else, in contiguous order; a copy that is where it is not.
inline Tensor in_order(const Tensor& t, bool channels_last) {
  if (!channels_last) return torch::stable::contiguous(t);
  if (is_channels_last(t)) return t;
  Tensor moved = t;
  for (int64_t d = 1; d + 1 < t.dim(); ++d) moved = torch::stable::transpose(moved, d, d + 1);
  moved = torch::stable::contiguous(moved);
  for (int64_t d = t.dim() - 2; d >= 1; --d) moved = torch::stable::transpose(moved, d, d + 1);
  return moved;
}

inline std::optional<Tensor> in_order(const std::optional<Tensor>& t, bool channels_last) {
  return t ? std::optional<Tensor>(in_order(*t, channels_last)) : std::nullopt;
}

// The order of a dense tensor [B, C, ...] that is not empty.
inline ChannelOrder order_of(const Tensor& t, bool channels_last) {
  return {t.numel(), t.size(1), channels_last ? 1 : t.numel() / (t.size(0) * t.size(1))};
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace robustfast
