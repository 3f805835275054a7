// One hidden unit of the three-way head, shared by CPU and CUDA. robustfast/reference/three_way_head.py is the
// definition.
#pragma once
#include <torch/headeronly/macros/Macros.h>

#include "precision.h"

namespace robustfast {

// A hidden unit, or its gradient, in the standard, the robust and the non-robust way.
template <typename T>
struct Ways {
  T s, r, n;
};

// Written so that NaN passes through, as torch.relu does; its gradient likewise.
template <typename T>
C10_HOST_DEVICE inline T relu(T v) {
  return v <= T(0) ? T(0) : v;
}

template <typename T>
C10_HOST_DEVICE inline T relu_backward(T d, T hidden) {
  return hidden <= T(0) ? T(0) : d;
}

template <typename T>
C10_HOST_DEVICE inline Ways<T> three_way_hidden(T p_r, T p_n, T b1) {
  return {relu((p_r + p_n) + b1), relu(p_r + b1), relu(p_n + b1)};
}

// Gradients of the half products; the bias gains r + n_alone, as the standard way counts once.
template <typename T>
struct ThreeWayGradient {
  T r, n, n_alone;
};

template <typename T>
C10_HOST_DEVICE inline ThreeWayGradient<T> three_way_hidden_backward(Ways<T> d, Ways<T> hidden) {
  const T s = relu_backward(d.s, hidden.s), r = relu_backward(d.r, hidden.r), n = relu_backward(d.n, hidden.n);
  return {s + r, s + n, n};
}

}  // namespace robustfast
