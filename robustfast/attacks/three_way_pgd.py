"""PGD on several ways of a network at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.pgd import PGD, AttackReport
from robustfast.models.network import Network, check_letters
from robustfast.models.three_way import ENCODERS, ThreeWay
from robustfast.seeds import derive

__all__ = ["ThreeWayPGD"]

# In this order the batches each encoder sees lie side by side: encoder r reads the lanes r and s, encoder n the lanes
# s and n, and no batch is ever copied together.
_LANES = "rsn"


class ThreeWayPGD:
    """Attack each of several ways of a network through itself (AAT, equations 7, 9 and 10).

    Way w gets exactly what ``PGD(model.way(w), seed=derive(seed, w), **settings)`` gives, by either of two routes:

    * separate: one attack after the other. Way "r" runs encoder r only, "n" encoder n only, "s" both.
    * batched: in each step, each encoder sees the images of all attacks that need it in one call, and one backward
      pass of the summed losses gives every gradient, because each loss depends on its own images only. The same
      arithmetic on larger batches: equal in exact arithmetic, faster on a GPU (up to 1.24x at batch 128), slower on a
      CPU (0.78-1.0x). Only for `robustfast.models.ThreeWay`, whose encoders share nothing.

    Args:
        model: the network.
        ways: the ways to attack, each once, out of its `readings`.
        batched: "auto" (batched on CUDA where it can be, separate elsewhere), True or False.
        settings: keywords of `PGD`.

    Attributes:
        report: way -> `AttackReport` of the last call; reading it waits for the device.

    Raises:
        ValueError: unknown ways, a setting that `PGD` refuses, or batched=True for another network than `ThreeWay` or
            with batch_norm="batch", which would mix the statistics of different attacks.
    """

    def __init__(
        self, model: Network, ways: str = "srn", *, batched: bool | str = "auto", **settings: Any
    ) -> None:
        check_letters("ways", ways, model.readings)
        if batched not in ("auto", True, False):
            raise ValueError(f"batched is {batched!r}, expected 'auto', True or False")
        by_batch = settings.get("batch_norm") == "batch"
        if batched is True and by_batch:
            raise ValueError(
                "batched=True would mix batch statistics of different attacks; use batched=False"
            )
        three = isinstance(model, ThreeWay)
        if batched is True and not three:
            raise ValueError(
                f"batched=True is for a ThreeWay network, got {type(model).__name__}; use batched=False"
            )
        self.model = model
        self.ways = ways
        if batched is True and settings.get("early_stop"):
            raise ValueError("early_stop leaves other samples out of each way's steps; use batched=False")
        self.batched = False if by_batch or settings.get("early_stop") or not three else batched
        seed = settings.pop("seed", 0)
        self._seeds = {way: derive(seed, way) for way in ways}
        self._separate = {way: PGD(model.way(way), seed=self._seeds[way], **settings) for way in ways}
        self._together = (
            _LanePGD(model, [way for way in _LANES if way in ways], **settings)
            if isinstance(model, ThreeWay)
            else None
        )
        self._last: Callable[[], dict[str, AttackReport]] | None = None

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        epoch: int = 0,
        eps: float | Tensor | None = None,
        step_size: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Attack one batch; arguments and errors as in `PGD.__call__`.

        Returns:
            way -> adversarial images like `x`, detached, in the order of `ways`.
        """
        sizes = {"epoch": epoch, "eps": eps, "step_size": step_size}
        together = isinstance(x, Tensor) and (x.is_cuda if self.batched == "auto" else self.batched)
        if together and len(x):
            assert self._together is not None
            reports, lanes, batch = self._together.reports, self._together.lanes, len(x)
            images = self._together.attack(x, y, index, [self._seeds[way] for way in lanes], **sizes)
            self._last = lambda: reports(batch)
            found = dict(zip(lanes, images, strict=True))
        else:
            found = {way: attack(x, y, index, **sizes) for way, attack in self._separate.items()}
            self._last = lambda: {way: attack.report for way, attack in self._separate.items()}
        return {way: found[way] for way in self.ways}

    @property
    def report(self) -> dict[str, AttackReport]:
        if self._last is None:
            raise RuntimeError("no report: this attack has not been called yet")
        reports = self._last()
        return {way: reports[way] for way in self.ways}


class _LanePGD(PGD):
    """PGD on all ways in one loop: the ways' batches are lanes that lie one after the other in every buffer."""

    def __init__(self, model: ThreeWay, lanes: Sequence[str], **settings: Any) -> None:
        self.lanes = lanes
        self._lanes = len(lanes)
        # Encoder -> the first lane it sees and the one after the last.
        self._seen = {}
        for encoder in "rn":
            seen = [number for number, way in enumerate(lanes) if encoder in ENCODERS[way]]
            if seen:
                self._seen[encoder] = (seen[0], seen[-1] + 1)
        super().__init__(model, **settings)

    def attack(
        self, x: Tensor, y: Tensor, index: Tensor | None, seeds: Sequence[int], **sizes: Any
    ) -> Sequence[Tensor]:
        """Adversarial images of each lane."""
        return self._attack(x, y, index, start=None, seeds=seeds, **sizes).chunk(len(self.lanes))

    def reports(self, batch: int) -> dict[str, AttackReport]:
        return dict(zip(self.lanes, self._log.reports(batch), strict=True))

    def _forward(self) -> Callable[..., Tensor]:
        model, lanes, seen = self.model, self.lanes, self._seen

        def logits(*leaves: Tensor) -> Tensor:
            encoded = model.encode_each(dict(zip(seen, leaves, strict=True)))
            z = {encoder: encoded[encoder].chunk(last - first) for encoder, (first, last) in seen.items()}
            return torch.cat(
                [
                    model.decode({e: z[e][lane - seen[e][0]] for e in ENCODERS[way]}, way)[way]
                    for lane, way in enumerate(lanes)
                ]
            )

        return logits

    def _spans(self, batch: int) -> list[slice]:
        return [slice(first * batch, last * batch) for first, last in self._seen.values()]

    def _parts(self, batch: int) -> list[slice]:
        return [slice(lane * batch, (lane + 1) * batch) for lane in range(len(self.lanes))]

    def _gradients(self, grads: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        by_encoder = {encoder: grad.split(batch) for encoder, grad in zip(self._seen, grads, strict=True)}
        pieces = [
            [by_encoder[encoder][lane - self._seen[encoder][0]] for encoder in ENCODERS[way]]
            for lane, way in enumerate(self.lanes)
        ]
        return [lane[0] if len(lane) == 1 else lane[0] + lane[1] for lane in pieces]
