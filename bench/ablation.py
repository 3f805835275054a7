"""What each lever brings to a training step: ours with all of them, ours without each, and the code that people write.

    python bench/ablation.py                                       # on a GPU: every network and method
    python bench/ablation.py --models preact_resnet18 --methods at --minutes 5
    python bench/ablation.py --device cpu --models digits_cnn --batches 16 --steps 2

A step is an attack, the training passes and the optimizer, on one batch of random images that stays on the device.
"people" is the plainest code (`plain_training.py`): float32, contiguous, eager, its attack's backward through the
weights. "reference" is the same code at the precision and in the layout of ours. "ours" is a step as
`robustfast.train` takes it, all levers pulled, and counted by a `Meter` that the host does not read.

First equality, then time. Each variant trains a few steps, so that what it captures, keeps and folds is in place, goes
back to the weights that all start from, and takes a step whose gradient is held against that of the plain code in
float32; one that differs is not timed. Then it is timed in turn with ours (A B B A), median of five or more. Some
levers rest on others: `LEVERS` says between which two variants each one's gain is read. The file is written after each
variant; what cannot be taken out here, or makes no difference, keeps its reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hardware import ROOT, hardware
from measure import (
    SAMPLE_SECONDS,
    copy_bandwidth,
    forward_flops,
    full_float32,
    interleaved,
    matrix_peak,
    not_folded,
)
from plain_training import PlainTraining
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustfast.attacks import AttackConfig, gradient
from robustfast.attacks.folding import folding
from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES
from robustfast.ops import OPS, backend, random_start
from robustfast.seeds import derive
from robustfast.streams import two_streams
from robustfast.training import optimizers
from robustfast.training.engine import Engine
from robustfast.training.metrics import Meter
from robustfast.training.presets import PRESETS
from robustfast.training.whole_step import WholeStep

METHODS = ("at", "aat", "aatpp")
# Network -> one image, radius and step size of the attack, batches on a GPU and on a CPU.
NETWORKS: dict[str, tuple[tuple[int, int, int], float, float, tuple[int, ...], tuple[int, ...]]] = {
    "preact_resnet18": ((3, 32, 32), 8 / 255, 2 / 255, (128, 512), (4,)),
    "small_cnn": ((1, 28, 28), 0.3, 0.06, (128,), (32,)),
    "wide_resnet34_10": ((3, 32, 32), 8 / 255, 2 / 255, (128,), (2,)),
    "digits_cnn": ((1, 8, 8), 0.3, 0.06, (128,), (32,)),
}
# Variant of ours -> what it goes without.
VARIANTS: dict[str, frozenset[str]] = {
    "ours": frozenset(),
    # The same kernels, each launched by the host.
    "without whole-step": frozenset({"whole-step", "attack-graph"}),
    "attack-graph alone": frozenset({"whole-step"}),
    "without fold": frozenset({"fold"}),
    "without affine-relu": frozenset({"affine-relu"}),
    "without half-precision": frozenset({"half-precision"}),
    "without channels-last": frozenset({"channels-last"}),
    # Folded encoders read weights that are no parameters: only the encoders as they are have these two levers.
    "without input-gradients": frozenset({"fold", "input-gradients"}),
    "without cached-casts": frozenset({"fold", "cached-casts"}),
    "without batched": frozenset({"batched"}),
    "without two-streams": frozenset({"two-streams"}),
    # The host decides on each step of any other optimizer, which a graph cannot hold.
    "without fused-optimizer": frozenset({"whole-step", "fused-optimizer"}),
    # Each term is read in each step, as scripts do with `loss.item()`.
    "without device-metrics": frozenset({"device-metrics"}),
}
# Lever -> the variants with and without it, alike in all else.
LEVERS: dict[str, tuple[str, str]] = {
    "input-gradients": ("without fold", "without input-gradients"),
    "half-precision": ("ours", "without half-precision"),
    "channels-last": ("ours", "without channels-last"),
    "cached-casts": ("without fold", "without cached-casts"),
    "fold": ("ours", "without fold"),
    "affine-relu": ("ours", "without affine-relu"),
    "attack-graph": ("attack-graph alone", "without whole-step"),
    "whole-step": ("ours", "without whole-step"),
    "batched": ("ours", "without batched"),
    "two-streams": ("ours", "without two-streams"),
    "fused-optimizer": ("attack-graph alone", "without fused-optimizer"),
    "device-metrics": ("ours", "without device-metrics"),
}
# What is asked of the whole comes first, in all cases; then the levers one by one.
FIRST = ("people", "reference", "without whole-step")
SEED = 3
# Two eager steps before a whole step is captured, and a replay.
WARM_UP = 4
# Random images do no harm at this rate, however many steps are timed.
LR = 1e-3
# Where the steps before the check lead away from the weights at which it is made: what they keep would be seen.
AWAY = 0.01
# Relative error of a gradient in float32: other layouts and orders of scaling flip a few signs in the attack.
FLOAT32_ERROR = 0.05


class GaveWayError(Exception):
    """A variant fell back to another one."""


class DiffersError(Exception):
    """A variant's gradient is not that of the plain code."""


