// How kernels see image tensors: a batch of dense samples, all laid out alike.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace robustfast {

using torch::stable::Tensor;

// Same shape, and same strides wherever a dimension has more than one element, from dimension `first` on.
inline bool same_layout(const Tensor& a, const Tensor& b, int64_t first = 0) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
    if (d >= first && a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// `t` itself if it is laid out like `like`, else a copy that is.
inline Tensor in_layout_of(const Tensor& t, const Tensor& like) {
  if (same_layout(t, like)) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

// Whether each sample t[i] is one dense block, in any order of its dimensions, and samples follow each other:
// contiguous and channels-last memory both are.
inline bool is_dense_batch(const Tensor& t) {
  if (t.dim() == 0) return true;
  const int64_t block = t.size(0) ? t.numel() / t.size(0) : 0;
  if (t.size(0) > 1 && t.stride(0) != block) return false;
  // Walk the sample's dimensions from the innermost stride outwards; each must continue where the last one ended.
  int64_t filled = 1;
  for (bool grown = true; grown && filled < block;) {
    grown = false;
    for (int64_t d = 1; d < t.dim(); ++d) {
      if (t.size(d) > 1 && t.stride(d) == filled) {
        filled *= t.size(d);
        grown = true;
        break;
      }
    }
  }
  return filled >= block;
}

// Calls run(buffer) with a dense-batch tensor shaped like `out`, `out` itself where it is one.
template <typename Run>
void write_dense(Tensor& out, const Run& run) {
  if (is_dense_batch(out)) return run(out);
  Tensor buffer = torch::stable::contiguous(out);
  run(buffer);
  torch::stable::copy_(out, buffer);
}

}  // namespace robustfast
