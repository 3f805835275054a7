// The type that a value is computed in: half types count in float32 and are rounded once.
#pragma once
#include <type_traits>

#include <torch/headeronly/core/ScalarType.h>

namespace robustfast {

template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline torch::headeronly::ScalarType compute_type(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::Double ? type : ScalarType::Float;
}

}  // namespace robustfast
