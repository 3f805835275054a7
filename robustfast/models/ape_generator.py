"""APE-GAN's generator, which paints an image anew without what an attack added, and its discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["APEGenerator", "ImageDiscriminator"]


class APEGenerator(nn.Module):
    """Images [B, C, H, W] in [0, 1] to images like them, in [0, 1]; sides are multiples of 4.

    Shen et al. 2017 (arXiv:1707.05474): two convolutions of stride 2, two transposed ones, batch norms between, tanh
    last. Tanh's range is brought to that of pixels.

    Args:
        in_channels: C.
        width: maps behind the first convolution, twice as many behind the second one.

    Attributes:
        in_channels: the argument.

    Raises:
        ValueError: from `forward`, for sides that are no multiples of 4.
    """

    def __init__(self, *, in_channels: int, width: int = 64) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(width, in_channels, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % 4 or x.shape[-1] % 4:
            raise ValueError(f"this generator takes images of sides that 4 divides, got {tuple(x.shape)}")
        return (torch.tanh(self.layers(x)) + 1) / 2


class ImageDiscriminator(nn.Module):
    """Images [B, C, H, W] to one logit each [B], high for natural ones.

    Three convolutions of stride 2, batch norms on all but the first, leaky ReLUs; then a linear layer. The published
    one lies over all positions of the last maps, this one over their mean, which suits images of any size.

    Args:
        in_channels: C.
        width: maps behind the first convolution; twice and four times as many behind the others.
    """

    def __init__(self, *, in_channels: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.judge = nn.Linear(4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(self.layers(x).mean(dim=(2, 3)))[:, 0]
