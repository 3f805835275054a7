from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks.draws import normal
from robustfast.models.autoencoders import AUTOENCODERS
from robustfast.models.posterior import kl_divergence
from robustfast.models.residual_vae import ResidualBlock, ResidualVAE


@pytest.fixture
def vae() -> ResidualVAE:
    torch.manual_seed(0)
    return ResidualVAE(in_channels=2, size=8, latent=10, width=6).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def test_that_of_cifar_is_the_paper_s() -> None:
    with torch.device("meta"):
        vae = AUTOENCODERS["cifar_vae"].build(in_channels=3)
    assert [type(layer) for layer in vae.encoder] == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU) * 2,
        *(ResidualBlock, nn.BatchNorm2d, ResidualBlock),
    ]
    assert [type(layer) for layer in vae.decoder] == [
        *(ResidualBlock, nn.BatchNorm2d) * 2,
        *(nn.ConvTranspose2d, nn.BatchNorm2d, nn.LeakyReLU, nn.ConvTranspose2d),
        *(nn.Tanh, nn.BatchNorm2d),
    ]
    strided = [layer for layer in vae.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    strided = [layer for layer in strided if layer.kernel_size == (4, 4)]
    assert [(layer.in_channels, layer.out_channels) for layer in strided] == [
        (3, 16),
        (16, 32),
        (32, 16),
        (16, 3),
    ]
    assert all(layer.bias is None and layer.stride == (2, 2) for layer in strided)
    assert vae.mean.weight.shape == vae.log_variance.weight.shape == vae.grow.weight.shape == (2048, 2048)
    # A residual block: 3x3 and 1x1 convolutions of 32 maps with biases, and a batch norm's scale and shift.
    block = 32 * 32 * 9 + 32 + 2 * 32 + 32 * 32 + 32
    ends = 2 * 16 * (3 * 16 + 16 * 32)
    norms = 2 * (16 + 32 + 32) + 2 * (2 * 32 + 16 + 3)
    assert sum(p.numel() for p in vae.parameters()) == 4 * block + ends + norms + 3 * (2048 * 2048 + 2048)


@pytest.mark.parametrize(
    ("name", "shape", "latent"), [("digits_vae", (1, 8, 8), 64), ("mnist_vae", (1, 28, 28), 128)]
)
def test_those_by_name_take_their_images(name: str, shape: tuple[int, ...], latent: int) -> None:
    torch.manual_seed(0)
    coded = AUTOENCODERS[name].build(in_channels=1).eval()(torch.randn(3, *shape))
    assert coded.image.shape == (3, *shape)
    assert coded.latent.shape == (3, latent)
    assert coded.regulariser.shape == (3,)


def test_a_residual_block_is_its_input_plus_the_residual() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(3).eval(), torch.randn(2, 3, 4, 4)
    before = x.clone()
    nn.init.zeros_(block.layers[-1].weight)
    nn.init.constant_(block.layers[-1].bias, 0.5)
    assert torch.equal(block(x), before + 0.5)
    assert torch.equal(x, before)


def test_without_a_seed_the_code_is_the_mean_in_train_mode_too(vae: ResidualVAE, x: Tensor) -> None:
    mean, log_variance = vae.posterior(x)
    coded = vae(x)
    assert torch.equal(coded.latent, mean)
    assert torch.equal(coded.image, vae.decode(mean))
    with pytest.raises(ValueError, match="seed without index"):
        vae(x, seed=3)
    torch.testing.assert_close(coded.regulariser, kl_divergence(mean, log_variance) / (2 * 10))
    vae.train()
    assert torch.equal(vae(x).image, vae(x).image)


def test_with_seed_and_index_the_code_is_drawn_by_them(vae: ResidualVAE, x: Tensor) -> None:
    mean, log_variance = vae.posterior(x)
    index = torch.tensor([5, 0, 2**35, 9])
    coded = vae(x, seed=7, index=index)
    z = mean + (log_variance / 2).exp() * normal(index, (10,), seed=7)
    torch.testing.assert_close(coded.image, vae.decode(z))
    assert torch.equal(coded.latent, mean)
    torch.testing.assert_close(coded.regulariser, vae(x).regulariser)
    torch.testing.assert_close(vae(x[2:3], seed=7, index=index[2:3]).image, coded.image[2:3])


def test_code_and_divergence_are_in_float32_under_autocast(vae: ResidualVAE, x: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        coded = vae(x, seed=7, index=torch.arange(4))
    assert coded.latent.dtype == coded.regulariser.dtype == torch.float32
    torch.testing.assert_close(coded.regulariser, vae(x).regulariser, rtol=0.05, atol=1e-3)


def test_sampling_at_test_draws_anew_from_the_global_generator(vae: ResidualVAE, x: Tensor) -> None:
    mean, log_variance = vae.posterior(x)
    vae.sample_at_test = True
    torch.manual_seed(3)
    first, second = vae(x).image, vae(x).image
    torch.manual_seed(3)
    expected = vae.decode(mean + (log_variance / 2).exp() * torch.randn(4, 10))
    torch.testing.assert_close(first, expected)
    assert not torch.isclose(first, second).all()
    # What a seed draws is no other: training does not depend on the switch.
    seeded = vae(x, seed=7, index=torch.arange(4)).image
    vae.sample_at_test = False
    assert torch.equal(seeded, vae(x, seed=7, index=torch.arange(4)).image)
    assert torch.equal(vae(x).image, vae.decode(mean))
    # A switch of this network, not of the class.
    assert not ResidualVAE.sample_at_test


def test_memory_order_changes_nothing(vae: ResidualVAE, x: Tensor) -> None:
    torch.testing.assert_close(
        vae(x.to(memory_format=torch.channels_last)).image, vae(x).image, rtol=1e-4, atol=1e-5
    )


def test_a_training_step_moves_every_weight(vae: ResidualVAE, x: Tensor) -> None:
    vae.train()
    coded = vae(x, seed=1, index=torch.arange(4))
    ((coded.image - x).square().mean() + coded.regulariser.mean()).backward()
    still = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_images_of_another_size_are_refused_in_one_line(vae: ResidualVAE) -> None:
    with pytest.raises(ValueError, match=r"^this VAE takes 8x8 images, got \(1, 2, 12, 8\)$"):
        vae(torch.zeros(1, 2, 12, 8))
