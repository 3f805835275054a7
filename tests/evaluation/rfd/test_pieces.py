"""An interrupted part goes on with the batch that it had not finished."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from robustfast.errors import UserError
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.rfd import PARTS, detection
from robustfast.signals import Stopped


class Work:
    """Counts its batches, and is interrupted in one of them."""

    def __init__(self) -> None:
        self.batches, self.stop_at = 0, -1

    def __call__(self, x: torch.Tensor, y: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.batches == self.stop_at:
            raise KeyboardInterrupt
        self.batches += 1
        return {"sum": x.flatten(1).sum(1), "even": y % 2 == 0, "position": positions}


def test_what_is_done_is_not_done_again(context_of) -> None:
    context = context_of("um", images=30, batch_size=10)
    work = Work()
    work.stop_at = 2

    def made(**settings: object) -> dict[str, torch.Tensor]:
        with pieces(context, "toy") as kept:
            return kept.of("sums", work, **settings)

    with pytest.raises(KeyboardInterrupt):
        made()
    folder = context.folder / "rfd-toy.partial"
    assert len(list(folder.iterdir())) == 2
    work.stop_at = -1
    # Other settings are other work.
    made(eps=0.1)
    assert work.batches == 2 + 3
    found = made()
    assert work.batches == 2 + 3 + 1
    assert not folder.exists()
    x, y, positions = (torch.cat(parts) for parts in zip(*context.batches(), strict=True))
    assert torch.equal(found["sum"], x.flatten(1).sum(1))
    assert torch.equal(found["even"], y % 2 == 0)
    assert torch.equal(found["position"], positions)
    assert [value.dtype for value in found.values()] == [torch.float32, torch.bool, torch.int64]


def test_a_network_that_broke_is_said(context_of) -> None:
    context = context_of("um", images=4)
    with (
        pytest.raises(UserError, match="sums: a network says nan or infinity"),
        pieces(context, "toy") as kept,
    ):
        kept.of("sums", lambda x, y, positions: {"score": x.flatten(1).sum(1) / 0})


def test_the_protocol_goes_on_and_keeps(runs, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs("rfd")
    request = Request(parts=("angles", "detection"), images=20, batch_size=10, device="cpu")

    def evaluate() -> str:
        console = Console(file=io.StringIO(), width=200)
        evaluate_parts(path, "rfd", PARTS, request, console=console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    made = []
    attacked = detection._attacked

    def interrupted(kept, both, way, eps, norm, seed):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((norm, eps))
        return attacked(kept, both, way, eps, norm, seed)

    monkeypatch.setattr(detection, "_attacked", interrupted)
    with pytest.raises(Stopped, match="the same command goes on from there"):
        evaluate()
    pieces_left = len(list((path / "evaluation" / "rfd-detection.partial").iterdir()))
    # Clean images, the training attack and three radii, in two batches each.
    assert pieces_left == 2 * (2 + 3)
    monkeypatch.setattr(detection, "_attacked", attacked)
    printed = evaluate()
    assert "angles: kept" in printed
    assert "detection by the discriminator" in printed
    assert not (path / "evaluation" / "rfd-detection.partial").exists()
    assert "detection: kept" in evaluate()
