// A CUDA device that runs on the CPU: what rewritten kernels call. Threads of a block are fibers, of which one runs at
// a time; blocks run one cluster after the other. machine.cpp checks every load and store of a kernel.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

struct Index {
  unsigned x, y, z;
};

// Constant within a thread, and a kernel's functions never leave theirs.
__attribute__((const)) Index thread_index() noexcept;
__attribute__((const)) Index block_index() noexcept;
__attribute__((const)) Index block_dim() noexcept;
__attribute__((const)) Index grid_dim() noexcept;
__attribute__((const)) unsigned cluster_rank() noexcept;
__attribute__((const)) unsigned cluster_size() noexcept;

struct Launch {
  Index grid, block;
  size_t shared;
  unsigned cluster = 1;
};

// Runs body(argument) once per thread of the grid; throws std::runtime_error with what the kernel did wrong.
void run(const Launch& launch, void (*body)(void*), void* argument);

// A kernel begins, whose __launch_bounds__ allow so many threads; 0 where it has none.
void entered(const char* kernel, unsigned threads = 0, unsigned = 0, unsigned = 0);

void block_barrier(const char* file, int line);
void cluster_barrier(const char* file, int line);

// Waits until all lanes of `mask` have come with a value; that of lane `from`.
uint64_t exchange(unsigned mask, uint64_t value, unsigned from, const char* file, int line);
unsigned ballot(unsigned mask, bool vote, const char* file, int line);
unsigned lane() noexcept;

// Where this block keeps the shared variable that `key` stands for; key null: the dynamic shared memory.
void* shared(const void* key, size_t size, size_t align);
void* shared_of(const void* mine, unsigned rank);

// The next access of this thread is atomic.
void atomic(const void* p, size_t size);

void copy_async(void* shared, const void* global, size_t size);
void commit_async();
void wait_async(size_t groups_left);

// A tensor's memory, as kernels may use it until the op returns.
void* seen(const void* data, int64_t bytes, int64_t itemsize, bool writable);
void forget();
bool numbers_on_host();

// What the device is like.
int compute_capability();  // 80, 90
size_t shared_bytes_per_block();

[[noreturn]] void fail(const char* what);

}  // namespace cuda_on_cpu
