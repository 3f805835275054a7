"""Prove, measure and train on a machine with a GPU: `make gpu`, or `python bench/gpu.py [--only STAGE ...]`.

Each stage is one or more processes with a time limit; what it found is written before the next begins, so that a run
cut short keeps its results. report.json holds all of it: the machine, what became of each stage, what the benches
measured, and each target with what was found. `--minutes N` bounds the whole run: stages get their share of what is
left, and one that would get too little is skipped and says so.

Needs torch with CUDA, nvcc, and the packages of the extras `train` and `test`; nothing is downloaded. What is missing
is named before anything starts, or installed from a folder of wheels (`--wheels DIR`). Where pip may not write to the
environment of this Python, an environment on top of it is made under build/.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import targets

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "results" / "gpu"
# What `make gpu` runs unless told otherwise: all that the targets are read from.
DEFAULT = ("build", "test", "sanitize", "ops", "attack", "step", "epoch", "train", "precision")
TRAINING = ("test", "step", "epoch", "train", "precision", "games", "cdvae")
# Module -> what pip calls it, and the stages that cannot do without it (none named: no stage can).
REQUIRED: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("torch", ()),
    "numpy": ("numpy", ()),
    "setuptools": ("setuptools", ("build",)),
    "triton": ("triton", ("test", "sanitize", "ops", "attack", "step", "tune")),
    "pytest": ("pytest", ("test", "ops", "attack", "step")),
    "pytest_benchmark": ("pytest-benchmark", ("test", "ops", "attack", "step")),
    "hypothesis": ("hypothesis", ("test",)),
    "tyro": ("tyro", TRAINING),
    "rich": ("rich", TRAINING),
    "safetensors": ("safetensors", TRAINING),
    "sklearn": ("scikit-learn", TRAINING),
    "scipy": ("scipy", TRAINING),
    "matplotlib": ("matplotlib", TRAINING),
    "tensorboard": ("tensorboard", TRAINING),
}
# Without these some tests or cells are skipped, each with its reason.
OPTIONAL = {
    "PIL": "pillow",
    "xdist": "pytest-xdist",
    "ninja": "ninja",
    "torchmetrics": "torchmetrics",
    "nvidia.dali": "nvidia-dali-cuda{cuda}0",
    "eagerpy": "eagerpy",
    "git": "GitPython",
    "requests": "requests",
    "tqdm": "tqdm",
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
}
# They ask for old releases of others, and run without them.
WITHOUT_DEPENDENCIES = ("torchattacks", "foolbox")
PYTEST = [sys.executable, "-m", "pytest", "-q"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
# Fails where an op has no CUDA or Triton backend here.
CHECK = [sys.executable, "bench/gpu.py", "--library"]
# The sources and the torch that the library was built from, where this script built it.
STAMP = ROOT / "build" / "gpu-library"
SKIPPED = 77  # the exit code of a program that cannot do its work here; its last line says why
# Seconds that a process has, once told to stop, to write what it knows.
GRACE = 10.0
# A program that is told how long it may take is told a little less.
TOLD = 0.9


@dataclass(frozen=True)
class Command:
    """A process with a limit in seconds; not begun where it would have fewer than `least`.

    `tell` is a flag that says how long it may take, and the seconds in one of the flag's units.
    """

    argv: list[str]
    limit: float
    least: float = 10.0
    tell: tuple[str, float] | None = None

    def within(self, seconds: float) -> list[str]:
        if self.tell is None:
            return self.argv
        flag, unit = self.tell
        return [*self.argv, flag, f"{TOLD * seconds / unit:.4g}"]


@dataclass(frozen=True)
class Stage:
    """Commands that run in turn, each whatever became of those before it."""

    commands: list[Command]

    @property
    def limit(self) -> float:
        return sum(command.limit for command in self.commands)

    @property
    def least(self) -> float:
        return max(min(command.limit, command.least) for command in self.commands)


@dataclass
class Outcome:
    """What became of a stage, why, each of its commands, and the end of what it printed.

    States: "passed", "failed", "timed out" (past its own limit), "cut short" (by the limit of the whole run, or by a
    signal), "skipped".
    """

    state: str
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    commands: list[dict[str, object]] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C: the report is still written."""


