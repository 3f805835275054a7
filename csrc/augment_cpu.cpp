#include "augment.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu.h"
#include "layout.h"
#include "planes.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;

struct Size {
  int64_t channels, height, width;
};

// The window's bytes, plane after plane.
ROBUSTFAST_CLONES void arrange_planes(Window window, Size size, uint8_t* to) {
  for (int64_t c = 0; c < size.channels; ++c) {
    for (int64_t y = 0; y < size.height; ++y, to += size.width) {
      const uint8_t* from = window.first + c * window.channel + y * window.row;
      if (window.pixel == 1)
        memcpy(to, from, size.width);
      else if (window.pixel == -1)
        for (int64_t x = 0; x < size.width; ++x) to[x] = from[-x];
      else
        for (int64_t x = 0; x < size.width; ++x) to[x] = from[x * window.pixel];
    }
  }
}

// The window's bytes, pixel after pixel.
ROBUSTFAST_CLONES void arrange_pixels(Window window, Size size, uint8_t* to) {
  for (int64_t y = 0; y < size.height; ++y) {
    const uint8_t* from = window.first + y * window.row;
    if (window.channel == 1 && window.pixel == size.channels) {
      memcpy(to, from, size.width * size.channels);
      to += size.width * size.channels;
    } else {
      for (int64_t x = 0; x < size.width; ++x, from += window.pixel)
        for (int64_t c = 0; c < size.channels; ++c) *to++ = from[c * window.channel];
    }
  }
}

template <typename T>
ROBUSTFAST_CLONES void scale_all(const uint8_t* pixels, T* out, int64_t n, Compute<T> scale) {
  for (int64_t i = 0; i < n; ++i) out[i] = scaled<T>(pixels[i], scale);
}

template <typename T>
void run(const Store& store, const int64_t* index, double scale, bool planes, Tensor& out) {
  auto* results = static_cast<T*>(out.mutable_data_ptr());
  const Size size{out.size(1), out.size(2), out.size(3)};
  const int64_t n = out.numel() / out.size(0);
  const auto arrange = planes ? arrange_planes : arrange_pixels;
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(n);
    for (int64_t i = begin; i < end; ++i) {
      const Window window = store.window(index[i]);
      arrange(window, size, bytes.data());
      scale_all<T>(bytes.data(), results + i * n, n, static_cast<Compute<T>>(scale));
    }
  });
}

void augment_cpu(const Tensor& images, const Tensor& index, int64_t seed, int64_t pad, bool flip, double scale,
                 Tensor out) {
  if (out.numel() == 0) return;
  const Tensor numbers = torch::stable::contiguous(index);
  const auto* number = static_cast<const int64_t*>(numbers.const_data_ptr());
  for (int64_t i = 0; i < out.size(0); ++i)
    if (number[i] < 0 || number[i] >= images.size(0))
      throw std::out_of_range("augment: index holds " + std::to_string(number[i]) + ", expected numbers of the " +
                              std::to_string(images.size(0)) + " images, 0.." + std::to_string(images.size(0) - 1));
  const Store store{static_cast<const uint8_t*>(images.const_data_ptr()),
                    images.size(0),
                    images.stride(0),
                    images.stride(1),
                    images.stride(2),
                    images.stride(3),
                    static_cast<uint32_t>(out.size(3)),
                    static_cast<uint32_t>(2 * pad + 1),
                    flip,
                    PhiloxKey(seed)};
  const auto start = [&](Tensor& dense) {
    const bool planes = planes_of(dense).count == 1;
    THO_DISPATCH_V2(dense.scalar_type(), "augment",
                    AT_WRAP([&] { run<scalar_t>(store, number, scale, planes, dense); }), AT_EXPAND(AT_FLOATING_TYPES),
                    ScalarType::BFloat16, ScalarType::Byte);
  };
  if (planes_of(out).count) return start(out);
  Tensor buffer = torch::stable::contiguous(out);
  start(buffer);
  torch::stable::copy_(out, buffer);
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("augment", TORCH_BOX(&robustfast::augment_cpu)); }
