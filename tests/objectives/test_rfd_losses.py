"""The losses of RFD against hand-computed numbers and finite differences, and the nodes that route their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustfast.objectives import rfd_losses as losses
from robustfast.objectives.routing import scaled_gradient, through


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


# Two images with features of length 2.
Z = {"r": [[0.0, 1.0], [2.0, 0.5]], "n": [[1.0, 1.0], [0.3, 0.1]], "d": [[-1.0, 0.5], [0.0, 0.0]]}
Z_ADV = {"r": [[0.5, 1.0], [1.0, 1.0]], "n": [[3.0, 0.0], [0.2, 0.9]], "d": [[0.1, 0.2], [4.0, 1.0]]}


def features(values: dict[str, list[list[float]]]) -> dict[str, Tensor]:
    return {name: rows(*value) for name, value in values.items()}


def symmetric_divergence(one: list[float], other: list[float]) -> float:
    p, q = softmax(one), softmax(other)
    return sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))


def test_divergences_by_hand() -> None:
    found = losses.divergences(features(Z))
    assert found.shape == (3, 2)
    for row, (one, other) in zip(found, ("rn", "rd", "nd"), strict=True):
        for image in range(2):
            expected = symmetric_divergence(Z[one][image], Z[other][image])
            assert row[image].item() == pytest.approx(expected, rel=1e-12)


def test_kl_loss_repels_or_takes_the_words_as_they_are() -> None:
    s = [
        symmetric_divergence(z[one][image], z[other][image])
        for z in (Z, Z_ADV)
        for one, other in ("rn", "rd", "nd")
        for image in range(2)
    ]
    clean, adv = features(Z), features(Z_ADV)
    repel, literal = (losses.kl_loss(clean, adv, mode).item() for mode in ("repel", "literal"))
    assert repel == pytest.approx(sum(math.exp(-value) for value in s) / 12, rel=1e-12)
    assert literal == pytest.approx(sum(s) / 12, rel=1e-12)


def test_angular_loss_by_hand() -> None:
    clean, adv = rows([1.0, 0.0], [1.0, 1.0], [2.0, 0.0]), rows([1.0, 1.0], [-2.0, -2.0], [0.0, 3.0])
    # cosines 1/sqrt(2), -1 (whose absolute value counts) and 0
    expected = ((1 - 1 / math.sqrt(2)) + 0 + 1) / 3
    assert losses.angular_loss(clean, adv).item() == pytest.approx(expected, rel=1e-12)


def test_class_losses_by_hand_with_the_bound_on_the_last() -> None:
    y = torch.tensor([0, 1])
    logits = {"r": rows([1.0, 0.0], [0.0, 2.0]), "n": rows([0.5, 0.0], [0.0, 0.1])}
    adv = {"r": rows([0.0, 1.0], [1.0, 1.0]), "n": rows([0.0, 0.5], [9.0, 0.0])}
    found = losses.class_losses(logits, adv, y)
    assert list(found) == ["r", "n", "r_adv", "n_adv"]
    assert found["r"].item() == pytest.approx((softplus(-1) + softplus(-2)) / 2, rel=1e-12)
    assert found["n"].item() == pytest.approx((softplus(-0.5) + softplus(-0.1)) / 2, rel=1e-12)
    assert found["r_adv"].item() == pytest.approx((softplus(1) + math.log(2)) / 2, rel=1e-12)
    assert softplus(9) > 2 * math.log(2)
    assert found["n_adv"].item() == pytest.approx((softplus(0.5) + 2 * math.log(2)) / 2, rel=1e-12)


def test_beyond_the_bound_there_is_no_gradient() -> None:
    logits = rows([0.0, 0.5, 0.0], [9.0, 0.0, 0.0]).requires_grad_()
    other = {"r": logits.detach(), "n": logits.detach()}
    losses.class_losses(other, other | {"n": logits}, torch.tensor([0, 1]))["n_adv"].backward()
    assert logits.grad[0].abs().min() > 0
    assert torch.equal(logits.grad[1], torch.zeros(3, dtype=torch.float64))


LOGITS = {"r": [0.3, -1.0], "n": [2.0, 0.1], "d": [0.7, 1.5]}
LOGITS_ADV = {"r": [0.2, 0.4], "n": [-1.0, 0.6], "d": [-2.0, 0.5]}


def logits_of(values: dict[str, list[float]]) -> dict[str, Tensor]:
    return {name: rows(*([entry] for entry in value)) for name, value in values.items()}


def test_domain_loss_by_hand() -> None:
    expected = sum(
        sum(softplus(-v) for v in LOGITS[name]) / 2 + sum(softplus(v) for v in LOGITS_ADV[name]) / 2
        for name in "rnd"
    )
    found = losses.domain_loss(logits_of(LOGITS), logits_of(LOGITS_ADV))
    assert found.item() == pytest.approx(expected / 3, rel=1e-12)


@pytest.mark.parametrize("form", ["flipped", "minimax"])
def test_adversarial_loss_by_hand(form: str) -> None:
    found = losses.adversarial_loss(logits_of(LOGITS), logits_of(LOGITS_ADV), form)

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    if form == "flipped":
        fool = [
            mean([-math.log(1 - sigmoid(v)) for v in LOGITS[name]])
            + mean([-math.log(sigmoid(v)) for v in LOGITS_ADV[name]])
            for name in "rn"
        ]
    else:
        fool = [
            mean([math.log(sigmoid(v)) for v in LOGITS[name]])
            + mean([math.log(1 - sigmoid(v)) for v in LOGITS_ADV[name]])
            for name in "rn"
        ]
    tell = mean([-math.log(sigmoid(v)) for v in LOGITS["d"]])
    tell += mean([-math.log(1 - sigmoid(v)) for v in LOGITS_ADV["d"]])
    assert found["fool"].item() == pytest.approx(mean(fool), rel=1e-12)
    assert found["tell"].item() == pytest.approx(tell, rel=1e-12)


def test_reconstruction_loss_by_hand_leaves_its_target_alone() -> None:
    f = rows([1.0, 2.0], [0.0, -1.0]).requires_grad_()
    rebuilt = rows([0.0, 2.5], [0.5, -3.0]).requires_grad_()
    loss = losses.reconstruction_loss(rebuilt, f)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 0.5 + 0.5 + 2) / 4, rel=1e-12)
    assert f.grad is None
    assert rebuilt.grad.tolist() == [[-0.25, 0.25], [0.25, -0.25]]


def test_half_precision_features_count_in_float32() -> None:
    z = {name: torch.randn(4, 6).bfloat16() for name in "rnd"}
    for loss in (
        losses.kl_loss(z, z, "literal"),
        losses.angular_loss(z["r"], z["n"]),
        losses.class_losses(z, z, torch.zeros(4, dtype=torch.int64))["n_adv"],
        losses.domain_loss(z, z),
        losses.adversarial_loss(z, z, "flipped")["fool"],
        losses.reconstruction_loss(z["r"], z["n"]),
    ):
        assert loss.dtype == torch.float32


def test_losses_against_finite_differences() -> None:
    z, other = (torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y, constant = torch.tensor([0, 3]), torch.randn(2, 4, dtype=torch.float64)

    def named(values: Tensor) -> dict[str, Tensor]:
        return dict(zip("rnd", values, strict=True))

    def everything(z: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        clean, adv = named(z), named(other)
        judged, judged_adv = ({k: v[:, :1] for k, v in part.items()} for part in (clean, adv))
        return (
            losses.kl_loss(clean, adv, "repel"),
            losses.kl_loss(clean, adv, "literal"),
            losses.angular_loss(z[0], other[0]),
            *losses.class_losses(clean, adv, y).values(),
            losses.domain_loss(judged, judged_adv),
            *losses.adversarial_loss(judged, judged_adv, "flipped").values(),
            *losses.adversarial_loss(judged, judged_adv, "minimax").values(),
            losses.reconstruction_loss(z[0], constant),
        )

    assert torch.autograd.gradcheck(everything, (z, other))


def test_a_scaled_gradient_changes_nothing_else() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(scaled_gradient(x, -0.25), x)
    (gradient,) = torch.autograd.grad((scaled_gradient(x, -0.25) ** 2).sum(), x)
    assert torch.equal(gradient, -0.25 * 2 * x)


def test_only_what_goes_through_moves_what_lies_before() -> None:
    """f = a x, z = b f: a loss of z moves b, one of what goes through moves a and b."""
    a, b, x = (torch.tensor(value, dtype=torch.float64) for value in (2.0, 3.0, 5.0))
    a.requires_grad_(), b.requires_grad_()
    f = a * x
    leaf = f.detach().requires_grad_()
    z = b * leaf
    onward = through(z, leaf, f)
    assert torch.equal(onward, z)
    (z**2 + 7 * onward).backward(inputs=[a, b])
    assert b.grad.item() == (2 * z * f + 7 * f).item()
    assert a.grad.item() == (7 * b * x).item()
    assert leaf.grad is None


def test_through_serves_several_losses_of_several_features_at_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64)
    base, one, two = (torch.nn.Linear(3, 3).double() for _ in range(3))

    def gradients(leaf_too: bool) -> list[Tensor]:
        f = torch.tanh(base(x))
        if leaf_too:
            leaf = f.detach().requires_grad_()
            p, q = torch.tanh(one(leaf)), torch.tanh(two(leaf))
            p_on, q_on = through(p, leaf, f), through(q, leaf, f)
            loss = (p_on * q_on).sum() + (p_on**2).sum() + (p - q).exp().sum()
        else:
            p, q = torch.tanh(one(f)), torch.tanh(two(f))
            d = f.detach()
            apart = (torch.tanh(one(d)) - torch.tanh(two(d))).exp().sum()
            loss = (p * q).sum() + (p**2).sum() + apart
        parameters = [*base.parameters(), *one.parameters(), *two.parameters()]
        return list(torch.autograd.grad(loss, parameters))

    for mine, theirs in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-13, atol=1e-15)
