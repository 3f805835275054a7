"""Frozen encoders in attacks: the same gradients as the plain model, from fewer kernels, with nothing of it touched."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from robustfast.attacks import PGD, ThreeWayPGD, fold_plan, fold_report, folding
from robustfast.attacks.cuda_graph import eager_loops, on_stream, record
from robustfast.attacks.folding import _captured, active_plans, folded
from robustfast.attacks.gradient import InputGradient, Pass
from robustfast.attacks.modes import eval_mode
from robustfast.errors import UserError
from robustfast.models import MODELS, OneWay, ThreeWay, network

# A backbone of each class, the large ones in small: channels, side; norms folded, ReLUs fused.
BACKBONES = {
    "digits_cnn": (1, 8, 2, 2),
    "small_cnn": (1, 28, 0, 4),
    "preact_resnet18": (3, 8, 8, 16),
    "resnet18": (3, 8, 20, 17),
    "narrow_resnet": (1, 28, 21, 17),
    "wide_resnet10_2": (3, 8, 4, 7),
    "wide_resnet10_2_dropout": (3, 8, 3, 7),
    "resnet50": (3, 32, 53, 49),
}
FOR = {
    "wide_resnet28_10": "wide_resnet10_2",
    "wide_resnet34_10": "wide_resnet10_2",
    "wide_resnet28_10_dropout": "wide_resnet10_2_dropout",
}
TIMM = ("inception_v4", "inception_resnet_v2", "resnetv2_152")


def with_statistics(net: nn.Module, seed: int = 0) -> nn.Module:
    """Running statistics, scales and shifts of every batch norm drawn at random; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                for tensor in (norm.running_mean, norm.bias):
                    tensor.copy_(0.3 * torch.randn(len(tensor), generator=generator))
                for tensor in (norm.running_var, norm.weight):
                    tensor.copy_(torch.rand(len(tensor), generator=generator) + 0.5)
    return net.eval()


