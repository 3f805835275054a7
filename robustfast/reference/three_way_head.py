"""The head of the three-way model, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["three_way_head", "three_way_hidden", "three_way_hidden_backward"]


def three_way_head(
    z_r: Tensor, z_n: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f([z_r, z_n]), f([z_r, 0]) and f([0, z_n]) of the head f = Linear(w1, b1), ReLU, Linear(w2, b2).

    The first layer is linear, so its three products are sums of two half products, each computed once.

    Args:
        z_r, z_n: [B, H].
        w1, b1: [D, 2H] and [D].
        w2, b2: [C, D] and [C].

    Returns:
        Logits (h_s, h_r, h_n), each [B, C].
    """
    w_r, w_n = w1.chunk(2, dim=1)
    hidden = three_way_hidden(F.linear(z_r, w_r), F.linear(z_n, w_n), b1)
    return F.linear(hidden, w2, b2).chunk(3)


def three_way_hidden(p_r: Tensor, p_n: Tensor, b1: Tensor) -> Tensor:
    """Hidden units [3B, D] of the ways s, r and n, stacked, from the half products [B, D] and the bias [D].

    Half-precision products meet a float32 bias: they are added in float32 and rounded once.
    """
    a, b = p_r.to(b1.dtype), p_n.to(b1.dtype)
    return torch.relu(torch.cat([a + b, a, b]) + b1).to(p_r.dtype)


def three_way_hidden_backward(d_hidden: Tensor, hidden: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `three_way_hidden` for p_r [B, D], p_n [B, D] and b1 [D]; for b1 empty unless `bias`.

    The bias sums in float64, so that the order of the sum, which differs between backends, almost never shows.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    s, r, n = torch.where(hidden <= 0, 0, d_hidden.to(dtype)).chunk(3)
    d_r, d_n = s + r, s + n
    d_b1 = (d_r.double() + n).sum(0).to(dtype) if bias else d_r.new_empty(0)
    return d_r.to(hidden.dtype), d_n.to(hidden.dtype), d_b1
