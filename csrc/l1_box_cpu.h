// The projection of one row onto an l1 ball inside the box on a CPU, for every op that projects so.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu.h"
#include "l1_box.h"

namespace robustfast {

// Static: where a function has clones, copies of it in two files are not one symbol to the linker.

// The entries of a row as the search sees them, once for all the times that it looks; returns the largest size.
template <typename T>
ROBUSTFAST_CLONES static T l1_load(const T* x_adv, const T* x, int64_t n, T* size, T* room, Bounds<T> bounds) {
  for (int64_t i = 0; i < n; ++i) {
    const L1Entry<T> e = l1_entry(x_adv[i], x[i], bounds);
    size[i] = e.size;
    room[i] = e.room;
  }
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] = std::max(lanes[j], size[i + j]);
  for (; i < n; ++i) lanes[0] = std::max(lanes[0], size[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

template <typename T>
ROBUSTFAST_CLONES static L1Parts l1_sums(const T* size, const T* room, int64_t n, double tau) {
  double moving[kLanes] = {}, count[kLanes] = {}, at_wall[kLanes] = {};
  const auto add = [&](int64_t i, int j) __attribute__((always_inline)) {
    const L1Parts p = l1_parts(L1Entry<T>{size[i], room[i]}, tau);
    moving[j] += p.moving;
    count[j] += p.count;
    at_wall[j] += p.at_wall;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) add(i + j, j);
  for (; i < n; ++i) add(i, 0);
  L1Parts total{0, 0, 0};
  for (int j = 0; j < kLanes; ++j) {
    total.moving += moving[j];
    total.count += count[j];
    total.at_wall += at_wall[j];
  }
  return total;
}

template <typename T>
ROBUSTFAST_CLONES static void l1_write(const T* x_adv, const T* x, T* out, int64_t n, const T* size, double tau,
                                       Bounds<T> bounds) {
  if (tau == 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = l1_keep(x_adv[i], x[i], bounds);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = l1_shrink(x_adv[i], x[i], size[i], tau, bounds);
  }
}

// The whole row; `out` may be `x_adv`, and `size` and `room` are scratch of n values each.
template <typename T>
void l1_project_row(const T* x_adv, const T* x, T* out, int64_t n, T eps, T* size, T* room, Bounds<T> bounds) {
  const double largest = l1_load(x_adv, x, n, size, room, bounds);
  const double tau =
      l1_threshold(static_cast<double>(eps), largest, [&](double at) { return l1_sums(size, room, n, at); });
  l1_write(x_adv, x, out, n, size, tau, bounds);
}

}  // namespace robustfast
