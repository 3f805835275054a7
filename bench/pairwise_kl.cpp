// A prototype of the fused op that RFD's divergences were measured against (bench/pairwise_kl.py); not part of _C.so.
//
// For each row the symmetric divergence of every pair of three softmaxes, and its gradients. As all softmaxes sum to 1,
// sum (p - q)(log p - log q) = sum (p - q)(x - y): no logarithm is taken. The softmaxes are kept for the backward pass.
#include <torch/extension.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int kLanes = 16;
constexpr int kPairs[3][2] = {{0, 1}, {0, 2}, {1, 2}};

// As in csrc/asymmetric_cross_entropy_cpu.cpp: the compiler makes vectors of both.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;
  const float shifted = x * 1.44269504088896341f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  const float scale =
      std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127) << 23);
  return x < -87.33654f ? 0.0f : p * scale;
}

inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max()); }

CLONES void softmax(const float* x, float* p, int64_t n) {
  int32_t most = std::numeric_limits<int32_t>::min();
  for (int64_t c = 0; c < n; ++c) most = std::max(most, ordered(std::bit_cast<int32_t>(x[c])));
  const float peak = std::bit_cast<float>(ordered(most));
  for (int64_t c = 0; c < n; ++c) p[c] = exp_nonpositive(x[c] - peak);
  float lanes[kLanes] = {}, total = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += p[i + j];
  for (; i < n; ++i) total += p[i];
  for (int j = 0; j < kLanes; ++j) total += lanes[j];
  const float scale = 1 / total;
  for (int64_t c = 0; c < n; ++c) p[c] *= scale;
}

// mean[0] = sum p (x - y), mean[1] = sum q (y - x); together the symmetric divergence.
CLONES void divergence(const float* x, const float* y, const float* p, const float* q, float* mean, int64_t n) {
  float a[kLanes] = {}, b[kLanes] = {}, s = 0, t = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const float d = x[i + j] - y[i + j];
      a[j] += p[i + j] * d;
      b[j] -= q[i + j] * d;
    }
  }
  for (; i < n; ++i) {
    s += p[i] * (x[i] - y[i]);
    t -= q[i] * (x[i] - y[i]);
  }
  for (int j = 0; j < kLanes; ++j) {
    s += a[j];
    t += b[j];
  }
  mean[0] = s;
  mean[1] = t;
}

// d s / d x = (p - q) + p (x - y - mean), summed over the pairs that x is in with the weights g of their divergences.
CLONES void gradients(const float* const* x, const float* const* p, float* const* d, const float* g, const float* mean,
                      int64_t n) {
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *p0 = p[0], *p1 = p[1], *p2 = p[2];
  float *d0 = d[0], *d1 = d[1], *d2 = d[2];
  for (int64_t c = 0; c < n; ++c) {
    const float a = g[0] * (p0[c] - p1[c]), b = g[1] * (p0[c] - p2[c]), e = g[2] * (p1[c] - p2[c]);
    const float u = x0[c] - x1[c], v = x0[c] - x2[c], w = x1[c] - x2[c];
    d0[c] = a + b + p0[c] * (g[0] * (u - mean[0]) + g[1] * (v - mean[2]));
    d1[c] = -a + e + p1[c] * (g[0] * (-u - mean[1]) + g[2] * (w - mean[4]));
    d2[c] = -b - e + p2[c] * (g[1] * (-v - mean[3]) + g[2] * (-w - mean[5]));
  }
}

struct PairwiseKL : torch::autograd::Function<PairwiseKL> {
  static Tensor forward(AutogradContext* context, const Tensor& r, const Tensor& n, const Tensor& d) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t B = r.size(0), H = r.size(1);
    const Tensor s = torch::empty({3, B}, r.options()), mean = torch::empty({B, 6}, r.options());
    const Tensor softmaxes = torch::empty({3, B, H}, r.options());
    const float* x[3] = {r.const_data_ptr<float>(), n.const_data_ptr<float>(), d.const_data_ptr<float>()};
    float *p = softmaxes.mutable_data_ptr<float>(), *m = mean.mutable_data_ptr<float>();
    float* out = s.mutable_data_ptr<float>();
    at::parallel_for(0, B, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int k = 0; k < 3; ++k) softmax(x[k] + i * H, p + (k * B + i) * H, H);
        for (int k = 0; k < 3; ++k) {
          const auto [u, v] = kPairs[k];
          divergence(x[u] + i * H, x[v] + i * H, p + (u * B + i) * H, p + (v * B + i) * H, m + i * 6 + 2 * k, H);
          out[k * B + i] = m[i * 6 + 2 * k] + m[i * 6 + 2 * k + 1];
        }
      }
    });
    context->save_for_backward({r, n, d, softmaxes, mean});
    return s;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const int64_t B = saved[0].size(0), H = saved[0].size(1);
    const Tensor upstream = grads[0].contiguous();
    variable_list found;
    for (int k = 0; k < 3; ++k) found.push_back(torch::empty_like(saved[k]));
    const float *g = upstream.const_data_ptr<float>(), *softmaxes = saved[3].const_data_ptr<float>();
    const float* mean = saved[4].const_data_ptr<float>();
    at::parallel_for(0, B, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float *x[3], *p[3], weights[3] = {g[i], g[B + i], g[2 * B + i]};
        float* d[3];
        for (int k = 0; k < 3; ++k) {
          x[k] = saved[k].const_data_ptr<float>() + i * H;
          p[k] = softmaxes + (k * B + i) * H;
          d[k] = found[k].mutable_data_ptr<float>() + i * H;
        }
        gradients(x, p, d, weights, mean + i * 6, H);
      }
    });
    return found;
  }
};

Tensor pairwise_kl(const Tensor& r, const Tensor& n, const Tensor& d) { return PairwiseKL::apply(r, n, d); }

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) { module.def("pairwise_kl", &pairwise_kl); }
