"""Accuracy against eps under many attacks: curves, the area under them, per-image results, signs of masked gradients.

The layout of the file is in `robustfast.evaluation.sweep_document`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

import robustfast
from robustfast.attacks import Attack
from robustfast.attacks.autoattack_flags import looks_like_probabilities
from robustfast.attacks.compaction import remaining
from robustfast.attacks.modes import eval_mode, module_of
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.evaluation.attack_names import NORMS, NamedAttack
from robustfast.evaluation.grids import STANDARD_EPS
from robustfast.evaluation.masking import PROBE_IMAGES, probe, randomness
from robustfast.evaluation.partial_results import PartialResults, data_digest, fingerprint
from robustfast.evaluation.progress import AttackBar, attack_bar
from robustfast.evaluation.subject import Subject, weights_digest
from robustfast.evaluation.sweep_document import RANDOMNESS, SweptAttack, assemble, write
from robustfast.evaluation.sweep_tables import grid_line, heading, sweep_table, warning_lines
from robustfast.ops.backend import active_backend
from robustfast.seeds import derive
from robustfast.training.threads import cpu_threads
from robustfast.visualization.accuracy_curves import accuracy_curves

__all__ = ["SweepAttack", "SweepSettings", "sweep"]


@dataclass(frozen=True)
class SweepAttack:
    """An attack with the radii it is run at.

    Attributes:
        named: the attack.
        eps: rising, the first one 0: there the images are left as they are.
        settings: on top of the name's own.
        described: plain values that say what a setting is which is none itself, such as another model.
    """

    named: NamedAttack
    eps: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepSettings:
    """What holds for every attack of a sweep.

    Attributes:
        seed: of every draw.
        eot: passes a gradient is averaged over, for randomised models. An attack that has no such setting is given the
            mean of as many passes' logits as its model.
        monotone: an image that is fooled at one eps counts as fooled at every larger one and is not attacked again:
            cheaper, and curves that never rise. Without it each eps is a new attack.
        minimal: how an attack that looks for the nearest image is judged at an eps: "distance": by how far what it
            found lies; "clip": as Foolbox does, what it found is pulled into the ball and classified again.
        probes: whether to look for masked gradients with attacks of their own.
    """

    seed: int = 0
    eot: int = 1
    monotone: bool = False
    minimal: Literal["distance", "clip"] = "distance"
    probes: bool = True

    def __post_init__(self) -> None:
        if self.eot < 1:
            raise UserError(f"--eot {self.eot}: expected at least 1 pass")


def sweep(
    subject: Subject,
    attacks: Sequence[SweepAttack],
    settings: SweepSettings | None = None,
    *,
    protocol: str = "sweep",
    out: Path | None = None,
    console: Console | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Attack at every radius, print the table, and keep numbers and figures in a folder.

    Images that are misclassified from the start are not attacked: they count as fooled at every radius. What is
    finished is kept batch by batch beside the result, so that the same call after an interruption goes on where it was;
    its result is the same bits. Several processes share out whole batches, as `robustfast.evaluation.aat` does.

    Args:
        subject: the model and its images.
        attacks: what to attack with, each name once.
        settings: of all attacks.
        protocol: what the file says it is, and is called.
        out: folder for the numbers and figures; None is the subject's.
        console: where the table goes, and the progress bar if it is a terminal; None is stdout.
        world: the processes, all of which call this; one of them prints and writes.

    Returns:
        The document, in every process.

    Raises:
        UserError: no attack, a setting that an attack refuses, a model without gradients, or a folder that cannot be
            written.
    """
    settings = settings or SweepSettings()
    world = world or World()
    console = (console or Console(highlight=False)) if world.writes else Console(quiet=True)
    folder = out or subject.folder
    if folder is None:
        raise UserError(f"{subject.label}: say where its numbers go with --out FOLDER")
    if not attacks:
        raise UserError("no attack: name some with --attacks, such as apgd-ce,pgd20")
    weights = weights_digest(subject.model)
    if len(set(world.gather(weights))) > 1:
        raise UserError(
            f"{subject.label}: the processes hold different weights; let the function load them or fix its seed"
        )
    work = _Work(subject, attacks, settings, weights, PartialResults(folder / f"{protocol}.partial"))
    source = subject.source
    part = world.part(len(source))
    shown = min(part.stop * source.batch_size, subject.images) - min(
        part.start * source.batch_size, subject.images
    )
    mine = []
    with cpu_threads(subject.threads), attack_bar(shown * len(work.cells), console) as bar:
        for number, (x, y, index, *_) in enumerate(islice(source.batches(0, start=part.start), len(part))):
            mine.append(work.batch(part.start + number, x, y, index, bar))
    source.close()
    # A process with a batch more than another is behind by that batch, which may take an hour on a CPU.
    world.wait()
    batches = [record for records in world.gather(mine) for record in records]
    header = {
        "protocol": protocol,
        "robustfast": robustfast.__version__,
        **subject.header,
        "weights": weights,
        "dataset": subject.dataset,
        "split": "test",
        "images": subject.images,
        "images_in_split": subject.images_in_split,
        "batch_size": source.batch_size,
        "precision": "fp32",
        "device": source.device.type,
        **{name: getattr(settings, name) for name in ("seed", "eot", "monotone", "minimal")},
    }
    document = assemble(header, work.swept(), batches, probe_eps=work.probe_eps)
    if world.writes:
        _finish(subject, document, folder, protocol, console)
    # Only what is behind a file that was written may go.
    world.barrier()
    work.partial.clear()
    return document


