from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agrees, results
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from robustfast import use_backend
from robustfast.ops import OPS, asymmetric_cross_entropy, backends
from robustfast.ops.asymmetric_cross_entropy import TERMS
from robustfast.ops.backend import Sample

HERE = [
    name
    for name, reason in backends()["asymmetric_cross_entropy"].items()
    if reason is None and name != "cuda"
]
LIBRARY = {"reference": "robustfast_reference", "triton": "robustfast_triton"}
EVERY = tuple(TERMS)
SAMPLES = list(OPS["asymmetric_cross_entropy"].samples(torch.device("cpu")))


def low_level(backend: str) -> Any:
    return getattr(torch.ops, LIBRARY.get(backend, "robustfast"))


def batch(
    B: int = 9, C: int = 10, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Logits for every term, labels, predictions: about one in C of them is right."""
    generator = torch.Generator().manual_seed(seed)
    logits = [
        (torch.randn(B, C, generator=generator, dtype=torch.float64) * 3).to(dtype).requires_grad_()
        for _ in EVERY
    ]
    y, yhat_s, yhat_n = torch.randint(C, (3, B), generator=generator)
    return logits, y, {"yhat_s": yhat_s, "yhat_n": yhat_n}


def as_people_write_it(logits: Sequence[Tensor], y: Tensor, yhat_s: Tensor, yhat_n: Tensor) -> list[Tensor]:
    """Equations 6 to 11 term by term: pick the samples that are kept, sum, divide by the full batch."""
    kept_s, kept_n = yhat_s != y, yhat_n != y
    st_s, st_r, st_n, as_r, as_n, ar, an = logits

    def masked(term: Tensor, label: Tensor, kept: Tensor) -> Tensor:
        return F.cross_entropy(term[kept], label[kept], reduction="sum") / len(y)

    return [
        F.cross_entropy(st_s, y),
        F.cross_entropy(st_r, y),
        F.cross_entropy(st_n, y),
        masked(as_r, y, kept_s),
        masked(as_n, yhat_s, kept_s),
        F.cross_entropy(ar, y),
        masked(an, yhat_n, kept_n),
    ]


@pytest.mark.parametrize("backend", HERE)
@settings(max_examples=40)
@given(B=st.integers(1, 12), C=st.sampled_from([1, 2, 3, 8, 10, 17, 40]), seed=st.integers(0, 1000))
def test_equals_cross_entropy_term_by_term(backend: str, B: int, C: int, seed: int) -> None:
    logits, y, predictions = batch(B, C, seed)
    expected = as_people_write_it(logits, y, **predictions)
    with use_backend(backend):
        values = asymmetric_cross_entropy(logits, y, terms=EVERY, **predictions)
        weights = torch.arange(1.0, 8.0, dtype=torch.float64)
        ours = torch.autograd.grad((weights * values).sum(), logits)
    theirs = torch.autograd.grad(sum(w * v for w, v in zip(weights, expected, strict=True)), logits)
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-12, atol=1e-14)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("backend", HERE)
def test_hand_computed(backend: str) -> None:
    """Two samples, two classes: the first gives class 1 the odds 3 to 1, the second cannot tell. y = (1, 0)."""
    x = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]], requires_grad=True)
    right, wrong, even = math.log(4 / 3), math.log(4), math.log(2)
    y, fooled = torch.tensor([1, 0]), {"yhat_s": torch.tensor([0, 0]), "yhat_n": torch.tensor([1, 1])}
    with use_backend(backend):
        values = asymmetric_cross_entropy([x] * 7, y, terms=EVERY, **fooled)
        gradients = [torch.autograd.grad(v, x, retain_graph=True)[0].flatten().tolist() for v in values]
    every = (right + even) / 2
    # x_s fools the first sample (yhat_s 0 instead of 1), x_n the second (yhat_n 1 instead of 0).
    assert values.tolist() == pytest.approx([every, every, every, right / 2, wrong / 2, every, even / 2])
    st, as_r, as_n, an = gradients[0], gradients[3], gradients[4], gradients[6]
    assert st == pytest.approx([0.125, -0.125, -0.25, 0.25])
    assert as_r == pytest.approx([0.125, -0.125, 0, 0])
    assert as_n == pytest.approx([-0.375, 0.375, 0, 0])
    assert an == pytest.approx([0, 0, 0.25, -0.25])


@pytest.mark.parametrize("backend", HERE)
def test_nothing_kept_is_exactly_zero(backend: str) -> None:
    logits, y, _ = batch(dtype=torch.float32)
    terms = ("as_r", "as_n", "an")
    logits = [term.detach().fill_(torch.nan).requires_grad_() for term in logits[:3]]
    with use_backend(backend):
        values = asymmetric_cross_entropy(logits, y, terms=terms, yhat_s=y, yhat_n=y)
        gradients = torch.autograd.grad(values.sum(), logits)
    assert values.tolist() == [0, 0, 0]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("backend", HERE)
def test_all_kept_is_the_plain_mean(backend: str) -> None:
    logits, y, _ = batch(dtype=torch.float32)
    wrong = (y + 1) % 10
    with use_backend(backend):
        values = asymmetric_cross_entropy(logits, y, terms=EVERY, yhat_s=wrong, yhat_n=wrong)
    labels = [y, y, y, y, wrong, y, wrong]
    expected = [F.cross_entropy(term, label) for term, label in zip(logits, labels, strict=True)]
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-6, atol=0)


def gradients(logits: Sequence[Tensor], *arguments: Any, **kwargs: Any) -> list[Tensor]:
    logits = [term.detach().requires_grad_() for term in logits]
    return list(torch.autograd.grad(asymmetric_cross_entropy(logits, *arguments, **kwargs).sum(), logits))


@pytest.mark.parametrize("backend", [name for name in HERE if name != "reference"])
@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.label for sample in SAMPLES])
def test_gradients_agree(backend: str, sample: Sample) -> None:
    assert_agrees(gradients, sample, results(gradients, backend, *sample.args, **sample.kwargs))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gradients_agree_on_a_gpu(backend: str) -> None:
    for sample in OPS["asymmetric_cross_entropy"].samples(torch.device("cuda")):
        assert_agrees(gradients, sample, results(gradients, backend, *sample.args, **sample.kwargs))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_count_in_float32(backend: str, dtype: torch.dtype) -> None:
    logits, y, predictions = batch(17, dtype=dtype)
    wide = [term.detach().float().requires_grad_() for term in logits]
    with use_backend(backend):
        values, ours = (
            f(logits, y, terms=EVERY, **predictions) for f in (asymmetric_cross_entropy, gradients)
        )
        exact, theirs = (
            f(wide, y, terms=EVERY, **predictions) for f in (asymmetric_cross_entropy, gradients)
        )
    assert values.dtype == torch.float32
    assert torch.equal(values, exact)
    if backend == "triton" and dtype == torch.bfloat16:
        return  # its interpreter cuts float32 to bfloat16 where a GPU rounds
    assert all(torch.equal(got, wanted.to(dtype)) for got, wanted in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("C", [4, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["label", "elsewhere", "everywhere"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # its interpreter is NumPy, which warns of NaN
def test_hostile_logits_as_in_cross_entropy(backend: str, C: int, value: float, place: str) -> None:
    x = torch.randn(3, C, generator=torch.Generator().manual_seed(0))
    x[1, {"label": 2, "elsewhere": 1, "everywhere": slice(None)}[place]] = value
    x.requires_grad_()
    y = torch.tensor([0, 2, 1])
    plain = F.cross_entropy(x, y)
    with use_backend(backend):
        ours = asymmetric_cross_entropy([x], y, terms=["ar"])
    torch.testing.assert_close(ours[0], plain, equal_nan=True)
    (got,), (wanted,) = (torch.autograd.grad(loss, x) for loss in (ours.sum(), plain))
    torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("backend", HERE)
def test_large_and_tiny_logits(backend: str) -> None:
    """No overflow, and differences that exp cannot hold vanish."""
    x = torch.tensor([[1e30, -1e30], [3e4, 3e4], [-87.0, 0.0], [-88.0, 0.0], [-200.0, 0.0]])
    y = torch.tensor([0, 1, 1, 1, 0])
    with use_backend(backend):
        losses = [
            asymmetric_cross_entropy([row[None]], label[None], terms=["ar"]).item()
            for row, label in zip(x, y, strict=True)
        ]
    assert losses == pytest.approx([0, math.log(2), 0, 0, 200])


@pytest.mark.parametrize("backend", HERE)
def test_only_kept_samples_are_looked_at(backend: str) -> None:
    """NaN logits of a sample that as_n and an leave out do not show, nor in the gradient."""
    logits, y, _ = batch(4, 5, dtype=torch.float32)
    guess = (y + torch.tensor([1, 0, 2, 0])) % 5
    clean = [term.detach() for term in logits[:2]]
    dirty = [torch.where((guess == y)[:, None], torch.nan, term) for term in clean]
    with use_backend(backend):
        call = {"terms": ("as_n", "an"), "yhat_s": guess, "yhat_n": guess}
        assert torch.equal(
            asymmetric_cross_entropy(dirty, y, **call), asymmetric_cross_entropy(clean, y, **call)
        )
        for ours, theirs in zip(gradients(dirty, y, **call), gradients(clean, y, **call), strict=True):
            assert torch.equal(ours, theirs)
            assert not ours[guess == y].any()


@pytest.mark.parametrize("label", [-100, -1, 10, 2**40])
@pytest.mark.parametrize("term", ["ar", "as_n", "an"])
@pytest.mark.parametrize("backend", HERE)
def test_a_label_that_is_no_class(backend: str, term: str, label: int) -> None:
    """An error on the CPU; NaN, and nothing read out of bounds, from kernels that cannot look without waiting."""
    logits, y, predictions = batch(dtype=torch.float32)
    labels = {"y": y.clone(), **predictions}
    labels[{"ar": "y", "as_n": "yhat_s", "an": "yhat_n"}[term]][3] = label
    with use_backend(backend):
        if backend == "triton":
            x = logits[0]
            value = asymmetric_cross_entropy([x], terms=[term], **labels)
            (gradient,) = torch.autograd.grad(value.sum(), x)
            assert value.isnan().all()
            assert gradient[3].isnan().all()
            assert not gradient[[0, 1, 2, 4]].isnan().any()
        else:
            message = rf"^asymmetric_cross_entropy: label {label}, expected 0 to 9 for 10 classes$"
            with pytest.raises(RuntimeError, match=message):
                asymmetric_cross_entropy(logits[:1], terms=[term], **labels)


def test_only_the_logits_that_ask_get_a_gradient() -> None:
    logits, y, predictions = batch()
    logits[1] = logits[1].detach()
    values = asymmetric_cross_entropy(logits, y, terms=EVERY, **predictions)
    values.sum().backward()
    assert [term.grad is None for term in logits] == [False, True] + [False] * 5


@pytest.mark.parametrize("backend", HERE)
def test_gradcheck(backend: str) -> None:
    logits, y = batch(2, 2)[0], torch.tensor([0, 1])
    predictions = {"yhat_s": torch.tensor([0, 0]), "yhat_n": torch.tensor([1, 1])}
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda *terms: asymmetric_cross_entropy(terms, y, terms=EVERY, **predictions), logits
        )


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("required", [[], [0], [0, 1, 2]])
def test_opcheck_with_gradients(backend: str, required: list[int]) -> None:
    logits, y, predictions = batch(5, 4, dtype=torch.float32)
    logits = [term.detach().requires_grad_(i in required) for i, term in enumerate(logits[:3])]
    arguments = (logits, y, *predictions.values(), [0, 2, 3])
    opcheck(low_level(backend).asymmetric_cross_entropy.default, arguments)
    plain = ([term.detach() for term in logits], *arguments[1:])
    opcheck(low_level(backend).asymmetric_cross_entropy_backward.default, (torch.ones(3), *plain))


@pytest.mark.parametrize("backend", HERE)
def test_a_second_derivative_is_refused(backend: str) -> None:
    logits, y, predictions = batch()
    with use_backend(backend):
        total = asymmetric_cross_entropy(logits, y, terms=EVERY, **predictions).sum()
        (g, *_) = torch.autograd.grad(total, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="asymmetric_cross_entropy has no second derivative"):
            g.sum().backward()


def test_compiles_with_its_gradient() -> None:
    torch._dynamo.reset()

    def loss(*logits_and_labels: Tensor) -> Tensor:
        *logits, y, yhat_s, yhat_n = logits_and_labels
        return asymmetric_cross_entropy(logits, y, terms=EVERY, yhat_s=yhat_s, yhat_n=yhat_n).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for B in (8, 12):
        logits, y, predictions = batch(B, dtype=torch.float32)
        arguments = (*logits, y, *predictions.values())
        for f in (loss, compiled):
            value = f(*arguments)
            torch.testing.assert_close(value, sum(as_people_write_it(logits, y, **predictions)))
            expected = torch.autograd.grad(loss(*arguments), logits)
            for ours, theirs in zip(torch.autograd.grad(value, logits), expected, strict=True):
                assert torch.equal(ours, theirs)


def test_threads_do_not_change_a_bit() -> None:
    logits, y, predictions = batch(700, 100, dtype=torch.float32)
    call = {"terms": EVERY, **predictions}
    threads = torch.get_num_threads()
    alone = [asymmetric_cross_entropy(logits, y, **call), *gradients(logits, y, **call)]
    torch.set_num_threads(4)
    try:
        together = [asymmetric_cross_entropy(logits, y, **call), *gradients(logits, y, **call)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_triton_launches_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" not in HERE:
        pytest.skip("triton cannot run here")
    from robustfast.kernels import asymmetric_cross_entropy as kernels

    launches: Counter[str] = Counter()

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launches[self.name] += 1
            return self.kernel[grid]

    for name in ("_forward_kernel", "_backward_kernel"):
        monkeypatch.setattr(kernels, name, Kernel(name))
    logits, y, predictions = batch(dtype=torch.float32)
    with use_backend("triton"):
        gradients(logits, y, terms=EVERY, **predictions)
    assert launches == {"_forward_kernel": 1, "_backward_kernel": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_one_kernel_each_way_on_a_gpu(backend: str) -> None:
    logits, y, predictions = batch(128, dtype=torch.float32)
    arguments = ([t.detach().cuda() for t in logits], y.cuda(), *(t.cuda() for t in predictions.values()))
    rules, grad = [0, 0, 0, 1, 2, 0, 3], torch.ones((), device="cuda").expand(7)

    def both() -> None:
        low_level(backend).asymmetric_cross_entropy(*arguments, rules)
        low_level(backend).asymmetric_cross_entropy_backward(grad, *arguments, rules)

    both()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        both()
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 2, kernels


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_label_that_is_no_class_on_a_gpu(backend: str) -> None:
    logits, y, _ = batch(dtype=torch.float32)
    y[3] = 10
    with use_backend(backend):
        assert asymmetric_cross_entropy([logits[0].cuda()], y.cuda(), terms=["ar"]).isnan().all()


LOGITS, Y, PREDICTIONS = batch(dtype=torch.float32)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"terms": ("st",)}, ValueError, "term 'st', expected some of st_s, st_r, st_n, as_r, as_n, ar, an"),
        ({"terms": ()}, ValueError, r"terms are \(\), expected one or more, each once"),
        ({"terms": ("ar", "ar")}, ValueError, r"terms are \('ar', 'ar'\), expected one or more, each once"),
        ({"logits": LOGITS[:2]}, ValueError, "2 logits for 1 terms, expected one for each"),
        ({"logits": [torch.zeros(9)]}, ValueError, r"logits have shape \(9,\), expected \[B, C\]"),
        (
            {"logits": [torch.zeros(0, 10)], "y": Y[:0]},
            ValueError,
            r"logits have shape \(0, 10\), expected \[B, C\]",
        ),
        (
            {"logits": [torch.zeros(9, 10).long()]},
            TypeError,
            "logits are torch.int64, expected a floating dtype",
        ),
        (
            {"logits": [LOGITS[0], LOGITS[1][:, :9]], "terms": ("st_s", "st_r")},
            ValueError,
            r"logits of st_r have shape \(9, 9\), expected that of st_s, \(9, 10\)",
        ),
        (
            {"logits": [LOGITS[0], LOGITS[1].half()], "terms": ("st_s", "st_r")},
            TypeError,
            "logits of st_r are torch.float16, expected that of st_s, torch.float32",
        ),
        (
            {"logits": [torch.zeros(9, 10, device="meta")]},
            ValueError,
            "logits of ar are on meta, expected the device",
        ),
        ({"logits": [None]}, TypeError, "logits of ar is NoneType, expected a tensor"),
        ({"y": None}, TypeError, "y is NoneType, expected a tensor"),
        ({"yhat_s": [1]}, TypeError, "yhat_s is list, expected a tensor"),
        ({"y": Y.int()}, TypeError, "y is torch.int32, expected torch.int64"),
        ({"y": Y[:5]}, ValueError, r"y has shape \(5,\), expected \(9,\), one for each sample"),
        ({"terms": ("as_n",)}, ValueError, "yhat_s is missing, and as_n needs it"),
        ({"terms": ("an",), "yhat_s": Y}, ValueError, "yhat_n is missing, and an needs it"),
        ({"yhat_s": Y[:5]}, ValueError, r"yhat_s has shape \(5,\), expected \(9,\)"),
        ({"yhat_n": Y.to("meta")}, ValueError, "yhat_n is on meta, expected the device of y, cpu"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="asymmetric_cross_entropy: " + message):
        asymmetric_cross_entropy(**{"logits": LOGITS[:1], "y": Y, "terms": ("ar",), **wrong})
