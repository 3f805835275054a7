"""CD-VAE as far as the time goes, and its detection table beside the paper's: `python bench/cdvae.py --minutes 15`.

Times a few steps, trains the auto-encoder with D and the plain classifier D-hat for as many epochs as fit into the time
(the schedule is that of a run of this length), and evaluates: how images split, what an attack changes of the parts,
and what detectors see of it on x and on x - G(x). One JSON, written after each of these.

Without the data set only the steps are timed, on random images, and the file says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from games import WARM_UP, measured
from hardware import ROOT, hardware
from rich.console import Console

from robustfast.data import load
from robustfast.errors import UserError
from robustfast.evaluation.papers import ITEMS
from robustfast.evaluation.papers.part_tables import PartTable
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.evaluation.protocols import PROTOCOLS
from robustfast.evaluation.tables import comparison_table
from robustfast.training.checkpoint import write_durably
from robustfast.training.config import TrainConfig, to_json
from robustfast.training.fit import data_folder, fit
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import resolve_device

PARTS = ("reconstruction", "norms", "detection")
SHARES = {"cdvae": 0.6, "cdvae-x": 0.25}
"""Of the time, by method; what is left is for the evaluation."""


def found_data(config: TrainConfig, given: Path | None, out: Path) -> tuple[Path | None, str]:
    """Folder of the data set and what its figures are to be called; None and why where there is none."""
    folder = data_folder(replace(config, data_dir=given))
    try:
        load(config.dataset, "test", folder)
    except UserError as error:
        reason = str(error)
    else:
        return folder, config.dataset
    packed = Path(os.environ.get("ROBUSTFAST_TEST_DATA") or ROOT.parent / "shared" / "data")
    if given is not None or config.dataset != "cifar10" or not (packed / "unpack.py").exists():
        return None, reason
    folder = out.parent / "data"
    done = subprocess.run(
        [sys.executable, packed / "unpack.py", folder, "cifar10"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None, f"{reason}; {packed / 'unpack.py'} failed: {done.stderr.strip().splitlines()[-1:]}"
    return folder, "CIFAR-10 (JPEG)"


def epochs_in(seconds: float, epoch: float, most: int) -> int:
    """How many epochs of so many seconds fit, at least one and at most those of the preset."""
    return max(1, min(most, int(seconds / epoch)))


def trained(config: TrainConfig) -> dict[str, Any]:
    """Train a run to its end; its length and the seconds of its epochs."""
    path = fit(config)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {
        "preset": config.preset,
        "epochs": len(lines),
        # The first one pays for what is compiled and chosen.
        "epoch_seconds": [line["seconds"] for line in lines],
        "images_per_second": [line["images_per_second"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "natural": lines[-1].get("natural"),
        "config": to_json(config),
    }


def detection(document: dict[str, Any], family: str, console: Console) -> dict[str, Any]:
    """The table of detection, beside the paper's for the data that it has it of."""
    table = ITEMS["cdvae-table4"]
    assert isinstance(table, PartTable)
    if family != "cifar10":
        rows = {name: replace(row, printed={}) for name, row in table.rows.items()}
        table = replace(table, rows=rows, title=f"Detection on {family}")
    comparison = table.result(None, {"cdvae": document}, Path()).comparison
    assert comparison is not None
    console.print(comparison_table(comparison))
    return comparison.as_json()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="cifar10", help="of the presets FAMILY-cdvae and FAMILY-cdvae-x")
    parser.add_argument("--minutes", type=float, default=15.0, help="for training and evaluation together")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--images", type=int, default=2000, help="test images of the evaluation")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, help="JSON file; without it cdvae-DEVICE.json in bench/results")
    options = parser.parse_args()
    console = Console(highlight=False)
    device = resolve_device(options.device)
    out = (options.out or ROOT / "bench" / "results" / f"cdvae-{device.type}.json").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"hardware": hardware(device), "minutes": options.minutes}

    def keep(**values: Any) -> None:
        report.update(values)
        text = json.dumps(report, indent=1) + "\n"
        write_durably(out, lambda file: file.write(text.encode()))

    presets = {method: f"{options.family}-{method}" for method in SHARES}
    timed = {
        method: measured(preset, presets["cdvae"], device, options) for method, preset in presets.items()
    }
    keep(timed=timed, timed_on="random images", warm_up=WARM_UP)
    folder, name = found_data(PRESETS[presets["cdvae"]], options.data_dir, out)
    keep(data=name)
    if folder is None:
        console.print(f"no run: {name}", markup=False, soft_wrap=True)
        for row in timed.values():
            console.print(f"{row['preset']}: {row['epoch_seconds']:.2f} s/epoch on random images")
        return 0
    # A run folder is never written over.
    work = out.parent / f"{out.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    runs = {}
    for method, share in SHARES.items():
        preset = PRESETS[presets[method]]
        epochs = epochs_in(60 * options.minutes * share, timed[method]["epoch_seconds"], preset.epochs)
        config = replace(
            preset,
            epochs=epochs,
            milestones=(),
            precision=options.precision,
            channels_last=options.channels_last,
            device=device.type,
            data_dir=folder,
            validate_every=epochs,
            out=work / method,
        )
        runs[method] = trained(config)
        runs[method]["config"]["data_dir"] = None
        keep(runs=runs)
    request = Request(
        PARTS,
        images=min(options.images, len(load(preset.dataset, "test", folder))),
        device=device.type,
        source=str(work / "cdvae-x"),
        data_dir=folder,
    )
    began = time.monotonic()
    document = evaluate_parts(work / "cdvae", "cdvae", PROTOCOLS["cdvae"], request, console=console)
    keep(
        evaluation_seconds=time.monotonic() - began,
        images=document["images"],
        parts={name: document["parts"][name]["numbers"] for name in PARTS},
        detection=detection(document, options.family, console),
    )
    console.print(f"written: {out}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
