"""Pre-activation ResNet-18 as AAT takes it from YOPO: no batch norm and no ReLU after the last block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PreActResNet18"]


class PreActResNet18(nn.Module):
    """Images [B, in_channels, H, W] (made for 32x32) to features [B, 512].

    He et al. 2016 with the CIFAR stem (3x3, stride 1): four stages of two blocks, 64-128-256-512 channels,
    strides 1-2-2-2, then the mean over all positions of the **raw** last sum. Most versions normalise and
    rectify there; the one AAT was measured with (Zhang et al. 2019, YOPO) does not, so features may be
    negative. Default PyTorch initialisation.

    Args:
        in_channels: channels of the images.
    """

    features = 512

    def __init__(self, *, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            PreActBlock(64, 64, stride=1),
            PreActBlock(64, 64, stride=1),
            PreActBlock(64, 128, stride=2),
            PreActBlock(128, 128, stride=1),
            PreActBlock(128, 256, stride=2),
            PreActBlock(256, 256, stride=1),
            PreActBlock(256, 512, stride=2),
            PreActBlock(512, self.features, stride=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1), 1)


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut.

    The shortcut is the input itself or, where the shape changes, a 1x1 convolution of the **activated** input.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu_(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(torch.relu_(self.norm2(self.conv1(active)))) + shortcut
