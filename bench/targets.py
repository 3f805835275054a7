"""What was asked for and what was found: `python bench/targets.py [FOLDER]`, the folder that `bench/gpu.py` wrote into.

Each target is a row {demand, wanted, found, verdict}, its verdict "met", "missed" or "not measured", read from what the
stages wrote. What is absent, cut short or no JSON makes a row "not measured" and says why; it never stops the others.
Needs the standard library alone.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LARGEST = 4 << 20  # bytes of a file that goes into the report
ABSOLUTE = "H200"  # the device that seconds and microseconds are wanted on
TOOLS = ("memcheck", "racecheck", "initcheck")  # of compute-sanitizer, that are asked for
AT_LEAST, AT_MOST = ">=", "<="


class NotMeasuredError(Exception):
    """Why there is no figure."""


def collect(folder: Path) -> dict[str, Any]:
    """All that the stages wrote: "benches" maps "OP CASE" to what its newest run found, every other file its content.

    Of a file that is no JSON there is {"unreadable": why}.
    """
    found: dict[str, Any] = {"benches": {}}
    files = [path for path in folder.rglob("*.json") if path.name != "report.json"]
    for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        try:
            if path.stat().st_size > LARGEST and path.parent == folder:
                raise ValueError(f"{path.stat().st_size} bytes")
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            if path.parent == folder:
                found[path.name] = {"unreadable": str(error)}
            continue
        if isinstance(content, dict) and isinstance(content.get("benchmarks"), list):
            for bench in content["benchmarks"]:
                info = bench.get("extra_info") if isinstance(bench, dict) else None
                if isinstance(info, dict) and "seconds" in info:
                    found["benches"][f"{info.get('op')} {info.get('case')}"] = info
        elif path.parent == folder:
            found[path.name] = content
    return found


class Results:
    """What the stages wrote, asked for by name; what is not there raises `NotMeasuredError`."""

    def __init__(self, results: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
        self.results, self.stages = results, stages

    def file(self, name: str) -> Any:
        if name not in self.results:
            raise NotMeasuredError(f"no {name}")
        content = self.results[name]
        if isinstance(content, dict) and "unreadable" in content:
            raise NotMeasuredError(f"{name} cannot be read: {content['unreadable']}")
        return content

    def bench(self, case: str, op: str = "pgd_step") -> Any:
        try:
            return self.results["benches"][f"{op} {case}"]
        except KeyError:
            raise NotMeasuredError(f"no bench of {op} {case}") from None

    def case(self, method: str, batch: int, model: str = "preact_resnet18") -> Any:
        for case in self.file("ablation.json")["cases"]:
            if (case["model"], case["method"], case["batch"]) == (model, method, batch):
                return case
        raise NotMeasuredError(f"ablation.json has no {model} {method} at batch {batch}")

    def speed(self, method: str, rival: str, batch: int = 128) -> float:
        """How many times as long as ours a variant of a step takes; by turns with it where that was measured."""
        case = self.case(method, batch)
        if rival in case.get("ratio", {}):
            return number(case["ratio"][rival])
        for variant in (rival, "ours"):
            if variant not in case["seconds"]:
                raise NotMeasuredError(f"{variant}: {case.get('not_run', {}).get(variant, 'not measured')}")
        return number(case["seconds"][rival]["median"]) / number(case["seconds"]["ours"]["median"])

    def tests(self, marked: bool) -> tuple[bool, str]:
        """Whether the tests marked gpu, or all others, passed; and their counts."""
        stage = self.stages.get("test")
        if not stage or not stage["commands"]:
            raise NotMeasuredError("stage test did not run")
        for command in stage["commands"]:
            if command["command"].split(" -m ")[-1].startswith("gpu") == marked:
                break
        else:
            raise NotMeasuredError("stage test did not get to them")
        counted = command.get("counts") or {}
        bad = counted.get("failed", 0) + counted.get("error", 0) + counted.get("errors", 0)
        told = ", ".join(f"{count} {what}" for what, count in counted.items()) or "no count"
        if not bad and command["state"] != "passed":
            # A run that was cut short has shown nothing wrong yet, and not that all is right.
            if command["state"] == "failed":
                return False, f"{told}; {command['command'].split()[-1]} failed"
            raise NotMeasuredError(f"{command['state']}: {told}")
        if not bad and not counted.get("passed"):
            raise NotMeasuredError(f"none ran: {told}")
        return not bad, told

    def sanitizer(self) -> tuple[bool, str]:
        report = self.file("sanitize.json")
        runs, tools = report["runs"], report["tools"]
        states = [run["state"] for run in runs]
        bad = [f"{run['tool']} {run['op']}" for run in runs if run["state"] in ("errors", "failed")]
        reasons = dict.fromkeys(
            filter(
                None, (tools[tool]["skipped"] or tools[tool]["planted"] for tool in TOOLS if tool in tools)
            )
        )
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        if bad:
            return False, f"{told}: {', '.join(bad[:4])}"
        lacking = [tool for tool in TOOLS if not any(run["tool"] == tool for run in runs)]
        asked = {run["state"] for run in runs if run["tool"] in TOOLS}
        if reasons or lacking or asked != {"clean"}:
            nothing = [f"nothing ran under {', '.join(lacking)}"] if lacking and not reasons else []
            raise NotMeasuredError("; ".join(filter(None, [*reasons, *nothing, told])))
        return True, told

    def table2(self) -> tuple[bool, str]:
        report = self.file("table2.json")
        rows, data = report["rows"], report.get("data")
        wanted = ("aatpp", "aat", "at", "st")
        lacking = [name for name in wanted if not rows.get(name)]
        if lacking:
            reasons = dict.fromkeys(str(reason) for reason in report.get("not_run", {}).values())
            raise NotMeasuredError(
                f"no row of {', '.join(lacking)}" + "".join(f"; {reason}" for reason in reasons)
            )
        return True, f"{', '.join(wanted)} on {data}, {report.get('epochs')} epochs"

    def epoch(self, name: str) -> float:
        best = self.file(name)["best"]
        if best is None:
            raise NotMeasuredError(f"{name}: no cell was measured")
        return number(best["seconds"])

    def gradient_error(self) -> tuple[bool, str]:
        """The largest error of one bf16 channels-last gradient on the same images, and where."""
        rows = self.file("precision-gradients.json")["rows"]
        errors = {
            f"{row['case']} after {row['steps']} steps": number(error)
            for row in rows
            for name, error in row["pass"].items()
            if name == "bf16 channels-last"
        }
        if not errors:
            raise NotMeasuredError("precision-gradients.json has no rows")
        worst = max(errors, key=errors.__getitem__)
        return errors[worst] < 0.2, f"{errors[worst]:.3f} ({worst})"

    def seeds(self) -> tuple[bool, str]:
        report = self.file("precision-digits.json")
        means = " and ".join(
            f"{name} {100 * number(found['adversarial.r']['mean']):.2f} +- "
            f"{100 * number(found['adversarial.r']['sd']):.2f} %"
            for name, found in report["summary"].items()
        )
        return bool(report["overlap"]["adversarial.r"]), means


def number(value: Any) -> float:
    """A finite number; NaN and infinity are no measurement."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NotMeasuredError(f"{value!r} is no number")
    return float(value)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def times(value: float) -> str:
    return f"{value:.2f}x"


