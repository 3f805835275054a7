// Kernels with one fault each, and one with none: what machine.h must see, and say.
#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace {

constexpr int kThreads = 64;

struct alignas(16) Four {
  float v[4];
};

// Correct: sums 64 values through shared memory, shuffles, atomics and an asynchronous copy.
__global__ void __launch_bounds__(kThreads) correct(const float* x, float* out) {
  __shared__ float sums[kThreads / 32];
  __shared__ int count;
  extern __shared__ __align__(16) unsigned char held[];
  float* copied = reinterpret_cast<float*>(held);
  if (threadIdx.x == 0) count = 0;
  if (threadIdx.x < kThreads / 4) __pipeline_memcpy_async(copied + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  atomicAdd(&count, 1);
  float sum = copied[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    out[0] = sums[0] + sums[1];
    out[1] = float(count);
    out[2] = float(__popc(0x70u));
  }
}

__global__ void correct_cluster(const float* x, float* out) {
  const auto cluster = cooperative_groups::this_cluster();
  __shared__ float own;
  if (threadIdx.x == 0) own = x[cluster.block_rank()];
  cluster.sync();
  if (threadIdx.x == 0)
    out[blockIdx.x] = *cluster.map_shared_rank(&own, cluster.num_blocks() - 1 - cluster.block_rank());
  cluster.sync();
}

__global__ void reads_past_the_end(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x + 1]; }
__global__ void writes_past_the_end(const float* x, float* out) { out[threadIdx.x + 1] = x[threadIdx.x]; }
__global__ void writes_an_input(float* x, float*) { x[threadIdx.x] = 0; }

__global__ void misaligned_vector(const float* x, float* out) {
  if (threadIdx.x == 0) *reinterpret_cast<Four*>(out) = *reinterpret_cast<const Four*>(x + 1);
}

__global__ void past_a_shared_array(const float* x, float*) {
  __shared__ float held[kThreads];
  held[threadIdx.x + 1] = x[0];
}

__global__ void uninitialised_shared(const float*, float* out) {
  __shared__ float held[kThreads];
  out[threadIdx.x] = held[threadIdx.x];
}

__global__ void no_barrier(const float* x, float* out) {
  __shared__ float held[kThreads];
  held[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = held[threadIdx.x ^ 1];
}

// The barrier that keeps a second round from overwriting what the first still reads is missing.
__global__ void no_second_barrier(const float* x, float* out) {
  __shared__ float held[kThreads];
  for (int round = 0; round < 2; ++round) {
    held[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = held[kThreads - 1 - threadIdx.x];
  }
}

__global__ void two_blocks_write_one_value(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x]; }

__global__ void a_lane_is_missing(const float* x, float* out) {
  if (threadIdx.x % 32 == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1);
}

__global__ void a_lane_goes_elsewhere(const float* x, float* out) {
  if (threadIdx.x % 32 == 7)
    __syncthreads();
  else
    out[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1);
}

__global__ void a_mask_leaves_out_its_own(const float* x, float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffu, x[threadIdx.x], 1);
}

__global__ void two_barriers(const float*, float*) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void __launch_bounds__(32) too_many_threads(const float*, float*) {}

__global__ void a_block_ends_early(const float*, float* out) {
  const auto cluster = cooperative_groups::this_cluster();
  __shared__ float own;
  own = 1;
  cluster.sync();
  if (cluster.block_rank() == 0) return;
  cluster.sync();
  out[blockIdx.x] = *cluster.map_shared_rank(&own, 0);
}

__global__ void no_last_barrier_of_the_cluster(const float*, float* out) {
  const auto cluster = cooperative_groups::this_cluster();
  __shared__ float own;
  own = 1;
  cluster.sync();
  out[blockIdx.x] = *cluster.map_shared_rank(&own, 0);
}

__global__ void a_copy_is_not_waited_for(const float* x, float* out) {
  __shared__ __align__(16) float held[4 * kThreads];
  __pipeline_memcpy_async(held + 4 * threadIdx.x, x + threadIdx.x / 4 * 4, 16);
  __pipeline_commit();
  out[threadIdx.x] = held[4 * threadIdx.x];
}

__global__ void too_much_shared_memory(const float*, float*) {
  __shared__ float held[20000];
  held[threadIdx.x] = 0;
}

__global__ void another_threads_variable(const float* x, float* out) {
  __shared__ const float* given;
  const float own[2] = {x[0], x[1]};
  if (threadIdx.x == 0) given = own;
  __syncthreads();
  if (threadIdx.x == 1) out[0] = given[x[0] > 0];
}

}  // namespace

// Runs the kernel of that name on 64 values and as many results; what the machine says, "" where it finds nothing.
extern "C" const char* run_kernel(const char* name, const float* x, float* out) {
  static std::string said;
  said.clear();
  cuda_on_cpu::seen(x, kThreads * sizeof(float), sizeof(float), false);
  cuda_on_cpu::seen(out, kThreads * sizeof(float), sizeof(float), true);
  const std::string wanted = name;
  bool known = false;
  const auto is = [&](const char* candidate) {
    known = known || wanted == candidate;
    return wanted == candidate;
  };
  const auto clustered = [&](auto kernel) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {4, 1, 1};
    cudaLaunchConfig_t config;
    config.gridDim = 4;
    config.blockDim = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, kernel, x, out);
  };
  try {
    if (is("correct")) correct<<<1, kThreads, kThreads * sizeof(float), nullptr>>>(x, out);
    if (is("correct_cluster")) clustered(correct_cluster);
    if (is("reads_past_the_end")) reads_past_the_end<<<1, kThreads>>>(x, out);
    if (is("writes_past_the_end")) writes_past_the_end<<<1, kThreads>>>(x, out);
    if (is("writes_an_input")) writes_an_input<<<1, kThreads>>>(const_cast<float*>(x), out);
    if (is("misaligned_vector")) misaligned_vector<<<1, kThreads>>>(x, out);
    if (is("past_a_shared_array")) past_a_shared_array<<<1, kThreads>>>(x, out);
    if (is("uninitialised_shared")) uninitialised_shared<<<1, kThreads>>>(x, out);
    if (is("no_barrier")) no_barrier<<<1, kThreads>>>(x, out);
    if (is("no_second_barrier")) no_second_barrier<<<1, kThreads>>>(x, out);
    if (is("two_blocks_write_one_value")) two_blocks_write_one_value<<<2, kThreads>>>(x, out);
    if (is("a_lane_is_missing")) a_lane_is_missing<<<1, kThreads>>>(x, out);
    if (is("a_lane_goes_elsewhere")) a_lane_goes_elsewhere<<<1, kThreads>>>(x, out);
    if (is("a_mask_leaves_out_its_own")) a_mask_leaves_out_its_own<<<1, kThreads>>>(x, out);
    if (is("two_barriers")) two_barriers<<<1, kThreads>>>(x, out);
    if (is("too_many_threads")) too_many_threads<<<1, kThreads>>>(x, out);
    if (is("a_block_ends_early")) clustered(a_block_ends_early);
    if (is("no_last_barrier_of_the_cluster")) clustered(no_last_barrier_of_the_cluster);
    if (is("a_copy_is_not_waited_for")) a_copy_is_not_waited_for<<<1, kThreads>>>(x, out);
    if (is("too_much_shared_memory")) too_much_shared_memory<<<1, kThreads>>>(x, out);
    if (is("another_threads_variable")) another_threads_variable<<<1, kThreads>>>(x, out);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  cuda_on_cpu::forget();
  if (!known) said = "no such kernel";
  return said.c_str();
}
