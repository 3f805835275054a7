from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from robustfast import use_backend
from robustfast.ops import OPS, backends, margin_loss

HERE = [name for name, reason in backends()["margin_loss"].items() if reason is None and name != "cuda"]
LIBRARY = {"reference": "robustfast_reference", "triton": "robustfast_triton"}
SAMPLES = list(OPS["margin_loss"].samples(torch.device("cpu")))


def plain(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """As people write it, and as autograd differentiates it."""
    if target is None:
        other = logits.scatter(1, y[:, None], -torch.inf).max(1).values
    else:
        other = logits.gather(1, target[:, None]).squeeze(1)
    return other - logits.gather(1, y[:, None]).squeeze(1)


def gradient(loss: Any, logits: Tensor, *labels: Tensor, **kwargs: Any) -> Tensor:
    """Of a sum with a weight of its own for each sample."""
    leaf = logits.detach().requires_grad_()
    values = loss(leaf, *labels, **kwargs)
    return torch.autograd.grad((values * torch.arange(1.0, len(leaf) + 1)).sum(), leaf)[0]


@pytest.mark.parametrize("backend", HERE)
def test_by_hand(backend: str) -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0], [4.0, 4.0, 0.0]])
    y, target = torch.tensor([0, 2, 0]), torch.tensor([2, 0, 2])
    with use_backend(backend):
        assert margin_loss(logits, y).tolist() == [-1, 2, 0]
        assert margin_loss(logits, y, kappa=1.0).tolist() == [-1, 1, 0]
        assert margin_loss(logits, y, target=target).tolist() == [-3, -1, -4]
        expected = [[-1, 1, 0], [0, 2, -2], [-3, 3, 0]]
        assert gradient(margin_loss, logits, y).tolist() == expected
        # The second margin exceeds kappa: nothing flows. At the third it is kappa exactly, and flows.
        assert gradient(margin_loss, logits, y, kappa=0.0).tolist() == [expected[0], [0, 0, 0], expected[2]]


