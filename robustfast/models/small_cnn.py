"""The four-convolution MNIST network of TRADES, as AAT uses it: everything up to the removed output layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Images [B, in_channels, 28, 28] to features [B, 200].

    Zhang et al. 2019 (TRADES), SmallCNN, without its last layer (AAT, appendix B.1): four unpadded 3x3
    convolutions 32-32-64-64, each with ReLU, max-pooled after the second and the fourth, then 1024 -> 200 ->
    200 with dropout 0.5 between. Convolutions start Kaiming-normal (fan in) with zero bias; the linear layers
    keep PyTorch's default.

    Args:
        in_channels: channels of the images.

    Raises:
        ValueError: from `forward`, for images that are not 28x28.
    """

    features = 200
    # Where detectors look: behind the pools and behind the linear layers' ReLUs.
    taps: tuple[str, ...] = ("convolutions.4", "convolutions.9", "linears.1", "linears.4")

    def __init__(self, *, in_channels: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.linears = nn.Sequential(
            nn.Linear(64 * 4 * 4, 200),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(200, self.features),
            nn.ReLU(inplace=True),
        )
        for layer in self.convolutions:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (28, 28):
            raise ValueError(
                f"small_cnn takes 28x28 images, got {tuple(x.shape)}; preact_resnet18 takes any size from 8x8"
            )
        return self.linears(torch.flatten(self.convolutions(x), 1))
