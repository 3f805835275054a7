"""What the adapters share: a model that is called through something, or in the mode it is in, and keys for draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustfast.attacks.losses import Loss
from robustfast.attacks.modes import module_of

__all__ = [
    "Attacks",
    "Through",
    "as_it_is",
    "check_device",
    "device_of",
    "fresh_key",
    "loss_of",
    "predictions",
    "unsupported",
]

Model = Callable[[Tensor], Tensor]


class Through:
    """A model behind a function of its images; attacks find its weights and modes in `model`.

    Args:
        model: images -> logits.
        before: what the images pass first, such as a normalisation.
    """

    def __init__(self, model: Model, before: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.before = before

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(self.before(x))


@contextmanager
def as_it_is(model: Model) -> Iterator[Model]:
    """The model in the mode it is in, for peers that never touch it, with its buffers left alone.

    Yields what to attack. Batch norms in train mode go on using the statistics of the batch, as the peers' do, but
    their running statistics stay as they are, which the peers' do not. Dropout in train mode is on, and draws from
    torch's global generator.
    """
    module = module_of(model)
    parts = [] if module is None else [part for part in module.modules() if part.training]
    norms = [part for part in parts if isinstance(part, _BatchNorm) and part.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        # Where nothing is in train mode, eval mode is the mode it is in. Else attacks must not find the module.
        yield (lambda x: model(x)) if parts else model
    finally:
        for norm in norms:
            norm.track_running_stats = True


class Attacks:
    """The attack of one adapter, built anew only where its settings changed: a CUDA graph then serves many calls.

    Attributes:
        last: the attack of the last call.
    """

    def __init__(self) -> None:
        self._key: Any = None
        self.last: Any = None

    def get(self, kind: Callable[..., Any], model: Any, **settings: Any) -> Any:
        """``kind(model, **settings)``, or the one of the last call where that was given the same."""
        key = (kind, model, settings)
        if self._key is None or not _same(key, self._key):
            # A closure around a model in train mode cannot be captured.
            graphs = module_of(model) is not None
            self.last = kind(model, **{"engine": "auto" if graphs else "eager", **settings})
            self._key = key
        return self.last


def _same(one: Any, other: Any) -> bool:
    (kind, model, settings), (kind_before, model_before, before) = one, other
    return (
        kind is kind_before
        and model is model_before
        and settings.keys() == before.keys()
        and all(
            value is before[name] or (type(value) is type(before[name]) and _equal(value, before[name]))
            for name, value in settings.items()
        )
    )


def _equal(one: Any, other: Any) -> bool:
    return not isinstance(one, Tensor) and bool(one == other)


def fresh_key() -> int:
    """A key for the draws of one call, itself drawn from torch's global generator on the CPU.

    Peers draw their noise there: so `torch.manual_seed` makes a script repeatable, and two calls differ. This is the
    only thing that adapters take from it. It is never seeded.
    """
    return int(torch.randint(2**62, ()))


@torch.no_grad()
def predictions(model: Model, x: Tensor) -> Tensor:
    """Predicted labels int64 [B] for attacks that were given none."""
    return model(x).argmax(1)


def loss_of(function: Callable[[Tensor, Tensor], Tensor] | None) -> str | Loss:
    """A peer's loss function, which may return a mean or a sum over the batch, as a loss [B]; None: cross entropy."""
    return "ce" if function is None else _PerSample(function)


@dataclass(frozen=True)
class _PerSample:
    """Equal for equal functions, so that `Attacks` keeps the attack, and its CUDA graph, from call to call."""

    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        value = self.function(logits, target)
        # Summed again over the batch, the shares make the value itself, hence its gradient.
        return value if value.dim() else (value / len(target)).expand(len(target))


def unsupported(library: str, name: str, instead: str = "") -> AttributeError:
    """The error for a name of `library` that has no counterpart here."""
    mend = f"; {instead}" if instead else f": keep {library} for it"
    return AttributeError(f"{library}'s {name} has no counterpart in robustfast{mend}")


def check_device(device: Any) -> None:
    """Refuse a CUDA device, some peers' default, where torch has none.

    Raises:
        ValueError: says what to pass.
    """
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, and torch finds no CUDA here: pass device='cpu'")


def device_of(model: Any) -> torch.device | None:
    """Where the model's first parameter lies; None where it has none."""
    module = model if isinstance(model, nn.Module) else module_of(model)
    parameter = None if module is None else next(module.parameters(), None)
    return None if parameter is None else parameter.device
