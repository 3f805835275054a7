"""Adversarial feature desensitization: a game between the features and a discriminator of clean from attacked ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import APGD, AttackConfig
from robustfast.attacks.draws import uniform
from robustfast.errors import UserError
from robustfast.models import Network, OneWay, ProjectionDiscriminator
from robustfast.models.projection_discriminator import VARIANTS
from robustfast.models.running_statistics import recorded
from robustfast.objectives.objective import Objective, Phase
from robustfast.seeds import derive

__all__ = ["AFD", "AFDDCGAN", "AFDWGAN"]


@dataclass(frozen=True)
class AFDConfig:
    """Settings of both games; the factors' defaults make 0.5 and 0.1 of a learning rate of 0.1 (table A1)."""

    discriminator: str = "fc3-pd"
    """Discriminator: fc3-pd (three layers and the projected label), fc3 (without the label), fc1-pd (one layer)."""
    encoder_lr: float = 5.0
    """Learning rate of the encoder in the game, in learning rates of the run."""
    discriminator_lr: float = 1.0
    """Learning rate of the discriminator, in learning rates of the run; AFD's code takes 5 on MNIST."""
    returns: Literal["success_only", "max_loss"] = "success_only"
    """success_only leaves images as they are that the attack did not turn from right to wrong, max_loss takes of each
    the one of the highest loss."""

    def __post_init__(self) -> None:
        if self.discriminator not in VARIANTS:
            raise UserError(
                f"--objective.discriminator is {self.discriminator!r}, expected one of {', '.join(VARIANTS)}"
            )
        if self.returns not in ("success_only", "max_loss"):
            raise UserError(f"--objective.returns is {self.returns!r}, expected 'success_only' or 'max_loss'")
        self._check("encoder_lr", "discriminator_lr")

    def _check(self, *names: str) -> None:
        for name in names:
            if not 0 <= (value := getattr(self, name)) < math.inf:
                flag = name.replace("_", "-")
                raise UserError(f"--objective.{flag} is {value}, expected a finite number from 0")


