#include "affine_relu.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cuda.h"

namespace robustfast {
namespace {

using torch::headeronly::ScalarType;

// Where the channels of the values of a 16-byte vector are: side by side, all one, anywhere.
enum class Where { along, same, anywhere };

constexpr int kMostThreads = 512;

template <typename T>
constexpr int kWidth = 16 / sizeof(T);

template <typename T>
using Packet = Vector<T, kWidth<T>>;

// a / b. A division of 64 bits takes many times as long as one of 32.
__device__ inline int64_t divide(int64_t a, int64_t b) { return (a | b) >> 32 ? a / b : uint32_t(a) / uint32_t(b); }

// Vector i of values at `from`. Not `whole`: not aligned or not all there; what is beyond the last value is 0.
template <typename T>
__device__ inline Packet<T> load(const T* from, int64_t i, int64_t total, bool whole) {
  if (whole) return reinterpret_cast<const Packet<T>*>(from)[i];
  Packet<T> values;
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j)
    values.v[j] = i * kWidth<T> + j < total ? from[i * kWidth<T> + j] : static_cast<T>(0.0f);
  return values;
}

template <typename T>
__device__ inline void store(T* to, int64_t i, const Packet<T>& values, int64_t total, bool whole) {
  if (whole) {
    reinterpret_cast<Packet<T>*>(to)[i] = values;
    return;
  }
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j)
    if (i * kWidth<T> + j < total) to[i * kWidth<T> + j] = values.v[j];
}

// Values of half types are rounded in pairs: one by one they take the slow conversion unit.
template <typename T>
__device__ inline Packet<T> rounded(const Compute<T>* values) {
  Packet<T> result;
#pragma unroll
  for (int j = 0; j < kWidth<T>; j += 2) {
#ifdef __CUDA_ARCH__
    if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) {
      const auto pair = __floats2bfloat162_rn(values[j], values[j + 1]);
      memcpy(result.v + j, &pair, sizeof pair);
      continue;
    }
    if constexpr (std::is_same_v<T, torch::headeronly::Half>) {
      const auto pair = __floats2half2_rn(values[j], values[j + 1]);
      memcpy(result.v + j, &pair, sizeof pair);
      continue;
    }
#endif
    result.v[j] = static_cast<T>(values[j]);
    result.v[j + 1] = static_cast<T>(values[j + 1]);
  }
  return result;
}

// What a thread takes of a table [C]: for Where::along that of its own channels, else of the one that it has entered.
// Without a table it is 1.
template <Where where, typename T>
struct PerChannel {
  using C = Compute<T>;
  static constexpr int kOwn = where == Where::along ? kWidth<T> : 1;
  const C* table;
  Vector<C, kOwn> own;

  // For Where::along, all vectors of a thread are of the same channels as its first one.
  __device__ PerChannel(const C* table, ChannelOrder order, int64_t first) : table(table) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) own.v[j] = C(1);
    if constexpr (where == Where::along) {
      const int64_t groups = order.channels / kOwn, group = first - divide(first, groups) * groups;
      if (table) own = reinterpret_cast<const Vector<C, kOwn>*>(table)[group];
    }
  }

  __device__ void enter(int64_t channel) {
    if (where != Where::along && table) own.v[0] = table[channel];
  }

  __device__ C operator[](int j) const { return own.v[where == Where::along ? j : 0]; }
};

// Calls enter(channel) where the values of vector i come to another channel, and each(j) for each value.
template <Where where, typename T, typename Enter, typename Each>
__device__ inline void for_values(ChannelOrder order, int64_t i, const Enter& enter, const Each& each) {
  int64_t rest = 0, channel = 0;
  if constexpr (where != Where::along) {
    const int64_t plane =
        where == Where::same ? divide(i, order.inner / kWidth<T>) : divide(i * kWidth<T>, order.inner);
    if constexpr (where == Where::anywhere) rest = i * kWidth<T> - plane * order.inner;
    enter(channel = plane - divide(plane, order.channels) * order.channels);
  }
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) {
    each(j);
    if constexpr (where == Where::anywhere) {
      if (++rest == order.inner) {
        rest = 0;
        enter(channel = channel + 1 == order.channels ? 0 : channel + 1);
      }
    }
  }
}

