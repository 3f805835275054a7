"""Wide ResNets of any depth 6n + 4 and width, as AAT takes WRN-34-10 from YOPO and TRADES."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models.preact_resnet18 import PreActBlock

__all__ = ["WideResNet", "wide_resnet"]


class WideResNet(nn.Module):
    """Images [B, in_channels, H, W] (made for 32x32) to features [B, 64 * width].

    Zagoruyko and Komodakis 2016: a 16-channel stem, three groups of (depth - 4) / 6 pre-activation blocks with
    16, 32 and 64 times `width` channels and strides 1-2-2, then batch norm, ReLU and the mean over all
    positions. A block whose channels change takes its shortcut from the activated input. No dropout, default
    PyTorch initialisation (YOPO switches the usual He start off).

    Args:
        depth: layers in the paper's count: 10, 16, 22, 28, 34, 40, ...
        width: factor on the channels.
        in_channels: channels of the images.

    Raises:
        UserError: `depth` is not 6n + 4 with n >= 1, or `width` is below 1.
    """

    def __init__(self, depth: int, width: int, *, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise UserError(
                f"wide_resnet depth {depth}: expected 6n + 4 with n >= 1: 10, 16, 22, 28, 34, 40, ..."
            )
        if width < 1:
            raise UserError(f"wide_resnet width {width}: expected 1 or more")
        self.features = 64 * width
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.blocks = nn.Sequential(
            *(
                PreActBlock(
                    channels[group] if block == 0 else channels[group + 1],
                    channels[group + 1],
                    stride=2 if block == 0 and group > 0 else 1,
                )
                for group in range(3)
                for block in range(blocks)
            )
        )
        self.norm = nn.BatchNorm2d(self.features)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu_(self.norm(self.blocks(self.stem(x))))
        return torch.flatten(F.adaptive_avg_pool2d(active, 1), 1)


def wide_resnet(depth: int, width: int, *, in_channels: int = 3) -> WideResNet:
    """WRN-depth-width; see `WideResNet`."""
    return WideResNet(depth, width, in_channels=in_channels)
