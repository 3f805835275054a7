"""What takes the class-redundant part out of an image: G of CD-VAE."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Autoencoder", "Coded"]


class Coded(NamedTuple):
    """What an auto-encoder makes of normalised images x.

    Attributes:
        image: G(x), like x.
        latent: [B, L], without noise: the mean of the posterior, or the codes.
        regulariser: [B], what its training adds to the reconstruction error: the scaled divergence of the posterior, or
            the losses of a codebook.
    """

    image: Tensor
    latent: Tensor
    regulariser: Tensor


class Autoencoder(nn.Module):
    """Normalised images [B, C, H, W] to `Coded`, in ``forward(x, *, seed=None, index=None)``.

    With a seed and the samples' numbers index, int64 [B], the code is drawn, each sample's by (seed, number); without
    them it is the mean of the posterior, in train mode too. One without the other is a ValueError.

    Attributes:
        sample_at_test: draw the code also where no seed is given, from torch's global generator. That is what the
            paper's white-box evaluation does: the attacked network then answers differently each time, and part of its
            robustness is that noise. Off unless set; a codebook draws nothing.
    """

    sample_at_test: bool = False

    def forward(self, x: Tensor, *, seed: int | None = None, index: Tensor | None = None) -> Coded:
        raise NotImplementedError

    @staticmethod
    def drawn(seed: int | None, index: Tensor | None) -> bool:
        """Whether the code is drawn by seed and index.

        Raises:
            ValueError: one without the other.
        """
        if (seed is None) != (index is None):
            given, lacking = ("seed", "index") if index is None else ("index", "seed")
            raise ValueError(
                f"{given} without {lacking}: expected both, which draw the code, or neither, for its mean"
            )
        return seed is not None
