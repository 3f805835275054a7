"""The scalars of a step, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Terms"]


class Terms(Mapping[str, Tensor]):
    """Scalars by name that lie in one tensor, so that all of them are counted, copied or read at once.

    Args:
        names: of the values, each once.
        stacked: their values [names], detached.

    Attributes:
        names, stacked: the arguments.
    """

    def __init__(self, names: Sequence[str], stacked: Tensor) -> None:
        self.names, self.stacked = tuple(names), stacked
        self._places = {name: place for place, name in enumerate(self.names)}

    @classmethod
    def of(cls, terms: Mapping[str, Tensor]) -> Terms:
        """These scalars, put into one tensor unless they lie in one."""
        return terms if isinstance(terms, cls) else cls(tuple(terms), torch.stack(list(terms.values())))

    def in_order(self, names: Sequence[str]) -> Terms:
        """Those of all of `names`, in their order; zero where there is none."""
        zero = self.stacked.new_zeros(())
        return Terms(names, torch.stack([self.get(name, zero) for name in names]))

    def __getitem__(self, name: str) -> Tensor:
        return self.stacked[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Terms({dict(self)})"
