from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from robustfast.attacks import LOSSES, PGD, AttackReport, pgd
from robustfast.ops import pgd_step, random_start
from robustfast.seeds import derive

Batch = tuple[Tensor, Tensor]
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
EPS = {"linf": 0.1, "l2": 0.5, "l1": 3.0}


def linear(features: int, classes: int = 3) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    generator = torch.Generator().manual_seed(features)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return net


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    return (x_adv.double() - x.double()).flatten(1).norm(p=ORDER[norm], dim=1)


# --- the ball and the box


@settings(max_examples=60)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    step=st.sampled_from(["auto", "sign", "grad"]),
    law=st.sampled_from([True, "pixel", False]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    eps=st.floats(0, 0.9),
    step_size=st.floats(0, 2),
    steps=st.integers(1, 4),
    size=st.integers(1, 5),
    bounds=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.25, 0.75)]),
    targeted=st.booleans(),
    seed=st.integers(0, 2**62),
)
def test_the_result_lies_in_the_ball_and_in_the_box(
    norm: str, step: str, law: bool | str, dtype: torch.dtype, eps: float, step_size: float, steps: int, size: int,
    bounds: tuple[float, float], targeted: bool, seed: int,
) -> None:  # fmt: skip
    lo, hi = bounds
    generator = torch.Generator().manual_seed(seed)
    x = lo + (hi - lo) * torch.rand(3, 2, size, size, generator=generator, dtype=dtype)
    x[0] = x[0].round().clamp(lo, hi)
    attack = PGD(
        linear(2 * size * size).to(dtype), eps=eps * (hi - lo) / 2, step_size=step_size, steps=steps, norm=norm,
        step=step, random_start=law, bounds=bounds, targeted=targeted, seed=seed,
    )  # fmt: skip
    x_adv = attack(x, torch.tensor([0, 1, 2]))
    # Each of the 2 * size**2 pixels is rounded, and a long step cut back to the ball brings the rounding of its length.
    rounding = torch.finfo(dtype).eps * 2 * size**2 * (2 + step_size)
    assert (distance(x_adv, x, norm) <= attack.eps * (1 + torch.finfo(dtype).eps) + rounding).all()
    assert x_adv.amin() >= lo
    assert x_adv.amax() <= hi


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("law", [True, "pixel"])
def test_eps_zero_is_the_identity(net: nn.Module, batch: Batch, norm: str, law: bool | str) -> None:
    assert torch.equal(PGD(net, eps=0, norm=norm, random_start=law)(*batch), batch[0])
    assert torch.equal(PGD(net, eps=0.0, step_size=0.0, norm=norm, random_start=False)(*batch), batch[0])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_sample_may_have_its_own_eps_and_step(net: nn.Module, batch: Batch, norm: str) -> None:
    x, y = batch
    eps = EPS[norm] * torch.linspace(0, 1, 8)
    attack = PGD(net.eval(), eps=eps, step_size=eps / 4, norm=norm, random_start=False)
    x_adv = attack(x, y)
    assert (distance(x_adv, x, norm) <= eps.double() * (1 + 1e-6) + 1e-6).all()
    assert torch.equal(x_adv[0], x[0])
    for i in (3, 7):
        alone = PGD(net, eps=eps[i].item(), step_size=eps[i].item() / 4, norm=norm, random_start=False)
        assert torch.allclose(alone(x[i : i + 1], y[i : i + 1]), x_adv[i], atol=1e-6)


def test_eps_and_step_of_one_call(net: nn.Module, batch: Batch) -> None:
    attack = PGD(net)
    assert torch.equal(
        attack(*batch, eps=0.01, step_size=torch.tensor(0.004)), PGD(net, eps=0.01, step_size=0.004)(*batch)
    )
    assert torch.equal(attack(*batch), PGD(net)(*batch))


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_attack_raises_the_loss_and_a_targeted_one_lowers_it(
    net: nn.Module, batch: Batch, norm: str, loss: str
) -> None:
    x, y = batch
    net.eval()

    def value(images: Tensor) -> Tensor:
        return LOSSES[loss](net(images), y).mean().detach()

    rule = {"norm": norm, "eps": EPS[norm], "step_size": EPS[norm] / 4, "loss": loss}
    assert value(PGD(net, **rule)(x, y)) > value(x)
    assert value(PGD(net, targeted=True, **rule)(x, y)) < value(x)


