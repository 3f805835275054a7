"""FAB-T: FAB at one class after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks.counts import whole_number
from robustfast.attacks.fab import FAB

__all__ = ["FABT"]


class FABT(FAB):
    """Targeted FAB: FAB run at each of the classes with the largest logits at x, one after the other.

    Croce and Hein 2020 (arXiv:1907.02044), section 5; the form in AutoAttack (arXiv:2003.01690), with nine classes.
    Each run follows the boundary z_k = z_y of its class k alone: one backward pass per step instead of K - 1. Any other
    class than y counts as found. It is an attack against y, not towards a wanted class.

    As in AutoAttack's `FABAttack_PT(targeted=True)` and torchattacks' `FAB(multi_targeted=True)` a sample that was
    found within eps is not attacked at further classes; with ``eps=None``, which they do not have, the nearest image of
    all classes and restarts is returned. Where the model has fewer than `n_target_classes` other classes, all are
    taken; theirs end in an IndexError. See `FAB` for everything else.

    Args:
        model, norm, eps, steps, restarts, alpha_max, eta, beta, early_stop: see `FAB`; `steps` per class and restart.
        n_target_classes: how many classes.
        bounds, batch_norm, seed, engine: see `Attack`.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "fab-t"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        norm: str = "linf",
        eps: float | Tensor | None = 8 / 255,
        steps: int = 100,
        restarts: int = 1,
        n_target_classes: int = 9,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        early_stop: bool = False,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if targeted:
            raise ValueError("fab-t picks its classes itself: with targeted=True, towards y, use fab")
        super().__init__(
            model, norm=norm, eps=eps, steps=steps, restarts=restarts, alpha_max=alpha_max, eta=eta, beta=beta,
            early_stop=early_stop, bounds=bounds, batch_norm=batch_norm, seed=seed, engine=engine,
        )  # fmt: skip
        self.n_target_classes = whole_number("n_target_classes", n_target_classes)

    def _goals(self, logits: Tensor, label: Tensor) -> list[Tensor]:
        count = min(self.n_target_classes, logits.shape[1] - 1)
        others = logits.scatter(1, label[:, None], -torch.inf)
        return list(others.topk(count, dim=1).indices.unbind(1))

    def _gaps(self, logits: Tensor, target: Tensor, goal: Tensor) -> list[Tensor]:
        return [(logits.gather(1, goal[:, None]) - logits.gather(1, target[:, None])).squeeze(1)]
