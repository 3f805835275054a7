"""AFD's discriminator, against hand-computed logits, exact singular values and finite differences."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustfast.errors import UserError
from robustfast.models import ProjectionDiscriminator
from robustfast.models.projection_discriminator import VARIANTS


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def normalised(module: nn.Module) -> list[Tensor]:
    """The weight matrices as a forward uses them now."""
    return [part.weight for part in module.modules() if parametrize.is_parametrized(part)]


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_logit_for_each_feature_vector(variant: str) -> None:
    discriminator = ProjectionDiscriminator(6, 3, variant=variant)
    z, y = torch.randn(4, 6), torch.tensor([0, 2, 1, 2])
    assert discriminator(z, y).shape == discriminator(z, None).shape == (4, 1)
    linears = sum(isinstance(part, nn.Linear) for part in discriminator.modules())
    assert linears == {"fc1-pd": 1, "fc3": 3, "fc3-pd": 3}[variant]
    discriminator.eval()
    moved = discriminator(z, y) - discriminator(z, (y + 1) % 3)
    assert bool(moved.any()) == variant.endswith("-pd")


def test_logit_by_hand() -> None:
    discriminator = ProjectionDiscriminator(2, 2).eval()
    first, second = discriminator.hidden[0], discriminator.hidden[2]
    for layer in (first, second, discriminator.output, discriminator.embedding):
        parametrize.remove_parametrizations(layer, "weight")
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        first.bias.copy_(torch.tensor([0.5, 0.0]))
        second.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        second.bias.zero_()
        discriminator.output.weight.copy_(torch.tensor([[0.5, -1.0]]))
        discriminator.output.bias.fill_(0.25)
        discriminator.embedding.weight.copy_(torch.tensor([[1.0, 1.0], [-2.0, 3.0]]))
    # (0.5, 1) -> (1, -1) -> leaky (1, -0.2) -> (-0.2, 1) -> leaky h = (-0.04, 1).
    z = torch.tensor([[0.5, 1.0]])
    output = 0.5 * -0.04 - 1.0 + 0.25
    assert discriminator(z, None).item() == pytest.approx(output)
    assert discriminator(z, torch.tensor([0])).item() == pytest.approx(output + 0.96)
    assert discriminator(z, torch.tensor([1])).item() == pytest.approx(output + 0.08 + 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_spectral_norms_are_one_after_a_warm_up(variant: str) -> None:
    discriminator = ProjectionDiscriminator(64, 10, variant=variant)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(1.5)
        z, y = torch.randn(8, 64), torch.arange(8)
        for _ in range(100):
            discriminator(z, y)
    weights = normalised(discriminator.eval())
    assert len(weights) == {"fc1-pd": 2, "fc3": 3, "fc3-pd": 4}[variant]
    for weight in weights:
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_a_forward_in_train_mode_is_one_power_iteration_and_in_eval_mode_none() -> None:
    discriminator = ProjectionDiscriminator(5, 3)
    z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        discriminator.embedding.parametrizations.weight.original.add_(torch.randn(3, 5))
    before, weight = buffers(discriminator), discriminator.embedding.parametrizations.weight.original.detach()
    u = nn.functional.normalize(weight @ before["embedding.parametrizations.weight.0._v"], dim=0)
    v = nn.functional.normalize(weight.T @ u, dim=0)
    discriminator(z, y)
    after = buffers(discriminator)
    torch.testing.assert_close(after["embedding.parametrizations.weight.0._u"], u)
    torch.testing.assert_close(after["embedding.parametrizations.weight.0._v"], v)
    discriminator.eval()
    first = discriminator(z, y)
    assert torch.equal(discriminator(z, y), first)
    assert all(torch.equal(value, after[name]) for name, value in discriminator.named_buffers())
    # Without labels the embedding is not looked at.
    discriminator.train()(z, None)
    assert torch.equal(
        discriminator.embedding.parametrizations.weight[0]._u, after["embedding.parametrizations.weight.0._u"]
    )


def test_initial_weights() -> None:
    discriminator = ProjectionDiscriminator(64, 10)
    limits = {
        "hidden.0.parametrizations.weight.original": 64**-0.5,
        "hidden.2.parametrizations.weight.original": 64**-0.5,
        "output.parametrizations.weight.original": (6 / 65) ** 0.5,
        "embedding.parametrizations.weight.original": (6 / 74) ** 0.5,
    }
    for name, limit in limits.items():
        largest = discriminator.get_parameter(name).abs().max().item()
        assert 0.9 * limit < largest <= limit, name


def test_first_and_second_derivatives() -> None:
    """Singular vectors are constants to the gradient, so finite differences are taken in eval mode."""
    discriminator = ProjectionDiscriminator(3, 2).double().eval()
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1, 0])
    originals = [p for p in discriminator.parameters() if p.dim() == 2]

    def logits(z: Tensor, *_: Tensor) -> Tensor:
        return discriminator(z, y)

    assert torch.autograd.gradcheck(logits, (z, *originals))
    assert torch.autograd.gradgradcheck(logits, (z, *originals))


def test_checkpoints_hold_the_singular_vectors() -> None:
    discriminator, other = ProjectionDiscriminator(8, 4), ProjectionDiscriminator(8, 4)
    z, y = torch.randn(5, 8), torch.tensor([0, 1, 2, 3, 0])
    file = io.BytesIO()
    torch.save(discriminator.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(discriminator(z, y), other(z, y))
    assert torch.equal(copy.deepcopy(discriminator)(z, y), other(z, y))


def test_float32_under_autocast() -> None:
    discriminator = ProjectionDiscriminator(8, 4).eval()
    z, y = torch.randn(5, 8), torch.tensor([0, 1, 2, 3, 0])
    expected = discriminator(z, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(discriminator(z, y), expected)
        assert discriminator(z.bfloat16(), y).dtype == torch.float32


def test_an_unknown_variant_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="discriminator 'fc2': expected one of fc1-pd, fc3, fc3-pd"):
        ProjectionDiscriminator(8, 4, variant="fc2")
