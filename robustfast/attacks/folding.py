"""Frozen encoders in attacks: each runs as a plan, with batch norms folded and casts kept, where that can be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustfast.attacks.fold_plan import Plan, agrees
from robustfast.attacks.fold_trace import RefusedError, is_compiled, obstacle, signature, trace
from robustfast.attacks.modes import eval_mode, module_of
from robustfast.models.network import Network, Way
from robustfast.registry import lookup

__all__ = ["FoldedPart", "active_plans", "fold_report", "folded", "folding", "folding_mode"]

_MODES = {"auto": None, "on": True, "off": False}

# A module whose structure has changed so often, by a count that its forward keeps, say, will do so again.
_CHANGES = 16

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_mode = "auto"
# The plans that run now, those of nested attacks included, by the module whose forward they stand for.
_running: dict[nn.Module, Plan] = {}


@contextmanager
def folding(mode: str) -> Iterator[None]:
    """Say, for the whole process, whether attacks inside the block fold the batch norms of the model they attack.

    Args:
        mode: "auto" (for images on a GPU, and not on a CPU, where an attack's gradients are those of the plain model to
            the bit), "on" or "off". In exact arithmetic the three are equal; in half precision a folded model's
            gradient is as far from float32 as a plain one's.

    Raises:
        UserError: another mode.
    """
    global _mode
    lookup("folding", _MODES, mode)
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def folding_mode() -> str:
    """What the innermost `folding` says; "auto" outside all of them."""
    return _mode


def active_plans() -> tuple[int, ...]:
    """Which plans run now, by their serial numbers: a CUDA graph that holds them reads their buffers."""
    return tuple(plan.serial for plan in _running.values())


@dataclass(frozen=True)
class FoldedPart:
    """What `folding` makes of one part of a model.

    Attributes:
        name: of the part; "" is the model itself.
        reason: why it runs as it is; None where it runs as a plan.
        folded: batch norms folded into convolutions.
        fused: `robustfast.ops.affine_relu` calls.
        code: the Python that runs, "" without a plan.
    """

    name: str
    reason: str | None
    folded: int = 0
    fused: int = 0
    code: str = ""


def fold_report(model: Callable[..., object], *, batch_norm: str = "eval") -> list[FoldedPart]:
    """What an attack folds of a model, and why not, part by part; parts of a part that runs as a plan are left out.

    Plans differ between precisions: call it under the autocast of the attack.

    Args:
        model: a module or one way of a network, as an attack takes it.
        batch_norm: as of an attack.
    """
    module = module_of(model)
    first = None if module is None else next(module.parameters(), None)
    device = "cpu" if first is None else first.device.type
    with eval_mode(model, batch_norm=batch_norm), torch.enable_grad():
        return [
            FoldedPart(name, known)
            if isinstance(known, str)
            else FoldedPart(name, None, known.folded, known.fused, known.code)
            for name, _, known, _ in _parts(model, device)
        ]


@contextmanager
def folded(model: Callable[..., object], device: torch.device, *, compiled: bool = False) -> Iterator[None]:
    """Run a model's encoders as plans inside the block, with the weights they have as it begins.

    For the session of an attack: the model is in eval mode, its weights stay as they are and take no gradient. Weights,
    gradients, modes and buffers are not touched. While the block lasts a plan stands in the ``forward`` of its module,
    also when an exception passes through; a call with more than one argument goes to the module's own.

    Args:
        model: what is attacked; nothing happens to a plain callable.
        device: of the images.
        compiled: the attack compiles the model itself, with all of its parts as they are.
    """
    on = device.type == "cuda" if _MODES[_mode] is None else _MODES[_mode]
    placed: list[nn.Module] = []
    try:
        if on and not compiled:
            for _, module, plan, parts in _parts(model, device.type):
                if isinstance(plan, Plan) and module not in _running and _may_run(plan, module, device):
                    run = plan.prepare(parts)
                    _running[module] = plan
                    placed.append(module)
                    vars(module)["forward"] = _stand_in(module, plan, run, device.type)
        yield
    finally:
        for module in placed:
            vars(module).pop("forward", None)
            _running.pop(module, None)


def _stand_in(module: nn.Module, plan: Plan, run: Callable[[Tensor], Any], device: str) -> Callable[..., Any]:
    half = _half(device)
    own = type(module).forward.__get__(module)

    def forward(*args: Any, **keywords: Any) -> Any:
        # Whoever calls it may have switched autocast off: the weights would be of another dtype than the images.
        if (
            len(args) == 1
            and not keywords
            and _half(device) == half
            and _is_right(module, plan, run, own, args[0])
        ):
            return run(args[0])
        return own(*args, **keywords)

    return forward


def _is_right(
    module: nn.Module, plan: Plan, run: Callable[[Tensor], Any], own: Callable[[Tensor], Any], x: object
) -> bool:
    """Whether a plan stands for its module; held once against it, on the first images that it gets."""
    if not plan.checked and type(x) is Tensor and not x.is_meta and len(x) and not _capturing(x.device):
        plan.wrong = not agrees(run, own, x)
        plan.checked = True
        if plan.wrong:
            for half, known in _known[module].items():
                if known.plan is plan:
                    _known[module][half] = replace(
                        known, plan="its graph gives other results than its forward"
                    )
    return not plan.wrong


def _half(device: str) -> torch.dtype | None:
    """The dtype of autocast; None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _may_run(plan: Plan, module: nn.Module, device: torch.device) -> bool:
    """Whether a plan's buffers may be written now.

    A capture must not allocate them, since they outlive it; and what it reads must live as long as its graph may.
    """
    if not _capturing(device):
        return True
    if plan.allocated:
        _captured.setdefault(module, {})[plan.serial] = plan
    return plan.allocated


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


