"""What a plan does with a network it has not been written for: the same function, whatever the code looks like."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from robustfast.attacks import fold_report, folding
from robustfast.attacks.fold_plan import sum_affine_relu
from robustfast.attacks.folding import folded
from robustfast.attacks.gradient import InputGradient

CHANNELS = 4
# What occurs together in residual networks, often; spellings of the parts; and, seldom, writes on what others read.
BLOCKS = (
    "conv norm", "conv bias", "norm relu", "add norm relu", "+= norm relu", "conv norm relu", "conv norm += relu",
    "conv norm + conv norm, relu", "sum kept, norm relu",
)  # fmt: skip
SPELLINGS = (
    "conv", "norm", "relu", "relu module", "relu method", "relu_", "F.relu in place", "add", "torch.add", "+=",
    "dropout", "F.dropout", "identity", "shape", "pool", "scale", "F.batch_norm", "silu",
)  # fmt: skip
HAZARDS = ("add_", "mul_", "view relu_")
OPS = (*BLOCKS * 5, *SPELLINGS, *HAZARDS)


def random_norm(norm: nn.Module, generator: torch.Generator) -> nn.Module:
    """Statistics and weights as none of them begins; some scales are negative, one is 0."""
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.bias):
            tensor.copy_(torch.randn(len(tensor), generator=generator))
        norm.running_var.copy_(torch.rand(len(norm.running_var), generator=generator) + 0.5)
        norm.weight.copy_(torch.randn(len(norm.weight), generator=generator))
        norm.weight[0] = 0
    return norm


class Program(nn.Module):
    """A network written at random: each line reads one or two of the values before it, and may write on them."""

    def __init__(self, lines: list[tuple[str, int, int]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(len(lines))
        self.lines = tuple(lines)
        self.parts = nn.ModuleList(self._part(name, generator) for name, *_ in lines)
        self.norm = random_norm(nn.BatchNorm2d(CHANNELS), generator)
        self.relu = nn.ReLU(inplace=True)

    def _part(self, name: str, generator: torch.Generator) -> nn.Module:
        if name == "conv norm + conv norm, relu":
            return nn.ModuleList(self._part(kind, generator) for kind in ("conv norm", "conv norm"))
        if name.startswith("conv"):
            conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=name == "conv bias")
            with torch.no_grad():
                for parameter in conv.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
            if "norm" in name:
                return nn.Sequential(conv, random_norm(nn.BatchNorm2d(CHANNELS), generator))
            return conv
        if "norm" in name:
            return random_norm(nn.BatchNorm2d(CHANNELS), generator)
        return {"dropout": nn.Dropout(0.5), "silu": nn.SiLU()}.get(name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        values = [x * 1.5]
        for (name, first, second), part in zip(self.lines, self.parts, strict=True):
            # Of the last few values, so that results are used; most often of the last one.
            a, b = (values[-1 - (back if back < len(values) else 0)] for back in (first, second))
            if name == "sum kept, norm relu":
                total = a + b
                values += [F.relu(part(total)), total]
            else:
                values.append(self._run(name, part, a, b))
        return values[-1].flatten(1)

    def _run(self, name: str, part: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        if name == "norm relu":
            return torch.relu_(part(a))
        if name == "add norm relu":
            return self.relu(part(a + b))
        if name == "+= norm relu":
            a += b
            return torch.relu(part(a))
        if name == "conv norm relu":
            return self.relu(part(a))
        if name == "conv norm += relu":
            a = part(a)
            a += b
            return self.relu(a)
        if name == "conv norm + conv norm, relu":
            first, second = part
            return torch.relu(first(a) + second(b))
        if name == "relu module":
            return self.relu(a)
        if name == "relu_":
            return torch.relu_(a)
        if name == "F.relu in place":
            return F.relu(a, True)
        if name == "+=":
            a += b
            return a
        if name == "add_":
            return a.add_(b)
        if name == "mul_":
            return a.mul_(0.5)
        if name == "view relu_":
            return a.view(a.shape).relu_()
        if name == "shape":
            return a.flatten(1).reshape(a.size(0), CHANNELS, 5, 5)
        if name == "F.batch_norm":
            n = self.norm
            return F.batch_norm(a, n.running_mean, n.running_var, n.weight, n.bias, n.training, 0.1, n.eps)
        plain: dict[str, Callable[[], Tensor]] = {
            "relu": lambda: F.relu(a),
            "relu method": lambda: a.relu(),
            "add": lambda: a + b,
            "torch.add": lambda: torch.add(a, b),
            "F.dropout": lambda: F.dropout(a, 0.5, self.training),
            "pool": lambda: F.max_pool2d(a, 3, 1, 1),
            "scale": lambda: a * 1.25,
        }
        return plain[name]() if name in plain else part(a)


def passes(net: nn.Module, x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Outputs and the gradient of their weighted sum."""
    with folding(mode):
        gradient = InputGradient(net, net, weighted)
        with gradient.session(x.device):
            found = gradient.evaluate(x, torch.zeros(len(x), dtype=torch.int64))
    return found.logits, found.grad