def test_a_targeted_attack_is_the_loop_with_a_negative_step(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    net.eval()
    x_adv = x.clone()
    for _ in range(4):
        leaf = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), y, reduction="sum"), leaf)
        x_adv = pgd_step(x_adv, grad, x, step_size=-0.02, eps=0.05)
    assert torch.equal(
        PGD(net, eps=0.05, step_size=0.02, steps=4, targeted=True, random_start=False)(x, y), x_adv
    )


@pytest.mark.parametrize("q", [0.02, 0.5])
def test_the_sparse_l1_step_moves_the_given_fraction_of_the_pixels(
    net: nn.Module, batch: Batch, q: float
) -> None:
    x, y = batch
    x_adv = PGD(net, eps=3.0, step_size=1.0, steps=1, norm="l1", q=q, random_start=False)(0.25 + x / 2, y)
    moved = (x_adv != 0.25 + x / 2).flatten(1).sum(1)
    assert torch.equal(moved, torch.full((8,), round(q * 192)))


def test_kl_against_given_probabilities(net: nn.Module, batch: Batch) -> None:
    x, _ = batch
    net.eval()
    p = net(x).softmax(1).detach()
    x_adv = PGD(net, loss="kl", eps=0.1)(x, p)
    kl = nn.functional.kl_div(net(x_adv).log_softmax(1), p, reduction="none").sum(1)
    noise = random_start(x, eps=0.1, seed=derive(0, "pgd", 0, 0), index=torch.arange(8))
    kl_noise = nn.functional.kl_div(net(noise).log_softmax(1), p, reduction="none").sum(1)
    assert (kl > kl_noise).all()


def test_a_loss_of_ones_own(net: nn.Module, batch: Batch) -> None:
    x, _ = batch
    wanted = torch.rand(8, 5)
    attack = PGD(net.eval(), loss=lambda logits, target: -(logits - target).square().sum(1))
    closer = (net(attack(x, wanted)) - wanted).square().sum(1)
    assert (closer > 0).all()
    attack = PGD(net, loss=lambda logits, target: (logits - target).square().sum(1), targeted=True)
    assert ((net(attack(x, wanted)) - wanted).square().sum(1) < (net(x) - wanted).square().sum(1)).all()


# --- what an attack must leave as it was


def test_modes_gradients_and_buffers_are_left_alone(net: nn.Module, batch: Batch) -> None:
    net[1].eval()
    net[7].bias.requires_grad_(False)
    for parameter in net[0].parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    grads = [p.grad for p in net.parameters()]
    modes = [part.training for part in net.modules()]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    weights = {name: parameter.clone() for name, parameter in net.named_parameters()}
    for batch_norm in ("eval", "batch"):
        PGD(net, batch_norm=batch_norm, restarts=2)(*batch)
    assert [part.training for part in net.modules()] == modes
    assert all(p.grad is grad for p, grad in zip(net.parameters(), grads, strict=True))
    assert all((p.grad == 3).all() for p in net[0].parameters())
    assert [p.requires_grad for p in net.parameters()] == [True] * 7 + [False]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in net.named_parameters())


