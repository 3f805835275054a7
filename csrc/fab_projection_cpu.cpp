#include "fab_projection.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu.h"
#include "layout.h"

namespace robustfast {
namespace {

// Room for one sample, kept from row to row.
struct Scratch {
  std::vector<double> slope, room;
  std::vector<int32_t> picked;
  explicit Scratch(int64_t n) : slope(n), room(n), picked(n) {}
};

template <typename T>
ROBUSTFAST_CLONES double excess_of(const T* x, const T* w, double b, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += double(w[i + j]) * double(x[i + j]);
  for (; i < n; ++i) lanes[i % kLanes] += double(w[i]) * double(x[i]);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total - b;
}

// Slopes and rooms of a sample; returns what the box lets it close of the gap.
template <typename T>
ROBUSTFAST_CLONES double load_row(const T* x, const T* w, const FabRow row, double* slope, double* room, int64_t n) {
  double lanes[kLanes] = {};
  const auto load = [&](int64_t i, int j) __attribute__((always_inline)) {
    slope[i] = row.slope(w[i]);
    room[i] = row.room(x[i], w[i]);
    lanes[j] += slope[i] * room[i];
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) load(i + j, j);
  for (; i < n; ++i) load(i, int(i % kLanes));
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

// Of the entries at their wall for multiplier m: their reach and number; and the pull of the others.
struct Walls {
  double reach, pull, count;
};

// Three sums at once: with kLanes of each they no longer fit into registers (784 entries: 0.85 us, with half 0.53 us).
constexpr int kWallLanes = kLanes / 2;

template <FabNorm norm>
ROBUSTFAST_CLONES Walls walls(const double* slope, const double* room, double m, int64_t n) {
  double reach[kWallLanes] = {}, pull[kWallLanes] = {}, count[kWallLanes] = {};
  const auto add = [&](int64_t i, int j) __attribute__((always_inline)) {
    const double speed = FabMove<norm>::speed(slope[i]);
    const bool at_wall = room[i] <= m * speed;
    const double its_reach = slope[i] * room[i], its_pull = slope[i] * speed;
    reach[j] += at_wall ? its_reach : 0;
    pull[j] += at_wall ? 0 : its_pull;
    count[j] += at_wall ? 1 : 0;
  };
  int64_t i = 0;
  for (; i + kWallLanes <= n; i += kWallLanes)
    for (int j = 0; j < kWallLanes; ++j) add(i + j, j);
  for (; i < n; ++i) add(i, int(i % kWallLanes));
  Walls total{};
  for (int j = 0; j < kWallLanes; ++j) total.reach += reach[j], total.pull += pull[j], total.count += count[j];
  return total;
}

// The m that closes the gap: Newton from the left on a concave function, so the entries at a wall only grow in number.
template <FabNorm norm>
double multiplier(const double* slope, const double* room, double gap, int64_t n) {
  Walls now = walls<norm>(slope, room, -1, n);
  double m = gap / now.pull;
  for (double last = 0;; last = now.count) {
    now = walls<norm>(slope, room, m, n);
    if (now.count <= last || !(now.pull > 0)) return m;
    m = (gap - now.reach) / now.pull;
  }
}

// The slope down to which entries take all their room, found digit by digit from the top: slopes order like their bit
// patterns. Only the entries of one digit go on to the next.
template <typename T>
void choose_steepest(Scratch& row, double gap, int64_t n, FabMove<FabNorm::l1>& move) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int kDigit = 8;
  const auto digit = [&](int32_t i, int shift) {
    const T slope = static_cast<T>(row.slope[i]);  // exact: it was a T
    Bits bits;
    std::memcpy(&bits, &slope, sizeof(T));
    return static_cast<int>((bits << 1) >> shift & ((1 << kDigit) - 1));  // without the sign: eight bits of exponent
  };
  double above = 0, tied = 0;
  int64_t left = n;
  for (int64_t i = 0; i < n; ++i) row.picked[i] = int32_t(i);
  for (int shift = sizeof(T) * 8 - kDigit; shift >= 0 && left > 0; shift -= kDigit) {
    double reach[1 << kDigit] = {};
    bool seen[1 << kDigit] = {};
    for (int64_t k = 0; k < left; ++k) {
      const int32_t i = row.picked[k];
      const int at = digit(i, shift);
      reach[at] += row.slope[i] * row.room[i];
      seen[at] = true;
    }
    int found = -1;
    for (int at = (1 << kDigit) - 1; at >= 0; --at) {
      if (!seen[at]) continue;
      if (found >= 0) above += tied;  // the digit before was not enough
      found = at;
      tied = reach[at];
      if (above + tied >= gap) break;
    }
    int64_t kept = 0;
    for (int64_t k = 0; k < left; ++k) {
      const int32_t i = row.picked[k];
      row.picked[kept] = i;
      kept += digit(i, shift) == found;
    }
    left = kept;
  }
  move.value = row.slope[row.picked[0]];
  move.share = fab_share(gap, above, tied);
}

template <typename T, FabNorm norm>
ROBUSTFAST_CLONES void write_row(const T* w, const double* slope, const double* room, T* out, int64_t n, double side,
                                 FabMove<norm> move) {
  for (int64_t i = 0; i < n; ++i) {
    const double step = move(slope[i], room[i]), back = -step;
    out[i] = static_cast<T>(side * double(w[i]) > 0 ? back : step);
  }
}

template <typename T, FabNorm norm>
void project_row(const T* x, const T* w, double b, T* out, int64_t n, double lo, double hi, Scratch& scratch) {
  const FabRow row(excess_of(x, w, b, n), lo, hi);
  const double total = load_row(x, w, row, scratch.slope.data(), scratch.room.data(), n);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  FabMove<norm> move{row.gap < kInfinity && total < kInfinity, !(total > row.gap), 0, 0};
  if (move.usable && !move.all) {
    if constexpr (norm == FabNorm::l1)
      choose_steepest<T>(scratch, row.gap, n, move);
    else
      move.value = multiplier<norm>(scratch.slope.data(), scratch.room.data(), row.gap, n);
  }
  write_row(w, scratch.slope.data(), scratch.room.data(), out, n, row.side, move);
}

template <typename T>
void run(const Tensor& x, const Tensor& w, const Tensor& b, FabNorm norm, double lo, double hi, Tensor& out) {
  const auto* points = static_cast<const T*>(x.const_data_ptr());
  const auto* normals = static_cast<const T*>(w.const_data_ptr());
  const auto* offsets = static_cast<const T*>(b.const_data_ptr());
  auto* steps = static_cast<T*>(out.mutable_data_ptr());
  const int64_t n = out.numel() / out.size(0), planes = w.size(0);
  const auto project = norm == FabNorm::linf ? project_row<T, FabNorm::linf>
                       : norm == FabNorm::l2 ? project_row<T, FabNorm::l2>
                                             : project_row<T, FabNorm::l1>;
  // A row is read some ten times.
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / (8 * n)), [&](int64_t begin, int64_t end) {
    Scratch scratch(n);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t plane = i % planes;
      project(points + i * n, normals + plane * n, offsets[plane], steps + i * n, n, lo, hi, scratch);
    }
  });
}

void fab_projection_cpu(const Tensor& x, const Tensor& w, const Tensor& b, int64_t norm, double lo, double hi,
                        Tensor out) {
  if (out.numel() == 0) return;
  write_dense(out, [&](Tensor& dense) {
    const Tensor points = in_layout_of(x, dense);
    const Tensor normals = in_layout_of(w, torch::stable::narrow(dense, 0, 0, w.size(0)));
    const Tensor offsets = torch::stable::contiguous(b);
    THO_DISPATCH_V2(x.scalar_type(), "fab_projection", AT_WRAP([&] {
                      run<scalar_t>(points, normals, offsets, static_cast<FabNorm>(norm), lo, hi, dense);
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("fab_projection", TORCH_BOX(&robustfast::fab_projection_cpu)); }