// Each thread has kVectors vectors, as many as the grid has threads apart and all in flight before the first is used.
// Neighbouring threads make a byte of the mask together where a vector has fewer than 8 values.
template <typename T, Where where, int kVectors>
__global__ void __launch_bounds__(kMostThreads, 1)
    forward(const T* __restrict__ x, const T* __restrict__ residual, const Compute<T>* __restrict__ scale,
            const Compute<T>* __restrict__ shift, T* __restrict__ y, T* __restrict__ sum, uint8_t* __restrict__ mask,
            ChannelOrder order, bool vectors) {
  using C = Compute<T>;
  constexpr int kSharers = 8 / kWidth<T>;
  const int64_t total = order.total, count = (total + kWidth<T> - 1) / kWidth<T>;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x;
  const auto whole = [&](int64_t i) { return where != Where::anywhere || (vectors && (i + 1) * kWidth<T> <= total); };
  Packet<T> t[kVectors], r[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * step;
    if (i < count) t[v] = load(x, i, total, whole(i));
  }
  if (residual) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = first + v * step;
      if (i < count) r[v] = load(residual, i, total, whole(i));
    }
  }
  PerChannel<where, T> a(scale, order, first), b(shift, order, first);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * step;
    unsigned bits = 0;
    if (i < count) {
      C values[kWidth<T>];
      if (residual) {
#pragma unroll
        for (int j = 0; j < kWidth<T>; ++j) values[j] = static_cast<C>(t[v].v[j]) + static_cast<C>(r[v].v[j]);
        t[v] = rounded<T>(values);
        if (sum) store(sum, i, t[v], total, whole(i));
      }
      const auto enter = [&](int64_t channel) {
        a.enter(channel);
        b.enter(channel);
      };
      for_values<where, T>(order, i, enter,
                           [&](int j) { values[j] = affine_relu(static_cast<C>(t[v].v[j]), a[j], b[j]); });
      t[v] = rounded<T>(values);
      store(y, i, t[v], total, whole(i));
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) bits |= unsigned(passes(t[v].v[j])) << j;
      if (!whole(i) && total - i * kWidth<T> < kWidth<T>) bits &= (1u << (total - i * kWidth<T>)) - 1;
    }
    if (mask) {
      if constexpr (kSharers > 1) {
        bits <<= i % kSharers * kWidth<T>;
#pragma unroll
        for (int offset = 1; offset < kSharers; offset *= 2) bits |= __shfl_xor_sync(~0u, bits, offset);
      }
      if (i < count && i % kSharers == 0) mask[i / kSharers] = static_cast<uint8_t>(bits);
    }
  }
}

template <typename T, Where where, int kVectors>
__global__ void __launch_bounds__(kMostThreads, 1)
    backward(const T* __restrict__ grad_y, const T* __restrict__ grad_sum, const uint8_t* __restrict__ mask,
             const Compute<T>* __restrict__ scale, T* __restrict__ grad_x, ChannelOrder order, bool vectors) {
  using C = Compute<T>;
  const int64_t total = order.total, count = (total + kWidth<T> - 1) / kWidth<T>;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x;
  const auto whole = [&](int64_t i) { return where != Where::anywhere || (vectors && (i + 1) * kWidth<T> <= total); };
  Packet<T> g[kVectors], s[kVectors];
  unsigned bits[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * step;
    if (i < count) {
      g[v] = load(grad_y, i, total, whole(i));
      bits[v] = mask[i * kWidth<T> / 8] >> i * kWidth<T> % 8;
    }
  }
  if (grad_sum) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = first + v * step;
      if (i < count) s[v] = load(grad_sum, i, total, whole(i));
    }
  }
  PerChannel<where, T> a(scale, order, first);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = first + v * step;
    if (i >= count) break;
    C values[kWidth<T>];
    for_values<where, T>(
        order, i, [&](int64_t channel) { a.enter(channel); },
        [&](int j) {
          values[j] = affine_relu_backward(static_cast<C>(g[v].v[j]), a[j], (bits[v] >> j & 1) != 0);
          if (grad_sum) values[j] += static_cast<C>(s[v].v[j]);
        });
    store(grad_x, i, rounded<T>(values), total, whole(i));
  }
}

// How a kernel is launched on tensors in an order of channels.
struct Launch {
  Where where;
  unsigned blocks, threads;
  int vectors;  // a thread's
};

