"""Robust accuracy under each attack and under the peer's: `python bench/attack_parity.py`, 15 minutes on an idle core.

Both attack the same MNIST images of the CNN of mnist_model.py, in float32. An image counts as robust where the network
is right about what came back or where that left the ball. Attacks that look for the nearest image are run without a
radius and judged the same way. APGD begins at torchattacks' starts: from others, either changes its mind about eight
images here. PGD and Square have draws of their own, are run under five seeds on each side and compared by
their means. Square has to be within 0.5 points, all others within 0.2. What is measured is written at once; started
again the script keeps it, but for the attacks that --attacks names.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import foolbox
import mnist_model
import torch
import torchattacks
from hardware import ROOT, hardware
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustfast.attacks import (
    APGD,
    APGDT,
    BIM,
    DDN,
    FAB,
    FABT,
    FGSM,
    MIM,
    PGD,
    CarliniWagner,
    DeepFool,
    PGDFoolbox,
    Square,
)
from robustfast.training.checkpoint import write_durably

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
LINF, L2 = mnist_model.EPS["linf"], mnist_model.EPS["l2"]
ORDER = {"linf": torch.inf, "l2": 2}
SEEDS = range(5)
POINTS, POINTS_OF_SQUARE = 0.2, 0.5
# Images of one call. A whole thousand makes the convolution's workspace leave the cache.
BATCH = 250


@dataclass(frozen=True)
class Pair:
    """An attack and the peer's, as functions of a network and a seed.

    Attributes:
        peer: the library.
        norm: in which the result has to lie within the radius of `mnist_model.EPS`.
        ours, theirs: what builds each.
        seeds: over which accuracies are averaged.
        allowed: points by which the two may differ.
    """

    peer: str
    norm: str
    ours: Callable[[nn.Module, int], Call]
    theirs: Callable[[nn.Module, int], Call]
    seeds: range = range(1)
    allowed: float = POINTS


def of_torchattacks(name: str, **settings: Any) -> Callable[[nn.Module, int], Call]:
    def build(net: nn.Module, seed: int) -> Call:
        seeded = {"seed": seed} if name in ("APGD", "APGDT", "FAB", "Square") else {}
        attack = getattr(torchattacks, name)(net, **settings, **seeded)
        return lambda x, y, index: attack(x, y)

    return build


def of_foolbox(name: str, eps: float | None = None, **settings: Any) -> Callable[[nn.Module, int], Call]:
    def build(net: nn.Module, seed: int) -> Call:
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**settings)
        return lambda x, y, index: attack(model, x, y, epsilons=eps)[0]

    return build


def from_their_draws(
    attack: type[APGD], norm: str, eps: float, **settings: Any
) -> Callable[[nn.Module, int], Call]:
    """APGD from where torchattacks' begins: it seeds the global generator at each call, and each run draws for whom
    none before has won."""

    def start(x: Tensor, *_: object) -> Tensor:
        t = 2 * torch.rand(x.shape) - 1 if norm == "linf" else torch.randn(x.shape)
        return x + eps * t / t.flatten(1).norm(ORDER[norm], dim=1).reshape(-1, 1, 1, 1)

    def build(net: nn.Module, seed: int) -> Call:
        one = attack(net, norm=norm, eps=eps, **settings)
        one._start = start

        def call(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
            torch.manual_seed(seed)
            return one(x, y, index)

        return call

    return build


def of_ours(attack: Callable[..., Call], **settings: Any) -> Callable[[nn.Module, int], Call]:
    return lambda net, seed: attack(net, seed=seed, **settings)


PAIRS: dict[str, Pair] = {
    "fgsm": Pair("torchattacks", "linf", of_ours(FGSM, eps=LINF), of_torchattacks("FGSM", eps=LINF)),
    "bim": Pair(
        "torchattacks",
        "linf",
        of_ours(BIM, eps=LINF, step_size=LINF / 10, steps=40),
        of_torchattacks("BIM", eps=LINF, alpha=LINF / 10, steps=40),
    ),
    "pgd": Pair(
        "torchattacks",
        "linf",
        of_ours(PGD, eps=LINF, step_size=LINF / 10, steps=40),
        of_torchattacks("PGD", eps=LINF, alpha=LINF / 10, steps=40),
        SEEDS,
    ),
    # From the image itself: torchattacks draws l2 starts by another law, denser in the middle of the ball.
    "pgd-l2": Pair(
        "torchattacks",
        "l2",
        of_ours(PGD, eps=L2, step_size=L2 / 10, steps=40, norm="l2", random_start=False),
        of_torchattacks("PGDL2", eps=L2, alpha=L2 / 10, steps=40, random_start=False),
    ),
    "pgd-foolbox": Pair("foolbox", "linf", of_ours(PGDFoolbox, eps=LINF), of_foolbox("LinfPGD", LINF), SEEDS),
    "mim": Pair(
        "torchattacks",
        "linf",
        of_ours(MIM, eps=LINF, step_size=LINF / 10, steps=40),
        of_torchattacks("MIFGSM", eps=LINF, alpha=LINF / 10, steps=40),
    ),
    "apgd-ce": Pair(
        "torchattacks",
        "linf",
        from_their_draws(APGD, "linf", LINF),
        of_torchattacks("APGD", eps=LINF, steps=100),
    ),
    "apgd-ce-l2": Pair(
        "torchattacks",
        "l2",
        from_their_draws(APGD, "l2", L2),
        of_torchattacks("APGD", norm="L2", eps=L2, steps=100),
    ),
    "apgd-dlr": Pair(
        "torchattacks",
        "linf",
        from_their_draws(APGD, "linf", LINF, loss="dlr"),
        of_torchattacks("APGD", eps=LINF, steps=100, loss="dlr"),
    ),
    "apgd-t": Pair(
        "torchattacks",
        "linf",
        from_their_draws(APGDT, "linf", LINF, early_stop=True),
        of_torchattacks("APGDT", eps=LINF, steps=100),
    ),
    "fab": Pair(
        "torchattacks",
        "linf",
        of_ours(FAB, eps=LINF, steps=50),
        of_torchattacks("FAB", eps=LINF, steps=50),
    ),
    "fab-t": Pair(
        "torchattacks",
        "linf",
        of_ours(FABT, eps=LINF, steps=20),
        of_torchattacks("FAB", eps=LINF, steps=20, multi_targeted=True),
    ),
    "deepfool": Pair("foolbox", "l2", of_ours(DeepFool), of_foolbox("L2DeepFoolAttack")),
    "deepfool-linf": Pair(
        "foolbox", "linf", of_ours(DeepFool, norm="linf"), of_foolbox("LinfDeepFoolAttack")
    ),
    "ddn": Pair("foolbox", "l2", of_ours(DDN), of_foolbox("DDNAttack")),
    # Foolbox ends a search for a whole batch at once where abort_early is set.
    "cw-l2": Pair(
        "foolbox",
        "l2",
        of_ours(CarliniWagner, steps=60, search_steps=4, step_size=0.05, c=0.1, abort_early=False),
        of_foolbox(
            "L2CarliniWagnerAttack",
            binary_search_steps=4,
            steps=60,
            stepsize=0.05,
            initial_const=0.1,
            abort_early=False,
        ),
    ),
    "square": Pair(
        "torchattacks",
        "linf",
        of_ours(Square, eps=LINF, queries=500),
        of_torchattacks("Square", eps=LINF, n_queries=500),
        SEEDS,
        POINTS_OF_SQUARE,
    ),
}


def measure(
    build: Callable[[nn.Module, int], Call], net: nn.Module, pair: Pair, x: Tensor, y: Tensor
) -> dict[str, Any]:
    """Accuracy under each seed, the mean of them, CPU seconds for all, and who was robust under the first."""
    eps, accuracies, robust = mnist_model.EPS[pair.norm], [], []
    begun = time.process_time()
    for seed in pair.seeds:
        attack = build(net, seed)
        batches = zip(*(t.split(BATCH) for t in (x, y, torch.arange(len(x)))), strict=True)
        # The peers draw from the global generator.
        torch.manual_seed(seed)
        found = torch.cat([attack(*batch).detach() for batch in batches])
        with torch.no_grad():
            right = net(found).argmax(1) == y
            clean = net(x).argmax(1) == y
        length = (found - x).flatten(1).norm(ORDER[pair.norm], dim=1)
        robust.append((right | (length > eps * (1 + 1e-5))) & clean)
        accuracies.append(robust[-1].double().mean().item())
    return {
        "robust_accuracy": sum(accuracies) / len(accuracies),
        "per_seed": accuracies,
        "seconds": time.process_time() - begun,
        "robust": torch.nonzero(robust[0]).flatten().tolist(),
    }


def judge(mine: dict[str, Any], other: dict[str, Any], pair: Pair) -> dict[str, Any]:
    apart = 100 * (mine["robust_accuracy"] - other["robust_accuracy"])
    first, second = set(mine["robust"]), set(other["robust"])
    return {
        "points_apart": apart,
        "within": abs(apart) <= pair.allowed + 1e-9,
        "robust_under_ours_alone": len(first - second),
        "robust_under_theirs_alone": len(second - first),
        "time_ratio": mine["seconds"] / other["seconds"],
    }


def table(found: dict[str, dict[str, Any]]) -> Table:
    shown = Table("attack", "peer", "ours", "theirs", "points apart", "allowed", "time, ours / theirs")
    for name, row in found.items():
        pair, beside = PAIRS[name], row["beside"]
        shown.add_row(
            name,
            pair.peer,
            f"{row['ours']['robust_accuracy']:.2%}",
            f"{row['theirs']['robust_accuracy']:.2%}",
            f"{beside['points_apart']:+.2f}",
            f"{pair.allowed}{'' if beside['within'] else ', not met'}",
            f"{beside['time_ratio']:.2f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--attacks", nargs="+", choices=PAIRS, help="these alone, anew")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "attack-parity.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = mnist_model.model(arguments.data_dir)
    x, y = mnist_model.images(arguments.images, data_dir=arguments.data_dir)
    with torch.no_grad():
        clean = (net(x).argmax(1) == y).double().mean().item()
    settings = {"images": arguments.images, "eps": mnist_model.EPS, "batch": BATCH, "clean_accuracy": clean}
    versions = {name: version(name) for name in ("torchattacks", "foolbox")} | hardware(torch.device("cpu"))
    commit = versions.pop("commit")
    document: dict[str, Any] = {
        "command": "python bench/attack_parity.py", "settings": settings, "hardware": versions, "attacks": {},
    }  # fmt: skip
    if arguments.out.exists():
        stored = json.loads(arguments.out.read_text())
        if stored["settings"] == settings and stored["hardware"] == versions:
            document["attacks"] = stored["attacks"]
    PAIRS["fgsm"].ours(net, 0)(x[:8], y[:8], torch.arange(8))  # loads the ops
    for name in arguments.attacks or PAIRS:
        pair = PAIRS[name]
        if arguments.attacks or name not in document["attacks"]:
            sides = {side: measure(getattr(pair, side), net, pair, x, y) for side in ("ours", "theirs")}
            document["attacks"][name] = {
                "peer": pair.peer, "norm": pair.norm, "commit": commit, **sides,
                "beside": judge(sides["ours"], sides["theirs"], pair),
            }  # fmt: skip
            text = json.dumps(document, indent=1) + "\n"
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_durably(arguments.out, lambda file, text=text: file.write(text.encode()))
        beside = document["attacks"][name]["beside"]
        print(
            f"{name}: {beside['points_apart']:+.2f} points, {beside['time_ratio']:.2f} of the time",
            flush=True,
        )
    Console().print(table(document["attacks"]))


if __name__ == "__main__":
    main()
