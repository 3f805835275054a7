"""JPEG: the codec against scipy's DCT and the standard's tables, the published loop written out, and its bound."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import JPEG
from robustfast.attacks.jpeg import CHROMA, LUMA, decode, encode

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=3), nn.Flatten(), nn.LazyLinear(5)
        ).double()  # fmt: skip


@pytest.fixture
def batch(net: nn.Module) -> Batch:
    x = torch.rand(4, 3, 16, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.6 + 0.2
    return x, net(x).argmax(1)


def test_the_tables_are_those_of_the_standard() -> None:
    image = pytest.importorskip("PIL.Image")
    written = io.BytesIO()
    # Quality 50 writes the standard's tables as they are.
    image.new("RGB", (16, 16)).save(written, "jpeg", quality=50)
    tables = image.open(written).quantization
    assert list(tables[0]) == [entry for row in LUMA for entry in row]
    assert list(tables[1]) == [entry for row in CHROMA for entry in row]


def test_the_coefficients_are_scipys() -> None:
    fft = pytest.importorskip("scipy.fft")
    x = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 255
    red, green, blue = x.unbind(1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = [(y - 128, LUMA)]
    # JFIF's differences are (blue - y) / 1.772 and (red - y) / 1.402.
    for plane in ((blue - y) / 1.772, (red - y) / 1.402):
        planes.append((nn.functional.avg_pool2d(plane[:, None], 2)[:, 0], CHROMA))
    parts = []
    for plane, table in planes:
        for i in range(0, plane.shape[1], 8):
            for j in range(0, plane.shape[2], 8):
                block = fft.dctn(plane[:, i : i + 8, j : j + 8].numpy(), axes=(1, 2), norm="ortho")
                parts.append(torch.from_numpy(block).flatten(1) / torch.tensor(table).flatten())
    assert torch.allclose(encode(x), torch.cat(parts, dim=1), rtol=0, atol=1e-4)  # JFIF rounds its matrix


def test_without_rounding_only_fine_colour_is_lost() -> None:
    x = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 255
    coarse = x[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(decode(encode(coarse), x.shape[1:]), coarse, rtol=0, atol=1e-3)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    back = decode(encode(x), x.shape[1:])
    assert torch.allclose(
        (back * luma[:, None, None]).sum(1), (x * luma[:, None, None]).sum(1), rtol=0, atol=1e-3
    )
    assert not torch.allclose(back, x, atol=1)
    grey = x[:, :1]
    assert torch.allclose(decode(encode(grey), grey.shape[1:]), grey, rtol=0, atol=1e-10)


def test_rounded_it_is_the_jpeg_of_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    ramp = torch.arange(32.0)[:, None] * 3 + torch.arange(32.0)[None] * 2 + 40
    levels = torch.stack([ramp, 255 - ramp, ramp * 0.5 + 60]).round()
    written = io.BytesIO()
    image.fromarray(levels.movedim(0, -1).byte().numpy()).save(
        written, "jpeg", quality=50, subsampling="4:2:0"
    )
    theirs = torch.frombuffer(bytearray(image.open(written).convert("RGB").tobytes()), dtype=torch.uint8)
    theirs = theirs.reshape(32, 32, 3).movedim(-1, 0).double()
    ours = decode(encode(levels[None].double()).round(), (3, 32, 32))[0].clamp(0, 255)
    # Pillow rounds each plane to whole levels and interpolates colour where this repeats it.
    assert (ours - theirs).abs().mean() < 2
    assert (levels - theirs).abs().mean() > 0.5


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_is_the_published_loop(
    net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch, steps: int, targeted: bool
) -> None:
    x, y = batch
    y = (y + 1) % 5 if targeted else y
    eps = 0.3
    draws = torch.rand(4, 16 * 32 * 3 // 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr("robustfast.attacks.transformed.uniform", lambda *_, **__: draws.clone())
    v = (2 * draws - 1) * eps

    def coded(v: Tensor, scale: float) -> Tensor:
        # The variable is scaled to [-1, 1] and moves a coefficient by eps * (0.5 + 0.5 v - 0.5).
        return (decode(encode(255 * x) + eps * (0.5 * scale * v), x.shape[1:]) / 255).clamp(0, 1)

    for step in range(steps):
        leaf = v.clone().requires_grad_()
        loss = nn.functional.cross_entropy(net(coded(leaf, 1 if step == 0 else 1 / eps)), y)
        (grad,) = torch.autograd.grad(loss, leaf)
        v = (v + (-1 if targeted else 1) * eps / math.sqrt(steps) * grad.sign()).clamp(-eps, eps)
    ours = JPEG(net, eps=eps, steps=steps, targeted=targeted)(x, y)
    assert torch.allclose(ours, coded(v, 1 / eps), rtol=0, atol=1e-10)


@pytest.mark.parametrize("eps", [0.0, 0.125, 0.25])
def test_every_coefficient_keeps_its_bound(net: nn.Module, batch: Batch, eps: float) -> None:
    x, y = 0.5 + 0.1 * (batch[0] - 0.5), batch[1]
    x_adv = JPEG(net, eps=eps, steps=10)(x, y)
    assert x_adv.amin() > 0
    assert x_adv.amax() < 1
    moved = encode(255 * x_adv) - encode(255 * x)
    # Half of eps is what the code makes of it. The matrices to YCbCr and back are rounded.
    assert moved.abs().amax() <= eps / 2 + 1e-4
    assert moved.abs().amax() >= eps / 2 - 1e-4


def test_bound_zero_is_the_codec_alone(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    expected = decode(encode(255 * x), x.shape[1:]) / 255
    assert torch.allclose(JPEG(net, eps=0, steps=3)(x, y), expected.clamp(0, 1), rtol=0, atol=1e-12)


def test_a_larger_bound_is_stronger(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    losses = [
        nn.functional.cross_entropy(net(JPEG(net, eps=eps, steps=20)(x, y)), y) for eps in (0, 0.1, 0.4, 1.5)
    ]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.1


def test_the_gradient_is_that_of_finite_differences(net: nn.Module, batch: Batch) -> None:
    x = batch[0][:1]
    attack = JPEG(net)
    prepared = attack._prepare(x)
    v = (torch.rand(1, 768, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5) * 0.2
    assert torch.autograd.gradcheck(
        lambda v: attack._images(x, v, prepared), v.requires_grad_(), fast_mode=True
    )


def test_grey_images_and_other_bounds() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8 * 24, 4)).double()
    x = torch.rand(3, 1, 8, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = model(x).argmax(1)
    assert torch.allclose(JPEG(model, eps=0, steps=1, bounds=(-1, 1))(x, y), x, rtol=0, atol=1e-12)
    x_adv = JPEG(model, eps=0.5, steps=10, bounds=(-1, 1))(x, y)
    assert x_adv.abs().amax() <= 1
    assert not torch.allclose(x_adv, x, atol=1e-2)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16)])
def test_images_without_whole_blocks_are_filled_up_with_their_edge(channels: int, side: int) -> None:
    x = torch.rand(2, channels, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    linear = nn.Linear(channels * 12 * 20, 4).double()
    model = nn.Sequential(nn.Flatten(), linear)
    y = model(x).argmax(1)
    rows, columns = (torch.arange(-(-size // side) * side).clamp(max=size - 1) for size in (12, 20))
    filled = x[:, :, rows][:, :, :, columns]
    assert filled.shape[2:] == (16, 24 if side == 8 else 32)

    def cut(images: Tensor) -> Tensor:
        return model(images[:, :, :12, :20])

    settings = {"eps": 0.5, "steps": 4, "seed": 3}
    found = JPEG(model, **settings)(x, y)
    assert torch.equal(found, JPEG(cut, **settings)(filled, y)[:, :, :12, :20])
    assert not torch.allclose(found, x, atol=1e-2)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((2, 4, 16, 16), r"\[B, 3, H, W\]"),
        ((2, 48), r"\[B, 3, H, W\]"),
    ],
)
def test_images_it_cannot_code_are_refused_in_one_line(shape: tuple[int, ...], names: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(shape))
    with pytest.raises(ValueError, match=names) as caught:
        JPEG(model)(torch.rand(shape), torch.zeros(2, dtype=torch.int64))
    assert "\n" not in str(caught.value)
