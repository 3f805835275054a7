"""The `attack_pgd` of "Overfitting in adversarially robust deep learning" and of the scripts that follow it.

``from robustfast.attacks.compat.robust_overfitting import attack_pgd`` in place of the script's own function. Scripts
whose function calls a `normalize` of theirs pass it: ``functools.partial(attack_pgd, normalize=normalize)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks.compat.model import Through, as_it_is, fresh_key
from robustfast.attacks.compat.restarts import highest_loss
from robustfast.attacks.compat.starts import sphere_by_radius
from robustfast.attacks.pgd import PGD
from robustfast.ops import random_start

__all__ = ["attack_pgd"]

_NORMS = {"l_inf": "linf", "l_2": "l2"}


def attack_pgd(
    model: Callable[[Tensor], Tensor],
    X: Tensor,
    y: Tensor,
    epsilon: float,
    alpha: float,
    attack_iters: int,
    restarts: int,
    norm: str = "l_inf",
    early_stop: bool = False,
    mixup: bool = False,
    y_a: Tensor | None = None,
    y_b: Tensor | None = None,
    lam: float | None = None,
    *,
    normalize: Callable[[Tensor], Tensor] | None = None,
    lower_limit: float = 0.0,
    upper_limit: float = 1.0,
) -> Tensor:
    """PGD on images in [0, 1], as in Rice et al. 2020 (arXiv:2002.11569).

    As there: project, then clip; the l2 start has a uniform radius; of the restarts, each sample keeps the delta of the
    highest loss, fooled or not, the last one of equals; with `early_stop` a sample stops where the model is wrong about
    it; with `mixup` the loss is ``lam * CE(y_a) + (1 - lam) * CE(y_b)``; the mode of the model is left as it is. On
    purpose different: no weight gets a gradient, batch norms in train mode keep their running statistics, a zero
    gradient makes no step, draws are keyed by one number from torch's generator per call, and images outside the
    limits are an error.

    Args:
        model: images, normalised where `normalize` is given, -> logits.
        X: images [B, ...] in [lower_limit, upper_limit].
        y: labels int64 [B].
        epsilon, alpha: radius and step, in units of X.
        attack_iters: steps.
        restarts: independent starts.
        norm: "l_inf" or "l_2".
        normalize: what the images pass before the model.

    Returns:
        delta like X: the adversarial images are X + delta.

    Raises:
        ValueError: another norm, images outside the limits.
    """
    if norm not in _NORMS:
        raise ValueError(f"norm is {norm!r}, expected one of {', '.join(_NORMS)}")
    X = X.detach()
    # The last column tells who is fooled.
    target = torch.stack((y_a, y_b, y), 1) if mixup else y

    def mixed(logits: Tensor, target: Tensor) -> Tensor:
        one, other = (F.cross_entropy(logits, target[:, k], reduction="none") for k in (0, 1))
        return lam * one + (1 - lam) * other

    whole = model if normalize is None else Through(model, normalize)
    bounds = (lower_limit, upper_limit)
    with as_it_is(whole) as held:
        attack = _ByLabel(
            held, epsilon, alpha, max(1, attack_iters), _NORMS[norm], random_start=False, early_stop=early_stop,
            loss=mixed if mixup else "ce", bounds=bounds, engine="eager",
        )  # fmt: skip

        def run() -> Tensor:
            key = fresh_key()
            if norm == "l_inf":
                start = random_start(X, eps=epsilon, bounds=bounds, seed=key)
            else:
                start = (X + epsilon * sphere_by_radius(X, key)).clamp(*bounds)
            return (attack(X, target, start=start) if attack_iters else start) - X

        return highest_loss(held, X, target, run, restarts, mixed if mixup else None)


class _ByLabel(PGD):
    """PGD whose targets may be rows that end with the label."""

    name = "pgd"

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        return super()._fooled(logits, y if y.dim() == 1 else y[:, -1])
