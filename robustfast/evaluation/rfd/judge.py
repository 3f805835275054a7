"""What RFD is made of besides its classes: the features of a way, and the discriminator that judges images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustfast.models import Network, OneWay
from robustfast.objectives import OBJECTIVES
from robustfast.ops import margin_loss
from robustfast.registry import lookup
from robustfast.training.run_folder import Run
from robustfast.training.run_objective import run_objective

__all__ = ["Judge", "judge", "judged_clean", "lead", "no_discriminator", "robust_features"]


class Judge(nn.Module):
    """The robust way and the domain discriminator in one pass: logits [B, C] of C(z_r), then that of D(z_ds), [B, C+1].

    One tensor, so that the attacks of the suite can climb a loss of both.

    Args:
        model: a disentangled network: ``encode(x, "rd")`` gives z_r and z_ds, ``classifier`` reads z_r.
        discriminator: z [B, H] -> logit [B, 1], high for clean images.
    """

    def __init__(self, model: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.model, self.discriminator = model, discriminator

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.encode(x, "rd")  # type: ignore[operator]
        return torch.cat(
            [self.model.classifier(features["r"]), self.discriminator(features["d"]).reshape(len(x), 1)],
            dim=1,
        )

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] of the robust way, and of the discriminator [B]."""
        both = self(x)
        return both[:, :-1], both[:, -1]


def judge(run: Run) -> Judge:
    """The judge of a run that trained one, in eval mode.

    Raises:
        UserError: a checkpoint without the discriminator.
    """
    return Judge(run.model, run_objective(run).discriminator).eval()  # type: ignore[attr-defined]


def judged_clean(score: Tensor) -> Tensor:
    """Whether sigmoid(D) is at least a half: bool like `score`. Below it an image counts as adversarial (IV-E)."""
    return score >= 0


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the largest other logit leads that of the label, [B]: positive for the misclassified."""
    return margin_loss(logits, labels)


def no_discriminator(run: Run) -> str | None:
    """Why a run has no discriminator of domains; None where it has one."""
    if lookup("objective", OBJECTIVES, run.config.method).protocol == "rfd":
        return None
    return f"{run.config.method} trains no discriminator of domains and no features of their own, as rfd does"


def robust_features(run: Run) -> Callable[[Tensor], Tensor]:
    """What the classifier of that way sees, [B, H]: z_r of a disentangled network, the features of any other."""
    model: Network = run.model
    if isinstance(model, OneWay):
        return model.features
    way = run.config.main_way
    return model.encoders(way)[way]
