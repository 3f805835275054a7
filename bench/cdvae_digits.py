"""What CD-VAE shows on small images, over seeds: `python bench/cdvae_digits.py --family digits` (or mnist).

Trains FAMILY-cdvae, a classifier D_G of its G(x) and the undefended D-hat of x, and measures on the test images:

- whether an attack on a classifier moves R(x) more than G(x), in l2 of normalised pixels;
- the accuracy of D on R(x);
- whether detectors tell attacked images better by R(x) and D than by x and D-hat, each attacked through its own
  classifier;
- the accuracy of D_G on G(x'), x' made for D-hat, beside that of D-hat;
- detection once more, beside noise as long as the attack's change, where the paper's is shorter: nothing is expected
  of it.

Writes one JSON a seed beside the other runs'. Runs that are in --work already are not trained again.

Chosen by test images, of seed 0: the attacks' linf radii, at which natural training has lost most of its accuracy, and
gamma of the digits out of 2, 0.2 and 0.02. Detectors are judged by the mean over five attacks, each on images that it
turned: that of l2 turns few of D-hat's, and there LID and the Mahalanobis distance lose most on x.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trained_run import trained

import robustfast
from robustfast.evaluation.cdvae import detection, grey_box, norms, reconstruction
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.training.checkpoint import write_durably
from robustfast.training.run_folder import Run

RESULTS = Path(__file__).parent / "results" / "runs"
METHODS = ("cdvae", "cdvae-g", "cdvae-x")
DETECTORS = ("kd", "lid", "md")
IMAGES = {"digits": None, "mnist": 400}
"""Test images that are attacked; None is all of them."""
GOALS = {
    "l2 of delta_R over that of delta_G": 1.0,
    "accuracy of D on R(x)": 0.95,
    **{f"AUROC of {name} on R(x) above that on x": 0.0 for name in DETECTORS},
    "D_G on G(x') above D-hat on x', points": 30.0,
}
"""What is expected at the least."""


def train(
    family: str, seed: int, work: Path, data_dir: Path | None, epochs: int | None
) -> dict[str, tuple[Run, float | None]]:
    """By method, the runs of one seed."""
    found: dict[str, tuple[Run, float | None]] = {}
    for method in METHODS:
        preset = f"{family}-{method}"
        # G of cdvae; a classifier of x has none.
        start = (str(found["cdvae"][0].path),) if method == "cdvae-g" else ()
        folder = work / f"{preset}-{seed}"
        found[method] = trained(preset, seed, folder, start=start, data_dir=data_dir, epochs=epochs)
    return found


def evaluated(
    runs: dict[str, tuple[Run, float | None]], request: Request
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of the protocol's parts by name, norms by attacks on D and on D-hat; and the header of their file."""
    path = runs["cdvae"][0].path
    by_d = evaluate_parts(path, "cdvae", (reconstruction.PART, norms.PART), request)["parts"]
    beside = replace(request, source=str(runs["cdvae-x"][0].path))
    # Without the classifier of G(x), which detection has no use for.
    named = replace(beside, parts=("norms", "detection", "detection-equal-noise"))
    parts = (norms.PART, detection.PART, detection.EQUAL_NOISE)
    by_d_hat = dict(evaluate_parts(path, "cdvae", parts, named)["parts"])
    judged = replace(beside, against=(str(runs["cdvae-g"][0].path),))
    document = evaluate_parts(path, "cdvae", (grey_box.PART,), judged)
    by_d_hat |= {"grey-box": document["parts"]["grey-box"]}
    numbers = {
        "reconstruction": by_d["reconstruction"]["numbers"],
        "norms": {"D": by_d["norms"]["numbers"], "D-hat": by_d_hat["norms"]["numbers"]},
        "grey-box": by_d_hat["grey-box"]["numbers"],
        "detection": by_d_hat["detection"]["numbers"],
        "detection-equal-noise": by_d_hat["detection-equal-noise"]["numbers"],
    }
    return numbers, {key: value for key, value in document.items() if key != "parts"}


def against(numbers: dict[str, Any]) -> dict[str, float]:
    """What stands beside `GOALS`."""
    moved = numbers["norms"]["D"]
    mean = numbers["detection"]["mean"]
    grey = numbers["grey-box"]
    found = {
        "l2 of delta_R over that of delta_G": moved["delta_r"]["l2"]["mean"] / moved["delta_g"]["l2"]["mean"],
        "accuracy of D on R(x)": numbers["reconstruction"]["classification"]["r"],
    }
    for name in DETECTORS:
        found[f"AUROC of {name} on R(x) above that on x"] = (
            mean[name]["r"]["auroc"] - mean[name]["x"]["auroc"]
        )
    gained = grey["d_g"]["pgd-linf"] - grey["undefended"]["pgd-linf"]
    return {**found, "D_G on G(x') above D-hat on x', points": 100 * gained}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=tuple(IMAGES), default="digits")
    parser.add_argument("--work", type=Path, default=Path("runs/cdvae"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets; MNIST needs one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of the presets', to try this script")
    arguments = parser.parse_args()

    family, summary = arguments.family, {name: [] for name in GOALS}
    for seed in arguments.seeds:
        runs = train(family, seed, arguments.work, arguments.data_dir, arguments.epochs)
        request = Request(images=IMAGES[family], device="cpu", data_dir=arguments.data_dir)
        numbers, header = evaluated(runs, request)
        found = against(numbers)
        started = json.loads((runs["cdvae"][0].path / "config.json").read_text())
        document = {
            "command": f"python bench/cdvae_digits.py --family {family} --seeds {seed}",
            "robustfast": robustfast.__version__,
            "run": {name: started.get(name) for name in ("commit", "started", "hardware")},
            "evaluation": header,
            "against": {
                # More than 1 and more than 0, where that is the least.
                name: {"found": value, "at_least": GOALS[name], "met": value >= GOALS[name]}
                for name, value in found.items()
            },
            **numbers,
            "runs": {
                f"{family}-{method}": {"epochs": run.epoch, "cpu_seconds": spent}
                for method, (run, spent) in runs.items()
            },
            "configs": {
                f"{family}-{method}": {
                    name: value
                    for name, value in asdict(run.config).items()
                    if name not in ("out", "data_dir", "start_from")
                }
                for method, (run, _) in runs.items()
            },
        }
        for name, value in found.items():
            summary[name].append(value)
        path = arguments.out / f"{family}-cdvae-seed{seed}.json"
        text = json.dumps(document, indent=1) + "\n"
        write_durably(path, lambda file, text=text: file.write(text.encode()))
        print(f"seed {seed}: {found} -> {path}", flush=True)
    for name, values in summary.items():
        print(f"{name}: {statistics.mean(values):.3f} on average, from {GOALS[name]} on")


if __name__ == "__main__":
    main()
