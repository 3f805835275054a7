"""Backbones (images to features), networks over them that are read in ways, and registries of both by name."""

from robustfast.models.ape_generator import ImageDiscriminator
from robustfast.models.backbone import MODELS, backbone
from robustfast.models.class_disentangled import ClassDisentangled
from robustfast.models.denoised import DENOISERS, Denoised
from robustfast.models.digits_cnn import DigitsCNN
from robustfast.models.disentangled import Disentangled
from robustfast.models.domain_discriminator import DomainDiscriminator
from robustfast.models.dropout_wide_resnet import DropoutWideResNet, dropout_wide_resnet
from robustfast.models.narrow_resnet import NarrowResNet
from robustfast.models.network import Network, Way
from robustfast.models.networks import NETWORKS, network
from robustfast.models.one_way import OneWay
from robustfast.models.preact_resnet18 import PreActResNet18
from robustfast.models.projection_discriminator import ProjectionDiscriminator
from robustfast.models.reconstruction import Reconstruction
from robustfast.models.resnet18 import ResNet18
from robustfast.models.resnet50 import ResNet50
from robustfast.models.small_cnn import SmallCNN
from robustfast.models.three_way import ThreeWay
from robustfast.models.wide_resnet import WideResNet, wide_resnet

__all__ = [
    "DENOISERS",
    "MODELS",
    "NETWORKS",
    "ClassDisentangled",
    "Denoised",
    "DigitsCNN",
    "Disentangled",
    "DomainDiscriminator",
    "DropoutWideResNet",
    "ImageDiscriminator",
    "NarrowResNet",
    "Network",
    "OneWay",
    "PreActResNet18",
    "ProjectionDiscriminator",
    "Reconstruction",
    "ResNet18",
    "ResNet50",
    "SmallCNN",
    "ThreeWay",
    "Way",
    "WideResNet",
    "backbone",
    "dropout_wide_resnet",
    "network",
    "wide_resnet",
]
