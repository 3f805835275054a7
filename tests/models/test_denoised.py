"""A classifier behind a denoiser: its ways, sizes, parts and copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models import DENOISERS, NETWORKS, Denoised, ImageDiscriminator, network
from robustfast.models.ape_generator import APEGenerator
from robustfast.models.autoencoders import AUTOENCODERS
from robustfast.models.unet_denoiser import UNetDenoiser

BACKBONES = {
    "digits": ("digits_cnn", 1, 8),
    "mnist": ("narrow_resnet", 1, 28),
    "cifar": ("wide_resnet10_1", 3, 32),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def digits(denoiser: str = "digits_unet") -> Denoised:
    return Denoised("digits_cnn", num_classes=10, in_channels=1, denoiser=denoiser).eval()


@pytest.mark.parametrize("name", [name for name in DENOISERS if not name.startswith("imagenet")])
def test_networks_by_name_take_the_images_of_their_data_set(name: str) -> None:
    images = name.partition("_")[0]
    backbone, channels, side = BACKBONES[images]
    model = network(name, backbone, num_classes=7, in_channels=channels).eval()
    x = torch.rand(3, channels, side, side)
    found = model.ways(x, "rs")
    kind = AUTOENCODERS[f"{images}_vae"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (kind.mean, kind.std))
    for way, seen in {"r": model.denoiser(x), "s": x}.items():
        expected = model.classifier_x((seen - mean) / std)
        assert found[way].shape == (3, 7)
        assert torch.allclose(found[way], expected, atol=1e-6)
        assert torch.equal(found[way], model.way(way)(x))
    assert torch.equal(model(x), found["r"])
    # No weight stands there twice, and `--start-from` finds the classifier of other runs by its name.
    assert [child for child, _ in model.named_children()] == ["normalisation", "denoiser", "classifier_x"]
    assert {key.partition(".")[0] for key in model.state_dict()} == {"denoiser", "classifier_x"}


def test_the_standard_way_knows_nothing_of_the_denoiser() -> None:
    model, x = digits(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        model.denoiser.noise.weight.fill_(torch.nan)
    assert model.way("s")(x).isfinite().all()
    assert model.way("r")(x).isnan().all()
    own, both = (set(map(id, model.way(way).parameters())) for way in "sr")
    assert both - own == set(map(id, model.denoiser.parameters()))
    assert own == set(map(id, model.classifier_x.parameters()))


def test_the_u_net_takes_noise_off_at_images_of_odd_sides_too() -> None:
    unet = UNetDenoiser(in_channels=2, widths=(4, 6, 8)).eval()
    x = torch.rand(2, 2, 9, 13)
    out = unet(x)
    assert out.shape == x.shape
    assert not torch.equal(out, x)
    # What is taken off is linear in the last layer: twice the weights, twice the noise.
    with torch.no_grad():
        unet.noise.weight.mul_(2)
        assert torch.allclose(x - unet(x), 2 * (x - out), atol=1e-6)
        unet.noise.weight.zero_()
    assert torch.equal(unet(x), x)
    # As published: two convolutions at full size, then levels of three, each beginning with a stride.
    assert [len([p for p in block if isinstance(p, nn.Conv2d)]) for block in unet.down] == [2, 3, 3]
    assert [block[0].stride for block in unet.down] == [(1, 1), (2, 2), (2, 2)]


def test_the_generator_paints_pixels_and_refuses_sides_that_it_would_change() -> None:
    generator = APEGenerator(in_channels=3).eval()
    with torch.no_grad():
        generator.layers[-1].weight.mul_(100)
    out = generator(torch.rand(2, 3, 28, 32))
    assert out.shape == (2, 3, 28, 32)
    assert 0 <= out.min() < 0.01 < 0.99 < out.max() <= 1
    with pytest.raises(ValueError, match=r"images of sides that 4 divides, got \(1, 3, 8, 10\)"):
        generator(torch.rand(1, 3, 8, 10))


@pytest.mark.parametrize("side", [8, 28, 32])
def test_the_discriminator_takes_images_of_any_size(side: int) -> None:
    judge = ImageDiscriminator(in_channels=3, width=8)
    assert judge(torch.rand(4, 3, side, side)).shape == (4,)


def test_encoders_are_those_that_the_ways_run() -> None:
    model, x = digits(), torch.rand(2, 1, 8, 8)
    for way in "rs":
        encoder = model.encoders(way)[way]
        assert encoder is model.encoders()[way]
        features = encoder(x)
        assert torch.equal(model.classifier_x.classifier(features), model.way(way)(x))
        # As a compiler does it, in place.
        encoder.forward = lambda x, features=features: torch.zeros_like(features)
        assert torch.equal(model.way(way)(x), model.classifier_x.classifier.bias.expand(2, 10))


def test_a_copy_is_one_of_its_own() -> None:
    model, x = digits("digits_ape"), torch.rand(2, 1, 8, 8)
    before = model.ways(x, "rs")
    other = copy.deepcopy(model)
    assert torch.equal(other.way("r")(x), before["r"])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()

    def same(found: dict[str, Tensor]) -> list[bool]:
        return [torch.equal(value, before[way]) for way, value in found.items()]

    assert same(model.ways(x, "rs")) == [True, True]
    assert same(other.ways(x, "rs")) == [False, False]


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="unknown denoiser 'digit_unet'; did you mean 'digits_unet'"):
        digits("digit_unet")
    with pytest.raises(ValueError, match="ways 'n': expected one or more of r, s, each once"):
        digits().way("n")
    assert set(DENOISERS) <= set(NETWORKS)
