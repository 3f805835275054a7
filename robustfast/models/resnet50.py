"""ResNet-50 for images of ImageNet's size, under the names of torchvision's weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNet50"]


class ResNet50(nn.Module):
    """Images [B, in_channels, H, W] (made for 224x224) to features [B, 2048], none of them negative.

    He et al. 2016: a 7x7 stem with stride 2, batch norm, ReLU and a 3x3 max-pool with stride 2; stages of 3, 4, 6 and 3
    bottlenecks with 256-512-1024-2048 channels and strides 1-2-2-2, each in its 3x3 convolution (version 1.5); then the
    mean over all positions, so that images of other sizes pass too. Convolutions start Kaiming-normal (fan out).

    The names of its weights are those of torchvision's ``resnet50`` without the output layer ``fc``: a file of
    ImageNet-trained weights loads into it, from the command line by ``--start-from classifier_r.encoder=resnet50.pth``.

    Args:
        in_channels: channels of the images.

    Attributes:
        taps: names of the modules at which detectors look: the stem behind its ReLU, and the four stages.
    """

    features = 2048
    taps: tuple[str, ...] = ("relu", "layer1", "layer2", "layer3", "layer4")

    def __init__(self, *, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1)


class Bottleneck(nn.Module):
    """conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN plus a shortcut, then ReLU.

    The shortcut is the input itself or, where the shape changes, a 1x1 convolution of it and a batch norm.

    Args:
        in_channels: of the input.
        width: channels inside; the output has four times as many.
        stride: of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.downsample = (
            None
            if same
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        inside = torch.relu_(self.bn1(self.conv1(x)))
        inside = torch.relu_(self.bn2(self.conv2(inside)))
        return torch.relu_(self.bn3(self.conv3(inside)) + shortcut)


def _stage(in_channels: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(in_channels, width, stride=stride),
        *(Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1)),
    )
