// The box that pixels lie in, shared by CPU and CUDA.
#pragma once
#include <torch/headeronly/macros/Macros.h>

namespace robustfast {

template <typename T>
struct Bounds {
  T lo, hi;
};

// Written so that a NaN v passes through, as torch.clamp does.
template <typename T>
C10_HOST_DEVICE inline T clamp(T v, T lo, T hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

}  // namespace robustfast