def test_everything_is_put_back_when_the_model_raises(net: nn.Module, batch: Batch) -> None:
    net[1].eval()
    modes = [part.training for part in net.modules()]
    calls = []

    def fail_later(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    net[5].register_forward_hook(fail_later)
    with pytest.raises(RuntimeError, match="out of memory"):
        PGD(net, batch_norm="batch")(*batch)
    assert [part.training for part in net.modules()] == modes
    assert net[1].track_running_stats
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_batch_statistics_give_another_attack(net: nn.Module, batch: Batch) -> None:
    assert not torch.equal(PGD(net, batch_norm="batch")(*batch), PGD(net)(*batch))


def test_the_global_random_state_is_neither_read_nor_set(net: nn.Module, batch: Batch) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = PGD(net)(*batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(PGD(net)(*batch), first)


def test_inputs_are_left_alone_and_the_result_is_detached(net: nn.Module, batch: Batch) -> None:
    x, y = batch[0].clone().requires_grad_(), batch[1]
    x_adv = PGD(net)(x, y)
    assert torch.equal(x.detach(), batch[0])
    assert x.grad is None
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None


def test_it_works_under_no_grad(net: nn.Module, batch: Batch) -> None:
    expected = PGD(net, restarts=2)(*batch)
    with torch.no_grad():
        assert torch.equal(PGD(net, restarts=2)(*batch), expected)


# --- layouts and shapes


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_channels_last_is_kept_and_changes_nothing(make_net: Callable[..., nn.Module], norm: str) -> None:
    net = make_net(torch.float64)
    x, y = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    attack = PGD(net, norm=norm, eps=EPS[norm], step_size=EPS[norm] / 4)
    x_adv = attack(x.contiguous(memory_format=torch.channels_last), y)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x_adv, attack(x, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (4, 1, 2, 3), (4, 1, 2, 1, 3)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_any_number_of_dimensions(shape: tuple[int, ...], norm: str) -> None:
    x, y = torch.rand(shape), torch.tensor([0, 1, 2, 0])
    x_adv = PGD(linear(6), norm=norm)(x, y)
    assert x_adv.shape == x.shape
    assert torch.equal(x_adv.flatten(1), PGD(linear(6), norm=norm)(x.flatten(1), y))


def test_a_strided_view_of_images(net: nn.Module) -> None:
    big = torch.rand(8, 3, 16, 16)
    view, y = big[:, :, ::2, ::2], torch.zeros(8, dtype=torch.int64)
    before = big.clone()
    assert torch.equal(PGD(net)(view, y), PGD(net)(view.contiguous(), y))
    assert torch.equal(big, before)


def test_an_empty_batch(net: nn.Module) -> None:
    attack = PGD(net)
    assert attack(torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 8, 8)
    assert attack.report == AttackReport(0, 0, 0)


# --- randomness


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("split", [(8,), (1, 7), (3, 3, 2)])
def test_results_do_not_depend_on_the_batch_split(
    make_net: Callable[..., nn.Module], norm: str, split: tuple[int, ...]
) -> None:
    net = make_net(torch.float64)
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(8, 3, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 5, (8,), generator=generator)
    index = torch.randperm(1000, generator=generator)[:8]
    attack = PGD(net, norm=norm, eps=EPS[norm], step_size=EPS[norm] / 4, restarts=2, seed=4)
    whole = attack(x, y, index, epoch=3)
    parts = [
        attack(*piece, epoch=3)
        for piece in zip(x.split(split), y.split(split), index.split(split), strict=True)
    ]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_seed_epoch_and_index_key_the_start(net: nn.Module, batch: Batch) -> None:
    attack = PGD(net, steps=1, step_size=0.0)
    first = attack(*batch)
    assert torch.equal(first, attack(*batch, torch.arange(8)))
    assert torch.equal(
        first, random_start(batch[0], eps=8 / 255, seed=derive(0, "pgd", 0, 0), index=torch.arange(8))
    )
    assert not torch.equal(first, attack(*batch, epoch=1))
    assert not torch.equal(first, attack(*batch, torch.arange(8) + 1))
    assert not torch.equal(first, PGD(net, steps=1, step_size=0.0, seed=1)(*batch))


def test_a_given_start(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    start = (x + 0.01).clamp(0, 1)
    assert torch.equal(
        PGD(net, steps=1, step_size=0.0)(x, y, start=start), (start - x).clamp(-8 / 255, 8 / 255) + x
    )


# --- restarts


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_keep_the_strongest_of_each_sample(net: nn.Module, batch: Batch, targeted: bool) -> None:
    x, y = batch
    net.eval()
    rule = {"eps": 0.1, "step_size": 0.02, "steps": 2, "targeted": targeted}
    best = PGD(net, restarts=4, **rule)(x, y)
    index = torch.arange(8)
    starts = [
        random_start(x, eps=0.1, seed=derive(0, "pgd", 0, restart), index=index) for restart in range(4)
    ]
    candidates = torch.stack([PGD(net, **rule)(x, y, start=start) for start in starts])
    logits = net(candidates.flatten(0, 1)).unflatten(0, (4, 8)).detach()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(4), reduction="none").unflatten(
        0, (4, 8)
    )
    fooled = (logits.argmax(2) == y) == targeted
    # Fooled first, then the loss in the attack's direction.
    strength = (-loss if targeted else loss) + 1000 * fooled
    winner = strength.argmax(0)
    assert len(set(winner.tolist())) > 1, "the case must tell restarts apart"
    assert torch.equal(best, candidates[winner, index])


def test_a_fooled_start_beats_a_higher_loss() -> None:
    # Logits of an image with one pixel v: class 0 wins below 0.6 however high its loss. The losses are set by hand.
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(x), x - 0.6], dim=1)

    attack = PGD(Steps(), eps=0.5, step_size=0.0, steps=1, restarts=8, loss=lambda z, y: -z[:, 1])
    x, y = torch.full((16, 1), 0.5), torch.zeros(16, dtype=torch.int64)
    x_adv = attack(x, y)
    tried = torch.stack(
        [random_start(x, eps=0.5, seed=derive(0, "pgd", 0, r), index=torch.arange(16)) for r in range(8)]
    )
    fooling = torch.where(tried > 0.6, tried, torch.inf).amin(
        0
    )  # of those that fool, the one of highest loss
    assert fooling.isfinite().sum() > 8
    assert torch.equal(x_adv, torch.where(fooling.isfinite(), fooling, tried.amin(0)))


def test_a_restart_whose_loss_is_nan_never_wins(batch: Batch) -> None:
    class NanBelow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.cat([torch.ones_like(x), x], dim=1)
            return torch.where(x < 0.5, torch.nan, logits)

    x = torch.full((32, 1), 0.5)
    x_adv = PGD(NanBelow(), eps=0.3, step_size=0.0, steps=1, restarts=8)(
        x, torch.zeros(32, dtype=torch.int64)
    )
    assert (x_adv >= 0.5).all()


# --- the host never waits

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item", "unique")


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "kl"])
@pytest.mark.parametrize(("norm", "restarts"), [("linf", 1), ("l2", 2), ("l1", 2)])
def test_the_loop_never_waits_for_the_device(
    net: nn.Module, batch: Batch, record: type[Any], loss: str, norm: str, restarts: int
) -> None:
    x, y = batch
    target = torch.full((8, 5), 0.2) if loss == "kl" else y
    with record() as calls:
        PGD(net, norm=norm, loss=loss, restarts=restarts, steps=3)(x, target)
    names = [name for name, _ in calls.calls]
    model = [i for i, name in enumerate(names) if "convolution" in name]
    last_step = max(i for i, name in enumerate(names) if "pgd_step" in name)
    loop = names[model[0] : max(model[-1], last_step) + 1]
    assert len(model) >= 3 * 4 * restarts
    assert not [name for name in loop if name.split("::")[1].split(".")[0] in WAITS]


