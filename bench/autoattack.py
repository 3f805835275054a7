"""AutoAttack and each of its parts beside torchattacks': `python bench/autoattack.py`, 10 minutes on an idle core.

Both attack the same images of the CNN of mnist_model.py, under linf, on one thread. torchattacks' AutoAttack is set to
what the authors' package runs, as ours is: 100 steps of APGD and FAB where it has 10, and window sizes of Square by the
number of the query where it fits them to how many there are. --as-shipped runs it unchanged as well.

For each side and part: robust accuracy, CPU time of the process (wall time on a GPU), and the passes, forward and
gradient, as calls and as images. Every measurement is written as soon as it is there; started again with the same
settings, code and library, the script keeps those and measures the rest.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mnist_model
import torch
from hardware import ROOT, hardware
from measure import clock
from torch import Tensor, nn

from robustfast.attacks import AutoAttack
from robustfast.training.checkpoint import write_durably

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
GOAL_RATIO = {"cpu": 0.85, "cuda": 0.4}
GOAL_POINTS = 0.1

Attack = Callable[[Tensor, Tensor, Tensor], Tensor]


class Counting(nn.Module):
    """A network that counts the passes through it.

    Attributes:
        passes: calls and images, forward and gradient.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.passes: dict[str, int] = {}
        self.clear()

    def clear(self) -> None:
        self.passes = dict.fromkeys(
            ("forward_calls", "forward_images", "gradient_calls", "gradient_images"), 0
        )

    def forward(self, x: Tensor) -> Tensor:
        self._count("forward", len(x))
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: self._count("gradient", len(grad)))
        return logits

    def _count(self, kind: str, images: int) -> None:
        self.passes[f"{kind}_calls"] += 1
        self.passes[f"{kind}_images"] += images


def ours(net: nn.Module, settings: dict[str, Any]) -> dict[str, Attack]:
    """AutoAttack and its parts, each alone."""
    whole = AutoAttack(
        net, eps=settings["eps"], seed=settings["seed"], batch_size=settings["batch"], flags=False
    )
    return {"whole": whole} | {name: whole.part(name) for name in PARTS}


def theirs(net: nn.Module, settings: dict[str, Any], *, shipped: bool) -> dict[str, Attack]:
    """The same of torchattacks, set to the steps and the schedule of the authors' package unless `shipped`."""
    import torchattacks

    whole = torchattacks.AutoAttack(net, norm="Linf", eps=settings["eps"], seed=settings["seed"])
    *gradient, square = whole._autoattack.attacks
    if not shipped:
        square.rescale_schedule = False
        for attack in gradient:
            attack.steps = 100
    attacks = dict(zip(("whole", *PARTS), (whole, *gradient, square), strict=True))

    def without_index(attack: Any) -> Attack:
        return lambda x, y, index: attack(x, y)

    return {name: without_index(attack) for name, attack in attacks.items()}


def measure(
    attack: Attack, net: Counting, settings: dict[str, Any], x: Tensor, y: Tensor, batch: int
) -> dict[str, Any]:
    """Attack all images in batches; what it took, and for each image whether it stood."""
    net.clear()
    batches = [t.split(batch) for t in (x, y, torch.arange(len(x), device=x.device))]
    begun = clock()
    found = torch.cat([attack(*batch) for batch in zip(*batches, strict=True)])
    seconds = clock() - begun
    passes = dict(net.passes)
    assert (found - x).abs().max() <= settings["eps"] + 1e-6
    with torch.no_grad():
        stood = net.net(found).argmax(1) == y
    return {
        "robust_accuracy": stood.double().mean().item(),
        "seconds": seconds,
        **passes,
        "stood": torch.nonzero(stood).flatten().tolist(),
    }


def stages(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(side, part) in the order of measurement: rivals one right after the other, the whole first."""
    for part in ("whole", *(() if arguments.whole_only else PARTS)):
        yield from (("robustfast", part), ("torchattacks", part))
    if arguments.as_shipped:
        yield "torchattacks as shipped", "whole"


def judge(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Ours beside theirs, part by part, as far as both are measured."""
    sides: dict[str, dict[str, Any]] = {}
    for part in ("whole", *PARTS):
        mine, other = found.get(f"robustfast {part}"), found.get(f"torchattacks {part}")
        if mine and other:
            stood = [set(side["stood"]) for side in (mine, other)]
            sides[part] = {
                "time_ratio": mine["seconds"] / other["seconds"],
                "points_apart": 100 * (mine["robust_accuracy"] - other["robust_accuracy"]),
                "stood_ours_alone": len(stood[0] - stood[1]),
                "stood_theirs_alone": len(stood[1] - stood[0]),
            }
    return sides


def machine() -> str:
    """The folder of results of machines like this one, as pytest-benchmark names it."""
    python = ".".join(platform.python_version_tuple()[:2])
    return "-".join((platform.system(), platform.python_implementation(), python, platform.architecture()[0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=mnist_model.EPS["linf"])
    parser.add_argument("--batch", type=int, default=250, help="images per call, for both sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu: one thread, CPU time; cuda: wall time")
    parser.add_argument("--whole-only", action="store_true", help="leave out the parts alone")
    parser.add_argument("--as-shipped", action="store_true", help="time torchattacks' own settings too")
    parser.add_argument("--out", type=Path, help="the JSON")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    out = arguments.out or ROOT / "bench" / "results" / machine() / f"autoattack-mnist-{device.type}.json"

    torch.set_num_threads(1)
    settings = {name: getattr(arguments, name) for name in ("images", "eps", "batch", "seed", "device")}
    versions = {"torchattacks": version("torchattacks")} | hardware(device)
    document: dict[str, Any] = {
        "command": "python bench/autoattack.py", "settings": settings, "hardware": versions, "found": {},
    }  # fmt: skip
    if out.exists():
        stored = json.loads(out.read_text())
        if stored["settings"] == settings and stored["hardware"] == versions:
            document["found"] = stored["found"]
    net = Counting(mnist_model.model()).to(device).eval()
    x, y = (t.to(device) for t in mnist_model.images(arguments.images))
    sides = {
        "robustfast": ours(net, settings),
        "torchattacks": theirs(net, settings, shipped=False),
        "torchattacks as shipped": theirs(net, settings, shipped=True),
    }
    for side, part in stages(arguments):
        name = f"{side} {part}"
        if name not in document["found"]:
            # Our AutoAttack takes all images and makes batches itself, anew for each of its attacks.
            batch = len(x) if name == "robustfast whole" else settings["batch"]
            document["found"][name] = measure(sides[side][part], net, settings, x, y, batch)
            document["beside"] = judge(document["found"])
            text = json.dumps(document, indent=1) + "\n"
            out.parent.mkdir(parents=True, exist_ok=True)
            write_durably(out, lambda file, text=text: file.write(text.encode()))
        row = document["found"][name]
        print(
            f"{name:32} {row['robust_accuracy']:7.2%} {row['seconds']:8.1f} s {row['forward_images']:9} forward "
            f"{row['gradient_images']:9} gradient",
            flush=True,
        )
    for part, row in judge(document["found"]).items():
        print(f"{part:10} {row['points_apart']:+.2f} points, {row['time_ratio']:.2f} of the time")
    whole = judge(document["found"])["whole"]
    goal = GOAL_RATIO[device.type]
    met = abs(whole["points_apart"]) <= GOAL_POINTS + 1e-9 and whole["time_ratio"] <= goal
    print(f"{'met' if met else 'not met'}: within {GOAL_POINTS} point in {goal} of the time")


if __name__ == "__main__":
    main()
