"""What an attack is called with, refused by type, shape, dtype and device alone: no value is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustfast.ops.sizes import per_sample

__all__ = ["check_images", "check_index", "check_sizes"]


def check_images(x: Tensor, bounds: Sequence[float], start: Tensor | None = None) -> None:
    """Refuse images an attack cannot run on.

    Raises:
        TypeError, ValueError: what came and what is expected.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {type(x).__name__}, expected a tensor of images")
    if x.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"x is {x.dtype}, expected float32 or float64: half-precision images leave the ball "
            f"(1.09 eps after ten bfloat16 steps); pass x.float() and run the model under torch.autocast"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x is {x.dtype}, expected float32 or float64 pixels in {list(bounds)}")
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [B, ...]")
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise ValueError(
            "an attack needs gradients: run it, and make x, outside torch.inference_mode (no_grad is fine)"
        )
    if start is not None and (start.shape != x.shape or start.dtype != x.dtype or start.device != x.device):
        raise ValueError(
            f"start is {start.dtype} {tuple(start.shape)} on {start.device}, "
            f"expected that of x, {x.dtype} {tuple(x.shape)} on {x.device}"
        )


def check_index(index: Tensor | None, x: Tensor) -> Tensor:
    """The samples' positions int64 [B] that key their draws, counted from 0 where None is given.

    Raises:
        TypeError, ValueError: what came and what is expected.
    """
    if index is None:
        return torch.arange(len(x), device=x.device)
    if not isinstance(index, Tensor):
        raise TypeError(f"index is {type(index).__name__}, expected a tensor int64 [{len(x)}]")
    if index.dtype != torch.int64 or index.shape != x.shape[:1] or index.device != x.device:
        raise ValueError(
            f"index is {index.dtype} {tuple(index.shape)} on {index.device}, "
            f"expected int64 ({len(x)},) on {x.device}: the position of each sample"
        )
    return index


def check_sizes(attack: str, sizes: Mapping[str, object], x: Tensor) -> None:
    """Refuse tensors among an attack's radius and step size that do not fit the images x [B, ...].

    Raises:
        TypeError, ValueError: a tensor that is neither [] nor [B], of another dtype than x, or on another device (a
            [] may lie on the CPU).
    """
    for name, value in sizes.items():
        if isinstance(value, Tensor):
            per_sample(attack, name, value, x)
