"""Traps that attack libraries fell into, each by the adapters of all of them at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import ATTACKS, PGD
from robustfast.attacks.apgd_schedule import windows
from robustfast.attacks.compat import (
    advertorch,
    autoattack,
    cleverhans,
    fast_adversarial,
    foolbox,
    robust_overfitting,
    torchattacks,
    trades,
)

Batch = tuple[Tensor, Tensor]
Adapter = Callable[[Any, Tensor, Tensor], Tensor]

LINF, L2, STEPS = 8 / 255, 0.5, 4


def fb(name: str, epsilon: float, **settings: Any) -> Adapter:
    def run(model: Any, x: Tensor, y: Tensor) -> Tensor:
        module = model if isinstance(model, nn.Module) else Wrapped(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PyTorch model is in training mode")
            fmodel = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
        return getattr(foolbox.attacks, name)(**settings).run(fmodel, x, y, epsilon=epsilon)

    return run


class Wrapped(nn.Module):
    """A callable as the module that Foolbox asks for."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def ta(name: str, **settings: Any) -> Adapter:
    return lambda model, x, y: getattr(torchattacks, name)(model, **settings)(x, y)


def at(name: str, **settings: Any) -> Adapter:
    return lambda model, x, y: getattr(advertorch, name)(model, **settings).perturb(x, y)


def ch(norm: float, eps: float, **settings: Any) -> Adapter:
    return lambda model, x, y: cleverhans.projected_gradient_descent(
        model, x, eps, eps / 2, STEPS, norm, 0.0, 1.0, y=y, **settings
    )


def ro(norm: str, eps: float) -> Adapter:
    return lambda model, x, y: (
        x + robust_overfitting.attack_pgd(model, x, y, eps, eps / 2, STEPS, 1, norm, early_stop=True)
    )


def fast(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return x + fast_adversarial.attack_pgd(
        model, x, y, LINF, LINF / 2, STEPS, 1, lower_limit=0.0, upper_limit=1.0
    )


def aa(norm: str, eps: float) -> Adapter:
    return lambda model, x, y: autoattack.APGDAttack(model, n_iter=STEPS, norm=norm, eps=eps).perturb(x, y)


PGD_LINF: dict[str, Adapter] = {
    "torchattacks": ta("PGD", steps=STEPS),
    "foolbox": fb("LinfPGD", LINF, steps=STEPS),
    "advertorch": at("LinfPGDAttack", eps=LINF, eps_iter=LINF / 2, nb_iter=STEPS),
    "cleverhans": ch(np.inf, LINF),
    "robust_overfitting": ro("l_inf", LINF),
    "fast_adversarial": fast,
}
PGD_L2: dict[str, Adapter] = {
    "torchattacks-l2": ta("PGDL2", eps=L2, alpha=L2 / 2, steps=STEPS),
    "foolbox-l2": fb("L2PGD", L2, steps=STEPS),
    "advertorch-l2": at("L2PGDAttack", eps=L2, eps_iter=L2 / 2, nb_iter=STEPS),
    "cleverhans-l2": ch(2, L2),
    "robust_overfitting-l2": ro("l_2", L2),
}
MOMENTUM: dict[str, Adapter] = {
    "torchattacks-mim": ta("MIFGSM", steps=STEPS),
    "foolbox-mim": fb("MIFGSM", LINF, steps=STEPS),
    "advertorch-mim": at("MomentumIterativeAttack", eps=LINF, eps_iter=LINF / 2, nb_iter=STEPS),
}
APGD: dict[str, Adapter] = {"autoattack": aa("Linf", LINF), "torchattacks-apgd": ta("APGD", steps=STEPS)}
APGD_L2: dict[str, Adapter] = {"autoattack-l2": aa("L2", L2)}
IN_LINF = {**PGD_LINF, **MOMENTUM, **APGD}
IN_L2 = {**PGD_L2, **APGD_L2}
ALL = {**IN_LINF, **IN_L2}


def adapters(table: dict[str, Adapter]) -> Any:
    return pytest.mark.parametrize("run", list(table.values()), ids=list(table))


def moved(run: Adapter, x: Tensor, x_adv: Tensor) -> Tensor:
    """Lengths [B] in the adapter's norm, in float64."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if run in IN_LINF.values() else delta.norm(dim=1)


class Dead(nn.Module):
    """No pixel of any image reaches the outputs, but a gradient exists: it is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(x.flatten(1) - 2).to(self.layer.weight.dtype))


