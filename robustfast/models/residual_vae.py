"""A convolutional variational auto-encoder with residual blocks: CD-VAE's G for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustfast.models.autoencoder import Autoencoder, Coded
from robustfast.models.posterior import kl_divergence
from robustfast.ops import reparameterise

__all__ = ["ResidualBlock", "ResidualVAE"]


class ResidualBlock(nn.Module):
    """``x + conv1x1(lrelu(norm(conv3x3(lrelu(x)))))`` on maps [B, C, H, W], no activation behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LeakyReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualVAE(Autoencoder):
    """CD-VAE's G (Yang et al. 2021, from their code): z ~ N(mu(x), diag exp logvar(x)), G(x) = decoder(z).

    Two strided convolutions to `width` maps of a quarter of the side, two residual blocks with a batch norm between
    them, linear layers to mu and logvar; the decoder mirrors that and ends in tanh and a batch norm with a learned
    scale: tanh alone could not reach the range of normalised pixels.

    Args:
        in_channels: channels of the images.
        size: side of the images, a multiple of 4.
        latent: L, entries of z. CIFAR-10: 2048.
        width: maps inside; half as many behind the first convolution.
        end_norm: a batch norm behind the last block of the encoder too, which theirs has not.

    Raises:
        ValueError: from `forward`, for images of another size, or a seed without an index.
    """

    def __init__(
        self, *, in_channels: int, size: int, latent: int, width: int = 32, end_norm: bool = False
    ) -> None:
        super().__init__()
        half = width // 2
        self.size, self.latent, self.scale = size, latent, in_channels * latent
        self.shape = (width, size // 4, size // 4)
        flat = width * (size // 4) ** 2
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, half, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            ResidualBlock(width),
            nn.BatchNorm2d(width),
            ResidualBlock(width),
            *([nn.BatchNorm2d(width)] if end_norm else []),
        )
        self.mean, self.log_variance = nn.Linear(flat, latent), nn.Linear(flat, latent)
        self.grow = nn.Linear(latent, flat)
        self.decoder = nn.Sequential(
            ResidualBlock(width),
            nn.BatchNorm2d(width),
            ResidualBlock(width),
            nn.BatchNorm2d(width),
            nn.ConvTranspose2d(width, half, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.LeakyReLU(inplace=True),
            nn.ConvTranspose2d(half, in_channels, 4, stride=2, padding=1, bias=False),
            nn.Tanh(),
            nn.BatchNorm2d(in_channels),
        )

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar [B, L] of normalised images, under autocast in float32."""
        if x.shape[-2:] != (self.size, self.size):
            raise ValueError(f"this VAE takes {self.size}x{self.size} images, got {tuple(x.shape)}")
        # Not a view of maps in channels-last order: the same entry of z is the same place in both layouts.
        flat = torch.flatten(self.encoder(x).contiguous(), 1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self.mean(flat).to(dtype), self.log_variance(flat).to(dtype)

    def decode(self, z: Tensor) -> Tensor:
        """z [B, L] to normalised images."""
        return self.decoder(self.grow(z).unflatten(1, self.shape))

    def forward(self, x: Tensor, *, seed: int | None = None, index: Tensor | None = None) -> Coded:
        drawn = self.drawn(seed, index)
        mean, log_variance = self.posterior(x)
        if drawn:
            z, divergence = reparameterise(mean, log_variance, seed=seed, index=index)
        else:
            z, divergence = mean, kl_divergence(mean, log_variance)
            if self.sample_at_test:
                z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        # The paper's code divides by channels times L, so that the weight does not depend on the size of z.
        return Coded(self.decode(z), mean, divergence / self.scale)
