from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from robustfast import use_backend
from robustfast.ops import OPS, backends, dlr_loss

HERE = [name for name, reason in backends()["dlr_loss"].items() if reason is None and name != "cuda"]
LIBRARY = {"reference": "robustfast_reference", "triton": "robustfast_triton"}
SAMPLES = list(OPS["dlr_loss"].samples(torch.device("cpu")))


def plain(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """By sorting all classes, as in the authors' code; stable, where they leave ties to chance."""
    z = logits.sort(dim=1, descending=True, stable=True).values
    own = logits.gather(1, y[:, None]).squeeze(1)
    if target is not None:
        other = logits.gather(1, target[:, None]).squeeze(1)
        return -(own - other) / (z[:, 0] - 0.5 * (z[:, 2] + z[:, 3]) + 1e-12)
    first = logits.argsort(dim=1, descending=True, stable=True)[:, 0] == y
    return -(own - torch.where(first, z[:, 1], z[:, 0])) / (z[:, 0] - z[:, 2] + 1e-12)


def gradient(loss: Any, logits: Tensor, *labels: Tensor, **kwargs: Any) -> Tensor:
    """Of a sum with a weight of its own for each sample."""
    leaf = logits.detach().requires_grad_()
    values = loss(leaf, *labels, **kwargs)
    return torch.autograd.grad((values * torch.arange(1.0, len(leaf) + 1)).sum(), leaf)[0]


@pytest.mark.parametrize("backend", HERE)
def test_by_hand(backend: str) -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, -2.0]], dtype=torch.float64)
    y, target = torch.tensor([0, 2]), torch.tensor([3, 0])
    with use_backend(backend):
        assert dlr_loss(logits, y).tolist() == pytest.approx([-1 / 1.5, 2 / 3])
        # Gaps to the means of 0.5 and -1, and of 0 and -2.
        assert dlr_loss(logits, y, target=target).tolist() == pytest.approx([-1.5 / 2.25, -1 / 4])
        # d(num) / gap at the classes of the numerator, -num / gap^2 at those of the gap.
        rows = gradient(dlr_loss, logits, y) / torch.tensor([[1.0], [2.0]])
    first, second = -1 / 1.5 + 1 / 1.5**2, 1 / 1.5
    assert rows[0].tolist() == pytest.approx([first, second, 0, -1 / 1.5**2])
    assert rows[1].tolist() == pytest.approx([2 / 9, 1 / 3 - 2 / 9, -1 / 3, 0])


@pytest.mark.parametrize("backend", HERE)
def test_where_all_logits_are_equal(backend: str) -> None:
    """Nothing but 1e-12 is left of the gap: the loss is 0, and the lowest classes get the gradient."""
    logits, y = torch.zeros(2, 5), torch.tensor([0, 3])
    with use_backend(backend):
        assert dlr_loss(logits, y).tolist() == [0, 0]
        ours = gradient(dlr_loss, logits, y)
    assert ours.isfinite().all()
    assert (ours != 0).tolist() == [[True, True, False, False, False], [True, False, False, True, False]]


@pytest.mark.parametrize("backend", HERE)
def test_neither_shift_nor_scale_changes_it(backend: str) -> None:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(6)
    with use_backend(backend):
        for target in (None, y + 4):
            torch.testing.assert_close(
                dlr_loss(1e3 * logits + 7, y, target=target), dlr_loss(logits, y, target=target)
            )