@adapters({**PGD_L2, **MOMENTUM})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_zero_gradient_makes_no_nan(batch: Batch, run: Adapter, dtype: torch.dtype) -> None:
    """1e-10 and 1e-12 are 0 in float16: peers' l2 attacks return nan there, and momentum is nan for good."""
    x, y = batch
    x_adv = run(Dead().to(dtype), x, y)
    assert x_adv.isfinite().all()
    assert (moved(run, x, x_adv) <= max(LINF, L2) + 1e-5).all()
    if run in MOMENTUM.values():
        assert torch.equal(x_adv, x)


@adapters(ALL)
def test_a_nan_gradient_stays_with_its_sample(make_net: Any, batch: Batch, run: Adapter) -> None:
    net, (x, y) = make_net().eval(), batch

    def model(images: Tensor) -> Tensor:
        broken = torch.ones(len(images), 1)
        broken[:1] = float("nan")
        return net(images) * broken

    torch.manual_seed(0)
    x_adv = run(model, x, y)
    assert x_adv.isfinite().all()
    assert (x_adv[1:] != x[1:]).any()


@adapters({**PGD_LINF, **MOMENTUM})
def test_pixels_without_a_gradient_do_not_move(make_net: Any, batch: Batch, run: Adapter) -> None:
    """sign(0) is 0: ``g > 0 ? a : -a`` would move dead pixels."""
    net, (x, y) = make_net().eval(), batch
    mask = torch.zeros_like(x[:1])
    mask[..., :4] = 1
    torch.manual_seed(0)
    starts = run(lambda images: net(images * 0), x, y)
    torch.manual_seed(0)
    x_adv = run(lambda images: net(images * mask), x, y)
    assert torch.equal(x_adv[..., 4:], starts[..., 4:])
    assert not torch.equal(x_adv[..., :4], starts[..., :4])


@pytest.mark.parametrize(
    ("name", "clips_first"),
    [("torchattacks", False), ("foolbox", False), ("cleverhans", True), ("advertorch", True), ("pgd", False)],
)
def test_the_order_of_clip_and_projection_is_the_librarys(
    make_net: Any, batch: Batch, name: str, clips_first: bool
) -> None:
    net, (x, y) = make_net().eval(), batch
    eps, length = 0.8, 0.5
    run = {
        "torchattacks": ta("PGDL2", eps=eps, alpha=length, steps=3, random_start=False),
        "foolbox": fb("L2PGD", eps, abs_stepsize=length, steps=3, random_start=False),
        "cleverhans": lambda m, x, y: cleverhans.projected_gradient_descent(
            m, x, eps, length, 3, 2, 0, 1, y=y, rand_init=False
        ),
        "advertorch": at("L2PGDAttack", eps=eps, eps_iter=length, nb_iter=3, rand_init=False),
        "pgd": lambda m, x, y: PGD(m, eps, length, 3, "l2", random_start=False)(x, y),
    }[name]

    def project(z: Tensor) -> Tensor:
        return x + (z - x).renorm(p=2, dim=0, maxnorm=eps)

    expected = {}
    for first in (False, True):
        z = x
        for _ in range(3):
            leaf = z.clone().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
            z = z + length * grad / grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            z = project(z.clamp(0, 1)) if first else project(z).clamp(0, 1)
        expected[first] = z
    found = run(net, x, y)
    assert torch.allclose(found, expected[clips_first], rtol=0, atol=2e-6)
    assert not torch.allclose(found, expected[not clips_first], rtol=0, atol=1e-4)


