"""The gradient of per-sample losses with respect to the images, and to nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from robustfast.attacks.compiled import Compiled
from robustfast.attacks.folding import folded
from robustfast.attacks.losses import Loss, check_logits, loss_function
from robustfast.attacks.modes import module_of

__all__ = ["InputGradient", "Pass", "largest_entry"]

T = TypeVar("T")

_INDEPENDENT = (
    "the model's output does not depend on x: it is detached, or computed under torch.no_grad, or without x"
)
_IN_PLACE = (
    "the model changes the images it is given in place (sub_, or ReLU(inplace=True) as its first layer): "
    "let it work on a copy, for example lambda x: model(x.clone())"
)

# Under float16 the gradient of one sample reaches down to 1e-8, where half precision ends: measured on an MLP at
# batch 256, 11 % of the samples lose it altogether with a mean loss, 2 % with a sum, none with a sum times 1024;
# 65536 overflows.
FLOAT16_SCALE = 1024.0


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over a batch.

    Attributes:
        grad: [B, ...] gradient of the loss, times a fixed power of two where the model runs in float16.
        loss: [B].
        logits: [B, K], as the model gave them.
    """

    grad: Tensor
    loss: Tensor
    logits: Tensor


class InputGradient:
    """Gradients of the summed loss of a batch with respect to images alone.

    The loss is a sum over samples, never a mean: each sample's gradient is then its own, whatever the batch. Every
    rule of `robustfast.ops.pgd_step` ignores a gradient's length, which leaves room for one fixed power of two
    against underflow where the model runs in float16. There is no scaler, hence nothing to read back.

    No weight gradient is ever computed. Eager autograd leaves them out by itself when asked for the images alone. A
    compiled backward, the attack's or the model's own, does not: it computes every gradient that was traced as
    needed, a third of its time. So parameters are frozen meanwhile.

    Args:
        model: what `forward` calls; its parameters are the ones to freeze.
        forward: images, one tensor or several -> logits [B, K].
        loss: a name in `LOSSES` or a function (logits, target) -> [B].
        compiled: run forward, loss and backward through torch.compile; a model compiled by its owner, as a whole or
            in parts, runs as it is. Where torch.compile cannot work, a warning says why, once, and all runs eagerly.

    Attributes:
        classes: K, once a gradient was taken.
    """

    def __init__(
        self,
        model: Callable[..., object],
        forward: Callable[..., Tensor],
        loss: str | Loss,
        *,
        compiled: bool = False,
    ) -> None:
        self._model = model
        self._compiled = compiled
        self._trusted = False
        self.classes = 0
        self._forward = forward
        self._per_sample = per_sample = loss_function(loss)

        def evaluate(leaves: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
            logits = forward(*leaves)
            return per_sample(logits, target), logits

        module = module_of(model)
        # What is compiled already would be traced and compiled once more within a larger function.
        apart = module is not None and _is_compiled(module)
        self._evaluate = Compiled(evaluate, _warn) if compiled and not apart else evaluate

    @contextmanager
    def session(self, device: torch.device) -> Iterator[None]:
        """What holds for all gradients of one attack: autograd on, parameters frozen, encoders folded.

        Parameters are not frozen in eager mode under autocast: it keeps a weight's cast for the next step only where
        the weight requires a gradient, and would cast frozen ones again in each step. `robustfast.attacks.folding` says
        whether encoders are folded; an attack that compiles its model leaves that to the compiler.
        """
        autocast = torch.is_autocast_enabled(device.type)
        module = module_of(self._model)
        parameters = [] if module is None else list(module.parameters())
        half = autocast and torch.get_autocast_dtype(device.type) == torch.float16
        half = half or any(parameter.dtype == torch.float16 for parameter in parameters)
        self._scale = FLOAT16_SCALE if half else 1.0
        self._trusted = False
        keep_casts = autocast and not self._compiled and not (module and _is_compiled(module))
        with (
            torch.enable_grad(),
            requires_grad(parameters, keep_casts),
            cast_cache(),
            folded(self._model, device, compiled=self._compiled),
        ):
            yield

    def __call__(self, leaves: Sequence[Tensor], target: Tensor) -> tuple[Tensor, ...]:
        """Gradients like `leaves`, tensors that require one and together hold the images of `target`'s samples.

        Raises:
            ValueError, TypeError: the model's output is no logits, or does not depend on the images.
        """
        return self._pass(leaves, target)[0]

    def evaluate(self, x: Tensor, target: Tensor) -> Pass:
        """Gradient, loss and logits of images [B, ...] in one pass forward and back.

        Raises:
            ValueError, TypeError: as for a call.
        """
        leaf = x.detach().requires_grad_()
        (grad,), values, logits = self._pass([leaf], target)
        check_logits(logits, len(x))
        return Pass(grad, values.detach(), logits.detach())

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, K] of images, by a forward pass alone; half precision is taken to float32.

        Raises:
            ValueError, TypeError: the model's output is no logits.
        """
        with torch.no_grad():
            return self.forward(x.detach())

    def forward(self, leaf: Tensor) -> Tensor:
        """Logits [B, K] with the graph back to `leaf`, for gradients by `gradient_of`; half precision to float32.

        Raises:
            ValueError, TypeError: the model's output is no logits.
        """
        logits = self._guarded([leaf], lambda: self._forward(leaf))
        check_logits(logits, len(leaf))
        self.classes = logits.shape[1]
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def gradient_of(self, values: Tensor, leaf: Tensor, *, keep_graph: bool = False) -> Tensor:
        """Gradient of the sum of `values`, computed from `leaf` by `forward`, in its true length.

        Args:
            values: any shape.
            leaf: what to differentiate by, images or whatever images were made from.
            keep_graph: leave the graph for another gradient.

        Raises:
            ValueError: `values` does not depend on `leaf`.
        """
        if values.requires_grad:
            weights = values.new_full(values.shape, self._scale)
            (grad,) = torch.autograd.grad(
                values, leaf, grad_outputs=weights, retain_graph=keep_graph, allow_unused=True
            )
            if grad is not None:
                return grad if self._scale == 1 else grad / self._scale
        raise ValueError(_INDEPENDENT)

    def _pass(self, leaves: Sequence[Tensor], target: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Gradients of the leaves, and loss [B] and logits [B, K] with their graph spent."""
        values, logits = self._guarded(leaves, lambda: self._evaluate(leaves, target))
        self.classes = logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() else 0
        if values.requires_grad:
            weights = values.new_full(values.shape, self._scale)
            grads = torch.autograd.grad(values, leaves, grad_outputs=weights, allow_unused=True)
            if all(grad is not None for grad in grads):
                return grads, values, logits
        raise ValueError(_INDEPENDENT)

    def _guarded(self, leaves: Sequence[Tensor], run: Callable[[], T]) -> T:
        """What `run` returns, unless the model wrote on the images it was given.

        They may be the caller's own, so what the first pass of a session writes on them is taken back.
        """
        versions = [leaf._version for leaf in leaves]
        kept = [] if self._trusted else [leaf.detach().clone() for leaf in leaves]
        try:
            found = run()
        except RuntimeError as error:
            if "in-place operation" in str(error) and "leaf Variable" in str(error):
                raise ValueError(_IN_PLACE) from error
            raise
        finally:
            written = any(leaf._version != version for leaf, version in zip(leaves, versions, strict=True))
            if written:
                for leaf, before in zip(leaves, kept, strict=False):
                    leaf.detach().copy_(before)
        if written:
            raise ValueError(_IN_PLACE)
        self._trusted = True
        return found

    def score(self, leaves: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each sample [B], and whether the model is right about it [B]; always, where y is no label.

        Run with autograd on: a weight cast that autocast keeps from here must not cut the caller's graph.
        """
        logits = self._forward(*leaves).detach()
        values = self._per_sample(logits, target)
        labels = target.argmax(1) if target.is_floating_point() and target.dim() == 2 else target
        known = not labels.is_floating_point() and labels.dim() == 1 and logits.dim() == 2
        return values, logits.argmax(1) == labels if known else torch.ones_like(values, dtype=torch.bool)


@contextmanager
def requires_grad(parameters: Sequence[nn.Parameter], value: bool) -> Iterator[None]:
    """Set `requires_grad` of every floating-point parameter inside the block, and restore each one after it."""
    changed = [p for p in parameters if p.is_leaf and p.is_floating_point() and p.requires_grad != value]
    try:
        for parameter in changed:
            parameter.requires_grad_(value)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not value)


@contextmanager
def cast_cache() -> Iterator[None]:
    """Keep autocast's casts of weights from step to step, also where the caller keeps none, and drop them after.

    What is kept inside may come from a pass without autograd, and must not reach the caller's training pass.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
        torch.clear_autocast_cache()


def _warn(reason: str) -> None:
    warnings.warn(f"attack runs eagerly, not compiled: {reason}", RuntimeWarning, stacklevel=2)


def _is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` was applied to the module or a part of it, as a function or in place."""
    return any("_orig_mod" in part._modules or part._compiled_call_impl for part in module.modules())


def largest_entry(grad: Tensor, *, out: Tensor) -> None:
    """Largest magnitude in each sample's gradient [B]: 0 where all of it is zero, nan or inf where an entry is."""
    dims = tuple(range(1, grad.dim()))
    if grad.is_cuda:
        torch.linalg.vector_norm(grad, torch.inf, dim=dims, out=out)
    else:
        # The infinity norm is not vectorised on the CPU: 1.02 ms at 128x3x32x32 against 0.05 ms, the step itself
        # takes 0.06.
        torch.maximum(grad.amax(dims), grad.amin(dims).neg_(), out=out)