def _finish(
    subject: Subject, document: Mapping[str, Any], folder: Path, protocol: str, console: Console
) -> None:
    file = folder / f"{protocol}.json"
    write(file, document)
    for norm in document["worst_case"]:
        console.print(heading(document, norm, subject.label), markup=False, soft_wrap=True)
        console.print(sweep_table(document, norm))
        console.print(grid_line(document, norm), markup=False, soft_wrap=True)
    for line in warning_lines(document):
        console.print(line, markup=False, soft_wrap=True)
    figures = [
        accuracy_curves(document, norm, folder / f"{protocol}-{norm}.png", title=subject.label)
        for norm, worst in document["worst_case"].items()
        if len(worst["eps"]) > 2
    ]
    console.print(f"written: {', '.join(map(str, (file, *figures)))}", markup=False, soft_wrap=True)


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


class _Work:
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
        self.probe_eps = STANDARD_EPS.get(subject.dataset, {}).get("linf", 8 / 255)
        self._built: dict[tuple[int, int | None], Attack] = {}
        source = subject.source
        self._common = {
            "version": robustfast.__version__,
            "weights": weights,
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
        """Results of one batch as plain values: "index", "label", "natural", "probe", and "cells" by attack."""
        positions = self.subject.positions(index)
        data = data_digest(x, y, positions)
        first = int(index[0])
        # The images with the lowest numbers are probed: those in front of the first batches.
        probed = max(0, min(PROBE_IMAGES - first, len(x)))
        natural = self._piece(
            fingerprint(piece="natural", probed=probed, **self._common),
            number,
            data,
            lambda: self._natural(x, y, probed),
        )
        correct = torch.tensor(natural["correct"], dtype=torch.bool, device=x.device)
        result = {
            "index": positions.tolist(),
            "label": y.tolist(),
            "correct": natural["correct"],
            "random": natural["random"],
            "probabilities": natural["probabilities"],
            "probe": None,
            "attacks": [{} for _ in self.attacks],
        }
        if probed and self.settings.probes:
            rows = correct.clone()
            rows[probed:] = False
            result["probe"] = self._piece(
                fingerprint(piece="probe", probed=probed, eps=self.probe_eps, **self._common),
                number,
                data,
                lambda: self._probe(x[rows], y[rows], positions[rows]),
            )
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

    def _piece(
        self, name: str, batch: int, data: str, compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        found = self.partial.find(name, batch, data)
        if found is None:
            with _own_draws(self.subject.source.device, derive(self.settings.seed, name, batch)):
                found = compute()
            self.partial.keep(name, batch, data, found)
        return found

    def _natural(self, x: Tensor, y: Tensor, probed: int) -> dict[str, Any]:
        logits = self._logits(x)
        found = None
        if probed:
            compared = randomness(logits[:probed], self._logits(x)[:probed])
            found = [getattr(compared, name) for name in RANDOMNESS]
        return {
            "correct": (logits.argmax(1) == y).int().tolist(),
            "random": found,
            "probabilities": looks_like_probabilities(logits),
        }

    def _probe(self, x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Any]:
        if not len(x):
            return {"images": 0, "unbounded": 0, "few": [], "many": [], "zero": 0, "nonfinite": 0}
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
            with _own_draws(x.device, derive(self.settings.seed, attack.named.name, cell.eps or 0, batch)):
                try:
                    x_adv = built(given["x"], given["y"], given["index"])
                except ValueError as error:
                    raise UserError(f"attack {attack.named.name}: {error}") from error
                won = (self._logits(x_adv).argmax(1) != given["y"])[: left.count]
                if cell.eps is None and self.settings.minimal == "clip":
                    for eps in attack.eps[1:]:
                        pulled = _pulled(x_adv, given["x"], attack.named.norm, eps)
                        hit = lost.clone()
                        hit[rows] = (self._logits(pulled).argmax(1) != given["y"])[: left.count]
                        clipped.append(hit.int().tolist())
            record["gradients"] = _gradients(built, left.count)
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
        with torch.no_grad(), eval_mode(self.model):
            logits = self.model(x)
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

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
            # What AutoAttack would warn of batch by batch is said once, of all images, by `masking`.
            own["flags"] = False
        if self.settings.eot > 1 and attack.named.takes("eot"):
            own["eot"] = self.settings.eot
        return own

    def _averaged(self) -> Callable[[Tensor], Tensor]:
        """The model, or for a randomised one the mean of several passes."""
        return self.model if self.settings.eot == 1 else _Averaged(self.model, self.settings.eot)

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


class _Averaged:
    """The mean logits of several passes of a random model."""

    def __init__(self, model: Callable[[Tensor], Tensor], passes: int) -> None:
        # Under this name, so that the module behind it is found and put into eval mode.
        self.model = module_of(model)
        self._called, self._passes = model, passes

    def __call__(self, x: Tensor) -> Tensor:
        total = self._called(x)
        for _ in range(self._passes - 1):
            total = total + self._called(x)
        return total / self._passes


@contextmanager
def _own_draws(device: torch.device, seed: int) -> Iterator[None]:
    """A randomised model's draws: the same for a batch whatever came before, and torch's generators left as found."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _gradients(attack: Attack, count: int) -> list[int]:
    """How many of the first `count` images had a zero and a non-finite gradient, and `count`."""
    log = attack.gradients
    if log is not None and len(log.zero) >= count:
        # Where sizes are static, what follows are copies of the last image.
        return [int(log.zero[:count].sum()), int(log.nonfinite[:count].sum()), count]
    report = attack.report
    return [report.zero_gradient, report.nonfinite_gradient, count]


def _distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """||x_adv - x|| [B] in float64; zeros where the attack is bounded by no norm."""
    if norm not in NORMS:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), order, dim=1)


def _pulled(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
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
