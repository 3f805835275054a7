"""A batch norm in eval mode, the sum before it and the ReLU behind it, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "affine_relu",
    "affine_relu_backward",
    "in_order",
    "is_channels_last",
    "packed_bits",
    "unpacked_bits",
]


def affine_relu(
    x: Tensor, scale: Tensor | None, shift: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """t = x + residual, and y = relu(scale * t + shift) for each channel.

    t is rounded to the dtype of x, as the sum that a network keeps; the rest runs in float32, in float64 for float64,
    one rounding for each product and sum, and y is rounded once.

    Args:
        x, residual: [B, C, ...], float32, float64, bfloat16 or float16.
        scale, shift: [C], float32, or float64 for float64 x; scale None is 1.

    Returns:
        y and t, in the dtype of x; t is x without a residual.
    """
    t = x if residual is None else x + residual
    v = t.to(shift.dtype)
    if scale is not None:
        v = v * _per_channel(scale, x)
    return torch.relu(v + _per_channel(shift, x)).to(x.dtype), t


def affine_relu_backward(
    grad_y: Tensor, grad_sum: Tensor | None, kept: Tensor, scale: Tensor | None
) -> Tensor:
    """The gradient of x, which is also that of the residual: grad_y * scale where `kept`, plus grad_sum, rounded once.

    Args:
        grad_y: [B, C, ...], the gradient of y.
        grad_sum: that of t, or None.
        kept: bool [B, C, ...], where y is not <= 0.
        scale: [C] or None, as of the forward.
    """
    dtype = torch.promote_types(grad_y.dtype, torch.float32)
    d = grad_y.to(dtype)
    if scale is not None:
        d = d * _per_channel(scale, grad_y)
    d = torch.where(kept, d, 0)
    if grad_sum is not None:
        d = d + grad_sum.to(dtype)
    return d.to(grad_y.dtype)


def packed_bits(y: Tensor) -> Tensor:
    """Where y is not <= 0, one bit for each element: uint8 [(n + 7) // 8], element 8 i + j of the memory of y in bit j
    of byte i, zeros behind the last element."""
    kept = ~(_memory_order(y) <= 0)
    bytes_ = F.pad(kept.to(torch.uint8), (0, -kept.numel() % 8)).view(-1, 8)
    return (bytes_ << _places(bytes_)).sum(1, dtype=torch.uint8)


def unpacked_bits(mask: Tensor, like: Tensor) -> Tensor:
    """The bits of `packed_bits` as bool, in the shape and memory order of `like`."""
    kept = (mask[:, None] >> _places(mask) & 1).bool().flatten()[: like.numel()]
    if not is_channels_last(like):
        return kept.view(like.shape)
    return kept.view(like.movedim(1, -1).shape).movedim(-1, 1)


def is_channels_last(t: Tensor) -> bool:
    """Whether the memory of t runs along its channels first, and not along its last dimension."""
    return t.dim() > 2 and not t.is_contiguous() and t.movedim(1, -1).is_contiguous()


def in_order(t: Tensor, channels_last: bool) -> Tensor:
    """t itself where it is dense in channels-last or, else, in contiguous order; a copy that is where it is not."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


def _places(bytes_: Tensor) -> Tensor:
    # Made on the device: numbers copied from the host would not fit into a CUDA graph.
    return torch.arange(8, dtype=torch.uint8, device=bytes_.device)


def _memory_order(t: Tensor) -> Tensor:
    return (t.movedim(1, -1) if is_channels_last(t) else t).flatten()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 2))