# Plans that a larger graph, such as that of a whole training step, has captured: their buffers stay.
_captured: WeakKeyDictionary[nn.Module, dict[int, Plan]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Known:
    """What became of one module in one precision, while its structure is what it was."""

    signature: list[Any]
    plan: Plan | str
    changes: int


_known: WeakKeyDictionary[nn.Module, dict[torch.dtype | None, _Known]] = WeakKeyDictionary()

_Part = tuple[str, nn.Module, Plan | str, dict[str, nn.Module]]


def _parts(model: Callable[..., object], device: str) -> Iterator[_Part]:
    """The largest parts of a model that have a plan, and those that have none and why."""
    seen: set[nn.Module] = set()
    for name, module in _roots(model):
        yield from _parts_of(name, module, _half(device), seen)


def _roots(model: Callable[..., object]) -> list[tuple[str, nn.Module]]:
    module = module_of(model)
    if module is None:
        return []
    if isinstance(module, Network):
        ways = model.name if isinstance(model, Way) else None
        encoders = {id(encoder): (name, encoder) for name, encoder in module.encoders(ways).items()}
        return [(f"encoder {name}", encoder) for name, encoder in encoders.values()]
    if isinstance(model, nn.Module) or getattr(model, "__name__", "") == "forward":
        return [("", module)]
    # Another method of the module, which calls some of its parts.
    return list(module.named_children())


def _parts_of(
    name: str, module: nn.Module, half: torch.dtype | None, seen: set[nn.Module]
) -> Iterator[_Part]:
    single = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, _CONTAINERS)
    if single or module in seen:
        return
    seen.add(module)
    parts = dict(module.named_children())
    if isinstance(module, Network):
        encoders = module.encoders()
        # An encoder may hold the network that it is of.
        if not seen.intersection(encoders.values()):
            parts = {f"encoder {way}": encoder for way, encoder in encoders.items()}
    elif reason := _closed(module):
        yield name, module, reason, {}
        return
    elif not isinstance(module, nn.ModuleList | nn.ModuleDict):
        whole = dict(module.named_modules())
        found = _plan(module, whole, half)
        yield name, module, found, whole
        if isinstance(found, Plan):
            return
    for child, part in parts.items():
        yield from _parts_of(f"{name}.{child}".lstrip("."), part, half, seen)


def _plan(module: nn.Module, parts: dict[str, nn.Module], half: torch.dtype | None) -> Plan | str:
    """The plan of a module, found once and again when its structure has changed; else why it has none."""
    if module in _running:
        return _running[module]
    if reason := obstacle(parts):
        return reason
    now = signature(parts)
    known = _known.setdefault(module, {})
    found = known.get(half)
    if found is None or found.signature != now:
        changes = 0 if found is None else found.changes + 1
        try:
            if changes > _CHANGES:
                raise RefusedError("its structure, or a number that it keeps, changes again and again")
            plan: Plan | str = Plan(trace(module), parts, half)
        except RefusedError as refused:
            plan = str(refused)
        found = known[half] = _Known(now, plan, changes)
    return found.plan


def _closed(module: nn.Module) -> str | None:
    """Why not even the parts of a module may run as plans; None where they may.

    Compiled code knows its parts' forward; others call copies of their parts, or keep the weights elsewhere.
    """
    if is_compiled(module):
        return "it is compiled"
    spread = isinstance(module, nn.DataParallel) or any(
        kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__
    )
    return f"{type(module).__name__} runs its parts elsewhere" if spread else None
