"""The tables of docs/performance.md, made from files of results and from nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

__all__ = [
    "FLOOR",
    "NETWORKS",
    "ORDER",
    "SECTIONS",
    "STEPS",
    "VARIANTS",
    "Account",
    "Rates",
    "Row",
    "accounts",
    "rendered",
    "sums",
    "tables",
    "times",
    "total",
    "whole",
]

RESULTS = Path(__file__).resolve().parent / "results"
IMAGES = 50_000
STEPS = 10

NETWORKS = {"preact_resnet18": "PreAct-ResNet18", "wide_resnet34_10": "WRN-34-10"}
SECTIONS = ("attack step", "attack, once", "training", "optimizer")
VARIANTS = ("unfused", "folded")
COLUMNS = (*VARIANTS, "floor")
# Kinds of operations in the order of the tables; in the floor everything else happens inside those of FLOOR.
FLOOR = ("convolution", "matrix product", "attack's own ops", "optimizer")
ORDER = (
    "convolution",
    "matrix product",
    "batch norm",
    "ReLU",
    "affine_relu",
    "sum",
    "cast",
    *FLOOR[2:],
    "other",
)


@dataclass(frozen=True)
class Rates:
    """Bytes and floating-point operations per second of a GPU; seconds that its host takes to launch a kernel, and that
    pass between two kernels of a graph."""

    copy: float
    matrix: float
    launch: float
    gap: float


@dataclass(frozen=True)
class Row:
    """What some operations cost: kernels, bytes, floating-point operations, and the seconds of these kernels."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0

    def __add__(self, other: Row) -> Row:
        return Row(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def times(self, factor: int) -> Row:
        return Row(*(factor * a for a in _values(self)))


Account = dict[str, Row]
"""By kind."""


def _values(row: Row) -> tuple[Any, ...]:
    return tuple(asdict(row).values())


def total(account: Account, kinds: Iterable[str] | None = None) -> Row:
    """The sum over all kinds, or over some."""
    return reduce(
        Row.__add__, (row for kind, row in account.items() if kinds is None or kind in kinds), Row()
    )


def sums(*given: Account) -> Account:
    kinds = dict.fromkeys(kind for account in given for kind in account)
    return {kind: reduce(Row.__add__, (a.get(kind, Row()) for a in given)) for kind in kinds}


def times(account: Account, factor: int) -> Account:
    return {kind: row.times(factor) for kind, row in account.items()}


def whole(found: Mapping[str, Account]) -> Account:
    """A training step with `STEPS` steps of the attack."""
    return sums(*(times(found[name], STEPS if name == SECTIONS[0] else 1) for name in SECTIONS))


def accounts(entry: Mapping[str, Any], column: str) -> dict[str, Account]:
    """Section to account of one of `COLUMNS`, or of "plain" where it has that, from an entry of the file."""
    found = {
        name: {kind: Row(**row) for kind, row in rows.items()}
        for name, rows in entry["unfused" if column == "floor" else column].items()
    }
    if column != "floor":
        return found
    return {name: {k: row for k, row in account.items() if k in FLOOR} for name, account in found.items()}


def tables(report: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by name.

    Args:
        report: what `bench/account.py` writes. "tried" is made from other files beside it.
    """
    rates = Rates(**report["rates"])
    passes = [
        "| network | method | passes | as people write it | TFLOP | ms of arithmetic |",
        "|---|---|---:|---:|---:|---:|",
    ]
    steps = [
        "| network | method | | launches | GB | kernels, ms | host, ms | epoch as graphs, s | launched singly, s |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    made = {"tried": tried(), "ops": _ops(report["ops"])}
    for entry in report["cases"]:
        network = NETWORKS[entry["network"]]
        arithmetic = 1e3 * entry["flops"] / rates.matrix
        work = f"{entry['passes']:.0f}F | {entry['plain_passes']:.0f}F | {entry['flops'] / 1e12:.1f} | {arithmetic:.1f}"
        passes.append(f"| {network} | {entry['method']} | {work} |")
        for column in (*(["plain"] if "plain" in entry else []), *COLUMNS):
            row = total(whole(accounts(entry, column)))
            host = row.launches * rates.launch
            epoch = IMAGES / entry["batch"]
            steps.append(
                f"| {network} | {entry['method']} | {column} | {row.launches:,} | {row.bytes / 1e9:.1f} | "
                f"{1e3 * row.seconds:.1f} | {1e3 * host:.1f} | {epoch * row.seconds:.1f} | "
                f"{epoch * max(host, row.seconds):.1f} |"
            )
        if entry["method"] == "AT":
            made[f"kinds {entry['network']}"] = _kinds(entry)
            made[f"sections {entry['network']}"] = _sections(entry)
    return {"passes": "\n".join(passes), "steps": "\n".join(steps), **made}


def _ops(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| op | tensors | launches | MB | us |", "|---|---|---:|---:|---:|"]
    for row in rows:
        cost = f"{row['launches']} | {row['bytes'] / 1e6:.1f} | {1e6 * row['seconds']:.1f}"
        lines.append(f"| {row['op']} | {row['case']} | {cost} |")
    return "\n".join(lines)


def _cells(row: Row) -> str:
    return f"{row.launches:,} | {row.bytes / 1e6:,.0f} | {1e3 * row.seconds:.3f}" if row.launches else "| |"


def _head(first: str) -> list[str]:
    shown = " | ".join(f"{column}: launches | MB | ms" for column in COLUMNS)
    return [f"| {first} | {shown} |", "|---|" + "---:|" * (3 * len(COLUMNS))]


def _kinds(entry: Mapping[str, Any]) -> str:
    """One step of the attack by kind."""
    found = [accounts(entry, column)[SECTIONS[0]] for column in COLUMNS]
    lines = _head("one step of the attack")
    for kind in ORDER:
        if any(kind in account and account[kind].launches for account in found):
            lines.append(f"| {kind} | {' | '.join(_cells(a.get(kind, Row())) for a in found)} |")
    lines.append(f"| **all** | {' | '.join(_cells(total(account)) for account in found)} |")
    return "\n".join(lines)


def _sections(entry: Mapping[str, Any]) -> str:
    """A whole training step by section."""
    lines = _head("a training step")
    found = [accounts(entry, column) for column in COLUMNS]
    for name in SECTIONS:
        factor, shown = (STEPS, f"{STEPS} steps of the attack") if name == SECTIONS[0] else (1, name)
        cells = (_cells(total(account[name]).times(factor)) for account in found)
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Tried:
    """One thing that was measured and pays little or nothing.

    Attributes:
        what: was done, and instead of what.
        file: in bench/results.
        case: of a benchmark by its name, or of a row by its case.
        ours, rival: two of the things timed.
        then: what became of it.
    """

    what: str
    file: str
    case: str
    ours: str
    rival: str
    then: str


_OPS = "Linux-CPython-3.11-64bit"
TRIED = (
    Tried(
        "channels-last in float32, PreAct-ResNet18",
        f"{_OPS}/0005_training-preact.json",
        "bench_training_step[preact_resnet18-adversarial]",
        "fp32 channels-last",
        "fp32",
        "off by default; in bf16 it pays a little",
    ),
    Tried(
        "`pgd_step` in one pass over 64 grey images, not four operations in place",
        f"{_OPS}/0002_step-resident.json",
        "bench_pgd_step[64x1x28x28-linf]",
        "fused",
        "in-place",
        "stays: larger batches are where time goes",
    ),
    Tried(
        "`asymmetric_cross_entropy` with its backward at 100 classes, not masks",
        f"{_OPS}/0007_other-ops.json",
        "bench_asymmetric_cross_entropy[CIFAR-100-training-float32]",
        "cpp",
        "masked",
        "stays: it never waits for the device",
    ),
    Tried(
        "`margin_loss` with its gradient at 10 classes, not `max` over masked logits",
        f"{_OPS}/0009_attack-ops.json",
        "bench_margin_loss[CIFAR-10-gradient]",
        "cpp",
        "masking",
        "stays for captured loops",
    ),
    Tried(
        "`margin_loss` at 1000 classes, not its compiled reference",
        f"{_OPS}/0009_attack-ops.json",
        "bench_margin_loss[1000 classes-value]",
        "cpp",
        "compiled",
        "stays: without a compiler the reference is what runs",
    ),
    Tried(
        "`three_way_head` of PreAct-ResNet18 fused between its products, not by operations",
        f"{_OPS}/0007_other-ops.json",
        "bench_three_way_head[PreActResNet18-logits-float32]",
        "cpp",
        "reference",
        "stays: the products are the time, and there are fewer launches",
    ),
    Tried(
        "compiling the head's forward and backward in an attack, not running it by operations",
        f"{_OPS}/0007_other-ops.json",
        "bench_three_way_head[PreActResNet18-attack-float32]",
        "compiled",
        "reference",
        "left out",
    ),
    Tried(
        "`apgd_track` where all samples improve, not its compiled reference",
        f"{_OPS}/0009_attack-ops.json",
        "bench_apgd_track[128x3x32x32-step-all]",
        "fused",
        "compiled",
        "stays: where few improve it reads less",
    ),
    Tried(
        "RFD's divergences as an op of their own, not the compiled formula without logarithms",
        "pairwise-kl.json",
        "WRN-34-10",
        "fused",
        "compiled loss, no logarithms",
        "left out",
    ),
)


def tried() -> str:
    """What pays little or nothing, by the files that say so."""
    lines = ["| tried | times as fast | | measured in |", "|---|---:|---|---|"]
    for row in TRIED:
        seconds = _seconds(row)
        ratio = seconds[row.rival]["median"] / seconds[row.ours]["median"]
        name = Path(row.file).name
        lines.append(f"| {row.what} | {ratio:.2f} | {row.then} | [{name}](../bench/results/{row.file}) |")
    return "\n".join(lines)


def _seconds(row: Tried) -> Mapping[str, Any]:
    stored = json.loads((RESULTS / row.file).read_text())
    if "benchmarks" in stored:
        (found,) = (b for b in stored["benchmarks"] if b["name"] == row.case)
        return found["extra_info"]["seconds"]
    return next(found["seconds"] for found in stored["rows"] if found["case"] == row.case)


def rendered(page: str, made: Mapping[str, str]) -> str:
    """A page with the tables between its marks ``<!-- account: NAME -->`` and ``<!-- end -->`` made anew.

    Raises:
        KeyError: a mark names a table that is not there.
    """

    def replaced(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{made[found[2]]}\n\n{found[3]}"

    return re.sub(r"(<!-- account: (.+?) -->)\n.*?(<!-- end -->)", replaced, page, flags=re.DOTALL)
