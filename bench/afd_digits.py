"""AFD beside its baselines on the digits, over seeds: `python bench/afd_digits.py`, 15 runs of a minute of one core.

Trains nt, at, trades, dcgan and wgan at their presets and measures on all test images: accuracy, accuracy under PGD
(linf, the training radius), how far PGD moves the features, how many units they use and how many principal components
they fill; then says which of the paper's effects show. Stopped and started again with the same --work it keeps the runs
that are done, so several processes may share them out by --seeds and a last one put them together. A run's time is
given by the clock and in seconds of the processor, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from hardware import hardware
from rich.console import Console

from robustfast.attacks import PGD, AutoAttack
from robustfast.data import load
from robustfast.evaluation.afd.dimensions import principal_components, used_units
from robustfast.evaluation.afd.sensitivity import moved
from robustfast.evaluation.features import collect
from robustfast.training import fit as training
from robustfast.training.checkpoint import write_durably
from robustfast.training.config import to_json
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run

RESULTS = Path(__file__).parent / "results" / "runs" / "digits-afd.json"
METHODS = ("nt", "at", "trades", "dcgan", "wgan")
FILE = "measured.json"
STEPS = 40

# Points of accuracy under PGD that AFD-WGAN is to gain over natural training.
GAIN = 0.30


def run(folder: Path, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one run, or read what it came to."""
    config = replace(
        PRESETS[f"digits-afd-{method}"],
        seed=seed,
        out=folder,
        device="cpu",
        validate_every=0,
        tensorboard=False,
        **({} if options.epochs is None else {"epochs": options.epochs}),
    )
    if not (folder / FILE).exists():
        clock, processor = time.perf_counter(), time.process_time()
        training.resume(folder) if (folder / "config.json").exists() else training.fit(config)
        spent = {
            "seconds": time.perf_counter() - clock,
            "processor_seconds": time.process_time() - processor,
        }
        write(folder / FILE, {"seed": seed, **spent, **measure(folder)})
    found = json.loads((folder / FILE).read_text())
    if not options.autoattack:
        found.pop("autoattack", None)
    elif found.get("autoattack", {}).get("images") != options.autoattack:
        found["autoattack"] = withstood(folder, options.autoattack)
        write(folder / FILE, found)
    return found


def measure(folder: Path) -> dict[str, Any]:
    """What the trained network does; accuracies as fractions."""
    trained = load_run(folder)
    model, eps = trained.model.eval(), trained.config.attack.eps
    split = load("digits", "test", None)
    x, y = split.images.float() / split.scale, split.labels
    batches = [(x, y, torch.arange(len(y)))]
    pgd = PGD(model.way("r"), eps=eps, step_size=eps / 10, steps=STEPS, seed=1)
    clean = collect(model.features, batches, model=model.way("r"))
    attacked = collect(model.features, batches, attack=pgd, model=model.way("r"))
    return {
        "clean": clean.accuracy,
        "pgd": attacked.accuracy,
        "sensitivity": asdict(moved(clean.values, attacked.values)),
        "units": used_units(clean.values),
        "dimensions": principal_components(clean.values),
    }


def withstood(folder: Path, images: int) -> dict[str, Any]:
    """Accuracy under AutoAttack, on so many test images spread over the split."""
    trained = load_run(folder)
    model, split = trained.model.eval(), load("digits", "test", None)
    some = torch.arange(images) * len(split) // images
    x, y = split.images[some].float() / split.scale, split.labels[some]
    x_adv = AutoAttack(model.way("r"), eps=trained.config.attack.eps, seed=1, flags=False)(x, y, some)
    with torch.no_grad():
        accuracy = (model(x_adv).argmax(1) == y).double().mean().item()
    return {"images": images, "accuracy": accuracy}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (of the sample) of each number."""
    names = [name for name, value in rows[0].items() if isinstance(value, int | float) and name != "seed"]
    values = {name: [row[name] for row in rows] for name in names}
    values["sensitivity"] = [row["sensitivity"]["median"] for row in rows]
    if all("autoattack" in row for row in rows):
        values["autoattack"] = [row["autoattack"]["accuracy"] for row in rows]
    return {
        name: {
            "mean": statistics.mean(found),
            "sd": statistics.stdev(found) if len(found) > 1 else 0.0,
        }
        for name, found in values.items()
    }


def effects(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The paper's effects: what is compared, seed by seed, and whether it shows in each of them."""

    def compare(one: str, other: str, value: Any, shows: Any) -> dict[str, Any]:
        pairs = [[value(mine), value(theirs)] for mine, theirs in zip(rows[one], rows[other], strict=True)]
        return {"of": [one, other], "seeds": pairs, "shows": all(shows(*pair) for pair in pairs)}

    found = {}
    for method in ("wgan", "dcgan"):
        if method in rows and "nt" in rows:
            found[f"{method}: accuracy under PGD"] = compare(
                method, "nt", lambda row: row["pgd"], lambda mine, theirs: mine - theirs >= GAIN
            )
            found[f"{method}: dimensions"] = compare(
                method, "nt", lambda row: row["dimensions"], lambda mine, theirs: mine < theirs
            )
        if method in rows and "at" in rows:
            found[f"{method}: sensitivity"] = compare(
                method, "at", lambda row: row["sensitivity"]["median"], lambda mine, theirs: mine < theirs
            )
    return found


def write(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_durably(path, lambda file: file.write(text.encode()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/afd-digits"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--autoattack",
        type=int,
        default=0,
        help="also AutoAttack, on so many test images",
    )
    parser.add_argument("--epochs", type=int, help="instead of the preset's, to try this script")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in options.methods}
    for seed in options.seeds:
        for method in options.methods:
            rows[method].append(run(options.work / f"{method}-seed{seed}", method, seed, options))
            Console().print(f"seed {seed}, {method}: {rows[method][-1]}")
    stored = load_run(options.work / f"{options.methods[0]}-seed{options.seeds[0]}").config
    means = {method: summary(found) for method, found in rows.items()}
    result = {
        "command": "python bench/afd_digits.py"
        + (f" --autoattack {options.autoattack}" if options.autoattack else ""),
        "hardware": hardware(torch.device("cpu")),
        "pgd": {
            "norm": "linf",
            "eps": stored.attack.eps,
            "steps": STEPS,
            "step_size": stored.attack.eps / 10,
        },
        "images": len(load("digits", "test", None).labels),
        "configs": {
            method: {
                name: value
                for name, value in to_json(PRESETS[f"digits-afd-{method}"]).items()
                if name != "seed"
            }
            for method in options.methods
        },
        "runs": rows,
        "summary": means,
        "effects": effects(rows),
    }
    write(options.out, result)
    for method, found in means.items():
        shown = ", ".join(f"{name} {v['mean']:.4g} +- {v['sd']:.2g}" for name, v in found.items())
        Console().print(f"{method}: {shown}")
    for name, effect in result["effects"].items():
        Console().print(f"{name}: {'shows' if effect['shows'] else 'does not show'} ({effect['seeds']})")


if __name__ == "__main__":
    main()
