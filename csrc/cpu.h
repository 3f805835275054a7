// What every CPU kernel needs: instruction-set variants and the grain of parallel loops.
#pragma once
#include <cstdint>

// Loops are compiled for AVX-512, AVX2 and baseline x86-64, and the loader picks: no -march=native, which makes
// binaries that crash on other machines.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ROBUSTFAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ROBUSTFAST_CLONES
#endif

namespace robustfast {

// Elements below which a second thread costs more than it saves (one fused pass moves 10 GB/s and more per core).
constexpr int64_t kGrain = 1 << 15;

// Independent partial sums: the compiler may not reorder one floating-point sum, but vectorises this many.
constexpr int kLanes = 16;

}  // namespace robustfast
