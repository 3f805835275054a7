"""A backbone cut in two under three encoders, and the networks beside it: discriminator and reconstruction."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import PGD
from robustfast.errors import UserError
from robustfast.models import Disentangled, DomainDiscriminator, OneWay, Reconstruction, backbone, network
from robustfast.models.cut import CUTS, cut
from robustfast.models.timm_backbone import TIMM

# Backbone, channels and side of its images, shape of f and of the maps.
SHAPES = [
    ("digits_cnn", 1, 8, (64, 4, 4), (64, 4, 4)),
    ("small_cnn", 1, 28, (32, 12, 12), (64, 4, 4)),
    ("preact_resnet18", 3, 32, (256, 8, 8), (512, 4, 4)),
    ("wide_resnet16_1", 3, 32, (32, 16, 16), (64, 8, 8)),
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> Disentangled:
    return Disentangled("digits_cnn", num_classes=10, in_channels=1)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 1, 8, 8)


@pytest.mark.parametrize(("name", "channels", "side", "f", "maps"), SHAPES)
@pytest.mark.parametrize("train", [False, True])
def test_the_parts_of_a_cut_are_the_backbone(
    name: str, channels: int, side: int, f: tuple[int, ...], maps: tuple[int, ...], train: bool
) -> None:
    whole = backbone(name, in_channels=channels).train(train)
    for module in whole.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin = copy.deepcopy(whole)
    parts = cut(twin)
    x = torch.rand(2, channels, side, side)
    found = parts.base(x)
    assert found.shape[1:] == f
    assert parts.base_channels == f[0]
    before = found.clone()
    encoded = parts.maps(found)
    assert torch.equal(found, before)  # no encoder writes into what the others read
    assert encoded.shape[1:] == maps
    assert parts.map_channels == maps[0]
    assert torch.equal(parts.pool(encoded), whole(x))
    # Every weight is in one part, and in one only.
    ids = [id(p) for part in (parts.base, parts.maps, parts.pool) for p in part.parameters()]
    assert sorted(ids) == sorted(id(p) for p in twin.parameters())


@pytest.mark.parametrize(("name", "channels", "side"), [row[:3] for row in SHAPES if row[0] != "small_cnn"])
def test_the_robust_way_is_the_uncut_network_of_its_weights(name: str, channels: int, side: int) -> None:
    plain = OneWay(name, num_classes=7, in_channels=channels).eval()
    model = Disentangled(name, num_classes=7, in_channels=channels).eval()
    parts = cut(plain.encoder)
    model.generator.load_state_dict(parts.base.state_dict())
    model.encoder_r.maps.load_state_dict(parts.maps.state_dict())
    model.encoder_r.pool.load_state_dict(parts.pool.state_dict())
    model.classifier.load_state_dict(plain.classifier.state_dict())
    x = torch.rand(3, channels, side, side)
    assert torch.equal(model(x), plain(x))
    assert not torch.equal(model.way("n")(x), plain(x))


def test_the_wide_resnet_is_cut_after_the_second_group_with_batch_norm_and_relu_in_the_encoders() -> None:
    model = Disentangled("wide_resnet34_1", num_classes=10, in_channels=3)
    convolutions = [sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in part.modules())
                    for part in (model.generator, model.encoder_r, model.encoder_n, model.encoder_d)]  # fmt: skip
    assert convolutions == [1 + 2 * 10, 10, 10, 10]  # two groups of five blocks of two, one group
    assert isinstance(model.encoder_d.maps[-1], nn.ReLU)
    assert (model.base_channels, model.map_channels, model.features) == (32, 64, 64)


def test_what_is_read_of_it(model: Disentangled, x: Tensor) -> None:
    model.eval()
    f = model.base(x)
    maps = model.maps(f)
    z = model.pooled(maps)
    assert list(maps) == list(z) == ["r", "n", "d"]
    encoders = {"r": model.encoder_r, "n": model.encoder_n, "d": model.encoder_d}
    for name, encoder in encoders.items():
        assert torch.equal(maps[name], encoder(f))
        assert torch.equal(z[name], encoder.pool(encoder(f)))
        assert torch.equal(model.encode(x, name)[name], z[name])
        assert torch.equal(model.encoders()[name](x), z[name])
    assert not torch.equal(z["r"], z["n"])
    assert not torch.equal(z["r"], z["d"])
    assert list(model.encode(x, "dr")) == ["d", "r"]
    logits = model.ways(x, "nr")
    assert list(logits) == ["n", "r"]
    for way in "rn":
        expected = z[way] @ model.classifier.weight.T + model.classifier.bias
        assert torch.allclose(logits[way], expected, atol=1e-6)
        assert torch.equal(model.way(way)(x), logits[way])
    assert torch.equal(model(x), logits["r"])
    assert list(model.encoders("n")) == ["n"]
    with pytest.raises(ValueError, match="ways 'd'"):
        model.ways(x, "d")
    with pytest.raises(ValueError, match="encoders 'x'"):
        model.encode(x, "x")


def test_one_forward_of_the_extractor_serves_all_encoders(model: Disentangled, x: Tensor) -> None:
    runs: list[str] = []
    parts = {name: getattr(model, name) for name in ("generator", "encoder_r", "encoder_n", "encoder_d")}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: runs.append(name))
    model.ways(x, "rn")
    assert sorted(runs) == ["encoder_n", "encoder_r", "generator"]
    runs.clear()
    model.encode(x)
    assert sorted(runs) == ["encoder_d", "encoder_n", "encoder_r", "generator"]
    runs.clear()
    PGD(model.way("r"), eps=0.1, steps=2)(x, torch.zeros(5, dtype=torch.int64))
    assert set(runs) == {"generator", "encoder_r"}


def test_parameters_and_weights_are_counted_once(model: Disentangled) -> None:
    modules = (model.generator, model.encoder_r, model.encoder_n, model.encoder_d, model.classifier)
    total = sum(p.numel() for part in modules for p in part.parameters())
    assert sum(p.numel() for p in model.parameters()) == total
    assert {key.partition(".")[0] for key in model.state_dict()} == {
        "generator", "encoder_r", "encoder_n", "encoder_d", "classifier"
    }  # fmt: skip
    own = {way: {id(p) for p in model.way(way).parameters()} for way in "rn"}
    assert own["r"] & own["n"] == {
        id(p) for part in (model.generator, model.classifier) for p in part.parameters()
    }
    assert not {id(p) for p in model.encoder_d.parameters()} & (own["r"] | own["n"])


def test_a_copy_stands_by_itself(model: Disentangled, x: Tensor) -> None:
    twin = copy.deepcopy(model).eval()
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert bool(twin.encode(x, "r")["r"].any())
    assert torch.equal(twin.encode(x, "r")["r"], twin.encode(x)["r"])


def test_registered_and_refused() -> None:
    assert isinstance(network("disentangled", "digits_cnn", num_classes=3, in_channels=1), Disentangled)
    with pytest.raises(UserError, match="num_classes 1: expected 2 or more"):
        Disentangled("digits_cnn", num_classes=1, in_channels=1)

    class Other(nn.Flatten):
        features = 64

    with pytest.raises(UserError, match=r"backbone Other is not cut .* WideResNet, PreActResNet18"):
        Disentangled(Other, num_classes=2)
    assert all(issubclass(kind, nn.Module) for kind in CUTS)


def test_the_discriminator_has_two_layers() -> None:
    judge = DomainDiscriminator(6, hidden=4)
    z = torch.randn(3, 6)
    first, last = (layer for layer in judge.layers if isinstance(layer, nn.Linear))
    h = z @ first.weight.T + first.bias
    expected = torch.where(h > 0, h, 0.2 * h) @ last.weight.T + last.bias
    assert torch.allclose(judge(z), expected, atol=1e-6)
    assert judge(z).shape == (3, 1)
    assert DomainDiscriminator(640).layers[0].out_features == 256


@pytest.mark.parametrize(("name", "channels", "side", "f", "maps"), SHAPES)
def test_reconstructions_have_the_shape_of_f(
    name: str, channels: int, side: int, f: tuple[int, ...], maps: tuple[int, ...]
) -> None:
    upsampling = cut(backbone(name, in_channels=channels)).upsampling
    rebuild = Reconstruction(maps[0], f[0], upsampling)
    assert rebuild(torch.rand(2, 3 * maps[0], *maps[1:])).shape == (2, *f)
    assert any(isinstance(module, nn.ConvTranspose2d) for module in rebuild.modules())
    assert float(rebuild(torch.randn(4, 3 * maps[0], *maps[1:])).min()) < 0  # no activation at its end


def test_a_reconstruction_takes_the_size_that_its_stride_leaves_open() -> None:
    rebuild = Reconstruction(4, 2, (3, 2, 0))
    maps = torch.rand(2, 12, 5, 5)
    assert rebuild(maps).shape[-2:] == (11, 11)
    assert rebuild(maps, (12, 12)).shape[-2:] == (12, 12)


# --- timm -------------------------------------------------------------------------------------------


def timm() -> object:
    """timm, where it can be imported: a torchvision of another torch than the one here breaks it."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs timm: {error}")
    return timm


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_are_cut_before_their_last_stage(name: str) -> None:
    timm()
    whole = backbone(name, in_channels=3).eval()
    parts = cut(whole)
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        f = parts.base(x)
        maps = parts.maps(f)
        assert (f.shape[1], maps.shape[1]) == (parts.base_channels, parts.map_channels)
        assert torch.allclose(parts.pool(maps), whole(x), rtol=1e-5, atol=1e-6)
        rebuilt = Reconstruction(parts.map_channels, parts.base_channels, parts.upsampling).eval()(
            torch.cat([maps] * 3, 1), tuple(f.shape[-2:])
        )
    assert rebuilt.shape == f.shape
    ids = [id(p) for part in (parts.base, parts.maps) for p in part.parameters()]
    assert sorted(ids) == sorted(id(p) for p in whole.parameters())


@pytest.mark.parametrize("name", TIMM)
def test_without_timm_one_line_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=rf"backbone {name} .* pip install 'robustfast\[timm\]'"):
        backbone(name, in_channels=3)
