"""Backbones (images to features), a registry of them by name, and the three-way model over two of them."""

from robustfast.models.backbone import MODELS, backbone
from robustfast.models.digits_cnn import DigitsCNN
from robustfast.models.preact_resnet18 import PreActResNet18
from robustfast.models.small_cnn import SmallCNN
from robustfast.models.three_way import ThreeWay, Way
from robustfast.models.wide_resnet import WideResNet, wide_resnet

__all__ = [
    "MODELS",
    "DigitsCNN",
    "PreActResNet18",
    "SmallCNN",
    "ThreeWay",
    "Way",
    "WideResNet",
    "backbone",
    "wide_resnet",
]
