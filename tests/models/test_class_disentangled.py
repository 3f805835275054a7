from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models import ClassDisentangled, network
from robustfast.models.autoencoders import AUTOENCODERS
from robustfast.models.class_disentangled import PARTS, Normalisation
from robustfast.models.vq_vae import VQVAE
from robustfast.training.compiled import compile_encoders

WAYS = ("s", "r", "n", "rn")


def digits(ways: str = "rn") -> ClassDisentangled:
    torch.manual_seed(0)
    return network(f"digits_vae_{ways}", "digits_cnn", num_classes=10, in_channels=1).eval()


def whole() -> ClassDisentangled:
    """A network of all three ways."""
    torch.manual_seed(0)
    return ClassDisentangled(
        "digits_cnn", num_classes=10, in_channels=1, autoencoder="digits_vae", readings="srn"
    ).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_normalisation_and_its_inverse() -> None:
    there = Normalisation((0.5, 0.25), (0.2, 0.4))
    x = torch.rand(3, 2, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.5) / 0.2, (x[:, 1] - 0.25) / 0.4], dim=1)
    torch.testing.assert_close(there(x), expected)
    torch.testing.assert_close(there.inverse(there(x)), x)
    assert not there.state_dict()


def test_the_parts_add_up_to_the_image(x: Tensor) -> None:
    model = digits()
    split = model.split(x)
    kind = AUTOENCODERS["digits_vae"]
    torch.testing.assert_close(split.x, (x - kind.mean[0]) / kind.std[0])
    # x - g is rounded once, and adding g again once more.
    largest = torch.maximum(split.x.abs(), split.g.abs())
    assert ((split.g + split.r - split.x).abs() <= 2 * torch.finfo(torch.float32).eps * largest).all()
    precise = model.double().split(x.double())
    assert (precise.g + precise.r - precise.x).abs().max() < 1e-14
    assert split.latent.shape == (4, 64)
    assert split.regulariser.shape == (4,)


def test_ways_are_the_classifiers_of_the_parts(x: Tensor) -> None:
    model = whole()
    assert dict(PARTS) == {"s": "x", "r": "g", "n": "r"}
    split = model.split(x)
    logits = model.ways(x, "srn")
    assert list(logits) == ["s", "r", "n"]
    assert torch.equal(logits["s"], model.classifier_x(split.x))
    assert torch.equal(logits["r"], model.classifier_g(split.g))
    assert torch.equal(logits["n"], model.classifier_r(split.r))
    for way, part in PARTS.items():
        assert model.classifier(part) is getattr(model, f"classifier_{part}")
        assert torch.equal(model.part(x, part), getattr(split, part))
        assert torch.equal(model.way(way)(x), logits[way])
    assert torch.equal(model(x), logits["s"])
    assert len({id(model.classifier(part)) for part in "xgr"}) == 3


def test_what_ways_share_runs_once_and_what_they_do_not_need_not_at_all(x: Tensor) -> None:
    model, calls = whole(), []
    model.generator.register_forward_hook(lambda *call: calls.append("G"))
    for part in "xgr":
        encoder = model.classifier(part).encoder
        encoder.register_forward_hook(lambda *call, part=part: calls.append(part))
    for ways, expected in (("srn", "Gxgr"), ("rn", "Ggr"), ("r", "Gg"), ("n", "Gr"), ("s", "x")):
        calls.clear()
        model.ways(x, ways)
        assert "".join(calls) == expected


@pytest.mark.parametrize("ways", WAYS)
def test_a_network_by_name_has_the_parts_of_its_ways(ways: str, x: Tensor) -> None:
    model = digits(ways)
    assert model.readings == ways
    children = [name for name, _ in model.named_children() if name.startswith("classifier")]
    assert children == [f"classifier_{PARTS[way]}" for way in ways]
    if ways == "s":
        assert model.generator is None
        assert not any("generator" in key for key in model.state_dict())
        assert torch.equal(model.part(x, "x"), model.normalisation(x))
        with pytest.raises(ValueError, match="the ways s alone has no auto-encoder to split images"):
            model.split(x)
    else:
        assert {key.partition(".")[0] for key in model.state_dict()} == {"generator", *children}
    assert model(x).shape == (4, 10)