def stages(out: Path, data_dir: Path | None = None) -> dict[str, Stage]:
    """Every stage, in the order of running."""

    def bench(name: str, folder: str, limit: float) -> Command:
        # A process for each file: one that is cut short loses its own results alone. Targets are read from pgd_step's,
        # whose cases compile their rivals.
        storage = f"--benchmark-storage=file://{out / folder}"
        argv = [*PYTEST, f"bench/bench_{name}.py", "--benchmark", "--seconds", "0.5", storage]
        return Command(argv, limit, least=150 if name == "pgd_step" else 20)

    def program(name: str, file: str, limit: float, *more: str, **rules: object) -> Command:
        argv = [sys.executable, f"bench/{name}.py", *more, "--out", str(out / file)]
        return Command(argv, limit, **rules)  # type: ignore[arg-type]

    apart = {"attack", "training_step"}
    first = ["pgd_step", "affine_relu"]
    found = {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")}
    ops = [op for op in first if op in found] + sorted(found - apart - set(first))
    tests = ["env", "OMP_NUM_THREADS=1", *PYTEST, "tests"]
    if find_spec("pytest_timeout"):
        tests += ["--timeout", "300"]
    several = (
        ["--numprocesses", "auto", "--maxprocesses", "12", "--dist", "worksteal"]
        if find_spec("xdist")
        else []
    )
    data = ["--data-dir", str(data_dir)] if data_dir else []
    cuda = ["--device", "cuda"]
    bf16 = ["--precision", "bf16", "--channels-last"]
    # table2.py unpacks archives of images by itself; an epoch takes random ones, to the same seconds.
    ready = data if data_dir and (data_dir / "cifar-10-batches-py").is_dir() else []
    wide = ["--model", "wide_resnet34_10"]
    # A run folder is never written over; each run of this script trains into one of its own.
    folder = out / time.strftime("digits-%Y%m%d-%H%M%S")
    digits = [sys.executable, "-m", "robustfast.train", "digits-aatpp", *cuda, "--out", str(folder)]
    seeds = ["--work", str(out / "digits-precision")]

    def ablation(file: str, limit: float, *models: str) -> Command:
        return program("ablation", file, limit, *cuda, "--models", *models, least=120, tell=("--minutes", 60))

    return {
        # Installed, not only built: robustfast.kernels is found through the install alone.
        # Where CUDA sources do not compile setup.py leaves them out: the second command tells.
        "build": Stage(
            [
                Command([*PIP, "--no-build-isolation", "--no-deps", "-e", "."], 600, least=150),
                Command(CHECK, 120),
            ]
        ),
        "test": Stage(
            [
                # Several at once here too: most of their time is Triton's compiler, and a kernel that reads where it
                # must not ends the process for all tests after it.
                Command([*tests, "-m", "gpu", *several], 900, least=30),
                Command([*tests, "-m", "not gpu", *several], 1500, least=60),
            ]
        ),
        "sanitize": Stage([program("sanitize", "sanitize.json", 1200, least=60, tell=("--seconds", 1))]),
        "ops": Stage([bench(name, "ops", 300 if name in first else 150) for name in ops]),
        "attack": Stage([bench("attack", "attack", 400)]),
        "step": Stage(
            [
                ablation("ablation.json", 1200, "preact_resnet18"),
                bench("training_step", "step", 400),
                ablation("ablation-others.json", 900, "wide_resnet34_10", "small_cnn"),
            ]
        ),
        "epoch": Stage(
            [
                program("epoch", "epoch.json", 1200, *cuda, *ready, least=90, tell=("--limit", 1)),
                program(
                    "epoch", "epoch-wrn.json", 1200, *cuda, *wide, *ready, least=120, tell=("--limit", 1)
                ),
            ]
        ),
        # Real images without a network: the digits inside scikit-learn, then CIFAR-10 where --data-dir has it.
        "train": Stage(
            [
                Command(digits, 300, least=60),
                program("table2", "table2.json", 2400, *cuda, *data, least=180, tell=("--minutes", 60)),
            ]
        ),
        "precision": Stage(
            [
                program("precision_gradients", "precision-gradients.json", 600, *cuda, *data, least=60),
                program("precision_seeds", "precision-digits.json", 900, *cuda, *seeds, least=90),
            ]
        ),
        "tune": Stage(
            [Command([sys.executable, "bench/tune.py", *cuda, "--out", str(out / "launch")], 1800, least=300)]
        ),
        "autoattack": Stage([program("autoattack", "autoattack-mnist-cuda.json", 1200, *cuda, least=60)]),
        "games": Stage([program("games", "games.json", 600, *cuda, *bf16)]),
        # A quarter of an hour of training and its evaluation.
        "cdvae": Stage(
            [program("cdvae", "cdvae.json", 1800, *cuda, *bf16, least=120, tell=("--minutes", 120))]
        ),
    }


def share(left: float, own: float, rest: float, least: float) -> float:
    """Seconds for what may take `own`, where `left` remain for it and for others that may take `rest`; 0: too few.

    What is left is dealt out by these limits, but nobody gets less than the `least` that is of use.
    """
    least = min(own, least)
    return 0.0 if left < least else min(own, left, max(least, left * own / (own + rest)))


def run(
    stage: Stage,
    environment: dict[str, str],
    log: Path,
    seconds: float | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Run a stage's commands within `seconds` (None: their own limits), their output appended to `log`.

    `outcome` is filled in as they end, so that it holds what is known where an exception passes through.
    """
    outcome, start = outcome or Outcome("passed"), time.monotonic()
    for place, command in enumerate(stage.commands):
        rest = sum(other.limit for other in stage.commands[place + 1 :])
        begun = time.monotonic()
        allowed = command.limit
        if seconds is not None:
            allowed = share(start + seconds - begun, command.limit, rest, command.least)
        known: dict[str, object] = {
            "command": shown(command.argv),
            "state": "passed",
            "limit": round(allowed),
        }
        outcome.commands.append(known)
        if not allowed:
            known["state"] = "cut short"
            _add(outcome, known, f"{start + seconds - begun:.0f} s are too few for")
            continue
        before = log.stat().st_size if log.exists() else 0
        try:
            code = _limited(command.within(allowed), environment, log, allowed)
            if code is None:
                known["state"] = "timed out" if allowed >= command.limit else "cut short"
                _add(outcome, known, f"after {allowed:.0f} s:")
            elif code == SKIPPED:
                known["state"] = "skipped"
                _add(outcome, known, f"{(_since(log, before).splitlines() or ['skipped'])[-1]}:")
            elif code:
                known["state"] = "failed"
                _add(outcome, known, f"exit code {code}:")
        except Stopped:
            known["state"] = "cut short"
            _add(outcome, known, "the run was stopped in")
            raise
        finally:
            known["seconds"] = round(time.monotonic() - begun, 1)
            known["counts"] = counts(_since(log, before))
            outcome.seconds = time.monotonic() - start
            outcome.tail = [_private(line) for line in _since(log, 0).splitlines()[-40:]]
    return outcome


def _add(outcome: Outcome, known: dict[str, object], why: str) -> None:
    order = ("passed", "skipped", "cut short", "timed out", "failed")
    outcome.reasons.append(f"{why} {known['command']}")
    outcome.state = max(outcome.state, str(known["state"]), key=order.index)


def _private(line: str) -> str:
    """The report is kept with the results: nothing in it names this machine's folders."""
    return line.replace(str(ROOT), ".").replace(str(Path.home()), "~")


def shown(argv: list[str]) -> str:
    return _private(" ".join(Path(part).name if part == sys.executable else part for part in argv))


def _since(log: Path, start: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(start)
        return stream.read().decode(errors="replace")


def counts(text: str) -> dict[str, int]:
    """What pytest's last line counts: {"passed": 12, "skipped": 3}; empty where it printed none."""
    for line in reversed(text.splitlines()):
        if re.search(r"\bin [\d.:]+", line) and (
            found := re.findall(r"(\d+) ([a-z]+)", line.partition(" in ")[0])
        ):
            return {what: int(number) for number, what in found}
    return {}


def start(command: list[str], sink: BinaryIO, **how: Any) -> subprocess.Popen[bytes]:
    """A process that its group and SIGINT reach, also where a shell put this one into the background, deaf to it."""

    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=listen, **how
    )


def _limited(command: list[str], environment: dict[str, str], log: Path, limit: float) -> int | None:
    """The exit code; None where the limit ended it, and all processes that it had started with it."""
    with log.open("ab") as sink:
        process = start(command, sink, cwd=ROOT, env=environment)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Workers of a loader outlive the process that started them; so they do where this script is interrupted.
            if process.poll() is None:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """First as Ctrl-C would, upon which pytest and the benches write what they have; then with all it started."""
    try:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def missing(chosen: list[str]) -> dict[str, tuple[str, ...]]:
    """Modules that cannot be imported here, and which of the chosen stages cannot do without."""
    lacking = {}
    for module, (_, stages) in REQUIRED.items():
        needed = tuple(name for name in chosen if not stages or name in stages)
        if needed and not here(module):
            lacking[module] = needed
    return lacking


def optional_missing() -> list[str]:
    return [module for module in OPTIONAL if not here(module)]


def _wheels_of(folder: Path, name: str) -> bool:
    def plain(text: str) -> str:
        return re.sub(r"[-_.]+", "-", text).lower()

    return any(plain(path.name.split("-")[0]) == plain(name) for path in folder.glob("*.whl"))


def install(wheels: Path, chosen: list[str], environment: dict[str, str], log: Path) -> str | None:
    """Install what is missing from a folder of wheels; what went wrong, in one line.

    What only some tests need is installed where the folder has it, and left out where that fails.
    """
    if not wheels.is_dir():
        return f"--wheels {wheels} is no folder"
    pip = [*PIP, "--find-links", str(wheels.resolve())]
    constraint = log.with_suffix(".constraints")
    constraint.write_text("")
    if here("torch"):
        from importlib.metadata import version

        # The torch that is there stays.
        constraint.write_text(f"torch=={version('torch')}\n")
    pip += ["--constraint", str(constraint)]
    names = [REQUIRED[module][0] for module in missing(chosen)]
    if names and run(Stage([Command([*pip, *names], 300)]), environment, log).state != "passed":
        return f"--wheels {wheels} does not have all of {', '.join(names)} for this Python; {log} says more"
    for module in optional_missing():
        name = OPTIONAL[module].format(cuda=_cuda_major())
        if _wheels_of(wheels, name):
            alone = ["--no-deps"] if module in WITHOUT_DEPENDENCIES else []
            if run(Stage([Command([*pip, *alone, name], 300)]), environment, log).state != "passed":
                print(f"--wheels: {name} does not install; {log} says more", flush=True)
    invalidate_caches()
    return None


def _cuda_major() -> str:
    import torch

    return str(torch.version.cuda or "13").partition(".")[0]


def obstacle(chosen: list[str]) -> str | None:
    """What keeps this machine from running the chosen stages; None when nothing does."""
    invalidate_caches()
    if lacking := missing(chosen):
        stages = [name for name in chosen if any(name in needed for needed in lacking.values())]
        rest = f"; what needs them can be left out: --skip {' '.join(stages)}" if stages != chosen else ""
        return (
            f"missing packages: {', '.join(REQUIRED[module][0] for module in lacking)}; give their wheels: --wheels "
            f"DIR, or install the extras 'train' and 'test' of this project{rest}"
        )
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device; on a machine without one, `make test` checks all that needs none"
    return None


def sources() -> str:
    """Changes with what the library is built from: its sources, torch and the GPU."""
    import torch

    files = [ROOT / "setup.py", *sorted((ROOT / "csrc").iterdir())]
    parts = [path.read_bytes() for path in files if path.is_file()]
    made_for = f"{torch.__version__} {torch.cuda.get_device_capability()} {sys.prefix}".encode()
    return hashlib.sha256(b"\0".join([*parts, made_for])).hexdigest()


def lacking() -> list[str]:
    """What ops lack here of CUDA C++ and Triton, and why, one line for each."""
    from robustfast.ops import backends

    found = {(op, kind): reasons[kind] for op, reasons in backends().items() for kind in ("cuda", "triton")}
    return [f"{op} has no {kind} backend: {reason}" for (op, kind), reason in found.items() if reason]


def built() -> bool:
    """Whether this checkout is installed with a CUDA library of today's sources: stages can do without building."""
    if not STAMP.exists() or STAMP.read_text() != sources():
        return False
    tried = subprocess.run(CHECK, cwd=ROOT, capture_output=True, check=False)
    return tried.returncode == 0


def environment_on_top(folder: Path) -> str | None:
    """A Python whose packages are those of this one and which pip may write to; None where this one serves."""
    own = sysconfig.get_path("purelib")
    managed = (
        Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists() and sys.prefix == sys.base_prefix
    )
    if os.access(own, os.W_OK) and not managed:
        return None
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        # A venv sees the packages of its base alone; this line adds this environment's, after its own.
        seen = [path for path in (*site.getsitepackages(), own) if Path(path).is_dir()]
        lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(seen)]
        (packages / "below.pth").write_text("\n".join(lines) + "\n")
    return str(python)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise `Stopped`, once: what follows writes the report."""

    def stop(number: int, frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_apart(out: Path, machine: dict[str, object]) -> dict[str, object]:
    """The stages of an earlier run into `out`, which this run's join; those of other code or hardware move aside."""
    try:
        earlier = json.loads((out / "report.json").read_text())
        told = {key: earlier["hardware"].get(key) for key in ("device", "commit")}
        known = dict(earlier["stages"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if told == {key: machine.get(key) for key in told}:
        return known
    aside = out.with_name(f"{out.name}-{told['commit'] or 'unknown'}-{time.strftime('%Y%m%d-%H%M%S')}")
    out.rename(aside)
    out.mkdir()
    print(
        f"{out.name}: results of {told['device']}, commit {told['commit']}, now lie in {aside.name}",
        flush=True,
    )
    return {}


def write_report(out: Path, report: dict[str, object]) -> list[dict[str, str]]:
    """report.json, with each target and what the stages wrote beside it."""
    results = targets.collect(out)
    rows = targets.verdicts(results, report["stages"])
    part = out / "report.part"
    part.write_text(json.dumps({**report, "targets": rows, "results": results}, indent=1))
    part.replace(out / "report.json")
    return rows


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(stages(Path()))
    default = [name for name in names if name in DEFAULT]
    parser.add_argument(
        "--only", nargs="+", choices=names, help=f"stages to run; default {' '.join(default)}"
    )
    parser.add_argument(
        "--also", nargs="+", choices=names, default=[], help="stages to run beside the default"
    )
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="stages to leave out")
    parser.add_argument("--minutes", type=float, help="for the whole run; stages are shortened or skipped")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets, for epoch and train")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go")
    parser.add_argument("--wheels", type=Path, help="folder from which to install missing packages")
    parser.add_argument("--library", action="store_true", help="tell what ops lack here and stop")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    options.data_dir = options.data_dir and options.data_dir.resolve()
    wanted = options.only or [*default, *options.also]
    options.chosen = [name for name in names if name in wanted and name not in options.skip]
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g}: give a time of more than 0")
    return options


