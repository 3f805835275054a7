"""`apgd_track`: everything APGD decides between two steps, in one launch and without asking the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.sizes import per_sample, radius
from robustfast.ops.tensors import check_pixels, check_tensors, check_writable
from robustfast.reference import apgd_track as reference

__all__ = ["apgd_track"]


def apgd_track(
    x_adv: Tensor,
    grad: Tensor,
    loss: Tensor,
    logits: Tensor,
    y: Tensor,
    *,
    x_best: Tensor,
    grad_best: Tensor,
    loss_best: Tensor,
    x_fooled: Tensor,
    fooled: Tensor,
    loss_last: Tensor,
    increases: Tensor,
    loss_checked: Tensor,
    reduced: Tensor,
    step_size: Tensor,
    window: int | Tensor = 0,
    rho: float = 0.75,
    descend: bool = False,
    targeted: bool = False,
    x: Tensor | None = None,
    eps: float | Tensor | None = None,
    sparsity: Tensor | None = None,
    moved: Tensor | None = None,
) -> None:
    """Take in one iterate of APGD: best and fooled images, step sizes, restarts; each sample for itself, in place.

    Croce and Hein 2020 (arXiv:2003.01690), algorithm 1 and section 3.1, as their code has it:

    1. Where the logits' largest entry is not that of `y`, the image goes into `x_fooled` and `fooled` becomes True.
    2. Where the loss is above `loss_best`, image, gradient and loss become the best ones.
    3. Where the loss is above `loss_last`, `increases` counts it.
    4. Where `window` is not 0, the step size is looked at. It was too long where at most ``rho * window`` of the
       steps since the last check raised the loss (condition 1), or where the last check left it as it was and the
       best loss did not rise since (condition 2). Too long: it is halved, and the best image and its gradient are
       where the next step starts. The iterate before it stays, so the momentum then points from there.

    Under l1, which is where `x`, `eps`, `sparsity` and `moved` are given, check 4 is that of APGD-l1 (Croce and Hein
    2021, arXiv:2103.01208, section 4.1): with `moved` the entries in which the best image differed from `x` at the last
    check, and m those in which it does now, the next steps move m / (1.5 n) of the entries. Where m < 0.95 `moved`, the
    step size goes back to `eps` and the best image is where the next step starts; elsewhere the step size is divided by
    1.5, down to ``eps / 10``.

    A state that begins as the authors' does: after the first gradient, `x_best`, `grad_best`, `loss_best`,
    `loss_checked` and `x_fooled` are copies of image, gradient and loss, `fooled` tells who was fooled already,
    `loss_last` and `increases` are zero (so the first step counts as a rise where its loss is positive: their code
    reads a row of zeros there), `reduced` is True, and `step_size` is 2 eps, or eps under l1, where also `sparsity` is
    0.2 and `moved` is n. The paper's algorithm differs in the first step, which it does not count.

    A NaN loss is never the best and never a rise, and any other loss is better than a NaN one. Ties of logits fall to
    the first, NaN logits count as the largest, both as in torch.argmax.

    Rows of images are copied only where one of the above asks for it. Nothing is read back by the host.

    Args:
        x_adv: images [B, ...], float32 or float64. Written where the next step starts elsewhere.
        grad: [B, ...], dtype of the images; the gradient at `x_adv`. Written as `x_adv` is.
        loss: [B], float32 or float64; at `x_adv`, as `grad` and `logits` are.
        logits: [B, K], any floating dtype.
        y: labels int64 [B]; one outside [0, K) is never the largest.
        x_best, grad_best, x_fooled: written; like `x_adv`.
        loss_best, loss_last, loss_checked: written; like `loss`.
        fooled, reduced: written; bool [B].
        increases: written; int64 [B].
        step_size: written; [B], dtype of the images. Negative where `descend`.
        window: steps since the last check, 0 where this is no time for one; int, or int64 tensor [].
        rho: of condition 1.
        descend: look for the smallest loss instead of the largest. The sign of the loss is all that changes.
        targeted: an image is fooled where `y` is the largest logit.
        x: l1: the images around which the ball lies, like `x_adv`.
        eps: l1: radius in pixel units; float, or tensor [] or [B] of the images' dtype.
        sparsity: l1: written; [B], dtype of the images.
        moved: l1: written; int64 [B].

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape or device; an expanded tensor that is written; l1 arguments of which some are missing.
    """
    l1 = {"x": x, "eps": eps, "sparsity": sparsity, "moved": moved}
    missing = [name for name, value in l1.items() if value is None]
    if missing and len(missing) < len(l1):
        raise ValueError(
            f"apgd_track: {', '.join(missing)} not given; the l1 check needs all of {', '.join(l1)}"
        )
    check_tensors("apgd_track", x_adv=x_adv)
    check_pixels("apgd_track", x_adv)
    rows, pixel = (len(x_adv),) if x_adv.dim() else (), x_adv.dtype
    if x_adv.dim() < 2:
        raise ValueError(f"apgd_track: x_adv has shape {tuple(x_adv.shape)}, expected [B, ...]")
    images = {"grad": grad, "x_best": x_best, "grad_best": grad_best, "x_fooled": x_fooled}
    if x is not None:
        images["x"] = x
    for name, image in images.items():
        _check(name, image, x_adv.shape, pixel, x_adv)
    check_tensors("apgd_track", loss=loss, logits=logits)
    if loss.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"apgd_track: loss is {loss.dtype}, expected float32 or float64")
    if logits.dim() != 2 or len(logits) != len(x_adv) or not logits.shape[1]:
        raise ValueError(
            f"apgd_track: logits have shape {tuple(logits.shape)}, expected [{len(x_adv)}, K], one row for each image"
        )
    if not logits.dtype.is_floating_point:
        raise TypeError(f"apgd_track: logits are {logits.dtype}, expected a floating dtype")
    _check("logits", logits, logits.shape, logits.dtype, x_adv)
    losses = {"loss": loss, "loss_best": loss_best, "loss_last": loss_last, "loss_checked": loss_checked}
    flags = {"fooled": fooled, "reduced": reduced}
    counts = {"y": y, "increases": increases} | ({} if moved is None else {"moved": moved})
    sizes = {"step_size": step_size} | ({} if sparsity is None else {"sparsity": sparsity})
    for group, dtype in ((losses, loss.dtype), (flags, torch.bool), (counts, torch.int64), (sizes, pixel)):
        for name, value in group.items():
            _check(name, value, rows, dtype, x_adv)
    written = {"x_adv": x_adv} | images | losses | flags | counts | sizes
    for name, value in written.items():
        if name not in ("x", "loss", "y"):
            check_writable("apgd_track", value, name)
    if not isinstance(window, Tensor):
        window = torch.scalar_tensor(_window(window), dtype=torch.int64)
    elif window.dtype != torch.int64 or window.dim():
        raise TypeError(
            f"apgd_track: window is {window.dtype} {tuple(window.shape)}, expected an int or an int64 tensor []"
        )
    if eps is not None:
        eps = (
            per_sample("apgd_track", "eps", eps, x_adv)
            if isinstance(eps, Tensor)
            else radius("apgd_track", eps, x_adv, "l1", (0.0, 1.0))
        )
    select("apgd_track", x_adv.device)(
        x_adv, grad, loss, logits, y, x_best, grad_best, loss_best, x_fooled, fooled, loss_last, increases,
        loss_checked, reduced, step_size, x, eps, sparsity, moved, window, rho, descend, targeted,
    )  # fmt: skip


def _check(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x_adv: Tensor) -> None:
    check_tensors("apgd_track", **{name: value})
    if value.shape != shape:
        raise ValueError(f"apgd_track: {name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    if value.dtype != dtype:
        raise TypeError(f"apgd_track: {name} is {value.dtype}, expected {dtype}")
    if value.device != x_adv.device:
        raise ValueError(
            f"apgd_track: {name} is on {value.device}, expected the device of x_adv, {x_adv.device}"
        )


def _window(window: object) -> int:
    if not isinstance(window, int) or window < 0:
        raise ValueError(f"apgd_track: window is {window!r}, expected a number of steps, or 0 for no check")
    return window


def _reference(
    x_adv: Tensor, grad: Tensor, loss: Tensor, logits: Tensor, y: Tensor, x_best: Tensor, grad_best: Tensor,
    loss_best: Tensor, x_fooled: Tensor, fooled: Tensor, loss_last: Tensor, increases: Tensor,
    loss_checked: Tensor, reduced: Tensor, step_size: Tensor, x: Tensor | None, eps: Tensor | None,
    sparsity: Tensor | None, moved: Tensor | None, window: Tensor, rho: float, descend: bool, targeted: bool,
) -> None:  # fmt: skip
    reference.apgd_track(
        x_adv, grad, loss, logits, y, x_best=x_best, grad_best=grad_best, loss_best=loss_best, x_fooled=x_fooled,
        fooled=fooled, loss_last=loss_last, increases=increases, loss_checked=loss_checked, reduced=reduced,
        step_size=step_size, x=x, eps=eps, sparsity=sparsity, moved=moved, window=window, rho=rho,
        descend=descend, targeted=targeted,
    )  # fmt: skip


def _fake(*args: object) -> None:
    return None


register(
    "apgd_track",
    "(Tensor(a!) x_adv, Tensor(b!) grad, Tensor loss, Tensor logits, Tensor y, Tensor(c!) x_best,"
    " Tensor(d!) grad_best, Tensor(e!) loss_best, Tensor(f!) x_fooled, Tensor(g!) fooled, Tensor(h!) loss_last,"
    " Tensor(i!) increases, Tensor(j!) loss_checked, Tensor(k!) reduced, Tensor(l!) step_size, Tensor? x, Tensor? eps,"
    " Tensor(m!)? sparsity, Tensor(n!)? moved, Tensor window, float rho, bool descend, bool targeted) -> ()",
    reference=_reference,
    fake=_fake,
    triton="apgd_track:launch",
)

_INPUTS = ("loss", "logits", "y", "x", "eps", "window")


def _on_copies(
    *images: Tensor, window: int | Tensor = 0, rho: float = 0.75, descend: bool = False, targeted: bool = False,
    **state: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The state after one iterate, of copies: what is sampled is called more than once."""
    names = ("x_adv", "grad", "loss", "logits", "y")
    arguments = dict(zip(names, images, strict=True)) | state
    arguments = {
        name: value if name in _INPUTS else value.detach().clone() for name, value in arguments.items()
    }
    apgd_track(**arguments, window=window, rho=rho, descend=descend, targeted=targeted)
    return tuple(value for name, value in arguments.items() if name not in _INPUTS)


