"""`reparameterise`: a draw from a diagonal Gaussian and its divergence from the standard one, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_tensors
from robustfast.reference import reparameterise as reference

__all__ = ["reparameterise"]


def reparameterise(mean: Tensor, log_variance: Tensor, *, seed: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """z ~ N(mean, diag exp log_variance), differentiable, and KL(N(mean, diag exp log_variance) | N(0, I)) of each row.

        z = mean + exp(log_variance / 2) * noise,        kl = 1/2 sum (mean^2 + exp(log_variance) - 1 - log_variance)

    Kingma and Welling 2014 (arXiv:1312.6114), section 2.4 and appendix B. The noise is a pure function of seed, sample
    index and entry, the numbers of `robustfast.attacks.draws.normal`: Philox 4x32-10 with the key `seed` and the
    counter (quad, 3, low and high word of the index); entry e of L takes word e as the radius and word L + e as the
    angle of Box and Muller. One pass forward, which keeps exp(log_variance / 2) * noise, and one backward. All is
    computed in float64 and rounded once: backends differ by the order of one sum and the last place of an exponential.
    There is no second derivative.

    Args:
        mean, log_variance: [B, L], float32 or float64, any strides.
        seed: 0 <= seed < 2**63, for example from `robustfast.seeds.derive`.
        index: int64 [B], each sample's number in the data set.

    Returns:
        (z [B, L], kl [B]) in the dtype of `mean`.

    Raises:
        TypeError: no tensor, a wrong dtype, or a seed that is no int.
        ValueError: a wrong shape, device or range. Values of tensors are not looked at (that would synchronise).
    """
    _check(mean, log_variance, seed, index)
    z, kl, _ = select("reparameterise", mean.device)(mean, log_variance, seed, index)
    return z, kl


def _check(mean: Tensor, log_variance: Tensor, seed: int, index: Tensor) -> None:
    name = "reparameterise"
    check_tensors(name, mean=mean, log_variance=log_variance, index=index)
    if mean.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: mean is {mean.dtype}, expected float32 or float64")
    if mean.dim() != 2:
        raise ValueError(f"{name}: mean has shape {tuple(mean.shape)}, expected [B, L]")
    if mean.shape[1] > 2**29:
        raise ValueError(
            f"{name}: mean has shape {tuple(mean.shape)}, expected at most 2**29 entries a sample"
        )
    if log_variance.dtype != mean.dtype:
        raise TypeError(f"{name}: log_variance is {log_variance.dtype}, expected that of mean, {mean.dtype}")
    if log_variance.shape != mean.shape:
        raise ValueError(
            f"{name}: log_variance has shape {tuple(log_variance.shape)}, expected that of mean, {tuple(mean.shape)}"
        )
    if index.dtype != torch.int64:
        raise TypeError(f"{name}: index is {index.dtype}, expected torch.int64")
    if index.shape != mean.shape[:1]:
        raise ValueError(
            f"{name}: index has shape {tuple(index.shape)}, expected {tuple(mean.shape[:1])}, one for each sample"
        )
    for other, tensor in (("log_variance", log_variance), ("index", index)):
        if tensor.device != mean.device:
            raise ValueError(
                f"{name}: {other} is on {tensor.device}, expected the device of mean, {mean.device}"
            )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{name}: seed is a {type(seed).__name__}, expected an int in [0, 2**63)")
    if not 0 <= seed <= 2**63 - 1:
        raise ValueError(f"{name}: seed is {seed}, expected an int in [0, 2**63)")


def _fake(mean: Tensor, log_variance: Tensor, seed: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return mean.new_empty(mean.shape), mean.new_empty(mean.shape[0]), mean.new_empty(mean.shape)


def _fake_backward(
    grad_z: Tensor, grad_kl: Tensor, mean: Tensor, log_variance: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape), mean.new_empty(mean.shape)


def _gradient(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        mean, log_variance, _, _ = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(mean, log_variance, output[2])

    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor, _: object) -> tuple[Any, ...]:
        return *library.reparameterise_backward(grad_z, grad_kl, *ctx.saved_tensors), None, None

    return setup_context, backward


def _no_second_derivative(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "reparameterise has no second derivative; robustfast.reference.reparameterise, plain PyTorch, has"
        )

    return lambda ctx, inputs, output: None, backward


register(
    "reparameterise",
    "(Tensor mean, Tensor log_variance, SymInt seed, Tensor index) -> (Tensor, Tensor, Tensor)",
    reference=reference.reparameterise,
    fake=_fake,
    triton="reparameterise:launch",
    gradient=_gradient,
)
register(
    "reparameterise_backward",
    "(Tensor grad_z, Tensor grad_kl, Tensor mean, Tensor log_variance, Tensor shift) -> (Tensor, Tensor)",
    reference=reference.reparameterise_backward,
    fake=_fake_backward,
    triton="reparameterise:launch_backward",
    gradient=_no_second_derivative,
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def call(label: str, B: int, L: int, dtype: torch.dtype = torch.float32) -> Sample:
        generator = torch.Generator().manual_seed(B + L)
        moments = torch.randn(2, B, L, generator=generator, dtype=torch.float64)
        index = torch.tensor([5, 2**40 + 1, 0, 7, 11, 2**62])[:B].to(device)
        mean, log_variance = (t.to(device, dtype).requires_grad_() for t in moments)
        rule = {"seed": 0x1234567_89ABCDEF, "index": index}
        return Sample(label, (mean, log_variance), rule, exact=False)

    yield call("digits", 4, 64)
    yield call("odd", 3, 77)
    yield call("one-entry", 6, 1)
    yield call("two-more-than-quads", 2, 262)
    yield call("cifar", 2, 2048)
    yield call("large", 1, 5003)
    yield call("double", 4, 65, torch.float64)
    yield call("empty", 0, 8)
    yield call("no-entries", 2, 0)


OPS["reparameterise"] = Op(
    "reparameterise", reparameterise, _samples, ("reparameterise", "reparameterise_backward")
)
