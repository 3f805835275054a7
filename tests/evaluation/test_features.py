"""Features of clean and attacked images, in the order of the images and with every mode restored."""

import pytest
import torch
from torch import nn

from robustfast.attacks import FGSM, PGD
from robustfast.evaluation.features import collect
from robustfast.models import OneWay


def network(**options):
    def backbone():
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU())
        module.features = 8
        return module

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OneWay(backbone, num_classes=3, **options)


def images(count=10):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 4, 4, generator=generator)
    return x, torch.arange(count) % 3, 7 * torch.arange(count)


def batches(size, count=10):
    return zip(*(part.split(size) for part in images(count)), strict=True)


def test_the_network_in_eval_mode_decides_and_gets_its_modes_back():
    model = network()
    model.encoder[2].running_mean.fill_(0.3)
    model.train()
    model.classifier.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = collect(model.features, batches(4), attack=PGD(model, eps=0.1, steps=2), model=model.way("r"))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    x, y, index = images()
    model.eval()
    attacked = PGD(model, eps=0.1, steps=2)(x, y, index)
    with torch.no_grad():
        torch.testing.assert_close(found.values, model.features(attacked))
        assert torch.equal(found.predicted, model(attacked).argmax(1))
    assert not found.values.requires_grad
    assert torch.equal(found.labels, y)
    assert torch.equal(found.positions, index)
    assert found.accuracy == (found.predicted == y).double().mean().item()


def test_draws_go_by_position_not_by_batch():
    model = network(unit_norm=True).eval()
    attack = PGD(model, eps=0.1, steps=2)
    one, other = (collect(model.features, batches(size), attack=attack) for size in (3, 10))
    torch.testing.assert_close(one.values, other.values)
    torch.testing.assert_close(one.values.norm(dim=1), torch.ones(10))
    clean = collect(model.features, batches(3))
    assert (one.values - clean.values).norm(dim=1).min() > 1e-3
    assert clean.predicted is None
    with pytest.raises(ValueError, match="no predictions"):
        clean.accuracy  # noqa: B018


def test_several_features_come_from_one_pass():
    model = network().eval()
    passes = []

    def both(x):
        passes.append(len(x))
        z = model.features(x).double()
        return {"r": z, "n": -z}

    found = collect(both, batches(4), attack=FGSM(model, eps=0.1))
    assert passes == [4, 4, 2]
    assert found.values["r"].dtype == torch.float32
    assert torch.equal(found.values["n"], -found.values["r"])


def test_an_exception_restores_the_modes():
    model = network().train()

    def broken(x, y, index):
        assert not model.training
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        collect(model.features, batches(4), attack=broken)
    assert model.training
    with pytest.raises(ValueError, match="no batch"):
        collect(model.features, [])