class AFD(Objective):
    """Algorithm 1 of Bashivan et al. 2021 (arXiv:2006.04621); `AFDDCGAN` and `AFDWGAN` give the losses of the game.

    Each batch takes three steps, with adversarial images made once, before them, in eval mode:

    1. "classifier": encoder F and classifier descend the cross entropy of clean images (equation 7);
    2. "discriminator": D learns to tell features F(x) from F(x'), both with the true label y, with the encoder as
       step 1 left it;
    3. "encoder": the encoder alone moves so that the new D takes F(x') for clean.

    The paper leaves open, and its code decides: x' of images that are misclassified as they are, and of images that
    APGD could not fool, is x itself (``returns = "success_only"``), so part of the "adversarial" batch is clean;
    weight decay acts in step 1 only; equation 12 means x' where it prints x. The encoder has two momentum buffers,
    one for each of its steps. APGD sets its own step size: of the attack's settings this takes eps, norm, steps, ramp.

    The code runs the encoder in step 2 with a graph, and on x' again in step 3. Neither is needed: step 2 works on
    detached features, and step 2's pass of x' is differentiated in step 3, since no weight of the encoder moves in
    between. Its running statistics move as often and in the same order as with a pass of its own, but for the one in
    which the code logs an accuracy. (With dropout both steps see one mask.)

    Passes with ten attack steps: 30F. That is 27F of ten steps and of training, 2F for the gradient from which APGD
    starts, and 1F for a look at who is classified right, which "max_loss" does without.

    Attributes:
        discriminator: D, `ProjectionDiscriminator`; clean is high. Its weights derive from the seed.
    """

    Config = AFDConfig
    trains = OneWay
    main_ways = "r"
    protocol = "afd"

    model: OneWay

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        classifier = self.model.classifier
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the devices' generators too, and nobody would put those back.
            torch.default_generator.manual_seed(derive(seed, "discriminator"))
            self.discriminator = ProjectionDiscriminator(
                classifier.in_features, classifier.out_features, variant=config.discriminator
            ).to(classifier.weight)
        self._apgd = APGD(
            model.way("r"),
            eps=attack.eps,
            norm=attack.norm,
            steps=attack.steps,
            returns=config.returns,
            seed=seed,
            engine=engine,
        )
        self.attack = self._attack

    def _attack(
        self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, eps: float, step_size: float
    ) -> Tensor:
        self._apgd.eps = eps
        return self._apgd(x, y, index, epoch=epoch)

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        look = 1 if settings.returns == "success_only" else 0
        return 2 * strength.steps + 9 + look

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {
            "classifier": self.model.way("r").parameters(),
            "discriminator": list(self.discriminator.parameters()),
            "encoder": list(self.model.encoder.parameters()),
        }

    def optimizers(self) -> dict[str, dict[str, Any]]:
        return {
            "discriminator": {"lr": self.config.discriminator_lr, "weight_decay": 0.0},
            "encoder": {"lr": self.config.encoder_lr, "weight_decay": 0.0},
        }

    def networks(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        encoder, features, discriminator = self.model.encoder, self.model.features, self.discriminator
        x_adv = self.attack(x, y, index, **self.now())
        loss = F.cross_entropy(self.model.way("r")(x), y)
        yield Phase("classifier", loss, {"classifier": loss.detach()})

        with torch.no_grad(), recorded(encoder) as by_clean:
            clean = features(x)
        with recorded(encoder) as by_adversarial:
            adversarial = features(x_adv)
        detached = adversarial.detach()
        loss = self.told_apart(discriminator(clean, y), discriminator(detached, y))
        terms = {"discriminator": loss.detach()}
        if weight := self.penalty_weight():
            # The code runs the encoder once more for the mixtures.
            by_clean.replay()
            by_adversarial.replay()
            # In float32 where the network runs in half precision.
            penalty = self.penalty(clean.to(loss.dtype), detached.to(loss.dtype), index)
            terms["penalty"] = penalty.detach()
            loss = loss + weight * penalty
        yield Phase("discriminator", loss, terms)

        by_adversarial.replay()
        loss = self.taken_for_clean(discriminator(adversarial, y))
        yield Phase("encoder", loss, {"encoder": loss.detach()})

    def told_apart(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Loss of the discriminator, from its logits [B, 1] of both kinds: a scalar."""
        raise NotImplementedError

    def taken_for_clean(self, adversarial: Tensor) -> Tensor:
        """Loss of the encoder, from the discriminator's logits [B, 1] of adversarial features: a scalar."""
        raise NotImplementedError

    def penalty_weight(self) -> float:
        """Weight of `penalty` in the discriminator's loss; 0 computes none."""
        return 0.0

    def penalty(self, clean: Tensor, adversarial: Tensor, index: Tensor) -> Tensor:
        """``mean (|grad_u D(u)|_2 - 1)^2`` at random mixtures u of features [B, m] of an image and of its attacked one.

        Gulrajani et al. 2017 (arXiv:1704.00028); as in AFD's code D is called without labels.
        """
        draw = uniform(index, (1,), seed=derive(self.seed, "penalty", self.epoch), dtype=clean.dtype)
        u = torch.lerp(adversarial, clean, draw).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.discriminator(u, None).sum(), u, create_graph=True)
        return (torch.linalg.vector_norm(gradient, dim=1) - 1).square().mean()


class AFDDCGAN(AFD):
    """AFD with the cross entropy of the domains (equations 9 and 10); S is the softplus.

    ``L_D = mean S(-D(F(x), y)) + mean S(D(F(x'), y))``, ``L_F = mean S(-D(F(x'), y))``.

    Raises:
        UserError: a setting out of range, or an unknown name.
    """

    def told_apart(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return F.softplus(-clean).mean() + F.softplus(adversarial).mean()

    def taken_for_clean(self, adversarial: Tensor) -> Tensor:
        return F.softplus(-adversarial).mean()


class AFDWGAN(AFD):
    """AFD with the losses of a Wasserstein GAN (equations 11 and 12, the latter with x' for its misprinted x).

    ``L_D = mean D(F(x'), y) - mean D(F(x), y) + gp * penalty``, ``L_F = -mean D(F(x'), y)``.

    Raises:
        UserError: a setting out of range, or an unknown name.
    """

    @dataclass(frozen=True)
    class Config(AFDConfig):
        gp: float = 0.0
        """Weight of the gradient penalty: 1 on CIFAR-10, 0 on the paper's other data sets (table A1)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._check("gp")

    def told_apart(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return adversarial.mean() - clean.mean()

    def taken_for_clean(self, adversarial: Tensor) -> Tensor:
        return -adversarial.mean()

    def penalty_weight(self) -> float:
        return self.config.gp
