"""Wide ResNets with dropout, as CD-VAE's code takes WRN-28-10."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.errors import UserError

__all__ = ["DropoutWideResNet", "dropout_wide_resnet"]


class DropoutWideResNet(nn.Module):
    """Images [B, in_channels, H, W] (made for 32x32) to features [B, 64 * width].

    Zagoruyko and Komodakis 2016 with dropout, in the version that CD-VAE (Yang et al. 2021) trains as D, D_G and D-hat:
    a 16-channel stem, three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels and strides
    1-2-2, then batch norm, ReLU and the mean over all positions. It differs from `robustfast.models.WideResNet`: every
    convolution has a bias, a block strides in its second convolution and takes its shortcut from the raw input, and the
    last batch norm has momentum 0.9, so that its running statistics are nearly those of the last batch. Default PyTorch
    initialisation (their code defines another and never calls it).

    Args:
        depth: layers in the paper's count: 10, 16, 22, 28, 34, 40, ...
        width: factor on the channels.
        in_channels: channels of the images.
        dropout: share of the maps' entries that each block drops between its convolutions while training.

    Attributes:
        taps: names of the modules at which detectors look: the stem and the groups, before the last batch norm.

    Raises:
        UserError: `depth` is not 6n + 4 with n >= 1, or `width` is below 1.
    """

    taps: tuple[str, ...] = ("stem", "groups.0", "groups.1", "groups.2")

    def __init__(self, depth: int, width: int, *, in_channels: int = 3, dropout: float = 0.3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise UserError(
                f"wide_resnet depth {depth}: expected 6n + 4 with n >= 1: 10, 16, 22, 28, 34, 40, ..."
            )
        if width < 1:
            raise UserError(f"wide_resnet width {width}: expected 1 or more")
        self.features = 64 * width
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.groups = nn.Sequential(
            *(
                nn.Sequential(
                    DropoutBlock(
                        channels[group], channels[group + 1], stride=min(group + 1, 2), dropout=dropout
                    ),
                    *(
                        DropoutBlock(channels[group + 1], channels[group + 1], stride=1, dropout=dropout)
                        for _ in range(blocks - 1)
                    ),
                )
                for group in range(3)
            )
        )
        self.norm = nn.BatchNorm2d(self.features, momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu_(self.norm(self.groups(self.stem(x))))
        return torch.flatten(F.adaptive_avg_pool2d(active, 1), 1)


class DropoutBlock(nn.Module):
    """BN-ReLU-conv-dropout-BN-ReLU-conv plus a shortcut; the second convolution has the stride.

    The shortcut is the input itself or, where the shape changes, a 1x1 convolution of the **raw** input.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        inside = self.dropout(self.conv1(torch.relu_(self.norm1(x))))
        return self.conv2(torch.relu_(self.norm2(inside))) + shortcut


def dropout_wide_resnet(depth: int, width: int, *, in_channels: int = 3) -> DropoutWideResNet:
    """WRN-depth-width with dropout 0.3; see `DropoutWideResNet`."""
    return DropoutWideResNet(depth, width, in_channels=in_channels)
