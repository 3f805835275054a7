// What every CUDA kernel needs: the current stream, launch parameters, vector access, and sums over a block.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

namespace robustfast {

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// A launch parameter, named OP_WHAT: `chosen`, which bench/tune.py measured, or what it tries in the meantime by
// ROBUSTFAST_LAUNCH="NAME=VALUE,...". Set when the first kernel is launched, the variable is read at each launch; else
// it is not looked at again. Each name stands at one place of the sources.
inline int64_t launch_setting(std::string_view name, int64_t chosen) {
  static const bool tried = std::getenv("ROBUSTFAST_LAUNCH") != nullptr;
  const char* given = tried ? std::getenv("ROBUSTFAST_LAUNCH") : nullptr;
  for (std::string_view rest = given ? given : ""; !rest.empty();) {
    const std::string_view one = rest.substr(0, rest.find(','));
    rest.remove_prefix(one.size() < rest.size() ? one.size() + 1 : rest.size());
    if (one.size() > name.size() && one.substr(0, name.size()) == name && one[name.size()] == '=')
      return std::strtoll(one.data() + name.size() + 1, nullptr, 10);
  }
  return chosen;
}

// kWidth values that travel as one memory transaction, or as several of 16 bytes.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Vector {
  T v[kWidth];
};

template <typename T, int kWidth>
inline bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Vector<T, kWidth>) == 0;
}

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Combines one value per thread over the whole block; every thread gets the result. The order is fixed, so that two
// runs agree bit for bit. blockDim.x must be a multiple of 32; `shared` holds 33 values.
template <typename T, typename Combine>
__device__ T block_reduce(T value, Combine combine, T neutral, T* shared) {
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // an earlier reduction may still be reading `shared`
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = lane < blockDim.x / 32 ? shared[lane] : neutral;
    for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
    if (lane == 0) shared[32] = value;
  }
  __syncthreads();
  return shared[32];
}

}  // namespace robustfast
