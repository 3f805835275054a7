#include "augment.h"

#include <algorithm>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda.h"
#include "layout.h"
#include "planes.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;

constexpr int kThreads = 256;

// A place in a sample, walked in the order of its memory.
struct Place {
  uint32_t c, y, x;
};

struct Sizes {
  uint32_t channels, height, width;
  bool planes;

  __host__ __device__ uint32_t n() const { return channels * height * width; }

  __device__ Place place(uint32_t e) const {
    if (planes) return {e / width / height, e / width % height, e % width};
    return {e % channels, e / channels / width, e / channels % width};
  }

  __device__ void next(Place& at) const {
    if (!planes && ++at.c < channels) return;
    if (!planes) at.c = 0;
    if (++at.x < width) return;
    at.x = 0;
    if (++at.y < height) return;
    at.y = 0;
    ++at.c;
  }
};

// A block is a few samples by as many of their vectors as fit; `across` blocks take the vectors of a sample. Each
// thread draws its sample's window anew: seventy instructions, where sharing them would cost a barrier.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) take(Store store, const int64_t* __restrict__ index, T* __restrict__ out,
                                                 int64_t batch, Sizes sizes, Compute<T> scale, uint32_t across) {
  const uint32_t v = blockIdx.x % across * blockDim.x + threadIdx.x;
  const int64_t i = int64_t(blockIdx.x / across) * blockDim.y + threadIdx.y;
  const uint32_t n = sizes.n();
  if (v >= n / kWidth || i >= batch) return;
  const int64_t number = index[i];
  CUDA_KERNEL_ASSERT(store.holds(number) && "augment: index holds a number that is not in 0..N - 1");
  const Window window = store.window(number);
  Place at = sizes.place(v * kWidth);
  Vector<T, kWidth> o;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    o.v[j] = scaled<T>(window.at(at.c, at.y, at.x), scale);
    sizes.next(at);
  }
  reinterpret_cast<Vector<T, kWidth>*>(out + i * n)[v] = o;
}

template <typename T>
void launch(const Store& store, const int64_t* index, double scale, bool planes, Tensor& out) {
  constexpr int kWidth = 4;
  const int64_t batch = out.size(0);
  const Sizes sizes{static_cast<uint32_t>(out.size(1)), static_cast<uint32_t>(out.size(2)),
                    static_cast<uint32_t>(out.size(3)), planes};
  auto* results = static_cast<T*>(out.mutable_data_ptr());
  const bool vectors = sizes.n() % kWidth == 0 && aligned<T, kWidth>(results);
  const uint32_t count = vectors ? sizes.n() / kWidth : sizes.n();
  unsigned width = 1;
  while (width < count && width < kThreads) width *= 2;
  const dim3 block(width, kThreads / width);
  const uint32_t across = (count + width - 1) / width;
  const auto blocks = unsigned(across * ((batch + block.y - 1) / block.y));
  (vectors ? take<T, kWidth> : take<T, 1>)<<<blocks, block, 0, current_stream(out.get_device_index())>>>(
      store, index, results, batch, sizes, static_cast<Compute<T>>(scale), across);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void augment_cuda(const Tensor& images, const Tensor& index, int64_t seed, int64_t pad, bool flip, double scale,
                  Tensor out) {
  if (out.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  const Tensor numbers = torch::stable::contiguous(index);
  const auto* number = static_cast<const int64_t*>(numbers.const_data_ptr());
  const Store store = store_of(images, seed, pad, flip);
  const auto start = [&](Tensor& dense) {
    const bool planes = planes_of(dense).count == 1;
    THO_DISPATCH_V2(dense.scalar_type(), "augment",
                    AT_WRAP([&] { launch<scalar_t>(store, number, scale, planes, dense); }),
                    AT_EXPAND(AT_FLOATING_TYPES), ScalarType::BFloat16, ScalarType::Byte);
  };
  if (planes_of(out).count) return start(out);
  Tensor buffer = torch::stable::contiguous(out);
  start(buffer);
  torch::stable::copy_(out, buffer);
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) { m.impl("augment", TORCH_BOX(&robustfast::augment_cuda)); }
