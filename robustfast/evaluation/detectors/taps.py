"""What a network's layers give, by forward hooks, and which layers are worth looking at where none are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.attacks.modes import eval_mode, module_of
from robustfast.errors import UserError
from robustfast.registry import lookup

__all__ = ["INPUT", "module_behind", "penultimate", "pooled", "stages", "taps"]

INPUT = ":input"
"""After a layer's name: what goes into it instead of what comes out, such as ``classifier:input``."""


@contextmanager
def taps(model: Callable[[Tensor], Any], layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the block, every pass through the model writes what `layers` give into the dictionary, as it is.

    Args:
        model: a module, or one way of a `robustfast.models.Network`.
        layers: names of `torch.nn.Module.named_modules`; with ``:input`` behind it, what goes into that layer. Of a
            layer that runs more than once in a pass it is the last time.

    Raises:
        UserError: no such layer, with those that there are; none at all; or `model` is no torch module.
    """
    module = module_behind(model)
    if not layers:
        raise UserError(
            "no layer to look at: give one name or more, or None for those of the network's stages"
        )
    known = {name: part for name, part in module.named_modules() if name}
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            part = lookup("layer", known, layer.removesuffix(INPUT))
            hooks.callback(_tap(part, layer, found).remove)
        yield found


def _tap(part: nn.Module, layer: str, found: dict[str, Tensor]) -> Any:
    if layer.endswith(INPUT):
        return part.register_forward_pre_hook(lambda _, given: found.update({layer: given[0]}))
    return part.register_forward_hook(lambda _, given, output: found.update({layer: output}))


def pooled(value: Any, layer: str) -> Tensor:
    """Vectors of an activation: the mean over all dimensions after the second, float32 (float64 stays).

    Args:
        value: floating [B, H] or [B, H, ...].
        layer: whose it is, for the message.

    Returns:
        [B, H].

    Raises:
        UserError: it is no such tensor, or holds a number that is not finite.
    """
    if not isinstance(value, Tensor) or value.dim() < 2 or not value.is_floating_point():
        what = (
            f"a tensor {tuple(value.shape)} of {value.dtype}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise UserError(
            f"layer {layer!r} gives {what}: expected floating [B, H] or [B, H, ...], name another layer"
        )
    value = value if value.dtype == torch.float64 else value.float()
    vectors = value.flatten(2).mean(2) if value.dim() > 2 else value
    finite = torch.isfinite(vectors)
    if not finite.all():
        bad = int((~finite.all(1)).sum())
        raise UserError(
            f"layer {layer!r}: features of {bad} of {len(vectors)} images are not finite; look at the weights and the "
            "images"
        )
    return vectors


def penultimate(model: Callable[[Tensor], Any], x: Tensor) -> tuple[str, ...]:
    """The input of the last linear layer that runs on x: the features that a classifier reads.

    Raises:
        UserError: no linear layer runs.
    """
    linear = [name for name, part, _ in _trace(model, x) if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError("no linear layer runs in this model, whose input the features could be: name a layer")
    return (linear[-1] + INPUT,)


def stages(model: Callable[[Tensor], Any], x: Tensor) -> tuple[str, ...]:
    """The layer at which each stage of a network ends, in order, without the logits.

    A stage is a run of blocks (modules that map images to feature maps and are no plain `nn.Sequential`) whose outputs
    have one shape, or a convolution or linear layer with the normalisation, activation and pooling that follow. It ends
    before what normalises the output of blocks. That gives the stem and the groups of a (Wide) ResNet, as Lee et al.
    2018 take them (deep_Mahalanobis), and each layer of a plain CNN. Parts that return no tensor, such as an
    auto-encoder in front of the classifier, are passed over.

    Raises:
        UserError: there is no such layer.
    """
    trace = _trace(model, x)
    ends = {name for name, part, output in trace if _is_end(part, output)}
    steps = [
        (name, part, output)
        for name, part, output in trace
        if name in ends and not any(name.startswith(f"{other}.") for other in ends)
    ]
    runs: list[tuple[str, tuple[int, ...] | None]] = []
    for name, part, output in steps:
        if not isinstance(output, Tensor):
            continue
        block = any(True for _ in part.children())
        shape = tuple(output.shape[1:]) if block else None
        if isinstance(part, (nn.modules.conv._ConvNd, nn.Linear)) or (
            block and (not runs or runs[-1][1] != shape)
        ):
            runs.append((name, shape))
        elif runs and (block or runs[-1][1] is None):
            runs[-1] = (name, shape)
    if runs and steps[-1][0] == runs[-1][0] and isinstance(steps[-1][1], nn.Linear):
        runs.pop()  # the logits
    if not runs:
        raise UserError("the model has no stage to take features of: name its layers")
    return tuple(name for name, _ in runs)


def _is_end(part: nn.Module, output: Any) -> bool:
    """Whether a module counts as one: a leaf, a block, or what gives no tensor."""
    if not isinstance(output, Tensor) or not any(True for _ in part.children()):
        return True
    return output.dim() > 2 and not isinstance(part, nn.Sequential)


def _trace(model: Callable[[Tensor], Any], x: Tensor) -> list[tuple[str, nn.Module, Any]]:
    """Name, module and output of every submodule that runs on the first image, in the order in which they end."""
    ran: list[tuple[str, nn.Module, Any]] = []
    module = module_behind(model)
    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name:
                hook = part.register_forward_hook(
                    lambda part, given, output, name=name: ran.append((name, part, output))
                )
                stack.callback(hook.remove)
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        model(x[:1])
    return ran


def module_behind(model: Callable[..., object]) -> nn.Module:
    """The module behind a model, whose layers can be looked at.

    Raises:
        UserError: there is none.
    """
    module = module_of(model)
    if module is None:
        raise UserError(
            f"model {type(model).__name__}: expected a torch module or one way of a network, whose layers can be named"
        )
    return module
