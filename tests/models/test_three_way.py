import copy
import pickle

import pytest
import torch
from torch import nn

from robustfast.errors import UserError
from robustfast.models import ThreeWay, three_way
from robustfast.models.three_way import ENCODERS


class Encoder(nn.Module):
    """Counts its runs, so that tests can say which encoder was used how often."""

    features = 6

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2 * 4 * 4, self.features)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return torch.relu(self.linear(x.flatten(1)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ThreeWay(Encoder, num_classes=5).double()


@pytest.fixture
def x():
    return torch.rand(7, 2, 4, 4, dtype=torch.float64)


def by_definition(model, x):
    """Equation 5 with the zeros written out."""
    z_r, z_n = model.encoder_r(x), model.encoder_n(x)
    zero = torch.zeros_like(z_r)
    return {
        "s": model.head(torch.cat([z_r, z_n], 1)),
        "r": model.head(torch.cat([z_r, zero], 1)),
        "n": model.head(torch.cat([zero, z_n], 1)),
    }


@pytest.mark.parametrize("ways", ["s", "r", "n", "sr", "rn", "ns", "srn", "nsr"])
def test_ways_are_equation_5(model, x, ways):
    expected = by_definition(model, x)
    got = model.ways(x, ways)
    assert list(got) == list(ways)
    for way in ways:
        torch.testing.assert_close(got[way], expected[way], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ways", ["s", "r", "n", "rn", "srn"])
def test_every_needed_encoder_runs_once_and_no_other(model, x, ways):
    model.ways(x, ways)
    assert model.encoder_r.runs == int(set(ways) != {"n"})
    assert model.encoder_n.runs == int(set(ways) != {"r"})


@pytest.mark.parametrize("name", ["s", "r", "n"])
def test_one_way_computes_the_same_alone_as_among_three(model, x, name):
    way = model.way(name)
    assert way.model is model
    torch.testing.assert_close(way(x), model.ways(x)[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "other"), [("r", "n"), ("n", "r")])
@pytest.mark.parametrize("asked", ["alone", "among three"])
def test_zeros_are_constants_no_gradient_reaches_the_other_encoder(model, x, name, other, asked):
    logits = model.way(name)(x) if asked == "alone" else model.ways(x)[name]
    logits.square().sum().backward()
    width = model.encoder_r.features
    own = {"r": slice(None, width), "n": slice(width, None)}
    assert getattr(model, f"encoder_{name}").linear.weight.grad.any()
    for parameter in getattr(model, f"encoder_{other}").parameters():
        assert parameter.grad is None or not parameter.grad.any()
    assert model.head[0].weight.grad[:, own[name]].any()
    assert not model.head[0].weight.grad[:, own[other]].any()


def test_three_ways_at_once_go_through_the_fused_head(model, x, monkeypatch):
    calls = []

    def head(z_r, z_n, *weights):
        calls.append(z_r.shape)
        return fused(z_r, z_n, *weights)

    fused = three_way.three_way_head
    monkeypatch.setattr(three_way, "three_way_head", head)
    model.ways(x, "nrs")
    assert calls == [(7, 6)]
    model.ways(x, "rn")
    assert len(calls) == 1


def test_gradients_of_three_ways_are_those_of_the_definition(model, x):
    weights = torch.randn(3, 7, 5, dtype=torch.float64)
    gradients = []
    for compute in (model.ways, lambda x: by_definition(model, x)):
        leaf = x.clone().requires_grad_()
        logits = compute(leaf)
        loss = sum((weight * logits[way]).sum() for weight, way in zip(weights, "srn", strict=True))
        gradients.append(torch.autograd.grad(loss, [leaf, *model.parameters()]))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["s", "r", "n"])
def test_a_ways_parameters_are_its_encoders_and_the_head(model, name):
    expected = [p for encoder in ENCODERS[name] for p in getattr(model, f"encoder_{encoder}").parameters()]
    expected += list(model.head.parameters())
    got = model.way(name).parameters()
    assert len(got) == len(expected)
    assert all(a is b for a, b in zip(got, expected, strict=True))


def test_forward_is_the_standard_way(model, x):
    assert torch.equal(model(x), model.way("s")(x))


def test_encoders_start_with_different_weights(model):
    assert not torch.equal(model.encoder_r.linear.weight, model.encoder_n.linear.weight)


def test_state_dict_names_encoders_and_head(model):
    assert list(model.state_dict()) == [
        "encoder_r.linear.weight",
        "encoder_r.linear.bias",
        "encoder_n.linear.weight",
        "encoder_n.linear.bias",
        "head.0.weight",
        "head.0.bias",
        "head.2.weight",
        "head.2.bias",
    ]


def test_copies_are_equal_and_independent(model, x):
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert copy.deepcopy(twin.way("r")).model is not twin
        nn.init.zeros_(twin.head[2].weight)
        assert not torch.equal(twin(x), model(x))


def test_backbone_by_name(x):
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    width = model.encoder_r.features
    assert model.head[0].weight.shape == (width, 2 * width)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("ways", ["", "x", "ss", "srnn", "S"])
def test_unknown_ways_are_refused(model, x, ways):
    with pytest.raises(ValueError, match=f"ways '{ways}': expected one or more of s, r, n, each once"):
        model.ways(x, ways)


def test_decode_says_which_representation_is_missing(model, x):
    with pytest.raises(ValueError, match="ways 's' need the representations 'rn', got 'r'"):
        model.decode(model.encode(x, "r"), "s")


def test_bad_construction_is_refused_in_one_line():
    with pytest.raises(UserError, match="num_classes 1: expected 2 or more"):
        ThreeWay(Encoder, num_classes=1)
    with pytest.raises(TypeError, match="backbone Flatten has no int attribute `features`"):
        ThreeWay(nn.Flatten, num_classes=2)
    with pytest.raises(TypeError, match="'small_cnn' by name needs in_channels"):
        ThreeWay("small_cnn", num_classes=10)
    with pytest.raises(TypeError, match="in_channels=3 goes with a backbone's name"):
        ThreeWay(Encoder, num_classes=2, in_channels=3)
