"""Prove, measure and train on a machine with a GPU: `make gpu`, or `python bench/gpu.py [--only STAGE ...]`.

Each stage is one or more processes with a time limit; what it found is written before the next begins, so that a run
cut short keeps its results. Needs torch with CUDA, nvcc, and the packages of the extras `train` and `test`; what is
missing is named before anything starts, or installed from a folder of wheels (`--wheels DIR`), without a network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Module -> what pip calls it.
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "tyro": "tyro",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "hypothesis": "hypothesis",
}
PYTEST = [sys.executable, "-m", "pytest", "-q"]
KERNELS = [*PYTEST, "tests/ops/test_ops.py", "-k", "backends_agree"]


@dataclass(frozen=True)
class Stage:
    """Commands that run in turn, each whatever became of those before it, with a limit in seconds for each."""

    commands: list[list[str]]
    limit: int
    needs: str | None = None


@dataclass
class Outcome:
    """What became of a stage: "passed", "failed", "timed out" or "skipped", why, and the end of what it printed."""

    state: str
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)


def stages(out: Path) -> dict[str, Stage]:
    def bench(name: str) -> list[str]:
        # A process for each file: one that is cut short loses its own results alone.
        storage = f"--benchmark-storage=file://{out}"
        return [*PYTEST, f"bench/bench_{name}.py", "--benchmark", "--seconds", "0.5", storage]

    def sanitizer(tool: str) -> list[str]:
        return ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *KERNELS]

    apart = {"attack", "training_step"}
    ops = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    # A run folder is never written over; each run of this script trains into one of its own.
    run = str(out / time.strftime("digits-%Y%m%d-%H%M%S"))
    train = [sys.executable, "-m", "robustfast.train", "digits-aatpp", "--device", "cuda", "--out", run]
    epoch = [sys.executable, "bench/epoch.py", "--device", "cuda", "--limit", "1200"]
    games = [sys.executable, "bench/games.py", "--device", "cuda", "--precision", "bf16", "--channels-last"]
    cdvae = [sys.executable, "bench/cdvae.py", "--device", "cuda", "--precision", "bf16", "--channels-last"]
    autoattack = [sys.executable, "bench/autoattack.py", "--device", "cuda"]
    return {
        # Installed, not only built: robustfast.kernels is found through the install alone. Nothing is downloaded.
        "build": Stage([[*pip, "--no-build-isolation", "--no-deps", "-e", "."]], 600),
        "test": Stage([[*PYTEST, "tests", "-m", "gpu"], [*PYTEST, "tests/ops/test_ops.py"]], 900),
        "sanitize": Stage(
            [sanitizer(tool) for tool in ("memcheck", "racecheck", "initcheck")],
            600,
            needs="compute-sanitizer",
        ),
        "ops": Stage([bench(name) for name in ops if name not in apart], 600),
        "attack": Stage([bench("attack")], 300),
        "step": Stage([bench("training_step")], 600),
        "autoattack": Stage([[*autoattack, "--out", str(out / "autoattack-mnist-cuda.json")]], 1200),
        "epoch": Stage([[*epoch, "--out", str(out / "epoch.json")]], 1500),
        "games": Stage([[*games, "--out", str(out / "games.json")]], 600),
        # A quarter of an hour of training and its evaluation.
        "cdvae": Stage([[*cdvae, "--minutes", "15", "--out", str(out / "cdvae.json")]], 1800),
        "train": Stage([train], 300),
    }


def run(stage: Stage, environment: dict[str, str], log: Path) -> Outcome:
    """Run a stage's commands, their output appended to `log`."""
    if stage.needs and shutil.which(stage.needs) is None:
        return Outcome("skipped", reasons=[f"{stage.needs} is not on PATH"])
    outcome, start = Outcome("passed"), time.monotonic()
    for command in stage.commands:
        code = _limited(command, environment, log, stage.limit)
        shown = " ".join(Path(part).name if part == sys.executable else part for part in command)
        if code is None:
            outcome.state = "timed out"
            outcome.reasons.append(f"after {stage.limit} s: {shown}")
        elif code:
            # A limit that was reached is said first.
            outcome.state = "failed" if outcome.state == "passed" else outcome.state
            outcome.reasons.append(f"exit code {code}: {shown}")
    outcome.seconds = time.monotonic() - start
    outcome.tail = log.read_text(errors="replace").splitlines()[-40:]
    # The report is kept with the results: nothing in it names this machine's folders.
    for lines in (outcome.reasons, outcome.tail):
        lines[:] = [line.replace(str(ROOT), ".") for line in lines]
    return outcome


def _limited(command: list[str], environment: dict[str, str], log: Path, limit: int) -> int | None:
    """The exit code; None where the limit ended it, and all processes that it had started with it."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Workers of a loader outlive the process that started them; so they do where this script is interrupted.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def missing_packages() -> list[str]:
    """Modules that cannot be imported here."""
    return [module for module in PACKAGES if find_spec(module) is None]


def install(wheels: Path, environment: dict[str, str], log: Path) -> str | None:
    """Install what is missing from a folder of wheels; what went wrong, in one line."""
    if not wheels.is_dir():
        return f"--wheels {wheels} is no folder"
    names = [PACKAGES[module] for module in missing_packages()]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--find-links",
        str(wheels.resolve()),
    ]
    if names and run(Stage([[*pip, *names]], 300), environment, log).state != "passed":
        return f"--wheels {wheels} does not have all of {', '.join(names)} for this Python; {log} says more"
    return None


def obstacle() -> str | None:
    """What keeps this machine from running the stages; None when nothing does."""
    invalidate_caches()
    if missing := missing_packages():
        return (
            f"missing packages: {', '.join(missing)}; install the extras 'train' and 'test' of this project, or give "
            f"their wheels: --wheels DIR"
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
    out = ROOT / "bench" / "results" / "gpu"
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="stages to run, in this order"
    )
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="stages to leave out")
    parser.add_argument("--out", type=Path, default=out, help="where results go")
    parser.add_argument("--wheels", type=Path, help="folder from which to install missing packages")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    options.out = options.out.resolve()
    chosen = {n: s for n, s in stages(options.out).items() if n in options.only and n not in options.skip}
    if options.dry_run:
        for name, stage in chosen.items():
            for command in stage.commands:
                print(f"{name} (limit {stage.limit} s): {' '.join(command)}")
        return 0
    environment = {"ROBUSTFAST_BUILD": "required", **os.environ}
    options.out.mkdir(parents=True, exist_ok=True)
    reason = install(options.wheels, environment, options.out / "wheels.log") if options.wheels else None
    if reason := reason or obstacle():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    import torch
    from hardware import hardware

    major, minor = torch.cuda.get_device_capability()
    environment.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    outcomes: dict[str, Outcome] = {}
    for name, stage in chosen.items():
        print(f"{name} ...", flush=True)
        log = options.out / f"{name}.log"
        log.unlink(missing_ok=True)
        outcomes[name] = outcome = run(stage, environment, log)
        report = {
            "hardware": hardware(torch.device("cuda", torch.cuda.current_device())),
            "stages": {stage: asdict(found) for stage, found in outcomes.items()},
        }
        (options.out / "report.json").write_text(json.dumps(report, indent=1))
        print(f"{name}: {outcome.state} in {outcome.seconds:.0f} s {'; '.join(outcome.reasons)}", flush=True)
    return int(any(outcome.state in ("failed", "timed out") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
