"""Where a standard evaluation stands, in a file that it resumes from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["EvaluationState"]


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
    """

    attacks_to_run: list[str]
    path: Path | None = None
    run_attacks: list[str] = field(default_factory=list)
    robust_flags: Tensor | None = None
    clean_accuracy: float = float("nan")

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
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} holds no state of an evaluation ({error!r}); delete it to start anew"
            ) from error

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that stand so far."""
        if self.robust_flags is None:
            raise ValueError("robust_flags is not set yet. Start the attack first.")
        return self.robust_flags.double().mean().item()
