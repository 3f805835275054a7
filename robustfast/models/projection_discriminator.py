"""AFD's domain discriminator: of clean features from adversarial ones, given the label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from robustfast.errors import UserError

__all__ = ["VARIANTS", "ProjectionDiscriminator"]

VARIANTS: dict[str, tuple[int, bool]] = {"fc1-pd": (0, True), "fc3": (2, False), "fc3-pd": (2, True)}
"""Name to (hidden layers, whether the label is projected): those of AFD's table A5."""


class ProjectionDiscriminator(nn.Module):
    """Features and true labels to one logit: high for clean images, low for adversarial ones.

    ``logit = linear(h) + <embedding[y], h>`` with h = z, or z behind two linear layers of the same width, each with a
    LeakyReLU of slope 0.2 (Miyato and Koyama 2018, arXiv:1802.05637; AFD, section 4.1 and its code). All weight
    matrices are divided by their largest singular value (Miyato et al. 2018, arXiv:1802.05957). The output layer and
    the embedding start Xavier-uniform, hidden layers at PyTorch's default.

    Singular values are those of `torch.nn.utils.parametrizations.spectral_norm`: every forward in train mode moves
    their estimate by one power iteration, forwards in eval mode leave it. The singular vectors are buffers and travel
    with checkpoints; they are constants to the gradient, which passes twice through the division (for a penalty on the
    gradient). AFD's code takes the older `torch.nn.utils.spectral_norm`, which differs in two ways: its vectors start
    random and reach a norm of 1 over the first forwards, these begin after fifteen power iterations; and there the
    left vector is the last to move, here the right one.

    It computes in the type of its weights, under autocast too: singular values and penalties on gradients lose too much
    in half precision.

    Args:
        features: width m of the features.
        num_classes: C, 2 or more.
        variant: a key of `VARIANTS`.

    Raises:
        UserError: an unknown variant.
    """

    def __init__(self, features: int, num_classes: int, *, variant: str = "fc3-pd") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UserError(f"discriminator {variant!r}: expected one of {', '.join(VARIANTS)}")
        hidden, projects = VARIANTS[variant]
        layers: list[nn.Module] = []
        for _ in range(hidden):
            layers += [spectral_norm(nn.Linear(features, features)), nn.LeakyReLU(0.2)]
        self.hidden = nn.Sequential(*layers)
        output, embedding = nn.Linear(features, 1), nn.Embedding(num_classes, features)
        nn.init.xavier_uniform_(output.weight)
        nn.init.xavier_uniform_(embedding.weight)
        self.output = spectral_norm(output)
        self.embedding = spectral_norm(embedding) if projects else None

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Logits [B, 1].

        Args:
            z: features [B, m].
            y: true labels, int64 [B]; None leaves the label's term out.
        """
        with torch.autocast(z.device.type, enabled=False):
            h = self.hidden(z.to(self.output.bias.dtype))
            logit = self.output(h)
            if self.embedding is not None and y is not None:
                logit = logit + (self.embedding(y) * h).sum(1, keepdim=True)
            return logit
