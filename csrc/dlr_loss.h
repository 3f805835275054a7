// The difference of logits ratio of one sample and its gradient, shared by CPU and CUDA.
// robustfast/reference/dlr_loss.py is the definition.
#pragma once
#include <cstdint>

#include <torch/headeronly/macros/Macros.h>

#include "ranking.h"

namespace robustfast {

// Numerator and denominator: the margin between two classes, over the gap from the largest logit to the third one
// (untargeted), or to the mean of the third and fourth.
template <bool kTargeted, typename C>
struct LogitsRatio {
  static constexpr int kRanked = kTargeted ? 4 : 3;

  int64_t other, own;
  Ranking<kRanked, C> top;
  C margin, gap;

  C10_HOST_DEVICE LogitsRatio(int64_t other, int64_t own, C other_logit, C own_logit, const Ranking<kRanked, C>& top)
      : other(other), own(own), top(top), margin(other_logit - own_logit) {
    const C low = kTargeted ? C(0.5) * (top.value[2] + top.value[kRanked - 1]) : top.value[2];
    gap = top.value[0] - low + C(1e-12);
  }

  C10_HOST_DEVICE C value() const { return margin / gap; }

  // The gradient at one class; parts that meet at a class are added in this order on every backend.
  C10_HOST_DEVICE C gradient(int64_t c, C grad) const {
    const C margin_slope = grad / gap, gap_slope = -grad * ((margin / gap) / gap);
    const auto at = [c](int64_t place, C slope) { return c == place ? slope : C(0); };
    const C here = at(other, margin_slope) - at(own, margin_slope) + at(top.place[0], gap_slope);
    if constexpr (!kTargeted) return here - at(top.place[2], gap_slope);
    const C half = gap_slope * C(0.5);
    return here - at(top.place[2], half) - at(top.place[kRanked - 1], half);
  }
};

}  // namespace robustfast
