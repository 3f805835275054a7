"""A run's folder: what lies where, how it is made, and how a trained model is read back from it."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import robustfast
from robustfast.data import Dataset, ImageFiles
from robustfast.data.fitting import fitting
from robustfast.errors import UserError
from robustfast.models import Network, network
from robustfast.models.stored_state import fits_the_model
from robustfast.training import checkpoint, run_lock
from robustfast.training.config import TrainConfig, from_json, to_json

__all__ = ["Run", "RunFolder", "build_model", "load_run", "resolve_device"]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
        config: the run's configuration.
        channels, num_classes: of the images it was started on; they fix the shape of the model.
        version, commit: of the robustfast that started it.
        size: (height, width) of those images; None: the version that started it did not store it.
        threads: CPU threads it was started with; None: it is being started.
    """

    path: Path
    config: TrainConfig
    channels: int
    num_classes: int
    version: str = robustfast.__version__
    commit: str | None = None
    size: tuple[int, int] | None = None
    threads: int | None = None

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of last.pt, previous.pt (the one before), best.pt and, after a failure, nonfinite.pt."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @classmethod
    def reserve(cls, config: TrainConfig, dataset: Dataset) -> RunFolder:
        """Make the empty folder `config.out`, or the next free ``runs/PRESET-seedN``, for a new run.

        Raises:
            UserError: the folder holds something already, or cannot be made or written.
        """
        path = config.out or _next_free(Path("runs") / f"{config.preset}-seed{config.seed}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            found = _entries(path)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise UserError(
                f"--out {path}: cannot make or write the folder ({error.strerror}); give one that can be written"
            ) from error
        if found:
            hint = f"continue its run with --resume {path}" if "config.json" in found else "it holds no run"
            raise UserError(f"--out {path}: the folder is not empty; {hint}, or give another folder")
        size = dataset.height, dataset.width
        return cls(path, config, dataset.channels, dataset.num_classes, commit=_commit(), size=size)

    def store(self) -> None:
        """Write config.json, which makes the folder a run that can be resumed.

        Raises:
            UserError: another process was faster, the disk is full, or the folder cannot be written.
        """
        file = self.path / "config.json"
        if file.exists():
            raise UserError(
                f"another process has started a run in {self.path}: give another folder with --out, or continue that "
                f"run with --resume {self.path}"
            )
        record = {
            "robustfast": self.version,
            "commit": self.commit,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "hardware": _hardware(),
            "channels": self.channels,
            "num_classes": self.num_classes,
            "size": self.size,
            "config": to_json(self.config),
        }
        text = json.dumps(record, indent=2) + "\n"
        checkpoint.write_durably(file, lambda opened: opened.write(text.encode()))

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read the configuration of an existing run.

        Raises:
            UserError: the folder is none of a run, or its config.json is damaged or of another version.
        """
        file = path / "config.json"
        try:
            record = json.loads(file.read_text())
            version, commit = record.get("robustfast", "unknown"), record.get("commit")
            config = from_json(record["config"])
            size = tuple(record["size"]) if record.get("size") else None
            threads = record.get("hardware", {}).get("threads")
            return cls(
                path, config, record["channels"], record["num_classes"], version, commit, size, threads
            )
        except FileNotFoundError:
            raise UserError(
                f"{path} is no run folder: it has no config.json; python -m robustfast.train starts a run"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({error}); put it back from a copy or start a new run"
            ) from error
        except UserError as error:
            raise UserError(
                f"{file} was written by robustfast {version}, this is {robustfast.__version__}: {error}; "
                f"{_mend(version, commit)}"
            ) from error

    def fitting(self, images: Dataset | ImageFiles) -> Dataset | ImageFiles:
        """Test images as the run's model takes them; see `robustfast.data.fitting`.

        Raises:
            UserError: they have other channels, or another size.
        """
        return fitting(images, self.channels, self.size)

    def refuse_format(
        self, found: Any, file: Path, *, readable: Sequence[int] = (checkpoint.FORMAT,)
    ) -> None:
        """Refuse a checkpoint whose layout is that of another version.

        Args:
            found: the layout's version in `file`.
            file: the checkpoint.
            readable: versions that serve the purpose.

        Raises:
            UserError: `found` is none of them.
        """
        if isinstance(found, int) and found > checkpoint.FORMAT:
            # A later version may have gone on with a run of an earlier one, which config.json names.
            raise UserError(
                f"{file} has checkpoint format {found}, of a later robustfast than this, {robustfast.__version__}: "
                f"update it, or start a new run"
            )
        if found not in readable:
            raise UserError(
                f"{file} has checkpoint format {found}, of robustfast {self.version}; this is "
                f"{robustfast.__version__}, which reads {' and '.join(map(str, readable))} here: "
                f"{_mend(self.version, self.commit)}"
            )


@dataclass(frozen=True)
class Run:
    """A trained model with what it was trained as.

    Attributes:
        path: the run folder.
        config: the run's configuration.
        model: the network in eval mode, weights of `checkpoint`.
        epoch: finished epochs behind these weights.
        checkpoint: the file they come from.
    """

    path: Path
    config: TrainConfig
    model: Network
    epoch: int
    checkpoint: Path


def load_run(
    path: Path, *, which: Literal["last", "best"] = "last", device: torch.device | str = "auto"
) -> Run:
    """Read a run's model back.

    Args:
        path: run folder.
        which: "last" is what the papers report. "best" had the highest held-out robust accuracy: what early stopping
            selects. Without ``config.hold_out`` those images come from the test split, and its numbers on that split
            are a little too good.
        device: where the model goes; "auto" takes a GPU where there is one.

    Raises:
        UserError: no run there, no checkpoint yet, a damaged one, or one of another model.
    """
    folder = RunFolder.open(Path(path))
    target = resolve_device(device) if isinstance(device, str) else device
    if which == "best":
        file = folder.checkpoints / "best.pt"
        if not file.exists():
            raise UserError(f"{path} has no best.pt: no held-out check was made yet; use last")
        state = checkpoint.load(file, target)
    else:
        found = checkpoint.load_newest(folder.checkpoints, target)
        if found is None:
            raise UserError(f"{path} has no checkpoint yet; train on with --resume {path}")
        state, file = found
    model = build_model(folder).to(target)
    with fits_the_model(file, f"put back the one that {path} was trained to, or start a new run"):
        # Format 1 differs in what a resumed run needs, and not in the weights.
        folder.refuse_format(state["format"], file, readable=(1, checkpoint.FORMAT))
        # Averaged weights are what a run with an average is trained for.
        model.load_state_dict(state["model" if folder.config.average == "none" else "average"])
        epoch = state["epoch"]
    if folder.config.channels_last:
        model.to(memory_format=torch.channels_last)
    return Run(Path(path), folder.config, model.eval(), epoch, file)


def build_model(folder: RunFolder) -> Network:
    """The untrained model of a run, its initial weights drawn from torch's global generator."""
    config = folder.config
    return network(config.network, config.model, num_classes=folder.num_classes, in_channels=folder.channels)


