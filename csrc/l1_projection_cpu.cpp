#include "l1_projection.h"

#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu.h"
#include "layout.h"

namespace robustfast {
namespace {

// The entries of one row, once for all the times that the search looks at them; returns the largest size.
template <typename T>
ROBUSTFAST_CLONES T load_row(L1Row<T> row, T* size, T* room, Bounds<T> bounds) {
  for (int64_t i = 0; i < row.n; ++i) {
    const L1Entry<T> e = row.entry(i, bounds);
    size[i] = e.size;
    room[i] = e.room;
  }
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= row.n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] = std::max(lanes[j], size[i + j]);
  for (; i < row.n; ++i) lanes[0] = std::max(lanes[0], size[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

template <typename T>
ROBUSTFAST_CLONES L1Parts parts_of(const T* size, const T* room, int64_t n, double tau) {
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
ROBUSTFAST_CLONES void project_row(L1Row<T> row, const T* size, double tau, Bounds<T> bounds) {
  if (tau == 0) {
    for (int64_t i = 0; i < row.n; ++i) row.out[i] = l1_keep(row.x_adv[i], row.x[i], bounds);
  } else {
    for (int64_t i = 0; i < row.n; ++i) row.out[i] = l1_shrink(row.x_adv[i], row.x[i], size[i], tau, bounds);
  }
}

template <typename T>
void run(const Tensor& x_adv, const Tensor& x, const Tensor& eps, Bounds<T> bounds, Tensor& out) {
  const auto* a = static_cast<const T*>(x_adv.const_data_ptr());
  const auto* c = static_cast<const T*>(x.const_data_ptr());
  const auto* radius = static_cast<const T*>(eps.const_data_ptr());
  auto* o = static_cast<T*>(out.mutable_data_ptr());
  const int64_t n = out.numel() / out.size(0);
  // About eight passes over each sample.
  torch::stable::parallel_for(0, out.size(0), std::max<int64_t>(1, kGrain / (8 * n)), [&](int64_t begin, int64_t end) {
    std::vector<T> size(n), room(n);
    for (int64_t i = begin; i < end; ++i) {
      const L1Row<T> row{a + i * n, c + i * n, o + i * n, n};
      const double largest = load_row(row, size.data(), room.data(), bounds);
      const double tau = l1_threshold(static_cast<double>(radius[eps.dim() ? i : 0]), largest,
                                      [&](double at) { return parts_of(size.data(), room.data(), n, at); });
      project_row(row, size.data(), tau, bounds);
    }
  });
}

void l1_projection_cpu(const Tensor& x_adv, const Tensor& x, const Tensor& eps, double lo, double hi, Tensor out) {
  if (out.numel() == 0) return;
  write_dense(out, [&](Tensor& dense) {
    const Tensor a = in_layout_of(x_adv, dense), c = in_layout_of(x, dense), radii = torch::stable::contiguous(eps);
    const auto typed = [&](auto image) {
      using T = decltype(image);
      run<T>(a, c, radii, {static_cast<T>(lo), static_cast<T>(hi)}, dense);
    };
    THO_DISPATCH_V2(x.scalar_type(), "l1_projection", AT_WRAP([&] { typed(scalar_t()); }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("l1_projection", TORCH_BOX(&robustfast::l1_projection_cpu)); }