def made(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return with_statistics(build()).to(dtype)


def images(
    channels: int, side: int, dtype: torch.dtype = torch.float64, batch: int = 3
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, channels, side, side, generator=generator, dtype=dtype)
    return x, torch.randint(0, 5, (batch,), generator=generator)


def one_pass(model: Any, x: Tensor, y: Tensor, mode: str) -> Pass:
    """One pass forward and back, as in an attack."""
    gradient = InputGradient(model, model, "ce")
    with folding(mode), eval_mode(model), gradient.session(x.device):
        return gradient.evaluate(x, y)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def same(model: Any, x: Tensor, y: Tensor, within: float = 1e-9) -> None:
    plain, ours = (one_pass(model, x, y, mode) for mode in ("off", "on"))
    assert plain.grad.abs().max() > 0
    assert apart(ours.logits, plain.logits) < within
    assert apart(ours.grad, plain.grad) < within


def counts(model: Any) -> tuple[int, int]:
    parts = fold_report(model)
    return sum(part.folded for part in parts), sum(part.fused for part in parts)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_the_plain_ones_logits_and_gradient(name: str) -> None:
    channels, side, *expected = BACKBONES[name]
    net = made(lambda: OneWay(name, num_classes=5, in_channels=channels))
    same(net, *images(channels, side))
    assert counts(net) == tuple(expected)


def test_every_backbone_is_among_them() -> None:
    known = {FOR.get(name, name) for name in MODELS if name not in TIMM}
    assert known == set(BACKBONES)


@pytest.mark.parametrize("name", TIMM)
def test_backbones_of_timm_have_the_plain_ones_logits_and_gradient(name: str) -> None:
    pytest.importorskip("timm")
    net = made(lambda: OneWay(name, num_classes=5, in_channels=3))
    same(net, *images(3, 96, batch=1))
    assert counts(net)[0] > 40


class Normalised(nn.Module):
    """A ResNet of one's own: normalisation of pixels in front, residual blocks in torchvision's spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16, 5)

    def forward(self, x: Tensor, *, flag: bool | None = None) -> Tensor:
        if flag is not None:
            raise AssertionError("the default is None")
        x = (x - self.mean) / 0.25
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def test_a_network_of_ones_own_is_folded() -> None:
    net = made(Normalised)
    same(net, *images(3, 24))
    assert counts(net) == (10, 9)


def test_a_method_of_a_module_folds_the_parts_that_it_may_call() -> None:
    class Scored(Normalised):
        def scores(self, x: Tensor) -> Tensor:
            return self.fc(self.avgpool(self.layer2(self.layer1(self.maxpool(self.conv1(x))))).flatten(1))

    net = made(Scored)
    same(net.scores, *images(3, 24))
    assert counts(net.scores) == (9, 8)


@pytest.mark.parametrize(
    "name", ["three_way", "disentangled", "digits_unet", "digits_vae_rn", "digits_ape", "unit_norm"]
)
def test_every_way_of_every_network_is_the_plain_one(name: str) -> None:
    net = made(lambda: network(name, "digits_cnn", num_classes=5, in_channels=1))
    for way in net.readings:
        same(net.way(way), *images(1, 8))
        assert sum(counts(net.way(way))) >= 4, fold_report(net.way(way))


@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18", "wide_resnet10_2"])
def test_in_half_precision_its_error_is_that_of_the_plain_model(name: str) -> None:
    net = made(lambda: OneWay(name, num_classes=5, in_channels=3), torch.float32)
    x, y = images(3, 16, torch.float32, batch=8)
    exact = one_pass(net, x, y, "off").grad
    errors = {}
    for mode in ("off", "on"):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            errors[mode] = apart(one_pass(net, x, y, mode).grad, exact)
    assert 0 < errors["on"] < 1.5 * errors["off"]


def test_attacks_on_several_ways_are_those_on_the_plain_network() -> None:
    net = made(lambda: ThreeWay("wide_resnet10_1", num_classes=5, in_channels=3))
    x, y = images(3, 8)
    for batched in (False, True):
        attack = ThreeWayPGD(net, "srn", batched=batched, steps=3)
        with folding("off"):
            plain = attack(x, y)
        with folding("on"):
            ours = attack(x, y)
        for way in "srn":
            torch.testing.assert_close(ours[way], plain[way], rtol=0, atol=1e-9)
            assert not torch.equal(ours[way], x)


def test_it_takes_fewer_launches(record: type) -> None:
    net = made(lambda: OneWay("preact_resnet18", num_classes=5, in_channels=3), torch.float32)
    x, y = images(3, 8, torch.float32)
    seen = {}
    for mode in ("off", "on"):
        gradient = InputGradient(net, net, "ce")
        with (
            folding(mode),
            torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
            gradient.session(x.device),
        ):
            gradient.evaluate(x, y)
            with record() as seen[mode]:
                gradient.evaluate(x, y)
    plain, ours = seen["off"], seen["on"]
    # Forward and back: a norm, a ReLU and, before eight of the norms, a sum each.
    assert plain.count("aten::threshold_backward") == ours.count("robustfast::affine_relu_backward") == 16
    for name in ("aten::native_batch_norm", "aten::relu_", "aten::threshold_backward"):
        assert plain.count(name) or name == "aten::native_batch_norm"
        assert ours.count(name) == 0
    assert plain.count("aten::add.Tensor") - ours.count("aten::add.Tensor") >= 7
    assert plain.count("aten::_to_copy") > ours.count("aten::_to_copy") or plain.count("aten::_to_copy") < 10
    assert len(plain.calls) - len(ours.calls) >= 50
    assert sum(name == "aten::convolution" for name, _ in ours.calls) == 20


def test_weights_are_prepared_by_few_launches(record: type) -> None:
    net = made(lambda: OneWay("preact_resnet18", num_classes=5, in_channels=3), torch.float32)
    device = torch.device("cpu")
    with folding("on"), torch.autocast("cpu", torch.bfloat16):
        with folded(net, device):
            pass
        with record() as seen, folded(net, device):
            pass
    assert seen.count("aten::mul.out") == 8, "one for each folded convolution"
    assert len(seen.calls) - 8 < 12
    assert seen.count("aten::_foreach_copy_") == 2


def test_nothing_of_the_model_is_touched() -> None:
    net = made(lambda: ThreeWay("digits_cnn", num_classes=5, in_channels=1), torch.float32).train()
    before = copy.deepcopy(net.state_dict())
    held = [(id(p), p._version, p.requires_grad) for p in net.parameters()]
    kept = [dict(vars(part)) for part in net.modules()]
    x, y = images(1, 8, torch.float32)
    with folding("on"):
        ThreeWayPGD(net, "srn", steps=2)(x, y)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [(id(p), p._version, p.requires_grad) for p in net.parameters()] == held
    assert all(p.grad is None for p in net.parameters())
    assert [dict(vars(part)) for part in net.modules()] == kept
    assert active_plans() == ()


def test_the_model_is_put_back_after_an_exception() -> None:
    net = made(Normalised)
    x, _ = images(3, 24)

    def failing(logits: Tensor, target: Tensor) -> Tensor:
        assert "forward" in vars(net)
        raise RuntimeError("a loss that fails")

    with folding("on"), pytest.raises(RuntimeError, match="a loss that fails"):
        PGD(net, loss=failing, steps=1)(x, torch.zeros(3, dtype=torch.int64))
    assert "forward" not in vars(net)
    assert active_plans() == ()


def test_each_attack_takes_the_weights_that_the_model_has_then() -> None:
    net = made(Normalised)
    x, y = images(3, 24)
    same(net, x, y)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    same(net, x, y)
    net.load_state_dict(
        {k: v * 1.05 if v.is_floating_point() else v for k, v in net.state_dict().items()}, assign=True
    )
    same(net, x, y)
    net.layer2[1] = nn.Identity()
    net.fc = nn.Linear(16, 5).double()
    same(net, x, y)
    assert counts(net) == (8, 7)
    same(net.float(), x.float(), y, within=1e-4)


def test_buffers_stay_where_they_are(captures: list[Any]) -> None:
    """So that a captured graph, which reads them, follows weights that are updated in place."""
    net = made(Normalised)
    x, _ = images(3, 24)
    with eval_mode(net):
        y = net(x).argmax(1)
    attack = PGD(net, steps=1, engine="auto")
    attack._uses_graph = lambda x, graph: True  # type: ignore[method-assign]
    serials = []
    for mode in ("on", "on", "off", "on"):
        with folding(mode):
            attack(x, y)
            with eval_mode(net), folded(net, x.device):
                serials.append(active_plans())
        with torch.no_grad():
            net.fc.weight.mul_(1.1)
    assert len(captures) == 2, "one with folding, one without"
    assert serials[0] == serials[1] == serials[3] != serials[2] == ()
    with torch.autocast("cpu", torch.bfloat16), folding("on"), eval_mode(net), folded(net, x.device):
        assert active_plans() != serials[0]


def test_attacks_within_attacks_share_a_plan() -> None:
    net = made(Normalised)
    x, y = images(3, 24)
    device = torch.device("cpu")
    with folding("on"), eval_mode(net), folded(net, device):
        stands = vars(net)["forward"]
        serial = active_plans()
        with folded(net, device):
            assert active_plans() == serial
        assert vars(net)["forward"] is stands
        same(nn.Sequential(net), x, y)
    assert "forward" not in vars(net)


def test_a_plan_gives_way_where_autocast_is_switched_within_the_attack() -> None:
    """Its weights are of the dtype that the attack began with."""
    net = made(Normalised, torch.float32)
    x, _ = images(3, 24, torch.float32)
    with folding("on"), torch.autocast("cpu", torch.bfloat16), folded(net, x.device):
        assert net(x).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            found = net(x)
    assert torch.equal(found, net(x))


def hooked(net: Normalised) -> None:
    net.layer1[0].conv1.register_forward_hook(lambda *_: None)


def hooked_backward(net: Normalised) -> None:
    net.layer1[0].register_full_backward_pre_hook(lambda *_: None)


def parametrised(net: Normalised) -> None:
    parametrizations.weight_norm(net.layer1[0].conv1)


def compiled(net: Normalised) -> None:
    net.layer1[0]._compiled_call_impl = net.layer1[0]._call_impl


def patched(net: Normalised) -> None:
    block = net.layer1[0]
    block.forward = lambda x: Block.forward(block, x) * 1.5  # type: ignore[method-assign]


def training(net: Normalised) -> None:
    net.layer1[0].bn1.train()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hooked, "its layer1.0.conv1 has hooks"),
        (hooked_backward, "its layer1.0 has hooks"),
        (parametrised, "its layer1.0.conv1 has parametrised weights"),
        (compiled, "its layer1.0 is compiled"),
        (patched, "its layer1.0 is called by a function of its own"),
        (training, "its layer1.0.bn1 is in train mode"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_part_that_is_more_than_its_code_runs_as_it_is_and_the_others_are_folded(
    change: Callable[[Normalised], None], words: str
) -> None:
    net = made(Normalised)
    change(net)
    x, y = images(3, 24)
    gradient = InputGradient(net, net, "ce")
    found = {}
    for mode in ("off", "on"):
        with folding(mode), gradient.session(x.device):
            found[mode] = gradient.evaluate(x, y)
            if mode == "on":
                assert "forward" not in vars(net)
                assert active_plans()
    assert apart(found["on"].grad, found["off"].grad) < 1e-9
    if change is not training:  # which `fold_report` sees in eval mode
        reasons = {part.name: part.reason for part in fold_report(net)}
        assert reasons[""] == words
        assert reasons["layer1.1"] is None
        assert reasons["layer2"] is None


def test_within_compiled_or_spread_modules_nothing_is_folded() -> None:
    net = made(Normalised)
    whole = net._call_impl
    net._compiled_call_impl = whole
    assert [(part.name, part.reason) for part in fold_report(net)] == [("", "it is compiled")]
    net._compiled_call_impl = None
    spread = nn.DataParallel(net)
    assert [part.reason for part in fold_report(spread)] == ["DataParallel runs its parts elsewhere"]
    assert counts(net) == (10, 9)


class Odd(nn.Module):
    """A convolution, a batch norm, and something that a graph would lose."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.what, self.calls, self.seen = what, 0, None

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "branches" and x.mean() > 2:
            return x
        if self.what == "counts":
            self.calls += 1
        if self.what == "draws":
            x = x + 0 * torch.rand(1).item()
        if self.what == "makes":
            x = x + torch.ones(1, dtype=torch.float64)
        if self.what == "writes":
            x = x * 1
            x.flatten(1).mul_(0.5)
        with torch.no_grad() if self.what == "grad mode" else torch.enable_grad():
            y = torch.relu(self.norm(self.conv(x)))
        if self.what == "remembers":
            self.seen = y
        return y.mean((2, 3)) + x.mean((2, 3)).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nothing", None),
        ("branches", "cannot be traced"),
        ("counts", "changes its own attributes"),
        ("remembers", "changes its own attributes"),
        ("draws", "random numbers"),
        ("makes", "makes tensors"),
        ("writes", "writes in place"),
        ("grad mode", "grad or autocast mode"),
    ],
)
def test_code_that_a_graph_would_change_runs_as_it_is(what: str, words: str | None) -> None:
    net = made(lambda: Odd(what))
    x, y = images(3, 8)
    random = torch.get_rng_state()
    (part,) = fold_report(net)
    assert (part.reason is None) if words is None else (words in part.reason)
    assert torch.equal(torch.get_rng_state(), random)
    assert net.calls == 0
    assert net.seen is None
    same(net, x, y % 4)
    for _ in range(20):
        one_pass(net, x, y % 4, "on")
    assert net.calls == (22 if what == "counts" else 0)


