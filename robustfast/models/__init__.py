"""Backbones (images to features), networks over them that are read in ways, and registries of both by name."""

from robustfast.models.backbone import MODELS, backbone
from robustfast.models.class_disentangled import ClassDisentangled
from robustfast.models.digits_cnn import DigitsCNN
from robustfast.models.disentangled import Disentangled
from robustfast.models.domain_discriminator import DomainDiscriminator
from robustfast.models.narrow_resnet import NarrowResNet
from robustfast.models.network import Network, Way
from robustfast.models.networks import NETWORKS, network
from robustfast.models.one_way import OneWay
from robustfast.models.preact_resnet18 import PreActResNet18
from robustfast.models.projection_discriminator import ProjectionDiscriminator
from robustfast.models.reconstruction import Reconstruction
from robustfast.models.resnet18 import ResNet18
from robustfast.models.small_cnn import SmallCNN
from robustfast.models.three_way import ThreeWay
from robustfast.models.wide_resnet import WideResNet, wide_resnet

__all__ = [
    "MODELS",
    "NETWORKS",
    "ClassDisentangled",
    "DigitsCNN",
    "Disentangled",
    "DomainDiscriminator",
    "NarrowResNet",
    "Network",
    "OneWay",
    "PreActResNet18",
    "ProjectionDiscriminator",
    "Reconstruction",
    "ResNet18",
    "SmallCNN",
    "ThreeWay",
    "Way",
    "WideResNet",
    "backbone",
    "network",
    "wide_resnet",
]
