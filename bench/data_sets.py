"""The data sets that benchmarks train on: where they lie, unpacked where they come packed, and what they are called."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from robustfast.data import load
from robustfast.errors import UserError
from robustfast.training.config import TrainConfig
from robustfast.training.fit import data_folder

__all__ = ["images"]

# The published test_batch of CIFAR-10 (python version), by its MD5 digest.
PUBLISHED = "40351d587109b95175f43aff81a1287e"


def images(config: TrainConfig, given: Path | None, work: Path) -> tuple[Path | None, str]:
    """Folder of a run's data set and what its figures are to be called; None and why where there is none.

    Args:
        config: the run.
        given: as ``--data-dir``; for CIFAR-10 also the folder of its archives of JPEG images, with the `unpack.py` that
            turns them into the published layout.
        work: where that is unpacked to, once.
    """
    folder = data_folder(replace(config, data_dir=given))
    if config.dataset != "cifar10":
        named = config.dataset
    elif (folder / "unpack.py").exists():
        packed, folder, named = folder, work / "data", "CIFAR-10 (JPEG)"
        # What the program writes last.
        if not (folder / "cifar-10-batches-py" / "batches.meta").exists():
            command = [sys.executable, packed / "unpack.py", folder, "cifar10"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                return None, f"unpack.py of {packed.name} failed: {last}"
    else:
        batch = folder / "cifar-10-batches-py" / "test_batch"
        published = batch.exists() and hashlib.md5(batch.read_bytes()).hexdigest() == PUBLISHED
        named = "CIFAR-10" if published else "CIFAR-10, other bytes than the published"
    try:
        load(config.dataset, "test", folder)
    except UserError as error:
        # Results are kept: nothing in them names a machine's folders.
        return None, str(error).replace(str(folder), folder.name)
    return folder, named
