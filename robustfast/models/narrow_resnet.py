"""The narrow ResNet-18 with which AFD was measured on MNIST."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.models.basic_block import BasicBlock

__all__ = ["NarrowResNet"]


class NarrowResNet(nn.Module):
    """Images [B, in_channels, H, W] (made for 28x28) to features [B, 64], none of them negative.

    The MNIST variant of ResNet-18 in AFD's code: a 3x3 convolution of stride 2 to 16 channels, batch norm and ReLU,
    then four stages of two basic blocks, 16-32-48-64 channels, every stage with stride 2 (28-14-7-4-2-1 pixels), and
    the mean over the positions that are left. Default PyTorch initialisation.

    Args:
        in_channels: channels of the images.
    """

    features = 64

    def __init__(self, *, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            BasicBlock(16, 16, stride=2),
            BasicBlock(16, 16, stride=1),
            BasicBlock(16, 32, stride=2),
            BasicBlock(32, 32, stride=1),
            BasicBlock(32, 48, stride=2),
            BasicBlock(48, 48, stride=1),
            BasicBlock(48, 64, stride=2),
            BasicBlock(64, self.features, stride=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(torch.relu_(self.norm(self.stem(x))))
        return torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1)