def resolve_device(name: str) -> torch.device:
    """The device behind "auto", "cpu" or "cuda"; under torchrun each process of a machine has a GPU of its own.

    Raises:
        UserError: CUDA was asked for and is absent; the message says whether the build or the GPU is missing.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        reason = (
            "sees no GPU (nvidia-smi tells whether its driver does)"
            if torch.version.cuda
            else "is built without CUDA (pytorch.org names the one to install)"
        )
        raise UserError(f"--device {name}: torch {torch.__version__} {reason}; use --device cpu")
    if name == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def _next_free(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists() and not (candidate.is_dir() and not _entries(candidate)):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _entries(path: Path) -> set[str]:
    """What a folder holds, but for what a run leaves that was killed while it wrote config.json: that is none yet."""
    return {entry.name for entry in path.iterdir()} - {"config.json.partial", run_lock.FILE}


def _mend(version: str, commit: str | None) -> str:
    """What to do with a run of another version."""
    if _numbers(version) > _numbers(robustfast.__version__):
        return f"update robustfast to {version} or later, or start a new run"
    at = f" (git checkout {commit.removesuffix('-dirty')})" if commit else ""
    return f"start a new run, or use robustfast {version}{at} for this one"


def _numbers(version: str) -> list[int]:
    """1.10.0 -> [1, 10, 0], to compare; text without numbers comes first."""
    return [int(part) for part in re.findall(r"\d+", version)]


def _commit() -> str | None:
    """Git commit of the code that runs, "-dirty" where tracked files differ; None outside its own repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name; `platform.processor()` is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