@dataclass(frozen=True)
class Case:
    """One network, trained in one way on batches of one size."""

    model: str
    method: str
    batch: int
    steps: int
    device: torch.device

    @property
    def image(self) -> tuple[int, int, int]:
        return NETWORKS[self.model][0]

    @property
    def strength(self) -> AttackConfig:
        _, eps, step_size, *_ = NETWORKS[self.model]
        return AttackConfig(eps=eps, step_size=step_size, steps=self.steps)

    @property
    def objective(self) -> tuple[type, Any]:
        """AT attacks all of its images; "half" adds the natural ones, another method."""
        kind = OBJECTIVES[self.method]
        return kind, kind.Config(**({"half": False} if self.method == "at" else {}))

    @property
    def flops(self) -> int:
        """The fewest of a step: the passes that the method needs, of one encoder each."""
        kind, settings = self.objective
        encoder = initial_model(self.model, "meta").encoder_r
        return round(kind.passes(settings, self.strength) * forward_flops(encoder, (self.batch, *self.image)))

    def data(self) -> Batch:
        generator = torch.Generator().manual_seed(SEED)
        x = torch.rand((self.batch, *self.image), generator=generator).to(self.device)
        y = torch.randint(10, (self.batch,), generator=generator).to(self.device)
        return Batch(x, y, torch.arange(self.batch, device=self.device))


def initial_model(name: str, device: torch.device | str) -> ThreeWay:
    """The weights that every variant starts from."""
    torch.manual_seed(0)
    with torch.device("meta" if device == "meta" else "cpu"):
        model = ThreeWay(name, num_classes=10, in_channels=NETWORKS[name][0][0]).train()
    # Other pass orders would draw other masks, and nothing could be compared.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model if device == "meta" else model.to(device)


