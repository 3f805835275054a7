"""Record what AutoAttack's FAB does step by step: `python tests/attacks/recorded/record_fab.py FOLDER COMMIT`.

FOLDER is a checkout of github.com/fra31/auto-attack, COMMIT the one it is at. Its `.float()` gives float64 meanwhile.
One restart starts at the images themselves; that the later ones draw is left out. Writes fab.json beside this file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from closed_form import images, network
from torch import Tensor

HERE = Path(__file__).parent
STEPS, CLASSES = 12, 3
# Some samples lie nearer to a boundary, some do not.
EPS = {"Linf": 0.03, "L2": 0.1, "L1": 0.3}


def numbers(images: Tensor) -> list[list[float]]:
    """Two sums over each image, of different weights: enough to tell images apart."""
    flat = images.flatten(1)
    k = torch.arange(flat.shape[1], dtype=torch.float64)
    sums = torch.stack([flat @ torch.sin(0.7 + 1.9 * k), flat @ torch.cos(0.3 + 0.9 * k)], dim=1)
    return [[float(f"{v:.9g}") for v in row] for row in sums.tolist()]


def record(norm: str, targeted: bool) -> dict[str, Any]:
    from autoattack.fab_pt import FABAttack_PT

    net, (x, y) = network(), images()
    visited: list[Tensor] = []

    def predict(points: Tensor) -> Tensor:
        if not (visited and torch.equal(visited[-1], points)):
            visited.append(points.detach().clone())
        return net(points)

    attack = FABAttack_PT(
        predict,
        norm=norm,
        n_iter=STEPS,
        eps=EPS[norm],
        targeted=targeted,
        n_target_classes=CLASSES,
        device="cpu",
    )
    attack.target_class = 2
    with torch.no_grad():
        nearest = attack.attack_single_run(x, y, is_targeted=targeted)
        seen = list(visited)
        within = attack.perturb(x, y)
    return {
        "norm": norm.lower(),
        "targeted": targeted,
        "eps": EPS[norm],
        # Every batch of images the model was run on, one repeated at once only once.
        "visited": [numbers(points) for points in seen],
        "nearest": numbers(nearest),
        "within": numbers(within),
        "robust": (net(within).argmax(1) == y).tolist(),
    }


def main() -> None:
    folder, commit = sys.argv[1:]
    sys.path.insert(0, folder)
    Tensor.float = Tensor.double
    torch.set_default_dtype(torch.float64)
    cases = []
    for norm in EPS:
        for targeted in (False, True):
            cases.append(record(norm, targeted))
            print(norm, targeted, cases[-1]["robust"], len(cases[-1]["visited"]))
    document = {
        "package": "github.com/fra31/auto-attack",
        "commit": commit,
        "torch": torch.__version__,
        "steps": STEPS,
        "n_target_classes": CLASSES,
        "cases": cases,
    }
    text = json.dumps(document, separators=(",", ":")).replace("{", "\n{")
    (HERE / "fab.json").write_text(text.lstrip() + "\n")


if __name__ == "__main__":
    main()
