"""A backbone taken apart: what several encoders share, and the part of which each has its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from robustfast.errors import UserError
from robustfast.models.digits_cnn import DigitsCNN
from robustfast.models.preact_resnet18 import PreActResNet18
from robustfast.models.small_cnn import SmallCNN
from robustfast.models.timm_backbone import TimmBackbone
from robustfast.models.wide_resnet import WideResNet

__all__ = ["CUTS", "Cut", "average", "cut"]


@dataclass(frozen=True)
class Cut:
    """The three parts of a backbone, whose modules they are: ``backbone(x) == pool(maps(base(x)))``.

    Attributes:
        base: images -> f [B, base_channels, h', w'].
        maps: f -> maps [B, map_channels, h, w]. Leaves f as it is.
        pool: maps -> features [B, H].
        base_channels, map_channels: see above.
        upsampling: kernel, stride and padding of a transposed convolution that leads from h x w back to h' x w'.
    """

    base: nn.Module
    maps: nn.Module
    pool: nn.Module
    base_channels: int
    map_channels: int
    upsampling: tuple[int, int, int] = (4, 2, 1)


def average() -> nn.Module:
    """Maps [B, C, h, w] to their means [B, C]."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def cut(backbone: nn.Module) -> Cut:
    """Take a backbone apart where its class says in `CUTS`.

    Raises:
        UserError: a backbone that has no cut.
    """
    for kind, take_apart in CUTS.items():
        if isinstance(backbone, kind):
            return take_apart(backbone)
    raise UserError(
        f"backbone {type(backbone).__name__} is not cut into what encoders share and what each has: expected "
        f"{', '.join(kind.__name__ for kind in CUTS)}, or a function for it in robustfast.models.cut.CUTS"
    )


def _wide_resnet(backbone: WideResNet) -> Cut:
    """After the second group (RFD, section IV-A); batch norm and ReLU at the end belong to the maps."""
    blocks = backbone.blocks
    shared = 2 * len(blocks) // 3
    base = nn.Sequential(backbone.stem, *blocks[:shared])
    maps = nn.Sequential(*blocks[shared:], backbone.norm, nn.ReLU(inplace=True))
    return Cut(base, maps, average(), backbone.features // 2, backbone.features)


def _preact_resnet18(backbone: PreActResNet18) -> Cut:
    """Before the last stage, after which there is neither batch norm nor ReLU."""
    base = nn.Sequential(backbone.stem, *backbone.blocks[:6])
    return Cut(base, backbone.blocks[6:], average(), 256, backbone.features)


def _digits_cnn(backbone: DigitsCNN) -> Cut:
    """Before the second convolution; maps become features by the backbone's linear layer, no mean."""
    layers = backbone.convolutions
    pool = nn.Sequential(nn.Flatten(), backbone.linear, nn.ReLU(inplace=True))
    return Cut(layers[:3], layers[3:], pool, 64, 64, (3, 1, 1))


def _small_cnn(backbone: SmallCNN) -> Cut:
    """Before the last two convolutions; maps become features by the backbone's linear layers."""
    layers = backbone.convolutions
    pool = nn.Sequential(nn.Flatten(), *backbone.linears)
    return Cut(layers[:5], layers[5:], pool, 32, 64, (5, 3, 1))


def _timm(backbone: TimmBackbone) -> Cut:
    """Before the last stage."""
    base, maps = backbone.stages()
    return Cut(base, maps, average(), backbone.base_channels, backbone.features, backbone.upsampling)


CUTS: dict[type[nn.Module], Callable[[Any], Cut]] = {
    WideResNet: _wide_resnet,
    PreActResNet18: _preact_resnet18,
    DigitsCNN: _digits_cnn,
    SmallCNN: _small_cnn,
    TimmBackbone: _timm,
}
"""How to take apart the backbones of each class."""
