#include "augment.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
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

// copy(step), where the usual steps from pixel to pixel are constants: GCC vectorises no loop over others.
template <typename Copy>
inline void with_step(int64_t step, const Copy& copy) {
  if (step == 1) return copy(std::integral_constant<int64_t, 1>());
  if (step == -1) return copy(std::integral_constant<int64_t, -1>());
  if (step == 3) return copy(std::integral_constant<int64_t, 3>());
  if (step == -3) return copy(std::integral_constant<int64_t, -3>());
  copy(step);
}

// The window's bytes, plane after plane; kChannels of them, or any number where it is 0.
template <int64_t kChannels>
ROBUSTFAST_CLONES void arrange_planes(Window window, Size size, uint8_t* __restrict__ to) {
  const int64_t channels = kChannels ? kChannels : size.channels, plane = size.height * size.width;
  for (int64_t y = 0; y < size.height; ++y, to += size.width) {
    const uint8_t* from = window.first + y * window.row;
    if (window.pixel == 1) {
      for (int64_t c = 0; c < channels; ++c) memcpy(to + c * plane, from + c * window.channel, size.width);
    } else {
      with_step(window.pixel, [=](auto step) {
        for (int64_t x = 0; x < size.width; ++x)
          for (int64_t c = 0; c < channels; ++c) to[c * plane + x] = from[c * window.channel + x * step];
      });
    }
  }
}

// The window's bytes, pixel after pixel. Writes one byte more than there are.
template <int64_t kChannels>
ROBUSTFAST_CLONES void arrange_pixels(Window window, Size size, uint8_t* __restrict__ to) {
  const int64_t channels = kChannels ? kChannels : size.channels;
  for (int64_t y = 0; y < size.height; ++y, to += size.width * channels) {
    const uint8_t* from = window.first + y * window.row;
    if (window.channel == 1 && window.pixel == channels) {
      memcpy(to, from, size.width * channels);
    } else if (kChannels == 3 && window.channel == 1 && window.pixel == -3) {
      // Four bytes are one move, three are two; the fourth is overwritten by the next pixel. The first pixel may be the
      // last of the store.
      memcpy(to, from, 3);
      for (int64_t x = 1; x < size.width; ++x) memcpy(to + 3 * x, from - 3 * x, 4);
    } else {
      with_step(window.pixel, [=](auto step) {
        for (int64_t x = 0; x < size.width; ++x)
          for (int64_t c = 0; c < channels; ++c) to[x * channels + c] = from[c * window.channel + x * step];
      });
    }
  }
}

template <int64_t kChannels>
auto arrangement(bool planes) {
  return planes ? arrange_planes<kChannels> : arrange_pixels<kChannels>;
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
  const auto arrange = size.channels == 1   ? arrangement<1>(planes)
                       : size.channels == 3 ? arrangement<3>(planes)
                                            : arrangement<0>(planes);
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(n + 1);
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
  const Store store = store_of(images, seed, pad, flip);
  for (int64_t i = 0; i < out.size(0); ++i)
    if (!store.holds(number[i]))
      throw std::out_of_range("augment: index holds " + std::to_string(number[i]) + ", expected numbers of the " +
                              std::to_string(store.images) + " images, 0.." + std::to_string(store.images - 1));
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
