// Sums over a sample that one block holds, or the blocks of a cluster between them.
#pragma once
#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda.h"

// Clusters of blocks that read each other's shared memory: compute capability 9.0 and later.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define ROBUSTFAST_CLUSTERS 1
#else
#define ROBUSTFAST_CLUSTERS 0
#endif

namespace robustfast {

// The blocks that hold one sample. Without cluster launch: this block alone.
struct Cluster {
#if ROBUSTFAST_CLUSTERS
  __device__ unsigned size() const { return cooperative_groups::this_cluster().num_blocks(); }
  __device__ unsigned rank() const { return cooperative_groups::this_cluster().block_rank(); }
  __device__ void sync() const { cooperative_groups::this_cluster().sync(); }
  // Where block `rank` has the variable that `mine`, in static shared memory, points to here.
  template <typename T>
  __device__ const T* of(T* mine, unsigned rank) const {
    return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
  }
#else
  __device__ unsigned size() const { return 1; }
  __device__ unsigned rank() const { return 0; }
  __device__ void sync() const { __syncthreads(); }
  template <typename T>
  __device__ const T* of(T* mine, unsigned) const {
    return mine;
  }
#endif
};

// What a SampleSums keeps in static shared memory.
struct SumSlots {
  double warps[2][3][32];
  double blocks[2][3];
};

// Combines one to three values per thread over a sample; every thread gets the results. The order is fixed, so that two
// runs agree bit for bit. blockDim.x must be a multiple of 32, neutral is 0. One barrier each: turns alternate between
// two sets of slots, and no thread comes back to a set before all have passed the barrier of the other.
template <bool kCluster>
struct SampleSums {
  SumSlots* slots;
  int turn = 0;

  template <typename Combine, int kValues>
  __device__ void over(double (&values)[kValues], Combine combine) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const double sum = over_warp(values[i], combine);
      if (lane == 0) slots->warps[turn][i][warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      values[i] = over_warp(lane < int(blockDim.x / 32) ? slots->warps[turn][i][lane] : 0.0, combine);
    if constexpr (kCluster) {
      const Cluster cluster;
      if (threadIdx.x == 0)
        for (int i = 0; i < kValues; ++i) slots->blocks[turn][i] = values[i];
      cluster.sync();
      const bool one = lane < int(cluster.size());
#pragma unroll
      for (int i = 0; i < kValues; ++i)
        values[i] = over_warp(one ? *cluster.of(&slots->blocks[turn][i], lane) : 0.0, combine);
    }
    turn ^= 1;
  }

  template <typename Combine>
  __device__ double of(double value, Combine combine) {
    double values[1] = {value};
    over(values, combine);
    return values[0];
  }

 private:
  template <typename Combine>
  __device__ static double over_warp(double value, Combine combine) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
    return value;
  }
};

// What kth_largest_size needs in static shared memory.
struct Histogram {
  int counts[2][256];  // by turns, since other blocks may still be reading the last one
  int merged[256];
  uint32_t found;
  int left;
};

// The bit pattern of the k-th largest size of a sample of float32, digit by digit from the top: sizes order like their
// bit patterns. sizes(visit) calls visit(bits) for each value that the thread holds.
template <bool kCluster, typename Sizes>
__device__ uint32_t kth_largest_size(int64_t k, Sizes sizes, Histogram& h) {
  const Cluster cluster;
  uint32_t prefix = 0;
  int left = int(k);
#pragma unroll 1
  for (int round = 0; round < 4; ++round) {
    // Of the 31 bits under the sign: the exponent, then 8, 8 and 7 bits of the fraction.
    const int low = round == 3 ? 0 : 23 - 8 * round, high = round == 0 ? 31 : 31 - 8 * round;
    int* counts = h.counts[round % 2];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    sizes([&](uint32_t bits) {
      if (bits >> high == prefix >> high) atomicAdd(&counts[(bits & ((1u << high) - 1)) >> low], 1);
    });
    if constexpr (kCluster) {
      cluster.sync();
    } else {
      __syncthreads();
    }
    for (int i = threadIdx.x; i < 256; i += blockDim.x) {
      int sum = 0;
      for (unsigned rank = 0; rank < (kCluster ? cluster.size() : 1); ++rank)
        sum += kCluster ? *cluster.of(&counts[i], rank) : counts[i];
      h.merged[i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Each lane has eight digits; `above` counts those of later lanes.
      const int lane = threadIdx.x;
      int own = 0;
      for (int i = 0; i < 8; ++i) own += h.merged[8 * lane + i];
      int from = own;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int more = __shfl_down_sync(~0u, from, offset);
        if (lane + offset < 32) from += more;
      }
      int above = from - own;
      if (above < left && from >= left) {
        int i = 7;
        while (above + h.merged[8 * lane + i] < left) above += h.merged[8 * lane + i--];
        h.found = prefix | uint32_t(8 * lane + i) << low;
        h.left = left - above;
      }
    }
    __syncthreads();
    prefix = h.found;
    left = h.left;
  }
  return prefix;
}