def _samples(device: torch.device) -> Iterator[Sample]:
    def state(*shape: int, dtype: torch.dtype = torch.float32, logits: torch.dtype = torch.float32) -> Sample:
        generator = torch.Generator().manual_seed(sum(shape))
        rows = shape[0]

        def draw(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, dtype=torch.float64).to(device, dtype)

        losses = torch.randint(0, 4, (4, rows), generator=generator).to(device, dtype)
        scores = torch.randint(0, 4, (rows, 10), generator=generator).to(device, logits)
        kwargs = dict(zip(("x_best", "grad_best", "x_fooled"), (draw(*shape) for _ in range(3)), strict=True))
        kwargs |= dict(zip(("loss_best", "loss_last", "loss_checked"), losses[1:].unbind(), strict=True))
        flags = torch.randint(0, 2, (2, rows), generator=generator).bool().to(device)
        kwargs |= dict(zip(("fooled", "reduced"), flags.unbind(), strict=True))
        kwargs["increases"] = torch.randint(0, 5, (rows,), generator=generator).to(device)
        kwargs["step_size"] = draw(rows)
        y = torch.randint(0, 4, (rows,), generator=generator).to(device)
        return Sample("", (draw(*shape), draw(*shape), losses[0], scores, y), kwargs)

    def l1(sample: Sample) -> dict[str, Tensor]:
        x = sample.kwargs["x_best"].clone()
        step_size = sample.kwargs["step_size"]
        x.flatten(1)[:, ::2] += 0.25
        n = x[0].numel() if len(x) else 1
        moved = torch.linspace(n / 3, n, len(x), device=device).long()
        return {"x": x, "sparsity": torch.full_like(step_size, 0.2), "moved": moved, "eps": 0.5 + step_size}

    kinds = {
        "": state(8, 3, 8, 8),
        "-odd": state(7, 1, 7, 5),
        "-double": state(5, 3, 5, 5, dtype=torch.float64),
        "-bf16": state(6, 3, 9, 9, logits=torch.bfloat16),
        "-fp16": state(6, 3, 9, 9, logits=torch.float16),
        "-large": state(3, 3, 41, 41),
        "-empty": state(0, 3, 4, 4),
    }
    # Each way, and each size of input.
    ways = {"check": {"window": 5}, "step": {}, "targeted": {"window": 5, "targeted": True}}
    ways |= {"descend": {"window": 5, "descend": True, "rho": 0.5}, "l1": {"window": 5}, "l1-step": {}}
    for way, more in ways.items():
        for kind, sample in kinds.items():
            given = l1(sample) if way.startswith("l1") else {}
            if kind and way not in ("check", "l1"):
                continue
            yield Sample(way + kind, sample.args, {**sample.kwargs, **given, **more})


OPS["apgd_track"] = Op("apgd_track", _on_copies, _samples, ("apgd_track",))
