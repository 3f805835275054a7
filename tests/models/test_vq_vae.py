from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustfast.models import vq_vae
from robustfast.models.autoencoders import AUTOENCODERS
from robustfast.models.vq_vae import VQVAE, Codebook, PlainBlock


@pytest.fixture
def vae() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(in_channels=3, width=8, codes=5).eval()


@pytest.fixture
def book() -> Codebook:
    torch.manual_seed(0)
    book = Codebook(3, 2)
    with torch.no_grad():
        book.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    return book


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def brute_force(z: Tensor, codes: Tensor) -> Tensor:
    return (z.double()[:, None] - codes.double()).square().sum(2).argmin(1)


def test_the_search_finds_the_nearest_code_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    book, z = Codebook(7, 4), torch.randn(50, 4) / 30
    expected = brute_force(z, book.weight)
    assert len(set(expected.tolist())) == 7
    assert torch.equal(book.nearest(z), expected)
    # 3 rows of 7 distances at a time, the last part smaller; and no room for one row.
    for room in (21, 1):
        monkeypatch.setattr(vq_vae, "_DISTANCES", room)
        assert torch.equal(book.nearest(z), expected)
    assert book.nearest(z[:0]).shape == (0,)


def test_the_search_holds_few_distances_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held, product = [], torch.addmm
    monkeypatch.setattr(vq_vae, "_DISTANCES", 1000)
    monkeypatch.setattr(
        torch, "addmm", lambda *args, **kwargs: held.append(out := product(*args, **kwargs)) or out
    )
    Codebook(100, 3).nearest(torch.randn(405, 3))
    assert [distances.shape for distances in held] == [(10, 100)] * 40 + [(5, 100)]


def test_the_search_counts_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    book = Codebook(2, 2)
    with torch.no_grad():
        # One step of float32 at 1 apart: bfloat16 cannot tell them.
        book.weight.copy_(torch.tensor([[1.0, 0.0], [1.0 + 2**-10, 0.0]]))
    with torch.autocast("cpu", torch.bfloat16):
        assert book.nearest(torch.tensor([[1.0, 0.0], [1.0 + 2**-10, 0.0]])).tolist() == [0, 1]


def test_codes_and_losses_are_those_by_hand(book: Codebook) -> None:
    # Two samples of two places: (0.25, 0.25) and (0, 1.5), (0.75, 0) and (0.75, 0.5).
    z = torch.tensor([[[[0.25, 0.0]], [[0.25, 1.5]]], [[[0.75, 0.75]], [[0.0, 0.5]]]])
    codes, codebook, commitment = book(z)
    assert codes.tolist() == [[[[0.0, 0.0]], [[0.0, 2.0]]], [[[1.0, 1.0]], [[0.0, 0.0]]]]
    expected = [(0.125 + 0.25) / 2, (0.0625 + 0.3125) / 2]
    assert codebook.tolist() == commitment.tolist() == expected


def test_gradients_go_straight_through_to_the_encoder_and_by_the_mean_to_the_codebook(book: Codebook) -> None:
    z = torch.tensor([[[[0.25, 0.0]], [[0.25, 1.5]]], [[[0.75, 0.75]], [[0.0, 0.5]]]], requires_grad=True)
    codes, codebook, commitment = book(z)
    weights = torch.arange(8.0).view(2, 2, 1, 2)
    (d_z,) = torch.autograd.grad((codes * weights).sum(), z, retain_graph=True)
    assert torch.equal(d_z, weights)
    assert torch.autograd.grad(codes.sum(), book.weight, retain_graph=True, allow_unused=True) == (None,)
    # Each place's gradient is 2 (e - z) / places of a sample; the second code serves two places, and takes their mean.
    (d_codes,) = torch.autograd.grad(codebook.sum(), book.weight, retain_graph=True)
    assert d_codes.tolist() == [[-0.25, -0.25], [0.25, -0.25], [0.0, 0.5]]
    assert torch.autograd.grad(codebook.sum(), z, retain_graph=True, allow_unused=True) == (None,)
    (d_z,) = torch.autograd.grad(commitment.sum(), z, retain_graph=True)
    torch.testing.assert_close(d_z, z.detach() - codes.detach())
    assert torch.autograd.grad(commitment.sum(), book.weight, allow_unused=True) == (None,)


def test_a_code_that_serves_no_place_has_no_gradient(book: Codebook) -> None:
    _, codebook, _ = book(torch.zeros(1, 2, 2, 2))
    codebook.sum().backward()
    assert book.weight.grad.isfinite().all()
    assert not book.weight.grad.any()


