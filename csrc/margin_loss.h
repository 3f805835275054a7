// The margin of one sample and its gradient, shared by CPU and CUDA. robustfast/reference/margin_loss.py is the
// definition.
#pragma once
#include <cstdint>

#include <torch/headeronly/macros/Macros.h>

#include "ranking.h"

namespace robustfast {

// Written so that a NaN margin stays one.
template <typename C>
C10_HOST_DEVICE inline C margin(C other, C own, C kappa) {
  const C m = other - own;
  return m > kappa ? kappa : m;
}

// The gradient at one class: nothing flows where kappa cuts off.
template <typename C>
struct MarginGradient {
  int64_t other, own;
  C slope;

  C10_HOST_DEVICE MarginGradient(int64_t other, int64_t own, C margin, C kappa, C grad)
      : other(other), own(own), slope(margin > kappa ? C(0) : grad) {}
  C10_HOST_DEVICE C at(int64_t c) const { return (c == other ? slope : C(0)) - (c == own ? slope : C(0)); }
};

}  // namespace robustfast
