"""Training steps as people write them: the plainest PyTorch, which benchmarks check ours against and time beside it.

What costs here and not in ours: an attack calls backward, which makes weight gradients and throws them away; every way
of the three-way model runs its encoders again; zeros are written out and multiplied; losses pick their samples by
indexing, which waits for the device; TRADES repeats the clean forward in each of its steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import AttackConfig
from robustfast.models import ThreeWay

__all__ = ["PlainTraining"]


def uniform_start(way: str, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)


class PlainTraining:
    """`loss, images = PlainTraining(model, attack).METHOD(x, y)`, METHOD in st, adversarial, at, trades, aat, aatpp.

    The caller clears gradients, calls backward on the loss and steps.

    Args:
        model: its encoders and head are called by hand; the ways are assembled here.
        strength: eps, step size and steps of the attack (linf).
        start: (way, x, y, eps) -> where an attack starts; a check gives the draws that ours makes.
    """

    def __init__(
        self,
        model: ThreeWay,
        strength: AttackConfig,
        start: Callable[[str, Tensor, Tensor, float], Tensor] = uniform_start,
    ) -> None:
        self.model = model
        self.strength = strength
        self.start = start

    def way(self, name: str, x: Tensor) -> Tensor:
        z_r = self.model.encoder_r(x) if name != "n" else None
        z_n = self.model.encoder_n(x) if name != "r" else None
        z_r = torch.zeros_like(z_n) if z_r is None else z_r
        z_n = torch.zeros_like(z_r) if z_n is None else z_n
        return self.model.head(torch.cat([z_r, z_n], dim=1))

    def attack(self, name: str, x: Tensor, y: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        eps = self.strength.eps
        x_adv = self.start(name, x, y, eps)
        for _ in range(self.strength.steps):
            x_adv = x_adv.detach().requires_grad_()
            loss_of(self.way(name, x_adv)).backward()
            x_adv = x_adv.detach() + self.strength.step_size * x_adv.grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        return x_adv

    def fooling(self, name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images attacked through a way, and the labels that way gives them, in eval mode."""
        self.model.eval()
        x_adv = self.attack(name, x, y, lambda logits: F.cross_entropy(logits, y))
        with torch.no_grad():
            yhat = self.way(name, x_adv).argmax(1) if name != "r" else y
        self.model.train()
        return x_adv, yhat

    def st(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        return F.cross_entropy(self.way("n", x), y), []

    def adversarial(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """AT on attacked images alone, as Madry et al. 2018 have it."""
        x_adv, _ = self.fooling("r", x, y)
        return F.cross_entropy(self.way("r", x_adv), y), [x_adv]

    def at(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        x_adv, _ = self.fooling("r", x, y)
        return F.cross_entropy(self.way("r", x_adv), y) + F.cross_entropy(self.way("r", x), y), [x_adv]

    def trades(self, x: Tensor, y: Tensor, beta: float = 6.0) -> tuple[Tensor, list[Tensor]]:
        self.model.eval()

        def divergence(logits: Tensor) -> Tensor:
            clean = self.way("r", x).softmax(1)
            return F.kl_div(logits.log_softmax(1), clean, reduction="sum")

        x_adv = self.attack("r", x, y, divergence)
        self.model.train()
        clean, attacked = self.way("r", x), self.way("r", x_adv)
        kl = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return F.cross_entropy(clean, y) + beta * kl, [x_adv]

    def aat(self, x: Tensor, y: Tensor, plus: bool = False) -> tuple[Tensor, list[Tensor]]:
        x_s, yhat_s = self.fooling("s", x, y)
        made = [x_s]
        if plus:
            x_r, _ = self.fooling("r", x, y)
            x_n, yhat_n = self.fooling("n", x, y)
            made += [x_r, x_n]

        def fooled(logits: Tensor, labels: Tensor, yhat: Tensor) -> Tensor:
            chosen = yhat != y
            return F.cross_entropy(logits[chosen], labels[chosen], reduction="sum") / len(x)

        loss = sum(F.cross_entropy(self.way(name, x), y) for name in "srn")
        loss = loss + fooled(self.way("r", x_s), y, yhat_s) + fooled(self.way("n", x_s), yhat_s, yhat_s)
        if plus:
            loss = loss + F.cross_entropy(self.way("r", x_r), y) + fooled(self.way("n", x_n), yhat_n, yhat_n)
        return loss, made

    def aatpp(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.aat(x, y, plus=True)
