"""One batch of a sweep: every attack at every radius, kept piece by piece on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import robustfast
from robustfast.attacks import Attack, AutoAttack
from robustfast.attacks.autoattack_flags import looks_like_probabilities
from robustfast.attacks.autoattack_versions import for_classes
from robustfast.attacks.compaction import remaining
from robustfast.attacks.gradient import InputGradient
from robustfast.attacks.modes import eval_mode
from robustfast.errors import UserError
from robustfast.evaluation.attack_names import NORMS
from robustfast.evaluation.grids import STANDARD_EPS
from robustfast.evaluation.masking import PROBE_IMAGES, probe, randomness
from robustfast.evaluation.model_digests import code_digest
from robustfast.evaluation.partial_results import PartialResults, data_digest, fingerprint
from robustfast.evaluation.progress import AttackBar
from robustfast.evaluation.repeated_passes import MeanOfPasses, own_draws
from robustfast.evaluation.subject import Subject
from robustfast.evaluation.sweep_document import RANDOMNESS, SweptAttack
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings
from robustfast.ops.backend import active_backend
from robustfast.seeds import derive

__all__ = ["BatchWork", "pulled"]


@dataclass(frozen=True)
class _Cell:
    """One attack at one radius, or a minimal one at all of them.

    Attributes:
        attack: position among the attacks.
        eps: position among its radii, None for a minimal attack.
        name: the fingerprint its pieces are kept under.
    """

    attack: int
    eps: int | None
    name: str


class BatchWork:
    """All that is done with one batch."""

    def __init__(
        self,
        subject: Subject,
        attacks: Sequence[SweepAttack],
        settings: SweepSettings,
        weights: str,
        partial: PartialResults,
    ) -> None:
        self.subject, self.attacks, self.settings, self.partial = subject, attacks, settings, partial
        self.model = subject.model
        # For its guarded forward pass: a model that writes on its images would spoil them for all that follows.
        self._gradient = InputGradient(self.model, self.model, "ce")
        self.probe_eps = STANDARD_EPS.get(subject.dataset, {}).get("linf", 8 / 255)
        self._built: dict[tuple[int, int | None], Attack] = {}
        source = subject.source
        self._common = {
            "version": robustfast.__version__,
            "subject": dict(subject.header),
            "weights": weights,
            "code": code_digest(subject.model),
            "dataset": subject.dataset,
            "images": [subject.images, subject.images_in_split, source.batch_size],
            "device": source.device.type,
            "backend": active_backend(),
            "torch": torch.__version__,
            "seed": settings.seed,
            "eot": settings.eot,
        }
        # Built now, so that a setting it refuses is said before the first image is attacked.
        self._configs = [self._config(number) for number in range(len(attacks))]
        self.cells: list[_Cell] = []
        for number, attack in enumerate(attacks):
            for k in [None] if attack.named.minimal else range(1, len(attack.eps)):
                self._attack(number, k)
                self.cells.append(_Cell(number, k, self._fingerprint(number, k)))

    def swept(self) -> list[SweptAttack]:
        return [
            SweptAttack(attack.named, attack.eps, config)
            for attack, config in zip(self.attacks, self._configs, strict=True)
        ]

    def batch(self, number: int, x: Tensor, y: Tensor, index: Tensor, bar: AttackBar) -> dict[str, Any]:
        """Results of one batch as plain values.

        "index", "label", "correct", "random", "probabilities", "notes" on what an attack made of so many classes,
        "probe", and "attacks": for each its cells.
        """
        positions = self.subject.positions(index)
        first = int(index[0])
        # The images with the lowest numbers are probed: those in front of the first batches.
        probed = max(0, min(PROBE_IMAGES - first, len(x)))
        with own_draws(x.device, derive(self.settings.seed, "natural", number)):
            logits = self._logits(x)
            again = self._logits(x) if probed else None
        # Never kept, always computed: what a model says of the images tells it from another one, whatever that is
        # made of and however it was called.
        data = data_digest(x, y, positions, logits)
        correct = logits.argmax(1) == y
        result: dict[str, Any] = {
            "index": positions.tolist(),
            "label": y.tolist(),
            "correct": correct.int().tolist(),
            "random": None,
            "probabilities": looks_like_probabilities(logits),
            "notes": self._notes(logits.shape[1]),
            "probe": None,
            "attacks": [{} for _ in self.attacks],
        }
        if again is not None:
            compared = randomness(logits[:probed], again[:probed])
            result["random"] = [getattr(compared, name) for name in RANDOMNESS]
        if probed and self.settings.probes:
            name = fingerprint(piece="probe", probed=probed, eps=self.probe_eps, **self._common)
            result["probe"] = self.partial.find(name, number, data)
            if result["probe"] is None:
                rows = correct.clone()
                rows[probed:] = False
                with own_draws(x.device, derive(self.settings.seed, "probe", number)):
                    result["probe"] = self._probe(x[rows], y[rows], positions[rows])
                self.partial.keep(name, number, data, result["probe"])
        for cell in self.cells:
            attack = self.attacks[cell.attack]
            bar.say(attack.named.name)
            lost = ~correct
            if self.settings.monotone and cell.eps is not None and cell.eps > 1:
                lost = lost | _bits(result["attacks"][cell.attack][cell.eps - 1]["fooled"], x.device)
            kept = self.partial.find(cell.name, number, data)
            if kept is None:
                kept = self._attacked(cell, number, x, y, positions, lost)
                self.partial.keep(cell.name, number, data, kept)
                bar.advance(len(x))
            else:
                bar.skip(len(x))
            result["attacks"][cell.attack][cell.eps or 0] = kept
        return result

    def _notes(self, classes: int) -> list[dict[str, Any]]:
        """What AutoAttack had to change for so many classes, as it would say itself."""
        found = []
        for number, attack in enumerate(self.attacks):
            built = self._attack(number, None if attack.named.minimal else len(attack.eps) - 1)
            if not isinstance(built, AutoAttack):
                continue
            for part, settings in built.settings.items():
                if why := for_classes(part, settings, classes)[1]:
                    name = attack.named.name
                    text = f"{name}: {why}"
                    found.append(
                        {
                            "check": "few-classes",
                            "text": text,
                            "attack": name,
                            "part": part,
                            "classes": classes,
                        }
                    )
        return found

    def _probe(self, x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Any]:
        if not len(x):
            return {"images": 0, "unbounded": 0, "few": [], "many": [], "rose": 0, "zero": 0, "nonfinite": 0}
        seed = derive(self.settings.seed, "probe")
        try:
            return probe(self._averaged(), x, y, positions, eps=self.probe_eps, seed=seed)
        except ValueError as error:
            return {"images": len(x), "error": str(error)}

    def _attacked(
        self, cell: _Cell, batch: int, x: Tensor, y: Tensor, positions: Tensor, lost: Tensor
    ) -> dict[str, Any]:
        """What one attack did to a batch; `lost` bool [B] is not attacked."""
        attack = self.attacks[cell.attack]
        built = self._attack(cell.attack, cell.eps)
        left = remaining(lost, static=x.is_cuda)
        record: dict[str, Any] = {"gradients": [0, 0, left.count]}
        fooled, distance = lost.clone(), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        clipped = []
        if left.count:
            rows = left.rows[: left.count]
            given = left.take({"x": x, "y": y, "index": positions})
            with own_draws(x.device, derive(self.settings.seed, attack.named.name, cell.eps or 0, batch)):
                try:
                    x_adv = built(given["x"], given["y"], given["index"])
                except ValueError as error:
                    raise UserError(f"attack {attack.named.name}: {error}") from error
                won = (self._logits(x_adv).argmax(1) != given["y"])[: left.count]
                if cell.eps is None and self.settings.minimal == "clip":
                    for eps in attack.eps[1:]:
                        nearer = pulled(x_adv, given["x"], attack.named.norm, eps)
                        hit = lost.clone()
                        hit[rows] = (self._logits(nearer).argmax(1) != given["y"])[: left.count]
                        clipped.append(hit.int().tolist())
            record["gradients"] = _gradients(built, won)
            if (by := getattr(built, "fooled_by", None)) is not None:
                record["won_by"] = _spread(by[: left.count], rows.tolist(), len(x))
            fooled[rows] = won
            distance[rows] = _distance(x_adv, given["x"], attack.named.norm)[: left.count]
        if cell.eps is not None:
            largest = float(distance.max()) if attack.named.norm in NORMS else None
            return {**record, "fooled": fooled.int().tolist(), "largest": largest}
        far = [
            0.0 if wrong else (value if hit else None)
            for wrong, hit, value in zip(lost.tolist(), fooled.tolist(), distance.tolist(), strict=True)
        ]
        return {
            **record,
            "distance": far,
            "clipped": clipped or ([lost.int().tolist()] * (len(attack.eps) - 1)),
        }

    def _logits(self, x: Tensor) -> Tensor:
        try:
            with eval_mode(self.model):
                return self._gradient.logits(x)
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.subject.label}: {error}") from error

    def _attack(self, number: int, k: int | None) -> Attack:
        if (number, k) not in self._built:
            attack = self.attacks[number]
            model = self.model if attack.named.takes("eot") else self._averaged()
            eps = None if k is None else attack.eps[k]
            self._built[number, k] = attack.named.build(model, eps, **self._settings(attack))
        return self._built[number, k]

    def _config(self, number: int) -> dict[str, Any]:
        """Every setting of an attack but its radius."""
        attack = self.attacks[number]
        built = self._attack(number, None if attack.named.minimal else len(attack.eps) - 1)
        config = {**attack.named.as_json(built), **attack.described}
        del config["eps"]
        return config

    def _settings(self, attack: SweepAttack) -> dict[str, Any]:
        own: dict[str, Any] = {"seed": self.settings.seed, **attack.settings}
        if attack.named.takes("flags"):
            # What AutoAttack would warn of batch by batch is said once, of all images: by `masking`, and `_notes`.
            own["flags"] = False
        if self.settings.eot > 1 and attack.named.takes("eot"):
            own["eot"] = self.settings.eot
        return own

    def _averaged(self) -> Callable[[Tensor], Tensor]:
        """The model, or for a randomised one the mean of several passes."""
        return self.model if self.settings.eot == 1 else MeanOfPasses(self.model, self.settings.eot)

    def _fingerprint(self, number: int, k: int | None) -> str:
        attack = self.attacks[number]
        # Under `monotone` a radius is attacked where the smaller ones failed, and "clip" looks at all.
        together = (
            attack.eps if k is None else attack.eps[: k + 1] if self.settings.monotone else attack.eps[k]
        )
        return fingerprint(
            attack=self._configs[number],
            eps=together,
            monotone=self.settings.monotone,
            minimal=self.settings.minimal if k is None else None,
            **self._common,
        )


def _gradients(attack: Attack, won: Tensor) -> list[int]:
    """How many images it met with a zero gradient and did not fool, how many with a non-finite one, and of how many.

    A gradient may vanish because an image is fooled: DLR is constant from where the label is in third place. `won` bool
    [n] is of the attack's first n images; where sizes are static, what follows are copies of the last one.
    """
    log, count = attack.gradients, len(won)
    if log is None:
        raise RuntimeError(f"{attack.name} has not been called")
    return [int((log.zero[:count] & ~won).sum()), int(log.nonfinite[:count].sum()), count]


def _distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """||x_adv - x|| [B] in float64; zeros where the attack is bounded by no norm."""
    if norm not in NORMS:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), order, dim=1)


def pulled(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """What an attack found, brought into the ball: under linf entry by entry, else shortened."""
    delta = x_adv - x
    if norm == "linf":
        return (x + delta.clamp(-eps, eps)).clamp(0, 1)
    length = _distance(x_adv, x, norm).clamp(min=1e-30)
    factor = (eps / length).clamp(max=1).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return (x + delta * factor).clamp(0, 1)


def _spread(won_by: Sequence[str | None], rows: Sequence[int], images: int) -> list[str | None]:
    """The part of an ensemble that won each image of a batch, from those of the images it was given."""
    found: list[str | None] = [None] * images
    for row, name in zip(rows, won_by, strict=True):
        found[row] = name
    return found


def _bits(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.bool, device=device)
