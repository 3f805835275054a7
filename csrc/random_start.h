// One quad of random starts, shared by CPU and CUDA. robustfast/reference/random_start.py is the definition.
#pragma once
#include <cmath>
#include <cstdint>

#include "continuous.h"
#include "philox.h"
#include "planes.h"

namespace robustfast {

enum class Law : int64_t { pixel = 0, l2 = 1, l1 = 2 };

// The second word of the counter: what a draw is for.
enum class Purpose : uint32_t { pixel = 0, direction = 1, radius = 2 };

// Uniform on the 2^24 multiples of 2^-23 in [-1, 1): exact in float32, so that only the product with eps rounds.
template <typename T>
C10_HOST_DEVICE inline T unit_pixel(uint32_t word) {
  return static_cast<T>(static_cast<int32_t>(word >> 8) - (1 << 23)) * static_cast<T>(0x1p-23);
}

// Box and Muller 1958: sqrt(squared_radius) times a point of the unit circle is two normal draws of variance 1/2,
// density ~ exp(-t^2). No word gives a radius of zero.
C10_HOST_DEVICE inline double squared_radius(uint32_t word) { return exponential(middle(word) * 0x1p-32); }

// A draw of density ~ exp(-|t|): the low bit is the sign.
C10_HOST_DEVICE inline double laplace(uint32_t word) {
  const double size = exponential(middle(word >> 1) * 0x1p-31);
  return word & 1 ? -size : size;
}

// What brings draws g of density ~ exp(-|t|^p), whose sum of |g|^p is `sum`, uniformly into the lp ball of radius eps:
// one more exponential draw in their length (robustfast/ops/random_start.py names the theorem).
C10_HOST_DEVICE inline double ball_scale(Law law, double eps, double sum, uint32_t word) {
  const double total = sum + exponential(middle(word) * 0x1p-32);
  return eps / (law == Law::l2 ? sqrt(total) : total);
}

}  // namespace robustfast