def test_a_way_names_the_parameters_that_it_depends_on(x: Tensor) -> None:
    model = whole()
    for way, part in PARTS.items():
        model.zero_grad()
        # With the code drawn, log-variances count too; a way reads the mean, and no logits depend on theirs.
        model.way(way)(x).square().sum().backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None}
        named = {id(p) for p in model.way_parameters(way)}
        listed = {name for name, p in model.named_parameters() if id(p) in named}
        assert reached == {name for name in listed if "log_variance" not in name}
        assert any(name.startswith("generator") for name in listed) == (way != "s")
        assert {name.partition(".")[0] for name in listed} - {"generator"} == {f"classifier_{part}"}
        assert len(model.way_parameters(way)) == len(listed)
        model.zero_grad(set_to_none=True)


def test_the_gradient_of_what_is_left_reaches_g_with_a_minus(x: Tensor) -> None:
    model = digits()
    weights = torch.randn(4, 1, 8, 8)
    ours = torch.autograd.grad((model.split(x).r * weights).sum(), list(model.generator.decoder.parameters()))
    theirs = torch.autograd.grad(
        (model.split(x).g * weights).sum(), list(model.generator.decoder.parameters())
    )
    assert any(gradient.any() for gradient in ours)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, -other)


def test_the_code_is_drawn_where_seed_and_index_are_given(x: Tensor) -> None:
    model = digits()
    index = torch.tensor([4, 9, 0, 2])
    drawn = model.split(x, seed=3, index=index)
    assert not torch.isclose(drawn.g, model.split(x).g).all()
    assert torch.equal(drawn.latent, model.split(x).latent)
    alone = model.split(x[1:3], seed=3, index=index[1:3])
    torch.testing.assert_close(alone.g, drawn.g[1:3])
    assert torch.equal(model.split(x, seed=3, index=index).g, drawn.g)


def test_a_seed_or_an_index_alone_draws_nothing(x: Tensor) -> None:
    for model in (digits().split, digits().generator, VQVAE(in_channels=1).eval()):
        with pytest.raises(ValueError, match="seed without index: expected both"):
            model(x, seed=3)
        with pytest.raises(ValueError, match="index without seed: expected both"):
            model(x, index=torch.arange(4))


def test_images_of_another_kind_are_not_split(x: Tensor) -> None:
    for images in ((255 * x).to(torch.uint8), x.expand(4, 3, 8, 8), x[0]):
        with pytest.raises(ValueError, match=r"expected floating \[B, 1, H, W\] in \[0, 1\]"):
            digits().split(images)


def test_sampling_at_test_makes_the_attacked_network_random(x: Tensor) -> None:
    model = whole()
    fixed = {way: model.way(way)(x) for way in "srn"}
    model.generator.sample_at_test = True
    torch.manual_seed(1)
    first = {way: model.way(way)(x) for way in "srn"}
    torch.manual_seed(1)
    assert all(torch.equal(model.way(way)(x), first[way]) for way in "srn")
    assert torch.equal(first["s"], fixed["s"])
    for way in "rn":
        assert not torch.equal(first[way], fixed[way])
        assert not torch.equal(model.way(way)(x), first[way])


def test_encoders_are_kept_and_give_the_features_of_the_classifiers(x: Tensor) -> None:
    model = whole()
    encoders = model.encoders()
    assert list(encoders) == ["s", "r", "n"]
    assert list(model.encoders("n")) == ["n"]
    for way, part in PARTS.items():
        assert model.encoders()[way] is encoders[way]
        classifier = model.classifier(part)
        expected = classifier.features(model.part(x, part))
        assert torch.equal(encoders[way](x), expected)
        assert torch.equal(classifier.classifier(expected), model.way(way)(x))


