import pytest
import torch

from robustfast.errors import UserError
from robustfast.models import MODELS, PreActResNet18, SmallCNN, WideResNet, backbone
from robustfast.models.timm_backbone import TIMM


def test_registry_builds_what_the_name_says():
    assert isinstance(backbone("small_cnn", in_channels=1), SmallCNN)
    assert isinstance(backbone("preact_resnet18", in_channels=3), PreActResNet18)


def test_every_registered_backbone_declares_its_width():
    sizes = {"digits_cnn": 8, "small_cnn": 28}
    # Those of timm, which need not be there, have a test of their own.
    for name in MODELS.keys() - TIMM.keys():
        with torch.device("meta"):
            model = backbone(name, in_channels=2).eval()
            size = sizes.get(name, 32)
            assert model(torch.empty(1, 2, size, size)).shape == (1, model.features)


def test_any_wide_resnet_by_name():
    model = backbone("wide_resnet10_2", in_channels=1)
    assert isinstance(model, WideResNet)
    assert model.features == 128
    assert model(torch.rand(1, 1, 28, 28)).shape == (1, 128)


def test_bad_wide_resnet_depth_by_name():
    with pytest.raises(UserError, match="wide_resnet depth 35: expected 6n"):
        backbone("wide_resnet35_10", in_channels=3)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UserError, match=r"unknown model 'resnet'.*digits_cnn.*preact_resnet18.*wide_resnet34_10"
    ):
        backbone("resnet", in_channels=3)
