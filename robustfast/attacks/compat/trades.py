"""`trades_loss`, as the TRADES repository and most research scripts have it.

``from robustfast.attacks.compat.trades import trades_loss`` in place of ``from trades import trades_loss``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks.compat.clip_first import ClipFirst
from robustfast.attacks.compat.model import fresh_key
from robustfast.attacks.compat.starts import noise
from robustfast.attacks.modes import eval_mode

__all__ = ["trades_loss"]


def trades_loss(
    model: nn.Module,
    x_natural: Tensor,
    y: Tensor,
    optimizer: Any,
    step_size: float = 0.003,
    epsilon: float = 0.031,
    perturb_steps: int = 10,
    beta: float = 1.0,
    distance: str = "l_inf",
) -> Tensor:
    """``CE(model(x), y) + beta * KL(model(x) || model(x_adv))`` with its graph: Zhang et al. 2019 (arXiv:1901.08573).

    As there: x_adv climbs the divergence in eval mode from 0.001 normal noise around x; under "l_2" each step is
    ``2 * epsilon / perturb_steps``, whatever `step_size` says, and clipped before it is projected; another distance
    takes the noise alone. Then the model is put into train mode, all of it, the optimizer's gradients are zeroed, and
    three passes follow, in this order: x, x_adv, x again; batch norms see three batches.

    On purpose different: the probabilities of x are computed once, not in every step, which gives the same numbers in
    eval mode with half the passes; the attack leaves no gradient in any weight; a zero gradient makes no step under
    "l_2", where the repository draws an unnormalised direction; an exception in the attack leaves every mode as it was;
    noise is drawn by one key from torch's generator; images outside [0, 1] are an error.

    Args:
        model: images [B, ...] in [0, 1] -> logits.
        optimizer: whose `zero_grad` is called.
        step_size, epsilon: of the attack, in pixel units.
        perturb_steps: of the attack.
        beta: weight of the divergence.
        distance: "l_inf" or "l_2".

    Returns:
        The scalar loss; x_adv is not returned.
    """
    x_natural = x_natural.detach()
    start = x_natural + 0.001 * _noise(x_natural)
    rules = {"l_inf": ("linf", step_size), "l_2": ("l2", 2 * epsilon / max(1, perturb_steps))}
    x_adv = start
    if distance in rules and perturb_steps > 0:
        with eval_mode(model), torch.no_grad():
            wanted = model(x_natural).softmax(1)
            # Where the network gives none, the loss below is nan, as the script's; the attack takes numbers only.
            wanted = wanted.where(wanted.isfinite(), 1 / wanted.shape[1])
        norm, length = rules[distance]
        attack = ClipFirst(
            model, epsilon, length, perturb_steps, norm, random_start=False, loss="kl", engine="eager"
        )
        x_adv = attack(x_natural, wanted, start=start)
    x_adv = x_adv.clamp(0, 1)

    model.train()
    optimizer.zero_grad()
    logits = model(x_natural)
    natural = F.cross_entropy(logits, y)
    attacked = F.log_softmax(model(x_adv), dim=1)
    # The passes over x are two, as in the repository: each updates running statistics and draws its own dropout.
    divergence = F.kl_div(attacked, F.softmax(model(x_natural), dim=1), reduction="batchmean")
    return natural + beta * divergence


def _noise(x: Tensor) -> Tensor:
    return noise(x, fresh_key())
