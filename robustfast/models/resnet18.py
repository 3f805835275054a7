"""ResNet-18 with the stem for 32x32 images: AFD's feature extractor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.models.basic_block import BasicBlock

__all__ = ["ResNet18"]


class ResNet18(nn.Module):
    """Images [B, in_channels, H, W] (made for 32x32) to features [B, 512], none of them negative.

    He et al. 2016 with the CIFAR stem (3x3, stride 1, batch norm, ReLU): four stages of two basic blocks,
    64-128-256-512 channels, strides 1-2-2-2, then the mean over all positions. Default PyTorch initialisation.
    AFD (Bashivan et al. 2021, section 4.1) trains it on CIFAR-10, CIFAR-100 and Tiny ImageNet at 32x32.

    Args:
        in_channels: channels of the images.
    """

    features = 512

    def __init__(self, *, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(
            BasicBlock(64, 64, stride=1),
            BasicBlock(64, 64, stride=1),
            BasicBlock(64, 128, stride=2),
            BasicBlock(128, 128, stride=1),
            BasicBlock(128, 256, stride=2),
            BasicBlock(256, 256, stride=1),
            BasicBlock(256, 512, stride=2),
            BasicBlock(512, self.features, stride=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(torch.relu_(self.norm(self.stem(x))))
        return torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1)
