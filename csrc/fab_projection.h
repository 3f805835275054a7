// One entry of FAB's projection, shared by CPU and CUDA. robustfast/reference/fab_projection.py is the definition.
#pragma once
#include <cstdint>

#include <torch/headeronly/macros/Macros.h>

namespace robustfast {

enum class FabNorm : int64_t { linf = 0, l2 = 1, l1 = 2 };

// How one sample sees its hyperplane: turned so that the step has to lower <side * w, x> by gap >= 0.
struct FabRow {
  double side, gap, lo, hi;

  // `excess` is <w, x> - b.
  C10_HOST_DEVICE inline FabRow(double excess, double lo, double hi)
      : side(excess < 0 ? -1 : 1), gap(excess < 0 ? -excess : excess), lo(lo), hi(hi) {}

  C10_HOST_DEVICE inline double slope(double w) const { return w < 0 ? -w : w; }

  // The way to the wall; an x outside the box counts as on it. Both ways are computed before one is chosen, here and
  // below: the compiler then blends, where a branch on the sign of a gradient is mispredicted half of the time.
  C10_HOST_DEVICE inline double room(double x, double w) const {
    const double down = x - lo, up = hi - x;
    const double way = side * w > 0 ? down : up;
    return way > 0 ? way : 0;
  }
};

// What an entry moves by, given the one number of its sample.
template <FabNorm norm>
struct FabMove {
  bool usable;   // neither w nor b holds a nan or an infinity
  bool all;      // the box does not reach the hyperplane: to the wall
  double value;  // linf, l2: the multiplier; l1: the slope at the threshold
  double share;  // l1: of the room, where the slope ties with the threshold

  C10_HOST_DEVICE static inline double speed(double slope) { return norm == FabNorm::linf ? 1.0 : slope; }

  C10_HOST_DEVICE inline double operator()(double slope, double room) const {
    double moved;
    if constexpr (norm == FabNorm::l1) {
      const double part = room * share;
      moved = slope == value ? part : 0.0;
      moved = slope > value ? room : moved;
    } else {
      moved = value * speed(slope);
      moved = moved < room ? moved : room;
    }
    moved = all ? room : moved;
    return usable & (slope > 0) ? moved : 0.0;
  }
};

// l1: the share of the entries that tie, whose reach is `tied`; those above them close `above` of the gap.
C10_HOST_DEVICE inline double fab_share(double gap, double above, double tied) {
  const double share = tied > 0 ? (gap - above) / tied : 0;
  return share > 1 ? 1 : share > 0 ? share : 0;
}

}  // namespace robustfast