def test_encoders_are_no_modules_of_the_network() -> None:
    model = digits()
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    assert len(names) == len(set(names))
    assert not any("_encoder" in name for name in names)
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    assert set(digits("n").encoders()["n"].state_dict()) >= {"encoder.linear.weight"}


def test_a_copy_has_encoders_of_its_own(x: Tensor) -> None:
    model = digits()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.way("r")(x), model.way("r")(x))
        with torch.no_grad():
            twin.generator.decoder[-1].bias.add_(1)
            twin.classifier_r.encoder.linear.bias.add_(1)
        for way in "rn":
            assert torch.equal(twin.way(way)(x), twin.ways(x, "rn")[way])
            assert not torch.equal(twin.way(way)(x), model.way(way)(x))


def test_compiled_encoders_are_what_runs_and_change_nothing_else(x: Tensor) -> None:
    graphs = []

    def record(graph: nn.Module, inputs: list[Tensor]) -> nn.Module:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model, said = digits(), []
    expected, keys = model.ways(x, "rn"), list(model.state_dict())
    modules = list(model.named_modules())
    compile_encoders(model, say=said.append, backend=record)
    assert list(model.state_dict()) == keys
    assert list(model.named_modules()) == modules
    for way in "rnr":
        torch.testing.assert_close(model.way(way)(x), expected[way])
    # One graph for each way, which holds G and the classifier's convolutions; a second pass compiles nothing.
    assert not said
    assert len(graphs) == 2
    copy.deepcopy(model).way("r")(x[:1])
    assert len(graphs) == 2, "a copy, as averages of the weights are, is not compiled"


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (
            UserError,
            "unknown auto-encoder 'digit_vae'; did you mean 'digits_vae'?",
            {"autoencoder": "digit_vae"},
        ),
        (ValueError, "readings 'rx': expected one or more of s, r, n, each once", {"readings": "rx"}),
        (ValueError, "readings 'rr': expected one or more of s, r, n, each once", {"readings": "rr"}),
        (ValueError, "readings '': expected one or more of s, r, n, each once", {"readings": ""}),
        (UserError, "num_classes 1: expected 2 or more", {"num_classes": 1}),
        (UserError, "unknown model 'digit_cnn'; did you mean 'digits_cnn'?", {"backbone": "digit_cnn"}),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(
    kind: type[Exception], message: str, change: dict[str, object]
) -> None:
    arguments = {
        "backbone": "digits_cnn",
        "num_classes": 10,
        "in_channels": 1,
        "autoencoder": "digits_vae",
        **change,
    }
    with pytest.raises(kind) as refused:
        ClassDisentangled(arguments.pop("backbone"), **arguments)
    assert str(refused.value).startswith(message)
    assert len(str(refused.value).splitlines()) == 1


def test_what_cannot_be_asked_is_refused_in_one_line(x: Tensor) -> None:
    model = digits("n")
    for call, message in (
        (lambda: model.ways(x, "r"), "ways 'r': expected one or more of n, each once"),
        (lambda: model.way("s"), "ways 's': expected one or more of n, each once"),
        (lambda: model.classifier("g"), "parts 'g': expected one or more of r, each once"),
        (lambda: model.part(x, "z"), "parts 'z': expected one or more of x, g, r, each once"),
        (lambda: model(torch.zeros(1, 1, 12, 12)), "this VAE takes 8x8 images, got (1, 1, 12, 12)"),
    ):
        with pytest.raises(ValueError) as refused:  # noqa: PT011 -- the message is compared below
            call()
        assert str(refused.value) == message


def test_a_backbone_may_be_a_function(x: Tensor) -> None:
    class Tiny(nn.Module):
        features = 3

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1))

    model = ClassDisentangled(Tiny, num_classes=2, in_channels=1, autoencoder="digits_vae", readings="rn")
    assert model.ways(x, "rn")["n"].shape == (4, 2)
    assert model.classifier_g.encoder is not model.classifier_r.encoder