@pytest.mark.parametrize("what", ["another branch", "an error"])
def test_a_graph_that_is_not_its_module_is_found_out_on_the_first_images(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Normalised()

        def forward(self, x: Tensor) -> Tensor:
            # While it is traced, x is no Tensor.
            return self.net(x * 1.5 if isinstance(x, Tensor) and what == "another branch" else x)

    net = made(Looks)
    x, y = images(3, 24)
    if what == "an error":
        monkeypatch.setattr(fold_plan.Plan, "prepare", lambda plan, parts: lambda x: x.no_such_method())
    assert counts(net) == (10, 9)
    random = torch.get_rng_state()
    plain, ours = (one_pass(net, x, y, mode) for mode in ("off", "on"))
    assert torch.equal(plain.grad, ours.grad)
    assert torch.equal(torch.get_rng_state(), random)
    part, *others = fold_report(net)
    assert part.reason == "its graph gives other results than its forward"
    assert [(other.name, other.reason) for other in others] == [("net", None)]
    if what == "another branch":
        same(net, x, y)


def test_other_threads_go_on_while_a_module_is_traced() -> None:
    """torch.fx takes over every module's calls meanwhile."""
    net, bystander = made(Normalised), made(Normalised)
    x, _ = images(3, 24)
    expected = bystander(x)
    inside, done = threading.Event(), threading.Event()
    seen: list[Tensor] = []

    def run() -> None:
        assert inside.wait(20)
        try:
            seen.append(bystander(x).detach())
        finally:
            done.set()

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            assert done.wait(20)
            return x

    net.avgpool = nn.Sequential(Waits(), net.avgpool)
    other = threading.Thread(target=run)
    other.start()
    (part,) = fold_report(net)
    other.join()
    assert part.reason is None
    assert torch.equal(seen[0], expected)


def test_batch_norms_by_the_batch_are_not_folded() -> None:
    net = made(lambda: OneWay("resnet18", num_classes=5, in_channels=3))
    x, y = images(3, 8)
    attacks = [PGD(net, steps=2, batch_norm="batch") for _ in range(2)]
    found = []
    for attack, mode in zip(attacks, ("off", "on"), strict=True):
        with folding(mode):
            found.append(attack(x, y))
    assert torch.equal(*found)
    assert {part.reason for part in fold_report(net, batch_norm="batch")} >= {"its norm is in train mode"}
    without = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    )
    assert counts(without) == (0, 0)


