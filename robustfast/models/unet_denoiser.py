"""A U-Net that predicts what an attack added to an image, and takes it off: HGD's denoiser."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNetDenoiser"]


class UNetDenoiser(nn.Module):
    """``x - noise(x)`` for images [B, C, H, W] in [0, 1] of any size; what comes out is not clipped.

    The DUNET of Liao et al. 2018 (arXiv:1712.02976, section 3.1, and its code). All blocks are 3x3 convolutions, each
    with batch norm and ReLU. On the way down each level but the first begins with a stride of 2; on the way up the maps
    of the level below are brought to the size of this level's bilinearly and stand beside them. A 1x1 convolution
    without bias makes the noise.

    Args:
        in_channels: C.
        widths: maps of each level, the first one at full size; two levels or more. The default is the published one.

    Attributes:
        in_channels: the argument.
    """

    def __init__(self, *, in_channels: int, widths: tuple[int, ...] = (64, 128, 256, 256, 256)) -> None:
        super().__init__()
        self.in_channels = in_channels
        inputs = (in_channels, *widths)
        self.down = nn.ModuleList(
            _block(inputs[level], width, stride=2 if level else 1, depth=3 if level else 2)
            for level, width in enumerate(widths)
        )
        # What comes from below has the width of that level: the way up has the widths of the way down.
        self.up = nn.ModuleList(
            _block(width + widths[level + 1], width, stride=1, depth=3 if level else 2)
            for level, width in enumerate(widths[:-1])
        )
        self.noise = nn.Conv2d(widths[0], in_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for block in self.down[1:]:
            maps.append(block(maps[-1]))
        out = maps.pop()
        for block, lateral in zip(reversed(self.up), reversed(maps), strict=True):
            grown = F.interpolate(out, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            out = block(torch.cat([grown, lateral], dim=1))
        return x - self.noise(out)


def _block(inputs: int, width: int, *, stride: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [
            nn.Conv2d(
                width if number else inputs,
                width,
                3,
                stride=1 if number else stride,
                padding=1,
                # No biases: each batch norm has its own.
                bias=False,
            ),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
