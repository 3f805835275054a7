"""A small batch-normed network for the 8x8 digits, so cheap that AAT++ trains in minutes on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DigitsCNN"]


class DigitsCNN(nn.Module):
    """Images [B, in_channels, 8, 8] to features [B, 128].

    Three 3x3 convolutions with batch norm and ReLU, 32-64-64 channels; the second has stride 2, so the third
    and the linear layer see 4x4 maps.

    Args:
        in_channels: channels of the images.

    Raises:
        ValueError: from `forward`, for images that are not 8x8.
    """

    features = 128

    def __init__(self, *, in_channels: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *convolution(in_channels, 32, stride=1),
            *convolution(32, 64, stride=2),
            *convolution(64, 64, stride=1),
        )
        self.linear = nn.Linear(64 * 4 * 4, self.features)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (8, 8):
            raise ValueError(f"digits_cnn takes 8x8 images, got {tuple(x.shape)}; small_cnn takes 28x28")
        return torch.relu_(self.linear(torch.flatten(self.convolutions(x), 1)))


def convolution(in_channels: int, out_channels: int, *, stride: int) -> tuple[nn.Module, ...]:
    """3x3 convolution, batch norm, ReLU. No bias: the batch norm has one."""
    return (
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
