"""What AutoAttack runs, on which images, what it keeps and what it says of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import ATTACKS, AutoAttack
from robustfast.attacks.autoattack_flags import looks_like_probabilities, looks_random
from robustfast.errors import UserError

EPS = {"linf": 0.05, "l2": 0.25, "l1": 0.7}
NORMS = tuple(EPS)


class Rows(nn.Module):
    """A network whose every sum runs over one sample in one order, whatever the batch."""

    def __init__(self, classes: int = 6, size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = {"generator": generator, "dtype": torch.float64}
        self.first = nn.Parameter(torch.randn(size * size, 16, **draw) * 0.3)
        self.last = nn.Parameter(torch.randn(16, classes, **draw))
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return torch.stack([torch.tanh((row - 0.5).flatten() @ self.first) @ self.last for row in x])


def images(batch: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 1, size, size, generator=generator, dtype=torch.float64)


def small(net: Any, norm: str = "linf", **more: Any) -> AutoAttack:
    """Few steps, no flags."""
    return AutoAttack(
        net, **{"norm": norm, "eps": EPS[norm], "steps": 3, "queries": 5, "flags": False} | more
    )


def warned(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


# The lists of the authors' package: attack, restarts, targets.
PACKAGE = {
    ("standard", "linf"): [("apgd-ce", 1, None), ("apgd-t", 1, 9), ("fab-t", 1, 9), ("square", 1, None)],
    ("standard", "l2"): [("apgd-ce", 1, None), ("apgd-t", 1, 9), ("fab-t", 1, 9), ("square", 1, None)],
    ("standard", "l1"): [("apgd-ce", 5, None), ("apgd-t", 1, 5), ("fab-t", 1, 9), ("square", 1, None)],
    ("plus", "linf"): [
        ("apgd-ce", 5, None), ("apgd-dlr", 5, None), ("fab", 5, None), ("square", 1, None), ("apgd-t", 1, 9),
        ("fab-t", 1, 9),
    ],
    ("rand", "l2"): [("apgd-ce", 1, None), ("apgd-dlr", 1, None)],
}  # fmt: skip


@pytest.mark.parametrize(("version", "norm"), PACKAGE)
def test_the_versions_are_those_of_the_package(version: str, norm: str) -> None:
    attack = AutoAttack(Rows(), norm=norm, eps=EPS[norm], version=version, seed=3)
    expected = PACKAGE[version, norm]
    assert attack.names == tuple(name for name, *_ in expected)
    for name, restarts, targets in expected:
        part = attack.part(name)
        assert type(part) is ATTACKS[name].attack
        assert (part.restarts, getattr(part, "n_target_classes", None)) == (restarts, targets)
        assert (part.norm, part.eps, part.seed) == (norm, EPS[norm], 3)
        if name == "square":
            assert (part.queries, part.p_init, part.resc_schedule) == (5000, 0.8, False)
        else:
            assert part.steps == 100
        if name.startswith("apgd"):
            assert part.eot == (20 if version == "rand" else 1)
            assert part.loss == ("ce" if name == "apgd-ce" else "dlr")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_each_attack_gets_what_those_before_it_left(norm: str, version: str) -> None:
    net, x = Rows(), images(40)
    y = net(x).argmax(1)
    y[:5] = (y[:5] + 1) % 6
    index = torch.arange(40) + 100
    attack = small(net, norm, version=version)
    given: list[tuple[str, list[int]]] = []
    for name in attack.names:
        part = attack.part(name, 6)
        attack._built[name] = attack._built[name][0], Spy(name, part, given)
    x_adv = attack(x, y, index)
    standing = list(range(105, 140))
    for (name, rows), record in zip(given, attack.records, strict=False):
        assert rows == standing
        assert (record.name, record.attacked, record.spared) == (name, len(rows), 40 - len(rows))
        standing = [row for row in standing if attack.fooled_by[row - 100] != name]
        assert record.fooled == len(rows) - len(standing)
    fooled = net(x_adv).argmax(1) != y
    assert attack.fooled_by[:5] == ["clean"] * 5
    assert [row - 100 for row in standing] == torch.nonzero(~fooled).flatten().tolist()
    assert torch.equal(x_adv[~fooled], x[~fooled])
    assert torch.equal(x_adv[:5], x[:5])
    assert 0 < sum(record.fooled for record in attack.records) < 35


class Spy:
    """An attack that writes down which samples it was given."""

    def __init__(self, name: str, part: Any, given: list[tuple[str, list[int]]]) -> None:
        self.name, self.kind, self.part, self.given = name, part.kind, part, given

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int) -> Tensor:
        self.given.append((self.name, index.tolist()))
        return self.part(x, y, index, epoch=epoch)


@pytest.mark.parametrize("norm", NORMS)
def test_the_same_for_every_size_of_batch(norm: str) -> None:
    net, x = Rows(), images(50)
    y = net(x).argmax(1)
    index = torch.arange(50) * 3 + 7
    attack = small(net, norm)
    whole = attack(x, y, index)
    by = attack.fooled_by
    assert 0 < by.count(None) < 50
    assert torch.equal(small(net, norm, batch_size=7)(x, y, index), whole)
    for size in (1, 17):
        attack, found, won_by = small(net, norm), [], []
        for batch in zip(*(t.split(size) for t in (x, y, index)), strict=True):
            found.append(attack(*batch))
            won_by += attack.fooled_by
        assert torch.equal(torch.cat(found), whole)
        assert won_by == by


def test_attacks_that_are_not_needed_do_not_run() -> None:
    net, x = Rows(), images(10)
    y = (net(x).argmax(1) + 1) % 6
    attack = small(net)
    attack(x, y)
    net.images = 0
    assert torch.equal(attack(x, y), x)
    assert net.images == 10, "one look at the clean images"
    assert [(record.attacked, record.spared) for record in attack.records] == [(0, 10)] * 4
    assert attack.fooled_by == ["clean"] * 10


def test_custom_versions() -> None:
    net, x = Rows(), images(20)
    y = net(x).argmax(1)
    attack = small(net, version="custom", attacks=("pgd", "square"), settings={"pgd": {"steps": 2}})
    x_adv = attack(x, y)
    assert attack.names == ("pgd", "square")
    assert attack.part("pgd").steps == 2
    alone = ATTACKS["pgd"](net, eps=EPS["linf"], steps=2)(x, y)
    won = [by == "pgd" for by in attack.fooled_by]
    assert any(won)
    assert torch.equal(x_adv[torch.tensor(won)], alone[torch.tensor(won)])
    assert small(net, version="custom", attacks=("apgd-ce",)).part("apgd-ce").restarts == 5


def test_settings_can_change_between_calls() -> None:
    attack = small(Rows())
    before = attack.part("apgd-ce")
    assert attack.part("apgd-ce") is before
    attack.settings["apgd-ce"]["restarts"] = 4
    assert attack.part("apgd-ce").restarts == 4
    assert attack.part("fab-t") is attack.part("fab-t")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "fast"}, "version is 'fast', expected one of standard, plus, rand, custom"),
        ({"version": "custom"}, "name the attacks with version 'custom'"),
        ({"attacks": ("pgd",)}, "name the attacks with version 'custom' and with no other"),
        ({"version": "custom", "attacks": ("pdg",)}, "did you mean 'pgd'"),
        ({"version": "custom", "attacks": ("autoattack",)}, "cannot be a part"),
        ({"version": "custom", "attacks": ("stadv",)}, "cannot be a part of AutoAttack under norm 'linf'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"settings": {"fab": {}}}, "settings for 'fab', which does not run"),
        ({"eps": torch.ones(3)}, "one radius"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        AutoAttack(Rows(), **settings)


@pytest.mark.parametrize(
    ("classes", "version", "said"),
    [
        (2, "standard", ["apgd-t with 2 classes", "no more than 1 targets", "margin"]),
        (3, "standard", ["apgd-t with 3 classes", "no more than 2 targets", "margin"]),
        (4, "standard", ["no more than 3 targets"]),
        (2, "rand", ["apgd-dlr with 2 classes", "climbs the margin"]),
        (3, "rand", []),
        (10, "standard", []),
    ],
)
def test_few_classes(classes: int, version: str, said: list[str]) -> None:
    net, x = Rows(classes), images(12)
    y = net(x).argmax(1)
    attack = small(net, version=version, flags=True, eot=1, eps=0.003)
    messages = [text for text in warned(lambda: attack(x, y)) if "classes" in text]
    assert all(any(part in text for text in messages) for part in said)
    assert len(messages) <= 2
    assert bool(messages) == bool(said)
    assert all("\n" not in text for text in messages)
    assert not [text for text in warned(lambda: attack(x, y)) if "classes" in text], "once"
    strong = small(net, version=version, eot=1, eps=0.3, steps=10)(x, y)
    assert (net(strong).argmax(1) != y).all()


def test_a_random_model_is_named() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.generator = Rows(), torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
            return self.net(x + 0.05 * noise)

    x = images(10)
    y = Rows()(x).argmax(1)
    flags = {"flags": True, "eot": 1}
    assert any("use version 'rand'" in text for text in warned(lambda: small(Noisy(), **flags)(x, y)))
    rand = small(Noisy(), version="rand", **flags)
    assert not any("use version 'rand'" in text for text in warned(lambda: rand(x, y)))
    assert not any("use version" in text for text in warned(lambda: small(Rows(), **flags)(x, y)))
    assert not warned(lambda: small(Noisy())(x, y)), "no flags were asked for"


def test_probabilities_are_named() -> None:
    net, x = Rows(), images(10)
    y = net(x).argmax(1)
    softmax = nn.Sequential(net, nn.Softmax(1))
    assert any("pass logits" in text for text in warned(lambda: small(softmax, flags=True)(x, y)))
    assert looks_like_probabilities(torch.tensor([[0.2, 0.8], [1.0, 0.0]]))
    assert not looks_like_probabilities(torch.tensor([[0.2, 0.8], [1.5, -0.5]]))
    assert not looks_like_probabilities(torch.tensor([[0.2, 0.7]]))
    assert not looks_random(torch.ones(2, 3), torch.ones(2, 3) * 2, torch.zeros(2, dtype=torch.int64))


def test_masked_gradients_are_named() -> None:
    net, x = Rows(), images(20)

    def rounded(batch: Tensor) -> Tensor:
        return net((batch * 8).round() / 8 + 0 * batch)

    y = rounded(x).argmax(1)
    messages = warned(lambda: small(rounded, flags=True, eps=0.2, queries=100)(x, y))
    assert any("zero gradient in a step of apgd" in text for text in messages)
    assert any("square won" in text for text in messages)


def test_the_report_holds_what_all_attacks_saw() -> None:
    net, x = Rows(), images(12)

    def flat_for_some(batch: Tensor) -> Tensor:
        dead = (batch.flatten(1).sum(1) > 32).detach()
        return net(torch.where(dead[:, None, None, None], batch.detach(), batch))

    y = flat_for_some(x).argmax(1)
    attack = small(flat_for_some, eps=1e-6, version="custom", attacks=("apgd-ce", "apgd-dlr"))
    attack(x, y)
    assert attack.report.zero_gradient == int((x.flatten(1).sum(1) > 32).sum()) > 0
    assert attack.report.samples == 12


def test_a_start_is_refused() -> None:
    x = images(2)
    with pytest.raises(ValueError, match="start of their own"):
        small(Rows())(x, torch.zeros(2, dtype=torch.int64), start=x)


def test_a_call_without_images_leaves_no_record_of_the_one_before() -> None:
    net, x = Rows(), images(4)
    attack = small(net)
    attack(x, net(x).argmax(1))
    assert len(attack.records) == 4
    assert len(attack.fooled_by) == 4
    attack(x[:0], torch.zeros(0, dtype=torch.int64))
    assert not attack.records
    assert not attack.fooled_by
    assert attack.report.samples == 0
