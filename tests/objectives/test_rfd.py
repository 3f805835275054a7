"""RFD: which loss moves what, whole steps against a plain writing of them, its attack, and what a step costs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pass_counter import PassCounter, convolutions
from torch import Tensor, nn

from robustfast.attacks import APGD, PGD, AttackConfig
from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.models import Disentangled, OneWay
from robustfast.objectives import RFD, Phase
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS

ATTACK = AttackConfig(eps=0.1, step_size=0.03, steps=2)
CPU = torch.device("cpu")


def rfd(backbone: str = "digits_cnn", attack: AttackConfig = ATTACK, seed: int = 3, **fields: Any) -> RFD:
    """A fresh one, always the same."""
    torch.manual_seed(1)
    model = Disentangled(backbone, num_classes=10, in_channels=1)
    return RFD(model, RFD.Config(**({"steps": (2,)} | fields)), attack, seed=seed)


def images(count: int = 6, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return Batch(x.to(dtype), torch.randint(10, (count,), generator=generator), torch.arange(count))


def parts(objective: RFD) -> dict[str, nn.Module]:
    model = objective.model
    return {
        "G": model.generator,
        "E_r": model.encoder_r,
        "E_nr": model.encoder_n,
        "E_ds": model.encoder_d,
        "C": model.classifier,
        "D": objective.discriminator,
        "R": objective.reconstruction,
    }


# --- routing ----------------------------------------------------------------------------------------

# Loss: what it moves (the equations' arguments).
ROUTES = {
    "kl": {"E_r", "E_nr", "E_ds"},
    "ce": {"G", "E_r", "E_nr", "C"},
    "dist": {"G", "E_r"},
    "adv": {"E_r", "E_nr"},
    "tell": {"E_ds"},
    "res": {"E_r", "E_nr", "E_ds", "R"},
}


def moved_by(objective: RFD, phase: Phase) -> set[str]:
    """The parts that get a gradient other than zero, as the engine computes it."""
    inputs = [p for name in phase.optimizers for p in objective.parameters()[name]]
    phase.loss.backward(inputs=inputs)
    found = {
        name
        for name, part in parts(objective).items()
        if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    }
    for part in parts(objective).values():
        part.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
@pytest.mark.parametrize("loss", ROUTES)
def test_each_loss_moves_what_the_equations_name(loss: str, separate: bool, statistics: str) -> None:
    weights = {name: float(name == loss) for name in ROUTES}
    objective = rfd(separate=separate, domain_statistics=statistics, **weights)
    found: dict[str, set[str]] = {}
    for phase in objective.phases(*images()[:3]):
        moved = moved_by(objective, phase)
        if phase.optimizer == "discriminator":
            assert moved == {"D"}
        else:
            found |= {" ".join(phase.terms): moved}
    if separate:
        # Of the steps of algorithm 1 the one of this loss moves something, with the cross entropies' at weight 0.
        assert [moved for moved in found.values() if moved] == [ROUTES[loss]]
    else:
        assert list(found.values()) == [ROUTES[loss]]


def test_the_game_moves_the_domain_specific_encoder_by_what_tells_and_the_others_by_what_fools() -> None:
    objective = rfd()
    phases = objective.phases(*images()[:3])
    next(phases)
    model, x = objective.model, images().x
    z, z_adv = (model.encode(value) for value in (x, x.flip(0)))
    game, _ = objective._game(z, z_adv)
    for term, moved in {"fool": {"E_r", "E_nr"}, "tell": {"E_ds"}}.items():
        leaves = [p for name in ("E_r", "E_nr", "E_ds") for p in parts(objective)[name].parameters()]
        gradients = torch.autograd.grad(game[term], leaves, retain_graph=True, allow_unused=True)
        used = {id(p) for p, g in zip(leaves, gradients, strict=True) if g is not None}
        own = {id(p) for name in moved for p in parts(objective)[name].parameters()}
        assert used == own


@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
def test_the_reversal_turns_the_gradient_of_the_non_robust_encoder_alone(separate: bool) -> None:
    gradients = {}
    batch, x_adv = images(), images().x.flip(0)
    for reversal in (0.0, 0.5):
        objective = rfd(reversal=reversal, separate=separate, dist=0.0, adv=0.0, tell=0.0, kl=0.0, res=0.0)
        objective.attack = lambda *_, **__: x_adv
        phase = next(phase for phase in objective.phases(*batch[:3]) if "ce_n_adv" in phase.terms)
        leaves = {name: list(parts(objective)[name].parameters()) for name in ("G", "E_r", "E_nr", "C")}
        gradients[reversal] = {
            name: torch.autograd.grad(phase.loss, own, retain_graph=True) for name, own in leaves.items()
        }
    # E_nr's share of z'_nr's term, from a pass of its own.
    model = objective.model
    term = F.cross_entropy(model.classifier(model.encode(x_adv, "n")["n"]), batch.y)
    ascent = torch.autograd.grad(term, leaves["E_nr"])
    off, on = gradients[0.0], gradients[0.5]
    for name in ("G", "E_r", "C"):
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(off[name], on[name], strict=True))
    for before, after, up in zip(off["E_nr"], on["E_nr"], ascent, strict=True):
        assert torch.allclose(after, before - 0.5 * up, atol=1e-6)
    assert any(bool(up.abs().max() > 1e-3) for up in ascent)


# --- whole steps ------------------------------------------------------------------------------------


class Plain:
    """The same steps as one would write them: for each loss a forward of its own, and its own parameters' gradient."""

    def __init__(self, objective: RFD, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        self.o, self.x, self.x_adv, self.y = objective, x, x_adv, y
        # What a joint step's running statistics are after its one forward of each domain.
        once = copy.deepcopy(objective.model)
        once.encode(x), once.encode(x_adv)
        self.statistics = dict(once.named_buffers())

    def features(self) -> tuple[Any, ...]:
        model = self.o.model
        found = []
        for images in (self.x, self.x_adv):
            f = model.base(images)
            maps = model.maps(f)
            found.append((f, maps, model.pooled(maps)))
        return tuple(found)

    def judged_features(self) -> tuple[dict[str, Tensor], ...]:
        """What the discriminator is given, of both domains."""
        if self.o.config.domain_statistics == "batch":
            return tuple(z for _, _, z in self.features())
        model = self.o.model
        for name, buffer in model.named_buffers():
            buffer.copy_(self.statistics[name])
        model.eval()
        found = tuple(model.encode(images) for images in (self.x, self.x_adv))
        model.train()
        return found

    def gradients(self, loss: Tensor, names: str) -> dict[nn.Parameter, Tensor]:
        leaves = [p for name in names.split() for p in parts(self.o)[name].parameters()]
        # The reconstruction takes maps: what pools them has no part in it.
        found = zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True)
        return {leaf: gradient for leaf, gradient in found if gradient is not None}

    def bce(self) -> dict[nn.Parameter, Tensor]:
        z, z_adv = self.judged_features()
        judge = self.o.discriminator
        one, zero = torch.ones(len(self.x), 1).to(self.x), torch.zeros(len(self.x), 1).to(self.x)
        loss = sum(
            F.binary_cross_entropy_with_logits(judge(z[k]), one)
            + F.binary_cross_entropy_with_logits(judge(z_adv[k]), zero)
            for k in "rnd"
        )
        return self.gradients(loss / 3, "D")

    def ce(self) -> list[dict[nn.Parameter, Tensor]]:
        classify, config = self.o.model.classifier, self.o.config
        (_, _, z), (_, _, z_adv) = self.features()
        three = sum(F.cross_entropy(classify(value), self.y) for value in (z["r"], z["n"], z_adv["r"]))
        found = [self.gradients(config.ce * three, "G E_r E_nr C")]

        def last() -> Tensor:
            (_, _, _), (_, _, z_adv) = self.features()
            each = F.cross_entropy(classify(z_adv["n"]), self.y, reduction="none")
            bound = 2 * torch.log(torch.tensor(10.0, dtype=each.dtype))
            return config.ce * torch.minimum(each, bound).mean()

        found.append(self.gradients(last(), "C"))
        found.append(self.gradients(-config.reversal * last(), "E_nr"))
        return found

    def dist(self) -> list[dict[nn.Parameter, Tensor]]:
        (_, _, z), (_, _, z_adv) = self.features()
        cosine = (z["r"] * z_adv["r"]).sum(1) / (z["r"].norm(dim=1) * z_adv["r"].norm(dim=1))
        return [self.gradients(self.o.config.dist * (1 - cosine.abs()).mean(), "G E_r")]

    def kl(self) -> list[dict[nn.Parameter, Tensor]]:
        (_, _, z), (_, _, z_adv) = self.features()
        terms = []
        for part in (z, z_adv):
            p = {k: F.softmax(part[k], 1) for k in "rnd"}
            for a, b in ("rn", "rd", "nd"):
                s = (p[a] * (p[a] / p[b]).log() + p[b] * (p[b] / p[a]).log()).sum(1)
                terms.append(torch.exp(-s).mean())
        return [self.gradients(self.o.config.kl * sum(terms) / 6, "E_r E_nr E_ds")]

    def adv(self) -> list[dict[nn.Parameter, Tensor]]:
        z, z_adv = self.judged_features()
        judge = self.o.discriminator
        fool = sum(F.softplus(judge(z[k])).mean() + F.softplus(-judge(z_adv[k])).mean() for k in "rn")
        tell = F.softplus(-judge(z["d"])).mean() + F.softplus(judge(z_adv["d"])).mean()
        loss = self.o.config.adv * fool / 2 + self.o.config.tell * tell
        return [self.gradients(loss, "E_r E_nr E_ds")]

    def res(self) -> list[dict[nn.Parameter, Tensor]]:
        total = 0.0
        for f, maps, _ in self.features():
            rebuilt = self.o.reconstruction(torch.cat([maps[k] for k in "rnd"], 1))
            total = total + (rebuilt - f.detach()).abs().mean() / 2
        return [self.gradients(self.o.config.res * total, "E_r E_nr E_ds R")]


