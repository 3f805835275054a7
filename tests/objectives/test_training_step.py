"""One whole training step: against the same step as people write it, and on every backend against the reference."""

import copy

import pytest
import torch
import torch.nn.functional as F

from robustfast.attacks import AttackConfig
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES
from robustfast.objectives.trades import normal
from robustfast.ops import backends, random_start, use_backend
from robustfast.seeds import derive

ATTACK = AttackConfig(eps=0.1, step_size=0.03, steps=4)
METHODS = ("st", "at", "trades", "aat", "aatpp")
SEED, EPOCH = 5, 2


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def model():
    return ThreeWay("digits_cnn", num_classes=10, in_channels=1)


@pytest.fixture
def batch():
    index = torch.tensor([4, 0, 7, 2, 9, 11, 3, 5])
    return torch.rand(8, 1, 8, 8), torch.randint(10, (8,)), index


def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def step(method, model, x, y, index):
    """One step of ours on a copy of `model`; the copy and every adversarial image."""
    model, images = copy.deepcopy(model), []
    objective = OBJECTIVES[method](model, OBJECTIVES[method].Config(), ATTACK, seed=SEED)
    attack = objective.attack

    def spy(*args, **keywords):
        found = attack(*args, **keywords)
        images.extend(found.values() if isinstance(found, dict) else [found])
        return found

    objective.attack = spy if attack is not None else None
    objective.begin(EPOCH, 0.0)
    update = optimizer(objective.parameters()["model"])
    for phase in objective.phases(x, y, index):
        update.zero_grad()
        phase.loss.backward()
        update.step()
    return model, images


class AsPeopleWriteIt:
    """The same methods in the plainest PyTorch.

    Every way runs both encoders, the zeros are written out, an attack calls backward, a loss picks its samples.
    """

    def __init__(self, model):
        self.model = model

    def way(self, name, x):
        z_r, z_n = self.model.encoder_r(x), self.model.encoder_n(x)
        z_r = torch.zeros_like(z_r) if name == "n" else z_r
        z_n = torch.zeros_like(z_n) if name == "r" else z_n
        return self.model.head(torch.cat([z_r, z_n], dim=1))

    def attack(self, name, x, loss_of, start):
        self.model.eval()
        x_adv = start
        for _ in range(ATTACK.steps):
            x_adv = x_adv.detach().requires_grad_()
            loss_of(self.way(name, x_adv)).backward()
            x_adv = x_adv.detach() + ATTACK.step_size * x_adv.grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - ATTACK.eps), x + ATTACK.eps).clamp(0, 1)
        with torch.no_grad():
            yhat = self.way(name, x_adv).argmax(1)
        self.model.train()
        return x_adv, yhat

    def fooling(self, name, x, y, index, seed):
        start = random_start(x, eps=ATTACK.eps, seed=derive(seed, "pgd", EPOCH, 0), index=index)
        return self.attack(name, x, lambda logits: F.cross_entropy(logits, y), start)

    def st(self, x, y, index):
        return F.cross_entropy(self.way("n", x), y), []

    def at(self, x, y, index):
        x_adv, _ = self.fooling("r", x, y, index, SEED)
        return F.cross_entropy(self.way("r", x_adv), y) + F.cross_entropy(self.way("r", x), y), [x_adv]

    def trades(self, x, y, index):
        self.model.eval()
        p = self.way("r", x).softmax(1).detach()
        start = x + 0.001 * normal(x, seed=derive(SEED, "trades", EPOCH), index=index)

        def divergence(logits):
            return F.kl_div(logits.log_softmax(1), p, reduction="sum")

        x_adv, _ = self.attack("r", x, divergence, start)
        clean, attacked = self.way("r", x), self.way("r", x_adv).softmax(1)
        kl = (clean.softmax(1) * (clean.softmax(1) / attacked).log()).sum() / len(x)
        return F.cross_entropy(clean, y) + 6 * kl, [x_adv]

    def aat(self, x, y, index, plus=False):
        x_s, yhat_s = self.fooling("s", x, y, index, derive(SEED, "s"))
        made = [x_s]
        if plus:
            x_r, _ = self.fooling("r", x, y, index, derive(SEED, "r"))
            x_n, yhat_n = self.fooling("n", x, y, index, derive(SEED, "n"))
            made += [x_r, x_n]
        losses = [F.cross_entropy(self.way(name, x), y) for name in "srn"]
        r, n = self.way("r", x_s), self.way("n", x_s)
        for i in (yhat_s != y).nonzero().flatten().tolist():
            losses += [F.cross_entropy(r[i], y[i]) / len(x), F.cross_entropy(n[i], yhat_s[i]) / len(x)]
        if plus:
            losses.append(F.cross_entropy(self.way("r", x_r), y))
            n = self.way("n", x_n)
            for i in (yhat_n != y).nonzero().flatten().tolist():
                losses.append(F.cross_entropy(n[i], yhat_n[i]) / len(x))
        return sum(losses), made

    def aatpp(self, x, y, index):
        return self.aat(x, y, index, plus=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_the_one_people_write(method, model, batch):
    # Float64: float32 rounding alone would flip some sign of some gradient.
    model, (x, y, index) = model.double(), batch
    x = x.double()
    ours, images = step(method, model, x, y, index)

    plain = AsPeopleWriteIt(copy.deepcopy(model))
    trained = {id(p) for way in OBJECTIVES[method].main_ways for p in plain.model.way(way).parameters()}
    update = optimizer([p for p in plain.model.parameters() if id(p) in trained])
    loss, expected = getattr(plain, method)(x, y, index)
    plain.model.zero_grad()  # the attacks' backward calls left weight gradients
    loss.backward()
    update.step()

    for found, wanted in zip(images, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for (name, found), wanted in zip(ours.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(
            found, wanted, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )


CPU_BACKENDS = [
    name for name in ("cpp", "auto") if name == "auto" or not any(op[name] for op in backends().values())
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_fused_and_reference_steps_are_equal(backend, method, model, batch, dtype):
    model, (x, y, index) = model.to(dtype), batch
    with use_backend("reference"):
        expected, wanted = step(method, model, x.to(dtype), y, index)
    with use_backend(backend):
        found, images = step(method, model, x.to(dtype), y, index)
    assert len(images) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(images, wanted, strict=True))
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