@adapters({**ALL, "fgsm": lambda m, x, y: cleverhans.fast_gradient_method(m, x, LINF, np.inf, 0, 1, y=y)})
def test_images_outside_the_box_are_refused(make_net: Any, batch: Batch, run: Adapter) -> None:
    """Peers silently return points up to 3 away at a radius of 0.03."""
    with pytest.raises((ValueError, AssertionError)):
        run(make_net().eval(), (batch[0] - 0.5) / 0.25, batch[1])


@adapters(ALL)
def test_results_lie_in_ball_and_box(make_net: Any, batch: Batch, run: Adapter) -> None:
    """In float32 a ball is overshot by roundings alone: 1e-6, and nothing in the box."""
    x_adv = run(make_net().eval(), *batch)
    eps = LINF if run in IN_LINF.values() else L2
    assert (moved(run, batch[0], x_adv) <= eps + 1e-6).all()
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


@adapters(ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_refused(
    make_net: Any, batch: Batch, run: Adapter, dtype: torch.dtype
) -> None:
    """A bfloat16 image leaves the ball by 6 %. AutoAttack casts to float32, and so does its adapter."""
    if run in (APGD["autoattack"], APGD_L2["autoattack-l2"]):
        assert run(make_net().eval(), batch[0].to(dtype), batch[1]).dtype == torch.float32
        return
    with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
        run(make_net().to(dtype).eval(), batch[0].to(dtype), batch[1])
    assert "float32" in str(raised.value)


def test_float16_gradients_do_not_underflow() -> None:
    """A mean over 256 samples of a confident model loses gradients in float16; a sum, scaled, does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 32, generator=generator)
    weight = torch.randn(4, 32, generator=generator)
    y = (x @ weight.T).argmax(1)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 4, bias=False).half()
            self.layer.weight.data.copy_(weight * 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.half())

    net = Half().eval()
    leaf = x.half().requires_grad_()
    logits = net.layer(leaf)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits.float(), y).half(), leaf)
    lost = int((grad.abs().amax(1) == 0).sum())
    attack = PGD(net, 0.01, 0.005, 1, random_start=False)
    attack(x, y)
    assert lost > 2 * attack.report.zero_gradient
    adapter = torchattacks.FGSM(net, eps=0.01)
    assert int(((adapter(x, y) - x).abs().amax(1) == 0).sum()) < lost


@pytest.mark.parametrize("eps", [8, 8.0])
def test_a_radius_in_levels_of_grey_is_refused(make_net: Any, batch: Batch, eps: float) -> None:
    net = make_net().eval()
    for run in (
        ta("PGD", eps=eps),
        ta("FGSM", eps=eps),
        fb("LinfPGD", eps),
        at("LinfPGDAttack", eps=float(eps)),
        aa("Linf", eps),
        lambda m, x, y: cleverhans.fast_gradient_method(m, x, eps, np.inf, 0, 1, y=y),
    ):
        with pytest.raises(ValueError, match="eps"):
            run(net, *batch)


@adapters(ALL)
@pytest.mark.parametrize("training", [False, True])
def test_modes_statistics_and_gradients_are_left_alone(
    make_net: Any, batch: Batch, run: Adapter, training: bool
) -> None:
    net = make_net().train(training)
    net[0].train(not training)  # one part in another mode, by its owner
    modes = [part.training for part in net.modules()]
    state = copy.deepcopy(net.state_dict())
    run(net, *batch)
    assert [part.training for part in net.modules()] == modes
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net[1].track_running_stats


def test_clean_and_attacked_batches_do_not_share_statistics(make_net: Any, batch: Batch) -> None:
    """TRADES runs x, x_adv and x again, each normalised by its own batch: three updates."""
    net = make_net()
    before = int(net[1].num_batches_tracked)
    trades.trades_loss(net, *batch, torch.optim.SGD(net.parameters(), 0.1), perturb_steps=2)
    assert int(net[1].num_batches_tracked) == before + 3


@pytest.mark.parametrize("name", ["MIFGSM", "PGD", "PGDL2", "BIM", "FGSM", "EOTPGD", "RFGSM", "FFGSM"])
def test_targeted_attacks_climb_towards_the_target(make_net: Any, batch: Batch, name: str) -> None:
    net, (x, y) = make_net().eval(), batch
    attack = getattr(torchattacks, name)(net)
    attack.set_mode_targeted_by_label(quiet=True)
    torch.manual_seed(0)
    towards = attack(x, y)
    attack.set_mode_default()
    away = attack(x, y)
    losses = [F.cross_entropy(net(images), y) for images in (towards, x, away)]
    assert losses[0] < losses[1] < losses[2]


def test_targeted_apgd_and_momentum_climb_towards_the_target(make_net: Any, batch: Batch) -> None:
    net, (x, y) = make_net().eval(), batch
    goal = foolbox.TargetedMisclassification(y)
    fmodel = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    for towards in (
        foolbox.attacks.MIFGSM().run(fmodel, x, goal, epsilon=LINF),
        foolbox.attacks.L2AdamPGD().run(fmodel, x, goal, epsilon=L2),
        advertorch.MomentumIterativeAttack(net, eps=LINF, targeted=True).perturb(x, y),
        ATTACKS["apgd-ce"](net, eps=LINF, steps=5, targeted=True, returns="max_loss")(x, y),
    ):
        assert F.cross_entropy(net(towards), y) < F.cross_entropy(net(x), y)


def test_restarts_keep_the_strongest(make_net: Any) -> None:
    """One peer's last restart overwrites all others: 23 of 40 images that were found got lost."""
    net = make_net().eval()
    x = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    y = net(x).argmax(1)
    settings = {"eps": 0.05, "step_size": 0.02, "steps": 2, "seed": 3}

    def fooled(images: Tensor) -> Tensor:
        return net(images).argmax(1) != y

    one, several = (fooled(PGD(net, restarts=times, **settings)(x, y)) for times in (1, 8))
    assert (several >= one).all()
    assert several.sum() > one.sum()
    fmodel = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=2, rel_stepsize=0.4)
    torch.manual_seed(0)
    once = attack(fmodel, x, y, epsilons=0.05)[2]
    torch.manual_seed(0)
    repeated = attack.repeat(4)(fmodel, x, y, epsilons=0.05)[2]
    assert (repeated >= once).all()
    weak = torchattacks.PGD(net, eps=0.05, alpha=0.02, steps=2)
    torch.manual_seed(0)
    first = fooled(weak(x, y))
    torch.manual_seed(0)
    assert (fooled(torchattacks.MultiAttack([weak] * 4)(x, y)) >= first).all()
    runs = [
        fooled(autoattack.APGDAttack(net, n_iter=3, eps=0.05, n_restarts=times).perturb(x, y))
        for times in (1, 4)
    ]
    assert (runs[1] >= runs[0]).all()


