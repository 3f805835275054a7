"""What a network predicts, on natural images and under attack, way by way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from robustfast.attacks import AttackReport, eval_mode
from robustfast.distributed import World
from robustfast.models import Network

__all__ = ["AttackedPredictions", "Predictions", "predict"]


class Attack(Protocol):
    """Attacks several ways at once, as `robustfast.attacks.ThreeWayPGD`: way -> adversarial images."""

    def __call__(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Mapping[str, Tensor]: ...

    @property
    def report(self) -> Mapping[str, AttackReport]: ...


@dataclass
class AttackedPredictions:
    """Predicted labels int64 [N] under one attack.

    Attributes:
        own: way to its predictions on images that attack this very way.
        standard: way to its predictions on images that attack the standard way; empty if that way was not trained.
        zero_gradient, nonfinite_gradient: way to the number of its images that met such a gradient at some step.
    """

    own: dict[str, Tensor] = field(default_factory=dict)
    standard: dict[str, Tensor] = field(default_factory=dict)
    zero_gradient: dict[str, int] = field(default_factory=dict)
    nonfinite_gradient: dict[str, int] = field(default_factory=dict)


@dataclass
class Predictions:
    """True labels int64 [N], predictions by way, and those under each attack by its name."""

    labels: Tensor
    natural: dict[str, Tensor]
    attacked: dict[str, AttackedPredictions]


def predict(
    model: Network,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    attacks: Mapping[str, Attack],
    *,
    ways: str = "srn",
    on_batch: Callable[[int], None] = lambda images: None,
    world: World | None = None,
) -> Predictions:
    """Predict natural and attacked images by every trained way; the model is in eval mode meanwhile.

    Args:
        model: the network.
        batches: (x float32 [B, C, H, W] in [0, 1], y int64 [B], index int64 [B]), at least one in all processes.
        attacks: name to an attack on `ways`.
        ways: the ways that were trained; the others are neither attacked nor predicted.
        on_batch: called after each batch and attack with the number of images attacked, for a progress bar.
        world: the processes; each predicts `batches` of its own, which lie one after the other in the order of ranks.

    Returns:
        Predictions of all processes, in each of them, on the CPU.
    """
    labels: list[Tensor] = []
    natural: list[dict[str, Tensor]] = []
    own: dict[str, list[dict[str, Tensor]]] = {name: [] for name in attacks}
    standard: dict[str, list[dict[str, Tensor]]] = {name: [] for name in attacks}
    zero = {name: dict.fromkeys(ways, 0) for name in attacks}
    nonfinite = {name: dict.fromkeys(ways, 0) for name in attacks}
    with eval_mode(model):
        for x, y, index, *_ in batches:
            labels.append(y)
            natural.append(_labels(model, x, ways))
            for name, attack in attacks.items():
                x_adv = attack(x, y, index)
                for way, report in attack.report.items():
                    zero[name][way] += report.zero_gradient
                    nonfinite[name][way] += report.nonfinite_gradient
                through_standard = _labels(model, x_adv["s"], ways) if "s" in ways else {}
                standard[name].append(through_standard)
                # The standard way's own attack is the standard-way attack: predict it once.
                own[name].append(
                    {
                        way: through_standard["s"] if way == "s" else _labels(model, x_adv[way], way)[way]
                        for way in ways
                    }
                )
                on_batch(len(y))
    mine = Predictions(
        _joined(labels),
        _by_way(natural),
        {
            name: AttackedPredictions(
                _by_way(own[name]), _by_way(standard[name]), zero[name], nonfinite[name]
            )
            for name in attacks
        },
    )
    world = world or World()
    # A process with a batch more than another is behind by that batch, which may take an hour on a CPU.
    world.wait()
    return _of_all(world.gather(mine))


def _of_all(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several processes as those of one; a process without batches has no ways."""
    parts = [part for part in parts if part.natural]

    def sums(counts: Sequence[dict[str, int]]) -> dict[str, int]:
        return {way: sum(count[way] for count in counts) for way in counts[0]}

    attacked = {}
    for name in parts[0].attacked:
        found = [part.attacked[name] for part in parts]
        attacked[name] = AttackedPredictions(
            _by_way([part.own for part in found]),
            _by_way([part.standard for part in found]),
            sums([part.zero_gradient for part in found]),
            sums([part.nonfinite_gradient for part in found]),
        )
    return Predictions(
        _joined([part.labels for part in parts]), _by_way([part.natural for part in parts]), attacked
    )


def _labels(model: Network, x: Tensor, ways: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return {way: logits.argmax(dim=1) for way, logits in model.ways(x, ways).items()}


def _by_way(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {way: _joined([piece[way] for piece in pieces]) for way in (pieces[0] if pieces else ())}


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat(pieces).cpu() if pieces else torch.empty(0, dtype=torch.int64)
