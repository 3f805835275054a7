#include "apgd_track.h"

#include <algorithm>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "cuda.h"

namespace robustfast {
namespace {

// Where rows lie, and the numbers that are not the samples' own.
template <typename T>
struct Rows {
  T *x_adv, *grad, *x_best, *grad_best, *x_fooled;
  const T* x;
  int64_t n;
};

template <typename T>
struct Call {
  ApgdRules rules;
  Floats logits;
  int64_t classes, class_stride;
  const int64_t* window;  // on the device, or null
  int64_t steps;          // without it
  const T* eps;           // on the device, or null
  T radius;               // without it
  int64_t eps_stride;
};

// A logit and where it stands. Of two the larger one counts, a nan before any number, and the first of those that tie:
// as torch.argmax.
struct Logit {
  double value;
  int64_t at;
};

struct Largest {
  __device__ Logit operator()(Logit a, Logit b) const {
    const bool nan_a = a.value != a.value, nan_b = b.value != b.value;
    if (nan_a != nan_b) return nan_a ? a : b;
    if (nan_a || a.value == b.value) return a.at < b.at ? a : b;
    return a.value > b.value ? a : b;
  }
};

// The largest of the block's logits, in the first thread; shared holds one for each warp.
__device__ Logit reduce_largest(Logit best, Logit* shared) {
  const auto within = [](Logit v) {
    for (int offset = 16; offset > 0; offset /= 2)
      v = Largest()(v, {__shfl_xor_sync(~0u, v.value, offset), __shfl_xor_sync(~0u, v.at, offset)});
    return v;
  };
  best = within(best);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) shared[warp] = best;
  __syncthreads();
  if (warp == 0) best = within(shared[lane < blockDim.x / 32 ? lane : 0]);
  return best;
}

template <typename T, int kWidth>
__device__ void copy_row(T* to, const T* from, int64_t n) {
  using Wide = Vector<T, kWidth>;
  for (int64_t i = threadIdx.x; i < n / kWidth; i += blockDim.x)
    reinterpret_cast<Wide*>(to)[i] = reinterpret_cast<const Wide*>(from)[i];
}

// One block per sample, one block per multiprocessor asked for: with more, ptxas spills around float64 divisions. The
// first thread decides; what it decided, the block copies.
template <typename T, int kWidth>
__global__ void __launch_bounds__(256, 1) track(Rows<T> rows, ApgdState<T> state, Call<T> call) {
  __shared__ Logit largest[32];
  __shared__ int counts[33];
  __shared__ ApgdCopies copies;
  __shared__ bool restart;
  const int64_t i = blockIdx.x, n = rows.n, at = i * n;
  Floats logits = call.logits;
  const int64_t first = i * logits.stride;
  logits.stride = 1;
  Logit mine{logits.get(first), 0};
  for (int64_t j = threadIdx.x; j < call.classes; j += blockDim.x)
    mine = Largest()(mine, {logits.get(first + j * call.class_stride), j});
  mine = reduce_largest(mine, largest);
  if (threadIdx.x == 0) copies = apgd_take_in(state, call.rules, i, (mine.at == state.y[i]) == call.rules.targeted);
  __syncthreads();
  if (copies.to_fooled) copy_row<T, kWidth>(rows.x_fooled + at, rows.x_adv + at, n);
  if (copies.to_best) {
    copy_row<T, kWidth>(rows.x_best + at, rows.x_adv + at, n);
    copy_row<T, kWidth>(rows.grad_best + at, rows.grad + at, n);
  }
  const int64_t window = call.window ? *call.window : call.steps;
  if (window <= 0) return;
  int moved = 0;
  if (call.rules.l1) {
    // The image itself where it has just become the best one: other threads may still be copying it.
    const T* best = (copies.to_best ? rows.x_adv : rows.x_best) + at;
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) moved += best[j] != rows.x[at + j];
    moved = block_reduce(moved, Add(), 0, counts);
  }
  if (threadIdx.x == 0) {
    const T eps = call.eps ? call.eps[i * call.eps_stride] : call.radius;
    restart = apgd_check(state, call.rules, i, window, eps, moved, n) && !copies.to_best;
  }
  __syncthreads();
  if (!restart) return;
  copy_row<T, kWidth>(rows.x_adv + at, rows.x_best + at, n);
  copy_row<T, kWidth>(rows.grad + at, rows.grad_best + at, n);
}

