"""The `attack_pgd` of "Fast is better than free": normalised images, one radius per channel, delta back.

``from robustfast.attacks.compat.fast_adversarial import attack_pgd`` in place of the script's own function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.compat.model import as_it_is, fresh_key
from robustfast.attacks.compat.restarts import highest_loss
from robustfast.attacks.draws import uniform
from robustfast.attacks.pgd import PGD

__all__ = ["attack_pgd", "cifar10_mean", "cifar10_std", "lower_limit", "upper_limit"]

cifar10_mean = (0.4914, 0.4822, 0.4465)
cifar10_std = (0.2471, 0.2435, 0.2616)

_mean, _std = (torch.tensor(values).reshape(3, 1, 1) for values in (cifar10_mean, cifar10_std))
lower_limit = _LOWER = (0 - _mean) / _std
upper_limit = _UPPER = (1 - _mean) / _std


def attack_pgd(
    model: Callable[[Tensor], Tensor],
    X: Tensor,
    y: Tensor,
    epsilon: Tensor | float,
    alpha: Tensor | float,
    attack_iters: int,
    restarts: int,
    opt: Any = None,
    *,
    lower_limit: Tensor | float | None = None,
    upper_limit: Tensor | float | None = None,
) -> Tensor:
    """PGD under linf in the units of normalised images, as in the evaluation of Wong et al. 2020 (arXiv:2001.03994).

    As there: a sample stops where the model is wrong about it; of the restarts, each sample keeps the delta of the
    highest cross entropy, fooled or not, the last one of equals, and zero where every loss is nan; the mode of the
    model is left as it is. On purpose different: no weight gets a gradient, batch norms in train mode keep their
    running statistics, draws are keyed by one number from torch's generator per call, and images outside the limits
    are an error.

    Args:
        model: normalised images -> logits.
        X: normalised images [B, C, H, W].
        y: labels int64 [B].
        epsilon, alpha: radius and step in units of X, already divided by the standard deviation: tensors [C, 1, 1] or
            numbers.
        attack_iters: steps.
        restarts: independent starts, uniform in the ball, clipped.
        opt: apex's optimizer in the script; not needed, a float16 model's gradients are scaled here.
        lower_limit, upper_limit: what 0 and 1 are in units of X, [C, 1, 1] or numbers; None: those of CIFAR-10 in that
            script, `cifar10_mean` and `cifar10_std`.

    Returns:
        delta like X: the adversarial images are X + delta.

    Raises:
        ValueError: images outside the limits, or limits, a radius or a step for another number of channels.
    """
    lower, upper = (
        torch.as_tensor(given if given is not None else default, device=X.device, dtype=X.dtype)
        for given, default in ((lower_limit, _LOWER), (upper_limit, _UPPER))
    )
    radius, step = (torch.as_tensor(value, device=X.device, dtype=X.dtype) for value in (epsilon, alpha))
    X = X.detach()
    for name, given, value in (
        ("lower_limit", lower_limit, lower), ("upper_limit", upper_limit, upper),
        ("epsilon", epsilon, radius), ("alpha", alpha, step),
    ):  # fmt: skip
        if not _fits(value, X):
            if given is None:
                raise ValueError(
                    f"lower_limit and upper_limit are CIFAR-10's unless given, of 3 channels, and X has shape "
                    f"{tuple(X.shape)}: give your own, as numbers or of shape [C, 1, 1]"
                )
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and X {tuple(X.shape)}: give a number, or shape [C, 1, 1]"
            )
    outside = torch.maximum(lower - X, X - upper)
    if len(X) and not float(outside.max()) < 1e-4:
        raise ValueError(
            f"X has values from {float(X.min()):.6g} to {float(X.max()):.6g}, outside lower_limit and upper_limit: "
            f"they are what 0 and 1 become by the normalisation of X; give those of your data"
        )
    index = torch.arange(len(X), device=X.device)
    with as_it_is(model) as held:
        attack = _PerChannel(held, radius, step, lower, upper, attack_iters)

        def run() -> Tensor:
            draws = uniform(index, tuple(X.shape[1:]), seed=fresh_key(), dtype=X.dtype)
            delta = radius * (2 * draws - 1)
            delta = torch.maximum(torch.minimum(delta, upper - X), lower - X)
            return (attack(X, y, start=X + delta) if attack_iters else X + delta) - X

        return highest_loss(held, X, y, run, restarts)


def _fits(value: Tensor, X: Tensor) -> bool:
    """Whether `value` is one for each channel or entry of an image of X, or for all."""
    try:
        return torch.broadcast_shapes(value.shape, X.shape) == X.shape
    except RuntimeError:
        return False


class _PerChannel(PGD):
    """Sign steps within a ball and a box that differ from channel to channel, sample by sample until one is fooled."""

    name = "pgd"

    def __init__(
        self, model: Any, radius: Tensor, step: Tensor, lower: Tensor, upper: Tensor, steps: int
    ) -> None:
        super().__init__(
            model, eps=1.0, step_size=1.0, steps=max(1, steps), random_start=False, early_stop=True, engine="eager",
            bounds=(-float("inf"), float("inf")),
        )  # fmt: skip
        self._radius, self._length, self._lower, self._upper = radius, step, lower, upper

    def _move(self, here: Tensor, direction: Tensor, centre: Tensor, sizes: Mapping[str, Tensor]) -> None:
        delta = here - centre + self._length * direction.sign()
        delta = torch.maximum(torch.minimum(delta, self._radius), -self._radius)
        here.copy_(torch.maximum(torch.minimum(centre + delta, self._upper), self._lower))
