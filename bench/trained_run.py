"""Runs that a benchmark looks at: trained once, and found again by the next call."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from robustfast.training.fit import fit, resume
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import Run, load_run

__all__ = ["trained"]


def trained(
    preset: str,
    seed: int,
    folder: Path,
    *,
    start: tuple[str, ...] = (),
    data_dir: Path | None = None,
    epochs: int | None = None,
) -> tuple[Run, float | None]:
    """Train a preset on the CPU into `folder`, or go on with the run there; one that is finished is not trained again.

    Args:
        preset: its name.
        seed: of the run.
        folder: of the run.
        start: runs that it starts from, as ``--start-from``.
        data_dir: folder of the data sets.
        epochs: in place of the preset's.

    Returns:
        The run, and the CPU seconds that its training took without a stop; None where it was resumed.
    """
    note = folder.with_suffix(".cpu_seconds")
    config = replace(
        PRESETS[preset],
        seed=seed,
        out=folder,
        start_from=start,
        data_dir=data_dir,
        device="cpu",
        tensorboard=False,
        epochs=epochs or PRESETS[preset].epochs,
    )
    if not (folder / "checkpoints" / "last.pt").exists() or load_run(folder).epoch < config.epochs:
        began = time.process_time()
        if (folder / "config.json").exists():
            resume(folder)
        else:
            fit(config)
            note.write_text(f"{time.process_time() - began:.1f}")
    return load_run(folder, device="cpu"), float(note.read_text()) if note.exists() else None
