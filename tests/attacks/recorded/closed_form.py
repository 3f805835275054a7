"""A network and images that are formulas, not draws: what was recorded of them does not depend on a generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["images", "network", "start"]


def network() -> nn.Module:
    """Images [B, 1, 6, 6] -> logits [B, 5] in float64; smooth, so that no gradient lies on a kink."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    for number, parameter in enumerate(net.parameters()):
        k = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
        scale = 1.6 if parameter.dim() == 2 else 0.1
        parameter.data = (
            scale * torch.sin(1.3 + number + 2.399963 * k + 0.07 * k**1.5) / parameter.shape[-1] ** 0.5
        )
    return net.eval()


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    """Float64 [count, 1, 6, 6] and the classes the network gives them.

    Between 0.5 and 0.75, where x + u - u is x for every u that stays inside the box: AutoAttack counts an entry for
    which it is not as one that moved.
    """
    k = torch.arange(count * 36, dtype=torch.float64).reshape(count, 1, 6, 6)
    x = 0.625 + 0.125 * torch.sin(1.7 * k + 0.01 * k**2)
    with torch.no_grad():
        return x, network()(x).argmax(1)


def start(x: Tensor, eps: float) -> Tensor:
    """A point of the ball of 2.5 eps in l1, within the box, that differs from x in a third of its entries."""
    k = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    u = torch.where(k % 3 == 0, torch.sin(3.1 * k + 1), 0)
    return x + u * (2.5 * eps / u.abs().flatten(1).sum(1).reshape(-1, 1, 1, 1)).clamp(max=0.2)
