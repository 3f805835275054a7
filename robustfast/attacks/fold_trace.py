"""The structure of a frozen encoder: what keeps it from being known, and its graph by torch.fx where nothing does."""

from __future__ import annotations

import operator
import random
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

__all__ = ["ROOT", "RefusedError", "is_compiled", "obstacle", "signature", "trace"]

ROOT = "module."
"""What the names of a traced module's parts begin with in its graph."""

_SCALARS = frozenset((bool, int, float, str, type(None)))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class RefusedError(Exception):
    """A module runs as it is; the message says why, in words that follow its name."""


def obstacle(parts: Mapping[str, nn.Module]) -> str | None:
    """What keeps a module, given with all its parts by name, from being run as anything but itself; None: nothing."""
    if torch_module._has_any_global_hook():
        return "hooks are registered for all modules"
    devices = set()
    for name, part in parts.items():
        what = f"its {name}" if name else "it"
        if is_compiled(part):
            return f"{what} is compiled"
        if any(getattr(part, hooks) for hooks in _HOOKS):
            return f"{what} has hooks"
        if "forward" in vars(part) or type(part).__call__ is not nn.Module.__call__:
            return f"{what} is called by a function of its own"
        if parametrize.is_parametrized(part):
            return f"{what} has parametrised weights"
        if part.training:
            return f"{what} is in train mode"
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is None:
                continue
            if type(tensor) not in (nn.Parameter, Tensor):
                return f"{what} holds a {type(tensor).__name__}"
            devices.add(tensor.device)
    return f"it lies on {len(devices)} devices" if len(devices) > 1 else None


def is_compiled(part: nn.Module) -> bool:
    """Whether a module itself is TorchScript, or went through torch.compile, as a function or in place."""
    if isinstance(part, torch.jit.ScriptModule):
        return True
    return part._compiled_call_impl is not None or "_orig_mod" in part._modules


def signature(parts: Mapping[str, nn.Module]) -> list[Any]:
    """What a module's graph depends on beside its code: classes, attributes, kinds of tensors, of all its parts.

    Values of tensors are not looked at, nor where they lie; lists and the like are known by their place alone.
    """
    return [
        (
            name,
            type(part),
            [
                (key, value)
                for key, value in vars(part).items()
                if type(value) in _SCALARS or _is_plain(value)
            ],
            [
                None if t is None else (t.shape, t.stride(), t.dtype, t.device)
                for t in (*part._parameters.values(), *part._buffers.values())
            ],
        )
        for name, part in parts.items()
    ]


def trace(module: nn.Module) -> fx.Graph:
    """The graph of ``module(x)`` for one argument, its parts called `ROOT` and their name.

    Leaves are the modules of torch.nn. The module is left as it was.

    Raises:
        RefusedError: its code asks for values or shapes, makes tensors or random numbers of its own, changes the grad
            or autocast mode, or remembers something.
    """
    with _lock:
        return _traced(module)


def _traced(module: nn.Module) -> fx.Graph:
    before = {part: dict(vars(part)) for part in module.modules()}
    drawn = torch.get_rng_state(), random.getstate()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(_Called(module))
    except RefusedError:
        raise
    # Whatever a module's code does with what is no tensor yet: it has many ways to fail.
    except Exception as error:
        said = (str(error) or "no reason given").splitlines()[0]
        raise RefusedError(f"it cannot be traced: {type(error).__name__}: {said}") from error
    finally:
        changed = False
        for part, kept in before.items():
            now = vars(part)
            if now.keys() != kept.keys() or any(now[key] is not value for key, value in kept.items()):
                changed = True
                now.clear()
                now.update(kept)
    if changed:
        raise RefusedError("its forward changes its own attributes")
    if random.getstate() != drawn[1] or not torch.equal(torch.get_rng_state(), drawn[0]):
        torch.set_rng_state(drawn[0])
        random.setstate(drawn[1])
        raise RefusedError("its forward draws random numbers")
    return graph


# While torch.fx traces, all calls of modules go through it, and two that trace at once would leave it so for good.
_lock = threading.Lock()


class _Called(nn.Module):
    """Calls a module with one argument, so that the others of its forward have their defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class _Value(fx.Proxy):
    """A value while it is traced. As torch has it, ``a += b`` would be recorded as ``a = a + b``."""


def _recorded(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "imatmul",
    "iand",
    "ior",
    "ixor",
):
    setattr(_Value, f"__{_name}__", _recorded(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else what is computed from buffers would be a constant

    def __init__(self) -> None:
        super().__init__()
        self._modes = _modes()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise RefusedError("its forward changes the grad or autocast mode")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            raise RefusedError("its forward makes tensors that do not come from its input")
        return super().create_arg(a)


def _modes() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast


def _is_plain(value: object) -> bool:
    return type(value) is tuple and all(type(entry) in _SCALARS for entry in value)
