"""Backbones of timm for images of ImageNet's size: Inception-v4, Inception-ResNet-v2, ResNet-v2-152."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.errors import UserError

__all__ = ["TIMM", "TimmBackbone"]


@dataclass(frozen=True)
class _Layout:
    """Where a network of timm is cut.

    Attributes:
        stages: the network to what lies before its last stage, and the last stage.
        base_channels: of the maps between the two.
        upsampling: kernel, stride and padding of the transposed convolution that undoes the last stage's stride.
    """

    stages: Callable[[Any], tuple[nn.Module, nn.Module]]
    base_channels: int
    upsampling: tuple[int, int, int]


def _inception_v4(network: Any) -> tuple[nn.Module, nn.Module]:
    """Before the second reduction, with the three Inception-C blocks behind it."""
    return network.features[:-4], network.features[-4:]


def _inception_resnet_v2(network: Any) -> tuple[nn.Module, nn.Module]:
    """Before the second reduction, called mixed_7a."""
    children = dict(network.named_children())
    names = list(children)
    last = ["mixed_7a", "repeat_2", "block8", "conv2d_7b"]
    base = names[: names.index("mixed_7a")]
    return nn.Sequential(*(children[name] for name in base)), nn.Sequential(
        *(children[name] for name in last)
    )


def _resnetv2(network: Any) -> tuple[nn.Module, nn.Module]:
    """Before the fourth stage, with the last batch norm and ReLU behind it."""
    base = nn.Sequential(network.stem, *network.stages[:-1])
    return base, nn.Sequential(network.stages[-1], network.norm)


TIMM: dict[str, _Layout] = {
    "inception_v4": _Layout(_inception_v4, 1024, (3, 2, 0)),
    "inception_resnet_v2": _Layout(_inception_resnet_v2, 1088, (3, 2, 0)),
    "resnetv2_152": _Layout(_resnetv2, 1024, (3, 2, 1)),
}
"""The networks by timm's names."""


class TimmBackbone(nn.Module):
    """Images [B, in_channels, H, W] (made for 224x224 or 299x299) to features [B, features], by a network of timm.

    Szegedy et al. 2017 (Inception-v4 and Inception-ResNet-v2, 1536 features) and He et al. 2016 (ResNet-v2-152, 2048
    features), with fresh weights and the mean over all positions.

    Args:
        name: a key of `TIMM`.
        in_channels: channels of the images.

    Raises:
        UserError: timm is not installed.
    """

    def __init__(self, name: str, *, in_channels: int = 3) -> None:
        super().__init__()
        try:
            import timm
        # A torchvision built for another torch, which timm imports, fails with a RuntimeError.
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"backbone {name} is built by timm, which cannot be imported ({error}): pip install 'robustfast[timm]'"
            ) from None
        layout = TIMM[name]
        self.name = name
        self.network = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels)
        self.features: int = self.network.num_features
        self.base_channels, self.upsampling = layout.base_channels, layout.upsampling

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(self.network.forward_features(x), 1), 1)

    def stages(self) -> tuple[nn.Module, nn.Module]:
        """What lies before the last stage, and the last stage, as modules over this network's own."""
        return TIMM[self.name].stages(self.network)
