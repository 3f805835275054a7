"""APGD under l1 without the schedule of larger radii."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from robustfast.attacks.apgd import APGD
from robustfast.attacks.apgd_t import APGDT
from robustfast.attacks.compaction import Remaining

__all__ = ["OneBallAPGD", "OneBallAPGDT"]

_FIRST_SHARE = 0.2
"""Of the entries, moved by the first steps; the package's own."""

_BLOCK = 5


class _OneBall(APGD if TYPE_CHECKING else object):
    """All steps in the ball of eps, as the package's l1 attack goes where `use_largereps` is False.

    The start is the projection of x + t, t normal, onto that ball, and the first steps move a fifth of the entries
    (after a larger ball: two thirds of those that it left moved). It finds less than the schedule does.
    """

    def _once(
        self, everyone: Mapping[str, Tensor], found: dict[str, Tensor], left: Remaining, seed: int
    ) -> None:
        part = left.take(everyone)
        eps, index, start = part.pop("eps"), part.pop("index"), part.pop("start", None)
        x_adv = self._start(part["x"], eps, index, seed) if start is None else start
        state = self._begin(part, x_adv, eps, left.rows)
        if start is None:
            state["sparsity"].fill_(_FIRST_SHARE)
            state["moved"].fill_(x_adv[0].numel())
        schedule = self._schedule(self.steps, x_adv)
        block = _BLOCK if self.early_stop else self.steps
        for first in range(0, self.steps, block):
            if self.early_stop:
                left, state = self._leave(left, state, found)
                if not left.count:
                    return
            self._advance(
                state, {name: rows[first : first + block] for name, rows in schedule.items()}, left.rows
            )
        self._settle(left, state, found)


class OneBallAPGD(_OneBall, APGD):
    """APGD under l1 in one ball."""


class OneBallAPGDT(_OneBall, APGDT):
    """APGD-T under l1 in one ball."""
