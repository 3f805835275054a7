"""CD-VAE's table 6 on the digits: `python bench/cdvae_grey_box.py`, some minutes of one core for each seed.

Trains the plain classifier D-hat (digits-cdvae-x), the auto-encoder (digits-cdvae) with D_G on its G(x) (-g), HGD and
APE-GAN before D-hat (-hgd, -ape-gan), AT and TRADES (-at, -trades), attacks D-hat on all test images and has each judge
them; AT and TRADES are also attacked themselves, as in the paper's rows of them. Writes one JSON. Runs that are in
--work already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hardware import hardware
from rich.console import Console
from trained_run import trained

import robustfast
from robustfast.evaluation.cdvae import grey_box
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.training.checkpoint import write_durably
from robustfast.training.run_folder import Run

RESULTS = Path(__file__).parent / "results" / "runs" / "digits-cdvae-grey-box.json"
STARTS = {
    "cdvae-x": None,
    "cdvae": None,
    "cdvae-g": "cdvae",
    "cdvae-hgd": "cdvae-x",
    "cdvae-ape-gan": "cdvae-x",
    "cdvae-at": None,
    "cdvae-trades": None,
}
"""Method to that whose run it starts from, in the order of training."""
BASELINES = ("hgd", "ape-gan", "at", "trades")
ROWS = {
    "Normal": ("cdvae", "undefended"),
    "AT": ("cdvae-at", "own"),
    "AT, attacked itself": ("cdvae-at", "itself"),
    "TRADES": ("cdvae-trades", "own"),
    "TRADES, attacked itself": ("cdvae-trades", "itself"),
    "HGD": ("cdvae-hgd", "own"),
    "APE-GAN": ("cdvae-ape-gan", "own"),
    "CD-VAE, D_G(G(x))": ("cdvae", "d_g"),
    "CD-VAE, D-hat(G(x))": ("cdvae", "d_hat"),
}
"""Row of the table to the method that is evaluated and the row of its numbers."""


def table(
    seed: int, work: Path, epochs: int | None, baselines: Sequence[str]
) -> tuple[dict[str, Any], dict[str, tuple[Run, Any]]]:
    """The numbers by row, with the attacks; and the runs, each with the CPU seconds of its training."""
    runs: dict[str, tuple[Run, Any]] = {}
    judged = ["cdvae", *(f"cdvae-{name}" for name in baselines)]
    for method, start in STARTS.items():
        if method not in (*judged, "cdvae-x", "cdvae-g"):
            continue
        before = () if start is None else (str(runs[start][0].path),)
        folder = work / f"digits-{method}-{seed}"
        runs[method] = trained(f"digits-{method}", seed, folder, start=before, data_dir=None, epochs=epochs)
    numbers: dict[str, Any] = {}
    for method in judged:
        request = Request(
            device="cpu",
            source=str(runs["cdvae-x"][0].path),
            against=(str(runs["cdvae-g"][0].path),) if method == "cdvae" else (),
        )
        document = evaluate_parts(runs[method][0].path, "cdvae", (grey_box.PART,), request)
        numbers[method] = document["parts"][grey_box.PART.name]["numbers"]
    rows = {row: numbers[method][key] for row, (method, key) in ROWS.items() if method in numbers}
    return {"rows": rows, "attacks": numbers["cdvae"]["attacks"]}, runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/cdvae-grey-box"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--baselines", nargs="+", choices=BASELINES, default=BASELINES)
    parser.add_argument("--epochs", type=int, help="instead of the presets', to try this script")
    options = parser.parse_args()
    seeds: dict[int, dict[str, Any]] = {}
    document: dict[str, Any] = {
        "command": f"python bench/cdvae_grey_box.py --seeds {' '.join(map(str, options.seeds))} "
        f"--baselines {' '.join(options.baselines)}",
        "robustfast": robustfast.__version__,
        "hardware": hardware(torch.device("cpu")),
    }
    for seed in options.seeds:
        found, runs = table(seed, options.work, options.epochs, options.baselines)
        started = json.loads((runs["cdvae"][0].path / "config.json").read_text())
        document.setdefault("commit", started.get("commit"))
        document.setdefault("attacks", found["attacks"])
        document.setdefault(
            "configs",
            {
                run.config.preset: {
                    name: value
                    for name, value in asdict(run.config).items()
                    if name not in ("out", "data_dir", "start_from", "seed")
                }
                for run, _ in runs.values()
            },
        )
        seeds[seed] = {
            "rows": found["rows"],
            "runs": {
                run.config.preset: {"epochs": run.epoch, "cpu_seconds": spent} for run, spent in runs.values()
            },
        }
    document["mean"] = {
        row: {
            column: statistics.mean(found["rows"][row][column] for found in seeds.values())
            for column in grey_box.HEADINGS
        }
        for row in next(iter(seeds.values()))["rows"]
    }
    document["seeds"] = {str(seed): found for seed, found in seeds.items()}
    text = json.dumps(document, indent=1) + "\n"
    write_durably(options.out, lambda file: file.write(text.encode()))
    console = Console(highlight=False)
    for row, found in document["mean"].items():
        console.print(f"{row}: " + ", ".join(f"{name} {100 * value:.2f}" for name, value in found.items()))
    console.print(f"written: {options.out}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
