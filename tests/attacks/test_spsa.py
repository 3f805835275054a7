from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import SPSA
from robustfast.attacks.draws import signs

INDEX = torch.tensor([3])


class Net(nn.Module):
    """A smooth network in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(48, 16, generator=generator, dtype=torch.float64) * 0.4)
        self.last = nn.Parameter(torch.randn(16, 5, generator=generator, dtype=torch.float64))
        self.queries = 0

    def forward(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        return torch.tanh((x.flatten(1) - 0.5) @ self.first) @ self.last


def images(batch: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, Net()(x).argmax(1)


def estimate(attack: SPSA, x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient that its first step takes, and what it logs of it."""
    peak = x.new_zeros(len(x))
    with attack._gradient.session(x.device):
        return attack._estimate(x, y, index, attack._key(0), torch.tensor(0), peak), peak


def test_the_estimate_is_by_hand() -> None:
    """Two directions, each pair a difference of its own."""
    net, (x, y) = Net(), images()
    attack = SPSA(net, samples=2, loss="ce", seed=7)
    expected = torch.zeros_like(x)
    for number in range(2):
        v = signs(INDEX, (3, 4, 4), seed=attack._key(0), step=number, dtype=x.dtype)
        up, down = (
            nn.functional.cross_entropy(net(x + side * 0.01 * v), y, reduction="none") for side in (1, -1)
        )
        expected += (up - down) / 0.02 * v / 2
    found, peak = estimate(attack, x, y, INDEX)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert peak.item() == pytest.approx(expected.abs().max().item())


def test_the_estimate_is_the_gradient_in_expectation() -> None:
    """Over 40,000 directions: within five standard errors of the true gradient in every pixel."""
    net, (x, y) = Net(), images()
    samples, leaf = 40_000, x.clone().requires_grad_()
    (truth,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), y), leaf)
    attack = SPSA(net, steps=1, samples=samples, chunk=1000, loss="ce", delta=1e-4)
    found, _ = estimate(attack, x, y, INDEX)
    # For one direction the error of an entry has the variance of the rest: |g|^2 - g_i^2.
    error = (truth.square().sum() - truth.square()).sqrt() / samples**0.5
    assert ((found - truth).abs() <= 5 * error).all()
    assert ((found - truth).abs() >= 1e-3 * error).any(), "an estimate, not the gradient"
    assert (found - truth).norm() < 0.05 * truth.norm()


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_the_chunk_changes_no_bit(chunk: int) -> None:
    class RowByRow(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([Net.forward(self, row[None]) for row in x])

    x, y = images(3)
    settings: dict[str, Any] = {"steps": 3, "samples": 8, "eps": 0.1}
    whole = SPSA(RowByRow(), chunk=8, **settings)(x, y)
    assert torch.equal(SPSA(RowByRow(), chunk=chunk, **settings)(x, y), whole)


def test_a_pass_is_no_larger_than_the_chunk_says() -> None:
    largest = 0

    class Watched(Net):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal largest
            largest = max(largest, len(x))
            return super().forward(x)

    net, (x, y) = Watched(), images(3)
    SPSA(net, steps=2, samples=10, chunk=4)(x, y)
    assert largest == 2 * 4 * 3
    assert net.queries == 2 * 2 * 10 * 3


def test_torchattacks_trajectory_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one draw for all images of a batch is filled with ours, image by image; the rest of its code is its own."""
    torchattacks = pytest.importorskip("torchattacks")
    net, (x, y) = Net(), images(2)
    steps, samples, eps = 12, 6, 0.06
    ours = SPSA(net, eps=eps, steps=steps, samples=samples, seed=5)
    for row in range(2):
        index, drawn = torch.tensor([row + 4]), 0

        def fill(self: Tensor, *args: Any, index: Tensor = index, **kwargs: Any) -> Tensor:
            nonlocal drawn
            for direction in self:
                v = signs(index, (3, 4, 4), seed=ours._key(0), step=drawn, dtype=self.dtype)
                direction.copy_((v + 1) / 2)
                drawn += 1
            return self

        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "bernoulli_", fill)
            theirs = torchattacks.SPSA(net, eps=eps, nb_iter=steps, nb_sample=samples, max_batch_size=4)
            # torchattacks casts to float32 what it is given through __call__.
            expected = theirs.spsa_perturb(x[row : row + 1], y[row : row + 1])
        assert drawn == steps * samples
        found = ours(x[row : row + 1], y[row : row + 1], index)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert (found - x[row]).abs().max() > eps / 2


def test_it_fools_what_it_attacks_and_needs_no_gradient() -> None:
    net, (x, y) = Net(), images(6)
    settings: dict[str, Any] = {"eps": 0.15, "steps": 20, "samples": 32}
    x_adv = SPSA(lambda x: net(x).detach().round(decimals=4), **settings)(x, y)
    before = net.queries
    assert (net(x_adv).argmax(1) != y).float().mean() >= 0.5
    assert net.queries == before + 6
    target = (y + 1) % 5
    towards = SPSA(net, targeted=True, loss="ce", **settings)(x, target)
    assert (net(towards).softmax(1) - net(x).softmax(1)).gather(1, target[:, None]).min() > 0


def test_a_sample_that_was_fooled_stays_and_is_asked_no_more() -> None:
    x, y = images(6)
    y[0] = (y[0] + 1) % 5
    net, whole = Net(), Net()
    settings: dict[str, Any] = {"eps": 0.15, "steps": 20, "samples": 16}
    stopped = SPSA(net, early_stop=True, **settings)(x, y)
    last = SPSA(whole, **settings)(x, y)
    assert torch.equal(stopped[0], x[0])
    fooled = net(stopped).argmax(1) != y
    assert fooled.sum() > 2
    # What was never fooled on its way is where the full run ends.
    assert torch.equal(stopped[~fooled], last[~fooled])
    assert net.queries < 0.8 * whole.queries


def test_a_loss_that_is_no_number_moves_nothing_and_is_reported() -> None:
    def broken(x: Tensor) -> Tensor:
        logits = Net()(x)
        return torch.where((x.flatten(1)[:, :1] > 2), torch.nan, logits)

    x, y = images(2)
    attack = SPSA(lambda x: Net()(x) * torch.nan, steps=2, samples=3)
    assert torch.equal(attack(x, y), x)
    assert attack.report.nonfinite_gradient == 2
    attack = SPSA(lambda x: Net()(x) * 0, steps=2, samples=3)
    assert torch.equal(attack(x, y), x)
    assert attack.report.zero_gradient == 2
    assert SPSA(broken, steps=2, samples=3)(x, y).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l2"}, "norm is 'l2', expected one of linf"),
        ({"samples": 0}, "samples is 0, expected a whole number from 1"),
        ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
        ({"chunk": 0}, "chunk is 0"),
        ({"delta": 0.0}, "delta is 0.0, expected a length above 0"),
        ({"step_size": -1.0}, "step_size is -1.0"),
        ({"steps": 2**20, "samples": 2**10}, "expected fewer than 2\\*\\*30 draws"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPSA(Net(), **settings)