@pytest.mark.parametrize("backend", HERE)
@settings(max_examples=30)
@given(
    B=st.integers(1, 9),
    K=st.sampled_from([4, 5, 8, 17, 40]),
    seed=st.integers(0, 999),
    targeted=st.booleans(),
)
def test_the_bits_of_the_plain_form_and_of_its_autograd(
    backend: str, B: int, K: int, seed: int, targeted: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Rounded so that some classes tie: a stable sort has the first of them in front.
    logits = (torch.randn(B, K, generator=generator) * 8).round() / 2
    y, target = torch.randint(K, (2, B), generator=generator)
    target = (y + 1 + target % (K - 1)) % K if targeted else None
    with use_backend(backend):
        assert torch.equal(dlr_loss(logits, y, target=target), plain(logits, y, target))
        ours = gradient(dlr_loss, logits, y, target=target)
    assert torch.equal(ours, gradient(plain, logits, y, target=target))


@pytest.mark.parametrize("backend", [name for name in HERE if name != "reference"])
@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.label for sample in SAMPLES])
def test_gradients_agree(backend: str, sample: Any) -> None:
    if backend == "triton" and sample.args[0].dtype == torch.bfloat16:
        pytest.skip("its interpreter cuts float32 to bfloat16 where a GPU rounds")
    results = []
    for name in ("reference", backend):
        with use_backend(name):
            results.append(gradient(dlr_loss, *sample.args, **sample.kwargs))
    assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gradients_agree_on_a_gpu(backend: str) -> None:
    for sample in OPS["dlr_loss"].samples(torch.device("cuda")):
        results = []
        for name in ("reference", backend):
            with use_backend(name):
                leaf = sample.args[0].detach().requires_grad_()
                loss = dlr_loss(leaf, *sample.args[1:], **sample.kwargs)
                results.append(torch.autograd.grad(loss.sum(), leaf)[0])
        assert torch.equal(*results)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("K", [4, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [2, 1, slice(None)], ids=["label", "elsewhere", "everywhere"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # its interpreter is NumPy, which warns of nan
def test_hostile_logits_as_in_the_plain_form(backend: str, K: int, value: float, place: Any) -> None:
    logits = torch.randn(3, K, generator=torch.Generator().manual_seed(0))
    logits[1, place] = value
    y, target = torch.tensor([0, 2, 1]), torch.tensor([1, 3, 2])
    for wanted in (None, target):
        with use_backend(backend):
            ours = dlr_loss(logits, y, target=wanted)
            rows = gradient(dlr_loss, logits, y, target=wanted)
        torch.testing.assert_close(ours, plain(logits, y, wanted), equal_nan=True, rtol=0, atol=0)
        expected = gradient(plain, logits, y, target=wanted)
        torch.testing.assert_close(rows[[0, 2]], expected[[0, 2]], rtol=0, atol=0)
        # Which classes of the hostile row get a nan is the same, one by one.
        torch.testing.assert_close(rows[1], expected[1], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("label", [-1, 10, 2**40])
@pytest.mark.parametrize("which", ["y", "target"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_label_that_is_no_class_is_nan_in_its_own_row(backend: str, label: int, which: str) -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    labels = {"y": torch.tensor([1, 2, 3, 4]), "target": torch.tensor([5, 6, 7, 8])}
    labels[which][2] = label
    with use_backend(backend):
        values = dlr_loss(logits, **labels)
        ours = gradient(dlr_loss, logits, **labels)
    assert values.isnan().tolist() == [False, False, True, False]
    assert ours.isnan().all(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_count_in_float32(backend: str, dtype: torch.dtype) -> None:
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.tensor([0, 1, 2, 3, 4])
    with use_backend(backend):
        values = dlr_loss(logits, y)
        assert values.dtype == torch.float32
        assert torch.equal(values, dlr_loss(logits.float(), y))
        ours = gradient(dlr_loss, logits, y)
    assert ours.dtype == dtype
    if backend == "triton" and dtype == torch.bfloat16:
        return  # its interpreter cuts float32 to bfloat16 where a GPU rounds
    assert torch.equal(ours, gradient(dlr_loss, logits.float(), y).to(dtype))


@pytest.mark.parametrize("backend", HERE)
def test_gradcheck(backend: str) -> None:
    logits = torch.randn(
        3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda z: dlr_loss(z, torch.tensor([0, 4, 2])), logits)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("targeted", [False, True])
def test_opcheck_with_gradients(backend: str, targeted: bool) -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.tensor([0, 4, 2])
    library = getattr(torch.ops, LIBRARY.get(backend, "robustfast"))
    arguments = (y, y.flip(0) if targeted else None)
    opcheck(library.dlr_loss.default, (logits, *arguments))
    opcheck(library.dlr_loss_backward.default, (torch.ones(3), logits.detach(), *arguments))


def test_a_second_derivative_is_refused() -> None:
    logits = torch.randn(3, 5).requires_grad_()
    (g,) = torch.autograd.grad(dlr_loss(logits, torch.tensor([0, 4, 2])).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="dlr_loss has no second derivative"):
        g.sum().backward()


def test_compiles_with_its_gradient() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, y: dlr_loss(z, y).sum(), fullgraph=True, backend="aot_eager")
    for B in (4, 7):
        logits = torch.randn(B, 6).requires_grad_()
        y = torch.arange(B) % 6
        expected = torch.autograd.grad(dlr_loss(logits, y).sum(), logits)[0]
        assert torch.equal(torch.autograd.grad(compiled(logits, y), logits)[0], expected)


def test_triton_launches_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" not in HERE:
        pytest.skip("triton cannot run here")
    from robustfast.kernels import dlr_loss as kernels

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
        gradient(dlr_loss, torch.randn(4, 10), torch.arange(4))
    assert launches == {"_forward_kernel": 1, "_backward_kernel": 1}


Z, Y = torch.randn(4, 10), torch.arange(4)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"logits": Z[0]}, ValueError, r"logits have shape \(10,\), expected \[B, K\]"),
        ({"logits": Z[:, :2]}, ValueError, r"logits have shape \(4, 2\), .* K >= 3: .*; use loss 'margin'"),
        (
            {"logits": Z[:, :3], "target": Y},
            ValueError,
            r"logits with a target have shape \(4, 3\), .* K >= 4: .*; use loss 'margin'",
        ),
        ({"logits": Z.long()}, TypeError, "logits are torch.int64, expected a floating dtype"),
        ({"logits": None}, TypeError, "logits is NoneType, expected a tensor"),
        ({"y": Y.int()}, TypeError, "y is torch.int32, expected torch.int64"),
        ({"y": Y[:2]}, ValueError, r"y has shape \(2,\), expected \(4,\), one for each sample"),
        ({"y": Y.to("meta")}, ValueError, "y is on meta, expected the device of logits, cpu"),
        ({"target": Y[:2]}, ValueError, r"target has shape \(2,\), expected \(4,\)"),
        ({"target": 3}, TypeError, "target is int, expected a tensor"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="dlr_loss: " + message):
        dlr_loss(**{"logits": Z, "y": Y, **wrong})
