// CUDA's runtime for kernels that run on the CPU: as much of it as csrc/ uses.
#pragma once
#include <atomic>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../machine.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __align__(n) alignas(n)

constexpr int warpSize = 32;

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

// The host's side.

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the CUDA that runs on the CPU"; }

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock,
  cudaDevAttrMaxSharedMemoryPerBlock,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrClusterLaunch,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxThreadsPerMultiProcessor,
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int capability = cuda_on_cpu::compute_capability();
  const int shared = int(cuda_on_cpu::shared_bytes_per_block());
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 49152;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = shared;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = shared + 1024;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = capability >= 90 ? 132 : 108;
      break;
    case cudaDevAttrClusterLaunch:
      *value = capability >= 90;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability % 10;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
  }
  return cudaSuccess;
}

struct cudaFuncAttributes {
  size_t sharedSizeBytes = 0, localSizeBytes = 0;
  int maxThreadsPerBlock = 1024, numRegs = 0, ptxVersion = 0, binaryVersion = 0, maxDynamicSharedSizeBytes = 0;
};

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = cuda_on_cpu::compute_capability();
  return cudaSuccess;
}

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout,
  cudaFuncAttributeNonPortableClusterSizeAllowed,
};

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute attribute, int value) {
  const bool fits = attribute != cudaFuncAttributeMaxDynamicSharedMemorySize ||
                    size_t(value) <= cuda_on_cpu::shared_bytes_per_block();
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeProgrammaticStreamSerialization };

union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, Kernel, const cudaLaunchConfig_t*) {
  *count = 1;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, Kernel, int, size_t) {
  *count = 1;
  return cudaSuccess;
}

namespace cuda_on_cpu {

// What stands between <<< and >>>.
inline Launch launch_of(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t = nullptr) {
  return {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared};
}

template <typename Body>
void run(const Launch& how, const Body& body) {
  run(how, [](void* p) { (*static_cast<const Body*>(p))(); }, const_cast<Body*>(&body));
}

// kernel<<<how>>>(arguments): the arguments are evaluated once, and every thread gets copies.
template <typename Kernel, typename... Arguments>
void launch(const Launch& how, const Kernel& kernel, Arguments... arguments) {
  run(how, [&] { kernel(arguments...); });
}

template <typename T>
T& shared_variable() {
  static const char key = 0;
  return *static_cast<T*>(shared(&key, sizeof(T), alignof(T)));
}

template <typename Tensor>
bool is_cpu(const Tensor& t) {
  return t.dim() == 0 && numbers_on_host();
}

template <typename Tensor>
int64_t bytes_of(const Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return (last + 1) * int64_t(t.element_size());
}

template <typename Tensor>
const void* read_only(const Tensor& t) {
  return seen(t.const_data_ptr(), bytes_of(t), int64_t(t.element_size()), false);
}

template <typename Tensor>
void* writable(const Tensor& t) {
  return seen(t.mutable_data_ptr(), bytes_of(t), int64_t(t.element_size()), true);
}

// In place of the guard that makes a tensor's device the current one. With it the op ends, and its tensors may go.
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
  ~DeviceGuard() { forget(); }
};

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "a lane hands on at most 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

// What lane `from` holds; one outside of [first, last] stands for this lane itself.
template <typename T>
T shuffle(unsigned mask, T value, int from, int first, int last, const char* file, int line) {
  const unsigned lane_from = from < first || from > last ? lane() : unsigned(from);
  return from_bits<T>(exchange(mask, to_bits(value), lane_from, file, line));
}

template <typename T>
T shuffle_xor(unsigned mask, T value, int other, const char* file, int line, int width = 32) {
  const int own = int(lane()), last = own / width * width + width - 1;
  return shuffle(mask, value, own ^ other, 0, last, file, line);
}

template <typename T>
T shuffle_down(unsigned mask, T value, unsigned by, const char* file, int line, int width = 32) {
  const int own = int(lane()), last = own / width * width + width - 1;
  return shuffle(mask, value, own + int(by), 0, last, file, line);
}

template <typename T>
T shuffle_up(unsigned mask, T value, unsigned by, const char* file, int line, int width = 32) {
  const int own = int(lane()), first = own / width * width;
  return shuffle(mask, value, own - int(by), first, 31, file, line);
}

template <typename T>
T shuffle_from(unsigned mask, T value, int from, const char* file, int line, int width = 32) {
  const int own = int(lane());
  return shuffle(mask, value, own / width * width + from % width, 0, 31, file, line);
}

// Only one fiber runs at a time: an atomic operation is a plain one that the race check knows of.
template <typename T, typename Change>
T update(T* p, Change change) {
  atomic(p, sizeof(T));
  const T before = *p;
  atomic(p, sizeof(T));
  *p = change(before);
  return before;
}

}  // namespace cuda_on_cpu

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  auto how = cuda_on_cpu::launch_of(config->gridDim, config->blockDim, config->dynamicSmemBytes);
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& size = config->attrs[i].val.clusterDim;
      how.cluster = size.x * size.y * size.z;
    }
  cuda_on_cpu::launch<void (*)(Parameters...), std::remove_cvref_t<Parameters>...>(
      how, kernel, static_cast<Arguments&&>(arguments)...);
  return cudaSuccess;
}

// The device's side.

#define __syncthreads() ::cuda_on_cpu::block_barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, other, ...) \
  ::cuda_on_cpu::shuffle_xor(mask, value, other, __FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_down_sync(mask, value, by, ...) \
  ::cuda_on_cpu::shuffle_down(mask, value, by, __FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_up_sync(mask, value, by, ...) \
  ::cuda_on_cpu::shuffle_up(mask, value, by, __FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(mask, value, from, ...) \
  ::cuda_on_cpu::shuffle_from(mask, value, from, __FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __ballot_sync(mask, vote) ::cuda_on_cpu::ballot(mask, vote, __FILE__, __LINE__)
#define __any_sync(mask, vote) (::cuda_on_cpu::ballot(mask, vote, __FILE__, __LINE__) != 0)
#define __all_sync(mask, vote) (::cuda_on_cpu::ballot(mask, vote, __FILE__, __LINE__) == (mask))

template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return cuda_on_cpu::update(p, [v](T before) { return T(before + v); });
}

template <typename T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return cuda_on_cpu::update(p, [v](T before) { return before < v ? v : before; });
}

template <typename T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return cuda_on_cpu::update(p, [v](T before) { return v < before ? v : before; });
}

template <typename T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return cuda_on_cpu::update(p, [v](T before) { return T(before | v); });
}

template <typename T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return cuda_on_cpu::update(p, [v](T) { return v; });
}

template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return cuda_on_cpu::update(p, [=](T before) { return before == expected ? v : before; });
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}

inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(unsigned(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (v >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
// The compiler contracts nothing here, so plain operators round as these do.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
