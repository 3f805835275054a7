"""CD-VAE against white-box attacks: what an attack moves of G(x) is made to move to R(x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import AttackConfig, eval_mode
from robustfast.attacks.margin_pgd import MarginPGD
from robustfast.errors import UserError
from robustfast.models import Network
from robustfast.models.class_disentangled import ClassDisentangled, Split
from robustfast.models.untrained import untrained
from robustfast.objectives.objective import Objective, Phase
from robustfast.ops import margin_loss
from robustfast.seeds import derive

__all__ = ["CDVAEAdv", "kept_mean", "most_likely_wrong", "within_margin"]

FORMS = ("recommended", "paper", "code")
LOGITS, PROBABILITIES = 20.0, 0.1


@dataclass(frozen=True)
class CDVAEAdvConfig:
    """Paper and code differ; `form` chooses between them, and a third that keeps what is sound of either."""

    form: Literal["recommended", "paper", "code"] = "recommended"
    """recommended: G(x') rebuilds the clean x, D learns the most likely wrong class where D_G is within the margin.
    paper: equations 8 to 10, mixed with equation 1 on clean images. code: as published, see `CDVAEAdv`."""
    margin: float | None = None
    """Lead of the right class in D_G(G(x')) up to which a sample counts. Without it 20 in logits, in form paper, which
    compares probabilities and gives no number, 0.1."""
    gamma_g: float = 0.1
    """Weight of D_G's cross entropy; the paper has one gamma for this and the next."""
    gamma_r: float = 0.1
    """Weight of D's cross entropy, on clean images too."""
    beta: float = 0.01
    """Weight of the regulariser: of a VAE KL / (channels * latent)."""
    kappa: float = 10.0
    """Lead of a wrong logit at which the training attack has enough."""
    clean: bool = False
    """Also train on the clean batch by equation 1; form paper always does."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"--objective.form is {self.form!r}, expected one of {', '.join(FORMS)}")
        for name in ("gamma_g", "gamma_r", "beta", "kappa"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(
                    f"--objective.{name.replace('_', '-')} is {value}, expected a finite number from 0"
                )
        if self.margin is None:
            return
        if math.isnan(self.margin):
            raise UserError("--objective.margin is nan, expected a difference of logits or, in form paper, of "
                            "probabilities")  # fmt: skip
        if self.form == "paper" and not -1 <= self.margin <= 1:
            raise UserError(
                f"--objective.margin is {self.margin} with --objective.form paper, which compares probabilities: "
                f"expected a number from -1 to 1, as {PROBABILITIES}"
            )

    @property
    def lead(self) -> float:
        """`margin`, or what it is where it was not given."""
        if self.margin is not None:
            return self.margin
        return PROBABILITIES if self.form == "paper" else LOGITS


class CDVAEAdv(Objective):
    """Class disentanglement under attack (Yang et al. 2021, section 3.5, equations 7 to 10).

    x' attacks D_G(G(x)) within the ball (equation 7). Where x' brings D_G near to a wrong class, G and D_G learn the
    right one from G(x'), and D learns the wrong one from R(x') = x' - G(x'): the part of the class that was attacked
    has to leave G(x'). With y^ the most likely class of D_G(G(x')), y* the most likely but y, lead the distance of y
    from the best other class, L the regulariser, each form minimises, in one step of G, D and D_G,

    ============= ========================================== ====================== =========================
    .             recommended                                paper (eq. 8 to 10)    code
    ============= ========================================== ====================== =========================
    rebuilds      MSE(G(x'), x)                              MSE(G(x'), x'), kept   MSE(G(x'), x)
    regulariser   beta L(x')                                 beta L(x'), kept       beta L(x')
    D_G           gamma_g CE(D_G(G(x')), y), kept            the same               the same
    D             gamma_r CE(D(R(x')), y*), kept             the same               gamma_r CE(D(R(x')), y^), all
    kept          lead in logits < margin, 20                in probabilities <= c  as recommended
    beside that   with `clean`: MSE(G(x), x) + beta L(x)     the same, always       nothing
    .             + gamma_r CE(D(R(x)), y)
    ============= ========================================== ====================== =========================

    "kept" is the mean over the samples that are: equation 8's expectation, and what the code computes; of none of them
    it is 0, with a gradient of 0. (The code's is nan then.) In a batch that is computed in parts, or by several
    processes, it is the mean of theirs. y^, y* and the leads are those of the attacked network, in eval mode and with
    the mean of the posterior; the passes that train draw the code, by the run's seed, the epoch and the sample's index.
    Losses are of normalised images.

    The training attack is the code's: PGD on the margin with `kappa`, steps of eps / sqrt(steps), on the mean of the
    posterior (the code's network draws there too, which `Autoencoder.sample_at_test` would bring back). Images that
    are misclassified as they are stay so, unattacked: in the code they are all of the clean training. Of the attack's
    settings this takes all but the step size.

    The paper starts from G and D of a clean run of `cdvae` and from a classifier of clean images as D_G:
    ``--start-from RUN,classifier_g=RUN2``.

    Passes with ten attack steps, F one of G and a classifier: 28F. That is 20F of steps, 1F for who is classified
    right, 1F for y* and the leads, and 6F of training, less the second classifier's share of G; with the clean batch
    31F.

    Raises:
        UserError: from `started`, a G or a D_G with its first weights.
    """

    Config = CDVAEAdvConfig
    trains = ClassDisentangled
    main_ways = "rn"
    protocol = "cdvae"

    model: ClassDisentangled

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        settings = attack.keywords()
        del settings["step_size"]
        self._pgd = MarginPGD(
            self.model.way("r"),
            kappa=config.kappa,
            relative_step=attack.steps**-0.5,
            seed=seed,
            engine=engine,
            **settings,
        )
        self.attack: Callable[..., Tensor] = self._attacked

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 2 * strength.steps + 8 + (3 if settings.clean or settings.form == "paper" else 0)

    def started(self) -> None:
        parts = {"auto-encoder": self.model.generator, "classifier of G(x)": self.model.classifier("g")}
        for title, part in parts.items():
            if part is not None and untrained(part):
                raise UserError(
                    f"the {title} was never trained, and this training hardens trained ones: give "
                    f"--start-from RUN,classifier_g=RUN2, a run of cdvae and one of a classifier"
                )

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        config, model = self.config, self.model
        x_adv = self.attack(x, y, index, **self.now())
        kept, label = self._judged(x_adv, y)
        split = model.split(x_adv, seed=derive(self.seed, "posterior", self.epoch), index=index)
        everything = torch.ones_like(kept)
        of_images = kept if config.form == "paper" else everything
        target = split.x if config.form == "paper" else model.normalisation(x)
        terms = {
            "reconstruction": kept_mean(_squared_error(split.g, target), of_images),
            "regulariser": kept_mean(split.regulariser, of_images),
            "ce_g": kept_mean(_cross_entropy(model.classifier("g")(split.g), y), kept),
            "ce_r": kept_mean(
                _cross_entropy(model.classifier("r")(split.r), label),
                everything if config.form == "code" else kept,
            ),
        }
        loss = (
            terms["reconstruction"]
            + config.beta * terms["regulariser"]
            + config.gamma_g * terms["ce_g"]
            + config.gamma_r * terms["ce_r"]
        )
        if config.clean or config.form == "paper":
            natural = self._natural(x, y, index)
            loss = loss + natural
            terms["clean"] = natural
        shown = {name: value.detach() for name, value in terms.items()}
        yield Phase("model", loss, shown | {"kept": kept.to(loss.dtype).mean()})

    def _attacked(
        self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, eps: float, step_size: float
    ) -> Tensor:
        way = self.model.way("r")
        with eval_mode(way), torch.no_grad():
            right = way(x).argmax(1) == y
        x_adv = self._pgd(x, y, index, epoch=epoch, eps=eps)
        # Not left out of the attack: how many they are would have to be read from the device.
        return torch.where(right.reshape(-1, *[1] * (x.dim() - 1)), x_adv, x)

    def _judged(self, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples are kept, bool [B], and what D is to say of R(x'), int64 [B]."""
        form, way = self.config.form, self.model.way("r")
        with eval_mode(way), torch.no_grad():
            logits = way(x_adv).float() if x_adv.dtype != torch.float64 else way(x_adv)
            scores = logits.softmax(1) if form == "paper" else logits
            kept = within_margin(scores, y, self.config.lead, closed=form == "paper")
            return kept, logits.argmax(1) if form == "code" else most_likely_wrong(logits, y)

    def _natural(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Equation 1 on clean images, in a pass of its own: batch norms see them apart from attacked ones."""
        config, model = self.config, self.model
        split: Split = model.split(x, seed=derive(self.seed, "clean posterior", self.epoch), index=index)
        classes = F.cross_entropy(model.classifier("r")(split.r), y)
        rebuilt = F.mse_loss(split.g, split.x)
        return rebuilt + config.beta * split.regulariser.mean() + config.gamma_r * classes


def kept_mean(values: Tensor, kept: Tensor) -> Tensor:
    """Mean of the entries of `values` [B] that `kept` bool [B] names; of none of them 0, with a gradient of 0."""
    return torch.where(kept, values, 0.0).sum() / kept.sum().clamp(min=1)


def within_margin(scores: Tensor, y: Tensor, margin: float, *, closed: bool = False) -> Tensor:
    """Where class y leads the best other one by less than `margin`, bool [B]; `closed`: by it at most.

    Args:
        scores: [B, C], logits or probabilities.
        y: int64 [B].
        margin: in what the scores are in.
        closed: whether the margin itself is within.
    """
    lead = -margin_loss(scores, y)
    return lead <= margin if closed else lead < margin


def most_likely_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """The class with the highest of the logits [B, C] but for y, int64 [B]."""
    return logits.scatter(1, y[:, None], -math.inf).argmax(1)


def _squared_error(image: Tensor, target: Tensor) -> Tensor:
    """[B], the mean over each image."""
    return F.mse_loss(image, target, reduction="none").flatten(1).mean(1)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """[B]."""
    return F.cross_entropy(logits, y, reduction="none")
