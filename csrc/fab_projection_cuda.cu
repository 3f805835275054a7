#include "fab_projection.h"

#include <algorithm>
#include <type_traits>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda.h"
#include "layout.h"

namespace robustfast {
namespace {

// One block per sample. Each pass reads the sample again; at CIFAR size it stays in the L1 cache.
template <FabNorm norm, typename T>
__global__ void __launch_bounds__(256, 1) project_sample(const T* x, const T* __restrict__ w, const T* __restrict__ b,
                                                         T* out, int64_t n, int64_t planes, double lo, double hi) {
  __shared__ double sums[33];
  const int64_t plane = blockIdx.x % planes;
  x += blockIdx.x * n;
  out += blockIdx.x * n;
  w += plane * n;
  const auto each = [&](auto term) {
    double total = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) total += term(i);
    return block_reduce(total, Add(), 0.0, sums);
  };

  const FabRow row(each([&](int64_t i) { return double(w[i]) * double(x[i]); }) - double(b[plane]), lo, hi);
  const auto slope = [&](int64_t i) { return row.slope(w[i]); };
  const auto room = [&](int64_t i) { return row.room(x[i], w[i]); };
  const double total = each([&](int64_t i) { return slope(i) * room(i); });
  FabMove<norm> move{row.gap < double(INFINITY) && total < double(INFINITY), !(total > row.gap), 0, 0};

  if (move.usable && !move.all) {
    if constexpr (norm == FabNorm::l1) {
      // The slope down to which entries take all their room, bit by bit from the top: slopes order like their patterns.
      using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, unsigned long long>;
      const auto value = [](Bits bits) {
        T slope;
        memcpy(&slope, &bits, sizeof(T));
        return double(slope);
      };
      Bits found = 0;
      for (int bit = sizeof(T) * 8 - 2; bit >= 0; --bit) {
        const Bits candidate = found | (Bits(1) << bit);
        const double from = value(candidate);  // a nan, past infinity, is above every slope
        if (each([&](int64_t i) { return slope(i) >= from ? slope(i) * room(i) : 0.0; }) >= row.gap) found = candidate;
      }
      move.value = value(found);
      const double above = each([&](int64_t i) { return slope(i) > move.value ? slope(i) * room(i) : 0.0; });
      const double tied = each([&](int64_t i) { return slope(i) == move.value ? slope(i) * room(i) : 0.0; });
      move.share = fab_share(row.gap, above, tied);
    } else {
      // Newton from the left on a concave function: the entries at a wall only grow in number, so it ends exactly.
      const auto speed = [&](int64_t i) { return FabMove<norm>::speed(slope(i)); };
      double m = row.gap / each([&](int64_t i) { return slope(i) * speed(i); });
      for (double last = 0;;) {
        const double count = each([&](int64_t i) { return room(i) <= m * speed(i) ? 1.0 : 0.0; });
        if (count <= last) break;
        const double reach = each([&](int64_t i) { return room(i) <= m * speed(i) ? slope(i) * room(i) : 0.0; });
        const double pull = each([&](int64_t i) { return room(i) <= m * speed(i) ? 0.0 : slope(i) * speed(i); });
        if (!(pull > 0)) break;
        m = (row.gap - reach) / pull;
        last = count;
      }
      move.value = m;
    }
  }

  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const double step = move(slope(i), room(i));
    out[i] = static_cast<T>(row.side * double(w[i]) > 0 ? -step : step);
  }
}

template <typename T>
void launch(const Tensor& x, const Tensor& w, const Tensor& b, FabNorm norm, double lo, double hi, Tensor& out) {
  const int64_t n = out.numel() / out.size(0);
  const int threads = int(std::min<int64_t>(256, (n + 31) / 32 * 32));
  const auto kernel = norm == FabNorm::linf ? project_sample<FabNorm::linf, T>
                      : norm == FabNorm::l2 ? project_sample<FabNorm::l2, T>
                                            : project_sample<FabNorm::l1, T>;
  kernel<<<unsigned(out.size(0)), threads, 0, current_stream(out.get_device_index())>>>(
      static_cast<const T*>(x.const_data_ptr()), static_cast<const T*>(w.const_data_ptr()),
      static_cast<const T*>(b.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), n, w.size(0), lo, hi);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void fab_projection_cuda(const Tensor& x, const Tensor& w, const Tensor& b, int64_t norm, double lo, double hi,
                         Tensor out) {
  if (out.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  write_dense(out, [&](Tensor& dense) {
    const Tensor points = in_layout_of(x, dense);
    const Tensor normals = in_layout_of(w, torch::stable::narrow(dense, 0, 0, w.size(0)));
    const Tensor offsets = torch::stable::contiguous(b);
    THO_DISPATCH_V2(x.scalar_type(), "fab_projection", AT_WRAP([&] {
                      launch<scalar_t>(points, normals, offsets, static_cast<FabNorm>(norm), lo, hi, dense);
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  });
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) {
  m.impl("fab_projection", TORCH_BOX(&robustfast::fab_projection_cuda));
}