@pytest.mark.parametrize("backend", HERE)
@settings(max_examples=30)
@given(
    B=st.integers(1, 9),
    K=st.sampled_from([2, 3, 8, 17, 40]),
    seed=st.integers(0, 999),
    targeted=st.booleans(),
)
def test_the_bits_of_the_plain_form_and_of_its_autograd(
    backend: str, B: int, K: int, seed: int, targeted: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Rounded so that some classes tie: max takes the first of them.
    logits = (torch.randn(B, K, generator=generator) * 8).round() / 2
    y, target = torch.randint(K, (2, B), generator=generator)
    target = target if targeted else None
    with use_backend(backend):
        assert torch.equal(margin_loss(logits, y, target=target), plain(logits, y, target))
        ours = gradient(margin_loss, logits, y, target=target)
    assert torch.equal(ours, gradient(plain, logits, y, target=target))


@pytest.mark.parametrize("backend", [name for name in HERE if name != "reference"])
@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.label for sample in SAMPLES])
def test_gradients_agree(backend: str, sample: Any) -> None:
    results = []
    for name in ("reference", backend):
        with use_backend(name):
            results.append(gradient(margin_loss, *sample.args, **sample.kwargs))
    assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gradients_agree_on_a_gpu(backend: str) -> None:
    for sample in OPS["margin_loss"].samples(torch.device("cuda")):
        results = []
        for name in ("reference", backend):
            with use_backend(name):
                leaf = sample.args[0].detach().requires_grad_()
                loss = margin_loss(leaf, *sample.args[1:], **sample.kwargs)
                results.append(torch.autograd.grad(loss.sum(), leaf)[0])
        assert torch.equal(*results)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("K", [4, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [2, 1, slice(None)], ids=["label", "elsewhere", "everywhere"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # its interpreter is NumPy, which warns of nan
def test_hostile_logits(backend: str, K: int, value: float, place: Any) -> None:
    """Values as of the plain form; a gradient at exactly two classes."""
    logits = torch.randn(3, K, generator=torch.Generator().manual_seed(0))
    logits[1, place] = value
    y = torch.tensor([0, 2, 1])
    with use_backend(backend):
        torch.testing.assert_close(margin_loss(logits, y), plain(logits, y), equal_nan=True)
        ours = gradient(margin_loss, logits, y)
    assert (ours != 0).sum(1).tolist() == [2, 2, 2]
    assert ours.sum(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("label", [-1, 10, 2**40])
@pytest.mark.parametrize("which", ["y", "target"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_label_that_is_no_class_is_nan_in_its_own_row(backend: str, label: int, which: str) -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    labels = {"y": torch.tensor([1, 2, 3, 4]), "target": torch.tensor([5, 6, 7, 8])}
    labels[which][2] = label
    with use_backend(backend):
        values = margin_loss(logits, **labels)
        ours = gradient(margin_loss, logits, **labels)
    assert values.isnan().tolist() == [False, False, True, False]
    assert ours.isnan().all(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_count_in_float32(backend: str, dtype: torch.dtype) -> None:
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.tensor([0, 1, 2, 3, 4])
    with use_backend(backend):
        values = margin_loss(logits, y)
        assert values.dtype == torch.float32
        assert torch.equal(values, margin_loss(logits.float(), y))
        ours = gradient(margin_loss, logits, y)
    assert ours.dtype == dtype
    assert torch.equal(ours, gradient(margin_loss, logits.float(), y).to(dtype))


@pytest.mark.parametrize("backend", HERE)
def test_gradcheck(backend: str) -> None:
    logits = torch.randn(
        3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda z: margin_loss(z, torch.tensor([0, 4, 2])), logits)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("targeted", [False, True])
def test_opcheck_with_gradients(backend: str, targeted: bool) -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.tensor([0, 4, 2])
    library = getattr(torch.ops, LIBRARY.get(backend, "robustfast"))
    arguments = (y, y.flip(0) if targeted else None, math.inf)
    opcheck(library.margin_loss.default, (logits, *arguments))
    opcheck(library.margin_loss_backward.default, (torch.ones(3), logits.detach(), *arguments))


def test_a_second_derivative_is_refused() -> None:
    logits = torch.randn(3, 5).requires_grad_()
    (g,) = torch.autograd.grad(margin_loss(logits, torch.tensor([0, 4, 2])).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="margin_loss has no second derivative"):
        g.sum().backward()


def test_compiles_with_its_gradient() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, y: margin_loss(z, y).sum(), fullgraph=True, backend="aot_eager")
    for B in (4, 7):
        logits = torch.randn(B, 6).requires_grad_()
        y = torch.arange(B) % 6
        expected = torch.autograd.grad(margin_loss(logits, y).sum(), logits)[0]
        assert torch.equal(torch.autograd.grad(compiled(logits, y), logits)[0], expected)


def test_triton_launches_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" not in HERE:
        pytest.skip("triton cannot run here")
    from robustfast.kernels import margin_loss as kernels

    launches: Counter[str] = Counter()

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launches[self.name] += 1
            return self.kernel[grid]

    for name in ("_forward_kernel", "_backward_kernel"):
        monkeypatch.setattr(kernels, name, Kernel(name))
    with use_backend("triton"):
        gradient(margin_loss, torch.randn(4, 10), torch.arange(4))
    assert launches == {"_forward_kernel": 1, "_backward_kernel": 1}


Z, Y = torch.randn(4, 10), torch.arange(4)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"logits": Z[0]}, ValueError, r"logits have shape \(10,\), expected \[B, K\]"),
        ({"logits": Z[:, :1]}, ValueError, r"logits have shape \(4, 1\), expected \[B, K\] with K >= 2"),
        ({"logits": Z.long()}, TypeError, "logits are torch.int64, expected a floating dtype"),
        ({"logits": None}, TypeError, "logits is NoneType, expected a tensor"),
        ({"y": Y.int()}, TypeError, "y is torch.int32, expected torch.int64"),
        ({"y": Y[:2]}, ValueError, r"y has shape \(2,\), expected \(4,\), one for each sample"),
        ({"y": Y.to("meta")}, ValueError, "y is on meta, expected the device of logits, cpu"),
        ({"target": Y[:2]}, ValueError, r"target has shape \(2,\), expected \(4,\)"),
        ({"target": 3}, TypeError, "target is int, expected a tensor"),
        ({"kappa": math.nan}, ValueError, "kappa is nan"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="margin_loss: " + message):
        margin_loss(**{"logits": Z, "y": Y, **wrong})