@pytest.mark.parametrize("steps", [10, 20, 40, 50, 100])
def test_apgd_checks_when_the_authors_code_does(steps: int) -> None:
    """Floors of 0.22, 0.03 and 0.06 of the steps, at least one; the paper rounds up, which differs but for 100."""
    window, smaller, smallest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    checks, since = [], 0
    for step in range(steps):
        since += 1
        if since == window:
            checks.append(step + 1)
            since, window = 0, max(window - smaller, smallest)
    found = [step + 1 for step, length in enumerate(windows(steps, "linf")) if length]
    assert found == checks
    if steps == 100:
        assert found[:8] == [22, 41, 57, 70, 80, 87, 93, 99]


def test_no_adapter_seeds_the_global_generator(make_net: Any, batch: Batch) -> None:
    net = make_net().eval()
    state = torch.get_rng_state()
    for run in (
        aa("Linf", LINF),
        ta("APGD", steps=3),
        ta("Square", n_queries=5),
        ta("PGD", random_start=False),
        ta("MIFGSM"),
        fb("FGSM", LINF),
    ):
        run(net, *batch)
        assert torch.equal(torch.get_rng_state(), state), (
            "nothing is drawn where a seed is given, or none needed"
        )
    ta("PGD")(net, *batch)
    once = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randint(2**62, ())
    assert torch.equal(torch.get_rng_state(), once), "one number for the draws of one call"


