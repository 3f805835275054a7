// The terms of the asymmetric cross entropy, shared by CPU and CUDA.
// robustfast/reference/asymmetric_cross_entropy.py is the definition.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/macros/Macros.h>

#include "precision.h"

namespace robustfast {

// robustfast/ops/asymmetric_cross_entropy.py lists them in this order.
enum class Rule : int64_t { y = 0, y_where_s_fooled = 1, yhat_s = 2, yhat_n = 3 };

// st_s, st_r, st_n, as_r, as_n, ar, an.
constexpr int kMaxTerms = 7;

// int64 [B], any stride.
struct Labels {
  const int64_t* data = nullptr;
  int64_t stride = 0;

  explicit Labels(const std::optional<torch::stable::Tensor>& t) {
    if (!t) return;
    data = static_cast<const int64_t*>(t->const_data_ptr());
    stride = t->stride(0);
  }
  C10_HOST_DEVICE int64_t operator[](int64_t i) const { return data[i * stride]; }
};

// The label that a term trains a sample towards, and whether it keeps the sample.
struct Target {
  int64_t label;
  bool keep;
};

// One term: its logits [B, C] as they lie, its rule.
struct Term {
  const void* logits;
  int64_t stride[2];
  Rule rule;
};

struct Terms {
  Term term[kMaxTerms];
  Labels y, yhat_s, yhat_n;
  int count;
  int64_t B, C;

  Terms(const std::vector<torch::stable::Tensor>& logits, const torch::stable::Tensor& y,
        const std::optional<torch::stable::Tensor>& yhat_s, const std::optional<torch::stable::Tensor>& yhat_n,
        const std::vector<int64_t>& rules)
      : y(y),
        yhat_s(yhat_s),
        yhat_n(yhat_n),
        count(static_cast<int>(logits.size())),
        B(logits.at(0).size(0)),
        C(logits.at(0).size(1)) {
    STD_TORCH_CHECK(count <= kMaxTerms, "asymmetric_cross_entropy: ", count, " terms, expected at most ", kMaxTerms);
    for (int t = 0; t < count; ++t)
      term[t] = {
          logits[t].const_data_ptr(), {logits[t].stride(0), logits[t].stride(1)}, static_cast<Rule>(rules.at(t))};
  }

  C10_HOST_DEVICE Target target(Rule rule, int64_t i) const {
    if (rule == Rule::y) return {y[i], true};
    if (rule == Rule::yhat_n) return {yhat_n[i], yhat_n[i] != y[i]};
    return {rule == Rule::yhat_s ? yhat_s[i] : y[i], yhat_s[i] != y[i]};
  }

  C10_HOST_DEVICE bool inside(int64_t label) const { return label >= 0 && label < C; }
};

}  // namespace robustfast
