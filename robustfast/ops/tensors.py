"""What ops ask of their tensors before anything else: that they are tensors, hold pixels, can be written."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_labelled", "check_pixels", "check_tensors", "check_writable"]


def check_tensors(op: str, **values: object) -> None:
    """Raises TypeError for a value that is no tensor; the keywords are the names of the arguments."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a tensor")


def check_pixels(op: str, x: Tensor) -> None:
    """Raises TypeError for images that are neither float32 nor float64, with what mends it."""
    if x.dtype in (torch.float32, torch.float64):
        return
    message = f"{op}: x is {x.dtype}, expected float32 or float64"
    if x.dtype.is_floating_point:
        raise TypeError(
            f"{message}: half-precision images leave the ball (1.09 eps after ten bfloat16 steps); "
            f"keep images in float32 and run only the model in half precision"
        )
    raise TypeError(f"{message} pixels in [0, 1]" + (": divide by 255" if x.dtype == torch.uint8 else ""))


def check_writable(op: str, out: Tensor, name: str = "out") -> None:
    """Raises ValueError for an expanded tensor, several of whose elements are one place in memory."""
    if any(stride == 0 and size > 1 for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError(
            f"{op}: {name} of shape {tuple(out.shape)} is expanded (strides {tuple(out.stride())}), expected a place "
            f"in memory for each element: {name}.contiguous()"
        )


def check_labelled(op: str, logits: Tensor, y: Tensor, target: Tensor | None) -> None:
    """Refuse what is no logits [B, K] with labels y, and target where it is not None, int64 [B] on the same device.

    Raises:
        TypeError, ValueError: what came and what is expected. Values are not looked at.
    """
    labels = {"y": y} if target is None else {"y": y, "target": target}
    check_tensors(op, logits=logits, **labels)
    if not logits.dtype.is_floating_point:
        raise TypeError(f"{op}: logits are {logits.dtype}, expected a floating dtype")
    if logits.dim() != 2:
        raise ValueError(f"{op}: logits have shape {tuple(logits.shape)}, expected [B, K]")
    for name, label in labels.items():
        if label.dtype != torch.int64:
            raise TypeError(f"{op}: {name} is {label.dtype}, expected torch.int64")
        if label.shape != logits.shape[:1]:
            raise ValueError(
                f"{op}: {name} has shape {tuple(label.shape)}, expected {tuple(logits.shape[:1])}, one for each sample"
            )
        if label.device != logits.device:
            raise ValueError(
                f"{op}: {name} is on {label.device}, expected the device of logits, {logits.device}"
            )