def plain_step(objective: RFD, x: Tensor, x_adv: Tensor, y: Tensor, lr: float, decay: float) -> None:
    """One batch of `objective`, by hand."""
    plain, config = Plain(objective, x, x_adv, y), objective.config
    rates = {"D": config.discriminator_lr, "E_nr": config.others_lr, "E_ds": config.others_lr,
             "R": config.others_lr}  # fmt: skip
    momenta: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def move(*gradients: dict[nn.Parameter, Tensor]) -> None:
        for name, part in parts(objective).items():
            for p in part.parameters():
                found = [g[p] for g in gradients if p in g]
                if found:
                    step = sum(found) + decay * p
                    momenta[p] = 0.9 * momenta[p] + step if p in momenta else step
                    p -= lr * rates.get(name, 1.0) * momenta[p]

    if config.separate:
        move(*plain.kl())
        move(*plain.ce())
        move(*plain.dist())
        move(plain.bce())
        move(*plain.adv())
        move(*plain.res())
    else:
        move(plain.bce())
        move(*plain.ce(), *plain.dist(), *plain.kl(), *plain.adv(), *plain.res())


@pytest.mark.parametrize(
    ("separate", "statistics"),
    [(False, "batch"), (False, "running"), (True, "batch")],
    ids=["joint", "running", "separate"],
)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_step_is_that_of_a_plain_writing(
    dtype: torch.dtype, close: float, separate: bool, statistics: str
) -> None:
    objective = rfd(separate=separate, domain_statistics=statistics, reversal=0.3, tell=0.7)
    batch = images(8, dtype)
    for part in parts(objective).values():
        part.to(dtype)
    by_hand = copy.deepcopy(objective)
    config = replace(PRESETS["digits-rfd"], optimizer="sgd", weight_decay=5e-4)
    made: list[Tensor] = []
    make = objective.attack

    def spy(*args: Any, **keywords: Any) -> Tensor:
        made.append(make(*args, **keywords))
        return made[-1]

    objective.attack = spy
    objective.begin(0, 0.25)
    Engine(objective, config, CPU).step(batch, lr=0.05)
    plain_step(by_hand, batch.x, made[0], batch.y, 0.05, config.weight_decay)
    moved = 0.0
    for name, part in parts(objective).items():
        start = parts(rfd(separate=separate))[name]
        for mine, theirs, old in zip(
            part.parameters(), parts(by_hand)[name].parameters(), start.parameters(), strict=True
        ):
            assert torch.allclose(mine, theirs, rtol=close, atol=close), name
            moved = max(moved, float((mine - old).detach().abs().max()))
    assert moved > 1e-3