def weighted(logits: Tensor, target: Tensor) -> Tensor:
    return logits @ torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)


BACK = (0, 0, 0, 0, 1, 2)
lines = st.lists(st.tuples(st.sampled_from(OPS), *[st.sampled_from(BACK)] * 2), min_size=1, max_size=12)


@settings(max_examples=80)
@given(lines)
def test_a_network_written_at_random_stays_the_same_function(program: list[tuple[str, int, int]]) -> None:
    net = Program(program).double().eval()
    x = torch.rand(2, CHANNELS, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        plain = passes(net, x, "off")
    except RuntimeError as error:
        # A value that autograd still needed was written on: no network at all.
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
        return
    for found, expected in zip(passes(net, x, "on"), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class NormAct(nn.BatchNorm2d):
    """Batch norm and ReLU in one module, as timm has it: through the function, with an assertion on the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input, got {x.ndim}D")
        by_batch = True if self.training else self.running_mean is None and self.running_var is None
        mean = self.running_mean if not self.training or self.track_running_stats else None
        var = self.running_var if not self.training or self.track_running_stats else None
        x = F.batch_norm(x, mean, var, self.weight, self.bias, by_batch, self.momentum, self.eps)
        return self.act(self.drop(x))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(random_norm(NormAct(CHANNELS), generator) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in ((0, 1), (2, 3)):
            inside = self.norms[second](self.convs[first](self.norms[first](x)))
            x = self.convs[second](inside) + x
        return x.mean((2, 3))


def test_batch_norm_as_a_function_with_assertions_is_folded() -> None:
    net = PreActivation().double().eval()
    x = torch.rand(2, CHANNELS, 5, 5, dtype=torch.float64)
    (part,) = fold_report(net)
    assert (part.reason, part.folded, part.fused) == (None, 2, 4)
    assert "_assert" in part.code
    for found, expected in zip(passes(net, x, "on"), passes(net, x, "off"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with folding("on"), folded(net, x.device), pytest.raises(AssertionError, match="expected 4D"):
        net(x[None])


def test_two_norms_that_read_one_sum_are_both_fused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.norms = nn.ModuleList(random_norm(nn.BatchNorm2d(CHANNELS), generator) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            total = x * 2 + x.flip(0)
            first, second = (torch.relu(norm(total)) for norm in self.norms)
            return (first * second).mean((2, 3)) + total.mean((2, 3))

    net = Two().double().eval()
    x = torch.rand(2, CHANNELS, 5, 5, dtype=torch.float64)
    (part,) = fold_report(net)
    assert (part.folded, part.fused) == (0, 2)
    for found, expected in zip(passes(net, x, "on"), passes(net, x, "off"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_weight_that_serves_twice_is_folded_with_each_norm_and_statistics_with_each_use() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
            self.norms = nn.ModuleList(random_norm(nn.BatchNorm2d(CHANNELS), generator) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for norm in (*self.norms, self.norms[0]):
                x = torch.relu(norm(self.conv(x)))
            return self.conv(x).mean((2, 3))

    net = Shared().double().eval()
    x = torch.rand(2, CHANNELS, 5, 5, dtype=torch.float64)
    (part,) = fold_report(net)
    assert (part.folded, part.fused) == (3, 3)
    for found, expected in zip(passes(net, x, "on"), passes(net, x, "off"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "shapes", [((2, 4, 1, 1), (2, 4, 3, 3)), ((2, 1, 3, 3), (2, 4, 3, 3)), ((2, 4), (2, 4))]
)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_a_sum_of_unlike_tensors_is_torchs(
    shapes: tuple[tuple[int, ...], ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    a, b = (torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    scale, shift = torch.randn(4), torch.randn(4)
    y, total = sum_affine_relu(a, b, scale, shift, True)
    assert torch.equal(total, a + b)
    assert total.dtype == y.dtype == torch.result_type(a, b)
    per_channel = (-1, *[1] * (total.dim() - 2))
    expected = torch.relu(scale.view(per_channel) * total + shift.view(per_channel))
    torch.testing.assert_close(y, expected.to(y.dtype))
    # The bias of a convolution, which may have one channel, added behind the sum.
    own = shift[: a.shape[1]]
    y = sum_affine_relu(a, b, None, own, False)
    torch.testing.assert_close(y, torch.relu(total + own.view(per_channel)).to(y.dtype))
