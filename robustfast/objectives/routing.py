"""Nodes that let a loss move some of the parameters that it depends on, and others differently or not at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["scaled_gradient", "through"]


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`: a gradient reversal layer (Ganin and Lempitsky 2015) below 0."""
    return _Scaled.apply(x, factor)


def through(z: Tensor, leaf: Tensor, f: Tensor) -> Tensor:
    """`z`, computed from `leaf`, for those losses whose gradient goes on to `f`, of which `leaf` is the detached copy.

    Losses of `z` itself move the parameters between `leaf` and `z` alone. Those of what this returns move these, and
    all that `f` depends on. So one forward pass serves losses of both kinds; the price is a second pass to the input
    (without weights), for the one gradient that must not have the other losses in it.

    Args:
        z: any function of `leaf`.
        leaf: ``f.detach().requires_grad_()``.
        f: what `leaf` holds, with its graph.
    """
    return _Through.apply(z, f, (z, leaf))


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, f: Tensor, path: tuple[Tensor, Tensor]) -> Tensor:
        # Neither is saved as a tensor of this node: the graph between them is what is wanted.
        ctx.path = path
        return z.view_as(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        z, leaf = ctx.path
        to_f = None
        if ctx.needs_input_grad[1]:
            # The same graph serves the losses of z afterwards.
            (to_f,) = torch.autograd.grad(z, leaf, grad, retain_graph=True)
        return grad, to_f, None
