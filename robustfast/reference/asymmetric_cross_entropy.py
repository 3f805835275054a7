"""The cross-entropy terms of AAT and AAT++, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["asymmetric_cross_entropy", "asymmetric_cross_entropy_backward"]


def asymmetric_cross_entropy(
    logits: Sequence[Tensor], y: Tensor, yhat_s: Tensor | None, yhat_n: Tensor | None, rules: Sequence[str]
) -> Tensor:
    """The value of each term: the cross entropy summed over the samples it keeps, over the full batch size.

    Logits count in float32 at least; the sum runs in float64 and is rounded once, so that its order, which differs
    between backends, almost never shows. The label of a kept sample outside the classes is an error on the CPU, and NaN
    elsewhere, where looking at it would synchronise.

    Args:
        logits: [B, C] for each term.
        y, yhat_s, yhat_n: labels and predictions under attack, int64 [B].
        rules: for each term one of "y", "y_where_s_fooled", "yhat_s", "yhat_n" (`target`).

    Returns:
        [len(logits)], float32, or float64 for float64 logits.
    """
    values = []
    for term, rule in zip(logits, rules, strict=True):
        label, keep = target(rule, y, yhat_s, yhat_n)
        known, inside = _inside(label, keep, term.shape[1])
        picked = _log_softmax(term).gather(1, known[:, None]).squeeze(1)
        loss = torch.where(keep, torch.where(inside, -picked, torch.nan), 0)
        values.append((loss.sum(dtype=torch.float64) / len(y)).to(loss.dtype))
    return torch.stack(values)


def asymmetric_cross_entropy_backward(
    grad: Tensor,
    logits: Sequence[Tensor],
    y: Tensor,
    yhat_s: Tensor | None,
    yhat_n: Tensor | None,
    rules: Sequence[str],
) -> Tensor:
    """Gradients of all terms' logits, stacked: [len(logits), B, C]; exactly zero for samples that are left out."""
    gradients = []
    for g, term, rule in zip(grad, logits, rules, strict=True):
        label, keep = target(rule, y, yhat_s, yhat_n)
        known, inside = _inside(label, keep, term.shape[1])
        softmax = _log_softmax(term).exp()
        hit = torch.arange(term.shape[1], device=term.device) == known[:, None]
        rows = torch.where(inside[:, None], (softmax - hit.to(softmax.dtype)) * (g / len(y)), torch.nan)
        gradients.append(torch.where(keep[:, None], rows, 0).to(term.dtype))
    return torch.stack(gradients)


def target(rule: str, y: Tensor, yhat_s: Tensor | None, yhat_n: Tensor | None) -> tuple[Tensor, Tensor]:
    """The label [B] that a term trains towards, and whether it keeps each sample, bool [B]."""
    if rule == "y":
        return y, torch.ones_like(y, dtype=torch.bool)
    if rule == "yhat_n":
        return yhat_n, yhat_n != y
    return (yhat_s if rule == "yhat_s" else y), yhat_s != y


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)


def _inside(label: Tensor, keep: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The label with 0 in place of what is not a class, and whether it was one."""
    inside = (label >= 0) & (label < classes)
    if label.device.type == "cpu" and (wrong := label[keep & ~inside]).numel():
        raise RuntimeError(
            f"asymmetric_cross_entropy: label {wrong[0].item()}, expected 0 to {classes - 1} for {classes} classes"
        )
    return torch.where(inside, label, 0), inside
