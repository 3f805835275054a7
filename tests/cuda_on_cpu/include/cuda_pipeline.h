// Copies into shared memory that a thread waits for: they are made at the wait, so that whoever reads earlier is seen.
#pragma once
#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* shared, const void* global, size_t size, size_t zero_fill = 0) {
  if (zero_fill) cuda_on_cpu::fail("__pipeline_memcpy_async with zero filling does not run here");
  cuda_on_cpu::copy_async(shared, global, size);
}
inline void __pipeline_commit() { cuda_on_cpu::commit_async(); }
inline void __pipeline_wait_prior(size_t groups_left) { cuda_on_cpu::wait_async(groups_left); }
