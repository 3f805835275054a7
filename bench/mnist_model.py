"""A small CNN adversarially trained on MNIST, on which whole attack suites run on one core: 1.2 MFLOP per image.

`python bench/mnist_model.py` trains it, a minute on one core, and says how accurate it is.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from hardware import ROOT
from torch import Tensor, nn

from robustfast.attacks import PGD
from robustfast.data import load

__all__ = ["EPS", "images", "model"]

EPS = {"linf": 0.25, "l2": 1.5, "l1": 7.0}
"""Radii at which neither all nor no images fall, so that attacks can differ."""

_CACHE = ROOT / "runs" / "mnist-model.pt"
_DATA = Path(os.environ.get("ROBUSTFAST_TEST_DATA", ROOT.parent / "shared" / "data"))
_EPOCHS, _BATCH, _RATE, _SEED = 3, 128, 2e-3, 0


def network() -> nn.Module:
    """Images [B, 1, 28, 28] -> logits [B, 10], with weights drawn anew."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def images(count: int, split: str = "test", data_dir: Path | None = None) -> tuple[Tensor, Tensor]:
    """The first `count` images, float32 [count, 1, 28, 28] in [0, 1], and their labels int64 [count].

    Raises:
        UserError: no MNIST in the folder, which is `data_dir`, else $ROBUSTFAST_TEST_DATA, else shared/data beside
            the checkout.
    """
    data = load("mnist", split, data_dir or _DATA)
    return data.images[:count].float() / 255, data.labels[:count]


def model(data_dir: Path | None = None) -> nn.Module:
    """The network in eval mode, trained at the first call and read from the cache (runs/) from then on.

    Raises:
        UserError: as for `images`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        net = network()
        if _CACHE.exists():
            net.load_state_dict(torch.load(_CACHE, weights_only=True))
        else:
            _train(net, *images(60_000, "train", data_dir))
            _CACHE.parent.mkdir(parents=True, exist_ok=True)
            # Whoever reads at the same moment finds a whole file or none.
            part = _CACHE.with_suffix(f".{os.getpid()}")
            torch.save(net.state_dict(), part)
            part.replace(_CACHE)
    return net.eval()


def _train(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Madry et al. 2018 in short: PGD-4 at a radius that grows over the first epoch, Adam on a one-cycle schedule."""
    steps = _EPOCHS * (len(x) // _BATCH)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    attack = PGD(net, eps=EPS["linf"], steps=4, seed=_SEED)
    net.train()
    for step in range(steps):
        if step % (len(x) // _BATCH) == 0:
            order = torch.randperm(len(x))
        first = step % (len(x) // _BATCH) * _BATCH
        rows = order[first : first + _BATCH]
        eps = EPS["linf"] * min(1.0, (step + 1) * _EPOCHS / steps)
        x_adv = attack(x[rows], y[rows], rows, epoch=step, eps=eps, step_size=eps / 2)
        optimizer.zero_grad()
        F.cross_entropy(net(x_adv), y[rows]).backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    torch.set_num_threads(1)
    net = model()
    x, y = images(1000)
    for norm, eps in EPS.items():
        attack = PGD(net, eps=eps, step_size=eps / 10, steps=40, norm=norm)
        right = (net(attack(x, y)).argmax(1) == y).float().mean()
        print(f"PGD-40 {norm} at {eps}: {right:.1%} of {len(x)} images")
    print(f"clean: {(net(x).argmax(1) == y).float().mean():.1%}")


if __name__ == "__main__":
    main()
