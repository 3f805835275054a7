"""An objective with three optimizers, of two kinds and over a network of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import PGD, AttackConfig
from robustfast.data import Batch
from robustfast.models import ThreeWay
from robustfast.objectives import Objective, Phase

ATTACK = AttackConfig(eps=0.1, step_size=0.05, steps=2)


class Plain(nn.Module):
    """Images [B, 1, 4, 4] to features [B, 6], without batch norm."""

    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3, padding=1)
        self.linear = nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.relu(self.convolution(x)).flatten(1)))


class Normed(Plain):
    """The same with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))


class Adversary(Objective):
    """The robust way learns classes, then a discriminator to tell attacked from natural features, then the encoder to
    fool it."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    main_ways = "r"

    def __init__(
        self, model: ThreeWay, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        self.attack = PGD(model.way("r"), seed=seed, engine=engine, **attack.keywords())
        first = next(model.parameters())
        features = model.encoder_r.features
        self.discriminator = nn.Sequential(nn.Linear(features, 4), nn.Tanh(), nn.Linear(4, 1)).to(first)

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {
            "classifier": self.model.way("r").parameters(),
            "discriminator": list(self.discriminator.parameters()),
            "encoder": list(self.model.encoder_r.parameters()),
        }

    def optimizers(self) -> dict[str, dict[str, Any]]:
        return {
            "discriminator": {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.01},
            "encoder": {"lr": 0.5, "momentum": 0.0},
        }

    def networks(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        encoder = self.model.encoder_r
        x_adv = self.attack(x, y, index, **self.now())
        loss = F.cross_entropy(self.model.way("r")(x).float().to(x.dtype), y)
        yield Phase("classifier", loss, {"classifier": loss.detach()})
        with torch.no_grad():
            natural, attacked = encoder(x), encoder(x_adv)
        loss = (F.softplus(-self._score(natural, x)) + F.softplus(self._score(attacked, x))).mean()
        yield Phase("discriminator", loss, {"discriminator": loss.detach()})
        loss = F.softplus(-self._score(encoder(x_adv), x)).mean()
        yield Phase("encoder", loss, {"encoder": loss.detach()})

    def _score(self, features: Tensor, x: Tensor) -> Tensor:
        """In the images' type, as losses are."""
        return self.discriminator(features).to(x.dtype)


def adversary(
    backbone: type[Plain] = Plain, *, dtype: torch.dtype = torch.float32, attack: AttackConfig = ATTACK
) -> Adversary:
    """A fresh one, always the same."""
    torch.manual_seed(3)
    model = ThreeWay(backbone, num_classes=3).to(dtype)
    return Adversary(model, Adversary.Config(), attack, seed=5)


def images(count: int, number: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch of noise with labels; the first so many of it are the same for every `count`."""
    generator = torch.Generator().manual_seed(number)
    x, y = torch.rand(64, 1, 4, 4, generator=generator), torch.randint(3, (64,), generator=generator)
    return Batch(x[:count].to(dtype), y[:count], torch.arange(count) + 64 * number)
