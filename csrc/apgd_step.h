// One element of APGD's step, shared by CPU and CUDA. robustfast/reference/apgd_step.py is the definition.
#pragma once
#include <cstdint>

#include <torch/headeronly/macros/Macros.h>

#include "box.h"
#include "l1_box.h"
#include "pgd_step.h"

namespace robustfast {

// Added to the l2 norm of a gradient before it divides a step, as in the authors' code.
constexpr double kApgdTiny = 1e-12;

// Mixes the step to z with the last one, in the order of the authors' code.
template <typename T>
struct Momentum {
  T now, before;  // before is 1 - now

  C10_HOST_DEVICE explicit Momentum(T weight) : now(weight), before(T(1) - weight) {}
  C10_HOST_DEVICE inline T operator()(T x_adv, T z, T x_old) const {
    return (x_adv + (z - x_adv) * now) + (x_adv - x_old) * before;
  }
};

template <typename T>
C10_HOST_DEVICE inline T apgd_step_linf(T x_adv, T x_old, T g, T x, T step_size, T eps, Momentum<T> mix, Bounds<T> b) {
  // step_size * sign(g) as two blends, see pgd_step.h.
  const T step = g > T(0) ? step_size : g < T(0) ? -step_size : T(0);
  const T low = x - eps, high = x + eps;
  const T z = clamp(clamp(x_adv + step, low, high), b.lo, b.hi);
  return clamp(clamp(mix(x_adv, z, x_old), low, high), b.lo, b.hi);
}

// Where a sample steps under l2, seen from x: by scale times a gradient without nan. A sample without a direction has
// scale 0, and is x_adv - x then: an infinite entry may not make NaN of it. Which of the two is the same for all its
// entries, and a choice outside of their loop.
template <typename T>
C10_HOST_DEVICE inline T apgd_stepped_delta(T x_adv, T g, T x, double scale) {
  return (x_adv + static_cast<T>(static_cast<double>(g) * scale)) - x;
}

// Where a sample goes under l2 before the second projection, seen from x; `first` brings the step back into the ball.
template <typename T>
C10_HOST_DEVICE inline T apgd_mixed_delta(T x_adv, T x_old, T x, T delta, Projection<Norm::l2> first, Momentum<T> mix,
                                          Bounds<T> b) {
  return mix(x_adv, clamp(x + first(delta), b.lo, b.hi), x_old) - x;
}

C10_HOST_DEVICE inline Projection<Norm::l2> apgd_ball(double length, double eps) {
  return length > eps ? Projection<Norm::l2>{false, eps / length} : Projection<Norm::l2>{true, 0};
}

// How many entries an l1 step of n moves. In float32 whatever the images are: the authors' rounding decides.
C10_HOST_DEVICE inline int64_t apgd_entries(float sparsity, int64_t n) {
  const float rank = (1.0f - sparsity) * static_cast<float>(n), last = static_cast<float>(n - 1);
  return n - static_cast<int64_t>(rank > 0.0f ? (rank < last ? rank : last) : 0.0f);
}

// An entry after the sparse step, before it is projected: those from the threshold on move by scale, along their sign.
template <typename T>
C10_HOST_DEVICE inline T apgd_sparse(T x_adv, T g, T threshold, double scale) {
  return x_adv + (absolute(g) >= threshold ? static_cast<T>(static_cast<double>(sign(g)) * scale) : T(0));
}

}  // namespace robustfast
