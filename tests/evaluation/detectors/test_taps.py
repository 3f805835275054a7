"""Layers by their names, and those that stand for a network's stages."""

from __future__ import annotations

import pytest
import torch
from given_features import Given, batches, clusters
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.evaluation.detectors import (
    KernelDensity,
    LocalIntrinsicDimensionality,
    Mahalanobis,
    part_input,
    part_model,
    penultimate,
    stages,
    taps,
)
from robustfast.evaluation.detectors.reader import Reader
from robustfast.evaluation.detectors.taps import pooled
from robustfast.models import NETWORKS, OneWay


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)
    )


def test_taps_give_what_a_layer_gives_and_what_it_gets() -> None:
    model = small().eval()
    x = torch.rand(2, 1, 8, 8)
    with taps(model, ["0", "1:input", "5:input"]) as found:
        logits = model(x)
    assert torch.equal(found["0"], model[0](x))
    assert torch.equal(found["1:input"], found["0"])
    assert torch.equal(found["5:input"], model[:5](x))
    assert torch.equal(model[5](found["5:input"]), logits)
    before = dict(found)
    model(torch.rand(2, 1, 8, 8))
    assert all(found[name] is before[name] for name in before), "a hook outlived its block"


def test_spatial_features_become_their_means() -> None:
    value = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert torch.equal(pooled(value, "a"), torch.tensor([[5.5, 17.5]]))
    assert torch.equal(pooled(value[..., 0, 0], "a"), torch.tensor([[0.0, 12.0]]))
    assert pooled(value.half(), "a").dtype == torch.float32
    assert pooled(value.double(), "a").dtype == torch.float64


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        # WRN as Lee et al. take it: the stem and the three groups, before the last batch norm.
        ("wide_resnet16_1", (3, 32), ["stem", "blocks.1", "blocks.3", "blocks.5"]),
        ("resnet18", (3, 16), ["norm", "blocks.1", "blocks.3", "blocks.5", "blocks.7"]),
        ("preact_resnet18", (3, 16), ["stem", "blocks.1", "blocks.3", "blocks.5", "blocks.7"]),
        ("digits_cnn", (1, 8), ["convolutions.2", "convolutions.5", "linear"]),
    ],
)
def test_stages_of_the_known_networks(model: str, size: tuple[int, int], expected: list[str]) -> None:
    channels, side = size
    network = OneWay(model, num_classes=10, in_channels=channels)
    x = torch.rand(1, channels, side, side)
    assert list(stages(network, x)) == [f"encoder.{name}" for name in expected]
    assert penultimate(network, x) == ("classifier:input",)