def test_the_layers_are_those_of_the_code() -> None:
    torch.manual_seed(0)
    vae = AUTOENCODERS["vq_vae"].build(in_channels=3)
    assert AUTOENCODERS["vq_vae"].mean == (0.485, 0.456, 0.406)
    assert AUTOENCODERS["vq_vae"].std == (0.229, 0.224, 0.225)
    assert [type(layer) for layer in vae.encoder] == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU) * 2,
        *(PlainBlock, nn.BatchNorm2d) * 2,
    ]
    assert [type(layer) for layer in vae.decoder] == [
        *(PlainBlock, nn.BatchNorm2d, PlainBlock),
        *(nn.ConvTranspose2d, nn.BatchNorm2d, nn.LeakyReLU, nn.ConvTranspose2d),
        *(nn.Tanh, nn.BatchNorm2d),
    ]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in PlainBlock(4).modules())
    assert vae.codebook.weight.shape == (512, 128)
    drawn = [m for m in vae.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(drawn) == 12
    for module in drawn:
        # A standard deviation of n draws is off by a share of 1 / sqrt(2 n).
        assert abs(module.weight.std().item() / 0.02 - 1) < 4 / (2 * module.weight.numel()) ** 0.5
        assert not module.bias.any()
    assert abs(vae.codebook.weight.std().item() / 0.02 - 1) < 0.02
    assert torch.equal(vae.encoder[-1].weight, torch.full((128,), 1 / 40))
    # What is to be coded starts as large as the codes are.
    assert 0.02 < vae.encode(images(2, 3, 16, 16)).std() < 0.03


@pytest.mark.parametrize("size", [(16, 16), (19, 19), (13, 22)])
def test_other_sizes_are_padded_and_cropped_back(vae: VQVAE, size: tuple[int, int]) -> None:
    x = images(2, 3, *size)
    coded = vae(x)
    assert coded.image.shape == x.shape
    high, wide = (-(-side // 4) for side in size)
    assert coded.latent.shape == (2, 8 * high * wide)
    assert coded.regulariser.shape == (2,)
    padded = torch.zeros(2, 3, 4 * high, 4 * wide)
    padded[..., : size[0], : size[1]] = x
    torch.testing.assert_close(coded.image, vae(padded).image[..., : size[0], : size[1]])


def test_299_pixels_pass_as_300(vae: VQVAE) -> None:
    assert vae.encode(images(1, 3, 299, 299)).shape == (1, 8, 75, 75)
    assert vae(images(1, 3, 299, 299)).image.shape == (1, 3, 299, 299)
    assert vae(images(1, 3, 224, 224)).latent.shape == (1, 8 * 56 * 56)


def test_the_regulariser_is_the_codebook_loss_and_a_quarter_of_the_commitment(vae: VQVAE) -> None:
    x = images(3, 3, 12, 12)
    z = vae.encode(x)
    nearest = brute_force(z.permute(0, 2, 3, 1).reshape(-1, 8), vae.codebook.weight)
    codes = vae.codebook.weight[nearest].view(3, 3, 3, 8).permute(0, 3, 1, 2)
    coded = vae(x)
    assert torch.equal(coded.latent, codes.flatten(1))
    torch.testing.assert_close(coded.image, vae.decoder(codes))
    distance = (z - codes).square().sum(1).mean((1, 2))
    torch.testing.assert_close(coded.regulariser, 1.25 * distance)


def test_nothing_is_drawn(vae: VQVAE) -> None:
    x = images(2, 3, 12, 12)
    expected = vae(x)
    vae.sample_at_test = True
    for coded in (vae(x), vae(x, seed=1, index=torch.arange(2))):
        assert all(torch.equal(a, b) for a, b in zip(coded, expected, strict=True))


def test_a_training_step_moves_every_weight(vae: VQVAE) -> None:
    vae.train()
    x = images(4, 3, 16, 16)
    coded = vae(x)
    ((coded.image - x).square().mean() + coded.regulariser.mean()).backward()
    still = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_memory_order_changes_nothing_and_is_kept(vae: VQVAE) -> None:
    x = images(2, 3, 12, 12)
    coded, last = vae(x), vae(x.to(memory_format=torch.channels_last))
    for ours, theirs in zip(last, coded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    z = vae.encode(x).to(memory_format=torch.channels_last)
    assert vae.codebook(z)[0].is_contiguous(memory_format=torch.channels_last)
    assert vae.codebook(z.contiguous())[0].is_contiguous()


def test_it_is_traced_whole_so_that_nothing_waits_for_a_device(vae: VQVAE) -> None:
    x = images(2, 3, 12, 12)
    torch._dynamo.reset()
    traced = torch.compile(vae, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(traced(x), vae(x), strict=True):
        torch.testing.assert_close(ours, theirs)
