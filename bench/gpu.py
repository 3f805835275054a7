"""Prove, measure and train on a machine with a GPU: `make gpu`, or `python bench/gpu.py [--only STAGE ...]`.

Each stage is a process of its own with a time limit; what it found is written before the next begins, so that a run cut
short keeps its results. Needs torch with CUDA, nvcc, and the packages of the extras `train` and `test`; what is missing
is named before anything starts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "tyro",
    "rich",
    "sklearn",
    "scipy",
    "matplotlib",
    "safetensors",
    "tensorboard",
)
PACKAGES += ("pytest", "pytest_benchmark", "hypothesis")
KERNELS = [sys.executable, "-m", "pytest", "tests/ops/test_ops.py", "-q", "-k", "agree and cuda"]


@dataclass(frozen=True)
class Stage:
    """A command (or several, in turn) with a limit in seconds for each."""

    commands: list[list[str]]
    limit: int
    needs: str | None = None


@dataclass
class Outcome:
    """What became of a stage: "passed", "failed", "timed out" or "skipped", and the end of what it printed."""

    state: str
    seconds: float = 0.0
    reason: str = ""
    tail: list[str] = field(default_factory=list)


def stages(out: Path) -> dict[str, Stage]:
    def bench(select: str) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "bench",
            "--benchmark",
            "-q",
            "-k",
            select,
            "--seconds",
            "0.5",
        ]
        return [*command, f"--benchmark-storage=file://{out}"]

    def sanitizer(tool: str) -> list[str]:
        return ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *KERNELS]

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    train = [
        sys.executable,
        "-m",
        "robustfast.train",
        "digits-aatpp",
        "--device",
        "cuda",
        "--out",
        # A run folder is never written over; each run of this script trains into one of its own.
        str(out / time.strftime("digits-%Y%m%d-%H%M%S")),
    ]
    return {
        # Installed, not only built: robustfast.kernels is found through the install alone. Nothing is downloaded.
        "build": Stage([[*pip, "--no-build-isolation", "--no-deps", "-e", "."]], 600),
        "test": Stage([[sys.executable, "-m", "pytest", "tests", "-q", "-m", "gpu"], KERNELS], 900),
        "sanitize": Stage(
            [sanitizer(t) for t in ("memcheck", "racecheck", "initcheck")], 600, needs="compute-sanitizer"
        ),
        "ops": Stage([bench("not pgd_10 and not training_step")], 600),
        "attack": Stage([bench("pgd_10")], 300),
        "step": Stage([bench("training_step")], 600),
        "train": Stage([train], 300),
    }


def run(stage: Stage, environment: dict[str, str], log: Path) -> Outcome:
    if stage.needs and shutil.which(stage.needs) is None:
        return Outcome("skipped", reason=f"{stage.needs} is not on PATH")
    start, lines = time.monotonic(), []
    for command in stage.commands:
        with log.open("ab") as sink:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    timeout=stage.limit,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        # The report is kept with the results: nothing in it names this machine's folders.
        lines = log.read_text(errors="replace").replace(str(ROOT), ".").splitlines()[-40:]
        seconds = time.monotonic() - start
        if code is None:
            return Outcome("timed out", seconds, f"after {stage.limit} s: {' '.join(command[1:])}", lines)
        if code:
            return Outcome("failed", seconds, f"exit code {code}: {' '.join(command[1:])}", lines)
    return Outcome("passed", time.monotonic() - start, tail=lines)


def hardware() -> dict[str, str]:
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = (
        subprocess.run(query, capture_output=True, text=True).stdout.strip()
        if shutil.which("nvidia-smi")
        else ""
    )
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "driver": driver,
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
    }


def obstacle() -> str | None:
    """What keeps this machine from running the stages; None when nothing does."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        return (
            f"missing packages: {', '.join(missing)}; install the extras 'train' and 'test' of this project"
        )
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device; on a machine without one, `make test` checks all that needs none"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(stages(Path()))
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="stages to run, in this order"
    )
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="stages to leave out")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench" / "results" / "gpu", help="where results go"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    chosen = {n: s for n, s in stages(options.out).items() if n in options.only and n not in options.skip}
    if options.dry_run:
        for name, stage in chosen.items():
            for command in stage.commands:
                print(f"{name} (limit {stage.limit} s): {' '.join(command)}")
        return 0
    if reason := obstacle():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    import torch

    major, minor = torch.cuda.get_device_capability()
    environment = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "ROBUSTFAST_BUILD": "required", **os.environ}
    report: dict[str, object] = {"hardware": hardware(), "stages": {}}
    for name, stage in chosen.items():
        print(f"{name} ...", flush=True)
        log = options.out / f"{name}.log"
        log.unlink(missing_ok=True)
        outcome = run(stage, environment, log)
        report["stages"][name] = asdict(outcome)  # type: ignore[index]
        (options.out / "report.json").write_text(json.dumps(report, indent=1))
        print(f"{name}: {outcome.state} in {outcome.seconds:.0f} s {outcome.reason}", flush=True)
    return int(any(stage["state"] in ("failed", "timed out") for stage in report["stages"].values()))  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
