// Where the rows of one call of the l1 projection lie, shared by CPU and CUDA; the arithmetic of a row is l1_box.h's.
// robustfast/reference/l1_projection.py is the definition.
#pragma once
#include <cstdint>

#include <torch/headeronly/macros/Macros.h>

#include "l1_box.h"

namespace robustfast {

// One sample: n entries of the image, of its centre and of the result, which may be the image itself.
template <typename T>
struct L1Row {
  const T *x_adv, *x;
  T* out;
  int64_t n;

  C10_HOST_DEVICE L1Entry<T> entry(int64_t i, Bounds<T> b) const { return l1_entry(x_adv[i], x[i], b); }
  C10_HOST_DEVICE void project(int64_t i, double tau, Bounds<T> b) const {
    out[i] = l1_project(x_adv[i], x[i], tau, b);
  }
};

}  // namespace robustfast
