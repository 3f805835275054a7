"""What CD-VAE's training against white-box attacks shows on MNIST: `python bench/cdvae_white_box.py --data-dir DATA`.

Trains G with D and a classifier of clean images, then from these mnist-cdvae-adv on a part of the training images, and
makes the table of the part white-box of it: six attacks, by the mean of the code and by draws of it with gradients of
20 passes. What is done already is not done again: an interrupted call goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import robustfast
from robustfast.evaluation.cdvae import PARTS
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.evaluation.reduced_data import reduced_data
from robustfast.training.checkpoint import write_durably
from robustfast.training.config import TrainConfig
from robustfast.training.fit import fit, resume
from robustfast.training.presets import PRESETS

RESULTS = Path(__file__).parent / "results" / "runs"
COMMON: dict[str, Any] = {
    "model": "narrow_resnet",
    "channels_last": True,
    "threads": 1,
    "tensorboard": False,
    "device": "cpu",
}


def configs(work: Path, data: Path, train_images: int) -> dict[str, TrainConfig]:
    """The runs by their folder's name, each behind those that it starts from."""
    few = reduced_data("mnist", data, work / "data", train=train_images, test=10_000)
    clean = PRESETS["mnist-cdvae"]
    hardened = PRESETS["mnist-cdvae-adv"]
    return {
        # G(x) has to keep the class: gamma as for the paper's defence.
        "cdvae": replace(
            clean, epochs=2, objective=replace(clean.objective, gamma=0.002), data_dir=data, **COMMON
        ),
        "x": replace(PRESETS["mnist-cdvae-x"], epochs=2, data_dir=data, **COMMON),
        "adv": replace(
            hardened,
            epochs=3,
            lr=0.5,
            attack=replace(hardened.attack, steps=5, ramp=0.3),
            start_from=(str(work / "cdvae"), f"classifier_g={work / 'x'}"),
            validate_images=64,
            data_dir=few,
            **COMMON,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/cdvae-white-box"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--images", type=int, default=40, help="test images that are attacked")
    parser.add_argument("--train-images", type=int, default=5120, help="images that are trained on")
    parser.add_argument("--steps", type=int, help="of the attacks at most, to try this script; they have 100")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    for name, config in configs(work, arguments.data_dir, arguments.train_images).items():
        if not (work / name / "config.json").exists():
            fit(replace(config, out=work / name))
        else:
            resume(work / name)
    request = Request(parts=("white-box",), images=arguments.images, steps=arguments.steps, device="cpu")
    found = evaluate_parts(work / "adv", "cdvae", PARTS, request)
    started = {name: json.loads((work / name / "config.json").read_text()) for name in ("cdvae", "x", "adv")}
    lines = (work / "adv" / "metrics.jsonl").read_text().splitlines()
    steps = "" if arguments.steps is None else f" --steps {arguments.steps}"
    document = {
        "command": f"python bench/cdvae_white_box.py --data-dir DATA --images {arguments.images} "
        f"--train-images {arguments.train_images}{steps}",
        "note": f"adv is trained on {arguments.train_images} training images and attacked on {arguments.images} test "
        f"images, spread evenly over their splits; one thread, beside other processes",
        "images": found["images"],
        "most_steps": arguments.steps,
        "robustfast": robustfast.__version__,
        "run": {name: started["adv"][name] for name in ("commit", "started", "hardware")},
        # But for folders of the machine.
        "configs": {
            name: {
                key: value for key, value in run["config"].items() if key not in ("data_dir", "start_from")
            }
            for name, run in started.items()
        },
        "epochs": [json.loads(line) for line in lines],
        "white-box": found["parts"]["white-box"]["numbers"],
    }
    path = arguments.out / "mnist-cdvae-adv-white-box.json"
    text = json.dumps(document, indent=1) + "\n"
    write_durably(path, lambda file: file.write(text.encode()))
    print(f"written: {path}", flush=True)


if __name__ == "__main__":
    main()
