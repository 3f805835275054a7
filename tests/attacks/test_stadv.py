"""StAdv: the published loop written out, its bound, and images that stay what they were at bound 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import StAdv
from robustfast.attacks.smoothness import smoothness
from robustfast.attacks.stadv import identity_grid

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    net = make_net(torch.float64).eval()
    net[-1].weight.data *= 20
    return net


@pytest.fixture
def batch(net: nn.Module) -> Batch:
    """Images smooth enough that a flow of a pixel does not scramble them."""
    x = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = F.interpolate(x, size=(8, 8), mode="bilinear", align_corners=True)
    return x, net(x).argmax(1)


def offset_of(attack: StAdv, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The flow that made the images."""
    seen: list[Tensor] = []
    inner = attack._images

    def look(x: Tensor, offset: Tensor, prepared: dict[str, Tensor], *, first: bool = False) -> Tensor:
        seen.append(offset.detach().clone())
        return inner(x, offset, prepared, first=first)

    monkeypatch.setattr(attack, "_images", look)
    attack(x, y)
    return seen[-1]


def margin(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)


def unevenness(flow: Tensor) -> Tensor:
    """Pixel by pixel and neighbour by neighbour; a pixel outside counts as its own neighbour's equal."""
    total = flow.new_zeros(len(flow))
    height, width = flow.shape[1:3]
    for i in range(height):
        for j in range(width):
            for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if 0 <= k < height and 0 <= m < width:
                    total = total + ((flow[:, i, j] - flow[:, k, m]).square().sum(-1) + 1e-10).sqrt()
    return total


def test_the_smoothness_is_the_sum_over_neighbours() -> None:
    flow = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(smoothness(flow), unevenness(flow))
    leaf = torch.zeros(1, 3, 3, 2, requires_grad=True)
    smoothness(leaf).sum().backward()
    assert (leaf.grad == 0).all(), "a flat grid has a slope of zero, not nan"


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_is_the_published_loop(
    net: nn.Module, batch: Batch, steps: int, align_corners: bool, targeted: bool
) -> None:
    x, y = batch
    y = (y + 1) % 5 if targeted else y
    eps, sign = 0.2, -1 if targeted else 1
    still = identity_grid(x, align_corners=align_corners)
    grid = still.clone().requires_grad_()
    optimizer = torch.optim.Adam([grid], lr=0.03)

    def confine() -> None:
        with torch.no_grad():
            grid.clamp_(-1, 1)
            grid.copy_(still + (grid - still).clamp(-eps, eps))

    for _ in range(steps):
        confine()
        bent = F.grid_sample(x, grid, align_corners=align_corners)
        loss = sign * margin(net(bent), y) - 0.0025 / eps * unevenness(grid - still)
        optimizer.zero_grad()
        (-loss).sum().backward()
        optimizer.step()
    confine()
    expected = F.grid_sample(x, grid.detach(), align_corners=align_corners)
    attack = StAdv(net, eps=eps, steps=steps, step_size=0.03, align_corners=align_corners, targeted=targeted)
    ours = attack(x, y)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, x, rtol=0, atol=1e-2)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_flow_keeps_its_bound_and_stays_on_the_image(
    net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch, align_corners: bool
) -> None:
    attack = StAdv(net, eps=0.3, steps=15, step_size=0.1, smoothing=0, align_corners=align_corners)
    flow = offset_of(attack, *batch, monkeypatch)
    assert flow.abs().amax() == 0.3
    where = identity_grid(batch[0], align_corners=align_corners) + flow
    assert where.abs().amax() <= 1 + 1e-12
    assert (where.abs() > 1 - 1e-9).any(), "some pixels must have been held at the edge"


@pytest.mark.parametrize("align_corners", [False, True])
def test_bound_zero_leaves_the_images(net: nn.Module, batch: Batch, align_corners: bool) -> None:
    x, y = batch
    for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        attack = StAdv(net.to(dtype), eps=0, steps=3, align_corners=align_corners)
        assert torch.allclose(attack(x.to(dtype), y), x.to(dtype), rtol=0, atol=rounding)


def test_a_larger_bound_is_stronger(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    losses = [margin(net(StAdv(net, eps=eps, steps=40)(x, y)), y).mean() for eps in (0, 0.02, 0.1, 0.4)]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.1


def test_the_gradient_is_that_of_finite_differences(net: nn.Module, batch: Batch) -> None:
    x = batch[0][:2]
    attack = StAdv(net)
    prepared = attack._prepare(x)
    flow = (
        torch.rand(2, 8, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    ) * 0.1
    flow.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: attack._images(x, f, prepared), flow, fast_mode=True)
    assert torch.autograd.gradcheck(lambda f: attack._penalty(f), flow, fast_mode=True)


def test_images_that_are_not_square_and_other_bounds(net: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 10, 4)).double()
    x = torch.rand(3, 3, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    x_adv = StAdv(model, bounds=(-1, 1), steps=10, eps=0.3)(x, model(x).argmax(1))
    assert x_adv.abs().amax() <= 1
    assert not torch.allclose(x_adv, x)
    with pytest.raises(ValueError, match=r"images \[B, C, H, W\]"):
        StAdv(nn.Linear(5, 2).double())(x[:, 0, 0, :5].abs(), torch.zeros(3, dtype=torch.int64))
