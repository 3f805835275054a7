"""What is trained: a network over one or more encoders that is read in ways, each of them a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

__all__ = ["Network", "Way", "check_letters"]


class Network(nn.Module):
    """Images to logits, in one or more ways that share parts of it.

    Attacks, checks and evaluations go by ways alone; what else a network has, its objective knows.

    Attributes:
        readings: the letters of its ways; the first one is what `forward` reads.
    """

    readings: ClassVar[str]

    def ways(self, x: Tensor, ways: str) -> dict[str, Tensor]:
        """Logits [B, C] of each way named in `ways`, in that order, from images x; what they share runs once.

        Raises:
            ValueError: an unknown way, or one twice.
        """
        raise NotImplementedError

    def encoders(self, ways: str | None = None) -> dict[str, nn.Module]:
        """By name, what maps images to features [B, H] for `ways`, all of them without it."""
        raise NotImplementedError

    def way_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that a way depends on."""
        raise NotImplementedError

    def way(self, name: str) -> Way:
        """One way as a callable, for attacks and evaluation: it runs only what it looks at."""
        check_letters("ways", name, self.readings)
        return Way(self, name)

    def forward(self, x: Tensor) -> Tensor:
        """The first way: logits [B, C]."""
        name = self.readings[0]
        return self.ways(x, name)[name]


@dataclass(frozen=True)
class Way:
    """One way of a network: images to logits [B, C].

    Attributes:
        model: the `Network` it reads; its weights and modes are the network's own.
        name: one letter of its `readings`.
    """

    model: Network
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.ways(x, self.name)[self.name]

    def parameters(self) -> list[nn.Parameter]:
        """The parameters this way depends on."""
        return self.model.way_parameters(self.name)


def check_letters(what: str, letters: str, known: str) -> None:
    """Refuse anything but one or more letters of `known`, each once.

    Raises:
        ValueError: names `what` it is.
    """
    if not letters or len(set(letters)) != len(letters) or not set(letters) <= set(known):
        raise ValueError(f"{what} {letters!r}: expected one or more of {', '.join(known)}, each once")
