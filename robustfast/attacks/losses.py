"""Losses an attack climbs: one value per sample, so that samples never weigh on each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.ops import dlr_loss, margin_loss
from robustfast.registry import lookup

__all__ = ["LOSSES", "Loss", "check_logits", "check_target", "loss_function"]

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(logits [B, K], target) -> loss [B]."""


def ce(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with labels int64 [B]: the loss of Madry et al. 2018 (arXiv:1706.06083)."""
    return F.cross_entropy(logits, target, reduction="none")


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Largest other logit minus that of the label: f_6 of Carlini and Wagner 2017 (arXiv:1608.04644) without kappa.

    Positive exactly for the misclassified; see `robustfast.ops.margin_loss`.
    """
    return margin_loss(logits, target)


def dlr(logits: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio, equation 6 of Croce and Hein 2020 (arXiv:2003.01690); needs three classes.

    See `robustfast.ops.dlr_loss`. A targeted attack descends this same loss; the authors' targeted form, with z_(4) and
    both labels, is another one, which that op has too.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"loss 'dlr' divides by the gap to the third logit, the model returned {logits.shape[1]}; use 'margin'"
        )
    return dlr_loss(logits, target)


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(logits)) with given probabilities [B, K].

    The loss TRADES climbs (Zhang et al. 2019, arXiv:1901.08573). Its gradient is zero where both agree, so it needs a
    random start.
    """
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="none").sum(1)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}


def loss_function(loss: str | Loss) -> Loss:
    """The loss of that name, or a caller's own, held to its contract: a model's wrong output ends in one clear line.

    Half-precision logits are taken to float32 first: a loss rounded to half precision has steps instead of a slope.

    Raises:
        UserError: unknown name.
    """
    if not isinstance(loss, str):
        return _checked(loss)
    named = lookup("loss", LOSSES, loss)

    def run(logits: Tensor, target: Tensor) -> Tensor:
        check_logits(logits, len(target))
        if target.is_floating_point() and target.shape != logits.shape:
            raise ValueError(
                f"y has shape {tuple(target.shape)}, expected that of the model's logits, {tuple(logits.shape)}"
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if target.is_floating_point():
            return named(logits, target.to(logits.dtype))
        # A label out of range would kill the CUDA context; it is reported after the loop, from `Extremes`.
        return named(logits, target.clamp(0, logits.shape[1] - 1))

    return run


def check_target(loss: str | Loss, x: Tensor, y: Tensor) -> None:
    """Refuse targets of the wrong kind for a named loss, by shape, dtype and device alone.

    Raises:
        TypeError, ValueError: name what came and what the loss expects.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"y is {type(y).__name__}, expected a tensor")
    if y.device != x.device:
        raise ValueError(f"y is on {y.device}, expected the device of x, {x.device}")
    if loss == "kl":
        if not y.is_floating_point():
            raise TypeError(f"y is {y.dtype}, loss 'kl' expects probabilities [B, K] in floating point")
        if y.dim() != 2 or len(y) != len(x):
            raise ValueError(f"y has shape {tuple(y.shape)}, loss 'kl' expects probabilities [{len(x)}, K]")
    elif not isinstance(loss, str):
        if y.dim() < 1 or len(y) != len(x):
            raise ValueError(f"y has shape {tuple(y.shape)}, expected one target per sample, [{len(x)}, ...]")
    else:
        if y.dtype != torch.int64:
            raise TypeError(f"y is {y.dtype}, loss {loss!r} expects labels in int64")
        if y.shape != x.shape[:1]:
            raise ValueError(f"y has shape {tuple(y.shape)}, loss {loss!r} expects labels [{len(x)}]")


def _checked(loss: Loss) -> Loss:
    def run(logits: Tensor, target: Tensor) -> Tensor:
        values = loss(logits, target)
        if not isinstance(values, Tensor) or values.shape != target.shape[:1]:
            came = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"the loss returned {came}, expected one value per sample, [{len(target)}]")
        return values

    return run


def check_logits(logits: object, batch: int) -> None:
    """Refuse a model's output that is no logits [batch, K].

    Raises:
        TypeError, ValueError: what came and what is expected.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned {type(logits).__name__}, expected logits [B, K]; "
            f"wrap it in a function that picks them"
        )
    if logits.dim() != 2 or len(logits) != batch or logits.shape[1] < 2:
        raise ValueError(
            f"the model returned shape {tuple(logits.shape)}, expected logits [{batch}, K] with K >= 2"
        )