def micro(value: float) -> str:
    return f"{value * 1e6:.2f} us"


def seconds(value: float) -> str:
    return f"{value:.2f} s"


LARGE, SMALL = "256x3x224x224", "128x3x32x32"
# Demand, how it is compared with what number, how numbers are written, and where the number is.
NUMBERS: tuple[tuple[str, str, float, Callable[[float], str], Callable[[Results], float]], ...] = (
    (
        f"pgd_step linf {LARGE}, of the copy bandwidth",
        AT_LEAST,
        0.85,
        percent,
        lambda r: number(r.bench(f"{LARGE}-linf")["share_of_copy"]),
    ),
    (
        f"pgd_step l2 {LARGE}, of the copy bandwidth",
        AT_LEAST,
        0.75,
        percent,
        lambda r: number(r.bench(f"{LARGE}-l2")["share_of_copy"]),
    ),
    (
        f"pgd_step linf {SMALL}, inside a graph",
        AT_MOST,
        3e-6,
        micro,
        lambda r: number(r.bench(f"{SMALL}-linf")["in_graph_seconds"]),
    ),
    (
        f"pgd_step {LARGE}, against the compiled reference (the less of linf and l2)",
        AT_LEAST,
        1.2,
        times,
        lambda r: min(number(r.bench(f"{LARGE}-{norm}")["ratio"]["compiled"]) for norm in ("linf", "l2")),
    ),
    (
        "AT step, PreAct-ResNet18, batch 128, against the code people write",
        AT_LEAST,
        5,
        times,
        lambda r: r.speed("at", "people"),
    ),
    (
        "AT step, against the same code at our precision and layout",
        AT_LEAST,
        1.6,
        times,
        lambda r: r.speed("at", "reference"),
    ),
    ("AAT step, likewise", AT_LEAST, 1.8, times, lambda r: r.speed("aat", "reference")),
    ("AAT++ step, likewise", AT_LEAST, 1.7, times, lambda r: r.speed("aatpp", "reference")),
    (
        "AT step as one graph, against the same kernels launched one by one",
        AT_LEAST,
        1.5,
        times,
        lambda r: r.speed("at", "without whole-step"),
    ),
    (
        "AT step at batch 512, minimal FLOPs over the measured matrix peak",
        AT_LEAST,
        0.4,
        percent,
        lambda r: number(r.case("at", 512)["share_of_matrix_peak"]),
    ),
    (
        "epoch of PGD-10 AT, PreAct-ResNet18, 50,000 images",
        AT_MOST,
        4.5,
        seconds,
        lambda r: r.epoch("epoch.json"),
    ),
    (
        "epoch of PGD-10 AT, WRN-34-10, 50,000 images",
        AT_MOST,
        55,
        seconds,
        lambda r: r.epoch("epoch-wrn.json"),
    ),
)
# Demand, what is wanted, and whether it is so with what was found.
FACTS: tuple[tuple[str, str, Callable[[Results], tuple[bool, str]]], ...] = (
    ("tests that need a GPU", "all pass", lambda r: r.tests(marked=True)),
    ("all other tests, on this machine", "all pass", lambda r: r.tests(marked=False)),
    ("compute-sanitizer over every kernel", "clean", lambda r: r.sanitizer()),
    ("AAT's table 2 on a shortened schedule", "four rows beside the paper's", lambda r: r.table2()),
    ("error of one bf16 gradient, the largest", "< 0.2", lambda r: r.gradient_error()),
    ("robust accuracy of bf16 and float32 over seeds", "ranges overlap", lambda r: r.seeds()),
)


