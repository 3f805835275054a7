#include "apgd_track.h"

#include <algorithm>
#include <cstring>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cpu.h"

namespace robustfast {
namespace {

// As torch.argmax: the first of those that tie, and a nan before any number.
bool is_largest(const Floats& row, int64_t count, int64_t label) {
  int64_t at = 0;
  double largest = row.get(0);
  for (int64_t j = 1; j < count && largest == largest; ++j) {
    const double logit = row.get(j);
    if (!(logit <= largest)) {
      largest = logit;
      at = j;
    }
  }
  return at == label;
}

template <typename T>
ROBUSTFAST_CLONES int64_t count_differing(const T* a, const T* b, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += a[i] != b[i];
  return count;
}

template <typename T>
void run(const Laid& x_adv, const Laid& grad, const Laid& x_best, const Laid& grad_best, const Laid& x_fooled,
         const std::optional<Laid>& x, const ApgdState<T>& state, const ApgdRules& rules, const Tensor& logits,
         int64_t window, const T* eps, bool one_eps) {
  const int64_t batch = logits.size(0), classes = logits.size(1), n = x_adv.tensor().numel() / batch;
  T *image = x_adv.data<T>(), *slope = grad.data<T>(), *best = x_best.data<T>(), *best_slope = grad_best.data<T>(),
    *fooled = x_fooled.data<T>();
  const T* centre = x ? x->data<T>() : nullptr;
  // Rows are copied for few of the samples of most steps.
  torch::stable::parallel_for(0, batch, std::max<int64_t>(1, 4 * kGrain / n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin, at = begin * n; i < end; ++i, at += n) {
      const auto copy = [&](T* to, const T* from) { std::memcpy(to + at, from + at, n * sizeof(T)); };
      Floats row = floats(logits);
      const int64_t first = i * row.stride;
      row.stride = logits.stride(1);
      row.data = static_cast<char*>(row.data) + first * logits.element_size();
      const ApgdCopies copies = apgd_take_in(state, rules, i, is_largest(row, classes, state.y[i]) == rules.targeted);
      if (copies.to_fooled) copy(fooled, image);
      if (copies.to_best) {
        copy(best, image);
        copy(best_slope, slope);
      }
      if (window <= 0) continue;
      const int64_t moved = rules.l1 ? count_differing(best + at, centre + at, n) : 0;
      const T radius = rules.l1 ? eps[one_eps ? 0 : i] : T(0);
      if (apgd_check(state, rules, i, window, radius, moved, n) && !copies.to_best) {
        copy(image, best);
        copy(slope, best_slope);
      }
    }
  });
}

void apgd_track_cpu(Tensor x_adv, Tensor grad, const Tensor& loss, const Tensor& logits, const Tensor& y, Tensor x_best,
                    Tensor grad_best, Tensor loss_best, Tensor x_fooled, Tensor fooled, Tensor loss_last,
                    Tensor increases, Tensor loss_checked, Tensor reduced, Tensor step_size, std::optional<Tensor> x,
                    std::optional<Tensor> eps, std::optional<Tensor> sparsity, std::optional<Tensor> moved,
                    const Tensor& window, double rho, bool descend, bool targeted) {
  if (x_adv.numel() == 0) return;
  Laid image(x_adv), slope(grad);
  Laid best(x_best, image.tensor()), best_slope(grad_best, slope.tensor()), won(x_fooled, image.tensor());
  std::optional<Laid> centre;
  if (x) centre.emplace(*x, image.tensor());
  const ApgdRules rules{rho, descend, targeted, x.has_value()};
  const auto typed = [&](auto pixel) {
    using T = decltype(pixel);
    ApgdState<T> state{};
    state.loss = floats(loss);
    state.loss_best = floats_to_write(loss_best);
    state.loss_last = floats_to_write(loss_last);
    state.loss_checked = floats_to_write(loss_checked);
    state.y = values<const int64_t>(y);
    state.fooled = values<bool>(fooled);
    state.reduced = values<bool>(reduced);
    state.increases = values<int64_t>(increases);
    state.step_size = values<T>(step_size);
    std::optional<Tensor> radii;
    if (rules.l1) {
      state.moved = values<int64_t>(*moved);
      state.sparsity = values<T>(*sparsity);
      radii = torch::stable::contiguous(*eps);
    }
    run<T>(image, slope, best, best_slope, won, centre, state, rules, logits,
           *static_cast<const int64_t*>(window.const_data_ptr()),
           radii ? static_cast<const T*>(radii->const_data_ptr()) : nullptr, !radii || radii->dim() == 0);
  };
  THO_DISPATCH_V2(x_adv.scalar_type(), "apgd_track", AT_WRAP([&] { typed(scalar_t()); }), AT_EXPAND(AT_FLOATING_TYPES));
  for (Laid* laid : {&image, &slope, &best, &best_slope, &won}) laid->give_back();
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CPU, m) { m.impl("apgd_track", TORCH_BOX(&robustfast::apgd_track_cpu)); }
