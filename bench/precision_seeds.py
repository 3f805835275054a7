"""Robust accuracy over seeds in two precisions: `python bench/precision_seeds.py`, 6 runs of 80 s on an idle CPU.

Trains digits-aatpp in float32 and in bf16 with channels-last, evaluates all runs in float32 by the AAT protocol, and
writes the accuracies, their means and standard deviations, and whether the ranges of one standard deviation about the
means overlap, "robust_overlap" for the robust way under attack. Stopped and started again with the same --work it keeps
the runs that are done.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from robustfast.evaluation.aat import FILE, evaluate_run
from robustfast.training.checkpoint import write_durably
from robustfast.training.fit import fit, resume
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import resolve_device

RESULTS = Path(__file__).parent / "results" / "precision-digits.json"

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 channels-last": {"precision": "bf16", "channels_last": True},
}

NUMBERS = ("natural.s", "natural.r", "natural.n", "adversarial.r", "adversarial.n")


def run(
    folder: Path, seed: int, fields: dict[str, Any], epochs: int | None, device: str = "cpu"
) -> dict[str, float]:
    """Train and evaluate one run, or read what it came to; accuracies as fractions."""
    config = replace(
        PRESETS["digits-aatpp"],
        seed=seed,
        out=folder,
        device=device,
        validate_every=0,
        tensorboard=False,
        **fields,
    )
    if epochs is not None:
        config = replace(config, epochs=epochs)
    if not (folder / FILE).exists():
        resume(folder) if (folder / "config.json").exists() else fit(config)
        evaluate_run(folder, device=device, console=Console(quiet=True))
    document = json.loads((folder / FILE).read_text())
    return {name: document[kind][way] for name in NUMBERS for kind, way in [name.split(".")]}


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (of the sample) of each number."""
    return {
        name: {
            "mean": statistics.mean(row[name] for row in rows),
            "sd": statistics.stdev(row[name] for row in rows) if len(rows) > 1 else 0.0,
        }
        for name in NUMBERS
    }


def overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether mean +- 1 sd of both have numbers in common."""
    return abs(one["mean"] - other["mean"]) <= one["sd"] + other["sd"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/precision"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="the JSON; without it precision-digits[-cuda].json")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of the preset's, to try this script")
    arguments = parser.parse_args()
    on_gpu = resolve_device(arguments.device).type == "cuda"
    out = arguments.out or (RESULTS.with_name("precision-digits-cuda.json") if on_gpu else RESULTS)
    out.parent.mkdir(parents=True, exist_ok=True)

    rows: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for seed in arguments.seeds:
        for name, fields in VARIANTS.items():
            folder = arguments.work / f"{name.replace(' ', '-')}-seed{seed}"
            rows[name].append(run(folder, seed, fields, arguments.epochs, arguments.device))
            print(f"seed {seed}, {name}: {rows[name][-1]}", flush=True)

    stored = json.loads((folder / "config.json").read_text())
    means = {name: summary(found) for name, found in rows.items()}
    first, second = means.values()
    result = {
        "command": "python bench/precision_seeds.py",
        "robustfast": stored["robustfast"],
        "commit": stored["commit"],
        "hardware": stored["hardware"] | {"system": platform.system()},
        "config": {
            k: v for k, v in stored["config"].items() if k not in ("seed", "precision", "channels_last")
        },
        "variants": {name: {"precision": "fp32", "channels_last": False} | v for name, v in VARIANTS.items()},
        "accuracy": {
            name: [{"seed": s} | row for s, row in zip(arguments.seeds, found, strict=True)]
            for name, found in rows.items()
        },
        "summary": means,
        "overlap": {name: overlap(first[name], second[name]) for name in NUMBERS},
        "robust_overlap": overlap(first["adversarial.r"], second["adversarial.r"]),
    }
    text = json.dumps(result, indent=1) + "\n"
    write_durably(out, lambda file: file.write(text.encode()))
    for name in NUMBERS:
        shown = ", ".join(f"{v} {m[name]['mean']:.2%} +- {m[name]['sd']:.2%}" for v, m in means.items())
        print(f"{name}: {shown}{'' if result['overlap'][name] else ', apart'}")


if __name__ == "__main__":
    main()
