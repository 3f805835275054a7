"""Backbones by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from robustfast.models.digits_cnn import DigitsCNN
from robustfast.models.dropout_wide_resnet import dropout_wide_resnet
from robustfast.models.narrow_resnet import NarrowResNet
from robustfast.models.preact_resnet18 import PreActResNet18
from robustfast.models.resnet18 import ResNet18
from robustfast.models.resnet50 import ResNet50
from robustfast.models.small_cnn import SmallCNN
from robustfast.models.timm_backbone import TIMM, TimmBackbone
from robustfast.models.wide_resnet import wide_resnet
from robustfast.registry import lookup

__all__ = ["MODELS", "backbone", "builder"]

# A backbone maps images [B, in_channels, H, W] to features [B, features] and has the int attribute `features`.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "small_cnn": SmallCNN,
    "preact_resnet18": PreActResNet18,
    "resnet18": ResNet18,
    "narrow_resnet": NarrowResNet,
    "wide_resnet28_10": partial(wide_resnet, 28, 10),
    "wide_resnet34_10": partial(wide_resnet, 34, 10),
    "wide_resnet28_10_dropout": partial(dropout_wide_resnet, 28, 10),
    "resnet50": ResNet50,
    **{name: partial(TimmBackbone, name) for name in TIMM},
}


def backbone(name: str, *, in_channels: int) -> nn.Module:
    """Build a backbone with fresh weights.

    Args:
        name: a key of `MODELS`, or any other ``wide_resnetDEPTH_WIDTH``, for example ``wide_resnet16_4``, with
            ``_dropout`` behind it for `robustfast.models.DropoutWideResNet`.
        in_channels: channels of the images.

    Raises:
        UserError: no such name (the message lists the known ones), or a depth that no wide ResNet has.
    """
    wide = re.fullmatch(r"wide_resnet(\d+)_(\d+)(_dropout)?", name)
    if wide:
        build = dropout_wide_resnet if wide[3] else wide_resnet
        return build(int(wide[1]), int(wide[2]), in_channels=in_channels)
    return lookup("model", MODELS, name)(in_channels=in_channels)


def builder(backbone: str | Callable[[], nn.Module], in_channels: int | None) -> Callable[[], nn.Module]:
    """What builds one encoder after another, each with weights of its own.

    Args:
        backbone: a registered name, or a function without arguments that returns a module with the int attribute
            `features`.
        in_channels: channels of the images; needed with a name, refused with a function (which knows it already).

    Raises:
        TypeError: `in_channels` missing or superfluous; from the function returned, a module without `features`.
    """
    if isinstance(backbone, str):
        if in_channels is None:
            raise TypeError(
                f"backbone {backbone!r} by name needs in_channels: 1 for grey images, 3 for colour"
            )
        return lambda: _named(backbone, in_channels)
    if in_channels is not None:
        raise TypeError(
            f"in_channels={in_channels} goes with a backbone's name; the function {backbone!r} sets it itself"
        )

    def build() -> nn.Module:
        module = backbone()
        if not isinstance(features := getattr(module, "features", None), int):
            raise TypeError(
                f"backbone {type(module).__name__} has no int attribute `features` (the width of its output), got "
                f"{features!r}"
            )
        return module

    return build


def _named(name: str, in_channels: int) -> nn.Module:
    return backbone(name, in_channels=in_channels)
