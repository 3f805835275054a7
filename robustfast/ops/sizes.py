"""Radii and step sizes: one number for all samples or one each, checked alike in every op that takes them."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

__all__ = ["check_radius", "per_sample", "radius"]


def per_sample(op: str, name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """`value` as a tensor [] or [B] of the images' dtype.

    A float becomes a 0-d CPU tensor: torch.compile specialises on a float argument and not on a tensor.

    Raises:
        TypeError, ValueError: neither number nor tensor; a number that is not finite; a tensor of another dtype, shape
            or device than `x` [B, ...] asks for.
    """
    if not isinstance(value, Tensor):
        _check_number(op, name, value)
        return torch.scalar_tensor(value, dtype=x.dtype)
    if value.dtype != x.dtype:
        raise TypeError(f"{op}: {name} is {value.dtype}, expected that of x, {x.dtype}")
    if value.dim() and value.shape != x.shape[:1]:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, expected () or ({x.shape[0]},)")
    if value.device != x.device and (value.dim() or value.device.type != "cpu"):
        raise ValueError(f"{op}: {name} is on {value.device}, expected the device of x, {x.device}")
    return value


def radius(op: str, eps: float | Tensor, x: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    """`eps` as a tensor [] or [B]; the values of a tensor are not looked at.

    Raises:
        TypeError, ValueError: as `per_sample`; a negative number, or one in units of 0-255.
    """
    if not isinstance(eps, Tensor):
        check_radius(op, eps, norm, bounds)
    return per_sample(op, "eps", eps, x)


def check_radius(op: str, eps: float, norm: str, bounds: tuple[float, float]) -> None:
    """Refuse a number that is no radius.

    Raises:
        TypeError: no number.
        ValueError: one that is not finite, negative, or in units of 0-255.
    """
    _check_number(op, "eps", eps)
    if not eps >= 0:
        raise ValueError(f"{op}: eps is {eps}, expected a radius >= 0")
    if norm == "linf" and tuple(bounds) == (0.0, 1.0) and eps > 1:
        raise ValueError(
            f"{op}: eps is {eps}, expected pixel units of [0, 1]; write {eps:g}/255 if you meant that"
        )


def _check_number(op: str, name: str, value: object) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{op}: {name} is {value!r} ({type(value).__name__}), expected a number or a tensor")
    # Not math.isfinite, which breaks fullgraph tracing of a dynamic float.
    if not -math.inf < value < math.inf:
        raise ValueError(f"{op}: {name} is {value}, expected a finite number")
