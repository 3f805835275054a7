"""Batch norm over the batches of all processes together, as one process with the whole batch computes it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from robustfast.distributed import World

__all__ = ["SyncBatchNorm", "synchronise"]


def synchronise(model: nn.Module, world: World, device: torch.device) -> None:
    """Make every batch norm of `model` normalise, in train mode, by the statistics of all processes' batches.

    In place: parameters and buffers stay the same objects under the same names, so optimizers and checkpoints notice
    nothing. A world of one is left as it is.

    On CUDA they become `torch.nn.SyncBatchNorm`: its fused kernels read the batch twice forward and twice backward,
    where the operators of `SyncBatchNorm` here would be launched one by one. Torch's refuses tensors on the CPU.

    Args:
        model: the model; itself no batch norm.
        world: the processes.
        device: where the model runs.
    """
    if world.size == 1:
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                if device.type == "cuda":
                    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(child)
                    synchronised.train(child.training)
                else:
                    synchronised = SyncBatchNorm(child, world)
                setattr(parent, name, synchronised)


class SyncBatchNorm(_BatchNorm):
    """A batch norm whose batch, in train mode, is that of all processes; in eval mode the batch norm it was made of.

    Statistics are float32 (float64 for float64 images), from each process's own mean and squared deviations about it,
    which are put together without cancellation (Chan, Golub and LeVeque 1979). They and the gradient equal those of one
    process to rounding, also where the processes' batches differ in size. One message forward, one backward.

    The gradients of weight and bias are those of this process's images, to be summed over the processes as all others.

    Args:
        source: the batch norm, whose parameters and buffers this one takes over.
        world: the processes.

    Raises:
        ValueError: in every process, a batch with one value per channel in all of them together, as torch's.
    """

    def __init__(self, source: _BatchNorm, world: World) -> None:
        super().__init__(
            source.num_features, source.eps, source.momentum, affine=False, track_running_stats=False
        )
        self.affine, self.track_running_stats = source.affine, source.track_running_stats
        for name in ("weight", "bias"):
            setattr(self, name, getattr(source, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(source, name))
        self.world = world
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...], of this process, floating point."""
        # As torch's: without running statistics eval mode, too, goes by the batch.
        if not (self.training or self.running_mean is None):
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.world)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(mean, var, count)
        return y

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions from 2: `_Normalise` treats those behind the channels as one."""

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        weight: Any = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        # As torch, running variances are those of the unbiased estimate.
        for buffer, value in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            buffer.mul_(1 - weight).add_((value * weight).to(buffer.dtype))


class _Normalise(torch.autograd.Function):
    """y, and the statistics of all processes: mean and biased variance [C], number of values a channel []."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: World
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        var, mean = torch.var_mean(x.to(kind), [0, *range(2, x.ndim)], correction=0)
        own = x.numel() // x.shape[1]
        message = world.stack(torch.cat([mean, var * own, mean.new_tensor([own])]))
        means, squares, counts = message.split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        # As torch's: one value is its own mean, and its deviation from it says nothing.
        if count < 2:
            raise ValueError(
                f"expected more than 1 value per channel over all processes in train mode, got input of shape "
                f"{tuple(x.shape)}"
            )
        mean = (means * counts).sum(0) / count
        var = (squares + counts * (means - mean).square()).sum(0) / count
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.world = eps, world
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        # Through fixed statistics first, in one pass: grad_weight and grad_bias are the sums that the statistics need.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        if ctx.needs_input_grad[0]:
            through_var, through_mean = (ctx.world.sum(torch.cat([grad_weight, grad_bias])) / count).chunk(2)
            inverse = scale * torch.rsqrt(var + ctx.eps)
            slope, offset = inverse * torch.rsqrt(var + ctx.eps) * through_var, inverse * through_mean
            mean, slope, offset = (value.view(1, -1, *(1,) * (x.ndim - 2)) for value in (mean, slope, offset))
            grad_x = (grad_x - ((x - mean) * slope + offset)).to(x.dtype)
        if weight is None:
            grad_weight = grad_bias = None
        return grad_x, grad_weight, grad_bias, None, None
