"""Backbones by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from robustfast.models.digits_cnn import DigitsCNN
from robustfast.models.preact_resnet18 import PreActResNet18
from robustfast.models.small_cnn import SmallCNN
from robustfast.models.wide_resnet import wide_resnet
from robustfast.registry import lookup

__all__ = ["MODELS", "backbone"]

# A backbone maps images [B, in_channels, H, W] to features [B, features] and has the int attribute `features`.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "small_cnn": SmallCNN,
    "preact_resnet18": PreActResNet18,
    "wide_resnet28_10": partial(wide_resnet, 28, 10),
    "wide_resnet34_10": partial(wide_resnet, 34, 10),
}


def backbone(name: str, *, in_channels: int) -> nn.Module:
    """Build a backbone with fresh weights.

    Args:
        name: a key of `MODELS`, or any other ``wide_resnetDEPTH_WIDTH``, for example ``wide_resnet16_4``.
        in_channels: channels of the images.

    Raises:
        UserError: no such name (the message lists the known ones), or a depth that no wide ResNet has.
    """
    wide = re.fullmatch(r"wide_resnet(\d+)_(\d+)", name)
    if wide:
        return wide_resnet(int(wide[1]), int(wide[2]), in_channels=in_channels)
    return lookup("model", MODELS, name)(in_channels=in_channels)
