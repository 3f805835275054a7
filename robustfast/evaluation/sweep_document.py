"""The file of a sweep: its layout, put together from batches, written whole or not at all.

    {"protocol": "sweep", "dataset": ..., "images": 10000, "weights": SHA-256, ..., "seed", "eot",
     "monotone", "minimal", "natural": accuracy,
     "attacks": {NAME: {"attack": every setting, "kind", "norm", "minimal", "eps": [0, ...], "accuracy": [...], "auc",
                        "gradients": {"zero", "nonfinite", "attacked"}, "largest": [...],
                        "won_by": [{PART: images} for each eps]}},
     "worst_case": {NORM: {"attacks": [...], "eps": [...], "accuracy": [...], "auc"}},
     "probes": {...}, "randomness": {...},
     "warnings": [{"check", "text", numbers...}],
     "per_sample": {"index": [...], "label": [...], "correct": [1, ...],
                    "fooled": {NAME: [[0, ...] for each eps]}, "distance": {NAME: [0.31, null, ...]},
                    "won_by": {NAME: [[PART, null, ...] for each eps]}}}

`zero` of `gradients` counts images that met a gradient of zero and were not fooled, `nonfinite` all that met one.
Accuracies are fractions of all images, at eps 0 the natural one; AUC is `robustfast.evaluation.grids.area`.
`distance` is that to the nearest image an attack that looks for it found, 0 for images that were misclassified from the
start, null where it found none. `won_by` tells of an ensemble which part won an image first. `largest` is the longest
perturbation of an attack that is given its eps, at each. `few` and `many` of `probes` have one entry for each image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.attack_names import NamedAttack
from robustfast.evaluation.grids import area
from robustfast.evaluation.masking import Curve, Randomness, find_warnings
from robustfast.training.checkpoint import write_durably

__all__ = ["PROTOCOLS", "RANDOMNESS", "SweptAttack", "assemble", "other_sweep", "read", "write"]


PROTOCOLS = ("sweep", "autoattack")
"""Those whose file this is; each file has its protocol's name."""

RANDOMNESS = ("images", "labels", "logits", "largest")
"""What is kept of a `Randomness`, in this order."""


@dataclass(frozen=True)
class SweptAttack:
    """An attack, its radii, and every other setting of it."""

    named: NamedAttack
    eps: tuple[float, ...]
    config: Mapping[str, Any]


def assemble(
    header: Mapping[str, Any],
    attacks: Sequence[SweptAttack],
    batches: Sequence[Mapping[str, Any]],
    *,
    probe_eps: float,
) -> dict[str, Any]:
    """Put a document together from what was found in each batch, in the images' order.

    Args:
        header: what was evaluated; its "eot" and "minimal" are read.
        attacks: in the order in which the batches have them.
        batches: as `robustfast.evaluation.sweep` returns them.
        probe_eps: linf radius of the probes.
    """
    correct = _joined(batch["correct"] for batch in batches)
    records, curves, fooled_by, distances, won_by = {}, [], {}, {}, {}
    for number, attack in enumerate(attacks):
        pieces = [batch["attacks"][number] for batch in batches]
        name = attack.named.name
        if attack.named.minimal:
            fooled, distances[name] = _nearest(pieces, attack.eps, ~correct, header["minimal"])
            counts = [piece[0]["gradients"] for piece in pieces]
            largest = None
        else:
            fooled = [~correct] + [
                _joined(piece[k]["fooled"] for piece in pieces) for k in range(1, len(attack.eps))
            ]
            counts = [piece[k]["gradients"] for piece in pieces for k in piece]
            largest = [0.0] + [
                _largest([piece[k]["largest"] for piece in pieces]) for k in range(1, len(attack.eps))
            ]
        zero, nonfinite, attacked = (
            (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
        )
        fooled_by[name] = fooled
        accuracy = [_right(row) for row in fooled]
        records[name] = {
            "attack": dict(attack.config),
            "kind": attack.named.kind,
            "norm": attack.named.norm,
            "minimal": attack.named.minimal,
            "eps": list(attack.eps),
            "accuracy": accuracy,
            "auc": area(attack.eps, accuracy),
            "gradients": {"zero": zero, "nonfinite": nonfinite, "attacked": attacked},
            "largest": largest,
        }
        parts = [_won_by([piece[k] for piece in pieces if k in piece]) for k in range(1, len(attack.eps))]
        if any(part is not None for part in parts):
            won_by[name] = [[None] * len(correct), *parts]
            records[name]["won_by"] = [
                dict(sorted(Counter(part for part in row if part is not None).items()))
                for row in won_by[name]
            ]
        curves.append(
            Curve(
                name,
                attack.named.kind,
                attack.named.norm,
                attack.eps,
                torch.stack(fooled),
                zero,
                attacked,
                attack.named.minimal,
                records[name].get("won_by"),
            )
        )
    probes = _probes([batch["probe"] for batch in batches if batch["probe"] is not None], probe_eps)
    random = _randomness([batch["random"] for batch in batches if batch["random"] is not None])
    return {
        **header,
        "natural": _right(~correct),
        "attacks": records,
        "worst_case": _worst_cases(attacks, fooled_by),
        "probes": probes,
        "randomness": None if random is None else {name: getattr(random, name) for name in RANDOMNESS},
        "warnings": [
            *find_warnings(
                curves,
                probes,
                random,
                eot=header["eot"],
                probabilities=all(batch["probabilities"] for batch in batches),
            ),
            # Alike in every batch.
            *batches[0]["notes"],
        ],
        "per_sample": {
            "index": [value for batch in batches for value in batch["index"]],
            "label": [value for batch in batches for value in batch["label"]],
            "correct": correct.int().tolist(),
            "fooled": {name: [row.int().tolist() for row in rows] for name, rows in fooled_by.items()},
            "distance": distances,
            "won_by": won_by,
        },
    }


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON, each row of results by sample on one line, whole or not at all.

    Raises:
        UserError: the folder cannot be made or written.
    """
    text = json.dumps(
        {key: document[key] for key in document if key != "per_sample"}, indent=2, allow_nan=False
    )
    rows = []
    for key, value in document["per_sample"].items():
        if isinstance(value, Mapping):
            inner = ",\n".join(f"      {json.dumps(name)}: {_compact(row)}" for name, row in value.items())
            rows.append(
                f"    {json.dumps(key)}: {{\n{inner}\n    }}" if inner else f"    {json.dumps(key)}: {{}}"
            )
        else:
            rows.append(f"    {json.dumps(key)}: {_compact(value)}")
    text = f'{text[:-2]},\n  "per_sample": {{\n{",".join(chr(10) + row for row in rows)[1:]}\n  }}\n}}\n'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {path.parent}: {error.strerror}; give one that can be written with --out"
        ) from error
    write_durably(path, lambda file: file.write(text.encode()))


def read(path: Path) -> dict[str, Any]:
    """Read a document back.

    Raises:
        UserError: the file cannot be read, is not JSON, or is no sweep.
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); delete it and evaluate again") from None
    if not isinstance(document, dict) or not {"attacks", "worst_case", "warnings"} <= set(document):
        raise UserError(f"{path}: not a file of attacks over eps; delete it and evaluate again")
    return document


