"""What tells features of natural images from those of attacked ones."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DomainDiscriminator"]


class DomainDiscriminator(nn.Module):
    """Features [B, H] to one logit [B, 1], positive for a natural image.

    "A two-layer fully connected network" (RFD, section IV-A), which leaves width and activation open: here 256 with a
    leaky ReLU of slope 0.2. One discriminator judges all three kinds of features (RFD, equation 8).

    Args:
        features: H.
        hidden: width of the layer between.
    """

    def __init__(self, features: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.LeakyReLU(0.2, inplace=True), nn.Linear(hidden, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)
