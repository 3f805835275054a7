"""ReColorAdv: the colour space against known colours, the published loop written out, and its bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import ReColorAdv
from robustfast.attacks.recolor import luv_to_rgb, rgb_to_luv

Batch = tuple[Tensor, Tensor]
LATTICE = (4, 5, 6)


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    net = make_net(torch.float64).eval()
    net[-1].weight.data *= 20
    return net


@pytest.fixture
def batch(net: nn.Module) -> Batch:
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.6 + 0.2
    return x, net(x).argmax(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)


# sRGB under D65, as colour calculators give them; the attack's constants are rounded to four digits.
@pytest.mark.parametrize(
    ("rgb", "luv"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
        ((1, 0, 0), (53.24, 175.01, 37.76)),
        ((0, 1, 0), (87.73, -83.08, 107.40)),
        ((0, 0, 1), (32.30, -9.41, -130.34)),
        ((1, 1, 0), (97.14, 7.71, 106.79)),
        ((0.02, 0.02, 0.02), (1.40, 0, 0)),
    ],
)
def test_the_colour_space_is_cie_luv(rgb: tuple[float, ...], luv: tuple[float, ...]) -> None:
    light, u, v = rgb_to_luv(torch.tensor(rgb, dtype=torch.float64)).tolist()
    found = (light * 100, u * 200 - 100, v * 200 - 100)
    assert found == pytest.approx(luv, abs=0.15)


def test_there_and_back_loses_what_the_rounded_constants_lose() -> None:
    rgb = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rgb[0], rgb[1] = 0, 1
    back = luv_to_rgb(rgb_to_luv(rgb))
    assert (back - rgb).abs().amax() < 1.3e-3
    assert (back - rgb).abs().amax() > 1e-4
    far = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4 - 2
    outside = luv_to_rgb(far)
    assert outside.isfinite().all()
    assert outside.amin() >= 0
    assert outside.amax() <= 1


def looked_up(table: Tensor, luv: Tensor) -> Tensor:
    """Colours [B, n, 3] between those of the table [B, *LATTICE, 3], corner by corner."""
    sizes = torch.tensor(LATTICE)
    place = luv * (sizes - 1)
    low, part = place.floor().long(), place - place.floor()
    result = torch.zeros_like(luv)
    rows = torch.arange(len(luv))[:, None]
    for corner in range(8):
        bits = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        at = torch.minimum((low + bits).clamp(min=0), sizes - 1)
        weight = torch.where(bits == 1, part, 1 - part).prod(-1, keepdim=True)
        result = result + weight * table[rows, at[..., 0], at[..., 1], at[..., 2]]
    return result


def unevenness(grid: Tensor) -> Tensor:
    total = grid.new_zeros(len(grid))
    for axis in (1, 2, 3):
        size = grid.shape[axis]
        a, b = grid.narrow(axis, 0, size - 1), grid.narrow(axis, 1, size - 1)
        total = total + 2 * ((a - b).square().sum(-1) + 1e-10).sqrt().flatten(1).sum(1)
    return total


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_is_the_published_loop(net: nn.Module, batch: Batch, steps: int, targeted: bool) -> None:
    x, y = batch
    x[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])  # a colour beyond the lattice
    y = (y + 1) % 5 if targeted else y
    eps, sign = 0.1, -1 if targeted else 1
    axes = [torch.arange(size, dtype=torch.float64) / (size - 1) for size in LATTICE]
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).expand(len(x), *LATTICE, 3)
    table = identity.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.02)
    luv = rgb_to_luv(x.movedim(1, -1)).flatten(1, 2)

    def confine() -> None:
        with torch.no_grad():
            inside = rgb_to_luv(luv_to_rgb(table.clamp(0, 1)))
            table.copy_(torch.maximum(torch.minimum(inside, identity + eps), identity - eps))

    def recoloured() -> Tensor:
        return luv_to_rgb(looked_up(table, luv)).unflatten(1, x.shape[2:]).movedim(-1, 1)

    for _ in range(steps):
        confine()
        loss = sign * margin(net(recoloured()), y) - 0.0036 / eps * unevenness(table - identity)
        optimizer.zero_grad()
        (-loss).sum().backward()
        optimizer.step()
    confine()
    attack = ReColorAdv(net, eps=eps, steps=steps, step_size=0.02, lattice=LATTICE, targeted=targeted)
    ours = attack(x, y)
    assert torch.allclose(ours, recoloured(), rtol=0, atol=1e-5)
    assert not torch.allclose(ours, x, rtol=0, atol=1e-2)


def test_every_entry_of_the_table_keeps_its_bound(
    net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = ReColorAdv(net, eps=0.06, steps=10, step_size=0.02)
    seen: list[Tensor] = []
    inner = attack._images

    def look(x: Tensor, offset: Tensor, prepared: dict[str, Tensor], *, first: bool = False) -> Tensor:
        seen.append(offset.detach().clone())
        return inner(x, offset, prepared, first=first)

    monkeypatch.setattr(attack, "_images", look)
    x_adv = attack(*batch)
    assert len(seen) == 11
    assert all(offset.abs().amax() <= 0.06 for offset in seen)
    assert seen[-1].abs().amax() == 0.06
    assert x_adv.amin() >= 0
    assert x_adv.amax() <= 1


def test_bound_zero_is_the_colour_space_alone(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    expected = luv_to_rgb(rgb_to_luv(x.movedim(1, -1)).clamp(0, 1)).movedim(-1, 1)
    for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        found = ReColorAdv(net.to(dtype), eps=0, steps=2)(x.to(dtype), y)
        assert torch.allclose(found.double(), expected, rtol=0, atol=rounding)
    grey = torch.linspace(0, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8).expand(1, 3, 8, 8).contiguous()
    found = ReColorAdv(net.double(), eps=0, steps=1)(grey, y[:1])
    assert torch.allclose(found, grey, rtol=0, atol=1.3e-3)


def test_a_grey_image_shows_the_luma_of_its_colours(net: nn.Module, batch: Batch) -> None:
    x, y = batch[0].mean(1, keepdim=True), batch[1]
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]

    def shown(images: Tensor) -> Tensor:
        return net((images * luma).sum(1, keepdim=True).expand(-1, 3, -1, -1))

    def grey(images: Tensor) -> Tensor:
        return net(images.expand(-1, 3, -1, -1))

    settings = {"steps": 5, "step_size": 0.02, "lattice": LATTICE}
    colours = ReColorAdv(shown, **settings)(x.expand(-1, 3, -1, -1).contiguous(), y)
    found = ReColorAdv(grey, **settings)(x, y)
    assert torch.allclose(found, (colours * luma).sum(1, keepdim=True), rtol=0, atol=1e-12)
    assert not torch.allclose(found, x, atol=1e-2)


def test_all_pixels_of_a_colour_change_alike(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    few = (x * 2).round() / 2
    x_adv = ReColorAdv(net, steps=5, step_size=0.01, lattice=LATTICE)(few, y)
    for before, after in zip(
        few.movedim(1, -1).flatten(1, 2), x_adv.movedim(1, -1).flatten(1, 2), strict=True
    ):
        _, which = before.unique(dim=0, return_inverse=True)
        for colour in range(int(which.max()) + 1):
            same = after[which == colour]
            assert torch.equal(same, same[:1].expand_as(same))
    assert not torch.allclose(x_adv, few, atol=1e-2)


def test_a_larger_bound_is_stronger(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    losses = [
        margin(net(ReColorAdv(net, eps=eps, steps=20, step_size=0.02, lattice=LATTICE)(x, y)), y).mean()
        for eps in (0, 0.02, 0.06, 0.2)
    ]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.1


def test_the_gradient_is_that_of_finite_differences(net: nn.Module, batch: Batch) -> None:
    x = batch[0][:2]
    attack = ReColorAdv(net, lattice=LATTICE)
    prepared = attack._prepare(x)
    table = torch.rand(2, *LATTICE, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.02
    table.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: attack._images(x, t, prepared), table, fast_mode=True)
    assert torch.autograd.gradcheck(lambda t: attack._penalty(t), table, fast_mode=True)


def test_black_pixels_do_not_stop_the_attack(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    x = torch.where(F.pad(torch.zeros(8, 4), (0, 4), value=1).bool(), x, 0)
    for dtype in (torch.float64, torch.float32):
        x_adv = ReColorAdv(net.to(dtype), steps=5, step_size=0.02, lattice=LATTICE)(x.to(dtype), y)
        assert x_adv.isfinite().all()
        assert not torch.allclose(x_adv[:, :, :, 4:], x[:, :, :, 4:].to(dtype), atol=1e-2)


def test_images_and_settings_it_cannot_use_are_refused_in_one_line(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        ReColorAdv(net)(torch.rand(2, 2, 8, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="lattice"):
        ReColorAdv(net, lattice=(1, 2, 3))
    with pytest.raises(ValueError, match="eps"):
        ReColorAdv(net, eps=-0.1)