@adapters(ALL)
def test_channels_last_images_keep_layout_and_result(make_net: Any, batch: Batch, run: Adapter) -> None:
    net, (x, y) = make_net(torch.float64).eval(), (batch[0].double(), batch[1])
    torch.manual_seed(0)
    expected = run(net, x, y)
    torch.manual_seed(0)
    found = run(net, x.to(memory_format=torch.channels_last), y)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert found.is_contiguous(memory_format=torch.channels_last)


@adapters(ALL)
def test_no_grad_is_no_obstacle_and_inference_mode_is_named(
    make_net: Any, batch: Batch, run: Adapter
) -> None:
    net = make_net().eval()
    torch.manual_seed(0)
    expected = run(net, *batch)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(run(net, *batch), expected)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        run(net, *batch)


@adapters(ALL)
@pytest.mark.parametrize("shape", [(12,), (2, 3, 4, 2)])
def test_any_number_of_dimensions(run: Adapter, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, *shape, generator=generator)
    weight = torch.randn(5, x[0].numel(), generator=generator)
    y = (x.flatten(1) @ weight.T).argmax(1)
    x_adv = run(lambda images: images.flatten(1) @ weight.T, x, y)
    assert x_adv.shape == x.shape
    assert (x_adv != x).any()


@pytest.mark.parametrize("name", ["torchattacks", "foolbox", "advertorch", "cleverhans"])
def test_carlini_and_wagner_moves_pixels_at_the_walls(make_net: Any, batch: Batch, name: str) -> None:
    """atanh(1) is infinite: torchattacks leaves binary images exactly as they are."""
    net = make_net().eval()
    x = (batch[0] > 0.5).float()
    y = net(x).argmax(1)
    by_foolbox = foolbox.attacks.L2CarliniWagnerAttack(2, 40, 0.3, 0, 100.0, False)
    x_adv = {
        "torchattacks": ta("CW", c=100, steps=40, lr=0.3),
        "foolbox": lambda m, x, y: by_foolbox.run(foolbox.PyTorchModel(m, (0, 1), device="cpu"), x, y),
        "advertorch": at(
            "CarliniWagnerL2Attack", num_classes=5, binary_search_steps=2, max_iterations=40, learning_rate=0.3,
            initial_const=100.0, abort_early=False,
        ),
        "cleverhans": lambda m, x, y: cleverhans.carlini_wagner_l2(
            m, x, 5, y, lr=0.3, initial_const=100.0, binary_search_steps=2, max_iterations=40
        ),
    }[name](net, x, y)  # fmt: skip
    assert (net(x_adv).argmax(1) != y).sum() >= 6


