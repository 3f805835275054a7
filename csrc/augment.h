// Which pixels a sample takes and what becomes of one, shared by CPU and CUDA. robustfast/reference/augment.py is the
// definition.
#pragma once
#include <cstdint>
#include <type_traits>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/macros/Macros.h>

#include "philox.h"
#include "precision.h"

namespace robustfast {

// Part of one stored image. Mirrored, it starts at the right and its pixels go left.
struct Window {
  const uint8_t* first;
  int64_t channel, row, pixel;  // bytes from one to the next

  C10_HOST_DEVICE uint8_t at(int64_t c, int64_t y, int64_t x) const { return first[c * channel + y * row + x * pixel]; }
};

// Stored images, in any layout, and how windows of them are drawn.
struct Store {
  const uint8_t* pixels;
  int64_t images;
  int64_t image, channel, row, pixel;  // bytes from one to the next
  uint32_t width;                      // of a window
  uint32_t places;                     // where a window may start, along each side
  bool flip;
  PhiloxKey key;

  C10_HOST_DEVICE bool holds(int64_t number) const { return number >= 0 && number < images; }

  C10_HOST_DEVICE Window window(int64_t number) const {
    const Words words = philox4x32(static_cast<uint32_t>(number), 0, 0, 0, key);
    const int64_t top = place(words.v[0]), left = place(words.v[1]);
    Window window{pixels + number * image + top * row + left * pixel, channel, row, pixel};
    if (flip && words.v[2] >> 31) {
      window.first += (width - 1) * pixel;
      window.pixel = -pixel;
    }
    return window;
  }

 private:
  // Uniform on 0..places - 1, in integers.
  C10_HOST_DEVICE int64_t place(uint32_t word) const { return (uint64_t(word) * places) >> 32; }
};

inline Store store_of(const torch::stable::Tensor& images, int64_t seed, int64_t pad, bool flip) {
  return {static_cast<const uint8_t*>(images.const_data_ptr()),
          images.size(0),
          images.stride(0),
          images.stride(1),
          images.stride(2),
          images.stride(3),
          static_cast<uint32_t>(images.size(3) - 2 * pad),
          static_cast<uint32_t>(2 * pad + 1),
          flip,
          PhiloxKey(seed)};
}

// The quotient, rounded once to the type that T computes in and once to T; a product with 1 / scale is not it.
template <typename T>
C10_HOST_DEVICE inline T scaled(uint8_t pixel, Compute<T> scale) {
  if constexpr (std::is_same_v<T, uint8_t>)
    return pixel;
  else
    return static_cast<T>(static_cast<Compute<T>>(pixel) / scale);
}

}  // namespace robustfast
