"""Record what AutoAttack's APGD does step by step: `python tests/attacks/recorded/record.py FOLDER COMMIT`.

FOLDER is a checkout of github.com/fra31/auto-attack, COMMIT the one it is at. Its `.float()` gives float64 meanwhile,
so that all but the step sizes and sparsities of l1 runs in float64; the starts are those of `closed_form.start`, and no
draw is left in what is recorded. Writes apgd.json beside this file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from closed_form import images, network, start
from torch import Tensor

HERE = Path(__file__).parent
EPS = {"L1": 0.3, "L2": 0.08}
CASES = [
    ("L1", "ce", 10), ("L1", "ce", 20), ("L1", "ce", 100), ("L1", "dlr", 10), ("L1", "dlr", 20), ("L1", "dlr", 100),
    ("L1", "targeted", 10), ("L1", "targeted", 20), ("L2", "targeted", 10),
]  # fmt: skip


def record(norm: str, loss: str, steps: int) -> dict[str, Any]:
    from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    net, (x, y), rows = network(), images(), []
    point = start(x, EPS[norm])

    def predict(x_adv: Tensor) -> Tensor:
        seen = sys._getframe(1).f_locals
        # At each step's pass the state is that after the step before.
        if "step_size" in seen and "y1" in seen and seen["i"]:
            row = {
                "loss": seen["y1"],
                "loss_best": seen["loss_best"],
                "step_size": seen["step_size"].flatten(),
            }
            if norm == "L1":
                row["sparsity"] = seen["topk"]
            rows.append({name: [float(f"{v:.9g}") for v in value.tolist()] for name, value in row.items()})
        return net(x_adv)

    more = {"use_largereps": norm == "L1", "eps": EPS[norm], "n_iter": steps, "norm": norm}
    if loss == "targeted":
        attack = APGDAttack_targeted(predict, n_target_classes=4, **more)
    else:
        attack = APGDAttack(predict, loss=loss, **more)
    if norm == "L1":
        place = {tuple(image.flatten().tolist()): k for k, image in enumerate(x)}

        def noise(like: Tensor, **_: Any) -> Tensor:
            return torch.stack([point[place[tuple(row.flatten().tolist())]] for row in like]) - like

        torch.randn_like = noise
    else:
        torch.set_default_dtype(torch.float64)
        # The same direction for every sample, whichever are left.
        torch.randn = lambda shape: torch.sin(torch.arange(36.0).double()).reshape(1, 1, 6, 6).expand(shape)
    x_adv = attack.perturb(x, y)
    right = net(x_adv).argmax(1) == y
    moments = [float(f"{v:.9g}") for v in (x_adv - x).flatten(1).square().sum(1).tolist()]
    return {"norm": norm, "loss": loss, "steps": steps, "eps": EPS[norm], "history": rows} | {
        "robust": right.tolist(),
        "moved": moments,
    }


def main() -> None:
    folder, commit = sys.argv[1:]
    sys.path.insert(0, folder)
    Tensor.float = Tensor.double
    draws = torch.randn, torch.randn_like
    cases = []
    for case in CASES:
        with torch.no_grad():
            cases.append(record(*case))
        torch.randn, torch.randn_like = draws
        torch.set_default_dtype(torch.float32)
        print(case, cases[-1]["robust"], len(cases[-1]["history"]))
    document = {
        "package": "github.com/fra31/auto-attack",
        "commit": commit,
        "torch": torch.__version__,
        "cases": cases,
    }
    text = json.dumps(document, separators=(",", ":")).replace("{", "\n{")
    (HERE / "apgd.json").write_text(text.lstrip() + "\n")


if __name__ == "__main__":
    main()