def test_no_name_stands_for_another_attack(make_net: Any, batch: Batch) -> None:
    """Foolbox's l1 and l2 Adam classes run without Adam, its momentum sums signs: here names mean what they say."""
    net, (x, y) = make_net().eval(), batch
    for name in ("L1AdamBasicIterativeAttack", "L2AdamBasicIterativeAttack"):
        with pytest.raises(AttributeError):
            getattr(foolbox.attacks, name)
    pairs = [
        (fb("L2AdamPGD", L2, random_start=False), fb("L2PGD", L2, random_start=False)),
        (fb("LinfAdamPGD", LINF, random_start=False), fb("LinfPGD", LINF, random_start=False, steps=50)),
        (fb("MIFGSM", LINF), fb("LinfBasicIterativeAttack", LINF)),
        (fb("MIFGSM", LINF, rel_stepsize=0.3), ta("MIFGSM", alpha=0.3 * LINF)),
    ]
    for one, other in pairs:
        assert not torch.equal(one(net, x, y), other(net, x, y))
    for library in (torchattacks.PGD, torchattacks.PGDL2, foolbox.attacks.LinfPGD, advertorch.PGDAttack):
        stated = "".join(kind.__doc__ or "" for kind in library.__mro__[:-1])
        assert "start" in stated, f"{library.__name__} says where it starts"