template <typename T>
void launch(const Rows<T>& rows, const ApgdState<T>& state, const Call<T>& call, int64_t batch, int32_t device) {
  constexpr int kWidth = 16 / sizeof(T);
  const auto stream = current_stream(device);
  bool wide = rows.n % kWidth == 0;
  // An array: nvcc writes host code that g++ refuses for a loop over a list in braces.
  const T* const pointers[] = {rows.x_adv, rows.grad, rows.x_best, rows.grad_best, rows.x_fooled};
  for (const T* row : pointers) wide = wide && aligned<T, kWidth>(row);
  // All of a small image's values in one go, and no idle warps.
  const int64_t values = rows.n / (wide ? kWidth : 1);
  const int threads = int(std::min<int64_t>(256, std::max<int64_t>(32, (values + 31) / 32 * 32)));
  const auto kernel = wide ? track<T, kWidth> : track<T, 1>;
  kernel<<<unsigned(batch), threads, 0, stream>>>(rows, state, call);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void apgd_track_cuda(Tensor x_adv, Tensor grad, const Tensor& loss, const Tensor& logits, const Tensor& y,
                     Tensor x_best, Tensor grad_best, Tensor loss_best, Tensor x_fooled, Tensor fooled,
                     Tensor loss_last, Tensor increases, Tensor loss_checked, Tensor reduced, Tensor step_size,
                     std::optional<Tensor> x, std::optional<Tensor> eps, std::optional<Tensor> sparsity,
                     std::optional<Tensor> moved, const Tensor& window, double rho, bool descend, bool targeted) {
  if (x_adv.numel() == 0) return;
  torch::stable::accelerator::DeviceGuard guard(x_adv.get_device_index());
  Laid image(x_adv), slope(grad);
  Laid best(x_best, image.tensor()), best_slope(grad_best, slope.tensor()), won(x_fooled, image.tensor());
  std::optional<Laid> centre;
  if (x) centre.emplace(*x, image.tensor());
  const int64_t batch = x_adv.size(0);
  const auto typed = [&](auto pixel) {
    using T = decltype(pixel);
    const Rows<T> rows{image.data<T>(),      slope.data<T>(), best.data<T>(),
                       best_slope.data<T>(), won.data<T>(),   centre ? centre->data<T>() : nullptr,
                       x_adv.numel() / batch};
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
    Call<T> call{};
    call.rules = {rho, descend, targeted, x.has_value()};
    call.logits = floats(logits);
    call.classes = logits.size(1);
    call.class_stride = logits.stride(1);
    const auto* steps = static_cast<const int64_t*>(window.const_data_ptr());
    call.window = window.is_cpu() ? nullptr : steps;
    call.steps = window.is_cpu() ? *steps : 0;
    if (call.rules.l1) {
      state.moved = values<int64_t>(*moved);
      state.sparsity = values<T>(*sparsity);
      const auto* radius = static_cast<const T*>(eps->const_data_ptr());
      call.eps = eps->is_cpu() ? nullptr : radius;
      call.radius = eps->is_cpu() ? *radius : T(0);
      call.eps_stride = eps->dim() ? eps->stride(0) : 0;
    }
    launch<T>(rows, state, call, batch, x_adv.get_device_index());
  };
  THO_DISPATCH_V2(x_adv.scalar_type(), "apgd_track", AT_WRAP([&] { typed(scalar_t()); }), AT_EXPAND(AT_FLOATING_TYPES));
  for (Laid* laid : {&image, &slope, &best, &best_slope, &won}) laid->give_back();
}

}  // namespace
}  // namespace robustfast

STABLE_TORCH_LIBRARY_IMPL(robustfast, CUDA, m) { m.impl("apgd_track", TORCH_BOX(&robustfast::apgd_track_cuda)); }
