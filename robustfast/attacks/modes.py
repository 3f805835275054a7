"""Put a model into the mode an attack needs, and back exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["eval_mode", "module_of"]


def module_of(model: Callable[..., object]) -> nn.Module | None:
    """The module behind a model: itself, the `model` of one way of a three-way model, or the owner of a bound method.

    None for any other callable: a lambda around a network runs in whatever mode the network is in.
    """
    for candidate in (model, getattr(model, "model", None), getattr(model, "__self__", None)):
        if isinstance(candidate, nn.Module):
            return candidate
    return None


@contextmanager
def eval_mode(model: Callable[..., object], *, batch_norm: str = "eval") -> Iterator[None]:
    """Run a block with every submodule in eval mode, then restore each submodule's own mode, also after an exception.

    Submodules are restored one by one: `model.train()` would wake batch norm or dropout that its owner had frozen.

    Args:
        model: a module or one way of a three-way model; nothing happens to other callables (see `module_of`).
        batch_norm: "eval" normalises by the running statistics; "batch" by those of the batch, in every batch norm of
            the model and with running mean, variance and counter untouched.

    Raises:
        ValueError: unknown `batch_norm`.
    """
    if batch_norm not in ("eval", "batch"):
        raise ValueError(f"batch_norm is {batch_norm!r}, expected 'eval' or 'batch'")
    module = module_of(model)
    changed: list[tuple[nn.Module, str, bool]] = []

    def set_flag(part: nn.Module, flag: str, value: bool) -> None:
        if getattr(part, flag) != value:
            changed.append((part, flag, not value))
            setattr(part, flag, value)

    try:
        for part in () if module is None else module.modules():
            by_batch = batch_norm == "batch" and isinstance(part, _BatchNorm)
            set_flag(part, "training", by_batch)
            if by_batch:
                # In train mode without tracking, a batch norm neither reads nor writes its buffers.
                set_flag(part, "track_running_stats", False)
        yield
    finally:
        for part, flag, value in changed:
            setattr(part, flag, value)
