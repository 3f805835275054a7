"""The losses of RFD (R, NR and DS features pulled apart), of features and logits alone.

Features come as mappings from "r", "n" and "d" (robust, non-robust, domain-specific) to [B, H], one of natural images
and one of the same images attacked ("adv"). All means are over the batch; half-precision features count in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "adversarial_loss",
    "angular_loss",
    "class_losses",
    "divergences",
    "domain_loss",
    "kl_loss",
    "reconstruction_loss",
]

Features = Mapping[str, Tensor]


def divergences(z: Features) -> Tensor:
    """``KL(p_i || p_j) + KL(p_j || p_i)`` of each pair of features, p their softmax: [3, B] for rn, rd, nd.

    Which is ``sum (p_i - p_j)(log p_i - log p_j)``. Computed as ``sum (p_i - p_j)(z_i - z_j)``: what the logarithms
    subtract is the same for a whole row, and p_i - p_j sums to 0. This is faster (bench/pairwise_kl.py).
    """
    x = [full(z[name]) for name in "rnd"]
    p = [value.softmax(1) for value in x]
    return torch.stack([((p[i] - p[j]) * (x[i] - x[j])).sum(1) for i, j in ((0, 1), (0, 2), (1, 2))])


def kl_loss(clean: Features, adv: Features, mode: str) -> Tensor:
    """L_kl: "a Kullback-Leibler divergence loss between each pair of the disentangled features" (RFD, figure 2c).

    The paper has no formula, and wants features of small dependence on each other, where to minimise a divergence would
    make them the same.

    Args:
        clean, adv: the features.
        mode: "repel": the mean of exp(-s) over pairs and domains, s the symmetric divergence; "literal": the mean of s.
    """
    s = torch.stack([divergences(clean), divergences(adv)])
    return torch.exp(-s).mean() if mode == "repel" else s.mean()


def angular_loss(clean: Tensor, adv: Tensor) -> Tensor:
    """L_dist (RFD, equation 6): mean of 1 - |cos| between robust features [B, H] of an image and its attacked one."""
    return (1 - F.cosine_similarity(full(clean), full(adv), dim=1).abs()).mean()


def class_losses(logits: Features, adv: Features, y: Tensor) -> dict[str, Tensor]:
    """The four terms of L_ce (RFD, equation 7), each a mean.

    Ascent on the last one has no end by itself: each image's is bounded by 2 log C, twice the loss of a guess, and has
    no gradient beyond.

    Args:
        logits, adv: of the ways "r" and "n", [B, C].
        y: true labels, int64 [B].

    Returns:
        "r", "n", "r_adv", "n_adv".
    """
    bound = 2 * math.log(adv["n"].shape[1])
    return {
        "r": F.cross_entropy(full(logits["r"]), y),
        "n": F.cross_entropy(full(logits["n"]), y),
        "r_adv": F.cross_entropy(full(adv["r"]), y),
        "n_adv": F.cross_entropy(full(adv["n"]), y, reduction="none").clamp(max=bound).mean(),
    }


def domain_loss(clean: Features, adv: Features) -> Tensor:
    """L_bce (RFD, equation 8): cross entropy of the discriminator, clean is 1, from logits [B, 1]; mean over kinds."""
    losses = [F.softplus(-full(clean[name])).mean() + F.softplus(full(adv[name])).mean() for name in clean]
    return torch.stack(losses).mean()


def adversarial_loss(clean: Features, adv: Features, form: str) -> dict[str, Tensor]:
    """L_adv (RFD, equation 9) from the discriminator's logits [B, 1].

    Robust and non-robust features are to be taken for those of the other domain, domain-specific ones for their own.
    The second expectation for the latter lacks its prime in print.

    Args:
        clean, adv: logits of "r", "n" and "d".
        form: "minimax": E log D(z) + E log(1 - D(z')) as printed, which has no lower bound; "flipped": cross entropy
            with the other domain's label, which has the same fixed point and a slope where the discriminator is right.

    Returns:
        "fool", the mean over r and n, and "tell" of d.
    """
    fool = [
        F.softplus(full(clean[name])).mean() + F.softplus(-full(adv[name])).mean()
        if form == "flipped"
        else -F.softplus(-full(clean[name])).mean() - F.softplus(full(adv[name])).mean()
        for name in "rn"
    ]
    tell = F.softplus(-full(clean["d"])).mean() + F.softplus(full(adv["d"])).mean()
    return {"fool": torch.stack(fool).mean(), "tell": tell}


def reconstruction_loss(rebuilt: Tensor, f: Tensor) -> Tensor:
    """L_res (RFD, equation 10) of one domain: mean absolute difference; f gets no gradient."""
    return (full(rebuilt) - full(f.detach())).abs().mean()


def full(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