template <typename T>
Launch launch_of(ChannelOrder order, bool tensors_aligned, bool tables_aligned) {
  const int64_t width = kWidth<T>, count = (order.total + width - 1) / width;
  const bool along = tables_aligned && order.inner == 1 && order.channels % width == 0;
  const Where where = !tensors_aligned           ? Where::anywhere
                      : along                    ? Where::along
                      : order.inner % width == 0 ? Where::same
                                                 : Where::anywhere;
  const int64_t threads = launch_setting("affine_relu_threads", 256);
  const int64_t vectors = where == Where::anywhere ? 1 : launch_setting("affine_relu_vectors", 2);
  int64_t blocks = (count + threads * vectors - 1) / (threads * vectors);
  if (where == Where::along) {
    // A step through all of the grid ends at the channels that it began with.
    const int64_t groups = order.channels / width, even = groups / std::gcd(groups, threads);
    blocks = (blocks + even - 1) / even * even;
  }
  return {where, unsigned(blocks), unsigned(threads), int(vectors)};
}

// Calls launch(where, vectors) with both as constants.
template <typename Call>
void with_constants(const Launch& l, const Call& call) {
  const auto placed = [&](auto where) {
    l.vectors == 4   ? call(where, std::integral_constant<int, 4>())
    : l.vectors == 2 ? call(where, std::integral_constant<int, 2>())
                     : call(where, std::integral_constant<int, 1>());
  };
  if (l.where == Where::along) return placed(std::integral_constant<Where, Where::along>());
  if (l.where == Where::same) return placed(std::integral_constant<Where, Where::same>());
  call(std::integral_constant<Where, Where::anywhere>(), std::integral_constant<int, 1>());
}

template <typename T>
bool all_aligned(std::initializer_list<const T*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(), [](const T* p) { return aligned<T, kWidth<T>>(p); });
}

template <typename T>
void run(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& scale,
         const Tensor& shift, ChannelOrder order, Tensor& y, Tensor& sum, Tensor& mask) {
  using C = Compute<T>;
  const auto* values = static_cast<const T*>(x.const_data_ptr());
  const auto* r = data_or_null<T>(residual);
  const auto* a = data_or_null<C>(scale);
  const auto* b = static_cast<const C*>(shift.const_data_ptr());
  auto* out = static_cast<T*>(y.mutable_data_ptr());
  auto* t = sum.numel() ? static_cast<T*>(sum.mutable_data_ptr()) : nullptr;
  auto* bits = mask.numel() ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr;
  const bool vectors = all_aligned<T>({values, r, out, t});
  const Launch l = launch_of<T>(order, vectors, all_aligned<C>({a, b}));
  const auto stream = current_stream(y.get_device_index());
  with_constants(l, [&](auto where, auto count) {
    forward<T, where.value, count.value>
        <<<l.blocks, l.threads, 0, stream>>>(values, r, a, b, out, t, bits, order, vectors);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void run_backward(const Tensor& grad_y, const std::optional<Tensor>& grad_sum, const Tensor& mask,
                  const std::optional<Tensor>& scale, ChannelOrder order, Tensor& grad_x) {
  using C = Compute<T>;
  const auto* g = static_cast<const T*>(grad_y.const_data_ptr());
  const auto* s = data_or_null<T>(grad_sum);
  const auto* bits = static_cast<const uint8_t*>(mask.const_data_ptr());
  const auto* a = data_or_null<C>(scale);
  auto* out = static_cast<T*>(grad_x.mutable_data_ptr());
  const bool vectors = all_aligned<T>({g, s, out});
  const Launch l = launch_of<T>(order, vectors, all_aligned<C>({a}));
  const auto stream = current_stream(grad_x.get_device_index());
  with_constants(l, [&](auto where, auto count) {
    backward<T, where.value, count.value><<<l.blocks, l.threads, 0, stream>>>(g, s, bits, a, out, order, vectors);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor, Tensor> affine_relu_cuda(const Tensor& x, const std::optional<Tensor>& residual,
                                                    const std::optional<Tensor>& scale, const Tensor& shift,
                                                    bool keep_sum, bool keep_bits) {
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
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

Tensor affine_relu_backward_cuda(const Tensor& grad_y, const std::optional<Tensor>& grad_sum, const Tensor& mask,
                                 const std::optional<Tensor>& scale, bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(grad_y.get_device_index());
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

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) {
  m.impl("affine_relu", TORCH_BOX(&robustfast::affine_relu_cuda));
  m.impl("affine_relu_backward", TORCH_BOX(&robustfast::affine_relu_backward_cuda));
}
