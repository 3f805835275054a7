"""Auto-encoders by name, each for the images of certain data sets, with what those are normalised by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from robustfast.models.autoencoder import Autoencoder
from robustfast.models.residual_vae import ResidualVAE
from robustfast.models.vq_vae import VQVAE

__all__ = ["AUTOENCODERS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """An auto-encoder and the space it works in.

    Attributes:
        build: called as ``build(in_channels=...)``.
        mean, std: of the pixels in [0, 1], one for all channels or one each; networks see ``(x - mean) / std``.
    """

    build: Callable[..., Autoencoder]
    mean: tuple[float, ...]
    std: tuple[float, ...]


AUTOENCODERS: dict[str, Kind] = {
    "digits_vae": Kind(partial(ResidualVAE, size=8, latent=64, end_norm=True), (0.3053,), (0.3760,)),
    "mnist_vae": Kind(partial(ResidualVAE, size=28, latent=128, end_norm=True), (0.1307,), (0.3081,)),
    "cifar_vae": Kind(
        partial(ResidualVAE, size=32, latent=2048), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "vq_vae": Kind(VQVAE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Auto-encoders by name."""