class Parts(nn.Module):
    """Two stages of blocks in groups, as torchvision nests them, behind what gives no tensor."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.convolution = nn.LazyConv2d(channels, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(x).relu()

    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LazyConv2d(1, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), x

    def __init__(self) -> None:
        super().__init__()
        self.coder = self.Coder()
        self.stem, self.norm, self.relu = nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(self.Block(4), self.Block(4))
        self.layer2 = nn.Sequential(self.Block(6), self.Block(6))
        self.end, self.fc = nn.AdaptiveAvgPool2d(1), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(self.coder(x)[0]))))
        return self.fc(self.end(self.layer2(self.layer1(x))).flatten(1))


def test_stages_of_nested_groups() -> None:
    model, x = Parts().eval(), torch.rand(1, 1, 8, 8)
    model(x)
    assert stages(model, x) == ("pool", "layer1.1", "layer2.1")
    assert penultimate(model, x) == ("fc:input",)


def test_parts_of_a_split_image_are_models_and_inputs() -> None:
    torch.manual_seed(0)
    network = NETWORKS["digits_vae_rn"]("digits_cnn", num_classes=3, in_channels=1).eval()
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
    for part, way in (("r", "n"), ("g", "r")):
        assert torch.equal(part_model(network, part)(x), network.way(way)(x))
        # Named in three ways, the same features: through the part, through the way, and from the classifier alone.
        scores = [
            Mahalanobis().fit(part_model(network, part), batches(x, y)).score(x),
            Mahalanobis().fit(network.way(way), batches(x, y)).score(x),
            Mahalanobis(input=part_input(network, part))
            .fit(network.classifier(part), batches(x, y))
            .score(x),
        ]
        assert scores[0].shape == (40, 3)
        assert torch.equal(scores[0], scores[1])
        assert torch.equal(scores[0], scores[2])
    with pytest.raises(ValueError, match="parts 'x'"):
        part_model(network, "x")
    alone = NETWORKS["digits_vae_s"]("digits_cnn", num_classes=3, in_channels=1)
    assert torch.equal(part_input(alone, "x")(x), alone.normalisation(x))
    with pytest.raises(ValueError, match="no auto-encoder"):
        part_input(alone, "r")


def test_a_model_is_left_as_it_was() -> None:
    model = small().train()
    model[1].eval()  # frozen by its owner
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    kept = x.clone()
    for detector in (KernelDensity(), LocalIntrinsicDimensionality(k=5), Mahalanobis(magnitude=0.01)):
        found = detector.fit(model, batches(x, y)).score(x)
        assert torch.equal(found, detector.score(x)), "dropout ran"
        assert not found.requires_grad
    assert [part.training for part in model] == [True, False, True, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_mistakes_end_in_one_line() -> None:
    model, (x, y) = Given(4, 3), clusters(30, 4, 3)
    loader = batches(x, y)
    cases = [
        (
            lambda: KernelDensity("feature").fit(model, loader),
            "unknown layer 'feature'; did you mean 'features'.*features, head",
        ),
        (lambda: KernelDensity([]).fit(model, loader), "no layer to look at"),
        (lambda: KernelDensity().fit(lambda x: x, loader), "expected a torch module"),
        (lambda: KernelDensity().fit(model, []), "no batch to fit on"),
        (lambda: KernelDensity(batch_size=0), "batch_size 0: expected a whole number, 1 or more"),
        (lambda: Mahalanobis(chunk_bytes=0), "chunk_bytes 0: expected a whole number, 1 or more"),
        (lambda: Mahalanobis(input="r").fit(model, loader), "input 'r': expected \"x\" or a function"),
        (lambda: KernelDensity().fit(nn.Identity(), [(x, y)]), "no linear layer runs"),
        (lambda: Mahalanobis().fit(nn.Identity(), [(x, y)]), "no stage"),
    ]
    for make in (KernelDensity, LocalIntrinsicDimensionality, Mahalanobis):
        cases.append((lambda make=make: make().score(x), f"{make.__name__} scores before it is fitted"))
        cases.append((lambda make=make: make().sweep(x, (2,)), "before it is fitted"))
        cases.append((lambda make=make: make().state_dict(), "before it is fitted"))
        fitted = make("features").fit(model, loader)
        cases.append((lambda fitted=fitted: fitted.score(x[:0]), "no image to score"))
        cases.append(
            (
                lambda fitted=fitted: fitted.score(x / 0),
                r"'features': features of 30 of 30 images are not finite",
            )
        )
        bad = [(x, y), (torch.full_like(x, torch.nan), y)]
        cases.append(
            (lambda make=make, bad=bad: make("features", **_few(make)).fit(model, bad), "not finite")
        )
        state = make("features").fit(model, loader).state_dict()
        other = {**state, "detector": "Other"}
        cases.append(
            (lambda make=make, other=other: make().load_state_dict(other, model), "the state is one of Other")
        )
        cases.append(
            (lambda make=make, state=state: make().load_state_dict(state, nn.Linear(2, 2)), "unknown layer")
        )
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def _few(make: type) -> dict[str, object]:
    return {"reference_size": None} if make is LocalIntrinsicDimensionality else {}


def test_a_layer_that_does_not_run_and_one_without_vectors() -> None:
    model = Given(4, 3)
    model.idle = nn.Linear(1, 1)
    model.flat = nn.Flatten(0)
    model.forward = lambda x: (model.flat(x), Given.forward(model, x))[1]
    x = torch.rand(2, 4)
    with pytest.raises(UserError, match="layer 'idle' does not run"):
        Reader(model, ["idle"], "x")(x)
    with pytest.raises(UserError, match=r"layer 'flat' gives a tensor \(8,\) of torch.float32: expected"):
        Reader(model, ["flat"], "x")(x)


@pytest.mark.parametrize("kind", [KernelDensity, LocalIntrinsicDimensionality, Mahalanobis])
def test_layers_are_names_and_images_of_a_batch_a_whole_number(kind: type) -> None:
    for layers in (3, [3], ["0", 3]):
        with pytest.raises(UserError, match=r"expected a name of the model's named_modules, or several"):
            kind(layers)
    with pytest.raises(UserError, match=r"batch_size 2\.5: expected a whole number, 1 or more"):
        kind(batch_size=2.5)


@pytest.mark.parametrize("kind", [KernelDensity, Mahalanobis])
def test_labels_are_classes(kind: type) -> None:
    x = torch.rand(6, 1, 8, 8)
    for y in (torch.tensor([0.0, 1, 2, 0, 1, 2]), torch.eye(3).repeat(2, 1).long()):
        with pytest.raises(UserError, match=r"labels .* expected classes, int64 \[B\]"):
            kind("0").fit(small(), [(x, y)])


def test_images_of_another_dtype_are_not_cast() -> None:
    with pytest.raises(RuntimeError):
        KernelDensity("0").fit(small(), [(torch.rand(6, 1, 8, 8).double(), torch.arange(6) % 3)])