def verdicts(results: Mapping[str, Any], stages: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each target, from what `collect` found and what became of the stages."""
    known = Results(results, stages)

    def row(demand: str, wanted: str, find: Callable[[], tuple[bool, str]]) -> dict[str, str]:
        try:
            met, found = find()
        except NotMeasuredError as why:
            return {"demand": demand, "wanted": wanted, "found": str(why), "verdict": "not measured"}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
            why = f"not in the form expected: {type(error).__name__} {error}"
            return {"demand": demand, "wanted": wanted, "found": why, "verdict": "not measured"}
        return {"demand": demand, "wanted": wanted, "found": found, "verdict": "met" if met else "missed"}

    def compared(
        how: str, limit: float, write: Callable[[float], str], find: Callable[[Results], float]
    ) -> Callable[[], tuple[bool, str]]:
        def result() -> tuple[bool, str]:
            value = find(known)
            return (value >= limit if how == AT_LEAST else value <= limit), write(value)

        return result

    def fact(find: Callable[[Results], tuple[bool, str]]) -> Callable[[], tuple[bool, str]]:
        return lambda: find(known)

    rows = [row(demand, wanted, fact(find)) for demand, wanted, find in FACTS[:3]]
    rows += [
        row(demand, f"{how} {write(limit)}", compared(how, limit, write, find))
        for demand, how, limit, write, find in NUMBERS
    ]
    return rows + [row(demand, wanted, fact(find)) for demand, wanted, find in FACTS[3:]]


def table(rows: list[dict[str, str]], hardware: Mapping[str, Any] | None = None) -> str:
    """The rows as text, at most 40 characters of each cell but the demand's and what was found."""
    device = str((hardware or {}).get("device", "unknown"))
    head = f"targets, on {device}" + ("" if ABSOLUTE in device else f" (they are meant for an {ABSOLUTE})")
    columns = ("demand", "wanted", "found", "verdict")
    cells = [columns, *(tuple(row[column] for column in columns) for row in rows)]
    cells = [(d, w, f if len(f) <= 60 else f"{f[:57]}...", v) for d, w, f, v in cells]
    widths = [max(len(line[place]) for line in cells) for place in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    count = [sum(row["verdict"] == verdict for row in rows) for verdict in ("met", "missed", "not measured")]
    total = f"{count[0]} met, {count[1]} missed, {count[2]} not measured"
    return "\n".join(line.rstrip() for line in ["", head, *lines, total])


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "gpu")
    if not folder.is_dir():
        print(f"error: {folder} is no folder; `make gpu` writes one", file=sys.stderr)
        return 2
    try:
        report = json.loads((folder / "report.json").read_text())
        stages, hardware = dict(report["stages"]), dict(report["hardware"])
    except (OSError, ValueError, KeyError, TypeError):
        stages, hardware = {}, {}
    print(table(verdicts(collect(folder), stages), hardware))
    return 0


if __name__ == "__main__":
    sys.exit(main())