def other_sweep(path: Path, eps: Mapping[str, Sequence[float]], images: int) -> list[str]:
    """The attacks of the document at `path` where they, their radii or its images are not these; else none.

    Args:
        path: of a document that is about to be replaced; it may be missing or damaged, which is no news here.
        eps: the radii of each attack by name.
        images: how many are to be attacked.
    """
    try:
        former = read(path)
        radii = {name: list(record["eps"]) for name, record in former["attacks"].items()}
        same = radii == {name: list(values) for name, values in eps.items()} and former["images"] == images
    except (UserError, AttributeError, KeyError, TypeError):
        return []
    return [] if same else list(radii)


def _nearest(
    pieces: Sequence[Mapping[int, Any]], eps: Sequence[float], wrong: Tensor, minimal: str
) -> tuple[list[Tensor], list[float | None]]:
    """Which images an attack that looks for the nearest one fools at each eps, and how far it went."""
    found = [value for piece in pieces for value in piece[0]["distance"]]
    distance = torch.tensor(
        [float("inf") if value is None else value for value in found], dtype=torch.float64
    )
    fooled = [wrong]
    for k, radius in enumerate(eps[1:]):
        hit = distance <= radius
        if minimal == "clip":
            # Where it lies inside already, pulling it in has left it as it is.
            hit = hit | _joined(piece[0]["clipped"][k] for piece in pieces)
        fooled.append(hit | wrong)
    return fooled, found


def _worst_cases(
    attacks: Sequence[SweptAttack], fooled_by: Mapping[str, Sequence[Tensor]]
) -> dict[str, dict[str, Any]]:
    """By norm: what stays right under all of its attacks, at the radii that all of them were run at."""
    found = {}
    for norm in dict.fromkeys(attack.named.norm for attack in attacks):
        alike = [attack for attack in attacks if attack.named.norm == norm]
        shared = [value for value in alike[0].eps if all(value in attack.eps for attack in alike)]
        accuracy = []
        for value in shared:
            rows = [fooled_by[attack.named.name][attack.eps.index(value)] for attack in alike]
            accuracy.append(_right(torch.stack(rows).any(0)))
        found[norm] = {
            "attacks": [attack.named.name for attack in alike],
            "eps": shared,
            "accuracy": accuracy,
            "auc": area(shared, accuracy),
        }
    return found


def _won_by(found: Sequence[Mapping[str, Any]]) -> list[str | None] | None:
    """Which part of an ensemble won each image at one eps; None where the attack is no ensemble."""
    if not any("won_by" in piece for piece in found):
        return None
    # A batch of which nothing was left to attack names none.
    return [name for piece in found for name in piece.get("won_by", [None] * len(piece["fooled"]))]


def _probes(found: Sequence[Mapping[str, Any]], eps: float) -> dict[str, Any] | None:
    if not found:
        return None
    if errors := [record["error"] for record in found if "error" in record]:
        return {"eps": eps, "images": sum(record["images"] for record in found), "error": errors[0]}
    total: dict[str, Any] = {"eps": eps}
    for name in ("images", "unbounded", "rose", "zero", "nonfinite"):
        total[name] = sum(record[name] for record in found)
    for name in ("few", "many"):
        total[name] = [value for record in found for value in record[name]]
    return total


def _randomness(found: Sequence[Sequence[Any]]) -> Randomness | None:
    if not found:
        return None
    *counts, largest = zip(*found, strict=True)
    return Randomness(*map(sum, counts), max(largest))


def _joined(rows: Any) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.bool)


def _largest(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return max(numbers) if numbers else None


def _right(fooled: Tensor) -> float:
    return int((~fooled).sum()) / len(fooled)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