def test_a_call_with_more_arguments_goes_to_the_module_itself() -> None:
    net = made(Normalised)
    x, _ = images(3, 24)
    with folding("on"), folded(net, x.device):
        net(x)
        with pytest.raises(AssertionError, match="the default is None"):
            net(x, flag=True)


def test_an_attack_that_compiles_its_model_does_not_fold_it() -> None:
    net = made(Normalised)
    with folding("on"), folded(net, torch.device("cpu"), compiled=True):
        assert active_plans() == ()


def test_on_a_cpu_it_is_off_unless_asked_for(record: type, monkeypatch: pytest.MonkeyPatch) -> None:
    net = made(Normalised)
    x, y = images(3, 24)
    with record() as seen:
        found = PGD(net, steps=2)(x, y)
    assert seen.count("robustfast::affine_relu") == 0
    with folding("off"):
        assert torch.equal(PGD(net, steps=2)(x, y), found)
    with folding("auto"), eval_mode(net):
        with folded(net, torch.device("cpu")):
            assert active_plans() == ()
        # Where the images are decides, and nothing else of the device is asked for outside a capture.
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        with folded(net, torch.device("cuda")):
            assert len(active_plans()) == 1
    with pytest.raises(UserError, match="unknown folding 'yes'; known: auto, off, on"), folding("yes"):
        pass