def test_the_loop_allocates_no_image_besides_the_gradient(
    net: nn.Module, batch: Batch, record: type[Any]
) -> None:
    x, y = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    attack = PGD(model, steps=4, random_start=False)
    with record() as calls:
        attack(x, y)
    names = [name for name, _ in calls.calls]
    steps = [i for i, name in enumerate(names) if "pgd_step" in name]
    one_step = calls.calls[steps[1] + 1 : steps[2]]
    image_sized = [
        name
        for name, args in one_step
        if args and isinstance(args[0], Tensor) and args[0].numel() == x.numel()
        and name.split("::")[1] not in ("detach", "view", "_unsafe_view", "t", "addmm")
    ]  # fmt: skip
    # The two reductions behind the report read the gradient; nothing else touches an image.
    assert sorted(image_sized) == ["aten::amax", "aten::amin"]


# --- the report


class Gated(nn.Module):
    """A linear model whose logits are multiplied by `gate(mean of the image)`."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = linear(4)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gate(x.detach().flatten(1)[:, :1])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_report_counts_zero_gradients(norm: str) -> None:
    x = torch.tensor([0.2, 0.7, 0.3, 0.9])[:, None].expand(4, 4)
    attack = PGD(
        Gated(lambda value: (value > 0.5).float()), norm=norm, eps=0.1, step_size=0.01, random_start=False
    )
    x_adv = attack(x, torch.zeros(4, dtype=torch.int64))
    assert attack.report == AttackReport(zero_gradient=2, nonfinite_gradient=0, samples=4)
    assert torch.equal((x_adv != x).any(1), torch.tensor([False, True, False, True]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_report_counts_nan_gradients_and_no_pixel_becomes_nan(norm: str) -> None:
    x = torch.tensor([0.2, 0.7, 0.3])[:, None].expand(3, 4)
    gate = Gated(lambda value: torch.where(value > 0.5, torch.nan, 1.0))
    attack = PGD(gate, norm=norm, eps=0.1, step_size=0.01, random_start=False)
    x_adv = attack(x, torch.zeros(3, dtype=torch.int64))
    assert attack.report == AttackReport(zero_gradient=0, nonfinite_gradient=1, samples=3)
    assert x_adv.isfinite().all()
    assert torch.equal((x_adv != x).any(1), torch.tensor([True, False, True]))


def test_a_report_before_the_first_call(net: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="this attack has not been called yet"):
        _ = PGD(net).report


# --- mistakes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"eps": 8}, "eps is 8, expected pixel units.*write 8/255 if you meant that"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"step_size": -0.1}, "step_size is -0.1, expected a length >= 0"),
        ({"steps": 0}, "steps is 0"),
        ({"norm": "linfty"}, "norm is 'linfty', expected one of linf, l2, l1"),
        ({"step": "topq"}, "'topq' is the l1 rule"),
        ({"q": 0.0, "norm": "l1"}, "q is 0.0"),
        ({"bounds": (1.0, 0.0)}, r"bounds are \(1.0, 0.0\)"),
        ({"random_start": "sphere"}, "random_start is 'sphere', expected True, False, 'ball' or 'pixel'"),
        ({"restarts": 0}, "restarts is 0"),
        ({"restarts": 2, "random_start": False}, "restarts is 2 without a random start"),
        ({"loss": "nll"}, "unknown loss 'nll'"),
        ({"batch_norm": "train"}, "batch_norm is 'train', expected 'eval' or 'batch'"),
        ({"engine": "jit"}, "engine is 'jit', expected one of auto, eager, compile, graph"),
    ],
)
def test_a_wrong_setting_is_refused_at_construction(
    net: nn.Module, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(net, **setting)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x, y: (x.bfloat16(), y),
            TypeError,
            "x is torch.bfloat16.*half-precision images leave the ball.*autocast",
        ),
        (lambda x, y: (x.half(), y), TypeError, "x is torch.float16"),
        (
            lambda x, y: ((x * 255).byte(), y),
            TypeError,
            r"x is torch.uint8, expected float32 or float64 pixels in \[0.0, 1.0\]",
        ),
        (lambda x, y: (x.numpy(), y), TypeError, "x is ndarray, expected a tensor"),
        (lambda x, y: (x[:, 0, 0, 0], y), ValueError, r"x has shape \(8,\)"),
        (lambda x, y: (x * 255, y), ValueError, "x has values from .*divide bytes by 255"),
        (lambda x, y: ((x - 0.5) / 0.25, y), ValueError, "normalise inside the model"),
        (
            lambda x, y: (x, y + 1),
            ValueError,
            "y has labels from 1 to 5, expected 0 to 4: the model returned 5 logits",
        ),
        (lambda x, y: (x, y.float()), TypeError, "y is torch.float32"),
        (lambda x, y: (x, y[:3]), ValueError, r"y has shape \(3,\)"),
    ],
)
def test_a_wrong_input_is_refused_and_modes_come_back(
    net: nn.Module, batch: Batch, change: Callable[..., Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        PGD(net)(*change(*batch))
    assert "\n" not in str(caught.value)
    assert all(part.training for part in net.modules())


def test_eps_of_one_call_is_checked_too(net: nn.Module, batch: Batch) -> None:
    with pytest.raises(ValueError, match="eps is 8, expected pixel units"):
        PGD(net)(*batch, eps=8)


def test_eps_eight_is_fine_for_bytes(net: nn.Module, batch: Batch) -> None:
    x = (batch[0] * 255).round()
    x_adv = PGD(net, eps=8.0, step_size=2.0, bounds=(0.0, 255.0))(x, batch[1])
    assert distance(x_adv, x, "linf").amax() == 8


def test_inference_tensors_are_refused(net: nn.Module, batch: Batch) -> None:
    with torch.inference_mode():
        x = batch[0].clone()
        with pytest.raises(ValueError, match=r"outside torch\.inference_mode"):
            PGD(net)(*batch)
    with pytest.raises(ValueError, match=r"outside torch\.inference_mode"):
        PGD(net)(x, batch[1])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (torch.rand(7, 3, 8, 8), r"start is torch.float32 \(7, 3, 8, 8\)"),
        (torch.rand(8, 3, 8, 8).double(), "start is torch.float64"),
    ],
)
def test_a_wrong_start(net: nn.Module, batch: Batch, start: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(net)(*batch, start=start)


def test_a_start_with_restarts(net: nn.Module, batch: Batch) -> None:
    with pytest.raises(ValueError, match="restarts is 2"):
        PGD(net, restarts=2)(*batch, start=batch[0])


def test_the_graph_engine_needs_cuda(net: nn.Module, batch: Batch) -> None:
    with pytest.raises(
        ValueError, match="engine 'graph' needs images on a CUDA device, x is on cpu; use engine 'auto'"
    ):
        PGD(net, engine="graph")(*batch)


# --- the other forms


def test_the_function_equals_the_object(net: nn.Module, batch: Batch) -> None:
    settings = {"eps": 0.05, "norm": "l2", "seed": 3, "restarts": 2}
    assert torch.equal(pgd(net, *batch, epoch=2, **settings), PGD(net, **settings)(*batch, epoch=2))


def test_the_function_captures_no_graph_that_it_would_throw_away(
    net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = []
    monkeypatch.setattr(PGD, "_uses_graph", lambda self, x, graph: bool(engines.append(self.engine)))
    pgd(net, *batch)
    pgd(net, *batch, engine="compile")
    assert engines == ["eager", "compile"]


def test_an_attack_prints_its_settings(net: nn.Module) -> None:
    assert "eps=0.1" in repr(PGD(net, eps=0.1))
    assert "norm='l2'" in repr(PGD(net, norm="l2"))


def test_a_step_is_a_quarter_of_eps_unless_given(net: nn.Module, batch: Batch) -> None:
    assert torch.equal(PGD(net, 8 / 255)(*batch), PGD(net, 8 / 255, 2 / 255)(*batch))
    for norm, eps in EPS.items():
        assert torch.equal(PGD(net, eps, norm=norm)(*batch), PGD(net, eps, eps / 4, norm=norm)(*batch))
    attack = PGD(net, 0.3)
    assert torch.equal(attack(*batch, eps=0.1), PGD(net, 0.1)(*batch))
    with pytest.raises(ValueError, match=r"step_size is 0.1 and relative_step 0.2: expected one of them"):
        PGD(net, step_size=0.1, relative_step=0.2)