// How samples are held in shared memory: each by so many blocks, so many elements and bytes a block.
struct Held {
  int blocks;  // 0: they do not fit
  int64_t chunk;
  size_t bytes;
};

inline cudaLaunchConfig_t held_launch(const Held& held, int64_t grid, int threads, cudaStream_t stream,
                                      cudaLaunchAttribute* cluster) {
  cluster->id = cudaLaunchAttributeClusterDimension;
  cluster->val.clusterDim.x = held.blocks;
  cluster->val.clusterDim.y = cluster->val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = held.bytes;
  config.stream = stream;
  config.attrs = cluster;
  config.numAttrs = held.blocks > 1;
  return config;
}

// The fewest blocks, `most` at most, that hold a sample of n elements, in chunks of a multiple of `grain`. Two blocks
// to a multiprocessor if that can be, so that one loads while the other stores; `room` bytes a block if it is not 0.
// Allows `kernel` the shared memory and the clusters that it takes. Asks the driver once for each kernel and size.
template <typename... Arguments>
Held hold(void (*kernel)(Arguments...), int64_t n, size_t element, int64_t grain, int threads, int64_t most,
          int64_t room) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int64_t, int, int64_t, int64_t>, Held> known;
  int device = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(reinterpret_cast<const void*>(kernel), device, n, threads, most, room);
  if (const auto entry = known.find(key); entry != known.end()) return entry->second;

  int block = 0, processor = 0, clusters = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device));
  cudaFuncAttributes code;
  STD_CUDA_CHECK(cudaFuncGetAttributes(&code, kernel));
  // Code for older devices runs on newer ones, and knows no clusters.
  if (!clusters || code.ptxVersion < 90) most = 1;
  const int64_t fixed = int64_t(code.sharedSizeBytes), whole = block - fixed;
  const int64_t half = std::min(whole, processor / 2 - 1024 - fixed);  // the driver keeps 1 KB of each block
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(whole)));
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  if (most > 8) STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (const int64_t limit : {room ? std::min(room, whole) : half, whole}) {
    for (int blocks = 1; blocks <= most; blocks *= 2) {
      const int64_t chunk = (n + blocks * grain - 1) / (blocks * grain) * grain;
      if (chunk * int64_t(element) > limit) continue;
      const Held found{blocks, chunk, size_t(chunk) * element};
      if (blocks > 1) {
        cudaLaunchAttribute attribute;
        const auto config = held_launch(found, blocks, threads, nullptr, &attribute);
        int active = 0;
        if (cudaOccupancyMaxActiveClusters(&active, kernel, &config) != cudaSuccess) cudaGetLastError();
        if (active == 0) continue;
      }
      return known[key] = found;
    }
  }
  // What fits nowhere is remembered too; what the driver refused to tell is asked again.
  return known[key] = Held{0, 0, 0};
}

template <typename... Arguments, typename... Values>
void launch_held(void (*kernel)(Arguments...), const Held& held, int64_t batch, int threads, cudaStream_t stream,
                 Values... values) {
  cudaLaunchAttribute attribute;
  const auto config = held_launch(held, batch * held.blocks, threads, stream, &attribute);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, values...));
}

}  // namespace robustfast