def test_a_plan_dies_with_its_module() -> None:
    net = made(Normalised)
    same(net, *images(3, 24))
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_inside_a_capture_only_buffers_that_are_there_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of a whole training step prepares the weights itself; buffers of its own would not outlive it."""
    net, device = made(Normalised), torch.device("cuda")
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    with folding("on"), eval_mode(net):
        with folded(net, device):
            assert active_plans() == ()
        capturing[0] = False
        with folded(net, device):
            serial = active_plans()
            assert serial
        capturing[0] = True
        with folded(net, device):
            assert active_plans() == serial
    # What a graph reads stays, also once the module's structure is another.
    net.layer2 = nn.Identity()
    with folding("on"), eval_mode(net):
        capturing[0] = False
        with folded(net, device):
            assert active_plans() != serial
    assert tuple(_captured[net]) == serial


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18", "resnet50"])
def test_on_a_gpu_folded_attacks_are_the_plain_ones(name: str) -> None:
    net = (
        made(lambda: OneWay(name, num_classes=5, in_channels=3)).cuda().to(memory_format=torch.channels_last)
    )
    x, y = (t.cuda() for t in images(3, 32, batch=8))
    same(net, x.contiguous(memory_format=torch.channels_last), y, within=1e-8)


@pytest.mark.gpu
def test_on_a_gpu_a_graph_of_plans_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    net = made(lambda: ThreeWay("preact_resnet18", num_classes=5, in_channels=3), torch.float32).cuda()
    x, y = (t.cuda() for t in images(3, 32, torch.float32, batch=8))
    graph, eager = (ThreeWayPGD(net, "srn", steps=3, engine=engine) for engine in ("graph", "eager"))
    for _ in range(3):
        with folding("on"), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            found, expected = graph(x, y), eager(x, y)
        for way in "srn":
            assert torch.equal(found[way], expected[way])
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(1.01)


@pytest.mark.gpu
def test_on_a_gpu_a_callers_graph_prepares_the_weights_anew_in_each_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    net = made(lambda: OneWay("resnet18", num_classes=5, in_channels=3), torch.float32).cuda()
    x, y = (t.cuda() for t in images(3, 32, torch.float32, batch=8))
    attack, stream = PGD(net, steps=3, engine="eager"), torch.cuda.Stream()
    with folding("on"), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        with on_stream(stream), eager_loops():
            for _ in range(2):
                attack(x, y)
        graph, x_adv = record(lambda: attack(x, y), stream)
        for _ in range(2):
            with torch.no_grad():
                for tensor in (*net.parameters(), *net.buffers()):
                    if tensor.is_floating_point():
                        tensor.mul_(1.02)
            graph.replay()
            replayed = x_adv.clone()
            assert torch.equal(replayed, attack(x, y))