def main(arguments: list[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    begun = clock()
    options = parsed(arguments)
    chosen, out = options.chosen, options.out
    known = stages(out, options.data_dir)
    if options.dry_run:
        for name in chosen:
            for command in known[name].commands:
                print(f"{name} (limit {command.limit:g} s): {' '.join(command.argv)}")
        return 0
    if options.library:
        print("\n".join(lines := lacking()))
        return int(bool(lines))
    if python := environment_on_top(ROOT / "build" / "gpu-environment"):
        os.execv(python, [python, __file__, *(sys.argv[1:] if arguments is None else arguments)])
    environment = {"ROBUSTFAST_BUILD": "required", "PYTHONUNBUFFERED": "1", **os.environ}
    reason = None
    if options.wheels:
        out.mkdir(parents=True, exist_ok=True)
        reason = install(options.wheels, chosen, environment, out / "wheels.log")
    if reason := reason or obstacle(chosen):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    import torch
    from hardware import hardware

    major, minor = torch.cuda.get_device_capability()
    # For this GPU alone, whatever list an image of a container has set.
    environment["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    if "build" not in chosen + options.skip and not built():
        print("build: added, for there is no CUDA library of these sources yet", flush=True)
        chosen.insert(0, "build")
    without = optional_missing()
    if without:
        print(f"without {', '.join(without)}: what needs them is skipped", flush=True)
    machine = hardware(torch.device("cuda", torch.cuda.current_device()))
    report: dict[str, object] = {"hardware": machine, "minutes": options.minutes, "without": without}
    outcomes: dict[str, object] = keep_apart(out, machine)
    report["stages"] = outcomes
    ran: list[Outcome] = []
    stopped = None
    with stoppable():
        try:
            for place, name in enumerate(chosen):
                outcome, seconds = Outcome("passed"), None
                if options.minutes is not None:
                    # Nothing runs without the library: it may take all that is left.
                    others = [] if name == "build" else chosen[place + 1 :]
                    rest = sum(known[other].limit for other in others)
                    left = options.minutes * 60 - (clock() - begun)
                    seconds = share(left, known[name].limit, rest, known[name].least)
                ran.append(outcome)
                print(f"{name} ...", flush=True)
                if seconds == 0:
                    outcome.state = "skipped"
                    outcome.reasons.append(f"{left:.0f} s are left of --minutes {options.minutes:g}")
                else:
                    log = out / f"{name}.log"
                    log.unlink(missing_ok=True)
                    try:
                        run(known[name], environment, log, seconds, outcome)
                    except Stopped as signalled:
                        stopped = signalled
                if name == "build" and outcome.state == "passed":
                    STAMP.parent.mkdir(exist_ok=True)
                    STAMP.write_text(sources())
                # What an earlier run found is not lost to one that had no time.
                if outcome.state != "skipped" or name not in outcomes:
                    outcomes[name] = asdict(outcome)
                write_report(out, report)
                print(
                    f"{name}: {outcome.state} in {outcome.seconds:.0f} s {'; '.join(outcome.reasons)}",
                    flush=True,
                )
                if stopped:
                    break
        except Stopped as signalled:
            stopped = signalled
    print(targets.table(write_report(out, report), machine))
    print(f"{out / 'report.json'} has all of it")
    if stopped:
        return 128 + int(stopped.args[0])
    return int(any(outcome.state in ("failed", "timed out") for outcome in ran))


if __name__ == "__main__":
    sys.exit(main())