class Plain:
    """Steps as people write them."""

    def __init__(self, case: Case, *, half: bool, channels_last: bool) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.case, self.half = case, half
        self.model = initial_model(case.model, case.device).to(memory_format=layout)
        batch = case.data()
        self.batch = batch._replace(x=batch.x.contiguous(memory_format=layout))
        self.training = PlainTraining(self.model, case.strength, self._start)
        kind, _ = case.objective
        moved = {id(p) for way in kind.main_ways for p in self.model.way(way).parameters()}
        self.moved = [p for p in self.model.parameters() if id(p) in moved]
        self.optimizer = torch.optim.SGD(self.moved, lr=LR, momentum=0.9, weight_decay=5e-4)

    def step(self, lr: float = LR) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        method = "adversarial" if self.case.method == "at" else self.case.method
        with torch.autocast(self.case.device.type, torch.bfloat16, enabled=self.half):
            loss, _ = getattr(self.training, method)(self.batch.x, self.batch.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _start(self, way: str, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """The draws that ours makes."""
        seed = derive(SEED, way) if self.case.method != "at" else SEED
        return random_start(x, eps=eps, seed=derive(seed, "pgd", 0, 0), index=self.batch.index)


class Ours:
    """Steps of ours, without some levers."""

    def __init__(self, case: Case, off: frozenset[str]) -> None:
        self.case, self.off = case, off
        layout = torch.contiguous_format if "channels-last" in off else torch.channels_last
        self.model = initial_model(case.model, case.device).to(memory_format=layout)
        batch = case.data()
        self.batch = batch._replace(x=batch.x.contiguous(memory_format=layout))
        whole = has_graphs(case.device) and "whole-step" not in off
        config = dataclasses.replace(
            PRESETS["cifar10-prn18-at"],
            attack=case.strength,
            batch_size=case.batch,
            precision="fp32" if "half-precision" in off else "bf16",
            channels_last="channels-last" not in off,
            engine="graph" if has_graphs(case.device) and "attack-graph" not in off else "eager",
            whole_step="graph" if whole else "eager",
        )
        kind, settings = case.objective
        objective = kind(self.model, settings, case.strength, seed=SEED, engine=config.engine)
        objective.begin(0, 0.0)
        if "batched" in off:
            objective.attack.batched = False
        self.meter = Meter()
        with self._without():
            engine = Engine(objective, config, case.device)
        self.moved = [p for updater in engine.updaters.values() for p in updater.parameters]
        late = "device-metrics" not in off
        self.runner = WholeStep(engine, late=late, say=_gave_way) if whole else engine

    def step(self, lr: float = LR) -> None:
        with self._without():
            terms = self.runner.step(self.batch, lr=lr)
        if "device-metrics" in self.off:
            self.read = {name: float(value) for name, value in terms.items()}
        else:
            self.meter.add(terms, len(self.batch.y))

    @contextmanager
    def _without(self) -> Iterator[None]:
        """The switches of this variant, as they lie while it is built and run."""
        with ExitStack() as switches:
            switches.enter_context(folding("off" if "fold" in self.off else "on"))
            switches.enter_context(two_streams("two-streams" not in self.off))
            if "affine-relu" in self.off:
                switches.enter_context(on_reference("affine_relu", self.case.device))
            if "input-gradients" in self.off:
                switches.enter_context(weight_gradients(self.model))
            if "cached-casts" in self.off:
                switches.enter_context(patch.object(gradient, "cast_cache", _nothing))
            if "fused-optimizer" in self.off:
                switches.enter_context(patch.object(optimizers, "_fused_runs", lambda *kind: False))
            yield


def has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _gave_way(line: str) -> None:
    raise GaveWayError(line)


@contextmanager
def on_reference(op: str, device: torch.device) -> Iterator[None]:
    """One op runs as plain PyTorch inside the block, all others as they did."""
    table = backend._tables[backend.active_backend()]
    plain = {(s, device.type): backend._find(s, device.type, "reference") for s in OPS[op].schemas}
    with patch.dict(table, plain):
        yield


@contextmanager
def weight_gradients(model: nn.Module) -> Iterator[None]:
    """Attacks inside the block compute the gradient of every weight too, as `loss.backward()` does."""
    plain, frozen = torch.autograd.grad, gradient.requires_grad
    parameters = list(model.parameters())

    def grad(outputs: Tensor, inputs: Any, *rest: Any, **keywords: Any) -> tuple[Tensor, ...]:
        leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        weights = [parameter for parameter in parameters if parameter.requires_grad]
        return plain(outputs, [*leaves, *weights], *rest, **(keywords | {"allow_unused": True}))[
            : len(leaves)
        ]

    with (
        patch.object(torch.autograd, "grad", grad),
        patch.object(gradient, "requires_grad", lambda parameters, value: frozen(parameters, True)),
    ):
        yield


def makes_no_difference(case: Case, variant: str) -> str | None:
    """Why a variant of ours would be another one by a new name, or cannot be here; None where it is one."""
    off = VARIANTS[variant]
    if case.device.type != "cuda":
        if off & {"whole-step", "attack-graph"} and variant != "without fused-optimizer":
            return f"CUDA graphs need a GPU, this runs on {case.device}"
        if "two-streams" in off:
            return f"streams need a GPU, this runs on {case.device}"
        if "batched" in off:
            return (
                f"no difference: on {case.device} ours attacks one way after the other, which is faster there"
            )
    if "two-streams" in off and case.method == "at":
        return "no difference: the robust way runs one encoder"
    if "batched" in off and case.method != "aatpp":
        return f"no difference: {case.method} makes one attack"
    return None


def first_gradient(variant: Plain | Ours) -> list[Tensor]:
    """The gradient at the weights that all start from, of a step like those that are timed."""
    model = variant.model
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(WARM_UP):
        variant.step(AWAY)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(start[name])
    variant.step()
    return [p.grad.detach().clone() for p in variant.moved if p.grad is not None]


def relative_error(gradients: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if len(gradients) != len(expected):
        raise DiffersError(f"its gradient is wrong: of {len(gradients)} tensors, not {len(expected)}")
    distance = sum(float((a - b).square().sum()) for a, b in zip(gradients, expected, strict=True))
    return (distance / sum(float(b.square().sum()) for b in expected)) ** 0.5


@dataclass
class Measured:
    """What is known of a case so far.

    Attributes:
        seconds: variant -> seconds of a step, median and quartiles.
        ratio: variant -> how many times as long as ours it took, timed in turn with it.
        equal: variant -> relative error of its gradient; allowed: what it might have been.
        not_run: variant -> why there is no time.
    """

    case: Case
    flops: int
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    equal: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def as_dict(self, peak: float) -> dict[str, Any]:
        case = self.case
        gains = {
            lever: self.ratio[without] / self.ratio[with_]
            for lever, (with_, without) in LEVERS.items()
            if with_ in self.ratio and without in self.ratio
        }
        found = {
            "model": case.model,
            "method": case.method,
            "batch": case.batch,
            "precision": "bf16",
            "steps": case.steps,
            "flops": self.flops,
            "seconds": self.seconds,
            "ratio": self.ratio,
            "gain": gains,
            "equal": self.equal,
            "allowed": self.allowed,
            "not_run": self.not_run,
        }
        if "ours" in self.seconds:
            found["share_of_matrix_peak"] = self.flops / self.seconds["ours"]["median"] / peak
        return found


class Bench:
    """One case: its ours, and every other variant beside it."""

    def __init__(self, measured: Measured, options: argparse.Namespace) -> None:
        self.measured, self.options = measured, options
        self.case = measured.case
        self.expected = self._exact()
        self.ours: Ours | None = None

    def _exact(self) -> list[Tensor]:
        """The plain code's gradient in float32, without TF32."""
        with full_float32():
            plain = Plain(self.case, half=False, channels_last=False)
            plain.step()
        return [p.grad.detach().clone() for p in plain.moved if p.grad is not None]

    def allowed(self, variant: str) -> float:
        """In bfloat16 the plain code's own error is the measure, in float32 on a GPU that of TF32."""
        known = self.measured.equal
        if "half-precision" in VARIANTS.get(variant, ()):
            return max(FLOAT32_ERROR, 1.5 * known.get("people", 0.0))
        return max(FLOAT32_ERROR, 1.5 * known["reference"])

    def attempt(self, variant: str) -> None:
        """Check and time one variant, or keep why not."""
        measured = self.measured
        try:
            self._time(variant)
        except (GaveWayError, DiffersError) as error:
            measured.not_run[variant] = str(error)
        except (RuntimeError, ValueError, TypeError, UserError) as error:  # out of memory too
            if self.options.traces:
                traceback.print_exc()
            measured.not_run[variant] = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            gc.collect()
            if self.case.device.type == "cuda":
                torch.cuda.empty_cache()

    def _time(self, variant: str) -> None:
        if variant in VARIANTS and (reason := makes_no_difference(self.case, variant)):
            raise GaveWayError(reason)
        beside = {} if variant == "ours" else {"ours": self._ours().step}
        call = self._ours().step if variant == "ours" else self._checked(variant).step
        on_gpu = self.case.device.type == "cuda"
        found = interleaved(
            {**beside, variant: call},
            seconds=self.options.seconds,
            sample=0.1 if on_gpu else SAMPLE_SECONDS,
        )
        self.measured.seconds[variant] = found[variant].as_dict()
        self.measured.ratio[variant] = found[variant].median / found["ours"].median

    def _ours(self) -> Ours:
        """The one that all others are timed beside."""
        if self.ours is None:
            if "reference" not in self.measured.equal:
                self._checked("reference")
            self.ours = self._checked("ours")
        return self.ours

    def _checked(self, variant: str) -> Any:
        """A variant, once its gradient was found right."""
        plain = {"people": (False, False), "reference": (True, True)}
        if variant in plain:
            half, channels_last = plain[variant]
            built: Plain | Ours = Plain(self.case, half=half, channels_last=channels_last)
        else:
            built = Ours(self.case, VARIANTS[variant])
        error = relative_error(first_gradient(built), self.expected)
        if isinstance(built, Ours) and isinstance(built.runner, WholeStep) and not built.runner.captures:
            raise GaveWayError("no step was captured")
        folds = isinstance(built, Ours) and "fold" not in built.off
        if folds and (reason := not_folded(built.model, "half-precision" not in built.off)):
            raise GaveWayError(reason)
        self.measured.equal[variant] = error
        if variant in plain:
            return built  # the measure of the others
        allowed = self.measured.allowed[variant] = self.allowed(variant)
        if not error <= allowed:
            raise DiffersError(f"its gradient is wrong by {error:.3g}, allowed {allowed:.3g}")
        return built


def table(measured: Measured) -> Table:
    case = measured.case
    shown = Table(
        "variant",
        "ms",
        "of ours",
        title=f"{case.model} {case.method}, batch {case.batch}, {case.steps} steps",
    )
    for variant, ratio in measured.ratio.items():
        shown.add_row(variant, f"{1e3 * measured.seconds[variant]['median']:.4g}", f"{ratio:.2f}")
    for variant, reason in measured.not_run.items():
        shown.add_row(variant, "-", reason)
    return shown


def write(path: Path, report: dict[str, Any]) -> None:
    """The report, whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def cases(options: argparse.Namespace) -> list[Case]:
    on_gpu = options.device.type == "cuda"
    return [
        Case(model, method, batch, options.steps, options.device)
        for model in options.models
        for batch in options.batches or NETWORKS[model][3 if on_gpu else 4]
        for method in options.methods
    ]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(device), help="where to train")
    parser.add_argument(
        "--models", nargs="+", choices=NETWORKS, help="default: all that the device is fast enough for"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batches", nargs="+", type=int, help="levers are taken out one by one at the first")
    parser.add_argument(
        "--variants", nargs="+", choices=("people", "reference", *VARIANTS), help="default: all"
    )
    parser.add_argument("--steps", type=int, default=10, help="steps of the attack")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of timing for each variant, at least 5 rounds"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="skip what is left past these")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/ablation-DEVICE.json")
    parser.add_argument("--traces", action="store_true", help="print the trace of each failure")
    options = parser.parse_args()
    if options.device.type == "cuda" and options.device.index is None:
        options.device = torch.device("cuda", torch.cuda.current_device())
    on_gpu = options.device.type == "cuda"
    everything = (
        ("preact_resnet18", "small_cnn", "wide_resnet34_10") if on_gpu else ("digits_cnn", "small_cnn")
    )
    options.models = options.models or everything
    return options


def main() -> int:
    options = parsed()
    device, began = options.device, time.perf_counter()
    out = options.out or ROOT / "bench" / "results" / f"ablation-{device.type}.json"
    torch.backends.cudnn.benchmark = True
    report: dict[str, Any] = {
        "what": "seconds of a training step without each lever",
        "hardware": hardware(device),
        "copy_bandwidth": copy_bandwidth(2**31 if device.type == "cuda" else 2**26, device),
        "matrix_peak": matrix_peak(device),
        "levers": {lever: {"with": a, "without": b} for lever, (a, b) in LEVERS.items()},
        "cases": [],
    }
    found = [Measured(case, case.flops) for case in cases(options)]
    wanted = options.variants or ("people", "reference", *VARIANTS)
    first = {case.model: case.batch for case in reversed(cases(options))}
    for variants in (FIRST, tuple(VARIANTS)):
        for measured in found:
            case = measured.case
            if variants is not FIRST and case.batch != first[case.model]:
                continue
            bench = None
            for variant in dict.fromkeys(("ours", *variants) if variants is FIRST else variants):
                if variant not in wanted:
                    continue
                if (time.perf_counter() - began) / 60 > options.minutes:
                    if variant not in measured.seconds:
                        measured.not_run.setdefault(variant, f"past --minutes {options.minutes:g}")
                else:
                    if variant in measured.seconds or variant in measured.not_run:
                        continue
                    bench = bench or Bench(measured, options)
                    bench.attempt(variant)
                report["cases"] = [m.as_dict(report["matrix_peak"]) for m in found]
                write(out, report)
                result = (
                    f"{1e3 * measured.seconds[variant]['median']:.4g} ms"
                    if variant in measured.seconds
                    else measured.not_run[variant]
                )
                print(f"{case.model} {case.method} {case.batch} {variant}: {result}", flush=True)
    console = Console()
    for measured in found:
        console.print(table(measured))
    print(f"written to {out}")
    wrong = any("gradient is wrong" in reason for m in found for reason in m.not_run.values())
    return int(wrong or not any(m.seconds for m in found))


if __name__ == "__main__":
    sys.exit(main())
