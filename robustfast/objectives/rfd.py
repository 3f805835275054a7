"""Robust feature disentanglement: robust, non-robust and domain-specific features from one extractor."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustfast.attacks import APGD, PGD, AttackConfig, eval_mode
from robustfast.errors import UserError
from robustfast.models import Disentangled, DomainDiscriminator, Network, Reconstruction
from robustfast.objectives.objective import Objective, Phase
from robustfast.objectives.rfd_losses import (
    adversarial_loss,
    angular_loss,
    class_losses,
    domain_loss,
    kl_loss,
    reconstruction_loss,
)
from robustfast.objectives.routing import scaled_gradient, through
from robustfast.seeds import derive

__all__ = ["RFD"]

# The two optimizers that move the model, by the learning rates of the paper.
_MODEL = ("robust", "others")


@dataclass(frozen=True)
class RFDConfig:
    """The paper gives neither weights nor the reversal's strength, and no formula for L_kl."""

    ce: float = 1.0
    """Weight of the classes' cross entropies (equation 7)."""
    dist: float = 1.0
    """Weight of the angle between robust features of an image and its attacked one (equation 6)."""
    adv: float = 0.1
    """Weight of what robust and non-robust features do against the discriminator (equation 9, its first part)."""
    tell: float = 0.1
    """Weight of what domain-specific features do for it (equation 9, its second part)."""
    kl: float = 0.1
    """Weight of the divergence between kinds of features (figure 2c)."""
    res: float = 0.1
    """Weight of the reconstruction (equation 10)."""
    kl_mode: Literal["repel", "literal", "off"] = "repel"
    """repel: minimise exp(-s), s the symmetric divergence. literal: minimise s, as the words are. off: neither."""
    reversal: float = 0.1
    """Lambda: the non-robust encoder climbs the cross entropy of attacked images with this strength."""
    fooling: Literal["flipped", "minimax"] = "flipped"
    """flipped: cross entropy with the other domain's label. minimax: equation 9 as printed, unbounded below."""
    domain_statistics: Literal["batch", "running"] = "batch"
    """What the batch norms use in features for the discriminator. batch: clean and attacked ones each the statistics of
    their own batch, which hides a shift between their means. running: those of evaluation, for both."""
    attack_loss: Literal["ce", "margin", "dlr"] = "ce"
    """What the training attack climbs: PGD on ce or margin (the paper's Ours-CW), APGD on dlr (Ours-DLR)."""
    separate: bool = False
    """Take the steps of Algorithm 1 one after the other, with new features for each, not all losses in one."""
    others_lr: float = 0.1
    """Learning rate of the non-robust and domain-specific encoders and the reconstruction, in learning rates of the
    run, which is that of the extractor, the robust encoder and the classifier."""
    discriminator_lr: float = 0.1
    """Learning rate of the discriminator, in learning rates of the run."""
    eps_factor: float = 1.5
    """Each batch is attacked at a radius between 1 and so many times --attack.eps: 8 to 12 pixel values of 8."""
    step_factor: float = 2.0
    """Each batch is attacked in steps between 1 and so many times --attack.step-size: 2 to 4 pixel values of 2."""
    steps: tuple[int, ...] = (8, 16, 24, 32)
    """Each batch is attacked for one of these numbers of steps; --attack.steps is that of the checks alone."""

    def __post_init__(self) -> None:
        names = ("ce", "dist", "adv", "tell", "kl", "res", "reversal", "others_lr", "discriminator_lr")
        for name in names:
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(
                    f"--objective.{name.replace('_', '-')} is {value}, expected a finite number from 0"
                )
        for name in ("eps_factor", "step_factor"):
            if not 1 <= (value := getattr(self, name)) < math.inf:
                raise UserError(
                    f"--objective.{name.replace('_', '-')} is {value}, expected a finite number from 1"
                )
        if not self.steps or min(self.steps) < 1:
            raise UserError(
                f"--objective.steps {' '.join(map(str, self.steps))}: expected one or more numbers from 1"
            )
        choices = {
            "kl_mode": ("repel", "literal", "off"),
            "fooling": ("flipped", "minimax"),
            "domain_statistics": ("batch", "running"),
            "attack_loss": ("ce", "margin", "dlr"),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(
                    f"--objective.{name.replace('_', '-')} is {value!r}, expected one of {', '.join(known)}"
                )


class RFD(Objective):
    """Robust feature disentanglement (Wang et al., "RFD"), algorithm 1.

    With G the extractor, E_r, E_nr, E_ds the encoders, C the classifier, D the discriminator, R the reconstruction, z
    features of x and z' those of x', attacked through C(E_r(G)) in eval mode, each loss moves what the paper's
    equations name as its arguments, and nothing else:

    ============ ================================================================ ==============================
    L_kl         divergence of each pair among z_r, z_nr, z_ds, and among z'      E_r, E_nr, E_ds
    L_ce   (7)   sum of the cross entropies of C(z_r), C(z_nr), C(z'_r)           G, C, and E_r or E_nr
    .            and of C(z'_nr), bounded by 2 log C                              C; E_nr by -reversal
    L_dist (6)   1 - |cos(z_r, z'_r)|                                             G, E_r
    L_bce  (8)   D tells z from z', all three kinds                               D
    L_adv  (9)   D takes z_r, z_nr for the other domain, z_ds for its own         E_r, E_nr; E_ds
    L_res  (10)  mean |R(maps) - G(x)|, and of x'                                 E_r, E_nr, E_ds, R
    ============ ================================================================ ==============================

    Algorithm 1 lists other parameters in two places, and the equations go before it: L_ce moves G and C too, and
    in step f D moves by L_bce, the encoders by L_adv, C not at all.

    L_adv's two parts, of z_r with z_nr and of z_ds, share no parameters and have a weight each, `adv` and `tell`.

    Joint (the default): D takes a step on L_bce, then all others one on the weighted sum of the other losses. One
    forward of x and one of x' serve all losses, which G and each encoder see in separate calls, so that batch norms
    never mix them. Separate: the steps of algorithm 1, in its order, each on features of the weights that the one
    before has left; a part of the model that a step does not move is not run again.

    "Domain diversify": radius, step length and number of steps are drawn for each batch, from the run's seed, the epoch
    and the share of the training that is done, so that they are the same in all processes.

    Passes with g the passes of G, e of one encoder (g + e is a backbone's), r of the reconstruction, T attack steps:
    joint (2T + 6) g + (2T + 21) e + 6 r, of which 3 e, to the input alone, keep the losses apart that do and do not
    move G. Separate: (2T + 14) g + (2T + 72) e + 6 r. Running domain statistics: 2 g more, and joint 18 e more.

    Attributes:
        discriminator: D, features [B, H] to one logit [B, 1], clean is high. Its weights derive from the seed.
        reconstruction: R, the three encoders' maps side by side [B, 3C, h, w] to f. Its weights derive from the seed.

    Raises:
        UserError: a setting out of range or an unknown name; DLR, which compares three classes, with two.
    """

    Config = RFDConfig
    trains = Disentangled
    main_ways = "rn"
    protocol = "rfd"

    model: Disentangled

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        model = self.model
        if config.attack_loss == "dlr" and model.classifier.out_features < 3:
            raise UserError("--objective.attack-loss dlr compares three classes, got 2: take ce or margin")
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the devices' generators too, and nobody would put those back.
            torch.default_generator.manual_seed(derive(seed, "discriminator"))
            self.discriminator = DomainDiscriminator(model.features).to(model.classifier.weight)
            torch.default_generator.manual_seed(derive(seed, "reconstruction"))
            self.reconstruction = Reconstruction(
                model.map_channels, model.base_channels, model.upsampling
            ).to(model.classifier.weight)
        self.attack = _Diversified(self)

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        # With a backbone cut in the middle (g = e = 1/2); the reconstruction is not counted.
        steps = sum(settings.steps) / len(settings.steps)
        running = settings.domain_statistics == "running"
        return 2 * steps + (43 + running if settings.separate else 13.5 + 10 * running)

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        model = self.model
        parts = {
            "robust": (model.generator, model.encoder_r, model.classifier),
            "others": (model.encoder_n, model.encoder_d, self.reconstruction),
            "discriminator": (self.discriminator,),
        }
        return {name: [p for part in group for p in part.parameters()] for name, group in parts.items()}

    def optimizers(self) -> dict[str, dict[str, Any]]:
        return {
            "others": {"lr": self.config.others_lr},
            "discriminator": {"lr": self.config.discriminator_lr},
        }

    def networks(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator, "reconstruction": self.reconstruction}

    def now(self) -> dict[str, Any]:
        """The keywords `epoch`, `eps`, `step_size` and `steps` for the attack on this batch."""
        config, now = self.config, super().now()
        draws = random.Random(derive(self.seed, "diversify", self.epoch, str(self.progress)))
        now["eps"] *= draws.uniform(1.0, config.eps_factor)
        now["step_size"] *= draws.uniform(1.0, config.step_factor)
        return now | {"steps": draws.choice(config.steps)}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        x_adv = self.attack(x, y, index, **self.now())  # type: ignore[misc]
        yield from (self._separate(x, x_adv, y) if self.config.separate else self._joint(x, x_adv, y))

    def _joint(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Iterator[Phase]:
        config, model = self.config, self.model
        f, f_adv = model.base(x), model.base(x_adv)
        # What the encoders see ends there; `through` takes those losses on that move G.
        leaf, leaf_adv = f.detach().requires_grad_(), f_adv.detach().requires_grad_()
        maps, maps_adv = model.maps(leaf), model.maps(leaf_adv)
        z, z_adv = model.pooled(maps), model.pooled(maps_adv)
        domains = self._domains(x, x_adv) if config.domain_statistics == "running" else (z, z_adv)
        yield self._discriminated(*domains)

        moving = {name: through(z[name], leaf, f) for name in "rn"}
        moving_adv = {"r": through(z_adv["r"], leaf_adv, f_adv)}
        terms = self._class_terms(moving, moving_adv | {"n": z_adv["n"]}, y)
        loss = config.ce * torch.stack(list(terms.values())).sum()
        if config.dist:
            terms["dist"] = angular_loss(moving["r"], moving_adv["r"])
            loss = loss + config.dist * terms["dist"]
        if config.adv or config.tell:
            game, weighted = self._game(*domains)
            terms |= game
            loss = loss + weighted
        if config.kl and config.kl_mode != "off":
            terms["kl"] = kl_loss(z, z_adv, config.kl_mode)
            loss = loss + config.kl * terms["kl"]
        if config.res:
            terms["res"] = self._rebuilt(maps, f, maps_adv, f_adv)
            loss = loss + config.res * terms["res"]
        yield Phase(_MODEL, loss, _detached(terms))

    def _separate(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Iterator[Phase]:
        config, model = self.config, self.model
        f, f_adv = model.base(x), model.base(x_adv)
        if config.kl and config.kl_mode != "off":
            z, z_adv = (model.pooled(model.maps(value.detach())) for value in (f, f_adv))
            loss = kl_loss(z, z_adv, config.kl_mode)
            yield Phase(_MODEL, config.kl * loss, {"kl": loss.detach()})

        z, z_adv = model.pooled(model.maps(f, "rn")), model.pooled(model.maps(f_adv, "r"))
        z_adv |= model.pooled(model.maps(f_adv.detach(), "n"))
        terms = self._class_terms(z, z_adv, y)
        yield Phase(_MODEL, config.ce * torch.stack(list(terms.values())).sum(), _detached(terms))

        if config.dist:
            loss = angular_loss(model.encode(x, "r")["r"], model.encode(x_adv, "r")["r"])
            yield Phase(_MODEL, config.dist * loss, {"dist": loss.detach()})

        with torch.no_grad():
            f, f_adv = model.base(x), model.base(x_adv)
        domains = (
            self._domains(x, x_adv)
            if config.domain_statistics == "running"
            else (model.pooled(model.maps(f)), model.pooled(model.maps(f_adv)))
        )
        yield self._discriminated(*domains)
        if config.adv or config.tell:
            game, weighted = self._game(*domains)
            yield Phase(_MODEL, weighted, _detached(game))

        if config.res:
            loss = self._rebuilt(model.maps(f), f, model.maps(f_adv), f_adv)
            yield Phase(_MODEL, config.res * loss, {"res": loss.detach()})

    def _domains(self, x: Tensor, x_adv: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features of both domains as evaluation computes them, with the batch norms' running statistics; G gets no
        gradient."""
        model = self.model
        with eval_mode(model):
            with torch.no_grad():
                f, f_adv = model.base(x), model.base(x_adv)
            return model.pooled(model.maps(f)), model.pooled(model.maps(f_adv))

    def _discriminated(self, z: Mapping[str, Tensor], z_adv: Mapping[str, Tensor]) -> Phase:
        """The discriminator's step; the features stay as they are."""
        clean, adv = (
            self._judged({name: value.detach() for name, value in part.items()}) for part in (z, z_adv)
        )
        loss = domain_loss(clean, adv)
        return Phase("discriminator", loss, {"bce": loss.detach()})

    def _class_terms(
        self, z: Mapping[str, Tensor], z_adv: Mapping[str, Tensor], y: Tensor
    ) -> dict[str, Tensor]:
        """The terms of L_ce by name; E_nr gets the last one's gradient reversed, C as it is."""
        adv = {"r": z_adv["r"], "n": scaled_gradient(z_adv["n"], -self.config.reversal)}
        logits, logits_adv = ({name: self.model.classifier(part[name]) for name in "rn"} for part in (z, adv))
        return {f"ce_{name}": value for name, value in class_losses(logits, logits_adv, y).items()}

    def _game(self, z: Mapping[str, Tensor], z_adv: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The parts of L_adv by name, and their weighted sum."""
        game = adversarial_loss(self._judged(z), self._judged(z_adv), self.config.fooling)
        return game, self.config.adv * game["fool"] + self.config.tell * game["tell"]

    def _judged(self, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The discriminator's logits [B, 1] by kind."""
        return {name: self.discriminator(value) for name, value in z.items()}

    def _rebuilt(
        self, maps: Mapping[str, Tensor], f: Tensor, maps_adv: Mapping[str, Tensor], f_adv: Tensor
    ) -> Tensor:
        """L_res: the mean over both domains."""
        losses = [
            reconstruction_loss(
                self.reconstruction(
                    torch.cat([part[name] for name in "rnd"], dim=1), tuple(target.shape[-2:])
                ),
                target,
            )
            for part, target in ((maps, f), (maps_adv, f_adv))
        ]
        return torch.stack(losses).mean()


class _Diversified:
    """The training attack of `RFD`: one object for each number of steps, built when it is first needed."""

    def __init__(self, objective: RFD) -> None:
        self._objective = objective
        self._attacks: dict[int, PGD | APGD] = {}

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        *,
        epoch: int = 0,
        eps: float,
        step_size: float,
        steps: int,
    ) -> Tensor:
        attack = self._attacks.get(steps) or self._attacks.setdefault(steps, self._built(steps))
        if isinstance(attack, APGD):
            # It sets its own step size.
            attack.eps = eps
            return attack(x, y, index, epoch=epoch)
        return attack(x, y, index, epoch=epoch, eps=eps, step_size=step_size)

    def _built(self, steps: int) -> PGD | APGD:
        objective = self._objective
        way, strength = objective.model.way("r"), objective.strength
        common = {"seed": objective.seed, "engine": objective.engine}
        if objective.config.attack_loss == "dlr":
            # "success_only" would put clean images into the adversarial domain.
            return APGD(
                way,
                eps=strength.eps,
                norm=strength.norm,
                steps=steps,
                loss="dlr",
                returns="max_loss",
                **common,
            )
        return PGD(
            way, **(strength.keywords() | {"steps": steps}), loss=objective.config.attack_loss, **common
        )


def _detached(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}
