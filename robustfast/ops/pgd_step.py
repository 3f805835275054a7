"""`pgd_step`: one attack step, projection and clip, fused into one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.sizes import per_sample, radius
from robustfast.ops.tensors import check_pixels, check_tensors, check_writable
from robustfast.reference import pgd_step as reference

__all__ = ["check_rule", "pgd_step"]

NORMS = ("linf", "l2", "l1")
STEPS = ("sign", "grad", "topq")
_AUTO = {"linf": "sign", "l2": "grad", "l1": "topq"}


def pgd_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    step: str = "auto",
    q: float = 0.01,
    out: Tensor | None = None,
) -> Tensor:
    """One step of projected gradient ascent: step, project onto the eps-ball around `x`, clip to `bounds`.

    ``clip(x + project(x_adv + step_size * direction(grad) - x))``, in that order: Madry et al. 2018
    (arXiv:1706.06083), section 2.1. Clipping after projecting keeps the point in the ball for every `x` inside
    `bounds`; the pair is not the Euclidean projection onto the intersection of ball and box.

    The direction, by `step`:

    * ``"sign"``: the sign of the gradient, sign(0) = 0. The linf rule; under "l2" it is the step of the AAT paper,
      whose attacks follow YOPO (Zhang et al. 2019), so its "l2" numbers need it.
    * ``"grad"``: the gradient divided by its own norm. The l2 rule everywhere; under "l1" the step of Foolbox, which
      the l1 columns of AFD (Bashivan et al. 2021) use.
    * ``"topq"``: signs of the ``max(1, round(q * n))`` largest entries (all entries tied with the smallest of them),
      divided by their number: the sparse l1 steepest ascent of SLIDE (Tramer & Boneh 2019, arXiv:1904.13000,
      algorithm 1), with q = 0.01 for CIFAR-10.
    * ``"auto"``: "sign" for linf, "grad" for l2, "topq" for l1.

    The l1 projection is exact and Euclidean (Duchi et al. 2008, figure 1), not a rescaling.

    Hostile gradients never make NaN: a NaN entry counts as zero; under "grad" and "topq" a sample whose gradient is
    zero or holds an infinite entry stays where it is; under "sign" an infinite entry steps by its sign.

    Args:
        x_adv, x: images [B, ...], float32 or float64, same shape, dtype and device. Contiguous or channels-last
            memory is read as it lies; an input laid out otherwise than the result costs one copy.
        grad: ascent direction [B, ...]; float32, bfloat16, float16, or float64 for float64 images.
        step_size: pixel units; float, or tensor [] or [B] of the images' dtype. Negative descends (targeted attacks).
        eps: radius in pixel units; float, or tensor [] or [B] of the images' dtype.
        norm: "linf", "l2" or "l1".
        bounds: lowest and highest pixel value.
        step: see above.
        q: fraction of the entries of a sample that a "topq" step moves, in (0, 1].
        out: written instead of a new tensor; may be `x_adv` itself.

    Returns:
        `out`, or a new tensor like `x_adv`. It never requires a gradient.

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape, device, name or range; an expanded `out`. Values of tensors are not looked
            at (that would synchronise).
    """
    rule = check_rule(norm, step, q, bounds)
    _check(x_adv, grad, x, norm, rule, out)
    step_size = per_sample("pgd_step", "step_size", step_size, x)
    eps = radius("pgd_step", eps, x, norm, bounds)
    k = max(1, round(q * math.prod(x.shape[1:]))) if rule == "topq" else 0
    if out is None:
        out = torch.empty_like(x_adv)
    arguments = (x_adv, grad, x, step_size, eps, NORMS.index(norm), STEPS.index(rule), k, *bounds)
    select("pgd_step", x.device)(*arguments, out=out)
    return out


def check_rule(norm: str, step: str, q: float, bounds: tuple[float, float]) -> str:
    """The direction behind `step`: what `pgd_step` checks of its arguments before it looks at a tensor.

    Raises:
        ValueError: a wrong name or range.
    """
    rule = _AUTO.get(norm, "sign") if step == "auto" else step
    if norm not in NORMS:
        raise ValueError(f"pgd_step: norm is {norm!r}, expected one of {', '.join(NORMS)}")
    if rule not in STEPS:
        raise ValueError(f"pgd_step: step is {rule!r}, expected 'auto' or one of {', '.join(STEPS)}")
    if rule == "topq" and norm != "l1":
        raise ValueError(f"pgd_step: step 'topq' is the l1 rule, norm is {norm!r}; use step 'auto'")
    if not 0 < q <= 1:
        raise ValueError(f"pgd_step: q is {q}, expected a fraction in (0, 1]")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"pgd_step: bounds are {bounds}, expected (lowest, highest) with lowest < highest")
    return rule


def _check(x_adv: Tensor, grad: Tensor, x: Tensor, norm: str, step: str, out: Tensor | None) -> None:
    # Plain `raise`: torch._check with a message that closes over a tensor breaks fullgraph tracing.
    check_tensors("pgd_step", x_adv=x_adv, grad=grad, x=x)
    check_pixels("pgd_step", x)
    if out is not None:
        check_tensors("pgd_step", out=out)
        check_writable("pgd_step", out)
    if not grad.dtype.is_floating_point or (grad.dtype == torch.float64 and x.dtype == torch.float32):
        raise TypeError(
            f"pgd_step: grad is {grad.dtype}, expected float32, bfloat16, float16 or the dtype of x, {x.dtype}"
        )
    for name, tensor in (("x_adv", x_adv), ("grad", grad), ("out", out)):
        if tensor is None:
            continue
        if tensor.shape != x.shape:
            raise ValueError(
                f"pgd_step: {name} has shape {tuple(tensor.shape)}, expected that of x, {tuple(x.shape)}"
            )
        if tensor.device != x.device:
            raise ValueError(f"pgd_step: {name} is on {tensor.device}, expected the device of x, {x.device}")
        if name != "grad" and tensor.dtype != x.dtype:
            raise TypeError(f"pgd_step: {name} is {tensor.dtype}, expected that of x, {x.dtype}")
    if x.dim() < 2 and (norm != "linf" or step != "sign"):
        raise ValueError(
            f"pgd_step: x has shape {tuple(x.shape)}, expected [B, ...] to take the {norm} norm of each sample"
        )


def _reference(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: Tensor, norm: int, step: int, k: int,
    lo: float, hi: float, *, out: Tensor,
) -> None:  # fmt: skip
    names = {"norm": NORMS[norm], "step": STEPS[step]}
    out.copy_(reference.pgd_step(x_adv, grad, x, step_size, eps, k=k, bounds=(lo, hi), **names))


def _fake(*args: object, out: Tensor) -> None:
    return None


register(
    "pgd_step",
    "(Tensor x_adv, Tensor grad, Tensor x, Tensor step_size, Tensor eps, int norm, int step, SymInt k, float lo,"
    " float hi, *, Tensor(a!) out) -> ()",
    reference=_reference,
    fake=_fake,
    triton="pgd_step:launch",
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def images(
        *shape: int, dtype: torch.dtype = torch.float32, grad: torch.dtype | None = None
    ) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        x_adv = (x + torch.empty_like(x).uniform_(-0.1, 0.1, generator=generator)).clamp(0, 1)
        g = torch.randn(shape, generator=generator, dtype=torch.float64) * 1e-3
        g.flatten()[::5] = 0
        return x_adv.to(device, dtype), g.to(device, grad or dtype), x.to(device, dtype)

    for norm, eps, step_size in (("linf", 8 / 255, 2 / 255), ("l2", 0.5, 0.1), ("l1", 12.0, 1.0)):
        steps = ("sign",) if norm == "linf" else ("sign", "grad") if norm == "l2" else STEPS
        for step in steps:
            rule = {"norm": norm, "step": step, "eps": eps, "step_size": step_size}
            exact = norm == "linf"
            yield Sample(f"{norm}-{step}", images(4, 3, 8, 8), rule, exact)
            yield Sample(f"{norm}-{step}-odd", images(3, 1, 7, 5), rule, exact)
            yield Sample(f"{norm}-{step}-double", images(2, 3, 5, 5, dtype=torch.float64), rule, exact)
            yield Sample(f"{norm}-{step}-bf16", images(2, 3, 9, 9, grad=torch.bfloat16), rule, exact)
            yield Sample(f"{norm}-{step}-fp16", images(2, 3, 9, 9, grad=torch.float16), rule, exact)
            sizes = {
                "eps": eps * torch.linspace(0, 1, 5, device=device),
                "step_size": torch.linspace(-step_size, step_size, 5, device=device),
            }
            yield Sample(f"{norm}-{step}-per-sample", images(5, 3, 4, 4), {**rule, **sizes}, exact)
            yield Sample(f"{norm}-{step}-empty", images(0, 3, 4, 4), rule, exact)
            yield Sample(f"{norm}-{step}-large", images(2, 3, 41, 41), rule, exact)
            if norm != "linf":
                # What one block holds in registers, what several blocks share, and what no 16-byte vectors fill.
                yield Sample(f"{norm}-{step}-32", images(2, 3, 32, 32, grad=torch.bfloat16), rule, exact)
                yield Sample(f"{norm}-{step}-64", images(2, 3, 64, 64), rule, exact)
                yield Sample(f"{norm}-{step}-53", images(2, 3, 53, 53), rule, exact)


OPS["pgd_step"] = Op("pgd_step", pgd_step, _samples, ("pgd_step",))
