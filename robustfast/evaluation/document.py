"""The evaluation file of the `aat` protocol: its layout, written whole or not at all.

One attack stands at the top under plain keys, further ones with the same keys below `other_attacks`:

    {"protocol": "aat", "dataset": ..., "split": "test", "images": 10000, "checkpoint": {...}, "ways": "srn", ...,
     "natural": {"s", "r", "n"},
     "attack": {"name", "norm", "eps", "step_size", "steps", ...},
     "adversarial": {"r", "n", "dia"},
     "standard_way": {"s", "r", "n", "dia"},
     "detection": {"tpr", "fpr", "balanced_accuracy", "raw", "calibrated"},
     "detection_adversarial": {the same},
     "other_attacks": {NAME: {"attack", "images", "adversarial", "standard_way", ...}}}

Accuracies are fractions; null stands for a way that was not trained or a rate without images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustfast.errors import UserError
from robustfast.training.checkpoint import write_durably

__all__ = ["RECORD_KEYS", "assemble", "read", "records", "write"]

RECORD_KEYS = (
    "attack",
    "images",
    "adversarial",
    "standard_way",
    "detection",
    "detection_adversarial",
    "gradients",
)
"""What one attack yields: its configuration, the images attacked, the numbers, and under `gradients` by way how
many images met a gradient that was zero everywhere or not finite (a sign of masking)."""


def assemble(header: Mapping[str, Any], attacked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Lay out a document: `header`, then the first attack's record, then the others.

    Args:
        header: what was evaluated, as plain values, with the accuracies `natural`.
        attacked: attack name to its record (RECORD_KEYS); the first one goes to the top.

    Raises:
        ValueError: no attack was given.
    """
    if not attacked:
        raise ValueError("an evaluation needs at least one attack")
    first, *others = attacked
    return {**header, **attacked[first], "other_attacks": {name: dict(attacked[name]) for name in others}}


def records(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Attack name to its record, the first one first: the inverse of `assemble`."""
    first = {key: document[key] for key in RECORD_KEYS if key in document}
    return {document["attack"]["name"]: first, **document["other_attacks"]}


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as JSON so that a crash leaves the old file or the new one, never half of one.

    Raises:
        UserError: the folder cannot be written.
        ValueError: a number is nan or infinite, which JSON has no word for.
    """
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {path.parent}: {error.strerror}; give a run that can be written"
        ) from error
    write_durably(path, lambda file: file.write(text.encode()))


def read(path: Path) -> dict[str, Any]:
    """Read a document back.

    Raises:
        UserError: the file is missing, is not JSON or is not an evaluation of this protocol.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: run python -m robustfast.evaluate {path.parent.parent}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); delete it and evaluate the run again") from None
    if not isinstance(document, dict) or document.get("protocol") != "aat" or "natural" not in document:
        raise UserError(
            f"{path}: not an evaluation of the aat protocol; delete it and evaluate the run again"
        )
    return document
