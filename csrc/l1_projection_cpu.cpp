#include "l1_projection.h"

#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "l1_box_cpu.h"
#include "layout.h"

namespace robustfast {
namespace {

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
      l1_project_row(row.x_adv, row.x, row.out, n, radius[eps.dim() ? i : 0], size.data(), room.data(), bounds);
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
