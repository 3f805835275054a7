"""Weights of a frozen encoder as its plan reads them: cast, multiplied by the scale of the batch norm behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Norm", "Weights"]

# Channels of one norm begin at a multiple of this in the rows below: 256 bytes, on which any vector load may begin.
_ALIGNED = 64

Find = Callable[[str], Tensor]
"""A tensor of the encoder by its name."""


@dataclass(frozen=True)
class Norm:
    """A batch norm in eval mode, by the names of its tensors.

    Attributes:
        mean, var: running statistics.
        weight, bias: None where it is not affine.
        eps: added to the variance.
        before: names of the biases of up to two convolutions, whose sum it normalises with its input.
    """

    mean: str
    var: str
    weight: str | None
    bias: str | None
    eps: float
    before: tuple[str, ...] = ()


class Weights:
    """What a plan reads, in buffers that stay where they are: CUDA graphs go on reading them.

    A batch norm is ``scale * x + shift`` with scale = weight / sqrt(var + eps) and shift = bias - mean * scale. Both
    are computed in `wide`, and a convolution's weight is multiplied by the scale there and
    rounded once. All norms together take some ten kernels, all casts one or two, each folded convolution one.

    Everything is asked for first, then `prepare` allocates it, once, and fills it, each time. A tensor that is needed
    as it is costs neither memory nor a copy.

    Args:
        wide: of scales and shifts: float32, or float64 where the encoder's weights are.
    """

    def __init__(self, wide: torch.dtype) -> None:
        self._wide = wide
        self._norms: list[Norm] = []
        self._casts: dict[str, tuple[str, torch.dtype]] = {}
        self._folded: dict[str, tuple[str, int, torch.dtype]] = {}
        self._shifts: dict[str, tuple[str | int, str | int]] = {}
        self._half_shifts: dict[str, tuple[int, torch.dtype]] = {}
        self._whole: Sequence[Tensor] = ()
        self._split: list[Sequence[Tensor]] = []
        self._scale: list[Tensor] = []
        self._shift: list[Tensor] = []
        self._factors: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}

    def norm(self, norm: Norm) -> int:
        """Ask for a norm's scale and shift, which are then called ``scaleN`` and ``shiftN``; returns N."""
        self._norms.append(norm)
        return len(self._norms) - 1

    def cast(self, name: str, source: str, dtype: torch.dtype) -> str:
        """Ask for a tensor of the encoder in `dtype`; returns its name here."""
        self._casts[name] = source, dtype
        return name

    def fold(self, name: str, source: str, norm: int, dtype: torch.dtype) -> str:
        """Ask for a convolution's weight times a norm's scale, in `dtype`; returns its name here."""
        self._folded[name] = source, norm, dtype
        return name

    def sum_of_shifts(self, name: str, first: str | int, second: str | int) -> str:
        """Ask for a sum: numbers are those of norms, whose shifts are meant, words are tensors of the encoder."""
        self._shifts[name] = first, second
        return name

    def shift_in(self, name: str, norm: int, dtype: torch.dtype) -> str:
        """Ask for a norm's shift in `dtype`."""
        self._half_shifts[name] = norm, dtype
        return name

    @property
    def allocated(self) -> bool:
        """Whether the buffers are there."""
        return bool(self._whole)

    @torch.no_grad()
    def prepare(self, find: Find) -> dict[str, Tensor]:
        """Everything that was asked for, by name, from the encoder's tensors as they are now."""
        if not self._whole:
            self._allocate(find)
        tensors = self._fill_norms(find)
        to: list[Tensor] = []
        sources: list[Tensor] = []
        for name, (source, dtype) in self._casts.items():
            tensor = find(source)
            if tensor.dtype != dtype:
                to.append(self._buffers[name])
                sources.append(tensor)
                tensors[name] = self._buffers[name]
            else:
                tensors[name] = tensor.detach()
        for name, (norm, dtype) in self._half_shifts.items():
            tensors[name] = self._shift[norm]
            if dtype != self._shift[norm].dtype:
                to.append(self._buffers[name])
                sources.append(self._shift[norm])
                tensors[name] = self._buffers[name]
        if to:
            torch._foreach_copy_(to, sources)
        if self._shifts:
            sums = [self._buffers[name] for name in self._shifts]
            torch._foreach_copy_(sums, [self._term(first, find) for first, _ in self._shifts.values()])
            torch._foreach_add_(sums, [self._term(second, find) for _, second in self._shifts.values()])
            tensors |= dict(zip(self._shifts, sums, strict=True))
        for name, (source, _, _) in self._folded.items():
            tensors[name] = torch.mul(find(source), self._factors[name], out=self._buffers[name])
        return tensors

    def _term(self, part: str | int, find: Find) -> Tensor:
        return self._shift[part] if isinstance(part, int) else find(part)

    def _sources(self) -> Iterator[str]:
        yield from (norm.var for norm in self._norms)
        yield from (source for source, *_ in (*self._folded.values(), *self._casts.values()))

    def _fill_norms(self, find: Find) -> dict[str, Tensor]:
        """Scale and shift of every norm."""
        if not self._norms:
            return {}
        to: list[Tensor] = []
        sources: list[Tensor] = []
        seconds: list[tuple[Tensor, Tensor]] = []
        for norm, rows in zip(self._norms, self._split, strict=True):
            given = (norm.var, norm.mean, norm.weight, norm.bias, *norm.before[:1])
            for row, source in zip(rows, given, strict=False):
                if source is not None:
                    to.append(row)
                    sources.append(find(source))
            seconds += [(rows[4], find(source)) for source in norm.before[1:]]
        torch._foreach_copy_(to, sources)
        if seconds:
            torch._foreach_add_([row for row, _ in seconds], [bias for _, bias in seconds])
        var, mean, weight, bias, before, eps, scale, shift = self._whole
        torch.add(var, eps, out=scale).rsqrt_().mul_(weight)
        torch.sub(before, mean, out=shift).mul_(scale).add_(bias)
        numbered = range(len(self._norms))
        return {f"scale{n}": self._scale[n] for n in numbered} | {
            f"shift{n}": self._shift[n] for n in numbered
        }

    def _allocate(self, find: Find) -> None:
        channels = [len(find(norm.var)) for norm in self._norms]
        spans = [-(-count // _ALIGNED) * _ALIGNED for count in channels]
        device = next(find(source).device for source in self._sources())
        # Rows: var, mean, weight, bias, bias before, eps; then what comes of them, scale and shift.
        rows = torch.zeros(8, sum(spans), dtype=self._wide, device=device)
        rows[2] = 1.0
        rows[5] = 1.0  # between the norms too, where a variance of 0 would divide by 0
        self._whole = rows.unbind()
        # For each norm its part of each row.
        self._split = [
            part[:, :count].unbind() for part, count in zip(rows.split(spans, dim=1), channels, strict=True)
        ]
        for norm, part in zip(self._norms, self._split, strict=True):
            part[5].fill_(norm.eps)
        self._scale, self._shift = [part[6] for part in self._split], [part[7] for part in self._split]
        for name, (source, dtype) in self._casts.items():
            if find(source).dtype != dtype:
                self._buffers[name] = torch.empty_like(find(source), dtype=dtype)
        for name, (source, norm, dtype) in self._folded.items():
            self._buffers[name] = torch.empty_like(find(source), dtype=dtype)
            self._factors[name] = self._scale[norm].view(-1, *[1] * (find(source).dim() - 1))
        for name, (norm, dtype) in self._half_shifts.items():
            if dtype != self._wide:
                self._buffers[name] = torch.empty_like(self._shift[norm], dtype=dtype)
        for name, parts in self._shifts.items():
            self._buffers[name] = torch.empty_like(self._term(parts[0], find), dtype=self._wide)
