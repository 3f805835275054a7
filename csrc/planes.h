// Contiguous and channels-last samples, seen by logical position.
#pragma once
#include <cstdint>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/macros/Macros.h>

namespace robustfast {

// Where the elements of a sample lie: plane after plane (contiguous, count = 1), or pixel after pixel with one value of
// each of `count` planes of `size` values (channels-last). Draws belong to logical positions, so both give one image.
struct Planes {
  uint32_t count, size;  // a sample has at most 2^30 elements

  // Memory offset of the element at logical position e.
  C10_HOST_DEVICE uint32_t offset(uint32_t e) const { return count == 1 ? e : e % size * count + e / size; }
};

// How t's samples lie; count is 0 where they are neither contiguous nor channels-last, or do not follow each other.
inline Planes planes_of(const torch::stable::Tensor& t) {
  const auto follows = [&t](int64_t step, int64_t first) {
    for (int64_t d = t.dim() - 1; d >= first; --d) {
      if (t.size(d) > 1 && t.stride(d) != step) return false;
      step *= t.size(d);
    }
    return t.size(0) == 1 || t.stride(0) * t.size(0) == t.numel();
  };
  const auto n = static_cast<uint32_t>(t.numel() / t.size(0));
  if (follows(1, 1)) return {1, n};
  if (t.dim() < 3) return {0, 0};
  const auto channels = static_cast<uint32_t>(t.size(1));
  return t.stride(1) == 1 && follows(channels, 2) ? Planes{channels, n / channels} : Planes{0, 0};
}

}  // namespace robustfast
