"""Where a standard evaluation stands, in a file that it resumes from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["EvaluationState", "digest"]


@dataclass
class EvaluationState:
    """Which attacks were run, and which samples stand.

    The AutoAttack package writes the same facts, but a set as its Python text, which it cannot read back; files of one
    are not files of the other.

    Attributes:
        attacks_to_run: names, in order.
        path: of the file; None keeps all in memory.
        run_attacks: those done.
        robust_flags: bool [N], samples that no attack has won; None before the clean accuracy.
        clean_accuracy: a fraction.
        subject: what was evaluated and how: by name, what JSON can hold.
    """

    attacks_to_run: list[str]
    path: Path | None = None
    run_attacks: list[str] = field(default_factory=list)
    robust_flags: Tensor | None = None
    clean_accuracy: float = float("nan")
    subject: dict[str, Any] = field(default_factory=dict)

    def to_disk(self) -> None:
        """Replace the file, whole or not at all."""
        if self.path is None:
            return
        flags = self.robust_flags
        facts = {
            "attacks_to_run": self.attacks_to_run,
            "run_attacks": self.run_attacks,
            "robust_flags": None if flags is None else flags.tolist(),
            "clean_accuracy": self.clean_accuracy,
            "subject": self.subject,
        }
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(facts))
        os.replace(partial, self.path)

    @classmethod
    def from_disk(cls, path: str | Path) -> EvaluationState:
        """The state in a file.

        Raises:
            ValueError: the file is none of `to_disk`.
        """
        path = Path(path)
        try:
            facts = json.loads(path.read_text())
            flags = facts["robust_flags"]
            return cls(
                facts["attacks_to_run"],
                path,
                facts["run_attacks"],
                None if flags is None else torch.tensor(flags, dtype=torch.bool),
                facts["clean_accuracy"],
                dict(facts["subject"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no state of an evaluation ({error!r}); delete it to start anew"
            ) from error

    def check(self, subject: dict[str, Any]) -> None:
        """Refuse to go on with what is another evaluation.

        Raises:
            ValueError: says what differs.
        """
        names = [
            name
            for name in {**self.subject, **subject}
            if not _same(self.subject.get(name), subject.get(name))
        ]
        if names:
            told = [
                name
                if name in _DIGESTED
                else f"{name} ({self.subject.get(name)!r}, now {subject.get(name)!r})"
                for name in names
            ]
            raise ValueError(
                f"{self.path} is the state of an evaluation that differs in {', '.join(told)}; "
                f"delete it to start anew"
            )

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that stand so far."""
        if self.robust_flags is None:
            raise ValueError("robust_flags is not set yet. Start the attack first.")
        return self.robust_flags.double().mean().item()


_DIGESTED = ("images", "labels", "weights", "logits")


def digest(*tensors: Tensor) -> str:
    """SHA-256 of dtypes, shapes and contents, whatever the device and the strides."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        # Logits: another device or batch size rounds otherwise.
        one, other = torch.tensor(one), torch.tensor(other)
        return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)
    return one == other