EVERY_OPTION: dict[str, Adapter] = {
    "ta-pgd": ta("PGD", eps=0.05, alpha=0.01, steps=2, random_start=False),
    "ta-pgdl2": ta("PGDL2", eps=0.5, alpha=0.1, steps=2, random_start=False, eps_for_division=1e-6),
    "ta-ffgsm": ta("FFGSM", eps=0.05, alpha=0.06),
    "ta-rfgsm": ta("RFGSM", eps=0.05, alpha=0.02, steps=2),
    "ta-bim": ta("BIM", eps=0.05, alpha=0.01, steps=0),
    "ta-mim": ta("MIFGSM", eps=0.05, alpha=0.01, steps=2, decay=0.5),
    "ta-eot": ta("EOTPGD", eps=0.05, alpha=0.01, steps=2, eot_iter=3, random_start=False),
    "ta-tpgd": ta("TPGD", eps=0.05, alpha=0.01, steps=2),
    "ta-gn": ta("GN", std=0.05),
    "ta-cw": ta("CW", c=5, kappa=1, steps=4, lr=0.05),
    "ta-deepfool": ta("DeepFool", steps=3, overshoot=0.1),
    "ta-apgd": ta("APGD", norm="L2", eps=0.5, steps=3, n_restarts=2, seed=None, loss="dlr", eot_iter=2, rho=0.5),
    "ta-apgdt": ta("APGDT", norm="L2", eps=0.5, steps=3, n_restarts=2, seed=1.5, eot_iter=2, rho=0.5, n_classes=4),
    "ta-fab": ta("FAB", norm="L1", eps=None, steps=3, n_restarts=2, alpha_max=0.2, eta=1.1, beta=0.8, seed=1),
    "ta-fab-t": ta("FAB", norm="L2", eps=0.5, steps=2, multi_targeted=True, n_classes=4),
    "ta-square": ta(
        "Square", norm="L2", eps=0.5, n_queries=5, n_restarts=2, p_init=0.5, loss="ce", resc_schedule=False
    ),
    "ta-spsa": ta("SPSA", eps=0.05, delta=0.02, lr=0.02, nb_iter=2, nb_sample=6, max_batch_size=4),
    "at-spsa": at("LinfSPSAAttack", eps=0.05, delta=0.02, lr=0.02, nb_iter=2, nb_sample=6, max_batch_size=1),
    "at-spsa-loss": at("LinfSPSAAttack", eps=0.05, nb_sample=4, targeted=True, loss_fn=nn.CrossEntropyLoss()),
    "ch-spsa": lambda m, x, y: cleverhans.spsa(
        m, x, 0.05, 2, np.inf, 0, 1, y, True, 0, 0.02, 0.02, spsa_samples=3, spsa_iters=2, is_debug=True
    ),
    "ta-autoattack": ta("AutoAttack", norm="L2", eps=0.5, version="rand", n_classes=5, seed=1, verbose=True),
    "fb-linf": fb("LinfPGD", 0.05, rel_stepsize=0.1, steps=2, random_start=True),
    "fb-l2": fb("L2PGD", 0.5, abs_stepsize=0.1, steps=2, random_start=True),
    "fb-l1": fb("L1PGD", 5.0, rel_stepsize=0.1, abs_stepsize=None, steps=2, random_start=True),
    "fb-bim": fb("L1BasicIterativeAttack", 5.0, rel_stepsize=0.1, abs_stepsize=0.5, steps=2, random_start=True),
    "fb-fgsm": fb("FGSM", 0.05, random_start=True),
    "fb-mim": fb("MIFGSM", 0.05, momentum=0.5, rel_stepsize=0.3, abs_stepsize=0.01, steps=2, random_start=True),
    "fb-adam": fb("L1AdamPGD", 5.0, steps=2, adam_beta1=0.5, adam_beta2=0.9, adam_epsilon=1e-6),
    "at-linf": at("LinfPGDAttack", loss_fn=nn.CrossEntropyLoss(), eps=0.05, nb_iter=2, eps_iter=0.02, clip_max=1.5),
    "at-pgd": at("PGDAttack", eps=2.0, nb_iter=2, eps_iter=0.5, ord=1, l1_sparsity=0.5),
    "at-sparse": at("SparseL1DescentAttack", eps=2.0, nb_iter=2, eps_iter=0.5, l1_sparsity=0.8, rand_init=True),
    "at-bim": at("L2BasicIterativeAttack", eps=0.3, nb_iter=2, eps_iter=0.2, clip_min=-0.5),
    "at-mim": at("L2MomentumIterativeAttack", eps=0.3, nb_iter=2, decay_factor=0.5, eps_iter=0.2),
    "at-mim-linf": at("LinfMomentumIterativeAttack", eps=0.3, nb_iter=2, eps_iter=0.2),
    "at-cw": at("CarliniWagnerL2Attack", num_classes=5, confidence=1, max_iterations=3, abort_early=False),
    "at-ddn": at("DDNL2Attack", nb_iter=3, gamma=0.1, init_norm=0.5, quantize=True, levels=16),
    "at-deepfool": at("DeepfoolLinfAttack", num_classes=2, nb_iter=2, eps=0.3, overshoot=0.1),
    "ch-pgd": ch(2, 0.5, rand_minmax=0.1, sanity_checks=False),
    "ch-targeted": ch(np.inf, 0.05, targeted=True, rand_init=False),
    "aa-apgd": lambda m, x, y: autoattack.APGDAttack(
        m, n_iter=3, norm="L1", n_restarts=2, eps=5.0, seed=None, loss="dlr", eot_iter=2, rho=0.5, verbose=True,
        device="cpu", use_largereps=True,
    ).perturb(x, y),
    "aa-apgd-t": lambda m, x, y: autoattack.APGDAttack_targeted(
        m, n_iter=3, norm="L2", n_restarts=2, eps=0.5, seed=2, eot_iter=2, rho=0.5, n_target_classes=2
    ).perturb(x),
    "aa-fab": lambda m, x, y: autoattack.FABAttack_PT(
        m, norm="L2", n_restarts=2, n_iter=3, eps=0.5, alpha_max=0.2, eta=1.1, beta=0.8, seed=1, targeted=False
    ).perturb(x, y),
    "aa-square": lambda m, x, y: autoattack.SquareAttack(
        m, norm="L1", n_queries=5, eps=5.0, p_init=0.5, n_restarts=2, seed=None, loss="ce", resc_schedule=False
    ).perturb(x, y),
}  # fmt: skip


@adapters(EVERY_OPTION)
def test_every_option_runs(make_net: Any, batch: Batch, run: Adapter) -> None:
    """Peers ship branches that end in a NameError: here each option is called once."""
    x_adv = run(make_net().eval(), *batch)
    assert x_adv.shape == batch[0].shape
    assert x_adv.dtype == batch[0].dtype
    assert x_adv.isfinite().all()
    assert not x_adv.requires_grad