# --- batch norms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
def test_no_part_sees_clean_and_attacked_images_together(separate: bool) -> None:
    objective, batch = rfd(separate=separate), images()
    seen: dict[str, list[str]] = {name: [] for name in parts(objective)}
    made: list[Tensor] = []
    make = objective.attack

    def spy(*args: Any, **keywords: Any) -> Tensor:
        made.append(make(*args, **keywords))
        return made[-1]

    objective.attack = spy
    model = objective.model

    def note(name: str, value: Tensor) -> None:
        if not model.training or not made:
            return
        if name == "G":
            kind = "clean" if torch.equal(value, batch.x) else "adv" if torch.equal(value, made[0]) else "?"
        else:
            assert len(value) == len(batch.y)
            kind = next((k for k, f in extracted.items() if torch.equal(f, value)), "?")
        seen[name].append(kind)

    extracted: dict[str, Tensor] = {}
    model.generator.register_forward_pre_hook(lambda _, args: note("G", args[0]))
    model.generator.register_forward_hook(
        lambda _, args, out: (
            extracted.update({"clean" if torch.equal(args[0], batch.x) else "adv": out.detach().clone()})
            if model.training
            else None
        )
    )
    for name in ("E_r", "E_nr", "E_ds"):
        parts(objective)[name].register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
    list(objective.phases(*batch[:3]))
    if separate:
        assert seen["G"] == ["clean", "adv"] * 3
        assert seen["E_ds"] == ["clean", "adv"] * 3
        assert {kind for kinds in seen.values() for kind in kinds} == {"clean", "adv"}
    else:
        assert all(seen[name] == ["clean", "adv"] for name in ("G", "E_r", "E_nr", "E_ds"))


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_one_joint_step_moves_the_running_statistics_once_by_each_batch(statistics: str) -> None:
    objective, batch = rfd(domain_statistics=statistics), images()
    twin = copy.deepcopy(objective.model)
    x_adv = objective.attack(batch.x, batch.y, batch.index, **objective.now())
    list(objective.phases(*batch[:3]))
    twin.encode(batch.x)
    twin.encode(x_adv)
    for (name, mine), theirs in zip(objective.model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
def test_by_running_statistics_the_discriminator_learns_on_what_it_judges_in_evaluation(
    separate: bool,
) -> None:
    objective, batch = rfd(separate=separate, domain_statistics="running"), images()
    seen: list[Tensor] = []
    objective.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for phase in objective.phases(*batch[:3]):
        if phase.optimizer == "discriminator":
            break
    assert objective.model.training
    objective.model.eval()
    clean = objective.model.encode(batch.x)
    assert len(seen) == 6
    for mine, name in zip(seen[:3], "rnd", strict=True):
        assert torch.equal(mine, clean[name]), name


# --- the attack -----------------------------------------------------------------------------------------


def test_the_attack_is_drawn_anew_for_each_batch_within_its_ranges() -> None:
    objective = rfd(attack=AttackConfig(), steps=(8, 16, 24, 32))
    drawn = []
    for epoch in range(3):
        for step in range(40):
            objective.begin(epoch, (epoch * 40 + step) / 120)
            now = objective.now()
            assert now == objective.now()  # a function of the moment
            drawn.append((now["eps"] * 255, now["step_size"] * 255, now["steps"]))
            assert now["epoch"] == epoch
    eps, step_size, steps = zip(*drawn, strict=True)
    assert 8 <= min(eps) < 8.3 < 11.7 < max(eps) <= 12
    assert 2 <= min(step_size) < 2.2 < 3.8 < max(step_size) <= 4
    assert set(steps) == {8, 16, 24, 32}
    assert len(set(eps)) == len(eps)
    other = rfd(attack=AttackConfig(), steps=(8, 16, 24, 32), seed=4)
    other.begin(2, objective.progress)
    assert other.now() != objective.now()


def test_the_attack_takes_what_was_drawn_and_grows() -> None:
    objective = rfd(attack=AttackConfig(eps=0.1, step_size=0.03, steps=2, ramp=0.5), steps=(1, 3))
    batch = images()
    for progress in (0.1, 0.3, 0.7, 0.9):
        objective.begin(1, progress)
        now = objective.now()
        x_adv = objective.attack(batch.x, batch.y, batch.index, **now)
        plain = PGD(objective.model.way("r"), now["eps"], now["step_size"], now["steps"], seed=3)
        assert torch.equal(x_adv, plain(batch.x, batch.y, batch.index, epoch=1))
        assert now["eps"] <= 0.15 * min(1.0, progress / 0.5)
    assert objective.model.training


@pytest.mark.parametrize(("loss", "kind"), [("ce", PGD), ("margin", PGD), ("dlr", APGD)])
def test_attack_losses(loss: str, kind: type) -> None:
    objective, batch = rfd(attack_loss=loss), images()
    x_adv = objective.attack(batch.x, batch.y, batch.index, **objective.now())
    (attack,) = objective.attack._attacks.values()
    assert isinstance(attack, kind)
    assert attack.loss == loss
    assert (x_adv - batch.x).abs().max() <= 0.15 + 1e-6
    # No image comes back clean, where APGD does not fool it either.
    assert bool((x_adv != batch.x).flatten(1).any(1).all())


# --- passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
# In digits_cnn an encoder's first convolution reads f itself, in a wide ResNet a batch norm does.
@pytest.mark.parametrize(("backbone", "reads_f"), [("digits_cnn", 1), ("wide_resnet10_1", 0)])
def test_a_training_step_costs_what_the_mathematics_needs(
    backbone: str, reads_f: int, separate: bool, running: bool
) -> None:
    statistics = "running" if running else "batch"
    objective = rfd(backbone, steps=(10,), separate=separate, domain_statistics=statistics)
    model = objective.model
    g, e = convolutions(model.generator), convolutions(model.encoder_r)
    r = convolutions(objective.reconstruction) + 1  # and one transposed
    inside = PassCounter()
    make = objective.attack

    def counted(*args: Any, **keywords: Any) -> Tensor:
        with inside:
            return make(*args, **keywords)

    objective.attack = counted
    with PassCounter() as step:
        for phase in objective.phases(*images(4)[:3]):
            inputs = [p for name in phase.optimizers for p in objective.parameters()[name]]
            phase.loss.backward(inputs=inputs)

    attack = 10 * (g + e)
    assert inside.forward == inside.input_gradients == attack
    assert inside.weight_gradients == 0
    if separate:
        # Of G's six forward passes two are for steps that leave it alone; E_r and E_nr send gradients on in
        # steps d and e: three and two passes.
        forward, weights = 6 * g + 24 * e + 2 * r, 4 * g + 24 * e + 2 * r
        inputs_ = 4 * (g - 1) + 24 * e - 19 * reads_f + 2 * r
        total = (20 + 14) * g + (20 + 72) * e + 6 * r
        spared = 4 + 19 * reads_f
    else:
        forward = weights = 2 * g + 6 * e + 2 * r
        inputs_ = 2 * (g - 1) + 6 * (e - reads_f) + 3 * e + 2 * r
        total = (20 + 6) * g + (20 + 21) * e + 6 * r
        spared = 2 + 6 * reads_f
    if running:
        # The discriminator's features: separately in place of others, jointly beside them, without G's gradient.
        beside = 0 if separate else 6
        forward += 2 * g + beside * e
        weights += beside * e
        inputs_ += beside * (e - reads_f)
        spared += beside * reads_f
        total += 2 * g + 3 * beside * e
    assert step.forward == attack + forward
    assert step.weight_gradients == weights
    assert step.input_gradients == attack + inputs_
    # First convolutions need no gradient of their inputs.
    assert step.forward + step.weight_gradients + step.input_gradients + spared == total


# --- the rest -------------------------------------------------------------------------------------------


def test_both_networks_derive_from_the_seed_alone() -> None:
    def weights(seed: int, noise: int) -> list[Tensor]:
        torch.manual_seed(1)
        model = Disentangled("digits_cnn", num_classes=10, in_channels=1)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        objective = RFD(model, RFD.Config(), ATTACK, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return [p.detach() for network in objective.networks().values() for p in network.parameters()]

    one, same, other = weights(0, 1), weights(0, 2), weights(1, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_parameters_are_all_in_one_optimizer_and_the_paper_s_rates_are_a_tenth() -> None:
    objective = rfd()
    groups = objective.parameters()
    ids = [id(p) for group in groups.values() for p in group]
    everything = [p for part in parts(objective).values() for p in part.parameters()]
    assert sorted(ids) == sorted(id(p) for p in everything)
    assert {id(p) for p in groups["robust"]} == {
        id(p) for name in ("G", "E_r", "C") for p in parts(objective)[name].parameters()
    }
    assert objective.optimizers() == {"others": {"lr": 0.1}, "discriminator": {"lr": 0.1}}


@pytest.mark.parametrize("fields", [("adv", "tell"), ("kl",), ("res",), ("dist",)])
def test_what_has_no_weight_is_not_computed(fields: tuple[str, ...]) -> None:
    *_, phase = rfd(**dict.fromkeys(fields, 0.0)).phases(*images()[:3])
    gone = {"fool", "tell"} if "adv" in fields else set(fields)
    assert not gone & set(phase.terms)
    assert {"ce_r", "ce_n", "ce_r_adv", "ce_n_adv"} <= set(phase.terms)


def test_the_kl_mode_off_computes_none() -> None:
    *_, phase = rfd(kl_mode="off").phases(*images()[:3])
    assert "kl" not in phase.terms


@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
def test_bfloat16_autocast_gives_float32_losses(separate: bool) -> None:
    objective = rfd(separate=separate)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for phase in objective.phases(*images()[:3]):
            assert phase.loss.dtype == torch.float32
            inputs = [p for name in phase.optimizers for p in objective.parameters()[name]]
            with torch.autocast("cpu", enabled=False):
                phase.loss.backward(inputs=inputs)
    assert all(bool(p.grad.isfinite().all()) for p in objective.model.generator.parameters())


def test_small_networks_of_larger_images() -> None:
    torch.manual_seed(0)
    for backbone, channels, side in (("small_cnn", 1, 28), ("wide_resnet10_1", 3, 32)):
        model = Disentangled(backbone, num_classes=10, in_channels=channels)
        objective = RFD(model, RFD.Config(steps=(1,)), ATTACK, seed=0)
        x, y = torch.rand(2, channels, side, side), torch.tensor([3, 7])
        *_, phase = objective.phases(x, y, torch.arange(2))
        assert phase.loss.isfinite()


def refused() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"reversal": -1.0}, "--objective.reversal is -1.0, expected a finite number from 0"
    yield {"others_lr": float("nan")}, "--objective.others-lr is nan"
    yield {"eps_factor": 0.5}, "--objective.eps-factor is 0.5, expected a finite number from 1"
    yield {"steps": ()}, "--objective.steps"
    yield {"steps": (8, 0)}, "--objective.steps 8 0: expected one or more numbers from 1"
    yield {"kl_mode": "none"}, "--objective.kl-mode is 'none', expected one of repel, literal, off"
    yield {"fooling": "x"}, "--objective.fooling is 'x'"
    yield {"domain_statistics": "x"}, "--objective.domain-statistics is 'x', expected one of batch, running"
    yield {"attack_loss": "kl"}, "--objective.attack-loss is 'kl', expected one of ce, margin, dlr"


@pytest.mark.parametrize(("fields", "message"), list(refused()))
def test_what_it_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RFD.Config(**fields)


def test_networks_that_it_refuses() -> None:
    with pytest.raises(UserError, match=r"RFD trains ways r, n of a Disentangled, got a OneWay"):
        RFD(OneWay("digits_cnn", num_classes=10, in_channels=1), RFD.Config(), ATTACK, seed=0)
    two = Disentangled("digits_cnn", num_classes=2, in_channels=1)
    with pytest.raises(UserError, match="dlr compares three classes, got 2"):
        RFD(two, RFD.Config(attack_loss="dlr"), ATTACK, seed=0)


def test_presets_have_the_numbers_of_the_paper() -> None:
    config = PRESETS["cifar10-rfd"]
    assert (config.model, config.network, config.method) == ("wide_resnet34_10", "disentangled", "rfd")
    assert (config.lr, config.batch_size, config.milestones) == (0.1, 128, (100, 105, 110))
    assert (config.attack.eps, config.attack.step_size) == (8 / 255, 2 / 255)
    assert config.objective == RFD.Config()
    assert config.hold_out == 1000
    assert config.early_stop
    assert PRESETS["imagenette-rfd"].lr == 0.01
    for family in ("digits", "mnist", "cifar10", "svhn", "cifar100", "tiny", "imagenette"):
        backbones = {
            PRESETS[f"{family}-rfd{ending}"].model
            for ending in ("", "-um", "-at", "-trades", "-mart", "-alp")
        }
        assert len(backbones) == 1
