"""The check between epochs: what it counts, and that training does not notice it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import few_digits, tiny

from robustfast.attacks import PGD
from robustfast.data import Dataset
from robustfast.data.resident import ResidentFeed
from robustfast.data.torch_loader import TorchFeed
from robustfast.distributed import World
from robustfast.seeds import derive
from robustfast.training.held_out import HeldOutCheck, HeldOutResult, spread
from robustfast.training.precision import Precision
from robustfast.training.run_folder import RunFolder, build_model

CPU = torch.device("cpu")


def test_counts_each_way_on_its_own_attack() -> None:
    config = tiny(batch_size=16, validate_images=30)
    torch.manual_seed(0)
    model = build_model(RunFolder(Path(), config, 1, 10)).train()
    test = few_digits("digits", "test")
    generator = torch.get_rng_state()
    result = HeldOutCheck(model, "srn", test, config, Precision("fp32", CPU))(epoch=3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())

    images = spread(test, 30)
    x, y, index = images.images / 16, images.labels, torch.arange(30)
    model.eval()
    for way in "srn":
        assert result.natural[way] == float((model.way(way)(x).argmax(1) == y).double().mean())
    assert list(result.adversarial) == ["r", "n"]
    for way in "rn":
        # One attack over all 30 images: the draws do not depend on the batches.
        attack = PGD(
            model.way(way), seed=derive(derive(config.seed, "held out"), way), **config.attack.keywords()
        )
        x_adv = attack(x, y, index, epoch=3)
        assert result.adversarial[way] == float((model.way(way)(x_adv).argmax(1) == y).double().mean())


@pytest.mark.parametrize(("loader", "taken"), [("torch", TorchFeed), ("resident", ResidentFeed)])
def test_the_loader_is_the_one_that_was_named(loader: str, taken: type) -> None:
    config = tiny(loader=loader)
    model = build_model(RunFolder(Path(), config, 1, 10))
    check = HeldOutCheck(model, "srn", few_digits("digits", "test"), config, Precision("fp32", CPU))
    assert type(check.feed) is taken


def test_more_processes_than_images() -> None:
    """Some have nothing to check, and all have the result."""

    class Deaf(World):
        """Hears nobody: its sums are its own part of them."""

        def sum(self, value: torch.Tensor) -> torch.Tensor:
            return value

    config = tiny(validate_images=3)
    torch.manual_seed(0)
    model = build_model(RunFolder(Path(), config, 1, 10))
    checks = [
        HeldOutCheck(model, "srn", few_digits("digits", "test"), config, Precision("fp32", CPU), world)
        for world in (World(), *(Deaf(rank, 5) for rank in range(5)))
    ]
    assert [check.feed is None for check in checks] == [False, True, False, True, False, False]
    whole, *parts = (check(epoch=0) for check in checks)
    for way, share in whole.natural.items():
        assert sum(part.natural[way] for part in parts) == pytest.approx(share, abs=1e-12)
    for way, share in whole.adversarial.items():
        assert sum(part.adversarial[way] for part in parts) == pytest.approx(share, abs=1e-12)


def test_robust_accuracy_is_that_of_the_robust_way() -> None:
    assert HeldOutResult({}, {"r": 0.5, "n": 0.9}).robust == 0.5
    assert HeldOutResult({}, {"n": 0.1}).robust == 0.1


@pytest.mark.parametrize(
    ("images", "expected"), [(3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))]
)
def test_spread_reaches_over_the_whole_set(images: int, expected: list[int]) -> None:
    grey = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    chosen = spread(Dataset("ramp", grey, torch.arange(10), tuple("0123456789")), images)
    assert chosen.images.flatten().tolist() == expected
    assert chosen.labels.tolist() == expected
